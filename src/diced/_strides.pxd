# What the kernels that move and test voxels share; `_strides.pyx` says what it owns.

from libc.string cimport memcpy, memmove

cdef enum:
    # Eight block dimensions and a channel axis.
    MAX_AXES = 9


# Axes of a walk over one or two buffers, outermost first. `item` bytes lie together on both sides.
cdef struct Plan:
    int n
    Py_ssize_t item
    Py_ssize_t shape[MAX_AXES]
    Py_ssize_t src[MAX_AXES]
    Py_ssize_t dst[MAX_AXES]


cdef class View:
    cdef Py_buffer buffer
    cdef bint held

    cdef tuple shape(self)


cdef bint arrange(Plan* plan, char** src, char** dst) noexcept nogil
cdef void copy_plan(Plan* plan, const char* src, char* dst) noexcept nogil


cdef inline bint advance(
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


# `item` is a constant at most calls of the inline loops below, so that memcpy and memcmp of it
# become single moves: 4,096 rows of 64 bytes take less than half the time of library calls.

cdef inline void copy_line(
    const char* src, char* dst, Py_ssize_t size, Py_ssize_t a, Py_ssize_t b, size_t item
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        memcpy(dst + i * b, src + i * a, item)


cdef inline void copy_ends(
    const char* src, char* dst, Py_ssize_t size, Py_ssize_t a, Py_ssize_t b, Py_ssize_t item,
    size_t half
) noexcept nogil:
    """Items of more than `half` and less than twice as many bytes, by two moves that overlap."""
    cdef Py_ssize_t i
    for i in range(size):
        memcpy(dst + i * b, src + i * a, half)
        memcpy(dst + i * b + item - half, src + i * a + item - half, half)


cdef inline void copy_lines(
    const char* src, char* dst, Py_ssize_t size, Py_ssize_t a, Py_ssize_t b, Py_ssize_t item
) noexcept nogil:
    cdef Py_ssize_t i
    if item == 1:
        copy_line(src, dst, size, a, b, 1)
    elif item == 2:
        copy_line(src, dst, size, a, b, 2)
    elif item == 4:
        copy_line(src, dst, size, a, b, 4)
    elif item == 8:
        copy_line(src, dst, size, a, b, 8)
    elif item == 16:
        copy_line(src, dst, size, a, b, 16)
    elif item == 32:
        copy_line(src, dst, size, a, b, 32)
    elif item == 64:
        copy_line(src, dst, size, a, b, 64)
    elif 4 < item < 8:
        copy_ends(src, dst, size, a, b, item, 4)
    elif 8 < item < 16:
        copy_ends(src, dst, size, a, b, item, 8)
    elif 16 < item < 32:
        copy_ends(src, dst, size, a, b, item, 16)
    elif 32 < item < 64:
        copy_ends(src, dst, size, a, b, item, 32)
    else:
        for i in range(size):
            memmove(dst + i * b, src + i * a, item)
