"""The label block: bytes, windows, and what is not a label block."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    label_decode_reference,
    label_encode_reference,
    packed_label_reference,
    packed_label_unpack_reference,
)

from diced import codec as codecs
from diced import library
from diced._codec import label_check, label_decode, label_encode
from diced._packed import label_sections, packed_decode, packed_encode, sections_decode
from diced.errors import CorruptError, InvalidError

SHAPES = [(8, 8, 8), (16, 16, 16), (24, 16, 32), (8, 24, 72), (64, 64, 64)]
U64 = np.uint64


def decode(payload, shape, **options) -> np.ndarray:
    out = np.full(shape, 0xDEAD, U64)
    label_decode(payload, out, (0, 0, 0), shape, **options)
    return out


def patchwork(shape, labels: int, seed: int, grain: int = 4) -> np.ndarray:
    """Return cubes of `grain` voxels of labels over all 64 bits, 0 among them."""
    rng = np.random.default_rng(seed)
    names = rng.integers(0, 2**64, labels, dtype=U64)
    names[labels // 2] = 0
    coarse = names[rng.integers(0, labels, [-(-side // grain) for side in shape])]
    for axis in range(3):
        coarse = coarse.repeat(grain, axis)
    return np.ascontiguousarray(coarse[tuple(slice(side) for side in shape)])


def crowded(labels: int, seed: int = 0) -> np.ndarray:
    """Return an 8x8x8 volume of exactly so many labels, in random places."""
    rng = np.random.default_rng(seed)
    flat = np.concatenate([np.arange(labels), rng.integers(0, labels, 512 - labels)])
    return (rng.permutation(flat).astype(U64) * U64(0x1234567890ABCDEF)).reshape(8, 8, 8)


@st.composite
def volumes(draw) -> np.ndarray:
    shape = tuple(8 * draw(st.integers(1, 3)) for _ in range(3))
    labels = draw(st.one_of(st.integers(1, 20), st.integers(1, 600)))
    grain = draw(st.sampled_from([1, 3, 8, 9]))
    volume = patchwork(shape, labels, draw(st.integers(0, 2**32)), grain)
    if draw(st.booleans()):
        volume[draw(st.integers(0, shape[0] - 1)) :] = draw(st.integers(0, 2**64 - 1))
    return volume


@st.composite
def layouts(draw, volume: np.ndarray) -> np.ndarray:
    """Return the same voxels in other strides: reversed, spread, transposed, off by a byte."""
    order = draw(st.permutations(range(3)))
    steps = [draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in range(3)]
    room = [side * abs(step) + 2 for side, step in zip(volume.shape, steps, strict=True)]
    size = int(np.prod(room)) * 8
    odd = draw(st.sampled_from([0, 0, 8, 3]))
    raw = np.zeros(size + 16, np.uint8)[odd : odd + size].view(U64)
    home = raw.reshape([room[axis] for axis in order]).transpose(np.argsort(order))
    view = home[tuple(slice(None, None, step) for step in steps)]
    view = view[tuple(slice(side) for side in volume.shape)]
    view[:] = volume
    return view


# --- what is written -----------------------------------------------------------------------------


def test_a_solid_block_is_24_known_bytes():
    wanted = "080000000800000008000000010000000700000000000000"
    assert label_encode(np.full((64, 64, 64), 7, U64)).hex() == wanted
    assert label_encode(np.broadcast_to(U64(7), (64, 64, 64))).hex() == wanted
    assert (decode(bytes.fromhex(wanted), (64, 64, 64)) == 7).all()


def test_two_labels_are_known_bytes():
    volume = np.full((8, 8, 8), 2**64 - 1, U64)
    volume[0, 0, 1] = 5
    volume[7, 7, 7] = 5
    head = struct.pack("<4I2QH2I", 1, 1, 1, 2, 2**64 - 1, 5, 2, 0, 1)
    assert label_encode(volume) == head + b"\x40" + bytes(62) + b"\x01"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("labels", "grain"), [(1, 8), (2, 4), (40, 5), (3000, 1)])
def test_encode_equals_the_reference(shape, labels, grain):
    volume = patchwork(shape, labels, 7, grain)
    payload = label_encode(volume)
    assert payload == label_encode_reference(volume)
    assert (decode(payload, shape) == volume).all()
    assert (decode(payload, shape, stream=True) == volume).all()
    label_check(payload, shape)


@pytest.mark.parametrize("labels", [*range(1, 35), 63, 64, 65, 127, 128, 129, 255, 256, 257, 512])
def test_every_width(labels):
    volume = crowded(labels)
    payload = label_encode(volume)
    assert payload == label_encode_reference(volume)
    assert (decode(payload, (8, 8, 8)) == volume).all()


def test_a_uniform_sub_block_after_mixed_ones():
    # Label 0 must not be taken for one that was seen before.
    volume = np.zeros((8, 8, 32), U64)
    volume[:, :, :8] = crowded(3) + U64(4)
    volume[:, :, 16:24] = crowded(2) + U64(4)
    payload = label_encode(volume)
    assert payload == label_encode_reference(volume)
    assert (decode(payload, volume.shape) == volume).all()


@pytest.mark.parametrize("step", [1, 8, 2**32, 2**46, 0x9E3779B97F4A7C15])
def test_all_voxels_distinct(step):
    volume = (np.arange(64**3, dtype=U64) * U64(step)).reshape(64, 64, 64)
    payload = label_encode(volume)
    assert len(payload) == 3_441_680
    assert (decode(payload, volume.shape) == volume).all()
    label_check(payload, volume.shape)


@pytest.mark.parametrize("shape", [(8, 8, 1024), (8, 1024, 8), (1024, 8, 8)])
def test_the_longest_sides(shape):
    volume = patchwork(shape, 300, 1, 5)
    payload = label_encode(volume)
    assert payload == label_encode_reference(volume)
    assert (decode(payload, shape, stream=True) == volume).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_encode_reads_any_strides(data):
    volume = data.draw(volumes())
    view = data.draw(layouts(volume))
    view.flags.writeable = False
    payload = label_encode(view)
    assert payload == label_encode_reference(volume)
    assert (label_decode_reference(payload, volume.shape) == volume).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_decode_writes_any_window_into_any_strides(data):
    volume = data.draw(volumes())
    payload = label_encode(volume)
    start = tuple(data.draw(st.integers(0, side - 1)) for side in volume.shape)
    stop = tuple(
        data.draw(st.integers(low, side)) for low, side in zip(start, volume.shape, strict=True)
    )
    part = volume[tuple(slice(*pair) for pair in zip(start, stop, strict=True))]
    out = data.draw(layouts(~part))
    around = out.base
    assert around is not None
    before = around.copy()
    label_decode(payload, out, start, volume.shape, stream=data.draw(st.booleans()))
    assert (out == part).all()
    # All else in the memory that the window lies in is untouched.
    out[:] = ~part
    assert (around == before).all()


def test_decode_takes_payloads_at_any_address():
    volume = patchwork((16, 16, 16), 9, 3)
    payload = label_encode(volume)
    for offset in range(9):
        shifted = memoryview(bytearray(offset) + payload)[offset:]
        assert (decode(shifted, volume.shape) == volume).all()


def test_every_alignment_of_a_streamed_row():
    volume = patchwork((8, 8, 64), 40, 5, 2)
    payload = label_encode(volume)
    for left in range(17):
        for right in range(left, 65, 7):
            room = np.zeros((8, 8, 80), U64)
            out = room[:, :, 8 : 8 + right - left]
            label_decode(payload, out, (0, 0, left), volume.shape, stream=True)
            assert (out == volume[:, :, left:right]).all()
            assert not room[:, :, :8].any()
            assert not room[:, :, 8 + right - left :].any()


# --- other writers -------------------------------------------------------------------------------


def test_unused_duplicate_and_absent_labels_are_read():
    # Sub-block 0 has no list (label 0), 1 names two equal entries, the third entry is unused.
    payload = struct.pack("<4I3Q2H2I", 2, 1, 1, 3, 9, 9, 77, 0, 2, 1, 0) + bytes(range(64))
    out = decode(payload, (8, 8, 16))
    assert not out[:, :, :8].any()
    assert (out[:, :, 8:] == 9).all()
    label_check(payload, (8, 8, 16))


def test_blocks_written_by_dvid(shared_data):
    folder = shared_data / "label-blocks"
    raw = gzip.decompress((folder / "fib19-64x64x64-sample1.dat.gz").read_bytes())
    volume = np.frombuffer(raw, "<u8").reshape(64, 64, 64)
    block = gzip.decompress((folder / "fib19-64x64x64-sample1-block.dat.gz").read_bytes())
    assert (decode(block, volume.shape) == volume).all()
    assert label_encode(volume) == block

    stream = (folder / "stream_1block.dat").read_bytes()
    *corner, size = struct.unpack("<4i", stream[:16])
    assert corner == [0, 0, 0]
    block = gzip.decompress(stream[16 : 16 + size])
    volume = decode(block, (64, 64, 64))
    assert (volume == label_decode_reference(block, (64, 64, 64))).all()
    again = label_encode(volume)
    assert len(again) == len(block) == 152_672
    assert (decode(again, volume.shape) == volume).all()

    raw = gzip.decompress((folder / "cx-64x64x64-sample1.dat.gz").read_bytes())
    volume = np.frombuffer(raw, "<u8").reshape(64, 64, 64)
    payload = label_encode(volume)
    assert len(payload) == 26_396
    assert (decode(payload, volume.shape) == volume).all()


def test_a_real_segmentation(shared_data):
    with open(shared_data / "connectomics-labels-256x512x512.npy.zst", "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        volume = np.load(io.BytesIO(reader.read()))[64:128, 128:384, 128:384].astype(U64)
    out = np.zeros_like(volume)
    for y, x in np.ndindex(4, 4):
        window = np.s_[:, 64 * y : 64 * y + 64, 64 * x : 64 * x + 64]
        label_decode(label_encode(volume[window]), out[window], (0, 0, 0), (64, 64, 64))
    assert (out == volume).all()


# --- what is not a label block -------------------------------------------------------------------

SHAPE = (16, 16, 16)


def small_block() -> tuple[np.ndarray, bytes]:
    """Return a block of 16^3 with sub-blocks of 1, 2, 3, 5 and 300 labels."""
    volume = np.zeros(SHAPE, U64)
    for place, labels in zip(np.ndindex(2, 2, 2), [1, 2, 3, 300, 5, 1, 9, 3], strict=True):
        z, y, x = (8 * side for side in place)
        volume[z : z + 8, y : y + 8, x : x + 8] = crowded(labels, labels) + U64(labels % 4)
    return volume, label_encode(volume)


def judge(payload: bytes, shape=SHAPE) -> bool:
    """Assert that kernel and reference agree on a payload; return whether it is a block."""
    out = np.zeros(shape, U64)
    try:
        wanted = label_decode_reference(payload, shape)
    except ValueError:
        with pytest.raises(CorruptError, match="label block: "):
            label_decode(payload, out, (0, 0, 0), shape)
        with pytest.raises(CorruptError, match="label block: "):
            label_check(payload, shape)
        return False
    label_decode(payload, out, (0, 0, 0), shape)
    assert (out == wanted).all()
    label_check(payload, shape)
    return True


def with_field(payload: bytes, offset: int, form: str, value: int) -> bytes:
    changed = bytearray(payload)
    struct.pack_into("<" + form, changed, offset, value)
    return bytes(changed)


def test_every_truncation_is_corrupt():
    _, payload = small_block()
    for size in range(len(payload)):
        with pytest.raises(CorruptError):
            label_check(payload[:size], SHAPE)


@pytest.mark.parametrize("extra", [1, 2, 8, 64, 4096])
def test_trailing_bytes_are_corrupt(extra):
    solid = label_encode(np.ones(SHAPE, U64))
    for payload in (small_block()[1], solid):
        assert judge(payload)
        assert not judge(payload + bytes(extra))
    assert not judge(solid[:-1])
    assert not judge(b"")


@pytest.mark.parametrize("field", range(3))
@pytest.mark.parametrize("value", [0, 1, 3, 4, 2**29, 2**31, 2**32 - 1])
def test_a_lie_about_the_grid_is_corrupt(field, value):
    with pytest.raises(CorruptError, match=f"along {'xyz'[field]}: got {value}, want 2"):
        label_check(with_field(small_block()[1], 4 * field, "I", value), SHAPE)


def test_a_block_of_another_shape_is_corrupt():
    payload = label_encode(patchwork((8, 16, 32), 5, 0))
    assert judge(payload, (8, 16, 32))
    for shape in [(32, 16, 8), (16, 8, 32), (8, 32, 16), (16, 16, 16), (64, 64, 64)]:
        assert not judge(payload, shape)


def test_a_lie_about_the_table_is_corrupt():
    _, payload = small_block()
    labels = struct.unpack_from("<I", payload, 12)[0]
    for value in [0, 1, 2, labels - 1, labels + 1, 4096, 4097, 2**29, 2**31, 2**32 - 1]:
        assert not judge(with_field(payload, 12, "I", value))


def test_a_lie_about_a_count_is_corrupt():
    _, payload = small_block()
    counts = 16 + 8 * struct.unpack_from("<I", payload, 12)[0]
    for block in range(8):
        true = struct.unpack_from("<H", payload, counts + 2 * block)[0]
        for value in {0, 1, true - 1, true + 1, 2, 4, 512, 513, 1024, 1025, 65535} - {true}:
            assert not judge(with_field(payload, counts + 2 * block, "H", value))


def test_counts_over_512_are_corrupt_whatever_the_length():
    # The length is what a count of 513 would imply with 9 and with 10 bits.
    for bits in (0, 9, 10):
        payload = struct.pack("<4I2QH513I", 1, 1, 1, 2, 5, 6, 513, *[0] * 513)
        assert not judge(payload + bytes(64 * bits), (8, 8, 8))


def test_a_lie_about_an_index_is_corrupt():
    _, payload = small_block()
    labels = struct.unpack_from("<I", payload, 12)[0]
    counts = 16 + 8 * labels
    total = sum(struct.unpack_from("<8H", payload, counts))
    for index in range(total):
        for value in (labels, 2**31, 2**32 - 1):
            with pytest.raises(CorruptError, match="index into the label table"):
                label_check(with_field(payload, counts + 16 + 4 * index, "I", value), SHAPE)


@pytest.mark.parametrize("labels", [3, 5, 9, 17, 33, 65, 129, 257, 511])
@pytest.mark.parametrize("voxel", [0, 1, 7, 8, 300, 511])
def test_a_value_past_its_list_is_corrupt(labels, voxel):
    payload = bytearray(label_encode(crowded(labels)))
    bits = (labels - 1).bit_length()
    size = 64 * bits
    packed = int.from_bytes(payload[-size:], "big")
    shift = bits * (511 - voxel)
    for value, good in ((labels - 1, True), (labels, False), ((1 << bits) - 1, False)):
        changed = packed & ~(((1 << bits) - 1) << shift) | value << shift
        payload[-size:] = changed.to_bytes(size, "big")
        assert judge(bytes(payload), (8, 8, 8)) == good


def test_a_window_checks_what_it_needs_and_all_lengths():
    volume, payload = small_block()
    counts = 16 + 8 * struct.unpack_from("<I", payload, 12)[0]
    total = sum(struct.unpack_from("<8H", payload, counts))
    out = np.full((1, 1, 1), 3, U64)
    for bad in (
        with_field(payload, counts + 16, "I", 2**20),
        with_field(payload, counts + 14, "H", 2),
        payload[:-1],
        payload + b"\0",
    ):
        with pytest.raises(CorruptError):
            label_decode(bad, out, (0, 0, 0), SHAPE)
        assert out[0, 0, 0] == 3
    # Indices and values of sub-blocks that the window does not touch are not read.
    for bad in (
        with_field(payload, counts + 16 + 4 * (total - 1), "I", 2**20),
        payload[:-1] + b"\xff",
    ):
        label_decode(bad, out, (0, 0, 0), SHAPE)
        assert out[0, 0, 0] == volume[0, 0, 0]
        with pytest.raises(CorruptError):
            label_decode(bad, out, (15, 15, 15), SHAPE)
        with pytest.raises(CorruptError):
            label_check(bad, SHAPE)


def test_random_damage_is_corrupt_or_what_the_reference_reads():
    rng = np.random.default_rng(2024)
    volume = patchwork(SHAPE, 6, 11, 5)
    volume[8:, :8, :8] = crowded(40)
    samples = [label_encode(volume), small_block()[1], label_encode(crowded(3))]
    shapes = [SHAPE, SHAPE, (8, 8, 8)]
    judged = {True: 0, False: 0}
    for turn in range(5_400):
        which = turn % 3
        payload = bytearray(samples[which])
        # Two thirds of the damage goes where it lies about the structure.
        end = len(payload) if turn % 9 < 3 else min(len(payload), 400)
        for place in rng.integers(0, end, rng.integers(1, 4)):
            payload[place] ^= 1 << int(rng.integers(0, 8))
        judged[judge(bytes(payload), shapes[which])] += 1
    assert min(judged.values()) > 500


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=4)),
    st.binary(max_size=200),
)
def test_any_bytes_after_a_plausible_header(head, tail):
    labels, count, indices = head
    payload = struct.pack(f"<4I{labels}QH", 1, 1, 1, labels, *range(labels), count)
    judge(payload + struct.pack(f"<{len(indices)}I", *indices) + tail, (8, 8, 8))
    judge(tail, (8, 8, 8))


# --- wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        None,
        "labels",
        b"12345678",
        7,
        np.zeros((8, 8), U64),
        np.zeros((8, 8, 8, 8), U64),
        np.zeros((8, 8, 8), np.int64),
        np.zeros((8, 8, 8), np.float64),
        np.zeros((8, 8, 8), np.uint32),
        np.zeros((8, 8, 8), ">u8"),
        np.zeros((8, 8, 12), U64),
        np.zeros((0, 8, 8), U64),
        np.zeros((8, 4, 8), U64),
        np.broadcast_to(U64(1), (8, 1032, 8)),
    ],
)
def test_encode_refuses_what_is_not_a_block(source):
    with pytest.raises(InvalidError, match="label_encode"):
        label_encode(source)


@pytest.mark.parametrize(
    ("out", "start", "shape"),
    [
        (None, (0, 0, 0), SHAPE),
        (bytearray(8), (0, 0, 0), SHAPE),
        (np.broadcast_to(U64(1), SHAPE), (0, 0, 0), SHAPE),
        (np.zeros(SHAPE, np.int64), (0, 0, 0), SHAPE),
        (np.zeros((4, 4), U64), (0, 0, 0), SHAPE),
        (np.zeros(SHAPE, U64), (0, 0, 1), SHAPE),
        (np.zeros((1, 1, 1), U64), (0, -1, 0), SHAPE),
        (np.zeros((1, 1, 1), U64), (16, 0, 0), SHAPE),
        (np.zeros((1, 1, 1), U64), (2**63 - 1, 0, 0), SHAPE),
        (np.zeros((1, 1, 1), U64), (2**64, 0, 0), SHAPE),
        (np.zeros((1, 1, 1), U64), (0, 0), SHAPE),
        (np.zeros((1, 1, 1), U64), (0.5, 0, 0), SHAPE),
        (np.zeros((1, 1, 1), U64), None, SHAPE),
        (np.zeros((1, 1, 1), U64), (0, 0, 0), (16, 16)),
        (np.zeros((1, 1, 1), U64), (0, 0, 0), (16, 16, 12)),
        (np.zeros((1, 1, 1), U64), (0, 0, 0), (16, 16, 0)),
        (np.zeros((1, 1, 1), U64), (0, 0, 0), (16, 16, 1032)),
    ],
)
def test_decode_refuses_windows_that_are_not(out, start, shape):
    with pytest.raises(InvalidError, match="label_decode"):
        label_decode(small_block()[1], out, start, shape)


@pytest.mark.parametrize("payload", [None, "text", 5, memoryview(bytes(100))[::2]])
def test_payloads_must_be_contiguous_buffers(payload):
    with pytest.raises(InvalidError, match="payload"):
        label_decode(payload, np.zeros(SHAPE, U64), (0, 0, 0), SHAPE)
    with pytest.raises(InvalidError, match="payload"):
        label_check(payload, SHAPE)


def test_an_empty_window_still_checks_the_block():
    _, payload = small_block()
    out = np.zeros((0, 16, 16), U64)
    label_decode(payload, out, (16, 0, 0), SHAPE)
    with pytest.raises(CorruptError):
        label_decode(payload[:-1], out, (16, 0, 0), SHAPE)


# --- blocks in compressed sections ---------------------------------------------------------------

LZ4 = library.load("wheel", "lz4", "block", "_block", ("liblz4.so.1",))
UNPACK = (library.address(LZ4, "LZ4_decompress_safe"), 0, 0)
PACK = (library.address(LZ4, "LZ4_compress_fast"), 0, 0)


def packed_codec(shape, name="label+lz4"):
    return codecs.get_codec(name, U64, shape)


@pytest.mark.parametrize("labels", [1, 2, 40, 256, 257, 600, 65536, 65537])
@pytest.mark.parametrize("shape", [(8, 8, 8), (24, 16, 32), (64, 32, 48)])
def test_sections_are_those_of_the_reference(shape, labels):
    size = int(np.prod(shape))
    volume = (np.arange(size, dtype=U64) % U64(labels) * U64(2**40 + 1)).reshape(shape)
    volume[: shape[0] // 2] //= U64(3)
    length, sections = label_sections(volume)
    assert (length, sections) == packed_label_reference(volume)
    payload = packed_codec(shape).encode(volume)
    assert payload == packed_encode(volume, PACK, 1)
    out = np.zeros_like(volume)
    packed_decode(payload, out, (0, 0, 0), shape, UNPACK, stream=True)
    assert (out == volume).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_packed_windows_are_those_of_the_volume(data):
    volume = data.draw(volumes())
    shape = volume.shape
    codec = packed_codec(shape, data.draw(st.sampled_from(["label+lz4", "label+zstd"])))
    payload = codec.encode(data.draw(layouts(volume)))
    start = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    stop = tuple(data.draw(st.integers(low, side)) for low, side in zip(start, shape, strict=True))
    part = volume[tuple(slice(*pair) for pair in zip(start, stop, strict=True))]
    out = data.draw(layouts(~part))
    codec.decode(payload, out, start)
    assert (out == part).all()
    if codec.id == 9:
        out[:] = ~part
        packed_decode(payload, out, start, shape, UNPACK)
        assert (out == part).all()


def judge_packed(payload: bytes, shape) -> bool:
    """Assert that both decoders and the reference agree on a payload; return whether it is one."""
    out, other = np.zeros(shape, U64), np.zeros(shape, U64)
    codec = packed_codec(shape)
    try:
        wanted = packed_label_unpack_reference(payload, shape)
    except ValueError:
        with pytest.raises(CorruptError):
            packed_decode(payload, out, (0, 0, 0), shape, UNPACK)
        with pytest.raises(CorruptError):
            codec.decode(payload, other, (0, 0, 0))
        return False
    packed_decode(payload, out, (0, 0, 0), shape, UNPACK)
    codec.decode(payload, other, (0, 0, 0))
    assert (out == wanted).all()
    assert (other == wanted).all()
    return True


def test_damaged_packed_blocks_are_corrupt_or_what_the_reference_reads():
    rng = np.random.default_rng(77)
    volume, _ = small_block()
    sample = packed_codec(SHAPE).encode(volume)
    assert judge_packed(sample, SHAPE)
    assert not judge_packed(sample + b"\0", SHAPE)
    for size in range(0, len(sample), 7):
        assert not judge_packed(sample[:size], SHAPE)
    judged = {True: 0, False: 0}
    for turn in range(2_000):
        payload = bytearray(sample)
        end = len(payload) if turn % 2 else 90
        for place in rng.integers(0, end, rng.integers(1, 3)):
            payload[place] ^= 1 << int(rng.integers(0, 8))
        judged[judge_packed(bytes(payload), SHAPE)] += 1
    assert min(judged.values()) > 100


def test_sections_that_lie_are_corrupt():
    volume, _ = small_block()
    length, (head, *layers) = label_sections(volume)
    out = np.zeros(SHAPE, U64)

    def read(head=head, length=length, cut=0):
        whole = lambda layer, size: layers[layer][: len(layers[layer]) - cut]  # noqa: E731
        sections_decode(head, length, whole, out, (0, 0, 0), SHAPE)

    read()
    assert (out == volume).all()
    rng = np.random.default_rng(5)
    bad = 0
    for place in range(len(head)):
        changed = bytearray(head)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        try:
            read(bytes(changed))
        except CorruptError:
            bad += 1
    assert bad > 50
    for wrong in (
        {"cut": 1},
        {"length": length + 1},
        {"length": 24},
        {"head": head[:-1]},
        {"head": head + b"\0"},
        {"head": b""},
    ):
        with pytest.raises(CorruptError):
            read(**wrong)


def test_a_window_unpacks_only_the_layers_it_touches():
    volume = patchwork((64, 16, 16), 30, 4, 3)
    length, (head, *layers) = label_sections(volume)
    touched = []

    def unpack(layer, size):
        touched.append(layer)
        assert size == len(layers[layer])
        return layers[layer]

    out = np.zeros((10, 3, 1), U64)
    sections_decode(head, length, unpack, out, (21, 4, 15), volume.shape)
    assert (out == volume[21:31, 4:7, 15:]).all()
    assert touched == [2, 3]


# --- many random executions ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["label", "packed"])
def test_no_damage_reads_or_writes_outside(form):
    # What matters is that nothing but CorruptError happens, in a checked build above all: damage
    # of any kind, windows of any place, in a buffer whose surroundings must not change.
    rng = np.random.default_rng(4242)
    _, plain = small_block()
    solid = label_encode(np.full(SHAPE, 9, U64))
    crowd = label_encode(np.pad(crowded(512), ((0, 8), (0, 8), (8, 0))))
    samples = [plain, solid, crowd]
    if form == "packed":
        samples = [packed_codec(SHAPE).encode(decode(each, SHAPE)) for each in samples]
    room = np.full((20, 20, 20), 3, U64)
    corrupt = 0
    for turn in range(25_000):
        payload = bytearray(samples[turn % 3])
        kind = turn % 5
        if kind == 0:
            del payload[int(rng.integers(0, len(payload))) :]
        elif kind == 1:
            payload += bytes(int(rng.integers(1, 600)))
        else:
            end = len(payload) if kind == 2 else min(len(payload), 300)
            for place in rng.integers(0, end, 1 + turn % 4):
                payload[place] = int(rng.integers(0, 256))
        a, b = np.sort(rng.integers(0, 17, (2, 3)), axis=0)
        window = room[tuple(slice(2 + x, 2 + y) for x, y in zip(a, b, strict=True))]
        try:
            if form == "label":
                label_decode(bytes(payload), window, a, SHAPE, stream=bool(turn & 1))
            else:
                packed_decode(bytes(payload), window, a, SHAPE, UNPACK, stream=bool(turn & 1))
        except CorruptError:
            corrupt += 1
    assert corrupt > 5_000
    room[2:18, 2:18, 2:18] = 3
    assert (room == 3).all()
