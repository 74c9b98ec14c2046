"""DVID's reference, row by row: imagetile."""

import io

import numpy as np
import pytest
from contract import hold
from PIL import Image

LEVELS = {
    str(n): {"Resolution": [8.0 * 2**n, 8.0 * 2**n, 16.0 * 2**n], "TileSize": [32, 24, 16]}
    for n in range(3)
}  # X first
METADATA = {"MinTileCoord": [0, 0, 0], "MaxTileCoord": [5, 5, 5], "Levels": LEVELS}
SIDES = {"xy": (32, 24), "xz": (32, 16), "yz": (24, 16)}  # columns, rows


@pytest.fixture
def tiles(server):
    """The path of an instance without a source."""
    uuid = server.repo()
    server.instance(uuid, "imagetile", "tiles")
    return f"node/{uuid}/tiles"


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(server, path):
    return np.asarray(Image.open(io.BytesIO(server.get(path).body)))


def test_info(server):
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray")
    for format, encoding, packing in (("", 1, "No"), ("png", 1, "No"), ("jpg", 2, "No"),
                                      ("lz4", 0, "LZ4")):  # fmt: skip
        name = f"tiles{format}"
        server.instance(uuid, "imagetile", name, Format=format, Source="gray", Placeholder="true")
        info = server.get(f"node/{uuid}/{name}/info").json
        assert info["Base"]["Compression"] == f"{packing} compression, level -1"
        assert info["Extended"]["Quality"] == (80 if format == "jpg" else 0)
        del info["Extended"]["Quality"]
        assert info["Extended"] == {
            "Source": "gray", "MinTileCoord": [0, 0, 0], "MaxTileCoord": [0, 0, 0], "Levels": {},
            "Placeholder": True, "Encoding": encoding,
        }  # fmt: skip
    rows = [
        ("POST repo/{u}/instance", {"typename": "imagetile", "dataname": "x", **wrong}, 400)
        for wrong in ({"Format": "gif"}, {"Format": "png", "Compression": "lz4"},
                      {"Format": "lz4", "Compression": "none"})
    ]  # fmt: skip
    hold(server, rows, u=uuid)
    # The name of 2014.
    server.instance(uuid, "multiscale2d", "old", source="gray")
    assert server.get(f"node/{uuid}/old/info").json["Base"]["TypeName"] == "imagetile"


def skewed(**changes):
    return {"Levels": {**LEVELS, **changes}}


def test_metadata(server, tiles):
    hold(
        server,
        [
            ("GET {p}/metadata", None, 400),
            ("GET {p}/tile/xy/0/0_0_0", None, (400, "metadata")),
            ("POST {p}/metadata", b"", 400),
            ("POST {p}/metadata", {}, 400),
            ("POST {p}/metadata", {"Levels": {"1": LEVELS["1"]}}, (400, "consecutive")),
            ("POST {p}/metadata", skewed(**{"4": LEVELS["2"]}), (400, "consecutive")),
            (
                "POST {p}/metadata",
                skewed(**{"1": {"Resolution": [20.0] * 3, "TileSize": [32] * 3}}),
                400,
            ),
            ("GET {p}/metadata", None, 400),
            ("POST {p}/metadata", METADATA, b""),
            ("GET {p}/metadata", None, METADATA),
        ],
        p=tiles,
    )
    extended = server.get(f"{tiles}/info").json["Extended"]
    assert {name: extended[name] for name in METADATA} == METADATA


ROWS = [
    ("POST {p}/tile/xy/0/1_2_3", b"any bytes", b""),
    *((f"GET {{p}}/tile/{name}/0/1_2_3", None, b"any bytes")
      for name in ("xy", "XY", "0_1", "0,1")),
    ("POST {p}/tile/xy/0/1_2_3", b"other", b""),
    ("GET {p}/tile/xy/0/1_2_3?noblanks=true", None, b"other"),
    ("GET {p}/tile/xy/0/1_2_3/jpg", None, b"other"),  # stored bytes have their own format
    ("GET {p}/tile/xz/0/1_2_3?noblanks=true", None, 404),
    ("GET {p}/tile/xy/1/1_2_3?noblanks=true", None, 404),
    ("GET {p}/tile/xy/0/0_0_0?noblanks=true", None, 404),
    ("GET {p}/tile/xy/0/-1_0_0?noblanks=true", None, 404),
    ("GET {p}/tile/xy/0/-1_0_0", None, 200),
    ("GET {p}/tile/xy/0/0_0_0?noblanks=false", None, 200),
    ("GET {p}/tile/xy/7/0_0_0", None, 400),
    ("GET {p}/tile/vol/0/0_0_0", None, 400),
    ("GET {p}/tile/xy/0/0_0", None, 400),
    ("GET {p}/tile/xy/x/0_0_0", None, 400),
    ("GET {p}/tile/xy/0", None, 400),
    ("GET {p}/tile/xy/0/0_0_0/gif", None, 400),
    ("POST {p}/tile/xy/0/0_0", b"x", 400),
    ("POST {p}/tile/xy/0/0_0_0", b"", 400),
    ("GET {p}/tilekey/XY/0/1_2_3", None, '{"key":"'),
    ("GET {p}/tilekey/xy/0/1_2", None, 400),
    ("GET {p}/raw/xy/9_9/0_0_0", None, (400, "source")),
    ("GET {p}/isotropic/xy/9_9/0_0_0", None, (400, "source")),
]  # fmt: skip


def test_tiles(server, tiles):
    server.post(f"{tiles}/metadata", METADATA)
    hold(server, ROWS, p=tiles)
    assert server.get(f"{tiles}/tile/xy/0/1_2_3").headers["content-type"] == "image/png"
    keys = {
        server.get(f"{tiles}/tilekey/{each}").json["key"]
        for each in ("xy/0/1_2_3", "xz/0/1_2_3", "xy/1/1_2_3", "xy/0/1_2_4")
    }
    assert len(keys) == 4 and all(bytes.fromhex(each) for each in keys)


@pytest.mark.parametrize("plane", SIDES)
def test_tiles_that_there_are_none_of_are_blank(server, tiles, plane):
    server.post(f"{tiles}/metadata", METADATA)
    for form, kind in (("", "png"), ("/png", "png"), ("/jpg:50", "jpeg"), ("/bmp", "bmp")):
        reply = server.get(f"{tiles}/tile/{plane.upper()}/1/0_0_0{form}")
        assert reply.headers["content-type"] == f"image/{kind}"
        found = Image.open(io.BytesIO(reply.body))
        assert (found.mode, found.size) == ("L", SIDES[plane])
        assert not np.asarray(found).any()


@pytest.mark.parametrize("format", ["png", "jpg", "lz4"])
def test_formats(server, format):
    uuid = server.repo()
    server.instance(uuid, "imagetile", "tiles", Format=format)
    path = f"node/{uuid}/tiles"
    server.post(f"{path}/metadata", METADATA)
    pixels = np.arange(24 * 32, dtype=np.uint16).astype(np.uint8).reshape(24, 32)
    server.post(f"{path}/tile/xy/0/0_0_0", png(pixels))
    reply = server.get(f"{path}/tile/xy/0/0_0_0")
    assert reply.headers["content-type"] == ("image/jpeg" if format == "jpg" else "image/png")
    assert format == "lz4" or reply.body == png(pixels)  # as it was sent
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.body))), pixels)


def test_tiles_and_pictures_of_a_source(server):
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray", BlockSize="32,32,32", VoxelSize="8,8,16")
    values = np.random.default_rng(3).integers(0, 256, (32, 64, 64), dtype=np.uint8)
    server.post(f"node/{uuid}/gray/raw/0_1_2/64_64_32/0_0_0", values.tobytes())
    server.instance(uuid, "imagetile", "tiles", Source="gray")
    path = f"node/{uuid}/tiles"
    server.post(f"{path}/metadata", METADATA)
    # Tiles begin at the origin; the coordinate through the plane is that of the slice.
    assert np.array_equal(picture(server, f"{path}/tile/xy/0/1_1_7"), values[7, 24:48, 32:64])
    assert np.array_equal(picture(server, f"{path}/tile/XZ/0/0_5_1"), values[16:32, 5, :32])
    assert np.array_equal(picture(server, f"{path}/tile/yz/0/9_1_0"), values[:16, 24:48, 9])
    assert picture(server, f"{path}/tile/xy/1/0_0_7").shape == (24, 32)
    assert np.array_equal(picture(server, f"{path}/raw/xy/50_40/3_4_5"), values[5, 4:44, 3:53])
    assert np.array_equal(picture(server, f"{path}/isotropic/xy/9_8/0_0_5"), values[5, :8, :9])
    assert picture(server, f"{path}/isotropic/xz/9_8/0_0_0").shape == (8, 9)
    hold(
        server,
        [
            ("GET {p}/tile/xy/0/50_0_0?noblanks=true", None, 404),
            ("POST {p}/raw/xy/9_9/0_0_0", b"x", 400),
            ("GET {p}/raw/vol/9_9_9/0_0_0", None, 400),
        ],
        p=path,
    )
