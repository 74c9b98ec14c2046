"""Frames, the self-describing checksummed unit of data, and the segments they are appended to.

A frame names its lane, space and key, so a misdirected read is noticed and an index can be rebuilt
from segments alone. The byte table is in ``docs/format.md``.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Collection, MutableMapping, Sequence
from typing import Any, NamedTuple

from diced import keys, pool
from diced._crc32c import crc32c
from diced.engine.appender import Appender
from diced.engine.base import Engine
from diced.errors import CorruptError, DicedException, EngineError, InvalidError
from diced.tidy import delete_later

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
# Where objects are stored whole: their size, and how many may wait in memory to be stored.
WHOLE_BYTES = 32 * 2**20
MAX_WHOLE = 4
# What was stored of a commit that failed before it was made is removed after so long.
DISCARD_SECONDS = 5.0

Pointer = tuple[int, int, int]


class Header(NamedTuple):
    """What a frame says of itself before its payload.

    Attributes
    ----------
    size, stored : int
        Bytes of the header, and of the payload behind it.
    check : int
        Checksum of the payload, or of the table of its units if it has any.
    """

    kind: int
    codec: int
    flags: int
    space: int
    lane: bytes
    raw: int
    stored: int
    units: int
    check: int
    key: bytes
    size: int


def parse_header(buffer: memoryview) -> Header:
    """Return the verified header that a buffer begins with.

    Raises
    ------
    CorruptError
    """
    least = HEADER.size + CHECK.size
    if len(buffer) < least:
        raise CorruptError(f"a frame has at least {least} bytes; got {len(buffer)}")
    (magic, kind, codec, flags, space, lane, raw, stored, key_length, units, check) = (
        HEADER.unpack_from(buffer)
    )
    if magic != MAGIC:
        raise CorruptError(f"no frame here: magic is {bytes(magic)!r}, not {MAGIC!r}")
    body = HEADER.size + key_length
    size = body + CHECK.size
    if key_length > MAX_KEY or size > len(buffer):
        raise CorruptError(f"a frame's header of {size} bytes in a read of {len(buffer)}")
    if crc32c(buffer[:body]) != CHECK.unpack_from(buffer, body)[0]:
        raise CorruptError("a frame's header does not match its checksum")
    if kind not in KINDS or flags & ~KNOWN_FLAGS:
        raise CorruptError(f"unknown frame kind {kind} or flags {flags:#x}")
    if units * UNIT.size > stored:
        raise CorruptError(f"{units} units in a payload of {stored} bytes")
    key = bytes(buffer[HEADER.size : body])
    return Header(kind, codec, flags, space, lane, raw, stored, units, check, key, size)


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
        head = parse_header(buffer)
        self.kind, self.codec, self.flags = head.kind, head.codec, head.flags
        self.lane, self.space, self.key = head.lane, head.space, head.key
        self.raw, self.units = head.raw, head.units
        self.size = head.size + head.stored
        if self.size > len(buffer):
            raise CorruptError(f"a frame of {self.size} bytes in a read of {len(buffer)}")
        self.payload = buffer[head.size : self.size]
        # With units the frame's checksum covers their table, and each unit carries its own.
        covered = self.payload[: self.units * UNIT.size] if self.units else self.payload
        if verify_payload and crc32c(covered) != head.check:
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
    kind: int,
    codec: int,
    flags: int,
    space: int,
    lane: bytes,
    key: bytes,
    raw: int,
    payload: Any,
    stored: int | None = None,
) -> bytes:
    """Return the bytes that precede `payload` in its frame.

    With `stored`, the length of the payload, `payload` is only the table of units that it begins
    with.
    """
    if len(key) > MAX_KEY:
        raise InvalidError(f"a key has at most {MAX_KEY} bytes; got {len(key)}")
    units = 0 if stored is None else len(payload) // UNIT.size
    length = len(payload) if stored is None else stored
    if length > MAX_PAYLOAD or raw > MAX_PAYLOAD:
        raise InvalidError(f"a value has at most {MAX_PAYLOAD} bytes; got {max(length, raw)}")
    check = crc32c(payload)
    head = HEADER.pack(
        MAGIC, kind, codec, flags, space, lane, raw, length, len(key), units, check
    ) + key  # fmt: skip
    return head + CHECK.pack(crc32c(head))


class SegmentWriter:
    """The one active segment of this process in a home. Thread-safe.

    A segment whose write or sync failed is abandoned, never synced again: the kernel may have
    dropped the pages that it failed to write. The commits that were in it fail, unacknowledged,
    and the next append begins a new segment.

    Parameters
    ----------
    engine : Engine
    home : str
    known : mutable mapping, optional
        Is told the appender of each new segment id.
    """

    def __init__(
        self, engine: Engine, home: str, known: MutableMapping[int, Appender] | None = None
    ):
        self.engine = engine
        self.whole = not engine.grows  # each segment is stored whole
        self._known = known
        self._prefix = keys.segments(home)
        self._lock = threading.Lock()
        self._active: Appender | None = None
        self._open: list[Appender] = []
        self._roll = ROLL_BYTES if engine.grows else WHOLE_BYTES

    def append(self, chunks: Sequence[Any]) -> tuple[Appender, int]:
        """Append buffers end to end; return the segment and the offset of the first byte.

        They are durable after `sync_all` of the segment.
        """
        while True:
            appender = self._current()
            try:
                return appender, appender.append(chunks)
            except EngineError:
                if appender.failed or not appender.finished:
                    raise
            # Retired since it was looked up.

    def _current(self) -> Appender:
        with self._lock:
            active = self._active
            if active is not None and not active.failed and not active.finished:
                if active.size < self._roll:
                    return active
                if not self.engine.grows:
                    _store_aside(active)
            return self._begin()

    def _begin(self) -> Appender:
        for each in [each for each in self._open if each.failed]:
            self._open.remove(each)
            each.close()
        self._open = [each for each in self._open if not each.closed]
        fresh = self.engine.appender(self._prefix, ".seg")
        self._active = fresh
        self._open.append(fresh)
        if self._known is not None:
            self._known[keys.object_id(fresh.key)] = fresh
        while len(self._open) > (MAX_UNSYNCED if self.engine.grows else MAX_WHOLE):
            # A commit larger than this many segments refers to them later: sync before closing.
            self._open[0].finish()
            self._open.pop(0)
        return fresh

    def forget(self) -> None:
        """Drop the active segment: after a fork it belongs to the parent."""
        self._lock = threading.Lock()
        self._active = None
        self._open = []

    def close(self) -> None:
        """Close the segments; nothing is lost, since commits have synced what they refer to."""
        with self._lock:
            for each in self._open:
                each.close()
            self._open = []
            self._active = None


class Frames:
    """The frames of one commit, and where they went.

    Parameters
    ----------
    writer : SegmentWriter
        The process's, or one for this commit alone where objects are stored whole.

    Attributes
    ----------
    segments : set of Appender
    rides : bool
        They may go behind their record, as far as that is so on the engine: only its own entries
        lead to them.
    """

    def __init__(self, writer: SegmentWriter):
        self.segments: set[Appender] = set()
        self.rides = True
        self._writer = writer

    def append(self, chunks: Sequence[Any]) -> tuple[int, int]:
        """Append buffers end to end; return (segment id, offset of the first byte)."""
        appender, offset = self._writer.append(chunks)
        self.segments.add(appender)
        return keys.object_id(appender.key), offset

    def own(self) -> list[int]:
        """Return the ids of segments that hold nothing but this commit's frames."""
        whole = self._writer.whole
        return sorted(keys.object_id(each.key) for each in self.segments) if whole else []

    def discard(self) -> None:
        """Remove what was stored of a commit that will not be made, as far as it is its own."""
        if self._writer.whole:
            for each in self.segments:
                each.close()
                if each.finished:  # it is stored, or on its way
                    delete_later(self._writer.engine, each.key, DISCARD_SECONDS)

    def riding(self, most: int) -> tuple[int, bytes] | None:
        """Return (segment id, bytes) if all is one segment of at most `most` bytes in memory."""
        if self.rides and len(self.segments) == 1:
            (only,) = self.segments
            if only.size <= most and (held := only.held(0, only.size)) is not None:
                return keys.object_id(only.key), held
        return None


def sync_all(segments: Collection[Appender]) -> None:
    """Make what was appended to these segments durable, side by side where that is a request."""
    if len(segments) == 1 or all(each.durable for each in segments):
        for each in segments:
            each.sync()
        return
    pool.for_each(Appender.sync, sorted(segments, key=lambda each: each.key), len(segments))


def _store_aside(appender: Appender) -> None:
    """Begin to store a segment that is full, while the next is filled."""

    def store() -> None:
        with contextlib.suppress(DicedException):  # `sync` raises it again where it matters
            appender.sync()

    with contextlib.suppress(RuntimeError):  # no more threads here: the commit stores it itself
        threading.Thread(target=store, name="diced-segment", daemon=True).start()
