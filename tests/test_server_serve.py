"""Starting and ending a server: as a command, as processes, beside a program; its configuration."""

import contextlib
import http.client
import json
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from served import served

from diced import DicedStore
from diced.cli import main as cli
from diced.cli import serve as command
from diced.errors import InvalidError, LocationError, UnsupportedError
from diced.server import config
from diced.server.access import Rules
from diced.server.answer import Refused
from diced.server.load import Load, Shared, Throttle


def until(what, seconds=60.0):
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
    return found


# -- one process ---------------------------------------------------------------------------


def test_a_store_is_made_served_and_left_in_order(tmp_path):
    with served(tmp_path / "new.diced", "--access-log", "--durability", "process") as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        uuid = server.repo()
        assert server.ask("GET", "server/info?u=a%20b")[0] == 200
        assert server.ask("GET", "x%0aforged")[0] == 404
        assert server.get("server/info")["Host"].endswith(server.netloc.partition(":")[2])
        code, said = server.stop()
    assert code == 0
    assert re.search(r'127\.0\.0\.1 - "POST /api/repos" 200 \d+ [\d.]+ms\n', said)
    assert '127.0.0.1 a b "GET /api/server/info" 200' in said
    assert '"GET /api/x%0Aforged" 404' in said
    with DicedStore(tmp_path / "new.diced") as store:
        assert [each for _, each in store.list_repos()] == [uuid]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_before_the_end(tmp_path, number):
    with served(tmp_path / "store", "--durability", "process") as server:
        uuid = server.repo()
        server.post(f"repo/{uuid}/instance", {"typename": "keyvalue", "dataname": "kv"})
        idle = http.client.HTTPConnection(server.netloc, timeout=60)
        server.ask("GET", "load", connection=idle)
        host, port = server.netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(
                f"POST /api/node/{uuid}/kv/key/last HTTP/1.1\r\nHost: x\r\n"
                "Expect: 100-continue\r\nContent-Length: 10\r\n\r\n".encode()
            )
            assert b"100 Continue" in sock.recv(1000)  # now it waits for the body
            sock.sendall(b"01234")
            server.process.send_signal(number)
            until(lambda: refuses(server))
            sock.sendall(b"56789")
            assert b" 200 " in sock.recv(1000)
        idle.close()
        server.process.communicate(timeout=60)
        assert server.process.returncode == 0
    with DicedStore(tmp_path / "store") as store:
        assert store.open_repo(uuid=uuid)["kv"]["last"] == b"0123456789"


def refuses(server):
    """Tell whether a server accepts no more connections."""
    host, port = server.netloc.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return True
    return False


def run(*words):
    """Run ``diced serve`` that ends by itself; return its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "diced", "serve", *map(str, words)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_said(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    code, said = run(tmp_path / "photos", "--port", "0")
    assert code == 7
    assert "neither a diced store nor empty" in said
    code, said = run(tmp_path / "photos", "--port", "0", "--workers", "2")
    assert code == 7
    assert "neither a diced store nor empty" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = run(tmp_path / "x", "--port", taken.getsockname()[1])
    assert code == 8
    assert "cannot listen at 127.0.0.1" in said
    assert not (tmp_path / "x").exists()


# -- several processes ---------------------------------------------------------------------


@pytest.fixture
def workers(tmp_path):
    """Two worker processes, and where their configuration is."""
    path = tmp_path / "server.toml"
    path.write_text(
        '[server]\nworkers = 2\n[store]\nlocation = "store"\ndurability = "process"\n'
        '[access]\ndefault = "write"\nusers.root = {token = "root-token", rights = "admin"}\n'
    )
    with served(path) as server:
        yield server, path


def test_workers_share_a_store_and_dead_ones_are_replaced(workers):
    server, _ = workers
    first = server.workers()
    assert len(first) == 2
    uuid = server.repo()
    server.post(f"repo/{uuid}/instance", {"typename": "keyvalue", "dataname": "kv"})
    for number in range(40):  # each on a connection of its own
        server.post(f"node/{uuid}/kv/key/a", str(number))
        assert server.ask("GET", f"node/{uuid}/kv/key/a") == (200, str(number).encode())
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(server.workers()) == 2 and first[0] not in server.workers())
    for number in range(40):
        assert server.ask("GET", f"node/{uuid}/kv/key/a") == (200, b"39"), number
    second = server.workers()
    code, said = server.stop()
    assert code == 0
    assert f"worker {first[0]} ended with -9" in said
    assert not any(pathlib.Path(f"/proc/{each}").exists() for each in second)


def test_all_workers_read_rights_anew(workers):
    server, path = workers
    assert server.ask("POST", "repos", "{}")[0] == 200
    path.write_text(path.read_text().replace('default = "write"', 'default = "read"'))
    assert server.ask("POST", "repos", "{}")[0] == 200
    root = {"Authorization": "Bearer root-token"}
    assert server.ask("POST", "server/reload-auth", "", root)[0] == 200
    for _ in range(30):
        assert server.ask("POST", "repos", "{}")[0] == 401
        assert server.ask("POST", "repos", "{}", root)[0] == 200


def test_the_load_is_that_of_all_workers(workers):
    server, _ = workers

    def counted():
        for _ in range(20):  # each on a connection of its own
            server.get("server/info")
        return server.get("load")["GET requests"] >= 20

    until(counted)
    time.sleep(1.3)
    assert server.get("load")["GET requests"] == 0  # of the last second


def test_workers_end_with_a_killed_supervisor(workers):
    server, _ = workers
    found = server.workers()
    server.process.kill()
    until(lambda: not any(_runs(each) for each in found))
    assert refuses(server)


def _runs(number):
    try:
        return pathlib.Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def _hold(folder, most, pipe):
    throttle = Throttle(Shared(most, folder=folder))
    with throttle.slot():
        pipe.send("held")
        pipe.recv()


def test_the_throttle_counts_over_processes_and_survives_their_death(tmp_path):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_hold, args=(str(tmp_path), 1, there))
    other.start()
    assert here.recv() == "held"
    throttle = Throttle(Shared(1, folder=str(tmp_path)))
    with pytest.raises(Refused, match="1 throttled operations") as caught, throttle.slot():
        pass
    assert caught.value.status == 503
    throttle.most = 2
    with throttle.slot(), pytest.raises(Refused), throttle.slot():
        pass
    throttle.most = 1
    other.kill()
    other.join()
    with throttle.slot():
        pass


def test_the_throttle_of_one_process():
    throttle = Throttle(Shared(2))
    with throttle.slot(), throttle.slot(), pytest.raises(Refused), throttle.slot():
        pass
    with throttle.slot():
        pass


def test_what_is_remembered_of_users_is_bounded(monkeypatch):
    monkeypatch.setattr("diced.server.load.MAX_USERS", 3)
    load = Load(Shared(1))
    for number in range(10):
        load.answered(f"user {number}", 1.0)
    assert list(load.latencies()) == ["user 7", "user 8", "user 9"]


# -- beside a program ----------------------------------------------------------------------


def ask(url, path):
    """GET; return status and body."""
    connection = http.client.HTTPConnection(url.partition("//")[2], timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize("location", ["memory://", "disk"])
def test_a_store_serves_what_its_program_writes(tmp_path, location):
    store = DicedStore(tmp_path / location if location == "disk" else location)
    array = store.create_repo("fly").create_array("em", np.uint8)
    server = store.serve(0)
    for value in (1, 2):
        array[:64, :64, :64] = value
        path = f"/api/node/{array._repo.uuid}/em/raw/0_1_2/64_64_64/0_0_0"
        assert ask(server.url, path) == (200, bytes([value]) * 64**3)
    assert ask(server.url, "/")[0] == 200
    other = store.serve(0, mode="readonly", note="second")
    assert ask(other.url, "/api/server/note") == (200, b"second")
    store.close()
    for each in (server, other):
        with pytest.raises(OSError):
            ask(each.url, "/")


def test_a_port_starts_a_server_as_of_old(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        with pytest.raises(InvalidError, match="cannot listen"):
            DicedStore(tmp_path / "store", port=busy)
    with DicedStore(tmp_path / "store", port=busy) as store:
        uuid = store.create_repo("fly").uuid
        status, body = ask(f"http://127.0.0.1:{busy}", "/api/repos/info")
        assert (status, list(json.loads(body))) == (200, [uuid])
    with DicedStore(tmp_path / "store", 0, busy, readonly=True):
        assert ask(f"http://127.0.0.1:{busy}", f"/api/node/{uuid}/status")[0] == 200
    with pytest.raises(OSError):
        ask(f"http://127.0.0.1:{busy}", "/")


def test_several_workers_are_no_matter_of_a_program():
    with DicedStore("memory://") as store, pytest.raises(InvalidError, match="worker"):
        store.serve(0, workers=2)


# -- configuration -------------------------------------------------------------------------


def options(tmp_path, monkeypatch, *words, toml=None, env=None):
    """Return the options that words, a configuration and the environment make."""
    for name in command.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in (env or {}).items():
        monkeypatch.setenv(name, value)
    words = list(words)
    if toml is not None:
        path = tmp_path / "server.toml"
        path.write_text(toml)
        words += ["--config", str(path)]
    return command._options(cli.parser().parse_args(["serve", *words]))


DVID = """
[server]
host = "mymachine.org"
httpAddress = ":8002"
rpcAddress = "localhost:8003"
note = "from TOML"
corsDomains = ["janelia.org"]
blockListFile = "blocked.txt"
allowTiming = true
rwmode = "readonly"
webClient = "/console"
[email]
server = "mail"
[logging]
logfile = "dvid.log"
max_log_size = 500
[mutations]
jsonstore = "mutations"
[store]
  [store.raid6]
  engine = "basholeveldb"
  path = "db/raid6"
  CacheSize = 2000
  [store.log]
  engine = "filelog"
  path = "logs"
[backend]
  [backend.default]
  store = "raid6"
  log = "log"
[auth]
enforce = "none"
"""


def test_a_configuration_of_dvid_is_understood(tmp_path, monkeypatch, capsys):
    found = options(tmp_path, monkeypatch, toml=DVID)
    assert found.location == str(tmp_path / "db/raid6")
    assert (found.host, found.port, found.also) == ("0.0.0.0", 8002, (("localhost", 8003),))
    assert (found.public_name, found.note, found.mode) == ("mymachine.org", "from TOML", "readonly")
    assert (found.cors, found.timing) == (("janelia.org",), True)
    assert found.blocklist == str(tmp_path / "blocked.txt")
    assert found.log_file == str(tmp_path / "dvid.log")
    assert found.access == {}
    assert found.config_text == DVID
    said = capsys.readouterr().err
    for name in ("server.webClient", "[email]", "[mutations]", "logging.max_log_size",
                 "store.raid6.CacheSize", "[store.log]"):  # fmt: skip
        assert f"{name} has no meaning here" in said


def test_our_own_configuration(tmp_path, monkeypatch):
    toml = """
    [server]
    httpAddress = "[::1]:9000"
    workers = 3
    threads = 5
    throttle = 4
    adminToken = "from the file"
    bodySeconds = 2.5
    maxBody = 1000000
    accessLog = true
    page = false
    [store]
    location = "gs://bucket/fly"
    permissionfile = "key.json"
    blockCacheBytes = 1000000
    [access]
    public_versions = ["a"]
    [auth]
    enforce = "token"
    public_versions = ["b"]
    """
    found = options(tmp_path, monkeypatch, toml=toml)
    assert found.location == "gs://bucket/fly"
    assert found.store == {
        "permissionfile": str(tmp_path / "key.json"), "block_cache_bytes": 1000000
    }  # fmt: skip
    assert (found.host, found.port, found.workers, found.threads) == ("::1", 9000, 3, 5)
    assert (found.throttle, found.admin_token, found.body_seconds) == (4, "from the file", 2.5)
    assert (found.max_body, found.access_log, found.page) == (1000000, True, False)
    assert found.access == {"default": "none", "public_versions": ["a", "b"]}


def test_flags_override_the_configuration_and_the_environment_has_the_token(tmp_path, monkeypatch):
    words = [
        "elsewhere", "--host", "::", "--port", "1", "--workers", "2", "--fullwrite", "--note", "n",
        "--cors", "none", "--also", "x:2", "--durability", "process", "--threads", "7",
    ]  # fmt: skip
    env = {"DVID_ADMIN_TOKEN": "old", "DICED_ADMIN_TOKEN": "new"}
    found = options(tmp_path, monkeypatch, *words, toml=DVID, env=env)
    assert (found.location, found.host, found.port, found.workers) == ("elsewhere", "::", 1, 2)
    assert (found.mode, found.note, found.cors, found.threads) == ("fullwrite", "n", (), 7)
    assert (found.also, found.store) == ((("x", 2),), {"durability": "process"})
    assert found.admin_token == "new"
    plain = options(tmp_path, monkeypatch, "here", env={"DVID_ADMIN_TOKEN": "old"})
    assert (plain.location, plain.host, plain.port) == ("here", "127.0.0.1", 8000)
    assert (plain.admin_token, plain.cors, plain.access) == ("old", ("*",), {})
    with pytest.raises(InvalidError, match="no store is named"):
        options(tmp_path, monkeypatch)


def test_what_the_documentation_shows_is_a_configuration(tmp_path):
    text = (pathlib.Path(__file__).parents[1] / "docs" / "server.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "a.toml").write_text("\n".join(blocks))
    found = config.read(str(tmp_path / "a.toml"))
    assert found.warnings == []
    rules = Rules(found.fields["access"])
    assert rules.find("another long secret").level("*", "*") == 3
    assert rules.find("a long secret").level("x", "fib19") == 1
    assert rules.find("test").level("x", "fib19") == 2
    assert len(rules.public) == 1


def test_an_empty_section_of_rights_lets_nobody_in(tmp_path):
    (tmp_path / "a.toml").write_text("[access]\n")
    assert config.read(str(tmp_path / "a.toml")).fields["access"] == {"default": "none"}


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[server", "a.toml"),
        ("server = 3", "server is a table"),
        ("[server]\nhttpAddress = 8000", "httpAddress is text"),
        ('[server]\nhttpAddress = "localhost"', "host:port"),
        ('[server]\nhttpAddress = "localhost:70000"', "host:port"),
        ('[server]\nrwmode = "sometimes"', "rwmode is readonly, fullwrite or empty"),
        ("[server]\nworkers = 0", "workers is a whole number above 0"),
        ("[server]\nworkers = true", "workers is a whole number above 0"),
        ("[server]\nbodySeconds = -1", "bodySeconds is seconds"),
        ("[server]\npage = 1", "page is true or false"),
        ('[server]\ncorsDomains = "x"', "corsDomains is a list of text"),
        ("[store]\nlocation = 1", "location is text"),
        ('[store.a]\nengine = "kvautobus"\npath = "x"', "engine is one of"),
        ('[store.a]\nengine = "badger"', "path is text; got nothing"),
        ('[store.a]\npath = "x"\n[store.b]\npath = "y"', "one store"),
        ('[store]\nlocation = "x"\n[store.b]\npath = "y"', "both"),
        ('[backend.default]\nstore = "gone"', "backend.default"),
        ('[auth]\nenforce = "dsg"', "nobody is let in by mistake"),
    ],
)
def test_a_configuration_without_a_meaning_is_refused(tmp_path, toml, said):
    path = tmp_path / "a.toml"
    path.write_text(toml)
    with pytest.raises(InvalidError, match=re.escape(said)):
        config.read(str(path))


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(LocationError, match="cannot read"):
        config.read(str(tmp_path / "none.toml"))


def test_a_store_of_another_server_is_not_served(tmp_path):
    found = registry_service()
    with pytest.raises(UnsupportedError, match="that server serves it"):
        found("dvid://localhost:1")
    with pytest.raises(InvalidError, match="mode"):
        found("memory://", mode="sometimes")


def registry_service():
    """Return what starts a server beside a program."""
    from diced import registry

    return registry.lookup("service", "http")
