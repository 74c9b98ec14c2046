"""The exception tree, grouped by what a caller would do.

::

    DicedException
    ├── NotFoundError (KeyError)          ask for something that exists
    ├── AlreadyExistsError                choose another name, or open what is there
    ├── AmbiguousError                    give more of the UUID
    ├── LockedError                       write at an open version
    ├── ReadOnlyError                     open the store for writing
    ├── ConflictError                     read again and retry
    ├── InvalidError (ValueError)         correct the call
    │   └── BadIndexError (IndexError)    correct the index
    ├── UnsupportedError                  upgrade, or install what the message names
    ├── CorruptError                      run ``diced fsck``
    │   └── CorruptBlockError
    └── EngineError                       the medium failed
        ├── LocationError                 give another location
        ├── NoSpaceError                  free some space; nothing was half-written
        └── AccessError                   get permission
"""

from __future__ import annotations

from collections.abc import Iterable


class DicedException(Exception):
    """Base of everything diced raises on purpose."""

    # KeyError would print its message in quotes.
    __str__ = Exception.__str__


class NotFoundError(DicedException, KeyError):
    """A repo, version, array, file or object does not exist."""


class AlreadyExistsError(DicedException):
    """The name or UUID is taken."""


class AmbiguousError(DicedException, LookupError):
    """A prefix matches more than one UUID."""


class LockedError(DicedException):
    """The version node is locked and cannot change."""


class ReadOnlyError(DicedException):
    """The store, repo or array was opened read-only."""


class ConflictError(DicedException):
    """Another writer changed what this change was based on."""


class InvalidError(DicedException, ValueError):
    """An argument has the wrong type, shape or value."""


class BadIndexError(InvalidError, IndexError):
    """An index has the wrong number of dimensions, or a coordinate outside int32."""


class UnsupportedError(DicedException):
    """The format, codec or feature needs a newer diced or an optional package."""


class CorruptError(DicedException):
    """Stored bytes are not what was written."""


class CorruptBlockError(CorruptError):
    """A block's bytes are damaged; the message names array, block and segment."""


class EngineError(DicedException):
    """The medium failed."""


class LocationError(EngineError):
    """The location is not a store, or not of a form diced knows."""


class NoSpaceError(EngineError):
    """The disk or quota is full."""


class AccessError(EngineError):
    """The operating system or service refused access."""


def near_matches(name: str, known: Iterable[str], complete: bool = True) -> str:
    """Return the tail of a not-found message: names close to `name`, or all if they are few.

    With `complete` False `known` is only a part of what there is, and nothing but a close name is
    worth saying.
    """
    import difflib  # 3 ms, and only ever needed for a message

    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(each) for each in close) + "?"
    if not complete:
        return ""
    if not names:
        return "; there is none yet"
    if len(names) <= 8:
        return "; there is " + ", ".join(repr(each) for each in names)
    return f"; there are {len(names)} others"
