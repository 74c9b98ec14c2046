"""Requests as they were documented in 2013 and 2014, when a repo was called a dataset."""

import http.client
import io
import json

import numpy as np
import pytest
from PIL import Image
from serving import serving

from diced.server.api_2014 import today

WHOLE = "a" * 32


@pytest.fixture
def uuid(server):
    return server.post("datasets/new").json["Root"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/api/about", "/api/server/info"),
        ("/api/datasets/info", "/api/repos/info"),
        ("/api/datasets/info/", "/api/repos/info"),
        ("/api/datasets/all", "/api/repos/info"),
        ("/api/dataset/ab/info", "/api/repo/ab/info"),
        ("/api/dataset/ab/gray/help", "/api/node/ab/gray/help"),
        ("/api/dataset/ab/info/raw/xy", "/api/node/ab/info/raw/xy"),
        ("/api/dataset/ab/kv/key/a//b/", "/api/node/ab/kv/key/a//b/"),
        ("/api/dataset/ab/new/raw/xy/1_1", "/api/node/ab/new/raw/xy/1_1"),
        ("/api/v1/node/ab/gray/info", "/api/node/ab/gray/info"),
        ("/api/v1/dataset/ab/gray/info", "/api/node/ab/gray/info"),
    ],
)
def test_what_is_called_otherwise_today(old, new):
    assert today(old) == new


@pytest.mark.parametrize(
    "path",
    [
        "/api/repos/info", "/api/node/ab/gray/info", "/api/datasets/new", "/api/datasets/list",
        "/api/dataset", "/api/dataset/", "/api/dataset/ab", "/api/dataset/ab/", "/api/dataset//x",
        "/api/dataset/ab/new/uint8blk/gray", "/api/dataset/ab/versioned/roi/r", "/api/v1",
        "/api/dataset/ab/unversioned/roi/r/", "/api/node/ab/dataset/x", "/api/node/ab/kv/about",
    ],
)  # fmt: skip
def test_what_is_still_called_so(path):
    assert today(path) == path


def test_datasets(server):
    assert server.get("datasets/list").json == {"DatasetsUUID": []}
    made = server.post("datasets/new").json
    assert made["Root"] == made["root"] and len(made["Root"]) == 32
    other = server.post("datasets/new", {"alias": "x", "description": "d", "root": WHOLE}).json
    assert other["Root"] == WHOLE
    assert sorted(server.get("datasets/list").json["DatasetsUUID"]) == sorted([made["Root"], WHOLE])
    found = server.get("datasets/info").json
    assert found == server.get("repos/info").json and found[WHOLE]["Alias"] == "x"
    assert server.get("dataset/aaaa/info").json == server.get("repo/aaaa/info").json
    server.refused("POST", "datasets/new", {"root": WHOLE}, status=400)
    server.refused("POST", "datasets/new", b"[", status=400)
    server.refused("GET", "datasets/new")
    server.refused("GET", "datasets/nothing", status=404)
    assert "DVID Version" in server.get("about").json


def test_new_data(server, uuid):
    settings = {"BlockSize": "32,32,32", "VoxelSize": "4,4,40"}
    said = server.post(f"dataset/{uuid[:9]}/new/grayscale8/gray", settings).json["result"]
    assert said == f"Added gray [uint8blk] to node {uuid}"
    found = server.get(f"dataset/{uuid}/gray/info").json
    assert found["Base"]["TypeName"] == "uint8blk"
    assert found["Extended"]["BlockSize"] == [32] * 3
    assert found["Extended"]["VoxelSize"] == [4, 4, 40]
    inner = {"Properties": settings, "voxelsize": "8,8,8", "TypeName": "roi", "dataname": "other"}
    server.post(f"dataset/{uuid}/new/labels64/labels", inner)
    found = server.get(f"node/{uuid}/labels/info").json
    assert found["Base"]["TypeName"] == "labelblk"
    assert found["Extended"]["BlockSize"] == [32] * 3
    assert found["Extended"]["VoxelSize"] == [8, 8, 8]
    server.post(f"dataset/{uuid}/new/keyvalue/kv")
    assert server.get(f"node/{uuid}/kv/info").json["Base"]["Versioned"] is True
    server.post(f"dataset/{uuid}/versioned/keyvalue/kv2", {"Versioned": "false"})
    assert server.get(f"node/{uuid}/kv2/info").json["Base"]["Versioned"] is True
    server.post(f"dataset/{uuid}/unversioned/keyvalue/kv3", b"{}")
    assert server.get(f"node/{uuid}/kv3/info").json["Base"]["Versioned"] is False


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("new/grayscale8", b"{}"), ("new/nothing/x", b"{}"), ("new/roi/x", b"["),
        ("new/roi/x", b"[]"), ("new/roi/x", b'{"Properties": 5}'), ("new/roi/x", b'{"a": {}}'),
        ("new/roi/x", b'{"Properties": {"BlockSize": "0"}}'), ("new/roi/x", b"null"),
        ("new/roi/branch", b"{}"), ("versioned/roi/x", b'{"Tags": {"a": 1}}'),
        ("new/labelmap/x", b"{}"), ("new/roi/x/y", b"{}"), ("new", b"{}"), ("other/roi/x", b"{}"),
    ],
)  # fmt: skip
def test_new_data_that_is_refused(server, uuid, path, body):
    server.refused("POST", f"dataset/{uuid}/{path}", body)
    assert set(server.get(f"repo/{uuid}/info").json["DataInstances"]) == {".files", ".meta"}


def test_voxels_as_of_2013(server, uuid):
    server.post(f"dataset/{uuid}/new/grayscale8/gray", b"{}")
    values = np.arange(32**3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 32)
    base = f"node/{uuid}/gray"
    server.post(f"{base}/0_1_2/32_32_32/0_0_32", values.tobytes())
    for path in ("xy/32_20/0_5_40", "0_1/raw/32_20/0_5_40", "raw/0_1/32_20/0_5_40"):
        for before in ("", "v1/"):
            found = server.get(f"{before}{base}/{path}")
            assert found.headers["content-type"] == "image/png"
            pixels = np.asarray(Image.open(io.BytesIO(found.body)))
            np.testing.assert_array_equal(pixels, values[8, 5:25])
    assert server.get(f"dataset/{uuid}/gray/0_1_2/32_32_32/0_0_32").body == values.tobytes()
    assert server.get(f"{base}/schema").json == server.get(f"{base}/metadata").json
    assert "load" in server.get(f"dataset/{uuid}/gray/help").text
    server.refused("POST", f"{base}/schema", b"{}")
    server.post(f"dataset/{uuid}/new/keyvalue/kv", b"{}")
    server.post(f"node/{uuid}/kv/schema", b"a value")  # there it is a key
    assert server.get(f"node/{uuid}/kv/schema").body == b"a value"


def test_locking(server, uuid):
    server.post(f"dataset/{uuid}/new/keyvalue/kv", b"{}")
    server.post(f"node/{uuid}/note", {"note": "what it is"})
    assert "successful" in server.post(f"node/{uuid[:8]}/lock").text
    assert server.get(f"node/{uuid}/status").json == {"Locked": True}
    assert server.get(f"node/{uuid}/note").json == {"note": "what it is"}
    server.refused("POST", f"node/{uuid}/lock")
    server.refused("POST", f"dataset/{uuid}/new/keyvalue/kv4", b"{}")
    assert "locked node" in server.refused("POST", f"dataset/{uuid}/kv/key/a", b"x")
    child = server.post(f"node/{uuid}/newversion").json["child"]
    server.post(f"dataset/{child}/kv/key/a", b"x")


def test_rights_are_those_of_today():
    access = {
        "default": "none",
        "users": {
            "eve": {"token": "r" * 32, "rights": {"*": "read"}},
            "ann": {"token": "w" * 32, "rights": {"*": "write"}},
        },
    }
    with serving("memory://", access=access) as server:
        reader, writer = ({"authorization": f"Bearer {each * 32}"} for each in "rw")
        server.refused("POST", "datasets/new", status=401)
        server.refused("POST", "datasets/new", headers=reader, status=403)
        uuid = server.post("datasets/new", headers=writer).json["Root"]
        new = f"dataset/{uuid}/new/keyvalue/kv"
        for path in (new, f"node/{uuid}/lock", f"dataset/{uuid}/kv/key/a"):
            if path.endswith("a"):
                server.post(new, b"{}", headers=writer)
            server.refused("POST", path, b"{}", status=401)
            server.refused("POST", path, b"{}", headers=reader, status=403)
        server.refused("GET", f"dataset/{uuid}/info", status=401)
        server.refused("GET", f"dataset/{uuid}/kv/keys", status=401)
        assert server.get("datasets/list").json == {"DatasetsUUID": []}
        assert server.get("datasets/list", headers=reader).json == {"DatasetsUUID": [uuid]}


def test_a_client_of_2014(server):
    """What pydvid's users did, with nothing but http.client."""
    connection = http.client.HTTPConnection(server.netloc, timeout=30)

    def ask(method, path, body=None):
        connection.request(method, f"/api/{path}", body)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return data

    uuid = json.loads(ask("POST", "datasets/new"))["Root"]
    ask("POST", f"dataset/{uuid}/new/grayscale8/v", json.dumps({"VoxelSize": "1.0,1.0,1.0"}))
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 40), dtype=np.uint8)
    ask("POST", f"node/{uuid}/v/raw/0_1_2/40_30_20/5_6_7", values.tobytes())
    assert ask("GET", f"node/{uuid}/v/raw/0_1_2/40_30_20/5_6_7") == values.tobytes()
    ask("POST", f"dataset/{uuid}/new/keyvalue/kv", b"{}")
    ask("POST", f"node/{uuid}/kv/first", b"value")
    assert ask("GET", f"node/{uuid}/kv/first") == b"value"
    connection.close()
