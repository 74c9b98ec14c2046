"""Start-up in a fresh process: what diced costs beyond numpy, and the first voxel."""

import statistics
import subprocess
import sys

import numpy as np

from benchmarks.common import Scratch

TIMES = 9
IMPORT = """
import time, numpy
start = time.perf_counter()
import diced
print((time.perf_counter() - start) * 1000)
"""
VOXEL = """
import time, numpy, diced
start = time.perf_counter()
diced.DicedStore({path!r}, readonly=True).open_repo("bench")["a"][1, 2, 3]
print((time.perf_counter() - start) * 1000)
"""


def _median(code):
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(TIMES)
    )


class Start:
    """Milliseconds, median of fresh processes."""

    def setup(self):
        self.scratch = Scratch()
        self.scratch.array(np.random.default_rng(4).integers(0, 255, (128,) * 3, np.uint8))
        self.scratch.repo.lock_node("x")

    def teardown(self):
        self.scratch.close()

    def track_import_over_numpy(self):
        return _median(IMPORT)

    def track_open_and_voxel(self):
        return _median(VOXEL.format(path=self.scratch.path))

    track_import_over_numpy.unit = track_open_and_voxel.unit = "ms"
