"""Blocks of one array out of a lane: reading boxes.

Reads are ordered by place and decoded straight into the result, a batch of blocks at a time in one
region without the GIL (`_blockread`). What the batch leaves, because it is damaged or only Python
can decode it, is read here one block at a time, and is named in the error.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import numpy as np

from diced import _blockdecode, _blockread, _blocks, _blockwrite, _voxels, grid, pool
from diced import codec as codecs
from diced.blockcache import BlockCache, CachedBlock
from diced.engine.base import Descriptor
from diced.errors import (
    CorruptBlockError,
    CorruptError,
    EngineError,
    InvalidError,
    UnsupportedError,
)
from diced.home import Home
from diced.log import Entry, Pointer
from diced.segment import BLOCK, Frame
from diced.spec import ArraySpec
from diced.state import State
from diced.versioned import Lane

SPACE = 0
CONSTANT = b"\x01"  # tag of an inline entry: a block of one value

# Where bytes are fetched, not read from open files: frames nearer than this come by one request,
# and a request is not larger than a cache level.
JOIN_GAP = 64 * 1024
READ_BYTES = 1024 * 1024
# The same where a request takes tens of milliseconds, in which a connection carries megabytes.
REMOTE_GAP = 512 * 1024
REMOTE_BYTES = 8 * 1024 * 1024
# A thread keeps a buffer of at most this size.
KEPT_BYTES = 4 * 1024 * 1024
# A batch of fewer blocks, or into a smaller result, stays on the caller's own thread.
PARALLEL_BLOCKS = 8
PARALLEL_BYTES = 512 * 1024
# From this size on a result is written past the caches.
STREAM_BYTES = 32 * 1024 * 1024
# Blocks for the cache are decoded in groups of this size, from open files or fetched.
KEEP_BYTES = 256 * 1024
FETCH_KEEP_BYTES = 4 * READ_BYTES
# Larger parts of label blocks are decoded as fast as they would be copied from memory.
LABEL_PART_BYTES = 256 * 1024
# Segments held open by one batch.
OPEN_AT_ONCE = 64

_scratch = threading.local()


def borrow_buffer(size: int) -> memoryview:
    """Return this thread's read buffer of at least `size` bytes, cut to it."""
    held = getattr(_scratch, "held", None)
    if held is None or len(held) < size:
        held = memoryview(bytearray(max(size, READ_BYTES)))
        if len(held) <= KEPT_BYTES:
            _scratch.held = held
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
        remote = home.engine.remote
        self.fetchers = pool.LIMIT if remote else threads  # threads that mostly wait
        self._join = (REMOTE_GAP, REMOTE_BYTES) if remote else (JOIN_GAP, READ_BYTES)
        self.units = codecs.units(spec.codec, spec.block_nbytes, spec.block_shape)
        self._reader = _blockdecode.Reader(
            lane.lane_bytes,
            spec.dtype.itemsize,
            spec.block_shape,
            spec.channels,
            spec.fill,
            self.units if self.units > 1 else 0,
        )
        cache = home.block_cache
        self._share = 0 if cache is None else cache.share(spec.block_nbytes)
        # None also if a single block would take more than its share.
        self._cache = cache if self._share else None
        self._part_bytes = spec.block_nbytes
        if spec.codec.startswith("label"):
            self._part_bytes = min(spec.block_nbytes, LABEL_PART_BYTES)

    @cached_property
    def writer(self) -> _blockwrite.Writer | None:
        """What encodes blocks of this array; None if only Python code can."""
        spec = self.spec
        made = codecs.get_codec(spec.codec, spec.dtype, spec.block_shape, spec.channels)
        if made.id not in codecs.IN_KERNELS:
            return None
        writer = _blockwrite.Writer(
            self.lane.lane_bytes,
            spec.dtype.itemsize,
            spec.block_shape,
            spec.channels,
            made.id,
            int(made.spec.partition(":")[2] or 0),
            self.units,
        )
        return writer if writer.able else None

    def read(self, state: State, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        """Fill `out` (shape ``hi - lo``, then channels) with the box ``lo <= voxel < hi``."""
        stream = out.nbytes >= STREAM_BYTES
        share = self._share
        for low, high in grid.pieces(lo, hi, self.spec.block_shape):
            cut = grid.Cut(low, high, self.spec.block_shape, lo)
            entries = self.lane.get_many(state, SPACE, cut.keys)
            if self._cache is None:
                self.read_entries(entries, cut.keys, cut.table, out, stream)
            else:
                share = self._read_cached(self._cache, entries, cut, out, stream, share)

    def _read_cached(
        self,
        cache: BlockCache,
        entries: list[Entry | None],
        cut: grid.Cut,
        out: np.ndarray,
        stream: bool,
        share: int,
    ) -> int:
        """Read a cut by way of the cache; return what is left of the read's share of it.

        The share counts every block that is met in part, found or not: a read of more blocks than
        that keeps, again and again, the same ones. A block that is read whole is not kept.
        """
        nbytes = self.spec.block_nbytes
        most = min(self._part_bytes, nbytes - stream)  # a bulk read need not look for whole blocks
        large = None
        if most < nbytes and out.nbytes > most:
            element = nbytes // math.prod(self.spec.block_shape)
            large = (cut.table[:, 1].prod(axis=1) * element > most).tolist()
        lane = self.lane.lane_bytes
        found: list[tuple[int, np.ndarray]] = []
        missing: list[int] = []
        rest: list[int] = []
        for row, entry in enumerate(entries):
            if not isinstance(entry, tuple) or (large and large[row]):
                rest.append(row)
                continue
            voxels = cache.find(entry, lane, cut.keys[row])
            partly = share > 0 and not cut.whole[row]
            share -= partly
            if voxels is not None:
                found.append((row, voxels))
            elif partly:
                missing.append(row)
            else:
                rest.append(row)
        # By one thread: memory is what it waits for, and a second one gained nothing.
        _copy_parts(cut.table, out, found)
        if missing:
            rest += self._keep(cache, entries, cut, missing, out)
        if len(rest) == len(entries):
            self.read_entries(entries, cut.keys, cut.table, out, stream)
        elif rest:
            keys = [cut.keys[row] for row in rest]
            self.read_entries([entries[row] for row in rest], keys, cut.table[rest], out, stream)
        return share

    def _keep(
        self,
        cache: BlockCache,
        entries: list[Entry | None],
        cut: grid.Cut,
        rows: list[int],
        out: np.ndarray,
    ) -> list[int]:
        """Decode whole blocks, keep them, copy the parts; return rows that are to be read directly.

        Those are of damaged blocks: the part that is wanted may be sound.
        """
        nbytes = self.spec.block_nbytes
        size = self.spec.block_shape[0]
        damaged: list[int] = []

        def one(group: list[int]) -> None:
            stack, table = self.stack(len(group))
            keys = [cut.keys[row] for row in group]
            try:
                self.read_entries([entries[row] for row in group], keys, table, stack)
            except CorruptError:
                if len(group) == 1:
                    damaged.append(group[0])
                else:
                    for row in group:
                        one([row])
                return
            for number, row in enumerate(group):
                block = stack
                if len(group) > 1:  # each in memory of its own, or one would hold all
                    block = stack[number * size : (number + 1) * size].copy()
                cache.put(entries[row], CachedBlock(self.lane.lane_bytes, cut.keys[row], block))
                _copy_parts(cut.table, out, [(row, block)])

        group = (KEEP_BYTES if self.home.engine.descriptors else FETCH_KEEP_BYTES) // nbytes or 1
        rows = sorted(rows, key=entries.__getitem__)  # type: ignore[arg-type]
        groups = [rows[i : i + group] for i in range(0, len(rows), group)]
        threads = self.threads if len(rows) * nbytes > PARALLEL_BYTES else 1
        pool.for_each(one, groups, threads)
        return damaged

    def stack(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return room for whole blocks, one behind the other on axis 0, and its table."""
        shape = self.spec.full_block_shape
        table = np.zeros((count, 3, self.spec.dims), np.int64)
        table[:, 1] = self.spec.block_shape
        table[:, 2, 0] = np.arange(count) * shape[0]
        return np.empty((count * shape[0], *shape[1:]), self.spec.dtype), table

    def read_entries(
        self,
        entries: list[Entry | None],
        keys: list[bytes],
        table: np.ndarray,
        out: np.ndarray,
        stream: bool = False,
    ) -> None:
        """Fill windows of `out` with parts of blocks; `table` as of `grid.Cut`."""
        batch = _blockread.Batch(self._reader, entries, keys, table, out, CONSTANT, stream)
        threads = 1
        if len(keys) > PARALLEL_BLOCKS or out.nbytes > PARALLEL_BYTES:
            threads = min(self.threads, len(keys))
        try:
            if self.home.engine.descriptors:
                self._run_files(batch, threads)
            else:
                self._run_fetched(batch)
            failed: Sequence[int] = batch.failed
        except CorruptError:
            failed = range(len(keys))  # one of them
        for row in failed:
            begin, count, start = table[row].tolist()
            window = tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))
            self._read_alone(entries[row], keys[row], out[window], tuple(begin))

    def _run_files(self, batch: _blockread.Batch, threads: int) -> None:
        """Read from open files."""
        segments = batch.segments
        for at in range(0, max(1, len(segments)), OPEN_AT_ONCE):
            group = segments[at : at + OPEN_AT_ONCE]
            held: list[Descriptor] = []
            try:
                for segment, first, last in group:
                    try:
                        handle = self.home.borrow(segment)
                    except EngineError:
                        if not held:
                            raise
                        break  # perhaps too many open files: the rest is read block by block
                    if handle is not None:
                        held.append(handle)
                        batch.open(first, last, handle.fd)
                first = group[0][1] if group else 0
                batch.start(first, group[-1][2] if at + OPEN_AT_ONCE < len(segments) else -1)
                if threads == 1:
                    batch.run()
                else:
                    pool.for_each(batch.run, range(threads), threads)
            finally:
                for handle in held:
                    self.home.engine.give_back(handle)

    def _run_fetched(self, batch: _blockread.Batch) -> None:
        """Fetch ranges of objects, and decode from memory."""
        groups = []
        fetched = 0
        for segment, first, last in batch.segments:
            groups += [
                (segment, *each) for each in _join(batch.spans(first, last), first, *self._join)
            ]
            fetched = last
        batch.start(fetched, -1)
        batch.run()
        pool.for_each(partial(self._fetch, batch), groups, self.fetchers)

    def _fetch(self, batch: _blockread.Batch, group: tuple[int, int, int, int, int]) -> None:
        segment, first, last, begin, end = group
        buffer = borrow_buffer(end - begin)
        try:
            self.home.read_into(self.lane.id, segment, begin, buffer)
        except CorruptError:
            buffer = buffer[:0]  # each block is then tried, and named, alone
        batch.run_memory(first, last, buffer, begin)

    def _read_alone(
        self, entry: Entry | None, key: bytes, out: np.ndarray, start: tuple[int, ...]
    ) -> None:
        """Fill a window of one block that begins at `start` inside it."""
        if not isinstance(entry, tuple):
            _voxels.fill(out, self.spec.fill if entry is None else self._element(entry))
            return
        try:
            frame = self._check(self.home.read_frame(self.lane.id, entry), key, entry[2])
            self._decode(frame, out, start)
        except CorruptError as error:
            raise self._corrupt(key, entry, error) from error

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
        """Fill `out`, an array of a block's full shape, from an entry."""
        self._read_alone(entry, key, out, (0,) * self.spec.dims)

    def payload(self, block: tuple[bytes, Entry | None]) -> tuple[str, memoryview] | None:
        """Return the codec and the payload of a key's entry if it is one piece, else None."""
        key, entry = block
        if not isinstance(entry, tuple):
            return None
        try:
            frame = self._check(self.home.read_frame(self.lane.id, entry), key, entry[2])
        except CorruptError as error:
            raise self._corrupt(key, entry, error) from error
        if frame.units:
            return None
        return self._codec(frame.codec, self.spec.block_shape).spec, memoryview(frame.payload)

    def coords(self, state: State) -> Iterator[tuple[int, ...]]:
        """Yield the coordinates of the blocks present, in key order."""
        for key, _ in self.lane.scan(state, SPACE):
            yield tuple(grid.block_coords([key], self.spec.dims)[0].tolist())


def _copy_parts(table: np.ndarray, out: np.ndarray, found: list[tuple[int, np.ndarray]]) -> None:
    """Copy into the result what rows of a table say of whole blocks."""
    for row, block in found:
        begin, count, start = table[row].tolist()
        _blocks.copy(
            block[tuple(slice(a, a + n) for a, n in zip(begin, count, strict=True))],
            out[tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))],
        )


def _join(
    spans: list[tuple[int, int, int]], first: int, gap: int, most: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first job, one past the last, begin, end) of frames that lie near each other."""
    start = begin = end = 0
    for at, (_, offset, length) in enumerate(spans):
        if at and offset - end <= gap and offset + length - begin <= most:
            end = max(end, offset + length)
            continue
        if at:
            yield first + start, first + at, begin, end
        start, begin, end = at, offset, offset + length
    if spans:
        yield first + start, first + len(spans), begin, end


def _unit_place(number: int, dims: int) -> list[int]:
    """Return the place of a unit from its Morton number; axis 0 takes the highest bits."""
    place = [0] * dims
    bit = 0
    while number >> (bit * dims):
        for axis in range(dims):
            place[axis] |= (number >> (bit * dims + dims - 1 - axis) & 1) << bit
        bit += 1
    return place
