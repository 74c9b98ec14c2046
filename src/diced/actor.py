"""On whose behalf a thread works: what commits record as their user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

_user: ContextVar[str] = ContextVar("diced user", default="")


def current(default: str) -> str:
    """Return the user that this thread acts for, or `default`."""
    return _user.get() or default


@contextlib.contextmanager
def acting(user: str) -> Iterator[None]:
    """Have what this thread commits inside the block record `user`; empty changes nothing."""
    token = _user.set(user or _user.get())
    try:
        yield
    finally:
        _user.reset(token)


def login_name() -> str:
    """Return the login name from the user database; only the command line reads environments."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
