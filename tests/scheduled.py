"""A bucket for schedules, and the library's clock, locks and threads made those of a schedule.

Every request is a point where another task may go on, before its effect and after it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from scheduler import Process, Scheduler, Task

from diced import combine, compose, home, inbox, index, log, pool, proposal, versioned
from diced.engine import base
from diced.engine.appender import Appender, BufferedAppender
from diced.errors import EngineError

INJECTED = "the schedule says so"
LOST: Any = object()


class Aside:
    """A thread that the library begins for itself; errors in it are the library's."""

    def __init__(self, target: Callable[[], object], **_about: object):
        self._target = target

    def start(self) -> None:
        scheduler = _now.scheduler
        task = scheduler.current
        if task is not None:
            task.process.crowded = True
            child = scheduler.spawn(task.process, f"{task.process.name}.aside", self._target)
            scheduler.aside.append(child)


class Turn:
    """A lock that tasks wait for."""

    def __init__(self) -> None:
        self.owner: Task | None = None

    def __enter__(self) -> None:
        scheduler = _now.scheduler
        task = scheduler.current
        if task is None:
            return
        if task.process.crowded or scheduler.parallel:
            scheduler.point()
            task.lock = self
            try:
                while self.owner is not None:
                    scheduler.switch(task)
            finally:
                task.lock = None
        assert self.owner is None
        self.owner = task

    def __exit__(self, *_error: object) -> None:
        self.owner = None


class Bucket(base.Engine):
    """The objects of a schedule as one process has them open: whole objects, slow requests."""

    grows = False
    remote = True
    durability = "power"
    readonly = False
    url = "schedule://"

    def __init__(self, scheduler: Scheduler, process: Process, max_age: float):
        self._scheduler = scheduler
        self._process = process
        self.max_age = max_age

    def _request(self, what: str, key: str, effect: Callable[[], Any], put: bool = False) -> Any:
        s = self._scheduler
        task = s.current
        if task is None:  # the judge
            return effect()
        task.flying = effect if put else None
        try:
            s.point()
        finally:
            task.flying = None
        fault = s.fault(put)
        if fault in ("late", "twice"):
            s.later(0.0, None, f"{what} {key}", effect)
        if fault in ("before", "late"):
            s.note(f"{what} FAILS ({fault})", key)
        elif fault in ("reset", "twice"):
            s.note(f"{what} -> {fault}", key)
            s.point()
            return LOST
        else:
            answer = effect()
            s.note(f"{what} -> {_brief(answer)}{fault and f' ({fault})'}", key)
            s.point()
            if not fault:
                return answer
            if fault == "lost":
                return LOST
        raise EngineError(f"{what} {key}: {INJECTED}")

    def put_if_absent(self, key: str, data: base.Buffer, txid: bytes) -> bool:
        return self.put_fresh(key, data, txid)

    def put_fresh(self, key: str, data: base.Buffer, txid: bytes) -> bool:
        """As on Google's storage: an answer that was lost is asked for again, and read back."""
        value = bytes(data)
        objects = self._scheduler.objects

        def effect() -> bool:
            if key in objects:
                return False
            objects[key] = value
            return True

        again = False
        while True:
            answer: bool = self._request("put", key, effect, True)
            if answer is LOST:
                again = True
                continue
            if answer or not again:
                return answer
            there = self._request("stat", key, lambda: objects.get(key))
            if there is not None:
                return bool(there == value)

    def put_unique(self, prefix: str, chunks: Iterable[base.Buffer], suffix: str = "") -> str:
        key = base.fresh_key(prefix, suffix)
        self.put_fresh(key, b"".join(chunks), b"")
        return key

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        there: bytes | None = self._request("get", key, lambda: self._scheduler.objects.get(key))
        if there is None:
            raise base.missing(key)
        end = len(there) if length is None else start + length
        if end > len(there):
            raise base.short_read(key, start, end - start, len(there) - start)
        return there[start:end]

    def read_into(self, key: str, start: int, out: base.Buffer) -> None:
        view = base.writable_view(out)
        view[:] = self.get(key, start, len(view))

    def exists(self, key: str) -> bool:
        return bool(self._request("exists", key, lambda: key in self._scheduler.objects))

    def size(self, key: str) -> int:
        return len(self.get(key))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        below = prefix + "/"
        page = self._scheduler.page
        found: list[str] = []

        def effect() -> list[str]:
            names = sorted(key for key in self._scheduler.objects if key.startswith(below))
            at = bisect_right(names, after)
            return names[at : at + page]

        while True:
            names = self._request("list", prefix, effect)
            found += names
            if len(names) < page:
                return iter(found)
            after = names[-1]

    def delete(self, key: str) -> None:
        self._request("delete", key, lambda: self._scheduler.objects.pop(key, None))

    def delete_later(self, key: str, after: float) -> None:
        """What `diced.tidy` does in a thread of its own."""
        if not self._process.dead:
            objects = self._scheduler.objects
            self._scheduler.later(
                after, self._process, f"delete {key}", lambda: objects.pop(key, None) is not None
            )

    def appender(self, prefix: str, suffix: str = "") -> Appender:
        return BufferedAppender(self, prefix, suffix)

    def close(self) -> None:
        pass


def _brief(answer: object) -> str:
    if isinstance(answer, bytes):
        return f"{len(answer)} bytes"
    if isinstance(answer, list):
        return str([name.rsplit("/", 1)[1][:12] for name in answer])
    return str(answer)


class _Now:
    scheduler: Scheduler


_now = _Now()


def _process_time() -> float:
    task = _now.scheduler.current
    return _now.scheduler.now + (0.0 if task is None else task.process.skew)


def _stamp() -> str:
    seconds = _process_time()
    hour, minute = int(seconds / 3600 % 24), int(seconds / 60 % 60)
    return f"2026-01-02T{hour:02d}:{minute:02d}:{seconds % 60:09.6f}Z"


def _for_each(fn: Callable[[Any], Any], items: Iterable[Any], threads: int) -> None:
    for _ in _now.scheduler.map(fn, items):
        pass


def _delete_later(engine: Any, key: str, after: float = 0.0) -> None:
    engine.delete_later(key, after)


def _urandom(count: int) -> bytes:
    return _now.scheduler.random.randbytes(count)


# What a schedule may make smaller, so that little is enough to get beyond it.
TUNABLE = {
    "MOST_PROPOSALS": (inbox,), "EXPIRY": (combine,), "REMEMBERED": (combine,),
    "CONTENDED": (combine,), "BUSY": (combine,), "PATIENT": (combine,), "LEAST_HOLD": (combine,),
    "PATIENCE": (combine,), "CROWD": (combine,), "TERM": (combine,), "ROUND": (combine,),
    "MOST_KEYS": (combine, proposal), "RECENT": (versioned,),
    "RECENT_ENTRIES": (versioned,), "RIDING_BYTES": (compose,), "INLINE_BODY": (compose,),
}  # fmt: skip


class Patched:
    """With this, the library's clock, locks, pools and ids are those of a schedule."""

    def __enter__(self) -> Patched:
        self._defaults = {name: getattr(where[0], name) for name, where in TUNABLE.items()}
        clock = SimpleNamespace(
            monotonic=lambda: _now.scheduler.now, sleep=lambda each: _now.scheduler.sleep(each)
        )
        pools = SimpleNamespace(
            map_ordered=lambda fn, items, threads, window=None: _now.scheduler.map(fn, items),
            for_each=_for_each,
            LIMIT=pool.LIMIT,
        )
        chance = SimpleNamespace(uniform=lambda a, b: _now.scheduler.random.uniform(a, b))
        locks = SimpleNamespace(Lock=Turn, Thread=Aside, local=threading.local)
        self._old: list[tuple[Any, str, Any]] = []
        for module in (combine, versioned):
            self._set(module, "time", clock)
            self._set(module, "threading", locks)
        for module in (combine, inbox, versioned, log, index):
            self._set(module, "pool", pools)
        self._set(combine, "random", chance)
        for module in (combine, inbox):
            self._set(module, "delete_later", _delete_later)
        self._set(log, "now", _stamp)
        self._set(log, "new_txid", lambda: _urandom(16).hex())
        self._set(home, "os", SimpleNamespace(urandom=_urandom))
        self._set(base, "fresh_name", lambda: _urandom(8).hex())
        for name, modules in TUNABLE.items():
            for module in modules:
                self._set(module, name, self._defaults[name])
        return self

    def _set(self, module: Any, name: str, value: object) -> None:
        self._old.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def use(self, scheduler: Scheduler, tuned: dict[str, float]) -> None:
        """Make a schedule the one that runs."""
        _now.scheduler = scheduler
        for name, modules in TUNABLE.items():
            for module in modules:
                setattr(module, name, tuned.get(name, self._defaults[name]))

    def __exit__(self, *_error: object) -> None:
        for module, name, value in reversed(self._old):
            setattr(module, name, value)
