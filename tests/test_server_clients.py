"""What clients ask of repos, nodes and instances, in the order in which they ask it.

Each class plays one client: it sends what that sends and reads what that reads of the answers.
"""

import datetime
import json

import numpy as np
import pytest


class Neuclease:
    """The requests of neuclease.dvid: every one with ``u`` and ``app``, bodies as JSON."""

    def __init__(self, server):
        self.server = server
        self.query = {"u": "ada", "app": "neuclease"}

    def get(self, path):
        return self.server.get(path, query=self.query)

    def post(self, path, body=None, data=None):
        headers = {"Content-Type": "application/json"} if data is None else {}
        data = json.dumps(body).encode() if data is None else data
        return self.server.post(path, data, headers=headers, query=self.query)

    def dag(self, uuid):
        """Return {uuid: node} and the edges, read as its networkx graph is made."""
        nodes = self.get(f"repo/{uuid}/info").json["DAG"]["Nodes"].values()
        by_number = {each["VersionID"]: each for each in nodes}
        edges = {
            (each["UUID"], by_number[child]["UUID"]) for each in nodes for child in each["Children"]
        }
        assert edges == {
            (by_number[parent]["UUID"], each["UUID"])
            for each in nodes
            for parent in each["Parents"]
        }
        return {each["UUID"]: each for each in nodes}, edges

    def branch_nodes(self, uuid, branch=""):
        nodes, _ = self.dag(uuid)
        mine = [each for each in nodes.values() if each["Branch"] == branch]
        return [each["UUID"] for each in sorted(mine, key=lambda each: each["VersionID"])]


def test_neuclease(server):
    client = Neuclease(server)
    root = client.post("repos", {"alias": "test", "description": "text"}).json["root"]
    assert set(client.get("repos/info").json) == {root}
    assert client.get(f"repo/{root[:6]}/info").json["Alias"] == "test"
    client.post(f"repo/{root}/info", {"alias": "better"})
    assert client.get(f"repo/{root}/info").json["Alias"] == "better"
    client.post(f"repo/{root}/log", {"log": ["a line"]})
    assert client.get(f"repo/{root}/log").json["log"][0].endswith("  a line")

    settings = {
        "dataname": "grayscale", "typename": "uint8blk", "Compression": "lz4",
        "Tags": "type=image,from=test", "BlockSize": "64,64,64", "VoxelSize": "8.0,8.0,8.0",
        "VoxelUnits": "nanometers", "Background": 0, "MinIndex": [0, 0, 0],
    }  # fmt: skip
    client.post(f"repo/{root}/instance", settings)
    client.post(
        f"repo/{root}/instance",
        {"dataname": "flat", "typename": "keyvalue", "versioned": "false", "Tags": "type=meshes"},
    )
    info = client.get(f"node/{root}/grayscale/info").json
    assert info["Base"]["TypeName"] == "uint8blk"
    assert info["Base"]["Tags"] == {"type": "image", "from": "test"}
    assert [*info["Extended"]["BlockSize"]] == [64, 64, 64]
    found = client.get(f"repo/{root}/info").json["DataInstances"].values()
    names = {each["Base"]["Name"]: each["Base"]["TypeName"] for each in found}
    assert names["grayscale"] == "uint8blk"
    assert names["flat"] == "keyvalue"
    client.post(f"node/{root}/flat/tags", {"type": "other"})
    client.post(f"node/{root}/flat/tags?replace=true", {"only": "this"})

    client.post(f"node/{root}/note", {"note": "a note"})
    assert client.get(f"node/{root}/note").json["note"] == "a note"
    client.post(f"node/{root}/log", {"log": ["first", "second"]})
    assert len(client.get(f"node/{root}/log").json["log"]) == 2
    assert client.get(f"node/{root}/commit").json["Locked"] is False
    body = {"note": "locked", "log": ["last"]}
    assert client.post(f"node/{root}/commit", body).json["committed"] == root
    assert client.get(f"node/{root}/commit").json["Locked"] is True

    child = client.post(f"node/{root}/newversion", {"note": "next"}).json["child"]
    side = client.post(f"node/{root}/branch", {"branch": "side", "note": ""}).json["child"]
    mine = "f" * 32
    body = {"branch": "mine", "note": "", "uuid": mine}
    assert client.post(f"node/{root}/branch", body).json["child"] == mine
    tag = client.post(f"node/{root}/tag", {"tag": "v1.0", "note": "x"}).json["child"]
    assert tag == "v1.0"
    nodes, edges = client.dag(child)
    assert edges == {(root, each) for each in (child, side, mine, tag)}
    assert client.branch_nodes(root) == [root, child]
    assert client.branch_nodes(root, "side") == [side]
    assert client.branch_nodes(root, "tag-v1.0") == [tag]
    assert [uuid for uuid, each in nodes.items() if each["Locked"]] == [root, tag]
    for each in nodes.values():
        for moment in (each["Created"], each["Updated"]):
            datetime.datetime.fromisoformat(moment)

    blob = json.dumps({"a": [1, 2]}).encode()
    reference = client.post(f"node/{root}/grayscale/blobstore", data=blob).json["reference"]
    assert client.get(f"node/{child}/flat/blobstore/{reference}").json == {"a": [1, 2]}


class Libdvid:
    """The requests of libdvid: bodies are octets whatever they hold, 200 alone is well."""

    def __init__(self, server, uuid=None):
        self.server = server
        self.uuid = uuid
        assert self.request("GET", "/server/info").status == 200

    def request(self, method, path, body=b""):
        headers = {"Content-Type": "application/octet-stream", "Expect": ""}
        return self.server.ask(method, f"/api{path}", body, headers=headers)

    def node(self, method, path, body=b""):
        reply = self.request(method, f"/node/{self.uuid}{path}", body)
        assert reply.status in (200, 206), reply
        return reply

    def new_repo(self, alias, description):
        text = f'{{"alias": "{alias}", "description": "{description}"}}'
        reply = self.request("POST", "/repos", text.encode())
        assert reply.status == 200
        return reply.json["root"]

    def create(self, typename, name, block=None):
        """Create an instance unless it is there; tell whether it was created."""
        if self.request("GET", f"/node/{self.uuid}/{name}/info").status == 200:
            return False
        fields = {"typename": typename, "dataname": name}
        if block:
            fields["BlockSize"] = f"{block},{block},{block}"
        reply = self.request("POST", f"/repo/{self.uuid}/instance", json.dumps(fields).encode())
        assert reply.status == 200, reply
        return True

    def typeinfo(self, name):
        return self.node("GET", f"/{name}/info").json

    def block_size(self, name):
        (size,) = set(self.typeinfo(name)["Extended"]["BlockSize"])
        return size


def test_libdvid(server):
    service = Libdvid(server)
    uuid = service.new_repo("newrepo", "This is my new repo")
    client = Libdvid(server, uuid[:12])
    assert client.create("keyvalue", "kv")
    assert not client.create("keyvalue", "kv")
    for name, typename, block in (
        ("gray", "uint8blk", 64), ("labels", "labelblk", 32), ("wide", "uint16blk", 16),
    ):  # fmt: skip
        assert client.create(typename, name, block)
        info = client.typeinfo(name)
        assert info["Base"]["TypeName"] == typename
        assert client.block_size(name) == block
    assert client.create("roi", "region")
    assert client.create("labelgraph", "graph")
    client.node("POST", "/kv/key/a", b"\0\1")
    assert client.node("GET", "/kv/key/a").body == b"\0\1"
    assert client.node("GET", "/kv/keys").json == ["a"]
    # Its tests end so, whatever the answer.
    assert client.request("DELETE", f"/repo/{uuid}/kv?imsure=true").status == 200
    assert client.request("GET", f"/node/{uuid}/kv/info").status == 400


class Diced:
    """The requests of the DICED of old, by way of libdvid."""

    def __init__(self, server):
        self.server = server
        self.connection = Libdvid(server)

    def repos(self):
        found = self.connection.request("GET", "/repos/info").json
        return [(each["Alias"], each["Root"]) for each in found.values()]

    def open(self, uuid):
        """Read a version as it was read: its node, and the instances of its ancestry."""
        info = self.connection.request("GET", f"/repo/{uuid}/info").json
        by_number = {each["VersionID"]: each for each in info["DAG"]["Nodes"].values()}
        node = info["DAG"]["Nodes"][uuid]
        ancestry, each = set(), node
        while True:
            ancestry.add(each["UUID"])
            if not each["Parents"]:
                break
            each = by_number[each["Parents"][0]]
        bases = [each["Base"] for each in info["DataInstances"].values()]
        shown = {each["Name"]: each for each in bases if each["RepoUUID"] in ancestry}
        return node, shown


def test_diced(server):
    client = Diced(server)
    with pytest.raises(AssertionError):
        Libdvid(server, "0" * 32).node("GET", "/.meta/keys")
    root = client.connection.new_repo("fib19", "aligned")
    assert client.repos() == [("fib19", root)]
    node, shown = client.open(root)
    assert node["Locked"] is False
    connection = Libdvid(server, root)
    for name in (".meta", ".files"):
        assert shown[name]["TypeName"] == "keyvalue"
        assert not connection.create("keyvalue", name)

    for dims, block in ((3, "64,64,64"), (2, "512,512,1"), (1, "262144,1,1")):
        name = f"array{dims}"
        fields = {"typename": "uint8blk", "dataname": name, "BlockSize": block}
        reply = client.connection.request(
            "POST", f"/repo/{root}/instance", json.dumps(fields).encode()
        )
        assert reply.status == 200, reply
        data_uuid = client.open(root)[1][name]["DataUUID"]
        key = f"/.meta/key/instance:{name}:{data_uuid}"
        connection.node("POST", key, json.dumps({"numdims": dims}).encode())
        assert connection.node("GET", key).json == {"numdims": dims}
        size = connection.typeinfo(name)["Extended"]["BlockSize"]
        assert ",".join(map(str, size)) == block
    assert client.open(root)[1]["array3"]["DataUUID"] != data_uuid
    connection.node("POST", "/.meta/key/restrictions", json.dumps(["array1"]).encode())
    assert connection.node("GET", "/.meta/key/restrictions").json == ["array1"]

    block = np.arange(64**3, dtype="u1").tobytes()
    connection.node("POST", "/array3/raw/0_1_2/64_64_64/64_0_0?throttle=on", block)
    assert connection.node("GET", "/array3/raw/0_1_2/64_64_64/64_0_0").body == block
    extended = connection.typeinfo("array3")["Extended"]
    assert (extended["MinPoint"], extended["MaxPoint"]) == ([64, 0, 0], [127, 63, 63])
    connection.node("POST", "/.files/key/notes.txt", b"text")
    assert connection.node("GET", "/.files/keys/0/z").json == ["notes.txt"]
    connection.node("DELETE", "/.files/key/notes.txt")
    assert connection.node("GET", "/.files/keys/0/z").json == []

    connection.node("POST", "/commit", json.dumps({"note": "done"}).encode())
    made = [
        connection.node("POST", "/branch", json.dumps({"note": f"go {i}"}).encode()).json["child"]
        for i in range(2)
    ]
    for i, child in enumerate(made):
        node, shown = client.open(child)
        assert (node["Note"], node["Locked"]) == (f"go {i}", False)
        assert {"array1", "array2", "array3"} <= set(shown)
    later = Libdvid(server, made[0])
    assert later.create("uint8blk", "later", 64)
    assert "later" in client.open(made[0])[1]
    assert "later" not in client.open(made[1])[1]
    assert "later" not in client.open(root)[1]
    with server.store.open_repo("fib19") as repo:
        assert repo["array3"][0, 0, 64:68].tolist() == [0, 1, 2, 3]
        assert [name for name, _ in repo.list_instances()] == ["array2", "array3"]


class Console:
    """The requests of dvid-console: always with empty ``u`` and ``app``, from a page."""

    def __init__(self, server):
        self.server = server

    def ask(self, method, path, body=None):
        headers = {"Origin": "http://elsewhere", "Accept-Encoding": "gzip"}
        reply = self.server.ask(method, f"{path}?u=&app=", body, headers=headers)
        assert reply.headers["access-control-allow-origin"] == "*"
        return reply

    def get(self, path):
        reply = self.ask("GET", path)
        assert reply.status == 200, reply
        return reply.json


def test_console(server):
    client = Console(server)
    assert client.get("repos/info") == {}
    body = json.dumps({"alias": "from the page", "description": ""}).encode()
    root = client.ask("POST", "repos", body).json["root"]
    server.instance(root, "uint8blk", "gray")
    server.post(f"node/{root}/log", {"log": ["a line"]})
    server.post(f"repo/{root}/log", {"log": ["another"]})
    for _ in range(3):
        uuid = client.get(f"repo/{root}/branch-versions/master")[0]
        server.post(f"node/{uuid}/commit", {"note": "n"})
        server.post(f"node/{uuid}/newversion")
    repos = client.get("repos/info")
    repo = client.get(f"repo/{root}/info")
    assert repos == {root: repo}
    assert repo["Log"][0].partition(" ")[2].strip() == "another"
    for node in repo["DAG"]["Nodes"].values():
        for field in ("Log", "Parents", "Children"):
            assert isinstance(node[field], list)
        assert isinstance(node["VersionID"], int)
        assert node["Created"].endswith("Z")
        for line in node["Log"]:
            datetime.datetime.fromisoformat(line.split(" ")[0])
    leaf = client.get(f"repo/{root}/branch-versions/master")[0]
    assert repo["DAG"]["Nodes"][leaf]["Children"] == []
    for each in repo["DataInstances"].values():
        assert {"TypeName", "Name", "RepoUUID", "DataUUID", "Syncs"} <= set(each["Base"])
    reply = client.ask("GET", f"node/{leaf}/default_instances/key/data")
    assert reply.status in (400, 404)
    assert reply.text
    # It means to post, and gets.
    assert client.ask("GET", f"repo/{root}/instance").status in (400, 404)
    for word in ("info", "help"):
        assert server.get(f"node/{leaf}/gray/{word}").body
    for word in ("server/info", "server/compiled-types", "load"):
        assert isinstance(client.get(word), dict)


def test_neuroglancer(server):
    root = server.repo("ng", "volumes")
    server.instance(root, "uint8blk", "gray")
    server.post(f"node/{root}/gray/raw/0_1_2/64_64_64/0_0_0", bytes(64**3))
    repos = server.get("repos/info", headers={"Origin": "http://ng"}).json
    uuids = [uuid for each in repos.values() for uuid in each["DAG"]["Nodes"]]
    assert [each for each in uuids if each.startswith(root[:5])] == [root]
    (repo,) = repos.values()
    assert (repo["Alias"], repo["Description"]) == ("ng", "volumes")
    info = repo["DataInstances"]["gray"]
    assert isinstance(info["Base"]["Compression"], str)
    extended = info["Extended"]
    assert extended["Values"][0]["DataType"] == "uint8"
    assert all(size > 0 for size in extended["VoxelSize"])
    assert extended["BlockSize"] == [64, 64, 64]
    assert (extended["MinPoint"], extended["MaxPoint"]) == ([0, 0, 0], [63, 63, 63])
    assert server.get(f"node/{root[:5]}:master/gray/info").json["Extended"] == extended
