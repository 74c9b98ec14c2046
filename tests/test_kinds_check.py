"""A check knows what regions and graphs hold: what is stored soundly and yet wrong is named."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from diced import roi
from diced.elements import EDGE, VERTEX
from diced.errors import CorruptError
from diced.fsck import check
from diced.state import Change
from diced.values import store_value

ONE = struct.pack("<d", 1.0)
HEAD = struct.pack("<q6i", 1, 0, 0, 0, 0, 0, 0)


def put(array: Any, space: int, values: dict[bytes, bytes | None], as_frames: bool = False) -> None:
    """Store values behind the array's back."""
    lane = array._lane()
    frames = lane.home.frames()
    entries: dict[bytes, Any] = dict(values)
    if as_frames:
        for key, value in values.items():
            entries[key] = store_value(lane, space, key, value, frames)
    change = Change({space: entries}, None, None, frames if as_frames else None)
    lane.commit(lambda _state, _touched: change, op="wrong", user="me")


def edge(first: int, second: int) -> bytes:
    return EDGE.pack(first, second)


@pytest.mark.parametrize(
    ("space", "values", "says"),
    [
        (0, {VERTEX.pack(7): ONE[:7]}, "vertex 7 in record 3: its 7 bytes are no weight"),
        (0, {VERTEX.pack(7): struct.pack("<d", np.nan)}, "vertex 7 in record 3: its 8 bytes"),
        (0, {VERTEX.pack(0): ONE}, "a graph has no such key"),
        (0, {b"seven": ONE}, "key 'seven' in record 3: a graph has no such key"),
        (1, {edge(3, 5): ONE}, "edge 3 to 5 in record 3: the edge back is not the same"),
        (1, {edge(3, 5): ONE, edge(5, 3): None}, "edge 3 to 5 in record 3: the edge back"),
        (1, {edge(3, 5): ONE, edge(5, 3): bytes(8)}, "edge 5 to 3 in record 3: the edge back"),
        (1, {VERTEX.pack(3): ONE}, "a graph has no such key"),
        (2, {b"v" + VERTEX.pack(3): b"no name"}, "a graph has no such key"),
        (2, {b"x" + VERTEX.pack(3) + b"name": b"neither"}, "a graph has no such key"),
        (3, {VERTEX.pack(9): b"short"}, "the stamp of vertex 9 in record 3: its 5 bytes"),
        (9, {b"key": b"value"}, "key 'key' in record 3: a graph has no such key"),
    ],
)
def test_graphs(repo: Any, space: int, values: dict[bytes, bytes | None], says: str) -> None:
    graph = repo.create_array("it", kind="labelgraph")
    graph.put({3: 1, 5: 1, 7: 1}, {(3, 5): 2})
    graph.set_property(7, "color", b"red" * 500)
    assert check(repo.store, full=True).problems == []
    put(graph, space, values)
    report = check(repo.store)
    assert {each.kind for each in report.problems} == {"bad-entry"}
    assert any(says in each.message for each in report.problems), report.problems
    assert not report.ok


def test_a_weight_in_a_frame(repo: Any) -> None:
    graph = repo.create_array("it", kind="labelgraph")
    put(graph, 0, {VERTEX.pack(3): ONE * 100}, as_frames=True)
    (problem,) = check(repo.store).problems
    assert (problem.kind, problem.message[:8]) == ("bad-entry", "vertex 3")
    with pytest.raises(CorruptError):
        list(graph.graph()[0])


@pytest.mark.parametrize(
    ("space", "key", "value"),
    [
        (0, b"\0\0\0\1", b"fifteen bytes.."),
        (0, b"\0\0\0\1", b""),
        (0, b"1", bytes(16)),
        (0, b"\0\0\0\1", roi._pack(np.array([[0, 0, 5, 9], [0, 0, 1, 2]], np.int32))),
        (0, b"\0\0\0\1", roi._pack(np.array([[0, 0, 5, 4]], np.int32))),
        (1, b"spans", HEAD),
        (1, b"spans", HEAD[:31]),
        (1, b"spans", HEAD + bytes(16)),
        (1, b"other", HEAD + bytes(8)),
        (2, b"spans", HEAD + bytes(8)),
    ],
)
def test_regions(repo: Any, space: int, key: bytes, value: bytes) -> None:
    region = repo.create_array("it", kind="roi")
    region.set_spans([[0, 0, 0, 0]])
    put(region, space, {key: value})
    (problem,) = check(repo.store).problems
    assert problem.kind == "bad-entry"


def test_a_part_in_a_frame(repo: Any) -> None:
    region = repo.create_array("it", kind="roi")
    rng = np.random.default_rng(0)
    rows = rng.integers(-(10**6), 10**6, (2000, 3)).astype(np.int32)
    wrong = np.c_[rows, rows[:, 2]]  # in no order
    put(region, 0, {b"\0\0\0\0": roi._pack(wrong)}, as_frames=True)
    assert check(repo.store).problems == []  # a quick check reads no frame
    (problem,) = check(repo.store, full=True).problems
    assert problem.kind == "bad-frame"
    assert problem.message.startswith("part 0, in ")
    assert "not in order" in problem.message


def test_lost_bytes_are_named(repo: Any) -> None:
    """What a property or a part was, a person can read."""
    region = repo.create_array("region", kind="roi")
    rng = np.random.default_rng(1)
    rows = rng.integers(-(10**6), 10**6, (40_000, 3))
    region.set_spans(np.c_[rows, rows[:, 2]])
    graph = repo.create_array("graph", kind="labelgraph")
    graph.put({3: 1, 5: 1}, {(5, 3): 2})
    graph.set_property((5, 3), "größe", rng.bytes(3000))
    graph.set_property(5, "größe", rng.bytes(3000))
    objects = repo.store.engine._shelf.objects
    for key in [each for each in objects if each.endswith(".seg")]:
        del objects[key]
    told = " ".join(each.message for each in check(repo.store).problems)
    for name in ("part 0", "part 1", "part 2", "property 'größe' of vertex 5",
                 "property 'größe' of edge 3 to 5"):  # fmt: skip
        assert name in told
