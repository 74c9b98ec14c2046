"""What a server counts of its own work, and the throttle."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from diced import log
from diced.server.answer import Refused

MAX_USERS = 10_000
TICK = 0.1  # seconds of a slot of `Load`
TICKS = 10
SLOT = 5  # numbers of one: its tick, and what was counted in it
OWN = 1 + (TICKS + 1) * SLOT  # numbers of a worker process: requests under way, and slots
COMMON = 2  # numbers of all


class Shared:
    """What the worker processes of one server have in common.

    Parameters
    ----------
    throttle : int
        Operations with ``throttle=on`` at a time.
    workers : int
    numbers : optional
        `size` integers in memory that all share; by default a list of this process.
    folder : str
        Where lock files are; empty if there is one process.

    Attributes
    ----------
    worker : int
        Which process this is, from 0.
    """

    def __init__(self, throttle: int, workers: int = 1, numbers: Any = None, folder: str = ""):
        self.numbers = [0] * self.size(workers) if numbers is None else numbers
        self.numbers[0] = throttle
        self.workers = workers
        self.worker = 0
        self.folder = folder

    @staticmethod
    def size(workers: int) -> int:
        """Return how many numbers so many workers share."""
        return COMMON + workers * OWN

    @property
    def throttle(self) -> int:
        """The bound of the throttle."""
        return int(self.numbers[0])

    @throttle.setter
    def throttle(self, value: int) -> None:
        self.numbers[0] = value

    @property
    def generation(self) -> int:
        """How often files were to be read anew."""
        return int(self.numbers[1])

    def reload(self) -> None:
        """Have every process read rights and blocked users anew."""
        self.numbers[1] += 1


class Throttle:
    """At most so many operations with ``throttle=on`` at a time, over all worker processes.

    Parameters
    ----------
    shared : Shared
    """

    def __init__(self, shared: Shared):
        self._shared = shared
        self._lock = threading.Lock()
        self._running = 0

    @property
    def most(self) -> int:
        """The bound."""
        return self._shared.throttle

    @most.setter
    def most(self, value: int) -> None:
        self._shared.throttle = value

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Take a slot for the block, or refuse with 503."""
        if self._shared.folder:
            held = self._take_file()
            try:
                yield
            finally:
                os.close(held)
            return
        with self._lock:
            if self._running >= self.most:
                raise self._busy()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def _take_file(self) -> int:
        """Lock one of as many files as there are slots; the lock of a killed process is freed."""
        for number in range(self.most):
            path = os.path.join(self._shared.folder, str(number))
            found = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return found
            except BlockingIOError:
                os.close(found)
        raise self._busy()

    def _busy(self) -> Refused:
        most = self.most
        return Refused(
            503,
            f"Server already running {most} throttled operations (max = {most})\n",
            {"Retry-After": "1"},
        )


class Load:
    """Requests and bytes of all worker processes over the last second; users of this one.

    Parameters
    ----------
    shared : Shared
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._numbers = shared.numbers
        self._own = COMMON + shared.worker * OWN
        self._numbers[self._own : self._own + OWN] = [0] * OWN  # a worker before this one died
        self._users: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Count a request that is under way."""
        self._numbers[self._own] += 1

    def end(self) -> None:
        """Count it no more."""
        self._numbers[self._own] -= 1

    def add(self, method: str, got: int, gave: int) -> None:
        """Count a request: bytes of its body and of its answer."""
        tick = int(time.monotonic() / TICK)
        numbers, at = self._numbers, self._own + 1 + tick % (TICKS + 1) * SLOT
        if numbers[at] != tick:
            numbers[at : at + SLOT] = [tick, 0, 0, 0, 0]
        if method in ("GET", "HEAD"):
            numbers[at + 1] += 1
            numbers[at + 3] += gave
        else:
            numbers[at + 2] += 1
            numbers[at + 4] += got

    @property
    def active(self) -> int:
        """Requests under way."""
        return sum(self._numbers[COMMON::OWN])

    def last_second(self) -> dict[str, int]:
        """Return ``gets``, ``puts``, ``read`` and ``written`` of the last second."""
        since = int(time.monotonic() / TICK) - TICKS
        found = [0] * SLOT
        for own in range(COMMON, Shared.size(self._shared.workers), OWN):
            for at in range(own + 1, own + OWN, SLOT):
                slot = self._numbers[at : at + SLOT]
                if slot[0] > since:
                    found = [a + b for a, b in zip(found, slot, strict=True)]
        return dict(zip(("gets", "puts", "read", "written"), found[1:], strict=True))

    # -- users -----------------------------------------------------------------------------

    def ping(self, user: str) -> None:
        """Remember that a user was there."""
        self._user(user)["LastPing"] = log.now()

    def answered(self, user: str, milliseconds: float) -> None:
        """Remember how long a user waited for an answer."""
        found, took = self._user(user), round(milliseconds, 3)
        known = found["MaxLatency"] > 0
        found["LastPing"] = log.now()
        found["LastLatency"] = took
        found["MinLatency"] = min(found["MinLatency"], took) if known else took
        found["MaxLatency"] = max(found["MaxLatency"], took)

    def latencies(self) -> dict[str, dict[str, Any]]:
        """Return what is remembered of users, by name."""
        return {name: dict(each) for name, each in list(self._users.items())}

    def _user(self, user: str) -> dict[str, Any]:
        found = self._users.get(user)
        if found is None:
            while len(self._users) >= MAX_USERS:
                self._users.pop(next(iter(self._users)), None)
            found = self._users[user] = {
                "User": user, "LastPing": "", "LastLatency": 0.0, "MinLatency": 0.0,
                "MaxLatency": 0.0,
            }  # fmt: skip
        return found
