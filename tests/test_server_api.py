"""Requests of the server as a whole: keys, texts and statuses as DVID's clients know them."""

import gzip
import json
import re
import time

import pytest
from serving import serving

from diced.server.api_server import go_duration

TYPES = {
    "uint8blk", "uint16blk", "uint32blk", "uint64blk", "float32blk", "rgba8blk", "labelblk",
    "keyvalue", "roi", "imagetile", "labelgraph",
}  # fmt: skip
INFO = {
    "Cores", "Maximum Cores", "Datastore Version", "DVID Version", "Storage backend", "Server time",
    "Server uptime", "RPC Address", "Host", "Note", "TOML location", "Max Open Files",
}  # fmt: skip


def test_help_lists_all_requests_and_types(server):
    for path in ("help", "help/"):
        reply = server.get(path)
        assert reply.headers["content-type"].startswith("text/html")
        for text in ("/api/repos/info", "/api/server/info", "/api/help/keyvalue"):
            assert text in reply.text


@pytest.mark.parametrize("name", sorted(TYPES))
def test_help_of_a_type_names_its_requests(server, name):
    reply = server.get(f"help/{name}")
    assert reply.headers["content-type"].startswith("text/plain")
    assert "/api URL" in reply.text or "<api URL>/node/<UUID>/<data name>/" in reply.text
    assert name in reply.text


def test_help_of_an_unknown_type_is_400(server):
    assert "nonsense" in server.refused("GET", "help/nonsense")


def test_load_is_an_object_of_whole_numbers(server):
    server.repo()
    server.get("repos/info")
    found = server.get("load").json
    assert set(found) == {
        "file bytes read", "file bytes written", "key bytes read", "key bytes written",
        "value bytes read", "value bytes written", "GET requests", "PUT requests",
        "handlers active", "goroutines", "active CGo writes", "pending log messages",
    }  # fmt: skip
    assert all(type(each) is int for each in found.values())
    assert found["GET requests"] >= 1
    assert found["PUT requests"] >= 1
    assert found["file bytes read"] > 0
    assert found["file bytes written"] > 0


def test_heartbeat_and_latencies_by_user(server):
    assert server.get("heartbeat").text == "OK"
    assert server.get("heartbeat?u=ann&app=x").text == "OK"
    server.get("repos/info?u=bob")
    server.get("repos/info?u=carl&interactive=false")
    found = server.get("user-latencies").json
    assert set(found) == {"ann", "bob"}
    fields = {"User", "LastPing", "LastLatency", "MinLatency", "MaxLatency"}
    assert set(found["bob"]) == fields
    assert 0 < found["bob"]["MinLatency"] <= found["bob"]["MaxLatency"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", found["bob"]["LastPing"])
    assert server.get("user-latencies?u=bob").json["User"] == "bob"
    server.refused("GET", "user-latencies?u=nobody")


def test_info_is_an_object_of_text(server):
    found = server.get("server/info").json
    assert set(found) == INFO
    assert all(type(each) is str for each in found.values())
    assert int(found["Cores"]) >= 1
    assert int(found["Max Open Files"]) > 0


def test_what_the_configuration_says_is_told():
    text = '[server]\nnote = "ours"\n'
    options = {
        "note": "ours", "public_name": "fly.lab", "config_path": "/etc/x.toml", "config_text": text,
        "port": 8123, "also": (("localhost", 8001),),
    }  # fmt: skip
    with serving("memory://", **options) as server:
        assert server.get("server/note").text == "ours"
        assert server.get("server/config").text == text
        info = server.get("server/info").json
        assert info["Note"] == "ours"
        assert info["Host"] == "fly.lab:8123"
        assert info["RPC Address"] == "localhost:8001"
        assert info["TOML location"] == "/etc/x.toml"


def test_types_in_use_and_all_types(server):
    every = server.get("server/compiled-types").json
    assert set(every) >= TYPES
    assert every["uint8blk"] == "github.com/janelia-flyem/dvid/datatype/imageblk/uint8.go"
    assert every["keyvalue"] == "github.com/janelia-flyem/dvid/datatype/keyvalue"
    uuid = server.repo()
    server.instance(uuid, "grayscale8", "gray")
    server.instance(uuid, "roi", "mask")
    found = server.get("server/types").json
    assert set(found) >= {"uint8blk", "roi"}
    assert found["roi"] == every["roi"]


def test_groupcache_tells_numbers(server):
    assert set(server.get("server/groupcache").json.values()) == {0}


def test_a_token_is_not_told_where_none_is_needed(server):
    server.refused("GET", "server/token")


@pytest.mark.parametrize("body", [{"throttle": 3}, {"throttle": "3"}, {"throttle": "3", "gc": 400}])
def test_settings_are_text_or_numbers(server, body):
    assert "set to 3" in server.post("server/settings", body).text
    assert server.app.site.throttle.most == 3


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", {"throttle": "many"}, {"throttle": 0}, {"throttle": -1}, {"throttle": 2**63},
     {"throttle": 1.5}, {"throttle": True}, {"throttle": None}, {"speed": 9}],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(server, body):
    server.refused("POST", "server/settings", body)
    assert server.app.site.throttle.most == 1


def test_what_is_read_anew_on_demand(server):
    for name in ("reload-auth", "reload-blocklist", "reload-metadata"):
        assert server.post(f"server/{name}").status == 200


def test_storage_is_measured_beside(server, caplog):
    uuid = server.repo("measured")
    assert "log" in server.get("storage").text
    end = time.monotonic() + 30
    while "measured" not in caplog.text and time.monotonic() < end:
        time.sleep(0.01)
    assert uuid in caplog.text


def test_the_interface_of_old(server):
    assert server.get("/interface/version").text == "v1\n"
    text = server.get("/interface").text
    assert text.startswith("#%RAML")
    assert "\n/api/repos/info:\n  get:\n" in text


@pytest.mark.parametrize("path", ["nothing", "server/nothing", "server", "repo", "", "node/x"])
def test_what_is_nowhere_is_404(server, path):
    assert server.ask("GET", f"/api/{path}").status == 404


def test_without_the_page_the_rest_is_404():
    with serving("memory://", page=False) as server:
        for path in ("/", "/page/main.js", "/repos/info", "/interfaces"):
            assert server.ask("GET", path).status == 404
        server.get("/interface/version")


def test_other_methods_of_what_is_there_are_400(server):
    for method, path in [("POST", "server/info"), ("GET", "server/settings"), ("PUT", "repos")]:
        server.refused(method, path)


def test_head_is_as_get_without_the_body(server):
    reply = server.ask("HEAD", "server/info")
    assert reply.status == 200
    assert reply.body == b""
    assert int(reply.headers["content-length"]) > 100


def test_other_pages_may_ask_unless_told_otherwise():
    origin = {"Origin": "https://viewer.example.org:8080"}
    with serving("memory://") as server:
        assert (
            server.get("repos/info", headers=origin).headers["access-control-allow-origin"] == "*"
        )
        reply = server.ask(
            "OPTIONS", "repos/info",
            headers={**origin, "Access-Control-Request-Headers": "authorization, range"},
        )  # fmt: skip
        assert reply.status == 200
        assert reply.headers["access-control-allow-headers"] == "authorization, range"
        assert "DELETE" in reply.headers["access-control-allow-methods"]
    for cors, allowed in [
        (("example.org",), True), (("https://viewer.example.org:8080",), True), ((), False),
        (("ample.org",), False), (("viewer.example.org",), True), (("example.com",), False),
    ]:  # fmt: skip
        with serving("memory://", cors=cors) as server:
            headers = server.get("repos/info", headers=origin).headers
            found = headers.get("access-control-allow-origin")
            assert found == (origin["Origin"] if allowed else None), cors


def test_text_is_compressed_for_who_takes_it(server):
    plain = server.get("openapi.json", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = server.get("openapi.json", headers={"Accept-Encoding": "gzip"}, decode=False)
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 5


def test_bodies_may_be_compressed(server):
    body = gzip.compress(json.dumps({"alias": "packed"}).encode())
    server.post("repos", body, headers={"Content-Encoding": "gzip"})
    (found,) = server.get("repos/info").json.values()
    assert found["Alias"] == "packed"


def test_times_are_spelt_as_go_does():
    for seconds, text in [
        (0.0, "0ms"), (0.0125, "12.5ms"), (1, "1s"), (59.9996, "1m0s"), (61.5, "1m1.5s"),
        (3600, "1h0m0s"), (90061.25, "25h1m1.25s"),
    ]:  # fmt: skip
        assert go_duration(seconds) == text
