"""A package adds an engine, a codec and a kind without a change to diced."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diced import DicedStore, registry
from diced.server import datatype

PACKAGE = pathlib.Path(__file__).parent / "extension"


@pytest.fixture
def extension(monkeypatch):
    """Install the example package by putting it on the path."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    forget()
    yield
    forget()
    sys.modules.pop("diced_extension", None)
    sys.modules.pop("diced_extension.server", None)


def forget():
    """Make the registry look the names up anew."""
    for group, name in (
        ("engine", "shout"), ("codec", "negative"), ("kind", "mask"), ("datatype", "maskblk"),
    ):  # fmt: skip
        registry._resolved.pop((group, name), None)
    datatype._from_packages.cache_clear()


def test_engine_codec_and_kind_work_together(extension):
    store = DicedStore("shout://x")
    repo = store.create_repo("r")
    data = np.random.default_rng(0).integers(0, 1000, (10, 20, 30), np.uint16)
    array = repo.create_array("a", np.uint16, codec="negative:9", block_shape=(8, 8, 8))
    array[-3:7, 1:21, 2:32] = data
    assert array.codec == "negative:9"
    assert np.array_equal(array[-3:7, 1:21, 2:32], data)
    assert np.array_equal(array[0:3, 4:9, 5:31], data[3:6, 3:8, 3:29])
    mask = repo.create_array("m", kind="mask", dims=2, block_shape=(8, 8))
    mask[3:9, 3:9] = True
    assert (mask.kind, mask.dtype, mask.count()) == ("mask", np.dtype(bool), 36)
    assert type(repo["m"]).__name__ == "Mask"
    assert dict(repo.list_instances(showhidden=True))["m"] == "mask"
    assert store.engine.puts > 4


def test_a_data_type_of_the_server(extension, server):
    uuid = server.repo()
    assert server.get("server/compiled-types").json["maskblk"] == "example.org/maskblk"
    server.instance(uuid, "maskblk", "m", BlockSize="8,8,8")
    server.post(f"node/{uuid}/m/set/1_2_3")
    assert server.get(f"node/{uuid}/m/count").json == {"Count": 1}
    info = server.get(f"node/{uuid}/m/info").json
    assert (info["Base"]["TypeName"], info["Base"]["TypeVersion"]) == ("maskblk", "0.3")
    assert info["Extended"] == {"Count": 1}
    text = server.get("help/maskblk").text
    assert "Sets the voxel" in text and "invert" in text
    paths = server.get("openapi.json").json["paths"]
    assert "/api/node/{uuid}/{name}/set/{place}" in paths
    server.post(f"node/{uuid}/m/command", {"words": ["invert"]})
    assert server.get(f"node/{uuid}/m/count").json == {"Count": 511}
    server.post(f"node/{uuid}/commit", {})
    assert "locked" in server.refused("POST", f"node/{uuid}/m/set/0_0_0")
    server.refused("GET", f"node/{uuid}/m/nonsense")


def test_without_the_package_its_kind_reads_raw_and_its_codec_refuses(tmp_path, extension):
    with DicedStore(tmp_path / "s") as store:
        repo = store.create_repo("r")
        mask = repo.create_array("m", kind="mask", dims=1, block_shape=(8,))
        mask[2:5] = True
        coded = repo.create_array("c", np.uint8, 1, codec="negative", block_shape=(8,))
        coded[0:8] = np.arange(8)
    # A fresh process, where the package is not on the path.
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "s")], check=False)
    assert done.returncode == 0


WITHOUT = """
import sys
import pytest
from diced import DicedStore, NotFoundError, UnsupportedError

repo = DicedStore(sys.argv[1]).open_repo("r")
assert repo["m"][0:8].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
with pytest.raises(UnsupportedError, match="mask"):
    repo["m"][0] = True
with pytest.raises((UnsupportedError, NotFoundError), match="negative"):
    repo["c"][0:8]
with pytest.raises(NotFoundError, match="mask"):
    repo.create_array("n", kind="mask")
"""
