"""What a store means, as dicts of numpy arrays: the model that the stateful test compares with.

Nothing here imports diced. An array is a numpy array over a fixed window of coordinates, fill
outside; a version is a dict of arrays and a dict of files; a branch is a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Box = tuple[tuple[int, ...], tuple[int, ...]]

# The window of an axis in blocks: it starts and ends at block borders, so extents never leave it.
FIRST_BLOCK, LAST_BLOCK = -2, 3


@dataclass
class Kind:
    """What an array was created as."""

    dtype: np.dtype[Any]
    block_shape: tuple[int, ...]
    channels: int | None
    fill: Any
    label: bool
    versioned: bool
    birth: str  # version that created it

    @property
    def dims(self) -> int:
        return len(self.block_shape)

    @property
    def tail(self) -> tuple[int, ...]:
        return () if self.channels is None else (self.channels,)

    @property
    def lo(self) -> tuple[int, ...]:
        return tuple(FIRST_BLOCK * size for size in self.block_shape)

    @property
    def hi(self) -> tuple[int, ...]:
        return tuple(LAST_BLOCK * size for size in self.block_shape)


class Content:
    """Voxels of one array at one version."""

    def __init__(self, kind: Kind):
        self.kind = kind
        shape = tuple(b - a for a, b in zip(kind.lo, kind.hi, strict=True))
        self.voxels = np.full(shape + kind.tail, kind.fill, kind.dtype)
        self.box: Box | None = None
        self.blocks: set[tuple[int, ...]] = set()

    def copy(self) -> Content:
        return copy.deepcopy(self)

    @property
    def extents(self) -> Box:
        """Block-aligned box of what was written; zeros when empty."""
        shape = self.kind.block_shape
        if self.box is None:
            return (0,) * len(shape), (0,) * len(shape)
        return (
            tuple(a // b * b for a, b in zip(self.box[0], shape, strict=True)),
            tuple((a + b - 1) // b * b for a, b in zip(self.box[1], shape, strict=True)),
        )

    def coordinates(self, index: Any) -> tuple[list[range], list[int], Any]:
        """Spell an index out: coordinates per axis, integer axes, index of the channel axis."""
        items = list(index) if isinstance(index, tuple) else [index]
        kind = self.kind
        total = kind.dims + len(kind.tail)
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items[at : at + 1] = [slice(None)] * (total - len(items) + 1)
        elif len(items) == kind.dims and kind.tail:
            items.append(slice(None))
        channel = items.pop() if kind.tail else slice(None)
        low, high = self.extents
        ranges, integers = [], []
        for axis, item in enumerate(items):
            if not isinstance(item, slice):
                integers.append(axis)
                ranges.append(range(int(item), int(item) + 1))
                continue
            step = 1 if item.step is None else int(item.step)
            first, last = (low[axis], high[axis]) if step > 0 else (high[axis] - 1, low[axis] - 1)
            ranges.append(
                range(
                    first if item.start is None else int(item.start),
                    last if item.stop is None else int(item.stop),
                    step,
                )
            )
        return ranges, integers, channel

    def _places(self, ranges: Sequence[range]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Positions in the result, and in the window, of the coordinates inside the window."""
        inside, places = [], []
        for axis, each in enumerate(ranges):
            coords = np.array(each, dtype=np.int64)
            kept = np.flatnonzero((coords >= self.kind.lo[axis]) & (coords < self.kind.hi[axis]))
            inside.append(kept)
            places.append(coords[kept] - self.kind.lo[axis])
        return inside, places

    def read(self, index: Any) -> np.ndarray:
        ranges, integers, channel = self.coordinates(index)
        shape = tuple(len(each) for each in ranges)
        result = np.full(shape + self.kind.tail, self.kind.fill, self.kind.dtype)
        inside, places = self._places(ranges)
        result[np.ix_(*inside)] = self.voxels[np.ix_(*places)]
        picked: list[Any] = [0 if axis in integers else slice(None) for axis in range(len(ranges))]
        if self.kind.tail:
            picked.append(channel)
        return result[tuple(picked)]

    def result_shape(self, index: Any) -> tuple[int, ...]:
        return tuple(np.shape(self.read(index)))

    def write(self, index: Any, value: Any) -> None:
        ranges, integers, channel = self.coordinates(index)
        if any(len(each) == 0 for each in ranges):
            return
        _, places = self._places(ranges)
        assert all(len(p) == len(r) for p, r in zip(places, ranges, strict=True)), "outside"
        part = self.voxels[np.ix_(*places)]
        picked: list[Any] = [0 if axis in integers else slice(None) for axis in range(len(ranges))]
        if self.kind.tail:
            picked.append(channel)
        if part[tuple(picked)].size == 0:
            return
        part[tuple(picked)] = value
        self.voxels[np.ix_(*places)] = part
        lo = tuple(min(each) for each in ranges)
        hi = tuple(max(each) + 1 for each in ranges)
        if self.box is not None:
            lo = tuple(min(a, b) for a, b in zip(lo, self.box[0], strict=True))
            hi = tuple(max(a, b) for a, b in zip(hi, self.box[1], strict=True))
        self.box = lo, hi
        touched = [sorted({c // b for c in each}) for each, b in self._axes(ranges)]
        grids = np.meshgrid(*touched, indexing="ij")
        self.blocks |= {tuple(row) for row in np.stack(grids, -1).reshape(-1, len(ranges)).tolist()}

    def _axes(self, ranges: Sequence[range]) -> Any:
        return zip(ranges, self.kind.block_shape, strict=True)


@dataclass
class Version:
    """One version node."""

    uuid: str
    parent: str | None
    branch: str
    note: str
    locked: bool = False
    log: list[str] = field(default_factory=list)
    arrays: dict[str, Content] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class Repo:
    """One repo: its versions in order of birth, its arrays by name."""

    def __init__(self, name: str, description: str, root: str):
        self.name = name
        self.description = description
        self.root = root
        self.versions = {root: Version(root, None, "master", "")}
        self.kinds: dict[str, Kind] = {}
        self.attrs: dict[str, dict[str, Any]] = {}
        self.shared: dict[str, Content] = {}  # unversioned arrays
        self.tags: dict[str, str] = {}

    def lineage(self, uuid: str) -> list[Version]:
        """A version and its ancestors, oldest first."""
        found: list[Version] = []
        at: str | None = uuid
        while at is not None:
            found.insert(0, self.versions[at])
            at = self.versions[at].parent
        return found

    def visible(self, uuid: str) -> list[str]:
        above = {each.uuid for each in self.lineage(uuid)}
        return sorted(n for n, k in self.kinds.items() if not k.versioned or k.birth in above)

    def content(self, uuid: str, name: str) -> Content:
        if not self.kinds[name].versioned:
            return self.shared[name]
        return self.versions[uuid].arrays[name]

    def set_content(self, uuid: str, name: str, content: Content) -> None:
        if self.kinds[name].versioned:
            self.versions[uuid].arrays[name] = content
        else:
            self.shared[name] = content

    def create(self, uuid: str, name: str, kind: Kind, attrs: dict[str, Any]) -> None:
        self.kinds[name] = kind
        self.attrs[name] = dict(attrs)
        self.set_content(uuid, name, Content(kind))

    def delete(self, name: str) -> None:
        del self.kinds[name], self.attrs[name]
        self.shared.pop(name, None)
        for version in self.versions.values():
            version.arrays.pop(name, None)

    def add_child(self, parent: str, uuid: str, branch: str | None, note: str) -> None:
        above = self.versions[parent]
        if branch is None:
            taken = any(
                each.parent == parent and each.branch == above.branch
                for each in self.versions.values()
            )
            branch = uuid[:12] if taken else above.branch
        arrays = {name: content.copy() for name, content in above.arrays.items()}
        self.versions[uuid] = Version(
            uuid, parent, branch, note, arrays=arrays, files=dict(above.files)
        )

    def branches(self) -> dict[str, str]:
        return {each.branch: uuid for uuid, each in self.versions.items()}


def same(got: Any, wanted: np.ndarray) -> bool:
    """Equal to the bit (NaN and -0.0 included), in shape and dtype."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    return got.tobytes() == wanted.tobytes()


def key_order(names: Any) -> list[str]:
    """Names in the order of their UTF-8 bytes."""
    return sorted(names, key=lambda name: name.encode())
