"""Stores of every released format stay readable, byte for byte as they were written."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from golden.make import RAMP, contents

from diced import DicedStore, fsck

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(params=["format-1"])
def store(request, tmp_path):
    """A copy of a golden store, with what is known of it."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "store")
    expected = json.loads((GOLDEN / f"{request.param}.json").read_text())
    with DicedStore(tmp_path / "store", create=False) as opened:
        yield opened, expected


def test_every_array_reads_as_written(store):
    opened, expected = store
    repo = opened.open_repo(uuid=expected["root"])
    for name, options, offset, data in contents():
        array = repo[name]
        box = tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=False))
        assert array.dtype == data.dtype, name
        assert np.array_equal(array[box], data), name
        assert array.block_shape == options["block_shape"]
        assert array.attrs["made"] == "golden"
        outside = tuple(slice(o - 2, o) for o in offset)
        assert (array[outside] == 1).all(), name
    assert repo["beside"][0:8].tolist() == [1, 5, 5, 0, 2, 0, 0, 0]
    assert np.abs(repo["photo"][0:16, 0:16].astype(int) - RAMP).max() < 8


def test_history_files_and_names_are_as_written(store):
    opened, expected = store
    assert opened.info["organisation"] == "gold"
    assert opened.list_repos() == [("golden répo", expected["root"])]
    repo = opened.open_repo("golden répo", version="v1")
    assert (repo.uuid, repo.locked, repo.note) == (expected["root"], True, "first")
    assert repo.files["small"] == b"inline"
    assert repo.files["nested/größer.bin"] == b"0123456789" * 100
    assert len(repo.versions()) == expected["versions"]
    repo.change_version("master")
    assert repo.list_files() == [*(f"many/{n:04d}" for n in range(300)), "nested/größer.bin"]
    assert repo.files["many/0123"] == b"123"
    assert (repo["volume"][0:4, 0:4, 100:104] == 7).all()
    assert repo.branches()["side"] == "f" * 32
    assert repo.reserve_ids(1) == 11


def test_it_can_be_written_and_checked(store):
    opened, _ = store
    repo = opened.open_repo("golden répo", version="master")
    repo["volume"][0, 0, 0] = 99
    repo.lock_node("now")
    assert repo["volume"][0, 0, 0] == 99
    report = fsck.check(opened, full=True)
    assert report.ok, report.problems
