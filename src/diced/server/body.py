"""Bodies of requests: read as they come, bounded in bytes and time, large ones kept on disk."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from diced.errors import InvalidError
from diced.server.answer import Buffer, Refused
from diced.server.call import whole

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

SLOWEST = 1024  # bytes of a body a second, on the whole: less is an attempt to hold a place
MEMORY_BYTES = 4 * 2**20  # a larger body is kept in a file
ALL_MEMORY_BYTES = 40 * 2**20  # of all bodies of a process together


class Gone(Exception):
    """The client went away before its body was complete."""


class Spool:
    """Bytes that come one after the other, in memory while they are few, else in a file."""

    held = 0  # bytes in memory, of all spools of the process

    def __init__(self, most: int):
        self.size = 0
        self._most = most
        self._memory: bytearray | None = bytearray()
        self._file: Any = None

    def write(self, piece: bytes) -> None:
        """Add bytes; refuse them beyond what is allowed."""
        if self.size + len(piece) > self._most:
            raise too_large(self._most)
        self.size += len(piece)
        fits = self.size <= MEMORY_BYTES and Spool.held + len(piece) <= ALL_MEMORY_BYTES
        if self._memory is not None and fits:
            self._memory += piece
            Spool.held += len(piece)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last view
                self._file.write(self._memory)
                self._forget()
            self._file.write(piece)
        except OSError as error:
            raise _no_room(error) from None

    def buffer(self) -> Buffer:
        """Return all bytes."""
        if self._memory is not None:
            return memoryview(self._memory)
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from None
        view = memoryview(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ))
        self._file.close()
        return view

    def close(self) -> None:
        """Give the memory back; views of it stay valid."""
        if self._memory is not None:
            self._forget()
        elif self._file is not None:
            self._file.close()

    def _forget(self) -> None:
        Spool.held -= len(self._memory or b"")
        self._memory = None


def too_large(most: int) -> Refused:
    """Return the refusal of a body beyond `most` bytes."""
    return Refused(413, f"the body has more than the {most} bytes that this request may have\n")


def _no_room(error: OSError) -> Refused:
    return Refused(
        503, f"the server has no room for the body: {error.strerror}\n", {"Retry-After": "60"}
    )


def declared(headers: Mapping[str, str]) -> int | None:
    """Return the length that a request says its body has."""
    text = headers.get("content-length")
    return None if text is None else whole(text, "Content-Length")


def encoding(headers: Mapping[str, str]) -> str:
    """Return the content encoding of a body: ``gzip`` or empty."""
    found = headers.get("content-encoding", "").lower().strip()
    if found in ("", "identity"):
        return ""
    if found not in ("gzip", "x-gzip"):
        raise Refused(415, f"a body is plain or gzip; got Content-Encoding {found!r:.60}\n")
    return "gzip"


async def read(receive: Receive, headers: Mapping[str, str], most: int, seconds: float) -> Spool:
    """Read a body as it was sent.

    Parameters
    ----------
    most : int
    seconds : float
        How long to wait for the next bytes; of a body that trickles, for all of it.
    """
    length = declared(headers)
    if length is not None and length > most:
        raise too_large(most)
    spool = Spool(most)
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        async with asyncio.timeout(seconds) as patience:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                piece = message.get("body", b"")
                if piece:
                    spool.write(piece)
                if not message.get("more_body"):
                    return spool
                latest = began + seconds + spool.size / SLOWEST
                patience.reschedule(min(clock() + seconds, latest))
    except TimeoutError:
        spool.close()
        raise Refused(
            408, f"the body did not come: {spool.size} bytes in {clock() - began:.0f} seconds\n",
            {"Connection": "close"},
        ) from None  # fmt: skip
    except BaseException:
        spool.close()
        raise


def unzip(pieces: Iterable[bytes], most: int) -> Spool:
    """Return what gzipped bytes hold; refuse more than `most` and what is damaged."""
    spool = Spool(most)
    inflater = zlib.decompressobj(31)
    try:
        for piece in pieces:
            rest = piece
            while rest and not inflater.eof:
                spool.write(inflater.decompress(rest, 2**20))
                rest = inflater.unconsumed_tail
        if not inflater.eof:
            raise InvalidError("the gzipped body is cut off")
    except zlib.error as error:
        spool.close()
        raise InvalidError(f"the body is not gzip: {error}") from None
    except BaseException:
        spool.close()
        raise
    return spool
