"""History: does a read cost more after many versions? Commits, locks and branches."""

import itertools

import numpy as np

from benchmarks.common import Scratch, ratio


class Deep:
    """A 256-cubed array with many versions of 1 % random edits."""

    params = [10, 200]
    param_names = ["versions"]
    timeout = 600

    def setup(self, versions):
        rng = np.random.default_rng(3)
        self.scratch = Scratch()
        self.repo = self.scratch.repo
        data = rng.integers(0, 255, (256, 256, 256), np.uint8)
        self.array = self.scratch.array(data)
        for _ in range(versions):
            self.repo.lock_node("edit")
            self.repo.change_version(self.repo.create_branch())
            z, y, x = (64 * rng.integers(0, 4, 3)).tolist()
            self.array[z : z + 64, y : y + 64, x : x + 64] = rng.integers(0, 255, (64,) * 3)
        self.repo.lock_node("last")
        self.newest = self.scratch.store.open_repo("bench", version="master")["a"]
        self.oldest = self.scratch.store.open_repo("bench")["a"]

    def teardown(self, versions):
        self.scratch.close()

    def time_read_newest(self, versions):
        self.newest[...]

    def track_newest_over_oldest(self, versions):
        return ratio(lambda: self.newest[...], lambda: self.oldest[...])

    track_newest_over_oldest.unit = "time ratio"


class Steps:
    """Single steps of versioning."""

    def setup(self):
        self.scratch = Scratch()
        self.array = self.scratch.array(np.zeros((64, 64, 64), np.uint8))
        self.numbers = itertools.count(1)

    def teardown(self):
        self.scratch.close()

    def time_commit_voxel(self):
        self.array[0, 0, 0] = next(self.numbers) % 255

    def time_lock_and_branch(self):
        self.scratch.repo.lock_node("x")
        self.scratch.repo.change_version(self.scratch.repo.create_branch())

    def time_put_file(self):
        self.scratch.repo.files["name"] = b"x" * 100
