"""What a server is told at its start. Plain values, so that worker processes get them whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes
    ----------
    location : str
        Of the store.
    store : dict
        Further options of `DicedStore`.
    host, port : str, int
        Where to listen; port 0 chooses a free one.
    also : tuple of (str, int)
        Where to listen as well.
    public_name : str
        Name of the host that ``/api/server/info`` tells; empty: the one that it has.
    workers : int
        Processes.
    threads : int, optional
        Requests that one process works at, at a time.
    mode : str
        ``""``, ``readonly`` or ``fullwrite``.
    admin_token : str
        What ``?admintoken=`` must be; empty: nobody is admin by it.
    access : dict
        The ``[access]`` section of the configuration; empty: everybody may do everything.
    blocklist : str
        File of users and addresses that get no answer; see `blocklist`.
    cors : tuple of str
        Origins, or domains, that other pages may have; ``*`` is all.
    note : str
        For ``/api/server/note``.
    config_path, config_text : str
        For ``/api/server/config``, and to read rights anew.
    throttle : int
        Operations with ``throttle=on`` at a time.
    max_body : int
        Most bytes of any request or answer.
    body_seconds, request_seconds : float
        How long to wait for the next bytes of a body; for a handler.
    head_seconds, idle_seconds : float
        How long the head of a request may take to come; a connection may be silent.
    access_log : bool
    log_file : str
        Where the access log and errors go; empty: to standard error.
    timing : bool
        Send ``Timing-Allow-Origin``.
    page : bool
        Serve the page at ``/``.
    settings : dict
        Further sections of the configuration.
    """

    location: str
    store: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    also: tuple[tuple[str, int], ...] = ()
    public_name: str = ""
    workers: int = 1
    threads: int | None = None
    mode: str = ""
    admin_token: str = ""
    access: dict[str, Any] = field(default_factory=dict)
    blocklist: str = ""
    cors: tuple[str, ...] = ("*",)
    note: str = ""
    config_path: str = ""
    config_text: str = ""
    throttle: int = 1
    max_body: int = 3 * 2**30
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    head_seconds: float = 30.0
    idle_seconds: float = 75.0
    access_log: bool = False
    log_file: str = ""
    timing: bool = False
    page: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
