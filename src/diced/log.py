"""Commit records and the numbered log that orders them: the one ordering point of a lane.

A record is published by creating its number if absent. Numbers have no gaps, records never change,
and a record is put only after the data it points to is durable (invariants I2 and I3). Small
frames may ride at the end of their record's object. The byte tables are in ``docs/format.md``.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from diced import jsontext, keys, pool
from diced._crc32c import crc32c
from diced.engine.base import Engine, Staged
from diced.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from diced.page import decode_page, encode_page

RECORD = struct.Struct("<4sBBHI")  # magic, version, type, sections, header length
SECTION = struct.Struct("<BBHI")  # kind, space, form, length
CHECK = struct.Struct("<I")
MAGIC = b"dRec"
VERSION = 1

DATA, LOCK, ROLL, PROPOSAL, SNAPSHOT, LOCKED_NODE = 1, 2, 3, 4, 5, 6
DELTA, READS = 1, 2
PAGE, ROWS = 0, 1  # forms of a section

# Few and short entries go as rows. A page packs them better, but takes 100 us where a row takes
# 1 us, and a record takes a block of the file system in any case.
MAX_ROWS = 100
MAX_ROWS_BYTES = 3584
ROW = struct.Struct("<HB")  # key length, kind of entry; the key follows, and then one of these
ROW_POINTER = struct.Struct("<QQI")
ROW_INLINE = struct.Struct("<I")
TOMBSTONE, POINTER, INLINE = 0, 1, 2

SECTION_KEYS = 32768
SECTION_BYTES = 4 * 2**20

# A pointer to a frame behind a record: (node, RIDES | record number << RIDE_BITS | offset, length).
RIDES = 1 << 47
RIDE_BITS = 23
MAX_RIDING = 1 << RIDE_BITS  # bytes of a record's object
LAST_RIDDEN = (1 << 47 - RIDE_BITS) - 1  # the last record that frames can ride behind
# What is read first of a record on an engine where another request costs more than some bytes.
PEEK_BYTES = 32 * 1024

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
    frames : bytes
        Frames that follow the record in its object; ``head["frames"]`` is their size. Pointers
        to them count from the first as long as the record has no number.
    size : int
        Bytes of the record itself, once encoded or decoded: where the frames begin.
    """

    __slots__ = ("delta", "frames", "head", "reads", "size", "type")

    def __init__(
        self,
        record_type: int,
        head: dict[str, Any],
        delta: Delta | None = None,
        reads: Reads | None = None,
        frames: bytes = b"",
    ):
        self.type = record_type
        self.head = head
        self.delta = delta or {}
        self.reads = reads or {}
        self.frames = frames
        self.size = 0
        if frames:
            head["frames"] = len(frames)

    def encode(self) -> bytes:
        """Return the bytes of the record, and of the frames behind it."""
        sections: list[bytes] = []
        count = 0
        for kind, spaces in ((DELTA, self.delta), (READS, self.reads)):
            for space, named in sorted(spaces.items()):
                changes = named if isinstance(named, dict) else dict.fromkeys(named)
                for form, data in _encode_entries(changes):
                    sections += [SECTION.pack(kind, space, form, len(data)), data]
                    count += 1
        head = jsontext.dumps(self.head)
        body = b"".join([RECORD.pack(MAGIC, VERSION, self.type, count, len(head)), head, *sections])
        self.size = len(body) + CHECK.size
        return body + CHECK.pack(crc32c(body)) + self.frames

    def place(self, node_id: str, number: int) -> None:
        """Make pointers to the frames behind this record good for anywhere, now it has a number."""
        if not self.head.get("frames"):
            return
        if number > LAST_RIDDEN:
            raise InvalidError(f"frames cannot ride behind record {number}, past {LAST_RIDDEN}")
        node, start = int(node_id, 16), RIDES | number << RIDE_BITS
        for changes in self.delta.values():
            for key, entry in changes.items():
                if isinstance(entry, tuple) and entry[1] & RIDES and not entry[1] & ~_OWN:
                    changes[key] = (node, start | self.size + (entry[1] ^ RIDES), entry[2])

    @staticmethod
    def measure(data: bytes) -> int:
        """Return how many bytes the record that begins here has, or would need to tell more."""
        if len(data) < RECORD.size:
            return RECORD.size
        sections, head_length = RECORD.unpack_from(data)[3:]
        at: int = RECORD.size + head_length
        for _ in range(sections):
            if len(data) < at + SECTION.size:
                return at + SECTION.size + CHECK.size
            at += SECTION.size + SECTION.unpack_from(data, at)[3]
        return at + CHECK.size

    @classmethod
    def decode(cls, data: bytes, name: str) -> Record:
        """Read a record; `name` goes into messages. Frames behind it need not be there.

        Raises
        ------
        CorruptError, UnsupportedError
        """
        size = cls.measure(data)
        if len(data) < max(size, RECORD.size + CHECK.size):
            raise CorruptError(f"{name}: {len(data)} bytes cannot be a record")
        body = data[: size - CHECK.size]
        if crc32c(body) != CHECK.unpack_from(data, len(body))[0]:
            raise CorruptError(f"{name}: the record does not match its checksum")
        magic, version, record_type, sections, head_length = RECORD.unpack_from(body)
        if magic != MAGIC:
            raise CorruptError(f"{name}: no record: magic is {magic!r}")
        if version != VERSION:
            raise UnsupportedError(f"{name}: record format {version} needs a newer diced")
        offset = RECORD.size + head_length
        try:
            head = jsontext.loads(body[RECORD.size : offset])
        except ValueError as error:
            raise CorruptError(f"{name}: header is not JSON: {error}") from None
        delta: Delta = {}
        reads: Reads = {}
        for _ in range(sections):
            kind, space, form, length = SECTION.unpack_from(body, offset)
            offset += SECTION.size
            part = body[offset : offset + length]
            offset += length
            if form == PAGE:
                changes = dict(decode_page(part).items())
            elif form == ROWS:
                changes = _decode_rows(part, name)
            else:
                raise UnsupportedError(f"{name}: section form {form} needs a newer diced")
            if kind == DELTA:
                delta.setdefault(space, {}).update(changes)
            elif kind == READS:
                reads.setdefault(space, []).extend(changes)
            else:
                raise CorruptError(f"{name}: unknown section kind {kind}")
        found = cls(record_type, head, delta, reads)
        found.size = size
        found.frames = data[size:]
        if len(found.frames) > head.get("frames", 0):
            raise CorruptError(f"{name}: {len(found.frames)} bytes behind the record")
        return found

    def commits(self) -> list[dict[str, Any]]:
        """Return the head of each commit in this record: its own, or those that were gathered."""
        gathered: list[dict[str, Any]] = self.head.get("parts", [self.head])
        return gathered


_OWN = RIDES | (MAX_RIDING - 1)  # the bits of a pointer's offset while its record has no number


def rider(offset: int, length: int) -> Pointer:
    """Return the pointer to a frame that will ride behind a record that has no number yet."""
    return 0, RIDES | offset, length


def shift(entry: Entry | None, by: int) -> Entry | None:
    """Return an entry whose frame, if it rides, comes after `by` more bytes of other frames."""
    if isinstance(entry, tuple) and entry[1] & RIDES and not entry[1] & ~_OWN:
        return entry[0], entry[1] + by, entry[2]
    return entry


def _encode_entries(changes: Mapping[bytes, Entry | None]) -> Iterator[tuple[int, bytes]]:
    """Yield the form and bytes of each section that these changes need."""
    items = sorted(changes.items(), key=itemgetter(0))
    if 0 < len(items) <= MAX_ROWS:
        rows = _encode_rows(items)
        if rows is not None:
            yield ROWS, rows
            return
    keys_part: list[bytes] = []
    entries: list[Entry | None] = []
    size = 0
    for key, entry in items:
        keys_part.append(key)
        entries.append(entry)
        size += len(key) + (len(entry) if isinstance(entry, bytes) else 0)
        if len(keys_part) == SECTION_KEYS or size >= SECTION_BYTES:
            yield PAGE, encode_page(keys_part, entries, 0)
            keys_part, entries, size = [], [], 0
    if keys_part:
        yield PAGE, encode_page(keys_part, entries, 0)


def _encode_rows(items: list[tuple[bytes, Entry | None]]) -> bytes | None:
    """Return keys and entries one after the other, or None if they are too long for that."""
    parts: list[bytes] = []
    for key, entry in items:
        if entry is None:
            parts += (ROW.pack(len(key), TOMBSTONE), key)
        elif isinstance(entry, bytes):
            parts += (ROW.pack(len(key), INLINE), key, ROW_INLINE.pack(len(entry)), entry)
        else:
            parts += (ROW.pack(len(key), POINTER), key, ROW_POINTER.pack(*entry))
    rows = b"".join(parts)
    return rows if len(rows) <= MAX_ROWS_BYTES else None


def _decode_rows(data: bytes, name: str) -> dict[bytes, Entry | None]:
    changes: dict[bytes, Entry | None] = {}
    at, last = 0, None
    try:
        while at < len(data):
            length, kind = ROW.unpack_from(data, at)
            at += ROW.size
            key = data[at : at + length]
            at += length
            entry: Entry | None = None
            if kind == POINTER:
                entry = ROW_POINTER.unpack_from(data, at)
                at += ROW_POINTER.size
            elif kind == INLINE:
                (size,) = ROW_INLINE.unpack_from(data, at)
                at += ROW_INLINE.size + size
                entry = data[at - size : at]
            elif kind != TOMBSTONE:
                raise CorruptError(f"{name}: unknown kind of entry {kind}")
            if last is not None and key <= last:
                raise CorruptError(f"{name}: keys are not ascending")
            changes[key] = entry
            last = key
    except struct.error:
        at = len(data) + 1
    if at != len(data):
        raise CorruptError(f"{name}: a section of {len(data)} bytes is cut short")
    return changes


def new_txid() -> str:
    """Return a fresh 128-bit transaction id as hex."""
    return os.urandom(16).hex()


def now() -> str:
    """Return the time as RFC 3339 in UTC. For people only: nothing is ordered by it."""
    seconds = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{int(seconds % 1 * 1e6):06d}Z"


class CommitLog:
    """The records of one lane at one node, by number from 1."""

    def __init__(self, engine: Engine, prefix: str, node_id: str):
        self.engine = engine
        self.prefix = prefix
        self.node_id = node_id

    def tail(self, known: int) -> int:
        """Return the highest number in the log, given that `known` (or 0) is in it.

        Numbers have no gaps, so doubling steps and then halving find the end in a few probes. On
        a remote engine a listing does, which is one request; a stale one is an older state.
        """
        if self.engine.remote:
            last = known
            for key in self.engine.list(keys.records(self.prefix), keys.record(self.prefix, known)):
                if key != keys.record(self.prefix, last + 1):
                    break
                last += 1
            return last
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
        """Read one record, without the frames behind it where that saves a transfer."""
        key = keys.record(self.prefix, number)
        if self.engine.remote:
            data = self.engine.peek(key, PEEK_BYTES)
            while len(data) >= PEEK_BYTES and (size := Record.measure(data)) > len(data):
                data = self.engine.peek(key, size)
                if len(data) < size:
                    break  # cut short: decoding tells
        else:
            data = self.engine.get(key)
        record = Record.decode(data, key)
        record.place(self.node_id, number)
        return record

    def find(self, number: int) -> Record | None:
        """Read one record, or return None if it does not exist."""
        try:
            return self.read(number)
        except NotFoundError:
            return None

    def find_many(self, numbers: range) -> Iterator[Record | None]:
        """As `find` of each number in order, side by side."""
        return pool.map_ordered(self.find, numbers, pool.LIMIT)

    def read_many(self, numbers: Iterable[int]) -> Iterator[Record]:
        """Read records in order, side by side on a remote engine."""
        if self.engine.remote:
            return pool.map_ordered(self.read, numbers, pool.LIMIT)
        return map(self.read, numbers)

    def put(self, number: int, data: bytes, txid: str) -> bool:
        """Publish a record at a number, once; False when another writer has it."""
        return self.engine.put_fresh(keys.record(self.prefix, number), data, bytes.fromhex(txid))

    def stage(self, data: bytes, txid: str) -> Staged:
        """Begin to publish a record whose number is not known yet."""
        return self.engine.stage(self.prefix, data, bytes.fromhex(txid))

    def name(self, staged: Staged, number: int) -> bool:
        """Publish a staged record at a number; False when another writer has it."""
        return staged.name(keys.record(self.prefix, number))

    def survey(self) -> tuple[int, int]:
        """Return the numbers of the newest snapshot and of the last record, by one listing."""
        snapshots, records = keys.snapshots(self.prefix) + "/", keys.records(self.prefix) + "/"
        newest = last = 0
        for key in self.engine.list(self.prefix):  # snapshots come first
            if key.startswith(snapshots):
                newest = int(key[len(snapshots) :])
            elif not key.startswith(records):
                break
            else:
                last = int(key[len(records) :])
                if newest - last > 512:  # a page of names or more that nobody needs
                    return newest, self.tail(newest)
        return newest, max(newest, last)

    def snapshot(self, number: int) -> Record | None:
        """Return the snapshot after a record, or None if there is no good one."""
        key = keys.snapshot(self.prefix, number)
        try:
            return Record.decode(self.engine.get(key), key)
        except (CorruptError, NotFoundError):
            return None  # derived data: an older one, or the log itself, gives the same state

    def newest_snapshot(self, at_most: int | None = None) -> Record | None:
        """Return the newest readable snapshot. A listing may be stale: it is only a hint."""
        names = list(self.engine.list(keys.snapshots(self.prefix)))
        for key in reversed(names):
            number = int(key.rsplit("/", 1)[1])
            found = self.snapshot(number) if at_most is None or number <= at_most else None
            if found is not None:
                return found
        return None

    def put_snapshot(self, number: int, snapshot: Record) -> None:
        """Publish a snapshot; an equal one by another process is as good."""
        self.engine.put_if_absent(
            keys.snapshot(self.prefix, number),
            snapshot.encode(),
            bytes.fromhex(snapshot.head["txid"]),
        )
