"""The operations. Each returns its series of samples; smaller is better in every one.

Times are seconds per call. Where several work at once, a sample is the time per box of all
together, or the time until the last has written.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.peers import parallel
from benchmarks.peers.adapters.base import CHUNK, Index
from benchmarks.peers.adapters.limits import MACHINE_OPS, pread
from benchmarks.peers.bench import Bench, SkipOp

Series = dict[str, list[float]]

BARE = "import numpy"
OVERWRITING = 120  # seconds after which a peer is too slow to be overwritten as often as others


class Op(NamedTuple):
    """A row.

    Attributes
    ----------
    run : callable
        Takes the bench, the operation's name and the round.
    what : str
    units : dict of str to str
        Other series than its own than seconds under its own name.
    writes : bool
        Whether dirty pages may be left for the next peer to wait for.
    once : bool
        Only in the first round.
    """

    run: Callable[[Bench, str, int], Series]
    what: str
    units: dict[str, str] = {}
    writes: bool = False
    once: bool = False


def _whole_write(bench: Bench, op: str, turn: int) -> Series:
    path = bench.new_path()
    found = bench.clock([functools.partial(bench.peer.create, path, bench.data)])
    if turn == 0:
        handle = bench.peer.reader(path)
        bench.verify(handle)
        handle.close()
    bench.remove(path)
    return {op: found}


def _whole_read(bench: Bench, op: str, turn: int) -> Series:
    return {op: bench.clock([functools.partial(bench.reader.read, bench.whole)] * 2)}


def _reads(bench: Bench, op: str, indices: list[Index]) -> Series:
    return {op: bench.clock(functools.partial(bench.reader.read, index) for index in indices)}


def _boxes(bench: Bench, op: str, turn: int, side: int, count: int) -> Series:
    rng = bench.rng(op, turn)
    return _reads(bench, op, [bench.box(rng, side) for _ in range(count)])


def _voxels(bench: Bench, op: str, turn: int) -> Series:
    places = bench.rng(op, turn).integers(0, bench.data.shape, (60, 3)).tolist()
    return _reads(bench, op, [tuple(place) for place in places])


def _planes(bench: Bench, op: str, turn: int, axis: int) -> Series:
    rng = bench.rng(op, turn)
    return _reads(bench, op, [bench.plane(rng, axis) for _ in range(4)])


def _from_elsewhere(bench: Bench, rng: np.random.Generator, side: int) -> np.ndarray:
    """Return voxels that look real, but not those that belong where they will be written."""
    return np.ascontiguousarray(bench.data[bench.box(rng, side)])


def _write_each(
    bench: Bench,
    op: str,
    rng: np.random.Generator,
    places: list[Index],
    side: int,
    write: Callable[[Index, np.ndarray], object],
) -> Series:
    values = [_from_elsewhere(bench, rng, side) for _ in places]
    pairs = list(zip(places, values, strict=True))
    found = bench.clock(functools.partial(write, *pair) for pair in pairs)
    bench.compare(bench.work, *pairs[len(found) - 1])
    return {op: found}


def _boxes_written(bench: Bench, op: str, turn: int) -> Series:
    rng = bench.rng(op, turn)
    places = [bench.box(rng, 100) for _ in range(10)]
    return _write_each(bench, op, rng, places, 100, bench.work.write)


def _block(bench: Bench, op: str, turn: int) -> Series:
    rng = bench.rng(op, turn)
    places = [bench.chunks(rng, 1)[0] for _ in range(10)]
    return _write_each(bench, op, rng, places, CHUNK, bench.work.write)


def _block_sync(bench: Bench, op: str, turn: int) -> Series:
    if not bench.peer.durable:
        raise SkipOp("does not fsync")
    rng = bench.rng(op, turn)
    places = [bench.chunks(rng, 1)[0] for _ in range(10)]
    return _write_each(bench, op, rng, places, CHUNK, bench.work.write_sync)


def _many_blocks(bench: Bench, op: str, turn: int) -> Series:
    rng = bench.rng(op, turn)
    count = max(1, round(0.05 * bench.data.size / CHUNK**3))
    batches = []
    for _ in range(2):
        places = bench.chunks(rng, count)
        batches.append([(place, _from_elsewhere(bench, rng, CHUNK)) for place in places])
    found = bench.clock(functools.partial(bench.work.write_many, batch) for batch in batches)
    for place, value in batches[len(found) - 1]:
        bench.compare(bench.work, place, value)
    return {op: found}


def _python(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def _open(bench: Bench, op: str, turn: int) -> Series:
    wanted = int(bench.data[1, 2, 3])
    code = f"{bench.peer.snippet(bench.main)}\nraise SystemExit(int(v) != {wanted})"
    if turn == 0:
        _python(code)  # writes bytecode
    bare, whole = [], []
    for _ in range(3):
        bare.append(_python(BARE))
        whole.append(_python(code))
    over = [each - base for each, base in zip(whole, bare, strict=True)]
    return {op: over, "open_total": whole, "open_bare": bare}


def _read_threads(bench: Bench, op: str, turn: int, count: int) -> Series:
    bench.reader  # noqa: B018 - verified and read once
    return {op: [parallel.read_in_threads(bench, op, turn, count)]}


def _read_processes(bench: Bench, op: str, turn: int, count: int) -> Series:
    bench.reader  # noqa: B018
    places = [parallel.boxes(bench, op, turn, member) for member in range(count)]
    spans = parallel.in_processes(bench, parallel.read_child, bench.main, places)
    return {op: [parallel.seconds_per_call(spans)]}


def _write_processes(bench: Bench, op: str, turn: int, count: int) -> Series:
    if bench.peer.one_writer:
        raise SkipOp(bench.peer.one_writer)
    path = bench.new_path()
    bench.peer.make(path, bench.data.shape).close()
    spans = parallel.in_processes(bench, parallel.write_child, path, bench.slabs(count))
    handle = bench.peer.reader(path)
    bench.verify(handle)
    handle.close()
    bench.remove(path)
    return {op: [max(end for _, end, _ in spans) - min(start for start, _, _ in spans)]}


def _deep(bench: Bench, op: str, turn: int) -> Series:
    first, newest = bench.deep
    rng = bench.rng(op, turn)
    places = [bench.box(rng, 128) for _ in range(20)]
    calls = [functools.partial(each.read, place) for place in places for each in (first, newest)]
    found = bench.clock(calls)
    return {op: found[1::2] or found, "deep_first": found[::2]}


def _usage(path: str) -> tuple[int, int]:
    sizes = [
        os.path.getsize(os.path.join(folder, file))
        for folder, _, files in os.walk(path)
        for file in files
    ]
    return sum(sizes), len(sizes)


def _size(bench: Bench, op: str, turn: int) -> Series:
    path = bench.new_path()
    bench.peer.create(path, bench.data)
    size, files = _usage(path)
    handle = bench.peer.writer(path)
    rng = bench.rng(op, turn)
    deadline = time.perf_counter() + OVERWRITING
    done = 0
    while done < bench.task.overwrites and time.perf_counter() < deadline:
        handle.write(bench.chunks(rng, 1)[0], _from_elsewhere(bench, rng, CHUNK))
        done += 1
    handle.close()
    grown = [_usage(path)[0]] if done == bench.task.overwrites else []
    bench.remove(path)
    return {op: [size], "size_files": [files], "size_grown": grown, "size_overwrites": [done]}


def _copy_fresh(bench: Bench, op: str, turn: int) -> Series:
    def copy() -> np.ndarray:
        target = np.empty_like(bench.data)
        np.copyto(target, bench.data)
        return target

    return {op: bench.clock([copy] * 2)}


def _copy_warm(bench: Bench, op: str, turn: int) -> Series:
    target = np.full_like(bench.data, 1)
    return {op: bench.clock([functools.partial(np.copyto, target, bench.data)] * 2)}


def _pread(bench: Bench, op: str, turn: int) -> Series:
    target = np.full_like(bench.data, 1)
    return {op: bench.clock([functools.partial(pread, bench.task.path, target)] * 2)}


OPS: dict[str, Op] = {
    "w_full": Op(_whole_write, "make an array and write all of it", writes=True),
    "copy_fresh": Op(_copy_fresh, "numpy copy of the volume into fresh memory, one thread"),
    "r_full": Op(_whole_read, "read all of it"),
    "copy_warm": Op(_copy_warm, "numpy copy of the volume into touched memory, one thread"),
    "pread": Op(_pread, "pread of the volume from page cache into touched memory"),
    "r_128": Op(functools.partial(_boxes, side=128, count=20), "read 128 cubed, unaligned"),
    "r_32": Op(functools.partial(_boxes, side=32, count=60), "read 32 cubed, unaligned"),
    "r_vox": Op(_voxels, "read a voxel"),
    "r_xy": Op(functools.partial(_planes, axis=0), "read a whole slice across z"),
    "r_xz": Op(functools.partial(_planes, axis=1), "read a whole slice across y"),
    "r_yz": Op(functools.partial(_planes, axis=2), "read a whole slice across x"),
    "r_1t": Op(functools.partial(_read_threads, count=1), "128 cubed by 1 thread, per box"),
    "r_2t": Op(functools.partial(_read_threads, count=2), "128 cubed by 2 threads, per box"),
    "r_4t": Op(functools.partial(_read_threads, count=4), "128 cubed by 4 threads, per box"),
    "r_1p": Op(functools.partial(_read_processes, count=1), "128 cubed by 1 process, per box"),
    "r_2p": Op(functools.partial(_read_processes, count=2), "128 cubed by 2 processes, per box"),
    "r_4p": Op(functools.partial(_read_processes, count=4), "128 cubed by 4 processes, per box"),
    "deep": Op(_deep, "read 128 cubed, newest of many versions", {"deep_first": "s"}),
    "open_vox": Op(
        _open,
        "fresh process: import, open, a voxel, beyond importing numpy",
        {"open_total": "s", "open_bare": "s"},
    ),
    "w_100": Op(_boxes_written, "write 100 cubed, unaligned, published", writes=True),
    "c_block": Op(_block, "write one aligned block, published", writes=True),
    "c_block_sync": Op(_block_sync, "the same, on the disk when it returns", writes=True),
    "c_5pct": Op(_many_blocks, "5 % of the blocks as one commit", writes=True),
    "w_2p": Op(functools.partial(_write_processes, count=2), "all of it by 2 writers", writes=True),
    "w_4p": Op(functools.partial(_write_processes, count=4), "all of it by 4 writers", writes=True),
    "size": Op(
        _size,
        "bytes on disk, files, bytes after one-block overwrites",
        {"size": "bytes", "size_files": "", "size_grown": "bytes", "size_overwrites": ""},
        writes=True,
        once=True,
    ),
}


# Series that say something about a run but are no contest.
CONTEXT = frozenset({"open_bare", "deep_first", "size_overwrites"})


def units(name: str) -> dict[str, str]:
    """Return the unit of each series of an operation, its own first."""
    return {name: "s", **OPS[name].units}


def applies(op: str, peer_ops: object) -> bool:
    """Say whether a row restricted to `peer_ops` (or to nothing) has the operation."""
    if peer_ops is None:
        return op not in MACHINE_OPS
    return op in peer_ops  # type: ignore[operator]
