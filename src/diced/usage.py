"""How a store uses its space: by category, by array, by version, and what nothing refers to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from diced import index, keys, pool
from diced.dag import Node
from diced.engine.base import Engine
from diced.errors import CorruptError, NotFoundError
from diced.history import History, View
from diced.log import RIDES, Entry, Pointer, Record
from diced.moment import moment
from diced.pyramid import CATALOG, KIND, blocks_in, stored_in
from diced.segment import COMMIT
from diced.session import BEGUN, OVER, SESSIONS
from diced.spec import ArraySpec
from diced.state import Base
from diced.store import DicedStore
from diced.versioned import Lane
from diced.walk import LaneKeys, frame_heads, lane_keys, load_records

T = TypeVar("T")

PENDING = 1 << 16  # ranges gathered before they are joined: about 10 MB


def usage(store: DicedStore, repo: str | None = None) -> dict[str, Any]:
    """Account for the bytes of a store, or of one repo.

    Memory is bounded by the number of contiguous runs of frames, not by the number of blocks.

    Returns
    -------
    dict
        JSON-able: ``url``, ``uuid``, ``files``, ``bytes`` and ``repos``, a list of dicts with
        ``name``, ``uuid``, ``files``, ``bytes`` (``total`` and by category: segments, pages,
        logs, snapshots, locks, other), ``segments`` (bytes ``live`` in any version,
        ``superseded``, of which only logs know, ``journal`` copies of commits, ``sessions``,
        which unfinished write sessions hold, ``dead``), ``logs`` (the same of the frames that
        ride behind records, ``live``, ``superseded`` and ``dead``, and ``records``),
        ``arrays`` (``name``, ``kind``, ``live_bytes``, ``frames``, ``blocks`` stored over all
        versions, constants included) and ``versions`` (``uuid``, ``changed`` entries by array).

    Raises
    ------
    NotFoundError, CorruptError
    """
    names = store._catalog.names()
    if repo is not None and repo not in names:
        raise NotFoundError(f"no repo {repo!r} in {store.url}")
    repos = [
        _repo(store._history(repo_id), name)
        for name, repo_id in sorted(names.items())
        if repo is None or name == repo
    ]
    engine = store.engine
    own, own_files, _ = _by_category(engine, keys.STORE_HOME)
    return {
        "url": store.url,
        "uuid": store.uuid,
        "files": 1 + own_files + sum(each["files"] for each in repos),
        "bytes": engine.size(keys.STORE_FILE)
        + own["total"]
        + sum(each["bytes"]["total"] for each in repos),
        "repos": repos,
    }


class _Cover:
    """Ranges of segments, joined where they touch."""

    def __init__(self) -> None:
        self.runs: dict[int, np.ndarray] = {}  # segment -> int64 (runs, 2): start, stop; ascending
        self._pending: list[Pointer] = []

    def add(self, pointer: Pointer) -> None:
        """Add the range of a pointer."""
        self._pending.append(pointer)
        if len(self._pending) >= PENDING:
            self.join()

    def join(self) -> None:
        """Take in what is pending."""
        if not self._pending:
            return
        segments = np.array([each[0] for each in self._pending], np.uint64)
        ranges = np.array([each[1:] for each in self._pending], np.int64)
        self._pending = []
        ranges[:, 1] += ranges[:, 0]
        for segment in np.unique(segments):
            self.take(int(segment), ranges[segments == segment])

    def take(self, segment: int, ranges: np.ndarray) -> None:
        """Add ranges (n, 2) of one segment."""
        known = self.runs.get(segment)
        every = ranges if known is None else np.concatenate((known, ranges))
        every = every[np.argsort(every[:, 0], kind="stable")]
        reach = np.maximum.accumulate(every[:, 1])
        fresh = np.ones(len(every), bool)
        fresh[1:] = every[1:, 0] > reach[:-1]
        first = np.flatnonzero(fresh)
        last = np.append(first[1:], len(every)) - 1
        self.runs[segment] = np.stack((every[first, 0], reach[last]), axis=1)

    def update(self, other: _Cover) -> None:
        """Add all ranges of another."""
        other.join()
        for segment, runs in other.runs.items():
            self.take(segment, runs)

    def total(self) -> int:
        """Return the bytes covered."""
        self.join()
        return sum(int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.runs.values())

    def gaps(self, segment: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a segment that are not covered."""
        self.join()
        at = 0
        for start, stop in self.runs.get(segment, np.empty((0, 2), np.int64)).tolist():
            if start > at:
                yield at, min(start, size)
            at = max(at, stop)
        if at < size:
            yield at, size


class _Account:
    """What one array holds over all versions.

    Attributes
    ----------
    cover, riding : _Cover
        Of segments, and of what rides behind records: by node, as the array's pointers say.
    """

    def __init__(self, spec: ArraySpec):
        self.spec = spec
        self.cover = _Cover()
        self.riding = _Cover()
        self.blocks = 0
        self.frames = 0

    def add(self, entry: Entry) -> None:
        """Count one entry that a version brought in."""
        self.blocks += 1
        if isinstance(entry, tuple):
            self.frames += 1
            (self.riding if entry[1] & RIDES else self.cover).add(entry)

    def fields(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.spec.name,
            "kind": self.spec.kind,
            "live_bytes": self.cover.total() + self.riding.total(),
            "frames": self.frames,
            "blocks": self.blocks,
        }


def _repo(history: History, name: str) -> dict[str, Any]:
    view = history.view()
    accounts = {spec.id: _Account(spec) for spec in view.arrays.values()}
    versions = []
    for node in view.dag.ordered():
        shown = [each for each in history.visible(view, node.id).values() if each.versioned]
        lanes = [history.lane(spec, node.id) for spec in shown]
        # Where requests are slow, the lanes are read side by side.
        with moment(lanes if history.home.engine.remote else []):
            changed = {
                spec.name: _count(_changes(history, spec, node), accounts[spec.id])
                for spec in shown
            }
        versions.append({"uuid": node.uuid, "changed": changed})
    for spec in view.arrays.values():
        if not spec.versioned:
            _count(_changes(history, spec, view.dag.root), accounts[spec.id])
    segments, riding = _frames(history, view, accounts)
    deleted = view.dead.keys()
    categories, files, dead = _by_category(history.home.engine, history.home.prefix, deleted)
    riding["dead"] += dead
    riding["records"] = max(0, categories["logs"] - sum(riding.values()))
    return {
        "name": name,
        "uuid": view.dag.root.uuid,
        "files": files,
        "bytes": categories,
        "segments": segments,
        "logs": riding,
        "arrays": [
            account.fields()
            for account in sorted(accounts.values(), key=lambda each: each.spec.name)
        ],
        "versions": versions,
    }


def _count(changes: Iterator[Entry | None], account: _Account) -> int:
    changed = 0
    for entry in changes:
        changed += 1
        if entry is not None:
            account.add(entry)
    return changed


def _changes(history: History, spec: ArraySpec, node: Node) -> Iterator[Entry | None]:
    """Yield the entries of an array in which a version differs from its parent."""
    load = history.home.load
    base = Base()
    if spec.kind == KIND:  # what a level of a pyramid holds is in trees of its own
        lane = history.lane(spec, node.id)
        entries = lane.scan(lane.refresh(), CATALOG)
        stored = stored_in({CATALOG: dict(entries)}, spec.name)
        yield from (entry for _, entry in blocks_in(load, stored))
        return
    if spec.versioned and node.parents:
        base = history.roots(node.parents[0]).get(spec.id, base)
    lane = history.lane(spec, node.id)
    state = lane.refresh()
    for space in {*base.roots, *state.roots, *state.overlay.chains} - {SESSIONS}:
        before = base.roots.get(space)
        recent = dict(state.overlay.items(space, state.number))
        for key, _, entry in index.diff(load, before, state.roots.get(space)):
            if key not in recent:
                yield entry
        for key, entry in recent.items():
            if index.get(load, before, key) != entry:
                yield entry


def _frames(
    history: History, view: View, accounts: dict[str, _Account]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return what segments hold, and what rides behind records."""
    home = history.home
    engine = home.engine
    covered = _Cover()
    for account in accounts.values():
        covered.update(account.cover)
    live = covered.total()
    riding = {"live": sum(each.riding.total() for each in accounts.values())}
    lanes, _ = lane_keys(engine, home.prefix)
    ours = {
        Lane(home, *where, Base()): found for where, found in lanes.items() if where[0] in accounts
    }
    every = ((lane, number) for lane, found in ours.items() for number in _numbers(found))
    rode = {lane_id: _Cover() for lane_id in accounts}
    for lane_id, account in accounts.items():
        rode[lane_id].update(account.riding)
    behind = 0
    loaded = load_records(engine, every)
    for lane, found in ours.items():
        cover = rode[lane.id]
        for _, each in zip(_numbers(found), loaded, strict=False):
            with contextlib.suppress(NotFoundError):  # swept since it was listed, with its array
                record = each.whole(lane)
                behind += record.head.get("frames", 0)
                for changes in record.delta.values():
                    for entry in changes.values():
                        if isinstance(entry, tuple):
                            (cover if entry[1] & RIDES else covered).add(entry)
    known = covered.total()
    ridden = sum(each.total() for each in rode.values())
    riding["superseded"] = ridden - riding["live"]
    riding["dead"] = max(0, behind - ridden)
    for entry in _of_sessions(engine, ours):
        covered.add(entry)
    held = covered.total() - known

    def look(key: str) -> tuple[int, int]:
        size = _size(engine, key) or 0
        journal = 0
        for start, stop in covered.gaps(keys.object_id(key), size):
            with contextlib.suppress(NotFoundError):
                for head in frame_heads(engine, key, start, stop):
                    mine = head.lane.hex() in accounts or not any(head.lane)
                    journal += head.size if head.kind == COMMIT and mine else 0
        return size, journal

    sizes = list(_map(engine, look, engine.list(keys.segments(home.prefix))))
    total, journal = (sum(each[i] for each in sizes) for i in (0, 1))
    segments = {
        "live": live,
        "superseded": known - live,
        "journal": journal,
        "sessions": held,
        "dead": max(0, total - known - held - journal),
    }
    return segments, riding


def _numbers(found: LaneKeys) -> Iterator[int]:
    return (number for start, stop in found.runs for number in range(start, stop))


def _of_sessions(engine: Engine, lanes: dict[Lane, LaneKeys]) -> Iterator[Pointer]:
    """Yield what the parts of write sessions that did not end refer to."""

    def load(key: str) -> list[Pointer]:
        try:
            delta = Record.decode(engine.get(key), key).delta
        except (NotFoundError, CorruptError):  # published meanwhile; or it can never be
            return []
        every = (entry for changes in delta.values() for entry in changes.values())
        return [each for each in every if isinstance(each, tuple)]

    parts = (
        keys.part(lane.log.prefix, session, name)
        for lane, found in lanes.items()
        for session, names in found.sessions.items()
        for name in names
        if name not in (BEGUN, OVER)
    )
    for pointers in _map(engine, load, parts):
        yield from pointers


def _map(engine: Engine, look: Callable[[str], T], found: Iterable[str]) -> Iterator[T]:
    """Look at objects, side by side where a request is slow."""
    return pool.map_ordered(look, found, pool.LIMIT if engine.remote else 1)


def _size(engine: Engine, key: str) -> int | None:
    """Return an object's size, or None if a sweep has removed it since it was listed."""
    try:
        return engine.size(key)
    except NotFoundError:
        return None


def _by_category(
    engine: Engine, home: str, deleted: Collection[str] = ()
) -> tuple[dict[str, int], int, int]:
    """Return bytes by category, the number of objects, and bytes in logs of deleted arrays."""
    names = {"segs": "segments", "pages": "pages", "lanes": "logs", "locks": "locks"}
    sizes = dict.fromkeys(("total", *names.values(), "snapshots", "other"), 0)
    files = dead = 0
    found = list(engine.list(home))
    for key, size in zip(found, _map(engine, lambda key: _size(engine, key), found), strict=True):
        top, lane_id = key[len(home) + 1 :].split("/")[:2]
        kind = names.get(top, "other")
        if kind == "logs" and f"/{keys.EPOCH}/" not in key:
            kind = "snapshots" if f"/{keys.EPOCH}.snap/" in key else "other"
        if size is None:
            continue
        sizes[kind] += size
        dead += size if kind == "logs" and lane_id in deleted else 0
        sizes["total"] += size
        files += 1
    return sizes, files, dead
