"""What one commit writes: whole blocks, encoded at once, and pieces of others, kept to be merged.

Pieces are merged again with whatever another writer did first (invariant I4). Blocks are encoded a
group at a time, gathered, compressed and framed in one region without the GIL (`_blockwrite`), and
appended by the thread that encoded them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diced import _blockmerge, _blocks, _blockwrite, _voxels, grid, pool
from diced import codec as codecs
from diced.blocks import CONSTANT, SPACE, Blocks, borrow_buffer
from diced.errors import CorruptError
from diced.log import Entry, Pointer
from diced.segment import BLOCK, FLAG_LOSSY, Frames, frame_header
from diced.spec import ArraySpec, cast
from diced.state import Change, State

# Voxels encoded by one task: as many blocks as this holds, and at least so many.
GROUP_BYTES = 2 * 1024 * 1024
GROUP_BLOCKS = 4
# Larger blocks are encoded at once: a label block is encoded as fast as it would be copied.
LATE_BYTES = 512 * 1024
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
        self._encoder = _Encoder(blocks)
        self._whole: dict[bytes, Entry] = {}
        self._parts: dict[bytes, list[Patch]] = {}
        self._merged: dict[bytes, Entry] = {}
        # Whole blocks of a batch's small assignments, copied until there are many to encode.
        self._late: dict[bytes, tuple[int, Entry | None]] = {}  # key: place in the stack, known
        late = keep and blocks.spec.block_nbytes <= LATE_BYTES
        self._room = max(GROUP_BLOCKS, 2 * GROUP_BYTES // blocks.spec.block_nbytes) if late else 0
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
                    merges.append(_Merge(key, self._whole[key], [patch], known[i]))
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
            _Merge(key, entry, self._parts[key], entry)
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
            _Merge(key, whole[key], parts[key], stored)
            for key, stored in zip(over, known, strict=True)
        ]
        self._encoder.merges(merges, self._whole)
        self._parts.update({key: each for key, each in parts.items() if key not in whole})

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


class _Merge:
    """One block to encode: patches over a base entry; `known` is what is stored."""

    __slots__ = ("base", "key", "known", "patches")

    def __init__(self, key: bytes, base: Entry | None, patches: list[Patch], known: Entry | None):
        self.key = key
        self.base = base
        self.patches = patches
        self.known = known

    def load(self) -> _Merge:
        """Return it with all voxels in memory."""
        patches = [each.load() for each in self.patches]
        return _Merge(self.key, self.base, patches, self.known)

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


class _Encoder:
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

    def merges(self, merges: list[_Merge], into: dict[bytes, Entry]) -> None:
        """Encode blocks of which parts are new."""

        def one(group: list[_Merge]) -> None:
            group = self._merge_units([each.load() for each in group], into)
            if not group:
                return
            stack, table = self._blocks.stack(len(group))
            keys = [each.key for each in group]
            self._blocks.read_entries([each.base for each in group], keys, table, stack)
            for number, each in enumerate(group):
                block = self._at(stack, number)
                for patch in each.patches:
                    patch.apply(block, self._spec.dtype, self._what)
            stored = [each.known for each in group]
            into.update(self._encode(stack, keys, table, range(len(group)), stored))

        # Each costs a read, too: smaller groups share them better among few threads.
        threads = self._blocks.fetchers
        size = max(1, min(self._group, -(-len(merges) // (2 * threads))))
        self._share(one, merges, size, threads)

    def _merge_units(self, group: list[_Merge], into: dict[bytes, Entry]) -> list[_Merge]:
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

    def _share(
        self, work: Callable[[list[Any]], None], items: list[Any], size: int, threads: int = 0
    ) -> None:
        """Do work on groups of items, on the pool if there are several."""
        if len(items) <= size:
            if items:
                work(items)
            return
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        pool.for_each(work, groups, threads or self._blocks.threads)

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
