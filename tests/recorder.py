"""Recording of histories for `linear`: threads of several processes at one array each.

Stores last for a chunk of histories, with an array for each; the processes last for the run. On a
bucket, requests of every fourth chunk go wrong at random, and some handles may be behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import linear
import numpy as np
from crash.run import processes
from linear import BLOCK, BLOCKS, CELLS, Log, Op

from diced import DicedArray, DicedException, DicedStore, NotFoundError, log, versioned
from diced.engine import memory
from diced.state import Overlay, State

CHUNK = 25
ENGINES = ("memory", "local", "gcs")
# Processes and threads in each; memory is one process's own.
CREWS = {"memory": (1, 8), "local": (4, 2), "gcs": (4, 2)}
DEFAULT_AGE = 1.0  # seconds, on a bucket
FAULTS = {"lost": 0.01, "reset": 0.01, "e429": 0.005, "e503": 0.005, "slow": 0.005}
REPO = "linear"
EVERYTHING = ((0, CELLS),)


def make_op(rng: random.Random, worker: int, value: int) -> Op:
    """Draw a read, or a write of `value`."""
    block = rng.choice([0, 0, *range(BLOCKS)]) * BLOCK  # the first one is contended
    a, b = sorted(rng.sample(range(CELLS + 1), 2))
    part = block + rng.randrange(BLOCK)
    if rng.random() < 0.45:
        spans = rng.choice([((block, block + BLOCK),)] * 3 + [((a, b),), EVERYTHING])
        return Op(worker, spans)
    whole = ((block, block + BLOCK),)
    piece = ((part, rng.randint(part + 1, block + BLOCK)),)
    apart = ((0, rng.randint(1, BLOCK + 1)), (rng.randrange(CELLS - BLOCK - 1, CELLS), CELLS))
    return Op(worker, rng.choice([whole, whole, piece, piece, piece, ((a, b),), apart]), value)


def perform(array: DicedArray, op: Op) -> None:
    """Make the call and note what came of it."""
    op.start = time.monotonic_ns()
    try:
        if op.value:
            with array.batch(str(op.value)):  # the log tells by it which write this was
                for first, end in op.spans:
                    array[first:end] = [linear.content(op.value, i) for i in range(first, end)]
        else:
            first, end = op.spans[0]
            op.result = tuple(array[first:end].tolist())
    except DicedException as error:
        op.acked = False
        print(f"  {op.value or 'a read'} raised {error!r}", flush=True)
    op.end = time.monotonic_ns()


class Crew:
    """The threads of one process, and their handles."""

    def __init__(self, number: int, threads: int):
        self.number, self.threads = number, threads
        self.stores: list[DicedStore] = []
        self.arrays: list[list[DicedArray]] = []  # by store, by history of the chunk
        self.ages: list[float] = []

    def open(self, location: str, count: int, ages: list[float | None], snapshot: int) -> None:
        """Open one store for each age (None: the default of a bucket), and each array in it."""
        versioned.SNAPSHOT_RECORDS = snapshot
        for age in ages:
            options = {} if age is None or not location.startswith("gs:") else {"max_age": age}
            store = DicedStore(location, durability="process", create=False, **options)
            self.ages.append(DEFAULT_AGE if age is None else age)
            self.stores.append(store)
            repo = store.open_repo(REPO)
            self.arrays.append([self._array(repo, f"history {i}") for i in range(count)])

    def _array(self, repo: Any, name: str) -> DicedArray:
        limit = time.monotonic() + 10
        while True:  # a store that may be behind need not know it yet
            try:
                found: DicedArray = repo.get_array(name)
                return found
            except NotFoundError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)

    def run(self, history: int, seed: str, calls: int, begin: float, pause: float) -> list[Op]:
        """Let every thread make its calls, all beginning at one moment of the clock."""
        ops: list[Op] = []
        errors: list[BaseException] = []

        def work(thread: int) -> None:
            worker = self.number * self.threads + thread
            rng = random.Random(f"{seed}/{worker}")
            which = (history + worker) % len(self.stores)
            try:
                array = self.arrays[which][history]
                mine = [make_op(rng, worker, 100 + worker + 64 * i) for i in range(calls)]
                time.sleep(max(0.0, begin - time.monotonic()))
                for op in mine:
                    if pause:
                        time.sleep(rng.random() * pause)
                    op.age = 0 if op.value else round(1e9 * self.ages[which])
                    perform(array, op)
                ops.extend(mine)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(self.threads)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if errors:
            raise errors[0]
        return ops

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.stores, self.arrays, self.ages = [], [], []


def serve(pipe: Any, number: int, threads: int, environ: dict[str, str]) -> None:
    """Be a crew for another process: answer each order with what its method returns."""
    os.environ.update(environ)
    crew = Crew(number, threads)
    while True:
        name, *arguments = pipe.recv()
        if name == "end":
            return
        try:
            pipe.send(getattr(crew, name)(*arguments))
        except BaseException:
            pipe.send(traceback.format_exc())


class Crews:
    """All crews of a run: one here, or each in a process of its own."""

    def __init__(self, engine: str, environ: dict[str, str]):
        count, threads = CREWS[engine]
        self.here = Crew(0, threads) if engine == "memory" else None
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        context = processes()
        for i in range(0 if self.here else count):
            pipe, there = context.Pipe()
            process = context.Process(target=serve, args=(there, i, threads, environ))
            process.start()
            there.close()
            self.pipes.append(pipe)
            self.processes.append(process)

    def order(self, name: str, *arguments: Any) -> list[Any]:
        """Let every crew do something; return what each returned."""
        if self.here is not None:
            return [getattr(self.here, name)(*arguments)]
        for pipe in self.pipes:
            pipe.send((name, *arguments))
        found = [pipe.recv() for pipe in self.pipes]
        failed = [each for each in found if isinstance(each, str)]
        if failed:
            raise RuntimeError(failed[0])
        return found

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(("end",))
            process.join(30)
            process.kill()
            pipe.close()


def read_log(array: DicedArray) -> Log:
    """Read an array's log from its first record, and fold it."""
    blocks = array._blocks()
    found, overlay = Log(), Overlay()
    cells = np.zeros(CELLS, np.uint32)
    for number, record in blocks.lane.whole_records():
        if record.type != log.DATA:
            raise AssertionError(f"record {number} is of type {record.type}")
        found.writes.append([int(each["op"]) for each in record.commits()])
        overlay.add(number, record.delta)
        state = State(number, {}, overlay, None, False)
        blocks.read(state, [0], [CELLS], cells)
        found.folds.append(tuple(cells.tolist()))
    return found


def judge(array: DicedArray, ops: list[Op], found: Counter[str], name: str) -> None:
    """Read the log, check a history against it, and count."""
    last = Op(-1, EVERYTHING)
    perform(array, last)
    ops.append(last)
    story = read_log(array)
    wrong = linear.check(ops, story)
    listed = [int(each["operation"]) for each in array._repo.operations(array.name)]
    if listed != [value for values in story.writes for value in values]:
        wrong.append(linear.Violation("fold", "operations() and the records disagree"))
    found["histories"] += 1
    found["ops"] += len(ops)
    found["records"] += len(story.writes)
    found["gathered"] += sum(len(values) > 1 for values in story.writes)
    found["errors"] += sum(not op.acked for op in ops)
    found["violations"] += len(wrong)
    for each in wrong:
        print(f"  {name}: {each.kind}: {each.text}", flush=True)


class Run:
    """Chunks of histories on one engine; `server` is the fake bucket's control object."""

    def __init__(self, engine: str, server: Any = None, faults: bool = True, calls: int = 20):
        self.engine, self.server, self.faults, self.calls = engine, server, faults, calls
        self.crews = Crews(engine, {} if server is None else server.environ())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.crews.end()

    @contextmanager
    def location(self) -> Iterator[str]:
        """A place for the store of one chunk."""
        if self.engine == "memory":
            name = f"linear-{random.getrandbits(64):x}"
            yield f"memory://{name}"
            memory.forget(name)
        elif self.engine == "gcs":
            before = self.server.bucket
            if self.server.fake:
                self.server.bucket = self.server.new_bucket()
            yield self.server.url()
            if self.server.fake:
                self.server.drop_bucket(self.server.bucket)
            self.server.bucket = before
        else:
            folder = tempfile.mkdtemp(prefix="diced-linear-")
            yield folder
            shutil.rmtree(folder)

    def chunk(self, seed: str, count: int, number: int) -> Counter[str]:
        """Record and judge `count` histories in one store."""
        found: Counter[str] = Counter()
        rng = random.Random(seed)
        strict: dict[str, Any] = {}
        ages: list[float | None] = [0, 0, 0]
        if self.engine == "gcs":  # a third of the workers may be behind: by default, or by little
            strict = {"max_age": 0}
            ages[2] = 0.05 if number % 2 else None
        faulty = self.engine == "gcs" and self.faults and number % 4 == 1
        kept = versioned.SNAPSHOT_RECORDS, sys.getswitchinterval()
        with self.location() as location, DicedStore(location, **strict) as store, ExitStack() as s:
            s.callback(setattr, versioned, "SNAPSHOT_RECORDS", kept[0])
            repo = store.create_repo(REPO)
            arrays = [
                repo.create_array(f"history {i}", np.uint32, dims=1, block_shape=(BLOCK,))
                for i in range(count)
            ]
            self.crews.order("open", location, count, ages, rng.choice([8, 64, 1024]))
            s.callback(self.crews.order, "close")
            if self.engine == "memory":  # the only thing that lets threads overlap
                s.callback(sys.setswitchinterval, kept[1])
                sys.setswitchinterval(2e-5)
            for i, array in enumerate(arrays):
                if faulty:
                    self.server.faults(rng.getrandbits(32), **FAULTS)
                # In a few histories there is time between the calls: what may be 1 s old shows.
                pause = 4 / self.calls if self.engine == "gcs" and i % CHUNK == 3 else 0.0
                begin = time.monotonic() + 0.01
                calls = rng.randint(self.calls // 3, self.calls)
                made = self.crews.order("run", i, f"{seed}/{i}", calls, begin, pause)
                if faulty:
                    self.server.faults()
                ops = [op for each in made for op in each]
                judge(array, ops, found, f"seed {seed} history {i}")
        return found


def check_histories(run: Run, histories: int, seed: int, state: Path | None = None) -> Counter[str]:
    """Record and judge histories; return the counts. A state file remembers finished chunks."""
    known = json.loads(state.read_text()) if state is not None and state.exists() else {}
    chunks = known.setdefault(f"{run.engine}/{seed}/{histories}", {})
    total: Counter[str] = Counter()
    for i in range(-(-histories // CHUNK)):
        if str(i) not in chunks:
            began = time.monotonic()
            found = run.chunk(f"{seed}/{i}", min(CHUNK, histories - i * CHUNK), i)
            found["ms"] = round(1000 * (time.monotonic() - began))
            print(f"chunk {i}:", dict(found), flush=True)
            chunks[str(i)] = dict(found)
            if state is not None:
                state.write_text(json.dumps(known))
        total.update(chunks[str(i)])
    return total


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="tests.linear", description=linear.__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="local")
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, default=20, help="of each of 8 threads, at most")
    parser.add_argument("--state", type=Path, help="file that remembers finished chunks")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        server = None
        if options.engine == "gcs":
            import fake_gcs

            server = stack.enter_context(fake_gcs.start())
            os.environ.update(server.environ())
        run = stack.enter_context(Run(options.engine, server, calls=options.calls))
        total = check_histories(run, options.histories, options.seed, options.state)
    print(
        f"linear engine={options.engine} histories={total['histories']} ops={total['ops']}"
        f" records={total['records']} gathered={total['gathered']} errors={total['errors']}"
        f" violations={total['violations']} seconds={total['ms'] / 1000:.0f}"
    )
    return int(total["violations"] > 0)


if __name__ == "__main__":
    sys.exit(main())
