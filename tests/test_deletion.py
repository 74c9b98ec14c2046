"""Deleting repos and arrays: gone everywhere at once, whoever has them open."""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from deletions import BOX, PLACES, at, fill, lane, objects, open_, place  # noqa: F401

from diced import DicedStore, fsck, keys
from diced import handle as handles
from diced.errors import DicedException, NotFoundError
from diced.history import History


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let handles at locked versions ask each time whether their array was deleted."""
    monkeypatch.setattr(handles, "LOCKED_AGE", 0.0)



def refuses(*calls: Callable[[], Any]) -> None:
    """Check that none of these finds anything."""
    for number, call in enumerate(calls):
        try:
            found = call()
        except NotFoundError as error:
            assert re.search("deleted|no array|no repo", str(error)), str(error)
        else:
            pytest.fail(f"call {number} returned {found!r}")


def write(array: Any) -> None:
    """Write a block."""
    array[BOX] = 1


# -- at once -----------------------------------------------------------------------------------


@at(*PLACES)
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("swept", [False, True])
def test_a_deleted_array_is_gone_for_all(url: str, locked: bool, swept: bool) -> None:
    store, other = open_(url), open_(url)
    repo = fill(store)
    if locked:
        repo.lock_node("x")
    there = other.open_repo("r")
    handle, unread, neighbour = there["a"], there["a"], there["b"]
    kept = handle[BOX], neighbour[BOX]
    assert kept[0].any()
    lazy, pickled = handle.to_dask(BOX), pickle.dumps(handle)
    session = None if locked else handle.session()
    if session is not None:
        session[BOX] = 3
    repo.delete_array("a")
    if swept:
        store.sweep()
    assert [name for name, _ in there.list_instances()] == ["b"] and "a" not in there
    calls: list[Callable[[], Any]] = [
        lambda: there["a"],
        lambda: handle[BOX],
        lambda: handle[0, 0, 0],
        lambda: unread[BOX],
        lambda: handle.bounds,
        lambda: list(handle.blocks()) if callable(handle.blocks) else handle.blocks,
        lambda: handle.attrs["x"],
        lambda: handle.attrs.update(x=1),
        lambda: handle.sessions(),
        lambda: lazy.compute(scheduler="synchronous"),
        lambda: pickle.loads(pickled),
        lambda: there.delete_array("a"),
        lambda: list(there.operations("a")),
    ]
    if session is not None:
        going: Any = session
        calls += [
            lambda: write(handle),
            lambda: write(going),
            lambda: going.parts(),
            lambda: going.commit(),
            lambda: going.discard(),
            lambda: handle.session(),
            lambda: handle.session(resume=going.id),
        ]
    refuses(*calls)
    assert np.array_equal(neighbour[BOX], kept[1])
    if not locked:  # the name is free at once, and another's handles are not its
        there.create_array("a", np.uint16)[0, 0, 0] = 9
        assert repo["a"][0, 0, 0] == 9
        refuses(lambda: handle[BOX], lambda: pickle.loads(pickled), lambda: write(handle))
    store.sweep()
    assert fsck.check(other, full=True).ok


@at(*PLACES)
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("swept", [False, True])
def test_a_deleted_repo_is_gone_for_all(url: str, locked: bool, swept: bool) -> None:
    store, other = open_(url), open_(url)
    repo, kept = fill(store), fill(store, "kept", "a")
    if locked:
        repo.lock_node("x")
    there = other.open_repo("r")
    handle, files, root = there["a"], there.files, there.root
    assert handle[BOX].any() and len(files["notes"]) == 900
    pickled = pickle.dumps(there), pickle.dumps(handle)
    store.delete_repo("r")
    if swept:
        store.sweep()
    assert [name for name, _ in other.list_repos()] == ["kept"]
    refuses(
        lambda: handle[BOX],
        lambda: there["a"],
        lambda: there.files,
        lambda: there.list_instances(),
        lambda: there.versions(),
        lambda: there.branches(),
        lambda: there.tags(),
        lambda: there.note,
        lambda: there.get_commit_log(),
        lambda: there.change_version(root),
        lambda: there.create_array("c", np.uint8),
        lambda: there.lock_node("y"),
        lambda: there.create_branch(),
        lambda: there.add_log("y"),
        lambda: there.reserve_ids(3),
        lambda: files["notes"],
        lambda: files.get("notes"),
        lambda: "notes" in files,
        lambda: list(files),
        lambda: files.put_many({"x": b"y"}),
        lambda: write(handle),
        lambda: list(there.operations()),
        lambda: pickle.loads(pickled[0]),
        lambda: pickle.loads(pickled[1]),
    )
    for call in (other.open_repo, other.delete_repo, other.repo_info, other.get_repouuid):
        with pytest.raises(NotFoundError):
            call("r")
    with pytest.raises(NotFoundError):
        other.open_repo(uuid=root)
    again = other.create_repo("r")
    assert store.open_repo("r").uuid == again.uuid != root
    refuses(lambda: handle[BOX])
    store.sweep()
    assert objects(url, repo._history.home.prefix) == []
    assert kept["a"][BOX].any() and fsck.check(other, full=True).ok


@at("far", "gcs")
@pytest.mark.parametrize("what", ["repo", "array"])
@pytest.mark.parametrize("locked", [False, True])
def test_who_may_not_know_yet_meets_no_damage(url: str, what: str, locked: bool) -> None:
    """A bucket's reader asks once in `max_age`; what it then misses is told for what it is."""
    store = open_(url)
    repo = fill(store)
    if locked:
        repo.lock_node("x")
    late = open_(url, max_age=3600.0)
    handle = late.open_repo("r")["a"]
    handle[0:8, 0:8, 0:8]
    store.delete_repo("r") if what == "repo" else repo.delete_array("a")
    store.sweep()
    refuses(lambda: handle[0:32, 0:32, 0:32], lambda: late.open_repo("r")["a"])
    refuses(lambda: handle[0:8, 0:8, 0:8])  # it knows now


# -- against others ----------------------------------------------------------------------------


@at(*PLACES)
@pytest.mark.parametrize("what", ["repo", "array"])
def test_one_of_many_deletes(url: str, what: str) -> None:
    store = open_(url)
    fill(store)
    stores = [open_(url) for _ in range(4)]
    repos = [each.open_repo("r") for each in stores]
    barrier = threading.Barrier(4)

    def delete(number: int) -> bool:
        barrier.wait(30)
        try:
            stores[number].delete_repo("r") if what == "repo" else repos[number].delete_array("a")
        except NotFoundError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(delete, range(4))) == 1


@at(*PLACES)
@pytest.mark.parametrize("what", ["repo", "array"])
@pytest.mark.parametrize("shared", [False, True])
def test_no_write_that_begins_later_is_acknowledged(url: str, what: str, shared: bool) -> None:
    """Threads write, by the store object that deletes and by others; a later sweep finds all."""
    store = open_(url)
    repo = fill(store)
    home, dead = repo._history.home.prefix, lane(repo, "a")
    stores = [store if shared else open_(url) for _ in range(3)]
    handles = [each.open_repo("r")["a"] for each in stores]
    deleted, stop = threading.Event(), threading.Event()
    before, after, wrong = [0] * 3, [0] * 3, list[Exception]()

    def run(number: int) -> None:
        value = 0
        while not stop.is_set():
            late = deleted.is_set()
            value = value % 250 + 1
            try:
                handles[number][number * 4 : number * 4 + 8, 0:8, 0:8] = value
            except NotFoundError:
                after[number] += late
            except DicedException as error:
                wrong.append(error)
            else:
                if late:
                    wrong.append(AssertionError("acknowledged"))
                before[number] += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for each in threads:
        each.start()
    while not all(before) and not wrong:
        time.sleep(0.001)
    store.delete_repo("r") if what == "repo" else repo.delete_array("a")
    deleted.set()
    store.sweep()
    while not all(after) and not wrong:
        time.sleep(0.001)
    stop.set()
    for each in threads:
        each.join()
    assert wrong == []
    store.sweep()
    assert objects(url, home if what == "repo" else dead) == []
    assert what == "repo" or repo["b"][BOX].any()
    assert fsck.check(store, full=True).ok


@at(*PLACES)
@pytest.mark.parametrize("what", ["repo", "array"])
def test_what_a_late_writer_leaves_is_swept(url: str, what: str) -> None:
    store = open_(url)
    repo = fill(store)
    prefix = lane(repo, "a")
    late = keys.record(keys.lane(repo._history.home.prefix, repo["a"]._spec.id, repo._node_id), 9)
    store.delete_repo("r") if what == "repo" else repo.delete_array("a")
    assert store.sweep() > 0
    assert objects(url, prefix) == []
    store.engine.put_if_absent(late, b"late", b"0" * 16)
    kinds = [each.kind for each in fsck.check(store).problems]
    assert {"repo": "orphan-home", "array": "orphan-lane"}[what] in kinds
    with open_(url) as other:
        assert other.sweep() == 1 and other.sweep() == 0
    assert objects(url, prefix) == [] and fsck.check(store).problems == []


@at(*PLACES)
def test_orphans_are_swept_when_that_is_asked(url: str) -> None:
    store = open_(url)
    repo = fill(store)
    stray, home = keys.new_id(), keys.new_id()
    History(type(repo._history.home)(store.engine, keys.repo_home(home), 2**20), "x").found(
        keys.new_uuid(), []
    )
    of_lane = keys.record(keys.lane(repo._history.home.prefix, stray, repo._node_id), 1)
    store.engine.put_if_absent(of_lane, b"lost", b"0" * 16)
    assert store.sweep() == 0
    before = len(objects(url))
    assert store.sweep(orphans=True) == 2 and store.sweep(orphans=True) == 0
    assert len(objects(url)) <= before  # two objects fewer, and records that say so
    assert objects(url, keys.repo_home(home)) == [] and repo["a"][BOX].any()
    assert fsck.check(store, full=True).problems == []


@at(*PLACES)
def test_a_creation_that_was_taken_for_given_up_begins_anew(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_(url), open_(url)
    real, times = History.found, iter(range(3))

    def found(self: History, *arguments: Any) -> None:
        real(self, *arguments)
        if next(times) < 2:
            assert other.sweep(orphans=True) > 0

    monkeypatch.setattr(History, "found", found)
    repo = store.create_repo("r")
    repo.create_array("a", np.uint8)[0, 0, 0] = 5
    assert other.list_repos() == [("r", repo.uuid)] and other.open_repo("r")["a"][0, 0, 0] == 5
    assert {key.split("/")[1] for key in objects(url)} == {repo._id}
    assert next(times, None) is None and fsck.check(other, full=True).problems == []


def test_a_handle_at_a_locked_version_looks_once_in_a_while(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "LOCKED_AGE", 3600.0)
    with DicedStore(tmp_path / "s") as store, DicedStore(tmp_path / "s") as other:
        repo = store.create_repo("r")
        array = repo.create_array("a", np.uint8)
        array[BOX] = 1
        repo.lock_node("done")
        assert (array[BOX] == 1).all()
        other.open_repo("r").delete_array("a")
        assert (array[BOX] == 1).all()  # nothing can have changed but that
        monkeypatch.setattr(handles, "LOCKED_AGE", 0.0)
        with pytest.raises(NotFoundError):
            array[BOX]
