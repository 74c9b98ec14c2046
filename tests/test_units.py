"""Blocks whose payload consists of independently decodable units, through arrays.

Image blocks above 32 KiB are written so; any other division is read all the same. The first half
builds frames that no writer makes, the second looks into those that were written.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
from reference import frame_parse_reference, unit_places_reference

from diced import CorruptBlockError, DicedStore, InvalidError, _compress
from diced._crc32c import crc32c
from diced.codec import get_codec, units
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
        frames = lane.home.frames()
        pointer = (*frames.append([frame]), len(frame))
        box = tuple(-n for n in shape), (0,) * len(shape)
        change = Change({0: {key: pointer}}, {}, box, frames)
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


# --- as they are written -------------------------------------------------------------------------

# dims, block shape, channels, dtype, units that come of it
SHAPES = [
    (1, (65536,), None, "u1", 2),
    (2, (256, 512), None, "u1", 4),
    (2, (128, 128), 3, "u1", 4),
    (2, (64, 64), 4, "f4", 4),
    (3, (32, 32, 40), None, "u1", 8),
    (3, (32, 32, 32), None, "u2", 8),
    (3, (64, 64, 32), None, "u4", 64),
    (3, (16, 32, 32), 3, "u2", 8),
    (4, (8, 8, 16, 64), None, "f4", 16),
    (5, (4, 4, 8, 16, 32), None, "u1", 32),
]
WRITTEN = [
    pytest.param(*shape, codec, id=f"{codec}-{shape[1]}-{shape[2]}-{shape[3]}")
    for shape in SHAPES
    for codec in ("raw", "lz4", "zstd:3")
]


def frames_on_disk(path):
    """Yield (file, offset, frame) of the blocks in a store's segments."""
    for file in sorted(Path(path).glob("r/**/*.seg")):
        data = file.read_bytes()
        at = data.find(MAGIC)
        while at >= 0:
            kind, stored, key_size = data[at + 4], *HEADER.unpack_from(data, at)[7:9]
            size = HEADER.size + key_size + CHECK.size + stored
            if kind == BLOCK:
                yield file, at, data[at : at + size]
            at = data.find(MAGIC, at + size)


def units_of(frame):
    return HEADER.unpack_from(frame)[9]


def boxes(rng, lo, hi, count):
    """Yield random boxes inside one: voxels, lines, planes and others, and the whole."""
    yield tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    for turn in range(count):
        box = []
        for a, b in zip(lo, hi, strict=True):
            first = int(rng.integers(a, b))
            if turn % 4 == 0:
                box.append(slice(first, first + 1))
            elif turn % 4 == 1 and rng.random() < 0.6:
                box.append(slice(a, b))
            else:
                box.append(slice(first, int(rng.integers(first + 1, b + 1))))
        yield tuple(box)


def noise(rng, shape, dtype):
    """Values that codecs shorten a bit."""
    return rng.integers(0, 100, shape).astype(dtype)


def moved(box, lo):
    return tuple(slice(each.start - a, each.stop - a) for each, a in zip(box, lo, strict=True))


@pytest.mark.parametrize("dims, shape, channels, dtype, count, codec", WRITTEN)
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_written_in_units(tmp_path, place, dims, shape, channels, dtype, count, codec):
    rng = np.random.default_rng(dims)
    store = DicedStore(str(tmp_path) if place == "disk" else "memory://", durability="process")
    array = store.create_repo("r").create_array(
        "a", dtype, dims, block_shape=shape, channels=channels, codec=codec
    )
    lo = [-side for side in shape]
    hi = [side if axis == dims - 1 else 0 for axis, side in enumerate(shape)]
    full = [b - a for a, b in zip(lo, hi, strict=True)]
    values = noise(rng, full if channels is None else (*full, channels), dtype)
    array[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))] = values
    for box in boxes(rng, lo, hi, 25):
        assert np.array_equal(array[box], values[moved(box, lo)])
    # Again and in parts: what the parts do not touch must stay.
    for turn, box in enumerate(itertools.islice(boxes(rng, lo, hi, 8), 1, None)):
        new = noise(rng, values[moved(box, lo)].shape, dtype)
        if turn % 2:
            new = np.asfortranarray(new)
        array[box] = new
        values[moved(box, lo)] = new
        assert np.array_equal(array[box], new)
        assert np.array_equal(array[...], values)
    if place == "disk":
        found = list(frames_on_disk(tmp_path))
        assert len(found) >= 2
        assert {units_of(frame) for _, _, frame in found} == {count}
        assert count == units(codec, values.nbytes // 2, shape)
        # The first two are the blocks as written at first; all are what the format says.
        for _, _, frame in found:
            fields = HEADER.unpack_from(frame)
            key = frame[HEADER.size :][: fields[8]]
            whole = shape if channels is None else (*shape, channels)
            frame_parse_reference(frame, fields[5], key, np.dtype(dtype), whole, dims)


@pytest.mark.parametrize(
    "codec, dtype, shape",
    [
        ("raw", "u1", (32, 32, 32)),
        ("lz4", "u1", (33, 33, 35)),
        ("zstd", "u1", (65, 64, 64)),
        ("gzip", "u2", (32, 32, 64)),
        ("label", "u8", (32, 32, 32)),
        ("label+lz4", "u8", (32, 32, 32)),
        ("label+zstd", "u8", (32, 32, 32)),
    ],
)
def test_small_odd_and_label_blocks_have_none(tmp_path, codec, dtype, shape):
    rng = np.random.default_rng(0)
    store = DicedStore(str(tmp_path), durability="process")
    array = store.create_repo("r").create_array(
        "a", dtype, 3, block_shape=shape, codec=codec, islabel3D=codec.startswith("label")
    )
    values = noise(rng, shape, dtype)
    box = tuple(slice(0, side) for side in shape)
    array[box] = values
    assert {units_of(frame) for _, _, frame in frames_on_disk(tmp_path)} == {0}
    for each in boxes(rng, (0, 0, 0), shape, 20):
        assert np.array_equal(array[each], values[each])


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_a_damaged_unit_on_disk(tmp_path, codec):
    shape = (32, 32, 64)
    store = DicedStore(str(tmp_path), durability="process")
    array = store.create_repo("r").create_array("a", np.uint16, 3, block_shape=shape, codec=codec)
    values = noise(np.random.default_rng(0), (64, 32, 64), np.uint16)
    array[0:64, 0:32, 0:64] = values
    store.close()
    (file, offset, frame), _ = frames_on_disk(tmp_path)
    count = units_of(frame)
    places = unit_places_reference(count, 3)
    assert count == 8
    number = 5
    head = HEADER.size + 12 + CHECK.size
    end = UNIT.unpack_from(frame, head + number * UNIT.size)[0]
    data = bytearray(file.read_bytes())
    data[offset + head + end - 1] ^= 0x40
    file.write_bytes(data)

    array = DicedStore(str(tmp_path), durability="process").open_repo("r")["a"]
    sides = (16, 16, 32)
    for place in places:
        box = tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, sides, strict=True))
        for part in (box, tuple(slice(each.stop - 1, each.stop) for each in box)):
            if place != places[number]:
                assert np.array_equal(array[part], values[part])
                continue
            with pytest.raises(CorruptBlockError) as caught:
                array[part]
            for said in ("'a'", "(0, 0, 0)", f"segment {file.stem}", f"unit {number}"):
                assert said in str(caught.value)
    # The other block is whole; the plane beside the unit and a box of both blocks, too.
    assert np.array_equal(array[32:64, 0:32, 0:64], values[32:])
    z = 16 if places[number][0] == 0 else 15
    assert np.array_equal(array[z, 0:32, 0:64], values[z])
    assert np.array_equal(array[31:33, 16:32, 0:32], values[31:33, 16:, :32])
    for box in ((slice(0, 64), slice(0, 32), slice(0, 64)), (31, slice(0, 32), slice(0, 64))):
        with pytest.raises(CorruptBlockError, match="unit 5"):
            array[box]
    # A write beside the damage may be refused; it never makes the damage look sound.
    try:
        array[0:2, 0:2, 0:2] = 9
    except CorruptBlockError:
        pass
    else:
        assert (array[0:2, 0:2, 0:2] == 9).all()
    with pytest.raises(CorruptBlockError):
        array[16:32, 0:16, 32:64]
    array[0:32, 0:32, 0:64] = values[:32]
    assert np.array_equal(array[0:64, 0:32, 0:64], values)


@pytest.mark.parametrize("place", range(48 + 64))
def test_a_damaged_head_or_table_on_disk(tmp_path, place):
    store = DicedStore(str(tmp_path), durability="process")
    array = store.create_repo("r").create_array(
        "a", np.uint16, 3, block_shape=(32, 32, 64), codec="lz4"
    )
    values = noise(np.random.default_rng(0), (64, 32, 64), np.uint16)
    array[0:64, 0:32, 0:64] = values
    store.close()
    (file, offset, _), _ = frames_on_disk(tmp_path)
    data = bytearray(file.read_bytes())
    data[offset + place] ^= 1 << place % 8
    file.write_bytes(data)
    array = DicedStore(str(tmp_path), durability="process").open_repo("r")["a"]
    for box in ((0, 0, 0), (slice(0, 32), slice(0, 32), slice(0, 64)), (slice(30, 34), 3, 3)):
        with pytest.raises(CorruptBlockError, match=r"block \(0, 0, 0\)"):
            array[box]
    assert np.array_equal(array[32:64, 0:32, 0:64], values[32:])


@pytest.fixture
def only_python():
    """Use the packages' Python functions from `begin` to `end`."""

    class Binding:
        def begin(self):
            _compress.bind(lz4="python", zstd="python")

        def end(self):
            _compress.bind()

    yield Binding()
    _compress.bind()


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd", "label", "label+lz4", "label+zstd"])
def test_with_and_without_the_libraries(tmp_path, only_python, codec):
    shape = (32, 32, 32)
    label = codec.startswith("label")
    rng = np.random.default_rng(0)
    values = noise(rng, (64, 32, 32), np.uint64)

    def opened():
        return DicedStore(str(tmp_path), durability="process").open_repo("r")["a"]

    DicedStore(str(tmp_path)).create_repo("r").create_array(
        "a", np.uint64, 3, block_shape=shape, codec=codec, islabel3D=label
    )
    for by_python in (False, True):
        if by_python:
            only_python.begin()
        array = opened()
        written = values + np.uint64(by_python)
        array[0:64, 0:32, 0:32] = written
        array[1:3, 20:, 5:9] = written[1:3, 20:, 5:9] = 77
        for read_by_python in (False, True):
            (only_python.begin if read_by_python else only_python.end)()
            array = opened()
            for box in boxes(rng, (0, 0, 0), (64, 32, 32), 12):
                assert np.array_equal(array[box], written[box])
            # Parts into blocks that the other way wrote.
            array[40:60, 3, 0:32] = written[40:60, 3] = 5 + read_by_python
            assert np.array_equal(array[...], written)
        only_python.end()


class TestValuesOfAnotherType:
    SHAPE = (32, 64, 64)

    def array(self, dtype="u1", codec="lz4"):
        store = DicedStore("memory://")
        return store.create_repo("r").create_array(
            "a", dtype, 3, block_shape=self.SHAPE, codec=codec
        )

    @pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
    @pytest.mark.parametrize(
        "given, stored", [("f8", "u1"), ("i8", "u2"), ("u1", "f4"), (">u2", "u2"), ("?", "i4")]
    )
    def test_whole_blocks_and_parts(self, given, stored, codec):
        rng = np.random.default_rng(0)
        array = self.array(stored, codec)
        values = rng.integers(0, 2 if given == "?" else 200, (70, 130, 129)).astype(given)
        array[-3:67, -1:129, -1:128] = values
        assert np.array_equal(array[-3:67, -1:129, -1:128], values)
        assert array[-3:67, -1:129, -1:128].dtype == np.dtype(stored)
        # Transposed and reversed: whole blocks of odd strides.
        turned = values.T[::-1, :, ::-1]
        array[0:129, 0:130, 0:70] = turned
        assert np.array_equal(array[0:129, 0:130, 0:70], turned)

    @pytest.mark.parametrize("wrong", [256.0, -1.0, 1.5, np.nan, np.inf])
    @pytest.mark.parametrize("at", [(0, 0, 0), (31, 63, 63), (32, 10, 70)])
    def test_what_does_not_fit_is_refused_whole(self, wrong, at):
        array = self.array()
        array[0:64, 0:64, 0:128] = 3
        for shape in ((64, 64, 128), (33, 63, 71)):  # whole blocks, and parts
            values = np.full(shape, 7.0)
            values[tuple(np.minimum(at, np.subtract(shape, 1)))] = wrong
            with pytest.raises(InvalidError):
                array[tuple(slice(0, side) for side in shape)] = values
        assert (array[0:64, 0:64, 0:128] == 3).all()

    def test_one_value(self):
        array = self.array()
        array[0:64, 0:64, 0:128] = np.float64(9)
        array[5:40, 5:40, 5:100] = 8.0
        values = np.full((64, 64, 128), 9)
        values[5:40, 5:40, 5:100] = 8
        assert np.array_equal(array[0:64, 0:64, 0:128], values)


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd", "gzip"])
@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_whole_blocks_and_parts(tmp_path, place, codec, seed):
    shape = (16, 64, 64)
    store = DicedStore(str(tmp_path) if place == "disk" else "memory://", durability="process")
    array = store.create_repo("r").create_array("a", np.uint8, 3, block_shape=shape, codec=codec)
    rng = np.random.default_rng(seed)
    hi = (32, 128, 64)
    values = np.zeros(hi, np.uint8)
    for _ in range(3):
        with array.batch():
            for box in boxes(rng, (0, 0, 0), hi, 5):
                new = noise(rng, values[box].shape, np.uint8)
                kind = rng.integers(0, 4)
                if kind == 0:
                    new = np.broadcast_to(new[:1, :1, :1], new.shape)
                elif kind == 1:
                    # Whole blocks, some of them, then a part of one over them.
                    box = (slice(0, 32), slice(0, 64), slice(0, 64))
                    new = noise(rng, (32, 64, 64), np.float64)
                array[box] = new
                values[box] = new
                inner = (slice(14, 18), slice(60, 70), slice(3, 50, 2))
                array[inner] = values[inner] = int(rng.integers(0, 256))
                assert np.array_equal(array[box], values[box])
        assert np.array_equal(array[0:32, 0:128, 0:64], values)
    if place == "disk":
        array = DicedStore(str(tmp_path)).open_repo("r")["a"]
        assert np.array_equal(array[0:32, 0:128, 0:64], values)
