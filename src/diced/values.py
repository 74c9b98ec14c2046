"""Values as entries of a lane: short ones ride in the index, others are frames.

A frame of a long value is divided into units with checksums of their own, so that a part of it can
be read, and all of it piece by piece. The byte table is in ``docs/format.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from diced._compress import lz4_compress, lz4_decompress
from diced._crc32c import crc32c
from diced.errors import CorruptError, InvalidError
from diced.log import Entry
from diced.segment import (
    CHECK,
    HEADER,
    UNIT,
    VALUE,
    Frame,
    Frames,
    Header,
    frame_header,
    parse_header,
)
from diced.versioned import Lane

INLINE_VALUE = 256
RAW, LZ4 = 0, 1
MAX_VALUE = 2**30
UNIT_BYTES = 2**20  # of the value, in each unit of its frame but the last
TABLE_BYTES = UNIT.size * (MAX_VALUE // UNIT_BYTES)  # the longest table of units
FETCH_BYTES = 8 * UNIT_BYTES  # of a value that is read piece by piece
AT_ONCE = 2**16  # bytes of a frame that are read rather than asked how large they are


class Value:
    """A value as it was when it was found, whatever is written to its key meanwhile.

    Attributes
    ----------
    size : int
        Bytes.
    """

    __slots__ = ("_begin", "_entry", "_head", "_key", "_lane", "_space", "_units", "_where", "size")

    def __init__(self, lane: Lane, space: int, key: bytes, entry: Entry, where: str):
        if not isinstance(entry, bytes) and entry[2] <= AT_ONCE:
            entry = load_value(lane, space, key, entry, where)
        self._lane, self._space, self._key, self._where = lane, space, key, where
        self._entry = entry
        self._head: Header | None = None
        self._units: list[tuple[int, int]] = []  # of each its end in the payload, and its checksum
        self._begin = 0  # of the first
        if isinstance(entry, bytes):
            self.size = len(entry)
            return
        head, rest = _read_header(lane, key, entry, where, TABLE_BYTES)
        _check_header(head, lane, space, key, where)
        self.size = head.raw
        if head.units:
            self._head = head
            self._begin = head.units * UNIT.size
            table = rest[: self._begin]
            self._units = list(UNIT.iter_unpack(table))
            ends = [self._begin, *(end for end, _ in self._units), head.stored]
            if crc32c(table) != head.check or any(a > b for a, b in pairwise(ends)):
                raise CorruptError(f"{where}: the table of units does not match its checksum")

    def read(self, start: int = 0, stop: int | None = None) -> memoryview:
        """Return its bytes from `start` up to and without `stop`.

        Of a long value only the units that hold them are read.

        Raises
        ------
        CorruptError
        """
        start, stop, _ = slice(start, stop).indices(self.size)
        if start >= stop:
            return memoryview(b"")
        if self._head is None:
            whole = load_value(self._lane, self._space, self._key, self._entry, self._where)
            return memoryview(whole)[start:stop]
        first, last = start // UNIT_BYTES, -(-stop // UNIT_BYTES)
        found = list(self._load(self._head, first, last))
        data = found[0] if len(found) == 1 else b"".join(found)
        return memoryview(data)[start - first * UNIT_BYTES : stop - first * UNIT_BYTES]

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yield what `read` returns, of a long value some MiB at a time."""
        start, stop, _ = slice(start, stop).indices(self.size)
        while start < stop:
            end = stop
            if self._head is not None:
                end = min(stop, (start // FETCH_BYTES + 1) * FETCH_BYTES)
            yield self.read(start, end)
            start = end

    def _load(self, head: Header, first: int, last: int) -> Iterator[Any]:
        """Yield some units that lie together, read at once."""
        begin = self._units[first - 1][0] if first else self._begin
        data = bytearray(self._units[last - 1][0] - begin)
        assert not isinstance(self._entry, bytes)
        segment, offset, _ = self._entry
        self._lane.home.read_into(self._lane.id, segment, offset + head.size + begin, data)
        view, at = memoryview(data), 0
        for number in range(first, last):
            end, check = self._units[number]
            unit, at = view[at : end - begin], end - begin
            if crc32c(unit) != check:
                raise CorruptError(f"{self._where}: unit {number} does not match its checksum")
            yield _decoded_unit(unit, number, head.codec, head.raw, self._where)


def store_value(lane: Lane, space: int, key: bytes, value: Any, frames: Frames) -> Entry:
    """Return the entry of a value: itself if it is short, else a pointer to its frame.

    Parameters
    ----------
    value : bytes-like or str
        Text is stored as UTF-8.
    frames : Frames
        Of the commit that the entry will be in.

    Raises
    ------
    InvalidError
        It is neither, or has more than `MAX_VALUE` bytes.
    """
    try:
        if isinstance(value, str):
            data: Any = value.encode()
        else:
            view = memoryview(value)
            flat = view.c_contiguous and view.ndim and view.nbytes
            data = view.cast("B") if flat else view.tobytes()
    except (TypeError, ValueError):  # no buffer, or not valid text
        raise InvalidError(f"a value is bytes or valid text; got {value!r:.80}") from None
    size = len(data)
    if size > MAX_VALUE:
        raise InvalidError(f"a value has at most {MAX_VALUE} bytes; got {size}")
    if size <= INLINE_VALUE:
        return bytes(data)
    if size <= UNIT_BYTES:
        unit, packed = _encoded(data)
        codec = LZ4 if packed else RAW
        header = frame_header(VALUE, codec, 0, space, lane.lane_bytes, key, size, unit)
        segment, offset = frames.append([header, unit])
        return segment, offset, len(header) + len(unit)
    whole = memoryview(data)
    units: list[Any] = []
    table = bytearray()
    end, codec = UNIT.size * -(-size // UNIT_BYTES), RAW
    for at in range(0, size, UNIT_BYTES):
        unit, packed = _encoded(whole[at : at + UNIT_BYTES])
        codec = LZ4 if packed else codec
        end += len(unit)
        table += UNIT.pack(end, crc32c(unit))
        units.append(unit)
    header = frame_header(VALUE, codec, 0, space, lane.lane_bytes, key, size, table, end)
    segment, offset = frames.append([header, table, *units])
    return segment, offset, len(header) + end


def _encoded(data: Any) -> tuple[Any, bool]:
    """Return what is stored of some bytes, and whether that is shorter than they are."""
    packed = lz4_compress(data)
    return (packed, True) if len(packed) < len(data) else (data, False)


def load_value(lane: Lane, space: int, key: bytes, entry: Entry, where: str) -> bytes:
    """Return the value behind an entry; `where` goes into messages.

    Raises
    ------
    CorruptError
    """
    if isinstance(entry, bytes):
        return entry
    frame = lane.home.read_frame(lane.id, entry)
    if frame.lane != lane.lane_bytes or frame.space != space or frame.key != key:
        raise CorruptError(f"{where}: the frame is of another key")
    return decode_value(frame, where)


def decode_value(frame: Frame, where: str) -> bytes:
    """Return the value in a frame, whoever's it is.

    Raises
    ------
    CorruptError
    """
    raw, codec = frame.raw, frame.codec
    if frame.kind != VALUE or codec not in (RAW, LZ4) or raw > MAX_VALUE:
        raise CorruptError(f"{where}: a frame of kind {frame.kind}, codec {codec}, {raw} bytes")
    if not frame.units:
        return bytes(_decoded(frame.payload, codec, raw, where))
    _check_units(frame.units, raw, where)
    return b"".join(
        [
            _decoded_unit(frame.unit(number), number, codec, raw, where)
            for number in range(frame.units)
        ]
    )


def value_size(lane: Lane, key: bytes, entry: Entry, where: str) -> int:
    """Return the bytes of the value behind an entry, without reading the value.

    Raises
    ------
    CorruptError
    """
    if isinstance(entry, bytes):
        return len(entry)
    return _read_header(lane, key, entry, where)[0].raw


def _read_header(
    lane: Lane, key: bytes, entry: Any, where: str, more: int = 0
) -> tuple[Header, memoryview]:
    """Read the header of a frame of a key, and some bytes behind it."""
    segment, offset, length = entry
    data = bytearray(min(HEADER.size + len(key) + CHECK.size + more, length))
    lane.home.read_into(lane.id, segment, offset, data)
    try:
        head = parse_header(memoryview(data))
    except CorruptError as error:
        raise CorruptError(f"{where}: {error}") from None
    if head.size + head.stored != length:
        raise CorruptError(f"{where}: {head.size + head.stored} bytes, not {length}")
    return head, memoryview(data)[head.size :]


def _check_header(head: Header, lane: Lane, space: int, key: bytes, where: str) -> None:
    if (head.kind, head.lane, head.space, head.key) != (VALUE, lane.lane_bytes, space, key):
        raise CorruptError(f"{where}: the frame is of another key")
    if head.codec not in (RAW, LZ4) or head.raw > MAX_VALUE:
        raise CorruptError(f"{where}: codec {head.codec} of {head.raw} bytes")
    if head.units:
        _check_units(head.units, head.raw, where)


def _check_units(units: int, raw: int, where: str) -> None:
    if units != -(-raw // UNIT_BYTES):
        raise CorruptError(f"{where}: {units} units of {raw} bytes")


def _decoded_unit(unit: memoryview, number: int, codec: int, raw: int, where: str) -> Any:
    """Return the bytes of a unit: one as long as what it holds is stored as it is."""
    size = min(UNIT_BYTES, raw - number * UNIT_BYTES)
    return _decoded(unit, RAW if len(unit) == size else codec, size, where)


def _decoded(data: memoryview, codec: int, size: int, where: str) -> Any:
    if codec == RAW:
        if len(data) != size:
            raise CorruptError(f"{where}: {len(data)} bytes, not {size}")
        return data
    out = bytearray(size)
    lz4_decompress(data, out)
    return out
