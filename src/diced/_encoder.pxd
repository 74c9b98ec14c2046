# What both directions of a label block need; `_codec.pyx` describes the layout.

from libc.stdint cimport uint64_t

cdef enum:
    HEADER = 16
    VOXELS = 512        # in a sub-block


cdef inline uint64_t swap(uint64_t x) noexcept nogil:
    """Reverse the bytes; compilers know the pattern as one instruction."""
    x = ((x >> 8) & <uint64_t>0x00FF00FF00FF00FF) | ((x & <uint64_t>0x00FF00FF00FF00FF) << 8)
    x = ((x >> 16) & <uint64_t>0x0000FFFF0000FFFF) | ((x & <uint64_t>0x0000FFFF0000FFFF) << 16)
    return (x >> 32) | (x << 32)


cdef int check_side(str what, Py_ssize_t axis, Py_ssize_t side) except -1
