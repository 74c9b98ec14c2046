"""Objects of the local engine that get their key when their bytes are on disk already."""

from __future__ import annotations

import errno
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from diced.engine.aside import Flushes
from diced.engine.base import Buffer, Staged, flat_view, fresh_name
from diced.engine.posix import CREATE, WRITE, folder, open_file, sync_file, write_all
from diced.errors import LocationError

if TYPE_CHECKING:
    from diced.engine.local import LocalEngine

# What file systems, or the lack of /proc, answer where a file made without a name gets none.
_NO_NAMELESS = {
    errno.EISDIR, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM,
    errno.ENOENT, errno.EXDEV,
}  # fmt: skip
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_MAX_SYNCS = 1024


class Syncs:
    """Syncs of directories, which threads that want one at once share."""

    def __init__(self) -> None:
        self._found: dict[str, Flushes] = {}

    def of(self, directory: str) -> Flushes:
        found = self._found.get(directory)
        if found is None:
            if len(self._found) >= _MAX_SYNCS:
                self._found.clear()  # who is in one stays there; it is only not shared any more
            found = self._found.setdefault(directory, Flushes(threading.Lock()))
        return found


class StagedFile(Staged):
    """A file that `link` gives its name: made without any if possible, else below ``.tmp``."""

    _engine: LocalEngine

    def __init__(self, engine: LocalEngine, prefix: str, data: Buffer, txid: bytes) -> None:
        super().__init__(engine, prefix, data, txid)
        self._view = flat_view(data)
        self._fd = -1
        self._temp = ""  # its path, if it has one before its key
        self._key: str | None = None
        self._failures: int | None = None  # of syncs of its directory before it was named

    def write(self) -> None:
        engine = self._engine
        try:
            if not self._create_nameless():
                self._temp = engine._path(f".tmp/{fresh_name()}")
                create = partial(engine._os.open, self._temp, CREATE, 0o666)
                self._fd = engine._within(".tmp", create)
            write_all(engine._os, self._fd, (self._view,))
        except OSError as error:
            raise engine._write_error(error, self._prefix) from error

    def _create_nameless(self) -> bool:
        engine = self._engine
        if engine._nameless is None:
            return False
        try:
            spare = None if engine._spares is None else engine._spares.take()
            if spare is None:
                spare = open_file(engine._os, engine.root, engine._nameless | WRITE)
            self._fd = spare
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
            engine._nameless = engine._spares = None
            return False
        return True

    def sync(self) -> None:
        engine = self._engine
        try:
            if engine.durability == "power":
                sync_file(engine._os, self._fd)
            if self._temp:  # an error of close is an error of the write
                fd, self._fd = self._fd, -1
                engine._os.close(fd)
        except OSError as error:
            raise engine._write_error(error, self._prefix) from error

    def name(self, key: str) -> bool:
        engine = self._engine
        engine._check_open()
        engine._check_write(key)
        if engine.durability == "power":
            self._failures = engine._syncs.of(folder(key)).failures
        try:
            try:
                created = self._link(key)
            except OSError as error:
                if self._temp or error.errno not in _NO_NAMELESS:
                    raise
                engine._nameless = None
                engine._spares = None
                self.close()
                self.write()
                self.sync()
                created = self._link(key)
        except OSError as error:
            raise engine._write_error(error, key) from error
        if created:
            self._key = key
        return created

    def _link(self, key: str) -> bool:
        """Give the file its name; False if somebody else's file has it."""
        engine = self._engine
        path = engine._path(key)
        if self._temp:
            link = partial(engine._os.link, self._temp, path)
        else:
            # Without a directory's descriptor, which an absolute path makes void, Python calls
            # link(2), which would link the symbolic link.
            source = f"/proc/self/fd/{self._fd}"
            link = partial(engine._os.link, source, path, src_dir_fd=self._fd)
        try:
            engine._within(folder(key), link)
            return True
        except FileExistsError:
            return bool(engine._holds(path, self._view))
        except OSError as error:
            # The answer may have been lost after the link was made, as on NFS.
            if self._links() > 0:
                return True
            if self._temp and error.errno in _NO_LINKS:
                raise LocationError(
                    f"the file system of {engine.root!r} makes no hard links [{error.strerror}], "
                    "without which several writers cannot be told apart; use another location"
                ) from error
            there = engine._holds(path, self._view)
            if there is None:
                raise
            return there

    def _links(self) -> int:
        """Return how many keys the file has."""
        if self._temp:
            return int(self._engine._os.stat(self._temp).st_nlink) - 1
        return int(self._engine._os.fstat(self._fd).st_nlink)

    def settle(self) -> None:
        if self._key is None:
            return
        try:
            self._engine._sync_directory(folder(self._key), self._failures)
        except OSError as error:
            raise self._engine._write_error(error, self._key) from error

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            if self._engine._spares is not None:
                self._engine._spares.refill()
        if self._temp:
            temp, self._temp = self._temp, ""
            self._engine._discard(temp)
