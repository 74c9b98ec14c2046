"""What a probe found out about a location, kept there as small JSON objects.

They say what the medium does, not what a store holds, so they may be there before any store is.
"""

from __future__ import annotations

from typing import Any

from diced import jsontext
from diced.engine.base import Engine
from diced.errors import NotFoundError

PREFIX = "probes"
FORMAT = "diced-probe-1"


def save(engine: Engine, found: dict[str, Any]) -> str:
    """Keep what was found, marked with `FORMAT`; drop what was found earlier; return the key."""
    older = list(engine.list(PREFIX))
    found["format"] = FORMAT
    key = engine.put_unique(PREFIX, [jsontext.dumps(found)], ".json")
    for each in older:
        engine.delete(each)
    return key


def newest(engine: Engine) -> dict[str, Any] | None:
    """Return what the last probe found, or None; what cannot be read is passed over."""
    best: dict[str, Any] | None = None
    for key in engine.list(PREFIX):
        try:
            found = jsontext.loads(engine.get(key))
        except (ValueError, NotFoundError):
            continue  # not written by a probe, or replaced in this moment
        if isinstance(found, dict) and found.get("format") == FORMAT:
            best = max(best or found, found, key=lambda each: str(each.get("time")))
    return best
