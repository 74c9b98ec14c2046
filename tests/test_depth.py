"""How many round trips deep are calls on a bucket, with 50 ms a request?

Requests that are sent side by side count once. A machine that is busy can only make calls look
deeper, by keeping apart what was meant to overlap: so the best of a few tries counts.
"""

import time

import numpy as np
import pytest

from diced import DicedStore

LATENCY = 0.05
TRIES = 3
SIDE = 512
CUBE = np.s_[0:SIDE, 0:SIDE, 0:SIDE]
BLOCK = np.s_[0:64, 0:64, 0:64]
MIB = 2**20


@pytest.fixture(scope="module")
def volume():
    """128 MiB that take 26 when stored: runs of noise."""
    part = np.random.default_rng(3).integers(0, 200, (64, 64, 8), dtype=np.uint8)
    return np.tile(part.repeat(16, axis=2), (8, 8, 4))


@pytest.fixture
def place(gcs):
    """A bucket with an empty repo: (server, url of the store, repo)."""
    url = gcs.url()
    repo = DicedStore(url).create_repo("r")
    gcs.latency(LATENCY)
    yield gcs, url, repo
    gcs.latency(0)


def deep(gcs, call, before=lambda: None, wanted=0):
    """Return the least depth of a few calls, each after `before`, and its requests."""
    found = []
    for _ in range(TRIES):
        made = before()
        gcs.clear()
        call() if made is None else call(made)
        found.append((gcs.depth(), gcs.log()))
        if found[-1][0] <= wanted:
            break
    return min(found, key=lambda each: each[0])


def test_a_large_aligned_write(place, volume):
    gcs, _, repo = place
    array = repo.create_array("a", np.uint8)
    array[BLOCK] = volume[BLOCK]
    numbers = iter(range(256))

    def write():
        array[CUBE] = volume + np.uint8(next(numbers))

    depth, log = deep(gcs, write, wanted=2)
    assert depth <= 2  # the segment, then the record
    assert 20 * MIB < sum(each.received for each in log) < 40 * MIB
    # And where the metadata have to be asked again.
    depth, _ = deep(gcs, write, lambda: time.sleep(1.1), wanted=3)
    assert depth <= 3
    assert np.array_equal(array[CUBE], volume + np.uint8(next(numbers) - 1))


def test_the_first_large_write_into_a_new_array(place, volume):
    gcs, _, repo = place
    names = iter("abcdefgh")
    made = []

    def write(array):
        array[CUBE] = volume
        made.append(array)

    # Who has made the array knows that there is nothing in it.
    depth, _ = deep(gcs, write, lambda: repo.create_array(next(names), np.uint8), wanted=2)
    assert depth <= 2
    assert np.array_equal(made[-1][CUBE], volume)


def test_a_large_read_of_a_locked_version(place, volume):
    gcs, url, repo = place
    repo.create_array("a", np.uint8)[CUBE] = volume
    repo.lock_node("done")
    opened = []

    def fresh():
        opened.append(DicedStore(url, readonly=True).open_repo("r"))
        return opened[-1]

    got = []

    def read(there):
        got[:] = [there["a"][CUBE]]

    # The lock object, the index page, the data.
    depth, log = deep(gcs, read, fresh, wanted=3)
    assert depth <= 4
    assert 20 * MIB < sum(each.sent for each in log) < 40 * MIB
    assert np.array_equal(got[0], volume)
    depth, _ = deep(gcs, read, lambda: opened[-1], wanted=1)
    assert depth <= 2
    array = opened[-1]["a"]
    # After max_age: whether the array is still there, then the data.
    depth, _ = deep(gcs, lambda: array[CUBE], lambda: time.sleep(1.1), wanted=2)
    assert depth <= 2


def test_voxels(place):
    gcs, url, repo = place
    array = repo.create_array("a", np.uint8)
    array[BLOCK] = np.arange(64**3, dtype=np.uint32).reshape(64, 64, 64).astype(np.uint8)

    def read(there):
        assert there[1, 2, 3] == (1 * 64 * 64 + 2 * 64 + 3) % 256

    # At an open version that may have grown: whether it has, then the data.
    assert deep(gcs, lambda: read(array), wanted=1)[0] <= 1
    assert deep(gcs, lambda: read(array), lambda: time.sleep(1.1), wanted=2)[0] <= 2
    repo.lock_node("done")
    assert deep(gcs, read, lambda: _locked(url), wanted=3)[0] <= 3
    there = _locked(url)
    read(there)
    assert deep(gcs, lambda: read(there), wanted=1)[0] <= 1


def _locked(url):
    return DicedStore(url, readonly=True).open_repo("r")["a"]


def test_small_writes(place):
    gcs, _, repo = place
    array = repo.create_array("a", np.uint8)
    noise = np.random.default_rng(7).integers(0, 200, (80, 64, 16), dtype=np.uint8).repeat(4, 2)
    array[0:64, 0:64, 0:64] = noise[:64]
    starts = iter(range(1, 16))

    def write(low=0):
        first = next(starts)
        array[low:64, 0:64, 0:64] = noise[first + low : first + 64]

    # The block rides in the record.
    assert deep(gcs, write, wanted=1)[0] <= 1
    assert deep(gcs, write, lambda: time.sleep(1.1), wanted=2)[0] <= 2
    # What is there is read first, and merged.
    assert deep(gcs, lambda: write(3), wanted=2)[0] <= 2
    assert repo.reserve_ids(1) >= 1
    assert deep(gcs, lambda: repo.reserve_ids(5), wanted=1)[0] <= 1


def test_many_values_are_read_side_by_side(place):
    gcs, _, repo = place
    names = [f"k{number}" for number in range(16)]
    repo.files.put_many({name: name.encode() * 2000 for name in names})
    repo.files["k0"]  # the index is known

    def read():
        found = dict(repo.files.get_many(names))
        assert found == {name: name.encode() * 2000 for name in names}

    for call in (read, lambda: list(repo.files.sizes(names)), lambda: list(repo.files.items())):
        depth, log = deep(gcs, call, wanted=2)
        assert depth <= 4
        assert len(log) >= len(names)


def test_long_values_are_read_one_at_a_time(place):
    gcs, _, repo = place
    names = [f"k{number}" for number in range(4)]
    value = np.random.default_rng(5).bytes(3 * MIB)
    repo.files.put_many(dict.fromkeys(names, value))
    for found in (repo.files.items(), repo.files.get_many(names)):
        gcs.clear()
        assert next(found)[1] == value
        assert sum(each.sent for each in gcs.log()) < 5 * MIB
        assert [each for _, each in found] == [value] * 3
