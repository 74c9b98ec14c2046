"""What a forked child makes anew.

Locks that another thread of the parent held would never be released in the child, the parent's
threads do not run there, and its connections are not to be shared.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    """What holds locks, threads or connections."""

    def after_fork(self) -> None:
        """Make them anew, in the child."""


_watched: weakref.WeakSet[Renewed] = weakref.WeakSet()


def watch(each: Renewed) -> None:
    """Have an object's `after_fork` called in every child forked while it is there."""
    _watched.add(each)


def _after_fork() -> None:
    for each in list(_watched):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
