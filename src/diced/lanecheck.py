"""Checking one lane at one node: its log from end to end, its trees, and the frames behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from diced import grid, index, keys, log, pieces
from diced.blocks import CONSTANT, SPACE, Blocks
from diced.errors import CorruptError
from diced.kindcheck import check_of
from diced.levelcheck import LevelCheck
from diced.log import Entry, Pointer, Record
from diced.pieces import PIECES
from diced.pyramid import CATALOG, KIND
from diced.report import REBUILD, RESTORE, REWRITE, REWRITE_VALUE, Problem, obstacle
from diced.scope import Scope
from diced.segment import Frame
from diced.spec import ArraySpec
from diced.state import Base
from diced.values import decode_value
from diced.versioned import Lane
from diced.walk import UNREADABLE, Fold, LaneKeys, Loaded, PageDamage, load_records

SHOWN = 8  # blocks named in one message

# What is said of an object that pointers lead to: its noun, and what is wrong with it.
GONE = {
    "missing-segment": "segment {} is missing: it held",
    "short-segment": "segment {} is too short: it held",
    "missing-frames": "record {} is missing: behind it were",
    "short-record": "record {} is too short: behind it were",
}


class LaneCheck:
    """The check of one lane at one node."""

    def __init__(self, owner: Scope, lane: Lane, where: str, spec: ArraySpec | None):
        self.owner = owner
        self.lane = lane
        self.where = where
        self.spec = spec
        self.report = owner.report
        self._next = 1
        self._unchecked = False  # whether the last record could not be looked at
        self._txids: dict[int, str] = {}
        self._commits: dict[str, int] = {}  # every transaction, combined ones and their parts
        self._twice: dict[str, tuple[int, int]] = {}
        self._parent: Base | None = None
        self._pending: list[int] = []
        self._hit: dict[tuple[str, str], list[str]] = {}  # (kind, key) -> what is hit
        self._level = None
        if spec is not None and spec.kind == KIND:
            self._level = LevelCheck(owner.pages, owner.report, where)
        self._kind = check_of("" if spec is None else spec.kind)
        self._blocks = None
        if spec is not None and spec.dtype is not None:
            self._blocks = Blocks(owner.home, lane, spec, 1)

    def run(
        self,
        found: LaneKeys,
        base: Base | None,
        locked: bool = False,
        loaded: Iterator[Loaded] | None = None,
    ) -> Fold:
        """Read the log from end to end; return the state after it.

        `loaded` yields the records of `found`, and perhaps others after them.
        """
        self.owner.progress(self.where)
        self.report.count("lanes")
        self._parent = base
        fold = Fold(self.owner.home, base)
        self._pending = list(found.snapshots)
        last = None
        if loaded is None:
            loaded = load_records(self.owner.home.engine, planned(self.lane, found))
        for start, stop in found.runs:
            if start > self._next:
                self._gap(fold, start)
            for number in range(start, stop):
                if last is not None and last.type == log.LOCK:
                    self._error(
                        "after-lock",
                        f"record {number} follows the lock; " + RESTORE.format("the log"),
                    )
                last = self._record(fold, number, next(loaded))
                self._next = number + 1
                if self._pending and self._pending[0] == number:
                    self._snapshot(fold, self._pending.pop(0))
        for number in self._pending:
            self._error(
                "missing-record",
                f"the log ends at record {found.last}, but a snapshot was"
                f" taken after record {number}; " + RESTORE.format("the log"),
            )
        for txid, (first, again) in self._twice.items():
            self._error(
                "duplicate-txid",
                f"record {again} holds transaction {txid}, which is in record {first} already; "
                + RESTORE.format("the log"),
            )
        ends = last is not None and last.type == log.LOCK
        if locked and not ends and not self._unchecked:
            self._error(
                "no-lock-record",
                "the version is locked, but the log ends at record"
                f" {found.last} without its LOCK record; {REBUILD}",
            )
        self.flush()
        return fold

    def final(self, fold: Fold, base: Base) -> bool:
        """Check the state that the lock object gives; tell whether children can build on it."""
        sound = self._roots(fold, base, "the lock object")
        self.flush()
        return sound

    def _error(self, kind: str, message: str) -> None:
        self.report.error(kind, self.where, message)

    def _gap(self, fold: Fold, start: int) -> None:
        first = self._next
        lost = f"record {first} is" if start == first + 1 else f"records {first} to {start - 1} are"
        self._error(
            "missing-record",
            f"{lost} missing before record {start}; {REBUILD}, or "
            + RESTORE.format(keys.record(self.lane.log.prefix, first)),
        )
        fold.lose()
        while self._pending and self._pending[0] < start:
            number = self._pending.pop(0)
            self._snapshot(fold, number)
            if number != start - 1:
                fold.lose()

    def _record(self, fold: Fold, number: int, loaded: Loaded) -> Record | None:
        self.report.count("records")
        key = keys.record(self.lane.log.prefix, number)
        try:
            record = loaded.whole(self.lane)
            head = record.head
            if not 0 <= head["base"] < number or head.get("node", self.lane.node_id) != (
                self.lane.node_id
            ):
                raise CorruptError(f"it is of node {head.get('node')} after {head['base']}")
            if record.type == log.LOCK:
                self._check_txids(head, number - 1)
            self._check_commits(record, number)
            lacking = self._lacking(record, key, loaded.size)
            for space, changes in record.delta.items():
                self._entries(space, changes.items(), f"record {number}")
            if head.get("body"):
                self.owner.covered(self.lane.id, tuple(head["body"]))
            fold.add(record)
            if lacking:
                self._hit.setdefault(("short-record", key), [])
            self._unchecked = False
            return record
        except UNREADABLE as error:
            self._unchecked = obstacle(error) is not None
            advice = f"{REBUILD}, or " + RESTORE.format(key)
            self.report.damage("bad-record", self.where, f"record {number}", error, advice)
            fold.lose()
            return None

    def _lacking(self, record: Record, key: str, size: int) -> bool:
        """Tell whether bytes of the frames behind a record are gone."""
        behind = record.head.get("frames", 0)
        if behind:
            self.owner.note(key, size, True)
        if size > record.size + behind:
            raise CorruptError(f"{size - record.size - behind} bytes too many are behind it")
        return bool(size < record.size + behind)

    def _check_commits(self, record: Record, number: int) -> None:
        """Check what is said of the commits in a record, and that no other holds them."""
        head = record.head
        self._txids[number] = head["txid"]
        parts = [] if head.get("parts") is None else record.commits()
        if parts and any(not 0 <= part["base"] < number for part in parts):
            raise CorruptError("a commit in it was based on a later record")
        for txid in (head["txid"], *(part["txid"] for part in parts)):
            if txid in self._commits:
                self._twice.setdefault(txid, (self._commits[txid], number))
            self._commits[txid] = number

    def _snapshot(self, fold: Fold, number: int) -> None:
        key = keys.snapshot(self.lane.log.prefix, number)
        self.report.count("snapshots")
        try:
            record = Record.decode(self.owner.home.engine.get(key), key)
            if record.type != log.SNAPSHOT or record.head["number"] != number:
                raise CorruptError("it is of another record")
            base = Base.parse(record.head)
            self._check_txids(record.head, number)
        except UNREADABLE as error:
            what = f"the snapshot after record {number}"
            self.report.damage("bad-snapshot", self.where, what, error, REBUILD)
            return
        if self._roots(fold, base, f"the snapshot after record {number}"):
            fold.move(base)

    def _check_txids(self, head: dict[str, Any], last: int) -> None:
        """Check the order of transactions that snapshots and LOCK records keep."""
        listed = dict(enumerate(head["txids"], head["previous"] + 1))
        if head["previous"] + len(listed) != last or any(
            self._txids.get(number, txid) != txid for number, txid in listed.items()
        ):
            raise CorruptError("its list of transactions is not that of the log")

    def _roots(self, fold: Fold, base: Base, what: str) -> bool:
        """Check trees, and that they hold what the records make; tell whether they are sound."""
        damage: list[PageDamage] = []
        sound = self.owner.pages.verify(base, damage)
        for each in damage:
            kind = "missing-pages" if each.missing else "bad-page"
            pack = keys.pack(self.owner.home.prefix, each.pointer[0])
            other = None if each.missing else obstacle(each.error)
            if other is None:
                self._error(kind, f"a page of {what}, in {pack}: {each.error}; {REBUILD}")
            else:
                self.report.unchecked(other, self.owner.name, f"{pack}: {each.error}")
        if not sound:
            return False
        if fold.base is None:  # no record explains these entries
            before = (self._parent or Base()).roots
            load = self.owner.home.load
            for space, root in base.roots.items():
                new = index.diff(load, before.get(space), root)
                self._entries(space, [(key, entry) for key, _, entry in new], what)
            return True
        different = fold.difference(base)
        if different is not None:
            self._error(
                "wrong-fold", f"{what} is not what the records make ({different}); {REBUILD}"
            )
        return different is None

    # -- entries and frames ----------------------------------------------------------------

    def part(self, record: Record, source: str) -> None:
        """Check what one part of a write session refers to."""
        for space, changes in record.delta.items():
            cut = pieces.NUMBER.size if space == PIECES else 0
            named = [(key[: len(key) - cut], entry) for key, entry in changes.items()]
            self._entries(space, named, source)

    def _entries(
        self, space: int, named: Iterable[tuple[bytes, Entry | None]], source: str
    ) -> None:
        named = list(named)
        owner, lane_id = self.owner, self.lane.id
        if self._blocks is None:
            for key, flaw in self._kind.entries(space, dict(named)):
                name = self._name(space, key)
                self._error("bad-entry", f"{name} in {source}: {flaw}; {REWRITE_VALUE}")
        owner.learn_ahead(lane_id, (entry for _, entry in named if isinstance(entry, tuple)))
        for key, entry in named:
            if isinstance(entry, tuple):
                self.report.count("frames")
                wrong = owner.covered(lane_id, entry)
                if wrong is not None:
                    place, _ = owner.home.locate(lane_id, *entry[:2])
                    self._hit.setdefault((wrong, place), []).append(self._name(space, key))
                elif owner.full:
                    owner.read_later(self, space, key, entry)
            elif entry is not None and space == CATALOG and self._level is not None:
                self._entries(SPACE, self._level.blocks(entry, source), source)
            elif entry is not None and self._blocks is not None and space == SPACE:
                size = len(CONSTANT) + len(self.spec.fill)  # type: ignore[union-attr]
                if entry[:1] != CONSTANT or len(entry) != size:
                    what = f"{len(entry)} bytes that are no constant block; {REBUILD}"
                    self._error("bad-entry", f"{self._name(space, key)} in {source} is {what}")

    def unread(self, space: int, key: bytes, place: str, start: int, error: Exception) -> Problem:
        """Return the finding for a frame: its own if it is damaged, else its array's or home's."""
        other = obstacle(error)
        if other == "unsupported":
            array = "" if self.spec is None else f", array {self.spec.name!r}"
            message = f"blocks or values cannot be checked: {error}"
            return Problem("error", other, self.owner.name + array, message)
        if other is not None:
            message = f"what is in {place} cannot be checked: {error}"
            return Problem("error", other, self.owner.name, message)
        what = "the segment" if place.endswith(".seg") else "that record"
        message = (
            f"{self._name(space, key)}, in {place} at {start} ({error}), cannot be"
            " read here nor at descendants that did not rewrite it; "
            f"{RESTORE.format(what)}, {REWRITE}"
        )
        return Problem("error", "bad-frame", self.where, message)

    def decode(self, frame: Frame, space: int, key: bytes, pointer: Pointer) -> None:
        """Decode a frame that an entry leads to; on any thread."""
        if frame.size != pointer[2]:
            raise CorruptError(f"{frame.size} bytes, not {pointer[2]}")
        if frame.space != space or frame.lane != self.lane.lane_bytes or frame.key != key:
            raise CorruptError("the frame is of another lane, space or key")
        spec = self.spec
        if self._blocks is not None and spec is not None:
            if space == PIECES:
                pieces._decode(self._blocks, frame, key)
                return
            self._blocks._check(frame, key, pointer[2])
            block = np.empty(spec.full_block_shape, spec.dtype)
            self._blocks._decode(frame, block, (0,) * spec.dims)
        else:
            self._kind.value(space, key, decode_value(frame, "the value"))

    def _name(self, space: int, key: bytes) -> str:
        spec = self.spec
        if spec is not None and spec.dtype is not None and len(key) == 4 * spec.dims:
            return f"block {tuple(grid.block_coords([key], spec.dims)[0].tolist())}"
        return self._kind.name(space, key)

    def flush(self) -> None:
        """Report blocks without bytes, by object."""
        for (kind, place), names in self._hit.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            held = ", ".join(names[:SHOWN]) + more if names else "bytes that nothing refers to"
            what = f"{GONE[kind].format(place)} {held}"
            self._error(kind, f"{what}; " + RESTORE.format("it") + f", {REWRITE}")
        self._hit = {}


def planned(lane: Lane, found: LaneKeys) -> Iterator[tuple[Lane, int]]:
    """Yield the records of a lane for `load_records`."""
    return ((lane, number) for start, stop in found.runs for number in range(start, stop))
