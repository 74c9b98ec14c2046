# The head of a frame and the shape of a block, for the kernels that pack and unpack blocks.
# `docs/format.md` has the byte table; `diced.segment` reads and writes frames of every kind.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from diced._strides cimport MAX_AXES

cdef enum:
    HEAD = 32           # bytes before the key
    CHECK = 4           # the checksum behind the key
    UNIT = 8            # an entry of the unit table: end in the payload, checksum
    BLOCK_KIND = 1
    RAW = 0
    LZ4 = 1
    ZSTD = 2
    LABEL = 8
    LABEL_LZ4 = 9
    LABEL_ZSTD = 10
    # Units a block may have here. More are left to the general path.
    MAX_UNITS = 4096
    MOST_HALVINGS = 4


# A block: its spatial axes, then the channel axis if there is one.
cdef struct Geometry:
    int dims
    int axes
    int key_size
    Py_ssize_t item
    Py_ssize_t nbytes
    Py_ssize_t shape[MAX_AXES]
    uint8_t lane[8]


cdef inline uint32_t get16(const uint8_t* p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8


cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline void put16(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = value & 255
    p[1] = value >> 8 & 255


cdef inline void put32(uint8_t* p, uint32_t value) noexcept nogil:
    put16(p, value)
    put16(p + 2, value >> 16)


cdef inline int halvings(int units, int dims) noexcept nogil:
    """How often each axis is halved to give so many units; -1 if no number does."""
    cdef int j = 0, total = 1
    while total < units:
        total <<= dims
        j += 1
    return j if total == units else -1


cdef inline void unit_place(int number, int dims, int half, Py_ssize_t* place) noexcept nogil:
    """The place of a unit among 2**half on each axis; axis 0 has the highest of each bits."""
    cdef int axis, bit
    for axis in range(dims):
        place[axis] = 0
        for bit in range(half):
            place[axis] |= <Py_ssize_t>(number >> (bit * dims + dims - 1 - axis) & 1) << bit


# True if the first bytes of a frame of `length` bytes are those of this block; units are not checked.
cdef bint is_block_head(
    const Geometry* geometry, const uint8_t* frame, int64_t length, const uint8_t* key
) noexcept nogil

# Rows of a 3-D block without channels, halved at most MOST_HALVINGS times, whose last axis is
# contiguous outside: into units one behind the other, and out of them.
cdef void gather_units(
    const char* source, const Py_ssize_t* strides, const Geometry* geometry, int half,
    uint8_t* units
) noexcept nogil
cdef void scatter_units(
    const uint8_t* units, const Geometry* geometry, int half, char* out,
    const Py_ssize_t* strides
) noexcept nogil
cdef int describe(Geometry* geometry, lane, Py_ssize_t item, shape, channels) except -1
