"""Blocks of one commit into entries and frames: whole ones, and ones of which parts are new.

Blocks are encoded a group at a time, gathered, compressed and framed in one region without the GIL
(`_blockwrite`), and appended by the thread that encoded them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from diced import _blockmerge, _blocks, _blockwrite, _voxels, grid, pool
from diced import codec as codecs
from diced.blocks import CONSTANT, SPACE, Blocks, borrow_buffer
from diced.errors import CorruptError
from diced.log import Entry, Pointer
from diced.segment import BLOCK, FLAG_LOSSY, frame_header
from diced.spec import ArraySpec, cast

# Voxels encoded by one task: as many blocks as this holds, and at least so many.
GROUP_BYTES = 2 * 1024 * 1024
GROUP_BLOCKS = 4
# Voxels of blocks that are fetched to be merged, at a time.
MERGE_BYTES = 64 * 1024 * 1024
# The part of a frame that is compared first: it holds the checksums of all of it.
HEAD_BYTES = 128


class Patch:
    """Part of a block to be overwritten: where in the block, and with what."""

    __slots__ = ("source", "window")

    def __init__(self, window: tuple[slice, ...], source: np.ndarray):
        self.window = window
        self.source = source

    def keep(self) -> None:
        """Copy the source, because its owner may change it; a broadcast value stays one."""
        if any(self.source.strides):
            self.source = self.source.copy()
        else:
            first = self.source[(slice(0, 1),) * self.source.ndim].copy()
            self.source = np.broadcast_to(first, self.source.shape)

    def load(self) -> Patch:
        """Return it with its voxels in memory."""
        return self

    def apply(self, block: np.ndarray, dtype: np.dtype[Any], what: str) -> None:
        """Write into a block's array."""
        _blocks.copy(cast(self.source, dtype, what), block[self.window])


class Merge:
    """One block to encode: patches over a base entry; `known` is what is stored."""

    __slots__ = ("base", "key", "known", "patches")

    def __init__(self, key: bytes, base: Entry | None, patches: list[Patch], known: Entry | None):
        self.key = key
        self.base = base
        self.patches = patches
        self.known = known

    def load(self) -> Merge:
        """Return it with all voxels in memory."""
        patches = [each.load() for each in self.patches]
        return Merge(self.key, self.base, patches, self.known)

    def low(self, spec: ArraySpec) -> tuple[int, ...] | None:
        """Return where in the block the new part begins, if it is one dense box of its dtype."""
        patch = self.patches[0]
        plain = (
            len(self.patches) == 1
            and len(patch.window) == spec.dims
            and patch.source.dtype == spec.dtype
            and all(each.step == 1 for each in patch.window)
        )
        return tuple(each.start for each in patch.window) if plain else None


class Encoder:
    """Turns blocks into entries, their frames appended to the active segment.

    Attributes
    ----------
    frames : Frames
    """

    def __init__(self, blocks: Blocks):
        self.frames = blocks.home.frames()
        self._blocks = blocks
        spec = self._spec = blocks.spec
        self._what = f"array {spec.name!r}"
        self._codec = codecs.get_codec(spec.codec, spec.dtype, spec.block_shape, spec.channels)
        self._writer = blocks.writer
        self._group = max(GROUP_BLOCKS, GROUP_BYTES // spec.block_nbytes)
        self._lent: list[np.ndarray] = []

    def boxes(
        self,
        source: np.ndarray,
        cut: grid.Cut,
        rows: list[int],
        known: list[Entry | None],
        into: dict[bytes, Entry],
    ) -> None:
        """Encode whole blocks of a box of values."""

        def one(group: list[int]) -> None:
            stored = [known[i] for i in group]
            if source.dtype == self._spec.dtype:
                into.update(self._encode(source, cut.keys, cut.table, group, stored))
                return
            stack, table = self._blocks.stack(len(group))
            for number, i in enumerate(group):
                self.copy(source, cut.table[i], stack, number)
            keys = [cut.keys[i] for i in group]
            into.update(self._encode(stack, keys, table, range(len(group)), stored))

        self._share(one, rows, self._group)

    def copy(self, source: np.ndarray, row: np.ndarray, stack: np.ndarray, number: int) -> None:
        """Copy the whole block of a table's row out of a box into a stack."""
        window = tuple(slice(a, a + n) for _, n, a in zip(*row.tolist(), strict=True))
        part = cast(source[window], self._spec.dtype, self._what)
        _blocks.copy(part, self._at(stack, number))

    def stacked(
        self,
        late: dict[bytes, tuple[int, Entry | None]],
        stack: np.ndarray,
        table: np.ndarray,
        into: dict[bytes, Entry],
    ) -> None:
        """Encode whole blocks that lie in a stack; `late` tells where each is and what is known."""
        names = list(late)  # in order of place

        def one(group: list[int]) -> None:
            stored = [late[names[place]][1] for place in group]
            into.update(self._encode(stack, names, table[: len(names)], group, stored))

        places = sorted(range(len(names)), key=names.__getitem__)
        self._share(one, places, max(1, -(-len(names) // (2 * self._blocks.threads))))

    def merges(self, merges: list[Merge], into: dict[bytes, Entry]) -> None:
        """Encode blocks of which parts are new."""
        if self._blocks.home.engine.remote:
            self._merges_fetched(merges, into)
            return

        def one(group: list[Merge]) -> None:
            group = self._merge_units([each.load() for each in group], into)
            if not group:
                return
            stack, table = self._blocks.stack(len(group))
            keys = [each.key for each in group]
            self._blocks.read_entries([each.base for each in group], keys, table, stack)
            self._patched(group, keys, stack, table, into, range(len(group)))

        # Each costs a read, too: smaller groups share them better among few threads.
        size = max(1, min(self._group, -(-len(merges) // (2 * self._blocks.threads))))
        self._share(one, merges, size)

    def _merges_fetched(self, merges: list[Merge], into: dict[bytes, Entry]) -> None:
        """The same where reads are requests: many blocks' by few, then all are encoded."""
        most = max(1, MERGE_BYTES // self._spec.block_nbytes)
        for at in range(0, len(merges), most):
            group = [each.load() for each in merges[at : at + most]]
            stack, table = self._blocks.stack(len(group))
            names = [each.key for each in group]
            self._blocks.read_entries([each.base for each in group], names, table, stack)
            work = partial(self._patched, group, names, stack, table, into)
            self._share(work, range(len(group)), self._group)

    def _patched(
        self,
        group: list[Merge],
        names: list[bytes],
        stack: np.ndarray,
        table: np.ndarray,
        into: dict[bytes, Entry],
        rows: Sequence[int],
    ) -> None:
        """Apply patches to some blocks of a stack, and encode these."""
        for row in rows:
            for patch in group[row].patches:
                patch.apply(self._at(stack, row), self._spec.dtype, self._what)
        stored = [group[row].known for row in rows]
        into.update(self._encode(stack, names, table, rows, stored))

    def _merge_units(self, group: list[Merge], into: dict[bytes, Entry]) -> list[Merge]:
        """Write blocks of which only some units need work; return the others."""
        writer, spec = self._writer, self._spec
        if writer is None or self._blocks.units == 1:
            return group
        left = []
        memory = self._lend(writer)
        for each in group:
            low = each.low(spec)
            base = each.base
            size = 0
            if low is not None and isinstance(base, tuple):
                frame = borrow_buffer(base[2])
                try:
                    self._blocks.home.read_into(self._blocks.lane.id, base[0], base[1], frame)
                except CorruptError:
                    pass  # the general way tells which block
                else:
                    part = each.patches[0].source
                    size = _blockmerge.merge(writer, frame, each.key, low, part, memory)
            if size:
                view = memory.data
                into.update(self._append(view, [each.key], [(0, size)], [each.known]))
            else:
                left.append(each)
        self._lent.append(memory)
        return left

    def _lend(self, writer: _blockwrite.Writer) -> np.ndarray:
        """Return memory for frames, for `_lent` to have back."""
        try:
            return self._lent.pop()
        except IndexError:
            room = min(self._group * self._spec.block_nbytes, 2 * GROUP_BYTES)
            return np.empty(writer.most + room, np.uint8)

    def _share(self, work: Callable[[Any], None], items: Sequence[Any], size: int) -> None:
        """Do work on groups of items, on the pool if there are several."""
        if len(items) <= size:
            if items:
                work(items)
            return
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        pool.for_each(work, groups, self._blocks.threads)

    def _at(self, stack: np.ndarray, number: int) -> np.ndarray:
        size = self._spec.block_shape[0]
        return stack[number * size : (number + 1) * size]

    def _encode(
        self,
        source: np.ndarray,
        keys: list[bytes],
        table: np.ndarray,
        rows: Sequence[int],
        known: list[Entry | None],
    ) -> list[tuple[bytes, Entry]]:
        """Return the entries of some rows of a table; `known` is what is stored at each."""
        if self._writer is None:
            return [
                self._encode_alone(source, keys[row], table[row, 2].tolist(), stored)
                for row, stored in zip(rows, known, strict=True)
            ]
        memory = self._lend(self._writer)
        entries: list[tuple[bytes, Entry]] = []
        done = 0
        while done < len(rows):
            found = self._writer.pack(source, keys, table, rows[done:], memory)
            last = done + len(found)
            names = [keys[row] for row in rows[done:last]]
            entries += self._append(memory.data, names, found, known[done:last])
            done = last
        self._lent.append(memory)
        return entries

    def _append(
        self,
        memory: memoryview,
        names: list[bytes],
        found: list[bytes | tuple[int, int]],
        known: list[Entry | None],
    ) -> list[tuple[bytes, Entry]]:
        """Append frames, but those that are stored already, and return entries."""
        entries: list[tuple[bytes, Entry]] = []
        chunks: list[tuple[int, int]] = []  # frames that lie together, start and stop
        fresh: list[tuple[bytes, int]] = []
        for key, made, stored in zip(names, found, known, strict=True):
            if isinstance(made, bytes):
                entries.append((key, CONSTANT + made))
                continue
            start, length = made
            if isinstance(stored, tuple) and self._same(stored, memory[start : start + length]):
                entries.append((key, stored))
                continue
            fresh.append((key, length))
            if chunks and chunks[-1][1] == start:
                chunks[-1] = chunks[-1][0], start + length
            else:
                chunks.append((start, start + length))
        if fresh:
            segment, offset = self.frames.append([memory[a:b] for a, b in chunks])
            for key, length in fresh:
                entries.append((key, (segment, offset, length)))
                offset += length
        return entries

    def _encode_alone(
        self, source: np.ndarray, key: bytes, start: list[int], known: Entry | None
    ) -> tuple[bytes, Entry]:
        """Encode one block by a codec that only Python can call."""
        spec = self._spec
        block = source[tuple(slice(a, a + n) for a, n in zip(start, spec.block_shape, strict=True))]
        element = _voxels.constant(block, spec.channels or 1)
        if element is not None:
            return key, CONSTANT + element
        payload = self._codec.encode(block)
        header = frame_header(
            BLOCK,
            self._codec.id,
            FLAG_LOSSY if self._codec.lossy else 0,
            SPACE,
            self._blocks.lane.lane_bytes,
            key,
            spec.block_nbytes,
            payload,
        )
        frame = memoryview(header + payload)
        ((_, entry),) = self._append(frame, [key], [(0, len(frame))], [known])
        return key, entry

    def _same(self, known: Pointer, frame: memoryview) -> bool:
        """Tell whether the stored frame is byte for byte the new one; its head decides mostly."""
        if known[2] != len(frame) or self._blocks.home.engine.remote:  # a request to save one
            return False
        for size in (min(HEAD_BYTES, len(frame)), len(frame)):
            stored = borrow_buffer(size)
            try:
                self._blocks.home.read_into(self._blocks.lane.id, *known[:2], stored)
            except CorruptError:
                return False  # the write mends it
            if bytes(stored) != bytes(frame[:size]):  # as bytes: views compare item by item
                return False
        return True
