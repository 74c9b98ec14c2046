"""The viewer of the page in a real browser: pixels compared with voxels."""

import numpy as np
import pytest
from browser import READY, canvas, stack

from diced.server.thumbnails import colours


@pytest.fixture
def em(server):
    """A repo with gray values and labels over them, off the origin, of unequal voxels."""
    repo = server.store.create_repo("em")
    values = stack((30, 300, 310))
    options = {"voxel_size": (40, 8, 8), "units": ("nanometers",) * 3}
    repo.create_array("gray", np.uint8, **options)[-10:20, -100:200, 50:360] = values
    ids = np.zeros(values.shape, np.uint64)
    ids[:, 50:200, 60:200] = 2**40 + 7
    ids[:, 200:, 200:] = 12
    repo.create_array("bodies", islabel3D=True, **options)[-10:20, -100:200, 50:360] = ids
    return server, repo, values, ids


def test_the_place_is_in_the_address(em, tab):
    server, repo, values, _ = em
    tab.goto(f"{server.url}/#repo={repo.uuid}&view=gray&at=200_50_5&zoom=1&plane=xy")
    tab.wait(READY)
    tab.key("c")
    # Voxel 0 is at the origin of the canvas; the array begins at x 50, y -100.
    pixels, (x, y), _ = canvas(tab, "xy")
    part = pixels[y - 40 : y + 150, x + 60 : x + 300]
    assert (part == values[15, 60:250, 10:250][..., None]).all()
    tab.key(".")
    tab.wait("location.hash.includes('at=200_50_6')")
    pixels, (x, y), _ = canvas(tab, "xy")
    assert (
        pixels[y - 40 : y + 150, x + 60 : x + 300] == values[16, 60:250, 10:250][..., None]
    ).all()
    tab.fill(".place", "100, 20, -3")
    tab.wait("location.hash.includes('at=100_20_-3')")


def test_scrolling_zooming_and_dragging(em, tab):
    server, repo, _, _ = em
    tab.goto(f"{server.url}/#repo={repo.uuid}&view=gray&at=200_50_5&zoom=1&plane=xy")
    tab.wait(READY)
    box = tab.js(
        "(() => { const b = document.querySelector('canvas[data-plane=xy]')"
        ".getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    tab.mouse("mouseWheel", *box, deltaX=0, deltaY=120)
    tab.wait("diced.viewer.at[2] === 6")
    tab.mouse("mouseWheel", *box, deltaX=0, deltaY=-120, modifiers=8)
    tab.wait("diced.viewer.at[2] === -4")
    tab.mouse("mouseWheel", *box, deltaX=0, deltaY=-200, modifiers=2)
    tab.wait("diced.viewer.zoom === 2")
    tab.mouse("mousePressed", *box, button="left", clickCount=1)
    tab.mouse("mouseMoved", box[0] + 20, box[1] - 40, button="left", buttons=1)
    tab.mouse("mouseReleased", box[0] + 20, box[1] - 40, button="left", clickCount=1)
    tab.wait("String(diced.viewer.at) === '190,70,-4'")
    tab.mouse("mousePressed", box[0] + 30, box[1], button="left", clickCount=1)
    tab.mouse("mouseReleased", box[0] + 30, box[1], button="left", clickCount=1)
    tab.wait("diced.viewer.at[0] > 200 && diced.viewer.at[1] === 70")
    for key, wanted in (("ArrowLeft", "at[0] < 203"), ("-", "zoom === 1"), ("2", "plane === 'xz'")):
        tab.key(key)
        tab.wait(f"diced.viewer.{wanted}")
    tab.wait("document.querySelector('canvas[data-plane=xz]').dataset.bar === '1 µm'")


def test_the_bar_of_scale_is_in_real_units(em, tab):
    server, repo, _, _ = em
    where = f"{server.url}/#repo={repo.uuid}&view=gray&at=200_50_5&plane=xy&zoom="
    bars = []
    for zoom in ("1", "10", "0.01"):
        tab.goto(where + zoom)
        tab.wait(READY)
        bars.append(tab.js("document.querySelector('canvas[data-plane=xy]').dataset.bar"))
    # At most 160 pixels of 8 nm, of 0.8 nm, of 800 nm.
    assert bars == ["1 µm", "100 nm", "100 µm"]


def test_unequal_voxels_keep_their_shape(em, tab):
    server, repo, values, _ = em
    tab.goto(f"{server.url}/#repo={repo.uuid}&view=gray&at=200_50_5&zoom=1")
    tab.wait(READY)
    tab.key("c")
    pixels, (x, y), scale = canvas(tab, "xz")
    assert scale == [1, 5]
    wanted = np.repeat(values[8:22, 150, 60:250], 5, axis=0)
    assert (pixels[y - 10 : y + 60, x + 110 : x + 300] == wanted[..., None]).all()


def test_labels_lie_over_it_in_colour(em, tab):
    server, repo, values, ids = em
    where = f"{server.url}/#repo={repo.uuid}&view=gray&at=200_50_5&zoom=1&plane=xy&over=bodies"
    tab.goto(f"{where}&alpha=1")
    tab.wait(READY)
    tab.key("c")
    pixels, (x, y), _ = canvas(tab, "xy")
    part = pixels[y - 40 : y + 150, x + 60 : x + 300]
    gray, labels = values[15, 60:250, 10:250], ids[15, 60:250, 10:250]
    assert (part[labels == 0] == gray[labels == 0][:, None]).all()
    assert (part[labels > 0] == colours(labels)[labels > 0]).all()
    assert {int(each) for each in np.unique(labels)} == {0, 12, 2**40 + 7}
    tab.goto(f"{where}&alpha=0.5")
    tab.wait(READY)
    tab.key("c")
    pixels, (x, y), _ = canvas(tab, "xy")
    mixed = (gray[..., None].astype(float) + colours(labels)) / 2
    part = pixels[y - 40 : y + 150, x + 60 : x + 300]
    assert np.abs(part[labels > 0] - mixed[labels > 0]).max() <= 2
    box = tab.js(
        "(() => { const b = document.querySelector('canvas[data-plane=xy]')"
        ".getBoundingClientRect(); return [b.x, b.y]; })()"
    )
    tab.mouse("mouseMoved", box[0] + x + 120.5, box[1] + y + 10.5)
    tab.wait("document.querySelector('.readout').textContent.includes('bodies')")
    said = tab.text(".readout")
    assert f"bodies = {2**40 + 7}" in said
    assert f"gray = {values[15, 110, 70]}" in said


def test_zoomed_out_it_shows_every_other_voxel(em, tab):
    server, repo, values, _ = em
    tab.goto(f"{server.url}/#repo={repo.uuid}&view=gray&at=200_50_5&zoom=0.5&plane=xy")
    tab.wait(READY)
    tab.key("c")
    pixels, (x, y), scale = canvas(tab, "xy")
    assert scale == [0.5, 0.5]
    part = pixels[y - 20 : y + 75, x + 30 : x + 150]
    assert (part == values[15, 60:250:2, 10:250:2][..., None]).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float16", "int8", "bool", "uint32"])
def test_other_voxels_with_their_limits(server, tab, dtype):
    repo = server.store.create_repo("r")
    values = np.tile(np.linspace(0, 1, 64), (8, 64, 1))
    values = values > 0.5 if dtype == "bool" else (values * 100).astype(dtype)
    repo.create_array("a", dtype)[0:8, 0:64, 0:64] = values
    tab.goto(f"{server.url}/#repo={repo.uuid}&view=a&zoom=1&plane=xy")
    tab.wait(READY)
    tab.key("c")
    tab.fill(".limit[title='Value shown black']", "0")
    tab.fill(".limit[title='Value shown white']", "1" if dtype == "bool" else "100")
    pixels, (x, y), _ = canvas(tab, "xy")
    row = pixels[y + 30, x : x + 64, 0].astype(int)
    wanted = np.round(values[4, 30].astype(float) * (255 if dtype == "bool" else 2.55))
    assert np.abs(row - wanted).max() <= 1


def test_colours_of_channels(server, tab):
    repo = server.store.create_repo("r")
    values = np.random.default_rng(0).integers(0, 256, (4, 64, 80, 3), np.uint8)
    repo.create_array("rgb", np.uint8, channels=3)[0:4, 0:64, 0:80] = values
    tab.goto(f"{server.url}/#repo={repo.uuid}&view=rgb&zoom=1&plane=xy")
    tab.wait(READY)
    tab.key("c")
    pixels, (x, y), _ = canvas(tab, "xy")
    assert (pixels[y : y + 64, x : x + 80] == values[2]).all()
