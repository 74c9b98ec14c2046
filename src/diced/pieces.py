"""Pieces: parts of blocks that a write session keeps in segments until it is published.

A piece is a frame of the space `PIECES` under its block's key: the window in the block, and its
voxels. The byte table is in ``docs/format.md``.
"""

from __future__ import annotations

import bisect
import struct
import threading
from collections import OrderedDict

import numpy as np

from diced import grid, pool
from diced._compress import lz4_compress, lz4_decompress
from diced.blocks import Blocks
from diced.encoding import Patch
from diced.errors import CorruptError
from diced.log import Entry, Pointer
from diced.segment import VALUE, Frame, Frames, frame_header
from diced.spec import cast

PIECES = 254  # space of the frames, and of the pieces that a part lists
RAW, LZ4 = 0, 1

AXIS = struct.Struct("<III")  # of a piece's window: start, count, step
ALIGN = 16  # voxels begin at a multiple of this
NUMBER = struct.Struct(">I")  # of a piece among those of its block and part; ends its key there

# Pieces compressed by one task.
GROUP_BYTES = 2 * 1024 * 1024
# Pieces that lie together in a segment are fetched together, and that much is kept of them.
RUN_BYTES = 1024 * 1024
RUN_GAP = 64 * 1024
KEPT_BYTES = 64 * 1024 * 1024


class Piece(Patch):
    """A piece in a segment, read when it is merged."""

    __slots__ = ("_key", "_pointer", "_store")

    def __init__(self, store: Pieces, key: bytes, pointer: Pointer):
        self._store = store
        self._key = key
        self._pointer = pointer

    def load(self) -> Patch:
        return self._store.load(self._key, self._pointer)


class Pieces:
    """Pieces of blocks in segments, neighbours fetched together, a bounded number of bytes kept.

    Parameters
    ----------
    blocks : Blocks
    pointers : list of Pointer
        Of all pieces that there are.
    """

    def __init__(self, blocks: Blocks, pointers: list[Pointer]):
        self._blocks = blocks
        # Of each segment where its runs begin, and where they end.
        self._runs: dict[int, tuple[list[int], list[int]]] = {}
        for segment, offset, length in sorted(set(pointers)):
            starts, ends = self._runs.setdefault(segment, ([], []))
            if (
                starts
                and offset - ends[-1] <= RUN_GAP
                and offset + length - starts[-1] <= RUN_BYTES
            ):
                ends[-1] = offset + length
            else:
                starts.append(offset)
                ends.append(offset + length)
        self._kept: OrderedDict[tuple[int, int], bytearray] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def load(self, key: bytes, pointer: Pointer) -> Patch:
        """Return a piece with its voxels."""
        segment, offset, length = pointer
        spec = self._blocks.spec
        coord = tuple(grid.block_coords([key], spec.dims)[0].tolist())
        where = f"array {spec.name!r}: a piece of block {coord}, segment {segment:016x} at {offset}"
        starts, ends = self._runs[segment]
        at = bisect.bisect_right(starts, offset) - 1
        begin = offset - starts[at]
        try:
            run = self._fetch(segment, starts[at], ends[at])
            frame = Frame(memoryview(run)[begin : begin + length])
            return _decode(self._blocks, frame, key)
        except CorruptError as error:
            raise CorruptError(f"{where}: {error}") from error

    def _fetch(self, segment: int, start: int, end: int) -> bytearray:
        where = segment, start
        with self._lock:
            run = self._kept.get(where)
            if run is not None:
                self._kept.move_to_end(where)
                return run
        run = bytearray(end - start)
        self._blocks.home.read_into(self._blocks.lane.id, segment, start, memoryview(run))
        with self._lock:
            if where not in self._kept:
                self._size += len(run)
            self._kept[where] = run
            while self._size > KEPT_BYTES and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])
        return run


def store_pieces(
    blocks: Blocks, parts: dict[bytes, list[Patch]], frames: Frames
) -> dict[bytes, Entry]:
    """Append pieces as frames and return the pointers, by block's key and number."""
    found: dict[bytes, Entry] = {}

    def one(group: list[tuple[bytes, Patch]]) -> None:
        chunks: list[bytes] = []
        places: list[tuple[bytes, int]] = []
        for key, patch in group:
            frame = _encode(blocks, key[: -NUMBER.size], patch)
            chunks += frame
            places.append((key, sum(map(len, frame))))
        segment, offset = frames.append(chunks)
        for key, length in places:
            found[key] = segment, offset, length
            offset += length

    every = [
        (key + NUMBER.pack(number), patch)
        for key in sorted(parts)
        for number, patch in enumerate(parts[key])
    ]
    groups: list[list[tuple[bytes, Patch]]] = []
    size = GROUP_BYTES
    for each in every:
        if size >= GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += each[1].source.size * blocks.spec.dtype.itemsize
    pool.for_each(one, groups, blocks.threads)
    return found


def _encode(blocks: Blocks, key: bytes, patch: Patch) -> list[bytes]:
    """Return the frame of a piece: its window, and the voxels in C order."""
    spec = blocks.spec
    source = patch.source
    axes = []
    for axis, (window, size) in enumerate(zip(patch.window, spec.full_block_shape, strict=False)):
        start, stop, step = window.indices(size)
        count = len(range(start, stop, step))
        if step < 0:
            start, step = start + (count - 1) * step, -step
            source = np.flip(source, axis)
        axes.append(AXIS.pack(start, count, step))
    values = np.asarray(cast(source, spec.dtype, f"array {spec.name!r}"))
    head = b"".join(axes)
    voxels = values.astype(spec.dtype.newbyteorder("<"), copy=False).tobytes()
    data = bytes([len(axes)]) + head
    data += bytes(-len(data) % ALIGN) + voxels
    payload, codec = lz4_compress(data), LZ4
    if len(payload) >= len(data):
        payload, codec = data, RAW
    lane = blocks.lane.lane_bytes
    return [frame_header(VALUE, codec, 0, PIECES, lane, key, len(data), payload), payload]


def _decode(blocks: Blocks, frame: Frame, key: bytes) -> Patch:
    spec = blocks.spec
    lane = blocks.lane.lane_bytes
    if (frame.kind, frame.space, frame.lane, frame.key) != (VALUE, PIECES, lane, key):
        raise CorruptError("the frame is of something else")
    most = spec.block_nbytes + ALIGN + AXIS.size * (grid.MAX_DIMS + 1)
    if frame.codec not in (RAW, LZ4) or frame.raw > most:
        raise CorruptError(f"codec {frame.codec} of {frame.raw} bytes")
    data = bytearray(frame.raw)
    if frame.codec == LZ4:
        lz4_decompress(frame.payload, data)
    elif len(frame.payload) == frame.raw:
        data[:] = frame.payload
    else:
        raise CorruptError(f"{len(frame.payload)} bytes, not {frame.raw}")
    count = data[0] if data else 0
    sizes = spec.full_block_shape
    if not spec.dims <= count <= len(sizes) or len(data) < 1 + count * AXIS.size:
        raise CorruptError(f"a window of {count} axes")
    window, shape = [], []
    for axis in range(count):
        start, size, step = AXIS.unpack_from(data, 1 + axis * AXIS.size)
        if not size or not step or start + (size - 1) * step >= sizes[axis]:
            raise CorruptError(f"a window that leaves the block on axis {axis}")
        window.append(slice(start, start + (size - 1) * step + 1, step))
        shape.append(size)
    shape += sizes[count:]
    begin = -(-(1 + count * AXIS.size) // ALIGN) * ALIGN
    wanted = begin + int(np.prod(shape)) * spec.dtype.itemsize
    if len(data) != wanted:
        raise CorruptError(f"{len(data)} bytes, not {wanted}")
    voxels = np.frombuffer(data, spec.dtype.newbyteorder("<"), offset=begin).reshape(shape)
    return Patch(tuple(window), voxels.astype(spec.dtype, copy=False))
