"""Commands of the old command line, ``dvid node UUID NAME COMMAND ...``, over HTTP.

They may read files of the server's machine, so only that machine's own users, and whoever has the
admin token, may give them; no page of a browser may.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress

from diced.errors import InvalidError
from diced.server.answer import Refused
from diced.server.call import Call
from diced.server.datatype import Settings
from diced.server.routes import Route

STDIN_BYTES = 256 * 2**20


def _local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a socket of the file system, or a test
        return address == ""


def _limit(call: Call) -> int:
    """Refuse a command from elsewhere before its body comes."""
    # Behind a proxy on this machine everybody seems to be here.
    elsewhere = not {"forwarded", "x-forwarded-for"}.isdisjoint(call.headers)
    local = _local(call.client) and not elsewhere
    if "origin" in call.headers or not (call.admin or local):
        raise Refused(
            403,
            "commands are taken from this machine, or with the admin token, and not from pages\n",
        )
    return 2 * STDIN_BYTES


def _command(call: Call) -> str:
    _limit(call)
    given = call.json()
    words, settings = given.get("words"), given.get("settings", {})
    if not (isinstance(words, list) and words and all(isinstance(each, str) for each in words)):
        raise InvalidError("'words' is a JSON list of text: the command and what follows it")
    if not isinstance(settings, dict):
        raise InvalidError("'settings' is a JSON object")
    try:
        stdin = base64.b64decode(given.get("stdin", ""), validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidError("'stdin' is base64 text") from None
    run = call.type.commands.get(words[0])
    if run is None:
        known = ", ".join(call.type.commands) or "none"
        raise InvalidError(f"{call.type.name} has no command {words[0]!r}; there is {known}")
    text: str = run(call.site, call.array, words[1:], Settings(settings), stdin)
    return text


def routes() -> list[Route]:
    """Return the routes; patterns go on behind the instance's name."""
    return [
        Route(
            "POST", "command", _command,
            "Runs a command of the data type, as 'dvid node UUID NAME ...' does.",
            body="JSON: 'words' (list), 'settings' (object), 'stdin' (base64)",
            limit=_limit, slow=True,
        ),
    ]  # fmt: skip
