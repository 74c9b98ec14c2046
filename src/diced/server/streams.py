"""Answers that are made piece by piece, so that their size does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from diced.server.answer import JSON, Answer, Buffer

WHOLE_BYTES = 2**20  # an answer of fewer is sent whole, with its length
PIECE_BYTES = 2**18


def answer(pieces: Iterable[Buffer], type: str) -> Answer:
    """Return an answer of these pieces; what goes wrong with the first is still a refusal."""
    rest = iter(pieces)
    first = bytearray()
    for piece in rest:
        first += piece
        if len(first) >= WHOLE_BYTES:
            return Answer(chain([bytes(first)], _larger(rest)), type)
    return Answer(bytes(first), type)


def json_list(items: Iterable[bytes]) -> Answer:
    """Return a JSON list of items that are JSON already."""
    return answer(_joined(b"[", items, b"]"), JSON)


def json_object(items: Iterable[bytes]) -> Answer:
    """Return a JSON object of items that are ``"key":value`` already."""
    return answer(_joined(b"{", items, b"}"), JSON)


def _joined(begin: bytes, items: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    yield begin
    comma = b""
    for item in items:
        yield comma + item
        comma = b","
    yield end


def _larger(pieces: Iterator[Buffer]) -> Iterator[Buffer]:
    """Yield the same bytes in fewer pieces: each costs a change of threads."""
    held = bytearray()
    for piece in pieces:
        if len(piece) < PIECE_BYTES:
            held += piece
        if held and len(held) + len(piece) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
        if len(piece) >= PIECE_BYTES:
            yield piece
    if held:
        yield bytes(held)
