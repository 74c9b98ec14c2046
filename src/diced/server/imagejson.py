"""Arrays of blocks as DVID's JSON: extents, ``Extended``, metadata. X first.

Extents that a client posts are kept per version, as an attribute of the array; what is written
later and lies outside makes them grow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diced.array import DicedArray
from diced.errors import InvalidError
from diced.grid import MAX_COORDINATE, MIN_COORDINATE
from diced.server.answer import Answer, to_json
from diced.server.call import Call
from diced.server.datatype import stored
from diced.server.wire import flip

METADATA = "application/vnd.dvid-nd-data+json"
EXTENTS = "dvid extents"  # attribute: of the version whose UUID follows

Point = tuple[int, ...]


# -- extents -------------------------------------------------------------------------------


def extents_attrs(uuid: str, low: Point, high: Point, box: Any = None) -> dict[str, Any]:
    """Return the attribute that keeps extents which a client gave.

    Parameters
    ----------
    uuid : str
        Of the version; empty for an unversioned array.
    low, high : tuple of int
        First and last voxel, ZYX.
    box : tuple of slice or None
        What was written by then.
    """
    written = None if box is None else [[each.start, each.stop] for each in box]
    return {f"{EXTENTS} {uuid}".strip(): {"min": list(low), "max": list(high), "box": written}}


def check_extents(low: Any, high: Any, dims: int) -> tuple[Point, Point]:
    """Return the corners of a box, X first as JSON lists or tuples, as ZYX.

    Raises
    ------
    InvalidError
    """
    for each in (low, high):
        whole = isinstance(each, list | tuple) and all(type(value) is int for value in each)
        if not whole or len(each) != dims:
            raise InvalidError(f"MinPoint and MaxPoint are {dims} integers each; got {each!r:.80}")
        if not all(MIN_COORDINATE <= value <= MAX_COORDINATE for value in each):
            raise InvalidError(f"MinPoint and MaxPoint are 32-bit coordinates; got {each!r:.80}")
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise InvalidError(f"MinPoint {low!r:.80} is beyond MaxPoint {high!r:.80}")
    return flip(low), flip(high)


def corners(array: DicedArray) -> tuple[Point, Point] | None:
    """Return the first and the last voxel of an array at its version, ZYX, or None."""
    bounds = array.bounds
    given = _given(array)
    if bounds is None:
        return None if given is None else (tuple(given["min"]), tuple(given["max"]))
    low, high = [each.start for each in bounds], [each.stop - 1 for each in bounds]
    if given is None:
        return tuple(low), tuple(high)
    written = given["box"]
    first, last = list(given["min"]), list(given["max"])
    for axis in range(len(low)):
        if written is None or low[axis] < written[axis][0]:
            first[axis] = min(first[axis], low[axis])
        if written is None or high[axis] >= written[axis][1]:
            last[axis] = max(last[axis], high[axis])
    return tuple(first), tuple(last)


def _given(array: DicedArray) -> Any:
    """Return the extents that a client gave, here or at the nearest ancestor, or None."""
    attrs = array._fields().get("attrs", {})
    if not any(name.startswith(EXTENTS) for name in attrs):
        return None
    if not array.versioned:
        return attrs.get(EXTENTS)
    dag = array._repo._view().dag
    lineage = list(dag.lineage(dag.nodes[array._repo._node_id]))
    for node in reversed(lineage):
        found = attrs.get(f"{EXTENTS} {node.uuid}")
        if found is not None:
            return found
    return None


def points(array: DicedArray) -> dict[str, Any]:
    """Return ``MinPoint`` and ``MaxPoint``, the last voxel included; null if there is none."""
    found = corners(array)
    if found is None:
        return {"MinPoint": None, "MaxPoint": None}
    return {"MinPoint": list(flip(found[0])), "MaxPoint": list(flip(found[1]))}


# -- description ---------------------------------------------------------------------------


def values(array: DicedArray) -> list[dict[str, str]]:
    """Return what each voxel holds."""
    kind = array.dtype.name
    if array.channels is None:
        return [{"DataType": kind, "Label": "labelblk" if array.islabel3D else kind}]
    labels = [f"channel {number}" for number in range(array.channels)]
    if array.channels in (3, 4):
        labels = ["red", "green", "blue", "alpha"][: array.channels]
    return [{"DataType": kind, "Label": label} for label in labels]


def properties(array: DicedArray) -> dict[str, Any]:
    """Return what ``Extended`` of an instance's JSON and its metadata have in common."""
    found = points(array)
    shape = array.block_shape
    low, high = found["MinPoint"], found["MaxPoint"]
    blocks = flip(shape)
    return {
        "Values": values(array),
        "Interpolable": not array.islabel3D,
        "BlockSize": list(blocks),
        "VoxelSize": list(flip(array.voxel_size)),
        "VoxelUnits": list(flip(array.units)),
        **found,
        "MinIndex": low and [a // n for a, n in zip(low, blocks, strict=True)],
        "MaxIndex": high and [a // n for a, n in zip(high, blocks, strict=True)],
        "Background": background(array),
        "GridStore": "",
        "ScaleLevel": stored(array).get("scale", 0),
    }


def background(array: DicedArray) -> Any:
    """Return the fill value as JSON; a list if channels differ."""
    found = np.atleast_1d(array.fill).tolist()
    found = [str(each) if isinstance(each, float) and not math.isfinite(each) else each
             for each in found]  # fmt: skip
    return found[0] if all(each == found[0] for each in found) else found


def metadata(call: Call) -> Answer:
    """Answer ``GET metadata``: axes, and what voxels are."""
    array: DicedArray = call.array
    found = properties(array)
    low, high = found["MinPoint"], found["MaxPoint"]
    axes = []
    for axis in range(array.numdims):
        axes.append(
            {
                "Label": "XYZ"[axis] if axis < 3 else f"axis {axis}",
                "Resolution": found["VoxelSize"][axis],
                "Units": found["VoxelUnits"][axis],
                "Size": high[axis] - low[axis] + 1 if low else 0,
                "Offset": low[axis] if low else 0,
            }
        )
    return Answer(to_json({"Axes": axes, "Properties": found}), METADATA)


COMPRESSION = {
    "raw": "No compression, level -1",
    "lz4": "LZ4 compression, level -1",
    "label": "No compression, level -1",
    "label+lz4": "LZ4 compression, level -1",
}


def compression(array: DicedArray) -> str:
    """Return ``Base.Compression``."""
    name, _, level = array.codec.partition(":")
    if name in COMPRESSION:
        return COMPRESSION[name]
    return f"{name.removeprefix('label+')} compression, level {level or -1}"


# -- changes -------------------------------------------------------------------------------


def post_extents(call: Call) -> None:
    """Answer ``POST extents``: the extents of this version, whatever was written."""
    array: DicedArray = call.array
    given = call.json()
    low, high = check_extents(given.get("MinPoint"), given.get("MaxPoint"), array.numdims)
    uuid = call.repo.uuid if array.versioned else ""
    array.attrs.update(extents_attrs(uuid, low, high, array.bounds))


def post_resolution(call: Call) -> None:
    """Answer ``POST resolution``: the size of a voxel, the same at all versions."""
    array: DicedArray = call.array
    given = call.json(list)
    if len(given) != array.numdims or not all(type(each) in (int, float) for each in given):
        raise InvalidError(f"a resolution is {array.numdims} numbers, X first; got {given!r:.80}")
    sizes = [float(each) for each in flip(given)]
    if not all(math.isfinite(each) and each > 0 for each in sizes):
        raise InvalidError(f"a resolution is positive and finite; got {given!r:.80}")
    array._repo._history.edit_array(array._spec.id, lambda stored: {**stored, "voxel_size": sizes})
