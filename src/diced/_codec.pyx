"""The bytes of a label block: DVID's compressed layout, into and out of strided windows.

A block of uint64 labels is cut into 8x8x8 sub-blocks. The payload is, little-endian::

    u32 x 3     sub-blocks along x, y, z
    u32         N, entries in the label table
    u64 x N     label table                              (the payload ends here when N = 1)
    u16 x S     labels in each sub-block, x fastest
    u32 x sum   for each sub-block its indices into the label table
    bytes       for each sub-block of two or more labels 512 packed positions in its index list

Positions take as many bits as the largest needs, first voxel in the top bits, so a row of eight
voxels is exactly `bits` bytes and a sub-block 64 times that. This module knows nothing of
compression, checksums or where the bytes live.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from diced._encoder cimport HEADER, VOXELS, check_side, swap
from diced._encoder import label_encode
from diced.errors import CorruptError, InvalidError

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(_M_X64)
    #include <emmintrin.h>
    #define diced_stream(p, v) _mm_stream_si64((long long *)(p), (long long)(v))
    #define diced_stream_end() _mm_sfence()
    #else
    #define diced_stream(p, v) (*(p) = (v))
    #define diced_stream_end() ((void)0)
    #endif
    """
    void diced_stream(uint64_t* target, uint64_t value) noexcept nogil
    void diced_stream_end() noexcept nogil

cdef enum:
    ABREAST = 8         # sub-blocks decoded side by side: 512 bytes of a row, their tables in L1


# Bits of a position in a list of so many labels. A lookup: the counts of a whole block are summed
# for every voxel that is read, and nine comparisons each took 5 us. Counts are masked before they
# are checked, hence the room.
cdef uint8_t[2 * VOXELS] WIDTHS
cdef int listed
for listed in range(2 * VOXELS):
    WIDTHS[listed] = min(9, max(0, listed - 1).bit_length())


cdef inline int width(unsigned int count) noexcept nogil:
    return WIDTHS[count & (2 * VOXELS - 1)]


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


cdef struct Layout:
    Py_ssize_t gz
    Py_ssize_t gy
    Py_ssize_t gx
    uint32_t labels         # entries in the table; 1 means solid: there are no other sections
    const uint8_t* table
    const uint8_t* counts
    const uint8_t* indices
    const uint8_t* values
    const uint8_t* end


cdef struct Tile:
    int bits
    const uint8_t* values   # readable for 8 bytes after the last row
    uint64_t[VOXELS] labels # what each position means


cdef int corrupt(const char* what, int64_t got, int64_t wanted) except -1 nogil:
    with gil:
        raise CorruptError(f"label block: {what.decode()}: got {got}, want {wanted}")


cdef int read_layout(const uint8_t* data, Py_ssize_t size, const Py_ssize_t* grid,
                     Layout* block) except -1 nogil:
    """Check all of a payload but its packed values, and find its sections."""
    cdef int64_t voxels = <int64_t>grid[0] * grid[1] * grid[2] * VOXELS
    cdef int64_t blocks = voxels >> 9, total = 0, rows = 0, labels, used, i
    cdef unsigned int count, most = 0
    cdef uint32_t index, largest = 0

    if size < HEADER + 8:
        return corrupt("bytes, at least", size, HEADER + 8)
    block.gx = load32(data)
    block.gy = load32(data + 4)
    block.gz = load32(data + 8)
    if block.gz != grid[0]:
        return corrupt("sub-blocks along z", block.gz, grid[0])
    if block.gy != grid[1]:
        return corrupt("sub-blocks along y", block.gy, grid[1])
    if block.gx != grid[2]:
        return corrupt("sub-blocks along x", block.gx, grid[2])
    block.labels = load32(data + 12)
    labels = block.labels
    if labels < 1:
        return corrupt("entries in the label table, at least", labels, 1)
    if labels > voxels:
        return corrupt("entries in the label table, at most one per voxel", labels, voxels)
    block.table = data + HEADER
    block.end = data + size
    used = HEADER + 8 * labels
    if labels == 1:
        if size != used:
            return corrupt("bytes of a solid block", size, used)
        block.counts = block.indices = block.values = NULL
        return 0

    if size - used < 2 * blocks:
        return corrupt("bytes for the label table and counts, at least", size, used + 2 * blocks)
    block.counts = data + used
    for i in range(blocks):
        count = load16(block.counts + 2 * i)
        most = count if count > most else most
        total += count
        rows += width(count)
    if most > VOXELS:
        return corrupt("labels in a sub-block, at most", most, VOXELS)
    used += 2 * blocks
    if used + 4 * total + 64 * rows != size:
        return corrupt("bytes, as the counts imply", size, used + 4 * total + 64 * rows)
    block.indices = data + used
    block.values = block.indices + 4 * total
    for i in range(total):
        index = load32(block.indices + 4 * i)
        largest = index if index > largest else largest
    if largest >= block.labels:
        return corrupt("index into the label table, below its length", largest, labels)
    return 0


cdef inline uint64_t excess(const uint8_t* values, uint64_t top, const int bits) noexcept nogil:
    """Top bit set if one of the 512 values is above `top`; bits <= 8."""
    cdef int row, i
    cdef uint64_t word, seen = 0
    for row in range(64):
        word = swap(load64(values + row * bits)) >> (64 - 8 * bits)
        for i in range(8):
            seen |= top - ((word >> (bits * i)) & ((1 << bits) - 1))
    return seen


cdef inline uint64_t word9(const uint8_t* row, int i) noexcept nogil:
    # Voxel i of a 9-byte row begins at bit 9 * i = byte i, bit i.
    return ((<uint64_t>row[i] << 8 | row[i + 1]) >> (7 - i)) & 511


cdef int check_values(const uint8_t* values, unsigned int count, int bits) except -1 nogil:
    """Check that all positions of a sub-block lie inside its list of `count` labels."""
    cdef uint64_t seen = 0, top = count - 1
    cdef int row, i
    if bits == 2:
        seen = excess(values, top, 2)
    elif bits == 3:
        seen = excess(values, top, 3)
    elif bits == 4:
        seen = excess(values, top, 4)
    elif bits <= 8:
        seen = excess(values, top, bits)
    else:
        for row in range(64):
            for i in range(8):
                seen |= top - word9(values + 9 * row, i)
    if seen >> 63:
        with gil:
            raise CorruptError(
                f"label block: a packed position is past its sub-block's list of {count} labels"
            )
    return 0


cdef inline void unpack(const Tile* tile, int row, uint64_t* target, const int bits) \
        noexcept nogil:
    cdef uint64_t word = swap(load64(tile.values + row * bits))
    cdef int i
    for i in range(8):
        target[i] = tile.labels[(word >> (64 - bits * (i + 1))) & ((1 << bits) - 1)]


cdef inline void decode_row(const Tile* tile, int row, uint64_t* target) noexcept nogil:
    """Write the eight voxels of one row."""
    cdef uint64_t label
    cdef int i
    if tile.bits == 0:
        label = tile.labels[0]
        for i in range(8):
            target[i] = label
    elif tile.bits == 1:
        unpack(tile, row, target, 1)
    elif tile.bits == 2:
        unpack(tile, row, target, 2)
    elif tile.bits == 3:
        unpack(tile, row, target, 3)
    elif tile.bits == 4:
        unpack(tile, row, target, 4)
    elif tile.bits == 8:
        unpack(tile, row, target, 8)
    elif tile.bits < 8:
        unpack(tile, row, target, tile.bits)
    else:
        for i in range(8):
            target[i] = tile.labels[word9(tile.values + 9 * row, i)]


cdef int open_tile(const Layout* block, Tile* tile, uint8_t* spare, unsigned int count,
                   const uint8_t* indices, const uint8_t* values) except -1 nogil:
    """Resolve a sub-block's labels and check its values. `spare`: 584 bytes for the last one."""
    cdef int bits = width(count)
    cdef unsigned int i
    tile.bits = bits
    tile.labels[0] = 0
    for i in range(count):
        tile.labels[i] = load64(block.table + 8 * <size_t>load32(indices + 4 * i))
    if bits > 0:
        tile.values = values
        if block.end - values < 64 * bits + 8:
            memset(spare, 0, 9 * 64 + 8)
            memcpy(spare, values, 64 * bits)
            tile.values = spare
        if <int>count < 1 << bits:
            check_values(tile.values, count, bits)
    return 0


cdef int decode_tiles(const Tile* tiles, Py_ssize_t tx, Py_ssize_t tile_count, char* out,
                      const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                      Py_ssize_t tz, Py_ssize_t ty, bint direct, bint stream) except -1 nogil:
    """Write what the window [low, high) has of adjacent sub-blocks, row by row."""
    cdef Py_ssize_t z, y, x, i
    cdef Py_ssize_t z0 = max(low[0], 8 * tz), z1 = min(high[0], 8 * tz + 8)
    cdef Py_ssize_t y0 = max(low[1], 8 * ty), y1 = min(high[1], 8 * ty + 8)
    cdef Py_ssize_t left = max(low[2] - 8 * tx, 0)
    cdef Py_ssize_t right = min(high[2] - 8 * tx, 8 * tile_count)
    cdef bint full = direct and not stream and left == 0 and right == 8 * tile_count, whole
    cdef uint64_t[8 * ABREAST] strip
    cdef uint64_t* target
    cdef char* line
    cdef int row
    for z in range(z0, z1):
        for y in range(y0, y1):
            line = (out + (z - low[0]) * strides[0] + (y - low[1]) * strides[1]
                    + (8 * tx + left - low[2]) * strides[2])
            row = <int>(8 * (z & 7) + (y & 7))
            # Straight into the result only by whole cache lines: into a large result, stores that
            # straddle two were a third slower than one copy of the strip.
            whole = full and (<uintptr_t>line & 63) == 0
            target = <uint64_t*>line if whole else strip
            for i in range(tile_count):
                decode_row(&tiles[i], row, target + 8 * i)
            if whole:
                continue
            if not direct:
                for x in range(left, right):
                    memcpy(line, &strip[x], 8)
                    line += strides[2]
            elif stream:
                target = <uint64_t*>line
                x = left
                while x < right and <uintptr_t>target & 63:
                    target[0] = strip[x]
                    target += 1
                    x += 1
                while x <= right - 8:
                    for i in range(8):
                        diced_stream(target + i, strip[x + i])
                    target += 8
                    x += 8
                while x < right:
                    target[0] = strip[x]
                    target += 1
                    x += 1
            else:
                memcpy(line, &strip[left], 8 * (right - left))
    return 0


cdef int decode_blocks(const Layout* block, char* out, const Py_ssize_t* strides,
                       const Py_ssize_t* low, const Py_ssize_t* high, bint stream) \
        except -1 nogil:
    """Decode the window [low, high) of a checked layout; only check its values if out is NULL."""
    cdef Tile[ABREAST] tiles
    cdef uint8_t[9 * 64 + 8] spare
    cdef Py_ssize_t tz, ty, tx, start = 0
    cdef int held = 0, bits
    cdef unsigned int count
    cdef bint inside
    cdef const uint8_t* counts = block.counts
    cdef const uint8_t* indices = block.indices
    cdef const uint8_t* values = block.values
    cdef bint solid = block.labels == 1
    cdef bint direct = out != NULL and strides[2] == 8 and (
        (<uintptr_t>out | <uintptr_t>strides[0] | <uintptr_t>strides[1]) & 7) == 0

    for tz in range(block.gz):
        for ty in range(block.gy):
            inside = (8 * tz < high[0] and 8 * tz + 8 > low[0]
                      and 8 * ty < high[1] and 8 * ty + 8 > low[1])
            if solid and not inside:
                continue
            held = 0
            for tx in range(block.gx):
                if solid:
                    count = 0
                    bits = 0
                else:
                    count = load16(counts)
                    counts += 2
                    bits = width(count)
                if inside and 8 * tx < high[2] and 8 * tx + 8 > low[2]:
                    if held == 0:
                        start = tx
                    if solid:
                        tiles[held].bits = 0
                        tiles[held].labels[0] = load64(block.table)
                    else:
                        open_tile(block, &tiles[held], spare, count, indices, values)
                    held += 1
                    if held == ABREAST:
                        if out != NULL:
                            decode_tiles(tiles, start, held, out, strides, low, high, tz, ty,
                                         direct, stream)
                        held = 0
                indices += 4 * count
                values += 64 * bits
            if held > 0 and out != NULL:
                decode_tiles(tiles, start, held, out, strides, low, high, tz, ty, direct, stream)
    if stream:
        diced_stream_end()
    return 0


cdef int three(str what, values, Py_ssize_t* target) except -1:
    try:
        target[0], target[1], target[2] = values
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidError(f"{what} must be 3 integers (z, y, x), got {values!r}") from error
    return 0


cdef int open_payload(str what, payload, Py_buffer* view) except -1:
    try:
        PyObject_GetBuffer(payload, view, PyBUF_SIMPLE)
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidError(f"{what}: payload must be a contiguous buffer: {error}") from error
    return 0


def label_decode(payload, out, start, block_shape, stream=False):
    """Decode part of a label block into a window of an array.

    Only the sub-blocks that meet the window are decoded. The payload's structure is checked
    whole before anything is written; packed values are checked for the sub-blocks decoded, so
    after a `CorruptError` `out` may hold part of the block.

    Parameters
    ----------
    payload : contiguous buffer
        What `label_encode` or DVID wrote, uncompressed.
    out : writable buffer of uint64, shape (z, y, x)
        The window; any strides.
    start : 3 ints
        Where in the block the window begins, (z, y, x).
    block_shape : 3 ints
        The shape (z, y, x) that the block must have.
    stream : bool
        Write whole cache lines past the caches. Pays where rows of `out` begin on multiples of 64
        bytes: 12 GB/s instead of 3.4 into 512 MiB that were touched before, 16 instead of 10 into
        16 MiB, nothing into 2 MiB. Elsewhere it may gain or lose.

    Raises
    ------
    CorruptError
        `payload` is not a label block of that shape; the message says where it went wrong.
    InvalidError
        An argument is of the wrong type or shape, or the window leaves the block.
    """
    cdef uint64_t[:, :, :] voxels
    cdef Py_buffer view
    cdef Layout block
    cdef Py_ssize_t[3] low
    cdef Py_ssize_t[3] high
    cdef Py_ssize_t[3] grid
    cdef Py_ssize_t[3] strides
    cdef Py_ssize_t axis, size = 1
    cdef bint past_cache = stream
    cdef char* target = NULL

    if out is None:
        raise InvalidError("label_decode: out must be a writable 3-D uint64 buffer, got None")
    try:
        voxels = out
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidError(
            f"label_decode: out must be a writable 3-D uint64 buffer: {error}"
        ) from error
    three("label_decode: start", start, low)
    three("label_decode: block_shape", block_shape, grid)
    for axis in range(3):
        check_side("label_decode: block_shape", axis, grid[axis])
        if low[axis] < 0 or low[axis] > grid[axis] - voxels.shape[axis]:
            raise InvalidError(
                f"label_decode: window of {voxels.shape[axis]} voxels from {low[axis]} along "
                f"{'zyx'[axis]} is not inside a block of {grid[axis]}"
            )
        high[axis] = low[axis] + voxels.shape[axis]
        grid[axis] >>= 3
        strides[axis] = voxels.strides[axis]
        size *= voxels.shape[axis]
    if size > 0:
        target = <char*>&voxels[0, 0, 0]
    open_payload("label_decode", payload, &view)
    try:
        with nogil:
            read_layout(<const uint8_t*>view.buf, view.len, grid, &block)
            if size > 0:
                decode_blocks(&block, target, strides, low, high, past_cache)
    finally:
        PyBuffer_Release(&view)


def label_check(payload, block_shape):
    """Check a whole label block, packed values included, without decoding it.

    Parameters
    ----------
    payload : contiguous buffer
        What `label_encode` or DVID wrote, uncompressed.
    block_shape : 3 ints
        The shape (z, y, x) that the block must have.

    Raises
    ------
    CorruptError
        `payload` is not a label block of that shape.
    InvalidError
        An argument is of the wrong type or shape.
    """
    cdef Py_buffer view
    cdef Layout block
    cdef Py_ssize_t[3] low
    cdef Py_ssize_t[3] high
    cdef Py_ssize_t[3] grid
    cdef Py_ssize_t axis

    three("label_check: block_shape", block_shape, grid)
    for axis in range(3):
        check_side("label_check: block_shape", axis, grid[axis])
        low[axis] = 0
        high[axis] = grid[axis]
        grid[axis] >>= 3
    open_payload("label_check", payload, &view)
    try:
        with nogil:
            read_layout(<const uint8_t*>view.buf, view.len, grid, &block)
            decode_blocks(&block, NULL, low, low, high, False)
    finally:
        PyBuffer_Release(&view)
