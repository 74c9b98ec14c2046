"""Planes at any angle: values against a plain interpolation, and which blocks they touch."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diced import DicedStore
from diced.blocks import Blocks
from diced.errors import BadIndexError, InvalidError, LockedError

BLOCK = (8, 8, 8)


@pytest.fixture
def repo():
    store = DicedStore("memory://")
    store.create_repo("planes")
    yield store.open_repo("planes")
    store.close()


@pytest.fixture
def volume(repo):
    """An array, and what it holds at (-3, -7, 5) on."""
    array = repo.create_array("gray", "uint8", block_shape=BLOCK, fill=7)
    values = np.random.default_rng(1).integers(0, 256, (30, 29, 31), dtype=np.uint8)
    array[-3:27, -7:22, 5:36] = values
    return array


def reference(array, origin, u, v, shape, nearest=False):
    """The same by one voxel after the other."""
    lo = np.floor(np.min(_corners(origin, u, v, shape), axis=0)).astype(int) - 1
    hi = np.ceil(np.max(_corners(origin, u, v, shape), axis=0)).astype(int) + 2
    dense = array[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))]
    out = np.empty((*shape, *dense.shape[len(lo) :]))
    for row, column in np.ndindex(*shape):
        place = np.array(origin) + row * np.array(u) + column * np.array(v) - lo
        if nearest:
            out[row, column] = dense[tuple(np.floor(place + 0.5).astype(int))]
            continue
        first = np.floor(place).astype(int)
        rest = place - first
        total = 0.0
        for corner in itertools.product((0, 1), repeat=len(lo)):
            weight = math.prod(f if bit else 1 - f for f, bit in zip(rest, corner, strict=True))
            if weight:
                total = total + weight * dense[tuple(first + corner)]
        out[row, column] = total
    return out


def _corners(origin, u, v, shape):
    ends = itertools.product((0, shape[0] - 1), (0, shape[1] - 1))
    return [np.array(origin) + a * np.array(u) + b * np.array(v) for a, b in ends]


steps = st.tuples(*[st.floats(-3, 3)] * 3)


@settings(max_examples=40, deadline=None)
@given(
    origin=st.tuples(*[st.floats(-20, 40)] * 3),
    u=steps,
    v=steps,
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_equals_plain_interpolation(origin, u, v, shape):
    with DicedStore("memory://") as store:
        store.create_repo("r")
        array = store.open_repo("r").create_array("g", "uint8", block_shape=BLOCK, fill=7)
        values = np.random.default_rng(1).integers(0, 256, (30, 29, 31), dtype=np.uint8)
        array[-3:27, -7:22, 5:36] = values
        found = array.plane(origin, u, v, shape)
        assert found.dtype == np.uint8 and found.shape == shape
        wanted = reference(array, origin, u, v, shape)
        # Half a voxel for the rounding, and a little for positions that are taken as whole.
        assert np.abs(found.astype(float) - wanted).max() <= 0.51


def test_planes_of_the_axes_are_the_voxels_themselves(volume):
    assert np.array_equal(
        volume.plane((4, -9, 0), (0, 1, 0), (0, 0, 1), (40, 50)), volume[4, -9:31, 0:50]
    )
    assert np.array_equal(
        volume.plane((30, 2, 40), (-1, 0, 0), (0, 0, -1), (40, 50)),
        volume[30:-10:-1, 2, 40:-10:-1],
    )
    snapshot = volume.snapshot()
    volume[4, 0, 0:50] = 1
    assert not np.array_equal(snapshot.read((4, 0, slice(0, 50))), volume[4, 0, 0:50])
    assert snapshot.plane((4, 0, 0), (0, 1, 0), (0, 0, 1), (1, 50))[0, 20] == snapshot[4, 0, 20]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "uint64", "float32", "float64"])
def test_other_types(repo, dtype):
    array = repo.create_array("a", dtype, block_shape=BLOCK)
    rng = np.random.default_rng(2)
    if dtype.startswith("f"):
        values = rng.normal(size=(20, 20, 20)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, (20, 20, 20), dtype, endpoint=True)
    array[:20, :20, :20] = values
    where = (1.25, 2.0, 3.0), (0.0, 1.0, 0.0), (0.5, 0.0, 1.0), (9, 10)
    found = array.plane(*where)
    assert found.dtype == dtype
    wanted = reference(array, *where)
    scale = np.abs(values.astype(float)).max()
    assert np.abs(found.astype(float) - wanted).max() <= max(0.5, 1e-6 * scale)
    # Every value is exact where a pixel is a voxel.
    assert np.array_equal(array.plane((3, 0, 0), (0, 1, 0), (0, 0, 1), (20, 20)), values[3])
    mixed = array.plane((2.5, 0, 0), (0.5, 0, 0), (0, 0, 1), (2, 20))
    assert np.array_equal(mixed[1], values[3, 0])


def test_largest_integers_stay_in_range(repo):
    array = repo.create_array("a", "uint64", block_shape=BLOCK)
    array[:8, :8, :8] = np.uint64(2**64 - 1)
    found = array.plane((1.5, 1.5, 1.5), (0.25, 0, 0), (0, 0, 0.5), (8, 8))
    assert found.min() >= 2**64 - 2**12


def test_infinities_and_nan_count_only_where_they_are(repo):
    array = repo.create_array("a", "float32", block_shape=BLOCK)
    values = np.zeros((8, 8, 8), np.float32)
    values[2, 2, 2], values[5, 5, 5] = np.inf, np.nan
    array[:8, :8, :8] = values
    found = array.plane((2, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (15, 15))
    assert np.isinf(found).sum() == 9 and not np.isnan(found).any()
    found = array.plane((5, 0, 0), (0, 1, 0), (0, 0, 1), (8, 8))
    assert np.isnan(found).sum() == 1


def test_labels_and_bool_take_the_nearest(repo):
    rng = np.random.default_rng(3)
    labels = repo.create_array("labels", islabel3D=True)
    values = rng.integers(0, 2**63, (70, 70, 70)).astype(np.uint64)
    labels[:70, :70, :70] = values
    where = (3.2, 5.7, 1.1), (0.3, 1.1, 0.2), (0.1, 0.4, 0.9), (11, 13)
    found = labels.plane(*where)
    assert found.dtype == np.uint64 and np.isin(found, [*values.reshape(-1), 0]).all()
    index = [
        np.floor(o + np.arange(11)[:, None] * a + np.arange(13) * b + 0.5).astype(int)
        for o, a, b in zip(*where[:3], strict=True)
    ]
    assert np.array_equal(found, values[tuple(index)])
    flags = repo.create_array("flags", "bool", block_shape=BLOCK)
    flags[:70, :70, :70] = values > 2**62
    assert np.array_equal(flags.plane(*where), found > 2**62)


def test_channels_and_other_dimensions(repo):
    rng = np.random.default_rng(4)
    colours = repo.create_array("colours", "uint8", channels=3, block_shape=BLOCK, fill=(1, 2, 3))
    values = rng.integers(0, 256, (20, 20, 20, 3), dtype=np.uint8)
    colours[:20, :20, :20] = values
    where = (-2.5, 1.0, 1.5), (0.7, 0.3, 0.0), (0.0, 0.2, 0.8), (9, 10)
    found = colours.plane(*where)
    assert found.shape == (9, 10, 3)
    assert np.abs(found - reference(colours, *where)).max() <= 0.51
    flat = repo.create_array("flat", "float64", dims=2, block_shape=(8, 8))
    flat[:20, :20] = np.arange(400.0).reshape(20, 20)
    found = flat.plane((1, 1), (0.5, 0), (0, 0.25), (5, 6))
    assert np.allclose(found, 21 + 10 * np.arange(5)[:, None] + 0.25 * np.arange(6))
    deep = repo.create_array("deep", "uint8", dims=4, block_shape=(4, 4, 4, 4))
    deep[:8, :8, :8, :8] = rng.integers(0, 256, (8, 8, 8, 8), dtype=np.uint8)
    where = (0.5, 1.25, 2, 3), (1, 0, 0.5, 0), (0, 1, 0, 0.5), (5, 6)
    assert np.abs(deep.plane(*where) - reference(deep, *where)).max() <= 0.51


@pytest.fixture
def decoded(monkeypatch):
    """Keys of the blocks that are decoded."""
    keys = []
    plain = Blocks.read_entries

    def counting(self, entries, names, table, out, stream=False):
        keys.extend(name for name, e in zip(names, entries, strict=True) if e is not None)
        return plain(self, entries, names, table, out, stream)

    monkeypatch.setattr(Blocks, "read_entries", counting)
    return keys


def test_only_crossed_blocks_are_decoded_each_once(repo, decoded):
    array = repo.create_array("gray", "uint8", block_shape=(16, 16, 16))
    side = 512
    array[:256, :side, :side] = np.random.default_rng(5).integers(
        0, 256, (256, side, side), dtype=np.uint8
    )
    decoded.clear()
    u, v = (0.35, 0.93, 0.0), (0.3, 0.0, 0.95)
    found = array.plane((1.0, 1.0, 1.0), u, v, (380, 380))
    # The blocks of both neighbours, on each axis, of all pixels.
    rows, columns = np.mgrid[:380, :380].reshape(2, -1)
    place = np.stack([1.0 + rows * a + columns * b for a, b in zip(u, v, strict=True)])
    crossed = set()
    for corner in itertools.product((0, 1), repeat=3):
        low = np.floor(place).astype(int) + np.array(corner)[:, None]
        crossed |= set(map(tuple, (low // 16).T.tolist()))
    assert len(decoded) == len(set(decoded)) <= len(crossed)
    around = math.prod(-(-int(place[axis].max() + 1) // 16) for axis in range(3))
    assert len(decoded) < around / 5
    assert found[0, 0] == array[1, 1, 1]


def test_of_an_axis_plane_only_one_layer_of_blocks(volume, decoded):
    volume.plane((4, -7, 5), (0, 1, 0), (0, 0, 1), (29, 31))
    assert len(set(decoded)) == len(decoded) == 4 * 5
    decoded.clear()
    volume.plane((1000, 1000, 1000), (0, 1, 0), (0, 0, 1), (300, 300))
    assert not decoded  # nothing is there


def test_few_blocks_are_kept_at_a_time(repo, monkeypatch):
    monkeypatch.setattr("diced.planes.POOL_BYTES", 10 * 512)
    monkeypatch.setattr("diced.planes.TILE", 16)
    array = repo.create_array("gray", "uint8", block_shape=BLOCK)
    array[:64, :64, :64] = np.random.default_rng(6).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    where = (1.5, 0, 0), (0.5, 0.9, 0), (0.2, 0, 7.3), (60, 8)
    assert np.abs(array.plane(*where) - reference(array, *where)).max() <= 0.51
    where = (0, 0, 0), (60.0, 1e6, 0.0), (0.1, 1e3, 50.0), (40, 40)  # a block per pixel
    found = array.plane(*where)
    assert found[0, 0] == array[0, 0, 0] and not found[1:].any()


def test_a_batch_reads_its_own_writes(volume):
    before = volume.plane((0, 0, 0), (0, 1, 0), (0.5, 0, 1), (20, 20))
    with volume.batch():
        volume[0:16, 0:16, 0:16] = 200
        volume[100, 100, 100] = 9
        inside = volume.plane((0, 0, 0), (0, 1, 0), (0.5, 0, 1), (20, 20))
        assert (inside[:15, :15] == 200).all()
        assert volume.plane((100, 100, 100), (0, 1, 0), (0, 0, 1), (2, 2)).tolist() == [
            [9, 7], [7, 7],
        ]  # fmt: skip
        volume.write_plane((50, 50, 50), (0, 1, 0), (0, 0, 1), np.full((2, 2), 3, np.uint8))
        assert volume[50, 51, 51] == 3
    assert not np.array_equal(before, inside)
    assert np.array_equal(volume.plane((0, 0, 0), (0, 1, 0), (0.5, 0, 1), (20, 20)), inside)
    assert volume[50, 50:52, 50:52].tolist() == [[3, 3], [3, 3]]


# -- writing -------------------------------------------------------------------------------


def written(dense, lo, origin, u, v, values):
    """Write a plane into an array in memory, voxel by voxel."""
    for row, column in np.ndindex(*values.shape[:2]):
        place = np.array(origin) + row * np.array(u) + column * np.array(v)
        dense[tuple(np.floor(place + 0.5).astype(int) - lo)] = values[row, column]


@settings(max_examples=25, deadline=None)
@given(
    origin=st.tuples(*[st.integers(-40, 40).map(lambda n: n / 4 + 0.125)] * 3),
    u=st.tuples(*[st.integers(-6, 6).map(lambda n: n / 4)] * 3),
    v=st.tuples(*[st.integers(-6, 6).map(lambda n: n / 4)] * 3),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    channels=st.sampled_from([None, 2]),
)
def test_writing_equals_plain_writing(origin, u, v, shape, channels):
    tail = () if channels is None else (channels,)
    values = np.random.default_rng(7).integers(0, 65536, (*shape, *tail), dtype=np.uint16)
    with DicedStore("memory://") as store:
        store.create_repo("r")
        array = store.open_repo("r").create_array(
            "a", "uint16", block_shape=BLOCK, channels=channels, fill=3
        )
        dense = np.full((100, 100, 100, *tail), 3, np.uint16)
        array[0:8, 0:8, 0:8] = 5
        dense[50:58, 50:58, 50:58] = 5
        array.write_plane(origin, u, v, values)
        written(dense, -50, origin, u, v, values)
        assert np.array_equal(array[-50:50, -50:50, -50:50], dense)


def test_writing_is_one_commit_with_exact_bounds(repo):
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    array.write_plane((3, 10, -4), (0, 1, 0), (1, 0, 1), np.ones((5, 6), np.uint8))
    assert array.bounds == (slice(3, 9), slice(10, 15), slice(-4, 2))
    assert len([each for each in repo.operations("a") if each["operation"] == "plane"]) == 1
    assert array[3:9, 10:15, -4:2].sum() == 30
    array.write_plane((0, 0, 0), (0, 1, 0), (0, 0, 1), np.zeros((0, 4), np.uint8))
    assert len(list(repo.operations("a"))) == 1


def test_writing_over_many_tiles_and_inside_batches(repo, monkeypatch):
    monkeypatch.setattr("diced.planes.WRITE_PIXELS", 50)
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    values = np.random.default_rng(8).integers(0, 256, (40, 45), dtype=np.uint8)
    with array.batch():
        array[:64, :64, :64] = 1
        array.write_plane((2, 0, 0), (0.5, 1, 0), (0, 0, 1), values)
        array[0:2, 0:8, 0:8] = 2
    dense = np.ones((64, 64, 64), np.uint8)
    written(dense, 0, (2, 0, 0), (0.5, 1, 0), (0, 0, 1), values)
    dense[0:2, 0:8, 0:8] = 2
    assert np.array_equal(array[:64, :64, :64], dense)


def test_a_plane_that_meets_itself_keeps_the_last_value(repo):
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    array.write_plane(
        (0, 0, 0), (0, 0.25, 0), (0, 0, 0), np.arange(24, dtype=np.uint8).reshape(8, 3)
    )
    # Rows 0 and 1 are nearest to y = 0 (0.5 rounds up), then four rows each.
    assert array[0, 0:3, 0].tolist() == [5, 17, 23]


def test_damaged_arguments(volume, repo):
    u, v = (0, 1, 0), (0, 0, 1)
    for bad in ((0, 0), (0, 0, float("nan")), (0, 0, float("inf")), "abc", 5, (0, 0, "x")):
        with pytest.raises(InvalidError):
            volume.plane(bad, u, v, (2, 2))
        with pytest.raises(InvalidError):
            volume.plane((0, 0, 0), bad, v, (2, 2))
    for shape in ((2,), (2, 2, 2), (-1, 2), (1.5, 2), 4):
        with pytest.raises(InvalidError):
            volume.plane((0, 0, 0), u, v, shape)
    with pytest.raises(BadIndexError):
        volume.plane((2**31 - 1, 0, 0), (1, 0, 0), v, (2, 2))
    with pytest.raises(InvalidError):
        volume.plane((0, 0, 0), (0, 0, 0), (0, 0, 0), (2**40, 2**40))
    for values in (np.zeros(3, np.uint8), np.zeros((2, 2, 2), np.uint8), np.full((2, 2), 300)):
        with pytest.raises(InvalidError):
            volume.write_plane((0, 0, 0), u, v, values)
    with pytest.raises(BadIndexError):
        volume.write_plane((-(2**31), 0, 0), (-1, 0, 0), v, np.zeros((2, 2), np.uint8))
    assert volume.plane((0, 0, 0), u, v, (0, 5)).shape == (0, 5)
    edge = (2**31 - 1, 2**31 - 1, 2**31 - 2)
    volume.write_plane(edge, (0, 0, 0), (0, 0, 1), np.array([[8, 9]], np.uint8))
    assert volume.plane(edge, (0, 0, 0), (0, 0, 1), (1, 2)).tolist() == [[8, 9]]
    repo.lock_node("done")
    with pytest.raises(LockedError):
        volume.write_plane((0, 0, 0), u, v, np.zeros((2, 2), np.uint8))
