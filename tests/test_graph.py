"""Label graphs: weights, merges, removals, properties, versions."""

import secrets
import threading

import pytest

import diced
from diced.errors import InvalidError, LockedError, NotFoundError

LARGE = 2**64 - 1


@pytest.fixture
def graph(repo):
    return repo.create_array("g", kind="labelgraph")


def all_of(graph):
    vertices, edges = graph.graph()
    return dict(vertices), {(a, b): weight for a, b, weight in edges}


def test_a_new_graph_is_empty(graph):
    assert graph.kind == "labelgraph"
    assert all_of(graph) == ({}, {})
    with pytest.raises(NotFoundError):
        graph.neighbors(1)
    with pytest.raises(NotFoundError):
        graph.subgraph([1])


def test_weights_are_set_and_added(graph):
    graph.put({1: 2.5, LARGE: 4}, {(LARGE, 1): 7})
    assert all_of(graph) == ({1: 2.5, LARGE: 4.0}, {(1, LARGE): 7.0})
    graph.add({1: -1, 3: 9}, {(1, LARGE): 0.5, (3, 1): 2})
    assert all_of(graph) == ({1: 1.5, 3: 9.0, LARGE: 4.0}, {(1, 3): 2.0, (1, LARGE): 7.5})
    graph.put({1: 10}, {})  # connections stay
    assert graph.neighbors(1) == (
        [(1, 10.0), (3, 9.0), (LARGE, 4.0)], [(1, 3, 2.0), (1, LARGE, 7.5)],
    )  # fmt: skip


def test_an_edge_needs_one_of_its_vertices(graph):
    with pytest.raises(NotFoundError):
        graph.add({}, {(1, 2): 1})
    assert all_of(graph) == ({}, {})
    graph.add({1: 5}, {(1, 2): 1})
    assert all_of(graph) == ({1: 5.0, 2: 0.0}, {(1, 2): 1.0})
    graph.add({}, {(2, 3): 1})
    assert all_of(graph)[0] == {1: 5.0, 2: 0.0, 3: 0.0}


@pytest.mark.parametrize(
    ("vertices", "edges"),
    [
        ({0: 1}, {}), ({-1: 1}, {}), ({2**64: 1}, {}), ({1.5: 1}, {}), ({True: 1}, {}),
        ({1: float("nan")}, {}), ({1: float("inf")}, {}), ({1: "x"}, {}), ({1: 1}, {(1, 1): 2}),
        ({1: 1}, {(1, 0): 2}), ({1: 1}, {(1, 2): float("inf")}),
    ],
)  # fmt: skip
def test_bad_vertices_edges_and_weights_are_refused(graph, vertices, edges):
    with pytest.raises(InvalidError):
        graph.add(vertices, edges)
    assert all_of(graph) == ({}, {})


def test_a_sum_that_is_no_number_is_refused(graph):
    graph.put({1: 1.7e308}, {})
    with pytest.raises(InvalidError):
        graph.add({1: 1.7e308}, {})
    assert all_of(graph)[0] == {1: 1.7e308}


def test_subgraph_has_all_edges_of_its_vertices_once(graph):
    graph.put({1: 1, 2: 2, 3: 3, 4: 4}, {(1, 2): 12, (2, 3): 23, (3, 4): 34, (1, 3): 13})
    vertices, edges = graph.subgraph([3, 1, 3])
    assert vertices == [(3, 3.0), (1, 1.0)]
    assert sorted(edges) == [(1, 2, 12.0), (1, 3, 13.0), (2, 3, 23.0), (3, 4, 34.0)]


def test_removal_takes_edges_and_properties_along(graph):
    graph.put({1: 1, 2: 2, 3: 3}, {(1, 2): 12, (2, 3): 23, (1, 3): 13})
    graph.set_property(2, "color", b"red")
    graph.set_property((2, 3), "x", b"edge")
    graph.set_property((1, 3), "x", b"stays")
    graph.remove([2, 99], [(7, 8)])
    assert all_of(graph) == ({1: 1.0, 3: 3.0}, {(1, 3): 13.0})
    assert graph.property((3, 1), "x") == b"stays"
    graph.put({2: 5}, {(2, 3): 1})
    assert graph.property(2, "color") is None
    assert graph.property((2, 3), "x") is None
    graph.remove([], [(3, 1)])
    assert all_of(graph)[1] == {(2, 3): 1.0}
    assert graph.property((3, 1), "x") is None
    graph.clear()
    assert all_of(graph) == ({}, {})


def test_merge_sums_weights_into_the_last(graph):
    graph.put(
        {1: 1, 2: 2, 3: 4, 4: 8, 5: 16},
        {(1, 2): 1, (1, 4): 2, (2, 4): 4, (3, 4): 8, (2, 5): 16, (3, 1): 32},
    )
    graph.merge([1, 2, 3])
    assert all_of(graph) == ({3: 7.0, 4: 8.0, 5: 16.0}, {(3, 4): 14.0, (3, 5): 16.0})
    graph.merge([5, 4], weight=3, edges={(4, 3): 0, (9, 8): 7})
    assert all_of(graph) == ({3: 7.0, 4: 3.0}, {(3, 4): 0.0})
    for ids, error in (([3], InvalidError), ([3, 3], InvalidError), ([3, 77], NotFoundError)):
        with pytest.raises(error):
            graph.merge(ids)


def test_properties(graph):
    graph.put({1: 1, 2: 2}, {(1, 2): 3})
    large = secrets.token_bytes(5000)
    graph.set_property(1, "k", large)
    graph.set_property((2, 1), "k", b"edge")
    assert list(graph.properties([2, 1, (1, 2), 1], "k")) == [None, large, b"edge", large]
    assert graph.property(1, "kk") is None
    graph.set_property(1, "k", None)
    assert graph.property(1, "k") is None
    with pytest.raises(NotFoundError):
        graph.set_property(9, "k", b"x")
    with pytest.raises(NotFoundError):
        graph.set_property((1, 9), "k", b"x")
    for name in ("", "x" * 2000, "\ud800"):
        with pytest.raises(InvalidError):
            graph.set_property(1, name, b"x")


def test_transactions_are_refused_where_another_came_first(graph):
    graph.put({1: 1, 2: 2, 3: 3}, {(1, 2): 3, (2, 3): 4})
    mine = graph.stamps([1, 2, 3])
    assert mine == graph.stamps([1, 2, 3])  # looking changes nothing
    assert all(mine.values())
    fresh, stale = graph.transact(mine, {1: b"one"}, "k")
    assert (set(fresh), stale) == ({1, 2, 3}, [])
    assert all(fresh[each] != mine[each] for each in mine)
    fresh2, stale2 = graph.transact({1: mine[1], 2: fresh[2]}, {1: b"late", 2: b"two"}, "k")
    assert (set(fresh2), stale2) == ({2}, [1])
    assert list(graph.properties([1, 2], "k")) == [b"one", b"two"]
    # An edge needs both its vertices.
    now = {2: fresh2[2], 3: mine[3]}
    assert graph.transact(now, {(2, 3): b"edge"}, "k")[1] == [3]
    assert graph.property((2, 3), "k") is None
    fresh3, stale3 = graph.transact(graph.stamps([2, 3]), {(3, 2): b"edge"}, "k")
    assert (set(fresh3), stale3) == ({2, 3}, [])
    assert graph.property((2, 3), "k") == b"edge"


def test_concurrent_additions_are_all_counted(tmp_path):
    repo = diced.DicedStore(tmp_path / "s").create_repo("r")
    repo.create_array("g", kind="labelgraph")
    stores = [diced.DicedStore(str(tmp_path / "s")) for _ in range(3)]
    graphs = [store.open_repo("r")["g"] for store in stores]

    def work(graph):
        for _ in range(10):
            graph.add({1: 1, 2: 2}, {(1, 2): 0.5})

    threads = [threading.Thread(target=work, args=(graph,)) for graph in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all_of(graphs[0]) == ({1: 30.0, 2: 60.0}, {(1, 2): 15.0})


def test_versions(repo, graph):
    graph.put({1: 1, 2: 2}, {(1, 2): 3})
    first = repo.lock_node("first")
    for change in (
        lambda: graph.add({1: 1}, {}), graph.clear, lambda: graph.set_property(1, "k", b"x"),
        lambda: graph.merge([1, 2]), lambda: graph.remove([1], []),
    ):  # fmt: skip
        with pytest.raises(LockedError):
            change()
    repo.change_version(repo.create_branch("child"))
    graph.merge([1, 2])
    assert all_of(graph) == ({2: 3.0}, {})
    repo.change_version(first)
    assert all_of(graph) == ({1: 1.0, 2: 2.0}, {(1, 2): 3.0})


def test_one_call_is_one_commit(repo, graph):
    graph.put({each: 1.0 for each in range(1, 5001)}, {(each, 1): 1.0 for each in range(2, 5001)})
    graph.remove(range(2, 2000), [])
    assert [each["operation"] for each in repo.operations("g")] == ["put", "delete"]
    assert len(graph.neighbors(1)[0]) == 3002


def test_what_is_stored_is_sound(tmp_path):
    from diced.fsck import check

    repo = diced.DicedStore(tmp_path / "s").create_repo("r")
    graph = repo.create_array("g", kind="labelgraph")
    graph.put({1: 1, 2: 2}, {(1, 2): 3})
    graph.set_property(1, "k", secrets.token_bytes(4000))
    report = check(repo.store, full=True)
    assert report.ok, report
