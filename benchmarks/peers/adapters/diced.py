"""diced at its defaults, read at a locked version under a short history."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import CHUNK, Handle, Index, Peer, Writes

VERSIONS = 10  # locked above the version that is read
EDITED = 4  # blocks that each of them changed


class DicedHandle(Handle):
    """An array and the store it belongs to."""

    def __init__(self, store: Any, array: Any):
        self.store = store
        self.array = array
        self.read = array.__getitem__  # type: ignore[method-assign]
        self.write = array.__setitem__  # type: ignore[method-assign]

    def read(self, index: Index) -> Any:
        return self.array[index]

    def write(self, index: Index, value: np.ndarray) -> None:
        self.array[index] = value

    def write_many(self, writes: Writes) -> None:
        with self.array.batch():
            for index, value in writes:
                self.array[index] = value

    def close(self) -> None:
        self.store.close()


class Diced(Peer):
    """One array in one repo of one store."""

    kind = "ours"
    packages = ("diced",)

    def __init__(
        self,
        name: str,
        labels: bool,
        threads: int,
        durability: str = "process",
        image_codec: str | None = None,
        label_codec: str | None = None,
        read_open: bool = False,
        ops: Collection[str] | None = None,
        data: Collection[str] = ("em", "labels"),
    ):
        super().__init__(name, labels, threads, ops, data)
        self.durability = durability
        self.codec = label_codec if labels else image_codec
        self.read_open = read_open
        self.durable = durability == "power"

    @property
    def settings(self) -> str:
        codec = self.codec or ("label+lz4 (default)" if self.labels else "lz4 (default)")
        version = "an open version upon" if self.read_open else "the newest of"
        return (
            f"codec {codec}, durability={self.durability!r}, checksums, no cache of decoded blocks,"
            f" {self.threads} threads (1 where several readers or writers work at once), read at"
            f" {version} {VERSIONS} locked versions after the first, each of {EDITED} blocks"
        )

    @property
    def fsync(self) -> str:
        return "data and record, at each commit" if self.durable else "never"

    def _store(self, path: str, parallel: bool) -> Any:
        from diced import DicedStore

        threads = 1 if parallel else self.threads
        return DicedStore(path, durability=self.durability, threads=threads)

    def _open(self, path: str, parallel: bool, for_write: bool) -> DicedHandle:
        store = self._store(path, parallel)
        repo = store.open_repo("bench", version="master")
        if for_write and repo.locked:
            repo.change_version(repo.create_branch())
        return DicedHandle(store, repo["a"])

    def prepare(self, path: str) -> None:
        with self._store(path, False) as store:
            store.create_repo("bench")

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        store = self._store(path, False)
        repo = store.open_repo("bench")
        array = repo.create_array(
            "a", self.dtype, len(shape), islabel3D=self.labels, codec=self.codec
        )
        return DicedHandle(store, array)

    def reader(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, parallel, for_write=False)

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return self._open(path, parallel, for_write=True)

    def snippet(self, path: str) -> str:
        return (
            f"import numpy, diced; v = diced.DicedStore({path!r}, readonly=True)"
            f".open_repo('bench', version='master')['a'][1, 2, 3]"
        )

    def settle(self, path: str, data: np.ndarray) -> None:
        self._grow(path, data, VERSIONS)
        if self.read_open:
            handle = self.writer(path)
            handle.write(tuple(slice(0, CHUNK) for _ in data.shape), data[:CHUNK, :CHUNK, :CHUNK])
            handle.close()

    def history(self, path: str, data: np.ndarray, versions: int) -> tuple[Handle, Handle]:
        self._grow(path, data, versions)
        first = self._store(path, False)
        return DicedHandle(first, first.open_repo("bench")["a"]), self.reader(path)

    def _grow(self, path: str, data: np.ndarray, versions: int) -> None:
        """Add locked versions, each undoing the last one's edits; the newest is `data` again."""
        rng = np.random.default_rng(7)
        places = [range(n // CHUNK) for n in data.shape]
        edited: list[Index] = []
        with self._store(path, False) as store:
            repo = store.open_repo("bench", version="master")
            array = repo["a"]
            for number in range(versions):
                repo.lock_node(f"version {number}")
                repo.change_version(repo.create_branch())
                with array.batch():
                    for box in edited:
                        array[box] = data[box]
                    edited.clear()
                    for _ in range(EDITED if number < versions - 1 else 0):
                        corner = [CHUNK * int(rng.choice(place)) for place in places]
                        box = tuple(slice(n, n + CHUNK) for n in corner)
                        array[box] = data[box] ^ data.dtype.type(1)
                        edited.append(box)
            repo.lock_node("newest")
