"""The cache of decoded blocks: never another value, only fewer decodings, within its budget."""

from __future__ import annotations

import itertools
import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_contract import run_forked
from hypothesis import given, settings
from hypothesis import strategies as st

from diced import CorruptBlockError, DicedArray, DicedStore, InvalidError, blocks, keys
from diced.blockcache import OVERHEAD_BYTES, BlockCache, CachedBlock
from diced.engine import memory

SIDE = 16
BLOCK_BYTES = SIDE**3 + OVERHEAD_BYTES
LARGE = 1 << 24
_names = itertools.count()


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "s")
        return
    name = f"blockcache{next(_names)}"
    yield f"memory://{name}"
    memory.forget(name)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks decoded so far, as the sizes of the batches."""
    found: list[int] = []
    plain = blocks.Blocks.read_entries

    def counted(self: Any, entries: Any, *rest: Any) -> None:
        found.append(len(entries))
        plain(self, entries, *rest)

    monkeypatch.setattr(blocks.Blocks, "read_entries", counted)
    return found


def cube(blocks_per_side: int, dtype: Any = np.uint8) -> np.ndarray:
    shape = (blocks_per_side * SIDE,) * 3
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


def filled(location: str, data: np.ndarray, budget: int, **options: Any) -> DicedArray:
    store = DicedStore(location, durability="process", threads=2, block_cache_bytes=budget)
    array = store.create_repo("r").create_array(
        "a", data.dtype, data.ndim, **{"block_shape": (SIDE,) * data.ndim, **options}
    )
    array[tuple(slice(0, n) for n in data.shape)] = data
    return array


def cache_of(array: DicedArray) -> BlockCache:
    cache = array._repo._history.home.block_cache
    assert cache is not None
    return cache


KINDS: list[tuple[str, int, dict[str, Any]]] = [
    ("u1", 3, {"block_shape": (5, 4, 6)}),
    ("u1", 3, {"block_shape": (8, 8, 8), "codec": "raw"}),
    ("<f4", 2, {"block_shape": (7, 3), "codec": "gzip"}),
    ("<i8", 1, {"block_shape": (9,), "codec": "zstd"}),
    ("<u2", 2, {"block_shape": (6, 6), "channels": 3, "fill": [1, 2, 3]}),
    ("<u8", 3, {"block_shape": (8, 8, 8), "islabel3D": True}),
    ("u1", 3, {"block_shape": (32, 32, 32), "codec": "lz4"}),
]


@pytest.mark.parametrize("scheme", ["local", "memory"])
@pytest.mark.parametrize(("dtype", "dims", "options"), KINDS)
@given(draw=st.data(), budget=st.sampled_from([1, 3000, 9000, 1 << 20]))
@settings(max_examples=15, deadline=None)
def test_reads_give_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    scheme: str,
    dtype: str,
    dims: int,
    options: dict[str, Any],
    draw: st.DataObject,
    budget: int,
) -> None:
    name = f"blockcache{next(_names)}"
    place = f"memory://{name}" if scheme == "memory" else str(tmp_path_factory.mktemp(name) / "s")
    with DicedStore(place, durability="process", threads=2, block_cache_bytes=budget) as store:
        array = store.create_repo("r").create_array("a", dtype, dims, **options)
        tail = array.chunks[dims:]
        wide = 40 if dims == 3 else 60
        model = np.empty((wide,) * dims + tail, dtype)
        model[...] = array.fill
        array[(slice(0, wide),) * dims] = model
        rng = np.random.default_rng(draw.draw(st.integers(0, 1000)))
        ends = st.tuples(st.integers(0, wide), st.integers(0, wide)).map(sorted)
        for _ in range(draw.draw(st.integers(2, 6))):
            box = tuple(slice(*draw.draw(ends)) for _ in range(dims))
            if draw.draw(st.booleans()):
                model[box] = rng.integers(0, 4, model[box].shape)
                array[box] = model[box]
            np.testing.assert_array_equal(array[box], model[box])
            stepped = tuple(slice(each.start, each.stop, 3) for each in box)
            np.testing.assert_array_equal(array[stepped], model[stepped])
        np.testing.assert_array_equal(array[(slice(0, wide),) * dims], model)
        cache = cache_of(array)
        assert cache.nbytes <= budget
    if scheme == "memory":
        memory.forget(name)


def test_off_unless_asked_for(location: str, decoded: list[int]) -> None:
    data = cube(1)
    array = filled(location, data, 0)
    decoded.clear()
    for _ in range(3):
        assert array[3, 4, 5] == data[3, 4, 5]
    assert decoded == [1, 1, 1]


def test_a_block_read_in_part_is_decoded_once(location: str, decoded: list[int]) -> None:
    data = cube(3)
    array = filled(location, data, LARGE)
    np.testing.assert_array_equal(array[20, ...], data[20])
    decoded.clear()
    for z in range(16, 32):
        np.testing.assert_array_equal(array[z, ...], data[z])
    np.testing.assert_array_equal(array[16:32, 0:32, 5:48], data[16:32, 0:32, 5:48])
    assert decoded == []
    np.testing.assert_array_equal(array[30:34, 3, 4], data[30:34, 3, 4])
    assert sum(decoded) == 1  # the block below


def test_whole_blocks_are_not_kept_and_do_not_drive_out_others(
    location: str, decoded: list[int]
) -> None:
    data = cube(4)
    array = filled(location, data, 20 * BLOCK_BYTES)
    np.testing.assert_array_equal(array[0:16, 0:16, 0:16], data[0:16, 0:16, 0:16])
    assert len(cache_of(array)) == 0
    np.testing.assert_array_equal(array[2, 0:32, 0:32], data[2, 0:32, 0:32])
    np.testing.assert_array_equal(array[...], data)
    decoded.clear()
    np.testing.assert_array_equal(array[3, 0:32, 0:32], data[3, 0:32, 0:32])
    assert decoded == []


def test_a_read_of_more_blocks_than_its_share_keeps_the_same_ones(
    location: str, decoded: list[int]
) -> None:
    data = cube(4)
    array = filled(location, data, 12 * BLOCK_BYTES)
    for _ in range(2):
        decoded.clear()
        np.testing.assert_array_equal(array[9, ...], data[9])  # of 16 blocks
        assert sum(decoded) in (10, 16)
    assert sum(decoded) == 10
    assert len(cache_of(array)) == 6


def test_the_budget_holds_and_old_blocks_go(location: str, decoded: list[int]) -> None:
    data = cube(3)
    array = filled(location, data, 4 * BLOCK_BYTES)
    cache = cache_of(array)
    for z, y, x in itertools.product((5, 20, 40), repeat=3):
        assert array[z, y, x] == data[z, y, x]
        assert cache.nbytes <= cache.budget_bytes
    assert len(cache) == 4
    decoded.clear()
    assert array[5, 5, 5] == data[5, 5, 5]
    assert decoded == [1]


def test_a_block_larger_than_a_read_may_keep(location: str, decoded: list[int]) -> None:
    data = cube(1)
    array = filled(location, data, 2 * BLOCK_BYTES - 1)
    decoded.clear()
    assert [array[1, 2, 3], array[1, 2, 3]] == [data[1, 2, 3]] * 2
    assert decoded == [1, 1]
    assert len(cache_of(array)) == 0


def test_large_parts_of_label_blocks_are_read_directly(location: str, decoded: list[int]) -> None:
    data = np.repeat(np.arange(64, dtype=np.uint64), 64 * 64).reshape(64, 64, 64)
    array = filled(location, data, LARGE, islabel3D=True, block_shape=(64, 64, 64))
    np.testing.assert_array_equal(array[1:60, ...], data[1:60])
    assert len(cache_of(array)) == 0
    np.testing.assert_array_equal(array[60:62, ...], data[60:62])
    decoded.clear()
    np.testing.assert_array_equal(array[7, ...], data[7])
    assert decoded == []
    np.testing.assert_array_equal(array[1:60, ...], data[1:60])
    assert decoded == [1]


def test_every_version_reads_its_own_blocks(location: str) -> None:
    data = cube(2)
    array = filled(location, data, LARGE)
    repo = array._repo
    assert array[1, 1, 1] == data[1, 1, 1]
    parent = repo.uuid
    repo.lock_node("done")
    repo.change_version(repo.create_branch("more"))
    assert array[1, 1, 1] == data[1, 1, 1]
    array[1, 1, 1] = 255
    assert array[1, 1, 1] == 255
    with array.batch():
        array[1, 1, 2] = 254
        assert list(array[1, 1, 1:4]) == [255, 254, data[1, 1, 3]]
    assert list(array[1, 1, 1:4]) == [255, 254, data[1, 1, 3]]
    repo.change_version(parent)
    assert list(array[1, 1, 1:4]) == list(data[1, 1, 1:4])


def test_results_are_the_callers_own(location: str) -> None:
    data = cube(1)
    array = filled(location, data, LARGE)
    for _ in range(2):
        part = array[0:16, 0:16, 3]
        np.testing.assert_array_equal(part, data[:, :, 3])
        part[...] = 0
        out = np.zeros((2, 2, 2), np.uint8)
        assert array.read((slice(0, 2),) * 3, out=out) is out
        np.testing.assert_array_equal(out, data[:2, :2, :2])


def flip(array: DicedArray, coord: tuple[int, int, int], from_end: int) -> None:
    """Damage the stored bytes of a block, `from_end` before their end."""
    reader = array._blocks()
    block = np.array([[c // SIDE for c in coord]], np.int64)
    (entry,) = reader.lane.get_many(
        reader.lane.refresh(), blocks.SPACE, blocks.grid.block_keys(block)
    )
    assert isinstance(entry, tuple)
    root = Path(array._repo.store.url.removeprefix("file:"))
    path = root / keys.segment(reader.home.prefix, entry[0])
    data = bytearray(path.read_bytes())
    data[entry[1] + entry[2] - from_end] ^= 1
    path.write_bytes(data)


def test_damaged_blocks_raise_and_are_not_kept(tmp_path: Path) -> None:
    data = cube(2)
    array = filled(str(tmp_path / "s"), data, LARGE)
    flip(array, (0, 0, 20), 5)
    for _ in range(2):
        with pytest.raises(CorruptBlockError, match=r"block \(0, 0, 1\)"):
            array[15, 0:32, 0:32]
    np.testing.assert_array_equal(array[15, :, 0:16], data[15, :, 0:16])
    assert len(cache_of(array)) == 3


def test_a_sound_part_of_a_damaged_block_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 250, (64, 64, 64)).astype(np.uint8)
    array = filled(str(tmp_path / "s"), data, LARGE, block_shape=(64, 64, 64))
    plain = DicedStore(array._repo.store.url).open_repo("r").get_array("a")
    flip(array, (0, 0, 0), 5)  # of the last unit
    for each in (plain, array, array):
        np.testing.assert_array_equal(each[3, 0:20, 0:20], data[3, 0:20, 0:20])
        with pytest.raises(CorruptBlockError, match="unit 7"):
            each[63, 63, 63]
    assert len(cache_of(array)) == 0


def test_a_pointer_to_another_block_finds_nothing() -> None:
    cache = BlockCache(LARGE)
    block = CachedBlock(b"lane", b"key", np.zeros(4))
    cache.put((1, 2, 3), block)
    assert cache.find((1, 2, 3), b"lane", b"key") is block.voxels
    assert cache.find((1, 2, 3), b"lane", b"other") is None
    assert cache.find((1, 2, 3), b"other", b"key") is None
    assert cache.find((1, 2, 4), b"lane", b"key") is None
    with pytest.raises(ValueError, match="read-only"):
        block.voxels[0] = 1


def test_many_threads(location: str) -> None:
    data = cube(4)
    array = filled(location, data, 10 * BLOCK_BYTES)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            box = tuple(slice(a, a + rng.randint(1, 20)) for a in rng.choices(range(44), k=3))
            if not np.array_equal(array[box], data[box]):
                wrong.append(box)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    cache = cache_of(array)
    assert cache.nbytes == len(cache) * BLOCK_BYTES <= cache.budget_bytes


def test_a_fork_amid_a_put(tmp_path: Path) -> None:
    data = cube(2)
    array = filled(str(tmp_path / "s"), data, 3 * BLOCK_BYTES)
    cache = cache_of(array)
    assert array[0, 0, 0] == data[0, 0, 0]
    nbytes = cache.nbytes

    def child() -> None:
        assert cache.nbytes == nbytes
        for z, y, x in itertools.product((3, 20), repeat=3):
            assert array[z, y, x] == data[z, y, x]
        assert len(cache) == 3

    with cache._lock:
        cache.nbytes += BLOCK_BYTES
        assert run_forked(child) == 0
        cache.nbytes -= BLOCK_BYTES


def test_pickled_handles_keep_the_option(tmp_path: Path) -> None:
    data = cube(1)
    array = filled(str(tmp_path / "s"), data, 123456)
    store = array._repo.store
    assert pickle.loads(pickle.dumps(store)).block_cache_bytes == 123456
    assert pickle.loads(pickle.dumps(array._repo)).store.block_cache_bytes == 123456
    copy = pickle.loads(pickle.dumps(array))
    assert copy[1, 2, 3] == data[1, 2, 3]
    assert (len(cache_of(copy)), cache_of(copy).budget_bytes) == (1, 123456)


def test_closing_frees_the_memory(location: str) -> None:
    array = filled(location, cube(1), LARGE)
    array[1, 2, 3]
    cache = cache_of(array)
    assert len(cache) == 1
    array._repo.store.close()
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.parametrize("option", ["cache_bytes", "block_cache_bytes"])
def test_a_negative_budget_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(InvalidError, match=f"{option}.* -1"):
        DicedStore(tmp_path / "s", **{option: -1})
