"""Kill writers and check what was acknowledged: ``python -m tests.crash.run --kills 2000 --seed 1``

The run is cut into chunks of 250 kills, each with a store and a seed of its own, alternating
between the two durabilities; ``--state FILE`` remembers finished chunks, so that a stopped run goes
on. ``--contention`` instead lets 16 processes write 500 times each to voxels of one block.

The last line is the result; the exit status is 0 only if every count of errors is 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from diced import DicedRepo, DicedStore, fsck

from . import writers
from .writers import BEGUN, DONE, FLAGS, HIGH, LOW, MESSAGE, OWNED, READY, SIZE, WRITERS, Op

CHUNK = 250
ERRORS = ("lost", "half", "stale", "mixed", "foreign", "stuck", "damaged")
WINDOW = (slice(LOW, HIGH),) * 3


def processes() -> Any:
    """Processes forked from a clean server that has imported diced: a restart costs 10 ms."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([writers.__name__])
    return context


class Model:
    """What acknowledged operations made of the voxels and files that writers own."""

    def __init__(self) -> None:
        self.arrays = {name: np.zeros((SIZE,) * 3, np.int64) for name in OWNED}
        self.files: dict[str, bytes] = {}

    def apply(self, op: Op) -> None:
        if op.array == "files":
            for name, data in op.files.items():
                if data is None:
                    self.files.pop(name, None)
                else:
                    self.files[name] = data
        elif op.array in OWNED:
            paint(self.arrays[op.array], op)


def paint(voxels: np.ndarray, op: Op) -> None:
    """Apply an operation's assignments to a whole window."""
    for index, value in op.boxes:
        voxels[
            tuple(
                slice(i.start - LOW, i.stop - LOW, i.step) if isinstance(i, slice) else i - LOW
                for i in index
            )
        ] = value


def planes_of(array: str, writer: int) -> tuple[slice, ...]:
    """Index, into a window, of the planes that a writer owns."""
    index = [slice(None)] * 3
    index[OWNED[array]] = slice((writer - LOW) % WRITERS, None, WRITERS)
    return tuple(index)


class Writer:
    """The parent's side of one writer."""

    def __init__(self, number: int):
        self.number = number
        self.next = 0  # first operation of the next incarnation
        self.begun: Op | None = None  # begun and not acknowledged
        self.process: Any = None
        self.pipe: Any = None
        self.deadline = 0.0
        self.buffer = b""


class Chunk:
    """One store, its writers, its watcher, and the model of what must be in it."""

    def __init__(self, seed: int, kills: int, reads: int, durability: str, count: int, root: Path):
        self.seed, self.kills, self.reads = seed, kills, reads
        self.durability = durability
        self.root = root
        self.location = str(root / "store")
        self.random = random.Random(seed)
        self.context = processes()
        self.model = Model()
        self.writers = [Writer(i) for i in range(count)]
        self.found: Counter[str] = Counter()
        self.flags_begun: dict[str, set[int]] = {name: set() for name in FLAGS}
        self.flags_done: dict[str, list[int]] = {name: [] for name in FLAGS}
        self.notes: list[str] = []

    # -- running ---------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        writers.make_store(self.location, self.durability).close()
        for name in ("slots", "log"):
            (self.root / name).write_bytes(bytes(8 * len(FLAGS) * WRITERS * (name == "slots")))
        self.store = DicedStore(self.location, readonly=True)
        self.repo = self.store.open_repo(writers.REPO)
        watcher = self.context.Process(
            target=writers.watch,
            args=(
                self.location,
                *(str(self.root / n) for n in ("slots", "stop", "log")),
                self.reads,
            ),
        )
        watcher.start()
        try:
            for each in self.writers:
                self.start(each)
            while watcher.is_alive():
                self.step()
                if self.found["kills"] >= self.kills:
                    (self.root / "stop").touch()
        finally:
            for each in self.writers:
                self.stop(each)
            watcher.kill() if watcher.exitcode is None else None
            watcher.join()
        if watcher.exitcode:
            self.wrong("stuck", f"the watcher ended with {watcher.exitcode}")
        self.after_all_died()
        self.check_all("at the end")
        self.check_flags()
        self.check_structure()
        self.store.close()
        return self.found

    def start(self, writer: Writer, limit: int | None = None) -> None:
        writer.pipe, there = self.context.Pipe(duplex=False)
        os.set_blocking(writer.pipe.fileno(), False)
        writer.process = self.context.Process(
            target=writers.write,
            args=(self.location, self.durability, str(self.root / "slots"), there, self.seed,
                  writer.number, writer.next, limit, self.random.choice([16, 64, 1024])),
        )  # fmt: skip
        writer.process.start()
        there.close()
        writer.deadline = time.monotonic() + self.random.uniform(0.005, 0.5)

    def step(self) -> None:
        """Take messages until the next deadline, and kill the writer whose it is."""
        first = min(self.writers, key=lambda each: each.deadline)
        wait = max(0.0, first.deadline - time.monotonic())
        if self.found["kills"] >= self.kills:
            wait = 0.1
        ready, _, _ = select.select([each.pipe for each in self.writers], [], [], wait)
        for each in self.writers:
            if each.pipe in ready and not self.drain(each):
                raise RuntimeError(f"writer {each.number} died by itself")
        if self.found["kills"] < self.kills and time.monotonic() >= first.deadline:
            self.stop(first)
            self.found["kills"] += 1
            self.settle(first)
            self.start(first)

    def stop(self, writer: Writer) -> None:
        """Kill a writer and take its last messages."""
        writer.process.kill()
        writer.process.join()
        if writer.process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"writer {writer.number} ended with {writer.process.exitcode}")
        while self.drain(writer):
            pass
        writer.pipe.close()

    def drain(self, writer: Writer) -> bool:
        """Take the messages that are there; False at the end of the pipe."""
        try:
            data = os.read(writer.pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        writer.buffer += data
        whole = len(writer.buffer) // MESSAGE.size * MESSAGE.size
        for kind, number in MESSAGE.iter_unpack(writer.buffer[:whole]):
            self.take(writer, kind, number)
        writer.buffer = writer.buffer[whole:]
        return bool(data)

    def take(self, writer: Writer, kind: int, number: int) -> None:
        if kind == READY:
            return
        if kind == BEGUN:
            writer.begun = op = Op(self.seed, writer.number, number)
            writer.next = number + 1
            if op.array in FLAGS:
                self.flags_begun[op.array].add(op.value)
        elif kind == DONE:
            op = writer.begun
            assert op is not None and op.value == writers.value_of(writer.number, number)
            self.model.apply(op)
            writer.begun = None
            self.found["acked"] += 1
            if op.array in FLAGS:
                self.flags_done[op.array].append(op.value)

    # -- checking --------------------------------------------------------------------------

    def wrong(self, kind: str, what: str) -> None:
        self.found[kind] += 1
        self.notes.append(f"{kind}: {what}")
        print(f"  seed {self.seed}: {kind}: {what}", flush=True)

    def settle(self, writer: Writer) -> None:
        """Find out whether a dead writer's last operation happened: wholly, or not at all."""
        op, writer.begun = writer.begun, None
        if op is not None:
            self.found["unacked"] += 1
            if op.array in OWNED:
                self.settle_array(writer, op)
            elif op.array == "files":
                self.settle_files(op)
        other = self.random.choice([name for name in OWNED if op is None or name != op.array])
        mine = planes_of(other, writer.number)
        if (self.read(self.repo, other)[mine] != self.model.arrays[other][mine]).any():
            self.wrong("lost", f"writer {writer.number} in {other!r}")

    def read(self, repo: DicedRepo, name: str) -> np.ndarray:
        return np.asarray(repo[name][WINDOW]).astype(np.int64)

    def settle_array(self, writer: Writer, op: Op) -> None:
        mine = planes_of(op.array, writer.number)
        got = self.read(self.repo, op.array)[mine]
        before = self.model.arrays[op.array]
        after = before.copy()
        paint(after, op)
        if (got == after[mine]).all():
            self.model.apply(op)
            self.found["kept"] += 1
        elif (got != before[mine]).any():
            inside = (after != before)[mine]
            if (got != before[mine])[~inside].any():
                self.wrong("lost", f"writer {writer.number} in {op.array!r}")
            else:
                self.wrong("half", f"operation {op.value} in {op.array!r}")

    def settle_files(self, op: Op) -> None:
        got = {name: self.repo.files.get(name) for name in op.files}
        if got == op.files:
            self.model.apply(op)
            self.found["kept"] += 1
        elif got != {name: self.model.files.get(name) for name in op.files}:
            self.wrong("half", f"files of operation {op.value}")

    def after_all_died(self) -> None:
        """Nothing outlives a SIGKILL: a fresh writer gets through, in every array and the files."""
        for each in self.writers:
            self.settle(each)
        fresh = self.writers[0]
        began = time.monotonic()
        self.start(fresh, fresh.next + 40)
        while self.drain(fresh) and time.monotonic() < began + 60:
            select.select([fresh.pipe], [], [], 0.1)
        fresh.process.join(10)
        self.found["fresh_ms"] = round(1000 * (time.monotonic() - began))
        if fresh.process.exitcode != 0:
            self.wrong("stuck", f"a fresh writer ended with {fresh.process.exitcode}")
            self.stop(fresh) if fresh.process.exitcode is None else None

    def check_all(self, when: str) -> None:
        """Compare everything that writers own, through a store object made now."""
        with DicedStore(self.location, readonly=True) as store:
            repo = store.open_repo(writers.REPO)
            for name, wanted in self.model.arrays.items():
                wrong = int((self.read(repo, name) != wanted).sum())
                if wrong:
                    self.wrong("lost", f"{wrong} voxels of {name!r} {when}")
            if dict(repo.files.items()) != self.model.files:
                self.wrong("lost", f"files {when}")

    def check_flags(self) -> None:
        """Compare what the watcher read with the order of the commit log."""
        for name, rows in zip(FLAGS, writers.read_rows(str(self.root / "log")), strict=True):
            order = [int(each["operation"]) for each in self.repo.operations(name)]
            place = {0: -1, **{value: i for i, value in enumerate(order)}}
            if len(place) != len(order) + 1 or not set(order) <= self.flags_begun[name]:
                self.wrong("foreign", f"{name!r}: the log holds a commit twice, or an unknown one")
            lost = [value for value in self.flags_done[name] if value not in place]
            if lost:
                self.wrong("lost", f"{name!r}: acknowledged {lost[:5]} are not in the log")
            final = np.unique(self.repo[name][FLAGS[name]])
            if final.tolist() != order[-1:]:
                self.wrong("half", f"{name!r} ends as {final.tolist()}, the log with {order[-1:]}")
            self.found["reads"] += len(rows)
            mixed = rows[:, 0] != rows[:, 1]
            self.found["mixed"] += int(mixed.sum())
            rows = rows[~mixed]
            if not len(rows):
                continue
            lookup = np.vectorize(lambda value, place=place: place.get(value, -2), otypes=[int])
            got, known = lookup(rows[:, 0]), lookup(rows[:, 2:]).max(axis=1)
            back = np.diff(got, prepend=-1) < 0
            self.found["stale"] += int(((got < known) | back).sum())
            self.found["seen"] += len(np.unique(got))

    def check_structure(self) -> None:
        """Check the store's files before and after its version is locked."""
        self.found["fsck"] += self.fsck()
        with DicedStore(self.location, durability=self.durability) as store:
            store.open_repo(writers.REPO).lock_node("end")
        self.check_all("after the lock")
        self.found["fsck"] += self.fsck()

    def fsck(self) -> int:
        """Check every byte; return 1."""
        with DicedStore(self.location, readonly=True) as store:
            report = fsck.check(store, full=True)
        if not report.ok:  # warnings are of space that the killed left unused
            errors = [str(each) for each in report.problems if each.severity == "error"]
            self.wrong("damaged", "; ".join(errors)[:2000])
        return 1


def summary(total: Counter[str]) -> str:
    """The last line of a run."""
    fsck = "damaged" if total["damaged"] else "clean" if total["fsck"] else "not-run"
    counts = " ".join(f"{name}={total[name]}" for name in ERRORS if name != "damaged")
    return (
        f"kills={total['kills']} acked={total['acked']} unacked={total['unacked']}"
        f" kept={total['kept']} reads={total['reads']} seen={total['seen']} {counts} fsck={fsck}"
    )


def crash(
    kills: int,
    seed: int,
    *,
    count: int = WRITERS,
    reads: int = 100_000,
    durability: str = "both",
    state: Path | None = None,
    root: Path | None = None,
) -> Counter[str]:
    """Run chunks until there were `kills` kills; return the counts."""
    key = f"{seed}/{kills}/{count}/{reads}/{durability}"
    known = json.loads(state.read_text()) if state is not None and state.exists() else {}
    chunks = known.setdefault(key, {})
    total: Counter[str] = Counter()
    parts = -(-kills // CHUNK)
    for i in range(parts):
        if str(i) not in chunks:
            level = durability if durability != "both" else ("process", "power")[i % 2]
            folder = Path(tempfile.mkdtemp(prefix="diced-crash-", dir=root))
            began = time.monotonic()
            chunk = Chunk(
                seed * 10_000 + i, min(CHUNK, kills - i * CHUNK), -(-reads // parts), level, count,
                folder,
            )  # fmt: skip
            found = chunk.run()
            print(f"chunk {i} {level} {time.monotonic() - began:.0f} s:", dict(found), flush=True)
            if any(found[each] for each in ERRORS):
                print(f"  kept for a look: {folder}", flush=True)
            else:
                shutil.rmtree(folder)
            chunks[str(i)] = dict(found)
            if state is not None:
                state.write_text(json.dumps(known))
        total.update(chunks[str(i)])
    return total


def contention(count: int, writes: int, root: Path | None = None) -> int:
    """Let processes write to voxels of one block; return how many voxels are wrong."""
    context = processes()
    with tempfile.TemporaryDirectory(prefix="diced-contention-", dir=root) as folder:
        with DicedStore(folder, durability="process") as store:
            array = store.create_repo(writers.REPO).create_array(
                "block", np.uint32, block_shape=(16, 16, 16)
            )
            barrier = context.Barrier(count)
            started = [
                context.Process(target=writers.contend, args=(folder, i, count, writes, barrier))
                for i in range(count)
            ]
            for each in started:
                each.start()
            for each in started:
                each.join()
            if any(each.exitcode for each in started):
                raise RuntimeError(f"writers ended with {[each.exitcode for each in started]}")
            plane = array[0, 0:16, 0:16]
            made = sum(1 for _ in store.open_repo(writers.REPO).operations("block"))
        wrong = int((plane != writers.contended(count, writes)).sum())
        return wrong + abs(made - count * writes)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="tests.crash.run", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--writers", type=int, default=WRITERS, choices=range(1, WRITERS + 1))
    parser.add_argument("--reads", type=int, default=100_000)
    parser.add_argument("--durability", choices=("process", "power", "both"), default="both")
    parser.add_argument("--state", type=Path, help="file that remembers finished chunks")
    parser.add_argument("--root", type=Path, help="directory for the stores")
    parser.add_argument("--contention", action="store_true")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--writes", type=int, default=500)
    options = parser.parse_args(argv)
    if options.contention:
        began = time.monotonic()
        lost = contention(options.processes, options.writes, options.root)
        print(
            f"contention processes={options.processes}"
            f" writes={options.processes * options.writes} lost={lost}"
            f" seconds={time.monotonic() - began:.0f}"
        )
        return int(lost > 0)
    total = crash(
        options.kills, options.seed, count=options.writers, reads=options.reads,
        durability=options.durability, state=options.state, root=options.root,
    )  # fmt: skip
    print(summary(total))
    return int(any(total[each] for each in ERRORS))


if __name__ == "__main__":
    sys.exit(main())
