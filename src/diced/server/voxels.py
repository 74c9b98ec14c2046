"""Raw voxels over the wire: boxes whose axes are spelt in any way, read from one state of the
array and written by one commit. For every data type whose arrays hold voxels.

On the wire the first axis that the path names varies fastest. With all axes in their usual order
that is the memory of a ZYX array, so nothing is copied between an array and a socket.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diced.array import DicedArray
from diced.errors import InvalidError
from diced.server import body as bodies
from diced.server import imaging, masks, scales
from diced.server.answer import OCTETS, Answer, Buffer
from diced.server.call import Call
from diced.server.routes import Route
from diced.server.wire import box as box_of
from diced.server.wire import check_bytes, flip, numbers, point, size

# A larger answer is made and sent in pieces of at most half of this. Smaller pieces, each made
# while the one before is sent, were slower (256^3 voxels 10.2 ms instead of 9.8: two processors are
# busy with copying anyway), and what is damaged could no longer be answered by a message.
SLAB_BYTES = 64 * 2**20
# Sides of the cubes by which axes are turned round.
TURN = 64
# Most bytes of the voxels of one picture: it is encoded as a whole.
IMAGE_BYTES = 2**28

PLANES = {"xy": (0, 1), "xz": (0, 2), "yz": (1, 2), "vol": (0, 1, 2)}
BARE = ("raw", "octet-stream", "bin")

DIMS = "dims: xy, xz, yz, vol, or axes such as 0_1_2, X being 0; the first varies fastest"
QUERY = {
    "roi": "name of an ROI instance: voxels outside read as background and are not written",
    "throttle": "on: 503 if too many throttled requests are running",
}
GET_QUERY = {
    **QUERY,
    "attenuation": "1 to 7: voxels outside the ROI are shifted right by so many bits instead",
    "scale": "level of detail, 0 is full",
    **scales.QUERY,
}


class Packing(NamedTuple):
    """A form of raw voxels on the wire other than plain bytes.

    Attributes
    ----------
    pack : callable
        Makes the answer of slabs, C-contiguous arrays that follow each other in wire order, and
        the bytes that they have in all.
    unpack : callable
        Makes plain bytes of a body and how many these must be; raises InvalidError.
    most : callable
        Most bytes of a body that can stand for so many plain bytes.
    """

    pack: Callable[[Iterator[np.ndarray], int], Answer]
    unpack: Callable[[Buffer, int], Buffer]
    most: Callable[[int], int]


PackingOf = Callable[[Call], Packing | None]


class Region(NamedTuple):
    """A box of an array, and how its voxels lie on the wire.

    Attributes
    ----------
    lo, shape : tuple of int
        ZYX.
    order : tuple of int
        Axes of the array in the wire's order, slowest first; the others have size 1.
    sizes : tuple of int
        Sizes as the request gave them, so fastest axis first.
    """

    lo: tuple[int, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def flat(self) -> bool:
        """True for a plane, which is a picture unless told otherwise."""
        return len(self.sizes) == 2

    @property
    def usual(self) -> bool:
        """True if the wire's order is the array's."""
        return list(self.order) == sorted(self.order)

    @property
    def box(self) -> tuple[slice, ...]:
        """The box as slices."""
        return box_of(self.lo, self.shape)

    def to_wire(self, values: np.ndarray) -> np.ndarray:
        """Return voxels, or a part of them, as the wire has them: axes in order, then channels."""
        if self.usual:
            return values if values.flags.c_contiguous else np.ascontiguousarray(values)
        single = [axis for axis in range(len(self.shape)) if axis not in self.order]
        rest = range(len(self.shape), values.ndim)
        moved = values.transpose(*single, *self.order, *rest)
        found = np.empty(moved.shape, moved.dtype)
        # By cubes that fit a cache: numpy alone took twice as long to reverse 640 x 640 x 160.
        cuts = [range(0, length, TURN) for length in moved.shape[: len(self.shape)]]
        for corner in itertools.product(*cuts):
            window = tuple(slice(at, at + TURN) for at in corner)
            found[window] = moved[window]
        return found

    def from_wire(self, values: np.ndarray, channels: int | None) -> np.ndarray:
        """Return voxels in a row, channels inmost, as a view of the region's shape."""
        single = [axis for axis in range(len(self.shape)) if axis not in self.order]
        axes = [*single, *self.order]
        tail = () if channels is None else (channels,)
        moved = values.reshape(*(self.shape[axis] for axis in axes), *tail)
        places = [axes.index(axis) for axis in range(len(axes))]
        return moved.transpose(*places, *range(len(axes), moved.ndim))


def voxel_array(call: Call) -> DicedArray:
    """Return the instance, which must hold voxels."""
    array = call.array
    if not isinstance(array, DicedArray):
        raise InvalidError(f"data {array.name!r} holds no voxels, it is of kind {array.kind!r}")
    return array


def item_bytes(array: DicedArray) -> int:
    """Return the bytes of one voxel, all channels."""
    return array.dtype.itemsize * (array.channels or 1)


def axes_of(text: str) -> tuple[int, ...]:
    """Parse the spelling of axes: ``xy``, ``vol``, ``0_1_2``, ``0,1``; X is 0."""
    known = PLANES.get(text.lower())
    if known is not None:
        return known
    try:
        axes = numbers(text, None, "dims")
    except InvalidError:
        axes = ()
    if not axes or len(set(axes)) < len(axes) or min(axes) < 0:
        raise InvalidError(f"illegal data shape {text!r:.60}: wanted xy, xz, yz, vol, 0_1_2, ...")
    return axes


def region(array: DicedArray, dims: str, sizes: str, offset: str) -> Region:
    """Parse the part of a path that says which voxels.

    One-dimensional and two-dimensional arrays may also be named as volumes that are one voxel
    thick.
    """
    axes, count = axes_of(dims), array.numdims
    given = size(sizes, len(axes))[::-1]
    if max(axes) >= max(3, count):
        raise InvalidError(f"data {array.name!r} has {count} dimensions; got axes {dims!r:.60}")
    places = len(offset.replace(",", "_").split("_"))
    start = list(flip(point(offset, 3 if places == 3 and count < 3 else count)))
    shape = [1] * max(3, count)
    for axis, length in zip(axes, given, strict=True):
        shape[axis] = length
    if any(n != 1 for n in shape[count:]) or any(start[count:]):
        raise InvalidError(
            f"data {array.name!r} has {count} dimensions: beyond them sizes are 1, offsets 0"
        )
    order = [count - 1 - axis for axis in reversed(axes) if axis < count]
    return Region(flip(start[:count]), flip(shape[:count]), tuple(order), given)


def region_of(call: Call) -> Region:
    """Return the region that a call's path names, inside 32-bit coordinates."""
    args = call.args
    found = region(voxel_array(call), args["dims"], args["size"], args["offset"])
    box_of(found.lo, found.shape)
    return found


def slabs(
    where: Region, block_shape: Sequence[int], nbytes: int, most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a region into boxes of at most `most` bytes that follow each other on the wire.

    Parameters
    ----------
    where : Region
    block_shape : sequence of int
        Cuts lie on borders of blocks as far as that is possible.
    nbytes : int
        Of one voxel.
    most : int

    Yields
    ------
    lo, shape : tuple of int
    """

    def cut(at: int, lo: list[int], shape: list[int]) -> Iterator[tuple[tuple[int, ...], Any]]:
        step = math.prod(where.shape[axis] for axis in where.order[at + 1 :]) * nbytes
        if at == len(where.order) or step * shape[where.order[at]] <= most:
            yield tuple(lo), tuple(shape)
            return
        axis = where.order[at]
        thick = max(1, most // step)
        block = block_shape[axis]
        while block > 1 and block > thick:
            block = -(-block // 2)
        thick = thick // block * block
        end = lo[axis] + shape[axis]
        begin = lo[axis]
        while begin < end:
            stop = min(end, (begin + thick) // block * block)
            inner_lo, inner_shape = list(lo), list(shape)
            inner_lo[axis], inner_shape[axis] = begin, stop - begin
            yield from cut(at + 1 if stop - begin == 1 else at, inner_lo, inner_shape)
            begin = stop

    return cut(0, list(where.lo), list(where.shape))


# -- reading -------------------------------------------------------------------------------


def reader(call: Call) -> Any:
    """Return what a request reads from, frozen: the array, or the level of detail it asks for."""
    return scales.bounded(scales.source(call, voxel_array(call)))


def read_slabs(call: Call, where: Region, most: int) -> Iterator[np.ndarray]:
    """Return the voxels of a region in wire order, in slabs, all of one state, and masked."""
    source = reader(call)
    scales.check(source, where.lo, where.shape)
    mask = masks.reading(call, source)
    boxes = slabs(where, source.block_shape, item_bytes(voxel_array(call)), most)

    def read(box: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
        lo, shape = box
        values = source.read(box_of(lo, shape))
        if mask is not None:
            mask.apply(lo, values)
        return where.to_wire(values)

    return map(read, boxes)


def octets(values: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array, not copied."""
    return memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def get_raw(call: Call, packing: Packing | None = None) -> Answer:
    """Answer ``GET raw/<dims>/<size>/<offset>[/<format>]``.

    Parameters
    ----------
    call : Call
    packing : Packing, optional
        How the bytes are sent; plain if None.
    """
    where = region_of(call)
    array = voxel_array(call)
    nbytes = check_bytes(where.shape, item_bytes(array))
    format = call.args.get("format", "").lower()
    picture = where.flat if not format else format not in BARE
    if picture:
        form = imaging.parse_format(format or "png")
        if not where.flat and (len(where.sizes) != 3 or form.name != "jpeg"):
            raise InvalidError(f"3-D voxels come as bytes or jpeg; got format {format!r:.60}")
        check_bytes(where.shape, item_bytes(array), IMAGE_BYTES)
        imaging.check_pixels(math.prod(where.sizes[1:]), where.sizes[0])
        values = next(read_slabs(call, where, IMAGE_BYTES))
        tail = () if array.channels is None else (array.channels,)
        return imaging.answer(values.reshape(-1, where.sizes[0], *tail), form)
    parts = read_slabs(call, where, SLAB_BYTES if nbytes <= SLAB_BYTES else SLAB_BYTES // 2)
    if packing is not None:
        return packing.pack(parts, nbytes)
    if nbytes <= SLAB_BYTES:
        return Answer(octets(next(parts)), OCTETS)
    return Answer(map(octets, parts), OCTETS, length=nbytes)


# -- writing -------------------------------------------------------------------------------


def limit(call: Call, packing: Packing | None = None) -> int:
    """Return the most bytes of a body; refuse a POST whose length is known to be wrong."""
    where = region_of(call)
    array = voxel_array(call)
    nbytes = check_bytes(where.shape, item_bytes(array))
    format = call.args.get("format", "").lower()
    if call.number("scale", 0):
        raise InvalidError("only voxels of scale 0 can be posted; the other levels follow")
    masks.writing(call)
    if format not in ("", *BARE):
        form = imaging.parse_format(format)
        if not where.flat and (len(where.sizes) != 3 or form.name != "jpeg"):
            raise InvalidError(f"3-D voxels are bytes or jpeg; got format {format!r:.60}")
        check_bytes(where.shape, item_bytes(array), IMAGE_BYTES)
        return imaging.most_bytes(nbytes)
    if packing is not None:
        return packing.most(nbytes)
    if where.flat and not format and nbytes <= IMAGE_BYTES:
        return imaging.most_bytes(nbytes)
    if bodies.encoding(call.headers):
        return nbytes + nbytes // 1000 + 1024  # what cannot be compressed becomes larger
    declared = bodies.declared(call.headers)
    if declared is not None and declared != nbytes:
        raise _wrong_length(declared, nbytes)
    return nbytes


def _wrong_length(got: int, wanted: int) -> InvalidError:
    return InvalidError(f"voxels data was {got} bytes, expected {wanted}")


def post_raw(call: Call, packing: Packing | None = None) -> None:
    """Answer ``POST raw/<dims>/<size>/<offset>[/<format>]``: one commit, of any alignment.

    Parameters
    ----------
    call : Call
    packing : Packing, optional
        How the bytes were sent; plain if None.
    """
    limit(call, packing)
    where = region_of(call)
    array = voxel_array(call)
    nbytes = math.prod(where.shape) * item_bytes(array)
    format = call.args.get("format", "").lower()
    body = call.body
    sniffed = where.flat and not format and len(body) != nbytes and packing is None
    if format not in ("", *BARE) or (sniffed and imaging.looks_encoded(body)):
        rows = math.prod(where.sizes[1:])
        pixels = imaging.decode(body, format, rows, where.sizes[0])
        values = imaging.from_pixels(pixels, array.dtype, array.channels)
    else:
        if packing is not None:
            body = packing.unpack(body, nbytes)
        if len(body) != nbytes:
            raise _wrong_length(len(body), nbytes)
        values = as_voxels(body, array.dtype)
    write(call, where, where.from_wire(values, array.channels))


def as_voxels(body: Buffer, dtype: np.dtype[Any]) -> np.ndarray:
    """Return little-endian bytes as voxels in a row, not copied."""
    if dtype == np.bool_:
        flags: np.ndarray = np.frombuffer(body, np.uint8) != 0
        return flags
    found: np.ndarray = np.frombuffer(body, dtype.newbyteorder("<")).astype(dtype, copy=False)
    return found


def write(call: Call, where: Region, values: np.ndarray) -> None:
    """Write the voxels of a box, shape ZYX and channels, in one commit; inside the ROI if asked."""
    array = voxel_array(call)
    mask = masks.writing(call)
    operation = call.query.get("operation", "")
    if mask is None and not operation:
        array[where.box] = values
        return
    with array.batch(operation or "write in roi"):
        if mask is None:
            array[where.box] = values
            return
        for lo, shape in mask.boxes(where.lo, where.shape):
            window = tuple(
                slice(a - o, a - o + n) for a, o, n in zip(lo, where.lo, shape, strict=True)
            )
            array[box_of(lo, shape)] = values[window]


# -- routes --------------------------------------------------------------------------------


def routes(packing_of: PackingOf = lambda call: None) -> list[Route]:
    """Return the routes of raw voxels.

    Parameters
    ----------
    packing_of : callable, optional
        Tells how a call packs its bytes; the types of labels know ways that images do not.
    """

    def get(call: Call) -> Answer:
        return get_raw(call, packing_of(call))

    def post(call: Call) -> None:
        post_raw(call, packing_of(call))

    def most(call: Call) -> int:
        return limit(call, packing_of(call))

    found = []
    for keyword in ("raw", "mask"):
        name = "voxels" if keyword == "raw" else "voxels, as clients of 2014 call them"
        found += [
            Route(
                "GET", keyword + "/{dims}/{size}/{offset}[/{format}]", get,
                f"Returns {name}: a plane as a picture (png, jpg[:quality], tif, bmp, or raw), a"
                " volume as bytes, or as one tall jpeg.",
                query=GET_QUERY, throttled=True,
            ),
            Route(
                "POST", keyword + "/{dims}/{size}/{offset}[/{format}]", post,
                f"Writes {name} at any place in one commit: bytes, or for a plane a picture.",
                query={**QUERY, "mutate": "accepted; every POST may replace voxels",
                       "operation": "text that the commit keeps"},
                body="little-endian voxels, or a picture", limit=most, throttled=True,
            ),
        ]  # fmt: skip
    return found
