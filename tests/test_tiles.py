"""Tiles: what they show, made on demand and all together."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diced import DicedStore, tilemaker
from diced.errors import CorruptError, InvalidError, LockedError, NotFoundError
from diced.fsck import check
from diced.tilemaker import (
    PLANES,
    check_scales,
    encode_picture,
    pack_pixels,
    plane_of,
    unpack_pixels,
)
from diced.tiles import array_of

LO, HI = (-3, 0, -40), (20, 90, 70)
WHOLE = tuple(slice(a, b) for a, b in zip(LO, HI, strict=True))
LEVELS = [((8, 4, 4), (16, 32, 32)), ((16, 8, 8), (16, 32, 32)), ((32, 16, 16), (16, 32, 32))]


def noise(dtype=np.uint8):
    shape = tuple(b - a for a, b in zip(LO, HI, strict=True))
    return np.random.default_rng(0).integers(0, 2**12, shape).astype(dtype)


@pytest.fixture
def repo():
    with DicedStore("memory://") as store:
        repo = store.create_repo("tiles", "")
        em = repo.create_array("em", "uint8", block_shape=(8, 16, 16), voxel_size=(8, 4, 4))
        em[WHOLE] = noise()
        yield repo


def create(repo, format="png", source="em", name="tiles", **more):
    own = {"source": source, "format": format}
    return repo.create_array(name, kind="imagetile", attrs={"tiles": own}, **more)


def voxel(values, place):
    """Return a voxel at a place, ZYX; 0 outside."""
    inside = all(a <= p < b for a, p, b in zip(LO, place, HI, strict=True))
    return int(values[tuple(p - a for p, a in zip(place, LO, strict=True))]) if inside else 0


def pixel(values, plane, number, through, row, column):
    """Return a pixel of a scale, each a mean of two by two of the scale before, slowly."""
    if number == 0:
        place = [0, 0, 0]
        place[plane.through], place[plane.down], place[plane.across] = through, row, column
        return voxel(values, place)
    below = [
        pixel(values, plane, number - 1, through, 2 * row + i, 2 * column + j)
        for i in (0, 1)
        for j in (0, 1)
    ]
    return (sum(below) + 2) // 4


def picture(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def names(array):
    for key in array:
        plane, scale, place = key.split("/")
        yield key, PLANES[plane], int(scale), tuple(int(v) for v in place.split("_"))[::-1]


def test_planes_have_many_names():
    assert plane_of("xy") == plane_of("XY") == plane_of("0_1") == plane_of("0,1")
    assert plane_of("Xz").through == 1 and plane_of("1_2").through == 2
    for text in ("", "zz", "yx", "0_3", "0_1_2", "xyz", "vol"):
        with pytest.raises(InvalidError):
            plane_of(text)


@pytest.mark.parametrize("plane", sorted(PLANES))
def test_tiles_are_means_on_their_plane(repo, plane):
    array = create(repo)
    array.set_scales(LEVELS)
    where, values = PLANES[plane], noise()
    generator = np.random.default_rng(1)
    for number in range(3):
        sides = [LEVELS[number][1][axis] for axis in (where.down, where.across)]
        for place in ([0, 0, 0], [-1, -1, -1], [1, 1, 1], [0, 1, -1]):
            found = array.pixels(where, number, place)
            if found is None:
                side = [n * 2**number for n in LEVELS[number][1]]
                side[where.through] = 1
                assert any(
                    (p + 1) * n <= a or p * n >= b
                    for p, n, a, b in zip(place, side, LO, HI, strict=True)
                )
                continue
            assert found.shape == tuple(sides)
            for _ in range(20):
                row, column = (int(generator.integers(0, n)) for n in sides)
                wanted = pixel(
                    values, where, number, place[where.through],
                    place[where.down] * sides[0] + row, place[where.across] * sides[1] + column,
                )  # fmt: skip
                assert found[row, column] == wanted


@pytest.mark.parametrize("format", ["png", "lz4"])
def test_all_tiles_are_generated(repo, format):
    array = create(repo, format)
    assert array.scales() is None
    seen = []
    count = array.generate(levels=LEVELS, progress=seen.append)
    assert count == len(array) and all(each <= count for each in seen)
    planes = {name: set() for name in PLANES}
    for key, plane, scale, place in names(array):
        stored = unpack_pixels(array[key]) if format == "lz4" else picture(array[key])
        np.testing.assert_array_equal(stored, array.pixels(plane, scale, place))
        planes[plane.name].add(scale)
    assert set(map(frozenset, planes.values())) == {frozenset((0, 1, 2))}
    # Every slice of what was written, at every scale.
    for name, where in PLANES.items():
        for scale in range(3):
            slices = {place[where.through] for _, plane, s, place in names(array)
                      if plane.name == name and s == scale}  # fmt: skip
            assert slices == set(range(LO[where.through], HI[where.through]))
    assert array.settings()["min"] == [-1, 0, -2] and array.settings()["max"] == [1, 2, 2]
    assert check(repo.store, full=True).problems == []


def test_default_scales_end_with_a_tile_or_two(repo, monkeypatch):
    monkeypatch.setattr(tilemaker, "TILE_SIZE", 32)
    array = create(repo)
    scales = array.all_scales()
    assert [each.times[0] for each in scales] == [1, 2, 4, 8]  # tiles -2 to 2 along x
    assert scales[1].resolution == (16, 8, 8)
    count = array.generate(["xy"])
    assert {plane.name for _, plane, _, _ in names(array)} == {"xy"}
    assert count == len(array)
    assert [each.size for each in array.scales()] == [(32, 32, 32)] * 4


def own(**more):
    return {"tiles": {"source": "em", "format": "png", **more}}


def test_tiles_that_begin_at_the_corner_of_the_source(repo):
    attrs = own(origin="source", size=[16, 32, 32])
    array = repo.create_array("corner", kind="imagetile", attrs=attrs)
    plain = create(repo)
    values, em = noise(), repo["em"]
    xy, xz = plane_of("xy"), plane_of("xz")
    before = array.pixels(xy, 0, (0, 0, 0))
    np.testing.assert_array_equal(before, values[0, :32, :32])
    assert [each.times[0] for each in array.all_scales()] == [1, 2, 4]  # 90 x 110 by 32: one tile
    assert array.generate(ranges=[(LO[0], LO[0] + 1), (7, 7), None]) == len(array)
    assert array.settings()["origin"] == list(LO)
    assert array.settings()["min"] == [0, 0, 0] and array.settings()["max"] == [1, 2, 3]
    for key, plane, scale, place in names(array):
        np.testing.assert_array_equal(picture(array[key]), array.pixels(plane, scale, place))
        assert min(place) >= 0
    shown = {place for _, plane, scale, place in names(array) if (plane, scale) == (xy, 2)}
    assert shown == {(0, 0, 0), (1, 0, 0)}
    np.testing.assert_array_equal(picture(array["xy/0/1_2_1"])[:26], values[1, 64:90, 32:64])
    np.testing.assert_array_equal(picture(array["xz/0/3_7_0"])[:, :14], values[:16, 7, 96:])
    half = picture(array["xy/1/0_0_0"])
    assert half[3, 5] == (values[0, 6:8, 10:12].sum(dtype=int) + 2) // 4
    # The corner stays where it was when more is written before it.
    em[LO[0] - 2 : LO[0], -10:0, LO[2] : LO[2] + 32] = 200
    assert array.origin(em) == LO
    array.generate(["xy"], ranges=[(LO[0] - 1, LO[0]), None, None])
    np.testing.assert_array_equal(picture(array["xy/0/0_0_0"]), before)
    assert (picture(array["xy/0/0_-1_-1"])[22:] == 200).all()
    np.testing.assert_array_equal(array.pixels(xz, 0, (0, 0, 0)), values[:16, 0, :32])
    np.testing.assert_array_equal(
        plain.pixels(xy, 0, (0, 0, 0))[:32, :32], em[0, 0:512, 0:70][:32, :32]
    )


def test_tiles_of_a_source_that_holds_nothing_yet(repo):
    empty = repo.create_array("empty", "uint8")
    attrs = {"tiles": {"source": "empty", "origin": "source", "size": [8, 8, 8]}}
    array = repo.create_array("t", kind="imagetile", attrs=attrs)
    assert array.origin(empty) == (0, 0, 0) and array.pixels(plane_of("xy"), 0, (0, 0, 0)) is None
    empty[5:6, 5:6, 5:6] = 9
    assert array.pixels(plane_of("yz"), 0, (0, 0, 0))[0, 0] == 9
    assert len(array.all_scales()) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"origin": "here"}, {"origin": [1, 2]}, {"origin": [0, 0, 2**40]}, {"size": [8, 0, 8]},
     {"size": 8}, {"size": [8, 8, 1e4]}, {"origin": [0, 0, True]}],
)  # fmt: skip
def test_attributes_that_mean_nothing(repo, wrong):
    array = repo.create_array("t", kind="imagetile", attrs=own(**wrong))
    with pytest.raises(InvalidError, match="3 integers"):
        array.generate(["xy"])
    with pytest.raises(InvalidError, match="3 integers"):
        array.pixels(plane_of("xy"), 0, (0, 0, 0))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["uint8", "uint16", ">u2", "bool"]), st.integers(1, 40), st.integers(1, 40),
    st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_pngs_are_what_they_show(dtype, rows, columns, flat, seed):
    values = np.random.default_rng(seed).integers(0, 2**16, (rows, columns))
    values = (values // 2**15 if flat or dtype == "bool" else values).astype(dtype)
    found = picture(encode_picture(values, "png"))
    np.testing.assert_array_equal(found, values.astype(found.dtype))


def test_only_some_slices(repo):
    array = create(repo)
    array.generate(["xy", "yz"], levels=LEVELS[:1], ranges=[(2, 3), None, (None, -38)])
    assert {place[0] for _, plane, _, place in names(array) if plane.name == "xy"} == {2, 3}
    assert {p[2] for _, plane, _, p in names(array) if plane.name == "yz"} == {-40, -39, -38}


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(5, 40)), min_size=1, max_size=2),
    st.integers(5, 40),
)
def test_any_tile_sizes_and_magnifications(more, size):
    levels = [((1, 1, 1), (size,) * 3)]
    for factor, side in more:
        levels.append((tuple(v * factor for v in levels[-1][0]), (side,) * 3))
    with DicedStore("memory://") as store:
        repo = store.create_repo("tiles", "")
        em = repo.create_array("em", "uint8", block_shape=(8, 16, 16))
        em[WHOLE] = noise()
        array = create(repo)
        array.generate(["xz"], levels=levels, ranges=[None, (10, 11), None])
        scales = set()
        for key, plane, scale, place in names(array):
            np.testing.assert_array_equal(picture(array[key]), array.pixels(plane, scale, place))
            scales.add(scale)
        assert scales == set(range(len(levels)))


def test_sixteen_bits_and_jpeg(repo):
    em = repo.create_array("em16", "uint16", block_shape=(8, 16, 16))
    em[WHOLE] = noise(np.uint16) * 16
    deep = create(repo, source="em16", name="deep")
    deep.generate(["xy"], levels=LEVELS[:1], ranges=[(0, 0), None, None])
    stored = picture(deep["xy/0/0_0_0"])
    np.testing.assert_array_equal(stored.astype(np.uint16), em[0, 0:32, 0:32])
    flat = create(repo, "jpg", "em16", "flat")
    flat.generate(["xy"], levels=LEVELS[:1], ranges=[(0, 0), None, None])
    assert flat["xy/0/0_0_0"].startswith(b"\xff\xd8\xff")


def test_tiles_follow_versions(repo):
    array = create(repo)
    array.set_scales(LEVELS)
    xy = plane_of("xy")
    array.store_tile(xy, 0, (0, 0, 0), b"first")
    root = repo.lock_node("")
    repo.change_version(repo.create_branch())
    array.store_tile(xy, 0, (0, 0, 0), b"second")
    assert array.stored_tile(xy, 0, (0, 0, 0)) == b"second"
    assert array.stored_tile(xy, 1, (0, 0, 0)) is None
    repo.change_version(root)
    assert array_of(repo, "tiles").stored_tile(xy, 0, (0, 0, 0)) == b"first"
    with pytest.raises(LockedError):
        array.generate(["xy"])
    with pytest.raises(NotFoundError):
        array_of(repo, "em")


def test_what_no_tiles_are_made_of(repo):
    repo.create_array("labels", islabel3D=True)
    for source in ("labels", ".files"):
        with pytest.raises(InvalidError, match="uint8"):
            create(repo, source=source, name=f"of {source}").generate()
    with pytest.raises(NotFoundError):
        create(repo, source="absent", name="a").generate()
    with pytest.raises(InvalidError, match="no source"):
        create(repo, source="", name="b").generate()
    repo.create_array("empty", "uint8")
    with pytest.raises(InvalidError, match="nothing"):
        create(repo, source="empty", name="c").generate()


def test_tiles_of_too_much_are_to_be_generated(repo, monkeypatch):
    array = create(repo)
    array.set_scales(LEVELS)
    monkeypatch.setattr("diced.tiles.MAX_VOXELS", 32 * 32)
    assert array.pixels(plane_of("xy"), 0, (0, 0, 0)) is not None
    with pytest.raises(InvalidError, match="generate"):
        array.pixels(plane_of("xy"), 2, (0, 0, 0))


@pytest.mark.parametrize(
    "levels",
    [
        [],
        [((1, 1), (8, 8))],
        [((1, 1, 1), (0, 8, 8))],
        [((1, 1, 1), (8, 8, 10**6))],
        [((0, 1, 1), (8, 8, 8))],
        [((1, 1, float("nan")), (8, 8, 8))],
        [((1, 1, "x"), (8, 8, 8))],
        [((2, 2, 2), (8, 8, 8)), ((3, 4, 4), (8, 8, 8))],
        [((2, 2, 2), (8, 8, 8)), ((1, 2, 2), (8, 8, 8))],
        [((1e-9, 1, 1), (8, 8, 8)), ((1e9, 1, 1), (8, 8, 8))],
        [((2.0**n,) * 3, (8, 8, 8)) for n in range(40)],
    ],
)
def test_scales_that_are_refused(levels):
    with pytest.raises(InvalidError):
        check_scales(levels)


def test_packed_pixels():
    for dtype in ("uint8", "uint16"):
        values = noise(dtype)[3]
        found = unpack_pixels(pack_pixels(values))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values)
    good = pack_pixels(noise()[0])
    for bad in (b"", good[:10], b"x" + good[1:], good[:6] + b"\x09" + good[7:], good[:-1],
                good[:7] + b"\xff" * 8 + good[15:]):  # fmt: skip
        with pytest.raises(CorruptError):
            unpack_pixels(bad)
