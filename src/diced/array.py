"""Arrays: numpy-style reading and writing of unbounded, versioned, blocked space.

Owns what an index means and what a handle follows; blocks are those of `blocks` and `pending`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diced import daskio, grid, planes
from diced import session as sessions
from diced import snapshot as reading
from diced.blocks import Blocks
from diced.described import DescribedVoxels
from diced.errors import CorruptError, InvalidError
from diced.handle import Handle, together
from diced.pending import Assignment, Pending
from diced.scaled import Scaled
from diced.session import WriteSession
from diced.snapshot import Snapshot
from diced.spec import ArraySpec, array_fields, as_values, check_text

if TYPE_CHECKING:
    from diced.repo import DicedRepo

Extents = tuple[slice, ...] | slice


class DicedArray(Scaled, DescribedVoxels, Handle):
    """An n-dimensional array at the version that its repo object is at.

    Coordinates are signed 32-bit, in ZYX order for volumes; negative indices are coordinates, not
    counted from the end. Only written blocks exist; the rest reads as the fill value. Channels, if
    any, are an extra last axis of results and of `shape`, not of `numdims` or `block_shape`.

    `shape` is the size of the block-aligned extents, the shape of ``array[...]``; an index is a
    coordinate and not an offset into it. Code that slices ``0:shape``, as dask does, sees the
    written voxels only if the extents begin at 0.

    Arrays are made by `DicedRepo.create_array` and opened by `DicedRepo.get_array`.
    """

    def __init__(self, repo: DicedRepo, spec: ArraySpec):
        super().__init__(repo, spec)
        self._at: tuple[str, Blocks] | None = None
        self._batch = threading.local()
        # The open ones of all threads: while there are none, `_batch` need not be asked.
        self._batches: set[Pending] = set()

    @staticmethod
    def describe(name: str, **options: Any) -> dict[str, Any]:
        """Check the options of ``create_array`` and return what is stored of them."""
        return array_fields(name, **options)

    # -- description -----------------------------------------------------------------------

    def get_numdims(self) -> int:
        """Return the number of spatial dimensions."""
        return self._spec.dims

    @property
    def ndim(self) -> int:
        """Number of dimensions of results, channels included."""
        return self._spec.dims + (self._spec.channels is not None)

    @property
    def islabel3D(self) -> bool:
        """True for label arrays."""
        return self._spec.codec.startswith("label")

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a block as other libraries call it, channels included."""
        return self._spec.full_block_shape

    @property
    def codec(self) -> str:
        """How new blocks are encoded."""
        return self._spec.codec

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """Size of a voxel per axis, ZYX, in `units`."""
        return tuple(self._fields()["voxel_size"])

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of `voxel_size` per axis."""
        return tuple(self._fields()["units"])

    @property
    @together()
    def bounds(self) -> tuple[slice, ...] | None:
        """The exact box of everything written here and at ancestors, or None."""
        box = self._blocks().lane.refresh().box
        return None if box is None else _slices(box)

    def get_extents(self) -> Extents:
        """Return the block-aligned box of what was written, as slices.

        Returns
        -------
        tuple of slice
            One per axis, ZYX; the bare slice in 1-D; ``slice(0, 0)`` while nothing was written.
        """
        slices = _slices(self._extents())
        return slices[0] if self._spec.dims == 1 else slices

    @together()
    def _extents(self) -> grid.Box:
        return grid.extents(self._blocks().lane.refresh().box, self._spec.block_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``array[...]``: the size of the extents, channels last."""
        lo, hi = self._extents()
        sizes = tuple(b - a for a, b in zip(lo, hi, strict=True))
        return sizes + ((self._spec.channels,) if self._spec.channels is not None else ())

    @property
    def size(self) -> int:
        """Number of elements of ``array[...]``."""
        total = 1
        for each in self.shape:
            total *= each
        return total

    @property
    def nbytes(self) -> int:
        """Bytes of ``array[...]``."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Yield ``array[i]`` for each i of the extents' first axis."""
        lo, hi = self._extents()
        for each in range(lo[0], hi[0]):
            yield self.read((each, ...))

    # Without these Python would go through coordinates from 0.
    __contains__ = None
    __reversed__ = None

    @together()
    def blocks(self) -> Iterator[tuple[int, ...]]:
        """Yield the block coordinates of all blocks present, near ones near each other."""
        blocks = self._blocks()
        return blocks.coords(blocks.lane.refresh())

    def __repr__(self) -> str:
        lo, hi = self._extents()
        where = ", ".join(f"{a}:{b}" for a, b in zip(lo, hi, strict=True))
        channels = "" if self.channels is None else f" x {self.channels} channels"
        state = "locked" if self.locked else "open"
        return (
            f"<DicedArray {self.name!r} [{where}]{channels} {self.dtype.name} {self.kind}"
            f" at {state} version {self._repo.uuid[:12]}>"
        )

    # -- reading ---------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        return self.read(index)

    @together()
    def read(self, index: Any = ..., out: np.ndarray | None = None) -> Any:
        """Read a selection.

        Parameters
        ----------
        index : int, slice, Ellipsis or tuple of them
            Voxel coordinates, ZYX. Open ends mean the extents; steps may be negative.
        out : numpy.ndarray, optional
            Array of the result's shape and the array's dtype to fill instead of a new one.

        Returns
        -------
        numpy.ndarray or scalar
            Shape of the selection, integer axes dropped, channels last.

        Raises
        ------
        BadIndexError, InvalidError, CorruptBlockError
        """
        blocks = self._blocks()
        try:
            return reading.read(blocks, blocks.lane.refresh(), self._pending(), index, out)
        except CorruptError:
            self._repo._check_there(self._spec)
            raise

    @together()
    def snapshot(self) -> Snapshot:
        """Return the array as it is now, to be read any number of times as of one commit."""
        blocks = self._blocks()
        return Snapshot(blocks, blocks.lane.refresh())

    @together()
    def plane(
        self,
        origin: Sequence[float],
        u: Sequence[float],
        v: Sequence[float],
        shape: tuple[int, int],
    ) -> np.ndarray:
        """Read a plane at any angle; only blocks that it crosses are decoded.

        Parameters
        ----------
        origin : sequence of float
            Where result ``[0, 0]`` lies, ZYX in voxels; whole numbers are centres of voxels.
        u, v : sequence of float
            Steps from one row to the next, and from one column to the next, ZYX in voxels.
        shape : (int, int)
            Rows and columns.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns), channels last. Interpolated linearly, integers rounded; the
            nearest voxel for labels and bool.

        Raises
        ------
        InvalidError, BadIndexError, CorruptBlockError
        """
        blocks = self._blocks()
        state = blocks.lane.refresh()
        return planes.read(blocks, state, self._pending(), planes.Plane(origin, u, v, shape))

    def write_plane(
        self,
        origin: Sequence[float],
        u: Sequence[float],
        v: Sequence[float],
        values: np.ndarray,
    ) -> None:
        """Write a plane at any angle, each value into the voxel nearest to it, in one commit.

        Parameters
        ----------
        origin, u, v : sequence of float
            As of `plane`. Of values for one voxel the last counts.
        values : numpy.ndarray
            Shape (rows, columns), channels last.

        Raises
        ------
        InvalidError, BadIndexError, LockedError
        """
        found = np.asarray(values)
        with contextlib.ExitStack() as stack:
            if self._pending() is None:
                stack.enter_context(self.batch("plane"))
            pending = self._pending()
            assert pending is not None
            planes.write(pending, planes.Plane(origin, u, v, found.shape[:2]), found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"array {self.name!r} is on storage: reading it makes a copy")
        result = np.asarray(self.read(...))
        return result if dtype is None else result.astype(dtype, copy=False)

    # -- writing ---------------------------------------------------------------------------

    @together(lane=False)
    def __setitem__(self, index: Any, value: Any) -> None:
        pending = self._pending()
        # Whether this can be written was asked when the batch began, and will be at its commit.
        blocks = self._writable() if pending is None else pending.blocks
        # An index without open ends does not depend on the state, and a commit meets newer ones.
        state = blocks.lane.refresh() if grid.is_open(index) else blocks.lane.recent()
        box = state.box if pending is None else grid.union(state.box, pending.box)
        todo = self._assignment(index, value, box)
        if not todo:
            return
        target = Pending(blocks, keep=False) if pending is None else pending
        for each in todo:
            target.assign(state, each)
        if pending is None:
            self._commit(blocks.lane, target.prepare, "write", state)

    @contextlib.contextmanager
    def batch(self, operation: str = "batch") -> Iterator[DicedArray]:
        """Join this thread's assignments into one commit, seen whole or not at all.

        Inside the block this handle reads its own writes. An exception discards them all.

        Parameters
        ----------
        operation : str
            Recorded in the commit.
        """
        if getattr(self._batch, "pending", None) is not None:
            raise InvalidError(f"array {self.name!r}: batches do not nest")
        check_text(f"array {self.name!r}: the operation", operation)
        pending = Pending(self._writable(), keep=True)
        self._batch.pending = pending
        self._batches.add(pending)
        try:
            yield self
        except BaseException:
            pending.discard()
            raise
        finally:
            self._batch.pending = None
            self._batches.discard(pending)
        if pending.broken:
            raise InvalidError(
                f"array {self.name!r}: an assignment inside the batch failed half-way;"
                " nothing of the batch was written"
            )
        if pending.box is not None:
            self._repo._spec(self._spec)  # deleted meanwhile?
            self._commit(pending.blocks.lane, pending.prepare, operation)

    def _assignment(self, index: Any, value: Any, box: grid.Box | None) -> list[Assignment]:
        spec = self._spec
        chosen = grid.Selection(index, box, spec.block_shape, spec.name, spec.channels)
        tail = () if spec.channels is None else (spec.channels,)
        values = as_values(value, self.dtype, f"array {self.name!r}")
        shape = reading.result_shape(chosen, tail)
        if values.shape != shape:
            try:
                values = np.broadcast_to(values, shape)
            except ValueError:
                raise InvalidError(
                    f"array {self.name!r}: cannot write shape {values.shape} into {shape}"
                ) from None
        if chosen.empty or 0 in shape:
            return []
        channel: tuple[slice, ...] = ()
        if tail:
            if isinstance(chosen.channel, int):
                values = values[..., np.newaxis]
                channel = (slice(chosen.channel, chosen.channel + 1),)
            elif len(range(*chosen.channel.indices(tail[0]))) < tail[0] or chosen.channel.step:
                channel = (chosen.channel,)
        for axis in chosen.squeeze:
            values = np.expand_dims(values, axis)
        if chosen.flip is not None:
            values = values[chosen.flip]
        if chosen.dense or all(s <= b for s, b in zip(chosen.step, spec.block_shape, strict=True)):
            return [Assignment(chosen.lo, chosen.hi, chosen.step, values, channel)]
        # Steps beyond a block: only the blocks that are hit, not those between.
        return [
            Assignment(lo, hi, chosen.step, values[window], channel)
            for window, lo, hi in reading.runs(chosen, spec.block_shape, grid.MAX_COORDINATE)
        ]

    # -- clusters --------------------------------------------------------------------------

    def session(self, operation: str = "session", *, resume: str | None = None) -> WriteSession:
        """Begin a write session: assignments of many processes, published by one commit.

        Parameters
        ----------
        operation : str
            Recorded in the commit.
        resume : str, optional
            Go on with the session of this id, one of `sessions`.

        Raises
        ------
        LockedError, ReadOnlyError, NotFoundError, InvalidError
        """
        if resume is not None:
            return WriteSession.resume(self, resume)
        return WriteSession.begin(self, operation)

    def sessions(self) -> list[str]:
        """Return the ids of write sessions at this version that have not ended, oldest first."""
        self._repo._spec(self._spec)  # deleted meanwhile?
        return sessions.sessions(self)

    def to_dask(self, index: Any = ..., chunks: Any = None) -> Any:
        """Return a dask array of a selection, counted from its lower corner.

        Its chunks are whole blocks, joined to 64 to 128 MiB. It stays at this version; if that is
        open, each chunk shows what is committed when it is read.

        Parameters
        ----------
        index : int, slice, Ellipsis or tuple of them
            As of `read`; the extents by default.
        chunks : optional
            The most bytes of a chunk, such as ``"32 MiB"``, or chunks as dask takes them.
        """
        return daskio.read(sessions.bound(self), index, chunks)

    def from_dask(
        self, source: Any, at: Any = None, operation: str = "dask", **options: Any
    ) -> None:
        """Store a dask array in one commit; returns when that is made.

        `at` is the voxel where it begins, 0 on all axes by default; options are those of
        `WriteSession.store`.
        """
        with self.session(operation) as session:
            session.store(source, at, **options)

    def __dask_tokenize__(self) -> Any:
        return daskio.token(self)

    # -- place -----------------------------------------------------------------------------

    def _blocks(self, checked: bool = False) -> Blocks:
        """Return the blocks at the repo's current version; `checked`: the array is still there."""
        repo, at = self._repo, self._at
        if at is not None and at[0] == repo._node_id and not at[1].lane.stale:
            if self._spec.versioned and repo._locked_id == at[0]:
                if not checked and self._is_due():
                    repo._spec(self._spec)
                    self._looked = time.monotonic()
                return at[1]
        else:
            at = None
        self._looked = time.monotonic()
        lane = repo._lane(self._spec, checked)
        if at is not None and at[1].lane is lane:
            return at[1]
        blocks = Blocks(repo._history.home, lane, self._spec, repo.store.threads)
        # Of the lane, not of the repo, which another thread may have moved meanwhile.
        self._at = (lane.node_id if self._spec.versioned else repo._node_id, blocks)
        return blocks

    def _pending(self) -> Pending | None:
        """Return this thread's batch, if one is open."""
        if not self._batches:
            return None
        pending: Pending | None = getattr(self._batch, "pending", None)
        if (
            pending is not None
            and self._spec.versioned
            and pending.blocks.lane.node_id != self._repo._node_id
        ):
            raise InvalidError(f"array {self.name!r}: the batch began at another version")
        return pending

    def _writable(self) -> Blocks:
        self._repo._check_writable(self._spec)
        return self._blocks(checked=True)


def _slices(box: grid.Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(*box, strict=True))
