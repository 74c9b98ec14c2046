"""Moves voxels between strided buffers, tests and fills blocks, and cuts boxes into blocks.

Knows shapes, strides and item sizes; knows no dtype, codec, key or version. Every buffer is
described by its own ``Py_buffer``, and every loop is bounded by the shape found there.
"""

from cpython.buffer cimport (
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

import numpy as np

from diced.errors import BadIndexError, InvalidError

# Eight block dimensions and a channel axis.
cdef enum:
    MAX_AXES = 9
    MAX_DIMS = 8
    MAX_ITEM = 64
    # Giving the GIL up and taking it again costs more than copying less than this.
    FREE_ABOVE = 4096
    # Side of the tiles of a transposing copy: 32 cache lines on each side stay in the first cache.
    TILE = 32
    # A long row is filled in pieces of this many bytes, so that their source stays in the cache.
    PATTERN = 16384

cdef int64_t LOWEST = -(<int64_t>1 << 31)
cdef int64_t HIGHEST = (<int64_t>1 << 31) - 1


# Axes of a walk over one or two buffers, outermost first. `item` bytes lie together on both sides.
cdef struct Plan:
    int n
    Py_ssize_t item
    Py_ssize_t shape[MAX_AXES]
    Py_ssize_t src[MAX_AXES]
    Py_ssize_t dst[MAX_AXES]


cdef class _View:
    """A held buffer: shape, strides and item size of any exporter, at most nine axes."""

    cdef Py_buffer buffer
    cdef bint held

    def __cinit__(self, obj, str what, bint writable):
        cdef int flags = PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0)
        try:
            PyObject_GetBuffer(obj, &self.buffer, flags)
        except (BufferError, TypeError, ValueError) as error:
            raise InvalidError(
                f"{what} must be a{' writable' if writable else ''} strided buffer;"
                f" got {type(obj).__name__} ({error})"
            ) from None
        self.held = True
        if self.buffer.ndim > MAX_AXES:
            raise InvalidError(
                f"{what} has {self.buffer.ndim} axes; at most {MAX_AXES} are possible"
            )
        if not 1 <= self.buffer.itemsize <= MAX_ITEM:
            raise InvalidError(
                f"{what} has items of {self.buffer.itemsize} bytes; 1 to {MAX_ITEM} are possible"
            )

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)

    cdef tuple shape(self):
        return tuple([self.buffer.shape[i] for i in range(self.buffer.ndim)])


cdef inline Py_ssize_t _magnitude(Py_ssize_t value) noexcept nogil:
    return -value if value < 0 else value


cdef bint _arrange(Plan* plan, char** src, char** dst) noexcept nogil:
    """Reorder, flip, merge and fold axes without changing what is visited; False: nothing is.

    Afterwards the last axis has the shortest step in `dst`, no step in `dst` is negative, and
    whatever lies together on both sides is part of the item.
    """
    cdef int i, k, n = 0
    cdef Py_ssize_t size, a, b
    for i in range(plan.n):
        size = plan.shape[i]
        a = plan.src[i]
        b = plan.dst[i]
        if size <= 0:
            return False
        if size == 1:
            continue
        if b < 0:
            src[0] += a * (size - 1)
            dst[0] += b * (size - 1)
            a = -a
            b = -b
        k = n
        while k > 0 and plan.dst[k - 1] < b:
            plan.shape[k] = plan.shape[k - 1]
            plan.src[k] = plan.src[k - 1]
            plan.dst[k] = plan.dst[k - 1]
            k -= 1
        plan.shape[k] = size
        plan.src[k] = a
        plan.dst[k] = b
        n += 1
    # Merge an axis into the one inside it where the two make one even stride on both sides.
    k = 0
    for i in range(n):
        if (
            k > 0
            and plan.src[k - 1] == plan.src[i] * plan.shape[i]
            and plan.dst[k - 1] == plan.dst[i] * plan.shape[i]
        ):
            k -= 1
            plan.shape[k] *= plan.shape[i]
        else:
            plan.shape[k] = plan.shape[i]
        plan.src[k] = plan.src[i]
        plan.dst[k] = plan.dst[i]
        k += 1
    n = k
    if n and plan.src[n - 1] == plan.item and plan.dst[n - 1] == plan.item:
        n -= 1
        plan.item *= plan.shape[n]
    plan.n = n
    return True


cdef inline bint _step(
    Plan* plan, Py_ssize_t* at, int outer, const char** src, char** dst
) noexcept nogil:
    """Advance over the first `outer` axes; False after the last position."""
    cdef int k = outer - 1
    while k >= 0:
        at[k] += 1
        src[0] += plan.src[k]
        dst[0] += plan.dst[k]
        if at[k] < plan.shape[k]:
            return True
        src[0] -= plan.src[k] * plan.shape[k]
        dst[0] -= plan.dst[k] * plan.shape[k]
        at[k] = 0
        k -= 1
    return False


# ---------------------------------------------------------------------------------- copy
# `item` is a constant at most calls of the inline loops below, so that memcpy and memcmp of it
# become single moves: 4,096 rows of 64 bytes take less than half the time of library calls.

cdef inline void _copy_line(
    const char* src, char* dst, Py_ssize_t size, Py_ssize_t a, Py_ssize_t b, size_t item
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        memcpy(dst + i * b, src + i * a, item)


cdef void _copy_lines(
    const char* src, char* dst, Py_ssize_t size, Py_ssize_t a, Py_ssize_t b, Py_ssize_t item
) noexcept nogil:
    cdef Py_ssize_t i
    if item == 1:
        _copy_line(src, dst, size, a, b, 1)
    elif item == 2:
        _copy_line(src, dst, size, a, b, 2)
    elif item == 4:
        _copy_line(src, dst, size, a, b, 4)
    elif item == 8:
        _copy_line(src, dst, size, a, b, 8)
    elif item == 16:
        _copy_line(src, dst, size, a, b, 16)
    elif item == 32:
        _copy_line(src, dst, size, a, b, 32)
    elif item == 64:
        _copy_line(src, dst, size, a, b, 64)
    else:
        for i in range(size):
            memmove(dst + i * b, src + i * a, item)


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
                    _copy_lines(
                        a + k * plan.src[p], b + k * plan.dst[p],
                        width, plan.src[q], plan.dst[q], item,
                    )
            else:
                for k in range(width):
                    _copy_lines(
                        a + k * plan.src[q], tile + k * item, rows, plan.src[p], pitch, item
                    )
                for k in range(rows):
                    _copy_lines(
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
            _copy_lines(src, dst, plan.shape[q], plan.src[q], plan.dst[q], plan.item)
            if not _step(plan, at, q, &src, &dst):
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
        if not _step(plan, at, q - 1, &src, &dst):
            return


cdef int _move(_View src, _View dst) except -1:
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
        if _arrange(&plan, &a, &b):
            _copy(&plan, a, b)
        return 0
    with nogil:
        if _arrange(&plan, &a, &b):
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
    _move(_View(src, "src", False), _View(dst, "dst", True))


def gather(src):
    """Return the items of a strided buffer as bytes, in C order.

    Parameters
    ----------
    src : buffer
        Up to 9 axes, items of 1 to 64 bytes, any strides.
    """
    cdef _View view = _View(src, "src", False)
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
        if _arrange(&plan, &a, &b):
            _copy(&plan, a, b)
    return out


# ------------------------------------------------------------------------ constant and fill

cdef inline bint _same_line(
    const char* first, const char* line, Py_ssize_t size, Py_ssize_t step, size_t item
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        if memcmp(line + i * step, first, item) != 0:
            return False
    return True


cdef bint _same_lines(
    const char* first, const char* line, Py_ssize_t size, Py_ssize_t step, Py_ssize_t item
) noexcept nogil:
    if item == 1:
        return _same_line(first, line, size, step, 1)
    if item == 2:
        return _same_line(first, line, size, step, 2)
    if item == 4:
        return _same_line(first, line, size, step, 4)
    if item == 8:
        return _same_line(first, line, size, step, 8)
    if item == 16:
        return _same_line(first, line, size, step, 16)
    return _same_line(first, line, size, step, item)


cdef bint _uniform(Plan* plan, const char* first, Py_ssize_t element) noexcept nogil:
    """True when all of an arranged plan repeats its first `element` bytes."""
    cdef Py_ssize_t at[MAX_AXES]
    cdef int q = plan.n - 1
    cdef const char* line = first
    cdef char* unused = NULL
    # A row equals itself moved by one element exactly when it is constant; others equal the row.
    if memcmp(first, first + element, plan.item - element) != 0:
        return False
    if plan.n == 0:
        return True
    memset(at, 0, sizeof(at))
    memset(plan.dst, 0, sizeof(plan.dst))
    while True:
        if not _same_lines(first, line, plan.shape[q], plan.src[q], plan.item):
            return False
        if not _step(plan, at, q, &line, &unused):
            return True


cdef void _fill_row(
    char* row, Py_ssize_t size, const char* element, Py_ssize_t unit
) noexcept nogil:
    """Repeat `element` over `size` bytes, a multiple of `unit`."""
    cdef Py_ssize_t done, step, limit
    if unit == 1 or memcmp(element, element + 1, unit - 1) == 0:
        memset(row, element[0], size)
        return
    memcpy(row, element, unit)
    done = unit
    limit = unit * (1 + PATTERN // unit)
    while done < size:
        step = min(min(done, limit), size - done)
        memcpy(row + done, row, step)
        done += step


cdef void _fill(Plan* plan, char* dst, const char* element, Py_ssize_t unit) noexcept nogil:
    cdef Py_ssize_t at[MAX_AXES]
    cdef int q = plan.n - 1
    cdef const char* unused = NULL
    cdef const char* row = element
    if plan.item > unit:
        _fill_row(dst, plan.item, element, unit)
        row = dst
    if plan.n == 0:
        if plan.item == unit:
            memcpy(dst, element, unit)
        return
    memset(at, 0, sizeof(at))
    memset(plan.src, 0, sizeof(plan.src))
    while True:
        # A step of 0 repeats the row; the first row may be copied onto itself.
        _copy_lines(row, dst, plan.shape[q], 0, plan.dst[q], plan.item)
        if not _step(plan, at, q, &unused, &dst):
            return


cdef void _describe(Plan* plan, _View view, int axes, Py_ssize_t item) noexcept:
    """Describe the first `axes` axes of one view, its steps on both sides of the plan."""
    cdef int i
    plan.n = axes
    plan.item = item
    for i in range(axes):
        plan.shape[i] = view.buffer.shape[i]
        plan.src[i] = view.buffer.strides[i]
        plan.dst[i] = view.buffer.strides[i]
        if plan.src[i] == 0 and plan.shape[i] > 1:
            # The same memory again and again: once is enough.
            plan.shape[i] = 1


cdef bint _joined(_View view) noexcept:
    """True when the items along the last axis lie together."""
    cdef int last = view.buffer.ndim - 1
    return view.buffer.shape[last] == 1 or view.buffer.strides[last] == view.buffer.itemsize


def constant(src, Py_ssize_t unit=1):
    """Return the one element that `src` repeats, or None.

    Parameters
    ----------
    src : buffer
        Up to 9 axes, items of 1 to 64 bytes, any strides.
    unit : int
        Items in an element: 1, or the size of the last axis (the channels).

    Returns
    -------
    bytes or None
        The element (item size times `unit` bytes); None when two elements differ in any bit, or
        when there is no element.
    """
    cdef _View view = _View(src, "src", False)
    cdef Plan plan
    cdef Py_ssize_t item = view.buffer.itemsize
    cdef Py_ssize_t part
    cdef int axes = view.buffer.ndim, parts = 1, i
    cdef char* a
    cdef char* b
    cdef bint same = True
    if unit != 1 and (axes == 0 or unit != view.buffer.shape[axes - 1]):
        raise InvalidError(f"unit is 1 or the size of the last axis of {view.shape()}; got {unit}")
    if view.buffer.len == 0:
        return None
    if unit > 1:
        axes -= 1
        if _joined(view):
            item *= unit
        else:
            parts = unit
    found = b""
    for part in range(parts):
        _describe(&plan, view, axes, item)
        a = <char*>view.buffer.buf
        if part:
            a += part * view.buffer.strides[axes]
        b = a
        with nogil:
            if _arrange(&plan, &a, &b):
                same = _uniform(&plan, a, item)
        if not same:
            return None
        found += PyBytes_FromStringAndSize(a, item)
    return found


def fill(dst, const uint8_t[::1] element):
    """Write `element` everywhere in `dst`.

    Parameters
    ----------
    dst : writable buffer
        Up to 9 axes, items of 1 to 64 bytes, any strides.
    element : bytes
        As long as one item, or as all items along the last axis (the channels).

    Raises
    ------
    InvalidError
        `element` has another length, or `dst` is read-only or no strided buffer.
    """
    cdef _View view = _View(dst, "dst", True)
    cdef Plan plan
    cdef Py_ssize_t item = view.buffer.itemsize
    cdef Py_ssize_t part, length = element.shape[0]
    cdef int axes = view.buffer.ndim, parts = 1
    cdef char* a
    cdef char* b
    cdef const char* source
    if length != item:
        if axes == 0 or length == 0 or length != item * view.buffer.shape[axes - 1]:
            raise InvalidError(
                f"an element of {view.shape()} with items of {item} bytes is one item or all of the"
                f" last axis; got {length} bytes"
            )
        axes -= 1
        if _joined(view):
            item = length
        else:
            parts = view.buffer.shape[axes]
    if view.buffer.len == 0:
        return
    for part in range(parts):
        source = <const char*>&element[0] + part * item
        _describe(&plan, view, axes, item)
        a = <char*>view.buffer.buf
        if part:
            a += part * view.buffer.strides[axes]
        b = a
        with nogil:
            if _arrange(&plan, &a, &b):
                _fill(&plan, b, source, item)


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
