"""The made-up volumes: repeatable, streamed, hard to compress, image and labels agreeing."""

from __future__ import annotations

import itertools

import lz4.block
import numpy as np
import pytest

from diced.demo.volumes import em_slabs, label_slabs
from diced.errors import InvalidError

SHAPE = (72, 100, 150)


def whole(slabs) -> np.ndarray:
    return np.concatenate(list(slabs))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return whole(em_slabs(SHAPE, seed=5))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return whole(label_slabs(SHAPE, seed=5))


def test_slabs_have_the_shape_and_type_they_promise() -> None:
    for make, dtype in ((em_slabs, np.uint8), (label_slabs, np.uint64)):
        slabs = list(make((70, 33, 47), seed=1, thickness=32))
        assert [slab.shape for slab in slabs] == [(32, 33, 47), (32, 33, 47), (6, 33, 47)]
        assert all(slab.dtype == dtype and slab.flags.c_contiguous for slab in slabs)
        assert all(slab.flags.writeable for slab in slabs)


@pytest.mark.parametrize("make", [em_slabs, label_slabs])
def test_the_seed_decides_and_the_thickness_does_not(make) -> None:
    shape = (40, 50, 60)
    first = whole(make(shape, seed=2))
    assert np.array_equal(first, whole(make(shape, seed=2, thickness=13)))
    assert not np.array_equal(first, whole(make(shape, seed=3)))


def test_slabs_are_made_as_they_are_asked_for() -> None:
    # Made whole, the volumes would take 32 and 256 GB.
    for make in (em_slabs, label_slabs):
        slab = next(make((1 << 17, 512, 512), thickness=1))
        assert slab.shape == (1, 512, 512)


def test_lz4_finds_little_to_gain(image) -> None:
    block = np.ascontiguousarray(image[:64, :64, :64]).tobytes()
    assert len(block) / len(lz4.block.compress(block, store_size=False)) < 1.3


def test_membranes_stand_at_the_borders_of_bodies(image, labels) -> None:
    border = np.zeros(SHAPE, bool)
    for axis in range(3):
        here = [slice(None)] * 3
        there = [slice(None)] * 3
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        differs = labels[tuple(here)] != labels[tuple(there)]
        border[tuple(here)] |= differs
        border[tuple(there)] |= differs
    assert 0.02 < border.mean() < 0.5
    assert image[border].mean() < image[~border].mean() - 30


def test_every_voxel_belongs_to_a_body_beyond_32_bits(labels) -> None:
    assert labels.min() > np.iinfo(np.uint32).max


def test_many_bodies_cross_blocks() -> None:
    shape = (256, 256, 256)
    first: dict[int, set[int]] = {}
    for number, slab in enumerate(label_slabs(shape)):
        for y, x in itertools.product(range(0, 256, 64), repeat=2):
            for body in np.unique(slab[:, y : y + 64, x : x + 64]):
                first.setdefault(int(body), set()).add(number * 16 + y // 64 * 4 + x // 64)
    crossing = sum(len(blocks) > 1 for blocks in first.values())
    # a sixteenth of the default volume, which must have 500
    assert crossing > 80


@pytest.mark.parametrize(
    ("shape", "thickness"), [((0, 4, 4), 64), ((4, 4), 64), ((4, 4, 4), 0), ((4, -1, 4), 1)]
)
def test_impossible_sizes_are_refused(shape, thickness) -> None:
    for make in (em_slabs, label_slabs):
        with pytest.raises(InvalidError, match="above 0"):
            next(make(shape, thickness=thickness))
