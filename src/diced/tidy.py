"""Deleting objects that are done with, when nobody waits for it.

What a process that ends leaves here is harmless, and removed by others who meet it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from diced.engine.base import Engine
from diced.errors import DicedException

if TYPE_CHECKING:
    from queue import SimpleQueue


def delete_later(engine: Engine, key: str, after: float = 0.0) -> None:
    """Delete an object in so many seconds, if this process lasts."""
    _deleter.add(engine, key, after)


class _Deleter:
    """One thread of this process that deletes what is done, each thing after some time."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[float, Engine, str]] | None = None
        self._lock = threading.Lock()

    def add(self, engine: Engine, key: str, after: float) -> None:
        with self._lock:
            if self._tasks is None:
                from queue import SimpleQueue  # 1 ms

                tasks: SimpleQueue[tuple[float, Engine, str]] = SimpleQueue()
                thread = threading.Thread(
                    target=self._serve, args=(tasks,), name="diced-tidy", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    return  # the interpreter is ending; who gathers next removes it
                self._tasks = tasks
        self._tasks.put((time.monotonic() + after, engine, key))

    def _serve(self, tasks: SimpleQueue[tuple[float, Engine, str]]) -> None:
        from queue import Empty

        waiting: list[tuple[float, Engine, str]] = []
        while True:
            try:
                now = time.monotonic()
                wait = min((due - now for due, _, _ in waiting), default=None)
                waiting.append(tasks.get(timeout=None if wait is None else max(0.0, wait)))
            except Empty:
                pass
            now = time.monotonic()
            ready = [each for each in waiting if each[0] <= now]
            waiting = [each for each in waiting if each[0] > now]
            for _, engine, key in ready:
                with contextlib.suppress(DicedException):
                    engine.delete(key)
            ready.clear()


def _reset() -> None:
    global _deleter
    _deleter = _Deleter()


_deleter = _Deleter()
os.register_at_fork(after_in_child=_reset)
