"""The engine contract: bytes by key, and what each verb promises.

An engine knows keys and bytes; it must not know blocks, versions or what a store is.  Keys are
spelled by diced, never by users: relative ASCII paths whose parts do not begin with a dot (parts
that do are the engine's own).  No key is a leading part of another key's path.

Only errors of `diced.errors` leave an engine, and their messages name the key.  Every engine
passes ``tests/engine_contract.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from diced.errors import (
    AccessError,
    CorruptError,
    DicedException,
    EngineError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from diced.engine.appender import Appender

Buffer: TypeAlias = bytes | bytearray | memoryview
Durability: TypeAlias = Literal["power", "process"]

_PART = r"[a-z0-9_-][a-z0-9._-]*"
is_part = re.compile(_PART).fullmatch
_is_key = re.compile(rf"{_PART}(?:/{_PART})*").fullmatch
MAX_KEY = 512


def check_key(key: str) -> str:
    """Return `key`, or raise InvalidError if it is not a relative path in ``[a-z0-9._/-]``."""
    if not isinstance(key, str) or len(key) > MAX_KEY or not _is_key(key):
        raise InvalidError(
            f"key must be a relative path of [a-z0-9._-] parts that do not begin with a dot, "
            f"at most {MAX_KEY} characters; got {key!r}"
        )
    return key


def check_durability(durability: str) -> Durability:
    """Return `durability` if it is a level diced knows."""
    if durability == "power" or durability == "process":
        return durability  # type: ignore[return-value]
    raise InvalidError(f"durability must be 'power' or 'process'; got {durability!r}")


def fresh_name() -> str:
    """Return 16 random hex digits; forked processes never share them."""
    return os.urandom(8).hex()


def fresh_key(prefix: str, suffix: str) -> str:
    """Return a key nobody has: ``prefix/xx/<16 hex digits><suffix>``, xx their first two."""
    name = fresh_name()
    return check_key(f"{prefix}/{name[:2]}/{name}{suffix}")


def flat_view(data: Buffer) -> memoryview:
    """Return the bytes of a contiguous buffer of any shape, without a copy."""
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")
    if not view.c_contiguous:
        raise InvalidError(f"buffer of shape {view.shape} must be C-contiguous")
    return view.cast("B")


def writable_view(out: Buffer) -> memoryview:
    """Return the bytes of a writable contiguous buffer, without a copy."""
    view = flat_view(out)
    if view.nbytes and view.readonly:
        raise InvalidError("buffer to read into must be writable; got a read-only one")
    return view


def check_range(key: str, start: int, length: int | None) -> None:
    """Raise InvalidError if a range to read is negative."""
    if start < 0 or (length is not None and length < 0):
        raise InvalidError(f"range of {key!r} must not be negative; got {start}, {length}")


def short_read(key: str, start: int, wanted: int, got: int) -> CorruptError:
    """Return the error for a range that ends past the end of its object."""
    return CorruptError(
        f"object {key!r} is too short: wanted {wanted} bytes from offset {start}, got {got}"
    )


def missing(key: str) -> NotFoundError:
    """Return the error for a key that is not there."""
    return NotFoundError(f"no object {key!r}")


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}


def translate(error: OSError, doing: str) -> DicedException:
    """Return the diced error for one of the operating system's; `doing` is "read 'a/b'"."""
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    message = f"cannot {doing}: {error.strerror or error} [{name}]"
    if error.errno in _NO_SPACE:
        return NoSpaceError(message)
    if error.errno in _NO_ACCESS:
        return AccessError(message)
    if error.errno == errno.ENOENT:
        return NotFoundError(message)
    return EngineError(message)


class Descriptor(Protocol):
    """An open file that stays open until it is given back."""

    fd: int


class Engine(ABC):
    """Bytes by key on one medium.

    All methods may be called from several threads at once, and a forked child may go on using
    its parent's engine (not its appenders).  Whatever bytes are handed in are copied or written
    before the call returns.

    Attributes
    ----------
    url : str
        Opening it again, in this process, reaches the same objects.
    durability : {"power", "process"}
        What a write survives once its call returned: a power cut, or the death of the process.
    readonly : bool
        Writes raise ReadOnlyError.
    grows : bool
        Whether objects of `appender` take more after a sync.
    remote : bool
        A request takes so long that callers should make fewer, and many at once.
    max_age : float
        Seconds for which callers may take what they read last for the newest; 0: never.
    descriptors : bool
        Whether `borrow` is offered.
    """

    grows: ClassVar[bool] = True
    remote: ClassVar[bool] = False
    max_age: float = 0.0
    descriptors: bool = False

    durability: Durability
    readonly: bool

    @property
    @abstractmethod
    def url(self) -> str:
        """The location, as `open_engine` takes it."""

    @abstractmethod
    def put_if_absent(self, key: str, data: Buffer, txid: bytes) -> bool:
        """Create `key` holding `data`, atomically, unless it exists.

        Of any number of callers with different data, on any number of hosts, exactly one gets
        True.  True also if the object there is an earlier attempt of our own whose answer was
        lost: same bytes, since `data` contains `txid`.  Durable when it returns.  If it raises,
        the object is absent or whole, and the same call may be made again.
        """

    def put_fresh(self, key: str, data: Buffer, txid: bytes) -> bool:
        """As `put_if_absent`, of bytes that no earlier call has sent: one request, if all is well.

        An object that is there before anything was sent cannot be an earlier attempt.
        """
        return self.put_if_absent(key, data, txid)

    def stage(self, prefix: str, data: Buffer, txid: bytes) -> Staged:
        """Begin a `put_if_absent` of a key below `prefix`; nothing is stored so far."""
        return Staged(self, prefix, data, txid)

    def settle(self, key: str) -> None:  # noqa: B027 - a key that is seen may be durable always
        """Make a key durable that was seen: `Staged.settle` for others than its writer."""

    @abstractmethod
    def put_unique(self, prefix: str, chunks: Iterable[Buffer], suffix: str = "") -> str:
        """Write a new object of the joined chunks under a fresh random key, and return the key.

        The key is ``prefix/xx/<16 hex digits><suffix>`` with xx the first two digits.  Durable
        when it returns; if it raises, nobody knows the key.
        """

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or `length` of them from `start`.

        Raises NotFoundError if the key is missing, CorruptError if the range passes the end.
        """

    @abstractmethod
    def read_into(self, key: str, start: int, out: Buffer) -> None:
        """Fill a writable contiguous buffer from offset `start`; errors as in `get`."""

    def peek(self, key: str, limit: int) -> bytes:
        """Return the first bytes of an object, at most `limit`; NotFoundError if it is missing."""
        return self.get(key)[:limit]

    def borrow(self, key: str) -> Descriptor:
        """Return an object's open file, to be handed back with `give_back`; errors as in `get`."""
        raise UnsupportedError(f"{type(self).__name__} has no files to open")

    def give_back(self, handle: Any) -> None:  # noqa: B027 - without files there is nothing to do
        """Return what `borrow` gave."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object is there; one cheap request."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return an object's size in bytes; NotFoundError if it is missing."""

    @abstractmethod
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield the full keys below ``prefix/`` (all keys, for ""), sorted, greater than `after`.

        Objects created or deleted meanwhile may or may not be seen; unfinished ones of
        `put_if_absent` never are.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if it is gone.  A power cut may bring it back."""

    def prune(self, prefix: str) -> None:  # noqa: B027 - without directories nothing is left
        """Remove what deleted objects leave below a prefix that is not an object: directories."""

    @abstractmethod
    def appender(self, prefix: str, suffix: str = "") -> Appender:
        """Create a growing object under a fresh key (as `put_unique`), private to this process."""

    def turn(self, key: str) -> AbstractContextManager[None]:
        """Wait, within reason, until no other writer is busy with `key`.

        A hint that keeps contending writers from redoing each other's work.  It may end early,
        or do nothing at all; nothing may rely on it.
        """
        check_key(key)
        return contextlib.nullcontext()

    def sweep_temps(self, older_than_seconds: float = 86400, *, count_only: bool = False) -> int:
        """Remove what interrupted writers left behind; return how many were removed.

        With `count_only` nothing is removed, also in an engine opened read-only.
        """
        return 0

    def close(self) -> None:  # noqa: B027 - having nothing to release is fine
        """Release handles.  Closing twice is fine; appenders are closed by who made them."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        mode = "read-only" if self.readonly else self.durability
        return f"<{type(self).__name__} {self.url} {mode}>"

    def _check_write(self, key: str) -> None:
        check_key(key)
        if self.readonly:
            raise ReadOnlyError(f"cannot write {key!r}: {self.url} was opened read-only")


class Staged:
    """`Engine.put_if_absent` in steps, so that only `name` needs to be one's turn.

    This class, for engines whose objects have a key from their birth, does all of it in `name`.

    Parameters
    ----------
    engine : Engine
    prefix : str
        What messages name until there is a key.
    data : bytes, bytearray or memoryview
        Not to be changed before `close`.
    txid : bytes
    """

    def __init__(self, engine: Engine, prefix: str, data: Buffer, txid: bytes) -> None:
        self._engine = engine
        self._prefix = prefix
        self._data = data
        self._txid = txid

    def write(self) -> None:
        """Hand over the bytes, to where nobody sees them."""

    def sync(self) -> None:
        """Make them durable."""

    def name(self, key: str) -> bool:
        """Give them their key unless it exists, as `Engine.put_if_absent`; others see it now."""
        return self._engine.put_if_absent(key, self._data, self._txid)

    def settle(self) -> None:
        """Make the key durable."""

    def close(self) -> None:
        """Let go of the bytes if they got no key."""

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Turns:
    """Queues of threads, one per slot of keys: the in-process half of `Engine.turn`."""

    SLOTS: ClassVar[int] = 256
    PATIENCE: ClassVar[float] = 1.0  # seconds; a commit takes about 1 ms

    def __init__(self) -> None:
        self._locks = [threading.Lock() for _ in range(self.SLOTS)]
        self._mine = threading.local()

    @contextlib.contextmanager
    def take(self, key: str) -> Iterator[int | None]:
        """Wait for the key's slot and yield its number, or None if it was not to be had.

        A thread that has a slot gets no second one: two threads nesting in opposite order, or
        two keys of one slot, would wait for themselves.
        """
        slot = zlib.crc32(key.encode()) % self.SLOTS
        if getattr(self._mine, "busy", False):
            yield None
            return
        taken = self._locks[slot].acquire(timeout=self.PATIENCE)
        self._mine.busy = taken
        try:
            yield slot if taken else None
        finally:
            self._mine.busy = False
            if taken:
                self._locks[slot].release()
