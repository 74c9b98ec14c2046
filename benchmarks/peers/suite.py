"""Bulk reads and writes against h5py and zarr-python, lz4, 64-cubed chunks, in one run, no fsync.

Each figure is our time over the peer's: below 1 is faster. The two alternate.
"""

import os
import shutil
import tempfile

import numpy as np

from benchmarks.common import em, labels, ratio
from benchmarks.peers.adapters import OURS, make
from diced.pool import default_threads

VOLUMES = {"em": em, "labels": labels}
ROWS = {"h5py": "h5-lz4", "zarr": "zarr-blosclz4"}


class _Side:
    """One store with one array to read, and more to write."""

    def __init__(self, name, data):
        self.data = data
        self.root = tempfile.mkdtemp()
        self.peer = make(name, data.dtype == np.uint64, default_threads())
        self.count = 0
        path = self._new()
        self.peer.create(path, data)
        self.whole = tuple(slice(0, n) for n in data.shape)
        self.handle = self.peer.reader(path)

    def _new(self):
        self.count += 1
        path = os.path.join(self.root, str(self.count))
        self.peer.prepare(path)
        return path

    def read(self):
        return self.handle.read(self.whole)

    def ready(self):
        """Prepare a place for the next write, and forget the last one."""
        if self.count > 1:
            shutil.rmtree(os.path.join(self.root, str(self.count)))
        self.target = self._new()

    def write(self):
        self.peer.create(self.target, self.data)

    def close(self):
        self.handle.close()
        shutil.rmtree(self.root)


class Bulk:
    """The whole volume."""

    params = [list(VOLUMES), list(ROWS)]
    param_names = ["data", "peer"]
    timeout = 600

    def setup(self, name, peer):
        data = VOLUMES[name]()
        self.ours = _Side(OURS, data)
        self.peer = _Side(ROWS[peer], data)
        assert np.array_equal(self.ours.read(), data)
        assert np.array_equal(self.peer.read(), data)

    def teardown(self, name, peer):
        self.ours.close()
        self.peer.close()

    def _ready(self):
        self.ours.ready()
        self.peer.ready()

    def track_read(self, name, peer):
        return ratio(self.ours.read, self.peer.read)

    def track_write(self, name, peer):
        return ratio(self.ours.write, self.peer.write, before=self._ready)

    track_read.unit = track_write.unit = "our time / the peer's"
