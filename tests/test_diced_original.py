"""What users of the first DICED rely on: its calls, their results and their errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diced import ArrayDtype, DicedException, DicedRepo, DicedStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DicedStore]:
    store = DicedStore(str(tmp_path / "db"), durability="process")
    yield store
    store._shutdown_store()


@pytest.fixture
def repo(store: DicedStore) -> DicedRepo:
    return store.create_repo("myrepo", "a repo to try things in")


def test_opening_a_path_makes_an_empty_store(tmp_path: Path) -> None:
    first = DicedStore(str(tmp_path / "db"))
    assert first.list_repos() == []
    first._shutdown_store()
    again = DicedStore(str(tmp_path / "db"))
    assert again.list_repos() == []
    again._shutdown_store()


def test_old_constructor_arguments_are_accepted(tmp_path: Path) -> None:
    store = DicedStore(str(tmp_path / "db"), None, None, None, "unused")
    store.create_repo("r")
    store._shutdown_store()


def test_root_uuid_is_the_current_version(store: DicedStore) -> None:
    repo = store.create_repo("myrepo", "description")
    [(name, uuid)] = store.list_repos()
    assert name == "myrepo"
    assert uuid == repo.get_current_version() == repo.uuid == store.get_repouuid("myrepo")
    assert len(uuid) == 32 and set(uuid) <= set("0123456789abcdef")


def test_repos_are_unique_and_deletable(store: DicedStore) -> None:
    store.create_repo("one")
    store.create_repo("two")
    with pytest.raises(DicedException):
        store.create_repo("one")
    store.delete_repo("one")
    assert [name for name, _ in store.list_repos()] == ["two"]
    with pytest.raises(DicedException):
        store.open_repo("one")
    with pytest.raises(DicedException):
        store.delete_repo("one")
    assert store.create_repo("one").uuid == store.get_repouuid("one")


def test_open_repo_by_name_uuid_and_prefix(store: DicedStore, repo: DicedRepo) -> None:
    assert store.open_repo("myrepo").uuid == repo.uuid
    assert store.open_repo(uuid=repo.uuid).uuid == repo.uuid
    assert store.open_repo(uuid=repo.uuid[:10]).uuid == repo.uuid
    for wrong in ({"name": "nothing"}, {"uuid": "f" * 32}, {}):
        with pytest.raises(DicedException):
            store.open_repo(**wrong)


def test_read_only_repo(store: DicedStore, repo: DicedRepo) -> None:
    repo.create_array("gray", ArrayDtype.uint8)[0, 0, 0] = 5
    looked_at = store.open_repo("myrepo", readonly=True)
    assert looked_at.get_array("gray")[0, 0, 0] == 5
    with pytest.raises(DicedException):
        looked_at.get_array("gray")[0, 0, 0] = 6
    with pytest.raises(DicedException):
        looked_at.create_array("another", ArrayDtype.uint8)
    with pytest.raises(DicedException):
        looked_at.upload_filedata("f", b"")
    with pytest.raises(DicedException):
        looked_at.lock_node("no")


def test_lock_branch_and_log(store: DicedStore, repo: DicedRepo) -> None:
    root = repo.get_current_version()
    with pytest.raises(DicedException):
        repo.create_branch("the root is open")
    assert not repo.locked
    assert repo.get_commit_log() == [(root, "(open node)")]
    repo.lock_node("now done")
    assert repo.locked
    with pytest.raises(DicedException):
        repo.lock_node("twice")
    child = repo.create_branch("first child")
    assert child != root
    assert repo.get_current_version() == root

    opened = store.open_repo(uuid=child)
    assert opened.get_current_version() == child
    assert not opened.locked
    assert opened.get_commit_log() == [(root, "now done"), (child, "(open node)")]
    assert opened.get_commit_log()[0] == (root, "now done")
    assert opened.get_commit_log()[1] == (child, "(open node)")

    repo.change_version(child)
    assert repo.get_current_version() == child
    repo.change_version(root)
    assert repo.get_commit_log() == [(root, "now done")]
    with pytest.raises(DicedException):
        repo.change_version("0" * 31 + "x")


def test_files_belong_to_versions(repo: DicedRepo) -> None:
    assert repo.list_files() == []
    repo.upload_filedata("notes", b"first")
    repo.upload_filedata("notes", b"\x00second\xff")
    repo.upload_filedata("text", "some text")
    assert repo.download_filedata("notes") == b"\x00second\xff"
    assert repo.download_filedata("text") == b"some text"
    assert repo.list_files() == ["notes", "text"]
    with pytest.raises(DicedException):
        repo.download_filedata("missing")

    root = repo.uuid
    repo.lock_node("with files")
    with pytest.raises(DicedException):
        repo.upload_filedata("notes", b"too late")
    with pytest.raises(DicedException):
        repo.delete_file("notes")
    repo.change_version(repo.create_branch("child"))
    assert repo.list_files() == ["notes", "text"]
    repo.delete_file("notes")
    assert repo.list_files() == ["text"]
    with pytest.raises(DicedException):
        repo.download_filedata("notes")
    repo.change_version(root)
    assert repo.download_filedata("notes") == b"\x00second\xff"


def test_instances_and_hidden_ones(repo: DicedRepo) -> None:
    assert repo.list_instances() == []
    gray = repo.create_array("gray", ArrayDtype.uint8)
    flat = repo.create_array("flat", ArrayDtype.uint8, dims=2)
    segments = repo.create_array("segments", ArrayDtype.uint64, islabel3D=True)
    assert (gray.get_numdims(), flat.get_numdims(), segments.get_numdims()) == (3, 2, 3)
    assert (gray.numdims, flat.numdims) == (3, 2)
    assert not gray.islabel3D and segments.islabel3D
    assert dict(repo.list_instances()) == {
        "gray": ArrayDtype.uint8, "flat": ArrayDtype.uint8, "segments": ArrayDtype.uint64,
    }  # fmt: skip
    shown = repo.list_instances(showhidden=True)
    assert len(shown) == 5
    assert {".meta", ".files"} < {name for name, _ in shown}


def test_restrictions_hide_names(repo: DicedRepo) -> None:
    for name in ("gray", "scratch", "labels"):
        repo.create_array(name, ArrayDtype.uint8)
    repo[".meta"]["restrictions"] = json.dumps(["scratch", "labels", "never made"])
    assert [name for name, _ in repo.list_instances()] == ["gray"]
    assert len(repo.list_instances(showhidden=True)) == 5
    repo.get_array("scratch")[0, 0, 0] = 1  # hidden, not forbidden
    repo[".meta"]["restrictions"] = "[]"
    assert len(repo.list_instances()) == 3


def test_what_create_array_refuses(repo: DicedRepo) -> None:
    repo.create_array("gray", ArrayDtype.uint8)
    with pytest.raises(DicedException):
        repo.create_array("gray", ArrayDtype.uint8)
    with pytest.raises(DicedException):
        repo.create_array("labels", ArrayDtype.uint8, islabel3D=True)
    with pytest.raises(DicedException):
        repo.create_array("labels", ArrayDtype.uint64, dims=2, islabel3D=True)
    with pytest.raises(DicedException):
        repo.create_array("lossy", ArrayDtype.uint16, lossycompression=True)
    with pytest.raises(DicedException):
        repo.get_array("missing")
    with pytest.raises(DicedException):
        repo.delete_array("missing")
    repo.lock_node("done")
    with pytest.raises(DicedException):
        repo.create_array("late", ArrayDtype.uint8)
    assert [name for name, _ in repo.list_instances()] == ["gray"]


def test_delete_and_make_again(repo: DicedRepo) -> None:
    old = repo.create_array("gray", ArrayDtype.uint8)
    old[0:10, 0:10, 0:10] = 9
    repo.delete_array("gray")
    assert repo.list_instances() == []
    with pytest.raises(DicedException):
        repo.get_array("gray")
    new = repo.create_array("gray", ArrayDtype.uint16)
    assert new.dtype == np.uint16
    assert not new[0:10, 0:10, 0:10].any()
    assert new.get_extents() == (slice(0, 0),) * 3


def test_volume_round_trip(repo: DicedRepo) -> None:
    gray = repo.create_array("gray", ArrayDtype.uint8)
    data = np.random.default_rng(0).integers(0, 256, (64, 128, 70), np.uint8)
    gray[64:128, 0:128, -6:64] = data
    assert (gray[64:128, 0:128, -6:64] == data).all()
    assert (gray[70:80, 5:6, 0:3] == data[6:16, 5:6, 6:9]).all()
    assert not gray[0:64, 0:10, 0:10].any()
    assert gray.get_extents() == (slice(64, 128), slice(0, 128), slice(-64, 64))
    with pytest.raises(DicedException):
        gray[64:128, 0:128] = data
    with pytest.raises(DicedException):
        gray[0:2, 0:2, 0:2] = data


def test_image_round_trip(repo: DicedRepo) -> None:
    image = repo.create_array("image", ArrayDtype.uint8, dims=2)
    assert image.get_extents() == (slice(0, 0), slice(0, 0))
    data = np.random.default_rng(1).integers(0, 256, (100, 700), np.uint8)
    image[50:150, 300:1000] = data
    assert (image[50:150, 300:1000] == data).all()
    assert image.get_extents() == (slice(0, 512), slice(0, 1024))


def test_line_extents_are_one_slice(repo: DicedRepo) -> None:
    line = repo.create_array("line", ArrayDtype.float32, dims=1)
    assert line.get_extents() == slice(0, 0)
    line[-5:5] = 1.5
    assert line.get_extents() == slice(-262144, 262144)


def test_label_round_trip(repo: DicedRepo) -> None:
    segments = repo.create_array("segments", ArrayDtype.uint64, islabel3D=True)
    data = np.random.default_rng(2).integers(0, 40, (64, 64, 64)).astype(np.uint64)
    data[3:40, 5:60, 7:50] = 2**60 + 1
    segments[0:64, 64:128, 0:64] = data
    assert (segments[0:64, 64:128, 0:64] == data).all()
    segments[10:30, 70:75, 100:110] = 77
    assert (segments[10:30, 70:75, 100:110] == 77).all()
    assert (segments[0:64, 64:128, 0:64] == data).all()


def test_lossy_array_is_close(repo: DicedRepo) -> None:
    lossy = repo.create_array("lossy", ArrayDtype.uint8, lossycompression=True)
    z, y, x = np.mgrid[0:64, 0:64, 0:64]
    data = (120 + 50 * np.sin(z / 9) + 40 * np.cos((x + y) / 11)).astype(np.uint8)
    lossy[0:64, 0:64, 0:64] = data
    assert np.abs(lossy[0:64, 0:64, 0:64].astype(int) - data).mean() < 5


def test_handles_follow_the_repo(repo: DicedRepo) -> None:
    gray = repo.create_array("gray", ArrayDtype.uint8)
    gray[0, 0, 0] = 1
    root = repo.uuid
    assert not gray.locked
    repo.lock_node("one")
    assert gray.locked
    with pytest.raises(DicedException):
        gray[0, 0, 0] = 2
    child = repo.create_branch("two")
    with pytest.raises(DicedException, match=child):
        gray[0, 0, 0] = 2
    repo.change_version(child)
    assert not gray.locked
    gray[0, 0, 0] = 2
    assert gray[0, 0, 0] == 2
    repo.change_version(root)
    assert gray[0, 0, 0] == 1


def test_unversioned_arrays_are_never_locked(repo: DicedRepo) -> None:
    shared = repo.create_array("shared", ArrayDtype.uint8, versioned=False)
    shared[0, 0, 0] = 1
    root = repo.uuid
    repo.lock_node("one")
    assert not shared.locked
    shared[0, 0, 0] = 2
    repo.change_version(repo.create_branch("two"))
    shared[0, 0, 0] = 3
    repo.change_version(root)
    assert shared[0, 0, 0] == 3


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = DicedStore(str(tmp_path / "db"))
    repo = store.create_repo("fly", "kept")
    repo.create_array("gray", ArrayDtype.uint8)[1:3, 1:3, 1:3] = 4
    repo.upload_filedata("f", b"data")
    repo.lock_node("done")
    child = repo.create_branch("next")
    store._shutdown_store()

    store = DicedStore(str(tmp_path / "db"))
    repo = store.open_repo("fly")
    assert repo.locked and repo.get_commit_log() == [(repo.uuid, "done")]
    assert repo.get_array("gray")[0:4, 0:4, 0:4].sum() == 32
    assert repo.download_filedata("f") == b"data"
    repo.change_version(child)
    assert repo.get_array("gray")[0:4, 0:4, 0:4].sum() == 32
    store._shutdown_store()
