"""One commit's way to the disk: its record, the order of syncs, and threads that share them."""

import dis
import errno
import os
import struct
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from flaky import FlakyOs
from hypothesis import given
from hypothesis import strategies as st

from diced import CorruptError, DicedStore, EngineError, UnsupportedError, registry, segment
from diced._crc32c import crc32c
from diced.engine.appender import Appender
from diced.engine.aside import Aside, Flushes
from diced.engine.local import LocalEngine
from diced.engine.memory import open_memory
from diced.log import DATA, MAX_ROWS, RECORD, SECTION, Record

# -- records ---------------------------------------------------------------------------------

pointers = st.tuples(
    st.integers(0, 2**64 - 1), st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1)
)
entries = st.one_of(st.none(), st.binary(max_size=300), pointers)
keys = st.binary(min_size=1, max_size=40)
deltas = st.dictionaries(
    st.integers(0, 255), st.dictionaries(keys, entries, min_size=1, max_size=20), max_size=3
)
reads = st.dictionaries(
    st.integers(0, 255), st.lists(keys, min_size=1, unique=True).map(sorted), max_size=2
)


@given(deltas, reads)
def test_records_come_back(delta, read):
    data = Record(DATA, {"txid": "00"}, delta, read).encode()
    found = Record.decode(data, "r")
    assert (found.type, found.head, found.delta, found.reads) == (DATA, {"txid": "00"}, delta, read)


@pytest.mark.parametrize("count", [1, MAX_ROWS, MAX_ROWS + 1, 5000])
@pytest.mark.parametrize("entry", [(2**64 - 1, 2**48 - 1, 2**32 - 1), b"x" * 500, None])
def test_records_of_every_size_come_back(count, entry):
    delta = {7: {b"%07d" % i: entry for i in reversed(range(count))}}
    found = Record.decode(Record(DATA, {}, delta).encode(), "r")
    assert found.delta == delta
    assert list(found.delta[7]) == sorted(delta[7])


def sealed(rows, form=1):
    body = RECORD.pack(b"dRec", 1, DATA, 1, 2) + b"{}"
    body += SECTION.pack(1, 0, form, len(rows)) + rows
    return body + struct.pack("<I", crc32c(body))


def test_bad_rows_are_told():
    good = Record(DATA, {}, {0: {b"a": (1, 2, 3), b"b": b"xyz", b"c": None}}).encode()
    rows = good[RECORD.size + 2 + SECTION.size : -4]
    assert sealed(rows) == good
    ends = {0, *(len(sealed_rows(n)) for n in (1, 2, 3))}
    for end in range(len(rows)):
        if end in ends:
            assert len(Record.decode(sealed(rows[:end]), "r").delta[0]) == sorted(ends).index(end)
        else:
            with pytest.raises(CorruptError):
                Record.decode(sealed(rows[:end]), "r")
    for bad in (rows + rows, rows[:24] + rows[:24], b"\1\0\7a"):
        with pytest.raises(CorruptError, match=r"ascending|kind"):
            Record.decode(sealed(bad), "r")
    with pytest.raises(UnsupportedError):
        Record.decode(sealed(rows, form=2), "r")


def sealed_rows(count):
    delta = dict(list({b"a": (1, 2, 3), b"b": b"xyz", b"c": None}.items())[:count])
    return Record(DATA, {}, {0: delta}).encode()[RECORD.size + 2 + SECTION.size : -4]


# -- a thread aside --------------------------------------------------------------------------


def test_both_are_done_whoever_does_them():
    aside = Aside("test")
    for _ in range(50):
        seen: list[int] = []

        def here(seen=seen):
            seen.append(threading.get_ident())

        aside.both(here, partial(seen.append, 0))
        assert sorted(seen) == [0, threading.get_ident()]
    started, go = threading.Event(), threading.Event()

    def slow():
        started.set()
        assert go.wait(30)

    waiting = threading.Thread(target=aside.both, args=(lambda: None, slow))
    waiting.start()
    assert started.wait(30)
    ran = []
    aside.both(lambda: ran.append("here"), lambda: ran.append("aside"))  # nobody is free: inline
    aside.later(lambda: ran.append("later"))
    assert sorted(ran) == ["aside", "here"]
    go.set()
    waiting.join()


def test_errors_of_both_are_raised_when_both_have_ended():
    aside = Aside("test")
    ended = []

    def fail(error):
        raise error

    def slow():
        time.sleep(0.05)
        ended.append(1)

    with pytest.raises(KeyboardInterrupt):
        aside.both(lambda: fail(KeyboardInterrupt()), slow)
    assert ended == [1]
    with pytest.raises(ZeroDivisionError):
        aside.both(slow, lambda: fail(ZeroDivisionError()))
    assert ended == [1, 1]
    aside.both(slow, slow)
    assert len(ended) == 4


# -- joined flushes and interrupts -----------------------------------------------------------


def interrupted(call, code, number):
    """Call, with an interrupt at the `number`th place of `code` that takes one; False if none.

    Those are the places behind a call, a jump back, and a function's entry.
    """
    names = {each.offset: each.opname for each in dis.get_instructions(code)}
    before, left = "", number

    def trace(frame, event, _):
        nonlocal before, left
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            before = names[frame.f_lasti]
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(old)
    return left <= 0


def ends(call):
    """Whether a call in another thread comes to an end."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_an_interrupted_flush_keeps_nobody_waiting():
    number = 1
    while True:
        flushes, flushed = Flushes(threading.Lock()), []
        found = interrupted(
            lambda flushes=flushes: flushes.join(lambda: None), Flushes.join.__code__, number
        )
        assert ends(lambda: flushes.join(lambda: flushed.append(1))), number  # noqa: B023
        assert flushed == [1]
        assert flushes.running is None
        if not found:
            break
        number += 1
    assert number > 5


def test_an_interrupted_append_keeps_nobody_waiting():
    number = 1
    while True:
        engine = open_memory("")
        appender = engine.appender("a")
        found = interrupted(lambda a=appender: a.append([b"xy"]), Appender.append.__code__, number)
        if not appender.failed:
            assert len(engine.get(appender.key)) == appender.size
        assert ends(appender.close), number
        if not found:
            break
        number += 1
    assert number > 5


class SlowToTake:
    """A lock that one thread does not get until told."""

    def __init__(self):
        self.lock = threading.Lock()
        self.late, self.told = None, threading.Event()

    def __enter__(self):
        if threading.current_thread() is self.late:
            assert self.told.wait(30)
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def test_a_failed_flush_fails_also_who_wakes_after_a_good_one():
    lock = SlowToTake()
    flushes = Flushes(lock)
    running, go, waits = threading.Event(), threading.Event(), threading.Event()
    told = []

    def first():
        running.set()
        assert go.wait(30)

    def wait():
        with pytest.raises(EngineError, match="shared"):
            flushes.join(lambda: told.append("flushed by the waiter"), waits.set)
        told.append("failed")

    leader = threading.Thread(target=flushes.join, args=(first,))
    leader.start()
    assert running.wait(30)
    waiter = threading.Thread(target=wait)
    waiter.start()
    assert waits.wait(30)
    with lock:  # the waiter is out of it
        lock.late = waiter
    go.set()
    leader.join()

    def fail():
        raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"):
        flushes.join(fail)
    flushes.join(lambda: None)
    lock.told.set()
    waiter.join()
    assert told == ["failed"]


def test_a_directory_sync_that_failed_fails_all_names_before_it(tmp_path):
    system = FlakyOs()
    with LocalEngine(str(tmp_path), system=system) as engine:
        staged = [engine.stage("d", b"%d" % i, b"t") for i in range(3)]
        for i, each in enumerate(staged):
            each.write()
            each.sync()
            if i < 2:
                assert each.name(f"d/{i}")

        def fail(fd):
            raise OSError(errno.EIO, "no")

        system.fsync = fail
        with pytest.raises(EngineError, match="EIO"):
            staged[0].settle()
        del system.fsync
        with pytest.raises(EngineError, match="shared"):
            staged[1].settle()
        assert staged[2].name("d/2")
        staged[2].settle()
        for each in staged:
            each.close()


def test_a_commit_while_the_interpreter_ends(tmp_path):
    program = f"""
import numpy as np
from diced import DicedStore
store = DicedStore({str(tmp_path / "s")!r})
array = store.create_repo("r").create_array("a", np.uint8, block_shape=(8, 8, 8))
array[:8, :8, :8] = 1
class Last:
    array = array
    def __del__(self):
        self.array[:8, :8, :8] = self.value
last = Last()
last.value = np.full((8, 8, 8), 7, np.uint8)
last.me = last
"""
    where = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": where},
    )
    with DicedStore(str(tmp_path / "s")) as store:
        assert (store.open_repo("r")["a"][:8, :8, :8] == 7).all()


# -- commits ---------------------------------------------------------------------------------

BLOCK = (8, 8, 8)


class Slow(FlakyOs):
    """Syncs take a while, as on a disk, and each link is checked against what was synced."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.written, self.durable = {}, {}
        self.syncs = 0
        self.early = []
        self.armed = False
        self.fail = None

    def open(self, path, *args):
        fd = os.open(path, *args)
        with self.lock:
            self.written[fd] = self.durable[fd] = 0
        return fd

    def _wrote(self, fd, count):
        with self.lock:
            self.written[fd] = self.written.get(fd, 0) + count
        return count

    def write(self, fd, data):
        return self._wrote(fd, os.write(fd, data))

    def pwritev(self, fd, views, offset):
        return self._wrote(fd, os.pwritev(fd, views, offset))

    def fdatasync(self, fd):
        with self.lock:
            covered = self.written.get(fd, 0)
            self.syncs += 1
            if self.fail is not None and self.fail(fd):
                raise OSError(errno.EIO, "no")
        if self.armed:
            time.sleep(0.005)
        os.fdatasync(fd)
        with self.lock:
            self.durable[fd] = max(self.durable.get(fd, 0), covered)

    def fsync(self, fd):
        with self.lock:
            self.syncs += 1
        if self.armed:
            time.sleep(0.005)
        os.fsync(fd)

    def link(self, source, path, **options):
        name = source.rpartition("/")[2]
        with self.lock:
            if name.isdigit() and self.written[int(name)] != self.durable[int(name)]:
                self.early.append(path)
        os.link(source, path, **options)


@pytest.fixture
def slow(tmp_path):
    """A store on a Slow system, with an array of small blocks."""
    system = Slow()

    def open_slow(location, **options):
        options.pop("create")
        return LocalEngine(location, system=system, **options)

    registry.register("engine", "slow", open_slow, replace=True)
    (tmp_path / "s").mkdir()
    store = DicedStore(f"slow://{tmp_path / 's'}", threads=1)
    array = store.create_repo("r").create_array("a", np.uint16, block_shape=BLOCK)
    array[0, 0, 0] = 1
    yield system, store, array
    system.fail = None
    store.close()


def block(value):
    return np.arange(512, dtype=np.uint16).reshape(BLOCK) * value


def in_threads(count, work):
    errors = []

    def body(number):
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return errors


def test_threads_share_syncs(slow):
    system, store, array = slow
    system.armed, system.syncs = True, 0

    def work(number):
        for i in range(10):
            array[8 * number : 8 * number + 8, 0:8, 8 * i : 8 * i + 8] = block(10 * number + i + 1)

    assert in_threads(8, work) == []
    # Alone each commit takes three: of the segment, of its record, of the record's directory.
    assert system.syncs < 2.5 * 80
    assert system.early == []
    again = DicedStore(store.engine.root, readonly=True).open_repo("r")["a"]
    for number in range(8):
        for i in range(10):
            got = again[8 * number : 8 * number + 8, 0:8, 8 * i : 8 * i + 8]
            assert (got == block(10 * number + i + 1)).all()
    assert sum(1 for _ in store.open_repo("r").operations("a")) == 81


def test_a_record_is_named_after_its_data_is_durable(slow):
    """The segment as well: what it holds when a record is named was written before its sync."""
    system, _, array = slow
    lane = array._blocks().lane
    name = lane.log.name
    behind = []

    def checked(staged, number):
        segment = lane.home.writer._active
        if system.written[segment._fd] != system.durable[segment._fd]:
            behind.append(number)
        return name(staged, number)

    lane.log.name = checked
    for i in range(5):
        array[0:8, 0:8, 8 * i : 8 * i + 8] = block(i + 2)
    assert behind == []
    assert system.early == []


def test_errors_reach_only_whose_they_are(slow):
    system, store, array = slow
    system.armed = True
    lane = array._blocks().lane

    def work(number):
        for i in range(6):
            if number == 0:
                with pytest.raises(ZeroDivisionError):
                    lane.commit(lambda state, touched: 1 // 0, op="bad", user="u")
            else:
                array[8 * number : 8 * number + 8, 0:8, 8 * i : 8 * i + 8] = block(number + i)

    assert in_threads(4, work) == []
    assert sum(1 for _ in store.open_repo("r").operations("a")) == 1 + 3 * 6


def test_a_failed_segment_fails_its_commits_and_no_other(slow):
    system, store, array = slow
    system.armed = True
    segment = array._blocks().lane.home.writer._active._fd
    system.fail = lambda fd: fd == segment
    done, failed = [], []
    lock = threading.Lock()

    def work(number):
        for i in range(5):
            place = (slice(8 * number, 8 * number + 8), slice(0, 8), slice(8 * i, 8 * i + 8))
            try:
                array[place] = block(7 * number + i + 1)
            except EngineError:
                with lock:
                    failed.append((number, i))
            else:
                with lock:
                    done.append((number, i))

    assert in_threads(4, work) == []
    assert failed and len(done) + len(failed) == 20
    again = DicedStore(store.engine.root, readonly=True).open_repo("r")["a"]
    for number, i in done:
        place = (slice(8 * number, 8 * number + 8), slice(0, 8), slice(8 * i, 8 * i + 8))
        assert (again[place] == block(7 * number + i + 1)).all()
    assert sum(1 for _ in store.open_repo("r").operations("a")) == 1 + len(done)


def test_an_interrupted_commit_leaves_the_lane_usable(slow, monkeypatch):
    _, _, array = slow
    lane = array._blocks().lane
    for where in ("name", "stage"):
        with monkeypatch.context() as patch:

            def interrupt(*args):
                raise KeyboardInterrupt

            patch.setattr(lane.log, where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                array[0:8, 0:8, 0:8] = block(3)
        array[0:8, 0:8, 8:16] = block(4)
    assert array[0, 0, 0] == 1
    assert (array[0:8, 0:8, 8:16] == block(4)).all()


def test_a_write_of_what_is_there_waits_until_it_is_durable(slow, monkeypatch):
    """Somebody else's record may have its name already, and its directory's sync still to come."""
    system, store, array = slow
    place = (slice(0, 8), slice(0, 8), slice(0, 8))

    def fail(fd):
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(system, "fsync", fail)
        with pytest.raises(EngineError):
            array[place] = block(3)
        with pytest.raises(EngineError):
            array[place] = block(3)
    count = sum(1 for _ in store.open_repo("r").operations("a"))
    for wanted in (1, 0):
        system.syncs = 0
        array[place] = block(3)
        assert system.syncs == wanted
    array[place] = block(4)
    with DicedStore(store.engine.url.replace("file", "slow"), threads=1) as other:
        again = other.open_repo("r")["a"]
        assert (again[place] == block(4)).all()
        counts = []
        for _ in range(2):
            before = system.syncs
            again[place] = block(4)
            counts.append(system.syncs - before)
    assert counts[0] > 0 and counts[1] == 0
    system.syncs = 0
    array[place] = block(4)
    assert system.syncs == 0
    assert sum(1 for _ in store.open_repo("r").operations("a")) == count + 1


def test_a_retired_segment_is_synced_with_the_append_that_was_running(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "ROLL_BYTES", 1)
    monkeypatch.setattr(segment, "MAX_UNSYNCED", 1)
    writing, go = threading.Event(), threading.Event()

    class Held(Slow):
        def pwritev(self, fd, views, offset):
            if threading.current_thread().name == "held":
                writing.set()
                assert go.wait(30)
            return super().pwritev(fd, views, offset)

    system = Held()
    engine = LocalEngine(str(tmp_path), system=system)
    writer = segment.SegmentWriter(engine, "h")
    behind = []

    def held():
        appender, _ = writer.append([b"x" * 100])
        segment.sync_all([appender])
        behind.append(system.written[fd] - system.durable[fd])

    thread = threading.Thread(target=held, name="held")
    thread.start()
    assert writing.wait(30)
    first = writer._active
    fd = first._fd
    first.size = 1  # as if another append had filled it

    other = threading.Thread(target=writer.append, args=([b"y"],))
    other.start()
    other.join(0.2)  # retires the first segment now, or waits for it
    go.set()
    thread.join()
    other.join()
    assert behind == [0]
    writer.close()
    engine.close()
