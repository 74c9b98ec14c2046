"""Dask arrays read from arrays, and stored into them through write sessions."""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from diced import (
    BadIndexError,
    DicedArray,
    DicedStore,
    InvalidError,
    UnsupportedError,
    daskio,
)
from diced.spec import ArraySpec, array_fields

BLOCK = (8, 8, 8)


def start(location: str = "memory://", **options: Any) -> DicedArray:
    store = DicedStore(location, durability="process")
    options = {"dtype": np.uint32, "block_shape": BLOCK, **options}
    array: DicedArray = store.create_repo("r").create_array("a", **options)
    return array


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 250, shape).astype(np.uint32)


def operations(array: DicedArray) -> list[str]:
    return [each["operation"] for each in array._repo.operations(array.name)]


# -- reading -------------------------------------------------------------------------------


def test_the_extents_are_read_from_their_lower_corner() -> None:
    array = start()
    values = noise(30, 20, 10)
    array[-9:21, 5:25, 100:110] = values
    found = array.to_dask()
    assert found.shape == array.shape == (40, 32, 16)
    assert found.dtype == np.uint32
    assert (found.compute() == array[...]).all()
    assert (found[7:37, 5:25, 4:14].compute() == values).all()
    assert (found[::3, 4, ::-2].compute() == array[...][::3, 4, ::-2]).all()
    assert int(found.sum().compute()) == values.sum()


@pytest.mark.parametrize(
    "index",
    [
        (slice(-3, 17), slice(9, 30), slice(2, 3)),
        (5, slice(None), slice(0, 20)),
        (slice(20, -3, -3), slice(3, 30, 2), 4),
        (..., slice(3, 9)),
        (slice(4, 4), 0, slice(None)),
        (1, 2, 3),
    ],
)
@pytest.mark.parametrize("chunks", [None, "4 KiB", 5])
def test_a_selection_is_what_the_array_gives(index: Any, chunks: Any) -> None:
    array = start()
    array[0:30, -5:30, 0:30] = noise(30, 35, 30)
    found = array.to_dask(index, chunks)
    wanted = np.asarray(array[index])
    assert found.shape == wanted.shape
    assert (found.compute() == wanted).all()


@pytest.mark.parametrize("channel", [slice(None), 1, slice(0, 2), slice(None, None, -1)])
def test_channels_are_a_last_axis(channel: Any) -> None:
    array = start(channels=3, dtype=np.uint8)
    values = noise(20, 20, 20, 3).astype(np.uint8)
    array[0:20, 0:20, 0:20] = values
    found = array.to_dask((slice(1, 20), 3, slice(2, 19, 2), channel), "8 KiB")
    assert (found.compute() == values[1:20, 3, 2:19:2][..., channel]).all()


def test_an_empty_array_is_an_empty_dask_array() -> None:
    found = start().to_dask()
    assert found.shape == found.compute().shape == (0, 0, 0)


def test_chunks_are_whole_blocks() -> None:
    array = start()
    array[3:90, 0:40, 0:70] = 1
    for chunks in (None, "64 KiB", "16 KiB", "1 KiB"):
        found = array.to_dask((slice(3, 90), slice(0, 40), slice(5, 70)), chunks)
        for low, sizes in zip((3, 0, 5), found.chunks, strict=True):
            assert all(not (low + edge) % 8 for edge in np.cumsum(sizes)[:-1].tolist())
    assert array.to_dask(chunks="16 KiB").chunks[0][0] == 16
    assert array.to_dask(chunks=(30, -1, 7)).chunks[0] == (30, 30, 30, 6)
    with pytest.raises(InvalidError, match="KiB, MiB or GiB"):
        array.to_dask(chunks="many")


@pytest.mark.parametrize(
    "size", ["1e400 MiB", "inf KiB", "nan KiB", "0 MiB", "-1 MiB", "1e-4 KiB", "KiB"]
)
def test_sizes_of_chunks_are_checked(size: str) -> None:
    array = start()
    array[0:9, 0:9, 0:9] = 1
    with pytest.raises(InvalidError, match=re.escape(repr(size))):
        array.to_dask(chunks=size)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "uint8"},
        {"dtype": "uint64", "kind": "label"},
        {"dtype": "float32", "dims": 2},
        {"dtype": "uint8", "dims": 1},
        {"dtype": "uint16", "channels": 3},
        {"dtype": "uint8", "block_shape": (100, 33, 17)},
        {"dtype": "uint8", "dims": 5},
    ],
)
def test_chunks_of_large_arrays_have_64_to_128_mib(options: dict[str, Any]) -> None:
    fields = {"kind": "image", "versioned": True, "node": "", "name": "a"}
    spec = ArraySpec("0" * 16, {**fields, **array_fields("a", **options)})
    shape = daskio.chunk_shape(spec, (2**31,) * spec.dims, daskio.CHUNK_BYTES)
    nbytes = math.prod(shape) * spec.dtype.itemsize * (spec.channels or 1)
    assert 64 * 2**20 <= nbytes <= 128 * 2**20
    assert all(not size % block for size, block in zip(shape, spec.block_shape, strict=True))


def test_names_tell_the_content() -> None:
    array = start()
    array[0:9, 0:9, 0:9] = 1
    first = array.to_dask()
    assert first.name == array.to_dask().name
    assert first.name != array.to_dask((slice(0, 9), ..., slice(0, 9))).name
    array[0, 0, 0] = 2
    assert array.to_dask().name != first.name
    repo = array._repo
    repo.lock_node("")
    locked = array.to_dask().name
    assert pickle.loads(pickle.dumps(array)).to_dask().name == locked
    assert dask.base.tokenize(array) == dask.base.tokenize(pickle.loads(pickle.dumps(array)))
    repo.change_version(repo.create_branch(""))
    assert array.to_dask().name != locked


def test_a_dask_array_stays_at_its_version() -> None:
    array = start()
    array[0:8, 0:8, 0:8] = 1
    found = array.to_dask()
    repo = array._repo
    repo.lock_node("")
    repo.change_version(repo.create_branch(""))
    array[0:8, 0:8, 0:8] = 2
    assert int(found.max().compute()) == 1
    assert int(array.to_dask().min().compute()) == 2


def test_graphs_are_small(tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"))
    array[0:512, 0:512, 0:512] = 1
    found = array.to_dask(chunks="256 KiB")
    assert found.npartitions > 500
    assert len(cloudpickle.dumps(found)) < 8000
    assert len(cloudpickle.dumps(array.session())) < 1000


def test_from_array_of_dask_works_where_extents_begin_at_0() -> None:
    array = start()
    array[0:24, 0:16, 0:16] = noise(24, 16, 16)
    found = da.from_array(array)
    assert found.shape == (24, 16, 16)
    assert (found.compute() == array[...]).all()
    assert (da.from_array(array, chunks=(8, 16, 8))[3:9, 2].compute() == array[3:9, 2, :]).all()


# -- storing -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("chunks", [8, (5, 20, 31), (1, 40, 40), -1])
def test_any_chunks_are_stored_anywhere(scheduler: str, align: bool, chunks: Any) -> None:
    array = start()
    array[0:32, 0:32, 0:32] = 7
    values = noise(30, 40, 40)
    array.from_dask(
        da.from_array(values, chunks=chunks), (-3, 8, 5), align=align, scheduler=scheduler
    )
    wanted = np.zeros((40, 60, 60), np.uint32)
    wanted[8:40, 0:32, 0:32] = 7
    wanted[5:35, 8:48, 5:45] = values
    assert (array[-8:32, 0:60, 0:60] == wanted).all()
    assert operations(array) == ["write", "dask"]


def test_chunks_that_fit_are_not_rechunked() -> None:
    array = start()
    with array.session() as session:
        session.store(da.ones((32, 32, 16), chunks=(16, 8, 16)), at=(8, -8, 0))
        assert len(session.parts()) == 2 * 4
        session.store(da.ones((20, 20, 20), chunks=10), at=(0, 0, 0))
        assert len(session.parts()) == 8 + 3**3


def test_large_slices_are_cut_when_they_become_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight slices of a whole plane, joined, would be eight times what a worker expects."""
    monkeypatch.setattr(daskio, "CHUNK_BYTES", 2**16)
    array = start(dtype=np.uint8)
    source = da.ones((40, 256, 256), chunks=(1, 256, 256), dtype=np.uint8)
    with array.session() as session:
        session.store(source)
        assert len(session.parts()) == 40 // 8 * 256 * 256 * 8 // 2**16
    assert int(array[0:40, 0:256, 0:256].min()) == 1


def test_plain_store_of_dask() -> None:
    array = start()
    values = noise(30, 20, 10)
    source = da.from_array(values, chunks=(7, 9, 10))
    with array.session() as session:
        da.store([source, source + 1], [session, daskio.Place(session, (0, 0, 64))], lock=False)
    assert (array[0:30, 0:20, 0:10] == values).all()
    assert (array[0:30, 0:20, 64:74] == values + 1).all()
    assert operations(array) == ["session"]


def test_channels_are_stored() -> None:
    array = start(channels=3, dtype=np.uint8)
    values = noise(20, 20, 20, 3).astype(np.uint8)
    array.from_dask(da.from_array(values, chunks=(7, 8, 20, 1)), (1, 2, 3))
    assert (array[1:21, 2:22, 3:23] == values).all()
    with pytest.raises(InvalidError, match="3 channels; got 2"):
        array.from_dask(da.ones((8, 8, 8, 2), dtype=np.uint8))


def test_what_cannot_be_stored() -> None:
    array = start()
    with pytest.raises(InvalidError, match="a dask array is stored; got ndarray"):
        array.from_dask(np.ones((3, 3, 3)))
    with pytest.raises(InvalidError, match="3 dimensions"):
        array.from_dask(da.ones((3, 3)))
    with pytest.raises(BadIndexError, match="3 coordinates"):
        array.from_dask(da.ones((3, 3, 3)), (1, 2))
    with pytest.raises(InvalidError, match="sequence of integers"):
        array.from_dask(da.ones((3, 3, 3)), "abc")
    with pytest.raises(BadIndexError, match="32-bit"):
        array.from_dask(da.ones((3, 3, 3)), (2**31 - 2, 0, 0))
    unknown = da.ones((9, 3, 3), chunks=3)
    with pytest.raises(InvalidError, match="unknown size"):
        array.from_dask(unknown[unknown[:, 0, 0] > 0])
    with pytest.raises(InvalidError, match="cannot be stored as uint32"):
        array.from_dask(da.full((9, 9, 9), 0.5, chunks=4), scheduler="threads")
    assert operations(array) == array.sessions() == []
    array.from_dask(da.ones((0, 3, 3)))


@pytest.mark.parametrize("option", ["compute", "lock", "regions", "return_stored"])
def test_options_that_are_not_handed_on(option: str) -> None:
    array = start()
    with pytest.raises(InvalidError, match=repr(option)):
        array.from_dask(da.ones((3, 3, 3)), **{option: False})
    assert operations(array) == array.sessions() == []


def test_one_array_into_another() -> None:
    """A mean of two arrays, computed by chunks."""
    array = start()
    array[0:40, 0:40, 0:40] = noise(40, 40, 40)
    other = array._repo.create_array("b", np.uint32, block_shape=(16, 16, 16))
    other.from_dask((array.to_dask(chunks="64 KiB") + 2) // 3)
    assert (other[0:40, 0:40, 0:40] == (array[...] + 2) // 3).all()
    assert operations(other) == ["dask"]


def test_the_scheduler_of_processes(tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"))
    values = noise(40, 20, 20)
    source = da.from_array(values, chunks=(9, 20, 20))
    array.from_dask(source, (5, 5, 5), scheduler="processes", num_workers=2, align=False)
    assert (array[5:45, 5:25, 5:25] == values).all()
    assert operations(array) == ["dask"]


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    array = start()
    with pytest.raises(UnsupportedError, match=r"pip install 'diced\[dask\]'"):
        array.to_dask()


# -- worker processes ----------------------------------------------------------------------

SHAPE = (256, 1024, 1024)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, gcs_server: Any) -> Iterator[Client]:
    """Four worker processes under nannies, which start them again.

    Dask computes on it from here to the end of the module.
    """
    settings = {
        "distributed.nanny.pre-spawn-environ.STORAGE_EMULATOR_HOST": gcs_server.endpoint,
        "distributed.worker.daemon": True,
        "distributed.admin.large-graph-warning-threshold": "100MB",
        "distributed.scheduler.allowed-failures": 10,
        "distributed.comm.timeouts.connect": "60s",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=4,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            local_directory=str(tmp_path_factory.mktemp("scratch")),
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as started,
        Client(started) as client,
    ):
        yield client


def compute(block: np.ndarray, kill_once: str = "", block_info: Any = None) -> np.ndarray:
    """Return values that tell the place; one block kills its process, the first time."""
    place = block_info[None]["array-location"]
    if place[0][0] > 0 and place[1][0] > 0 and kill_once:
        try:
            os.close(os.open(kill_once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return voxels(place)


def voxels(place: Any) -> np.ndarray:
    z, y, x = (np.arange(low, high, dtype=np.uint32) for low, high in place)
    plane = y[:, None] * 31 + x[None, :] * 17
    return ((z[:, None, None] * 7 + plane) >> 3).astype(np.uint8)


def check_killed_worker(
    client: Client, location: str, shape: tuple[int, ...], chunk: tuple[int, ...], mark: Path
) -> None:
    array = start(location, dtype=np.uint8, block_shape=(64, 64, 64))
    source = da.zeros(shape, chunks=chunk, dtype=np.uint8).map_blocks(
        compute, kill_once=str(mark), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    client.wait_for_workers(4)
    before = set(client.run(os.getpid).values())
    with array.session("segmentation") as session:
        session.store(source)
        assert mark.exists()
        assert len(session.parts()) >= 16
        with DicedStore(location, readonly=True) as reader:
            seen = reader.open_repo("r")["a"]
            assert seen.bounds is None
            assert list(seen._repo.operations("a")) == []
    assert operations(array) == ["segmentation"]
    client.wait_for_workers(4)
    after = set(client.run(os.getpid).values())
    assert len(before) == len(after) == 4
    assert len(before & after) == 3
    for low in range(0, shape[0], 64):
        place = ((low, min(low + 64, shape[0])), (0, shape[1]), (0, shape[2]))
        box = tuple(slice(*each) for each in place)
        assert np.array_equal(array[box], voxels(place))


def test_a_job_of_four_processes_survives_a_killed_worker(cluster: Client, tmp_path: Path) -> None:
    check_killed_worker(
        cluster, str(tmp_path / "store"), SHAPE, (64, 256, 256), tmp_path / "killed"
    )


def test_a_job_on_a_bucket_survives_a_killed_worker(
    gcs: Any, cluster: Client, tmp_path: Path
) -> None:
    check_killed_worker(cluster, gcs.url(), (128, 200, 256), (50, 70, 128), tmp_path / "killed")


def test_workers_read(cluster: Client, tmp_path: Path) -> None:
    array = start(str(tmp_path / "store"))
    array[-8:120, 0:128, 0:128] = noise(128, 128, 128)
    found = array.to_dask(chunks="256 KiB")
    assert int(found.sum().compute()) == int(array[...].sum())
    # Chunks go from worker to worker here, and pieces of blocks are stored.
    other = array._repo.create_array("b", np.uint32, block_shape=(16, 16, 16))
    other.from_dask(found[:, 3:100].rechunk((50, 33, 128)), (1, 2, 3), align=False)
    assert (other[1:129, 2:99, 3:131] == array[-8:120, 3:100, 0:128]).all()


# -- documentation -------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLES[number], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
