# Payloads of blocks into windows of a result; `_blockdecode.pyx` says what it owns.

from libc.stdint cimport int64_t, uint8_t

from diced._compress cimport _Context, _Lz4, _Zstd
from diced._frame cimport Geometry
from diced._strides cimport MAX_AXES


# Part of a block (or of a unit), and where it goes.
cdef struct Window:
    Py_ssize_t low[MAX_AXES]        # in the block
    Py_ssize_t count[MAX_AXES]
    char* out
    const Py_ssize_t* strides       # of the result


cdef class Workspace:
    cdef uint8_t* frame
    cdef Py_ssize_t frame_room
    cdef uint8_t* block
    cdef Py_ssize_t block_room
    cdef _Context context


cdef bint make_room(uint8_t** buffer, Py_ssize_t* room, Py_ssize_t wanted) noexcept nogil


cdef class Reader:
    cdef Geometry geometry
    cdef bytes fill
    cdef Py_ssize_t fill_size
    cdef Py_ssize_t head
    cdef _Lz4 lz4
    cdef _Zstd zstd
    cdef list spare
    cdef bint labels
    cdef Py_ssize_t[3] grid

    cdef Workspace workspace(self)
    cdef void keep(self, Workspace work)
    cdef int decode(
        self, int codec, const uint8_t* data, int64_t size, const Py_ssize_t* shape,
        Window* window, bint stream, Workspace work
    ) except -1 nogil
    cdef bint decompress(
        self, int codec, const uint8_t* data, int64_t size, uint8_t* out, Py_ssize_t nbytes,
        Workspace work
    ) noexcept nogil
