"""Random schedules of writers on a bucket, each judged by the log it leaves.

``python -m tests.schedules --count 1000000 --seed 1``

A few processes commit to one lane and read it, with their requests in any order: see
`tests/scheduler.py`. Every written value says which operation wrote it and what that had read, so a
lost, repeated or torn commit, or one based on what had changed, shows in the log's fold.

Schedule number n is always the same. ``--one n`` runs one, with its trace. The last line is the
result; the exit status is 0 only if nothing was violated.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from plan import TOKEN, Content, Op, Plan
from scheduled import INJECTED, Bucket, Patched
from scheduler import Interrupted, Process

from diced import keys, log
from diced.combine import Combiner
from diced.errors import DicedException, EngineError, LockedError
from diced.home import Home
from diced.log import Entry, Record
from diced.segment import VALUE, Frame, frame_header
from diced.state import Base, Change, State, Touched
from diced.versioned import Lane

HOME, LANE, NODE = "r/0123456789abcdef", "00000000000000aa", "00000000000000bb"
PREFIX = keys.lane(HOME, LANE, NODE)
SPACE = 0


class Failure(NamedTuple):
    """What a schedule violated: `kind` is lost, duplicated, torn, stuck, stale or broken."""

    kind: str
    text: str


class Eager(Combiner):
    """Leaves proposals from the first change on, and never stops to."""

    _contended = property(lambda _self: math.inf, lambda _self, _until: None)


class Run:
    """One schedule.

    Parameters
    ----------
    seed : int
    patched : Patched
    """

    def __init__(self, seed: int, patched: Patched):
        self.plan = Plan(seed)
        self.told = str(self.plan)
        self.scheduler = self.plan.scheduler
        patched.use(self.scheduler, self.plan.tuned)
        self.ops = {op.number: op for _, _, w in self.plan.processes for ops in w for op in ops}
        self.lanes: dict[str, Lane] = {}
        self.acked: list[tuple[float, int]] = [(0.0, 0)]  # until when, up to which record
        self.own: Counter[str] = Counter()  # the last record that a process was told of
        self.counts: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.run()

    def lane(self, process: Process) -> Lane:
        """Return the lane as a process that has just begun opens it."""
        engine = Bucket(self.scheduler, process, self.plan.max_age)
        lane = Lane(Home(engine, HOME, 1 << 20), LANE, NODE, Base())
        lane._snapshot_records = self.plan.snapshots
        if self.plan.contended == "first":
            lane._committer._contended = math.inf  # type: ignore[union-attr]
        elif self.plan.contended:
            lane._committer = Eager(lane)
        return lane

    def run(self) -> None:
        """Run and judge."""
        tasks = []
        for process, begin, work in self.plan.processes:
            self.lanes[process.name] = self.lane(process)
            for i, ops in enumerate(work):
                task = self.scheduler.spawn(
                    process, f"{process.name}.{i}", lambda p=process, o=ops: self.work(p, o)
                )
                task.wake = begin
                tasks.append(task)
        self.scheduler.run()
        if self.scheduler.stuck:
            self.fail("stuck", self.scheduler.stuck)
        for task in [*tasks, *self.scheduler.aside]:
            if task.error is not None:
                self.fail("broken", f"{task.name}: {task.error!r}")
        Judge(self).judge()

    def fail(self, kind: str, text: str) -> None:
        """Note a violation."""
        self.failures.append(Failure(kind, text))

    # -- tasks -----------------------------------------------------------------------------

    def work(self, process: Process, ops: list[Op]) -> None:
        """Do one thread's operations, one after the other."""
        task = self.scheduler.current
        assert task is not None
        task.wake = 0.0
        for op in ops:
            op.began = self.scheduler.now
            self.scheduler.note("begins", repr(op))
            task.interruptible = True
            try:
                self.do(process, op)
            except (LockedError, EngineError, Interrupted) as error:
                op.fate = "locked" if isinstance(error, LockedError) else "failed"
                op.error = str(error)
                if isinstance(error, EngineError) and INJECTED not in op.error:
                    raise
            finally:
                task.interruptible = False
            op.ended = self.scheduler.now
            self.scheduler.note(f"{op.fate} {op.record} {op.error}", repr(op))

    def do(self, process: Process, op: Op) -> None:
        """Do one operation."""
        lane = self.lanes[process.name]
        if op.kind == "reopen":
            self.lanes[process.name] = self.lane(process)
            op.fate = "same"
        elif op.kind == "read":
            self.read(process, lane, op)
        elif op.kind == "lock":
            state = lane.lock(str(op.number))
            if not state.locked:
                self.fail("broken", f"{op} returned an open state {state.number}")
            op.record, op.fate = state.number, "acked"
        else:
            self.write(lane, op)
        if op.fate == "acked":
            self.acked.append((self.scheduler.now, max(self.acked[-1][1], op.record)))
            self.own[process.name] = max(self.own[process.name], op.record)

    def read(self, process: Process, lane: Lane, op: Op) -> None:
        """Read one state twice, with others going on meanwhile; `seen` tells what."""
        known = max(self.own[process.name], lane._state.number if lane._state is not None else 0)
        since = self.scheduler.now - self.plan.max_age
        least = max([known, *(number for when, number in self.acked if when < since)])
        state = lane.refresh()
        if state.number < least:
            self.fail("stale", f"{op} saw record {state.number}, {least} was acknowledged")
        for names in (op.reads, None):
            op.seen.append((state.number, names, self.contents(lane, state, names)))
            self.scheduler.point()
        op.record, op.fate = state.number, "same"

    def contents(self, lane: Lane, state: State, names: tuple[bytes, ...] | None) -> Content:
        """Return what some keys hold, or all."""
        if names is None:
            return {k: self.value(lane, k, e) for k, e in lane.scan(state, SPACE)}
        entries = zip(names, lane.get_many(state, SPACE, names), strict=True)
        return {name: self.value(lane, name, e) for name, e in entries if e is not None}

    def value(self, lane: Lane, key: bytes, entry: Entry) -> bytes:
        """Return what an entry holds or leads to."""
        if isinstance(entry, bytes):
            return entry
        frame: Frame = lane.home.read_frame(LANE, entry)
        if frame.key != key:
            self.fail("torn", f"{key!r} leads to a frame of {frame.key!r}")
        return bytes(frame.payload)

    def write(self, lane: Lane, op: Op) -> None:
        """Commit, as blocks and files do: what was not touched is not read again."""
        held: Content = {}

        def prepare(state: State, touched: Touched | None) -> Change | None:
            op.seen = []  # what it was with an older state is not the answer
            names = None if op.kind == "whole" else op.reads
            if touched is not None and names is not None:
                names = tuple(sorted(touched.get(SPACE, ())))
                for name in names:
                    held.pop(name, None)
            else:
                held.clear()
            held.update(self.contents(lane, state, names))
            if op.is_done(held):
                op.seen = [(state.number, op.reads, dict(held))]
                return None
            frames = lane.home.frames() if op.kind == "ride" else None
            delta: dict[bytes, Entry | None] = {}
            for key, value in op.changes(held).items():
                delta[key] = value
                if frames is not None and value is not None:
                    head = frame_header(VALUE, 0, 0, SPACE, lane.lane_bytes, key, len(value), value)
                    delta[key] = (*frames.append([head, value]), len(head) + len(value))
            reads = None if op.kind == "whole" else {SPACE: list(op.reads)}
            return Change({SPACE: delta}, reads, frames=frames)

        op.record = lane.commit(prepare, op=str(op.number), user="u")
        op.fate = "same" if op.seen else "acked"


class Judge:
    """What a run left in the bucket, held against what its callers were told."""

    def __init__(self, run: Run):
        self.run = run
        self.fail = run.fail
        self.lane = run.lane(Process("judge", False, 0.0))
        self.folds: list[Content] = [{}]
        self.where: dict[int, int] = {}
        self.txids: set[str] = set()
        self.ends: list[str] = []  # the txid of each record

    def judge(self) -> None:
        try:
            self.read_log()
            for op in self.run.ops.values():
                self.check(op)
            self.check_lanes()
        except DicedException as error:
            self.fail("broken", f"the log: {error!r}")

    def read_log(self) -> None:
        """Fold the log, checking each record."""
        names = sorted(key for key in self.run.scheduler.objects if f"/{keys.EPOCH}/" in key)
        locked = False
        for number, key in enumerate(names, 1):
            if key != keys.record(PREFIX, number):
                self.fail("broken", f"record {number} is missing")
                return
            record = self.lane.whole(self.lane.log.read(number))
            if locked:
                self.fail("broken", f"record {number} follows the lock")
            locked = record.type == log.LOCK
            self.ends.append(record.head["txid"])
            if locked:
                told, previous = record.head["txids"], record.head["previous"]
                if told != self.ends[previous:-1] or record.head["base"] != number - 1:
                    self.fail("broken", f"the lock {number} names other records")
                self.folds.append(self.folds[-1])
            else:
                self.folds.append(self.fold(number, record))
            heads = [each["txid"] for each in record.head.get("parts", ())] + self.ends[-1:]
            if not self.txids.isdisjoint(heads) or len(set(heads)) != len(heads):
                self.fail("duplicated", f"record {number} holds a transaction again")
            self.txids.update(heads)

    def fold(self, number: int, record: Record) -> Content:
        """Return what all keys hold after a record, and compare."""
        now = dict(self.folds[-1])
        written: dict[bytes, bytes | None] = {}
        heads = [each for each in record.commits() if each["op"] != "ask"]
        self.run.counts["commits"] += len(heads)
        self.run.counts["gathered"] += max(0, record.head.get("gathered", 0) - 1)
        self.run.counts["void"] += len(record.head.get("void", ()))
        self.run.counts["asked"] += "ask" in record.head
        for head in (record.head, *record.commits()):
            if not head["base"] < number:
                self.fail("broken", f"record {number} is based on {head['base']}")
        for head in heads:
            op = self.run.ops[int(head["op"])]
            if op.number in self.where:
                self.fail("duplicated", f"{op} is in records {self.where[op.number]} and {number}")
            self.where[op.number] = number
            changes = op.changes(now)
            written.update(changes)
            now.update({k: v for k, v in changes.items() if v is not None})
            for key in [key for key, value in changes.items() if value is None]:
                now.pop(key, None)
        delta = record.delta.get(SPACE, {})
        if delta.keys() != written.keys():
            self.fail("torn", f"record {number} writes {sorted(delta)}, not {sorted(written)}")
        for key, entry in delta.items():
            got = None if entry is None else self.run.value(self.lane, key, entry)
            if got != written.get(key):
                self.fail(
                    "lost", f"record {number}, {key!r}: {_told(got)}, not {_told(written.get(key))}"
                )
        return now

    def check(self, op: Op) -> None:
        """Compare what a caller was told with the log."""
        there = self.where.get(op.number)
        if op.fate == "acked":
            self.run.counts["acked"] += 1
            if op.kind != "lock" and there != op.record:
                self.fail("lost", f"{op} was acknowledged in record {op.record}, is in {there}")
        elif there is not None and op.fate in ("same", "locked"):
            self.fail("broken", f"{op} is in record {there}, its caller was told {op.fate}")
        if op.fate == "open" and not self.run.scheduler.deaths and not self.run.scheduler.stuck:
            self.fail("stuck", f"{op} has no end")
        if op.fate != "open" and (op.kind == "read" or op.fate == "same"):
            for number, names, seen in op.seen:
                fold = self.folds[number]
                wanted = {k: fold[k] for k in (fold if names is None else names) if k in fold}
                if seen != wanted:
                    self.fail("torn", f"{op} saw {seen} as of {number}, not {wanted}")

    def check_lanes(self) -> None:
        """Look with the eyes of the living, and of one who comes now."""
        living = [
            self.run.lanes[process.name]
            for process, _, _ in self.run.plan.processes
            if not process.dead
        ]
        for lane in [self.lane, *living]:
            state = lane.probe()
            if state.number != len(self.folds) - 1:
                last = len(self.folds) - 1
                self.fail("broken", f"a lane ends at {state.number}, the log at {last}")
            elif self.run.contents(lane, state, None) != self.folds[-1]:
                self.fail("torn", f"a lane does not hold the fold of records 1-{state.number}")


def _told(value: bytes | None) -> str:
    return str(value and [TOKEN.unpack_from(value, at)[0] for at in range(0, len(value), 4)])


TOTALS = ("schedules", "commits", "acked", "gathered", "deaths")
KINDS_OF_FAILURE = ("lost", "duplicated", "torn", "stuck", "stale", "broken")


def many(seeds: range, most: int = 3, show: bool = True) -> tuple[Counter[str], list[int]]:
    """Run schedules; return counts and the seeds that failed, `most` at most."""
    totals: Counter[str] = Counter()
    bad: list[int] = []
    with Patched() as patched:
        for seed in seeds:
            run = Run(seed, patched)
            totals["schedules"] += 1
            totals["deaths"] += run.scheduler.deaths
            totals["steps"] += run.scheduler.steps
            totals.update(run.counts)
            totals.update({kind for kind, _ in run.failures})
            if run.failures:
                bad.append(seed)
                if show:
                    print(report(seed, run), flush=True)
                if len(bad) == most:
                    break
    return totals, bad


def report(seed: int, run: Run) -> str:
    """Return what happened, a line per request."""
    lines = [f"schedule {seed}", run.told]
    lines += [f"{step:5} {now:9.3f} {who:6} {what:34} {key.replace(PREFIX + '/', '')}"
              for step, now, who, what, key in run.scheduler.trace[-1500:]]  # fmt: skip
    return "\n".join([*lines, *(f"{kind.upper()}: {text}" for kind, text in run.failures)])


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--one", type=int, help="run this one and print its trace")
    found = parser.parse_args(arguments)
    if found.one is not None:
        with Patched() as patched:
            run = Run(found.one, patched)
        print(report(found.one, run))
        return bool(run.failures)
    import multiprocessing

    began = time.monotonic()
    step = 500
    end = found.seed + found.count
    chunks = [range(at, min(at + step, end)) for at in range(found.seed, end, step)]
    totals: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(found.jobs) as workers:
        for i, (some, _) in enumerate(workers.imap(many, chunks)):
            totals.update(some)
            if i % 40 == 39:
                print(f"next --seed {chunks[i].stop}: {result(totals, began)}", flush=True)
    print(result(totals, began))
    return any(totals[kind] for kind in KINDS_OF_FAILURE)


def result(totals: Counter[str], began: float) -> str:
    """Return the last line."""
    told = [f"{name}={totals[name]}" for name in (*TOTALS, *KINDS_OF_FAILURE)]
    return " ".join([*told, f"seconds={time.monotonic() - began:.1f}"])


if __name__ == "__main__":
    sys.exit(main())
