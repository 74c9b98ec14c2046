"""Streams of blocks as DVID sends them: ``int32 x, y, z, bytes`` and the block's payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from diced.codec import get_codec
from diced.errors import CorruptError, DicedException

HEAD = struct.Struct("<4i")


def jpeg_blocks(
    data: bytes, block_shape: tuple[int, ...], request: str
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield (first voxel ZYX, uint8 voxels) of each block in a stream of JPEG.

    Parameters
    ----------
    data : bytes
    block_shape : tuple of int
        ZYX.
    request : str
        For messages.

    Raises
    ------
    CorruptError
    """
    codec = get_codec("jpeg", np.uint8, block_shape)
    at = 0
    while at < len(data):
        if len(data) - at < HEAD.size:
            raise CorruptError(f"the stream of blocks ends in a header [{request}]")
        *place_xyz, count = HEAD.unpack_from(data, at)
        at += HEAD.size
        if not 0 <= count <= len(data) - at:
            raise CorruptError(f"the stream of blocks ends in a block [{request}]")
        if count:
            block = np.empty(block_shape, np.uint8)
            try:
                codec.decode(memoryview(data)[at : at + count], block, (0, 0, 0))
            except DicedException as error:
                raise CorruptError(f"block {place_xyz} (XYZ): {error} [{request}]") from None
            lo = tuple(p * n for p, n in zip(reversed(place_xyz), block_shape, strict=True))
            yield lo, block
        at += count
