"""Blocks to bytes and back, by the name of a codec.

Owns the spelling of codec names, their levels, and the numbers that frames carry for them. Knows
neither keys nor versions nor where bytes are kept.

=============  ===  =========================================================================
name           id   payload
=============  ===  =========================================================================
raw              0  the items in C order, little-endian
lz4              1  an LZ4 block of those
zstd[:1-22]      2  a Zstandard frame of those, its length in the header
gzip[:1-9]       3  a gzip member of those
jpeg[:1-100]     4  a JPEG image, grayscale or RGB; of 3-D blocks plane below plane
label            8  a label block (DVID's layout)
label+lz4        9  the label block's head and its layers, each an LZ4 block: `_packed`
label+zstd[:n]  10  the same as Zstandard frames
(registered)   255  what the code registered for the name makes of it
=============  ===  =========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diced import _compress, _crc32c, registry
from diced.coders import (
    FOREIGN,
    Codec,
    Foreign,
    Gzip,
    Jpeg,
    Label,
    Packed,
    PackedLabel,
    Raw,
    block_nbytes,
)
from diced.errors import InvalidError, NotFoundError, UnsupportedError, near_matches

__all__ = [
    "FOREIGN",
    "IN_KERNELS",
    "Codec",
    "backend",
    "block_nbytes",
    "decoder",
    "get_codec",
    "units",
]

MAX_ITEM = 64
MAX_DIMS = 8

# Numbers of the codecs that the kernels of `_blockread` and `_blockwrite` know.
IN_KERNELS = {0, 1, 2, 8, 9, 10}
# Blocks of these are cut into units of about this size, so that a voxel, a slice or the edge of a
# box costs a part of the block. A unit is also what fits the first cache while it is decoded.
_IN_UNITS = {"raw", "lz4", "zstd"}
UNIT_BYTES = 32 * 1024

# Level 1 of Zstandard: on electron microscopy level 3 gives the same size at half the speed, on
# label blocks 3 % less at 0.87 of it. Level 1 of gzip: on the former it is even the smallest.
_LEVELS = {"zstd": (1, 22, 1), "gzip": (1, 9, 1), "jpeg": (1, 100, 80), "label+zstd": (1, 22, 1)}
# fmt: off
_BY_ID = {
    0: "raw", 1: "lz4", 2: "zstd", 3: "gzip", 4: "jpeg",
    8: "label", 9: "label+lz4", 10: "label+zstd",
}
# fmt: on


def backend() -> dict[str, Any]:
    """Tell which code compresses and computes checksums in this process.

    Returns
    -------
    dict
        "lz4" and "zstd", each a dict of "source" ("wheel", "system" or "python"), "version",
        "path", and "skipped": what was tried before, and why it was not used. "crc32c": the
        implementation in use.
    """
    return {**_compress.backend(), "crc32c": _crc32c.crc32c_paths()[0]}


def get_codec(
    spec: str, dtype: Any, block_shape: Sequence[int], channels: int | None = None
) -> Codec:
    """Return the codec of a name for blocks of one shape and type.

    Parameters
    ----------
    spec : str
        A name of the table above, or a registered one, with what follows its colon handed to the
        registered function ``(argument, dtype, block_shape, channels)``. That returns an object
        with ``encode(src) -> bytes``, ``decode(payload, out, start)`` and perhaps ``lossy``.
    dtype : numpy dtype or what makes one
        Native byte order, items of 1 to 64 bytes.
    block_shape : sequence of int
        1 to 8 positive sizes.
    channels : int, optional
        Size of the channel axis.

    Raises
    ------
    InvalidError
        No such codec, or it does not suit such blocks.
    UnsupportedError
        The codec needs a package that is not installed.
    """
    if not isinstance(spec, str):
        raise InvalidError(f"a codec is named by a str; got {type(spec).__name__}")
    name, _, argument = spec.partition(":")
    kind, shape = np.dtype(dtype), tuple(block_shape)
    if name in _BY_ID.values():
        return _own(spec, kind, shape, channels)
    try:
        factory = registry.lookup("codec", name)
    except NotFoundError:
        known = [*_BY_ID.values(), *registry.names("codec")]
        raise InvalidError(f"unknown codec {spec!r}{near_matches(name, known)}") from None
    return _foreign(factory, spec, argument, kind, shape, channels)


def units(spec: str, nbytes: int, block_shape: Sequence[int]) -> int:
    """Return into how many independently decodable units blocks are cut; 1 is none.

    Parameters
    ----------
    spec : str
        The codec.
    nbytes : int
        Size of a block.
    block_shape : sequence of int
    """
    if spec.partition(":")[0] not in _IN_UNITS:
        return 1
    parts = 1
    while (
        nbytes > UNIT_BYTES * parts ** len(block_shape)
        and (2 * parts) ** len(block_shape) <= 4096
        and not any(side % (2 * parts) for side in block_shape)
    ):
        parts *= 2
    total: int = parts ** len(block_shape)
    return total


def decoder(
    codec_id: int,
    spec: str,
    dtype: Any,
    block_shape: Sequence[int],
    channels: int | None = None,
) -> Codec:
    """Return a codec that decodes frames of a number, whatever the array's codec is now.

    Parameters
    ----------
    codec_id : int
        The frame's number.
    spec : str
        The array's codec; what `FOREIGN` frames are decoded with.
    dtype, block_shape, channels
        As of `get_codec`.

    Raises
    ------
    UnsupportedError
        The number is unknown here, or is `FOREIGN` and `spec` is no registered codec.
    """
    name = _BY_ID.get(codec_id)
    if name is not None:
        return _own(name, np.dtype(dtype), tuple(block_shape), channels)
    if codec_id != FOREIGN:
        raise UnsupportedError(f"a frame has codec number {codec_id}: it needs a newer diced")
    if spec.partition(":")[0] in _BY_ID.values():
        raise UnsupportedError(
            f"a frame was written by a registered codec, but the array's codec is {spec!r}"
        )
    return get_codec(spec, dtype, block_shape, channels)


@lru_cache(maxsize=256)
def _own(spec: str, dtype: np.dtype[Any], shape: tuple[int, ...], channels: int | None) -> Codec:
    _check(dtype, shape, channels)
    name, colon, argument = spec.partition(":")
    level = 0
    if name in _LEVELS:
        lowest, highest, level = _LEVELS[name]
        if colon:
            plain = argument.isascii() and argument.isdecimal() and len(argument) <= 3
            if not plain or not lowest <= int(argument) <= highest:
                raise InvalidError(f"codec {name!r} takes {lowest} to {highest}; got {spec!r}")
            level = int(argument)
        spec = f"{name}:{level}"
    elif colon:
        raise InvalidError(f"codec {name!r} takes no argument; got {spec!r}")
    common = (spec, dtype, shape, channels)
    match name:
        case "raw":
            return Raw(*common)
        case "gzip":
            return Gzip(*common, level=level)
        case "jpeg":
            return Jpeg(*common, level=level)
        case "label":
            return Label(*common)
    made = PackedLabel if name.startswith("label") else Packed
    number = next(number for number, each in _BY_ID.items() if each == name)
    if name.endswith("lz4"):
        return made(
            *common, number=number, pack=_compress.lz4_compress, unpack=_compress.lz4_decompress
        )

    def pack(data: Any) -> bytes:
        return _compress.zstd_compress(data, level)

    return made(*common, number=number, pack=pack, unpack=_compress.zstd_decompress)


@lru_cache(maxsize=256)
def _foreign(
    factory: Any,
    spec: str,
    argument: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    channels: int | None,
) -> Codec:
    _check(dtype, shape, channels)
    made = factory(argument, dtype, shape, channels)
    return Foreign(spec, dtype, shape, channels, made=made)


def _check(dtype: np.dtype[Any], shape: tuple[int, ...], channels: int | None) -> None:
    if dtype.hasobject or not 1 <= dtype.itemsize <= MAX_ITEM or not dtype.isnative:
        raise InvalidError(
            f"blocks hold items of 1 to {MAX_ITEM} bytes in native byte order; got {dtype!r}"
        )
    if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
        raise InvalidError(f"a block has 1 to {MAX_DIMS} positive sizes; got {shape}")
    if channels is not None and channels < 1:
        raise InvalidError(f"channels is at least 1; got {channels}")
