"""zarr-python, with its own codec pipeline or with the one in Rust of the package zarrs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import CHUNKS, Handle, Index, Peer

RUST = "zarrs.ZarrsCodecPipeline"


def compressor(codec: str) -> Any:
    """Return the zarr v3 codec for ``zstd1`` or ``blosclz4``."""
    from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

    if codec == "zstd1":
        return ZstdCodec(level=1)
    return BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.noshuffle)


class ZarrHandle(Handle):
    """An open zarr array."""

    def __init__(self, array: Any):
        self.array = array
        self.read = array.__getitem__  # type: ignore[method-assign]

    def read(self, index: Index) -> Any:
        return self.array[index]

    def write(self, index: Index, value: np.ndarray) -> None:
        self.array[index] = value


class Zarr(Peer):
    """A v3 array of one file per chunk."""

    packages = ("zarr",)

    def __init__(
        self,
        name: str,
        labels: bool,
        threads: int,
        codec: str = "zstd1",
        rust: bool = False,
        ops: Collection[str] | None = None,
        data: Collection[str] = ("em", "labels"),
    ):
        super().__init__(name, labels, threads, ops, data)
        self.codec = codec
        self.rust = rust
        if rust:
            self.packages = ("zarr", "zarrs")  # type: ignore[misc]

    @property
    def settings(self) -> str:
        pipeline = "zarrs" if self.rust else "zarr-python"
        return f"zarr v3, {self.codec}, pipeline of {pipeline}, {self.threads} threads"

    def _config(self) -> dict[str, Any]:
        return {
            "threading.max_workers": self.threads,
            **({"codec_pipeline.path": RUST} if self.rust else {}),
        }

    def _zarr(self) -> Any:
        import zarr

        zarr.config.set(self._config())
        return zarr

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        array = self._zarr().create_array(
            f"{path}/a.zarr",
            shape=shape,
            chunks=CHUNKS,
            dtype=self.dtype,
            compressors=compressor(self.codec),
        )
        return ZarrHandle(array)

    def reader(self, path: str, parallel: bool = False) -> Handle:
        return ZarrHandle(self._zarr().open_array(f"{path}/a.zarr", mode="r"))

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return ZarrHandle(self._zarr().open_array(f"{path}/a.zarr", mode="r+"))

    def snippet(self, path: str) -> str:
        return (
            f"import numpy, zarr; zarr.config.set({self._config()!r});"
            f" v = zarr.open_array({path + '/a.zarr'!r}, mode='r')[1, 2, 3]"
        )
