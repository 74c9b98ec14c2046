"""The data type ``labelblk``: volumes of 64-bit labels, without an index of their bodies."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from diced import grid, pool
from diced.errors import BadIndexError, InvalidError
from diced.repo import DicedRepo
from diced.server import imagecommands, imaging, labelwire, voxels
from diced.server.answer import Answer
from diced.server.call import Call, whole
from diced.server.datatype import DVID_TYPES, Command, Settings, edit_stored
from diced.server.fields import NOTE_BYTES
from diced.server.images import BlockType
from diced.server.routes import Route
from diced.server.wire import check_bytes, point

# Points of one request, as JSON.
POINTS_BYTES = 4 * 2**20
MAX_SYNCS = 1000
COLOUR_BYTES = 2**22  # of labels that are given colours at a time
# There is neither Snappy nor gzip of label blocks; what is nearest.
CODECS = {
    "": "label+lz4", "lz4": "label+lz4", "snappy": "label+lz4", "none": "label",
    "gzip": "label+zstd", "zstd": "label+zstd",
}  # fmt: skip


class LabelType(BlockType):
    """A data type of label volumes."""

    name = "labelblk"
    url = DVID_TYPES + "labelblk"
    kind = "label"
    text = """volumes of 64-bit labels, in blocks

Settings at creation, all optional, X first:

    BlockSize    64,64,64; each a multiple of 8
    VoxelSize    8.0,8.0,8.0
    VoxelUnits   nanometers,nanometers,nanometers
    MinPoint, MaxPoint   extents, before anything is written
    Background   label of voxels that were never written: 0
    Compression  lz4, none, zstd[:1-22]; snappy is stored as lz4, gzip as zstd
    Tags         name=value,name=value

Raw volumes are sent and taken with compression= lz4 (an LZ4 block without its length), gzip,
google (neuroglancer's compressed_segmentation) or googlegzip (that, sent as gzip)."""

    def packing(self, call: Call) -> voxels.Packing | None:
        return labelwire.packing(call)

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        return repo.create_array(
            name,
            islabel3D=True,
            versioned=versioned,
            codec=codec_of(settings.get("Compression")),
            fill=_background(settings.get("Background")),
            attrs=self.attrs(repo, settings, versioned, 3),
            **self.fields(settings, 3),
        )

    @property
    def commands(self) -> dict[str, Command]:
        return {name: imagecommands.COMMANDS[name] for name in ("load", "put")}

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            Route(
                "GET", "label/{coord}", get_label, 'Returns the label of a voxel, {"Label": 23}.',
                query={"scale": "level of detail, 0 is full", "supervoxels": "accepted"},
            ),
            Route(
                "GET", "labels", get_labels, "Returns the labels of voxels as a JSON list.",
                query={"hash": "MD5 of the body, in hexadecimal: refused if it is not that",
                       "scale": "level of detail, 0 is full", "supervoxels": "accepted"},
                body="JSON: [[x,y,z], ...]", limit=POINTS_BYTES,
            ),
            Route(
                "GET", "pseudocolor/{dims}/{size}/{offset}[/{format}]", get_pseudocolor,
                "Returns a plane as a picture in which each label has a colour; 0 is black.",
                query=voxels.QUERY, throttled=True,
            ),
            Route(
                "POST", "sync", post_sync, "Adds data that this is synced with, or replaces it.",
                query={"replace": "true: the old ones go"}, body='JSON: {"sync": "name,name"}',
                limit=NOTE_BYTES,
            ),
        ]  # fmt: skip


def codec_of(text: str) -> str:
    """Return the codec that the setting ``Compression`` means."""
    name, colon, level = text.lower().strip().partition(":")
    if name not in CODECS or (colon and name not in ("zstd", "gzip")):
        raise InvalidError(
            f"compression of labels is lz4, none or zstd, not with loss; got {text!r:.60}"
        )
    # Levels of gzip are no levels of Zstandard.
    return f"{CODECS[name]}:{level}" if colon and name == "zstd" else CODECS[name]


def _background(text: str) -> int:
    value = whole(text, "setting 'Background'") if text else 0
    if not 0 <= value < 2**64:
        raise InvalidError(f"setting 'Background' is a label of 64 bits; got {value}")
    return value


# -- labels of voxels ----------------------------------------------------------------------


def get_label(call: Call) -> dict[str, int]:
    """Answer ``label/<x_y_z>``."""
    place = point(call.args["coord"], 3, "coordinate")
    return {"Label": int(voxels.reader(call).read(place))}


def get_labels(call: Call) -> list[int]:
    """Answer ``labels``, with a JSON list of points as body."""
    wanted = call.query.get("hash")
    if wanted:
        found = hashlib.md5(call.body, usedforsecurity=False).hexdigest()
        if found != wanted.lower():
            raise InvalidError(f"content hash incorrect: the body's is {found}, got {wanted!r:.60}")
    places = as_points(call.json(list))
    return labels_at(call, places).tolist() if len(places) else []


def as_points(values: list[Any]) -> np.ndarray:
    """Return a JSON list of points ``[x, y, z]`` as an int64 array of shape (n, 3), ZYX.

    Raises
    ------
    InvalidError, BadIndexError
    """
    for each in values:
        if not isinstance(each, list) or len(each) != 3 or {type(n) for n in each} != {int}:
            raise InvalidError(f"points are [x, y, z], whole numbers; got {each!r:.80}")
        if not all(grid.MIN_COORDINATE <= n <= grid.MAX_COORDINATE for n in each):
            raise BadIndexError(f"point {each!r:.80} is outside 32-bit coordinates")
    return np.array(values, np.int64).reshape(-1, 3)[:, ::-1]


def labels_at(call: Call, places: np.ndarray) -> np.ndarray:
    """Return the labels of voxels, all of one commit; what was never written is background.

    Parameters
    ----------
    call : Call
    places : numpy.ndarray of int64, shape (n, 3)
        ZYX.

    Returns
    -------
    numpy.ndarray of uint64, shape (n,)
    """
    source = voxels.reader(call)
    out = np.empty(len(places), np.uint64)
    # By block: of one that is met in several places only what lies between them is decoded.
    _, block = np.unique(places // source.block_shape, axis=0, return_inverse=True)
    order = np.argsort(block.reshape(-1), kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(block.reshape(-1)[order])) + 1)

    def read(group: np.ndarray) -> None:
        inside = places[group]
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        box = source.read(tuple(slice(*each) for each in zip(low.tolist(), high.tolist(),
                                                             strict=True)))  # fmt: skip
        out[group] = box[tuple((inside - low).T)]

    at = call.site.store
    pool.for_each(read, groups, pool.LIMIT if at.engine.remote else at.threads)
    return out


def get_pseudocolor(call: Call) -> Answer:
    """Answer ``pseudocolor/<dims>/<size>/<offset>[/<format>]``."""
    where = voxels.region_of(call)
    if not where.flat:
        raise InvalidError("pseudocolor is of planes: xy, xz or yz")
    check_bytes(where.shape, 8, voxels.IMAGE_BYTES)
    imaging.check_pixels(*where.sizes[::-1])
    form = imaging.parse_format(call.args.get("format", "") or "png")
    shown = np.empty((math.prod(where.sizes), 3), np.uint8)
    at = 0
    for labels in voxels.read_slabs(call, where, COLOUR_BYTES):
        shown[at : at + labels.size] = colours(labels.reshape(-1))
        at += labels.size
    return imaging.answer(shown.reshape(*where.sizes[::-1], 3), form)


def colours(labels: np.ndarray) -> np.ndarray:
    """Return a colour for each label: uint8, red, green and blue as last axis; 0 is black."""
    with np.errstate(over="ignore"):
        mixed = labels * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    shown = np.empty((*labels.shape, 3), np.uint8)
    for channel in range(3):
        shown[..., channel] = (mixed >> np.uint64(40 + 8 * channel)) & np.uint64(255)
    # No label is as dark as the background.
    shown[..., 0] |= np.where(labels == 0, 0, 64).astype(np.uint8)
    return shown


# -- syncs ---------------------------------------------------------------------------------


def post_sync(call: Call) -> None:
    """Answer ``POST sync``: what is named is kept, and shown as ``Syncs``."""
    text = call.json().get("sync")
    if not isinstance(text, str):
        raise InvalidError(f"'sync' is text: names joined by ','; got {text!r:.80}")
    names = [each.strip() for each in text.split(",") if each.strip()]
    for name in names:
        call.site.find_array(call.repo, name)
    replace = call.flag("replace")

    def change(own: dict[str, Any]) -> dict[str, Any]:
        found = list(dict.fromkeys([*([] if replace else own.get("syncs", [])), *names]))
        if len(found) > MAX_SYNCS:
            raise InvalidError(f"data is synced with at most {MAX_SYNCS} others; got {len(found)}")
        return {**own, "syncs": found}

    edit_stored(call.array, change)


TYPE = LabelType()
