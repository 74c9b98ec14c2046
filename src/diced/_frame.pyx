"""The shape of a block as kernels hold it, and a block's rows in and out of its units.

What runs once per frame is inline in ``_frame.pxd``.
"""

from libc.string cimport memcmp

from diced._crc32c cimport checksum
from diced.errors import InvalidError

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define diced_prefetch(p) __builtin_prefetch((p), 0, 2)
    #define diced_claim(p) __builtin_prefetch((p), 1, 2)
    #else
    #define diced_prefetch(p) ((void)(p))
    #define diced_claim(p) ((void)(p))
    #endif
    """
    void diced_prefetch(const char* p) noexcept nogil
    void diced_claim(const char* p) noexcept nogil


cdef int describe(Geometry* geometry, lane, Py_ssize_t item, shape, channels) except -1:
    """Fill a geometry; the arguments are checked, since every loop is bounded by them."""
    cdef bytes name = lane
    cdef const uint8_t* raw = name
    cdef int axis
    geometry.dims = len(shape)
    geometry.axes = geometry.dims + (channels is not None)
    if len(name) != 8 or not 1 <= geometry.dims <= 8 or not 1 <= item <= 64:
        raise InvalidError(
            f"a block has 1 to 8 axes and items of 1 to 64 bytes, in a lane of 8 bytes; got"
            f" {tuple(shape)}, {item} and {lane!r}"
        )
    memcpy(geometry.lane, raw, 8)
    geometry.key_size = 4 * geometry.dims
    geometry.item = geometry.nbytes = item
    for axis, size in enumerate((*shape, *(() if channels is None else (channels,)))):
        if not 1 <= size <= 1 << 31 or geometry.nbytes > ((1 << 32) - 1) // size:
            raise InvalidError(f"a block is smaller than 4 GiB; got {tuple(shape)}, {channels}")
        geometry.shape[axis] = size
        geometry.nbytes *= size
    return 0


cdef bint is_block_head(
    const Geometry* geometry, const uint8_t* frame, int64_t length, const uint8_t* key
) noexcept nogil:
    cdef Py_ssize_t body = HEAD + geometry.key_size
    return (
        memcmp(frame, b"dFr1", 4) == 0
        and frame[4] == BLOCK_KIND
        and frame[6] <= 1
        and memcmp(frame + 8, geometry.lane, 8) == 0
        and get32(frame + 16) == <uint32_t>geometry.nbytes
        and body + CHECK + <int64_t>get32(frame + 20) == length
        and get16(frame + 24) == <uint32_t>geometry.key_size
        and memcmp(frame + HEAD, key, geometry.key_size) == 0
        and checksum(frame, body) == get32(frame + body)
    )


# Unit by unit, every cache line outside was touched twice, and the lines of a unit, a power of two
# apart, threw each other out: reading whole EM took 201 ms of processor time so, 151 by rows.
# Stores past the caches made it 438: single lines far apart are what memory likes least.

cdef struct Rows:
    int parts                   # units on each axis
    Py_ssize_t planes           # of a unit
    Py_ssize_t lines
    Py_ssize_t bytes            # of a unit's row
    Py_ssize_t[16] jump         # from the first unit to the i-th along the last axis


cdef inline void start_rows(Rows* rows, const Geometry* geometry, int half) noexcept nogil:
    cdef Py_ssize_t unit_bytes = geometry.nbytes >> (3 * half)
    cdef int i, bit
    rows.parts = 1 << half
    rows.planes = geometry.shape[0] >> half
    rows.lines = geometry.shape[1] >> half
    rows.bytes = (geometry.shape[2] >> half) * geometry.item
    for i in range(rows.parts):
        rows.jump[i] = 0
        for bit in range(half):
            rows.jump[i] += (<Py_ssize_t>(i >> bit & 1) << (3 * bit)) * unit_bytes


cdef void gather_units(
    const char* source, const Py_ssize_t* strides, const Geometry* geometry, int half,
    uint8_t* units
) noexcept nogil:
    cdef Rows rows
    cdef Py_ssize_t row
    cdef int i, j, x
    cdef const char* plane
    cdef const char* line
    cdef uint8_t* target
    start_rows(&rows, geometry, half)
    for i in range(<int>geometry.shape[0]):
        plane = source + i * strides[0]
        for j in range(rows.parts):
            # Axes before the last jump four and two times as far.
            target = (
                units + 4 * rows.jump[i // rows.planes] + 2 * rows.jump[j]
                + (i % rows.planes) * rows.lines * rows.bytes
            )
            for row in range(rows.lines):
                line = plane + (j * rows.lines + row) * strides[1]
                # Processors do not foresee such strides: 3.4 GB/s without, 4.8 with.
                diced_prefetch(line + strides[0])
                if rows.bytes == 32:
                    for x in range(rows.parts):
                        memcpy(target + rows.jump[x], line + x * 32, 32)
                else:
                    for x in range(rows.parts):
                        memcpy(target + rows.jump[x], line + x * rows.bytes, rows.bytes)
                target += rows.bytes


cdef void scatter_units(
    const uint8_t* units, const Geometry* geometry, int half, char* out,
    const Py_ssize_t* strides
) noexcept nogil:
    cdef Rows rows
    cdef Py_ssize_t row
    cdef int i, j, x
    cdef const uint8_t* source
    cdef char* line
    start_rows(&rows, geometry, half)
    for i in range(<int>geometry.shape[0]):
        for j in range(rows.parts):
            source = (
                units + 4 * rows.jump[i // rows.planes] + 2 * rows.jump[j]
                + (i % rows.planes) * rows.lines * rows.bytes
            )
            for row in range(rows.lines):
                line = out + i * strides[0] + (j * rows.lines + row) * strides[1]
                diced_claim(line + strides[0])
                if rows.bytes == 32:
                    for x in range(rows.parts):
                        memcpy(line + x * 32, source + rows.jump[x], 32)
                else:
                    for x in range(rows.parts):
                        memcpy(line + x * rows.bytes, source + rows.jump[x], rows.bytes)
                source += rows.bytes
