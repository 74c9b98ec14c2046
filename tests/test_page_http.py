"""The page over HTTP: its files, and the requests that it needs beyond DVID's API."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from serving import serving

from diced.server import pages, thumbnails
from diced.server.thumbnails import colours, levels, png, sample


@pytest.fixture
def em(server):
    """A repo with an array whose voxels tell where they are, and that array's values."""
    repo = server.store.create_repo("em")
    shape = (70, 150, 200)
    values = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    array = repo.create_array(
        "ids", np.uint32, voxel_size=(40, 8, 8), units=("nanometers",) * 3, block_shape=(16, 32, 32)
    )
    array[5:75, 10:160, 20:220] = values
    return server, repo, values


def picture(reply):
    with Image.open(io.BytesIO(reply.body)) as image:
        return np.asarray(image)


# -- files ---------------------------------------------------------------------------------


def test_the_page_and_all_that_it_refers_to_are_served(server):
    seen, new = set(), ["/"]
    while new:
        path = new.pop()
        seen.add(path)
        reply = server.get(path)
        policy = reply.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        found = re.findall(r"""(?:href|src)="(page/[^"]+)"|from "\./([\w.]+)\"""", reply.text)
        for whole, module in found:
            path = f"/{whole}" if whole else f"/page/{module}"
            new += [path] if path not in seen else []
    assert {"/page/main.js", "/page/style.css", "/page/icon.svg", "/page/tiles.js"} <= seen
    types = {path: server.get(path).headers["content-type"] for path in seen}
    assert types["/"].startswith("text/html")
    assert types["/page/main.js"].startswith("text/javascript")
    assert types["/page/style.css"].startswith("text/css")
    assert types["/page/icon.svg"] == "image/svg+xml"


def test_nothing_of_the_page_comes_from_elsewhere(server):
    for name in ("/", "/page/main.js", "/page/style.css", "/page/api.js", "/page/actions.js"):
        addresses = re.findall(r"https?://[\w.-]+", server.get(name).text)
        assert set(addresses) <= {"http://www.w3.org", "http://host"}


def test_files_are_asked_for_again_and_come_only_if_they_changed(server):
    first = server.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    again = server.ask("GET", "/page/main.js", headers={"If-None-Match": f'"x", {tag}'})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    other = server.ask("GET", "/page/main.js", headers={"If-None-Match": '"x"'})
    assert (other.status, other.body) == (200, first.body)


def test_files_are_zipped_for_who_takes_that(server):
    plain = server.get("/page/main.js", headers={"Accept-Encoding": "identity"})
    zipped = server.get("/page/main.js", headers={"Accept-Encoding": "gzip"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert int(zipped.headers["content-length"]) < len(plain.body) / 2
    assert zipped.body == plain.body


def test_head_has_no_body(server):
    reply = server.ask("HEAD", "/")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 100


@pytest.mark.parametrize(
    "path",
    [
        "/page/", "/page/nothing.js", "/page/index.html", "/page/../pages.py", "/pages.py",
        "/page/%2e%2e/pages.py", "/page/main.js/", "/nothing", "//", "/page/\x7f", "/view",
        "/view/v/diced/../../../pages.py", "/view/v/diced/%2e%2e/%2e%2e/__init__.py",
        "/view/v/other/", "/view/nothing",
    ],
)  # fmt: skip
def test_unknown_paths(server, path):
    assert server.ask("GET", path).status == 404


def test_the_page_cannot_be_posted_to(server):
    reply = server.ask("POST", "/", b"x")
    assert reply.status == 405
    assert reply.headers["allow"] == "GET, HEAD"


def test_a_server_without_the_page():
    with serving("memory://nopage", page=False) as server:
        assert server.ask("GET", "/").status == 404


# -- the store and its versions ------------------------------------------------------------


def test_what_the_store_says_of_itself(server):
    server.store.info["organisation"] = "Institute of <b>Flies</b>"
    found = server.get("page/store").json
    assert found["info"] == {"organisation": "Institute of <b>Flies</b>"}
    assert found["uuid"] == server.store.uuid
    assert found["rights"]["create"] is True
    assert found["mode"] == ""


def test_a_version_with_its_arrays(em):
    server, repo, _ = em
    repo.create_array("empty", np.float32, dims=2)
    found = server.get(f"page/node/{repo.uuid}").json
    assert (found["uuid"], found["root"], found["alias"]) == (repo.uuid, repo.uuid, "em")
    assert found["locked"] is False
    assert found["rights"]["write"] is True
    arrays = {each["name"]: each for each in found["arrays"]}
    assert arrays["ids"] == {
        "name": "ids", "type": "uint32blk", "kind": "image", "versioned": True, "dtype": "uint32",
        "dims": 3, "channels": None, "lo": [20, 10, 5], "hi": [220, 160, 75],
        "block": [32, 32, 16], "voxel": [8, 8, 40], "units": ["nanometers"] * 3, "codec": "lz4",
        "fill": 0, "source": "precomputed",
    }  # fmt: skip
    assert arrays["empty"]["lo"] is arrays["empty"]["hi"] is None
    assert arrays["empty"]["source"] == ""
    assert arrays[".files"] == {
        "name": ".files", "type": "keyvalue", "kind": "keyvalue", "versioned": True,
    }  # fmt: skip


def test_an_older_version_has_what_it_had(em):
    server, repo, _ = em
    old = repo.lock_node("first")
    repo.tag("v1")
    repo.change_version(repo.create_branch("second"))
    repo["ids"][0:5, 0:10, 0:10] = 1
    repo.create_array("later", np.uint8)
    now = server.get(f"page/node/{repo.uuid}").json
    then = server.get(f"page/node/{old[:8]}").json
    assert now["tags"] == then["tags"] == {"v1": old}
    assert (now["locked"], then["locked"]) == (False, True)
    assert {"later"} == {each["name"] for each in now["arrays"]} - {
        each["name"] for each in then["arrays"]
    }
    boxes = [
        next(each["lo"] for each in found["arrays"] if each["name"] == "ids")
        for found in (now, then)
    ]
    assert boxes == [[0, 0, 0], [20, 10, 5]]


def test_a_read_only_server_says_what_one_may_not(tmp_path):
    from diced.store import DicedStore

    with DicedStore(tmp_path / "store") as store:
        uuid = store.create_repo("r").uuid
    with serving(tmp_path / "store", mode="readonly") as server:
        assert server.get("page/store").json["rights"]["create"] is False
        found = server.get(f"page/node/{uuid}").json
        assert found["rights"]["write"] is False


def test_sizes(em):
    server, repo, _ = em
    first = server.get(f"page/node/{repo.uuid}/size/ids").json
    assert first["complete"] is True
    assert first["entries"] == 5 * 5 * 7
    assert 0 < first["bytes"] < 70 * 150 * 200 * 4 * 2
    noise = np.random.default_rng(1).integers(0, 2**32, (16, 32, 32), np.uint32)
    repo["ids"][96:112, 0:32, 0:32] = noise
    second = server.get(f"page/node/{repo.uuid}/size/ids").json
    assert second["entries"] == first["entries"] + 1
    assert second["bytes"] - first["bytes"] >= noise.nbytes
    repo.files["a"] = b"x" * 100_000
    assert server.get(f"page/node/{repo.uuid}/size/.files").json["entries"] == 1


def test_keys_some_at_a_time(server):
    repo = server.store.create_repo("r")
    names = [*(f"a/{number:03}" for number in range(25)), "b", "c d", "é"]
    repo.files.put_many(dict.fromkeys(names, b"x"))
    where = f"page/node/{repo.uuid}/keys/.files"
    found, after = [], ""
    while True:
        page = server.get(where, query={"limit": 10, "after": after}).json
        assert len(page["keys"]) <= 10
        found += page["keys"]
        if not page["more"]:
            break
        after = found[-1]
    assert found == sorted(names, key=str.encode)
    assert server.get(where, query={"prefix": "b"}).json == {"keys": ["b"], "more": False}
    for query in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}):
        server.refused("GET", where, query=query)


# -- thumbnails and tiles ------------------------------------------------------------------


def test_png_round_trip():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (3, 9, 3), (4, 4, 4)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        with Image.open(io.BytesIO(png(pixels))) as image:
            assert np.array_equal(np.asarray(image), pixels)


def test_a_thumbnail_is_the_middle_plane(server):
    repo = server.store.create_repo("r")
    array = repo.create_array("gray", np.uint8)
    values = np.random.default_rng(2).integers(0, 256, (9, 40, 100), np.uint8)
    array[100:109, 50:90, 0:100] = values
    where = f"page/node/{repo.uuid}/thumbnail/gray"
    reply = server.get(where, query={"side": 100})
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(picture(reply), values[4])
    assert np.array_equal(picture(server.get(where, query={"side": 25})), values[4, ::4, ::4])


def test_a_thumbnail_comes_only_if_it_changed(server):
    repo = server.store.create_repo("r")
    array = repo.create_array("gray", np.uint8)
    array[0:8, 0:8, 0:8] = 7
    where = f"page/node/{repo.uuid}/thumbnail/gray"
    first = server.get(where)
    seen = {"If-None-Match": first.headers["etag"]}
    assert server.ask("GET", where, headers=seen).status == 304
    array[0:8, 0:8, 0:8] = 9
    second = server.get(where, headers=seen)
    assert second.headers["etag"] != first.headers["etag"]
    assert (picture(second) == 9).all()


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"dtype": np.float32}, np.linspace(-1, 1, 64)),
        ({"dtype": np.float32}, np.full(64, np.nan)),
        ({"dtype": np.uint16}, np.arange(64) * 1000),
        ({"dtype": bool}, np.arange(64) % 2),
        ({"islabel3D": True}, np.arange(64)),
        ({"dtype": np.uint8, "channels": 3}, np.arange(64)[:, None]),
        ({"dtype": np.uint8, "channels": 2}, np.arange(64)[:, None]),
        ({"dtype": np.int16, "dims": 2}, np.arange(64) - 32),
        ({"dtype": np.uint8, "dims": 4}, np.arange(64)),
    ],
)
def test_thumbnails_of_all_sorts(server, options, value):
    repo = server.store.create_repo("r")
    array = repo.create_array("a", **options)
    array[(slice(0, 2),) * (array.numdims - 1) + (slice(0, 64),)] = value
    shown = picture(server.get(f"page/node/{repo.uuid}/thumbnail/a"))
    assert shown.shape[:2] == (2, 64)
    if not np.isnan(value).any():
        assert shown.min() < shown.max()


def test_what_has_no_thumbnail(server):
    repo = server.store.create_repo("r")
    repo.create_array("line", np.uint8, dims=1)
    repo.create_array("empty", np.uint8)
    node = f"page/node/{repo.uuid}/thumbnail"
    for name in ("line", "empty"):
        server.refused("GET", f"{node}/{name}", status=404)
    server.refused("GET", f"{node}/.files")
    server.refused("GET", f"{node}/nothing")
    repo["line"][0:5] = 1
    for side in ("0", "-1", "513", "x", str(2**63)):
        server.refused("GET", f"{node}/line", query={"side": side})


@pytest.mark.parametrize("step", [1, 2, 5, 16, 64])
def test_tiles_are_every_so_many_th_voxel(em, step):
    server, repo, values = em
    whole = np.zeros((80, 170, 230), np.uint32)
    whole[5:75, 10:160, 20:220] = values
    node = f"page/node/{repo.uuid}/tile/ids"
    n = [len(range(0, size, step)) for size in whole.shape]
    places = {
        "xy": (f"{n[2]}_{n[1]}/0_0_40", whole[40, ::step, ::step]),
        "xz": (f"{n[2]}_{n[0]}/0_90_0", whole[::step, 90, ::step]),
        "yz": (f"{n[1]}_{n[0]}/100_0_0", whole[::step, ::step, 100]),
    }
    for plane, (where, wanted) in places.items():
        reply = server.get(f"{node}/{plane}/{step}_{step}/{where}")
        assert np.array_equal(np.frombuffer(reply.body, "<u4").reshape(wanted.shape), wanted)


def test_steps_differ_by_axis_and_lz4_is_as_dvid_has_it(em):
    import lz4.block

    server, repo, values = em
    where = f"page/node/{repo.uuid}/tile/ids/xz/4_1/50_70/20_90_5"
    wanted = values[:, 80, ::4]
    plain = server.get(where).body
    packed = server.get(where, query={"compression": "lz4"}).body
    assert np.array_equal(np.frombuffer(plain, "<u4").reshape(wanted.shape), wanted)
    assert lz4.block.decompress(packed, uncompressed_size=len(plain)) == plain


@pytest.mark.parametrize(
    "rest",
    [
        "xy/1_1/0_5/0_0_0", "xy/1_1/513_1/0_0_0", "xy/0_1/5_5/0_0_0", "xy/-1_1/5_5/0_0_0",
        f"xy/{2**31}_1/5_5/0_0_0", "zz/1_1/5_5/0_0_0", "xy/1/5_5/0_0_0", "xy/1_1/5/0_0_0",
        "xy/1_1/5_5/0_0", f"xy/1_1/5_5/0_0_{2**63}", "xy/1_1/5_5/a_b_c",
        f"xy/{2**24}_{2**24}/512_512/{2**31 - 9}_0_0",
    ],
)  # fmt: skip
def test_bad_tiles(em, rest):
    server, repo, _ = em
    server.refused("GET", f"page/node/{repo.uuid}/tile/ids/{rest}")
    server.refused("GET", f"page/node/{repo.uuid}/tile/.files/{rest}")


def test_a_picture_of_a_huge_plane_decodes_few_blocks(monkeypatch, server):
    repo = server.store.create_repo("r")
    array = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8))
    array[0:8, 0:1024, 0:1024] = 5
    asked = []
    real = type(array).read

    def read(self, index=..., out=None):
        found = real(self, index, out)
        asked.append(np.prod([-(-n // 1) for n in found.shape]))
        return found

    monkeypatch.setattr(type(array), "read", read)
    monkeypatch.setattr(type(array), "__getitem__", read)
    found = sample(levels(repo, array), (0, 0, 0), (1, 8, 8), (1, 128, 128), blocks=64)
    assert found.shape == (1, 128, 128)
    assert (found == 5).all()
    assert len(asked) <= 64


def test_coarser_arrays_are_read_where_they_do(server):
    repo = server.store.create_repo("r")
    fine = repo.create_array("gray", np.uint8, voxel_size=(8, 8, 8))
    fine[0:64, 0:64, 0:64] = 1
    coarse = repo.create_array("gray_1", np.uint8, voxel_size=(16, 16, 16))
    coarse[0:32, 0:32, 0:32] = 2
    other = repo.create_array("gray_2", np.uint8, voxel_size=(17, 17, 17))
    other[0:32, 0:32, 0:32] = 3
    found = levels(repo, fine)
    assert [level.factor for level in found] == [(1, 1, 1), (2, 2, 2)]
    assert (sample(found, (9, 0, 0), (1, 1, 1), (1, 8, 8)) == 1).all()
    assert (sample(found, (9, 0, 0), (1, 2, 2), (1, 8, 8)) == 2).all()
    assert (sample(found, (9, 0, 0), (1, 3, 3), (1, 8, 8)) == 1).all()


def test_levels_of_pyramids_are_read_too(server):
    repo = server.store.create_repo("r")
    array = repo.create_array("em", np.uint8, voxel_size=(8, 8, 8))
    array[0:64, 0:128, 0:128] = np.random.default_rng(5).integers(0, 256, (64, 128, 128), np.uint8)
    array.update_pyramid(1)
    node = f"page/node/{repo.uuid}"
    coarse = np.frombuffer(server.get(f"{node}/tile/em/xy/2_2/64_64/0_0_10").body, np.uint8)
    assert np.array_equal(coarse.reshape(64, 64), repo["em_1"][5:6, 0:64, 0:64][0])
    arrays = {each["name"]: each for each in server.get(node).json["arrays"]}
    assert arrays["em_1"]["hi"] == [64, 64, 32]
    assert server.get(f"{node}/size/em_1").json["bytes"] is None
    assert len(server.get(f"{node}/precomputed/em/info").json["scales"]) == 2
    shown = picture(server.get(f"{node}/thumbnail/em_1"))
    assert np.array_equal(shown, repo["em_1"][16:17, 0:64, 0:64][0])


def test_colours_of_labels():
    labels = np.array([0, 1, 2, 2**32, 2**32 + 1, 2**64 - 1], np.uint64)
    found = colours(labels)
    assert found[0].tolist() == [0, 0, 0]
    assert len({tuple(each) for each in found.tolist()}) == len(labels)
    assert (found[1:].max(axis=1) > 150).all()


# -- precomputed ---------------------------------------------------------------------------


def test_precomputed_volumes(em):
    server, repo, values = em
    where = f"page/node/{repo.uuid}/precomputed/ids"
    info = server.get(f"{where}/info").json
    assert (info["type"], info["data_type"], info["num_channels"]) == ("image", "uint32", 1)
    (scale,) = info["scales"]
    assert scale["resolution"] == [8, 8, 40]
    assert scale["voxel_offset"] == [0, 0, 0]
    assert scale["size"] == [220, 160, 75]
    found = np.zeros((75, 160, 220), np.uint32)
    for z, y, x in np.ndindex(2, 3, 4):
        lo = np.array((z, y, x)) * 64
        hi = np.minimum(lo + 64, found.shape)
        name = "_".join(f"{a}-{b}" for a, b in reversed(list(zip(lo, hi, strict=True))))
        data = np.frombuffer(server.get(f"{where}/0/{name}").body, "<u4")
        box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
        found[box] = data.reshape(found[box].shape)
    assert np.array_equal(found[5:75, 10:160, 20:220], values)


def test_channels_come_first_in_chunks(server):
    repo = server.store.create_repo("r")
    array = repo.create_array("rgb", np.uint8, channels=3)
    values = np.random.default_rng(3).integers(0, 256, (4, 5, 6, 3), np.uint8)
    array[0:4, 0:5, 0:6] = values
    where = f"page/node/{repo.uuid}/precomputed/rgb"
    assert server.get(f"{where}/info").json["num_channels"] == 3
    data = np.frombuffer(server.get(f"{where}/0/0-6_0-5_0-4").body, np.uint8)
    assert np.array_equal(data.reshape(3, 4, 5, 6), np.moveaxis(values, 3, 0))


@pytest.mark.parametrize(
    "rest",
    ["1/0-64_0-64_0-64", "x/0-1_0-1_0-1", "0/0-65_0-1_0-1", "0/1-1_0-1_0-1", "0/2-1_0-1_0-1",
     "0/0-1_0-1", "0/a-b_0-1_0-1", "0/0-1_0-1_0-1_0-1", f"0/{2**63}-{2**63 + 1}_0-1_0-1",
     "-1/0-1_0-1_0-1"],
)  # fmt: skip
def test_bad_chunks(em, rest):
    server, repo, _ = em
    server.refused("GET", f"page/node/{repo.uuid}/precomputed/ids/{rest}")


def test_rights_hold_for_what_the_page_asks(em, monkeypatch):
    from diced.server.answer import Refused

    server, repo, _ = em

    def check(call, route):
        if call.repo is not None:
            raise Refused(401, "not for you\n")

    monkeypatch.setattr(server.app.site.access, "check", check)
    node = f"page/node/{repo.uuid}"
    for path in (
        node, f"{node}/size/ids", f"{node}/thumbnail/ids", f"{node}/keys/.files",
        f"{node}/tile/ids/xy/1_1/5_5/0_0_0", f"{node}/precomputed/ids/info",
    ):  # fmt: skip
        server.refused("GET", path, status=401)


def test_what_users_may(tmp_path):
    from diced.store import DicedStore

    with DicedStore(tmp_path / "store") as store:
        repo = store.create_repo("r")
        array = repo.create_array("gray", np.uint8)
        array[0:8, 0:8, 0:8] = 1
        public = repo.lock_node("out")
        repo.tag("published")
        repo.change_version(repo.create_branch())
        repo.lock_node("still secret")
        repo.tag("secret")
        private = repo.uuid
    users = {
        "ann": {"token": "of ann", "rights": {"r": "write"}},
        "bob": {"token": "of bob", "rights": {"r": "read"}},
    }
    access = {"users": users, "public_versions": [public]}
    with serving(tmp_path / "store", access=access) as server:

        def rights(token, uuid):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return server.get(f"page/node/{uuid}", headers=headers).json

        ann, bob, nobody = rights("of ann", private), rights("of bob", private), rights("", public)
        assert (ann["user"], ann["rights"]["write"], ann["rights"]["remove"]) == (
            "ann",
            True,
            False,
        )
        assert (bob["user"], bob["rights"]["write"]) == ("bob", False)
        assert nobody["rights"]["write"] is nobody["rights"]["create"] is False
        assert set(ann["tags"]) == {"published", "secret"}
        assert set(nobody["tags"]) == {"published"}
        for rest in ("", "/thumbnail/gray", "/size/gray", "/precomputed/gray/info", "/keys/.files"):
            server.get(f"page/node/{public}{rest}")
            server.refused("GET", f"page/node/{private}{rest}", status=401)


def test_every_route_of_the_page_is_described():
    for route in pages.routes():
        assert route.summary.endswith(".")
        assert route.pattern.startswith("/api/page/")
    assert thumbnails.MAX_BLOCKS > 0
    assert json.dumps([route.query for route in pages.routes()])
