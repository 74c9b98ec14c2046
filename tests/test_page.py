"""Pages: round trips of every kind of key and entry, golden bytes, damage of every sort."""

from __future__ import annotations

import random
import struct
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diced import _index
from diced._compress import zstd_compress, zstd_decompress
from diced._crc32c import crc32c
from diced.errors import CorruptError, InvalidError, UnsupportedError
from diced.page import MAX_INLINE, MAX_KEY, PackBuilder, decode_page, encode_page

HEADER = struct.Struct("<4sBBHIIIII")
FIELDS = ("magic", "version", "level", "flags", "n", "raw", "stored", "check", "header_check")
ZSTD, EVEN = 1, 2

# Three keys of several lengths, a pointer, a tombstone and a value; too small to be compressed.
GOLDEN_NAMES = bytes.fromhex(
    "64495067 01 00 0000 03000000 2f000000 2f000000 2fbfa0b0 62314b0e"
    "0000 0000 07000000 01000000 01000000"  # no prefix, 7 suffix bytes, one object, one run
    "01 000400 01 040201 6d6574612f787a"  # shared, sizes, b"meta" b"/x" b"z"
    "00 02 01"  # kinds
    "01 03 00 00 01 02 01 09 00"  # object 3; one run; its pointers; length 2, gap 9; no gaps
    "01 02 7b7d"  # value of two bytes
)
# 32 blocks of 12-byte keys under a page of level 1, compressed.
GOLDEN_GRID = bytes.fromhex(
    "64495067 01 01 0300 20000000 ad000000 33000000 26d1a5cb 52d17b84"
    "28b52ffd20ad550100d80b000100010000011f0002001001050000012001400000000000000600a0"
    "29d05cd060300644b0e68c"
)
GOLDEN_GRID_PAYLOAD = bytes.fromhex(
    "0b00 0100 01000000 01000000 01000000"  # prefix, suffix, groups, objects, runs
    "0000000000000000000000 01 1f 00 00"  # prefix; one group of 31 + 1, from 0, dense
    + "00" * 32  # kinds
    + "02"
    + "00" * 32
    + "10" * 32  # 4096 keys under each child
    + "01 05 00 00"  # object 5; one run; all pointers in it
    + "01"
    + "20" * 32  # lengths
    + "01 40 00000000 00"  # first at 64, 31 bits: no gaps
    + "00"  # no values
)


def fields(data: bytes) -> dict:
    return dict(zip(FIELDS, HEADER.unpack_from(data), strict=True))


def payload(data: bytes) -> bytes:
    """Return the raw payload of a page."""
    head = fields(data)
    stored = data[HEADER.size :]
    if not head["flags"] & ZSTD:
        return stored
    raw = bytearray(head["raw"])
    zstd_decompress(stored, raw)
    return bytes(raw)


def seal(raw: bytes, head: dict, packed: bool = False, /, **lies: object) -> bytes:
    """Make a page of a raw payload, with checksums that hold whatever `lies` say."""
    stored = zstd_compress(raw, 3) if packed else raw
    head = head | {
        "flags": head["flags"] & ~ZSTD | (ZSTD if packed else 0),
        "raw": len(raw),
        "stored": len(stored),
        "check": crc32c(stored),
    }
    head |= lies
    first = HEADER.pack(*(head | {"header_check": 0}).values())[:-4]
    check = lies.get("header_check", crc32c(first))
    return first + struct.pack("<I", check) + stored


def assert_same(data: bytes, keys: list, entries: list, counts: list | None = None) -> None:
    page = decode_page(data)
    assert len(page) == len(keys)
    assert page.keys == keys
    assert page.entry_range(0, len(page)) == entries
    assert [page.entry(i) for i in range(len(keys))] == entries
    assert [page.key(i) for i in range(len(keys))] == keys
    assert page.has_tombstones == (None in entries)
    assert page.count == (len(keys) if counts is None else sum(counts))
    if counts is not None:
        assert page.counts(0, len(keys)) == counts
    assert list(page.items()) == list(zip(keys, entries, strict=True))
    for i, key in enumerate(keys):
        assert page.find(key) == page.position(key) == page.slot(key) == i
        for other in (key + b"\0", key[:-1], key[:-1] + b"\xff"):
            at = bisect_left(keys, other)
            present = at < len(keys) and keys[at] == other
            assert page.position(other) == at
            assert page.find(other) == (at if present else -1)
            assert page.slot(other) == (at if present else at - 1)


small = st.integers(0, 300)
pointers = st.one_of(
    st.tuples(st.integers(0, 2), small, small),
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1)),
)
any_entry = st.one_of(pointers, st.binary(max_size=20), st.none())
entry_kinds = st.sampled_from([pointers, st.binary(max_size=20), st.none(), any_entry])
key_kinds = st.one_of(
    st.integers(0, 20).map(lambda size: st.binary(min_size=size, max_size=size)),
    st.integers(0, 2**64 - 1).map(
        lambda base: st.integers(0, 40).map(lambda k: b"pp" + struct.pack(">QQ", 7, base ^ k))
    ),
    st.integers(0, 40).map(lambda size: st.binary(max_size=size)),
    st.text("ab/", max_size=12)
    .map(str.encode)
    .map(st.just)
    .map(lambda base: st.tuples(base, st.text("abc", max_size=5).map(str.encode)).map(b"".join)),
)


@st.composite
def pages(draw):
    keys = sorted(draw(st.sets(draw(key_kinds), max_size=60)))
    kind = draw(entry_kinds)
    return keys, [draw(kind) for _ in keys]


@settings(max_examples=250, deadline=None)
@given(pages())
def test_round_trip(page):
    keys, entries = page
    assert_same(encode_page(keys, entries, 0), keys, entries)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.binary(max_size=9), st.tuples(pointers, st.integers(1, 2**43 - 1)), min_size=1
    ),
    st.integers(1, 255),
)
def test_round_trip_above_leaves(children, level):
    keys = sorted(children)
    entries = [children[key][0] for key in keys]
    counts = [children[key][1] for key in keys]
    data = encode_page(keys, entries, level, counts)
    assert decode_page(data).level == level
    assert_same(data, keys, entries, counts)


def morton_keys(numbers) -> list[bytes]:
    return [b"\xe0\0\0\0" + struct.pack(">Q", int(number)) for number in numbers]


@pytest.mark.parametrize("objects", [1, 3, 4096])
def test_full_page(objects):
    rng = np.random.default_rng(objects)
    keys = morton_keys(np.sort(rng.choice(1 << 40, 4096, replace=False)))
    entries = [
        (int(o) << 50, int(a), int(b))
        for o, a, b in zip(
            rng.integers(0, objects, 4096),
            rng.integers(0, 1 << 48, 4096),
            rng.integers(0, 1 << 32, 4096),
            strict=True,
        )
    ]
    assert_same(encode_page(keys, entries, 0), keys, entries)


def test_shared_and_overlapping_pointers():
    keys = morton_keys(range(5))
    entries = [(1, 100, 50), (1, 100, 50), (1, 120, 7), (1, 0, 300), (0, 5, 0)]
    assert_same(encode_page(keys, entries, 0), keys, entries)


def test_keys_around_the_origin():
    keys = sorted(b"\x7f" + b"\xff" * 9 + struct.pack(">H", k) for k in range(9))
    keys += sorted(b"\x80" + b"\0" * 9 + struct.pack(">H", k) for k in range(0, 900, 100))
    entries = [struct.pack("<Q", k) for k in range(18)]
    assert_same(encode_page(keys, entries, 0), keys, entries)


@pytest.mark.parametrize("key", [b"", b"\0", b"\xff" * MAX_KEY])
@pytest.mark.parametrize("entry", [(2**64 - 1, 2**48 - 1, 2**32 - 1), b"", None])
def test_one_entry(key, entry):
    assert_same(encode_page([key], [entry], 0), [key], [entry])


def test_empty_page():
    assert_same(encode_page([], [], 0), [], [])


def test_longest_keys_and_values():
    keys = [b"a" * (MAX_KEY - 1), b"a" * MAX_KEY, b"b" * MAX_KEY]
    entries = [b"v" * MAX_INLINE, b"", bytes(range(256))]
    assert_same(encode_page(keys, entries, 0), keys, entries)


def test_dense_page_of_constants_costs_almost_nothing():
    data = encode_page(morton_keys(range(4096)), [bytes(8)] * 4096, 0)
    assert len(data) < 200


def test_dense_page_in_one_commit_costs_its_lengths_only():
    keys = morton_keys(range(4096))
    fixed = [(9, 4096 * i, 4096) for i in range(4096)]
    assert len(encode_page(keys, fixed, 0)) < 200
    ends = np.cumsum(np.random.default_rng(1).integers(1, 1 << 16, 4096))
    starts = np.append(0, ends[:-1])
    lengths = [(9, int(a), int(b - a)) for a, b in zip(starts, ends, strict=True)]
    assert len(encode_page(keys, lengths, 0)) < 2.1 * 4096


def test_a_slice_of_a_larger_buffer_decodes():
    data = encode_page([b"a", b"bc"], [b"1", (1, 2, 3)], 0)
    around = bytearray(b"x" + data + b"y")
    assert decode_page(memoryview(around)[1:-1]).keys == [b"a", b"bc"]


@pytest.mark.parametrize(
    ("keys", "entries", "level", "counts"),
    [
        ([b"a"], [], 0, None),
        ([b"b", b"a"], [b"", b""], 0, None),
        ([b"a", b"a"], [b"", b""], 0, None),
        ([b"a" * (MAX_KEY + 1)], [b""], 0, None),
        ([b"a"], [b"v" * (MAX_INLINE + 1)], 0, None),
        ([b"a"], [(-1, 0, 0)], 0, None),
        ([b"a"], [(1 << 64, 0, 0)], 0, None),
        ([b"a"], [(0, 1 << 48, 0)], 0, None),
        ([b"a"], [(0, 0, 1 << 32)], 0, None),
        ([b"a"], ["text"], 0, None),
        ([b"a"], [(0, 0, 1)], 1, None),
        ([b"a"], [(0, 0, 1)], 0, [1]),
        ([b"a"], [(0, 0, 1)], 1, [0]),
        ([b"a"], [(0, 0, 1)], 1, [1, 2]),
        ([b"a"], [b"inline"], 1, [1]),
        ([b"a"], [(0, 0, 1)], 256, [1]),
        ([b"a"], [b""], -1, None),
        ([], [], 1, []),
        ([bytes((i,)) for i in range(20)], [bytes(MAX_INLINE)] * 20, 0, None),
    ],
)
def test_what_cannot_be_a_page_is_refused(keys, entries, level, counts):
    with pytest.raises(InvalidError):
        encode_page(keys, entries, level, counts)


def test_golden_names():
    keys, entries = [b"meta", b"meta/x", b"z"], [(3, 9, 2), None, b"{}"]
    assert_same(GOLDEN_NAMES, keys, entries)
    assert encode_page(keys, entries, 0) == GOLDEN_NAMES


def test_golden_grid():
    keys = [bytes(11) + bytes((i,)) for i in range(32)]
    entries = [(5, 64 + 32 * i, 32) for i in range(32)]
    assert decode_page(GOLDEN_GRID).level == 1
    assert_same(GOLDEN_GRID, keys, entries, [4096] * 32)
    # What zstd makes of the payload may change; the payload may not.
    assert payload(GOLDEN_GRID) == GOLDEN_GRID_PAYLOAD
    assert payload(encode_page(keys, entries, 1, [4096] * 32)) == GOLDEN_GRID_PAYLOAD


SAMPLES = {
    "grid": (morton_keys([3, 4, 9, 1 << 33]), [(1, 5, 2), (1, 7, 9), (7, 0, 4), (1, 100, 1)]),
    "names": ([b"", b"meta", b"meta/a", b"z"], [b"{}", None, (8, 1, 2), (3, 4, 5)]),
    "mixed": (morton_keys(range(64)), [b"12345678"] * 60 + [(1, 2, 3)] * 4),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_and_extension_is_noticed(name):
    data = encode_page(*SAMPLES[name], 0)
    for end in range(len(data)):
        with pytest.raises(CorruptError):
            decode_page(data[:end])
    with pytest.raises(CorruptError):
        decode_page(data + b"\0")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_under_a_true_checksum_is_noticed(name):
    data = encode_page(*SAMPLES[name], 0)
    raw = payload(data)
    for end in range(len(raw)):
        for packed in (False, True):
            with pytest.raises(CorruptError):
                decode_page(seal(raw[:end], fields(data), packed))


def test_random_flips_are_noticed():
    random.seed(20)
    samples = [encode_page(*sample, 0) for sample in SAMPLES.values()]
    for _ in range(5000):
        data = bytearray(random.choice(samples))
        for _ in range(random.randint(1, 8)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        if bytes(data) not in samples:
            with pytest.raises(CorruptError):
                decode_page(data)


LIES = {
    "magic": [b"dIPh", bytes(4)],
    "level": [1, 255],
    "flags": [0, ZSTD, ZSTD | EVEN],
    "n": [0, 3, 5, 1 << 20, (1 << 20) + 1, 2**32 - 1],
    "raw": [0, 1, 2**24, 2**24 + 1, 2**32 - 1],
    "stored": [0, 1, 2**32 - 1],
    "check": [0],
    "header_check": [0],
}


@pytest.mark.parametrize("field", LIES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_lie_of_the_header_is_noticed(field, packed):
    data = encode_page(*SAMPLES["grid"], 0)
    raw = payload(data)
    assert decode_page(seal(raw, fields(data), packed)).keys == SAMPLES["grid"][0]
    for lie in LIES[field]:
        changed = seal(raw, fields(data), packed, **{field: lie})
        if fields(changed) != fields(seal(raw, fields(data), packed)):
            with pytest.raises(CorruptError):
                decode_page(changed)


@pytest.mark.parametrize("lie", [{"version": 2}, {"version": 0}, {"flags": 4}, {"flags": 0x8002}])
def test_newer_formats_are_named_as_such(lie):
    data = encode_page(*SAMPLES["grid"], 0)
    with pytest.raises(UnsupportedError, match="newer diced"):
        decode_page(seal(payload(data), fields(data), **lie))


@pytest.mark.parametrize("name", SAMPLES)
def test_lies_within_the_payload_never_crash(name):
    """With true checksums a change may yield another page, but never a broken one."""
    random.seed(name)
    data = encode_page(*SAMPLES[name], 0)
    raw = payload(data)
    refused = 0
    for trial in range(3000):
        changed = bytearray(raw)
        if trial < len(raw):
            changed[trial] = 0xFF
        else:
            for _ in range(random.randint(1, 4)):
                changed[random.randrange(len(raw))] = random.choice((0, 1, 2, 8, 9, 127, 255))
        try:
            page = decode_page(seal(bytes(changed), fields(data)))
        except CorruptError:
            refused += 1
            continue
        keys = page.keys
        assert keys == sorted(set(keys))
        for key, entry in page.items():
            assert len(key) <= MAX_KEY
            if isinstance(entry, tuple):
                assert 0 <= entry[0] < 1 << 64
                assert 0 <= entry[1] < 1 << 48
                assert 0 <= entry[2] < 1 << 32
    assert refused > 300


def test_pack_builder_places_pages():
    pack = PackBuilder(77, base=1000)
    assert len(pack) == 0
    assert pack.add(b"abc") == (77, 1000, 3)
    assert pack.add(b"defg") == (77, 1003, 4)
    assert pack.tobytes() == b"abcdefg"
    assert len(pack) == 7


class TestTable:
    def table(self, **lies):
        fields = {
            "flat": b"aabbb",
            "ends": np.array([2, 5], np.uint32).tobytes(),
            "width": 0,
            "kinds": b"\0\1",
            "where": np.array([70, 1], np.uint64),
            "length": np.array([9, 3], np.uint32),
            "owner": np.array([1, 0], np.uint16),
            "objects": [5, 6],
            "values": b"wxyz",
        }
        return _index.Table(**{**fields, **lies})

    def test_finds(self):
        table = self.table()
        assert (table.get(b"aa"), table.get(b"bbb"), table.get(b"b")) == ((6, 70, 9), b"xyz", None)
        keys = [b"", b"aa", b"aab", b"bbb", b"bbbb"]
        assert table.get_many(keys, 0, 5) == [None, (6, 70, 9), None, b"xyz", None]
        assert table.get_many(keys, 3, 4) == [b"xyz"]

    @pytest.mark.parametrize(
        "lies",
        [
            {"kinds": b"\0"},
            {"ends": b"\0\0\0\0"},
            {"width": 3},
            {"where": np.zeros(1, np.uint64)},
            {"length": np.zeros(3, np.uint32)},
            {"owner": np.zeros(0, np.uint16)},
        ],
        ids=repr,
    )
    def test_refuses_columns_of_other_lengths(self, lies):
        with pytest.raises(ValueError, match="lengths"):
            self.table(**lies)

    @pytest.mark.parametrize(
        "lies",
        [
            {"ends": np.array([2, 6], np.uint32).tobytes()},
            {"ends": np.array([2, 1], np.uint32).tobytes()},
            {"owner": np.array([2, 0], np.uint16)},
            {"where": np.array([70, 2], np.uint64)},
            {"where": np.array([70, 2**64 - 1], np.uint64)},
            {"length": np.array([9, 2**32 - 1], np.uint32)},
        ],
        ids=repr,
    )
    def test_reads_nothing_outside_its_columns(self, lies):
        table = self.table(**lies)
        with pytest.raises(IndexError):
            table.get_many(table.key_range(0, 2), 0, 2)

    def test_refuses_numbers_outside(self):
        table = self.table()
        for call in (table.key, table.entry):
            for at in (-1, 2):
                with pytest.raises(IndexError):
                    call(at)
        for call in (table.key_range, table.entry_range):
            for ends in ((-1, 1), (0, 3), (2, 1)):
                with pytest.raises(IndexError):
                    call(*ends)
        with pytest.raises(IndexError):
            table.get_many([b"a"], 0, 2)

    @pytest.mark.parametrize("keys", [["a"], [None]])
    def test_keys_are_bytes(self, keys):
        with pytest.raises(TypeError):
            self.table().get_many(keys, 0, 1)
        with pytest.raises(TypeError):
            _index.descent(keys)
