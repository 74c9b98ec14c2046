"""CRC-32C on every path, and LZ4 and Zstandard from every source."""

from __future__ import annotations

import contextlib
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import crc32c_reference

from diced import _compress, _crc32c
from diced.errors import CorruptError, InvalidError, UnsupportedError

PATHS = _crc32c.crc32c_paths()
GUARD = b"\xa5" * 64


class TestCrc32c:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize(
        "data, value",
        [
            (b"", 0),
            (b"123456789", 0xE3069283),
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
        ],
    )
    def test_known_values(self, path, data, value):
        assert _crc32c.crc32c(data, 0, path) == value

    def test_paths_agree_at_all_lengths_and_offsets(self):
        data = np.random.default_rng(3).integers(0, 256, 320, np.uint8).tobytes()
        for length in range(301):
            for offset in (0, 1, 3, 7) if length % 50 else range(17):
                part = memoryview(data)[offset : offset + length]
                values = {_crc32c.crc32c(part, 5, path) for path in _crc32c.crc32c_paths()}
                assert values == {crc32c_reference(bytes(part), 5)}

    @pytest.mark.parametrize("size", [767, 768, 769, 12287, 12288, 13057, 40000, 262144])
    def test_paths_agree_on_long_data(self, size):
        data = np.random.default_rng(size).integers(0, 256, size + 1, np.uint8)[1:]
        values = {_crc32c.crc32c(data, 0, path) for path in _crc32c.crc32c_paths()}
        assert len(values) == 1
        if size < 20000:
            assert values == {crc32c_reference(data.tobytes())}

    @given(st.binary(max_size=3000), st.integers(0, 3000), st.sampled_from(_crc32c.crc32c_paths()))
    def test_continues(self, data, cut, path):
        first = _crc32c.crc32c(data[:cut], 0, path)
        assert _crc32c.crc32c(data[cut:], first, path) == _crc32c.crc32c(data)

    def test_arrays(self):
        array = np.arange(600, dtype=np.float16).reshape(20, 30)
        assert _crc32c.crc32c(array) == _crc32c.crc32c(array.tobytes())

    def test_refuses(self):
        with pytest.raises(InvalidError, match="contiguous"):
            _crc32c.crc32c(np.zeros((4, 4))[:, ::2])
        with pytest.raises(InvalidError, match="path"):
            _crc32c.crc32c(b"", 0, "magic")


def available() -> list[str]:
    found = []
    for source in _compress.SOURCES:
        try:
            _compress.bind(source, source)
        except UnsupportedError:
            continue
        found.append(source)
    _compress.bind()
    return found


@pytest.fixture(params=available())
def source(request):
    _compress.bind(request.param, request.param)
    yield request.param
    _compress.bind()


FORMATS = {
    "lz4": (_compress.lz4_compress, _compress.lz4_decompress),
    "zstd": (_compress.zstd_compress, _compress.zstd_decompress),
}


@pytest.fixture(params=FORMATS)
def pair(request):
    return FORMATS[request.param]


def unpack(decompress, payload, size):
    """Decode into the middle of a guarded buffer; the guards must survive, also an error."""
    room = bytearray(GUARD + bytes(size) + GUARD)
    try:
        decompress(payload, memoryview(room)[len(GUARD) : len(GUARD) + size])
    finally:
        assert room[: len(GUARD)] == GUARD
        assert room[len(GUARD) + size :] == GUARD
    return bytes(room[len(GUARD) : len(GUARD) + size])


def samples():
    rng = np.random.default_rng(11)
    yield b""
    yield b"a"
    yield bytes(70000)
    yield bytes(range(256)) * 40
    yield rng.integers(0, 256, 5000, np.uint8).tobytes()
    yield rng.integers(0, 4, 300000, np.uint8).tobytes()


class TestBind:
    def test_all_three_sources_are_tested(self):
        # The package is a dependency, so its functions are always there.
        assert "python" in available()

    def test_tells_what_is_in_use(self, source):
        told = _compress.backend()
        assert (told["lz4"]["source"], told["zstd"]["source"]) == (source, source)
        assert told["lz4"]["version"].count(".") == 2
        assert told["zstd"]["version"].count(".") == 2

    def test_auto_takes_the_first_that_works(self):
        told = _compress.bind()
        assert told["lz4"]["source"] == available()[0]
        assert len(told["lz4"]["skipped"]) == _compress.SOURCES.index(told["lz4"]["source"])

    def test_chosen_separately(self):
        told = _compress.bind(lz4="python", zstd=available()[0])
        assert (told["lz4"]["source"], told["zstd"]["source"]) == ("python", available()[0])
        _compress.bind()

    def test_unknown_source(self):
        with pytest.raises(InvalidError, match="elsewhere"):
            _compress.bind(lz4="elsewhere")

    def test_wheel_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(UnsupportedError, match="wheel"):
            _compress.bind(lz4="wheel")
        with pytest.raises(UnsupportedError, match="wheel"):
            _compress.bind(zstd="wheel")
        told = _compress.bind()
        assert told["lz4"]["source"] != "wheel"
        assert "sys.path" in told["lz4"]["skipped"][0]
        monkeypatch.undo()
        _compress.bind()

    def test_wheel_without_the_symbols(self, monkeypatch, tmp_path):
        # Any loadable library will do that is neither LZ4 nor Zstandard.
        import _ctypes
        import shutil

        tag = sys.implementation.cache_tag
        for package, folder, stem in (("lz4", "block", "_block"), ("zstandard", "", "_cffi")):
            target = tmp_path / package / folder
            target.mkdir(parents=True)
            shutil.copy(_ctypes.__file__, target / f"{stem}.{tag}-any.so")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(UnsupportedError, match="does not export LZ4_versionNumber"):
            _compress.bind(lz4="wheel")
        with pytest.raises(UnsupportedError, match="does not export ZSTD_versionNumber"):
            _compress.bind(lz4=available()[-1], zstd="wheel")

    def test_file_that_is_no_library(self, monkeypatch, tmp_path):
        target = tmp_path / "lz4" / "block"
        target.mkdir(parents=True)
        (target / f"_block.{sys.implementation.cache_tag}-any.so").write_bytes(b"no library")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(UnsupportedError, match="wheel: "):
            _compress.bind(lz4="wheel")

    def test_package_that_is_not_there(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lz4", None)
        monkeypatch.setitem(sys.modules, "lz4.block", None)
        monkeypatch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(UnsupportedError, match="package lz4 cannot be imported"):
            _compress.bind(lz4="python")
        with pytest.raises(UnsupportedError, match="package zstandard cannot be imported"):
            _compress.bind(zstd="python")


class TestCompression:
    def test_round_trip(self, source, pair):
        compress, decompress = pair
        for data in samples():
            assert unpack(decompress, compress(data), len(data)) == data

    def test_sources_read_each_other(self, pair):
        compress, decompress = pair
        for data in samples():
            payloads = []
            for each in available():
                _compress.bind(each, each)
                payloads.append(compress(data))
            for each in available():
                _compress.bind(each, each)
                for payload in payloads:
                    assert unpack(decompress, payload, len(data)) == data
        _compress.bind()

    def test_arrays(self, source, pair):
        compress, decompress = pair
        array = np.arange(6000, dtype=np.float16).reshape(20, 300)
        out = np.zeros_like(array)
        decompress(compress(array), out)
        assert np.array_equal(out, array)

    def test_wrong_length_is_corrupt(self, source, pair):
        compress, decompress = pair
        for data in samples():
            payload = compress(data)
            for size in {0, 1, len(data) - 1, len(data) + 1, 2 * len(data) + 7} - {len(data), -1}:
                with pytest.raises(CorruptError):
                    unpack(decompress, payload, size)

    def test_truncated_is_corrupt(self, source, pair):
        compress, decompress = pair
        for data in samples():
            payload = compress(data)
            for cut in {0, 1, len(payload) // 2, len(payload) - 1} - {len(payload)}:
                with pytest.raises(CorruptError):
                    unpack(decompress, payload[:cut], len(data))

    def test_extended_is_corrupt(self, source, pair):
        compress, decompress = pair
        for data in samples():
            with pytest.raises(CorruptError):
                unpack(decompress, compress(data) + b"\x11\x22\x33", len(data))

    def test_flipped_bits_stay_inside(self, source, pair):
        compress, decompress = pair
        rng = np.random.default_rng(5)
        data = rng.integers(0, 3, 4000, np.uint8).tobytes()
        payload = compress(data)
        wrong = 0
        for _ in range(300):
            damaged = bytearray(payload)
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
            try:
                wrong += unpack(decompress, bytes(damaged), len(data)) != data
            except CorruptError:
                wrong += 1
        assert wrong > 100

    @given(st.binary(max_size=200), st.integers(0, 300))
    def test_noise_stays_inside(self, noise, size):
        for _, decompress in FORMATS.values():
            with contextlib.suppress(CorruptError):
                unpack(decompress, noise, size)

    def test_frame_without_its_length(self, source):
        import zstandard

        data = bytes(range(256)) * 9
        frame = zstandard.ZstdCompressor(write_content_size=False).compress(data)
        assert unpack(_compress.zstd_decompress, frame, len(data)) == data
        with pytest.raises(CorruptError):
            unpack(_compress.zstd_decompress, frame, len(data) - 1)
        with pytest.raises(CorruptError):
            unpack(_compress.zstd_decompress, frame, len(data) + 1)

    def test_levels(self, source):
        data = b"".join(str(i * i).encode() for i in range(3000))
        assert len(_compress.zstd_compress(data, 19)) < len(_compress.zstd_compress(data, 1))
        assert len(_compress.lz4_compress(data, 1)) < len(_compress.lz4_compress(data, 1000))

    def test_refuses_arguments(self, source):
        for level in (0, 23, -1):
            with pytest.raises(InvalidError, match="level"):
                _compress.zstd_compress(b"", level)
        with pytest.raises(InvalidError, match="acceleration"):
            _compress.lz4_compress(b"", 0)
        with pytest.raises(InvalidError, match="src"):
            _compress.lz4_compress(np.zeros((4, 4))[::2, ::2])
        with pytest.raises(InvalidError, match="dst"):
            _compress.zstd_decompress(_compress.zstd_compress(b"abc"), bytes(3))

    def test_threads_share_everything(self, source, pair):
        compress, decompress = pair
        blocks = [np.random.default_rng(i).integers(0, 9, 50000, np.uint8) for i in range(4)]
        failures = []

        def work(block):
            for _ in range(10):
                out = np.empty_like(block)
                decompress(compress(block), out)
                if not np.array_equal(out, block):
                    failures.append(1)

        threads = [threading.Thread(target=work, args=(block,)) for block in blocks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
