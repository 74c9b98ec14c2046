"""Regions of interest over reads and writes: the query parameters ``roi`` and ``attenuation``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diced.errors import InvalidError, NotFoundError
from diced.server.call import Call

# Voxels of a region that are looked at together.
PIECE_VOXELS = 2**24

Box = tuple[tuple[int, ...], tuple[int, ...]]


class Mask:
    """An ROI over an array of voxels.

    Parameters
    ----------
    roi : RoiArray
    fill : scalar or sequence of one per channel
        What voxels outside read as.
    block_shape : tuple of int
        Of the array.
    shift : int
        Bits by which voxels outside are shifted right instead, if not 0.
    """

    def __init__(self, roi: Any, fill: Any, block_shape: tuple[int, ...], shift: int = 0):
        self._roi = roi
        self._fill = fill
        self._block_shape = block_shape
        self._shift = shift

    def apply(self, lo: Sequence[int], values: np.ndarray) -> None:
        """Change the voxels outside, of the box that begins at `lo`; shape ZYX, then channels."""
        self.hide(values, self.outside(lo, values.shape))

    def outside(self, lo: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """Tell of each voxel of a box whether it is outside."""
        hi = [a + n for a, n in zip(lo, shape, strict=False)]
        found: np.ndarray = ~self._roi.mask(tuple(lo), tuple(hi))
        return found

    def hide(self, values: np.ndarray, outside: np.ndarray) -> None:
        """Change voxels that are outside."""
        if self._shift:
            values[outside] >>= self._shift
        else:
            values[outside] = self._fill

    def boxes(self, lo: Sequence[int], shape: Sequence[int]) -> Iterator[Box]:
        """Yield boxes (lo, shape) that tile what is inside both the ROI and a box."""
        for begin, size in _pieces(lo, shape, self._block_shape):
            end = tuple(a + n for a, n in zip(begin, size, strict=True))
            for low, extent in tiles(self._roi.mask(begin, end)):
                yield tuple(a + b for a, b in zip(begin, low, strict=True)), extent


def _pieces(lo: Sequence[int], shape: Sequence[int], block_shape: Sequence[int]) -> Iterator[Box]:
    """Cut a box along its first axis, at borders of blocks, into pieces of a bounded size."""
    plane = int(np.prod(shape[1:], dtype=np.int64))
    block = block_shape[0]
    thick = max(1, PIECE_VOXELS // (plane * block)) * block
    end = lo[0] + shape[0]
    at = lo[0]
    while at < end:
        stop = min(end, at // thick * thick + thick)
        yield (at, *lo[1:]), (stop - at, *shape[1:])
        at = stop


def tiles(mask: np.ndarray) -> Iterator[Box]:
    """Yield boxes (lo, shape), few if the mask is of blocks, that tile where it is True."""
    cuts = []
    for axis in range(mask.ndim):
        rows = np.moveaxis(mask, axis, 0)
        changes = (rows[1:] != rows[:-1]).reshape(len(rows) - 1, -1).any(axis=1)
        cuts.append([0, *(np.flatnonzero(changes) + 1).tolist(), len(rows)])
    # Between the cuts it is of one value.
    coarse = mask[np.ix_(*(each[:-1] for each in cuts))]
    columns = cuts[-1]
    for place in np.ndindex(coarse.shape[:-1]):
        row = coarse[place].astype(np.int8)
        edges = np.flatnonzero(np.diff(row, prepend=0, append=0)).tolist()
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            begin = [each[i] for each, i in zip(cuts, (*place, first), strict=True)]
            end = [each[i + 1] for each, i in zip(cuts, place, strict=False)] + [columns[last]]
            yield tuple(begin), tuple(b - a for a, b in zip(begin, end, strict=True))


def reading(call: Call, source: Any) -> Mask | None:
    """Return the mask that a call wants to be laid over what it reads, or None.

    Parameters
    ----------
    call : Call
    source : array-like of diced
        What is read.
    """
    shift = call.number("attenuation", 0)
    if not 0 <= shift <= 7 or (shift and call.array.dtype not in ("u1", "i1")):
        raise InvalidError(
            f"attenuation is 1 to 7, of voxels of one byte; got {shift} of {call.array.dtype.name}"
        )
    roi = _roi(call)
    if roi is not None and call.number("scale", 0):
        raise InvalidError("an ROI masks full detail only: 'roi' goes with scale 0")
    return None if roi is None else Mask(roi, source.fill, source.block_shape, shift)


def writing(call: Call) -> Mask | None:
    """Return the mask outside which a call wants nothing to be written, or None."""
    roi = _roi(call)
    return None if roi is None else Mask(roi, call.array.fill, call.array.block_shape)


def _roi(call: Call) -> Any:
    """Return the ROI that a call names: ``name``, or ``name,uuid`` for that of another version."""
    name, comma, uuid = call.query.get("roi", "").partition(",")
    if not name:
        return None
    site = call.site
    repo = site.find_for(call, uuid) if comma else call.repo
    if comma:
        site.access.check_version(call, repo)
    roi, _ = site.find_array(repo, name)
    if roi.kind != "roi":
        raise NotFoundError(f"data {name!r} is no ROI, but of kind {roi.kind!r}")
    if call.array.numdims != 3:
        raise InvalidError(f"an ROI masks 3-D data; {call.array.name!r} has {call.array.numdims}")
    return roi.snapshot()  # an answer or a commit in many pieces is of one state of it
