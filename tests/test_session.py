"""Write sessions: many writers, one commit, seen whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import run

from diced import (
    BadIndexError,
    DicedArray,
    DicedStore,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    fsck,
)
from diced.engine import memory
from diced.errors import CorruptError, EngineError
from diced.session import OVER, WriteSession
from diced.spec import MAX_TEXT
from diced.usage import usage

BLOCK = (8, 8, 8)
SIZE = 40
ALL = (slice(0, SIZE),) * 3


def start(location: str, **options: Any) -> DicedArray:
    store = DicedStore(location, durability="process")
    store.engine.max_age = 0  # one process here often looks at what another has just done
    options = {"dtype": np.uint32, "block_shape": BLOCK, **options}
    array: DicedArray = store.create_repo("r").create_array("a", **options)
    return array


@pytest.fixture(params=["local", "memory", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "store")
    elif request.param == "gcs":
        yield request.getfixturevalue("gcs").url()
    else:
        name = os.urandom(8).hex()
        yield f"memory://{name}"
        memory.forget(name)


def operations(array: DicedArray) -> list[str]:
    return [each["operation"] for each in array._repo.operations(array.name)]


def a_box(rng: random.Random, size: int = SIZE) -> tuple[slice, ...]:
    """Return a box, sometimes of steps, that seldom ends at a block's border."""
    index = []
    for _ in range(3):
        low = rng.randrange(size - 1)
        index.append(slice(low, rng.randrange(low + 1, size + 1), rng.choice((1, 1, 1, 2, 3))))
    return tuple(index)


def values_of(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return values that tell the number of the assignment and the voxel."""
    count = int(np.prod(shape))
    return (np.arange(count, dtype=np.uint32) % 1000 + 1000 * (number + 1)).reshape(shape)


# -- one process ---------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "image": {},
    "raw": {"codec": "raw", "dtype": np.uint8},
    "zstd": {"codec": "zstd:3", "dtype": np.float32, "fill": 7},
    "label": {"islabel3D": True, "dtype": np.uint64},
    "channels": {"channels": 3, "dtype": np.int16},
    "units": {"block_shape": (32, 32, 32), "dtype": np.uint64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_gives_what_the_same_assignments_would_give(kind: str) -> None:
    array = start("memory://", **KINDS[kind])
    rng = random.Random(kind)
    tail = () if array.channels is None else (array.channels,)
    model = np.full((SIZE,) * 3 + tail, array.fill, array.dtype)
    for number in range(4):
        index = a_box(rng)
        values = (values_of(number, model[index].shape) % 251).astype(array.dtype)
        model[index] = array[index] = values
    before = model.copy()
    with array.session("job") as session:
        for number in range(30):
            index = a_box(rng)
            if number % 5 == 4:
                model[index] = session[index] = number
                continue
            values = (values_of(number, model[index].shape) % 251).astype(array.dtype)
            model[index] = values
            session[index] = values
        assert (array[ALL] == before).all()
        assert len(session.parts()) == 30
    assert (array[ALL] == model).all()
    assert operations(array) == ["write"] * 4 + ["job"]
    assert array.sessions() == []


def test_indices_mean_what_they_mean_to_arrays(location: str) -> None:
    array = start(location, channels=4, dtype=np.uint8)
    model = np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    array[0:16, 0:16, 0:16] = model[0:16, 0:16, 0:16] = 1
    with array.session() as session:
        session[3, 4, 5] = model[3, 4, 5] = [1, 2, 3, 4]
        session[..., 1] = 9
        model[0:16, 0:16, 0:16, 1] = 9
        values = np.arange(24, dtype=np.uint8).reshape(6, 4)
        session[20:8:-2, 7, 8] = model[20:8:-2, 7, 8] = values
        session[30:33, 2, 2, ::-2] = model[30:33, 2, 2, ::-2] = [[7, 8]]
        session.write((slice(5, 5), 0, 0), 3)
    assert (array[0:SIZE, 0:SIZE, 0:SIZE] == model).all()


def test_the_later_assignment_wins_in_one_process(location: str) -> None:
    array = start(location)
    with array.session() as session:
        for value in range(1, 30):
            session[1:20, 2:18, 3:19] = value  # whole blocks and parts of others
    assert (array[1:20, 2:18, 3:19] == 29).all()


def test_errors_are_told_at_the_assignment(tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"), dtype=np.uint8)
    with array.session() as session:
        with pytest.raises(BadIndexError, match="3 dimensions"):
            session[1, 2] = 1
        with pytest.raises(BadIndexError, match="32-bit"):
            session[2**31, 0, 0] = 1
        with pytest.raises(InvalidError, match="cannot be stored as uint8"):
            session[0, 0, 0] = 256
        with pytest.raises(InvalidError, match="cannot write shape"):
            session[0:2, 0:2, 0:2] = np.zeros(3)
        assert session.parts() == []
    assert operations(array) == []
    with (
        DicedStore(str(tmp_path / "store"), readonly=True) as store,
        pytest.raises(ReadOnlyError),
    ):
        store.open_repo("r")["a"].session()


def test_an_exception_discards_everything(location: str) -> None:
    array = start(location)
    array[0:9, 0:9, 0:9] = 3
    with pytest.raises(ZeroDivisionError), array.session() as session:
        session[0:20, 0:20, 0:20] = 5
        raise ZeroDivisionError
    assert (array[0:9, 0:9, 0:9] == 3).all()
    assert array[10, 10, 10] == 0
    assert operations(array) == ["write"]
    assert session.parts() == array.sessions() == []
    with pytest.raises(InvalidError, match="over"):
        session[0, 0, 0] = 1
    with pytest.raises(InvalidError, match="discarded"):
        session.commit()


def test_a_session_without_assignments_commits_nothing(location: str) -> None:
    array = start(location)
    with array.session():
        assert len(array.sessions()) == 1
    assert operations(array) == array.sessions() == []


def test_a_session_stays_at_its_version(location: str) -> None:
    array = start(location)
    repo = array._repo
    repo.lock_node("")
    first, second = repo.create_branch("", branch="x"), repo.create_branch("", branch="y")
    repo.change_version(first)
    with array.session() as session:
        session[0:9, 0, 0] = 1
        repo.change_version(second)
        session[9:12, 0, 0] = 2
    assert array.bounds is None
    repo.change_version(first)
    assert array[0:12, 0, 0].tolist() == [1] * 9 + [2] * 3


def test_unversioned_arrays_have_sessions(location: str) -> None:
    array = start(location, versioned=False)
    array._repo.lock_node("")
    with array.session() as session:
        session[0:9, 0, 0] = 1
    assert (array[0:9, 0, 0] == 1).all()


def test_many_small_parts(location: str) -> None:
    count = 60 if location.startswith("gs:") else 800
    array = start(location, dims=1, block_shape=(64,))
    with array.session() as session:
        for number in range(count):
            session[3 * number : 3 * number + 3] = number + 1
    assert (array[0 : 3 * count] == np.repeat(np.arange(1, count + 1), 3)).all()
    assert operations(array) == ["session"]


def test_memory_of_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run of pieces was fetched for may be gone again when the next one is wanted."""
    monkeypatch.setattr("diced.pieces.RUN_BYTES", 4096)
    monkeypatch.setattr("diced.pieces.KEPT_BYTES", 8192)
    monkeypatch.setattr("diced.pieces.GROUP_BYTES", 1024)
    array = start("memory://", codec="raw")
    model = np.zeros((SIZE,) * 3, np.uint32)
    rng = random.Random(5)
    with array.session() as session:
        for number in range(20):
            index = a_box(rng)
            model[index] = session[index] = values_of(number, model[index].shape)
    assert (array[ALL] == model).all()


def test_sessions_leave_a_store_that_checks_clean(tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"))
    store = array._repo.store
    with array.session() as session:
        session[1:20, 1:20, 1:20] = values_of(1, (19, 19, 19))
    open_one = array.session()
    open_one[3:9, 3:9, 3:9] = 4
    assert not [each for each in fsck.check(store, full=True).problems if each.kind == "stray"]
    report = fsck.check(store, full=True)
    assert report.ok
    assert {each["name"]: each["blocks"] for each in usage(store)["repos"][0]["arrays"]}["a"] == 27
    open_one.discard()
    array._repo.lock_node("")
    assert fsck.check(store, full=True).ok


# -- the end of a session ------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "discard"])
def test_a_late_worker_is_told(location: str, end: str) -> None:
    array = start(location)
    session = array.session()
    session[0:9, 0:9, 0:9] = 1
    worker = pickle.loads(pickle.dumps(session))
    getattr(session, end)()
    for _ in range(2):
        with pytest.raises(InvalidError, match="over"):
            worker[0:9, 0:9, 0:9] = 2
    assert (array[0:9, 0:9, 0:9] == (end == "commit")).all()
    assert session.parts() == array.sessions() == []


@pytest.mark.parametrize("end", ["commit", "discard"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_session_that_ends_while_a_part_is_stored(
    end: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is told, though it asked before it began, and nothing of it stays behind."""
    array = start("memory://")
    session = array.session()
    session[0:9, 0:9, 0:9] = 1
    worker = pickle.loads(pickle.dumps(session))
    engine = worker.array._repo.store.engine
    put = engine.put_if_absent

    def ending_put(key: str, data: Any, txid: bytes) -> bool:
        if "/join/" not in key or key.endswith(OVER):
            return put(key, data, txid)
        monkeypatch.setattr(engine, "put_if_absent", put)
        if moment == "before":
            getattr(session, end)()
        done = put(key, data, txid)
        if moment == "after":
            getattr(session, end)()
        return done

    monkeypatch.setattr(engine, "put_if_absent", ending_put)
    with pytest.raises(InvalidError, match="over"):
        worker[0:9, 0:9, 0:20] = 2
    assert session.parts() == array.sessions() == []
    # What was stored before the seal may be in the commit, but then it is there whole.
    seen = array[0:9, 0:9, 0:20]
    wanted = np.zeros((9, 9, 20), np.uint32)
    if end == "commit":
        wanted[...] = 2 if moment == "after" else 0
        wanted[:, :, 0:9] = 2 if moment == "after" else 1
    assert (seen == wanted).all()


def leave_a_late_part(session: WriteSession, end: str) -> None:
    """Store a part after the end, by a worker that is killed before it asks whether it is late."""
    worker = pickle.loads(pickle.dumps(session))
    going_on = WriteSession._check_going_on
    asked = []

    def ask(self: WriteSession) -> None:
        asked.append(self)
        if len(asked) == 2:
            raise SystemExit
        going_on(self)
        getattr(session, end)()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(WriteSession, "_check_going_on", ask)
        with pytest.raises(SystemExit):
            worker[0:9, 0:9, 20:30] = 2
    assert len(session.parts()) == 1


@pytest.mark.parametrize("end", ["commit", "discard"])
@pytest.mark.parametrize("then", ["commit", "discard"])
def test_a_part_of_a_killed_late_worker_is_removed(location: str, end: str, then: str) -> None:
    array = start(location)
    session = array.session()
    session[0:9, 0:9, 0:9] = 1
    leave_a_late_part(session, end)
    assert array.sessions() == []
    again = array.session(resume=session.id)
    if end == then:
        getattr(again, then)()
    else:
        with pytest.raises(InvalidError, match="published" if end == "commit" else "discarded"):
            getattr(again, then)()
    assert session.parts() == []
    with pytest.raises(NotFoundError):
        array.session(resume=session.id)
    assert array[0, 0, 0] == (end == "commit")
    assert array[0, 0, 25] == 0


def test_late_parts_go_with_the_marks_of_old_sessions(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = start(location)
    waiting = array.session()
    waiting[0:9, 0, 0] = 5
    for end in ("commit", "discard"):
        session = array.session()
        session[0:9, 0:9, 0:9] = 1
        leave_a_late_part(session, end)
    array.session().discard()
    assert len(session.parts()) == 1
    monkeypatch.setattr("diced.session.KEEP_SECONDS", -3600)
    array.session().discard()
    engine = array._repo.store.engine
    left = {key.split("/join/")[1].split("/")[0] for key in engine.list("") if "/join/" in key}
    assert left == {waiting.id}
    assert array.sessions() == [waiting.id]
    waiting.commit()
    assert array[8, 0, 0] == 5


@pytest.mark.parametrize("end", ["commit", "discard"])
def test_fsck_tells_what_a_session_left_over(tmp_path: Path, end: str) -> None:
    array = start(str(tmp_path / "store"))
    session = array.session()
    session[0:9, 0:9, 0:9] = 1
    leave_a_late_part(session, end)
    report = fsck.check(array._repo.store, full=True)
    assert report.ok
    (found,) = [each for each in report.problems if "left over" in each.message]
    assert found.kind == "leftover" and session.id in found.message
    getattr(array.session(resume=session.id), end)()
    report = fsck.check(array._repo.store, full=True)
    assert not [each for each in report.problems if each.kind in ("leftover", "session")]


def test_a_lock_meanwhile(location: str) -> None:
    array = start(location)
    repo = array._repo
    with (
        pytest.raises(LockedError, match=r"locked; create a branch"),
        array.session() as session,
    ):
        session[0:9, 0, 0] = 1
        worker = pickle.loads(pickle.dumps(session))
        DicedStore(repo.store.url).open_repo("r").lock_node("now")
        with pytest.raises(LockedError):
            worker[0:9, 0, 0] = 2
        with pytest.raises(LockedError):
            session[0:9, 0, 0] = 3
        with pytest.raises(LockedError):
            session.commit()
    assert array.bounds is None
    assert array.sessions() == []
    with pytest.raises(LockedError):
        array.session()


def test_a_deleted_array(location: str) -> None:
    array = start(location)
    session = array.session()
    session[0, 0, 0] = 1
    pickled = pickle.dumps(session)
    array._repo.delete_array("a")
    with pytest.raises(NotFoundError):
        session[0, 0, 0] = 2
    with pytest.raises(NotFoundError):
        session.commit()
    with pytest.raises(NotFoundError):
        pickle.loads(pickled)
    array._repo.create_array("a", np.uint32)
    with pytest.raises(NotFoundError, match="deleted"):
        pickle.loads(pickled)


def test_only_who_began_enters(location: str) -> None:
    array = start(location)
    with array.session() as session:
        worker = pickle.loads(pickle.dumps(session))
        with pytest.raises(InvalidError, match="entered where it was begun"):
            worker.__enter__()
        worker[0, 0, 0] = 5
    assert array[0, 0, 0] == 5


def test_a_session_is_entered_once(location: str) -> None:
    array = start(location)
    with array.session() as session:
        with pytest.raises(InvalidError, match="entered already"), session:
            pass
        session[0, 0, 0] = 5
    assert array[0, 0, 0] == 5
    with pytest.raises(InvalidError, match="was published"), session:
        pass
    discarded = array.session()
    discarded.discard()
    with pytest.raises(InvalidError, match="was discarded"), discarded:
        pass


def test_a_session_whose_commit_failed_is_entered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    array = start("memory://")
    session = array.session()

    def fail(*_arguments: Any) -> None:
        raise EngineError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(DicedArray, "_commit", fail)
        with pytest.raises(EngineError), session:
            session[0:9, 0, 0] = 1
    with session:
        pass
    assert array[8, 0, 0] == 1


@pytest.mark.parametrize(
    "operation", [5, None, ["x"], b"bytes", "\ud800", "x" * (MAX_TEXT + 1)], ids=repr
)
def test_the_operation_is_text(operation: Any) -> None:
    array = start("memory://")
    files = array._repo.files
    with pytest.raises(InvalidError, match="operation"):
        array.session(operation)
    with pytest.raises(InvalidError, match="operation"), array.batch(operation):
        array[0, 0, 0] = 1
    with pytest.raises(InvalidError, match="operation"):
        files.put_many({"a": b""}, operation=operation)
    with pytest.raises(InvalidError, match="operation"):
        files.delete_many(["a"], operation=operation)
    assert operations(array) == array.sessions() == list(files) == []
    assert array.bounds is None


def test_the_longest_operation() -> None:
    array = start("memory://")
    text = "\u00e9" * MAX_TEXT
    with array.batch(text):
        array[0, 0, 0] = 1
    with array.session(text) as session:
        session[0, 0, 0] = 2
    assert operations(array) == [text] * 2
    array._repo.files["k" * 4096] = b"a key as long as can be is part of its operation"
    with pytest.raises(InvalidError, match="a key"):
        array._repo.files["\ud800"] = b""


# -- resuming ------------------------------------------------------------------------------


def test_resume_and_commit(location: str) -> None:
    array = start(location)
    lost = array.session("long job")
    lost[0:9, 0:9, 0:9] = 1
    other = array.session()
    assert array.sessions() == [lost.id, other.id]
    other.discard()
    again = DicedStore(array._repo.store.url).open_repo("r")["a"]
    assert again.sessions() == [lost.id]
    with again.session(resume=lost.id) as session:
        assert session.operation == "long job"
        session[9:12, 0:9, 0:9] = 2
    assert (array[0:9, 0:9, 0:9] == 1).all()
    assert (array[9:12, 0:9, 0:9] == 2).all()
    assert operations(array) == ["long job"]
    assert array.sessions() == []
    for wrong in (lost.id, "0" * 32):
        with pytest.raises(NotFoundError, match="no write session"):
            array.session(resume=wrong)
    with pytest.raises(InvalidError, match="no id"):
        array.session(resume="../x")


def test_resume_and_discard(location: str) -> None:
    array = start(location)
    lost = array.session()
    lost[0:9, 0:9, 0:9] = 1
    array.session(resume=lost.id).discard()
    assert array.sessions() == []
    assert array.bounds is None
    with pytest.raises(InvalidError, match="discarded"):
        lost.commit()


def test_nothing_is_published_twice(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that dies after its commit leaves the parts; who resumes must not repeat them."""
    array = start(location)
    session = array.session()
    session[0:9, 0:9, 0:9] = 1

    def die(*_arguments: Any) -> None:
        raise EngineError("dead")

    with monkeypatch.context() as patched:
        patched.setattr(WriteSession, "_remove", die)
        with pytest.raises(EngineError):
            session.commit()
    array[0:3, 0:3, 0:3] = 2
    assert array.sessions() == [session.id]
    again = array.session(resume=session.id)
    with pytest.raises(InvalidError, match="published"):
        again.discard()
    again.commit()
    again.commit()
    assert (array[0:3, 0:3, 0:3] == 2).all()
    assert (array[3:9, 3:9, 3:9] == 1).all()
    assert operations(array) == ["session", "write"]
    assert array.sessions() == []


def test_two_commit_at_once(location: str) -> None:
    array = start(location)
    for turn in range(1, 6):
        session = array.session()
        for number in range(8):
            session[number, 0:9, 0:9] = 10 * turn + number
        others = [pickle.loads(pickle.dumps(session)) for _ in range(3)]
        errors: list[BaseException] = []

        def commit(each: WriteSession, errors: list[BaseException] = errors) -> None:
            try:
                each.commit()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=commit, args=(each,)) for each in (session, *others)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not errors
        assert array[0:8, 3, 3].tolist() == [10 * turn + number for number in range(8)]
        assert len(operations(array)) == turn


def test_a_commit_that_fails_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    array = start("memory://")
    session = array.session()
    session[0:9, 0:9, 0:9] = 1

    def fail(*_arguments: Any) -> None:
        raise EngineError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(DicedArray, "_commit", fail)
        with pytest.raises(EngineError):
            session.commit()
    assert array.bounds is None
    with pytest.raises(InvalidError, match="over"):
        pickle.loads(pickle.dumps(session))[0, 0, 0] = 5
    session.commit()
    assert (array[0:9, 0:9, 0:9] == 1).all()


def test_a_damaged_piece_is_named(tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"), codec="raw")
    session = array.session()
    session[8:12, 16:20, 0:4] = values_of(3, (4, 4, 4))
    (segment,) = (tmp_path / "store").rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(CorruptError, match=r"array 'a': a piece of block \(1, 2, 0\), segment"):
        session.commit()
    assert array.sessions() == [session.id]
    assert array.bounds is None


# -- other writers -------------------------------------------------------------------------


def test_what_others_wrote_meanwhile_is_kept(location: str) -> None:
    """Invariant I4: pieces are merged with the blocks as they are at the commit."""
    array = start(location)
    array[0:16, 0:16, 0:16] = 1
    with array.session() as session:
        session[2:10, 2:10, 2:10] = 2
        session[8:16, 8:16, 8:16] = 3  # a whole block
        array[0:2, 0:16, 0:16] = 4
        array[9, 9, 9] = 5
    wanted = np.ones((16, 16, 16), np.uint32)
    wanted[0:2] = 4
    wanted[2:10, 2:10, 2:10] = 2
    wanted[8:16, 8:16, 8:16] = 3
    assert (array[0:16, 0:16, 0:16] == wanted).all()


def test_writers_race_the_commit(location: str) -> None:
    array = start(location)
    # Every commit of the other conflicts, so it must not go on for ever where requests are slow.
    rounds, most = (3, 15) if location.startswith("gs:") else (20, 10**6)
    stop = threading.Event()
    written = [0]
    other = DicedStore(location, durability="process").open_repo("r")["a"]

    def write() -> None:
        while not stop.is_set() and written[0] < most:
            other[0:SIZE, 0:SIZE, 1] = written[0] + 1
            written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for turn in range(1, rounds + 1):
            with array.session() as session:
                session[0:SIZE, 0:SIZE, 3:7] = turn
            assert (array[0:SIZE, 0:SIZE, 3:7] == turn).all()
    finally:
        stop.set()
        thread.join()
    assert (array[0:SIZE, 0:SIZE, 1] == written[0]).all()
    assert operations(array).count("session") == rounds
    assert operations(array).count("write") == written[0]


def test_threads_share_a_session(location: str) -> None:
    array = start(location)
    count = 5 if location.startswith("gs:") else SIZE
    with array.session() as session:
        threads = [
            threading.Thread(
                target=lambda first: [
                    session.write((z, ..., slice(None)), z + 1) for z in range(first, count, 8)
                ],
                args=(first,),
            )
            for first in range(8)
        ]
        array[0:SIZE, 0:SIZE, 0:SIZE] = 99  # gives the open ends a meaning
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert (
        array[ALL] == np.where(np.arange(SIZE) < count, np.arange(1, SIZE + 1), 99)[:, None, None]
    ).all()


# -- processes -----------------------------------------------------------------------------

BOXES = [
    (slice(z, z + 13), slice(y, y + 13), slice(x, x + 13))
    for z in range(1, 40, 13)
    for y in range(-3, 36, 13)
    for x in range(2, 41, 13)
]


def store_box(session: WriteSession, number: int) -> int:
    index = BOXES[number]
    session[index] = values_of(number, (13, 13, 13))
    return os.getpid()


def wanted_boxes() -> np.ndarray:
    found = np.zeros((50, 50, 50), np.uint32)
    for number, index in enumerate(BOXES):
        window = tuple(slice(each.start + 5, each.stop + 5) for each in index)
        found[window] = values_of(number, (13, 13, 13))
    return found


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_store_neighbouring_boxes(tmp_path: Path, method: str) -> None:
    if method == "fork" and threading.active_count() > 1 and os.sys.version_info >= (3, 12):
        method = "forkserver"  # Python warns of threads at a fork
    check_processes(str(tmp_path / "store"), method)


def test_processes_store_to_a_bucket(gcs: Any) -> None:
    check_processes(gcs.url(), "spawn")


def test_a_bucket_that_fails_now_and_then(gcs: Any) -> None:
    location = gcs.url()
    array = start(location)
    rng = random.Random(9)
    model = np.zeros((SIZE,) * 3, np.uint32)
    try:
        gcs.faults(9, lost=0.04, reset=0.04, e503=0.03, e429=0.03)
        for turn in range(3):
            with array.session() as session:
                worker = pickle.loads(pickle.dumps(session))
                for number in range(8):
                    index = a_box(rng)
                    model[index] = worker[index] = values_of(number, model[index].shape)
            assert len(operations(array)) == turn + 1
    finally:
        gcs.faults()
    assert (array[ALL] == model).all()
    assert array.sessions() == []


def check_processes(location: str, method: str) -> None:
    """Boxes of 13 in blocks of 8, none aligned: every block at a border has several writers."""
    array = start(location)
    context = multiprocessing.get_context(method)
    with array.session("boxes") as session:
        with ProcessPoolExecutor(3, mp_context=context) as pool:
            pids = list(pool.map(store_box, [session] * len(BOXES), range(len(BOXES))))
        assert array.bounds is None
        assert len(session.parts()) == len(BOXES)
    assert os.getpid() not in pids
    assert (array[-5:45, -5:45, -5:45] == wanted_boxes()).all()
    assert operations(array) == ["boxes"]


def _store_boxes(pipe: Any, session: WriteSession, numbers: list[int]) -> None:
    for number in numbers:
        store_box(session, number)
        pipe.send(number)
        pipe.recv()


def test_killed_workers(tmp_path: Path) -> None:
    """Assignments of killed workers are made again by others, some of them twice."""
    location = str(tmp_path / "store")
    array = start(location)
    rng = random.Random(3)
    context = run.processes()
    todo = set(range(len(BOXES)))
    kills = 0
    with array.session("boxes") as session:
        while todo:
            numbers = sorted(todo)
            rng.shuffle(numbers)
            workers = []
            for first in range(2):
                here, there = context.Pipe()
                process = context.Process(
                    target=_store_boxes, args=(there, session, numbers[first::2])
                )
                process.start()
                there.close()
                workers.append((process, here))
            for process, here in workers:
                try:
                    for _ in range(rng.randrange(1, 6)):
                        todo.discard(here.recv())
                        here.send(True)
                    time.sleep(rng.random() / 200)  # into its next assignment, or beyond
                    process.kill()
                    kills += 1
                    while True:
                        todo.discard(here.recv())
                except (EOFError, OSError):
                    pass  # it ended
                process.join()
                here.close()
        assert array.bounds is None
        # An assignment made again gives the same voxels.
        store_box(session, 5)
    assert kills >= 3
    assert (array[-5:45, -5:45, -5:45] == wanted_boxes()).all()
    assert operations(array) == ["boxes"]
    array._repo.store.close()
    with DicedStore(location) as store:
        assert fsck.check(store, full=True).ok


def _begin_and_die(location: str, pipe: Any) -> None:
    with DicedStore(location).open_repo("r")["a"].session("dies") as session:
        session[0:9, 0:9, 0:9] = 1
        pipe.send(session.id)
        signal.pause()


def test_a_killed_parent_leaves_a_session_to_resume(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    array = start(location)
    context = run.processes()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_begin_and_die, args=(location, there))
    process.start()
    session_id = here.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert array.sessions() == [session_id]
    assert array.bounds is None
    array.session(resume=session_id).commit()
    assert (array[0:9, 0:9, 0:9] == 1).all()
    assert operations(array) == ["dies"]


def _in_fork(target: Callable[[], None]) -> int:
    """Run `target` in a forked child; return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            target()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_writes_and_does_not_end_the_session(tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"))

    def leave() -> None:
        with session:
            session[9:12, 0, 0] = 2

    def leave_as_entered() -> None:
        session[12:15, 0, 0] = 3
        session.__exit__(None, None, None)

    with array.session() as session:
        session[0:9, 0, 0] = 1
        assert _in_fork(leave) == 1
        assert _in_fork(leave_as_entered) == 0
        assert array.bounds is None
    assert array[0:15, 0, 0].tolist() == [1] * 9 + [0] * 3 + [3] * 3
