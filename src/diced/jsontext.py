"""The JSON that diced stores: compact, sorted, strict, UTF-8.

The json module is imported at first use: it takes 2 of the 15 ms that ``import diced`` may cost.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _encoder() -> Any:
    """Return the encoder; making one takes longer than encoding a record's head."""
    import json

    return json.JSONEncoder(
        separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False
    )


def dumps(value: Any) -> bytes:
    """Return a value as JSON.

    Raises
    ------
    ValueError, TypeError
        If it holds what JSON cannot: NaN, other types, text that is not valid Unicode.
    """
    text: str = _encoder().encode(value)
    return text.encode()


def loads(data: bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is none."""
    import json

    return json.loads(data)
