"""Arithmetic between boxes of voxels and the blocks of a grid. Pure: no I/O, no arrays kept.

Coordinates are signed and in array axis order (ZYX for volumes). A box is half-open: ``lo <= v <
hi`` on each axis. A block's key is its biased coordinates Morton-interleaved, big-endian, so that
the order of keys is the order of place.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diced import _blocks
from diced.errors import BadIndexError, InvalidError

MIN_COORDINATE = -(2**31)
MAX_COORDINATE = 2**31 - 1
MAX_DIMS = 8

# A table of this many blocks is a few megabytes; larger boxes are walked in pieces.
BLOCKS_PER_PIECE = 32768

Box = tuple[tuple[int, ...], tuple[int, ...]]


class Cut:
    """The blocks that a box meets, in key order: one row per block.

    Attributes
    ----------
    keys : list of bytes
    coords : int64 array (blocks, dims), block coordinates
    begin, count : int64 arrays, the part of each block inside the box
    out : int64 array, where that part starts inside the box
    whole : bool array, true where the box covers the block
    """

    __slots__ = ("begin", "coords", "count", "keys", "out", "whole")

    def __init__(self, lo: Sequence[int], hi: Sequence[int], block_shape: Sequence[int]):
        coords, begin, count, out, whole = (
            np.asarray(each) for each in _blocks.partition(list(lo), list(hi), list(block_shape))
        )
        keys = block_keys(coords)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in order]
        self.coords = coords[order]
        self.begin = begin[order]
        self.count = count[order]
        self.out = out[order]
        self.whole = whole[order].astype(bool)

    def __len__(self) -> int:
        return len(self.keys)


def block_keys(coords: np.ndarray) -> list[bytes]:
    """Return the key of each row of an int64 array (blocks, dims) of block coordinates."""
    if not len(coords):
        return []
    table = np.asarray(_blocks.morton(np.ascontiguousarray(coords, dtype=np.int64)))
    width = table.shape[1]
    data = table.tobytes()
    return [data[i : i + width] for i in range(0, len(data), width)]


def block_coords(keys: Sequence[bytes], dims: int) -> np.ndarray:
    """Return the int64 block coordinates (blocks, dims) of grid keys."""
    if not keys:
        return np.empty((0, dims), np.int64)
    table = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 4 * dims)
    return np.asarray(_blocks.unmorton(table, dims))


def pieces(
    lo: Sequence[int], hi: Sequence[int], block_shape: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield boxes that tile `lo`..`hi`, cut at block borders, of a bounded number of blocks."""
    spans = [(b - 1) // n - a // n + 1 for a, b, n in zip(lo, hi, block_shape, strict=True)]
    total = 1
    for span in spans:
        total *= span
    if total <= BLOCKS_PER_PIECE:
        yield tuple(lo), tuple(hi)
        return
    axis = max(range(len(spans)), key=spans.__getitem__)
    block = block_shape[axis]
    middle = (lo[axis] // block + spans[axis] // 2) * block
    yield from pieces(lo, [*hi[:axis], middle, *hi[axis + 1 :]], block_shape)
    yield from pieces([*lo[:axis], middle, *lo[axis + 1 :]], hi, block_shape)


def align(lo: Sequence[int], hi: Sequence[int], block_shape: Sequence[int]) -> Box:
    """Return the smallest block-aligned box around `lo`..`hi`."""
    return (
        tuple(a // n * n for a, n in zip(lo, block_shape, strict=True)),
        tuple(-(-b // n) * n for b, n in zip(hi, block_shape, strict=True)),
    )


def union(a: Box | None, b: Box | None) -> Box | None:
    """Return the smallest box around both; None is the empty box."""
    if a is None or b is None:
        return a or b
    return (
        tuple(min(p, q) for p, q in zip(a[0], b[0], strict=True)),
        tuple(max(p, q) for p, q in zip(a[1], b[1], strict=True)),
    )


class Selection:
    """A numpy index resolved against an array's extents.

    Attributes
    ----------
    lo, hi : tuple of int
        The box of voxels touched; equal on an axis where the selection is empty.
    step : tuple of int
        Positive step of each axis inside that box.
    flip : tuple of bool
        Axes to reverse (negative steps).
    squeeze : tuple of int
        Axes indexed by an integer, absent from the result.
    shape : tuple of int
        Shape before squeezing.
    channel : slice or int
        Index into the channel axis (``slice(None)`` when the array has none).
    """

    __slots__ = ("channel", "flip", "hi", "lo", "shape", "squeeze", "step")

    def __init__(self, index: Any, extents: Box, name: str, channels: int | None):
        dims = len(extents[0])
        self.channel, items = _split(index, dims, name, channels)
        lo, hi, step, flip, squeeze, shape = [], [], [], [], [], []
        for axis, item in enumerate(items):
            if isinstance(item, slice):
                first, last, stride, reverse, size = _slice(
                    item, extents[0][axis], extents[1][axis], axis, name
                )
            else:
                first = _coordinate(item, axis, name)
                last, stride, reverse, size = first + 1, 1, False, 1
                squeeze.append(axis)
            lo.append(first)
            hi.append(last)
            step.append(stride)
            flip.append(reverse)
            shape.append(size)
        self.lo, self.hi, self.step = tuple(lo), tuple(hi), tuple(step)
        self.flip, self.squeeze, self.shape = tuple(flip), tuple(squeeze), tuple(shape)

    @property
    def empty(self) -> bool:
        """True when no voxel is selected."""
        return 0 in self.shape


def _split(index: Any, dims: int, name: str, channels: int | None) -> tuple[slice | int, list[Any]]:
    """Expand Ellipsis; separate the channel index from the `dims` spatial ones."""
    items = list(index) if isinstance(index, tuple) else [index]
    total = dims + (channels is not None)
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise BadIndexError(f"array {name!r}: an index can hold one Ellipsis; got {len(dots)}")
    given = len(items) - len(dots)
    if dots:
        if given > total:
            raise BadIndexError(f"array {name!r} takes at most {total} indices; got {given}")
        items[dots[0] : dots[0] + 1] = [slice(None)] * (total - given)
    elif channels is not None and given == dims:
        items.append(slice(None))
    elif given != total:
        raise BadIndexError(f"array {name!r} has {total} dimensions; got {given} indices")
    if channels is None:
        return slice(None), items
    channel = items.pop()
    if isinstance(channel, slice):
        return channel, items
    number = _coordinate(channel, dims, name)
    if not 0 <= number < channels:
        raise BadIndexError(f"array {name!r} has {channels} channels; got channel {number}")
    return number, items


def _coordinate(item: Any, axis: int, name: str) -> int:
    if isinstance(item, (bool, np.bool_)):
        raise BadIndexError(
            f"array {name!r}, axis {axis}: an index is an integer or a slice; got {item!r}"
        )
    try:
        value = operator.index(item)
    except TypeError:
        raise BadIndexError(
            f"array {name!r}, axis {axis}: an index is an integer, a slice or Ellipsis;"
            f" got {type(item).__name__}"
        ) from None
    if not MIN_COORDINATE <= value <= MAX_COORDINATE:
        raise BadIndexError(
            f"array {name!r}, axis {axis}: coordinates are signed 32-bit; got {value}"
        )
    return value


def _slice(
    item: slice, low: int, high: int, axis: int, name: str
) -> tuple[int, int, int, bool, int]:
    """Return first, last + 1, positive step, reversed?, count. Negative bounds are coordinates."""
    stride = 1 if item.step is None else _coordinate(item.step, axis, name)
    if stride == 0:
        raise BadIndexError(f"array {name!r}, axis {axis}: the step of a slice cannot be 0")

    def bound(value: Any, default: int) -> int:
        if value is None:
            return default
        try:
            number = operator.index(value)
        except TypeError:
            raise BadIndexError(
                f"array {name!r}, axis {axis}: slice bounds are integers;"
                f" got {type(value).__name__}"
            ) from None
        # The stop of a slice lies one beyond its last coordinate, in either direction.
        if not MIN_COORDINATE - 1 <= number <= MAX_COORDINATE + 1:
            raise BadIndexError(
                f"array {name!r}, axis {axis}: coordinates are signed 32-bit; got {number}"
            )
        return number

    def checked(first: int, last: int) -> tuple[int, int]:
        if first < MIN_COORDINATE or last > MAX_COORDINATE + 1:
            raise BadIndexError(
                f"array {name!r}, axis {axis}: coordinates are signed 32-bit;"
                f" got {first} to {last - 1}"
            )
        return first, last

    if stride > 0:
        start, stop = bound(item.start, low), bound(item.stop, high)
        size = max(0, -(-(stop - start) // stride))
        first = start
    else:
        start, stop = bound(item.start, high - 1), bound(item.stop, low - 1)
        size = max(0, -(-(start - stop) // -stride))
        first = start + (size - 1) * stride
    if not size:
        return start, start, abs(stride), stride < 0, 0
    first, last = checked(first, first + (size - 1) * abs(stride) + 1)
    return first, last, abs(stride), stride < 0, size


def runs(lo: int, size: int, step: int, block: int, span: int) -> Iterator[tuple[int, int]]:
    """Split every `step`-th coordinate from `lo` into runs (index of the first, how many).

    A run's coordinates lie in neighbouring blocks and within `span`, or in one block. With steps
    beyond a block each is alone, so that no block between them is touched.
    """
    index = 0
    while index < size:
        first = lo + index * step
        if step > block:
            count = 1
        else:
            # Ends at a block's border, so that no block is decoded for two runs.
            end = max(first // block * block + block, (first + span) // block * block)
            count = min(size - index, -(-(end - first) // step))
        yield index, count
        index += count


def check_block_shape(block_shape: Any, dims: int) -> tuple[int, ...]:
    """Return `block_shape` as a tuple, or raise InvalidError."""
    try:
        shape = tuple(operator.index(each) for each in block_shape)
    except TypeError:
        raise InvalidError(f"block_shape is a sequence of integers; got {block_shape!r}") from None
    if len(shape) != dims:
        raise InvalidError(f"block_shape needs {dims} sizes, one per axis; got {shape}")
    if any(not 1 <= each <= 2**24 for each in shape):
        raise InvalidError(f"block sizes are 1 to {2**24}; got {shape}")
    return shape


def default_block_shape(dims: int) -> tuple[int, ...]:
    """Return DVID's block shapes for 1-D to 3-D, and about 256 Ki voxels beyond."""
    known = {1: (262144,), 2: (512, 512), 3: (64, 64, 64)}
    if dims in known:
        return known[dims]
    # Powers of two that multiply to 2**18, the larger ones on the inner axes.
    bits = [18 // dims + (axis >= dims - 18 % dims) for axis in range(dims)]
    return tuple(2**each for each in bits)
