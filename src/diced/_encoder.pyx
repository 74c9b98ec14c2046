"""Labels into the bytes of a label block, read in place from strided windows.

The layout is described in ``_codec``. This module knows nothing of compression, checksums or where
the bytes live.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from diced.errors import InvalidError

cdef enum:
    MAX_SIDE = 1024
    MAX_GRID = 128
    LINEAR = 12         # longest local list that is searched without a hash
    LOCAL_SLOTS = 1024
    FIRST_SLOTS = 512


cdef inline uint64_t scramble(uint64_t label) noexcept nogil:
    return (label ^ (label >> 32)) * <uint64_t>0x9E3779B97F4A7C15


cdef struct Encoder:
    uint64_t* labels        # the label table; room for half as many as there are slots
    uint32_t* slots         # open addressing: 0 is empty, else index into labels + 1
    uint64_t slot_mask
    int shift               # the hash's top bits choose the slot
    uint32_t count
    uint16_t* counts        # labels per sub-block
    uint32_t* indices
    size_t used_indices
    size_t room_indices
    uint8_t* values
    size_t used_values
    size_t room_values


cdef int out_of_memory() except -1 nogil:
    with gil:
        raise MemoryError("label_encode: no memory for the block's tables")


cdef int start_encoder(Encoder* state, size_t blocks) except -1 nogil:
    state.slot_mask = FIRST_SLOTS - 1
    state.shift = 64 - 9
    state.room_indices = 2 * blocks + VOXELS
    state.room_values = 64 * blocks + 1024
    state.labels = <uint64_t*>malloc((FIRST_SLOTS // 2) * sizeof(uint64_t))
    state.slots = <uint32_t*>calloc(FIRST_SLOTS, sizeof(uint32_t))
    state.counts = <uint16_t*>malloc(blocks * sizeof(uint16_t))
    state.indices = <uint32_t*>malloc(state.room_indices * sizeof(uint32_t))
    state.values = <uint8_t*>malloc(state.room_values)
    if (state.labels == NULL or state.slots == NULL or state.counts == NULL
            or state.indices == NULL or state.values == NULL):
        return out_of_memory()
    return 0


cdef void stop_encoder(Encoder* state) noexcept nogil:
    free(state.labels)
    free(state.slots)
    free(state.counts)
    free(state.indices)
    free(state.values)


cdef int reserve(Encoder* state) except -1 nogil:
    """Make room for one more sub-block of 512 labels, 9 bits, and the packer's overhang."""
    cdef void* moved
    if state.room_indices - state.used_indices < VOXELS:
        moved = realloc(state.indices, 2 * state.room_indices * sizeof(uint32_t))
        if moved == NULL:
            return out_of_memory()
        state.indices = <uint32_t*>moved
        state.room_indices *= 2
    if state.room_values - state.used_values < 9 * 64 + 8:
        moved = realloc(state.values, 2 * state.room_values)
        if moved == NULL:
            return out_of_memory()
        state.values = <uint8_t*>moved
        state.room_values *= 2
    return 0


cdef int grow_table(Encoder* state) except -1 nogil:
    cdef uint64_t slots = 2 * (state.slot_mask + 1), slot
    cdef uint32_t index
    cdef uint32_t* fresh
    cdef void* moved = realloc(state.labels, (slots >> 1) * sizeof(uint64_t))
    if moved == NULL:
        return out_of_memory()
    state.labels = <uint64_t*>moved
    fresh = <uint32_t*>calloc(slots, sizeof(uint32_t))
    if fresh == NULL:
        return out_of_memory()
    free(state.slots)
    state.slots = fresh
    state.slot_mask = slots - 1
    state.shift -= 1
    for index in range(state.count):
        slot = scramble(state.labels[index]) >> state.shift
        while fresh[slot] != 0:
            slot = (slot + 1) & state.slot_mask
        fresh[slot] = index + 1
    return 0


cdef int add_index(Encoder* state, uint64_t label) except -1 nogil:
    """Append the label's index in the table, where it is entered when new."""
    cdef uint64_t slot = scramble(label) >> state.shift
    cdef uint32_t found = state.slots[slot]
    while found != 0 and state.labels[found - 1] != label:
        slot = (slot + 1) & state.slot_mask
        found = state.slots[slot]
    if found == 0:
        if 2 * <uint64_t>state.count >= state.slot_mask:
            grow_table(state)
            return add_index(state, label)
        state.labels[state.count] = label
        state.count += 1
        found = state.count
        state.slots[slot] = found
    state.indices[state.used_indices] = found - 1
    state.used_indices += 1
    return 0


cdef inline void pack(const uint16_t* positions, uint8_t* target, const int bits) noexcept nogil:
    """Write 64 rows, each as one word whose overhang the next row overwrites; bits <= 8."""
    cdef int row, i
    cdef uint64_t word
    for row in range(64):
        word = 0
        for i in range(8):
            word = (word << bits) | positions[8 * row + i]
        word = swap(word << (64 - 8 * bits))
        memcpy(target + row * bits, &word, 8)


cdef void pack9(const uint16_t* positions, uint8_t* target) noexcept nogil:
    cdef int row, i
    cdef uint64_t word
    for row in range(64):
        word = 0
        for i in range(7):
            word = (word << 9) | positions[8 * row + i]
        word = swap((word << 1) | (positions[8 * row + 7] >> 8))
        memcpy(target + row * 9, &word, 8)
        target[row * 9 + 8] = positions[8 * row + 7] & 0xFF


cdef int find_local(const uint64_t* local, uint16_t* slots, int count, uint64_t label) \
        except -1 nogil:
    """Return the label's position in a long local list, or `count` after entering it as that."""
    cdef int slot = <int>(scramble(label) >> 54)
    while slots[slot] != 0:
        if local[slots[slot] - 1] == label:
            return slots[slot] - 1
        slot = (slot + 1) & (LOCAL_SLOTS - 1)
    slots[slot] = count + 1
    return count


cdef int encode_mixed(Encoder* state, const char* corner, Py_ssize_t sz, Py_ssize_t sy) \
        except -1 nogil:
    """Append one sub-block whose rows are contiguous and aligned; returns its label count."""
    cdef uint64_t[VOXELS] local
    cdef uint16_t[VOXELS] positions
    cdef uint16_t[LOCAL_SLOTS] slots
    cdef uint16_t* target = positions
    cdef uint8_t* packed
    cdef const uint64_t* row
    cdef uint64_t label, last, before
    cdef int z, y, x, i, position = 0, position_before = 0, count = 1, bits = 0

    last = (<const uint64_t*>corner)[0]
    before = last
    local[0] = last
    for z in range(8):
        for y in range(8):
            row = <const uint64_t*>(corner + z * sz + y * sy)
            if ((row[0] ^ last) | (row[1] ^ last) | (row[2] ^ last) | (row[3] ^ last)
                    | (row[4] ^ last) | (row[5] ^ last) | (row[6] ^ last) | (row[7] ^ last)) == 0:
                for x in range(8):
                    target[x] = position
                target += 8
                continue
            for x in range(8):
                label = row[x]
                if label == last:
                    pass
                elif label == before:
                    before = last
                    last = label
                    i = position
                    position = position_before
                    position_before = i
                else:
                    before = last
                    last = label
                    position_before = position
                    if count <= LINEAR:
                        position = 0
                        while position < count and local[position] != label:
                            position += 1
                    else:
                        position = find_local(local, slots, count, label)
                    if position == count:
                        local[count] = label
                        count += 1
                        if count == LINEAR + 1:
                            memset(slots, 0, sizeof(slots))
                            for i in range(count):
                                find_local(local, slots, i, local[i])
                target[x] = position
            target += 8

    reserve(state)
    for i in range(count):
        add_index(state, local[i])
    while 1 << bits < count:
        bits += 1
    packed = state.values + state.used_values
    # A literal width lets the compiler unroll each row into constant shifts.
    if bits == 1:
        pack(positions, packed, 1)
    elif bits == 2:
        pack(positions, packed, 2)
    elif bits == 3:
        pack(positions, packed, 3)
    elif bits == 4:
        pack(positions, packed, 4)
    elif bits <= 8:
        pack(positions, packed, bits)
    else:
        pack9(positions, packed)
    state.used_values += 64 * bits
    return count


cdef int encode_blocks(Encoder* state, const char* base, const Py_ssize_t* strides,
                       const Py_ssize_t* grid) except -1 nogil:
    """Code every sub-block in order. `grid` is in sub-blocks, `strides` in bytes, both ZYX."""
    cdef Py_ssize_t sz = strides[0], sy = strides[1], sx = strides[2], tz, ty, tx, z, y, x
    cdef bint direct = sx == 8 and ((<uintptr_t>base | <uintptr_t>sz | <uintptr_t>sy) & 7) == 0
    cdef uint64_t[MAX_GRID] first
    cdef uint64_t[MAX_GRID] differs
    cdef uint64_t[VOXELS] gathered
    cdef const uint64_t* row
    cdef const char* corner
    cdef uint16_t* count = state.counts
    cdef uint64_t last_label = 0, label
    cdef uint32_t last_index = 0
    cdef bint remembered = False

    for tz in range(grid[0]):
        for ty in range(grid[1]):
            corner = base + 8 * tz * sz + 8 * ty * sy
            if direct:
                # Whole rows in memory order: what is uniform is known after one sweep, and the
                # mixed sub-blocks are then read again from cache.
                for tx in range(grid[2]):
                    first[tx] = (<const uint64_t*>corner)[8 * tx]
                    differs[tx] = 0
                for z in range(8):
                    for y in range(8):
                        row = <const uint64_t*>(corner + z * sz + y * sy)
                        for tx in range(grid[2]):
                            label = first[tx]
                            differs[tx] |= (
                                (row[0] ^ label) | (row[1] ^ label) | (row[2] ^ label)
                                | (row[3] ^ label) | (row[4] ^ label) | (row[5] ^ label)
                                | (row[6] ^ label) | (row[7] ^ label)
                            )
                            row += 8
            for tx in range(grid[2]):
                if not direct:
                    for z in range(8):
                        for y in range(8):
                            for x in range(8):
                                memcpy(&gathered[64 * z + 8 * y + x],
                                       corner + z * sz + y * sy + (8 * tx + x) * sx, 8)
                    first[tx] = gathered[0]
                    differs[tx] = 0
                    for x in range(VOXELS):
                        differs[tx] |= gathered[x] ^ gathered[0]
                if differs[tx] != 0:
                    if direct:
                        count[0] = encode_mixed(state, corner + 64 * tx, sz, sy)
                    else:
                        count[0] = encode_mixed(state, <const char*>gathered, 512, 64)
                else:
                    reserve(state)
                    if remembered and first[tx] == last_label:
                        state.indices[state.used_indices] = last_index
                        state.used_indices += 1
                    else:
                        add_index(state, first[tx])
                        remembered = True
                        last_label = first[tx]
                        last_index = state.indices[state.used_indices - 1]
                    count[0] = 1
                count += 1
    return 0


cdef int check_side(str what, Py_ssize_t axis, Py_ssize_t side) except -1:
    if side < 8 or side > MAX_SIDE or side & 7:
        raise InvalidError(
            f"{what} has {side} voxels along {'zyx'[axis]}, want a multiple of 8 from 8 to 1024"
        )
    return 0


def label_encode(src):
    """Return a block of labels in DVID's compressed layout.

    Parameters
    ----------
    src : buffer of uint64, shape (z, y, x)
        Each axis a multiple of 8 from 8 to 1024. Any strides, also negative or zero; read in
        place, fastest where x is contiguous.

    Returns
    -------
    bytes
        Label table and local lists in order of first appearance, without duplicates. 24 bytes
        when all voxels are equal.

    Raises
    ------
    InvalidError
        `src` is not a 3-D uint64 buffer, or its shape is not one of the above.
    """
    cdef const uint64_t[:, :, :] voxels
    cdef Encoder state
    cdef Py_ssize_t[3] grid
    cdef Py_ssize_t[3] strides
    cdef Py_ssize_t axis, blocks = 1, size
    cdef const char* base
    cdef uint32_t[4] header
    cdef char* target
    cdef bytes payload

    if src is None:
        raise InvalidError("label_encode: src must be a 3-D uint64 buffer, got None")
    try:
        voxels = src
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidError(f"label_encode: src must be a 3-D uint64 buffer: {error}") from error
    for axis in range(3):
        check_side("label_encode: src", axis, voxels.shape[axis])
        grid[axis] = voxels.shape[axis] >> 3
        strides[axis] = voxels.strides[axis]
        blocks *= grid[axis]
    base = <const char*>&voxels[0, 0, 0]

    memset(&state, 0, sizeof(state))
    try:
        with nogil:
            start_encoder(&state, blocks)
            encode_blocks(&state, base, strides, grid)
        size = HEADER + 8 * <Py_ssize_t>state.count
        if state.count > 1:
            size += 2 * blocks + 4 * state.used_indices + state.used_values
        payload = PyBytes_FromStringAndSize(NULL, size)
        target = PyBytes_AS_STRING(payload)
        header[0] = grid[2]
        header[1] = grid[1]
        header[2] = grid[0]
        header[3] = state.count
        memcpy(target, header, HEADER)
        target += HEADER
        memcpy(target, state.labels, 8 * <size_t>state.count)
        target += 8 * <Py_ssize_t>state.count
        if state.count > 1:
            memcpy(target, state.counts, 2 * blocks)
            target += 2 * blocks
            memcpy(target, state.indices, 4 * state.used_indices)
            target += 4 * state.used_indices
            memcpy(target, state.values, state.used_values)
        return payload
    finally:
        stop_encoder(&state)
