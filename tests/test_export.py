"""Export: every format holds the box, and nothing unfinished ever has a final name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from diced import DicedArray, DicedRepo
from diced.errors import (
    AlreadyExistsError,
    CorruptError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)
from diced.export import FORMATS, export
from diced.ingest import ingest, open_source

LO, HI = (-5, 3, 100), (16, 22, 117)
BOX = tuple(slice(a, b) for a, b in zip(LO, HI, strict=True))
SHAPE = tuple(b - a for a, b in zip(LO, HI, strict=True))


def filled(repo: DicedRepo, dtype: str = "uint8", channels: int | None = None) -> DicedArray:
    array: DicedArray = repo.create_array(
        "my array", dtype, block_shape=(8, 8, 8), channels=channels
    )
    shape = SHAPE if channels is None else (*SHAPE, channels)
    array[BOX] = (
        np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, shape).astype(dtype)
    )
    return array


def read(paths: list[str], format: str, array: DicedArray) -> np.ndarray:
    if format == "npy":
        return np.asarray(np.load(paths[0]))
    if format == "raw":
        return np.fromfile(paths[0], array.dtype).reshape(array[BOX].shape)
    if format == "hdf5":
        with h5py.File(paths[0]) as file:
            return np.asarray(file["data"])
    if format == "multitiff":
        return np.asarray(tifffile.imread(paths[0]))
    if format == "tiff":
        return np.stack([tifffile.imread(path) for path in paths])
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize("memory", [1, 2**30])
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_format_holds_the_voxels(
    repo: DicedRepo, tmp_path: Path, format: str, dtype: str, channels: int | None, memory: int
) -> None:
    array = filled(repo, dtype, channels)
    target = tmp_path / ("out" if format in ("png", "jpeg", "tiff") else f"out{FORMATS[format]}")
    fits = {
        "png": {"uint8": (None, 3), "uint16": (None,), "bool": (None,)},
        "jpeg": {"uint8": (None, 3)},
        "tiff": {"uint8": (None, 3), "uint16": (None, 3), "float32": (None, 3), "bool": (None,)},
    }
    fits["multitiff"] = fits["tiff"]
    if format in fits and channels not in fits[format].get(dtype, ()):
        with pytest.raises(UnsupportedError, match="my array"):
            export(array, target, format=format)
        assert not list(tmp_path.iterdir())
        return
    paths = export(array, target, format=format, memory=memory, threads=2)
    found = read(paths, format, array)
    if format == "jpeg":
        assert np.abs(found.astype(int) - array[BOX]).mean() < 60  # it is noise, and lossy
    else:
        np.testing.assert_array_equal(found, array[BOX])
    assert sorted(map(str, tmp_path.rglob("*.*"))) == sorted(paths)


def test_the_name_says_the_format(repo: DicedRepo, tmp_path: Path) -> None:
    array = filled(repo)
    for name, format in [
        ("a.npy", "npy"),
        ("a.h5", "hdf5"),
        ("a.raw", "raw"),
        ("a.tif", "multitiff"),
    ]:
        (path,) = export(array, tmp_path / name)
        assert path == str(tmp_path / name)
        np.testing.assert_array_equal(read([path], format, array), array[BOX])
    paths = export(array, f"{tmp_path}/b.h5:/x/y")
    with h5py.File(paths[0]) as file:
        np.testing.assert_array_equal(file["x/y"], array[BOX])


def test_a_box_beyond_what_was_written_is_fill(repo: DicedRepo, tmp_path: Path) -> None:
    array = filled(repo)
    (path,) = export(array, tmp_path / "a.npy", ((-9, 0, 90), (-3, 5, 130)))
    np.testing.assert_array_equal(np.load(path), array[-9:-3, 0:5, 90:130])


def test_stacks_come_back_by_ingest(repo: DicedRepo, tmp_path: Path) -> None:
    array = filled(repo)
    paths = export(array, tmp_path / "negative")
    assert Path(paths[0]).name == "my_array.00000.png"
    ingest(repo, "again", open_source([str(tmp_path / "negative" / "*.png")]), LO)
    np.testing.assert_array_equal(repo["again"][BOX], array[BOX])
    paths = export(array, tmp_path / "positive", ((8, 3, 100), (12, 22, 117)))
    assert [Path(path).name for path in paths] == [f"my_array.{z:05d}.png" for z in range(8, 12)]


@pytest.mark.parametrize("format", ["png", "tiff", "multitiff", "npy"])
def test_planes(repo: DicedRepo, tmp_path: Path, format: str) -> None:
    array = repo.create_array("flat", "uint8", 2, block_shape=(8, 8))
    data = np.random.default_rng(0).integers(0, 256, (30, 20)).astype(np.uint8)
    array[-4:26, 2:22] = data
    name = "out" if format in ("png", "tiff") else f"out{FORMATS[format]}"
    paths = export(array, tmp_path / name, format=format, memory=1)
    assert len(paths) == 1
    found = np.load(paths[0]) if format == "npy" else np.asarray(Image.open(paths[0]))
    np.testing.assert_array_equal(found, data)


@pytest.mark.parametrize("dims", [1, 4])
def test_other_dimensions(repo: DicedRepo, tmp_path: Path, dims: int) -> None:
    array = repo.create_array("a", "int16", dims, block_shape=(4,) * dims)
    data = np.arange(6**dims, dtype=np.int16).reshape((6,) * dims)
    array[(slice(-1, 5),) * dims] = data
    np.testing.assert_array_equal(np.load(export(array, tmp_path / "a.npy")[0]), data)
    with pytest.raises(UnsupportedError, match="dimensions"):
        export(array, tmp_path / "stack")


def test_files_are_not_replaced_unasked(repo: DicedRepo, tmp_path: Path) -> None:
    array = filled(repo)
    for name in ("a.npy", "stack"):
        export(array, tmp_path / name)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
        with pytest.raises(AlreadyExistsError, match=rf"{name}.* exists; --overwrite replaces it"):
            export(array, tmp_path / name)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
        export(array, tmp_path / name, overwrite=True)


@pytest.mark.parametrize("target", ["a.npy", "a.h5", "a.raw", "a.tif", "stack"])
def test_what_fails_leaves_no_file(
    repo: DicedRepo, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = filled(repo)

    def damaged(self: DicedArray, index: Any) -> Any:
        if index[0].start >= 8:
            raise CorruptError("damaged")
        return self.read(index)

    monkeypatch.setattr(DicedArray, "__getitem__", damaged)
    with pytest.raises(CorruptError):
        export(array, tmp_path / target, memory=1)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    if target == "stack":  # whole images; the plane that failed and those after it are missing
        assert sorted(left) == [f"my_array.{z:05d}.png" for z in range(13)]
    else:
        assert left == []


def test_mistakes_are_named(repo: DicedRepo, tmp_path: Path) -> None:
    array = repo.create_array("a")
    with pytest.raises(InvalidError, match="holds nothing"):
        export(array, tmp_path / "a.npy")
    array[0, 0, 0] = 1
    with pytest.raises(InvalidError, match="box"):
        export(array, tmp_path / "a.npy", ((0, 0), (1, 1)))
    with pytest.raises(InvalidError, match="format"):
        export(array, tmp_path / "a", format="gif")
    with pytest.raises(AlreadyExistsError, match="folder"):
        export(array, tmp_path, format="npy")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("o.png", None), ("o.JPG", None), ("o.png", "png"), ("a.h5", "png"), ("a.h5:/x", "tiff"),
        ("a.npy", "jpeg"), ("a.tif", "tiff"),
    ],
)  # fmt: skip
def test_a_folder_has_no_name_of_a_file(
    repo: DicedRepo, tmp_path: Path, name: str, format: str | None
) -> None:
    array = filled(repo)
    with pytest.raises(InvalidError, match="folder"):
        export(array, f"{tmp_path}/{name}", format=format)
    assert not list(tmp_path.iterdir())
    place = tmp_path / name.partition(":")[0]
    place.mkdir()
    paths = export(array, f"{tmp_path}/{name}", format=format)
    assert {Path(path).parent for path in paths} == {place}
    (tmp_path / "file").touch()
    with pytest.raises(AlreadyExistsError, match="file"):
        export(array, tmp_path / "file")


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.raw", "a.tif", "stack", "stack/"])
def test_the_folder_of_the_target_must_exist(
    repo: DicedRepo, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = filled(repo)
    with pytest.raises(NotFoundError, match="missing"):
        export(array, f"{tmp_path}/missing/{name}")
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert all(Path(path).exists() for path in export(array, name))
