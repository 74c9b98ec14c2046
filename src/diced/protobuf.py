"""The three protocol-buffer messages of DVID's keyvalue API, encoded and decoded.

::

    KeyValue  {string key = 1; bytes value = 2;}
    KeyValues {repeated KeyValue kvs = 1;}
    KeyRange  {string key = 1; uint64 byte_start = 2; uint64 byte_end = 3;}
    Keys      {repeated string keys = 1; repeated KeyRange key_ranges = 2;}

Fields that are not known are skipped, as the format has it; of one that is given twice the last
counts. Decoders trust no length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from diced.errors import InvalidError

Buffer = bytes | bytearray | memoryview

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LENGTHS = {FIXED64: 8, FIXED32: 4}

Field = tuple[int, int, int, "memoryview"]  # number, wire type, value of a VARINT, bytes of BYTES


class KeyRange(NamedTuple):
    """A part of a value: both ends included."""

    key: str
    start: int
    end: int


def varint(value: int) -> bytes:
    """Return a number from 0 to 2**64 - 1, seven bits to a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def key_value_head(key: str, length: int) -> bytes:
    """Return what precedes the bytes of a value in a KeyValues message."""
    name = key.encode()
    head = b"\x0a" + varint(len(name)) + name if name else b""
    if length:  # a field of no bytes is left out
        head += b"\x12" + varint(length)
    return b"\x0a" + varint(len(head) + length) + head


def key_values(pairs: Mapping[str, bytes]) -> bytes:
    """Return a KeyValues message."""
    return b"".join(
        piece for key, value in pairs.items() for piece in (key_value_head(key, len(value)), value)
    )


def keys(names: Iterable[str]) -> bytes:
    """Return a Keys message."""
    encoded = [name.encode() for name in names]
    return b"".join(piece for name in encoded for piece in (b"\x0a", varint(len(name)), name))


def read_key_values(data: Buffer) -> Iterator[tuple[str, memoryview]]:
    """Yield (key, value) of a KeyValues message; values are views of `data`.

    Raises
    ------
    InvalidError
    """
    for number, kind, _, message in _fields(memoryview(data), "KeyValues"):
        if number == 1:
            key, value = "", message[:0]
            for inner, its, _, part in _fields(_bytes(kind, message, "kvs"), "KeyValue"):
                if inner == 1:
                    key = _text(_bytes(its, part, "key"))
                elif inner == 2:
                    value = _bytes(its, part, "value")
            yield key, value


def read_keys(data: Buffer, most: int = 2**20) -> tuple[list[str], list[KeyRange]]:
    """Return the keys and the ranges of a Keys message, at most so many.

    Raises
    ------
    InvalidError
    """
    found: list[str] = []
    ranges: list[KeyRange] = []
    for number, kind, _, part in _fields(memoryview(data), "Keys"):
        if len(found) + len(ranges) >= most:
            raise InvalidError(f"at most {most} keys at a time")
        if number == 1:
            found.append(_text(_bytes(kind, part, "keys")))
        elif number == 2:
            key, ends = "", [0, 0]
            for inner, its, value, name in _fields(_bytes(kind, part, "key_ranges"), "KeyRange"):
                if inner == 1:
                    key = _text(_bytes(its, name, "key"))
                elif inner in (2, 3):
                    if its != VARINT:
                        raise InvalidError(f"protobuf: the ends of a KeyRange are of type {its}")
                    ends[inner - 2] = value
            ranges.append(KeyRange(key, *ends))
    return found, ranges


def _fields(data: memoryview, what: str) -> Iterator[Field]:
    """Yield the fields of a message."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at, what)
        number, kind = tag >> 3, tag & 7
        value, part = 0, data[:0]
        if kind == VARINT:
            value, at = _varint(data, at, what)
        elif kind == BYTES:
            length, at = _varint(data, at, what)
            part, at = data[at : at + length], at + length
        elif kind in LENGTHS:
            at += LENGTHS[kind]
        else:
            raise InvalidError(f"protobuf: {what} has a field of wire type {kind}")
        if at > end:
            raise InvalidError(f"protobuf: {what} is cut off: {at - end} bytes are missing")
        if not number:
            raise InvalidError(f"protobuf: {what} has a field of number 0")
        yield number, kind, value, part


def _varint(data: memoryview, at: int, what: str) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise InvalidError(f"protobuf: {what} is cut off within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise InvalidError(f"protobuf: {what} has a number beyond 64 bits")


def _bytes(kind: int, part: memoryview, name: str) -> memoryview:
    if kind != BYTES:
        raise InvalidError(f"protobuf: the field {name!r} is of wire type {kind}, not {BYTES}")
    return part


def _text(part: memoryview) -> str:
    try:
        return bytes(part).decode()
    except UnicodeDecodeError:
        raise InvalidError(f"protobuf: a key is not UTF-8: {bytes(part[:40])!r}") from None
