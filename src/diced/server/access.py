"""Who may do what: modes, the admin token, users and their rights per repo.

The section ``[access]`` of the configuration says who may do what; without it everybody may do
everything. Rights are ``none``, ``read``, ``write`` and ``admin``, each with all before it, per
repo: by the UUID of its root, else by its name, else by ``*``. A caller has the greatest right of
those that everybody has (``default``), that the user has, and that the user's groups have.

Nobody's rights change a locked version: ``fullwrite`` and an admin token lift the checks for what
lies beside it, which are notes, logs and unversioned data.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from diced.errors import DicedException, InvalidError
from diced.server import blocklist, config
from diced.server.answer import Refused
from diced.server.load import Shared
from diced.server.options import Options
from diced.server.routes import ADMIN, NONE, READ, WRITE

if TYPE_CHECKING:
    from diced.repo import DicedRepo
    from diced.server.call import Call
    from diced.server.routes import Route

LOG = logging.getLogger("diced.server")
READING = frozenset(("GET", "HEAD", "OPTIONS"))
LEVELS = {NONE: 0, READ: 1, WRITE: 2, ADMIN: 3}
EVERY = "*"
ANONYMOUS = "anonymous"  # who changes something without a token, where there are tokens
MAX_USER = 256

_HEX = re.compile("[0-9a-fA-F]{64}")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Rights:
    """What somebody may do.

    Parameters
    ----------
    grants : list of dict
        Of each, levels by the name of a repo, the UUID of its root, or ``*``.
    """

    def __init__(self, grants: list[dict[str, int]]):
        self._grants = grants

    def level(self, root: str, name: str) -> int:
        """Return the level for a repo; for the server as a whole both are ``*``."""
        return max(
            each[root] if root in each else each.get(name, each.get(EVERY, 0))
            for each in self._grants
        )


class User(Rights):
    """A user, with rights of their own and those of groups."""

    def __init__(self, name: str, grants: list[dict[str, int]]):
        super().__init__(grants)
        self.name = name


class Rules:
    """The section ``[access]``.

    Parameters
    ----------
    section : mapping

    Raises
    ------
    InvalidError
        It says something that has no meaning; then nothing of it counts.
    """

    def __init__(self, section: Mapping[str, Any]):
        known = {"default", "public_versions", "users", "groups"}
        unknown = sorted(set(section) - known)
        if unknown:
            raise InvalidError(f"[access] has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        self.closed = bool(section)
        everybody = _grant("default", section.get("default", NONE))
        self.anonymous = Rights([everybody])
        groups = {
            name: _grant(f"groups.{name}", each)
            for name, each in _table("groups", section.get("groups", {})).items()
        }
        # Looked up by a keyed hash, so that the time it takes tells nothing of any token.
        self._key = os.urandom(32)
        self._users: dict[bytes, User] = {}
        for name, fields in _table("users", section.get("users", {})).items():
            self._add(name, _table(f"users.{name}", fields), groups, everybody)
        self.public = frozenset(_texts("public_versions", section.get("public_versions", [])))

    def _add(
        self, name: str, fields: dict[str, Any], groups: dict[str, dict[str, int]],
        everybody: dict[str, int],
    ) -> None:  # fmt: skip
        check_user(name)
        where = f"users.{name}"
        unknown = sorted(set(fields) - {"token", "tokens", "groups", "rights"})
        if unknown:
            raise InvalidError(f"[access] {where} has no {unknown[0]!r}")
        grants = [everybody, _grant(f"{where}.rights", fields.get("rights", {}))]
        for each in _texts(f"{where}.groups", fields.get("groups", [])):
            if each not in groups:
                raise InvalidError(f"[access] {where} is in the group {each!r}, which is not there")
            grants.append(groups[each])
        tokens = _texts(f"{where}.tokens", fields.get("tokens", []))
        tokens += [_text(f"{where}.token", fields["token"])] if "token" in fields else []
        for token in tokens:
            key = self._hash(_digest(where, token))
            if key in self._users:
                raise InvalidError(f"[access] {where} has a token that somebody else has too")
            self._users[key] = User(name, grants)

    def _hash(self, digest: bytes) -> bytes:
        return hmac.digest(self._key, digest, "sha256")

    def find(self, token: str) -> User | None:
        """Return whose token this is."""
        return self._users.get(self._hash(hashlib.sha256(token.encode()).digest()))


class Access:
    """Decides on requests.

    Parameters
    ----------
    options : Options
    shared : Shared
        Tells when files were changed.
    """

    def __init__(self, options: Options, shared: Shared):
        self.options = options
        self._shared = shared
        self._generation = shared.generation
        self._rules = Rules(options.access)
        self._blocked = blocklist.Blocklist()
        if options.blocklist:
            self._blocked = blocklist.read(options.blocklist)
        self._public: dict[str, tuple[int, frozenset[str], frozenset[str]]] = {}

    @property
    def open(self) -> bool:
        """Everybody may do everything: no users are known."""
        return not self._rules.closed

    # -- who calls -------------------------------------------------------------------------

    def identify(self, call: Call) -> None:
        """Find out who calls: sets ``call.user``, ``call.admin`` and ``call.rights``, or refuses.

        Raises
        ------
        Refused
            401 for a token that nobody has, 429 for who is blocked.
        """
        if self._generation != self._shared.generation:
            self._follow()
        if call.method not in READING and self._is_foreign(call, self.options.cors):
            raise Refused(403, f"pages of {call.headers['origin']:.100} may change nothing here\n")
        check_user(call.user)
        rules, asked = self._rules, call.user
        token = self._token(call)
        call.admin = self._is_admin(call.query.get("admintoken", "")) or self._is_admin(token)
        call.rights = rules.anonymous
        if rules.closed and not call.admin:
            call.user = ANONYMOUS
            if token:
                user = rules.find(token)
                if user is None:
                    raise _unknown("nobody has this token")
                call.user, call.rights = user.name, user
                call.admin = user.level(EVERY, EVERY) == LEVELS[ADMIN]
        if len(self._blocked):
            hosts = blocklist.hosts(
                call.headers.get("forwarded", ""), call.headers.get("x-forwarded-for", ""),
                call.client,
            )  # fmt: skip
            why = self._blocked.find((asked, call.user), hosts)
            if why is not None:
                raise Refused(429, why)

    def _is_foreign(self, call: Call, cors: Collection[str]) -> bool:
        """Tell whether a page of another origin, none of these, has a browser send a request."""
        origin = call.headers.get("origin")
        if origin is None or "*" in cors:
            return False
        return origin.partition("://")[2] != call.headers.get("host") and not is_welcome(
            origin, cors
        )

    def _token(self, call: Call) -> str:
        kind, _, token = call.headers.get("authorization", "").partition(" ")
        return token.strip() if kind.lower() == "bearer" else ""

    def _is_admin(self, token: str) -> bool:
        wanted = self.options.admin_token
        return bool(token and wanted) and hmac.compare_digest(
            token.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass")
        )

    # -- what they may ---------------------------------------------------------------------

    def check(self, call: Call, route: Route) -> None:
        """Refuse what the caller may not do; ``call.repo`` is known where the path names one.

        Raises
        ------
        Refused
            400 for a change where nothing may be changed, 401 without a token, 403 with one that
            does not suffice.
        """
        if call.admin or route.needs == NONE:
            return
        needed = LEVELS[route.needs]
        changes = call.method not in READING and needed > LEVELS[READ]
        about_data = not call.path.startswith("/api/server/")
        if self.options.mode == "readonly" and changes and about_data:
            raise Refused(
                400, f"Server in read-only mode and will only accept GET and HEAD ({call.path}).\n"
            )
        if self.open:
            if route.needs == ADMIN and self.options.admin_token:
                raise Refused(400, f"this needs the admin token ({call.path}).\n")
            # Any page that somebody looks at can reach a server of the same machine.
            named = [each for each in self.options.cors if each != "*"]
            if route.needs == ADMIN and self._is_foreign(call, named):
                raise Refused(
                    403, "pages of other origins may do this where --cors names them"
                    f" ({call.path}).\n"
                )  # fmt: skip
            return
        repo = call.repo
        if repo is None:
            # What is told of the server as a whole; repos are shown as far as they are visible.
            if route.needs != READ and call.rights.level(EVERY, EVERY) < needed:
                raise self._denied(call)
            return
        if changes and _renames(call):
            needed = LEVELS[ADMIN]
        if self._level(call, repo) >= needed:
            return
        if needed == LEVELS[READ] and _of_version(call) and self._is_public(repo):
            return
        raise self._denied(call)

    def check_version(self, call: Call, repo: DicedRepo) -> None:
        """Refuse a caller who may not read a version that is named beside the path.

        Raises
        ------
        Refused
        """
        if self.open or call.admin or self._level(call, repo) >= LEVELS[READ]:
            return
        if not self._is_public(repo):
            raise self._denied(call)

    def visible(self, call: Call, repo: DicedRepo) -> str:
        """Tell what a caller may see of a repo.

        Returns
        -------
        str
            ``all``; ``public``, which is `public_nodes` without logs; or ``none``.
        """
        if self.open or call.admin or self._level(call, repo) >= LEVELS[READ]:
            return "all"
        return "public" if self.public_nodes(repo) else "none"

    def public_nodes(self, repo: DicedRepo) -> frozenset[str]:
        """Return the UUIDs of a repo's versions that anyone may read.

        They are those of ``public_versions`` that are locked, and all their ancestors.
        """
        return self._public_nodes(repo)[0]

    def _public_nodes(self, repo: DicedRepo) -> tuple[frozenset[str], frozenset[str]]:
        """Return the UUIDs and the internal ids of public versions."""
        public = self._rules.public
        if not public:
            return frozenset(), frozenset()
        view = repo._history.view()
        known = self._public.get(repo._id)
        if known is None or known[0] != view.number:
            dag = view.dag
            ids: set[str] = set()
            for node in dag.nodes.values():
                if node.uuid in public and node.locked:
                    ids |= dag.ancestry(node)
            uuids = frozenset(dag.nodes[each].uuid for each in ids)
            known = self._public[repo._id] = (view.number, uuids, frozenset(ids))
        return known[1], known[2]

    def _is_public(self, repo: DicedRepo) -> bool:
        return repo._node_id in self._public_nodes(repo)[1]

    def _level(self, call: Call, repo: DicedRepo) -> int:
        # The name is the only one of its kind, which an alias of DVID's need not be.
        level: int = call.rights.level(repo.root, repo.name)
        return level

    def _denied(self, call: Call) -> Refused:
        if isinstance(call.rights, User):
            return Refused(403, f"user {call.user!r} may not do this ({call.path}).\n")
        return _unknown(f"this needs a token ({call.path})")

    # -- changes while it serves -----------------------------------------------------------

    def reload(self) -> None:
        """Read rights and blocked users anew, here now and in other processes at the next request.

        Raises
        ------
        DicedException
            What is in the files has no meaning; what was known stays.
        """
        self._read()
        self._shared.reload()
        self._generation = self._shared.generation

    def _follow(self) -> None:
        self._generation = self._shared.generation
        # The process that was told to said already what is wrong.
        with contextlib.suppress(DicedException):
            self._read()

    def _read(self) -> None:
        path, listed = self.options.config_path, self.options.blocklist
        rules = Rules(config.read(path).fields.get("access", {})) if path else self._rules
        blocked = blocklist.read(listed) if listed else self._blocked
        if self._rules.closed and not rules.closed:
            raise InvalidError(f"{path} has no [access] any more; restart the server to open it")
        self._rules, self._blocked = rules, blocked
        self._public.clear()


def is_welcome(origin: str, cors: Collection[str]) -> bool:
    """Tell whether an origin is one of these, or of one of these domains."""
    host = origin.partition("://")[2].partition(":")[0].lower()
    return origin in cors or any(
        host == each.lower() or host.endswith(f".{each.lower()}") for each in cors
    )


def check_user(name: str) -> str:
    """Return the name of a user, or refuse one that would do harm in logs and commits."""
    if len(name) > MAX_USER or _CONTROL.search(name):
        raise InvalidError(
            f"a user's name has at most {MAX_USER} characters and no control characters;"
            f" got {name!r:.80}"
        )
    return name


def _renames(call: Call) -> bool:
    # Rights go by names too: who renames a repo changes who may do what with it.
    return call.array is None and call.path.rstrip("/").endswith("/info")


def _of_version(call: Call) -> bool:
    """Tell whether a request is about one version, or tells of a repo what is visible of it."""
    pieces = call.path.strip("/").split("/")[1:]
    if pieces[:1] == ["page"]:
        pieces = pieces[1:]
    return pieces[0] == "node" or (pieces[0] == "repo" and pieces[2:] in ([], ["info"]))


def _unknown(text: str) -> Refused:
    return Refused(401, f"{text}\n", {"WWW-Authenticate": 'Bearer realm="diced"'})


# -- parsing -------------------------------------------------------------------------------


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidError(f"[access] {where} is a table; got {value!r:.60}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidError(f"[access] {where} is text that is not empty")
    return value


def _texts(where: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise InvalidError(f"[access] {where} is a list of text")
    return [_text(where, each) for each in value]


def _grant(where: str, value: Any) -> dict[str, int]:
    """Parse a right for all repos, or rights by repo."""
    found = {EVERY: value} if isinstance(value, str) else _table(where, value)
    for repo, right in found.items():
        if not isinstance(right, str) or right not in LEVELS:
            raise InvalidError(
                f"[access] {where}: the right for {repo!r} is one of {', '.join(LEVELS)};"
                f" got {right!r:.60}"
            )
    return {repo: LEVELS[right] for repo, right in found.items()}


def _digest(where: str, token: str) -> bytes:
    """Return the SHA-256 of a token that is given as ``sha256:<hex>``, or as itself."""
    kind, colon, text = token.partition(":")
    if kind != "sha256" or not colon:
        return hashlib.sha256(token.encode()).digest()
    if not _HEX.fullmatch(text):
        raise InvalidError(f"[access] {where}: behind 'sha256:' are 64 hex digits")
    return bytes.fromhex(text)
