"""The account of a store's bytes adds up and follows what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diced import DicedStore, keys
from diced.errors import NotFoundError
from diced.usage import _Cover, usage


def noise(rng: np.random.Generator, size: int = 16) -> np.ndarray:
    return rng.integers(0, 255, (size, size, size)).astype(np.uint8)


@pytest.fixture(params=["memory", "local"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else str(tmp_path / "store")


def test_sums_and_counts(location: str) -> None:
    rng = np.random.default_rng(1)
    with DicedStore(location, durability="process") as store:
        repo = store.create_repo("fly")
        gray = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8), codec="raw")
        notes = repo.create_array("notes", kind="keyvalue")
        gray[0:16, 0:16, 0:16] = noise(rng)
        gray[16:24, 0:8, 0:8] = 3
        notes.put_many({"small": b"x", "large": rng.bytes(3000)})
        root = repo.uuid
        repo.lock_node("")
        repo.change_version(repo.create_branch(""))
        gray[0:8, 0:8, 0:8] = noise(rng, 8)
        del notes["small"]
        found = usage(store)
        assert json.loads(json.dumps(found)) == found
        every = list(store.engine.list(""))
        assert found["files"] == len(every)
        assert found["bytes"] == sum(store.engine.size(key) for key in every)
        (one,) = found["repos"]
        assert (one["name"], one["uuid"]) == ("fly", root)
        categories = one["bytes"]
        assert categories["total"] == sum(v for k, v in categories.items() if k != "total")
        assert categories["segments"] == sum(one["segments"].values())
        assert one["segments"]["dead"] == one["segments"]["superseded"] == 0
        assert one["segments"]["journal"] > 0
        arrays = {each["name"]: each for each in one["arrays"]}
        assert (arrays["gray"]["frames"], arrays["gray"]["blocks"]) == (9, 10)
        assert (arrays["notes"]["frames"], arrays["notes"]["blocks"]) == (1, 2)
        header = arrays["gray"]["live_bytes"] // 9 - 512
        assert arrays["gray"]["live_bytes"] == 9 * (512 + header) and 40 < header < 80
        assert one["segments"]["live"] == sum(each["live_bytes"] for each in one["arrays"])
        changed = [each["changed"] for each in one["versions"]]
        assert [(each["gray"], each["notes"]) for each in changed] == [(9, 2), (1, 1)]


def test_overwritten_blocks_of_one_version_are_superseded(location: str) -> None:
    rng = np.random.default_rng(2)
    with DicedStore(location, durability="process") as store:
        repo = store.create_repo("fly")
        gray = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8), codec="raw")
        for _ in range(4):
            gray[0:8, 0:8, 0:8] = noise(rng, 8)
        (one,) = usage(store, "fly")["repos"]
        assert one["segments"]["superseded"] == 3 * one["segments"]["live"]
        assert one["segments"]["dead"] == 0


def test_deleted_arrays_are_dead_bytes(location: str) -> None:
    rng = np.random.default_rng(3)
    with DicedStore(location, durability="process") as store:
        repo = store.create_repo("fly")
        for name in ("keep", "drop"):
            repo.create_array(name, np.uint8, block_shape=(8, 8, 8))[0:16, 0:16, 0:16] = noise(rng)
        repo.create_array("loose", np.uint8, versioned=False, block_shape=(8, 8, 8))[
            0:16, 0:16, 0:16
        ] = noise(rng)
        before = usage(store)["repos"][0]
        dropped = next(each for each in before["arrays"] if each["name"] == "drop")
        repo.delete_array("drop")
        after = usage(store)["repos"][0]
        assert after["segments"]["live"] == before["segments"]["live"] - dropped["live_bytes"]
        assert after["segments"]["dead"] >= dropped["live_bytes"] > 0
        assert "drop" not in after["versions"][0]["changed"]


@pytest.mark.parametrize("what", ["segment", "pack", "record", "snapshot"])
def test_what_a_sweep_removes_meanwhile_is_passed_over(
    location: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    with DicedStore(location, durability="process") as store:
        repo = store.create_repo("fly")
        gray = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8))
        gray[0:16, 0:16, 0:16] = noise(rng)
        before = usage(store)["repos"][0]
        home = repo._history.home.prefix
        lane = keys.lane(home, gray._spec.id, repo._node_id)
        gone = {
            "segment": keys.segment(home, 7),
            "pack": keys.pack(home, 7),
            "record": keys.record(lane, 2),
            "snapshot": keys.snapshot(lane, 2),
        }[what]
        listing = store.engine.list

        def stale(prefix: str, after: str = "") -> Iterator[str]:
            """List an object that is gone when it is looked at."""
            found = list(listing(prefix, after))
            return iter(sorted([*found, gone] if gone.startswith(prefix) else found))

        monkeypatch.setattr(store.engine, "list", stale)
        assert usage(store)["repos"][0] == before


def test_repos_are_listed_by_name_or_one_is_chosen(location: str) -> None:
    with DicedStore(location, durability="process") as store:
        for name in ("b", "a"):
            store.create_repo(name)
        assert [each["name"] for each in usage(store)["repos"]] == ["a", "b"]
        assert [each["name"] for each in usage(store, "b")["repos"]] == ["b"]
        with pytest.raises(NotFoundError, match="no repo 'c'"):
            usage(store, "c")


@pytest.mark.parametrize("seed", range(10))
def test_cover_agrees_with_a_bitmap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cover, bitmap = _Cover(), np.zeros((3, 400), bool)
    for _ in range(int(rng.integers(0, 60))):
        segment, start, size = (int(rng.integers(0, n)) for n in (3, 380, 20))
        size += 1
        cover.add((segment, start, size))
        bitmap[segment, start : start + size] = True
        if rng.random() < 0.3:
            cover.join()
    assert cover.total() == bitmap.sum()
    for segment in range(3):
        free = ~bitmap[segment]
        for start, stop in cover.gaps(segment, 400):
            assert free[start:stop].all() and stop > start
            free[start:stop] = False
        assert not free.any()
