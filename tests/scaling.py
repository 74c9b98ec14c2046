"""What tests of pyramids share: an array of noise, and what its levels should be."""

import numpy as np
import pytest

from diced.downsample import reduce

BLOCK = (8, 8, 8)
LO, HI = (-24, 0, -8), (40, 48, 56)  # of what tests write: whole blocks of level 3
WHOLE = tuple(slice(a, b) for a, b in zip(LO, HI, strict=True))


def noise(seed, dtype=np.uint8, shape=None):
    shape = shape or tuple(b - a for a, b in zip(LO, HI, strict=True))
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


@pytest.fixture
def em(repo):
    em = repo.create_array("em", "uint8", block_shape=BLOCK, voxel_size=(40, 8, 8))
    em[WHOLE] = noise(0)
    return em


def expected(values, level, factors=(2, 2, 2), method="mean", channels=None):
    """Halve values of the box WHOLE `level` times."""
    for _ in range(level):
        values = reduce(values, factors, method, channels)
    return values


def box(level, factors=(2, 2, 2)):
    return tuple(
        slice(a // f**level, b // f**level) for a, b, f in zip(LO, HI, factors, strict=True)
    )


def assert_levels(array, values, levels=3, **how):
    for number in range(1, levels + 1):
        found = array.level(number)[box(number, how.get("factors", (2, 2, 2)))]
        np.testing.assert_array_equal(found, expected(values, number, **how), f"level {number}")


def full(level):
    return level[level.bounds]


def is_complete(array):
    status = array.pyramid().status()
    return bool(status) and all(each["complete"] for each in status)
