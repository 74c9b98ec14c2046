"""What neuclease asks of repos, nodes, voxels, keyvalues and ROIs, and how it reads the answers.

`Neuclease` sends what its modules of these names send, with the same library; every function here
stands for the one of that name there. Axes are ZYX on this side, as it has them.
"""

import getpass
import io
import json
import tarfile

import numpy as np
import pytest
import requests
from PIL import Image
from serving import serving

FIRST, LAST = " ", chr(ord("~") + 1)  # its range of "all visible keys"


class Neuclease:
    """Its sessions: ``u``, ``app`` and, if there is one, ``admintoken`` in every query."""

    def __init__(self, url, token=None):
        self.api = f"{url}/api"
        self.session = requests.Session()
        self.session.params = {"u": getpass.getuser(), "app": "neuclease"}
        if token:
            self.session.params["admintoken"] = token

    def ask(self, method, path, **more):
        reply = self.session.request(method, f"{self.api}/{path}", timeout=60, **more)
        if not reply.ok:  # its errors end with what the server says
            raise requests.HTTPError(
                f"{reply.status_code} for {reply.url}\n{reply.content[:10_000].decode()}",
                response=reply,
            )
        return reply

    def fetch_json(self, path, **more):
        return self.ask("GET", path, **more).json()

    # server, repo

    def server_info(self):
        return self.fetch_json("server/info")

    def create_repo(self, alias, description):
        body = {"alias": alias, "description": description}
        return self.ask("POST", "repos", json=body).json()["root"]

    def repo_info(self, uuid):
        return self.fetch_json(f"repo/{uuid}/info")

    def expand_uuid(self, uuid):
        nodes = self.repo_info(uuid)["DAG"]["Nodes"]
        (found,) = (each for each in nodes if each.startswith(uuid) or uuid.startswith(each))
        return found

    def repo_instances(self, uuid, *typenames):
        bases = [each["Base"] for each in self.repo_info(uuid)["DataInstances"].values()]
        return {
            each["Name"]: each["TypeName"]
            for each in bases
            if not typenames or each["TypeName"] in typenames
        }

    def create_instance(self, uuid, name, typename, versioned=True, compression=None, tags=(),
                        **settings):  # fmt: skip
        body = {"dataname": name, "typename": typename}
        body |= {} if versioned else {"versioned": "false"}
        body |= {"Compression": compression} if compression else {}
        body |= {"Tags": ",".join(tags)} if tags else {}
        self.ask("POST", f"repo/{uuid}/instance", json={**body, **settings})

    def create_voxel_instance(self, uuid, name, typename, background=None, **more):
        more |= {
            "BlockSize": "64,64,64", "VoxelSize": "8.0,8.0,8.0", "VoxelUnits": "nanometers",
        }  # fmt: skip
        more |= {} if background is None else {"Background": str(background)}
        self.create_instance(uuid, name, typename, **more)

    def dag(self, uuid=None):
        """Return the nodes by UUID, and the children of each; Children are VersionIDs."""
        if uuid is None:
            (uuid,) = self.fetch_json("repos/info")
        nodes = self.repo_info(uuid)["DAG"]["Nodes"]
        by_number = {each["VersionID"]: each for each in nodes.values()}
        children = {
            each["UUID"]: [by_number[n]["UUID"] for n in each["Children"]]
            for each in nodes.values()
        }
        return nodes, children

    def branch_nodes(self, uuid=None, branch=""):
        """The UUIDs of a branch, every one behind its parents."""
        nodes, children = self.dag(uuid)
        waiting = {each: sum(each in found for found in children.values()) for each in nodes}
        order, ready = [], [each for each, count in waiting.items() if not count]
        while ready:
            order.append(ready.pop(0))
            for each in children[order[-1]]:
                waiting[each] -= 1
                ready += [] if waiting[each] else [each]
        assert len(order) == len(nodes)
        return [each for each in order if nodes[each]["Branch"] == branch]

    def find_master(self, uuid=None):
        return self.branch_nodes(uuid)[-1]

    def find_parent(self, uuid):
        uuid = self.expand_uuid(uuid)
        return next(each for each, found in self.dag(uuid)[1].items() if uuid in found)

    def is_locked(self, uuid):
        return self.repo_info(uuid)["DAG"]["Nodes"][self.expand_uuid(uuid)]["Locked"]

    # node

    def node(self, method, uuid, word, **more):
        return self.ask(method, f"node/{uuid}/{word}", **more)

    def post_commit(self, uuid, note, log=()):
        body = {"note": note, **({"log": list(log)} if log else {})}
        return self.node("POST", uuid, "commit", json=body).json()["committed"]

    def post_child(self, uuid, word, note, custom_uuid=None, **body):
        body |= {"note": note, **({"uuid": custom_uuid} if custom_uuid else {})}
        return self.node("POST", uuid, word, json=body).json()["child"]

    # voxels

    def raw(self, method, uuid, name, start, shape, data=None, **params):
        size, offset = ("_".join(map(str, each[::-1])) for each in (shape, start))
        path = f"{name}/raw/0_1_2/{size}/{offset}"
        return self.node(method, uuid, path, data=data, params=params)

    def fetch_raw(self, uuid, name, box, dtype=np.uint8, **params):
        box = np.asarray(box)
        shape = box[1] - box[0]
        found = np.frombuffer(self.raw("GET", uuid, name, box[0], shape, **params).content, dtype)
        return found.reshape(shape)

    def post_raw(self, uuid, name, start, volume, **params):
        self.raw("POST", uuid, name, start, volume.shape, bytes(volume), mutate="true", **params)

    def fetch_subvolblocks(self, uuid, name, box):
        """Blocks of 64^3, each a JPEG; what lies outside of the box is cut away."""
        box = np.asarray(box)
        whole = np.array([box[0] // 64 * 64, -(-box[1] // 64) * 64])
        size, offset = ("_".join(map(str, each[::-1])) for each in (whole[1] - whole[0], whole[0]))
        body = self.node("GET", uuid, f"{name}/subvolblocks/{size}/{offset}").content
        out, at = np.zeros(whole[1] - whole[0], np.uint8), 0
        while at < len(body):
            x, y, z, length = np.frombuffer(body[at : at + 16], np.int32)
            low = 64 * np.array([z, y, x]) - whole[0]
            assert (low >= 0).all() and (low < out.shape).all()
            assert at + 16 + length <= len(body)
            picture = Image.open(io.BytesIO(body[at + 16 : at + 16 + length]))
            out[tuple(slice(a, a + 64) for a in low)] = np.array(picture).reshape(64, 64, 64)
            at += 16 + length
        return out[tuple(slice(a, b) for a, b in zip(*(box - whole[0]), strict=True))]

    def volume_box(self, uuid, name):
        found = self.fetch_json(f"node/{uuid}/{name}/info")["Extended"]
        box = np.array((found["MinPoint"], found["MaxPoint"]))
        if box[0] is None or box[1] is None:
            return [[0, 0, 0], [0, 0, 0]]
        box[1] += 1
        return box[:, ::-1].tolist()

    def post_extents(self, uuid, name, box):
        low, high = np.asarray(box)[:, ::-1]
        body = {"MinPoint": low.tolist(), "MaxPoint": (high - 1).tolist()}
        self.node("POST", uuid, f"{name}/extents", json=body)

    # keyvalue

    def keyrangevalues(self, uuid, name, form, first=FIRST, last=LAST, check="false"):
        path = f"{name}/keyrangevalues/{first}/{last}"
        return self._parse(
            self.node("GET", uuid, path, params={form: "true", "check": check}), form
        )

    def keyvalues(self, uuid, name, keys, form="protobuf"):
        path = f"{name}/keyvalues"
        if form == "protobuf":
            body = b"".join(message(1, each.encode()) for each in keys)
            return self._parse(self.node("GET", uuid, path, data=body), form)
        params = {form: "true"} | ({"check": "false"} if form == "json" else {})
        return self._parse(self.node("GET", uuid, path, json=list(keys), params=params), form)

    def _parse(self, reply, form):
        if form == "json":
            return reply.json()
        if form == "protobuf":
            items = (dict(fields(each)) for _, each in fields(reply.content))
            return {each[1].decode(): each.get(2, b"") for each in items}
        with tarfile.TarFile("keyvalues.tar", fileobj=io.BytesIO(reply.content)) as tar:
            return {each.name: tar.extractfile(each).read() for each in tar}

    def post_keyvalues(self, uuid, name, values):
        body = b"".join(
            message(1, message(1, key.encode()) + message(2, value))
            for key, value in values.items()
        )
        self.node("POST", uuid, f"{name}/keyvalues", data=body)

    def extend_list_value(self, uuid, name, key, items):
        """Add to a JSON list; the instance and the key are made where they are not there."""
        try:
            self.fetch_json(f"node/{uuid}/{name}/info")
        except requests.HTTPError as error:
            if "invalid data instance name" not in str(error):
                raise
            self.create_instance(uuid, name, "keyvalue")
        try:
            known = self.fetch_json(f"node/{uuid}/{name}/key/{key}")
        except requests.HTTPError as error:
            if error.response.status_code != 404:
                raise
            known = []
        self.node("POST", uuid, f"{name}/key/{key}", json=sorted({*known, *items}))


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(number, data):
    """A field of protobuf that holds bytes; an empty one is left out, as its library does."""
    return varint(8 * number + 2) + varint(len(data)) + data if data else b""


def fields(data):
    """Yield (number, bytes) of a message."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value

    while at < len(data):
        tag, length = number(), number()
        assert tag & 7 == 2 and at + length <= len(data)
        yield tag >> 3, data[at : at + length]
        at += length


@pytest.fixture
def client(server):
    client = Neuclease(server.url)
    with client.session:
        yield client


@pytest.fixture
def uuid(client):
    return client.create_repo("neuclease", "a test")


def test_server_and_repo(client, uuid):
    info = client.server_info()
    assert {"Cores", "DVID Version", "Datastore Version", "Server uptime"} <= set(info)
    client.ask("POST", "server/reload-metadata")
    assert set(client.fetch_json("repos/info")) == {uuid}
    assert client.repo_info(uuid[:4])["Alias"] == "neuclease"
    assert client.expand_uuid(uuid[:4]) == uuid
    client.ask("POST", f"repo/{uuid}/info", json={"alias": "new", "description": "text"})
    client.ask("POST", f"repo/{uuid}/log", json={"log": ["line"]})
    assert client.fetch_json(f"repo/{uuid}/log")["log"][0].endswith("  line")
    client.create_voxel_instance(uuid, "em", "uint8blk", background=0, tags=["type=image", "a=b"])
    client.create_instance(uuid, "notes", "keyvalue", versioned=False, compression="none")
    client.create_instance(uuid, "brain", "roi", BlockSize="32,32,32")
    found = client.repo_instances(uuid)
    assert found.items() >= {"em": "uint8blk", "notes": "keyvalue", "brain": "roi"}.items()
    assert client.repo_instances(uuid, "roi") == {"brain": "roi"}
    base = client.fetch_json(f"node/{uuid}/em/info")["Base"]
    assert base["Tags"] == {"type": "image", "a": "b"}
    assert not client.fetch_json(f"node/{uuid}/notes/info")["Base"]["Versioned"]
    with pytest.raises(requests.HTTPError, match=r"no array|exists already"):
        client.create_instance(uuid, "em", "roi")


def test_nodes_and_branches(client, uuid):
    client.node("POST", uuid, "note", json={"note": "seen"})
    assert client.fetch_json(f"node/{uuid}/note")["note"] == "seen"
    client.node("POST", uuid, "log", json={"log": ["one", "two"]})
    assert [each[-3:] for each in client.fetch_json(f"node/{uuid}/log")["log"]] == ["one", "two"]
    assert client.fetch_json(f"node/{uuid}/commit")["Locked"] is False
    with pytest.raises(requests.HTTPError, match="can't branch an unlocked node"):
        client.post_child(uuid, "newversion", "early")
    assert client.post_commit(uuid[:6], "done", ["three"]) == uuid
    assert client.fetch_json(f"node/{uuid}/commit")["Locked"] is True
    second = client.post_child(uuid, "newversion", "second")
    side = client.post_child(uuid, "branch", "aside", branch="side")
    own = client.post_child(uuid, "branch", "", "f" * 32, branch="own")
    assert own == "f" * 32
    client.post_commit(second, "")
    third = client.post_child(second, "newversion", "third", "e" * 32)
    assert third == "e" * 32
    tag = client.node("POST", second, "tag", json={"tag": "v1.0", "note": ""}).json()["child"]
    assert client.branch_nodes(uuid) == client.branch_nodes() == [uuid, second, third]
    assert client.find_master(side) == client.find_master() == third
    assert client.branch_nodes(uuid, "side") == [side]
    assert client.branch_nodes(uuid, "tag-v1.0") == [tag]
    assert client.find_parent(third[:7]) == second and client.find_parent(side) == uuid
    assert [client.is_locked(each) for each in (uuid, second, third, tag)] == [
        True, True, False, True,
    ]  # fmt: skip
    found = client.fetch_json(f"repo/{uuid}/branch-versions/master")
    assert found == [third, second, uuid]


def test_blobs_and_tags(client, uuid):
    client.create_instance(uuid, "notes", "keyvalue", tags=["type=meshes"])
    reply = client.node("POST", uuid, "notes/blobstore", json={"a": [1]}).json()
    found = client.fetch_json(f"node/{uuid}/notes/blobstore/{reply['reference']}")
    assert found == {"a": [1]}
    reply = client.node("POST", uuid, "notes/blobstore", data=b"\0\1").json()
    path = f"notes/blobstore/{reply['reference']}"
    assert client.node("GET", uuid, path).content == b"\0\1"
    client.node("POST", uuid, "notes/tags", json={"more": "1"}, params={})
    base = client.fetch_json(f"node/{uuid}/notes/info")["Base"]
    assert base["Tags"] == {"type": "meshes", "more": "1"}
    client.node("POST", uuid, "notes/tags", json={"one": "1"}, params={"replace": "true"})
    assert client.fetch_json(f"node/{uuid}/notes/info")["Base"]["Tags"] == {"one": "1"}


@pytest.mark.parametrize(("typename", "dtype"), [
    ("uint8blk", "uint8"), ("uint16blk", "uint16"), ("uint32blk", "uint32"),
    ("uint64blk", "uint64"), ("float32blk", "float32"), ("labelblk", "uint64"),
])  # fmt: skip
def test_voxels(client, uuid, typename, dtype):
    client.create_voxel_instance(uuid, "em", typename)
    assert client.volume_box(uuid, "em") == [[0, 0, 0], [0, 0, 0]]
    volume = np.random.default_rng(1).integers(0, 200, (64, 128, 192)).astype(dtype)
    client.post_raw(uuid, "em", (0, 64, 128), volume)
    assert client.volume_box(uuid, "em") == [[0, 64, 128], [64, 192, 320]]
    box = [(3, 70, 130), (20, 90, 300)]
    found = client.fetch_raw(uuid, "em", box, dtype, throttle="true")
    assert np.array_equal(found, volume[3:20, 6:26, 2:172])
    client.post_raw(uuid, "em", (0, 64, 128), volume[::-1].copy(), throttle="true")
    assert np.array_equal(client.fetch_raw(uuid, "em", box, dtype), volume[::-1][3:20, 6:26, 2:172])
    client.node("POST", uuid, "em/resolution", json=[4.0, 8.0, 16.0])
    info = client.fetch_json(f"node/{uuid}/em/info")
    assert info["Extended"]["VoxelSize"] == [4.0, 8.0, 16.0]
    assert info["Base"]["TypeName"] == typename
    client.post_extents(uuid, "em", [[-5, 0, 10], [100, 200, 400]])
    assert client.volume_box(uuid, "em") == [[-5, 0, 10], [100, 200, 400]]
    with pytest.raises(requests.HTTPError, match="expected"):
        client.raw("POST", uuid, "em", (0, 0, 0), (64, 64, 64), b"short")


def test_a_busy_server_says_503(server, client, uuid):
    client.create_voxel_instance(uuid, "em", "uint8blk")
    with server.app.site.throttle.slot():
        with pytest.raises(requests.HTTPError, match="throttled operations") as caught:
            client.fetch_raw(uuid, "em", [(0, 0, 0), (1, 1, 1)], throttle="true")
        assert caught.value.response.status_code == 503
        assert not client.fetch_raw(uuid, "em", [(0, 0, 0), (1, 1, 1)]).any()


def test_scales_are_instances_and_levels(server, client, uuid):
    client.create_voxel_instance(uuid, "em", "uint8blk")
    client.post_raw(uuid, "em", (0, 0, 0), np.full((64, 64, 128), 7, np.uint8))
    server.store.open_repo(uuid=uuid)["em"].update_pyramid(1)
    for name, params in (("em_1", {}), ("em", {"scale": 1})):
        found = client.fetch_raw(uuid, name, [(0, 0, 0), (32, 32, 64)], **params)
        assert (found == 7).all()


def test_blocks_as_jpeg(client, uuid):
    client.create_voxel_instance(uuid, "em", "uint8blk", compression="jpeg")
    z, y, x = np.ogrid[:128, :128, :64]
    volume = ((z + y + x) // 2 % 200).astype(np.uint8)
    client.post_raw(uuid, "em", (0, 0, 0), volume)
    found = client.fetch_subvolblocks(uuid, "em", [(10, 3, 5), (100, 70, 60)])
    assert np.abs(found.astype(int) - volume[10:100, 3:70, 5:60]).mean() < 3
    assert np.array_equal(found, client.fetch_raw(uuid, "em", [(10, 3, 5), (100, 70, 60)]))
    assert not client.fetch_subvolblocks(uuid, "em", [(200, 0, 0), (210, 10, 10)]).any()


def test_keys_and_values(client, uuid):
    client.create_instance(uuid, "notes", "keyvalue")
    values = {str(n): json.dumps({"body ID": n, "status": "Traced" * n}).encode()
              for n in range(100, 110)}  # fmt: skip
    client.post_keyvalues(uuid, "notes", values)
    client.node("POST", uuid, "notes/key/empty", data=b"")
    client.node("POST", uuid, "notes/key/~odd key", json=[1], params={"replace": "true"})
    everything = {**values, "empty": b"", "~odd key": b"[1]"}
    assert client.fetch_json(f"node/{uuid}/notes/keys") == list(everything)
    assert client.fetch_json(f"node/{uuid}/notes/keyrange/{FIRST}/{LAST}") == list(everything)
    assert client.fetch_json(f"node/{uuid}/notes/keyrange/0/105") == list(values)[:6]
    for key, status in (("100", 200), ("none", 404)):
        reply = client.session.head(f"{client.api}/node/{uuid}/notes/key/{key}")
        assert reply.status_code == status
    assert client.node("GET", uuid, "notes/key/~odd key").json() == [1]
    for form in ("protobuf", "tar"):
        assert client.keyrangevalues(uuid, "notes", form) == everything
        form = "jsontar" if form == "tar" else form
        found = client.keyvalues(uuid, "notes", ["109", "none", "100"], form)
        assert found == {"109": values["109"], "none": b"", "100": values["100"]}
    parsed = {key: json.loads(value) if value else {} for key, value in everything.items()}
    for check in ("true", "false"):
        assert client.keyrangevalues(uuid, "notes", "json", check=check) == parsed
    assert client.keyrangevalues(uuid, "notes", "protobuf", "0", "{").keys() == {*values, "empty"}
    found = client.keyvalues(uuid, "notes", ["101", "none"], "json")
    assert found == {"101": parsed["101"], "none": {}}
    assert client.keyvalues(uuid, "notes", []) == client.keyvalues(uuid, "notes", [], "json") == {}
    client.node("DELETE", uuid, "notes/key/100")
    with pytest.raises(requests.HTTPError) as caught:
        client.node("GET", uuid, "notes/key/100")
    assert caught.value.response.status_code == 404
    mine = client.fetch_json(f"node/{uuid}/notes/mutations", params={"userid": getpass.getuser()})
    assert (mine[-1]["Action"], mine[-1]["Key"]) == ("delete", "100")
    assert len(mine) == 13


def test_lists_are_extended(client, uuid):
    for items in (["a"], ["b", "a"]):
        client.extend_list_value(uuid, ".meta", "restrictions", items)
        client.extend_list_value(uuid, "made", "list", items)
    for path in (".meta/key/restrictions", "made/key/list"):
        assert client.fetch_json(f"node/{uuid}/{path}") == ["a", "b"]
    with pytest.raises(requests.HTTPError, match="could not find UUID"):
        client.extend_list_value("0000", "made", "list", ["a"])


def test_regions(client, uuid):
    client.create_instance(uuid, "brain", "roi")
    assert client.fetch_json(f"node/{uuid}/brain/roi") == []
    ranges = [[0, 0, 0, 5], [0, 1, -3, 2], [7, 7, 7, 7]]
    client.node("POST", uuid, "brain/roi", data=json.dumps(ranges))
    found = np.asarray(client.fetch_json(f"node/{uuid}/brain/roi"), np.int32)
    assert found.tolist() == ranges
    assert (found[:, 3] + 1 - found[:, 2]).sum() == 13  # fetch_roi_size
    raw = client.node("GET", uuid, "brain/roi").content  # format "raw", to be posted elsewhere
    client.create_instance(uuid, "copy", "roi")
    client.node("POST", uuid, "copy/roi", data=raw)
    assert client.node("GET", uuid, "copy/roi").content == raw


def test_the_admin_token(tmp_path):
    with serving(tmp_path / "store", admin_token="sesame", mode="readonly") as server:
        plain, admin = Neuclease(server.url), Neuclease(server.url, "sesame")
        with plain.session, admin.session:
            with pytest.raises(requests.HTTPError, match="read-only"):
                plain.create_repo("a", "b")
            uuid = admin.create_repo("a", "b")
            admin.create_instance(uuid, "notes", "keyvalue")
            admin.post_commit(uuid, "done")
            admin.node("POST", uuid, "note", json={"note": "late"})
            assert plain.fetch_json(f"node/{uuid}/note")["note"] == "late"
            # What a locked version holds stays, whoever asks; DVID lets an admin change it.
            with pytest.raises(requests.HTTPError, match="locked"):
                admin.node("POST", uuid, "notes/key/k", data=b"v")
            with pytest.raises(requests.HTTPError, match="admin token"):
                plain.ask("GET", "server/config")
            admin.ask("GET", "server/config")
