"""Numpy's manners over HTTP: the tests of arrays, at our own server."""

import secrets

import numpy as np
import pytest
import test_array_indexing as local
from test_array_indexing import *  # noqa: F403 - tests with their parameters

from diced import DicedStore


@pytest.fixture(scope="module")
def remote():
    from serving import serving

    with (
        serving(f"memory://{secrets.token_hex(8)}") as running,
        DicedStore(running.url.replace("http", "dvid")) as store,
    ):
        yield store


@pytest.fixture
def repo(remote):
    return remote.create_repo(secrets.token_hex(8))


@pytest.fixture
def cube(repo):
    array = repo.create_array("cube", "int32", block_shape=(4, 8, 5), fill=-7)
    array[-4:12, -4:12, -4:12] = local.CUBE
    return array


def test_empty_slices_read_no_blocks(cube):
    asked = cube._repo.store.server.requests
    assert cube[3:3, 0:5, 0].shape == (0, 5)
    assert cube[5:5, 5:5, 5:5].shape == (0, 0, 0)
    cube[3:3, 0:5, 0:5] = np.zeros((0, 5, 5), np.int32)
    assert cube._repo.store.server.requests == asked
