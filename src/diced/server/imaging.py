"""Pictures over the wire: voxels of a plane as PNG, JPEG, TIFF or BMP, and back.

A picture has pixels of 8 or 16 bits: gray, or the bytes of larger voxels as colours.

==================  ================================================================
voxels              pixels
==================  ================================================================
1 byte              gray, 8 bits
2 bytes             gray, 16 bits
4 bytes             red, green, blue, alpha of 8 bits: the bytes, lowest first
8 bytes             red, green, blue, alpha of 16 bits: the bytes, lowest first
2 to 4 channels     gray or colours, with alpha if they are 2 or 4; 8 or 16 bits each
==================  ================================================================

JPEG and BMP have 8 bits and take the upper ones; JPEG leaves alpha out.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from diced.coders import Jpeg
from diced.errors import InvalidError
from diced.extras import need
from diced.ingest.stack import BROKEN
from diced.server.answer import Answer, Buffer

NAMES = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "tif": "tiff", "tiff": "tiff", "bmp": "bmp"}
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
JPEG_QUALITY = 80
MAX_PIXELS = 2**26  # Pillow warns of a "bomb" above 89 million


class Form(NamedTuple):
    """A format of pictures: its name as Pillow has it, in lower case, and the quality of JPEG."""

    name: str
    quality: int = JPEG_QUALITY


def parse_format(text: str) -> Form:
    """Parse ``png``, ``jpg``, ``jpeg:90``, ``tif``, ``bmp``.

    Raises
    ------
    InvalidError
    """
    name, colon, quality = text.lower().partition(":")
    if name not in NAMES or (colon and NAMES[name] != "jpeg"):
        raise InvalidError(
            f"illegal image format {text!r:.60}: wanted png, jpg[:quality], tif, bmp"
        )
    if not colon:
        return Form(NAMES[name])
    plain = quality.isascii() and quality.isdecimal() and len(quality) <= 3
    if not plain or not 1 <= int(quality) <= 100:
        raise InvalidError(f"the quality of a jpeg is 1 to 100; got {text!r:.60}")
    return Form("jpeg", int(quality))


def most_bytes(nbytes: int) -> int:
    """Return the most bytes that a picture of so many bytes of voxels may be sent in."""
    return 4 * nbytes + 2**16


def looks_encoded(body: Buffer) -> bool:
    """Tell whether bytes begin as one of the formats does."""
    return bytes(body[:8]).startswith(MAGIC)


# -- voxels and pixels ---------------------------------------------------------------------


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Return voxels, shape (rows, columns[, channels]), as pixels.

    Returns
    -------
    numpy.ndarray
        uint8 or uint16, shape (rows, columns) or (rows, columns, 2 to 4).

    Raises
    ------
    InvalidError
        There are no pixels of that many bytes or channels.
    """
    channels = values.shape[2] if values.ndim == 3 else 1
    item = values.dtype.itemsize
    if channels > 4 or (channels > 1 and item > 2):
        raise InvalidError(
            f"{channels} channels of {values.dtype.name} make no picture; ask for raw bytes"
        )
    values = np.ascontiguousarray(values)
    rows, columns = values.shape[:2]
    if channels > 1:
        return values.view(f"u{item}")
    if item <= 2:
        return values.reshape(rows, columns).view(f"u{item}")
    kind = "u1" if item == 4 else ">u2"
    return values.reshape(rows, columns).view(kind).reshape(rows, columns, 4).astype(kind[-2:])


def from_pixels(pixels: np.ndarray, dtype: np.dtype[Any], channels: int | None) -> np.ndarray:
    """Return pixels as voxels, shape (rows, columns[, channels]).

    Gray of fewer bits than a voxel has is taken as numbers. Colours without alpha are opaque.

    Raises
    ------
    InvalidError
        The pixels are no voxels of an array of this type.
    """
    bits, planes = 8 * pixels.dtype.itemsize, pixels.shape[2] if pixels.ndim == 3 else 1
    rows, columns = pixels.shape[:2]
    wanted = channels or 1
    whole = bits // 2 == dtype.itemsize  # four samples are one voxel
    if planes == 3 and (wanted == 4 or (wanted == 1 and whole)):
        opaque = np.full((rows, columns, 1), 2**bits - 1, pixels.dtype)
        pixels, planes = np.concatenate([pixels, opaque], axis=2), 4
    if wanted > 1 and planes == wanted and dtype.itemsize * 8 == bits and dtype.kind in "iub":
        return pixels.view(dtype) if dtype.kind != "b" else _flags(pixels)
    if wanted == 1:
        tail = () if channels is None else (1,)
        if planes == 4 and whole:
            swapped = np.ascontiguousarray(pixels.astype("u1" if bits == 8 else ">u2"))
            return swapped.reshape(rows, -1).view(dtype).reshape(rows, columns, *tail)
        if planes == 1 and dtype.kind == "b":
            return _flags(pixels).reshape(rows, columns, *tail)
        if planes == 1 and dtype.itemsize * 8 == bits:
            return pixels.view(dtype).reshape(rows, columns, *tail)
        if planes == 1 and dtype.itemsize * 8 > bits:
            return pixels.astype(dtype).reshape(rows, columns, *tail)
    colours = {1: "gray", 2: "gray and alpha", 3: "RGB", 4: "RGBA"}[planes]
    raise InvalidError(
        f"a picture of {colours}, {bits} bits, does not fit"
        f" {'' if channels is None else f'{channels} channels of '}{dtype.name}"
    )


def _flags(pixels: np.ndarray) -> np.ndarray:
    flags: np.ndarray = pixels != 0
    return flags


# -- pixels and bytes ----------------------------------------------------------------------


def check_pixels(rows: int, columns: int) -> None:
    """Refuse a picture that is too large.

    Raises
    ------
    InvalidError
    """
    if rows * columns > MAX_PIXELS:
        raise InvalidError(
            f"a picture of {columns} x {rows} is too large: at most {MAX_PIXELS} pixels; ask for"
            " raw bytes"
        )


def encode(values: np.ndarray, form: Form) -> bytes:
    """Return voxels, shape (rows, columns[, channels]), as a picture's file.

    Raises
    ------
    InvalidError
        They make no picture, or too large a one.
    """
    check_pixels(*values.shape[:2])
    pixels = to_pixels(values)
    planes = pixels.shape[2] if pixels.ndim == 3 else 1
    if form.name == "tiff":
        return _tiff(pixels)
    if form.name == "png" and pixels.dtype == np.uint16 and planes > 1:
        return _png16(pixels)
    if form.name != "png" and pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if form.name == "jpeg":
        if planes in (2, 4):
            planes -= 1
            pixels = pixels[..., :planes] if planes > 1 else pixels[..., 0]
        channels = planes if planes > 1 else None
        shape = pixels.shape[:2]
        coder = Jpeg(f"jpeg:{form.quality}", pixels.dtype, shape, channels, level=form.quality)
        return coder.encode(pixels)
    if form.name == "bmp" and planes == 2:
        pixels = pixels[..., 0]
    file = BytesIO()
    options = {"compress_level": 1} if form.name == "png" else {}  # EM is noise: more gains little
    picture = need("PIL").fromarray(np.ascontiguousarray(pixels))
    picture.save(file, form.name.upper(), **options)
    return file.getvalue()


def answer(values: np.ndarray, form: Form) -> Answer:
    """Return voxels, shape (rows, columns[, channels]), as an answer that is a picture."""
    return Answer(encode(values, form), f"image/{form.name}")


def _tiff(pixels: np.ndarray) -> bytes:
    planes = pixels.shape[2] if pixels.ndim == 3 else 1
    file = BytesIO()
    need("tifffile").imwrite(
        file,
        pixels,
        photometric="rgb" if planes > 2 else "minisblack",
        planarconfig=None if planes == 1 else "contig",
        extrasamples=["unassalpha"] if planes in (2, 4) else None,
        compression="zlib",
        metadata=None,
    )
    return file.getvalue()


def _png16(pixels: np.ndarray) -> bytes:
    """Return a PNG of 16-bit samples of several planes, which Pillow does not write."""
    rows, columns, planes = pixels.shape
    lines = np.zeros((rows, 1 + 2 * columns * planes), np.uint8)  # each begins with its filter: 0
    lines[:, 1:] = pixels.astype(">u2").reshape(rows, -1).view(np.uint8)
    kind = {2: 4, 3: 2, 4: 6}[planes]

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", columns, rows, 16, kind, 0, 0, 0)
    data = zlib.compress(lines.data, 1)
    return MAGIC[0] + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def decode(body: Buffer, format: str, rows: int, columns: int) -> np.ndarray:
    """Return the pixels of a picture's file.

    Parameters
    ----------
    body : bytes-like
    format : str
        As of `parse_format`; empty for any.
    rows, columns : int
        What its size must be; that is seen before anything is decoded.

    Returns
    -------
    numpy.ndarray
        uint8 or uint16, shape (rows, columns) or (rows, columns, 2 to 4).

    Raises
    ------
    InvalidError
    """
    pillow: Any = need("PIL")
    formats = [parse_format(format).name.upper()] if format else ["PNG", "JPEG", "TIFF", "BMP"]
    if rows * columns > MAX_PIXELS:
        raise InvalidError(f"a picture has at most {MAX_PIXELS} pixels; post raw bytes")
    try:
        with pillow.open(BytesIO(body), formats=formats) as picture:
            if picture.size != (columns, rows):
                raise InvalidError(
                    f"the picture is {picture.size[0]} x {picture.size[1]};"
                    f" wanted {columns} x {rows}"
                )
            return _pixels(pillow, picture, body)
    except InvalidError:
        raise
    except pillow.UnidentifiedImageError:  # its text shows a stream
        raise InvalidError("the body is no picture, or a damaged one") from None
    # Pillow also warns of damage: an error where warnings are.
    except (OSError, *BROKEN, pillow.DecompressionBombError, Warning) as error:
        raise InvalidError(f"the picture cannot be read: {error}") from None


def _pixels(pillow: Any, picture: Any, body: Buffer) -> np.ndarray:
    if picture.format == "PNG" and body[24] == 16 and body[25] & 2:
        # Pillow has colours of 8 bits, and drops the lower ones. Told that the samples are
        # little-endian it takes these for the upper ones.
        high = np.asarray(picture)
        with pillow.open(BytesIO(body), formats=["PNG"]) as again:
            again.tile = [again.tile[0]._replace(args=f"{again.mode};16L")]
            low = np.asarray(again)
        both: np.ndarray = high.astype(np.uint16) << 8 | low
        return both
    if picture.mode in ("P", "PA"):
        seen = "RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB"
        picture = picture.convert(seen)
    elif picture.mode == "1":
        picture = picture.convert("L")
    values = np.asarray(picture)
    if picture.mode == "I" and picture.format in ("PNG", "TIFF") and values.min() >= 0:
        if values.max() < 2**16:
            return values.astype(np.uint16)
    elif picture.mode in ("L", "LA", "RGB", "RGBA") or picture.mode.startswith("I;16"):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    raise InvalidError(f"pictures are gray or RGB, of 8 or 16 bits; got mode {picture.mode}")
