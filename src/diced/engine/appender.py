"""Growing objects: what commits append their frames to before a record points there."""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType

from diced.engine.aside import Flushes
from diced.engine.base import Buffer, Engine, flat_view, fresh_key
from diced.errors import EngineError


class Appender(ABC):
    """A growing object with one writing process and any number of threads.

    A subclass writes and flushes; this class hands out offsets, joins concurrent `sync` calls
    into one flush, and refuses further use after an error: bytes that failed to reach the medium
    may be gone from the operating system's cache, so a second flush would succeed without them.

    Attributes
    ----------
    key : str
    size : int
        Bytes handed out so far.
    failed : bool
        An append or sync failed; write the same bytes to another appender.
    finished : bool
        It takes no more appends.
    closed : bool
    durable : bool
        It takes no more, and all of it was synced.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.size = 0
        self.failed = False
        self._pid = os.getpid()
        self.finished = False
        self.closed = False
        self.durable = False
        self._lock = threading.Lock()
        self._writing: set[threading.Lock] = set()  # one for each append, released at its end
        self._flushes = Flushes(self._lock)

    def append(self, chunks: Sequence[Buffer]) -> int:
        """Write the joined chunks at the end; return the offset of their first byte.

        They are durable once a `sync` called afterwards returns.

        Raises
        ------
        EngineError
            If the medium fails, or the appender failed before, is closed, or belongs to another
            process.
        """
        views = [view for view in map(flat_view, chunks) if view.nbytes]
        total = sum(view.nbytes for view in views)
        self._check_process()
        gate = threading.Lock()
        gate.acquire()
        written = False
        try:
            with self._lock:
                self._check_usable()
                if self.finished:
                    raise EngineError(f"appender of {self.key!r} takes no more")
                self._writing.add(gate)
                offset = self.size
                self.size = offset + total
            if views:
                self._write(offset, views)
            written = True
        finally:  # takes no lock, where an interrupt could keep it from its end
            if not written and gate in self._writing:
                self.failed = True
            gate.release()
            self._writing.discard(gate)
        return offset

    def sync(self) -> None:
        """Make what was appended before this call durable, at the engine's level."""
        self._check_process()
        if self.durable:
            return
        self._flushes.join(self._flush_or_fail, self._check_usable)

    def _flush_or_fail(self) -> None:
        flushed = False
        try:
            self._flush()
            flushed = True
        finally:
            if not flushed:
                self.failed = True

    def finish(self) -> None:
        """Take no more appends, make those that began durable, and close."""
        self._check_process()
        with self._lock:
            self.finished = True
        self._wait(*self._writing)
        self.sync()
        self.durable = True
        self.close()

    def close(self) -> None:
        """Release the handle once running appends are done.  Does not sync."""
        if self._pid != os.getpid():  # its lock may have been held when the process forked
            if not self.closed:
                self.closed = True
                self._release()
            return
        with self._lock:
            self.closed = True
        self._wait(*self._writing, self._flushes.running)
        self._release()

    def _wait(self, *gates: threading.Lock | None) -> None:
        for gate in gates:
            if gate is not None and not sys.is_finalizing():  # then its thread never goes on
                with gate:
                    pass

    def held(self, start: int, length: int) -> bytes | None:
        """Return a range that was appended and is not stored yet; None once it is."""
        return None

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "failed" if self.failed else "open"
        return f"<{type(self).__name__} {self.key} {self.size} bytes {state}>"

    @abstractmethod
    def _write(self, offset: int, views: list[memoryview]) -> None:
        """Write all of the non-empty views at `offset`."""

    @abstractmethod
    def _flush(self) -> None:
        """Make everything written so far durable, and the object's own existence."""

    @abstractmethod
    def _release(self) -> None:
        """Close the handle, if it is open."""

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise EngineError(
                f"object {self.key!r} is appended to by process {self._pid}; "
                f"process {os.getpid()} must make its own appender"
            )

    def _check_usable(self) -> None:
        if self.closed:
            raise EngineError(f"appender of {self.key!r} is closed")
        if self.failed:
            raise EngineError(f"appender of {self.key!r} failed earlier; its tail is not trusted")


class BufferedAppender(Appender):
    """For engines whose objects are stored whole: kept in memory until `sync` or `finish`.

    A sync stores all that was appended as one object and finishes the appender.

    Parameters
    ----------
    engine : Engine
    prefix, suffix : str
        As of `Engine.put_unique`.
    """

    def __init__(self, engine: Engine, prefix: str, suffix: str = "") -> None:
        super().__init__(fresh_key(prefix, suffix))
        self._engine = engine
        self._parts: dict[int, list[bytes]] = {}

    def _write(self, offset: int, views: list[memoryview]) -> None:
        self._parts[offset] = [bytes(view) for view in views]

    def _flush(self) -> None:
        with self._lock:
            self.finished = True
        self._wait(*self._writing)
        if not self.size:
            self.durable = True
        if self.durable:
            return
        data = b"".join(part for _, parts in sorted(self._parts.items()) for part in parts)
        if not self._engine.put_fresh(self.key, data, os.urandom(16)):
            raise EngineError(f"object {self.key!r} is there already, with other bytes")
        self.durable = True
        self._parts.clear()

    def held(self, start: int, length: int) -> bytes | None:
        if self._pid != os.getpid():  # its lock may have been held when the process forked
            parts = sorted(self._parts.items())
        else:
            with self._lock:
                if self.durable or self.closed:
                    return None
                parts = sorted(self._parts.items())
        found = []
        for at, pieces in parts:
            for piece in pieces:
                begin, end = max(start - at, 0), min(start + length - at, len(piece))
                if begin < end:
                    found.append(piece[begin:end])
                at += len(piece)
        data = b"".join(found)
        return data if len(data) == length else None

    def _release(self) -> None:
        self._parts.clear()
