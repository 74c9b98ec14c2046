"""The face of DVIDCloudStore: one array on a server, sliced like numpy.

In use, with axes in the order ZYX::

    from diced.dvidcloud import DVIDVolume

    volume = DVIDVolume("localhost:8000", uuid, "grayscale", DVIDVolume.uint8)
    volume[z0:z1, y0:y1, x0:x1] = stack
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diced.errors import InvalidError, NotFoundError
from diced.remote.store import RemoteStore


class DVIDVolume:
    """A 3-D array on any DVID server, made if it is not there.

    Parameters
    ----------
    address : str
        ``host:port``.
    uuid : str
        Version, or the beginning of its UUID.
    name : str
        Of the array.
    dtype : numpy dtype
        ``DVIDVolume.uint8``, ``uint16``, ``uint32`` or ``uint64``; what is not 8 bits wide must be
        what the array holds.

    Raises
    ------
    InvalidError
        The array holds another type, or is not 3-D.
    NotFoundError
        There is no such version.
    """

    uint8 = np.uint8
    uint16 = np.uint16
    uint32 = np.uint32
    uint64 = np.uint64

    def __init__(self, address: str, uuid: str, name: str, dtype: Any = np.uint8):
        wanted = np.dtype(dtype)
        self._store = RemoteStore(f"dvid://{address}")
        self._repo = self._store.open_repo(uuid=uuid)
        try:
            self._array = self._repo.get_array(name)
        except NotFoundError:
            self._array = self._repo.create_array(name, wanted)
        if self._array.dtype != wanted or self._array.numdims != 3:
            raise InvalidError(
                f"array {name!r} is {self._array.numdims}-D {self._array.dtype};"
                f" wanted 3-D {wanted}"
            )

    def __getitem__(self, index: Any) -> Any:
        return self._array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[index] = value

    @property
    def array(self) -> Any:
        """The array with all that `DicedArray` offers."""
        return self._array

    def __repr__(self) -> str:
        return f"<DVIDVolume {self._array!r}>"
