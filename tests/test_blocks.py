"""The block kernels against their slow twins: any shape, item size and strides."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    constant_reference,
    copy_reference,
    cut_reference,
    morton_reference,
)

from diced import _blocks, _voxels, grid
from diced.errors import BadIndexError, InvalidError

DTYPES = ["u1", "?", "<u2", "<f2", "<f4", "<i8", "<c16", "V3", "V32", "V48", "V64"]
INT32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def layouts(draw, shape, dtype):
    """A writable array of `shape` inside a larger one: steps, reversals, transposition, margins."""
    dtype = np.dtype(dtype)
    order = draw(st.permutations(range(len(shape))))
    steps, margins = [1] * len(shape), [0] * len(shape)
    # Three odd axes at most: nine would make a large array.
    for axis in draw(st.sets(st.sampled_from(range(len(shape))), max_size=3)):
        steps[axis] = draw(st.sampled_from([1, 2, -1, -3]))
        margins[axis] = draw(st.integers(0, 2))
    base_shape = [2 * margins[axis] + shape[axis] * abs(steps[axis]) for axis in order]
    size = int(np.prod(base_shape)) * dtype.itemsize
    seed = draw(st.integers(0, 2**32))
    memory = np.random.default_rng(seed).integers(0, 2, size, np.uint8)
    base = memory.view(dtype).reshape(base_shape) if size else np.empty(base_shape, dtype)
    view = base.transpose(np.argsort(order))
    window = view[
        tuple(
            slice(margin, margin + side * abs(step))
            for margin, side, step in zip(margins, shape, steps, strict=True)
        )
    ]
    return memory, window[tuple(slice(None, None, step) for step in steps)]


@st.composite
def pairs(draw):
    dims = draw(st.integers(1, 9))
    largest = 6 if dims < 3 else 3 if dims < 5 else 2
    shape = tuple(draw(st.integers(0 if axis == 0 else 1, largest)) for axis in range(dims))
    dtype = draw(st.sampled_from(DTYPES))
    return draw(layouts(shape, dtype)), draw(layouts(shape, dtype))


class TestCopy:
    @given(pairs())
    def test_equals_item_by_item(self, pair):
        (_, src), (memory, dst) = pair
        before = memory.copy()
        copy_reference(src, dst)
        wanted = memory.copy()
        memory[:] = before
        _blocks.copy(src, dst)
        # All of the memory around the window too: nothing else may change.
        assert memory.tobytes() == wanted.tobytes()

    @given(pairs())
    def test_gather(self, pair):
        (_, src), _ = pair
        assert _blocks.gather(src) == np.ascontiguousarray(src).tobytes()

    @pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "u8", "c16"])
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)])
    def test_large_transposed(self, dtype, order):
        base = np.arange(70 * 81 * 97).reshape(70, 81, 97).astype(dtype)
        src = base.transpose(order)[3:60, 1:, ::-1]
        dst = np.zeros(src.shape, dtype)
        _blocks.copy(src, dst)
        assert np.array_equal(src, dst)
        back = np.zeros_like(base)
        _blocks.copy(dst, back.transpose(order)[3:60, 1:, ::-1])
        assert np.array_equal(back.transpose(order)[3:60, 1:, ::-1], src)

    def test_broadcast_source(self):
        src = np.broadcast_to(np.arange(5, dtype=np.uint16)[:, None], (3, 5, 4))
        dst = np.zeros((3, 5, 4), np.uint16)
        _blocks.copy(src, dst)
        assert np.array_equal(src, dst)

    def test_other_buffers(self):
        dst = bytearray(6)
        _blocks.copy(b"abcdef", dst)
        assert dst == b"abcdef"

    @pytest.mark.parametrize(
        "src, dst",
        [
            (np.zeros((2, 3)), np.zeros((3, 2))),
            (np.zeros((2, 3)), np.zeros((2, 3, 1))),
            (np.zeros((2, 3)), np.zeros((2, 4))),
            (np.zeros(3, "u2"), np.zeros(3, "u4")),
            (np.zeros(3, "V65"), np.zeros(3, "V65")),
            (np.zeros((1,) * 10), np.zeros((1,) * 10)),
            ([1, 2], np.zeros(2)),
            (np.zeros(3), np.broadcast_to(np.zeros(1), 3)),
            (b"abc", b"abc"),
        ],
    )
    def test_refuses(self, src, dst):
        with pytest.raises(InvalidError):
            _blocks.copy(src, dst)

    def test_threads_write_disjoint_parts(self):
        src = np.random.default_rng(0).integers(0, 255, (64, 64, 64), np.uint8)
        dst = np.zeros((64, 128, 64), np.uint8)

        def work(part):
            for _ in range(20):
                _blocks.copy(src, part)

        threads = [threading.Thread(target=work, args=(dst[:, i::2],)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert np.array_equal(dst[:, ::2], src)
        assert np.array_equal(dst[:, 1::2], src)


@st.composite
def nearly_constant(draw):
    dims = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    _, array = draw(layouts(shape, draw(st.sampled_from(DTYPES))))
    unit = draw(st.sampled_from([1, shape[-1]]))
    first = (*(slice(0, 1) for _ in shape[:-1]), slice(0, unit))
    copy_reference(np.broadcast_to(array[first].copy(), shape), array)
    if draw(st.booleans()):
        where = tuple(draw(st.integers(0, size - 1)) for size in shape)
        item = array[tuple(slice(i, i + 1) for i in where)]
        changed = bytearray(item.tobytes())
        changed[draw(st.integers(0, len(changed) - 1))] ^= 1
        item[...] = np.frombuffer(bytes(changed), array.dtype).reshape(item.shape)
    return array, unit


class TestConstant:
    @given(nearly_constant())
    def test_equals_reference(self, case):
        array, unit = case
        assert _voxels.constant(array, unit) == constant_reference(array, unit)

    @pytest.mark.parametrize("place", [0, 1, 63, 64, 262143])
    def test_one_voxel_of_a_block_differs(self, place):
        block = np.full((64, 64, 64), 7, np.uint8)
        assert _voxels.constant(block) == b"\x07"
        block.reshape(-1)[place] = 8
        assert _voxels.constant(block) is None

    def test_bits_count_not_values(self):
        assert _voxels.constant(np.array([0.0, -0.0])) is None
        assert _voxels.constant(np.array([np.nan, np.nan])) == np.array(np.nan).tobytes()

    def test_broadcast(self):
        assert _voxels.constant(np.broadcast_to(np.uint16(9), (2**40,))) == b"\x09\x00"

    def test_nothing_is_not_constant(self):
        assert _voxels.constant(np.zeros((3, 0, 2))) is None

    def test_refuses_a_unit_that_is_not_the_last_axis(self):
        with pytest.raises(InvalidError, match="unit"):
            _voxels.constant(np.zeros((4, 4)), 2)


class TestFill:
    @given(pairs(), st.booleans())
    def test_equals_assignment(self, pair, channels):
        (_, src), (memory, dst) = pair
        unit = max(dst.shape[-1], 1) if channels else 1
        source = np.ascontiguousarray(src).reshape(-1)[:unit]
        element = source.tobytes() if len(source) == unit else bytes(dst.itemsize * unit)
        before = memory.copy()
        if dst.size:
            dst[...] = np.frombuffer(element, dst.dtype)
        wanted = memory.copy()
        memory[:] = before
        _voxels.fill(dst, element)
        assert memory.tobytes() == wanted.tobytes()

    @pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "V3"])
    def test_large(self, dtype):
        element = bytes(range(1, 1 + np.dtype(dtype).itemsize))
        whole = np.zeros((40, 50, 60), dtype)
        _voxels.fill(whole, element)
        assert whole.tobytes() == element * whole.size
        _voxels.fill(whole[1:, ::2, 1:-1], bytes(len(element)))
        assert whole[1:, ::2, 1:-1].tobytes() == bytes(39 * 25 * 58 * len(element))
        assert whole[:, 1::2].tobytes() == element * (40 * 25 * 60)

    @pytest.mark.parametrize("element", [b"", b"a", b"abc", b"abcdefgh"])
    def test_refuses_another_length(self, element):
        with pytest.raises(InvalidError, match="element"):
            _voxels.fill(np.zeros((5, 3), np.uint16), element)

    def test_refuses_read_only(self):
        with pytest.raises(InvalidError):
            _voxels.fill(b"abc", b"a")


@st.composite
def boxes(draw):
    dims = draw(st.integers(1, 4))
    lo = [draw(st.integers(-20, 20)) for _ in range(dims)]
    hi = [low + draw(st.integers(0, 12)) for low in lo]
    return lo, hi, [draw(st.integers(1, 7)) for _ in range(dims)]


class TestCut:
    @given(boxes(), st.booleans())
    def test_equals_reference(self, box, shifted):
        lo, hi, shape = box
        origin = [5, -3, 2, -7][: len(lo)] if shifted else None
        keys, table, whole = _blocks.cut(lo, hi, shape, origin)
        assert (keys, table.tolist(), list(whole)) == cut_reference(lo, hi, shape, origin)
        assert table.dtype == np.int64 and table.flags.c_contiguous
        assert table.shape == (len(keys), 3, len(lo))
        assert _blocks.count(lo, hi, shape) == len(keys)

    @given(boxes(), st.lists(st.integers(-(2**30), 2**30), min_size=4, max_size=4))
    def test_anywhere(self, box, place):
        lo, hi, shape = box
        lo = [a + p for a, p in zip(lo, place, strict=False)]
        hi = [b + p for b, p in zip(hi, place, strict=False)]
        keys, table, whole = _blocks.cut(lo, hi, shape)
        assert (keys, table.tolist(), list(whole)) == cut_reference(lo, hi, shape)

    def test_a_thousand_blocks(self):
        lo, hi, shape = [-500, 70, -64], [300, 700, 999], [64, 64, 64]
        keys, table, whole = _blocks.cut(lo, hi, shape)
        assert len(keys) > 1000
        assert (keys, table.tolist(), list(whole)) == cut_reference(lo, hi, shape)

    def test_corners_of_the_space(self):
        low, high = -(2**31), 2**31
        keys, table, whole = _blocks.cut([low], [high], [2**30])
        assert keys == [morton_reference([each]) for each in (-2, -1, 0, 1)]
        assert (table[:, 0].tolist(), list(whole)) == ([[0]] * 4, [1] * 4)
        assert table[-1, 2, 0] + table[-1, 1, 0] == 2**32
        keys, _, _ = _blocks.cut([high - 1], [high], [1])
        assert keys == [b"\xff\xff\xff\xff"]

    def test_eight_dimensions(self):
        keys, table, _ = _blocks.cut([-1] * 8, [1] * 8, [4] * 8)
        assert table.shape == (256, 3, 8)
        assert keys == sorted(keys) and len(set(keys)) == 256

    @pytest.mark.parametrize(
        "lo, hi, shape, error",
        [
            ([0], [1, 1], [1], InvalidError),
            ([], [], [], InvalidError),
            ([0] * 9, [1] * 9, [1] * 9, InvalidError),
            ([0], [1], [0], InvalidError),
            ([0], [1], [2**70], InvalidError),
            ([2], [1], [1], InvalidError),
            ([0], [2**31 + 1], [64], BadIndexError),
            ([-(2**31) - 1], [0], [64], BadIndexError),
            ([0], [2**70], [64], BadIndexError),
            ([-(2**70)], [0], [64], BadIndexError),
            ([0, 0], [2**31, 2**31], [1, 1], InvalidError),
        ],
    )
    def test_refuses(self, lo, hi, shape, error):
        with pytest.raises(error):
            _blocks.cut(lo, hi, shape)

    def test_refuses_an_origin_of_other_axes(self):
        with pytest.raises(InvalidError, match="origin"):
            _blocks.cut([0, 0], [1, 1], [4, 4], [0])

    def test_count_is_capped(self):
        assert _blocks.count([-(2**31)] * 8, [2**31] * 8, [1] * 8) == 2**31
        assert _blocks.count([-(2**31)] * 3, [2**31, 2**31, -(2**31)], [1] * 3) == 0

    @given(boxes())
    def test_as_a_grid_sees_it(self, box):
        lo, hi, shape = box
        cut = grid.Cut(lo, hi, shape)
        assert len(cut) == len(cut.keys)
        coords = grid.block_coords(cut.keys, len(lo))
        for i, (begin, count, out) in enumerate(cut.table):
            assert cut.keys[i] == morton_reference(coords[i].tolist())
            assert (coords[i] * shape + begin - lo).tolist() == out.tolist()
            assert bool(cut.whole[i]) == (count.tolist() == shape)


class TestPieces:
    def test_tile_a_box_at_block_borders(self, monkeypatch):
        monkeypatch.setattr(grid, "BLOCKS_PER_PIECE", 10)
        lo, hi, shape = (-7, 3, 11), (40, 30, 12), (5, 4, 3)
        seen = np.zeros([b - a for a, b in zip(lo, hi, strict=True)], int)
        keys = []
        for low, high in grid.pieces(lo, hi, shape):
            cut = grid.Cut(low, high, shape, lo)
            assert 1 <= len(cut) <= 10
            keys += cut.keys
            for _, count, start in cut.table.tolist():
                seen[tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))] += 1
        assert (seen == 1).all()
        assert sorted(keys) == grid.Cut(lo, hi, shape).keys

    def test_of_a_small_box_are_the_box(self):
        assert list(grid.pieces((1, 2), (3, 4), (2, 2))) == [((1, 2), (3, 4))]

    def test_of_all_space_come_one_by_one(self):
        first = next(iter(grid.pieces((-(2**31),) * 3, (2**31,) * 3, (64, 64, 64))))
        assert len(grid.Cut(*first, (64, 64, 64))) <= grid.BLOCKS_PER_PIECE


class TestMorton:
    @given(st.integers(1, 8).flatmap(lambda n: st.lists(st.tuples(*[INT32] * n), max_size=6)))
    def test_equals_reference_and_returns(self, rows):
        dims = len(rows[0]) if rows else 3
        coords = np.array(rows, np.int64).reshape(len(rows), dims)
        keys = _blocks.morton(coords)
        assert [key.tobytes() for key in keys] == [morton_reference(row) for row in rows]
        assert np.array_equal(_blocks.unmorton(keys, dims), coords)

    def test_neighbours_share_a_prefix(self):
        keys = _blocks.morton(np.array([[2, 4, 6], [3, 5, 7], [2, 4, 8]]))
        assert bytes(keys[0])[:11] == bytes(keys[1])[:11] != bytes(keys[2])[:11]

    @pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
    def test_refuses_beyond_int32(self, value):
        with pytest.raises(InvalidError, match=str(value)):
            _blocks.morton(np.array([[0, 0, 0], [0, value, 0]]))

    def test_refuses_other_widths(self):
        with pytest.raises(InvalidError):
            _blocks.unmorton(np.zeros((2, 11), np.uint8), 3)
        with pytest.raises(InvalidError):
            _blocks.morton(np.zeros((2, 9), np.int64))
