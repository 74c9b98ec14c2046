"""Labels into the bytes of a label block, read in place from strided windows.

The layout is described in ``_codec``. This module knows nothing of compression, checksums or where
the bytes live.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from diced.errors import InvalidError

cdef extern from "_labels.h":
    void diced_prefetch(const char* place) noexcept nogil
    uint64_t diced_label(const char* place) noexcept nogil
    int diced_first(uint64_t word) noexcept nogil
    int diced_population(uint64_t word) noexcept nogil
    bint diced_plane_is(const char* plane, ptrdiff_t sy, uint64_t label) noexcept nogil
    uint64_t diced_plane_bits(const char* plane, ptrdiff_t sy, uint64_t label) noexcept nogil

cdef enum:
    MAX_SIDE = 1024
    FIRST_SLOTS = 512
    FEW = 16            # most labels that are told apart by one sweep for each
    LOOK = 4            # after so many sweeps at least half of the voxels must be known
    LINE = 64
    SPARE = 2           # workspaces kept for later calls
    SPARE_BYTES = 1 << 22   # whose last payload was at most this


# The bits of a byte spread out to every 2nd, 3rd, 4th of a word, the top one first.
cdef uint64_t[5][256] SPREAD
cdef int _width, _byte, _bit
for _width in range(2, 5):
    for _byte in range(256):
        SPREAD[_width][_byte] = 0
        for _bit in range(8):
            if _byte >> (7 - _bit) & 1:
                SPREAD[_width][_byte] |= <uint64_t>1 << (64 - _width * (_bit + 1))


cdef int out_of_memory() except -1 nogil:
    with gil:
        raise MemoryError("label_encode: no memory for the block's tables")


cdef inline uint64_t place(const Encoder* state, uint64_t label) noexcept nogil:
    # Eight labels that differ in their low bits lie side by side: consecutive labels, the usual
    # ones, then share cache lines. Two rounds, begun with an address: groups in any steps spread,
    # and nobody can tell which would collide.
    cdef uint64_t group = ((label >> 3) ^ <uintptr_t>state) * <uint64_t>0x9E3779B97F4A7C15
    group = ((group ^ (group >> 32)) * <uint64_t>0xD6E8FEB86659FD93) >> state.shift
    return (group & ~<uint64_t>7) | (label & 7)


cdef Workspace start_workspace() except NULL nogil:
    cdef Encoder* state = <Encoder*>calloc(1, sizeof(Encoder))
    if state == NULL:
        out_of_memory()
    return state


cdef void stop_workspace(Workspace workspace) noexcept nogil:
    cdef Encoder* state = <Encoder*>workspace
    free(state.labels)
    free(state.slots)
    free(state.counts)
    free(state.indices)
    free(state.values)
    free(state.spare)
    free(state)


cdef void use_slots(Encoder* state, uint64_t slots) noexcept nogil:
    state.slot_mask = slots - 1
    state.shift = 64
    while slots > 1:
        slots >>= 1
        state.shift -= 1


cdef int grow_table(Encoder* state) except -1 nogil:
    """Double the hash, and move what it holds."""
    cdef uint64_t before = state.slot_mask + 1, after = 2 * before, i, slot
    cdef Slot* old = state.slots
    cdef void* moved
    if old == NULL:
        before = 0
        after = FIRST_SLOTS
    moved = realloc(state.labels, max(after >> 1, state.room_slots >> 1) * sizeof(uint64_t))
    if moved == NULL:
        return out_of_memory()
    state.labels = <uint64_t*>moved
    moved = calloc(after, sizeof(Slot))
    if moved == NULL:
        return out_of_memory()
    state.slots = <Slot*>moved
    state.room_slots = after
    use_slots(state, after)
    for i in range(before):
        if old[i].entry != 0:
            slot = place(state, old[i].label)
            while state.slots[slot].entry != 0:
                slot = (slot + 1) & state.slot_mask
            state.slots[slot] = old[i]
    free(old)
    return 0


cdef int reserve(Encoder* state, size_t indices, size_t values) except -1 nogil:
    """Make room for so many more."""
    cdef void* moved
    if state.room_indices - state.used_indices < indices:
        indices += 2 * state.room_indices
        moved = realloc(state.indices, indices * sizeof(uint32_t))
        if moved == NULL:
            return out_of_memory()
        state.indices = <uint32_t*>moved
        state.room_indices = indices
    if state.room_values - state.used_values < values:
        values += 2 * state.room_values
        moved = realloc(state.values, values)
        if moved == NULL:
            return out_of_memory()
        state.values = <uint8_t*>moved
        state.room_values = values
    return 0


cdef int start_block(Encoder* state, size_t blocks) except -1 nogil:
    """Empty the workspace; room for a count, an index and 64 bytes of values per sub-block."""
    cdef void* moved
    cdef uint64_t slots = FIRST_SLOTS
    # As many slots as the block before needed: what was large once is not cleared for ever.
    while slots < 2 * <uint64_t>state.count and slots < state.room_slots:
        slots *= 2
    state.count = 0
    state.used_indices = 0
    state.used_values = 0
    state.blocks = blocks
    if state.slots == NULL:
        grow_table(state)
    else:
        use_slots(state, slots)
        memset(state.slots, 0, slots * sizeof(Slot))
    if state.room_counts < blocks:
        moved = realloc(state.counts, blocks * sizeof(uint16_t))
        if moved == NULL:
            return out_of_memory()
        state.counts = <uint16_t*>moved
        state.room_counts = blocks
    return reserve(state, blocks, 64 * blocks)


cdef inline int enter(Encoder* state, uint64_t label, Slot** found) except -1 nogil:
    """Find the slot of a label, which is entered into the table when new."""
    cdef uint64_t slot = place(state, label)
    while state.slots[slot].entry != 0:
        if state.slots[slot].label == label:
            found[0] = &state.slots[slot]
            return 0
        slot = (slot + 1) & state.slot_mask
    if 2 * <uint64_t>state.count >= state.slot_mask:
        grow_table(state)
        slot = place(state, label)
        while state.slots[slot].entry != 0:
            slot = (slot + 1) & state.slot_mask
    state.labels[state.count] = label
    state.count += 1
    state.slots[slot].label = label
    state.slots[slot].entry = state.count
    state.slots[slot].seen = 0
    found[0] = &state.slots[slot]
    return 0


cdef inline void spread(const uint8_t* planes, uint8_t* target, const int bits) noexcept nogil:
    """Write 64 rows as `pack` does, from bit planes of 64 bytes, the lowest bit's first."""
    cdef uint64_t word
    cdef int row, bit
    for row in range(64):
        word = 0
        for bit in range(bits):
            word |= SPREAD[bits][planes[64 * bit + row]] << bit
        word = swap(word)
        memcpy(target + row * bits, &word, 8)


cdef int encode_many(Encoder* state, uint32_t number, const char* corner, Py_ssize_t sz,
                     Py_ssize_t sy) except -1 nogil:
    """Append a sub-block of any number of labels, voxel by voxel; returns the number."""
    cdef uint16_t[VOXELS] positions
    cdef uint8_t[VOXELS] narrow
    cdef uint16_t* target = positions
    cdef uint8_t* packed
    cdef uint32_t* indices
    cdef Slot* slot = NULL
    cdef const char* row
    cdef uint64_t label, last, before
    cdef int z, y, x, i, position = 0, position_before = 0, count = 0, bits = 0

    reserve(state, VOXELS, 9 * 64 + 8)
    indices = state.indices + state.used_indices
    number += 1
    before = last = ~diced_label(corner)
    for z in range(8):
        for y in range(8):
            row = corner + z * sz + y * sy
            for x in range(8):
                label = diced_label(row + 8 * x)
                if label != last:
                    i = position
                    if label == before and count > 1:
                        position = position_before
                    else:
                        enter(state, label, &slot)
                        if slot.seen >> 9 != number:
                            slot.seen = number << 9 | <uint32_t>count
                            indices[count] = slot.entry - 1
                            count += 1
                        position = slot.seen & (VOXELS - 1)
                    position_before = i
                    before = last
                    last = label
                target[x] = position
            target += 8

    state.used_indices += count
    while 1 << bits < count:
        bits += 1
    packed = state.values + state.used_values
    state.used_values += 64 * bits
    if bits == 9:
        pack9(positions, packed)
    else:
        for i in range(VOXELS):
            narrow[i] = positions[i] & 0xFF
        pack(narrow, packed, bits)
    return count


cdef int encode_mixed(Encoder* state, uint32_t number, const char* corner, Py_ssize_t sz,
                      Py_ssize_t sy) except -1 nogil:
    """Append a sub-block of two or more labels; returns how many."""
    cdef uint64_t[8] unknown        # a bit per voxel, a word per plane
    cdef uint64_t[4][8] planes      # the bits of the voxels' positions
    cdef uint64_t[FEW] labels
    cdef uint64_t bits
    cdef Slot* slot = NULL
    cdef uint8_t* packed
    cdef int count = 0, first = 0, z, bit, place, left, width = 1

    memset(unknown, 0xFF, sizeof(unknown))
    memset(planes, 0, sizeof(planes))
    while first < 8:
        if count == FEW:
            return encode_many(state, number, corner, sz, sy)
        if count == LOOK:
            left = 0
            for z in range(first, 8):
                left += diced_population(unknown[z])
            if left > VOXELS // 2:
                return encode_many(state, number, corner, sz, sy)
        place = diced_first(unknown[first])
        labels[count] = diced_label(corner + first * sz + (place >> 3) * sy + 8 * (place & 7))
        for z in range(first, 8):
            if unknown[z] != 0:
                bits = diced_plane_bits(corner + z * sz, sy, labels[count])
                unknown[z] &= ~bits
                for bit in range(4):
                    if count >> bit & 1:
                        planes[bit][z] |= bits
        count += 1
        while first < 8 and unknown[first] == 0:
            first += 1

    reserve(state, count, 4 * 64 + 8)
    for z in range(count):
        enter(state, labels[z], &slot)
        state.indices[state.used_indices + z] = slot.entry - 1
    state.used_indices += count
    packed = state.values + state.used_values
    if count == 2:
        memcpy(packed, planes[0], 64)
    elif count <= 4:
        width = 2
        spread(<const uint8_t*>planes, packed, 2)
    elif count <= 8:
        width = 3
        spread(<const uint8_t*>planes, packed, 3)
    else:
        width = 4
        spread(<const uint8_t*>planes, packed, 4)
    state.used_values += 64 * width
    return count


cdef int encode_blocks(Encoder* state, const char* base, const Py_ssize_t* strides,
                       const Py_ssize_t* grid) except -1 nogil:
    """Code every sub-block in order. `grid` is in sub-blocks, `strides` in bytes, both ZYX."""
    cdef Py_ssize_t sz = strides[0], sy = strides[1], sx = strides[2], tz, ty, tx, z, y, x
    cdef Py_ssize_t slab, line, row
    cdef bint direct = sx == 8
    cdef uint64_t[VOXELS] gathered
    cdef const char* corner
    cdef const char* following
    cdef uint64_t label
    cdef uint32_t number = 0
    cdef Slot* slot = NULL
    cdef uint64_t last_label = 0
    cdef uint32_t last_index = 0
    cdef bint remembered = False

    for slab in range(grid[0] * grid[1]):
        tz = slab // grid[1]
        ty = slab % grid[1]
        line = row = 0
        following = NULL
        if slab + 1 < grid[0] * grid[1]:
            following = (base + 8 * ((slab + 1) // grid[1]) * sz
                         + 8 * ((slab + 1) % grid[1]) * sy)
        for tx in range(grid[2]):
            corner = base + 8 * tz * sz + 8 * ty * sy + 8 * tx * sx
            if direct:
                if following != NULL:
                    # As many lines of the next sub-blocks as this one has, whole rows at a time.
                    for x in range(64):
                        diced_prefetch(following + (row >> 3) * sz + (row & 7) * sy + LINE * line)
                        line += 1
                        if line == grid[2]:
                            line = 0
                            row += 1
                z = sz
                y = sy
            else:
                for z in range(8):
                    for y in range(8):
                        for x in range(8):
                            memcpy(&gathered[64 * z + 8 * y + x],
                                   corner + z * sz + y * sy + x * sx, 8)
                corner = <const char*>gathered
                z = 512
                y = 64
            label = diced_label(corner)
            x = 0
            while x < 8 and diced_plane_is(corner + x * z, y, label):
                x += 1
            if x < 8:
                state.counts[number] = encode_mixed(state, number, corner, z, y)
            else:
                if not remembered or label != last_label:
                    enter(state, label, &slot)
                    remembered = True
                    last_label = label
                    last_index = slot.entry - 1
                reserve(state, 1, 0)
                state.indices[state.used_indices] = last_index
                state.used_indices += 1
                state.counts[number] = 1
            number += 1
    return 0


cdef Py_ssize_t encode_block(Workspace workspace, const char* src, const Py_ssize_t* strides,
                             const Py_ssize_t* shape) except -1 nogil:
    cdef Encoder* state = <Encoder*>workspace
    cdef Py_ssize_t[3] grid
    cdef Py_ssize_t size
    cdef int axis
    for axis in range(3):
        grid[axis] = shape[axis] >> 3
        state.header[2 - axis] = grid[axis]
    start_block(state, grid[0] * grid[1] * grid[2])
    encode_blocks(state, src, strides, grid)
    state.header[3] = state.count
    size = HEADER + 8 * <Py_ssize_t>state.count
    if state.count > 1:
        size += 2 * state.blocks + 4 * state.used_indices + state.used_values
    return size


cdef void write_block(Workspace workspace, uint8_t* out) noexcept nogil:
    cdef Encoder* state = <Encoder*>workspace
    memcpy(out, state.header, HEADER)
    out += HEADER
    memcpy(out, state.labels, 8 * <size_t>state.count)
    out += 8 * <size_t>state.count
    if state.count > 1:
        memcpy(out, state.counts, 2 * state.blocks)
        out += 2 * state.blocks
        memcpy(out, state.indices, 4 * state.used_indices)
        out += 4 * state.used_indices
        memcpy(out, state.values, state.used_values)


cdef Py_ssize_t most_bytes(const Py_ssize_t* shape) noexcept nogil:
    # A table entry, an index and 9 bits per voxel, a count per sub-block.
    cdef Py_ssize_t blocks = (shape[0] >> 3) * (shape[1] >> 3) * (shape[2] >> 3)
    return HEADER + blocks * (12 * VOXELS + 9 * 64 + 2)


cdef Py_ssize_t encode_into(Workspace workspace, const char* src, const Py_ssize_t* strides,
                            const Py_ssize_t* shape, uint8_t* out, Py_ssize_t room) \
        except -1 nogil:
    cdef Py_ssize_t size = encode_block(workspace, src, strides, shape)
    if size > room:
        with gil:
            raise InvalidError(f"label_encode: the payload has {size} bytes, room is {room}")
    write_block(workspace, out)
    return size


cdef int check_side(str what, Py_ssize_t axis, Py_ssize_t side) except -1:
    if side < 8 or side > MAX_SIDE or side & 7:
        raise InvalidError(
            f"{what} has {side} voxels along {'zyx'[axis]}, want a multiple of 8 from 8 to 1024"
        )
    return 0


cdef class _Held:
    """A workspace that ends with this, and the size of the block in it."""

    def __cinit__(self):
        self.workspace = start_workspace()

    def __dealloc__(self):
        if self.workspace != NULL:
            stop_workspace(self.workspace)


# Popping and appending are atomic, with and without a GIL.
cdef list _spare = []


cdef _Held hold_block(src):
    """Check `src` and encode it into a workspace."""
    cdef const uint64_t[:, :, :] voxels
    cdef _Held held
    cdef Py_ssize_t[3] shape
    cdef Py_ssize_t[3] strides
    cdef Py_ssize_t axis
    cdef const char* base

    if src is None:
        raise InvalidError("label_encode: src must be a 3-D uint64 buffer, got None")
    try:
        voxels = src
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidError(f"label_encode: src must be a 3-D uint64 buffer: {error}") from error
    for axis in range(3):
        check_side("label_encode: src", axis, voxels.shape[axis])
        shape[axis] = voxels.shape[axis]
        strides[axis] = voxels.strides[axis]
    base = <const char*>&voxels[0, 0, 0]
    try:
        held = _spare.pop()
    except IndexError:
        held = _Held()
    with nogil:
        held.size = encode_block(held.workspace, base, strides, shape)
    return held


cdef int let_go(_Held held) except -1:
    if held.size <= SPARE_BYTES and len(_spare) < SPARE:
        _spare.append(held)
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
    cdef _Held held = hold_block(src)
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, held.size)
    write_block(held.workspace, <uint8_t*>PyBytes_AS_STRING(payload))
    let_go(held)
    return payload
