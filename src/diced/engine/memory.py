"""Objects in a dict of this process: for tests, scratch stores and caches.

``memory://name`` is one set of objects for everybody in the process who says that name, until
`forget`.  ``memory://`` is a new private set; its url carries an invented name (beginning with a
dot), so that it can be reopened while an engine on it lives.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from diced import forks
from diced.engine.appender import Appender
from diced.engine.base import (
    Buffer,
    Engine,
    Turns,
    check_durability,
    check_key,
    check_range,
    flat_view,
    fresh_key,
    fresh_name,
    missing,
    short_read,
    writable_view,
)
from diced.errors import EngineError, LocationError

_is_name = re.compile(r"\.?[A-Za-z0-9_-][A-Za-z0-9._-]*").fullmatch


class _Shelf:
    """What engines of one name share.  An object that grows is a bytearray, others are bytes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes | bytearray] = {}
        self.lock = threading.Lock()
        self.turns = Turns()


_named: dict[str, _Shelf] = {}
_private: weakref.WeakValueDictionary[str, _Shelf] = weakref.WeakValueDictionary()
_shelves_lock = threading.Lock()


def open_memory(
    location: str, *, durability: str = "power", readonly: bool = False, create: bool = True
) -> MemoryEngine:
    """Open the objects called `location`; "" makes a private set.

    Raises
    ------
    LocationError
        If the name is malformed, or has no objects here and `create` is false or `readonly` true.
    """
    name = location.rstrip("/")
    if name and not _is_name(name):
        raise LocationError(f"memory store name must be of [A-Za-z0-9._-]; got {location!r}")
    with _shelves_lock:
        if not name:
            name = "." + fresh_name()
            shelf = _private[name] = _Shelf()
        else:
            found = _private.get(name) if name.startswith(".") else _named.get(name)
            if found is None:
                if name.startswith(".") or readonly or not create:
                    raise LocationError(f"no memory store {name!r} in this process")
                found = _named[name] = _Shelf()
            shelf = found
    return MemoryEngine(name, shelf, durability=durability, readonly=readonly)


def forget(name: str) -> None:
    """Let go of the objects called `name`; engines that are open on them keep them."""
    with _shelves_lock:
        _named.pop(name, None)


class MemoryEngine(Engine):
    """The engine contract over a dict; nothing in it outlives the process."""

    def __init__(self, name: str, shelf: _Shelf, *, durability: str, readonly: bool) -> None:
        self._name = name
        self._shelf = shelf
        self._closed = False
        self.durability = check_durability(durability)
        self.readonly = bool(readonly)
        forks.watch(self)

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    def put_if_absent(self, key: str, data: Buffer, txid: bytes) -> bool:
        self._check_open()
        self._check_write(key)
        value = bytes(flat_view(data))
        with self._shelf.lock:
            there = self._shelf.objects.setdefault(key, value)
            return there is value or there == value

    def put_unique(self, prefix: str, chunks: Iterable[Buffer], suffix: str = "") -> str:
        self._check_open()
        self._check_write(prefix)
        value = b"".join(flat_view(chunk) for chunk in chunks)
        return self._shelve_fresh(prefix, suffix, value)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._check_open()
        check_range(check_key(key), start, length)
        with self._shelf.lock:
            there = self._find(key)
            wanted = max(0, len(there) - start) if length is None else length
            if start + wanted > len(there):
                raise short_read(key, start, wanted, max(0, len(there) - start))
            # A memoryview, so that a range of a bytearray is copied once.
            return bytes(memoryview(there)[start : start + wanted])

    def read_into(self, key: str, start: int, out: Buffer) -> None:
        self._check_open()
        check_range(check_key(key), start, None)
        view = writable_view(out)
        with self._shelf.lock:
            there = self._find(key)
            if start + len(view) > len(there):
                raise short_read(key, start, len(view), max(0, len(there) - start))
            if len(view):  # an empty view of anything is read-only
                view[:] = memoryview(there)[start : start + len(view)]

    def exists(self, key: str) -> bool:
        self._check_open()
        return check_key(key) in self._shelf.objects

    def size(self, key: str) -> int:
        self._check_open()
        check_key(key)
        with self._shelf.lock:
            return len(self._find(key))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self._check_open()
        below = check_key(prefix) + "/" if prefix else ""
        with self._shelf.lock:
            keys = sorted(key for key in self._shelf.objects if key.startswith(below))
        return iter(keys[bisect_right(keys, after) :])

    def delete(self, key: str) -> None:
        self._check_open()
        self._check_write(key)
        with self._shelf.lock:
            self._shelf.objects.pop(key, None)

    def appender(self, prefix: str, suffix: str = "") -> Appender:
        self._check_open()
        self._check_write(prefix)
        grown = bytearray()
        return _MemoryAppender(self._shelve_fresh(prefix, suffix, grown), grown, self._shelf)

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        check_key(key)
        with self._shelf.turns.take(key):
            yield

    def close(self) -> None:
        self._closed = True

    def _find(self, key: str) -> bytes | bytearray:
        there = self._shelf.objects.get(key)
        if there is None:
            raise missing(key)
        return there

    def _shelve_fresh(self, prefix: str, suffix: str, value: bytes | bytearray) -> str:
        while True:
            key = fresh_key(prefix, suffix)
            with self._shelf.lock:
                if key not in self._shelf.objects:
                    self._shelf.objects[key] = value
                    return key

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"engine {self.url} is closed")

    def after_fork(self) -> None:
        """Make locks anew."""
        self._shelf.lock = threading.Lock()
        self._shelf.turns = Turns()


class _MemoryAppender(Appender):
    def __init__(self, key: str, grown: bytearray, shelf: _Shelf) -> None:
        super().__init__(key)
        self._grown = grown
        self._shelf = shelf

    def _write(self, offset: int, views: list[memoryview]) -> None:
        total = sum(view.nbytes for view in views)
        with self._shelf.lock:
            # A later offset may arrive first; what is between reads as zeros until it comes.
            if len(self._grown) < offset + total:
                self._grown.extend(bytes(offset + total - len(self._grown)))
            for view in views:
                self._grown[offset : offset + view.nbytes] = view
                offset += view.nbytes

    def _flush(self) -> None:
        pass

    def _release(self) -> None:
        pass


def _after_fork() -> None:
    # Another thread may have held it when the process forked.
    global _shelves_lock
    _shelves_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
