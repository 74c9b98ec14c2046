"""Damaged frames of blocks: left to the general path or refused, never read wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from block_cases import (
    FUZZED,
    KINDS,
    LANE,
    Case,
    Trio,
    make_batch,
    part,
    read_memory,
    run_files,
)
from fuzz_frames import fuzz
from reference import (
    LABEL,
    LABEL_LZ4,
    LABEL_ZSTD,
    RAW,
    payload_reference,
    seal_reference,
    unit_places_reference,
)

from diced.errors import CorruptError


@pytest.fixture(params=KINDS, ids=repr)
def trio(request):
    return Trio(request.param)


class TestDamage:
    def test_sound(self, trio):
        trio.assert_left(wanted=trio.blocks[1])

    def test_each_byte_of_head_and_table(self, trio):
        for at in range(trio.head + (8 * trio.case.units if trio.case.units > 1 else 0)):
            frame = bytearray(trio.frames[1])
            frame[at] ^= 1 << int(trio.rng.integers(0, 8))
            trio.assert_left(frame=frame)

    def test_bytes_of_the_payload(self, trio):
        for at in trio.rng.integers(trio.head, len(trio.frames[1]), 60):
            frame = bytearray(trio.frames[1])
            frame[at] ^= 1 << int(trio.rng.integers(0, 8))
            trio.assert_left(frame=frame)

    def test_ends_early(self, trio):
        size = len(trio.frames[1])
        for cut in {0, 1, 31, 32, trio.head - 1, trio.head, trio.head + 1, size // 2, size - 1}:
            trio.assert_left(cut=cut)
            trio.assert_left(frame=trio.frames[1][:cut])
        trio.assert_left(frame=trio.frames[1] + b"\0")

    def test_another_block(self, trio):
        trio.assert_left(key=trio.keys[0])
        trio.assert_left(frame=trio.frames[0])
        trio.assert_left(lane=b"another!")
        case = trio.case
        other = seal_reference(
            b"another!", trio.keys[1], case.codec, case.nbytes, trio.frames[1][trio.head :],
            case.units if case.units > 1 else 0,
        )  # fmt: skip
        trio.assert_left(frame=other)

    @pytest.mark.parametrize(
        "entry",
        [
            lambda at, size: (4, at, 0),
            lambda at, size: (4, at, 1),
            lambda at, size: (4, at, size - 1),
            lambda at, size: (4, at, size + 1),
            lambda at, size: (4, at, -1),
            lambda at, size: (4, at, -(2**63)),
            lambda at, size: (4, at, 2**31),
            lambda at, size: (4, at, 2**32 + size),
            lambda at, size: (4, at, 2**40),
            lambda at, size: (4, at, 2**63 - 1),
            lambda at, size: (4, at + 1, size),
            lambda at, size: (4, at - 1, size),
            lambda at, size: (4, at + size, size),
            lambda at, size: (4, 2**40, size),
            lambda at, size: (4, 2**63 - 1, size),
            lambda at, size: (4, 2**63 - 1, 2**63 - 1),
            lambda at, size: (4, -1, size),
            lambda at, size: (4, -(2**63), size),
        ],
    )
    def test_entries_that_lie(self, trio, entry):
        trio.assert_left(entry=entry)

    @pytest.mark.parametrize("codec", [3, 4, 5, 7, 11, 12, 200, 254, 255])
    def test_codecs_of_others_are_left(self, trio, codec):
        # Sound frames, but not of this kernel: their payload means something else.
        case = trio.case
        units = case.units if case.units > 1 else 0
        payload = trio.frames[1][trio.head :]
        frame = seal_reference(LANE, trio.keys[1], codec, case.nbytes, payload, units)
        trio.assert_left(frame=frame)

    @pytest.mark.parametrize("units", [2, 3, 7, 16, 64, 512, 4095, 4096, 8192, 65535])
    def test_units_that_do_not_fit(self, trio, units):
        case = trio.case
        if units in case.choices() and case.codec < LABEL:
            payload = payload_reference(trio.blocks[1], case.dims, case.codec, units)[: 8 * units]
        else:
            payload = trio.frames[1][trio.head :]
        frame = seal_reference(LANE, trio.keys[1], case.codec, case.nbytes, payload, units)
        trio.assert_left(frame=frame)

    def test_units_of_labels_are_left(self):
        trio = Trio(Case("u8", (16, 8, 8), None, LABEL))
        payload = bytes(64) + trio.frames[1][trio.head :]
        frame = seal_reference(LANE, trio.keys[1], LABEL, trio.case.nbytes, payload, 8)
        trio.assert_left(frame=frame)

    def test_labels_that_lie_raise(self):
        # Their checksums are right: the decoder itself finds it, and the caller tries all again.
        for codec in (LABEL, LABEL_LZ4, LABEL_ZSTD):
            trio = Trio(Case("u8", (16, 8, 8), None, codec))
            frame = seal_reference(
                LANE, trio.keys[1], codec, trio.case.nbytes, trio.frames[1][trio.head : -1]
            )
            table = np.zeros((1, 3, 3), np.int64)
            table[:, 1] = trio.case.shape
            out = np.zeros(trio.case.shape, np.uint64)
            with pytest.raises(CorruptError):
                read_memory(trio.case, [frame], [trio.keys[1]], table, out)
            batch = make_batch(trio.case.reader(), [(1, 0, len(frame))], trio.keys[1:2], table, out)
            with pytest.raises(CorruptError):
                run_files(batch, {1: frame}, 2)

    @pytest.mark.parametrize("case", [each for each in KINDS if each.units > 1], ids=repr)
    def test_a_damaged_unit_harms_only_windows_that_need_it(self, case):
        trio = Trio(case)
        places = unit_places_reference(case.units, case.dims)
        parts = places[-1][0] + 1
        sides = [side // parts for side in case.shape]
        table = np.frombuffer(trio.frames[1], "<u4", 2 * case.units, trio.head)[::2].tolist()
        begins = [8 * case.units, *table[:-1]]
        for number in range(0, case.units, max(1, case.units // 8)):
            frame = bytearray(trio.frames[1])
            frame[trio.head + begins[number]] ^= 4
            for other in {number, 0, case.units - 1, (number + 1) % case.units}:
                low = [p * n for p, n in zip(places[other], sides, strict=True)]
                window = [[a + n - 1 for a, n in zip(low, sides, strict=True)], [1] * case.dims]
                wanted = part(trio.blocks[1], np.array(window))
                trio.assert_left(window, None if other == number else wanted, frame=frame)

    def test_only_the_units_of_the_window_are_read(self):
        case = Case("u2", (32, 16, 32), None, RAW, 64)
        trio = Trio(case)
        ends = np.frombuffer(trio.frames[1], "<u4", 128, trio.head)[::2].tolist()
        first = [[0, 0, 0], [2, 4, 8]]
        table = np.zeros((1, 3, 3), np.int64)
        table[0, :2] = first
        out = np.zeros((2, 4, 8), np.uint16)
        entry = (1, 0, len(trio.frames[1]))
        for cut, failed in [(trio.head + ends[0], []), (trio.head + ends[0] - 1, [0])]:
            # The file ends behind the first unit.
            batch = make_batch(case.reader(), [entry], trio.keys[1:2], table, out)
            assert run_files(batch, {1: trio.frames[1][:cut]}) == failed
        assert np.array_equal(out, trio.blocks[1][:2, :4, :8])

    def test_random_damage(self):
        wrong, counts = fuzz(FUZZED, 7)
        assert wrong == []
        assert min(counts["read"], counts["failed"], counts["raised"]) > FUZZED // 50
