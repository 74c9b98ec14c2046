"""Bulk reads and writes against h5py and zarr-python, lz4, 64-cubed chunks, in one run, no fsync.

Each figure is our time over the peer's: below 1 is faster. The two alternate.
"""

import shutil
import tempfile

import numpy as np

from benchmarks.common import Scratch, em, labels, ratio

VOLUMES = {"em": em, "labels": labels}
CHUNKS = (64, 64, 64)


class H5py:
    """One HDF5 file with the lz4 filter."""

    def __init__(self, path):
        self.path = path + "/peer.h5"

    def write(self, data):
        import h5py
        import hdf5plugin

        with h5py.File(self.path, "w") as file:
            file.create_dataset("a", data=data, chunks=CHUNKS, **hdf5plugin.LZ4())

    def read(self):
        import h5py
        import hdf5plugin  # noqa: F401 - registers the filter

        with h5py.File(self.path, "r") as file:
            return file["a"][...]


class Zarr:
    """A zarr v3 array with blosc lz4."""

    def __init__(self, path):
        self.path = path + "/peer.zarr"

    def write(self, data):
        import zarr
        from zarr.codecs import BloscCodec, BloscShuffle

        array = zarr.create_array(
            self.path,
            shape=data.shape,
            chunks=CHUNKS,
            dtype=data.dtype,
            overwrite=True,
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.noshuffle),
        )
        array[...] = data

    def read(self):
        import zarr

        return zarr.open_array(self.path, mode="r")[...]


class Bulk:
    """The whole volume."""

    params = [list(VOLUMES), ["h5py", "zarr"]]
    param_names = ["data", "peer"]
    timeout = 600

    def setup(self, name, peer):
        self.data = VOLUMES[name]()
        self.scratch = Scratch()
        self.path = tempfile.mkdtemp()
        self.peer = {"h5py": H5py, "zarr": Zarr}[peer](self.path)
        self.peer.write(self.data)
        self.array = self.scratch.array(self.data)
        assert np.array_equal(self.peer.read(), self._read())
        self.count = 0

    def teardown(self, name, peer):
        self.scratch.close()
        shutil.rmtree(self.path)

    def _read(self):
        return self.array[tuple(slice(0, n) for n in self.data.shape)]

    def _write(self):
        self.count += 1
        self.scratch.array(self.data, name=f"w{self.count}")

    def track_read(self, name, peer):
        return ratio(self._read, self.peer.read)

    def track_write(self, name, peer):
        return ratio(self._write, lambda: self.peer.write(self.data))

    track_read.unit = track_write.unit = "our time / the peer's"
