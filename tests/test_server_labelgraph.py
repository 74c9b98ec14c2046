"""The data type labelgraph over HTTP."""

import json
import struct

import pytest
from serving import serving

GRAPH = {
    "Vertices": [{"Id": 1, "Weight": 1.5}, {"Id": 2, "Weight": 2}, {"Id": 3}],
    "Edges": [{"Id1": 2, "Id2": 1, "Weight": 5}, {"Id1": 2, "Id2": 3, "Weight": 0.25}],
}
SHOWN = (
    b'{"Transactions":[],"Vertices":[{"Id":1,"Weight":1.5},{"Id":2,"Weight":2},'
    b'{"Id":3,"Weight":0}],"Edges":[{"Id1":1,"Id2":2,"Weight":5},{"Id1":2,"Id2":3,"Weight":0.25}]}'
)


@pytest.fixture
def node(server):
    """The path of an instance ``g`` of a new repo."""
    uuid = server.repo()
    server.instance(uuid, "labelgraph", "g")
    return f"node/{uuid}/g"


def test_subgraph(server, node):
    empty = b'{"Transactions":[],"Vertices":[],"Edges":[]}'
    assert server.get(f"{node}/subgraph").body == empty
    server.post(f"{node}/subgraph", GRAPH)
    reply = server.get(f"{node}/subgraph")
    assert reply.body == SHOWN
    assert reply.headers["content-type"] == "application/json"
    some = server.get(f"{node}/subgraph", body={"Vertices": [{"Id": 3}], "Edges": []})
    assert some.json["Vertices"] == [{"Id": 3, "Weight": 0}]
    assert some.json["Edges"] == [{"Id1": 2, "Id2": 3, "Weight": 0.25}]
    server.refused("GET", f"{node}/subgraph", {"Vertices": [{"Id": 9}]})


def test_deleting_parts_and_all(server, node):
    server.post(f"{node}/subgraph?unsafe=true", GRAPH)
    gone = {"Vertices": [{"Id": 1}, {"Id": 77}], "Edges": [{"Id1": 3, "Id2": 2}]}
    assert server.ask("DELETE", f"{node}/subgraph", gone).status == 200
    found = server.get(f"{node}/subgraph").json
    assert [each["Id"] for each in found["Vertices"]] == [2, 3]
    assert found["Edges"] == []
    assert server.ask("DELETE", f"{node}/subgraph").status == 200
    assert server.get(f"{node}/subgraph").json["Vertices"] == []


def test_neighbors(server, node):
    server.post(f"{node}/subgraph", GRAPH)
    found = server.get(f"{node}/neighbors/2").json
    assert [each["Id"] for each in found["Vertices"]] == [2, 1, 3]
    assert found["Edges"] == [
        {"Id1": 1, "Id2": 2, "Weight": 5}, {"Id1": 2, "Id2": 3, "Weight": 0.25},
    ]  # fmt: skip
    for vertex in ("9", "0", "x", "-1", str(2**64)):
        server.refused("GET", f"{node}/neighbors/{vertex}")


def test_weights_add_up_as_pydvid_sends_them(server, node):
    for _ in range(2):
        server.post(f"{node}/weight", {"Vertices": [{"Id": 7, "Weight": 3}], "Edges": []})
        edge = {"Id1": 7, "Id2": 8, "Weight": 2}
        server.post(
            f"{node}/weight", {"Vertices": [], "Edges": [edge, {**edge, "Id1": 8, "Id2": 7}]}
        )
    found = server.get(f"{node}/subgraph").json
    assert found["Vertices"] == [{"Id": 7, "Weight": 6}, {"Id": 8, "Weight": 0}]
    assert found["Edges"] == [{"Id1": 7, "Id2": 8, "Weight": 8}]
    server.post(f"{node}/weight", {"Vertices": [{"Id": 7, "Weight": -6.5}]})
    assert server.get(f"{node}/neighbors/7").json["Vertices"][0] == {"Id": 7, "Weight": -0.5}
    message = server.refused("POST", f"{node}/weight", {"Edges": [{"Id1": 90, "Id2": 91}]})
    assert "90" in message


def test_large_ids_are_exact(server, node):
    largest = 2**64 - 1
    server.post(f"{node}/weight", {"Vertices": [{"Id": largest}, {"Id": 2**53 + 1}]})
    found = server.get(f"{node}/subgraph").json["Vertices"]
    assert [each["Id"] for each in found] == [2**53 + 1, largest]


def test_merge(server, node):
    server.post(f"{node}/subgraph", GRAPH)
    merged = {"Vertices": [{"Id": 1}, {"Id": 3}]}
    server.post(f"{node}/merge", merged)
    found = server.get(f"{node}/subgraph").json
    assert found["Vertices"] == [{"Id": 2, "Weight": 2}, {"Id": 3, "Weight": 1.5}]
    assert found["Edges"] == [{"Id1": 2, "Id2": 3, "Weight": 5.25}]
    server.post(f"{node}/merge/nohistory", {"Vertices": [{"Id": 3}, {"Id": 2, "Weight": 9}]})
    assert server.get(f"{node}/subgraph").json["Vertices"] == [{"Id": 2, "Weight": 9}]
    server.refused("POST", f"{node}/merge", {"Vertices": [{"Id": 2}]})
    server.refused("POST", f"{node}/merge", {"Vertices": [{"Id": 2}, {"Id": 3}]})
    server.refused("POST", f"{node}/merge/later", merged)
    server.refused("POST", f"{node}/undomerge", {})


@pytest.mark.parametrize("path", ["subgraph", "weight", "merge"])
@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"{", b'{"Vertices": 1}', b'{"Vertices": [1]}', b'{"Vertices": [{}]}',
        b'{"Vertices": [{"Id": 0}, {"Id": 0}]}', b'{"Vertices": [{"Id": 1.5}, {"Id": 2}]}',
        b'{"Vertices": [{"Id": "1"}, {"Id": 2}]}', b'{"Vertices": [{"Id": true}, {"Id": 3}]}',
        b'{"Vertices": [{"Id": 1, "Weight": "x"}, {"Id": 2}]}', b'{"Edges": [{"Id1": 1}]}',
        b'{"Vertices": [{"Id": 1, "Weight": NaN}, {"Id": 2, "Weight": NaN}]}',
        b'{"Vertices": [{"Id": 1}, {"Id": 2, "Weight": 1e999}]}',
        b'{"Vertices": [{"Id": 1}, {"Id": 18446744073709551616}]}',
        b'{"Vertices": [{"Id": 4}, {"Id": 5}], "Edges": [{"Id1": 4, "Id2": 4}]}',
        b'{"Vertices": [{"Id": 4}, {"Id": 5, "Weight": 1' + b"0" * 400 + b"}]}", b"\xff",
    ],
)  # fmt: skip
def test_bad_graphs_change_nothing(server, node, path, body):
    server.post(f"{node}/subgraph", GRAPH)
    server.refused("POST", f"{node}/{path}", body)
    assert server.get(f"{node}/subgraph").body == SHOWN


# -- properties ----------------------------------------------------------------------------


def test_properties(server, node):
    server.post(f"{node}/subgraph", GRAPH)
    server.post(f"{node}/property/1/color", b"\0red\xff")
    reply = server.get(f"{node}/property/1/color")
    assert (reply.body, reply.headers["content-type"]) == (b"\0red\xff", "application/octet-stream")
    server.post(f"{node}/property/2/1/kind", b"edge")
    assert server.get(f"{node}/property/1/2/kind").body == b"edge"
    for _ in range(2):
        assert server.ask("DELETE", f"{node}/property/1/2/kind").status == 200
    server.refused("GET", f"{node}/property/1/2/kind")
    server.refused("GET", f"{node}/property/1/none")
    server.refused("POST", f"{node}/property/9/x", b"no such vertex")
    server.refused("POST", f"{node}/property/1/3/x", b"no such edge")
    for path in ("0/x", "x/y", "1", "1/2/3/4", "1/1/x"):
        server.refused("POST", f"{node}/property/{path}", b"x")


def u64(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def test_property_transactions_byte_by_byte(server, node):
    server.post(f"{node}/subgraph", GRAPH)
    path = f"{node}/propertytransaction/vertices/features"
    # As libdvid asks: vertices with id 0, then the vertices whose property it wants.
    asked = bytes.fromhex(
        "0200000000000000"
        "0100000000000000"
        "0000000000000000"
        "0200000000000000"
        "0000000000000000"
        "0200000000000000"
        "0100000000000000"
        "0200000000000000"
    )
    assert asked == u64(2, 1, 0, 2, 0, 2, 1, 2)
    reply = server.get(f"{path}/", body=asked)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.body == u64(2, 1, 1, 2, 1, 0, 2, 1, 0, 2, 0)
    post = u64(2, 1, 1, 2, 1, 2, 1, 3) + b"one" + u64(2, 5) + b"three"
    assert server.post(path, post).body == u64(2, 1, 2, 2, 2, 0)
    assert server.get(path, body=asked).body == (
        u64(2, 1, 2, 2, 2, 0, 2, 1, 3) + b"one" + u64(2, 5) + b"three"
    )
    # Vertex 1 with its old id: it fails, the other one goes well, and nothing of 1 is stored.
    late = u64(2, 1, 1, 2, 2, 2, 1, 4) + b"late" + u64(2, 3) + b"two"
    assert server.post(path, late).body == u64(1, 2, 3, 1, 1)
    assert server.get(f"{node}/property/1/features").body == b"one"
    assert server.get(f"{node}/property/2/features").body == b"two"
    # A property of no bytes, or of a vertex that is not locked, is passed over.
    skipped = u64(1, 1, 2, 2, 1, 0, 2, 1) + b"x"
    assert server.post(path, skipped).body == u64(1, 1, 3, 0)
    assert server.get(f"{node}/property/2/features").body == b"two"
    assert server.get(path, body=u64(1, 1, 0, 1, 2)).body == u64(1, 1, 3, 0, 0)


def test_edge_transactions_byte_by_byte(server, node):
    server.post(f"{node}/subgraph", GRAPH)
    path = f"{node}/propertytransaction/edges/p"
    asked = u64(3, 1, 0, 2, 0, 3, 0, 2, 2, 1, 2, 3)
    assert server.get(path, body=asked).body == u64(3, 1, 1, 2, 1, 3, 1, 0, 2, 2, 1, 0, 2, 3, 0)
    post = u64(3, 1, 1, 2, 1, 3, 1, 1, 2, 1, 4) + b"edge"
    assert server.post(path, post).body == u64(3, 1, 2, 2, 2, 3, 2, 0)
    assert server.get(path, body=asked).body == (
        u64(3, 1, 2, 2, 2, 3, 2, 0, 2, 2, 1, 4) + b"edge" + u64(2, 3, 0)
    )
    stale = u64(2, 1, 2, 2, 9, 1, 2, 1, 1) + b"x"
    assert server.post(path, stale).body == u64(1, 1, 3, 1, 2)
    assert server.get(f"{node}/property/1/2/p").body == b"edge"
    missing = u64(2, 1, 3, 3, 2, 1, 1, 3, 1) + b"x"
    server.refused("POST", path, missing)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"1234567", u64(1), u64(2**64 - 1), u64(2**60, 1, 1), u64(1, 1, 1), u64(1, 1),
        u64(1, 1, 1, 5), u64(1, 1, 1, 2**64 - 1), u64(1, 1, 1, 1, 1, 100) + b"short",
        u64(1, 1, 1, 1, 1, 2**64 - 1), u64(1, 0, 1, 0), u64(0, 1, 1),
    ],
)  # fmt: skip
def test_transactions_that_are_cut_off(server, node, body):
    server.post(f"{node}/subgraph", GRAPH)
    server.refused("POST", f"{node}/propertytransaction/vertices/k", body)
    server.refused("POST", f"{node}/propertytransaction/edges/k", body)
    server.refused("POST", f"{node}/propertytransaction/faces/k", u64(0, 0))


def test_locked_versions(server, node):
    server.post(f"{node}/subgraph", GRAPH)
    server.store.open_repo(uuid=node.split("/")[1]).lock_node("done")
    for method, path, body in (
        ("POST", "subgraph", GRAPH), ("POST", "weight", GRAPH), ("DELETE", "subgraph", None),
        ("POST", "merge", GRAPH), ("POST", "property/1/k", b"x"),
        ("POST", "propertytransaction/vertices/k", u64(1, 1, 1, 0)),
    ):  # fmt: skip
        server.refused(method, f"{node}/{path}", body)
    assert server.get(f"{node}/subgraph").body == SHOWN
    asked = u64(1, 1, 0, 1, 1)
    reply = server.get(f"{node}/propertytransaction/vertices/k", body=asked)
    assert reply.body == u64(1, 1, 1, 0, 1, 1, 0)


def test_many_vertices(disk_server):
    uuid = disk_server.repo()
    disk_server.instance(uuid, "labelgraph", "g")
    count = 30_000
    graph = {
        "Vertices": [{"Id": each, "Weight": 1} for each in range(1, count + 1)],
        "Edges": [{"Id1": 1, "Id2": each, "Weight": 2} for each in range(2, count + 1)],
    }
    for _ in range(2):
        disk_server.post(f"node/{uuid}/g/weight", graph)
    found = disk_server.get(f"node/{uuid}/g/subgraph").json
    assert len(found["Vertices"]) == count and len(found["Edges"]) == count - 1
    assert {each["Weight"] for each in found["Vertices"]} == {2}
    assert {each["Weight"] for each in found["Edges"]} == {4}
    assert len(disk_server.get(f"node/{uuid}/g/neighbors/1").json["Edges"]) == count - 1


def test_two_servers_on_one_store(tmp_path):
    place = tmp_path / "store"
    with serving(place) as one, serving(place) as two:
        uuid = one.repo()
        one.instance(uuid, "labelgraph", "g")
        path = f"node/{uuid}/g"
        for number in range(1, 5):
            one.post(f"{path}/weight", {"Vertices": [{"Id": 1, "Weight": 1}]})
            two.post(f"{path}/weight", {"Vertices": [{"Id": 1, "Weight": 1}]})
            found = one.get(f"{path}/neighbors/1").json["Vertices"]
            assert found == [{"Id": 1, "Weight": 2 * number}]
        transaction = f"{path}/propertytransaction/vertices/k"
        assert one.post(transaction, u64(1, 1, 1, 1, 1, 3) + b"one").body == u64(1, 1, 2, 0)
        assert two.post(transaction, u64(1, 1, 1, 1, 1, 3) + b"two").body == u64(0, 1, 1)
        assert two.get(f"{path}/property/1/k").body == b"one"


def test_help_says_how_transactions_are_written(server, node):
    text = server.get(f"{node}/help").text
    assert "lowest byte first" in text
    assert "propertytransaction/{elements}/{key}" in text
    assert json.dumps(server.get(f"{node}/info").json["Base"]["TypeName"]) == '"labelgraph"'
