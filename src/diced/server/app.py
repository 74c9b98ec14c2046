"""The ASGI application: how requests become calls, and answers become bytes.

Storage and kernels run on worker threads; the event loop moves bytes. Only light requests to a
local disk or memory, which cost less than handing them over, run beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, quote

from diced import actor
from diced.errors import DicedException, InvalidError
from diced.server import body as bodies
from diced.server import pages
from diced.server.access import is_welcome
from diced.server.answer import HTML, JSON, TEXT, Answer, Buffer, Refused, as_answer, status_of
from diced.server.call import Call
from diced.server.load import Shared
from diced.server.options import Options
from diced.server.routes import BODY_BYTES, Route
from diced.server.site import Site

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOG = logging.getLogger("diced.server")
ACCESS_LOG = logging.getLogger("diced.access")

ZIPPED = frozenset((JSON, TEXT, HTML, "text/css", "text/javascript"))
SLOW_THREADS = 4
ZIP_BYTES = 1024  # shorter answers are not worth it
# How much larger than its gzip a body may be that has no length of its own: JSON shrinks to a
# tenth, but nothing except a bomb to a hundredth.
GZIP_FACTOR = 32
PREFLIGHT_SECONDS = "86400"
MAX_QUERY = 256  # parameters
END_SECONDS = 5.0  # for what is worked at when nobody waits for it any more
BESIDE = frozenset(("/interface", "/interface/version"))  # of DVID's API, and not below /api/
ERROR = "diced-error"


class App:
    """The application of one server process.

    Parameters
    ----------
    options : Options
    shared : optional
        What the worker processes of one server have in common; by default it is the only one.
    """

    def __init__(self, options: Options, shared: Shared | None = None):
        self.options = options
        self._shared = shared or Shared(options.throttle)
        self.site: Site = None  # type: ignore[assignment]
        self._closed = False
        self.stuck = False  # closed, and yet something goes on
        self._pages: Any = None
        self._threads: ThreadPoolExecutor = None  # type: ignore[assignment]
        # Commands over whole volumes, which must not keep all others waiting.
        self._slow = ThreadPoolExecutor(SLOW_THREADS, "diced-slow")

    # -- life ------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the store."""
        if self.site is None:
            self.site = Site(self.options, self._shared)
            # Where threads wait for a network there is work for many of them.
            few = max(4, 2 * (os.cpu_count() or 2))
            count = self.options.threads or (32 if self.site.store.engine.remote else few)
            self._threads = ThreadPoolExecutor(count, "diced-http")
            if self.options.page:
                self._pages = pages.build(self.site)

    def close(self) -> None:
        """Close the store, once what is being worked at is done."""
        if self.site is not None and not self._closed:
            self._closed = True
            pools = (self._threads, self._slow)
            for each in pools:
                each.shutdown(wait=False, cancel_futures=True)
            rest = [threading.Thread(target=each.shutdown, daemon=True) for each in pools]
            for thread in rest:
                thread.start()
            deadline = time.monotonic() + END_SECONDS
            for thread in rest:
                thread.join(max(0.0, deadline - time.monotonic()))
            self.stuck = any(thread.is_alive() for thread in rest)
            if self.stuck:
                LOG.error("a request is still worked at; it is given up")
            else:
                self.site.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self.open()
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.open()
        except DicedException as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    # -- one request -----------------------------------------------------------------------

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if method == "OPTIONS":
            await self._send(send, Answer(b"", TEXT, headers=_preflight(headers)), headers)
            return
        if not path.startswith("/api/") and path.rstrip("/") not in BESIDE:
            if self._pages is not None:
                await self._pages(scope, receive, send)
            else:
                nothing = Answer(f"nothing is at {_shown(path)}\n".encode(), TEXT, 404)
                await self._send(send, nothing, headers, method == "HEAD")
            return
        began = time.monotonic()
        load = self.site.load
        load.begin()
        got = sent = 0
        user = ""
        answer: Answer | None = None
        try:
            _check_path(path, scope)
            client = scope.get("client")
            call = Call(
                self.site, method, path, _query(scope["query_string"]), headers,
                client[0] if client else "",
            )  # fmt: skip
            with contextlib.ExitStack() as stack:
                answer = await self._answer(call, receive, stack)
                user, got = call.user, len(call.body)
                if user and call.query.get("interactive", "").lower() not in ("false", "0"):
                    load.answered(user, 1000 * (time.monotonic() - began))
                sent = await self._send(send, answer, headers, method == "HEAD", receive)
        except bodies.Gone:
            return
        except Exception as error:  # the last to hear of anything: it must become an answer
            if answer is not None:  # of which a part is sent: breaking off is all that is left
                self._refusal(path, error)
                return
            answer = self._refusal(path, error)
            sent = await self._send(send, answer, headers, method == "HEAD")
        finally:
            load.end()
        load.add(method, got, sent)
        if self.options.access_log:
            ACCESS_LOG.info(
                '%s %s "%s %s" %d %d %.1fms', (scope.get("client") or ("-",))[0],
                _shown(user) or "-", _shown(method), _shown(path), answer.status, sent,
                1000 * (time.monotonic() - began),
            )  # fmt: skip

    async def _answer(self, call: Call, receive: Receive, stack: contextlib.ExitStack) -> Answer:
        site = self.site
        sends = (
            call.headers.get("content-length", "0") != "0" or "transfer-encoding" in call.headers
        )
        if not sends and not site.inline:
            return await self._both(call)
        route = site.prepare(call) if site.inline else await self._hop(site.prepare, call)
        if sends:
            zipped = bodies.encoding(call.headers)
            limit = route.limit
            most = limit if isinstance(limit, int) else await self._hop(limit, call)
            most = min(most, self.options.max_body)
            # What does not compress is larger as gzip.
            sent = most + most // 256 + 4096 if zipped else most
            spool = await bodies.read(receive, call.headers, sent, self.options.body_seconds)
            stack.callback(spool.close)
            if zipped:
                whole = spool.buffer()
                if isinstance(limit, int):  # not what this very request needs
                    most = min(most, BODY_BYTES + GZIP_FACTOR * len(whole))
                pieces = (whole[at : at + 2**20] for at in range(0, len(whole), 2**20))
                spool = await self._hop(bodies.unzip, pieces, most)
                stack.callback(spool.close)
            call.body = spool.buffer()
        if route.light and site.inline and len(call.body) <= 2**16:
            return self._run(call, route)
        found: Answer = await self._hop(self._run, call, route, slow=route.slow)
        return found

    async def _both(self, call: Call) -> Answer:
        """Prepare and run with one change of threads."""
        found: Answer = await self._hop(lambda: self._run(call, self.site.prepare(call)))
        return found

    def _run(self, call: Call, route: Route) -> Answer:
        """Run a handler, on whatever thread."""
        with contextlib.ExitStack() as stack:
            if route.throttled and call.flag("throttle"):
                stack.enter_context(self.site.throttle.slot())
            with actor.acting(call.user):
                answer = as_answer(route.run(call))
            if not isinstance(answer.body, Buffer):
                answer.body = _Pieces(answer.body, stack.pop_all())
        _zip(answer, call.headers)
        return answer

    async def _hop(self, function: Callable[..., Any], *args: Any, slow: bool = False) -> Any:
        """Run a function on a worker thread; what is slow may take as long as it takes."""
        threads = self._slow if slow else self._threads
        future = asyncio.get_running_loop().run_in_executor(threads, function, *args)
        if slow:
            return await future
        seconds = self.options.request_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                return await future
        except TimeoutError:
            if not limit.expired():
                raise  # the function's own
            raise Refused(
                503, f"not done in {seconds:g} seconds\n", {"Retry-After": "10"}
            ) from None

    def _refusal(self, path: str, error: Exception) -> Answer:
        """Return an error as an answer."""
        if isinstance(error, Refused):
            return Answer(str(error).encode(), TEXT, error.status, error.headers)
        if isinstance(error, MemoryError):
            return Answer(f"not enough memory for this ({path}).\n".encode(), TEXT, 503)
        if isinstance(error, DicedException):
            status = status_of(error)
            if status >= 500:
                LOG.error("%s: %s", _shown(path), error)
            text = " ".join(str(error).split())
            told = {ERROR: type(error).__name__}  # which of its errors, for diced's own client
            return Answer(f"{text} ({path}).\n".encode("utf-8", "replace"), TEXT, status, told)
        LOG.error("%s: %s", _shown(path), "".join(traceback.format_exception(error)))
        return Answer(f"internal error: {type(error).__name__} ({path}).\n".encode(), TEXT, 500)

    # -- bytes out -------------------------------------------------------------------------

    async def _send(
        self, send: Send, answer: Answer, asked: dict[str, str], bare: bool = False,
        receive: Receive | None = None,
    ) -> int:  # fmt: skip
        """Send an answer; return the bytes of its body that went out."""
        headers = {
            "content-type": answer.type, "x-content-type-options": "nosniff", **answer.headers,
        }  # fmt: skip
        also = headers.get("vary")
        headers.update(self._cross_origin(asked))
        if also and headers["vary"] != also:
            headers["vary"] = f"{also}, {headers['vary']}"
        body = answer.body
        length = len(memoryview(body).cast("B")) if isinstance(body, Buffer) else answer.length
        if length is not None:
            headers["content-length"] = str(length)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
               for name, value in headers.items()]  # fmt: skip
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if not isinstance(body, _Pieces):
            await send({"type": "http.response.body", "body": b"" if bare else body})
            return 0 if bare else length or 0
        # All of the request was read, so this can only tell that the client went away.
        gone = None if receive is None else asyncio.ensure_future(_departure(receive))
        try:
            total = 0 if bare else await self._stream(send, body, gone)
        finally:
            if gone is not None:
                gone.cancel()
            try:  # on a worker thread: to close may be to wait for what is under way
                asyncio.get_running_loop().run_in_executor(self._threads, body.close)
            except RuntimeError:  # there are none any more
                body.close()
        await send({"type": "http.response.body", "body": b""})
        return total

    async def _stream(
        self, send: Send, pieces: Iterator[Buffer], gone: asyncio.Future[None] | None
    ) -> int:  # fmt: skip
        """Send pieces, each made while the one before is sent; return their bytes."""
        total = 0
        coming = asyncio.ensure_future(self._hop(next, pieces, None))
        try:
            while (piece := await coming) is not None:
                if gone is not None and gone.done():
                    raise bodies.Gone
                coming = asyncio.ensure_future(self._hop(next, pieces, None))
                total += len(memoryview(piece).cast("B"))
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                try:
                    # A client that takes nothing is not waited for without end.
                    async with asyncio.timeout(self.options.request_seconds):
                        await send(message)
                except TimeoutError:
                    raise bodies.Gone from None
        finally:
            if not coming.cancel() and not coming.cancelled():
                coming.exception()  # seen: nobody is told of what nobody waits for
        return total

    def _cross_origin(self, asked: dict[str, str]) -> dict[str, str]:
        cors = self.options.cors
        headers = {"timing-allow-origin": "*"} if self.options.timing else {}
        origin = asked.get("origin")
        if "*" in cors:
            headers["access-control-allow-origin"] = "*"
        elif origin is not None and is_welcome(origin, cors):
            headers["access-control-allow-origin"] = origin
            headers["vary"] = "Origin"
        if origin is not None and headers.get("access-control-allow-origin"):
            headers["access-control-expose-headers"] = (
                "Content-Range, Content-Encoding, Content-Length"
            )
        return headers


async def _departure(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Pieces(Iterator[Buffer]):
    """The pieces of an answer, made one at a time on whatever thread.

    The first is made at once: what is wrong with it can still be told. What is held is let go
    after the last, or when this is closed.
    """

    def __init__(self, pieces: Iterator[Buffer], held: contextlib.ExitStack):
        self._turn = threading.Lock()
        self._pieces = self._all(pieces, held)
        self._first = next(self._pieces, None)

    @staticmethod
    def _all(
        pieces: Iterator[Buffer], held: contextlib.ExitStack
    ) -> Generator[Buffer, None, None]:  # fmt: skip
        with held:
            yield from pieces

    def __next__(self) -> Buffer:
        with self._turn:
            piece, self._first = self._first, None
            return next(self._pieces) if piece is None else piece

    def close(self) -> None:
        """Make no more of them, once the one that is being made is done."""
        with self._turn:
            self._first = None
            self._pieces.close()


def _check_path(path: str, scope: Message) -> None:
    """Refuse a path that is not UTF-8: all of its kind would mean the same."""
    if "\ufffd" in path and b"%EF%BF%BD" not in scope.get("raw_path", b"").upper():
        raise InvalidError("the path is not UTF-8")


def _shown(text: str) -> str:
    """Return text as it stands in a log: on one line, whatever is in it."""
    return quote(text, safe="/:~,;=@!$&'()*+[]| ", errors="replace")


def _preflight(asked: dict[str, str]) -> dict[str, str]:
    wanted = asked.get("access-control-request-headers", "Authorization, Range, Content-Type")
    return {
        "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
        "access-control-allow-headers": wanted,
        "access-control-max-age": PREFLIGHT_SECONDS,
    }


def _query(text: bytes) -> dict[str, str]:
    """Return query parameters; of one given twice the last counts."""
    if not text:
        return {}
    try:
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_QUERY)
    except (UnicodeDecodeError, ValueError):
        raise InvalidError(f"the query is not ASCII, or has more than {MAX_QUERY} fields") from None
    return dict(pairs)


def _takes_gzip(accepted: str) -> bool:
    for each in accepted.lower().split(","):
        name, _, quality = each.replace(" ", "").partition(";q=")
        if name in ("gzip", "x-gzip"):
            return not quality or quality.strip("0.") != ""
    return False


def _zip(answer: Answer, asked: Any) -> None:
    """Compress an answer that is text, where the client takes that."""
    body = answer.body
    if (
        answer.type in ZIPPED
        and answer.status == 200
        and isinstance(body, Buffer)
        and len(body) >= ZIP_BYTES
        and _takes_gzip(asked.get("accept-encoding", ""))
        and "content-encoding" not in answer.headers
    ):
        answer.body = gzip.compress(body, 1)
        answer.headers["content-encoding"] = "gzip"
        answer.headers["vary"] = "Accept-Encoding"
