"""Which pyramid of an array, and which of its levels, a request means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from diced import grid, multiscale
from diced.blocks import SPACE
from diced.errors import CorruptError, InvalidError
from diced.grid import Box
from diced.levels import Levels
from diced.pyramid import is_included
from diced.server.call import Call, whole
from diced.snapshot import Snapshot
from diced.state import State

# Axes that mean: whatever the stored levels were made of.
AS_STORED = "stored"
ISOTROPIC = "isotropic"
# Most voxels out of which a read may compute what is not stored: a second or two of one thread.
MOST_VOXELS = 2**28

QUERY = {
    "axes": "axes that the levels halve: numbers, Z being 0, such as 1,2, or isotropic; by default"
    " as stored, or else all",
    "method": "how the levels are made: mean, mode or nearest",
}


def pyramid(array: Any, levels: Any, axes: Any, method: Any) -> Any:
    """Return an array's pyramid.

    Parameters
    ----------
    array : DicedArray
    levels, axes, method : Any
        As of `diced.scaled.Scaled.pyramid`, and whatever JSON may hold instead.

    Raises
    ------
    InvalidError
    """
    if axes == AS_STORED:
        axes = None
    elif not (axes is None or axes == ISOTROPIC or isinstance(axes, list)):
        raise InvalidError(f"axes are numbers or {ISOTROPIC!r}; got {axes!r:.60}")
    return array.pyramid(levels, axes=axes, method=method)


def of_query(call: Call, array: Any, levels: int | None) -> Any:
    """Return the pyramid that a query means."""
    text = call.query.get("axes") or None
    axes: Any = text
    if text is not None and text not in (AS_STORED, ISOTROPIC):
        axes = [whole(each, "each of the query parameter 'axes'") for each in text.split(",")]
    return pyramid(array, levels, axes, call.query.get("method") or None)


def source(call: Call, array: Any) -> Any:
    """Return the array, or the level of its pyramid that the query asks for."""
    number = call.number("scale", 0)
    if number < 0:
        raise InvalidError(f"data {array.name!r} has no scale {number}; 0 is full detail")
    if not number:
        return array
    if "axes" in call.query or "method" in call.query:
        return of_query(call, array, number)[number]
    return multiscale.level(array, number)


# -- what reads may cost -----------------------------------------------------------------------


class CostlyError(InvalidError):
    """A read would compute more of levels that are not stored than a request may cost."""


class _Bounded(multiscale._Blocks):
    """Blocks of a level, of which no read computes more than a request may cost."""

    def read(self, state: Any, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        self.check(state, [(tuple(lo), tuple(hi))])
        super().read(state, lo, hi, out)

    def read_entries(
        self, entries: list[Any], keys: list[bytes], table: np.ndarray, out: np.ndarray
    ) -> None:
        there = [row for row, state in enumerate(entries) if state is not None]
        if there:
            boxes = _boxes([keys[row] for row in there], table[there], self.spec.block_shape)
            self.check(entries[there[0]], boxes)
        super().read_entries(entries, keys, table, out)

    def check(self, state: Any, boxes: Sequence[Box]) -> None:
        """Refuse to read some boxes if that computes too much."""
        if sum(map(_volume, boxes)) << sum(self.levels.shifts[self.number]) <= MOST_VOXELS:
            return
        left = MOST_VOXELS
        for lo, hi in boxes:
            left -= _work(self.levels, self.number, state.source, lo, hi, left)
            if left < 0:
                raise CostlyError(
                    f"level {self.number} of data {self.levels.spec.name!r} is not stored here, and"
                    f" would be computed of more than {MOST_VOXELS} voxels: store the levels first,"
                    " by diced pyramid or POST diced/pyramid, or ask for less at once"
                )


def _volume(box: Box) -> int:
    return math.prod(b - a for a, b in zip(*box, strict=True))


def _boxes(names: Iterable[bytes], table: np.ndarray, sides: Sequence[int]) -> list[Box]:
    """Return the boxes of a level that rows of a `grid.Cut` are of."""
    corners = grid.block_coords(list(names), len(sides)) * np.array(sides) + table[:, 0]
    ends = corners + table[:, 1]
    return [(tuple(a), tuple(b)) for a, b in zip(corners.tolist(), ends.tolist(), strict=True)]


def _work(
    levels: Levels, number: int, state: State, lo: Sequence[int], hi: Sequence[int], most: int
) -> int:
    """Return of how many voxels, of stored levels or the array, a box of a level is computed.

    Beyond `most` it is any larger number. Blocks that the array lacks count for nothing.
    """
    inside = levels._clip(number, state, lo, hi)
    if inside is None:
        return 0
    level, stored = levels._find(number)
    boxes = [inside]
    if level is not None and stored is not None:
        if is_included(state, stored.included):
            return 0
        boxes = []
        for low, high in grid.pieces(*inside, levels.spec.block_shape):
            cut = grid.Cut(low, high, levels.spec.block_shape, low)
            try:
                stale = levels._stale(number, state, stored, cut)
            except CorruptError:
                stale = set(cut.keys)
            rows = [row for row, key in enumerate(cut.keys) if key in stale]
            if rows:
                names = [cut.keys[row] for row in rows]
                boxes += _boxes(names, cut.table[rows], levels.spec.block_shape)
    total, step = 0, levels.steps[number]
    for low, high in boxes:
        low = tuple(a * f for a, f in zip(low, step, strict=True))
        high = tuple(b * f for b, f in zip(high, step, strict=True))
        below = levels._clip(number - 1, state, low, high)
        if below is None:
            continue
        if number == 1:
            total += _present(levels, state, below, most - total)
        else:
            if levels._find(number - 1)[0] is not None:
                total += _volume(below)
            if total <= most:
                total += _work(levels, number - 1, state, *below, most - total)
        if total > most:
            break
    return total


def _present(levels: Levels, state: State, box: Box, most: int) -> int:
    """Return the voxels of a box of the array, or of the blocks that there may be if those are
    fewer."""
    volume = _volume(box)
    if volume <= most:
        return volume
    sides = levels.spec.block_shape
    ends = [
        [a // n for a, n in zip(box[0], sides, strict=True)],
        [(b - 1) // n for b, n in zip(box[1], sides, strict=True)],
    ]
    first, last = grid.block_keys(np.array(ends, np.int64))
    found = levels.source.lane.scan(state, SPACE, first, last + b"\0")
    limit = most // math.prod(sides) + 1
    return min(volume, math.prod(sides) * sum(1 for _ in itertools.islice(found, limit)))


def bounded(array: Any) -> Snapshot:
    """Return an array or level as it is now, whose reads are refused where they cost too much."""
    found: Snapshot = array.snapshot()
    at: Any = found._blocks
    if isinstance(at, multiscale._Blocks):
        found._blocks = _Bounded(at.levels, at.number, at.spec)  # type: ignore[assignment]
    return found


def check(found: Snapshot, lo: Sequence[int], shape: Sequence[int]) -> None:
    """Refuse what reading a box, in however many parts, would cost too much."""
    at: Any = found._blocks
    if isinstance(at, _Bounded):
        high = tuple(a + n for a, n in zip(lo, shape, strict=True))
        at.check(found._state, [(tuple(lo), high)])
