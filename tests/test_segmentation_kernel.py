"""compressed_segmentation: encoded and decoded, against a slow twin and another implementation."""

import gzip
import struct

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diced._segmentation import segmentation_encode
from diced._segmentread import segmentation_decode
from diced.errors import CorruptError, InvalidError

QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))


def decoded(payload, shape, dtype=np.uint64):
    out = np.empty(shape, dtype)
    out.fill(12345)
    segmentation_decode(payload, out)
    return out


@st.composite
def volumes(draw):
    """Volumes of few to many labels, of any shape, type and strides."""
    dtype = draw(st.sampled_from([np.uint64, np.uint32]))
    shape = draw(st.tuples(*[st.integers(1, 19)] * 3))
    count = draw(st.sampled_from([1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 600]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    palette = rng.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
    steps = draw(st.tuples(*[st.sampled_from([1, -1, 2, 3])] * 3))
    order = draw(st.permutations(range(3)))
    large = [shape[axis] * abs(steps[axis]) for axis in range(3)]
    stored = np.empty([large[axis] for axis in order], dtype)
    view = stored.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    view = view[tuple(slice(side) for side in shape)]
    coarse = draw(st.sampled_from([1, 2, 5]))
    small = rng.choice(palette, [-(-side // coarse) for side in shape])
    for axis in range(3):
        small = small.repeat(coarse, axis)
    view[...] = small[tuple(slice(side) for side in shape)]
    return view


@QUICK
@given(volumes())
def test_the_bytes_are_those_of_the_twin_and_decode(volume):
    payload = segmentation_encode(volume)
    assert payload == reference.segmentation_encode_reference(volume)
    assert np.array_equal(decoded(payload, volume.shape, volume.dtype), volume)
    out = np.zeros(volume.shape[::-1], volume.dtype).T  # strided
    segmentation_decode(payload, out)
    assert np.array_equal(out, volume)


@QUICK
@given(volumes())
def test_another_implementation_reads_and_is_read(volume):
    other = pytest.importorskip("compressed_segmentation")
    xyz = volume.T.shape
    found = other.decompress(segmentation_encode(volume), xyz, volume.dtype, (8, 8, 8), order="F")
    assert np.array_equal(found.reshape(xyz, order="F").T, volume)
    theirs = other.compress(volume.T.copy(order="F"), block_size=(8, 8, 8), order="F")
    assert np.array_equal(decoded(theirs, volume.shape, volume.dtype), volume)


def test_golden_bytes_of_two_labels():
    volume = np.full((8, 8, 8), 5, np.uint64)
    volume[:, :, 4:] = 7 << 32
    words = struct.pack("<7I", 1, 2 | 1 << 24, 6, 5, 0, 0, 7)
    assert segmentation_encode(volume) == words + b"\xf0" * 64
    words = struct.pack("<5I", 1, 2 | 1 << 24, 4, 5, 7)
    small = np.where(volume == 5, 5, 7).astype(np.uint32)
    assert segmentation_encode(small) == words + b"\xf0" * 64


def test_golden_bytes_of_three_labels_and_a_shared_table():
    cell = (np.arange(512, dtype=np.uint64) % 3 + 10).reshape(8, 8, 8)
    payload = segmentation_encode(np.concatenate([cell, cell], axis=2))
    words = np.frombuffer(payload, "<u4")
    assert words[:5].tolist() == [1, 4 | 2 << 24, 10, 4 | 2 << 24, 42]
    assert words[5:11].tolist() == [10, 0, 11, 0, 12, 0]
    # 0 1 2 0 | 1 2 0 1 | 2 0 1 2 | 0 1 2 0, lowest bits first
    assert payload[44:48] == bytes([0b00100100, 0b01001001, 0b10010010, 0b00100100])
    assert len(payload) == 4 * (1 + 4 + 6 + 32 + 32)


def test_a_volume_of_one_label_is_its_heads_and_one_table():
    payload = segmentation_encode(np.full((64, 64, 64), 9, np.uint64))
    assert len(payload) == 4 + 8 * 512 + 8
    assert set(np.frombuffer(payload, "<u4")[1:1025].tolist()) == {1024, 1026}


def test_positions_of_eight_and_sixteen_bits():
    for count, bits in ((17, 8), (256, 8), (257, 16), (512, 16)):
        volume = (np.arange(512) % count).astype(np.uint64).reshape(8, 8, 8)[::-1]
        payload = segmentation_encode(volume)
        assert struct.unpack_from("<I", payload, 4)[0] >> 24 == bits
        assert np.array_equal(decoded(payload, (8, 8, 8)), volume)


def test_real_labels(shared_data):
    for name in ("fib19", "cx"):
        path = shared_data / "label-blocks" / f"{name}-64x64x64-sample1.dat.gz"
        volume = np.frombuffer(gzip.decompress(path.read_bytes()), "<u8").reshape(64, 64, 64)
        payload = segmentation_encode(volume)
        assert np.array_equal(decoded(payload, (64, 64, 64)), volume)
        assert len(payload) < volume.nbytes / 50


def test_tables_beyond_what_can_be_addressed_are_refused():
    volume = np.arange(128 * 256 * 272, dtype=np.uint64).reshape(128, 256, 272)
    with pytest.raises(InvalidError, match="64 MiB"):
        segmentation_encode(volume)
    half = volume[:64]
    assert np.array_equal(decoded(segmentation_encode(half), half.shape), half)


def test_so_many_cells_that_no_table_could_follow_are_refused_at_once():
    one = np.zeros(1, np.uint64)
    endless = np.lib.stride_tricks.as_strided(one, (2**19, 2**19, 2**19), (0, 0, 0))
    with pytest.raises(InvalidError, match="smaller volume"):
        segmentation_encode(endless)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        b"12345678",
        np.zeros((8, 8), np.uint64),
        np.zeros((8, 8, 8), np.int64),
        np.zeros((8, 8, 8), np.float32),
        np.zeros((8, 8, 8), ">u8"),
        np.zeros((0, 8, 8), np.uint64),
        np.zeros((8, 8, 8), "S8"),
    ],
)
def test_what_is_no_volume_of_labels_is_refused(bad):
    with pytest.raises(InvalidError, match="segmentation_encode"):
        segmentation_encode(bad)
    with pytest.raises(InvalidError, match="segmentation_decode"):
        segmentation_decode(bytes(100), bad)


def test_a_result_that_cannot_be_written_is_refused():
    out = np.zeros((8, 8, 8), np.uint64)
    out.flags.writeable = False
    with pytest.raises(InvalidError, match="writable"):
        segmentation_decode(segmentation_encode(out), out)


def damaged(word, value):
    payload = bytearray(segmentation_encode((np.arange(512) % 3).astype("u8").reshape(8, 8, 8)))
    struct.pack_into("<I", payload, 4 * word, value)
    return bytes(payload)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "whole words"),
        (b"\1\0\0", "whole words"),
        (bytes(4), "channel begins"),
        (struct.pack("<I", 2), "channel begins"),
        (struct.pack("<2I", 1, 0), "words of a channel"),
        (damaged(1, 2 | 3 << 24), "bits"),
        (damaged(1, 2 | 64 << 24), "bits"),
        (damaged(1, 0xFFFFFF | 2 << 24), "table"),
        (damaged(2, 9), "end of a cell"),
        (damaged(2, 2**32 - 1), "end of a cell"),
        (damaged(1, 38 | 2 << 24), "position"),
        (damaged(1, 39), "left for a table"),
    ],
)
def test_damage_is_named(payload, message):
    with pytest.raises(CorruptError, match=message):
        decoded(payload, (8, 8, 8))


@QUICK
@given(volumes(), st.data())
def test_damage_anywhere_does_to_the_kernel_what_it_does_to_the_twin(volume, data):
    payload = bytearray(segmentation_encode(volume))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(payload), len(payload) // 8 * 4, len(payload) - 1]))
    payload = bytes(payload[:cut])
    shape, dtype = volume.shape, volume.dtype.type
    try:
        wanted = reference.segmentation_decode_reference(payload, shape, dtype)
    except ValueError:
        with pytest.raises(CorruptError):
            decoded(payload, shape, dtype)
        return
    assert np.array_equal(decoded(payload, shape, dtype), wanted)
