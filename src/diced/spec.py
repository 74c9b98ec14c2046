"""What an array is: the description stored at its creation, checked once here.

Owns the rules for dtypes, block shapes, fills and codecs, and their JSON form.
"""

from __future__ import annotations

import enum
import math
import operator
from typing import Any

import numpy as np

from diced import codec as codecs
from diced import grid
from diced.errors import InvalidError, near_matches

# dtype name -> little-endian dtype string; the stored form never depends on the machine.
DTYPES = {
    name: np.dtype(name).newbyteorder("<").str
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    )
}  # fmt: skip

MAX_BLOCK_BYTES = 2**30
MAX_CHANNELS = 1024
CHECK_BYTES = 16 * 2**20
MAX_TEXT = 4096  # characters of what a commit says of itself


class ArrayDtype(enum.Enum):
    """The element types of arrays; ``.value`` is the numpy type. Plain dtypes serve as well."""

    bool = np.bool_
    int8 = np.int8
    int16 = np.int16
    int32 = np.int32
    int64 = np.int64
    uint8 = np.uint8
    uint16 = np.uint16
    uint32 = np.uint32
    uint64 = np.uint64
    float16 = np.float16
    float32 = np.float32
    float64 = np.float64


def check_text(what: str, text: Any) -> str:
    """Return text that is stored with a commit.

    Raises
    ------
    InvalidError
        It is no text, has more than `MAX_TEXT` characters, or no UTF-8 form.
    """
    if not isinstance(text, str):
        raise InvalidError(f"{what} is text; got {type(text).__name__} {text!r:.80}")
    if len(text) > MAX_TEXT:
        raise InvalidError(f"{what} has at most {MAX_TEXT} characters; got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{what} is not valid text: {text!r:.80}") from None
    return text


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the numpy dtype of an ArrayDtype, numpy type or name.

    Raises
    ------
    InvalidError
    """
    if isinstance(dtype, ArrayDtype):
        dtype = dtype.value
    try:
        if dtype is None:  # numpy takes it for float64
            raise TypeError
        found = np.dtype(dtype)
    except TypeError:
        raise InvalidError(
            f"dtype {dtype!r} is not known" + near_matches(str(dtype), DTYPES)
        ) from None
    if found.name not in DTYPES:
        raise InvalidError(
            f"dtype {found.name!r} cannot be stored; arrays hold {', '.join(DTYPES)}"
        )
    native: np.dtype[Any] = found.newbyteorder("=")
    return native


class ArraySpec:
    """The description of one array, the same at every version.

    Attributes
    ----------
    id : str
        Lane id, internal random hex.
    name, kind : str
    dtype : numpy.dtype or None
        None for keyvalue.
    dims : int
    block_shape : tuple of int
    channels : int or None
    fill : bytes
        One element, all channels.
    versioned, lossy : bool
    node : str
        Internal id of the node that created it.
    """

    __slots__ = (
        "block_nbytes", "block_shape", "channels", "codec", "dims", "dtype", "fields", "fill",
        "id", "kind", "lossy", "name", "node", "versioned",
    )  # fmt: skip

    def __init__(self, array_id: str, fields: dict[str, Any]):
        self.id = array_id
        self.fields = fields
        self.name: str = fields["name"]
        self.kind: str = fields["kind"]
        self.versioned: bool = fields["versioned"]
        self.node: str = fields["node"]
        self.dims: int = fields.get("dims", 0)
        self.block_shape: tuple[int, ...] = tuple(fields.get("block_shape", ()))
        self.channels: int | None = fields.get("channels")
        # Any: None only for keyvalue, whose code never looks at it.
        self.dtype: Any = np.dtype(fields["dtype"]) if "dtype" in fields else None
        self.codec: str = fields.get("codec", "")
        self.lossy = self.codec.startswith("jpeg")
        self.fill = bytes.fromhex(fields.get("fill", ""))
        self.block_nbytes = (
            codecs.block_nbytes(self.dtype, self.block_shape, self.channels)
            if self.dtype is not None
            else 0
        )

    @property
    def full_block_shape(self) -> tuple[int, ...]:
        """Shape of a block's array: the channel axis, if any, last."""
        return self.block_shape + ((self.channels,) if self.channels is not None else ())

    @property
    def fill_value(self) -> Any:
        """The fill as a numpy scalar, or an array of one value per channel."""
        values = np.frombuffer(self.fill, self.dtype)
        return values[0] if self.channels is None else values


def array_fields(
    name: str,
    dtype: Any = None,
    dims: int = 3,
    *,
    islabel3D: bool = False,
    lossycompression: bool = False,
    block_shape: Any = None,
    codec: str | None = None,
    fill: Any = 0,
    voxel_size: Any = None,
    units: Any = None,
    channels: int | None = None,
    kind: str = "image",
) -> dict[str, Any]:
    """Check the arguments of ``create_array`` and return the stored description of blocks.

    Raises
    ------
    InvalidError
    """
    label = islabel3D or kind == "label"
    dims = _count(name, "dims", dims, grid.MAX_DIMS)
    if dtype is None:
        dtype = ArrayDtype.uint64 if label else ArrayDtype.uint8
    element = check_dtype(dtype)
    if label and (dims != 3 or channels is not None):
        raise InvalidError(f"array {name!r}: label arrays are 3-D without channels")
    if label and element != np.uint64:
        raise InvalidError(f"array {name!r}: label arrays hold uint64; got {element.name}")
    if channels is not None:
        channels = _count(name, "channels", channels, MAX_CHANNELS)
    shape = (
        grid.default_block_shape(dims)
        if block_shape is None
        else grid.check_block_shape(block_shape, dims)
    )
    size = codecs.block_nbytes(element, shape, channels)
    if size > MAX_BLOCK_BYTES:
        raise InvalidError(
            f"array {name!r}: a block of shape {shape} has {size} bytes; at most {MAX_BLOCK_BYTES}"
        )
    if lossycompression and label:
        raise InvalidError(f"array {name!r}: labels cannot be compressed with loss")
    if codec is None:
        codec = "label+lz4" if label else "jpeg" if lossycompression else "lz4"
    if label != codec.startswith("label"):
        raise InvalidError(f"array {name!r}: codec {codec!r} does not suit kind {kind!r}")
    checked = codecs.get_codec(codec, element, shape, channels)
    return {
        "dtype": DTYPES[element.name],
        "dims": dims,
        "block_shape": list(shape),
        "channels": channels,
        "codec": checked.spec,
        "fill": _fill(name, fill, element, channels).hex(),
        "voxel_size": _per_axis(name, "voxel_size", voxel_size, dims, 1.0, float),
        "units": _per_axis(name, "units", units, dims, "", str),
    }


def _count(name: str, what: str, value: Any, most: int) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not 1 <= number <= most:
        raise InvalidError(f"array {name!r}: {what} is 1 to {most}; got {value!r}")
    return number


def _fill(name: str, fill: Any, dtype: np.dtype[Any], channels: int | None) -> bytes:
    values = np.asarray(fill)
    if values.shape not in ((), (channels,)):
        raise InvalidError(
            f"array {name!r}: fill is one value{'' if channels is None else ' per channel'};"
            f" got shape {values.shape}"
        )
    element = cast(values, dtype, f"array {name!r}: fill")
    return np.broadcast_to(element, (channels or 1,)).tobytes()


def _per_axis(name: str, what: str, value: Any, dims: int, default: Any, make: Any) -> list[Any]:
    if value is None:
        return [default] * dims
    items = [value] * dims if np.ndim(value) == 0 else list(value)
    if len(items) != dims:
        raise InvalidError(f"array {name!r}: {what} needs {dims} entries, ZYX; got {items}")
    try:
        found = [make(item) for item in items]
    except (TypeError, ValueError):
        raise InvalidError(f"array {name!r}: {what} {items} is not of {make.__name__}") from None
    if make is float and not all(math.isfinite(each) and each > 0 for each in found):
        raise InvalidError(f"array {name!r}: {what} is positive and finite; got {items}")
    return found


def cast(values: np.ndarray, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """Return `values` as `dtype`, refusing to change what they say.

    Widening and narrowing floats is allowed; an integer must fit, and a float stored as an
    integer must be whole.

    Raises
    ------
    InvalidError
    """
    if values.dtype == dtype:
        return values
    if values.dtype.kind not in "biuf":
        raise InvalidError(f"{what}: {values.dtype} values cannot be stored as {dtype.name}")
    if _always_fits(values.dtype, dtype):
        return values.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        result = values.astype(dtype)
        if values.dtype.kind == dtype.kind == "f":
            if np.any(np.isinf(result) & np.isfinite(values)):
                example = values[np.isinf(result) & np.isfinite(values)].flat[0]
                raise InvalidError(f"{what}: {example} is too large for {dtype.name}")
            return result
        # Back again, because a comparison of an integer with a float rounds the integer.
        kept = (result.astype(values.dtype) == values) & ((result < 0) == (values < 0))
        # Beyond the integers some processors saturate, and would come back equal.
        if values.dtype.kind == "f" and dtype.kind in "iu":
            kept &= values < 2.0 ** (dtype.itemsize * 8 - (dtype.kind == "i"))
        if values.dtype.kind in "iu" and dtype.kind == "f":
            kept &= result < 2.0 ** (values.dtype.itemsize * 8 - (values.dtype.kind == "i"))
    if not kept.all():
        raise InvalidError(
            f"{what}: {values.dtype} value {values[~kept].flat[0]} cannot be stored as {dtype.name}"
        )
    return result


def _always_fits(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Tell whether every value of one dtype may be stored as the other."""
    # numpy calls 64-bit integers to float64 safe, though above 2**53 they are rounded.
    rounds = given.kind in "iu" and given.itemsize == 8 and wanted.kind == "f"
    return np.can_cast(given, wanted, "safe") and not rounds


def check_values(values: np.ndarray, dtype: np.dtype[Any], what: str) -> None:
    """Raise what `cast` would raise, in bounded memory and before anything is written."""
    if values.dtype == dtype or (values.dtype.kind in "biuf" and _always_fits(values.dtype, dtype)):
        return
    if values.dtype.kind not in "biuf" or values.nbytes <= CHECK_BYTES:
        cast(values, dtype, what)
        return
    if values.shape[0] == 1:
        check_values(values[0], dtype, what)
        return
    middle = values.shape[0] // 2
    check_values(values[:middle], dtype, what)
    check_values(values[middle:], dtype, what)


def as_values(value: Any, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """Return what a user assigns as an array whose every value fits `dtype`.

    Arrays keep their dtype, to be cast block by block; lists and scalars have none of their own
    and are converted at once.

    Raises
    ------
    InvalidError
    """
    try:
        values = np.asarray(value)
        bare = dtype.kind in "iu" and not hasattr(value, "dtype")
        # numpy makes floats, or objects, of integers that share no type of 64 bits.
        if bare and (
            values.dtype.kind == "O"
            or (values.dtype.kind == "f" and bool(np.any(np.abs(values) >= 2.0**53)))
        ):
            exact = np.asarray(value, dtype=object)
            if all(isinstance(each, (int, np.integer)) for each in exact.flat):
                whole = [int(each) for each in exact.flat]
                values = np.array(whole, dtype).reshape(exact.shape)
                if [int(each) for each in values.flat] != whole:
                    raise OverflowError(f"an integer of {whole[:4]}... does not fit {dtype.name}")
    except (OverflowError, TypeError, ValueError) as error:
        raise InvalidError(f"{what}: {error}") from None
    check_values(values, dtype, what)
    return values if isinstance(value, (np.ndarray, np.generic)) else cast(values, dtype, what)
