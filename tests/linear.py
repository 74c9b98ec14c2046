"""Histories of concurrent reads and writes, recorded and judged.

``python -m tests.linear --engine gcs --histories 2000 --seed 1``

Threads of several processes write and read a few blocks: whole blocks, parts of blocks, several
blocks at a time. Every write leaves values that no other write leaves. Each history is judged
twice: by what the callers saw alone (is every block a linearizable register?) and against the
commit log (is every read the fold of the log at one record, not too old and not from the future?).

The last line is the result; the exit status is 0 only if nothing was violated. `tests/recorder.py`
makes the histories; here they are checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 4
BLOCKS = 6
CELLS = BLOCK * BLOCKS
EMPTY = (0,) * CELLS

Cells = tuple[int, ...]


@dataclass
class Op:
    """One call and what came of it.

    Attributes
    ----------
    worker : int
    spans : tuple of (int, int)
        Cells ``first <= cell < end``, written in one commit or read by one call.
    value : int
        Of a write, the number that no other write of the history has; 0 for a read.
    start, end : int
        Nanoseconds of the system's monotonic clock, before and after the call.
    acked : bool
        False when the call raised: a write may then have happened, now or later.
    result : tuple of int
        Cells read, span after span.
    age : int
        Nanoseconds by which a read may be behind.
    """

    worker: int
    spans: tuple[tuple[int, int], ...]
    value: int = 0
    start: int = 0
    end: int = 0
    acked: bool = True
    result: Cells = ()
    age: int = 0

    def cells(self) -> list[int]:
        return [cell for first, end in self.spans for cell in range(first, end)]


def content(value: int, cell: int) -> int:
    """What a write leaves in a cell: of half the writes the same everywhere, else noise."""
    return value * 64 + (cell if value % 2 else 63)


def paint(cells: Cells, op: Op) -> Cells:
    """The cells after a write."""
    after = list(cells)
    for cell in op.cells():
        after[cell] = content(op.value, cell)
    return tuple(after)


class Violation(NamedTuple):
    """What is wrong with a history.

    Kinds: register (no order of the calls explains what one block's readers saw); lost, twice,
    unknown, order, fold (the log lacks a write that was acknowledged, holds one twice, holds one
    nobody began, puts one before another that had ended when it began, or says something else than
    its writes in order make); torn, stale, back, future (a read that is the fold at no record, at
    too old a one only, older than an earlier read, newer than what had begun).
    """

    kind: str
    text: str


# -- what the callers saw ------------------------------------------------------------------


class Call(NamedTuple):
    """One operation on one block: cells it writes or must find, with their values."""

    start: float
    end: float
    writes: bool
    cells: tuple[tuple[int, int], ...]


def calls_of(ops: Iterable[Op], block: int) -> list[Call]:
    """Project operations on a block.

    Writes that raised have no end. Those whose values no reader saw are left out: without them the
    readers would have seen the same.
    """
    low, high = block * BLOCK, (block + 1) * BLOCK
    calls, open_calls = [], []
    seen: set[int] = set()
    for op in ops:
        found = op.cells()
        if op.value:
            pairs = tuple((c - low, content(op.value, c)) for c in found if low <= c < high)
        else:
            if not op.acked or op.age:
                continue
            pairs = tuple(
                (c - low, v) for c, v in zip(found, op.result, strict=True) if low <= c < high
            )
            seen.update(value for _, value in pairs)
        if not pairs:
            continue
        if op.acked:
            calls.append(Call(op.start, op.end, bool(op.value), pairs))
        else:
            open_calls.append(Call(op.start, math.inf, True, pairs))
    return calls + [each for each in open_calls if seen.intersection(v for _, v in each.cells)]


def linearizable(calls: Sequence[Call], initial: Sequence[int] = (0,) * BLOCK) -> bool:
    """Tell whether calls on one block have an order that explains them and respects time.

    Wing and Gong's search in Lowe's form: follow time, and keep every configuration that is
    possible, a configuration being the block's cells and which of the calls under way have taken
    effect. A set keeps each once. Calls take effect no sooner than some call's end demands it,
    except reads, which take effect as soon as the block is what they found: that forbids nothing.
    """
    events = [(each.start, 0, i) for i, each in enumerate(calls)]
    events += [(each.end, 1, i) for i, each in enumerate(calls) if each.end != math.inf]
    events.sort()
    reads: set[int] = set()  # under way
    writes: set[int] = set()

    def absorb(cells: Cells, done: frozenset[int]) -> tuple[Cells, frozenset[int]]:
        matching = [
            i
            for i in reads
            if i not in done and all(cells[cell] == value for cell, value in calls[i].cells)
        ]
        return cells, done.union(matching) if matching else done

    known = {(tuple(initial), frozenset[int]())}
    for _, ends, number in events:
        if not ends:
            (writes if calls[number].writes else reads).add(number)
            if not calls[number].writes:
                known = {absorb(*each) for each in known}
            continue
        kept = set()
        todo = list(known)
        visited = set(known)
        while todo:
            cells, done = todo.pop()
            if number in done:
                kept.add((cells, done - {number}))
                continue
            for i in writes - done:
                after = list(cells)
                for cell, value in calls[i].cells:
                    after[cell] = value
                found = absorb(tuple(after), done | {i})
                if found not in visited:
                    visited.add(found)
                    todo.append(found)
        known = kept
        if not known:
            return False
        reads.discard(number)
        writes.discard(number)
    return True


def check_registers(ops: Sequence[Op]) -> list[Violation]:
    """Check every block by itself, from what the callers saw alone."""
    return [
        Violation("register", f"block {block}: no order explains what was read")
        for block in range(BLOCKS)
        if not linearizable(calls_of(ops, block))
    ]


# -- what the log says ---------------------------------------------------------------------


@dataclass
class Log:
    """A commit log: the writes of record 1, 2, ... in order, and the cells after each record.

    A record that gathered several commits is one step: readers see all of them or none.
    """

    writes: list[list[int]] = field(default_factory=list)
    folds: list[Cells] = field(default_factory=lambda: [EMPTY])


def check_log(ops: Sequence[Op], log: Log) -> list[Violation]:
    """Compare the log with the writes: each once, in an order that respects time, and no other."""
    found = []
    begun = {op.value: op for op in ops if op.value}
    places: dict[int, tuple[int, int]] = {}
    for number, values in enumerate(log.writes, 1):
        cells = log.folds[number - 1]
        for i, value in enumerate(values):
            if value not in begun:
                found.append(Violation("unknown", f"record {number} has {value}"))
                continue
            if value in places:
                found.append(Violation("twice", f"{value}: records {places[value][0]}, {number}"))
            places.setdefault(value, (number, i))
            cells = paint(cells, begun[value])
        if cells != log.folds[number]:
            wrong = [i for i in range(CELLS) if cells[i] != log.folds[number][i]]
            found.append(Violation("fold", f"record {number} ({values}): cells {wrong}"))
    for value, op in begun.items():
        if op.acked and value not in places:
            found.append(Violation("lost", f"{value} was acknowledged"))
    ended = sorted(
        (op.end, *places[value]) for value, op in begun.items() if op.acked and value in places
    )
    latest, at = (0, -1), 0
    for op in sorted((begun[value] for value in places), key=lambda each: each.start):
        while at < len(ended) and ended[at][0] < op.start:
            latest = max(latest, ended[at][1:])
            at += 1
        if places[op.value] <= latest:
            found.append(Violation("order", f"{op.value} at {places[op.value]}, after {latest}"))
    return found


def check_reads(ops: Sequence[Op], log: Log) -> list[Violation]:
    """Check that every read is the fold at one record.

    Not older than what was acknowledged, or read, before it began (`age` before it began, but what
    the same worker wrote or read always counts), and not newer than what had begun when it ended.
    Each read is put at the first record that fits, in order of their beginnings: that leaves the
    later ones the most room.
    """
    found = []
    place = {value: n for n, values in enumerate(log.writes, 1) for value in values}
    writes = [op for op in ops if op.value and op.value in place]
    beginnings = sorted((op.start, place[op.value]) for op in writes)
    # The first record of a write that began after a time: the least over a tail of beginnings.
    least = math.inf
    for i in range(len(beginnings) - 1, -1, -1):
        least = min(least, beginnings[i][1])
        beginnings[i] = (beginnings[i][0], least)
    before = [(op.end, place[op.value], op.worker, "stale") for op in writes if op.acked]
    for op in sorted((op for op in ops if not op.value and op.acked), key=lambda each: each.start):
        low, why = 0, "stale"
        for end, number, worker, kind in before:
            allowed = 0 if worker == op.worker else op.age
            if number > low and end < op.start - allowed:
                low, why = number, kind
        high = next((number for start, number in beginnings if start > op.end), math.inf)
        cells = op.cells()
        fits = [
            number
            for number, fold in enumerate(log.folds)
            if all(fold[cell] == value for cell, value in zip(cells, op.result, strict=True))
        ]
        chosen = next((number for number in fits if low <= number < high), None)
        if chosen is not None:
            before.append((op.end, chosen, op.worker, "back"))
            continue
        kind = "torn" if not fits else why if fits[-1] < low else "future"
        found.append(
            Violation(kind, f"worker {op.worker} read {op.spans}: fits {fits[-3:]}, {low}..{high}")
        )
    return found


def check(ops: Sequence[Op], log: Log) -> list[Violation]:
    """Everything that is wrong with a history."""
    return [*check_registers(ops), *check_log(ops, log), *check_reads(ops, log)]


if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from recorder import main

    sys.exit(main())
