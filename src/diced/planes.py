"""Planes at any angle through an array: reading between voxels, and writing to the nearest.

Only blocks that a plane crosses are decoded, as a rule each once: pixels are worked at in tiles,
neighbours after each other, and a bounded number of decoded blocks is kept between them.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diced import grid
from diced.blocks import SPACE, Blocks
from diced.encoding import Patch
from diced.errors import BadIndexError, InvalidError
from diced.pending import Pending
from diced.spec import ArraySpec, cast, check_values
from diced.state import State

TILE = 256  # pixels on each side
# Decoded blocks that are kept, but at least as many as one pixel may lie between.
POOL_BYTES = 64 * 2**20
# Blocks of the box around a tile; a tile that spans more is halved.
TABLE_BLOCKS = 2**16
# Pixels of which so much is written at a time.
WRITE_PIXELS = 2**16
# Positions are whole numbers if they are that near to one: what is left of a sum of steps.
WHOLE = 2.0**-20


class Plane:
    """Pixels in space: ``origin + row * u + column * v``.

    Parameters
    ----------
    origin, u, v : sequence of float
        ZYX in voxels.
    shape : (int, int)
        Rows and columns.

    Raises
    ------
    InvalidError
    """

    def __init__(self, origin: Any, u: Any, v: Any, shape: Any):
        self.origin = _vector("the origin", origin)
        self.u = _vector("the step of rows", u)
        self.v = _vector("the step of columns", v)
        if not len(self.origin) == len(self.u) == len(self.v):
            raise InvalidError(
                f"a plane's origin and steps have as many numbers as the array has axes;"
                f" got {len(self.origin)}, {len(self.u)} and {len(self.v)}"
            )
        try:
            self.rows, self.columns = (operator.index(each) for each in shape)
        except (TypeError, ValueError):
            raise InvalidError(f"a plane's shape is rows and columns; got {shape!r:.80}") from None
        if self.rows < 0 or self.columns < 0:
            raise InvalidError(f"a plane's shape is not negative; got {shape}")

    def check(self, spec: ArraySpec) -> None:
        """Raise unless it has the axes of an array and lies inside the coordinates there are."""
        if len(self.origin) != spec.dims:
            raise InvalidError(
                f"array {spec.name!r} has {spec.dims} dimensions; the plane has {len(self.origin)}"
            )
        if not self.rows or not self.columns:
            return
        ends = itertools.product((0, self.rows - 1), (0, self.columns - 1))
        with np.errstate(over="ignore", invalid="ignore"):
            corners = np.array([self.origin + row * self.u + col * self.v for row, col in ends])
        # Also false where it is not a number: the difference of two infinities.
        if not (corners.min() >= grid.MIN_COORDINATE and corners.max() <= grid.MAX_COORDINATE):
            raise BadIndexError(
                f"array {spec.name!r}: the plane reaches {corners.min():g} to {corners.max():g};"
                " coordinates are signed 32-bit"
            )

    def places(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return where pixels lie: shape (axes, pixels) of rows and columns broadcast, flat."""
        place = np.stack(
            [
                (o + rows * a + columns * b).reshape(-1)
                for o, a, b in zip(self.origin, self.u, self.v, strict=True)
            ]
        )
        near = np.rint(place)
        return np.where(np.abs(place - near) < WHOLE, near, place)


def _vector(what: str, values: Any) -> np.ndarray:
    try:
        found = np.array([float(each) for each in values])
    except (TypeError, ValueError, OverflowError):
        raise InvalidError(f"{what} is numbers, ZYX in voxels; got {values!r:.80}") from None
    if not np.isfinite(found).all():
        raise InvalidError(f"{what} is of finite numbers; got {found.tolist()}")
    return found


# -- reading -------------------------------------------------------------------------------


def read(blocks: Blocks, state: State, pending: Pending | None, plane: Plane) -> np.ndarray:
    """Return the voxels of a plane.

    Parameters
    ----------
    blocks : Blocks
    state : State
    pending : Pending or None
        What is laid over it.
    plane : Plane

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns), channels last; linear between voxels, or the nearest for labels
        and bool. Integers of 64 bits are exact at voxels, and have 53 bits between them.
    """
    spec = blocks.spec
    plane.check(spec)
    tail = () if spec.channels is None else (spec.channels,)
    try:
        out = np.empty((plane.rows, plane.columns, *tail), spec.dtype)
    except ValueError:
        raise InvalidError(
            f"array {spec.name!r}: a plane of {plane.rows} x {plane.columns} is beyond any memory"
        ) from None
    pool = _Pool(blocks, state, pending)
    nearest = spec.codec.startswith("label") or spec.dtype == np.bool_
    for number, top in enumerate(range(0, plane.rows, TILE)):
        lefts = range(0, plane.columns, TILE)
        # To and fro, so that the next tile is a neighbour.
        for left in lefts if number % 2 == 0 else reversed(lefts):
            bottom, right = min(plane.rows, top + TILE), min(plane.columns, left + TILE)
            _tile(pool, plane, nearest, out, (top, bottom, left, right))
    return out


def _tile(
    pool: _Pool, plane: Plane, nearest: bool, out: np.ndarray, tile: tuple[int, int, int, int]
) -> None:
    """Fill a tile of the result, in halves where it meets too many blocks."""
    top, bottom, left, right = tile
    place = plane.places(np.arange(top, bottom)[:, None], np.arange(left, right)[None, :])
    if nearest:
        place = np.floor(place + 0.5)
    low = np.floor(place)
    rest = place - low
    axes = [axis for axis in range(len(low)) if rest[axis].any()]
    low = low.astype(np.int64)
    found = pool.find(low, [low[axis] + (rest[axis] > 0) for axis in axes], axes)
    if found is not None:
        values = _between(found, rest, axes, pool.spec)
        out[top:bottom, left:right] = values.reshape(bottom - top, right - left, *out.shape[2:])
    elif bottom - top >= right - left:
        middle = (top + bottom) // 2
        _tile(pool, plane, nearest, out, (top, middle, left, right))
        _tile(pool, plane, nearest, out, (middle, bottom, left, right))
    else:
        middle = (left + right) // 2
        _tile(pool, plane, nearest, out, (top, bottom, left, middle))
        _tile(pool, plane, nearest, out, (top, bottom, middle, right))


def _between(found: Any, rest: np.ndarray, axes: list[int], spec: ArraySpec) -> np.ndarray:
    """Return values between voxels; `found` gives those of a corner, a bit for each of `axes`."""
    first: np.ndarray = found((0,) * len(axes))
    if not axes:
        return first
    dtype = spec.dtype
    total = np.zeros(first.shape)
    for corner in itertools.product((0, 1), repeat=len(axes)):
        weight = np.ones(rest.shape[1])
        for axis, bit in zip(axes, corner, strict=True):
            weight *= rest[axis] if bit else 1.0 - rest[axis]
        if spec.channels is not None:
            weight = weight[:, None]
        values = found(corner) if any(corner) else first
        if dtype.kind == "f":
            values = np.where(weight > 0, values, 0)  # infinities count only where they are
        with np.errstate(over="ignore", invalid="ignore"):  # and of two opposite ones there is none
            total += weight * values
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return total.astype(dtype)
    np.rint(total, out=total)
    if dtype.itemsize < 8:
        return total.astype(dtype)
    top = 2.0 ** (64 - (dtype.kind == "i"))
    result: np.ndarray = np.minimum(total, np.nextafter(top, 0)).astype(dtype)
    exact = ~rest.any(axis=0)
    result[exact] = first[exact]
    return result


class _Pool:
    """Decoded blocks of one state, a bounded number, in one array from which pixels are picked."""

    def __init__(self, blocks: Blocks, state: State, pending: Pending | None):
        self.spec = blocks.spec
        self._blocks = blocks
        self._state = state
        self._pending = pending
        spec = blocks.spec
        self._most = max(POOL_BYTES // spec.block_nbytes, 2**spec.dims)
        # The first is of blocks that are not there. What is never used takes no memory.
        self._stack = np.empty(
            ((self._most + 1) * spec.block_shape[0], *spec.full_block_shape[1:]), spec.dtype
        )
        self._stack[: spec.block_shape[0]] = spec.fill_value
        self._flat = self._stack.reshape(-1, *spec.full_block_shape[spec.dims :])
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(self._most, 0, -1))
        self._absent: set[bytes] = set()

    def find(self, low: np.ndarray, high: list[np.ndarray], axes: list[int]) -> Any:
        """Have the blocks there that hold some voxels.

        Parameters
        ----------
        low : int64 array (axes of space, pixels)
        high : list of int64 array (pixels,)
            The other neighbour of a pixel along each of `axes`.
        axes : list of int

        Returns
        -------
        callable or None
            Takes a bit for each of `axes` and returns the voxels of these neighbours; None if
            they are of too many blocks.
        """
        shape = self.spec.block_shape
        dims = range(len(shape))
        first = np.array([low[axis].min() // shape[axis] for axis in dims])
        last = np.array([low[axis].max() // shape[axis] for axis in dims])
        for axis, each in zip(axes, high, strict=True):
            last[axis] = max(last[axis], each.max() // shape[axis])
        spans = [int(each) for each in last - first + 1]
        if math.prod(spans) > TABLE_BLOCKS and low.shape[1] > 1:
            return None
        # Of each neighbour on each axis: its part of the number of the block in the box of blocks,
        # and of its place in the block.
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = []
        for axis in dims:
            span, step = math.prod(spans[axis + 1 :]), math.prod(shape[axis + 1 :])
            both = [low[axis]] + [each for at, each in zip(axes, high, strict=True) if at == axis]
            block = [each // shape[axis] for each in both]
            parts.append(
                [
                    ((b - first[axis]) * span, (each - b * shape[axis]) * step)
                    for each, b in zip(both, block, strict=True)
                ]
            )

        def pick(corner: Sequence[int], which: int) -> np.ndarray:
            bits = dict(zip(axes, corner, strict=True))
            total = parts[0][bits.get(0, 0)][which]
            for axis in dims[1:]:
                total = total + parts[axis][bits.get(axis, 0)][which]
            return total

        table = np.zeros(math.prod(spans), np.int64)
        for corner in itertools.product((0, 1), repeat=len(axes)):
            table[pick(corner, 0)] = 1
        wanted = np.flatnonzero(table)
        if len(wanted) > self._most:
            return None
        coords = np.stack(np.unravel_index(wanted, spans), axis=1) + first
        table[wanted] = np.array(self._load(coords)) * math.prod(shape)

        def values(corner: Sequence[int]) -> np.ndarray:
            found: np.ndarray = self._flat[table[pick(corner, 0)] + pick(corner, 1)]
            return found

        return values

    def _load(self, coords: np.ndarray) -> list[int]:
        """Return the slots of blocks, decoding those that are not there yet."""
        names = grid.block_keys(coords)
        missing = []
        for name in names:
            if name in self._slots:
                self._slots.move_to_end(name)
            elif name not in self._absent:
                missing.append(name)
        missing.sort()
        lane = self._blocks.lane
        entries = []
        keys: list[bytes] = []
        for name, entry in zip(missing, lane.get_many(self._state, SPACE, missing), strict=True):
            if entry is None and self._pending is None:
                self._absent.add(name)
            else:
                keys.append(name)
                entries.append(entry)
        slots = []
        for name in keys:
            if not self._free:
                self._free.append(self._slots.popitem(last=False)[1])
            self._slots[name] = self._free.pop()
            slots.append(self._slots[name])
        if keys:
            spec = self.spec
            rows = np.zeros((len(keys), 3, spec.dims), np.int64)
            rows[:, 1] = spec.block_shape
            rows[:, 2, 0] = np.array(slots) * spec.block_shape[0]
            self._blocks.read_entries(entries, keys, rows, self._stack)
            if self._pending is not None:
                self._lay_over(self._pending, keys, slots)
        return [self._slots.get(name, 0) for name in names]

    def _lay_over(self, pending: Pending, keys: list[bytes], slots: list[int]) -> None:
        shape = self.spec.block_shape
        for coord, slot in zip(
            grid.block_coords(keys, self.spec.dims).tolist(), slots, strict=True
        ):
            lo = [c * n for c, n in zip(coord, shape, strict=True)]
            hi = [a + n for a, n in zip(lo, shape, strict=True)]
            # A block at the edge of the coordinates may reach beyond them.
            low = [max(a, grid.MIN_COORDINATE) for a in lo]
            high = [min(b, grid.MAX_COORDINATE + 1) for b in hi]
            block = self._stack[slot * shape[0] : (slot + 1) * shape[0]]
            window = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, lo, strict=True))
            pending.overlay(low, high, block[window])


# -- writing -------------------------------------------------------------------------------


class Scatter(Patch):
    """Single voxels of a block to be overwritten, by their place in its memory."""

    __slots__ = ("_at",)

    def __init__(self, at: np.ndarray, source: np.ndarray):
        super().__init__((), source)
        self._at = at

    def keep(self) -> None:
        """Nothing: the source is its own."""

    def apply(self, block: np.ndarray, dtype: np.dtype[Any], what: str) -> None:
        """Write into a block's array, which lies in one piece."""
        # Of several values for one voxel numpy takes the last.
        block.reshape(-1, *self.source.shape[1:])[self._at] = self.source


def write(pending: Pending, plane: Plane, values: np.ndarray) -> None:
    """Add the pixels of a plane to what a commit writes, each at the voxel nearest to it.

    Parameters
    ----------
    pending : Pending
    plane : Plane
    values : numpy.ndarray
        Shape (rows, columns), channels last.

    Raises
    ------
    InvalidError
    """
    blocks = pending.blocks
    spec = blocks.spec
    plane.check(spec)
    what = f"array {spec.name!r}"
    tail = () if spec.channels is None else (spec.channels,)
    if values.shape != (plane.rows, plane.columns, *tail):
        raise InvalidError(
            f"{what}: a plane's values have shape (rows, columns"
            f"{', channels' if tail else ''}); got {values.shape}"
        )
    check_values(values, spec.dtype, what)
    found: dict[bytes, list[tuple[np.ndarray, np.ndarray]]] = {}
    box: grid.Box | None = None
    flat = values.reshape(-1, *tail)
    for start, voxels in _nearest(plane):
        part = cast(flat[start : start + voxels.shape[1]], spec.dtype, what)
        lo, hi = voxels.min(axis=1), voxels.max(axis=1) + 1
        box = grid.union(box, (tuple(lo.tolist()), tuple(hi.tolist())))
        for key, rows, at in _by_block(voxels, spec):
            found.setdefault(key, []).append((at, part[rows]))
    patches: dict[bytes, Patch] = {}
    for key, pieces in found.items():
        places, sources = zip(*pieces, strict=True)
        patches[key] = Scatter(np.concatenate(places), np.concatenate(sources))
    if box is not None:
        pending.scatter(blocks.lane.recent(), patches, box)


def _nearest(plane: Plane) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of a first pixel, and the voxels (axes, pixels) from there on."""
    total = plane.rows * plane.columns
    for start in range(0, total, WRITE_PIXELS):
        numbers = np.arange(start, min(total, start + WRITE_PIXELS))
        place = plane.places(numbers // plane.columns, numbers % plane.columns)
        yield start, np.floor(place + 0.5).astype(np.int64)


def _by_block(
    voxels: np.ndarray, spec: ArraySpec
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Yield of each block its key, which pixels fall into it, in order, and where."""
    shape = np.array(spec.block_shape)[:, None]
    block = voxels // shape
    inside = voxels - block * shape
    at = np.ravel_multi_index(tuple(inside), spec.block_shape).astype(np.uint32)
    order = np.lexsort(block[::-1])  # stable, so that pixels stay in order
    ordered = block[:, order]
    starts = np.flatnonzero(np.any(ordered[:, 1:] != ordered[:, :-1], axis=0)) + 1
    bounds = [0, *starts.tolist(), len(order)]
    keys = grid.block_keys(ordered[:, bounds[:-1]].T)
    for key, first, last in zip(keys, bounds, bounds[1:], strict=False):
        rows = order[first:last]
        yield key, rows, at[rows]
