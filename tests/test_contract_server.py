"""DVID's reference, row by row: transport, errors, requests of the server, modes."""

import pathlib
import re

import numpy as np
import pytest
from contract import hold
from serving import serving

URL = "github.com/janelia-flyem/dvid/datatype/"
VOXELS = "raw/0_1_2/64_64_64/0_0_0"


@pytest.fixture
def names(server):
    """A repo with an instance of each type; the names of rows."""
    uuid = server.repo()
    for typename, name in (
        ("uint8blk", "gray"), ("keyvalue", "kv"), ("roi", "region"), ("imagetile", "tiles"),
        ("labelblk", "labels"), ("labelgraph", "graph"),
    ):  # fmt: skip
        server.instance(uuid, typename, name)
    return {"u": uuid, "host": server.netloc}


# -- 1: transport --------------------------------------------------------------------------

LEVELS = {"Levels": {"0": {"Resolution": [8.0] * 3, "TileSize": [16] * 3}}}
EMPTY = [  # what changes something and tells nothing: 200, and no body
    ("POST repo/{u}/info", {"alias": "a"}, b""),
    ("POST repo/{u}/log", {"log": ["a"]}, b""),
    ("POST node/{u}/note", {"note": "a"}, b""),
    ("POST node/{u}/log", {"log": ["a"]}, b""),
    ("POST node/{u}/kv/key/k", b"v", b""),
    ("POST node/{u}/kv/keyvalues", b"\x0a\x06\x0a\x01a\x12\x01b", b""),
    ("POST node/{u}/kv/tags", {"a": "b"}, b""),
    ("DELETE node/{u}/kv/key/k", None, b""),
    ("POST node/{u}/region/roi", [[0, 0, 0, 1]], b""),
    ("DELETE node/{u}/region/roi", None, b""),
    ("POST node/{u}/gray/" + VOXELS, bytes(64**3), b""),
    ("POST node/{u}/gray/blocks/0_0_0/1", bytes(64**3), b""),
    ("POST node/{u}/gray/extents", {"MinPoint": [0, 0, 0], "MaxPoint": [9, 9, 9]}, b""),
    ("POST node/{u}/gray/resolution", [8, 8, 8], b""),
    ("POST node/{u}/tiles/metadata", LEVELS, b""),
    ("POST node/{u}/tiles/tile/xy/0/0_0_0", b"tile", b""),
]


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "x/y"])
def test_posts_that_tell_nothing_whatever_the_content_type(server, names, kind):
    hold(server, EMPTY, {"Content-Type": kind} if kind else None, **names)


ERRORS = [
    ("GET node/0000/note", None,
     (400, b"could not find UUID with partial match to 0000 (/api/node/0000/note).\n")),
    ("GET repo/0000/info", None, (400, "could not find UUID with partial match to 0000")),
    ("GET node/{u}/nothing/info", None, (400, "invalid data instance name")),
    ("POST node/{u}/nothing/key/k", b"v", (400, "invalid data instance name")),
    ("GET node/{u}/gray/nonsense", None,
     (400, 'Bad API call (/api/node/{u}/gray/nonsense) for data "gray".  See API help at'
           " http://{host}/api/help/uint8blk\n")),
    ("GET node/{u}/region/nonsense", None, (400, "/api/help/roi\n")),
    ("POST node/{u}/gray/info", b"{}", (400, "Bad API call")),
    ("GET node/{u}/kv/key/none", None, (404, b'Key "none" not found\n')),
    ("HEAD node/{u}/kv/key/none", None, (404, b"")),
    ("GET node/{u}/kv/blobstore/AAAAAAAAAAAAAAAAAAAAAA==", None, 404),
    ("GET nowhere", None, 404),
    ("GET server/nowhere", None, 404),
    ("GET node/{u}", None, 404),
    ("POST node/{u}/kv/key/r", b"0123", b""),
    # Neither 405 nor 409 nor 201 nor 204 is ever said.
    ("PUT node/{u}/note", b"{}", 400),
    ("DELETE node/{u}/note", None, 400),
    ("PUT node/{u}/gray/" + VOXELS, b"", 400),
    ("POST repo/{u}/instance", '{{"typename": "roi", "dataname": "kv"}}', 400),
]  # fmt: skip


def test_errors(server, names):
    hold(server, ERRORS, **names)
    ranges = {"bytes=1-2": (206, b"12"), "bytes=4-": 416}
    for text, wanted in ranges.items():
        hold(server, [("GET node/{u}/kv/key/r", None, wanted)], {"Range": text}, **names)
    for root in ("ambiguous1", "ambiguous2"):
        server.post("repos", {"root": root})
    hold(server, [("GET node/ambi/note", None, (400, "more than one UUID matches ambi"))])


def test_more_than_3_gib_is_400(server, names):
    hold(
        server,
        [
            ("GET node/{u}/gray/raw/0_1_2/2048_2048_769/0_0_0", None, (400, "payload")),
            ("POST node/{u}/gray/raw/0_1_2/2048_2048_769/0_0_0", b"x", 400),
            ("GET node/{u}/region/mask/0_1_2/2048_2048_769/0_0_0", None, 400),
            ("GET node/{u}/gray/blocks/0_0_0/99999", None, 400),
            ("GET node/{u}/gray/subvolblocks/6400_6400_6400/0_0_0", None, 400),
        ],
        **names,
    )


def test_bodies_of_gets_are_read(server, names):
    server.post(f"node/{names['u']}/kv/key/a", b"1")
    hold(server, [("GET node/{u}/kv/keyvalues?json=true", '["a"]', {"a": 1})], **names)


@pytest.mark.parametrize(
    "query", ["u=&app=", "u=ann&app=x&interactive=0", "interactive=false&admintoken=none", "u=a b"]
)
def test_what_every_request_may_have_in_its_query(server, names, query):
    for path in ("repos/info", "server/info", "load", "node/{u}/status", "node/{u}/kv/keys",
                 "node/{u}/gray/info", "node/{u}/gray/raw/0_1_2/1_1_1/0_0_0"):  # fmt: skip
        server.get(path.format(**names), query=dict(each.split("=") for each in query.split("&")))


THROTTLED = [
    "GET node/{u}/gray/raw/0_1_2/1_1_1/0_0_0", "POST node/{u}/gray/raw/0_1_2/1_1_1/0_0_0",
    "GET node/{u}/gray/isotropic/0_1_2/1_1_1/0_0_0", "GET node/{u}/gray/arb/0_0_0/8_0_0/0_8_0/8",
    "GET node/{u}/gray/subvolblocks/64_64_64/0_0_0", "GET node/{u}/kv/mutations",
    "GET node/{u}/kv/mutations-range/{u}/{u}", "GET node/{u}/labels/raw/0_1_2/1_1_1/0_0_0",
]  # fmt: skip


@pytest.mark.parametrize("word", ["on", "true"])
def test_throttled_requests(server, names, word):
    said = b"Server already running 1 throttled operations (max = 1)\n"
    one = {"POST": b"x"}
    with server.app.site.throttle.slot():
        hold(
            server,
            [(f"{each}?throttle={word}", one.get(each[:4]), (503, said)) for each in THROTTLED]
            + [(f"{each}?throttle=off", one.get(each[:4]), 200) for each in THROTTLED]
            + [("GET node/{u}/kv/keys?throttle=on", None, 200)],
            **names,
        )
        server.post("server/settings", {"throttle": "2"})
        hold(server, [(f"{THROTTLED[0]}?throttle={word}", None, 200)], **names)


def test_other_origins_and_times(server, names):
    origin = {"Origin": "http://localhost:9000"}
    assert server.get("repos/info", headers=origin).headers["access-control-allow-origin"] == "*"
    asked = {**origin, "Access-Control-Request-Method": "GET"}
    for path in ("repos/info", f"node/{names['u']}/gray/{VOXELS}"):
        reply = server.ask("OPTIONS", path, headers=asked)
        assert reply.status == 200
        for name in ("Authorization", "Range", "Content-Type"):
            assert name in reply.headers["access-control-allow-headers"]
        for method in ("GET", "POST", "DELETE", "HEAD"):
            assert method in reply.headers["access-control-allow-methods"]
        assert reply.headers["access-control-allow-origin"] == "*"
    assert "timing-allow-origin" not in server.get("repos/info").headers
    with serving("memory://", timing=True) as other:
        assert other.get("repos/info").headers["timing-allow-origin"] == "*"


def test_voxels_are_never_gzipped_nor_packed(server, names):
    body = np.arange(64**3, dtype=np.uint32).astype(np.uint8).tobytes()
    path = f"node/{names['u']}/gray/{VOXELS}"
    server.post(path, body)
    for query in ("", "?compression=lz4", "?compression=googlegzip"):
        reply = server.get(path + query, headers={"Accept-Encoding": "gzip"}, decode=False)
        assert "content-encoding" not in reply.headers
        assert reply.body == body


# -- 2: the server -------------------------------------------------------------------------

SERVER = [
    ("GET help", None, "<html"),
    ("GET help/", None, "<html"),
    ("GET help/uint8blk", None, "uint8blk"),
    ("GET help/nonsense", None, 400),
    ("GET heartbeat", None, b"OK"),
    ("GET heartbeat?u=ann", None, b"OK"),
    ("GET user-latencies?u=nobody", None, 400),
    ("GET storage", None, 200),
    ("GET server/note", None, b""),
    ("GET server/config", None, b""),
    ("GET server/token", None, 400),
    ("GET server/blobstore/AAAA", None, 404),
    ("POST server/settings", {"gc": "200", "throttle": "2"}, "set to 2"),
    ("POST server/settings", {"throttle": 1}, "set to 1"),
    ("POST server/settings", b"", 400),
    ("POST server/reload-auth", b"", 200),
    ("POST server/reload-blocklist", b"", 200),
    ("POST server/reload-metadata", b"", 200),
    ("GET /interface", None, "#%RAML"),
    ("GET /interface/version", None, b"v1\n"),
    ("GET /profiler/info", None, 404),
    ("GET /profiler/start", None, 404),
]
INFO = {
    "Cores", "Maximum Cores", "Datastore Version", "DVID Version", "Storage backend", "Server time",
    "Server uptime", "RPC Address", "Host", "Note", "TOML location", "Max Open Files",
}  # fmt: skip
COUNTS = {
    "file bytes read", "file bytes written", "key bytes read", "key bytes written",
    "value bytes read", "value bytes written", "GET requests", "PUT requests", "handlers active",
    "goroutines", "active CGo writes", "pending log messages",
}  # fmt: skip
COMPILED = {  # name: URL, version
    "uint8blk": ("imageblk/uint8.go", "0.2"), "rgba8blk": ("imageblk/rgba8.go", "0.2"),
    "uint16blk": ("imageblk/uint16.go", "0.1"), "uint32blk": ("imageblk/uint32.go", "0.1"),
    "uint64blk": ("imageblk/uint64.go", "0.1"), "float32blk": ("imageblk/float32.go", "0.1"),
    "keyvalue": ("keyvalue", "0.2"), "roi": ("roi", "0.1"), "imagetile": ("imagetile", "0.1"),
    "labelblk": ("labelblk", "0.1"), "labelgraph": ("labelgraph", "0.1"),
}  # fmt: skip
NOT_COMPILED = (
    "annotation", "googlevoxels", "labelarray", "labelmap", "labelsz", "labelvol", "multichan16",
    "neuronjson", "tarsupervoxels",
)  # fmt: skip


def test_requests_of_the_server(server):
    hold(server, SERVER)
    server.get("repos/info?u=ann")
    info, load = server.get("server/info").json, server.get("load").json
    assert set(info) == INFO and {type(each) for each in info.values()} == {str}
    assert set(load) == COUNTS and {type(each) for each in load.values()} == {int}
    found = server.get("user-latencies").json
    assert set(found) == {"ann"}
    assert set(found["ann"]) == {"User", "LastPing", "LastLatency", "MinLatency", "MaxLatency"}
    assert server.get("user-latencies?u=ann").json["User"] == "ann"


def test_data_types(server):
    every = server.get("server/compiled-types").json
    assert {name: URL + url for name, (url, _) in COMPILED.items()}.items() <= every.items()
    uuid = server.repo()
    for name, (url, version) in COMPILED.items():
        server.instance(uuid, name, name)
        base = server.get(f"node/{uuid}/{name}/info").json["Base"]
        assert (base["TypeName"], base["TypeURL"], base["TypeVersion"]) == (
            name, URL + url, version,
        )  # fmt: skip
        assert name in server.get(f"node/{uuid}/{name}/help").text
    assert set(server.get("server/types").json) == set(COMPILED)
    for name in NOT_COMPILED:
        fields = {"typename": name, "dataname": "x"}
        hold(server, [("POST repo/{u}/instance", fields, (400, name))], u=uuid)


ADMIN = [
    ("GET storage", None), ("GET server/config", None), ("POST server/reload-auth", b""),
    ("POST server/reload-blocklist", b""), ("POST server/settings", b"{}"),
]  # fmt: skip


def test_what_an_admin_does():
    with serving("memory://", admin_token="secret") as server:
        for word, status in (("", 400), ("?admintoken=", 400), ("?admintoken=secrets", 400),
                             ("?admintoken=secret", 200)):  # fmt: skip
            hold(server, [(path + word, body, status) for path, body in ADMIN])
        # Repos are made without a token, as before 2026.
        server.post("repos", {"alias": "anyone"})


# -- 4: modes ------------------------------------------------------------------------------


def test_read_only(tmp_path):
    with serving(tmp_path / "store") as server:
        uuid = server.repo()
        for typename, name in (("keyvalue", "kv"), ("roi", "region"), ("uint8blk", "gray")):
            server.instance(uuid, typename, name)
        before = server.get("repos/info").body
    text = (400, "Server in read-only mode")
    with serving(tmp_path / "store", mode="readonly") as server:
        assert server.get("server/info").json["Mode"] == "read only"
        hold(
            server,
            [
                *((each[0], each[1], text) for each in EMPTY if "/tiles/" not in each[0]),
                ("POST repos", b"{}", text),
                ("POST repo/{u}/instance", b"{}", text),
                ("POST node/{u}/commit", b"{}", text),
                ("POST node/{u}/newversion", b"", text),
                ("POST node/{u}/kv/blobstore", b"x", text),
                ("POST node/{u}/region/ptquery", b"[[0,0,0]]", [False]),
                ("GET node/{u}/kv/keys", None, []),
                ("HEAD node/{u}/kv/keys", None, 200),
                ("POST server/settings", b"{}", 200),
            ],
            u=uuid,
        )
        assert server.get("repos/info").body == before


LOCKED = [
    ("POST node/{u}/note", {"note": "x"}, (400, "Cannot do post on locked node {u}")),
    ("POST node/{u}/log", {"log": ["x"]}, (400, "Cannot do post on locked node {u}")),
    ("POST node/{u}/commit", {"note": "x"}, (400, "Cannot do post on locked node {u}")),
    ("POST node/{u}/kv/key/k", b"v",
     (400, 'Cannot do POST on endpoint "key" of locked node {u} (/api/node/{u}/kv/key/k).\n')),
    ("DELETE node/{u}/kv/key/k", None,
     (400, 'Cannot do DELETE on endpoint "key" of locked node {u}')),
    ("POST node/{u}/kv/keyvalues", b"", (400, 'endpoint "keyvalues" of locked node {u}')),
    ("POST node/{u}/kv/tags", {"a": "b"}, (400, 'endpoint "tags" of locked node {u}')),
    ("POST node/{u}/region/roi", b"[]", (400, 'endpoint "roi" of locked node {u}')),
    ("DELETE node/{u}/region/roi", None, (400, 'endpoint "roi" of locked node {u}')),
    ("POST node/{u}/gray/" + VOXELS, bytes(64**3), (400, 'endpoint "raw" of locked node {u}')),
    ("POST node/{u}/gray/extents", {}, (400, 'endpoint "extents" of locked node {u}')),
    ("POST node/{u}/gray/resolution", [8, 8, 8], (400, 'endpoint "resolution" of locked')),
    ("POST node/{u}/tiles/tile/xy/0/0_0_0", b"x", (400, 'endpoint "tile" of locked node {u}')),
    # These only ask, or lie beside the versions.
    ("POST node/{u}/region/ptquery", b"[[0,0,0]]", [False]),
    ("POST node/{u}/kv/info", b"", 200),
    ("POST node/{u}/kv/blobstore", b"x", 200),
    ("POST repo/{u}/log", {"log": ["x"]}, b""),
    ("POST repo/{u}/info", {"alias": "x"}, b""),
    ("POST node/{u}/loose/key/k", b"v", b""),
    ("POST node/{u}/loose/tags", {"a": "b"}, b""),
    ("POST node/{u}/newversion", b"", 200),
    ("POST node/{u}/branch", {"branch": "b"}, 200),
    ("POST node/{u}/tag", {"tag": "t"}, {"child": "t"}),
]  # fmt: skip


def test_locked_versions(server, names):
    server.instance(names["u"], "keyvalue", "loose", versioned="false")
    server.post(f"node/{names['u']}/commit", {"note": ""})
    hold(server, LOCKED, **names)


# -- what the documentation says -----------------------------------------------------------

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "dvid-api.md"
ROW = re.compile(r"\| ((?:[A-Z]+ )+)`([^`]+)` \| (\w+) \|")


def test_the_documented_table_is_what_is_answered(server):
    told, rejected = set(), set()
    for methods, pattern, status in ROW.findall(PAGE.read_text()):
        assert status in ("answered", "differs", "not", "ours"), (pattern, status)
        pairs = {(method, pattern) for method in methods.split()}
        if status == "not":
            rejected |= pairs
        else:
            told |= pairs
    server.get("server/info")
    site = server.app.site
    tables = [site.table, site.common, *(each.table for each in site.types())]
    answered = {
        (method, route.pattern)
        for table in tables
        for route in table.routes
        for method in route.methods
        if not route.pattern.startswith("/api/page/")
    }
    assert told <= answered, "told, but not answered"
    assert answered - rejected <= told, "answered, but not told"
