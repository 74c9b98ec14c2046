"""Regions of interest: sets of blocks, as spans along X, in a version.

A span is (z, y, x0, x1) in block coordinates, its last block included, as DVID has it. Sorted spans
are stored in parts of a bounded number; a directory says where each part begins, so that a question
about some voxels reads few of millions of spans.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diced import grid, pool
from diced.errors import BadIndexError, CorruptError, InvalidError
from diced.handle import Handle, together
from diced.log import Entry
from diced.spans import Array, Partition, check_box, check_points, covered, order, partition
from diced.spec import check_text
from diced.state import Change, State
from diced.values import load_value, store_value
from diced.versioned import Lane

PARTS, DIRECTORY = 0, 1  # spaces
NUMBER = struct.Struct(">I")  # key of a part
SPANS = b"spans"  # key of the directory
HEAD = struct.Struct("<q6i")  # spans; first and last z, y, x
PART = 16384  # spans
BLOCK = (32, 32, 32)


class Directory(NamedTuple):
    """How many spans there are, the box of blocks that they are in, and where parts begin."""

    total: int
    first: tuple[int, int, int]
    last: tuple[int, int, int]
    begins: Array  # z and y of the first span of each part


class RoiArray(Handle):
    """A region of interest at the version that its repo object is at.

    Made by ``repo.create_array(name, kind="roi")``; `block_shape` is 32 cubed unless given.
    """

    _frozen: tuple[Lane, State] | None = None

    @staticmethod
    def describe(name: str, *, block_shape: Any = None, **_options: Any) -> dict[str, Any]:
        """Return what is stored of the options of ``create_array``: the block shape, ZYX."""
        shape = grid.check_block_shape(BLOCK if block_shape is None else block_shape, 3)
        return {"dims": 3, "block_shape": list(shape)}

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of a block, ZYX."""
        return self._spec.block_shape

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<RoiArray {self.name!r} at {state} version {self._repo.uuid[:12]}>"

    # -- reading ---------------------------------------------------------------------------

    def snapshot(self) -> RoiArray:
        """Return the region as it is now, to be read any number of times as of one commit."""
        found = copy.copy(self)
        found._frozen = self._now()
        return found

    def __len__(self) -> int:
        """Return the number of spans."""
        return self._directory(*self._now()).total

    @property
    def extents(self) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """First and last block, ZYX, of the box of all spans; None if there is none."""
        found = self._directory(*self._now())
        return (found.first, found.last) if found.total else None

    @property
    def bounds(self) -> tuple[slice, ...] | None:
        """Box of voxels, ZYX, that all spans are in; None if there is none."""
        found = self.extents
        if found is None:
            return None
        return tuple(
            slice(a * n, (b + 1) * n) for a, b, n in zip(*found, self.block_shape, strict=True)
        )

    def spans(self) -> Array:
        """Return all spans, int32 of shape (spans, 4): z, y, x0, x1, sorted."""
        lane, state = self._now()
        directory = self._directory(lane, state)
        return self._load(lane, state, range(len(directory.begins)))

    def mask(self, lo: Sequence[int], hi: Sequence[int]) -> Array:
        """Tell of each voxel of a box whether it is inside.

        Parameters
        ----------
        lo, hi : sequence of int
            First voxel and last + 1, ZYX.

        Returns
        -------
        ndarray of bool
            Shape ``hi - lo``.

        Raises
        ------
        InvalidError, BadIndexError
        """
        lo, hi = check_box(lo, hi)
        if any(a == b for a, b in zip(lo, hi, strict=True)):
            return np.zeros([b - a for a, b in zip(lo, hi, strict=True)], np.bool_)
        sizes = self.block_shape
        first = [a // n for a, n in zip(lo, sizes, strict=True)]
        last = [(b - 1) // n for b, n in zip(hi, sizes, strict=True)]
        layers = np.arange(first[0], last[0] + 1, dtype=np.int64)
        rows = self._among(order(layers, first[1]), order(layers, last[1]))
        inside = (rows[:, 0] >= first[0]) & (rows[:, 0] <= last[0])
        inside &= (rows[:, 1] >= first[1]) & (rows[:, 1] <= last[1])
        inside &= (rows[:, 2] <= last[2]) & (rows[:, 3] >= first[2])
        rows = rows[inside].astype(np.int64) - np.array([first[0], first[1], first[2], first[2]])
        shape = [b - a + 1 for a, b in zip(first, last, strict=True)]
        edges = np.zeros((shape[0], shape[1], shape[2] + 1), np.int32)
        np.add.at(edges, (rows[:, 0], rows[:, 1], np.maximum(rows[:, 2], 0)), 1)
        np.add.at(edges, (rows[:, 0], rows[:, 1], np.minimum(rows[:, 3] + 1, shape[2])), -1)
        found: Array = np.cumsum(edges, axis=2, dtype=np.int32)[:, :, :-1] > 0
        for axis in (2, 1, 0):
            a, b, n = lo[axis], hi[axis], sizes[axis]
            borders = np.arange(first[axis], last[axis] + 2, dtype=np.int64) * n
            counts: Array = np.diff(np.clip(borders, a, b))
            found = np.repeat(found, counts, axis=axis)
        return found

    def contains(self, points: Any) -> Array:
        """Tell of each voxel of an integer array (points, 3), ZYX, whether it is inside.

        Returns
        -------
        ndarray of bool
            Shape (points,).

        Raises
        ------
        InvalidError
        """
        voxels = check_points(points)
        if voxels.size == 0:
            return np.zeros(len(voxels), np.bool_)
        blocks = voxels // np.array(self.block_shape)
        near = ((blocks >= -(2**31)) & (blocks < 2**31)).all(axis=1)
        blocks[~near] = 0
        wanted = np.unique(order(blocks[:, 0], blocks[:, 1]))
        return np.asarray(covered(self._among(wanted, wanted), blocks) & near)

    @together()
    def partition(self, batch: int, *, optimized: bool = False) -> Partition:
        """Cover the region with subvolumes; see `spans.partition`."""
        return partition(self.spans(), batch, optimized)

    # -- writing ---------------------------------------------------------------------------

    @together(lane=False)
    def set_spans(self, spans: Any, *, operation: str = "put spans") -> None:
        """Replace all spans, in one commit.

        Parameters
        ----------
        spans : array-like of int, shape (spans, 4)
            z, y, x0, x1 in block coordinates, x1 included, in any order.

        Raises
        ------
        InvalidError, BadIndexError, LockedError, ReadOnlyError
        """
        self._repo._check_writable(self._spec)
        check_text(f"{self.name!r}: the operation", operation)
        rows = check_spans(spans)
        lane = self._lane()
        frames = lane.home.frames()
        parts: dict[bytes, Entry | None] = {}
        for number, start in enumerate(range(0, len(rows), PART)):
            key = NUMBER.pack(number)
            parts[key] = store_value(lane, PARTS, key, _pack(rows[start : start + PART]), frames)
        directory: Entry | None = None
        if len(rows):
            least, most = rows.min(axis=0), rows.max(axis=0)
            head = HEAD.pack(len(rows), *least[:3].tolist(), *most[:2].tolist(), int(most[3]))
            begins = rows[::PART, :2].astype("<i4").tobytes()
            directory = store_value(lane, DIRECTORY, SPANS, head + begins, frames)

        def prepare(state: State, _touched: Any) -> Change | None:
            old = [key for key, _ in lane.scan(state, PARTS) if key not in parts]
            if not parts and not old:
                return None
            delta = {PARTS: {**parts, **dict.fromkeys(old)}, DIRECTORY: {SPANS: directory}}
            return Change(delta, None, None, frames)

        self._commit(lane, prepare, operation)

    def clear(self) -> None:
        """Remove all spans from this version and its descendants; ancestors keep them."""
        self.set_spans(np.empty((0, 4), np.int32), operation="delete spans")

    # -- place -----------------------------------------------------------------------------

    def _lane(self) -> Lane:
        return self._repo._lane(self._spec)

    @together()
    def _now(self) -> tuple[Lane, State]:
        if self._frozen is not None:
            return self._frozen
        lane = self._lane()
        return lane, lane.refresh()

    def _directory(self, lane: Lane, state: State) -> Directory:
        entry = lane.get(state, DIRECTORY, SPANS)
        if entry is None:
            return Directory(0, (0, 0, 0), (0, 0, 0), np.empty((0, 2), np.int32))
        where = f"the directory of {self.name!r}"
        return parse_directory(load_value(lane, DIRECTORY, SPANS, entry, where), where)

    def _among(self, first: Array, last: Array) -> Array:
        """Return all spans of rows in these intervals of `order`, sorted, and some others."""
        lane, state = self._now()
        directory = self._directory(lane, state)
        begins = order(directory.begins[:, 0], directory.begins[:, 1])
        # A part goes on to where the next begins, and the same row may be in both.
        start = np.maximum(np.searchsorted(begins, first, "left") - 1, 0)
        stop = np.searchsorted(begins, last, "right")
        edges = np.zeros(len(begins) + 1, np.int64)
        np.add.at(edges, start, 1)
        np.add.at(edges, np.maximum(stop, start), -1)
        return self._load(lane, state, np.flatnonzero(np.cumsum(edges)[:-1]).tolist())

    def _load(self, lane: Lane, state: State, numbers: Sequence[int]) -> Array:
        """Return the spans of some parts."""
        names = [NUMBER.pack(number) for number in numbers]
        if not names:
            return np.empty((0, 4), np.int32)
        entries = lane.get_many(state, PARTS, names)

        def load(part: tuple[bytes, Entry | None]) -> Array:
            key, entry = part
            where = f"part {NUMBER.unpack(key)[0]} of {self.name!r}"
            if entry is None:
                raise CorruptError(f"{where} is missing")
            return unpack(load_value(lane, PARTS, key, entry, where), where)

        threads = pool.LIMIT if self._repo.remote else pool.default_threads()
        parts = list(pool.map_ordered(load, list(zip(names, entries, strict=True)), threads))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_spans(spans: Any) -> Array:
    """Return spans as int32 (spans, 4), sorted, each once.

    Raises
    ------
    InvalidError, BadIndexError
    """
    try:
        rows = np.asarray(spans)
        if rows.size == 0:
            return np.empty((0, 4), np.int32)
        if rows.dtype.kind not in "iu":
            raise ValueError(f"got {rows.dtype}")
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"spans are integers z, y, x0, x1: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise InvalidError(f"spans are of shape (spans, 4): z, y, x0, x1; got {rows.shape}")
    limits = np.iinfo(np.int32)
    if rows.min() < limits.min or rows.max() > limits.max:
        raise BadIndexError("spans are outside 32-bit block coordinates")
    rows = rows.astype(np.int32)
    wrong = rows[:, 3] < rows[:, 2]
    if wrong.any():
        example = rows[wrong][0].tolist()
        raise InvalidError(f"span {example} (z, y, x0, x1) ends before it begins")
    place, run = order(rows[:, 0], rows[:, 1]), order(rows[:, 2], rows[:, 3])
    if not _follow(place, run).all():
        by = np.lexsort((run, place))
        rows, place, run = rows[by], place[by], run[by]
    return np.asarray(rows[np.concatenate([[True], _follow(place, run)])])


def ascend(rows: Array) -> Array:
    """Tell of each span but the first whether it comes after the one before."""
    return _follow(order(rows[:, 0], rows[:, 1]), order(rows[:, 2], rows[:, 3]))


def _follow(place: Array, run: Array) -> Array:
    further = place[1:] > place[:-1]
    return np.asarray(further | ((place[1:] == place[:-1]) & (run[1:] > run[:-1])))


def _pack(rows: Array) -> bytes:
    """Return spans as columns of differences, byte by byte, which compress well."""
    columns = rows.astype(np.int64).T.copy()
    columns[3] -= columns[2]
    columns[:3] = np.diff(columns[:3], axis=1, prepend=0)
    table = columns.astype("<u4").view(np.uint8).reshape(4, len(rows), 4)
    return table.transpose(0, 2, 1).tobytes()


def unpack(data: bytes, where: str) -> Array:
    """Return the spans of a part.

    Raises
    ------
    CorruptError
    """
    if len(data) % 16:
        raise CorruptError(f"{where} has {len(data)} bytes")
    planes = np.frombuffer(data, np.uint8).reshape(4, 4, -1).transpose(0, 2, 1)
    columns = np.ascontiguousarray(planes).view("<u4").reshape(4, -1).astype(np.uint32)
    columns[:3] = np.cumsum(columns[:3], axis=1, dtype=np.uint32)
    columns[3] += columns[2]
    return np.ascontiguousarray(columns.view(np.int32).T)


def parse_directory(data: bytes, where: str) -> Directory:
    """Return a directory.

    Raises
    ------
    CorruptError
    """
    if len(data) < HEAD.size or (len(data) - HEAD.size) % 8:
        raise CorruptError(f"{where} has {len(data)} bytes")
    count, *box = HEAD.unpack_from(data)
    begins = np.frombuffer(data, "<i4", offset=HEAD.size).reshape(-1, 2)
    first, last = (box[0], box[1], box[2]), (box[3], box[4], box[5])
    if len(begins) != -(-count // PART):
        raise CorruptError(f"{where}: {len(begins)} parts of {count} spans")
    return Directory(count, first, last, begins)
