"""The file that makes a location a store: its format, its UUID, and the features it needs."""

from __future__ import annotations

import contextlib
import os

from diced import jsontext, keys, log
from diced.engine.base import Engine
from diced.errors import CorruptError, LocationError, NotFoundError, UnsupportedError

FORMAT = 1
FEATURES: frozenset[str] = frozenset()  # required features that this diced knows


def open_store(engine: Engine, create: bool) -> str:
    """Return a store's UUID, after making or checking ``diced.json``.

    Raises
    ------
    LocationError, CorruptError, UnsupportedError
    """
    try:
        data = engine.get(keys.STORE_FILE)
    except NotFoundError:
        data = _found(engine, create)
    try:
        fields = jsontext.loads(data)
        found, uuid, required = fields["format"], fields["store"], set(fields["required"])
    except (ValueError, KeyError, TypeError):
        raise CorruptError(f"{engine.url}: {keys.STORE_FILE} is not what diced writes") from None
    if found != FORMAT or required - FEATURES:
        raise UnsupportedError(
            f"{engine.url} has format {found} with features {sorted(required)};"
            f" this diced reads format {FORMAT} with {sorted(FEATURES)}"
        )
    return str(uuid)


def _found(engine: Engine, create: bool) -> bytes:
    """Make a store where there is none; return its file."""
    listed = engine.list("")
    first = next((key for key in listed if not key.startswith(keys.BESIDE)), None)
    if first is not None:
        with contextlib.suppress(NotFoundError):
            return engine.get(keys.STORE_FILE)  # another process made it since it was asked for
    if first is not None and first.split("/")[0] in ("r", keys.STORE_HOME):
        raise LocationError(f"{engine.url} lost its {keys.STORE_FILE}; restore it")
    if not create:
        raise LocationError(f"{engine.url} holds no diced store")
    if first is not None:
        raise LocationError(f"{engine.url} is neither a diced store nor empty")
    data = jsontext.dumps(
        {"format": FORMAT, "store": keys.new_uuid(), "required": [], "created": log.now()}
    )
    if engine.put_if_absent(keys.STORE_FILE, data, os.urandom(16)):
        return data
    return engine.get(keys.STORE_FILE)  # another process made it in this moment
