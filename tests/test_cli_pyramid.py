"""``diced pyramid``: at a path and through a server."""

import json

import numpy as np
import pytest
from scaling import BLOCK, WHOLE, noise

from diced import DicedStore
from diced.cli.main import main


@pytest.fixture(params=["path", "server"])
def where(request, tmp_path):
    """The location of a store with a repo "r" and its arrays "em" and "seg"."""
    if request.param == "server":
        place = request.getfixturevalue("disk_server").url.replace("http", "dvid")
    else:
        place = str(tmp_path / "s.diced")
    with DicedStore(place, durability="process") as store:
        repo = store.create_repo("r")
        em = repo.create_array("em", "uint8", block_shape=BLOCK, voxel_size=(40, 8, 8), units="nm")
        em[WHOLE] = noise(0)
        seg = repo.create_array("seg", islabel3D=True, block_shape=(16, 16, 16))
        seg[0:30, 0:30, 0:30] = 7
        repo.upload_filedata("note", b"x")
    return place


def ok(capsys, *argv):
    """Run a command with --json and return what it printed."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def lines(capsys, *argv):
    """Run a command and return its lines for people."""
    capsys.readouterr()
    assert main(list(argv)) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def fails(capsys, code, *argv):
    capsys.readouterr()
    assert main(list(argv)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_it_stores_what_is_missing(capsys, where):
    told = ok(capsys, "pyramid", where, "r", "em")
    assert [(each["level"], each["name"]) for each in told["levels"]] == [
        (1, "em_1"), (2, "em_2"), (3, "em_3"),
    ]  # fmt: skip
    assert told["blocks"] == sum(each["blocks"] for each in told["levels"])
    assert all(each["blocks"] > 0 for each in told["levels"])
    assert ok(capsys, "pyramid", where, "r", "em")["blocks"] == 0
    with DicedStore(where) as store:
        em = store.open_repo("r")["em"]
        assert [each["complete"] for each in em.pyramid().status()] == [True] * 3
        em[0:2, 0:2, 0:2] = 1
    assert lines(capsys, "pyramid", where, "r", "em") == [
        f"level {n}, em_{n}: 1 block computed" for n in (1, 2, 3)
    ]
    assert lines(capsys, "pyramid", where, "r", "em", "--quiet") == []


def test_how_levels_are_made(capsys, where):
    ok(capsys, "pyramid", where, "r", "em", "--levels", "3", "--axes", "isotropic")
    sizes = [each["voxel_size"] for each in ok(capsys, "pyramid", where, "r", "em", "--status")]
    assert sizes == [[40, 16, 16], [40, 32, 32], [80, 64, 64]]
    ok(
        capsys,
        "pyramid",
        where,
        "r",
        "seg",
        "--levels",
        "1",
        "--axes",
        "1,2",
        "--method",
        "nearest",
    )
    with DicedStore(where) as store:
        seg = store.open_repo("r")["seg"]
        assert seg.pyramid().method == "nearest"
        assert seg.level(1).shape == (32, 16, 16)
        np.testing.assert_array_equal(seg.level(1)[0:30, 0:15, 0:15], np.full((30, 15, 15), 7))
    assert "delete it" in fails(capsys, 8, "pyramid", where, "r", "seg", "--axes", "0")


def test_status(capsys, where):
    found = ok(capsys, "pyramid", where, "r", "em", "--status", "--levels", "2")
    assert [each["stored"] for each in found] == [False, False]
    ok(capsys, "pyramid", where, "r", "em", "--levels", "1")
    with DicedStore(where) as store:
        em = store.open_repo("r")["em"]
        level = em.level(1)
        bounds = [[each.start for each in level.bounds], [each.stop for each in level.bounds]]
        (told,) = ok(capsys, "pyramid", where, "r", "em", "--status")
        (kept,) = em.pyramid().status()
        assert told == {
            **kept, "stored": True, "bounds": bounds, "voxel_size": [80, 16, 16],
            "units": ["nm"] * 3,
        }  # fmt: skip
        em[0, 0, 0] = 1
    shown = lines(capsys, "pyramid", where, "r", "em", "--status", "--levels", "2")
    assert [each.split("  ")[0] for each in shown] == ["1", "2"]
    assert "em_1" in shown[0] and "-12:20,0:24,-4:28" in shown[0]
    assert shown[0].endswith("80 x 16 x 16 nm   incomplete")
    assert shown[1].endswith("160 x 32 x 32 nm  not stored")


def test_versions(capsys, where):
    root = ok(capsys, "info", where, "r")["version"]
    ok(capsys, "lock", where, "r", "-m", "x")
    ok(capsys, "branch", where, "r", "--next")
    assert ok(capsys, "pyramid", where, "r", "em", "-v", root, "--levels", "1")["blocks"] > 0
    (told,) = ok(capsys, "pyramid", where, "r", "em", "--status", "-v", root)
    assert told["complete"] and told["source_upto"] == -1
    (told,) = ok(capsys, "pyramid", where, "r", "em", "--status")
    assert told["complete"] and told["source_upto"] is None  # it uses its parent's
    assert "'nowhere'" in fails(capsys, 3, "pyramid", where, "r", "em", "-v", "nowhere")


def test_deleting(capsys, where):
    ok(capsys, "pyramid", where, "r", "em", "--levels", "2")
    with DicedStore(where) as store:
        wanted = store.open_repo("r")["em"].level(2)[...]
    assert "--yes" in fails(capsys, 2, "pyramid", where, "r", "em", "--delete")
    assert len(ok(capsys, "pyramid", where, "r", "em", "--status")) == 2
    told = ok(capsys, "pyramid", where, "r", "em", "--delete", "--yes")
    assert told["deleted"] == 2
    assert ok(capsys, "pyramid", where, "r", "em", "--delete")["deleted"] == 0  # nothing to ask
    assert {each["name"] for each in ok(capsys, "ls", where, "r")} == {"em", "seg"}
    with DicedStore(where) as store:
        np.testing.assert_array_equal(store.open_repo("r")["em"].level(2)[...], wanted)


def test_small_arrays(capsys, where):
    ok(capsys, "create", where, "r", "small")
    for more in ([], ["--status"]):
        (line,) = lines(capsys, "pyramid", where, "r", "small", *more)
        assert "--levels" in line
    assert ok(capsys, "pyramid", where, "r", "small") == {"blocks": 0, "levels": []}
    (line,) = lines(capsys, "pyramid", where, "r", "small", "--levels", "1", "--status")
    assert "empty" in line


def test_progress(capsys, where):
    assert main(["pyramid", where, "r", "em", "--progress"]) == 0
    printed = capsys.readouterr()
    assert "em:" in printed.err and "blocks" in printed.err
    assert printed.out.startswith("level 1, em_1: ")


def test_what_is_refused(capsys, where):
    for words in (
        ["--levels", "0"], ["--levels", "x"], ["--axes", "x"], ["--method", "median"], ["--yes"],
        ["--status", "--delete"], ["--delete", "--levels", "1"], ["--delete", "--axes", "1"],
    ):  # fmt: skip
        fails(capsys, 2, "pyramid", where, "r", "em", *words)
    assert "no voxels" in fails(capsys, 8, "pyramid", where, "r", ".files")
    fails(capsys, 8, "pyramid", where, "r", "em", "--levels", "99")
    fails(capsys, 8, "pyramid", where, "r", "em", "--axes", "7")
    fails(capsys, 3, "pyramid", where, "r", "nothing")
    ok(capsys, "pyramid", where, "r", "em", "--levels", "1")
    assert "level" in fails(capsys, 8, "pyramid", where, "r", "em_1")
