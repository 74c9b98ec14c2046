"""The memory and local engines: the contract, and what is special to each."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
from engine_contract import EngineContract, fork, run_forked, run_together
from flaky import FlakyOs

from diced.engine import open_engine
from diced.engine.local import LocalEngine, open_local
from diced.engine.memory import forget
from diced.errors import (
    AccessError,
    DicedException,
    EngineError,
    LocationError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
)


class TestMemory(EngineContract):
    @pytest.fixture
    def location(self):
        name = uuid.uuid4().hex
        yield f"memory://{name}"
        forget(name)

    def test_private_stores_are_apart(self):
        one, two = open_engine("memory://"), open_engine("memory://")
        one.put_if_absent("a", b"1", b"t")
        assert not two.exists("a")
        assert one.url != two.url
        assert open_engine(one.url, create=False).get("a") == b"1"

    def test_private_store_ends_with_its_engine(self):
        engine = open_engine("memory://")
        url = engine.url
        del engine
        with pytest.raises(LocationError):
            open_engine(url)

    def test_forget(self, location):
        engine = open_engine(location)
        engine.put_if_absent("a", b"1", b"t")
        forget(location.removeprefix("memory://"))
        assert engine.exists("a")
        assert not open_engine(location).exists("a")

    @pytest.mark.parametrize("name", ["a b", "../x", "a/b", "é"])
    def test_bad_name(self, name):
        with pytest.raises(LocationError):
            open_engine(f"memory://{name}")


class TestLocal(EngineContract):
    @pytest.fixture
    def location(self, tmp_path):
        return str(tmp_path / "store")


class TestLocalProcess(EngineContract):
    """With nothing fsynced."""

    @pytest.fixture
    def location(self, tmp_path):
        return str(tmp_path / "store")

    @pytest.fixture
    def engine(self, location):
        with open_engine(location, durability="process") as engine:
            yield engine


# ---- locations


def test_scheme_of_a_path(tmp_path):
    plain = open_engine(tmp_path / "a b%41é")
    plain.put_if_absent("k", b"1", b"t")
    assert plain.url.startswith("file:///")
    assert plain.url.isascii()
    assert open_engine(plain.url).get("k") == b"1"
    assert open_engine("file://localhost" + plain.url.removeprefix("file://")).exists("k")
    assert os.path.isdir(tmp_path / "a b%41é")


def test_home_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert open_engine("~/x").url == open_engine("x").url == open_engine(tmp_path / "x").url
    with pytest.raises(LocationError, match="home"):
        open_engine("~nobody-has-this-name/x")


def test_parents_are_made(tmp_path):
    open_engine(tmp_path / "a/b/c").put_if_absent("k", b"1", b"t")
    assert (tmp_path / "a/b/c/k").read_bytes() == b"1"


@pytest.mark.parametrize("tail", ["", "/inside", "/deep/inside"])
def test_location_in_a_file(tmp_path, tail):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocationError, match="file"):
        open_engine(f"{tmp_path}/file{tail}")


@pytest.mark.parametrize("url", ["", "a\0b", "file://", "file://host/x", "file://relative"])
def test_malformed_location(url):
    with pytest.raises(LocationError):
        open_engine(url)


def test_parent_that_cannot_be_made():
    with pytest.raises(LocationError, match="/proc/nothing"):
        open_engine("/proc/nothing/here")


@pytest.mark.parametrize("url", ["memori://x", "MEMORI://x"])
def test_unknown_scheme(url):
    with pytest.raises(LocationError, match="memory"):
        open_engine(url)


def test_scheme_is_case_insensitive():
    assert open_engine("MEMORY://").url.startswith("memory://")


# ---- the file system under the local engine


def open_fds():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def flaky_engine(root, durability="power", **fault):
    root.mkdir()
    system = FlakyOs(**fault)
    return LocalEngine(str(root), durability=durability, system=system), system


@pytest.fixture
def nameless_files(tmp_path):
    """The test needs a file system that makes files without a name."""
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except (AttributeError, OSError):
        pytest.skip("files have names from their birth here")


FAULTS = [
    {"number": errno.EIO},
    {"number": errno.ENOSPC},
    {"number": errno.EIO, "after": True},
    {"short": True},
]
NAMED = [{**fault, "nameless": False} for fault in FAULTS]


def every_fault(tmp_path, fault, work):
    """Yield (engine, system, root, error or None) for work(engine) with each k-th call failing."""
    k = 0
    while True:
        root = tmp_path / f"{k:03d}"
        engine, system = flaky_engine(root, fail_at=k, **fault)
        before = open_fds()
        error = None
        try:
            work(engine)
        except DicedException as raised:
            error = raised
        finished = len(system.calls) <= k
        system.fail_at = None
        yield engine, system, root, error
        engine.close()
        assert open_fds() <= before, system.calls
        if finished:
            assert error is None
            assert k > 3
            return
        k += 1


@pytest.mark.parametrize("fault", FAULTS + NAMED, ids=str)
def test_put_if_absent_with_every_call_failing(tmp_path, fault):
    def work(engine):
        assert engine.put_if_absent("lane/e0/0001", b"record" * 50, b"t") is True

    errors = 0
    for engine, system, root, error in every_fault(tmp_path, fault, work):
        errors += error is not None
        if fault.get("number") == errno.ENOSPC and error is not None:
            assert isinstance(error, NoSpaceError)
        # Absent or whole, and never anything else.
        assert list(engine.list("")) in ([], ["lane/e0/0001"])
        if engine.exists("lane/e0/0001"):
            assert engine.get("lane/e0/0001") == b"record" * 50
        else:
            assert error is not None, system.calls
        # The same call again succeeds, and somebody else's does not.
        assert engine.put_if_absent("lane/e0/0001", b"record" * 50, b"t") is True
        assert engine.put_if_absent("lane/e0/0001", b"others" * 50, b"u") is False
        assert list(engine.list("")) == ["lane/e0/0001"]
        temps = os.listdir(root / ".tmp") if os.path.isdir(root / ".tmp") else []
        assert len(temps) <= 1  # where unlink itself failed
        assert not temps or "unlink" in system.calls
    assert errors == 0 if fault.get("short") else errors > 3


@pytest.mark.parametrize("fault", FAULTS + NAMED, ids=str)
def test_losing_put_with_every_call_failing(tmp_path, fault):
    def work(engine):
        fail_at, engine._os.fail_at = engine._os.fail_at, None
        engine.put_if_absent("a/1", b"theirs", b"t")
        engine._os.calls.clear()
        engine._os.fail_at = fail_at
        assert engine.put_if_absent("a/1", b"mine", b"t") is False

    for engine, _, _, _ in every_fault(tmp_path, fault, work):
        assert engine.get("a/1") == b"theirs"
        assert engine.put_if_absent("a/1", b"mine", b"t") is False


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_put_unique_with_every_call_failing(tmp_path, fault):
    keys = []

    def work(engine):
        keys.clear()
        keys.append(engine.put_unique("segs", [b"one", b"two" * 100]))

    for engine, system, _, error in every_fault(tmp_path, fault, work):
        if error is None:
            assert engine.get(keys[0]) == b"one" + b"two" * 100, system.calls
        assert engine.get(engine.put_unique("segs", [b"again"])) == b"again"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_append_and_sync_with_every_call_failing(tmp_path, fault):
    logs, acknowledged = [], []

    def work(engine):
        logs.clear()
        acknowledged.clear()
        log = engine.appender("segs", ".seg")
        logs.append(log)
        try:
            for data in (b"a" * 100, b"b" * 200, b"c" * 300):
                offset = log.append([data[:50], data[50:]])
                log.sync()
                acknowledged.append((offset, data))
        except DicedException:
            assert log.failed
            for call in (lambda: log.append([b"x"]), log.sync):
                with pytest.raises(EngineError, match=log.key):
                    call()
            raise
        finally:
            log.close()

    for engine, system, _, error in every_fault(tmp_path, fault, work):
        assert (len(acknowledged) == 3) == (error is None), system.calls
        for offset, data in acknowledged:
            assert engine.get(logs[0].key, offset, len(data)) == data
        with engine.appender("segs") as again:
            assert again.append([b"fresh"]) == 0
            again.sync()
            assert engine.get(again.key) == b"fresh"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_reading_with_every_call_failing(tmp_path, fault):
    data = bytes(range(200))

    def work(engine):
        (tmp_path / engine.root / "a").write_bytes(data)
        assert engine.get("a") == data
        assert engine.get("a", 10, 50) == data[10:60]
        out = bytearray(80)
        engine.read_into("a", 20, out)
        assert out == data[20:100]
        assert engine.exists("a")
        assert engine.size("a") == 200

    for engine, _, _, error in every_fault(tmp_path, fault, work):
        assert error is None or "'a'" in str(error)
        assert engine.get("a", 10, 50) == data[10:60]


def test_error_after_the_link_was_made(tmp_path):
    engine, system = flaky_engine(tmp_path / "s")
    engine.put_if_absent("a/0", b"warm up", b"t")
    system.calls.clear()
    engine.put_if_absent("a/1", b"x", b"t")
    system.fail_at, system.after = system.calls.index("link"), True
    system.calls.clear()
    assert engine.put_if_absent("a/2", b"mine", b"t") is True
    assert engine.get("a/2") == b"mine"


@pytest.mark.parametrize("nameless", [True, False])
def test_link_made_but_neither_answered_nor_readable(tmp_path, nameless):
    class LossyOs(FlakyOs):
        def open(self, path, *args):
            if path.endswith("a/1"):
                raise OSError(errno.EIO, "unreadable")
            return os.open(path, *args)

        def link(self, *args, **options):
            os.link(*args, **options)
            raise OSError(errno.EIO, "no answer")

    (tmp_path / "s").mkdir()
    engine = LocalEngine(str(tmp_path / "s"), system=LossyOs(nameless=nameless))
    assert engine.put_if_absent("a/1", b"mine", b"t") is True
    assert open_local(str(tmp_path / "s")).get("a/1") == b"mine"


@pytest.mark.parametrize("durability", ["power", "process"])
def test_error_of_close_is_an_error(tmp_path, durability):
    (tmp_path / "s").mkdir()
    system = FlakyOs(nameless=False)
    engine = LocalEngine(str(tmp_path / "s"), durability=durability, system=system)
    for put in (
        lambda name: engine.put_if_absent(f"a/{name}", b"x", b"t"),
        lambda name: engine.put_unique("a", [b"x"]),
    ):
        put("warm-up")
        before = list(engine.list(""))
        system.calls.clear()
        system.fail_at = "close"
        with pytest.raises(EngineError):
            put("bad")
        assert list(engine.list("")) == before
        system.fail_at = None


def test_error_of_link_when_another_won(tmp_path):
    engine, system = flaky_engine(tmp_path / "s")
    engine.put_if_absent("a/0", b"theirs", b"t")
    system.calls.clear()
    engine.put_if_absent("a/1", b"x", b"t")
    system.fail_at = system.calls.index("link")
    system.calls.clear()
    assert engine.put_if_absent("a/0", b"mine", b"t") is False


@pytest.mark.parametrize("name", ["open", "link"])
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EXDEV])
def test_file_system_without_nameless_files(tmp_path, nameless_files, name, number):
    """The first attempt fails, and from then on files have a name from their birth."""
    engine, system = flaky_engine(tmp_path / "s", "process", number=number)
    engine.put_if_absent("a/0", b"x", b"t")
    assert not (tmp_path / "s/.tmp").exists()
    system.calls.clear()
    engine.put_if_absent("a/1", b"x", b"t")
    system.fail_at = system.calls.index(name)
    system.calls.clear()
    for key in ("a/2", "a/3"):
        before = open_fds()
        assert engine.put_if_absent(key, b"mine", b"t") is True
        assert open_fds() == before
        assert engine.get(key) == b"mine"
        assert engine.put_if_absent(key, b"theirs", b"t") is False
    assert "unlink" in system.calls
    assert os.listdir(tmp_path / "s/.tmp") == []


def test_a_stage_left_without_a_key_leaves_nothing(tmp_path):
    for nameless in (True, False):
        engine, _ = flaky_engine(tmp_path / str(nameless), nameless=nameless)
        engine.put_if_absent("a/1", b"x", b"t")
        before = open_fds()
        with engine.stage("a", b"mine", b"t") as staged:
            staged.write()
            staged.sync()
            assert staged.name("a/1") is False
            staged.settle()
        assert list(engine.list("")) == ["a/1"]
        assert open_fds() == before
        assert engine.sweep_temps(0) == 0


def test_unknown_file_systems_get_no_nameless_files(tmp_path, monkeypatch):
    """At power durability, since on some a file that was synced without a name may end empty."""
    monkeypatch.setattr("diced.engine.local.file_system", lambda path: "btrfs")
    for durability in ("power", "process"):
        engine, system = flaky_engine(tmp_path / durability, durability)
        engine.put_if_absent("a/1", b"x", b"t")
        assert "unlink" in system.calls or durability == "process"


def test_files_made_ahead(tmp_path, nameless_files):
    """Many objects in a row, in threads and over a fork: each has its own bytes."""
    before = open_fds()
    engine = open_local(str(tmp_path / "s"), durability="process")

    def work(number):
        for i in range(40):
            assert engine.put_if_absent(f"a/{number}-{i}", b"%d-%d" % (number, i), b"t")

    for number in range(0, 6, 2):
        work(number)
        assert run_forked(lambda number=number: work(number + 1)) == 0
    run_together(4, lambda number: work(6 + number))
    for number in range(10):
        for i in range(40):
            assert engine.get(f"a/{number}-{i}") == b"%d-%d" % (number, i)
    engine.close()
    wait = time.monotonic() + 10
    while open_fds() > before and time.monotonic() < wait:
        time.sleep(0.01)  # one may be in the making
    assert open_fds() <= before


def test_threads_share_directory_syncs(tmp_path):
    """Every key is durable when its put returns: a sync began after its link."""

    class Watching(FlakyOs):
        linked, synced = 0, 0

        def link(self, *args, **options):
            os.link(*args, **options)
            self.linked += 1

        def fsync(self, fd):
            covered = self.linked
            self.calls.append("fsync")
            time.sleep(0.01)
            os.fsync(fd)
            self.synced = max(self.synced, covered)

    system = Watching()
    (tmp_path / "s").mkdir()
    engine = LocalEngine(str(tmp_path / "s"), system=system)
    engine.put_if_absent("a/first", b"x", b"t")
    order = threading.Lock()
    behind = []

    def work(number):
        for i in range(10):
            with engine.stage("a", b"x", b"t") as staged:
                staged.write()
                staged.sync()
                with order:  # as a lane's turn: then the count tells which links a sync covers
                    assert staged.name(f"a/{number}-{i}")
                    mine = system.linked
                staged.settle()
                if system.synced < mine:
                    behind.append((number, i))

    run_together(8, work)
    assert not behind
    assert system.calls.count("fsync") < 60


def test_a_failed_directory_sync_fails_all_who_share_it(tmp_path):
    begun, go = threading.Event(), threading.Event()

    class Failing(FlakyOs):
        armed = False

        def fsync(self, fd):
            if not self.armed:
                return os.fsync(fd)
            begun.set()
            assert go.wait(30)
            raise OSError(errno.EIO, "no")

    system = Failing()
    (tmp_path / "s").mkdir()
    engine = LocalEngine(str(tmp_path / "s"), system=system)
    engine.put_if_absent("a/first", b"x", b"t")
    system.armed = True
    failed = []

    def put(number):
        try:
            engine.put_if_absent(f"a/{number}", b"x", b"t")
        except EngineError:
            failed.append(number)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(6)]
    for each in threads:
        each.start()
    assert begun.wait(30)
    go.set()
    for each in threads:
        each.join()
    assert sorted(failed) == list(range(6))
    system.armed = False
    assert engine.put_if_absent("a/0", b"x", b"t") is True


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EACCES, AccessError),
        (errno.EROFS, AccessError),
        (errno.EIO, EngineError),
    ],
)
def test_translation_of_errors(tmp_path, number, kind):
    engine, system = flaky_engine(tmp_path / "s", number=number, fail_at=0)
    with pytest.raises(EngineError, match="some/key") as caught:
        engine.put_if_absent("some/key", b"", b"t")
    assert type(caught.value) is kind
    assert os.strerror(number) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    system.calls.clear()
    with pytest.raises(EngineError, match="some/key") as caught:
        engine.get("some/key")
    assert type(caught.value) is kind


def test_power_syncs_file_before_link_and_directories_after(tmp_path):
    engine, system = flaky_engine(tmp_path / "s")
    engine.put_if_absent("a/b/1", b"x", b"t")
    calls = system.calls
    assert "fdatasync" in calls[: calls.index("link")]
    assert "fsync" in calls[calls.index("link") :]
    # Root and "a" name new directories, "a/b" names the object.
    assert calls.count("fsync") == 3
    calls.clear()
    engine.put_if_absent("a/b/2", b"x", b"t")
    assert calls.count("fsync") == 1


def test_appender_is_named_once(tmp_path):
    engine, system = flaky_engine(tmp_path / "s")
    with engine.appender("a") as log:
        system.calls.clear()
        for _ in range(3):
            log.append([b"x"])
            log.sync()
    assert system.calls.count("fdatasync") == 3
    assert system.calls.count("fsync") == 1


def test_process_never_syncs(tmp_path):
    system = FlakyOs()
    (tmp_path / "s").mkdir()
    engine = LocalEngine(str(tmp_path / "s"), durability="process", system=system)
    engine.put_if_absent("a/b/1", b"x", b"t")
    engine.put_unique("a", [b"x"])
    with engine.appender("a") as log:
        log.append([b"x"])
        log.sync()
    assert not {"fsync", "fdatasync"} & set(system.calls)


def test_one_flush_serves_many_callers(tmp_path):
    """Callers that wait while a flush runs share the next one."""
    (tmp_path / "s").mkdir()
    begun, go_on = threading.Event(), threading.Event()

    class SlowOs(FlakyOs):
        def __getattr__(self, name):
            call = super().__getattr__(name)
            if name != "fdatasync":
                return call

            def slow(fd):
                begun.set()
                assert go_on.wait(30)
                return call(fd)

            return slow

    system = SlowOs()
    engine = LocalEngine(str(tmp_path / "s"), system=system)
    with engine.appender("a") as log:
        log.append([b"first"])
        first = threading.Thread(target=log.sync)
        first.start()
        assert begun.wait(30)
        arrived = []

        def late():
            log.append([b"late"])
            arrived.append(1)
            log.sync()

        others = [threading.Thread(target=late) for _ in range(6)]
        for thread in others:
            thread.start()
        while len(arrived) < 6:
            time.sleep(0.001)
        time.sleep(0.05)  # from arriving to waiting in sync
        assert all(thread.is_alive() for thread in others)
        assert system.calls.count("fdatasync") == 0
        go_on.set()
        for thread in [first, *others]:
            thread.join(30)
        # The late ones' bytes came after the first flush began, so it cannot have served them.
        assert 2 <= system.calls.count("fdatasync") <= 3


def test_failed_sync_fails_all_who_waited(tmp_path):
    engine, system = flaky_engine(tmp_path / "s")
    log = engine.appender("a")
    log.append([b"x"])
    system.fail_at = len(system.calls)
    outcomes = []

    def work(_):
        try:
            log.sync()
        except EngineError:
            outcomes.append("failed")

    run_together(4, work)
    assert outcomes == ["failed"] * 4
    log.close()


def test_temps_are_swept_when_old(tmp_path):
    engine = open_local(str(tmp_path / "s"))
    assert engine.sweep_temps() == 0
    engine.put_if_absent("a", b"1", b"t")
    (tmp_path / "s/.tmp").mkdir()
    stale, fresh = tmp_path / "s/.tmp/stale", tmp_path / "s/.tmp/fresh"
    stale.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(stale, (time.time() - 100_000,) * 2)
    assert list(engine.list("")) == ["a"]
    assert engine.sweep_temps() == 1
    assert not stale.exists() and fresh.exists()
    assert engine.sweep_temps(older_than_seconds=0) == 1
    with pytest.raises(ReadOnlyError):
        open_local(str(tmp_path / "s"), readonly=True).sweep_temps()


def test_foreign_files_are_not_listed(tmp_path):
    engine = open_local(str(tmp_path / "s"))
    engine.put_if_absent("a/b", b"1", b"t")
    for name in (".nfs000123", "B~", "a/.DS_Store", "lost found"):
        (tmp_path / "s" / name).write_text("x")
    assert list(engine.list("")) == ["a/b"]


@pytest.mark.parametrize("nameless", [True, False])
def test_directory_removed_under_the_engine(tmp_path, nameless_files, nameless):
    engine, _ = flaky_engine(tmp_path / "s", "process", nameless=nameless)
    engine.put_if_absent("a/b/1", b"1", b"t")
    engine.delete("a/b/1")
    os.rmdir(tmp_path / "s/a/b")
    os.rmdir(tmp_path / "s/a")
    if not nameless:
        os.rmdir(tmp_path / "s/.tmp")
    assert engine.put_if_absent("a/b/1", b"2", b"t")
    assert (tmp_path / "s/.tmp").exists() != nameless
    assert engine.get("a/b/1") == b"2"


def test_store_removed_under_the_engine(tmp_path):
    engine = open_local(str(tmp_path / "s"))
    os.rmdir(tmp_path / "s")
    with pytest.raises(LocationError, match="gone"):
        engine.put_if_absent("a", b"1", b"t")
    with pytest.raises(LocationError, match="gone"):
        engine.appender("a")
    with pytest.raises(NotFoundError):
        engine.get("a")
    assert not (tmp_path / "s").exists()


def test_few_files_stay_open(tmp_path):
    engine = LocalEngine(str(tmp_path), durability="process", max_handles=4)
    keys = [engine.put_unique("a", [bytes([i]) * 10]) for i in range(40)]
    before = open_fds()
    for round_ in range(3):
        for number, key in enumerate(keys):
            assert engine.get(key, round_, 2) == bytes([number]) * 2
    assert open_fds() <= before + 4

    def work(who):
        for number, key in enumerate(keys * 5):
            assert engine.get(key, who, 1) == bytes([number % 40])
            if number % 40 == who:
                engine.delete(engine.put_unique("b", [b""]))

    run_together(8, work)
    assert open_fds() <= before + 4
    engine.close()
    assert open_fds() <= before


def test_reading_while_deleting(tmp_path):
    engine = LocalEngine(str(tmp_path), durability="process", max_handles=2)
    for round_ in range(30):
        key = engine.put_unique("a", [bytes([round_]) * 100])

        def work(who, key=key, round_=round_):
            if who == 0:
                engine.delete(key)
                return
            for start in range(10):
                try:
                    assert engine.get(key, start, 50) == bytes([round_]) * 50
                except NotFoundError:
                    return

        run_together(4, work)
        assert not engine.exists(key)


def test_abandoned_appender_closes_its_file(tmp_path):
    engine = open_local(str(tmp_path / "s"))
    before = open_fds()
    log = engine.appender("a")
    log.append([b"x"])
    assert open_fds() == before + (before > 0)
    del log
    assert open_fds() == before


# ---- several processes

RACER = """
import sys, time
from diced.engine import open_engine
who, rounds, start = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
engine = open_engine(sys.argv[1], durability="process")
time.sleep(max(0, start - time.time()))
for number in range(rounds):
    if engine.put_if_absent(f"lane/{number:06d}", b"%d:%d" % (who, number), b"t"):
        print(number)
"""


def start_python(code, *args):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, env=env
    )


def test_processes_race_for_numbers(tmp_path):
    rounds = 300
    start = time.time() + 0.5
    racers = [start_python(RACER, tmp_path / "s", who, rounds, start) for who in range(4)]
    wins = {}
    for who, racer in enumerate(racers):
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        for number in map(int, out.split()):
            assert number not in wins
            wins[number] = who
    assert sorted(wins) == list(range(rounds))
    engine = open_engine(tmp_path / "s", readonly=True)
    for number, who in wins.items():
        assert engine.get(f"lane/{number:06d}") == b"%d:%d" % (who, number)
    assert list(engine.list("")) == [f"lane/{number:06d}" for number in range(rounds)]


HOLDER = """
import sys, time
from diced.engine import open_engine
with open_engine(sys.argv[1]).turn("lane/1"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_turn_of_a_killed_process_is_free(tmp_path):
    holder = start_python(HOLDER, tmp_path / "s")
    with holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    with open_engine(tmp_path / "s") as engine, engine.turn("lane/1"):
        assert len(engine._locks._held) == 1


def test_turn_of_a_stopped_process_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("diced.engine.base.Turns.PATIENCE", 0.05)
    holder = start_python(HOLDER, tmp_path / "s")
    with holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        try:
            with open_engine(tmp_path / "s") as engine, engine.turn("lane/1"):
                assert engine.put_if_absent("a", b"1", b"t")
        finally:
            holder.kill()


def test_turn_is_not_kept_by_a_forked_child(tmp_path):
    engine = open_engine(tmp_path / "s")
    ready, done = os.pipe(), os.pipe()

    with engine.turn("lane/1"):
        pid = fork()
        if pid == 0:
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    with engine.turn("lane/1"):
        assert len(engine._locks._held) == 1
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    for fd in (*ready, *done):
        os.close(fd)


def test_child_leaving_a_turn_does_not_end_its_parents(tmp_path):
    engine = open_engine(tmp_path / "s")
    parent = os.getpid()
    try:
        with engine.turn("lane/1"):
            (path,) = (tmp_path / "s/.turn").iterdir()
            pid = fork()
            if pid:
                os.waitpid(pid, 0)
                with open(path) as file, pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        if os.getpid() != parent:
            os._exit(0)


def test_fork_while_handles_are_being_changed(tmp_path):
    engine = open_engine(tmp_path / "s")
    key = engine.put_unique("a", [b"0123456789"])
    assert engine.get(key, 2, 2) == b"23"
    with engine._handles._lock:
        assert run_forked(lambda: engine.get(key, 4, 2), timeout=10) == 0
    assert engine.get(key, 2, 2) == b"23"


def test_child_reads_through_its_parents_handles(tmp_path):
    engine = open_engine(tmp_path / "s")
    key = engine.put_unique("a", [b"0123456789"])
    assert engine.get(key, 2, 2) == b"23"

    def child():
        assert engine.get(key, 4, 2) == b"45"
        assert engine.put_if_absent("b", b"child", b"t")

    assert run_forked(child) == 0
    assert engine.get(key, 6, 2) == b"67"
    assert engine.get("b") == b"child"


def test_too_many_open_files_is_tried_again_without_the_idle_ones(tmp_path):
    engine, system = flaky_engine(tmp_path / "s", number=errno.EMFILE, fail_at=10**9)
    for number in range(3):
        engine.put_if_absent(f"some/key{number}", b"data", b"")
    for number in range(3):
        assert engine.get(f"some/key{number}", 0, 4) == b"data"
    assert len(engine._handles._kept) == 3
    engine.put_if_absent("some/other", b"more", b"")
    system.fail_at = len(system.calls)
    assert engine.get("some/other", 1, 2) == b"or"
    assert len(engine._handles._kept) == 1
