"""The metadata of one repo: version nodes, arrays, tags, and the lanes that a node shows.

Owns the lock protocol: a lock is first an intent in the repo's log, then a LOCK record at the end
of every lane, then the lock object with all roots, then the confirmation. Whoever finds a lock
half-way carries it to its end; nothing can turn it back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diced import actor, keys, log, pool
from diced.dag import LOCKED, LOCKING, MASTER, OPEN, Dag, Node
from diced.engine.base import Engine
from diced.errors import (
    AlreadyExistsError,
    CorruptError,
    LockedError,
    NotFoundError,
    near_matches,
)
from diced.home import Home
from diced.log import Record
from diced.meta import Edits, Meta, Tables
from diced.names import check_label, check_name
from diced.spec import ArraySpec
from diced.state import Base
from diced.versioned import Lane

NODES, ARRAYS, TAGS, COUNTERS, DEAD, GONE, LOG = 0, 1, 2, 3, 4, 5, 6
SPACES = (NODES, ARRAYS, TAGS, COUNTERS, DEAD, GONE, LOG)
MAX_KEPT = 2048  # lanes, and lock objects, that a process remembers per repo


class View:
    """One reading of a repo's metadata: everything in it is of the same record number."""

    __slots__ = ("arrays", "by_name", "counters", "dag", "dead", "gone", "log", "number")

    def __init__(self, number: int, tables: Tables):
        self.number = number
        self.dag = Dag(
            (Node(key.hex(), fields) for key, fields in tables[NODES].items()),
            {key.decode(): node for key, node in tables[TAGS].items()},
        )
        self.arrays = {key.hex(): ArraySpec(key.hex(), f) for key, f in tables[ARRAYS].items()}
        self.by_name = {spec.name: spec for spec in self.arrays.values()}
        self.counters = tables[COUNTERS]
        self.dead = {key.hex(): name for key, name in tables[DEAD].items()}
        self.gone = {key.hex() for key in tables[GONE]}  # swept, which a late writer may not know
        self.log: list[str] = [line for _, each in sorted(tables[LOG].items()) for line in each]


class History:
    """Metadata of one repo, shared by all its handles in a process.

    Parameters
    ----------
    home : Home
    user : str
        Recorded in every commit.
    """

    def __init__(self, home: Home, user: str):
        self.home = home
        self._user = user
        self._lanes: dict[tuple[str, str], Lane] = {}
        self.renew()

    @property
    def user(self) -> str:
        """Whom commits of this thread are recorded of."""
        return actor.current(self._user)

    def renew(self) -> None:
        """Forget what was read: a rebuild replaces what otherwise never changes."""
        lane = Lane(self.home, keys.META_LANE, keys.NO_NODE, Base(), journal=False)
        self.meta = Meta(lane, SPACES)
        self._view: View | None = None
        self._locks: dict[str, dict[str, Base]] = {}
        for old in list(self._lanes.values()):
            old.stale = True
        self._lanes = {}
        self._born: dict[str, float] = {}  # nodes that this process made, and since when

    def view(self) -> View:
        """Return the newest metadata; one freshness probe."""
        number, tables = self.meta.read()
        view = self._view
        if view is None or view.number != number:
            view = View(number, tables)
            if self._view is None or self._view.number < number:
                self._view = view
        return view

    @property
    def seen(self) -> bool:
        """True if `known` costs nothing."""
        return self._view is not None

    def known(self) -> View:
        """Return metadata that may be old: enough for what never changes."""
        return self._view or self.view()

    def _transact(self, edit: Callable[[Tables, int], Edits], op: str) -> None:
        self.meta.transact(edit, op=op, user=self.user)

    # -- birth, nodes ----------------------------------------------------------------------

    def found(self, uuid: str, arrays: list[dict[str, Any]]) -> None:
        """Write the first record: the root node, with its first arrays."""
        root = keys.new_id()

        def edit(tables: Tables, number: int) -> Edits:
            if tables[NODES]:
                raise AlreadyExistsError(f"{self.home.prefix} is founded already")
            edits: Edits = [(NODES, bytes.fromhex(root), self._birth(uuid, number, [], "", ""))]
            for fields in arrays:
                fields = {**fields, "node": root, "created": log.now(), "user": self.user}
                edits.append((ARRAYS, bytes.fromhex(keys.new_id()), fields))
            return edits

        self._transact(edit, "create repo")

    def _birth(
        self, uuid: str, number: int, parents: list[str], branch: str, note: str
    ) -> dict[str, Any]:
        return {
            "uuid": uuid, "number": number, "parents": parents, "branch": branch,
            "status": OPEN, "note": note, "user": self.user, "created": log.now(), "log": [],
        }  # fmt: skip

    def branch(
        self,
        node_id: str,
        note: str,
        branch: str | None,
        uuid: str | None,
        strict: bool = False,
    ) -> Node:
        """Create a child of a locked node.

        Without a name the child goes on with its parent's branch, or, where that has a child
        already, begins a branch named after its own UUID; `strict` refuses to begin one.
        """
        child = keys.new_id()
        public = uuid or keys.new_uuid()
        if branch is not None:
            check_label("branch", branch)
        if uuid is not None:
            check_label("version", uuid)
        self._complete(node_id)

        def edit(tables: Tables, number: int) -> Edits:
            dag = View(number, tables).dag
            parent = dag.nodes[node_id]
            if not parent.locked:
                raise LockedError(f"version {parent.uuid} is open; lock it before branching")
            if dag.has_name(public):
                raise AlreadyExistsError(f"a version {public!r} exists already")
            name = branch
            if name is None:
                same = any(each.branch == parent.branch for each in dag.children(parent))
                if same and strict:
                    raise AlreadyExistsError(
                        "branch already exists with given name: version"
                        f" {parent.uuid} has a child on branch {parent.branch or MASTER!r}"
                    )
                name = public[:12] if same else parent.branch
            elif dag.has_name(name):
                raise AlreadyExistsError(f"a branch, tag or version {name!r} exists already")
            fields = self._birth(public, number, [node_id], name, note)
            return [(NODES, bytes.fromhex(child), fields)]

        self._born[child] = time.monotonic()
        self._transact(edit, "branch")
        return self.view().dag.nodes[child]

    def edit_node(self, node_id: str, change: Callable[[dict[str, Any]], None], op: str) -> None:
        """Change the stored fields of a node atomically."""

        def edit(tables: Tables, _number: int) -> Edits:
            fields = dict(tables[NODES][bytes.fromhex(node_id)])
            change(fields)
            fields["updated"] = log.now()
            return [(NODES, bytes.fromhex(node_id), fields)]

        self._transact(edit, op)

    def add_log(self, lines: Sequence[str]) -> None:
        """Append lines to the log of the repo as a whole."""
        stamped = [f"{log.now()}  {line}" for line in lines]
        self._transact(lambda _tables, number: [(LOG, number.to_bytes(8, "big"), stamped)], "log")

    def tag(self, name: str, node_id: str) -> None:
        """Name a locked node."""
        check_label("tag", name)
        self._complete(node_id)

        def edit(tables: Tables, number: int) -> Edits:
            dag = View(number, tables).dag
            if not dag.nodes[node_id].locked:
                raise LockedError(
                    f"version {dag.nodes[node_id].uuid} is open; lock it before tagging"
                )
            if dag.has_name(name):
                raise AlreadyExistsError(f"a version, tag or branch {name!r} exists already")
            return [(TAGS, name.encode(), node_id)]

        self._transact(edit, "tag")

    # -- locking ---------------------------------------------------------------------------

    def lock(self, node_id: str, note: str, lines: Sequence[str] = ()) -> None:
        """Lock a node, with a last note and lines for its log: nothing at it changes any more."""

        def edit(tables: Tables, _number: int) -> Edits:
            fields = dict(tables[NODES][bytes.fromhex(node_id)])
            if fields["status"] == LOCKED:
                raise LockedError(f"version {fields['uuid']} is locked already")
            if fields["status"] == LOCKING:
                return []
            stamped = [f"{log.now()}  {line}" for line in lines]
            fields.update(status=LOCKING, note=note, log=[*fields["log"], *stamped])
            return [(NODES, bytes.fromhex(node_id), fields)]

        self._transact(edit, "lock")
        self._complete(node_id)

    def _complete(self, node_id: str) -> None:
        """Carry a begun lock to its end; does nothing at an open or locked node."""
        view = self.view()
        if view.dag.nodes[node_id].status != LOCKING:
            return

        def end(spec: ArraySpec) -> tuple[str, dict[str, Any]] | None:
            try:
                lane = self.lane(spec, node_id)
                return spec.id, lane.fold(lane.lock(self.user)).fields()
            except (CorruptError, NotFoundError):
                self.meta.lane.probe()
                if spec.id in self.view().arrays:
                    raise
                return None  # deleted and swept meanwhile

        ancestry = view.dag.ancestry(view.dag.nodes[node_id])
        shown = [each for each in view.arrays.values() if each.versioned and each.node in ancestry]
        threads = pool.LIMIT if self.home.engine.remote else 1
        lanes = dict(each for each in pool.map_ordered(end, shown, threads) if each is not None)
        key = keys.lock(self.home.prefix, node_id)
        txid = log.new_txid()
        head = {"txid": txid, "node": node_id, "lanes": lanes, "time": log.now(), "user": self.user}
        # False: another process finished first, with the same state in pages of its own.
        self.home.engine.put_if_absent(
            key, Record(log.LOCKED_NODE, head).encode(), bytes.fromhex(txid)
        )
        self.edit_node(node_id, lambda fields: fields.update(status=LOCKED), "locked")

    def roots(self, node_id: str) -> dict[str, Base]:
        """Return the final state of every lane at a locked node. Immutable, so read once."""
        found = self._locks.get(node_id)
        if found is None:
            key = keys.lock(self.home.prefix, node_id)
            try:
                record = Record.decode(self.home.engine.get(key), key)
            except NotFoundError:
                raise CorruptError(
                    f"lock object {key} is missing; 'diced fsck --rebuild' makes it anew"
                ) from None
            found = {lane: Base.parse(each) for lane, each in record.head["lanes"].items()}
            _trim(self._locks)
            self._locks[node_id] = found
        return found

    def _root(self, spec: ArraySpec, node_id: str) -> Base:
        base = self.roots(node_id).get(spec.id)
        if base is None:
            raise CorruptError(
                f"the lock object of node {node_id} lacks array {spec.name!r};"
                " 'diced fsck --rebuild' makes it anew"
            )
        return base

    # -- arrays ----------------------------------------------------------------------------

    def visible(self, view: View, node_id: str) -> dict[str, ArraySpec]:
        """Return the arrays that a node shows, by name."""
        ancestry = view.dag.ancestry(view.dag.nodes[node_id])
        return {
            name: spec
            for name, spec in sorted(view.by_name.items())
            if not spec.versioned or spec.node in ancestry
        }

    def create_array(self, node_id: str, fields: dict[str, Any]) -> ArraySpec:
        """Add an array at an open node."""
        name = check_name("array", fields["name"])
        array_id = keys.new_id()

        def edit(tables: Tables, number: int) -> Edits:
            view = View(number, tables)
            node = view.dag.nodes[node_id]
            if fields["versioned"] and node.status != OPEN:
                why = locked_message(view, node)
                raise LockedError(f"array {name!r} cannot be created: {why}")
            if name in view.by_name:
                raise AlreadyExistsError(f"an array {name!r} exists already in this repo")
            if fields.get("of", array_id) not in {*view.arrays, array_id}:
                raise NotFoundError(f"the array that {name!r} is made of was deleted")
            stored = {**fields, "node": node_id, "created": log.now(), "user": self.user}
            return [(ARRAYS, bytes.fromhex(array_id), stored)]

        began = time.monotonic()
        self._transact(edit, f"create array {name}")
        spec = self.view().arrays[array_id]
        self.lane(spec, node_id).begin(began)
        return spec

    def edit_array(self, array_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the stored description of an array atomically."""

        def edit(tables: Tables, _number: int) -> Edits:
            fields = tables[ARRAYS].get(bytes.fromhex(array_id))
            if fields is None:
                raise NotFoundError("the array was deleted")
            return [(ARRAYS, bytes.fromhex(array_id), change(dict(fields)))]

        self._transact(edit, "edit array")

    def delete_array(self, name: str) -> None:
        """Make an array, and what is derived of it, invisible; its bytes are swept later."""

        def edit(tables: Tables, number: int) -> Edits:
            view = View(number, tables)
            if name not in view.by_name:
                raise NotFoundError(f"no array {name!r}" + near_matches(name, view.by_name))
            gone = view.by_name[name]
            derived = [each for each in view.arrays.values() if each.fields.get("of") == gone.id]
            edits: Edits = []
            for each in [gone, *derived]:
                key = bytes.fromhex(each.id)
                edits += [(ARRAYS, key, None), (DEAD, key, each.name)]
            return edits

        self._transact(edit, f"delete array {name}")

    def reserve(self, counter: str, count: int, first: int = 1) -> int:
        """Reserve `count` consecutive ids, unique over all versions, processes and hosts."""
        start = 0

        def edit(tables: Tables, _number: int) -> Edits:
            nonlocal start
            start = tables[COUNTERS].get(counter.encode(), first)
            return [(COUNTERS, counter.encode(), start + count)]

        self._transact(edit, f"reserve {counter}")
        return start

    # -- lanes -----------------------------------------------------------------------------

    def lane(self, spec: ArraySpec, node_id: str) -> Lane:
        """Return the lane of an array at a node; one object per process.

        Raises
        ------
        NotFoundError
            The array was created elsewhere in the history.
        """
        where = node_id if spec.versioned else keys.NO_NODE
        found = self._lanes.get((spec.id, where))
        if found is not None:
            return found
        if not spec.versioned:
            lane = Lane(self.home, spec.id, where, Base())
        else:
            dag = self.known().dag
            node = dag.nodes[node_id]
            if spec.node != node_id and spec.node not in dag.ancestry(node):
                raise NotFoundError(
                    f"array {spec.name!r} is not at version {node.uuid}: it was created at another"
                    " branch"
                )
            if node.locked:
                lane = Lane(self.home, spec.id, where, self._root(spec, node_id), final=True)
            elif spec.node == node_id:
                lane = Lane(self.home, spec.id, where, Base())
            else:
                lane = Lane(self.home, spec.id, where, self._root(spec, node.parents[0]))
                if node_id in self._born:
                    lane.begin(self._born[node_id])
        for old in _trim(self._lanes):
            old.stale = True  # its handles get another, so that `renew` reaches all in use
        return self._lanes.setdefault((spec.id, where), lane)

    def known_lane(self, spec: ArraySpec, where: str) -> Lane | None:
        """Return the lane of an array that this process has used of late, or None."""
        return self._lanes.get((spec.id, where))

    def operations(self, node_id: str, name: str | None) -> Iterator[dict[str, Any]]:
        """Yield the commits that led to a node, oldest version first, then by array and number."""
        view = self.view()
        specs = [
            spec
            for each, spec in self.visible(view, node_id).items()
            if name is None or each == name
        ]
        for node in view.dag.lineage(view.dag.nodes[node_id]):
            for spec in specs:
                if not spec.versioned and node.id != node_id:
                    continue
                where = node.id if spec.versioned else keys.NO_NODE
                lane = Lane(self.home, spec.id, where, Base())
                for number, record in lane.records():
                    if record.type != log.DATA:
                        continue
                    for head in record.commits():
                        yield {
                            "version": node.uuid, "array": spec.name, "number": number,
                            "user": head["user"], "time": head["time"], "operation": head["op"],
                            "box": head.get("box"),
                        }  # fmt: skip


def remove_below(engine: Engine, prefix: str) -> int:
    """Delete all objects below a prefix, which nothing refers to; return how many there were."""
    # Last records first: what is left of a log stays a log, where deletions are in order.
    found = list(engine.list(prefix))[::-1]
    pool.for_each(engine.delete, found, pool.LIMIT if engine.remote else 1)
    engine.prune(prefix)
    return len(found)


def _trim(kept: dict[Any, Any]) -> list[Any]:
    """Forget and return the oldest; whoever uses one holds it, and it can be made again."""
    gone = []
    while len(kept) >= MAX_KEPT:
        with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # other threads trim too
            gone.append(kept.pop(next(iter(kept))))
    return gone


def locked_message(view: View, node: Node) -> str:
    """Say that a node is locked, and where one can write instead."""
    child = view.dag.open_child(node)
    where = (
        f"its open descendant is {child.uuid}"
        if child is not None
        else "create a branch and change to it"
    )
    return f"version {node.uuid} is locked; {where}"
