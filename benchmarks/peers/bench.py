"""One peer on one volume: its arrays, opened when needed, and how calls are timed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.peers.adapters import Handle, make
from benchmarks.peers.adapters.base import CHUNK, Index


def load(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a cached volume, its pages shared with other processes and already mapped.

    Copy-on-write only in name: nothing writes to it, but some libraries refuse what is read-only.
    """
    data = np.load(path, mmap_mode="c").view(np.ndarray)
    data.ravel().view(np.uint8)[::4096].max()
    return data


class SkipOp(Exception):
    """Says why an operation does not apply to a peer."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is told at its start.

    Attributes
    ----------
    peer, data : str
        Names.
    path : str
        The volume's ``.npy``.
    root : str
        A directory for this worker alone.
    threads : int
    budget : float
        Seconds for one turn's timed calls.
    overwrites, versions : int
        Of the operations ``size`` and ``deep``.
    """

    peer: str
    data: str
    path: str
    root: str
    threads: int
    budget: float
    overwrites: int
    versions: int


class Bench:
    """The state of a worker."""

    def __init__(self, task: Task):
        self.task = task
        self.peer = make(task.peer, task.data == "labels", task.threads)
        self.count = 0

    @functools.cached_property
    def data(self) -> np.ndarray:
        """The volume."""
        return load(self.task.path)

    @functools.cached_property
    def whole(self) -> Index:
        """All of it."""
        return tuple(slice(0, n) for n in self.data.shape)

    # -- arrays ----------------------------------------------------------------------------

    def new_path(self) -> str:
        """Return a place where nothing is yet, prepared."""
        self.count += 1
        path = os.path.join(self.task.root, f"n{self.count}")
        self.peer.prepare(path)
        return path

    def remove(self, path: str) -> None:
        """Remove an array's files."""
        shutil.rmtree(path)

    @functools.cached_property
    def main(self) -> str:
        """The array that is only read."""
        path = self.new_path()
        self.peer.create(path, self.data)
        self.peer.settle(path, self.data)
        return path

    @functools.cached_property
    def reader(self) -> Handle:
        """The main array, verified, all of it read once."""
        handle = self.peer.reader(self.main)
        self.verify(handle)
        handle.read(self.whole)
        return handle

    @functools.cached_property
    def parallel_reader(self) -> Handle:
        """The main array for several threads."""
        return self.peer.reader(self.main, parallel=True)

    @functools.cached_property
    def work(self) -> Handle:
        """The array that is written to."""
        path = self.new_path()
        self.peer.create(path, self.data)
        self.peer.settle(path, self.data)
        return self.peer.writer(path)

    @functools.cached_property
    def deep(self) -> tuple[Handle, Handle]:
        """The first and the newest version of an array with a long history."""
        path = self.new_path()
        self.peer.create(path, self.data)
        found = self.peer.history(path, self.data, self.task.versions)
        if found is None:
            raise SkipOp("keeps no versions, or its adapter makes none")
        self.verify(found[1])
        return found

    def verify(self, handle: Handle) -> None:
        """Compare boxes, slices and voxels with the source."""
        rng = self.rng("verify", 0)
        shape = self.data.shape
        indices: list[Index] = [self.box(rng, 128) for _ in range(3)]
        indices += [self.plane(rng, axis) for axis in range(3)]
        indices += [tuple(map(int, rng.integers(0, shape))) for _ in range(20)]
        for index in indices:
            self.compare(handle, index, self.data[index])

    def compare(self, handle: Handle, index: Index, wanted: np.ndarray) -> None:
        """Raise if a read does not give what it should."""
        found = np.asarray(handle.read(index))
        if found.dtype != wanted.dtype or not np.array_equal(found, wanted):
            raise ValueError(f"{self.peer.name} reads other voxels at {index}")

    # -- places: the same for every peer -----------------------------------------------------

    def rng(self, what: str, turn: int) -> np.random.Generator:
        """Return random numbers that depend on the operation and the round only."""
        return np.random.default_rng([zlib.crc32(what.encode()), turn])

    def box(self, rng: np.random.Generator, side: int) -> Index:
        """Return a random cube."""
        corner = rng.integers(0, np.array(self.data.shape) - side + 1).tolist()
        return tuple(slice(n, n + side) for n in corner)

    def plane(self, rng: np.random.Generator, axis: int) -> Index:
        """Return a random slice of the whole volume across an axis."""
        index: list[int | slice] = list(self.whole)
        index[axis] = int(rng.integers(0, self.data.shape[axis]))
        return tuple(index)

    def chunks(self, rng: np.random.Generator, count: int) -> list[Index]:
        """Return different random chunks."""
        grid = [n // CHUNK for n in self.data.shape]
        chosen = rng.choice(int(np.prod(grid)), count, replace=False)
        corners = np.stack(np.unravel_index(chosen, grid), 1) * CHUNK
        return [tuple(slice(n, n + CHUNK) for n in corner) for corner in corners.tolist()]

    def slabs(self, count: int) -> list[Index]:
        """Cut the volume into aligned slabs across its longest axis."""
        axis = int(np.argmax(self.data.shape))
        layers = self.data.shape[axis] // CHUNK
        cuts = [CHUNK * (layers * i // count) for i in range(count + 1)]
        found = []
        for low, high in itertools.pairwise(cuts):
            index = list(self.whole)
            index[axis] = slice(low, high)
            found.append(tuple(index))
        return found

    # -- timing ----------------------------------------------------------------------------

    def clock(self, calls: Iterable[Callable[[], object]]) -> list[float]:
        """Time calls one by one, as many as the budget allows, at least one; results are dropped.

        An iterator's own work between the calls is not timed but counts for the budget.
        """
        found = []
        deadline = time.perf_counter() + self.task.budget
        for call in calls:
            start = time.perf_counter()
            result = call()
            end = time.perf_counter()
            found.append(end - start)
            del result
            if end > deadline:
                break
        return found
