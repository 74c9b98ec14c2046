"""Volumes of labels over the wire, compressed: LZ4, gzip, and what neuroglancer draws.

================  ==========================================================================
compression       bytes
================  ==========================================================================
``lz4``           the voxels as one LZ4 block, whose length is not stored
``gzip``          the voxels as a gzip member
``google``        neuroglancer's compressed_segmentation, in cells of 8x8x8
``googlegzip``    that, sent with ``Content-Encoding: gzip``
================  ==========================================================================
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np

from diced import _compress, _segmentation, _segmentread
from diced.errors import CorruptError, InvalidError
from diced.server import body as bodies
from diced.server.answer import OCTETS, Answer, Buffer, Refused
from diced.server.call import Call
from diced.server.voxels import Packing, item_bytes, octets, region_of, voxel_array

ZIP_LEVEL = 1
LZ4_BYTES = 0x7E000000  # most that one LZ4 block can hold
CELL = 8
# Words of a cell at most: head, 512 positions of 32 bits, 512 labels of 64.
CELL_BYTES = 4 * (2 + 512 + 1024)
# A volume's encoded form is held whole; real labels take a fiftieth.
GOOGLE_BYTES = 2**30
NAMES = ("lz4", "gzip", "google", "googlegzip")


def packing(call: Call) -> Packing | None:
    """Return how a call wants its labels packed; None if not at all.

    Raises
    ------
    InvalidError
        There is no such way, or not for such a box.
    """
    name = call.query.get("compression", "").lower()
    if name in ("", "none", "uncompressed"):
        return None
    if name == "lz4":
        return Packing(_pack_lz4, _unpack_lz4, _most_lz4)
    if name == "gzip":
        return Packing(_pack_gzip, _unpack_gzip, _most_gzip)
    if name in ("google", "googlegzip"):
        return _google(call, name == "googlegzip")
    raise InvalidError(f"unknown compression type {name!r:.60}: wanted {', '.join(NAMES)}")


def _answer(pieces: Iterator[Buffer], nbytes: int, headers: dict[str, str] | None = None) -> Answer:
    """Return pieces as an answer, whole if they are of few voxels."""
    if nbytes <= 64 * 2**20:
        return Answer(b"".join(pieces), OCTETS, headers=headers)
    return Answer((piece for piece in pieces if len(piece)), OCTETS, headers=headers)


# -- LZ4 -----------------------------------------------------------------------------------


def _check_lz4(nbytes: int) -> None:
    if nbytes > LZ4_BYTES:
        raise InvalidError(f"lz4 holds at most {LZ4_BYTES} bytes of voxels; got {nbytes}")


def _pack_lz4(slabs: Iterator[np.ndarray], nbytes: int) -> Answer:
    _check_lz4(nbytes)
    first = octets(next(slabs))
    if len(first) == nbytes:
        return Answer(_compress.lz4_compress(first), OCTETS)
    whole = np.empty(nbytes, np.uint8)
    whole[: len(first)] = first
    at = len(first)
    for slab in slabs:
        part = octets(slab)
        whole[at : at + len(part)] = part
        at += len(part)
    return Answer(_compress.lz4_compress(whole), OCTETS)


def _most_lz4(nbytes: int) -> int:
    _check_lz4(nbytes)
    return nbytes + nbytes // 255 + 16


def _unpack_lz4(body: Buffer, nbytes: int) -> Buffer:
    # A byte of LZ4 stands for at most 255: what cannot be enough costs no memory.
    if not len(body) or 255 * len(body) + 255 < nbytes:
        raise InvalidError(f"{len(body)} bytes of lz4 cannot be {nbytes} bytes of voxels")
    found = np.empty(nbytes, np.uint8)
    try:
        _compress.lz4_decompress(body, found)
    except CorruptError as error:
        raise InvalidError(f"the body is not lz4: {error}") from None
    return found.data


# -- gzip ----------------------------------------------------------------------------------


def _zip(pieces: Iterator[Buffer]) -> Iterator[Buffer]:
    packer = zlib.compressobj(ZIP_LEVEL, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _pack_gzip(slabs: Iterator[np.ndarray], nbytes: int) -> Answer:
    return _answer(_zip(map(octets, slabs)), nbytes)


def _most_gzip(nbytes: int) -> int:
    return nbytes + nbytes // 256 + 2**12  # stored blocks of 64 KiB take 5 bytes more each


def _unpack_gzip(body: Buffer, nbytes: int) -> Buffer:
    view = memoryview(body)
    pieces = (view[at : at + 2**20] for at in range(0, len(view), 2**20))
    try:
        spool = bodies.unzip(pieces, nbytes)  # type: ignore[arg-type]
    except Refused as error:
        if error.status == 413:
            raise InvalidError(f"the gzipped voxels have more than {nbytes} bytes") from None
        raise
    found = spool.buffer()
    spool.close()
    return found


# -- compressed_segmentation ---------------------------------------------------------------


def _google(call: Call, zipped: bool) -> Packing:
    where, array = region_of(call), voxel_array(call)
    if len(where.order) != 3 or array.channels is not None or array.dtype not in ("u8", "u4"):
        raise InvalidError(
            f"compression google is of 3-D labels of 32 or 64 bits; asked for {len(where.order)}"
            f" dimensions of {array.dtype.name}"
        )
    shape = tuple(where.shape[axis] for axis in where.order)
    if math.prod(shape) * item_bytes(array) > GOOGLE_BYTES:
        raise InvalidError(
            f"compressed_segmentation is made of at most {GOOGLE_BYTES} bytes of voxels"
        )
    cells = math.prod(-(-side // CELL) for side in shape)
    most = 4 + CELL_BYTES * cells

    def pack(slabs: Iterator[np.ndarray], nbytes: int) -> Answer:
        first = next(slabs)
        whole = first
        if first.nbytes < nbytes:
            whole = np.empty(shape, array.dtype)
            flat, at = whole.reshape(-1), first.size
            flat[:at] = first.reshape(-1)
            for slab in slabs:
                flat[at : at + slab.size] = slab.reshape(-1)
                at += slab.size
        data = _segmentation.segmentation_encode(whole.reshape(shape))
        if not zipped:
            return Answer(data, OCTETS)
        headers = {"content-encoding": "gzip"}
        return Answer(b"".join(_zip(iter((data,)))), OCTETS, headers=headers)

    def unpack(body: Buffer, nbytes: int) -> Buffer:
        if bytes(body[:2]) == b"\x1f\x8b":  # no file begins so: its first word would be too large
            body = _unpack_gzip(body, most)
        if len(body) < 8 * cells + 4:
            raise InvalidError(f"{len(body)} bytes cannot be {cells} cells of labels")
        found = np.empty(shape, array.dtype)
        try:
            _segmentread.segmentation_decode(body, found)
        except CorruptError as error:
            raise InvalidError(str(error)) from None
        return octets(found)

    return Packing(pack, unpack, lambda nbytes: most)
