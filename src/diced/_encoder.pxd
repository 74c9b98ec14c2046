# What both directions of a label block need, and encoding from memory into memory, for kernels that
# encode many blocks without the GIL. `_codec.pyx` describes the layout.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    HEADER = 16
    VOXELS = 512        # in a sub-block


# A place of the label table's hash.
cdef struct Slot:
    uint64_t label
    uint32_t entry          # index into the label table + 1; 0 is empty
    uint32_t seen           # the sub-block that had the label last, and its position there


cdef struct Encoder:
    uint32_t[4] header
    uint64_t* labels        # the label table; room for half as many as there are slots
    uint32_t count
    Slot* slots
    uint64_t room_slots
    uint64_t slot_mask      # of those in use
    int shift               # the hash's top bits choose the slot
    size_t blocks
    size_t room_counts
    uint16_t* counts        # labels per sub-block
    uint32_t* indices
    size_t used_indices
    size_t room_indices
    uint8_t* values
    size_t used_values
    size_t room_values
    uint8_t* spare          # for who compresses the block
    size_t room_spare


# Tables and buffers that are used again for the next block. One thread at a time.
ctypedef void* Workspace        # an Encoder

cdef Workspace start_workspace() except NULL nogil
cdef void stop_workspace(Workspace workspace) noexcept nogil

# Encode a block into the workspace and return the size of its payload; HEADER + 8 bytes when all
# voxels are equal. `strides` are bytes, `shape` voxels, both (z, y, x); the sides are multiples of
# 8 from 8 to 1024: it is the caller who checks.
cdef Py_ssize_t encode_block(Workspace workspace, const char* src, const Py_ssize_t* strides,
                             const Py_ssize_t* shape) except -1 nogil

# Write the payload of the last block encoded.
cdef void write_block(Workspace workspace, uint8_t* out) noexcept nogil

# Both; an InvalidError if the payload has more than `room` bytes, which are never more than
# `most_bytes(shape)`.
cdef Py_ssize_t encode_into(Workspace workspace, const char* src, const Py_ssize_t* strides,
                            const Py_ssize_t* shape, uint8_t* out, Py_ssize_t room) \
    except -1 nogil
cdef Py_ssize_t most_bytes(const Py_ssize_t* shape) noexcept nogil


cdef inline uint64_t swap(uint64_t x) noexcept nogil:
    """Reverse the bytes; compilers know the pattern as one instruction."""
    x = ((x >> 8) & <uint64_t>0x00FF00FF00FF00FF) | ((x & <uint64_t>0x00FF00FF00FF00FF) << 8)
    x = ((x >> 16) & <uint64_t>0x0000FFFF0000FFFF) | ((x & <uint64_t>0x0000FFFF0000FFFF) << 16)
    return (x >> 32) | (x << 32)


# Packed positions: 64 rows of eight voxels, `bits` bytes each.
cdef inline void pack(const uint8_t* positions, uint8_t* target, const int bits) noexcept nogil:
    """Write 64 rows, each as one word whose overhang the next row overwrites; bits <= 8."""
    cdef uint64_t word
    cdef int row
    for row in range(64):
        memcpy(&word, positions + 8 * row, 8)
        word = swap(word)
        # Neighbours close up: eight bytes, four pairs, two fours, one row.
        word = (((word & <uint64_t>0xFF00FF00FF00FF00) >> (8 - bits))
                | (word & <uint64_t>0x00FF00FF00FF00FF))
        word = (((word & <uint64_t>0xFFFF0000FFFF0000) >> (16 - 2 * bits))
                | (word & <uint64_t>0x0000FFFF0000FFFF))
        word = ((word >> 32) << (4 * bits)) | (word & <uint64_t>0xFFFFFFFF)
        word = swap(word << (64 - 8 * bits))
        memcpy(target + row * bits, &word, 8)


cdef inline void pack9(const uint16_t* positions, uint8_t* target) noexcept nogil:
    cdef int row, i
    cdef uint64_t word
    for row in range(64):
        word = 0
        for i in range(7):
            word = (word << 9) | positions[8 * row + i]
        word = swap((word << 1) | (positions[8 * row + 7] >> 8))
        memcpy(target + row * 9, &word, 8)
        target[row * 9 + 8] = positions[8 * row + 7] & 0xFF


cdef int check_side(str what, Py_ssize_t axis, Py_ssize_t side) except -1


cdef class _Held:
    cdef Workspace workspace
    cdef Py_ssize_t size


cdef _Held hold_block(src)
cdef int let_go(_Held held) except -1
