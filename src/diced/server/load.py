"""What a server counts of its own work, and the throttle."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from diced.server.answer import Refused


class Throttle:
    """At most so many operations with ``throttle=on`` at a time, over all worker processes.

    Parameters
    ----------
    most : int
    shared : multiprocessing array of two ints, optional
        What the worker processes of one server have in common: the running ones and the most.
    """

    def __init__(self, most: int, shared: Any = None):
        self._lock = threading.Lock() if shared is None else shared.get_lock()
        self._state = [0, most] if shared is None else shared

    @property
    def most(self) -> int:
        """The bound."""
        return int(self._state[1])

    @most.setter
    def most(self, value: int) -> None:
        self._state[1] = value

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Take a slot for the block, or refuse with 503."""
        with self._lock:
            running, most = self._state[0], self._state[1]
            if running >= most:
                raise Refused(
                    503,
                    f"Server already running {running} throttled operations (max = {most})\n",
                    {"Retry-After": "1"},
                )
            self._state[0] = running + 1
        try:
            yield
        finally:
            with self._lock:
                self._state[0] -= 1


class Load:
    """Requests and bytes of this process, in all and over the last second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, str, int, int]] = deque(maxlen=100_000)
        self.active = 0
        self.requests = 0

    def add(self, method: str, got: int, gave: int) -> None:
        """Count a request: bytes of its body and of its answer."""
        self.requests += 1
        self._recent.append((time.monotonic(), method, got, gave))

    def last_second(self) -> dict[str, int]:
        """Return ``gets``, ``puts``, ``read`` and ``written`` of the last second."""
        since = time.monotonic() - 1.0
        recent = [each for each in list(self._recent) if each[0] >= since]
        reads = [each for each in recent if each[1] in ("GET", "HEAD")]
        return {
            "gets": len(reads),
            "puts": len(recent) - len(reads),
            "read": sum(each[3] for each in reads),
            "written": sum(each[2] for each in recent) - sum(each[2] for each in reads),
        }
