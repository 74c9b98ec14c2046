"""Arithmetic between boxes of voxels and the blocks of a grid. Pure: no I/O, no arrays kept.

Coordinates are signed and in array axis order (ZYX for volumes). A box is half-open: ``lo <= v <
hi`` on each axis. A block's key is its biased coordinates Morton-interleaved, big-endian, so that
the order of keys is the order of place.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from diced import _blocks
from diced.errors import BadIndexError, InvalidError

MIN_COORDINATE = -(2**31)
MAX_COORDINATE = 2**31 - 1
MAX_DIMS = 8

# A table of this many blocks is a few megabytes; larger boxes are walked in pieces.
BLOCKS_PER_PIECE = 32768

_ALL = slice(None)
_ONES = [(1,) * dims for dims in range(MAX_DIMS + 1)]

Coordinates = tuple[int, ...]
Box = tuple[Coordinates, Coordinates]


class Cut:
    """The blocks that a box meets, in key order: one row per block.

    Parameters
    ----------
    lo, hi : sequences of int
        The box.
    block_shape : sequence of int
    origin : sequence of int, optional
        Voxel from which places are counted; `lo` without it.

    Attributes
    ----------
    keys : list of bytes
    table : C-contiguous int64 array (blocks, 3, dims)
        Where the part inside the box starts in its block, its size, and where it starts seen from
        `origin`.
    whole : bytes
        1 where the box covers the block, else 0.
    """

    __slots__ = ("keys", "table", "whole")

    def __init__(
        self,
        lo: Sequence[int],
        hi: Sequence[int],
        block_shape: Sequence[int],
        origin: Sequence[int] | None = None,
    ):
        self.keys, self.table, self.whole = _blocks.cut(lo, hi, block_shape, origin)

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


def is_open(index: Any) -> bool:
    """Tell whether an index has ends that depend on what was written."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        each is Ellipsis or (isinstance(each, slice) and (each.start is None or each.stop is None))
        for each in parts
    )


def pieces(
    lo: Sequence[int], hi: Sequence[int], block_shape: Sequence[int]
) -> Iterable[tuple[Sequence[int], Sequence[int]]]:
    """Return boxes that tile `lo`..`hi`, cut at block borders, of a bounded number of blocks."""
    if _blocks.count(lo, hi, block_shape) <= BLOCKS_PER_PIECE:
        return ((lo, hi),)
    return _halves(tuple(lo), tuple(hi), block_shape)


def _halves(lo: Coordinates, hi: Coordinates, block_shape: Sequence[int]) -> Iterator[Box]:
    if _blocks.count(lo, hi, block_shape) <= BLOCKS_PER_PIECE:
        yield lo, hi
        return
    spans = [(b - 1) // n - a // n + 1 for a, b, n in zip(lo, hi, block_shape, strict=True)]
    axis = max(range(len(spans)), key=spans.__getitem__)
    block = block_shape[axis]
    middle = (lo[axis] // block + spans[axis] // 2) * block
    yield from _halves(lo, (*hi[:axis], middle, *hi[axis + 1 :]), block_shape)
    yield from _halves((*lo[:axis], middle, *lo[axis + 1 :]), hi, block_shape)


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


def extents(box: Box | None, block_shape: Sequence[int]) -> Box:
    """Return the block-aligned box around what was written, inside the coordinates there are."""
    if box is None:
        return (0,) * len(block_shape), (0,) * len(block_shape)
    lo, hi = align(*box, block_shape)
    # Blocks at the edges of the coordinates may reach beyond them.
    return (
        tuple(max(each, MIN_COORDINATE) for each in lo),
        tuple(min(each, MAX_COORDINATE + 1) for each in hi),
    )


class Selection:
    """A numpy index resolved against an array.

    Parameters
    ----------
    index : int, slice, Ellipsis or tuple of them
    box : Box or None
        What was written; open ends mean its `extents`.
    block_shape : tuple of int
    name : str
        Of the array, for errors.
    channels : int or None

    Attributes
    ----------
    lo, hi : tuple of int
        The box of voxels touched; equal on an axis where the selection is empty.
    shape : tuple of int
        Shape before integer axes are dropped.
    dense, empty : bool
        All voxels of the box are selected; none is.
    step : tuple of int
        Positive step of each axis inside that box.
    flip : tuple of slice or None
        Index that reverses the axes of negative steps, if there are any.
    squeeze : tuple of int
        Axes indexed by an integer, absent from the result.
    channel : slice or int
        Index into the channel axis (``slice(None)`` when the array has none).
    """

    __slots__ = ("channel", "dense", "empty", "flip", "hi", "lo", "shape", "squeeze", "step")

    channel: slice | int
    flip: tuple[slice, ...] | None

    def __init__(
        self,
        index: Any,
        box: Box | None,
        block_shape: tuple[int, ...],
        name: str,
        channels: int | None,
    ):
        if type(index) is not tuple or not self._plain(index, len(block_shape)):
            self._any(index, extents(box, block_shape), name, channels)

    def _plain(self, index: tuple[Any, ...], dims: int) -> bool:
        """Resolve what is nearly always asked for, in a third of the time: ints and closed slices.

        Returns False for everything else, what is wrong included.
        """
        lo: list[int] = []
        hi, shape, squeeze = [], [], []
        for item in index:
            if type(item) is int:
                start, stop = item, item + 1
                squeeze.append(len(lo))
            elif type(item) is slice and item.step is None:
                start, stop = item.start, item.stop
                if type(start) is not int or type(stop) is not int or start > stop:
                    return False
            else:
                return False
            if start < MIN_COORDINATE or stop > MAX_COORDINATE + 1:
                return False
            lo.append(start)
            hi.append(stop)
            shape.append(stop - start)
        if len(lo) != dims:
            return False
        self.lo, self.hi, self.shape = tuple(lo), tuple(hi), tuple(shape)
        self.squeeze = tuple(squeeze)
        self.dense, self.empty = True, 0 in shape
        self.step, self.flip, self.channel = _ONES[dims], None, _ALL
        return True

    def _any(self, index: Any, ends: Box, name: str, channels: int | None) -> None:
        self.channel, items = _split(index, len(ends[0]), name, channels)
        lo, hi, step, flip, squeeze, shape = [], [], [], [], [], []
        for axis, item in enumerate(items):
            if isinstance(item, slice):
                first, last, stride, reverse, size = _slice(
                    item, ends[0][axis], ends[1][axis], axis, name
                )
            else:
                first = _coordinate(item, axis, name)
                last, stride, reverse, size = first + 1, 1, False, 1
                squeeze.append(axis)
            lo.append(first)
            hi.append(last)
            step.append(stride)
            flip.append(slice(None, None, -1 if reverse else None))
            shape.append(size)
        self.lo, self.hi, self.step = tuple(lo), tuple(hi), tuple(step)
        self.squeeze, self.shape = tuple(squeeze), tuple(shape)
        self.flip = None if all(each.step is None for each in flip) else tuple(flip)
        self.dense, self.empty = max(step) == 1, 0 in shape


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
