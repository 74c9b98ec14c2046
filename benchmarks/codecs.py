"""Codecs on one block: time and size."""

import numpy as np

from benchmarks.common import em, labels
from diced.codec import get_codec


class Codecs:
    """Encode and decode one 64-cubed block."""

    params = ["raw", "lz4", "zstd:1", "zstd:3", "gzip:1", "label", "label+lz4", "label+zstd"]
    param_names = ["codec"]

    def setup(self, codec):
        data = labels() if codec.startswith("label") else em()
        self.block = np.ascontiguousarray(data[32:96, 64:128, 128:192])
        self.codec = get_codec(codec, self.block.dtype, self.block.shape, None)
        self.payload = self.codec.encode(self.block)
        self.out = np.empty_like(self.block)

    def time_encode(self, codec):
        self.codec.encode(self.block)

    def time_decode(self, codec):
        self.codec.decode(self.payload, self.out, (0, 0, 0))

    def time_decode_voxel(self, codec):
        self.codec.decode(self.payload, self.out[:1, :1, :1], (41, 20, 33))

    def time_decode_plane(self, codec):
        self.codec.decode(self.payload, self.out[:1], (41, 0, 0))

    def track_ratio(self, codec):
        return self.block.nbytes / len(self.payload)

    track_ratio.unit = "raw/stored"
