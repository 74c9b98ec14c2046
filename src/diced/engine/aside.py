"""Threads that wait for the disk together: two calls side by side, and one sync for many."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from diced.errors import DicedException, EngineError

if TYPE_CHECKING:
    from queue import SimpleQueue

Action = Callable[[], object]


class Aside:
    """A kept thread that does one thing while its caller does another.

    The pool would do, but takes 35 us to share two calls, a third of a sync; this takes 9. The
    thread is a daemon and started when it is first needed.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._renew()
        _ALL.add(self)

    def _renew(self) -> None:
        self._free = threading.Lock()
        self._tasks: SimpleQueue[_Task] | None = None

    def both(self, here: Action, aside: Action) -> None:
        """Call both; return, or raise what either raised, when both have ended.

        If the thread is busy for another caller, or there is none to be had, this one does both.
        """
        task = self._give(aside)
        if task is None:
            aside()
            here()
            return
        try:
            here()
        finally:
            task.ended.acquire()
        if task.error is not None:
            raise task.error

    def later(self, action: Action) -> None:
        """Have an action done that nobody waits for and whose errors do not matter, if idle."""
        self._give(action)

    def _give(self, action: Action) -> _Task | None:
        if not self._free.acquire(blocking=False):
            return None
        if self._tasks is None and not self._start():
            self._free.release()
            return None
        assert self._tasks is not None
        task = _Task(action, self._free)
        self._tasks.put(task)
        return task

    def _start(self) -> bool:
        from queue import SimpleQueue  # 1 ms

        tasks: SimpleQueue[_Task] = SimpleQueue()
        thread = threading.Thread(target=_serve, args=(tasks,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False  # no more threads here, or the interpreter is ending
        self._tasks = tasks
        return True


class _Task:
    __slots__ = ("action", "ended", "error", "free")

    def __init__(self, action: Action, free: threading.Lock) -> None:
        self.action = action
        self.free = free
        self.error: BaseException | None = None
        self.ended = threading.Lock()
        self.ended.acquire()


def _serve(tasks: SimpleQueue[_Task]) -> None:
    while True:
        task = tasks.get()
        try:
            task.action()
        except BaseException as error:  # raised by the caller
            task.error = error
        task.free.release()
        task.ended.release()
        del task  # an idle thread must not keep a store alive


class Flushes:
    """Joins threads that wait for a flush of one thing: one flush serves all who came before it.

    Parameters
    ----------
    changed : threading.Condition
        Notified when a flush ends.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self.running = False
        self._changed = changed
        self._started = 0  # number of the newest flush begun
        self._done = 0  # number of the newest flush that succeeded
        self._failed = 0  # number of the newest flush that the medium failed

    def join(self, flush: Callable[[], None], check: Callable[[], None] | None = None) -> None:
        """Return when a flush that began after this call has succeeded.

        `check` is called with the condition held, and raises if waiting is in vain.

        Raises
        ------
        EngineError
            If another thread's flush, which was to serve this one too, failed.
        """
        with self._changed:
            # The first flush to start from now on covers this caller's bytes; one already
            # running may have passed them.
            wanted = self._started + 1
            while True:
                if check is not None:
                    check()
                if self._done >= wanted:
                    return
                if self._failed >= wanted:
                    # Not tried again: the system tells of lost bytes once.
                    raise EngineError("a sync that was shared with another thread failed there")
                if not self.running:
                    break
                self._changed.wait()
            self.running = True
            self._started += 1
            number = self._started
        failed = False
        try:
            flush()
            self._done = number
        except (OSError, DicedException):
            failed = True
            raise
        finally:
            with self._changed:
                if failed:
                    self._failed = number
                self.running = False
                self._changed.notify_all()


_ALL: weakref.WeakSet[Aside] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_ALL):
        each._renew()  # the thread is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
