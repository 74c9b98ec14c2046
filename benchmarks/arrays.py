"""Whole reads and writes, boxes, slices, voxels, at the defaults (checksums on, no data cache)."""

import itertools

import numpy as np

from benchmarks.common import Scratch, em, labels
from diced import DicedStore

VOLUMES = {"em": em, "labels": labels}


class Reads:
    """Reads at fresh random places."""

    params = list(VOLUMES)
    param_names = ["data"]

    def setup(self, name):
        self.data = VOLUMES[name]()
        self.scratch = Scratch()
        self.array = self.scratch.array(self.data)
        self.places = itertools.cycle(np.random.default_rng(2).random((997, 3)))

    def teardown(self, name):
        self.scratch.close()

    def _read(self, size):
        places = zip(next(self.places), self.data.shape, size, strict=True)
        start = [int(place * (n - s)) for place, n, s in places]
        return self.array[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))]

    def time_whole(self, name):
        self._read(self.data.shape)

    def time_box_100(self, name):
        self._read((100, 100, 100))

    def time_box_32(self, name):
        self._read((32, 32, 32))

    def time_voxel(self, name):
        self._read((1, 1, 1))

    def time_xy(self, name):
        self._read((1, 512, 512))

    def time_xz(self, name):
        self._read((128, 1, 512))

    def time_yz(self, name):
        self._read((128, 512, 1))

    def peakmem_whole(self, name):
        self._read(self.data.shape)


class CachedReads(Reads):
    """The same with decoded blocks in memory: the volume fits, and every block was met."""

    def setup(self, name):
        super().setup(name)
        budget = 2 * self.data.nbytes
        self.store = DicedStore(self.scratch.path, durability="process", block_cache_bytes=budget)
        self.array = self.store.open_repo("bench").get_array("a")
        for start in itertools.product(*(range(0, size, 64) for size in self.data.shape)):
            self.array[start]

    def teardown(self, name):
        self.store.close()
        super().teardown(name)


class Writes:
    """Writes without fsync, and one-block commits with it."""

    params = [list(VOLUMES), ["process", "power"]]
    param_names = ["data", "durability"]

    def setup(self, name, durability):
        self.data = VOLUMES[name]()
        self.scratch = Scratch(durability)
        self.array = self.scratch.array(self.data)
        self.numbers = itertools.count()

    def teardown(self, name, durability):
        self.scratch.close()

    def time_whole(self, name, durability):
        self.scratch.array(self.data, name=f"w{next(self.numbers)}")

    def time_unaligned_100(self, name, durability):
        turn = next(self.numbers) % 20
        self.array[5:105, 7 + turn : 107 + turn, 9:109] = self.data[:100, :100, :100]

    def time_one_block(self, name, durability):
        turn = next(self.numbers) % 50
        self.array[0:64, 0:64, 0:64] = self.data[turn : turn + 64, 64:128, 64:128]

    def time_one_voxel(self, name, durability):
        self.array[3, 4, 5] = next(self.numbers) % 200
