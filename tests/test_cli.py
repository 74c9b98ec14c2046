"""The command line: what each command does, prints and exits with."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diced import DicedStore, errors, registry
from diced.cli.main import EXIT_CODES, main, parser
from diced.home import Home

DOCS = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a repo "r"."""
    where = str(tmp_path / "s.diced")
    assert main(["init", where, "--json"]) == 0
    assert main(["create", where, "r", "--json"]) == 0
    return where


@pytest.fixture
def stack(tmp_path: Path) -> tuple[str, np.ndarray]:
    """A pattern of ten images, and their voxels."""
    data = np.random.default_rng(0).integers(0, 256, (12, 20, 30)).astype(np.uint8)
    for z, plane in enumerate(data):
        Image.fromarray(plane).save(tmp_path / f"iso.{z}.png")
    return str(tmp_path / "iso.*.png"), data


def ok(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """Run a command with --json and return what it printed."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """Run a command that fails, and return its one line on stderr."""
    capsys.readouterr()
    assert main(list(argv)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("diced: error: ")
    return line


def leaves(top: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the parser of every command, by its words."""
    inner = [each for each in top._actions if isinstance(each, argparse._SubParsersAction)]
    if not inner:
        return {path: top}
    return {
        words: leaf
        for name, each in inner[0].choices.items()
        for words, leaf in leaves(each, (*path, name)).items()
    }


# -- the parser ----------------------------------------------------------------------------


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words, leaf in leaves(parser()).items():
        assert main([*words, "--help"]) == 0
        printed = capsys.readouterr().out
        assert f"diced {' '.join(words)}" in printed
        for action in leaf._actions:
            assert action.help or action.choices or action.metavar, (words, action)


def test_the_documentation_names_every_command_and_exit_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for words in leaves(parser()):
        assert f"`{' '.join(words)}" in text, words
    for kind, code in EXIT_CODES:
        assert re.search(rf"^\| {code} \|.*{kind.__name__}", text, re.MULTILINE), kind


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        [],
        ["fly"],
        ["create"],
        ["lock", "s", "r"],
        ["ingest", "s", "r", "a", "f", "--offset-xyz", "1,b"],
        ["ingest", "s", "r", "a", "f", "--offset-xyz", "1,2,3", "--offset-zyx", "1,2,3"],
        ["export", "s", "r", "a", "o", "--box", "0:1:2"],
        ["bench", "s", "--size", "0"],
        ["lock", "s", "r", "-m", ""],
        ["cp", "s", "r"],
        ["create", "s", "r", "a", "--kind", "nothing"],
        ["fsck", "s", "--adopt"],
    ):
        assert main(argv) == 2, argv
        assert "usage: diced" in capsys.readouterr().err


def test_the_version_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"diced \d+\.\d+\S*\n", capsys.readouterr().out)


def test_every_group_of_errors_has_a_code() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    # Those of pydvid's face are not met here.
    kinds = [each for each in below(errors.DicedException) if each.__module__ == errors.__name__]
    assert len(kinds) > 10
    for kind in kinds:
        first = next(code for each, code in EXIT_CODES if issubclass(kind, each))
        assert (first == 1) == (kind is errors.DicedException), kind
    codes = [code for _, code in EXIT_CODES]
    assert len(codes) == len(set(codes))
    assert not {0, 2, 130} & set(codes)


# -- stores, repos, arrays -----------------------------------------------------------------


def test_from_nothing_to_an_array(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = str(tmp_path / "s.diced")
    assert where in fails(capsys, 7, "repos", where)
    assert not os.path.exists(where)
    uuid = ok(capsys, "init", where)["uuid"]
    fails(capsys, 4, "init", where)
    assert ok(capsys, "init", where, "--exist-ok")["uuid"] == uuid
    root = ok(capsys, "create", where, "r", "--description", "a fly")["uuid"]
    fails(capsys, 4, "create", where, "r")
    assert [each["name"] for each in ok(capsys, "repos", where)] == ["r"]
    made = ok(
        capsys, "create", where, "r", "em", "--dtype", "uint16", "--block-shape", "8,16,32",
        "--codec", "zstd:3", "--voxel-size", "8", "--units", "nm",
    )  # fmt: skip
    assert made["block_shape"] == [8, 16, 32]
    assert made["voxel_size"] == [8, 8, 8]
    assert ok(capsys, "create", where, "r", "seg", "--labels")["dtype"] == "uint64"
    assert ok(capsys, "create", where, "r", "kv", "--kind", "keyvalue")["kind"] == "keyvalue"
    assert [each["name"] for each in ok(capsys, "ls", where, "r")] == ["em", "seg"]
    assert ".files" in [each["name"] for each in ok(capsys, "ls", where, "r", "--all")]
    assert ok(capsys, "info", where)["uuid"] == uuid
    assert ok(capsys, "info", where, "r")["description"] == "a fly"
    assert ok(capsys, "info", where, "r", "em") == made
    assert ok(capsys, "info", where, root[:10])["name"] == "r"
    assert main(["info", where, "r", "em"]) == 0
    assert re.search(r"^units +nm, nm, nm$", capsys.readouterr().out, re.MULTILINE)


def test_not_found(capsys: pytest.CaptureFixture[str], store: str) -> None:
    ok(capsys, "create", store, "flies")
    assert "did you mean 'flies'" in fails(capsys, 3, "ls", store, "files")
    fails(capsys, 3, "info", store, "r", "nothing")
    fails(capsys, 3, "log", store, "r", "--version", "nothing")
    fails(capsys, 3, "ingest", store, "r", "a", "nothing.png")


def test_delete_needs_a_yes(
    capsys: pytest.CaptureFixture[str], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    ok(capsys, "create", store, "r", "em")
    assert main(["delete", store, "r"]) == 2
    assert "--yes" in capsys.readouterr().err
    ok(capsys, "delete", store, "r", "em", "--yes")
    assert ok(capsys, "ls", store, "r") == []
    ok(capsys, "delete", store, "r", "-y")
    assert ok(capsys, "repos", store) == []
    ok(capsys, "sweep", store)


def test_a_store_from_the_environment(
    capsys: pytest.CaptureFixture[str], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DICED_STORE", raising=False)
    assert "DICED_STORE" in fails(capsys, 7, "repos", "-")
    monkeypatch.setenv("DICED_STORE", store)
    assert [each["name"] for each in ok(capsys, "repos", "-")] == ["r"]


def test_the_kinds_are_those_registered(
    capsys: pytest.CaptureFixture[str], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["create", store, "r", "a", "--kind", "kind-for-test"]) == 2
    given = capsys.readouterr().err
    assert "not one of image, imagetile, keyvalue, label, labelgraph, roi" in given
    monkeypatch.setitem(registry._targets["kind"], "kind-for-test", "diced.array:DicedArray")
    assert (
        ok(capsys, "create", store, "r", "a", "--kind", "kind-for-test")["kind"] == "kind-for-test"
    )


def test_one_block_size_for_all_axes(
    capsys: pytest.CaptureFixture[str], store: str, tmp_path: Path
) -> None:
    for dims in (1, 2, 3):
        made = ok(
            capsys, "create", store, "r", f"a{dims}", "--dims", str(dims), "--block-shape", "32"
        )
        assert made["block_shape"] == [32] * dims
    assert main(["info", store, "r", "a3"]) == 0
    assert re.search(r"^units +none$", capsys.readouterr().out, re.MULTILINE)
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.uint8))
    for _ in range(2):  # created, then compared
        argv = ["ingest", store, "r", "x", str(tmp_path / "x.npy"), "--block-shape", "8", "--force"]
        assert main(argv) == 0
        assert "in 1 slab\n" in capsys.readouterr().out
    assert ok(capsys, "info", store, "r", "x")["block_shape"] == [8, 8]


def test_a_store_that_no_command_could_open_again_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "gone when this command ends" in fails(capsys, 7, "init", "memory://")


def test_a_lost_store_file_is_named(capsys: pytest.CaptureFixture[str], store: str) -> None:
    (Path(store) / "diced.json").unlink()
    for argv in (["repos", store], ["init", store], ["fsck", store]):
        line = fails(capsys, 7, *argv)
        assert "diced.json" in line and "restore it" in line


def test_commands_that_write_take_durability(
    capsys: pytest.CaptureFixture[str], store: str
) -> None:
    text = DOCS.read_text(encoding="utf-8")
    (told,) = re.findall(r"^Commands that write to a store \(([^)]*); not `demo`\)", text, re.M)
    takes = {
        " ".join(words)
        for words, leaf in leaves(parser()).items()
        if "--durability" in leaf._option_string_actions
    }
    assert set(re.findall(r"`([a-z ]+)`", told)) == takes
    for argv in (["create", store, "q"], ["delete", store, "q", "-y"], ["sweep", store]):
        ok(capsys, *argv, "--durability", "process")


# -- versions ------------------------------------------------------------------------------


def test_lock_branch_tag_log(capsys: pytest.CaptureFixture[str], store: str) -> None:
    root = ok(capsys, "info", store, "r")["version"]
    fails(capsys, 5, "branch", store, "r", "side")
    fails(capsys, 5, "tag", store, "r", "v1")
    assert ok(capsys, "lock", store, "r", "-m", "first")["uuid"] == root
    fails(capsys, 5, "lock", store, "r", "-m", "again")
    assert root in fails(capsys, 5, "create", store, "r", "em")
    ok(capsys, "tag", store, "r", "v1", "-m", "release")
    fails(capsys, 4, "tag", store, "r", "v1")
    assert ok(capsys, "tag", store, "r") == {"v1": root}
    side = ok(capsys, "branch", store, "r", "side", "-m", "try")
    fails(capsys, 4, "branch", store, "r", "side")
    following = ok(capsys, "branch", store, "r", "--next")
    assert (side["branch"], following["branch"]) == ("side", "master")
    another = ok(capsys, "branch", store, "r", "--next", "-v", root)
    assert another["branch"] == another["uuid"][:12]
    assert ok(capsys, "branch", store, "r") == {
        "master": following["uuid"], "side": side["uuid"], another["branch"]: another["uuid"],
    }  # fmt: skip
    # The default is the newest version of master; a UUID in the place of REPO is itself.
    assert ok(capsys, "info", store, "r")["version"] == following["uuid"]
    assert ok(capsys, "info", store, side["uuid"])["version"] == side["uuid"]
    assert ok(capsys, "info", store, "r", "-v", "side~1")["version"] == root
    log = ok(capsys, "log", store, "r")
    assert [each["uuid"] for each in log] == [root, following["uuid"]]
    assert (log[0]["note"], log[0]["locked"], log[0]["tags"]) == ("first", True, ["v1"])
    assert len(ok(capsys, "log", store, "r", "--all")) == 4
    assert main(["log", store, "r"]) == 0
    assert "[v1]" in capsys.readouterr().out


# -- voxels --------------------------------------------------------------------------------


def test_ingest_cp_export(
    capsys: pytest.CaptureFixture[str], store: str, stack: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    pattern, data = stack
    told = ok(
        capsys, "ingest", store, "r", "em", pattern, "--offset-xyz", "-5,7,-3",
        "--block-shape", "4,8,8",
    )  # fmt: skip
    assert (told["start"], told["stop"], told["skipped"]) == ([-3, 7, -5], [9, 27, 25], 0)
    assert ok(capsys, "ingest", store, "r", "em", pattern, "--offset-xyz=-5,7,-3")["skipped"] == 4
    box = "-3:2,:,-1"
    out = tmp_path / "cut.npy"
    for _ in range(2):
        ok(capsys, "cp", store, "r", "em", box, str(out), "--overwrite")
        np.testing.assert_array_equal(np.load(out), data[:5, :, 4:5])
    assert "--overwrite replaces it" in fails(capsys, 4, "cp", store, "r", "em", box, str(out))
    ok(capsys, "cp", str(out), store, "r", "copy", "--offset-zyx", "-3,7,-1")
    assert ok(capsys, "info", store, "r", "copy")["bounds"] == [[-3, 7, -1], [2, 27, 0]]
    told = ok(
        capsys, "export", store, "r", "em", str(tmp_path / "planes"), "--box", "0:2,7:10,-5:3"
    )
    np.testing.assert_array_equal(np.asarray(Image.open(told["files"][1])), data[4, 0:3, 0:8])
    told = ok(capsys, "export", store, "r", "em", str(tmp_path / "all.h5"))
    again = ok(capsys, "ingest", store, "r", "again", told["files"][0] + ":/data")
    assert again["stop"] == list(data.shape)
    operations = ok(capsys, "log", store, "r", "em")
    assert [each["box"][0][0] for each in operations] == [-3, 0, 4, 8]
    assert len(ok(capsys, "log", store, "r", "--ops")) > 4
    assert main(["log", store, "r", "--ops"]) == 0


def test_ingest_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], store: str, stack: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    pattern, _ = stack
    path = tmp_path / "iso.9.png"
    path.write_bytes(path.read_bytes()[:100])
    line = fails(capsys, 8, "ingest", store, "r", "em", pattern, "--block-shape", "4,8,8")
    assert "iso.9.png" in line
    assert "2 of 3 slabs are stored" in line
    path.write_bytes(b"no image")
    line = fails(capsys, 8, "ingest", store, "r", "em", pattern, "--block-shape", "4,8,8")
    assert f"{str(path)!r} is no image" in line and "_io" not in line
    path.unlink()
    assert main(["ingest", store, "r", "em", pattern, "--block-shape", "4,8,8"]) == 0
    assert "jumps from iso.8.png to iso.10.png" in capsys.readouterr().err
    capsys.readouterr()
    out = str(tmp_path / "x.npy")
    assert "empty" in fails(capsys, 8, "export", store, "r", "em", out, "--box", "0:1,-5:-6,0:1")
    assert "3 dimensions" in fails(capsys, 8, "cp", store, "r", "em", "0:1", out)
    fails(capsys, 8, "cp", store, "r", "em", "a:b,0,0", out)
    fails(capsys, 8, "cp", str(tmp_path / "x.tif"), store, "r", "em")


def test_progress_goes_to_stderr_when_asked(
    capsys: pytest.CaptureFixture[str], store: str, stack: tuple[str, np.ndarray]
) -> None:
    pattern, _ = stack
    assert main(["ingest", store, "r", "em", pattern]) == 0
    assert capsys.readouterr().err == ""
    assert main(["ingest", store, "r", "em", pattern, "--force", "--progress"]) == 0
    assert "100%" in capsys.readouterr().err
    assert main(["ingest", store, "r", "em", pattern, "--force", "--progress", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_damaged_block_is_reported(
    capsys: pytest.CaptureFixture[str], store: str, stack: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    ok(capsys, "ingest", store, "r", "em", stack[0])
    damaged = 0
    for path in Path(store).rglob("*"):
        if path.is_file() and path.stat().st_size > 6000:
            data = bytearray(path.read_bytes())
            data[3000] ^= 1
            path.write_bytes(data)
            damaged += 1
    assert damaged
    assert "block" in fails(capsys, 6, "export", store, "r", "em", str(tmp_path / "x.npy"))
    assert not (tmp_path / "x.npy").exists()


# -- files ---------------------------------------------------------------------------------


def test_files(capsysbinary: pytest.CaptureFixture[bytes], store: str, tmp_path: Path) -> None:
    source = tmp_path / "notes.txt"
    source.write_bytes(b"\x00hello")
    assert main(["files", "put", store, "r", str(source)]) == 0
    assert main(["files", "put", store, "r", str(source), "a/b"]) == 0
    capsysbinary.readouterr()
    assert main(["files", "get", store, "r", "a/b"]) == 0
    assert capsysbinary.readouterr().out == b"\x00hello"
    out = str(tmp_path / "out")
    assert main(["files", "get", store, "r", "a/b", out]) == 0
    assert main(["files", "get", store, "r", "a/b", out]) == 4
    assert Path(out).read_bytes() == b"\x00hello"
    capsysbinary.readouterr()
    assert main(["files", "ls", store, "r", "--json"]) == 0
    assert json.loads(capsysbinary.readouterr().out) == ["a/b", "notes.txt"]
    assert main(["files", "ls", store, "r", "a/"]) == 0
    assert capsysbinary.readouterr().out == b"a/b\n"
    assert main(["files", "rm", store, "r", "a/b", "nothing"]) == 3
    assert b"there is" not in capsysbinary.readouterr().err  # only close names are looked at
    assert main(["files", "get", store, "r", "notes.tx"]) == 3
    assert b"did you mean 'notes.txt'" in capsysbinary.readouterr().err
    assert main(["files", "rm", store, "r", "a/b"]) == 0
    assert main(["files", "get", store, "r", "a/b"]) == 3


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_sync(capsys: pytest.CaptureFixture[str], store: str, tmp_path: Path) -> None:
    up, down = tmp_path / "up", tmp_path / "down"
    (up / "deep" / "er").mkdir(parents=True)
    (up / "deep" / "er" / "x").write_bytes(b"1" * 5000)
    (up / "empty").touch()
    (up / "y").write_bytes(b"2")
    os.mkfifo(up / "pipe")
    assert ok(capsys, "files", "sync", store, "r", str(up), "-n")["written"] == [
        "deep/er/x", "empty", "y",
    ]  # fmt: skip
    assert ok(capsys, "files", "ls", store, "r") == []
    assert len(ok(capsys, "files", "sync", store, "r", str(up))["written"]) == 3
    (up / "y").write_bytes(b"3")
    (up / "empty").unlink()
    assert ok(capsys, "files", "sync", store, "r", str(up))["written"] == ["y"]
    os.unlink(up / "pipe")
    assert ok(capsys, "files", "sync", store, "r", str(down), "--down")["written"] == [
        "deep/er/x", "empty", "y",
    ]  # fmt: skip
    assert tree(down) == {**tree(up), "empty": b""}
    assert ok(capsys, "files", "sync", store, "r", str(up), "--delete")["removed"] == ["empty"]
    assert ok(capsys, "files", "sync", store, "r", str(down), "--down", "--delete")["removed"] == [
        "empty"
    ]
    assert tree(down) == tree(up)
    nothing = {"written": [], "removed": [], "dry_run": False}
    assert ok(capsys, "files", "sync", store, "r", str(down), "--down", "--delete") == nothing


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", ".", "a/.", "link/x", "y/z"])
def test_sync_down_stays_in_its_folder(
    capsys: pytest.CaptureFixture[str], store: str, tmp_path: Path, name: str
) -> None:
    down = tmp_path / "in" / "down"
    (tmp_path / "elsewhere").mkdir()
    down.mkdir(parents=True)
    (down / "link").symlink_to(tmp_path / "elsewhere")
    with DicedStore(store) as opened:
        repo = opened.open_repo("r")
        repo.upload_filedata(name, b"bad")
        repo.upload_filedata("y", b"good")
    before = sorted(map(str, tmp_path.rglob("*")))
    line = fails(capsys, 8, "files", "sync", store, "r", str(down), "--down")
    assert repr(name) in line
    kept = [each for each in sorted(map(str, tmp_path.rglob("*"))) if "s.diced" not in each]
    assert kept == [each for each in before if "s.diced" not in each]


# -- upkeep --------------------------------------------------------------------------------


def test_bench_leaves_nothing(
    capsys: pytest.CaptureFixture[str], store: str, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    told = ok(capsys, "bench", str(folder), "--size", "4M", "--durability", "process")
    assert {each["unit"] for each in told["results"]} == {"MiB/s", "planes/s", "us", "ms"}
    assert all(each["value"] > 0 for each in told["results"])
    assert list(folder.iterdir()) == []
    ok(capsys, "bench", store, "--size", "4M", "--durability", "process")
    assert [each["name"] for each in ok(capsys, "repos", store)] == ["r"]
    fails(capsys, 8, "bench", str(tmp_path / "missing"))


def test_fsck(
    capsys: pytest.CaptureFixture[str], store: str, stack: tuple[str, np.ndarray]
) -> None:
    ok(capsys, "ingest", store, "r", "em", stack[0])
    assert ok(capsys, "fsck", store)["ok"]
    assert ok(capsys, "fsck", store, "r", "--full")["ok"]
    for path in Path(store).rglob("*"):
        if path.is_file() and path.stat().st_size > 6000:
            data = bytearray(path.read_bytes())
            data[3000] ^= 1
            path.write_bytes(data)
    capsys.readouterr()
    assert main(["fsck", store, "--full"]) == 6
    assert "em" in capsys.readouterr().out
    for argv in (["fsck", store], ["fsck", store, "--rebuild"]):
        assert main(argv) == 0
        printed = capsys.readouterr().out
        assert "indexes are sound; blocks were not read (--full does)" in printed
        assert "no errors" not in printed
    assert re.search(r"^\d+ lanes read, nothing to rebuild$", printed, re.MULTILINE)
    assert main(["fsck", store, "--rebuild", "--full"]) == 6
    line = next(each for each in capsys.readouterr().out.splitlines() if "error" in each)
    assert line.count("array 'em'") == 1


def test_fsck_says_what_it_rebuilt(capsys: pytest.CaptureFixture[str], store: str) -> None:
    ok(capsys, "lock", store, "r", "-m", "x")
    (lock,) = (each for each in Path(store).glob("r/*/locks/**/*") if each.is_file())
    lock.unlink()
    assert main(["fsck", store, "--rebuild"]) == 0
    assert re.search(r"^\d+ lanes read, 1 lock written$", capsys.readouterr().out, re.MULTILINE)
    lock.unlink()
    told = ok(capsys, "fsck", store, "--rebuild", "--full")
    assert told["rebuilt"]["locks written"] == 1
    assert told["full"]


def test_fsck_tells_damage_from_what_could_not_be_read(
    capsys: pytest.CaptureFixture[str],
    store: str,
    stack: tuple[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ok(capsys, "ingest", store, "r", "em", stack[0])
    read = Home.read_frame

    def refuse(kind: type[Exception]) -> None:
        def raising(self: Home, lane_id: str, pointer: Any) -> Any:
            raise kind("not today")

        monkeypatch.setattr(Home, "read_frame", raising)

    for kind, code in (
        (errors.AccessError, 7),
        (errors.EngineError, 7),
        (errors.UnsupportedError, 12),
        (errors.CorruptError, 6),
    ):
        refuse(kind)
        assert main(["fsck", store, "--full"]) == code
        printed = capsys.readouterr().out
        assert "errors were found" in printed
        assert ("restore" in printed) == (code == 6)
    monkeypatch.setattr(Home, "read_frame", read)
    assert main(["fsck", store, "--full"]) == 0
    assert "no errors" in capsys.readouterr().out


def test_du(capsys: pytest.CaptureFixture[str], store: str, stack: tuple[str, np.ndarray]) -> None:
    ok(capsys, "ingest", store, "r", "em", stack[0])
    (repo,) = ok(capsys, "du", store)["repos"]
    assert repo["segments"]["live"] > 0
    (em,) = (each for each in repo["arrays"] if each["name"] == "em")
    assert em["live_bytes"] == repo["segments"]["live"]
    assert main(["du", store, "r", "--bytes"]) == 0
    assert re.search(rf"^ +em +{em['live_bytes']} ", capsys.readouterr().out, re.MULTILINE)


def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = str(tmp_path / "demo.diced")
    told = ok(capsys, "demo", "--store", where, "--shape", "16,32,32")
    assert len(told["told"]) > 5
    assert [each["name"] for each in ok(capsys, "repos", where)] == ["demo"]
    fails(capsys, 8, "demo", "--store", where, "--shape", "16,32")


# -- processes -----------------------------------------------------------------------------


def diced(*argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "diced", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_as_a_process(store: str) -> None:
    process = diced("repos", store)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("r  ")
    process = diced("ls", store, "nothing")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" not in err
    process = diced("ls", store, "nothing", "--debug")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" in err


def test_interrupted_and_cut_off(store: str) -> None:
    process = diced("files", "put", store, "r", "-", "name", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("x" * 2**20)  # returns when most of it was read: then it waits for more
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "diced: interrupted\n"
    with DicedStore(store) as opened:
        big = {f"{i:05d}" * 20: b"" for i in range(5000)}
        opened.open_repo("r").files.put_many(big)
    process = diced("files", "ls", store, "r")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141
