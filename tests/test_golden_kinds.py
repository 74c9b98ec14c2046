"""Regions, graphs, tiles and long values of every released format stay readable."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from golden.kinds import EDGES, EXTREME, NOISE, PROPERTIES, TILES, WEIGHTS, long_bytes, many_spans

from diced import DicedStore, fsck
from diced.tilemaker import plane_of

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(params=["kinds-1"])
def repo(request, tmp_path):
    """A copy of a golden repo at its first version, and what its last is called."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "store")
    expected = json.loads((GOLDEN / f"{request.param}.json").read_text())
    with DicedStore(tmp_path / "store", create=False) as store:
        yield store.open_repo(uuid=expected["root"]), expected["head"]


def test_regions(repo):
    repo, head = repo
    assert repo["extreme"].spans().tolist() == EXTREME
    assert repo["extreme"].block_shape == (32, 32, 32)
    many = repo["many"]
    np.testing.assert_array_equal(many.spans(), many_spans())
    assert (len(many), many.block_shape) == (20_000, (16, 32, 64))
    assert many.extents == ((-9, -4, -170), (10, 15, 177))
    assert many.mask((16, 32, 64), (17, 33, 66)).all()
    points = [[-9 * 16, -4 * 32, -170 * 64], [-9 * 16, -4 * 32, -169 * 64]]
    assert many.contains(points).tolist() == [True, False]
    assert len(repo["empty"]) == 0
    repo.change_version(head)
    assert repo["many"].spans().tolist() == EXTREME
    assert len(repo["extreme"]) == 0


def all_of(graph):
    vertices, edges = graph.graph()
    return dict(vertices), {(a, b): weight for a, b, weight in edges}


def test_graphs(repo):
    repo, head = repo
    graph = repo["graph"]
    assert all_of(graph) == (WEIGHTS, EDGES)
    assert list(graph.properties(PROPERTIES, "größe")) == list(PROPERTIES.values())
    assert graph.property(300, "größe") is None
    assert [graph.property(each, "seen") for each in (1, 2)] == [b"twice", b"seen"]
    assert graph.stamps(WEIGHTS) == {1: 3, 2: 2, 300: 1, 2**64 - 1: 1}
    repo.change_version(head)
    vertices, edges = all_of(graph)
    assert vertices == {1: -1.75, 300: 1.0, 301: 0.0, 2**64 - 1: 1e300}
    assert edges == {(1, 300): -0.125, (1, 2**64 - 1): 7.0, (300, 301): 2.0}
    assert graph.property((2, 300), "größe") is None
    assert graph.property(1, "größe") == PROPERTIES[1]


def test_tiles_and_long_values(repo):
    repo, _ = repo
    tiles = repo["tiles"]
    assert (tiles.format, tiles.settings()["quality"]) == ("png", 80)
    for (scale, place), data in TILES.items():
        assert tiles.stored_tile(plane_of("xy"), scale, place) == data
    data = long_bytes()
    value = repo.files.find("long")
    assert bytes(value.read(2**20 - 2, 2**20 + 4100)) == data[2**20 - 2 : 2**20 + 4100]
    assert b"".join(value.pieces()) == repo.files["long"] == data
    assert repo.files["plain"] == NOISE


def test_they_can_be_written_and_checked(repo):
    repo, head = repo
    assert fsck.check(repo.store, full=True).problems == []
    repo.change_version(head)
    repo["many"].set_spans(many_spans())
    repo["graph"].merge([300, 1])
    repo.files["long"] = b"short"
    repo.lock_node("now")
    np.testing.assert_array_equal(repo["many"].spans(), many_spans())
    assert repo["graph"].neighbors(1)[1] == [(1, 301, 2.0), (1, 2**64 - 1, 7.0)]
    assert fsck.check(repo.store, full=True).ok
