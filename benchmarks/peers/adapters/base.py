"""What an adapter is: a `Peer` that makes and opens arrays, and the `Handle` of an open one.

All arrays are 3-D, in 64-cubed chunks, and begin at 0. A write is *published* when it returns:
another process that opens the array then sees it. Nothing keeps decoded chunks between calls.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

import numpy as np

CHUNK = 64
CHUNKS = (CHUNK, CHUNK, CHUNK)

Index = tuple[int | slice, ...]
Writes = Iterable[tuple[Index, np.ndarray]]

FSYNC_OPS = frozenset({"w_full", "w_100", "c_block_sync", "c_5pct"})


class Handle(ABC):
    """An open array."""

    @abstractmethod
    def read(self, index: Index) -> Any:
        """Return a part in memory of its own, as the library's own indexing does."""

    @abstractmethod
    def write(self, index: Index, value: np.ndarray) -> None:
        """Write a part and publish it."""

    def write_many(self, writes: Writes) -> None:
        """Write several parts and publish them as one, where the library can."""
        for index, value in writes:
            self.write(index, value)

    def write_sync(self, index: Index, value: np.ndarray) -> None:
        """Write a part so that it survives a power cut. Only where the peer is `durable`."""
        self.write(index, value)

    def close(self) -> None:  # noqa: B027 - not every library has anything to close
        """Let go of files."""


class Peer(ABC):
    """A library with one choice of settings.

    Parameters
    ----------
    name : str
    labels : bool
        Whether arrays hold uint64 labels, else uint8 images.
    threads : int
        What the library may use for one call, where it can be told.
    ops, data : collection of str, optional
        The only operations and the only data sets that this row is for.
    """

    kind: ClassVar[str] = "peer"  # or "ours", or "limit": not a store
    packages: ClassVar[tuple[str, ...]] = ()  # to import; also the distributions' names
    one_writer: ClassVar[str] = ""  # why several processes may not write one array at once
    durable = False  # does write_sync reach the disk?

    def __init__(
        self,
        name: str,
        labels: bool,
        threads: int,
        ops: Collection[str] | None = None,
        data: Collection[str] = ("em", "labels"),
    ):
        self.name = name
        self.labels = labels
        self.threads = threads
        self.ops = ops
        self.data = data
        self.dtype = np.dtype(np.uint64 if labels else np.uint8)

    @property
    @abstractmethod
    def settings(self) -> str:
        """What to know about this row: codec, caches, threads."""

    @property
    def fsync(self) -> str:
        """When the library calls fsync."""
        return "never"

    def available(self) -> str | None:
        """Return why this peer cannot run here, or None."""
        missing = [each for each in self.packages if importlib.util.find_spec(each) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that are used."""
        found = {}
        for package in ("numpy", *self.packages):
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "from a checkout"
        return found

    def prepare(self, path: str) -> None:
        """Do at a new path what is done once for many arrays, e.g. make a repository."""
        os.makedirs(path)

    @abstractmethod
    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        """Make an array in a prepared place and open it for writing."""

    @abstractmethod
    def reader(self, path: str, parallel: bool = False) -> Handle:
        """Open for reading; `parallel`: one of several that work at once."""

    @abstractmethod
    def writer(self, path: str, parallel: bool = False) -> Handle:
        """Open for writing and reading back."""

    @abstractmethod
    def snippet(self, path: str) -> str:
        """Return code that imports the library, opens the array and sets `v` to voxel 1, 2, 3."""

    def settle(self, path: str, data: np.ndarray) -> None:  # noqa: B027 - nothing to do for most
        """Bring a written array of `data` into the state in which it is measured."""

    def history(self, path: str, data: np.ndarray, versions: int) -> tuple[Handle, Handle] | None:
        """Give a written array a history; return readers at its first and its newest version."""
        return None

    def create(self, path: str, data: np.ndarray) -> None:
        """Make an array of `data` in a prepared place."""
        handle = self.make(path, data.shape)
        handle.write(tuple(slice(0, n) for n in data.shape), data)
        handle.close()
