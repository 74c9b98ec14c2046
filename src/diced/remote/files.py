"""Keyvalue instances of a server, ``.files`` among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from diced import pool, protobuf
from diced.errors import EngineError, InvalidError, NotFoundError, UnsupportedError
from diced.files import KeyValueArray
from diced.remote.array import RemoteHandle
from diced.spec import MAX_TEXT, ArraySpec, check_text
from diced.values import MAX_VALUE

if TYPE_CHECKING:
    from diced.remote.repo import RemoteRepo

T = TypeVar("T")

PIECE_BYTES = 8 * 2**20


class RemoteFiles(RemoteHandle, KeyValueArray):
    """A mapping from text to bytes on a server, at the version that its repo object is at.

    All is as of `KeyValueArray`. What stores several values is one commit on our server, on others
    a value at a time; what deletes several is a request for each there.

    Parameters
    ----------
    repo : RemoteRepo
    spec : ArraySpec
    there : bool
        False: the instance is created by the first write, as ``.files`` of repos that diced did
        not make.
    """

    def __init__(self, repo: RemoteRepo, spec: ArraySpec, there: bool = True):
        super().__init__(repo, spec)
        self._there = there

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<RemoteFiles {self.name!r} at {state} version {self._repo.uuid[:12]}>"

    # -- reading ---------------------------------------------------------------------------

    def __getitem__(self, key: str) -> bytes:
        self._key(key)
        found = self.get(key)
        if found is None:
            raise NotFoundError(
                f"no key {key!r} in {self.name!r} at version {self._repo.uuid[:12]}"
            )
        return bytes(found)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        if not key:
            return default
        self._key(key)
        if not self._exists():
            return default
        if not fits_path(key):
            # An empty value is what the answer has for keys that are not there, too.
            found = self._fetch([key])[key]
            return found if found or self._listed(key) else default
        reply = self._ask("GET", "key", key, wanted=(200, 404))
        return reply.body if reply.status == 200 else default

    def find(self, key: str) -> Any:
        """Return a handle of the value that a key has now, which is read whole, or None."""
        self._key(key)
        found = self.get(key)
        return None if found is None else RemoteValue(found)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or not key or not self._exists():
            return False
        self._key(key)
        if not fits_path(key):
            return self._listed(key)
        return self._ask("HEAD", "key", key, wanted=(200, 404)).status == 200

    def keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None
    ) -> Iterator[str]:
        """Yield keys in order; arguments as of `KeyValueArray.keys`."""
        begin = self._text(prefix)
        low = max(begin, self._text(start or ""))
        last = None if stop is None else self._text(stop)
        if not self._exists():
            return
        for key in self._names(low.decode("utf-8", "ignore"), prefix):
            name = key.encode()
            if name.startswith(begin) and name >= low and (last is None or name < last):
                yield key

    def _names(self, low: str, prefix: str) -> list[str]:
        """Return keys in order, of a part that holds all from `low` with a prefix."""
        high = _beyond(prefix.partition("/")[0])
        low = low.partition("/")[0]
        # What stands in a path must not be empty or mean something there.
        if high is not None and low and fits_path(low) and fits_path(high):
            found = self._ask("GET", "keyrange", low, high).json(list)
        else:
            found = self._ask("GET", "keys").json(list)
        return sorted(map(str, found), key=str.encode)

    def items(
        self, prefix: str = "", start: str | None = None, stop: str | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Yield (key, value) in order of key, several requests at a time."""
        names = list(self.keys(prefix, start, stop))
        for name, value in pool.map_ordered(
            lambda name: (name, self.get(name)), names, self._repo.store.threads
        ):
            if value is not None:  # else deleted meanwhile
                yield name, value

    def get_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (key, value or None) in the order of `names`, several requests at a time."""

        def read(name: str) -> tuple[str, bytes | None]:
            self._key(name)
            return name, self.get(name)

        yield from pool.map_ordered(read, names, self._repo.store.threads)

    def sizes(self, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
        """Yield (key, bytes of its value or None) in the order of `names`."""

        def size(name: str) -> tuple[str, int | None]:
            self._key(name)
            if fits_path(name) and self._exists():
                reply = self._ask("HEAD", "key", name, wanted=(200, 404))
                length = reply.headers.get("Content-Length")
                if reply.status == 404:
                    return name, None
                if length is not None and length.isdigit() and int(length):
                    return name, int(length)
            found = self.get(name)
            return name, None if found is None else len(found)

        yield from pool.map_ordered(size, names, self._repo.store.threads)

    def __len__(self) -> int:
        return sum(1 for _ in self.keys())

    def _fetch(self, names: list[str]) -> dict[str, bytes]:
        """Return values by the request that takes any key; absent ones are empty."""
        reply = self._ask("GET", "keyvalues", body=protobuf.keys(names))
        try:
            found = {key: bytes(value) for key, value in protobuf.read_key_values(reply.body)}
        except InvalidError as error:
            raise EngineError(f"the answer is no KeyValues: {error} [{reply.request}]") from None
        return {**dict.fromkeys(names, b""), **found}

    def _listed(self, key: str) -> bool:
        return any(each == key for each in self._names(key, key))

    # -- writing ---------------------------------------------------------------------------

    def __setitem__(self, key: str, value: bytes | str) -> None:
        self._key(key)
        self.put_many({key: value}, operation=f"put {key}"[:MAX_TEXT])

    def put_many(self, values: Mapping[str, bytes | str], *, operation: str = "put") -> None:
        """Store several values: one commit on our server."""
        self._repo._check_writable(self._spec)
        if not isinstance(values, Mapping):
            raise InvalidError(f"put_many takes a mapping; got {type(values).__name__}")
        check_text(f"{self.name!r}: the operation", operation)
        data = {key: as_bytes(value) for key, value in values.items() if self._key(key)}
        if not data:
            return
        (name, value), *more = data.items()
        if not more and fits_path(name):
            self._change(lambda: self._ask("POST", "key", name, body=value))
            return
        body = protobuf.key_values(data)
        if len(body) > 2 * MAX_VALUE:
            raise InvalidError(
                f"{self.name!r}: what is stored together has at most {2 * MAX_VALUE} bytes;"
                f" got {len(body)}"
            )
        self._change(lambda: self._ask("POST", "keyvalues", body=body))

    def __delitem__(self, key: str) -> None:
        self._repo._check_writable(self._spec)
        if key not in self:
            self._key(key)
            self._check_open()
            raise NotFoundError(f"no key {key!r} in {self.name!r}")
        self._delete(key)

    def delete_many(self, names: list[str], *, operation: str = "delete") -> None:
        """Delete several keys; absent ones are ignored. Only on our server that is one commit."""
        self._repo._check_writable(self._spec)
        if isinstance(names, str):
            raise InvalidError(f"delete_many takes a list of names; got {names!r}")
        for name in names:
            self._key(name)
        check_text(f"{self.name!r}: the operation", operation)
        if self._repo.store.ours:
            self._delete_all(names, operation)
            return
        for name in names:
            if fits_path(name) or name in self:
                self._delete(name)

    def _delete(self, key: str) -> None:
        if self._repo.store.ours:
            self._delete_all([key], f"delete {key}"[:MAX_TEXT])
            return
        if not fits_path(key):
            raise UnsupportedError(
                f"{self.name!r}: this server cannot delete the key {key!r}; keys with '/' have no"
                " place in DVID's URLs"
            )
        self._change(lambda: self._ask("DELETE", "key", key))

    def _delete_all(self, names: list[str], operation: str) -> None:
        """Delete keys in one commit of our server."""
        body = json.dumps({"keys": names, "operation": operation}).encode()
        self._change(lambda: self._ask("POST", "diced", "delete", body=body))

    def _change(self, act: Callable[[], T]) -> T:
        def make_and_act() -> T:
            if not self._exists():
                self._check_open()
                self._repo._create_keyvalue(self.name)
                self._there = True
            return act()

        return self._alter(make_and_act)

    # -- place -----------------------------------------------------------------------------

    def _exists(self) -> bool:
        if not self._there:
            self._there = self.name in self._repo
        return self._there


class RemoteValue:
    """A value as it was when it was found; as `Value`.

    Attributes
    ----------
    size : int
        Bytes.
    """

    def __init__(self, data: bytes):
        self._data = memoryview(data)
        self.size = len(data)

    def read(self, start: int = 0, stop: int | None = None) -> memoryview:
        """Return its bytes from `start` up to and without `stop`."""
        return self._data[start:stop]

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yield what `read` returns, some MiB at a time."""
        data = self.read(start, stop)
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]


def as_bytes(value: Any) -> bytes:
    """Return a value as it is sent, or raise InvalidError."""
    try:
        data = value.encode() if isinstance(value, str) else memoryview(value).tobytes()
    except (TypeError, ValueError):
        raise InvalidError(f"a value is bytes or valid text; got {value!r:.80}") from None
    if len(data) > MAX_VALUE:
        raise InvalidError(f"a value has at most {MAX_VALUE} bytes; got {len(data)}")
    return data


def fits_path(key: str) -> bool:
    """Tell whether a key can stand in a URL: DVID would cut it at a slash, quoted or not."""
    return "/" not in key and key not in (".", "..")


def _beyond(prefix: str) -> str | None:
    """Return text behind all that begins with a prefix in the order of UTF-8, or None."""
    trimmed = prefix.rstrip("\U0010ffff")
    if not trimmed:
        return None
    last = ord(trimmed[-1]) + 1
    return trimmed[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)
