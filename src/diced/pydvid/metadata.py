"""What an array is, as a server describes it: ``nd-data`` metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from diced.errors import InvalidError
from diced.pydvid.connection import check

# Data types of one block of voxels, by element type and number of channels.
TYPENAMES = {
    ("uint8", 1): "grayscale8",
    ("uint16", 1): "uint16blk",
    ("uint32", 1): "labels32",
    ("uint64", 1): "labels64",
    ("float32", 1): "float32blk",
    ("uint8", 4): "rgba8",
}


class VoxelsMetadata(dict[str, Any]):
    """A server's description of an array, as the dict that it sent.

    Parameters
    ----------
    metadata : dict or str
        Or its JSON.

    Attributes
    ----------
    shape : tuple of int
        Channels, then where the data end, per axis; 0 is unknown.
    minindex : tuple of int
        0, then where they begin.
    dtype : numpy.dtype
    axiskeys : str
        ``c`` first, such as ``cxyz``.
    """

    def __init__(self, metadata: dict[str, Any] | str):
        found = json.loads(metadata) if isinstance(metadata, str) else metadata
        check(found, "voxels-metadata", "metadata")
        super().__init__(found)
        values = found["Properties"]["Values"]
        dtypes = {np.dtype(each["DataType"]) for each in values}
        if len(dtypes) > 1:
            raise InvalidError(
                f"channels of several types, {sorted(map(str, dtypes))}, are no array"
            )
        self.dtype: np.dtype[Any] = dtypes.pop()
        axes = found["Axes"]
        self.minindex = (0, *(each["Offset"] for each in axes))
        self.shape = (len(values), *(each["Size"] + each["Offset"] for each in axes))
        self.axiskeys = "c" + "".join(each["Label"].lower() for each in axes)

    @classmethod
    def create_default_metadata(
        cls, shape: Sequence[int], dtype: Any, axiskeys: str, resolution: float, units: str
    ) -> VoxelsMetadata:
        """Describe an array that is to be made.

        Parameters
        ----------
        shape : sequence of int
            Channels first; 0 for sizes that are not known yet.
        dtype : numpy dtype
        axiskeys : str
            Such as ``cxyz``.
        resolution : float
            Of every axis.
        units : str
            ``nanometers``, ``micrometers``, ``millimeters`` or empty.
        """
        if axiskeys[:1] != "c" or len(axiskeys) != len(shape):
            raise InvalidError(
                f"axiskeys begin with c and have one letter an axis; got {axiskeys!r} for {shape}"
            )
        axes = [
            {"Label": key.upper(), "Resolution": resolution, "Units": units, "Size": int(size),
             "Offset": 0}
            for key, size in zip(axiskeys[1:], shape[1:], strict=True)
        ]  # fmt: skip
        values = [{"DataType": np.dtype(dtype).name, "Label": ""} for _ in range(shape[0])]
        return cls({"Axes": axes, "Properties": {"Values": values}})

    def determine_dvid_typename(self) -> str:
        """Return the data type of such arrays."""
        found = TYPENAMES.get((self.dtype.name, self.shape[0]))
        if found is None:
            raise InvalidError(f"no data type has {self.shape[0]} channels of {self.dtype.name}")
        return found

    @staticmethod
    def determine_channels_from_dvid_typename(typename: str) -> tuple[str, int]:
        """Return element type and number of channels of a data type."""
        for form, name in TYPENAMES.items():
            if name == typename:
                return form
        raise InvalidError(f"{typename!r} is not one of {', '.join(TYPENAMES.values())}")

    def to_json(self) -> str:
        """Return the JSON."""
        return json.dumps(self)
