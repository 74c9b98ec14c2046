"""Reading and growing the levels of one array's pyramid at one lane.

A read takes from storage what includes the state that it reads, and computes the rest from the
level below, down to the source where it must: the result is that of computing everything. Memory
is bounded by a few blocks per level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from diced import _voxels, grid, index, pool
from diced import codec as codecs
from diced.blocks import SPACE, Blocks
from diced.downsample import cumulative, reduce
from diced.encoding import Encoder
from diced.errors import CorruptError
from diced.index import PackBuilder, Root
from diced.log import Entry
from diced.pyramid import NOTHING, Stored, StoredLevel, differing, fold_source, is_included
from diced.spec import ArraySpec
from diced.state import State

# Source blocks up to which a read looks each one up; beyond, it walks all that differ, once.
DIRECT = grid.BLOCKS_PER_PIECE
# Blocks that an update computes, encodes and stores at a time, in bytes, and between two commits.
GROUP_BYTES = 16 * 2**20
COMMIT_BYTES = 128 * 2**20
# From this level on, what a commit includes may be many times larger than its blocks. Its last one
# takes over the source's tree, and is mostly the only one; others note so many entries of the
# source, and from twice as many below few blocks on all that is left is one commit.
WHOLE_LEVEL = 4
MOST_CHANGES = 2**18
# Sets of blocks that are not included, and blocks of all of them, that are kept between reads.
KEPT_SETS, KEPT_KEYS = 64, 2**20

Keys = set[bytes]
# Blocks to compute, and the differing entries of the source below them; None: the last blocks.
Batch = tuple[list[bytes], list[tuple[bytes, Entry | None]] | None]
# Called with a catalog; returns what a version had best begin with.
Choose = Callable[[StoredLevel], Stored]


def level_fields(source: ArraySpec, number: int, shifts: Sequence[int]) -> dict[str, Any]:
    """Return the stored description of a level: the source's, with larger voxels.

    Blocks of a source that is stored with loss are stored without: a level is exact.
    """
    spec = codecs.get_codec(source.codec, source.dtype, source.block_shape, source.channels)
    sizes = source.fields.get("voxel_size") or [1.0] * source.dims
    return {
        **{
            name: source.fields[name]
            for name in ("dtype", "dims", "block_shape", "channels", "fill", "units")
            if name in source.fields
        },
        "codec": "lz4" if spec.lossy else source.codec,
        "voxel_size": [size * 2**shift for size, shift in zip(sizes, shifts, strict=True)],
        "name": f"{source.name}_{number}",
        "of": source.id,
        "level": number,
    }


class Levels:
    """The pyramid of an array at a lane.

    Parameters
    ----------
    source : Blocks
    steps : sequence of tuple of int
        Factors per axis of each level from 1.
    method : str
        As of `downsample.reduce`.
    stored : list of StoredLevel or None
        By level from 1; None where nothing is stored.
    choose : callable
    """

    def __init__(
        self,
        source: Blocks,
        steps: Sequence[tuple[int, ...]],
        method: str,
        stored: list[StoredLevel | None],
        choose: Choose,
    ):
        self.source = source
        self.spec = source.spec
        self.steps = [(1,) * self.spec.dims, *steps]
        self.shifts = cumulative(steps, self.spec.dims)
        self.method = method
        self.stored = [None, *stored]
        self._choose = choose
        self._sets: dict[tuple[Any, ...], tuple[int, Keys]] = {}

    # -- boxes -----------------------------------------------------------------------------

    def box(self, number: int, state: State) -> grid.Box | None:
        """Return the voxels of a level that stand for anything that was written."""
        if state.box is None:
            return None
        shifts = self.shifts[number]
        return (
            tuple(a >> s for a, s in zip(state.box[0], shifts, strict=True)),
            tuple(-(-b >> s) for b, s in zip(state.box[1], shifts, strict=True)),
        )

    def _clip(
        self, number: int, state: State, lo: Sequence[int], hi: Sequence[int]
    ) -> grid.Box | None:
        box = self.box(number, state)
        if box is None:
            return None
        low = tuple(max(a, b) for a, b in zip(lo, box[0], strict=True))
        high = tuple(min(a, b) for a, b in zip(hi, box[1], strict=True))
        return (low, high) if all(a < b for a, b in zip(low, high, strict=True)) else None

    # -- reading ---------------------------------------------------------------------------

    def read(
        self, number: int, state: State, lo: Sequence[int], hi: Sequence[int], out: np.ndarray
    ) -> None:
        """Fill `out` (shape ``hi - lo``, then channels) with a box of a level.

        Parameters
        ----------
        number : int
            0: the source itself.
        state : State
            Of the source.
        """
        inside = self._clip(number, state, lo, hi)
        if inside != (tuple(lo), tuple(hi)):
            _voxels.fill(out, self.spec.fill)
        if inside is None:
            return
        if number == 0:
            places = zip(*inside, lo, strict=True)
            window = tuple(slice(a - origin, b - origin) for a, b, origin in places)
            self.source.read(state, *inside, out[window])
            return
        level, stored = self._find(number)
        for low, high in grid.pieces(*inside, self.spec.block_shape):
            cut = grid.Cut(low, high, self.spec.block_shape, lo)
            stale = set(cut.keys)
            if level is not None and stored is not None:
                try:
                    stale = self._stale(number, state, stored, cut)
                    self._read_stored(level, stored, cut, stale, out)
                except CorruptError:  # derived data: the source gives the same
                    stale = set(cut.keys)
            for row, key in enumerate(cut.keys):
                if key in stale:
                    self._compute(number, state, cut.table[row], key, out)

    def _find(self, number: int) -> tuple[StoredLevel | None, Stored | None]:
        level = self.stored[number]
        if level is None:
            return None, None
        try:
            found = self._choose(level)
        except CorruptError:
            return None, None
        return (level, found) if found.included is not None else (None, None)

    def _read_stored(
        self, level: StoredLevel, stored: Stored, cut: grid.Cut, stale: Keys, out: np.ndarray
    ) -> None:
        rows = [row for row, key in enumerate(cut.keys) if key not in stale]
        if rows:
            names = [cut.keys[row] for row in rows]
            table = cut.table if len(rows) == len(cut) else cut.table[rows]
            level.blocks.read_entries(level.entries(stored, names), names, table, out)

    def _compute(
        self, number: int, state: State, row: np.ndarray, key: bytes, out: np.ndarray
    ) -> None:
        """Fill what a row of a cut says of one block's part, from the level below."""
        begin, count, start = row.tolist()
        window = tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))
        place = grid.block_coords([key], self.spec.dims)[0].tolist()
        lo = [b * n + a for b, n, a in zip(place, self.spec.block_shape, begin, strict=True)]
        hi = [a + n for a, n in zip(lo, count, strict=True)]
        if not self._is_there(number, state, lo, hi):
            _voxels.fill(out[window], self.spec.fill)
            return
        step = self.steps[number]
        low = tuple(a * f for a, f in zip(lo, step, strict=True))
        high = tuple(b * f for b, f in zip(hi, step, strict=True))
        shape = tuple(b - a for a, b in zip(low, high, strict=True))
        below = np.empty(shape + out.shape[self.spec.dims :], self.spec.dtype)
        self.read(number - 1, state, low, high, below)
        out[window] = reduce(below, step, self.method, self.spec.channels)

    def _is_there(self, number: int, state: State, lo: list[int], hi: list[int]) -> bool:
        """Tell whether the source may hold blocks below a box: none of a range of their keys."""
        inside = self._clip(number, state, lo, hi)
        if inside is None:
            return False
        shifts, sides = self.shifts[number], self.spec.block_shape
        ends = [
            [(a << s) // n for a, s, n in zip(inside[0], shifts, sides, strict=True)],
            [((b << s) - 1) // n for b, s, n in zip(inside[1], shifts, sides, strict=True)],
        ]
        first, last = grid.block_keys(np.array(ends, np.int64))
        found = self.source.lane.scan(state, SPACE, first, last + b"\0")
        return next(found, None) is not None

    def present(self, number: int, state: State, names: Sequence[bytes]) -> Keys:
        """Return those of some blocks below which the source has any."""
        found: Keys = set()
        lane = self.source.lane
        for key in names:
            coords = grid.block_coords([key], self.spec.dims)
            if 1 << sum(self.shifts[number]) <= DIRECT:
                below = lane.get_many(state, SPACE, self._children(number, coords))
                there = any(entry is not None for entry in below)
            else:
                lo = [c * n for c, n in zip(coords[0].tolist(), self.spec.block_shape, strict=True)]
                hi = [a + n for a, n in zip(lo, self.spec.block_shape, strict=True)]
                there = self._is_there(number, state, lo, hi)
            if there:
                found.add(key)
        return found

    def occupied(self, number: int, state: State) -> Iterator[bytes]:
        """Yield the blocks below which the source has any, near ones near each other."""
        done: Keys = set()
        names = (key for key, _ in self.source.lane.scan(state, SPACE))
        while some := list(itertools.islice(names, DIRECT)):
            for key in self.parents(number, some):
                if key not in done:
                    done.add(key)
                    yield key

    # -- what is not included --------------------------------------------------------------

    def _stale(self, number: int, state: State, stored: Stored, cut: grid.Cut) -> Keys:
        """Return the blocks of a cut that do not include a state."""
        if is_included(state, stored.included):
            return set()
        coords = grid.block_coords(cut.keys, self.spec.dims)
        if len(coords) << sum(self.shifts[number]) > DIRECT:
            return self._all_stale(number, state, stored).intersection(cut.keys)
        names = self._children(number, coords)
        lane = self.source.lane
        now = lane.get_many(state, SPACE, names)
        then = index.get_many(lane.home.load, stored.included, names)
        changed = [key for key, a, b in zip(names, now, then, strict=True) if a != b]
        return set(self.parents(number, changed))

    def _children(self, number: int, coords: np.ndarray) -> list[bytes]:
        """Return the keys of all source blocks below some blocks, ascending."""
        shifts = np.array(self.shifts[number])
        inner = np.indices(tuple(1 << shifts)).reshape(self.spec.dims, -1).T
        every = (coords << shifts)[:, np.newaxis, :] + inner[np.newaxis]
        return sorted(grid.block_keys(every.reshape(-1, self.spec.dims)))

    def parents(self, number: int, names: Sequence[bytes]) -> list[bytes]:
        """Return, for each source block, the key of the block of a level that it is below."""
        coords = grid.block_coords(names, self.spec.dims)
        return grid.block_keys(coords >> np.array(self.shifts[number]))

    def _all_stale(self, number: int, state: State, stored: Stored) -> Keys:
        """Return all blocks of a level that do not include a state, and perhaps a few more.

        Kept by the trees that were compared; what was committed since is added.
        """
        lane = self.source.lane
        mark = number, stored.included, state.roots.get(SPACE)
        known = self._sets.get(mark)
        if known is not None and known[0] <= state.number:
            deltas = lane.changes_since(state, known[0])
            if deltas is not None:
                fresh = [key for delta in deltas for key in delta.get(SPACE, ())]
                found = known[1].union(self.parents(number, fresh)) if fresh else known[1]
                self._sets[mark] = state.number, found
                return found
        found = set()
        some: list[bytes] = []
        for key, _ in differing(lane, state, stored.included):
            some.append(key)
            if len(some) == DIRECT:
                found.update(self.parents(number, some))
                some = []
        found.update(self.parents(number, some))
        kept = list(self._sets.items())  # other threads may add to it meanwhile
        size = len(found) + sum(len(each) for _, (_, each) in kept)
        for at, (old, (_, each)) in enumerate(kept):
            if len(kept) - at < KEPT_SETS and size <= KEPT_KEYS:
                break
            self._sets.pop(old, None)
            size -= len(each)
        self._sets[mark] = state.number, found
        return found

    # -- growing ---------------------------------------------------------------------------

    def update(
        self,
        number: int,
        state: State,
        node_id: str,
        user: str,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Store what a level lacks of a state, in bounded memory; return the blocks computed.

        It can be stopped anywhere, and goes on with what is missing; writers of the source and
        other updaters may run beside it.

        Parameters
        ----------
        node_id : str
            Where it is stored.
        progress : callable, optional
            Called with the level and the blocks done, after every commit.
        """
        level = self.stored[number]
        assert level is not None
        done = 0
        while True:
            before = self._begin(level)
            grew = False
            try:
                for batch in self._batches(number, state, before.included):
                    after = self._grow(number, level, state, node_id, before, batch, user)
                    if after is None:
                        break  # another updater was faster: see what is left
                    before, grew = after, True
                    done += len(batch[0])
                    if progress is not None:
                        progress(number, done)
                else:
                    settled = not grew and not self._is_worth(level, state, node_id, before)
                    if settled or self._seal(level, state, node_id, before, user):
                        return done
            except CorruptError:
                if not self._is_damaged(level, before):
                    raise
                level.restart.add((before.tree, before.included))

    def _begin(self, level: StoredLevel) -> Stored:
        """Return what to go on with: nothing where what there is cannot be read."""
        found = self._choose(level)
        return NOTHING if found[:2] in level.restart else found

    def _is_worth(self, level: StoredLevel, state: State, node_id: str, stored: Stored) -> bool:
        """Tell whether to write anew that all is included, of which nothing is missing."""
        found = level.catalog()[1].get(node_id)
        if found is None or found[:2] != stored[:2] or found.upto is None:
            return True
        # The source's tree was written anew: pages that both share need not be compared.
        folded = not state.overlay.chains.get(SPACE)
        return folded and not is_included(state, stored.included)

    def _is_damaged(self, level: StoredLevel, stored: Stored) -> bool:
        """Tell whether a level's own trees cannot be read."""
        try:
            for root in (stored.tree, stored.included):
                for _ in index.scan(self.source.home.load, root):
                    pass
        except CorruptError:
            return True
        return False

    def _batches(self, number: int, state: State, included: Root) -> Iterator[Batch]:
        """Yield blocks to compute with all differing entries of the source below them."""
        dims = self.spec.dims
        most = max(1, COMMIT_BYTES // self.spec.block_nbytes)
        whole = number >= WHOLE_LEVEL
        # Keys that agree but for so many bits are below the same blocks of the level.
        below = dims * max(self.shifts[number])
        names: dict[bytes, None] = {}
        changes: list[tuple[bytes, Entry | None]] | None = []
        some: list[tuple[bytes, Entry | None]] = []
        group = -1

        def take() -> None:
            nonlocal changes
            names.update(dict.fromkeys(self.parents(number, [key for key, _ in some])))
            if changes is not None:
                changes.extend(some)
                if whole and len(changes) >= 2 * MOST_CHANGES + DIRECT:
                    changes = None
            some.clear()

        for key, entry in differing(self.source.lane, state, included):
            mine = int.from_bytes(key, "big") >> below
            if mine != group:
                if len(some) >= DIRECT or len(names) + len(some) >= most:
                    take()
                full = changes is not None and whole and len(changes) >= MOST_CHANGES
                if changes is not None and (full or len(names) >= most):
                    yield sorted(names), changes
                    names, changes = {}, []
                group = mine
            some.append((key, entry))
            if len(some) >= DIRECT and whole:
                take()
        take()
        if names:
            yield sorted(names), None if whole else changes

    def _grow(
        self,
        number: int,
        level: StoredLevel,
        state: State,
        node_id: str,
        before: Stored,
        batch: Batch,
        user: str,
    ) -> Stored | None:
        """Compute and store blocks; None if another updater was faster."""
        names, changes = batch
        encoder = Encoder(level.blocks)
        made: dict[bytes, Entry] = {}
        size = max(1, GROUP_BYTES // self.spec.block_nbytes)
        for at in range(0, len(names), size):
            self._encode(number, level, state, names[at : at + size], encoder, made)

        def include(pack: PackBuilder) -> Root:
            if changes is None:
                return fold_source(self.source.lane, state, pack)
            return index.apply(self.source.home.load, before.included, changes, pack)

        entries: list[tuple[bytes, Entry | None]] = sorted(made.items())
        upto = self._upto(state) if changes is None else None
        return level.publish(node_id, before, entries, include, upto, encoder.frames, user)

    def _upto(self, state: State) -> tuple[str, int]:
        return self.source.lane.node_id, -1 if state.locked else state.number

    def _encode(
        self,
        number: int,
        level: StoredLevel,
        state: State,
        names: list[bytes],
        encoder: Encoder,
        made: dict[bytes, Entry],
    ) -> None:
        stack, table = level.blocks.stack(len(names))

        def one(row: int) -> None:
            self._compute(number, state, table[row], names[row], stack)

        below = self.spec.block_nbytes * math.prod(self.steps[number])
        threads = min(self.source.fetchers, max(1, 2 * GROUP_BYTES // below))
        pool.for_each(one, range(len(names)), max(threads, min(2, self.source.threads)))
        late: dict[bytes, tuple[int, Entry | None]] = {
            key: (row, None) for row, key in enumerate(names)
        }
        encoder.stacked(late, stack, table, made)

    def _seal(
        self, level: StoredLevel, state: State, node_id: str, before: Stored, user: str
    ) -> bool:
        """Note that all of a state is included, so that pages are shared with the source's tree."""
        if before.upto == self._upto(state):
            return True  # its last commit said so
        return (
            level.publish(
                node_id,
                before,
                [],
                lambda pack: fold_source(self.source.lane, state, pack),
                self._upto(state),
                None,
                user,
            )
            is not None
        )

    def is_complete(self, number: int, state: State) -> bool:
        """Tell whether a read of a state finds all of a level stored."""
        level, stored = self._find(number)
        if level is None or stored is None:
            return state.box is None
        try:
            return next(differing(self.source.lane, state, stored.included), None) is None
        except CorruptError:
            return False
