"""The fake Google Cloud Storage server goes wrong as ordered, and counts what it was asked."""

import gc
import io
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

import fake_gcs
import pytest
import urllib3
from fake_gcs.raw import Raw
from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from urllib3.exceptions import ProtocolError, ReadTimeoutError

TESTS = Path(__file__).resolve().parent
QUICK = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05)
ALPHABET = b"abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def pool():
    with urllib3.PoolManager(maxsize=16) as pool:
        yield pool


@pytest.fixture
def raw(gcs, pool):
    gcs.clear()  # which an outside server does not know
    return Raw(gcs, pool)


@pytest.fixture
def bucket(gcs, raw):
    client = storage.Client(project="diced")
    yield client.bucket(gcs.bucket)
    client.close()


def status(raw, name, data=b"x"):
    """Return the status of a put, 0 without an answer."""
    try:
        return raw.put(name, data).status
    except ProtocolError:
        return 0


# Faults


def test_lost_has_its_effect_and_no_answer(gcs, raw):
    gcs.fail(1, how="lost", method="POST")
    with pytest.raises(ProtocolError):
        raw.put("a", b"x")
    assert raw.get("a").data == b"x"
    gcs.fail(1, how="lost", operation="delete")
    with pytest.raises(ProtocolError):
        raw.delete("a")
    assert gcs.keys() == []
    assert [entry.status for entry in gcs.log()] == [0, 200, 0]


def test_reset_has_no_effect(gcs, raw):
    gcs.fail(2, how="reset")
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            raw.put("a", b"x")
        assert isinstance(caught.value.args[1], ConnectionResetError)
    assert gcs.keys() == []
    assert raw.put("a", b"x").status == 200


def test_hang_never_answers(gcs, raw):
    gcs.fail(1, how="hang")
    with pytest.raises(ReadTimeoutError):
        raw.pool.request("GET", gcs.endpoint + raw.path("a"), timeout=0.1, retries=False)
    assert raw.stat("a").status == 404


def test_idle_connections_are_closed(gcs):
    address = urlsplit(gcs.endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(b"GET /storage/v1/b/none HTTP/1.1\r\n\r\n")
        assert b" 404 " in connection.recv(65536)
        gcs.disconnect()
        assert connection.recv(1) == b""


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=5-99999"}])
def test_cut_ends_a_body_early(gcs, raw, headers):
    data = os.urandom(200_000)
    raw.put("a", data)
    gcs.fail(1, how="cut", operation="get")
    assert raw.stat("a").status == 200
    with pytest.raises(ProtocolError) as caught:
        raw.get("a", headers)
    assert isinstance(caught.value.args[1], IncompleteRead)
    assert gcs.log()[-1].sent < len(raw.get("a", headers).data)
    assert raw.get("a").data == data


@pytest.mark.parametrize("code", [401, 403, 408, 429, 500, 502, 503])
def test_statuses_have_no_effect(gcs, raw, code):
    gcs.fail(1, how=code)
    answer = raw.put("a", b"x")
    assert answer.status == answer.json()["error"]["code"] == code
    assert gcs.keys() == []


def test_retry_after_comes_now_and_then(gcs, raw):
    gcs.fail(60, how=503)
    answers = {raw.stat("a").headers.get("Retry-After") for _ in range(60)}
    assert answers == {None, "1"}


def test_slow_is_slow(gcs, raw):
    gcs.fail(1, how="slow", delay=0.05)
    assert [raw.put("a", b"x").status for _ in range(2)] == [200, 200]
    first, second = gcs.log()
    assert first.end - first.start >= 0.05
    assert first.end <= second.start


def test_only_matching_requests_fail(gcs, raw):
    gcs.fail(1, how=503, path="^b/", method="POST", after=1)
    assert status(raw, "a/b/") == 200
    assert raw.get("b/1").status == 404
    assert [status(raw, f"b/{number}") for number in range(3)] == [200, 503, 200]
    with pytest.raises(ValueError, match="broken"):
        gcs.fail(1, how="broken")


def test_faults_repeat_with_their_seed(gcs, raw):
    def story(seed):
        gcs.faults(seed, lost=0.1, reset=0.1, e429=0.1, e503=0.1)
        found = [status(raw, f"{seed}-{number}") for number in range(100)]
        gcs.faults()
        return found

    first = story(1)
    assert set(first) == {0, 200, 429, 503}
    assert story(1) == first
    assert story(2) != first
    assert {status(raw, "calm") for _ in range(50)} == {200}
    with pytest.raises(ValueError, match="rates"):
        gcs.faults(1, lost=0.6, reset=0.6)


def test_the_client_takes_its_own_write_for_a_conflict(gcs, bucket):
    gcs.fail(1, how="lost", operation="insert")
    with pytest.raises(PreconditionFailed):
        bucket.blob("a").upload_from_string(b"mine", if_generation_match=0, retry=QUICK)
    assert bucket.blob("a").download_as_bytes() == b"mine"


@pytest.mark.parametrize("how", ["lost", "reset", 503])
def test_a_resumable_upload_survives_its_chunks(gcs, bucket, how):
    data = os.urandom(700_000)
    gcs.fail(1, how=how, method="PUT", after=1)
    blob = bucket.blob("a", chunk_size=1 << 18)
    blob.upload_from_file(io.BytesIO(data), retry=QUICK)
    assert bucket.blob("a").download_as_bytes() == data


# The client drops the connection of a download it tries again without closing it.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_client_that_retries_gets_through(gcs, bucket):
    rates = {"lost": 0.05, "reset": 0.05, "e429": 0.05, "e503": 0.05, "e500": 0.05, "cut": 0.05}
    gcs.faults(7, **rates)
    for number in range(40):
        data = b"%d" % number * 1000
        bucket.blob(f"{number:02}").upload_from_string(data, retry=QUICK)
        assert bucket.blob(f"{number:02}").download_as_bytes(retry=QUICK) == data
    assert gcs.count()["insert"] > 40
    assert gcs.keys() == [f"{number:02}" for number in range(40)]
    gc.collect()


# The log


def test_the_log_tells_what_was_asked(gcs, raw):
    before = time.monotonic()
    raw.put("k", b"12345", ifGenerationMatch=0)
    raw.get("k", {"Range": "bytes=1-2"})
    raw.stat("k")
    raw.names(prefix="k")
    raw("PATCH", raw.path("k"), json.dumps({"metadata": {"a": "b"}}))
    raw("POST", raw.path("k") + "/rewriteTo/b/" + raw.bucket + "/o/l")
    sources = {"sourceObjects": [{"name": "k"}, {"name": "l"}]}
    raw("POST", raw.path("m") + "/compose", json.dumps(sources))
    raw.delete("none")
    raw("GET", f"/storage/v1/b/{raw.bucket}")
    log = gcs.log()
    assert [(entry.method, entry.operation, entry.key, entry.status) for entry in log] == [
        ("POST", "insert", "k", 200),
        ("GET", "get", "k", 206),
        ("GET", "stat", "k", 200),
        ("GET", "list", "k", 200),
        ("PATCH", "patch", "k", 200),
        ("POST", "rewrite", "l", 200),
        ("POST", "compose", "m", 200),
        ("DELETE", "delete", "none", 404),
        ("GET", "bucket", raw.bucket, 200),
    ]
    assert (log[0].received, log[1].sent) == (5, 2)
    times = [before, *(moment for entry in log for moment in entry[:2]), time.monotonic()]
    assert times == sorted(times)
    assert gcs.count() == {entry.operation: 1 for entry in log}
    assert gcs.depth() == 9
    gcs.clear()
    assert (gcs.log(), gcs.count(), gcs.depth()) == ([], {}, 0)


def test_concurrent_requests_overlap(gcs, raw):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(raw.stat, "abcdefgh"))  # the connections are open now
        gcs.latency(0.2)
        gcs.clear()
        raw.put("a", b"x")
        list(threads.map(raw.stat, "abcdefgh"))
        raw.delete("a")
    assert gcs.count() == {"insert": 1, "stat": 8, "delete": 1}
    assert gcs.depth() == 3
    assert all(entry.end - entry.start >= 0.2 for entry in gcs.log())


def test_depth_is_the_longest_chain_that_does_not_overlap():
    from fake_gcs.plan import depth

    assert depth([]) == 0
    assert depth([(0, 9), (1, 2), (3, 4), (3.5, 6), (4, 5)]) == 3
    assert depth([(0, 2), (1, 3), (2, 4)]) == 2


def test_a_dropped_bucket_is_no_longer_counted(gcs, raw):
    raw.put("a", b"x")
    name = raw.bucket = gcs.new_bucket()
    assert raw.put("a", b"x").status == 200
    gcs.drop_bucket(name)
    gcs.fail(1, how=503)
    assert raw.stat("a").status == 404
    assert gcs.count() == {"insert": 2}


# Options


def test_pages_and_fields(gcs, raw):
    for name in "abcde":
        raw.put(name, b"")
    names, page = raw.names(maxResults=2)
    assert names == ["a", "b"]
    names, page = raw.names(maxResults=2, pageToken=page["nextPageToken"])
    assert names == ["c", "d"]
    fields = "items(name,generation),nextPageToken"
    names, page = raw.names(maxResults=2, pageToken=page["nextPageToken"], fields=fields)
    assert set(page) == {"items"} and set(page["items"][0]) == {"name", "generation"}
    assert names == ["e"]
    assert raw.names(fields="items/name")[1] == {"items": [{"name": name} for name in "abcde"]}
    token = raw.names(delimiter="b", maxResults=1)[1]["nextPageToken"]
    assert raw.names(delimiter="b", maxResults=1, pageToken=token)[1]["prefixes"] == ["b"]
    assert raw("GET", f"/storage/v1/b/{raw.bucket}/o", pageToken="*").status == 400


def test_strict_arguments(gcs, raw):
    raw.put("a", b"x")
    sources = {"sourceObjects": [{"name": "a"}] * 33}
    assert raw("POST", raw.path("b") + "/compose", json.dumps(sources)).status == 400
    sources["sourceObjects"] = [{"name": "a", "objectPreconditions": {"ifGenerationMatch": "1"}}]
    assert raw("POST", raw.path("b") + "/compose", json.dumps(sources)).status == 412
    assert raw.put("x" * 1025, b"").status == 400
    assert raw.put("b", b"", ifGenerationMatch="many").status == 400
    assert raw.put("b", b"", {"x-goog-hash": "crc32c=AAAAAQ=="}).status == 400
    assert raw.stat("a", ifGenerationNotMatch=raw.stat("a").json()["generation"]).status == 304
    assert raw.stat("none", ifGenerationMatch=5).status == 404
    assert raw.delete("none", ifGenerationMatch=5).status == 404
    assert raw.put("none", b"", ifGenerationMatch=5).status == 412
    assert raw.stat("a", generation=5).status == 404
    assert raw("PATCH", raw.path("a"), b"[]").status == 400
    assert raw("POST", raw.path("b") + "/compose", b"{").status == 400
    assert raw("GET", "/storage/v2/b").status == 404
    assert gcs.keys() == ["a"]


def test_updates_of_a_name_are_limited(gcs, raw):
    gcs.limit(30)
    assert [status(raw, name) for name in "aab"] == [200, 429, 200]
    assert raw.delete("a").status == 429
    gcs.limit(0)
    assert status(raw, "a") == 200


@pytest.mark.parametrize(
    ("access", "token", "reads", "writes"),
    [
        ("open", None, 200, 200),
        ("public", None, 200, 401),
        ("public", "viewer", 200, 403),
        ("public", "owner", 200, 200),
        ("private", None, 401, 401),
        ("private", "unknown", 401, 401),
        ("private", "viewer", 200, 403),
        ("private", "owner", 200, 200),
    ],
)
def test_access(gcs, pool, access, token, reads, writes):
    tokens = {"owner": "write", "viewer": "read"}
    name = gcs.new_bucket(access=access, tokens=tokens)
    raw, owner = Raw(gcs, pool, token), Raw(gcs, pool, "owner" if access != "open" else None)
    raw.bucket = owner.bucket = name
    assert owner.put("a", b"x").status == 200
    assert raw.get("a").status == raw.stat("a").status == reads
    assert raw("GET", f"/storage/v1/b/{name}/o").status == reads
    assert raw.put("b", b"x").status == writes
    assert raw("POST", raw.path("a") + f"/rewriteTo/b/{name}/o/c").status in (reads, writes)
    assert raw.delete("a").status == (204 if writes == 200 else writes)
    left = {"b", "c"} if writes == 200 else {"a"}
    assert set(owner.names()[0]) == left
    gcs.drop_bucket(name)


# The process


def test_a_stopped_server_is_gone():
    with fake_gcs.start() as server:
        pid = server._order("ping")
        assert server.environ() == {"STORAGE_EMULATOR_HOST": server.endpoint}
        assert server.keys() == []
    with pytest.raises(ProcessLookupError):  # not even a zombie
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        fake_gcs.Server(server.endpoint, server.bucket).clear()
    server.stop()


def test_a_server_ends_with_its_parent():
    code = "import fake_gcs, os; print(fake_gcs.start().endpoint, flush=True); os.abort()"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler=0", "-c", code], cwd=TESTS, stdout=subprocess.PIPE
    )
    assert done.returncode < 0
    server = fake_gcs.Server(done.stdout.decode().strip(), "fake-bucket")
    for _ in range(500):
        try:
            server.clear()
        except (ConnectionError, TimeoutError):
            break
        time.sleep(0.01)
    else:
        pytest.fail("the server outlives its parent")


def test_it_runs_as_a_module():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_gcs", "--port", "0", "--bucket", "some"],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
    )
    try:
        endpoint = process.stdout.readline().decode().strip()
        assert fake_gcs.Server(endpoint, "some").keys() == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
