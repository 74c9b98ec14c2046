"""FNV-1 hashes of 128 bits: names of what is stored by content. No protection against malice."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t

from diced.errors import InvalidError

cdef enum:
    # Giving the GIL up and taking it again costs more than working on less than this.
    FREE_ABOVE = 4096

# The prime is 2**88 + this.
cdef uint64_t PRIME_LOW = 0x13B
cdef uint64_t LOW_HALF = 0xFFFFFFFF
cdef uint64_t BASIS_HIGH = 0x6C62272E07BB0142
cdef uint64_t BASIS_LOW = 0x62B821756295C58D


def fnv128(data):
    """Return the 128-bit FNV-1 hash of `data` as 16 bytes, the highest first.

    Parameters
    ----------
    data : contiguous buffer

    Raises
    ------
    InvalidError
    """
    cdef Py_buffer buffer
    cdef uint64_t high = BASIS_HIGH
    cdef uint64_t low = BASIS_LOW
    try:
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    except (BufferError, TypeError, ValueError) as error:
        raise InvalidError(
            f"data must be a contiguous buffer; got {type(data).__name__} ({error})"
        ) from None
    if buffer.len <= FREE_ABOVE:
        _hash(&buffer, &high, &low)
    else:
        with nogil:
            _hash(&buffer, &high, &low)
    PyBuffer_Release(&buffer)
    words = (high, low)
    return b"".join([word.to_bytes(8, "big") for word in words])


cdef void _hash(Py_buffer* buffer, uint64_t* high_out, uint64_t* low_out) noexcept nogil:
    cdef const unsigned char* data = <const unsigned char*>buffer.buf
    cdef uint64_t high = high_out[0]
    cdef uint64_t low = low_out[0]
    cdef uint64_t first, second
    cdef Py_ssize_t i
    for i in range(buffer.len):
        # Times the prime, modulo 2**128: in halves of 32 bits where it may run over.
        first = (low & LOW_HALF) * PRIME_LOW
        second = (low >> 32) * PRIME_LOW + (first >> 32)
        high = high * PRIME_LOW + (second >> 32) + (low << 24)
        low = (second << 32) | (first & LOW_HALF)
        low ^= data[i]
    high_out[0] = high
    low_out[0] = low
