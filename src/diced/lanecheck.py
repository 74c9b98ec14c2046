"""Checking one lane at one node: its log from end to end, its trees, and the frames it refers to.

Also what all checks share: the report, and what is known of a home's pages and segments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diced import grid, index, keys, log, pool
from diced._compress import lz4_decompress
from diced.blocks import CONSTANT, SPACE, Blocks
from diced.errors import (
    AccessError,
    CorruptError,
    EngineError,
    NotFoundError,
    UnsupportedError,
)
from diced.files import LZ4, MAX_VALUE, RAW
from diced.home import Home
from diced.log import Delta, Pointer, Record
from diced.segment import VALUE
from diced.spec import ArraySpec
from diced.state import Base
from diced.versioned import Lane
from diced.walk import UNREADABLE, Fold, LaneKeys, PageDamage, Pages

SHOWN = 8  # blocks named in one message
FRAMES = 16  # frames that one task of the pool decodes

REBUILD = "run 'diced fsck --rebuild'"
RESTORE = "restore {} from a copy"
REWRITE = "or write the blocks again at an open version"
# Kinds of findings that say what could not be looked at, not what is damaged.
UNCHECKED = ("unsupported", "access", "medium")

Progress = Callable[[str], None]


class Problem(NamedTuple):
    """One finding: severity is ``error`` or ``warning``, `kind` a fixed word.

    `where` is the place (repo, array, version) and `message` what is wrong there, without it.
    """

    severity: str
    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message}"


def obstacle(error: Exception) -> str | None:
    """Return the kind of what keeps bytes from being checked, or None if they are damaged."""
    if isinstance(error, UnsupportedError):
        return "unsupported"
    if isinstance(error, AccessError):
        return "access"
    return "medium" if isinstance(error, EngineError) else None


class Report:
    """What a check or rebuild found.

    Attributes
    ----------
    problems : list of Problem
    counts : dict of str to int
        How much was looked at or written.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.counts: dict[str, int] = {}
        self._once: set[Problem] = set()

    @property
    def ok(self) -> bool:
        """True without errors; warnings are allowed."""
        return not any(each.severity == "error" for each in self.problems)

    def error(self, kind: str, where: str, message: str) -> None:
        """Add a finding that means lost or unreadable data, or a broken rule."""
        self.problems.append(Problem("error", kind, where, message))

    def damage(self, kind: str, where: str, what: str, error: Exception, advice: str) -> None:
        """Add that `what` does not read: as damage, or as not checked if nothing says that."""
        other = obstacle(error)
        if other is None:
            self.error(kind, where, f"{what} is damaged ({error}); {advice}")
        else:
            self.unchecked(other, where, f"{what} cannot be checked: {error}")

    def unchecked(self, kind: str, where: str, message: str) -> None:
        """Add what keeps something from being checked, once however much it concerns."""
        problem = Problem("error", kind, where, message)
        if problem not in self._once:
            self._once.add(problem)
            self.problems.append(problem)

    def warning(self, kind: str, where: str, message: str) -> None:
        """Add a finding that costs space or attention only."""
        self.problems.append(Problem("warning", kind, where, message))

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[what] = self.counts.get(what, 0) + number

    def __repr__(self) -> str:
        errors = sum(each.severity == "error" for each in self.problems)
        return f"<Report {errors} errors, {len(self.problems) - errors} warnings, {self.counts}>"


class Scope:
    """What the checks of one home's lanes share.

    Attributes
    ----------
    name : str
        What messages call the home.
    ends : dict of int to int
        Segment -> end of the last frame that an entry refers to.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        report: Report,
        full: bool,
        threads: int,
        progress: Progress | None,
    ):
        self.home = home
        self.name = name
        self.report = report
        self.full = full
        self.threads = threads
        self.progress = progress or (lambda _text: None)
        self.pages = Pages(home, UNREADABLE)
        self.ends: dict[int, int] = {}
        self._sizes: dict[int, int | None] = {}

    def covered(self, pointer: Pointer) -> str | None:
        """Return what is wrong with a pointer's range (missing or short), or None."""
        segment, offset, length = pointer
        end = offset + length
        size = self._sizes.get(segment)
        if size is None or size < end:
            try:
                size = self.home.engine.size(keys.segment(self.home.prefix, segment))
            except NotFoundError:
                size = None
            self._sizes[segment] = size
        if size is None:
            return "missing-segment"
        self.ends[segment] = max(self.ends.get(segment, 0), min(end, size))
        return "short-segment" if size < end else None


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
        self._parent: Base | None = None
        self._pending: list[int] = []
        self._hit: dict[tuple[str, int], list[str]] = {}
        self._blocks = None
        if spec is not None and spec.dtype is not None:
            self._blocks = Blocks(owner.home, lane, spec, 1)

    def run(self, found: LaneKeys, base: Base | None, locked: bool = False) -> Fold:
        """Read the log from end to end; return the state after it."""
        self.owner.progress(self.where)
        self.report.count("lanes")
        self._parent = base
        fold = Fold(self.owner.home, base)
        self._pending = list(found.snapshots)
        last = None
        for start, stop in found.runs:
            if start > self._next:
                self._gap(fold, start)
            for number in range(start, stop):
                if last is not None and last.type == log.LOCK:
                    self._error(
                        "after-lock",
                        f"record {number} follows the lock; " + RESTORE.format("the log"),
                    )
                last = self._record(fold, number)
                self._next = number + 1
                if self._pending and self._pending[0] == number:
                    self._snapshot(fold, self._pending.pop(0))
        for number in self._pending:
            self._error(
                "missing-record",
                f"the log ends at record {found.last}, but a snapshot was"
                f" taken after record {number}; " + RESTORE.format("the log"),
            )
        if len(set(self._txids.values())) != len(self._txids):
            self._error(
                "duplicate-txid",
                "two records have the same transaction id; " + RESTORE.format("the log"),
            )
        ends = last is not None and last.type == log.LOCK
        if locked and not ends and not self._unchecked:
            self._error(
                "no-lock-record",
                "the version is locked, but the log ends at record"
                f" {found.last} without its LOCK record; {REBUILD}",
            )
        self._flush()
        return fold

    def final(self, fold: Fold, base: Base) -> bool:
        """Check the state that the lock object gives; tell whether children can build on it."""
        sound = self._roots(fold, base, "the lock object")
        self._flush()
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

    def _record(self, fold: Fold, number: int) -> Record | None:
        self.report.count("records")
        try:
            record = self.lane._whole(self.lane.log.read(number))
            head = record.head
            if not 0 <= head["base"] < number or head.get("node", self.lane.node_id) != (
                self.lane.node_id
            ):
                raise CorruptError(f"it is of node {head.get('node')} after {head['base']}")
            if record.type == log.LOCK:
                self._check_txids(head, number - 1)
            self._txids[number] = head["txid"]
            self._entries(record.delta, f"record {number}")
            if head.get("body"):
                self.owner.covered(tuple(head["body"]))
            fold.add(record)
            self._unchecked = False
            return record
        except UNREADABLE as error:
            self._unchecked = obstacle(error) is not None
            self.report.damage(
                "bad-record",
                self.where,
                f"record {number}",
                error,
                f"{REBUILD}, or " + RESTORE.format(keys.record(self.lane.log.prefix, number)),
            )
            fold.lose()
            return None

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
                self._entries({space: {key: entry for key, _, entry in new}}, what)
            return True
        different = fold.difference(base)
        if different is not None:
            self._error(
                "wrong-fold", f"{what} is not what the records make ({different}); {REBUILD}"
            )
        return different is None

    # -- entries and frames ----------------------------------------------------------------

    def _entries(self, delta: Delta, source: str) -> None:
        frames = []
        for space, changes in delta.items():
            for key, entry in changes.items():
                if isinstance(entry, tuple):
                    self.report.count("frames")
                    wrong = self.owner.covered(entry)
                    if wrong is not None:
                        self._hit.setdefault((wrong, entry[0]), []).append(self._name(key))
                    elif self.owner.full:
                        frames.append((space, key, entry))
                elif entry is not None and self._blocks is not None and space == SPACE:
                    size = len(CONSTANT) + len(self.spec.fill)  # type: ignore[union-attr]
                    if entry[:1] != CONSTANT or len(entry) != size:
                        self._error(
                            "bad-entry",
                            f"{self._name(key)} in {source} is"
                            f" {len(entry)} bytes that are no constant block; {REBUILD}",
                        )
        frames.sort(key=lambda each: each[2])
        groups = [frames[i : i + FRAMES] for i in range(0, len(frames), FRAMES)]
        for problems in pool.map_ordered(self._read_frames, groups, self.owner.threads):
            for each in problems:
                if each.kind in UNCHECKED:
                    self.report.unchecked(*each[1:])
                else:
                    self.report.error(*each[1:])

    def _read_frames(self, group: list[tuple[int, bytes, Pointer]]) -> list[Problem]:
        wrong = []
        for space, key, pointer in group:
            try:
                self._read_frame(space, key, pointer)
            except UNREADABLE as error:
                wrong.append(self._unread(key, pointer, error))
        return wrong

    def _unread(self, key: bytes, pointer: Pointer, error: Exception) -> Problem:
        """Return the finding for a frame: its own if it is damaged, else its array's or home's."""
        place = keys.segment(self.owner.home.prefix, pointer[0])
        other = obstacle(error)
        if other == "unsupported":
            array = "" if self.spec is None else f", array {self.spec.name!r}"
            message = f"blocks or values cannot be checked: {error}"
            return Problem("error", other, self.owner.name + array, message)
        if other is not None:
            message = f"what is in {place} cannot be checked: {error}"
            return Problem("error", other, self.owner.name, message)
        message = (
            f"{self._name(key)}, in {place} at {pointer[1]} ({error}), cannot be"
            " read here nor at descendants that did not rewrite it; "
            f"{RESTORE.format('the segment')}, {REWRITE}"
        )
        return Problem("error", "bad-frame", self.where, message)

    def _read_frame(self, space: int, key: bytes, pointer: Pointer) -> None:
        frame = self.owner.home.read_frame(self.lane.id, pointer)
        if frame.space != space or frame.lane != self.lane.lane_bytes or frame.key != key:
            raise CorruptError("the frame is of another lane, space or key")
        spec = self.spec
        if self._blocks is not None and spec is not None:
            self._blocks._check(frame, key, pointer[2])
            block = np.empty(spec.full_block_shape, spec.dtype)
            self._blocks._decode(frame, block, (0,) * spec.dims)
        elif frame.kind != VALUE or frame.codec not in (RAW, LZ4) or frame.raw > MAX_VALUE:
            raise CorruptError(f"kind {frame.kind}, codec {frame.codec}, {frame.raw} bytes")
        elif frame.codec == LZ4:
            lz4_decompress(frame.payload, bytearray(frame.raw))
        elif len(frame.payload) != frame.raw:
            raise CorruptError(f"{len(frame.payload)} bytes, not {frame.raw}")

    def _name(self, key: bytes) -> str:
        spec = self.spec
        if spec is not None and spec.dtype is not None and len(key) == 4 * spec.dims:
            return f"block {tuple(grid.block_coords([key], spec.dims)[0].tolist())}"
        return f"key {key.decode(errors='backslashreplace')!r}"

    def _flush(self) -> None:
        """Report blocks without bytes, by segment."""
        for (kind, segment), names in self._hit.items():
            place = keys.segment(self.owner.home.prefix, segment)
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            state = "missing" if kind == "missing-segment" else "too short"
            self._error(
                kind,
                f"segment {place} is {state}: it held {', '.join(names[:SHOWN])}"
                f"{more}; " + RESTORE.format("it") + f", {REWRITE}",
            )
        self._hit = {}
