# The compressors for kernels that call them without the GIL; `_compress.pyx` says what it owns.

ctypedef int (*lz4_compress_t)(const char*, char*, int, int, int) noexcept nogil
ctypedef int (*lz4_decompress_t)(const char*, char*, int, int) noexcept nogil
ctypedef void* (*zstd_create_t)() noexcept nogil
ctypedef size_t (*zstd_free_t)(void*) noexcept nogil
ctypedef size_t (*zstd_compress_t)(void*, void*, size_t, const void*, size_t, int) noexcept nogil
ctypedef size_t (*zstd_decompress_t)(void*, void*, size_t, const void*, size_t) noexcept nogil
ctypedef unsigned int (*zstd_is_error_t)(size_t) noexcept nogil
ctypedef const char* (*zstd_error_name_t)(size_t) noexcept nogil
ctypedef unsigned long long (*zstd_content_t)(const void*, size_t) noexcept nogil
ctypedef size_t (*zstd_bound_t)(size_t) noexcept nogil


cdef class _Bytes:
    cdef Py_buffer buffer
    cdef bint held
    cdef unsigned char* start
    cdef Py_ssize_t size

    cdef object view(self)


# The pointers of C functions are NULL where only the Python package was found.
cdef class _Lz4:
    cdef lz4_compress_t c_compress
    cdef lz4_decompress_t c_decompress
    cdef object package
    cdef dict facts

    cdef bytes compress(self, _Bytes src, int acceleration)
    cdef int decompress(self, _Bytes src, _Bytes dst) except -1
    cdef int by_package(self, _Bytes src, _Bytes dst) except -1


cdef class _Context:
    cdef void* handle
    cdef zstd_free_t release


cdef class _Zstd:
    cdef zstd_create_t create_encoder, create_decoder
    cdef zstd_free_t free_encoder, free_decoder
    cdef zstd_compress_t c_compress
    cdef zstd_decompress_t c_decompress
    cdef zstd_is_error_t is_error
    cdef zstd_error_name_t error_name
    cdef zstd_content_t content
    cdef zstd_bound_t bound
    cdef object package
    cdef dict facts
    # Contexts not in use. A list's pop and append are atomic, so a context has one user at a time.
    cdef list encoders, decoders

    cdef _Context context(self, list spare, zstd_create_t create, zstd_free_t release)
    cdef bytes compress(self, _Bytes src, int level)
    cdef int decompress(self, _Bytes src, _Bytes dst) except -1
    cdef int by_package(self, _Bytes src, _Bytes dst) except -1


cdef _Lz4 lz4_in_use()
cdef _Zstd zstd_in_use()
