"""Commits on a bucket hold whatever the order of requests.

Longer: ``python -m tests.schedules --count 1000000 --seed 1``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import plan
import pytest
import scheduled
import schedules

COUNT, CHUNK = 20_000, 500


@pytest.mark.parametrize("first", range(0, COUNT, CHUNK))
def test_no_schedule_loses_repeats_or_tears_a_commit(first: int) -> None:
    totals, bad = schedules.many(range(first, first + CHUNK), most=1)
    assert not bad, f"see above, or: python -m tests.schedules --one {bad[0]}"
    # Else nothing was tested.
    assert totals["schedules"] == CHUNK
    assert totals["acked"] > CHUNK
    assert min(totals[each] for each in ("gathered", "void", "deaths")) > CHUNK // 10


def traces(seeds: range) -> int:
    """What happened in some schedules, as one number."""
    with scheduled.Patched() as patched:
        runs = [schedules.Run(seed, patched) for seed in seeds]
    return plan.crc32(repr([run.scheduler.trace for run in runs]).encode())


def test_a_seed_is_always_the_same_schedule() -> None:
    code = "import test_schedules as t; print(t.traces(range(60)))"
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), *filter(None, sys.path)])
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "17", "PYTHONPATH": paths},
    )  # fmt: skip
    assert traces(range(60)) == traces(range(60)) == int(other.stdout)
