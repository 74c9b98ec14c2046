"""DVID's reference, row by row: uint8blk, uint16blk, uint32blk, uint64blk, float32blk, rgba8blk."""

import io
import struct

import lz4.block
import numpy as np
import pytest
from contract import hold
from PIL import Image

TYPES = {
    "uint8blk": "uint8", "uint16blk": "uint16", "uint32blk": "uint32", "uint64blk": "uint64",
    "float32blk": "float32", "rgba8blk": "uint8",
}  # fmt: skip
RNG = np.random.default_rng(7)
SIDE = 16
OCTETS = "application/octet-stream"


class Volume:
    """An instance with noise from (-16, -16, -16) to (31, 31, 31), and what it holds."""

    def __init__(self, server, typename="uint8blk", **settings):
        self.server, self.uuid = server, server.repo()
        fields = {"BlockSize": f"{SIDE},{SIDE},{SIDE}", **settings}
        server.instance(self.uuid, typename, "data", **fields)
        self.path = f"node/{self.uuid}/data"
        tail = (4,) if typename == "rgba8blk" else ()
        values = RNG.integers(0, 256, (48, 48, 48, *tail))
        self.values = values.astype(TYPES[typename])  # ZYX
        self.post("raw/0_1_2/48_48_48/-16_-16_-16", self.values.tobytes())

    def get(self, rest, **more):
        return self.server.get(f"{self.path}/{rest}", **more)

    def post(self, rest, body):
        return self.server.post(f"{self.path}/{rest}", body)

    def hold(self, rows):
        hold(self.server, rows, p=self.path, u=self.uuid)

    def extended(self):
        return self.get("info").json["Extended"]

    def picture(self, rest):
        return np.asarray(Image.open(io.BytesIO(self.get(rest).body)))


@pytest.fixture
def gray(server):
    return Volume(server)


def records(body):
    """Return [(x, y, z, bytes), ...] of a stream of blocks."""
    found, at = [], 0
    while at < len(body):
        x, y, z, length = struct.unpack_from("<4i", body, at)
        found.append((x, y, z, body[at + 16 : at + 16 + length]))
        at += 16 + length
    assert at == len(body)
    return found


# -- settings and description --------------------------------------------------------------


def test_info(server):
    uuid = server.repo()
    settings = {
        "BlockSize": "32,16,8", "VoxelSize": "4.0,8.0,40", "VoxelUnits": "nm,nm,um",
        "Background": "255", "MinIndex": "0,0,0", "MaxIndex": "9,9,9", "ScaleLevel": "2",
    }  # fmt: skip
    server.instance(uuid, "uint8blk", "data", **settings)
    wanted = {
        "Values": [{"DataType": "uint8", "Label": "uint8"}], "Interpolable": True,
        "BlockSize": [32, 16, 8], "VoxelSize": [4.0, 8.0, 40.0], "VoxelUnits": ["nm", "nm", "um"],
        "MinPoint": None, "MaxPoint": None, "MinIndex": None, "MaxIndex": None, "Background": 255,
        "GridStore": "", "ScaleLevel": 2,
    }  # fmt: skip
    path = f"node/{uuid}/data"
    info = server.get(f"{path}/info").json
    assert set(info) == {"Base", "Extended", "Extents"}
    assert info["Extended"] == wanted
    assert info["Extents"] == {"MinPoint": None, "MaxPoint": None}
    reply = server.get(f"{path}/metadata")
    assert reply.headers["content-type"] == "application/vnd.dvid-nd-data+json"
    axes = [("X", 4.0, "nm"), ("Y", 8.0, "nm"), ("Z", 40.0, "um")]
    assert reply.json == {
        "Axes": [
            {"Label": label, "Resolution": size, "Units": unit, "Size": 0, "Offset": 0}
            for label, size, unit in axes
        ],
        "Properties": wanted,
    }
    # The last voxel is included; blocks are counted downwards below zero.
    server.post(f"{path}/raw/0_1_2/33_16_8/-1_-16_0", bytes(33 * 16 * 8))
    info = server.get(f"{path}/info").json
    assert info["Extents"] == {"MinPoint": [-1, -16, 0], "MaxPoint": [31, -1, 7]}
    assert info["Extended"]["MinPoint"] == [-1, -16, 0]
    assert (info["Extended"]["MinIndex"], info["Extended"]["MaxIndex"]) == ([-1, -1, 0], [0, -1, 0])
    found = server.get(f"{path}/metadata").json["Axes"]
    assert [(each["Size"], each["Offset"]) for each in found] == [(33, -1), (16, -16), (8, 0)]


@pytest.mark.parametrize("typename", TYPES)
def test_values_of_each_type(server, typename):
    uuid = server.repo()
    server.instance(uuid, typename, "data")
    kind = TYPES[typename]
    labels = ["red", "green", "blue", "alpha"] if typename == "rgba8blk" else [kind]
    values = [{"DataType": kind, "Label": each} for each in labels]
    assert server.get(f"node/{uuid}/data/info").json["Extended"]["Values"] == values


@pytest.mark.parametrize(
    "settings",
    [{"GridStore": "precomputed"}, {"ScaleLevel": "x"}, {"ScaleLevel": "-1"},
     {"BlockSize": "8,x,8"}, {"Background": "300"}, {"Compression": "gzip:0"},
     {"VoxelSize": "1,2"}],
)  # fmt: skip
def test_settings_that_are_refused(server, settings):
    uuid = server.repo()
    fields = {"typename": "uint8blk", "dataname": "data", "BlockSize": "8,8,8", **settings}
    server.refused("POST", f"repo/{uuid}/instance", fields)


def test_extents_and_resolution(gray):
    gray.hold(
        [
            ("POST {p}/extents", {"MinPoint": [1, 2, 3], "MaxPoint": [4, 5, 6]}, b""),
            ("POST {p}/extents", {"MinPoint": [0, 2, 3], "MaxPoint": [4, 5, 9]}, b""),
            ("POST {p}/extents", {"MinPoint": [0, 2], "MaxPoint": [4, 5]}, 400),
            ("POST {p}/extents", b"", 400),
            ("POST {p}/resolution", [4, 8, 40.5], b""),
            ("POST {p}/resolution", [4, 8], 400),
            ("POST {p}/resolution", b"", 400),
            ("POST {p}/info", {}, (400, "Bad API call")),
            ("GET {p}/rawkey?x=1&y=2&z=3", None, "Key"),
        ]
    )
    found = gray.extended()
    assert (found["MinPoint"], found["MaxPoint"]) == ([0, 2, 3], [4, 5, 9])
    assert found["VoxelSize"] == [4, 8, 40.5]
    # Each version has its own: the child's do not become those of the parent.
    gray.server.post(f"node/{gray.uuid}/commit", {})
    child = gray.server.post(f"node/{gray.uuid}/newversion").json["child"]
    path = f"node/{child}/data"
    body = {"MinPoint": [0, 0, 0], "MaxPoint": [1, 1, 1]}
    gray.server.post(f"{path}/extents", body)
    assert gray.server.get(f"{path}/info").json["Extents"] == body
    assert gray.extended()["MinPoint"] == [0, 2, 3]


# -- raw -----------------------------------------------------------------------------------

PLANES = {  # spellings, and what of the values from (0, 0, 0) on, in rows and columns
    ("xy", "XY", "0_1", "0,1"): np.s_[16 + 3, 16 + 2 : 16 + 12, 16 + 1 : 16 + 8],
    ("xz", "Xz", "0_2", "0,2"): np.s_[16 + 3 : 16 + 13, 16 + 2, 16 + 1 : 16 + 8],
    ("yz", "YZ", "1_2", "1,2"): np.s_[16 + 3 : 16 + 13, 16 + 2 : 16 + 9, 16 + 1],
}


@pytest.mark.parametrize("names", PLANES)
def test_planes(gray, names):
    wanted = gray.values[PLANES[names]]
    for name in names:
        assert np.array_equal(gray.picture(f"raw/{name}/7_10/1_2_3"), wanted)
    forms = {
        "": "png", "/png": "png", "/PNG": "png", "/tif": "tiff", "/tiff": "tiff", "/bmp": "bmp",
        "/jpg": "jpeg", "/jpeg": "jpeg", "/jpg:30": "jpeg", "/jpeg:100": "jpeg",
    }  # fmt: skip
    for form, kind in forms.items():
        reply = gray.get(f"raw/{names[0]}/7_10/1_2_3{form}")
        assert reply.headers["content-type"] == f"image/{kind}"
        picture = Image.open(io.BytesIO(reply.body))
        assert (picture.format.lower(), picture.mode, picture.size) == (kind, "L", (7, 10))
        assert kind == "jpeg" or np.array_equal(np.asarray(picture), wanted)
    small, large, usual = (
        len(gray.get(f"raw/xy/40_40/-9_-9_0/jpg{q}").body) for q in (":10", ":95", "")
    )
    assert small < usual < large
    assert usual == len(gray.get("raw/xy/40_40/-9_-9_0/jpg:80").body)


@pytest.mark.parametrize("typename", TYPES)
def test_pixels_of_each_type(server, typename):
    data = Volume(server, typename)
    plane = np.ascontiguousarray(data.values[16, 16:26, 16:23])
    found = data.picture("raw/xy/7_10/0_0_0")
    if typename == "uint64blk":  # RGBA of 16 bits, which Pillow shows as 8
        assert found.shape == (10, 7, 4)
        head = data.get("raw/xy/7_10/0_0_0").body[16:26]
        assert struct.unpack(">IIBB", head) == (7, 10, 16, 6)
        return
    raw = plane if typename == "rgba8blk" else plane.view("u1").reshape(10, 7, -1)
    wanted = plane if plane.dtype.itemsize <= 2 and plane.ndim == 2 else raw
    assert np.array_equal(found, wanted)


def test_volumes_and_what_is_refused(gray):
    body = gray.values[16:20, 11:16, 18:24].tobytes()  # z 0 to 3, y -5 to -1, x 2 to 7
    wrong = ["raw/zy/4_4/0_0_0", "raw/0_3/4_4/0_0_0", "raw/volume/4_4_4/0_0_0",
             "raw/0_1_2/4_4/0_0_0", "raw/xy/4_4/0_0", "raw/xy/0_4/0_0_0", "raw/xy/-4_4/0_0_0",
             "raw/xy/4_4/0_0_0/gif", "raw/xy/4_4/0_0_0/jpg:0", "raw/0_1_2/4_4_4/0_0_0/png",
             "raw/0_1_2/4_4_4", "raw/0_1_2/4_4_4/a_b_c", "isotropic/zz/4_4/0_0_0",
             "raw/xy/4_4/0_0_0?attenuation=8", "raw/xy/4_4/0_0_0?roi=nobody"]  # fmt: skip
    gray.hold(
        [
            *((f"GET {{p}}/raw/{name}/6_5_4/2_-5_0", None, body)
              for name in ("vol", "VOL", "0_1_2", "0,1,2")),
            ("GET {p}/isotropic/0_1_2/6_5_4/2_-5_0", None, body),
            ("GET {p}/raw/0_1_2/2_1_1/1000_0_0", None, bytes(2)),
            *((f"GET {{p}}/{path}", None, 400) for path in wrong),
        ]
    )  # fmt: skip
    assert gray.get("raw/0_1_2/6_5_4/2_-5_0").headers["content-type"] == OCTETS
    for name in ("jpeg", "jpg"):
        reply = gray.get(f"raw/0_1_2/6_5_4/2_-5_0/{name}")
        assert reply.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(reply.body)).size == (6, 20)


@pytest.mark.parametrize("typename", TYPES)
def test_volumes_are_little_endian_x_first_values_together(server, typename):
    data = Volume(server, typename)
    wanted = data.values[1:5, 2:9, 3:14]
    assert data.get("raw/0_1_2/11_7_4/-13_-14_-15").body == wanted.tobytes()


def test_posts_of_voxels(gray):
    block = RNG.integers(0, 256, SIDE**3, dtype=np.uint8).tobytes()
    cube = f"{SIDE}_{SIDE}_{SIDE}"
    gray.hold(
        [
            ("POST {p}/raw/0_1_2/" + cube + "/64_64_64", block, b""),
            ("GET {p}/raw/0_1_2/" + cube + "/64_64_64", None, block),
            ("POST {p}/raw/0_1_2/" + cube + "/64_64_64?mutate=true&throttle=on", block, b""),
            ("POST {p}/raw/0_1_2/" + cube + "/64_64_64", block[1:],
             (400, "voxels data was 4095 bytes, expected 4096")),
            ("POST {p}/raw/0_1_2/" + cube + "/64_64_64", b"",
             (400, "voxels data was 0 bytes, expected 4096")),
            # Neither blocks nor volumes need be whole, as in DVID before 2014.
            ("POST {p}/raw/0_1_2/3_2_1/65_65_65", b"abcdef", b""),
            ("GET {p}/raw/0_1_2/3_2_1/65_65_65", None, b"abcdef"),
            ("POST {p}/raw/xy/3_2/65_65_65", b"ghijkl", b""),
            ("GET {p}/raw/0_1_2/3_2_1/65_65_65", None, b"ghijkl"),
            ("POST {p}/isotropic/0_1_2/" + cube + "/0_0_0", block, 400),
            ("POST {p}/isotropic/xy/3_2/0_0_0", b"abcdef", 400),
        ]
    )  # fmt: skip
    found = gray.extended()
    assert (found["MinPoint"], found["MaxPoint"]) == ([-16] * 3, [79] * 3)


def test_background_is_what_was_never_written(server):
    # DVID's raw has 0 there, and Background only in blocks that are cut.
    data = Volume(server, Background="9")
    data.hold(
        [
            ("GET {p}/raw/0_1_2/2_1_1/500_0_0", None, b"\x09\x09"),
            ("GET {p}/blocks/50_0_0/1", None, b"\x09" * SIDE**3),
            ("POST {p}/raw/0_1_2/1_1_1/500_0_0", b"x", b""),
            ("GET {p}/raw/0_1_2/3_1_1/499_0_0", None, b"\x09x\x09"),
        ]
    )


def test_regions_of_interest(server):
    data = Volume(server, Background="9")
    server.instance(data.uuid, "roi", "area", BlockSize=f"{SIDE},{SIDE},{SIDE}")
    server.post(f"node/{data.uuid}/area/roi", [[0, 0, 0, 0]])
    wanted = data.values[16, 16, 12:36].copy()  # x -4 to 19
    inside = slice(4, 20)
    masked = np.full_like(wanted, 9)
    masked[inside] = wanted[inside]
    data.hold([("GET {p}/raw/0_1_2/24_1_1/-4_0_0?roi=area", None, masked.tobytes())])
    for shift in (1, 7):
        dimmed = wanted >> shift
        dimmed[inside] = wanted[inside]
        path = "GET {p}/raw/0_1_2/24_1_1/-4_0_0?roi=area&attenuation=" + str(shift)
        data.hold([(path, None, dimmed.tobytes())])
    data.post("raw/0_1_2/48_16_16/-16_0_0?roi=area", bytes(48 * 256))
    kept = data.values[16:32, 16:32].copy()
    kept[:, :, 16:32] = 0
    assert data.get("raw/0_1_2/48_16_16/-16_0_0").body == kept.tobytes()
    assert data.server.refused("GET", f"{data.path}/raw/0_1_2/1_1_1/0_0_0?roi=data")


def test_planes_that_are_resampled(gray):
    wanted = gray.values[16:36, 16, 16:26]
    assert np.array_equal(gray.picture("isotropic/xz/10_20/0_0_0"), wanted)
    gray.post("resolution", [8, 8, 16])
    found = gray.picture("isotropic/xz/10_20/0_0_0").astype(int)
    assert found.shape == (20, 10)  # of pixels of 8 nm, so of 10 planes
    means = found.reshape(10, 2, 10).mean(axis=1)
    assert np.abs(means - wanted[:10]).mean() < np.abs(means - wanted[10:]).mean() / 2
    assert np.array_equal(gray.picture("isotropic/xy/10_20/0_0_0"), gray.values[16, 16:36, 16:26])
    # floor(length / resolution) + 1 pixels on a side; corners are in nanometers.
    found = gray.picture("arb/0_0_0/80.5_0_0/0_47_0/8")
    assert np.array_equal(found, gray.values[16, 16:22, 16:27])
    assert gray.get("arb/0_0_0/8_0_0/0_8_0/8/jpg:50").headers["content-type"] == "image/jpeg"
    gray.hold([(f"GET {{p}}/arb/{each}", None, 400)
               for each in ("0_0/8_0_0/0_8_0/8", "0_0_0/8_0_0/0_8_0/0", "0_0_0/8_0_0/0_8_0/8/gif",
                            "0_0_0/8_0_0/0_8_0", "0_0_0/nan_0_0/0_8_0/8")])  # fmt: skip


# -- blocks --------------------------------------------------------------------------------


def block_of(values, x, y, z):
    box = tuple(slice(16 + SIDE * each, 16 + SIDE * (each + 1)) for each in (z, y, x))
    return np.ascontiguousarray(values[box])


@pytest.mark.parametrize("typename", TYPES)
def test_spans(server, typename):
    data = Volume(server, typename)
    wanted = b"".join(block_of(data.values, x, 0, 1).tobytes() for x in (-1, 0, 1))
    size = len(wanted) // 3
    data.hold(
        [
            ("GET {p}/blocks/-1_0_1/3", None, wanted),
            ("GET {p}/blocks/1_0_1/2", None, wanted[2 * size :] + bytes(size)),
            ("POST {p}/blocks/7_8_9/3", wanted, b""),  # of all types; DVID's is right for 1 byte
            ("GET {p}/blocks/7_8_9/3", None, wanted),
            ("POST {p}/blocks/7_8_9/2", wanted, (400, "expected")),
            ("GET {p}/blocks/0_0_0/0", None, 400),
            ("GET {p}/blocks/0_0/1", None, 400),
        ]
    )


@pytest.mark.parametrize("compression", ["", "uncompressed", "lz4"])
def test_streams_of_blocks(gray, compression):
    def unpack(data):
        if compression == "uncompressed":
            return data
        length = int.from_bytes(data[:4], "little")  # as DVID stores it
        return lz4.block.decompress(data[4:], uncompressed_size=length)

    query = f"compression={compression}"
    places = [(x, y, z) for z in (0, 1) for y in (-1, 0) for x in (-1, 0, 1)]
    found = records(gray.get(f"subvolblocks/48_32_32/-16_-16_0?{query}").body)
    assert [each[:3] for each in found] == places  # z, y, x
    for x, y, z, data in found:
        assert unpack(data) == block_of(gray.values, x, y, z).tobytes()
    found = records(gray.get(f"specificblocks?blocks=1,0,-1,50,0,0,-1,-1,-1&{query}").body)
    assert {each[:3] for each in found} == {(1, 0, -1), (-1, -1, -1)}  # absent ones are left out
    for x, y, z, data in found:
        assert unpack(data) == block_of(gray.values, x, y, z).tobytes()
    gray.hold(
        [
            (f"GET {{p}}/specificblocks?blocks=0,0,0&prefetch=on&{query}", None, b""),
            (f"GET {{p}}/specificblocks?blocks=50,0,0&{query}", None, b""),
            (f"GET {{p}}/specificblocks?blocks=0,0&{query}", None, 400),
            (f"GET {{p}}/specificblocks?blocks=a,b,c&{query}", None, 400),
            (f"GET {{p}}/subvolblocks/16_16_16/160_0_0?{query}", None, b""),
            (f"GET {{p}}/subvolblocks/15_16_16/0_0_0?{query}", None, (400, "block-aligned")),
            (f"GET {{p}}/subvolblocks/16_16_16/0_0_1?{query}", None, (400, "block-aligned")),
            ("GET {p}/subvolblocks/16_16_16/0_0_0?compression=rar", None, 400),
        ]
    )


@pytest.mark.parametrize("setting", ["jpeg", "lz4"])
def test_blocks_as_jpeg(server, setting):
    # DVID refuses jpeg of what is not stored so, though its help calls that the default.
    data = Volume(server, BlockSize="32,16,8", Compression=setting)
    base = data.get("info").json["Base"]
    assert base["Compression"].startswith("jpeg compression, level" if setting == "jpeg" else "LZ4")
    queries = ["?compression=jpeg", ""] if setting == "jpeg" else ["?compression=jpeg"]
    for query in queries:
        ((x, y, z, picture),) = records(data.get(f"subvolblocks/32_16_8/0_0_0{query}").body)
        assert (x, y, z) == (0, 0, 0)
        shown = Image.open(io.BytesIO(picture))
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "L", (32, 16 * 8))
    wide = Volume(server, "uint16blk")
    wide.hold([("GET {p}/subvolblocks/16_16_16/0_0_0?compression=jpeg", None, 400)])


def test_paths_of_neuroglancer(server):
    for setting, path in (("jpeg", "subvolblocks/64_64_64/0_0_0"), ("", "raw/0_1_2/64_64_64/0_0_0/"
                          "jpeg")):  # fmt: skip
        data = Volume(server, BlockSize="64,64,64", Compression=setting)
        found = data.extended()
        assert found["BlockSize"] == [64] * 3 and found["MinPoint"] and found["MaxPoint"]
        assert ("jpeg" in data.get("info").json["Base"]["Compression"]) == bool(setting)
        body = data.get(f"{path}?app=Neuroglancer&u=ann").body
        picture = Image.open(io.BytesIO(body[16:] if setting else body))
        assert picture.size[0] * picture.size[1] == 64**3
