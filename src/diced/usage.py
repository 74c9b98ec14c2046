"""How a store uses its space: by category, by array, by version, and what nothing refers to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from diced import index, keys
from diced.dag import Node
from diced.engine.base import Engine
from diced.errors import NotFoundError
from diced.history import History, View
from diced.log import Entry, Pointer
from diced.segment import COMMIT
from diced.spec import ArraySpec
from diced.state import Base
from diced.store import DicedStore
from diced.versioned import Lane
from diced.walk import frame_heads, lane_keys

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
        ``superseded``, of which only logs know, ``journal`` copies of commits, ``dead``),
        ``arrays`` (``name``, ``kind``, ``live_bytes``, ``frames``, ``blocks`` stored over all
        versions, constants included) and ``versions`` (``uuid``, ``changed`` entries by array).

    Raises
    ------
    NotFoundError, CorruptError
    """
    names = store._names()
    if repo is not None and repo not in names:
        raise NotFoundError(f"no repo {repo!r} in {store.url}")
    repos = [
        _repo(store._history(repo_id), name)
        for name, repo_id in sorted(names.items())
        if repo is None or name == repo
    ]
    engine = store.engine
    own, own_files = _by_category(engine, keys.STORE_HOME)
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
    """What one array holds over all versions."""

    def __init__(self, spec: ArraySpec):
        self.spec = spec
        self.cover = _Cover()
        self.blocks = 0
        self.frames = 0

    def add(self, entry: Entry) -> None:
        """Count one entry that a version brought in."""
        self.blocks += 1
        if isinstance(entry, tuple):
            self.frames += 1
            self.cover.add(entry)

    def fields(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.spec.name,
            "kind": self.spec.kind,
            "live_bytes": self.cover.total(),
            "frames": self.frames,
            "blocks": self.blocks,
        }


def _repo(history: History, name: str) -> dict[str, Any]:
    view = history.view()
    accounts = {spec.id: _Account(spec) for spec in view.arrays.values()}
    versions = []
    for node in view.dag.ordered():
        changed = {
            spec.name: _count(_changes(history, spec, node), accounts[spec.id])
            for spec in history.visible(view, node.id).values()
            if spec.versioned
        }
        versions.append({"uuid": node.uuid, "changed": changed})
    for spec in view.arrays.values():
        if not spec.versioned:
            _count(_changes(history, spec, view.dag.root), accounts[spec.id])
    categories, files = _by_category(history.home.engine, history.home.prefix)
    return {
        "name": name,
        "uuid": view.dag.root.uuid,
        "files": files,
        "bytes": categories,
        "segments": _segments(history, view, accounts),
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
    if spec.versioned and node.parents:
        base = history.roots(node.parents[0]).get(spec.id, base)
    lane = history.lane(spec, node.id)
    state = lane.refresh()
    for space in {*base.roots, *state.roots, *state.overlay.chains}:
        before = base.roots.get(space)
        recent = dict(state.overlay.items(space, state.number))
        for key, _, entry in index.diff(load, before, state.roots.get(space)):
            if key not in recent:
                yield entry
        for key, entry in recent.items():
            if index.get(load, before, key) != entry:
                yield entry


def _segments(history: History, view: View, accounts: dict[str, _Account]) -> dict[str, int]:
    home = history.home
    covered = _Cover()
    for account in accounts.values():
        covered.update(account.cover)
    live = covered.total()
    lanes, _ = lane_keys(home.engine, home.prefix)
    for (lane_id, node_id), found in lanes.items():
        if lane_id not in accounts:
            continue
        lane = Lane(home, lane_id, node_id, Base())
        for start, stop in found.runs:
            for number in range(start, stop):
                try:
                    record = lane._whole(lane.log.read(number))
                except NotFoundError:
                    continue  # swept since it was listed, with its array
                for changes in record.delta.values():
                    for entry in changes.values():
                        if isinstance(entry, tuple):
                            covered.add(entry)
    known = covered.total()
    journal = total = 0
    for key in home.engine.list(keys.segments(home.prefix)):
        size = _size(home.engine, key)
        total += size or 0
        for start, stop in covered.gaps(keys.object_id(key), size or 0):
            with contextlib.suppress(NotFoundError):
                for head in frame_heads(home.engine, key, start, stop):
                    ours = head.lane.hex() in accounts or not any(head.lane)
                    journal += head.size if head.kind == COMMIT and ours else 0
    return {
        "live": live,
        "superseded": known - live,
        "journal": journal,
        "dead": max(0, total - known - journal),
    }


def _size(engine: Engine, key: str) -> int | None:
    """Return an object's size, or None if a sweep has removed it since it was listed."""
    try:
        return engine.size(key)
    except NotFoundError:
        return None


def _by_category(engine: Engine, home: str) -> tuple[dict[str, int], int]:
    """Return bytes by category, and the number of objects."""
    names = {"segs": "segments", "pages": "pages", "lanes": "logs", "locks": "locks"}
    sizes = dict.fromkeys(("total", *names.values(), "snapshots", "other"), 0)
    files = 0
    for key in engine.list(home):
        kind = names.get(key[len(home) + 1 :].split("/")[0], "other")
        if kind == "logs" and f"{keys.EPOCH}.snap/" in key:
            kind = "snapshots"
        size = _size(engine, key)
        if size is None:
            continue
        sizes[kind] += size
        sizes["total"] += size
        files += 1
    return sizes, files
