"""Strided buffers, and walks over one or two of them.

Knows shapes, strides and item sizes; knows no dtype. Every buffer is described by its own
``Py_buffer``, and every loop is bounded by the shape found there. What runs once per row is inline
in the declarations (``_strides.pxd``), for the kernels that walk.
"""

from cpython.buffer cimport (
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.string cimport memmove, memset

from diced.errors import InvalidError

cdef enum:
    MAX_ITEM = 64
    # Side of the tiles of a transposing copy: 32 cache lines on each side stay in the first cache.
    TILE = 32


cdef class View:
    """A held buffer: shape, strides and item size of any exporter, at most nine axes."""

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


cdef bint arrange(Plan* plan, char** src, char** dst) noexcept nogil:
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


cdef inline Py_ssize_t magnitude(Py_ssize_t value) noexcept nogil:
    return -value if value < 0 else value


cdef void copy_tiles(const char* src, char* dst, Plan* plan) noexcept nogil:
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


cdef void copy_plan(Plan* plan, const char* src, char* dst) noexcept nogil:
    """Copy what an arranged plan describes; the plan's axes may be reordered."""
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
        if 0 < magnitude(plan.src[i]) < magnitude(plan.src[shortest]):
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
        copy_tiles(src, dst, plan)
        if not advance(plan, at, q - 1, &src, &dst):
            return
