"""The data type ``imagetile``: tiles of planes at several scales.

In 2013 it was called ``quadtree``, in 2014 ``multiscale2d``. Tiles of data created by these names
begin at the corner of what their source holds, as it was documented then.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diced.errors import CorruptError, InvalidError
from diced.repo import DicedRepo
from diced.server import imaging, keyvalue
from diced.server.answer import Answer, Refused
from diced.server.call import Call, whole
from diced.server.datatype import ATTRS, DVID_TYPES, Command, DataType, Settings
from diced.server.routes import Route
from diced.server.wire import check_bytes, flip, numbers, point, size
from diced.tilemaker import (
    MAX_SIDE,
    QUALITY,
    Plane,
    Scale,
    check_scale,
    encode_picture,
    pack_pixels,
    plane_of,
    read_plane,
    tile_key,
    unpack_pixels,
)
from diced.tiles import ATTRIBUTE, FORMATS, OF_SOURCE, TileArray

if TYPE_CHECKING:
    from diced.server.site import Site

ENCODINGS = {"lz4": 0, "png": 1, "jpg": 2}  # as DVID numbers them
TYPES = {"png": "image/png", "lz4": "image/png", "jpg": "image/jpeg"}
MAX_TILE = 64 * 2**20  # bytes of a posted tile
MAX_STITCHED = 2**16  # tiles that are looked for to make a picture
OLD_NAMES = ("multiscale2d", "quadtree")
NOT_SET = "Tile metadata has not been POSTed yet.  GET requests require metadata to be POST."


class ImageTile(DataType):
    """Tiles of planes at several scales."""

    name = "imagetile"
    url = DVID_TYPES + "imagetile"
    kind = "imagetile"
    text = """2-D tiles of planes xy, xz and yz at several scales, stored, or made of an array of
voxels when they are asked for

Settings at creation, all optional:

    Format       png (default), jpg, or lz4: pixels, sent as PNG
    Source       name of the data that tiles are made of, of 8 or 16 bits
    Quality      of jpg, 1 to 100
    TileSize     512: sides of the tiles that "generate" makes, one number or x,y,z
    Placeholder  true: a tile that there is none of is a picture that says so

A tile is named by its plane (xy, xz, yz or 0_1, 0_2, 1_2), its scale from 0 on, and its place
x_y_z: on the axes of the plane the number of the tile, through it that of the slice, at all scales.
Tiles begin at coordinate 0, and there are tiles on either side of it. Data created as multiscale2d
or quadtree has tiles and slices that begin at the corner of what the source holds: there 0_0_0 of
xy is the upper left of the first slice. The first "generate" fixes that corner. Stored tiles come
first; what is not stored is made of the source, if there is one."""

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET", "metadata", _metadata,
                "Returns first and last tile, resolution and tile size of each scale, as JSON.",
            ),
            Route(
                "POST", "metadata", _set_metadata, "Sets what GET metadata returns.",
                body='JSON: {"MinTileCoord": [x,y,z], "MaxTileCoord": [x,y,z], "Levels": {"0":'
                ' {"Resolution": [x,y,z], "TileSize": [x,y,z]}, ...}}',
            ),
            Route(
                "GET", "tile/{plane}/{scale}/{place}[/{format}]", _tile,
                "Returns a tile as PNG or JPEG; the format is that of a blank one.",
                query={"noblanks": "true: 404 where there is no tile, not a blank one"},
            ),
            Route(
                "POST", "tile/{plane}/{scale}/{place}", _post_tile, "Stores a tile as it is sent.",
                body="a picture in the format of the data", limit=MAX_TILE,
            ),
            Route(
                "GET", "tilekey/{plane}/{scale}/{place}", _key,
                "Returns the key of a tile in the store as hexadecimal JSON text.", light=True,
            ),
            *(
                Route(
                    "GET", f"{word}/{{plane}}/{{size}}/{{offset}}[/{{format}}]", run, text,
                    throttled=True,
                )
                for word, run, text in (
                    ("raw", _raw, "Returns a picture of any size out of tiles of scale 0."),
                    ("isotropic", _isotropic,
                     "The same with pixels as large as the finer side's voxels."),
                )
            ),
            # Tiles by their keys, as diced's own client has them.
            *(route for route in keyvalue.TYPE.routes() if route.pattern.startswith("key")),
        ]  # fmt: skip

    @property
    def commands(self) -> dict[str, Command]:
        return {"generate": generate}

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        format = settings.get("format", "png").lower() or "png"
        format = "jpg" if format == "jpeg" else format
        if format not in FORMATS:
            raise InvalidError(
                f"Unknown encoding specified: {format!r:.60} (should be 'lz4', 'png', or 'jpg')"
            )
        packing = "lz4" if format == "lz4" else "none"
        if settings.get("compression", packing).lower() != packing:
            raise InvalidError(
                f"compression {settings.get('compression')!r:.60} conflicts with format {format!r};"
                " leave it out"
            )
        own: dict[str, Any] = {
            "format": format,
            "source": settings.get("source"),
            "placeholder": settings.flag("placeholder", False),
        }
        if settings.get("quality"):
            own["quality"] = whole(settings.get("quality"), "quality")
            if not 1 <= own["quality"] <= 100:
                raise InvalidError(f"quality is 1 to 100; got {own['quality']}")
        if settings.get("TileSize"):
            own["size"] = list(_tile_size(settings))
        if settings.get("typename") in OLD_NAMES:
            own["origin"] = OF_SOURCE
        attrs = {ATTRS: self.attributes(settings), ATTRIBUTE: own}
        return repo.create_array(name, kind=self.kind, versioned=versioned, attrs=attrs)

    def extended(self, array: Any) -> dict[str, Any]:
        found = array.settings()
        return {
            "Source": found.get("source", ""),
            **_coordinates(found),
            "Levels": _levels_json(array.scales() or []),
            "Placeholder": bool(found.get("placeholder")),
            "Encoding": ENCODINGS[array.format],
            "Quality": found.get("quality", QUALITY if array.format == "jpg" else 0),
        }

    def compression(self, array: Any) -> str:
        return "LZ4 compression, level -1" if array.format == "lz4" else "No compression, level -1"


def _tile_size(settings: Settings) -> tuple[int, ...]:
    found = settings.zyx("TileSize") or ()
    found = found * 3 if len(found) == 1 else found
    if len(found) != 3 or not all(1 <= each <= MAX_SIDE for each in found):
        raise InvalidError(
            f"TileSize is one number or x,y,z, each from 1 to {MAX_SIDE};"
            f" got {settings.get('TileSize')!r:.60}"
        )
    return found


TYPE = ImageTile()


# -- metadata ------------------------------------------------------------------------------


def _coordinates(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "MinTileCoord": list(flip(settings.get("min", (0, 0, 0)))),
        "MaxTileCoord": list(flip(settings.get("max", (0, 0, 0)))),
    }


def _levels_json(scales: list[Scale]) -> dict[str, Any]:
    return {
        str(number): {"Resolution": list(flip(each.resolution)), "TileSize": list(flip(each.size))}
        for number, each in enumerate(scales)
    }


def _metadata(call: Call) -> Any:
    array: TileArray = call.array
    scales = array.scales()
    if scales is None:
        raise InvalidError(f"tile metadata for imagetile {array.name!r} was not set")
    return {**_coordinates(array.settings()), "Levels": _levels_json(scales)}


def parse_levels(given: Any) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Return levels of JSON, X first, as (resolution, tile size) ZYX.

    Raises
    ------
    InvalidError
    """
    if not isinstance(given, dict) or not given:
        raise InvalidError('levels are a JSON object: {"0": {"Resolution": .., "TileSize": ..}}')
    if set(given) != {str(number) for number in range(len(given))}:
        raise InvalidError(
            f"tile levels must be consecutive integers from 0; got {', '.join(sorted(given))[:80]}"
        )
    levels = []
    for number in range(len(given)):
        level = given[str(number)]
        fields = {k.lower(): v for k, v in level.items()} if isinstance(level, dict) else {}
        pair: list[Any] = [fields.get("resolution"), fields.get("tilesize")]
        if not all(isinstance(each, list) and len(each) == 3 for each in pair):
            raise InvalidError(f"level {number} has Resolution and TileSize, 3 numbers each")
        for each in pair:
            if any(isinstance(value, bool) or not isinstance(value, int | float) for value in each):
                raise InvalidError(f"level {number}: {each!r:.80} are not numbers")
        levels.append((flip(pair[0]), flip(pair[1])))
    return levels


def _set_metadata(call: Call) -> None:
    given = {key.lower(): value for key, value in call.json().items()}
    corners = []
    for name in ("MinTileCoord", "MaxTileCoord"):
        each = given.get(name.lower(), [0, 0, 0])
        if not isinstance(each, list) or len(each) != 3 or any(type(v) is not int for v in each):
            raise InvalidError(f"{name} is 3 integers; got {each!r:.80}")
        corners.append(point("_".join(str(v) for v in each), 3, name))
    array: TileArray = call.array
    array.set_scales(parse_levels(given.get("levels")), *corners)


# -- one tile ------------------------------------------------------------------------------


def _named(call: Call) -> tuple[Plane, int, tuple[int, ...]]:
    scale = whole(call.args["scale"], "scale")
    if not 0 <= scale < 256:
        raise InvalidError(f"a scale is 0 to 255; got {scale}")
    return plane_of(call.args["plane"]), scale, point(call.args["place"], 3, "tile coordinate")


def _scales(array: TileArray) -> list[Scale]:
    scales = array.all_scales()
    if scales is None:
        raise InvalidError(NOT_SET)
    return scales


def _tile(call: Call) -> Answer:
    array: TileArray = call.array
    plane, scale, place = _named(call)
    scales = _scales(array)
    form = imaging.parse_format(call.args.get("format") or "png")
    data = array.stored_tile(plane, scale, place)
    if data is not None:
        if array.format == "lz4":
            data = encode_picture(unpack_pixels(data), "png")
        return Answer(data, TYPES[array.format])
    noblanks = call.query.get("noblanks") == "true"
    if not noblanks:
        check_scale(scales, scale)
    pixels = array.pixels(plane, scale, place) if scale < len(scales) else None
    if pixels is not None:
        format = "jpg" if array.format == "jpg" else "png"
        quality = int(array.settings().get("quality") or QUALITY)
        return Answer(encode_picture(pixels, format, quality), TYPES[format])
    if noblanks:
        raise Refused(404, f"no tile {tile_key(plane, scale, place)}\n")
    shape = [scales[scale].size[axis] for axis in (plane.down, plane.across)]
    blank = np.zeros(shape, np.uint8)
    if array.settings().get("placeholder"):
        blank = _placeholder(blank, f"{plane.name} tile {flip(place)} @ scale {scale}")
    return imaging.answer(blank, form)


def _placeholder(blank: np.ndarray, text: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    picture = Image.fromarray(blank)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, blank.shape[1] - 1, blank.shape[0] - 1), outline=128)
    draw.text((8, 8), text, fill=200)
    return np.asarray(picture)


def _post_tile(call: Call) -> None:
    array: TileArray = call.array
    plane, scale, place = _named(call)
    if not len(call.body):
        raise InvalidError("a tile is not empty")
    data: Any = call.body
    if array.format == "lz4":
        data = _to_pixels(array, plane, scale, bytes(call.body))
    array.store_tile(plane, scale, place, data)


def _to_pixels(array: TileArray, plane: Plane, scale: int, body: bytes) -> bytes:
    """Return a tile of the format lz4: of a picture, of bare pixels, or as it is."""
    scales = _scales(array)
    check_scale(scales, scale)
    rows, columns = (scales[scale].size[axis] for axis in (plane.down, plane.across))
    if imaging.looks_encoded(body):
        pixels = imaging.decode(body, "", rows, columns)
        return pack_pixels(pixels if pixels.ndim == 2 else pixels[..., 0])
    if len(body) == rows * columns:
        return pack_pixels(np.frombuffer(body, np.uint8).reshape(rows, columns))
    try:
        unpack_pixels(body)
    except CorruptError:
        raise InvalidError(
            f"a tile of the format lz4 is posted as PNG, as JPEG, or as {rows * columns} pixels"
        ) from None
    return body


def _key(call: Call) -> Any:
    plane, scale, place = _named(call)
    spec = call.array._spec
    node = call.repo._node_id if spec.versioned else "0" * 16
    return {"key": f"{spec.id}{tile_key(plane, scale, place).encode().hex()}{node}"}


# -- pictures out of tiles -----------------------------------------------------------------


def _area(call: Call) -> tuple[Plane, tuple[int, int], tuple[int, ...]]:
    plane = plane_of(call.args["plane"])
    columns, rows = flip(size(call.args["size"], 2))
    return plane, (rows, columns), point(call.args["offset"], 3)


def _stitch(array: TileArray, plane: Plane, lo: tuple[int, ...], shape: tuple[int, int]) -> Any:
    """Return pixels (rows, columns) of scale 0 out of stored tiles, and else of the source."""
    source = array.source
    if source is None:
        raise InvalidError(f"imagetile {array.name!r} has no source")
    sides = [_scales(array)[0].size[axis] for axis in (plane.down, plane.across)]
    origin = array.origin(source)
    hi = list(lo)
    hi[plane.through] += 1
    hi[plane.down] += shape[0]
    hi[plane.across] += shape[1]
    if max(hi) > 2**31:
        raise InvalidError("the picture ends outside 32-bit coordinates")
    out = np.array(read_plane(source, plane, lo, hi)[0])
    starts = [lo[axis] - origin[axis] for axis in (plane.down, plane.across)]
    first = [a // n for a, n in zip(starts, sides, strict=True)]
    last = [(a + n - 1) // side for a, n, side in zip(starts, shape, sides, strict=True)]
    count = math.prod(b - a + 1 for a, b in zip(first, last, strict=True))
    if count > MAX_STITCHED:
        raise InvalidError(
            f"the picture is made of {count} tiles of {sides[1]} x {sides[0]}; at most"
            f" {MAX_STITCHED}"
        )
    stored = _stored_tiles(array, plane, lo[plane.through] - origin[plane.through], first, last)
    for (row, column), data in stored:
        try:
            if array.format == "lz4":
                tile = unpack_pixels(data)
            else:
                tile = imaging.decode(data, "", sides[0], sides[1])
        except (InvalidError, CorruptError):
            continue  # what was posted is no picture of this size
        tile = tile if tile.ndim == 2 else tile[..., 0]
        if tile.shape != tuple(sides):
            continue
        top, left = row * sides[0] - starts[0], column * sides[1] - starts[1]
        rows = slice(max(0, top), min(shape[0], top + sides[0]))
        columns = slice(max(0, left), min(shape[1], left + sides[1]))
        part = tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        out[rows, columns] = part.astype(out.dtype)
    return out


def _stored_tiles(
    array: TileArray, plane: Plane, through: int, first: list[int], last: list[int]
) -> Any:
    places = {}
    for row in range(first[0], last[0] + 1):
        for column in range(first[1], last[1] + 1):
            place = [0, 0, 0]
            place[plane.down], place[plane.across], place[plane.through] = row, column, through
            places[tile_key(plane, 0, place)] = row, column
    found = array.get_many(list(places))
    return ((places[name], data) for name, data in found if data)


def _raw(call: Call) -> Answer:
    array: TileArray = call.array
    plane, shape, lo = _area(call)
    check_bytes(shape, 4, 4 * imaging.MAX_PIXELS)
    form = imaging.parse_format(call.args.get("format") or "png")
    return imaging.answer(_stitch(array, plane, lo, shape), form)


def _isotropic(call: Call) -> Answer:
    array: TileArray = call.array
    plane, shape, lo = _area(call)
    check_bytes(shape, 4, 4 * imaging.MAX_PIXELS)
    form = imaging.parse_format(call.args.get("format") or "png")
    source = array.source
    if source is None:
        raise InvalidError(f"imagetile {array.name!r} has no source")
    lengths = [source.voxel_size[axis] for axis in (plane.down, plane.across)]
    steps = [min(lengths) / each for each in lengths]
    rows, columns = (math.ceil(n * step) for n, step in zip(shape, steps, strict=True))
    pixels = _stitch(array, plane, lo, (rows, columns))
    for axis in (0, 1):
        if steps[axis] != 1:
            pixels = _stretch(pixels, axis, shape[axis], steps[axis])
    return imaging.answer(pixels, form)


def _stretch(pixels: np.ndarray, axis: int, count: int, step: float) -> np.ndarray:
    """Return pixels with an axis magnified, interpolated linearly."""
    place = np.clip((np.arange(count) + 0.5) * step - 0.5, 0, pixels.shape[axis] - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, pixels.shape[axis] - 1)
    weight = (place - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
    a = pixels.take(low, axis).astype(np.float32)
    b = pixels.take(high, axis).astype(np.float32)
    return np.asarray(np.rint(a + (b - a) * weight), pixels.dtype)


# -- the command ---------------------------------------------------------------------------


def generate(site: Site, array: Any, words: list[str], settings: Settings, stdin: bytes) -> str:
    """generate [planes="xy;yz" xrange=a,b yrange=a,b zrange=a,b] [file]: makes all tiles of the
    source and stores them; resolution and tile size of each scale are JSON of stdin or of a file
    of the server's machine (also filename=), by default as TileSize says, twice as coarse each.
    Ranges are coordinates of the source.
    """
    name = words[0] if words else settings.get("filename")
    text = stdin
    if name and not stdin:
        try:
            text = Path(name).read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidError(f"the file {name!r:.200} cannot be read: {error}") from None
    levels = None
    if text.strip():
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"the tile specification is not JSON: {error}") from None
        if isinstance(given, dict) and "Levels" in given:
            given = given["Levels"]
        levels = parse_levels(given)
    planes = [each for each in settings.get("planes").split(";") if each] or ["xy", "xz", "yz"]
    ranges = [_range(settings, axis) for axis in "zyx"]
    count = array.generate([plane_of(each).name for each in planes], levels=levels, ranges=ranges)
    return f"Tiled {array.settings()['source']!r}: stored {count} tiles in {array.name!r}\n"


def _range(settings: Settings, axis: str) -> tuple[int, int] | None:
    text = settings.get(f"{axis}range")
    if not text:
        return None
    first, last = numbers(text, 2, f"{axis}range")
    return first, last
