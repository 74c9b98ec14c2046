"""Kill writers and check what was acknowledged: ``python -m tests.crash.run --kills 2000 --seed 1``

The run is cut into chunks of 250 kills, each with a store and a seed of its own, alternating
between the two durabilities; ``--state FILE`` remembers finished chunks, so that a stopped run goes
on. ``--engine gcs`` does it over a fake bucket whose requests go wrong at random (`places`).
``--contention`` instead lets 16 processes write 500 times each to voxels of one block.

The last line is the result; the exit status is 0 only if every count of errors is 0.
"""

from __future__ import annotations

import argparse
import json
import math
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from diced import DicedRepo, DicedStore, fsck

from . import writers
from .model import Model, paint, planes_of
from .places import POKE, place
from .writers import FLAGS, HIGH, LOW, MESSAGE, OWNED, WRITERS, Op

CHUNK = 250
ERRORS = (
    "lost", "half", "stale", "mixed", "duplicated", "conflicts", "foreign", "stuck", "damaged",
)  # fmt: skip
WINDOW = (slice(LOW, HIGH),) * 3


def processes() -> Any:
    """Processes forked from a clean server that has imported diced: a restart costs 10 ms."""
    context = multiprocessing.get_context("forkserver")
    # The client library of buckets takes a second to import.
    context.set_forkserver_preload([writers.__name__, "google.cloud.storage"])
    return context


class Writer:
    """The parent's side of one writer."""

    def __init__(self, number: int):
        self.number = number
        self.next = 0  # first operation of the next incarnation
        self.begun: Op | None = None  # begun and not acknowledged
        self.waits: Any = None  # of a dead one: what may still happen
        self.dead = False
        self.process: Any = None
        self.pipe: Any = None
        self.deadline = 0.0
        self.buffer = b""


class Chunk:
    """One store, its writers, its watcher, and the model of what must be in it."""

    def __init__(
        self,
        seed: int,
        kills: int,
        reads: int,
        durability: str,
        count: int,
        root: Path,
        server: Any = None,
    ):
        self.seed, self.kills, self.reads = seed, kills, reads
        self.durability = durability
        self.root = root
        self.place = place(root, seed, server)
        self.location = self.place.location
        self.random = random.Random(seed)
        self.context = processes()
        self.model = Model()
        self.writers = [Writer(i) for i in range(count)]
        self.found: Counter[str] = Counter()
        self.all_begun: dict[str, set[int]] = {name: set() for name in writers.ARRAYS}
        self.all_done: dict[str, set[int]] = {name: set() for name in writers.ARRAYS}
        self.notes: list[str] = []

    # -- running ---------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        writers.make_store(self.location, self.durability).close()
        for name in ("slots", "log"):
            (self.root / name).write_bytes(bytes(8 * len(FLAGS) * WRITERS * (name == "slots")))
        self.store = DicedStore(self.location, readonly=True, **self.place.strict)
        self.repo = self.store.open_repo(writers.REPO)
        watcher = self.context.Process(
            target=writers.watch,
            args=(self.place.environ, self.location, self.place.strict,
                  *(str(self.root / n) for n in ("slots", "stop", "log")), self.reads),
        )  # fmt: skip
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
                if not each.dead:
                    self.stop(each)
            watcher.kill() if watcher.exitcode is None else None
            watcher.join()
        if watcher.exitcode:
            self.wrong("stuck", f"the watcher ended with {watcher.exitcode}")
        self.after_all_died()
        self.place.calm()
        self.check_all("at the end")
        self.check_flags()
        self.check_structure()
        self.store.close()
        self.place.close()
        return self.found

    def start(self, writer: Writer, limit: int | None = None) -> None:
        writer.pipe, there = self.context.Pipe(duplex=False)
        os.set_blocking(writer.pipe.fileno(), False)
        writer.process = self.context.Process(
            target=writers.write,
            args=(self.place.environ, self.location, self.durability, str(self.root / "slots"),
                  there, self.seed, writer.number, writer.next, limit,
                  self.random.choice([16, 64, 1024])),
        )  # fmt: skip
        writer.process.start()
        there.close()
        writer.deadline = math.inf if self.place.from_ready else self.end_of_life()
        writer.dead = False

    def end_of_life(self) -> float:
        return time.monotonic() + self.random.uniform(*self.place.life)

    def step(self) -> None:
        """Take messages until the next deadline, and kill the writer whose it is."""
        killing = self.found["kills"] < self.kills
        alive = [each for each in self.writers if not each.dead]
        first = min(alive, key=lambda each: each.deadline, default=None)
        wait = 0.1 if len(alive) == len(self.writers) else 0.02
        if killing and first is not None:
            wait = max(0.0, min(wait, first.deadline - time.monotonic()))
        ready, _, _ = select.select([each.pipe for each in alive], [], [], wait)
        for each in alive:
            if each.pipe in ready and not self.drain(each):
                raise RuntimeError(f"writer {each.number} died by itself")
        if killing and first is not None and time.monotonic() >= first.deadline:
            self.stop(first)
            self.found["kills"] += 1
        self.revive()

    def revive(self) -> None:
        """Start the dead again once it is known what became of their last operations."""
        for each in self.writers:
            if each.dead and self.place.settled(each.waits):
                self.settle(each)
                self.start(each)

    def stop(self, writer: Writer) -> None:
        """Kill a writer and take its last messages."""
        writer.process.kill()
        writer.process.join()
        if writer.process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"writer {writer.number} ended with {writer.process.exitcode}")
        while self.drain(writer):
            pass
        writer.pipe.close()
        writer.dead = True
        writer.waits = self.place.waits_for()

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
        if kind == writers.READY:
            if self.place.from_ready:
                writer.deadline = self.end_of_life()
        elif kind == writers.FAILED:
            self.wrong("conflicts", f"an operation of writer {writer.number} raised")
            writer.deadline = 0.0
        elif kind == writers.BEGUN:
            writer.begun = op = Op(self.seed, writer.number, number)
            writer.next = number + 1
            if op.array in self.all_begun:
                self.all_begun[op.array].add(op.value)
        elif kind == writers.DONE:
            op = writer.begun
            assert op is not None and op.value == writers.value_of(writer.number, number)
            self.model.apply(op)
            writer.begun = None
            self.found["acked"] += 1
            if op.array in self.all_done:
                self.all_done[op.array].add(op.value)

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
            while not self.place.settled(each.waits):
                time.sleep(0.05)
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
        with DicedStore(self.location, readonly=True, **self.place.strict) as store:
            repo = store.open_repo(writers.REPO)
            for name, wanted in self.model.arrays.items():
                wrong = int((self.read(repo, name) != wanted).sum())
                if wrong:
                    self.wrong("lost", f"{wrong} voxels of {name!r} {when}")
            files = dict(repo.files.items())
            files.pop(POKE, None)
            if files != self.model.files:
                self.wrong("lost", f"files {when}")

    def order_of(self, name: str) -> list[int]:
        """Return the operations in an array's log: each acknowledged one, once, and no foreign."""
        listed = list(self.repo.operations(name))
        order = [int(each["operation"]) for each in listed if each["operation"] != POKE]
        shared = Counter(each["number"] for each in listed)
        self.found["gathered"] += sum(count > 1 for count in shared.values())
        twice = len(order) - len(set(order))
        if twice:
            self.wrong("duplicated", f"{name!r}: {twice} commits are in the log twice")
        foreign = sorted(set(order) - self.all_begun[name])
        if foreign:
            self.wrong("foreign", f"{name!r}: nobody began {foreign[:5]} in the log")
        lost = sorted(self.all_done[name].difference(order))
        if lost:
            self.wrong("lost", f"{name!r}: acknowledged {lost[:5]} are not in the log")
        return order

    def check_flags(self) -> None:
        """Check all logs, and compare what the watcher read with the order of its arrays'."""
        for name in OWNED:
            self.order_of(name)
        for name, rows in zip(FLAGS, writers.read_rows(str(self.root / "log")), strict=True):
            order = self.order_of(name)
            place = {0: -1, **{value: i for i, value in enumerate(order)}}
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
        f" kept={total['kept']} gathered={total['gathered']} reads={total['reads']}"
        f" seen={total['seen']} {counts} fsck={fsck}"
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
    server: Any = None,
) -> Counter[str]:
    """Run chunks until there were `kills` kills; return the counts.

    `server` is a fake bucket's: the stores are there then.
    """
    key = f"{seed}/{kills}/{count}/{reads}/{durability}" + "/gcs" * (server is not None)
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
                folder, server,
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
    parser.add_argument("--engine", choices=("local", "gcs"), default="local")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--writers", type=int, default=WRITERS, choices=range(1, WRITERS + 1))
    parser.add_argument("--reads", type=int, help="100,000; on a bucket 10,000")
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
    reads = options.reads or (10_000 if options.engine == "gcs" else 100_000)
    with ExitStack() as stack:
        server = None
        if options.engine == "gcs":
            sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
            import fake_gcs

            server = stack.enter_context(fake_gcs.start())
        total = crash(
            options.kills, options.seed, count=options.writers, reads=reads,
            durability=options.durability, state=options.state, root=options.root, server=server,
        )  # fmt: skip
    print(summary(total))
    return int(any(total[each] for each in ERRORS))


if __name__ == "__main__":
    sys.exit(main())
