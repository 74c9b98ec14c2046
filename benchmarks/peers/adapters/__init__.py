"""The peers by name. Adapters import their libraries only when used."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.peers.adapters.base import FSYNC_OPS, Handle, Peer
from benchmarks.peers.adapters.blosc2 import Blosc2
from benchmarks.peers.adapters.diced import Diced
from benchmarks.peers.adapters.h5py import H5py
from benchmarks.peers.adapters.icechunk import Icechunk
from benchmarks.peers.adapters.limits import Machine, Memmap
from benchmarks.peers.adapters.tensorstore import Precomputed, Zarr3
from benchmarks.peers.adapters.zarr import Zarr

__all__ = ["ALL", "DEFAULT", "OURS", "Handle", "Peer", "make"]


class Entry(NamedTuple):
    """How to make a peer."""

    kind: type[Peer]
    options: dict[str, Any] = {}


OURS = "diced"

ALL: dict[str, Entry] = {
    "machine": Entry(Machine),
    "memmap": Entry(Memmap),
    OURS: Entry(Diced),
    "diced-again": Entry(Diced),
    "diced-open": Entry(Diced, {"read_open": True}),
    "diced-power": Entry(Diced, {"durability": "power", "ops": FSYNC_OPS}),
    "diced-zstd": Entry(Diced, {"image_codec": "zstd", "label_codec": "label+zstd"}),
    "diced-label": Entry(Diced, {"label_codec": "label", "data": ("labels",)}),
    "ts-zarr3-zstd1": Entry(Zarr3, {"codec": "zstd1"}),
    "ts-zarr3-blosclz4": Entry(Zarr3, {"codec": "blosclz4"}),
    "ts-zarr3-raw": Entry(Zarr3, {"codec": "raw"}),
    "ts-zarr3-zstd1-fsync": Entry(Zarr3, {"codec": "zstd1", "sync": True, "ops": FSYNC_OPS}),
    "ts-ocdbt-zstd1": Entry(Zarr3, {"codec": "zstd1", "ocdbt": True}),
    "ts-ocdbt-zstd1-fsync": Entry(
        Zarr3, {"codec": "zstd1", "ocdbt": True, "sync": True, "ops": FSYNC_OPS}
    ),
    "ts-ngpc": Entry(Precomputed),
    "ts-ngpc-shard": Entry(Precomputed, {"sharded": True}),
    "zarr-zstd1": Entry(Zarr, {"codec": "zstd1"}),
    "zarr-blosclz4": Entry(Zarr, {"codec": "blosclz4"}),
    "zarrs-zstd1": Entry(Zarr, {"codec": "zstd1", "rust": True}),
    "zarrs-blosclz4": Entry(Zarr, {"codec": "blosclz4", "rust": True}),
    "icechunk-zstd1": Entry(Icechunk),
    "h5-lz4": Entry(H5py, {"codec": "lz4"}),
    "h5-zstd1": Entry(H5py, {"codec": "zstd1"}),
    "b2nd-lz4": Entry(Blosc2, {"codec": "lz4"}),
    "b2nd-zstd1": Entry(Blosc2, {"codec": "zstd1"}),
}

DEFAULT = tuple(name for name in ALL if name not in ("diced-again", "diced-open"))


def make(name: str, labels: bool, threads: int) -> Peer:
    """Return the peer of that name, set up for images or for labels.

    Raises
    ------
    KeyError
        There is none of that name.
    """
    entry = ALL[name]
    return entry.kind(name, labels, threads, **entry.options)
