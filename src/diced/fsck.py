"""Checking a store: every log, tree and segment against each other, changing nothing.

Damage is what a check reports, so it never raises for it. The words in `Problem.kind` and what to
do about each are in ``docs/fsck.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from diced import keys, log, pool
from diced.dag import LOCKED, LOCKING, Node
from diced.errors import CorruptError, NotFoundError
from diced.history import SPACES, View
from diced.home import Home
from diced.lanecheck import LaneCheck, planned
from diced.log import Record
from diced.meta import DEAD, GONE, INFO, REPOS
from diced.report import REBUILD, RESTORE, Problem, Progress, Report, obstacle
from diced.scope import Scope
from diced.segment import COMMIT
from diced.session import BEGUN, OVER
from diced.spec import ArraySpec
from diced.state import Base
from diced.store import DicedStore
from diced.versioned import Lane
from diced.walk import (
    UNREADABLE,
    Head,
    LaneKeys,
    Loaded,
    frame_heads,
    lane_keys,
    load_records,
    plural,
    repo_ids,
)

__all__ = ["Problem", "Report", "check"]

STORE_SPACES = (REPOS, INFO, DEAD, GONE)


def check(
    store: DicedStore, repo: str | None = None, full: bool = False, progress: Progress | None = None
) -> Report:
    """Check a store, or its metadata and one repo. Read-only.

    Parameters
    ----------
    repo : str, optional
        Name of the only repo to check.
    full : bool
        Also read and decode every frame that anything refers to, once.
    progress : callable, optional
        Gets a line of text before each lane.

    Raises
    ------
    NotFoundError
        No repo has that name. Damage is reported, never raised.
    """
    report = Report()
    scope = report, full, progress
    _check_store_file(store, report)
    listed = set(repo_ids(store.engine))
    home = HomeCheck(store, keys.STORE_HOME, "store", scope)
    tables = home.meta(STORE_SPACES)
    home.leftovers(set())
    names = {key.decode(): each["name"] for key, each in tables[REPOS].items()}
    if repo is not None and repo not in names.values():
        raise NotFoundError(f"no repo {repo!r} in {store.url}")
    for repo_id in sorted(names, key=lambda each: str(names[each])):
        if repo is None or names[repo_id] == repo:
            where = f"repo {names[repo_id]!r}"
            HomeCheck(store, keys.repo_home(repo_id), where, scope).repo()
    unnamed = listed - names.keys() - {key.decode() for key in tables[DEAD]}
    for repo_id in sorted(unnamed if repo is None else ()):
        where = keys.repo_home(repo_id)
        if home.known:
            report.warning(
                "orphan-home",
                "store",
                f"{where} is what a late writer put where a deleted repo was; sweep removes it"
                if repo_id.encode() in tables[GONE]
                else f"{where} belongs to no repo; 'diced sweep --orphans' removes it,"
                " and whoever creates one just now begins anew",
            )
        else:  # its record may be among the lost ones, so its content matters
            HomeCheck(store, where, where, scope).repo()
    temps = store.engine.sweep_temps(0, count_only=True)
    if temps:
        report.warning(
            "leftover",
            "store",
            f"{plural(temps, 'files')} of interrupted writers; harmless, and removed in time",
        )
    return report


def _check_store_file(store: DicedStore, report: Report) -> None:
    try:
        fields = json.loads(store.engine.get(keys.STORE_FILE))
        if fields["store"] != store.uuid or not isinstance(fields["required"], list):
            raise CorruptError(f"it names store {fields['store']!r}, not {store.uuid!r}")
    except UNREADABLE as error:
        report.damage("store-file", "store", keys.STORE_FILE, error, RESTORE.format("it"))


class HomeCheck(Scope):
    """The check of one home: its lanes in order, then what nobody refers to."""

    def __init__(self, store: DicedStore, prefix: str, name: str, scope: Any):
        report, full, progress = scope
        home = Home(store.engine, prefix, store.cache_bytes)
        super().__init__(home, name, report, full, store.threads, progress)
        self.engine = store.engine
        # Listed before anything is read: what a writer adds meanwhile is not taken for an orphan.
        self.packs = {keys.object_id(key) for key in self.engine.list(keys.pages(prefix))}
        self.segments: dict[int, int] = {}
        found = list(self.engine.list(keys.segments(prefix)))
        threads = pool.LIMIT if self.remote else 1
        for key, size in zip(found, pool.map_ordered(self._size, found, threads), strict=True):
            if size is not None:  # else a sweep goes on beside the check
                self.segments[keys.object_id(key)] = size
                self.note(key, size, False)
        self.known = False  # whether the metadata are whole, so that an orphan is one
        self.lanes, self.strays = lane_keys(self.engine, prefix)
        # Listed anew when the metadata were read: nodes must not be older than their status.
        self._listed = self.lanes
        self._loaded: Iterator[Loaded] = iter(())

    def _size(self, key: str) -> int | None:
        try:
            return self.engine.size(key)
        except NotFoundError:
            return None

    # -- lanes -----------------------------------------------------------------------------

    def meta(self, spaces: tuple[int, ...]) -> Any:
        """Check the metadata lane and return its tables, as far as they can be read."""
        lane = Lane(self.home, keys.META_LANE, keys.NO_NODE, Base(), journal=False)
        where = f"{self.name}, metadata"
        listed, _ = lane_keys(self.engine, self.home.prefix, lane.log.prefix)
        found = listed.get((lane.id, lane.node_id), LaneKeys())
        fold = LaneCheck(self, lane, where, None).run(found, Base())
        self.known = fold.base is not None
        try:
            return fold.tables(spaces)
        except UNREADABLE as error:
            self.report.damage("bad-record", where, "the state", error, REBUILD)
            return {space: {} for space in spaces}

    def _lane_keys(self, lane: Lane) -> LaneKeys:
        return self._listed.get((lane.id, lane.node_id), LaneKeys())

    def _planned(self, view: View, nodes: list[Node]) -> Iterator[tuple[Lane, int]]:
        """Yield all records of arrays in the order that they are checked in."""
        for node in nodes:
            for spec in _shown(view, node):
                lane = Lane(self.home, spec.id, node.id, Base())
                yield from planned(lane, self._lane_keys(lane))
        for spec in view.arrays.values():
            if not spec.versioned:
                lane = Lane(self.home, spec.id, keys.NO_NODE, Base())
                yield from planned(lane, self._lane_keys(lane))

    def repo(self) -> None:
        """Check a repo's home."""
        tables = self.meta(SPACES)
        try:
            view = View(0, tables)
            nodes = view.dag.ordered()
        except UNREADABLE as error:
            advice = "they make no history; " + RESTORE.format("the log")
            self.report.damage("bad-record", self.name, "what the metadata say", error, advice)
            return
        self._listed, _ = lane_keys(self.engine, self.home.prefix)
        self._loaded = load_records(self.engine, self._planned(view, nodes))
        finals: dict[str, dict[str, Base]] = {}
        for node in nodes:
            finals[node.id] = self._node(view, node, finals)
        for spec in view.arrays.values():
            if not spec.versioned:
                lane = Lane(self.home, spec.id, keys.NO_NODE, Base())
                checking = LaneCheck(self, lane, self._where(spec, None), spec)
                checking.run(self._lane_keys(lane), Base(), loaded=self._loaded)
        self._sessions(view)
        self.leftovers(view.arrays.keys() | view.dead.keys())

    def _where(self, spec: ArraySpec, node: Node | None) -> str:
        version = "unversioned" if node is None else f"version {node.uuid}"
        return f"{self.name}, array {spec.name!r}, {version}"

    def _node(self, view: View, node: Node, finals: dict[str, dict[str, Base]]) -> dict[str, Base]:
        """Check every lane at a node; return the final states that its children begin with."""
        shown = _shown(view, node)
        locks = self._lock(node, shown) if node.status == LOCKED else {}
        if node.status == LOCKING:
            self.report.warning("begun-lock", f"{self.name}, version {node.uuid}",
                                "locking began and did not end; locking or branching there"
                                " finishes it")  # fmt: skip
        for spec in shown:
            base: Base | None = Base()
            if node.parents and spec.node != node.id:
                base = finals[node.parents[0]].get(spec.id)
            lane = Lane(self.home, spec.id, node.id, base or Base())
            checking = LaneCheck(self, lane, self._where(spec, node), spec)
            final = locks.get(spec.id)
            locked = node.status == LOCKED
            fold = checking.run(self._lane_keys(lane), base, locked, self._loaded)
            if final is not None and not checking.final(fold, final):
                locks.pop(spec.id)
        return locks

    def _lock(self, node: Node, shown: list[ArraySpec]) -> dict[str, Base]:
        key = keys.lock(self.home.prefix, node.id)
        where = f"{self.name}, version {node.uuid}"
        self.report.count("locks")
        try:
            record = Record.decode(self.engine.get(key), key)
            if record.type != log.LOCKED_NODE or record.head["node"] != node.id:
                raise CorruptError("it is of another node")
            found = {lane: Base.parse(each) for lane, each in record.head["lanes"].items()}
        except NotFoundError:
            self.report.error(
                "missing-lock",
                where,
                f"the lock object {key} is missing, so no array can be read there; {REBUILD}",
            )
            return {}
        except UNREADABLE as error:
            advice = f"no array can be read there; {REBUILD}"
            self.report.damage("bad-lock", where, f"the lock object {key}", error, advice)
            return {}
        for spec in shown:
            if spec.id not in found:
                self.report.error(
                    "bad-lock",
                    where,
                    f"the lock object {key} does not list array {spec.name!r}; {REBUILD}",
                )
        return found

    # -- what was not finished -------------------------------------------------------------

    def _sessions(self, view: View) -> None:
        """Check write sessions that did not end: their parts are all that refers to their data."""
        nodes = {node.id: node for node in view.dag.ordered()}
        for (lane_id, node_id), found in sorted(self.lanes.items()):
            spec = view.arrays.get(lane_id)
            node = nodes.get(node_id)
            if spec is None or not found.sessions or (spec.versioned and node is None):
                continue
            lane = Lane(self.home, lane_id, node_id, Base())
            below = keys.sessions(lane.log.prefix)
            listed, _ = lane_keys(self.engine, self.home.prefix, below)
            if (lane_id, node_id) in listed:
                for session, names in listed[lane_id, node_id].sessions.items():
                    if names != [OVER]:
                        where = f"{self._where(spec, node)}, session {session}"
                        checking = LaneCheck(self, lane, where, spec)
                        self._session(checking, session, names, node)

    def _session(
        self, checking: LaneCheck, session: str, names: list[str], node: Node | None
    ) -> None:
        parts = [each for each in names if each not in (BEGUN, OVER)]
        prefix = checking.lane.log.prefix

        def load(name: str) -> Record | Exception:
            key = keys.part(prefix, session, name)
            try:
                return Record.decode(self.engine.get(key), key)
            except UNREADABLE as error:
                return error

        by, gone = "", 0
        wanted = [each for each in names if each != OVER]
        threads = pool.LIMIT if self.remote else 1
        for name, found in zip(wanted, pool.map_ordered(load, wanted, threads), strict=True):
            try:
                if isinstance(found, NotFoundError):
                    gone += 1  # it ends just now
                    continue
                if isinstance(found, Exception):
                    raise found
                if found.type != log.PROPOSAL or found.head["session"] != session:
                    raise CorruptError("it is of something else")
                if name == BEGUN:
                    by = f", begun by {found.head['user']} at {found.head['time']},"
                else:
                    self.report.count("parts")
                    checking.part(found, f"part {name}")
            except UNREADABLE as error:
                key = keys.part(prefix, session, name)
                advice = "discard the session, and write again what it held"
                self.report.damage("bad-part", checking.where, key, error, advice)
        checking.flush()
        if gone == len(wanted):
            return
        if OVER in names and BEGUN not in names:
            self.report.warning(
                "leftover",
                checking.where,
                f"{plural(len(parts), 'assignments')} left over from a write session that is over;"
                f" harmless: array.session(resume={session!r}).discard() at this version removes"
                " them",
            )
            return
        able = "discards it" if node is not None and node.locked else "commits or discards it"
        self.report.warning(
            "session",
            checking.where,
            f"{plural(len(parts), 'assignments')}{by} wait for a commit that"
            f" {'began' if OVER in names else 'did not begin'};"
            f" array.session(resume={session!r}) at this version {able}",
        )

    def _waiting(self) -> None:
        """Warn of proposals whose writers are gone."""
        found = [key for lane in self.lanes.values() for key in lane.waiting]
        threads = pool.LIMIT if self.remote else 1
        there = pool.map_ordered(self.engine.exists, found, threads)
        left = [key for key, each in zip(found, there, strict=True) if each]
        if left:
            self.report.warning(
                "leftover",
                self.name,
                f"{plural(len(left), 'proposals')} of interrupted writers, such as {left[0]};"
                " harmless: nothing refers to them",
            )

    # -- what nobody refers to -------------------------------------------------------------

    def leftovers(self, known: set[str]) -> None:
        """Warn of objects and bytes that nothing refers to."""
        report, prefix = self.report, self.home.prefix
        self.drain()
        self._waiting()
        report.count("pages", self.pages.count)
        report.count("bytes", self.pages.nbytes)
        report.count("segments", len(self.segments))
        if not self.known:
            return
        for lane_id in sorted({each for each, _ in self.lanes} - known - {keys.META_LANE}):
            report.warning("orphan-lane", self.name, f"lane {lane_id} is of no array;"
                           " 'diced sweep --orphans' removes it")  # fmt: skip
        spare = list(self.engine.list(keys.spares(prefix)))
        for kind, found in (("stray", self.strays), ("leftover", spare)):
            for key in found:
                report.warning(
                    kind,
                    self.name,
                    f"{key} is not part of the store"
                    + (f"; {REBUILD} again to its end" if kind == "leftover" else ""),
                )
        packs = self.packs - self.pages.packs
        if packs:
            report.warning(
                "orphan-pack",
                self.name,
                f"no sound tree refers to {plural(len(packs), 'packs of pages')},"
                f" such as {keys.pack(prefix, min(packs))}",
            )
        tails, orphans = [0, 0], []
        segments = sorted(self.segments.items())
        threads = pool.LIMIT if self.remote else 1
        every = pool.map_ordered(self._tail, segments, threads)
        for (segment, size), heads in zip(segments, every, strict=True):
            key, end = keys.segment(prefix, segment), self.ends.get(segment, 0)
            if isinstance(heads, Exception):
                other = obstacle(heads)
                if other is not None:
                    message = f"what is in {key} cannot be checked: {heads}"
                    report.unchecked(other, self.name, message)
                elif end or not isinstance(heads, NotFoundError):
                    report.error("missing-segment", self.name, f"{key} cannot be read: {heads}")
                continue
            kept = [head for head in heads if head.lane.hex() in known or not any(head.lane)]
            report.count("bytes", size)
            rest = size - end - sum(head.size for head in kept)
            if not end and not kept:
                orphans.append(key)
            elif rest > 0:
                tails = [tails[0] + 1, tails[1] + rest]
        if orphans:
            report.warning(
                "orphan-segment",
                self.name,
                f"nothing refers to {plural(len(orphans), 'segments')}, such as {orphans[0]}",
            )
        if tails[0]:
            report.warning(
                "unreferenced",
                self.name,
                f"{plural(tails[1], 'bytes')} at the end of {plural(tails[0], 'segments')}"
                " belong to no commit",
            )

    def _tail(self, segment: tuple[int, int]) -> list[Head] | Exception:
        """Return the COMMIT frames behind all that entries refer to, or why they do not read."""
        key = keys.segment(self.home.prefix, segment[0])
        try:
            end = self.ends.get(segment[0], 0)
            heads = frame_heads(self.engine, key, end, segment[1])
            return [head for head in heads if head.kind == COMMIT]
        except UNREADABLE as error:
            return error


def _shown(view: View, node: Node) -> list[ArraySpec]:
    ancestry = view.dag.ancestry(node)
    return [each for each in view.arrays.values() if each.versioned and each.node in ancestry]
