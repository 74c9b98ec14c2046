"""Arrays of a server: numpy's manners over HTTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from diced import daskio, grid, planes
from diced import snapshot as reading
from diced.array import DicedArray
from diced.attrs import Attributes
from diced.errors import InvalidError, LockedError, UnsupportedError
from diced.handle import Handle
from diced.remote.batch import Batch
from diced.remote.http import Reply, spell
from diced.remote.levels import Level, RemotePyramid, pyramid_of
from diced.remote.voxels import State, Voxels
from diced.spec import ArraySpec, check_text

if TYPE_CHECKING:
    from diced.remote.repo import RemoteRepo

T = TypeVar("T")


class RemoteHandle(Handle):
    """An instance on a server: what is the same for all kinds.

    Parameters
    ----------
    repo : RemoteRepo
    spec : ArraySpec
    """

    def __init__(self, repo: RemoteRepo, spec: ArraySpec):
        super().__init__(repo, spec)
        self._repo: RemoteRepo = repo

    @property
    def attrs(self) -> Attributes:
        """JSON attributes: of our server the array's own, else kept in ``.meta``."""
        return self._repo._attributes(self._spec)

    def _fields(self) -> dict[str, Any]:
        return self._repo._spec(self._spec).fields

    def _ask(self, method: str, *pieces: str, **more: Any) -> Reply:
        path = spell("node", self._repo.uuid, self.name, *pieces)
        return self._repo.store.server.ask(method, path, **more)

    def _alter(self, act: Callable[[], T]) -> T:
        """Ask for a change; a refusal says where it could be made."""
        try:
            return act()
        except LockedError as error:
            raise LockedError(
                f"array {self.name!r}: {self._repo._locked_message()}; the server says: {error}"
            ) from None

    def _check_open(self) -> None:
        """Refuse at a locked version what changes nothing, and is not sent."""
        if self.locked:
            raise LockedError(f"array {self.name!r}: {self._repo._locked_message()}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_array, (self._repo, self._spec.id, self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.kind} at {self._repo.uuid[:12]}>"


class RemoteInstance(RemoteHandle):
    """An instance of a type that only the server's own requests reach, such as an ROI."""


class RemoteArray(RemoteHandle, DicedArray):
    """An array on a server, at the version that its repo object is at.

    All is as of `DicedArray`, with these differences. An assignment of more than 64 MiB is several
    requests, each a commit of its own. On other servers than ours a batch must fill one box, and
    what must be read to be written, as with steps and boxes that are not whole blocks, is not safe
    against writers in other processes.
    """

    def __init__(self, repo: RemoteRepo, spec: ArraySpec):
        DicedArray.__init__(self, repo, spec)
        self._repo: RemoteRepo = repo

    # -- description -----------------------------------------------------------------------

    @property
    def bounds(self) -> tuple[slice, ...] | None:
        """The box of everything written here and at ancestors, or None.

        As exact as the server knows it: Janelia's knows whole blocks.
        """
        box = self._box()
        return None if box is None else _slices(box)

    def _extents(self) -> grid.Box:
        return grid.extents(self._box(), self._spec.block_shape)

    def _box(self) -> grid.Box | None:
        return self._repo._box(self._spec)

    def blocks(self) -> Iterator[tuple[int, ...]]:
        """Yield the block coordinates of all blocks present: only our server tells them."""
        return self._repo._block_coords(self._spec)

    __repr__ = DicedArray.__repr__

    # -- reading ---------------------------------------------------------------------------

    def read(self, index: Any = ..., out: np.ndarray | None = None) -> Any:
        """Read a selection; arguments, result and errors as of `DicedArray.read`.

        Raises
        ------
        EngineError, AccessError
        """
        batch = self._batch_of_thread()
        state = State(self._box() if grid.is_open(index) else None)
        return reading.read(self._voxels(), state, batch, index, out)  # type: ignore[arg-type]

    def snapshot(self) -> Any:
        """Only a locked version stays as it is on a server; this is not offered."""
        if not self.locked:
            raise UnsupportedError(
                f"array {self.name!r}: DVID's API cannot keep an open version as it is; lock it"
            )
        return reading.Snapshot(self._voxels(), State(self._box()))  # type: ignore[arg-type]

    def plane(self, origin: Any, u: Any, v: Any, shape: tuple[int, int]) -> np.ndarray:
        """Read a plane at any angle; as `DicedArray.plane`, out of the boxes that it crosses."""
        state, batch = State(None), self._batch_of_thread()
        found: np.ndarray = planes.read(
            self._voxels(), state, batch, planes.Plane(origin, u, v, shape)  # type: ignore[arg-type]
        )  # fmt: skip
        return found

    def write_plane(self, origin: Any, u: Any, v: Any, values: np.ndarray) -> None:
        """A plane at an angle is no box, and so no request; this is not offered."""
        raise UnsupportedError(
            f"array {self.name!r}: over DVID's API only boxes are written, not planes at an angle"
        )

    # -- levels ----------------------------------------------------------------------------

    def pyramid(  # type: ignore[override]
        self, levels: int | None = None, *, axes: Any = None, method: str | None = None
    ) -> RemotePyramid:
        """Return the array's pyramid; arguments and errors as of `DicedArray.pyramid`.

        Raises
        ------
        UnsupportedError
            Of Janelia's server: of other arrays than labelarray and labelmap.
        """
        return pyramid_of(self, levels, axes, method)

    def level(self, number: int) -> Any:
        """Return a level of the pyramid, read-only; 0 is the array itself."""
        if type(number) is int and number == 0:
            return self
        return self.pyramid(number or None)[number]

    def _level(self, pyramid: RemotePyramid, number: int) -> RemoteLevel:
        return RemoteLevel(pyramid, number)

    # -- writing ---------------------------------------------------------------------------

    def __setitem__(self, index: Any, value: Any) -> None:
        batch = self._batch_of_thread()
        voxels = self._writable_voxels() if batch is None else batch.voxels
        box = self._box() if grid.is_open(index) else None
        if batch is not None and grid.is_open(index):
            box = grid.union(box, batch.box)
        todo = self._assignment(index, value, box)
        if batch is not None:
            for each in todo:
                batch.assign(each)
            return
        self._send(lambda: voxels.write(todo))

    @contextlib.contextmanager
    def batch(self, operation: str = "batch") -> Iterator[DicedArray]:
        """Join this thread's assignments into one request, and so into one commit of our server.

        They have at most 1 GiB. On other servers they must fill one box together. Inside the block
        this handle reads its own writes. An exception discards them all.

        Parameters
        ----------
        operation : str
            Recorded in the commit by our server.

        Raises
        ------
        UnsupportedError
            The assignments leave gaps; nothing was written.
        """
        if self._batch_of_thread() is not None:
            raise InvalidError(f"array {self.name!r}: batches do not nest")
        check_text(f"array {self.name!r}: the operation", operation)
        found = Batch(self._writable_voxels())
        self._batch.remote = found
        try:
            yield self
        finally:
            self._batch.remote = None
        if found.box is not None:
            self._send(lambda: found.send(operation))

    def _send(self, write: Any) -> None:
        try:
            write()
        except LockedError as error:
            raise LockedError(
                f"array {self.name!r}: {self._repo._locked_message()}; the server says: {error}"
            ) from None

    def _writable_voxels(self) -> Voxels:
        self._repo._check_writable(self._spec)
        voxels = self._voxels()
        voxels.check_writable()
        return voxels

    def _batch_of_thread(self) -> Batch | None:
        found: Batch | None = getattr(self._batch, "remote", None)
        if found is not None and self._spec.versioned and found.voxels.uuid != self._repo.uuid:
            raise InvalidError(f"array {self.name!r}: the batch began at another version")
        return found

    # -- clusters --------------------------------------------------------------------------

    def session(self, operation: str = "session", *, resume: str | None = None) -> Any:
        """Write sessions need the store itself; this is not offered."""
        raise UnsupportedError(
            f"array {self.name!r}: DVID's API has no write sessions; assign boxes, each of which is"
            " a request of its own, or open the store at its location"
        )

    def sessions(self) -> list[str]:
        """Return the ids of write sessions: there are none over DVID's API."""
        return []

    def to_dask(self, index: Any = ..., chunks: Any = None) -> Any:
        """Return a dask array of a selection; as `DicedArray.to_dask`."""
        return daskio.read(self._bound(), index, chunks)

    def from_dask(
        self, source: Any, at: Any = None, operation: str = "dask", **options: Any
    ) -> None:
        """Store a dask array, one request or more for each of its chunks.

        Chunks are seen as they come: there is no commit of all. If that fails half-way, what was
        written stays. Arguments as of `DicedArray.from_dask`.
        """
        check_text(f"array {self.name!r}: the operation", operation)
        self._writable_voxels()
        daskio.store(_Sink(self._bound()), source, at, options.pop("align", True), options)  # type: ignore[arg-type]

    def _bound(self) -> RemoteArray:
        """Return a handle that stays at the version it is at now."""
        return RemoteArray(self._repo._at(self._repo.uuid), self._spec)

    # -- place -----------------------------------------------------------------------------

    def _voxels(self) -> Voxels:
        return Voxels(self, self._repo.uuid)

    def _blocks(self, checked: bool = False) -> Any:
        """Return what `daskio` asks: the box, and what tells the content from others."""
        return _Content(self)


class RemoteLevel(Level, RemoteArray):
    """A level of the pyramid of an array on a server: an array that cannot be written."""


class _Content:
    """An array's content as `daskio` sees it: a lane with one state."""

    def __init__(self, array: RemoteArray):
        self._array = array
        self.lane = self
        self.id = array._spec.id
        self.node_id = array._repo.uuid
        self.spec = array._spec

    def refresh(self) -> State:
        """Return the box; nobody tells whether an open version changed, so each is another."""
        locked = self._array.locked
        return State(self._array._box(), locked, None if locked else os.urandom(16).hex())


class _Sink:
    """Takes what `daskio.store` gives a write session; pickled with its array."""

    def __init__(self, array: RemoteArray):
        self._array = array

    @property
    def array(self) -> RemoteArray:
        """The array."""
        return self._array

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[index] = value

    write = __setitem__

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self._array._spec.id, os.urandom(16).hex()


def _reopen_array(repo: RemoteRepo, array_id: str, name: str) -> Any:
    """Return a pickled handle's array; another one of its name is not it."""
    return repo._same_array(array_id, name)


def _slices(box: grid.Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(*box, strict=True))
