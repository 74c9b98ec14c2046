"""What reviews of pyramids, tiles, planes and regions found."""

import numpy as np
import pytest

from diced.downsample import reduce
from diced.errors import BadIndexError, InvalidError, ReadOnlyError
from diced.pyramid import Stored
from diced.tilemaker import plane_of

BLOCK = (8, 8, 8)


# -- what a level is of the level below --------------------------------------------------------


def test_a_fill_value_that_no_sum_is_exact_for_stays_itself(repo):
    array = repo.create_array("a", "float64", block_shape=BLOCK, fill=0.1)
    array[0, 0, 0] = array[20, 20, 20] = 5.0
    level = array.level(1)
    # Of these the first two have a block below them, and the last has none.
    assert level[3, 3, 3] == level[2:4, 2:4, 2:4].max() == level[7, 7, 7] == 0.1
    whole = level[0:8, 0:8, 0:8]
    assert whole[7, 7, 7] == level[7:8, 7:8, 7:8].item()
    assert np.unique(whole).tolist() == sorted({0.1, whole[0, 0, 0]})


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, np.inf, np.finfo(np.float64).max])
def test_equal_floats_have_themselves_as_mean(value):
    assert (reduce(np.full((4, 4, 4), value), (2, 2, 2), "mean") == value).all()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_the_smallest_of_several_commonest_may_be_negative(dtype):
    box = np.array([[7, 7], [-3, -3]], dtype)
    assert reduce(box, (2, 2), "mode").item() == -3


# -- handles of levels -------------------------------------------------------------------------


@pytest.fixture
def em(repo):
    em = repo.create_array("em", "uint8", block_shape=BLOCK)
    em[0:16, 0:16, 0:16] = np.arange(16, dtype=np.uint8)
    em.update_pyramid(4, axes=[1, 2], method="nearest")
    return em


def test_a_handle_of_a_level_outlives_its_pyramid(em, repo):
    levels = [repo[f"em_{number}"] for number in (1, 4)]
    before = [level[0:16, 0:8, 0:8] for level in levels]
    em.pyramid().delete()
    for level, wanted in zip(levels, before, strict=True):
        np.testing.assert_array_equal(level[0:16, 0:8, 0:8], wanted)
    assert levels[1].voxel_size == (1.0, 16.0, 16.0)
    em.update_pyramid(4)  # another one, of means and all axes
    assert levels[1].voxel_size == (16.0,) * 3
    np.testing.assert_array_equal(levels[1][0:1, 0:1, 0:1], em.level(4)[0:1, 0:1, 0:1])


def test_levels_above_one_that_was_deleted_can_be_read(em, repo):
    level = repo["em_4"]
    before = level[0:16, 0:2, 0:2]
    repo.delete_array("em_2")
    for each in (level, repo["em_4"]):
        np.testing.assert_array_equal(each[0:16, 0:2, 0:2], before)


def test_what_is_stored_of_versions_is_decoded_once(repo, monkeypatch):
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    for value in range(5):
        array[0:8, 0:8, 0:8] = value
        array.update_pyramid(1)
        repo.lock_node("next")
        repo.change_version(repo.create_branch("on"))
    decoded = []
    decode = Stored.decode.__func__
    monkeypatch.setattr(
        Stored,
        "decode",
        classmethod(lambda cls, entry, where: decoded.append(entry) or decode(cls, entry, where)),
    )
    array[0, 0, 0] = 99
    array.update_pyramid(1)
    for _ in range(3):
        assert array.level(1)[0, 0, 0] == (99 + 4 * 7 + 4) // 8
    assert len(decoded) <= 4  # not of every version


@pytest.mark.parametrize("most", [1, 40, 2**18])
def test_high_levels_are_stored_by_many_commits(repo, monkeypatch, most):
    monkeypatch.setattr("diced.levels.COMMIT_BYTES", 3 * 512)
    monkeypatch.setattr("diced.levels.WHOLE_LEVEL", 2)
    monkeypatch.setattr("diced.levels.MOST_CHANGES", most)
    monkeypatch.setattr("diced.levels.DIRECT", 2)
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    values = np.random.default_rng(0).integers(0, 250, (128, 64, 64), np.uint8)
    array[0:128, 0:64, 0:64] = values
    seen = []

    def stop(*told):
        seen.append(told)
        if seen[-1][0] == 2:
            raise KeyboardInterrupt

    stops = 0
    while True:
        try:
            array.update_pyramid(3, progress=stop)
            break
        except KeyboardInterrupt:
            stops += 1
    assert sum(done for level, done in seen if level == 2) == 16  # each block once
    # A block stands for 64 of the array's: where so many are too many there is one commit.
    assert stops == 1 if most == 1 else stops > 3
    assert all(each["complete"] for each in array.pyramid().status())
    for number in (1, 2, 3):
        values = reduce(values, (2, 2, 2), "mean")
        np.testing.assert_array_equal(array.level(number)[...], values)


# -- planes ------------------------------------------------------------------------------------


def test_a_plane_whose_corners_are_no_numbers_is_refused(repo):
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    array[0:8, 0:8, 0:8] = 1
    with pytest.raises(BadIndexError, match="the plane reaches"):
        array.plane((0, 0, 0), (1e308, 0, 0), (-1e308, 0, 0), (100, 100))
    with pytest.raises(BadIndexError, match="the plane reaches"):
        array.write_plane((0, 0, 0), (1e308, 0, 0), (-1e308, 0, 0), np.zeros((100, 100), np.uint8))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_between_opposite_infinities_is_no_number(repo, dtype):
    array = repo.create_array("a", dtype, block_shape=BLOCK)
    array[0:8, 0:8, 0:2] = np.array([-np.inf, np.inf], dtype)
    found = array.plane((0, 0, 0), (0, 1, 0), (0, 0, 0.5), (2, 3))
    np.testing.assert_array_equal(found, [[-np.inf, np.nan, np.inf]] * 2)


# -- tiles -------------------------------------------------------------------------------------


def test_a_tile_far_larger_than_its_source_takes_no_memory(repo):
    em = repo.create_array("em", "uint8", fill=3)
    em[0, -5:64, 10:64] = 200
    em[1_000_000, 0:64, 0:64] = 100  # so tall an array has twelve scales
    tiles = repo.create_array("tiles", kind="imagetile", attrs={"tiles": {"source": "em"}})
    top = len(tiles.all_scales()) - 1
    assert top == 11
    found = tiles.pixels(plane_of("xy"), top, (0, 0, 0))
    assert found.shape == (512, 512) and (found == 3).sum() == 512 * 512
    values = np.full((1, 128, 128), 3, np.uint8)
    values[0, :64, 10:64] = 200
    for scale in range(1, 6):
        values = reduce(values, (1, 2, 2), "mean")
        found = tiles.pixels(plane_of("xy"), scale, (0, 0, 0))
        size = values.shape[1]
        np.testing.assert_array_equal(found[:size, :size], values[0])
        assert (found[size:] == 3).all() and (found[:, size:] == 3).all()


# -- regions -----------------------------------------------------------------------------------


def test_what_is_no_box_or_point_or_batch_is_refused(repo):
    roi = repo.create_array("roi", kind="roi")
    roi.set_spans([[0, 0, 0, 3]])
    with pytest.raises(InvalidError, match="whole numbers"):
        roi.mask((0.5, 0, 0), (1, 1, 1))
    with pytest.raises(BadIndexError, match="beyond all coordinates"):
        roi.mask((2**70, 0, 0), (2**70 + 1, 1, 1))
    with pytest.raises(InvalidError, match="points are of shape"):
        roi.contains([[1, 2], [3]])
    for batch in (None, 1.5):
        with pytest.raises(InvalidError, match="a batch is"):
            roi.partition(batch)
    assert roi.mask(np.zeros(3, int), np.ones(3, int)).all()


# -- levels that are not stored ----------------------------------------------------------------


def test_attributes_of_a_level_that_is_not_stored_are_not_the_sources(repo):
    source = repo.create_array("a", "uint8", block_shape=BLOCK, attrs={"own": 1})
    source[0:32, 0:8, 0:8] = 1
    level = source.level(1)
    assert dict(level.attrs) == {}
    with pytest.raises(ReadOnlyError, match="write there"):
        level.attrs["own"] = 2
    assert dict(source.attrs) == {"own": 1}
    source.update_pyramid(1)
    repo["a_1"].attrs["own"] = 3
    assert dict(source.level(1).attrs) == {"own": 3} and dict(source.attrs) == {"own": 1}


@pytest.mark.parametrize("number", [1, 4])
def test_dask_sees_a_level_as_it_was_asked_for(repo, number):
    source = repo.create_array("a", "uint8", block_shape=BLOCK)
    source[0:16, 0:16, 0:16] = np.arange(16, dtype=np.uint8)
    level = source.pyramid(4, axes=[1, 2], method="nearest")[number]
    np.testing.assert_array_equal(level.to_dask().compute(), level[...])


def test_dask_tells_levels_apart_that_are_made_differently(repo):
    dask = pytest.importorskip("dask")
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    array[0:16, 0:16, 0:16] = np.random.default_rng(1).integers(0, 250, (16, 16, 16))
    made = [
        array.pyramid(1)[1], array.pyramid(1, method="nearest")[1], array.pyramid(1, axes=[0])[1],
    ]  # fmt: skip
    for found, level in zip(dask.compute(*[each.to_dask() for each in made]), made, strict=True):
        np.testing.assert_array_equal(found, level[...])


@pytest.mark.parametrize("axes", [5, 1.5, [], [3], [-1], [True], "all", [None]])
def test_axes_that_are_none_are_refused(repo, axes):
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    with pytest.raises(InvalidError, match="axes"):
        array.pyramid(1, axes=axes)
