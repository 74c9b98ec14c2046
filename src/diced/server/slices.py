"""Pictures that are resampled: planes at any angle, and planes of voxels that are not cubes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diced.errors import InvalidError
from diced.server import imaging, masks, voxels
from diced.server.answer import OCTETS, Answer
from diced.server.call import Call
from diced.server.routes import Route
from diced.server.wire import check_bytes


def _place(text: str, what: str) -> np.ndarray:
    """Parse a place in the world, ``x_y_z``, and return it ZYX."""
    pieces = text.replace(",", "_").split("_")
    try:
        found = np.array([float(each) for each in reversed(pieces)])
    except ValueError:
        found = np.empty(0)
    if len(found) != 3 or not np.isfinite(found).all():
        raise InvalidError(f"{what} is three numbers, x_y_z; got {text!r:.80}")
    return found


def _check_size(call: Call, rows: int, columns: int) -> None:
    """Refuse a picture that is too large before anything is read."""
    check_bytes((rows, columns), voxels.item_bytes(call.array), voxels.IMAGE_BYTES)
    if call.args.get("format", "").lower() not in voxels.BARE:
        imaging.check_pixels(rows, columns)


# Most blocks that a plane of one request may cross; each costs microseconds even if it is absent.
PLANE_BLOCKS = 2**18


def _check_blocks(array: Any, down: np.ndarray, across: np.ndarray, pixels: int) -> None:
    """Refuse a plane, given by its sides in voxels, that crosses too many blocks."""
    sides = [float(np.max(np.abs(each) / array.block_shape)) + 1 for each in (down, across)]
    if min(sides[0] * sides[1], pixels) > PLANE_BLOCKS:
        raise InvalidError(
            f"the plane crosses more blocks than the {PLANE_BLOCKS} that one request may"
        )


def get_arb(call: Call) -> Answer:
    """Answer ``GET arb/<top left>/<top right>/<bottom left>/<resolution>[/<format>]``."""
    array = voxels.voxel_array(call)
    if array.numdims != 3:
        raise InvalidError(f"data {array.name!r} has {array.numdims} dimensions; a plane needs 3")
    corner = _place(call.args["topleft"], "top left")
    across = _place(call.args["topright"], "top right") - corner
    down = _place(call.args["bottomleft"], "bottom left") - corner
    try:
        step = float(call.args["resolution"].replace("_", "?"))
    except ValueError:
        step = math.nan
    if not (math.isfinite(step) and step > 0):
        raise InvalidError(
            f"the resolution is a number above 0; got {call.args['resolution']!r:.60}"
        )
    with np.errstate(over="ignore"):
        lengths = [float(np.linalg.norm(each)) for each in (down, across)]
    if max(lengths) / step >= 2**31:
        raise InvalidError("the plane has more than 2^31 pixels on a side")
    rows, columns = (math.floor(each / step) + 1 for each in lengths)
    _check_size(call, rows, columns)
    size = np.array(array.voxel_size)
    _check_blocks(array, down / size, across / size, rows * columns)
    down, across = (
        each * (step / length) if length else each
        for each, length in zip((down, across), lengths, strict=True)
    )
    found = voxels.reader(call).plane(corner / size, down / size, across / size, (rows, columns))
    return _answer(call, found)


def get_isotropic(call: Call) -> Answer:
    """Answer ``GET isotropic/<dims>/<size>/<offset>[/<format>]``.

    The pixels of a plane are as large as its finer side's voxels; a volume comes as it is.
    """
    where = voxels.region_of(call)
    array = voxels.voxel_array(call)
    if not where.flat or len(where.order) != 2:
        return voxels.get_raw(call)
    _check_size(call, *where.sizes[::-1])
    size = array.voxel_size
    finest = min(size[axis] for axis in where.order)
    origin = np.array(where.lo, float)
    steps = np.zeros((2, array.numdims))
    for number, axis in enumerate(where.order):
        steps[number, axis] = finest / size[axis]
        # The first pixel begins where the first voxel does.
        origin[axis] += steps[number, axis] / 2 - 0.5
    shape = tuple(where.shape[axis] for axis in where.order)
    source = voxels.reader(call)
    mask = masks.reading(call, source)
    found = source.plane(origin, steps[0], steps[1], (shape[0], shape[1]))
    if mask is not None:
        outside = where.to_wire(mask.outside(where.lo, where.shape)).reshape(where.sizes[::-1])
        # A pixel is outside where the voxel is that it lies in.
        lines = [
            np.minimum(((np.arange(n) + 0.5) * steps[number, axis]).astype(np.int64), n - 1)
            for number, (axis, n) in enumerate(zip(where.order, shape, strict=True))
        ]
        mask.hide(found, outside[np.ix_(*lines)])
    return _answer(call, found)


def _answer(call: Call, found: np.ndarray) -> Answer:
    format = call.args.get("format", "").lower()
    if format in voxels.BARE:
        return Answer(voxels.octets(found), OCTETS)
    return imaging.answer(found, imaging.parse_format(format or "png"))


def routes() -> list[Route]:
    """Return the routes; patterns go on behind the instance's name."""
    return [
        Route(
            "GET", "isotropic/{dims}/{size}/{offset}[/{format}]", get_isotropic,
            "Returns a plane, pixels as large as the finer side's voxels; a volume as raw does.",
            query=voxels.GET_QUERY, throttled=True,
        ),
        Route(
            "GET", "arb/{topleft}/{topright}/{bottomleft}/{resolution}[/{format}]", get_arb,
            "Returns a plane at any angle, between corners x_y_z in the units of the voxel size,"
            " interpolated; resolution is the size of a pixel.",
            query={"throttle": voxels.QUERY["throttle"]}, throttled=True,
        ),
    ]  # fmt: skip
