"""The mutation log over HTTP."""

import json

import pytest
from serving import serving


@pytest.fixture
def uuid(server):
    found = server.repo()
    server.instance(found, "keyvalue", "kv")
    return found


def told(reply, *names):
    return [tuple(each.get(name) for name in names) for each in reply.json]


def test_nothing_was_done(server, uuid):
    reply = server.get(f"node/{uuid}/kv/mutations")
    assert reply.text == "[]"
    assert reply.headers["content-type"] == "application/json"


def test_what_a_keyvalue_did(server, uuid):
    server.post(f"node/{uuid}/kv/key/a?u=jane", b"x" * 5)
    server.post(f"node/{uuid}/kv/key/large?u=joe", b"large" * 1000)
    server.ask("DELETE", f"node/{uuid}/kv/key/a?u=joe")
    server.post(f"node/{uuid}/kv/keyvalues", b"\x0a\x06\x0a\x01b\x12\x01v\x0a\x03\x0a\x01c")
    reply = server.get(f"node/{uuid}/kv/mutations")
    assert told(reply, "Action", "Key", "Bytes") == [
        ("postkv", "a", 5), ("postkv", "large", 5000), ("delete", "a", None),
        ("postkv", "b", 1), ("postkv", "c", 0),
    ]  # fmt: skip
    assert {each["UUID"] for each in reply.json} == {uuid}
    assert [each["User"] for each in reply.json][:3] == ["jane", "joe", "joe"]
    assert [each["MutationID"] for each in reply.json] == [1, 2, 3, 4, 4]
    assert all(each["Timestamp"][:2] == "20" for each in reply.json)
    only = server.get(f"node/{uuid}/kv/mutations?userid=joe")
    assert told(only, "Action", "Key") == [("postkv", "large"), ("delete", "a")]


def test_other_types_tell_their_commits(server, uuid):
    server.instance(uuid, "roi", "roi")
    server.instance(uuid, "labelgraph", "g")
    server.post(f"node/{uuid}/roi/roi?u=jane", [[0, 0, 0, 1]])
    server.ask("DELETE", f"node/{uuid}/roi/roi")
    server.post(f"node/{uuid}/g/weight", {"Vertices": [{"Id": 1}], "Edges": []})
    reply = server.get(f"node/{uuid}/roi/mutations")
    assert told(reply, "Action") == [("put spans",), ("delete spans",)]
    assert reply.json[0]["User"] == "jane"
    assert told(server.get(f"node/{uuid}/g/mutations"), "Action") == [("add weights",)]


def test_voxels_tell_their_box(server, uuid):
    repo = server.store.open_repo(uuid=uuid)
    array = repo.create_array("em", "uint8")
    array[1:3, 4:6, 7:9] = 5
    (only,) = server.get(f"node/{uuid}/em/mutations").json
    assert (only["MinPoint"], only["MaxPoint"]) == ([7, 4, 1], [8, 5, 2])


def test_a_range_of_versions(server, uuid):
    repo = server.store.open_repo(uuid=uuid)
    line = [uuid]
    for number in range(3):
        server.post(f"node/{line[-1]}/kv/key/k{number}", b"v")
        repo.lock_node(f"lock {number}")
        line.append(repo.create_branch(f"child {number}"))
        repo.change_version(line[-1])
    server.post(f"node/{line[-1]}/kv/key/last", b"v")
    repo.change_version(line[1])
    side = repo.create_branch("side", branch="side")
    server.post(f"node/{side}/kv/key/side", b"v")

    def asked(first, last):
        reply = server.get(f"node/{uuid}/kv/mutations-range/{first}/{last}")
        return told(reply, "Key", "UUID")

    own = [("k0", line[0]), ("k1", line[1]), ("k2", line[2]), ("last", line[3])]
    assert asked(line[0], line[3]) == own
    assert asked(line[1], line[2]) == own[1:3]
    assert asked(line[2], line[2]) == own[2:3]
    assert asked(line[0], side) == [*own[:2], ("side", side)]
    assert asked(line[0][:8], line[3][:8]) == own
    path = f"node/{uuid}/kv/mutations-range"
    server.refused("GET", f"{path}/{line[3]}/{line[0]}")
    server.refused("GET", f"{path}/{line[2]}/{side}")
    server.refused("GET", f"{path}/{line[0]}/{'0' * 32}")
    other = server.repo("other")
    server.refused("GET", f"{path}/{uuid}/{other}")
    # One version only tells what was done there.
    assert told(server.get(f"node/{line[1]}/kv/mutations"), "Key") == [("k1",)]


def test_unversioned_instances_tell_everything_of_the_root(server, uuid):
    server.instance(uuid, "keyvalue", "all", versioned="false")
    server.post(f"node/{uuid}/all/key/k", b"v")
    repo = server.store.open_repo(uuid=uuid)
    repo.lock_node("done")
    child = repo.create_branch("child")
    server.post(f"node/{child}/all/key/k2", b"v")
    reply = server.get(f"node/{child}/all/mutations")
    assert told(reply, "Key", "UUID") == [("k", uuid), ("k2", uuid)]


def test_very_many(disk_server):
    uuid = disk_server.repo()
    disk_server.instance(uuid, "keyvalue", "kv")
    kv = disk_server.store.open_repo(uuid=uuid)["kv"]
    kv.put_many({f"{number:05}": b"v" for number in range(12_000)})
    reply = disk_server.get(f"node/{uuid}/kv/mutations")
    assert [each["Key"] for each in json.loads(reply.body)] == [f"{n:05}" for n in range(12_000)]


def test_two_servers_on_one_store(tmp_path):
    place = tmp_path / "store"
    with serving(place) as one, serving(place) as two:
        uuid = one.repo()
        one.instance(uuid, "keyvalue", "kv")
        for number in range(4):
            one.post(f"node/{uuid}/kv/key/k", b"v")
            assert len(two.get(f"node/{uuid}/kv/mutations").json) == number + 1
