"""Makes a golden store of regions, graphs, tiles and long values, and tells what it must read back.

    python tests/golden/kinds.py tests/golden/kinds-1

Run once per format; the result is committed and never made again.
"""

import json
import sys

import numpy as np

from diced import DicedStore, versioned
from diced.tilemaker import plane_of
from diced.tiles import ATTRIBUTE

LEAST, MOST = -(2**31), 2**31 - 1
LARGE = 2**64 - 1
EXTREME = [[LEAST, MOST, LEAST, MOST], [-1, 0, 0, 0], [-1, 0, 0, 2], [MOST, LEAST, 7, 9]]
WEIGHTS = {1: 0.5, 2: -2.25, 300: 0.0, LARGE: 1e300}
EDGES = {(1, 2): 3.0, (2, 300): -0.125, (1, LARGE): 7.0}
PROPERTIES = {1: b"red", LARGE: b"long " * 100, (2, 300): b"", (LARGE, 1): b"\0" * 400}
NOISE = np.random.default_rng(7).bytes(999)
TILES = {(0, (3, 0, -1)): b"a tile", (2, (0, 5, 1)): b"another " * 50}


def many_spans():
    """Return spans of two parts, sorted, with coordinates on both sides of 0."""
    number = np.arange(20_000)
    x = number % 50 * 7 - 170
    return np.stack([number // 1000 - 9, number // 50 % 20 - 4, x, x + number % 5], axis=1)


def long_bytes():
    """Return a value of three units: two that get smaller, and a short one that does not."""
    ramp = np.arange(2**20) // 4096
    return (b"a MiB of it " * 2**17)[: 2**20] + ramp.astype(np.uint8).tobytes() + NOISE


def main(path):
    versioned.SNAPSHOT_RECORDS = 3
    store = DicedStore(path, user="golden")
    repo = store.create_repo("kinds")
    repo.create_array("extreme", kind="roi").set_spans(EXTREME)
    many = repo.create_array("many", kind="roi", block_shape=(16, 32, 64))
    many.set_spans(EXTREME)
    many.set_spans(many_spans())
    repo.create_array("empty", kind="roi")
    graph = repo.create_array("graph", kind="labelgraph")
    graph.put({**WEIGHTS, 5: 1.0}, {**EDGES, (1, 5): 1.0})
    for element, value in PROPERTIES.items():
        graph.set_property(element, "größe", value)
    graph.transact({1: 1, 2: 1}, {2: b"seen"}, "seen")
    graph.transact({1: 2}, {1: b"twice"}, "seen")
    graph.remove([5], [])
    settings = {"source": "", "format": "png", "quality": 80}
    tiles = repo.create_array("tiles", kind="imagetile", attrs={ATTRIBUTE: settings})
    for (scale, place), data in TILES.items():
        tiles.store_tile(plane_of("xy"), scale, place, data)
    repo.files["long"] = long_bytes()
    repo.files["plain"] = NOISE
    repo.lock_node("first")
    repo.tag("v1")
    repo.change_version(repo.create_branch("second"))
    repo["many"].set_spans(EXTREME)
    repo["extreme"].clear()
    graph = repo["graph"]
    graph.merge([2, 1])
    graph.add({300: 1.0}, {(300, 301): 2.0})
    with open(path + ".json", "w") as file:
        json.dump({"root": repo.root, "head": repo.uuid}, file)


if __name__ == "__main__":
    main(sys.argv[1])
