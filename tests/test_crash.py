"""A hundred kills; the full count is ``python -m tests.crash.run --kills 2000``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from crash import run


@pytest.mark.parametrize("durability", ["process", "power"])
def test_nothing_acknowledged_is_lost_to_kills(tmp_path: Path, durability: str) -> None:
    found = run.crash(50, seed=7, reads=3000, durability=durability, root=tmp_path)
    assert found["kills"] == 50
    # How much the writers got done before they died depends on the machine.
    assert found["acked"] > 0 and found["reads"] >= 3000 and found["seen"] > 0
    assert {name: found[name] for name in run.ERRORS} == dict.fromkeys(run.ERRORS, 0)


def test_nothing_acknowledged_is_lost_to_kills_over_a_faulty_bucket(
    tmp_path: Path, gcs: Any
) -> None:
    found = run.crash(20, seed=8, reads=50, durability="power", root=tmp_path, server=gcs)
    assert found["kills"] == 20
    assert found["acked"] > 0 and found["reads"] >= 50 and found["seen"] > 0
    assert {name: found[name] for name in run.ERRORS} == dict.fromkeys(run.ERRORS, 0)


def test_one_block_under_contention(tmp_path: Path) -> None:
    assert run.contention(8, 60, tmp_path) == 0
