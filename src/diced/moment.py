"""What one call of the public API asks at once: how new the lanes are that it needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from diced import pool

_call = threading.local()


class Refreshed(Protocol):
    """A lane, as far as this is concerned."""

    def is_due(self, began: float) -> bool:
        """Tell whether `refresh` at this time would ask the engine."""

    def refresh(self) -> object:
        """Ask the engine whether there is anything newer, if that is due."""


def call_began(now: float) -> float:
    """Return when the call began that this thread is in, or `now`."""
    began: float = getattr(_call, "began", now)
    return began


class moment:
    """With this, the lanes of one call are refreshed side by side, and then not again inside it.

    Only for engines where that saves time; lanes that are fresh enough cost nothing.
    """

    def __init__(self, lanes: Sequence[Refreshed]):
        self._lanes = lanes

    def __enter__(self) -> None:
        self._outer = getattr(_call, "began", None)
        if self._outer is None:
            began = _call.began = time.monotonic()
            try:
                due = [each for each in self._lanes if each.is_due(began)]
                pool.for_each(lambda lane: lane.refresh(), due, max(1, len(due)))
            except BaseException:
                del _call.began
                raise

    def __exit__(self, *_error: object) -> None:
        if self._outer is None:
            del _call.began
