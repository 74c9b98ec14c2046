"""The Google Cloud Storage engine: the contract, and what goes wrong between us and a bucket."""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from urllib.parse import quote

import pytest
from engine_contract import EngineContract, run_forked, run_together

from diced.engine import gcs as gcs_module
from diced.engine import open_engine
from diced.engine.gcs import GcsEngine
from diced.engine.gcs_http import Tries
from diced.errors import (
    CorruptError,
    DicedException,
    EngineError,
    InvalidError,
    LocationError,
    NotFoundError,
)

FAULTS = ["lost", "reset", 408, 429, 500, 502, 503, 504]


class TestGcs(EngineContract):
    turns = False

    @pytest.fixture
    def location(self, gcs):
        return gcs.url()


@pytest.fixture
def engine(gcs):
    with open_engine(gcs.url()) as engine:
        yield engine


@pytest.fixture
def hurry(monkeypatch):
    """Waits between tries are short."""
    monkeypatch.setattr(Tries, "PAUSE", 0.002)
    monkeypatch.setattr(Tries, "LONGEST", 0.02)


def names(gcs, engine):
    """Return the keys that are stored, as the server has them."""
    root = engine.url.removeprefix(f"gs://{gcs.bucket}/") + "/"
    return [name.removeprefix(root) for name in gcs.keys(root)]


def counts(gcs):
    found = gcs.count()
    gcs.clear()
    return found


# ---- locations


@pytest.mark.parametrize(
    "rest",
    ["", "/", "/a", "ab", "Bucket", "bu cket", "a..b", "-bucket", "bucket/../x", "bucket//x",
     "bucket/a//b", "bucket/./a", "bucket/a\n", "bucket/a\0b", "bucket/" + "p" * 600,
     "bucket/\udcff"],
)  # fmt: skip
def test_malformed_location(rest, gcs):
    with pytest.raises(LocationError):
        open_engine(f"gs://{rest}")


@pytest.mark.parametrize("prefix", ["", "/", "/a", "/a/b/", "/A b/é?x=1#y%20+&/100%"])
def test_prefixes(gcs, prefix):
    if not gcs.fake and prefix in ("", "/"):
        pytest.skip("the bucket holds what other tests wrote")
    with open_engine(f"gs://{gcs.bucket}{prefix}") as engine:
        assert engine.url == f"gs://{gcs.bucket}{prefix}".removesuffix("/")
        engine.put_if_absent("k/1", b"1", b"t")
        engine.put_if_absent("k/2", b"2", b"t")
        assert engine.get("k/1") == b"1"
        assert list(engine.list("")) == ["k/1", "k/2"]
        assert list(engine.list("k", "k/1")) == ["k/2"]
        engine.delete("k/1")
    root = f"{prefix.strip('/')}/".removeprefix("/")
    assert gcs.keys(root) == [f"{root}k/2"]
    with open_engine(engine.url, readonly=True) as again:
        assert list(again.list("")) == ["k/2"]


def test_unknown_bucket(gcs):
    with open_engine("gs://no-bucket-of-that-name/p") as engine:
        for call in (
            lambda: engine.put_if_absent("a", b"1", b"t"),
            lambda: engine.put_unique("a", [b"1"]),
            lambda: engine.get("a"),
            lambda: engine.get("a", 1, 2),
            lambda: engine.exists("a"),
            lambda: engine.delete("a"),
            lambda: list(engine.list("")),
        ):
            with pytest.raises(LocationError, match="no-bucket-of-that-name"):
                call()
    for options in ({"create": False}, {"readonly": True}):
        with pytest.raises(LocationError, match="no bucket"):
            open_engine("gs://no-bucket-of-that-name/p", **options)


@pytest.mark.parametrize("host", ["localhost:9000", "ftp://x", "http://"])
def test_malformed_endpoint(monkeypatch, host):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    with pytest.raises(LocationError, match="endpoint"):
        open_engine("gs://bucket/p")


def test_nobody_there(monkeypatch, hurry):
    monkeypatch.setattr(Tries, "REACH", 0.1)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with open_engine("gs://bucket/p") as engine, pytest.raises(EngineError, match="tries"):
        engine.get("a")


def test_attributes_of_a_bucket(gcs):
    with open_engine(gcs.url()) as engine:
        assert engine.remote and not engine.grows and not engine.descriptors
        assert engine.max_age == 1.0
    with open_engine(gcs.url(), max_age=0) as engine:
        assert engine.max_age == 0
    for bad in (-1, float("nan")):
        with pytest.raises(InvalidError, match="max_age"):
            open_engine(gcs.url(), max_age=bad)


def test_nothing_of_google_is_imported_before_a_bucket_is_opened():
    code = (
        "import sys, diced, diced.engine\n"
        "diced.engine.open_engine('memory://')\n"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('google', 'urllib3', 'requests')])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout == "[]\n", out.stderr


# ---- requests


def test_requests_of_each_verb(gcs, engine):
    assert counts(gcs) == {}
    engine.put_if_absent("a", bytes(100), b"t")
    assert counts(gcs) == {"insert": 1}
    assert not engine.put_if_absent("a", b"other", b"t")
    assert counts(gcs) == {"insert": 1, "stat": 1}
    engine.put_unique("b", [bytes(100), bytes(100)])
    assert counts(gcs) == {"insert": 1}
    for call in (
        lambda: engine.get("a"),
        lambda: engine.get("a", 10, 20),
        lambda: engine.get("a", 10),
        lambda: engine.peek("a", 10),
        lambda: engine.read_into("a", 10, bytearray(20)),
    ):
        call()
        assert counts(gcs) == {"get": 1}
    engine.exists("a")
    engine.size("a")
    assert counts(gcs) == {"stat": 2}
    list(engine.list(""))
    assert counts(gcs) == {"list": 1}
    engine.delete("a")
    assert counts(gcs) == {"delete": 1}
    with engine.appender("s") as log:
        for _ in range(5):
            log.append([b"frame"])
        log.finish()
    with engine.turn("a"):
        pass
    engine.close()
    assert counts(gcs) == {"insert": 1}
    for options in ({"create": False}, {"readonly": True}):
        open_engine(engine.url, **options).close()
        assert counts(gcs) == {"list": 1}


def test_metadata(gcs, engine):
    engine.put_if_absent("a", b"data", b"\1\2\xff")
    key = engine.put_unique("b", [b"data"])
    root = engine.url.removeprefix(f"gs://{gcs.bucket}/")
    for name in ("a", key):
        url = f"{gcs.endpoint}/storage/v1/b/{gcs.bucket}/o/{quote(f'{root}/{name}', safe='')}"
        with urllib.request.urlopen(url) as answer:
            found = json.load(answer)
        assert found["cacheControl"] == "no-store"
        assert found["contentType"] == "application/octet-stream"
        if name == "a":
            assert found["metadata"] == {"diced-txid": "0102ff"}


def test_pages(gcs, engine, monkeypatch):
    monkeypatch.setattr(GcsEngine, "PAGE", 10)
    keys = [f"k/{number:03d}" for number in range(57)]
    run_together(8, lambda who: [engine.put_if_absent(key, b"", b"t") for key in keys[who::8]])
    gcs.clear()
    assert list(engine.list("")) == list(engine.list("k")) == keys
    assert counts(gcs) == {"list": 12}
    for after in ("k/009", "k/010", "k/0095", "k/056", "j", "~"):
        assert list(engine.list("k", after)) == [key for key in keys if key > after]
    seen = engine.list("k")
    assert next(seen) == keys[0]
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(seen)


def test_objects_of_others_are_not_listed(gcs, engine):
    engine.put_if_absent("a/b", b"1", b"t")
    with open_engine(engine.url + "/.hidden") as other, open_engine(engine.url + "/A b") as more:
        other.put_if_absent("x", b"1", b"t")
        more.put_if_absent("x", b"1", b"t")
    assert len(names(gcs, engine)) == 3
    assert list(engine.list("")) == ["a/b"]


def test_thousands_of_keys(gcs, engine):
    keys = [f"k/{number:04d}" for number in range(1100)]
    run_together(8, lambda who: [engine.put_if_absent(key, b"", b"t") for key in keys[who::8]])
    assert list(engine.list("k", "k/0004")) == keys[5:]


def test_connections_are_kept(gcs, engine, caplog):
    caplog.set_level(logging.WARNING)
    engine.put_if_absent("a", bytes(1000), b"t")

    def work(who):
        for number in range(30):
            assert engine.get("a", number, 100) == bytes(100)
            engine.put_if_absent(f"b/{who}/{number}", b"1", b"t")

    gcs.latency(0.001)
    for count in (32, 80):
        run_together(count, work)
        assert engine._wire._pool.num_connections <= count
    assert caplog.records == []


# ---- faults


@pytest.mark.parametrize("how", FAULTS)
def test_put_if_absent_with_a_fault(gcs, engine, hurry, how):
    for count in (1, 2, 4):
        gcs.fail(count, how=how, operation="insert")
        assert engine.put_if_absent(f"a/{count}", b"mine", b"t1") is True
        gcs.fail(count, how=how)
        assert engine.put_if_absent(f"a/{count}", b"mine", b"t1") is True
        gcs.fail(count, how=how)
        assert engine.put_if_absent(f"a/{count}", b"mine", b"t2") is False
        gcs.fail(count, how=how)
        assert engine.put_if_absent(f"a/{count}", b"mint", b"t1") is False
        gcs.fail(count, how=how)
        assert engine.put_if_absent(f"a/{count}", b"longer", b"t1") is False
        assert engine.get(f"a/{count}") == b"mine"
    assert names(gcs, engine) == ["a/1", "a/2", "a/4"]


@pytest.mark.parametrize("how", FAULTS)
def test_other_verbs_with_a_fault(gcs, engine, hurry, how):
    data = random.Random(1).randbytes(700_000)
    out = bytearray(600_000)

    def failing():
        gcs.fail(3, how=how)
        return engine

    key = failing().put_unique("u", [data[:10], data[10:]])
    assert names(gcs, engine) == [key]
    assert failing().get(key) == data
    assert failing().get(key, 100, 200) == data[100:300]
    assert failing().get(key, 100) == data[100:]
    assert failing().peek(key, 50) == data[:50]
    failing().read_into(key, 7, memoryview(out)[:900])
    assert out[:900] == data[7:907]
    failing().read_into(key, 11, out)
    assert out == data[11:600_011]
    assert failing().size(key) == len(data)
    assert failing().exists(key)
    assert not failing().exists("nothing")
    assert list(failing().list("")) == [key]
    with failing().appender("s") as log:
        log.append([b"frames"])
        log.finish()
    assert engine.get(log.key) == b"frames"
    assert names(gcs, engine) == sorted([key, log.key])
    failing().delete(key)
    failing().delete(log.key)
    failing().delete("nothing")
    gcs.fail(1, how="lost", operation="delete")
    assert names(gcs, engine) == []


@pytest.mark.parametrize("size", [1, 5000, 300_000, 3_000_000])
def test_bodies_that_end_early(gcs, engine, hurry, size):
    data = random.Random(size).randbytes(size)
    engine.put_if_absent("a", data, b"t")
    for call, wanted in [
        (lambda: engine.get("a"), data),
        (lambda: engine.get("a", size // 3), data[size // 3 :]),
        (lambda: engine.get("a", 0, size), data),
        (lambda: engine.peek("a", size * 2), data),
    ]:
        gcs.fail(3, how="cut", operation="get")
        assert call() == wanted
    gcs.fail(3, how="cut", operation="get")
    out = bytearray(size)
    engine.read_into("a", 0, out)
    assert out == data


def test_a_large_read_goes_on_where_it_was_cut(gcs, engine, hurry):
    data = random.Random(3).randbytes(8 << 20)
    engine.put_if_absent("a", data, b"t")
    gcs.clear()
    gcs.fail(4, how="cut", operation="get")
    out = bytearray(len(data))
    engine.read_into("a", 0, out)
    assert out == data
    asked = [request.sent for request in gcs.log() if request.operation == "get"]
    assert len(asked) == 5
    assert sum(asked) < 2 * len(data)  # five times the rest would be more


@pytest.mark.parametrize("how", [503, 429, "reset", "lost"])
def test_retries_end(gcs, engine, hurry, monkeypatch, how):
    engine.put_if_absent("there", b"1", b"t")
    gcs.fail(100_000, how=how)
    monkeypatch.setattr(Tries, "PATIENCE", 0.3)
    monkeypatch.setattr(Tries, "LONGEST", 0.1)
    # As long as may be waited, the waits leave room for 8 tries, and for fewer on a slow machine.
    monkeypatch.setattr("diced.engine.gcs_http.random.uniform", lambda _low, high: high)
    errors = []
    with pytest.raises(EngineError, match=r"'a/b'.*tries.*not known") as caught:
        engine.put_if_absent("a/b", b"1", b"t")
    errors.append(caught)
    for call in (
        lambda: engine.get("there"),
        lambda: engine.read_into("there", 0, bytearray(1)),
        lambda: engine.exists("there"),
        lambda: list(engine.list("")),
        lambda: engine.delete("elsewhere"),
    ):
        with pytest.raises(EngineError, match="tries") as caught:
            call()
        errors.append(caught)
    tries = [int(re.search(r"after (\d+) tries", str(each.value))[1]) for each in errors]
    assert max(tries) <= 8
    gcs.calm()
    assert engine.put_if_absent("a/b", b"1", b"t") is True  # whether or not it had landed
    assert names(gcs, engine) == ["a/b", "there"]


def test_no_answer_at_all(gcs, engine, hurry, monkeypatch):
    monkeypatch.setattr(Tries, "READ", 0.1)
    gcs.fail(2, how="hang", operation="insert")
    assert engine.put_if_absent("a", b"mine", b"t") is True
    gcs.fail(2, how="hang")
    assert engine.get("a") == b"mine"
    assert names(gcs, engine) == ["a"]


@pytest.mark.parametrize("status", [400, 403, 410, 501])
def test_answers_that_are_final(gcs, engine, status):
    gcs.fail(1, how=status)
    with pytest.raises(EngineError, match=str(status)):
        engine.put_if_absent("a", b"1", b"t")
    gcs.fail(1, how=status)
    with pytest.raises(EngineError, match=str(status)):
        engine.get("a")
    assert counts(gcs) == {"insert": 1, "get": 1}


def test_waits_are_random_bounded_and_as_long_as_asked(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    tries = Tries("x", patience=1e9)
    tries.again("gone", at_once=True)
    assert waits == []
    for _ in range(200):
        tries.again("gone", at_once=True)
    assert len(set(waits)) > 150
    assert max(waits) <= Tries.LONGEST
    assert max(waits[:3]) <= Tries.PAUSE * 16
    tries.again("busy", after=3)
    assert waits[-1] >= 3
    tries.again("busy", after=1e6)
    assert waits[-1] < 100


def test_race_of_threads_with_lost_answers(gcs, engine, hurry):
    gcs.faults(seed=1, lost=0.2)
    for number in range(25):
        key = f"race/{number:03d}"
        won = run_together(
            8, lambda who, key=key: engine.put_if_absent(key, b"data of %d" % who, b"t")
        )
        assert sorted(won) == [False] * 7 + [True]
        assert engine.get(key) == b"data of %d" % won.index(True)
    gcs.faults()
    assert len(names(gcs, engine)) == 25


RACER = """
import sys, time
from diced.engine import open_engine
from diced.engine.gcs_http import Tries
Tries.PAUSE = 0.01
who, rounds = int(sys.argv[2]), int(sys.argv[3])
engine = open_engine(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    if engine.put_if_absent(f"lane/{number:06d}", b"%d:%d" % (who, number), b"same"):
        print(number)
"""


def test_race_of_processes_with_lost_answers(gcs):
    url, rounds = gcs.url(), 60
    gcs.faults(seed=2, lost=0.2)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, str(who), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for who in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wins = {}
    for who, racer in enumerate(racers):
        out, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        for number in map(int, out.split()):
            assert number not in wins
            wins[number] = who
    assert sorted(wins) == list(range(rounds))
    gcs.faults()
    with open_engine(url, readonly=True) as engine:
        for number, who in wins.items():
            assert engine.get(f"lane/{number:06d}") == b"%d:%d" % (who, number)


def test_storm(gcs, engine, hurry):
    """Threads with objects of their own, beside a dict, while all kinds of things go wrong."""
    gcs.faults(seed=3, lost=0.05, reset=0.05, cut=0.05, e429=0.01, e503=0.02, e500=0.02, slow=0.01)

    def work(who):
        chance = random.Random(who)
        model = {}
        for number in range(60):
            key, data = (
                f"t{who}/{number:03d}",
                chance.randbytes(chance.choice([0, 9, 3000, 400_000])),
            )
            match chance.randrange(8):
                case 0 | 1:
                    assert engine.put_if_absent(key, data, b"%d" % number) is True
                    model[key] = data
                case 2:
                    model[engine.put_unique(f"t{who}/u", [data])] = data
                case 3 if model:
                    assert engine.put_if_absent(chance.choice([*model]), b"else", b"t") is False
                case 4 if model:
                    gone = chance.choice([*model])
                    engine.delete(gone)
                    del model[gone]
                    with pytest.raises(NotFoundError):
                        engine.get(gone)
                case 5:
                    assert list(engine.list(f"t{who}")) == sorted(model)
                case _ if model:
                    there = chance.choice([*model])
                    assert engine.get(there) == model[there]
                    start = chance.randrange(len(model[there]) + 1)
                    out = bytearray(len(model[there]) - start)
                    engine.read_into(there, start, out)
                    assert out == model[there][start:]
        return model

    models = run_together(6, work)
    gcs.faults()
    assert names(gcs, engine) == sorted(key for model in models for key in model)
    for model in models:
        for key, data in model.items():
            assert engine.get(key) == data


# ---- damage


def test_damaged_on_the_way_up(gcs, engine, monkeypatch):
    monkeypatch.setattr("diced.engine.gcs_upload.crc32c", lambda data, value=0: 1)
    with pytest.raises(EngineError, match="400"):
        engine.put_if_absent("a", b"data", b"t")
    monkeypatch.setattr(GcsEngine, "CHUNK", 1 << 18)
    with pytest.raises(EngineError, match="crc32c"):
        engine.put_unique("a", [bytes(1 << 20)])
    assert names(gcs, engine) == []


def test_damaged_on_the_way_down(gcs, engine, monkeypatch):
    engine.put_if_absent("some/key", b"data", b"t")
    monkeypatch.setattr(gcs_module, "crc32c", lambda data, value=0: 1)
    with pytest.raises(CorruptError, match="some/key"):
        engine.get("some/key")


# ---- uploads in chunks


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(GcsEngine, "CHUNK", 1 << 18)
    monkeypatch.setattr(GcsEngine, "SINGLE", 1)


@pytest.mark.parametrize("size", [1 << 18, (1 << 18) + 1, 1 << 19, (1 << 20) - 1, 1 << 20])
def test_upload_in_chunks(gcs, engine, small_chunks, size):
    data = random.Random(size).randbytes(size)
    cuts = sorted(random.Random(1).choices(range(size), k=9))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    key = engine.put_unique("u", pieces, ".seg")
    assert counts(gcs) == {"insert": 1 if size <= 1 << 18 else 1 + -(-size // (1 << 18))}
    assert engine.get(key) == data


@pytest.mark.parametrize("how", ["lost", "reset", 503])
@pytest.mark.parametrize("at", range(6))
def test_upload_in_chunks_with_a_fault(gcs, engine, hurry, small_chunks, how, at):
    data = random.Random(1).randbytes(1_000_000)
    for count in (1, 2, 3):
        gcs.fail(count, how=how, operation="insert", after=at)
        gcs.clear()
        key = engine.put_unique("u", [data])
        if how == "lost" and at:  # the server is asked what it has, and has it
            assert sum(request.received for request in gcs.log()) < len(data) + 10_000
        assert engine.get(key) == data
        engine.delete(key)
    gcs.calm()
    assert names(gcs, engine) == []


@pytest.mark.parametrize("at", [0, 1])
def test_chunk_of_which_the_server_takes_a_part(gcs, engine, hurry, monkeypatch, at):
    monkeypatch.setattr(GcsEngine, "CHUNK", 1 << 20)
    monkeypatch.setattr(GcsEngine, "SINGLE", 1)
    send, chunks = engine._wire.attempt, []

    def attempt(tries, method, target, *, headers=None, body=None, **options):
        if method == "PUT":
            chunks.append(headers["Content-Range"])
            if len(chunks) == at + 1:
                start = at << 20
                total = headers["Content-Range"].partition("/")[2]
                headers = {"Content-Range": f"bytes {start}-{start + (1 << 18) - 1}/{total}"}
                body = b"".join(body)[: 1 << 18]
        return send(tries, method, target, headers=headers, body=body, **options)

    monkeypatch.setattr(engine._wire, "attempt", attempt)
    data = random.Random(1).randbytes(2 << 20)
    assert engine.get(engine.put_unique("u", [data])) == data
    assert len(chunks) == 3


def test_uploads_in_a_storm(gcs, engine, hurry, small_chunks):
    gcs.faults(seed=5, lost=0.15, reset=0.1, e503=0.05)
    data = random.Random(2).randbytes(2_000_000)
    for _ in range(6):
        key = engine.put_unique("u", [data])
        assert engine.get(key) == data
        engine.delete(key)


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("at", [1, 4])
def test_upload_whose_session_is_lost(gcs, engine, small_chunks, status, at):
    gcs.fail(1, how=status, operation="insert", after=at)
    with pytest.raises(EngineError, match="'u/"):
        engine.put_unique("u", [bytes(1_000_000)])
    assert names(gcs, engine) == []


def test_upload_whose_source_fails(gcs, engine, small_chunks):
    def chunks():
        for _ in range(8):
            yield bytes(100_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.put_unique("u", chunks())
    assert names(gcs, engine) == []
    assert [request.method for request in gcs.log()][-1] == "DELETE"


def test_upload_from_a_buffer_that_is_used_again(gcs, engine, small_chunks):
    def chunks():
        buffer = bytearray(100_000)
        for number in range(9):
            buffer[:] = bytes([number]) * len(buffer)
            yield buffer

    assert engine.get(engine.put_unique("u", chunks())) == b"".join(
        bytes([number]) * 100_000 for number in range(9)
    )


# ---- processes and interrupts


def test_fork(gcs, engine):
    engine.put_if_absent("a", b"0123456789", b"t")

    def child():
        assert engine.get("a", 2, 3) == b"234"
        assert engine.put_if_absent("b", b"child", b"t")
        engine.close()

    assert run_forked(child) == 0
    assert engine.get("a", 2, 3) == b"234"
    assert engine.get("b") == b"child"


def test_fork_while_busy(gcs, engine):
    engine.put_if_absent("a", b"0123456789", b"t")
    stop = threading.Event()
    problems = []

    def churn():
        try:
            while not stop.is_set():
                assert engine.get("a", 2, 3) == b"234"
                engine.put_unique("u", [b"more"])
        except (AssertionError, DicedException) as error:
            problems.append(error)

    def child():
        for _ in range(5):
            assert engine.get("a", 3, 4) == b"3456"
            key = engine.put_unique("c", [b"child"])
            assert engine.get(key) == b"child"

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [run_forked(child, timeout=20) for _ in range(8)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 8
    assert problems == []


# An interrupt inside of connect() leaves the socket to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt(gcs, engine):
    engine.put_if_absent("a", bytes(1000), b"t")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in (0.0005, 0.002, 0.1):
            gcs.latency(5)
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, delay)
                engine.get("a")
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, delay)
                engine.put_if_absent("b", b"1", b"t")
            gcs.latency(0)
            assert engine.get("a") == bytes(1000)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_close_while_reading(gcs, engine):
    engine.put_if_absent("a", bytes(1000), b"t")
    gcs.latency(0.05)
    outcomes = []

    def work(who):
        if who == 0:
            time.sleep(0.02)
            engine.close()
            return
        try:
            while True:
                assert engine.get("a") == bytes(1000)
        except EngineError as error:
            outcomes.append(str(error))

    run_together(4, work)
    assert len(outcomes) == 3
    assert all("closed" in outcome for outcome in outcomes)
