"""h5py: one HDF5 file, filters from hdf5plugin."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import CHUNKS, Handle, Index, Peer, Writes


class H5Handle(Handle):
    """A dataset and its file."""

    def __init__(self, file: Any, dataset: Any):
        self.file = file
        self.dataset = dataset
        self.read = dataset.__getitem__  # type: ignore[method-assign]

    def read(self, index: Index) -> Any:
        return self.dataset[index]

    def write(self, index: Index, value: np.ndarray) -> None:
        self.dataset[index] = value
        self.file.flush()

    def write_many(self, writes: Writes) -> None:
        for index, value in writes:
            self.dataset[index] = value
        self.file.flush()

    def write_sync(self, index: Index, value: np.ndarray) -> None:
        self.write(index, value)
        os.fsync(self.file.id.get_vfd_handle())

    def close(self) -> None:
        self.file.close()


class H5py(Peer):
    """One chunked dataset, no cache of chunks."""

    packages = ("h5py", "hdf5plugin")
    one_writer = "HDF5 has one writing process"
    durable = True

    def __init__(
        self,
        name: str,
        labels: bool,
        threads: int,
        codec: str = "lz4",
        ops: Collection[str] | None = None,
        data: Collection[str] = ("em", "labels"),
    ):
        super().__init__(name, labels, threads, ops, data)
        self.codec = codec

    @property
    def settings(self) -> str:
        return f"filter {self.codec} (hdf5plugin), rdcc_nbytes=0, flush after each write, 1 thread"

    @property
    def fsync(self) -> str:
        return "c_block_sync: flush and os.fsync of the file; else never"

    def _file(self, path: str, mode: str) -> Any:
        import h5py
        import hdf5plugin  # noqa: F401 - registers the filters

        return h5py.File(f"{path}/a.h5", mode, rdcc_nbytes=0)

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        import hdf5plugin

        file = self._file(path, "w")
        options = hdf5plugin.LZ4() if self.codec == "lz4" else hdf5plugin.Zstd(clevel=1)
        return H5Handle(file, file.create_dataset("a", shape, self.dtype, chunks=CHUNKS, **options))

    def _open(self, path: str, mode: str) -> Handle:
        file = self._file(path, mode)
        return H5Handle(file, file["a"])

    def reader(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, "r")

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, "r+")

    def snippet(self, path: str) -> str:
        return (
            "import numpy, h5py, hdf5plugin;"
            f" v = h5py.File({path + '/a.h5'!r}, 'r', rdcc_nbytes=0)['a'][1, 2, 3]"
        )
