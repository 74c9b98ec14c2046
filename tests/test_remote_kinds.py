"""Regions, tiles and graphs of a server: each call against the same call at the server's store.

The client goes by all that our server has, and by what DVID's API has alone.
"""

import pickle
import struct

import fake_dvid
import numpy as np
import pytest

from diced import (
    DicedException,
    DicedStore,
    EngineError,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from diced.graph import GraphArray
from diced.remote.http import LostAnswer
from diced.roi import RoiArray
from diced.tilemaker import plane_of, unpack_pixels
from diced.tiles import TileArray

XY, XZ = plane_of("xy"), plane_of("xz")


@pytest.fixture(params=["ours", "dvid"])
def store(server, request):
    with DicedStore(server.url.replace("http", "dvid"), user="ann", patience=5.0) as store:
        store.ours = request.param == "ours"
        yield store


@pytest.fixture
def repo(store):
    return store.create_repo("r")


@pytest.fixture
def local(server, repo):
    return server.store.open_repo("r")


def outcome(call, array):
    """What a call returns, or the class of its error."""
    try:
        return plain(call(array))
    except DicedException as error:
        return type(error)


def plain(value):
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if hasattr(value, "__next__"):
        return [plain(each) for each in value]
    if isinstance(value, tuple | list):
        return type(value), [plain(each) for each in value]
    return value


def agree(array, same, *calls):
    for number, call in enumerate(calls):
        assert outcome(call, array) == outcome(call, same), f"call {number}"


def lose_answers(monkeypatch, server, word, count=1):
    """Lose the answers of the next requests of a word that must not be sent twice."""
    original, left = server.ask, [count]

    def ask(method, path, **more):
        found = original(method, path, **more)
        if f"/{word}" in path and not more.get("twice", True) and left[0]:
            left[0] -= 1
            raise LostAnswer(f"the answer was lost: {method} {path}")
        return found

    monkeypatch.setattr(server, "ask", ask)


@pytest.fixture
def fake_repo():
    with fake_dvid.serving() as fake, DicedStore(fake.url) as store:
        yield store.create_repo("r")


# -- regions -------------------------------------------------------------------------------

SPANS = [[1, 0, 5, 9], [1, 0, 0, 3], [-2, 7, -4, -4], [1, 0, 2, 6], [1, 0, 0, 3], [0, 3, 2, 70]]
BOXES = [
    ((0, 0, 0), (40, 70, 90)), ((-40, 100, -140), (40, 130, 30)), ((3, 3, 3), (3, 9, 9)),
    ((2**40, 0, 0), (2**40 + 2, 5, 5)), ((2**31 - 2, 0, 0), (2**31 + 2, 3, 3)),
]  # fmt: skip
READS_OF_ROI = [
    lambda a: a.spans(), len, lambda a: a.extents, lambda a: a.bounds, lambda a: a.block_shape,
    lambda a: (a.name, a.kind, a.versioned, a.locked),
    *(lambda a, box=box: a.mask(*box) for box in BOXES),
    lambda a: a.snapshot().spans(), lambda a: a.snapshot().mask(*BOXES[0]),
    lambda a: a.snapshot().contains([[0, 48, 40], [0, 0, 0]]), lambda a: len(a.snapshot()),
    lambda a: a.contains([[16, 0, 33], [0, 50, 40], [-1, -1, -1], [-17, 115, -60]]),
    lambda a: a.contains([[16, 0, 33], [0, 50, 40]]),
    lambda a: a.contains(np.array([[2**64 - 1] * 3, [0, 50, 40]], np.uint64)),
    lambda a: a.contains([[2**62, 0, 0], [-(2**62), 2**62, 5]]), lambda a: a.contains([]),
    lambda a: a.contains(np.empty((0, 3), np.int64)),
    lambda a: a.partition(2), lambda a: a.partition(3, optimized=True),
]  # fmt: skip
WRONG_OF_ROI = [
    lambda a: a.mask((0, 0), (1, 1)), lambda a: a.mask((0, 0, 0.5), (1, 1, 1)),
    lambda a: a.mask((0, 0, 2), (1, 1, 1)), lambda a: a.mask((2**62, 0, 0), (2**62 + 1, 1, 1)),
    lambda a: a.contains([[1.5, 2, 3]]), lambda a: a.contains([1, 2, 3]),
    lambda a: a.contains([[1, 2], [1, 2, 3]]), lambda a: a.partition(0),
    lambda a: a.set_spans([[0, 0, 2, 1]]), lambda a: a.set_spans([[0, 0, 2]]),
    lambda a: a.set_spans([[0, 0, 0, 2**31]]), lambda a: a.set_spans([[0.5, 0, 0, 0]]),
    lambda a: a.set_spans("abcd"), lambda a: a.set_spans([[0, 0, 0, 0]], operation=5),
]  # fmt: skip


@pytest.fixture
def roi(repo):
    return repo.create_array("a", kind="roi", block_shape=(16, 16, 16), attrs={"x": 1})


def test_a_region_is_as_at_a_path(repo, roi, local, store):
    same = local["a"]
    assert isinstance(roi, RoiArray) and dict(roi.attrs) == {"x": 1}
    agree(roi, same, *READS_OF_ROI)
    roi.set_spans(SPANS)
    assert same.spans().tolist() == roi.spans().tolist() == sorted(map(list, {*map(tuple, SPANS)}))
    agree(roi, same, *READS_OF_ROI, *WRONG_OF_ROI)
    steady = roi.snapshot()
    roi.set_spans(SPANS[:1], operation="one")
    assert len(steady) == 5 and len(roi) == len(roi.snapshot()) == 1
    steady.spans()[:] = 0
    assert steady.spans().any()
    roi.clear()
    agree(roi, same, *READS_OF_ROI)
    if store.ours:
        logged = [each["operation"] for each in local.operations("a")]
        assert logged == ["put spans", "one", "delete spans"]
    assert repr(roi).startswith("<RemoteRoi 'a' at open version")


def test_a_commit_of_a_region_may_have_an_empty_name(store, roi, local):
    roi.set_spans(SPANS, operation="")
    roi.set_spans([], operation="")
    assert store.ours is False or [e["operation"] for e in local.operations("a")] == ["", ""]


def test_a_locked_region_is_said_to_be_locked_first(repo, roi, local):
    repo.lock_node("done")
    for change in (
        lambda a: a.set_spans([[0, 0, 5, 0]]),
        lambda a: a.set_spans([[0, 0, 0, 2**31]]),
        lambda a: a.set_spans([[0, 0, 0, 0]], operation=5),
    ):
        assert outcome(change, roi) == outcome(change, local["a"]) == LockedError


def test_large_questions_are_answered_out_of_spans(roi, local, monkeypatch):
    monkeypatch.setattr("diced.remote.roi.MOST_VOXELS", 10)
    monkeypatch.setattr("diced.remote.roi.MOST_POINTS", 1)
    least, most = -(2**31), 2**31 - 1
    roi.set_spans([*SPANS, [least, least, least, most], [most, most, most, most]])
    edge = [[least * 16, least * 16, 0], [most * 16 + 15, most * 16, most * 16]]
    agree(roi, local["a"], *READS_OF_ROI, lambda a: a.contains(edge))
    assert roi.contains(edge).all() and roi.contains(edge[1:]).all()


@pytest.mark.parametrize("body", [b"", b"{}", b"[[1,2,3]]", b"[[1,2,3,x]]", b"[[0,0,2,1]]", b"[[1"])
def test_an_answer_that_is_no_list_of_spans(body, roi, monkeypatch):
    reply = roi._ask("GET", "roi")
    monkeypatch.setattr(roi, "_ask", lambda *_a, **_k: reply._replace(body=body))
    with pytest.raises(EngineError, match="no list of spans"):
        roi.spans()


def test_an_answer_without_spans(roi, monkeypatch):
    reply = roi._ask("GET", "roi")
    monkeypatch.setattr(roi, "_ask", lambda *_a, **_k: reply._replace(body=b"null"))
    assert len(roi) == 0
    monkeypatch.setattr(roi, "_ask", lambda *_a, **_k: reply._replace(body=b"[true, false]"))
    with pytest.raises(EngineError, match="1 times"):
        roi.contains([[0, 0, 0]])


# -- graphs --------------------------------------------------------------------------------

BIG = 2**64 - 1


def fill_graph(graph):
    graph.put(
        {1: 2.5, 2: 1, 3: -1e300, BIG: 0.1, 50: 0.0},
        {(2, 1): 0.5, (2, 3): 1 / 3, (BIG, 2): 7, (50, 60): 8},
    )
    graph.add({1: 0.25, 4: 1}, {(1, 2): 0.25, (2, 1): 0.5, (4, 1): 3})
    graph.set_property(1, "c", b"one")
    graph.set_property((3, 2), "c", "text")
    graph.set_property(2, "c", b"")
    graph.set_property(50, "gone", b"1")


READS_OF_GRAPH = [
    lambda a: a.graph(), lambda a: a.subgraph([3, 1, 3]), lambda a: a.subgraph([2, BIG, 1]),
    lambda a: a.subgraph([]), lambda a: a.subgraph([1, 99]), lambda a: a.neighbors(2),
    lambda a: a.neighbors(60), lambda a: a.neighbors(99),
    lambda a: a.property(1, "c"), lambda a: a.property((2, 3), "c"), lambda a: a.property(2, "c"),
    lambda a: a.property(3, "c"), lambda a: a.property(99, "c"), lambda a: a.property((1, 3), "c"),
    lambda a: a.properties([1, (3, 2), 2, 99, 1, (2, 3)], "c"), lambda a: a.properties([], "c"),
    lambda a: a.stamps([1, 2, 99, 1]), lambda a: a.stamps([]),
    lambda a: (a.name, a.kind, a.versioned, a.locked),
]  # fmt: skip
WRONG_OF_GRAPH = [
    lambda a: a.put({0: 1}, {}), lambda a: a.put({"1": 1}, {}), lambda a: a.put({True: 1}, {}),
    lambda a: a.put({1: float("nan")}, {}), lambda a: a.put({1: "x"}, {}),
    lambda a: a.put({}, {(1, 1): 2}), lambda a: a.put({}, {(98, 99): 1}),
    lambda a: a.put({}, {(1, 2**64): 1}), lambda a: a.put({1: 1}, {}, operation=None),
    lambda a: a.add({1: float("inf")}, {}), lambda a: a.add({}, {(98, 99): 1}),
    lambda a: a.remove([-1], []), lambda a: a.remove([], [(1, 1)]),
    lambda a: a.merge([1]), lambda a: a.merge([1, 1]), lambda a: a.merge([1, 2, 1]),
    lambda a: a.merge([1, 99]), lambda a: a.merge([1, 2], "x"),
    lambda a: a.subgraph([0]), lambda a: a.neighbors(2**64), lambda a: a.neighbors("1"),
    lambda a: a.property(1, ""), lambda a: a.property(1, "k" * 2000), lambda a: a.property(0, "c"),
    lambda a: a.property(1, 5), lambda a: a.properties([0], "c"), lambda a: a.stamps([0]),
    lambda a: a.set_property(99, "c", b"x"), lambda a: a.set_property((1, 3), "c", b"x"),
    lambda a: a.set_property(99, "c", None), lambda a: a.set_property((1, 3), "c", None),
    lambda a: a.set_property((98, 99), "c", None), lambda a: a.set_property(1, "c", 5),
    lambda a: a.set_property(1, "", b""), lambda a: a.transact({0: 1}, {}, "c"),
    lambda a: a.set_property([1, 2], "c", b"x"), lambda a: a.set_property(None, "c", b"x"),
    lambda a: a.set_property((1, 2, 3), "c", b"x"), lambda a: a.put({}, {5: 1}),
    lambda a: a.property(1.0, "c"), lambda a: a.remove([], [(1, 2, 3)]),
    lambda a: a.transact({99: 1}, {99: b"x"}, "c"),
]  # fmt: skip


@pytest.fixture
def graph(repo):
    return repo.create_array("g", kind="labelgraph")


@pytest.fixture
def twin(graph, local):
    """Another graph in the server's own store, that the same is done to."""
    return local.create_array("twin", kind="labelgraph")


def content(graph):
    vertices, edges = map(list, graph.graph())
    ids = [each for each, _ in vertices]
    elements = [*ids, *((a, b) for a, b, _ in edges)]
    return (
        vertices,
        edges,
        [list(graph.properties(elements, key)) for key in "cd"],
        graph.stamps(ids),
    )


def test_a_graph_is_as_at_a_path(graph, local):
    same = local["g"]
    assert isinstance(graph, GraphArray)
    agree(graph, same, *READS_OF_GRAPH[:-1])
    fill_graph(graph)
    agree(graph, same, *READS_OF_GRAPH, *WRONG_OF_GRAPH, *READS_OF_GRAPH)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.put({2: 5, 7: 1}, {(7, 1): 2, (1, 7): 3}),
        lambda a: a.put({}, {}),
        lambda a: a.add({1: 1, 8: 2}, {(8, 9): 1}),
        lambda a: a.add({}, {}),
        lambda a: a.remove([2, 99], [(1, 4), (4, 2)]),
        lambda a: a.remove([], [(4, 1)]),
        lambda a: a.remove([], []),
        lambda a: a.remove(iter([50]), iter([])),
        lambda a: a.merge([1, 3, 2]),
        lambda a: a.merge([1, 2], 9.5, {(2, 4): 0, (BIG, 2): 1}),
        lambda a: a.set_property(50, "gone", None),
        lambda a: a.set_property(50, "never", None),
        lambda a: a.set_property((2, 1), "c", bytearray(b"edge")),
        lambda a: a.transact({1: 1, 2: 7, 3: 1}, {1: b"x", 2: b"y", 60: b"z"}, "d"),
        lambda a: a.transact({2: 1, 3: 1}, {(3, 2): b"x"}, "d"),
        lambda a: a.transact({2: 1.5, 3: -1, 1: 1}, {}, "d"),
        lambda a: a.transact({}, {1: b"x"}, "d"),
        lambda a: a.transact({1: 1.0, 2: np.float32(1), 3: True}, {1: b"x", 2: b"y"}, "d"),
        lambda a: a.transact({1: float("nan"), 2: float("inf"), 3: "1"}, {1: b"x"}, "d"),
        lambda a: a.clear(operation=""),
        lambda a: a.clear(),
    ],
)
def test_a_graph_changes_as_at_a_path(change, graph, twin):
    for each in (graph, twin):
        fill_graph(each)
    assert outcome(change, graph) == outcome(change, twin)
    assert content(graph) == content(twin)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.merge([1, 2], 0.0),
        lambda a: a.set_property(1, "a/b", b"x"),
        lambda a: a.set_property(1, "a/b", None),
        lambda a: list(a.properties([1], "a/b")),
        lambda a: a.property(1, "."),
        lambda a: a.transact({1: 1, 2: 1}, {1: b"x", (1, 2): b"y"}, "d"),
        lambda a: a.transact({1: 1, 2: 1}, {1: None, 2: b""}, "c"),
        lambda a: a.transact({1: 1}, {1: b"x"}, "a/b"),
    ],
)
def test_what_only_our_server_has_a_word_for(change, store, graph, twin):
    for each in (graph, twin):
        fill_graph(each)
    if store.ours:
        assert outcome(change, graph) == outcome(change, twin)
    else:
        with pytest.raises(UnsupportedError):
            change(graph)
        graph.remove([60], [(1, 4)])
        twin.remove([60], [(1, 4)])
    assert content(graph) == content(twin)


def test_many_vertices_and_edges(graph, local, monkeypatch):
    monkeypatch.setattr("diced.remote.graph.MANY", 7)
    monkeypatch.setattr("diced.remote.graph.MANY_PROPERTIES", 5)
    same = local["g"]
    graph.put({n: n for n in range(1, 30)}, {(n, n + 1): n for n in range(1, 29)})
    graph.add({}, {(n, 30): n for n in range(1, 29)})
    for n in (1, 9, 28):
        graph.set_property(n, "c", b"%d" % n)
    agree(
        graph, same, lambda a: a.graph(), lambda a: a.subgraph(range(29, 3, -2)),
        lambda a: a.subgraph(range(1, 40)), lambda a: a.stamps(range(1, 30)),
        lambda a: a.properties(range(1, 30), "c"),
    )  # fmt: skip
    graph.remove(range(1, 20), [(25, 26), (30, 25)])
    agree(graph, same, lambda a: a.graph())
    assert len(list(graph.graph()[0])) == 11


def test_commits_of_a_graph_have_their_names(store, graph, local):
    fill_graph(graph)
    graph.remove([50], [], operation="mine")
    graph.merge([1, 2])
    graph.clear()
    graph.put({1: 1}, {}, operation="")
    found = [each["operation"] for each in local.operations("g")]
    if store.ours:
        assert found[:2] == ["put", "add"] and found[-4:] == ["mine", "merge", "delete graph", ""]
    assert len(found) == 10


def test_lost_answers(graph, store, monkeypatch):
    graph.put({1: 1, 2: 2, 3: 3}, {(1, 2): 5, (2, 3): 1})
    lose_answers(monkeypatch, store.server, "merge")
    graph.merge([1, 2])
    assert [list(each) for each in graph.graph()] == [[(2, 3.0), (3, 3.0)], [(2, 3, 1.0)]]
    lose_answers(monkeypatch, store.server, "weight")
    with pytest.raises(EngineError, match="not known whether the weights were added"):
        graph.add({2: 1}, {})
    assert dict(graph.graph()[0]) == {2: 4.0, 3: 3.0}
    lose_answers(monkeypatch, store.server, "propert")
    assert graph.transact({2: 1, 3: 5}, {2: b"x", 3: b"y"}, "c") == ({2: 2}, [3])
    assert list(graph.properties([2, 3], "c")) == [b"x", None]


def lose_request(monkeypatch, server, word, instead):
    """Lose the next request of a word that must not be sent twice; something happens meanwhile."""
    original = server.ask

    def ask(method, path, **more):
        if f"/{word}" in path and not more.get("twice", True):
            monkeypatch.setattr(server, "ask", original)
            instead()
            raise LostAnswer("the request was lost")
        return original(method, path, **more)

    monkeypatch.setattr(server, "ask", ask)


def test_a_lost_merge_of_what_is_not_there(graph, store, monkeypatch):
    graph.put({2: 2}, {})
    lose_request(monkeypatch, store.server, "merge", lambda: None)
    with pytest.raises(NotFoundError, match="vertex 1"):
        graph.merge([1, 2])
    graph.put({1: 1}, {})
    graph.merge([1, 2])
    assert list(graph.graph()[0]) == [(2, 3.0)]


def test_a_lost_transaction_that_stores_nothing(graph, store, local, monkeypatch):
    graph.put({1: 1, 2: 2}, {})
    lose_answers(monkeypatch, store.server, "propert")
    with pytest.raises(EngineError, match="not known whether a transaction was made"):
        graph.transact({1: 1}, {}, "c")
    assert graph.stamps([1]) == {1: 2}
    lose_request(monkeypatch, store.server, "propert", lambda: None)
    assert graph.transact({1: 2, 2: 9}, {}, "c") == ({1: 3}, [2])
    lose_request(
        monkeypatch, store.server, "propert", lambda: local["g"].transact({1: 3}, {}, "c")
    )
    with pytest.raises(EngineError, match="not known whether a transaction was made"):
        graph.transact({1: 3}, {}, "c")


def test_a_lost_transaction_beside_stamps_that_were_one_behind(graph, store, monkeypatch):
    graph.put({1: 1, 2: 2, 3: 3}, {(1, 2): 1})
    graph.transact({2: 1}, {2: b"first"}, "c")
    lose_answers(monkeypatch, store.server, "propert")
    assert graph.transact({1: 1, 2: 1, 3: 0}, {1: b"x", 2: b"y"}, "c") == ({1: 2}, [2, 3])
    assert list(graph.properties([1, 2], "c")) == [b"x", b"first"]


def test_a_transaction_that_somebody_else_made(graph, store, local, monkeypatch):
    graph.put({1: 1}, {})
    original = store.server.ask

    def ask(method, path, **more):
        if not more.get("twice", True):
            monkeypatch.setattr(store.server, "ask", original)
            local["g"].transact({1: 1}, {1: b"theirs"}, "c")
            raise LostAnswer("the request was lost")
        return original(method, path, **more)

    monkeypatch.setattr(store.server, "ask", ask)
    assert graph.transact({1: 1}, {1: b"mine"}, "c") == ({}, [1])
    assert graph.property(1, "c") == b"theirs"


@pytest.mark.parametrize("body", [b"[]", b'{"Vertices":[{}]}', b'{"Edges":[{"Id1":1,"Id2":1}]}'])
def test_an_answer_that_is_no_graph(body, graph, monkeypatch):
    reply = graph._ask("GET", "subgraph")
    monkeypatch.setattr(graph, "_ask", lambda *_a, **_k: reply._replace(body=body))
    with pytest.raises(EngineError):
        graph.graph()


@pytest.mark.parametrize("body", [b"", b"\x01", struct.pack("<2Q", 9, 1), struct.pack("<2Q", 0, 0)])
def test_an_answer_that_is_no_transaction(body, graph, monkeypatch):
    reply = graph._ask("GET", "subgraph")
    monkeypatch.setattr(graph, "_ask", lambda *_a, **_k: reply._replace(body=body))
    with pytest.raises(EngineError):
        graph.stamps([1])


@pytest.mark.parametrize("route", ["properties?name=c", "properties?name=c&checked=false"])
@pytest.mark.parametrize(
    "body",
    [b"", bytes(8), struct.pack("<2Q", 0, 2**60), struct.pack("<5Q", 0, 1, 1, 0, 2**50),
     struct.pack("<Q", 2**63), struct.pack("<5Q", 0, 1, 0, 0, 0)],
)  # fmt: skip
def test_hostile_bodies_at_our_server(route, body, server, graph):
    graph.put({1: 1}, {})
    path = f"node/{graph._repo.uuid}/g/{route}"
    assert server.ask("POST", path, body).status == 400


@pytest.mark.parametrize("body", [b"", b"\1", struct.pack("<Q", 1), struct.pack("<3Q", 1, 0, 0)])
def test_hostile_questions_at_our_server(body, server, graph):
    assert server.ask("GET", f"node/{graph._repo.uuid}/g/properties?name=c", body).status == 400


# -- tiles ---------------------------------------------------------------------------------

LEVELS = [((8.0, 4.0, 4.0), (64, 32, 16)), ((8.0, 8.0, 8.0), (64, 32, 16))]


def fill_source(repo):
    source = repo.create_array("em", "uint8", block_shape=(16, 16, 16))
    source[5:9, 10:75, 3:60] = np.random.default_rng(3).integers(1, 255, (4, 65, 57), np.uint8)
    return source


@pytest.fixture
def tiles(repo):
    fill_source(repo)
    settings = {"source": "em", "format": "png"}
    if repo.store.ours:
        settings["size"] = [32, 32, 32]
    return repo.create_array("t", kind="imagetile", attrs={"tiles": settings})


READS_OF_TILES = [
    lambda a: a.format, lambda a: a.source.name, lambda a: a.scales(), lambda a: a.all_scales(),
    lambda a: a.tile_size, lambda a: a.origin(a.source), lambda a: a.origin(None),
    lambda a: a.pixels(XY, 0, (6, 0, 0)), lambda a: a.pixels(XY, 1, (6, 1, 0)),
    lambda a: a.pixels(XZ, 0, (0, 20, 1)), lambda a: a.pixels(XY, 0, (600, 0, 0)),
    lambda a: a.pixels(XY, 9, (6, 0, 0)), lambda a: a.pixels(XY, -1, (6, 0, 0)),
    lambda a: a.encoder()(np.eye(9, dtype=np.uint8)),
    lambda a: (a.name, a.kind, a.versioned, a.locked),
]  # fmt: skip
READS_OF_KEYS = [
    lambda a: list(a), len, lambda a: list(a.keys("xz/0")), lambda a: list(a.items("xy/1")),
    lambda a: list(a.keys(start="xy/0/1", stop="xz")), lambda a: "xy/0/0_0_6" in a,
    lambda a: "none" in a, lambda a: a["none"], lambda a: a.get("none", 5),
    lambda a: list(a.sizes(["xy/0/0_0_6", "none"])), lambda a: a.put_many({"": b""}),
    lambda a: a.store_tile(XY, 0, (0, 0, 0), 5), lambda a: a.find("none"), lambda a: a.find(""),
    lambda a: a.find("xy/0/0_0_6").size, lambda a: bytes(a.find("xy/0/0_0_6").read(2, -1)),
    lambda a: b"".join(a.find("xy/0/0_0_6").pieces(3)),
]  # fmt: skip


def test_tiles_are_as_at_a_path(store, tiles, local):
    same = local["t"]
    assert isinstance(tiles, TileArray)
    agree(tiles, same, *READS_OF_TILES)
    tiles.set_scales(LEVELS, (0, 0, 0), (1, 2, 3))
    assert same.settings()["max"] == [1, 2, 3] == tiles.settings()["max"]
    agree(tiles, same, *READS_OF_TILES, lambda a: a.set_scales([]))
    tiles.set_scales(LEVELS[:1], high=(7, 7, 7))
    assert (same.settings()["min"], same.settings()["max"]) == ([0, 0, 0], [7, 7, 7])


def test_generated_tiles_are_those_of_a_path(store, tiles, local):
    twin = local.create_array("twin", kind="imagetile", attrs=dict(local["t"].attrs))
    seen = []
    ranges = (6, 7), (None, 40), None
    count = tiles.generate(["xy", "XZ"], ranges=ranges, progress=seen.append)
    bounds = tiles.source.bounds
    assert count == twin.generate(["xy", "XZ"], ranges=ranges) > 10
    assert dict(local["t"].items()) == dict(twin.items())
    assert local["t"].scales() == twin.scales() == tiles.scales() and bounds is not None
    for key in [*twin.keys()][:8]:
        plane, scale, place = key.split("/")
        at = [int(n) for n in place.split("_")][::-1]
        assert tiles.stored_tile(plane_of(plane), int(scale), at) == twin[key] == tiles[key]
    if store.ours:
        agree(tiles, local["t"], *READS_OF_KEYS)
        tiles.store_tile(XY, 0, (0, 0, 0), np.eye(32, dtype=np.uint8))
        assert unpack_pixels(local["t"]["xy/0/0_0_0"]).trace() == 32
        del tiles["xy/0/0_0_0"]
        tiles.delete_many(["xz/0/0_6_0", "none"])
        agree(tiles, local["t"], list)
    else:
        for call in (list, len, lambda a: a.delete_many(["xy/0/0_0_6"]), lambda a: list(a.items())):
            with pytest.raises(UnsupportedError, match="neither lists nor deletes"):
                call(tiles)
        with pytest.raises(UnsupportedError):
            del tiles["xy/0/0_0_6"]


def test_tiles_without_a_source(store, repo, local):
    tiles = repo.create_array(
        "t", kind="imagetile", attrs={"tiles": {"format": "jpg", "quality": 7}}
    )
    agree(
        tiles, local["t"], lambda a: a.source, lambda a: a.format, lambda a: a.all_scales(),
        lambda a: a.pixels(XY, 0, (0, 0, 0)), lambda a: a.settings()["quality"],
        lambda a: a.stored_tile(XY, 0, (0, 0, 0)), lambda a: a.generate(),
        lambda a: a.generate(["xx"]),
    )  # fmt: skip
    tiles.set_scales(LEVELS)
    tiles.store_tile(XY, 1, (-5, 2, 3), b"picture")
    tiles.put_many({"xz/0/1_2_3": b"a", "yz/0/1_2_3": b"b"})
    assert tiles.stored_tile(XY, 1, (-5, 2, 3)) == local["t"]["xy/1/3_2_-5"] == b"picture"
    assert tiles.stored_tile(XY, 1, (5, 2, 3)) is None
    assert tiles.get("xz/0/1_2_3") == b"a" and "yz/0/1_2_3" in tiles and "yz/0/9_9_9" not in tiles
    assert list(tiles.get_many(["yz/0/1_2_3", "xy/0/0_0_0"])) == [
        ("yz/0/1_2_3", b"b"), ("xy/0/0_0_0", None),
    ]  # fmt: skip
    assert list(tiles.sizes(["yz/0/1_2_3"])) == [("yz/0/1_2_3", 1)]
    if not store.ours:
        for key in ("other", "xy/0", "xy/0/1_2_3/4", "XY/0/1_2_3"):
            with pytest.raises(UnsupportedError, match="by keys such as"):
                tiles[key] = b"x"
        with pytest.raises(UnsupportedError, match="coordinate 0"):
            tiles.set_scales(LEVELS, origin=(1, 0, 0))
        with pytest.raises(UnsupportedError, match="coordinate 0"):
            repo.create_array("u", kind="imagetile", attrs={"tiles": {"origin": "source"}})


def test_tiles_of_pixels(store, repo, local):
    tiles = repo.create_array("t", kind="imagetile", attrs={"tiles": {"format": "lz4"}})
    if store.ours:
        tiles.store_tile(XY, 0, (0, 0, 0), np.eye(32, dtype=np.uint8))
        assert tiles.stored_tile(XY, 0, (0, 0, 0)) == local["t"].stored_tile(XY, 0, (0, 0, 0))
    else:
        with pytest.raises(UnsupportedError, match="lz4"):
            tiles.store_tile(XY, 0, (0, 0, 0), np.eye(32, dtype=np.uint8))


# -- all -----------------------------------------------------------------------------------

KINDS = {
    "roi": (lambda a, n: a.set_spans([[n, 0, 0, n]]), lambda a: a.spans().tolist()),
    "labelgraph": (
        lambda a, n: a.put({n: n}, {(n, n + 1): n}), lambda a: [list(each) for each in a.graph()]
    ),
    "imagetile": (
        lambda a, n: a.store_tile(XY, 0, (0, 0, 0), b"%d" % n),
        lambda a: a.stored_tile(XY, 0, (0, 0, 0)),
    ),
}  # fmt: skip
CHANGES = {
    "roi": [lambda a: a.set_spans([]), lambda a: a.clear(), lambda a: a.set_spans(SPANS)],
    "labelgraph": [
        lambda a: a.put({1: 1}, {}),
        lambda a: a.put({}, {}),
        lambda a: a.add({1: 1}, {}),
        lambda a: a.remove([1], []),
        lambda a: a.remove([], []),
        lambda a: a.clear(),
        lambda a: a.merge([1, 2]),
        lambda a: a.set_property(1, "c", b"x"),
        lambda a: a.set_property(1, "c", None),
        lambda a: a.transact({1: 1}, {1: b"x"}, "c"),
        lambda a: a.transact({}, {}, "c"),
    ],
    "imagetile": [
        lambda a: a.store_tile(XY, 0, (0, 0, 0), b"x"),
        lambda a: a.put_many({"xy/0/0_0_0": b""}),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_versions(kind, store, repo, local):
    write, read = KINDS[kind]
    array = repo.create_array("a", kind=kind)
    if kind == "imagetile":
        array.set_scales(LEVELS)
    write(array, 1)
    first = repo.uuid
    repo.lock_node("done")
    for each in (array, store.open_repo(uuid=first)["a"]):
        known = read(each)
        for change in CHANGES[kind]:
            with pytest.raises(LockedError, match=r"'a'.*version|version.*'a'"):
                change(each)
        assert read(each) == known and each.locked
    child = repo.create_branch("next")
    repo.change_version(child)
    assert read(array) == known and not array.locked  # of the parent
    write(array, 2)
    assert read(array) == read(local.store.open_repo("r", version=child)["a"]) != known
    repo.change_version(first)
    assert read(array) == known


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_reopen_the_same_array(kind, store, repo):
    write, read = KINDS[kind]
    array = repo.create_array("a", kind=kind)
    if kind == "imagetile":
        array.set_scales(LEVELS)
    write(array, 1)
    data = pickle.dumps(array)
    again = pickle.loads(data)
    assert type(again) is type(array) and again.name == "a" and read(again) == read(array)
    again._repo.store.close()
    store.ours = True  # to delete it
    repo.delete_array("a")
    with pytest.raises(NotFoundError):
        read(array)
    repo.create_array("a", kind=kind)
    with pytest.raises(NotFoundError, match="another one"):
        pickle.loads(data)


@pytest.mark.parametrize("kind", KINDS)
def test_read_only(kind, store, repo, server):
    repo.create_array("a", kind=kind)
    with DicedStore(server.url.replace("http", "dvid"), readonly=True) as other:
        other.ours = store.ours
        array = other.open_repo("r")["a"]
        for change in CHANGES[kind]:
            with pytest.raises(ReadOnlyError):
                change(array)


@pytest.mark.parametrize("kind", KINDS)
def test_unversioned_arrays_can_always_be_written(kind, repo):
    write, read = KINDS[kind]
    array = repo.create_array("a", kind=kind, versioned=False)
    if kind == "imagetile":
        array.set_scales(LEVELS)
    repo.lock_node("done")
    write(array, 1)
    known = read(array)
    write(array, 2)
    assert read(array) != known and not array.locked


def test_block_shapes_are_checked(repo):
    for wrong in ((0, 1, 1), (16, 16), "x"):
        with pytest.raises(InvalidError):
            repo.create_array("a", kind="roi", block_shape=wrong)
    assert repo.create_array("a", kind="roi").block_shape == (32, 32, 32)


def test_other_types_say_what_reaches_them(repo, monkeypatch):
    repo.create_array("a", kind="roi")
    monkeypatch.setitem(repo._view().instances["a"]["Base"], "TypeName", "annotation")
    other = repo._handle(repo._view().instances["a"] | {"Base": {
        "TypeName": "annotation", "Name": "notes", "DataUUID": "x", "RepoUUID": repo.root,
    }})  # fmt: skip
    assert (other.name, other.kind) == ("notes", "annotation")
    assert not hasattr(other, "spans")
    with pytest.raises(AttributeError, match=r"'notes' is of DVID's type 'annotation'"):
        other.elements()


def test_a_server_without_graphs(fake_repo):
    with pytest.raises(UnsupportedError, match="labelgraph"):
        fake_repo.create_array("g", kind="labelgraph")


@pytest.mark.parametrize("key", ["\ud800", 5, "", None, "k" * 5000])
def test_keys_of_many_values_are_checked(key, store, repo, local):
    repo.files["there"] = b"x"
    tiles = repo.create_array("t", kind="imagetile") if store.ours else repo.files
    for array in (repo.files, local.files, tiles):
        for names in ([key], ["there", key]):
            with pytest.raises(InvalidError):
                list(array.sizes(names))
            with pytest.raises(InvalidError):
                list(array.get_many(names))
