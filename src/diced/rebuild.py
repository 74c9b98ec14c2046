"""Making the index of a store anew from its logs and segments.

Trees, snapshots and lock objects are derived: each is compared with what the records make, kept if
it is sound and equal, and replaced otherwise. A record that is lost at a known place is taken from
its COMMIT frame. Nothing is guessed: what cannot be known is reported and left alone, unless the
caller asks for the one commit that fits to be adopted.

Writers must be stopped by the operator. Stopping a rebuild is safe at any point; the next one goes
on with it. The order of the steps is in ``docs/fsck.md``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from diced import compose, index, keys, log, versioned
from diced.dag import LOCKED, LOCKING, Node
from diced.errors import CorruptError, NotFoundError, ReadOnlyError
from diced.fsck import STORE_SPACES
from diced.history import SPACES, View
from diced.home import Home
from diced.log import Pointer, Record
from diced.meta import REPOS
from diced.report import RESTORE, Progress, Report
from diced.state import Base
from diced.store import DicedStore
from diced.versioned import Lane
from diced.walk import (
    DAMAGE,
    Commit,
    Fold,
    LaneKeys,
    Loaded,
    Pages,
    commit_record,
    commits,
    frame_heads,
    lane_keys,
    load_records,
    repo_ids,
)

# Entries held in memory before they go to pages and a snapshot, as a committer's would.
FLUSH_ENTRIES = 1 << 20


def rebuild(
    store: DicedStore,
    repo: str | None = None,
    progress: Progress | None = None,
    adopt: bool = False,
) -> Report:
    """Make the index of a store, or of its metadata and one repo, anew.

    Parameters
    ----------
    repo : str, optional
        Name of the only repo to rebuild.
    progress : callable, optional
        Gets a line of text before each lane.
    adopt : bool
        At open versions, take the only commit that fits for a lost record of unknown transaction.
        What this risks is in ``docs/fsck.md``.

    Returns
    -------
    Report
        Its problems are what could not be rebuilt.

    Raises
    ------
    ReadOnlyError, NotFoundError, EngineError
    """
    if store.readonly:
        raise ReadOnlyError(f"{store.url} was opened read-only")
    report = Report()
    try:
        home = _Rebuild(store, keys.STORE_HOME, "store", report, progress, adopt)
        tables = home.meta(STORE_SPACES)
        # Without the store's lane no repo has a name, but each has its own index.
        names = (
            {repo_id: keys.repo_home(repo_id) for repo_id in repo_ids(store.engine)}
            if tables is None
            else {key.decode(): each["name"] for key, each in tables[REPOS].items()}
        )
        if repo is not None and repo not in names.values():
            raise NotFoundError(f"no repo {repo!r} in {store.url}")
        for repo_id, name in sorted(names.items(), key=lambda item: str(item[1])):
            if repo is None or name == repo:
                prefix = keys.repo_home(repo_id)
                _Rebuild(store, prefix, f"repo {name!r}", report, progress, adopt).repo()
    finally:
        store.renew()
    return report


class _Rebuild:
    """The rebuild of one home."""

    def __init__(
        self,
        store: DicedStore,
        prefix: str,
        name: str,
        report: Report,
        progress: Progress | None,
        adopt: bool,
    ):
        self.adopt = adopt
        self.engine = store.engine
        self.name = name
        self.report = report
        self.progress = progress or (lambda _text: None)
        self.home = Home(store.engine, prefix, store.cache_bytes)
        self.pages = Pages(self.home)
        self._listed: dict[tuple[str, str], LaneKeys] | None = None
        self._finish_replacing()

    # -- replacing objects -----------------------------------------------------------------

    def _finish_replacing(self) -> None:
        """Put in place what an interrupted rebuild had taken the old object away for."""
        for spare in list(self.engine.list(keys.spares(self.home.prefix))):
            key = self.home.prefix + spare.removeprefix(keys.spares(self.home.prefix))
            if not self.engine.exists(key):
                data = self.engine.get(spare)
                record = Record.decode(data, spare)
                self.engine.put_if_absent(key, data, bytes.fromhex(record.head["txid"]))
            self.engine.delete(spare)

    def _replace(self, key: str, data: bytes, txid: str) -> None:
        """Store an object whose key may hold a damaged one, which goes only when this is safe."""
        stamp = bytes.fromhex(txid)
        if not self.engine.exists(key):
            self.engine.put_if_absent(key, data, stamp)
            return
        spare = keys.spare(self.home.prefix, key)
        self.engine.put_if_absent(spare, data, stamp)
        self.engine.delete(key)
        self.engine.put_if_absent(key, data, stamp)
        self.engine.delete(spare)

    def listed(self, lane: Lane) -> LaneKeys:
        """Return the objects of a lane, from a listing that is not older than the metadata."""
        found = self._listed
        if found is None:
            found, _ = lane_keys(self.engine, self.home.prefix, lane.log.prefix)
        return found.get((lane.id, lane.node_id), LaneKeys())

    # -- homes and nodes -------------------------------------------------------------------

    def meta(self, spaces: tuple[int, ...]) -> Any:
        """Rebuild the metadata lane; return its tables, or None if they cannot be known."""
        lane = Lane(self.home, keys.META_LANE, keys.NO_NODE, Base(), journal=False)
        fold = _LaneRebuild(self, lane, f"{self.name}, metadata", Base()).run()
        return None if fold.base is None else fold.tables(spaces)

    def repo(self) -> None:
        """Rebuild a repo's home: its metadata, then every node after its parents."""
        tables = self.meta(SPACES)
        if tables is None:
            return
        view = View(0, tables)
        self._listed, _ = lane_keys(self.engine, self.home.prefix)
        finals: dict[str, dict[str, Base]] = {}
        for node in view.dag.ordered():
            finals[node.id] = self._node(view, node, finals)
        for spec in view.arrays.values():
            if not spec.versioned:
                lane = Lane(self.home, spec.id, keys.NO_NODE, Base())
                where = f"{self.name}, array {spec.name!r}, unversioned"
                _LaneRebuild(self, lane, where, Base(), is_open=True).run()

    def _node(self, view: View, node: Node, finals: dict[str, dict[str, Base]]) -> dict[str, Base]:
        ancestry = view.dag.ancestry(node)
        shown = [each for each in view.arrays.values() if each.versioned and each.node in ancestry]
        key = keys.lock(self.home.prefix, node.id)
        locked = node.status == LOCKED or (node.status == LOCKING and self.engine.exists(key))
        old = self._old_lock(key, node) if locked else {}
        new: dict[str, Base] = {}
        for spec in shown:
            base: Base | None = Base()
            if node.parents and spec.node != node.id:
                base = finals[node.parents[0]][spec.id]
            where = f"{self.name}, array {spec.name!r}, version {node.uuid}"
            lane = Lane(self.home, spec.id, node.id, base or Base())
            is_open = node.status not in (LOCKED, LOCKING)
            each = _LaneRebuild(self, lane, where, base, is_open)
            fold = each.run()
            if locked:
                new[spec.id] = each.final(fold, old.get(spec.id))
        if locked and any(old.get(each) is not base for each, base in new.items()):
            self._write_lock(key, node, {**old, **new})
        return new

    def _old_lock(self, key: str, node: Node) -> dict[str, Base]:
        try:
            record = Record.decode(self.engine.get(key), key)
            if record.type != log.LOCKED_NODE or record.head["node"] != node.id:
                return {}
            return {lane: Base.parse(each) for lane, each in record.head["lanes"].items()}
        except DAMAGE:
            return {}

    def _write_lock(self, key: str, node: Node, lanes: dict[str, Base]) -> None:
        txid = log.new_txid()
        head = {
            "txid": txid,
            "node": node.id,
            "lanes": {lane: base.fields() for lane, base in lanes.items()},
            "time": log.now(),
            "user": "rebuild",
        }
        self._replace(key, Record(log.LOCKED_NODE, head).encode(), txid)
        self.report.count("locks written")


class _LaneRebuild:
    """The rebuild of one lane at one node."""

    def __init__(
        self,
        owner: _Rebuild,
        lane: Lane,
        where: str,
        base: Base | None,
        is_open: bool = False,
    ):
        self.owner = owner
        self.lane = lane
        self.where = where
        self.base = base
        self.is_open = is_open
        self.last: Record | None = None
        self._number = 0
        self._snapshot_number = 0
        self._txids: list[str] = []  # of the records after that snapshot
        self._commits: dict[str, Commit] | None = None
        self._claimed: set[str] | None = None

    def run(self) -> Fold:
        """Fold the log, mend records and snapshots on the way; return the state at its end."""
        owner = self.owner
        owner.progress(self.where)
        owner.report.count("lanes")
        self._listed = listed = owner.listed(self.lane)
        self._numbers, wanted = self._order(listed)
        base = self.base
        fold = Fold(owner.home, base)
        if base is not None and not owner.pages.verify(base):
            fold.lose()
        numbers = sorted({*_numbers(listed), *self._numbers, *listed.snapshots})
        for number, loaded in zip(numbers, self._load(numbers), strict=True):
            self._gap(fold, number)
            self._number = number
            self._record(fold, number, self._numbers.get(number), loaded)
            if number in wanted or fold.size >= FLUSH_ENTRIES:
                self._snapshot(fold, number)
        ended = self.last is not None and self.last.type == log.LOCK
        if (
            fold.base is not None
            and not ended
            and (
                len(self._txids) >= versioned.SNAPSHOT_RECORDS
                or fold.size >= versioned.SNAPSHOT_ENTRIES
            )
        ):
            self._snapshot(fold, self._number)
        if fold.base is None:
            owner.report.error(
                "lost-state",
                self.where,
                "the state cannot be known from what is left. Locked versions and other arrays"
                " read as before; " + RESTORE.format("the log or its snapshots"),
            )
        return fold

    def _load(self, numbers: Iterable[int]) -> Iterator[Loaded]:
        return load_records(self.owner.engine, ((self.lane, number) for number in numbers))

    def _order(self, listed: LaneKeys) -> tuple[dict[int, str], set[int]]:
        """Return the transaction of each number, as snapshots and the LOCK record keep them, and
        the numbers that a snapshot belongs after."""
        heads = []
        for number in listed.snapshots:
            try:
                key = keys.snapshot(self.lane.log.prefix, number)
                heads.append((number, Record.decode(self.owner.engine.get(key), key).head))
            except DAMAGE:
                continue
        with contextlib.suppress(*DAMAGE):
            record = self.lane.log.read(listed.last) if listed.last else None
            if record is not None and record.type == log.LOCK:
                heads.append((listed.last - 1, record.head))
        order: dict[int, str] = {}
        wanted = set(listed.snapshots)
        for last, head in heads:
            if head["previous"] + len(head["txids"]) == last:
                order.update(enumerate(head["txids"], head["previous"] + 1))
                wanted.add(head["previous"])
        return order, wanted - {0}

    def _gap(self, fold: Fold, stop: int) -> None:
        """Deal with the numbers before `stop` that nothing is left of."""
        first = self._number + 1
        while first < stop and (found := self._adopt(first)) is not None:
            self._add(fold, found)
            self._number, first = first, first + 1
        if first < stop:
            several = f"records {first} to {stop - 1} are lost"
            self._lost(fold, first, f"record {first} is lost" if first == stop - 1 else several)

    def _lost(self, fold: Fold, number: int, what: str) -> None:
        fold.lose()
        fits = self._fitting(number)
        if len(fits) == 1:
            record = commit_record(self.owner.home, fits[0])
            advice = (
                f"the only commit that fits {number} is {_told(record)}, which"
                " 'diced fsck --rebuild --adopt' takes; else "
            )
        elif fits:
            advice = f"which of {len(fits)} commits {number} was cannot be told; "
        else:
            advice = "this is final, as no copy is left; "
            if self.owner.engine.remote and self.lane.journal:
                advice = (
                    "this is final: of small commits no segment holds a copy, and frames behind a"
                    " record are gone with its object ('diced fsck' names the blocks, as far as"
                    " a snapshot or lock object does); "
                )
        message = f"{what}; {advice}" + RESTORE.format("the log")
        self.owner.report.error("lost-record", self.where, message)

    def _fitting(self, number: int) -> list[Pointer]:
        """Return the commits that may have been an open version's lost record.

        They were based on the record before it, and no record that is left is theirs.
        """
        if not self.is_open or number in self._numbers:
            return []
        key = keys.record(self.lane.log.prefix, number)
        if self._listed.has(number) and any(frame_heads(self.owner.engine, key)):
            return []  # frames are behind it, which no commit with a COMMIT frame leaves there
        if self._claimed is None:
            self._claimed = set(self._numbers.values())
            for loaded in self._load(_numbers(self._listed)):
                if loaded.record is not None:
                    head = loaded.record.head
                    self._claimed.update((head["txid"], *head.get("void", ())))
                    self._claimed.update(each["txid"] for each in loaded.record.commits())
        return [
            commit.pointer
            for txid, commit in self._known_commits().items()
            if commit.base == number - 1 and txid not in self._claimed
        ]

    def _adopt(self, number: int) -> Record | None:
        """Publish the only commit that fits as a lost record, if the caller asked for this."""
        fits = self._fitting(number) if self.owner.adopt else []
        if len(fits) != 1:
            return None
        record = self._publish(number, fits[0])
        assert self._claimed is not None
        self._claimed.add(record.head["txid"])
        self.owner.report.count("records adopted")
        self.owner.report.warning(
            "adopted",
            self.where,
            f"record {number} is now {_told(record)}; that it was this one is likely, not proven",
        )
        return record

    def _record(self, fold: Fold, number: int, txid: str | None, loaded: Loaded) -> None:
        self.owner.report.count("records")
        try:
            record = loaded.whole(self.lane)
            if txid is not None and record.head["txid"] != txid:
                raise CorruptError("the record is not the one that was committed here")
        except DAMAGE as error:
            found = self._adopt(number) if txid is None else self._recover(txid, number)
            if found is None:
                self._lost(fold, number, f"record {number} is lost ({error})")
                return
            record = found
        self._add(fold, record)

    def _add(self, fold: Fold, record: Record) -> None:
        self._txids.append(record.head["txid"])
        fold.add(record)
        self.last = record

    def _known_commits(self) -> dict[str, Commit]:
        """Return this lane's COMMIT frames; metadata lanes have none."""
        if self._commits is None:
            lane = self.lane
            found = commits(self.owner.home, lane.lane_bytes, lane.node_id) if lane.journal else {}
            self._commits = found
        return self._commits

    def _recover(self, txid: str, number: int) -> Record | None:
        """Publish a lost record again from its COMMIT frame."""
        commit = self._known_commits().get(txid)
        if commit is None:
            return None
        record = self._publish(number, commit.pointer)
        self.owner.report.count("records recovered")
        return record

    def _publish(self, number: int, pointer: Pointer) -> Record:
        """Make the commit in a COMMIT frame the record of a number."""
        record = commit_record(self.owner.home, pointer)
        data = record.encode()
        if len(data) > compose.INLINE_BODY:
            data = Record(log.DATA, {**record.head, "body": pointer}).encode()
        key = keys.record(self.lane.log.prefix, number)
        self.owner._replace(key, data, record.head["txid"])
        return record

    def _snapshot(self, fold: Fold, number: int) -> None:
        """Keep the snapshot after a record if it is right, else write it."""
        key = keys.snapshot(self.lane.log.prefix, number)
        base = None
        try:
            head = Record.decode(self.owner.engine.get(key), key).head
            last = head["previous"] + len(head["txids"])
            if head["number"] == last == number and self.owner.pages.verify(Base.parse(head)):
                base = Base.parse(head)
        except DAMAGE:
            pass  # it is written anew, or, without the records, the lane stays lost
        if fold.base is not None and (base is None or fold.difference(base) is not None):
            base = fold.write()
            txid = log.new_txid()
            head = {
                **base.fields(),
                "number": number,
                "entries": sum(index.count(fold.home.load, root) for root in base.roots.values()),
                "previous": self._snapshot_number,
                "txids": self._txids,
                "txid": txid,
            }
            self.owner._replace(key, Record(log.SNAPSHOT, head).encode(), txid)
            self.owner.report.count("snapshots written")
        if base is not None:
            fold.move(base)
            self._snapshot_number, self._txids = number, []

    def final(self, fold: Fold, old: Base | None) -> Base:
        """Return the state at a locked node: the old one if it is sound and right."""
        if old is not None and not self.owner.pages.verify(old):
            old = None
        ended = self.last is not None and self.last.type == log.LOCK
        if fold.base is not None and old is not None and fold.difference(old) is None:
            if not ended:
                self._end()
            return old
        if fold.base is not None and ended:
            return fold.write()
        if old is not None:
            return old  # the records are lost, as reported, but not what they made
        self.owner.report.error(
            "lost-version",
            self.where,
            "neither the log is whole nor the lock object. Other arrays of this version read as"
            " before; " + RESTORE.format("either"),
        )
        # A pointer to no page: reading there raises, where an empty tree would read as fill.
        return Base({0: (0, 0, 1)}, fold.box)

    def _end(self) -> None:
        """Append the LOCK record that is lost; the lock object shows that no other is."""
        txid = log.new_txid()
        head = {
            "txid": txid,
            "base": self._number,
            "user": "rebuild",
            "time": log.now(),
            "op": "lock",
            "previous": self._snapshot_number,
            "txids": self._txids,
        }
        self.owner._replace(
            keys.record(self.lane.log.prefix, self._number + 1),
            Record(log.LOCK, head).encode(),
            txid,
        )
        self.owner.report.count("records recovered")


def _told(record: Record) -> str:
    """Say which commit a record is."""
    head = record.head
    return f"{head.get('op')!r} by {head.get('user')!r} at {head.get('time')}"


def _numbers(listed: LaneKeys) -> Iterator[int]:
    """Yield the numbers of the records that are there."""
    return (number for start, stop in listed.runs for number in range(start, stop))
