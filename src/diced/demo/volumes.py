"""Made-up volumes: an EM-like image and its segmentation, slab by slab, the same for the same seed.

Space is cut into the Voronoi cells of a jittered grid of seeds, bent by a smooth warp; neighbouring
cells are joined at random into bodies, which therefore wind through many blocks. Image and labels
come from the same cells, so every border between bodies lies under a membrane.

Speed comes from one fact: the *difference* of the squared distances to two seeds is linear in
position. Seeds are searched once per tile of 8 x 8 x 8 voxels; within a tile the nearest few are
compared by adding a gradient along each axis, on rows that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diced.errors import InvalidError

TILE = 8
NEAREST = 4  # seeds compared within a tile; a fifth is nearest nowhere one would see
SPACING = np.array([40.0, 40.0, 48.0])  # of seeds, in voxels, ZYX
JOINED = 0.6  # share of cells that belong to the same body as one neighbour
WARP = 9.0  # voxels, per wave
FIRST_LABEL = 1 << 33  # labels need more than 32 bits, as some real ones do

MEMBRANE = 52  # grey of a membrane's middle; the rest is added to it
CYTOPLASM = 74
SLOPE = 0.36  # grey per unit of gap between squared distances: 2 to 4 voxels, dark to light
ORGANELLE = 0.5  # share of cells that have one

Float = npt.NDArray[np.float32]
Index = npt.NDArray[np.uint32]


class _Cells(NamedTuple):
    """The cells of one volume."""

    counts: npt.NDArray[np.int64]  # seeds per axis, with two cells of margin on every side
    seeds: npt.NDArray[np.float64]  # (n, 3), in warped space
    body: Index  # (n,) the body each seed's cell belongs to, counted from 0
    waves: npt.NDArray[np.float64]  # (waves, 7): direction moved, wave vector, phase


def _make_cells(shape: tuple[int, int, int], seed: int) -> _Cells:
    rng = np.random.default_rng([seed, 1])
    counts = np.ceil(np.array(shape) / SPACING).astype(np.int64) + 4
    place = np.indices(counts).reshape(3, -1).T - 2
    seeds = (place + rng.uniform(0.12, 0.88, place.shape)) * SPACING

    # Every joined cell points at its next neighbour along one axis: a forest, so following the
    # pointers ends.
    parent = np.arange(len(seeds))
    axis = rng.integers(0, 3, len(seeds))
    stride = np.array([counts[1] * counts[2], counts[2], 1])
    inside = place[np.arange(len(seeds)), axis] < counts[axis] - 3
    joined = (rng.random(len(seeds)) < JOINED) & inside
    parent[joined] += stride[axis[joined]]
    while True:
        further = parent[parent]
        if np.array_equal(further, parent):
            break
        parent = further
    body = np.unique(parent, return_inverse=True)[1].astype(np.uint32)

    waves = np.empty((4, 7))
    waves[:, :3] = rng.normal(size=(4, 3))
    waves[:, :3] *= WARP / np.linalg.norm(waves[:, :3], axis=1, keepdims=True)
    waves[:, 3:6] = rng.normal(size=(4, 3))
    length = rng.uniform(110, 260, (4, 1))
    waves[:, 3:6] *= 2 * np.pi / length / np.linalg.norm(waves[:, 3:6], axis=1, keepdims=True)
    waves[:, 6] = rng.uniform(0, 2 * np.pi, 4)
    return _Cells(counts, seeds, body, waves)


class _Candidates(NamedTuple):
    """For one layer of tiles: the squared distance to each candidate seed, less the first one's.

    All are (NEAREST - 1, tiles in Y, voxels in X), except `first` (tiles in Y, voxels in X). The
    difference at a voxel is ``middle + z * along_z + y * along_y``, with z and y from the tile's
    middle; what x adds is in `middle`.
    """

    first: Index
    body: Index
    middle: Float
    along_z: Float
    along_y: Float


def _candidates(cells: _Cells, layer: int, tiles_y: int, tiles_x: int) -> _Candidates:
    z, y, x = np.meshgrid([layer], range(tiles_y), range(tiles_x), indexing="ij")
    middle = (np.stack([z, y, x], -1).reshape(-1, 3) + 0.5) * TILE - 0.5

    angle = middle @ cells.waves[:, 3:6].T + cells.waves[:, 6]
    warped = middle + np.sin(angle) @ cells.waves[:, :3]
    # d warped[i] / d position[j], without which surfaces would break at the edges of tiles
    bend = np.einsum("pw,wi,wj->pij", np.cos(angle), cells.waves[:, :3], cells.waves[:, 3:6])
    bend += np.eye(3)

    home = np.floor(warped / SPACING).astype(np.int64) + 2
    around = np.indices((3, 3, 3)).reshape(3, -1).T - 1
    near = np.clip(home[:, None] + around, 0, cells.counts - 1)
    near = (near[..., 0] * cells.counts[1] + near[..., 1]) * cells.counts[2] + near[..., 2]
    square = ((warped[:, None] - cells.seeds[near]) ** 2).sum(-1)
    order = np.argpartition(square, NEAREST, axis=1)[:, :NEAREST]
    order = np.take_along_axis(order, np.argsort(np.take_along_axis(square, order, 1), 1), 1)
    near = np.take_along_axis(near, order, 1)

    # Cells of one body side by side, in order of the nearest: `_shade` counts on it.
    body = cells.body[near]
    group = (body[:, :, None] == body[:, None, :]).argmax(2)
    order = np.argsort(group, axis=1, kind="stable")
    near = np.take_along_axis(near, order, 1)

    away = warped[:, None] - cells.seeds[near]
    square = (away**2).sum(-1)
    slope = 2 * np.einsum("pij,pki->pkj", bend, away)
    square, slope = square[:, 1:] - square[:, :1], slope[:, 1:] - slope[:, :1]

    def rows(values: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
        tiles: npt.NDArray[Any] = values.astype(dtype).T.reshape(-1, tiles_y, tiles_x)
        return np.repeat(tiles, TILE, axis=2)

    offset = np.tile(np.arange(TILE, dtype=np.float32) - (TILE - 1) / 2, tiles_x)
    body = cells.body[near]
    return _Candidates(
        first=rows(body[:, :1], np.uint32)[0],
        body=rows(body[:, 1:], np.uint32),
        middle=rows(square, np.float32) + rows(slope[..., 2], np.float32) * offset,
        along_z=rows(slope[..., 0], np.float32),
        along_y=rows(slope[..., 1], np.float32),
    )


class _Scratch:
    """Buffers for one row of tiles, (tiles in Y, voxels in X), used over and over."""

    def __init__(self, tiles_y: int, width: int) -> None:
        plane = (tiles_y, width)
        self.square = np.empty((NEAREST - 1, *plane), np.float32)
        self.best = np.empty(plane, np.float32)
        self.second = np.empty(plane, np.float32)
        self.loser = np.empty(plane, np.float32)
        self.body = np.empty(plane, np.uint32)
        self.mixed = np.empty(plane, np.uint32)
        self.mask = np.empty(plane, bool)
        self.differs = np.empty(plane, bool)


def _nearest(found: _Candidates, scratch: _Scratch) -> Index:
    """Return the body of the nearest seed at each voxel of the current row."""
    body = scratch.body
    np.copyto(body, found.first)
    scratch.best.fill(0)
    for square, other in zip(scratch.square, found.body, strict=True):
        np.less(square, scratch.best, out=scratch.mask)
        np.minimum(square, scratch.best, out=scratch.best)
        np.copyto(body, other, where=scratch.mask)
    return body


def _shade(found: _Candidates, scratch: _Scratch, row: npt.NDArray[np.uint8]) -> None:
    """Write the grey of each voxel of the current row: dark where two bodies are equally near."""
    body, best, second, loser = scratch.body, scratch.best, scratch.second, scratch.loser
    np.copyto(body, found.first)
    best.fill(0)
    second.fill(1e9)
    for square, other in zip(scratch.square, found.body, strict=True):
        np.not_equal(other, body, out=scratch.differs)
        np.less(square, best, out=scratch.mask)
        np.maximum(square, best, out=loser)
        np.minimum(second, loser, out=second, where=scratch.differs)
        np.minimum(square, best, out=best)
        np.copyto(body, other, where=scratch.mask)
    np.subtract(second, best, out=second)
    np.multiply(second, SLOPE, out=second)
    np.minimum(second, CYTOPLASM, out=second)
    np.copyto(row, second, casting="unsafe")
    # each body has a tone of its own, 0 to 31
    np.multiply(body, np.uint32(2654435761), out=scratch.mixed)
    np.right_shift(scratch.mixed, np.uint32(27), out=scratch.mixed)
    np.add(row, scratch.mixed, out=row, casting="unsafe")


def _texture(seed: int, width: int) -> npt.NDArray[np.uint8]:
    """Return smooth grain, 0 to 47, that repeats every (32, 128, 128), as wide as a row."""
    rng = np.random.default_rng([seed, 2])
    grain = rng.integers(0, 256, (32, 128, 128)).astype(np.int64)
    for axis in range(3):
        grain = np.sum([np.roll(grain, step, axis) for step in range(4)], axis=0)
    grain -= grain.min()
    grain = grain * 47 // grain.max()
    return np.tile(grain.astype(np.uint8), (1, 1, -(-width // 128)))[:, :, :width]


def _noise(seed: int, plane: int, count: int) -> npt.NDArray[np.uint8]:
    """Return one plane's noise: the sum of a die of 16 sides and one of 8, 0 to 22."""
    raw = np.random.PCG64([seed, 4, plane]).random_raw(-(-count // 8)).view(np.uint8)[:count]
    noise = raw >> np.uint8(4)
    noise += raw & np.uint8(7)
    return noise


def _organelles(cells: _Cells, seed: int) -> npt.NDArray[np.float64]:
    """Return (n, 6): middle and radii of an ellipsoid near some of the seeds, in real space."""
    rng = np.random.default_rng([seed, 3])
    chosen = cells.seeds[rng.random(len(cells.seeds)) < ORGANELLE]
    middle = chosen.copy()
    for _ in range(8):  # the warp is gentle, so this settles
        angle = middle @ cells.waves[:, 3:6].T + cells.waves[:, 6]
        middle = chosen - np.sin(angle) @ cells.waves[:, :3]
    return np.hstack([middle, rng.uniform(6, 14, middle.shape)])


def _paint(slab: npt.NDArray[np.uint8], start: int, blobs: npt.NDArray[np.float64]) -> None:
    """Darken the organelles that reach into a slab whose first plane is `start`: rim and folds."""
    low = np.ceil(blobs[:, :3] - blobs[:, 3:]).astype(np.int64)
    high = np.floor(blobs[:, :3] + blobs[:, 3:]).astype(np.int64) + 1
    origin = np.array([start, 0, 0])
    low, high = np.maximum(low, origin), np.minimum(high, origin + slab.shape)
    for blob in np.flatnonzero((low < high).all(1)):
        z, y, x = np.ix_(
            *(
                (np.arange(low[blob, axis], high[blob, axis]) - blobs[blob, axis])
                / blobs[blob, axis + 3]
                for axis in range(3)
            )
        )
        square = z * z + y * y + x * x
        folds = (np.sin(20 * (z + 0.5 * y)) > 0.3) * np.uint8(16)
        dark = np.where(square > 0.8, np.uint8(52), np.uint8(34) + folds) * (square < 1)
        ends = zip(low[blob] - origin, high[blob] - origin, strict=True)
        part = slab[tuple(slice(a, b) for a, b in ends)]
        part -= np.minimum(dark, part - np.uint8(4))  # two may overlap


def _padded(shape: tuple[int, int, int], start: int, stop: int) -> tuple[int, int, int]:
    """Return the shape of a slab with whole tiles in Y and X."""
    return stop - start, -(-shape[1] // TILE) * TILE, -(-shape[2] // TILE) * TILE


def _check(shape: tuple[int, int, int], thickness: int) -> None:
    if len(shape) != 3 or min(shape) < 1 or thickness < 1:
        raise InvalidError(
            f"a volume needs three sizes and a thickness above 0; got {shape} and {thickness}"
        )


def _slabs(shape: tuple[int, int, int], thickness: int) -> Iterator[tuple[int, int]]:
    for start in range(0, shape[0], thickness):
        yield start, min(start + thickness, shape[0])


def _rows(
    cells: _Cells, shape: tuple[int, int, int], start: int, stop: int
) -> Iterator[tuple[int, int, _Candidates, _Scratch]]:
    """Walk the planes ``start <= z < stop``: yield z, y in its tile, and squares ready to compare.

    One step covers every `TILE`-th line in Y, which is the shape the candidates have.
    """
    tiles_y, tiles_x = -(-shape[1] // TILE), -(-shape[2] // TILE)
    scratch = _Scratch(tiles_y, tiles_x * TILE)
    half = (TILE - 1) / 2
    for layer in range(start // TILE, -(-stop // TILE)):
        found = _candidates(cells, layer, tiles_y, tiles_x)
        for z in range(max(start, layer * TILE), min(stop, (layer + 1) * TILE)):
            np.multiply(found.along_z, np.float32(z - layer * TILE - half), out=scratch.square)
            scratch.square += found.middle
            scratch.square -= found.along_y * np.float32(half)
            for y in range(TILE):
                yield z, y, found, scratch
                scratch.square += found.along_y


def label_slabs(
    shape: tuple[int, int, int] = (512, 512, 1024), seed: int = 0, thickness: int = 64
) -> Iterator[npt.NDArray[np.uint64]]:
    """Make a segmentation, slab by slab.

    Parameters
    ----------
    shape
        Voxels in Z, Y and X.
    seed
        The same seed gives the same volume, whatever the thickness.
    thickness
        Planes per slab. The last slab may have fewer.

    Yields
    ------
    ndarray of uint64, (thickness, Y, X)
        The body at each voxel; never 0. Beyond the slab it yields, about 30 MB are in use.

    Raises
    ------
    InvalidError
        A size is not positive, or there are not three.
    """
    _check(shape, thickness)
    cells = _make_cells(shape, seed)
    for start, stop in _slabs(shape, thickness):
        slab = np.empty(_padded(shape, start, stop), np.uint64)
        for z, y, found, scratch in _rows(cells, shape, start, stop):
            np.add(_nearest(found, scratch), np.uint64(FIRST_LABEL), out=slab[z - start, y::TILE])
        yield np.ascontiguousarray(slab[:, : shape[1], : shape[2]])


def em_slabs(
    shape: tuple[int, int, int] = (512, 512, 1024), seed: int = 0, thickness: int = 64
) -> Iterator[npt.NDArray[np.uint8]]:
    """Make an image as of an electron microscope, slab by slab.

    Dark membranes stand between the bodies of `label_slabs` of the same shape and seed; within are
    cytoplasm of a tone per body, grain, organelles, and the noise of a sensor, which leaves lz4
    little to gain.

    Parameters
    ----------
    shape
        Voxels in Z, Y and X.
    seed
        The same seed gives the same volume, whatever the thickness.
    thickness
        Planes per slab. The last slab may have fewer.

    Yields
    ------
    ndarray of uint8, (thickness, Y, X)
        Beyond the slab it yields, about 40 MB are in use.

    Raises
    ------
    InvalidError
        A size is not positive, or there are not three.
    """
    _check(shape, thickness)
    cells = _make_cells(shape, seed)
    blobs = _organelles(cells, seed)
    texture = _texture(seed, shape[2])
    for start, stop in _slabs(shape, thickness):
        padded = np.empty(_padded(shape, start, stop), np.uint8)
        for z, y, found, scratch in _rows(cells, shape, start, stop):
            _shade(found, scratch, padded[z - start, y::TILE])
        slab = np.ascontiguousarray(padded[:, : shape[1], : shape[2]])
        slab += np.uint8(MEMBRANE)
        _paint(slab, start, blobs)
        for z in range(start, stop):
            plane = slab[z - start]
            for y in range(0, shape[1], texture.shape[1]):
                part = plane[y : y + texture.shape[1]]
                part += texture[z % len(texture), : len(part)]
            plane += _noise(seed, z, plane.size).reshape(plane.shape)
        yield slab
