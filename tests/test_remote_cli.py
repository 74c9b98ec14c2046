"""The command line with ``dvid://``: at our own server, and at a strict fake of DVID."""

import json

import numpy as np
import pytest
from fake_dvid import serving as fake_serving
from PIL import Image

from diced.cli.main import main


@pytest.fixture(params=["ours", "dvid"])
def where(request):
    """The location of an empty server."""
    if request.param == "ours":
        yield request.getfixturevalue("disk_server").url.replace("http", "dvid")
        return
    with fake_serving() as fake:
        yield fake.url


@pytest.fixture
def ours(request):
    """Whether the server is ours."""
    return request.node.callspec.params["where"] == "ours"


@pytest.fixture
def run(capsys):
    """Run a command with --json that succeeds, and return what it printed."""

    def ok(*argv, code=0):
        capsys.readouterr()
        assert main([*argv, "--json"]) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out) if code == 0 else None

    return ok


def fails(capsys, code, *argv):
    capsys.readouterr()
    assert main(list(argv)) == code
    return capsys.readouterr().err


def test_stores_repos_arrays_versions(where, run, capsys):
    assert "already" in fails(capsys, 4, "init", where)
    assert run("init", where, "--exist-ok")["store"] == where
    made = run("create", where, "r", "--description", "of tests")
    assert "exists" in fails(capsys, 4, "create", where, "r")
    assert [each["name"] for each in run("repos", where)] == ["r"]
    array = run("create", where, "r", "gray", "--voxel-size", "40,8,8", "--units", "nm")
    assert (array["dtype"], array["voxel_size"]) == ("uint8", [40.0, 8.0, 8.0])
    run("create", where, "r", "bodies", "--labels")
    run("create", where, "r", "flat", "--dims", "2", "--dtype", "uint16")
    assert [(each["name"], each["kind"], each["dims"]) for each in run("ls", where, "r")] == [
        ("bodies", "label", 3), ("flat", "image", 2), ("gray", "image", 3),
    ]  # fmt: skip
    hidden = {each["name"] for each in run("ls", where, "r", "--all")}
    assert hidden == {".files", ".meta", "bodies", "flat", "gray"}
    info = run("info", where, "r")
    assert (info["description"], info["version"], info["locked"]) == (
        "of tests", made["uuid"], False,
    )  # fmt: skip
    assert run("info", where)["repos"] == 1
    assert run("info", where, "r", "bodies")["bounds"] is None
    assert run("lock", where, "r", "-m", "first")["uuid"] == made["uuid"]
    assert "locked" in fails(capsys, 5, "lock", where, "r", "-m", "again")
    assert run("tag", where, "r", "v1")["uuid"] == made["uuid"]
    assert run("tag", where, "r") == {"v1": made["uuid"]}
    child = run("branch", where, "r", "--next", "-m", "second")
    side = run("branch", where, "r", "side", "--version", "v1")
    assert run("branch", where, "r") == {"master": child["uuid"], "side": side["uuid"]}
    log = run("log", where, "r", "--all")
    assert made["uuid"] in [each["uuid"] for each in log]
    assert log[0]["tags"] == ["v1"] and log[0]["note"] == "first"
    assert "'nothing'" in fails(capsys, 3, "info", where, "nothing")


def test_voxels(where, ours, run, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (70, 20, 30)).astype(np.uint8)
    for z, plane in enumerate(data):
        Image.fromarray(plane).save(tmp_path / f"iso.{z}.png")
    stack = str(tmp_path / "iso.*.png")
    run("create", where, "r")
    words = ("ingest", where, "r", "gray", stack, "--offset-xyz", "100,-7,2600")
    found = run(*words)
    assert (found["start"], found["stop"]) == ([2600, -7, 100], [2670, 13, 130])
    assert found["skipped"] == 0 and found["written"] == data.nbytes
    # Only our server tells what was written before.
    assert run(*words)["skipped"] == (found["slabs"] if ours else 0)
    cut = str(tmp_path / "cut.npy")
    run("cp", where, "r", "gray", "2610:2630,-7:13,100:130", cut)
    assert (np.load(cut) == data[10:30]).all()
    run("cp", cut, where, "r", "gray", "--offset-zyx", "0,0,-5")
    out = str(tmp_path / "out.npy")
    run("export", where, "r", "gray", out, "--box", "0:20,0:20,-5:25")
    assert (np.load(out) == data[10:30]).all()
    folder = tmp_path / "planes"
    files = run("export", where, "r", "gray", str(folder), "--box", "2600:2603,-7:13,100:130")
    assert (np.asarray(Image.open(files["files"][2])) == data[2]).all()
    labels = tmp_path / "labels.npy"
    np.save(labels, np.arange(10**3, dtype=np.uint64).reshape(10, 10, 10))
    run("ingest", where, "r", "seg", str(labels), "--labels", "--offset-zyx", "3,4,5")
    run("export", where, "r", "seg", str(tmp_path / "seg.npy"), "--box", "3:13,4:14,5:15")
    assert (np.load(tmp_path / "seg.npy") == np.load(labels)).all()


def test_files(where, run, tmp_path, capsys):
    run("create", where, "r")
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"one")
    (folder / "sub" / "b.txt").write_bytes(b"two")
    run("files", "put", where, "r", str(folder / "a.txt"), "name")
    assert run("files", "ls", where, "r") == ["name"]
    assert run("files", "sync", where, "r", str(folder))["written"] == ["a.txt", "sub/b.txt"]
    assert run("files", "sync", where, "r", str(folder))["written"] == []
    down = tmp_path / "down"
    run("files", "sync", where, "r", str(down), "--down")
    assert (down / "sub" / "b.txt").read_bytes() == b"two"
    run("files", "get", where, "r", "name", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == b"one"
    run("files", "rm", where, "r", "name", "a.txt")
    assert run("files", "ls", where, "r") == ["sub/b.txt"]
    assert "no key" in fails(capsys, 3, "files", "get", where, "r", "name")


@pytest.mark.parametrize("command", ["fsck", "du", "sweep", "probe"])
def test_what_works_on_the_store_itself(command, capsys):
    error = fails(capsys, 12, command, "dvid://127.0.0.1:9")
    assert f"'diced {command}' works on the store itself, not through a server" in error
    assert "dvid://127.0.0.1:9" in error


def test_log_of_operations(where, ours, run, capsys):
    run("create", where, "r")
    run("create", where, "r", "a")
    if ours:
        assert run("log", where, "r", "a") == []
    else:
        assert "no log of what was written" in fails(capsys, 12, "log", where, "r", "a")


def test_deletion(where, ours, run, capsys):
    run("create", where, "r")
    run("create", where, "r", "a")
    for words, command in (("a",), "dvid repo"), ((), "dvid repos delete"):
        if ours:
            run("delete", where, "r", *words, "--yes")
        else:
            assert command in fails(capsys, 12, "delete", where, "r", *words, "--yes")
    assert len(run("repos", where)) == (0 if ours else 1)


def test_tokens_come_from_the_environment(run, capsys, monkeypatch):
    with fake_serving(token="t0ken", admin_token="adm1n") as fake:
        assert "no valid token" in fails(capsys, 7, "repos", fake.url)
        monkeypatch.setenv("DICED_TOKEN", "t0ken")
        assert run("repos", fake.url) == []
        assert "admin" in fails(capsys, 7, "create", fake.url, "r")
        monkeypatch.setenv("DVID_ADMIN_TOKEN", "adm1n")
        run("create", fake.url, "r")
        monkeypatch.setenv("DICED_STORE", fake.url)
        assert [each["name"] for each in run("repos", "-")] == ["r"]
