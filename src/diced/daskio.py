"""Dask arrays: reading boxes as chunks of whole blocks, and storing chunks through a session.

Dask is imported when it is needed. What goes into its graphs is pickled by location.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from diced import grid
from diced.errors import BadIndexError, InvalidError
from diced.extras import need

if TYPE_CHECKING:
    from diced.array import DicedArray
    from diced.session import WriteSession
    from diced.spec import ArraySpec

# A chunk is at most this, and more than half of it where the array has so much. Large enough that
# a task is worth its overhead, small enough that a worker holds several.
CHUNK_BYTES = 128 * 2**20

# Of `dask.array.store`, given here or without a meaning here.
FIXED = ("compute", "load_stored", "lock", "regions", "return_stored", "sources", "targets")


class Window:
    """A box of an array as dask sees arrays: counted from 0, of one shape.

    Parameters
    ----------
    array : DicedArray
    lo : tuple of int
    shape : tuple of int
        Channels last.
    """

    def __init__(self, array: DicedArray, lo: tuple[int, ...], shape: tuple[int, ...]):
        self.array = array
        self.lo = lo
        self.shape = shape
        self.dtype = array.dtype
        self.ndim = len(shape)

    def __getitem__(self, index: Any) -> Any:
        items = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items[at : at + 1] = [slice(None)] * (self.ndim - len(items) + 1)
        items += [slice(None)] * (self.ndim - len(items))
        lo = (*self.lo, *[0] * (self.ndim - len(self.lo)))
        moved = tuple(map(_moved, items, lo, self.shape))
        return self.array.read(moved)

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, token(self.array), self.lo, self.shape


def _moved(item: Any, low: int, size: int) -> Any:
    """Return an index counted from 0 as one of coordinates."""
    if not isinstance(item, slice):
        number = operator.index(item)
        return low + (number + size if number < 0 else number)
    places = range(size)[item]
    if not places:
        return slice(low, low)
    return slice(low + places[0], low + places[-1] + (1 if places.step > 0 else -1), places.step)


def token(array: DicedArray) -> Any:
    """Return what tells the content of an array's version from others."""
    blocks = array._blocks()
    lane, state = blocks.lane, blocks.lane.refresh()
    number = None if state.locked else state.number
    return "diced", array._repo.store.uuid, array._repo.root, lane.id, lane.node_id, number


def read(array: DicedArray, index: Any, chunks: Any) -> Any:
    """Return a dask array of a selection; see `DicedArray.to_dask`."""
    dask = need("dask")
    spec = array._spec
    box = array._blocks().lane.refresh().box
    chosen = grid.Selection(index, box, spec.block_shape, spec.name, spec.channels)
    sizes = tuple(b - a for a, b in zip(chosen.lo, chosen.hi, strict=True))
    tail = () if spec.channels is None else (spec.channels,)
    window = Window(array, chosen.lo, sizes + tail)
    if chunks is None or _is_size(chunks):
        most = CHUNK_BYTES if chunks is None else _size(chunks)
        shape = chunk_shape(spec, sizes, most)
        chunks = tuple(map(_cuts, chosen.lo, sizes, spec.block_shape, shape))
        chunks += tuple((each,) for each in tail)
    found = dask.from_array(
        window,
        chunks=chunks,
        asarray=False,
        fancy=False,
        inline_array=True,
        meta=np.empty((0,) * window.ndim, spec.dtype),
    )
    steps = tuple(slice(None, None, each) for each in chosen.step)
    if any(each > 1 for each in chosen.step):
        found = found[steps]
    if chosen.flip is not None:
        found = found[chosen.flip]
    if chosen.squeeze or tail:
        picked = tuple(
            0 if axis in chosen.squeeze else slice(None) for axis in range(len(chosen.shape))
        )
        found = found[(*picked, chosen.channel)] if tail else found[picked]
    return found


def chunk_shape(spec: ArraySpec, sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the shape of chunks of whole blocks of at most `most` bytes, or of one block."""
    shape = list(spec.block_shape)
    nbytes = spec.block_nbytes
    while 2 * nbytes <= most:
        # Blocks may begin before the box, so a chunk may be a little longer than it.
        short = [axis for axis in range(len(shape)) if shape[axis] < sizes[axis]]
        if not short:
            break
        axis = min(short, key=lambda each: (shape[each], -each))
        shape[axis] *= 2
        nbytes *= 2
    return tuple(shape)


def _cuts(lo: int, size: int, block: int, chunk: int) -> tuple[int, ...]:
    """Return the sizes of chunks of an axis, cut at borders of blocks."""
    first = lo // block * block
    edges = [lo, *range(first + chunk, lo + size, chunk), lo + size]
    return tuple(b - a for a, b in itertools.pairwise(edges))


def _is_size(chunks: Any) -> bool:
    return isinstance(chunks, str) and chunks != "auto"


def _size(text: str) -> int:
    number = text.strip().lower()
    for unit, factor in (("kib", 2**10), ("mib", 2**20), ("gib", 2**30)):
        if number.endswith(unit):
            try:
                size = int(float(number.removesuffix(unit)) * factor)
            except (ValueError, OverflowError):
                break
            if size < 1:
                break
            return size
    raise InvalidError(f"the size of chunks is a positive number of KiB, MiB or GiB; got {text!r}")


# -- storing -------------------------------------------------------------------------------


class Place:
    """Where in a session a dask array is stored: takes assignments counted from 0."""

    def __init__(self, session: WriteSession, at: tuple[int, ...]):
        self.session = session
        self.at = at

    def __setitem__(self, index: tuple[slice, ...], value: Any) -> None:
        moved = tuple(
            slice(each.start + low, each.stop + low)
            for each, low in zip(index, self.at, strict=True)
        )
        self.session.write(moved, value)

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self.session.__dask_tokenize__(), self.at


def store(
    session: WriteSession, source: Any, at: Any, align: bool, compute: dict[str, Any]
) -> None:
    """Store a dask array through a session; see `WriteSession.store`."""
    dask = need("dask")
    array = session.array
    spec = array._spec
    what = f"array {spec.name!r}"
    for each in FIXED:
        if each in compute:
            raise InvalidError(
                f"{what}: the option {each!r} cannot be given; dask arrays are stored without a"
                " lock, and when the call returns"
            )
    if not isinstance(source, dask.Array):
        raise InvalidError(f"{what}: a dask array is stored; got {type(source).__name__}")
    if source.ndim != array.ndim:
        raise InvalidError(f"{what} has {array.ndim} dimensions; got a dask array of {source.ndim}")
    if any(math.isnan(each) for each in source.shape):
        raise InvalidError(f"{what}: the dask array has chunks of unknown size; compute them first")
    if spec.channels is not None and source.shape[-1] != spec.channels:
        raise InvalidError(f"{what} has {spec.channels} channels; got {source.shape[-1]}")
    low = _corner(at, spec.dims, what, source.shape)
    if not source.size:
        return
    if align:
        source = _aligned(source, low, spec)
    place = Place(session, low + (0,) * (source.ndim - spec.dims))
    dask.store(source, place, lock=False, compute=True, **compute)


def _corner(at: Any, dims: int, what: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        low = (0,) * dims if at is None else tuple(operator.index(each) for each in at)
    except TypeError:
        raise InvalidError(f"{what}: 'at' is a sequence of integers; got {at!r}") from None
    if len(low) != dims:
        raise BadIndexError(f"{what}: 'at' needs {dims} coordinates, one per axis; got {low}")
    for first, size in zip(low, shape, strict=False):
        if first < grid.MIN_COORDINATE or first + size > grid.MAX_COORDINATE + 1:
            raise BadIndexError(
                f"{what}: coordinates are signed 32-bit; got {first} to {first + size - 1}"
            )
    return low


def _aligned(source: Any, low: tuple[int, ...], spec: ArraySpec) -> Any:
    """Rechunk so that no border inside the array cuts a block."""
    straight = all(
        not (first + edge) % block
        for first, sizes, block in zip(low, source.chunks, spec.block_shape, strict=False)
        for edge in np.cumsum(sizes)[:-1].tolist()
    )
    if straight and all(len(each) == 1 for each in source.chunks[spec.dims :]):
        return source
    element = spec.block_nbytes // math.prod(spec.block_shape)
    most = max(CHUNK_BYTES, element * math.prod(source.chunksize[: spec.dims]))
    # About as long as the chunks there are, in whole blocks, unless that makes them too large.
    counts = [
        max(1, round(chunk / block))
        for chunk, block in zip(source.chunksize, spec.block_shape, strict=False)
    ]
    while math.prod(counts) * spec.block_nbytes > most and max(counts) > 1:
        axis = max(range(spec.dims), key=counts.__getitem__)
        counts[axis] = -(-counts[axis] // 2)
    chunks = tuple(
        _cuts(first, size, block, block * count)
        for first, size, block, count in zip(
            low, source.shape, spec.block_shape, counts, strict=False
        )
    )
    return source.rechunk(chunks + tuple((each,) for each in source.shape[spec.dims :]))
