# Label blocks out of memory into memory, for kernels that decode many without the GIL.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from diced._encoder cimport swap


# Where the sections of a block lie; what is decoded next begins at sub-block `first`, the place of
# `values`, and at entry `first_entry` of all local lists.
cdef struct Layout:
    Py_ssize_t gz
    Py_ssize_t gy
    Py_ssize_t gx
    uint32_t labels         # entries in the table; 1 means solid: there are no other sections
    const uint8_t* table
    const uint8_t* counts
    const uint8_t* indices
    int planes              # 0: indices are uint32; else so many bytes each, `entries` apart
    int64_t entries
    const uint8_t* values
    const uint8_t* end
    Py_ssize_t first
    int64_t first_entry


# A checked window of a block: all (z, y, x), in voxels, sub-blocks (grid) and bytes (strides).
cdef struct Window:
    Py_ssize_t[3] low
    Py_ssize_t[3] high
    Py_ssize_t[3] grid
    Py_ssize_t[3] strides
    char* out


# Payloads may lie at any address, hence memcpy for every field.
cdef inline unsigned int load16(const uint8_t* p) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, 2)
    return value


cdef inline uint32_t load32(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline uint64_t load64(const uint8_t* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef inline int check_rows(const uint8_t* values, uint64_t top, int rows, const int bits) \
        noexcept nogil:
    """Whether one of the positions in the rows is above `top`; bits <= 8."""
    # Every other position, with as many bits free above it: there a sum with what is missing
    # carries into.
    cdef uint64_t every = (<uint64_t>1 << 6 * bits | <uint64_t>1 << 4 * bits
                           | <uint64_t>1 << 2 * bits | 1)
    cdef uint64_t keep = every * ((<uint64_t>1 << bits) - 1)
    cdef uint64_t missing = every * ((<uint64_t>1 << bits) - 1 - top)
    cdef uint64_t word, seen = 0
    cdef int row
    for row in range(rows):
        word = swap(load64(values + row * bits)) >> (64 - 8 * bits)
        seen |= ((word & keep) + missing) | (((word >> bits) & keep) + missing)
    return (seen & (every << bits)) != 0


cdef inline uint64_t word9(const uint8_t* row, int i) noexcept nogil:
    # Voxel i of a 9-byte row begins at bit 9 * i = byte i, bit i.
    return ((<uint64_t>row[i] << 8 | row[i + 1]) >> (7 - i)) & 511


# Decode the window [low, high) of a label block of `grid` sub-blocks to `out`. All are (z, y, x),
# strides in bytes. The window must lie inside the block: it is the caller who checks.
cdef int decode_window(const uint8_t* data, Py_ssize_t size, const Py_ssize_t* grid, char* out,
                       const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                       bint stream) except -1 nogil

# Its parts, for blocks that are not in one piece.
cdef int corrupt(const char* what, int64_t got, int64_t wanted) except -1 nogil
cdef int read_head(const uint8_t* data, Py_ssize_t size, const Py_ssize_t* grid,
                   Layout* block) except -1 nogil
cdef int sum_counts(const uint8_t* counts, int64_t n, int64_t* labels, int64_t* rows) \
    except -1 nogil
cdef int open_payload(str what, payload, Py_buffer* view) except -1
cdef int decode_blocks(const Layout* block, char* out, const Py_ssize_t* strides,
                       const Py_ssize_t* low, const Py_ssize_t* high, bint stream) except -1 nogil
cdef uint64_t[:, :, :] open_window(out, start, block_shape, Window* window)
