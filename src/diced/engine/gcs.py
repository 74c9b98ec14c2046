"""Objects in a bucket of Google Cloud Storage, below one prefix.

Key ``a/b`` is the object ``prefix/a/b``.  Objects are stored whole and never replaced:
``ifGenerationMatch=0`` makes the server refuse a name that is taken, and is the only thing that
orders writers.

Writing is `diced.engine.gcs_upload`'s, retries and errors are `diced.engine.gcs_http`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlencode

from urllib3.exceptions import ProtocolError

from diced._crc32c import crc32c
from diced.engine.appender import Appender, BufferedAppender
from diced.engine.base import (
    MAX_KEY,
    Buffer,
    Engine,
    check_durability,
    check_key,
    check_range,
    flat_view,
    fresh_key,
    is_part,
    missing,
    short_read,
    writable_view,
)
from diced.engine.gcs_auth import find_credentials
from diced.engine.gcs_http import Reply, Tries, Wire
from diced.engine.gcs_upload import Uploads, cut, encoded
from diced.errors import (
    CorruptError,
    EngineError,
    InvalidError,
    LocationError,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_is_bucket = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]").fullmatch
_is_span = re.compile(r"bytes (\d+)-(\d+)/(\d+)").fullmatch
_LONGEST_NAME = 1024  # bytes of an object's name, the bucket's limit
_LARGEST = 5 << 40  # bytes of an object
_PIECE = 1 << 18  # bytes; 32 MiB take 6.7 ms of processor time, in pieces of 64 KiB 10.7 ms


def open_gcs(
    location: str,
    *,
    durability: str = "power",
    readonly: bool = False,
    create: bool = True,
    permissionfile: str | None = None,
    max_age: float = 1.0,
) -> GcsEngine:
    """Open the objects below ``bucket/prefix``, or all of a bucket's.  Buckets are never created.

    Parameters
    ----------
    location : str
        ``bucket`` or ``bucket/prefix``.
    durability : {"power", "process"}
        The same here: what was answered is stored.
    readonly, create : bool
        Objects must be there already if `readonly` or not `create`; that costs a request.
    permissionfile : str, optional
        JSON key of a service account; else the default credentials are taken, or none if there
        are none and `readonly` is true, as public buckets ask for.
    max_age : float
        Seconds for which readers may take what they read last for the newest.

    Raises
    ------
    LocationError
        If the location is malformed, the bucket is unknown, or there must be objects and are none.
    AccessError
        If there are no credentials, or they are refused.
    """
    if not max_age >= 0:
        raise InvalidError(f"max_age must be at least 0 seconds; got {max_age!r}")
    check_durability(durability)
    bucket, prefix = _parse(location)
    endpoint, credentials, who = find_credentials(bucket, permissionfile, readonly)
    engine = GcsEngine(
        Wire(endpoint, bucket, credentials, who),
        bucket,
        prefix,
        durability=durability,
        readonly=readonly,
        max_age=max_age,
    )
    if readonly or not create:
        try:
            engine.check_there()
        except BaseException:
            engine.close()
            raise
    return engine


class GcsEngine(Engine):
    """The engine contract over a bucket; `open_gcs` makes it.

    Attributes
    ----------
    PAGE : int
        Names per list request.
    CHUNK : int
        Bytes per request of an upload in several, a multiple of 256 KiB.
    SINGLE : int
        Chunks that are collected, and sent as one request if there are no more.
    """

    grows: ClassVar[bool] = False
    remote: ClassVar[bool] = True

    PAGE: ClassVar[int] = 1000
    CHUNK: ClassVar[int] = 16 << 20
    SINGLE: ClassVar[int] = 2

    def __init__(
        self,
        wire: Wire,
        bucket: str,
        prefix: str,
        *,
        durability: str,
        readonly: bool,
        max_age: float,
    ) -> None:
        self.durability = check_durability(durability)
        self.readonly = bool(readonly)
        self.max_age = float(max_age)
        self._wire = wire
        self._bucket = bucket
        self._prefix = prefix
        self._root = f"{prefix}/" if prefix else ""
        self._uploads = Uploads(wire, bucket, self._root)
        self._closed = False

    @property
    def url(self) -> str:
        return f"gs://{self._bucket}/{self._prefix}".rstrip("/")

    def check_there(self) -> None:
        """Raise LocationError unless there is an object."""
        if next(self._names(self._root, "", 1), None) is None:
            raise LocationError(f"there is nothing at {self.url}")

    # ---- writing

    def put_if_absent(self, key: str, data: Buffer, txid: bytes) -> bool:
        self._check_open()
        self._check_write(key)
        return self._uploads.insert(key, [flat_view(data)], txid)

    def put_fresh(self, key: str, data: Buffer, txid: bytes) -> bool:
        self._check_open()
        self._check_write(key)
        return self._uploads.insert(key, [flat_view(data)], txid, fresh=True)

    def put_unique(self, prefix: str, chunks: Iterable[Buffer], suffix: str = "") -> str:
        self._check_open()
        self._check_write(prefix)
        key = fresh_key(prefix, suffix)
        blocks = cut(chunks, self.CHUNK)
        first = list(islice(blocks, self.SINGLE + 1))
        if len(first) > self.SINGLE:
            self._uploads.send(key, chain(first, blocks))
            return key
        while not self._uploads.insert(key, [memoryview(block) for block in first], os.urandom(16)):
            key = fresh_key(prefix, suffix)
        return key

    def delete(self, key: str) -> None:
        self._check_open()
        self._check_write(key)
        tries = Tries(f"delete {key!r}", "whether it was deleted is not known")
        self._wire.send(tries, "DELETE", self._uploads.target(key), wanted=(200, 204, 404))

    def appender(self, prefix: str, suffix: str = "") -> Appender:
        self._check_open()
        self._check_write(prefix)
        return BufferedAppender(self, prefix, suffix)

    # ---- reading

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._check_open()
        check_range(check_key(key), start, length)
        if start == 0 and length is None:
            return self._whole(key)
        wanted = length or 0
        if length == 0 or start + wanted > _LARGEST:
            self._check_span(key, start, wanted)
            return b""
        last = "" if length is None else start + wanted - 1
        reply = self._media(key, start, f"{start}-{last}", length)
        if reply.status == 416:
            self._check_span(key, start, wanted)
            if self.size(key) > start:
                raise EngineError(f"cannot read {key!r} from {start}: refused, though it is longer")
            return b""
        return reply.body

    def peek(self, key: str, limit: int) -> bytes:
        self._check_open()
        check_range(check_key(key), 0, limit)
        if limit == 0:
            self.size(key)
            return b""
        reply = self._media(key, 0, f"0-{limit - 1}", None)
        return b"" if reply.status == 416 else reply.body[:limit]

    def read_into(self, key: str, start: int, out: Buffer) -> None:
        self._check_open()
        check_range(check_key(key), start, None)
        view = writable_view(out)
        if not view or start + len(view) > _LARGEST:
            self._check_span(key, start, len(view))
            return
        if len(view) <= _PIECE:
            reply = self._media(key, start, f"{start}-{start + len(view) - 1}", len(view))
            if reply.status == 416:
                raise short_read(key, start, len(view), max(0, self.size(key) - start))
            view[:] = reply.body
            return
        self._fill(key, start, view)

    def exists(self, key: str) -> bool:
        self._check_open()
        return self._uploads.stat(check_key(key), "size") is not None

    def size(self, key: str) -> int:
        self._check_open()
        there = self._uploads.stat(check_key(key), "size")
        if there is None:
            raise missing(key)
        return int(there["size"])

    def _whole(self, key: str) -> bytes:
        tries = Tries(f"read {key!r}")
        for _ in range(3):
            reply = self._wire.send(
                tries, "GET", f"{self._uploads.target(key)}?alt=media", wanted=(200, 404)
            )
            if reply.status == 404:
                raise missing(key)
            problem = _differs(reply)
            if not problem:
                return reply.body
        raise CorruptError(f"object {key!r} is damaged, or its reader's connection: {problem}")

    def _media(self, key: str, start: int, span: str, length: int | None) -> Reply:
        """Return an object's bytes `span`, or status 416 if it has none of them.

        Raises CorruptError if there are fewer than `length`.
        """
        tries = Tries(f"read {key!r}")

        def take(response: BaseHTTPResponse) -> bytes:
            if response.status == 200:  # allowed if it is the whole, which a cache may prefer
                body = response.read()[start:]
                if length is None:
                    return body
                if len(body) < length:
                    raise short_read(key, start, length, len(body))
                return body[:length]
            got = _span(response, start)
            if length is not None and got < length:
                raise short_read(key, start, length, got)
            body = response.read()
            if len(body) != got:
                raise ProtocolError(f"a body of {len(body)} bytes where {got} were announced")
            return body

        reply = self._wire.send(
            tries,
            "GET",
            f"{self._uploads.target(key)}?alt=media",
            headers={"Range": f"bytes={span}"},
            wanted=(200, 206, 404, 416),
            take=take,
        )
        if reply.status == 404:
            raise missing(key)
        return reply

    def _fill(self, key: str, start: int, view: memoryview) -> None:
        """Read into `view`, in pieces; after a cut go on where it was."""
        tries = Tries(f"read {key!r}")
        end = start + len(view)
        at = start
        headers = {"Range": f"bytes={at}-{end - 1}"}

        def take(response: BaseHTTPResponse) -> bytes:
            nonlocal at
            if response.status == 200:
                body = response.read()
                if len(body) < end:
                    raise short_read(key, start, len(view), max(0, len(body) - start))
                view[:] = memoryview(body)[start:end]
                return b""
            got = _span(response, at)
            if at + got != end:
                raise short_read(key, start, len(view), at + got - start)
            while at < end:
                count = response.readinto(view[at - start : at - start + _PIECE])
                if not count:
                    raise ProtocolError(f"a body that ends {end - at} bytes early")
                at += count
                headers["Range"] = f"bytes={at}-{end - 1}"
                tries.renew()
            response.read()  # of nothing, which gives the connection back
            return b""

        reply = self._wire.send(
            tries,
            "GET",
            f"{self._uploads.target(key)}?alt=media",
            headers=headers,
            wanted=(200, 206, 404, 416),
            take=take,
        )
        if reply.status == 404:
            raise missing(key)
        if reply.status == 416:
            raise short_read(key, start, len(view), max(0, self.size(key) - start))

    def _check_span(self, key: str, start: int, wanted: int) -> None:
        size = self.size(key)
        if start + wanted > size:
            raise short_read(key, start, wanted, max(0, size - start))

    # ---- listing

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self._check_open()
        below = f"{check_key(prefix)}/" if prefix else ""
        return self._keys(self._root + below, after)

    def _keys(self, below: str, after: str) -> Iterator[str]:
        skip = len(self._root)
        start = self._root + after if after else ""
        for name in self._names(below, start, self.PAGE):
            key = name[skip:]
            # Others may keep objects of their own in a bucket; theirs have no diced names.
            if key > after and all(map(is_part, key.split("/"))):
                yield key

    def _names(self, below: str, start: str, page: int) -> Iterator[str]:
        """Yield the names of the objects that begin with `below`, from `start` on, sorted."""
        query = {"maxResults": str(page), "fields": "items(name),nextPageToken"}
        if below:
            query["prefix"] = below
        if start > below:
            query["startOffset"] = start
        while True:
            self._check_open()
            reply = self._wire.send(
                Tries(f"list {self.url}"), "GET", f"{self._uploads.objects}?{urlencode(query)}"
            )
            found = reply.json()
            for item in found.get("items", ()):  # a page may be empty and not the last
                yield item["name"]
            token = found.get("nextPageToken")
            if not token:
                return
            query["pageToken"] = token

    # ----

    def close(self) -> None:
        self._closed = True
        self._wire.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"engine {self.url} is closed")


def _parse(location: str) -> tuple[str, str]:
    """Return bucket and prefix."""
    bucket, _, prefix = location.partition("/")
    if not _is_bucket(bucket) or ".." in bucket:
        raise LocationError(
            f"bucket name must be of 3 or more [a-z0-9._-]; got {bucket!r} of gs://{location}"
        )
    prefix = prefix.removesuffix("/")
    if prefix and (
        any(part in ("", ".", "..") for part in prefix.split("/"))
        or not prefix.isprintable()
        or len(prefix.encode(errors="replace")) > _LONGEST_NAME - MAX_KEY - 1
    ):
        raise LocationError(
            f"prefix in a bucket must be printable parts joined by '/', none empty, '.' or '..', "
            f"at most {_LONGEST_NAME - MAX_KEY - 1} bytes; got {prefix!r} of gs://{bucket}"
        )
    return bucket, prefix


def _span(response: BaseHTTPResponse, start: int) -> int:
    """Return how many bytes from `start` a 206 holds."""
    found = _is_span(response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start:
        raise ProtocolError(
            f"the range {response.headers.get('Content-Range')!r} where bytes from {start} were "
            f"asked for"
        )
    return int(found[2]) + 1 - start


def _differs(reply: Reply) -> str:
    """Return how a whole object differs from what its headers say; "" if it does not."""
    size = reply.headers.get("x-goog-stored-content-length")
    if size is not None and int(size) != len(reply.body):
        return f"it has {size} bytes, and {len(reply.body)} came"
    found = re.search(r"crc32c=([A-Za-z0-9+/]{6}==)", reply.headers.get("x-goog-hash", ""))
    if found:
        crc = encoded(crc32c(reply.body))
        if crc != found[1]:
            return f"its crc32c is {found[1]}, and bytes of {crc} came"
    return ""
