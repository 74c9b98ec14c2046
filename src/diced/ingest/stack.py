"""Readers: image stacks, numpy and HDF5 files as volumes that are read box by box.

Pillow, tifffile and h5py are imported when a file needs them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import struct
import threading
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from diced import pool
from diced.engine.base import translate
from diced.errors import (
    DicedException,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    near_matches,
)
from diced.extras import need
from diced.ingest.paths import expand

T = TypeVar("T")
Box = tuple[tuple[int, ...], tuple[int, ...]]
Identity = tuple[str, int, int]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
TIFFS = (".tif", ".tiff")
_HDF5 = re.compile(r"(?P<file>.*\.(?:h5|hdf5|hdf|he5))(?::(?P<dataset>.*))?", re.IGNORECASE)

# What decoders raise at broken files besides OSError; interrupts and MemoryError pass.
BROKEN = (
    ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip


class Source(Protocol):
    """A volume in files.

    Attributes
    ----------
    shape : tuple of int
        ZYX, without channels.
    channels : int or None
        An extra last axis of what `read` yields.
    dtype : numpy.dtype
        Native byte order.
    """

    shape: tuple[int, ...]
    channels: int | None
    dtype: np.dtype[Any]

    def identity(self, start: int, stop: int) -> list[Identity]:
        """Return (name, size, mtime) of the files behind planes ``start:stop`` of axis 0."""
        ...

    def read(self, boxes: Sequence[Box], threads: int) -> Generator[np.ndarray, None, None]:
        """Yield the voxels of each box, in order, reading ahead on up to `threads` threads.

        An array is valid until the next one is asked for. Everything in front of an unreadable
        file is yielded before its error is raised.
        """
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def identify(path: str) -> Identity:
    """Return what tells whether a file is still the same, wherever it has moved to."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise translate(error, f"read {path!r}") from error
    return os.path.basename(path), found.st_size, found.st_mtime_ns


def open_source(
    patterns: Iterable[str | os.PathLike[str]],
    *,
    keep_order: bool = False,
    palette: bool = False,
    channels: bool = False,
) -> Source:
    """Open files as one volume.

    Parameters
    ----------
    patterns : iterable of str or path
        Images (one plane each, in natural order), TIFF files of any number of pages, or one
        ``.npy`` or HDF5 file; for the latter ``file.h5:/dataset``.
    keep_order : bool
        Stack images in the order given.
    palette : bool
        Take the indices of palette images, not their colours.
    channels : bool
        The last axis of a numpy or HDF5 file is channels. Images know it themselves.

    Raises
    ------
    NotFoundError, InvalidError, UnsupportedError
    """
    given = [os.fspath(each) for each in patterns]
    for each in given:
        match = _HDF5.fullmatch(os.path.expanduser(each))
        if match or each.lower().endswith((".npy", ".npz")):
            if len(given) > 1:
                raise InvalidError(f"{each!r} is a volume of its own; give it alone")
            if match:
                return _open_hdf5(match["file"], match["dataset"], channels)
            return _open_npy(each, channels)
    files = expand(given, keep_order)
    kinds = {os.path.splitext(path)[1].lower() for path in files}
    if {".npy", ".npz"} & kinds or any(_HDF5.fullmatch(path) for path in files):
        if len(files) == 1:
            return open_source(files, channels=channels)
        raise InvalidError(f"{len(files)} volumes match; give one numpy or HDF5 file")
    for path in files:
        if not path.lower().endswith(IMAGES + TIFFS):
            raise UnsupportedError(
                f"{path!r}: files are {', '.join(IMAGES + TIFFS)}, .npy or .h5, by their names"
            )
    return ImageStack(files, palette)


class ImageStack:
    """2-D images, all of one shape and dtype, stacked along a new first axis."""

    def __init__(self, files: Sequence[str], palette: bool = False):
        self.files = list(files)
        self._identities = [identify(path) for path in files]
        self._palette = palette
        self._lock = threading.Lock()  # over the open TIFF and reading from it
        self._open: _Tiff | None = None
        # Only a stack that begins with a TIFF of several pages has every TIFF opened for its
        # number of pages, and is read by one thread at a time.
        self._paged = _pages(files[0]) > 1
        self._planes: list[tuple[int, int]] = [
            (i, page)
            for i, path in enumerate(files)
            for page in range(_pages(path) if self._paged else 1)
        ]  # (file, page in it) of every plane
        first = self._decode(0)
        self.dtype = first.dtype
        self.channels = first.shape[2] if first.ndim == 3 else None
        self.shape: tuple[int, ...] = (len(self._planes), *first.shape[:2])
        self._only = first if len(self._planes) == 1 else None

    def identity(self, start: int, stop: int) -> list[Identity]:
        """Return (name, size, mtime) of the files behind planes ``start:stop``."""
        files = sorted({self._planes[z][0] for z in range(start, stop)})
        # Pages before these in the first file shift what a plane is.
        return [(f"{self._planes[start][1]}", 0, 0), *(self._identities[i] for i in files)]

    def read(self, boxes: Sequence[Box], threads: int) -> Generator[np.ndarray, None, None]:
        """Yield each box; shape of the box, then channels."""
        jobs = (
            (z, slice(lo[1], hi[1]), slice(lo[2], hi[2]))
            for lo, hi in boxes
            for z in range(lo[0], hi[0])
        )
        thickest = max((hi[0] - lo[0] for lo, hi in boxes), default=1)
        # While one slab is written, the next one is read.
        window = max(2 * threads, thickest)
        tail = () if self.channels is None else (self.channels,)
        buffer: np.ndarray | None = None
        with contextlib.closing(
            pool.map_ordered(self._part, jobs, threads, window)  # type: ignore[type-var]
        ) as parts:
            for lo, hi in boxes:
                shape = tuple(b - a for a, b in zip(lo, hi, strict=True)) + tail
                if buffer is None or buffer.shape != shape:
                    buffer = np.empty(shape, self.dtype)
                for plane, part in zip(buffer, itertools.islice(parts, shape[0]), strict=True):
                    if isinstance(part, DicedException):
                        raise part
                    plane[...] = part
                yield buffer

    def _part(self, job: tuple[int, slice, slice]) -> np.ndarray | DicedException:
        """Return part of a plane; errors too, so that they come in order."""
        z, rows, columns = job
        try:
            plane = self._only if self._only is not None else self._decode(z)
        except DicedException as error:
            return error
        wanted = self.shape[1:] + (() if self.channels is None else (self.channels,))
        path = self.files[self._planes[z][0]]
        if plane.shape != wanted or plane.dtype != self.dtype:
            return InvalidError(
                f"{path!r} is {_form(plane.shape, plane.dtype)}, unlike the stack's first image,"
                f" {self.files[0]!r}: {_form(wanted, self.dtype)}"
            )
        part = plane[rows, columns]
        return part if part.shape == plane.shape else part.copy()

    def _decode(self, z: int) -> np.ndarray:
        number, page = self._planes[z]
        path = self.files[number]
        if not path.lower().endswith(TIFFS):
            return _image(path, self._palette)
        if not self._paged:
            with contextlib.closing(_Tiff(path)) as tiff:
                if tiff.planes != 1:
                    raise InvalidError(
                        f"{path!r} has {tiff.planes} pages, unlike the stack's first image"
                    )
                return tiff.plane(0)
        with self._lock:
            if self._open is None or self._open.path != path:
                self._close()
                self._open = _Tiff(path)
            return self._open.plane(page)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _pages(path: str) -> int:
    if not path.lower().endswith(TIFFS):
        return 1
    with contextlib.closing(_Tiff(path)) as tiff:
        return tiff.planes


def _form(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return " x ".join(str(n) for n in shape) + f" {dtype.name}"


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what a decoder raises at a broken file into InvalidError with the file's name."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path!r}") from error
    except OSError as error:
        if error.errno is not None:
            raise translate(error, f"read {path!r}") from error
        raise InvalidError(f"{path!r} cannot be read: {error}") from error
    except DicedException:
        raise
    except BROKEN as error:
        raise InvalidError(f"{path!r} cannot be read: {error}") from error


def _image(path: str, palette: bool) -> np.ndarray:
    """Decode a single image: (Y, X) or (Y, X, channels)."""
    pil = need("PIL")
    try:
        return _decode_image(pil, path, palette)
    except pil.DecompressionBombError as error:
        raise InvalidError(f"{path!r}: {error}; PIL.Image.MAX_IMAGE_PIXELS sets it") from error


def _decode_image(pil: Any, path: str, palette: bool) -> np.ndarray:
    with _reading(path), open(path, "rb") as stream:
        head = stream.read(26)
        stream.seek(0)
        try:
            opened = pil.open(stream)
        except pil.UnidentifiedImageError:  # its text shows a stream, not a file
            raise InvalidError(f"{path!r} is no image, or a damaged one") from None
        with opened as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UnsupportedError(f"{path!r} is an animation; only TIFF may have pages")
            # Pillow would drop the lower 8 bits without a word.
            if image.format == "PNG" and head[24] == 16 and head[25] & 2:
                raise UnsupportedError(f"{path!r} is 16-bit colour, which needs TIFF")
            image.load()
            if image.mode in ("P", "PA") and not palette:
                seen = "RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB"
                image = image.convert(seen)
            return _native(np.asarray(image))


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


class _Tiff:
    """A TIFF file as planes: all axes of its first series but Y, X and samples."""

    def __init__(self, path: str):
        self.path = path
        tifffile = need("tifffile")
        with _reading(path):
            self._file = tifffile.TiffFile(path)
        try:
            with _reading(path):
                self._series = self._file.series[0]
                self._axes()
        except DicedException:
            self.close()
            raise

    def _axes(self) -> None:
        axes, shape = self._series.axes, self._series.shape
        if axes.endswith("YXS"):
            self._tail = shape[-3:]
        elif axes.endswith("YX"):
            self._tail = shape[-2:]
        else:
            raise UnsupportedError(
                f"{self.path!r} has TIFF axes {axes}; the last must be YX or YXS"
            )
        front = shape[: len(shape) - len(self._tail)]
        if sum(n > 1 for n in front) > 1 or "S" in axes[: len(front)]:
            raise UnsupportedError(
                f"{self.path!r} has TIFF axes {axes} of sizes {tuple(shape)};"
                " only one may come before YX"
            )
        self.planes: int = math.prod(front)

    def plane(self, number: int) -> np.ndarray:
        """Decode one plane: (Y, X) or (Y, X, samples)."""
        with _reading(self.path):
            series = self._series
            if series.dataoffset is None:
                values = np.asarray(series.pages[number].asarray())
                return _native(values.reshape(self._tail))
            # Uncompressed and in one piece, maybe with a single page entry, as ImageJ writes it.
            kind = np.dtype(series.dtype).newbyteorder(self._file.byteorder)
            step = math.prod(self._tail) * kind.itemsize
            handle = self._file.filehandle
            handle.seek(series.dataoffset + number * step)
            data = handle.read(step)
            if len(data) < step:
                raise InvalidError(f"{self.path!r} cannot be read: the file is truncated")
            return _native(np.frombuffer(data, kind).reshape(self._tail))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ArrayFile:
    """A numpy or HDF5 array."""

    def __init__(self, path: str, data: Any, channels: bool, file: Any = None):
        self._path = path
        self._file = file
        self._data = data
        self._identity = [identify(path)]
        shape = tuple(int(n) for n in data.shape)
        if not shape or 0 in shape or (channels and len(shape) < 2):
            raise InvalidError(f"{path!r} holds an array of shape {shape}: nothing to store")
        self.channels = shape[-1] if channels else None
        self.shape: tuple[int, ...] = shape[:-1] if channels else shape
        self.dtype = np.dtype(data.dtype).newbyteorder("=")

    def identity(self, _start: int, _stop: int) -> list[Identity]:
        """Return (name, size, mtime) of the file."""
        return self._identity

    def read(self, boxes: Sequence[Box], threads: int) -> Generator[np.ndarray, None, None]:
        """Yield each box; a memory-mapped file is read only while the box is used."""
        ahead = min(threads, 2) if self._file is not None else 1
        parts = pool.map_ordered(self._part, boxes, ahead, ahead)
        with contextlib.closing(parts):  # type: ignore[type-var]
            for part in parts:
                if isinstance(part, DicedException):
                    raise part
                yield part

    def _part(self, box: Box) -> np.ndarray | DicedException:
        try:
            with _reading(self._path):
                part = self._data[tuple(slice(a, b) for a, b in zip(*box, strict=True))]
                return _native(part) if self._file is not None else part
        except DicedException as error:
            return error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _open_npy(path: str, channels: bool) -> ArrayFile:
    path = os.path.expanduser(path)
    if path.lower().endswith(".npz"):
        raise UnsupportedError(f"{path!r}: of numpy's files only .npy can be read in pieces")
    with _reading(path):
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    return ArrayFile(path, data, channels)


def _open_hdf5(path: str, dataset: str | None, channels: bool) -> ArrayFile:
    h5py = need("h5py")
    identify(path)
    with _reading(path):
        file = h5py.File(path, "r")
    try:
        with _reading(path):
            return ArrayFile(path, _dataset(file, path, dataset), channels, file)
    except DicedException:
        file.close()
        raise


def _dataset(file: Any, path: str, name: str | None) -> Any:
    names: list[str] = []
    file.visititems(lambda each, item: names.append(each) if _is_dataset(item) else None)
    if not name:
        if len(names) != 1:
            raise InvalidError(
                f"{path!r} has {len(names)} datasets; say which, as in"
                f" {path}:/{names[0] if names else 'name'}"
            )
        name = names[0]
    if name not in file or not _is_dataset(file[name]):
        raise NotFoundError(f"no dataset {name!r} in {path!r}" + near_matches(name, names))
    return file[name]


def _is_dataset(each: Any) -> bool:
    return hasattr(each, "dtype") and hasattr(each, "chunks")
