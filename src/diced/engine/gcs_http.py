"""Requests to the JSON API of Google Cloud Storage: connections, retries, errors.

`Wire` sends one request and waits, within bounds, until an answer comes that the caller can use.
It is the only layer that tries again: a retry below it could report our own write as somebody
else's.  What a request means is `diced.engine.gcs`'s affair.

The requests go over urllib3, not over google-cloud-storage, whose call costs four to five times
the processor time (docs/design.md).
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Timeout
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    SSLError,
)
from urllib3.util.ssl_ import create_urllib3_context

from diced import forks
from diced.engine.gcs_auth import REMEDY
from diced.errors import AccessError, EngineError, LocationError

Body = bytes | list[memoryview]

AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


class Reply(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the resource that the body holds, {} if it holds none."""
        try:
            found = json.loads(self.body or b"{}")
        except ValueError:
            raise EngineError(
                f"the answer is not Google Cloud Storage's JSON; is a proxy between? It begins"
                f" {self.body[:60]!r}"
            ) from None
        return found if isinstance(found, dict) else {}


class Tries:
    """How long one call goes on trying.

    Parameters
    ----------
    doing : str
        For messages: "read 'a/b'".
    unsure : str
        What is unknown when it gives up.
    patience : float, optional
        Seconds; a try that began is waited for.
    """

    PATIENCE: ClassVar[float] = 120.0
    REACH: ClassVar[float] = 30.0  # of them, for a host that takes no connections
    PAUSE: ClassVar[float] = 0.1  # doubled each time; what is waited is random below it
    LONGEST: ClassVar[float] = 8.0
    CONNECT: ClassVar[float] = 10.0
    READ: ClassVar[float] = 60.0  # without a byte

    def __init__(self, doing: str, unsure: str = "", patience: float | None = None) -> None:
        self.doing = doing
        self.failures = 0
        self._unsure = unsure
        self._patience = self.PATIENCE if patience is None else patience
        self._began = time.monotonic()
        self._quick = 0  # failures since something came through

    def renew(self) -> None:
        """Begin to count anew: part of the work is done."""
        self._began = time.monotonic()
        self._quick = 0

    def timeout(self) -> Timeout:
        """Return the limits of the next try."""
        left = max(1.0, self._began + self._patience - time.monotonic())
        return Timeout(connect=min(self.CONNECT, left), read=min(self.READ, left))

    def again(
        self, why: object, *, after: float = 0.0, at_once: bool = False, reached: bool = True
    ) -> None:
        """Wait before the next try, or raise EngineError if there is to be none.

        Parameters
        ----------
        why : object
            What went wrong, for the message.
        after : float
            Seconds that the server asked to wait.
        at_once : bool
            Do not wait after a first failure: a connection that was kept open had gone.
        reached : bool
            There was a connection.
        """
        self.failures += 1
        self._quick += 1
        if at_once and self._quick == 1:
            return
        limit = self._patience if reached else min(self._patience, self.REACH)
        pause = random.uniform(0.0, min(self.LONGEST, self.PAUSE * 2.0**self._quick))
        pause += min(after, 2 * self.LONGEST)
        spent = time.monotonic() - self._began
        if spent + pause >= limit:
            unsure = f"; {self._unsure}" if self._unsure else ""
            raise EngineError(
                f"cannot {self.doing}: given up after {self.failures} tries in {spent:.0f} s, "
                f"the last of which ended with {why}{unsure}"
            )
        time.sleep(pause)


class _Idle(queue.LifoQueue[Any]):
    """Idle connections: as many as were ever in use at once, and without a lock.

    urllib3's own queue discards what passes its size, saying so in the log each time, and has a
    lock that may be held by another thread when the process forks.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self._kept: deque[Any] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is not None:
            self._kept.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self._kept.pop()
        except IndexError:
            raise queue.Empty from None


class _Http(HTTPConnectionPool):
    QueueCls = _Idle


class _Https(HTTPSConnectionPool):
    QueueCls = _Idle


def read_all(response: BaseHTTPResponse) -> bytes:
    """Return the body; what `Wire.attempt` does with it unless told."""
    return response.read()


class Wire:
    """Connections to one endpoint, for one bucket.

    Parameters
    ----------
    endpoint : str
        ``https://host`` or ``http://host:port``.
    bucket : str
    credentials : object, optional
        Of google-auth; None asks as nobody.
    who : str
        Whose credentials they are, for messages.

    Attributes
    ----------
    base : str
        What the path of every request begins with.
    """

    def __init__(self, endpoint: str, bucket: str, credentials: Any, who: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LocationError(
                f"endpoint of Google Cloud Storage must be http://host:port or https://host; got "
                f"{endpoint!r}"
            )
        self.base = parts.path.rstrip("/")
        self._endpoint = f"{parts.scheme}://{parts.netloc}"
        self._bucket = bucket
        self._credentials = credentials
        self._who = who
        self._pool = self._new_pool()
        self._refreshing = threading.Lock()
        forks.watch(self)

    def send(
        self,
        tries: Tries,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        wanted: Collection[int] = (200,),
        take: Callable[[BaseHTTPResponse], bytes] = read_all,
    ) -> Reply:
        """Send a request until an answer has a status of `wanted`; arguments as of `attempt`."""
        while True:
            reply = self.attempt(
                tries, method, target, headers=headers, body=body, wanted=wanted, take=take
            )
            if reply is not None:
                return reply

    def attempt(
        self,
        tries: Tries,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        wanted: Collection[int] = (200,),
        take: Callable[[BaseHTTPResponse], bytes] = read_all,
    ) -> Reply | None:
        """Send a request once.

        Parameters
        ----------
        tries : Tries
        method, target : str
            The target is a path and a query.
        headers : mapping, optional
            Read anew at each try.
        body : bytes or list of memoryview, optional
            A list is sent piece by piece: a piece is what must pass within a time limit.
        wanted : collection of int
            The statuses to return.
        take : callable
            Reads the body of a 200 or 206 and returns it, or what to return in its place; an
            error of urllib3 in it is a lost answer.

        Returns
        -------
        Reply or None
            None if the request is worth another try, for which this call waited already.  It may
            have taken effect.

        Raises
        ------
        AccessError
            If the server refuses these credentials.
        LocationError
            If there is no such bucket.
        EngineError
            If the time is over, or the answer is one that no other try would change.
        """
        stale: str | None = None
        while True:
            try:
                sent = self._headers(method, target, headers, body, stale)
                response = self._pool.urlopen(
                    method,
                    target,
                    body=body,  # type: ignore[arg-type]  # a list of buffers is an iterable body
                    headers=sent,
                    retries=False,
                    redirect=False,
                    timeout=tries.timeout(),
                    preload_content=False,
                    decode_content=False,
                    enforce_content_length=True,
                )
                try:
                    good = response.status in wanted and response.status in (200, 206)
                    data = take(response) if good else response.read()
                except BaseException:
                    response.close()  # the rest of the body is still to come over it
                    raise
            except HTTPError as error:
                self._lost(tries, error)
                return None
            reply = Reply(response.status, response.headers, data)
            if reply.status == 404 and b"bucket does not exist" in data:
                raise LocationError(f"there is no bucket {self._bucket!r}: {_says(reply)}")
            if reply.status in wanted:
                return reply
            if reply.status == 401 and self._credentials is not None and stale is None:
                stale = self._credentials.token  # ended before its time
                continue
            self._refused(tries, reply)
            return None

    def close(self) -> None:
        """Close the connections that are idle; others close when they become so."""
        self._pool.close()

    def after_fork(self) -> None:
        """Take new connections: the parent goes on using those that were open."""
        self._refreshing = threading.Lock()
        self._pool = self._new_pool()

    def _refused(self, tries: Tries, reply: Reply) -> None:
        says = f"status {reply.status} ({_says(reply)})"
        if reply.status in AGAIN or (reply.status == 403 and b"ateLimitExceeded" in reply.body):
            tries.again(says, after=_retry_after(reply))
            return
        if reply.status in (401, 403):
            grant = "" if self._credentials is None else "grant them access to the bucket, or "
            raise AccessError(
                f"bucket {self._bucket!r} refused to {tries.doing}, asked with {self._who}: "
                f"{says}; {grant}{REMEDY}"
            )
        if reply.status == 404:
            raise LocationError(f"there is no bucket {self._bucket!r}: {says}")
        raise EngineError(f"cannot {tries.doing} in bucket {self._bucket!r}: {says}")

    def _lost(self, tries: Tries, error: HTTPError) -> None:
        if isinstance(error, ClosedPoolError):
            raise EngineError(f"cannot {tries.doing}: the engine is closed") from error
        causes = (error, *error.args, error.__cause__)
        if isinstance(error, SSLError) and any(
            isinstance(cause, ssl.SSLCertVerificationError) for cause in causes
        ):
            raise EngineError(f"cannot {tries.doing}: {error}") from error
        gone = any(isinstance(cause, ConnectionError) for cause in causes)
        unreached = isinstance(error, (NewConnectionError, ConnectTimeoutError, ProxyError))
        tries.again(
            repr(error), at_once=gone and isinstance(error, ProtocolError), reached=not unreached
        )

    def _headers(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None,
        body: Body | None,
        stale: str | None,
    ) -> dict[str, str]:
        sent = {"User-Agent": "diced", **(headers or {})}
        if body is not None:
            sent["Content-Length"] = str(sum(map(len, body)) if type(body) is list else len(body))
        if self._credentials is not None:
            self._authorize(method, target, sent, stale)
        return sent

    def _authorize(self, method: str, target: str, sent: dict[str, str], stale: str | None) -> None:
        """Add the access token to `sent`, fetching one if there is none but `stale`."""
        from google.auth.exceptions import GoogleAuthError, TransportError

        credentials = self._credentials
        try:
            if stale is not None or not credentials.valid:
                with self._refreshing:  # one thread fetches it, the others wait
                    if not credentials.valid or credentials.token == stale:
                        credentials.refresh(_fetch)
            credentials.before_request(_fetch, method, self._endpoint + target, sent)
        except GoogleAuthError as error:
            if isinstance(error, TransportError) or getattr(error, "retryable", False):
                raise HTTPError(f"no access token: {error}") from error
            raise AccessError(
                f"no access token for bucket {self._bucket!r} with {self._who}: {error}; {REMEDY}"
            ) from error

    def _new_pool(self) -> HTTPConnectionPool:
        secure = self._endpoint.startswith("https:")
        options: dict[str, Any] = {}
        proxy = None
        if secure:
            # One context for all connections: loading the certificates takes 10 ms.
            options["ssl_context"] = context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
            authorities, proxy = _surroundings(self._endpoint)
            try:
                context.load_verify_locations(authorities)
            except OSError as error:
                raise EngineError(
                    f"cannot read the certificate authorities {authorities!r}: {error}"
                ) from error
        manager = ProxyManager(proxy, **options) if proxy else PoolManager(**options)
        manager.pool_classes_by_scheme = {"http": _Http, "https": _Https}
        return manager.connection_from_url(self._endpoint)


def _surroundings(endpoint: str) -> tuple[str, str | None]:
    """Return the file of certificate authorities and the proxy, as requests would take them."""
    import certifi
    import requests

    with requests.Session() as session:
        found = session.merge_environment_settings(endpoint, {}, None, None, None)
    authorities = found["verify"] if isinstance(found["verify"], str) else certifi.where()
    return authorities, requests.utils.select_proxy(endpoint, found["proxies"])


def _fetch(*args: Any, **options: Any) -> Any:
    """Send a request of google-auth, once an hour: a session of its own has no lock to fork."""
    import requests
    from google.auth.transport.requests import Request

    with requests.Session() as session:
        return Request(session)(*args, **options)


def _says(reply: Reply) -> str:
    """Return what an error's body says."""
    text = reply.body[:4096].decode(errors="replace").strip()
    if text.startswith("{"):
        found = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
        text = found[1] if found else text
    reason = http.client.responses.get(reply.status, "no reason given")
    return " ".join(text.split())[:300] or reason


def _retry_after(reply: Reply) -> float:
    value = reply.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 0.0
