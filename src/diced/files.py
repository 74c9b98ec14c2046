"""Keyvalue arrays: named byte values in a version, in order of name. ``.files`` is one.

Small values ride in the index; larger ones are frames. A deletion hides a key at this version and
its descendants only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from diced import pool
from diced.errors import InvalidError, NotFoundError, near_matches
from diced.handle import Handle, together
from diced.log import Entry
from diced.segment import MAX_KEY, Frames
from diced.spec import MAX_TEXT, check_text
from diced.state import Change, State
from diced.values import Value, load_value, store_value, value_size
from diced.versioned import Lane

T = TypeVar("T")
R = TypeVar("R")

SPACE = 0
MANY = 256  # keys that are looked up at once
AHEAD = 16  # values that are read side by side where reading is a request
AHEAD_BYTES = 2**21  # stored; larger ones are read when it is their turn


class KeyValueArray(Handle):
    """A mapping from text to bytes at the version that its repo object is at.

    Keys are any text whose UTF-8 form has 1 to 4,096 bytes; their order is that of the UTF-8
    bytes. Values are bytes (text is stored as UTF-8) of up to 1 GiB.
    """

    @staticmethod
    def describe(name: str, **_options: Any) -> dict[str, Any]:
        """Return what is stored of the options of ``create_array``: none apply here."""
        return {}

    # -- reading ---------------------------------------------------------------------------

    @together()
    def __getitem__(self, key: str) -> bytes:
        lane = self._lane()
        state = lane.refresh()
        name = self._key(key)
        entry = lane.get(state, SPACE, name)
        if entry is None:
            near = [each.decode() for each, _ in self._nearby(lane, state, name)]
            raise NotFoundError(
                f"no key {key!r} in {self.name!r} at version {self._repo.uuid[:12]}"
                + near_matches(key, near, complete=False)
            )
        return self._value(lane, name, entry)

    @together()
    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        lane = self._lane()
        if not key:
            return default
        name = self._key(key)
        entry = lane.get(lane.refresh(), SPACE, name)
        return default if entry is None else self._value(lane, name, entry)

    @together()
    def find(self, key: str) -> Value | None:
        """Return a handle of the value that a key has now, or None; reads no large value."""
        lane = self._lane()
        name = self._key(key)
        entry = lane.get(lane.refresh(), SPACE, name)
        return None if entry is None else Value(lane, SPACE, name, entry, self._where(name))

    @together()
    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or not key:
            return False
        lane = self._lane()
        return lane.get(lane.refresh(), SPACE, self._key(key)) is not None

    def keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None
    ) -> Iterator[str]:
        """Yield keys in order.

        Parameters
        ----------
        prefix : str
            Only keys that begin with it.
        start, stop : str, optional
            Only keys with ``start <= key < stop``.
        """
        for key, _ in self._range(prefix, start, stop):
            yield key.decode()

    def items(
        self, prefix: str = "", start: str | None = None, stop: str | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Yield (key, value) in order of key; arguments as for `keys`."""
        lane = self._lane()
        found = self._range(prefix, start, stop)
        # Every key of a range has a value.
        yield from self._values((key.decode(), lane, entry) for key, entry in found)  # type: ignore[misc]

    def get_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (key, value or None) in the order of `names`; all are of one moment."""
        yield from self._values(self._entries(names))

    def sizes(self, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
        """Yield (key, bytes of its value or None) in the order of `names`, reading no value."""

        def read(each: tuple[str, Lane, Entry | None]) -> tuple[str, int | None]:
            name, lane, entry = each
            key = name.encode()
            return name, None if entry is None else value_size(lane, key, entry, self._where(key))

        yield from self._side_by_side(read, self._entries(names))

    def _values(
        self, entries: Iterator[tuple[str, Lane, Entry | None]]
    ) -> Iterator[tuple[str, bytes | None]]:
        def read(each: tuple[str, Lane, Entry | None]) -> tuple[str, Lane, Any, bytes | None]:
            name, lane, entry = each
            if entry is None or (not isinstance(entry, bytes) and entry[2] > AHEAD_BYTES):
                return name, lane, entry, None
            return name, lane, entry, self._value(lane, name.encode(), entry)

        for name, lane, entry, value in self._side_by_side(read, entries):
            if value is None and entry is not None:
                value = self._value(lane, name.encode(), entry)
            yield name, value

    def _side_by_side(self, read: Callable[[T], R], each: Iterator[T]) -> Iterator[R]:
        return pool.map_ordered(read, each, AHEAD if self._repo.remote else 1)

    def _entries(self, names: Iterable[str]) -> Iterator[tuple[str, Lane, Entry | None]]:
        lane, state = self._now()
        rest = iter(names)
        while some := list(islice(rest, MANY)):
            ordered = sorted({self._key(name) for name in some})
            found = dict(zip(ordered, lane.get_many(state, SPACE, ordered), strict=True))
            for name in some:
                yield name, lane, found[name.encode()]

    @together()
    def _now(self) -> tuple[Lane, State]:
        lane = self._lane()
        return lane, lane.refresh()

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    @together()
    def __len__(self) -> int:
        return sum(1 for _ in self._range("", None, None))

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<KeyValueArray {self.name!r} at {state} version {self._repo.uuid[:12]}>"

    @together()
    def _range(
        self, prefix: str, start: str | None, stop: str | None
    ) -> Iterator[tuple[bytes, Entry]]:
        lane = self._lane()
        begin = self._text(prefix)
        low = max(begin, self._text(start or ""))
        high = _after_prefix(begin)
        if stop is not None:
            last = self._text(stop)
            high = last if high is None else min(high, last)
        return lane.scan(lane.refresh(), SPACE, low, high)

    def _nearby(self, lane: Lane, state: State, key: bytes) -> Iterator[tuple[bytes, Entry]]:
        """A few keys that begin alike: near matches without reading a million keys."""
        found = lane.scan(state, SPACE, key[:2], _after_prefix(key[:2]) if key[:2] else None)
        for _ in range(50):
            each = next(found, None)
            if each is None:
                return
            yield each

    # -- writing ---------------------------------------------------------------------------

    def __setitem__(self, key: str, value: bytes | str) -> None:
        self._key(key)  # what is wrong with it is not said of the operation
        self.put_many({key: value}, operation=f"put {key}"[:MAX_TEXT])

    @together(lane=False)
    def put_many(self, values: Mapping[str, bytes | str], *, operation: str = "put") -> None:
        """Store several values in one commit, seen whole or not at all."""
        self._repo._check_writable(self._spec)
        if not isinstance(values, Mapping):
            raise InvalidError(f"put_many takes a mapping; got {type(values).__name__}")
        check_text(f"{self.name!r}: the operation", operation)
        lane = self._lane()
        delta: dict[bytes, Entry | None] = {}
        frames = lane.home.frames()
        for key, value in values.items():
            delta[self._key(key)] = self._store(lane, self._key(key), value, frames)
        self._put(lane, delta, frames, operation)

    @together(lane=False)
    def __delitem__(self, key: str) -> None:
        self._repo._check_writable(self._spec)
        lane = self._lane()
        name = self._key(key)

        def prepare(state: State, _touched: Any) -> Change:
            if lane.get(state, SPACE, name) is None:
                raise NotFoundError(f"no key {key!r} in {self.name!r}")
            return Change({SPACE: {name: None}}, {SPACE: [name]})

        self._commit(lane, prepare, f"delete {key}")

    @together(lane=False)
    def delete_many(self, names: list[str], *, operation: str = "delete") -> None:
        """Delete several keys in one commit; absent ones are ignored."""
        self._repo._check_writable(self._spec)
        if isinstance(names, str):
            raise InvalidError(f"delete_many takes a list of names; got {names!r}")
        delta: dict[bytes, Entry | None] = {self._key(name): None for name in names}
        check_text(f"{self.name!r}: the operation", operation)
        self._put(self._lane(), delta, None, operation)

    def _put(
        self, lane: Lane, delta: dict[bytes, Entry | None], frames: Frames | None, operation: str
    ) -> None:
        if delta:
            change = Change({SPACE: delta}, {}, None, frames)
            self._commit(lane, lambda _state, _touched: change, operation)

    def _store(self, lane: Lane, name: bytes, value: bytes | str, frames: Frames) -> Entry:
        return store_value(lane, SPACE, name, value, frames)

    def _value(self, lane: Lane, name: bytes, entry: Entry) -> bytes:
        return load_value(lane, SPACE, name, entry, self._where(name))

    def _where(self, name: bytes) -> str:
        return f"key {name.decode()!r} of {self.name!r}"

    # -- place -----------------------------------------------------------------------------

    def _text(self, key: Any) -> bytes:
        if not isinstance(key, str):
            raise InvalidError(f"a key is text; got {type(key).__name__} {key!r}")
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise InvalidError(f"a key must be valid text; got {key!r}") from None

    def _key(self, key: Any) -> bytes:
        name = self._text(key)
        if not 1 <= len(name) <= MAX_KEY:
            raise InvalidError(f"a key has 1 to {MAX_KEY} bytes of UTF-8; got {len(name)}")
        return name

    def _lane(self) -> Lane:
        return self._repo._lane(self._spec)


def _after_prefix(prefix: bytes) -> bytes | None:
    """Return the first key after all keys with this prefix, or None if there is no bound."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
