"""Arrays at a server as strict as Janelia's."""

import threading

import dask.array
import numpy as np
import pytest
from fake_dvid_case import fake, ramp, repo, store  # noqa: F401

import diced
from diced import (
    BadIndexError,
    CorruptError,
    DicedStore,
    UnsupportedError,
)
from diced.remote import voxels

# -- a strict server -----------------------------------------------------------------------

DVID_DTYPES = ["uint8", "uint16", "uint32", "uint64", "float32"]


@pytest.mark.parametrize("dtype", DVID_DTYPES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_types_and_dimensions(fake, repo, dtype, dims):
    block = {1: (4096,), 2: (32, 64), 3: (8, 16, 32)}[dims]
    made = repo.create_array("a", dtype, dims=dims, block_shape=block, voxel_size=3.5, units="nm")
    array = repo.get_array("a")
    assert (array.numdims, array.dtype, array.block_shape) == (dims, dtype, block)
    assert array.voxel_size == (3.5,) * dims and array.units == ("nm",) * dims
    assert array.bounds is None and array.shape == (0,) * dims
    box = tuple(slice(-3, 3 + 2 * n) for n in block)
    data = ramp(tuple(6 + 2 * n for n in block), dtype)
    made[box] = data
    assert array[box].dtype == data.dtype and (array[box] == data).all()
    around = tuple(slice(-5, 5 + 2 * n) for n in block)
    wanted = np.zeros(tuple(10 + 2 * n for n in block), dtype)
    wanted[(slice(2, -2),) * dims] = data
    assert (array[around] == wanted).all()
    extents = tuple(slice(-n, 3 * n) for n in block)
    assert array.get_extents() == (extents if dims > 1 else extents[0])
    assert "one voxel" not in str(fake.log)


def test_colours_and_labels(fake, repo):
    colours = repo.create_array("c", "uint8", channels=4, block_shape=(4, 4, 4))
    data = ramp((6, 5, 4, 4))
    colours[1:7, 0:5, 0:4] = data
    assert (colours[1:7, 0:5, 0:4] == data).all()
    assert (colours[1:7, 0:5, 0:4, 2] == data[..., 2]).all()
    colours[1:7, 0:5, 0:4, 2] = 7
    data[..., 2] = 7
    assert (colours[1:7, 0:5, 0:4] == data).all()
    labels = repo.create_array("l", islabel3D=True)
    assert labels.islabel3D and labels.block_shape == (64, 64, 64)
    values = ramp((64, 64, 70), np.uint64) << np.uint64(40)
    fake.log.clear()
    labels[0:64, 0:64, 5:75] = values
    assert (labels[0:64, 0:64, 5:75] == values).all()
    assert {query.get("compression") for _, path, query in fake.log if "/raw/" in path} == {"lz4"}


def test_old_label_types_are_read_only(fake, repo):
    for number, kind in enumerate(("labelarray", "labelmap")):
        repo.store.server.post_json(
            f"repo/{repo.uuid}/instance", {"typename": kind, "dataname": kind}
        )
        data = fake.repos[repo.root].instances[kind]
        data.put(fake.repos[repo.root].nodes[repo.root], (0, 0, 0), np.full((64,) * 3, number + 5))
        array = repo.get_array(kind)
        assert array.islabel3D and (array[3:9, 60:70, 0:2][:, :4] == number + 5).all()
        with pytest.raises(UnsupportedError, match="bodies"):
            array[0:64, 0:64, 0:64] = 1
    assert dict(repo.list_instances())["labelmap"] is diced.ArrayDtype.uint64


@pytest.mark.parametrize(
    "options",
    [{"dtype": "int8"}, {"dtype": "float64"}, {"dims": 4}, {"fill": 3}, {"codec": "zstd"},
     {"channels": 3}, {"dtype": "uint16", "channels": 4}],
)  # fmt: skip
def test_what_dvid_has_not(repo, options):
    with pytest.raises(UnsupportedError, match="'a'"):
        repo.create_array("a", **{"dtype": "uint8", **options})
    assert "a" not in repo


def test_compressions(repo):
    for codec in ("raw", "lz4", "gzip:3", "jpeg"):
        found = repo.create_array(codec.replace(":", "_"), "uint8", codec=codec)
        assert found.codec.split(":")[0] == codec.split(":")[0]


def test_unaligned_writes_touch_border_blocks_only(fake, repo):
    array = repo.create_array("a", "uint8", block_shape=(8, 8, 8))
    data = ramp((32, 32, 32))
    array[0:32, 0:32, 0:32] = data
    fake.log.clear()
    array[8:24, 0:16, 16:32] = 1  # whole blocks: nothing is read
    assert fake.count("GET", "/raw/") == 0 and fake.count("POST", "/raw/") == 1
    data[8:24, 0:16, 16:32] = 1
    fake.log.clear()
    array[3:5, 30:32, 0:9] = 2
    data[3:5, 30:32, 0:9] = 2
    reads = [path.split("/raw/")[1] for m, path, _ in fake.log if m == "GET" and "/raw/" in path]
    assert reads == ["0_1_2/16_8_8/0_24_0"]
    assert (array[0:32, 0:32, 0:32] == data).all()


def test_large_writes_read_their_borders_only(fake, repo, monkeypatch):
    monkeypatch.setattr(voxels, "WRITE_BYTES", 4096)
    monkeypatch.setattr(voxels, "READ_LEAST", 4096)
    array = repo.create_array("a", "uint8", block_shape=(8, 8, 8))
    data = ramp((60, 60, 60))
    fake.log.clear()
    array[2:62, 2:62, 2:62] = data
    sizes = {"GET": 0, "POST": 0}
    for method, path, _ in fake.log:
        if "/raw/" in path:
            sizes[method] += np.prod([int(n) for n in path.split("/")[-2].split("_")])
    assert sizes == {"GET": 64**3 - 48**3, "POST": 64**3}
    assert (array[2:62, 2:62, 2:62] == data).all()
    assert not array[0:2, 0:64, 0:64].any() and not array[0:64, 0:64, 62:64].any()


def test_neighbours_of_one_store_do_not_undo_each_other(repo):
    array = repo.create_array("a", "uint8", block_shape=(8, 8, 8))

    def write(number):
        array[number : number + 1, 0:8, 0:8] = number + 1

    threads = [threading.Thread(target=write, args=(each,)) for each in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert array[0:8, 0, 0].tolist() == list(range(1, 9))


def test_a_server_that_turns_out_to_be_strict(fake, repo):
    repo.store.merges = True  # as if it had said so
    array = repo.create_array("a", "uint8")
    array[3:5, 3:5, 3:5] = 6
    assert not repo.store.merges and array[3:6, 4, 4].tolist() == [6, 6, 0]


def test_steps_and_single_voxels(repo):
    array = repo.create_array("a", "uint16", block_shape=(8, 8, 8))
    data = ramp((20, 21, 22), np.uint16)
    array[-5:15, 0:21, 0:22] = data
    array[-5:15:3, 20::-4, 7] = 1
    data[::3, 20::-4, 7] = 1
    assert (array[-5:15, 0:21, 0:22] == data).all()
    assert (array[14:-6:-2, 3, 1:20:6] == data[19::-2, 3, 1:20:6]).all()
    assert array[-5, 0, 0] == data[0, 0, 0] and isinstance(array[-5, 0, 0], np.uint16)
    out = np.empty((20, 22), np.uint16)
    assert array.read((slice(-5, 15), 4, slice(0, 22)), out) is out
    assert (out == data[:, 4]).all()
    with pytest.raises(BadIndexError):
        array[0, 0]
    with pytest.raises(BadIndexError, match="whole blocks"):
        repo.create_array("odd", "uint8", block_shape=(8, 8, 5))[0, 0, 2**31 - 1] = 1


def test_random_indices_are_those_of_a_local_array(repo):
    rng = np.random.default_rng(3)
    with DicedStore("memory://") as local:
        ours = local.create_repo("r").create_array("a", "uint16", block_shape=(4, 8, 5))
        theirs = repo.create_array("a", "uint16", block_shape=(4, 8, 5))
        for number in range(40):
            index = []
            for _ in range(3):
                ends = sorted(rng.integers(-12, 20, 2).tolist())
                step = int(rng.choice([1, 1, 2, 5, -1, -3]))
                each = slice(*(ends if step > 0 else ends[::-1]), step)
                index.append(int(ends[0]) if rng.random() < 0.2 else each)
            index = tuple(index)
            ours[index] = number + 1
            theirs[index] = number + 1
            box = (slice(-12, 20),) * 3
            assert (ours[box] == theirs[box]).all(), index
            assert np.array_equal(ours[index], theirs[index]), index


def test_large_reads_are_cut_and_joined(fake, repo):
    array = repo.create_array("a", "uint8", block_shape=(32, 32, 32))
    data = ramp((160, 160, 160))
    array[0:160, 0:160, 0:160] = data
    fake.log.clear()
    assert (array[5:155, 1:160, 0:159] == data[5:155, 1:160, 0:159]).all()
    assert fake.count("GET", "/raw/") > 1
    wide = np.zeros((150, 400), np.uint8)
    array.read((slice(5, 155), 7, slice(0, 160)), wide[:, 100:260])
    assert (wide[:, 100:260] == data[5:155, 7]).all() and not wide[:, :100].any()


def test_empty_selections_ask_nothing(fake, repo):
    array = repo.create_array("a", "uint8")
    fake.log.clear()
    assert array[3:3, 0:5, 0:5].shape == (0, 5, 5)
    array[3:3, 0:5, 0:5] = 1
    assert not fake.log


# -- batches -------------------------------------------------------------------------------


def test_a_batch_that_fills_a_box_is_one_request(fake, repo):
    array = repo.create_array("a", "uint8", block_shape=(8, 8, 8))
    fake.log.clear()
    with array.batch():
        array[0:8, 0:8, 0:8] = 1
        array[8:16, 0:8, 0:8] = 2
        array[4, 0:8, 0:8] = 3
        assert array[3:9, 0, 0].tolist() == [1, 3, 1, 1, 1, 2]
        assert fake.count("POST") == 0
    assert fake.count("POST", "/raw/") == 1
    assert array[3:9, 0, 0].tolist() == [1, 3, 1, 1, 1, 2]
    with array.batch():
        array[0:16:2, 0:8, 0:8] = 8
        array[1:16:2, 0:8, 0:8] = 9
    assert array[0:4, 7, 7].tolist() == [8, 9, 8, 9]


def test_a_batch_with_gaps_writes_nothing(fake, repo):
    array = repo.create_array("a", "uint8", block_shape=(8, 8, 8))
    with pytest.raises(UnsupportedError, match="gaps"), array.batch():
        array[0:8, 0:8, 0:8] = 1
        array[16:24, 0:8, 0:8] = 2
    with pytest.raises(UnsupportedError, match="gaps"), array.batch():
        array[0:8, 0:8, 0:8] = 1
        array[0:8, 0:8, 0:8] = 1
        array[8:16, 0:8, 0] = 2
    assert fake.count("POST", "/raw/") == 0
    with pytest.raises(ZeroDivisionError), array.batch():
        array[0:8, 0:8, 0:8] = 1 // 0
    with array.batch():
        pass
    assert array.bounds is None


# -- dask and JPEG -------------------------------------------------------------------------


def test_dask(repo):
    array = repo.create_array("a", "uint16", block_shape=(16, 16, 16))
    data = ramp((40, 50, 60), np.uint16)
    array.from_dask(dask.array.from_array(data, chunks=(17, 50, 13)), at=(-4, 0, 3))
    found = array.to_dask((slice(-4, 36), slice(0, 50), slice(3, 63)), chunks="16 KiB")
    assert found.npartitions > 4 and (found.compute() == data).all()
    assert (array.to_dask()[20:30].compute() == array[...][20:30]).all()


def test_jpeg_as_it_is_stored(fake):
    with DicedStore(fake.url, jpeg=True) as store:
        repo = store.create_repo("r")
        array = repo.create_array("a", "uint8", lossycompression=True)
        z, y, x = np.mgrid[0:128, 0:64, 0:64]
        data = (120 + 50 * np.sin(z / 19) + 40 * np.cos((x + y) / 11)).astype(np.uint8)
        array[0:128, 0:64, 0:64] = data
        fake.log.clear()
        found = array[10:100, -4:60, 3:70]
        assert fake.count("GET", "subvolblocks") and not fake.count("GET", "/raw/")
        wanted = np.zeros(found.shape, np.uint8)
        wanted[:, 4:, :61] = data[10:100, 0:60, 3:64]
        assert np.abs(found.astype(int) - wanted).mean() < 5
        assert not found[:, :4].any() and not found[:, :, 61:].any()
        fake.fail(1, "GET", "subvolblocks", 200, b"\1\2\3")
        with pytest.raises(CorruptError, match="header"):
            array[0:64, 0:64, 0:64]
        fake.fail(1, "GET", "subvolblocks", 200, np.array([0, 0, 0, 4, 5], "<i4").tobytes())
        with pytest.raises(CorruptError, match="block"):
            array[0:64, 0:64, 0:64]
