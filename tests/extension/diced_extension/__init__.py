"""A package that adds an engine, a codec and a kind of array to diced by entry points."""

from __future__ import annotations

import zlib

import numpy as np

from diced import DicedArray
from diced.engine import open_engine
from diced.errors import CorruptError


def open_shout(location, **options):
    """``shout://name``: a memory engine that counts what it was asked to put."""
    engine = open_engine("memory://shout-" + location.removeprefix("shout://"), **options)
    put = engine.put_if_absent
    engine.puts = 0

    def counting(key, data, txid):
        engine.puts += 1
        return put(key, data, txid)

    engine.put_if_absent = counting
    return engine


class Negative:
    """A codec that stores the bitwise complement, deflated."""

    lossy = False
    id = 255

    def __init__(self, argument, dtype, block_shape, channels):
        self.spec = "negative" + (f":{argument}" if argument else "")
        self._dtype = dtype
        self._shape = tuple(block_shape) + ((channels,) if channels is not None else ())

    def encode(self, src):
        return zlib.compress((~np.ascontiguousarray(src).view(np.uint8)).tobytes())

    def decode(self, payload, out, start):
        data = np.frombuffer(zlib.decompress(payload), np.uint8)
        block = (~data).view(self._dtype)
        if block.size != np.prod(self._shape):
            raise CorruptError(f"negative: {block.size} items, wanted {self._shape}")
        window = tuple(slice(s, s + n) for s, n in zip(start, out.shape, strict=False))
        out[...] = block.reshape(self._shape)[window]


class Mask(DicedArray):
    """A kind whose elements are always bool, with a count of what is set."""

    @staticmethod
    def describe(name, **options):
        return DicedArray.describe(name, **{**options, "dtype": np.bool_})

    def count(self):
        """Return the number of voxels that are set."""
        return int(self[...].sum())
