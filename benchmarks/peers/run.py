"""The rounds: every operation by every peer, one after the other, in an order that rotates."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from benchmarks.peers.adapters import make
from benchmarks.peers.bench import Task, load
from benchmarks.peers.data import SHAPES, volume
from benchmarks.peers.ops import OPS, applies, units
from benchmarks.peers.worker import serve

OVERWRITES = {"full": 1000, "small": 200, "tiny": 20}
VERSIONS = {"full": 100, "small": 100, "tiny": 10}
PATIENCE = 900  # seconds for one turn, the first of which makes the peer's arrays

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run."""

    peers: Sequence[str]
    data: Sequence[str]
    ops: Sequence[str]
    rounds: int
    size: str
    threads: int
    budget: float
    scratch: str


class Worker:
    """A peer's process, from this side."""

    def __init__(self, task: Task):
        context = multiprocessing.get_context("spawn")
        self.name = task.peer
        self.root = task.root
        os.makedirs(task.root)
        self.conn: Connection
        self.process: BaseProcess
        self.conn, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(task, theirs), name=task.peer)
        self.process.start()
        theirs.close()
        self.dead = ""
        self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer; a process that died or hangs is an error from then on."""
        try:
            if self.conn.poll(PATIENCE):
                return self.conn.recv()  # type: ignore[no-any-return]
            self.process.kill()
            self.dead = f"no answer for {PATIENCE} s"
        except EOFError:
            self.process.join(5)
            self.dead = f"its process ended with {self.process.exitcode}"
        return {"error": self.dead}

    def turn(self, op: str, number: int) -> dict[str, Any]:
        """Do one operation's samples of one round."""
        with contextlib.suppress(BrokenPipeError):  # answer() says how it ended
            self.conn.send((op, number))
        return self.answer()

    def close(self) -> None:
        """End the process and remove its files."""
        if not self.dead:
            self.conn.send(None)
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.conn.close()
        shutil.rmtree(self.root, ignore_errors=True)


def run(plan: Plan, save: Callable[[Results], None]) -> Results:
    """Measure, and call `save` with what there is after every round.

    Returns
    -------
    dict
        ``machine``, ``settings``, ``peers`` (settings, versions or why it is missing) and, per
        data set, ``samples[series][peer]``: a list per round, empty where there is none.
    """
    results: Results = {
        "machine": _machine(),
        "settings": {
            **dataclasses.asdict(plan),
            "chunks": [64, 64, 64],
            "command": sys.argv[1:],
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "what": {op: OPS[op].what for op in plan.ops},
            "samples": "seconds per call (or bytes, files); smaller is better",
        },
        "peers": {},
        "data": {},
    }
    for name in plan.peers:
        peer = make(name, False, plan.threads)
        missing = peer.available()
        results["peers"][name] = {
            "kind": peer.kind,
            "missing": missing,
            "fsync": peer.fsync,
            "versions": {} if missing else peer.versions(),
            "settings": {data: make(name, data == "labels", plan.threads).settings
                         for data in plan.data if data in peer.data},
        }  # fmt: skip
        if missing:
            _say(f"{name}: left out, {missing}")
    for data in plan.data:
        _one_volume(plan, data, results, save)
    results["settings"]["ended"] = time.strftime("%Y-%m-%d %H:%M:%S")
    save(results)
    return results


def _one_volume(plan: Plan, data: str, results: Results, save: Callable[[Results], None]) -> None:
    path, source = volume(data, plan.size)
    load(path)  # into the page cache
    series = {name: unit for op in plan.ops for name, unit in units(op).items()}
    found: dict[str, Any] = {
        "shape": SHAPES[data][plan.size],
        "source": source,
        "units": series,
        "load": [],
        "samples": {name: {} for name in series},
        "skipped": {},
        "errors": {},
    }
    results["data"][data] = found
    names = [
        name
        for name, each in results["peers"].items()
        if not each["missing"] and data in each["settings"]
    ]
    root = pathlib.Path(plan.scratch) / data
    workers = {}
    try:
        for name in names:
            task = Task(
                peer=name,
                data=data,
                path=str(path),
                root=str(root / name),
                threads=plan.threads,
                budget=plan.budget,
                overwrites=OVERWRITES[plan.size],
                versions=VERSIONS[plan.size],
            )
            workers[name] = Worker(task)
        for number in range(plan.rounds):
            shift = number % len(names) if names else 0
            turns = names[shift:] + names[:shift]
            for op in plan.ops:
                if number == 0 or not OPS[op].once:
                    _one_op(op, number, [workers[name] for name in turns], found)
            found["load"].append(os.getloadavg())
            save(results)
            _say(f"{data}: round {number + 1} of {plan.rounds} done")
    finally:
        for worker in workers.values():
            worker.close()
        shutil.rmtree(root, ignore_errors=True)


def _one_op(op: str, number: int, workers: Sequence[Worker], found: dict[str, Any]) -> None:
    started = time.perf_counter()
    for worker in workers:
        name = worker.name
        if not applies(op, make(name, False, 1).ops):
            continue
        if worker.dead or name in found["skipped"].get(op, {}):
            continue
        answer = worker.turn(op, number)
        if "skip" in answer:
            found["skipped"].setdefault(op, {})[name] = answer["skip"]
        elif "error" in answer:
            errors = found["errors"].setdefault(name, [])
            errors.append(f"{op}, round {number + 1}: {answer['error']}")
            _say(f"{name}: {errors[-1]}")
        for series, samples in answer.get("series", {}).items():
            rounds = found["samples"][series].setdefault(name, [])
            rounds += [[] for _ in range(number + 1 - len(rounds))]
            rounds[number] = samples
        if OPS[op].writes or number == 0:
            os.sync()  # so that nobody waits for this peer's dirty pages
    _say(f"  {op}: {time.perf_counter() - started:.1f} s")


def _machine() -> dict[str, Any]:
    model = ""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        model = next((each.split(":")[1].strip() for each in lines if "model name" in each), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processors": os.cpu_count(),
        "processor": model,
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
