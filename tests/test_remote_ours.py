"""The client at our own server: what DVID's API has no word for, and what merges there."""

import pickle
import secrets
import threading

import numpy as np
import pytest
from serving import serving

from diced import (
    AccessError,
    AlreadyExistsError,
    DicedStore,
    InvalidError,
    LockedError,
    NotFoundError,
    UnsupportedError,
)


@pytest.fixture
def store(disk_server):
    with DicedStore(disk_server.url.replace("http", "dvid"), user="ann") as store:
        yield store


@pytest.fixture
def repo(store):
    return store.create_repo("r", "of tests")


@pytest.fixture
def local(disk_server):
    """The server's store, as another process sees it."""
    with DicedStore(disk_server.app.options.location) as store:
        yield store


def test_it_is_known_as_ours(store, local):
    assert store.ours and store.merges and store.uuid == local.uuid


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5,), {"dtype": "int8", "block_shape": (np.int64(3),)}),
        ((5, 6), {"dtype": "float16"}),
        ((5, 6, 7), {"dtype": "bool", "codec": "zstd:3"}),
        ((5, 6, 7), {"dtype": "float64", "fill": 2.5, "block_shape": (4, 4, 4)}),
        ((3, 4, 5, 6), {"dtype": "int32", "fill": -3, "block_shape": (2, 2, 2, 2)}),
        ((2, 3, 2, 3, 2), {"dtype": "uint64", "block_shape": (2,) * 5}),
        ((5, 6, 7), {"dtype": "uint16", "channels": 3, "fill": [1, 2, 3]}),
        ((5, 6), {"dtype": "uint8", "channels": 2, "units": "nm", "voxel_size": (1, 2)}),
    ],
)
def test_all_that_a_store_at_a_path_has(repo, local, shape, options):
    made = repo.create_array("a", dims=len(shape), **options)
    ours = local.open_repo("r").get_array("a")
    for name in ("kind", "dtype", "numdims", "channels", "block_shape", "codec", "units",
                 "voxel_size", "shape", "bounds", "versioned"):  # fmt: skip
        assert getattr(made, name) == getattr(ours, name), name
    assert np.array_equal(made.fill, ours.fill)
    rng = np.random.default_rng(1)
    tail = () if ours.channels is None else (ours.channels,)
    data = rng.integers(0, 2 if ours.dtype == bool else 100, (*shape, *tail)).astype(ours.dtype)
    box = tuple(slice(n - 3, 2 * n - 3) for n in shape)
    made[box] = data
    assert np.array_equal(ours[box], data) and np.array_equal(made[box], data)
    around = tuple(slice(n - 5, 2 * n + 2) for n in shape)
    assert np.array_equal(made[around], ours[around])
    assert made.bounds == ours.bounds == box
    assert sorted(made.blocks()) == sorted(ours.blocks())
    step = tuple(slice(None, None, 2) for _ in shape)
    made[step] = 1
    ours_now = ours[around].copy()
    assert np.array_equal(made[around], ours_now) and (ours[step] == 1).all()


def test_attributes_are_the_arrays_own(repo, local):
    array = repo.create_array("a", "uint8", attrs={"x": 1})
    ours = local.open_repo("r").get_array("a")
    assert ours.attrs["x"] == 1
    array.attrs.update(y=[1, None], z="t")
    del array.attrs["x"]
    assert dict(array.attrs) == {"y": [1, None], "z": "t"} == {
        key: value for key, value in ours.attrs.items() if key != "dvid"
    }  # fmt: skip
    repo.lock_node("m")
    array.attrs["late"] = True  # the same at every version, locked or not
    assert ours.attrs["late"] is True
    with pytest.raises(InvalidError, match="dvid"):
        array.attrs["dvid"] = {}


def test_batches_of_any_boxes_are_one_commit(repo, local):
    array = repo.create_array("a", "uint8")
    with array.batch("two corners"):
        array[0, 0, 0] = 1
        array[100:110, 100, 100:120:5] = 2
        array[-3:3:2, -1, 5] = [7, 8, 9]
        assert array[0, 0, 0] == 1 and array[100, 100, 105] == 2
    ours = local.open_repo("r").get_array("a")
    assert ours[100:102, 100, 100:107].tolist() == [[2, 0, 0, 0, 0, 2, 0]] * 2
    assert ours[-3:3, -1, 5].tolist() == [7, 0, 8, 0, 9, 0]
    [operation] = repo.operations("a")
    assert operation == next(local.open_repo("r").operations("a"))
    assert (operation["operation"], operation["user"]) == ("two corners", "ann")


def test_channels_and_steps_are_one_commit(repo):
    array = repo.create_array("a", "uint8", channels=3, block_shape=(4, 4, 4))
    array[0:8, 0:8, 0:8] = 1
    array[0:8:3, 7::-2, 5, ::-1] = np.arange(3 * 4 * 3).reshape(3, 4, 3)
    wanted = np.ones((8, 8, 8, 3), np.uint8)
    wanted[0:8:3, 7::-2, 5, ::-1] = np.arange(3 * 4 * 3).reshape(3, 4, 3)
    assert (array[0:8, 0:8, 0:8] == wanted).all()
    assert len(list(repo.operations("a"))) == 2


def test_unaligned_writers_lose_nothing(disk_server, repo):
    array = repo.create_array("a", "uint16", block_shape=(16, 16, 16))
    data = np.random.default_rng(2).integers(1, 2**16, (40, 40, 40)).astype(np.uint16)

    def write(number):
        with DicedStore(disk_server.url.replace("http", "dvid")) as own:
            mine = own.open_repo("r").get_array("a")
            for at in range(number, 40, 4):
                mine[at : at + 1, 0:40, 0:40] = data[at]

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (array[0:40, 0:40, 0:40] == data).all()


def test_each_write_is_one_commit(repo):
    array = repo.create_array("a", "uint8")
    array[3:200, 5:70, -1:64] = 4
    with array.batch("told"):
        array[3:200, 5:70, -1:64] = 5
    found = list(repo.operations("a"))
    assert [each["operation"] for each in found] == ["write", "told"]
    assert found[0]["box"] == [[3, 5, -1], [200, 70, 64]]


def test_an_embedded_writer_is_seen_at_once(repo, local):
    array = repo.create_array("a", "uint8")
    ours = local.open_repo("r")
    ours["a"][1, 2, 3] = 9
    assert array[1, 2, 3] == 9 and array.bounds == (slice(1, 2), slice(2, 3), slice(3, 4))
    ours.upload_filedata("f", b"x")
    assert repo.download_filedata("f") == b"x"
    ours.lock_node("m")
    child = ours.create_branch("c")
    assert repo.locked
    with pytest.raises(LockedError, match=child):
        array[0, 0, 0] = 1
    assert repo.branches() == {"master": child}


def test_deletion(store, repo, local):
    array = repo.create_array("a", "uint8")
    repo.delete_array("a")
    with pytest.raises(NotFoundError):
        array[0, 0, 0]
    again = repo.create_array("a", "uint16")
    again[0, 0, 0] = 300
    with pytest.raises(NotFoundError):
        array.attrs["x"]
    store.delete_repo("r")
    assert local.list_repos() == [] == store.list_repos()
    with pytest.raises(NotFoundError):
        store.delete_repo("r")
    with pytest.raises(NotFoundError):
        repo.list_files()


def test_names_and_kinds(repo):
    for name in ("a/b", "log", ".."):
        with pytest.raises(InvalidError):
            repo.create_array(name, "uint8")
    repo.create_array("kv", kind="keyvalue")["a/b/"] = b"1"
    values = repo["kv"]
    values["/x"] = b"2"
    assert dict(values.items()) == {"/x": b"2", "a/b/": b"1"}
    del values["a/b/"]
    assert list(values) == ["/x"]
    values.put_many({"1": b"", "2": b"", "3": b""}, operation="three")
    values.delete_many(["1", "3", "none"], operation="two of them")
    assert list(values) == ["/x", "2"]
    assert [each["operation"] for each in repo.operations("kv")][-2:] == [
        "put 3 keys",
        "two of them",
    ]
    with pytest.raises(AlreadyExistsError):
        repo.create_array("kv", "uint8")
    with pytest.raises(UnsupportedError):
        repo.create_array("bodies", kind="labelmap")
    with pytest.raises(InvalidError, match="sent"):
        repo.create_array("odd", "uint8", fill=object())


def test_two_dimensions_as_the_first_diced_made_them(store, repo):
    url = f"repo/{repo.uuid}/instance"
    store.server.post_json(
        url, {"typename": "uint8blk", "dataname": "flat", "BlockSize": "512,512,1"}
    )
    identity = store.server.get_json(f"node/{repo.uuid}/flat/info")["Base"]["DataUUID"]
    assert repo.get_array("flat").numdims == 3
    repo[".meta"][f"instance:flat:{identity}"] = '{"numdims": 2}'
    flat = repo.get_array("flat")
    assert (flat.numdims, flat.block_shape) == (2, (512, 512))
    flat[5:7, 600:603] = 8
    assert flat[4:8, 601].tolist() == [0, 8, 8, 0]
    assert flat.bounds == (slice(5, 7), slice(600, 603)) and list(flat.blocks()) == [(0, 1)]


def test_pickled_arrays_of_our_server(repo):
    array = repo.create_array("a", "int16", dims=4, block_shape=(2, 2, 2, 2))
    array[0, 0, 0, 0:3] = [1, -2, 3]
    again = pickle.loads(pickle.dumps(array))
    assert again[0, 0, 0, 0:4].tolist() == [1, -2, 3, 0]
    again._repo.store.close()


def test_planes_and_snapshots(repo, local):
    array = repo.create_array("a", "uint8", block_shape=(8, 8, 8))
    array[0:20, 0:20, 0:20] = np.random.default_rng(5).integers(0, 255, (20, 20, 20))
    ours = local.open_repo("r").get_array("a")
    plane = ((2.5, 1.0, 0.0), (0.5, 1.0, 0.0), (0.0, 0.25, 1.0), (12, 14))
    assert (array.plane(*plane) == ours.plane(*plane)).all()
    with pytest.raises(UnsupportedError):
        array.snapshot()
    repo.lock_node("m")
    assert (array.snapshot()[3:5, 1, 2:9] == ours[3:5, 1, 2:9]).all()


@pytest.mark.parametrize(
    "body",
    [b"", b"\1\0", b"\5\0\0\0{}", b"\2\0\0\0{}", b"\2\0\0\0[]", b"\xff\xff\xff\xff{}",
     (lambda j: len(j).to_bytes(4, "little") + j)(
         b'{"indices": [[[0, 1' + b"0" * 30 + b', 1], [0, 9, 1], [0, 9, 1]]]}'),
     b'\x1c\0\0\0{"indices": [[[0, 9, 1]]]}  ', b'\x14\0\0\0{"indices": "abc"}  ',
     b'\x32\0\0\0{"indices": [[[0, 9, 1], [0, 9, 1], [0, 9, 1]]]}    x',
     b'\x32\0\0\0{"indices": [[[0, 9, 0], [0, 9, 1], [0, 9, 1]]]}    x',
     b'\x34\0\0\0{"indices": [[[9, 0, "1"], [0, 9, 1], [0, 9, 1]]]}  x'],
)  # fmt: skip
def test_bad_batches_are_refused(disk_server, repo, body):
    repo.create_array("a", "uint8")
    disk_server.refused("POST", f"node/{repo.uuid}/a/diced/batch", body)
    assert not list(repo.operations("a"))


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": 5, "kind": "image"}, {"name": "a", "kind": 5}, {"name": "log", "kind": "image"},
     {"name": "a", "kind": "image", "options": {"self": 1}}, {"name": "a", "kind": "nonsense"},
     {"name": "a", "kind": "image", "options": {"dtype": "uint9"}},
     {"name": "a", "kind": "image", "options": {"dims": -1}},
     {"name": "a", "kind": "image", "options": {"dtype": {"a": 1}}},
     {"name": "a", "kind": "image", "options": {"voxel_size": 10**400}},
     {"name": "a", "kind": "image", "options": {"fill": [[1]]}},
     {"name": "a", "kind": "image", "options": {"units": [None]}},
     {"name": "a", "kind": "image", "options": {"block_shape": "x"}},
     {"name": "a", "kind": "image", "attrs": {"dvid": {}}},
     {"name": "a", "kind": "image", "attrs": []}],
)  # fmt: skip
def test_bad_creations_are_refused(disk_server, repo, fields):
    disk_server.refused("POST", f"repo/{repo.uuid}/array", fields)
    assert "a" not in repo


def test_rights():
    access = {
        "default": {"open": "read"},
        "users": {
            "ann": {"token": "a-token", "rights": "admin"},
            "bob": {"token": "b-token", "rights": {"open": "write"}},
        },
    }
    with serving(f"memory://{secrets.token_hex(8)}", access=access) as server:
        url = server.url.replace("http", "dvid")
        with DicedStore(url, token="a-token") as store:
            for name in ("open", "shut"):
                store.create_repo(name).create_array("a", "uint8")[0, 0, 0] = 3
        with DicedStore(url) as store:
            assert store.ours and [name for name, _ in store.list_repos()] == ["open"]
            array = store.open_repo("open")["a"]
            assert array[0, 0, 0] == 3
            with pytest.raises(AccessError):
                array[0, 0, 0] = 4
        with DicedStore(url, token="b-token") as store:
            repo = store.open_repo("open")
            repo["a"][0, 0, 0] = 5
            assert [each["user"] for each in repo.operations("a")] == ["ann", "bob"]
            with pytest.raises(AccessError):
                repo.delete_array("a")
        with pytest.raises(AccessError):
            DicedStore(url, token="no-token").list_repos()
