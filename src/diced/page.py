"""Index pages: sorted keys with their entries, packed by column, compressed and checksummed.

Owns the bytes of a page, which the byte table in ``docs/format.md`` describes, and the cache of
decoded ones; knows no tree and no medium.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from operator import eq
from typing import Any

import numpy as np

from diced import _index, columns
from diced._compress import zstd_compress, zstd_decompress
from diced._crc32c import crc32c
from diced.cache import Cache
from diced.columns import MAX_KEY, MAX_OFFSET, MAX_RAW, Array, Keys, Pointer, Reader
from diced.errors import CorruptError, InvalidError, UnsupportedError

Entry = Pointer | bytes  # bytes: a small value kept in the index itself

__all__ = [
    "MAX_ENTRIES",
    "MAX_INLINE",
    "MAX_KEY",
    "MAX_OFFSET",
    "MAX_RAW",
    "Entry",
    "PackBuilder",
    "Page",
    "PageCache",
    "Pointer",
    "decode_page",
    "encode_page",
    "page_name",
]

MAX_ENTRIES = 1 << 20
MAX_INLINE = 1 << 20
MAX_COUNT = 1 << 43  # times MAX_ENTRIES is still below 2**64

_MAGIC = b"dIPg"
_VERSION = 1
_ZSTD, _EVEN = 1, 2
_HEADER = struct.Struct("<4sBBHIIII")
_CHECK = struct.Struct("<I")
_SIZES = struct.Struct("<HHIII")
_HEADER_SIZE = _HEADER.size + _CHECK.size
_POINTER, _INLINE, _TOMBSTONE = 0, 1, 2
_LEVEL = 3


# A page's places in its serial number: index.py notes where in which page a child was found.
_SERIALS = itertools.count(MAX_ENTRIES, MAX_ENTRIES)


class Page(_index.Table):
    """A decoded page: immutable, columns in memory, no Python object per key.

    Attributes
    ----------
    level : int
        0 for a leaf.
    count : int
        Number of keys in the leaves at or below this page.
    has_tombstones : bool
        Whether any entry is a tombstone, which only deltas hold.
    nbytes : int
        Memory held, for the accounts of caches.
    serial : int
        Differs by `MAX_ENTRIES` or more between any two pages of a process.
    place : int
        Note of the tree: serial number plus index of the parent's entry that this page was last
        found to be what it says; 0 at first.
    used : bool
        Note of the cache: asked for since it was last looked at.
    """

    __slots__ = (
        "_counts",
        "count",
        "has_tombstones",
        "level",
        "nbytes",
        "place",
        "serial",
        "used",
    )

    def __init__(
        self,
        level: int,
        keys: Keys,
        kinds: bytes,
        places: tuple[Array, Array, Array],
        objects: list[int],
        values: bytes,
        counts: Array | None,
    ):
        super().__init__(*keys, kinds, *places, objects, values)
        self.level = level
        self._counts = None if counts is None else memoryview(counts.data)
        self.count = len(kinds) if counts is None else int(counts.sum())
        self.has_tombstones = _TOMBSTONE in kinds
        self.nbytes = (
            1000
            + len(keys[0])
            + len(keys[1])
            + len(values)
            + 40 * len(objects)
            + (15 if counts is None else 23) * len(kinds)
        )
        self.serial = next(_SERIALS)
        self.place = 0
        self.used = False

    @property
    def keys(self) -> list[bytes]:
        """The keys in order; built anew by each access."""
        return self.key_range(0, len(self))

    def counts(self, start: int, stop: int) -> list[int]:
        """Return the counts of keys under the children ``start <= index < stop``."""
        if self._counts is None:
            raise InvalidError("a leaf page has no children")
        return self._counts[start:stop].tolist()

    def items(self) -> Iterator[tuple[bytes, Entry | None]]:
        """Return an iterator over (key, entry) in order."""
        return zip(self.keys, self.entry_range(0, len(self)), strict=True)


class PageCache(Cache[Page]):
    """Decoded pages by pointer, those used of late, bounded by memory; safe among threads.

    Call it with a pointer to get the page. No lock is held while a page is read and decoded, so
    two threads that miss the same page at once may both read it.

    Parameters
    ----------
    read : callable
        Returns the bytes of a pointer.
    budget_bytes : int
        Limit on the sum of `Page.nbytes`; a page above it is returned but not kept.
    """

    def __init__(self, read: Callable[[Pointer], bytes], budget_bytes: int):
        super().__init__(budget_bytes)
        self._read = read

    def __call__(self, pointer: Pointer) -> Page:
        page = self._kept.get(pointer)
        if page is not None:
            page.used = True
            return page
        try:
            page = decode_page(self._read(pointer))
        except CorruptError as error:
            raise CorruptError(f"{page_name(pointer)}: {error}") from error
        return self.put(pointer, page)


def page_name(pointer: Pointer) -> str:
    """Return what errors call the page of a pointer."""
    return f"index page at {pointer[1]} of object {pointer[0]:016x}"


class PackBuilder:
    """New pages, to be stored as one object.

    Parameters
    ----------
    object_id : int
        Of the object that the bytes will be stored as.
    base : int
        Offset in that object at which they will begin.
    """

    def __init__(self, object_id: int, base: int = 0):
        self.object_id = object_id
        self.base = base
        self._chunks: list[bytes] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, data: bytes) -> Pointer:
        """Append the bytes of one page and return where they will be found."""
        offset = self.base + self._size
        if offset >= MAX_OFFSET:
            raise InvalidError(f"a pack ends before byte {MAX_OFFSET}; got one at {offset}")
        self._chunks.append(data)
        self._size += len(data)
        return self.object_id, offset, len(data)

    def tobytes(self) -> bytes:
        """Return all pages, one after another."""
        return b"".join(self._chunks)


def encode_page(
    keys: Sequence[bytes],
    entries: Sequence[Entry | None],
    level: int,
    counts: Sequence[int] | None = None,
) -> bytes:
    """Pack sorted keys and their entries.

    Parameters
    ----------
    keys : sequence of bytes
        Strictly ascending, each of at most `MAX_KEY` bytes, at most `MAX_ENTRIES`.
    entries : sequence of pointers, bytes or None
        One per key; None is a tombstone. Above level 0 there are only pointers.
    level : int
        0 for a leaf; at most 255.
    counts : sequence of int
        Above level 0 only: the number of keys in the leaves under each child.

    Raises
    ------
    InvalidError
        If keys are not ascending or anything is outside its limits.
    """
    n = len(keys)
    if len(entries) != n or n > MAX_ENTRIES or not 0 <= level <= (255 if n else 0):
        raise InvalidError(
            f"a page of level 0 to 255 (0 if empty) has up to {MAX_ENTRIES} keys and entries; "
            f"got {n} keys and {len(entries)} entries at level {level}"
        )
    if (counts is None) != (level == 0) or (counts is not None and len(counts) != n):
        raise InvalidError(f"pages above level 0, and only they, need {n} counts; level {level}")
    even, payload = (False, b"") if n == 0 else _payload(keys, entries, counts)
    if len(payload) > MAX_RAW:
        raise InvalidError(f"page has {len(payload)} bytes; at most {MAX_RAW} fit")
    # No column of a page this small repays zstd's own 13 bytes.
    stored = payload if len(payload) < 48 else zstd_compress(payload, _LEVEL)
    packed = len(stored) < len(payload)
    if not packed:
        stored = payload
    flags = (_ZSTD if packed else 0) | (_EVEN if even else 0)
    head = _HEADER.pack(
        _MAGIC, _VERSION, level, flags, n, len(payload), len(stored), crc32c(stored)
    )
    return b"".join((head, _CHECK.pack(crc32c(head)), stored))


def decode_page(data: Any) -> Page:
    """Unpack and check a page.

    Parameters
    ----------
    data : bytes-like
        Exactly one page.

    Raises
    ------
    CorruptError
        If the bytes are not a well-formed page.
    UnsupportedError
        If the page is sound but of a newer format.
    """
    data = memoryview(data).cast("B")
    if len(data) < _HEADER_SIZE:
        raise CorruptError(f"index page of {len(data)} bytes; its header alone is {_HEADER_SIZE}")
    magic, version, level, flags, n, raw, stored, check = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptError(f"no index page: magic is {magic!r}, not {_MAGIC!r}")
    if _CHECK.unpack_from(data, _HEADER.size)[0] != crc32c(data[: _HEADER.size]):
        raise CorruptError("index page: header does not match its checksum")
    if version != _VERSION or flags & ~(_ZSTD | _EVEN):
        raise UnsupportedError(
            f"index page of format {version} with flags {flags:#x} needs a newer diced"
        )
    body = data[_HEADER_SIZE:]
    if stored != len(body):
        raise CorruptError(f"index page: {len(body)} bytes of payload, not {stored}")
    if crc32c(body) != check:
        raise CorruptError("index page: payload does not match its checksum")
    if raw > MAX_RAW or n > MAX_ENTRIES:
        raise CorruptError(f"index page claims {n} keys in {raw} bytes; too many")
    if flags & _ZSTD:
        target = bytearray(raw)
        zstd_decompress(body, target)
        body = memoryview(target)
    elif raw != stored:
        raise CorruptError(f"index page: stored as {stored} bytes, not {raw}")
    return _read_payload(Reader(body), level, n, bool(flags & _EVEN))


def _payload(
    keys: Sequence[bytes], entries: Sequence[Entry | None], counts: Sequence[int] | None
) -> tuple[bool, bytes]:
    n = len(keys)
    flat = b"".join(keys)
    lengths = np.fromiter(map(len, keys), np.int64, n)
    longest = int(lengths.max())
    if longest > MAX_KEY or len(flat) > MAX_RAW:
        raise InvalidError(
            f"keys of a page have at most {MAX_KEY} bytes each and {MAX_RAW} together; "
            f"got one of {longest} and {len(flat)} together"
        )
    ends = lengths.cumsum().astype(np.uint32)
    wrong = _index.disorder(flat, ends)
    if wrong >= 0:
        raise InvalidError(f"keys must ascend; key {wrong} is {keys[wrong]!r}")
    prefix = len(list(itertools.takewhile(bool, map(eq, keys[0], keys[-1]))))  # of all between, too
    even = int(lengths.min()) == longest
    if even:
        groups, key_parts = columns.pack_grid(flat, n, longest, prefix)
    else:
        groups, key_parts = columns.pack_names(flat, ends, prefix)
    # Pointers only is by far the commonest, and asking each entry takes a fifth of the time.
    kinds = bytes(n) if set(map(type, entries)) == {tuple} else bytes(map(_kind, entries))
    middle = []
    if counts is not None:
        if kinds.count(_POINTER) != n:
            raise InvalidError("a page above level 0 holds pointers only")
        if not 0 < min(counts) <= max(counts) < MAX_COUNT:
            raise InvalidError(f"counts must be 1 to {MAX_COUNT - 1}")
        middle.append(columns.pack(np.array(counts, np.uint64)))
    pointers = [entry for entry in entries if isinstance(entry, tuple)]
    objects = runs = 0
    if pointers:
        objects, runs, parts = columns.pack_pointers(pointers)
        middle += parts
    values = [entry for entry in entries if isinstance(entry, bytes)]
    sizes = np.fromiter(map(len, values), np.uint64, len(values))
    if values and int(sizes.max()) > MAX_INLINE:
        raise InvalidError(f"inline value of {sizes.max()} bytes; at most {MAX_INLINE}")
    head = _SIZES.pack(prefix, longest - prefix if even else 0, groups, objects, runs)
    parts = [head, keys[0][:prefix], *key_parts, kinds, *middle, columns.pack(sizes), *values]
    return even, b"".join(parts)


def _kind(entry: Entry | None) -> int:
    if isinstance(entry, tuple):
        return _POINTER
    if isinstance(entry, bytes):
        return _INLINE
    if entry is None:
        return _TOMBSTONE
    raise InvalidError(f"an entry is a pointer, bytes or None; got {type(entry).__name__}")


def _read_payload(reader: Reader, level: int, n: int, even: bool) -> Page:
    if n == 0:
        if level or even or reader.rest():
            raise CorruptError(f"index page: empty, yet level {level}, {reader.rest()} bytes")
        none = np.zeros(0, np.uint64)
        empty = (none, none.astype(np.uint32), none.astype(np.uint16))
        return Page(0, (b"", b"", 0), b"", empty, [], b"", None)
    prefix, suffix, groups, objects, runs = _SIZES.unpack(reader.take(_SIZES.size))
    head = reader.array(prefix)
    if even:
        keys, ends = columns.read_grid(reader, n, head, suffix, groups)
    elif suffix:
        raise CorruptError(f"index page: keys of several lengths, yet all of {suffix} bytes")
    else:
        keys, ends = columns.read_names(reader, n, head, groups)
    wrong = _index.disorder(keys[0], ends)
    if wrong >= 0:
        raise CorruptError(f"index page: key {wrong} is not above the one before")
    kinds = bytes(reader.take(n))
    pointers, inline = kinds.count(_POINTER), kinds.count(_INLINE)
    if pointers + inline + kinds.count(_TOMBSTONE) != n:
        raise CorruptError("index page: unknown kind of entry")
    counts = None
    if level:
        if pointers != n:
            raise CorruptError(f"index page: level {level} with entries that are no pointers")
        counts = reader.column(n, MAX_COUNT)
        if not counts.all():
            raise CorruptError("index page: a child without keys")
    where = np.zeros(n, np.uint64)
    length = np.zeros(n, np.uint32)
    owner = np.zeros(n, np.uint16)
    table: list[int] = []
    codes = None if pointers == n else np.frombuffer(kinds, np.uint8)
    if pointers:
        table, order, *found = columns.read_pointers(reader, pointers, objects, runs)
        if codes is not None:
            order = np.flatnonzero(codes == _POINTER)[order]
        where[order], length[order], owner[order] = found
    elif objects or runs:
        raise CorruptError(f"index page: {objects} objects and {runs} runs without pointers")
    sizes = reader.column(inline, MAX_INLINE + 1)
    values = bytes(reader.take(reader.rest()))
    bounds = sizes.cumsum()
    if (int(bounds[-1]) if inline else 0) != len(values):
        raise CorruptError(f"index page: inline values do not fill {len(values)} bytes")
    if inline:
        at = slice(None) if inline == n else np.flatnonzero(codes == _INLINE)
        where[at] = bounds - sizes
        length[at] = sizes
    return Page(level, keys, kinds, (where, length, owner), table, values, counts)
