"""The table of requests: patterns, what they need, and how they are found and described.

A pattern is ``/api/node/{uuid}/note`` or, for a data type, what follows the instance's name:
``raw/{dims}/{size}/{offset}[/{format}]``. ``{key...}`` takes all that is left, slashes too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from diced.errors import InvalidError

if TYPE_CHECKING:
    from diced.server.call import Call

Handler = Callable[["Call"], Any]
Limit = int | Callable[["Call"], int]

# Most bytes of a body that a route does not speak of: JSON and the like.
BODY_BYTES = 16 * 2**20

NONE, READ, WRITE, ADMIN = "none", "read", "write", "admin"


class Route:
    """One request that the server answers.

    Parameters
    ----------
    methods : str
        ``GET``, ``POST``, ...; several with blanks. HEAD goes where GET goes.
    pattern : str
    run : callable
        Gets the `Call`, returns what `answer.as_answer` takes.
    summary : str
        For people, one sentence.
    query : mapping of str to str
        Query parameters and what they mean.
    body : str
        What the body holds; empty if it is ignored.
    limit : int or callable
        Most bytes of the body. A callable gets the call before the body is read, may refuse it,
        and returns the bytes that it may have.
    light : bool
        It answers from memory and a few metadata, so it may run beside the event loop.
    needs : str, optional
        Right that the caller needs: ``none``, ``read``, ``write`` or ``admin``. Of itself ``read``
        for GET, HEAD and OPTIONS and ``write`` for the rest.
    changes : bool, optional
        Refused at a locked version, of a versioned array. Of itself what needs ``write``.
    throttled : bool
        Honours ``throttle=on``.
    slow : bool
        It may take as long as it takes, as commands over whole volumes do.
    """

    __slots__ = (
        "body", "changes", "light", "limit", "methods", "needs", "pattern", "query", "run",
        "slow", "summary", "throttled",
    )  # fmt: skip

    def __init__(
        self,
        methods: str,
        pattern: str,
        run: Handler,
        summary: str,
        *,
        query: Mapping[str, str] | None = None,
        body: str = "",
        limit: Limit = BODY_BYTES,
        light: bool = False,
        needs: str | None = None,
        changes: bool | None = None,
        throttled: bool = False,
        slow: bool = False,
    ):
        self.methods = tuple(methods.split())
        self.pattern = pattern
        self.run = run
        self.summary = summary
        self.query = dict(query or {})
        self.body = body
        self.limit = limit
        self.light = light
        reads = set(self.methods) <= {"GET", "HEAD", "OPTIONS"}
        self.needs = needs or (READ if reads else WRITE)
        self.changes = (self.needs == WRITE) if changes is None else changes
        self.throttled = throttled
        self.slow = slow

    def __repr__(self) -> str:
        return f"<Route {' '.join(self.methods)} {self.pattern}>"


class _Node:
    """A piece of paths."""

    __slots__ = ("literal", "name", "param", "rest", "routes")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.param: _Node | None = None
        self.rest: dict[str, tuple[str, Route]] = {}  # method -> name, route
        self.routes: dict[str, tuple[tuple[str, ...], Route]] = {}  # method -> names, route


class Table:
    """Routes by path. Literal pieces win over parameters, parameters over ``{rest...}``."""

    def __init__(self, routes: Iterable[Route] = ()):
        self.routes: list[Route] = []
        self._root = _Node()
        for each in routes:
            self.add(each)

    def add(self, route: Route) -> None:
        """Add a route; a later one of the same pattern and method is refused."""
        self.routes.append(route)
        for pattern in variants(route.pattern):
            node, names = self._root, []
            for piece in split(pattern.removeprefix("/api")):
                if piece.startswith("{") and piece.endswith("...}"):
                    for method in route.methods:
                        node.rest[method] = (piece[1:-4], route)
                    break
                if piece.startswith("{"):
                    names.append(piece[1:-1])
                    node.param = node = node.param or _Node()
                else:
                    node = node.literal.setdefault(piece, _Node())
            else:
                for method in route.methods:
                    if method in node.routes:
                        raise InvalidError(f"two routes for {method} {pattern}")
                    node.routes[method] = (tuple(names), route)

    def find(self, method: str, pieces: list[str]) -> tuple[Route, dict[str, str]] | None:
        """Return the route of a path and what its parameters are, or None."""
        return self._find(self._root, method, pieces, 0, [])

    def _find(
        self, node: _Node, method: str, pieces: list[str], at: int, values: list[str]
    ) -> tuple[Route, dict[str, str]] | None:
        if at == len(pieces):
            found = node.routes.get(method)
            if found is None and method == "HEAD":
                found = node.routes.get("GET")
            if found is not None:
                return found[1], dict(zip(found[0], values, strict=True))
        else:
            child = node.literal.get(pieces[at])
            if child is not None:
                match = self._find(child, method, pieces, at + 1, values)
                if match is not None:
                    return match
            if node.param is not None:
                match = self._find(node.param, method, pieces, at + 1, [*values, pieces[at]])
                if match is not None:
                    return match
        rest = node.rest.get(method) or (node.rest.get("GET") if method == "HEAD" else None)
        if rest is None:
            return None
        name, route = rest
        names = [each for each in split(route.pattern) if each.startswith("{")]
        given = dict(zip((each[1:-1] for each in names[:-1]), values, strict=True))
        return route, {**given, name: "/".join(pieces[at:])}


def split(path: str) -> list[str]:
    """Return the pieces of a path; one empty piece at either end is none."""
    return path.removeprefix("/").removesuffix("/").split("/") if path.strip("/") else []


_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")


def variants(pattern: str) -> list[str]:
    """Return a pattern without and with what stands in brackets."""
    match = _OPTIONAL.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [*variants(before + after), *variants(before + match[1] + after)]
