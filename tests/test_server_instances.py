"""Requests of data instances of any type: creating, describing, tags, blobs."""

import base64
import secrets
import threading

import pytest
from serving import serving

from diced import DicedStore
from diced._fnv import fnv128
from diced.server import blobstore

HEADERS = ["TypeName", "TypeURL", "TypeVersion", "DataUUID", "Name", "RepoUUID", "Compression"]
RESERVED = ["log", "branch", "note", "commit", "newversion", "status", "tag", "blobstore"]
HEADERS += ["Checksum", "Syncs", "Versioned", "KVStore", "LogStore", "Tags"]


@pytest.fixture
def uuid(server):
    """An open version."""
    return server.repo()


def base(server, uuid, name):
    return server.get(f"node/{uuid}/{name}/info").json["Base"]


def instances(server, uuid):
    return server.get(f"repo/{uuid}/info").json["DataInstances"]


class TestCreating:
    def test_it_is_described(self, server, uuid):
        reply = server.instance(uuid[:9], "keyvalue", "kv", Tags="a=b, c=d")
        assert reply.json == {"result": f"Added kv [keyvalue] to node {uuid}"}
        found = server.get(f"node/{uuid}/kv/info").json
        assert list(found["Base"]) == HEADERS
        own = found["Base"]
        assert (own["TypeName"], own["Name"], own["RepoUUID"]) == ("keyvalue", "kv", uuid)
        assert own["TypeURL"].endswith("/datatype/keyvalue")
        assert (own["TypeVersion"], own["Versioned"]) == ("0.2", True)
        assert own["Checksum"] == "No checksum"
        assert (own["Syncs"], own["Tags"]) == ([], {"a": "b", "c": "d"})
        assert len(own["DataUUID"]) == 32
        assert instances(server, uuid)["kv"] == found

    def test_images(self, server, uuid):
        server.instance(
            uuid, "uint8blk", "gray", BlockSize="32,32,32", VoxelSize="4,4,40", Checksum="crc32"
        )
        found = server.get(f"node/{uuid}/gray/info").json
        assert found["Base"]["Checksum"] == "CRC32 checksum"
        assert found["Extended"]["BlockSize"] == [32, 32, 32]
        assert found["Extended"]["VoxelSize"] == [4, 4, 40]
        assert found["Extended"]["MaxPoint"] is None
        server.post(f"node/{uuid}/gray/raw/0_1_2/32_32_32/0_32_0", bytes(32**3))
        for found in (server.get(f"node/{uuid}/gray/info").json, instances(server, uuid)["gray"]):
            assert found["Extended"]["MinPoint"] == [0, 32, 0]
            assert found["Extended"]["MaxPoint"] == [31, 63, 31]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("grayscale8", "uint8blk"), ("labels64", "labelblk"), ("labels32", "uint32blk"),
            ("rgba8", "rgba8blk"),
        ],
    )  # fmt: skip
    def test_names_of_2014(self, server, uuid, old, new):
        fields = {"TypeName": old, "DataName": "d", "Versioned": "1"}
        said = server.post(f"repo/{uuid}/instance", fields).json["result"]
        assert said == f"Added d [{new}] to node {uuid}"
        assert base(server, uuid, "d")["TypeName"] == new

    @pytest.mark.parametrize(
        ("given", "versioned"),
        [(True, True), ("true", True), ("1", True), (False, False), ("false", False), ("0", False)],
    )
    def test_versioned(self, server, uuid, given, versioned):
        server.instance(uuid, "keyvalue", "kv", versioned=given)
        assert base(server, uuid, "kv")["Versioned"] is versioned

    @pytest.mark.parametrize(
        "fields",
        [
            {}, {"typename": "keyvalue"}, {"dataname": "x"}, {"typename": "", "dataname": "x"},
            {"typename": "nothing", "dataname": "x"}, {"typename": "labelmap", "dataname": "x"},
            {"typename": 5, "dataname": "x"}, {"typename": ["keyvalue"], "dataname": {}},
            {"typename": "keyvalue", "dataname": "a/b"}, {"typename": "keyvalue", "dataname": ".."},
            {"typename": "keyvalue", "dataname": "a\x01"}, {"typename": "keyvalue", "dataname": ""},
            {"typename": "keyvalue", "dataname": "\ud800"},
            {"typename": "keyvalue", "dataname": "x" * 2000},
            {"typename": "keyvalue", "dataname": "x", "versioned": "perhaps"},
            {"typename": "keyvalue", "dataname": "x", "checksum": "md5"},
            {"typename": "keyvalue", "dataname": "x", "Tags": "a=\ud800"},
            {"typename": "uint8blk", "dataname": "x", "BlockSize": "0,1,-1"},
            {"typename": "uint8blk", "dataname": "x", "BlockSize": "9" * 30},
            {"typename": "../../x", "dataname": "x"},
        ]
        + [
            {"typename": "keyvalue", "dataname": name}
            for name in RESERVED
        ],
    )  # fmt: skip
    def test_what_is_refused(self, server, uuid, fields):
        server.refused("POST", f"repo/{uuid}/instance", fields)
        assert set(instances(server, uuid)) == {".files", ".meta"}

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a":' * 5000])
    def test_what_is_no_description(self, server, uuid, body):
        server.refused("POST", f"repo/{uuid}/instance", body)

    def test_a_name_is_taken_once(self, server, uuid):
        server.instance(uuid, "keyvalue", "kv")
        body = {"typename": "uint8blk", "dataname": "kv"}
        assert "exists" in server.refused("POST", f"repo/{uuid}/instance", body)
        server.post(f"node/{uuid}/commit", {"note": ""})
        side = server.post(f"node/{uuid}/branch", {"branch": "side"}).json["child"]
        main = server.post(f"node/{uuid}/newversion").json["child"]
        server.instance(side, "keyvalue", "later")
        body = {"typename": "keyvalue", "dataname": "later"}
        assert "exists" in server.refused("POST", f"repo/{main}/instance", body)
        assert base(server, side, "later")["RepoUUID"] == side
        assert instances(server, main)["later"]["Base"]["RepoUUID"] == side
        said = server.refused("GET", f"node/{main}/later/info")
        assert "invalid data instance name" in said

    @pytest.mark.parametrize("versioned", [True, False])
    def test_locked_versions_get_none(self, server, uuid, versioned):
        server.post(f"node/{uuid}/commit", {"note": ""})
        body = {"typename": "keyvalue", "dataname": "kv", "versioned": versioned}
        said = server.refused("POST", f"repo/{uuid}/instance", body)
        assert f"Cannot do post on locked node {uuid}" in said

    def test_at_once(self, disk_server):
        uuid = disk_server.repo()
        found = []

        def create():
            body = {"typename": "keyvalue", "dataname": "kv"}
            found.append(disk_server.ask("POST", f"repo/{uuid}/instance", body).status)

        threads = [threading.Thread(target=create) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert sorted(found) == [200] + [400] * 5


class TestDescribing:
    def test_what_python_made(self, server, uuid):
        repo = server.store.open_repo(uuid=uuid)
        repo.create_array("em")
        repo.create_array("seg", islabel3D=True)
        repo.create_array("half", "float16", dims=2)
        found = {name: each["Base"]["TypeName"] for name, each in instances(server, uuid).items()}
        assert found["em"] == "uint8blk"
        assert found["seg"] == "labelblk"
        assert set(found) == {"em", "seg", "half", ".files", ".meta"}

    def test_extents_are_of_the_newest_version(self, disk_server):
        uuid = disk_server.repo()
        with DicedStore(disk_server.store.url) as store:
            em = store.open_repo(uuid=uuid).create_array("em")
            for z in (0, 64, 640):
                em[z : z + 64, :64, :64] = 7
                shown = instances(disk_server, uuid)["em"]["Extended"]
                assert shown["MaxPoint"] == [63, 63, z + 63]
                assert (
                    disk_server.get("repos/info").json[uuid]["DataInstances"]["em"]["Extended"]
                    == shown
                )
        disk_server.post(f"node/{uuid}/commit", {"note": ""})
        child = disk_server.post(f"node/{uuid}/newversion").json["child"]
        side = disk_server.post(f"node/{uuid}/branch", {"branch": "b"}).json["child"]
        disk_server.post(f"node/{side}/em/raw/0_1_2/64_64_64/6400_0_0", bytes(64**3))
        assert instances(disk_server, uuid)["em"]["Extended"]["MaxPoint"] == [63, 63, 703]
        disk_server.post(f"node/{child}/em/raw/0_1_2/64_64_64/640_0_0", bytes(64**3))
        assert instances(disk_server, uuid)["em"]["Extended"]["MaxPoint"] == [703, 63, 703]
        at = disk_server.get(f"node/{uuid}/em/info").json["Extended"]["MaxPoint"]
        assert at == [63, 63, 703]
        at = disk_server.get(f"node/{side}/em/info").json["Extended"]["MaxPoint"]
        assert at == [6463, 63, 703]

    def test_unknown_names_and_words(self, server, uuid):
        said = server.refused("GET", f"node/{uuid}/nothing/info")
        assert "invalid data instance name" in said
        server.instance(uuid, "uint8blk", "gray")
        said = server.refused("GET", f"node/{uuid}/gray/nothing/at/all")
        assert said.startswith(f"Bad API call (/api/node/{uuid}/gray/nothing/at/all) for data ")
        assert said.rstrip().endswith("/api/help/uint8blk")

    def test_tags(self, server, uuid):
        server.instance(uuid, "keyvalue", "kv")
        assert server.get(f"node/{uuid}/kv/tags").json == {"Tags": {}}
        server.post(f"node/{uuid}/kv/tags", {"a": "1", "b": "2"})
        server.post(f"node/{uuid}/kv/tags", {"b": "3"})
        assert server.get(f"node/{uuid}/kv/tags").json == {"Tags": {"a": "1", "b": "3"}}
        server.post(f"node/{uuid}/kv/tags?replace=true", {"c": "4"})
        assert base(server, uuid, "kv")["Tags"] == {"c": "4"}
        for body in (b"", b"[]", {"a": 1}, b'{"a": "\\ud800"}'):
            server.refused("POST", f"node/{uuid}/kv/tags", body)
        assert base(server, uuid, "kv")["Tags"] == {"c": "4"}

    def test_tags_at_once(self, disk_server):
        uuid = disk_server.repo()
        disk_server.instance(uuid, "keyvalue", "kv")

        def tag(i):
            disk_server.post(f"node/{uuid}/kv/tags", {f"t{i}": "x"})

        threads = [threading.Thread(target=tag, args=(i,)) for i in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert set(base(disk_server, uuid, "kv")["Tags"]) == {f"t{i}" for i in range(8)}


class TestBlobs:
    def test_there_and_back(self, server, uuid):
        server.instance(uuid, "keyvalue", "kv")
        for data in (b"", b"hello", secrets.token_bytes(70_000)):
            reference = server.post(f"node/{uuid}/kv/blobstore", data).json["reference"]
            assert reference == base64.urlsafe_b64encode(fnv128(data)).decode()
            assert reference.endswith("==")
            reply = server.get(f"node/{uuid}/kv/blobstore/{reference}")
            assert reply.body == data
            assert reply.headers["content-type"] == "application/octet-stream"
            again = server.post(f"node/{uuid}/.files/blobstore", data).json["reference"]
            assert again == reference

    def test_any_version_and_locked_ones(self, server, uuid):
        server.instance(uuid, "uint8blk", "gray")
        server.post(f"node/{uuid}/commit", {"note": ""})
        reference = server.post(f"node/{uuid}/gray/blobstore", b"late").json["reference"]
        child = server.post(f"node/{uuid}/newversion").json["child"]
        assert server.get(f"node/{child}/gray/blobstore/{reference}").body == b"late"

    def test_what_is_not_there(self, server, uuid):
        absent = base64.urlsafe_b64encode(bytes(16)).decode()
        server.refused("GET", f"node/{uuid}/.files/blobstore/{absent}", status=404)
        server.post(f"node/{uuid}/.files/blobstore", b"x")
        server.refused("GET", f"node/{uuid}/.files/blobstore/{absent}", status=404)
        for wrong in ("x", "!!!!", absent[:-1], "%C3%A4" * 8, "A" * 24, absent + absent, "%00"):
            server.refused("GET", f"node/{uuid}/.files/blobstore/{wrong}")

    def test_other_repos_have_their_own(self, server, uuid):
        reference = server.post(f"node/{uuid}/.files/blobstore", b"mine").json["reference"]
        other = server.repo("other")
        server.refused("GET", f"node/{other}/.files/blobstore/{reference}", status=404)

    def test_it_is_no_instance(self, server, uuid):
        server.post(f"node/{uuid}/.files/blobstore", b"mine")
        assert blobstore.NAME not in instances(server, uuid)
        server.refused("GET", f"node/{uuid}/{blobstore.NAME}/info")
        body = {"typename": "keyvalue", "dataname": blobstore.NAME}
        server.refused("POST", f"repo/{uuid}/instance", body)

    def test_they_last(self, tmp_path):
        options = {"store": {"durability": "process"}}
        with serving(tmp_path / "s", **options) as one, serving(tmp_path / "s", **options) as other:
            uuid = one.repo()
            reference = one.post(f"node/{uuid}/.meta/blobstore", b"lasting").json["reference"]
            assert other.get(f"node/{uuid}/.meta/blobstore/{reference}").body == b"lasting"
        with serving(tmp_path / "s", **options) as server:
            assert server.get(f"node/{uuid}/.meta/blobstore/{reference}").body == b"lasting"

    def test_at_once(self, disk_server):
        uuid = disk_server.repo()
        found = []

        def put(i):
            path = f"node/{uuid}/.files/blobstore"
            found.append(disk_server.post(path, b"same").json["reference"])
            disk_server.post(path, b"other %d" % i)

        threads = [threading.Thread(target=put, args=(i,)) for i in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(found) == 6
        assert len(set(found)) == 1

    def test_nothing_takes_the_place_of_another(self, server, uuid, monkeypatch):
        monkeypatch.setattr(blobstore, "fnv128", lambda _data: bytes(16))
        reference = server.post(f"node/{uuid}/.files/blobstore", b"first").json["reference"]
        server.refused("POST", f"node/{uuid}/.files/blobstore", b"second")
        assert server.get(f"node/{uuid}/.files/blobstore/{reference}").body == b"first"
