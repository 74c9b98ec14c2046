# Label blocks out of memory into memory, for kernels that decode many without the GIL.

from libc.stdint cimport uint8_t

# LZ4_decompress_safe, LZ4_decompress_safe_partial and ZSTD_decompressDCtx.
ctypedef int (*unlz4_t)(const char*, char*, int, int) noexcept nogil
ctypedef int (*unlz4_partial_t)(const char*, char*, int, int, int) noexcept nogil
ctypedef size_t (*unzstd_t)(void*, void*, size_t, const void*, size_t) noexcept nogil

# How a packed label block is unpacked: by `lz4` if that is not NULL, else by `zstd` with its context.
# With `lz4_partial` as well, which may be NULL, no further than a window needs.
cdef struct Unpacker:
    unlz4_t lz4
    unlz4_partial_t lz4_partial
    unzstd_t zstd
    void* context

# Decode the window [low, high) of a label block of `grid` sub-blocks to `out`. All are (z, y, x),
# strides in bytes. The window must lie inside the block: it is the caller who checks.
cdef int decode_window(const uint8_t* data, Py_ssize_t size, const Py_ssize_t* grid, char* out,
                       const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                       bint stream) except -1 nogil

# The same of a compressed label block, as `label+lz4` and `label+zstd` write it. `scratch` must
# have `packed_room(grid)` bytes.
cdef Py_ssize_t packed_room(const Py_ssize_t* grid) noexcept nogil
cdef int decode_packed(const uint8_t* data, Py_ssize_t size, const Unpacker* unpacker,
                       uint8_t* scratch, Py_ssize_t room, const Py_ssize_t* grid, char* out,
                       const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                       bint stream) except -1 nogil
