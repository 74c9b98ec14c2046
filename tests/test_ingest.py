"""Ingest: what files become, slab by slab, and what happens when it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from diced import DicedArray, DicedRepo, DicedStore
from diced.errors import InvalidError, LockedError, NotFoundError, UnsupportedError
from diced.ingest import ingest, open_source

BLOCK = (8, 8, 8)
SHAPE = (21, 19, 17)


def volume(shape: tuple[int, ...] = SHAPE, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(0, info.max, shape, dtype, endpoint=True)


def save(folder: Path, planes: np.ndarray, ending: str = "png", first: int = 0) -> str:
    """Save an image per plane, without leading zeros; return the pattern."""
    folder.mkdir(exist_ok=True)
    for z, plane in enumerate(planes, first):
        path = folder / f"iso.{z}.{ending}"
        if ending == "tif":
            tifffile.imwrite(path, plane)
        else:
            Image.fromarray(plane).save(path)
    return str(folder / f"*.{ending}")


def run(repo: DicedRepo, patterns: Any, *args: Any, name: str = "a", **kwargs: Any) -> Any:
    opened = {
        key: kwargs.pop(key) for key in ("keep_order", "palette", "channels") if key in kwargs
    }
    given = [patterns] if isinstance(patterns, str) else patterns
    with contextlib.closing(open_source(given, **opened)) as source:
        if name not in repo and "block_shape" not in kwargs and "dims" not in kwargs:
            kwargs["block_shape"] = BLOCK[: len(source.shape)]
        return ingest(repo, name, source, *args, **kwargs)


# -- what becomes of them ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "ending"), [("uint8", "png"), ("uint16", "png"), ("uint16", "tif"), ("int32", "tif")]
)
def test_a_stack_goes_where_it_is_said(
    repo: DicedRepo, tmp_path: Path, dtype: str, ending: str
) -> None:
    data = volume(dtype=dtype)
    result = run(repo, save(tmp_path, data, ending), (-5, 3, -100))
    array = repo["a"]
    assert array.dtype == dtype
    assert (result.start, result.stop) == ((-5, 3, -100), (16, 22, -83))
    assert array.bounds == (slice(-5, 16), slice(3, 22), slice(-100, -83))
    np.testing.assert_array_equal(array[array.bounds], data)


def test_slabs_are_commits_aligned_with_blocks(repo: DicedRepo, tmp_path: Path) -> None:
    run(repo, save(tmp_path, volume()), (5, 0, 0))
    boxes = [each["box"] for each in repo.operations("a")]
    assert [(lo[0], hi[0]) for lo, hi in boxes] == [(5, 8), (8, 16), (16, 24), (24, 26)]


def test_little_memory_splits_slabs_along_rows(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume()
    run(repo, save(tmp_path, data), (0, -3, 0), memory=1)
    boxes = [each["box"] for each in repo.operations("a")]
    assert {(lo[1], hi[1]) for lo, hi in boxes} == {(-3, 0), (0, 8), (8, 16)}
    np.testing.assert_array_equal(repo["a"][0:21, -3:16, 0:17], data)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_are_channels(repo: DicedRepo, tmp_path: Path, channels: int) -> None:
    data = volume((*SHAPE, channels))
    run(repo, save(tmp_path, data))
    assert repo["a"].channels == channels
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)


def test_palette_images_are_colours_or_labels(repo: DicedRepo, tmp_path: Path) -> None:
    image = Image.fromarray(volume((9, 9)) % 4).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    image.save(tmp_path / "p.png")
    run(repo, str(tmp_path / "p.png"), name="colours")
    assert repo["colours"].channels == 3
    np.testing.assert_array_equal(repo["colours"][0, 0:9, 0:9], np.asarray(image.convert("RGB")))
    run(repo, str(tmp_path / "p.png"), name="labels", labels=True, palette=True)
    np.testing.assert_array_equal(repo["labels"][0, 0:9, 0:9], np.asarray(image))


def test_labels(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume(dtype=np.uint16)
    run(repo, save(tmp_path, data), labels=True, block_shape=(16, 16, 16))
    assert repo["a"].islabel3D
    assert repo["a"].dtype == np.uint64
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)


def test_jpeg_and_bilevel_images(repo: DicedRepo, tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "a.jpg", quality=100)
    run(repo, str(tmp_path / "a.jpg"), name="jpeg")
    assert repo["jpeg"][0, 4, 4] == 77
    mask = volume((9, 9)) > 99
    Image.fromarray(mask).save(tmp_path / "b.png")
    run(repo, str(tmp_path / "b.png"), name="mask")
    assert repo["mask"].dtype == bool
    np.testing.assert_array_equal(repo["mask"][0, 0:9, 0:9], mask)


def test_16_bit_colour_is_refused_rather_than_halved(tmp_path: Path) -> None:
    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress(2 * (b"\0" + bytes(range(12))))
    path = tmp_path / "c.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")
    )
    with pytest.raises(UnsupportedError, match=r"c\.png"):
        open_source([path])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {},
        {"imagej": True},
        {"byteorder": ">"},
        {"compression": "zlib", "metadata": None},
        {"tile": (16, 16), "compression": "zlib"},
    ],
    ids=str,
)
def test_tiff_files_of_several_pages(
    repo: DicedRepo, tmp_path: Path, options: dict[str, Any]
) -> None:
    data = volume((40, 32, 32), np.uint16)
    tifffile.imwrite(tmp_path / "1.tif", data[:25], photometric="minisblack", **options)
    tifffile.imwrite(tmp_path / "2.tif", data[25:], photometric="minisblack", **options)
    run(repo, str(tmp_path / "*.tif"))
    np.testing.assert_array_equal(repo["a"][0:40, 0:32, 0:32], data)


def test_tiff_of_two_stacked_axes_is_refused(tmp_path: Path) -> None:
    data = volume((3, 4, 8, 8))
    tifffile.imwrite(tmp_path / "h.tif", data, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UnsupportedError, match="ZCYX"):
        open_source([tmp_path / "h.tif"])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">u2", "?"])
@pytest.mark.parametrize("shape", [(30,), (20, 30), SHAPE, (9, 3, 10, 4)])
def test_numpy_files(
    repo: DicedRepo, tmp_path: Path, shape: tuple[int, ...], dtype: str, order: str
) -> None:
    data = np.asarray(volume(shape, np.uint16).astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "v.npy", data)
    run(repo, str(tmp_path / "v.npy"), (-3,) * len(shape), block_shape=(8,) * len(shape))
    box = tuple(slice(-3, n - 3) for n in shape)
    np.testing.assert_array_equal(repo["a"][box], data)


def test_hdf5_files(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume((*SHAPE, 3))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("em/raw", data=data, chunks=(5, 5, 5, 3), compression="gzip")
    run(repo, f"{tmp_path}/v.h5:/em/raw", channels=True)
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)
    run(repo, f"{tmp_path}/v.h5", channels=True, name="b")
    with h5py.File(tmp_path / "v.h5", "a") as file:
        file["other"] = data
    with pytest.raises(InvalidError, match="2 datasets"):
        open_source([f"{tmp_path}/v.h5"])
    with pytest.raises(NotFoundError, match="em/rav"):
        open_source([f"{tmp_path}/v.h5:em/rav"])


def test_one_image_can_be_a_plane_of_its_own(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume((1, 600, 700))
    run(repo, save(tmp_path, data), (-7, 9), dims=2)
    assert repo["a"].numdims == 2
    np.testing.assert_array_equal(repo["a"][-7:593, 9:709], data[0])


def test_an_existing_array_must_agree(repo: DicedRepo, tmp_path: Path) -> None:
    pattern = save(tmp_path, volume())
    run(repo, pattern, codec="zstd")
    run(repo, pattern, codec="zstd")
    for wrong in ({"codec": "raw"}, {"block_shape": (4, 4, 4)}, {"labels": True}, {"dims": 2}):
        with pytest.raises(InvalidError, match="'a'"):
            run(repo, pattern, **wrong)
    with pytest.raises(InvalidError, match="offset"):
        run(repo, pattern, (0, 0))
    repo.create_array("flat", "uint8", 2)
    with pytest.raises(InvalidError, match="dimensions"):
        run(repo, pattern, name="flat")
    repo.create_array("rgb", "uint8", channels=3)
    with pytest.raises(InvalidError, match="channels"):
        run(repo, pattern, name="rgb")


def test_values_that_do_not_fit_are_refused(repo: DicedRepo, tmp_path: Path) -> None:
    repo.create_array("a", "uint8", block_shape=BLOCK)
    np.save(tmp_path / "v.npy", np.full(SHAPE, 256, np.uint16))
    with pytest.raises(InvalidError, match="256"):
        run(repo, str(tmp_path / "v.npy"))


@pytest.mark.parametrize(
    ("package", "name"), [("PIL", "a.png"), ("tifffile", "a.tif"), ("h5py", "a.h5")]
)
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=r"diced\[images\]"):
        open_source([tmp_path / name])


def test_a_copy_over_it_is_an_edit(repo: DicedRepo, tmp_path: Path) -> None:
    pattern = save(tmp_path, volume())
    run(repo, pattern)
    np.save(tmp_path / "v.npy", np.zeros((2, 2, 2), np.uint8))
    run(repo, str(tmp_path / "v.npy"), verb="copy")
    assert run(repo, pattern).skipped == 3
    assert not repo["a"][0:2, 0:2, 0:2].any()


# -- broken files --------------------------------------------------------------------------


def breaks_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def is_nothing(path: Path) -> None:
    path.write_bytes(b"no image at all")


def is_empty(path: Path) -> None:
    path.write_bytes(b"")


def is_smaller(path: Path) -> None:
    Image.fromarray(volume((5, 5))).save(path)


def is_deeper(path: Path) -> None:
    Image.fromarray(volume(SHAPE[1:], np.uint16)).save(path)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("damage", [breaks_off, is_nothing, is_empty, is_smaller, is_deeper])
def test_a_bad_image_stops_at_its_slab_and_can_be_mended(
    repo: DicedRepo, tmp_path: Path, damage: Callable[[Path], None], ending: str
) -> None:
    data = volume()
    pattern = save(tmp_path, data, ending)
    bad = tmp_path / f"iso.17.{ending}"
    good = bad.read_bytes()
    damage(bad)
    with pytest.raises(InvalidError, match=rf"iso\.17\.{ending}.*2 of 3 slabs are stored"):
        run(repo, pattern)
    np.testing.assert_array_equal(repo["a"][0:16, 0:19, 0:17], data[:16])
    assert repo["a"].bounds == (slice(0, 16), slice(0, 19), slice(0, 17))
    bad.write_bytes(good)
    assert run(repo, pattern).skipped == 2
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)


@pytest.mark.parametrize("name", ["v.npy", "v.h5"])
def test_a_truncated_volume_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, volume())
    else:
        with h5py.File(path, "w") as file:
            file["v"] = volume()
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InvalidError, match=name.replace(".", r"\.")):
        open_source([path])


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidError, match=r"o\.npy"):
        open_source([tmp_path / "o.npy"])


# -- resuming ------------------------------------------------------------------------------


def commits(repo: DicedRepo) -> int:
    return sum(1 for _ in repo.operations("a"))


def test_finished_slabs_are_skipped_without_reading(repo: DicedRepo, tmp_path: Path) -> None:
    pattern = save(tmp_path, volume())
    first = run(repo, pattern)
    assert (first.slabs, first.skipped, first.written) == (3, 0, volume().nbytes)
    seen: list[tuple[int, int]] = []
    again = run(repo, pattern, progress=lambda done, total: seen.append((done, total)))
    assert (again.slabs, again.skipped, again.written) == (3, 3, 0)
    assert seen == [(volume().nbytes,) * 2]
    assert commits(repo) == 3


def test_a_replaced_image_rewrites_its_slab_only(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume()
    pattern = save(tmp_path, data)
    run(repo, pattern)
    data[10] = 255 - data[10]
    Image.fromarray(data[10]).save(tmp_path / "iso.10.png")
    os.utime(tmp_path / "iso.10.png", ns=(1, 1))
    assert run(repo, pattern).skipped == 2
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)


def test_a_grown_stack_goes_on(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume()
    pattern = save(tmp_path, data[:16])
    run(repo, pattern)
    save(tmp_path, data[16:], first=16)
    result = run(repo, pattern)
    assert (result.slabs, result.skipped) == (3, 2)
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)


def test_edits_since_are_kept_and_force_overwrites_them(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume()
    pattern = save(tmp_path, data)
    run(repo, pattern)
    repo["a"][3, 3, 3] = 255 - data[3, 3, 3]
    assert run(repo, pattern).skipped == 3
    assert repo["a"][3, 3, 3] == 255 - data[3, 3, 3]
    assert run(repo, pattern, force=True).skipped == 0
    assert repo["a"][3, 3, 3] == data[3, 3, 3]


def test_what_another_ingest_covered_is_written_again(repo: DicedRepo, tmp_path: Path) -> None:
    ours, theirs = volume(), volume((8, 4, 4), seed=1)
    pattern = save(tmp_path / "ours", ours)
    other = save(tmp_path / "theirs", theirs)
    run(repo, pattern)
    run(repo, other, (8, 0, 0))
    assert run(repo, pattern).skipped == 2
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], ours)


def test_another_place_is_another_ingest(repo: DicedRepo, tmp_path: Path) -> None:
    pattern = save(tmp_path, volume())
    run(repo, pattern)
    assert run(repo, pattern, (100, 0, 0)).skipped == 0


def test_it_goes_on_in_a_child_and_not_at_a_locked_version(repo: DicedRepo, tmp_path: Path) -> None:
    data = volume()
    pattern = save(tmp_path, data)
    is_empty(tmp_path / "iso.20.png")
    with pytest.raises(InvalidError):
        run(repo, pattern)
    repo.lock_node("too early")
    save(tmp_path, data[20:], first=20)
    with pytest.raises(LockedError):
        run(repo, pattern)
    repo.change_version(repo.create_branch())
    assert run(repo, pattern).skipped == 2
    np.testing.assert_array_equal(repo["a"][0:21, 0:19, 0:17], data)


SCRIPT = """
import os, signal, sys, threading
from diced import DicedStore
from diced.ingest import ingest, open_source
where, pattern, slabs, delay = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
left = slabs + 1

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(done, total):
    global left
    left -= 1
    if left == 0:
        threading.Timer(delay, kill).start() if delay else kill()

with DicedStore(where, durability="process") as store:
    result = ingest(store.open_repo("r"), "a", open_source([pattern]), progress=progress)
    print(result.written, flush=True)
"""


def test_kill_and_run_again(tmp_path: Path) -> None:
    """Killed between commits or at any moment, it goes on; no finished slab is written twice."""
    data = volume((96, 128, 128))
    pattern = save(tmp_path / "in", data)
    where = tmp_path / "s.diced"
    with DicedStore(where) as store:
        store.create_repo("r").create_array("a", "uint8", block_shape=(2, 32, 32))
    command = [sys.executable, "-c", SCRIPT, str(where), pattern]
    killed = subprocess.run([*command, "3", "0"], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert _records(where) == 3
    for slabs, delay in ((5, 0.004), (2, 0.001), (4, 0.0005)):
        subprocess.run([*command, str(slabs), str(delay)], timeout=120, check=False)
    before = _records(where)
    assert before >= 3 + 5 + 2 + 4
    done = subprocess.run(
        [*command, "99", "0"], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) == data.nbytes * (48 - before) // 48
    with DicedStore(where, readonly=True) as store:
        repo = store.open_repo("r")
        operations = [each["operation"] for each in repo.operations("a")]
        assert len(operations) == len(set(operations)) == 48
        np.testing.assert_array_equal(repo["a"][0:96, 0:128, 0:128], data)


def _records(where: Path) -> int:
    with DicedStore(where, readonly=True) as store:
        return sum(1 for _ in store.open_repo("r").operations("a"))


# -- real data -----------------------------------------------------------------------------


def test_a_real_stack(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "sample-grayscale").glob("*.png"))
    data = np.stack([np.asarray(Image.open(path)) for path in files])
    with DicedStore(tmp_path / "s.diced", durability="process") as store:
        repo = store.create_repo("r")
        source = open_source([str(shared_data / "sample-grayscale" / "*.png")])
        ingest(repo, "grayscale", source, (2600, 100, 100))
        array: DicedArray = repo["grayscale"]
        np.testing.assert_array_equal(array[2600:2850, 100:350, 100:350], data)
        np.testing.assert_array_equal(array[2600:2850, 223, 100:350], data[:, 123])
        assert not array[2590:2600, 100:350, 100:350].any()
