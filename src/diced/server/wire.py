"""Numbers and boxes as DVID's URLs and JSON write them: X first.

The one place where axes are turned round; everything behind it is ZYX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diced.errors import BadIndexError, InvalidError
from diced.grid import MAX_COORDINATE
from diced.server.call import whole

# Most bytes of voxels that one request may ask for or send: DVID's own bound.
MAX_DATA_BYTES = 3 * 2**30
MAX_BLOCK = 2**24  # voxels: 256 cubed


def flip(values: Sequence[Any]) -> tuple[Any, ...]:
    """Turn XYZ into ZYX, or back."""
    return tuple(reversed(values))


def numbers(text: str, dims: int | None, what: str) -> tuple[int, ...]:
    """Parse ``10_-20_30`` (commas do too) and leave the order as it is."""
    pieces = text.replace(",", "_").split("_")
    if dims is not None and len(pieces) != dims:
        raise InvalidError(f"{what} has {dims} numbers, joined by '_'; got {text!r:.80}")
    return tuple(whole(each, what) for each in pieces)


def point(text: str, dims: int, what: str = "offset") -> tuple[int, ...]:
    """Parse an offset ``x_y_z`` and return it ZYX."""
    found = numbers(text, dims, what)
    if not all(-MAX_COORDINATE - 1 <= each <= MAX_COORDINATE for each in found):
        raise BadIndexError(f"{what} {text!r:.80} is outside 32-bit coordinates")
    return flip(found)


def size(text: str, dims: int, what: str = "size") -> tuple[int, ...]:
    """Parse a size ``nx_ny_nz``, each at least 1, and return it ZYX."""
    found = numbers(text, dims, what)
    if not all(1 <= each <= MAX_COORDINATE for each in found):
        raise InvalidError(f"{what} {text!r:.80}: each number is from 1 to {MAX_COORDINATE}")
    return flip(found)


def check_bytes(shape: Sequence[int], itemsize: int, most: int = MAX_DATA_BYTES) -> int:
    """Return the bytes of so many voxels, or refuse if one request may not have them."""
    count = math.prod(shape) * itemsize
    if count > most:
        raise InvalidError(
            f"requested payload of {count} bytes exceeds the most, {most} bytes, of a request"
        )
    return count


def check_block(shape: Sequence[int]) -> None:
    """Refuse blocks of so many voxels that to write one of them takes gigabytes.

    Raises
    ------
    InvalidError
    """
    if math.prod(shape) > MAX_BLOCK:
        raise InvalidError(
            f"blocks of shape {tuple(shape)} (ZYX) have {math.prod(shape)} voxels, and no fewer"
            f" bytes; at most {MAX_BLOCK} voxels"
        )


def box(offset: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """Return an offset and a shape as slices; refuse what ends beyond 32-bit coordinates."""
    if any(a + n - 1 > MAX_COORDINATE for a, n in zip(offset, shape, strict=True)):
        raise BadIndexError(
            f"the box from {flip(offset)} of size {flip(shape)} (XYZ) is outside 32-bit coordinates"
        )
    return tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
