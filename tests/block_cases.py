"""Kinds of blocks, and their frames made by hand: what the tests of block kernels share."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack

import numpy as np
from hypothesis import strategies as st
from reference import (
    LABEL,
    LABEL_LZ4,
    LABEL_ZSTD,
    LZ4,
    RAW,
    ZSTD,
    frame_parse_reference,
    frame_reference,
)

from diced import pool
from diced._blockdecode import Reader
from diced._blockread import Batch
from diced._blockwrite import Writer

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


def offset_in(memory, view):
    return view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]


def whole_of(case, element):
    """Return one element as an array that broadcasts to windows."""
    values = np.frombuffer(element, case.dtype)
    return values if case.channels is not None else values[0]


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
