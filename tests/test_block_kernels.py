"""The kernels that read and write many blocks at a time, against frames made and read by hand."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest
from block_cases import (
    CONSTANT,
    LANE,
    SEEDS,
    Case,
    cases,
    make_batch,
    offset_in,
    pack_all,
    part,
    place,
    random_windows,
    read_memory,
    run_fetched,
    run_files,
    strided,
    whole_of,
)
from hypothesis import given, settings
from reference import (
    LABEL,
    LABEL_LZ4,
    LABEL_ZSTD,
    LZ4,
    RAW,
    ZSTD,
    constant_reference,
)

from diced import DicedStore, grid, registry
from diced._blockdecode import Reader
from diced._blockread import Batch
from diced._blockwrite import Writer
from diced.codec import get_codec
from diced.errors import InvalidError


class TestWriter:
    @settings(max_examples=400, deadline=None)
    @given(cases(), SEEDS)
    def test_frames_hold_the_voxels(self, case, seed):
        rng = np.random.default_rng(seed)
        blocks = [1] * case.dims
        for axis in rng.integers(0, case.dims, 2):
            blocks[axis] += 1
        places = list(np.ndindex(*blocks))
        margin = rng.integers(0, 2, case.dims) * (rng.random() < 0.3)
        shape = [m + n * side for m, n, side in zip(margin, blocks, case.shape, strict=True)]
        if rng.random() < 0.2:
            # One value, plane or line, repeated: strides of 0.
            kept = rng.random(case.dims) < 0.5
            thin = [side if keep else 1 for side, keep in zip(shape, kept, strict=True)]
            box = np.broadcast_to(case.voxels(rng, thin), (*shape, *case.full[case.dims :]))
        else:
            _, box = strided(rng, (*shape, *case.full[case.dims :]), case.dtype)
            box[...] = case.voxels(rng, shape)
            if rng.random() < 0.3:
                box[: case.shape[0] + margin[0]] = box.flat[0]
        keys = case.keys(rng, len(places))
        table = np.zeros((len(places), 3, case.dims), np.int64)
        table[:, 1] = case.shape
        table[:, 2] = np.array(places) * case.shape + margin
        rows = [int(each) for each in rng.permutation(len(places))]
        rows = rows[: int(rng.integers(1, len(rows) + 1))]
        before = box.tobytes()
        found = pack_all(case.writer(), box, keys, table, rows, int(rng.integers(0, 3 * 4096)))
        assert len(found) == len(rows)
        assert box.tobytes() == before
        for row, made in zip(rows, found, strict=True):
            block = box[
                tuple(slice(a, a + n) for a, n in zip(table[row, 2], case.shape, strict=True))
            ]
            constant = constant_reference(block, case.channels or 1)
            if constant is not None:
                assert made == constant
                continue
            assert case.parse(made, keys[row]).tobytes() == block.tobytes()
            if case.codec in (RAW, LABEL):
                assert made.tobytes() == case.frame(keys[row], np.ascontiguousarray(block))

    @pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 8])
    @pytest.mark.parametrize("dims", [1, 2, 3, 4])
    def test_channels_are_never_cut(self, dims, channels):
        # Blocks of two axes and channels are not blocks of three.
        shape = (8,) * dims
        for codec in (RAW, LZ4, ZSTD):
            case = Case("u1", shape, channels, codec, 2 ** (2 * dims))
            block = np.random.default_rng(dims).integers(0, 9, case.full, np.uint8)
            table = np.zeros((1, 3, dims), np.int64)
            table[:, 1] = shape
            key = bytes(range(4 * dims))
            (frame,) = pack_all(case.writer(), block, [key], table, [0], 0)
            assert np.array_equal(case.parse(frame, key), block)
            out = np.zeros_like(block)
            assert read_memory(case, [case.frame(key, block)], [key], table, out) == []
            assert np.array_equal(out, block)

    def test_levels(self):
        case = Case("u1", (32, 32, 32), None, ZSTD, 8)
        block = np.random.default_rng(0).integers(0, 3, case.full, np.uint8)
        table = np.zeros((1, 3, 3), np.int64)
        sizes = []
        for level in (1, 19):
            writer = Writer(LANE, 1, case.shape, None, ZSTD, level, 8)
            (frame,) = pack_all(writer, block, [bytes(12)], table, [0], 0)
            assert np.array_equal(case.parse(frame, bytes(12)), block)
            sizes.append(len(frame))
        assert sizes[1] < sizes[0]

    @pytest.mark.parametrize(
        "change",
        [
            {"memory": -1},
            {"memory": "readonly"},
            {"memory": "strided"},
            {"rows": [1]},
            {"rows": [-1]},
            {"keys": [b"short"]},
            {"keys": []},
            {"box": (7, 8)},
            {"box": (8, 8, 1)},
            {"dtype": "u1"},
            {"at": (0, 1)},
            {"at": (-1, 0)},
            {"at": (0, 2**62)},
            {"dims": 3},
        ],
        ids=str,
    )
    def test_refuses(self, change):
        case = Case("u2", (8, 8), None, LZ4, 4)
        writer = case.writer()
        box = np.arange(64).reshape(8, 8).astype(change.get("dtype", "u2"))
        if "box" in change:
            box = np.resize(box, change["box"])
        table = np.zeros((1, 3, change.get("dims", 2)), np.int64)
        table[0, 2] = change.get("at", 0)
        memory = np.zeros(2 * writer.most, np.uint8)
        if change.get("memory") == "readonly":
            memory.flags.writeable = False
        elif change.get("memory") == "strided":
            memory = memory[::2]
        else:
            memory = memory[: writer.most + change.get("memory", 0)]
        with pytest.raises(InvalidError):
            writer.pack(box, change.get("keys", [bytes(8)]), table, change.get("rows", [0]), memory)

    @pytest.mark.parametrize(
        "arguments",
        [
            (LANE, 2, (8, 8), None, LZ4, 0, 2),  # not a power of 2**dims
            (LANE, 2, (8, 6), None, LZ4, 0, 16),  # do not tile
            (LANE, 2, (8, 8), None, LZ4, 0, 0),
            (LANE, 2, (8, 8), None, 3, 0, 1),
            (LANE, 2, (8, 8), None, 255, 0, 1),
            (LANE, 8, (8, 8, 8), None, LABEL, 0, 8),
            (LANE, 4, (8, 8, 8), None, LABEL, 0, 1),
            (LANE, 8, (8, 8, 9), None, LABEL, 0, 1),
            (LANE, 8, (8, 8), None, LABEL, 0, 1),
            (b"lane", 2, (8, 8), None, LZ4, 0, 1),
            (LANE, 65, (8, 8), None, LZ4, 0, 1),
            (LANE, 0, (8, 8), None, LZ4, 0, 1),
            (LANE, 1, (2**16, 2**16, 2), None, LZ4, 0, 1),
            (LANE, 1, (0, 8), None, LZ4, 0, 1),
            (LANE, 1, (), None, LZ4, 0, 1),
        ],
        ids=str,
    )
    def test_refuses_to_be_made(self, arguments):
        with pytest.raises(InvalidError):
            Writer(*arguments)


# --- reading -------------------------------------------------------------------------------------


class TestReader:
    @settings(max_examples=400, deadline=None)
    @given(cases(), SEEDS)
    def test_windows_of_frames_made_by_hand(self, case, seed):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 6))
        keys = case.keys(rng, count)
        table, shape = random_windows(rng, case, count)
        fill = rng.bytes(case.element)
        memory, out = strided(rng, shape, case.dtype)
        segments = dict.fromkeys([3, 2**64 - 1], b"")
        entries, wanted, bad = [], memory.copy(), []
        shadow = np.ndarray(out.shape, out.dtype, wanted, offset_in(memory, out), out.strides)
        for row, key in enumerate(keys):
            match rng.integers(0, 8):
                case 0:
                    entries.append(None)
                    place(shadow, table[row])[...] = whole_of(case, fill)
                case 1:
                    element = rng.bytes(case.element)
                    entries.append(CONSTANT + element)
                    place(shadow, table[row])[...] = whole_of(case, element)
                case 2 if rng.random() < 0.5:
                    odd = [b"", CONSTANT, CONSTANT + fill + b"\0", b"\2" + fill, b"\0" + fill]
                    entries.append(odd[rng.integers(0, len(odd))])
                    bad.append(row)
                case _:
                    block = case.voxels(rng)
                    frame = case.frame(key, block, int(rng.choice(case.choices())))
                    number = 2**64 - 1 if rng.random() < 0.3 else 3
                    segments[number] += rng.bytes(int(rng.integers(0, 50)))
                    entries.append((number, len(segments[number]), len(frame)))
                    segments[number] += frame
                    place(shadow, table[row])[...] = part(block, table[row])
        expected = int(rng.choice([0, case.units, *case.choices()]))
        reader = case.reader(fill, expected)
        batch = make_batch(reader, entries, keys, table, out, bool(rng.integers(0, 2)))
        if rng.random() < 0.6:
            failed = run_files(batch, segments, int(rng.choice([1, 3])))
        else:
            failed = run_fetched(batch, segments, rng)
        assert failed == bad
        # All of the memory: nothing but the windows may change.
        assert memory.tobytes() == wanted.tobytes()

    @settings(max_examples=400, deadline=None)
    @given(cases(), SEEDS)
    def test_reads_what_was_written(self, case, seed):
        rng = np.random.default_rng(seed)
        block = case.voxels(rng)
        table = np.zeros((1, 3, case.dims), np.int64)
        key = rng.bytes(4 * case.dims)
        (made,) = pack_all(case.writer(), block, [key], table, [0], 0)
        table, shape = random_windows(rng, case, 1)
        out = np.zeros(shape, case.dtype)
        entry = (1, 0, len(made))
        if isinstance(made, bytes):
            entry = CONSTANT + made
        batch = make_batch(case.reader(), [entry], [key], table, out)
        assert run_files(batch, {1: bytes(made)}) == []
        assert place(out, table[0]).tobytes() == part(block, table[0]).tobytes()

    @pytest.mark.parametrize("codec", [RAW, LZ4, ZSTD, LABEL, LABEL_LZ4, LABEL_ZSTD])
    def test_many_threads(self, codec):
        rng = np.random.default_rng(codec)
        case = Case("u8", (8, 8, 16), None, codec, 1 if codec >= LABEL else 8)
        keys = case.keys(rng, 120)
        blocks = [case.voxels(rng) for _ in keys]
        table = np.zeros((len(keys), 3, 3), np.int64)
        table[:, 1] = case.shape
        table[:, 2, 0] = 8 * np.arange(len(keys))
        entries, segments, bad = [], {1: b"", 2: b"", 3: b""}, []
        for row, (key, block) in enumerate(zip(keys, blocks, strict=True)):
            frame = bytearray(case.frame(key, block))
            if row % 11 == 3:
                frame[-1] ^= 1
                bad.append(row)
            number = 1 + row % 3
            entries.append((number, len(segments[number]), len(frame)))
            segments[number] += frame
        out = np.zeros((8 * len(keys), 8, 16), np.uint64)
        for _ in range(3):
            out[...] = 1
            reader = case.reader()
            batch = make_batch(reader, entries, keys, table, out)
            assert run_files(batch, segments, 6) == bad
            for row, block in enumerate(blocks):
                if row not in bad:
                    assert np.array_equal(out[8 * row : 8 * row + 8], block)

    def test_jobs_without_a_file_are_left(self):
        case = Case("u1", (4, 4), None, RAW)
        table = np.zeros((2, 3, 2), np.int64)
        table[:, 1] = 4
        out = np.full((4, 4), 7, np.uint8)
        batch = make_batch(case.reader(), [(1, 0, 60), (2, 0, 60)], [bytes(8)] * 2, table, out)
        batch.start(0, -1)
        batch.run()
        assert batch.failed == [0, 1]
        assert (out == 7).all()

    def test_groups_of_segments_in_turn(self):
        rng = np.random.default_rng(0)
        case = Case("u1", (4, 4), None, RAW)
        keys, blocks = case.keys(rng, 5), rng.integers(0, 255, (5, 4, 4), np.uint8)
        table = np.zeros((5, 3, 2), np.int64)
        table[:, 1] = 4
        table[:, 2, 0] = 4 * np.arange(5)
        frames = [case.frame(key, block) for key, block in zip(keys, blocks, strict=True)]
        out = np.zeros((20, 4), np.uint8)
        entries = [(9 - row, 0, len(frames[row])) for row in range(4)]
        batch = make_batch(case.reader(), [*entries, None], keys, table, out)
        assert [segment for segment, _, _ in batch.segments] == [6, 7, 8, 9]
        assert batch.spans(0, 4) == [(row, 0, len(frames[row])) for row in (3, 2, 1, 0)]
        for segment, first, last in batch.segments:
            with tempfile.TemporaryFile() as file:
                os.pwrite(file.fileno(), frames[9 - segment], 0)
                batch.open(first, last, file.fileno())
                batch.start(first, last)
                batch.run()
        assert not out[16:].any()
        assert np.array_equal(out[:16], blocks[:4].reshape(16, 4))
        batch.start(4, -1)
        batch.run()
        assert batch.failed == []

    @pytest.mark.parametrize(
        "row",
        [
            [[0, 0], [5, 4], [0, 0]],
            [[1, 0], [4, 4], [0, 0]],
            [[-1, 0], [4, 4], [0, 0]],
            [[0, 0], [0, 4], [0, 0]],
            [[0, 0], [-1, 4], [0, 0]],
            [[0, 0], [4, 4], [-1, 0]],
            [[0, 0], [4, 4], [0, 3]],
            [[2**62, 0], [4, 4], [0, 0]],
            [[0, 0], [4, 2**62], [0, 0]],
            [[0, 0], [4, 4], [2**62, 0]],
        ],
        ids=str,
    )
    def test_windows_that_leave_block_or_result_are_left(self, row):
        case = Case("u1", (4, 4), None, RAW)
        memory = np.full((12, 12), 9, np.uint8)
        out = memory[3:9, 3:9]
        block = np.arange(16, dtype=np.uint8).reshape(4, 4)
        for entry in (None, CONSTANT + b"\3", (1, 0, 60)):
            frame = case.frame(bytes(8), block)
            assert len(frame) == 60
            batch = make_batch(case.reader(), [entry], [bytes(8)], np.array([row]), out)
            assert run_files(batch, {1: frame}) == [0]
        assert (memory == 9).all()

    def test_refuses(self):
        case = Case("u2", (4, 4), 3, RAW)
        reader, key = case.reader(), bytes(8)
        table, out = np.zeros((1, 3, 2), np.int64), np.zeros((4, 4, 3), np.uint16)
        for entries, keys, rows, result in [
            ([None, None], [key], table, out),
            ([None], [key, key], table, out),
            ([None], [key], np.zeros((2, 3, 2), np.int64), out),
            ([None], [key], np.zeros((1, 2, 2), np.int64), out),
            ([None], [key], np.zeros((1, 3, 3), np.int64), out),
            ([None], [key], table, out[0]),
            ([None], [key], table, out[..., :2]),
            ([None], [key], table, out.astype("u4")),
            ([None], [key], table, out.tobytes()),
            ([None], [b"short"], table, out),
        ]:
            with pytest.raises(InvalidError):
                make_batch(reader, entries, keys, rows, result)
        batch = make_batch(reader, [None], [key], table, out)
        for first, last in [(0, 2), (-1, 1), (1, 0)]:
            with pytest.raises(InvalidError):
                batch.start(first, last if last else -2 if first < 0 else 0)
            with pytest.raises(InvalidError):
                batch.open(first, last, -1)
            with pytest.raises(InvalidError):
                batch.spans(first, last)
            with pytest.raises(InvalidError):
                batch.run_memory(first, last, b"", 0)
        for fill in (b"", b"\0\0", bytes(7)):
            with pytest.raises(InvalidError):
                case.reader(fill)

    def test_no_blocks(self):
        case = Case("u1", (4, 4), None, RAW)
        batch = make_batch(
            case.reader(), [], [], np.zeros((0, 3, 2), np.int64), np.zeros((3, 3), np.uint8)
        )
        assert run_files(batch, {}) == []
        assert batch.segments == []


class TestRepeatedRun:
    def test_rows_left_again_and_again_are_listed_once(self):
        reader = Reader(b"12345678", 1, (4, 4, 4), None, b"\0", 0)
        cut = grid.Cut((0, 0, 0), (4, 4, 8), (4, 4, 4))
        out = np.zeros((4, 4, 8), np.uint8)
        batch = Batch(reader, [b"\x09", b"\x09"], cut.keys, cut.table, out, b"\x01", False)
        for _ in range(1000):
            batch.start(0, -1)
            batch.run()
        assert batch.failed == [0, 1]


class Shifted:
    """A registered codec whose payload looks like one of diced's own, but means something else."""

    def __init__(self, name, dtype, block_shape, channels):
        self.inner = get_codec(name, dtype, block_shape, channels)

    def encode(self, src):
        return self.inner.encode(np.ascontiguousarray(src + src.dtype.type(100)))

    def decode(self, payload, out, start):
        self.inner.decode(payload, out, start)
        out -= out.dtype.type(100)


@pytest.mark.parametrize("inner", ["raw", "lz4", "zstd", "label", "label+lz4", "label+zstd"])
def test_payloads_of_registered_codecs_are_theirs(monkeypatch, inner):
    monkeypatch.setitem(registry._targets["codec"], "shifted", Shifted)
    monkeypatch.setattr(registry, "_resolved", dict(registry._resolved))
    array = (
        DicedStore("memory://")
        .create_repo("r")
        .create_array("a", "u8", 3, block_shape=(16, 16, 16), codec=f"shifted:{inner}")
    )
    values = np.random.default_rng(0).integers(0, 9, (32, 16, 16)).astype("u8")
    array[0:32, 0:16, 0:16] = values
    assert np.array_equal(array[0:32, 0:16, 0:16], values)
    assert np.array_equal(array[3:20, 5, 1:9], values[3:20, 5, 1:9])


# --- merging -------------------------------------------------------------------------------------
