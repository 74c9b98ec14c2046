"""What a handler gives: an answer, or a refusal with an HTTP status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from diced.errors import (
    AccessError,
    AmbiguousError,
    CorruptError,
    DicedException,
    EngineError,
    InvalidError,
    LockedError,
    NotFoundError,
)

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
OCTETS = "application/octet-stream"

Buffer = bytes | bytearray | memoryview


class Refused(InvalidError):
    """A request that is answered with a status of its own.

    Parameters
    ----------
    status : int
    message : str
        The whole body; the path is not added.
    headers : mapping, optional
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class Answer:
    """A response.

    Parameters
    ----------
    body : bytes-like or iterator of bytes-like
        An iterator is sent piece by piece; each piece is made on a worker thread.
    type : str
        Content type.
    status : int
    headers : mapping, optional
    length : int, optional
        Bytes that an iterator will give.
    """

    __slots__ = ("body", "headers", "length", "status", "type")

    def __init__(
        self,
        body: Buffer | Iterator[Buffer] = b"",
        type: str = OCTETS,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ):
        self.body = body
        self.type = type
        self.status = status
        self.headers = dict(headers or {})
        self.length = length


def as_answer(result: Any) -> Answer:
    """Return what a handler returned as an answer.

    None is an empty body, text is text, bytes are octets, and all else is JSON.
    """
    if isinstance(result, Answer):
        return result
    if result is None:
        return Answer(b"", TEXT)
    if isinstance(result, str):
        return Answer(result.encode(), TEXT)
    if isinstance(result, bytes | bytearray | memoryview):
        return Answer(result, OCTETS)
    return Answer(to_json(result), JSON)


def to_json(value: Any, indent: int | None = None) -> bytes:
    """Return a value as compact JSON, keys in their own order."""
    separators = (",", ":") if indent is None else None
    return json.dumps(value, separators=separators, indent=indent, ensure_ascii=False).encode()


def status_of(error: DicedException) -> int:
    """Return the HTTP status of an error: 400 for all that the caller can mend, as DVID has it."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, CorruptError):
        return 500
    if isinstance(error, AccessError):
        return 500
    if isinstance(error, EngineError):
        return 503
    return 400


# What is one caller's mistake, and nothing to log.
MISTAKES = (AmbiguousError, InvalidError, LockedError, NotFoundError, Refused)
