"""Running a server: the listening sockets, its processes, its end."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import connection as pipes
from multiprocessing import get_context
from typing import Any

import uvicorn

from diced import errors, registry
from diced.errors import DicedException, InvalidError, LocationError, UnsupportedError
from diced.server.app import App
from diced.server.connection import bounded
from diced.server.load import Shared
from diced.server.options import Options

LOG = logging.getLogger("diced.server")
FILES = 65536  # open files that are asked for: connections are files
GRACE_SECONDS = 30  # for requests in flight, after which they are cancelled
RESTART_SECONDS = 1.0  # between two starts of one worker
LOOK_SECONDS = 0.2

Ready = Callable[[str], None]


def run(options: Options, ready: Ready | None = None) -> None:
    """Serve until told to stop by SIGINT or SIGTERM; requests in flight are answered.

    To be called on the main thread.

    Parameters
    ----------
    options : Options
    ready : callable, optional
        Called with the URL once requests are answered.

    Raises
    ------
    InvalidError
        The address cannot be listened at.
    DicedException
        The store cannot be opened.
    """
    check(options)
    _raise_file_limit()
    listeners = _listen_all(options)
    options = replace(options, port=listeners[0].getsockname()[1])
    stop = _Stop()
    try:
        if options.workers > 1:
            _supervise(options, listeners, stop, ready)
        else:
            _work(options, Shared(options.throttle), listeners, stop, _say(ready, listeners))
    finally:
        for each in listeners:
            each.close()
        stop.restore()


def check(options: Options) -> None:
    """Raise if this cannot be served, before anything is touched.

    Raises
    ------
    InvalidError, LocationError, UnsupportedError
    """
    scheme = options.location.partition("://")[0].lower() if "://" in options.location else "file"
    if not options.location:
        raise LocationError("no store is named to be served")
    if registry.is_listed("store", scheme):
        raise UnsupportedError(f"{options.location!r} is a server's store; that server serves it")
    if scheme == "memory" and options.workers > 1:
        raise InvalidError("a store in memory belongs to one process; serve it with one worker")
    if options.mode not in ("", "readonly", "fullwrite"):
        raise InvalidError(f"the mode is readonly, fullwrite or empty; got {options.mode!r:.60}")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InvalidError(f"cannot listen at {host}:{port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        raise InvalidError(f"cannot listen at {host}:{port}: {error}") from None
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: App, told: Callable[[], None] | None = None) -> uvicorn.Server:
    """Return the server of an application, still to be run.

    Parameters
    ----------
    app : App
    told : callable, optional
        Called once requests are answered.
    """
    options = app.options
    parent = os.getppid()

    class Server(uvicorn.Server):
        """Tells when it is ready, and when it ends."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Start."""
            await super().startup(sockets)
            if told is not None and self.started:
                told()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """End; first what would go on for as long as it is listened to."""
            if app.site is not None:
                app.site.ending = True
            await super().shutdown(sockets)

    async def look() -> None:
        # A worker whose supervisor was killed would hold its port for ever.
        if options.workers > 1 and os.getppid() != parent:
            server.should_exit = True

    config = uvicorn.Config(
        app, http=bounded(options.head_seconds, options.idle_seconds, options.request_seconds),
        lifespan="on", ws="none", access_log=False, log_config=None, server_header=False,
        backlog=2048,
        timeout_keep_alive=max(1, int(options.idle_seconds)),
        timeout_graceful_shutdown=GRACE_SECONDS, callback_notify=look, timeout_notify=1,
    )  # fmt: skip
    # What clients do wrong is no news; it is said in the access log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = Server(config)
    return server


# -- one process ---------------------------------------------------------------------------


class _Stop:
    """Catches SIGINT and SIGTERM, so that a server that ends well ends with status 0."""

    def __init__(self, asked: bool = False) -> None:
        self.asked = asked
        self._old = {each: signal.signal(each, self) for each in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self, *_signal: Any) -> None:
        self.asked = True

    def restore(self) -> None:
        """Have signals do what they did."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _work(
    options: Options, shared: Shared, listeners: list[socket.socket], stop: _Stop,
    told: Callable[[], None],
) -> None:  # fmt: skip
    """Serve in this process."""
    _set_up_logs(options)
    app = App(options, shared)
    app.open()

    def started() -> None:
        told()
        if stop.asked:  # before the server caught signals itself
            server.should_exit = True

    server = make_server(app, started)
    try:
        server.run(sockets=listeners)
    finally:
        app.close()
        if app.stuck:  # the interpreter would wait for its threads; what is committed is safe
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)


def _say(ready: Ready | None, listeners: list[socket.socket]) -> Callable[[], None]:
    return lambda: None if ready is None else ready(url_of(listeners[0]))


def _listen_all(options: Options) -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        for host, port in ((options.host, options.port), *options.also):
            found.append(listen(host, port))
    except DicedException:
        for each in found:
            each.close()
        raise
    return found


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_up_logs(options: Options) -> None:
    """Send what the server logs to a file, or to standard error."""
    handler: logging.Handler
    if options.log_file:
        try:
            handler = logging.handlers.WatchedFileHandler(options.log_file, encoding="utf-8")
        except OSError as error:
            raise LocationError(f"cannot write the log {options.log_file!r}: {error}") from None
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("diced", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("diced.access").setLevel(
        logging.INFO if options.access_log else logging.WARNING
    )


# -- several processes ---------------------------------------------------------------------


class _Worker:
    """A worker process, as its supervisor sees it."""

    def __init__(self, make: Callable[[Any], Any]):
        self.pipe, theirs = pipes.Pipe(duplex=False)
        self.began = time.monotonic()
        self.ready = False
        self.process = make(theirs)
        self.process.start()
        theirs.close()

    def listen(self) -> DicedException | None:
        """Take what it says; return what kept it from starting."""
        while not self.ready and self.pipe.poll():
            try:
                name, text = self.pipe.recv()
            except EOFError:
                return None
            if name:
                kind = getattr(errors, name, DicedException)
                failure: DicedException = kind(text)
                return failure
            self.ready = True
        return None

    def end(self, deadline: float) -> None:
        """Wait for its end, and enforce it in the end."""
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _supervise(
    options: Options, listeners: list[socket.socket], stop: _Stop, ready: Ready | None
) -> None:
    """Run worker processes until told to stop; one that dies gets a successor."""
    # Forked workers start at once: everything is imported. Elsewhere than on Linux system
    # libraries do not survive a fork.
    context: Any = get_context("fork" if sys.platform == "linux" else "spawn")
    with tempfile.TemporaryDirectory(prefix="diced-serve-") as folder:
        numbers = context.RawArray("q", Shared.size(options.workers))
        shared = Shared(options.throttle, options.workers, numbers, folder)

        def make(number: int, pipe: Any) -> Any:
            args = (options, shared, number, listeners, pipe)
            return context.Process(target=_be_worker, args=args, name="diced-worker")

        workers: list[_Worker] = []
        try:
            workers += [_Worker(partial(make, each)) for each in range(options.workers)]
            while not stop.asked and not all(each.ready for each in workers):
                _look(workers, make, starting=True)
            if ready is not None and not stop.asked:
                ready(url_of(listeners[0]))
            while not stop.asked:
                _look(workers, make, starting=False)
        finally:
            for each in workers:
                if each.process.is_alive():
                    each.process.terminate()
            deadline = time.monotonic() + GRACE_SECONDS + 10
            for each in workers:
                each.end(deadline)


def _look(workers: list[_Worker], make: Callable[[int, Any], Any], starting: bool) -> None:
    """Wait a moment for news of workers."""
    news = [each.process.sentinel for each in workers]
    pipes.wait([*news, *(each.pipe for each in workers if not each.ready)], LOOK_SECONDS)
    for number, each in enumerate(workers):
        failure = each.listen()
        if failure is not None:
            if starting:
                raise failure
            LOG.error("a worker cannot start: %s", failure)
        if each.process.is_alive():
            continue
        each.process.join()
        if starting and not each.ready:
            raise DicedException(f"a worker ended with {each.process.exitcode} while it started")
        LOG.error("worker %d ended with %s", each.process.pid, each.process.exitcode)
        each.pipe.close()
        time.sleep(max(0.0, each.began + RESTART_SECONDS - time.monotonic()))
        workers[number] = _Worker(partial(make, number))


def _be_worker(
    options: Options, shared: Shared, number: int, listeners: list[socket.socket], pipe: Any
) -> None:
    """Serve in a worker process."""
    shared.worker = number
    stop = _Stop()
    try:
        _work(options, shared, listeners, stop, lambda: pipe.send(("", "")))
    except DicedException as error:
        pipe.send((type(error).__name__, str(error)))
        sys.exit(1)


# -- beside a program ----------------------------------------------------------------------


class Background:
    """A server in a thread of this process; `start_background` makes one.

    Attributes
    ----------
    url : str
        Where it answers.
    """

    def __init__(self, options: Options):
        check(options)
        if options.workers != 1:
            raise InvalidError("several workers are processes: 'diced serve --workers N'")
        self._listeners = _listen_all(options)
        self.url = url_of(self._listeners[0])
        self._app = App(replace(options, port=self._listeners[0].getsockname()[1]))
        started = threading.Event()
        self._server = make_server(self._app, started.set)
        try:
            self._app.open()
        except DicedException:
            self._close_sockets()
            raise
        self._thread = threading.Thread(
            target=self._server.run, args=(self._listeners,), name="diced-serve", daemon=True
        )
        self._thread.start()
        while not started.wait(0.05):
            if not self._thread.is_alive():
                self._close_sockets()
                raise LocationError(f"the server at {self.url} did not start")

    def close(self) -> None:
        """Answer what is under way, and end."""
        self._server.should_exit = True
        self._thread.join()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for each in self._listeners:
            each.close()

    def __repr__(self) -> str:
        return f"<server at {self.url}>"

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def start_background(location: str, **options: Any) -> Background:
    """Serve a store beside this program's own work.

    Parameters
    ----------
    location : str
    **options
        Of `Options`.

    Raises
    ------
    InvalidError, LocationError, UnsupportedError
    """
    return Background(Options(location=location, **options))
