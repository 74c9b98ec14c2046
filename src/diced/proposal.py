"""Commits on their way into a record: alone, joined with others, or waiting as a proposal.

Pure: nothing here reads or stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from diced import grid, log
from diced.errors import CorruptError, DicedException
from diced.log import Delta, Reads, Record
from diced.state import Touched, delta_size, parse_box

# One combined record: keys, and bytes of frames behind it.
MOST_KEYS = 2048
MOST_RIDING = 4 * 2**20

REFUSED = 0
# What a combined record keeps of each commit in it.
KEPT = ("txid", "base", "user", "time", "op", "box", "after", "own")


class Part:
    """One commit on its way into a record.

    Attributes
    ----------
    record : Record
        As if it were committed alone.
    data : bytes
        The same, encoded; empty for what another writer proposed.
    alone : bool
        It goes into a record of its own: it is large, or depends on all that its lane holds.
    outcome : int or DicedException or None
        The number of the record that holds it; REFUSED if it must be made anew; an error.
    landed : int
        The number of the record that was seen to hold it, or 0.
    since : int or None
        The last record that was known when this was first sent to where others may have taken
        it, or nobody knows: later ones may hold it.
    """

    __slots__ = ("alone", "data", "landed", "outcome", "record", "since")

    def __init__(self, record: Record, data: bytes):
        self.record = record
        self.data = data
        self.alone = bool(
            "whole" in record.head
            or "body" in record.head
            or len(data) > log.MAX_RIDING // 4
            or delta_size(record.delta) > MOST_KEYS // 4
        )
        self.outcome: int | DicedException | None = None
        self.landed = 0
        self.since: int | None = None

    def meets(self, names: Reads) -> bool:
        """Tell whether this commit reads or writes any of some keys."""
        own = self.record
        return any(
            not own.delta.get(space, {}).keys().isdisjoint(each)
            or not set(own.reads.get(space, ())).isdisjoint(each)
            for space, each in names.items()
        )

    @property
    def txid(self) -> str:
        """The transaction id."""
        return str(self.record.head["txid"])


class Joint:
    """Commits chosen for one record: bounded, and none reads what one before it writes.

    Attributes
    ----------
    parts : list of Part
    """

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts: list[Part] = []
        self._written: Touched = {}
        self._keys = self._riding = 0
        for part in parts:
            if part.outcome is None:
                self.add(part)

    def add(self, part: Part, strict: bool = False) -> bool:
        """Add a commit if it fits; `strict`: only if it writes nothing that is written already."""
        record = part.record
        size, riding = delta_size(record.delta), len(record.frames)
        if part.alone or (
            self.parts
            and (
                self._keys + size > MOST_KEYS
                or self._riding + riding > MOST_RIDING
                or self._writes(record.reads)
                or (strict and self._writes(record.delta))
            )
        ):
            return False
        self.parts.append(part)
        self._keys, self._riding = self._keys + size, self._riding + riding
        for space, changes in record.delta.items():
            self._written.setdefault(space, set()).update(changes)
        return True

    def _writes(self, names: Mapping[int, Iterable[bytes]]) -> bool:
        written = self._written
        return any(not written.get(space, _NONE).isdisjoint(each) for space, each in names.items())


_NONE: set[bytes] = set()


def joined(
    node_id: str,
    durability: str,
    base: int,
    parts: list[Part],
    void: Sequence[str] = (),
    gathered: int = 0,
) -> tuple[Record, bytes]:
    """Return one record that holds these parts, in this order, and its bytes.

    `void` names refused proposals, `gathered` counts those that are in it.
    """
    if len(parts) == 1 and not void:
        return parts[0].record, parts[0].data or parts[0].record.encode()
    head: dict[str, Any] = {
        "txid": log.new_txid(),
        "node": node_id,
        "base": base,
        "durability": durability,
        "parts": [
            {name: part.record.head[name] for name in KEPT if name in part.record.head}
            for part in parts
        ],
    }
    if void:
        head["void"] = list(void)
    if gathered:
        head["gathered"] = gathered
    delta: Delta = {}
    reads: Reads = {}
    frames: list[bytes] = []
    box = None
    at = 0
    for part in parts:
        for space, changes in part.record.delta.items():
            moved = {key: log.shift(entry, at) if at else entry for key, entry in changes.items()}
            delta.setdefault(space, {}).update(moved)
        for space, names in part.record.reads.items():
            reads.setdefault(space, []).extend(names)
        box = grid.union(box, parse_box(part.record.head.get("box")))
        frames.append(part.record.frames)
        at += len(part.record.frames)
    head.update(
        box=box, op="combined", user=parts[0].record.head["user"],
        time=parts[0].record.head["time"],
    )  # fmt: skip
    reads = {space: sorted(set(names)) for space, names in reads.items()}
    record = Record(log.DATA, head, delta, reads, b"".join(frames))
    return record, record.encode()


def proposal(part: Part) -> bytes:
    """Return a part as it stands in a proposal: a record of its own, which no log holds."""
    record = part.record
    return Record(log.PROPOSAL, record.head, record.delta, record.reads, record.frames).encode()


def parts_of(data: bytes, key: str) -> Iterator[Part]:
    """Yield the parts of a proposal."""
    at = 0
    while at < len(data):
        size = Record.measure(data[at:])
        record = Record.decode(data[at : at + size], key)
        at += size
        record.frames = data[at : at + record.head.get("frames", 0)]
        at += len(record.frames)
        if record.type != log.PROPOSAL or len(record.frames) != record.head.get("frames", 0):
            raise CorruptError(f"{key}: no proposal")
        record.type = log.DATA
        yield Part(record, b"")
