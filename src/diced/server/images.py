"""Arrays of voxels as DVID's data types uint8blk, uint16blk, uint32blk, uint64blk, float32blk and
rgba8blk, and what these have in common with types of labels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diced.array import DicedArray
from diced.errors import InvalidError, UnsupportedError
from diced.grid import block_keys
from diced.repo import DicedRepo
from diced.server import blockstream, imagecommands, imagejson, slices, voxels
from diced.server.call import Call, whole
from diced.server.datatype import ATTRS, DVID_TYPES, Command, DataType, Settings
from diced.server.fields import NOTE_BYTES
from diced.server.routes import Route
from diced.server.wire import check_block

# What every version of every client can read; DVID's own default, 32, neuroglancer cannot.
BLOCK = 64
VOXEL_SIZE, UNITS = 8.0, "nanometers"
CODECS = {"none": "raw", "snappy": "lz4", "": "lz4"}
PLAIN = ("lz4", "zstd", "gzip", "jpeg")


def codec_of(text: str) -> str:
    """Return the codec that the setting ``Compression`` means.

    There is no Snappy; LZ4 is nearest to it.
    """
    name, colon, level = text.lower().strip().partition(":")
    if name in CODECS and not colon:
        return CODECS[name]
    if name not in PLAIN:
        raise InvalidError(
            f"compression is none, snappy, lz4, zstd, gzip or jpeg; got {text!r:.60}"
        )
    return f"{name}{colon}{level}"


class BlockType(DataType):
    """A data type whose instances are arrays of voxels in blocks."""

    def packing(self, call: Call) -> voxels.Packing | None:
        """Return how a request packs raw voxels; None is plain bytes."""
        return None

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET", "metadata", _checked(imagejson.metadata),
                "Returns axes, extents, resolution and type of the voxels as JSON.",
            ),
            *voxels.routes(self.packing),
            *slices.routes(),
            Route(
                "POST", "extents", _checked(imagejson.post_extents),
                "Sets the extents of this version.",
                body='JSON: {"MinPoint": [x,y,z], "MaxPoint": [x,y,z]}, the last voxel included',
                limit=NOTE_BYTES,
            ),
            Route(
                "POST", "resolution", _checked(imagejson.post_resolution),
                "Sets the size of a voxel, at all versions.", body="JSON: [x,y,z]",
                limit=NOTE_BYTES,
            ),
            Route(
                "GET", "rawkey", _checked(_rawkey),
                "Returns the key of a block as hexadecimal text.",
                query={"x": "block coordinate", "y": "the same", "z": "the same"}, light=True,
            ),
            *blockstream.routes(self),
        ]  # fmt: skip

    def fields(self, settings: Settings, dims: int | None = None) -> dict[str, Any]:
        """Return the options of ``create_array`` that settings mean.

        Parameters
        ----------
        settings : Settings
        dims : int, optional
            What it must have; else as many as BlockSize has, or 3.
        """
        block_shape = settings.zyx("BlockSize", dims)
        count = len(block_shape) if block_shape is not None else dims or 3
        check_block(block_shape or ())
        return {
            "dims": count,
            "block_shape": block_shape or (BLOCK,) * count,
            "voxel_size": _spread(settings.floats_zyx("VoxelSize"), VOXEL_SIZE, count),
            "units": _spread(settings.words_zyx("VoxelUnits"), UNITS, count),
        }

    def attrs(self, repo: DicedRepo, settings: Settings, versioned: bool, dims: int) -> Any:
        """Return the attributes of a new array."""
        grid = settings.get("GridStore")
        if grid:
            raise UnsupportedError(f"there are no grid stores; got GridStore {grid!r:.60}")
        own = self.attributes(settings)
        if settings.get("ScaleLevel"):
            own["scale"] = whole(settings.get("ScaleLevel"), "setting 'ScaleLevel'")
            if not 0 <= own["scale"] <= 255:
                raise InvalidError(f"setting 'ScaleLevel' is 0 to 255; got {own['scale']}")
        found: dict[str, Any] = {ATTRS: own}
        low, high = settings.zyx("MinPoint", dims), settings.zyx("MaxPoint", dims)
        if low is not None and high is not None:
            corners = imagejson.check_extents(low[::-1], high[::-1], dims)
            found.update(imagejson.extents_attrs(repo.uuid if versioned else "", *corners))
        return found

    def extended(self, array: Any) -> dict[str, Any]:
        return imagejson.properties(array) if isinstance(array, DicedArray) else {}

    def extents(self, array: Any) -> dict[str, Any] | None:
        return imagejson.points(array) if isinstance(array, DicedArray) else None

    def compression(self, array: Any) -> str:
        return imagejson.compression(array) if isinstance(array, DicedArray) else ""

    def fallback(self, call: Call, pieces: list[str]) -> Route | None:
        # Paths of 2013 and 2014: schema, <dims>/<size>/<offset>, <dims>/raw/<size>/<offset>.
        if pieces == ["schema"]:
            metadata = self.table.find(call.method, ["metadata"])
            return metadata and metadata[0]
        if len(pieces) < 3:
            return None
        try:
            voxels.axes_of(pieces[0])
        except InvalidError:
            return None
        keyword, rest = "raw", pieces[1:]
        if rest[0].lower() in ("raw", "isotropic"):
            keyword, rest = rest[0].lower(), rest[1:]
        found = self.table.find(call.method, [keyword, pieces[0], *rest])
        if found is None:
            return None
        route, call.args = found
        return route


class ImageType(BlockType):
    """A data type of images.

    Parameters
    ----------
    name : str
    dtype : str
        Of the arrays that it creates.
    version : str
        DVID's.
    channels : int, optional
    """

    kind = "image"

    def __init__(self, name: str, dtype: str, version: str, channels: int | None = None):
        self.name = name
        self.url = f"{DVID_TYPES}imageblk/{name.removesuffix('blk')}.go"
        self.version = version
        self._dtype = dtype
        self._channels = channels
        per = "" if channels is None else f", {channels} per voxel"
        self.text = _TEXT.format(values=f"{dtype} values{per}", block=BLOCK, dims=voxels.DIMS)

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        fields = self.fields(settings)
        return repo.create_array(
            name,
            self._dtype,
            versioned=versioned,
            codec=codec_of(settings.get("Compression")),
            fill=_fill(settings.get("Background") or "0", self._dtype),
            channels=self._channels,
            attrs=self.attrs(repo, settings, versioned, fields["dims"]),
            **fields,
        )

    @property
    def commands(self) -> dict[str, Command]:
        return imagecommands.COMMANDS


_TEXT = """images of {values}, in blocks

Settings at creation, all optional, X first:

    BlockSize    {block},{block},{block} by default; as many numbers as the array has axes
    VoxelSize    8.0,8.0,8.0
    VoxelUnits   nanometers,nanometers,nanometers
    MinPoint, MaxPoint   extents, before anything is written
    Background   value of voxels that were never written: 0
    ScaleLevel   level of detail, as told to clients: 0
    Compression  none, lz4, snappy (stored as lz4), zstd[:1-22], gzip[:1-9], jpeg[:1-100]
    Tags         name=value,name=value

In paths {dims}.
Sizes and offsets are joined by '_', X first; offsets may be negative."""


def _checked(run: Any) -> Any:
    """Return a handler that refuses data without voxels."""

    def handler(call: Call) -> Any:
        voxels.voxel_array(call)
        return run(call)

    return handler


def _rawkey(call: Call) -> dict[str, str]:
    array = voxels.voxel_array(call)
    names = "xyz"[: array.numdims] if array.numdims <= 3 else ""
    if not names:
        raise InvalidError(f"data {array.name!r} has {array.numdims} dimensions; wanted 1 to 3")
    coords = [call.number(name) for name in reversed(names)]
    if not all(-(2**31) <= each < 2**31 for each in coords):
        raise InvalidError("block coordinates are 32-bit")
    return {"Key": block_keys(np.array([coords]))[0].hex()}


def _fill(text: str, dtype: str) -> int | float:
    """Return what the setting ``Background`` says; whether that fits is seen at creation."""
    if dtype != "float32":
        return whole(text, "setting 'Background'")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidError(f"setting 'Background' is a number; got {text!r:.60}")
    return value


def _spread(values: tuple[Any, ...] | None, default: Any, dims: int) -> tuple[Any, ...]:
    if values is None:
        return (default,) * dims
    return values * dims if len(values) == 1 else values


UINT8BLK = ImageType("uint8blk", "uint8", "0.2")
UINT16BLK = ImageType("uint16blk", "uint16", "0.1")
UINT32BLK = ImageType("uint32blk", "uint32", "0.1")
UINT64BLK = ImageType("uint64blk", "uint64", "0.1")
FLOAT32BLK = ImageType("float32blk", "float32", "0.1")
RGBA8BLK = ImageType("rgba8blk", "uint8", "0.2", channels=4)
