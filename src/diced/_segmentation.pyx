"""Neuroglancer's ``compressed_segmentation`` of labels, in cells of 8x8x8 voxels.

All is 32-bit words, little-endian; offsets count words. A file of one channel::

    word            1: where the channel begins
    2 words x cell  cells x fastest: the table's offset (24 bits) and the bits of a voxel above it;
                    the values' offset. Both offsets are from where the channel begins.
    tables          labels; a uint64 is two words, the low one first
    values          of each cell of two or more labels 512 positions in its table, x fastest, the
                    first in the lowest bits; 1, 2, 4, 8 or 16 bits each

Cells at the upper edges are whole: what lies outside repeats a label that is there. Cells of the
same labels share a table, and all tables lie before all values, so that their offsets reach over
more voxels. `_segmentread` decodes. This module knows nothing of DVID's label blocks, compression,
or where bytes live.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from diced.errors import InvalidError

cdef extern from "_labels.h":
    uint64_t diced_label(const char* place) noexcept nogil
    bint diced_plane_is(const char* plane, ptrdiff_t sy, uint64_t label) noexcept nogil

cdef enum:
    CELL = 512              # voxels
    MOST = CELL + 1         # labels of one: the first voxel is read twice, and may change meanwhile
    SLOTS = 1024            # of the hash of one cell's labels
    SORTED = 16             # tables of at most so many labels are put in order, to be shared more
    TABLE_WORDS = 1 << 24   # what a table's offset can say
    FIRST_SHARED = 1024


# A table that was written: where, and how many labels it has; 0 is an empty slot.
cdef struct Shared:
    uint64_t hash
    uint32_t offset
    uint32_t count


cdef struct Work:
    int width               # words of a label
    size_t cells
    uint32_t* heads         # two words per cell, offsets from where tables and values begin
    uint32_t* tables
    size_t used_tables      # words
    size_t room_tables
    uint8_t* values
    size_t used_values      # bytes
    size_t room_values
    Shared* shared
    uint64_t shared_mask
    uint64_t shared_count


cdef int out_of_memory() except -1 nogil:
    with gil:
        raise MemoryError("segmentation_encode: no memory for the encoded labels")


cdef inline uint64_t mix(const Work* work, uint64_t label) noexcept nogil:
    # Begun with an address, so that nobody can tell which labels would collide.
    label = (label ^ <uintptr_t>work) * <uint64_t>0x9E3779B97F4A7C15
    return (label ^ (label >> 32)) * <uint64_t>0xD6E8FEB86659FD93


cdef void stop(Work* work) noexcept nogil:
    free(work.heads)
    free(work.tables)
    free(work.values)
    free(work.shared)
    memset(work, 0, sizeof(Work))


cdef int reserve(Work* work, size_t words, size_t nbytes) except -1 nogil:
    """Make room for so many more words of tables and bytes of values."""
    cdef void* moved
    if work.room_tables - work.used_tables < words:
        words += work.room_tables + (work.room_tables >> 1)
        moved = realloc(work.tables, 4 * words)
        if moved == NULL:
            return out_of_memory()
        work.tables = <uint32_t*>moved
        work.room_tables = words
    if work.room_values - work.used_values < nbytes:
        nbytes += work.room_values + (work.room_values >> 1)
        moved = realloc(work.values, nbytes)
        if moved == NULL:
            return out_of_memory()
        work.values = <uint8_t*>moved
        work.room_values = nbytes
    return 0


cdef int grow_shared(Work* work) except -1 nogil:
    cdef uint64_t before = work.shared_mask + 1 if work.shared != NULL else 0
    cdef uint64_t after = 2 * before if before > 0 else FIRST_SHARED, i, slot
    cdef Shared* old = work.shared
    cdef Shared* made = <Shared*>calloc(after, sizeof(Shared))
    if made == NULL:
        return out_of_memory()
    for i in range(before):
        if old[i].count != 0:
            slot = old[i].hash & (after - 1)
            while made[slot].count != 0:
                slot = (slot + 1) & (after - 1)
            made[slot] = old[i]
    work.shared = made
    work.shared_mask = after - 1
    free(old)
    return 0


cdef int too_many() except -1 nogil:
    with gil:
        raise InvalidError(
            "segmentation_encode: the tables of labels are beyond the 64 MiB that"
            " compressed_segmentation can address; ask for a smaller volume"
        )


cdef int put_table(Work* work, const uint64_t* labels, uint32_t count, uint32_t* offset) \
        except -1 nogil:
    """Find the table of just these labels, or append it."""
    cdef uint64_t code = count, slot
    cdef uint32_t[2 * MOST] table
    cdef uint32_t i, words = work.width * count
    cdef Shared* known
    if work.width == 2:
        memcpy(table, labels, 8 * count)
    else:
        for i in range(count):
            table[i] = <uint32_t>labels[i]
    for i in range(count):
        code = mix(work, code + (labels[i] ^ (code >> 29)))
    code ^= code >> 32
    if 2 * work.shared_count >= work.shared_mask:
        grow_shared(work)
    slot = code & work.shared_mask
    while work.shared[slot].count != 0:
        known = &work.shared[slot]
        if (known.hash == code and known.count == count
                and memcmp(work.tables + known.offset, table, 4 * words) == 0):
            offset[0] = known.offset
            return 0
        slot = (slot + 1) & work.shared_mask
    if 2 * work.cells + work.used_tables >= TABLE_WORDS:
        return too_many()
    reserve(work, words, 0)
    work.shared[slot].hash = code
    work.shared[slot].offset = offset[0] = <uint32_t>work.used_tables
    work.shared[slot].count = count
    work.shared_count += 1
    memcpy(work.tables + work.used_tables, table, 4 * words)
    work.used_tables += words
    return 0


cdef int scan(const Work* work, const char* corner, Py_ssize_t sz, Py_ssize_t sy,
              uint64_t* labels, uint16_t* positions) noexcept nogil:
    """List the labels of a cell by first appearance and each voxel's place; return how many."""
    cdef uint16_t[SLOTS] slots      # position + 1
    cdef uint64_t last = diced_label(corner), before = last, label, seen
    cdef uint64_t same
    cdef uint32_t slot, position = 0, position_before = 0, swapped
    cdef int count = 1, z, y, x
    cdef const char* row
    memset(slots, 0, sizeof(slots))
    labels[0] = last
    slots[mix(work, last) >> 54] = 1
    for z in range(8):
        for y in range(8):
            row = corner + z * sz + y * sy
            seen = 0
            for x in range(8):
                seen |= diced_label(row + 8 * x) ^ last
            if seen == 0:
                same = position * <uint64_t>0x0001000100010001
                memcpy(positions, &same, 8)
                memcpy(positions + 4, &same, 8)
                positions += 8
                continue
            for x in range(8):
                label = diced_label(row + 8 * x)
                if label != last:
                    swapped = position
                    if label == before:
                        position = position_before
                    else:
                        slot = <uint32_t>(mix(work, label) >> 54)
                        while slots[slot] != 0 and labels[slots[slot] - 1] != label:
                            slot = (slot + 1) & (SLOTS - 1)
                        if slots[slot] == 0:
                            labels[count] = label
                            count += 1
                            slots[slot] = count
                        position = slots[slot] - 1
                    position_before = swapped
                    before = last
                    last = label
                positions[x] = position
            positions += 8
    return count


cdef bint sort(uint64_t* labels, uint16_t* positions, int count) noexcept nogil:
    """Put few labels in order."""
    cdef uint8_t[SORTED] order      # rank -> place before
    cdef uint16_t[SORTED] ranks
    cdef uint64_t label
    cdef int i, j
    cdef bint moved = False
    for i in range(count):
        label = labels[i]
        j = i
        while j > 0 and labels[j - 1] > label:
            labels[j] = labels[j - 1]
            order[j] = order[j - 1]
            j -= 1
            moved = True
        labels[j] = label
        order[j] = i
    if moved:
        for i in range(count):
            ranks[order[i]] = i
        for i in range(CELL):
            positions[i] = ranks[positions[i]]
    return moved


cdef inline void pack(const uint8_t* positions, uint8_t* target, const int bits) noexcept nogil:
    """Write 64 rows, each as one word whose overhang the next row overwrites; bits <= 4."""
    cdef uint64_t word
    cdef int row
    for row in range(64):
        memcpy(&word, positions + 8 * row, 8)
        # Neighbours close up: eight bytes, four pairs, two fours, one row.
        word = ((word & <uint64_t>0x00FF00FF00FF00FF)
                | ((word & <uint64_t>0xFF00FF00FF00FF00) >> (8 - bits)))
        word = ((word & <uint64_t>0x0000FFFF0000FFFF)
                | ((word & <uint64_t>0xFFFF0000FFFF0000) >> (16 - 2 * bits)))
        word = (word & <uint64_t>0xFFFFFFFF) | ((word >> 32) << (4 * bits))
        memcpy(target + row * bits, &word, 8)


cdef int put_mixed(Work* work, const char* corner, Py_ssize_t sz, Py_ssize_t sy,
                   uint32_t* head) except -1 nogil:
    """Encode a cell of two or more labels."""
    cdef uint64_t[MOST] labels
    cdef uint16_t[CELL] positions
    cdef uint8_t[CELL] narrow
    cdef uint32_t offset = 0
    cdef uint8_t* target
    cdef int count = scan(work, corner, sz, sy, labels, positions), bits = 1, i
    if count <= SORTED:
        sort(labels, positions, count)
    while 1 << bits < count:
        bits *= 2
    put_table(work, labels, count, &offset)
    reserve(work, 0, 64 * bits + 8)
    target = work.values + work.used_values
    if bits == 16:
        memcpy(target, positions, 2 * CELL)
    else:
        for i in range(CELL):
            narrow[i] = positions[i] & 0xFF
        if bits == 1:
            pack(narrow, target, 1)
        elif bits == 2:
            pack(narrow, target, 2)
        elif bits == 4:
            pack(narrow, target, 4)
        else:
            memcpy(target, narrow, CELL)
    head[0] = offset | <uint32_t>bits << 24
    head[1] = <uint32_t>(work.used_values >> 2)
    work.used_values += 64 * bits
    return 0


cdef void gather(const char* corner, const Py_ssize_t* strides, const Py_ssize_t* sides,
                 int item, uint64_t* cell) noexcept nogil:
    """Copy a cell, or the part of one that there is; what is missing repeats the first voxel."""
    cdef Py_ssize_t z, y, x
    cdef const char* place
    cdef uint32_t label
    cdef uint64_t first = 0
    memcpy(&first, corner, item)
    if sides[0] < 8 or sides[1] < 8 or sides[2] < 8:
        for x in range(CELL):
            cell[x] = first
    for z in range(sides[0]):
        for y in range(sides[1]):
            place = corner + z * strides[0] + y * strides[1]
            if item == 8:
                for x in range(sides[2]):
                    memcpy(cell + 64 * z + 8 * y + x, place + x * strides[2], 8)
            else:
                for x in range(sides[2]):
                    memcpy(&label, place + x * strides[2], 4)
                    cell[64 * z + 8 * y + x] = label


cdef int encode(Work* work, const char* base, const Py_ssize_t* strides,
                const Py_ssize_t* shape) except -1 nogil:
    """Encode a volume; all is (z, y, x)."""
    cdef uint64_t[CELL] gathered
    cdef Py_ssize_t[3] grid
    cdef Py_ssize_t[3] sides
    cdef Py_ssize_t z, y, x, sz, sy, plane
    cdef int item = 4 * work.width, axis
    cdef const char* corner
    cdef uint32_t* head
    cdef uint64_t label, last_label = 0
    cdef uint32_t last_offset = 0
    cdef bint remembered = False
    for axis in range(3):
        grid[axis] = (shape[axis] + 7) >> 3
    # As many as a table's offset could ever reach over; before anything is multiplied out.
    if grid[0] > TABLE_WORDS or grid[1] > TABLE_WORDS or grid[2] > TABLE_WORDS:
        return too_many()
    if grid[0] * grid[1] > TABLE_WORDS or grid[0] * grid[1] * grid[2] > TABLE_WORDS:
        return too_many()
    work.cells = grid[0] * grid[1] * grid[2]
    work.heads = <uint32_t*>malloc(8 * work.cells)
    if work.heads == NULL:
        return out_of_memory()
    grow_shared(work)
    head = work.heads
    for z in range(grid[0]):
        sides[0] = min(8, shape[0] - 8 * z)
        for y in range(grid[1]):
            sides[1] = min(8, shape[1] - 8 * y)
            for x in range(grid[2]):
                sides[2] = min(8, shape[2] - 8 * x)
                corner = base + 8 * (z * strides[0] + y * strides[1] + x * strides[2])
                if (item == 8 and strides[2] == 8
                        and sides[0] == 8 and sides[1] == 8 and sides[2] == 8):
                    sz = strides[0]
                    sy = strides[1]
                else:
                    gather(corner, strides, sides, item, gathered)
                    corner = <const char*>gathered
                    sz = 512
                    sy = 64
                label = diced_label(corner)
                plane = 0
                while plane < 8 and diced_plane_is(corner + plane * sz, sy, label):
                    plane += 1
                if plane < 8:
                    put_mixed(work, corner, sz, sy, head)
                else:
                    if not remembered or label != last_label:
                        put_table(work, &label, 1, &last_offset)
                        last_label = label
                        remembered = True
                    head[0] = last_offset
                    head[1] = <uint32_t>(work.used_values >> 2)
                head += 2
    return 0


cdef void write(const Work* work, uint8_t* out) noexcept nogil:
    """Write the file: offsets become what they are from where the channel begins."""
    cdef uint32_t one = 1, tables = <uint32_t>(2 * work.cells)
    cdef uint32_t values = tables + <uint32_t>work.used_tables
    cdef size_t i
    for i in range(work.cells):
        work.heads[2 * i] += tables
        work.heads[2 * i + 1] += values
    memcpy(out, &one, 4)
    memcpy(out + 4, work.heads, 8 * work.cells)
    out += 4 + 8 * work.cells
    if work.used_tables > 0:
        memcpy(out, work.tables, 4 * work.used_tables)
    if work.used_values > 0:
        memcpy(out + 4 * work.used_tables, work.values, work.used_values)


cdef class Volume:
    """A caller's array of labels of 64 or 32 bits, held."""

    def __cinit__(self, array, str what, bint writable):
        cdef int axis
        cdef bytes kind
        try:
            PyObject_GetBuffer(
                array, &self.buffer,
                PyBUF_STRIDES | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
            )
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidError(
                f"{what} must be a{' writable' if writable else ''} 3-D buffer of uint64 or"
                f" uint32: {error}"
            ) from None
        self.held = True
        kind = b"" if self.buffer.format == NULL else <bytes>self.buffer.format
        if (self.buffer.ndim != 3 or self.buffer.itemsize not in (4, 8)
                or kind.lstrip(b"@=<") not in (b"Q", b"L", b"I", b"N")):
            raise InvalidError(
                f"{what} must be a 3-D buffer of uint64 or uint32; got {self.buffer.ndim}"
                f" dimensions of format {kind.decode('latin-1')!r}"
            )
        self.width = <int>(self.buffer.itemsize // 4)
        self.base = <char*>self.buffer.buf
        for axis in range(3):
            self.shape[axis] = self.buffer.shape[axis]
            self.strides[axis] = self.buffer.strides[axis]
            if self.shape[axis] < 1:
                raise InvalidError(f"{what} has no voxels along {'zyx'[axis]}")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)


def segmentation_encode(src):
    """Return labels as a ``compressed_segmentation`` file of one channel.

    Parameters
    ----------
    src : buffer of uint64 or uint32, shape (z, y, x)
        Sides of at least 1; any strides, read in place, fastest where x is contiguous.

    Returns
    -------
    bytes
        At most 5,128 per cell of 512 voxels, and usually a fiftieth of `src`.

    Raises
    ------
    InvalidError
        `src` is not such a buffer, or has so many different labels near each other that the
        format cannot address them.
    """
    cdef Volume volume = Volume(src, "segmentation_encode: src", False)
    cdef Work work
    cdef bytes file
    cdef uint8_t* out
    memset(&work, 0, sizeof(Work))
    work.width = volume.width
    try:
        with nogil:
            encode(&work, volume.base, volume.strides, volume.shape)
        file = PyBytes_FromStringAndSize(
            NULL, 4 + 8 * work.cells + 4 * work.used_tables + work.used_values
        )
        out = <uint8_t*>PyBytes_AS_STRING(file)
        with nogil:
            write(&work, out)
    finally:
        stop(&work)
    return file
