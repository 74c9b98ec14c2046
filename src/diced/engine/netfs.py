"""Network file systems: which they are, what their caches hide, and how to see past it.

A client of NFS keeps for up to a minute that a name does not exist, and for as long what a
directory holds. It believes that no longer once it has asked the server for the directory's
attributes and these have changed; `ask_server` makes it ask. The C library is called through
ctypes, loaded when it is first needed: never on a local file system.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from diced.engine.posix import READ, folder

T = TypeVar("T")

_NETWORK = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs",
    "gpfs", "hgfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs",
    "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs",
}  # fmt: skip
GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# What `link` answers where there are no links.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
# Local file systems without links whose kernel side decides by itself whether a name is free.
RENAMES = {"vfat", "msdos", "exfat"}

_AT_FDCWD = -100
_FORCE_SYNC = 0x2000
_BASIC_STATS = 0x7FF
_STATX_BYTES = 256
_NLINK_AT = 16
_NOREPLACE = 1
_TRIES = 3


def is_network(kind: str | None) -> bool:
    """Whether a type of file system is shared with other hosts, or may be.

    Programs that serve one (``fuse``, ``fuse.sshfs``) count; ``fuseblk`` is a local disk.
    """
    return kind is not None and (
        kind in _NETWORK or kind == "fuse" or kind.startswith(("fuse.", "nfs"))
    )


@functools.cache
def _function(name: str, *arguments: str) -> Any:
    """Return a function of the C library that sets errno, or None."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is not None:
        function.argtypes = [getattr(ctypes, each) for each in arguments]
    return function


def _failure(path: str) -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def ask_server(path: str) -> int:
    """Have a file's or directory's attributes asked of the server; return how many links it has.

    Where the system offers no such call, a directory is opened and closed, which has NFS compare
    its attributes with the server's.
    """
    statx = _function("statx", "c_int", "c_char_p", "c_int", "c_uint", "c_void_p")
    if statx is not None:
        import ctypes

        found = ctypes.create_string_buffer(_STATX_BYTES)
        if statx(_AT_FDCWD, os.fsencode(path), _FORCE_SYNC, _BASIC_STATS, found) == 0:
            return int.from_bytes(found.raw[_NLINK_AT : _NLINK_AT + 4], sys.byteorder)
        error = _failure(path)
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise error
    fd = os.open(path, READ)
    try:
        return os.fstat(fd).st_nlink
    finally:
        os.close(fd)


def rename_if_absent(source: str, target: str) -> None:
    """Rename a file, atomically, unless the target exists: then FileExistsError.

    Raises
    ------
    OSError
        ENOSYS or EINVAL where the system or the file system has no such call.
    """
    rename = _function("renameat2", "c_int", "c_char_p", "c_int", "c_char_p", "c_uint")
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE) != 0:
        raise _failure(target)


class Fresh:
    """Sees past the caches of a network file system's client, below one directory.

    Parameters
    ----------
    root : str
    system : module
        As of `LocalEngine`; its ``ask_server``, if it has one, is called instead of this module's.
    """

    def __init__(self, root: str, system: Any) -> None:
        self._root = root
        self._ask: Callable[[str], int] = getattr(system, "ask_server", ask_server)

    def refresh(self, directory: str) -> None:
        """Forget what the client takes for known of the names in a directory of the root.

        Of its parents, too, if it seems to be missing.
        """
        path = f"{self._root}/{directory}" if directory else self._root
        for attempt in (1, 2):
            try:
                self._ask(path)
                return
            except OSError as error:
                if not (isinstance(error, GONE) or error.errno == errno.ESTALE):
                    raise
            if attempt == 1 and directory:
                self.refresh(folder(directory))

    def links(self, path: str) -> int:
        """Return how many links the server counts of a file."""
        return self._ask(path)

    def sure(self, directory: str, action: Callable[[], T]) -> T:
        """Do something with a name in a directory; what seems missing is looked for again.

        So is what was replaced at the server while this host knew it (ESTALE).
        """
        for _ in range(_TRIES - 1):
            try:
                return action()
            except OSError as error:
                if not (isinstance(error, GONE) or error.errno == errno.ESTALE):
                    raise
                missing = isinstance(error, GONE)
            self.refresh(directory)
            if missing:
                break
        return action()
