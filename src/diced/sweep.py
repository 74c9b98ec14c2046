"""Removing what deleted repos and arrays left, in the background or when asked.

A deletion only moves an entry of the metadata to the table of the dead, which is what makes it
invisible; the rest can be stopped anywhere and done again by anybody, also by several at once. Ids
are never used twice, so what is below a dead one is never anybody else's (invariant I5).

What was swept moves on to the table of the gone: a writer that began before the deletion may still
put an object there, which every later `Sweeper.sweep` finds and removes.
"""

from __future__ import annotations

import contextlib
import re
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from diced import forks, keys, pool
from diced.engine.base import Engine
from diced.errors import CorruptError, DicedException, NotFoundError, UnsupportedError
from diced.history import ARRAYS, History, remove_below
from diced.history import DEAD as DEAD_ARRAYS
from diced.history import GONE as GONE_ARRAYS
from diced.home import Home
from diced.log import Record
from diced.meta import DEAD, GONE, REPOS, Edits, Meta, Tables
from diced.proposal import parts_of
from diced.pyramid import packs_in
from diced.state import Base

if TYPE_CHECKING:
    from diced.store import DicedStore

# The gone that are remembered, of a store and of each repo: the newest.
REMEMBERED = 512
SWEPT_REPO, SWEPT_ARRAY = "swept repo", "swept array"

_is_id = re.compile("[0-9a-f]{16}").fullmatch
# What damage in something dead may raise; what it hides stays.
_LOST = (CorruptError, NotFoundError, UnsupportedError)


class Sweeper:
    """Sweeps of one store object, of which one goes on at a time.

    Parameters
    ----------
    store : DicedStore
    """

    def __init__(self, store: DicedStore):
        self._ref = weakref.ref(store)  # no cycle: a store that is dropped is freed at once
        self._wanted: set[str] = set()
        self._removed = 0  # in the background, and not told to anybody yet
        self.after_fork()
        forks.watch(self)

    def after_fork(self) -> None:
        """Make the locks anew: at birth and after a fork."""
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def sweep(self, orphans: bool = False) -> int:
        """Remove all that is left; as `DicedStore.sweep`."""
        with self._turn:
            store = self._store()
            if orphans:
                _condemn_homes(store)
            found = self._repos(store, again=True)
            repo_ids = list(store._catalog.names().values())
            if store.engine.remote:  # all metadata at once, before one after the other is looked at
                pool.for_each(lambda each: store._history(each).view(), repo_ids, pool.LIMIT)
            for repo_id in repo_ids:
                history = store._history(repo_id)
                if orphans:
                    _condemn_lanes(history)
                found += self._arrays(history, again=True)
            removed, self._removed = self._removed, 0
            return removed + _total(found)

    def later(self, repo_id: str = "") -> None:
        """Begin to sweep in the background: deleted repos, or deleted arrays of one repo."""
        with self._guard:
            self._wanted.add(repo_id)
            if self._thread is not None and self._thread.is_alive():
                return  # it looks again before it ends
            thread = threading.Thread(
                target=self._serve, args=(self._store(),), name="diced-sweep", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter is ending
                thread.start()
                self._thread = thread

    def _store(self) -> DicedStore:
        store = self._ref()
        assert store is not None  # it is who asks
        return store

    def _serve(self, store: DicedStore) -> None:
        while True:
            with self._guard:
                if not self._wanted:
                    self._thread = None
                    return
                repo_id = self._wanted.pop()
            # Closed or refused: who opens the store or the repo for writing next goes on with it.
            with contextlib.suppress(DicedException), self._turn:
                found = self._arrays(store._history(repo_id)) if repo_id else self._repos(store)
                self._removed += sum(each for each in found if isinstance(each, int))

    def _repos(self, store: DicedStore, again: bool = False) -> list[int | DicedException]:
        tables = store._meta.read()[1]
        found: list[int | DicedException] = []
        for key in list(tables[DEAD]):
            home = keys.repo_home(key.decode())
            found.append(_bury(store._meta, store.engine, store.user, (DEAD, GONE), key, home))
        if again:
            homes = [keys.repo_home(key.decode()) for key in tables[GONE]]
            found.append(_clear(store.engine, homes))
        return found

    def _arrays(self, history: History, again: bool = False) -> list[int | DicedException]:
        view = history.view()
        engine = history.home.engine
        found: list[int | DicedException] = []
        spaces = DEAD_ARRAYS, GONE_ARRAYS
        for array_id in list(view.dead):
            lane = keys.lanes(history.home.prefix, array_id)
            try:
                found.append(remove_all(engine, _belongings(history.home, array_id)))
            except DicedException as error:
                found.append(error)
                continue
            key = bytes.fromhex(array_id)
            found.append(_bury(history.meta, engine, history.user, spaces, key, lane))
        if again:
            gone = [keys.lanes(history.home.prefix, each) for each in view.gone]
            found.append(_clear(engine, gone))
        return found


def _total(found: Iterable[int | DicedException]) -> int:
    """Return the sum, or raise the first error: what could be removed was."""
    total = 0
    for each in found:
        if isinstance(each, DicedException):
            raise each
        total += each
    return total


def _bury(
    meta: Meta, engine: Engine, user: str, spaces: tuple[int, int], key: bytes, prefix: str
) -> int | DicedException:
    """Remove what is below the prefix of a dead thing, and note that it is gone."""
    dead, gone = spaces

    def edit(tables: Tables, number: int) -> Edits:
        if key not in tables[dead]:
            return []  # another sweep was faster
        edits: Edits = [(dead, key, None), (gone, key, number)]
        old = sorted(tables[gone], key=lambda each: int(tables[gone][each]))
        return edits + [(gone, each, None) for each in old[: max(0, len(old) + 1 - REMEMBERED)]]

    try:
        removed = remove_below(engine, prefix)
        meta.transact(edit, op=SWEPT_REPO if dead == DEAD else SWEPT_ARRAY, user=user)
    except DicedException as error:
        return error
    return removed


def _clear(engine: Engine, prefixes: list[str]) -> int | DicedException:
    """Remove what late writers put where all was swept already."""
    threads = pool.LIMIT if engine.remote else 1
    try:
        return sum(pool.map_ordered(lambda each: remove_below(engine, each), prefixes, threads))
    except DicedException as error:
        return error


# -- what nothing names ------------------------------------------------------------------------


def names_below(engine: Engine, prefix: str) -> Iterator[str]:
    """Yield the names directly below a prefix, without listing what they hold."""
    start = len(prefix) + 1
    key = next(iter(engine.list(prefix)), None)
    while key is not None:
        name = key[start:].split("/")[0]
        yield name
        # A tilde sorts after every character of a key.
        key = next(iter(engine.list(prefix, f"{prefix}/{name}/~")), None)


def _condemn_homes(store: DicedStore) -> None:
    """Declare homes dead that belong to no repo. Who is creating one just now begins anew."""
    found = list(names_below(store.engine, keys.repo_home("").rstrip("/")))
    store._meta.lane.probe()

    def edit(tables: Tables, _number: int) -> Edits:
        known = {*tables[REPOS], *tables[DEAD], *tables[GONE]}
        ids = [each.encode() for each in found if _is_id(each)]
        return [(DEAD, key, "") for key in ids if key not in known]

    store._meta.transact(edit, op="orphans", user=store.user)


def _condemn_lanes(history: History) -> None:
    """Declare lanes dead that are of no array: an array is in the metadata before its lanes are."""
    found = list(names_below(history.home.engine, keys.all_lanes(history.home.prefix)))
    history.meta.lane.probe()

    def edit(tables: Tables, _number: int) -> Edits:
        known = {*tables[ARRAYS], *tables[DEAD_ARRAYS], *tables[GONE_ARRAYS]}
        ids = [bytes.fromhex(each) for each in found if _is_id(each)]
        return [(DEAD_ARRAYS, key, "") for key in ids if key not in known]

    history.meta.transact(edit, op="orphans", user=history.user)


# -- what only a dead array refers to ----------------------------------------------------------


def remove_all(engine: Engine, names: list[str]) -> int:
    """Delete objects about in this order; return how many."""
    pool.for_each(engine.delete, names, pool.LIMIT if engine.remote else 1)
    return len(names)


def _belongings(home: Home, array_id: str) -> list[str]:
    """Return the page packs of a dead array, and its segments where no other array can have a part.

    A pack is made by one fold of one lane, or by one commit to a level of a pyramid. Other segments
    than those that a commit says to be its own are shared by all arrays, and a living writer may
    add to one at any time.
    """
    packs: dict[int, None] = {}
    segments: set[int] = set()
    visited: set[tuple[int, int, int]] = set()
    nodes = set()
    prefix = keys.lanes(home.prefix, array_id)
    for key in home.engine.list(prefix):
        node, kind, *rest = key[len(prefix) + 1 :].split("/")
        nodes.add(node)
        with contextlib.suppress(*_LOST):
            if kind == keys.SNAPSHOTS:
                _visit(
                    home, Base.parse(Record.decode(home.engine.get(key), key).head), packs, visited
                )
            elif kind == keys.EPOCH:
                record = Record.decode(home.engine.get(key), key)
                for head in record.commits():
                    segments.update(head.get("own", ()))
                packs.update(dict.fromkeys(packs_in(record.delta)))
            else:
                segments.update(_own(home.engine, key, kind, rest))
    for node in sorted(nodes - {keys.NO_NODE}):
        with contextlib.suppress(*_LOST):
            key = keys.lock(home.prefix, node)
            lanes = Record.decode(home.engine.get(key), key).head["lanes"]
            if array_id in lanes:
                _visit(home, Base.parse(lanes[array_id]), packs, visited)
    owned = [keys.segment(home.prefix, each) for each in sorted(segments)]
    return owned + [keys.pack(home.prefix, each) for each in packs]


def _own(engine: Engine, key: str, kind: str, rest: list[str]) -> Iterator[int]:
    """Yield the segments that a proposal or a part of a write session has for itself."""
    if kind == "pend":
        for part in parts_of(engine.get(key), key):
            yield from part.record.head.get("own", ())
    elif kind == "join" and not rest[-1].startswith("t-"):
        yield from Record.decode(engine.get(key), key).head.get("own", ())


def _visit(
    home: Home, base: Base, packs: dict[int, None], visited: set[tuple[int, int, int]]
) -> None:
    """Note the packs of trees, such that none comes before one that its pages alone lead to."""

    def visit(pointer: tuple[int, int, int], level: int | None) -> None:
        if pointer in visited:
            return
        visited.add(pointer)
        with contextlib.suppress(*_LOST):
            if level != 0:  # leaves are not read
                page = home.load(pointer)
                for at in range(len(page) if page.level else 0):
                    child = page.entry(at)
                    assert isinstance(child, tuple)
                    visit(child, page.level - 1)
        packs.pop(pointer[0], None)
        packs[pointer[0]] = None

    for root in base.roots.values():
        visit(root, None)
