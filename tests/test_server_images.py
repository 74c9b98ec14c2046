"""Image instances over HTTP: settings, JSON, extents, resolution, and the old command line."""

import re

import numpy as np
import pytest
from PIL import Image

from diced.server.datatype import Settings, find_type, type_of

TYPES = {
    "uint8blk": "uint8", "uint16blk": "uint16", "uint32blk": "uint32", "uint64blk": "uint64",
    "float32blk": "float32", "rgba8blk": "uint8",
}  # fmt: skip


@pytest.fixture
def repo(server):
    server.store.create_repo("images")
    return server.store.open_repo("images")


@pytest.fixture
def make(repo):
    def create(typename="uint8blk", name="data", versioned=True, **given):
        return find_type(typename).create(repo, name, Settings(given), versioned)

    return create


def path(array, rest):
    return f"node/{array._repo.uuid}/{array.name}/{rest}"


# -- creation and description --------------------------------------------------------------


@pytest.mark.parametrize("typename", TYPES)
def test_a_new_instance(server, make, typename):
    array = make(typename)
    assert array.dtype == TYPES[typename] and array.kind == "image"
    assert array.channels == (4 if typename == "rgba8blk" else None)
    kind = type_of(array)
    assert kind.name == typename
    assert kind.url == f"github.com/janelia-flyem/dvid/datatype/imageblk/{typename[:-3]}.go"
    assert kind.version == ("0.2" if typename in ("uint8blk", "rgba8blk") else "0.1")
    value = TYPES[typename]
    labels = ["red", "green", "blue", "alpha"] if typename == "rgba8blk" else [value]
    wanted = {
        "Values": [{"DataType": value, "Label": each} for each in labels],
        "Interpolable": True,
        "BlockSize": [64, 64, 64],
        "VoxelSize": [8.0, 8.0, 8.0],
        "VoxelUnits": ["nanometers"] * 3,
        "MinPoint": None,
        "MaxPoint": None,
        "MinIndex": None,
        "MaxIndex": None,
        "Background": 0,
        "GridStore": "",
        "ScaleLevel": 0,
    }
    assert kind.extended(array) == wanted
    assert server.get(path(array, "info")).json["Extended"] == wanted
    assert kind.extents(array) == {"MinPoint": None, "MaxPoint": None}
    reply = server.get(path(array, "metadata"))
    assert reply.headers["content-type"] == "application/vnd.dvid-nd-data+json"
    axis = {"Resolution": 8.0, "Units": "nanometers", "Size": 0, "Offset": 0}
    assert reply.json == {
        "Axes": [{"Label": label, **axis} for label in "XYZ"], "Properties": wanted,
    }  # fmt: skip
    text = server.get(path(array, "help")).text
    for word in (typename, "BlockSize", "raw/{dims}", "arb/", "isotropic/", "extents", "load"):
        assert word in text


def test_settings(make):
    array = make(
        blocksize="32, 16,8", VoxelSize="1.5,2,40", VoxelUnits="nanometers,nanometers,micrometers",
        Background="7", Tags="type=em, state=raw", MinIndex="0,0,0", Nonsense="x",
    )  # fmt: skip
    assert array.block_shape == (8, 16, 32) and array.fill == 7
    assert array.voxel_size == (40, 2, 1.5)
    assert array.units == ("micrometers", "nanometers", "nanometers")
    assert array.attrs["dvid"] == {"type": "uint8blk", "tags": {"type": "em", "state": "raw"}}
    assert make(name="flat", BlockSize="512,512").numdims == 2
    assert make(name="thin", BlockSize="512,512,1").block_shape == (1, 512, 512)
    assert make(name="deep", BlockSize=[8, 8, 8, 8], VoxelSize=3).voxel_size == (3, 3, 3, 3)
    assert make("float32blk", "float", Background="-0.5").fill == -0.5
    assert make("uint64blk", "wide", Background=str(2**64 - 1)).fill == 2**64 - 1
    assert list(make("rgba8blk", "colour", Background="9").fill) == [9] * 4
    assert not make(name="same", versioned=False).versioned


@pytest.mark.parametrize(
    ("given", "codec", "shown"),
    [
        ("", "lz4", "LZ4 compression, level -1"), ("LZ4", "lz4", "LZ4 compression, level -1"),
        ("snappy", "lz4", "LZ4 compression, level -1"),
        ("none", "raw", "No compression, level -1"),
        ("gzip", "gzip:1", "gzip compression, level 1"),
        ("gzip:9", "gzip:9", "gzip compression, level 9"),
        ("zstd", "zstd:1", "zstd compression, level 1"),
        ("jpeg", "jpeg:80", "jpeg compression, level 80"),
        ("jpeg:95", "jpeg:95", "jpeg compression, level 95"),
    ],
)  # fmt: skip
def test_compression(make, given, codec, shown):
    array = make(Compression=given)
    assert array.codec == codec
    assert type_of(array).compression(array) == shown


@pytest.mark.parametrize(
    "given",
    [
        {"BlockSize": "a,b,c"}, {"BlockSize": "0,1,1"}, {"BlockSize": "64,64,-64"},
        {"BlockSize": "9999999,9999999,9999999"}, {"BlockSize": "1,1,1,1,1,1,1,1,1"},
        {"VoxelSize": "1,2"}, {"VoxelSize": "0,1,1"}, {"VoxelSize": "nan,1,1"},
        {"VoxelSize": "x"}, {"VoxelUnits": "nm,nm"}, {"Background": "x"}, {"Background": "256"},
        {"Background": "-1"}, {"Background": "0.5"}, {"Background": "nan"},
        {"Background": "1e400"}, {"Background": str(2**64)}, {"Compression": "rar"},
        {"Compression": "gzip:10"},
        {"Compression": "snappy:1"}, {"Compression": "jpeg:0"},
        {"MinPoint": "0,0", "MaxPoint": "1,1"}, {"MinPoint": "5,5,5", "MaxPoint": "1,1,1"},
        {"MinPoint": "0,0,0", "MaxPoint": "1,1,99999999999"},
    ],
)  # fmt: skip
def test_bad_settings(server, repo, given):
    from diced.errors import DicedException
    from diced.server.answer import status_of

    with pytest.raises(DicedException) as caught:
        find_type("uint8blk").create(repo, "data", Settings(given), True)
    assert status_of(caught.value) == 400
    assert "data" not in repo


@pytest.mark.parametrize("typename", ["uint16blk", "uint32blk", "rgba8blk", "float32blk"])
def test_jpeg_is_for_gray_bytes(make, typename):
    from diced.errors import InvalidError

    with pytest.raises(InvalidError):
        make(typename, Compression="jpeg")


@pytest.mark.parametrize(
    ("options", "typename"),
    [
        ({"dtype": "uint8"}, "uint8blk"), ({"dtype": "float32"}, "float32blk"),
        ({"dtype": "bool"}, "uint8blk"), ({"dtype": "float64", "fill": float("nan")}, "uint8blk"),
        ({"dtype": "int16", "dims": 1}, "uint8blk"), ({"dtype": "uint16", "dims": 2}, "uint16blk"),
        ({"dtype": "uint8", "dims": 5}, "uint8blk"),
        ({"dtype": "uint8", "channels": 4}, "rgba8blk"),
        ({"dtype": "uint16", "channels": 3, "fill": (1, 2, 3)}, "uint16blk"),
        ({"dtype": "uint8", "channels": 7, "codec": "zstd:3"}, "uint8blk"),
    ],
)  # fmt: skip
def test_arrays_made_in_python_are_described_too(server, repo, options, typename):
    array = repo.create_array("data", **options)
    dims = array.numdims
    array[(slice(-3, 5),) * dims] = 1
    assert type_of(array).name == typename
    found = server.get(path(array, "info")).json["Extended"]
    channels = array.channels or 1
    assert [each["DataType"] for each in found["Values"]] == [array.dtype.name] * channels
    assert len({each["Label"] for each in found["Values"]}) == channels
    assert found["BlockSize"] == list(array.block_shape[::-1])
    assert (found["MinPoint"], found["MaxPoint"]) == ([-3] * dims, [4] * dims)
    assert (found["MinIndex"], found["MaxIndex"]) == ([-1] * dims, [0] * dims)
    assert found["VoxelSize"] == [1.0] * dims and found["VoxelUnits"] == [""] * dims
    fill = options.get("fill", 0)
    assert found["Background"] == ("nan" if fill != fill else list(fill) if channels == 3 else fill)
    axes = server.get(path(array, "metadata")).json["Axes"]
    assert [(each["Size"], each["Offset"]) for each in axes] == [(8, -3)] * dims
    assert [each["Label"] for each in axes][:3] == list("XYZ")[:dims]
    server.get(path(array, "help"))
    assert "compression" in type_of(array).compression(array)


@pytest.mark.parametrize("typename", [*TYPES, "grayscale8", "rgba8", "labels32"])
def test_instances_are_created_by_posts(server, typename):
    uuid = server.repo()
    server.instance(uuid, typename, "data", BlockSize="32,32,32", Background="5")
    info = server.get(f"node/{uuid}/data/info").json
    names = {"grayscale8": "uint8blk", "rgba8": "rgba8blk", "labels32": "uint32blk"}
    assert info["Base"]["TypeName"] == names.get(typename, typename)
    assert info["Extended"]["BlockSize"] == [32, 32, 32] and info["Extended"]["Background"] == 5
    assert info["Extents"] == {"MinPoint": None, "MaxPoint": None}
    item = len(server.get(f"node/{uuid}/data/raw/0_1_2/1_1_1/0_0_0").body)
    body = (np.arange(1000 * item) % 251).astype(np.uint8).tobytes()
    server.post(f"node/{uuid}/data/raw/0_1_2/10_10_10/-5_0_5", body)
    assert server.get(f"node/{uuid}/data/raw/0_1_2/10_10_10/-5_0_5").body == body
    info = server.get(f"node/{uuid}/data/info").json
    assert info["Extents"] == {"MinPoint": [-5, 0, 5], "MaxPoint": [4, 9, 14]}


# -- extents, resolution, keys -------------------------------------------------------------


def corners(server, array):
    found = server.get(path(array, "info")).json["Extended"]
    return found["MinPoint"], found["MaxPoint"]


def test_extents_are_set_per_version_and_grow(server, make, repo):
    array = make(MinPoint="1,2,3", MaxPoint="11,12,13")
    assert corners(server, array) == ([1, 2, 3], [11, 12, 13])
    array[0:5, 5:6, 5:21] = 1  # grows z downwards and x upwards
    assert corners(server, array) == ([1, 2, 0], [20, 12, 13])
    body = {"MinPoint": [-100, 0, 0], "MaxPoint": [5, 6, 7]}
    server.post(path(array, "extents"), body)
    assert corners(server, array) == ([-100, 0, 0], [5, 6, 7])
    found = server.get(path(array, "metadata")).json
    assert [(each["Size"], each["Offset"]) for each in found["Axes"]] == [
        (106, -100),
        (7, 0),
        (8, 0),
    ]
    assert found["Properties"]["MinIndex"] == [-2, 0, 0]
    array[2:3, 5:6, 5:6] = 2  # nothing new
    assert corners(server, array) == ([-100, 0, 0], [5, 6, 7])
    array[2:3, 5:6, 100:101] = 2
    assert corners(server, array) == ([-100, 0, 0], [100, 6, 7])
    first = repo.uuid
    repo.lock_node("first")
    assert "locked" in server.refused("POST", path(array, "extents"), body)
    repo.change_version(repo.create_branch("second"))
    assert corners(server, array) == ([-100, 0, 0], [100, 6, 7])
    server.post(path(array, "extents"), {"MinPoint": [0, 0, 0], "MaxPoint": [9, 9, 9]})
    assert corners(server, array) == ([0, 0, 0], [9, 9, 9])
    repo.change_version(first)
    assert corners(server, array) == ([-100, 0, 0], [100, 6, 7])


def test_extents_of_an_unversioned_instance(server, make, repo):
    array = make(versioned=False)
    server.post(path(array, "extents"), {"MinPoint": [0, 0, 0], "MaxPoint": [9, 9, 9]})
    repo.lock_node("first")
    repo.change_version(repo.create_branch("second"))
    assert corners(server, array) == ([0, 0, 0], [9, 9, 9])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", [], {}, {"MinPoint": [0, 0, 0]}, {"MinPoint": [0, 0], "MaxPoint": [1, 1]},
        {"MinPoint": [0, 0, 0], "MaxPoint": [1, 1, 1.5]}, {"MinPoint": 5, "MaxPoint": 6},
        {"MinPoint": [0, 0, 0], "MaxPoint": [1, True, 1]},
        {"MinPoint": [9, 0, 0], "MaxPoint": [1, 1, 1]},
        {"MinPoint": [0, 0, -(2**31) - 1], "MaxPoint": [1, 1, 1]},
    ],
)  # fmt: skip
def test_bad_extents(server, make, body):
    array = make()
    server.refused("POST", path(array, "extents"), body)
    assert corners(server, array) == (None, None)


def test_resolution_is_of_all_versions(server, make, repo):
    array = make()
    server.post(path(array, "resolution"), [4, 8.5, 40])
    assert array.voxel_size == (40, 8.5, 4)
    assert server.get(path(array, "info")).json["Extended"]["VoxelSize"] == [4, 8.5, 40]
    for body in (
        b"",
        b"[1,2",
        [1, 2],
        [1, 2, 0],
        [1, 2, -1],
        [1, 2, "x"],
        [1, 2, True],
        {},
        b"[1,2,NaN]",
    ):
        server.refused("POST", path(array, "resolution"), body)
    assert array.voxel_size == (40, 8.5, 4)


def test_rawkey(server, make):
    array = make()
    key = server.get(path(array, "rawkey?x=1&y=2&z=3")).json["Key"]
    assert bytes.fromhex(key) and key != server.get(path(array, "rawkey?x=1&y=2&z=4")).json["Key"]
    for query in ("", "?x=1&y=2", "?x=1&y=2&z=a", f"?x=1&y=2&z={2**31}"):
        server.refused("GET", path(array, f"rawkey{query}"))


# -- the old command line ------------------------------------------------------------------


def command(server, array, *words, status=200):
    reply = server.ask("POST", path(array, "command"), {"words": list(words)})
    assert reply.status == status, reply
    return reply.text


@pytest.fixture
def stack(tmp_path):
    """Ten images of 24 x 33; returned with what they hold."""
    values = np.random.default_rng(0).integers(1, 256, (10, 24, 33), dtype=np.uint8)
    for number, plane in enumerate(values):
        Image.fromarray(plane).save(tmp_path / f"iso.{number:03d}.png")
    return tmp_path, values


def test_load(server, make, stack):
    folder, values = stack
    array = make(BlockSize="16,16,16", Background="0")
    text = command(server, array, "load", "-3,100,2600", f"{folder}/*.png")
    assert "10 x 24 x 33" in text
    assert np.array_equal(array[2600:2610, 100:124, -3:30], values)
    assert array.bounds == (slice(2600, 2610), slice(100, 124), slice(-3, 30))
    assert "were there" in command(server, array, "load", "-3,100,2600", f"{folder}/*.png")
    for words in (
        ("load",), ("load", "1,2,3"), ("load", "1,2", f"{folder}/*.png"),
        ("load", "0,0,0", f"{folder}/*.tif"), ("load", "0,0,2147483647", f"{folder}/*.png"),
        ("load", "x,0,0", f"{folder}/*.png"), ("load", "0,0,0", __file__), ("nonsense",),
    ):  # fmt: skip
        command(server, array, *words, status=400)
    other = make("float32blk", "other")
    command(server, other, "load", "0,0,0", f"{folder}/*.png")
    assert np.array_equal(other[0:10, 0:24, 0:33], values)


def test_colours_are_loaded_as_rgba(server, make, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    for number, plane in enumerate(values):
        Image.fromarray(plane).save(tmp_path / f"{number}.png")
    array = make("rgba8blk")
    command(server, array, "load", "0,0,0", f"{tmp_path}/*.png")
    assert np.array_equal(array[0:3, 0:8, 0:9, 0:3], values)
    assert (array[0:3, 0:8, 0:9, 3] == 255).all()
    command(server, make(name="gray"), "load", "0,0,0", f"{tmp_path}/*.png", status=400)


@pytest.mark.parametrize(
    ("plane", "order"),
    [("xy", (0, 1, 2)), ("xz", (1, 0, 2)), ("yz", (1, 2, 0)), ("0_2", (1, 0, 2))],
)
def test_put_local(server, make, stack, monkeypatch, plane, order):
    monkeypatch.setattr("diced.server.imagecommands.GROUP_BYTES", 1)
    folder, values = stack
    array = make(BlockSize="4,4,4")
    files = sorted(map(str, folder.glob("*.png")), reverse=True)
    assert "10 planes" in command(server, array, "put", "local", plane, "5,6,7", *files)
    wanted = values[::-1].transpose(order)
    box = tuple(slice(a, a + n) for a, n in zip((7, 6, 5), wanted.shape, strict=True))
    assert np.array_equal(array[box], wanted)
    assert array.bounds == box


def test_put_refuses(server, make, stack):
    folder, _ = stack
    array = make()
    for words in (
        ("remote", "xy", "0,0,0", "x.png"), ("local", "xy", "0,0,0"),
        ("local", "vol", "0,0,0", "x.png"),
        ("local", "xy", "0,0,0", "none.png"), ("local", "zz", "0,0,0", f"{folder}/*.png"),
        ("local", "xy", "0,0", f"{folder}/*.png"),
        ("local", "xy", "2147483647,0,0", f"{folder}/*.png"),
    ):  # fmt: skip
        command(server, array, "put", *words, status=400)
    assert array.bounds is None


def test_roi_of_what_is_not_background(server, make, repo):
    array = make(BlockSize="8,8,8")
    array[0:24, 0:16, 0:40] = 1
    array[8:9, 3:4, 8:9] = 9
    array[16:24, 8:16, 0:40] = 0
    array[16:17, 9:10, 0:40] = 7
    assert "6 blocks" in command(server, array, "roi", "found", "0,1")
    roi = repo.get_array("found")
    assert roi.block_shape == (8, 8, 8)
    assert roi.spans().tolist() == [[1, 0, 1, 1], [2, 1, 0, 4]]
    assert "0 blocks" in command(server, make(name="empty"), "roi", "nothing", "0")
    for words in (
        ("found", "0"),
        ("x",),
        ("x", "y"),
        ("x", "0", "1"),
        ("x", "nan"),
        ("x", "1e400"),
    ):
        command(server, array, "roi", *words, status=400)


def test_commands_are_described(server, make):
    text = server.get(path(make(), "help")).text
    for word in ("load <x,y,z>", "put local <plane>", "roi <new roi>"):
        assert re.search(re.escape(word), text)
