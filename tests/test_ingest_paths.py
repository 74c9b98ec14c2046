"""Which files make a stack, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diced.errors import InvalidError, NotFoundError, UnsupportedError
from diced.ingest import expand, gaps, open_source
from diced.ingest.paths import natural_key


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_in_names_sort_as_numbers(numbers: list[int]) -> None:
    paths = sorted((f"a/iso.{n}.png" for n in numbers), key=natural_key)
    assert [int(path.split(".")[1]) for path in paths] == sorted(numbers)


def test_shells_order_is_mended_unless_it_is_meant(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("z10.png", "z9.png", "z9.png", "z100.png")]
    for path in files:
        Path(path).touch()
    assert expand(files) == [files[1], files[0], files[3]]
    assert expand(files, keep_order=True) == files
    assert expand([str(tmp_path / "z1*.png")]) == [files[0], files[3]]


def test_a_name_with_brackets_is_no_pattern_if_it_exists(tmp_path: Path) -> None:
    path = tmp_path / "a[1].png"
    path.touch()
    (tmp_path / "a1.png").touch()
    assert expand([path]) == [str(path)]


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\*"):
        expand([tmp_path / "nothing*.png"])
    with pytest.raises(InvalidError, match="folder"):
        expand([tmp_path])
    with pytest.raises(NotFoundError, match=r"missing\.png"):
        open_source([tmp_path / "missing.png"])
    with pytest.raises(UnsupportedError, match=r"notes\.txt"):
        (tmp_path / "notes.txt").touch()
        open_source([tmp_path / "notes.txt"])


def test_gaps_in_numbering() -> None:
    names = [f"s{z}.png" for z in (1, 2, 3, 5, 6)]
    assert gaps(names) == [("s3.png", "s5.png")]
    assert gaps([f"s{z}.png" for z in range(0, 50, 5)]) == []
    assert gaps(["a.png", "b.png", "c.png"]) == []
    assert gaps(["a1b1.png", "a1b2.png", "a2b1.png"]) == []
