"""Cuts boxes into blocks, names blocks by keys, and copies voxels between strided buffers.

Knows shapes, strides and item sizes; knows no dtype, codec or version.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memmove, memset

import numpy as np

from diced._strides cimport MAX_AXES, Plan, View, advance, arrange, copy_lines
from diced.errors import BadIndexError, InvalidError

cdef enum:
    MAX_DIMS = 8
    # Giving the GIL up and taking it again costs more than copying less than this.
    FREE_ABOVE = 4096
    # Side of the tiles of a transposing copy: 32 cache lines on each side stay in the first cache.
    TILE = 32

cdef int64_t LOWEST = -(<int64_t>1 << 31)
cdef int64_t HIGHEST = (<int64_t>1 << 31) - 1


# ---------------------------------------------------------------------------------- copy

cdef inline Py_ssize_t _magnitude(Py_ssize_t value) noexcept nogil:
    return -value if value < 0 else value


cdef void _copy_tiles(const char* src, char* dst, Plan* plan) noexcept nogil:
    """Copy the last two axes by tiles: the axis of short steps in `src` is not the one in `dst`.

    Each tile is turned in a small buffer, read along `src` and written along `dst`, because power
    of two strides would map its lines to one set of the cache (2 to 3 times slower).
    """
    cdef char tile[TILE * (TILE * 8 + 8)]
    cdef int p = plan.n - 2, q = plan.n - 1
    cdef Py_ssize_t item = plan.item, pitch = TILE * item + 8
    cdef Py_ssize_t i, j, k, rows, width
    cdef const char* a
    cdef char* b
    i = 0
    while i < plan.shape[p]:
        rows = min(<Py_ssize_t>TILE, plan.shape[p] - i)
        j = 0
        while j < plan.shape[q]:
            width = min(<Py_ssize_t>TILE, plan.shape[q] - j)
            a = src + i * plan.src[p] + j * plan.src[q]
            b = dst + i * plan.dst[p] + j * plan.dst[q]
            if item > 8:
                for k in range(rows):
                    copy_lines(
                        a + k * plan.src[p], b + k * plan.dst[p],
                        width, plan.src[q], plan.dst[q], item,
                    )
            else:
                for k in range(width):
                    copy_lines(
                        a + k * plan.src[q], tile + k * item, rows, plan.src[p], pitch, item
                    )
                for k in range(rows):
                    copy_lines(
                        tile + k * pitch, b + k * plan.dst[p], width, item, plan.dst[q], item
                    )
            j += TILE
        i += TILE


cdef void _copy(Plan* plan, const char* src, char* dst) noexcept nogil:
    cdef Py_ssize_t at[MAX_AXES]
    cdef Py_ssize_t size, a, b
    cdef int i, q, shortest
    if plan.n == 0:
        memmove(dst, src, plan.item)
        return
    memset(at, 0, sizeof(at))
    q = plan.n - 1
    shortest = q
    for i in range(q):
        if 0 < _magnitude(plan.src[i]) < _magnitude(plan.src[shortest]):
            shortest = i
    if shortest == q:
        while True:
            copy_lines(src, dst, plan.shape[q], plan.src[q], plan.dst[q], plan.item)
            if not advance(plan, at, q, &src, &dst):
                return
    size = plan.shape[shortest]
    a = plan.src[shortest]
    b = plan.dst[shortest]
    for i in range(shortest, q - 1):
        plan.shape[i] = plan.shape[i + 1]
        plan.src[i] = plan.src[i + 1]
        plan.dst[i] = plan.dst[i + 1]
    plan.shape[q - 1] = size
    plan.src[q - 1] = a
    plan.dst[q - 1] = b
    while True:
        _copy_tiles(src, dst, plan)
        if not advance(plan, at, q - 1, &src, &dst):
            return


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
            _copy(&plan, a, b)
        return 0
    with nogil:
        if arrange(&plan, &a, &b):
            _copy(&plan, a, b)
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
            _copy(&plan, a, b)
    return out


# ------------------------------------------------------------------------------- partition

cdef inline int64_t _floor(int64_t value, int64_t size) except? -1 nogil:
    # Operands of // are never negative, so C and Python division agree in both builds.
    if value >= 0:
        return value // size
    return -((size - 1 - value) // size)


cdef int _cut(
    const int64_t[::1] lo, const int64_t[::1] hi, const int64_t[::1] size, int64_t[:, ::1] coords,
    int64_t[:, ::1] begin, int64_t[:, ::1] count, int64_t[:, ::1] out, uint8_t[::1] whole,
) except -1 nogil:
    cdef int64_t at[MAX_DIMS]
    cdef int64_t base, first, stop
    cdef Py_ssize_t row
    cdef int k, n = <int>lo.shape[0]
    cdef bint full
    for k in range(n):
        at[k] = _floor(lo[k], size[k])
    for row in range(whole.shape[0]):
        full = True
        for k in range(n):
            base = at[k] * size[k]
            first = max(lo[k] - base, <int64_t>0)
            stop = min(hi[k] - base, size[k])
            coords[row, k] = at[k]
            begin[row, k] = first
            count[row, k] = stop - first
            out[row, k] = base + first - lo[k]
            if stop - first != size[k]:
                full = False
        whole[row] = full
        k = n - 1
        while k >= 0:
            at[k] += 1
            if at[k] * size[k] < hi[k]:
                break
            at[k] = _floor(lo[k], size[k])
            k -= 1
    return 0


def partition(lo, hi, block_shape):
    """Cut the box `lo` <= voxel < `hi` into the parts of blocks that it meets.

    Parameters
    ----------
    lo, hi : sequences of int
        1 to 8 coordinates in array axis order; voxels lie within int32, so `hi` is at most 2**31.
    block_shape : sequence of int
        Size of a block on each axis.

    Returns
    -------
    coords, begin, count, out : int64 arrays (blocks, dims)
        Block coordinates, start and size of the part inside its block, and its start inside the
        box. Rows are in C order.
    whole : uint8 array (blocks,)
        1 where the part is the whole block.

    Raises
    ------
    InvalidError
        Lengths differ, a size is below 1, or `lo` exceeds `hi`.
    BadIndexError
        A coordinate is outside int32.
    """
    cdef int64_t[:, ::1] table
    cdef int64_t a, b, c
    cdef int k, n = len(lo)
    if not 1 <= n <= MAX_DIMS or len(hi) != n or len(block_shape) != n:
        raise InvalidError(
            f"a box has 1 to {MAX_DIMS} dimensions, the same as its blocks;"
            f" got {tuple(lo)} to {tuple(hi)} in blocks of {tuple(block_shape)}"
        )
    for k in range(n):
        if not 1 <= block_shape[k] <= 2**31:
            raise InvalidError(f"block sizes are 1 to 2**31; got {tuple(block_shape)}")
        if lo[k] > hi[k]:
            raise InvalidError(
                f"a box ends where it starts or after; got {tuple(lo)} to {tuple(hi)}"
            )
        if lo[k] < LOWEST or hi[k] > HIGHEST + 1:
            raise BadIndexError(
                f"coordinates are signed 32-bit; got the box {tuple(lo)} to {tuple(hi)}"
            )
    table = np.array((lo, hi, block_shape), np.int64)
    rows = 1
    for k in range(n):
        a, b, c = table[0, k], table[1, k], table[2, k]
        rows *= _floor(b - 1, c) - _floor(a, c) + 1 if b > a else 0
    if rows > HIGHEST:
        raise InvalidError(
            f"the box {tuple(lo)} to {tuple(hi)} meets {rows} blocks: too many at once"
        )
    coords = np.empty((rows, n), np.int64)
    begin = np.empty((rows, n), np.int64)
    count = np.empty((rows, n), np.int64)
    out = np.empty((rows, n), np.int64)
    whole = np.empty(rows, np.uint8)
    cdef int64_t[:, ::1] to_coords = coords, to_begin = begin, to_count = count, to_out = out
    cdef uint8_t[::1] to_whole = whole
    with nogil:
        _cut(table[0], table[1], table[2], to_coords, to_begin, to_count, to_out, to_whole)
    return coords, begin, count, out, whole


# ---------------------------------------------------------------------------------- morton

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


cdef Py_ssize_t _interleave(const int64_t[:, ::1] coords, uint8_t[:, ::1] keys) except -2 nogil:
    """Write the keys; return the row of a coordinate outside int32, or -1."""
    cdef int n = <int>coords.shape[1]
    cdef int axis, place, i
    cdef Py_ssize_t row
    cdef int64_t value
    cdef uint64_t word
    for row in range(coords.shape[0]):
        for axis in range(n):
            value = coords[row, axis]
            if value < LOWEST or value > HIGHEST:
                return row
        for place in range(4):
            word = 0
            for axis in range(n):
                value = coords[row, axis] - LOWEST
                word |= _spread[n][(value >> (24 - 8 * place)) & 255] << (n - 1 - axis)
            for i in range(n):
                keys[row, place * n + i] = (word >> (8 * (n - 1 - i))) & 255
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
        Each coordinate plus 2**31, bits interleaved from the highest, axis 0 first, big-endian.

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
