"""Is the GIL released? The same work by two threads at once, and twice in a loop.

``python -m benchmarks.threads`` prints what two threads gain for each kernel, and what they gain on
this machine without diced: for computing that stays in the first caches, and for copying memory.
"""

import statistics
import threading
import time
import zlib

import numpy as np

from benchmarks.common import Scratch, em, labels
from diced import _blockdecode, _blockread, _blocks, _blockwrite, _codec, _crc32c, grid
from diced.codec import get_codec

COUNT = 2
SHAPE = (64, 256, 256)
BLOCK = (64, 64, 64)
# name: (codec number, level, units, label data)
PACKS = {
    "lz4": (1, 0, 8, False),
    "zstd": (2, 1, 8, False),
    "label": (8, 0, 1, True),
    "label+lz4": (9, 0, 1, True),
    "label+zstd": (10, 1, 1, True),
}
KERNELS = [
    "machine compute",
    "machine copy",
    "crc32c",
    "copy",
    "label encode",
    "label decode",
    *(f"pack {name}" for name in PACKS),
    *(f"unpack {name}" for name in PACKS),
]


def _together(work, count=COUNT):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _packed(name):
    """Return the writer, reader, volume, table of blocks, frames and entries of one codec."""
    codec, level, units, is_label = PACKS[name]
    data = (labels() if is_label else em())[: SHAPE[0], : SHAPE[1], : SHAPE[2]].copy()
    lane, size = b"benchmrk", data.itemsize
    writer = _blockwrite.Writer(lane, size, BLOCK, None, codec, level, units)
    reader = _blockdecode.Reader(lane, size, BLOCK, None, bytes(size), units if units > 1 else 0)
    cut = grid.Cut((0, 0, 0), SHAPE, BLOCK)
    memory = np.empty(writer.most * 2 + data.nbytes, np.uint8)
    found = writer.pack(data, cut.keys, cut.table, range(len(cut)), memory)
    entries = [made if isinstance(made, bytes) else (1, *made) for made in found]
    entries = [b"\x01" + each if isinstance(each, bytes) else each for each in entries]
    return writer, reader, data, cut, memory, entries


def make(kernel):
    """Return a function of the thread's number that calls a kernel once on that thread's data."""
    gray = em()[: SHAPE[0], : SHAPE[1], : SHAPE[2]].copy()
    seg = labels()[: SHAPE[0], : SHAPE[1], : SHAPE[2]].copy()
    if kernel == "machine compute":
        text = [gray.tobytes()[: 1 << 15] for _ in range(COUNT)]
        return lambda i: [zlib.compress(text[i], 1) for _ in range(16)]
    if kernel in ("machine copy", "copy"):
        sources = [seg.copy() for _ in range(COUNT)]
        outs = [seg.copy() for _ in range(COUNT)]
        move = _blocks.copy if kernel == "copy" else (lambda a, b: np.copyto(b, a))
        return lambda i: move(sources[i], outs[i])
    if kernel == "crc32c":
        parts = [gray.tobytes()[: 1 << 18] for _ in range(COUNT)]
        return lambda i: [_crc32c.crc32c(parts[i]) for _ in range(64)]
    if kernel == "label encode":
        segs = [seg.copy() for _ in range(COUNT)]
        return lambda i: _codec.label_encode(segs[i])
    if kernel == "label decode":
        codec = get_codec("label", seg.dtype, SHAPE, None)
        coded, outs = codec.encode(seg), [seg.copy() for _ in range(COUNT)]
        return lambda i: codec.decode(coded, outs[i], (0, 0, 0))
    verb, _, name = kernel.partition(" ")
    writer, reader, data, cut, memory, entries = _packed(name)
    if verb == "pack":
        sources = [data.copy() for _ in range(COUNT)]
        rooms = [memory.copy() for _ in range(COUNT)]
        rows = range(len(cut))
        return lambda i: writer.pack(sources[i], cut.keys, cut.table, rows, rooms[i])
    outs = [data.copy() for _ in range(COUNT)]

    def unpack(i):
        batch = _blockread.Batch(reader, entries, cut.keys, cut.table, outs[i], b"\x01", False)
        last = batch.segments[0][2] if batch.segments else 0
        batch.run_memory(0, last, memory, 0)
        batch.start(last, -1)
        batch.run()
        assert not batch.failed

    return unpack


def gain(kernel, rounds=9, seconds=0.1):
    """Return the median time of the loop over that of the threads, in turn."""
    once = make(kernel)
    for i in range(COUNT):
        once(i)
    start = time.perf_counter()
    once(0)
    repeat = max(1, round(seconds / max(1e-6, time.perf_counter() - start)))

    def work(i):
        for _ in range(repeat):
            once(i)

    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for i in range(COUNT):
            work(i)
        middle = time.perf_counter()
        _together(work)
        found.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(found)


class Kernels:
    """Kernels called from two threads: the loop's time over the threads'."""

    params = KERNELS
    param_names = ["kernel"]
    timeout = 300

    def track_gain(self, kernel):
        return gain(kernel)

    track_gain.unit = "times"


class Reads:
    """Several user threads read one array."""

    params = [1, 2, 4]
    param_names = ["threads"]

    def setup(self, threads):
        self.scratch = Scratch(threads=1)
        self.array = self.scratch.array(em())

    def teardown(self, threads):
        self.scratch.close()

    def time_boxes(self, threads):
        def work(i):
            for k in range(24 // threads):
                self.array[0:100, 10 * k : 10 * k + 100, 100 * i : 100 * i + 100]

        _together(work, threads)


if __name__ == "__main__":
    for name in KERNELS:
        print(f"threads: {name}: {gain(name):.2f} times a loop by {COUNT} threads", flush=True)
