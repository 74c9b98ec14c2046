"""Cuts boxes of voxels into blocks in key order, turns block coordinates into keys, copies voxels.

A key is a block's coordinates plus 2**31, bits interleaved from the highest, axis 0 first,
big-endian: its order as bytes is the Morton order of places. Copies know shapes, strides and item
sizes; nothing here knows a dtype, codec or version.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

import numpy as np

from diced._strides cimport Plan, View, arrange, copy_plan
from diced.errors import BadIndexError, InvalidError

cdef enum:
    MAX_DIMS = 8
    # Giving the GIL up and taking it again costs more than cutting out fewer blocks than this.
    FREE_BLOCKS = 64
    # The same for copying fewer bytes than this.
    FREE_ABOVE = 4096

cdef int64_t LOWEST = -(<int64_t>1 << 31)
cdef int64_t HIGHEST = (<int64_t>1 << 31) - 1

cdef object _empty = np.empty
cdef object _int64 = np.dtype(np.int64)


# ------------------------------------------------------------------------------------ keys

# _spread[n][byte]: bit i of the byte at bit i * n, for keys of n dimensions.
cdef uint64_t _spread[MAX_DIMS + 1][256]


cdef void _make_spread() noexcept:
    cdef int n, byte, i
    for n in range(1, MAX_DIMS + 1):
        for byte in range(256):
            _spread[n][byte] = 0
            for i in range(8):
                _spread[n][byte] |= <uint64_t>((byte >> i) & 1) << (i * n)


_make_spread()


cdef inline void _key(const uint32_t* biased, int n, uint8_t* key) noexcept nogil:
    """Write the 4 * n bytes of the key of one block."""
    cdef uint64_t word
    cdef int axis, place, i
    for place in range(4):
        word = 0
        for axis in range(n):
            word |= _spread[n][(biased[axis] >> (24 - 8 * place)) & 255] << (n - 1 - axis)
        for i in range(n):
            key[place * n + i] = (word >> (8 * (n - 1 - i))) & 255


cdef Py_ssize_t _interleave(const int64_t[:, ::1] coords, uint8_t[:, ::1] keys) except -2 nogil:
    """Write the keys; return the row of a coordinate outside int32, or -1."""
    cdef uint32_t biased[MAX_DIMS]
    cdef int axis, n = <int>coords.shape[1]
    cdef Py_ssize_t row
    for row in range(coords.shape[0]):
        for axis in range(n):
            if coords[row, axis] < LOWEST or coords[row, axis] > HIGHEST:
                return row
            biased[axis] = <uint32_t>(coords[row, axis] - LOWEST)
        _key(biased, n, &keys[row, 0])
    return -1


cdef int _separate(const uint8_t[:, ::1] keys, int64_t[:, ::1] coords) except -1 nogil:
    cdef int n = <int>coords.shape[1]
    cdef int axis, place, i
    cdef Py_ssize_t row
    cdef uint64_t word, byte
    for row in range(coords.shape[0]):
        for axis in range(n):
            coords[row, axis] = LOWEST
        for place in range(4):
            word = 0
            for i in range(n):
                word = (word << 8) | keys[row, place * n + i]
            for axis in range(n):
                byte = 0
                for i in range(8):
                    byte |= ((word >> (i * n + n - 1 - axis)) & 1) << i
                coords[row, axis] += <int64_t>(byte << (24 - 8 * place))
    return 0


def morton(const int64_t[:, ::1] coords):
    """Return the keys of block coordinates, whose order as bytes is the Morton order.

    Parameters
    ----------
    coords : C-contiguous int64 array (blocks, dims)
        1 to 8 dimensions, values within int32.

    Returns
    -------
    uint8 array (blocks, 4 * dims)

    Raises
    ------
    BadIndexError
        A coordinate is outside int32.
    """
    cdef Py_ssize_t bad
    if not 1 <= coords.shape[1] <= MAX_DIMS:
        raise InvalidError(f"keys have 1 to {MAX_DIMS} dimensions; got {coords.shape[1]}")
    keys = np.empty((coords.shape[0], 4 * coords.shape[1]), np.uint8)
    cdef uint8_t[:, ::1] to_keys = keys
    with nogil:
        bad = _interleave(coords, to_keys)
    if bad >= 0:
        raise BadIndexError(
            f"block coordinates are signed 32-bit; got {tuple(np.asarray(coords[bad]).tolist())}"
        )
    return keys


def unmorton(const uint8_t[:, ::1] keys, int ndim):
    """Return the block coordinates of `keys`: the reverse of `morton`.

    Parameters
    ----------
    keys : C-contiguous uint8 array (blocks, 4 * ndim)
    ndim : int
        1 to 8.

    Returns
    -------
    int64 array (blocks, ndim)
    """
    if not 1 <= ndim <= MAX_DIMS or keys.shape[1] != 4 * ndim:
        raise InvalidError(
            f"keys of {ndim} dimensions have {4 * ndim} bytes (1 to {MAX_DIMS} dimensions);"
            f" got {keys.shape[1]}"
        )
    coords = np.empty((keys.shape[0], ndim), np.int64)
    cdef int64_t[:, ::1] to_coords = coords
    with nogil:
        _separate(keys, to_coords)
    return coords


# ------------------------------------------------------------------------------------- cut

cdef struct Walk:
    # What is left to visit: biased block coordinates, both ends included.
    uint32_t low[MAX_DIMS]
    uint32_t high[MAX_DIMS]
    # The box of voxels, and the size of a block.
    int64_t lo[MAX_DIMS]
    int64_t hi[MAX_DIMS]
    int64_t size[MAX_DIMS]
    int64_t origin[MAX_DIMS]
    int n
    Py_ssize_t row
    Py_ssize_t rows
    int64_t* table
    uint8_t* whole
    uint8_t* keys


cdef int _emit(Walk* walk) except -1 nogil:
    """Write the row of the one block that is left."""
    cdef int k, n = walk.n
    cdef int64_t base, first, count
    cdef int64_t* begin = walk.table + walk.row * 3 * n
    cdef bint full = True
    if walk.row >= walk.rows:
        with gil:
            raise IndexError("a cut has more blocks than were counted")
    for k in range(n):
        base = (<int64_t>walk.low[k] + LOWEST) * walk.size[k]
        first = max(walk.lo[k] - base, <int64_t>0)
        count = min(walk.hi[k] - base, walk.size[k]) - first
        begin[k] = first
        begin[n + k] = count
        begin[2 * n + k] = base + first - walk.origin[k]
        if count != walk.size[k]:
            full = False
    walk.whole[walk.row] = full
    _key(walk.low, n, walk.keys + walk.row * 4 * n)
    walk.row += 1
    return 0


cdef int _visit(Walk* walk) except -1 nogil:
    """Visit the blocks that are left in key order, and leave `walk` as it was.

    The highest bit in which keys differ is the highest in which a coordinate's ends differ; the
    blocks without it come before those with it. So a box is halved there, at most 32 * dims deep,
    and nothing needs to be sorted.
    """
    cdef uint32_t differ, most = 0, old, middle
    cdef int k, axis = -1
    for k in range(walk.n):
        differ = walk.low[k] ^ walk.high[k]
        # True where the highest bit of `differ` is above that of `most`.
        if most < differ and most < (most ^ differ):
            most = differ
            axis = k
    if axis < 0:
        return _emit(walk)
    most |= most >> 1
    most |= most >> 2
    most |= most >> 4
    most |= most >> 8
    most |= most >> 16
    middle = walk.high[axis] & ~(most >> 1)
    old = walk.high[axis]
    walk.high[axis] = middle - 1
    _visit(walk)
    walk.high[axis] = old
    old = walk.low[axis]
    walk.low[axis] = middle
    _visit(walk)
    walk.low[axis] = old
    return 0


cdef inline int64_t _floor(int64_t value, int64_t size) except? -1 nogil:
    # Operands of // are never negative, so C and Python division agree in both builds.
    if value >= 0:
        return value // size
    return -((size - 1 - value) // size)


cdef int64_t _prepare(Walk* walk, tuple lo, tuple hi, tuple block_shape) except -1:
    """Check a box, fill in what is to be visited, and return how many blocks: at most 2**31."""
    cdef int64_t a, b, size, rows = 1
    cdef int k, n = <int>len(lo)
    cdef bint empty = False
    if not 1 <= n <= MAX_DIMS or len(hi) != n or len(block_shape) != n:
        raise InvalidError(
            f"a box has 1 to {MAX_DIMS} dimensions, the same as its blocks;"
            f" got {lo} to {hi} in blocks of {block_shape}"
        )
    for k in range(n):
        try:
            size = block_shape[k]
        except OverflowError:
            size = 0
        if not 1 <= size <= HIGHEST + 1:
            raise InvalidError(f"block sizes are 1 to 2**31; got {block_shape}")
        try:
            a, b = lo[k], hi[k]
        except OverflowError:
            a, b = LOWEST - 1, HIGHEST
        if a > b:
            raise InvalidError(f"a box ends where it starts or after; got {lo} to {hi}")
        if a < LOWEST or b > HIGHEST + 1:
            raise BadIndexError(f"coordinates are signed 32-bit; got the box {lo} to {hi}")
        walk.lo[k] = walk.origin[k] = a
        walk.hi[k] = b
        walk.size[k] = size
        if a == b:
            empty = True
            continue
        a, b = _floor(a, size), _floor(b - 1, size)
        walk.low[k], walk.high[k] = <uint32_t>(a - LOWEST), <uint32_t>(b - LOWEST)
        b -= a - 1
        rows = rows * b if rows <= HIGHEST // b else HIGHEST + 1
    walk.n = n
    return 0 if empty else rows


def count(lo, hi, block_shape):
    """Return how many blocks a box meets, at most 2**31; parameters and errors are `cut`'s."""
    cdef Walk walk
    return _prepare(&walk, tuple(lo), tuple(hi), tuple(block_shape))


def cut(lo, hi, block_shape, origin=None):
    """Cut the box `lo` <= voxel < `hi` into the parts of blocks that it meets, in key order.

    Parameters
    ----------
    lo, hi : sequences of int
        1 to 8 coordinates in array axis order; voxels lie within int32, so `hi` is at most 2**31.
    block_shape : sequence of int
        Size of a block on each axis.
    origin : sequence of int, optional
        Voxel from which places are counted; `lo` without it.

    Returns
    -------
    keys : list of bytes
        Ascending.
    table : C-contiguous int64 array (blocks, 3, dims)
        Start of the part inside its block, its size, and its start seen from `origin`.
    whole : bytes
        1 where the part is the whole block, else 0.

    Raises
    ------
    InvalidError
        Lengths differ, a size is below 1, `lo` exceeds `hi`, or there are 2**31 blocks.
    BadIndexError
        A coordinate is outside int32.
    """
    cdef Walk walk
    cdef Py_buffer buffer
    cdef bytes whole, flat
    cdef const char* at
    cdef Py_ssize_t row, width
    cdef int k
    walk.row = 0
    walk.rows = _prepare(&walk, tuple(lo), tuple(hi), tuple(block_shape))
    if walk.rows > HIGHEST:
        raise InvalidError(f"the box {lo} to {hi} meets more than 2**31 - 1 blocks at once")
    if origin is not None:
        if len(origin) != walk.n:
            raise InvalidError(f"the origin of {lo} to {hi} has as many axes; got {origin}")
        for k in range(walk.n):
            walk.origin[k] = origin[k]
    width = 4 * walk.n
    table = _empty((walk.rows, 3, walk.n), _int64)
    whole = PyBytes_FromStringAndSize(NULL, walk.rows)
    flat = PyBytes_FromStringAndSize(NULL, walk.rows * width)
    if not walk.rows:
        return [], table, whole
    walk.whole = <uint8_t*>PyBytes_AS_STRING(whole)
    walk.keys = <uint8_t*>PyBytes_AS_STRING(flat)
    PyObject_GetBuffer(table, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    try:
        walk.table = <int64_t*>buffer.buf
        if walk.rows <= FREE_BLOCKS:
            _visit(&walk)
        else:
            with nogil:
                _visit(&walk)
    finally:
        PyBuffer_Release(&buffer)
    if walk.rows == 1:
        return [flat], table, whole
    at = PyBytes_AS_STRING(flat)
    keys = []
    for row in range(walk.rows):
        keys.append(PyBytes_FromStringAndSize(at + row * width, width))
    return keys, table, whole


# ---------------------------------------------------------------------------------- copies

cdef int _move(View src, View dst) except -1:
    """Copy between views; shapes and item sizes are compared here, in every build."""
    cdef Plan plan
    cdef char* a = <char*>src.buffer.buf
    cdef char* b = <char*>dst.buffer.buf
    cdef int i
    if src.buffer.ndim != dst.buffer.ndim or src.buffer.itemsize != dst.buffer.itemsize:
        raise InvalidError(
            f"copy needs equal shapes and item sizes; got {src.shape()} of"
            f" {src.buffer.itemsize} bytes into {dst.shape()} of {dst.buffer.itemsize}"
        )
    plan.n = src.buffer.ndim
    plan.item = src.buffer.itemsize
    for i in range(plan.n):
        if src.buffer.shape[i] != dst.buffer.shape[i]:
            raise InvalidError(
                f"copy needs equal shapes; got {src.shape()} into {dst.shape()}"
            )
        plan.shape[i] = src.buffer.shape[i]
        plan.src[i] = src.buffer.strides[i]
        plan.dst[i] = dst.buffer.strides[i]
    if src.buffer.len <= FREE_ABOVE:
        if arrange(&plan, &a, &b):
            copy_plan(&plan, a, b)
        return 0
    with nogil:
        if arrange(&plan, &a, &b):
            copy_plan(&plan, a, b)
    return 0


def copy(src, dst):
    """Copy `src` into `dst`.

    Parameters
    ----------
    src, dst : buffers of equal shape and item size
        Up to 9 axes, items of 1 to 64 bytes, any strides. They must not overlap.

    Raises
    ------
    InvalidError
        Shapes or item sizes differ, `dst` is read-only, or an argument is no strided buffer.
    """
    _move(View(src, "src", False), View(dst, "dst", True))


def gather(src):
    """Return the items of a strided buffer as bytes, in C order.

    Parameters
    ----------
    src : buffer
        Up to 9 axes, items of 1 to 64 bytes, any strides.
    """
    cdef View view = View(src, "src", False)
    cdef Plan plan
    cdef Py_ssize_t step = view.buffer.itemsize
    cdef char* a = <char*>view.buffer.buf
    cdef char* b
    cdef int i
    out = PyBytes_FromStringAndSize(NULL, view.buffer.len)
    b = PyBytes_AS_STRING(out)
    plan.n = view.buffer.ndim
    plan.item = step
    for i in range(plan.n - 1, -1, -1):
        plan.shape[i] = view.buffer.shape[i]
        plan.src[i] = view.buffer.strides[i]
        plan.dst[i] = step
        step *= view.buffer.shape[i]
    with nogil:
        if arrange(&plan, &a, &b):
            copy_plan(&plan, a, b)
    return out
