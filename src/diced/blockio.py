"""Blocks of one array in and out of a lane: reading boxes, and gathering what a commit writes.

Reads are ordered by place, joined when near, and decoded straight into the result. Writes encode
whole blocks at once and keep the pieces of partly covered ones, so that they can be merged again
with whatever another writer did first (invariant I4).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from diced import _blocks, _voxels, grid, pool
from diced import codec as codecs
from diced.errors import CorruptBlockError, CorruptError, InvalidError, UnsupportedError
from diced.home import Home
from diced.log import Entry, Pointer
from diced.segment import BLOCK, FLAG_LOSSY, Frame, frame_header
from diced.spec import ArraySpec, cast
from diced.state import Change, State
from diced.versioned import Lane

SPACE = 0
CONSTANT = b"\x01"  # tag of an inline entry: a block of one value

# Frames nearer than this are fetched by one read; a read is not larger than a cache level.
JOIN_GAP = 64 * 1024
READ_BYTES = 1024 * 1024
WRITE_BYTES = 2 * 1024 * 1024

_scratch = threading.local()


def _buffer(size: int) -> memoryview:
    """Return this thread's read buffer of at least `size` bytes, cut to it."""
    held = getattr(_scratch, "held", None)
    if held is None or len(held) < size:
        held = _scratch.held = memoryview(bytearray(max(size, READ_BYTES)))
    return held[:size]


class Blocks:
    """The blocks of one array at one lane.

    Parameters
    ----------
    home : Home
    lane : Lane
    spec : ArraySpec
    threads : int
    """

    def __init__(self, home: Home, lane: Lane, spec: ArraySpec, threads: int):
        self.home = home
        self.lane = lane
        self.spec = spec
        self.threads = threads

    # -- reading ---------------------------------------------------------------------------

    def read(self, state: State, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        """Fill `out` (shape ``hi - lo``, then channels) with the box ``lo <= voxel < hi``."""
        for low, high in grid.pieces(lo, hi, self.spec.block_shape):
            part = out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, lo, strict=True))]
            cut = grid.Cut(low, high, self.spec.block_shape)
            entries = self.lane.get_many(state, SPACE, cut.keys)
            jobs = []
            for i, entry in enumerate(entries):
                if isinstance(entry, tuple):
                    jobs.append((entry, i))
                else:
                    element = self.spec.fill if entry is None else self._element(entry)
                    _voxels.fill(self._view(part, cut, i), element)
            pool.for_each(partial(self._fetch, cut=cut, part=part), _join(jobs), self.threads)

    def _view(self, part: np.ndarray, cut: grid.Cut, i: int) -> np.ndarray:
        start, count = cut.out[i].tolist(), cut.count[i].tolist()
        return part[tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))]

    def _fetch(self, group: list[tuple[Pointer, int]], cut: grid.Cut, part: np.ndarray) -> None:
        (segment, begin, _), _ = group[0]
        (_, last, length), _ = group[-1]
        buffer = _buffer(last + length - begin)
        try:
            self.home.read_into(segment, begin, buffer)
        except CorruptError as error:
            raise self._corrupt(cut.keys[group[0][1]], group[0][0], error) from error
        for (_, offset, length), i in group:
            data = buffer[offset - begin : offset - begin + length]
            try:
                frame = self._check(Frame(data), cut.keys[i], length)
                self._decode(frame, self._view(part, cut, i), tuple(cut.begin[i].tolist()))
            except CorruptError as error:
                raise self._corrupt(cut.keys[i], (segment, offset, length), error) from error

    def _check(self, frame: Frame, key: bytes, length: int) -> Frame:
        if frame.kind != BLOCK or frame.lane != self.lane.lane_bytes or frame.key != key:
            raise CorruptError("the frame is of another block")
        if frame.size != length or frame.raw != self.spec.block_nbytes:
            raise CorruptError(
                f"the frame holds {frame.raw} bytes in {frame.size};"
                f" wanted {self.spec.block_nbytes} in {length}"
            )
        return frame

    def _decode(self, frame: Frame, out: np.ndarray, start: tuple[int, ...]) -> None:
        spec = self.spec
        shape = spec.block_shape
        if not frame.units:
            self._codec(frame.codec, shape).decode(frame.payload, out, start)
            return
        dims = spec.dims
        split = frame.units.bit_length() - 1
        if split % dims or frame.units != 1 << split:
            raise CorruptError(f"{frame.units} units do not tile a block of {dims} dimensions")
        parts = 1 << split // dims
        if any(size % parts for size in shape):
            raise CorruptError(f"{frame.units} units do not tile a block of shape {shape}")
        unit_shape = tuple(size // parts for size in shape)
        decoder = self._codec(frame.codec, unit_shape)
        for number in range(frame.units):
            place = _unit_place(number, dims)
            origin = [p * s for p, s in zip(place, unit_shape, strict=True)]
            low = [max(o, s) for o, s in zip(origin, start, strict=True)]
            high = [
                min(o + u, s + n)
                for o, u, s, n in zip(origin, unit_shape, start, out.shape, strict=False)
            ]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            window = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            decoder.decode(
                frame.unit(number),
                out[window],
                tuple(a - o for a, o in zip(low, origin, strict=True)),
            )

    def _codec(self, codec_id: int, shape: tuple[int, ...]) -> codecs.Codec:
        spec = self.spec
        try:
            return codecs.decoder(codec_id, spec.codec, spec.dtype, shape, spec.channels)
        except InvalidError as error:
            raise UnsupportedError(
                f"array {spec.name!r}: {error}; is the package that adds it installed?"
            ) from None

    def _element(self, entry: bytes) -> bytes:
        if entry[:1] != CONSTANT or len(entry) != 1 + len(self.spec.fill):
            raise CorruptError(
                f"array {self.spec.name!r}: an inline entry of {len(entry)} bytes is no constant"
            )
        return entry[1:]

    def _corrupt(self, key: bytes, pointer: Pointer, error: CorruptError) -> CorruptBlockError:
        coord = tuple(grid.block_coords([key], self.spec.dims)[0].tolist())
        return CorruptBlockError(
            f"array {self.spec.name!r}, block {coord}, segment {pointer[0]:016x}"
            f" at {pointer[1]}: {error}"
        )

    def load(self, entry: Entry | None, key: bytes, out: np.ndarray) -> None:
        """Fill `out`, a C-contiguous array of a block's full shape, from an entry."""
        if not isinstance(entry, tuple):
            _voxels.fill(out, self.spec.fill if entry is None else self._element(entry))
            return
        try:
            frame = self._check(self.home.read_frame(entry), key, entry[2])
            self._decode(frame, out, (0,) * self.spec.dims)
        except CorruptError as error:
            raise self._corrupt(key, entry, error) from error

    def coords(self, state: State) -> Iterator[tuple[int, ...]]:
        """Yield the coordinates of the blocks present, in key order."""
        for key, _ in self.lane.scan(state, SPACE):
            yield tuple(grid.block_coords([key], self.spec.dims)[0].tolist())


def _join(jobs: list[tuple[Pointer, int]]) -> list[list[tuple[Pointer, int]]]:
    """Group reads that lie near each other in one segment."""
    jobs.sort()
    groups: list[list[tuple[Pointer, int]]] = []
    start = end = 0
    segment = -1
    for job in jobs:
        (where, offset, length), _ = job
        near = where == segment and 0 <= offset - end <= JOIN_GAP
        if near and offset + length - start <= READ_BYTES:
            groups[-1].append(job)
        else:
            groups.append([job])
            segment, start = where, offset
        end = offset + length
    return groups


def _unit_place(number: int, dims: int) -> list[int]:
    """Return the place of a unit from its Morton number; axis 0 takes the highest bits."""
    place = [0] * dims
    bit = 0
    while number >> (bit * dims):
        for axis in range(dims):
            place[axis] |= (number >> (bit * dims + dims - 1 - axis) & 1) << bit
        bit += 1
    return place


class Patch:
    """Part of a block to be overwritten: where in the block, with what, and if it is all of it."""

    __slots__ = ("source", "whole", "window")

    def __init__(self, window: tuple[slice, ...], source: np.ndarray, whole: bool):
        self.window = window
        self.source = source
        self.whole = whole

    def keep(self) -> None:
        """Copy the source, because its owner may change it; a broadcast value stays one."""
        if any(self.source.strides):
            self.source = self.source.copy()
        else:
            first = self.source[(slice(0, 1),) * self.source.ndim].copy()
            self.source = np.broadcast_to(first, self.source.shape)

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
        begins, counts, outs = cut.begin[i].tolist(), cut.count[i].tolist(), cut.out[i].tolist()
        for begin, count, out, step in zip(begins, counts, outs, self.step, strict=True):
            first = -(-out // step)
            skip = first * step - out
            if skip >= count:
                return None
            window.append(slice(begin + skip, begin + count, step))
            taken.append(slice(first, first + -(-(count - skip) // step)))
        whole = self.dense and bool(cut.whole[i])
        return Patch((*window, *self.channel), self.source[tuple(taken)], whole)


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
        self._whole: dict[bytes, Entry] = {}
        self._parts: dict[bytes, list[Patch]] = {}
        self._merged: dict[bytes, Entry] = {}
        self._segments: set[int] = set()

    def assign(self, state: State, todo: Assignment) -> None:
        """Add an assignment. Whole blocks are encoded now, compared with `state`'s."""
        spec = self.blocks.spec
        self.box = grid.union(self.box, (todo.lo, todo.hi))
        broken, self.broken = self.broken, True
        for low, high in grid.pieces(todo.lo, todo.hi, spec.block_shape):
            cut = grid.Cut(low, high, spec.block_shape)
            cut.out = cut.out + (np.array(low) - np.array(todo.lo))
            jobs: list[_Job] = []
            known = self.blocks.lane.get_many(state, SPACE, cut.keys)
            for i, key in enumerate(cut.keys):
                patch = todo.patch(cut, i)
                if patch is None:
                    continue
                if patch.whole:
                    self._parts.pop(key, None)
                    jobs.append(_Job(key, None, [patch], known[i]))
                elif key in self._whole:
                    jobs.append(_Job(key, self._whole[key], [patch], known[i]))
                else:
                    if self.keep:
                        patch.keep()
                    self._parts.setdefault(key, []).append(patch)
            self._encode(jobs, self._whole)
        self.broken = broken

    def prepare(self, state: State, touched: dict[int, set[bytes]] | None) -> Change | None:
        """Merge the pieces with `state` and return the change (a `versioned.Prepare`)."""
        todo = list(self._parts) if touched is None else list(touched.get(SPACE, ()))
        todo = sorted(key for key in todo if key in self._parts)
        lane = self.blocks.lane
        current = lane.get_many(state, SPACE, todo)
        jobs = [
            _Job(key, entry, self._parts[key], entry)
            for key, entry in zip(todo, current, strict=True)
        ]
        self._encode(jobs, self._merged)
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
        return Change({SPACE: delta}, {SPACE: sorted(reads)}, self.box, self._segments)

    def overlay(self, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        """Write what is pending inside a box over `out`, so that a batch reads its own writes."""
        spec = self.blocks.spec
        cut = grid.Cut(lo, hi, spec.block_shape)
        for i, key in enumerate(cut.keys):
            view = self.blocks._view(out, cut, i)
            window = tuple(slice(b, b + n) for b, n in zip(cut.begin[i], cut.count[i], strict=True))
            if key in self._whole:
                block = np.empty(spec.full_block_shape, spec.dtype)
                self.blocks.load(self._whole[key], key, block)
                view[...] = block[window]
            elif key in self._parts:
                block = np.empty(spec.full_block_shape, spec.dtype)
                block[window] = view
                for patch in self._parts[key]:
                    patch.apply(block, spec.dtype, spec.name)
                view[...] = block[window]

    def _encode(self, jobs: list[_Job], into: dict[bytes, Entry]) -> None:
        """Encode blocks on the pool and append their frames in key order."""
        per_group = max(1, WRITE_BYTES // self.blocks.spec.block_nbytes)
        groups = [jobs[i : i + per_group] for i in range(0, len(jobs), per_group)]
        encode = _Encoder(self.blocks).group
        for done in pool.map_ordered(encode, groups, self.blocks.threads):
            chunks = [chunk for _, _, frame in done for chunk in frame]
            if not chunks:
                into.update((key, entry) for key, entry, _ in done)
                continue
            segment, offset = self.blocks.home.writer.append(chunks)
            self._segments.add(segment)
            for key, entry, frame in done:
                if frame:
                    length = sum(len(chunk) for chunk in frame)
                    entry = (segment, offset, length)
                    offset += length
                into[key] = entry


class _Job:
    """One block to encode: patches over a base entry (None with a whole patch: no base)."""

    __slots__ = ("base", "key", "known", "patches")

    def __init__(self, key: bytes, base: Entry | None, patches: list[Patch], known: Entry | None):
        self.key = key
        self.base = base
        self.patches = patches
        self.known = known


class _Encoder:
    """Turns jobs into entries or frames; runs on pool threads."""

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        spec = blocks.spec
        self._codec = codecs.get_codec(spec.codec, spec.dtype, spec.block_shape, spec.channels)
        self._flags = FLAG_LOSSY if self._codec.lossy else 0
        self._what = f"array {spec.name!r}"

    def group(self, jobs: list[_Job]) -> list[tuple[bytes, Entry, tuple[Any, ...]]]:
        """Return (key, entry, ()) where no frame is needed, else (key, b"", frame's chunks)."""
        return [self._one(job) for job in jobs]

    def _one(self, job: _Job) -> tuple[bytes, Entry, tuple[Any, ...]]:
        spec = self._blocks.spec
        source = self._assemble(job)
        element = _voxels.constant(source, spec.channels or 1)
        if element is not None:
            return job.key, CONSTANT + element, ()
        payload = self._codec.encode(source)
        header = frame_header(
            BLOCK,
            self._codec.id,
            self._flags,
            SPACE,
            self._blocks.lane.lane_bytes,
            job.key,
            spec.block_nbytes,
            payload,
        )
        if self._same(job.known, header, payload):
            return job.key, job.known, ()  # type: ignore[return-value]
        return job.key, b"", (header, payload)

    def _assemble(self, job: _Job) -> np.ndarray:
        spec = self._blocks.spec
        if job.patches[-1].whole:
            return cast(job.patches[-1].source, spec.dtype, self._what)
        block = np.empty(spec.full_block_shape, spec.dtype)
        self._blocks.load(job.base, job.key, block)
        for patch in job.patches:
            patch.apply(block, spec.dtype, self._what)
        return block

    def _same(self, known: Entry | None, header: bytes, payload: Any) -> bool:
        """Tell whether the stored frame is byte for byte the new one; lengths decide mostly."""
        if not isinstance(known, tuple) or known[2] != len(header) + len(payload):
            return False
        stored = _buffer(known[2])
        try:
            self._blocks.home.read_into(known[0], known[1], stored)
        except CorruptError:
            return False  # the write mends it
        return stored[: len(header)] == header and stored[len(header) :] == payload
