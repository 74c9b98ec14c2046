"""Regions of interest: spans, masks, points, versions."""


import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diced
from diced.errors import BadIndexError, InvalidError, LockedError
from diced.spans import Partition, Subvolume, partition

SPANS = [
    [100, 101, 200, 210], [100, 102, 200, 210], [100, 103, 201, 212],
    [101, 101, 201, 213], [101, 102, 202, 215], [101, 103, 202, 216],
    [102, 101, 200, 210], [102, 103, 201, 216], [102, 104, 203, 217],
    [103, 101, 200, 210], [103, 103, 200, 210], [103, 105, 201, 212],
]  # fmt: skip


@pytest.fixture
def roi(repo):
    return repo.create_array("roi", kind="roi")


def blocks_of(spans):
    """The set of blocks of spans."""
    return {(z, y, x) for z, y, x0, x1 in spans for x in range(x0, x1 + 1)}


def test_a_new_region_is_empty(roi):
    assert roi.kind == "roi"
    assert roi.block_shape == (32, 32, 32)
    assert len(roi) == 0
    assert roi.spans().shape == (0, 4)
    assert roi.extents is None
    assert roi.bounds is None
    assert not roi.mask((-5, -5, -5), (5, 5, 5)).any()
    assert roi.contains([[1, 2, 3]]).tolist() == [False]
    assert roi.contains([]).tolist() == []
    assert roi.partition(4) == Partition([], 0, 0)


def test_spans_come_back_sorted_each_once_and_unmerged(roi):
    given = [[1, 0, 5, 9], [1, 0, 0, 3], [-2, 7, -4, -4], [1, 0, 2, 6], [1, 0, 0, 3]]
    roi.set_spans(given)
    assert roi.spans().tolist() == [[-2, 7, -4, -4], [1, 0, 0, 3], [1, 0, 2, 6], [1, 0, 5, 9]]
    assert roi.spans().dtype == np.int32
    assert roi.extents == ((-2, 0, -4), (1, 7, 9))
    assert roi.bounds == (slice(-64, 64), slice(0, 256), slice(-128, 320))


def test_setting_replaces_all_in_one_commit(repo, roi):
    roi.set_spans(SPANS)
    roi.set_spans([[0, 0, 0, 0]])
    assert roi.spans().tolist() == [[0, 0, 0, 0]]
    roi.clear()
    roi.clear()  # nothing to do
    assert len(roi) == 0
    assert [each["operation"] for each in repo.operations("roi")] == [
        "put spans", "put spans", "delete spans",
    ]  # fmt: skip


def test_extreme_coordinates(roi):
    least, most = -(2**31), 2**31 - 1
    rows = [[least, least, least, most], [most, most, least, least], [most, most, most, most]]
    roi.set_spans(rows)
    assert roi.spans().tolist() == rows
    assert roi.contains([[0, 0, 0], [2**62, 0, 0], [-(2**62), 2**62, 5]]).tolist() == [False] * 3
    edge = [[least * 32, least * 32, 0], [most * 32 + 31, most * 32, most * 32]]
    assert roi.contains(edge).tolist() == [True, True]
    assert roi.contains(np.array([[2**64 - 1] * 3], np.uint64)).tolist() == [False]


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ([[0, 0, 2, 1]], InvalidError),
        ([[0, 0, 2]], InvalidError),
        ([0, 0, 2, 3], InvalidError),
        ([[0, 0, 2, 3.5]], InvalidError),
        ([[0, 0, 2, 3], [1, 2]], InvalidError),
        ("text", InvalidError),
        ([[0, 0, 0, 2**31]], BadIndexError),
        ([[0, 0, 0, 2**80]], InvalidError),
    ],
)
def test_bad_spans_are_refused_and_change_nothing(roi, spans, error):
    roi.set_spans(SPANS)
    with pytest.raises(error):
        roi.set_spans(spans)
    assert roi.spans().tolist() == SPANS


def test_bad_boxes_and_points_are_refused(roi):
    with pytest.raises(InvalidError):
        roi.mask((0, 0), (1, 1))
    with pytest.raises(InvalidError):
        roi.mask((0, 0, 0), (1, -1, 1))
    assert roi.mask((0, 0, 0), (1, 0, 1)).shape == (1, 0, 1)
    for points in ([[1, 2]], [[1.5, 2, 3]], [1, 2, 3]):
        with pytest.raises(InvalidError):
            roi.contains(points)


coordinates = st.integers(-6, 6)
some_spans = st.lists(
    st.tuples(coordinates, coordinates, coordinates, st.integers(0, 4)).map(
        lambda each: [each[0], each[1], each[2], each[2] + each[3]]
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(some_spans, st.data())
def test_mask_and_points_are_those_of_the_blocks(spans, data):
    repo = diced.DicedStore("memory://").create_repo("r")
    roi = repo.create_array("roi", kind="roi", block_shape=(2, 3, 4))
    roi.set_spans(spans)
    blocks = blocks_of(spans)
    lo = data.draw(st.tuples(*[st.integers(-20, 20)] * 3))
    size = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    hi = tuple(a + n for a, n in zip(lo, size, strict=True))
    expected = np.zeros(size, bool)
    for index in np.ndindex(*size):
        z, y, x = (a + i for a, i in zip(lo, index, strict=True))
        expected[index] = (z // 2, y // 3, x // 4) in blocks
    mask = roi.mask(lo, hi)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)
    points = np.argwhere(np.ones(size, bool)) + np.array(lo)
    np.testing.assert_array_equal(roi.contains(points), expected.ravel())


def test_many_parts(roi):
    rng = np.random.default_rng(5)
    count = 60_000
    rows = np.c_[rng.integers(-9, 9, (count, 2)), rng.integers(-(10**6), 10**6, count)]
    rows = np.c_[rows, rows[:, 2] + rng.integers(0, 5, count)]
    roi.set_spans(rows)
    stored = roi.spans()
    np.testing.assert_array_equal(stored, np.unique(rows, axis=0))
    assert len(roi) == len(stored)
    some = stored[rng.integers(0, len(stored), 500)]
    middle = (some[:, [0, 1, 3]].astype(np.int64)) * 32 + 31
    assert roi.contains(middle).all()
    z, y, x0, x1 = some[0].tolist()
    mask = roi.mask((z * 32, y * 32, x0 * 32), (z * 32 + 1, y * 32 + 1, x1 * 32 + 32))
    assert mask.all()
    roi.set_spans(rows[:5])
    assert len(roi.spans()) == 5


def test_versions(repo, roi):
    roi.set_spans(SPANS)
    first = repo.lock_node("first")
    with pytest.raises(LockedError):
        roi.set_spans([])
    repo.change_version(repo.create_branch("child"))
    assert roi.spans().tolist() == SPANS
    roi.clear()
    assert len(roi) == 0
    repo.change_version(first)
    assert roi.spans().tolist() == SPANS


def test_another_store_object_sees_it_at_once(tmp_path):
    repo = diced.DicedStore(tmp_path / "s").create_repo("r")
    roi = repo.create_array("roi", kind="roi", block_shape=(8, 16, 32))
    other = diced.DicedStore(str(tmp_path / "s")).open_repo("r")["roi"]
    assert other.block_shape == (8, 16, 32)
    roi.set_spans(SPANS)
    assert other.spans().tolist() == SPANS
    other.clear()
    assert len(roi) == 0


def test_what_is_stored_is_sound(tmp_path):
    from diced.fsck import check

    repo = diced.DicedStore(tmp_path / "s").create_repo("r")
    roi = repo.create_array("roi", kind="roi")
    roi.set_spans(np.c_[np.zeros((40_000, 2), int), np.arange(40_000), np.arange(40_000)])
    report = check(repo.store, full=True)
    assert report.ok, report


def test_simple_partition(roi):
    roi.set_spans(SPANS)
    found = roi.partition(5)
    assert (found.total, found.active, len(found.volumes)) == (1375, 152, 10)
    assert found.volumes[0] == Subvolume((98, 99, 199), (102, 103, 203), 25)
    assert [each.active for each in found.volumes] == [25, 40, 30, 8, 5, 5, 5, 11, 15, 8]


def test_optimized_partition(roi):
    roi.set_spans(SPANS)
    found = roi.partition(5, optimized=True)
    assert (found.total, found.active) == (450, 152)
    assert [(each.first, each.last, each.active) for each in found.volumes] == [
        ((100, 101, 200), (104, 105, 205), 61),
        ((100, 101, 206), (104, 105, 211), 67),
        ((100, 101, 212), (104, 105, 217), 24),
    ]


@settings(max_examples=150, deadline=None)
@given(some_spans, st.integers(1, 7), st.booleans())
def test_a_partition_covers_each_block_once(spans, batch, optimized):
    rows = np.array(sorted(map(list, {tuple(each) for each in spans})), np.int32).reshape(-1, 4)
    # Blocks of spans that overlap count as often as they are given.
    blocks = [(z, y, x) for z, y, x0, x1 in rows.tolist() for x in range(x0, x1 + 1)]
    found = partition(rows, batch, optimized)
    assert found.active == len(blocks)
    homes = []
    for volume in found.volumes:
        inside = [
            block for block in blocks
            if all(a <= c <= b for a, c, b in zip(volume.first, block, volume.last, strict=True))
        ]  # fmt: skip
        assert len(inside) == volume.active > 0
        homes += inside
        if not optimized:
            assert volume.total == batch**3
    assert sorted(homes) == sorted(blocks)
    assert found.total >= sum(each.total for each in found.volumes)


def test_partitions_that_would_be_too_many_are_refused(roi):
    roi.set_spans([[0, 0, -(2**31), 2**31 - 1]])
    for optimized in (False, True):
        with pytest.raises(InvalidError, match="larger batch"):
            roi.partition(8, optimized=optimized)
    assert roi.partition(2**20).active == 2**32
    for batch in (0, -1, 2**40):
        with pytest.raises(InvalidError):
            roi.partition(batch)
