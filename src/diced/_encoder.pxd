# What both directions of a label block need, and encoding from memory into memory, for kernels that
# encode many blocks without the GIL. `_codec.pyx` describes the layout.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    HEADER = 16
    VOXELS = 512        # in a sub-block

# Tables and buffers that are used again for the next block. One thread at a time.
ctypedef void* Workspace

cdef Workspace start_workspace() except NULL nogil
cdef void stop_workspace(Workspace workspace) noexcept nogil

# Encode a block into the workspace and return the size of its payload; HEADER + 8 bytes when all
# voxels are equal. `strides` are bytes, `shape` voxels, both (z, y, x); the sides are multiples of
# 8 from 8 to 1024: it is the caller who checks.
cdef Py_ssize_t encode_block(Workspace workspace, const char* src, const Py_ssize_t* strides,
                             const Py_ssize_t* shape) except -1 nogil

# Write the payload of the last block encoded.
cdef void write_block(Workspace workspace, uint8_t* out) noexcept nogil

# Both; an InvalidError if the payload has more than `room` bytes, which are never more than
# `most_bytes(shape)`.
cdef Py_ssize_t encode_into(Workspace workspace, const char* src, const Py_ssize_t* strides,
                            const Py_ssize_t* shape, uint8_t* out, Py_ssize_t room) \
    except -1 nogil
cdef Py_ssize_t most_bytes(const Py_ssize_t* shape) noexcept nogil


cdef inline uint64_t swap(uint64_t x) noexcept nogil:
    """Reverse the bytes; compilers know the pattern as one instruction."""
    x = ((x >> 8) & <uint64_t>0x00FF00FF00FF00FF) | ((x & <uint64_t>0x00FF00FF00FF00FF) << 8)
    x = ((x >> 16) & <uint64_t>0x0000FFFF0000FFFF) | ((x & <uint64_t>0x0000FFFF0000FFFF) << 16)
    return (x >> 32) | (x << 32)


cdef int check_side(str what, Py_ssize_t axis, Py_ssize_t side) except -1
