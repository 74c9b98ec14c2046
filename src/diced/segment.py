"""Frames, the self-describing checksummed unit of data, and the segments they are appended to.

A frame names its lane, space and key, so a misdirected read is noticed and an index can be rebuilt
from segments alone. The byte table is in ``docs/format.md``.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from diced import keys
from diced._crc32c import crc32c
from diced.engine.appender import Appender
from diced.engine.base import Engine
from diced.errors import CorruptError, EngineError, InvalidError

# magic, kind, codec, flags, space, lane, raw length, stored length, key length, units, payload crc
HEADER = struct.Struct("<4sBBBB8sIIHHI")
CHECK = struct.Struct("<I")
UNIT = struct.Struct("<II")
MAGIC = b"dFr1"

BLOCK, VALUE, COMMIT = 1, 2, 3
KINDS = {BLOCK, VALUE, COMMIT}
FLAG_LOSSY = 1
KNOWN_FLAGS = FLAG_LOSSY

MAX_KEY = 4096
MAX_PAYLOAD = 2**31 - 1
ROLL_BYTES = 2**30
MAX_UNSYNCED = 8

Pointer = tuple[int, int, int]


class Frame:
    """A frame that was read and verified.

    Attributes
    ----------
    kind, codec, flags, space : int
    lane : bytes
    key : bytes
    raw : int
        Length of the decoded payload in bytes.
    units : int
        0, or the number of independently decodable parts of the payload.
    payload : memoryview
    size : int
        Bytes of the whole frame.
    """

    __slots__ = (
        "codec", "flags", "key", "kind", "lane", "payload", "raw", "size", "space", "units",
    )  # fmt: skip

    def __init__(self, buffer: memoryview, verify_payload: bool = True):
        least = HEADER.size + CHECK.size
        if len(buffer) < least:
            raise CorruptError(f"a frame has at least {least} bytes; got {len(buffer)}")
        (magic, self.kind, self.codec, self.flags, self.space, self.lane, self.raw, stored,
         key_length, self.units, payload_crc) = HEADER.unpack_from(buffer)  # fmt: skip
        if magic != MAGIC:
            raise CorruptError(f"no frame here: magic is {bytes(magic)!r}, not {MAGIC!r}")
        body = HEADER.size + key_length
        self.size = body + CHECK.size + stored
        if key_length > MAX_KEY or self.size > len(buffer):
            raise CorruptError(f"a frame of {self.size} bytes in a read of {len(buffer)}")
        if crc32c(buffer[:body]) != CHECK.unpack_from(buffer, body)[0]:
            raise CorruptError("a frame's header does not match its checksum")
        if self.kind not in KINDS or self.flags & ~KNOWN_FLAGS:
            raise CorruptError(f"unknown frame kind {self.kind} or flags {self.flags:#x}")
        self.key = bytes(buffer[HEADER.size : body])
        self.payload = buffer[body + CHECK.size : self.size]
        # With units the frame's checksum covers their table, and each unit carries its own.
        covered = self.payload[: self.units * UNIT.size] if self.units else self.payload
        if self.units * UNIT.size > stored:
            raise CorruptError(f"{self.units} units in a payload of {stored} bytes")
        if verify_payload and crc32c(covered) != payload_crc:
            raise CorruptError("a frame's payload does not match its checksum")

    def unit(self, number: int) -> memoryview:
        """Return the verified bytes of one unit."""
        end, check = UNIT.unpack_from(self.payload, number * UNIT.size)
        start = (
            UNIT.unpack_from(self.payload, (number - 1) * UNIT.size)[0]
            if number
            else self.units * UNIT.size
        )
        if not self.units * UNIT.size <= start <= end <= len(self.payload):
            raise CorruptError(f"unit {number} ends at {end} of a payload of {len(self.payload)}")
        data = self.payload[start:end]
        if crc32c(data) != check:
            raise CorruptError(f"unit {number} does not match its checksum")
        return data


def frame_header(
    kind: int, codec: int, flags: int, space: int, lane: bytes, key: bytes, raw: int, payload: Any
) -> bytes:
    """Return the bytes that precede `payload` in its frame."""
    if len(key) > MAX_KEY:
        raise InvalidError(f"a key has at most {MAX_KEY} bytes; got {len(key)}")
    stored = len(payload)
    if stored > MAX_PAYLOAD or raw > MAX_PAYLOAD:
        raise InvalidError(f"a value has at most {MAX_PAYLOAD} bytes; got {max(stored, raw)}")
    head = (
        HEADER.pack(
            MAGIC, kind, codec, flags, space, lane, raw, stored, len(key), 0, crc32c(payload)
        )
        + key
    )
    return head + CHECK.pack(crc32c(head))


def scan_frames(engine: Engine, key: str) -> Iterator[tuple[int, Frame]]:
    """Yield (offset, frame) of a segment's readable frames, skipping damage.

    After damage the next magic is searched, so that one bad frame does not hide its successors.
    """
    data = memoryview(engine.get(key))
    raw = data.obj if isinstance(data.obj, bytes) else bytes(data)
    offset = 0
    while offset < len(data):
        try:
            frame = Frame(data[offset:])
        except CorruptError:
            offset = raw.find(MAGIC, offset + 1)
            if offset < 0:
                return
            continue
        yield offset, frame
        offset += frame.size


class SegmentWriter:
    """The one active segment of this process in a home. Thread-safe.

    A segment whose write or sync failed is abandoned, never synced again: the kernel may have
    dropped the pages that it failed to write. The commits that were in it fail, unacknowledged,
    and the next append begins a new segment.
    """

    def __init__(self, engine: Engine, home: str):
        self._engine = engine
        self._prefix = keys.segments(home)
        self._lock = threading.Lock()
        self._active: Appender | None = None
        self._unsynced: dict[int, Appender] = {}
        self._synced: set[int] = set()

    def append(self, chunks: Sequence[Any]) -> tuple[int, int]:
        """Append buffers end to end; return (segment id, offset of the first byte)."""
        while True:
            appender = self._current()
            try:
                return keys.object_id(appender.key), appender.append(chunks)
            except EngineError:
                if appender.failed or not appender.finished:
                    raise
            # Retired since it was looked up.

    def sync(self, segments: Collection[int]) -> None:
        """Make what was appended to these segments durable."""
        for each in sorted(segments):
            with self._lock:
                appender = self._unsynced.get(each)
                if each in self._synced:
                    continue
            if appender is None:
                raise EngineError(f"segment {each:016x} failed or is not of this process")
            try:
                appender.sync()
            except EngineError:
                with self._lock:
                    if each not in self._synced:  # if it is, it was retired since
                        raise

    def _current(self) -> Appender:
        with self._lock:
            active = self._active
            if active is not None and not active.failed and active.size < ROLL_BYTES:
                return active
            return self._open()

    def _open(self) -> Appender:
        for number, each in list(self._unsynced.items()):
            if each.failed:
                self._unsynced.pop(number).close()
        fresh = self._engine.appender(self._prefix, ".seg")
        # First, lest an interrupt between the two leaves a segment in use that is never synced.
        self._unsynced[keys.object_id(fresh.key)] = fresh
        self._active = fresh
        while len(self._unsynced) > MAX_UNSYNCED:
            # A commit larger than this many segments refers to them later: sync before closing.
            oldest = next(iter(self._unsynced))
            self._unsynced[oldest].finish()
            self._synced.add(oldest)
            del self._unsynced[oldest]
        return fresh

    def forget(self) -> None:
        """Drop the active segment: after a fork it belongs to the parent."""
        self._lock = threading.Lock()
        self._active = None
        self._unsynced = {}
        self._synced = set()

    def close(self) -> None:
        """Close the segments; nothing is lost, since commits have synced what they refer to."""
        with self._lock:
            for each in self._unsynced.values():
                each.close()
            self._unsynced = {}
            self._active = None
