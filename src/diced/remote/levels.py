"""Pyramids of arrays on a server, and their levels as arrays to be read.

Our server tells what a level is and stores what is missing; any level is read as ``raw`` with
``scale=``. Janelia's keeps levels of labelarray and labelmap itself, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from diced.attrs import Attributes
from diced.downsample import MAX_DIMS, MODE, check_method, cumulative, plan_steps
from diced.errors import (
    BadIndexError,
    DicedException,
    EngineError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from diced.grid import Box
from diced.remote import native
from diced.remote.facts import INDEXED
from diced.remote.http import spell
from diced.remote.voxels import Voxels
from diced.spec import ArraySpec

if TYPE_CHECKING:
    from diced.remote.array import RemoteArray as Base
else:
    Base = object


class _Facts:
    """What a pyramid is at one moment."""

    def __init__(self, method: str, axes: Any, steps: list[tuple[int, ...]]):
        self.method = method
        self.axes = axes  # as they are sent, so that another pyramid is not taken for this one
        self.steps = steps
        self.levels: list[dict[str, Any]] = []  # of our server, from 1
        self.status: list[dict[str, Any]] = []


class RemotePyramid(Sequence[Any]):
    """An array on a server and its levels, from 0; as `diced.multiscale.Pyramid`.

    Made by `RemoteArray.pyramid`.

    Attributes
    ----------
    source : RemoteArray
    top : int
        The last level.
    method : str
    axes : list of int, str or None
        What was halved.
    steps : list of tuple of int
        Factors per axis, from each level to the next.
    """

    def __init__(self, source: Base, count: int | None, axes: Any, method: str | None):
        self.source = source
        self._at = source._repo
        self._ours = self._at.store.ours
        self._learn(count, axes, method)

    def _learn(self, count: int | None, axes: Any, method: str | None, status: bool = False) -> Any:
        ask = _ours if self._ours else _others
        facts = ask(self.source, count, axes, method, status)
        self.method, self.axes, self.steps = facts.method, facts.axes, facts.steps
        self.top = len(facts.steps)
        self._levels = facts.levels
        return facts

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
        return self.source if number == 0 else self.source._level(self, number)

    def __repr__(self) -> str:
        stored = sum(each["id"] is not None for each in self._levels)
        return f"<pyramid of {self.source!r}: {self.top} levels, {stored} stored>"

    def spec(self, number: int) -> ArraySpec:
        """Return the description of a level, as that of an array on the server."""
        spec = self.source._spec
        told = self._levels[number - 1] if self._levels else {}
        fields = {
            **spec.fields,
            "name": told.get("name", f"{spec.name}_{number}"),
            "codec": told.get("codec", spec.codec),
        }
        # What tells the content from others: that of a level depends on how it is made.
        how = ".".join("".join(map(str, step)) for step in self.steps[:number])
        return ArraySpec(f"{spec.id}/{self.method}/{how}", fields)

    def stored_id(self, number: int) -> str | None:
        """Return the id of the array that stores a level, or None."""
        return self._levels[number - 1]["id"] if self._levels else None

    # -- storing ---------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """Tell what is stored of the current version; as `diced.multiscale.Pyramid.status`.

        Janelia's server keeps all levels of what has levels there, in the array itself.
        """
        found: list[dict[str, Any]] = self._learn(self.top, self.axes, self.method, True).status
        return found

    def update(self, progress: Callable[[int, int], object] | None = None) -> int:
        """Have the server store what is missing; as `DicedArray.update_pyramid`."""
        self._check_ours("stores no pyramids when it is told to: those of labels are always there")
        repo = self.source._repo
        repo._check_writable()
        body = {"levels": self.top, "axes": self.axes, "method": self.method}
        path = spell("node", repo.uuid, self.source.name, "diced", "pyramid")
        done: dict[int, int] = {}
        complete = False
        while not complete:
            reply = repo.store.server.post_json(path, body)
            found = reply.json()
            try:
                complete = bool(found["complete"])
                fresh = {int(level): int(count) for level, count in found["blocks"].items()}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise EngineError(
                    f"the answer is not diced's: {error!r} [{reply.request}]"
                ) from None
            for level, count in fresh.items():
                done[level] = done.get(level, 0) + count
                if progress is not None:
                    progress(level, done[level])
        repo.store._forget(repo.root)
        self._learn(self.top, self.axes, self.method)
        return sum(done.values())

    def delete(self) -> None:
        """Delete all that is stored, of all versions. The levels can still be read."""
        self._check_ours("deletes no levels: they belong to the array")
        repo = self.source._repo
        repo._check_writable()
        path = spell("node", repo.uuid, self.source.name, "diced", "pyramid")
        repo.store.server.ask("DELETE", path)
        repo.store._forget(repo.root)
        self._learn(self.top, self.axes, self.method)

    def _check_ours(self, why: str) -> None:
        if not self._ours:
            raise UnsupportedError(f"{self._at.store.url} {why}")


def pyramid_of(source: Base, levels: Any, axes: Any, method: Any) -> RemotePyramid:
    """Return an array's pyramid, once its arguments, of any type, are what they may be."""
    spec = source._spec
    if not 1 <= spec.dims <= MAX_DIMS:
        raise InvalidError(
            f"array {spec.name!r}: arrays of 1 to {MAX_DIMS} dimensions have pyramids; this one has"
            f" {spec.dims}"
        )
    if levels is not None and type(levels) is not int:
        raise InvalidError(f"levels are whole numbers; got {levels!r:.60}")
    if isinstance(axes, Iterable) and not isinstance(axes, str):
        axes = list(axes)
    plan_steps((1.0,) * spec.dims, 0, axes)
    axes = sorted(set(axes)) if isinstance(axes, list) else axes
    if method is not None:
        check_method(method, spec.dtype)
    return RemotePyramid(source, levels, axes, method)


def _ours(source: Base, count: int | None, axes: Any, method: str | None, status: bool) -> _Facts:
    """Ask our own server."""
    spec = source._spec
    found = native.pyramid(source._repo, spec.name, count, axes, method, status)
    try:
        if found["id"] != spec.id:
            raise NotFoundError(f"array {spec.name!r} was deleted, and another one created")
        steps = [tuple(int(factor) for factor in step) for step in found["steps"]]
        facts = _Facts(str(found["method"]), found["axes"], steps)
        facts.levels = [
            {key: each[key] for key in ("name", "id", "codec", "block_shape")}
            for each in found["levels"]
        ]
        facts.status = list(found.get("status", ()))
        if any(len(each["block_shape"]) != spec.dims for each in facts.levels):
            raise UnsupportedError(
                f"array {spec.name!r} is a volume one voxel thick on the server; such have no"
                " pyramids here"
            )
        if len(facts.levels) != len(steps):
            raise ValueError("levels and steps differ")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DicedException):
            raise
        raise EngineError(
            f"the server's description of the pyramid of {spec.name!r} is not diced's: {error!r}"
        ) from None
    return facts


def _others(source: Base, count: int | None, axes: Any, method: str | None, status: bool) -> _Facts:
    """Ask a server of Janelia's, which halves all axes of labels by voting."""
    spec, repo = source._spec, source._repo
    if spec.fields["type"] not in INDEXED:
        raise UnsupportedError(
            f"array {spec.name!r}: by DVID's API only labelarray and labelmap have levels, this is"
            f" {spec.fields['type']}; lower resolutions of images are instances of their own there,"
            f" {spec.name}_1, {spec.name}_2, ...: open them by name, or create and write them"
        )
    most = int(repo._info(spec.name).get("Extended", {}).get("MaxDownresLevel") or 0)
    count = most if count is None else count
    if not 0 <= count <= most:
        raise InvalidError(f"array {spec.name!r} has levels 0 to {most} on the server; got {count}")
    every = list(range(spec.dims))
    if axes not in (None, every) or method not in (None, MODE):
        raise UnsupportedError(
            f"array {spec.name!r}: the server made its levels by {MODE!r}, halving all axes; got"
            f" axes {axes!r:.60} and method {method!r:.60}"
        )
    facts = _Facts(MODE, None, plan_steps((1.0,) * spec.dims, count))
    facts.status = [
        {"level": number, "name": spec.name, "source_upto": None, "complete": True}
        for number in range(1, count + 1)
    ]
    return facts


class LevelVoxels(Voxels):
    """The voxels of a level: those of its array, at a scale."""

    def __init__(self, level: Level, uuid: str):
        super().__init__(level, uuid)
        self._path = spell("node", uuid, level.source.name)
        self._query = {"scale": level.number}
        if self._store.ours:
            # Told always: what is stored now may be another pyramid than that of this handle.
            axes = range(self.spec.dims) if level._axes is None else level._axes
            self._query |= {"axes": native.axes_text(axes), "method": level._method}


class Level(Base):
    """What a level on a server does otherwise than an array there.

    Attributes
    ----------
    source : RemoteArray
    number : int
        1 is half the resolution.
    """

    def __init__(self, pyramid: RemotePyramid, number: int):
        super().__init__(pyramid.source._repo, pyramid.spec(number))
        self.source = pyramid.source
        self.number = number
        self._pyramid = pyramid
        self._axes, self._method = pyramid.axes, pyramid.method
        self._array_id = pyramid.stored_id(number)
        self._shifts = cumulative(pyramid.steps[:number], self._spec.dims)[number]

    def __repr__(self) -> str:
        return f"<level {self.number} of {self.source!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.source, self.number, self._axes, self._method)

    # -- description -----------------------------------------------------------------------

    @property
    def attrs(self) -> Attributes:
        """Its own, the same at every version; of a level that is not stored there are none."""
        if self._array_id is None:
            return Attributes(f"array {self.name!r}", dict, lambda _change: self._refuse())
        stored = self._repo._attributes(ArraySpec(self._array_id, self._spec.fields))

        def read() -> dict[str, Any]:
            try:
                return stored._stored()
            except NotFoundError:
                self.source._fields()  # only the pyramid was deleted, or this is not found either
                return {}

        return Attributes(f"array {self.name!r}", read, stored._edit)

    def _fields(self) -> dict[str, Any]:
        fields = self.source._fields()
        sizes = [size * 2**s for size, s in zip(fields["voxel_size"], self._shifts, strict=True)]
        return {**self._spec.fields, "units": fields["units"], "voxel_size": sizes}

    def _box(self) -> Box | None:
        box = self.source._box()
        if box is None:
            return None
        return (
            tuple(a >> s for a, s in zip(box[0], self._shifts, strict=True)),
            tuple(-(-b >> s) for b, s in zip(box[1], self._shifts, strict=True)),
        )

    def blocks(self) -> Iterator[tuple[int, ...]]:
        """Yield the blocks that have blocks of the array below them."""
        done = set()
        for each in self.source.blocks():
            place = tuple(a >> s for a, s in zip(each, self._shifts, strict=True))
            if place not in done:
                done.add(place)
                yield place

    # -- what it is made of ----------------------------------------------------------------

    def _voxels(self) -> Voxels:
        return LevelVoxels(self, self._repo.uuid)

    def _bound(self) -> Any:
        source = self.source._bound()
        return source._level(
            RemotePyramid(source, self.number, self._axes, self._method), self.number
        )

    def pyramid(
        self, levels: int | None = None, *, axes: Any = None, method: str | None = None
    ) -> NoReturn:
        """Refuse: it is part of a pyramid."""
        raise InvalidError(f"array {self.name!r} is a level; ask {self.source.name!r}")

    def level(self, number: int) -> NoReturn:
        """Refuse: it is part of a pyramid."""
        self.pyramid()

    # -- writing ---------------------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        raise ReadOnlyError(
            f"array {self.name!r} is level {self.number} of the pyramid of {self.source.name!r}:"
            " write there"
        )

    def _writable_voxels(self) -> Voxels:
        self._refuse()

    def write_plane(self, origin: Any, u: Any, v: Any, values: Any) -> None:
        """Refuse: levels cannot be written."""
        self._refuse()

    def session(self, operation: str = "session", *, resume: str | None = None) -> Any:
        """Refuse: levels cannot be written."""
        self._refuse()


def _reopen(source: Any, number: int, axes: Any, method: str) -> Any:
    return RemotePyramid(source, number, axes, method)[number]
