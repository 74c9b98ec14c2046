"""The JSON that diced stores: compact, sorted, strict, UTF-8.

The json module is imported at first use: it takes 2 of the 15 ms that ``import diced`` may cost.
"""

from __future__ import annotations

from typing import Any


def dumps(value: Any) -> bytes:
    """Return a value as JSON.

    Raises
    ------
    ValueError, TypeError
        If it holds what JSON cannot: NaN, other types, text that is not valid Unicode.
    """
    import json

    text = json.dumps(
        value, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False
    )
    return text.encode()


def loads(data: bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is none."""
    import json

    return json.loads(data)
