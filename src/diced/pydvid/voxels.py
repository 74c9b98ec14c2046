"""Boxes of voxels: functions of one request each, and `VoxelsAccessor`, which slices."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import numpy as np

from diced.errors import BadIndexError, InvalidError
from diced.pydvid.connection import ask, get_json
from diced.pydvid.errors import DvidHttpError, ThrottleTimeoutError, UnexpectedResponseError
from diced.pydvid.keyvalue import create_instance
from diced.pydvid.metadata import VoxelsMetadata
from diced.spec import as_values

__all__ = [
    "VoxelsAccessor", "VoxelsMetadata", "create_new", "get_metadata", "get_ndarray", "post_ndarray",
]  # fmt: skip

T = TypeVar("T")
Point = Sequence[int]
OCTETS = "application/octet-stream"
BLOCK = 64
BUSY = 503


def get_metadata(connection: Any, uuid: str, data_name: str) -> VoxelsMetadata:
    """Return what the server says of an array."""
    return VoxelsMetadata(
        get_json(connection, f"/api/node/{quote(uuid)}/{quote(data_name)}/metadata")
    )


def create_new(connection: Any, uuid: str, data_name: str, voxels_metadata: VoxelsMetadata) -> None:
    """Create an array."""
    axes = voxels_metadata["Axes"]
    settings = {
        "BlockSize": ",".join([str(BLOCK)] * len(axes)),
        "VoxelSize": ",".join(str(each["Resolution"]) for each in axes),
        "VoxelUnits": ",".join(each["Units"] or "nanometers" for each in axes),
    }
    typename = voxels_metadata.determine_dvid_typename()
    create_instance(connection, uuid, data_name, typename, settings)


def get_ndarray(
    connection: Any,
    uuid: str,
    data_name: str,
    voxels_metadata: VoxelsMetadata,
    start: Point,
    stop: Point,
    query_args: dict[str, Any] | None = None,
    throttle: bool = False,
    access_type: str = "raw",
) -> np.ndarray:
    """Return the box from `start` to `stop`, all channels.

    Parameters
    ----------
    start, stop : sequence of int
        Channel axis first, which must be whole.

    Returns
    -------
    numpy.ndarray
        Fortran order.
    """
    shape = _box_shape(voxels_metadata, start, stop)
    path = _path(uuid, data_name, access_type, shape, start, query_args, throttle)
    found = ask(connection, f"reading {data_name!r}", "GET", path)
    wanted = int(np.prod(shape, dtype=object)) * voxels_metadata.dtype.itemsize
    if len(found) != wanted:
        raise UnexpectedResponseError(f"{path} gave {len(found)} bytes; wanted {wanted}")
    dtype = voxels_metadata.dtype.newbyteorder("<")
    flat = np.frombuffer(bytearray(found), dtype).astype(voxels_metadata.dtype, copy=False)
    return flat.reshape(shape, order="F")


def post_ndarray(
    connection: Any,
    uuid: str,
    data_name: str,
    voxels_metadata: VoxelsMetadata,
    start: Point,
    stop: Point,
    new_data: Any,
    throttle: bool = False,
    access_type: str = "raw",
    query_args: dict[str, Any] | None = None,
) -> None:
    """Overwrite the box from `start` to `stop`, all channels.

    `new_data` has the box's shape, or the same number of elements, or is one value.
    """
    shape = _box_shape(voxels_metadata, start, stop)
    path = _path(uuid, data_name, access_type, shape, start, query_args, throttle)
    values = as_values(new_data, voxels_metadata.dtype, f"array {data_name!r}")
    values = values.astype(voxels_metadata.dtype.newbyteorder("<"), copy=False)
    if values.size == int(np.prod(shape, dtype=object)):
        values = values.reshape(shape)
    elif values.ndim == 0:
        values = np.broadcast_to(values, shape)
    else:
        raise InvalidError(f"data of shape {values.shape} do not fit a box of shape {shape}")
    body = np.ascontiguousarray(values.T)  # of a reversed view C order is Fortran's
    ask(connection, f"writing {data_name!r}", "POST", path, body.data.cast("B"), OCTETS)


def _box_shape(metadata: VoxelsMetadata, start: Point, stop: Point) -> tuple[int, ...]:
    channels = metadata.shape[0]
    if not len(start) == len(stop) == len(metadata.shape):
        raise InvalidError(
            f"start {tuple(start)} and stop {tuple(stop)} need {len(metadata.shape)} entries,"
            f" {metadata.axiskeys!r}"
        )
    if (start[0], stop[0]) != (0, channels):
        raise InvalidError(
            f"all channels go together: 0 to {channels}; got {start[0]} to {stop[0]}"
        )
    shape = tuple(int(b) - int(a) for a, b in zip(start, stop, strict=True))
    if min(shape) < 1:
        raise InvalidError(f"the box from {tuple(start)} to {tuple(stop)} is empty")
    return shape


def _path(
    uuid: str,
    data_name: str,
    access_type: str,
    shape: Point,
    start: Point,
    query_args: dict[str, Any] | None,
    throttle: bool,
) -> str:
    query = {str(key): str(value) for key, value in (query_args or {}).items()}
    if query.get("throttle", "on" if throttle else "off") != ("on" if throttle else "off"):
        raise InvalidError(f"throttle={query['throttle']} disagrees with throttle={throttle}")
    if throttle:
        query["throttle"] = "on"
    dims, size, offset = (
        "_".join(str(int(each)) for each in values)
        for values in (range(len(shape) - 1), shape[1:], start[1:])
    )
    path = f"/api/node/{quote(uuid)}/{quote(data_name)}/{access_type}/{dims}/{size}/{offset}"
    return path + (f"?{urlencode(query)}" if query else "")


class VoxelsAccessor:
    """An array on a server, sliced like numpy: channel axis first, Fortran order.

    ``v[...]``, ``v[:, 10:20, 5]``, steps and single channels are read by requesting the dense box
    around them. Assignments take dense boxes of all channels. Where an end is left out it is that
    of the data, from 0 or the data's begin if that is below 0.

    Parameters
    ----------
    connection : http.client.HTTPConnection or DvidConnection
    uuid, data_name : str
    query_args : dict, optional
        Added to every read's query.
    throttle : bool
        Ask the server to answer only if it is not busy.
    retry_timeout, retry_interval : float
        For how many seconds, and how often, to ask again when the server is busy (503). 0: never.
    warning_interval : float
        Warn when it has been busy for so long.
    access_type : str
        ``raw``, or ``mask`` of old.
    """

    ThrottleTimeoutException = ThrottleTimeoutError

    def __init__(
        self,
        connection: Any,
        uuid: str,
        data_name: str,
        query_args: dict[str, Any] | None = None,
        throttle: bool = False,
        retry_timeout: float = 60.0,
        retry_interval: float = 1.0,
        warning_interval: float = 30.0,
        access_type: str = "raw",
    ):
        self.uuid = uuid
        self.data_name = data_name
        self._connection = connection
        self._query_args = dict(query_args or {})
        self._throttle = throttle
        self._retry_timeout = retry_timeout
        self._retry_interval = retry_interval
        self._warning_interval = warning_interval
        self._access_type = access_type
        self.voxels_metadata = get_metadata(connection, uuid, data_name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then where the data end, per axis."""
        return self.voxels_metadata.shape

    @property
    def minindex(self) -> tuple[int, ...]:
        """0, then where the data begin, per axis."""
        return self.voxels_metadata.minindex

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.voxels_metadata.dtype

    @property
    def axiskeys(self) -> str:
        """Letters of the axes, such as ``cxyz``."""
        return self.voxels_metadata.axiskeys

    def get_ndarray(self, start: Point, stop: Point) -> np.ndarray:
        """Return the box from `start` to `stop`."""
        return self._patiently(
            lambda: get_ndarray(
                self._connection, self.uuid, self.data_name, self.voxels_metadata, start, stop,
                self._query_args, self._throttle, self._access_type,
            )
        )  # fmt: skip

    def post_ndarray(self, start: Point, stop: Point, new_data: Any) -> None:
        """Overwrite the box from `start` to `stop`."""
        self._patiently(
            lambda: post_ndarray(
                self._connection, self.uuid, self.data_name, self.voxels_metadata, start, stop,
                new_data, self._throttle, self._access_type,
            )
        )  # fmt: skip
        above = any(a > b for a, b in zip(stop, self.shape, strict=True))
        if above or any(a < b for a, b in zip(start, self.minindex, strict=True)):
            self.voxels_metadata = get_metadata(self._connection, self.uuid, self.data_name)

    def __getitem__(self, slicing: Any) -> np.ndarray:
        start, stop, inner = self._box(slicing)
        result: np.ndarray = self.get_ndarray(start, stop)[inner]
        return result

    def __setitem__(self, slicing: Any, new_data: Any) -> None:
        start, stop, inner = self._box(slicing)
        if inner[0] != slice(0, self.shape[0], None):
            raise BadIndexError(
                f"an assignment takes all {self.shape[0]} channels; got {slicing!r}"
            )
        if any(isinstance(each, slice) and each.step not in (None, 1) for each in inner):
            raise BadIndexError(f"an assignment takes no steps; got {slicing!r}")
        self.post_ndarray(start, stop, new_data)

    def _box(self, slicing: Any) -> tuple[list[int], list[int], tuple[Any, ...]]:
        """Return the dense box of an index, and what to take of it."""
        start: list[int] = []
        stop: list[int] = []
        inner: list[Any] = []
        low = [min(0, each) for each in self.minindex]
        for axis, each in enumerate(self._expand(slicing)):
            if isinstance(each, slice):
                first = low[axis] if each.start is None else int(each.start)
                last = self.shape[axis] if each.stop is None else int(each.stop)
                inner.append(slice(0, last - first, each.step))
            else:
                first, last = int(each), int(each) + 1
                inner.append(0)
            start.append(first)
            stop.append(last)
        channel = self._expand(slicing)[0]
        inner[0] = inner[0] if channel == slice(None) else channel
        start[0], stop[0] = 0, self.shape[0]
        return start, stop, tuple(inner)

    def _expand(self, slicing: Any) -> tuple[Any, ...]:
        """Return an index with one entry per axis."""
        given = tuple(slicing) if isinstance(slicing, tuple | list) else (slicing,)
        count = len(self.shape)
        places = [at for at, each in enumerate(given) if each is Ellipsis]
        if len(places) > 1:
            raise BadIndexError(f"an index holds at most one '...'; got {slicing!r}")
        if places:
            missing = (slice(None),) * (count - len(given) + 1)
            given = given[: places[0]] + missing + given[places[0] + 1 :]
        given += (slice(None),) * (count - len(given))
        if len(given) != count:
            raise BadIndexError(
                f"{self.data_name!r} has {count} axes, channels included; got {slicing!r}"
            )
        for each in given:
            if not isinstance(each, slice | int | np.integer) or isinstance(each, bool):
                raise BadIndexError(f"an index holds numbers, slices and '...'; got {each!r}")
        return given

    def _patiently(self, request: Callable[[], T]) -> T:
        """Make a request again while the server is busy."""
        began = time.monotonic()
        warned, tries = 0.0, 1
        while True:
            try:
                return request()
            except DvidHttpError as error:
                if error.status_code != BUSY:
                    raise
                spent = time.monotonic() - began
                if spent + self._retry_interval > self._retry_timeout:
                    raise ThrottleTimeoutError(
                        f"the server was too busy for {tries} requests in {spent:.1f} s: {error}"
                    ) from None
                if spent - warned > self._warning_interval:
                    warnings.warn(f"the server has been busy for {spent:.1f} seconds", stacklevel=3)
                    warned = spent
            time.sleep(self._retry_interval)
            tries += 1
