"""The processes of the crash suite: writers to be killed, and a reader that is not.

Every operation is a function of (seed, writer, number), so the parent knows from two numbers in a
pipe what was begun and what was acknowledged. A writer owns every eighth plane of the arrays it
shares blocks with the others in; the `flag` arrays are written by all, a box of several blocks at a
time with one value.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from diced import DicedException, DicedRepo, DicedStore, NotFoundError, versioned

WRITERS = 8
MESSAGE = struct.Struct("<BQ")
BEGUN, DONE, READY, FAILED = 1, 2, 3, 4

LOW, HIGH = -24, 40  # every axis of every array that writers own planes of
SIZE = HIGH - LOW
BLOCK = (16, 16, 16)
# name -> axis along which planes belong to writers in turn
OWNED = {"rows": 2, "planes": 0, "labels": 1, "pixels": 2}
# name -> box of all assignments; eight whole blocks, and parts of 27
FLAGS = {
    "flag": (slice(-16, 16),) * 3,
    "drift": (slice(-9, 30), slice(3, 40), slice(-20, 17)),
}
REPO = "crash"
# Arguments of create_array.
ARRAYS: dict[str, dict[str, Any]] = {
    "rows": {"dtype": np.uint32},
    "planes": {"dtype": np.int64, "codec": "zstd"},
    "labels": {"dtype": np.uint64, "islabel3D": True},
    "pixels": {"dtype": np.uint64, "versioned": False, "codec": "raw"},
    "flag": {"dtype": np.uint32},
    "drift": {"dtype": np.uint32},
}


def make_store(location: str, durability: str) -> DicedStore:
    """Create the store that the writers share."""
    store = DicedStore(location, durability=durability)
    repo = store.create_repo(REPO)
    for name, options in ARRAYS.items():
        repo.create_array(name, block_shape=BLOCK, **options)
    return store


def value_of(writer: int, number: int) -> int:
    """The value that marks an operation: unique, and never 0."""
    return number * WRITERS + writer + 1


class Op:
    """One operation: assignments to one array, or files put and deleted.

    Attributes
    ----------
    array : str
        Name, or "files".
    boxes : list of (index, value)
        Applied in order, in one commit.
    files : dict of str to bytes or None
    """

    def __init__(self, seed: int, writer: int, number: int):
        rng = random.Random(f"{seed}/{writer}/{number}")
        self.value = value_of(writer, number)
        self.boxes: list[tuple[tuple[slice | int, ...], Any]] = []
        self.files: dict[str, bytes | None] = {}
        # One of them more than the others, so that several writers are often at one log.
        self.array = rng.choice([*OWNED, *OWNED, *["rows"] * 6, "flag", "flag", "drift", "files"])
        if self.array in FLAGS:
            self.boxes = [(FLAGS[self.array], self.value)]
        elif self.array in OWNED:
            for _ in range(rng.choice([1, 1, 1, 3])):
                self.boxes.append(self._owned(rng, writer))
        else:
            names = [f"writer {writer}/{i}" for i in range(6)]
            for name in rng.sample(names, rng.choice([1, 3])):
                size = rng.choice([10, 300, 5000])
                self.files[name] = (b"%d;" % self.value * size)[:size]
            if rng.random() < 0.3:
                self.files = {rng.choice(names): None}

    def _owned(self, rng: random.Random, writer: int) -> tuple[tuple[slice | int, ...], Any]:
        axis = OWNED[self.array]
        index: list[slice | int] = []
        shape: list[int] = []
        # Half of the boxes are in one block: commits of several writers that do not meet go into
        # one record on a bucket. The others meet nearly always.
        small = rng.random() < 0.5
        for _ in range(3):
            low = rng.randrange(LOW // 16 * 16, HIGH, 16) if small else LOW
            low, high = max(low, LOW), min(low + 16, HIGH) if small else HIGH
            a, b = sorted(rng.sample(range(low, high + 1), 2))
            if len(index) == axis:
                a, b = low, high
            index.append(slice(a, b))
            shape.append(b - a)
        a, b = index[axis].start, index[axis].stop
        first = a + (writer - a) % WRITERS  # planes p with p % WRITERS == writer
        if rng.random() < 0.3:
            index[axis] = rng.randrange(first, b, WRITERS)
            del shape[axis]
        else:
            index[axis] = slice(rng.randrange(first, b, WRITERS), b, WRITERS)
            shape[axis] = len(range(index[axis].start, b, WRITERS))
        if self.array in ("planes", "pixels"):
            # Not constant, so that frames are large and a misplaced voxel shows.
            total = int(np.prod(shape))
            noise = np.random.default_rng(self.value).integers(0, 2**20, total)
            return tuple(index), (self.value * 2**20 + noise).reshape(shape)
        return tuple(index), self.value

    def run(self, repo: DicedRepo) -> None:
        """Write; durable when it returns."""
        if self.array == "files":
            for name, data in self.files.items():
                if data is None:
                    try:
                        repo.delete_file(name)
                    except NotFoundError:
                        continue  # deleted before, or never put
            kept = {name: data for name, data in self.files.items() if data is not None}
            repo.files.put_many(kept)
            return
        array = repo.get_array(self.array)
        # The operation's name carries the value, so that the log tells the order of values.
        with array.batch(str(self.value)):
            for index, value in self.boxes:
                array[index] = value


def slots_of(path: str, mode: str = "r+") -> np.memmap:
    """The last value that each writer saw acknowledged, per flag array, in a shared file."""
    return np.memmap(path, np.int64, mode, shape=(len(FLAGS), WRITERS))


def write(
    environ: dict[str, str],
    location: str,
    durability: str,
    slots_path: str,
    pipe: Any,
    seed: int,
    writer: int,
    number: int,
    limit: int | None,
    snapshot_records: int,
) -> None:
    """Run operations `number`, `number` + 1, ... until killed, or until `limit`.

    Writers have no reason to fail: after an error it waits for its end, so that what became of the
    operation can be found out.
    """
    os.environ.update(environ)
    versioned.SNAPSHOT_RECORDS = snapshot_records
    out = pipe.fileno()
    store = DicedStore(location, durability=durability, create=False)
    repo = store.open_repo(REPO)
    slots = slots_of(slots_path)
    rows = {name: i for i, name in enumerate(FLAGS)}
    os.write(out, MESSAGE.pack(READY, number))
    while limit is None or number < limit:
        op = Op(seed, writer, number)
        os.write(out, MESSAGE.pack(BEGUN, number))
        try:
            op.run(repo)
        except DicedException as error:
            print(f"  operation {op.value} of {op.array!r}: {error!r}", file=sys.stderr, flush=True)
            os.write(out, MESSAGE.pack(FAILED, number))
            time.sleep(3600)
        if op.array in rows:
            slots[rows[op.array], writer] = op.value
        os.write(out, MESSAGE.pack(DONE, number))
        number += 1


def watch(
    environ: dict[str, str],
    location: str,
    options: dict[str, Any],
    slots_path: str,
    stop_path: str,
    log_path: str,
    wanted: int,
) -> None:
    """Read the flag boxes until told to stop, and at least `wanted` times.

    Each row of the log is: flag array, least and greatest value read, the slots before the read.
    Whether a value was stale is decided later, by the order of the commit log.
    """
    os.environ.update(environ)
    store = DicedStore(location, readonly=True, **options)
    repo = store.open_repo(REPO)
    arrays = [(i, repo.get_array(name), box) for i, (name, box) in enumerate(FLAGS.items())]
    outs = [np.empty([s.stop - s.start for s in box], np.uint32) for box in FLAGS.values()]
    slots = slots_of(slots_path, "r")
    count = 0
    with open(log_path, "wb", buffering=1 << 16) as log:
        while count < wanted or not os.path.exists(stop_path):
            # The small box most of the time: it is constant blocks and quick to read.
            i, array, box = arrays[count % 4 == 3]
            before = slots[i].copy()
            out = array.read(box, out=outs[i])
            log.write(np.array([i, out.min(), out.max(), *before], np.int64).tobytes())
            count += 1


def read_rows(log_path: str) -> Iterator[np.ndarray]:
    """Yield the watcher's rows as one table per flag array: least, greatest, slots."""
    table = np.fromfile(log_path, np.int64).reshape(-1, 3 + WRITERS)
    for i in range(len(FLAGS)):
        yield table[table[:, 0] == i, 1:]


def contend(location: str, writer: int, writers: int, writes: int, barrier: Any) -> None:
    """Write `writes` times to voxels of one's own in the one block that all share."""
    store = DicedStore(location, durability="process", create=False)
    array = store.open_repo(REPO).get_array("block")
    barrier.wait(60)
    mine = np.arange(writer, 16 * 16, writers)
    for number in range(writes):
        place = int(mine[number % len(mine)])
        value = number * writers + writer + 1
        array[0, place // 16, place % 16] = value
        if array[0, place // 16, place % 16] != value:
            raise AssertionError(f"writer {writer} does not read its write {number}")


def contended(writers: int, writes: int) -> np.ndarray:
    """What `contend` leaves in plane 0 of the block."""
    plane = np.zeros(16 * 16, np.uint32)
    for writer in range(writers):
        mine = np.arange(writer, 16 * 16, writers)
        for number in range(writes):
            plane[mine[number % len(mine)]] = number * writers + writer + 1
    return plane.reshape(16, 16)


def wait_for(condition: Any, seconds: float, what: str) -> None:
    """Poll until true; raise when it takes too long."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: nothing after {seconds} s")
        time.sleep(0.005)
