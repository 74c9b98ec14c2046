"""Threads that wait for the disk together: two calls side by side, and one sync for many."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from diced import forks
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
        self.after_fork()
        forks.watch(self)

    def after_fork(self) -> None:
        """Begin without a thread: at birth and after a fork, when it is the parent's."""
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
        if sys.is_finalizing():
            return None  # other threads do not run any more
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

    An interrupt may come between any two steps of a `join`. So what a thread holds is named by a
    lock of its own, its gate, and given up without taking another; `threading.Condition` is not
    used, since its methods are Python code, which an interrupt leaves half done.

    Parameters
    ----------
    lock : threading.Lock
        Guards the beginning of a flush.

    Attributes
    ----------
    running : threading.Lock or None
        Released when the running flush ends.
    failures : int
        Flushes that failed so far.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.running: threading.Lock | None = None
        self.failures = 0
        self._lock = lock
        self._next: _Flush | None = None

    def join(self, flush: Action, check: Action | None = None, failures: int | None = None) -> None:
        """Return when a flush that began after this call has succeeded.

        `check` is called with the lock held, and raises if waiting is in vain. `failures` is what
        the attribute was when the caller began to change what is flushed: a flush between may
        have taken the change with it.

        Raises
        ------
        EngineError
            If another thread's flush, which was to serve this one too, failed.
        """
        mine: _Flush | None = None
        while True:
            gate = threading.Lock()
            gate.acquire()
            try:
                with self._lock:
                    running = self.running  # before `mine` is asked: a flush tells, then ends
                    if mine is None:
                        # The first flush to start from now on covers this caller's bytes; one
                        # already running may have passed them.
                        mine = self._next
                        if mine is None:
                            mine = self._next = _Flush()
                    before = self.failures if mine.before is None else mine.before
                    if mine.failed or (failures is not None and before != failures):
                        # Not tried again: the system tells of lost bytes once.
                        raise EngineError("a sync that was shared with another thread failed there")
                    if mine.succeeded:
                        return
                    if check is not None:
                        check()
                    if running is not None and sys.is_finalizing():
                        running = None  # its thread will never go on
                    if running is None:
                        if self._next is mine:
                            self._next = None
                        mine.before = self.failures
                        self.running = gate
                if running is None:
                    flush()
                    mine.succeeded = True
                    return
            except (OSError, DicedException):
                if self.running is gate and mine is not None:
                    mine.failed = True
                    self.failures += 1
                raise
            finally:
                if self.running is gate:
                    self.running = None
                gate.release()
            with running:
                pass


class _Flush:
    """One flush as those see it who wait for it. Neither flag is set while it is undecided, as
    after an interrupt: then one of them begins it again."""

    __slots__ = ("before", "failed", "succeeded")

    def __init__(self) -> None:
        self.before: int | None = None  # failures when it began
        self.failed = self.succeeded = False
