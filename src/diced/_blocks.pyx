"""Copies voxels between strided buffers.

Knows shapes, strides and item sizes; knows no dtype, codec or version.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from diced._strides cimport Plan, View, arrange, copy_plan
from diced.errors import InvalidError

cdef enum:
    # Giving the GIL up and taking it again costs more than copying less than this.
    FREE_ABOVE = 4096


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
