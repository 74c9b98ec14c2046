"""What reviewers found on buckets, each as its smallest case, over ``far://``."""

from __future__ import annotations

import pickle
import threading
import time

import far  # noqa: F401 - registers the scheme
import numpy as np
import pytest

from diced import (
    CorruptError,
    DicedStore,
    InvalidError,
    NotFoundError,
    combine,
    fsck,
    log,
    segment,
    tidy,
)
from diced.engine import open_engine
from diced.engine.memory import forget

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 64), np.uint8)


@pytest.fixture
def url():
    yield "far://findings"
    forget("findings")


def keys_of(url):
    with open_engine(url) as engine:
        return set(engine.list("r"))


def test_segments_of_a_disk_are_shared_wherever_they_are_copied(tmp_path, url):
    with DicedStore(tmp_path / "s") as store:
        repo = store.create_repo("r")
        for name in "ab":
            repo.create_array(name, np.uint8)[0:64, 0:64, 0:64] = NOISE
    with open_engine(tmp_path / "s") as there, open_engine(url) as here:
        for key in there.list(""):
            here.put_if_absent(key, there.get(key), b"t")
    with DicedStore(url) as store:
        repo = store.open_repo("r")
        repo.delete_array("a")
        store.sweep()
        assert (repo["b"][0:64, 0:64, 0:64] == NOISE).all()
        assert fsck.check(store, full=True).ok


def test_segments_of_a_bucket_go_with_their_array(url):
    with DicedStore(url) as store:
        repo = store.create_repo("r")
        repo.create_array("kept", np.uint8)[0:64, 0:64, 0:64] = NOISE
        before = keys_of(url)
        array = repo.create_array("a", np.uint8)
        array[0:128, 0:64, 0:64] = np.concatenate([NOISE, NOISE[::-1]])
        assert any(key.endswith(".seg") for key in keys_of(url) - before)
        repo.delete_array("a")
        store.sweep()
        assert not any(key.endswith(".seg") for key in keys_of(url) - before)


@pytest.mark.parametrize("newer", ["repo", "version", "array", "recreated"])
def test_what_is_pickled_may_be_newer_than_what_the_reader_knows(url, newer):
    makers = DicedStore(url)
    repo = makers.create_repo("r")
    array = repo.create_array("a", np.uint8)
    shared = pickle.loads(pickle.dumps(array))  # a worker's store, which goes by what it knows
    shared._repo.store.engine.max_age = 3600.0
    assert shared.shape == (0, 0, 0)
    if newer == "repo":
        array = makers.create_repo("other").create_array("a", np.uint8)
    elif newer == "version":
        repo.lock_node("x")
        repo.change_version(repo.create_branch())
    elif newer == "array":
        array = repo.create_array("b", np.uint8)
    else:
        repo.delete_array("a")
        array = repo.create_array("a", np.uint8)
    array[0:64, 0:64, 0:64] = NOISE
    again = pickle.loads(pickle.dumps(array))
    assert again._repo.store is shared._repo.store
    assert (again[0:64, 0:64, 0:64] == NOISE).all()


def test_what_was_pickled_and_deleted_is_not_found(url):
    repo = DicedStore(url, max_age=0).create_repo("r")
    data = pickle.dumps(repo.create_array("a", np.uint8))
    repo.delete_array("a")
    with pytest.raises(NotFoundError):
        pickle.loads(data)


def test_a_key_for_what_is_no_bucket_is_refused(tmp_path):
    for location in (str(tmp_path / "s"), "bucket/prefix", "memory://x"):
        with pytest.raises(InvalidError, match="permissionfile"):
            DicedStore(location, permissionfile="key.json")
    for age in ("1", [1], -1, float("nan")):
        with pytest.raises(InvalidError, match="max_age"):
            DicedStore("memory://", max_age=age)


def test_one_slow_answer_does_not_slow_down_what_follows(url, monkeypatch):
    repo = DicedStore(url).create_repo("r")
    array = repo.create_array("a", np.uint8, block_shape=(8, 8, 8))
    committer = array._blocks().lane._committer
    clock = [0.0]
    monkeypatch.setattr(combine.time, "monotonic", lambda: clock[0])
    put = log.CommitLog.put

    def slow(self, *args):
        clock[0] += 100.0
        return put(self, *args)

    monkeypatch.setattr(log.CommitLog, "put", slow)
    for each in range(50):
        array[0:8, 0:8, 0:8] = each
    assert committer._request <= combine.SLOWEST


def test_a_batch_that_fails_leaves_no_segments(url, monkeypatch):
    monkeypatch.setattr(segment, "WHOLE_BYTES", 1 << 18)
    monkeypatch.setattr(segment, "DISCARD_SECONDS", 0.0)
    gone = threading.Event()
    monkeypatch.setattr(tidy, "_deleter", tidy._Deleter())
    array = DicedStore(url).create_repo("r").create_array("a", np.uint8)
    array[0:64, 0:64, 0:64] = 1
    before = keys_of(url)
    with pytest.raises(KeyError), array.batch():
        for z in range(8):
            array[64 * z : 64 * z + 64, 0:64, 0:64] = NOISE + np.uint8(z)
        raise KeyError
    for _ in range(200):
        if keys_of(url) == before:
            gone.set()
            break
        time.sleep(0.05)
    assert gone.is_set()


def test_frames_do_not_ride_where_no_pointer_can_tell():
    record = log.Record(log.DATA, {"txid": "0" * 32}, {0: {b"k": log.rider(0, 4)}}, {}, b"1234")
    record.encode()
    with pytest.raises(InvalidError, match="ride"):
        record.place("0" * 16, log.LAST_RIDDEN + 1)
    record.place("0" * 16, log.LAST_RIDDEN)
    assert record.delta[0][b"k"][1] >> log.RIDE_BITS & log.LAST_RIDDEN == log.LAST_RIDDEN



def test_a_record_after_the_lock_is_damage_to_newcomers_too(url):
    with DicedStore(url) as store:
        repo = store.create_repo("r")
        array = repo.create_array("a", np.uint8, versioned=True)
        array[0:64, 0:64, 0:64] = NOISE
        lane = array._blocks().lane
        number = lane.lock("someone").number
        first = store.engine.get(f"{lane.log.prefix}/e000000/0000000001")
        lane.log.put(number + 1, first, "0" * 32)
    with DicedStore(url) as store, pytest.raises(CorruptError, match="follows the lock"):
        store.open_repo("r")["a"][0, 0, 0]
