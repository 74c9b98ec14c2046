"""Users and addresses that get no answer: a file that an operator can change while it serves.

Each line is ``u=<user>[,note]`` or ``ip=<pattern>[,note]``; ``*`` in a pattern stands for anything.
Empty lines and those that begin with ``#`` say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from diced.errors import InvalidError, LocationError

MAX_HOPS = 16  # addresses of a chain of proxies that are looked at


class Blocklist:
    """Who is blocked, and why.

    Parameters
    ----------
    lines : iterable of str

    Raises
    ------
    InvalidError
        A line is of neither form.
    """

    def __init__(self, lines: Iterable[str] = ()):
        self._users: dict[str, str] = {}
        self._hosts: list[tuple[re.Pattern[str], str]] = []
        for number, line in enumerate(lines, 1):
            rule, _, note = line.strip().partition(",")
            name, equals, value = (each.strip() for each in rule.partition("="))
            if not rule or rule.startswith("#"):
                continue
            if not equals or not value or name not in ("u", "ip"):
                raise InvalidError(
                    f"line {number} of the blocklist is u=<user>[,note] or ip=<address>[,note];"
                    f" got {line.strip()!r:.100}"
                )
            if name == "u":
                self._users[value] = note.strip()
            else:
                self._hosts.append((re.compile(translate(value)), note.strip()))

    def __len__(self) -> int:
        return len(self._users) + len(self._hosts)

    def find(self, users: Iterable[str], hosts: Iterable[str]) -> str | None:
        """Return why the first of these is blocked, as a sentence, or None."""
        for user in users:
            if user in self._users:
                return _sentence("User", user, self._users[user])
        for host in hosts if self._hosts else ():
            for pattern, note in self._hosts:
                if pattern.match(host):
                    return _sentence("IP", host, note)
        return None


def _sentence(what: str, who: str, note: str) -> str:
    return f'{what} "{who}" is blocked{": " if note else ""}{note}\n'


def read(path: str) -> Blocklist:
    """Read the file of a blocklist.

    Raises
    ------
    LocationError, InvalidError
    """
    try:
        with open(path, encoding="utf-8") as file:
            return Blocklist(file)
    except (OSError, UnicodeDecodeError) as error:
        raise LocationError(f"cannot read the blocklist {path!r}: {error}") from None


def hosts(forwarded: str, forwarded_for: str, peer: str) -> list[str]:
    """Return the addresses that a request came by: those it tells of, and the real sender's.

    Parameters
    ----------
    forwarded, forwarded_for : str
        Its headers ``Forwarded`` and ``X-Forwarded-For``.
    peer : str
    """
    found = re.findall(r'for="?\[?([0-9A-Za-z.:_-]+)', forwarded, re.IGNORECASE)[:MAX_HOPS]
    # An address of IPv4 may have its port behind it.
    found = [each.rpartition(":")[0] if each.count(":") == 1 else each for each in found]
    found += [each.strip() for each in forwarded_for.split(",")[:MAX_HOPS] if each.strip()]
    return [*found, peer]
