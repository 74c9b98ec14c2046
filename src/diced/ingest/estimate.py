"""What an import will ask of a bucket, before it begins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from diced import compose, segment
from diced.grid import Box, align

# Bytes of a frame beyond its voxels, of a record for each block, and of a request.
PER_BLOCK = 128
PER_RECORD = 1024
# What does not compress grows by one byte of so many.
GROWTH = 200
# An array's creation, and a look for commits that are there.
TO_BEGIN = 3
# Gets before a slab is written and before it is committed: is the array still there? Two each,
# but none where the last answer is younger than max_age.
PER_SLAB = 2
# A snapshot of the index is written after so many blocks, with so many requests.
SNAPSHOT_BLOCKS = 65536
PER_SNAPSHOT = 4


class Estimate(NamedTuple):
    """What writing some slabs into an array takes where every object is a request.

    `requests` in all, of which `commits` and `segments` create objects; fewer segments if voxels
    compress. `nbytes` are uploaded at most.
    """

    requests: int
    commits: int
    segments: int
    blocks: int
    nbytes: int


def estimate(boxes: Iterable[Box], block_shape: Sequence[int], itemsize: int) -> Estimate:
    """Return what it takes to write boxes, each by one commit.

    Parameters
    ----------
    boxes : iterable of (lo, hi)
        ZYX, half-open.
    block_shape : sequence of int
    itemsize : int
        Bytes of a voxel, channels included.
    """
    commits = segments = blocks = nbytes = 0
    for lo, hi in boxes:
        low, high = align(lo, hi, block_shape)
        sides = zip(low, high, block_shape, strict=True)
        met = math.prod((b - a) // side for a, b, side in sides)
        commits += 1
        blocks += met
        # Voxels of border blocks that are not in the box are all alike, and take next to nothing.
        stored = math.prod(b - a for a, b in zip(lo, hi, strict=True)) * itemsize + met * PER_BLOCK
        if stored > compose.RIDING_BYTES:
            segments += -(-stored // segment.WHOLE_BYTES)
        nbytes += stored + stored // GROWTH + met * PER_BLOCK + PER_RECORD
    requests = segments + commits * (1 + PER_SLAB) + (TO_BEGIN if commits else 0)
    requests += blocks // SNAPSHOT_BLOCKS * PER_SNAPSHOT
    return Estimate(requests, commits, segments, blocks, nbytes)
