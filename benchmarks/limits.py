"""Figures that need a large set-up: ``python -m benchmarks.limits [NAME...]``, each a line or two.

deep      1,000 versions of 1 % random edits with 100 side branches: newest against first
index     bytes of index for a million blocks of random presence and length in 200 commits
memory    memory beyond the data of writing and reading 1 GiB at an unaligned place
names     a million keys: pages that a range scan touches
labels    the real segmentation at an unaligned offset: exact, and how small
start     importing diced, and opening a store and reading a voxel, in fresh processes
"""

from __future__ import annotations

import gc
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.common import LABELS, Scratch, labels
from diced import DicedStore, grid, index
from diced.state import Change

READ = """
import sys, time, diced
start = time.perf_counter()
repo = diced.DicedStore(sys.argv[1], readonly=True).open_repo("bench", version=sys.argv[2])
opened = time.perf_counter()
repo["a"][0:512, 0:512, 0:512]
print(opened - start, time.perf_counter() - opened)
"""


def deep(versions: int = 1000, edits: int = 5, branch_every: int = 10) -> None:
    """Read a 512-cubed array at the first and at the newest version, in fresh processes."""
    rng = np.random.default_rng(0)
    scratch = Scratch()
    repo = scratch.repo
    array = scratch.array(rng.integers(0, 255, (512, 512, 512), np.uint8))
    first = repo.uuid

    def edit(target: object) -> None:
        z, y, x = (64 * rng.integers(0, 8, 3)).tolist()
        block = rng.integers(0, 255, (64, 64, 64), np.uint8)
        target[z : z + 64, y : y + 64, x : x + 64] = block  # type: ignore[index]

    for number in range(versions):
        repo.lock_node(f"version {number}")
        if number % branch_every == branch_every - 1:
            side = scratch.store.open_repo(uuid=repo.create_branch(branch=f"side {number}"))
            edit(side["a"])
            side.lock_node("side")
        repo.change_version(repo.create_branch())
        with array.batch():
            for _ in range(edits):
                edit(array)
    repo.lock_node("newest")
    times: dict[str, list[list[float]]] = {first: [], repo.uuid: []}
    for _ in range(9):
        for uuid, found in times.items():
            done = subprocess.run(
                [sys.executable, "-c", READ, scratch.path, uuid],
                stdout=subprocess.PIPE,
                check=True,
            )
            found.append([float(each) for each in done.stdout.split()])
    medians = [np.median(found, axis=0) for found in times.values()]
    for name, (opened, read) in zip(("first", "newest"), medians, strict=True):
        print(f"deep: {name}: open {opened * 1e3:.0f} ms, read {read * 1e3:.0f} ms")
    whole = [median.sum() for median in medians]
    print(
        f"deep: {len(repo.versions())} versions; newest / first: read"
        f" {medians[1][1] / medians[0][1]:.2f}, open and read {whole[1] / whole[0]:.2f}"
    )
    scratch.close()


def index_bytes(blocks: int = 1_000_000, commits: int = 200, side: int = 160) -> None:
    """Commit synthetic pointers for random blocks of random lengths and measure the tree."""
    store = DicedStore("memory://")
    repo = store.create_repo("index")
    lane = repo._lane(repo.create_array("a")._spec)
    rng = np.random.default_rng(0)
    cells = rng.permutation(side**3)[:blocks]
    segment, offset = 1, 0
    for number in range(commits):
        mine = np.sort(cells[number * blocks // commits : (number + 1) * blocks // commits])
        coords = np.stack(np.unravel_index(mine, (side,) * 3), 1).astype(np.int64) - side // 2
        delta = {}
        for key in sorted(grid.block_keys(coords)):
            length = int(rng.integers(1, 300_000))
            delta[key] = (segment, offset, length)
            offset += length
            if offset > 2**30:
                segment, offset = segment + 1, 0
        lane.commit(lambda _state, _touched, delta=delta: Change({0: delta}, {}), op="x", user="x")
    repo.lock_node("all")
    history = repo._history
    root = history.roots(repo._node_id)[lane.id].roots[0]
    size = sum(pointer[2] for pointer, _ in index.pages(history.home.load, root))
    every = sum(store.engine.size(key) for key in store.engine.list(f"{history.home.prefix}/pages"))
    print(
        f"index: {index.count(history.home.load, root)} blocks in {size / 1e6:.2f} MB,"
        f" {size / blocks:.2f} bytes a block; with superseded snapshots {every / 1e6:.1f} MB"
    )


def memory() -> None:
    """Write and read 1 GiB; report peak memory beyond the data and the result."""
    scratch = Scratch()
    data = np.random.default_rng(0).integers(0, 255, (1024, 1024, 1024), np.uint8)
    array = scratch.repo.create_array("a", np.uint8)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    box = tuple(slice(o, o + 1024) for o in (5, 7, 9))
    array[box] = data
    written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = array[box]
    read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.array_equal(result, data)
    print(
        f"memory: write {(written - before) / 1024:.0f} MiB beyond the data,"
        f" read {(read - before) / 1024 - 1024:.0f} MiB beyond data and result"
    )
    scratch.close()


def names(count: int = 1_000_000) -> None:
    """Store a million keys and count the pages that a scan of 1,000 loads in a fresh store."""
    scratch = Scratch()
    kv = scratch.repo.create_array("kv", kind="keyvalue")
    start = time.perf_counter()
    for low in range(0, count, 50_000):
        kv.put_many({f"body/{n:09d}": b'{"status": %d}' % n for n in range(low, low + 50_000)})
    scratch.repo.lock_node("all")
    put = time.perf_counter() - start
    repo = DicedStore(scratch.path, readonly=True).open_repo("bench")
    cache = repo._history.home.load
    loads = []
    read = cache._read
    cache._read = lambda pointer: loads.append(pointer) or read(pointer)
    start = time.perf_counter()
    found = list(repo["kv"].items(start="body/000500000", stop="body/000501000"))
    scan = time.perf_counter() - start
    assert len(found) == 1000
    print(
        f"names: {count} keys put in {put:.1f} s; a scan of 1,000 reads {len(loads)} pages"
        f" in {scan * 1e3:.1f} ms"
    )
    scratch.close()


def label_size() -> None:
    """Round-trip the segmentation at an unaligned offset and compare sizes."""
    data = labels((256, 512, 512))
    path = tempfile.mkdtemp()
    store = DicedStore(path, durability="process")
    array = store.create_repo("labels").create_array("seg", islabel3D=True)
    box = tuple(slice(o, o + n) for o, n in zip((-37, 11, -101), data.shape, strict=True))
    array[box] = data
    assert np.array_equal(array[box], data)
    size = sum(store.engine.size(key) for key in store.engine.list(""))
    source = "real" if LABELS.exists() else "synthetic"
    print(f"labels: {source}, {size / 1e6:.2f} MB, 1/{data.nbytes / size:.0f} of uint64")
    store.close()
    shutil.rmtree(path)


def start() -> None:
    """Import over numpy, and opening with one voxel, in fresh processes."""
    from benchmarks.imports import Start

    suite = Start()
    suite.setup()
    suite.track_import_over_numpy()  # writes bytecode
    figures = [
        statistics.median(track() for _ in range(3))
        for track in (suite.track_import_over_numpy, suite.track_open_and_voxel)
    ]
    suite.teardown()
    print(f"start: import {figures[0]:.1f} ms over numpy, open and one voxel {figures[1]:.1f} ms")


FIGURES = {
    "start": start,
    "labels": label_size,
    "index": index_bytes,
    "names": names,
    "memory": memory,
    "deep": deep,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
