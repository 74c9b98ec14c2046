"""diced probe: what it finds, what it keeps, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from netsim import Client

from diced import DicedStore, UnsupportedError, registry
from diced.cli.main import main
from diced.engine import findings, open_engine, probe
from diced.engine.local import LocalEngine
from diced.errors import EngineError


def everything(root):
    """Return the paths of all files and directories below a directory."""
    return sorted(
        os.path.relpath(os.path.join(path, name), root)
        for path, folders, files in os.walk(root)
        for name in folders + files
    )


def kept(root):
    """Return the one thing a probe keeps; fail if there is anything else."""
    (record,) = [each for each in everything(root) if each.endswith(".json")]
    parents = {record.rsplit("/", i)[0] for i in range(record.count("/") + 1)}
    assert set(everything(root)) == parents, everything(root)
    with open(os.path.join(root, record)) as file:
        return json.load(file)


def test_a_local_folder(tmp_path, capsys):
    assert main(["probe", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == kept(tmp_path)
    assert found["ok"] and found["writers"] and not found["problems"]
    assert found["naming"] == "link"
    assert sum(found["won"]) == found["rounds"]
    assert found["stale"] == 0 and found["listed_s"] == 0
    # Again: the newer takes the place of the older.
    assert main(["probe", str(tmp_path)]) == 0
    assert "several writers" in capsys.readouterr().out
    again = kept(tmp_path)
    assert main(["probe", str(tmp_path), "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == again


def test_a_bucket(gcs, capsys):
    url = gcs.url()
    assert main(["probe", url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["naming"] == "service" and found["network"]
    with open_engine(url) as engine:
        (key,) = engine.list("")
        assert key.startswith("probes/")


def test_places_that_are_not_probed(tmp_path, capsys):
    assert main(["probe", str(tmp_path / "absent")]) == 7
    assert main(["probe", "memory://x"]) == 2
    assert main(["probe", str(tmp_path), "--show"]) == 3
    assert "not probed" in capsys.readouterr().err
    assert everything(tmp_path) == []


def test_a_store_is_probed_where_it_is(tmp_path):
    with DicedStore(tmp_path) as store:
        store.create_repo("r")
    before = set(everything(tmp_path))
    assert main(["probe", str(tmp_path), "-q"]) == 0
    assert all(each.startswith("probes") for each in set(everything(tmp_path)) - before)
    with DicedStore(tmp_path, create=False) as store:
        assert [name for name, _ in store.list_repos()] == ["r"]


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "diced", "probe", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_hosts(tmp_path):
    first, second = start(tmp_path, "--hosts", "2", "--json"), start(tmp_path, "--other")
    out, err = first.communicate(timeout=90)
    assert second.wait(30) == 0, second.communicate()[1]
    assert first.returncode == 0, err
    assert "--other" in err
    assert json.loads(out)["hosts"] == 2
    assert kept(tmp_path)["hosts"] == 2
    second.communicate()


def test_what_a_killed_probe_leaves_is_swept_by_the_next(tmp_path):
    first = start(tmp_path)
    limit = time.monotonic() + 60
    while not any("race" in each for each in everything(tmp_path)):
        assert time.monotonic() < limit and first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)  # also waits for the other process, which has the pipe
    assert any(each.startswith("probe-tmp/") for each in everything(tmp_path))
    assert main(["probe", str(tmp_path), "-q"]) == 0
    kept(tmp_path)


def test_a_running_probe_is_not_swept(tmp_path):
    with open_engine(tmp_path) as engine:
        mark = {"place": probe._place(), "pid": os.getpid(), "time": 0}
        engine.put_if_absent("probe-tmp/x/begin", json.dumps(mark).encode(), b"t")
        other = {"place": "elsewhere", "pid": 1, "time": time.time()}
        engine.put_if_absent("probe-tmp/y/begin", json.dumps(other).encode(), b"t")
        old = {"place": "elsewhere", "pid": 1, "time": 1}
        engine.put_if_absent("probe-tmp/z/begin", json.dumps(old).encode(), b"t")
        engine.put_if_absent("probe-tmp/z/race/1", b"", b"t")
        assert probe.sweep(engine) == 1
        assert list(engine.list("")) == ["probe-tmp/x/begin", "probe-tmp/y/begin"]


@pytest.mark.parametrize("factor", [1e-3, 1, 160, 1e4])
def test_numbers_are_printed_without_exponents(tmp_path, capsys, factor):
    assert main(["probe", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    spans = {"fresh_s": 1.6e-3, "listed_s": 0.5, "deleted_s": 0.2, "create_ms": 1.0,
             "clock_s": -1.2, "clock_error_s": 0.3}  # fmt: skip
    with open_engine(str(tmp_path)) as engine:
        findings.save(engine, {**found, **{key: value * factor for key, value in spans.items()}})
    assert main(["probe", str(tmp_path), "--show"]) == 0
    printed = capsys.readouterr().out
    assert "e+" not in printed and "e-0" not in printed
    if factor == 160:
        assert "within 256 ms" in printed and "creating a key takes 160 ms" in printed
        assert "after 80 s" in printed and "-192.0 s" in printed and "+- 48.0 s" in printed


# ---- places with faults, by two threads


def together(main_engine, other_engine, hosts=2):
    """Probe with an engine for each side; return what was found."""
    errors = []

    def work(run):
        try:
            probe.join(other_engine, run, lambda: None, lambda text: None)
        except Exception as error:
            errors.append(error)

    def begin(run):
        thread = threading.Thread(target=work, args=(run,), daemon=True)
        thread.start()

        def alive():
            if errors:
                raise EngineError(f"the other failed: {errors[0]!r}")

        return alive

    return probe.lead(main_engine, hosts, begin, lambda text: None)


@pytest.fixture
def engines(tmp_path):
    (tmp_path / "s").mkdir()

    def make(kind=LocalEngine, naming=None, network=True, **behaviour):
        return [
            kind(str(tmp_path / "s"), system=Client(seed=i, **behaviour), network=network,
                 naming=naming)
            for i in range(2)
        ]  # fmt: skip

    return make


def test_a_good_network_file_system(engines):
    found = together(*engines(lost=0.1))
    assert found["ok"], found["problems"]
    assert findings.newest(engines()[0])["ok"]


def test_two_winners_are_found(engines):
    class Careless(LocalEngine):
        def put_if_absent(self, key, data, txid):
            if "/race/" not in key:
                return super().put_if_absent(key, data, txid)
            super().put_if_absent(key, data, txid)
            return True

    found = together(*engines(Careless))
    assert not found["ok"] and not found["writers"]
    assert "two winners" in found["problems"][0]


def test_keys_without_a_winner_are_found(engines):
    class Timid(LocalEngine):
        def put_if_absent(self, key, data, txid):
            return super().put_if_absent(key, data, txid) and "/race/" not in key

    found = together(*engines(Timid))
    assert not found["writers"]
    assert "no winner" in found["problems"][0]


def test_growth_that_is_not_seen_is_found(engines):
    class Short(LocalEngine):
        def get(self, key, start=0, length=None):
            data = super().get(key, start, length)
            return data if "/grown/" not in key or start != 1000 else bytes(len(data))

    found = together(*engines(Short))
    assert found["writers"] and not found["ok"]
    assert "other bytes" in " ".join(found["problems"])


def test_a_listing_that_lags_is_found(engines, monkeypatch):
    monkeypatch.setattr(probe, "LAG", 0.05)

    class Lagging(LocalEngine):
        def list(self, prefix, after=""):
            return iter(()) if prefix.endswith("/list") else super().list(prefix, after)

    found = together(*engines(Lagging))
    assert found["listed_s"] is None and "listing" in " ".join(found["problems"])


def test_a_silent_partner(engines, monkeypatch):
    monkeypatch.setattr(probe, "PATIENCE", 0.05)
    monkeypatch.setattr(probe.Side.hear, "__defaults__", (0.05,))
    engine, _ = engines()
    with pytest.raises(EngineError, match="did not answer"):
        probe.lead(engine, 2, lambda run: lambda: None, lambda text: None)
    assert list(engine.list("")) == []
    with pytest.raises(EngineError, match="no probe"):
        probe.join(engine, None, lambda: None, lambda text: None)


@pytest.mark.parametrize(("hosts", "network", "ok"), [(1, True, False), (2, True, True),
                                                      (1, False, True)])  # fmt: skip
def test_renaming_counts_where_it_was_seen(tmp_path, engines, hosts, network, ok):
    sides = engines(links=False, naming="rename")
    if not network:
        sides = [LocalEngine(str(tmp_path / "s"), naming="rename", network=False) for _ in "ab"]
    found = together(*sides, hosts)
    assert found["naming"] == "rename"
    assert found["ok"] is ok


def test_no_links_and_no_renaming(tmp_path, capsys, monkeypatch):
    def open_linkless(location, create=None, **options):
        return LocalEngine(
            location, system=Client(links=False, renames=False), network=True, **options
        )

    registry.register("engine", "linkless", open_linkless, replace=True)
    url = f"linkless://{tmp_path}"
    assert main(["probe", url]) == 1
    printed = capsys.readouterr().out
    assert "no hard links" in printed
    assert not kept(tmp_path)["writers"]
    with pytest.raises(UnsupportedError), open_engine(url) as engine:
        engine.put_if_absent("a", b"x", b"t")
