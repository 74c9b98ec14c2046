"""The tour ends well on made-up volumes and image stacks, and notices what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from diced import DicedStore
from diced.array import DicedArray
from diced.demo.run import run_demo
from diced.errors import CorruptError, InvalidError, NotFoundError

SHAPE = (70, 90, 100)


@pytest.fixture
def place(tmp_path) -> str:
    return str(tmp_path / "demo.diced")


def told(*args, **options) -> str:
    lines: list[str] = []
    run_demo(*args, say=lines.append, **options)
    return "\n".join(lines)


def test_both_versions_are_there_afterwards(place) -> None:
    text = told(location=place, shape=SHAPE)
    assert text.count("every voxel as it was written") == 2
    assert "is refused" in text
    with DicedStore(place, readonly=True) as store:
        repo = store.open_repo("demo")
        assert repo.locked
        assert {name for name, _ in repo.list_instances()} == {"grayscale", "segmentation"}
        before = repo["grayscale"][:70, :90, :100]
        repo.change_version("edits")
        assert [note for _, note in repo.get_commit_log()] == ["as imported", "(open node)"]
        after = repo["grayscale"][:70, :90, :100]
    assert (before != after).any()


def test_a_second_demo_replaces_the_first(place) -> None:
    told(location=place, shape=SHAPE)
    told(location=place, shape=(20, 30, 40), seed=1)
    with DicedStore(place, readonly=True) as store:
        assert [name for name, _ in store.list_repos()] == ["demo"]
        assert store.open_repo("demo")["grayscale"].bounds == (
            slice(0, 20),
            slice(0, 30),
            slice(0, 40),
        )


def test_a_repo_of_yours_is_left_alone(place) -> None:
    with DicedStore(place) as store:
        store.create_repo("demo", "years of work")
    with pytest.raises(InvalidError, match="of your own"):
        told(location=place, shape=SHAPE)


def test_a_stack_of_planes_in_order_of_name(tmp_path, place) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (67, 40, 50), dtype=np.uint8)
    for z, plane in enumerate(planes):
        Image.fromarray(plane).save(tmp_path / f"plane{z:03}.png")
    assert "verify" in told([str(tmp_path / "plane*.png")], place)
    with DicedStore(place, readonly=True) as store:
        assert np.array_equal(store.open_repo("demo")["grayscale"][:67, :40, :50], planes)


def test_a_file_of_many_planes(tmp_path, place) -> None:
    planes = np.random.default_rng(0).integers(0, 65536, (10, 20, 30), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", planes)
    told([str(tmp_path / "stack.tif")], place)
    with DicedStore(place, readonly=True) as store:
        assert np.array_equal(store.open_repo("demo")["grayscale"][:10, :20, :30], planes)


def test_a_stack_that_cannot_be_read_is_named(tmp_path, place) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\*\.png"):
        told([str(tmp_path / "nothing*.png")], place)
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(InvalidError, match=r"notes\.png"):
        told([str(tmp_path / "notes.png")], place)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(InvalidError, match="grey"):
        told([str(tmp_path / "colour.png")], place)


def test_planes_of_different_sizes_are_refused(tmp_path, place) -> None:
    for name, size in (("a", (4, 5)), ("b", (4, 6))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(InvalidError, match=r"b\.png"):
        told([str(tmp_path / "a.png"), str(tmp_path / "b.png")], place)


def test_one_wrong_voxel_is_found(place, monkeypatch) -> None:
    read = DicedArray.__getitem__

    def wrong(self: DicedArray, index):
        found = read(self, index)
        if np.shape(found) == (6, 90, 100):  # the last slab
            found[3, 4, 5] ^= 1
        return found

    monkeypatch.setattr(DicedArray, "__getitem__", wrong)
    with pytest.raises(CorruptError, match=r"1 voxels differ.*\(67, 4, 5\)"):
        told(location=place, shape=SHAPE)
