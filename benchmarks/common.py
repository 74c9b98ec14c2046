"""Volumes and stores that the suites share: real ones where they are, seeded ones elsewhere."""

from __future__ import annotations

import functools
import io
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

import numpy as np

from diced import DicedStore
from diced.demo.volumes import em_slabs, label_slabs

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
LABELS = SHARED / "connectomics-labels-256x512x512.npy.zst"


@functools.lru_cache(maxsize=2)
def em(shape: tuple[int, int, int] = (128, 512, 512)) -> np.ndarray:
    """Return an EM-like uint8 volume."""
    return np.concatenate(list(em_slabs(shape, seed=1)))


@functools.lru_cache(maxsize=2)
def labels(shape: tuple[int, int, int] = (128, 512, 512)) -> np.ndarray:
    """Return a segmentation as uint64, real where the shared data is present."""
    if LABELS.exists():
        import zstandard

        with LABELS.open("rb") as file:
            data = zstandard.ZstdDecompressor().stream_reader(file).read()
        return np.load(io.BytesIO(data))[: shape[0]].astype(np.uint64)
    return np.concatenate(list(label_slabs(shape, seed=1)))


class Scratch:
    """A store in a directory of its own, removed by `close`."""

    def __init__(self, durability: str = "process", threads: int | None = None):
        self.path = tempfile.mkdtemp(suffix=".diced")
        self.store = DicedStore(self.path, durability=durability, threads=threads)
        self.repo = self.store.create_repo("bench")

    def array(self, data: np.ndarray, name: str = "a", write: bool = True, **options):
        """Create an array for `data`, and write it at a place that is not block-aligned to 0."""
        is_label = data.dtype == np.uint64
        array = self.repo.create_array(
            name, data.dtype, data.ndim, islabel3D=is_label and data.ndim == 3, **options
        )
        if write:
            array[tuple(slice(0, n) for n in data.shape)] = data
        return array

    def close(self) -> None:
        """Remove everything."""
        self.store.close()
        shutil.rmtree(self.path)


def ratio(
    ours: Callable[[], object],
    peer: Callable[[], object],
    rounds: int = 7,
    before: Callable[[], object] | None = None,
) -> float:
    """Return the median of our time over the peer's, the two run in turn, `before` untimed."""
    found = []
    for _ in range(rounds):
        if before:
            before()
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        peer()
        found.append((middle - start) / (time.perf_counter() - middle))
    return float(np.median(found))
