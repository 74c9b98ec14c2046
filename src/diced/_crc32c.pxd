# The checksum for kernels; `_crc32c.pyx` says what it owns.

from libc.stdint cimport uint32_t


cdef uint32_t checksum(const unsigned char* data, size_t size) noexcept nogil
