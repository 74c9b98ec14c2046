"""Checksums: CRC-32C by the processor's instructions, or by tables where it has none."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t

from diced.errors import InvalidError

cdef extern from "_crc32c.h" nogil:
    uint32_t diced_crc_tables(uint32_t crc, const unsigned char* data, size_t size) noexcept
    uint32_t diced_crc_instructions(uint32_t crc, const unsigned char* data, size_t size) noexcept
    int diced_crc_has_instructions() noexcept
    void diced_crc_setup() noexcept
    const char* DICED_CRC_NAME

cdef enum:
    # Giving the GIL up and taking it again costs more than working on less than this.
    FREE_ABOVE = 4096

diced_crc_setup()
cdef bint _has_instructions = diced_crc_has_instructions()


def crc32c_paths():
    """Return the names of the implementations this machine can run, the preferred one first."""
    return (DICED_CRC_NAME.decode(), "tables") if _has_instructions else ("tables",)


def crc32c(data, uint32_t value=0, path=None):
    """Return the CRC-32C (Castagnoli) of `data`.

    Parameters
    ----------
    data : contiguous buffer
    value : int
        CRC of what came before `data`; 0 at the start.
    path : str, optional
        One of `crc32c_paths`; the preferred one if not given.

    Raises
    ------
    InvalidError
        `data` is no contiguous buffer, or this machine has no such path.
    """
    cdef Py_buffer buffer
    cdef bint instructions = _has_instructions
    if path is not None:
        if path not in crc32c_paths():
            raise InvalidError(f"path is one of {', '.join(crc32c_paths())}; got {path!r}")
        instructions = path != "tables"
    try:
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    except (BufferError, TypeError, ValueError) as error:
        raise InvalidError(
            f"data must be a contiguous buffer; got {type(data).__name__} ({error})"
        ) from None
    if buffer.len <= FREE_ABOVE:
        value = _crc(value, &buffer, instructions)
    else:
        with nogil:
            value = _crc(value, &buffer, instructions)
    PyBuffer_Release(&buffer)
    return value


cdef uint32_t checksum(const unsigned char* data, size_t size) noexcept nogil:
    """Return the CRC-32C of a message."""
    if _has_instructions:
        return diced_crc_instructions(0, data, size)
    return diced_crc_tables(0, data, size)


cdef inline uint32_t _crc(
    uint32_t value, const Py_buffer* buffer, bint instructions
) noexcept nogil:
    if instructions:
        return diced_crc_instructions(value, <const unsigned char*>buffer.buf, buffer.len)
    return diced_crc_tables(value, <const unsigned char*>buffer.buf, buffer.len)
