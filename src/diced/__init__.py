"""diced: a numpy-style, versioned store for massive n-dimensional arrays.

>>> from diced import DicedStore, ArrayDtype
>>> store = DicedStore("memory://")
>>> repo = store.create_repo("demo")
>>> em = repo.create_array("grayscale", ArrayDtype.uint8)
>>> em[0:2, 0:2, -1:1] = 7
>>> int(em[1, 1, -1])
7
"""

from diced.array import DicedArray
from diced.codec import backend as codec_backend
from diced.dag import VersionInfo
from diced.errors import (
    AccessError,
    AlreadyExistsError,
    AmbiguousError,
    BadIndexError,
    ConflictError,
    CorruptBlockError,
    CorruptError,
    DicedException,
    EngineError,
    InvalidError,
    LocationError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from diced.files import KeyValueArray
from diced.repo import DicedRepo
from diced.spec import ArrayDtype
from diced.store import DicedStore

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "AlreadyExistsError",
    "AmbiguousError",
    "ArrayDtype",
    "BadIndexError",
    "ConflictError",
    "CorruptBlockError",
    "CorruptError",
    "DicedArray",
    "DicedException",
    "DicedRepo",
    "DicedStore",
    "EngineError",
    "InvalidError",
    "KeyValueArray",
    "LocationError",
    "LockedError",
    "NoSpaceError",
    "NotFoundError",
    "ReadOnlyError",
    "UnsupportedError",
    "VersionInfo",
    "codec_backend",
]
