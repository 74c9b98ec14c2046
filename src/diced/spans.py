"""Arithmetic of spans: runs of blocks (z, y, x0, x1), x1 included. Pure; stores nothing."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diced.errors import BadIndexError, InvalidError

Array = np.ndarray[Any, np.dtype[Any]]
Blocks = tuple[int, int, int]

MAX_VOLUMES = 2**17
MAX_BATCH = 2**20


class Subvolume(NamedTuple):
    """A box of blocks, ZYX, its last block included, and how many of them are in the region."""

    first: Blocks
    last: Blocks
    active: int

    @property
    def total(self) -> int:
        """Number of blocks."""
        z, y, x = (b - a + 1 for a, b in zip(self.first, self.last, strict=True))
        return z * y * x


class Partition(NamedTuple):
    """Subvolumes that cover a region.

    Attributes
    ----------
    volumes : list of Subvolume
        Those that hold any of its blocks.
    total : int
        Blocks of all subvolumes, also of those that hold none.
    active : int
        Blocks of the region.
    """

    volumes: list[Subvolume]
    total: int
    active: int


def order(z: Any, y: Any) -> Array:
    """Return a number that orders rows of blocks by z, then y, both of 32 bits."""
    return np.asarray(np.asarray(z, np.int64) * 2**32 + (np.asarray(y, np.int64) + 2**31))


def check_box(lo: Sequence[Any], hi: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return the first voxel of a box and the one behind its last, ZYX.

    Raises
    ------
    InvalidError, BadIndexError
    """
    try:
        lo, hi = ([operator.index(each) for each in end] for end in (lo, hi))
    except TypeError:
        raise InvalidError(f"a box has whole numbers, ZYX; got {lo!r:.50}, {hi!r:.50}") from None
    if len(lo) != 3 or len(hi) != 3 or any(b < a for a, b in zip(lo, hi, strict=True)):
        raise InvalidError(f"a box has three axes, ZYX; got {tuple(lo)} to {tuple(hi)}")
    if any(abs(each) >= 2**62 for each in (*lo, *hi)):
        raise BadIndexError(f"a box is beyond all coordinates: {tuple(lo)} to {tuple(hi)}")
    return lo, hi


def check_points(points: Any) -> Array:
    """Return voxels, ZYX, as int64 (points, 3); of no points an array that is empty.

    Raises
    ------
    InvalidError
    """
    try:
        voxels = np.asarray(points)
    except ValueError as error:
        raise InvalidError(f"points are of shape (points, 3), ZYX: {error}") from None
    if voxels.size == 0:
        return voxels
    if voxels.ndim != 2 or voxels.shape[1] != 3 or voxels.dtype.kind not in "iu":
        raise InvalidError(
            f"points are integers of shape (points, 3), ZYX; got {voxels.dtype} {voxels.shape}"
        )
    if voxels.dtype.kind == "u":
        voxels = np.minimum(voxels, 2**62)
    return voxels.astype(np.int64)


def covered(rows: Array, blocks: Array) -> Array:
    """Tell of each block of an int64 array (blocks, 3), ZYX, whether a span covers it.

    `rows` are sorted spans, which may overlap. All coordinates have 32 bits.
    """
    if not len(rows):
        return np.zeros(len(blocks), np.bool_)
    spans = rows.astype(np.int64)
    # Rows (z, y) by their number, so that row and x make one sortable integer.
    starts_row = np.ones(len(spans), np.bool_)
    starts_row[1:] = (spans[1:, :2] != spans[:-1, :2]).any(axis=1)
    number = np.cumsum(starts_row) - 1
    names = order(spans[starts_row, 0], spans[starts_row, 1])
    wanted = order(blocks[:, 0], blocks[:, 1])
    row = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    there = names[row] == wanted
    begin = number * 2**33 + spans[:, 2] + 2**31
    end = np.maximum.accumulate(number * 2**33 + spans[:, 3] + 2**31)
    place = row * 2**33 + blocks[:, 2] + 2**31
    last = np.searchsorted(begin, place, "right") - 1
    return np.asarray(there & (last >= 0) & (end[last] >= place))


def partition(rows: Array, batch: int, optimized: bool) -> Partition:
    """Cover sorted spans with subvolumes.

    Parameters
    ----------
    batch : int
        Blocks along each axis of a subvolume.
    optimized : bool
        False: all are cubes, in layers along Z that are centred on the region, in each layer rows
        along Y, in each row cubes along X, centred likewise. True: they are close to cubes, begin
        where the region begins, and leave out gaps along X of half a batch or more.

    Raises
    ------
    InvalidError
        `batch` is not positive, or there would be more than `MAX_VOLUMES` subvolumes.
    """
    if not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
        raise InvalidError(f"a batch is 1 to {MAX_BATCH} blocks; got {batch!r:.60}")
    volumes: list[Subvolume] = []
    total = 0
    if len(rows):
        way = _Tight() if optimized else _Centred()
        for z0, z1, layer in way.cut(rows.astype(np.int64), 0, batch, first=True):
            layer = layer[np.argsort(layer[:, 1], kind="stable")]
            for y0, y1, row in way.cut(layer, 1, batch):
                room = MAX_VOLUMES - len(volumes)
                more, blocks = way.along(row, (z0, y0), (z1, y1), batch, room)
                volumes += more
                total += blocks
    return Partition(volumes, total, sum(each.active for each in volumes))


def _too_many() -> InvalidError:
    return InvalidError(f"there would be more than {MAX_VOLUMES} subvolumes: choose a larger batch")


def _actives(row: Array, borders: Array) -> Array:
    """Return how many blocks of a row's spans lie between each two borders."""

    def before(places: Array) -> Array:
        """Return, of each border, how far it lies beyond the places that it is beyond, summed."""
        places = np.sort(places)
        sums = np.concatenate([[0], np.cumsum(places)])
        count = np.searchsorted(places, borders)
        return np.asarray(count * borders - sums[count])

    return np.diff(before(row[:, 2]) - before(row[:, 3] + 1))


class _Centred:
    """Cubes in layers and rows that are centred on what they cover."""

    def cut(
        self, spans: Array, axis: int, batch: int, first: bool = False
    ) -> list[tuple[int, int, Array]]:
        """Return (begin, end, spans) of each slab that holds any; `spans` are sorted by axis."""
        places = spans[:, axis]
        begin = int(places[0])
        begin -= (int(places[-1]) - begin + 1) % batch // 2
        return _slabs(spans, (places - begin) // batch, lambda at: begin + at * batch, batch)

    def along(
        self, row: Array, first: tuple[int, int], last: tuple[int, int], batch: int, room: int
    ) -> tuple[list[Subvolume], int]:
        """Return the subvolumes of a row, and the blocks of all, empty ones too."""
        least, most = int(row[:, 2].min()), int(row[:, 3].max())
        spare = (most - least + 1) % batch
        begin, end = least - spare // 2, most + spare - spare // 2
        count = -(-(end - begin + 1) // batch)
        if count > room:
            raise _too_many()
        borders = begin + batch * np.arange(count + 1, dtype=np.int64)
        actives = _actives(row, borders)
        volumes = [
            Subvolume((*first, x), (*last, x + batch - 1), active)
            for x, active in zip(borders[:-1].tolist(), actives.tolist(), strict=True)
            if active
        ]
        return volumes, count * batch**3


class _Tight:
    """Boxes that begin where what they cover begins, and leave out gaps along X."""

    def cut(
        self, spans: Array, axis: int, batch: int, first: bool = False
    ) -> list[tuple[int, int, Array]]:
        """Return (begin, end, spans) of each slab that holds any; `spans` are sorted by axis."""
        places = spans[:, axis]
        begin, size = int(places[0]), int(places[-1]) - int(places[0]) + 1
        # What is left over is shared out, one block to each slab, as far as it goes; of layers the
        # first gets none.
        spare, skip = size % batch, int(first)
        found = []
        at = 0
        while at < len(places):
            offset = int(places[at]) - begin
            wide = skip * batch if offset >= skip * batch else 0
            if offset < skip * batch:
                start, end = 0, batch
            elif offset < wide + spare * (batch + 1):
                slab = (offset - wide) // (batch + 1)
                start = wide + slab * (batch + 1)
                end = start + batch + 1
            else:
                rest = wide + spare * (batch + 1)
                start = rest + (offset - rest) // batch * batch
                end = start + batch
            stop = int(np.searchsorted(places, begin + end))
            found.append((begin + start, begin + end - 1, spans[at:stop]))
            at = stop
        return found

    def along(
        self, row: Array, first: tuple[int, int], last: tuple[int, int], batch: int, room: int
    ) -> tuple[list[Subvolume], int]:
        """Return the subvolumes of a row, and their blocks."""
        row = row[np.argsort(row[:, 2], kind="stable")]
        ends = np.maximum.accumulate(row[:, 3])
        # A narrower gap costs less than another subvolume.
        gap = np.flatnonzero(row[1:, 2] > ends[:-1] + max(1, batch // 2))
        begins = [int(row[0, 2]), *row[gap + 1, 2].tolist()]
        stops = [*ends[gap].tolist(), int(ends[-1])]
        spare = (stops[-1] - begins[0] + 1) % batch
        boxes: list[tuple[int, int]] = []
        x, run = begins[0], 0
        while run < len(begins):
            x = max(x, begins[run])
            end = x + batch - 1
            if spare:
                end, spare = end + 1, spare - 1
            # The widest gap inside ends a box early, and so does one that begins inside.
            beyond = bisect.bisect_right(begins, end)
            holes = [begins[each] - stops[each - 1] for each in range(run + 1, beyond)]
            if holes:
                end = stops[run + holes.index(max(holes))]
            elif end > stops[beyond - 1] and beyond < len(begins):
                end = stops[beyond - 1]
            boxes.append((x, end))
            if len(boxes) > room:
                raise _too_many()
            x = end + 1
            run = bisect.bisect_left(stops, x)
        borders = np.array([each for a, b in boxes for each in (a, b + 1)], np.int64)
        actives = _actives(row, borders)[::2].tolist()
        volumes = [
            Subvolume((*first, a), (*last, b), active)
            for (a, b), active in zip(boxes, actives, strict=True)
        ]
        return volumes, sum(each.total for each in volumes)


def _slabs(
    spans: Array, slab: Array, begin: Callable[[int], int], batch: int
) -> list[tuple[int, int, Array]]:
    """Return (begin, end, spans) by number of the slab, which ascends."""
    starts = [0, *(np.flatnonzero(np.diff(slab)) + 1).tolist(), len(slab)]
    found = []
    for at, stop in itertools.pairwise(starts):
        place = begin(int(slab[at]))
        found.append((place, place + batch - 1, spans[at:stop]))
    return found
