"""Boxes of voxels over HTTP: cut into requests, sent side by side, merged where the server cannot.

Our own server merges a box of any alignment itself, one POST being one commit. Janelia's takes
whole blocks only: there the blocks at the border are read, changed and written back.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diced import grid, pool
from diced._compress import lz4_compress, lz4_decompress
from diced.errors import (
    BadIndexError,
    CorruptError,
    DicedException,
    InvalidError,
    UnsupportedError,
)
from diced.grid import Box
from diced.pending import Assignment
from diced.remote.boxes import cut, lay, meet, shells, values_of, window
from diced.remote.facts import INDEXED
from diced.remote.http import spell
from diced.remote.records import jpeg_blocks
from diced.spec import ArraySpec

if TYPE_CHECKING:
    from diced.remote.array import RemoteArray

Coordinates = tuple[int, ...]

# Bytes of voxels in one request. A read is cut finely, so that there is something to do side by
# side; a write coarsely, because one POST is one commit.
READ_BYTES = 16 * 2**20
READ_LEAST = 2 * 2**20
WRITE_BYTES = 64 * 2**20
# What must be one POST may have so many.
MOST_BYTES = 2**30


class State:
    """What is known of an array's content; the part of `state.State` that reading needs."""

    def __init__(self, box: Box | None, locked: bool = False, number: Any = None):
        self.box = box
        self.locked = locked
        self.number = number


class Voxels:
    """The voxels of one array at one version of a server.

    Parameters
    ----------
    array : RemoteArray
    uuid : str
        Of the version.
    """

    def __init__(self, array: RemoteArray, uuid: str):
        repo = array._repo
        self.spec: ArraySpec = array._spec
        self.uuid = uuid
        self._server = repo.store.server
        self._store = repo.store
        self._threads = repo.store.threads
        self._path = spell("node", uuid, self.spec.name)
        self._query: dict[str, Any] = {}  # of reads
        self._type = str(self.spec.fields["type"])
        # In the order of bytes of the wire, whatever this machine's is.
        self._wire: np.dtype[Any] = self.spec.dtype.newbyteorder("<")
        self._tail = () if self.spec.channels is None else (self.spec.channels,)
        self._size = self.spec.dtype.itemsize
        self._itemsize = self._size * (self.spec.channels or 1)
        # Numbers that make three axes of an array that has fewer.
        self._more = max(0, 3 - self.spec.dims)
        self.operation: str | None = None  # what our server records
        self.commits = self._store.ours  # several boxes can be one commit

    # -- reading ---------------------------------------------------------------------------

    def read(self, _state: State, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        """Fill `out`, whose shape is that of the box (and channels), with its voxels."""
        if self._as_jpeg():
            parts = cut(*self._around(lo, hi), self.spec.block_shape, self._itemsize, READ_BYTES)
            pool.for_each(
                lambda part: self._read_jpeg(*part, lo, hi, out), list(parts), self._threads
            )
            return
        nbytes = math.prod(b - a for a, b in zip(lo, hi, strict=True)) * self._itemsize
        most = max(READ_LEAST, min(READ_BYTES, nbytes // self._threads))
        boxes = list(cut(lo, hi, self.spec.block_shape, self._itemsize, most))

        def fetch(part: Box) -> None:
            self._fetch(*part, out[window(part, lo)])

        pool.for_each(fetch, boxes, self._threads)

    @property
    def lane(self) -> Voxels:
        """What `planes` asks for the entries of blocks."""
        return self

    def get_many(self, _state: State, _space: int, names: list[bytes]) -> list[bytes]:
        """Return an entry for each block: whether it is there is not known before it is read."""
        return names

    def read_entries(
        self, _entries: list[bytes], names: list[bytes], rows: np.ndarray, out: np.ndarray
    ) -> None:
        """Read whole blocks, a request for each, to the places that `rows` say."""

        def fetch(job: tuple[list[int], list[int]]) -> None:
            coord, start = job
            lo = [c * n for c, n in zip(coord, self.spec.block_shape, strict=True)]
            # A block at the edge of the coordinates may reach beyond them.
            low = tuple(max(each, grid.MIN_COORDINATE) for each in lo)
            high = tuple(
                min(a + n, grid.MAX_COORDINATE + 1)
                for a, n in zip(lo, self.spec.block_shape, strict=True)
            )
            origin = [a - at for a, at in zip(lo, start, strict=True)]
            self._fetch(low, high, out[window((low, high), origin)])

        coords = grid.block_coords(names, self.spec.dims).tolist()
        jobs = list(zip(coords, rows[:, 2].tolist(), strict=True))
        pool.for_each(fetch, jobs, self._threads)

    def _fetch(self, lo: Coordinates, hi: Coordinates, out: np.ndarray) -> None:
        """Read one box by one request."""
        direct = out.flags.c_contiguous and out.dtype == self._wire
        target = out if direct else np.empty(out.shape, self._wire)
        data = _octets(target)
        path = f"{self._path}/raw/{self._place(lo, hi)}"
        if self.spec.kind == "label":
            query = {"compression": "lz4", **self._query}
            reply = self._server.ask("GET", path, query=query, take=_all)
            try:
                lz4_decompress(reply.body, data)
            except DicedException as error:
                raise CorruptError(
                    f"array {self.spec.name!r}: the answer is not LZ4 of {len(data)} bytes: {error}"
                    f" [{reply.request}]"
                ) from None
        else:
            self._server.fill(path, data, **self._query)
        if not direct:
            out[...] = target

    def _as_jpeg(self) -> bool:
        return bool(
            self._store.jpeg
            and self.spec.lossy
            and self.spec.dims == 3
            and self.spec.dtype == np.uint8
            and not self._tail
        )

    def _read_jpeg(
        self,
        low: Coordinates,
        high: Coordinates,
        lo: Sequence[int],
        hi: Sequence[int],
        out: np.ndarray,
    ) -> None:
        """Read whole blocks as they are stored, and put into `out` what is in the box."""
        shape = self.spec.block_shape
        size = "_".join(str(b - a) for a, b in reversed(list(zip(low, high, strict=True))))
        start = "_".join(map(str, reversed(low)))
        reply = self._server.ask(
            "GET", f"{self._path}/subvolblocks/{size}/{start}",
            query={"compression": "jpeg"}, take=_all,
        )  # fmt: skip
        inside = meet((low, high), (tuple(lo), tuple(hi)))
        if inside is None:
            return
        out[window(inside, lo)] = 0
        for corner, block in jpeg_blocks(reply.body, shape, f"{reply.request}"):
            end = tuple(a + n for a, n in zip(corner, shape, strict=True))
            part = meet((corner, end), inside)
            if part is not None:
                out[window(part, lo)] = block[window(part, corner)]

    # -- writing ---------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Refuse to write what only looks like voxels."""
        if self._type in INDEXED or self._type not in _WRITABLE:
            raise UnsupportedError(
                f"array {self.spec.name!r} is a {self._type}, whose bodies are not written as"
                " voxels; it can only be read"
            )

    def write(
        self, todo: Sequence[Assignment], *, whole: bool = False, operation: str | None = None
    ) -> None:
        """Carry out assignments, one after the other.

        Parameters
        ----------
        todo : sequence of Assignment
        whole : bool
            Each by one POST, and so by one commit of our server; refused beyond `MOST_BYTES`.
        operation : str, optional
            What our server records of it.
        """
        self.operation = operation if self._store.ours else None
        for each in todo:
            if self._store.ours and not each.dense and each.source.size * self._size <= MOST_BYTES:
                self.commit([each])
                continue
            as_it_is = each.dense and (self._store.merges or self._is_aligned(each.lo, each.hi))
            if as_it_is and self._write(each, whole):
                continue
            # Writers of this store object do not undo each other's changes to a block.
            with self._store.lock_of(self.spec.id):
                self._write_merged(each, whole)

    def commit(self, todo: Sequence[Assignment]) -> None:
        """Carry out assignments by one request to our server, and so by one commit."""
        indices, parts = [], []
        for each in todo:
            index = [list(axis) for axis in zip(each.lo, each.hi, each.step, strict=True)]
            if self._tail:
                chosen = each.channel[0] if each.channel else slice(None)
                first, last, step = chosen.indices(self._tail[0])
                values = each.source
                if step < 0:  # the same channels, in ascending order
                    count = len(range(first, last, step))
                    first, last, step = first + (count - 1) * step, first + 1, -step
                    values = values[..., ::-1]
                index.append([first, last, step])
                parts.append(np.ascontiguousarray(values, self._wire))
            else:
                parts.append(np.ascontiguousarray(each.source, self._wire))
            indices.append(index)
        head = json.dumps({"operation": self.operation, "indices": indices}).encode()
        if sum(part.nbytes for part in parts) > MOST_BYTES:
            raise UnsupportedError(
                f"array {self.spec.name!r}: a batch on a server is one request of at most"
                f" {MOST_BYTES} bytes. Plain assignments may be larger"
            )
        size = len(head).to_bytes(4, "little")
        body = b"".join([size, head, *(part.tobytes() for part in parts)])
        self._server.ask("POST", f"{self._path}/diced/batch", body=body)

    def _write(self, todo: Assignment, whole: bool) -> bool:
        """Write a dense box; False if the server turned out to take whole blocks only."""
        try:
            pool.for_each(
                lambda part: self._post(*part, values_of(todo, part, self._wire)),
                self._cut(todo.lo, todo.hi, whole), self._threads,
            )  # fmt: skip
        except InvalidError as error:
            if "non-block aligned" not in str(error) or self._is_aligned(todo.lo, todo.hi):
                raise
            self._store.merges = False
            return False
        return True

    def _write_merged(self, todo: Assignment, whole: bool) -> None:
        """Read, change and write back."""
        lo, hi = todo.lo, todo.hi
        if not self._store.merges:
            lo, hi = self._around(lo, hi)

        def change(part: Box) -> None:
            low, high = part
            full = todo.dense and meet(part, (todo.lo, todo.hi)) == part
            shape = tuple(b - a for a, b in zip(low, high, strict=True)) + self._tail
            values = np.empty(shape, self._wire)
            if not full:
                self._fetch(low, high, values)
            lay(todo, part, values)
            self._post(low, high, values)

        boxes = [(lo, hi)]
        if not whole and todo.dense:
            boxes = list(shells(lo, hi, todo.lo, todo.hi, self.spec.block_shape))
        parts = [part for box in boxes for part in self._cut(*box, whole)]
        nbytes = math.prod(b - a for a, b in zip(lo, hi, strict=True)) * self._itemsize
        # A small box is one request there and back, whatever part of it is read in vain.
        if nbytes <= READ_LEAST and len(parts) > 1:
            parts = self._cut(lo, hi, whole)
        pool.for_each(change, parts, self._threads)

    def _cut(self, lo: Coordinates, hi: Coordinates, whole: bool) -> list[Box]:
        if not whole:
            return list(cut(lo, hi, self.spec.block_shape, self._itemsize, WRITE_BYTES))
        nbytes = math.prod(b - a for a, b in zip(lo, hi, strict=True)) * self._itemsize
        if nbytes > MOST_BYTES:
            raise UnsupportedError(
                f"array {self.spec.name!r}: a batch on a server is one request of at most"
                f" {MOST_BYTES} bytes; got {nbytes}. Plain assignments may be larger"
            )
        return [(lo, hi)]

    def _post(self, lo: Coordinates, hi: Coordinates, values: np.ndarray) -> None:
        """Write one box by one request."""
        data = np.ascontiguousarray(values, self._wire)
        body: bytes | memoryview = _octets(data)
        query: dict[str, Any] = {"operation": self.operation}
        if self.spec.kind == "label":
            body, query["compression"] = lz4_compress(body), "lz4"
            # Of labels that others are derived from, what was there before is looked at.
            query["mutate"] = "true" if self.spec.fields.get("syncs") else None
        path = f"{self._path}/raw/{self._place(lo, hi)}"
        self._server.ask("POST", path, query=query, body=body)

    # -- places ----------------------------------------------------------------------------

    def _place(self, lo: Sequence[int], hi: Sequence[int]) -> str:
        """Return ``0_1_2/size/offset`` of a box."""
        low = (*(0,) * self._more, *lo)
        sizes = (*(1,) * self._more, *(b - a for a, b in zip(lo, hi, strict=True)))
        dims = "_".join(map(str, range(len(low))))
        return "/".join([dims, *("_".join(map(str, reversed(each))) for each in (sizes, low))])

    def _around(self, lo: Sequence[int], hi: Sequence[int]) -> Box:
        """Return the whole blocks around a box."""
        low, high = grid.align(lo, hi, self.spec.block_shape)
        if min(low) < grid.MIN_COORDINATE or max(high) > grid.MAX_COORDINATE + 1:
            raise BadIndexError(
                f"array {self.spec.name!r}: the blocks around {tuple(lo)} to {tuple(hi)} are"
                " outside 32-bit coordinates, and this server takes whole blocks only"
            )
        return low, high

    def _is_aligned(self, lo: Sequence[int], hi: Sequence[int]) -> bool:
        return grid.align(lo, hi, self.spec.block_shape) == (tuple(lo), tuple(hi))


_WRITABLE = frozenset(
    ("uint8blk", "uint16blk", "uint32blk", "uint64blk", "float32blk", "rgba8blk", "labelblk",
     "grayscale8", "labels64", "rgba8", "diced")
)  # fmt: skip


def _octets(values: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array, not copied."""
    flat: Any = values.reshape(-1).view(np.uint8)
    return memoryview(flat)


def _all(response: Any) -> bytes:
    data: bytes = response.read()
    return data


_locks_lock = threading.Lock()


class Locks:
    """A lock per array, of one store object."""

    def __init__(self) -> None:
        self._held: dict[str, threading.RLock] = {}

    def of(self, name: str) -> threading.RLock:
        """Return the lock of a name."""
        with _locks_lock:
            return self._held.setdefault(name, threading.RLock())
