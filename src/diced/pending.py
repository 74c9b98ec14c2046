"""What one commit writes: whole blocks, encoded at once, and pieces of others, kept to be merged.

Pieces are merged again with whatever another writer did first (invariant I4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diced import encoding, grid
from diced.blocks import SPACE, Blocks
from diced.encoding import Encoder, Merge, Patch
from diced.log import Entry
from diced.segment import Frames
from diced.state import Change, State

# Larger blocks are encoded at once: a label block is encoded as fast as it would be copied.
LATE_BYTES = 512 * 1024


class Assignment:
    """Voxels to write: a box (or every `step`-th voxel of one) and an array of the same shape.

    `channel` is empty, or the one slice of the channel axis that is written.
    """

    __slots__ = ("channel", "dense", "hi", "lo", "source", "step")

    def __init__(
        self,
        lo: tuple[int, ...],
        hi: tuple[int, ...],
        step: tuple[int, ...],
        source: np.ndarray,
        channel: tuple[slice, ...] = (),
    ):
        self.lo = lo
        self.hi = hi
        self.step = step
        self.source = source
        self.channel = channel
        self.dense = not channel and all(each == 1 for each in step)

    def patch(self, cut: grid.Cut, i: int) -> Patch | None:
        """Return what falls into block `i` of a cut of this box."""
        window, taken = [], []
        for begin, count, out, step in zip(*cut.table[i].tolist(), self.step, strict=True):
            first = -(-out // step)
            skip = first * step - out
            if skip >= count:
                return None
            window.append(slice(begin + skip, begin + count, step))
            taken.append(slice(first, first + -(-(count - skip) // step)))
        return Patch((*window, *self.channel), self.source[tuple(taken)])


class Pending:
    """What one commit will write: finished entries, and pieces of blocks to be merged.

    Parameters
    ----------
    blocks : Blocks
    keep : bool
        Copy the pieces, because the caller may change its arrays before the commit.
    """

    def __init__(self, blocks: Blocks, keep: bool):
        self.blocks = blocks
        self.keep = keep
        self.box: grid.Box | None = None
        self.broken = False  # an assignment failed half-way: nothing of this may be committed
        self._encoder = Encoder(blocks)
        self._whole: dict[bytes, Entry] = {}
        self._parts: dict[bytes, list[Patch]] = {}
        self._merged: dict[bytes, Entry] = {}
        # Whole blocks of a batch's small assignments, copied until there are many to encode.
        self._late: dict[bytes, tuple[int, Entry | None]] = {}  # key: place in the stack, known
        late = keep and blocks.spec.block_nbytes <= LATE_BYTES
        self._room = (
            max(encoding.GROUP_BLOCKS, 2 * encoding.GROUP_BYTES // blocks.spec.block_nbytes)
            if late
            else 0
        )
        self._stack: tuple[np.ndarray, np.ndarray] | None = None

    def assign(self, state: State, todo: Assignment) -> None:
        """Add an assignment. Whole blocks are encoded, compared with `state`'s."""
        spec = self.blocks.spec
        self.box = grid.union(self.box, (todo.lo, todo.hi))
        broken, self.broken = self.broken, True
        for low, high in grid.pieces(todo.lo, todo.hi, spec.block_shape):
            cut = grid.Cut(low, high, spec.block_shape, todo.lo)
            known = self.blocks.lane.get_many(state, SPACE, cut.keys)
            whole, merges = [], []
            for i, key in enumerate(cut.keys):
                if todo.dense and cut.whole[i]:
                    whole.append(i)
                    if self._parts:
                        self._parts.pop(key, None)
                    continue
                patch = todo.patch(cut, i)
                if patch is None:
                    continue
                if key in self._late:
                    self._encode_late()
                if key in self._whole:
                    merges.append(Merge(key, self._whole[key], [patch], known[i]))
                else:
                    if self.keep:
                        patch.keep()
                    self._parts.setdefault(key, []).append(patch)
            if len(whole) < self._room:
                self._keep_late(todo.source, cut, whole, known)
            else:
                self._encode_late()
                self._encoder.boxes(todo.source, cut, whole, known, self._whole)
            self._encoder.merges(merges, self._whole)
        self.broken = broken

    def scatter(self, state: State, patches: dict[bytes, Patch], box: grid.Box) -> None:
        """Add parts of blocks that are no boxes; `box` is around them all."""
        self.box = grid.union(self.box, box)
        broken, self.broken = self.broken, True
        if not self._late.keys().isdisjoint(patches):
            self._encode_late()
        merges = []
        names = sorted(patches)
        known = self.blocks.lane.get_many(state, SPACE, names)
        for key, entry in zip(names, known, strict=True):
            if key in self._whole:
                merges.append(Merge(key, self._whole[key], [patches[key]], entry))
            else:
                self._parts.setdefault(key, []).append(patches[key])
        self._encoder.merges(merges, self._whole)
        self.broken = broken

    def _keep_late(
        self, source: np.ndarray, cut: grid.Cut, rows: list[int], known: list[Entry | None]
    ) -> None:
        """Copy whole blocks, to be encoded with others, side by side on the pool."""
        if self._stack is None and rows:
            self._stack = self.blocks.stack(self._room)
        for i in rows:
            key = cut.keys[i]
            if key not in self._late and len(self._late) == self._room:
                self._encode_late()
            place, _ = self._late.setdefault(key, (len(self._late), known[i]))
            assert self._stack is not None
            self._encoder.copy(source, cut.table[i], self._stack[0], place)

    def _encode_late(self) -> None:
        if self._late:
            assert self._stack is not None
            broken, self.broken = self.broken, True
            late, self._late = self._late, {}
            self._encoder.stacked(late, *self._stack, self._whole)
            self.broken = broken

    def prepare(self, state: State, touched: dict[int, set[bytes]] | None) -> Change | None:
        """Merge the pieces with `state` and return the change (a `versioned.Prepare`)."""
        self._encode_late()
        todo = list(self._parts) if touched is None else list(touched.get(SPACE, ()))
        todo = sorted(key for key in todo if key in self._parts)
        lane = self.blocks.lane
        current = lane.get_many(state, SPACE, todo)
        merges = [
            Merge(key, entry, self._parts[key], entry)
            for key, entry in zip(todo, current, strict=True)
        ]
        self._encoder.merges(merges, self._merged)
        names = sorted({**self._whole, **self._merged})
        delta: dict[bytes, Entry | None] = {}
        reads = set(self._merged)
        for key, entry in zip(names, lane.get_many(state, SPACE, names), strict=True):
            wanted = self._merged.get(key) or self._whole[key]
            if wanted == entry:
                reads.add(key)  # unchanged, as long as nobody else changes it
            else:
                delta[key] = wanted
        if not delta and grid.union(state.box, self.box) == state.box:
            return None
        return Change({SPACE: delta}, {SPACE: sorted(reads)}, self.box, self._encoder.frames)

    def finish(self) -> tuple[dict[bytes, Entry], dict[bytes, list[Patch]], Frames]:
        """Return the whole blocks, the pieces of others, and what holds the former's frames."""
        self._encode_late()
        return self._whole, self._parts, self._encoder.frames

    def take(
        self,
        state: State,
        whole: dict[bytes, Entry],
        parts: dict[bytes, list[Patch]],
        box: grid.Box | None,
    ) -> None:
        """Add what others have written: stored blocks, and pieces that go over what is there."""
        self.box = grid.union(self.box, box)
        self._whole.update(whole)
        over = sorted(key for key in parts if key in whole)
        known = self.blocks.lane.get_many(state, SPACE, over)
        merges = [
            Merge(key, whole[key], parts[key], stored)
            for key, stored in zip(over, known, strict=True)
        ]
        self._encoder.merges(merges, self._whole)
        self._parts.update({key: each for key, each in parts.items() if key not in whole})

    def discard(self) -> None:
        """Let go of everything: this will never be committed."""
        self._encoder.frames.discard()

    def overlay(self, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        """Write what is pending inside a box over `out`, so that a batch reads its own writes."""
        self._encode_late()
        spec = self.blocks.spec
        cut = grid.Cut(lo, hi, spec.block_shape)
        for i, key in enumerate(cut.keys):
            if key not in self._whole and key not in self._parts:
                continue
            begin, count, start = cut.table[i].tolist()
            view = out[tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))]
            window = tuple(slice(a, a + n) for a, n in zip(begin, count, strict=True))
            block = np.empty(spec.full_block_shape, spec.dtype)
            if key in self._whole:
                self.blocks.load(self._whole[key], key, block)
            else:
                block[window] = view
                for patch in self._parts[key]:
                    patch.apply(block, spec.dtype, spec.name)
            view[...] = block[window]
