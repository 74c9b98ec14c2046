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

from diced.errors import InvalidError

cdef enum:
    MAX_ITEM = 64


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
