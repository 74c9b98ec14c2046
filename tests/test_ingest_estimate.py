"""What an import into a bucket takes, said beforehand."""

import contextlib
import json

import numpy as np
import pytest

from diced import DicedStore, encoding, segment
from diced.cli.main import main
from diced.ingest import foresee, importer, ingest, open_source
from diced.ingest.estimate import estimate

SHAPE = (128, 128, 128)
MIB = 2**20


@pytest.fixture
def volume(tmp_path):
    """A file of 2 MiB that do not compress."""
    path = tmp_path / "volume.npy"
    np.save(path, np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8))
    return str(path)


@pytest.fixture
def small(monkeypatch):
    """Slabs of 512 KiB in segments of 64 KiB."""
    monkeypatch.setattr(importer, "REMOTE_SLAB", MIB // 2)
    monkeypatch.setattr(segment, "WHOLE_BYTES", MIB // 16)
    monkeypatch.setattr(encoding, "GROUP_BYTES", MIB // 64)  # what is appended at once


def test_a_teravoxel():
    boxes = [((z, 0, 0), (z + 16, 4096, 4096)) for z in range(0, 4096, 16)]
    whole = [((z, 0, 0), (z + 64, 4096, 4096)) for z in range(0, 4096, 64)]
    found = estimate(whole, (64, 64, 64), 1)
    assert found.commits == 64
    assert found.blocks == 64**3
    assert found.segments == 64 * 33  # 1 GiB and the heads of its frames
    assert found.segments + found.commits < found.requests < 1.15 * found.segments
    assert 64 << 30 < found.nbytes < 1.01 * (64 << 30)
    # Slabs thinner than the blocks store these again and again.
    assert estimate(boxes, (64, 64, 64), 1).blocks == 4 * found.blocks


def test_small_slabs_ride_and_none_are_nothing():
    found = estimate([((5, 5, 5), (20, 20, 20))], (16, 16, 16), 1)
    assert found[1:4] == (1, 0, 8)
    assert found.nbytes < 2 * 15**3
    assert estimate([], (16, 16, 16), 1) == (0, 0, 0, 0, 0)


@pytest.mark.usefixtures("small")
def test_the_requests_are_those_foreseen(gcs, volume):
    repo = DicedStore(gcs.url()).create_repo("r")
    with contextlib.closing(open_source([volume])) as source:
        options = {"block_shape": 16, "offset": (7, 0, -30)}
        before = foresee(repo, "em", source, **options)
        assert "em" not in repo
        told = []
        gcs.clear()
        result = ingest(repo, "em", source, announce=told.append, **options)
        count = sum(gcs.count().values())
        assert told == [before]
        assert result.slabs == before.commits == 5  # cut where blocks end
        assert 0.75 * before.requests <= count <= 1.25 * before.requests
        sent = sum(each.received for each in gcs.log() if each.operation == "insert")
        assert 0.75 * before.nbytes <= sent <= before.nbytes
        # Again: all of it is there.
        assert foresee(repo, "em", source, **options) == (0, 0, 0, 0, 0)
        ingest(repo, "em", source, announce=told.append, **options)
        assert told[1:] == [(0, 0, 0, 0, 0)]
    wanted = np.load(volume)
    assert np.array_equal(repo["em"][7:135, 0:128, -30:98], wanted)


def test_slabs_for_a_bucket_are_thick(gcs, volume, monkeypatch):
    repo = DicedStore(gcs.url()).create_repo("r")
    with contextlib.closing(open_source([volume])) as source:
        assert foresee(repo, "em", source, block_shape=16).commits == 1
        # Two slabs are held at once, in this much memory.
        assert foresee(repo, "em", source, block_shape=16, memory=MIB).commits == 4
        assert foresee(DicedStore("memory://").create_repo("r"), "em", source).commits == 2


@pytest.mark.usefixtures("small")
def test_the_command_says_it_first(gcs, volume, capsys):
    url = gcs.url()
    DicedStore(url).create_repo("r")
    words = ["ingest", url, "r", "em", volume, "--block-shape", "16"]
    assert main([*words, "--estimate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["commits"] == 4
    assert main([*words, "--estimate"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"about {told['requests']} requests, at most 2.")
    assert DicedStore(url).open_repo("r").list_instances() == []
    assert main(words) == 0
    assert shown.strip() in capsys.readouterr().err
    assert main([*words, "--estimate"]) == 0
    assert capsys.readouterr().out.startswith("about 0 requests")


def test_the_command_on_a_disk(tmp_path, volume, capsys):
    url = str(tmp_path / "x.diced")
    DicedStore(url).create_repo("r")
    assert main(["ingest", url, "r", "em", volume, "--estimate"]) == 0
    assert capsys.readouterr().out == "2 commits, at most 2.0 MiB\n"
    assert main(["ingest", url, "r", "em", volume]) == 0
    assert capsys.readouterr().err == ""
