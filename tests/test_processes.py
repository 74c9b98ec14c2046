"""Forks, spawned processes and threads: no hang, nothing shared, nothing left."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import far
import numpy as np
import pytest
from engine_contract import fork

from diced import DicedArray, DicedStore, EngineError, fsck, pool
from diced.engine import memory
from diced.session import WriteSession

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

BLOCK = (16, 16, 16)
WAIT = 30  # seconds after which something is taken to hang
Box = tuple[slice, slice, slice]


class Place:
    """A location, and how durable a store at it is."""

    def __init__(self, location: str, durability: str, gcs: Any = None):
        self.location = location
        self.durability = durability
        self.gcs = gcs

    def open(self, **options: Any) -> DicedStore:
        return DicedStore(self.location, durability=self.durability, max_age=0, **options)

    def beside(self, name: str) -> Place:
        return Place(f"{self.location}-{name}", self.durability, self.gcs)

    def create(self) -> DicedStore:
        store = self.open()
        store.create_repo("r").create_array("a", np.uint32, block_shape=BLOCK, codec="raw")
        return store

    def operations(self) -> Counter[str]:
        """Return how often each operation was committed, after a check of the whole store."""
        with self.open() as store:
            assert fsck.check(store, full=True).ok
            return Counter(each["operation"] for each in store.open_repo("r").operations("a"))


def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "gcs":
        gcs = request.getfixturevalue("gcs")
        return Place(gcs.url(), "power", gcs)
    return Place(str(tmp_path / "store"), request.param)


@pytest.fixture(params=["power", "process", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request, tmp_path)


def box(number: int, blocks: int = 1) -> Box:
    """Return whole blocks that no other number has."""
    z = 16 * blocks
    return slice(0, 16 * blocks), slice(0, z), slice(128 * number, 128 * number + z)


def noise(number: int, blocks: int = 1) -> np.ndarray:
    """Return voxels that tell who wrote them, and that no codec makes smaller."""
    shape = (16 * blocks,) * 3
    return np.random.default_rng(number).integers(0, 2**32, shape, np.uint32)


def die_if_it_hangs() -> None:
    """In a forked child: tell where all threads are after WAIT seconds, and end."""
    # Not `dump_traceback_later`: pytest's own waits for a thread that the child does not have.
    faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
    signal.alarm(WAIT)


def begin_child(work: Callable[[], None]) -> int:
    """Fork; the child does its work, and tells where it hangs, if it does."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            die_if_it_hangs()
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return pid


def end_child(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def threads(count: int, work: Callable[[int], None]) -> Iterator[None]:
    """Run work(0..count-1) on threads beside the block; all must end, and none raise."""
    errors: list[BaseException] = []

    def body(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=body, args=(i,), daemon=True) for i in range(count)]
    for each in running:
        each.start()
    try:
        yield
    finally:
        for each in running:
            each.join(WAIT)
    if any(each.is_alive() for each in running):
        faulthandler.dump_traceback()
        pytest.fail("a thread hangs")
    if errors:
        raise errors[0]


# -- forks ---------------------------------------------------------------------------------


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The sockets over which this process took answers; a child goes on with a copy."""
    from urllib3.connection import HTTPConnection

    used: set[int] = set()
    plain = HTTPConnection.getresponse

    def getresponse(self: Any) -> Any:
        used.add(os.fstat(self.sock.fileno()).st_ino)
        return plain(self)

    monkeypatch.setattr(HTTPConnection, "getresponse", getresponse)
    return used


def test_forks_while_threads_write(place: Place, sockets: set[int]) -> None:
    store = place.create()
    repo = store.open_repo("r")
    array = repo["a"]
    array[box(100, 4)] = noise(100, 4)
    repo.upload_filedata("known", b"known" * 100)
    stop = threading.Event()
    pause = 0.005 if place.gcs is None else 0.05

    def busy(number: int) -> None:
        for turn in range(1_000_000):
            if stop.wait(pause):  # the children want some of the processor
                return
            array[box(number)] = noise(99)
            array[5, 5, 128 * number] = turn
            row = array[5, 5, 128 * number : 128 * number + 16]
            assert row[0] == turn
            assert (row[1:] == noise(99)[5, 5, 1:]).all()

    def child(number: int, pipe: int) -> None:
        sockets.clear()
        assert (array[box(100, 4)] == noise(100, 4)).all()
        # The bucket's small commits ride in records, larger ones have segments.
        blocks = 1 + 4 * (number % 5 == 0)
        mine, value = box(5 + number, blocks), noise(number, blocks)
        with array.batch(f"child {number}"):
            array[mine] = value
        assert (array[mine] == value).all()
        repo.files[f"child {number}"] = b"%d" % number
        assert repo.files["known"] == b"known" * 100
        if number % 3 == 0:
            with array.session(f"session {number}") as session:
                session[200:216, 0:16, 128 * number] = number
            with place.open() as fresh:
                again = fresh.open_repo("r")["a"]
                assert (again[mine] == value).all()
                assert (again[200:216, 0:16, 128 * number] == number).all()
        if number % 2:
            store.close()
        os.write(pipe, b"".join(each.to_bytes(8, "big") for each in sockets))

    taken: list[bytes] = []
    with threads(4, busy):
        try:
            running: list[tuple[int, int]] = []
            codes = []
            for number in range(31):
                if number == 30 or len(running) == 3:
                    for pid, pipe in running:
                        taken.append(os.read(pipe, 1 << 16))
                        os.close(pipe)
                        codes.append(end_child(pid))
                    running.clear()
                if number < 30:
                    here, there = os.pipe()
                    running.append((begin_child(lambda n=number, p=there: child(n, p)), here))
                    os.close(there)
        finally:
            stop.set()
    assert codes == [0] * 30
    for number in range(30):
        blocks = 1 + 4 * (number % 5 == 0)
        assert (array[box(5 + number, blocks)] == noise(number, blocks)).all()
    assert sorted(repo.list_files()) == sorted(["known", *(f"child {n}" for n in range(30))])
    used = [{raw[i : i + 8] for i in range(0, len(raw), 8)} for raw in taken]
    used.append({each.to_bytes(8, "big") for each in sockets})
    assert sum(map(len, used)) == len(set.union(*used))
    assert any(used) == (place.gcs is not None)
    rows = {n: noise(n, 1 + 4 * (n % 5 == 0))[0, 0, :8].tobytes() for n in range(30)}
    rows[99] = noise(99)[0, 0, :8].tobytes()
    seen: set[int] = set()
    for key in store.engine.list(""):
        if key.endswith(".seg"):
            found = store.engine.get(key)
            names = [n for n, row in rows.items() if row in found]
            assert len(names) <= 1, f"{names} share {key}"
            seen.update(names)
    assert seen >= set(range(0, 30, 1 if place.gcs is None else 5))
    if place.gcs is not None and place.gcs.fake:
        assert {each.status for each in place.gcs.log()} <= {0, 200, 204, 206, 404, 412}
        assert all(each.status or each.operation == "delete" for each in place.gcs.log())
    store.close()
    done = place.operations()
    assert all(done[f"child {number}"] == 1 for number in range(30))
    assert all(done[f"session {number}"] == 1 for number in range(0, 30, 3))


@pytest.mark.parametrize("blocks", [1, 6])
def test_a_batch_begun_before_a_fork(place: Place, blocks: int) -> None:
    """The child commits it as well, or is told that it cannot; the parent does in any case."""
    store = place.create()
    array = store.open_repo("r")["a"]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2**32, array[box(0, blocks)].shape, np.uint32)
    parent = os.getpid()
    code = 1
    try:
        with array.batch("both"):
            array[box(0, blocks)] = data
            array[3, 3, 3] = 3
            child = fork()
            if os.getpid() != parent:
                die_if_it_hangs()
            array[box(10 if os.getpid() == parent else 20)] = 2
        code = 0
    except EngineError as error:
        code = 3 if "process" in str(error) else 1
    finally:
        if os.getpid() != parent:
            os._exit(code)
    assert code == 0
    code = end_child(child)
    assert code in (0, 3)
    data[3, 3, 3] = 3
    for each in (array, place.open().open_repo("r")["a"]):
        assert (each[box(0, blocks)] == data).all()
        assert (each[box(10)] == 2).all()
        assert (each[box(20)] == (0 if code else 2)).all()
    store.close()
    assert place.operations()["both"] == (1 if code else 2)


def test_what_is_not_stored_yet_is_read_after_a_fork(delay: str) -> None:
    """Another thread of the parent may have been amid an append."""
    with far.open_far(delay.partition("//")[2]) as engine, engine.appender("a") as appender:
        appender.append([b"0123", b"456"])
        with appender._lock:
            child = begin_child(lambda: os._exit(0 if appender.held(2, 4) == b"2345" else 2))
        assert end_child(child) == 0
        assert appender.held(2, 4) == b"2345"


# -- pickles -------------------------------------------------------------------------------


def _set_environ(environ: dict[str, str]) -> None:
    os.environ.update(environ)


def _use(
    store: DicedStore, array: DicedArray, session: WriteSession, number: int
) -> tuple[int, int, list[tuple[str, str]]]:
    array[box(number)] = number
    session[box(20 + number)] = number
    store.open_repo("r").files[str(number)] = b"here"
    return os.getpid(), int(array[0, 0, 0]), store.list_repos()


@pytest.mark.parametrize("place", ["process", "gcs"], indirect=True)
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_pickles_in_a_pool_of_processes(place: Place, method: str) -> None:
    store = place.create()
    array = store.open_repo("r")["a"]
    array[0, 0, 0] = 7
    context = multiprocessing.get_context(method)
    environ = place.gcs.environ() if place.gcs else {}
    numbers = range(1, 9)
    with array.session("session") as session:
        arguments = ([store] * 8, [array] * 8, [session] * 8, numbers)
        with ProcessPoolExecutor(
            2, mp_context=context, initializer=_set_environ, initargs=(environ,)
        ) as workers:
            found = list(workers.map(_use, *arguments, timeout=2 * WAIT))
    assert os.getpid() not in [pid for pid, *_ in found]
    assert all(each[1:] == (7, store.list_repos()) for each in found)
    for number in numbers:
        assert (array[box(number)] == number).all()
        assert (array[box(20 + number)] == number).all()
    assert store.open_repo("r").list_files() == [str(number) for number in numbers]
    store.close()
    assert place.operations()["session"] == 1


# -- threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["process", "gcs"], indirect=True)
def test_many_threads_share_an_array(place: Place) -> None:
    store = place.create()
    array = store.open_repo("r")["a"]
    if place.gcs is not None and place.gcs.fake:
        place.gcs.latency(0.02)

    def work(number: int) -> None:
        array[box(number, 2)] = 1000 + number
        assert (array[box(number, 2)] == 1000 + number).all()
        # A task of the pool that maps runs its own inline.
        found = pool.map_ordered(lambda n: array[5, 5, 128 * n : 128 * n + 9], range(6), 6)
        assert all(len(np.unique(each)) == 1 for each in found)

    with threads(64, work):
        pass
    if place.gcs is not None and place.gcs.fake:
        place.gcs.latency(0)
    assert pool._pool._threads <= pool.LIMIT  # of this pool: other tests make their own
    assert array[5, 5, 5 : 128 * 64 : 128].tolist() == [1000 + n for n in range(64)]
    store.close()


@pytest.mark.parametrize("place", ["process", "gcs"], indirect=True)
def test_a_store_is_closed_under_its_users(place: Place) -> None:
    store = place.create()
    array = store.open_repo("r")["a"]
    array[box(9)] = 1
    told: list[str] = []
    closing = threading.Event()

    def work(number: int) -> None:
        with pytest.raises(EngineError, match="closed") as caught:
            for turn in range(1_000_000):
                if number % 2:
                    assert (array[box(9)] == 1).all()
                else:
                    with array.batch(f"{number} {turn}"):
                        array[box(number)] = turn
        assert closing.is_set()
        told.append(str(caught.value))

    with threads(6, work):
        time.sleep(0.2)
        closing.set()
        store.close()
    assert len(told) == 6
    assert set(place.operations().values()) == {1}


@pytest.mark.parametrize("place", ["process", "gcs"], indirect=True)
def test_stores_leave_no_threads(place: Place) -> None:
    def use() -> int:
        store = place.open()
        store.open_repo("r")["a"][box(1, 2)] = 1
        store.close()
        return threading.active_count()

    place.create().close()
    use()
    most = max(use() for _ in range(3)) + pool.LIMIT
    assert max(use() for _ in range(20)) <= most
    assert all(each.daemon for each in threading.enumerate() if each.name.startswith("diced"))


@pytest.fixture
def delay(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(far.FarEngine, "delay", 0.001)
    name = os.urandom(8).hex()
    yield f"far://{name}"
    memory.forget(name)
    far.FarEngine.requests.clear()


@pytest.mark.parametrize("handles", [1, 2])
def test_interrupted_threads_hold_up_nobody(delay: str, handles: int) -> None:
    """An exception in the thread that commits for all; with two handles there are proposals."""
    stores = [DicedStore(delay, max_age=0) for _ in range(handles)]
    stores[0].create_repo("r").create_array("a", np.uint32, block_shape=(4, 4, 4))
    arrays = [each.open_repo("r")["a"] for each in stores]
    rng = random.Random(handles)
    done: Counter[str] = Counter()
    unknown: set[str] = set()
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def work(number: int, turn: int) -> None:
        name = f"{turn} {number}"
        try:
            with arrays[number % handles].batch(name):
                arrays[number % handles][number, 0, 4 * turn % 64] = turn
            done[name] = 1
        except KeyboardInterrupt:
            unknown.add(name)

    for turn in range(1, 1 + 200 // handles):  # 0 is there already
        running = [threading.Thread(target=work, args=(n, turn), daemon=True) for n in range(4)]
        for each in running:
            each.start()
        time.sleep(rng.random() * 0.006)
        victim = running[rng.randrange(2)]
        if victim.is_alive():
            interrupt(ctypes.c_ulong(victim.ident), ctypes.py_object(KeyboardInterrupt))
        for each in running:
            each.join(WAIT)
            if each.is_alive():
                faulthandler.dump_traceback()
                pytest.fail("a thread hangs")
        assert len(unknown) + len(done) == 4 * turn
    found = Counter(each["operation"] for each in stores[0].open_repo("r").operations("a"))
    assert all(found[name] == 1 for name in done)
    assert all(found[name] <= 1 for name in unknown)
    assert unknown
    for each in stores:
        each.close()
