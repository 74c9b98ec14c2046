"""Threads and processes that an operation starts: all wait at a barrier, then work at once."""

from __future__ import annotations

import functools
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from benchmarks.peers.adapters import Handle
from benchmarks.peers.adapters.base import Index
from benchmarks.peers.bench import Bench, Task

WINDOW = 0.4  # seconds that readers read
PATIENCE = 60  # seconds to wait for one that starts

Span = tuple[float, float, int]  # start, end, calls done


def read_for(handle: Handle, boxes: Sequence[Index], window: float, wait: Callable) -> Span:
    """Read boxes in turn until the time is up, after two that do not count."""
    for box in boxes[:2]:
        handle.read(box)
    wait()
    start = end = time.perf_counter()
    done = 0
    while end - start < window:
        handle.read(boxes[done % len(boxes)])
        done += 1
        end = time.perf_counter()
    return start, end, done


def seconds_per_call(spans: Sequence[Span]) -> float:
    """Return the time per call of all together: the inverse of the sum of their rates."""
    return 1 / sum(count / (end - start) for start, end, count in spans)


def boxes(bench: Bench, op: str, turn: int, member: int) -> list[Index]:
    """Return where a reader reads."""
    rng = bench.rng(f"{op} {member}", turn)
    return [bench.box(rng, 128) for _ in range(64)]


def read_in_threads(bench: Bench, op: str, turn: int, count: int) -> float:
    """Return the seconds per box of several threads that share one open array."""
    handle = bench.parallel_reader
    barrier = threading.Barrier(count)
    spans: list[Span] = []
    wait = functools.partial(barrier.wait, PATIENCE)

    def work(member: int) -> None:
        places = boxes(bench, op, turn, member)
        window = min(WINDOW, bench.task.budget)
        spans.append(read_for(handle, places, window, wait))

    threads = [threading.Thread(target=work, args=(member,)) for member in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(spans) < count:
        raise RuntimeError(f"{count - len(spans)} of {count} reading threads failed")
    return seconds_per_call(spans)


def read_child(task: Task, conn: Connection, barrier: Any, path: str, places: list[Index]) -> None:
    """Read in a process of its own."""
    bench = Bench(task)
    handle = bench.peer.reader(path, parallel=True)
    wait = functools.partial(barrier.wait, PATIENCE)
    conn.send(read_for(handle, places, min(WINDOW, task.budget), wait))


def write_child(task: Task, conn: Connection, barrier: Any, path: str, place: Index) -> None:
    """Write one part in a process of its own."""
    bench = Bench(task)
    handle = bench.peer.writer(path, parallel=True)
    value = bench.data[place]
    barrier.wait(PATIENCE)
    start = time.perf_counter()
    handle.write(place, value)
    conn.send((start, time.perf_counter(), 1))
    handle.close()


def in_processes(bench: Bench, child: Callable, path: str, places: Sequence[Any]) -> list[Span]:
    """Run a child for each place at once; their start is not part of what they time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(places))
    running = []
    try:
        for place in places:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(bench.task, theirs, barrier, path, place))
            process.start()
            theirs.close()
            running.append((process, ours))
        spans = [_answer(process, conn) for process, conn in running]
        for process, _ in running:
            process.join(10)
        return spans
    finally:
        for process, conn in running:
            conn.close()
            process.kill()
            process.join()


def _answer(process: BaseProcess, conn: Connection) -> Span:
    try:
        if conn.poll(PATIENCE):
            return conn.recv()  # type: ignore[no-any-return]
        raise TimeoutError("a process that works in parallel does not answer")
    except EOFError:
        process.join(5)
        raise RuntimeError(
            f"a process that works in parallel ended with {process.exitcode}"
        ) from None
