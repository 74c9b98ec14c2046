"""Stored levels of pyramids: blocks by version, and which state of the source each includes.

A level is an unversioned array of kind `KIND`. The space `CATALOG` of its lane holds, per version
node, a `Stored`: the root of a tree of the level's blocks, and the root of a tree shaped like the
source's own, with the source's entries of those blocks that the level's blocks were made of. A
block is good for a state of the source in which everything below it has just these entries,
whatever version that is; so nothing here can be wrong, only incomplete. Trees share pages among
versions, and their roots are written by ordinary commits of the lane.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from diced import index, jsontext, keys, log
from diced.blocks import SPACE, Blocks
from diced.errors import CorruptError
from diced.home import Home
from diced.index import Load, PackBuilder, Root
from diced.log import Delta, Entry
from diced.segment import Frames
from diced.spec import ArraySpec
from diced.state import Change, State
from diced.versioned import Lane

KIND = "pyramid"
CATALOG = 253  # space: node id -> `Stored`
CHUNK = 4096  # keys compared at a time


class Stored(NamedTuple):
    """What a level holds of one version.

    Attributes
    ----------
    tree : Root
        Of the level's blocks.
    included : Root
        Of the source's entries that they were made of.
    upto : tuple of (str, int) or None
        Node and record number of the source, -1 for all of a locked one's, of which everything is
        included; None while something may not be.
    """

    tree: Root
    included: Root
    upto: tuple[str, int] | None

    @classmethod
    def decode(cls, entry: Entry, where: str) -> Stored:
        """Read the form in the catalog."""
        try:
            if not isinstance(entry, bytes):
                raise TypeError("it is not inline")
            fields = jsontext.loads(entry)
            roots = [_root(fields[name]) for name in ("tree", "included")]
            upto = fields.get("upto")
            return cls(roots[0], roots[1], None if upto is None else (str(upto[0]), int(upto[1])))
        except (ValueError, TypeError, LookupError) as error:
            raise CorruptError(f"{where}: an entry of the catalog is damaged: {error}") from None

    def encode(self, pack: PackBuilder) -> bytes:
        """Return the form in the catalog; `pack` holds the pages that are new."""
        fields: dict[str, Any] = {"tree": self.tree, "included": self.included}
        if len(pack):
            fields["pack"] = pack.object_id
        if self.upto is not None:
            fields["upto"] = self.upto
        return jsontext.dumps({**fields, "time": log.now()})


def _root(value: Any) -> Root:
    if value is None:
        return None
    segment, offset, length = (int(each) for each in value)
    return segment, offset, length


NOTHING = Stored(None, None, None)


def stored_in(delta: Delta, where: str) -> Iterator[Stored]:
    """Yield what a record, or the entries of a state, say of versions."""
    for entry in delta.get(CATALOG, {}).values():
        if entry is not None:
            yield Stored.decode(entry, where)


def packs_in(delta: Delta) -> Iterator[int]:
    """Yield the packs of pages that were made for what a record says: nobody else refers to them.

    The pages of `included` are in part the source's own, and in its packs.
    """
    for entry in delta.get(CATALOG, {}).values():
        pack = jsontext.loads(entry).get("pack") if isinstance(entry, bytes) else None
        if isinstance(pack, int):
            yield pack


def blocks_in(load: Load, every: Iterable[Stored]) -> Iterator[tuple[bytes, Entry]]:
    """Yield (key, entry) of all blocks of several versions, those that they share about once."""
    last: Root = None
    for stored in every:
        for key, _, entry in index.diff(load, last, stored.tree):
            if entry is not None:
                yield key, entry
        last = stored.tree


# By the lane of a level: handles come and go, and share it.
_CATALOGS: weakref.WeakKeyDictionary[Lane, tuple[int, dict[str, Stored]]] = (
    weakref.WeakKeyDictionary()
)


class StoredLevel:
    """One level of a pyramid in storage.

    Parameters
    ----------
    home : Home
    lane : Lane
        Of the level's own array.
    spec : ArraySpec
    threads : int
    """

    def __init__(self, home: Home, lane: Lane, spec: ArraySpec, threads: int):
        self.home = home
        self.lane = lane
        self.spec = spec
        self.blocks = Blocks(home, lane, spec, threads)
        self.restart: set[tuple[Root, Root]] = set()  # roots of trees that are damaged

    def catalog(self) -> tuple[int, dict[str, Stored]]:
        """Return a number that grows with every change, and what is stored by node."""
        state = self.lane.refresh()
        seen = _CATALOGS.get(self.lane)
        if seen is None or seen[0] < state.number:
            what = f"array {self.spec.name!r}"
            fresh = None if seen is None else self.lane.changes_since(state, seen[0])
            found: dict[bytes, Entry | None] = {}
            nodes: dict[str, Stored] = {}
            if seen is None or fresh is None:
                found.update(self.lane.scan(state, CATALOG))
            else:  # with a thousand versions their entries take 20 ms to read
                nodes.update(seen[1])
                for delta in fresh:
                    found.update(delta.get(CATALOG, {}))
            for key, entry in found.items():
                if entry is not None:
                    nodes[key.hex()] = Stored.decode(entry, what)
            _CATALOGS[self.lane] = seen = state.number, nodes
        return seen

    def entries(self, stored: Stored, names: Sequence[bytes]) -> list[Entry | None]:
        """Return the entries of blocks, their keys in ascending order."""
        return index.get_many(self.home.load, stored.tree, names)

    def publish(
        self,
        node_id: str,
        before: Stored,
        changes: list[tuple[bytes, Entry | None]],
        include: Callable[[PackBuilder], Root],
        upto: tuple[str, int] | None,
        frames: Frames | None,
        user: str,
    ) -> Stored | None:
        """Store blocks of a version together with what they include.

        Parameters
        ----------
        before : Stored
            What they were added to.
        changes : list of (key, entry)
            Blocks, ascending.
        include : callable
            Returns the root of what is included then; writes its new pages into a pack.
        upto : tuple or None
            As of `Stored`.
        frames : Frames or None
            Of the blocks.

        Returns
        -------
        Stored or None
            None: another updater of this version came first, and nothing was stored.
        """
        key = bytes.fromhex(node_id)
        after: Stored | None = None
        packs: list[int] = []
        if frames is not None:
            frames.rides = False  # pages lead to them, which know of no record

        def prepare(state: State, _touched: Any) -> Change | None:
            nonlocal after
            after = None
            entry = self.lane.get(state, CATALOG, key)
            if entry is not None:
                now = Stored.decode(entry, f"array {self.spec.name!r}")[:2]
                if now != before[:2] and now not in self.restart:
                    return None
            pack = self.home.new_pack()
            tree = index.apply(self.home.load, before.tree, changes, pack)
            after = Stored(tree, include(pack), upto)
            packs.append(pack.object_id)
            self.home.write_pack(pack)
            return Change({CATALOG: {key: after.encode(pack)}}, {CATALOG: [key]}, None, frames)

        self.lane.commit(prepare, op="update pyramid", user=user)
        if after is None and frames is not None:
            frames.discard()
        if not self.home.engine.remote:  # there an attempt that was given up may still be gathered
            for each in packs if after is None else packs[:-1]:
                self.home.engine.delete(keys.pack(self.home.prefix, each))
        return after


# -- what is not included ----------------------------------------------------------------------


def differing(lane: Lane, state: State, included: Root) -> Iterator[tuple[bytes, Entry | None]]:
    """Yield (key, entry) of a state's blocks, ascending, where others are included."""
    yield from heapq.merge(
        _folded(lane, state, included), _recent(lane, state, included), key=itemgetter(0)
    )


def _folded(lane: Lane, state: State, included: Root) -> Iterator[tuple[bytes, Entry | None]]:
    for key, _, entry in index.diff(lane.home.load, included, state.roots.get(SPACE)):
        if not state.overlay.get(SPACE, key, state.number)[0]:
            yield key, entry


def _recent(lane: Lane, state: State, included: Root) -> Iterator[tuple[bytes, Entry | None]]:
    names = state.overlay.names(SPACE)
    for at in range(0, len(names), CHUNK):
        some = names[at : at + CHUNK]
        old = index.get_many(lane.home.load, included, some)
        for key, before in zip(some, old, strict=True):
            present, entry = state.overlay.get(SPACE, key, state.number)
            if present and entry != before:
                yield key, entry


def is_included(state: State, included: Root) -> bool:
    """Tell, without reading anything, whether a state is what is included; False is 'perhaps'."""
    return included == state.roots.get(SPACE) and not state.overlay.chains.get(SPACE)


def fold_source(lane: Lane, state: State, pack: PackBuilder) -> Root:
    """Return the root of a tree of all of a state's blocks."""
    changes = state.overlay.items(SPACE, state.number)
    return index.apply(lane.home.load, state.roots.get(SPACE), changes, pack)
