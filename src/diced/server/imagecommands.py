"""Commands of the old command line for arrays of voxels: ``load``, ``put``, ``roi``."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import numpy as np

from diced.array import DicedArray
from diced.errors import InvalidError
from diced.ingest.importer import ingest
from diced.ingest.stack import Source, open_source
from diced.server import voxels
from diced.server.datatype import Command, Settings
from diced.server.site import Site
from diced.server.wire import point
from diced.walk import plural

# Bytes of planes that are written by one commit.
GROUP_BYTES = 64 * 2**20


def load(site: Site, array: Any, words: list[str], settings: Settings, stdin: bytes) -> str:
    """load <x,y,z> <files...>: writes a stack of XY images, files of the server's machine in
    natural order, the first at z; one commit per layer of blocks. It may be repeated: what is
    stored is not written again.
    """
    # As of 2013: "load local xy <x,y,z> ...", then "load xy <x,y,z> ...".
    words = words[1:] if words[:1] == ["local"] else words
    if words and words[0].lower() in ("xy", "0,1", "0_1"):
        words = words[1:]
    offset, files = _given(array, words, "load <x,y,z> <files...>")
    with contextlib.closing(open_source(files)) as source:
        result = ingest(array._repo, array.name, _suited(source, array), offset)
    done = f"; {plural(result.skipped, 'slabs')} were there" if result.skipped else ""
    size = " x ".join(str(b - a) for a, b in zip(result.start, result.stop, strict=True))
    return f"loaded {size} voxels (ZYX) into {array.name!r} at {words[0]}{done}\n"


def put(site: Site, array: Any, words: list[str], settings: Settings, stdin: bytes) -> str:
    """put local <plane> <x,y,z> <files...>: writes images, files of the server's machine in the
    order given, as planes xy, xz or yz that follow each other.
    """
    usage = "put local <plane> <x,y,z> <files...>"
    if len(words) < 4 or words[0] != "local":
        raise InvalidError(f"usage: {usage}")
    axes = voxels.axes_of(words[1])
    offset, files = _given(array, words[2:], usage)
    if len(axes) != 2 or array.numdims != 3 or max(axes) > 2:
        raise InvalidError(f"a plane is xy, xz or yz, of 3-D data; got {words[1]!r:.60}")
    # Axes of the array along which files, rows and columns run.
    rows, columns = 2 - axes[1], 2 - axes[0]
    through = 3 - rows - columns
    order = (through, rows, columns)
    with contextlib.closing(open_source(files, keep_order=True)) as opened:
        source = _suited(opened, array)
        count = _put(array, source, offset, order)
    return f"put {plural(count, 'planes')} into {array.name!r} at {words[2]}\n"


def _put(array: DicedArray, source: Source, offset: tuple[int, ...], order: Any) -> int:
    if len(source.shape) != 3 or source.channels != array.channels:
        raise InvalidError(
            f"the files hold {len(source.shape)} dimensions, {source.channels or 'no'} channels;"
            f" data {array.name!r} takes planes of {array.channels or 'no'} channels"
        )
    count, *sides = source.shape
    plane = math.prod(sides) * source.dtype.itemsize * (source.channels or 1)
    first, block = offset[order[0]], array.block_shape[order[0]]
    thick = max(1, GROUP_BYTES // (plane * block)) * block
    cuts = [0]
    while cuts[-1] < count:
        here = first + cuts[-1]
        cuts.append(min(count, cuts[-1] + thick - here % thick))
    boxes = [((a, 0, 0), (b, *sides)) for a, b in itertools.pairwise(cuts)]
    back = [order.index(axis) for axis in range(3)]
    with contextlib.closing(source.read(boxes, array._repo.store.threads)) as parts:
        for (low, high), part in zip(boxes, parts, strict=True):
            place = [slice(0, 0)] * 3
            for number, axis in enumerate(order):
                start = offset[axis] + low[number]
                place[axis] = slice(start, start + high[number] - low[number])
            array[tuple(place)] = part.transpose(*back, *range(3, part.ndim))
    return count


def roi(site: Site, array: Any, words: list[str], settings: Settings, stdin: bytes) -> str:
    """roi <new roi> <values>: makes an ROI of the blocks that hold anything but background, which
    is the values, joined by ','.
    """
    if len(words) != 2:
        raise InvalidError("usage: roi <name of the new ROI> <background values, joined by ','>")
    if not isinstance(array, DicedArray) or array.numdims != 3 or array.channels is not None:
        raise InvalidError(f"{array.name!r} is no 3-D data of one value per voxel")
    try:
        given = [float(each) for each in words[1].split(",")]
        with np.errstate(invalid="raise", over="raise"):
            values = np.array(given).astype(array.dtype)
    except (ValueError, FloatingPointError):
        raise InvalidError(f"background values are numbers; got {words[1]!r:.80}") from None
    frozen = array.snapshot()
    found = []
    for coord in frozen.blocks():
        box = tuple(
            slice(c * n, (c + 1) * n) for c, n in zip(coord, frozen.block_shape, strict=True)
        )
        if not np.isin(frozen.read(box), values).all():
            found.append(coord)
    spans = _spans(np.array(sorted(found), np.int64).reshape(-1, 3))
    made = array._repo.create_array(words[0], kind="roi", block_shape=array.block_shape)
    made.set_spans(spans)
    return f"made ROI {words[0]!r} of {plural(len(found), 'blocks')}\n"


def _spans(coords: np.ndarray) -> np.ndarray:
    """Return sorted block coordinates as spans along X: z, y, first and last x."""
    if not len(coords):
        return np.empty((0, 4), np.int64)
    breaks = np.any(coords[1:] - coords[:-1] != (0, 0, 1), axis=1)
    first = coords[np.concatenate([[True], breaks])]
    last = coords[np.concatenate([breaks, [True]])]
    return np.column_stack([first, last[:, 2]])


def _given(array: Any, words: list[str], usage: str) -> tuple[tuple[int, ...], list[str]]:
    """Return the offset, ZYX, and the files that words say."""
    if len(words) < 2:
        raise InvalidError(f"usage: {usage}")
    if not isinstance(array, DicedArray):
        raise InvalidError(f"{array.name!r} holds no voxels")
    return point(words[0], array.numdims), words[1:]


class _Opaque:
    """RGB images as red, green, blue and alpha."""

    def __init__(self, source: Source):
        self.shape = source.shape
        self.channels: int | None = 4
        self.dtype = source.dtype
        self.identity = source.identity
        self.close = source.close
        self._source = source

    def read(self, boxes: Any, threads: int) -> Any:
        """Yield the voxels of each box."""
        with contextlib.closing(self._source.read(boxes, threads)) as parts:
            for part in parts:
                alpha = np.full((*part.shape[:-1], 1), np.iinfo(self.dtype).max, self.dtype)
                yield np.concatenate([part, alpha], axis=-1)


def _suited(source: Source, array: DicedArray) -> Source:
    """Return a source with the channels that an array has, where that is plain."""
    if source.channels == 3 and array.channels == 4 and source.dtype.kind == "u":
        return _Opaque(source)
    return source


COMMANDS: dict[str, Command] = {"load": load, "put": put, "roi": roi}
