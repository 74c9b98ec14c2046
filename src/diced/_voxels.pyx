"""Tests whether all voxels of a strided buffer are equal, and fills one with a value.

Knows shapes, strides and item sizes; knows no dtype: values are equal when their bytes are.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memset

from diced._strides cimport MAX_AXES, Plan, View, advance, arrange, copy_lines
from diced.errors import InvalidError

cdef enum:
    # A long row is filled in pieces of this many bytes, so that their source stays in the cache.
    PATTERN = 16384


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
        if not advance(plan, at, q, &line, &unused):
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
        copy_lines(row, dst, plan.shape[q], 0, plan.dst[q], plan.item)
        if not advance(plan, at, q, &unused, &dst):
            return


cdef void _describe(
    Plan* plan, int axes, const Py_ssize_t* shape, const Py_ssize_t* strides, Py_ssize_t item
) noexcept nogil:
    """Describe the first `axes` axes of one window, its steps on both sides of the plan."""
    cdef int i
    plan.n = axes
    plan.item = item
    for i in range(axes):
        plan.shape[i] = shape[i]
        plan.src[i] = strides[i]
        plan.dst[i] = strides[i]
        if strides[i] == 0 and shape[i] > 1:
            # The same memory again and again: once is enough.
            plan.shape[i] = 1


cdef inline bint _joined(
    int axes, const Py_ssize_t* shape, const Py_ssize_t* strides, Py_ssize_t item
) noexcept nogil:
    """True when the items along the last axis lie together."""
    return shape[axes - 1] == 1 or strides[axes - 1] == item


cdef bint is_constant(
    const char* data, int axes, const Py_ssize_t* shape, const Py_ssize_t* strides,
    Py_ssize_t item, int unit
) noexcept nogil:
    """True when a window that is not empty repeats its first element.

    An element is one item, or with a `unit` above 1 all `unit` items of the last axis.
    """
    cdef Plan plan
    cdef Py_ssize_t step = 0
    cdef int parts = 1, part
    cdef char* a
    cdef char* b
    if unit > 1:
        axes -= 1
        if _joined(axes + 1, shape, strides, item):
            item *= unit
        else:
            parts = unit
            step = strides[axes]
    for part in range(parts):
        _describe(&plan, axes, shape, strides, item)
        a = <char*>data + part * step
        b = a
        if arrange(&plan, &a, &b) and not _uniform(&plan, a, item):
            return False
    return True


cdef void fill_window(
    char* data, int axes, const Py_ssize_t* shape, const Py_ssize_t* strides, Py_ssize_t item,
    const uint8_t* element, Py_ssize_t length
) noexcept nogil:
    """Write an element, of `length` bytes, everywhere in a window.

    It is one item or all items of the last axis.
    """
    cdef Plan plan
    cdef Py_ssize_t step = 0
    cdef int parts = 1, part
    cdef char* a
    cdef char* b
    if length != item:
        axes -= 1
        if _joined(axes + 1, shape, strides, item):
            item = length
        else:
            parts = <int>shape[axes]
            step = strides[axes]
    for part in range(parts):
        _describe(&plan, axes, shape, strides, item)
        a = data + part * step
        b = a
        if arrange(&plan, &a, &b):
            _fill(&plan, b, <const char*>element + part * item, item)


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
    cdef View view = View(src, "src", False)
    cdef int axes = view.buffer.ndim
    cdef const char* data = <const char*>view.buffer.buf
    cdef Py_ssize_t i, step = 0
    cdef bint same
    if unit != 1 and (axes == 0 or unit != view.buffer.shape[axes - 1]):
        raise InvalidError(f"unit is 1 or the size of the last axis of {view.shape()}; got {unit}")
    if view.buffer.len == 0:
        return None
    with nogil:
        same = is_constant(
            data, axes, view.buffer.shape, view.buffer.strides, view.buffer.itemsize, <int>unit
        )
    if not same:
        return None
    if unit > 1:
        step = view.buffer.strides[axes - 1]
    return b"".join(
        [PyBytes_FromStringAndSize(data + i * step, view.buffer.itemsize) for i in range(unit)]
    )


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
    cdef View view = View(dst, "dst", True)
    cdef Py_ssize_t item = view.buffer.itemsize, length = element.shape[0]
    cdef int axes = view.buffer.ndim
    if length != item and (
        axes == 0 or length == 0 or length != item * view.buffer.shape[axes - 1]
    ):
        raise InvalidError(
            f"an element of {view.shape()} with items of {item} bytes is one item or all of the"
            f" last axis; got {length} bytes"
        )
    if view.buffer.len == 0:
        return
    with nogil:
        fill_window(
            <char*>view.buffer.buf, axes, view.buffer.shape, view.buffer.strides, item,
            &element[0], length
        )
