"""What one level of a pyramid is of the level below it: means, commonest labels, or every other.

Pure: arrays in, arrays out. Every axis is halved or kept; a voxel of the result stands for a box of
1 to 8 voxels whose lower corner is twice its own place on each axis that is halved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from diced import _downsample
from diced.errors import InvalidError

MEAN, MODE, NEAREST = "mean", "mode", "nearest"
METHODS = (MEAN, MODE, NEAREST)
MAX_DIMS = 3


def check_method(method: str, dtype: np.dtype[Any]) -> str:
    """Return a method that is possible for a dtype, or raise InvalidError."""
    if method not in METHODS:
        raise InvalidError(f"a method is one of {', '.join(METHODS)}; got {method!r:.60}")
    if method == MODE and dtype.kind not in "biu":
        raise InvalidError(f"the commonest value is that of integers; the dtype is {dtype.name}")
    return method


def reduce(
    source: np.ndarray, factors: Sequence[int], method: str, channels: int | None = None
) -> np.ndarray:
    """Return `source` with some axes halved.

    Parameters
    ----------
    source : numpy.ndarray
        1 to 3 axes, then that of channels, if any.
    factors : sequence of int
        Per axis without channels, 1 or 2; sizes are multiples of them.
    method : str
        ``mean``: the sum of a box's voxels divided by their number. Integers are rounded to the
        nearest, halves up; floats are summed as doubles, in ZYX order, and equal ones stay as they
        are. ``mode``: the commonest value other than 0, of several the smallest, and 0 only if all
        are. ``nearest``: the voxel of the lower corner.
    channels : int, optional
        Values of a voxel; each channel is reduced by itself.

    Returns
    -------
    numpy.ndarray
        A new array of the same dtype.
    """
    dims = len(factors)
    if not 1 <= dims <= MAX_DIMS or source.ndim != dims + (channels is not None):
        raise InvalidError(
            f"an array of shape {source.shape} cannot be halved on {dims} axes; 1 to {MAX_DIMS}"
        )
    pairs = list(zip(source.shape, factors, strict=False))
    if any(factor not in (1, 2) or size % factor for size, factor in pairs):
        raise InvalidError(f"factors {tuple(factors)} do not divide a shape {source.shape}")
    if method == NEAREST or all(factor == 1 for factor in factors):
        return source[tuple(slice(None, None, factor) for factor in factors)].copy()
    check_method(method, source.dtype)
    shape = tuple(size // factor for size, factor in pairs) + source.shape[dims:]
    if source.dtype == np.float16:  # no type of C's; what it holds is exact as a double
        return reduce(source.astype(np.float64), factors, method, channels).astype(np.float16)
    out = np.empty(shape, source.dtype)
    if not out.size:
        return out
    kind = np.dtype(np.uint8) if source.dtype == bool else source.dtype
    width = channels or 1
    above, below = (
        np.ascontiguousarray(each).view(kind).reshape(_rows(each.shape, dims, width))
        for each in (source, out)
    )
    (_downsample.mode if method == MODE else _downsample.mean)(above, below, width)
    return out


def _rows(shape: tuple[int, ...], dims: int, channels: int) -> tuple[int, ...]:
    planes = (1,) * (MAX_DIMS - dims) + shape[: dims - 1]
    return (*planes, shape[dims - 1] * channels)


def cumulative(steps: Sequence[Sequence[int]], dims: int) -> list[tuple[int, ...]]:
    """Return, per level from 0, how often each axis was halved to get there."""
    shifts = [(0,) * dims]
    for step in steps:
        shifts.append(tuple(s + (f == 2) for s, f in zip(shifts[-1], step, strict=True)))
    return shifts


def plan_steps(voxel_size: Sequence[float], levels: int, axes: Any = None) -> list[tuple[int, ...]]:
    """Return the factors per axis of each level.

    Parameters
    ----------
    voxel_size : sequence of float
    levels : int
    axes : optional
        Axes to halve, as numbers; None: all; ``"isotropic"``: at each level those whose voxels are
        less than twice as long as the shortest, so that long ones wait until others caught up.
    """
    dims = len(voxel_size)
    if axes is not None and not isinstance(axes, str):
        chosen = list(axes) if isinstance(axes, Iterable) else []
        if not chosen or any(type(each) is not int or not 0 <= each < dims for each in chosen):
            raise InvalidError(f"axes to halve are some of 0 to {dims - 1}; got {axes!r:.60}")
        step = tuple(2 if axis in chosen else 1 for axis in range(dims))
        return [step] * levels
    if axes not in (None, "isotropic"):
        raise InvalidError(f"axes are numbers or 'isotropic'; got {axes!r:.60}")
    sizes = [float(each) for each in voxel_size]
    steps = []
    for _ in range(levels):
        near = 2 * min(sizes) * (1 - 1e-9)
        step = tuple(2 if axes is None or size < near else 1 for size in sizes)
        sizes = [size * factor for size, factor in zip(sizes, step, strict=True)]
        steps.append(step)
    return steps


def levels_of(shape: Sequence[int], block_shape: Sequence[int]) -> int:
    """Return how many halvings make a shape one block: the levels that are worth having."""
    return max(
        max(0, math.ceil(math.log2(size / block))) if size > block else 0
        for size, block in zip(shape, block_shape, strict=True)
    )
