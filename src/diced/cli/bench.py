"""The bench command: rates of a scratch array at a location, removed afterwards."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from diced.array import DicedArray
from diced.cli import common
from diced.engine.base import translate
from diced.errors import InvalidError, LocationError
from diced.store import DicedStore

MORE = """\
LOCATION is a store, in which a scratch repo is made, or a folder or URL, where a scratch store is
made; either is removed afterwards. Data are noisy enough that codecs gain little, as with EM. What
was just written is read from the operating system's cache, so reading is the rate of the software.

  diced bench /data --size 1G
"""
SIDE = 256
SMALL = 200  # voxel reads, and commits at most


def add_commands(commands: common.Commands) -> None:
    """Add the parser."""
    parser = common.command(
        commands, "bench", _bench, "measure write, read, voxel and commit rates at a location",
        more=MORE, writes=True,
    )  # fmt: skip
    parser.add_argument("store", metavar="LOCATION", help="store, folder or URL")
    parser.add_argument(
        "--size", type=common.size, default=256 * 2**20, help="of the volume; default: 256M"
    )
    parser.add_argument("--codec", help="default: the default of arrays")


def _bench(args: argparse.Namespace) -> None:
    thickness = max(64, args.size // SIDE**2 // 64 * 64)
    with _scratch(args) as store:
        name = f"diced-bench-{os.urandom(6).hex()}"
        repo = store.create_repo(name, "scratch of diced bench")
        try:
            array = repo.create_array("noise", codec=args.codec)
            rows = _measure(array, thickness)
        finally:
            store.delete_repo(name)
            store.sweep()
        data: dict[str, Any] = {
            "location": store.url, "durability": store.durability, "threads": store.threads,
            "bytes": thickness * SIDE**2,
        }  # fmt: skip
    data["results"] = [{"what": what, "value": value, "unit": unit} for what, value, unit in rows]
    lines = [f"{data['location']}, {common.human(data['bytes'])}, durability {data['durability']}"]
    lines += common.table([(what, f"{value:,.1f} {unit}") for what, value, unit in rows])
    common.show(args, data, lines)


@contextlib.contextmanager
def _scratch(args: argparse.Namespace) -> Iterator[DicedStore]:
    """Yield an open store that may be written to, and leave nothing behind of what was made."""
    place = common.location(args)
    try:
        store = common.open_store(args, write=True)
    except LocationError:
        if "://" in place:
            store = common.open_store(args, write=True, create=True)
        else:
            with _scratch_folder(place) as folder:
                args.store = folder
                with common.open_store(args, write=True, create=True) as store:
                    yield store
            return
    with store:
        yield store


@contextlib.contextmanager
def _scratch_folder(place: str) -> Iterator[str]:
    import shutil
    import tempfile

    place = os.path.expanduser(place)
    if not os.path.isdir(place):
        raise InvalidError(f"{place!r} is neither a store nor a folder")
    try:
        folder = tempfile.mkdtemp(prefix="diced-bench-", dir=place)
    except OSError as error:
        raise translate(error, f"write in {place!r}") from error
    try:
        yield os.path.join(folder, "store.diced")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(array: DicedArray, thickness: int) -> list[tuple[str, float, str]]:
    """Return (what, value, unit) of every rate."""
    random = np.random.default_rng(0)
    slab = random.normal(128, 12, (64, SIDE, SIDE)).astype(np.uint8)
    count = thickness // 64
    total = count * slab.nbytes / 2**20

    def write() -> None:
        for i in range(count):
            array[64 * i : 64 * (i + 1), :SIDE, :SIDE] = slab

    rows = [("write, 64-plane slabs", total / _seconds(write), "MiB/s")]

    out = np.empty_like(slab)

    def read() -> None:
        for i in range(count):
            array.read((slice(64 * i, 64 * (i + 1)), slice(0, SIDE), slice(0, SIDE)), out=out)

    rows.append(("read, 64-plane slabs", total / _seconds(read), "MiB/s"))

    size = min(SIDE, thickness)

    def cut() -> None:
        for i in range(16):
            array.read((slice(0, size), i * 16, slice(0, SIDE)))

    rows.append(("read, xz planes", 16 / _seconds(cut), "planes/s"))

    places = random.integers(0, (thickness, SIDE, SIDE), (SMALL, 3)).tolist()
    times = [_seconds(functools.partial(array.read, tuple(place))) for place in places]
    rows.append(("read, a voxel (median)", float(np.median(times)) * 1e6, "us"))

    begin = time.perf_counter()
    commits: list[float] = []
    while len(commits) < SMALL and (len(commits) < 3 or time.perf_counter() - begin < 3):
        i = len(commits)
        one = functools.partial(array.__setitem__, (0, 0, i), i % 251 + 1)
        commits.append(_seconds(one))
    rows.append(("commit of a voxel (median)", float(np.median(commits)) * 1e3, "ms"))
    return rows


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return max(time.perf_counter() - begin, 1e-9)
