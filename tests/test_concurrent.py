"""Threads and processes at one store at once: nothing lost, nothing doubled, nothing half."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import run

from diced import (
    AlreadyExistsError,
    DicedArray,
    DicedStore,
    LockedError,
    NotFoundError,
    grid,
)
from diced.engine import memory

BLOCK = (16, 16, 16)


def start(location: str) -> DicedStore:
    store = DicedStore(location, durability="process")
    store.create_repo("r").create_array("block", np.uint32, block_shape=BLOCK)
    return store


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "store")
    else:
        yield "memory://concurrent"
        memory.forget("concurrent")


def in_threads(count: int, target: Callable[[int], None]) -> None:
    """Run `target` on threads that begin together; raise what any of them raised."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def body(number: int) -> None:
        try:
            barrier.wait(30)
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if errors:
        raise errors[0]


def in_processes(count: int, target: Callable[..., None], *arguments: Any) -> list[Any]:
    """Run `target(number, barrier, *arguments)` in processes; return what each sent back."""
    context = run.processes()
    barrier = context.Barrier(count)
    pipes, started = [], []
    for i in range(count):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(there, target, i, barrier, *arguments))
        process.start()
        there.close()
        pipes.append(here)
        started.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process, pipe in zip(started, pipes, strict=True):
        process.join()
        pipe.close()
    failed = [each for each in found if isinstance(each, str) and each.startswith("Traceback")]
    assert not failed, failed[0]
    return found


def _send(pipe: Any, target: Callable[..., Any], *arguments: Any) -> None:
    try:
        pipe.send(target(*arguments))
    except Exception:
        pipe.send(traceback.format_exc())


# -- one block -----------------------------------------------------------------------------


@pytest.mark.parametrize("handles", ["shared", "own", "stores"])
def test_threads_write_their_voxels_of_one_block(location: str, handles: str) -> None:
    store = start(location)
    repo = store.open_repo("r")
    shared = repo["block"]

    def write(number: int) -> None:
        array = shared
        if handles == "own":
            array = store.open_repo("r")["block"]
        elif handles == "stores":
            array = DicedStore(location, durability="process").open_repo("r")["block"]
        for i in range(40):
            array[number, i % 16, i // 16] = 100 * number + i + 1
            assert array[number, i % 16, i // 16] == 100 * number + i + 1

    in_threads(8, write)
    got = shared[0:8, 0:16, 0:3]
    wanted = np.zeros((8, 16, 3), np.uint32)
    for number in range(8):
        for i in range(40):
            wanted[number, i % 16, i // 16] = 100 * number + i + 1
    assert (got == wanted).all()
    assert sum(1 for _ in repo.operations("block")) == 8 * 40
    store.close()


def test_threads_batch_on_one_handle(location: str) -> None:
    """A batch is its thread's: others neither join it nor see it before its end."""
    store = start(location)
    array = store.open_repo("r")["block"]

    def write(number: int) -> None:
        for i in range(10):
            with array.batch():
                array[number, 0:8, 0] = i + 1
                array[number, 8:16, 0] = i + 1
                assert (array[number, 0:16, 0] == i + 1).all()
                others = array[0:8, 0:16, 0]
                assert all(len(set(row)) == 1 for row in others.tolist())

    in_threads(8, write)
    assert (array[0:8, 0:16, 0] == 10).all()
    assert sum(1 for _ in store.open_repo("r").operations("block")) == 80
    store.close()


@pytest.mark.parametrize("readers", ["handle", "store"])
def test_a_read_never_sees_half_an_assignment(
    location: str, readers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "BLOCKS_PER_PIECE", 1)  # commits come between the parts of a read
    store = start(location)
    array = store.open_repo("r")["block"]
    box = (slice(-8, 24), slice(-16, 16), slice(0, 40))  # whole blocks and parts of others
    array[box] = 1
    done = threading.Event()

    def body(number: int) -> None:
        if number == 0:
            for value in range(2, 120):
                array[box] = value
            done.set()
            return
        mine = array
        if readers == "store":
            mine = DicedStore(location, readonly=True).open_repo("r")["block"]
        last = 0
        while not done.is_set():
            got = mine[box]
            assert got.min() == got.max() >= last
            last = int(got.max())
        assert mine[0, 0, 0] == 119

    in_threads(4, body)
    store.close()


# -- names ---------------------------------------------------------------------------------

NAMES = [f"name {i}" for i in range(5)]


def _create_repos(number: int, barrier: Any, location: str) -> dict[str, str]:
    store = DicedStore(location, durability="process")
    won = {}
    barrier.wait(60)
    for name in NAMES:
        try:
            won[name] = store.create_repo(name).uuid
        except AlreadyExistsError:
            assert store.get_repouuid(name)
    own = f"own {number}"
    won[own] = store.create_repo(own).uuid
    return won


def test_processes_create_repos(tmp_path: Path) -> None:
    """The location does not even exist before: they race to make the store too."""
    location = str(tmp_path / "new" / "store")
    found = in_processes(8, _create_repos, location)
    winners = Counter(name for won in found for name in won)
    assert winners == Counter([*NAMES, *(f"own {i}" for i in range(8))])
    with DicedStore(location) as store:
        made = {name: uuid for won in found for name, uuid in won.items()}
        assert store.list_repos() == sorted(made.items())
        for name, uuid in made.items():
            assert store.open_repo(name).uuid == uuid


def _create_arrays(number: int, barrier: Any, location: str) -> dict[str, int]:
    repo = DicedStore(location, durability="process").open_repo("r")
    won = {}
    barrier.wait(60)
    for name in NAMES:
        try:
            array = repo.create_array(name, np.uint8, dims=1, attrs={"by": number})
            won[name] = number
        except AlreadyExistsError:
            array = repo[name]
        array[number] = number + 1
    repo.create_array(f"own {number}", np.uint8)
    return won


def test_processes_create_arrays(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    start(location).close()
    found = in_processes(8, _create_arrays, location)
    winners = Counter(name for won in found for name in won)
    assert winners == Counter(NAMES)
    with DicedStore(location) as store:
        repo = store.open_repo("r")
        assert {name for name, _ in repo.list_instances()} == {
            "block", *NAMES, *(f"own {i}" for i in range(8)),
        }  # fmt: skip
        for won in found:
            for name, number in won.items():
                assert repo[name].attrs["by"] == number
        for name in NAMES:
            assert repo[name][0:8].tolist() == list(range(1, 9))


def _create_branches(number: int, barrier: Any, location: str) -> tuple[list[str], list[str]]:
    repo = DicedStore(location, durability="process").open_repo("r")
    named, tagged = [], []
    barrier.wait(60)
    for name in NAMES:
        try:
            uuid = repo.create_branch("n", branch=name)
            named.append(name)
            assert repo.branches()[name] == uuid
        except AlreadyExistsError:
            pass
        try:
            repo.tag("tag " + name)
            tagged.append(name)
        except AlreadyExistsError:
            pass
    for _ in range(3):
        repo.create_branch("unnamed")
    return named, tagged


def test_processes_create_branches_and_tags(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    with start(location) as store:
        store.open_repo("r").lock_node("done")
    found = in_processes(8, _create_branches, location)
    assert Counter(name for named, _ in found for name in named) == Counter(NAMES)
    assert Counter(name for _, tagged in found for name in tagged) == Counter(NAMES)
    with DicedStore(location) as store:
        repo = store.open_repo("r")
        versions = repo.versions()
        assert len(versions) == 1 + 8 * 3 + len(NAMES)
        assert len({each.uuid for each in versions}) == len(versions)
        # One unnamed child goes on with master; every other one has a branch of its own.
        assert len(repo.branches()) == len(versions) - 1
        assert sorted(repo.tags()) == sorted("tag " + name for name in NAMES)


def _put_files(number: int, barrier: Any, location: str) -> None:
    repo = DicedStore(location, durability="process").open_repo("r")
    barrier.wait(60)
    for i in range(20):
        repo.upload_filedata(f"{number}/{i}", b"%d" % i * 200)
        repo.files.put_many({"left": b"%d/%d" % (number, i), "right": b"%d/%d" % (number, i)})
        if i % 5 == 4:
            repo.delete_file(f"{number}/{i}")


def test_processes_put_files(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    start(location).close()
    in_processes(8, _put_files, location)
    with DicedStore(location) as store:
        files = dict(store.open_repo("r").files.items())
        assert files.pop("left") == files.pop("right")
        assert files == {
            f"{n}/{i}": b"%d" % i * 200 for n in range(8) for i in range(20) if i % 5 != 4
        }


def _reserve(_number: int, barrier: Any, location: str) -> list[int]:
    repo = DicedStore(location, durability="process").open_repo("r")
    barrier.wait(60)
    found: list[int] = []
    for count in (1, 5, 10, 3):
        first = repo.reserve_ids(count)
        found += range(first, first + count)
    return found


def test_processes_reserve_ids(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    start(location).close()
    ids = [each for found in in_processes(8, _reserve, location) for each in found]
    assert sorted(ids) == list(range(1, 8 * 19 + 1))


def _delete_once(_number: int, barrier: Any, location: str) -> int:
    store = DicedStore(location, durability="process")
    repo = store.open_repo("r")
    barrier.wait(60)
    won = 0
    for name in NAMES:
        try:
            repo.delete_array(name)
            won += 1
        except NotFoundError:
            pass
    return won


def test_processes_delete_arrays(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    with start(location) as store:
        repo = store.open_repo("r")
        repo["block"][0, 0, 0] = 1
        for name in NAMES:
            repo.create_array(name, np.uint8)[0, 0, 0] = 1
    assert sum(in_processes(8, _delete_once, location)) == len(NAMES)
    with DicedStore(location) as store:
        store.sweep()
        assert [name for name, _ in store.open_repo("r").list_instances()] == ["block"]
        assert store.open_repo("r")["block"][0, 0, 0] == 1


# -- locks ---------------------------------------------------------------------------------


def _write_until_locked(number: int, barrier: Any, location: str) -> tuple[int, int]:
    """Return how many writes were acknowledged, and how many files."""
    repo = DicedStore(location, durability="process").open_repo("r")
    array = repo["block"]
    barrier.wait(60)
    if number == 0:
        while repo["block"].bounds is None:
            pass
        repo.lock_node("now")
        return 0, 0
    writes = files = 0
    try:
        while True:
            array[number, writes % 16, 0] = writes + 1
            writes += 1
            repo.upload_filedata(f"{number}/{files}", b"x")
            files += 1
    except LockedError:
        pass
    for _ in range(3):
        with pytest.raises(LockedError):
            array[number, 0, 1] = 99
    return writes, files


def test_writers_against_a_lock(tmp_path: Path) -> None:
    """What was acknowledged is in the locked version; what was refused is not."""
    location = str(tmp_path / "store")
    start(location).close()
    found = in_processes(6, _write_until_locked, location)
    with DicedStore(location) as store:
        repo = store.open_repo("r")
        assert repo.locked
        got = repo["block"][0:6, 0:16, 0:2]
        wanted = np.zeros((6, 16, 2), np.uint32)
        for number, (writes, _) in enumerate(found):
            for i in range(writes):
                wanted[number, i % 16, 0] = i + 1
        assert (got == wanted).all()
        assert set(repo.list_files()) == {
            f"{number}/{i}" for number, (_, files) in enumerate(found) for i in range(files)
        }
        repo.change_version(repo.create_branch("next"))
        assert (repo["block"][0:6, 0:16, 0:2] == wanted).all()
        repo["block"][0, 0, 0] = 5
        assert repo["block"][0, 0, 0] == 5


def test_threads_against_a_lock(location: str) -> None:
    store = start(location)
    repo = store.open_repo("r")
    array = repo["block"]
    counts = [0] * 6

    def body(number: int) -> None:
        if number == 0:
            while array.bounds is None:
                pass
            store.open_repo("r").lock_node("now")
            return
        with pytest.raises(LockedError):
            while True:
                array[number, counts[number] % 16, 0] = counts[number] + 1
                counts[number] += 1

    in_threads(6, body)
    wanted = np.zeros((6, 16), np.uint32)
    for number, count in enumerate(counts):
        for i in range(count):
            wanted[number, i % 16] = i + 1
    assert (array[0:6, 0:16, 0] == wanted).all()
    store.close()


def _lock(_number: int, barrier: Any, location: str) -> int:
    repo = DicedStore(location, durability="process").open_repo("r")
    barrier.wait(60)
    try:
        repo.lock_node("once")
    except LockedError:
        return 0
    return 1


def test_processes_lock_the_same_version(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    with start(location) as store:
        store.open_repo("r")["block"][0, 0, 0] = 7
    # Those that arrive while the lock is under way help it to its end and count as lockers.
    assert sum(in_processes(6, _lock, location)) >= 1
    with DicedStore(location) as store:
        repo = store.open_repo("r")
        assert repo.locked and repo["block"][0, 0, 0] == 7


# -- fork and pickle -----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_and_its_parent_both_write(tmp_path: Path) -> None:
    store = start(str(tmp_path / "store"))
    repo = store.open_repo("r")
    array = repo["block"]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2**32, (2, 6, 16, 16), np.uint32)
    array[0, 0:2, 0] = [1, 2]  # the parent's segment is open now
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for i in range(6):
                array[i + 1, 0:16, 0:16] = data[0, i]
            repo.upload_filedata("child", bytes(1000))
            status = 0 if (array[1:7, 0:16, 0:16] == data[0]).all() else 2
        finally:
            os._exit(status)
    for i in range(6):
        array[i + 8, 0:16, 0:16] = data[1, i]
    repo.upload_filedata("parent", bytes(1000))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for again in (array, DicedStore(store.url, readonly=True).open_repo("r")["block"]):
        assert (again[1:7, 0:16, 0:16] == data[0]).all()
        assert (again[8:14, 0:16, 0:16] == data[1]).all()
        assert again[0, 0, 0] == 1
    assert repo.list_files() == ["child", "parent"]
    segments = [key for key in store.engine.list("") if key.endswith(".seg")]
    assert len(segments) == 2  # one each: a child never appends to its parent's
    store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_a_thread_writes(tmp_path: Path) -> None:
    """The child is born while locks are held by a thread that it does not have."""
    store = start(str(tmp_path / "store"))
    array = store.open_repo("r")["block"]
    stop = threading.Event()

    def busy() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            array[0:4, 0:16, 0:16] = value
            assert array[0, 0, 0] >= value

    thread = threading.Thread(target=busy)
    thread.start()
    children = []
    try:
        for number in range(6):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    array[5 + number, 0, 0] = 50 + number
                    status = 0 if array[5 + number, 0, 0] == 50 + number else 2
                finally:
                    os._exit(status)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
    finally:
        stop.set()
        thread.join()
    assert codes == [0] * 6
    assert array[5:11, 0, 0].tolist() == [50 + number for number in range(6)]
    store.close()


def _use_pickles(data: bytes, pipe: Any) -> None:
    store, repo, array, files = pickle.loads(data)
    array[1, 1, 1] = 11
    files["from the other process"] = b"hello"
    repo.create_array("made there", np.uint8)
    pipe.send((store.url, repo.uuid, array[0, 0, 0], repo.name, array.name, repo.readonly))


def test_pickles_work_in_a_spawned_process(tmp_path: Path) -> None:
    with start(str(tmp_path / "store")) as store:
        repo = store.open_repo("r")
        array = repo["block"]
        array[0, 0, 0] = 10
        repo.lock_node("done")
        repo.change_version(repo.create_branch("next"))
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        data = pickle.dumps((store, repo, array, repo.files))
        process = context.Process(target=_use_pickles, args=(data, there))
        process.start()
        there.close()
        assert here.recv() == (store.url, repo.uuid, 10, "r", "block", False)
        process.join()
        assert process.exitcode == 0
        assert array[1, 1, 1] == 11
        assert repo.download_filedata("from the other process") == b"hello"
        assert "made there" in repo
        here.close()


def test_pickles_keep_options(tmp_path: Path) -> None:
    start(str(tmp_path / "store")).close()
    with DicedStore(
        str(tmp_path / "store"), readonly=True, durability="process", threads=3, user="ann"
    ) as store:
        again = pickle.loads(pickle.dumps(store))
        assert (again.url, again.readonly, again.durability) == (store.url, True, "process")
        assert (again.threads, again.user) == (3, "ann")
        array = pickle.loads(pickle.dumps(store.open_repo("r", readonly=True)["block"]))
        assert isinstance(array, DicedArray) and array[0, 0, 0] == 0
        again.close()
