"""Many processes write disjoint boxes of one array; the blocks at their borders are shared.

What it costs is measured by ``python -m benchmarks.writers``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_concurrent import in_processes

from diced import DicedStore

LOW, HIGH = -21, 43
WRITERS = 8
Box = tuple[tuple[int, int], ...]


def cut(rng: random.Random, box: Box, count: int) -> Iterator[Box]:
    """Cut a box into `count` disjoint ones that fill it, at random places."""
    if count == 1:
        yield box
        return
    sides = [b - a for a, b in box]
    axis = sides.index(max(sides))
    a, b = box[axis]
    share = count // 2
    at = rng.randint(a + (b - a) // 3, b - (b - a) // 3)
    for part, each in (((a, at), share), ((at, b), count - share)):
        yield from cut(rng, (*box[:axis], part, *box[axis + 1 :]), each)


def boxes_of(seed: int) -> list[Box]:
    return list(cut(random.Random(seed), ((LOW, HIGH),) * 3, WRITERS * 4))


def values_of(number: int, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(number).integers(0, 3, shape)
    return (noise + 10 * number + 1).astype(np.uint32)


def _write(number: int, barrier: Any, environ: dict[str, str], location: str, seed: int) -> None:
    os.environ.update(environ)
    array = DicedStore(location, create=False).open_repo("r")["a"]
    boxes = boxes_of(seed)
    barrier.wait(60)
    # One's own are spread over the whole array, so that everybody meets everybody.
    for i in range(number, len(boxes), WRITERS):
        shape = tuple(b - a for a, b in boxes[i])
        array[tuple(slice(a, b) for a, b in boxes[i])] = values_of(i, shape)


def check_unaligned_writers(location: str, environ: dict[str, str], seed: int) -> None:
    with DicedStore(location) as store:
        repo = store.create_repo("r")
        repo.create_array("a", np.uint32, block_shape=(16, 16, 16))
        in_processes(WRITERS, _write, environ, location, seed)
    wanted = np.zeros((HIGH - LOW,) * 3, np.uint32)
    for i, box in enumerate(boxes_of(seed)):
        shape = tuple(b - a for a, b in box)
        wanted[tuple(slice(a - LOW, b - LOW) for a, b in box)] = values_of(i, shape)
    assert (wanted > 0).all()
    with DicedStore(location, readonly=True) as store:
        repo = store.open_repo("r")
        assert (repo["a"][(slice(LOW, HIGH),) * 3] == wanted).all()
        around = repo["a"][(slice(LOW - 5, HIGH + 5),) * 3]
        assert np.count_nonzero(around) == wanted.size
        assert sum(1 for _ in repo.operations("a")) == WRITERS * 4


@pytest.mark.parametrize("seed", [1, 2])
def test_unaligned_writers_on_a_disk(tmp_path: Path, seed: int) -> None:
    check_unaligned_writers(str(tmp_path / "store"), {}, seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_unaligned_writers_on_a_bucket(gcs: Any, seed: int) -> None:
    check_unaligned_writers(gcs.url(), gcs.environ(), seed)
