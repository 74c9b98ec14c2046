"""Checking finds each kind of damage and names it; a rebuild brings every version back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diced import DicedStore, codec, compose, keys, registry, versioned
from diced.errors import (
    AccessError,
    CorruptError,
    EngineError,
    NotFoundError,
    ReadOnlyError,
)
from diced.fsck import Report, check
from diced.rebuild import rebuild
from diced.state import Change, State

BOX = (slice(-8, 24),) * 3


@pytest.fixture(autouse=True)
def small_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take snapshots after a few records."""
    monkeypatch.setattr(versioned, "SNAPSHOT_RECORDS", 4)
    monkeypatch.setattr(versioned, "META_SNAPSHOT_RECORDS", 6)


@pytest.fixture
def bodies_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave only the heads of most commits in the records, also of metadata."""
    monkeypatch.setattr(compose, "INLINE_BODY", 300)


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DicedStore]:
    location = "memory://" if request.param == "memory" else str(tmp_path / "store")
    with DicedStore(location, durability="process") as opened:
        yield opened


class Raw:
    """Objects behind the engine's back."""

    def __init__(self, store: DicedStore):
        self.engine: Any = store.engine
        self.shelf = getattr(self.engine, "_shelf", None)
        self.root = Path(self.engine.root) if hasattr(self.engine, "root") else None

    def read(self, key: str) -> bytes:
        if self.shelf is not None:
            return bytes(self.shelf.objects[key])
        return bytes(self.engine.get(key))

    def write(self, key: str, data: bytes) -> None:
        if self.shelf is not None:
            self.shelf.objects[key] = data
        elif self.root is not None:
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            (self.root / key).write_bytes(data)
        else:
            self.engine.delete(key)
            self.engine.put_if_absent(key, data, b"")

    def flip(self, key: str, at: int) -> None:
        data = bytearray(self.read(key))
        data[at] ^= 0x10
        self.write(key, bytes(data))

    def keys(self, part: str) -> list[str]:
        return [key for key in self.engine.list("") if part in key]

    def delete(self, *found: str) -> None:
        for key in found:
            self.engine.delete(key)


def fill(store: DicedStore, seed: int = 0, steps: int = 7, name: str = "fly") -> Any:
    """Make a repo of three versions on two branches, the first locked, with all kinds of data."""
    rng = np.random.default_rng(seed)
    repo = store.create_repo(name)
    gray = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8))
    labels = repo.create_array("labels", islabel3D=True, dtype=np.uint64, block_shape=(8, 8, 8))
    notes = repo.create_array("notes", kind="keyvalue")
    loose = repo.create_array("loose", np.uint16, dims=2, versioned=False, block_shape=(16, 16))
    root = repo.uuid

    def edit() -> None:
        for step in range(steps):
            at = rng.integers(-8, 16, 3).tolist()
            size = rng.integers(1, 9, 3).tolist()
            box = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
            gray[box] = rng.integers(0, 255, size).astype(np.uint8)
            labels[box] = rng.integers(0, 1000, size).astype(np.uint64)
            notes[f"note {step % 3}"] = rng.bytes(int(rng.integers(0, 1500)))
            if step % 4 == 3:
                del notes[f"note {step % 3}"]
        gray[0:16, 0:16, 0:16] = rng.integers(0, 255, (16, 16, 16)).astype(np.uint8)
        gray[16:24, 0:8, 0:8] = 5
        loose[0:20, 0:20] = rng.integers(0, 9999, (20, 20)).astype(np.uint16)
        notes.put_many({f"many {i}": rng.bytes(40) for i in range(30)})

    edit()
    repo.lock_node("first")
    for branch in ("left", "right"):
        repo.change_version(root)
        repo.change_version(repo.create_branch("", branch))
        edit()
    repo.lock_node("second")
    repo.change_version(repo.create_branch("third"))
    gray[1:3, 1:3, 1:3] = 9
    return repo


def contents(store: DicedStore, name: str = "fly") -> dict[str, Any]:
    """Read all of every version."""
    repo = store.open_repo(name)
    found: dict[str, Any] = {}
    for version in repo.versions():
        repo.change_version(version.uuid)
        found[version.uuid] = (
            repo["gray"][BOX].tobytes(),
            repo["labels"][BOX].tobytes(),
            dict(repo["notes"].items()),
            repo["loose"][0:32, 0:32].tobytes(),
            repo["gray"].get_extents(),
        )
    return found


def lane_of(repo: Any, name: str, version: int = 0) -> str:
    """Return the lane prefix of an array at the version of that order of birth."""
    view = repo._history.view()
    spec = view.by_name[name]
    node = view.dag.ordered()[version].id if spec.versioned else keys.NO_NODE
    return keys.lane(repo._history.home.prefix, spec.id, node)


def the_segment(raw: Raw) -> str:
    """Return the key of the one segment of the one repo."""
    (segment,) = (key for key in raw.keys(".seg") if key.startswith("r/"))
    return segment


def kinds(report: Report, severity: str = "error") -> set[str]:
    return {each.kind for each in report.problems if each.severity == severity}


# -- healthy stores -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_healthy_histories_have_no_problems(seed: int) -> None:
    with DicedStore("memory://") as store:
        fill(store, seed, steps=seed % 9)
        report = check(store, full=True)
        assert report.problems == []
        assert report.ok and report.counts["frames"] > 0 and report.counts["records"] > 0
        assert check(DicedStore(store.url, readonly=True, create=False)).problems == []


@pytest.mark.usefixtures("bodies_in_segments")
def test_commits_with_their_bodies_in_segments_are_healthy(store: DicedStore) -> None:
    fill(store)
    assert check(store, full=True).problems == []
    before = contents(store)
    drop_index(store)
    assert rebuild(store).problems == []
    mended(store, before)


@pytest.mark.usefixtures("bodies_in_segments")
def test_metadata_lost_with_a_segment_are_errors_not_exceptions(store: DicedStore) -> None:
    fill(store)
    Raw(store).delete(*Raw(store).keys(".seg"))
    report = check(store, full=True)
    assert any("metadata" in each.where for each in report.problems)
    assert "bad-record" in kinds(report)
    assert "lost-record" in kinds(rebuild(store))


def test_a_check_changes_nothing(store: DicedStore) -> None:
    fill(store)
    raw = Raw(store)
    before = {key: raw.read(key) for key in raw.keys("")}
    heard: list[str] = []
    assert check(store, "fly", full=True, progress=heard.append).ok
    assert {key: raw.read(key) for key in raw.keys("")} == before
    assert any("array 'gray'" in line for line in heard)


def test_an_unknown_repo_is_an_error(store: DicedStore) -> None:
    for action in (check, rebuild):
        with pytest.raises(NotFoundError, match="no repo 'fly'"):
            action(store, "fly")


# -- damage -------------------------------------------------------------------------------------


def test_truncated_segment_names_array_version_and_block(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    segment = the_segment(raw)
    end = len(raw.read(segment))
    # The last commits are a block and its COMMIT frame: cut into the block.
    raw.write(segment, raw.read(segment)[: end - 900])
    report = check(store)
    assert "short-segment" in kinds(report)
    (problem,) = [
        each for each in report.problems if each.kind == "short-segment" and "gray" in each.where
    ]
    assert repo.uuid in problem.where
    assert "block (0, 0, 0)" in problem.message and segment in problem.message


def test_missing_segment_is_found(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    raw.delete(*raw.keys(".seg"))
    report = check(store)
    assert "missing-segment" in kinds(report)
    hit = [each for each in report.problems if each.kind == "missing-segment"]
    assert {f"array {name!r}" for name in ("gray", "labels", "notes", "loose")} <= {
        each.where.split(", ")[1] for each in hit
    }
    assert any(repo.root in each.where for each in hit)


@pytest.mark.parametrize("name", ["gray", "labels", "notes", "loose"])
@pytest.mark.parametrize("where", ["header", "key", "payload", "end"])
def test_flipped_bit_of_a_frame_is_found_by_a_full_check(
    store: DicedStore, name: str, where: str
) -> None:
    repo = fill(store)
    lane = repo._lane(repo._history.view().by_name[name])
    state = lane.refresh()
    key, (segment, offset, length) = next(
        (key, entry) for key, entry in lane.scan(state, 0) if isinstance(entry, tuple)
    )
    place = {"header": 9, "key": 40, "payload": length - 30, "end": length - 1}[where]
    Raw(store).flip(keys.segment(repo._history.home.prefix, segment), offset + place)
    assert check(store).ok
    report = check(store, full=True)
    assert kinds(report) == {"bad-frame"}
    (problem,) = report.problems
    assert f"array {name!r}" in problem.where and f"at {offset}" in problem.message
    named = f"key {key.decode()!r}" if name == "notes" else "block ("
    assert named in problem.message and "restore the segment" in problem.message


@pytest.mark.parametrize("place", [2, 30, -2])
def test_flipped_bit_of_a_record_is_found(store: DicedStore, place: int) -> None:
    repo = fill(store)
    key = keys.record(lane_of(repo, "gray"), 3)
    Raw(store).flip(key, place)
    report = check(store)
    assert kinds(report) == {"bad-record"}
    (problem,) = report.problems
    assert "'gray'" in problem.where and repo.root in problem.where
    assert "record 3 is damaged" in problem.message and key in problem.message


def test_flipped_bit_of_any_page_is_found(store: DicedStore) -> None:
    fill(store)
    raw = Raw(store)
    for key in raw.keys(".pg"):
        data = raw.read(key)
        for at in (5, len(data) - 1):
            raw.flip(key, at)
            report = check(store)
            assert kinds(report) >= {"bad-page"}, (key, at)
            assert any(key in each.message for each in report.problems)
            raw.write(key, data)
    assert check(store).problems == []


def test_missing_page_pack_is_found(store: DicedStore) -> None:
    fill(store)
    raw = Raw(store)
    for key in raw.keys(".pg"):
        data = raw.read(key)
        raw.delete(key)
        report = check(store)
        assert "missing-pages" in kinds(report)
        assert any(key in each.message and "--rebuild" in each.message for each in report.problems)
        raw.write(key, data)


def test_missing_record_in_the_middle_is_found(store: DicedStore) -> None:
    repo = fill(store)
    Raw(store).delete(keys.record(lane_of(repo, "gray"), 2))
    report = check(store)
    assert kinds(report) == {"missing-record"}
    (problem,) = report.problems
    assert "record 2 is missing before record 3" in problem.message


def test_records_cut_from_the_end_are_found(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    at_root = raw.keys(lane_of(repo, "gray") + "/e000000/")
    raw.delete(at_root[-1])
    assert kinds(check(store)) == {"no-lock-record"}
    raw.delete(*at_root[3:])
    assert kinds(check(store)) >= {"no-lock-record", "missing-record"}


def test_stray_record_after_a_gap_is_found(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    lane = lane_of(repo, "loose")
    raw.write(keys.record(lane, 9_000_000_000), raw.read(keys.record(lane, 1)))
    report = check(store)
    assert kinds(report) == {"missing-record", "duplicate-txid"}
    assert "to 8999999999 are missing" in report.problems[0].message


def test_record_after_the_lock_and_repeated_transaction_are_found(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    found = raw.keys(lane_of(repo, "gray") + "/e000000/")
    raw.write(keys.record(lane_of(repo, "gray"), len(found) + 1), raw.read(found[0]))
    assert kinds(check(store)) >= {"after-lock", "duplicate-txid", "no-lock-record"}


def test_missing_and_damaged_lock_objects_are_found(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    node = repo._history.view().dag.root.id
    key = keys.lock(repo._history.home.prefix, node)
    data = raw.read(key)
    raw.delete(key)
    report = check(store)
    assert kinds(report) == {"missing-lock"}
    assert repo.root in report.problems[0].where and key in report.problems[0].message
    raw.write(key, data)
    raw.flip(key, len(data) // 2)
    assert kinds(check(store)) == {"bad-lock"}
    (other,) = (each for each in raw.keys("/locks/") if each != key)
    raw.write(key, raw.read(other))
    assert kinds(check(store)) == {"bad-lock"}  # a sound one, but of another node
    head = versioned.Record.decode(data, key).head
    del head["lanes"][repo["gray"]._spec.id]
    raw.write(key, versioned.Record(versioned.log.LOCKED_NODE, head).encode())
    report = check(store)
    assert kinds(report) == {"bad-lock"}
    assert "does not list array 'gray'" in report.problems[0].message


def test_damaged_and_wrong_snapshots_are_found(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    lane = lane_of(repo, "gray")
    first, second = raw.keys(f"{lane}/e000000.snap/")[:2]
    data = raw.read(first)
    raw.flip(first, 40)
    assert kinds(check(store)) == {"bad-snapshot"}
    raw.write(first, raw.read(second))
    assert kinds(check(store)) == {"bad-snapshot"}
    head = versioned.Record.decode(data, first).head
    other = versioned.Record.decode(raw.read(second), second).head
    wrong = versioned.Record(versioned.log.SNAPSHOT, {**head, "roots": other["roots"]})
    raw.write(first, wrong.encode())
    assert kinds(check(store)) == {"wrong-fold"}


def test_damaged_store_file_is_found(store: DicedStore) -> None:
    fill(store)
    Raw(store).write(keys.STORE_FILE, b"{}")
    assert kinds(check(store)) == {"store-file"}


def test_what_nobody_refers_to_is_warned_of(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    home = repo._history.home.prefix
    segment = the_segment(raw)
    raw.write(segment, raw.read(segment) + b"torn" * 25)
    raw.write(keys.segment(home, 7), b"nobody's")
    raw.write(keys.pack(home, 8), b"nobody's")
    raw.write(f"{home}/lanes/gray/x", b"")
    raw.write(keys.record(keys.lane(home, "ab" * 8, "cd" * 8), 1), b"")
    raw.write(keys.spare(home, keys.lock(home, "cd" * 8)), b"")
    raw.write(keys.record(keys.lane(keys.repo_home("ef" * 8), "meta", keys.NO_NODE), 1), b"")
    expected = {
        "unreferenced", "orphan-segment", "orphan-pack", "stray", "orphan-lane", "leftover",
        "orphan-home",
    }  # fmt: skip
    report = check(store)
    assert report.ok and kinds(report, "warning") == expected
    (tail,) = [each for each in report.problems if each.kind == "unreferenced"]
    assert "100 bytes at the end of 1 segment belong" in tail.message


def test_begun_lock_is_warned_of(store: DicedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = fill(store)
    monkeypatch.setattr(repo._history, "_complete", lambda _node: None)
    repo._history.lock(repo._node_id, "begun")
    report = check(store)
    assert report.ok and kinds(report, "warning") == {"begun-lock"}


def test_deleted_array_is_no_error(store: DicedStore) -> None:
    repo = fill(store)
    repo.delete_array("gray")
    assert check(store, full=True).ok
    store.sweep()
    assert check(store, full=True).ok


def test_messages_do_not_say_again_where(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    home = repo._history.home.prefix
    segment = the_segment(raw)
    raw.flip(keys.record(lane_of(repo, "gray"), 3), 30)
    raw.delete(*raw.keys("/locks/"))
    raw.write(keys.segment(home, 7), b"nobody's")
    raw.write(keys.pack(home, 8), b"nobody's")
    raw.write(f"{home}/lanes/gray/x", b"")
    raw.write(keys.record(keys.lane(home, "ab" * 8, "cd" * 8), 1), b"")
    raw.flip(segment, 100)
    problems = check(store, full=True).problems
    raw.delete(*raw.keys(".pg"), *raw.keys("/lanes/")[:9])
    problems += rebuild(store).problems
    assert len({each.kind for each in problems}) > 6
    for each in problems:
        assert each.where not in each.message, each
        assert not each.message.startswith(("repo", "store")), each


class Lossless:
    """A codec that a package adds."""

    def __init__(self, _argument: str, _dtype: Any, _shape: Any, _channels: Any):
        pass

    def encode(self, block: np.ndarray) -> bytes:
        return block.tobytes()

    def decode(self, data: bytes, out: np.ndarray, _start: Any) -> None:
        out[...] = np.frombuffer(data, out.dtype).reshape(out.shape)


def test_a_codec_that_is_not_installed_is_one_finding_and_no_damage(
    store: DicedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._targets["codec"], "mine", Lossless)
    repo = store.create_repo("fly")
    rng = np.random.default_rng(0)
    for name, kind in (("a", "mine"), ("b", "mine"), ("c", "lz4")):
        array = repo.create_array(name, np.uint8, block_shape=(8, 8, 8), codec=kind)
        array[0:16, 0:16, 0:16] = rng.integers(0, 255, (16, 16, 16)).astype(np.uint8)
    assert check(store, full=True).problems == []
    monkeypatch.delitem(registry._targets["codec"], "mine")
    registry._resolved.pop(("codec", "mine"), None)
    codec._foreign.cache_clear()
    report = check(store, full=True)
    assert [each.kind for each in report.problems] == ["unsupported"] * 2
    assert [each.where for each in report.problems] == [f"repo 'fly', array {x!r}" for x in "ab"]
    assert all("mine" in each.message for each in report.problems)
    assert not any("restore" in each.message for each in report.problems)
    assert not report.ok


@pytest.mark.parametrize(("error", "kind"), [(AccessError, "access"), (EngineError, "medium")])
@pytest.mark.parametrize("part", [".seg", ".pg", "/locks/", "/e000000/", ".snap/"])
def test_what_may_not_be_read_is_no_damage(
    store: DicedStore, monkeypatch: pytest.MonkeyPatch, part: str, error: Any, kind: str
) -> None:
    fill(store)
    refused = [key for key in Raw(store).keys(part) if key.startswith("r/")]
    get = store.engine.get

    def guarded(key: str, *args: Any) -> Any:
        if key in refused:
            raise error(f"cannot read {key!r} [EACCES]")
        return get(key, *args)

    monkeypatch.setattr(store.engine, "get", guarded)
    report = check(store, full=True)
    assert kinds(report) == {kind}
    assert {key for key in refused for each in report.problems if key in each.message}
    assert not any(
        word in each.message for each in report.problems for word in ("restore", "rebuild")
    )
    if part == ".seg":
        assert len(report.problems) == len(refused)


def test_a_sweep_beside_a_check_is_no_error(
    store: DicedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = fill(store)
    gone = keys.segment(repo._history.home.prefix, 7)
    Raw(store).write(gone, b"about to go")
    size = store.engine.size

    def swept(key: str) -> int:
        if key == gone:
            raise NotFoundError(f"no object {key!r}")
        return size(key)

    monkeypatch.setattr(store.engine, "size", swept)
    assert check(store, full=True).ok


# -- rebuild ------------------------------------------------------------------------------------


def drop_index(store: DicedStore) -> None:
    """Delete all that is derived."""
    raw = Raw(store)
    raw.delete(*raw.keys(".pg"), *raw.keys(".snap/"), *raw.keys("/locks/"))


def mended(store: DicedStore, before: dict[str, Any]) -> None:
    """Assert that all reads as before, in the open store and in a new one, and all checks pass."""
    assert contents(store) == before
    with DicedStore(store.url, create=False) as again:
        assert contents(again) == before
        report = check(again, full=True)
        assert report.ok and kinds(report, "warning") <= {"orphan-pack"}


@pytest.mark.parametrize(
    "parts", [(".pg",), (".snap/",), ("/locks/",), (".pg", ".snap/", "/locks/")]
)
def test_rebuild_of_deleted_parts(store: DicedStore, parts: tuple[str, ...]) -> None:
    repo = fill(store)
    before = contents(store)
    raw = Raw(store)
    for part in parts:
        raw.delete(*raw.keys(part))
    report = rebuild(store)
    assert report.problems == []
    mended(store, before)
    repo.change_version(repo.root)
    assert repo["gray"][BOX].tobytes() == before[repo.root][0]


def test_handles_follow_a_rebuild(store: DicedStore) -> None:
    repo = fill(store)
    repo.change_version(repo.root)
    gray = repo["gray"]
    want = gray[BOX]
    fresh = DicedStore(store.url, create=False).open_repo("fly")
    drop_index(store)
    handle = fresh["notes"]
    with pytest.raises((CorruptError, NotFoundError)):
        list(handle.items())
    rebuild(fresh.store)
    assert dict(handle.items()) == dict(repo["notes"].items())
    rebuild(store)
    np.testing.assert_array_equal(gray[BOX], want)


def test_rebuild_keeps_what_is_sound(store: DicedStore) -> None:
    fill(store)
    raw = Raw(store)
    before = {key: raw.read(key) for key in raw.keys("")}
    assert rebuild(store).problems == []
    assert {key: raw.read(key) for key in raw.keys("")} == before


def test_a_rebuilt_store_goes_on(store: DicedStore) -> None:
    repo = fill(store)
    drop_index(store)
    rebuild(store, "fly")
    repo["gray"][0:4, 0:4, 0:4] = 77
    repo.lock_node("after")
    repo.change_version(repo.create_branch("more"))
    repo["notes"]["later"] = b"x"
    assert (repo["gray"][0:4, 0:4, 0:4] == 77).all()
    assert check(store, full=True).ok


@pytest.mark.usefixtures("bodies_in_segments")
@pytest.mark.parametrize("damage", ["delete", "flip"])
@pytest.mark.parametrize("name", ["gray", "notes"])
def test_rebuild_takes_lost_records_of_a_locked_node_from_segments(
    store: DicedStore, name: str, damage: str
) -> None:
    repo = fill(store)
    before = contents(store)
    raw = Raw(store)
    found = raw.keys(lane_of(repo, name) + "/e000000/")[:-1]  # the last is the LOCK record
    assert any("body" in versioned.Record.decode(raw.read(key), key).head for key in found)
    for key in found:
        raw.delete(key) if damage == "delete" else raw.flip(key, 33)
    raw.delete(*raw.keys(".pg"), *raw.keys("/locks/"))
    report = rebuild(store)
    assert report.problems == [] and report.counts["records recovered"] == len(found)
    mended(store, before)


def test_rebuild_appends_a_lost_lock_record(store: DicedStore) -> None:
    repo = fill(store)
    before = contents(store)
    raw = Raw(store)
    raw.delete(raw.keys(lane_of(repo, "gray") + "/e000000/")[-1])
    assert rebuild(store).problems == []
    mended(store, before)


def test_what_cannot_be_known_is_reported_and_never_reads_as_fill(store: DicedStore) -> None:
    repo = fill(store)
    raw = Raw(store)
    segment = the_segment(raw)
    drop_index(store)
    raw.delete(keys.record(lane_of(repo, "gray"), 1))
    raw.delete(segment)
    report = rebuild(store)
    assert {"lost-record", "lost-version"} <= kinds(report)
    repo.change_version(repo.root)
    with pytest.raises(CorruptError):
        repo["gray"][0:8, 0:8, 0:8]


def test_a_lost_record_does_not_harm_a_sound_lock_object(store: DicedStore) -> None:
    repo = fill(store)
    before = contents(store)
    raw = Raw(store)
    key = keys.record(lane_of(repo, "gray", version=1), 1)  # at an open node, under a snapshot
    raw.delete(key, *raw.keys("/e000000.snap/"))
    assert "lost-record" in kinds(rebuild(store))
    assert contents(store)[repo.root] == before[repo.root]


def test_a_store_with_a_broken_index_of_its_own_can_be_opened_and_rebuilt(tmp_path: Path) -> None:
    with DicedStore(tmp_path / "s", durability="process") as store:
        for number in range(8):
            store.create_repo(f"repo {number}")
        names = store.list_repos()
    raw = Raw(store)
    assert raw.root is not None
    packs = list((raw.root / "store" / "pages").rglob("*.pg"))
    assert packs
    for path in packs:
        path.unlink()
    with DicedStore(tmp_path / "s", create=False) as store:
        with pytest.raises(CorruptError, match="--rebuild"):
            store.list_repos()
        assert not check(store).ok
        assert rebuild(store).problems == []
        assert store.list_repos() == names


def test_rebuild_refuses_a_read_only_store(store: DicedStore) -> None:
    with (
        pytest.raises(ReadOnlyError),
        DicedStore(store.url, create=False, readonly=True) as again,
    ):
        rebuild(again)


class Failing:
    """An engine whose k-th change, and all after it, fail."""

    def __init__(self, engine: Any, left: int):
        self._engine = engine
        self.left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise EngineError("the medium failed")

    def put_if_absent(self, *args: Any) -> Any:
        self._spend()
        return self._engine.put_if_absent(*args)

    def delete(self, key: str) -> None:
        self._spend()
        self._engine.delete(key)


@pytest.mark.parametrize("part", ["all", "pages"])
def test_interrupted_rebuild_is_finished_by_the_next(part: str) -> None:
    done = False
    for k in range(400):
        with DicedStore("memory://") as store:
            fill(store, steps=3)
            before = contents(store)
            if part == "all":
                drop_index(store)
            else:
                Raw(store).delete(*Raw(store).keys(".pg"))
            whole = store.engine
            store.engine = failing = Failing(whole, k)  # type: ignore[assignment]
            try:
                rebuild(store)
                done = failing.left >= 0
            except EngineError:
                store.engine = whole
                assert rebuild(store).problems == []
            store.engine = whole
            assert Raw(store).keys("/spare/") == []
            mended(store, before)
            if done:
                return
    pytest.fail("the rebuild never came to its end")


# -- adopting -----------------------------------------------------------------------------------


def open_log(store: DicedStore) -> tuple[Any, Any, str]:
    """Make an open version of four commits without a snapshot; return repo, array, lane prefix."""
    repo = store.create_repo("fly")
    gray = repo.create_array("gray", np.uint8, block_shape=(8, 8, 8))
    for value in (1, 2, 3):
        gray[0:4, 0:4, value] = value
    return repo, gray, lane_of(repo, "gray")


@pytest.mark.parametrize(
    ("number", "damage"), [(1, "delete"), (2, "delete"), (1, "flip"), (2, "flip"), (3, "flip")]
)
def test_a_lost_record_of_an_open_version_can_be_adopted(
    store: DicedStore, number: int, damage: str
) -> None:
    repo, gray, lane = open_log(store)
    before = gray[0:8, 0:8, 0:8]
    raw = Raw(store)
    key = keys.record(lane, number)
    whole = raw.read(key)
    if damage == "flip":
        raw.flip(key, 33)
    else:
        raw.delete(key)
    report = rebuild(store)
    assert kinds(report) == {"lost-record", "lost-state"}
    lost = next(each for each in report.problems if each.kind == "lost-record")
    assert f"record {number} is lost" in lost.message and "--adopt" in lost.message
    report = rebuild(store, adopt=True)
    assert report.ok and kinds(report, "warning") == {"adopted"}
    assert report.counts["records adopted"] == 1
    assert raw.read(key) == whole
    repo = store.open_repo("fly")
    np.testing.assert_array_equal(repo["gray"][0:8, 0:8, 0:8], before)
    assert check(store, full=True).problems == []
    assert rebuild(store, adopt=True).problems == []


def test_several_lost_records_are_adopted_in_order(store: DicedStore) -> None:
    _, gray, lane = open_log(store)
    before = gray[0:8, 0:8, 0:8]
    Raw(store).delete(keys.record(lane, 1), keys.record(lane, 2))
    report = rebuild(store)
    assert "records 1 to 2 are lost" in report.problems[0].message
    assert rebuild(store, adopt=True).ok
    np.testing.assert_array_equal(store.open_repo("fly")["gray"][0:8, 0:8, 0:8], before)


def abandoned(repo: Any, base: int) -> None:
    """Leave the COMMIT frame of a writer that died before its record was published."""
    lane = repo._lane(repo._history.view().by_name["gray"])
    state = State(base, {}, lane.refresh().overlay, None, False)
    lane._committer._stage(state, Change({0: {}}), "never was", "nobody")


def test_nothing_is_adopted_where_two_commits_fit_or_none(store: DicedStore) -> None:
    repo, _, lane = open_log(store)
    raw = Raw(store)
    abandoned(repo, 1)
    assert check(store).ok and rebuild(store, adopt=True).problems == []
    raw.delete(keys.record(lane, 2))
    report = rebuild(store, adopt=True)
    assert kinds(report) == {"lost-record", "lost-state"}
    assert "which of 2 commits" in report.problems[0].message
    raw.delete(*raw.keys(".seg"))
    report = rebuild(store, adopt=True)
    assert kinds(report) == {"lost-record", "lost-state"}
    assert "this is final" in report.problems[0].message
    assert "other arrays read as before" in report.problems[1].message


def test_nothing_is_adopted_at_a_locked_version(store: DicedStore) -> None:
    repo, _, lane = open_log(store)
    repo.lock_node("done")
    raw = Raw(store)
    order = raw.keys(lane + "/e000000/")
    raw.delete(order[1], order[3])  # the second commit, and the LOCK record that names it
    before = {key: raw.read(key) for key in raw.keys("/locks/")}
    report = rebuild(store, adopt=True)
    assert "lost-record" in kinds(report)
    assert "records adopted" not in report.counts
    assert {key: raw.read(key) for key in raw.keys("/locks/")} == before


def test_adopting_leaves_a_healthy_store_alone(store: DicedStore) -> None:
    repo = fill(store)
    repo["notes"]["more"] = b"x"
    raw = Raw(store)
    before = {key: raw.read(key) for key in raw.keys("")}
    assert rebuild(store, adopt=True).problems == []
    assert {key: raw.read(key) for key in raw.keys("")} == before
