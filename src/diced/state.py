"""The state of a lane at one record number, and the change that a commit makes to it.

Pure data: `versioned` decides when records are read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diced import grid
from diced.log import Delta, Entry, Pointer, Reads
from diced.segment import Frames

Roots = dict[int, Pointer]


class Base:
    """What a lane's log is folded over: the parent's roots, and the box written so far."""

    __slots__ = ("box", "roots")

    def __init__(self, roots: Roots | None = None, box: grid.Box | None = None):
        self.roots = roots or {}
        self.box = box

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Base:
        """Read the form stored in snapshots and lock objects."""
        roots = {int(space): tuple(root) for space, root in fields["roots"].items()}
        return cls(roots, parse_box(fields["box"]))

    def fields(self) -> dict[str, Any]:
        """Return the stored form."""
        return {"roots": {str(s): list(r) for s, r in self.roots.items()}, "box": self.box}


def parse_box(box: Any) -> grid.Box | None:
    """Return a box from its JSON form."""
    return (tuple(box[0]), tuple(box[1])) if box else None


class Overlay:
    """Deltas newer than the roots. Append-only: a value carries its record number, so a reader
    with an older N passes over newer ones and never sees half a record."""

    __slots__ = ("chains", "ordered")

    def __init__(self) -> None:
        self.chains: dict[int, dict[bytes, Any]] = {}
        self.ordered: dict[int, list[bytes]] = {}

    def add(self, number: int, delta: Delta) -> None:
        for space, changes in delta.items():
            chain = self.chains.setdefault(space, {})
            for key, entry in changes.items():
                chain[key] = (number, entry, chain.get(key))

    def get(self, space: int, key: bytes, number: int) -> tuple[bool, Entry | None]:
        """Return (found, entry) as of record `number`."""
        chain = self.chains.get(space)
        link = chain.get(key) if chain else None
        while link is not None and link[0] > number:
            link = link[2]
        return (False, None) if link is None else (True, link[1])

    def names(self, space: int) -> list[bytes]:
        """Return the space's keys in order; sorted again only after new keys came."""
        chain = self.chains.get(space, {})
        ordered = self.ordered.get(space, [])
        if len(ordered) != len(chain):
            ordered = sorted(list(chain))
            self.ordered[space] = ordered
        return ordered

    def items(self, space: int, number: int) -> list[tuple[bytes, Entry | None]]:
        """Return the space's changes as of `number`, in key order."""
        found = []
        for key in self.names(space):
            present, entry = self.get(space, key, number)
            if present:
                found.append((key, entry))
        return found

    def __len__(self) -> int:
        return sum(len(chain) for chain in self.chains.values())


class State:
    """A lane as of one record number. Immutable; every read of one call uses one State.

    Attributes
    ----------
    number : int
        The last record folded in; 0 when nothing was written at this node.
    box : grid.Box or None
        Union of the boxes that records wrote here and at ancestors.
    locked : bool
    """

    __slots__ = ("box", "locked", "number", "overlay", "roots")

    def __init__(
        self,
        number: int,
        roots: Roots,
        overlay: Overlay,
        box: grid.Box | None,
        locked: bool,
    ):
        self.number = number
        self.roots = roots
        self.overlay = overlay
        self.box = box
        self.locked = locked


class Change:
    """What one commit does.

    Attributes
    ----------
    delta : Delta
    reads : Reads or None
        Keys this change was merged against. None: it depends on the whole lane.
    box : grid.Box or None
    frames : Frames or None
        What holds its frames.
    """

    __slots__ = ("box", "delta", "frames", "reads")

    def __init__(
        self,
        delta: Delta,
        reads: Reads | None = None,
        box: grid.Box | None = None,
        frames: Frames | None = None,
    ):
        self.delta = delta
        self.reads = reads
        self.box = box
        self.frames = frames


# space -> keys
Touched = dict[int, set[bytes]]
# Called with the current state and, after a lost race, the keys of `reads` that changed (None:
# build everything). Returns None when there is nothing to commit.
Prepare = Callable[[State, "Touched | None"], "Change | None"]


def hits(reads: Reads, deltas: Sequence[Delta]) -> Touched:
    """Return which of these keys some deltas hold."""
    touched: Touched = {}
    for space, names in reads.items():
        written = set().union(*(delta.get(space, {}).keys() for delta in deltas))
        hit = written.intersection(names)
        if hit:
            touched[space] = hit
    return touched


def delta_size(delta: Delta) -> int:
    """Return the number of keys in a delta."""
    return sum(len(changes) for changes in delta.values())


def merge(
    base: Iterator[tuple[bytes, Entry]], recent: Iterator[tuple[bytes, Entry | None]]
) -> Iterator[tuple[bytes, Entry]]:
    """Merge two key-ordered streams; `recent` wins and its None hides."""
    old = next(base, None)
    new = next(recent, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0] < new[0]):
            assert old is not None
            yield old
            old = next(base, None)
            continue
        if old is not None and old[0] == new[0]:
            old = next(base, None)
        if new[1] is not None:
            yield new[0], new[1]
        new = next(recent, None)
