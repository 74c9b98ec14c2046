"""Neuroglancer, served by our server: its routes, and its canvas compared with stored voxels."""

import http.client
import json
from urllib.parse import quote

import numpy as np
import pytest

from diced.server import viewer

pytest.importorskip("neuroglancer")

DOTS = "window.viewer.display.canvas"


# -- routes --------------------------------------------------------------------------------


def test_its_files(server):
    index = server.get("/view/v/diced/")
    assert index.headers["content-type"].startswith("text/html")
    assert index.headers["cache-control"] == "no-cache"
    assert "main." in index.text
    for path in sorted(viewer.find().iterdir()):
        reply = server.ask("HEAD", f"/view/v/diced/{path.name}")
        if path.suffix == ".map":
            assert reply.status == 404
            continue
        assert reply.status == 200
        assert int(reply.headers["content-length"]) == path.stat().st_size
        if path.suffix == ".wasm":
            assert reply.headers["content-type"] == "application/wasm"
        if path.suffix == ".js":
            assert "javascript" in reply.headers["content-type"]
            assert "max-age" in reply.headers["cache-control"]


def test_a_file_comes_only_once(server):
    first = server.get("/view/v/diced/index.html")
    tag = {"If-None-Match": first.headers["etag"]}
    assert server.ask("GET", "/view/v/diced/index.html", headers=tag).status == 304


def test_the_stream_of_events_stays_open(server):
    connection = http.client.HTTPConnection(server.netloc, timeout=30)
    connection.request("GET", "/view/events/diced")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.read1(100) == b": diced\n\n"
    connection.close()


def test_state_and_credentials(server):
    def asked(body, **headers):
        return server.post("/view/credentials/diced", body, headers=headers).json

    nobody = {"generation": 0, "credentials": {}}
    mine = json.dumps({"key": "DVID", "parameters": {"dvidServer": server.url}}).encode()
    other = json.dumps({"key": "DVID", "parameters": {"dvidServer": "http://elsewhere"}}).encode()
    cookie = {"Cookie": "diced-viewer=a%20token"}
    assert asked(mine) == nobody
    assert asked(mine, **cookie) == {"generation": 0, "credentials": {"token": "a token"}}
    for body in (other, b"", b"null", b"[1]", b'{"parameters": 3}', b"x" * 10**6, b"[" * 10**5):
        assert asked(body, **cookie) == nobody
    assert server.post("/view/state/diced", b"{}").json == {"g": "1"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/view/", 404), ("GET", "/view/v/other/index.html", 404),
        ("GET", "/view/events/other", 404), ("GET", "/view/credentials/diced", 405),
        ("GET", "/view/v/diced/nothing.js", 404),
        ("GET", "/view/v/diced/..%2f..%2f__init__.py", 404), ("POST", "/view/v/diced/", 405),
    ],
)  # fmt: skip
def test_what_is_not_there(server, method, path, status):
    assert server.ask(method, path, b"" if method == "POST" else None).status == status


def test_without_the_package(monkeypatch):
    from serving import serving

    monkeypatch.setattr(viewer, "find", lambda: None)
    with serving("memory://without-viewer") as server:
        assert server.get("page/store").json["viewer"] is False
        assert server.ask("GET", "/view/v/diced/").status == 404


# -- what it draws -------------------------------------------------------------------------


def quarters(values):
    """Return a volume (64, 128, 128) with one value for each quarter of its planes."""
    found = np.empty((64, 128, 128), np.asarray(values).dtype)
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        found[:, 64 * row : 64 * row + 64, 64 * column : 64 * column + 64] = value
    return found


def state(source, kind, **layer):
    """Return a state that shows one plane, a pixel a voxel, and nothing else."""
    return {
        "dimensions": {axis: [8e-9, "m"] for axis in "xyz"},
        "position": [64, 64, 32.5],
        "crossSectionScale": 1,
        "layers": [{"type": kind, "source": source, "name": "a", **layer}],
        "layout": "xy",
        "showAxisLines": False,
        "showScaleBar": False,
        "showDefaultAnnotations": False,
        "gpuMemoryLimit": 100_000_000,
    }


def drawn(tab, server, wanted):
    """Open a state; return the colours in the middle of each quarter, (2, 2, 3)."""
    tab.goto(f"{server.url}/view/v/diced/#!{quote(json.dumps(wanted))}")
    tab.wait("!!window.viewer && viewer.layerManager.managedLayers.length === 1")
    tab.wait("viewer.layerManager.managedLayers.every((each) => each.isReady())")
    tab.wait("viewer.isReady()", 120)
    found = tab.js(
        f"""(() => {{
            viewer.display.draw();
            const canvas = {DOTS};
            const gl = canvas.getContext('webgl2');
            const box = canvas.getBoundingClientRect();
            const panel = document.querySelector('.neuroglancer-rendered-data-panel');
            const part = panel.getBoundingClientRect();
            const x = part.x - box.x + part.width / 2, y = part.y - box.y + part.height / 2;
            const found = [];
            for (const dy of [-32, 32]) for (const dx of [-32, 32]) {{
                const dot = new Uint8Array(4);
                gl.readPixels(Math.round(x + dx), Math.round(canvas.height - (y + dy)), 1, 1,
                              gl.RGBA, gl.UNSIGNED_BYTE, dot);
                found.push([...dot].slice(0, 3));
            }}
            return found;
        }})()"""
    )
    return np.array(found).reshape(2, 2, 3)


GRAYS = ([[20, 90], [160, 240]], [[240, 20], [90, 160]])


def test_gray_at_two_versions(server, tab, tmp_path):
    uuid = server.repo("em")
    server.instance(uuid, "uint8blk", "gray", BlockSize="64,64,64")
    where = "gray/raw/0_1_2/128_128_64/0_0_0"
    server.post(f"node/{uuid}/{where}", quarters(np.uint8(GRAYS[0])).tobytes())
    server.post(f"node/{uuid}/commit", {"note": "", "log": []})
    child = server.post(f"node/{uuid}/newversion", {}).json["child"]
    server.post(f"node/{child}/{where}", quarters(np.uint8(GRAYS[1])).tobytes())
    for version, values in zip((uuid, child), GRAYS, strict=True):
        source = f"dvid://{server.url}/{version}/gray"
        shader = "void main() { emitGrayscale(toNormalized(getDataValue())); }"
        found = drawn(tab, server, state(source, "image", shader=shader, opacity=1))
        tab.screenshot(tmp_path / f"gray-{version}.png")
        # Each chunk comes as a JPEG.
        assert np.abs(found - np.array(values)[..., None]).max() <= 2, found


BODIES = ([[1, 2], [0, 3]], [[2, 2**33], [3, 0]])
COLOURS = {1: "#ff0000", 2: "#00ff00", 3: "#0000ff", 2**33: "#ffff00"}


def test_labels_at_two_versions(server, tab, tmp_path):
    uuid = server.repo("em")
    server.instance(uuid, "labelblk", "bodies", BlockSize="64,64,64")
    where = "bodies/raw/0_1_2/128_128_64/0_0_0"
    server.post(f"node/{uuid}/{where}", quarters(np.uint64(BODIES[0])).tobytes())
    server.post(f"node/{uuid}/commit", {"note": "", "log": []})
    child = server.post(f"node/{uuid}/newversion", {}).json["child"]
    server.post(f"node/{child}/{where}", quarters(np.uint64(BODIES[1])).tobytes())
    layer = {
        "segments": [str(each) for each in COLOURS], "selectedAlpha": 1, "saturation": 1,
        "segmentColors": {str(key): value for key, value in COLOURS.items()},
    }  # fmt: skip
    for version, values in zip((uuid, child), BODIES, strict=True):
        source = f"dvid://{server.url}/{version}/bodies"
        found = drawn(tab, server, state(source, "segmentation", **layer))
        tab.screenshot(tmp_path / f"bodies-{version}.png")
        for place, body in np.ndenumerate(np.array(values, np.uint64)):
            if int(body):
                colour = list(bytes.fromhex(COLOURS[int(body)][1:]))
                assert found[place].tolist() == colour, (version, place)
            else:
                assert len(set(found[place].tolist())) == 1, (version, place)


def test_other_voxels_in_the_precomputed_form(server, tab, tmp_path):
    repo = server.store.create_repo("em")
    values = np.float32([[0.1, 0.4], [0.7, 1.0]])
    array = repo.create_array("field", np.float32, voxel_size=(8, 8, 8), units=("nanometers",) * 3)
    array[0:64, 0:128, 0:128] = quarters(values)
    source = f"precomputed://{server.url}/api/page/node/{repo.uuid}/precomputed/field"
    shader = "void main() { emitGrayscale(getDataValue()); }"
    found = drawn(tab, server, state(source, "image", shader=shader, opacity=1))
    tab.screenshot(tmp_path / "field.png")
    assert np.abs(found - 255 * values[..., None]).max() <= 1


def test_the_page_opens_it(server, tab, tmp_path):
    uuid = server.repo("em")
    for name, kind in (("gray", "uint8blk"), ("bodies", "labelblk")):
        server.instance(uuid, kind, name, BlockSize="64,64,64", VoxelSize="8,8,8")
    server.post(
        f"node/{uuid}/gray/raw/0_1_2/128_128_64/0_0_0", quarters(np.uint8(GRAYS[0])).tobytes()
    )
    server.post(
        f"node/{uuid}/bodies/raw/0_1_2/128_128_64/0_0_0", quarters(np.uint64(BODIES[0])).tobytes()
    )
    tab.goto(f"{server.url}/#repo={uuid}&view=gray&over=bodies&zoom=2&at=64_64_32")
    tab.wait("!!document.querySelector('.viewer [data-neuroglancer=gray]')")
    tab.js("window.open = (url) => { window.opened = url; }")
    tab.click(".viewer [data-neuroglancer=gray]")
    url = tab.wait("window.opened")
    assert url.startswith(f"{server.url}/view/v/diced/#!")
    tab.goto(url)
    tab.wait("!!window.viewer && viewer.layerManager.managedLayers.length === 2")
    tab.wait("viewer.isReady()", 120)
    shown = tab.js("JSON.parse(JSON.stringify(viewer.state.toJSON()))")
    assert [each["name"] for each in shown["layers"]] == ["gray", "bodies"]
    assert [each["type"] for each in shown["layers"]] == ["image", "segmentation"]
    assert shown["position"] == [64.5, 64.5, 32.5]
    tab.screenshot(tmp_path / "opened.png")
