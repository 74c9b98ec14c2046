"""Columns of index pages: numbers, keys and pointers as bytes that compress well, and back.

Owns the packed form of each part of a page (the table is in `page`); knows no page. Readers trust
no length or number they read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diced import _index
from diced.errors import CorruptError, InvalidError

Pointer = tuple[int, int, int]  # object id (uint64), offset (48 bits), length (uint32)
Keys = tuple[bytes, bytes, int]  # all keys, their ends and their width, as in `_index`
Array = np.ndarray[Any, np.dtype[Any]]

MAX_KEY = 4096
MAX_RAW = 16 << 20  # of payload, and of keys after expansion
MAX_OBJECTS = 1 << 16
MAX_OFFSET = 1 << 48


def pack(values: Array) -> bytes:
    """Return a column: unsigned integers by byte plane, lowest first, after their width."""
    width = (int(values.max()).bit_length() + 7) // 8 if len(values) else 0
    planes = values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width]
    return bytes((width,)) + planes.T.tobytes()


class Reader:
    """A cursor over a payload that never reads past its end."""

    def __init__(self, data: memoryview):
        self._data = data
        self._at = 0

    def rest(self) -> int:
        """Return how many bytes are left."""
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        at = self._at
        if size > len(self._data) - at:
            raise CorruptError(f"index page: {size} bytes at {at} of {len(self._data)} are missing")
        self._at = at + size
        return self._data[at : at + size]

    def array(self, size: int) -> Array:
        """Return the next bytes as uint8."""
        return np.frombuffer(self.take(size), np.uint8)

    def column(self, count: int, limit: int = 1 << 64) -> Array:
        """Return `count` uint64, all below `limit`."""
        width = self.take(1)[0]
        if width > 8:
            raise CorruptError(f"index page: a column of {width} bytes per number")
        wide = np.zeros((count, 8), np.uint8)
        wide[:, :width] = self.array(width * count).reshape(width, count).T
        values = wide.view("<u8")[:, 0].astype(np.uint64, copy=False)
        if count and width and int(values.max()) >= limit:
            raise CorruptError(f"index page: number {values.max()} is not below {limit}")
        return values


def pack_grid(flat: bytes, n: int, width: int, prefix: int) -> tuple[int, list[bytes]]:
    """Pack n keys of one length; return the number of groups and the parts."""
    low = min(width - prefix, 8)
    matrix = np.frombuffer(flat, np.uint8).reshape(n, width)
    padded = np.zeros((n, 8), np.uint8)
    padded[:, 8 - low :] = matrix[:, width - low :]
    lows = padded.view(">u8")[:, 0].astype(np.uint64)
    heads = matrix[:, prefix : width - low]
    fresh = np.ones(n, bool)
    fresh[1:] = (heads[1:] != heads[:-1]).any(axis=1)
    starts = np.flatnonzero(fresh)
    steps = (lows[1:] - lows[:-1] - np.uint64(1))[~fresh[1:]]
    sizes = np.diff(starts, append=n) - 1
    return len(starts), [
        heads[starts].T.tobytes(),
        pack(sizes),
        pack(lows[starts]),
        pack(steps),
    ]


def read_grid(
    reader: Reader, n: int, prefix: Array, suffix: int, groups: int
) -> tuple[Keys, Array]:
    """Return the keys that `pack_grid` packed, unchecked for order, and their ends."""
    width = len(prefix) + suffix
    if width > MAX_KEY or n * width > MAX_RAW or not 1 <= groups <= n:
        raise CorruptError(f"index page: {n} keys of {width} bytes in {groups} groups")
    low = min(suffix, 8)
    high = suffix - low
    heads = reader.array(high * groups).reshape(high, groups).T
    sizes = reader.column(groups, n).astype(np.int64) + 1
    if int(sizes.sum()) != n:
        raise CorruptError(f"index page: groups of {sizes.sum()} keys, not {n}")
    firsts = reader.column(groups)
    steps = reader.column(n - groups) + np.uint64(1)
    starts = sizes.cumsum() - sizes
    fresh = np.zeros(n, bool)
    fresh[starts] = True
    lows = np.empty(n, np.uint64)
    lows[fresh] = firsts
    lows[~fresh] = steps
    lows = lows.cumsum()  # modulo 2**64; the caller checks the order of the result
    if groups > 1:
        lows -= np.repeat(lows[starts] - firsts, sizes)
    matrix = np.empty((n, width), np.uint8)
    matrix[:, : len(prefix)] = prefix
    if high:
        matrix[:, len(prefix) : width - low] = np.repeat(heads, sizes, axis=0)
    matrix[:, width - low :] = lows.astype(">u8").view(np.uint8).reshape(n, 8)[:, 8 - low :]
    ends = (np.arange(1, n + 1) * width).astype(np.uint32)
    return (matrix.tobytes(), b"" if width else ends.tobytes(), width), ends


def pack_names(flat: bytes, ends: Array, prefix: int) -> tuple[int, list[bytes]]:
    """Front-code keys; return the number of suffix bytes and the parts."""
    shared = np.empty(len(ends), np.uint32)
    sizes = np.empty(len(ends), np.uint32)
    suffixes = np.empty(len(flat), np.uint8)
    used = _index.front_encode(flat, ends, prefix, shared, sizes, suffixes)
    return used, [pack(shared), pack(sizes), suffixes[:used].tobytes()]


def read_names(reader: Reader, n: int, prefix: Array, used: int) -> tuple[Keys, Array]:
    """Return the keys that `pack_names` packed, unchecked for order, and their ends."""
    shared = reader.column(n, MAX_KEY + 1)
    sizes = reader.column(n, MAX_KEY + 1)
    lengths = shared + sizes + np.uint64(len(prefix))
    total = int(lengths.sum())
    if total > MAX_RAW or int(lengths.max()) > MAX_KEY:
        raise CorruptError(f"index page: keys of {total} bytes, one of {lengths.max()}")
    ends = np.empty(n, np.uint32)
    flat = np.empty(total, np.uint8)
    if not _index.front_decode(
        prefix, shared.astype(np.uint32), sizes.astype(np.uint32), reader.take(used), ends, flat
    ):
        raise CorruptError("index page: a key shares more than the key before has")
    return (flat.tobytes(), ends.tobytes(), 0), ends


def pack_pointers(pointers: list[Pointer]) -> tuple[int, int, list[bytes]]:
    """Pack pointers given in key order; return the numbers of objects and runs, and the parts."""
    ids, offsets, sizes = zip(*pointers, strict=True)
    for name, column, limit in (
        ("object id", ids, 1 << 64),
        ("offset", offsets, MAX_OFFSET),
        ("length", sizes, 1 << 32),
    ):
        if min(column) < 0 or max(column) >= limit:
            raise InvalidError(f"pointer with {name} outside 0 to {limit - 1}")
    n = len(pointers)
    table, owner = np.unique(np.array(ids, np.uint64), return_inverse=True)
    if len(table) > MAX_OBJECTS:
        raise InvalidError(f"a page points into at most {MAX_OBJECTS} objects; got {len(table)}")
    owner = owner.reshape(n).astype(np.uint64)
    offset = np.array(offsets, np.uint64)
    order = np.argsort(owner << np.uint64(48) | offset, kind="stable")
    offset, owner = offset[order], owner[order]
    length = np.array(sizes, np.uint64)[order]
    moved = np.ones(n, bool)
    moved[1:] = owner[1:] != owner[:-1]
    gap = offset.copy()
    gap[1:] -= np.where(moved[1:], np.uint64(0), offset[:-1] + length[:-1])
    moved[1:] |= order[1:] < order[:-1]
    run = moved.cumsum() - 1
    by_key = np.empty(n, np.int64)
    by_key[order] = run
    shares = np.bincount(owner[moved].astype(np.int64), minlength=len(table))
    within = gap[~moved]
    skips = within != 0
    return (
        len(table),
        int(run[-1]) + 1,
        [
            pack(table),
            pack(shares - 1),
            pack(by_key),
            pack(length),
            pack(gap[moved]),
            np.packbits(skips, bitorder="little").tobytes(),
            pack(within[skips]),
        ],
    )


def read_pointers(
    reader: Reader, n: int, objects: int, runs: int
) -> tuple[list[int], Any, Array, Array, Array]:
    """Return the object table, the place in key order, then offset, length and object of each."""
    if not 1 <= objects <= min(runs, MAX_OBJECTS) or runs > n:
        raise CorruptError(f"index page: {objects} objects in {runs} runs of {n} pointers")
    table = reader.column(objects).tolist()
    shares = reader.column(objects, runs).astype(np.int64) + 1
    if int(shares.sum()) != runs:
        raise CorruptError(f"index page: {shares.sum()} runs by object, not {runs}")
    run = reader.column(n, runs).astype(np.uint16 if runs <= 1 << 16 else np.uint32)
    sizes = np.bincount(run, minlength=runs)
    if not sizes.all():
        raise CorruptError("index page: a run without pointers")
    length = reader.column(n, 1 << 32)
    gap = np.zeros(n, np.uint64)
    starts = sizes.cumsum() - sizes
    fresh = np.zeros(n, bool)
    fresh[starts] = True
    gap[fresh] = reader.column(runs)
    bits = np.unpackbits(reader.array((n - runs + 7) // 8), count=n - runs, bitorder="little")
    skips = bits.view(bool)
    if skips.any():
        places = np.flatnonzero(~fresh)[skips]
        gap[places] = reader.column(len(places))
    else:
        reader.column(0)
    offset = (gap + length).cumsum() - length  # modulo 2**64, from the first pointer of all
    order: Any = slice(None) if runs == 1 else np.argsort(run, kind="stable")
    owner = np.zeros(n, np.uint16)
    if objects > 1:
        first_runs = shares.cumsum() - shares
        firsts = starts[first_runs]
        members = np.add.reduceat(sizes, first_runs)
        offset -= np.repeat(offset[firsts] - gap[firsts], members)
        owner = np.repeat(np.arange(objects, dtype=np.uint16), members)
    if int(offset.max()) >= MAX_OFFSET:
        raise CorruptError(f"index page: an offset of {offset.max()}, not below {MAX_OFFSET}")
    return table, order, offset, length, owner
