"""A simulated network file system: clients whose caches hide what others do.

Each `Client` stands for one host's mount of a real directory, and takes the place of `os` in a
`LocalEngine`. What a client once learned it believes until it asks the server about the directory
(`ask_server`) or changes it itself:

- a name that was missing stays missing, and a listing stays as it was;
- a file has the size and the count of links it had when it was last opened or looked at.

`lost` is the rate of links that are made but answered with EIO, or with EEXIST as when the request
is sent again. `restart` makes every open file and every known directory answer ESTALE once.
"""

import contextlib
import errno
import os
import random
import threading


class Entry:
    """What `os.scandir` yields, as far as it is used."""

    def __init__(self, name, folder):
        self.name, self._folder = name, folder

    def is_dir(self):
        return self._folder


def _error(number, path):
    return OSError(number, os.strerror(number), path)


class Client:
    def __init__(self, lost=0.0, seed=0, links=True, renames=True):
        self.lost, self.links, self.renames = lost, links, renames
        self.asked = 0
        self.lost_links = 0
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._missing = set()
        self._listed = {}
        self._nlink = {}
        self._sizes = {}
        self._stale = set()

    O_TMPFILE = os.O_TMPFILE if hasattr(os, "O_TMPFILE") else None

    def __getattr__(self, name):
        return getattr(os, name)

    def restart(self):
        with self._lock:
            self._stale |= set(self._sizes) | set(self._listed)

    def _check_stale(self, what):
        with self._lock:
            if what in self._stale:
                self._stale.discard(what)
                raise _error(errno.ESTALE, str(what))

    # ---- what the caches hide

    def ask_server(self, path):
        with self._lock:
            self.asked += 1
            self._known(path)
            found = os.stat(path).st_nlink
            self._missing = {each for each in self._missing if os.path.dirname(each) != path}
            self._listed.pop(path, None)
            self._nlink[path] = found
            return found

    def _known(self, path):
        """Raise if the path, or a directory above it, is taken for missing."""
        while path != "/":
            if path in self._missing:
                raise _error(errno.ENOENT, path)
            path = os.path.dirname(path)

    @contextlib.contextmanager
    def _looking(self, path):
        with self._lock:
            self._known(path)
            try:
                yield
            except FileNotFoundError:
                above = path  # the topmost part that is missing is what the client remembers
                while not os.path.exists(os.path.dirname(above)):
                    above = os.path.dirname(above)
                self._missing.add(above)
                raise

    @contextlib.contextmanager
    def _changing(self, path):
        """The server is asked, and decides; then this client knows."""
        with self._lock:
            self._known(os.path.dirname(path))
            try:
                yield
            finally:
                self._missing.discard(path)
                self._listed.pop(os.path.dirname(path), None)

    def stat(self, path):
        with self._looking(path):
            found = os.stat(path)
            nlink = self._nlink.setdefault(path, found.st_nlink)
            return os.stat_result((*found[:3], nlink, *found[4:]))

    def open(self, path, flags, mode=0o666):
        creating = flags & os.O_CREAT
        with self._changing(path) if creating else self._looking(path):
            fd = os.open(path, flags, mode)
            self._stale.discard(fd)
            if creating:
                self._nlink[path] = 1
            elif not flags & os.O_DIRECTORY:
                self._sizes[fd] = os.fstat(fd).st_size
            return fd

    def fstat(self, fd):
        found = os.fstat(fd)
        size = self._sizes.get(fd, found.st_size)
        return os.stat_result((*found[:6], size, *found[7:10]))

    def pread(self, fd, length, start):
        self._check_stale(fd)
        size = self._sizes.get(fd, 1 << 62)
        return os.pread(fd, max(0, min(length, size - start)), start)

    def preadv(self, fd, views, start):
        (view,) = views
        data = self.pread(fd, len(view), start)
        view[: len(data)] = data
        return len(data)

    def scandir(self, path):
        self._check_stale(path)
        with self._looking(path):
            if path not in self._listed:
                with os.scandir(path) as entries:
                    self._listed[path] = [Entry(each.name, each.is_dir()) for each in entries]
            return contextlib.nullcontext(list(self._listed[path]))

    # ---- what the server does

    def mkdir(self, path):
        with self._changing(path):
            os.mkdir(path)

    def unlink(self, path):
        with self._looking(path):
            os.unlink(path)
            self._listed.pop(os.path.dirname(path), None)

    def link(self, source, target, **options):
        with self._changing(target):
            if not self.links:
                raise _error(self.links_error, target)
            os.link(source, target, **options)
            if self._random.random() < self.lost:
                self.lost_links += 1
                raise _error(self._random.choice((errno.EIO, errno.EEXIST)), target)

    links_error = errno.EOPNOTSUPP

    def rename_if_absent(self, source, target):
        with self._changing(target):
            if not self.renames:
                raise _error(errno.EINVAL, target)
            os.link(source, target)
            os.unlink(source)
            if self._random.random() < self.lost:
                self.lost_links += 1
                raise _error(self._random.choice((errno.EIO, errno.ENOENT)), target)
