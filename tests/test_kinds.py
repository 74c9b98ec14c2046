"""What holds of arrays of every kind, on every engine: versions, checks, accounts, upkeep."""

from __future__ import annotations

import json
import pickle
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from diced import DicedStore, versioned
from diced.cli.main import main
from diced.errors import CorruptError, LockedError, NotFoundError, ReadOnlyError
from diced.fsck import check
from diced.rebuild import rebuild
from diced.segment import COMMIT
from diced.tilemaker import plane_of
from diced.usage import usage
from diced.walk import frame_heads

Make = Callable[[Any, int], None]


class Kind(NamedTuple):
    """How to make, change and read arrays of a kind."""

    name: str
    options: dict[str, Any]
    write: Make  # what is written is told by a number; each write replaces some of the one before
    read: Callable[[Any], Any]
    clear: Callable[[Any], None]


def _write_roi(array: Any, number: int) -> None:
    rng = np.random.default_rng(number)
    rows = rng.integers(-40, 40, (300 + 200 * (number % 3), 4))
    rows[:, 3] = rows[:, 2] + rows[:, 3] % 5
    array.set_spans(rows)


def _read_roi(array: Any) -> Any:
    return array.spans().tolist(), len(array), array.extents


def _write_graph(array: Any, number: int) -> None:
    vertices = {each: float(number) for each in range(1, 30)}
    array.put(vertices, {(each, 30 + number): 0.5 * number for each in range(1, 30)})
    array.set_property(7, "color", b"red" * 200 * number)
    array.set_property((30 + number, 7), "color", b"%d" % number)
    array.transact({5: array.stamps([5])[5]}, {5: b"stamped"}, "seen")
    array.remove([2], [(3, 30 + number)])


def _read_graph(array: Any) -> Any:
    vertices, edges = map(list, array.graph())
    ids = [each for each, _ in vertices]
    colors = list(array.properties([*ids, *((a, b) for a, b, _ in edges)], "color"))
    return vertices, edges, colors, array.property(5, "seen"), array.stamps(ids)


def _write_values(array: Any, number: int) -> None:
    rng = np.random.default_rng(number)
    array["same"] = b"%d" % number
    array.put_many({f"{number}/{i:03d}": rng.bytes(37 * i) for i in range(30)})
    array["large"] = rng.bytes(2 * 2**20) + bytes(2**20)
    if f"{number - 1}/003" in array:
        del array[f"{number - 1}/003"]


def _read_values(array: Any) -> Any:
    return dict(array.items())


def _write_tiles(array: Any, number: int) -> None:
    plane = plane_of("xy")
    for x in range(5):
        array.store_tile(plane, 0, (number, 0, x), bytes([number]) * 300 * (1 + x))


def _clear_values(array: Any) -> None:
    array.delete_many(list(array.keys()))


def _write_image(array: Any, number: int) -> None:
    shape = (12, 12, 12)
    array[0:12, 0:12, 0:12] = np.random.default_rng(number).integers(0, 250, shape).astype(np.uint8)


def _clear_image(array: Any) -> None:
    array[0:16, 0:16, 0:16] = 0


KINDS = [
    Kind("roi", {"block_shape": (16, 16, 16)}, _write_roi, _read_roi, lambda each: each.clear()),
    Kind("labelgraph", {}, _write_graph, _read_graph, lambda each: each.clear()),
    Kind("keyvalue", {}, _write_values, _read_values, _clear_values),
    Kind(
        "imagetile", {"attrs": {"tiles": {"source": "", "format": "png"}}},
        _write_tiles, _read_values, _clear_values,
    ),
    Kind(
        "image", {"dtype": "uint8", "block_shape": (8, 8, 8)},
        _write_image, lambda each: each[0:16, 0:16, 0:16].tobytes(), _clear_image,
    ),
]  # fmt: skip


@pytest.fixture(params=KINDS, ids=lambda each: each.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=["memory", "local", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "gcs":
        return str(request.getfixturevalue("gcs").url())
    return (
        f"memory://{secrets.token_hex(8)}" if request.param == "memory" else str(tmp_path / "store")
    )


@pytest.fixture(autouse=True)
def small_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take snapshots after a few records."""
    monkeypatch.setattr(versioned, "SNAPSHOT_RECORDS", 2)


def opened(location: str, **options: Any) -> DicedStore:
    return DicedStore(location, durability="process", max_age=0, **options)


@pytest.fixture
def store(location: str) -> Iterator[DicedStore]:
    with opened(location) as found:
        yield found


def create(repo: Any, kind: Kind, name: str = "it", **more: Any) -> Any:
    return repo.create_array(name, kind=kind.name, **{**kind.options, **more})


def told(report: Any) -> list[str]:
    return [str(each) for each in report.problems]


def history(store: DicedStore, kind: Kind) -> tuple[Any, dict[str, Any]]:
    """Make a repo of two branches, the first version locked; return what each version holds."""
    repo = store.create_repo("r")
    array = create(repo, kind)
    loose = create(repo, kind, "loose", versioned=False)
    found = {}
    for number in (1, 2, 1, 2, 3):
        kind.write(array, number)
    kind.write(loose, 4)
    found[repo.uuid] = kind.read(array)
    repo.lock_node("first")
    for branch, number in (("left", 5), ("right", 6)):
        repo.change_version(repo.root)
        repo.change_version(repo.create_branch("", branch))
        kind.write(array, number)
        found[repo.uuid] = kind.read(array)
    repo.lock_node("second")
    repo.change_version(repo.create_branch("empty"))
    kind.clear(array)
    found[repo.uuid] = kind.read(array)
    assert len({repr(each) for each in found.values()}) == 4
    return repo, found


def contents(store: DicedStore, kind: Kind) -> dict[str, Any]:
    repo = store.open_repo("r")
    found = {}
    for each in repo.versions():
        repo.change_version(each.uuid)
        found[each.uuid] = kind.read(repo["it"])
    return found


def test_versions_and_a_check(store: DicedStore, kind: Kind) -> None:
    repo, found = history(store, kind)
    assert contents(store, kind) == found
    report = check(store, full=True)
    assert not told(report)
    assert report.counts["frames"] > 0
    with opened(store.url, readonly=True) as other:  # nothing is remembered there
        assert contents(other, kind) == found
        array = other.open_repo("r")["it"]
        for write in (lambda: kind.write(array, 9), lambda: kind.clear(array)):
            with pytest.raises(ReadOnlyError):
                write()
    repo.change_version(repo.root)
    for write in (lambda: kind.write(repo["it"], 9), lambda: kind.clear(repo["it"])):
        with pytest.raises(LockedError, match="'it'"):
            write()
    assert contents(store, kind) == found


def test_a_rebuild_makes_all_that_is_derived_anew(store: DicedStore, kind: Kind) -> None:
    _, found = history(store, kind)
    derived = [
        key
        for key in store.engine.list("r")
        if any(part in key for part in ("/pages/", ".snap/", "/locks/")) and "/meta/" not in key
    ]
    assert any(".snap/" in key for key in derived) and any("/locks/" in key for key in derived)
    for key in derived:
        store.engine.delete(key)
    report = rebuild(store)
    assert not told(report)
    assert contents(store, kind) == found
    assert not told(check(store, full=True))
    assert contents(store, kind) == found


def test_the_account_adds_up(store: DicedStore, kind: Kind) -> None:
    repo, _ = history(store, kind)
    found = usage(store)
    json.dumps(found)
    (one,) = found["repos"]
    assert one["bytes"]["segments"] == sum(one["segments"].values())
    assert one["bytes"]["logs"] == sum(one["logs"].values())
    arrays = {each["name"]: each for each in one["arrays"] if each["name"][0] != "."}
    assert [each["kind"] for each in arrays.values()] == [kind.name] * 2
    live = sum(each["live_bytes"] for each in arrays.values())
    assert live == one["segments"]["live"] + one["logs"]["live"] > 0
    assert [each["changed"]["it"] > 0 for each in one["versions"]] == [True] * 4
    repo.delete_array("it")
    (after,) = usage(store)["repos"]
    assert after["segments"]["live"] + after["logs"]["live"] == arrays["loose"]["live_bytes"]


def test_deletion_and_sweep(store: DicedStore, kind: Kind) -> None:
    repo, _ = history(store, kind)
    array, loose = repo["it"], kind.read(repo["loose"])
    lane = array._spec.id
    repo.delete_array("it")
    for use in (lambda: kind.read(array), lambda: kind.write(array, 1), lambda: repo["it"]):
        with pytest.raises(NotFoundError):
            use()
    store.sweep()
    assert not [key for key in store.engine.list("r") if lane in key]
    assert kind.read(repo["loose"]) == loose
    assert {each.kind for each in check(store, full=True).problems} <= {
        "orphan-segment", "orphan-pack", "unreferenced",
    }  # fmt: skip
    again = create(repo, kind)
    kind.write(again, 8)
    assert kind.read(again) != kind.read(repo["loose"])


def test_unversioned_is_the_same_everywhere_and_never_locked(store: DicedStore, kind: Kind) -> None:
    repo, _ = history(store, kind)
    array = repo["loose"]
    before = kind.read(array)
    for each in repo.versions():
        repo.change_version(each.uuid)
        assert kind.read(array) == before
        assert not array.locked and not array.versioned
    repo.change_version(repo.root)
    assert repo.locked
    kind.write(array, 7)
    now = kind.read(array)
    assert now != before
    repo.change_version(repo.branches()["master"])
    assert kind.read(array) == now


def test_operations_tell_of_each_commit(store: DicedStore, kind: Kind) -> None:
    repo = store.create_repo("r")
    array = create(repo, kind)
    kind.write(array, 1)
    before = list(repo.operations("it"))
    kind.clear(array)
    after = list(repo.operations("it"))
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    assert [each["number"] for each in after] == list(range(1, len(after) + 1))
    assert {each["array"] for each in after} == {"it"}
    assert all(each["operation"] and each["user"] for each in after)


def test_handles_are_pickled(store: DicedStore, kind: Kind) -> None:
    repo, found = history(store, kind)
    repo.change_version(repo.root)
    copy = pickle.loads(pickle.dumps(repo["it"]))
    assert (type(copy), copy.name, copy.kind) == (type(repo["it"]), "it", kind.name)
    assert kind.read(copy) == found[repo.root]
    repo.delete_array("it")
    data = pickle.dumps(repo["loose"])
    repo.delete_array("loose")
    create(repo, kind, "loose", versioned=False)
    with pytest.raises(NotFoundError):
        pickle.loads(data)


def test_lists_and_descriptions(store: DicedStore, kind: Kind) -> None:
    repo, _ = history(store, kind)
    assert ("it", kind.name) in repo.list_instances(showhidden=True)
    shown = [name for name, _ in repo.list_instances()]
    assert ("it" in shown) == (kind.name == "image")
    array = repo["it"]
    assert array.name in repr(array)
    array.attrs["note"] = {"any": ["thing"]}
    assert store.open_repo("r")["it"].attrs["note"] == {"any": ["thing"]}


def test_a_damaged_frame_is_found_and_never_read(kind: Kind) -> None:
    location = f"memory://{secrets.token_hex(8)}"
    with opened(location) as store:
        repo = store.create_repo("r")
        kind.write(create(repo, kind), 1)
        good = kind.read(repo["it"])
    with opened(location) as store:
        objects = store.engine._shelf.objects
        frames = [
            (key, head)
            for key in list(objects)
            if key.endswith(".seg")
            for head in frame_heads(store.engine, key)
            if head.kind != COMMIT
        ]
        assert frames
        for key, head in frames:
            data = bytes(objects[key])
            for at in (head.offset + head.size // 2, head.offset + head.size - 1):
                objects[key] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                problems = check(store, full=True).problems
                assert [each.kind for each in problems] == ["bad-frame"], (key, at)
                with opened(location) as other, pytest.raises(CorruptError):
                    kind.read(other.open_repo("r")["it"])
            objects[key] = data
        assert not told(check(store, full=True))
        assert kind.read(store.open_repo("r")["it"]) == good


# -- the command line ----------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: Kind) -> None:
    where = str(tmp_path / "s")
    run(capsys, "init", where)
    run(capsys, "create", where, "r")
    made = run(capsys, "create", where, "r", "it", "--kind", kind.name)
    assert (made["name"], made["kind"], made["versioned"]) == ("it", kind.name, True)
    run(capsys, "create", where, "r", "loose", "--kind", kind.name, "--unversioned")
    with opened(where) as store:
        array = store.open_repo("r")["it"]
        array.attrs["note"] = "hello"
        kind.write(array, 1)
    assert run(capsys, "info", where, "r", "it")["attrs"] == {"note": "hello"}
    listed = {each["name"]: each for each in run(capsys, "ls", where, "r", "--all")}
    assert {each["kind"] for name, each in listed.items() if name[0] != "."} == {kind.name}
    assert main(["info", where, "r", "it"]) == 0
    assert main(["ls", where, "r", "-a"]) == 0
    assert kind.name in capsys.readouterr().out
    assert run(capsys, "log", where, "r", "it")
    assert run(capsys, "log", where, "r", "--ops")
    assert main(["log", where, "r", "it"]) == 0
    run(capsys, "lock", where, "r", "-m", "done")
    run(capsys, "branch", where, "r", "--next")
    run(capsys, "fsck", where, "--full")
    run(capsys, "fsck", where, "--rebuild")
    assert main(["fsck", where, "--full"]) == 0
    (one,) = run(capsys, "du", where)["repos"]
    assert {each["kind"] for each in one["arrays"] if each["name"][0] != "."} == {kind.name}
    assert main(["du", where]) == 0
    run(capsys, "delete", where, "r", "it", "--yes")
    assert main(["info", where, "r", "it"]) == 3
