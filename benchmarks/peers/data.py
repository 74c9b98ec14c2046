"""The volumes: real ones mirrored to the size wanted, else made-up; cached as ``.npy`` files."""

from __future__ import annotations

import getpass
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.common import LABELS, SHARED, labels
from diced.demo.volumes import em_slabs, label_slabs

STACK = SHARED / "sample-grayscale"

Shape = tuple[int, int, int]

SHAPES: dict[str, dict[str, Shape]] = {
    "em": {"full": (1024, 512, 512), "small": (256, 512, 512), "tiny": (128, 128, 256)},
    "labels": {"full": (512, 512, 512), "small": (256, 256, 256), "tiny": (128, 128, 256)},
}
MADE_UP = (128, 512, 512)  # at most this much is made up; the rest are mirror images
SLAB = 64


def volume(name: str, size: str) -> tuple[pathlib.Path, str]:
    """Return a volume's ``.npy``, made at the first call, and where its voxels come from."""
    shape = SHAPES[name][size]
    real = LABELS.exists() if name == "labels" else STACK.is_dir() and _has_pillow()
    source = "real" if real else "synthetic"
    folder = pathlib.Path(tempfile.gettempdir()) / f"diced-bench-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{source}-{'x'.join(map(str, shape))}.npy"
    if not path.exists():
        part = folder / f"{path.stem}.{os.getpid()}.part"
        source_volume = _labels(shape, real) if name == "labels" else _em(shape, real)
        target = np.lib.format.open_memmap(part, "w+", source_volume.dtype, shape)
        for low, slab in _mirrored(source_volume, shape):
            target[low : low + len(slab)] = slab
        target.flush()
        os.replace(part, path)
    return path, source


def _has_pillow() -> bool:
    import importlib.util

    return importlib.util.find_spec("PIL") is not None


def _em(shape: Shape, real: bool) -> np.ndarray:
    if not real:
        first: Shape = tuple(map(min, shape, MADE_UP))  # type: ignore[assignment]
        return np.concatenate(list(em_slabs(first, seed=1)))
    from PIL import Image

    sections = []
    for path in sorted(STACK.glob("*.png")):
        with Image.open(path) as image:
            sections.append(np.asarray(image, np.uint8))
    return np.stack(sections)


def _labels(shape: Shape, real: bool) -> np.ndarray:
    if real:
        return labels((256, 512, 512))
    first: Shape = tuple(map(min, shape, MADE_UP))  # type: ignore[assignment]
    return np.concatenate(list(label_slabs(first, seed=1)))


def _mirrored(source: np.ndarray, shape: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield slabs of `source`, its middle or continued by its mirror images, with their positions.

    The middle, because a corner of a real segmentation may be empty.
    """
    places = []
    for length, wanted in zip(source.shape, shape, strict=True):
        there_and_back = (np.arange(wanted) + max(0, length - wanted) // 2) % (2 * length)
        places.append(np.minimum(there_and_back, 2 * length - 1 - there_and_back))
    for low in range(0, shape[0], SLAB):
        yield low, source[np.ix_(places[0][low : low + SLAB], *places[1:])]
