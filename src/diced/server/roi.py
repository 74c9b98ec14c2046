"""The data type ``roi``: regions of interest as spans of blocks."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from diced._compress import lz4_compress
from diced.errors import InvalidError
from diced.repo import DicedRepo
from diced.server import streams, wire
from diced.server.answer import JSON, OCTETS, Answer, Buffer, to_json
from diced.server.call import TRUE, Call
from diced.server.datatype import ATTRS, DVID_TYPES, DataType, Settings
from diced.server.routes import READ, Route

BODY_BYTES = 2**29  # of spans and points, as JSON
SLAB = 2**22  # voxels of a mask that are made at a time
PACKED = 2**28  # voxels of a mask that is compressed, which takes all of it at once
PIECE = 2**16  # spans or points that are written at a time
PARSED = 2**20  # bytes of JSON that are parsed at a time
BATCH = 8
NO_MIN_Z, NO_MAX_Z = 2**31 - 1, -(2**31)  # as DVID shows a region without spans
OPERATION = {"operation": "what the log of commits calls it"}
NUMERIC = b"0123456789-,[] \t\r\n"

Array = np.ndarray[Any, np.dtype[Any]]


class Roi(DataType):
    """Regions of interest."""

    name = "roi"
    url = DVID_TYPES + "roi"
    kind = "roi"
    text = "A region of interest: spans of blocks along X, for each version."

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        return repo.create_array(
            name, kind=self.kind, versioned=versioned, block_shape=settings.zyx("BlockSize", 3),
            attrs={ATTRS: self.attributes(settings)},
        )  # fmt: skip

    def extended(self, array: Any) -> dict[str, Any]:
        found = array.extents
        return {
            "BlockSize": list(wire.flip(array.block_shape)),
            "MinZ": found[0][0] if found else NO_MIN_Z,
            "MaxZ": found[1][0] if found else NO_MAX_Z,
        }

    def routes(self) -> list[Route]:
        return [
            Route("GET", "roi", _get, "Returns all spans, [[z, y, x0, x1], ...], x1 included."),
            Route(
                "POST", "roi", _post, "Replaces all spans, in one commit.",
                body="JSON [[z, y, x0, x1], ...] in block coordinates", limit=BODY_BYTES,
                query=OPERATION,
            ),
            Route("DELETE", "roi", _delete, "Removes all spans from this version.",
                  query=OPERATION),
            Route(
                "GET", "mask/{dims}/{size}/{offset}", _mask,
                "Returns a byte for each voxel of a box, 1 inside and 0 outside, X fastest.",
                query={"compression": "lz4: one LZ4 block"}, throttled=True,
            ),
            Route(
                "POST", "ptquery", _points, "Tells of each voxel whether it is inside.",
                body="JSON [[x, y, z], ...]", limit=BODY_BYTES, needs=READ, changes=False,
            ),
            Route(
                "GET", "partition", _partition, "Returns subvolumes that cover the region.",
                query={
                    "batchsize": f"blocks along each axis of a subvolume; {BATCH} if not given",
                    "optimized": "true or on: subvolumes of various sizes, with fewer other blocks",
                },
            ),
        ]  # fmt: skip


TYPE = Roi()


def _get(call: Call) -> Answer:
    rows = call.array.spans()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(rows), PIECE):
            yield to_json(rows[start : start + PIECE].tolist())[1:-1]

    return streams.json_list(pieces())


def _post(call: Call) -> None:
    rows = read_table(call.body, 4, "spans")
    call.array.set_spans(rows, operation=call.query.get("operation", "put spans"))


def _delete(call: Call) -> None:
    none = np.empty((0, 4), np.int64)
    call.array.set_spans(none, operation=call.query.get("operation", "delete spans"))


def _mask(call: Call) -> Answer:
    if wire.numbers(call.args["dims"], None, "shape") != (0, 1, 2):
        raise InvalidError("Currently only 3d masks ('0_1_2' shape) is supported")
    shape = wire.size(call.args["size"], 3)
    offset = wire.point(call.args["offset"], 3)
    wire.check_bytes(shape, 1)
    box = wire.box(offset, shape)
    lo, hi = [each.start for each in box], [each.stop for each in box]
    array = call.array.snapshot()
    if call.query.get("compression", "").lower() == "lz4":
        return Answer(lz4_compress(_whole(array, lo, hi)), OCTETS)

    pieces = (memoryview(array.mask(*each)).cast("B") for each in _slabs(lo, hi))
    if math.prod(shape) <= SLAB:
        return Answer(next(pieces), OCTETS)
    return Answer(pieces, OCTETS, length=math.prod(shape))


def _whole(array: Any, lo: list[int], hi: list[int]) -> Array:
    """Return a mask, made in parts: `mask` takes several times what it returns.

    Raises
    ------
    InvalidError
        It has more than `PACKED` voxels.
    """
    sizes = [b - a for a, b in zip(lo, hi, strict=True)]
    if math.prod(sizes) > PACKED:
        raise InvalidError(
            f"a compressed mask has at most {PACKED} voxels; got {math.prod(sizes)}: ask for less,"
            " or without compression"
        )
    found = np.empty(sizes, np.uint8)
    for low, high in _slabs(lo, hi):
        part = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, lo, strict=True))
        found[part] = array.mask(low, high)
    return found


def _slabs(lo: list[int], hi: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a box into few that follow each other in memory, of at most `SLAB` voxels."""
    sizes = [b - a for a, b in zip(lo, hi, strict=True)]
    axis = 0
    while axis < 2 and math.prod(sizes[axis + 1 :]) > SLAB:
        axis += 1
    step = max(1, SLAB // math.prod(sizes[axis + 1 :]))
    for outer in itertools.product(*map(range, lo[:axis], hi[:axis])):
        for begin in range(lo[axis], hi[axis], step):
            end = min(begin + step, hi[axis])
            beyond = [each + 1 for each in outer]
            yield [*outer, begin, *lo[axis + 1 :]], [*beyond, end, *hi[axis + 1 :]]


def _points(call: Call) -> Answer:
    points = read_table(call.body, 3, "points")
    inside = call.array.contains(points[:, ::-1])

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(inside), PIECE):
            yield to_json(inside[start : start + PIECE].tolist())[1:-1]

    return streams.json_list(pieces())


def _partition(call: Call) -> Answer:
    array = call.array
    optimized = call.query.get("optimized", "").lower() in TRUE
    found = array.partition(call.number("batchsize", BATCH), optimized=optimized)
    extents = array.extents
    size = np.array(array.block_shape)
    # DVID counts block 0 of X and Y in, wherever the region is.
    first, last = extents or ((NO_MIN_Z, 0, 0), (NO_MAX_Z, 0, 0))
    volumes = [
        {
            "MinPoint": _flip(np.multiply(each.first, size)),
            "MaxPoint": _flip((np.array(each.last) + 1) * size - 1),
            "MinChunk": list(wire.flip(each.first)),
            "MaxChunk": list(wire.flip(each.last)),
            "TotalBlocks": each.total,
            "ActiveBlocks": each.active,
        }
        for each in found.volumes
    ]
    answer = {
        "NumTotalBlocks": found.total,
        "NumActiveBlocks": found.active,
        "NumSubvolumes": len(volumes),
        "ROI": {
            "MinChunk": [min(first[2], 0), min(first[1], 0), first[0]],
            "MaxChunk": [max(last[2], 0), max(last[1], 0), last[0]],
        },
        "Subvolumes": volumes,
    }
    return Answer(to_json(answer, indent=4), JSON)


def _flip(values: Array) -> list[int]:
    found: list[int] = values[::-1].tolist()
    return found


def read_table(body: Buffer, columns: int, what: str) -> Array:
    """Return a JSON list of lists of `columns` whole numbers as an array, in bounded memory.

    Raises
    ------
    InvalidError
    """
    data = bytes(body).strip()
    if data[:1] != b"[" or data[-1:] != b"]" or len(data) < 2:
        raise InvalidError(f"{what} are a JSON list of lists of {columns} whole numbers")
    end = len(data) - 1
    parts: list[Array] = []
    at = 1
    while at < end:
        cut = data.find(b"]", min(at + PARSED, end))
        cut = end if cut < 0 or cut >= end else cut + 1
        parts.append(_read_part(data[at:cut], columns, what))
        rest = cut
        while rest < end and data[rest] in b" \t\r\n":
            rest += 1
        if rest < end and data[rest] != ord(","):
            raise InvalidError(f"{what} are not JSON: no comma after {data[rest - 40 : rest]!r}")
        if rest == end - 1 and cut < end:
            raise InvalidError(f"{what} are not JSON: a comma is the last of the list")
        at = rest + 1
    return np.concatenate(parts) if parts else np.empty((0, columns), np.int64)


def _read_part(text: bytes, columns: int, what: str) -> Array:
    wrong = text.translate(None, NUMERIC)
    if wrong:
        raise InvalidError(f"{what} are lists of {columns} whole numbers; got {wrong[:20]!r}")
    try:
        rows = json.loads(b"[%b]" % text)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} are not JSON: {error}") from None
    if not rows:
        return np.empty((0, columns), np.int64)
    try:
        table = np.array(rows)
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"{what} are lists of {columns} whole numbers: {error}") from None
    if table.shape != (len(rows), columns) or table.dtype != np.int64:
        raise InvalidError(
            f"{what} are lists of {columns} whole numbers of 64 bits; got shape {table.shape}"
        )
    return table
