"""Running a server: the listening socket, its processes, its end."""

from __future__ import annotations

import socket
from multiprocessing import get_context
from typing import Any

from diced.errors import InvalidError, UnsupportedError
from diced.server.app import App
from diced.server.options import Options


class Factory:
    """Makes the application in a worker process; pickled with what they have in common."""

    def __init__(self, options: Options, shared: Any = None):
        self.options = options
        self.shared = shared

    def __call__(self) -> App:
        return App(self.options, self.shared)


def run(options: Options, ready: Any = None) -> None:
    """Serve until told to stop by SIGINT or SIGTERM.

    Parameters
    ----------
    options : Options
    ready : callable, optional
        Called with the URL once the socket listens.

    Raises
    ------
    UnsupportedError
        The packages of the extra ``server`` are missing.
    InvalidError
        The address cannot be listened at.
    """
    try:
        import uvicorn
        from uvicorn.supervisors import Multiprocess
    except ImportError:
        raise UnsupportedError("serving needs uvicorn: pip install 'diced[server]'") from None
    listener = listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    shared = get_context("spawn").Array("i", [0, options.throttle]) if options.workers > 1 else None
    config = uvicorn.Config(
        Factory(options, shared), factory=True, host=host, port=port, workers=options.workers,
        lifespan="on", ws="none", access_log=False, log_level="warning", server_header=False,
        date_header=True, timeout_graceful_shutdown=30, backlog=2048,
    )  # fmt: skip
    server = uvicorn.Server(config)
    if ready is not None:
        ready(f"http://{host}:{port}")
    if options.workers > 1:
        Multiprocess(config, target=server.run, sockets=[listener]).run()
    else:
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        raise InvalidError(f"cannot listen at {host}:{port}: {error}") from None
    listener.set_inheritable(True)
    return listener
