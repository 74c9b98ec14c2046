"""Commit records and the numbered log that orders them: the one ordering point of a lane.

A record is published by creating its number if absent. Numbers have no gaps, records never change,
and a record is put only after the data it points to is durable (invariants I2 and I3). The byte
tables are in ``docs/format.md``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from diced import jsontext, keys
from diced._crc32c import crc32c
from diced.engine.base import Engine
from diced.errors import CorruptError, NotFoundError, UnsupportedError
from diced.page import decode_page, encode_page

RECORD = struct.Struct("<4sBBHI")  # magic, version, type, sections, header length
SECTION = struct.Struct("<BBHI")  # kind, space, 0, length
CHECK = struct.Struct("<I")
MAGIC = b"dRec"
VERSION = 1

DATA, LOCK, ROLL, PROPOSAL, SNAPSHOT, LOCKED_NODE = 1, 2, 3, 4, 5, 6
DELTA, READS = 1, 2
SECTION_KEYS = 32768
SECTION_BYTES = 4 * 2**20

Pointer = tuple[int, int, int]
Entry = Pointer | bytes
Delta = dict[int, dict[bytes, "Entry | None"]]
Reads = dict[int, list[bytes]]


class Record:
    """One commit: a JSON header, the changed keys of each space, and the keys it depended on.

    Attributes
    ----------
    type : int
        DATA, LOCK, ROLL or PROPOSAL in a log; SNAPSHOT and LOCKED_NODE are derived objects that
        share the container.
    head : dict
        ``txid`` always; for DATA also ``base``, ``user``, ``time``, ``op``, ``box``; ``body``
        when the sections are in a COMMIT frame of a segment instead of here.
    delta : dict
        space -> key -> pointer, inline bytes, or None for a tombstone.
    reads : dict
        space -> keys whose latest state below this number was merged into this commit.
    """

    __slots__ = ("delta", "head", "reads", "type")

    def __init__(
        self,
        record_type: int,
        head: dict[str, Any],
        delta: Delta | None = None,
        reads: Reads | None = None,
    ):
        self.type = record_type
        self.head = head
        self.delta = delta or {}
        self.reads = reads or {}

    def encode(self) -> bytes:
        """Return the bytes of the record."""
        sections = [
            (DELTA, space, page)
            for space, changes in sorted(self.delta.items())
            for page in _encode_entries(changes.items())
        ]
        sections += [
            (READS, space, page)
            for space, names in sorted(self.reads.items())
            for page in _encode_entries((key, None) for key in names)
        ]
        head = jsontext.dumps(self.head)
        parts = [RECORD.pack(MAGIC, VERSION, self.type, len(sections), len(head)), head]
        for kind, space, data in sections:
            parts += [SECTION.pack(kind, space, 0, len(data)), data]
        body = b"".join(parts)
        return body + CHECK.pack(crc32c(body))

    @classmethod
    def decode(cls, data: bytes, name: str) -> Record:
        """Read a record; `name` goes into messages.

        Raises
        ------
        CorruptError, UnsupportedError
        """
        if len(data) < RECORD.size + CHECK.size:
            raise CorruptError(f"{name}: {len(data)} bytes cannot be a record")
        body = data[: -CHECK.size]
        if crc32c(body) != CHECK.unpack_from(data, len(body))[0]:
            raise CorruptError(f"{name}: the record does not match its checksum")
        magic, version, record_type, sections, head_length = RECORD.unpack_from(body)
        if magic != MAGIC:
            raise CorruptError(f"{name}: no record: magic is {magic!r}")
        if version != VERSION:
            raise UnsupportedError(f"{name}: record format {version} needs a newer diced")
        offset = RECORD.size + head_length
        if offset > len(body):
            raise CorruptError(f"{name}: header of {head_length} bytes does not fit")
        try:
            head = jsontext.loads(body[RECORD.size : offset])
        except ValueError as error:
            raise CorruptError(f"{name}: header is not JSON: {error}") from None
        delta: Delta = {}
        reads: Reads = {}
        for _ in range(sections):
            if offset + SECTION.size > len(body):
                raise CorruptError(f"{name}: sections do not fit")
            kind, space, _zero, length = SECTION.unpack_from(body, offset)
            offset += SECTION.size
            if offset + length > len(body):
                raise CorruptError(f"{name}: a section of {length} bytes does not fit")
            page = decode_page(body[offset : offset + length])
            offset += length
            if kind == DELTA:
                changes = delta.setdefault(space, {})
                changes.update(page.items())
            elif kind == READS:
                reads.setdefault(space, []).extend(page.keys)
            else:
                raise CorruptError(f"{name}: unknown section kind {kind}")
        if offset != len(body):
            raise CorruptError(f"{name}: {len(body) - offset} bytes too many")
        return cls(record_type, head, delta, reads)


def _encode_entries(items: Iterable[tuple[bytes, Entry | None]]) -> Iterator[bytes]:
    """Yield pages of at most SECTION_KEYS keys and about SECTION_BYTES of keys and values."""
    keys_part: list[bytes] = []
    entries: list[Entry | None] = []
    size = 0
    for key, entry in sorted(items, key=lambda item: item[0]):
        keys_part.append(key)
        entries.append(entry)
        size += len(key) + (len(entry) if isinstance(entry, bytes) else 0)
        if len(keys_part) == SECTION_KEYS or size >= SECTION_BYTES:
            yield encode_page(keys_part, entries, 0)
            keys_part, entries, size = [], [], 0
    if keys_part:
        yield encode_page(keys_part, entries, 0)


def new_txid() -> str:
    """Return a fresh 128-bit transaction id as hex."""
    return os.urandom(16).hex()


class CommitLog:
    """The records of one lane at one node, by number from 1."""

    def __init__(self, engine: Engine, prefix: str):
        self.engine = engine
        self.prefix = prefix

    def tail(self, known: int) -> int:
        """Return the highest number in the log, given that `known` (or 0) is in it.

        Numbers have no gaps, so doubling steps and then halving find the end in a few probes.
        """
        low, step = known, 1
        while self.engine.exists(keys.record(self.prefix, low + step)):
            low, step = low + step, step * 2
        while step > 1:
            step //= 2
            if self.engine.exists(keys.record(self.prefix, low + step)):
                low += step
        return low

    def has(self, number: int) -> bool:
        """Tell whether a record exists: the freshness probe, one ``stat`` on a disk."""
        return self.engine.exists(keys.record(self.prefix, number))

    def read(self, number: int) -> Record:
        """Read one record."""
        key = keys.record(self.prefix, number)
        return Record.decode(self.engine.get(key), key)

    def put(self, number: int, data: bytes, txid: str) -> bool:
        """Publish a record at a number; False when another writer has it."""
        return self.engine.put_if_absent(
            keys.record(self.prefix, number), data, bytes.fromhex(txid)
        )

    def newest_snapshot(self, at_most: int | None = None) -> Record | None:
        """Return the newest readable snapshot. A listing may be stale: it is only a hint."""
        names = list(self.engine.list(keys.snapshots(self.prefix)))
        for key in reversed(names):
            if at_most is not None and int(key.rsplit("/", 1)[1]) > at_most:
                continue
            try:
                return Record.decode(self.engine.get(key), key)
            except (CorruptError, NotFoundError):
                continue  # derived data: an older one, or the log itself, gives the same state
        return None

    def put_snapshot(self, number: int, snapshot: Record) -> None:
        """Publish a snapshot; an equal one by another process is as good."""
        self.engine.put_if_absent(
            keys.snapshot(self.prefix, number),
            snapshot.encode(),
            bytes.fromhex(snapshot.head["txid"]),
        )
