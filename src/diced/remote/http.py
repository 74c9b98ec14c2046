"""Requests to one server: connections, retries, errors.

`Server.ask` sends a request until there is an answer, within bounds. What may be done twice is
sent again when an answer is lost; what may not raises `LostAnswer`, and `Server.settle` asks the
server what is true now.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from diced import actor, forks
from diced.errors import AccessError, DicedException, EngineError, LocationError
from diced.remote.address import Address
from diced.remote.failures import failure, says

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse
    from urllib3.connectionpool import HTTPConnectionPool

T = TypeVar("T")
Body = bytes | memoryview
Take = Callable[["BaseHTTPResponse"], bytes]

PIECE = 2**18  # bytes read at a time into memory of others: they stay in the cache
BUSY = frozenset({429, 503})  # refused for now
PROXY = frozenset({502, 504})  # whether the server behind did it is not known
# A 503 that comes before anything is done; after others the server may still be at it.
_TURNED_AWAY = re.compile(rb"throttled operations|server is unavailable|inert", re.IGNORECASE)


class LostAnswer(EngineError):
    """It is not known whether a request that must not be sent twice took effect."""


class Reply(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request: str  # for messages: method and URL

    def json(self, kind: type = dict) -> Any:
        """Return the JSON that the body holds.

        Raises
        ------
        EngineError
            It is not JSON, or not of that kind.
        """
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, kind):
            raise EngineError(
                f"the answer is not the JSON {kind.__name__} that DVID gives; it begins"
                f" {self.body[:60]!r} [{self.request}]"
            )
        return found


class Tries:
    """How long one call goes on trying.

    Parameters
    ----------
    request : str
        For messages.
    patience : float
        Seconds in all; a try that began is waited for.
    reach : float
        Seconds of them for a server that takes no connections.
    """

    PAUSE = 0.05  # doubled each time; what is waited is random below it
    LONGEST = 8.0

    def __init__(self, request: str, patience: float, reach: float) -> None:
        self._request = request
        self._patience = patience
        self._reach = min(reach, patience)
        self._began = time.monotonic()
        self._failures = 0

    @property
    def left(self) -> float:
        """Seconds for the next try."""
        return max(1.0, self._began + self._patience - time.monotonic())

    def again(self, why: object, *, after: float = 0.0, reached: bool = True) -> None:
        """Wait before the next try, or raise if there is to be none.

        Parameters
        ----------
        why : object
            What went wrong, for the message.
        after : float
            Seconds that the server asked to wait.
        reached : bool
            There was a connection.

        Raises
        ------
        EngineError
        LocationError
            No connection was made.
        """
        self._failures += 1
        pause = random.uniform(0.0, min(self.LONGEST, self.PAUSE * 2.0**self._failures))
        pause += min(after, 2 * self.LONGEST)
        spent = time.monotonic() - self._began
        if spent + pause < (self._patience if reached else self._reach):
            time.sleep(pause)
            return
        tries = "1 try" if self._failures == 1 else f"{self._failures} tries"
        text = f"given up after {tries} in {spent:.1f} s: {why} [{self._request}]"
        raise EngineError(text) if reached else LocationError(f"no server answers; {text}")


class Server:
    """A DVID server, as one user.

    Parameters
    ----------
    address : Address
    user : str
        Sent as ``u=`` with every request, unless the thread acts for another.
    token, admin_token : str, optional
        Sent as ``Authorization: Bearer`` and ``admintoken=``.
    connections : int
        How many are kept.
    patience : float
        Seconds that one call goes on trying.
    """

    CONNECT = 10.0
    READ = 300.0  # without a byte: a request may wait for storage
    REACH = 5.0

    def __init__(
        self,
        address: Address,
        *,
        user: str,
        token: str | None = None,
        admin_token: str | None = None,
        connections: int = 16,
        patience: float = 300.0,
    ) -> None:
        self.address = address
        self.user = user
        self.token = token
        self.admin_token = admin_token
        self.connections = connections
        self.patience = patience
        self.requests = 0  # that were sent, tries included
        self._headers = {"User-Agent": "diced", "Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool: HTTPConnectionPool | None = None
        self._closed = False
        forks.watch(self)

    # -- asking ----------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Body | None = None,
        wanted: Collection[int] = (200,),
        twice: bool = True,
        take: Take | None = None,
    ) -> Reply:
        """Send a request until there is an answer that no other try would change.

        Parameters
        ----------
        method : str
        path : str
            Behind ``/api/``, quoted; see `spell`.
        query : mapping, optional
            None values are left out.
        body : bytes or memoryview, optional
        wanted : collection of int
            The statuses to return.
        twice : bool
            It does no harm to do it twice. Without it a lost answer raises `LostAnswer`.
        take : callable, optional
            Reads the body of an answer of a wanted status; an error of urllib3 in it is a lost
            answer.

        Raises
        ------
        DicedException
            What the server's refusal means, with its words.
        EngineError
            It went on failing. `LocationError`: it takes no connections.
        """
        from urllib3.exceptions import HTTPError

        target = self._target(path, query)
        request = f"{method} {self.address.web}/api/{path}"
        tries = Tries(request, self.patience, self.REACH)
        while True:
            try:
                reply = self._send(method, target, body, request, tries, wanted, take)
            except HTTPError as error:
                self._lost(error, tries, request, twice)
                continue
            if reply.status in wanted:
                return reply
            unknown = reply.status in PROXY or not _TURNED_AWAY.search(reply.body)
            if reply.status in BUSY and b"blocked" not in reply.body:
                if not twice and unknown and reply.status != 429:
                    raise LostAnswer(f"{says(reply.status, reply.body)} [{request}]")
            elif reply.status not in PROXY:
                raise failure(
                    reply.status, reply.body, request, reply.headers.get("diced-error", "")
                )
            elif not twice:
                raise LostAnswer(f"{says(reply.status, reply.body)} [{request}]")
            tries.again(says(reply.status, reply.body), after=_retry_after(reply))

    def get_json(self, path: str, kind: type = dict, **query: Any) -> Any:
        """GET what is JSON."""
        return self.ask("GET", path, query=query).json(kind)

    def post_json(self, path: str, value: Any, *, twice: bool = True, **query: Any) -> Reply:
        """POST JSON."""
        body = json.dumps(value).encode()
        return self.ask("POST", path, query=query, body=body, twice=twice)

    def settle(self, act: Callable[[], T], look: Callable[[], T | None], what: str) -> T:
        """Do what must not be done twice.

        Parameters
        ----------
        act : callable
            Asks with ``twice=False``.
        look : callable
            Asks the server what came of it; None: nothing.
        what : str
            For messages.
        """
        tries = Tries(what, self.patience, self.REACH)
        while True:
            try:
                return act()
            except LostAnswer as lost:
                found = look()
                if found is not None:
                    return found
                tries.again(lost)

    def fill(self, path: str, out: memoryview, **query: Any) -> None:
        """GET bytes into memory, which must be as many as there are."""

        def take(response: BaseHTTPResponse) -> bytes:
            from urllib3.exceptions import IncompleteRead

            declared = response.headers.get("Content-Length")
            if declared is not None and int(declared) != len(out):
                response.read()
                return declared.encode()
            at = 0
            while at < len(out):
                count = response.readinto(out[at : at + PIECE])
                if not count:
                    raise IncompleteRead(at, len(out) - at)
                at += count
            return b"more" if response.read(1) else b""

        reply = self.ask("GET", path, query=query, take=take)
        if reply.body:
            raise EngineError(
                f"the answer has {reply.body.decode()} bytes, not {len(out)} [{reply.request}]"
            )

    # -- one request -----------------------------------------------------------------------

    def _target(self, path: str, query: Mapping[str, Any] | None) -> str:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        given |= {"u": actor.current(self.user), "app": "diced"}
        if self.admin_token:
            given["admintoken"] = self.admin_token
        return f"{self.address.prefix}/api/{path}?{urlencode(given)}"

    def _send(
        self,
        method: str,
        target: str,
        body: Body | None,
        request: str,
        tries: Tries,
        wanted: Collection[int],
        take: Take | None,
    ) -> Reply:
        from urllib3 import Timeout

        if self._closed:
            raise EngineError(f"the store {self.address.url} is closed")
        headers = dict(self._headers)
        if take is None and method == "GET":
            headers["Accept-Encoding"] = "gzip"
        if body is not None:
            headers["Content-Length"] = str(memoryview(body).nbytes)
            headers["Content-Type"] = "application/octet-stream"
        elif method == "POST":
            headers["Content-Length"] = "0"
        self.requests += 1
        response = self._connections().urlopen(
            method,
            target,
            body=body,  # type: ignore[arg-type]  # http.client sends any buffer
            headers=headers,
            retries=False,
            redirect=False,
            timeout=Timeout(connect=min(self.CONNECT, tries.left), read=min(self.READ, tries.left)),
            preload_content=False,
            decode_content=take is None,
            enforce_content_length=True,
        )
        try:
            taken = take is not None and response.status in wanted
            data = take(response) if take is not None and taken else response.read()
        except BaseException:
            response.close()  # the rest of the body is still to come over it
            raise
        return Reply(response.status, response.headers, data, request)

    def _lost(self, error: Exception, tries: Tries, request: str, twice: bool) -> None:
        """Wait after a failure of the connection, or raise."""
        from urllib3.exceptions import (
            ConnectTimeoutError,
            DecodeError,
            LocationValueError,
            NewConnectionError,
            SSLError,
        )

        if isinstance(error, SSLError | LocationValueError | DecodeError):
            raise LocationError(f"{error} [{request}]") from error
        reached = not isinstance(error, NewConnectionError | ConnectTimeoutError)
        if reached and not twice:
            raise LostAnswer(f"the answer was lost: {_brief(error)} [{request}]") from error
        tries.again(_brief(error), reached=reached)

    def _connections(self) -> HTTPConnectionPool:
        found = self._pool
        if found is None:
            found = self._pool = self._new_pool()
        return found

    def _new_pool(self) -> HTTPConnectionPool:
        import ssl

        from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

        place = self.address
        # The larger pieces cost less time; a body of one voxel never meets them.
        if place.secure:
            return HTTPSConnectionPool(
                place.host, place.port, maxsize=self.connections, blocksize=PIECE,
                ssl_context=ssl.create_default_context(),
            )  # fmt: skip
        return HTTPConnectionPool(place.host, place.port, maxsize=self.connections, blocksize=PIECE)

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections that are idle; others close when they become so."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    def after_fork(self) -> None:
        """Take new connections: the parent goes on using those that were open."""
        self._pool = None


def spell(*pieces: str) -> str:
    """Return a path of pieces, each quoted."""
    return "/".join(quote(piece, safe="") for piece in pieces)


def _retry_after(reply: Reply) -> float:
    value = reply.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 0.0


def _brief(error: Exception) -> str:
    """Return an error of urllib3 without its objects' addresses."""
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_dvid(server: Server) -> dict[str, Any]:
    """Return what a server says of itself.

    Raises
    ------
    LocationError
        It is no DVID server.
    """
    try:
        found: dict[str, Any] = server.get_json("server/info")
    except (AccessError, LocationError):
        raise
    except DicedException as error:
        raise LocationError(f"{server.address.web} is no DVID server: {error}") from error
    if not any(key in found for key in ("DVID Version", "Datastore Version", "Server time")):
        raise LocationError(
            f"{server.address.web} is no DVID server: its server/info is {str(found)[:200]}"
        )
    return found
