"""Damaged frames of blocks through the reading kernel: ``python -m tests.fuzz_frames``.

    python -m tests.fuzz_frames --executions 50000 --seed 1

Half of the damaged frames get right checksums again, so that what lies behind these sees them. Each
is one of three blocks in a file, or in memory that ends where the process may read no further. What
comes out is compared with `reference`; so are the other two blocks, and all that surrounds them.
Some frames are merged with new voxels instead, into memory that ends likewise.

Works in child processes, so that a crash is counted and the rest goes on.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from reference import (
    LABEL,
    LABEL_LZ4,
    LABEL_ZSTD,
    LZ4,
    RAW,
    ZSTD,
    constant_reference,
    frame_parse_reference,
    frame_reference,
)

from diced._blockdecode import Reader
from diced._blockmerge import merge
from diced._blockread import Batch
from diced._blockwrite import Writer
from diced._crc32c import crc32c
from diced.errors import CorruptError

LANE = b"fuzzlane"
CHUNK = 10_000
ROOM = 1 << 17
ODD = [0, 1, 2, 3, 7, 8, 16, 64, 255, 512, 4096, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
# dtype, shape, channels, codec, units of the frame, units that the reader expects
CASES: list[tuple[str, tuple[int, ...], int | None, int, int, int]] = [
    ("u1", (7, 9, 5), None, RAW, 0, 0),
    ("u2", (8, 8, 8), None, RAW, 8, 8),
    ("u2", (32, 16, 16), None, RAW, 64, 64),  # large enough that only parts of it are read
    ("u8", (16,), 3, RAW, 4, 0),
    ("u1", (8, 8, 8), None, LZ4, 0, 8),
    ("u2", (8, 8, 8), None, LZ4, 64, 64),
    ("u1", (8, 12), 3, LZ4, 16, 16),
    ("f4", (4, 2, 2, 6), None, LZ4, 16, 0),
    ("u8", (8, 8, 8), None, ZSTD, 0, 0),
    ("u4", (8, 8, 4), None, ZSTD, 8, 8),
    ("u1", (16, 16), 4, ZSTD, 4, 4),
    ("u8", (8, 8, 8), None, LABEL, 0, 0),
    ("u8", (16, 8, 8), None, LABEL, 0, 0),
    ("u8", (16, 8, 8), None, LABEL_LZ4, 0, 0),
    ("u8", (8, 8, 16), None, LABEL_LZ4, 0, 0),
    ("u8", (16, 8, 8), None, LABEL_ZSTD, 0, 0),
]


class Ending:
    """Memory whose last byte is the last one that may be read."""

    def __init__(self, size: int):
        self._map = mmap.mmap(-1, size + mmap.PAGESIZE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._size = size
        protect = getattr(ctypes.CDLL(None, use_errno=True), "mprotect", None)
        if protect is not None:
            place = ctypes.c_void_p(self._bytes.ctypes.data + size)
            if protect(place, ctypes.c_size_t(mmap.PAGESIZE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def hold(self, data: bytes) -> np.ndarray:
        part = self._bytes[self._size - len(data) : self._size]
        part[:] = np.frombuffer(data, np.uint8)
        return part


class Case:
    """One kind of block: its reader, three blocks and their frames."""

    def __init__(self, rng: np.random.Generator, kind: tuple[Any, ...]):
        dtype, self.shape, self.channels, self.codec, units, expected = kind
        self.dtype = np.dtype(dtype)
        self.dims = len(self.shape)
        self.full = self.shape if self.channels is None else (*self.shape, self.channels)
        self.keys = [rng.bytes(4 * self.dims) for _ in range(3)]
        self.blocks = [
            rng.integers(0, 5 if self.codec != RAW else 200, self.full).astype(self.dtype)
            for _ in range(3)
        ]
        self.frames = [
            frame_reference(LANE, key, block, self.dims, self.codec, units)
            for key, block in zip(self.keys, self.blocks, strict=True)
        ]
        fill = bytes(self.dtype.itemsize * (self.channels or 1))
        self.writer = None
        if units > 1:
            level = int(self.codec == ZSTD)
            self.writer = Writer(
                LANE, self.dtype.itemsize, self.shape, self.channels, self.codec, level, units
            )
        self.reader = Reader(LANE, self.dtype.itemsize, self.shape, self.channels, fill, expected)


def reseal(frame: bytearray, key_size: int, length_too: bool) -> None:
    """Make the checksums right, as far as the frame tells what they cover."""
    start = 36 + key_size
    if len(frame) < start:
        return
    if length_too:
        struct.pack_into("<I", frame, 20, len(frame) - start)
    units = struct.unpack_from("<H", frame, 26)[0]
    size = len(frame) - start
    covered = size
    if units and 8 * units <= size:
        covered = begin = 8 * units
        for number in range(units):
            end = struct.unpack_from("<I", frame, start + 8 * number)[0]
            if begin <= end <= size:
                check = crc32c(bytes(frame[start + begin : start + end]))
                struct.pack_into("<I", frame, start + 8 * number + 4, check)
            begin = end
    struct.pack_into("<I", frame, 28, crc32c(bytes(frame[start : start + covered])))
    struct.pack_into("<I", frame, start - 4, crc32c(bytes(frame[: start - 4])))


def damage(rng: np.random.Generator, frame: bytes, key_size: int, others: list[bytes]) -> bytes:
    """Return a frame that was changed at random."""
    changed = bytearray(frame)
    start = 36 + key_size
    kind = rng.integers(0, 8)
    if kind == 0:
        for place in rng.integers(0, len(changed), rng.integers(1, 5)):
            changed[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:  # the head, and what payloads begin with
        for place in rng.integers(0, min(len(changed), start + 40), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
    elif kind == 2:
        del changed[int(rng.integers(0, len(changed))) :]
    elif kind == 3:
        changed += rng.bytes(int(rng.integers(1, 600)))
    elif kind == 4:  # numbers of four bytes in the payload's tables
        for _ in range(rng.integers(1, 3)):
            most = min((len(changed) - start) // 4, 140)
            place = start + 4 * int(rng.integers(0, max(most, 1)))
            value = rng.choice(ODD) if rng.random() < 0.5 else rng.integers(0, len(changed))
            struct.pack_into("<I", changed, min(place, len(changed) - 4), int(value))
    elif kind == 5:  # numbers in the head: codec, units, lengths
        match rng.integers(0, 4):
            case 0:
                changed[5] = rng.choice([0, 1, 2, 3, 4, 8, 9, 10, 11, 200, 255])
            case 1:
                struct.pack_into("<H", changed, 26, int(rng.choice(ODD)) & 65535)
            case 2:
                struct.pack_into("<I", changed, 20, int(rng.choice(ODD)))
            case 3:
                struct.pack_into("<I", changed, 16, int(rng.choice(ODD)))
    elif kind == 6:  # another payload, as if of this codec
        changed[start:] = others[int(rng.integers(0, len(others)))]
    elif kind == 7 and len(changed) > start + 2:  # a part of it moved
        a, b, size = (int(each) for each in rng.integers(start, len(changed), 3))
        size = min(size - start, len(changed) - max(a, b))
        changed[a : a + size] = changed[b : b + size]
    if rng.random() < 0.5:
        reseal(changed, key_size, rng.random() < 0.8)
    return bytes(changed)


class Fuzz:
    """Executions of one seed, and what came of them."""

    def __init__(self, seed: int, file: BinaryIO):
        self.rng = np.random.default_rng(seed)
        self.cases = [Case(self.rng, kind) for kind in CASES]
        self.payloads = [case.frames[1][36 + 4 * case.dims :] for case in self.cases]
        self.file = file.fileno()
        self.memory = Ending(ROOM)
        self.room = Ending(ROOM)
        self.counts: Counter[str] = Counter()

    def run(self, executions: int) -> list[str]:
        """Return what was wrong."""
        wrong = []
        for turn in range(executions):
            case = self.cases[turn % len(self.cases)]
            merges = case.writer is not None and self.rng.random() < 0.3
            found = self.merge(case) if merges else self.one(case)
            if found:
                wrong.append(f"execution {turn}, codec {case.codec} of {case.full}: {found}")
        return wrong

    def windows(self, case: Case) -> tuple[np.ndarray, list[tuple[slice, ...]]]:
        """Return the table of three windows that lie apart in a result, and the windows."""
        rng = self.rng
        table = np.zeros((3, 3, case.dims), np.int64)
        whole = rng.random(3) < 0.4
        at = 1
        for row in range(3):
            # Damage of labels is noticed only where they are needed.
            if whole[row] or (row == 1 and case.codec >= LABEL):
                low, high = [0] * case.dims, list(case.shape)
            else:
                low = [int(rng.integers(0, side)) for side in case.shape]
                high = [
                    int(rng.integers(a + 1, side + 1))
                    for a, side in zip(low, case.shape, strict=True)
                ]
            table[row, 0] = low
            table[row, 1] = np.subtract(high, low)
            table[row, 2] = 1
            table[row, 2, 0] = at
            at += int(table[row, 1, 0]) + 1
        boxes = [
            tuple(slice(a, a + n) for a, n in zip(*table[row, :2].tolist(), strict=True))
            for row in range(3)
        ]
        return table, boxes

    def one(self, case: Case) -> str:
        """Damage, read and judge once; return what is wrong, or nothing."""
        rng = self.rng
        frames = list(case.frames)
        frames[1] = damage(rng, frames[1], 4 * case.dims, self.payloads)
        order = [int(each) for each in rng.permutation(3)]
        data, entries = self.lay(frames, order)
        table, boxes = self.windows(case)
        shape = [3 * side + 5 if axis == 0 else side + 2 for axis, side in enumerate(case.shape)]
        shape += case.full[case.dims :]
        room = np.full((*shape[:-1], shape[-1] + (case.channels is None)), 0x5A, np.uint8).repeat(
            case.dtype.itemsize, -1
        )
        out = room.view(case.dtype)[..., : shape[-1]]
        if rng.random() < 0.2:
            # The same windows mirrored: the rows do not lie together.
            out = out[..., ::-1] if case.channels is None else out[:, ::-1][:, ::-1]
        before = room.copy()
        batch = Batch(case.reader, entries, case.keys, table, out, b"\1", bool(rng.random() < 0.3))
        try:
            self.read(batch, data)
            failed = batch.failed
        except CorruptError:
            failed = None
        self.counts["raised" if failed is None else "failed" if failed else "read"] += 1
        results = [
            out[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))]
            for size, at in table[:, 1:].tolist()
        ]
        wrong = ""
        if failed is None or 1 in failed:
            wrong = self.judge_failure(case, data, entries[1], boxes[1])
        else:
            wrong = self.judge_success(case, data, entries[1], boxes[1], results[1])
        for row in (0, 2):
            if failed is not None and (
                row in failed or results[row].tobytes() != case.blocks[row][boxes[row]].tobytes()
            ):
                wrong = wrong or f"the sound block {row} was not read"
        hole = np.full(1, 0x5A, np.uint8).repeat(case.dtype.itemsize).view(case.dtype)[0]
        for result in results:
            result[...] = hole
        if not np.array_equal(room, before):
            wrong = wrong or "bytes outside the windows changed"
        return wrong

    def merge(self, case: Case) -> str:
        """Merge a damaged frame with new voxels; return what is wrong, or nothing."""
        rng = self.rng
        key = case.keys[1]
        frame = damage(rng, case.frames[1], len(key), self.payloads)
        low = [int(rng.integers(0, side)) for side in case.shape]
        box = tuple(
            slice(a, int(rng.integers(a + 1, side + 1)))
            for a, side in zip(low, case.shape, strict=True)
        )
        source = rng.integers(0, 200, case.blocks[1][box].shape).astype(case.dtype)
        room = self.room.hold(bytes(case.writer.most))
        size = merge(case.writer, self.memory.hold(frame), key, low, source, room)
        self.counts["merged" if size else "not merged"] += 1
        known = (LANE, key, case.dtype, case.full, case.dims)
        whole = None
        with suppress(ValueError):
            whole = frame_parse_reference(frame, *known).copy()
        if not size:
            units = struct.unpack_from("<H", case.frames[1], 26)[0]
            constant = constant_reference(source, case.channels or 1) is not None
            # Zstandard's frames may be refused: see `judge_failure`.
            if whole is None or constant or case.codec == ZSTD or frame[5] != case.codec:
                return ""
            alike = struct.unpack_from("<H", frame, 26)[0] == units
            return "a frame that the reference reads was not merged" if alike else ""
        made = room[:size].tobytes()
        try:
            found = frame_parse_reference(made, *known, box)
            if whole is not None:
                whole[box] = source
                found = frame_parse_reference(made, *known)
        except ValueError as error:
            return f"a merged frame is damaged: {error}"
        wanted = source if whole is None else whole
        return "" if found.tobytes() == wanted.tobytes() else "other voxels were merged"

    def lay(self, frames: list[bytes], order: list[int]) -> tuple[bytes, list[Any]]:
        """Put frames one behind the other; sometimes an entry does not say where."""
        rng = self.rng
        data = b""
        entries: list[Any] = [None] * 3
        for row in order:
            entries[row] = (5, len(data), len(frames[row]))
            data += frames[row]
        if rng.random() < 0.1:
            _, offset, length = entries[1]
            match rng.integers(0, 3):
                case 0:
                    length = int(
                        rng.choice([0, -1, -(2**40), 1, 51, 2**31, 2**40, 2**62, length - 1])
                    )
                case 1:
                    offset = int(rng.choice([-1, -(2**50), 2**31, 2**50, 2**62, offset + 1]))
                case 2:
                    length += int(rng.integers(-40, 40))
            entries[1] = (5, offset, length)
        return data, entries

    def read(self, batch: Any, data: bytes) -> None:
        if self.rng.random() < 0.5:
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, data, 0)
            batch.open(0, 3, self.file)
            batch.start(0, -1)
            batch.run()
        else:
            batch.run_memory(0, 3, self.memory.hold(data), 0)

    def wanted(
        self, case: Case, data: bytes, entry: tuple[int, int, int], box: tuple[slice, ...]
    ) -> np.ndarray | None:
        """Return what the reference reads, None if it refuses."""
        _, offset, length = entry
        if not 0 <= offset <= len(data) or not 0 <= length <= len(data) - offset:
            return None
        try:
            return frame_parse_reference(
                data[offset : offset + length],
                LANE, case.keys[1], case.dtype, case.full, case.dims, box,
            )  # fmt: skip
        except ValueError:
            return None

    def judge_failure(
        self, case: Case, data: bytes, entry: tuple[int, int, int], box: tuple[slice, ...]
    ) -> str:
        wanted = self.wanted(case, data, entry, box)
        if wanted is None:
            return ""
        codec = data[entry[1] + 5]
        # The package's Zstandard takes a frame without an end for a whole one.
        if codec in (ZSTD, LABEL_ZSTD):
            self.counts["refused"] += 1
            return ""
        return "a frame that the reference reads was refused"

    def judge_success(
        self,
        case: Case,
        data: bytes,
        entry: tuple[int, int, int],
        box: tuple[slice, ...],
        result: np.ndarray,
    ) -> str:
        wanted = self.wanted(case, data, entry, box)
        if wanted is None:
            return "a frame was read that the reference refuses"
        if wanted.tobytes() != result.tobytes():
            return "other voxels than the reference reads"
        return ""


def fuzz(executions: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Return what was wrong, and how often what happened."""
    with tempfile.TemporaryFile() as file:
        run = Fuzz(seed, file)
        return run.run(executions), run.counts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        found, counts = fuzz(options.executions, options.seed)
        print(*found[:20], dict(counts), sep="\n", file=sys.stderr)
        print(len(found))
        return 0
    began = time.monotonic()
    crashes = wrong = 0
    for chunk in range(-(-options.executions // CHUNK)):
        size = min(CHUNK, options.executions - chunk * CHUNK)
        number = options.seed * 100_000 + chunk
        command = ["--child", "--executions", str(size), "--seed", str(number)]
        child = subprocess.run(
            [sys.executable, "-X", "faulthandler", __file__, *command], stdout=subprocess.PIPE
        )
        print(f"chunk {chunk}: {size} executions, seed {number}", flush=True)
        if child.returncode:
            crashes += 1
        else:
            wrong += int(child.stdout)
    print(
        f"fuzz executions={options.executions} seed={options.seed} crashes={crashes} wrong={wrong}"
        f" seconds={time.monotonic() - began:.0f}"
    )
    return 1 if crashes or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
