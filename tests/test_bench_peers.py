"""The comparison with other stores: all operations run, and what is missing is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import diced

ROOT = Path(__file__).resolve().parents[1]

# None in sys.modules hides an installed package.
RUN = """
import sys
sys.modules["tensorstore"] = None
from benchmarks.peers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

PEERS = "machine,memmap,diced,diced-power,ts-zarr3-zstd1"


def test_tiny_run(tmp_path: Path) -> None:
    paths = [str(ROOT), str(Path(diced.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    options = {
        "--size": "tiny",
        "--rounds": "1",
        "--budget": "0.02",
        "--data": "em",
        "--peers": PEERS,
        "--out": str(tmp_path / "out"),
        "--scratch": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, *(word for pair in options.items() for word in pair)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "ts-zarr3-zstd1: left out, not installed: tensorstore" in done.stdout
    results = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert results["peers"]["ts-zarr3-zstd1"]["missing"] == "not installed: tensorstore"
    found = results["data"]["em"]
    assert found["errors"] == {}
    for op in results["settings"]["ops"]:
        rows = found["samples"][op]
        assert all(np.isfinite(rounds[0]).all() and rounds[0] for rounds in rows.values()), op
        if op in ("copy_fresh", "copy_warm", "pread"):
            assert set(rows) == {"machine"}
        elif op == "c_block_sync":
            assert set(rows) == {"memmap", "diced-power"}
            assert found["skipped"][op] == {"diced": "does not fsync"}
        else:
            assert rows.keys() - {"memmap", "diced-power"} == {"diced"}, op
    assert found["limits"]["r_full, share of a fresh copy's speed"]["median"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("diced-peers")] == []
