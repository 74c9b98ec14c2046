"""Halving arrays: means, commonest labels, nearest voxels, against a slow twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import downsample_reference

from diced import _downsample
from diced.downsample import cumulative, levels_of, plan_steps, reduce
from diced.errors import InvalidError

INTEGERS = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


@st.composite
def cases(draw, dtypes):
    """An array of 1 to 3 axes, perhaps with channels, and factors that divide it."""
    factors = draw(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3))
    shape = [draw(st.integers(0, 5)) * factor for factor in factors]
    channels = draw(st.sampled_from([None, None, 1, 3]))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    elements = None
    if dtype.kind == "f":
        elements = st.floats(-(2.0**15), 2.0**15, width=16)
    elif draw(st.booleans()):  # few values, so that labels are often equal
        elements = st.sampled_from([0, 1]) if dtype.kind == "b" else st.integers(0, 3)
    full = (*shape, *(() if channels is None else (channels,)))
    values = draw(hnp.arrays(dtype, full, elements=elements))
    if draw(st.booleans()):
        values = np.asfortranarray(values)
    return values, factors, channels


@given(cases(INTEGERS))
def test_means_of_integers(case):
    values, factors, channels = case
    found = reduce(values, factors, "mean", channels)
    wanted = downsample_reference(values, factors, "mean")
    assert found.dtype == values.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


@given(cases(["float16", "float32", "float64"]))
def test_means_of_floats(case):
    values, factors, channels = case
    found = reduce(values, factors, "mean", channels)
    wanted = downsample_reference(values.astype(np.float64), factors, "mean").astype(values.dtype)
    np.testing.assert_array_equal(found, wanted)


@given(cases([each for each in INTEGERS if each[0] != "i"]))
def test_commonest_labels(case):
    values, factors, channels = case
    found = reduce(values, factors, "mode", channels)
    np.testing.assert_array_equal(found, downsample_reference(values, factors, "mode"))


@given(cases([*INTEGERS, "float32"]))
def test_nearest(case):
    values, factors, channels = case
    found = reduce(values, factors, "nearest", channels)
    np.testing.assert_array_equal(found, downsample_reference(values, factors, "nearest"))


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint32", "int8"])
def test_means_at_the_ends_of_a_type(dtype):
    info = np.iinfo(dtype)
    for value in (info.min, info.max):
        values = np.full((4, 4, 4), value, dtype)
        assert (reduce(values, (2, 2, 2), "mean") == value).all()
    values = np.array([info.max, info.max - 1], dtype)
    assert reduce(values, (2,), "mean")[0] == info.max  # a half goes up


def test_means_of_huge_floats_do_not_overflow():
    values = np.full((2, 2, 2), np.finfo(np.float64).max)
    assert reduce(values, (2, 2, 2), "mean")[0, 0, 0] == np.finfo(np.float64).max
    values[0, 0, 0] = np.nan
    assert np.isnan(reduce(values, (2, 2, 2), "mean")).all()


def test_a_label_beats_background_and_the_smaller_one_a_tie():
    box = np.zeros((2, 2, 2), np.uint64)
    assert reduce(box, (2, 2, 2), "mode").item() == 0
    box[1, 1, 1] = 2**63
    assert reduce(box, (2, 2, 2), "mode").item() == 2**63
    box[0, 0, 0] = 7
    assert reduce(box, (2, 2, 2), "mode").item() == 7


@pytest.mark.parametrize(
    ("shape", "factors", "method", "channels"),
    [
        ((3, 4), (2, 2), "mean", None),
        ((4, 4), (3, 1), "mean", None),
        ((4, 4), (2, 2, 2), "mean", None),
        ((4, 4, 4, 4), (2, 2, 2, 2), "mean", None),
        ((4, 4), (2, 2), "median", None),
        ((4, 4, 3), (2, 2), "mean", None),
    ],
)
def test_what_cannot_be_halved(shape, factors, method, channels):
    with pytest.raises(InvalidError):
        reduce(np.zeros(shape, np.uint8), factors, method, channels)


def test_floats_have_no_commonest_value():
    with pytest.raises(InvalidError, match="float32"):
        reduce(np.zeros((2, 2), np.float32), (2, 2), "mode")


def test_kernels_check_shapes():
    for kernel in (_downsample.mean, _downsample.mode):
        for src, dst, channels in [
            ((2, 2, 2), (1, 1, 2), 3), ((2, 2, 2), (2, 2, 3), 1), ((6, 2, 2), (2, 2, 2), 1),
            ((2, 2, 2), (2, 0, 2), 1), ((2, 2, 2), (1, 1, 1), 0),
        ]:  # fmt: skip
            with pytest.raises(InvalidError):
                kernel(np.zeros(src, np.uint8), np.zeros(dst, np.uint8), channels)


def test_plans():
    assert plan_steps((1, 1, 1), 2) == [(2, 2, 2)] * 2
    assert plan_steps((40, 8, 8), 4, "isotropic") == [(1, 2, 2)] * 2 + [(2, 2, 2)] * 2
    assert plan_steps((40, 8, 8), 1, [1, 2]) == [(1, 2, 2)]
    assert cumulative([(1, 2, 2), (2, 2, 2)], 3) == [(0, 0, 0), (0, 1, 1), (1, 2, 2)]
    assert levels_of((64, 65, 1000), (64, 64, 64)) == 4
    assert levels_of((0, 0), (64, 64)) == 0
    for axes in ([], [3], ["x"], [True], "all"):
        with pytest.raises(InvalidError):
            plan_steps((1, 1, 1), 1, axes)
