"""The data type imagetile over HTTP, and lower scales of volumes as instances."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from diced import DicedStore

SIDE = (20, 90, 130)  # ZYX
SPEC = {
    str(n): {"Resolution": [4.0 * 2**n] * 3, "TileSize": [32, 32, 16]} for n in range(3)
}  # X first


def noise():
    return np.random.default_rng(0).integers(0, 256, SIDE, dtype=np.uint8)


def picture(reply):
    return np.asarray(Image.open(io.BytesIO(reply.body)))


@pytest.fixture
def volume(server):
    """A repo with a volume, and its UUID."""
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "grayscale", BlockSize="32,32,32", VoxelSize="4,4,4")
    with server.app.site.store as store:
        em = store.open_repo(uuid=uuid)["grayscale"]
        em[0 : SIDE[0], 0 : SIDE[1], 0 : SIDE[2]] = noise()
        yield uuid


def command(server, uuid, name, *words, stdin=b"", **settings):
    body = {"words": list(words), "settings": settings, "stdin": base64.b64encode(stdin).decode()}
    return server.post(f"node/{uuid}/{name}/command", body)


def test_the_walk_through_of_old(server, volume):
    server.instance(volume, "multiscale2d", "tiles", source="grayscale")
    reply = command(server, volume, "tiles", "generate", planes="xy", zrange="3,4")
    assert "stored 2 tiles" in reply.text
    found = server.get(f"node/{volume}/tiles/tile/xy/0/0_0_3")
    assert found.headers["content-type"] == "image/png"
    tile = picture(found)
    assert tile.shape == (512, 512)
    np.testing.assert_array_equal(tile[:90, :130], noise()[3])
    assert not tile[90:].any() and not tile[:, 130:].any()
    # Of planes that were not generated, on the fly.
    tile = picture(server.get(f"node/{volume}/tiles/tile/XZ/0/0_7_0"))
    np.testing.assert_array_equal(tile[:20, :130], noise()[:, 7])
    tile = picture(server.get(f"node/{volume}/tiles/tile/1_2/0/9_0_0"))
    np.testing.assert_array_equal(tile[:20, :90], noise()[:, :, 9])


@pytest.mark.parametrize("typename", ["quadtree", "multiscale2d", "imagetile"])
def test_where_tiles_begin(server, typename):
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray", BlockSize="32,32,32")
    values = noise()[:, :50, :60]
    server.store.open_repo(uuid=uuid)["gray"][7:27, 10:60, 20:80] = values
    server.instance(uuid, typename, "tiles", Source="gray", TileSize="32")
    base = f"node/{uuid}/tiles"
    old = typename != "imagetile"
    assert server.get(f"{base}/info").json["Base"]["TypeName"] == "imagetile"
    for generated in (False, True):
        if generated:
            reply = command(server, uuid, "tiles", "generate", planes="xy", zrange="9,9")
            assert f"stored {4 + 1 if old else 6 + 2 + 1} tiles" in reply.text
            found = server.get(f"{base}/metadata").json
            assert found["Levels"]["1"]["TileSize"] == [32] * 3 and len(found["Levels"]) == 3 - old
            assert found["MinTileCoord"] == [0, 0, 0]
            assert found["MaxTileCoord"] == ([1, 1, 0] if old else [2, 1, 0])
        tile = picture(server.get(f"{base}/tile/xy/0/1_0_{2 if old else 9}"))
        if old:
            np.testing.assert_array_equal(tile[:, :28], values[2, :32, 32:])
            assert not tile[:, 28:].any()
        else:
            np.testing.assert_array_equal(tile[10:], values[2, :22, 12:44])
            assert not tile[:10].any()
        # Any picture is at coordinates of the source.
        found = picture(server.get(f"{base}/raw/xy/70_60/15_5_9"))
        wanted = np.zeros((60, 70), np.uint8)
        wanted[5:55, 5:65] = values[2]
        np.testing.assert_array_equal(found, wanted)
    white = io.BytesIO()
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(white, "PNG")
    server.post(f"{base}/tile/xy/0/1_1_0", white.getvalue())
    found = picture(server.get(f"{base}/raw/xy/90_90/0_0_{7 if old else 0}"))
    top, left = (42, 52) if old else (32, 32)
    assert (found[top : top + 32, left : left + 32] == 255).all()
    assert found[top - 1, left] < 255 and not found[:10].any()


def test_a_size_of_tiles(server, volume):
    server.instance(volume, "imagetile", "wide", Source="grayscale", TileSize=[64, 32, 16])
    server.instance(volume, "imagetile", "square", Source="grayscale", TileSize="64")
    server.instance(volume, "imagetile", "usual", Source="grayscale")
    for name, shape in (("wide", (32, 64)), ("square", (64, 64)), ("usual", (512, 512))):
        tile = picture(server.get(f"node/{volume}/{name}/tile/xy/0/0_0_3"))
        assert tile.shape == shape
        part = tile[:90, :130]
        np.testing.assert_array_equal(part, noise()[3, : part.shape[0], : part.shape[1]])
    fields = {"typename": "imagetile", "dataname": "t", "Source": "grayscale"}
    for wrong in ("0", "-1", "8193", "x", "1,2", "1,2,3,4", "8,8,0", "1e2", "9" * 30):
        server.refused("POST", f"repo/{volume}/instance", {**fields, "TileSize": wrong})
    server.instance(volume, "imagetile", "tiny", Source="grayscale", TileSize="1")
    assert "at most" in server.refused("GET", f"node/{volume}/tiny/raw/xy/2000_2000/0_0_0")


def test_metadata(server, volume):
    server.instance(volume, "imagetile", "tiles", Source="grayscale", Format="jpg")
    base = f"node/{volume}/tiles"
    assert "was not set" in server.refused("GET", f"{base}/metadata")
    given = {"MinTileCoord": [0, 0, 0], "MaxTileCoord": [4, 2, 1], "Levels": SPEC}
    server.post(f"{base}/metadata", given)
    assert server.get(f"{base}/metadata").json == given
    info = server.get(f"{base}/info").json
    assert info["Base"]["TypeName"] == "imagetile"
    extended = info["Extended"]
    assert extended["Levels"] == SPEC and extended["Source"] == "grayscale"
    assert extended["Encoding"] == 2 and extended["Placeholder"] is False
    assert extended["MaxTileCoord"] == [4, 2, 1]
    instances = server.get("repos/info").json[volume]["DataInstances"]
    assert instances["tiles"]["Extended"]["Levels"] == SPEC


@pytest.mark.parametrize(
    "levels",
    [
        {}, None, [], {"1": SPEC["0"]}, {"0": SPEC["0"], "2": SPEC["1"]}, {"0": {}}, {"0": 7},
        {"0": {"Resolution": [1, 1], "TileSize": [8, 8, 8]}},
        {"0": {"Resolution": [1, 1, "x"], "TileSize": [8, 8, 8]}},
        {"0": {"Resolution": [1, 1, 1], "TileSize": [8, 8, 8.5]}},
        {"0": {"Resolution": [1, 1, 1], "TileSize": [8, 8, -8]}},
        {"0": SPEC["0"], "1": {"Resolution": [10.0] * 3, "TileSize": [32] * 3}},
        {"0": SPEC["1"], "1": SPEC["0"]},
        {"0": {"Resolution": [1e400, 1, 1], "TileSize": [8, 8, 8]}},
    ],
)  # fmt: skip
def test_metadata_that_is_refused(server, levels):
    uuid = server.repo()
    server.instance(uuid, "imagetile", "tiles")
    body = json.dumps({"Levels": levels})
    server.refused("POST", f"node/{uuid}/tiles/metadata", body)
    server.refused("POST", f"node/{uuid}/tiles/metadata", b"not JSON")
    server.refused("GET", f"node/{uuid}/tiles/metadata")


def test_posted_tiles_come_back_as_they_are(server):
    uuid = server.repo()
    server.instance(uuid, "imagetile", "tiles", Format="jpg")
    base = f"node/{uuid}/tiles"
    assert "metadata" in server.refused("GET", f"{base}/tile/xy/0/0_0_0")
    server.post(f"{base}/metadata", {"Levels": SPEC})
    server.post(f"{base}/tile/xy/0/10_20_0", b"anything")
    found = server.get(f"{base}/tile/XY/0/10_20_0")
    assert found.body == b"anything" and found.headers["content-type"] == "image/jpeg"
    assert server.get(f"{base}/tile/0_1/0/10_20_0?noblanks=true").body == b"anything"
    server.refused("POST", f"{base}/tile/xy/0/1_1_1", b"")
    # Nothing there: a blank tile, or 404.
    blank = server.get(f"{base}/tile/xz/1/0_0_0")
    assert blank.headers["content-type"] == "image/png"
    assert picture(blank).shape == (16, 32) and not picture(blank).any()
    assert server.get(f"{base}/tile/xz/1/0_0_0/jpg:50").headers["content-type"] == "image/jpeg"
    server.refused("GET", f"{base}/tile/xz/1/0_0_0?noblanks=true", status=404)
    server.refused("GET", f"{base}/tile/xz/9/0_0_0?noblanks=true", status=404)
    server.refused("GET", f"{base}/tile/xz/9/0_0_0")
    key = server.get(f"{base}/tilekey/xy/0/10_20_0").json["key"]
    assert int(key, 16) and key != server.get(f"{base}/tilekey/xy/0/10_20_1").json["key"]


@pytest.mark.parametrize(
    "path",
    [
        "tile/zz/0/0_0_0", "tile/xy/x/0_0_0", "tile/xy/-1/0_0_0", "tile/xy/999999/0_0_0",
        "tile/xy/0/0_0", "tile/xy/0/0_0_99999999999", "tile/xy/0/a_b_c", "tile/xy/0/0_0_0/gif",
        "tile/xy/0", "raw/xy/0_5/0_0_0", "raw/xy/9_9/0_0", "raw/xy/99999_99999/0_0_0",
        "raw/xy/9_9/0_0_0/gif", "raw/xy/9_9/2147483645_0_0", "isotropic/vol/9_9_9/0_0_0",
        "raw/xy/-3_9/0_0_0", "tilekey/xy/0/1_2",
    ],
)  # fmt: skip
def test_requests_that_are_refused(server, volume, path):
    server.instance(volume, "imagetile", "tiles", Source="grayscale")
    server.refused("GET", f"node/{volume}/tiles/{path}")


def test_settings_that_are_refused(server):
    uuid = server.repo()
    for wrong in (
        {"Format": "gif"}, {"Format": "png", "Compression": "lz4"}, {"Placeholder": "perhaps"},
        {"Quality": "x"}, {"Quality": "0"}, {"Quality": "500"},
    ):  # fmt: skip
        fields = {"typename": "imagetile", "dataname": "tiles", **wrong}
        server.refused("POST", f"repo/{uuid}/instance", fields)
    server.instance(uuid, "imagetile", "fine", Format="lz4", Compression="lz4", Quality="70")


def test_placeholders(server):
    uuid = server.repo()
    server.instance(uuid, "imagetile", "tiles", Placeholder="true")
    server.post(f"node/{uuid}/tiles/metadata", {"Levels": SPEC})
    assert picture(server.get(f"node/{uuid}/tiles/tile/xy/0/0_0_0")).any()
    server.refused("GET", f"node/{uuid}/tiles/tile/xy/0/0_0_0?noblanks=true", status=404)


def test_tiles_of_the_format_lz4(server, volume):
    server.instance(volume, "imagetile", "tiles", Format="lz4", Source="grayscale")
    base = f"node/{volume}/tiles"
    server.post(f"{base}/metadata", {"Levels": SPEC})
    pixels = noise()[0, :32, :32]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for place, body in (("0_0_50", file.getvalue()), ("1_0_50", pixels.tobytes())):
        server.post(f"{base}/tile/xy/0/{place}", body)
        found = server.get(f"{base}/tile/xy/0/{place}")
        assert found.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(picture(found), pixels)
    server.refused("POST", f"{base}/tile/xy/0/2_0_50", b"too short")
    server.refused("POST", f"{base}/tile/xz/0/0_0_0", file.getvalue())  # 16 rows there
    stitched = picture(server.get(f"{base}/raw/xy/40_20/10_4_50"))
    np.testing.assert_array_equal(stitched[:, :22], pixels[4:24, 10:])
    np.testing.assert_array_equal(stitched[:, 22:], pixels[4:24, :18])


def test_pictures_out_of_tiles(server, volume):
    server.instance(volume, "imagetile", "tiles", Source="grayscale")
    base = f"node/{volume}/tiles"
    server.post(f"{base}/metadata", {"Levels": SPEC})
    white = io.BytesIO()
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(white, "PNG")
    server.post(f"{base}/tile/xy/0/1_0_3", white.getvalue())
    server.post(f"{base}/tile/xy/0/2_0_3", b"no picture")
    found = picture(server.get(f"{base}/raw/xy/100_60/-5_10_3"))
    wanted = np.zeros((60, 100), np.uint8)
    wanted[:, 5:] = noise()[3, 10:70, :95]
    wanted[:22, 37:69] = 255
    np.testing.assert_array_equal(found, wanted)
    found = picture(server.get(f"{base}/isotropic/xz/50_10/0_5_0/png"))
    np.testing.assert_array_equal(found, noise()[:10, 5, :50])
    server.post(f"node/{volume}/grayscale/resolution", [4, 4, 8])
    found = picture(server.get(f"{base}/isotropic/xz/50_20/0_5_0"))
    assert found.shape == (20, 50)
    np.testing.assert_array_equal(found[0], noise()[0, 5, :50])
    server.instance(volume, "imagetile", "alone")
    server.refused("GET", f"node/{volume}/alone/raw/xy/10_10/0_0_0")
    server.refused("POST", f"{base}/raw/xy/10_10/0_0_0", b"x")


def test_generation_by_a_specification(server, volume):
    server.instance(volume, "imagetile", "tiles", Source="grayscale", Format="lz4")
    base = f"node/{volume}/tiles"
    spec = json.dumps(SPEC).encode()
    reply = command(
        server, volume, "tiles", "generate", stdin=spec, planes="0,1;YZ", zrange="0,0", xrange="2,2"
    )
    # xy: 5 x 3, 3 x 2 and 2 x 1 tiles; yz: 3 x 2, 2 x 1 and 1 x 1.
    assert f"stored {15 + 6 + 2 + 6 + 2 + 1} tiles" in reply.text
    found = server.get(f"{base}/metadata").json
    assert found["Levels"] == SPEC
    assert found["MinTileCoord"] == [0, 0, 0] and found["MaxTileCoord"] == [4, 2, 1]
    for stdin, settings in (
        (b"{", {}), (b"[]", {}), (b'{"1": {}}', {}), (b"", {"planes": "up"}),
        (b"", {"xrange": "1"}), (b"", {"yrange": "a,b"}), (b"", {"filename": "/no/such/file"}),
    ):  # fmt: skip
        body = {"words": ["generate"], "settings": settings}
        body["stdin"] = base64.b64encode(stdin).decode()
        server.refused("POST", f"{base}/command", body)


def test_generation_by_a_file_of_the_server(server, volume, tmp_path):
    (tmp_path / "tilespec.json").write_text(json.dumps(SPEC))
    server.instance(volume, "quadtree", "tiles", Source="grayscale", TileSize="64")
    name = str(tmp_path / "tilespec.json")
    assert "stored 23 tiles" in command(
        server, volume, "tiles", "generate", name, planes="xy", zrange="0,0"
    ).text  # fmt: skip
    assert server.get(f"node/{volume}/tiles/metadata").json["Levels"] == SPEC


def test_tiles_of_a_locked_version(server, volume):
    server.instance(volume, "imagetile", "tiles", Source="grayscale")
    server.instance(volume, "imagetile", "free", Source="grayscale", versioned="false")
    server.post(f"node/{volume}/commit", {"note": "", "log": []})
    for path, body in (("metadata", {"Levels": SPEC}), ("tile/xy/0/0_0_0", b"x")):
        server.refused("POST", f"node/{volume}/tiles/{path}", body)
        server.post(f"node/{volume}/free/{path}", body)
    assert picture(server.get(f"node/{volume}/tiles/tile/xy/0/0_0_0")).shape == (512, 512)


# -- lower scales --------------------------------------------------------------------------


def test_levels_of_a_pyramid_are_instances(server, volume):
    store: DicedStore = server.app.site.store
    em = store.open_repo(uuid=volume)["grayscale"]
    server.refused("GET", f"node/{volume}/grayscale_1/info")
    em.update_pyramid(2)
    instances = server.get("repos/info").json[volume]["DataInstances"]
    assert {"grayscale", "grayscale_1", "grayscale_2"} <= set(instances)
    for number in (1, 2):
        found = instances[f"grayscale_{number}"]
        assert found["Base"]["TypeName"] == "uint8blk"
        assert found["Extended"]["VoxelSize"] == [4.0 * 2**number] * 3
        assert found["Extended"]["BlockSize"] == [32] * 3
        assert found["Extended"]["Values"][0]["DataType"] == "uint8"
        top = [-(-n // 2**number) - 1 for n in reversed(SIDE)]
        assert found["Extended"]["MinPoint"] == [0, 0, 0]
        assert found["Extended"]["MaxPoint"] == top
        assert (
            server.get(f"node/{volume}/grayscale_{number}/info").json["Extended"]
            == (found["Extended"])
        )
    em[0:4, 0:4, 0:4] = 255
    wanted = em.level(1)[0:8, 0:16, 0:32]
    raw = server.get(f"node/{volume}/grayscale_1/raw/0_1_2/32_16_8/0_0_0").body
    np.testing.assert_array_equal(np.frombuffer(raw, np.uint8).reshape(8, 16, 32), wanted)
    assert (wanted[:2, :2, :2] == 255).all()
    blocks = server.get(
        f"node/{volume}/grayscale_1/subvolblocks/32_32_32/0_0_0?compression=uncompressed"
    ).body
    block = np.frombuffer(blocks[16:], np.uint8).reshape(32, 32, 32)
    np.testing.assert_array_equal(block, em.level(1)[0:32, 0:32, 0:32])
    server.refused("POST", f"node/{volume}/grayscale_1/raw/0_1_2/32_32_32/0_0_0", bytes(32**3))
    # What is written makes the extents of the levels grow, too.
    em[0:1, 0:1, 0:200] = 1
    found = server.get("repos/info").json[volume]["DataInstances"]["grayscale_1"]
    assert found["Extended"]["MaxPoint"][0] == 99
