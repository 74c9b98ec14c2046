"""Files as the local engine needs them: written whole, kept open, grown, locked.

Nothing here knows a key's meaning.  The calls of `os` come in as `system`, so that tests can pass
one that fails on demand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import resource
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from diced.engine.appender import Appender
from diced.engine.aside import Aside
from diced.engine.base import Buffer, Durability, Turns, flat_view, is_part, translate

CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_CLOEXEC
START_BYTES = 64 * 1024
READ = os.O_RDONLY | os.O_CLOEXEC
_IOV_MAX = max(16, os.sysconf("SC_IOV_MAX"))


def folder(key: str) -> str:
    """Return the key of the directory that a key is in; "" is the root."""
    return key.rpartition("/")[0]


def file_system(path: str) -> str | None:
    """Return the type of the file system that a directory is on, as Linux calls it, or None."""
    try:
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[2] == number:
                    return fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        pass  # another system than Linux, or no /proc
    return None


def write_new(system: Any, fd: int, chunks: Iterable[Buffer], durability: Durability) -> None:
    """Write and sync a new file, and close it; an error of close is an error of the write."""
    try:
        write_all(system, fd, chunks)
        if durability == "power":
            sync_file(system, fd)
    except BaseException:
        os.close(fd)
        raise
    system.close(fd)


def write_all(system: Any, fd: int, chunks: Iterable[Buffer]) -> None:
    """Write all of the chunks where the file stands."""
    for chunk in chunks:
        view = flat_view(chunk)
        while view.nbytes:
            view = view[_progress(system.write(fd, view)) :]


def sync_file(system: Any, fd: int) -> None:
    """Make a file's bytes and size survive a power cut."""
    if sys.platform == "darwin":  # fsync there leaves the bytes in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        system.fdatasync(fd)


@functools.cache
def _range_writer() -> Any:
    """Return Linux's ``sync_file_range``, or None."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def start_writing(fd: int, offset: int, size: int) -> None:
    """Let the disk begin with bytes that will be synced soon.

    A one-block commit of 256 KiB takes 770 us so, 865 without. It is a hint: what goes wrong, the
    sync tells.
    """
    if size >= START_BYTES:
        function = _range_writer()
        if function is not None:
            function(fd, offset, size, 2)  # SYNC_FILE_RANGE_WRITE


def sync_directory(system: Any, path: str) -> None:
    """Make the names in a directory survive a power cut."""
    fd = open_file(system, path, READ | os.O_DIRECTORY)
    try:
        system.fsync(fd)
    finally:
        os.close(fd)


def _progress(wrote: int) -> int:
    if wrote <= 0:
        raise OSError(errno.EIO, "the system wrote nothing")
    return wrote


def names_in(system: Any, path: str) -> list[str]:
    """Return the parts of keys in a directory, sorted, those of directories with a slash behind.

    A directory sorts as its name with a slash, which is how its keys sort.
    """
    with system.scandir(path) as entries:
        return sorted(
            entry.name + "/" if entry.is_dir() else entry.name
            for entry in entries
            if is_part(entry.name)
        )


class FileAppender(Appender):
    """A growing file; `fd` is open for writing and becomes the appender's."""

    def __init__(self, key: str, path: str, fd: int, durability: Durability, system: Any) -> None:
        super().__init__(key)
        self._path = path
        self._fd = fd
        self._durability = durability
        self._os = system
        self._named = False
        self._closer = weakref.finalize(self, os.close, fd)
        self._closer.atexit = False

    def _write(self, offset: int, views: list[memoryview]) -> None:
        try:
            at, begin = 0, offset
            while at < len(views):
                wrote = _progress(self._os.pwritev(self._fd, views[at : at + _IOV_MAX], offset))
                offset += wrote
                while at < len(views) and wrote >= views[at].nbytes:
                    wrote -= views[at].nbytes
                    at += 1
                if wrote:
                    views[at] = views[at][wrote:]
            if self._durability == "power":
                start_writing(self._fd, begin, offset - begin)
        except OSError as error:
            raise translate(error, f"append to {self._path!r}") from error

    def _flush(self) -> None:
        if self._durability != "power":
            return
        try:
            sync_file(self._os, self._fd)
            if not self._named:
                sync_directory(self._os, os.path.dirname(self._path))
                self._named = True
        except OSError as error:
            raise translate(error, f"sync {self._path!r}") from error

    def _release(self) -> None:
        self._closer()


class Spares:
    """A file without a name, made ahead of the next object.

    Where many files were deleted of late, as by the tests of others, ext4 takes 0.1 to 0.3 ms to
    find an inode that it may use, more than the rest of a commit that is not synced.

    Parameters
    ----------
    root : str
        Directory whose file system the file is on.
    flag : int
        ``O_TMPFILE``.
    """

    def __init__(self, root: str, flag: int) -> None:
        self._root = root
        self._flag = flag
        self._kept: deque[int] = deque()
        self._closed = False
        weakref.finalize(self, _close_spares, self._kept).atexit = False

    def take(self) -> int | None:
        """Return a file open for writing, which is now the caller's, or None."""
        try:
            return self._kept.popleft()
        except IndexError:
            return None

    def refill(self) -> None:
        """Have one made by another thread, unless there is one."""
        if not self._kept and not self._closed:
            _ahead.later(self._make)

    def _make(self) -> None:
        self._kept.append(os.open(self._root, self._flag | WRITE, 0o666))
        if self._closed:
            _close_spares(self._kept)

    def close(self) -> None:
        """Let go of the file."""
        self._closed = True
        _close_spares(self._kept)

    def forked(self) -> None:
        """In a forked child: the file is the parent's, which is going to write to it."""
        _close_spares(self._kept)


def _close_spares(kept: deque[int]) -> None:
    while kept:
        with contextlib.suppress(IndexError):  # taken meanwhile
            os.close(kept.popleft())


_ahead = Aside("diced-ahead")


class Handle:
    """An open file and how many threads are reading it."""

    __slots__ = ("fd", "kept", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 1
        self.kept = False


def _close_all(kept: OrderedDict[str, Handle]) -> None:
    for handle in kept.values():
        os.close(handle.fd)


def open_file(system: Any, path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file; if this process has too many open, close those that only wait to be read."""
    try:
        return int(system.open(path, flags, mode))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    for handles in list(_HANDLES):
        handles.close_idle()
    return int(system.open(path, flags, mode))


class Handles:
    """Files open for reading, the least recently used closed first, and never while in use.

    At most `limit` wait open, and an eighth of what the process may open: there may be several
    engines, and the user opens files, too.
    """

    def __init__(self, limit: int, system: Any) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if allowed != resource.RLIM_INFINITY:
            limit = min(limit, max(4, allowed // 8))
        self._limit = limit
        self._os = system
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Handle] = OrderedDict()
        closer = weakref.finalize(self, _close_all, self._kept)
        closer.atexit = False
        _HANDLES.add(self)

    def take(self, key: str, path: str, keep: bool) -> Handle:
        with self._lock:
            handle = self._kept.get(key)
            if handle is not None:
                handle.users += 1
                self._kept.move_to_end(key)
                return handle
        handle = Handle(open_file(self._os, path, READ))
        if keep:
            with self._lock:
                if key not in self._kept:
                    handle.kept = True
                    self._kept[key] = handle
                    if len(self._kept) > self._limit:
                        self._let_go(next(iter(self._kept)))
        return handle

    def give_back(self, handle: Handle) -> None:
        with self._lock:
            handle.users -= 1
            if not handle.users and not handle.kept:
                os.close(handle.fd)

    def close_idle(self) -> None:
        """Close the files that nobody is reading."""
        with self._lock:
            for key in [key for key, handle in self._kept.items() if not handle.users]:
                self._let_go(key)

    def drop(self, key: str) -> None:
        with self._lock:
            if key in self._kept:
                self._let_go(key)

    def clear(self, *, forked: bool = False) -> None:
        if forked:  # the lock may have been held, and no reader survived the fork
            self._lock = threading.Lock()
        with self._lock:
            for key in list(self._kept):
                if forked:
                    self._kept[key].users = 0
                self._let_go(key)

    def _let_go(self, key: str) -> None:
        handle = self._kept.pop(key)
        handle.kept = False
        if not handle.users:
            os.close(handle.fd)


_HANDLES: weakref.WeakSet[Handles] = weakref.WeakSet()


class SlotLocks:
    """One lock file per slot of keys: the half of `Engine.turn` that other processes see.

    The system lets go of a lock whose process dies, however it dies.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._held: set[int] = set()

    def take(self, slot: int) -> int | None:
        """Lock a slot; None if that is not supported, or takes longer than the patience.

        Polled, because a blocking flock would wait for as long as its holder is stopped.
        """
        try:
            fd = self._open(slot)
        except OSError:
            return None  # a full or foreign disk: no turns, which nothing relies on
        limit = time.monotonic() + Turns.PATIENCE
        pause = 1e-4
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held.add(fd)
                return fd
            except BlockingIOError:
                if time.monotonic() < limit:
                    time.sleep(pause)
                    pause = min(2 * pause, 2e-3)
                    continue
            except OSError:
                pass  # no locks here, as on NFS without lockd or Lustre without flock
            os.close(fd)
            return None

    def give_back(self, fd: int) -> None:
        if fd in self._held:  # else the process forked inside the turn, and this is the child
            self._held.discard(fd)
            # Unlocked explicitly: a forked child shares the lock, and closing only this
            # process's descriptor would leave it taken.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def forked(self) -> None:
        """Close the parent's locks in its child, without unlocking them."""
        held, self._held = self._held, set()
        for fd in held:
            os.close(fd)

    def _open(self, slot: int) -> int:
        path = f"{self._folder}/{slot:02x}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(self._folder, exist_ok=True)
            return os.open(path, flags, 0o666)
