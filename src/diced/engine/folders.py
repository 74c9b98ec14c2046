"""The directories below a local engine's root: made when they are needed, and durable."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from diced.engine.aside import Flushes
from diced.engine.base import Durability
from diced.engine.netfs import Fresh
from diced.engine.posix import folder, sync_directory
from diced.errors import LocationError

T = TypeVar("T")

_MAX_SYNCS = 1024


class Folders:
    """Makes and syncs directories, which are named by their keys; "" is the root.

    Parameters
    ----------
    root : str
    durability : {"power", "process"}
    system : module
        As of `LocalEngine`.
    fresh : Fresh or None
        What sees past the caches of a network file system.
    """

    def __init__(self, root: str, durability: Durability, system: Any, fresh: Fresh | None) -> None:
        self._root = root
        self._durability = durability
        self._os = system
        self._fresh = fresh
        self._made: set[str] = set()  # known to exist, durably
        self._syncs: dict[str, Flushes] = {}

    def within(self, directory: str, action: Callable[[], T]) -> T:
        """Do something in a directory, making it if need be."""
        self._make(directory)
        try:
            return action()
        except FileNotFoundError:
            above = directory  # removed behind our back: forget what we knew of it
            while above:
                self._made.discard(above)
                above = folder(above)
            if self._fresh is not None:
                self._fresh.refresh(directory)
        self._make(directory)
        return action()

    def _make(self, directory: str) -> None:
        """Make a directory below the root; at power durability its own name is durable too."""
        if not directory or directory in self._made:
            return
        parent = folder(directory)
        self._make(parent)
        try:
            self._os.mkdir(f"{self._root}/{directory}")
        except FileExistsError:
            pass  # whoever made it may not have synced it yet, so this engine does too
        except FileNotFoundError as error:
            if not os.path.isdir(self._root):
                raise LocationError(f"the directory {self._root!r} is gone") from error
            raise
        if not directory.startswith("."):
            self.sync(parent)
        self._made.add(directory)

    def sync(self, directory: str, failures: int | None = None) -> None:
        """Make the names in a directory durable, shared by threads that want it at once.

        `failures` is as in `Flushes.join`.
        """
        if self._durability != "power":
            return
        path = f"{self._root}/{directory}" if directory else self._root
        self._flushes(directory).join(lambda: sync_directory(self._os, path), failures=failures)

    def failures(self, directory: str) -> int | None:
        """Return how many syncs of a directory failed so far; None if it is never synced."""
        return self._flushes(directory).failures if self._durability == "power" else None

    def _flushes(self, directory: str) -> Flushes:
        found = self._syncs.get(directory)
        if found is None:
            if len(self._syncs) >= _MAX_SYNCS:
                self._syncs.clear()  # who is in one stays there; it is only not shared any more
            found = self._syncs.setdefault(directory, Flushes(threading.Lock()))
        return found

    def prune(self, directory: str) -> None:
        """Remove a directory's empty directories, and itself if it is empty then."""
        for path, _, _ in os.walk(f"{self._root}/{directory}", topdown=False):
            with contextlib.suppress(OSError):  # not empty, or somebody else was faster
                os.rmdir(path)

    def forked(self) -> None:
        """In a forked child: running syncs are the parent's."""
        self._syncs = {}


def make_root(root: str, durability: str) -> None:
    """Make a directory and its parents, durably if asked."""
    parent = os.path.dirname(root)
    if not os.path.isdir(parent):
        make_root(parent, durability)
    os.makedirs(root, exist_ok=True)
    if durability == "power":
        sync_directory(os, parent)
