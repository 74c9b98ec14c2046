"""Writers: a box of an array into files, slab by slab.

Every file is written under a temporary name beside its own and renamed when it is complete.
Pillow, tifffile and h5py are imported when a format needs them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from diced import pool
from diced.array import DicedArray
from diced.engine.base import translate
from diced.errors import AlreadyExistsError, InvalidError, NotFoundError, UnsupportedError
from diced.extras import need
from diced.spec import DTYPES, MAX_CHANNELS

Box = tuple[tuple[int, ...], tuple[int, ...]]
Progress = Callable[[int, int], None]

# Format -> file name ending. The first three are stacks of images in a folder.
FORMATS = {
    "png": ".png", "jpeg": ".jpg", "tiff": ".tif", "npy": ".npy", "hdf5": ".h5", "raw": ".raw",
    "multitiff": ".tif",
}  # fmt: skip
STACKS = ("png", "jpeg", "tiff")
_ENDINGS = {
    ".npy": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".raw": "raw", ".tif": "multitiff",
    ".tiff": "multitiff",
}  # fmt: skip
# A folder of such a name would be taken for a file.
_FILES = (*_ENDINGS, ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".pgm", ".ppm", ".npz")
_HDF5 = re.compile(r"(?P<file>.*\.(?:h5|hdf5)):(?P<dataset>.+)", re.IGNORECASE)
MEMORY = 2**30
MAX_CLASSIC_TIFF = 2**32 - 2**25


def export(
    array: DicedArray,
    target: str | os.PathLike[str],
    box: Box | None = None,
    *,
    format: str | None = None,
    overwrite: bool = False,
    quality: int = 95,
    memory: int = MEMORY,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """Write a box of an array to files.

    Parameters
    ----------
    array : DicedArray
    target : str or path
        A file ending in ``.npy``, ``.h5`` (or ``.h5:/dataset``), ``.raw`` or ``.tif`` (several
        pages); a name without such an ending is the folder of an image stack, made if missing,
        whose files are called after the array and their first coordinate. The folder that
        `target` is in must exist.
    box : pair of tuple of int, optional
        First and last + 1 voxel, ZYX; everything written by default.
    format : str, optional
        One of `FORMATS`, if the name of `target` does not say it; a folder's is ``png``.
    overwrite : bool
        Replace files that exist.
    quality : int
        Of JPEG images.
    memory : int
        Bytes of voxels to hold.
    threads : int
        How many images are compressed at once.
    progress : callable, optional
        Called with (bytes done, bytes in all).

    Returns
    -------
    list of str
        The files written.

    Raises
    ------
    AlreadyExistsError, NotFoundError, InvalidError, UnsupportedError, EngineError
    """
    path = os.path.expanduser(os.fspath(target))
    dataset = "/data"
    match = _HDF5.fullmatch(path)
    if match:
        path, dataset = match["file"], match["dataset"]
    if format is None:
        format = _ENDINGS.get(os.path.splitext(path)[1].lower(), "png")
    if format not in FORMATS:
        raise InvalidError(f"format is one of {', '.join(FORMATS)}; got {format!r}")
    lo, hi = _box(array, box)
    shape = tuple(b - a for a, b in zip(lo, hi, strict=True)) + array.chunks[array.numdims :]
    writer: _Writer
    try:
        if format in STACKS:
            writer = _Stack(array, path, format, lo, hi, overwrite, quality, threads)
        elif format == "multitiff":
            writer = _Pages(array, path, shape, overwrite)
        elif format == "hdf5":
            writer = _Hdf5(array, path, dataset, shape, overwrite)
        else:
            writer = (_Npy if format == "npy" else _Raw)(array, path, shape, overwrite)
        with contextlib.closing(writer):
            total = int(np.prod(shape, dtype=np.int64)) * array.dtype.itemsize
            done = 0
            for start, stop in _slabs(array, lo, hi, shape, memory):
                values = array[(slice(start, stop), *_slices(lo, hi)[1:])]
                writer.write(values, start - lo[0])
                done += values.nbytes
                if progress is not None:
                    progress(done, total)
            return writer.finish()
    except OSError as error:
        raise translate(error, f"write {path!r}") from error


def _box(array: DicedArray, box: Box | None) -> Box:
    if box is None:
        bounds = array.bounds
        if bounds is None:
            raise InvalidError(f"array {array.name!r} holds nothing yet; give a box")
        return tuple(s.start for s in bounds), tuple(s.stop for s in bounds)
    lo, hi = tuple(box[0]), tuple(box[1])
    if len(lo) != array.numdims or any(a >= b for a, b in zip(lo, hi, strict=True)):
        raise InvalidError(
            f"array {array.name!r}: a box has {array.numdims} ranges that are not empty;"
            f" got {lo} to {hi}"
        )
    return lo, hi


def _slices(lo: Sequence[int], hi: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))


def _slabs(
    array: DicedArray, lo: tuple[int, ...], hi: tuple[int, ...], shape: tuple[int, ...], memory: int
) -> Iterator[tuple[int, int]]:
    """Yield ranges of axis 0, whole blocks where the memory allows."""
    plane = int(np.prod(shape[1:], dtype=np.int64)) * array.dtype.itemsize
    thick = array.block_shape[0]
    fits = memory // plane
    step = fits // thick * thick if fits >= thick else max(1, fits)
    # A few blocks at once are enough to keep the threads busy, and progress moves.
    step = min(step, max(thick, 2**26 // (plane * thick) * thick))
    at = lo[0]
    while at < hi[0]:
        stop = min(hi[0], at // step * step + step)
        yield at, stop
        at = stop


# -- files ---------------------------------------------------------------------------------


class _Writer(Protocol):
    """Takes slabs in order; `finish` makes the result visible, `close` removes what is not."""

    def write(self, values: np.ndarray, first: int) -> None:
        """Take planes `first` and after."""
        ...

    def finish(self) -> list[str]:
        """Rename what is complete; return the names."""
        ...

    def close(self) -> None:
        """Remove whatever is unfinished."""
        ...


class _File:
    """A file under a temporary name until it is complete."""

    def __init__(self, path: str, overwrite: bool):
        self.path = path
        self.overwrite = overwrite
        check_free(path, overwrite)
        check_parent(path)
        folder, name = os.path.split(path)
        self.temp = os.path.join(folder, f".{name}.{os.getpid()}.part")

    def publish(self) -> None:
        """Give the file its name; what a power cut leaves is never an empty file of that name."""
        with open(self.temp, "rb+") as stream:
            os.fsync(stream.fileno())
        check_free(self.path, self.overwrite)
        os.replace(self.temp, self.path)

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.temp)


def check_free(path: str, overwrite: bool) -> None:
    """Raise AlreadyExistsError if a file is there and may not be replaced."""
    if os.path.isdir(path):
        raise AlreadyExistsError(f"{path!r} is a folder")
    if not overwrite and os.path.lexists(path):
        raise AlreadyExistsError(f"{path!r} exists; --overwrite replaces it")


def check_parent(path: str) -> None:
    """Raise NotFoundError unless the folder that a path is in exists."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise NotFoundError(f"no folder {folder!r} for {os.path.basename(path)!r}")


class _Npy:
    """One numpy file, memory-mapped while it is written."""

    def __init__(self, array: DicedArray, path: str, shape: tuple[int, ...], overwrite: bool):
        self._file = _File(path, overwrite)
        self._data: Any = np.lib.format.open_memmap(
            self._file.temp, mode="w+", dtype=array.dtype, shape=shape
        )

    def write(self, values: np.ndarray, first: int) -> None:
        self._data[first : first + len(values)] = values

    def finish(self) -> list[str]:
        self._data.flush()
        self._data = None
        self._file.publish()
        return [self._file.path]

    def close(self) -> None:
        self._data = None
        self._file.discard()


class _Raw:
    """The voxels in C order, little-endian, and nothing else."""

    def __init__(self, array: DicedArray, path: str, _shape: tuple[int, ...], overwrite: bool):
        self._file = _File(path, overwrite)
        self._dtype = array.dtype.newbyteorder("<")
        self._stream = open(self._file.temp, "wb")  # noqa: SIM115 - closed in close

    def write(self, values: np.ndarray, first: int) -> None:
        self._stream.write(np.ascontiguousarray(values, self._dtype).data)

    def finish(self) -> list[str]:
        self._stream.close()
        self._file.publish()
        return [self._file.path]

    def close(self) -> None:
        self._stream.close()
        self._file.discard()


class _Hdf5:
    """One dataset in a new HDF5 file, with the array's block shape as its chunks."""

    def __init__(
        self,
        array: DicedArray,
        path: str,
        dataset: str,
        shape: tuple[int, ...],
        overwrite: bool,
    ):
        h5py = need("h5py")
        self._file = _File(path, overwrite)
        self._h5 = h5py.File(self._file.temp, "w")
        chunks = tuple(min(a, b) for a, b in zip(array.chunks, shape, strict=True))
        try:
            self._data = self._h5.create_dataset(
                dataset, shape, array.dtype, chunks=chunks, compression="gzip", compression_opts=1
            )
        except ValueError as error:
            self.close()
            raise InvalidError(f"dataset {dataset!r} in {path!r}: {error}") from error

    def write(self, values: np.ndarray, first: int) -> None:
        self._data[first : first + len(values)] = values

    def finish(self) -> list[str]:
        self._h5.close()
        self._file.publish()
        return [self._file.path]

    def close(self) -> None:
        self._h5.close()
        self._file.discard()


class _Pages:
    """One TIFF file of several pages."""

    def __init__(self, array: DicedArray, path: str, shape: tuple[int, ...], overwrite: bool):
        tifffile = need("tifffile")
        _planar(array, "TIFF")
        _suits(array, "tiff")
        self._file = _File(path, overwrite)
        self._flat = array.numdims == 2
        size = int(np.prod(shape, dtype=np.int64)) * array.dtype.itemsize
        self._tiff = tifffile.TiffWriter(self._file.temp, bigtiff=size > MAX_CLASSIC_TIFF)
        self._save = functools.partial(self._tiff.write, **_tiff_options(array))
        self._rows: list[np.ndarray] = []

    def write(self, values: np.ndarray, first: int) -> None:
        if self._flat:
            self._rows.append(values)  # one image is one page
            return
        for plane in values:
            self._save(plane)

    def finish(self) -> list[str]:
        if self._flat:
            self._save(np.concatenate(self._rows))
        self._tiff.close()
        self._file.publish()
        return [self._file.path]

    def close(self) -> None:
        self._tiff.close()
        self._file.discard()


class _Stack:
    """A folder of images, one per plane."""

    def __init__(
        self,
        array: DicedArray,
        folder: str,
        format: str,
        lo: tuple[int, ...],
        hi: tuple[int, ...],
        overwrite: bool,
        quality: int,
        threads: int,
    ):
        _planar(array, format.upper())
        _suits(array, format)
        _check_folder(folder, format)
        self._folder = folder
        self._flat = array.numdims == 2
        self._overwrite = overwrite
        self._threads = threads
        self._save = _saver(array, format, quality)
        stem = re.sub(r"[^\w.-]", "_", array.name)
        first, last = (0, 1) if self._flat else (lo[0], hi[0])
        if first < 0:
            first, last = 0, last - first  # a minus sign would upset the order of names
        digits = max(5, len(str(last - 1)))
        names = (f"{stem}.{z:0{digits}d}{FORMATS[format]}" for z in range(first, last))
        self._files = [os.path.join(folder, name) for name in names]
        for path in self._files:
            check_free(path, overwrite)
        self._rows: list[np.ndarray] = []

    def write(self, values: np.ndarray, first: int) -> None:
        if self._flat:
            self._rows.append(values)
            return
        jobs = list(zip(self._files[first : first + len(values)], values, strict=True))
        pool.for_each(self._one, jobs, self._threads)

    def _one(self, job: tuple[str, np.ndarray]) -> None:
        path, plane = job
        os.makedirs(self._folder, exist_ok=True)
        file = _File(path, self._overwrite)
        try:
            self._save(file.temp, plane)
            file.publish()
        finally:
            file.discard()

    def finish(self) -> list[str]:
        if self._flat:
            self._one((self._files[0], np.concatenate(self._rows)))
        return self._files

    def close(self) -> None:
        return None


def _check_folder(path: str, format: str) -> None:
    """Raise unless a stack of images may go to a folder of this name."""
    if os.path.isdir(path):
        return
    if os.path.lexists(path):
        raise AlreadyExistsError(f"{path!r} is no folder, which a stack of {format} images needs")
    if os.path.splitext(path)[1].lower() in _FILES:
        raise InvalidError(
            f"{path!r} would become a folder of {format} images; give a name without such an"
            " ending, or make the folder first"
        )
    check_parent(path)


def _planar(array: DicedArray, what: str) -> None:
    if array.numdims not in (2, 3):
        raise UnsupportedError(
            f"array {array.name!r} has {array.numdims} dimensions; {what} images take 2 or 3:"
            " choose npy, hdf5 or raw"
        )


def _suits(array: DicedArray, format: str) -> None:
    """Raise unless a format of images can hold an array's voxels as they are."""
    every = (None, *range(1, MAX_CHANNELS + 1))
    formats: dict[str, dict[str, tuple[int | None, ...]]] = {
        "png": {"bool": (None,), "uint8": (None, 2, 3, 4), "uint16": (None,)},
        "jpeg": {"uint8": (None, 3)},
        "tiff": {**dict.fromkeys(DTYPES, every), "bool": (None,)},
    }
    kinds = formats[format]
    if array.channels not in kinds.get(array.dtype.name, ()):
        channels = "" if array.channels is None else f" with {array.channels} channels"
        raise UnsupportedError(
            f"array {array.name!r}, {array.dtype.name}{channels}, does not fit {format} images:"
            " choose tiff, npy, hdf5 or raw"
        )


def _tiff_options(array: DicedArray) -> dict[str, Any]:
    return {
        "photometric": "rgb" if array.channels in (3, 4) else "minisblack",
        "planarconfig": None if array.channels is None else "contig",
        "compression": "zlib",
        "metadata": None,
    }


def _saver(array: DicedArray, format: str, quality: int) -> Callable[[str, np.ndarray], None]:
    """Return what writes one image to a path."""
    if format == "tiff":
        return functools.partial(need("tifffile").imwrite, **_tiff_options(array))
    pil = need("PIL")
    options = (
        {"quality": quality} if format == "jpeg" else {"compress_level": 1}
    )  # EM is noise: more gains little

    def save(path: str, plane: np.ndarray) -> None:
        pil.fromarray(np.ascontiguousarray(plane)).save(path, format=format.upper(), **options)

    return save
