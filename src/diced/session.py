"""Write sessions: what many processes write into one array, published by one commit.

A worker's assignment becomes frames in the worker's own segments and one *part*, a small object
below the session's prefix that says which frames belong to which blocks. No reader looks at parts.
Publishing seals the session, gathers the parts in order of their names, merges the pieces of blocks
with each other and with what is stored then (invariant I4), and commits one record. The record also
sets the session's id in the space `SESSIONS`, so that no session is published twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from diced import daskio, grid, keys, log, pool
from diced.blocks import SPACE, Blocks
from diced.encoding import Patch
from diced.engine.base import Engine
from diced.errors import (
    CorruptError,
    DicedException,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
)
from diced.home import Home
from diced.log import Delta, Entry, Pointer, Record
from diced.pending import Pending
from diced.pieces import NUMBER, PIECES, Piece, Pieces, store_pieces
from diced.segment import sync_all
from diced.spec import check_text
from diced.state import Change, State, parse_box

if TYPE_CHECKING:
    from diced.array import DicedArray

SESSIONS = 255  # space of an array's lane: the sessions that were published

# Objects of a session beside its parts. What is not hex is sorted behind all parts.
BEGUN, OVER = "t-begun", "t-over"
# Below a session's prefix every name is less than this.
LAST = "~"
SKIP_AFTER = 64  # names of one session, before a listing is begun anew behind them

# Marks of ended sessions are kept this long, for workers that do not know yet.
KEEP_SECONDS = 30 * 86400


class WriteSession:
    """Assignments of many threads, processes and hosts to one array, published by one commit.

    Made by `DicedArray.session`. A session is pickled by location and id, so a worker that gets it
    writes to the same one. An assignment is durable when it returns, and seen by nobody before the
    commit. Where assignments overlap, each voxel gets the value of one of them: of the later one in
    one process, of the later one by the clocks of the hosts otherwise.

    Used as a context manager where it was begun, it is committed at the end of the block, or
    discarded if an exception leaves it.

    Attributes
    ----------
    id : str
        Name of the session, for `DicedArray.session` to resume it.
    operation : str
        Recorded in the commit.
    """

    def __init__(self, array: DicedArray, session_id: str, operation: str, owner: bool):
        self.id = session_id
        self.operation = operation
        self._array = bound(array)
        self._owner = os.getpid() if owner else 0
        self._state = "open"
        self._entered = False
        self._asked = False

    @classmethod
    def begin(cls, array: DicedArray, operation: str) -> WriteSession:
        """Begin a session at the array's current version, which must be open."""
        check_text(f"array {array.name!r}: the operation", operation)
        session = cls(array, _stamp(), operation, True)
        lane = session._array._writable().lane
        _check_open(session._array, lane.probe())
        head = {
            "txid": log.new_txid(),
            "session": session.id,
            "node": lane.node_id,
            "user": array._repo._history.user,
            "time": log.now(),
            "op": operation,
        }
        lane.home.engine.put_if_absent(
            session._key(BEGUN), Record(log.PROPOSAL, head).encode(), bytes.fromhex(head["txid"])
        )
        return session

    @classmethod
    def resume(cls, array: DicedArray, session_id: str) -> WriteSession:
        """Return a session that was begun before, to go on with it, commit or discard it."""
        if not isinstance(session_id, str) or not _is_id(session_id):
            raise InvalidError(f"array {array.name!r}: {session_id!r} is no id of a write session")
        session = cls(array, session_id, "session", True)
        session._array._repo._spec(session._array._spec)  # deleted meanwhile?
        engine = session._home.engine
        key = session._key(BEGUN)
        try:
            session.operation = str(Record.decode(engine.get(key), key).head["op"])
        except NotFoundError:
            if not session.parts():
                raise NotFoundError(
                    f"array {array.name!r} has no write session {session_id!r} at this version"
                ) from None
        return session

    # -- description -----------------------------------------------------------------------

    @property
    def array(self) -> DicedArray:
        """The array, at the version that the session was begun at."""
        return self._array

    def parts(self) -> list[str]:
        """Return the names of the assignments that were stored so far, in order."""
        self._array._repo._spec(self._array._spec)  # deleted meanwhile?
        prefix = keys.parts(self._prefix, self.id)
        found = (key[len(prefix) + 1 :] for key in self._home.engine.list(prefix))
        return [each for each in found if _is_id(each)]

    def __repr__(self) -> str:
        return f"<WriteSession {self.id} {self._state} of {self._array.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        array = self._array
        return _join, (array, array._spec.id, self.id, self.operation)

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self._array._spec.id, self.id

    # -- writing ---------------------------------------------------------------------------

    def __setitem__(self, index: Any, value: Any) -> None:
        self.write(index, value)

    def write(self, index: Any, value: Any) -> None:
        """Store one assignment; index and value are as of an array's.

        Open ends of slices mean the extents of what was published.

        Raises
        ------
        BadIndexError, LockedError, ReadOnlyError
        InvalidError
            The value does not suit, or the session was published or discarded.
        NotFoundError
            The array was deleted.
        """
        array = self._array
        blocks = array._writable()
        state = blocks.lane.refresh()
        _check_open(array, state)
        # A request on a bucket: the one after the part is stored is enough there.
        if self._state != "open" or not (self._asked and blocks.home.engine.remote):
            self._check_going_on()
        self._asked = True
        todo = array._assignment(index, value, state.box)
        if not todo:
            return
        pending = Pending(blocks, keep=False)
        for each in todo:
            pending.assign(state, each)
        whole, patches, frames = pending.finish()
        delta: Delta = {SPACE: {**whole}, PIECES: {**store_pieces(blocks, patches, frames)}}
        sync_all(frames.segments)
        name = _stamp()
        head = {
            "txid": name,
            "session": self.id,
            "node": blocks.lane.node_id,
            "durability": blocks.home.engine.durability,
            "user": array._repo._history.user,
            "time": log.now(),
            "box": pending.box,
        }
        key = self._key(name)
        data = Record(log.PROPOSAL, head, delta).encode()
        engine = blocks.home.engine
        engine.put_if_absent(key, data, bytes.fromhex(name))
        # Who publishes seals the session before it lists the parts: what was stored before the
        # seal is in the list, and what was not is told here.
        try:
            self._check_going_on()
        except InvalidError:
            engine.delete(key)
            raise

    def store(self, source: Any, at: Any = None, *, align: bool = True, **compute: Any) -> None:
        """Store a dask array, its chunks side by side on whatever scheduler dask uses.

        Parameters
        ----------
        source : dask.array.Array
            Of as many dimensions as the array's results, channels last.
        at : sequence of int, optional
            Voxel of the array where it begins, ZYX; 0 on all axes by default.
        align : bool
            Rechunk to whole blocks first, if borders between chunks cut blocks. Without it their
            pieces are stored, and merged by the one process that commits.
        **compute
            Handed to ``dask.compute``, such as ``scheduler="processes"``.
        """
        daskio.store(self, source, at, align, compute)

    def _check_going_on(self) -> None:
        if self._state != "open" or self._home.engine.exists(self._key(OVER)):
            raise InvalidError(
                f"array {self._array.name!r}: the write session {self.id} is over;"
                " it was published or discarded"
            )

    # -- the end ---------------------------------------------------------------------------

    def commit(self) -> None:
        """Publish all assignments in one commit, and end the session.

        If it raises, nothing was published or all; the parts are kept, and it may be called again,
        also on a session that was resumed.

        Raises
        ------
        LockedError, NotFoundError, ReadOnlyError
        InvalidError
            The session was discarded.
        """
        array = self._array
        if self._state == "published":
            return
        self._check_not_discarded(self._state == "discarded")
        blocks = array._writable()
        lane, engine = blocks.lane, blocks.home.engine
        _check_open(array, lane.probe())
        engine.put_if_absent(self._key(OVER), log.new_txid().encode(), os.urandom(16))
        names = self.parts()
        gathered = self._gather(blocks, names)
        if not engine.exists(self._key(BEGUN)):
            # Another process ended it: the mark that it began is removed last by one that
            # publishes, and first by one that discards. While it is there, no part was removed
            # that is not in a commit. A part found now is of a worker that was killed before it
            # learned that it was late.
            self._remove(names)
            self._check_not_discarded(not self._published(lane.probe(), blocks))
            self._state = "published"
            return
        if names:
            self._publish(blocks, *gathered)
        self._state = "published"
        self._remove(names)
        engine.delete(self._key(BEGUN))
        self._forget_old()

    def discard(self) -> None:
        """End the session without publishing anything."""
        home = self._home
        if home.engine.readonly:
            raise ReadOnlyError("the store was opened read-only")
        if self._state == "discarded":
            return
        blocks = self._array._blocks()
        if self._state == "published" or self._published(blocks.lane.probe(), blocks):
            self._remove(self.parts())  # of workers that were killed before they were told
            raise InvalidError(
                f"array {self._array.name!r}: the write session {self.id} was published"
            )
        home.engine.put_if_absent(self._key(OVER), log.new_txid().encode(), os.urandom(16))
        home.engine.delete(self._key(BEGUN))
        self._state = "discarded"
        self._remove(self.parts())
        self._forget_old()

    def __enter__(self) -> WriteSession:
        if self._owner != os.getpid():
            raise InvalidError(
                f"array {self._array.name!r}: a write session is entered where it was begun;"
                " others only write"
            )
        if self._entered or self._state != "open":
            how = "was entered already" if self._entered else f"was {self._state}"
            raise InvalidError(f"array {self._array.name!r}: the write session {self.id} {how}")
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._owner != os.getpid():
            return
        self._entered = False
        if self._state != "open":
            return
        if error is None:
            try:
                self.commit()
            except LockedError:
                self.discard()  # it can never be published
                raise
            return
        try:
            self.discard()
        except DicedException as second:
            error.add_note(f"the write session {self.id} could not be discarded: {second}")

    def _check_not_discarded(self, discarded: bool) -> None:
        if discarded:
            raise InvalidError(
                f"array {self._array.name!r}: the write session {self.id} was discarded"
            )

    def _published(self, state: State, blocks: Blocks) -> bool:
        return blocks.lane.get(state, SESSIONS, self.id.encode()) is not None

    def _publish(
        self,
        blocks: Blocks,
        whole: dict[bytes, Entry],
        pieces: dict[bytes, list[Patch]],
        box: grid.Box | None,
    ) -> None:
        lane = blocks.lane
        mark = self.id.encode()
        pending = Pending(blocks, keep=False)
        pending.take(lane.probe(), whole, pieces, box)

        def prepare(state: State, touched: dict[int, set[bytes]] | None) -> Change | None:
            if self._published(state, blocks):
                return None  # by another process
            change = pending.prepare(state, touched)
            if change is None:
                change = Change({}, {}, box)
            assert change.reads is not None
            change.delta[SESSIONS] = {mark: b""}
            change.reads[SESSIONS] = [mark]
            return change

        self._array._commit(lane, prepare, self.operation)

    def _gather(
        self, blocks: Blocks, names: list[str]
    ) -> tuple[dict[bytes, Entry], dict[bytes, list[Patch]], grid.Box | None]:
        """Return whole blocks, pieces of others or to go over them, and the box of all parts."""
        whole: dict[bytes, Entry] = {}
        pointers: dict[bytes, list[Pointer]] = {}
        box: grid.Box | None = None
        for part in pool.map_ordered(self._load, names, blocks.fetchers):
            if part is None:
                continue
            box = grid.union(box, parse_box(part.head.get("box")))
            for key, entry in part.delta.get(SPACE, {}).items():
                if entry is not None:
                    whole[key] = entry
                    pointers.pop(key, None)
            for key, entry in sorted(part.delta.get(PIECES, {}).items()):
                if not isinstance(entry, tuple):
                    raise CorruptError(f"part {part.head['txid']}: a piece is no pointer")
                pointers.setdefault(key[: -NUMBER.size], []).append(entry)
        store = Pieces(blocks, [each for found in pointers.values() for each in found])
        pieces: dict[bytes, list[Patch]] = {
            key: [Piece(store, key, each) for each in found] for key, found in pointers.items()
        }
        return whole, pieces, box

    def _load(self, name: str) -> Record | None:
        """Return a part, or None if it is gone: its worker was late, and took it back."""
        key = self._key(name)
        try:
            data = self._home.engine.get(key)
        except NotFoundError:
            return None
        return Record.decode(data, key)

    def _remove(self, names: list[str]) -> None:
        engine = self._home.engine
        threads = pool.LIMIT if engine.remote else 1
        pool.for_each(engine.delete, [self._key(each) for each in names], threads)

    def _forget_old(self) -> None:
        """Remove the marks of sessions that ended long ago, and parts that came too late."""
        engine = self._home.engine
        limit = f"{max(0, time.time_ns() - KEEP_SECONDS * 10**9):016x}"
        for session_id in [name for name, over in _listed(engine, self._prefix, limit) if over]:
            # In order of name: the mark that it is over last.
            for key in list(engine.list(keys.parts(self._prefix, session_id))):
                engine.delete(key)

    # -- place -----------------------------------------------------------------------------

    @property
    def _home(self) -> Home:
        return self._array._repo._history.home

    @property
    def _prefix(self) -> str:
        return lane_prefix(self._array)

    def _key(self, name: str) -> str:
        return keys.part(self._prefix, self.id, name)


def sessions(array: DicedArray) -> list[str]:
    """Return the ids of the sessions of an array's version that have not ended, oldest first."""
    engine = array._repo._history.home.engine
    return [name for name, over in _listed(engine, lane_prefix(array), LAST) if not over]


def bound(array: DicedArray) -> DicedArray:
    """Return a handle of the same array that stays at the version it is at now."""
    repo = array._repo
    fixed = type(repo)(repo.store, repo._id, repo._history, repo._node_id, repo.readonly)
    return type(array)(fixed, array._spec)


def lane_prefix(array: DicedArray) -> str:
    """Return the prefix of the lane that an array's handle writes to."""
    spec, repo = array._spec, array._repo
    node = repo._node_id if spec.versioned else keys.NO_NODE
    return keys.lane(repo._history.home.prefix, spec.id, node)


def _listed(engine: Engine, prefix: str, limit: str) -> Iterator[tuple[str, bool]]:
    """Yield (session id, is it over) of ids below `limit`, without listing their parts.

    Over is what was published or discarded to the end. One whose end was interrupted is not, as
    long as the mark that it began is there.
    """
    below = keys.sessions(prefix)
    found = iter(engine.list(below))
    last, seen = "", 0
    while (key := next(found, None)) is not None:
        name, _, rest = key[len(below) + 1 :].partition("/")
        if name >= limit:
            return
        if name != last:
            yield name, rest == OVER or (_is_id(rest) and _is_over(engine, prefix, name))
            last, seen = name, 0
        seen += 1
        if seen == SKIP_AFTER:
            found = iter(engine.list(below, f"{below}/{name}/{LAST}"))


def _is_over(engine: Engine, prefix: str, session_id: str) -> bool:
    """Tell whether a session that parts are there of is over: its worker was killed, and late."""
    over, begun = (keys.part(prefix, session_id, each) for each in (OVER, BEGUN))
    return engine.exists(over) and not engine.exists(begun)


def _check_open(array: DicedArray, state: State) -> None:
    if state.locked:
        raise LockedError(f"array {array.name!r}: {array._repo._locked_message()}")


_kept: Any = None


def _join(array: DicedArray, array_id: str, session_id: str, operation: str) -> WriteSession:
    """Return a session in another process."""
    global _kept
    if array._spec.id != array_id:
        raise NotFoundError(f"array {array.name!r} was deleted")
    # Lest a worker opens the store again for each of its tasks.
    _kept = array._repo.store
    return WriteSession(array, session_id, operation, False)


_last = 0


def _stamp() -> str:
    """Return 32 hex digits that nobody else has, later ones greater in one process."""
    global _last
    # Threads that come here at once may get one number: which of them is later is anybody's say.
    _last = max(time.time_ns(), _last + 1)
    return f"{_last:016x}{os.urandom(8).hex()}"


def _is_id(name: str) -> bool:
    return len(name) == 32 and all(each in "0123456789abcdef" for each in name)
