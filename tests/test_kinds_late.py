"""Writers that have not looked for a while: what they refuse or leave out is decided on what is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diced import DicedStore
from diced.errors import LockedError, NotFoundError


@pytest.fixture(params=["local", "gcs"])
def repos(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A repo as two store objects have it."""
    location = str(tmp_path / "store")
    if request.param == "gcs":
        location = request.getfixturevalue("gcs").url()
    options = {"durability": "process", "max_age": 0}
    with DicedStore(location, **options) as one:
        first = one.create_repo("r")
        for kind in ("roi", "labelgraph", "keyvalue"):
            first.create_array(kind, kind=kind)
        with DicedStore(location, **options) as two:
            yield first, two.open_repo("r")


def arrays(repos: tuple[Any, Any], kind: str) -> tuple[Any, Any]:
    """Return both handles; the second one's process has seen that there was nothing."""
    ours, theirs = (repo[kind] for repo in repos)
    if kind == "roi":
        assert len(theirs) == 0
    elif kind == "labelgraph":
        assert list(theirs.graph()[0]) == []
    else:
        assert list(theirs) == []
    return ours, theirs


def test_clearing_a_region(repos: tuple[Any, Any]) -> None:
    ours, theirs = arrays(repos, "roi")
    ours.set_spans([[1, 2, 3, 4]])
    theirs.clear()
    assert len(ours) == len(theirs) == 0


def test_clearing_and_removing_in_a_graph(repos: tuple[Any, Any]) -> None:
    ours, theirs = arrays(repos, "labelgraph")
    ours.put({1: 1, 2: 1}, {(1, 2): 1})
    theirs.remove([1], [])
    assert list(ours.graph()[0]) == [(2, 1.0)]
    ours.put({3: 1}, {})
    theirs.clear()
    assert [list(each) for each in ours.graph()] == [[], []]


def test_what_needs_a_vertex(repos: tuple[Any, Any]) -> None:
    ours, theirs = arrays(repos, "labelgraph")
    ours.put({1: 1, 2: 1}, {})
    theirs.set_property(1, "color", b"red")
    ours.put({3: 1}, {})
    theirs.add({}, {(3, 4): 1})
    ours.put({5: 1}, {})
    theirs.merge([5, 2])
    assert list(ours.graph()[0]) == [(1, 1.0), (2, 2.0), (3, 1.0), (4, 0.0)]
    assert ours.property(1, "color") == b"red"
    with pytest.raises(NotFoundError):
        theirs.set_property(99, "color", b"red")


def test_deleting_a_key(repos: tuple[Any, Any]) -> None:
    ours, theirs = arrays(repos, "keyvalue")
    ours["it"] = b"value"
    del theirs["it"]
    assert list(ours) == []
    with pytest.raises(NotFoundError):
        del theirs["it"]


def test_a_version_that_was_locked_meanwhile(repos: tuple[Any, Any]) -> None:
    ours, theirs = arrays(repos, "roi")
    ours.set_spans([[1, 2, 3, 4]])
    repos[0].lock_node("done")
    with pytest.raises(LockedError):
        theirs.clear()
    assert len(ours) == 1
