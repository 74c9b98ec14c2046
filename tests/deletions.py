"""What the tests of deletions and sweeps share."""

from __future__ import annotations

import uuid
from typing import Any

import far  # noqa: F401 - registers the engine
import numpy as np
import pytest

from diced import DicedStore, keys
from diced.engine import open_engine

PLACES = ["disk", "memory", "far", "gcs"]
ABROAD = ["disk", "gcs"]  # where other processes come
BOX = (slice(0, 16),) * 3


@pytest.fixture(name="url")
def place(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """Return where a store may be made."""
    where = request.param
    if where == "gcs":
        return str(request.getfixturevalue("gcs").url())
    return str(tmp_path / "s") if where == "disk" else f"{where}://{uuid.uuid4().hex}"


def at(*places: str) -> Any:
    """Run a test at these places."""
    return pytest.mark.parametrize("url", places, indirect=True)


def open_(url: str, **options: Any) -> DicedStore:
    """Open a store that takes no answer for new that is old."""
    return DicedStore(url, durability="process", **{"max_age": 0, **options})


def objects(url: str, prefix: str = "r") -> list[str]:
    """List what is stored."""
    with open_engine(url, readonly=True) as engine:
        return list(engine.list(prefix))


def fill(store: DicedStore, name: str = "r", arrays: str = "ab", versions: int = 1) -> Any:
    """Create a repo with arrays of noise, locked some times."""
    repo = store.create_repo(name)
    rng = np.random.default_rng(7)
    for each in arrays:
        repo.create_array(each, np.uint8, block_shape=(8, 8, 8))
    for version in range(versions):
        if version:
            repo.lock_node("x")
            repo.change_version(repo.create_branch())
        for each in arrays:
            for z in range(3):
                repo[each][z : z + 16, 0:16, 0:16] = rng.integers(0, 255, (16, 16, 16), np.uint8)
        repo.upload_filedata("notes", b"x" * 900)
    return repo


def lane(repo: Any, name: str) -> str:
    """Return the prefix of an array's logs."""
    return keys.lanes(repo._history.home.prefix, repo[name]._spec.id)
