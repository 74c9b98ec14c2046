"""What each codec makes of a block: one class for every form of a payload.

Owns what is in a payload, and every check of its length. Which name and level stand for which class
is the business of `diced.codec`, where all payloads are listed.
"""

from __future__ import annotations

import itertools
import math
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diced import _blocks, _codec, _packed
from diced.errors import CorruptError, InvalidError, UnsupportedError

FOREIGN = 255
# libjpeg's own limit on each side of an image.
MAX_JPEG_SIDE = 65500
# Pillow warns of a "bomb" above 89 million pixels.
MAX_JPEG_PIXELS = 1 << 26
# A thread's scratch block is kept for its next call up to this size.
KEPT_SCRATCH = 16 << 20

Pack = Callable[[Any], bytes]
Unpack = Callable[[Any, Any], None]

_local = threading.local()


def block_nbytes(dtype: Any, block_shape: Sequence[int], channels: int | None = None) -> int:
    """Return the number of bytes of a decoded block.

    Parameters
    ----------
    dtype : numpy dtype or what makes one
    block_shape : sequence of int
        Voxels per axis, without the channel axis.
    channels : int, optional
        Size of the channel axis; None for an array without one.
    """
    item: int = np.dtype(dtype).itemsize
    return math.prod(block_shape) * item * (channels or 1)


class Codec(ABC):
    """One codec for blocks of one shape and type. Stateless: threads can share it.

    Attributes
    ----------
    spec : str
        Its full name, with the level even where the default was taken.
    id : int
        The number that frames carry; `FOREIGN` for registered codecs.
    lossy : bool
        True if a decoded block can differ from what was encoded.
    dtype : numpy dtype
    block_shape : tuple of int
    channels : int or None
    """

    id = -1
    lossy = False

    def __init__(
        self, spec: str, dtype: np.dtype[Any], block_shape: tuple[int, ...], channels: int | None
    ):
        self.spec = spec
        self.dtype = dtype
        self.block_shape = block_shape
        self.channels = channels
        self._shape = block_shape if channels is None else (*block_shape, channels)
        self._nbytes = block_nbytes(dtype, block_shape, channels)

    def __repr__(self) -> str:
        return f"<Codec {self.spec!r} of {self._shape} {self.dtype.name}>"

    def encode(self, src: np.ndarray) -> bytes:
        """Return the payload of one full block.

        Parameters
        ----------
        src : ndarray
            Shape `block_shape`, then channels if there are any; any strides.

        Raises
        ------
        InvalidError
            `src` has another shape or type.
        """
        if src.shape != self._shape or src.dtype != self.dtype:
            raise InvalidError(
                f"codec {self.spec!r} encodes blocks of {self._shape} {self.dtype.name};"
                f" got {src.shape} {src.dtype.name}"
            )
        return self._encode(src)

    def decode(
        self, payload: Any, out: np.ndarray, start: Sequence[int], *, stream: bool = False
    ) -> None:
        """Fill `out` with a window of the block.

        Parameters
        ----------
        payload : contiguous buffer
            What `encode` returned.
        out : ndarray
            Any strides; its shape is the window's, all channels included.
        start : sequence of int
            Where in the block the window starts, without the channel axis.
        stream : bool
            A hint that `out` is part of a result much larger than the processor's caches.

        Raises
        ------
        CorruptError
            `payload` is damaged; part of `out` may have been written.
        InvalidError
            The window leaves the block, or `out` has another type.
        """
        dims = len(self.block_shape)
        inside = out.ndim == len(self._shape) and len(start) == dims and out.dtype == self.dtype
        for axis, first in enumerate(start) if inside else ():
            inside = inside and 0 <= first <= self._shape[axis] - out.shape[axis]
        if not inside or (self.channels is not None and out.shape[dims] != self.channels):
            raise InvalidError(
                f"codec {self.spec!r} decodes windows of blocks of {self._shape}"
                f" {self.dtype.name}; got {out.shape} {out.dtype.name} at {tuple(start)}"
            )
        self._decode(payload, out, start, stream)

    @abstractmethod
    def _encode(self, src: np.ndarray) -> bytes:
        """Encode a block that `encode` has checked."""

    @abstractmethod
    def _decode(self, payload: Any, out: np.ndarray, start: Sequence[int], stream: bool) -> None:
        """Fill a window that `decode` has checked."""

    def _window(self, block: np.ndarray, out: np.ndarray, start: Sequence[int]) -> np.ndarray:
        if out.shape == self._shape:
            return block
        sizes = zip(start, out.shape, strict=False)  # `start` has no channel axis
        return block[tuple(slice(first, first + size) for first, size in sizes)]

    def _corrupt(self, got: str) -> CorruptError:
        return CorruptError(
            f"payload of codec {self.spec!r} is damaged: {got}, {self._nbytes} bytes expected"
        )


class Raw(Codec):
    """The items themselves; also the base of codecs that decode to a buffer of their own."""

    id = 0

    def _encode(self, src: np.ndarray) -> bytes:
        return _blocks.gather(src)

    def _decode(self, payload: Any, out: np.ndarray, start: Sequence[int], stream: bool) -> None:
        items = self._items(payload)
        if len(items) != self._nbytes:
            raise self._corrupt(f"{len(items)} bytes came out")
        block = np.frombuffer(items, self.dtype).reshape(self._shape)
        _blocks.copy(self._window(block, out, start), out)

    def _items(self, payload: Any) -> Any:
        return memoryview(payload).cast("B")


class Gzip(Raw):
    """Items in a gzip member."""

    id = 3

    def __init__(self, *args: Any, level: int):
        super().__init__(*args)
        self._level = level

    def _encode(self, src: np.ndarray) -> bytes:
        packer = zlib.compressobj(self._level, zlib.DEFLATED, 31)
        return packer.compress(_blocks.gather(src)) + packer.flush()

    def _items(self, payload: Any) -> Any:
        unpacker = zlib.decompressobj(31)
        try:
            # One more than a block, so that a longer member shows and cannot grow further.
            items = unpacker.decompress(payload, self._nbytes + 1)
        except zlib.error as error:
            raise self._corrupt(str(error)) from None
        if not unpacker.eof or unpacker.unused_data:
            raise self._corrupt("the gzip member ends early or late")
        return items


class Jpeg(Raw):
    """Items as an image, the planes of a 3-D block one below the other."""

    id = 4
    lossy = True

    def __init__(self, *args: Any, level: int):
        super().__init__(*args)
        self._quality = level
        height, width = math.prod(self.block_shape[:-1]), self.block_shape[-1]
        if (
            self.dtype != np.uint8
            or len(self.block_shape) not in (2, 3)
            or self.channels not in (None, 1, 3)
            or max(height, width) > MAX_JPEG_SIDE
            or height * width > MAX_JPEG_PIXELS
        ):
            raise InvalidError(
                f"codec {self.spec!r} takes 2-D or 3-D blocks of uint8 with 1 or 3 channels, at"
                f" most {MAX_JPEG_SIDE} high; got {self._shape} {self.dtype.name}"
            )
        self._size = (width, height)
        self._mode = "RGB" if self.channels == 3 else "L"
        _pillow()

    def _encode(self, src: np.ndarray) -> bytes:
        from io import BytesIO

        data, file = _blocks.gather(src), BytesIO()
        picture = _pillow().frombuffer(self._mode, self._size, data, "raw", self._mode, 0, 1)
        # No subsampling: it would blend the colours of planes that touch only in the tall image.
        picture.save(file, "JPEG", quality=self._quality, subsampling=0)
        return file.getvalue()

    def _items(self, payload: Any) -> Any:
        from io import BytesIO

        image = _pillow()
        try:
            picture = image.open(BytesIO(payload), formats=["JPEG"])
            if picture.size != self._size or picture.mode != self._mode:
                raise self._corrupt(f"an image of {picture.size} {picture.mode}")
            return picture.tobytes()
        except (
            OSError,
            SyntaxError,
            ValueError,
            image.DecompressionBombError,
            image.DecompressionBombWarning,
        ) as error:
            raise self._corrupt(str(error)) from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError(
            f"codec 'jpeg' needs pillow: pip install 'diced[images]' ({error})"
        ) from None
    return Image


class Packed(Codec):
    """Items compressed by a function that decodes into memory it is given."""

    def __init__(self, *args: Any, number: int, pack: Pack, unpack: Unpack):
        super().__init__(*args)
        self.id, self._pack, self._unpack = number, pack, unpack

    def _encode(self, src: np.ndarray) -> bytes:
        if src.flags.c_contiguous:
            return self._pack(src)
        scratch = _borrow(self._nbytes)
        block = scratch[: self._nbytes].view(self.dtype).reshape(self._shape)
        _blocks.copy(src, block)
        payload = self._pack(block)
        _give_back(scratch)
        return payload

    def _decode(self, payload: Any, out: np.ndarray, start: Sequence[int], stream: bool) -> None:
        if out.shape == self._shape and out.flags.c_contiguous:
            self._unpack(payload, out)
            return
        scratch = _borrow(self._nbytes)
        block = scratch[: self._nbytes].view(self.dtype).reshape(self._shape)
        self._unpack(payload, block)
        _blocks.copy(self._window(block, out, start), out)
        _give_back(scratch)


class Label(Codec):
    """Label blocks, straight out of and into the strides of the caller's array."""

    id = 8

    def __init__(self, *args: Any):
        super().__init__(*args)
        shape = self.block_shape
        whole = len(shape) == 3 and not any(side % 8 or side > 1024 for side in shape)
        if self.dtype != np.uint64 or self.channels is not None or not whole:
            raise InvalidError(
                f"codec {self.spec!r} takes 3-D blocks of uint64 without channels, each side a"
                f" multiple of 8 up to 1024; got {self._shape} {self.dtype.name}"
            )

    def _encode(self, src: np.ndarray) -> bytes:
        return _codec.label_encode(src)

    def _decode(self, payload: Any, out: np.ndarray, start: Sequence[int], stream: bool) -> None:
        _codec.label_decode(payload, out, start, self.block_shape, stream)


class PackedLabel(Label):
    """Label blocks in compressed sections; `_packed` describes them."""

    def __init__(self, *args: Any, number: int, pack: Pack, unpack: Unpack):
        super().__init__(*args)
        self.id, self._pack, self._unpack = number, pack, unpack
        voxels = math.prod(self.block_shape)
        # Header; table of at most a label per voxel; per sub-block of 512 voxels a uint16 count;
        # at most an index (uint32) and 9 bits of packed value per voxel.
        self._most = 16 + 8 * voxels + 2 * (voxels // 512) + 4 * voxels + voxels // 8 * 9
        self._table = struct.Struct(f"<{3 + self.block_shape[0] // 8}I")

    def _encode(self, src: np.ndarray) -> bytes:
        size, sections = _packed.label_sections(src)
        packed = [self._pack(section) if section else b"" for section in sections]
        ends = itertools.accumulate(map(len, packed))
        return b"".join([self._table.pack(size, len(sections[0]), *ends), *packed])

    def _decode(self, payload: Any, out: np.ndarray, start: Sequence[int], stream: bool) -> None:
        data = memoryview(payload).cast("B")
        table = self._table.size
        size, head_size, *ends = self._table.unpack(bytes(data[:table]).ljust(table, b"\0"))
        if size > self._most or not 0 < head_size <= size:
            raise CorruptError(
                f"payload of codec {self.spec!r} is damaged: {len(data)} bytes announce a label"
                f" block of {size} with a head of {head_size}, at most {self._most} are possible"
            )
        if ends != sorted(ends) or ends[-1] != len(data) - table:
            raise CorruptError(
                f"payload of codec {self.spec!r} is damaged: its sections end at {ends},"
                f" of {len(data) - table} bytes"
            )
        packed = data[table:]
        scratch = _borrow(size)
        head, rest = scratch[:head_size], scratch[head_size:size]
        self._unpack(packed[: ends[0]], head)

        def values(layer: int, nbytes: int) -> Any:
            self._unpack(packed[ends[layer] : ends[layer + 1]], rest[:nbytes])
            return rest[:nbytes]

        _packed.sections_decode(head, size, values, out, start, self.block_shape, stream)
        _give_back(scratch)


class Foreign(Codec):
    """A codec registered by other code, its arguments checked like everybody's."""

    id = FOREIGN

    def __init__(self, *args: Any, made: Any):
        super().__init__(*args)
        self.lossy = bool(getattr(made, "lossy", False))
        self._made = made

    def _encode(self, src: np.ndarray) -> bytes:
        return bytes(self._made.encode(src))

    def _decode(self, payload: Any, out: np.ndarray, start: Sequence[int], stream: bool) -> None:
        self._made.decode(payload, out, tuple(start))


def _borrow(nbytes: int) -> np.ndarray:
    """Take this thread's scratch bytes, or fresh ones if too small or already in use."""
    scratch: np.ndarray | None = getattr(_local, "scratch", None)
    _local.scratch = None
    if scratch is None or scratch.size < nbytes:
        return np.empty(nbytes, np.uint8)
    return scratch


def _give_back(scratch: np.ndarray) -> None:
    if scratch.size <= KEPT_SCRATCH:
        _local.scratch = scratch
