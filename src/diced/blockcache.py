"""Decoded blocks in memory, of one home: small reads of the same blocks decode them once.

Owns what is kept of a block and under which name; `diced.blocks` decodes and copies. A pointer
always leads to the same bytes, so nothing kept is ever out of date: a block that changes has
another pointer.
"""

from __future__ import annotations

import numpy as np

from diced.cache import Cache
from diced.segment import Pointer

# Beside its voxels a block costs objects, a key and a place in the table.
OVERHEAD_BYTES = 600


class CachedBlock:
    """One decoded block, immutable.

    Parameters
    ----------
    lane : bytes
        Of the array, as frames carry it.
    key : bytes
        Of the block in its array.
    voxels : numpy.ndarray
        Of the block's whole shape, owning its memory; becomes read-only.

    Attributes
    ----------
    nbytes : int
        Memory held, for the accounts of the cache.
    used : bool
        Note of the cache: asked for since it was last looked at.
    """

    __slots__ = ("key", "lane", "nbytes", "used", "voxels")

    def __init__(self, lane: bytes, key: bytes, voxels: np.ndarray):
        voxels.flags.writeable = False
        self.lane = lane
        self.key = key
        self.voxels = voxels
        self.nbytes = voxels.nbytes + OVERHEAD_BYTES
        self.used = False


class BlockCache(Cache[CachedBlock]):
    """Decoded blocks by pointer, those used of late, bounded by memory; safe among threads."""

    def find(self, pointer: Pointer, lane: bytes, key: bytes) -> np.ndarray | None:
        """Return the voxels of a block, or None.

        A damaged index may lead to another block's frame: that must be seen as without the cache.
        """
        block = self.get(pointer)
        if block is None or block.key != key or block.lane != lane:
            return None
        return block.voxels

    def share(self, block_nbytes: int) -> int:
        """Return how many blocks one read may keep, so that it does not drive out all others."""
        return self.budget_bytes // 2 // (block_nbytes + OVERHEAD_BYTES)
