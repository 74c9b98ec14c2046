# Compressed label blocks out of memory and into memory, for kernels that do many without the GIL.
# `_packed.pyx` describes the form.

from libc.stdint cimport uint8_t

from diced._encoder cimport Workspace

# LZ4_decompress_safe, ZSTD_decompressDCtx, LZ4_compress_fast, ZSTD_compressCCtx.
ctypedef int (*unlz4_t)(const char*, char*, int, int) noexcept nogil
ctypedef size_t (*unzstd_t)(void*, void*, size_t, const void*, size_t) noexcept nogil
ctypedef int (*lz4_t)(const char*, char*, int, int, int) noexcept nogil
ctypedef size_t (*zstd_t)(void*, void*, size_t, const void*, size_t, int) noexcept nogil

# How sections are unpacked: by `lz4` if that is not NULL, else by `zstd` with its context.
cdef struct Unpacker:
    unlz4_t lz4
    unzstd_t zstd
    void* context

# How they are packed; `level` is LZ4's acceleration or Zstandard's level.
cdef struct Packer:
    lz4_t lz4
    zstd_t zstd
    void* context
    int level

# As `decode_window` of `_codec`. `scratch` has `room` bytes; `packed_room(grid)` are always enough.
cdef Py_ssize_t packed_room(const Py_ssize_t* grid) noexcept nogil
cdef int decode_packed(const uint8_t* data, Py_ssize_t size, const Unpacker* unpacker,
                       uint8_t* scratch, Py_ssize_t room, const Py_ssize_t* grid, char* out,
                       const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                       bint stream) except -1 nogil

# Write the block that `encode_block` left in the workspace; returns the size, at most
# `packed_most(workspace)`, which `room` must be.
cdef Py_ssize_t packed_most(Workspace workspace) noexcept nogil
cdef Py_ssize_t write_packed(Workspace workspace, const Packer* packer, uint8_t* out,
                             Py_ssize_t room) except -1 nogil
