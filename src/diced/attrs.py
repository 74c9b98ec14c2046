"""A persistent mapping of JSON values: attributes of arrays, information of stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from diced import jsontext
from diced.errors import InvalidError, NotFoundError, near_matches


class Attributes(MutableMapping[str, Any]):
    """JSON values by name. Every read is fresh; every assignment is one commit.

    Parameters
    ----------
    what : str
        For messages.
    read : callable
        Returns the current dict.
    edit : callable
        Takes a function from dict to dict, applies it atomically to what is stored.
    """

    def __init__(
        self,
        what: str,
        read: Callable[[], dict[str, Any]],
        edit: Callable[[Callable[[dict[str, Any]], dict[str, Any]]], None],
    ):
        self._what = what
        self._stored = read
        self._edit = edit

    def _read(self) -> dict[str, Any]:
        # A copy: what a caller changes in a value is not stored until it is assigned.
        values: dict[str, Any] = jsontext.loads(jsontext.dumps(self._stored()))
        return values

    def __getitem__(self, key: str) -> Any:
        values = self._read()
        if key not in values:
            raise NotFoundError(f"{self._what} has no {key!r}" + near_matches(key, values))
        return values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several values in one commit."""
        new = jsontext.loads(check_json(self._what, dict(*args, **kwargs)))
        self._edit(lambda values: {**values, **new})

    def __delitem__(self, key: str) -> None:
        self[key]
        self._edit(lambda values: {k: v for k, v in values.items() if k != key})

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"Attributes({self._read()!r})"


def check_json(what: str, values: dict[str, Any]) -> bytes:
    """Return `values` as JSON, or raise InvalidError unless they are that with text keys."""
    for key in values:
        if not isinstance(key, str):
            raise InvalidError(f"{what}: a name is text; got {key!r}")
    try:
        return jsontext.dumps(values)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"{what}: {error}; values must be JSON") from None
