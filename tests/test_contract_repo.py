"""DVID's reference, row by row: repos, instances, version nodes, names of versions, versioning."""

import base64
import datetime
import json

import pytest
from contract import hold

ROOT, MINE = "0123456789abcdef0123456789abcdef", "f" * 32
REPO = {
    "Root", "Alias", "Description", "Log", "Properties", "DataInstances", "DAG", "MutationID",
    "SavedMutationID", "Created", "Updated",
}  # fmt: skip
NODE = {
    "Branch": str, "Note": str, "Log": list, "UUID": str, "VersionID": int, "Locked": bool,
    "Parents": list, "Children": list, "Created": str, "Updated": str,
}  # fmt: skip
BASE = {
    "TypeName": str, "TypeURL": str, "TypeVersion": str, "DataUUID": str, "Name": str,
    "RepoUUID": str, "Compression": str, "Checksum": str, "Syncs": list, "Versioned": bool,
    "KVStore": str, "LogStore": str, "Tags": dict,
}  # fmt: skip


@pytest.fixture
def root(server):
    """A repo with the root ROOT and a keyvalue instance."""
    server.post("repos", {"alias": "fly", "description": "a brain", "root": ROOT})
    server.instance(ROOT, "keyvalue", "kv")
    return ROOT


@pytest.fixture
def locked(server, root):
    """That repo with its root locked."""
    server.post(f"node/{root}/kv/key/k", b"root")
    server.post(f"node/{root}/commit", {"note": "first"})
    return root


def moment(text):
    found = datetime.datetime.fromisoformat(text)
    assert found.tzinfo is not None
    return found


# -- repos ---------------------------------------------------------------------------------


def test_creation_of_repos(server):
    hold(
        server,
        [
            ("POST repos", {"root": ROOT}, {"root": ROOT}),
            ("POST repos", {"root": ROOT}, (400, "UUID already exists in datastore")),
            ("POST repos", {"root": "any name"}, {"root": "any name"}),
            ("POST repos", b"", 200),
            ("POST repos", b"{}", 200),
            ("POST repos", {"Alias": "x", "DESCRIPTION": "y", "passcode": "z"}, 200),
            ("POST repos", b"[]", 400),
            ("POST repos", b"{", 400),
            ("POST repos", {"alias": 5}, 400),
            ("POST repos", {"description": ["x"]}, 400),
        ],
    )
    found = server.get("repos/info").json
    assert len(found) == 5 and all(each["Root"] == root for root, each in found.items())
    assert all(len(root) == 32 and int(root, 16) for root in set(found) - {"any name"})


def test_a_repo_as_json(server, locked):
    child = server.post(f"node/{locked}/newversion", {"note": "next"}).json["child"]
    server.post(f"repo/{child}/log", {"log": ["a line", "another"]})
    repo = server.get("repos/info").json[locked]
    assert set(repo) == REPO
    assert (repo["Root"], repo["Alias"], repo["Description"]) == (locked, "fly", "a brain")
    assert repo["Properties"] == {}
    assert repo["MutationID"] >= 1_000_000_000 and type(repo["SavedMutationID"]) is int
    assert moment(repo["Created"]) <= moment(repo["Updated"])
    for line, text in zip(repo["Log"], ("a line", "another"), strict=True):
        time, said = line.split("  ")  # two blanks
        assert moment(time) and said == text
    assert set(repo["DAG"]) == {"Root", "Nodes"}
    nodes = repo["DAG"]["Nodes"]
    assert set(nodes) == {locked, child}
    for uuid, node in nodes.items():
        assert {name: type(value) for name, value in node.items()} == NODE
        assert node["UUID"] == uuid and moment(node["Created"]) <= moment(node["Updated"])
    first, second = nodes[locked], nodes[child]
    assert (first["Parents"], first["Children"]) == ([], [second["VersionID"]])
    assert (second["Parents"], second["Children"]) == ([first["VersionID"]], [])
    assert (first["Locked"], second["Locked"], second["Branch"]) == (True, False, "")
    for instance in repo["DataInstances"].values():
        assert set(instance) >= {"Base", "Extended"}
        assert {name: type(value) for name, value in instance["Base"].items()} == BASE
    base = repo["DataInstances"]["kv"]["Base"]
    assert (base["Name"], base["RepoUUID"], base["Syncs"]) == ("kv", locked, [])
    assert base["Checksum"] == "No checksum" and base["Compression"] == "LZ4 compression, level -1"
    for uuid in (locked, child, child[:9]):
        assert server.get(f"repo/{uuid}/info").json == repo


def test_requests_of_a_repo(server, locked):
    server.post(f"node/{locked}/newversion", {"uuid": MINE})
    hold(
        server,
        [
            ("HEAD repo/{r}", None, 200),
            ("HEAD repo/{m}", None, 200),
            ("HEAD repo/eeee", None, 400),
            ("GET repo/{r}", None, 400),
            ("POST repo/{m}/info", {"alias": "new", "description": "text"}, b""),
            ("POST repo/{r}/info", {"Description": "other"}, b""),
            ("POST repo/{r}/info", b"", 400),
            ("GET repo/{r}/log", None, b'{"log":[]}'),
            ("POST repo/{r}/log", {"log": ["x"]}, b""),  # at a locked version too
            ("POST repo/{r}/log", {"log": "x"}, 400),
            ("POST repo/{r}/log", b"", 400),
            ("GET repo/{r}/branch-versions/master", None, ["{m}", "{r}"]),
            ("GET repo/{m}/branch-versions/nobody", None, b"[]"),
            # dvid-console asks for this, and takes any answer.
            ("GET repo/{r}/instance", None, 400),
            ("DELETE repo/{r}/kv", None, (400, "imsure")),
            ("DELETE repo/{r}/kv?imsure=true", None, b""),
            ("GET node/{m}/kv/keys", None, (400, "invalid data instance name")),
            ("DELETE repo/{r}", None, (400, "imsure")),
            ("DELETE repo/{r}?imsure=true", None, b""),
            ("GET repo/{m}/info", None, 400),
        ],
        r=locked, m=MINE,
    )  # fmt: skip


def test_merges_are_refused(server, locked):
    server.post(f"node/{locked}/branch", {"branch": "b"})
    merge = {"mergeType": "conflict-free", "parents": [locked, locked], "note": ""}
    rows = [
        ("POST repo/{r}/merge", merge, (400, "does not merge")),
        ("POST repo/{r}/merge", {**merge, "mergeType": "other"}, 400),
        ("POST repo/{r}/merge", b"", 400),
        ("POST repo/{r}/resolve", {"data": ["kv"], "parents": [locked], "note": ""}, 400),
    ]
    hold(server, rows, r=locked)


# -- instances -----------------------------------------------------------------------------


def make(name, typename="keyvalue", **fields):
    return {"typename": typename, "dataname": name, **fields}


def added(name, typename="keyvalue"):
    return {"result": f"Added {name} [{typename}] to node {ROOT}"}


CREATION = [
    ("POST repo/{r}/instance", make("a"), added("a")),
    ("POST repo/0123/instance", {"TypeName": "roi", "DATANAME": "b"}, added("b", "roi")),
    ("POST repo/{r}/instance", make("a"), (400, "exists already")),
    ("POST repo/{r}/instance", make("b", "uint8blk"), 400),
    *(("POST repo/{r}/instance", make(name), 400)
      for name in ("log", "branch", "note", "commit", "newversion", "", "a/b")),
    ("POST repo/{r}/instance", make("c", "nonsense"), (400, "nonsense")),
    ("POST repo/{r}/instance", {"typename": "roi"}, 400),
    ("POST repo/{r}/instance", {"dataname": "d"}, 400),
    ("POST repo/{r}/instance", b"", 400),
    ("POST repo/{r}/instance", b"[]", 400),
    ("POST repo/{r}/instance", make("e", Checksum="md5"), (400, "checksum")),
    ("POST repo/{r}/instance", make("e", Compression="rar"), (400, "compression")),
    ("POST repo/{r}/instance", make("e", Compression="gzip:10"), (400, "compression")),
    ("POST repo/{r}/instance", make("e", versioned="perhaps"), 400),
    ("POST repo/{r}/instance", make("e", Tags={"a": "b"}), 400),
    ("POST repo/{r}/instance", make(".hidden.name-1"), added(".hidden.name-1")),
]  # fmt: skip


def test_creation_of_instances(server, root):
    hold(server, CREATION, r=root)
    assert set(server.get(f"repo/{root}/info").json["DataInstances"]) == {
        ".files", ".meta", "kv", "a", "b", ".hidden.name-1",
    }  # fmt: skip


SETTINGS = [  # what is given, and what Base says of it
    ({"versioned": False}, {"Versioned": False}),
    ({"versioned": "false"}, {"Versioned": False}),
    ({"versioned": "0"}, {"Versioned": False}),
    ({"Versioned": "1"}, {"Versioned": True}),
    ({"versioned": "true"}, {"Versioned": True}),
    ({"versioned": True}, {"Versioned": True}),
    ({"Tags": "k=v,k2=v 2"}, {"Tags": {"k": "v", "k2": "v 2"}}),
    ({"Checksum": "crc32"}, {"Checksum": "CRC32 checksum"}),
    ({"Checksum": "none"}, {"Checksum": "No checksum"}),
    ({"Compression": "none"}, {"Compression": "No compression, level -1"}),
    ({"Compression": "LZ4"}, {"Compression": "LZ4 compression, level -1"}),
    ({"Compression": "snappy"}, {"Compression": "Go Snappy compression, level -1"}),
    ({"Compression": "gzip"}, {"Compression": "gzip compression, level -1"}),
    ({"Compression": "gzip:9"}, {"Compression": "gzip compression, level 9"}),
    ({"Anything": "else"}, {"Tags": {}}),
]


@pytest.mark.parametrize("typename", ["keyvalue", "roi", "labelgraph"])
def test_settings_of_any_type(server, root, typename):
    for number, (given, shown) in enumerate(SETTINGS):
        server.instance(root, typename, f"i{number}", **given)
        base = server.get(f"node/{root}/i{number}/info").json["Base"]
        assert {name: base[name] for name in shown} == shown


def test_instances_begin_where_they_are_made(server, locked):
    side = server.post(f"node/{locked}/branch", {"branch": "side"}).json["child"]
    main = server.post(f"node/{locked}/newversion").json["child"]
    server.instance(side, "keyvalue", "late")
    server.instance(side, "keyvalue", "everywhere", versioned="false")
    server.post(f"node/{side}/late/key/k", b"v")
    instances = server.get(f"repo/{main}/info").json["DataInstances"]
    assert instances["late"]["Base"]["RepoUUID"] == side
    hold(
        server,
        [
            ("POST repo/{r}/instance", make("x"), (400, "Cannot do post on locked node {r}")),
            # DVID lets any version of the repo address it.
            ("GET node/{main}/late/keys", None, (400, "invalid data instance name")),
            ("POST repo/{main}/instance", make("late"), (400, "exists already")),
            ("POST node/{main}/everywhere/key/k", b"v", b""),
            ("GET node/{r}/everywhere/key/k", None, b"v"),
        ],
        r=locked, main=main,
    )  # fmt: skip


def fnv1(data):
    """The reference of a blob, as Go's hash/fnv New128 and base64.URLEncoding make it."""
    value = 0x6C62272E07BB014262B821756295C58D
    for byte in data:
        value = (value * 0x0000000001000000000000000000013B) % 2**128 ^ byte
    return base64.urlsafe_b64encode(value.to_bytes(16, "big")).decode()


def test_blobs(server, locked):
    server.post(f"node/{locked}/newversion", {"uuid": MINE})
    for typename in ("uint8blk", "roi", "imagetile", "labelblk", "labelgraph"):
        server.instance(MINE, typename, typename)
    data = [b"", b"hello", bytes(range(256)) * 40]
    for name in ("uint8blk", "roi", "imagetile", "labelblk", "labelgraph", "kv"):
        for each in data:
            path = f"node/{MINE}/{name}/blobstore"
            assert server.post(path, each).json == {"reference": fnv1(each)}
            reply = server.get(f"{path}/{fnv1(each)}")
            assert reply.body == each
            assert reply.headers["content-type"] == "application/octet-stream"
    hold(
        server,
        [
            ("POST node/{r}/kv/blobstore", b"new", {"reference": fnv1(b"new")}),  # it is locked
            ("GET node/{r}/kv/blobstore/" + fnv1(b"new"), None, b"new"),
            ("GET node/{r}/kv/blobstore/" + fnv1(b"other"), None, 404),
            ("GET node/{r}/kv/blobstore/AAAA", None, 400),
            ("GET node/{r}/kv/blobstore/!!!", None, 400),
            ("GET node/{r}/kv/blobstore", None, 400),
            ("POST node/{m}/kv/blobstore/x", b"x", 400),
            ("DELETE node/{m}/kv/blobstore", None, 400),
            ("GET node/{m}/kv/keys", None, ["k"]),
        ],
        r=locked, m=MINE,
    )  # fmt: skip


# -- nodes ---------------------------------------------------------------------------------


def test_an_open_version(server, root):
    hold(
        server,
        [
            ("GET node/{r}/note", None, b'{"note":""}'),
            ("POST node/{r}/note", {"note": "one"}, b""),
            ("POST node/{r}/note", {"note": "two"}, b""),
            ("GET node/{r}/note", None, {"note": "two"}),
            ("POST node/{r}/note", b"", 400),
            ("GET node/{r}/log", None, b'{"log":[]}'),
            ("POST node/{r}/log", {"log": ["one", "two"]}, b""),
            ("POST node/{r}/log", b"", 400),
            ("GET node/{r}/status", None, b'{"Locked":false}'),
            ("GET node/{r}/commit", None, b'{"Locked":false}'),
            *((f"POST node/{{r}}/{word}", {"branch": "b", "tag": "t"},
               (400, "can't branch an unlocked node"))
              for word in ("newversion", "branch", "tag")),
            ("POST node/{r}/commit", b"", 400),
            ("POST node/{r}/commit", b"note", 400),
            ("POST node/0123/commit", {"note": "done", "log": ["three"]}, {"committed": root}),
            ("GET node/{r}/note", None, {"note": "done"}),
            ("GET node/{r}/status", None, b'{"Locked":true}'),
            ("GET node/{r}/commit", None, b'{"Locked":true}'),
            ("POST node/{r}/commit", {"note": "again"}, 400),
        ],
        r=root,
    )  # fmt: skip
    lines = server.get(f"node/{root}/log").json["log"]
    assert [line.partition("  ")[2] for line in lines] == ["one", "two", "three"]
    assert all(moment(line.partition("  ")[0]) for line in lines)


def test_children_of_a_locked_version(server, locked):
    tag_note = f'Tag of version {locked} with "v1.0"'
    hold(
        server,
        [
            ("POST node/{r}/newversion", {"uuid": "abc"}, (400, "32 hex")),
            ("POST node/{r}/newversion", {"uuid": "g" * 32}, 400),
            ("POST node/{r}/newversion", b"{", 400),
            ("POST node/{r}/newversion", {"note": "next", "uuid": MINE}, {"child": MINE}),
            ("GET node/{m}/note", None, {"note": "next"}),
            ("POST node/{r}/newversion", b"",
             (400, "branch already exists with given name")),
            ("POST node/{r}/branch", {"branch": ""}, (400, "Cannot create a master branch")),
            ("POST node/{r}/branch", {"branch": "master"}, (400, "Cannot create a master branch")),
            ("POST node/{r}/branch", b"", (400, "Cannot create a master branch")),
            ("POST node/{r}/branch", {"branch": "b", "uuid": "x"}, 400),
            ("POST node/{r}/branch", {"branch": "b", "uuid": MINE},
             (400, "UUID already exists in datastore")),
            ("POST node/{r}/branch", {"branch": "b", "uuid": "b" * 32}, {"child": "b" * 32}),
            ("POST node/{r}/branch", {"branch": "b"},
             (400, "branch already exists with given name")),
            ("POST node/{m}/commit", {}, 200),
            ("POST node/{m}/branch", {"branch": "b"},
             (400, "branch already exists with given name")),
            ("POST node/{b}/commit", {}, 200),
            ("POST node/{b}/branch", {"branch": "b", "uuid": "c" * 32}, {"child": "c" * 32}),
            ("GET repo/{r}/branch-versions/b", None, ["c" * 32, "b" * 32, "{r}"]),
            # With a note only, as the DICED of old asks; DVID has refused it since 2017.
            ("POST node/{m}/branch", {"note": "on"}, 200),
            ("POST node/{r}/tag", b"", 400),
            ("POST node/{r}/tag", {"tag": ""}, 400),
            ("POST node/{r}/tag", {"tag": "v1.0"}, {"child": "v1.0"}),
            ("POST node/{r}/tag", {"tag": "v1.0"}, 400),
            ("GET node/v1.0/note", None, {"note": tag_note}),
            ("GET node/v1.0/status", None, b'{"Locked":true}'),
            ("GET node/v1.0/kv/key/k", None, b"root"),
        ],
        r=locked, m=MINE, b="b" * 32,
    )  # fmt: skip
    node = server.get("repo/v1.0/info").json["DAG"]["Nodes"]["v1.0"]
    assert (node["Branch"], node["Locked"]) == ("tag-v1.0", True)


# -- names of versions ---------------------------------------------------------------------


def test_names_of_versions(server, locked):
    server.post(f"node/{locked}/newversion", {"uuid": "1" * 32})
    server.post(f"node/{'1' * 32}/commit", {})
    server.post(f"node/{'1' * 32}/newversion", {"uuid": "2" * 32})
    server.post(f"node/{locked}/branch", {"branch": "side", "uuid": "3" * 32})
    for tag in ("v1.0", "v1.0.1"):
        server.post(f"node/{locked}/tag", {"tag": tag})
    for uuid, note in (("2" * 32, "leaf"), ("3" * 32, "side")):
        server.post(f"node/{uuid}/note", {"note": note})
    server.post("node/1111/kv/blobstore", b"")
    notes = {
        "0123": "first", locked: "first", "0": "first", "2": "leaf", "22:": "leaf",
        "0123:master": "leaf", "33:master": "leaf", ":master": "leaf", ":": "leaf", ":side": "side",
        "0:side": "side", ":master~2": "first", ":side~1": "first", ":master~0": "leaf",
    }  # fmt: skip
    hold(server, [(f"GET node/{spec}/note", None, {"note": note}) for spec, note in notes.items()])
    # What is a whole name wins over those that begin so.
    hold(server, [("GET node/v1.0/status", None, {"Locked": True}),
                  ("GET node/v1.0/note", None, 'with \\"v1.0\\"')])  # fmt: skip
    wrong = ("0123:a:b", "0123:master^1", ":master^1", ":nobody", ":side~2", ":side~x", "V1.0.1",
             locked.upper())  # fmt: skip
    hold(server, [(f"GET node/{spec}/note", None, 400) for spec in wrong])
    hold(server, [("GET node/v1/note", None, (400, "more than one UUID matches v1"))])
    server.repo("second")
    hold(server, [("GET node/:master/note", None, 400)])


# -- versions ------------------------------------------------------------------------------


def test_values_are_those_of_the_nearest_ancestor(server, locked):
    left = server.post(f"node/{locked}/newversion").json["child"]
    right = server.post(f"node/{locked}/branch", {"branch": "right"}).json["child"]
    rows = [
        ("GET node/{left}/kv/key/k", None, b"root"),
        ("GET node/{right}/kv/key/k", None, b"root"),
        ("POST node/{left}/kv/key/k", b"left", b""),
        ("DELETE node/{right}/kv/key/k", None, b""),
        ("POST node/{right}/kv/key/only", b"right", b""),
        ("GET node/{left}/kv/key/k", None, b"left"),
        ("GET node/{right}/kv/key/k", None, 404),
        ("HEAD node/{right}/kv/key/k", None, 404),
        ("GET node/{right}/kv/keys", None, ["only"]),
        ("GET node/{left}/kv/keys", None, ["k"]),
        ("GET node/{r}/kv/key/k", None, b"root"),
        ("POST node/{right}/commit", {}, 200),
        ("POST node/{right}/newversion", {"uuid": MINE}, {"child": MINE}),
        ("GET node/{m}/kv/keys", None, ["only"]),  # a key that was removed stays so
        ("POST node/{m}/kv/key/k", b"again", b""),
        ("GET node/{m}/kv/key/k", None, b"again"),
        ("GET node/{right}/kv/key/k", None, 404),
    ]
    hold(server, rows, r=locked, left=left, right=right, m=MINE)


def test_unversioned_instances_are_one_for_all_versions(server, root):
    server.instance(root, "keyvalue", "flat", versioned=False)
    server.instance(root, "roi", "area", versioned=False)
    server.post(f"node/{root}/commit", {})
    server.post(f"node/{root}/newversion", {"uuid": MINE})
    hold(
        server,
        [
            ("POST node/{r}/flat/key/k", b"v", b""),  # locked versions are no matter
            ("GET node/{m}/flat/key/k", None, b"v"),
            ("DELETE node/{m}/flat/key/k", None, b""),
            ("GET node/{r}/flat/key/k", None, 404),
            ("POST node/{m}/area/roi", b"[[0,0,0,1]]", b""),
            ("GET node/{r}/area/roi", None, [[0, 0, 0, 1]]),
        ],
        r=root, m=MINE,
    )  # fmt: skip


def test_deleted_names_can_be_used_again_at_once(server, root):
    server.post(f"node/{root}/kv/key/k", b"old")
    for _ in range(3):
        assert server.ask("DELETE", f"repo/{root}/kv?imsure=true").status == 200
        assert "kv" not in json.loads(server.get(f"repo/{root}/info").body)["DataInstances"]
        server.instance(root, "keyvalue", "kv")
        assert server.get(f"node/{root}/kv/keys").json == []
        server.post(f"node/{root}/kv/key/k", b"old")
