"""Tiles: 2-D pictures of the planes of an array, at several scales, stored or made when asked for.

They are values of a keyvalue array by the names of `tilemaker.tile_key`; what they are made of and
their sizes are in its attribute ``tiles``. Everything here is ZYX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diced import pool
from diced.errors import InvalidError, NotFoundError
from diced.files import KeyValueArray
from diced.grid import MAX_COORDINATE, MIN_COORDINATE
from diced.tilemaker import (
    MAX_SIDE,
    MAX_VOXELS,
    QUALITY,
    ZERO,
    Maker,
    Plane,
    Scale,
    check_scale,
    check_scales,
    default_scales,
    encode_picture,
    pack_pixels,
    plane_of,
    read_plane,
    shrink,
    tile_box,
    tile_key,
    tile_range,
)

ATTRIBUTE = "tiles"
FORMATS = ("png", "jpg", "lz4")
OF_SOURCE = "source"  # an origin: the corner of what the source holds
# Tiles between two commits.
BATCH_BYTES = 32 * 2**20
BATCH_TILES = 1024


class TileArray(KeyValueArray):
    """Tiles at the version that the repo object is at.

    Made by ``repo.create_array(name, kind="imagetile", attrs={"tiles": {"source": "grayscale",
    "format": "png"}})``; the format is ``png``, ``jpg`` or ``lz4`` (pixels, packed). More of
    ``tiles``: ``size``, the sides of tiles (z, y, x) where scales are not set; and ``origin``, the
    voxel (z, y, x) at which tiles begin, or ``"source"`` for the corner of what the source holds,
    which then stays the origin from the first `generate` on.
    """

    # -- description -----------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return what the tiles are made of: source, format, quality, size, origin, levels."""
        found: dict[str, Any] = self._fields().get("attrs", {}).get(ATTRIBUTE, {})
        return found

    @property
    def format(self) -> str:
        """How tiles are stored: ``png``, ``jpg`` or ``lz4``."""
        return str(self.settings().get("format", "png"))

    @property
    def source(self) -> Any:
        """The array that tiles are made of, or None if they only come from outside.

        Raises
        ------
        NotFoundError, InvalidError
        """
        name = self.settings().get("source")
        if not name:
            return None
        array = self._repo.get_array(name)
        dtype = getattr(array, "dtype", None)
        gray = dtype is not None and dtype.kind in "bu" and dtype.itemsize <= 2
        if not gray or array.numdims != 3 or array.channels is not None:
            raise InvalidError(
                f"array {self.name!r}: tiles are made of 3-D arrays of uint8 or uint16; {name!r} is"
                " none"
            )
        return array

    def scales(self) -> list[Scale] | None:
        """Return the scales that were set, or None."""
        levels = self.settings().get("levels")
        return check_scales(levels) if levels else None

    def all_scales(self) -> list[Scale] | None:
        """Return the scales that were set, else those that suit the source, or None."""
        found = self.scales()
        if found is None:
            source = self.source
            if source is not None:
                found = default_scales(source, self.tile_size, self.origin(source))
        return found

    @property
    def tile_size(self) -> tuple[int, ...] | None:
        """Sides of a tile, ZYX, where scales are not set; None if that was not said either."""
        found = self.settings().get("size")
        return None if found is None else self._triple("size", found, 1, MAX_SIDE)

    def origin(self, source: Any) -> tuple[int, ...]:
        """Return the voxel of the source at which tiles and slices begin to count."""
        found = self.settings().get("origin")
        if found == OF_SOURCE:
            bounds = None if source is None else source.bounds
            return ZERO if bounds is None else tuple(each.start for each in bounds)
        if found is None:
            return ZERO
        return self._triple("origin", found, MIN_COORDINATE, MAX_COORDINATE)

    def _triple(self, name: str, found: Any, least: int, most: int) -> tuple[int, ...]:
        good = isinstance(found, list) and len(found) == 3
        if not good or not all(type(each) is int and least <= each <= most for each in found):
            raise InvalidError(
                f"array {self.name!r}: {name!r} is 3 integers from {least} to {most}; got"
                f" {found!r:.80}"
            )
        return tuple(found)

    def set_scales(
        self,
        levels: Sequence[tuple[Sequence[Any], Sequence[Any]]],
        low: Sequence[int] | None = None,
        high: Sequence[int] | None = None,
        origin: Sequence[int] | None = None,
    ) -> None:
        """Set resolution and tile size of each scale, the first and last tile of scale 0, and the
        voxel at which tiles begin; what is None stays.
        """
        scales = check_scales(levels)
        stored: dict[str, Any] = {"levels": [[each.resolution, each.size] for each in scales]}
        for name, value in (("min", low), ("max", high), ("origin", origin)):
            if value is not None:
                stored[name] = list(value)
        self.attrs.update({ATTRIBUTE: {**self.settings(), **stored}})

    # -- one tile --------------------------------------------------------------------------

    def stored_tile(self, plane: Plane, scale: int, place: Sequence[int]) -> bytes | None:
        """Return the bytes of a stored tile, or None."""
        found: bytes | None = self.get(tile_key(plane, scale, place))
        return found or None

    def store_tile(self, plane: Plane, scale: int, place: Sequence[int], data: Any) -> None:
        """Store the bytes of a tile, in the array's format; pixels in the format ``lz4``."""
        data = pack_pixels(data) if isinstance(data, np.ndarray) else data
        key = tile_key(plane, scale, place)
        self.put_many({key: data}, operation=f"tile {key}")

    def pixels(self, plane: Plane, scale: int, place: Sequence[int]) -> np.ndarray | None:
        """Return a tile's pixels made of the source; None if nothing was written there.

        Raises
        ------
        InvalidError
            There is no such scale, or it takes too much to make the tile now.
        """
        source, scales = self.source, self.all_scales()
        if source is None or scales is None:
            return None
        check_scale(scales, scale)
        lo, hi = tile_box(plane, scales, scale, place, self.origin(source))
        bounds = source.bounds
        if bounds is None:
            return None
        if any(
            max(a, each.start) >= min(b, each.stop)
            for a, b, each in zip(lo, hi, bounds, strict=True)
        ):
            return None
        # Only the pixels that are made of anything written: a tile may be far larger than that.
        pixel = [1, 1, 1]
        for axis in (plane.down, plane.across):
            pixel[axis] = scales[scale].times[axis]
        parts = list(zip(lo, hi, bounds, pixel, strict=True))
        low = [a + max(0, each.start - a) // n * n for a, _, each, n in parts]
        high = [b - max(0, b - each.stop) // n * n for _, b, each, n in parts]
        if math.prod(b - a for a, b in zip(low, high, strict=True)) > MAX_VOXELS:
            raise InvalidError(
                f"array {self.name!r}: a tile of scale {scale} is made of too many voxels to be"
                " made now; generate tiles first"
            )
        part = shrink(read_plane(source, plane, low, high), plane, scales, scale)[0]
        size = [scales[scale].size[axis] for axis in (plane.down, plane.across)]
        found = np.full(size, source.fill, source.dtype)
        top, left = ((low[axis] - lo[axis]) // pixel[axis] for axis in (plane.down, plane.across))
        found[top : top + part.shape[0], left : left + part.shape[1]] = part
        return found

    def encoder(self) -> Callable[[np.ndarray], bytes]:
        """Return a function that puts pixels into the array's format."""
        format, quality = self.format, int(self.settings().get("quality") or QUALITY)
        if format == "lz4":
            return pack_pixels
        return lambda pixels: encode_picture(pixels, format, quality)

    # -- all tiles -------------------------------------------------------------------------

    def generate(
        self,
        planes: Sequence[str] = ("xy", "xz", "yz"),
        *,
        levels: Sequence[tuple[Sequence[Any], Sequence[Any]]] | None = None,
        ranges: Sequence[tuple[int | None, int | None] | None] = (None, None, None),
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Make the tiles of all scales of what the source holds, and store them.

        Memory is bounded; there is a commit for every batch of tiles, so that it may be stopped,
        and repeated.

        Parameters
        ----------
        planes : sequence of str
        levels : sequence of (resolution, tile size), optional
            From scale 0, each as (z, y, x); by default twice as coarse each, of tiles as large as
            was said at creation, else 512.
        ranges : three of (first, last) or None
            Per axis, ZYX: only slices of the plane through that axis from the first to the last.
        progress : callable, optional
            Called with the number of tiles stored so far.

        Returns
        -------
        int
            Tiles stored.

        Raises
        ------
        InvalidError, NotFoundError, LockedError
        """
        self._repo._check_writable(self._spec)
        wanted = list(dict.fromkeys(plane_of(each) for each in planes))
        source = self.source
        if source is None:
            raise InvalidError(f"array {self.name!r} has no source to make tiles of")
        bounds = source.bounds
        if bounds is None:
            raise InvalidError(f"array {self.name!r}: nothing was written to {source.name!r}")
        # Tiles that are stored never move: a corner that is the origin stays it.
        origin = self.origin(source)
        if levels is None:
            scales = default_scales(source, self.tile_size, origin)
        else:
            scales = check_scales(levels)
        frozen = self._steady(source)
        corners = tile_range(bounds, scales[0].size, origin)
        self.set_scales([(each.resolution, each.size) for each in scales], *corners, origin)
        batch: dict[str, bytes] = {}
        held = count = 0
        threads = self._repo.store.threads
        todo = (
            each
            for plane in wanted
            for each in Maker(frozen, plane, scales, bounds, ranges[plane.through], origin).tiles()
        )
        encode = self.encoder()
        for key, data in pool.map_ordered(lambda each: (each[0], encode(each[1])), todo, threads):
            batch[key] = data
            held += len(data)
            if held >= BATCH_BYTES or len(batch) >= BATCH_TILES:
                self.put_many(batch, operation="generate tiles")
                count += len(batch)
                batch, held = {}, 0
                if progress is not None:
                    progress(count)
        if batch:
            self.put_many(batch, operation="generate tiles")
        return count + len(batch)

    def _steady(self, source: Any) -> Any:
        """Return what stays as the source is now."""
        return source.snapshot()


def array_of(repo: Any, name: str) -> TileArray:
    """Return a repo's tiles by name.

    Raises
    ------
    NotFoundError
    """
    array = repo.get_array(name)
    if not isinstance(array, TileArray):
        raise NotFoundError(f"array {name!r} holds no tiles; it is of kind {array.kind!r}")
    return array
