"""The shape of a block as kernels hold it. What runs per block is inline in ``_frame.pxd``."""

from diced.errors import InvalidError


cdef int describe(Geometry* geometry, lane, Py_ssize_t item, shape, channels) except -1:
    """Fill a geometry; the arguments are checked, since every loop is bounded by them."""
    cdef bytes name = lane
    cdef const uint8_t* raw = name
    cdef int axis
    geometry.dims = len(shape)
    geometry.axes = geometry.dims + (channels is not None)
    if len(name) != 8 or not 1 <= geometry.dims <= 8 or not 1 <= item <= 64:
        raise InvalidError(
            f"a block has 1 to 8 axes and items of 1 to 64 bytes, in a lane of 8 bytes; got"
            f" {tuple(shape)}, {item} and {lane!r}"
        )
    memcpy(geometry.lane, raw, 8)
    geometry.key_size = 4 * geometry.dims
    geometry.item = geometry.nbytes = item
    for axis, size in enumerate((*shape, *(() if channels is None else (channels,)))):
        if not 1 <= size <= 1 << 31 or geometry.nbytes > (1 << 32) // size:
            raise InvalidError(f"a block is smaller than 4 GiB; got {tuple(shape)}, {channels}")
        geometry.shape[axis] = size
        geometry.nbytes *= size
    return 0
