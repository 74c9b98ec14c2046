"""Objects of the local engine that get their key when their bytes are on disk already."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from diced.engine import findings
from diced.engine.base import Buffer, Staged, flat_view, fresh_name
from diced.engine.netfs import NO_LINKS, rename_if_absent
from diced.engine.posix import CREATE, READ, WRITE, folder, open_file, sync_file, write_all
from diced.errors import EngineError, UnsupportedError

if TYPE_CHECKING:
    from diced.engine.local import LocalEngine

# What file systems, or the lack of /proc, answer where a file made without a name gets none.
_NO_NAMELESS = {
    errno.EISDIR, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM,
    errno.ENOENT, errno.EXDEV,
}  # fmt: skip
_NO_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_COMPARE_BYTES = 1 << 20


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
                self._fd = engine._folders.within(".tmp", self._create_temp)
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

    def _create_temp(self) -> int:
        while True:
            self._temp = self._engine._path(f".tmp/{fresh_name()}")
            try:
                return open_file(self._engine._os, self._temp, CREATE)
            except FileExistsError:
                continue  # nobody else has that name: the answer to the first request was lost

    def sync(self) -> None:
        engine = self._engine
        try:
            if engine._level == "power":
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
        self._failures = engine._folders.failures(folder(key))
        try:
            try:
                created = self._give(key)
            except OSError as error:
                if self._temp or error.errno not in _NO_NAMELESS:
                    raise
                engine._nameless = None
                engine._spares = None
                self.close()
                self.write()
                self.sync()
                created = self._give(key)
        except OSError as error:
            raise engine._write_error(error, key) from error
        if created:
            self._key = key
        return created

    def _give(self, key: str) -> bool:
        """Give the file its name; False if somebody else's file has it."""
        engine = self._engine
        path = engine._path(key)
        if self._temp and engine.naming == "rename":
            return self._rename(key, path)
        if self._temp:
            link = partial(engine._os.link, self._temp, path)
        else:
            # Without a directory's descriptor, which an absolute path makes void, Python calls
            # link(2), which would link the symbolic link.
            source = f"/proc/self/fd/{self._fd}"
            link = partial(engine._os.link, source, path, src_dir_fd=self._fd)
        try:
            engine._folders.within(folder(key), link)
            return True
        except OSError as error:
            return self._settled(key, path, error)

    def _settled(self, key: str, path: str, error: OSError) -> bool:
        """Find out whether a link that raised was made, or raise.

        On a network file system its answer may have been lost; then the same request, sent once
        more by the client, is told that the name exists. The count of links tells, and the bytes
        under the name, which hold the transaction's id.
        """
        engine = self._engine
        exists = isinstance(error, FileExistsError)
        if (engine.network or not exists) and self._links() > 0:
            return True
        there = self._holds(key, path)
        if there is not None:
            return there
        if exists and engine.network:
            raise EngineError(
                f"cannot tell whether {key!r} was written in {engine.root!r}: something of that "
                "name was there and has gone"
            ) from error
        if exists:
            return False
        if self._temp and error.errno in NO_LINKS and not self._makes_links():
            return self._without_links(key, path, error)
        raise error

    def _links(self) -> int:
        """Return how many keys the file has; 0 also if that cannot be found out."""
        engine = self._engine
        try:
            if self._temp and engine._fresh is not None:
                return engine._fresh.links(self._temp) - 1
            if self._temp:
                return int(engine._os.stat(self._temp).st_nlink) - 1
            return int(engine._os.fstat(self._fd).st_nlink)
        except OSError:
            return 0  # the bytes under the name tell, too

    def _makes_links(self) -> bool:
        """Whether the file system makes links, if not that one."""
        engine = self._engine
        other = engine._path(f".tmp/{fresh_name()}")
        try:
            engine._os.link(self._temp, other)
        except OSError as error:
            return error.errno not in NO_LINKS
        engine._discard(other)
        return True

    def _without_links(self, key: str, path: str, error: OSError) -> bool:
        """Rename instead, if a probe by two hosts found that it replaces nothing here."""
        engine = self._engine
        if not engine.naming_given:
            found = findings.newest(engine) or {}
            if found.get("naming") == "rename" and found.get("writers") and found.get("hosts") == 2:
                engine.naming = "rename"
                return self._rename(key, path)
        raise self._unsupported("makes no hard links", error) from error

    def _rename(self, key: str, path: str) -> bool:
        engine = self._engine
        rename = getattr(engine._os, "rename_if_absent", rename_if_absent)
        try:
            engine._folders.within(folder(key), partial(rename, self._temp, path))
        except OSError as error:
            there = self._holds(key, path)
            if there is not None:
                return there
            if isinstance(error, FileExistsError):
                return False
            if error.errno in _NO_RENAME:
                raise self._unsupported("cannot rename without replacing", error) from error
            raise
        self._temp = ""
        return True

    def _unsupported(self, what: str, error: OSError) -> UnsupportedError:
        engine = self._engine
        kind = f" ({engine.kind})" if engine.kind else ""
        return UnsupportedError(
            f"the file system of {engine.root!r}{kind} {what} [{error.strerror}], without which "
            "several writers cannot be told apart, so nothing was written; reading works "
            "(readonly=True); to write use another file system or a bucket; "
            "`diced probe` tells what a location can do"
        )

    def _holds(self, key: str, path: str) -> bool | None:
        """Whether the file at `path` holds the bytes, synced if so; None if there is no file."""
        try:
            return self._engine._sure(folder(key), partial(self._compare, path))
        except FileNotFoundError:
            return None

    def _compare(self, path: str) -> bool:
        engine, data = self._engine, self._view
        fd = open_file(engine._os, path, READ)
        try:
            if engine._os.fstat(fd).st_size != data.nbytes:
                return False
            got = 0
            while got < data.nbytes:
                part = engine._os.pread(fd, min(_COMPARE_BYTES, data.nbytes - got), got)
                if not part or part != data[got : got + len(part)]:
                    return False
                got += len(part)
            if engine._level == "power":
                sync_file(engine._os, fd)  # the earlier attempt may have been by another engine
            return True
        finally:
            os.close(fd)

    def settle(self) -> None:
        if self._key is None:
            return
        try:
            self._engine._folders.sync(folder(self._key), self._failures)
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
