"""Several processes write one region, one graph, one value: nothing is lost, nothing is torn."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diced import DicedStore
from diced.errors import NotFoundError
from diced.fsck import check

PROCESSES = 4
ROUNDS = 8
RING = 12  # vertices
WAIT = 120  # seconds after which something is taken to hang

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(params=["local", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "gcs":
        return str(request.getfixturevalue("gcs").url())
    return str(tmp_path / "store")


def opened(location: str) -> DicedStore:
    return DicedStore(location, durability="process", max_age=0)


def create(location: str, kind: str) -> None:
    with opened(location) as store:
        store.create_repo("r").create_array("it", kind=kind)


def together(location: str, work: Callable[[Any, int], None]) -> None:
    """Do some work in several processes, each with its own store."""

    def run(number: int) -> None:
        with opened(location) as store:
            work(store.open_repo("r")["it"], number)

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=run, args=(number,)) for number in range(PROCESSES)]
    for each in children:
        each.start()
    for each in children:
        each.join(WAIT)
    codes = [each.exitcode for each in children]
    for each in children:
        each.kill()
    assert codes == [0] * PROCESSES


def sound(store: DicedStore) -> None:
    report = check(store, full=True)
    left = {each.kind for each in report.problems}
    assert report.ok, report.problems
    # What lost a race leaves.
    assert left <= {"unreferenced", "orphan-segment", "orphan-pack", "leftover"}, report.problems


def spans_of(writer: int, number: int) -> list[list[int]]:
    """Return spans that tell who wrote them, and when, and how many there are."""
    count = 1 + (7 * writer + 5 * number) % 40
    return [[writer, number, x, x + count] for x in range(count)]


def check_spans(rows: list[list[int]]) -> tuple[int, int]:
    """Return who wrote all of the spans."""
    writer, number = rows[0][:2]
    assert rows == spans_of(writer, number)
    return writer, number


def test_a_region_is_always_that_of_one_writer(location: str) -> None:
    create(location, "roi")
    with opened(location) as store:
        store.open_repo("r")["it"].set_spans(spans_of(9, 0))

    def work(roi: Any, writer: int) -> None:
        seen: dict[int, int] = {}
        for number in range(ROUNDS):
            roi.set_spans(spans_of(writer, number))
            other, when = check_spans(roi.spans().tolist())
            assert seen.get(other, -1) <= when  # time does not run back
            seen[other] = when
            if other == writer:
                assert when == number
            extents = roi.extents
            assert extents[0][:2] == extents[1][:2]

    together(location, work)
    with opened(location) as store:
        repo = store.open_repo("r")
        check_spans(repo["it"].spans().tolist())
        operations = [each["operation"] for each in repo.operations("it")]
        assert operations == ["put spans"] * (1 + PROCESSES * ROUNDS)
        sound(store)


def test_regions_of_many_parts(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts by one writer than by the next: none of the old ones is left."""
    monkeypatch.setattr("diced.roi.PART", 4)
    create(location, "roi")

    def work(roi: Any, writer: int) -> None:
        for number in range(ROUNDS):
            roi.set_spans(spans_of(writer, number))
            check_spans(roi.spans().tolist())

    together(location, work)
    with opened(location) as store:
        roi = store.open_repo("r")["it"]
        rows = roi.spans().tolist()
        check_spans(rows)
        lane = roi._lane()
        assert len(list(lane.scan(lane.refresh(), 0))) == -(-len(rows) // 4)
        sound(store)


def test_no_addition_to_a_graph_is_lost(location: str) -> None:
    create(location, "labelgraph")

    def work(graph: Any, writer: int) -> None:
        for number in range(ROUNDS):
            # All touch vertex 1, two of them an edge that others touch as well.
            pairs = {(1, 2): 1.0, (1, 10 + writer): 1.0, (10 + writer, 100 * writer + 200): 1.0}
            graph.add({1: 1.0, 2: 0.5, 10 + writer: 0.0}, pairs)
            vertices, edges = map(list, graph.graph())
            weights, joined = dict(vertices), {each[:2]: each[2] for each in edges}
            assert joined[1, 2] == weights[1] == 2 * weights[2]  # of one moment
            assert joined[1, 10 + writer] == number + 1
            assert {end for pair in joined for end in pair} <= weights.keys()

    together(location, work)
    with opened(location) as store:
        repo = store.open_repo("r")
        vertices, edges = map(list, repo["it"].graph())
        total = PROCESSES * ROUNDS
        assert dict(vertices)[1] == total
        assert {each[:2]: each[2] for each in edges}[1, 2] == total
        for writer in range(PROCESSES):
            assert repo["it"].neighbors(10 + writer)[1] == [
                (1, 10 + writer, ROUNDS), (10 + writer, 100 * writer + 200, ROUNDS),
            ]  # fmt: skip
        assert len(list(repo.operations("it"))) == total
        sound(store)


def test_additions_and_merges_keep_the_sum(location: str) -> None:
    """Whatever is merged into what meanwhile: no weight comes or goes, no edge loses an end."""
    create(location, "labelgraph")
    first = {each: 1.0 for each in range(1, RING + 1)}
    ring = {(each, each % RING + 1): 1.0 for each in first}
    with opened(location) as store:
        store.open_repo("r")["it"].put(first, ring)

    def whole(graph: Any) -> float:
        vertices, edges = map(list, graph.graph())
        ids = {each for each, _ in vertices}
        assert {end for a, b, _ in edges for end in (a, b)} <= ids
        return sum(weight for _, weight in vertices)

    def work(graph: Any, writer: int) -> None:
        before = whole(graph)
        for number in range(ROUNDS):
            if writer % 2:
                graph.add({1 + (writer + number) % 3: 1.0}, {})
            elif 2 * number + writer // 2 + 4 <= RING:
                try:
                    graph.merge([2 * number + writer // 2 + 4, 1 + number % 3])
                except NotFoundError:
                    raise AssertionError("nobody else removes these") from None
            now = whole(graph)
            assert now >= before
            before = now

    together(location, work)
    with opened(location) as store:
        repo = store.open_repo("r")
        assert whole(repo["it"]) == RING + ROUNDS * PROCESSES / 2
        sound(store)


def test_of_transactions_on_one_vertex_each_round_has_one_winner(location: str) -> None:
    create(location, "labelgraph")
    with opened(location) as store:
        store.open_repo("r")["it"].put({7: 1.0}, {})

    def work(graph: Any, writer: int) -> None:
        for _ in range(ROUNDS):
            while True:  # count, as whoever retries does
                stamps = graph.stamps([7])
                value = int(graph.property(7, "count") or b"0")
                fresh, _ = graph.transact(stamps, {7: b"%d" % (value + 1)}, "count")
                if fresh:
                    break

    together(location, work)
    with opened(location) as store:
        graph = store.open_repo("r")["it"]
        assert graph.property(7, "count") == b"%d" % (PROCESSES * ROUNDS)
        assert graph.stamps([7]) == {7: 1 + PROCESSES * ROUNDS}
        sound(store)


def test_removals_and_new_edges_leave_no_edge_without_its_ends(location: str) -> None:
    create(location, "labelgraph")

    def work(graph: Any, writer: int) -> None:
        for number in range(ROUNDS):
            middle = 1 + number % 3
            if writer % 2:
                graph.add({middle: 1.0}, {(middle, 50 + writer): 1.0})
                graph.set_property(50 + writer, "who", b"%d" % writer)
            else:
                graph.remove([middle], [(2, 51)])
            vertices, edges = map(list, graph.graph())
            ids = {each for each, _ in vertices}
            assert {end for a, b, _ in edges for end in (a, b)} <= ids

    together(location, work)
    with opened(location) as store:
        graph = store.open_repo("r")["it"]
        assert graph.property(51, "who") == b"1"
        sound(store)
