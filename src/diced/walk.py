"""What a home holds, read without trust: lanes by listing, trees page by page, frames by header.

Shared by check, rebuild and usage. Reads through a `Home` of its own, so that nothing cached by
readers can hide damage; writes only where `Fold.write` is asked to.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from diced import grid, index, keys, log, pool
from diced._crc32c import crc32c
from diced.engine.base import Engine
from diced.errors import CorruptError, DicedException
from diced.home import Home
from diced.log import Delta, Entry, Pointer, Record
from diced.meta import Tables
from diced.page import Page
from diced.segment import CHECK, COMMIT, HEADER, MAGIC, MAX_KEY, Frame
from diced.session import BEGUN, OVER
from diced.state import Base, parse_box
from diced.sweep import names_below
from diced.versioned import Lane

# What taking damaged bytes apart can raise: our own errors, and whatever a header that is sound
# JSON but not what diced writes does to the code that reads it.
DAMAGE = (CorruptError, ArithmeticError, LookupError, TypeError, ValueError, struct.error)
# Also that the medium failed or the format is newer, which a check reports and nothing mends.
UNREADABLE = (*DAMAGE, DicedException)

WINDOW = 1 << 17
# A body of a record that is read ahead, side by side with others, has at most so many bytes.
BODY_AHEAD = 256 * 1024
PAGES_AHEAD = 64

_is_txid = re.compile("[0-9a-f]{32}").fullmatch
_is_claim = re.compile("[0-9]{10}-[0-9]+").fullmatch


def plural(count: int, noun: str) -> str:
    """Return ``1 lock written`` or ``2 locks written`` of ``locks written``."""
    word, space, rest = noun.partition(" ")
    return f"{count} {word.removesuffix('s') if count == 1 else word}{space}{rest}"


class LaneKeys:
    """The objects of one lane at one node, from a listing.

    Attributes
    ----------
    runs : list of [start, stop]
        Numbers of the records present, half-open and ascending.
    snapshots : list of int
    waiting : list of str
        Keys of proposals, and of claims to gather them.
    sessions : dict of str to list of str
        Write session -> names of its parts and marks.
    """

    __slots__ = ("runs", "sessions", "snapshots", "waiting")

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.snapshots: list[int] = []
        self.waiting: list[str] = []
        self.sessions: dict[str, list[str]] = {}

    @property
    def last(self) -> int:
        """The highest record number, 0 without records."""
        return self.runs[-1][1] - 1 if self.runs else 0

    def has(self, number: int) -> bool:
        """Tell whether a record was listed."""
        return any(start <= number < stop for start, stop in self.runs)

    def add(self, number: int) -> None:
        """Append a record; numbers come in ascending order."""
        if self.runs and self.runs[-1][1] == number:
            self.runs[-1][1] += 1
        else:
            self.runs.append([number, number + 1])


def lane_keys(
    engine: Engine, home: str, below: str = ""
) -> tuple[dict[tuple[str, str], LaneKeys], list[str]]:
    """List a home's lanes, or what is below the prefix `below` of one.

    Returns
    -------
    lanes : dict of (lane id, node id) to LaneKeys
    strays : list of str
        Keys that diced does not spell.
    """
    lanes: dict[tuple[str, str], LaneKeys] = {}
    strays = []
    prefix = f"{home}/lanes"
    for key in engine.list(below or prefix):
        parts = key[len(prefix) + 1 :].split("/")
        if not (4 <= len(parts) <= 5 and _sort(key, parts, home, lanes)):
            strays.append(key)
    return lanes, strays


def _sort(key: str, parts: list[str], home: str, lanes: dict[tuple[str, str], LaneKeys]) -> bool:
    """Note a key of a lane; False if diced does not spell it."""
    lane_id, node_id, kind, name = parts[:4]
    where = keys.lane(home, lane_id, node_id)
    number = int(name) if name.isdecimal() and name.isascii() else 0
    is_record = number and key == keys.record(where, number)
    is_snapshot = number and key == keys.snapshot(where, number)
    waits = (kind == "pend" and _is_txid(name)) or (kind == "turn" and _is_claim(name))
    joins = len(parts) == 5 and _is_txid(name) and key == keys.part(where, *parts[3:])
    if joins:
        joins = bool(_is_txid(parts[4])) or parts[4] in (BEGUN, OVER)
    if not (joins if len(parts) == 5 else is_record or is_snapshot or waits):
        return False
    found = lanes.setdefault((lane_id, node_id), LaneKeys())
    if joins:
        found.sessions.setdefault(name, []).append(parts[4])
    elif is_record:
        found.add(number)
    elif is_snapshot:
        found.snapshots.append(number)
    else:
        found.waiting.append(key)
    return True


class Loaded(NamedTuple):
    """A record that was read ahead, or why it could not be.

    Attributes
    ----------
    record : Record or None
    size : int
        Bytes of its object.
    error : Exception or None
    """

    record: Record | None
    size: int
    error: Exception | None

    def whole(self, lane: Lane) -> Record:
        """Return the record with its sections, or raise what reading it raised."""
        if self.error is not None:
            raise self.error
        assert self.record is not None
        body = self.record.head.get("body")
        if body is None or self.record.delta:
            return self.record
        return lane.whole(self.record)


def load_records(engine: Engine, wanted: Iterable[tuple[Lane, int]]) -> Iterator[Loaded]:
    """Read records in order, side by side on a remote engine; errors are results."""
    threads = pool.LIMIT if engine.remote else 1
    return pool.map_ordered(_load, wanted, threads, pool.LIMIT)


def _load(wanted: tuple[Lane, int]) -> Loaded:
    lane, number = wanted
    try:
        record = lane.log.read(number)
        size = record.size + len(record.frames)
        engine = lane.home.engine
        if engine.remote and size >= log.PEEK_BYTES:  # else all of the object was read
            size = engine.size(keys.record(lane.log.prefix, number))
        record.frames = b""
        body = record.head.get("body")
        if body is not None and body[2] <= BODY_AHEAD:
            lane.whole(record)
        return Loaded(record, size, None)
    except UNREADABLE as error:
        return Loaded(None, 0, error)


def repo_ids(engine: Engine) -> Iterator[str]:
    """Yield the ids of the repo homes that hold anything, without listing what they hold."""
    return names_below(engine, keys.repo_home("").rstrip("/"))


class PageDamage(NamedTuple):
    """A page that is missing, unreadable or not in its place."""

    pointer: Pointer
    missing: bool
    error: Exception


class _Summary(NamedTuple):
    level: int
    total: int
    first: bytes
    last: bytes
    sound: bool


_LOST = _Summary(-1, 0, b"", b"", False)


class Pages:
    """Verifies trees, every page once however many versions share it.

    Parameters
    ----------
    home : Home
    expected : tuple of exception types
        What counts as damage of a page; anything else is raised.

    Attributes
    ----------
    packs : set of int
        Page packs that a verified tree refers to.
    count, nbytes : int
        Distinct pages met, and their stored bytes.
    """

    def __init__(self, home: Home, expected: tuple[type[Exception], ...] = DAMAGE):
        self.home = home
        self._expected = expected
        self.packs: set[int] = set()
        self.nbytes = 0
        self._seen: dict[Pointer, _Summary] = {}

    @property
    def count(self) -> int:
        """Distinct pages met."""
        return len(self._seen)

    def verify(self, base: Base, damage: list[PageDamage] | None = None) -> bool:
        """Walk all trees of a state; tell whether all is sound. `damage` gets what is new."""
        found: list[PageDamage] = [] if damage is None else damage
        return all([self._visit(root, found).sound for root in base.roots.values()])

    def _visit(self, pointer: Pointer, damage: list[PageDamage]) -> _Summary:
        known = self._seen.get(pointer)
        if known is not None:
            return known
        self.packs.add(pointer[0])
        self.nbytes += pointer[2]
        try:
            page = self.home.load(pointer)
            if not len(page) or page.has_tombstones:
                raise CorruptError("the page is empty or part of a delta, not of a tree")
        except self._expected as error:
            missing = not self.home.engine.exists(keys.pack(self.home.prefix, pointer[0]))
            damage.append(PageDamage(pointer, missing, error))
            self._seen[pointer] = _LOST
            return _LOST
        sound, last = True, page.key(len(page) - 1)
        for at in range(len(page) if page.level else 0):
            if at % PAGES_AHEAD == 0 and self.home.engine.remote:
                self._read_ahead(page, at)
            entry = page.entry(at)
            child = self._visit(entry, damage)  # type: ignore[arg-type]
            sound = sound and child.sound
            if child is _LOST:
                continue
            last = child.last
            if (
                child.level != page.level - 1
                or child.first != page.key(at)
                or (at + 1 < len(page) and last >= page.key(at + 1))
                or [child.total] != page.counts(at, at + 1)
            ):
                sound = False
                wrong = CorruptError(f"page {pointer}: child {at} is another page")
                damage.append(PageDamage(pointer, False, wrong))
        summary = _Summary(page.level, page.count, page.key(0), last, sound)
        self._seen[pointer] = summary
        return summary

    def _read_ahead(self, page: Page, at: int) -> None:
        """Load children of a page side by side, for whoever asks next."""

        def load(pointer: Pointer) -> None:
            with contextlib.suppress(*UNREADABLE):  # told when it is visited
                self.home.load(pointer)

        children = (page.entry(each) for each in range(at, min(at + PAGES_AHEAD, len(page))))
        wanted = [each for each in children if isinstance(each, tuple) and each not in self._seen]
        pool.for_each(load, wanted, pool.LIMIT)


class Fold:
    """A lane's state while its log is read: sound roots, and the changes since.

    Attributes
    ----------
    base : Base or None
        None when what the records were folded over is not known any more.
    delta : Delta
        space -> key -> entry or None, newer than `base`.
    size : int
        Upper bound of the entries in `delta`.
    """

    def __init__(self, home: Home, base: Base | None):
        self.home = home
        self.base = base
        self.box = None if base is None else base.box
        self.delta: Delta = {}
        self.size = 0

    def add(self, record: Record) -> None:
        """Take in the next record."""
        for space, changes in record.delta.items():
            self.delta.setdefault(space, {}).update(changes)
            self.size += len(changes)
        self.box = grid.union(self.box, parse_box(record.head.get("box")))

    def lose(self) -> None:
        """Note that a record is lost: nothing is certain until `move`."""
        self.base, self.delta, self.size = None, {}, 0

    def move(self, base: Base) -> None:
        """Go on from roots that are known to hold the state as of now."""
        self.base, self.box, self.delta, self.size = base, base.box, {}, 0

    def difference(self, other: Base) -> str | None:
        """Say where sound roots hold anything but this state, or return None."""
        assert self.base is not None
        load = self.home.load
        for space in {*self.base.roots, *other.roots, *self.delta}:
            root = other.roots.get(space)
            changes = dict(self.delta.get(space, {}))
            for key, old, new in index.diff(load, self.base.roots.get(space), root):
                if changes.pop(key, old) != new:
                    return f"space {space}, key {key.hex()}"
            for key, entry in changes.items():
                if index.get(load, root, key) != entry:
                    return f"space {space}, key {key.hex()}"
        return None if self.box == other.box else f"box {other.box}, not {self.box}"

    def write(self) -> Base:
        """Write pages for this state, and go on from them."""
        assert self.base is not None
        roots = dict(self.base.roots)
        pack = self.home.new_pack()
        for space, changes in self.delta.items():
            root = index.apply(self.home.load, roots.pop(space, None), sorted_items(changes), pack)
            if root is not None:
                roots[space] = root
        self.home.write_pack(pack)
        self.move(Base(roots, self.box))
        assert self.base is not None
        return self.base

    def tables(self, spaces: tuple[int, ...]) -> Tables:
        """Return the JSON tables of a metadata lane; what is lost is absent."""
        found: dict[int, dict[bytes, Entry | None]] = {}
        for space in spaces:
            root = None if self.base is None else self.base.roots.get(space)
            found[space] = dict(index.scan(self.home.load, root))
            found[space].update(self.delta.get(space, {}))
        return {
            space: {key: json.loads(value) for key, value in each.items() if value is not None}  # type: ignore[arg-type]
            for space, each in found.items()
        }


def sorted_items(changes: dict[bytes, Entry | None]) -> list[tuple[bytes, Entry | None]]:
    """Return changes in order of key."""
    return sorted(changes.items(), key=lambda item: item[0])


class Head(NamedTuple):
    """The verified header of a frame, and where the frame is."""

    offset: int
    size: int
    kind: int
    lane: bytes


def frame_heads(
    engine: Engine, key: str, start: int = 0, stop: int | None = None
) -> Iterator[Head]:
    """Yield the frames of a segment in order without reading payloads.

    Where no frame is, the next magic is searched, so that damage does not hide what follows.
    """
    size = engine.size(key) if stop is None else stop
    buffer, base, at = b"", 0, start
    while at + HEADER.size + CHECK.size <= size:
        if at + HEADER.size + MAX_KEY + CHECK.size > base + len(buffer) < size or at < base:
            base = at
            buffer = engine.get(key, base, min(WINDOW, size - base))
        head = _head(buffer, at - base, at, size)
        if head is not None:
            yield head
            at += head.size
            continue
        found = buffer.find(MAGIC, at - base + 1)
        # The last three bytes may begin a magic that the window cuts.
        at = base + (found if found >= 0 else max(at - base + 1, len(buffer) - 3))


def _head(buffer: bytes, begin: int, offset: int, size: int) -> Head | None:
    if buffer[begin : begin + 4] != MAGIC or begin + HEADER.size > len(buffer):
        return None
    fields = HEADER.unpack_from(buffer, begin)
    kind, lane, stored, key_length = fields[1], fields[5], fields[7], fields[8]
    body = begin + HEADER.size + key_length
    total = HEADER.size + key_length + CHECK.size + stored
    if key_length > MAX_KEY or body + CHECK.size > len(buffer) or offset + total > size:
        return None
    if crc32c(buffer[begin:body]) != CHECK.unpack_from(buffer, body)[0]:
        return None
    return Head(offset, total, kind, lane)


class Commit(NamedTuple):
    """A COMMIT frame: where it is, and the number of the record it was based on."""

    pointer: Pointer
    base: int


def commits(home: Home, lane: bytes, node_id: str) -> dict[str, Commit]:
    """Find a lane's COMMIT frames at a node in all segments, by transaction id."""

    def scan(key: str) -> list[tuple[str, Commit]]:
        here = []
        for head in frame_heads(home.engine, key):
            if head.kind != COMMIT or head.lane != lane:
                continue
            pointer = (keys.object_id(key), head.offset, head.size)
            with contextlib.suppress(*DAMAGE):
                record = commit_record(home, pointer)
                if record.head.get("node") == node_id:
                    here.append((record.head["txid"], Commit(pointer, record.head["base"])))
        return here

    segments = home.engine.list(keys.segments(home.prefix))
    threads = pool.LIMIT if home.engine.remote else 1
    return dict(each for here in pool.map_ordered(scan, segments, threads) for each in here)


def commit_record(home: Home, pointer: Pointer) -> Record:
    """Return the record that a COMMIT frame holds."""
    frame: Frame = home.read_frame("", pointer)  # never behind a record, so of any lane
    if frame.kind != COMMIT:
        raise CorruptError(f"the frame at {pointer[1]} of segment {pointer[0]:016x} is no commit")
    return Record.decode(bytes(frame.payload), f"commit frame at {pointer[1]}")
