"""Blocks over the wire: spans, lists and boxes of blocks, as streams of records.

A record is four little-endian int32, the block's coordinates x, y, z and the length of what
follows, and the block's bytes in one of these forms:

=================  ==========================================================================
compression        bytes
=================  ==========================================================================
``uncompressed``   the voxels, x fastest, channels together, little-endian
``lz4``            those as an LZ4 block; of images behind their length as uint32, as DVID keeps it
``gzip``, ``zstd`` those as a gzip member or a Zstandard frame
``jpeg``           one gray or RGB picture, plane below plane; voxels of one byte only
``blocks``         labels only: a gzip member of DVID's label block
(none)             what the instance's ``Base.Compression`` says; of labels ``lz4``
=================  ==========================================================================

Blocks that do not exist are left out. All of one answer is of one commit, and is made a few blocks
at a time; a POST is one commit.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from diced import codec as codecs
from diced import pool
from diced.array import DicedArray
from diced.errors import BadIndexError, CorruptError, InvalidError
from diced.grid import MAX_COORDINATE, MIN_COORDINATE
from diced.server import body as bodies
from diced.server import voxels
from diced.server.answer import OCTETS, Answer, Buffer
from diced.server.call import Call
from diced.server.datatype import DataType
from diced.server.routes import Route
from diced.server.wire import MAX_DATA_BYTES, box, check_bytes, flip, numbers, point, size

RECORD = struct.Struct("<4i")
# Voxels of the blocks that are worked at together, and are one piece of an answer.
GROUP_BYTES = 8 * 2**20
GROUP_BLOCKS = 4096
ZIP_LEVEL = 1  # of label blocks 6 saves a tenth, and takes four times as long
QUALITY = 80

_COMPRESSION = (
    "uncompressed, lz4, gzip, zstd; jpeg (voxels of one byte); blocks (labels: gzipped label"
    " blocks of DVID)"
)
_THROTTLE = "on: 503 if too many throttled requests are running"
_SCALE = "level of detail, 0 is full"

Encode = Callable[[np.ndarray], Buffer]


def grid_of(call: Call) -> DicedArray:
    """Return the instance, which must be of 3-D blocks of voxels."""
    array = voxels.voxel_array(call)
    if array.numdims != 3:
        raise InvalidError(
            f"blocks are sent of 3-D data; {array.name!r} has {array.numdims} dimensions"
        )
    return array


# -- forms of a block ----------------------------------------------------------------------


class Form:
    """One form of the blocks of an array on the wire.

    Parameters
    ----------
    array : DicedArray
    kind : DataType
    compression : str
        As the query parameter says it.

    Raises
    ------
    InvalidError
        There is no such form, or not of such blocks.
    """

    def __init__(self, array: DicedArray, kind: DataType, compression: str):
        self._array = array
        self._shape = array.chunks
        self._nbytes = math.prod(self._shape) * array.dtype.itemsize
        label = array.islabel3D
        name = compression.lower() or ("lz4" if label else stored_form(array, kind))
        self.name = name
        self._sized = name == "lz4" and not label
        self._opaque = name == "jpeg" and array.channels == 4
        codec = {"uncompressed": "raw", "gzip": f"gzip:{ZIP_LEVEL}", "jpeg": f"jpeg:{QUALITY}"}
        if name not in ("uncompressed", "lz4", "gzip", "zstd", "jpeg", "blocks"):
            raise InvalidError(f"unknown compression {compression!r:.60}: wanted {_COMPRESSION}")
        if name == "blocks" and not label:
            raise InvalidError(f"compression 'blocks' is of labels; {array.name!r} holds none")
        channels = 3 if self._opaque else array.channels
        spec = "label" if name == "blocks" else codec.get(name, name)
        self._codec = codecs.get_codec(spec, array.dtype, array.block_shape, channels)

    def encode(self, block: np.ndarray) -> Buffer:
        """Return a block's bytes; `block` is C-contiguous, channels last."""
        if self.name == "uncompressed":
            return voxels.octets(block)
        if self._opaque:
            block = block[..., :3]
        data = self._codec.encode(block)
        if self.name == "blocks":
            packer = zlib.compressobj(ZIP_LEVEL, zlib.DEFLATED, 31)
            return packer.compress(data) + packer.flush()
        return self._nbytes.to_bytes(4, "little") + data if self._sized else data

    def decode(self, payload: Buffer) -> np.ndarray:
        """Return the block of some bytes.

        Raises
        ------
        InvalidError
        """
        if self._opaque:
            raise InvalidError(f"data {self._array.name!r}: a jpeg has no fourth channel")
        if self._array.dtype == np.bool_ and self.name == "uncompressed":
            self._check_length(len(payload))
            return voxels.as_voxels(payload, self._array.dtype).reshape(self._shape)
        if self.name == "blocks":
            payload = self._unzip(payload)
        elif self._sized:
            self._check_length(int.from_bytes(bytes(payload[:4]), "little"))
            payload = payload[4:]
        if self.name == "lz4" and 255 * len(payload) + 255 < self._nbytes:
            raise InvalidError(f"{len(payload)} bytes of lz4 cannot be a block of {self._nbytes}")
        block = np.empty(self._shape, self._array.dtype)
        try:
            self._codec.decode(payload, block, (0, 0, 0))
        except CorruptError as error:
            raise InvalidError(f"the bytes of a block are no {self.name}: {error}") from None
        return block

    def _check_length(self, got: int) -> None:
        if got != self._nbytes:
            raise InvalidError(f"a block has {self._nbytes} bytes of voxels; got {got}")

    def _unzip(self, payload: Buffer) -> bytes:
        # Header, and of each voxel at most an entry, an index and 9 bits; counts of sub-blocks.
        most = 16 + self._nbytes // 4096 * (12 * 512 + 9 * 64 + 2)
        inflater = zlib.decompressobj(31)
        try:
            data = inflater.decompress(payload, most + 1)
        except zlib.error as error:
            raise InvalidError(f"a label block is sent gzipped: {error}") from None
        if not inflater.eof or inflater.unused_data:
            raise InvalidError("the gzip member of a label block ends early, late, or not in time")
        return data


def stored_form(array: DicedArray, kind: DataType) -> str:
    """Return the form that ``Base.Compression`` of an instance stands for."""
    said = kind.compression(array).lower()
    for name, begins in (
        ("jpeg", "jpeg"), ("gzip", "gzip"), ("zstd", "zstd"), ("uncompressed", "no "),
    ):  # fmt: skip
        if said.startswith(begins):
            return name
    return "lz4"


# -- reading -------------------------------------------------------------------------------


def _group(array: DicedArray) -> int:
    """Return how many blocks are worked at together."""
    nbytes = math.prod(array.chunks) * array.dtype.itemsize
    return max(1, min(GROUP_BLOCKS, GROUP_BYTES // nbytes))


def _answer(pieces: Iterator[Buffer], length: int | None = None) -> Answer:
    """Return the answer of pieces; what goes wrong with the first one is still a refusal."""
    filled = (piece for piece in pieces if len(piece))
    first = next(filled, b"")
    second = next(filled, None)
    if second is None:
        return Answer(first, OCTETS)
    return Answer(itertools.chain((first, second), filled), OCTETS, length=length)


def records(call: Call, groups: Iterator[np.ndarray], compression: str) -> Answer:
    """Answer with the records of blocks.

    Parameters
    ----------
    call : Call
    groups : iterator of int64 arrays (n, 3)
        Block coordinates, ZYX, a few at a time.
    compression : str
    """
    array = grid_of(call)
    form = Form(array, call.type, compression)
    source = voxels.reader(call)
    threads = call.site.store.threads

    def piece(coords: np.ndarray) -> bytes:
        ready: dict[int, Buffer] = {}
        if form.name == "jpeg" and array.codec.startswith("jpeg"):  # not with loss again
            for row, block in enumerate(source.stored_blocks(coords)):
                if block is not None and block[0].startswith("jpeg"):
                    ready[row] = block[1]
        rest = [row for row in range(len(coords)) if row not in ready]
        present, blocks = source.read_blocks(coords[rest])
        found = [row for row, there in zip(rest, present, strict=True) if there]
        made = pool.map_ordered(form.encode, blocks, threads)
        ready.update(zip(found, made, strict=True))
        parts: list[Buffer] = []
        for row in sorted(ready):
            z, y, x = coords[row].tolist()
            parts += [RECORD.pack(x, y, z, len(ready[row])), ready[row]]
        return b"".join(parts)

    return _answer(map(piece, groups))


def block_box(array: DicedArray, sizes: str, offset: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Parse a box of whole blocks.

    Returns
    -------
    first : numpy.ndarray
        Coordinates of its first block, ZYX.
    counts : tuple of int
        Blocks along each axis.
    """
    shape, lo = size(sizes, 3), point(offset, 3)
    sides = array.block_shape
    if any(n % b or a % b for n, a, b in zip(shape, lo, sides, strict=True)):
        raise InvalidError(
            f"the box {sizes} at {offset} is not block-aligned: blocks are {flip(sides)} (XYZ)"
        )
    box(lo, shape)
    check_bytes(shape, voxels.item_bytes(array))
    first = [a // b for a, b in zip(lo, sides, strict=True)]
    return np.array(first, np.int64), tuple(n // b for n, b in zip(shape, sides, strict=True))


def get_box(call: Call) -> Answer:
    """Answer ``subvolblocks/<size>/<offset>``: the blocks of a box, in the order z, y, x."""
    array = grid_of(call)
    first, counts = block_box(array, call.args["size"], call.args["offset"])
    total, step = math.prod(counts), _group(array)

    def groups() -> Iterator[np.ndarray]:
        for at in range(0, total, step):
            places = np.unravel_index(np.arange(at, min(total, at + step)), counts)
            yield np.stack(places, axis=1).astype(np.int64) + first

    return records(call, groups(), call.query.get("compression", ""))


def get_list(call: Call) -> Answer:
    """Answer ``specificblocks?blocks=x,y,z,...``: those blocks, in that order."""
    array = grid_of(call)
    text = call.query.get("blocks", "").replace(" ", "")
    found = numbers(text, None, "blocks") if text else ()
    if len(found) % 3:
        raise InvalidError(f"blocks are x,y,z,x,y,z,...; got {len(found)} numbers")
    coords = np.array(
        [_check_block(array, flip(found[i : i + 3])) for i in range(0, len(found), 3)], np.int64
    ).reshape(-1, 3)
    check_bytes((len(coords), *array.chunks), array.dtype.itemsize)
    if call.flag("prefetch"):
        voxels.reader(call)
        return Answer(b"", OCTETS)
    compression = call.query.get("compression") or ("blocks" if array.islabel3D else "")
    step = _group(array)
    groups = (coords[i : i + step] for i in range(0, len(coords), step))
    return records(call, groups, compression)


def _check_block(array: DicedArray, coord: tuple[int, ...]) -> tuple[int, ...]:
    """Return block coordinates, ZYX, whose voxels there can be."""
    for at, side in zip(coord, array.block_shape, strict=True):
        if not MIN_COORDINATE <= at * side <= at * side + side - 1 <= MAX_COORDINATE:
            raise BadIndexError(f"block {flip(coord)} (XYZ) is outside 32-bit coordinates")
    return coord


def _span(call: Call) -> tuple[np.ndarray, int]:
    """Parse ``blocks/<x_y_z>/<span>`` and return the first block, ZYX, and how many there are."""
    array = grid_of(call)
    first = point(call.args["first"], 3, "block coordinate")
    count = size(call.args["second"], 1, "span")[0]
    check_bytes((count, *array.chunks), array.dtype.itemsize)
    for x in (first[2], first[2] + count - 1):
        _check_block(array, (*first[:2], x))
    return np.array(first, np.int64), count


def _row(first: np.ndarray, at: int, count: int) -> np.ndarray:
    """Return coordinates of `count` blocks along x, from `at` blocks behind the first one."""
    coords = np.tile(first, (count, 1))
    coords[:, 2] += at + np.arange(count)
    return coords


def get_blocks(call: Call) -> Answer:
    """Answer ``blocks/<x_y_z>/<span>`` and ``blocks/<size>/<offset>``."""
    if not _is_span(call):
        call.args.update(size=call.args["first"], offset=call.args["second"])
        return get_box(call)
    first, count = _span(call)
    array = grid_of(call)
    source = voxels.reader(call)
    step = _group(array)

    def piece(at: int) -> Buffer:
        coords = _row(first, at, min(step, count - at))
        present, found = source.read_blocks(coords)
        if present.all():
            return voxels.octets(found)
        blocks = np.empty((len(coords), *array.chunks), array.dtype)
        blocks[...] = source.fill
        blocks[present] = found
        return voxels.octets(blocks)

    length = count * math.prod(array.chunks) * array.dtype.itemsize
    return _answer(map(piece, range(0, count, step)), length)


def _is_span(call: Call) -> bool:
    second = call.args["second"]
    return "_" not in second and "," not in second


# -- writing -------------------------------------------------------------------------------


def _write(array: DicedArray, blocks: Iterator[tuple[tuple[int, ...], np.ndarray]]) -> None:
    """Write blocks, by their coordinates ZYX, in one commit."""
    with array.batch("write blocks"):
        for coord, block in blocks:
            lo = [at * side for at, side in zip(coord, array.block_shape, strict=True)]
            array[box(lo, array.block_shape)] = block


def _span_limit(call: Call) -> int:
    if not _is_span(call):
        raise InvalidError("POST blocks/<x_y_z>/<span>, or POST blocks with a stream of records")
    array = grid_of(call)
    nbytes = _span(call)[1] * math.prod(array.chunks) * array.dtype.itemsize
    declared = bodies.declared(call.headers)
    if declared is not None and declared != nbytes and not bodies.encoding(call.headers):
        raise _wrong_length(declared, nbytes)
    return nbytes


def _wrong_length(got: int, wanted: int) -> InvalidError:
    return InvalidError(f"blocks data was {got} bytes, expected {wanted}")


def post_span(call: Call) -> None:
    """Answer ``POST blocks/<x_y_z>/<span>``: uncompressed blocks one behind the other."""
    nbytes = _span_limit(call)
    first, count = _span(call)
    array = grid_of(call)
    if len(call.body) != nbytes:
        raise _wrong_length(len(call.body), nbytes)
    blocks = voxels.as_voxels(call.body, array.dtype).reshape(count, *array.chunks)
    coords = map(tuple, _row(first, 0, count).tolist())
    _write(array, zip(coords, blocks, strict=True))


def _records_limit(call: Call) -> int:
    """Refuse what cannot be written before the body is read."""
    if call.number("scale", 0):
        raise InvalidError("only blocks of scale 0 can be posted")
    _posted_form(call)
    return MAX_DATA_BYTES


def _posted_form(call: Call) -> Form:
    array = grid_of(call)
    compression = call.query.get("compression") or ("blocks" if array.islabel3D else "")
    form = Form(array, call.type, compression)
    if form.name == "jpeg" and array.channels == 4:
        raise InvalidError(f"data {array.name!r}: a jpeg has no fourth channel")
    return form


def post_records(call: Call) -> None:
    """Answer ``POST blocks``: a stream of records, of which the last of a block counts."""
    _records_limit(call)
    array, form = grid_of(call), _posted_form(call)
    whole = memoryview(call.body).cast("B")
    if not len(whole):
        return

    def split() -> Iterator[tuple[tuple[int, ...], memoryview]]:
        at = 0
        while at < len(whole):
            if len(whole) - at < RECORD.size:
                raise InvalidError(f"{len(whole) - at} bytes follow the last record, of {at} bytes")
            x, y, z, length = RECORD.unpack_from(whole, at)
            at += RECORD.size
            if not 1 <= length <= len(whole) - at:
                raise InvalidError(
                    f"block {(x, y, z)} has {length} bytes, {len(whole) - at} are left of the body"
                )
            yield _check_block(array, (z, y, x)), whole[at : at + length]
            at += length

    def decoded(
        record: tuple[tuple[int, ...], memoryview],
    ) -> tuple[tuple[int, ...], np.ndarray]:
        return record[0], form.decode(record[1])

    _write(array, pool.map_ordered(decoded, split(), call.site.store.threads))


# -- routes --------------------------------------------------------------------------------


def routes(datatype: DataType) -> list[Route]:
    """Return the routes of blocks; patterns go on behind the instance's name.

    Parameters
    ----------
    datatype : DataType
        Of images or labels; its `compression` tells what blocks look like that are sent as stored.
    """
    query: dict[str, Any] = {
        "compression": _COMPRESSION, "scale": _SCALE, "throttle": _THROTTLE,
    }  # fmt: skip
    return [
        Route(
            "GET", "blocks/{first}/{second}", get_blocks,
            "Returns blocks: <x_y_z>/<span> that many uncompressed ones along x, missing ones as"
            " background; <size>/<offset> records of those of a block-aligned box.",
            query=query, throttled=True,
        ),
        Route(
            "POST", "blocks/{first}/{second}", post_span,
            "Writes <span> blocks along x from block <x_y_z> on, in one commit.",
            query={"throttle": _THROTTLE}, body="uncompressed blocks, one behind the other",
            limit=_span_limit, throttled=True,
        ),
        Route(
            "POST", "blocks", post_records, "Writes blocks anywhere, in one commit.",
            query={**query, "downres": "accepted", "noindexing": "accepted"},
            body="records: int32le x, y, z, bytes of the block, and these; of labels gzipped label"
            " blocks unless compression says otherwise",
            limit=_records_limit, throttled=True,
        ),
        Route(
            "GET", "specificblocks", get_list, "Returns the records of some blocks.",
            query={**query, "blocks": "x,y,z,x,y,z,...: block coordinates",
                   "prefetch": "on: nothing is returned", "supervoxels": "accepted"},
            throttled=True,
        ),
        Route(
            "GET", "subvolblocks/{size}/{offset}", get_box,
            "Returns the records of the blocks of a block-aligned box, in the order z, y, x.",
            query=query, throttled=True,
        ),
    ]  # fmt: skip
