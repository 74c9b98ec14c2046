"""The kernels that read and write many blocks at a time, against frames made and read by hand."""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from contextlib import ExitStack

import numpy as np
import pytest
from fuzz_frames import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    LABEL,
    LABEL_LZ4,
    LABEL_ZSTD,
    LZ4,
    RAW,
    ZSTD,
    checksum_reference,
    constant_reference,
    frame_parse_reference,
    frame_reference,
    payload_reference,
    seal_reference,
    unit_places_reference,
)

from diced import DicedStore, grid, pool, registry
from diced._blockdecode import Reader
from diced._blockmerge import merge
from diced._blockread import Batch
from diced._blockwrite import Writer
from diced.codec import get_codec
from diced.errors import CorruptError, InvalidError

LANE = b"lane/\0\xff!"
CONSTANT = b"\1"
FUZZED = 20_000
SEEDS = st.integers(0, 2**32 - 1)


class Case:
    """A kind of block: what `Reader` and `Writer` need, and how to make one."""

    def __init__(self, dtype, shape, channels, codec, units=1):
        self.dtype = np.dtype(dtype)
        self.shape = tuple(shape)
        self.channels = channels
        self.codec = codec
        self.units = units
        self.dims = len(self.shape)
        self.full = self.shape if channels is None else (*self.shape, channels)
        self.element = self.dtype.itemsize * (channels or 1)
        self.nbytes = int(np.prod(self.full)) * self.dtype.itemsize

    def __repr__(self):
        return (
            f"Case({self.dtype.str!r}, {self.shape}, {self.channels}, {self.codec}, {self.units})"
        )

    def reader(self, fill=None, units=None, lane=LANE):
        expected = (self.units if self.units > 1 else 0) if units is None else units
        fill = bytes(self.element) if fill is None else fill
        return Reader(lane, self.dtype.itemsize, self.shape, self.channels, fill, expected)

    def writer(self):
        level = 1 if self.codec in (ZSTD, LABEL_ZSTD) else 0
        return Writer(
            LANE, self.dtype.itemsize, self.shape, self.channels, self.codec, level, self.units
        )

    def keys(self, rng, count):
        made = {rng.bytes(4 * self.dims) for _ in range(count)}
        while len(made) < count:
            made.add(rng.bytes(4 * self.dims))
        return sorted(made)

    def voxels(self, rng, shape=None):
        """Values of some shape: noise, few values, or one."""
        shape = (*(shape or self.shape), *self.full[self.dims :])
        most = int(rng.choice([1, 2, 5, 256], p=[0.1, 0.2, 0.2, 0.5]))
        if self.codec >= LABEL:
            return rng.integers(0, most, shape).astype("u8") << np.uint64(rng.integers(0, 50))
        data = rng.integers(0, most, int(np.prod(shape)) * self.dtype.itemsize, np.uint8)
        return data.view(self.dtype).reshape(shape)

    def frame(self, key, block, units=None):
        if units is None:
            units = self.units if self.units > 1 else 0
        return frame_reference(LANE, key, block, self.dims, self.codec, units)

    def parse(self, frame, key):
        return frame_parse_reference(frame, LANE, key, self.dtype, self.full, self.dims)

    def choices(self):
        """Return all numbers of units that frames of such blocks may have, 0 included."""
        if self.codec >= LABEL:
            return [0]
        halvings = [
            j
            for j in range(10)
            if j * self.dims <= 9 and not any(side % 2**j for side in self.shape)
        ]
        return [0, *(2 ** (self.dims * j) for j in halvings)]


@st.composite
def cases(draw):
    codec = draw(st.sampled_from([RAW, LZ4, ZSTD, RAW, LZ4, ZSTD, LABEL, LABEL_LZ4, LABEL_ZSTD]))
    if codec >= LABEL:
        shape = draw(st.sampled_from([(8, 8, 8), (16, 8, 8), (8, 16, 24), (16, 16, 16)]))
        return Case("u8", shape, None, codec)
    dims = draw(st.integers(1, 5))
    halvings = draw(st.integers(0, {1: 9, 2: 4, 3: 3, 4: 2, 5: 1}[dims]))
    dtype = draw(st.sampled_from(["u1", "<u2", "<f4", "<u8", "<c16"]))
    channels = draw(st.sampled_from([None, None, None, 1, 3, 4]))
    largest = 9 if dims < 3 else 5
    sides = [draw(st.integers(1, largest)) << halvings for _ in range(dims)]
    # At most 48 KiB: the reference is slow. From 16 KiB on readers leave out what they can.
    while np.prod(sides) * np.dtype(dtype).itemsize * (channels or 1) > 48 * 1024:
        if max(sides) == 1 << halvings:
            dtype = "u1"
            break
        sides[sides.index(max(sides))] = 1 << halvings
    return Case(dtype, sides, channels, codec, 2 ** (dims * halvings))


def strided(rng, shape, dtype):
    """Return memory and an array in it: C or another order, steps, reversals, margins, unaligned.

    The memory around the array's items is noise.
    """
    dtype = np.dtype(dtype)
    order = np.arange(len(shape)) if rng.random() < 0.5 else rng.permutation(len(shape))
    steps = np.ones(len(shape), int)
    margins = rng.integers(0, 2, len(shape)) * (rng.random() < 0.7)
    if rng.random() < 0.4:
        steps[rng.integers(0, len(shape))] = rng.choice([-1, 2, -2])
    wide = [2 * margins[axis] + shape[axis] * abs(steps[axis]) for axis in order]
    size = int(np.prod(wide)) * dtype.itemsize
    first = int(rng.choice([0, 0, 3]))
    memory = rng.integers(0, 256, first + size + 5, np.uint8)
    base = memory[first : first + size].view(dtype).reshape(wide).transpose(np.argsort(order))
    inner = tuple(
        slice(margin, margin + side * abs(step))
        for margin, side, step in zip(margins, shape, steps, strict=True)
    )
    return memory, base[inner][tuple(slice(None, None, int(step)) for step in steps)]


# --- writing -------------------------------------------------------------------------------------


def pack_all(writer, source, keys, table, rows, spare):
    """Call `pack` as often as the memory makes it necessary; return constants and frames."""
    memory = np.full(writer.most + spare + 64, 0xA5, np.uint8)
    found = []
    while len(found) < len(rows):
        made = writer.pack(source, keys, table, rows[len(found) :], memory[:-64])
        assert made
        found += [
            each if isinstance(each, bytes) else memory[each[0] : sum(each)].copy() for each in made
        ]
        ends = [each for each in made if not isinstance(each, bytes)]
        # End to end, so that one write does.
        starts = [0, *(start + size for start, size in ends)]
        assert [start for start, _ in ends] == starts[:-1]
        assert (memory[-64:] == 0xA5).all()
    return found


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


def make_batch(reader, entries, keys, table, out, stream=False):
    return Batch(reader, entries, keys, table, out, CONSTANT, stream)


def run_files(batch, segments, threads=1):
    """Run a batch over files that hold the segments."""
    with ExitStack() as stack:
        for segment, first, last in batch.segments:
            file = stack.enter_context(tempfile.TemporaryFile())
            os.pwrite(file.fileno(), segments[segment], 0)
            batch.open(first, last, file.fileno())
        batch.start(0, -1)
        if threads == 1:
            batch.run()
        else:
            pool.for_each(batch.run, range(threads), threads)
        batch.open(0, 0, -1)
    return batch.failed


def run_fetched(batch, segments, rng):
    """Run a batch over parts of segments in memory."""
    done = 0
    for segment, first, last in batch.segments:
        spans = batch.spans(first, last)
        while first < last:
            count = int(rng.integers(1, last - first + 1))
            part = spans[len(spans) - (last - first) :][:count]
            begin = max(0, part[0][1] - int(rng.integers(0, 9)))
            end = max(offset + length for _, offset, length in part)
            batch.run_memory(first, first + count, segments[segment][begin:end], begin)
            first += count
        done = last
    batch.start(done, -1)
    batch.run()
    return batch.failed


def read_memory(case, frames, keys, table, out, **options):
    """Read frames that lie end to end; return what failed."""
    offsets = np.cumsum([0, *map(len, frames)]).tolist()
    entries = [(1, at, len(frame)) for at, frame in zip(offsets, frames, strict=False)]
    batch = make_batch(case.reader(**options), entries, keys, table, out)
    batch.run_memory(0, len(frames), b"".join(frames), 0)
    return batch.failed


def random_windows(rng, case, count):
    """Return a table of windows that lie apart in a result, and the result's shape."""
    table = np.zeros((count, 3, case.dims), np.int64)
    at = 0
    for row in range(count):
        low, high = [0] * case.dims, list(case.shape)
        kind = rng.integers(0, 3)
        for axis in range(case.dims) if kind else ():
            if kind == 1 or rng.random() < 0.5:
                low[axis] = int(rng.integers(0, high[axis]))
                high[axis] = int(rng.integers(low[axis] + 1, high[axis] + 1))
        table[row, 0] = low
        table[row, 1] = np.subtract(high, low)
        table[row, 2] = rng.integers(0, 2)
        table[row, 2, 0] = at
        at += int(table[row, 1, 0]) + int(rng.integers(0, 2))
    shape = (table[:, 1] + table[:, 2]).max(0).tolist()
    shape[0] = at + 1
    return table, (*shape, *case.full[case.dims :])


def part(block, row):
    return block[tuple(slice(a, a + n) for a, n in zip(row[0], row[1], strict=True))]


def place(out, row):
    return out[tuple(slice(a, a + n) for a, n in zip(row[2], row[1], strict=True))]


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
        assert batch.decoded == out.nbytes
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


def offset_in(memory, view):
    return view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]


def whole_of(case, element):
    """Return one element as an array that broadcasts to windows."""
    values = np.frombuffer(element, case.dtype)
    return values if case.channels is not None else values[0]


# --- damage --------------------------------------------------------------------------------------

KINDS = [
    Case("u2", (8, 8, 8), None, RAW),
    Case("u2", (8, 8, 8), None, RAW, 8),
    Case("u1", (16, 16), 3, LZ4),
    Case("u1", (16, 16), 3, LZ4, 16),
    Case("u2", (8, 8, 8), None, LZ4, 64),
    Case("u4", (32,), None, ZSTD, 4),
    Case("f4", (4, 2, 4, 6), None, ZSTD),
    # Large enough that a part is read without the rest.
    Case("u2", (32, 16, 32), None, RAW, 64),
    Case("u8", (16, 8, 8), None, LABEL),
    Case("u8", (16, 8, 8), None, LABEL_LZ4),
    Case("u8", (16, 8, 8), None, LABEL_ZSTD),
]


class Trio:
    """Three frames in one segment, of which the second is tampered with."""

    def __init__(self, case):
        self.case = case
        rng = self.rng = np.random.default_rng(case.codec)
        self.keys = case.keys(rng, 3)
        self.blocks = [rng.integers(0, 6, case.full).astype(case.dtype) for _ in range(3)]
        self.frames = [
            case.frame(key, block) for key, block in zip(self.keys, self.blocks, strict=True)
        ]
        self.head = 36 + 4 * case.dims

    def assert_left(self, window=None, wanted=None, **tampered):
        """Check both ways of reading: the second is left, or right, and the others are right."""
        for files in (True, False):
            self._assert_left(files, window, wanted, **tampered)

    def _assert_left(
        self, files, window, wanted, frame=None, entry=None, key=None, cut=None, lane=LANE
    ):
        case = self.case
        middle = self.frames[1] if frame is None else bytes(frame)
        data = self.frames[0] + self.frames[2]
        entries = [(4, 0, len(self.frames[0])), None, (4, len(self.frames[0]), len(data))]
        entries[2] = (4, len(self.frames[0]), len(self.frames[2]))
        entries[1] = entry(len(data), len(middle)) if entry else (4, len(data), len(middle))
        data += middle
        if cut is not None:
            data = data[: len(data) - len(middle) + cut]
        keys = [self.keys[0], key or self.keys[1], self.keys[2]]
        table = np.zeros((3, 3, case.dims), np.int64)
        table[:, 1] = case.shape
        table[:, 2] = 1
        table[:, 2, 0] = 1 + np.arange(3) * (case.shape[0] + 1)
        if window is not None:
            table[1, :2] = window
        shape = [side + 2 for side in case.shape]
        shape[0] = 3 * (case.shape[0] + 1) + 1
        memory = np.full((*shape, *case.full[case.dims :]), 77).astype(case.dtype)
        room = memory.copy()
        batch = make_batch(case.reader(lane=lane), entries, keys, table, room)
        if files:
            failed = run_files(batch, {4: data})
        else:
            batch.run_memory(0, 3, data, 0)
            failed = batch.failed
        others = [] if lane == LANE else [0, 2]
        assert failed == sorted(others if wanted is not None else [1, *others])
        for row in (0, 2):
            if not others:
                assert np.array_equal(place(room, table[row]), self.blocks[row])
        if wanted is not None:
            assert np.array_equal(place(room, table[1]), wanted)
        for row in range(3):
            place(room, table[row])[...] = place(memory, table[row])
        assert np.array_equal(room, memory)


@pytest.fixture(params=KINDS, ids=repr)
def trio(request):
    return Trio(request.param)


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
