"""Objects of a bucket as they are written: in one request, or in chunks.

Every object carries the transaction id of its writer in its metadata.  A writer who is told that
the name is taken reads that back: the object may be its own, stored by an earlier try whose answer
was lost.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from diced._crc32c import crc32c
from diced.engine.base import Buffer, flat_view
from diced.engine.gcs_http import Body, Reply, Tries, Wire
from diced.errors import EngineError

_SLICE = 1 << 20  # bytes sent within one time limit
_TXID = "diced-txid"
_KIND = "application/octet-stream"
_UNSURE = "whether it was stored is not known"


class Uploads:
    """The objects of a bucket whose names begin with `root`, by the rest of their names.

    Attributes
    ----------
    objects : str
        The path of the requests that list them.
    """

    def __init__(self, wire: Wire, bucket: str, root: str) -> None:
        self.objects = f"{wire.base}/storage/v1/b/{bucket}/o"
        self._begin = f"{wire.base}/upload/storage/v1/b/{bucket}/o"
        self._wire = wire
        self._root = root

    def target(self, key: str) -> str:
        """Return the path of the requests for one object."""
        return f"{self.objects}/{quote(self._root + key, safe='')}"

    def stat(self, key: str, fields: str, tries: Tries | None = None) -> dict[str, Any] | None:
        """Return fields of an object's metadata, None if it is missing."""
        reply = self._wire.send(
            tries or Tries(f"look at {key!r}"),
            "GET",
            f"{self.target(key)}?{urlencode({'fields': fields})}",
            wanted=(200, 404),
        )
        return reply.json() if reply.status == 200 else None

    def insert(
        self, key: str, parts: Sequence[memoryview], txid: bytes, fresh: bool = False
    ) -> bool:
        """Store an object unless its name is taken; True if the one there is ours.

        With `fresh` no earlier call sent these bytes.
        """
        tries = Tries(f"store {key!r}", _UNSURE)
        size = sum(map(len, parts))
        crc = _checksum(parts)
        mark = os.urandom(16).hex()
        about = {**self._about(key, txid), "crc32c": crc}  # for the server to verify
        head = (
            f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(about)}"
            f"\r\n--{mark}\r\nContent-Type: {_KIND}\r\n\r\n"
        ).encode()
        tail = f"\r\n--{mark}--\r\n".encode()
        body: Body
        if size <= _SLICE:
            body = b"".join([head, *parts, tail])
        else:
            body = [memoryview(head), *_slices(parts), memoryview(tail)]
        target = f"{self._begin}?uploadType=multipart&ifGenerationMatch=0&fields=generation"
        headers = {"Content-Type": f"multipart/related; boundary={mark}"}
        while True:
            reply = self._wire.send(
                tries, "POST", target, headers=headers, body=body, wanted=(200, 412)
            )
            if reply.status == 200:
                return True
            if fresh and not tries.failures:
                return False  # the only request there was did not store it
            there = self.stat(key, "size,crc32c,metadata", tries)
            if there is not None:
                return (
                    there.get("size") == str(size)
                    and there.get("crc32c") == crc
                    and _txid(there) == txid.hex()
                )
            tries.again("a name that was taken and then free")

    def send(self, key: str, blocks: Iterator[bytearray]) -> None:
        """Store an object of any size under a key nobody has, a request per block.

        Two blocks at a time are in memory.
        """
        txid = os.urandom(16)
        tries = Tries(f"begin to store {key!r}")
        reply = self._wire.send(
            tries,
            "POST",
            f"{self._begin}?uploadType=resumable&ifGenerationMatch=0",
            headers={"Content-Type": "application/json", "X-Upload-Content-Type": _KIND},
            body=json.dumps(self._about(key, txid)).encode(),
        )
        place = urlsplit(reply.headers.get("Location", ""))
        session = f"{place.path}?{place.query}"
        try:
            at = crc = 0
            block: bytearray | None = next(blocks)
            while block is not None:
                following = next(blocks, None)
                view = memoryview(block)
                crc = crc32c(view, crc)
                end = at + len(view)
                self._send_chunk(
                    key, session, at, view, None if following is not None else (end, crc, txid)
                )
                at, block = end, following
        except BaseException:
            quick = Tries(f"cancel the upload of {key!r}", patience=2.0)
            with contextlib.suppress(EngineError):  # it ends by itself in a week
                self._wire.attempt(quick, "DELETE", session, wanted=(200, 204, 308, 404, 410, 499))
            raise

    def _send_chunk(
        self,
        key: str,
        session: str,
        at: int,
        view: memoryview,
        whole: tuple[int, int, bytes] | None,
    ) -> None:
        """Send the bytes from `at` of an upload; `whole` (size, crc32c, txid) if they are its last.

        After a lost answer the server is asked how many it has.
        """
        tries = Tries(f"store {key!r}", _UNSURE)
        end = at + len(view)
        total = str(end) if whole else "*"
        have = at
        asking = False
        while True:
            span = "*" if asking else f"{have}-{end - 1}"
            reply = self._wire.attempt(
                tries,
                "PUT",
                session,
                headers={"Content-Range": f"bytes {span}/{total}"},
                body=b"" if asking else list(_slices([view[have - at :]])),
                wanted=(200, 201, 308, 404, 410, 412),
            )
            if reply is None:
                asking = True
                continue
            if reply.status == 308:
                found = re.fullmatch(r"bytes=0-(\d+)", reply.headers.get("Range", ""))
                got = int(found[1]) + 1 if found else 0
                if not have <= got <= end:
                    raise EngineError(
                        f"cannot store {key!r}: of the bytes before {have} the bucket has {got}"
                    )
                if got == end and whole is None:
                    return
                if got > have:
                    tries.renew()
                elif not asking:
                    tries.again("none of a chunk's bytes taken")
                have = got
                asking = got == end  # asking with the total ends it
                if asking:
                    tries.again("an upload that is complete and does not end")
                continue
            if whole is None:
                raise EngineError(
                    f"cannot store {key!r}: the upload ended with status {reply.status} after "
                    f"{have} bytes"
                )
            self._check_stored(key, reply, tries, *whole)
            return

    def _check_stored(
        self, key: str, reply: Reply, tries: Tries, size: int, crc: int, txid: bytes
    ) -> None:
        """Raise unless the object is the one that was uploaded."""
        fields = "size,crc32c,metadata"
        there = reply.json() if reply.status in (200, 201) else None
        if not there or not {"size", "crc32c", "metadata"} <= there.keys():
            there = self.stat(key, fields, tries)
        if there is None or _txid(there) != txid.hex():
            raise EngineError(
                f"cannot store {key!r}: the upload ended with status {reply.status}, and "
                f"{'another' if there else 'no'} object is there"
            )
        if there.get("size") != str(size) or there.get("crc32c") != encoded(crc):
            self._wire.send(tries, "DELETE", self.target(key), wanted=(200, 204, 404))
            raise EngineError(
                f"cannot store {key!r}: {size} bytes of crc32c {encoded(crc)} were sent, "
                f"{there.get('size')} of {there.get('crc32c')} arrived"
            )

    def _about(self, key: str, txid: bytes) -> dict[str, Any]:
        return {
            "name": self._root + key,
            "contentType": _KIND,
            "cacheControl": "no-store",  # public objects are else served from caches for an hour
            "metadata": {_TXID: txid.hex()},
        }


def cut(chunks: Iterable[Buffer], size: int) -> Iterator[bytearray]:
    """Yield the joined chunks in blocks of `size` bytes, the last of which may be shorter."""
    block = bytearray()
    for chunk in chunks:
        view = flat_view(chunk)
        while view:
            if len(block) == size:
                yield block
                block = bytearray()
            taken = view[: size - len(block)]
            block += taken
            view = view[len(taken) :]
    if block:
        yield block


def _slices(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    for part in parts:
        for at in range(0, len(part), _SLICE):
            yield part[at : at + _SLICE]


def _checksum(parts: Iterable[memoryview]) -> str:
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return encoded(crc)


def encoded(crc: int) -> str:
    """Return a crc32c as the API spells it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _txid(there: dict[str, Any]) -> str | None:
    found: str | None = (there.get("metadata") or {}).get(_TXID)
    return found
