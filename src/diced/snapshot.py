"""Reading an array as of one state: what an index gives, and an array that stays as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from diced import grid, planes, pool
from diced.blocks import SPACE, Blocks
from diced.described import DescribedVoxels
from diced.errors import InvalidError
from diced.pending import Pending
from diced.spec import ArraySpec
from diced.state import State

# Voxels of the dense boxes that a stepped read goes through.
STEP_VOXELS = 2**22


class Snapshot(DescribedVoxels):
    """An array at one commit: all its reads are of the same moment, whatever is written meanwhile.

    Made by `DicedArray.snapshot`; attributes are named as there.

    Parameters
    ----------
    at : Blocks
    state : State
    """

    def __init__(self, at: Blocks, state: State):
        self._blocks = at
        self._state = state
        self._spec = at.spec

    @property
    def number(self) -> int:
        """Number of the last commit that is seen, of those at this version."""
        return self._state.number

    @property
    def bounds(self) -> tuple[slice, ...] | None:
        """The exact box of everything written, or None."""
        box = self._state.box
        return None if box is None else tuple(slice(a, b) for a, b in zip(*box, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``snapshot[...]``: the size of the extents, channels last."""
        lo, hi = grid.extents(self._state.box, self._spec.block_shape)
        sizes = tuple(b - a for a, b in zip(lo, hi, strict=True))
        return sizes + ((self._spec.channels,) if self._spec.channels is not None else ())

    def blocks(self) -> Iterator[tuple[int, ...]]:
        """Yield the block coordinates of all blocks present, near ones near each other."""
        return self._blocks.coords(self._state)

    def read_blocks(self, coords: Any) -> tuple[np.ndarray, np.ndarray]:
        """Read whole blocks.

        Parameters
        ----------
        coords : array-like of int, shape (n, numdims)
            Block coordinates, in any order.

        Returns
        -------
        present : numpy.ndarray of bool, shape (n,)
            Which of them exist.
        voxels : numpy.ndarray
            Those that do, in order: shape (count, *block shape), channels last.

        Raises
        ------
        CorruptBlockError
        """
        keys, entries = self._entries(coords)
        rows = [row for row, entry in enumerate(entries) if entry is not None]
        stack, table = self._blocks.stack(len(rows))
        if rows:
            self._blocks.read_entries(
                [entries[row] for row in rows], [keys[row] for row in rows], table, stack
            )
        present = np.zeros(len(keys), bool)
        present[rows] = True
        return present, stack.reshape(len(rows), *self._spec.full_block_shape)

    def stored_blocks(self, coords: Any) -> list[tuple[str, Any] | None]:
        """Return blocks as they are stored, where they are so in one piece.

        Parameters
        ----------
        coords : array-like of int, shape (n, numdims)

        Returns
        -------
        list of (str, bytes-like) or None
            Name of the codec, and the payload; None for a block that does not exist, is of one
            value, or is stored in parts.
        """
        keys, entries = self._entries(coords)
        pairs = zip(keys, entries, strict=True)
        return list(pool.map_ordered(self._blocks.payload, pairs, self._blocks.fetchers))

    def _entries(self, coords: Any) -> tuple[list[bytes], list[Any]]:
        table = np.asarray(coords, np.int64).reshape(-1, self._spec.dims)
        keys = grid.block_keys(table)
        names = sorted(set(keys))
        lane = self._blocks.lane
        known = dict(zip(names, lane.get_many(self._state, SPACE, names), strict=True))
        return keys, [known[key] for key in keys]

    def __getitem__(self, index: Any) -> Any:
        return self.read(index)

    def read(self, index: Any = ..., out: np.ndarray | None = None) -> Any:
        """Read a selection; arguments, result and errors as of `DicedArray.read`."""
        return read(self._blocks, self._state, None, index, out)

    def plane(self, origin: Any, u: Any, v: Any, shape: tuple[int, int]) -> np.ndarray:
        """Read a plane at any angle; as `DicedArray.plane`."""
        return planes.read(self._blocks, self._state, None, planes.Plane(origin, u, v, shape))


def read(
    blocks: Blocks, state: State, pending: Pending | None, index: Any, out: np.ndarray | None
) -> Any:
    """Return what an index gives at a state; see `DicedArray.read`.

    Parameters
    ----------
    blocks : Blocks
    state : State
    pending : Pending or None
        What is laid over it.
    index : int, slice, Ellipsis or tuple of them
    out : numpy.ndarray or None
    """
    spec = blocks.spec
    box = state.box if pending is None else grid.union(state.box, pending.box)
    chosen = grid.Selection(index, box, spec.block_shape, spec.name, spec.channels)
    tail = () if spec.channels is None else (spec.channels,)
    if out is not None:
        _check_out(spec, out, chosen, tail)
    direct = out is not None and chosen.channel == slice(None) and not chosen.squeeze
    target = out if direct else _empty(spec, chosen.shape + tail)
    assert target is not None
    if not chosen.empty:
        view = target if chosen.flip is None else target[chosen.flip]
        _fill(blocks, state, pending, chosen, view)
    if direct:
        return out
    result = _select(spec, target, chosen) if chosen.squeeze or tail else target
    if out is not None:
        out[...] = result
        return out
    return result


def _empty(spec: ArraySpec, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty(shape, spec.dtype)
    except ValueError:  # beyond the address space; MemoryError tells of less
        raise InvalidError(
            f"array {spec.name!r}: a result of shape {shape} is beyond any memory"
        ) from None


def _fill(
    blocks: Blocks,
    state: State,
    pending: Pending | None,
    chosen: grid.Selection,
    target: np.ndarray,
) -> None:
    """Fill `target`, of the selection's shape in ascending order."""
    if chosen.dense:
        blocks.read(state, chosen.lo, chosen.hi, target)
        if pending is not None:
            pending.overlay(chosen.lo, chosen.hi, target)
        return
    # Steps: dense boxes of bounded size, of which the wanted voxels are kept.
    spec = blocks.spec
    wide = sum(size > 1 for size in chosen.shape)
    span = max(1, round((STEP_VOXELS // (spec.channels or 1)) ** (1 / max(1, wide))))
    strides = tuple(slice(None, None, step) for step in chosen.step)
    for window, lo, hi in runs(chosen, spec.block_shape, span):
        size = tuple(b - a for a, b in zip(lo, hi, strict=True))
        dense = np.empty(size + target.shape[spec.dims :], spec.dtype)
        blocks.read(state, lo, hi, dense)
        if pending is not None:
            pending.overlay(lo, hi, dense)
        target[window] = dense[strides]


def _select(spec: ArraySpec, target: np.ndarray, chosen: grid.Selection) -> Any:
    """Drop integer axes and choose channels."""
    if spec.channels is None:
        if len(chosen.squeeze) == len(chosen.shape):
            return target[(0,) * len(chosen.shape)]
        return target.reshape(result_shape(chosen, ()))
    picked: list[Any] = [0 if axis in chosen.squeeze else slice(None) for axis in range(spec.dims)]
    return target[(*picked, chosen.channel)]


def _check_out(spec: ArraySpec, out: Any, chosen: grid.Selection, tail: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != spec.dtype:
        found = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise InvalidError(f"array {spec.name!r}: out must be {spec.dtype}; got {found}")
    if not out.flags.writeable:
        raise InvalidError(f"array {spec.name!r}: out is read-only")
    shape = result_shape(chosen, tail)
    if out.shape != shape:
        raise InvalidError(f"array {spec.name!r}: out must have shape {shape}; got {out.shape}")


def result_shape(chosen: grid.Selection, tail: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what a selection gives; `tail` is the channel axis, if any."""
    kept = tuple(n for axis, n in enumerate(chosen.shape) if axis not in chosen.squeeze)
    if not tail or isinstance(chosen.channel, int):
        return kept
    return (*kept, len(range(*chosen.channel.indices(tail[0]))))


def runs(
    chosen: grid.Selection, block_shape: tuple[int, ...], span: int
) -> Iterator[tuple[tuple[slice, ...], tuple[int, ...], tuple[int, ...]]]:
    """Yield the parts of a stepped selection: window in the result, and the box lo, hi."""
    axes = zip(chosen.lo, chosen.shape, chosen.step, block_shape, strict=True)
    for place in itertools.product(*(grid.runs(*axis, span) for axis in axes)):
        parts = list(zip(place, chosen.lo, chosen.step, strict=True))
        yield (
            tuple(slice(first, first + count) for first, count in place),
            tuple(low + first * step for (first, _), low, step in parts),
            tuple(low + (first + count - 1) * step + 1 for (first, count), low, step in parts),
        )
