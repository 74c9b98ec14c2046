"""icechunk: zarr-python over a versioned repository; a write is a commit."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.adapters.base import CHUNKS, Handle, Index, Peer, Writes
from benchmarks.peers.adapters.zarr import compressor


class IcechunkHandle(Handle):
    """The array at the tip of ``main``, opened when the handle is made and after each commit."""

    def __init__(self, repo: Any, array: Any = None):
        self.repo = repo
        self.array = array

    def read(self, index: Index) -> Any:
        if self.array is None:
            self.array = _array(self.repo.readonly_session("main"))
        return self.array[index]

    def write(self, index: Index, value: np.ndarray) -> None:
        self.write_many([(index, value)])

    def write_many(self, writes: Writes) -> None:
        session = self.repo.writable_session("main")
        array = _array(session, "r+")
        for index, value in writes:
            array[index] = value
        session.commit("write")
        self.array = None


def _array(session: Any, mode: str = "r") -> Any:
    import zarr

    return zarr.open_array(session.store, path="a", mode=mode)


class Icechunk(Peer):
    """One array in one local repository."""

    packages = ("icechunk", "zarr")
    # It warns so itself; four writers at once were seen to lose commits.
    one_writer = "its local storage is not safe for concurrent commits"

    @property
    def settings(self) -> str:
        return f"zstd1, local file system, one commit per write, {self.threads} threads"

    def _repo(self, path: str) -> Any:
        import icechunk
        import zarr

        zarr.config.set({"threading.max_workers": self.threads})
        return icechunk.Repository.open(icechunk.local_filesystem_storage(path))

    def prepare(self, path: str) -> None:
        import icechunk

        super().prepare(path)
        icechunk.Repository.create(icechunk.local_filesystem_storage(path))

    def make(self, path: str, shape: tuple[int, ...]) -> Handle:
        import zarr

        repo = self._repo(path)
        session = repo.writable_session("main")
        zarr.create_array(
            session.store,
            name="a",
            shape=shape,
            chunks=CHUNKS,
            dtype=self.dtype,
            compressors=compressor("zstd1"),
        )
        session.commit("create")
        return IcechunkHandle(repo)

    def reader(self, path: str, parallel: bool = False) -> Handle:
        repo = self._repo(path)
        return IcechunkHandle(repo, _array(repo.readonly_session("main")))

    def writer(self, path: str, parallel: bool = False) -> Handle:
        return IcechunkHandle(self._repo(path))

    def snippet(self, path: str) -> str:
        return (
            "import numpy, icechunk, zarr;"
            f" repo = icechunk.Repository.open(icechunk.local_filesystem_storage({path!r}));"
            " v = zarr.open_array(repo.readonly_session('main').store, path='a', mode='r')[1, 2, 3]"
        )
