"""Engines: bytes by key on some medium.  `open_engine` picks one by URL scheme.

Nothing here knows a block, a version or a store; see `diced.engine.base` for the contract.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, cast

from diced import registry
from diced.engine.appender import Appender
from diced.engine.base import Engine
from diced.errors import LocationError, NotFoundError, near_matches

__all__ = ["Appender", "Engine", "open_engine"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_engine(url: str | os.PathLike[str], **options: Any) -> Engine:
    """Open the engine that a location names.

    Parameters
    ----------
    url : str or path
        ``scheme://rest``, or a path of the local file system (``~`` is expanded).
    **options
        ``durability`` ("power" or "process"), ``readonly``, ``create``, and whatever else the
        scheme's engine takes.  Options that are None are not passed on.

    Raises
    ------
    LocationError
        If the scheme is unknown, or the location cannot be opened.
    UnsupportedError
        If the scheme's engine cannot be imported.
    """
    location = os.fsdecode(os.fspath(url))
    match = _SCHEME.match(location)
    scheme, rest = (match[1].lower(), location[match.end() :]) if match else ("file", location)
    if match and scheme == "file":
        rest = _file_path(location, rest)
    try:
        opener = registry.lookup("engine", scheme)
    except NotFoundError as error:
        near = near_matches(scheme, registry.names("engine"))
        raise LocationError(f"{location!r} has the unknown scheme {scheme!r}{near}") from error
    given = {name: value for name, value in options.items() if value is not None}
    return cast(Callable[..., Engine], opener)(rest, **given)


def _file_path(url: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise LocationError(f"{url!r} must hold an absolute path, as in file:///data/fly.diced")
    if "%" in path:
        from urllib.parse import unquote_to_bytes

        path = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    return "/" + path
