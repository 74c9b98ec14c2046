"""Pyramids: levels as arrays, of all kinds of arrays, and what is left of them."""

import pickle

import numpy as np
import pytest
from scaling import BLOCK, HI, LO, WHOLE, assert_levels, box, em, expected, full, is_complete, noise  # noqa: F401

from diced import DicedStore
from diced.downsample import reduce
from diced.errors import BadIndexError, InvalidError, NotFoundError, ReadOnlyError
from diced.fsck import check
from diced.rebuild import rebuild
from diced.usage import usage

LEFT = {"unreferenced", "orphan-segment"}  # bytes of segments that arrays share


# -- reading -------------------------------------------------------------------------------


def test_levels_are_computed_where_nothing_is_stored(em):
    assert_levels(em, noise(0))
    assert em.pyramid().status() == []
    assert len(em.pyramid()) == 1 + 3  # 64 voxels of blocks of 8


def test_levels_are_stored_and_stay_right_after_edits(em):
    assert em.update_pyramid(3) > 0
    assert is_complete(em)
    values = noise(0)
    assert_levels(em, values)
    em[0:5, 7:20, 3:9] = 200
    values[24:29, 7:20, 11:17] = 200
    assert not is_complete(em)
    assert_levels(em, values)
    # Blocks of 16 voxels that the edit meets, then of 32, then of 64.
    assert em.update_pyramid() == 2 + 1 + 1
    assert is_complete(em)
    assert em.update_pyramid() == 0
    assert_levels(em, values)


def test_a_level_looks_like_an_array(em):
    level = em.level(1)
    assert level.name == "em_1" and level.number == 1 and level.kind == "image"
    assert level.dtype == np.uint8 and level.numdims == 3 and level.block_shape == BLOCK
    assert level.voxel_size == (80, 16, 16)
    assert level.bounds == box(1)
    assert level.shape == (40, 24, 40)  # whole blocks
    wanted = expected(noise(0), 1)
    np.testing.assert_array_equal(full(level), wanted)
    np.testing.assert_array_equal(np.asarray(level), level[...])
    np.testing.assert_array_equal(level[-4:10:3, 5, 27:-5:-2], wanted[8:22:3, 5, ::-2])
    np.testing.assert_array_equal(level.snapshot().read(box(1)), wanted)
    out = np.empty_like(wanted)
    assert level.read(box(1), out=out) is out
    np.testing.assert_array_equal(out, wanted)
    assert len(list(level.blocks())) == 5 * 3 * 5
    present, voxels = level.snapshot().read_blocks([[0, 0, 0], [90, 0, 0]])
    assert present.tolist() == [True, False]
    np.testing.assert_array_equal(voxels[0], level[0:8, 0:8, 0:8])
    np.testing.assert_array_equal(level.plane((0, 0, 0), (0, 1, 0), (0, 0, 1), (9, 9)),
                                  level[0, 0:9, 0:9])  # fmt: skip
    assert level[1000:1002, 0:2, 0:2].tolist() == np.zeros((2, 2, 2)).tolist()
    assert em.level(0) is em
    assert em.pyramid()[-1].number == 3
    assert [each.name for each in em.pyramid()] == ["em", "em_1", "em_2", "em_3"]


def test_levels_cannot_be_written(em):
    em.update_pyramid(1)
    for level in (em.level(1), em._repo["em_1"]):
        with pytest.raises(ReadOnlyError, match="'em'"):
            level[0, 0, 0] = 1
        with pytest.raises(ReadOnlyError), level.batch():
            pass
        with pytest.raises(ReadOnlyError):
            level.session()
        with pytest.raises(InvalidError):
            level.update_pyramid()
    with pytest.raises(InvalidError):
        em._repo.create_array("fake", "uint8", kind="pyramid")


def test_an_empty_array_has_levels(repo):
    em = repo.create_array("em", "uint8", block_shape=BLOCK, fill=9)
    assert len(em.pyramid()) == 1
    assert em.level(2).bounds is None and em.level(2).shape == (0, 0, 0)
    assert em.level(2)[0:3, 0:3, 0:3].tolist() == np.full((3, 3, 3), 9).tolist()
    assert em.update_pyramid(2) == 0
    em[0:8, 0:8, 0:8] = 1
    assert em.level(1)[0:5, 0, 0].tolist() == [1, 1, 1, 1, 9]
    assert em.level(2)[0:5, 0, 0].tolist() == [1, 1, 9, 9, 9]


@pytest.mark.parametrize("levels", [-1, 99, "2", 1.5, True])
def test_levels_are_whole_numbers(em, levels):
    with pytest.raises((InvalidError, BadIndexError)):
        em.level(levels)
    with pytest.raises(InvalidError):
        em.pyramid(levels)


def test_odd_ends_count_the_fill(repo):
    em = repo.create_array("em", "int16", dims=1, block_shape=(4,), fill=-7)
    em[-3:6] = 100
    # -4 is fill, -3 and on are 100; 6 and 7 are fill.
    assert em.level(1).bounds == (slice(-2, 3),)
    assert em.level(1)[-3:5].tolist() == [-7, 47, 100, 100, 100, 100, -7, -7]
    em.update_pyramid(2)
    assert em.level(1)[-3:5].tolist() == [-7, 47, 100, 100, 100, 100, -7, -7]


# -- kinds of arrays -----------------------------------------------------------------------


def test_labels_are_voted_on(repo):
    seg = repo.create_array("seg", islabel3D=True, block_shape=(16, 16, 16))
    values = noise(1, np.uint64) >> np.uint64(5)
    seg[WHOLE] = values
    assert_levels(seg, values, 2, method="mode")
    seg.update_pyramid(2)
    assert is_complete(seg)
    assert_levels(seg, values, 2, method="mode")
    assert seg.level(1).islabel3D and repo["seg_1"].kind == "label"
    assert repo["seg_1"].codec == seg.codec


@pytest.mark.parametrize("dtype", ["bool", "float32", "uint16", "int64"])
def test_channels_and_types(repo, dtype):
    array = repo.create_array("rgb", dtype, block_shape=BLOCK, channels=3)
    values = noise(2, dtype, (*(b - a for a, b in zip(LO, HI, strict=True)), 3))
    array[WHOLE] = values
    array.update_pyramid(2)
    assert_levels(array, values, 2, channels=3)
    array[0, 0, 0] = 1
    values[24, 0, 8] = 1
    assert_levels(array, values, 2, channels=3)


def test_lossy_arrays_have_exact_levels(repo):
    em = repo.create_array("em", "uint8", block_shape=BLOCK, lossycompression=True)
    em[WHOLE] = noise(3)
    seen = em[WHOLE]
    assert_levels(em, seen)
    em.update_pyramid(3)
    assert is_complete(em) and repo["em_1"].codec == "lz4"
    assert_levels(em, seen)


def test_long_voxels_may_wait(em):
    pyramid = em.pyramid(3, axes="isotropic")
    assert pyramid.steps == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    em.update_pyramid(3, axes="isotropic")
    assert em.pyramid().steps == pyramid.steps
    values = reduce(noise(0), (1, 2, 2), "mean")
    np.testing.assert_array_equal(full(em.level(1)), values)
    values = reduce(values, (1, 2, 2), "mean")
    np.testing.assert_array_equal(full(em._repo["em_2"]), values)
    assert em.level(2).voxel_size == (40, 32, 32)
    assert is_complete(em)
    em.update_pyramid(4)  # goes on as it began
    assert em.pyramid().steps[3] == (2, 2, 2)
    for wrong in ({"axes": [0]}, {"method": "nearest"}):
        with pytest.raises(InvalidError, match="delete"):
            em.pyramid(**wrong)


def test_chosen_axes_and_nearest_voxels(em):
    em.update_pyramid(2, axes=[2], method="nearest")
    values = noise(0)
    np.testing.assert_array_equal(full(em.level(2)), values[:, :, ::4])
    em[3, 4, 5:30] = 1
    values[27, 4, 13:38] = 1
    np.testing.assert_array_equal(full(em.level(2)), values[:, :, ::4])
    em.pyramid().delete()
    assert em.pyramid().status() == []
    em.update_pyramid(1)
    assert_levels(em, values, 1)


def test_arrays_of_many_dimensions_have_no_pyramid(repo):
    array = repo.create_array("movie", "uint8", dims=4)
    with pytest.raises(InvalidError, match="4"):
        array.pyramid()


# -- names, deletion, checks ---------------------------------------------------------------


def test_all_levels_that_are_worth_having(em):
    assert em.update_pyramid() == 75 + 18 + 4
    assert [each["level"] for each in em.pyramid().status()] == [1, 2, 3]
    assert is_complete(em)


def test_levels_are_instances(em, repo):
    em.update_pyramid(2)
    assert [name for name, _ in repo.list_instances()] == ["em"]
    assert dict(repo.list_instances(showhidden=True))["em_2"] == "pyramid"
    np.testing.assert_array_equal(repo["em_2"][...], em.level(2)[...])
    assert repo["em_2"].units == em.units


def test_a_name_that_is_taken(em, repo):
    repo.create_array("em_1", "uint8")
    em.update_pyramid(2)
    assert_levels(em, noise(0), 2)
    assert repo["em_1"].kind == "image" and repo["em_1"].bounds is None
    assert is_complete(em)


def test_deletion_of_an_array_deletes_its_pyramid(em, repo, store):
    em.update_pyramid(2)
    level = em.level(1)
    repo.delete_array("em")
    assert {"em", "em_1", "em_2"}.isdisjoint(dict(repo.list_instances(True)))
    for handle in (em, level):
        with pytest.raises(NotFoundError):
            handle[0, 0, 0]
    store.sweep()
    assert {each.kind for each in check(store, full=True).problems} <= LEFT
    again = repo.create_array("em", "uint8", block_shape=BLOCK)
    assert again.pyramid().status() == [] and again.level(1).bounds is None


def test_deletion_of_a_pyramid_leaves_the_array(em, repo, store):
    em.update_pyramid(3)
    repo.lock_node("")
    em.pyramid().delete()
    store.sweep()
    assert {each.kind for each in check(store, full=True).problems} <= LEFT
    np.testing.assert_array_equal(em[WHOLE], noise(0))
    assert_levels(em, noise(0))
    em.update_pyramid(3)
    assert is_complete(em)


def test_deletion_of_one_level(em, repo):
    em.update_pyramid(3)
    repo.delete_array("em_2")
    assert_levels(em, noise(0))
    assert [each["level"] for each in em.pyramid().status()] == [1]
    with pytest.raises(InvalidError):
        repo.create_array("x", kind="pyramid")


def test_checks_and_accounts_know_pyramids(em, repo, store):
    em.update_pyramid(3)
    em[0:9, 0:9, 0:9] = 1
    em.update_pyramid()
    repo.lock_node("")
    report = check(store, full=True)
    assert report.problems == []
    found = usage(store)["repos"][0]
    live = {each["name"]: each["live_bytes"] for each in found["arrays"]}
    assert live["em"] > live["em_1"] > live["em_2"] > live["em_3"] > 0
    assert found["segments"]["superseded"] > 0


def test_damage_is_computed_around_and_mended(tmp_path):
    def opened():
        return DicedStore(tmp_path / "store", durability="process")

    with opened() as store:
        repo = store.create_repo("r", "")
        em = repo.create_array("em", "uint8", block_shape=BLOCK)
        em[WHOLE] = noise(0)
        before = set(tmp_path.rglob("*.pg"))
        em.update_pyramid(1)
    for path in set(tmp_path.rglob("*.pg")) - before:
        path.chmod(0o600)
        path.write_bytes(b"\0" * path.stat().st_size)
    with opened() as store:
        em = store.open_repo("r")["em"]
        assert_levels(em, noise(0), 1)
        kinds = {(each.kind, each.severity) for each in check(store).problems}
        assert ("bad-pyramid", "warning") in kinds and not [k for k in kinds if k[1] == "error"]
        assert em.update_pyramid() > 0
        assert is_complete(em)
        assert_levels(em, noise(0), 1)


def test_pickles(tmp_path):
    with DicedStore(tmp_path / "store", durability="process") as store:
        em = store.create_repo("r", "").create_array("em", "uint8", block_shape=BLOCK)
        em[WHOLE] = noise(0)
        for _ in range(2):
            level = pickle.loads(pickle.dumps(em.level(2)))
            np.testing.assert_array_equal(level[...], em.level(2)[...])
            em.update_pyramid(2)


def test_a_rebuild_brings_levels_back(tmp_path):
    with DicedStore(tmp_path / "store", durability="process") as store:
        em = store.create_repo("r", "").create_array("em", "uint8", block_shape=BLOCK)
        em[WHOLE] = noise(0)
        em.update_pyramid(2)
        assert is_complete(em) and len(em.pyramid()) == 3
        lane = em._repo["em_1"]._spec.id
    for path in (tmp_path / "store").rglob(f"{lane}/*/e000000/*"):
        path.unlink()
    with DicedStore(tmp_path / "store", durability="process") as store:
        rebuild(store)
        assert not [each for each in check(store, full=True).problems if each.severity == "error"]
        em = store.open_repo("r")["em"]
        assert_levels(em, noise(0), 2)
        em.update_pyramid()
        assert is_complete(em)
        assert_levels(em, noise(0), 2)
