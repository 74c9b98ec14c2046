"""Makes a golden store: nearly everything in docs/format.md, with what it must read back.

    python tests/golden/make.py tests/golden/format-1

Run once per format; the result is committed and never made again.
"""

import json
import sys

import numpy as np

from diced import DicedStore, compose, index, versioned

DTYPES = ["bool", "int8", "uint16", "int32", "uint64", "float16", "float64"]
CODECS = ["raw", "lz4", "zstd:3", "gzip:6"]


RAMP = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 4


def pattern(shape, dtype, seed):
    """Return a small reproducible array."""
    values = np.arange(int(np.prod(shape)), dtype=np.int64) * (seed + 3) % 97
    return (values.reshape(shape) % 2 if dtype == "bool" else values.reshape(shape)).astype(dtype)


def contents():
    """Yield (name, create options, offset, data) of every array."""
    for i, dtype in enumerate(DTYPES):
        yield (
            f"image {dtype}",
            {"dtype": dtype, "dims": 2, "block_shape": (4, 8), "codec": CODECS[i % 4]},
            (-3, 5),
            pattern((9, 13), dtype, i),
        )
    for codec in ("lz4", "zstd:1"):
        yield (  # blocks of eight units of 32 KiB
            f"units {codec}",
            {"dtype": "uint16", "block_shape": (32, 64, 64), "codec": codec},
            (-20, -30, 5),
            pattern((40, 70, 66), "uint16", 5),
        )
    yield (
        "volume",
        {"dtype": "uint8", "block_shape": (8, 8, 8)},
        (-9, 3, 100),
        pattern((12, 12, 12), "uint8", 1),
    )
    yield (
        "colour",
        {"dtype": "uint8", "dims": 2, "channels": 4, "block_shape": (8, 8)},
        (
            0,
            -5,
        ),
        pattern((9, 9, 4), "uint8", 2),
    )
    for codec in ("label", "label+lz4", "label+zstd:3"):
        yield (
            codec,
            {"dtype": "uint64", "islabel3D": True, "block_shape": (16, 16, 16), "codec": codec},
            (-5, 7, 1),
            np.repeat(pattern((20, 20, 5), "uint64", 3), 4, axis=2),
        )


def main(path):
    # Small limits, so that snapshots, bodies in COMMIT frames and pages of two levels occur.
    versioned.SNAPSHOT_RECORDS = 3
    compose.INLINE_BODY = 500
    index.PAGE_COST = 1 << 10
    store = DicedStore(path, user="golden")
    store.info["organisation"] = "gold"
    repo = store.create_repo("golden répo", "one of everything")
    for name, options, offset, data in contents():
        array = repo.create_array(name, **options, attrs={"made": "golden"}, fill=1)
        array[tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=False))] = data
    repo.create_array("beside", "uint8", 1, versioned=False, block_shape=(4,))[0:3] = 5
    repo.create_array("photo", "uint8", 2, codec="jpeg:90", block_shape=(16, 16))[0:16, 0:16] = RAMP
    for number in range(8):
        repo["beside"][4 * number] = number + 1
    repo.files.put_many({f"many/{number:04d}": b"%d" % number for number in range(300)})
    repo.files["small"] = b"inline"
    repo.files["nested/größer.bin"] = b"0123456789" * 100
    repo.reserve_ids(10)
    repo.lock_node("first")
    repo.tag("v1")
    repo.change_version(repo.create_branch("second"))
    repo["volume"][0:4, 0:4, 100:104] = 7
    del repo.files["small"]
    repo.change_version(repo.root)
    repo.create_branch("", branch="side", uuid="f" * 32)
    expected = {"root": repo.root, "versions": len(repo.versions())}
    with open(path + ".json", "w") as file:
        json.dump(expected, file)


if __name__ == "__main__":
    main(sys.argv[1])
