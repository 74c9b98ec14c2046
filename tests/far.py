"""``far://name``: a bucket's manners (whole objects, slow requests) over a dict of this process.

For tests of what stores do on such an engine, with requests counted and nothing between.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from diced import registry
from diced.engine.appender import Appender, BufferedAppender
from diced.engine.memory import MemoryEngine, open_memory

WATCHED = ("put_if_absent", "put_unique", "get", "peek", "read_into", "exists", "size", "list",
           "delete")  # fmt: skip


class FarEngine(MemoryEngine):
    """Attributes of the class: `delay` in seconds before each answer, `requests` by name."""

    grows = False
    remote = True
    delay = 0.0
    requests: list[tuple[str, str]] = []  # noqa: RUF012 - of all, cleared by tests
    _inside = threading.local()

    def appender(self, prefix: str, suffix: str = "") -> Appender:
        self._check_open()
        self._check_write(prefix)
        return BufferedAppender(self, prefix, suffix)

    @property
    def url(self) -> str:
        return f"far://{self._name}"


def _watch(name: str) -> Any:
    plain = getattr(MemoryEngine, name)

    def watched(self: FarEngine, key: str, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self._inside, "busy", False):  # `peek` is a `get` here
            FarEngine.requests.append((name, key))
            if FarEngine.delay:
                time.sleep(FarEngine.delay)
            self._inside.busy = True
            try:
                return plain(self, key, *args, **kwargs)
            finally:
                self._inside.busy = False
        return plain(self, key, *args, **kwargs)

    return watched


for each in WATCHED:
    setattr(FarEngine, each, _watch(each))


def open_far(location: str, *, max_age: float = 1.0, **options: Any) -> FarEngine:
    """Open the objects called `location`."""
    plain = open_memory(location, **options)
    engine = FarEngine(
        plain._name, plain._shelf, durability=plain.durability, readonly=plain.readonly
    )
    engine.max_age = max_age
    return engine


if "far" not in registry.names("engine"):
    registry.register("engine", "far", open_far)
