"""Numpy manners of arrays: what an index selects, what a value may be, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diced import (
    ArrayDtype,
    BadIndexError,
    DicedArray,
    DicedRepo,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    grid,
)

LOW, HIGH = -(2**31), 2**31 - 1
DTYPES = [each.name for each in ArrayDtype]


# A cube of coordinates -4..12 on each axis, in blocks of (4, 8, 5): extents -4:12, -8:16, -5:15.
SIDE = np.arange(-4, 12)
CUBE = (SIDE[:, None, None] * 10000 + SIDE[:, None] * 100 + SIDE).astype(np.int32)


@pytest.fixture
def cube(repo: DicedRepo) -> DicedArray:
    array: DicedArray = repo.create_array("cube", np.int32, block_shape=(4, 8, 5), fill=-7)
    array[-4:12, -4:12, -4:12] = CUBE
    return array


def spelled(*ranges: range | int) -> np.ndarray:
    """What the cube holds at coordinates spelled out one by one."""
    axes = [[each] if isinstance(each, int) else list(each) for each in ranges]
    result = np.full([len(each) for each in axes], -7, np.int32)
    for place in np.ndindex(*result.shape):
        z, y, x = (axis[i] for axis, i in zip(axes, place, strict=True))
        if all(-4 <= c < 12 for c in (z, y, x)):
            result[place] = z * 10000 + y * 100 + x
    kept = tuple(0 if isinstance(each, int) else slice(None) for each in ranges)
    return np.asarray(result[kept])


Z, Y, X = range(-4, 12), range(-8, 16), range(-5, 15)  # the extents

READS: list[tuple[Any, tuple[range | int, ...]]] = [
    ((1, 2, 3), (1, 2, 3)),
    ((-1, -2, -3), (-1, -2, -3)),
    ((np.int8(-4), np.uint64(11), np.array(5)), (-4, 11, 5)),
    ((100, 0, 0), (100, 0, 0)),
    ((slice(0, 3), slice(1, 2), slice(-4, 12)), (range(0, 3), range(1, 2), range(-4, 12))),
    ((slice(-9, -2), slice(5, 30), 3), (range(-9, -2), range(5, 30), 3)),
    ((slice(None), slice(None), slice(None)), (Z, Y, X)),
    ((slice(None, 2), slice(9, None), 4), (range(-4, 2), range(9, 16), 4)),
    ((slice(None, None, 3), 0, slice(None, None, 7)), (Z[::3], 0, X[::7])),
    ((slice(1, 10, 4), slice(-4, 12, 9), 2), (range(1, 10, 4), range(-4, 12, 9), 2)),
    ((slice(10, 1, -4), slice(None, None, -1), 2), (range(10, 1, -4), Y[::-1], 2)),
    ((slice(None, 3, -2), slice(3, None, -1), 0), (range(11, 3, -2), range(3, -9, -1), 0)),
    ((slice(0, 5, 100), 0, slice(5, 0, -100)), (range(0, 1), 0, range(5, 4, -1))),
    (..., (Z, Y, X)),
    ((..., 3), (Z, Y, 3)),
    ((3, ...), (3, Y, X)),
    ((3, ..., slice(0, 2)), (3, Y, range(0, 2))),
    ((1, 2, 3, ...), (1, 2, 3)),
    ((slice(5, 5), 0, slice(0, 4)), (range(5, 5), 0, range(0, 4))),
    ((slice(5, 2), slice(9, -9), 0), (range(0), range(0), 0)),
    ((slice(2, 5, -1), 0, 0), (range(0), 0, 0)),
    ((slice(np.int64(0), np.int16(2)), 0, 0), (range(0, 2), 0, 0)),
]


@pytest.mark.parametrize(("index", "ranges"), READS, ids=[repr(i) for i, _ in READS])
def test_reads(cube: DicedArray, index: Any, ranges: tuple[range | int, ...]) -> None:
    wanted = spelled(*ranges)
    got = cube[index]
    assert got.shape == wanted.shape and got.dtype == np.int32
    assert (got == wanted).all()
    if wanted.ndim == 0:
        assert isinstance(got, np.int32)
    out = np.full(wanted.shape, 99, np.int32)
    assert cube.read(index, out=out) is out
    assert (out == wanted).all()


WRITES = [
    (0, 0, 0),
    (-3, slice(-2, 9), 4),
    (slice(0, 4), slice(0, 8), slice(0, 5)),
    (slice(-4, 12), slice(-8, 16), slice(-5, 15)),
    (slice(-3, 11), slice(1, 15), slice(2, 3)),
    (slice(-4, 12, 3), slice(0, 9, 2), slice(-5, 15, 6)),
    (slice(11, -5, -1), slice(9, 0, -2), slice(14, -6, -7)),
    (slice(0, 10, 20), slice(None), 3),
    (..., slice(0, 3)),
    (slice(None), slice(None, None, -1), slice(None, None, 4)),
    ...,
]


@pytest.mark.parametrize("index", WRITES, ids=repr)
@pytest.mark.parametrize("how", ["full", "scalar", "row", "list", "one"])
def test_writes_change_what_reads_select(cube: DicedArray, index: Any, how: str) -> None:
    window = (slice(-9, 20),) * 3
    before = cube[window]
    selected = np.zeros(before.shape, bool)
    places = np.arange(before.size, dtype=np.int64).reshape(before.shape)
    finder = cube._repo.create_array("places", np.int64, block_shape=(4, 8, 5), fill=-1)
    finder[window] = places
    items = index if isinstance(index, tuple) else (index,)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items = (*items[:at], *[slice(None)] * (4 - len(items)), *items[at + 1 :])
    # Open ends follow each array's own extents, so the finder is asked with the cube's.
    ends = [range(e.start, e.stop) for e in cube.get_extents()]
    closed = tuple(
        item if not isinstance(item, slice) else _closed(item, ends[axis])
        for axis, item in enumerate(items)
    )
    chosen = finder[closed]
    shape = chosen.shape
    value: Any = np.random.default_rng(3).integers(-99, 99, shape).astype(np.int32)
    if how == "scalar":
        value = 5
    elif how == "row":
        value = value[..., :1] if value.ndim else value
    elif how == "list":
        value = value.tolist()
    elif how == "one":
        value = np.full((1,) * len(shape), 6, np.int32)
    cube[index] = value
    wanted = before.copy()
    wanted.reshape(-1)[chosen] = value
    selected.reshape(-1)[chosen] = True
    assert (cube[window] == wanted).all()


def _closed(item: slice, extent: range) -> slice:
    step = 1 if item.step is None else item.step
    first, last = (extent[0], extent[-1] + 1) if step > 0 else (extent[-1], extent[0] - 1)
    return slice(
        first if item.start is None else item.start, last if item.stop is None else item.stop, step
    )


@pytest.mark.parametrize("channels", [None, 3])
def test_plain_indices_mean_what_others_mean(channels: int | None) -> None:
    """Ints and closed slices take a way of their own; numpy's integers take the general one."""
    rng = np.random.default_rng(7)
    box = ((-40, 3, 17), (25, 90, 18))
    for _ in range(300):
        plain: list[Any] = []
        other: list[Any] = []
        for _ in range(3):
            start, size = rng.integers(-(2**31), 2**31 - 9).item(), rng.integers(0, 9).item()
            if rng.random() < 0.4:
                plain.append(start)
                other.append(np.int64(start))
            else:
                plain.append(slice(start, start + size))
                other.append(slice(np.int64(start), start + size, 1))
        found, wanted = (
            grid.Selection(tuple(index), box, (4, 8, 5), "a", channels) for index in (plain, other)
        )
        for each in grid.Selection.__slots__:
            assert getattr(found, each) == getattr(wanted, each), (plain, each)


BAD_INDICES: list[tuple[Any, str]] = [
    (0, "3 dimensions; got 1"),
    ((0, 0), "3 dimensions; got 2"),
    ((0, 0, 0, 0), "3 dimensions; got 4"),
    ((0, 0, 0, 0, ...), "at most 3 indices; got 4"),
    ((..., 0, ...), "one Ellipsis; got 2"),
    ((True, 0, 0), "True"),
    ((np.True_, 0, 0), "True"),
    (([0, 1], 0, 0), "list"),
    ((np.array([0, 1]), 0, 0), "ndarray"),
    (np.zeros((4, 4, 4), bool), "3 dimensions; got 1"),
    ((None, 0, 0), "NoneType"),
    ((1.0, 0, 0), "float"),
    (("a", 0, 0), "str"),
    ((slice(0.5, 2), 0, 0), "float"),
    ((slice(0, 2, 0), 0, 0), "step .* 0"),
    ((slice(0, 2, 0.5), 0, 0), "float"),
    ((2**31, 0, 0), "axis 0.*32-bit; got 2147483648"),
    ((0, -(2**31) - 1, 0), "axis 1.*32-bit; got -2147483649"),
    ((0, 0, slice(0, 2**31 + 1)), "axis 2.*32-bit; got 2147483649"),
    ((0, 0, slice(-(2**31) - 1, 0)), "axis 2.*32-bit; got -2147483649"),
    ((0, 0, 2**70), "32-bit"),
]


@pytest.mark.parametrize(("index", "message"), BAD_INDICES, ids=[repr(i) for i, _ in BAD_INDICES])
def test_bad_indices(cube: DicedArray, index: Any, message: str) -> None:
    with pytest.raises(BadIndexError, match=message) as caught:
        cube[index]
    assert isinstance(caught.value, IndexError) and "'cube'" in str(caught.value)
    with pytest.raises(BadIndexError, match=message):
        cube[index] = 0
    assert (cube[-4:12, -4:12, -4:12] == CUBE).all()


def test_description(cube: DicedArray) -> None:
    assert cube.shape == (16, 24, 20)
    assert (len(cube), cube.ndim, cube.numdims, cube.get_numdims()) == (16, 3, 3, 3)
    assert cube.size == 16 * 24 * 20 and cube.nbytes == 4 * cube.size
    assert cube.dtype == np.int32 and cube.fill == -7
    assert cube.chunks == cube.block_shape == (4, 8, 5)
    assert cube.bounds == (slice(-4, 12),) * 3
    assert cube.get_extents() == (slice(-4, 12), slice(-8, 16), slice(-5, 15))
    assert "cube" in repr(cube) and "int32" in repr(cube) and "-4:12, -8:16, -5:15" in repr(cube)


def test_array_protocol(cube: DicedArray) -> None:
    whole = np.asarray(cube)
    assert whole.shape == cube.shape and (whole[:, 4:20, 1:17] == CUBE).all()
    assert np.asarray(cube, dtype=np.float64).dtype == np.float64
    assert int(np.max(cube)) == 11 * 10101
    with pytest.raises(ValueError, match="copy"):
        cube.__array__(copy=False)


def test_empty_array(repo: DicedRepo) -> None:
    array = repo.create_array("empty", np.uint8, dims=2)
    assert array.shape == (0, 0) and len(array) == 0 and array.size == 0 and array.nbytes == 0
    assert array[...].shape == (0, 0)
    assert array[::-1, 3:9].shape == (0, 6)
    assert array.bounds is None
    assert array.get_extents() == (slice(0, 0), slice(0, 0))
    assert array[5, 5] == 0
    assert list(array.blocks()) == []


@pytest.mark.parametrize("dims", range(1, 9))
@pytest.mark.parametrize("channels", [None, 2])
def test_all_dimensions(repo: DicedRepo, dims: int, channels: int | None) -> None:
    block = (3, 2, 2, 3, 2, 2, 2, 2)[:dims]
    array = repo.create_array("a", np.int64, dims=dims, block_shape=block, channels=channels)
    tail = () if channels is None else (channels,)
    shape = (4, 3, 3, 2, 3, 2, 2, 2)[:dims]
    data = np.arange(math.prod(shape + tail)).reshape(shape + tail)
    box = tuple(slice(-1 - axis % 2, size - 1 - axis % 2) for axis, size in enumerate(shape))
    array[box] = data
    assert (array[box] == data).all()
    assert (array[(*box[:-1], box[-1].start)] == data.take(0, dims - 1)).all()
    assert array.bounds == box
    first = tuple(each.start for each in box)
    assert np.array_equal(array[first], data[(0,) * dims])
    wide = tuple(slice(each.start - 2, each.stop + 2) for each in box)
    padded = np.pad(data, [(2, 2)] * dims + [(0, 0)] * len(tail))
    assert (array[wide] == padded).all()
    backwards = tuple(slice(each.stop - 1, each.start - 1, -1) for each in box)
    assert (array[backwards] == data[(slice(None, None, -1),) * dims]).all()
    assert array.ndim == dims + len(tail) and array.numdims == dims


@pytest.mark.parametrize("dims", [0, 9, -1, 2.0, True, "3"])
def test_bad_numbers_of_dimensions(repo: DicedRepo, dims: Any) -> None:
    with pytest.raises(InvalidError, match="dims is 1 to 8"):
        repo.create_array("a", np.uint8, dims=dims)


def test_default_block_shapes(repo: DicedRepo) -> None:
    shapes = [repo.create_array(f"a{d}", np.uint8, dims=d).block_shape for d in range(1, 9)]
    assert shapes[:3] == [(262144,), (512, 512), (64, 64, 64)]
    assert all(math.prod(shape) == 2**18 for shape in shapes)


@pytest.mark.parametrize("edge", [LOW, HIGH])
@pytest.mark.parametrize("dims", [1, 3])
def test_both_ends_of_coordinates(repo: DicedRepo, dims: int, edge: int) -> None:
    array = repo.create_array("a", np.uint16, dims=dims, block_shape=(7, 5, 6)[:dims])
    at = (edge,) * dims
    array[at] = 513
    assert array[at] == 513
    inside = 1 if edge == LOW else -1
    assert array[(edge + inside,) * dims] == 0
    low, high = min(edge, edge + inside), max(edge, edge + inside) + 1
    array[(slice(low, high),) * dims] = np.arange(2**dims).reshape((2,) * dims)
    assert (array[(slice(low, high),) * dims].reshape(-1) == np.arange(2**dims)).all()
    if low > LOW:  # the end of a slice that reverses to the lowest coordinate cannot be said
        backwards = array[(slice(high - 1, low - 1, -1),) * dims]
        assert (backwards.reshape(-1) == np.arange(2**dims)[::-1]).all()
    assert array.bounds == (slice(low, high),) * dims


def test_sparse_extents_are_huge(repo: DicedRepo) -> None:
    array = repo.create_array("a", np.uint8, block_shape=(64, 64, 64))
    array[LOW, LOW, LOW] = 1
    array[HIGH, HIGH, HIGH] = 2
    assert array.get_extents() == (slice(LOW, HIGH + 1),) * 3
    assert array.shape == (2**32,) * 3 and array.size == 2**96
    assert len(list(array.blocks())) == 2
    assert array[LOW : LOW + 2, LOW, LOW].tolist() == [1, 0]
    assert array[-5:5, 0, 0].sum() == 0
    assert len(array) == 2**32


def samples(dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "b":
        return np.array([True, False, True, True])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 0, 1], dtype)
    limits_f = np.finfo(dtype)
    return np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, limits_f.max, limits_f.tiny, 1.5], dtype)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd", "gzip"])
def test_all_dtypes_to_the_bit(repo: DicedRepo, name: str, codec: str) -> None:
    dtype = np.dtype(name)
    array = repo.create_array("a", ArrayDtype[name], dims=1, block_shape=(3,), codec=codec)
    data = samples(dtype)
    array[-2 : len(data) - 2] = data
    got = array[-2 : len(data) - 2]
    assert got.dtype == dtype and got.tobytes() == data.tobytes()
    for i, value in enumerate(data):
        assert array[i - 2].tobytes() == value.tobytes()
        array[50:62] = value  # blocks of one value
        assert array[50:62].tobytes() == np.full(12, value).tobytes()
    array[100 : 100 + len(data)] = data.astype(dtype.newbyteorder(">"))
    assert array[100 : 100 + len(data)].tobytes() == data.tobytes()
    assert array[100 : 100 + len(data)].dtype.isnative
    array[200 : 200 + 2 * len(data) : 2] = data[::-1]
    assert array[200 : 200 + 2 * len(data) : 2].tobytes() == data[::-1].tobytes()


def test_minus_zero_is_not_the_fill(repo: DicedRepo) -> None:
    array = repo.create_array("a", np.float64, dims=1, block_shape=(4,))
    array[0:4] = -0.0
    assert np.signbit(array[0:4]).all()
    array[0:4] = 0.0
    assert not np.signbit(array[0:4]).any()
    array[0:8] = np.nan
    assert np.isnan(array[0:8]).all()


@pytest.mark.parametrize(
    ("to", "value", "wanted"),
    [
        ("uint8", 255, 255),
        ("uint8", 7.0, 7),
        ("uint8", np.int64(200), 200),
        ("uint8", np.array([1.0, 2.0, 3.0]), [1, 2, 3]),
        ("uint8", True, 1),
        ("int8", np.uint64(127), 127),
        ("int64", np.uint8(3), 3),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("bool", 1, True),
        ("bool", [0, 1, 1], [False, True, True]),
        ("float32", 0.1, np.float32(0.1)),
        ("float32", np.float64(0.1), np.float32(0.1)),
        ("float32", 2**24, 2**24),
        ("float64", [1, 2, 3], [1, 2, 3]),
        ("uint16", np.array([1, 2, 3], ">u2"), [1, 2, 3]),
        ("uint8", [[1], [2], [3]][1], 2),
    ],
)
def test_values_that_fit(repo: DicedRepo, to: str, value: Any, wanted: Any) -> None:
    array = repo.create_array("a", to, dims=1, block_shape=(4,))
    array[0:3] = value
    assert np.array_equal(array[0:3], np.broadcast_to(wanted, 3))


REFUSED: list[tuple[str, Any]] = [
    ("uint8", 300), ("uint8", -1), ("uint8", np.int16(256)), ("uint8", 1.5),
    ("uint8", np.nan), ("uint8", np.inf), ("uint8", [256]), ("uint8", np.float32(-1)),
    ("int8", 128), ("int8", np.uint8(128)), ("int64", 2**63), ("int64", np.uint64(2**63)),
    ("int64", 2.0**63), ("uint64", -1), ("uint64", np.int8(-1)), ("uint64", 2.0**64),
    ("uint64", 2**64), ("bool", 2), ("bool", -1), ("bool", 0.5),
    ("float32", 2**24 + 1), ("float64", 2**53 + 1), ("float64", np.uint64(2**64 - 1)),
    ("float16", 70000), ("uint8", "7"), ("uint8", b"7"), ("uint8", 1j), ("uint8", None),
    ("float64", object()), ("uint8", np.datetime64("2020-01-01")), ("uint8", [[1, 2], [3]]),
]  # fmt: skip


@pytest.mark.parametrize(("to", "value"), REFUSED, ids=[f"{to}-{v!r:.20}" for to, v in REFUSED])
@pytest.mark.parametrize("whole", [True, False])
def test_values_that_do_not_fit(repo: DicedRepo, to: str, value: Any, whole: bool) -> None:
    array = repo.create_array("gray", to, dims=1, block_shape=(3,))
    array[0:9] = 1
    with pytest.raises(InvalidError, match="'gray'"):
        array[3 : 6 if whole else 5] = value
    assert (array[0:9] == 1).all()


def test_a_refusal_names_value_and_types(repo: DicedRepo) -> None:
    array = repo.create_array("gray", np.uint8, dims=1)
    with pytest.raises(InvalidError, match=r"int64 value 300 cannot be stored as uint8"):
        array[0:2] = np.array([1, 300])
    with pytest.raises(InvalidError, match=r"shape \(3,\) into \(2,\)"):
        array[0:2] = [1, 2, 3]


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 3, 5), (4, 5, 1, 1), (0,), (5, 4)])
def test_shapes_that_do_not_broadcast(repo: DicedRepo, shape: tuple[int, ...]) -> None:
    array = repo.create_array("gray", np.uint8, dims=2, block_shape=(4, 4))
    with pytest.raises(InvalidError, match="cannot write shape"):
        array[0:4, 0:5] = np.zeros(shape, np.uint8)
    assert array.bounds is None


@pytest.mark.parametrize("index", [(slice(3, 3), slice(0, 5)), (slice(9, 2), 1), (slice(0), ...)])
def test_empty_writes_change_nothing(repo: DicedRepo, index: Any) -> None:
    array = repo.create_array("gray", np.uint8, dims=2)
    array[index] = 5
    array[index] = array[index]
    assert array.bounds is None and not list(repo.operations("gray"))


def test_empty_slices_read_no_blocks(cube: DicedArray, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: Any) -> None:
        raise AssertionError("an empty slice read from the engine")

    engine = cube._repo.store.engine
    for name in ("get", "read_into", "put_if_absent", "appender"):
        monkeypatch.setattr(engine, name, forbidden)
    assert cube[3:3, 0:5, 0].shape == (0, 5)
    assert cube[5:5, 5:5, 5:5].shape == (0, 0, 0)
    cube[3:3, 0:5, 0:5] = np.zeros((0, 5, 5), np.int32)
    with pytest.raises(AssertionError, match="engine"):
        cube[0, 0, 0]


def test_out_is_checked(cube: DicedArray) -> None:
    box = (slice(0, 3), slice(0, 4), slice(0, 5))
    with pytest.raises(InvalidError, match=r"shape \(3, 4, 5\); got \(3, 4, 6\)"):
        cube.read(box, out=np.empty((3, 4, 6), np.int32))
    with pytest.raises(InvalidError, match="int32; got int64"):
        cube.read(box, out=np.empty((3, 4, 5), np.int64))
    with pytest.raises(InvalidError, match="int32; got >i4"):
        cube.read(box, out=np.empty((3, 4, 5), ">i4"))
    with pytest.raises(InvalidError, match="int32; got list"):
        cube.read(box, out=[0])  # type: ignore[arg-type]
    frozen = np.zeros((3, 4, 5), np.int32)
    frozen.flags.writeable = False
    with pytest.raises(InvalidError, match="read-only"):
        cube.read(box, out=frozen)


@pytest.mark.parametrize("layout", ["fortran", "window", "reversed", "transposed", "gaps"])
def test_out_of_any_strides(cube: DicedArray, layout: str) -> None:
    box = (slice(-3, 6), slice(-2, 9), slice(-5, 7))
    room = np.zeros((20, 24, 26), np.int32)
    out = {
        "fortran": np.zeros((9, 11, 12), np.int32, order="F"),
        "window": room[2:11, 3:14, 5:17],
        "reversed": room[10:1:-1, 12:1:-1, 16:4:-1],
        "transposed": np.zeros((12, 9, 11), np.int32).transpose(1, 2, 0),
        "gaps": room[1:19:2, 1:23:2, 1:25:2],
    }[layout]
    untouched = int((room == 0).sum())
    assert cube.read(box, out=out) is out
    assert (out == cube[box]).all()
    if out.base is room:
        assert int((room == 0).sum()) == untouched - int((out != 0).sum())


@pytest.mark.parametrize("layout", ["fortran", "reversed", "broadcast", "read-only", "gaps"])
def test_values_of_any_strides(repo: DicedRepo, layout: str) -> None:
    array = repo.create_array("a", np.int16, block_shape=(4, 4, 4))
    base = np.random.default_rng(5).integers(-9, 9, (20, 20, 20)).astype(np.int16)
    value = {
        "fortran": np.asfortranarray(base[:10, :9, :8]),
        "reversed": base[9::-1, 8::-1, 7::-1],
        "broadcast": np.broadcast_to(base[0, :9, :8], (10, 9, 8)),
        "read-only": base[:10, :9, :8].copy(),
        "gaps": base[::2, 1:19:2, 2:18:2],
    }[layout]
    if layout == "read-only":
        value.flags.writeable = False
    array[-3:7, -2:7, 0:8] = value
    assert (array[-3:7, -2:7, 0:8] == value).all()


def test_channels(repo: DicedRepo) -> None:
    array = repo.create_array("rgb", np.uint8, channels=3, block_shape=(4, 4, 4), fill=[1, 2, 3])
    assert array[0, 0, 0].tolist() == [1, 2, 3] and array.fill.tolist() == [1, 2, 3]
    data = np.random.default_rng(6).integers(0, 255, (6, 5, 7, 3), np.uint8)
    array[-2:4, 0:5, 1:8] = data
    assert array.shape == (8, 8, 8, 3) and array.chunks == (4, 4, 4, 3)
    assert array.block_shape == (4, 4, 4) and (array.ndim, array.numdims) == (4, 3)
    box = (slice(-2, 4), slice(0, 5), slice(1, 8))
    assert (array[box] == data).all()
    assert (array[(*box, 1)] == data[..., 1]).all()
    assert (array[(*box, slice(0, 2))] == data[..., :2]).all()
    assert (array[(*box, slice(None, None, -1))] == data[..., ::-1]).all()
    assert (array[..., 2][0:6, 0:5, 0:4].shape) == (6, 5, 4)
    array[(*box, 1)] = 9
    data[..., 1] = 9
    assert (array[box] == data).all()
    array[0, 0, 1] = [7, 8, 9]
    data[2, 0, 0] = [7, 8, 9]
    array[(*box, slice(2, None))] = data[..., :1]
    data[..., 2] = data[..., 0]
    assert (array[box] == data).all()
    for wrong in (3, -1):
        with pytest.raises(BadIndexError, match=f"3 channels; got channel {wrong}"):
            array[0, 0, 0, wrong]
    with pytest.raises(BadIndexError):
        array[0, 0]
    with pytest.raises(BadIndexError):
        array[0, 0, 0, 0, 0]


def test_one_channel_stays_an_axis(repo: DicedRepo) -> None:
    array = repo.create_array("a", np.float32, dims=2, channels=1, block_shape=(3, 3))
    array[0:2, 0:2] = np.ones((2, 2, 1))
    assert array[0:2, 0:2].shape == (2, 2, 1) and array[0, 0].shape == (1,)


def test_batch_reads_its_own_writes(cube: DicedArray) -> None:
    with cube.batch():
        cube[0, 0, 0] = 1
        cube[0:8, 0:8, 0:5] = 2
        cube[1, 1, 1] = 3
        assert (cube[0, 0, 0], cube[1, 1, 1], cube[2, 2, 2]) == (2, 3, 2)
        with pytest.raises(InvalidError, match="nest"), cube.batch():
            pass
    assert (cube[0, 0, 0], cube[1, 1, 1], cube[2, 2, 2]) == (2, 3, 2)


@pytest.mark.parametrize("index", [(slice(0, 2),) * 3, (slice(-4, 8), slice(0, 8), slice(0, 10))])
def test_a_refused_value_does_not_harm_its_batch(cube: DicedArray, index: Any) -> None:
    # Refused at the assignment, not at the commit, and nothing of it stays behind.
    values = np.zeros(tuple(each.stop - each.start for each in index))
    values[-1, -1, -1] = 0.5
    with cube.batch():
        cube[1, 1, 1] = 42
        with pytest.raises(InvalidError, match=r"0\.5"):
            cube[index] = values
        cube[5, 5, 5] = 43
    wanted = CUBE.copy()
    wanted[5, 5, 5], wanted[9, 9, 9] = 42, 43
    assert (cube[-4:12, -4:12, -4:12] == wanted).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float128"}, InvalidError, "float128|longdouble"),
        ({"dtype": "complex64"}, InvalidError, "complex64"),
        ({"dtype": "uint9"}, InvalidError, "did you mean 'uint"),
        ({"dtype": str}, InvalidError, "str"),
        ({"block_shape": (4, 4)}, InvalidError, "3 sizes"),
        ({"block_shape": (4, 0, 4)}, InvalidError, "sizes are 1"),
        ({"block_shape": 64}, InvalidError, "sequence"),
        ({"block_shape": (2**12,) * 3}, InvalidError, "bytes; at most"),
        ({"channels": 0}, InvalidError, "channels"),
        ({"fill": 300}, InvalidError, "300"),
        ({"fill": [1, 2]}, InvalidError, "fill"),
        ({"codec": "lz5"}, (InvalidError, UnsupportedError), "lz5"),
        ({"codec": "label"}, InvalidError, "label"),
        ({"voxel_size": (1, 2)}, InvalidError, "voxel_size needs 3"),
        ({"units": ("nm",)}, InvalidError, "units needs 3"),
        ({"kind": "imge"}, (UnsupportedError, NotFoundError), "did you mean 'image'"),
        ({"name": ""}, InvalidError, "name"),
        ({"name": "a\nb"}, InvalidError, "name"),
        ({"name": "x" * 2000}, InvalidError, "1024"),
    ],
)
def test_what_create_array_refuses(
    repo: DicedRepo, options: dict[str, Any], error: Any, message: str
) -> None:
    arguments = {"name": "a", "dtype": "uint8", **options}
    with pytest.raises(error, match=message):
        repo.create_array(**arguments)
    assert repo.list_instances() == []


def test_missing_array_names_near_ones(repo: DicedRepo) -> None:
    repo.create_array("grayscale", np.uint8)
    with pytest.raises(NotFoundError, match="did you mean 'grayscale'") as caught:
        repo["greyscale"]
    assert isinstance(caught.value, KeyError)
    assert "grayscale" in repo and "greyscale" not in repo


def test_details_are_kept(repo: DicedRepo) -> None:
    array = repo.create_array(
        "a", np.uint8, voxel_size=(40, 4, 4), units="nm", attrs={"source": "FIB"}
    )
    assert array.voxel_size == (40.0, 4.0, 4.0) and array.units == ("nm",) * 3
    assert dict(array.attrs) == {"source": "FIB"}
    with pytest.raises(InvalidError, match="JSON"):
        array.attrs["bad"] = object()


def test_steps_touch_only_the_blocks_that_are_hit(repo: DicedRepo) -> None:
    array = repo.create_array("far", np.uint8, dims=3, block_shape=(8, 8, 8))
    array[-(2**31), 0, 0] = 1
    array[2**31 - 1, 0, 0] = 2
    # Dense, this would be 4 Gi voxels and half a billion blocks.
    assert array[:: 2**30, 0, 0].tolist() == [1, 0, 0, 0]
    assert array[2**31 - 1 : -(2**31) - 1 : -(2**30), 0, 0].tolist() == [2, 0, 0, 0]
    array[:: 2**30, 1, 1] = [3, 4, 5, 6]
    assert array[:: 2**30, 1, 1].tolist() == [3, 4, 5, 6]
    assert len(list(array.blocks())) == 5
    for step in (3, 8, 9, 100):
        data = np.arange(-(-300 // step)) % 200
        array[0:300:step, 2, 3] = data
        assert array[0:300:step, 2, 3].tolist() == data.tolist()
        assert array[0:300, 2, 3][::step].tolist() == data.tolist()


def test_open_ends_inside_a_batch_see_the_batch(repo: DicedRepo) -> None:
    array = repo.create_array("grow", np.uint8, dims=1, block_shape=(4,))
    with array.batch():
        array[0:8] = 3
        assert array[...].tolist() == [3] * 8
        array[4:] = 5
    assert array[...].tolist() == [3] * 4 + [5] * 4
