"""blosc2: one contiguous b2nd file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import CHUNKS, Handle, Index, Peer

BLOCKS = (32, 32, 32)


class Blosc2Handle(Handle):
    """An open NDArray."""

    def __init__(self, array: Any):
        self.array = array

    def read(self, index: Index) -> Any:
        return self.array[index]

    def write(self, index: Index, value: np.ndarray) -> None:
        self.array[index] = value


class Blosc2(Peer):
    """Chunks of eight blocks."""

    packages = ("blosc2",)
    one_writer = "a b2nd file has one writing process"

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
        level = "lz4, level 5" if self.codec == "lz4" else "zstd, level 1"
        return f"{level}, blocks {BLOCKS}, no shuffle, contiguous file, {self.threads} threads"

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        import blosc2

        lz4 = self.codec == "lz4"
        cparams = blosc2.CParams(
            codec=blosc2.Codec.LZ4 if lz4 else blosc2.Codec.ZSTD,
            clevel=5 if lz4 else 1,
            filters=[blosc2.Filter.NOFILTER],
            filters_meta=[0],
            nthreads=self.threads,
        )
        array = blosc2.empty(
            shape,
            self.dtype,
            chunks=CHUNKS,
            blocks=BLOCKS,
            urlpath=f"{path}/a.b2nd",
            contiguous=True,
            mode="w",
            cparams=cparams,
            dparams=blosc2.DParams(nthreads=self.threads),
        )
        return Blosc2Handle(array)

    def _open(self, path: str, mode: str) -> Handle:
        import blosc2

        dparams = blosc2.DParams(nthreads=self.threads)
        return Blosc2Handle(blosc2.open(f"{path}/a.b2nd", mode=mode, dparams=dparams))

    def reader(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, "r")

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, "a")

    def snippet(self, path: str) -> str:
        return f"import numpy, blosc2; v = blosc2.open({path + '/a.b2nd'!r}, mode='r')[1, 2, 3]"
