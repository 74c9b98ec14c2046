"""Small pictures of large arrays: planes read at a step, with a bound on the blocks they touch.

Where a plane at a step would touch too many blocks, each of a few blocks stands for what is around
it. Coarser arrays named ``NAME_1``, ``NAME_2``, ... with larger voxels are read where they do.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from diced.errors import InvalidError
from diced.repo import DicedRepo
from diced.server import scales
from diced.server.answer import Answer, Refused

MAX_BLOCKS = 1024  # that one picture may decode: a fifth of a second
THUMBNAIL_BLOCKS = 400
MAX_SIDE = 512  # pixels
MAX_STEP = 2**24
MAX_KEPT = 512  # thumbnails


class Level:
    """One resolution of an array.

    Attributes
    ----------
    array : DicedArray
    factor : tuple of int
        Voxels of the finest level per voxel of this one, ZYX.
    """

    def __init__(self, array: Any, factor: tuple[int, ...]):
        self.array = array
        self.factor = factor


def levels(repo: DicedRepo, array: Any) -> list[Level]:
    """Return the resolutions of an array, itself first.

    A coarser one is named like it with ``_1``, ``_2``, ... behind, holds the same kind of voxels,
    and says of its voxels that they are whole multiples as large.
    """
    found = [Level(array, (1,) * array.numdims)]
    fine = array.voxel_size
    while True:
        name = f"{array.name}_{len(found)}"
        if name not in repo:
            return found
        coarse = repo.get_array(name)
        if getattr(coarse, "dtype", None) != array.dtype or coarse.numdims != array.numdims:
            return found
        ratios = [b / a if a > 0 else 0 for a, b in zip(fine, coarse.voxel_size, strict=True)]
        factor = tuple(round(each) for each in ratios)
        whole = all(abs(a - b) < 1e-3 * a for a, b in zip(ratios, factor, strict=True) if a)
        if not whole or min(factor) < 1 or factor <= found[-1].factor:
            return found
        found.append(Level(coarse, factor))


def sample(
    found: Sequence[Level], lo: Sequence[int], step: Sequence[int], shape: Sequence[int],
    blocks: int = MAX_BLOCKS,
) -> np.ndarray:  # fmt: skip
    """Read every so many-th voxel of a box, or something like it.

    Parameters
    ----------
    found : sequence of Level
        As `levels` gives them.
    lo, step, shape : sequence of int
        First voxel, distance between voxels, and their number, of the finest level, ZYX.
    blocks : int
        Most blocks to decode; beyond, only a few blocks are read and each stands for its
        neighbourhood.

    Returns
    -------
    numpy.ndarray
        Of the shape, with the array's dtype, channels last.
    """
    best = found[0]
    for level in found[1:]:
        axes = zip(level.factor, step, shape, strict=True)
        if all(n == 1 or s % f == 0 for f, s, n in axes):
            best = level
    if best is not found[0]:
        try:
            return _sample(scales.bounded(best.array), best.factor, lo, step, shape, blocks)
        except scales.CostlyError:
            pass  # of the array itself a few blocks stand for all
    return _sample(found[0].array, found[0].factor, lo, step, shape, blocks)


def _sample(
    array: Any, factor: Sequence[int], lo: Sequence[int], step: Sequence[int],
    shape: Sequence[int], blocks: int,
) -> np.ndarray:  # fmt: skip
    """Read of one resolution."""
    lo = [a // f for a, f in zip(lo, factor, strict=True)]
    step = [max(1, s // f) for s, f in zip(step, factor, strict=True)]
    sizes = array.block_shape
    touched = [
        n if s >= b else -(-n * s // b) + (n > 1)
        for n, s, b in zip(shape, step, sizes, strict=True)
    ]
    if math.prod(touched) <= blocks:
        return np.asarray(array[_stepped(lo, step, shape)])
    return _patches(array, lo, step, shape, blocks)


def _stepped(
    lo: Sequence[int], step: Sequence[int], shape: Sequence[int]
) -> tuple[slice, ...]:  # fmt: skip
    return tuple(slice(a, a + (n - 1) * s + 1, s) for a, s, n in zip(lo, step, shape, strict=True))


def _patches(
    array: Any, lo: Sequence[int], step: Sequence[int], shape: Sequence[int], blocks: int
) -> np.ndarray:
    """Read one block of each neighbourhood."""
    wide = sum(n > 1 for n in shape)
    side = max(1, int(blocks ** (1 / max(1, wide))))
    sizes = array.block_shape
    group = [max(1, -(-n // side)) for n in shape]
    tail = () if array.channels is None else (array.channels,)
    out = np.empty((*shape, *tail), array.dtype)
    for place in np.ndindex(*(-(-n // g) for n, g in zip(shape, group, strict=True))):
        first = [k * g for k, g in zip(place, group, strict=True)]
        count = [min(g, n - a) for g, n, a in zip(group, shape, first, strict=True)]
        start, stride = [], []
        for axis, a in enumerate(first):
            s, b, g = step[axis], sizes[axis], group[axis]
            middle = lo[axis] + (a + g // 2) * s
            start.append(middle // b * b if g > 1 else lo[axis] + a * s)
            stride.append(max(1, min(s, b // g)) if g > 1 else 1)
        window = tuple(slice(a, a + n) for a, n in zip(first, count, strict=True))
        out[window] = array[_stepped(start, stride, count)]
    return out


# -- pictures ------------------------------------------------------------------------------


def colours(labels: np.ndarray) -> np.ndarray:
    """Return colours of labels, the same as on the page.

    Parameters
    ----------
    labels : numpy.ndarray
        Of any shape.

    Returns
    -------
    numpy.ndarray
        uint8, with three channels more; label 0 is black.
    """
    wide = labels.astype(np.uint64)
    low, high = wide.astype(np.uint32), (wide >> np.uint64(32)).astype(np.uint32)
    h = low + high * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x9E3779B1)
    h ^= h >> np.uint32(15)
    hue = (h % np.uint32(1536)).astype(np.int32)
    white, dark = ((h >> np.uint32(11)) & 127).astype(np.int32), (h >> np.uint32(18)) & 63
    out = np.empty((*labels.shape, 3), np.uint8)
    for channel in range(3):
        # Full for a third of the circle, none for a third, sloping between.
        turned = (hue + 512 * (2 - channel) + 512) % 1536
        pure = np.clip(512 - np.abs(turned - 768), 0, 255)
        pale = pure + ((255 - pure) * white >> 8)
        out[..., channel] = pale * (256 - dark.astype(np.int32)) >> 8
    out[labels == 0] = 0
    return out


def picture(array: Any, values: np.ndarray) -> np.ndarray:
    """Return a plane of an array as grey, RGB or RGBA of 8 bits."""
    if array.kind == "label" or (array.dtype.kind == "u" and array.dtype.itemsize == 8):
        return colours(values)
    if array.channels is not None:
        if array.channels >= 3 and array.dtype == np.uint8:
            return np.ascontiguousarray(values[..., : min(4, array.channels)])
        values = values[..., 0]
    if values.dtype == np.uint8:
        return values
    plain = values.astype(np.float64)
    plain[~np.isfinite(plain)] = 0
    low, high = np.percentile(plain, (1, 99))
    if high <= low:
        low, high = float(plain.min()), float(plain.max()) or 1.0
    scaled = (plain - low) * (255.0 / max(high - low, 1e-300))
    shown: np.ndarray = np.clip(scaled, 0, 255).astype(np.uint8)
    return shown


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels of 8 bits, (rows, columns[, 3 or 4]), as PNG."""
    kind = 0 if pixels.ndim == 2 else {1: 0, 3: 2, 4: 6}[pixels.shape[2]]
    rows, columns = pixels.shape[:2]
    lines = np.zeros((rows, 1 + pixels[0].size), np.uint8)
    lines[:, 1:] = pixels.reshape(rows, -1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.data, 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


class Thumbnails:
    """Makes thumbnails, and keeps the last ones."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def answer(self, repo: DicedRepo, array: Any, side: int, seen: str) -> Answer:
        """Return the middle plane of an array as a PNG of at most `side` pixels a side.

        Parameters
        ----------
        repo : DicedRepo
            At the version.
        array : DicedArray
        side : int
        seen : str
            ETags that the client has.

        Raises
        ------
        Refused
            404: there is nothing to see.
        InvalidError
        """
        if not 16 <= side <= MAX_SIDE:
            raise InvalidError(f"a thumbnail has 16 to {MAX_SIDE} pixels a side; got {side}")
        if getattr(array, "numdims", 0) < 2:
            raise Refused(404, f"{array.name!r} has no planes\n")
        blocks = array._blocks()
        state = blocks.lane.refresh()
        if state.box is None:
            raise Refused(404, f"nothing was written to {array.name!r} yet\n")
        node = repo._node_id if array.versioned else ""
        tag = f'"{array._spec.id[:16]}-{node[:16]}-{state.number}-{side}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if tag in seen:
            return Answer(b"", "image/png", 304, headers)
        found = self._kept.get(tag)
        if found is None:
            found = self._make(repo, array, state.box, side)
            with self._lock:
                while len(self._kept) >= MAX_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[tag] = found
        return Answer(found, "image/png", headers=headers)

    def _make(self, repo: DicedRepo, array: Any, box: Any, side: int) -> bytes:
        lo, hi = box
        sizes = [b - a for a, b in zip(lo, hi, strict=True)]
        step = max(1, -(-max(sizes[-2:]) // side))
        steps = [1] * (array.numdims - 2) + [step, step]
        shape = [1] * (array.numdims - 2) + [-(-n // step) for n in sizes[-2:]]
        first = [a + n // 2 for a, n in zip(lo, sizes, strict=True)][:-2] + list(lo[-2:])
        plane = sample(levels(repo, array), first, steps, shape, THUMBNAIL_BLOCKS)
        flat = plane.reshape(plane.shape[array.numdims - 2 :])
        return png(picture(array, flat))
