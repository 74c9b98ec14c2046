"""Threads for input and output: one bounded pool per process, shared by everyone.

`map_ordered` runs a function over items on the calling thread and on as many helpers as are
free.  The calling thread always works too, so a call makes progress however busy the pool is, and
any number of user threads may share it without deadlock.  A task that itself maps runs its items
inline: pools never nest.

Threads are daemons that wait in a C-level queue, so they never delay the interpreter's exit, and
none is started before a call needs one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from diced.errors import EngineError, InvalidError

if TYPE_CHECKING:
    from queue import SimpleQueue

T = TypeVar("T")
R = TypeVar("R")

LIMIT = 64  # threads; enough to hide the latency of an object store

_END: Any = object()


def default_threads() -> int:
    """Return how many threads a call uses unless told: the processors we may use, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def map_ordered(
    fn: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    window: int | None = None,
) -> Iterator[R]:
    """Yield ``fn(item)`` for each item, in the order of the items.

    Parameters
    ----------
    fn : callable
        Called on several threads at once.
    items : iterable
        Read lazily, by one thread at a time.
    threads : int
        How many calls may run at once, the calling thread's included.  With 1, or a single item,
        or inside another map's task, everything runs on the calling thread.
    window : int, optional
        How many items may be taken and not yet yielded; twice `threads` by default.

    Raises
    ------
    InvalidError
        If `threads` or `window` is below 1.
    Exception
        The first that `fn` or `items` raises.  No item is begun after it, and it is raised only
        when the calls already running have ended: nothing writes to the caller's buffers any
        more.  The same holds when the iterator is closed early.
    """
    if threads < 1:
        raise InvalidError(f"threads must be at least 1; got {threads}")
    if window is None:
        window = 2 * threads
    elif window < 1:
        raise InvalidError(f"window must be at least 1; got {window}")
    if isinstance(items, Sized):
        threads = min(threads, max(1, len(items)))
    return _map(fn, iter(items), min(threads, window), window)


def for_each(fn: Callable[[T], object], items: Iterable[T], threads: int) -> None:
    """Call ``fn(item)`` for each item; threads and errors as in `map_ordered`."""
    # Results are None or unwanted, so a wide window costs nothing and helpers rarely wait.
    for _ in map_ordered(fn, items, threads, window=max(1, 8 * threads)):
        pass


def _map(fn: Callable[[T], R], items: Iterator[T], threads: int, window: int) -> Iterator[R]:
    if threads == 1 or _inside():
        for item in items:
            yield fn(item)
        return
    first = next(items, _END)
    if first is _END:
        return
    second = next(items, _END)
    if second is _END:
        yield fn(first)
        return
    job: _Job[T, R] = _Job(fn, items, [second, first], threads, window)
    try:
        while True:
            result = job.next_result()
            if result is _END:
                return
            yield result
    finally:
        job.cancel()


class _Job(Generic[T, R]):
    """One call of `map_ordered`: what is taken, what is done, who helps."""

    def __init__(
        self, fn: Callable[[T], R], items: Iterator[T], ahead: list[T], threads: int, window: int
    ) -> None:
        self._fn = fn
        self._items = items
        self._ahead = ahead  # items read already, next one last
        self._helpers_limit = threads - 1
        self._window = window
        self._pid = os.getpid()
        # Re-entrant, because a forgotten iterator may be finalised, and so cancelled, by a
        # garbage collection that starts while this very thread holds the lock.
        # Taken itself, not by the condition, whose methods an interrupt can leave half done.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._done: dict[int, R] = {}
        self._taken = 0
        self._yielded = 0
        self._running = 0  # tasks on helpers; the caller's own needs no waiting for
        self._helpers = 0  # helpers asked for and not yet returned to the pool
        self._ended = False  # no further item will be taken
        self._error: BaseException | None = None

    def next_result(self) -> R:
        """Return the next result in order, or _END; work on the items meanwhile."""
        self._check_process()
        while True:
            with self._lock:
                while True:
                    if self._error is not None:
                        raise self._error
                    if self._yielded in self._done:
                        result = self._done.pop(self._yielded)
                        self._yielded += 1
                        self._call_helpers()
                        return result
                    work = self._take()
                    if work is not None:
                        self._call_helpers()
                        break
                    if self._error is None:
                        if self._yielded == self._taken:
                            return _END  # type: ignore[no-any-return]
                        self._changed.wait()
            self._run(*work, helping=False)

    def help(self) -> None:
        """Work on the items until there is none to take, or another job waits for a helper."""
        while True:
            with self._lock:
                work = self._take()
                if work is None:
                    self._helpers -= 1
                    return
                self._running += 1
            self._run(*work, helping=True)
            del work
            if _pool.requeue(self):
                return

    def cancel(self) -> None:
        """Take no further item, and return when none is running."""
        if self._pid != os.getpid():  # the helpers are the parent's, and so may be the lock
            return
        with self._lock:
            self._ended = True
            self._ahead.clear()
            # A collector may call this on a thread that is inside a task, even one of this job.
            while self._running and not _inside() and not sys.is_finalizing():
                self._changed.wait()
            self._done.clear()
            self._items = iter(())
            self._error = None  # its traceback refers to frames that refer to this

    def _take(self) -> tuple[int, T] | None:
        """Take an item if the window has room for it; the lock is held."""
        if self._ended or self._taken - self._yielded >= self._window:
            return None
        if self._ahead:
            item = self._ahead.pop()
        else:
            try:
                item = next(self._items, _END)
            except BaseException as error:  # handed to the caller, whichever thread this is
                self._fail(error)
                return None
            if item is _END or self._ended:
                self._ended = True
                self._changed.notify_all()
                return None
        self._taken += 1
        return self._taken - 1, item

    def _run(self, number: int, item: T, helping: bool) -> None:
        was_inside, _here.inside = _here.inside, True
        try:
            result = self._fn(item)
        except BaseException as error:  # handed to the caller, whichever thread this is
            with self._lock:
                self._running -= helping
                self._fail(error)
        else:
            with self._lock:
                self._running -= helping
                self._done[number] = result
                # The caller waits for one number only, or for the last task to end.
                if number == self._yielded or self._ended:
                    self._changed.notify_all()
        finally:
            _here.inside = was_inside

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._ended = True
        self._changed.notify_all()

    def _call_helpers(self) -> None:
        """Ask for as many helpers as there may be items for; the lock is held."""
        if self._ended:
            return
        room = self._window - (self._taken - self._yielded)
        wanted = min(self._helpers_limit - self._helpers, room)
        if wanted > 0:
            self._helpers += wanted
            _pool.call(self, wanted, self._helpers_limit)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise EngineError("a map begun before a fork cannot go on in the child")


class _Pool:
    """The process's helper threads, started as they are needed, and the line of jobs."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[_Job[Any, Any]] | None = None
        self._lock = threading.Lock()
        self._threads = 0

    def call(self, job: _Job[Any, Any], count: int, threads: int) -> None:
        """Put a job in the line `count` times; have at least `threads` helpers, LIMIT allowing."""
        if sys.is_finalizing():
            return  # other threads do not run any more: the caller does it all
        if self._threads < min(threads, LIMIT):
            from queue import SimpleQueue  # 1 ms, and not needed by small reads

            with self._lock:
                if self.queue is None:
                    self.queue = SimpleQueue()
                while self._threads < min(threads, LIMIT):
                    name = f"diced-io-{self._threads}"
                    helper = threading.Thread(
                        target=_serve, args=(self.queue,), name=name, daemon=True
                    )
                    try:
                        helper.start()
                    except RuntimeError:
                        break  # no more threads here, or the interpreter is ending: fewer helpers
                    self._threads += 1
        if self.queue is not None:
            for _ in range(count):
                self.queue.put(job)

    def requeue(self, job: _Job[Any, Any]) -> bool:
        """Put a job at the end of the line if others wait."""
        if self.queue is None or self.queue.empty():
            return False
        self.queue.put(job)
        return True


def _serve(queue: SimpleQueue[_Job[Any, Any]]) -> None:
    while True:
        job = queue.get()
        job.help()
        del job  # an idle thread must not keep a job's results alive


class _Here(threading.local):
    inside = False  # this thread is running a task


def _inside() -> bool:
    return _here.inside


def _reset() -> None:
    global _pool, _here
    _pool = _Pool()
    _here = _Here()


_here = _Here()
_pool = _Pool()
os.register_at_fork(after_in_child=_reset)
