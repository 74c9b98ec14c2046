"""What is no store: a raw file mapped into memory, and the machine's own copies."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import Handle, Index, Peer

MACHINE_OPS = frozenset({"copy_fresh", "copy_warm", "pread"})


class MemmapHandle(Handle):
    """A mapped ``.npy``."""

    def __init__(self, path: str, array: np.memmap):
        self.path = path
        self.array = array

    def read(self, index: Index) -> Any:
        return np.array(self.array[index])

    def write(self, index: Index, value: np.ndarray) -> None:
        self.array[index] = value

    def write_sync(self, index: Index, value: np.ndarray) -> None:
        self.write(index, value)
        self.array.flush()


class Memmap(Peer):
    """Uncompressed rows, not even in chunks."""

    kind = "limit"
    durable = True

    @property
    def settings(self) -> str:
        return "raw .npy mapped into memory: a limit, no chunks, checksums or commits"

    @property
    def fsync(self) -> str:
        return "c_block_sync: msync of the whole file"

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        file = f"{path}/a.npy"
        return MemmapHandle(file, np.lib.format.open_memmap(file, "w+", self.dtype, shape))

    def _open(self, path: str, mode: str) -> Handle:
        file = f"{path}/a.npy"
        return MemmapHandle(file, np.lib.format.open_memmap(file, mode))

    def reader(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, "r")

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, "r+")

    def snippet(self, path: str) -> str:
        return f"import numpy; v = numpy.load({path + '/a.npy'!r}, mmap_mode='r')[1, 2, 3]"


class Machine(Memmap):
    """Copies of the same bytes by one thread."""

    durable = False

    def __init__(self, name: str, labels: bool, threads: int):
        super().__init__(name, labels, threads, ops=MACHINE_OPS)

    @property
    def settings(self) -> str:
        return "one thread: np.copyto into fresh and into touched memory; pread of a cached file"

    @property
    def fsync(self) -> str:
        return "never"


def pread(path: str, target: np.ndarray, step: int = 16 * 2**20) -> None:
    """Fill `target` from the end of a file of at least as many bytes."""
    view = memoryview(target).cast("B")
    start = os.path.getsize(path) - len(view)
    file = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            done += os.preadv(file, [view[done : done + step]], start + done)
    finally:
        os.close(file)
