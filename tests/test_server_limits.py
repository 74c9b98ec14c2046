"""Hostile requests get their 4xx at once, and the server does not grow."""

import gzip
import json
import resource
import socket
import time
import zlib
from urllib.parse import quote

import pytest
from served import served

GROWTH = 64 * 2**20
BODY_SECONDS = 2
BIG = ("0", "-1", str(2**31), str(2**63), "9" * 40, "1e9", "nan", "", "0x10", "+", "\uff11")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A server with one repo; its UUID, and what it holds at first, to be compared at the end."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "server.toml").write_text(
        f"[server]\nbodySeconds = {BODY_SECONDS}\nheadSeconds = 2\nidleSeconds = 120\n"
        '[store]\nlocation = "store"\ndurability = "process"\n'
    )
    with served(folder / "server.toml") as server:
        server.furnish()
        yield server
        status, body = server.ask("GET", f"node/{server.uuid}/gray/raw/0_1_2/64_64_64/0_0_0")
        assert (status, body) == (200, bytes(64**3))
        code, said = server.stop()
        assert code == 0
        assert "Traceback" not in said


@pytest.fixture(autouse=True)
def bounded(hostile):
    """No test makes the server grow."""
    before = hostile.memory()
    hostile.forget_peak()
    yield
    assert hostile.memory("VmHWM") - before < GROWTH


def talk(server, data, rest=b"", pause=0.0, seconds=20.0):
    """Send bytes on a fresh connection; return the status of the answer, 0 if there is none."""
    host, port = server.netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as sock:
        try:
            sock.sendall(data)
            while rest and pause:
                time.sleep(pause)
                sock.sendall(rest[:1])
                rest = rest[1:]
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            found = sock.recv(65536)
        except ConnectionResetError:
            return 0
    return int(found.split(b" ", 2)[1]) if found else 0


def post(path, length, body=b"", *headers):
    """Return the bytes of a POST that says its body has a length."""
    head = [f"POST /api/{path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.mark.parametrize("size", BIG)
def test_sizes_without_a_meaning_are_refused_before_the_body_is_sent(hostile, size):
    uuid = hostile.uuid
    for where in (f"{size}_64_64", f"64_64_{size}", f"{size}_{size}_{size}", size):
        for name in ("gray", "seg"):
            path = f"node/{uuid}/{name}/raw/0_1_2/{quote(where, safe='')}/0_0_0"
            status, _ = hostile.ask("GET", path)
            assert 400 <= status < 500, (path, status)
            # Not a byte of it comes.
            assert 400 <= talk(hostile, post(path, 1000)) < 500, path


@pytest.mark.parametrize(
    "where",
    [
        f"{2**31 - 1}_2_1",
        f"{2**31 - 1}_{2**31 - 1}_{2**31 - 1}",
        "2048_2048_2048",
        "1_1_4294967297",
    ],
)
def test_volumes_that_are_too_large_are_refused(hostile, where):
    for form in ("raw", "isotropic", "subvolblocks"):
        status, _ = hostile.ask("GET", f"node/{hostile.uuid}/gray/{form}/0_1_2/{where}/0_0_0")
        assert 400 <= status < 500
    path = f"node/{hostile.uuid}/gray/raw/0_1_2/{where}/0_0_0"
    assert 400 <= talk(hostile, post(path, 2**31)) < 500


@pytest.mark.parametrize("offset", [str(-(2**31) - 1), str(2**31), str(2**63), "0.5", "a"])
def test_offsets_outside_of_space_are_refused(hostile, offset):
    for method in ("GET", "POST"):
        path = f"node/{hostile.uuid}/gray/raw/0_1_2/64_64_64/0_{offset}_0"
        assert 400 <= hostile.ask(method, path)[0] < 500
    assert hostile.ask("GET", f"node/{hostile.uuid}/mask/partition?batchsize={offset}")[0] < 500


@pytest.mark.parametrize("length", [0, 1, 64**3 - 1, 64**3 + 1, 2**31, 2**63])
def test_bodies_of_a_wrong_length_are_refused_before_they_come(hostile, length):
    path = f"node/{hostile.uuid}/gray/raw/0_1_2/64_64_64/0_0_0"
    assert 400 <= talk(hostile, post(path, length)) < 500


@pytest.mark.parametrize("length", ["-1", "x", "1, 2", "99999999999999999999999", "0x10", ""])
def test_lengths_without_a_meaning_are_refused(hostile, length):
    assert 400 <= talk(hostile, post("repos", length)) < 500


def test_two_lengths_are_refused(hostile):
    both = post("repos", 5, b"0\r\n\r\n", "Transfer-Encoding: chunked")
    assert talk(hostile, both) in (0, 400)
    twice = post("repos", 5, b"{}", "Content-Length: 2")
    assert 400 <= talk(hostile, twice) < 500


def test_a_body_that_never_ends_is_refused_and_cut_off(hostile):
    head = b"POST /api/repos HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    host, port = hostile.netloc.split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(head)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while sent < 2**30:
                sock.sendall(chunk)
                sent += len(chunk)
    assert sent < 2**29
    assert talk(hostile, head + chunk * 17) == 413


# -- names and paths -----------------------------------------------------------------------

NAMES = (
    "..", ".", "../../etc/passwd", "a/b", "a\nb", "a\x00b", "\x7f", "\ud800", "", "x" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_would_do_harm_are_refused(hostile, name):
    for path, body in [
        (f"repo/{hostile.uuid}/instance", {"typename": "keyvalue", "dataname": name}),
        (f"repo/{hostile.uuid}/instance", {"typename": name, "dataname": "fresh"}),
    ]:
        status, said = hostile.ask("POST", path, json.dumps(body))
        assert 400 <= status < 500, said
    if name:
        status, _ = hostile.ask("POST", "repos", json.dumps({"root": name}))
        assert 400 <= status < 500


@pytest.mark.parametrize(
    "path",
    ["../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fdiced.json", "a%00b", "%0a",
     "%ff%fe", "%", "%zz", "~", "::", ":master~99999999999999999999", "x" * 60000],
)  # fmt: skip
def test_paths_lead_nowhere_else(hostile, path):
    for form in ("/api/node/{}/status", "/api/repo/{}/info", "/page/{}", "/{}", "/view/{}",
                 "/api/help/{}", f"/api/node/{hostile.uuid}/{{}}/info"):  # fmt: skip
        request = f"GET {form.format(path)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert 400 <= talk(hostile, request) < 500, form


def test_keys_may_be_anything_and_never_are_paths(hostile):
    for key in ("../../x", "a\nb", "\x01", "%", "é" * 300, "."):
        path = f"node/{hostile.uuid}/kv/key/{quote(key, safe='')}"
        status, said = hostile.ask("POST", path, b"value")
        assert status == 200 or 400 <= status < 500
        if status == 200:
            assert hostile.ask("GET", path) == (200, b"value"), said


# -- bodies --------------------------------------------------------------------------------


def bomb(size):
    """Return gzip that holds so many zeros."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    piece = bytes(2**22)
    return b"".join([*(packer.compress(piece) for _ in range(size // 2**22)), packer.flush()])


def test_gzip_that_holds_too_much_is_refused(hostile):
    packed = bomb(2**28)
    assert len(packed) < 2**21
    gzipped = {"Content-Encoding": "gzip"}
    for path in (
        "repos", f"repo/{hostile.uuid}/instance", f"node/{hostile.uuid}/note",
        f"node/{hostile.uuid}/gray/raw/0_1_2/64_64_64/0_0_0", f"node/{hostile.uuid}/mask/roi",
        f"node/{hostile.uuid}/graph/subgraph",
    ):  # fmt: skip
        assert hostile.ask("POST", path, packed, gzipped)[0] == 413, path


@pytest.mark.parametrize(
    ("body", "encoding", "wanted"),
    [
        (b"{}", "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", 400),
        (gzip.compress(b'{"alias": "x"}', mtime=0)[:-9] + b"123456789", "gzip", 400),
        (b"", "gzip", 200),
        (b"{}", "br", 415),
        (b"{}", "gzip, gzip", 415),
        (gzip.compress(gzip.compress(bytes(10**6), mtime=0), mtime=0), "gzip", 400),
    ],
)
def test_bodies_in_bad_wrapping_are_refused(hostile, body, encoding, wanted):
    assert hostile.ask("POST", "repos", body, {"Content-Encoding": encoding})[0] == wanted


@pytest.mark.parametrize(
    "body",
    [b"[" * 500_000, b'{"a":' * 100_000, b"[[]," * 250_000, b"\xff" * 1000, b'{"alias": 1e999}',
     b'{"alias": "\\ud800"}', b"{" + b'"a":1,' * 100_000 + b'"a":1}x', b"null", b"0" * 10_000],
)  # fmt: skip
def test_json_that_is_none_is_refused(hostile, body):
    for path in (
        f"node/{hostile.uuid}/mask/roi", f"node/{hostile.uuid}/kv/tags", "server/settings",
        f"node/{hostile.uuid}/mask/ptquery",
    ):  # fmt: skip
        status, said = hostile.ask("POST", path, body)
        assert 400 <= status < 500, (path, said)


def test_slow_bodies_are_given_up(hostile):
    began = time.monotonic()
    assert talk(hostile, post("repos", 100, b'{"alias')) == 408
    assert time.monotonic() - began >= BODY_SECONDS - 0.5
    # Nor does a byte now and then help.
    assert talk(hostile, post("repos", 10_000), b" " * 100, pause=0.25) == 408


def test_slow_heads_are_given_up(hostile):
    assert talk(hostile, b"GET /api/repos/info HTTP/1.1\r\nHo") == 408
    assert talk(hostile, b"GET /api/repos/info HTTP/1.1\r\n", b"x" * 100, pause=0.25) in (0, 408)


# -- heads and connections -----------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\n\r\n",
        b"GET /api/load?" + b"a=1&" * 300_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /api/load HTTP/1.1\r\nX: " + b"a" * 10**6 + b"\r\n\r\n",
        b"GET /api/load HTTP/1.1\r\n" + b"X: a\r\n" * 10**5 + b"\r\n",
        b"G" * 10**6,
        b"\x00" * 10**5,
    ],
    ids=["path", "query", "header", "headers", "method", "nothing"],
)
def test_heads_that_go_on_are_refused(hostile, head):
    assert talk(hostile, head) in (0, 400, 414, 431)


def test_a_query_of_too_many_fields_is_refused(hostile):
    query = "&".join(f"a{n}=1" for n in range(300))
    assert hostile.ask("GET", f"load?{query}")[0] == 400
    assert hostile.ask("GET", f"load?u={'x' * 10_000}")[0] == 400


def test_trailers_that_go_on_are_refused(hostile):
    head = (
        b"POST /api/repos HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    )
    assert talk(hostile, head + b"X: " + b"a" * 10**7) in (0, 400, 408, 431)


def answer_of(sock):
    """Read the answer to a heartbeat; tell whether it is one."""
    found = b""
    while not found.endswith(b"\r\n\r\nOK") and (piece := sock.recv(4096)):
        found += piece
    return found.startswith(b"HTTP/1.1 200")


def test_thousands_of_idle_connections_are_held(hostile):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 2000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 500)), hard))
    host, port = hostile.netloc.split(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(count)]
    try:
        for each in idle[::2]:  # half of them were of use once
            each.sendall(b"GET /api/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n")
        for each in idle[::2]:
            assert answer_of(each)
        assert hostile.ask("GET", "server/info")[0] == 200
        for each in idle[::7]:
            each.sendall(b"GET /api/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer_of(each)
    finally:
        for each in idle:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
