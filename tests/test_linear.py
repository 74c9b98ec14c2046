"""Concurrent histories are linearizable; and the checker that says so would notice if not.

Longer: ``python -m tests.linear --engine gcs --histories 2000 --seed 1``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import linear
import pytest
import recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import BLOCK, CELLS, EMPTY, Call, Log, Op, content, linearizable, paint

WHOLE = ((0, CELLS),)


def write(worker: int, value: int, start: int, end: int, *spans: tuple[int, int]) -> Op:
    return Op(worker, spans, value, start, end)


def read(worker: int, start: int, end: int, cells: Sequence[int], *spans: tuple[int, int]) -> Op:
    found = Op(worker, spans, 0, start, end)
    found.result = tuple(cells[i] for i in found.cells())
    return found


def log_of(*records: Sequence[Op]) -> Log:
    """The log in which records hold these writes."""
    log = Log()
    for ops in records:
        cells = log.folds[-1]
        for op in ops:
            cells = paint(cells, op)
        log.writes.append([op.value for op in ops])
        log.folds.append(cells)
    return log


A = write(0, 1, 0, 10, (0, 8))  # two whole blocks
B = write(1, 2, 20, 30, (2, 6))  # parts of both
C = write(2, 3, 25, 35, (4, 8), (12, 13))  # a whole block and a voxel; overlaps B in time
LOG = log_of([A], [B], [C])
S0, S1, S2, S3 = LOG.folds
GOOD = [
    read(3, 2, 8, S0, *WHOLE),
    read(3, 12, 18, S1, *WHOLE),
    read(3, 22, 28, S2, (0, 8)),
    read(3, 29, 33, S2, (0, 4)),
    read(4, 36, 40, S3, *WHOLE),
]


def kinds(ops: Sequence[Op], log: Log = LOG) -> set[str]:
    return {each.kind for each in linear.check(ops, log)}


def test_a_sound_history_passes() -> None:
    assert linear.check([A, B, C, *GOOD], LOG) == []


def test_a_stale_read() -> None:
    assert kinds([A, B, C, read(3, 12, 18, S0, (0, 4))]) == {"register", "stale"}
    assert kinds([A, B, C, read(3, 40, 41, S2, *WHOLE)]) == {"register", "stale"}


def test_a_stale_read_that_may_be() -> None:
    late = read(3, 12, 18, S0, (0, 4))
    late.age = 5
    assert kinds([A, B, C, late]) == set()
    late.age = 1
    assert kinds([A, B, C, late]) == {"stale"}
    late.age, late.worker = 5, 0  # its own write
    assert kinds([A, B, C, late]) == {"stale"}


def test_a_read_that_goes_back() -> None:
    ahead, behind = read(3, 20, 21, S2, (0, 4)), read(4, 23, 24, S1, (0, 4))
    assert kinds([A, B, C, ahead, behind]) == {"register", "back"}
    behind.age = 1
    assert kinds([A, B, C, ahead, behind]) == {"back"}
    behind.age = 5
    assert kinds([A, B, C, ahead, behind]) == set()
    behind.worker = 3
    assert kinds([A, B, C, ahead, behind]) == {"back"}


def test_two_blocks_that_go_back_in_turn() -> None:
    """Each block for itself is a fine register; no single record explains both reads."""
    x, y = write(0, 1, 0, 100, (0, 4)), write(1, 2, 0, 100, (4, 8))
    log = log_of([x], [y])
    one, two = read(2, 10, 20, log.folds[1], (0, 8)), read(3, 10, 20, paint(EMPTY, y), (0, 8))
    assert kinds([x, y, one, two], log) == {"torn"}
    apart = read(3, 10, 20, EMPTY, (0, 4)), read(3, 30, 40, paint(EMPTY, y), (4, 8))
    assert kinds([x, y, one, *apart], log) == set()
    apart = read(3, 30, 40, paint(EMPTY, y), (4, 8)), read(3, 50, 60, EMPTY, (0, 4))
    assert kinds([x, y, *apart], log) == {"back"}


def test_a_torn_read() -> None:
    mixed = (*S1[:4], *S2[4:])
    assert kinds([A, B, C, read(3, 22, 28, mixed, (0, 8))]) == {"torn"}
    inside = (*S1[:3], *S2[3:])
    assert kinds([A, B, C, read(3, 22, 28, inside, (0, 4))]) == {"register", "torn"}


def test_a_value_from_nowhere() -> None:
    cells = (*S1[:2], 77, *S1[3:])
    assert kinds([A, B, C, read(3, 12, 18, cells, (0, 4))]) == {"register", "torn"}


def test_a_value_from_the_future() -> None:
    assert kinds([A, B, C, read(3, 12, 18, S2, (0, 4))]) == {"register", "future"}


def test_a_lost_update() -> None:
    """Two partial writes merged with the same block: the second takes the first one back."""
    x, y = write(0, 1, 0, 30, (0, 2)), write(1, 2, 5, 35, (2, 4))
    log = log_of([x], [y])
    log.folds[2] = paint(EMPTY, y)
    assert kinds([x, y], log) == {"fold"}
    late = read(2, 40, 50, log.folds[2], (0, 4))
    assert kinds([x, y, late], log) == {"register", "fold"}
    assert kinds([x, y], log_of([y])) == {"lost"}


def test_logs_that_are_wrong() -> None:
    assert kinds([A, C], LOG) == {"unknown", "fold"}
    assert kinds([A, B, C], log_of([A], [B], [C], [A])) == {"twice"}
    assert kinds([A, B, C], log_of([B], [A], [C])) == {"order"}
    assert kinds([A, B, C], log_of([B, A], [C])) == {"order"}
    assert kinds([A, B, C], log_of([A], [C], [B])) == set()  # these overlap


def test_one_record_with_several_commits_is_one_step() -> None:
    log = log_of([A], [B, C])
    assert kinds([A, B, C, GOOD[0], GOOD[1], GOOD[4]], log) == set()
    assert kinds([A, B, C, GOOD[2]], log) == {"torn"}


def test_writes_that_raised() -> None:
    failed = write(0, 5, 20, 30, (0, 4))
    failed.acked = False
    log = log_of([A], [failed])
    seen, unseen = (read(3, start, 99, log.folds[n], (0, 4)) for n, start in ((2, 60), (1, 50)))
    assert kinds([A, failed], log_of([A])) == set()
    assert kinds([A, failed, seen], log) == set()
    assert kinds([A, failed, unseen, seen], log) == set()
    unseen.start, unseen.end = 61, 62
    seen.end = 60
    assert kinds([A, failed, seen, unseen], log) == {"register", "back"}
    assert kinds([A, failed, read(3, 12, 15, log.folds[2], (0, 4))], log) == {"register", "future"}


# -- the search against trying every order ---------------------------------------------------


def explained(calls: Sequence[Call]) -> bool:
    """Try every order of every choice of the calls that need not have happened."""
    must = [each for each in calls if each.end != math.inf]
    may = [each for each in calls if each.end == math.inf]
    for count in range(len(may) + 1):
        for chosen in itertools.combinations(may, count):
            for order in itertools.permutations([*must, *chosen]):
                if any(b.end < a.start for a, b in itertools.combinations(order, 2)):
                    continue
                cells = dict.fromkeys(range(BLOCK), 0)
                for each in order:
                    if each.writes:
                        cells.update(each.cells)
                    elif any(cells[cell] != value for cell, value in each.cells):
                        break
                else:
                    return True
    return False


@st.composite
def small_histories(draw: Callable[..., int]) -> list[Call]:
    calls = []
    masks = st.sampled_from([(0,), (0, 1), (1,)])
    values = [0]
    for number in range(1, draw(st.integers(2, 6)) + 1):
        start = draw(st.integers(0, 12))
        end = draw(st.integers(start + 1, 16))
        cells = draw(masks)
        if draw(st.booleans()):
            values.append(number)
            stop = math.inf if draw(st.integers(0, 4)) == 0 else end
            calls.append(Call(start, stop, True, tuple((c, number) for c in cells)))
        else:
            found = tuple((c, draw(st.sampled_from(values))) for c in cells)
            calls.append(Call(start, end, False, found))
    return calls


@settings(max_examples=400, deadline=None)
@given(small_histories())
def test_the_search_agrees_with_trying_every_order(calls: list[Call]) -> None:
    assert linearizable(calls) == explained(calls)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_history_is_checked_quickly_enough(seed: int) -> None:
    """Eight workers, each call at one moment; then one read is given an older value."""
    rng = random.Random(seed)
    clock = [0] * 8
    spans = []
    for number in range(1, 151):
        worker = rng.randrange(8)
        start = clock[worker] + rng.randrange(5)
        clock[worker] = end = start + rng.randrange(2, 60)
        spans.append((rng.randrange(start + 1, end), start, end, number))
    cells = dict.fromkeys(range(BLOCK), 0)
    calls, values = [], [0]
    for _, start, end, number in sorted(spans):
        if rng.random() < 0.5:
            chosen = rng.choice([(0, 1, 2, 3), (0, 1), (2,)])
            cells.update({c: content(number, c) for c in chosen})
            calls.append(Call(start, end, True, tuple((c, cells[c]) for c in chosen)))
            values.append(cells[0])
        else:
            calls.append(Call(start, end, False, tuple(cells.items())))
    assert linearizable(calls)
    last = max(i for i, each in enumerate(calls) if not each.writes)
    calls[last] = calls[last]._replace(cells=((0, values[1]), *calls[last].cells[1:]))
    assert not linearizable(calls)


# -- histories -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["memory", "local"])
def test_recorded_histories(engine: str) -> None:
    with recorder.Run(engine) as run:
        found = recorder.check_histories(run, 20, seed=11)
    assert found["histories"] == 20 and found["records"] > 100
    assert found["errors"] == found["violations"] == 0


def test_recorded_histories_on_a_bucket(gcs: Any) -> None:
    with recorder.Run("gcs", gcs, faults=False, calls=12) as run:
        found = recorder.check_histories(run, 6, seed=12)
    assert found["histories"] == 6 and found["records"] > 30
    assert found["errors"] == found["violations"] == 0


def test_recorded_histories_while_requests_fail(gcs: Any) -> None:
    with recorder.Run("gcs", gcs, calls=12) as run:
        found = run.chunk("13", 3, number=1)  # every fourth chunk has faults
    assert found["histories"] == 3
    assert found["errors"] == found["violations"] == 0
