"""DVID's walk-through, word for word: the commands of its launcher and the URLs it names."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

SIDE = 250
LAUNCHER = "import sys; from diced.cli.dvid import main; sys.exit(main())"


class Shell:
    """A directory in which ``dvid`` is typed, and a browser that opens URLs."""

    def __init__(self, place, port):
        self.place = place
        self.api = f"http://localhost:{port}/api"
        self.environ = {**os.environ, "DVID_SERVER": f"localhost:{port}"}

    def start(self, *words, **more):
        command = [sys.executable, "-c", LAUNCHER, *words]
        return subprocess.Popen(command, cwd=self.place, env=self.environ, text=True, **more)

    def run(self, *words, code=0, stdin=None):
        """Type ``dvid`` and some words; return what it prints."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(*words, **pipes)
        out, err = process.communicate(stdin, timeout=120)
        assert process.returncode == code, (words, out, err)
        return out if code == 0 else err

    def image(self, path):
        """Open a URL as a browser does; return its pixels."""
        with urllib.request.urlopen(f"{self.api}/{path}", timeout=60) as answer:
            assert answer.headers["content-type"] == "image/png"
            return np.asarray(Image.open(io.BytesIO(answer.read())))

    def text(self, path):
        with urllib.request.urlopen(f"{self.api}/{path}", timeout=60) as answer:
            return answer.read().decode()


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """`dvid init`, `dvid -debug serve` with a web address of its own."""
    place = tmp_path_factory.mktemp("walk")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shell = Shell(place, port)
    assert "init" in shell.run("help")
    assert "datastore" in shell.run("init", str(place / "datastore"))
    process = shell.start(
        "-debug", f"-web=:{port}", "serve", str(place / "datastore"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(600):
        try:
            shell.text("server/info")
            break
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
    yield shell
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def volume(shell):
    """A stack of 250 PNG images of 250 x 250, as sample-grayscale is; returned as an array."""
    z, y, x = np.ogrid[:SIDE, :SIDE, :SIDE]
    volume = ((z * 3 + y * 5 + x * 7 + (x * y) // 32) % 251 + 1).astype(np.uint8)
    (shell.place / "sample").mkdir()
    for number, plane in enumerate(volume):
        path = shell.place / "sample" / f"iso.{number:05d}.png"
        Image.fromarray(plane).save(path, compress_level=1)
    return volume


@pytest.fixture(scope="module")
def loaded(shell, volume):
    """The whole UUID of a repo with the volume loaded."""
    uuid = shell.run("repos", "new").strip()
    assert re.fullmatch("[0-9a-f]{32}", uuid)
    assert uuid in shell.run("types")
    assert "mygrayscale" in shell.run("repo", uuid[:8], "new", "grayscale8", "mygrayscale")
    assert re.search(r"mygrayscale\s+\[\w+\]", shell.run("types"))
    assert "load" in shell.run("types", "grayscale8", "help")
    glob = str(shell.place / "sample" / "*.png")
    shell.run("node", uuid[:8], "mygrayscale", "load", "100,100,2600", glob)
    return uuid


def test_help_knows_the_servers_data_types(shell):
    assert "uint8blk" in shell.run("help")
    assert "diced" in shell.run("about")


@pytest.mark.parametrize("form", ["xy/raw/{}/{}", "xy/{}/{}", "raw/xy/{}/{}", "raw/0_1/{}/{}/png"])
def test_the_slices_of_the_walk_through(shell, loaded, volume, form):
    path = f"node/{loaded[:8]}/mygrayscale/" + form
    assert np.array_equal(shell.image(path.format("250_250", "100_100_2600")), volume[0])
    assert np.array_equal(shell.image(path.format("250_250", "100_100_2800")), volume[200])
    assert np.array_equal(shell.image(path.format("250,250", "100,100,2601")), volume[1])


def test_a_resectioning_with_black_around(shell, loaded, volume):
    found = shell.image(f"node/{loaded[:8]}/mygrayscale/xz/raw/500_500/0_0_2500")
    assert found.shape == (500, 500) and not found.any()  # the data begin at y = 100
    found = shell.image(f"node/{loaded[:8]}/mygrayscale/xz/raw/500_500/0_150_2500")
    wanted = np.zeros((500, 500), np.uint8)
    wanted[100:350, 100:350] = volume[:, 50]
    assert np.array_equal(found, wanted)
    found = shell.image(f"node/{loaded[:8]}/mygrayscale/yz/raw/250_250/120_100_2600")
    assert np.array_equal(found, volume[:, :, 20])


def test_multiscale_tiles(shell, loaded, volume):
    words = ("source=mygrayscale", "TileSize=128")
    shell.run("repo", loaded[:8], "new", "multiscale2d", "mymultiscale2d", *words)
    shell.run("node", loaded[:8], "mymultiscale2d", "generate")
    tile = f"node/{loaded[:8]}/mymultiscale2d/tile"
    first = shell.image(f"{tile}/xy/0/0_0_0")
    assert np.array_equal(first, volume[0, :128, :128])
    right = shell.image(f"{tile}/xy/0/1_0_0")
    assert right.shape == (128, 128)
    assert np.array_equal(right[:, :122], volume[0, :128, 128:]) and not right[:, 122:].any()
    small = shell.image(f"{tile}/xy/1/0_0_0")
    assert small.shape == (128, 128)
    assert small[:125, :125].all() and not small[125:].any() and not small[:, 125:].any()
    assert shell.image(f"{tile}/xz/0/0_0_0").shape == (128, 128)
    assert shell.image(f"{tile}/yz/0/0_0_0").shape == (128, 128)
    with pytest.raises(urllib.error.HTTPError):
        shell.text(f"{tile}/xy/nonsense/0_0_0")


def test_the_walk_through_of_2013(shell, volume, tmp_path):
    """Datasets, and a quadtree that is made as a file says."""
    uuid = shell.run("datasets", "new").strip()
    shell.run("dataset", uuid[:8], "new", "grayscale8", "mygrayscale")
    glob = str(shell.place / "sample" / "iso.0000*.png")
    shell.run("node", uuid[:8], "mygrayscale", "load", "xy", "100,100,2600", glob)
    words = ("source=mygrayscale", "TileSize=128")
    shell.run("dataset", uuid[:8], "new", "quadtree", "myquadtree", *words)
    levels = {str(n): {"Resolution": [10.0 * 2**n] * 3, "TileSize": [64, 64, 64]} for n in range(3)}
    (tmp_path / "tilespec.json").write_text(json.dumps(levels))
    said = shell.run("node", uuid[:8], "myquadtree", "generate", str(tmp_path / "tilespec.json"))
    assert re.search(r"stored \d+ tiles", said)
    assert json.loads(shell.text(f"dataset/{uuid[:8]}/myquadtree/metadata"))["Levels"] == levels
    found = shell.image(f"node/{uuid[:8]}/myquadtree/tile/xy/0/1_0_9")
    assert np.array_equal(found, volume[9, :64, 64:128])
    found = shell.image(f"node/{uuid[:8]}/myquadtree/tile/xz/2/0_0_0")
    assert found.shape == (64, 64) and found[:2, :62].all() and not found[3:].any()
    missing = str(tmp_path / "nothing.json")
    assert missing in shell.run("node", uuid, "myquadtree", "generate", missing, code=1)


def test_real_sections(shell, shared_data):
    """The stack that the walk-through was written for."""
    files = sorted((shared_data / "sample-grayscale").glob("*.png"))
    if not files:
        pytest.skip("no sections there")
    sections = np.stack([np.asarray(Image.open(each)) for each in files])
    assert sections.shape == (SIDE, SIDE, SIDE)
    uuid = shell.run("repos", "new").strip()
    shell.run("repo", uuid, "new", "grayscale8", "mygrayscale")
    glob = str(shared_data / "sample-grayscale" / "*.png")
    shell.run("node", uuid, "mygrayscale", "load", "100,100,2600", glob)
    base = f"node/{uuid}/mygrayscale"
    for number in (0, 77, 200, 249):
        found = shell.image(f"{base}/xy/raw/250_250/100_100_{2600 + number}")
        assert np.array_equal(found, sections[number])
    wanted = np.zeros((500, 500), np.uint8)
    wanted[100:350, 100:350] = sections[:, 50]
    assert np.array_equal(shell.image(f"{base}/xz/raw/500_500/0_150_2500"), wanted)
    shell.run("repo", uuid, "new", "multiscale2d", "tiles", "source=mygrayscale", "TileSize=128")
    shell.run("node", uuid, "tiles", "generate")
    for name, planes in (("xy", sections), ("xz", sections.transpose(1, 0, 2)),
                         ("yz", sections.transpose(2, 0, 1))):  # fmt: skip
        for number in (0, 130):
            corners = [(number, 0, 0), (0, number, 0), (0, 0, number)]
            first = corners[("yz", "xz", "xy").index(name)]
            tile = shell.image(f"node/{uuid}/tiles/tile/{name}/0/" + "_".join(map(str, first)))
            assert np.array_equal(tile, planes[number, :128, :128])
            half = shell.image(f"node/{uuid}/tiles/tile/{name}/1/" + "_".join(map(str, first)))
            wanted = planes[number].reshape(125, 2, 125, 2).sum(axis=(1, 3), dtype=int)
            assert np.array_equal(half[:125, :125], (wanted + 2) // 4)
            assert not half[125:].any() and not half[:, 125:].any()
    levels = json.loads(shell.text(f"node/{uuid}/tiles/metadata"))["Levels"]
    assert [levels[each]["TileSize"] for each in sorted(levels)] == [[128] * 3] * 2


def test_the_datastore_as_an_option(tmp_path):
    shell = Shell(tmp_path, 1)
    assert "datastore" in shell.run(f"-datastore={tmp_path / 'old'}", "init")
    assert (tmp_path / "old").is_dir()
    assert "missing" in shell.run("init", code=2)


def test_other_spellings_of_load(shell, loaded, volume):
    glob = str(shell.place / "sample" / "iso.0000*.png")
    for name, words in (
        ("older", ("load", "xy", "0,0,10", glob)),
        ("oldest", ("load", "local", "xy", "0,0,10", glob)),
    ):
        shell.run("dataset", loaded[:8], "new", "grayscale8", name)
        shell.run("node", loaded[:8], name, *words)
        found = shell.image(f"node/{loaded[:8]}/{name}/raw/xy/250_250/0_0_13")
        assert np.array_equal(found, volume[3])


def test_a_key_from_standard_input(shell, loaded):
    shell.run("repo", loaded[:8], "new", "keyvalue", "notes")
    shell.run("-stdin", "node", loaded[:8], "notes", "put", "first", stdin="what was seen")
    assert shell.text(f"node/{loaded[:8]}/notes/key/first") == "what was seen"


def test_deleting(shell):
    uuid = shell.run("repos", "new", "doomed", "a repo to be deleted").strip()
    shell.run("repo", uuid, "new", "keyvalue", "kv")
    shell.run("repo", uuid, "delete", "kv")
    assert "invalid data instance" in shell.run("node", uuid, "kv", "help", code=1)
    shell.run("repo", uuid, "new", "keyvalue", "kv")
    shell.run("repos", "delete", uuid)
    assert uuid not in shell.run("types")


def test_versions(shell):
    uuid = shell.run("repos", "new", "versions").strip()
    with urllib.request.urlopen(
        urllib.request.Request(f"{shell.api}/node/{uuid}/commit", b'{"note": "x"}', method="POST")
    ):
        pass
    child = shell.run("repo", uuid, "newversion").strip()
    other = shell.run("repo", uuid, "branch", "side").strip()
    assert len({uuid, child, other}) == 3
    assert "version " + child in shell.run("types")


def test_mistakes(shell, loaded):
    assert "no command" in shell.run("frobnicate", code=2)
    assert "no option" in shell.run("-frob", "help", code=2)
    assert "missing" in shell.run("repo", loaded, "new", code=2)
    assert "could not find UUID" in shell.run("repo", "ffffffffff", "new", "roi", "r", code=1)
    assert "no command 'fly'" in shell.run("node", loaded, "mygrayscale", "fly", code=1)
    nothing = str(shell.place / "nothing" / "*.png")
    assert nothing in shell.run("node", loaded, "mygrayscale", "load", "0,0,0", nothing, code=1)
    assert "no server" in shell.run("-rpc=localhost:1", "types", code=1)


def test_pages_cannot_give_commands(shell, loaded):
    body = b'{"words": ["load", "0,0,0", "/etc/*.png"]}'
    url = f"{shell.api}/node/{loaded}/mygrayscale/command"
    request = urllib.request.Request(url, body, {"Origin": "http://evil.example"}, method="POST")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)


def test_a_configuration(tmp_path, shell):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "config.toml").write_text(
        f'[server]\nhttpAddress = "localhost:{port}"\nnote = "for the walk"\n\n'
        '[store]\n[store.main]\nengine = "badger"\npath = "main.db"\n'
    )
    other = Shell(tmp_path, port)
    process = other.start("serve", "config.toml")
    try:
        for _ in range(600):
            try:
                assert other.text("server/note") == "for the walk"
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.05)
        assert len(other.run("repos", "new").strip()) == 32
        assert (tmp_path / "main.db").is_dir()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
