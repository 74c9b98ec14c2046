"""One request as a handler sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diced.errors import InvalidError
from diced.repo import DicedRepo
from diced.server.answer import Buffer

if TYPE_CHECKING:
    from diced.server.routes import Route
    from diced.server.site import Site

TRUE = frozenset(("on", "true", "1"))
# Of JSON, since one that holds nothing takes some 60 bytes of memory for 3 of a body; the same goes
# for short names and numbers.
MAX_LISTS = 2**19
MAX_VALUES = 2**20


class Call:
    """One request.

    Attributes
    ----------
    site : Site
        What all requests share.
    method, path : str
        The path is decoded.
    args : dict of str
        What stands for the parameters of the route's pattern.
    query : dict of str
        Of a parameter that is given twice the last counts.
    headers : mapping of str
        Names in lower case.
    body : bytes-like
        Whole, and without its content encoding.
    user : str
        Who asks, as far as known; recorded in commits.
    admin : bool
    client : str
        Address.
    repo : DicedRepo or None
        At the version that the path names.
    array : Any
        The instance that the path names, or None.
    """

    __slots__ = (
        "admin", "args", "array", "body", "client", "headers", "method", "path", "query", "repo",
        "rights", "route", "site", "type", "user",
    )  # fmt: skip

    def __init__(
        self,
        site: Site,
        method: str,
        path: str,
        query: dict[str, str],
        headers: Mapping[str, str],
        client: str,
    ):
        self.site = site
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.client = client
        self.args: dict[str, str] = {}
        self.body: Buffer = b""
        self.user = query.get("u", "")
        self.admin = False
        self.rights: Any = None  # what `access` found out about the caller
        self.repo: Any = None
        self.array: Any = None
        self.type: Any = None  # the array's data type
        self.route: Route | None = None

    def flag(self, name: str) -> bool:
        """Tell whether a query parameter says yes: ``on``, ``true`` or ``1``."""
        return self.query.get(name, "").lower() in TRUE

    def number(self, name: str, default: int | None = None) -> int:
        """Return a query parameter that is a whole number."""
        text = self.query.get(name)
        if text is None:
            if default is None:
                raise InvalidError(f"the query parameter {name!r} is needed")
            return default
        return whole(text, f"query parameter {name!r}")

    def text(self) -> str:
        """Return the body as text."""
        try:
            return bytes(self.body).decode()
        except UnicodeDecodeError:
            raise InvalidError("the body is not UTF-8 text") from None

    def json(self, kind: type = dict, empty: Any = None, most: int = MAX_VALUES) -> Any:
        """Return the body as JSON.

        Parameters
        ----------
        kind : type
            What it must be: dict or list.
        empty : Any
            What an empty body means; with None it is refused.
        most : int
            Values that it may hold.
        """
        if not len(self.body) and empty is not None:
            return empty
        check_json_size(self.body, most)
        try:
            value = json.loads(bytes(self.body))
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"the body is not JSON: {error}") from None
        if not isinstance(value, kind):
            raise InvalidError(f"the body is a JSON {type(value).__name__}; wanted {kind.__name__}")
        return value

    def node_repo(self) -> DicedRepo:
        """Return the repo of the path, at its version."""
        repo: DicedRepo = self.repo
        return repo


def check_json_size(data: Buffer, most: int = MAX_VALUES) -> None:
    """Refuse JSON that would take far more memory than it has bytes.

    Raises
    ------
    InvalidError
    """
    lists = values = 0
    for at in range(0, len(data), 2**20):
        piece = bytes(data[at : at + 2**20])
        lists += piece.count(b"[") + piece.count(b"{")
        values += piece.count(b",")
    if lists > MAX_LISTS:
        raise InvalidError(f"the body holds more than {MAX_LISTS} lists and objects")
    if values > most:
        raise InvalidError(f"the body holds more than {most} values")


def whole(text: str, what: str) -> int:
    """Return the whole number that a text says; at most 20 digits."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise InvalidError(f"{what} is a whole number; got {text!r:.60}")
    return int(text)
