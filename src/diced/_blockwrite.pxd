# Frames of blocks out of voxels; `_blockwrite.pyx` says what it owns.

from libc.stdint cimport uint8_t

from diced._compress cimport _Context, _Lz4, _Zstd
from diced._encoder cimport Workspace
from diced._frame cimport Geometry
from diced._strides cimport MAX_AXES


# What one thread needs besides the memory lent.
cdef class Packing:
    cdef uint8_t* block
    cdef Py_ssize_t room
    cdef Workspace labels
    cdef _Context context
    cdef _Context decoder       # of units that are merged


cdef class Writer:
    cdef Geometry geometry
    cdef int codec, level, units, half
    cdef bint by_rows
    cdef _Lz4 lz4
    cdef _Zstd zstd
    cdef list spare
    cdef Py_ssize_t unit_bytes
    cdef Py_ssize_t[MAX_AXES] unit_shape
    cdef readonly Py_ssize_t most
    cdef readonly bint able

    cdef Packing take(self)
    cdef void keep(self, Packing work)
    cdef Py_ssize_t one(
        self, const char* source, const Py_ssize_t* strides, const uint8_t* key, uint8_t* out,
        Py_ssize_t room, Packing work
    ) except -3 nogil
    cdef Py_ssize_t finish(
        self, uint8_t* out, const uint8_t* key, Py_ssize_t used
    ) noexcept nogil
    cdef Py_ssize_t image(
        self, const char* source, const Py_ssize_t* strides, uint8_t* out, Py_ssize_t room,
        Packing work
    ) noexcept nogil
    cdef Py_ssize_t label(
        self, const char* source, const Py_ssize_t* strides, uint8_t* out, Py_ssize_t room,
        Packing work
    ) except -3 nogil
    cdef Py_ssize_t compress(
        self, const uint8_t* data, Py_ssize_t size, uint8_t* out, Py_ssize_t room, Packing work
    ) noexcept nogil
