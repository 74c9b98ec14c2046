"""Cases that reviewers found: each was wrong once."""

import gc
import os
import pickle
import resource

import numpy as np
import pytest

from diced import (
    AlreadyExistsError,
    AmbiguousError,
    CorruptError,
    DicedStore,
    InvalidError,
    NotFoundError,
    encoding,
    fsck,
    versioned,
)
from diced import handle as handles
from diced.errors import EngineError
from diced.log import CommitLog


@pytest.fixture
def store(tmp_path):
    with DicedStore(tmp_path / "s", durability="process") as opened:
        yield opened


@pytest.fixture
def repo(store):
    return store.create_repo("r")


def test_a_reversed_channel_slice_reverses_whole_blocks(repo):
    array = repo.create_array("a", np.uint8, channels=3, block_shape=(2, 2, 2))
    data = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    array[0:2, 0:2, 0:2, ::-1] = data
    assert np.array_equal(array[0:2, 0:2, 0:2], data[..., ::-1])


@pytest.mark.parametrize("locked", [False, True])
def test_handles_of_what_was_deleted_and_swept_do_not_read_fill(
    tmp_path, store, repo, locked, monkeypatch
):
    monkeypatch.setattr(handles, "LOCKED_AGE", 0.0)
    repo.create_array("a", np.uint8, 1, block_shape=(4,))[0:4] = np.arange(4)
    if locked:
        repo.lock_node("x")
    other = DicedStore(tmp_path / "s").open_repo("r")
    unread, read = other["a"], other["a"]
    assert read[0:4].tolist() == [0, 1, 2, 3]
    repo.delete_array("a")
    store.sweep()
    for each in (read, unread):
        with pytest.raises(NotFoundError, match="deleted"):
            each[0:4]
    repo.create_array("b", np.uint8, 1, versioned=False)
    handle = DicedStore(tmp_path / "s").open_repo("r")["b"]
    store.delete_repo("r")
    store.sweep()
    with pytest.raises(NotFoundError, match="deleted"):
        handle[0:4]
    with pytest.raises(NotFoundError):
        other["a"]


def test_deleting_takes_a_name_or_a_whole_uuid(store, repo):
    repo.lock_node("x")
    repo.tag("old")
    for name in ("old", repo.uuid[:8]):
        with pytest.raises(NotFoundError):
            store.delete_repo(name)
        with pytest.raises(NotFoundError):
            store.rename_repo(name, "other")
    assert store.list_repos() == [("r", repo.root)]
    store.delete_repo(repo.root)
    assert store.list_repos() == []


def test_an_error_while_catching_up_counts_nothing_twice(tmp_path, repo, monkeypatch):
    array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
    other = DicedStore(tmp_path / "s").open_repo("r")
    for value in (1, 2, 3):
        array[0] = value
    real = CommitLog.read
    failures = [True]

    def read(self, number):
        if number == 3 and failures and "meta" not in self.prefix:
            failures.clear()
            raise EngineError("once")
        return real(self, number)

    monkeypatch.setattr(CommitLog, "read", read)
    with pytest.raises(EngineError, match="once"):
        other["a"][0]
    assert other["a"][0] == 3
    other.lock_node("x")
    assert fsck.check(other.store, full=True).ok


def test_a_batch_stays_at_its_version(repo):
    array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
    repo.lock_node("x")
    one, two = repo.create_branch(branch="one"), repo.create_branch(branch="two")
    repo.change_version(one)
    with array.batch():
        array[0] = 1
        repo.change_version(two)
        with pytest.raises(InvalidError, match="another version"):
            array[1] = 1
        with pytest.raises(InvalidError, match="another version"):
            array[1]
        repo.change_version(one)
        array[2] = 3
    assert array[0:4].tolist() == [1, 0, 3, 0]


@pytest.mark.parametrize("late", [False, True])
def test_an_assignment_that_broke_inside_a_batch_spoils_it(repo, monkeypatch, late):
    if not late:  # blocks are encoded at once, not with others
        monkeypatch.setattr(encoding, "GROUP_BLOCKS", 1)
        monkeypatch.setattr(encoding, "GROUP_BYTES", 1)
    array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
    real = type(array._blocks().home.writer).append
    calls = []

    def append(self, chunks):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return real(self, chunks)

    monkeypatch.setattr(type(array._blocks().home.writer), "append", append)
    with pytest.raises(InvalidError, match="half-way"), array.batch():
        with pytest.raises(MemoryError):
            array[0:4] = [1, 2, 3, 4]
            array[0]  # what is late is encoded before it is read
        array[8:12] = [1, 2, 3, 4]
    assert array.bounds is None


def test_lists_of_large_integers_are_exact(repo):
    labels = repo.create_array("l", np.uint64, 1, block_shape=(4,))
    labels[0:2] = [1, 2**63 + 1]
    assert labels[0:2].tolist() == [1, 2**63 + 1]
    for wrong in ([1, 2**64], [1, -1], [1, 0.5]):
        with pytest.raises(InvalidError):
            labels[0:2] = wrong


def test_attributes_are_copies(repo):
    array = repo.create_array("a", np.uint8, 1)
    given = [1]
    array.attrs["l"] = given
    given.append(2)
    array.attrs["l"].append(3)
    array.attrs["o"] = 1
    assert dict(array.attrs) == {"l": [1], "o": 1}
    with pytest.raises(InvalidError):
        array.attrs["\ud800"] = 1


def test_long_lived_readers_and_writers_keep_little(tmp_path, repo, monkeypatch):
    monkeypatch.setattr(versioned, "SNAPSHOT_RECORDS", 8)
    monkeypatch.setattr(versioned, "RECENT_ENTRIES", 64)
    array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
    other = DicedStore(tmp_path / "s").open_repo("r")["a"]
    for value in range(100):
        array[0:4] = value
        assert other[3] == value
    lane = other._blocks().lane
    length = 0
    for link in lane._state.overlay.chains.get(0, {}).values():
        while link is not None:
            link, length = link[2], length + 1
    assert length < 40
    assert len(lane._txids) < 40
    array[0:4000] = np.arange(4000) % 200
    assert array._blocks().lane._recent_size <= 1000


def test_pickles_share_one_store_and_find_their_repo(tmp_path, store, repo):
    repo.create_array("a", np.uint8, 1)[0:9] = 7
    other = store.create_repo("other")
    other.lock_node("x")
    other.create_branch(branch="b", uuid=repo.uuid)
    data = pickle.dumps(repo["a"])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    handles = [pickle.loads(data) for _ in range(40)]
    assert {handle[3] for handle in handles} == {7}
    assert {handle._repo.name for handle in handles} == {"r"}
    if before:
        assert len(os.listdir("/proc/self/fd")) < before + 10
        del handles
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_extents_are_usable_at_the_edges_of_the_coordinates(repo):
    array = repo.create_array("a", np.uint8, 1, block_shape=(100,))
    array[2**31 - 1] = 5
    assert array[...][-1] == 5
    assert array[array.get_extents()].shape == array.shape
    low = repo.create_array("b", np.uint8, 1, block_shape=(100,))
    low[-(2**31)] = 6
    assert low[...][0] == 6


def test_iteration_goes_over_the_extents(repo):
    array = repo.create_array("a", np.uint8, 2, block_shape=(4, 4))
    array[-4:4, 0:4] = 3
    assert [plane.sum() for plane in array] == [12] * 8
    with pytest.raises(TypeError):
        3 in array  # noqa: B015
    with pytest.raises(TypeError):
        reversed(array)


def test_names_of_tags_branches_and_versions_do_not_cover_each_other(store, repo):
    repo.lock_node("x")
    repo.tag("v1")
    for wrong in ("master", "v1", repo.uuid):
        with pytest.raises(AlreadyExistsError):
            repo.tag(wrong)
        with pytest.raises(AlreadyExistsError):
            repo.create_branch(branch=wrong)
    for wrong in ("a~1", "a:b", "", "x\n"):
        with pytest.raises(InvalidError):
            repo.tag(wrong)
        with pytest.raises(InvalidError):
            repo.create_branch(branch=wrong)
    other = store.create_repo("other")
    other.lock_node("x")
    other.tag("v1")
    with pytest.raises(AmbiguousError):
        store.open_repo(uuid="v1")


def test_a_missing_lock_object_is_corruption_with_a_remedy(tmp_path, repo):
    repo.create_array("a", np.uint8, 1)[0:9] = 7
    repo.lock_node("x")
    store = DicedStore(tmp_path / "s")
    home = store.open_repo("r")._history.home
    for key in list(store.engine.list(f"{home.prefix}/locks")):
        store.engine.delete(key)
    with pytest.raises(CorruptError, match="--rebuild"):
        store.open_repo("r")["a"][0]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda repo: list(repo.files.keys(prefix="\ud800")), InvalidError),
        (lambda repo: list(repo.files.keys(prefix=5)), InvalidError),
        (lambda repo: repo.files.put_many([1]), InvalidError),
        (lambda repo: repo.files.delete_many("nd"), InvalidError),
        (lambda repo: repo.files.__setitem__("d", 5), InvalidError),
        (lambda repo: repo.change_version(5), InvalidError),
        (lambda repo: repo.lock_node(b"x"), InvalidError),
        (lambda repo: repo.delete_array(".files"), InvalidError),
        (lambda repo: repo.store.open_repo(uuid=""), InvalidError),
        (lambda repo: repo.create_array("x", voxel_size=float("nan")), InvalidError),
        (lambda repo: repo["f"].__setitem__(slice(0, 1), np.array([1e300])), InvalidError),
        (lambda repo: repo.create_array("g", np.float64)[(slice(0, 2**31),) * 3], InvalidError),
    ],
)
def test_wrong_calls_have_typed_errors(repo, call, error):
    repo.create_array("f", np.float32, 1)
    with pytest.raises(error):
        call(repo)


def test_calls_that_are_right(repo):
    assert "" not in repo.files
    assert repo.files.get("", 5) == 5
    assert repo.create_array("l", islabel3D=True).dtype == np.uint64
    assert repo.create_array("d", dims=np.int64(2), voxel_size=np.int64(8)).voxel_size == (8, 8)


def test_lists_with_numpy_integers_do_not_wrap(repo):
    array = repo.create_array("a", np.uint8, 1)
    for wrong in (
        [np.uint64(2**64 - 1), 1],
        [np.uint64(2**40 + 5), 1],
        [np.int64(-1), np.uint64(7)],
    ):
        with pytest.raises(InvalidError):
            array[0:2] = wrong
    array[0:2] = [np.uint64(7), np.int64(8)]
    assert array[0:2].tolist() == [7, 8]
    with pytest.raises(InvalidError):
        array[0] = "x" * 20_000_000


def test_a_reader_far_behind_moves_onto_snapshots(tmp_path, repo, monkeypatch):
    monkeypatch.setattr(versioned, "SNAPSHOT_ENTRIES", 64)
    monkeypatch.setattr(versioned, "RECENT_ENTRIES", 16)
    array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
    other = DicedStore(tmp_path / "s").open_repo("r")["a"]
    for number in range(200):
        array[80 * number : 80 * number + 80] = np.arange(80)
        assert other[80 * number + 9] == 9
    assert len(other._blocks().lane._state.overlay) < 2000
    assert (other[0:80] == np.arange(80)).all()


def test_a_batch_outlives_the_lanes_that_a_process_remembers(repo, monkeypatch):
    from diced import history

    monkeypatch.setattr(history, "MAX_KEPT", 3)
    array = repo.create_array("a", np.uint8, 1)
    others = [repo.create_array(f"o{n}", np.uint8, 1) for n in range(8)]
    with array.batch():
        array[0] = 1
        for other in others:
            other[0] = 1
        array[1] = 2
    assert array[0:2].tolist() == [1, 2]


def test_stepped_reads_of_many_channels_are_bounded(repo):
    array = repo.create_array("a", np.uint16, channels=128, block_shape=(16, 16, 16))
    array[0:4, 0:4, 0:4] = 7
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = array[0:160:16, 0:160:16, 0:160:16]
    assert result[0, 0, 0, 5] == 7 and result[1:].max() == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_closing_an_unpickled_store_does_not_close_others(store, repo):
    repo.create_array("a", np.uint8, 1)[0] = 3
    handle = pickle.loads(pickle.dumps(repo["a"]))
    with pickle.loads(pickle.dumps(store)) as other:
        assert other.list_repos() == store.list_repos()
    assert handle[0] == 3


@pytest.mark.parametrize("what", ["array", "repo"])
def test_a_batch_on_what_was_deleted_meanwhile_is_refused(tmp_path, what):
    path = str(tmp_path / "store")
    repo = DicedStore(path).create_repo("r")
    array = repo.create_array("a", np.uint8, block_shape=(8, 8, 8))
    other = DicedStore(path)

    def edit():
        with array.batch():
            array[0:8, 0:8, 0:8] = 3
            other.open_repo("r").delete_array("a") if what == "array" else other.delete_repo("r")
            array[8:16, 0:8, 0:8] = 4

    with pytest.raises(NotFoundError):
        edit()


def test_an_array_of_another_branch_is_not_found_rather_than_damaged():
    repo = DicedStore("memory://").create_repo("r")
    repo.lock_node("first")
    one, two = repo.create_branch(branch="one"), repo.create_branch(branch="two")
    repo.change_version(one)
    array = repo.create_array("a", np.uint8)
    repo.change_version(two)
    with pytest.raises(NotFoundError, match="another branch"):
        array[0, 0, 0] = 1
    with pytest.raises(NotFoundError, match="another branch"):
        array[0, 0, 0]


def test_many_segments_are_read_with_few_open_files(tmp_path):
    path = str(tmp_path / "store")
    DicedStore(path).create_repo("r").create_array("a", np.uint8, 1, block_shape=(64,))
    values = np.random.default_rng(0).integers(1, 255, 90 * 64, np.uint8)
    for number in range(90):  # a segment each
        place = slice(64 * number, 64 * number + 64)
        with DicedStore(path, durability="process") as store:
            store.open_repo("r")["a"][place] = values[place]
    stores = [DicedStore(path) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        for store in stores:
            array = store.open_repo("r")["a"]
            assert np.array_equal(array[0 : 90 * 64], values)
            array[5] = values[5]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_blocks_of_a_batch_that_are_encoded_late():
    array = DicedStore("memory://").create_repo("r").create_array(
        "a", np.uint8, 2, block_shape=(8, 8)
    )
    model = np.zeros((64, 64), np.uint8)
    rng = np.random.default_rng(0)
    source = np.zeros((8, 8), np.uint8)
    with array.batch():
        for number in range(300):
            y, x = (8 * rng.integers(0, 8, 2)).tolist()
            source[:] = rng.integers(0, 255, (8, 8))  # the caller's array is used again
            array[y : y + 8, x : x + 8] = source
            model[y : y + 8, x : x + 8] = source
            if number % 7 == 3:
                array[y + 1 : y + 20, x : x + 3] = number % 251
                model[y + 1 : y + 20, x : x + 3] = number % 251
            if number % 50 == 20:
                assert np.array_equal(array[0:64, 0:64], model)
            if number % 60 == 40:
                array[0:64, 0:64] = model[::-1].astype(np.int64)
                model = model[::-1].copy()
    assert np.array_equal(array[0:64, 0:64], model)
