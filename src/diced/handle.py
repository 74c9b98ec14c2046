"""What array handles of every kind share: they follow the current version of their repo."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from diced.attrs import Attributes
from diced.described import Described
from diced.errors import CorruptError, EngineError, LockedError, NotFoundError
from diced.moment import moment
from diced.spec import ArraySpec
from diced.state import Prepare, State
from diced.versioned import Lane

if TYPE_CHECKING:
    from diced.repo import DicedRepo


P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[Any, P], T]


def together(lane: bool = True) -> Callable[[Method[P, T]], Method[P, T]]:
    """Have a method ask for all that is newer side by side, where a question takes long.

    `lane`: the array's own log, too; a write finds out when it commits.
    """

    def wrap(method: Method[P, T]) -> Method[P, T]:
        @functools.wraps(method)
        def wrapped(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            repo = self._repo
            if not repo.remote:
                return method(self, *args, **kwargs)
            with moment(repo._lanes_for(self._spec, lane, self._is_due())):
                return method(self, *args, **kwargs)

        return cast(Method[P, T], wrapped)

    return wrap


# Seconds for which a handle at a locked version, where nothing can change, believes that its
# array was not deleted; on a bucket so many times `max_age`. Looking takes half of a voxel's time.
LOCKED_AGE = 1.0
LOCKED_AGES = 10


class Handle(Described):
    """An array of any kind at the version that its repo object is at.

    Parameters
    ----------
    repo : DicedRepo
    spec : ArraySpec
    """

    def __init__(self, repo: DicedRepo, spec: ArraySpec):
        self._repo = repo
        self._spec = spec
        self._looked = float("-inf")  # when the metadata were last asked whether it is there

    def _is_due(self) -> bool:
        """Tell whether a call is to ask the metadata whether the array is there."""
        repo = self._repo
        if not self._spec.versioned or repo._locked_id != repo._node_id:
            return True
        age = LOCKED_AGES * repo.store.engine.max_age if repo.remote else LOCKED_AGE
        return time.monotonic() - self._looked >= age

    @property
    def versioned(self) -> bool:
        """False if the content is the same at every version."""
        return self._spec.versioned

    @property
    def locked(self) -> bool:
        """True if nothing can be written here, because the version is locked."""
        return self._spec.versioned and self._repo.locked

    @property
    def attrs(self) -> Attributes:
        """JSON attributes, the same at every version."""

        def edit(change: Any) -> None:
            self._repo._check_writable()

            def fields(stored: dict[str, Any]) -> dict[str, Any]:
                return {**stored, "attrs": change(stored.get("attrs", {}))}

            self._repo._history.edit_array(self._spec.id, fields)

        return Attributes(
            f"array {self.name!r}", lambda: dict(self._fields().get("attrs", {})), edit
        )

    @together(lane=False)
    def _fields(self) -> dict[str, Any]:
        return self._repo._spec(self._spec).fields

    def _commit(
        self, lane: Lane, prepare: Prepare, operation: str, state: State | None = None
    ) -> None:
        try:
            lane.commit(prepare, op=operation, user=self._repo._history.user, state=state)
        except LockedError:
            raise LockedError(f"array {self.name!r}: {self._repo._locked_message()}") from None
        except (CorruptError, EngineError):
            self._repo._check_there(self._spec)
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_array, (self._repo, self._spec.id, self.name)


def _reopen_array(repo: DicedRepo, array_id: str, name: str) -> Any:
    """Return a pickled handle's array; another one of its name is not it."""
    known = repo._history.view().by_name.get(name)
    if known is None or known.id != array_id:
        repo._history.meta.lane.probe()  # it may be newer than what this process knows
    array = repo.get_array(name)
    if array._spec.id != array_id:
        raise NotFoundError(f"array {name!r} was deleted, and another one created")
    return array
