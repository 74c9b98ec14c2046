"""What tests of the remote client begin with: a fake server, a store over it, a repo, voxels.

Test modules import the fixtures by name.
"""

import numpy as np
import pytest
from fake_dvid import serving

from diced import DicedStore


@pytest.fixture
def fake():
    with serving() as running:
        yield running


@pytest.fixture
def store(fake):
    with DicedStore(fake.url, patience=20.0) as store:
        yield store


@pytest.fixture
def repo(store):
    return store.create_repo("r")


def ramp(shape, dtype=np.uint8):
    return np.random.default_rng(7).integers(1, 250, shape).astype(dtype)
