"""Kernels on one 64-cubed block: copies, the constant test, checksums, labels, keys."""

import numpy as np

from benchmarks.common import em, labels
from diced import _blocks, _codec, _crc32c, _voxels

BLOCK = (slice(3, 67), slice(64, 128), slice(64, 128))


class Copy:
    """A block in and out of a window of a larger array."""

    params = ["uint8", "uint16", "float32", "uint64"]
    param_names = ["dtype"]

    def setup(self, dtype):
        self.volume = np.zeros((128, 256, 256), dtype)
        self.block = np.ones((64, 64, 64), dtype)

    def time_scatter(self, dtype):
        _blocks.copy(self.block, self.volume[BLOCK])

    def time_gather(self, dtype):
        _blocks.copy(self.volume[BLOCK], self.block)

    def time_constant(self, dtype):
        _voxels.constant(self.volume[BLOCK])

    def time_fill(self, dtype):
        _voxels.fill(self.volume[BLOCK], self.block[0, 0, :1].tobytes())


class Labels:
    """DVID label blocks between a window and bytes."""

    def setup(self):
        self.volume = labels()
        self.window = self.volume[BLOCK]
        self.payload = _codec.label_encode(self.window)
        self.out = np.zeros_like(self.volume)
        self.distinct = np.arange(64**3, dtype=np.uint64).reshape(64, 64, 64)

    def time_encode(self):
        _codec.label_encode(self.window)

    def time_decode(self):
        _codec.label_decode(self.payload, self.out[BLOCK], (0, 0, 0), (64, 64, 64))

    def time_decode_plane(self):
        window = self.out[3:4, 64:128, 64:128]
        _codec.label_decode(self.payload, window, (31, 0, 0), (64, 64, 64))

    def time_decode_voxel(self):
        window = self.out[3:4, 64:65, 64:65]
        _codec.label_decode(self.payload, window, (31, 20, 33), (64, 64, 64))

    def time_encode_all_distinct(self):
        _codec.label_encode(self.distinct)

    def track_bytes(self):
        return len(self.payload)

    track_bytes.unit = "bytes"


class Rest:
    """Checksums, and the arithmetic of a box of 4,096 blocks."""

    def setup(self):
        self.data = em()[:64, :64, :64].tobytes()
        self.coords = np.asarray(_blocks.partition([0] * 3, [1024] * 3, [64] * 3)[0])

    def time_crc32c(self):
        _crc32c.crc32c(self.data)

    def time_partition(self):
        _blocks.partition([0] * 3, [1024] * 3, [64] * 3)

    def time_morton(self):
        _blocks.morton(self.coords)
