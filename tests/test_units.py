"""Blocks whose payload consists of independently decodable units: written by none, read by all."""

import itertools

import numpy as np
import pytest

from diced import CorruptBlockError, DicedStore
from diced._crc32c import crc32c
from diced.codec import get_codec
from diced.segment import BLOCK, CHECK, HEADER, MAGIC, UNIT
from diced.state import Change


def frame_with_units(lane, key, block, parts, codec_name, spoil=None):
    """Build a frame by hand from docs/format.md."""
    unit_shape = tuple(n // parts for n in block.shape)
    codec = get_codec(codec_name, block.dtype, unit_shape, None)
    places = sorted(itertools.product(range(parts), repeat=block.ndim), key=morton)
    units = []
    for place in places:
        window = tuple(slice(p * n, p * n + n) for p, n in zip(place, unit_shape, strict=True))
        units.append(codec.encode(block[window]))
    end, table = len(units) * UNIT.size, b""
    for unit in units:
        end += len(unit)
        table += UNIT.pack(end, crc32c(unit))
    if spoil is not None:
        units[spoil] = bytes([units[spoil][0] ^ 1]) + units[spoil][1:]
    payload = table + b"".join(units)
    head = HEADER.pack(
        MAGIC, BLOCK, codec.id, 0, 0, lane.lane_bytes, block.nbytes, len(payload), len(key),
        len(units), crc32c(table),
    )  # fmt: skip
    head += key
    return head + CHECK.pack(crc32c(head)) + payload


def morton(place):
    """Return the Morton number of a place; axis 0 takes the higher bit."""
    bits = range(4, -1, -1)
    return int("".join(str(p >> bit & 1) for bit in bits for p in place), 2)


@pytest.fixture(params=[("lz4", (8, 8, 8), 2), ("raw", (8, 16), 4), ("zstd:1", (32,), 8)], ids=str)
def stored(request):
    """An array with one block of units at block coordinate -1, its content, and how to spoil it."""
    codec, shape, parts = request.param
    repo = DicedStore("memory://").create_repo("r")
    array = repo.create_array("a", np.uint16, len(shape), block_shape=shape)
    block = np.random.default_rng(0).integers(0, 999, shape, np.uint16)
    lane = array._blocks().lane

    def put(spoil=None):
        from diced import grid

        (key,) = grid.block_keys(np.full((1, len(shape)), -1))
        frame = frame_with_units(lane, key, block, parts, codec, spoil)
        segment, offset = lane.home.writer.append([frame])
        pointer = (segment, offset, len(frame))
        box = tuple(-n for n in shape), (0,) * len(shape)
        change = Change({0: {key: pointer}}, {}, box, {segment})
        lane.commit(lambda _state, _touched: change, op="units", user="test")

    return array, block, put


def test_units_read_as_one_block(stored):
    array, block, put = stored
    put()
    assert np.array_equal(array[...], block)
    rng = np.random.default_rng(1)
    for _ in range(30):
        low = [int(rng.integers(-n, 0)) for n in block.shape]
        high = [int(rng.integers(a + 1, 1)) for a in low]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        wanted = block[
            tuple(slice(a + n, b + n) for a, b, n in zip(low, high, block.shape, strict=True))
        ]
        assert np.array_equal(array[box], wanted)


def test_partial_writes_merge_with_units(stored):
    array, block, put = stored
    put()
    index = (-1,) * block.ndim
    array[index] = 5
    block[index] = 5
    assert np.array_equal(array[...], block)


def test_a_damaged_unit_harms_only_reads_that_need_it(stored):
    array, block, put = stored
    put(spoil=0)
    with pytest.raises(CorruptBlockError, match="unit 0"):
        array[...]
    index = (-1,) * block.ndim
    assert array[index] == block[index]
