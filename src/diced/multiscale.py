"""Pyramids: an array's levels of half the resolution, a quarter and so on, as arrays to be read.

Owns what a level is called and how handles of it behave, and which arrays store the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from diced import _voxels, grid
from diced.array import DicedArray
from diced.attrs import Attributes
from diced.dag import Dag
from diced.downsample import MAX_DIMS, MEAN, MODE, check_method, levels_of, plan_steps
from diced.errors import (
    AlreadyExistsError,
    BadIndexError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
)
from diced.history import History, View
from diced.home import Home
from diced.keys import NO_NODE
from diced.levels import Levels, level_fields
from diced.pyramid import KIND, NOTHING, Stored, StoredLevel
from diced.spec import ArraySpec
from diced.state import State

if TYPE_CHECKING:
    from diced.repo import DicedRepo

MAX_LEVELS = 24


# -- a level as an array -----------------------------------------------------------------------


class _State:
    """A state of the source, seen as a state of a level."""

    __slots__ = ("box", "locked", "number", "source")

    def __init__(self, source: State, box: grid.Box | None):
        self.source = source
        self.box = box
        self.locked = source.locked
        self.number = source.number


class _Lane:
    """The source's lane, as a level's handle wants a lane."""

    def __init__(self, levels: Levels, number: int):
        lane = levels.source.lane
        # Two levels of one number may differ in how they are made; dask knows them by this.
        steps = "/".join("x".join(map(str, step)) for step in levels.steps[1 : number + 1])
        self.id = f"{lane.id}/{levels.method}/{steps}"
        self.node_id = lane.node_id
        self.home = lane.home
        self._levels = levels
        self._number = number

    @property
    def stale(self) -> bool:
        return self._levels.source.lane.stale

    def refresh(self) -> _State:
        state = self._levels.source.lane.refresh()
        return _State(state, self._levels.box(self._number, state))

    def recent(self) -> _State:
        return self.refresh()

    def get_many(self, state: _State, _space: int, names: Sequence[bytes]) -> list[_State | None]:
        """Return, for each block, the state that it is to be read at, or None if there is none."""
        there = self._levels.present(self._number, state.source, names)
        return [state if key in there else None for key in names]


class _Blocks:
    """A level of some `Levels`, as readers of arrays want blocks."""

    def __init__(self, levels: Levels, number: int, spec: ArraySpec):
        self.levels = levels
        self.number = number
        self.spec = spec
        self.lane = _Lane(levels, number)
        self.home = levels.source.home
        self.stack = levels.source.stack
        self.threads = self.fetchers = levels.source.threads

    def read(self, state: _State, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        self.levels.read(self.number, state.source, lo, hi, out)

    def read_entries(
        self, entries: list[_State | None], keys: list[bytes], table: np.ndarray, out: np.ndarray
    ) -> None:
        """Fill windows of `out` with parts of blocks; `table` as of `grid.Cut`."""
        coords = grid.block_coords(keys, self.spec.dims) * np.array(self.spec.block_shape)
        for row, state in enumerate(entries):
            begin, count, start = table[row].tolist()
            window = tuple(slice(a, a + n) for a, n in zip(start, count, strict=True))
            lo = [a + b for a, b in zip(coords[row].tolist(), begin, strict=True)]
            hi = [a + n for a, n in zip(lo, count, strict=True)]
            if state is None:
                _voxels.fill(out[window], self.spec.fill)
            else:
                self.read(state, lo, hi, out[window])

    def payload(self, _block: Any) -> None:
        """Return None: what is stored of a level may not be what it is now."""
        return None

    def coords(self, state: _State) -> Iterator[tuple[int, ...]]:
        """Yield the blocks that have blocks of the source below them."""
        for key in self.levels.occupied(self.number, state.source):
            yield tuple(grid.block_coords([key], self.spec.dims)[0].tolist())


class Level(DicedArray):
    """A level of an array's pyramid: an array that cannot be written.

    It shows the version that its repo is at, and what the array holds at the time of the call.

    Attributes
    ----------
    source : DicedArray
    number : int
        1 is half the resolution.
    """

    def __init__(self, repo: DicedRepo, spec: ArraySpec, pyramid: Pyramid | None = None):
        super().__init__(repo, spec)
        if pyramid is None:
            found = repo._history.known().arrays.get(spec.fields["of"])
            if found is None:
                raise NotFoundError(f"array {spec.name!r}: the array it is made of was deleted")
            pyramid = Pyramid(repo._array(found), spec.fields["level"], None, None, spec.fields)
        self.source = pyramid.source
        self.number: int = spec.fields["level"]
        self._pyramid = pyramid
        self._shown = ArraySpec(spec.id, {**spec.fields, "kind": self.source.kind})

    @staticmethod
    def describe(name: str, **_options: Any) -> dict[str, Any]:
        """Refuse: levels are made by `DicedArray.update_pyramid`."""
        raise InvalidError(f"array {name!r}: levels of pyramids are made by update_pyramid")

    @staticmethod
    def pyramid_of(array: Any, levels: int | None, axes: Any, method: str | None) -> Pyramid:
        """Return an array's pyramid, as `DicedArray.pyramid`."""
        return Pyramid(array, levels, axes, method)

    # -- description -----------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """Of the array that it is a level of."""
        return str(self.source.kind)

    @property
    def versioned(self) -> bool:
        """False if the content is the same at every version."""
        return bool(self.source.versioned)

    @property
    def locked(self) -> bool:
        """True if the array cannot be written here, because the version is locked."""
        return bool(self.source.locked)

    @property
    def attrs(self) -> Attributes:
        """Its own, the same at every version; of a level that is not stored there are none."""
        if self._spec.id != self.source._spec.id:
            return super().attrs
        return Attributes(f"array {self.name!r}", dict, lambda _change: self._writable())

    def _fields(self) -> dict[str, Any]:
        fields = self.source._fields()
        shifts = self._pyramid.levels().shifts[self.number]
        sizes = [size * 2**s for size, s in zip(fields["voxel_size"], shifts, strict=True)]
        own = self._repo._history.known().arrays.get(self._spec.id, self._spec).fields
        return {**own, "units": fields["units"], "voxel_size": sizes}

    def __repr__(self) -> str:
        return f"<level {self.number} of {self.source!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        pyramid = self._pyramid
        return _reopen_level, (self.source, self.number, pyramid.axes, pyramid.wanted_method)

    # -- what it is made of ----------------------------------------------------------------

    def _blocks(self, checked: bool = False) -> Any:
        return _Blocks(self._pyramid.levels(checked, self.number), self.number, self._shown)

    def _pending(self) -> None:
        return None

    def _writable(self) -> NoReturn:
        raise ReadOnlyError(
            f"array {self.name!r} is level {self.number} of the pyramid of {self.source.name!r}:"
            " write there"
        )

    def __setitem__(self, index: Any, value: Any) -> None:
        self._writable()

    def session(self, operation: str = "session", *, resume: str | None = None) -> Any:
        """Refuse: levels cannot be written."""
        self._writable()

    def sessions(self) -> list[str]:
        """Return none: levels cannot be written."""
        return []

    def pyramid(
        self, levels: int | None = None, *, axes: Any = None, method: str | None = None
    ) -> Pyramid:
        """Refuse: it is part of a pyramid."""
        raise InvalidError(f"array {self.name!r} is a level; ask {self.source.name!r}")


def _reopen_level(source: Any, number: int, axes: Any, method: str | None) -> Any:
    return Pyramid(source, number, axes, method)[number]


# -- all levels --------------------------------------------------------------------------------


class Pyramid(Sequence[Any]):
    """An array and its levels, from 0.

    Made by `DicedArray.pyramid`.

    Attributes
    ----------
    source : DicedArray
    top : int
        The last level.
    method : str
    steps : list of tuple of int
        Factors per axis, from each level to the next.
    """

    def __init__(
        self, source: Any, count: int | None, axes: Any, method: str | None, made: Any = None
    ):
        if not 1 <= source.numdims <= MAX_DIMS:
            raise InvalidError(
                f"array {source.name!r}: arrays of 1 to {MAX_DIMS} dimensions have pyramids;"
                f" this one has {source.numdims}"
            )
        if count is not None and (type(count) is not int or not 0 <= count <= MAX_LEVELS):
            raise InvalidError(f"levels are 0 to {MAX_LEVELS}; got {count!r:.60}")
        self.source = source
        self.axes = axes
        self.wanted_method = method
        self._count = count
        self._made: tuple[Any, Levels] | None = None
        self._known = made  # how a stored level was made, also after it was deleted
        self.steps: list[tuple[int, ...]] = []
        self._specs: list[ArraySpec] = []
        self._resolve(source._repo._history.view())

    def _resolve(self, view: View) -> None:
        """Find out what is stored, and what is to be."""
        source, array = self.source, self.source._spec
        specs = stored_levels(view, array.id)
        label = source.islabel3D
        method = self.wanted_method
        if specs:
            known = specs[0].fields["method"]
            if method not in (None, known):
                raise InvalidError(
                    f"array {source.name!r}: its pyramid was made by {known!r}; delete it to make"
                    f" one by {method!r:.60}"
                )
            self._known = specs[-1].fields
        made = self._known or {"method": None, "axes": None}
        default = made["method"] or (MODE if label else MEAN)
        self.method = check_method(default if method is None else method, source.dtype)
        count = len(specs) or levels_of(source.shape[: source.numdims], source.block_shape)
        count = min(count if self._count is None else self._count, MAX_LEVELS)
        stored = [tuple(spec.fields["step"]) for spec in specs]
        axes = made["axes"] if self.axes is None else self.axes
        size = max(count, len(stored))
        steps = plan_steps(source.voxel_size, size, axes)
        if self.axes is not None and steps[: len(stored)] != stored:
            raise InvalidError(
                f"array {source.name!r}: its pyramid halves {stored}; delete it to make another"
            )
        # Handles of levels that were deleted can still be read.
        self.steps = stored + steps[len(stored) :] + self.steps[size:]
        self._used_axes = axes if axes is None or isinstance(axes, str) else sorted(set(axes))
        self.top = count
        self._specs = specs
        self._view = view.number

    def levels(self, checked: bool = False, least: int = 0) -> Levels:
        """Return the levels at the current version; for `Level`."""
        blocks = self.source._blocks(checked)
        repo = self.source._repo
        view = repo._history.known()
        if view.number != self._view or least > len(self.steps):
            specs = stored_levels(view, self.source._spec.id)
            if [each.id for each in specs] != [each.id for each in self._specs]:
                self._resolve(view)
                self._made = None
            self._view = view.number
        if self._made is None or self._made[0] is not blocks:
            stored: list[StoredLevel | None] = [
                _stored_level(repo, spec) for spec in self._specs[: len(self.steps)]
            ]
            stored += [None] * (len(self.steps) - len(stored))
            node = blocks.lane.node_id
            found = Levels(blocks, self.steps, self.method, stored, Chooser(repo._history, node))
            self._made = blocks, found
        return self._made[1]

    def __len__(self) -> int:
        return 1 + self.top

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if type(number) is not int or not -len(self) <= number < len(self):
            raise BadIndexError(
                f"array {self.source.name!r} has levels 0 to {self.top}; got {number!r:.60}"
            )
        number %= len(self)
        if number == 0:
            return self.source
        if number <= len(self._specs):
            spec = self._specs[number - 1]
        else:
            array = self.source._spec
            shifts = self.levels().shifts[number]
            fields = {**level_fields(array, number, shifts), "kind": KIND, "node": array.node}
            how = {"versioned": array.versioned, "method": self.method, "axes": self._used_axes}
            spec = ArraySpec(array.id, {**fields, **how})
        return Level(self.source._repo, spec, self)

    def __repr__(self) -> str:
        return f"<pyramid of {self.source!r}: {self.top} levels, {len(self._specs)} stored>"

    # -- storing ---------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """Tell what is stored of the current version.

        Returns
        -------
        list of dict
            Per stored level: ``level``, ``name`` of its array, ``source_upto`` (record number of
            the array at this version up to which all is stored, -1 for all of a locked version's,
            None if nothing or only a part is), ``complete`` (no read computes anything now).
        """
        levels = self.levels()
        state = levels.source.lane.refresh()
        node = levels.source.lane.node_id
        found = []
        for number, level in enumerate(levels.stored):
            if level is not None:
                own = level.catalog()[1].get(node)
                upto = None if own is None or own.upto is None else own.upto[1]
                complete = levels.is_complete(number, state)
                name = level.spec.name
                each = {"level": number, "name": name, "source_upto": upto, "complete": complete}
                found.append(each)
        return found

    def update(self, progress: Callable[[int, int], object] | None = None) -> int:
        """Store what is missing; as `DicedArray.update_pyramid`."""
        repo = self.source._repo
        repo._check_writable()
        if not self.top:
            return 0
        self._count = self.top  # also while only some are stored
        self._create()
        levels = self.levels(checked=True)
        lane = levels.source.lane
        state = lane.refresh()  # of the whole update, so that each level finds the one below stored
        user = repo._history.user
        return sum(
            levels.update(number, state, lane.node_id, user, progress)
            for number in range(1, self.top + 1)
        )

    def _create(self) -> None:
        """Create the arrays of levels that there are none of."""
        history, array = self.source._repo._history, self.source._spec
        while len(self._specs) < self.top:
            number = len(self._specs) + 1
            shifts = self.levels().shifts[number]
            fields = {
                **level_fields(array, number, shifts),
                "kind": KIND, "versioned": False, "step": list(self.steps[number - 1]),
                "method": self.method, "axes": self._used_axes, "attrs": {},
            }  # fmt: skip
            for name in (fields["name"], f".pyramid/{array.id}/{number}"):
                try:
                    history.create_array(array.node, {**fields, "name": name})
                    break
                except AlreadyExistsError:
                    # By another updater, or somebody's array has that name.
                    if len(stored_levels(history.view(), array.id)) >= number:
                        break
            self._resolve(history.view())
            self._made = None
            if len(self._specs) < number:
                name = self.source.name
                raise NotFoundError(f"array {name!r}: its pyramid was deleted meanwhile")

    def delete(self) -> None:
        """Delete all that is stored, of all versions. The levels can still be read."""
        repo = self.source._repo
        for spec in reversed(stored_levels(repo._history.view(), self.source._spec.id)):
            repo.delete_array(spec.name)
        self._resolve(repo._history.view())
        self._made = None


def stored_levels(view: View, array_id: str) -> list[ArraySpec]:
    """Return the arrays that store levels of an array, from 1 as far as there is no gap."""
    found = {
        spec.fields["level"]: spec
        for spec in view.arrays.values()
        if spec.kind == KIND and spec.fields["of"] == array_id
    }
    levels: list[ArraySpec] = []
    while len(levels) + 1 in found:
        levels.append(found[len(levels) + 1])
    return levels


def _stored_level(repo: DicedRepo, spec: ArraySpec) -> StoredLevel:
    history = repo._history
    home: Home = history.home
    return StoredLevel(home, history.lane(spec, NO_NODE), spec, repo.store.threads)


class Chooser:
    """Chooses, for one version, which version's blocks of a level it had best use.

    Its own, else those of the nearest ancestor that has any, else those of any other: all are
    compared with what is read, so that the choice is one of speed.
    """

    def __init__(self, history: History, node_id: str):
        self._history = history
        self._node_id = node_id
        self._chosen: dict[str, tuple[int, str]] = {}  # of each level's array

    def __call__(self, level: StoredLevel) -> Stored:
        number, catalog = level.catalog()
        own = catalog.get(self._node_id)
        if own is not None:
            return own
        if not catalog:
            return NOTHING
        known = self._chosen.get(level.spec.id)
        if known is None or known[0] != number:
            known = number, self._nearest(self._history.known().dag, catalog)
            self._chosen[level.spec.id] = known
        return catalog.get(known[1], NOTHING)

    def _nearest(self, dag: Dag, catalog: dict[str, Stored]) -> str:
        seen = {self._node_id}
        ring = [self._node_id]
        while ring:
            following = []
            for each in ring:
                if each in catalog:
                    return each
                node = dag.nodes.get(each)
                following += [] if node is None else [p for p in node.parents if p not in seen]
                seen.update(following)
            ring = following
        known = [each for each in catalog if each in dag.nodes]
        return max(known, key=lambda each: dag.nodes[each].number, default="")


# -- for the server ----------------------------------------------------------------------------


def level(array: Any, number: int) -> Any:
    """Return a level of an array's pyramid; 0 is the array itself."""
    return array.pyramid(number or None)[number]
