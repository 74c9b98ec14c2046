"""A cache bounded by memory: what was used of late stays.

Owns what is kept and what goes; knows nothing of what the values are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Generic, Protocol, TypeVar


class Cached(Protocol):
    """What can be kept: it knows its size, and whether it was asked for of late."""

    nbytes: int
    used: bool


V = TypeVar("V", bound=Cached)


class Cache(Generic[V]):
    """Immutable values by key, bounded by memory; safe among threads.

    A value that is there is found without a lock and only marked as used; the oldest goes first,
    but a marked one is given a second turn.

    Parameters
    ----------
    budget_bytes : int
        Limit on the sum of the values' `nbytes`; a value above it is not kept.

    Attributes
    ----------
    nbytes : int
        The sum now.
    """

    def __init__(self, budget_bytes: int):
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[Any, V] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        """Make the lock anew: at birth and after a fork, which may have come amid a `put`."""
        self._lock = threading.Lock()
        self.nbytes = sum(value.nbytes for value in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Any) -> V | None:
        """Return the value of a key, or None."""
        value = self._kept.get(key)
        if value is not None:
            value.used = True
        return value

    def put(self, key: Any, value: V) -> V:
        """Keep a value, and return the one that is kept: another thread's may be there already."""
        if value.nbytes > self.budget_bytes:
            return value
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                self._make_room(value.nbytes)
                self._kept[key] = kept = value
                self.nbytes += value.nbytes
        return kept

    def clear(self) -> None:
        """Let everything go."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

    def _make_room(self, size: int) -> None:
        while self.nbytes + size > self.budget_bytes:
            key, value = next(iter(self._kept.items()))
            if value.used:
                value.used = False
                self._kept.move_to_end(key)
            else:
                del self._kept[key]
                self.nbytes -= value.nbytes
