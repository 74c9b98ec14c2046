"""TensorStore: zarr v3 on plain files and on OCDBT, and Neuroglancer precomputed volumes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import CHUNKS, Handle, Index, Peer, Writes

CODECS: dict[str, list[dict[str, Any]]] = {
    "raw": [],
    "zstd1": [{"name": "zstd", "configuration": {"level": 1}}],
    "blosclz4": [
        {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle"}}
    ],
}


class TensorStoreHandle(Handle):
    """An open TensorStore in ZYX."""

    def __init__(self, array: Any):
        self.array = array

    def read(self, index: Index) -> Any:
        return self.array[index].read().result()

    def write(self, index: Index, value: np.ndarray) -> None:
        self.array[index].write(value).result()

    def write_many(self, writes: Writes) -> None:
        import tensorstore as ts

        with ts.Transaction() as transaction:
            array = self.array.with_transaction(transaction)
            for future in [array[index].write(value) for index, value in writes]:
                future.result()


class TensorStorePeer(Peer):
    """What both drivers share: the context."""

    packages = ("tensorstore",)

    def __init__(
        self,
        name: str,
        labels: bool,
        threads: int,
        sync: bool = False,
        ops: Collection[str] | None = None,
        data: Collection[str] = ("em", "labels"),
    ):
        super().__init__(name, labels, threads, ops, data)
        self.sync = self.durable = sync

    @property
    def fsync(self) -> str:
        return (
            "each file and its directory (as shipped)" if self.sync else "never: file_io_sync off"
        )

    @property
    def settings(self) -> str:
        return (
            f"{self._format()}, cache_pool 0, file_io_sync {str(self.sync).lower()},"
            f" {self.threads} threads for copies and for files"
        )

    def _format(self) -> str:
        raise NotImplementedError

    def _spec(self, path: str) -> dict[str, Any]:
        """Return what opens the array."""
        raise NotImplementedError

    def _creation(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return what a spec that creates the array has in addition."""
        raise NotImplementedError

    def _context(self) -> dict[str, Any]:
        return {
            "cache_pool": {"total_bytes_limit": 0},
            "cache_pool#index": {"total_bytes_limit": 64 * 2**20},
            "data_copy_concurrency": {"limit": self.threads},
            "file_io_concurrency": {"limit": self.threads},
            "file_io_sync": self.sync,
        }

    def _opened(self, spec: dict[str, Any], **options: Any) -> Handle:
        import tensorstore as ts

        return TensorStoreHandle(
            self._zyx(ts.open({**spec, "context": self._context()}, **options).result())
        )

    def _zyx(self, array: Any) -> Any:
        return array

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        return self._opened(self._spec(path) | self._creation(shape), create=True)

    def reader(self, path: str, parallel: bool = False) -> Handle:
        return self._opened(self._spec(path), open=True, read=True)

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return self._opened(self._spec(path), open=True, read=True, write=True)

    def snippet(self, path: str) -> str:
        spec = self._spec(path) | {"context": self._context()}
        return (
            "import numpy, tensorstore;"
            f" v = tensorstore.open({spec!r}, open=True, read=True).result()"
            f"{self._voxel()}.read().result()"
        )

    def _voxel(self) -> str:
        return "[1, 2, 3]"


class Zarr3(TensorStorePeer):
    """The zarr v3 driver."""

    def __init__(self, *args: Any, codec: str = "zstd1", ocdbt: bool = False, **options: Any):
        super().__init__(*args, **options)
        self.codec = codec
        self.ocdbt = ocdbt

    def _format(self) -> str:
        store = "OCDBT (64 MiB for its nodes)" if self.ocdbt else "one file per chunk"
        return f"zarr3, {self.codec}, no shuffle, {store}"

    def _spec(self, path: str) -> dict[str, Any]:
        store: dict[str, Any] = {"driver": "file", "path": f"{path}/a/"}
        if self.ocdbt:
            store = {"driver": "ocdbt", "base": store, "cache_pool": "cache_pool#index"}
        return {"driver": "zarr3", "kvstore": store}

    def _creation(self, shape: tuple[int, ...]) -> dict[str, Any]:
        endian = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs = [
            {**each, "configuration": dict(each["configuration"])} for each in CODECS[self.codec]
        ]
        return {
            "metadata": {
                "shape": list(shape),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(CHUNKS)}},
                "data_type": self.dtype.name,
                "codecs": [endian, *codecs],
            }
        }


class Precomputed(TensorStorePeer):
    """The Neuroglancer precomputed driver: raw images, compressed_segmentation for labels."""

    def __init__(self, *args: Any, sharded: bool = False, **options: Any):
        super().__init__(*args, **options)
        self.sharded = sharded

    def _encoding(self) -> str:
        return "compressed_segmentation" if self.labels else "raw"

    def _format(self) -> str:
        files = "shards of 64 chunks, gzip" if self.sharded else "one file per chunk"
        return f"precomputed, {self._encoding()}, {files}"

    def _spec(self, path: str) -> dict[str, Any]:
        return {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/a/"},
        }

    def _creation(self, shape: tuple[int, ...]) -> dict[str, Any]:
        scale: dict[str, Any] = {
            "size": list(shape[::-1]),
            "encoding": self._encoding(),
            "chunk_size": list(CHUNKS),
            "resolution": [8, 8, 8],
        }
        if self.labels:
            scale["compressed_segmentation_block_size"] = [8, 8, 8]
        if self.sharded:
            chunks = int(np.prod([-(-n // CHUNKS[0]) for n in shape]))
            scale["sharding"] = {
                "@type": "neuroglancer_uint64_sharded_v1",
                "hash": "identity",
                "preshift_bits": 3,
                "minishard_bits": 3,
                "shard_bits": max(0, (chunks - 1).bit_length() - 6),
                "minishard_index_encoding": "gzip",
                "data_encoding": "gzip",
            }
        return {
            "multiscale_metadata": {
                "type": "segmentation" if self.labels else "image",
                "data_type": self.dtype.name,
                "num_channels": 1,
            },
            "scale_metadata": scale,
        }

    def _zyx(self, array: Any) -> Any:
        return array[..., 0].T

    def _voxel(self) -> str:
        return "[3, 2, 1, 0]"
