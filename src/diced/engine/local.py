"""Objects as files below one directory: local disks, NFS, Lustre and the like.

A key is a path below the root.  ``link(2)`` is what makes `LocalEngine.put_if_absent` atomic, on
one host and between hosts; no lock is needed for safety.  Two directories of the root are the
engine's own: ``.tmp`` (files being written) and ``.turn`` (lock files, a hint only).

On a network file system a name that seems missing is looked for again past the client's caches,
and the bytes of files are synced also at durability "process": other hosts do not see them before.

This module does not decide what a store is, and never renames or rewrites an object.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from diced import forks
from diced.engine.appender import Appender
from diced.engine.base import (
    Buffer,
    Engine,
    Staged,
    Turns,
    check_durability,
    check_key,
    check_range,
    fresh_key,
    missing,
    short_read,
    translate,
    writable_view,
)
from diced.engine.folders import Folders, make_root
from diced.engine.netfs import GONE, RENAMES, Fresh, is_network
from diced.engine.posix import (
    CREATE,
    FileAppender,
    Handle,
    Handles,
    SlotLocks,
    Spares,
    file_system,
    folder,
    names_in,
    open_file,
    write_new,
)
from diced.engine.staged import StagedFile
from diced.errors import (
    CorruptError,
    DicedException,
    EngineError,
    InvalidError,
    LocationError,
    NoSpaceError,
    ReadOnlyError,
)

T = TypeVar("T")

# File systems that journal in order. Others, such as btrfs, do not log a file without a name when
# it is synced, so that a power cut after its naming could leave it empty.
_KEEPS_NAMELESS = {"ext3", "ext4", "xfs", "tmpfs"}
_NAMINGS = ("link", "rename")
_MAX_OFFSET = (1 << 63) - 1
_TRUST = 1 << 20  # a longer range is checked against the file before memory is set aside for it


def open_local(
    location: str,
    *,
    durability: str = "power",
    readonly: bool = False,
    create: bool = True,
    network: bool | None = None,
    naming: str | None = None,
) -> LocalEngine:
    """Open the directory `location`, making it and its parents if asked and allowed to.

    Parameters
    ----------
    location : str
    durability, readonly, network, naming
        As of `LocalEngine`.
    create : bool
        Make the directory if it is missing.

    Raises
    ------
    LocationError
        If it is missing and may not or cannot be made, or is not a directory.
    """
    if not location or "\0" in location:
        raise LocationError(f"location must be a path; got {location!r}")
    path = os.path.expanduser(location)
    if path.startswith("~"):
        raise LocationError(f"no home directory is known for {location!r}")
    root = os.path.abspath(path)
    durability = check_durability(durability)
    if not os.path.isdir(root):
        if os.path.lexists(root):
            raise LocationError(f"{root!r} is not a directory")
        if readonly or not create:
            raise LocationError(f"there is no directory {root!r}")
        try:
            make_root(root, durability)
        except OSError as error:
            cause = translate(error, f"make the directory {root!r}")
            if isinstance(cause, NoSpaceError):
                raise cause from error
            raise LocationError(str(cause)) from error
    return LocalEngine(
        root, durability=durability, readonly=readonly, network=network, naming=naming
    )


class LocalEngine(Engine):
    """The engine contract over a directory.

    Parameters
    ----------
    root : str
        Absolute path of an existing directory.
    durability : {"power", "process"}
        "power" fsyncs files and the directories that name them; "process" fsyncs nothing.
    readonly : bool
    max_handles : int
        Files kept open for reading.
    system : module
        Where the calls of `os` are found; tests pass one that fails on demand.
    network : bool, optional
        Other hosts may use the directory, and this one's caches hide what they do.  By default
        that is decided by the type of the file system.
    naming : {"link", "rename"}, optional
        How a file gets its key: ``link(2)``, or ``renameat2(2)`` that replaces nothing.  By
        default the first, and the second on a local file system without links, or where
        ``diced probe`` found on two hosts that it does.
    """

    def __init__(
        self,
        root: str,
        *,
        durability: str = "power",
        readonly: bool = False,
        max_handles: int = 256,
        system: Any = os,
        network: bool | None = None,
        naming: str | None = None,
    ) -> None:
        if naming is not None and naming not in _NAMINGS:
            raise InvalidError(f"naming is one of {_NAMINGS}; got {naming!r}")
        self.root = root
        self.durability = check_durability(durability)
        self.readonly = bool(readonly)
        self._os = system
        self.descriptors = system is os  # else every call is to go through `system`
        self._closed = False
        self._handles = Handles(max_handles, system)
        # The flag that makes a file without a name, while that is known to work and to last.
        self._nameless: int | None = getattr(system, "O_TMPFILE", None)
        self.kind = file_system(root)
        self.network = is_network(self.kind) if network is None else network
        self._fresh = Fresh(root, system) if self.network else None
        self.naming = naming or ("rename" if self.kind in RENAMES else "link")
        self.naming_given = naming is not None
        # What the bytes of files survive; that of names is `durability`.
        self._level = "power" if self.network else self.durability
        if self.network or self.naming == "rename":
            self._nameless = None
        if durability == "power" and self.kind not in _KEEPS_NAMELESS:
            self._nameless = None
        self._spares: Spares | None = None
        if self._nameless is not None and system is os:
            self._spares = Spares(root, self._nameless)
        self._folders = Folders(root, self.durability, system, self._fresh)
        self._turns = Turns()
        self._locks = SlotLocks(f"{root}/.turn")
        forks.watch(self)

    @property
    def url(self) -> str:
        from urllib.parse import quote_from_bytes

        return "file://" + quote_from_bytes(os.fsencode(self.root))

    # ---- writing

    def put_if_absent(self, key: str, data: Buffer, txid: bytes) -> bool:
        with self.stage(key, data, txid) as staged:
            staged.write()
            staged.sync()
            created = staged.name(key)
            staged.settle()
            return created

    def stage(self, prefix: str, data: Buffer, txid: bytes) -> Staged:
        self._check_open()
        self._check_write(prefix)
        return StagedFile(self, prefix, data, txid)

    def settle(self, key: str) -> None:
        self._check_write(key)
        try:
            # The directory is there, but its own name may not be durable.
            self._folders.within(folder(key), lambda: self._folders.sync(folder(key)))
        except OSError as error:
            raise self._write_error(error, key) from error

    def put_unique(self, prefix: str, chunks: Iterable[Buffer], suffix: str = "") -> str:
        self._check_open()
        self._check_write(prefix)
        # Written in place: until this returns nobody knows the name, so nobody reads it.
        key, fd = self._create_fresh(prefix, suffix)
        whole = False
        try:
            write_new(self._os, fd, chunks, self._level)
            self._folders.sync(folder(key))
            whole = True
        except OSError as error:
            raise self._write_error(error, key) from error
        finally:
            if not whole:
                self._discard(self._path(key))
        return key

    def delete(self, key: str) -> None:
        self._check_open()
        self._check_write(key)
        try:
            self._sure(folder(key), lambda: self._os.unlink(self._path(key)))
        except GONE:
            pass
        except OSError as error:
            raise translate(error, f"delete {key!r} in {self.root!r}") from error
        finally:
            self._handles.drop(key)

    def appender(self, prefix: str, suffix: str = "") -> Appender:
        self._check_open()
        self._check_write(prefix)
        key, fd = self._create_fresh(prefix, suffix)
        return FileAppender(key, self._path(key), fd, self._level, self._os)

    def sweep_temps(self, older_than_seconds: float = 86400, *, count_only: bool = False) -> int:
        self._check_open()
        if self.readonly and not count_only:
            raise ReadOnlyError(f"cannot sweep {self.url}: it was opened read-only")
        folder = self._path(".tmp")
        limit = time.time() - older_than_seconds
        removed = 0
        try:
            with self._os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        if entry.stat(follow_symlinks=False).st_mtime <= limit:
                            if not count_only:
                                self._os.unlink(entry.path)
                            removed += 1
                    except FileNotFoundError:
                        continue  # its writer, or another sweep, was faster
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise translate(error, f"sweep {folder!r}") from error
        return removed

    def prune(self, prefix: str) -> None:
        """Remove the empty directories below a prefix, and those for temporary files."""
        self._folders.prune(check_key(prefix))
        self._folders.prune(".tmp")

    # ---- reading

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._check_open()
        check_range(check_key(key), start, length)

        def read(fd: int) -> bytes:
            wanted = length
            if wanted is None or not 0 < wanted <= _TRUST or start > _MAX_OFFSET - wanted:
                size = self._os.fstat(fd).st_size
                wanted = max(0, size - start) if wanted is None else wanted
                if start + wanted > size:
                    raise short_read(key, start, wanted, max(0, size - start))
            parts: list[bytes] = []
            got = 0
            while got < wanted or not parts:
                part: bytes = self._os.pread(fd, wanted - got, start + got)
                parts.append(part)
                got += len(part)
                if not part and wanted:
                    raise short_read(key, start, wanted, got)
            return parts[0] if len(parts) == 1 else b"".join(parts)

        # A whole object is a record, read once; its handle would push a segment's out.
        return self._reading(key, not (start == 0 and length is None), read)

    def read_into(self, key: str, start: int, out: Buffer) -> None:
        self._check_open()
        check_range(check_key(key), start, None)
        view = writable_view(out)
        if not view.nbytes:
            self.get(key, start, 0)
            return
        if start > _MAX_OFFSET - view.nbytes:
            raise short_read(key, start, view.nbytes, 0)

        def fill(fd: int) -> None:
            got = 0
            while got < view.nbytes:
                count: int = self._os.preadv(fd, [view[got:] if got else view], start + got)
                if count == 0:
                    raise short_read(key, start, view.nbytes, got)
                got += count

        self._reading(key, True, fill)

    def borrow(self, key: str) -> Handle:
        self._check_open()
        try:
            return self._take(check_key(key), True)
        except GONE:
            raise missing(key) from None
        except OSError as error:
            raise translate(error, f"open {key!r} in {self.root!r}") from error

    def give_back(self, handle: Handle) -> None:
        self._handles.give_back(handle)

    def exists(self, key: str) -> bool:
        return self._stat(key) is not None

    def size(self, key: str) -> int:
        status = self._stat(key)
        if status is None:
            raise missing(key)
        return status.st_size

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self._check_open()
        if prefix:
            check_key(prefix)
        return self._walk(prefix, after)

    # ---- the rest

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        check_key(key)
        if self.readonly:
            yield
            return
        with self._turns.take(key) as slot:
            fd = None if slot is None else self._locks.take(slot)
            try:
                yield
            finally:
                if fd is not None:
                    self._locks.give_back(fd)

    def close(self) -> None:
        self._closed = True
        self._handles.clear()
        if self._spares is not None:
            self._spares.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"engine {self.url} is closed")

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root

    def _stat(self, key: str) -> os.stat_result | None:
        self._check_open()
        check_key(key)
        path = self._path(key)
        try:
            status: os.stat_result
            if self._fresh is None:
                status = self._os.stat(path)
            else:
                status = self._fresh.sure(folder(key), lambda: self._os.stat(path))
        except GONE:
            return None
        except OSError as error:
            raise translate(error, f"look up {key!r} in {self.root!r}") from error
        return status if stat.S_ISREG(status.st_mode) else None

    def _reading(self, key: str, keep: bool, read: Callable[[int], T]) -> T:
        short = False
        for attempt in (1, 2):
            try:
                if short and self._fresh is not None:
                    self._fresh.refresh(key)
                handle = self._take(key, keep)
                try:
                    return read(handle.fd)
                finally:
                    self._handles.give_back(handle)
            except GONE:
                raise missing(key) from None
            except CorruptError:
                if self._fresh is None or attempt == 2:
                    raise
                # Too short: it may have grown at the server since it was opened here.
                self._handles.drop(key)
                short = True
            except OSError as error:
                # NFS: the file was replaced at the server behind a cached handle.
                if error.errno == errno.ESTALE and attempt == 1:
                    self._handles.drop(key)
                    continue
                raise translate(error, f"read {key!r} in {self.root!r}") from error
        raise AssertionError("not reached")

    def _take(self, key: str, keep: bool) -> Handle:
        path = self._path(key)
        if self._fresh is None:
            return self._handles.take(key, path, keep)
        return self._fresh.sure(folder(key), lambda: self._handles.take(key, path, keep))

    def _sure(self, directory: str, action: Callable[[], T]) -> T:
        """Do something with a name in a directory, as `Fresh.sure` on a network file system."""
        return action() if self._fresh is None else self._fresh.sure(directory, action)

    def _walk(self, prefix: str, after: str) -> Iterator[str]:
        try:
            if self._fresh is not None:
                self._fresh.refresh(prefix)
            found = self._sure(prefix, lambda: names_in(self._os, self._path(prefix)))
        except GONE:
            return
        except OSError as error:
            raise translate(error, f"list {prefix!r} in {self.root!r}") from error
        for name in found:
            key = f"{prefix}/{name}" if prefix else name
            if not name.endswith("/"):
                if key > after:
                    yield key
            elif key > after or after.startswith(key):
                yield from self._walk(key[:-1], after)

    def _create_fresh(self, prefix: str, suffix: str) -> tuple[str, int]:
        while True:
            key = fresh_key(prefix, suffix)
            try:
                return key, self._create(key)
            except FileExistsError:
                continue  # one chance in 2**64
            except OSError as error:
                raise self._write_error(error, key) from error

    def _create(self, key: str) -> int:
        path = self._path(key)
        return self._folders.within(folder(key), lambda: open_file(self._os, path, CREATE))

    def _discard(self, path: str) -> None:
        try:
            self._os.unlink(path)
        except OSError:
            return  # harmless: a stale temporary is never listed, and `sweep_temps` removes it

    def _write_error(self, error: OSError, key: str) -> DicedException:
        doing = f"write {key!r} in {self.root!r}"
        if isinstance(error, FileNotFoundError):
            # Not NotFoundError: callers read that as "the key is free".
            return EngineError(f"cannot {doing}: its directory or temporary file was removed")
        return translate(error, doing)

    def after_fork(self) -> None:
        """Let go what the parent goes on using, and make locks anew."""
        self._folders.forked()
        if self._spares is not None:
            self._spares.forked()
        self._handles.clear(forked=True)
        self._turns = Turns()
        self._locks.forked()
