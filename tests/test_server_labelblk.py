"""Labels over the wire: what neuroglancer, libdvid, neuclease and diced of old ask and send."""

import gzip
import hashlib
import io
import json

import lz4.block
import numpy as np
import pytest
from PIL import Image
from reference import segmentation_decode_reference, segmentation_encode_reference

from diced._segmentread import segmentation_decode
from diced.server import imaging

SIDE = 32
TOP = 2**64 - 1


def pattern(shape=(64, 64, 64), seed=0):
    """Labels of all 64 bits in patches, 0 among them; shape ZYX."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, TOP, 40, "u8", endpoint=True)
    palette[:3] = 0, 1, TOP
    small = rng.choice(palette, [-(-side // 5) for side in shape])
    for axis in range(3):
        small = small.repeat(5, axis)
    return np.ascontiguousarray(small[tuple(slice(side) for side in shape)])


PACK = {
    "": bytes,
    "none": bytes,
    "lz4": lambda data: lz4.block.compress(data, store_size=False),
    "gzip": gzip.compress,
}
UNPACK = {
    "": lambda data, size: data,
    "none": lambda data, size: data,
    "lz4": lambda data, size: lz4.block.decompress(data, uncompressed_size=size),
    "gzip": lambda data, size: gzip.decompress(data),
}


@pytest.fixture
def uuid(server):
    return server.repo()


@pytest.fixture
def seg(server, uuid):
    """The path of an instance with blocks of 32-cubed."""
    server.instance(uuid, "labelblk", "seg", BlockSize=f"{SIDE},{SIDE},{SIDE}")
    return f"node/{uuid}/seg"


def where(shape, x=0, y=0, z=0):
    nz, ny, nx = shape
    return f"raw/0_1_2/{nx}_{ny}_{nz}/{x}_{y}_{z}"


def put(server, seg, volume, **place):
    server.post(f"{seg}/{where(volume.shape, **place)}", volume.tobytes())


# -- instances -----------------------------------------------------------------------------


def test_an_instance_is_described_as_dvid_does(server, uuid):
    reply = server.instance(
        uuid,
        "labelblk",
        "seg",
        BlockSize="64,32,16",
        VoxelSize="4,4,40",
        Tags="a=b",
        IndexedLabels="no",
    )
    assert reply.json == {"result": f"Added seg [labelblk] to node {uuid}"}
    found = server.get(f"node/{uuid}/seg/info").json
    assert found["Base"]["TypeName"] == "labelblk"
    assert found["Base"]["TypeURL"] == "github.com/janelia-flyem/dvid/datatype/labelblk"
    assert found["Base"]["Compression"] == "LZ4 compression, level -1"
    assert (found["Base"]["Tags"], found["Base"]["Syncs"]) == ({"a": "b"}, [])
    extended = found["Extended"]
    assert extended["Values"] == [{"DataType": "uint64", "Label": "labelblk"}]
    assert (extended["Interpolable"], extended["Background"]) == (False, 0)
    assert (extended["BlockSize"], extended["VoxelSize"]) == ([64, 32, 16], [4, 4, 40])
    assert extended["MinPoint"] is extended["MaxIndex"] is None
    put(server, f"node/{uuid}/seg", pattern((16, 32, 64)), x=-64, y=32)
    extended = server.get(f"node/{uuid}/seg/info").json["Extended"]
    assert (extended["MinPoint"], extended["MaxPoint"]) == ([-64, 32, 0], [-1, 63, 15])
    assert (extended["MinIndex"], extended["MaxIndex"]) == ([-1, 1, 0], [-1, 1, 0])
    metadata = server.get(f"node/{uuid}/seg/metadata")
    assert metadata.headers["content-type"] == "application/vnd.dvid-nd-data+json"
    assert metadata.json["Axes"][0]["Offset"] == -64
    assert metadata.json["Properties"]["Values"] == extended["Values"]


def test_settings_have_defaults_and_bounds(server, uuid):
    server.instance(uuid, "labels64", "plain")
    array = server.store.open_repo(uuid=uuid)["plain"]
    assert (array.block_shape, array.codec, array.kind) == ((64, 64, 64), "label+lz4", "label")
    for compression, codec in {
        "none": "label", "snappy": "label+lz4", "gzip": "label+zstd:1", "gzip:9": "label+zstd:1",
        "zstd:7": "label+zstd:7",
    }.items():  # fmt: skip
        name = compression.replace(":", "")
        server.instance(uuid, "labelblk", name, Compression=compression)
        assert server.store.open_repo(uuid=uuid)[name].codec == codec
    for setting, value, message in (
        ("BlockSize", "10,10,10", "multiple of 8"),
        ("BlockSize", "0,32,32", "block sizes"),
        ("BlockSize", "32,32", "3 numbers"),
        ("Compression", "jpeg", "not with loss"),
        ("Compression", "lz4:3", "compression of labels"),
        ("Compression", "zstd:99", "1 to 22"),
        ("Background", "-1", "64 bits"),
        ("Background", "x", "whole number"),
    ):
        body = {"typename": "labelblk", "dataname": "bad", setting: value}
        assert message in server.refused("POST", f"repo/{uuid}/instance", body)


@pytest.mark.parametrize("typename", ["labelmap", "labelarray"])
def test_types_with_an_index_are_not_made_yet(server, uuid, typename):
    body = {"typename": typename, "dataname": "bodies", "MaxDownresLevel": "6"}
    text = server.refused("POST", f"repo/{uuid}/instance", body)
    assert f"'{typename}' is not in this version of diced; labelblk holds labels" in text


def test_python_and_the_wire_share_an_array(server, uuid, seg):
    repo, volume = server.store.open_repo(uuid=uuid), pattern()
    put(server, seg, volume, x=-5, y=7)
    assert np.array_equal(repo["seg"][:64, 7:71, -5:59], volume)
    repo.create_array("mine", islabel3D=True)[:64, :64, :64] = volume
    assert server.get(f"node/{uuid}/mine/info").json["Base"]["TypeName"] == "labelblk"
    assert server.get(f"node/{uuid}/mine/{where(volume.shape)}").body == volume.tobytes()


def test_unknown_requests_are_answered_the_usual_way(server, seg):
    for path in ("mapping", "sparsevol/1", "merge", "maxlabel"):
        assert "Bad API call" in server.refused("GET", f"{seg}/{path}")


# -- raw volumes ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", PACK)
def test_volumes_at_any_place_come_and_go_in_every_form(server, seg, form):
    volume = pattern((33, 20, 50))
    path = f"{seg}/{where(volume.shape, x=-30, y=5, z=100)}?compression={form}&throttle=on"
    server.post(f"{path}&mutate=true", PACK[form](volume.tobytes()))
    reply = server.get(path)
    assert UNPACK[form](reply.body, volume.nbytes) == volume.tobytes()
    assert "content-encoding" not in reply.headers
    part = f"{seg}/{where((3, 4, 5), x=-20, y=6, z=110)}?compression={form}"
    found = np.frombuffer(UNPACK[form](server.get(part).body, 480), "u8").reshape(3, 4, 5)
    assert np.array_equal(found, volume[10:13, 1:5, 10:15])
    far = server.get(f"{seg}/{where((8, 8, 8), x=-(2**31))}?compression={form}").body
    assert UNPACK[form](far, 4096) == bytes(4096)


@pytest.mark.parametrize(
    ("size", "offset"),
    [((64, 64, 64), (0, 0, 0)), ((16, 128, 128), (-16, -64, -128)), ((64, 64, 64), (-64, 0, 640)),
     ((7, 30, 65), (3, -2, -1))],
)  # fmt: skip
def test_neuroglancer_gets_what_it_draws(server, seg, size, offset):
    volume = pattern((100, 100, 100))
    put(server, seg, volume, x=-50, y=-50, z=-50)
    z, y, x = offset
    path = f"{seg}/{where(size, x, y, z)}?compression=googlegzip&app=Neuroglancer"
    reply = server.get(path, headers={"Origin": "https://neuroglancer-demo.appspot.com"})
    assert reply.headers["content-encoding"] == "gzip"  # the client has undone it
    assert reply.headers["access-control-allow-origin"] == "*"
    wanted = np.frombuffer(server.get(f"{seg}/{where(size, x, y, z)}").body, "u8").reshape(size)
    assert np.array_equal(segmentation_decode_reference(reply.body, size), wanted)
    if offset == (0, 0, 0):
        assert np.array_equal(wanted[:50, :50, :50], volume[50:, 50:, 50:])
    assert reply.body == segmentation_encode_reference(wanted)
    assert server.get(path.replace("googlegzip", "google")).body == reply.body
    sent = server.get(path, decode=False).body
    assert gzip.decompress(sent) == reply.body


def test_labels_can_be_posted_as_neuroglancer_has_them(server, seg):
    volume = pattern((40, 20, 30))
    data = segmentation_encode_reference(volume)
    path = f"{seg}/{where(volume.shape, z=-3)}"
    for form, body in (("google", data), ("googlegzip", gzip.compress(data))):
        put(server, seg, np.zeros_like(volume), z=-3)
        server.post(f"{path}?compression={form}", body)
        assert server.get(path).body == volume.tobytes()
    put(server, seg, np.zeros_like(volume), z=-3)
    headers = {"Content-Encoding": "gzip"}
    server.post(f"{path}?compression=googlegzip", gzip.compress(data), headers=headers)
    assert server.get(path).body == volume.tobytes()


def test_a_volume_of_more_than_one_piece(server, uuid):
    server.instance(uuid, "labelblk", "seg")
    array = server.store.open_repo(uuid=uuid)["seg"]
    array[:256, :256, :256] = np.repeat(pattern((256, 256, 4)), 64, axis=2)
    wanted = array[10:250, 1:256, :256]  # 120 MiB
    path = f"node/{uuid}/seg/{where(wanted.shape, y=1, z=10)}"
    found = server.get(f"{path}?compression=lz4").body
    assert lz4.block.decompress(found, uncompressed_size=wanted.nbytes) == wanted.tobytes()
    assert gzip.decompress(server.get(f"{path}?compression=gzip").body) == wanted.tobytes()
    out = np.empty_like(wanted)
    segmentation_decode(server.get(f"{path}?compression=googlegzip").body, out)
    assert np.array_equal(out, wanted)


def bomb(size=40 * 2**20):
    return gzip.compress(bytes(size), mtime=0)


@pytest.mark.parametrize(
    ("form", "body", "message"),
    [
        ("", bytes(100), "100 bytes, expected 4096"),
        ("lz4", b"", "cannot be"),
        ("lz4", b"\x00" * 4, "cannot be"),
        ("lz4", b"\xff" * 100, "not lz4"),
        ("lz4", lz4.block.compress(bytes(5000), store_size=False), "not lz4"),
        ("lz4", lz4.block.compress(bytes(4000), store_size=False), "not lz4"),
        ("gzip", b"", "cut off"),
        ("gzip", b"no gzip", "not gzip"),
        ("gzip", gzip.compress(bytes(4095), mtime=0), "4095 bytes, expected 4096"),
        ("gzip", bomb()[:4000], "more than 4096 bytes"),
        ("google", b"", "cannot be 1 cells"),
        ("google", b"\xff" * 100, "channel begins"),
        (
            "googlegzip",
            gzip.compress(b"\1\0\0\0" + b"\xff" * 100, mtime=0),
            "compressed_segmentation",
        ),
        ("googlegzip", bomb()[:5000], "more than"),
        ("snappy", bytes(4096), "unknown compression"),
    ],
)
def test_bodies_that_are_no_volume_are_refused(server, seg, form, body, message):
    text = server.refused("POST", f"{seg}/{where((8, 8, 8))}?compression={form}", body)
    assert message in text
    assert server.get(f"{seg}/info").json["Extended"]["MinPoint"] is None


def test_what_is_too_large_is_refused_before_it_is_sent_or_read(server, seg):
    huge = where((2**16, 2**16, 2**16))
    for form in ("", "lz4", "gzip", "google", "googlegzip"):
        for method in ("GET", "POST"):
            server.refused(
                method, f"{seg}/{huge}?compression={form}", b"x" if method == "POST" else None
            )
    large = where((1024, 512, 512))
    assert "at most" in server.refused("GET", f"{seg}/{large}?compression=google")
    assert "at most" in server.refused("GET", f"{seg}/{large}?compression=lz4")
    length = {"Content-Length": str(2**30), "Connection": "close"}
    for form in ("lz4", "gzip", "google"):
        path = f"{seg}/{where((8, 8, 8))}?compression={form}"
        server.refused("POST", path, b"x", headers=length, status=413)


def test_scales_and_planes(server, seg):
    assert "levels are 0 to" in server.refused("GET", f"{seg}/{where((8, 8, 8))}?scale=99")
    assert "scale 0" in server.refused("POST", f"{seg}/{where((8, 8, 8))}?scale=1", bytes(4096))
    assert "3-D labels" in server.refused("GET", f"{seg}/raw/xy/8_8/0_0_0/raw?compression=google")
    volume = pattern()
    put(server, seg, volume)
    for dims, size, plane in (
        ("0_1", "64_50", volume[9, :50, :]),
        ("xz", "64_20", volume[9:29, 0, :]),
        ("1_2", "40_64", volume[:, :40, 0][9 - 9 :]),
    ):
        offset = "0_0_0" if dims == "1_2" else "0_0_9"
        reply = server.get(f"{seg}/raw/{dims}/{size}/{offset}?compression=lz4")
        assert reply.headers["content-type"] == "image/png"
        pixels = imaging.decode(reply.body, "png", *plane.shape)
        assert pixels.shape == (*plane.shape, 4)
        assert np.array_equal(imaging.from_pixels(pixels, np.dtype("u8"), None), plane)
    half = server.get(f"{seg}/{where((32, 32, 32))}?scale=1").body
    reply = server.get(f"{seg}/{where((32, 32, 32))}?scale=1&compression=googlegzip")
    assert segmentation_decode_reference(reply.body, (32,) * 3).tobytes() == half
    label = server.get(f"{seg}/label/3_2_1?scale=1").json["Label"]
    assert label == int(np.frombuffer(half, "u8").reshape(32, 32, 32)[1, 2, 3])


def test_an_roi_masks_what_is_read_and_written(server, uuid, seg):
    server.instance(uuid, "roi", "inside", BlockSize="32,32,32")
    server.post(f"node/{uuid}/inside/roi", json.dumps([[0, 0, 1, 1]]).encode())
    volume = pattern((32, 32, 64), seed=1) | np.uint64(1)
    put(server, seg, volume)
    path = f"{seg}/{where(volume.shape)}"
    wanted = volume.copy()
    wanted[:, :, :32] = 0
    body = server.get(f"{path}?compression=googlegzip&roi=inside").body
    assert np.array_equal(segmentation_decode_reference(body, volume.shape), wanted)
    nines = np.full_like(volume, 9)
    server.post(f"{path}?compression=lz4&roi=inside", PACK["lz4"](nines.tobytes()))
    found = np.frombuffer(server.get(path).body, "u8").reshape(volume.shape)
    assert (found[:, :, 32:] == 9).all()
    assert np.array_equal(found[:, :, :32], volume[:, :, :32])


def test_versions_keep_their_labels(server, uuid, seg):
    one, two = pattern(), pattern(seed=2)
    put(server, seg, one)
    server.store.open_repo(uuid=uuid).lock_node("done")
    text = server.refused("POST", f"{seg}/{where(two.shape)}?compression=lz4", b"x")
    assert "locked node" in text
    child = server.store.open_repo(uuid=uuid).create_branch("next")
    put(server, f"node/{child}/seg", two[:32])
    for node, upper in ((uuid, one), (child, two)):
        reply = server.get(f"node/{node}/seg/{where(one.shape)}?compression=googlegzip")
        wanted = np.concatenate([upper[:32], one[32:]])
        assert np.array_equal(segmentation_decode_reference(reply.body, one.shape), wanted)


# -- single voxels -------------------------------------------------------------------------


def test_the_label_of_a_voxel(server, seg):
    volume = pattern()
    put(server, seg, volume, x=-40)
    for x, y, z in ((0, 0, 0), (-40, 63, 63), (-1, 31, 32)):
        label = int(volume[z, y, x + 40])
        assert server.get(f"{seg}/label/{x}_{y}_{z}").json == {"Label": label}
    assert server.get(f"{seg}/label/1000_-1000_5").json == {"Label": 0}
    for coord in ("1_2", "1_2_3_4", "a_b_c", "1_2_2147483648", "1.5_2_3"):
        server.refused("GET", f"{seg}/label/{coord}")


def test_labels_of_many_voxels(server, seg):
    volume = pattern((100, 90, 80))
    put(server, seg, volume, x=-40, y=-50, z=-60)
    rng = np.random.default_rng(0)
    places = rng.integers((-60, -70, -80), (60, 60, 60), (5000, 3))
    wanted = []
    for x, y, z in places.tolist():
        at = (z + 60, y + 50, x + 40)
        inside = all(0 <= a < n for a, n in zip(at, volume.shape, strict=True))
        wanted.append(int(volume[at]) if inside else 0)
    body = json.dumps(places.tolist()).encode()
    digest = hashlib.md5(body).hexdigest()
    for query in ("", f"?hash={digest}", "?supervoxels=true&scale=0"):
        assert server.ask("GET", f"{seg}/labels{query}", body).json == wanted
    assert server.ask("GET", f"{seg}/labels", b"[]").json == []
    edges = [[-(2**31)] * 3, [2**31 - 1] * 3]
    assert server.ask("GET", f"{seg}/labels", edges).json == [0, 0]
    assert "hash incorrect" in server.refused("GET", f"{seg}/labels?hash=12", body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[1,2,3]", b"[[1,2]]", b"[[1,2,3.5]]", b'[["1",2,3]]', b"[[1,2,true]]",
     b"[[1,2,2147483648]]", b"[[1,2,99999999999999999999]]", b"[[1,2,[3]]]", b"[[1,2,NaN]]",
     b"\xff"],
)  # fmt: skip
def test_points_that_are_none_are_refused(server, seg, body):
    server.refused("GET", f"{seg}/labels", body)


def test_too_many_points_are_refused(server, seg):
    server.refused("GET", f"{seg}/labels", b"[" + b"[1,2,3]," * 10**6 + b"[1,2,3]]", status=413)


# -- colours and syncs ---------------------------------------------------------------------


def test_pseudocolor_gives_every_label_its_colour(server, seg):
    volume = pattern()
    put(server, seg, volume)
    reply = server.get(f"{seg}/pseudocolor/xz/64_40/0_3_0")
    assert reply.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(reply.body)))
    plane = volume[:40, 3, :]
    assert picture.shape == (40, 64, 3)
    assert not picture[plane == 0].any()
    colours = {
        int(label): {tuple(each) for each in picture[plane == label].tolist()}
        for label in np.unique(plane)
    }
    assert all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) > 0.9 * len(colours)
    jpeg = server.get(f"{seg}/pseudocolor/0_1/8_8/0_0_0/jpg:90")
    assert Image.open(io.BytesIO(jpeg.body)).size == (8, 8)
    assert "planes" in server.refused("GET", f"{seg}/pseudocolor/0_1_2/8_8_8/0_0_0")
    server.refused("GET", f"{seg}/pseudocolor/xy/100000_100000/0_0_0")


def test_syncs_are_kept(server, uuid, seg):
    for name in ("one", "two"):
        server.instance(uuid, "labelblk", name)
    server.post(f"{seg}/sync", {"sync": "one"})
    server.post(f"{seg}/sync", {"sync": " two,one"})
    assert server.get(f"{seg}/info").json["Base"]["Syncs"] == ["one", "two"]
    server.post(f"{seg}/sync?replace=true", {"sync": "two"})
    assert server.get(f"{seg}/info").json["Base"]["Syncs"] == ["two"]
    assert "invalid data instance name" in server.refused("POST", f"{seg}/sync", {"sync": "none"})
    for body in ({}, {"sync": ["one"]}, [], b"x"):
        server.refused("POST", f"{seg}/sync", body)
    server.post(f"{seg}/sync?replace=true", {"sync": ""})
    assert server.get(f"{seg}/info").json["Base"]["Syncs"] == []


def test_extents_and_resolution(server, seg):
    server.post(f"{seg}/resolution", [4, 4, 40.5])
    server.post(f"{seg}/extents", {"MinPoint": [0, 0, 0], "MaxPoint": [63, 64, 65]})
    extended = server.get(f"{seg}/info").json["Extended"]
    assert (extended["VoxelSize"], extended["MaxPoint"]) == ([4, 4, 40.5], [63, 64, 65])


def test_real_labels_as_diced_of_old_moved_them(server, uuid, shared_data):
    path = shared_data / "label-blocks" / "fib19-64x64x64-sample1.dat.gz"
    volume = np.frombuffer(gzip.decompress(path.read_bytes()), "<u8").reshape(64, 64, 64)
    server.instance(uuid, "labelblk", "seg", BlockSize="64,64,64")
    path = f"node/{uuid}/seg/{where(volume.shape, x=64)}"
    server.post(f"{path}?compression=lz4&mutate=true", PACK["lz4"](volume.tobytes()))
    assert UNPACK["lz4"](server.get(f"{path}?compression=lz4").body, 2**21) == volume.tobytes()
    reply = server.get(f"{path}?compression=googlegzip", decode=False)
    assert len(reply.body) < 8000
