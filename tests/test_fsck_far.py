"""Checking, rebuilding and accounting where frames ride behind records: on a bucket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from far import FarEngine
from test_fsck import (
    BOX,
    Failing,
    Raw,
    contents,
    drop_index,
    fill,
    kinds,
    lane_of,
    mended,
    small_logs,
)

from diced import DicedStore, compose, keys, log
from diced.engine import memory
from diced.errors import CorruptError, EngineError
from diced.fsck import check
from diced.log import Record
from diced.rebuild import rebuild
from diced.usage import usage

__all__ = ["small_logs"]  # taken by every test here

# What writers that contend leave: frames of commits that were made anew.
LOST_RACES = {"orphan-segment", "unreferenced", "leftover"}


@pytest.fixture
def store() -> Iterator[DicedStore]:
    name = os.urandom(8).hex()
    with DicedStore(f"far://{name}") as opened:
        opened.engine.max_age = 0
        yield opened
    memory.forget(name)


def crowd(repo: Any, shared: int = 3, meanwhile: Callable[[], None] | None = None) -> None:
    """Write with many threads at once, so that one record holds the commits of several.

    So many of them write to one block; who loses that race makes its commit anew.
    """
    threads = 6
    array = repo["gray"]
    committer = repo._lane(array._spec)._committer
    errors: list[BaseException] = []

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            at = 8 * max(0, number + 1 - shared)
            array[at : at + 3, number : number + 2, 0:8] = rng.integers(0, 255, (3, 2, 8))
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=write, args=(each,)) for each in range(threads)]
    deadline = time.monotonic() + 30
    with committer.turn:
        for each in workers:
            each.start()
        while len(committer._waiting) < threads and time.monotonic() < deadline:
            time.sleep(0.001)
        if meanwhile is not None:
            meanwhile()
    for each in workers:
        each.join(60)
    assert errors == []


def records(store: DicedStore, lane: str) -> list[tuple[str, Record, int]]:
    """Return key, record and size of the object of all records of a lane."""
    raw = Raw(store)
    found = []
    for key in raw.keys(f"{lane}/e000000/"):
        data = raw.read(key)
        found.append((key, Record.decode(data, key), len(data)))
    return found


def a_rider(store: DicedStore, lane: str) -> tuple[str, Record]:
    """Return the first record of a lane that frames ride behind."""
    return next((key, each) for key, each, _ in records(store, lane) if each.head.get("frames"))


def busy(store: DicedStore) -> Any:
    """Make a repo with riders, segments and combined records."""
    repo = fill(store)
    crowd(repo)
    return repo


# -- healthy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("riding", [256 * 1024, 1500, 0])
def test_a_healthy_store_has_no_problems(
    store: DicedStore, riding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "RIDING_BYTES", riding)
    repo = busy(store)
    lane = lane_of(repo, "gray", 3)
    assert any("parts" in each.head for _, each, _ in records(store, lane))
    raw = Raw(store)
    assert bool([key for key in raw.keys(".seg") if key.startswith("r/")]) == (riding < 256 * 1024)
    before = {key: raw.read(key) for key in raw.keys("")}
    report = check(store, full=True)
    assert report.ok and kinds(report, "warning") <= LOST_RACES
    assert check(store).ok
    assert {key for key in before if "/turn/" not in key and "/pend/" not in key} <= set(
        raw.keys("")
    )


def test_records_gathered_from_proposals_of_many_stores_are_healthy(store: DicedStore) -> None:
    repo = fill(store, steps=1)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            with DicedStore(store.url, create=False, max_age=0) as mine:
                other = mine.open_repo("fly")
                other.change_version(repo.uuid)
                for step in range(8):
                    at = 4 * number
                    other["gray"][at : at + 4, 0:8, step : step + 1] = rng.integers(
                        0, 255, (4, 8, 1)
                    )
        except BaseException as error:
            errors.append(error)

    FarEngine.delay = 0.004
    try:
        workers = [threading.Thread(target=write, args=(each,)) for each in range(5)]
        for each in workers:
            each.start()
        for each in workers:
            each.join(60)
    finally:
        FarEngine.delay = 0.0
    assert errors == []
    report = check(store, full=True)
    assert report.ok and kinds(report, "warning") <= LOST_RACES
    before = contents(store)
    found = records(store, lane_of(repo, "gray", 3))
    assert sum(len(each.commits()) for _, each, _ in found) >= 40
    drop_index(store)
    assert rebuild(store).problems == []
    assert contents(store) == before
    (one,) = usage(store)["repos"]
    assert one["bytes"]["logs"] == sum(one["logs"].values())


def test_a_check_asks_for_many_objects_at_once(store: DicedStore) -> None:
    """Records and what else is asked for come side by side, not one after the other."""
    busy(store)
    at_once, most, lock = 0, 0, threading.Lock()
    peek = store.engine.peek

    def counted(key: str, limit: int) -> bytes:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            FarEngine.delay = 0.005
            return peek(key, limit)
        finally:
            FarEngine.delay = 0.0
            with lock:
                at_once -= 1

    store.engine.peek = counted  # type: ignore[method-assign]
    assert check(store).ok
    assert most > 4


def test_a_healthy_bucket_is_checked_and_rebuilt(gcs: Any) -> None:
    with DicedStore(gcs.url(), max_age=0) as store:
        repo = fill(store, steps=3)
        session = repo["gray"].session("half done")
        session[0:4, 0:4, 0:4] = 3
        report = check(store, full=True)
        assert report.ok and kinds(report, "warning") == {"session"}
        session.discard()
        before = contents(store)
        drop_index(store)
        assert "missing-lock" in kinds(check(store))
        assert rebuild(store).problems == []
        assert contents(store) == before
        assert check(store, full=True).ok
        raw = Raw(store)
        key, record = a_rider(store, lane_of(repo, "gray"))
        whole = raw.read(key)
        raw.flip(key, record.size + 60)
        assert kinds(check(store, full=True)) == {"bad-frame"}
        raw.write(key, whole[:-3])
        assert kinds(check(store)) == {"short-record"}
        raw.write(key, whole)
        found = usage(store)
        (one,) = found["repos"]
        assert one["bytes"]["logs"] == sum(one["logs"].values())
        assert found["bytes"] == sum(map(store.engine.size, store.engine.list("")))


# -- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gray", "labels", "notes", "loose"])
@pytest.mark.parametrize("where", ["header", "payload", "end"])
def test_a_flipped_bit_of_a_riding_frame_is_named(store: DicedStore, name: str, where: str) -> None:
    repo = fill(store)
    key, record = a_rider(store, lane_of(repo, name))
    (pointer,) = [
        entry for changes in record.delta.values() for entry in changes.values()
        if isinstance(entry, tuple)
    ][:1]  # fmt: skip
    start = record.size + (pointer[1] & (log.MAX_RIDING - 1))
    place = {"header": 9, "payload": pointer[2] - 2, "end": pointer[2] - 1}[where]
    Raw(store).flip(key, start + place)
    assert check(store).ok
    report = check(store, full=True)
    assert kinds(report) == {"bad-frame"}
    (problem,) = report.problems
    assert f"array {name!r}" in problem.where
    assert name == "loose" or repo.root in problem.where
    assert key in problem.message and f"at {start}" in problem.message
    assert ("key 'note" if name == "notes" else "block (") in problem.message
    assert "restore that record" in problem.message


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_record_cut_short_behind_its_own_bytes_is_found(store: DicedStore, cut: int) -> None:
    repo = fill(store)
    raw = Raw(store)
    key, record = a_rider(store, lane_of(repo, "gray"))
    whole = raw.read(key)
    raw.write(key, whole[: -cut if cut > 0 else record.size])
    report = check(store)
    assert kinds(report) == {"short-record"}
    (problem,) = report.problems
    assert key in problem.message and "block (" in problem.message
    assert repo.root in problem.where and "'gray'" in problem.where
    raw.write(key, whole + b"x")
    assert kinds(check(store)) == {"bad-record"}
    raw.write(key, whole)
    assert check(store, full=True).problems == []


def test_a_large_record_cut_short_is_found(store: DicedStore) -> None:
    """Its first bytes are read alone, so its size is asked for."""
    repo = store.create_repo("fly")
    gray = repo.create_array("gray", np.uint8, block_shape=(32, 32, 32), codec="raw")
    gray[0:32, 0:32, 0:96] = np.random.default_rng(1).integers(0, 255, (32, 32, 96)).astype("u1")
    key, _ = a_rider(store, lane_of(repo, "gray"))
    raw = Raw(store)
    whole = raw.read(key)
    assert len(whole) > 2 * log.PEEK_BYTES
    assert check(store, full=True).problems == []
    for size in (len(whole) - 1, log.PEEK_BYTES, log.PEEK_BYTES + 1):
        raw.write(key, whole[:size])
        report = check(store)
        assert kinds(report) == {"short-record"} and "block (0, 0, 2)" in str(report.problems[0])
    raw.write(key, whole + b"x")
    assert kinds(check(store)) == {"bad-record"}


@pytest.mark.parametrize("place", [2, 30, "end"])
def test_a_damaged_record_keeps_the_frames_behind_it(store: DicedStore, place: int | str) -> None:
    repo = fill(store)
    key, record = a_rider(store, lane_of(repo, "gray"))
    raw = Raw(store)
    raw.flip(key, record.size - 2 if isinstance(place, str) else place)
    report = check(store, full=True)
    assert kinds(report) == {"bad-record"} and key in report.problems[0].message
    before = contents(store)
    damaged = raw.read(key)
    assert "lost-record" in kinds(rebuild(store, adopt=True))
    assert raw.read(key) == damaged
    assert contents(store) == before


def test_what_rode_behind_a_lost_record_is_named(store: DicedStore) -> None:
    repo = fill(store)
    lane = lane_of(repo, "gray")
    root = repo._history.view().dag.root
    spec = repo["gray"]._spec
    state = repo._history.lane(spec, root.id).refresh()
    riding = next(
        entry for _, entry in repo._history.lane(spec, root.id).scan(state, 0)
        if isinstance(entry, tuple)
    )  # fmt: skip
    key, _ = repo._history.home.locate(spec.id, *riding[:2])
    Raw(store).delete(key)
    report = check(store)
    assert {"missing-record", "missing-frames"} <= kinds(report)
    assert kinds(report) <= {"missing-record", "missing-frames", "no-lock-record"}
    lost = [each for each in report.problems if each.kind == "missing-frames"]
    assert all(key in each.message and "block (" in each.message for each in lost)
    assert any(root.uuid in each.where for each in lost)
    report = rebuild(store, adopt=True)
    assert "lost-record" in kinds(report) and "records adopted" not in report.counts
    (problem,) = [each for each in report.problems if each.kind == "lost-record"]
    assert "frames behind a record are gone with its object" in problem.message
    repo.change_version(root.uuid)
    with pytest.raises(CorruptError):
        repo["gray"][BOX]
    assert len(repo["labels"][BOX])
    assert key.startswith(lane)


def test_a_transaction_in_two_records_is_found(store: DicedStore) -> None:
    repo = busy(store)
    lane = lane_of(repo, "gray", 3)
    found = records(store, lane)
    _, record, _ = next(each for each in found if "parts" in each[1].head)
    again = Record(log.DATA, {**record.head, "txid": log.new_txid(), "base": 1}, {}, {})
    again.head.pop("frames", None)
    key = keys.record(lane, len(found) + 1)
    raw = Raw(store)
    raw.write(key, again.encode())
    report = check(store)
    assert kinds(report) == {"duplicate-txid"}
    parts = {each["txid"] for each in record.head["parts"]}
    assert {t for t in parts for each in report.problems if t in each.message} == parts
    single = Record(log.DATA, {**record.head, "txid": min(parts)}, {}, {})
    del single.head["parts"], single.head["frames"]
    raw.write(key, single.encode())
    assert kinds(check(store)) == {"duplicate-txid"}
    later = {**record.head["parts"][0], "txid": log.new_txid(), "base": 999}
    raw.write(key, Record(log.DATA, {**again.head, "parts": [later]}, {}, {}).encode())
    report = check(store)
    assert kinds(report) == {"bad-record"} and "later record" in report.problems[0].message


def test_leftovers_and_strays_beside_a_log(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    lane = lane_of(repo, "gray", 3)
    raw.write(keys.proposal(lane, log.new_txid()), b"x")
    raw.write(keys.claim(lane, 7, 0), b"x")
    report = check(store, full=True)
    assert report.ok and [each.kind for each in report.problems] == ["leftover"]
    assert "2 proposals" in report.problems[0].message
    assert lane in report.problems[0].message
    strays = [
        f"{lane}/pend/x", f"{lane}/turn/7", f"{lane}/join/x/y", f"{lane}/join/{'a' * 32}/other",
        f"{lane}/else/{'a' * 32}", f"{lane}/join/{'a' * 32}", f"{lane}/pend/{'a' * 32}/{'b' * 32}",
    ]  # fmt: skip
    for key in strays:
        raw.write(key, b"x")
    report = check(store, full=True)
    assert report.ok
    told = [each for each in report.problems if each.kind == "stray"]
    assert len(told) == len(strays) == len(report.problems) - 1
    assert all(any(key in each.message for each in told) for key in strays)


def test_objects_of_lanes_that_no_array_has_are_orphans(store: DicedStore) -> None:
    repo = fill(store)
    lane = keys.lane(repo._history.home.prefix, "ab" * 8, "cd" * 8)
    Raw(store).write(keys.part(lane, "ab" * 16, "cd" * 16), b"x")
    report = check(store)
    assert report.ok and kinds(report, "warning") == {"orphan-lane"}


# -- write sessions -----------------------------------------------------------------------------


def a_session(repo: Any) -> Any:
    """Begin a session of whole blocks, pieces and a constant block."""
    rng = np.random.default_rng(5)
    session = repo["gray"].session("big job")
    session[0:8, 0:8, 0:8] = rng.integers(0, 255, (8, 8, 8)).astype(np.uint8)
    session[3:13, 1:4, 0:8] = rng.integers(0, 255, (10, 3, 8)).astype(np.uint8)
    session[8:16, 8:16, 8:16] = 7
    return session


def test_an_unfinished_session_is_told_with_what_to_do(store: DicedStore) -> None:
    repo = fill(store)
    session = a_session(repo)
    report = check(store, full=True)
    assert report.ok and [each.kind for each in report.problems] == ["session"]
    (problem,) = report.problems
    assert repo.uuid in problem.where and session.id in problem.where
    assert "3 assignments, begun by" in problem.message
    assert f"array.session(resume={session.id!r})" in problem.message
    assert "commits or discards it" in problem.message
    (one,) = usage(store)["repos"]
    assert one["segments"]["sessions"] > 0 and one["segments"]["dead"] == 0
    repo["gray"].session(resume=session.id).commit()
    report = check(store, full=True)
    assert report.ok and kinds(report, "warning") <= {"orphan-segment", "unreferenced"}
    assert usage(store)["repos"][0]["segments"]["sessions"] == 0


def test_a_session_of_a_locked_version_can_only_be_discarded(store: DicedStore) -> None:
    repo = fill(store)
    session = a_session(repo)
    repo.lock_node("done")
    (problem,) = check(store, full=True).problems
    assert problem.kind == "session" and "discards it" in problem.message
    assert "commits" not in problem.message
    repo["gray"].session(resume=session.id).discard()
    report = check(store)
    assert report.ok and kinds(report, "warning") <= {"orphan-segment"}


def test_a_session_whose_end_was_interrupted_is_told(store: DicedStore) -> None:
    repo = fill(store)
    session = a_session(repo)
    whole = store.engine
    failing: Any = Failing(whole, 1)
    repo._history.home.engine = failing
    try:
        with pytest.raises(EngineError):
            session.discard()
    finally:
        repo._history.home.engine = whole
    (problem,) = check(store, full=True).problems
    assert problem.kind == "session" and "a commit that began" in problem.message


@pytest.mark.parametrize("which", ["block", "piece", "part", "begun", "segment"])
def test_damage_of_a_session_is_found(store: DicedStore, which: str) -> None:
    repo = fill(store)
    session = a_session(repo)
    raw = Raw(store)
    parts = raw.keys(f"/join/{session.id}/")
    segments = {
        keys.segment(repo._history.home.prefix, entry[0])
        for key in parts
        for changes in Record.decode(raw.read(key), key).delta.values()
        for entry in changes.values()
        if isinstance(entry, tuple)
    }
    first = min(segments, key=lambda each: raw.read(each)[7] != 0)  # space 0: the whole block
    if which == "block":
        raw.flip(first, len(raw.read(first)) - 2)
    elif which == "piece":
        for each in segments - {first}:
            raw.flip(each, len(raw.read(each)) - 2)
    elif which == "segment":
        raw.delete(*segments)
    else:
        raw.flip(parts[0] if which == "part" else parts[-1], 40)
    assert parts[-1].endswith("t-begun")
    quick, full = kinds(check(store)), kinds(check(store, full=True))
    wanted = {"part": "bad-part", "begun": "bad-part", "segment": "missing-segment"}.get(which)
    assert quick == ({wanted} if wanted else set())
    assert full == {wanted or "bad-frame"}
    told = [each for each in check(store, full=True).problems if each.severity == "error"]
    assert all(session.id in each.where for each in told)


# -- rebuild ------------------------------------------------------------------------------------


@pytest.mark.parametrize("riding", [256 * 1024, 1500])
def test_a_rebuild_makes_every_version_anew(
    store: DicedStore, riding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "RIDING_BYTES", riding)
    repo = busy(store)
    before = contents(store)
    raw = Raw(store)
    kept = {key: raw.read(key) for key in raw.keys("/e000000/")}
    drop_index(store)
    assert rebuild(store).problems == []
    assert {key: raw.read(key) for key in raw.keys("/e000000/")} == kept
    assert contents(store) == before
    report = check(store, full=True)
    assert report.ok
    assert kinds(report, "warning") <= {"orphan-pack", *LOST_RACES}
    repo = store.open_repo("fly")
    repo.change_version(next(iter(before)))
    repo["notes"].keys()


def test_a_rebuild_of_a_healthy_store_writes_nothing(store: DicedStore) -> None:
    fill(store)
    raw = Raw(store)
    before = {key: raw.read(key) for key in raw.keys("")}
    assert rebuild(store, adopt=True).problems == []
    assert {key: raw.read(key) for key in raw.keys("")} == before


def test_a_lost_record_with_a_copy_comes_back(
    store: DicedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "RIDING_BYTES", 0)
    repo = fill(store)
    before = contents(store)
    raw = Raw(store)
    lost = [
        key for key, record, _ in records(store, lane_of(repo, "gray"))
        if any(isinstance(e, tuple) for each in record.delta.values() for e in each.values())
    ]  # fmt: skip
    raw.delete(*lost)
    report = rebuild(store)
    assert report.problems == [] and report.counts["records recovered"] == len(lost) > 3
    mended(store, before)


@pytest.mark.parametrize("damage", ["delete", "flip"])
def test_a_commit_of_a_combined_record_is_not_adopted_again(
    store: DicedStore, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its COMMIT frame has a transaction of its own, and may be based on what was lost."""
    monkeypatch.setattr(compose, "RIDING_BYTES", 0)
    repo = store.create_repo("fly")
    repo.create_array("gray", np.uint8, block_shape=(8, 8, 8))

    def meanwhile() -> None:
        with DicedStore(store.url, create=False, max_age=0) as other:
            other.open_repo("fly")["gray"][56:58, 0:4, 0:4] = np.arange(32).reshape(2, 4, 4)

    crowd(repo, shared=1, meanwhile=meanwhile)
    found = records(store, lane_of(repo, "gray"))
    assert found[0][1].head.get("parts") is None
    assert max(len(each.commits()) for _, each, _ in found[1:]) > 2
    before = repo["gray"][0:64, 0:8, 0:8]
    raw = Raw(store)
    whole = raw.read(found[0][0])
    raw.delete(*raw.keys(".snap/"))  # which would name the transaction
    if damage == "flip":
        raw.flip(found[0][0], 40)
    else:
        raw.delete(found[0][0])
    report = rebuild(store, adopt=True)
    assert report.ok and report.counts["records adopted"] == 1
    assert raw.read(found[0][0]) == whole
    np.testing.assert_array_equal(store.open_repo("fly")["gray"][0:64, 0:8, 0:8], before)
    combined = next(key for key, each, _ in found if "parts" in each.head)
    raw.flip(combined, 40)
    assert kinds(rebuild(store, adopt=True)) == {"lost-record", "lost-state"}


def test_an_interrupted_replacement_keeps_the_frames_behind_a_record(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    key, _ = a_rider(store, lane_of(repo, "gray"))
    whole = raw.read(key)
    raw.delete(key)
    raw.write(keys.spare(repo._history.home.prefix, key), whole)
    assert "leftover" in kinds(check(store), "warning")
    assert rebuild(store).problems == []
    assert raw.read(key) == whole
    assert check(store, full=True).problems == []


# -- usage --------------------------------------------------------------------------------------


def test_usage_adds_up_with_riders(store: DicedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_sweep_later", lambda *_: None)
    rng = np.random.default_rng(1)
    repo = store.create_repo("fly")
    gray = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8), codec="raw")
    other = repo.create_array("other", np.uint8, block_shape=(8, 8, 8), codec="raw")
    for _ in range(3):
        gray[0:8, 0:8, 0:8] = rng.integers(0, 255, (8, 8, 8)).astype(np.uint8)
    other[0:8, 0:8, 0:8] = rng.integers(0, 255, (8, 8, 8)).astype(np.uint8)
    repo.lock_node("")
    repo.change_version(repo.create_branch(""))
    gray[0:64, 0:64, 0:128] = rng.integers(0, 255, (64, 64, 128)).astype(np.uint8)
    found = usage(store)
    every = list(store.engine.list(""))
    assert found["files"] == len(every)
    assert found["bytes"] == sum(store.engine.size(key) for key in every)
    (one,) = found["repos"]
    sizes, logs, segments = one["bytes"], one["logs"], one["segments"]
    assert sizes["total"] == sum(v for k, v in sizes.items() if k != "total")
    assert sizes["segments"] == sum(segments.values())
    assert sizes["logs"] == sum(logs.values())
    arrays = {each["name"]: each for each in one["arrays"]}
    frame = arrays["other"]["live_bytes"]
    assert 512 < frame < 600
    assert logs["live"] == 2 * frame and logs["superseded"] == 2 * frame and logs["dead"] == 0
    assert segments["live"] == 1024 * frame and segments["dead"] == segments["superseded"] == 0
    assert segments["journal"] > 0
    assert logs["live"] + segments["live"] == sum(each["live_bytes"] for each in one["arrays"])
    repo.delete_array("other")
    after = usage(store)["repos"][0]["logs"]
    assert after["live"] == frame and after["dead"] > frame
    assert after["superseded"] == 2 * frame


def test_usage_of_combined_records_adds_up(store: DicedStore) -> None:
    busy(store)
    (one,) = usage(store)["repos"]
    assert one["bytes"]["logs"] == sum(one["logs"].values())
    assert one["bytes"]["segments"] == sum(one["segments"].values())
    live = one["logs"]["live"] + one["segments"]["live"]
    assert live == sum(each["live_bytes"] for each in one["arrays"]) > 0
    assert one["logs"]["superseded"] > 0 and one["logs"]["records"] > 0
