"""One lane at one version node: the fold of its commit log over the parent's index trees.

A lane maps (space, key) to an entry: a pointer to a frame, small inline bytes, or nothing. At an
open node the state is fold(base roots, records 1..N); at a locked node it is the final roots and
no log is read. Readers take a `State`, which fixes one N, and never block writers.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from diced import forks, grid, index, keys, log, pool
from diced.combine import Combiner
from diced.commit import Committer
from diced.errors import CorruptError, DicedException, LockedError, ReadOnlyError
from diced.home import Home
from diced.log import CommitLog, Delta, Entry, Reads, Record
from diced.moment import call_began
from diced.state import Base, Overlay, Prepare, State, Touched, delta_size, hits, merge, parse_box

# Records and delta entries after which a committer writes a snapshot. Metadata lanes fold sooner:
# their records are small and every opening reads the tail. Large lanes fold later, up to four
# times: scattered writes touch every page, and a million blocks in 200 commits left 36 MB of
# superseded pages with a fixed number, 12 MB with a growing one (the index itself: 4.4 MB).
SNAPSHOT_RECORDS = 1024
SNAPSHOT_ENTRIES = 65536
SNAPSHOT_GROWTH = 4
META_SNAPSHOT_RECORDS = 128
# How many recent deltas, and keys in them, are kept to tell which keys a newer record touched.
RECENT = 4096
RECENT_ENTRIES = 65536


class Lane:
    """One lane at one node, shared by all handles of a process.

    Parameters
    ----------
    home : Home
    lane_id, node_id : str
    base : Base
        Where the fold begins: what the parent's lock object says.
    final : bool
        The node is locked and `base` is its own final state.
    journal : bool
        Write a COMMIT frame for every record, so that segments alone can rebuild the index.
    """

    def __init__(
        self,
        home: Home,
        lane_id: str,
        node_id: str,
        base: Base,
        *,
        final: bool = False,
        journal: bool = True,
    ):
        self.home = home
        self.id = lane_id
        self.node_id = node_id
        self.base = base
        self.journal = journal
        self.log = CommitLog(home.engine, keys.lane(home.prefix, lane_id, node_id), node_id)
        self._remote = home.engine.remote
        self.checked = float("-inf")  # when it was last asked whether there are newer records
        self.least = 0  # the last record that this lane knows to be there
        self._committer: Committer | Combiner = Combiner(self) if self._remote else Committer(self)
        self.stale = False  # its roots were replaced by a rebuild: handles get another lane
        self.lane_bytes = bytes.fromhex(lane_id) if journal else b"\0" * 8
        self._snapshot_records = SNAPSHOT_RECORDS if journal else META_SNAPSHOT_RECORDS
        self._recent: dict[int, Delta] = {}
        self._recent_size = 0
        self._txids: list[str] = []
        self._snapshot_number = 0
        self._snapshot_backoff = 0
        self._rebase_due = 0
        self._rebase_size = 0
        self._folded = 0  # entries in the newest snapshot's trees
        self._settled = 0  # records up to this number have names that survive a power cut
        self._state: State | None = None
        self.after_fork()
        if final:
            self._state = State(0, base.roots, Overlay(), base.box, True)
        forks.watch(self)

    def after_fork(self) -> None:
        """Make the locks anew: at birth and after a fork."""
        self._fresh = threading.Lock()
        self._committer.renew_lock()

    # -- reading ---------------------------------------------------------------------------

    def refresh(self) -> State:
        """Return the state that includes every record acknowledged before this call.

        On an engine with a `max_age` it may be that much older, but for what this lane committed,
        and inside `moment` it is that of the moment's beginning or newer.
        """
        state = self._state
        if self._remote:
            return self._refresh_remote(state)
        if state is not None and (state.locked or not self.log.has(state.number + 1)):
            return state
        with self._fresh:
            return self._catch_up()

    def recent(self) -> State:
        """Return a state to base a commit on; without a request where it is only a bit old."""
        state = self._state
        return self.refresh() if state is None or not self._remote else state

    def probe(self, last: int = 0) -> State:
        """Return the state that includes every record acknowledged before this call, always.

        `last` is a record that is known to be there.
        """
        began = time.monotonic()
        with self._fresh:
            state = self._catch_up(last)
            self.checked = max(self.checked, began)
            return state

    def _refresh_remote(self, state: State | None) -> State:
        began = time.monotonic()
        if state is not None and (state.locked or self._is_fresh(state, began)):
            return state
        with self._fresh:
            state = self._state
            # A probe that another thread began after this call will do.
            if state is not None and self.checked >= began and state.number >= self.least:
                return state
            state = self._catch_up()
            self.checked = began
            return state

    def _is_fresh(self, state: State, now: float) -> bool:
        since = call_began(now) - self.home.engine.max_age
        return self.checked >= since and state.number >= self.least

    def is_due(self, began: float) -> bool:
        """Tell whether `refresh` at this time would ask the engine."""
        state = self._state
        return state is None or not (state.locked or self._is_fresh(state, began))

    def _catch_up(self, last: int = 0) -> State:
        state = self._state
        if state is None:
            state = self._survey() if self._remote else None
            if state is not None:
                return state
            self._state = state = self._open(None)
        if self._remote:  # one round of requests, mostly of one, for there is nothing new
            for found in self.log.find_many(range(state.number + 1, max(last, state.number) + 2)):
                if found is None:
                    return state
                if not state.locked:
                    self._state = state = self._fold_in(state, state.number + 1, self.whole(found))
        tail = self.log.tail(state.number)
        if tail - state.number > 4 * self._snapshot_records:
            state = self._open(state)  # far behind: the newest snapshot is nearer
        # Kept after every step, so that an error half-way leaves nothing counted twice.
        self._state = state
        numbers = range(state.number + 1, tail + 1)
        for number, record in zip(numbers, self.log.read_many(numbers), strict=True):
            if state.locked:
                raise CorruptError(f"{self.log.prefix}: a record follows the lock")
            self._state = state = self._fold_in(state, number, self.whole(record))
        behind = state.number - self._snapshot_number > 2 * self._snapshot_records
        limit = self._rebase_size + 2 * SNAPSHOT_GROWTH * SNAPSHOT_ENTRIES
        if len(state.overlay) > limit or (behind and state.number >= self._rebase_due):
            self._state = state = self._rebase(state)
            self._rebase_due = state.number + self._snapshot_records // 2
            self._rebase_size = len(state.overlay)
        return state

    def _survey(self) -> State | None:
        """Open in two rounds of requests: a listing, then all that it names side by side."""
        first, last = self.log.survey()
        numbers = range(first + 1, last + 2)  # and one more: a listing alone does not tell the end
        reads = [partial(self.log.snapshot, first)] if first else []
        reads += [partial(self.log.find, number) for number in numbers]
        found = pool.map_ordered(lambda read: read(), reads, pool.LIMIT)
        state = State(0, self.base.roots, Overlay(), self.base.box, False)
        if first:
            snapshot = next(found)
            if snapshot is None:
                return None
            state = self._from_snapshot(snapshot)
        self._state = state
        for number, record in zip(numbers, found, strict=True):
            if record is None and number > last:
                return state
            record = self.log.read(number) if record is None else record
            if state.locked:
                raise CorruptError(f"{self.log.prefix}: a record follows the lock")
            self._state = state = self._fold_in(state, number, self.whole(record))
        return self._catch_up()

    def begin(self, began: float) -> None:
        """Take note that nobody can have written here before a time: it did not exist yet."""
        with self._fresh:
            if self._state is None:
                self._state = State(0, self.base.roots, Overlay(), self.base.box, False)
                self.checked = began

    def _open(self, known: State | None) -> State:
        """Return the state of the newest snapshot, or `known` if that is newer."""
        snapshot = self.log.newest_snapshot()
        if known is not None and (snapshot is None or snapshot.head["number"] <= known.number):
            return known
        if snapshot is None:
            return State(0, self.base.roots, Overlay(), self.base.box, False)
        return self._from_snapshot(snapshot)

    def _from_snapshot(self, snapshot: Record) -> State:
        base = Base.parse(snapshot.head)
        state = State(snapshot.head["number"], base.roots, Overlay(), base.box, False)
        self._move_to(state, snapshot.head.get("entries", 0))
        return state

    def _move_to(self, state: State, folded: int) -> None:
        """Go on from a snapshot; no call between the four, so no interrupt comes there either."""
        number, txids = state.number, list[str]()
        self._snapshot_number, self._txids, self._folded, self._state = number, txids, folded, state

    def _rebase(self, state: State) -> State:
        """Move onto the newest snapshot, so that the overlay of a long-lived reader stays small."""
        snapshot = self.log.newest_snapshot(at_most=state.number)
        if snapshot is None or snapshot.head["number"] <= self._snapshot_number:
            return state
        number = snapshot.head["number"]
        overlay = Overlay()
        for each in range(number + 1, state.number + 1):
            delta = self._recent.get(each)
            overlay.add(each, self.whole(self.log.read(each)).delta if delta is None else delta)
        roots = Base.parse(snapshot.head).roots
        state = State(state.number, roots, overlay, state.box, state.locked)
        folded = snapshot.head.get("entries", 0)
        txids = self._txids[number - self._snapshot_number :]
        self._snapshot_number, self._txids, self._folded, self._state = number, txids, folded, state
        return state

    def whole(self, record: Record) -> Record:
        """Return a record with its sections, fetched from the COMMIT frame if they are there."""
        body = record.head.get("body")
        if body is None:
            return record
        frame = self.home.read_frame(self.id, tuple(body))
        inner = Record.decode(bytes(frame.payload), f"commit frame of {self.log.prefix}")
        if inner.head["txid"] != record.head["txid"]:
            raise CorruptError(f"{self.log.prefix}: a record points to another commit's frame")
        record.delta, record.reads = inner.delta, inner.reads
        return record

    def _fold_in(self, state: State, number: int, record: Record) -> State:
        # Done again for the same record after an interrupt, so nothing here may count twice.
        box = grid.union(state.box, parse_box(record.head.get("box")))
        folded = State(number, state.roots, state.overlay, box, record.type == log.LOCK)
        self._txids[number - self._snapshot_number - 1 :] = [record.head["txid"]]
        replaced = self._recent.get(number)
        grown = delta_size(record.delta) - (0 if replaced is None else delta_size(replaced))
        self._recent[number] = record.delta
        self._recent_size += grown
        while len(self._recent) > RECENT or self._recent_size > RECENT_ENTRIES:
            oldest = next(iter(self._recent))
            size = delta_size(self._recent[oldest])
            del self._recent[oldest]
            self._recent_size -= size
        state.overlay.add(number, record.delta)
        self._committer.note(number, record)
        return folded

    def get(self, state: State, space: int, key: bytes) -> Entry | None:
        """Return the entry of one key, or None."""
        found, entry = state.overlay.get(space, key, state.number)
        if found:
            return entry
        return index.get(self.home.load, state.roots.get(space), key)

    def get_many(self, state: State, space: int, names: Sequence[bytes]) -> list[Entry | None]:
        """Return the entries of keys given in ascending order."""
        chain = state.overlay.chains.get(space)
        root = state.roots.get(space)
        if self._remote and root is not None:
            index.warm(self.home.load, root, names)
        if not chain:
            return index.get_many(self.home.load, root, names)
        found: list[Entry | None] = []
        missing = []
        number = state.number
        for link in map(chain.get, names):
            while link is not None and link[0] > number:
                link = link[2]
            if link is None:
                missing.append(len(found))
                found.append(None)
            else:
                found.append(link[1])
        if missing and root is not None:
            rest = index.get_many(self.home.load, root, [names[i] for i in missing])
            for i, entry in zip(missing, rest, strict=True):
                found[i] = entry
        return found

    def scan(
        self, state: State, space: int, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, entry) of ``start <= key < stop`` in order, reading only pages in range."""
        base = index.scan(self.home.load, state.roots.get(space), start, stop)
        names = state.overlay.names(space)
        low = bisect.bisect_left(names, start)
        high = len(names) if stop is None else bisect.bisect_left(names, stop)
        recent: Iterator[tuple[bytes, Entry | None]] = (
            (names[i], entry)
            for i in range(low, high)
            for present, entry in [state.overlay.get(space, names[i], state.number)]
            if present
        )
        yield from merge(base, recent)

    def changes_since(self, state: State, number: int) -> list[Delta] | None:
        """Return the deltas of records `number` + 1 to the state's, or None if too long ago."""
        try:
            return [self._recent[n] for n in range(number + 1, state.number + 1)]
        except KeyError:
            return None

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield every record of this node from 1, heads only where the body is in a segment."""
        numbers = range(1, self.log.tail(0) + 1)
        yield from zip(numbers, self.log.read_many(numbers), strict=True)

    def whole_records(self) -> Iterator[tuple[int, Record]]:
        """Yield every record with its sections."""
        for number, record in self.records():
            yield number, self.whole(record)

    # -- writing ---------------------------------------------------------------------------

    def commit(self, prepare: Prepare, *, op: str, user: str, state: State | None = None) -> int:
        """Commit one change; return its record number (the current one if there is none).

        `prepare` runs first outside all locks, and again only for keys that another writer has
        changed meanwhile (invariant I4). `state` is one that the caller just got from `refresh`
        or `recent`.

        Raises
        ------
        LockedError
            The node was locked first.
        ReadOnlyError
        """
        if self.home.engine.readonly:
            raise ReadOnlyError("the store was opened read-only")
        state = self.recent() if state is None else state
        self.check_open(state)
        return self._committer.commit(prepare, state, op, user)

    def settle(self, number: int) -> None:
        """Make records durable that were found, whose writers may not have done so yet.

        A commit that has nothing to add to them is as durable as they are.
        """
        if number > self._settled:
            self.home.engine.settle(keys.record(self.log.prefix, number))
            self._settled = max(self._settled, number)

    def settled(self, number: int) -> None:
        """Note that records up to this number are durable."""
        self._settled = max(self._settled, number)

    def known(self) -> State:
        """Return the state as of the last refresh, or of the last commit of this process."""
        assert self._state is not None
        return self._state

    def check_open(self, state: State) -> None:
        """Raise LockedError if nothing can follow a state."""
        if state.locked:
            raise LockedError(f"version node {self.node_id} is locked")

    def queue(self, lost: int) -> contextlib.AbstractContextManager[Any]:
        """Wait for one's turn after a lost race: a hint that keeps contention fair."""
        return self.home.engine.turn(self.log.prefix) if lost else contextlib.nullcontext()

    def touched(self, reads: Reads | None, number: int, newer: State) -> Touched | None:
        """Return which of these keys later records wrote; {} is none, None is unknown."""
        if newer.number == number:
            return {}
        deltas = self.changes_since(newer, number)
        if reads is None or deltas is None:
            return None
        return hits(reads, deltas)

    def published(self, number: int, record: Record) -> None:
        """Take in a record that this process has published, and write a snapshot if one is due."""
        with self._fresh:
            state = self.known()
            try:
                if state.number == number - 1:
                    record.place(self.node_id, number)
                    self._state = state = self._fold_in(state, number, record)
                elif state.number < number:
                    state = self._catch_up()
                if self._snapshot_due(state):
                    self._snapshot(state)
            except DicedException:
                # The commit stands whatever happens here: a snapshot is derived data that the next
                # writers try again, and other damage is raised by whoever reads it.
                self._snapshot_backoff = number + self._snapshot_records // 8

    def _snapshot_due(self, state: State) -> bool:
        since = state.number - self._snapshot_number
        return (
            not state.locked
            and state.number >= self._snapshot_backoff
            and (
                since >= self._snapshot_records
                or len(state.overlay)
                >= min(max(SNAPSHOT_ENTRIES, self._folded), SNAPSHOT_GROWTH * SNAPSHOT_ENTRIES)
            )
        )

    def _snapshot(self, state: State) -> None:
        state = self._rebase(state)  # another process may have written one
        self._state = state
        if not self._snapshot_due(state):
            return
        base = self.fold(state)
        head = {
            **base.fields(),
            "number": state.number,
            "entries": sum(index.count(self.home.load, root) for root in base.roots.values()),
            "previous": self._snapshot_number,
            "txids": self._txids,
            "txid": log.new_txid(),
        }
        self.log.put_snapshot(state.number, Record(log.SNAPSHOT, head))
        fresh = State(state.number, base.roots, Overlay(), state.box, state.locked)
        self._move_to(fresh, head["entries"])

    def fold(self, state: State) -> Base:
        """Write the pages of a state's trees and return their roots."""
        pack = self.home.new_pack()
        roots = dict(state.roots)
        for space in state.overlay.chains:
            changes = state.overlay.items(space, state.number)
            root = index.apply(self.home.load, roots.pop(space, None), changes, pack)
            if root is not None:
                roots[space] = root
        self.home.write_pack(pack)
        return Base(roots, state.box)

    def lock(self, user: str) -> State:
        """End this lane at this node: append its LOCK record, which lists all txids in order."""
        txid = log.new_txid()
        lost = 0
        with self._committer.turn:
            while True:
                with self.queue(lost):
                    with self._fresh:
                        state = self._state if self._remote and not lost else None
                        state = self._catch_up() if state is None else state
                        head = {
                            "txid": txid,
                            "base": state.number,
                            "user": user,
                            "time": log.now(),
                            "op": "lock",
                            "previous": self._snapshot_number,
                            "txids": list(self._txids),
                        }
                    if state.locked:
                        self.settle(state.number)
                        return state
                    record, number = Record(log.LOCK, head), state.number + 1
                    if self.log.put(number, record.encode(), txid):
                        self.least = number
                        with self._fresh:
                            if self.known() is not state:
                                return self._catch_up()
                            self._state = state = self._fold_in(state, number, record)
                            return state
                lost += 1
