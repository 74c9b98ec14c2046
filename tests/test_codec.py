"""Codecs: every name there and back, windows, damage, and codecs of other packages."""

from __future__ import annotations

import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diced import _crc32c, registry
from diced import codec as codecs
from diced.errors import CorruptError, InvalidError, UnsupportedError

PLAIN = ["raw", "lz4", "zstd", "zstd:7", "gzip", "gzip:6"]
LABEL = ["label", "label+lz4", "label+zstd", "label+zstd:3"]
IDS = {
    "raw": 0,
    "lz4": 1,
    "zstd": 2,
    "gzip": 3,
    "jpeg": 4,
    "label": 8,
    "label+lz4": 9,
    "label+zstd": 10,
}
DTYPES = ["u1", "i2", "u4", "f2", "f4", "f8", "u8", "?", "c8"]


def noise(shape, dtype="u1", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return (values > 100) if dtype == "?" else values.astype(dtype)


def labels(shape=(16, 24, 32), seed=0):
    small = np.random.default_rng(seed).integers(0, 2**50, [side // 4 for side in shape], np.uint64)
    return small.repeat(4, 0).repeat(4, 1).repeat(4, 2)


def whole(codec, payload):
    shape = codec.block_shape + (() if codec.channels is None else (codec.channels,))
    out = np.empty(shape, codec.dtype)
    codec.decode(payload, out, (0,) * len(codec.block_shape))
    return out


@st.composite
def cases(draw):
    """A codec, a block, and a window of it with odd strides."""
    spec = draw(st.sampled_from(PLAIN + LABEL))
    if spec in LABEL:
        shape = tuple(draw(st.sampled_from([8, 16, 24])) for _ in range(3))
        channels, dtype, block = None, np.dtype("u8"), labels(shape, draw(st.integers(0, 99)))
    else:
        shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=8)))[:5]
        channels = draw(st.sampled_from([None, 1, 3]))
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        full = shape if channels is None else (*shape, channels)
        block = noise(full, dtype.str, draw(st.integers(0, 99)))
    start = [draw(st.integers(0, side - 1)) for side in shape]
    stop = [draw(st.integers(low, side)) for low, side in zip(start, shape, strict=True)]
    steps = [draw(st.sampled_from([1, 1, -1, 2])) for _ in shape]
    return spec, shape, channels, block, start, stop, steps


class TestRoundTrip:
    @given(cases())
    def test_windows(self, case):
        spec, shape, channels, block, start, stop, steps = case
        codec = codecs.get_codec(spec, block.dtype, shape, channels)
        payload = codec.encode(block)
        assert isinstance(payload, bytes)
        assert np.array_equal(whole(codec, payload), block)
        window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        wanted = block[window]
        sizes = [side * abs(step) for side, step in zip(wanted.shape, steps, strict=False)]
        room = np.zeros(sizes + list(wanted.shape[len(sizes) :]), block.dtype)
        out = room[tuple(slice(None, None, step) for step in steps)]
        codec.decode(payload, out, tuple(start))
        assert np.array_equal(out, wanted)
        out[...] = 0
        assert not room.any()  # nothing between the strides was written

    @pytest.mark.parametrize("spec", PLAIN + LABEL)
    def test_strided_sources_give_the_same_bytes(self, spec):
        block = labels() if spec in LABEL else noise((9, 8, 7), "u2")
        codec = codecs.get_codec(spec, block.dtype, block.shape)
        payload = codec.encode(block)
        for odd in (np.asfortranarray(block), block[::-1, :, ::-1].copy()[::-1, :, ::-1]):
            assert codec.encode(odd) == payload

    @pytest.mark.parametrize("spec", PLAIN + LABEL)
    def test_payload_in_any_buffer(self, spec):
        block = labels() if spec in LABEL else noise((9, 8, 7), "u2")
        codec = codecs.get_codec(spec, block.dtype, block.shape)
        payload = codec.encode(block)
        for buffer in (bytearray(payload), memoryview(b"x" + payload + b"y")[1:-1]):
            assert np.array_equal(whole(codec, buffer), block)

    @pytest.mark.parametrize("spec", LABEL)
    def test_stream_is_only_a_hint(self, spec):
        block = labels()
        codec = codecs.get_codec(spec, np.uint64, block.shape)
        out = np.zeros_like(block)
        codec.decode(codec.encode(block), out, (0, 0, 0), stream=True)
        assert np.array_equal(out, block)

    def test_threads_decode_at_once(self):
        blocks = [noise((32, 32, 32), "u2", seed) for seed in range(4)]
        codec = codecs.get_codec("zstd", np.uint16, (32, 32, 32))
        payloads = [codec.encode(block) for block in blocks]
        failures = []

        def work(number):
            for _ in range(20):
                out = np.empty((20, 32, 30), np.uint16)
                codec.decode(payloads[number], out, (5, 0, 1))
                if not np.array_equal(out, blocks[number][5:25, :, 1:31]):
                    failures.append(number)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


class TestJpeg:
    def smooth(self, shape):
        axes = np.indices(shape[:3])
        wave = 127 + 100 * np.sin(axes.sum(0) / 9)
        if len(shape) == 4:
            wave = np.stack([wave, 255 - wave, wave / 2], -1)[..., : shape[3]]
        return wave.astype(np.uint8)

    @pytest.mark.parametrize("channels", [None, 1, 3])
    @pytest.mark.parametrize("shape", [(16, 24, 32), (1, 40, 30)])
    def test_close(self, shape, channels):
        block = self.smooth(shape if channels is None else (*shape, channels))
        codec = codecs.get_codec("jpeg:95", np.uint8, shape, channels)
        assert codec.lossy
        payload = codec.encode(block)
        assert len(payload) < block.nbytes
        assert np.abs(whole(codec, payload).astype(int) - block).max() < 24
        out = np.zeros((1, 9, 7, *block.shape[3:]), np.uint8)
        codec.decode(payload, out, (0, 3, 5))
        assert np.array_equal(out, whole(codec, payload)[:1, 3:12, 5:12])

    def test_two_dimensions_and_strides(self):
        block = self.smooth((1, 64, 48))[0]
        codec = codecs.get_codec("jpeg", np.uint8, (64, 48))
        assert codec.encode(np.asfortranarray(block)) == codec.encode(block)
        better = codecs.get_codec("jpeg:100", np.uint8, (64, 48))
        assert len(better.encode(block)) > len(codec.encode(block))

    @pytest.mark.parametrize(
        "dtype, shape, channels",
        [("u2", (8, 8), None), ("u1", (64,), None), ("u1", (8, 8), 2), ("u1", (1100, 64, 8), None)],
    )
    def test_unsuited(self, dtype, shape, channels):
        with pytest.raises(InvalidError, match="jpeg"):
            codecs.get_codec("jpeg", dtype, shape, channels)

    def test_damage(self):
        codec = codecs.get_codec("jpeg", np.uint8, (8, 16, 16))
        payload = codec.encode(self.smooth((8, 16, 16)))
        other = codecs.get_codec("jpeg", np.uint8, (8, 16, 24)).encode(self.smooth((8, 16, 24)))
        colour = codecs.get_codec("jpeg", np.uint8, (8, 16, 16), 3)
        for damaged in (b"", payload[:20], payload[:-30], b"x" + payload, other):
            with pytest.raises(CorruptError, match="jpeg"):
                whole(codec, damaged)
        with pytest.raises(CorruptError, match="jpeg"):
            whole(colour, payload)

    def test_header_that_claims_a_huge_image(self):
        codec = codecs.get_codec("jpeg", np.uint8, (8, 16, 16))
        payload = bytearray(codec.encode(self.smooth((8, 16, 16))))
        at = payload.index(b"\xff\xc0") + 5
        payload[at : at + 4] = b"\xff\xdc\xff\xdc"
        with pytest.raises(CorruptError):
            whole(codec, bytes(payload))

    def test_without_pillow(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(UnsupportedError, match=r"diced\[images\]"):
            codecs.get_codec("jpeg:33", np.uint8, (8, 8, 9))


class TestNames:
    @pytest.mark.parametrize(
        "given, full",
        [
            ("raw", "raw"),
            ("lz4", "lz4"),
            ("zstd", "zstd:1"),
            ("zstd:22", "zstd:22"),
            ("gzip", "gzip:1"),
            ("jpeg", "jpeg:80"),
        ],
    )
    def test_full_name(self, given, full):
        codec = codecs.get_codec(given, np.uint8, (8, 8, 8))
        assert codec.spec == full
        assert codecs.get_codec(full, np.uint8, (8, 8, 8)).spec == full
        assert codec.id == IDS[given.partition(":")[0]]
        assert codec.lossy == (codec.id == 4)

    @pytest.mark.parametrize(
        "given, full",
        [("label", "label"), ("label+lz4", "label+lz4"), ("label+zstd", "label+zstd:1")],
    )
    def test_full_label_name(self, given, full):
        codec = codecs.get_codec(given, np.uint64, (64, 64, 64))
        assert (codec.spec, codec.id, codec.lossy) == (full, IDS[given], False)

    @pytest.mark.parametrize(
        "spec, match",
        [
            ("zsdt", "did you mean 'zstd'"),
            ("", "unknown codec"),
            ("zstd:0", "1 to 22"),
            ("zstd:23", "1 to 22"),
            ("zstd:", "1 to 22"),
            ("zstd:x", "1 to 22"),
            ("zstd:²", "1 to 22"),
            ("gzip:10", "1 to 9"),
            ("jpeg:101", "1 to 100"),
            ("lz4:3", "no argument"),
            ("raw:", "no argument"),
            (7, "str"),
        ],
    )
    def test_wrong_name(self, spec, match):
        with pytest.raises(InvalidError, match=match):
            codecs.get_codec(spec, np.uint8, (8, 8, 8))

    @pytest.mark.parametrize(
        "dtype, shape, channels",
        [
            ("u4", (8, 8, 8), None),
            ("u8", (8, 8), None),
            ("u8", (8, 8, 12), None),
            ("u8", (8, 8, 8), 1),
            ("u8", (8, 8, 1032), None),
        ],
    )
    @pytest.mark.parametrize("spec", LABEL)
    def test_unsuited_to_labels(self, spec, dtype, shape, channels):
        with pytest.raises(InvalidError, match="label"):
            codecs.get_codec(spec, dtype, shape, channels)

    @pytest.mark.parametrize(
        "dtype, shape, channels",
        [
            ("O", (8,), None),
            ("V65", (8,), None),
            (np.dtype("u2").newbyteorder(), (8,), None),
            ("u1", (), None),
            ("u1", (1,) * 9, None),
            ("u1", (8, 0), None),
            ("u1", (8,), 0),
        ],
    )
    def test_unsuited_blocks(self, dtype, shape, channels):
        with pytest.raises(InvalidError):
            codecs.get_codec("lz4", dtype, shape, channels)

    def test_block_nbytes(self):
        assert codecs.block_nbytes("u2", (4, 5), 3) == 120
        assert codecs.block_nbytes(np.uint64, (64, 64, 64)) == 2 << 20


class TestArguments:
    @pytest.mark.parametrize(
        "shape, dtype, start",
        [
            ((3, 4, 5), "u2", (6, 0, 0)),
            ((3, 4, 5), "u2", (0, 0, -1)),
            ((9, 4, 5), "u2", (0, 0, 0)),
            ((3, 4), "u2", (0, 0)),
            ((3, 4, 5), "u2", (0, 0)),
            ((3, 4, 5), "i2", (0, 0, 0)),
        ],
    )
    @pytest.mark.parametrize("spec", PLAIN)
    def test_window_outside(self, spec, shape, dtype, start):
        codec = codecs.get_codec(spec, np.uint16, (8, 8, 8))
        payload = codec.encode(np.zeros((8, 8, 8), np.uint16))
        with pytest.raises(InvalidError, match="window"):
            codec.decode(payload, np.zeros(shape, dtype), start)

    def test_all_channels_are_decoded(self):
        codec = codecs.get_codec("lz4", np.uint8, (8, 8), 3)
        payload = codec.encode(noise((8, 8, 3)))
        with pytest.raises(InvalidError, match="window"):
            codec.decode(payload, np.zeros((4, 4, 2), np.uint8), (0, 0))

    @pytest.mark.parametrize("spec", PLAIN)
    def test_only_full_blocks_are_encoded(self, spec):
        codec = codecs.get_codec(spec, np.uint8, (8, 8, 8))
        for wrong in (np.zeros((8, 8, 7), "u1"), np.zeros((8, 8, 8), "i1"), np.zeros(512, "u1")):
            with pytest.raises(InvalidError, match="encodes"):
                codec.encode(wrong)

    @pytest.mark.parametrize("spec", PLAIN)
    def test_read_only_out(self, spec):
        codec = codecs.get_codec(spec, np.uint8, (8,))
        out = np.zeros(8, np.uint8)
        out.flags.writeable = False
        with pytest.raises(InvalidError, match="writable"):
            codec.decode(codec.encode(noise(8)), out, (0,))


class TestDamage:
    @pytest.mark.parametrize("window", [False, True])
    @pytest.mark.parametrize("spec", PLAIN + LABEL)
    def test_cut_and_extended(self, spec, window):
        block = labels() if spec in LABEL else noise((9, 8, 7), "u2")
        codec = codecs.get_codec(spec, block.dtype, block.shape)
        payload = codec.encode(block)
        out = np.zeros([4, 4, 4] if window else block.shape, block.dtype)
        cuts = [payload[:size] for size in (0, 1, 3, 4, 5, len(payload) // 2, len(payload) - 1)]
        for damaged in [*cuts, payload + b"\x11", payload + payload]:
            with pytest.raises(CorruptError):
                codec.decode(damaged, out, (0, 0, 0))
        codec.decode(payload, out, (0, 0, 0))
        assert np.array_equal(out, block[: out.shape[0], : out.shape[1], : out.shape[2]])

    @pytest.mark.parametrize("spec", PLAIN + LABEL)
    def test_flipped_bits_stay_inside(self, spec):
        block = labels((8, 8, 16)) if spec in LABEL else noise((9, 8, 7), "u2")
        codec = codecs.get_codec(spec, block.dtype, block.shape)
        payload = codec.encode(block)
        rng = np.random.default_rng(1)
        room = np.full((block.shape[0] + 2, *block.shape[1:]), 77, block.dtype)
        changed = 0
        for _ in range(200):
            damaged = bytearray(payload)
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
            try:
                codec.decode(bytes(damaged), room[1:-1], (0, 0, 0))
                changed += not np.array_equal(room[1:-1], block)
            except CorruptError:
                changed += 1
            assert (room[0] == 77).all()
            assert (room[-1] == 77).all()
        assert changed > 50

    def test_bombs(self):
        codec = codecs.get_codec("gzip", np.uint8, (64,))
        bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
        data = bomb.compress(bytes(1 << 24)) + bomb.flush()
        with pytest.raises(CorruptError):
            whole(codec, data)
        for name in ("label+lz4", "label+zstd"):
            codec = codecs.get_codec(name, np.uint64, (8, 8, 8))
            with pytest.raises(CorruptError, match="possible"):
                whole(codec, b"\xff\xff\xff\xff" + bytes(30))

    def test_worst_label_block_fits_the_bound(self):
        block = np.arange(64**3, dtype=np.uint64).reshape(64, 64, 64)
        for name in ("label+lz4", "label+zstd"):
            codec = codecs.get_codec(name, np.uint64, block.shape)
            payload = codec.encode(block)
            assert int.from_bytes(payload[:4], "little") == 3441680
            assert np.array_equal(whole(codec, payload), block)


class TestDecoder:
    @pytest.mark.parametrize("name", [name for name in IDS if name != "jpeg"])
    def test_by_number_whatever_the_array_says(self, name):
        block = labels()
        payload = codecs.get_codec(name, np.uint64, block.shape).encode(block)
        codec = codecs.decoder(IDS[name], "no such codec", np.uint64, block.shape)
        assert codec is codecs.decoder(IDS[name], "raw", np.uint64, list(block.shape))
        assert np.array_equal(whole(codec, payload), block)

    @pytest.mark.parametrize("number", [5, 7, 11, 254, -1])
    def test_unknown_number(self, number):
        with pytest.raises(UnsupportedError, match=str(number)):
            codecs.decoder(number, "raw", np.uint8, (8,))

    def test_registered_frame_of_an_ordinary_array(self):
        with pytest.raises(UnsupportedError, match="registered"):
            codecs.decoder(255, "lz4", np.uint8, (8,))


class Inverted:
    """What another package might register: items with all bits turned, plus a constant."""

    lossy = False

    def __init__(self, argument, dtype, block_shape, channels):
        self.made_with = (argument, dtype, block_shape, channels)

    def encode(self, src):
        return (~src).tobytes()

    def decode(self, payload, out, start):
        dtype, shape = self.made_with[1:3]
        block = ~np.frombuffer(payload, dtype).reshape(shape)
        window = tuple(slice(a, a + b) for a, b in zip(start, out.shape, strict=True))
        out[...] = block[window]


class TestRegistered:
    @pytest.fixture
    def name(self):
        registry.register("codec", "inverted-for-test", Inverted, replace=True)
        return "inverted-for-test"

    def test_there_and_back(self, name):
        block = noise((6, 7), "u2")
        codec = codecs.get_codec(f"{name}:fast:er", "u2", (6, 7))
        assert (codec.spec, codec.id, codec.lossy) == (f"{name}:fast:er", 255, False)
        payload = codec.encode(block)
        assert payload == (~block).tobytes()
        out = np.zeros((3, 2), np.uint16)
        codecs.decoder(255, codec.spec, "u2", (6, 7)).decode(payload, out, (1, 4))
        assert np.array_equal(out, block[1:4, 4:6])

    def test_arguments_are_checked_for_it(self, name):
        codec = codecs.get_codec(name, "u2", (6, 7))
        with pytest.raises(InvalidError):
            codec.decode(b"", np.zeros((7, 7), np.uint16), (0, 0))
        with pytest.raises(InvalidError):
            codec.encode(np.zeros((6, 6), np.uint16))

    def test_named_in_messages(self, name):
        with pytest.raises(InvalidError, match=name):
            codecs.get_codec("inverted-for-tset", "u2", (6, 7))


def test_backend_is_told():
    told = codecs.backend()
    assert set(told) == {"lz4", "zstd", "crc32c"}
    assert told["crc32c"] == _crc32c.crc32c_paths()[0]
