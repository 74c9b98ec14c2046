"""A stand-in for the `os` module whose calls fail on demand."""

import errno
import os


class FlakyOs:
    """The calls of `os`, of which one goes wrong in a chosen way.

    `fail_at` is its number, counted from 0, or a name: the first call of that name.
    """

    COUNTED = (
        *("open", "close", "write", "pwritev", "pread", "preadv", "fsync", "fdatasync"),
        *("link", "unlink", "mkdir", "stat", "fstat"),
    )

    def __init__(self, fail_at=None, number=errno.EIO, after=False, short=False, nameless=True):
        self.fail_at, self.number, self.after, self.short = fail_at, number, after, short
        self.calls = []
        if not nameless:
            self.O_TMPFILE = None

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in self.COUNTED:
            return real

        def call(*args, **kwargs):
            chosen = len(self.calls) == self.fail_at or (
                name == self.fail_at and name not in self.calls
            )
            self.calls.append(name)
            if not chosen:
                return real(*args, **kwargs)
            if self.short:
                return getattr(self, f"_short_{name}", real)(*args, **kwargs)
            if self.after or name == "close":  # a failing close does close
                result = real(*args, **kwargs)
                if name == "open":
                    os.close(result)
            raise OSError(self.number, os.strerror(self.number))

        return call

    def _short_write(self, fd, data):
        return os.write(fd, data[: max(1, len(data) // 2)])

    def _short_pwritev(self, fd, views, offset):
        total = sum(len(view) for view in views)
        return os.pwrite(fd, b"".join(views)[: max(1, total // 2)], offset)

    def _short_pread(self, fd, length, offset):
        return os.pread(fd, max(1, length // 2), offset)

    def _short_preadv(self, fd, views, offset):
        return os.preadv(fd, [views[0][: max(1, len(views[0]) // 2)]], offset)
