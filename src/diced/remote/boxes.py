"""Boxes of voxels that become requests: cutting them, and laying assignments over them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from diced.grid import Box, Coordinates
from diced.pending import Assignment


def cut(
    lo: Sequence[int], hi: Sequence[int], block_shape: Sequence[int], itemsize: int, most: int
) -> Iterator[Box]:
    """Cut a box at borders of blocks into boxes of at most `most` bytes, or of one block.

    The first axis is cut first, so that a piece is one run of memory if that is enough.
    """
    lo, hi = tuple(lo), tuple(hi)
    if math.prod(b - a for a, b in zip(lo, hi, strict=True)) * itemsize > most:
        for axis, block in enumerate(block_shape):
            first, last = lo[axis] // block, (hi[axis] - 1) // block
            if first < last:
                middle = (first + (last - first + 1) // 2) * block
                for low, high in (
                    (lo, (*hi[:axis], middle, *hi[axis + 1 :])),
                    ((*lo[:axis], middle, *lo[axis + 1 :]), hi),
                ):
                    yield from cut(low, high, block_shape, itemsize, most)
                return
    yield lo, hi


def shells(
    lo: Coordinates, hi: Coordinates, first: Coordinates, last: Coordinates, block: Coordinates
) -> Iterator[Box]:
    """Cut whole blocks into those that a box covers, and those at its border, by sides.

    Parameters
    ----------
    lo, hi : tuple of int
        The whole blocks around the box.
    first, last : tuple of int
        The box.
    block : tuple of int
        Shape of a block.
    """
    for axis, (a, b, n) in enumerate(zip(first, last, block, strict=True)):
        inner, outer = -(-a // n) * n, b // n * n
        if inner >= outer:
            break
        if lo[axis] < inner:
            yield lo, (*hi[:axis], inner, *hi[axis + 1 :])
            lo = (*lo[:axis], inner, *lo[axis + 1 :])
        if outer < hi[axis]:
            yield (*lo[:axis], outer, *lo[axis + 1 :]), hi
            hi = (*hi[:axis], outer, *hi[axis + 1 :])
    yield lo, hi


def meet(a: Box, b: Box) -> Box | None:
    """Return what two boxes have in common."""
    lo = tuple(map(max, a[0], b[0]))
    hi = tuple(map(min, a[1], b[1]))
    return (lo, hi) if all(p < q for p, q in zip(lo, hi, strict=True)) else None


def lay(todo: Assignment, box: Box, out: np.ndarray) -> None:
    """Write what an assignment has inside a box over `out`, an array of that box."""
    places: list[slice] = []
    taken: list[slice] = []
    for low, high, step, a, b in zip(todo.lo, todo.hi, todo.step, *box, strict=True):
        first = max(0, -(-(a - low) // step))
        last = (min(b, high) - 1 - low) // step
        if last < first:
            return
        begin = low + first * step - a
        places.append(slice(begin, begin + (last - first) * step + 1, step))
        taken.append(slice(first, last + 1))
    out[(*places, *todo.channel)] = todo.source[tuple(taken)]


def values_of(todo: Assignment, box: Box, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the values of a dense assignment inside a box, one run of memory."""
    return np.ascontiguousarray(todo.source[window(box, todo.lo)], dtype)


def window(box: Box, origin: Iterable[int]) -> tuple[slice, ...]:
    """Return a box as slices, counted from an origin."""
    return tuple(slice(a - o, b - o) for a, b, o in zip(*box, origin, strict=True))
