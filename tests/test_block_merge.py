"""Part of a block into its frame, against frames made by hand."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from block_cases import (
    KINDS,
    LANE,
    SEEDS,
    Case,
    Trio,
    cases,
    part,
    random_windows,
    strided,
)
from hypothesis import given, settings
from reference import (
    LZ4,
    RAW,
    ZSTD,
    checksum_reference,
    constant_reference,
    seal_reference,
    unit_places_reference,
)

from diced._blockmerge import merge
from diced.errors import InvalidError


def merged(case, frame, key, low, source, spare=0):
    """Return the merged frame, None if `merge` leaves it; nothing past the memory may change."""
    writer = case.writer()
    memory = np.full(writer.most + spare + (1 << 16), 0xA5, np.uint8)
    room = memory[: writer.most + spare]
    size = merge(writer, frame, key, low, source, room)
    assert 0 <= size <= len(room)
    assert (memory[len(room) :] == 0xA5).all()
    return room[:size].tobytes() if size else None


def unit_bytes(frame, head, units):
    """Return the bytes of each unit of a frame."""
    ends = np.frombuffer(frame, "<u4", 2 * units, head)[::2].tolist()
    return [bytes(frame[head + a : head + b]) for a, b in itertools.pairwise([8 * units, *ends])]


def touched(case, low, shape):
    """Return for each unit whether a part meets it, and whether it covers it."""
    found = []
    places = unit_places_reference(case.units, case.dims)
    sides = [side // (places[-1][0] + 1) for side in case.shape]
    for at in places:
        held = [
            min(a + n, (p + 1) * side) - max(a, p * side)
            for a, n, p, side in zip(low, shape, at, sides, strict=False)
        ]
        found.append((min(held) > 0, held == sides))
    return found


class TestMerge:
    @settings(max_examples=400, deadline=None)
    @given(cases(), SEEDS)
    def test_replaces_the_part(self, case, seed):
        rng = np.random.default_rng(seed)
        key = rng.bytes(4 * case.dims)
        block = np.array(case.voxels(rng))
        frame = case.frame(key, block)
        table, _ = random_windows(rng, case, 1)
        low, shape = table[0, :2].tolist()
        _, source = strided(rng, (*shape, *case.full[case.dims :]), case.dtype)
        source[...] = case.voxels(rng, shape)
        kept = source.tobytes()
        found = merged(case, frame, key, low, source, int(rng.integers(0, 99)))
        assert source.tobytes() == kept
        constant = constant_reference(source, case.channels or 1) is not None
        assert (found is None) == (case.units == 1 or constant)
        if found is None:
            return
        part(block, table[0])[...] = source
        assert case.parse(found, key).tobytes() == block.tobytes()
        head = 36 + len(key)
        old, new = (unit_bytes(each, head, case.units) for each in (frame, found))
        for number, (met, _) in enumerate(touched(case, low, shape)):
            assert met or old[number] == new[number]

    @pytest.mark.parametrize("case", [each for each in KINDS if each.units > 1], ids=repr)
    def test_damage(self, case):
        # What is damaged is left or stays so; it never becomes sound with other voxels.
        trio = Trio(case)
        key, frame, block = trio.keys[1], trio.frames[1], trio.blocks[1]
        ends = np.frombuffer(frame, "<u4", 2 * case.units, trio.head)[::2].tolist()
        half = [max(1, side // 2 + 1) for side in case.shape]
        table = np.array([[[0] * case.dims, half, [0] * case.dims]])
        source = trio.rng.integers(0, 6, (*half, *case.full[case.dims :])).astype(case.dtype)
        wanted = block.copy()
        part(wanted, table[0])[...] = source
        units = touched(case, table[0, 0], half)
        for at in range(trio.head + 8 * case.units):
            bad = bytearray(frame)
            bad[at] ^= 1 << int(trio.rng.integers(0, 8))
            assert merged(case, bad, key, [0] * case.dims, source) is None
        for begin, end, (met, covered) in zip([8 * case.units, *ends], ends, units, strict=False):
            bad = bytearray(frame)
            bad[trio.head + int(trio.rng.integers(begin, end))] ^= 16
            found = merged(case, bad, key, [0] * case.dims, source)
            assert (found is None) == (met and not covered)
            if covered:
                assert np.array_equal(case.parse(found, key), wanted)
            elif found is not None:
                with pytest.raises(ValueError, match="unit"):
                    case.parse(found, key)
        low = [0] * case.dims
        assert merged(case, frame, trio.keys[0], low, source) is None
        for cut in (0, 1, trio.head - 1, trio.head, trio.head + 8 * case.units, len(frame) - 1):
            assert merged(case, frame[:cut], key, low, source) is None
        for units in case.choices():
            if units != case.units:
                assert merged(case, case.frame(key, block, units), key, low, source) is None

    @pytest.mark.parametrize("codec", [RAW, LZ4, ZSTD])
    @pytest.mark.parametrize("long", [0, 1, 5])
    def test_units_longer_than_there_is_room_for(self, codec, long):
        # The table is sound, but units that are only copied are as long as nobody writes them.
        case = Case("u1", (8, 8, 8), None, codec, 8)
        block = np.random.default_rng(0).integers(0, 6, case.full, np.uint8)
        units = unit_bytes(case.frame(bytes(12), block), 48, 8)
        units[long] = bytes(30_000)
        table, end = b"", 64
        for each in units:
            end += len(each)
            table += struct.pack("<II", end, checksum_reference(each))
        payload = table + b"".join(units)
        frame = seal_reference(LANE, bytes(12), codec, case.nbytes, payload, 8)
        assert len(frame) > case.writer().most
        low = [6, 6, 6]
        found = merged(case, frame, bytes(12), low, np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
        assert found is None

    @pytest.mark.parametrize(
        "change",
        [
            {"key": b"short"},
            {"low": (0,)},
            {"low": (0, 0, 0)},
            {"low": (-1, 0)},
            {"low": (5, 0)},
            {"low": (2**62, 0)},
            {"source": np.zeros((4, 4), "u2")},
            {"source": np.zeros((4, 4, 4), "u2")},
            {"source": np.zeros((4, 4, 2), "u2")},
            {"source": np.zeros((4, 4, 3), "u1")},
            {"source": np.zeros((0, 4, 3), "u2")},
            {"source": np.zeros((9, 4, 3), "u2")},
            {"memory": -1},
            {"frame": np.zeros((2, 99), "u1")},
            {"frame": np.zeros(99, "u2")},
        ],
        ids=str,
    )
    def test_refuses(self, change):
        case = Case("u2", (8, 8), 3, LZ4, 4)
        writer = case.writer()
        block = np.arange(192).reshape(8, 8, 3).astype("u2")
        with pytest.raises(InvalidError):
            merge(
                writer,
                change.get("frame", case.frame(bytes(8), block)),
                change.get("key", bytes(8)),
                change.get("low", (0, 0)),
                change.get("source", block[:4, :4]),
                np.zeros(writer.most + change.get("memory", 0), np.uint8),
            )
