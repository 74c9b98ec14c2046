"""A bucket whose answers take tens of milliseconds: large boxes, many readers, many writers.

``python -m benchmarks.bucket [--latency 0.05] [--side 512] [--readers 1 4 16] [--writers 100]``

The bucket is the fake one of the tests, whose server runs on the same processors: what it says of
throughput is a lower bound. Readers are processes, each of which reads boxes of one block at random
places, one after the other. Writers are threads, each with a store of its own, spread over a
few processes; each writes one block of 32 voxels cubed a second into the same array, where nobody
else does, and all is compared in the end. ``--readers 0`` and ``--writers 0`` leave these out.
Processor time is that of the whole machine, so it should be idle but for this.
"""

import argparse
import os
import pathlib
import sys
import threading
import time
import traceback
from collections import Counter
from multiprocessing import get_context

import numpy as np

from benchmarks.common import em
from diced import DicedStore

BLOCK = 64
PIECE = 32
TRIES = 3
MB = 1e6


def volume(side):
    """Return a cube that looks like EM."""
    seed = em((128, 256, 256))
    return np.tile(seed, [-(-side // n) for n in seed.shape])[:side, :side, :side].copy()


def processor():
    """Return (busy, all) seconds of the machine's processors so far."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    ticks = [int(each) / os.sysconf("SC_CLK_TCK") for each in fields]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class Busy:
    """How much of the machine was used inside, 1.0 being all of it."""

    def __enter__(self):
        self._begin = processor()
        return self

    def __exit__(self, *_error):
        used, total = (b - a for a, b in zip(self._begin, processor(), strict=True))
        self.share = used / total if total else 0.0


# -- one process ---------------------------------------------------------------------------


def bulk(server, url, side, latency):
    """Yield rows about an aligned write of a cube, and reads of it cold and warm."""
    data = volume(side)
    cube = (slice(0, side),) * 3
    repo = DicedStore(url).create_repo("bench")
    arrays = (repo.create_array(f"a{i}", np.uint8) for i in range(TRIES))
    written = [_timed(server, lambda a=a: a.__setitem__(cube, data)) for a in arrays]
    yield _line(f"aligned write of {side}^3, into a new array", data.nbytes, written)
    array = repo["a0"]
    again = [
        _timed(server, lambda i=i: array.__setitem__(cube, data + np.uint8(i)))
        for i in range(1, TRIES + 1)
    ]
    yield _line("the same, again", data.nbytes, again)
    array[cube] = data
    server.latency(0)
    repo.lock_node("done")
    server.latency(latency)
    cold, warm = [], []
    for _ in range(TRIES):
        there = DicedStore(url, readonly=True).open_repo("bench")
        cold.append(_timed(server, lambda there=there: there["a0"][cube]))
        held = there["a0"]
        warm.append(_timed(server, lambda held=held: held[cube]))
    if not np.array_equal(held[cube], data):
        raise AssertionError("the volume is not what was written")
    yield _line("cold read of a locked version, after open_repo", data.nbytes, cold)
    yield _line("warm read", data.nbytes, warm)


def _timed(server, call):
    """Return (seconds, depth, requests) of a call."""
    server.clear()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin, server.depth(), sum(server.count().values())


def _line(name, nbytes, found):
    seconds, depth, requests = (min(each) for each in zip(*found, strict=True))
    return (
        name,
        f"{nbytes / seconds / MB:.0f} MB/s",
        f"{seconds:.2f} s, {depth} round trips deep, {requests} requests",
    )


# -- readers -------------------------------------------------------------------------------


def reader(pipe, url, environ, side, count, seed):
    """Read `count` blocks at random when told to; answer with the seconds it took."""
    os.environ.update(environ)
    array = DicedStore(url, readonly=True).open_repo("bench")["a0"]
    places = np.random.default_rng(seed).integers(0, side // BLOCK, (count, 3)) * BLOCK
    array[0, 0, 0]
    pipe.send("ready")
    time.sleep(max(0.0, pipe.recv() - time.monotonic()))
    begin = time.perf_counter()
    for place in places:
        array[tuple(slice(a, a + BLOCK) for a in place.tolist())]
    pipe.send(time.perf_counter() - begin)


def readers(context, server, url, side, counts, reads):
    """Yield a row for each number of processes."""
    alone = None
    for count in counts:
        pipes, processes = [], []
        for seed in range(count):
            pipe, there = context.Pipe()
            arguments = (there, url, server.environ(), side, reads, seed)
            processes.append(context.Process(target=reader, args=arguments))
            processes[-1].start()
            pipes.append(pipe)
        for pipe in pipes:
            pipe.recv()
        begin = time.monotonic() + 0.2
        for pipe in pipes:
            pipe.send(begin)
        with Busy() as busy:
            seconds = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
        mean = sum(seconds) / count
        alone = mean if alone is None else alone
        yield (
            f"{count} reading processes, blocks of {BLOCK}^3",
            f"{count * reads / mean:.0f} blocks/s",
            f"{alone / mean:.2f} of linear, processors {100 * busy.share:.0f} % busy",
        )


# -- writers -------------------------------------------------------------------------------


def values(writer, number):
    """Return what a writer writes as its block `number`."""
    return np.random.default_rng((writer, number)).integers(0, 3, (PIECE,) * 3, dtype=np.uint8)


def box(writer, number):
    """Return where: neighbours in the array are written by different writers."""
    low = (PIECE * writer, PIECE * number, 0)
    return tuple(slice(a, a + PIECE) for a in low)


def writer_process(pipe, url, environ, numbers, rounds):
    """Write with a thread for each number, a block a second; answer (begin, seconds) of each."""
    os.environ.update(environ)
    times, errors = [], []
    barrier = threading.Barrier(len(numbers) + 1)
    start = [0.0]

    def work(number):
        try:
            array = DicedStore(url).open_repo("writers")["many"]
            array.get_extents()
            barrier.wait()
            barrier.wait()
            # Not all at once, but each keeps its beat.
            beat = start[0] + np.random.default_rng(number).random()
            for i in range(rounds):
                time.sleep(max(0.0, beat + i - time.monotonic()))
                begin = time.monotonic()
                array[box(number, i)] = values(number, i)
                times.append((begin, time.monotonic() - begin))
        except BaseException:
            errors.append(traceback.format_exc())  # told by the parent
            barrier.abort()

    threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in numbers]
    for thread in threads:
        thread.start()
    try:
        barrier.wait()
        pipe.send("ready")
        start[0] = pipe.recv()
        barrier.wait()
    except threading.BrokenBarrierError:
        pipe.send("broken")
    for thread in threads:
        thread.join()
    pipe.send((times, errors[:1]))


def writers(context, server, url, count, processes, rounds):
    """Yield rows about `count` writers of one array."""
    repo = DicedStore(url).create_repo("writers")
    array = repo.create_array("many", np.uint8, block_shape=(PIECE,) * 3)
    groups = [list(range(count))[i::processes] for i in range(min(processes, count))]
    pipes, started = [], []
    for group in groups:
        pipe, there = context.Pipe()
        arguments = (there, url, server.environ(), group, rounds)
        started.append(context.Process(target=writer_process, args=arguments))
        started[-1].start()
        pipes.append(pipe)
    for pipe in pipes:
        pipe.recv()
    server.clear()
    begin = time.monotonic() + 1.0
    for pipe in pipes:
        pipe.send(begin)
    time.sleep(1.0)
    times = []
    with Busy() as busy:
        for pipe in pipes:
            found, errors = pipe.recv()
            times += found
            if errors:
                raise AssertionError(errors[0])
    for process in started:
        process.join()
    log = server.log()
    yield from _writer_rows(count, rounds, times, log, busy)
    server.latency(0)
    time.sleep(1.1)
    wrong = sum(
        not np.array_equal(array[box(writer, i)], values(writer, i))
        for writer in range(count)
        for i in range(rounds)
    )
    records = len({each["number"] for each in repo.operations("many")})
    made = f"{len(times)} commits, {records} records"
    yield ("blocks that are wrong afterwards", str(wrong), made)


def _writer_rows(count, rounds, times, log, busy):
    seconds = np.array([each for _, each in times])
    begins = np.array([each for each, _ in times])
    ends = np.sort(begins + seconds)
    # While all are at work: after each has begun, and before the first has ended.
    inside = ends[(ends >= begins.min() + 1) & (ends <= begins.min() + rounds - 0.5)]
    rate = (len(inside) - 1) / (inside[-1] - inside[0]) if len(inside) > 1 else 0.0
    p50, p99 = (1000 * float(np.quantile(seconds, each)) for each in (0.5, 0.99))
    yield (
        f"{count} writers of one array, a block a second each",
        f"{rate:.0f} commits/s",
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, processors {100 * busy.share:.0f} % busy",
    )
    kinds = Counter(f"{each.operation} {_purpose(each.key)}" for each in log)
    parts = ", ".join(f"{n / len(times):.2f} {kind}" for kind, n in kinds.most_common(8))
    yield ("requests per commit", f"{len(log) / len(times):.2f}", parts)


def _purpose(key):
    """Return what an object is for, by its name."""
    if "/meta/" in key:
        return "metadata"
    for part, name in {"/pend": "proposal", "/turn": "claim", ".snap": "snapshot"}.items():
        if part in key:
            return name
    return "record" if "/lanes/" in key else "other"


# -- all -----------------------------------------------------------------------------------


def measure(server, options):
    """Yield rows: what, how much, more."""
    url = server.url()
    context = get_context("forkserver")
    context.set_forkserver_preload(["diced", "benchmarks.common", "google.cloud.storage"])
    server.latency(options.latency)
    yield from bulk(server, url, options.side, options.latency)
    if any(options.readers):
        yield from readers(context, server, url, options.side, options.readers, options.reads)
    if options.writers:
        yield from writers(
            context, server, url, options.writers, options.processes, options.seconds
        )


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.bucket", description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--readers", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--reads", type=int, default=100, help="blocks that a process reads")
    parser.add_argument("--writers", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4, help="that the writers are spread over")
    parser.add_argument("--seconds", type=int, default=10, help="for which they write")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
    import fake_gcs

    with fake_gcs.start() as server:
        os.environ.update(server.environ())
        print(f"latency {1000 * options.latency:.0f} ms, {os.cpu_count()} processors")
        rows = []
        for row in measure(server, options):
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
