"""Eight processes write disjoint boxes of one array: what does it cost not to align them?

``python -m benchmarks.writers [--engine local|gcs] [--rounds 5] [--side 512]``

Each process writes one box of `side` voxels cubed, the eight together a cube of twice the side:
once on block borders, where nobody meets anybody, and once shifted off all of them, so that a box
(of 512) meets 729 blocks instead of 512, 386 of them in part, and shares many of these with other
writers. Smaller boxes share more. Both are compared with what numpy says. `gcs` is the fake bucket
of the tests, whose server runs on the same processors. Prints the throughput of each, and the
unaligned one over the aligned one.
"""

import argparse
import itertools
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing import get_context

import numpy as np

from benchmarks.common import em
from diced import DicedStore, NotFoundError

COUNT = 8
BLOCK = (64, 64, 64)
SHIFT = (-37, 21, 13)
MARGIN = 64


def corner(number, side, shift):
    """Return the least voxel of a writer's box."""
    octant = np.unravel_index(number, (2, 2, 2))
    return tuple(int(place) * side + off for place, off in zip(octant, shift, strict=True))


def volume(number, side):
    """Return what a writer writes: its own part of a volume that looks like EM."""
    seed = np.roll(em((128, 256, 256)), (7 * number, 11 * number, 13 * number), (0, 1, 2))
    return np.tile(seed, [-(-side // n) for n in seed.shape])[:side, :side, :side].copy()


def serve(pipe, number, location, environ, side):
    """Write a box whenever told to: (name of the array, shift, when to begin)."""
    os.environ.update(environ)
    data = volume(number, side)
    repo = DicedStore(location, create=False).open_repo("bench")
    pipe.send("ready")
    for name, shift, begin in iter(pipe.recv, None):
        array = known(repo, name)
        low = corner(number, side, shift)
        box = tuple(slice(a, a + side) for a in low)
        time.sleep(max(0.0, begin - time.monotonic()))
        array[box] = data
        pipe.send(time.monotonic())


def known(repo, name):
    """Return an array that was just made; a store on a bucket may be 1 s behind."""
    while True:
        try:
            return repo.get_array(name)
        except NotFoundError:
            time.sleep(0.05)


class Writers:
    """Eight processes and the array they write."""

    def __init__(self, location, environ, side):
        self.side = side
        self.store = DicedStore(location)
        self.repo = self.store.create_repo("bench")
        self.names = (f"a{i}" for i in itertools.count())
        context = get_context("forkserver")
        context.set_forkserver_preload(["diced", "benchmarks.common", "google.cloud.storage"])
        self.pipes, self.processes = [], []
        for number in range(COUNT):
            pipe, there = context.Pipe()
            arguments = (there, number, location, environ, side)
            self.processes.append(context.Process(target=serve, args=arguments))
            self.processes[-1].start()
            self.pipes.append(pipe)
        for pipe in self.pipes:
            pipe.recv()

    def run(self, shift):
        """Let all write into a new array; return the seconds until the last was done."""
        name = next(self.names)
        array = self.repo.create_array(name, np.uint8, block_shape=BLOCK)
        begin = time.monotonic() + (1.5 if self.store.engine.remote else 0.1)
        for pipe in self.pipes:
            pipe.send((name, shift, begin))
        seconds = max(pipe.recv() for pipe in self.pipes) - begin
        self.check(array, shift)
        return seconds

    def check(self, array, shift):
        """Compare the array, and a margin around what was written, with numpy."""
        wanted = np.zeros((2 * self.side + 2 * MARGIN,) * 3, np.uint8)
        for number in range(COUNT):
            low = corner(number, self.side, shift)
            box = tuple(slice(a + MARGIN, a + MARGIN + self.side) for a in low)
            wanted[box] = volume(number, self.side)
        time.sleep(1.0 if self.store.engine.remote else 0.0)
        got = array[(slice(-MARGIN, 2 * self.side + MARGIN),) * 3]
        if not np.array_equal(got, wanted):
            raise AssertionError(f"{int((got != wanted).sum())} voxels are wrong")

    def close(self):
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()
        self.store.close()


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.writers", description=__doc__)
    parser.add_argument("--engine", choices=("local", "gcs"), default="local")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        environ = {}
        if options.engine == "gcs":
            sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
            import fake_gcs

            server = stack.enter_context(fake_gcs.start())
            environ, location = server.environ(), server.url()
            os.environ.update(environ)
        else:
            location = tempfile.mkdtemp(suffix=".diced")
            stack.callback(shutil.rmtree, location)
        writers = Writers(location, environ, options.side)
        stack.callback(writers.close)
        found = []
        size = COUNT * options.side**3 / 2**20
        for _ in range(options.rounds):
            aligned, unaligned = writers.run((0, 0, 0)), writers.run(SHIFT)
            found.append((size / aligned, size / unaligned, aligned / unaligned))
    aligned, unaligned, ratio = (statistics.median(each) for each in zip(*found, strict=True))
    print(
        f"writers engine={options.engine} side={options.side} aligned={aligned:.0f} MiB/s"
        f" unaligned={unaligned:.0f} MiB/s ratio={ratio:.2f}"
    )


if __name__ == "__main__":
    main()
