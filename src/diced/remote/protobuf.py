"""The two messages of DVID's keyvalue API, in protocol buffers' wire form.

``Keys`` is field 1, text, repeated. ``KeyValues`` is field 1, repeated, each a message of the key
in field 1 and the value in field 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from diced.errors import EngineError

_FIRST, _SECOND = 0x0A, 0x12  # fields 1 and 2, of a length and so many bytes


def keys(names: Iterable[str]) -> bytes:
    """Return the message ``Keys``."""
    return b"".join(_field(_FIRST, name.encode()) for name in names)


def values(pairs: Mapping[str, bytes]) -> bytes:
    """Return the message ``KeyValues``."""
    return b"".join(
        _field(_FIRST, _field(_FIRST, key.encode()) + _field(_SECOND, value))
        for key, value in pairs.items()
    )


def parse_values(data: bytes, request: str) -> dict[str, bytes]:
    """Return what a message ``KeyValues`` holds.

    Raises
    ------
    EngineError
        It is none.
    """
    found = {}
    try:
        for number, item in _fields(data):
            if number == 1:
                pair = dict(_fields(item))
                found[pair.get(1, b"").decode()] = pair.get(2, b"")
    except (ValueError, IndexError):
        raise EngineError(f"the answer is no message of keys and values [{request}]") from None
    return found


def parse_keys(data: bytes, request: str) -> list[str]:
    """Return what a message ``Keys`` holds."""
    try:
        return [item.decode() for number, item in _fields(data) if number == 1]
    except (ValueError, IndexError):
        raise EngineError(f"this is no message of keys [{request}]") from None


def _field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, bytes) of the fields of bytes; numbers of other kinds are passed over."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            _, at = _read_varint(data, at)
            continue
        if tag & 7 != 2:
            raise ValueError(tag)
        size, at = _read_varint(data, at)
        if size > len(data) - at:
            raise ValueError(size)
        yield tag >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError(shift)
