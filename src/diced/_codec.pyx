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

cdef extern from "_labels.h":
    void diced_prefetch(const char* place) noexcept nogil
    void diced_stream_line(char* place, const char* line) noexcept nogil
    void diced_stream_end() noexcept nogil
    bint diced_sum_counts(const uint8_t* counts, int64_t n, int64_t* labels, int64_t* bits) \
        noexcept nogil

cdef enum:
    ABREAST = 8         # sub-blocks decoded side by side: 512 bytes of a row, their tables in L1
    AHEAD = 12          # rows whose first and last lines are fetched before they are written
    NARROW = 2          # voxels of a row that are cheaper to take one by one


# Bits of a position in a list of so many labels. Counts are masked before they are checked, hence
# the room.
cdef uint8_t[2 * VOXELS] WIDTHS
cdef int listed
for listed in range(2 * VOXELS):
    WIDTHS[listed] = min(9, max(0, listed - 1).bit_length())


cdef inline int width(unsigned int count) noexcept nogil:
    return WIDTHS[count & (2 * VOXELS - 1)]


cdef struct Tile:
    int bits
    const uint8_t* values   # readable for 8 bytes after the last row
    uint64_t[VOXELS] labels # what each position means


cdef int corrupt(const char* what, int64_t got, int64_t wanted) except -1 nogil:
    with gil:
        raise CorruptError(f"label block: {what.decode()}: got {got}, want {wanted}")


cdef int read_head(const uint8_t* data, Py_ssize_t size, const Py_ssize_t* grid,
                   Layout* block) except -1 nogil:
    """Check the header of a payload, and find its first sections."""
    cdef int64_t blocks = <int64_t>grid[0] * grid[1] * grid[2], labels, used

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
    if labels > blocks * VOXELS:
        return corrupt("entries in the label table, at most one per voxel", labels,
                       blocks * VOXELS)
    block.table = data + HEADER
    block.end = data + size
    used = HEADER + 8 * labels
    block.counts = block.indices = block.values = NULL
    block.planes = block.first = block.first_entry = 0
    if labels == 1:
        if size != used:
            return corrupt("bytes of a solid block", size, used)
        return 0
    if size - used < 2 * blocks:
        return corrupt("bytes for the label table and counts, at least", size, used + 2 * blocks)
    block.counts = data + used
    block.indices = block.counts + 2 * blocks
    return 0


cdef int sum_counts(const uint8_t* counts, int64_t n, int64_t* labels, int64_t* rows) \
        except -1 nogil:
    """Sum the counts, and the bits of their positions; none may be above 512."""
    if diced_sum_counts(counts, n, labels, rows):
        with gil:
            raise CorruptError(f"label block: a sub-block has more than {VOXELS} labels")
    return 0


cdef int read_counts(const uint8_t* data, Py_ssize_t size, Layout* block) except -1 nogil:
    """Check that the counts of a block that is not solid explain its length; find its values."""
    cdef int64_t blocks = (block.indices - block.counts) >> 1, total = 0, rows = 0, used
    sum_counts(block.counts, blocks, &total, &rows)
    used = (block.indices - data) + 4 * total
    if used + 64 * rows != size:
        return corrupt("bytes, as the counts imply", size, used + 64 * rows)
    block.values = data + used
    return 0


cdef int check_values(const uint8_t* values, unsigned int count, int bits, int rows) \
        except -1 nogil:
    """Check that the positions in some rows lie inside the sub-block's list of `count` labels."""
    cdef uint64_t seen = 0, top = count - 1
    cdef int row, i
    cdef bint bad
    if bits == 2:
        bad = check_rows(values, top, rows, 2)
    elif bits == 3:
        bad = check_rows(values, top, rows, 3)
    elif bits == 4:
        bad = check_rows(values, top, rows, 4)
    elif bits <= 8:
        bad = check_rows(values, top, rows, bits)
    else:
        for row in range(rows):
            for i in range(8):
                seen |= top - word9(values + 9 * row, i)
        bad = seen >> 63
    if bad:
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


cdef inline uint64_t one_voxel(const Tile* tile, int row, int i) noexcept nogil:
    cdef int bits = tile.bits
    if bits == 0:
        return tile.labels[0]
    if bits == 9:
        return tile.labels[word9(tile.values + 9 * row, i)]
    return tile.labels[(swap(load64(tile.values + row * bits)) >> (64 - bits * (i + 1)))
                       & ((1 << bits) - 1)]


cdef int open_tile(const Layout* block, Tile* tile, uint8_t* spare, unsigned int count,
                   int64_t entry, const uint8_t* values, int first, int past) \
        except -1 nogil:
    """Resolve a sub-block's labels and check the rows [first, past) of its values.

    `spare`: 584 bytes for the last one.
    """
    cdef int bits = width(count)
    cdef unsigned int i
    cdef int plane
    cdef uint32_t index
    tile.bits = bits
    tile.labels[0] = 0
    for i in range(count):
        if block.planes == 0:
            index = load32(block.indices + 4 * (entry + i))
        else:
            index = block.indices[entry + i]
            for plane in range(1, block.planes):
                index |= <uint32_t>block.indices[plane * block.entries + entry + i] << 8 * plane
        if index >= block.labels:
            return corrupt("index into the label table, below its length", index, block.labels)
        tile.labels[i] = load64(block.table + 8 * <size_t>index)
    if bits > 0:
        tile.values = values
        if block.end - values < 64 * bits + 8:
            memset(spare, 0, 9 * 64 + 8)
            memcpy(spare, values, 64 * bits)
            tile.values = spare
        if <int>count < 1 << bits:
            check_values(tile.values + first * bits, count, bits, past - first)
    return 0


cdef inline void put_row(char* line, const uint64_t* labels, Py_ssize_t count, bint stream) \
        noexcept nogil:
    """Write part of a row to contiguous aligned memory; whole cache lines past the caches."""
    cdef const char* source = <const char*>labels
    cdef Py_ssize_t size = 8 * count, head
    if stream and size >= 64:
        head = -<Py_ssize_t><uintptr_t>line & 63
        if head > 0:
            memcpy(line, source, head)
            line += head
            source += head
            size -= head
        while size >= 64:
            diced_stream_line(line, source)
            line += 64
            source += 64
            size -= 64
    if size > 0:
        memcpy(line, source, size)


cdef int decode_tiles(const Tile* tiles, Py_ssize_t tx, Py_ssize_t tile_count, char* out,
                      const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                      Py_ssize_t tz, Py_ssize_t ty, bint direct, bint stream) except -1 nogil:
    """Write what the window [low, high) has of adjacent sub-blocks, row by row."""
    cdef Py_ssize_t z, y, x, i, ahead
    cdef Py_ssize_t z0 = max(low[0], 8 * tz), z1 = min(high[0], 8 * tz + 8)
    cdef Py_ssize_t y0 = max(low[1], 8 * ty), y1 = min(high[1], 8 * ty + 8), rows = y1 - y0
    cdef Py_ssize_t left = max(low[2] - 8 * tx, 0)
    cdef Py_ssize_t right = min(high[2] - 8 * tx, 8 * tile_count), size = 8 * (right - left)
    cdef bint full = direct and not stream and left == 0 and right == 8 * tile_count
    cdef bint narrow = right - left <= NARROW
    cdef uint64_t[8 * ABREAST] strip
    cdef uint64_t label
    cdef uint64_t* target
    cdef char* corner = (out + (z0 - low[0]) * strides[0] + (y0 - low[1]) * strides[1]
                         + (8 * tx + left - low[2]) * strides[2])
    cdef char* line
    cdef int row
    # Lines that are written in part are read first: without a fetch ahead every row waited for
    # memory, a third of the speed.
    cdef bint fetch = stream and direct and not narrow
    if fetch:
        for ahead in range(min(AHEAD, (z1 - z0) * rows)):
            line = corner + (ahead // rows) * strides[0] + (ahead % rows) * strides[1]
            if <uintptr_t>line & 63:
                diced_prefetch(line)
            if <uintptr_t>(line + size) & 63:
                diced_prefetch(line + size)
    ahead = AHEAD
    for z in range(z0, z1):
        for y in range(y0, y1):
            line = corner + (z - z0) * strides[0] + (y - y0) * strides[1]
            row = <int>(8 * (z & 7) + (y & 7))
            if narrow:
                for x in range(left, right):
                    label = one_voxel(&tiles[x >> 3], row, x & 7)
                    memcpy(line, &label, 8)
                    line += strides[2]
                continue
            if fetch and ahead < (z1 - z0) * rows:
                target = <uint64_t*>(corner + (ahead // rows) * strides[0]
                                     + (ahead % rows) * strides[1])
                if <uintptr_t>target & 63:
                    diced_prefetch(<char*>target)
                if (<uintptr_t>target + size) & 63:
                    diced_prefetch(<char*>target + size)
                ahead += 1
            # Straight into the result, also where that straddles cache lines: into a result that
            # fits the caches 15.5 GB/s, by way of the strip 13.
            target = <uint64_t*>line if full else strip
            for i in range(tile_count):
                decode_row(&tiles[i], row, target + 8 * i)
            if full:
                continue
            if not direct:
                for x in range(left, right):
                    memcpy(line, &strip[x], 8)
                    line += strides[2]
            else:
                put_row(line, &strip[left], right - left, stream)
    return 0


cdef int decode_blocks(const Layout* block, char* out, const Py_ssize_t* strides,
                       const Py_ssize_t* low, const Py_ssize_t* high, bint stream) \
        except -1 nogil:
    """Decode the window [low, high), not empty; only check its values if out is NULL."""
    cdef Tile[ABREAST] tiles
    cdef uint8_t[9 * 64 + 8] spare
    cdef Py_ssize_t tz, ty, tx, start, number, done = block.first
    cdef int held = 0, first, past
    cdef int64_t labels = 0, rows = 0
    cdef unsigned int count
    cdef const uint8_t* counts = block.counts
    cdef int64_t entry = block.first_entry
    cdef const uint8_t* values = block.values
    cdef bint solid = block.labels == 1
    cdef bint direct = out != NULL and strides[2] == 8 and (
        (<uintptr_t>out | <uintptr_t>strides[0] | <uintptr_t>strides[1]) & 7) == 0

    for tz in range(low[0] >> 3, (high[0] + 7) >> 3):
        for ty in range(low[1] >> 3, (high[1] + 7) >> 3):
            # From the first row of the window in these sub-blocks to the last.
            first = <int>(8 * max(low[0] - 8 * tz, 0) + max(low[1] - 8 * ty, 0))
            past = <int>(8 * min(high[0] - 8 * tz - 1, 7) + min(high[1] - 8 * ty, 8))
            start = low[2] >> 3
            if not solid:
                number = (tz * block.gy + ty) * block.gx + start
                if number > done:
                    diced_sum_counts(counts + 2 * done, number - done, &labels, &rows)
                    entry += labels
                    values += 64 * rows
                    done = number
            held = 0
            for tx in range(low[2] >> 3, (high[2] + 7) >> 3):
                if solid:
                    tiles[held].bits = 0
                    tiles[held].labels[0] = load64(block.table)
                else:
                    count = load16(counts + 2 * done)
                    done += 1
                    open_tile(block, &tiles[held], spare, count, entry, values, first, past)
                    entry += count
                    values += 64 * width(count)
                held += 1
                if held == ABREAST or 8 * tx + 8 >= high[2]:
                    if out != NULL:
                        decode_tiles(tiles, start, held, out, strides, low, high, tz, ty, direct,
                                     stream)
                    start = tx + 1
                    held = 0
    if stream:
        diced_stream_end()
    return 0


cdef int decode_window(const uint8_t* data, Py_ssize_t size, const Py_ssize_t* grid, char* out,
                       const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                       bint stream) except -1 nogil:
    cdef Layout block
    read_head(data, size, grid, &block)
    if block.labels > 1:
        read_counts(data, size, &block)
    if low[0] < high[0] and low[1] < high[1] and low[2] < high[2]:
        decode_blocks(&block, out, strides, low, high, stream)
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


cdef uint64_t[:, :, :] open_window(out, start, block_shape, Window* window):
    """Check `out` and where the window lies; what is returned holds the memory."""
    cdef uint64_t[:, :, :] voxels
    cdef Py_ssize_t axis, size = 1
    if out is None:
        raise InvalidError("label_decode: out must be a writable 3-D uint64 buffer, got None")
    try:
        voxels = out
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidError(
            f"label_decode: out must be a writable 3-D uint64 buffer: {error}"
        ) from error
    three("label_decode: start", start, window.low)
    three("label_decode: block_shape", block_shape, window.grid)
    for axis in range(3):
        check_side("label_decode: block_shape", axis, window.grid[axis])
        if window.low[axis] < 0 or window.low[axis] > window.grid[axis] - voxels.shape[axis]:
            raise InvalidError(
                f"label_decode: window of {voxels.shape[axis]} voxels from {window.low[axis]} "
                f"along {'zyx'[axis]} is not inside a block of {window.grid[axis]}"
            )
        window.high[axis] = window.low[axis] + voxels.shape[axis]
        window.grid[axis] >>= 3
        window.strides[axis] = voxels.strides[axis]
        size *= voxels.shape[axis]
    window.out = <char*>&voxels[0, 0, 0] if size > 0 else NULL
    return voxels


def label_decode(payload, out, start, block_shape, stream=False):
    """Decode part of a label block into a window of an array.

    Only the sub-blocks that meet the window are decoded. All lengths are checked before anything
    is written; indices and packed values are checked where they are used, so after a
    `CorruptError` `out` may hold part of the block. `label_check` checks everything.

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
        Write whole cache lines past the caches. Into 1 GiB that was touched before 9 to 11 GB/s
        instead of 2, or 8 where rows begin anywhere; nothing gained into 2 MiB.

    Raises
    ------
    CorruptError
        `payload` is not a label block of that shape; the message says where it went wrong.
    InvalidError
        An argument is of the wrong type or shape, or the window leaves the block.
    """
    cdef Py_buffer view
    cdef Window window
    cdef bint past_cache = stream
    cdef uint64_t[:, :, :] voxels = open_window(out, start, block_shape, &window)
    open_payload("label_decode", payload, &view)
    try:
        with nogil:
            decode_window(<const uint8_t*>view.buf, view.len, window.grid, window.out,
                          window.strides, window.low, window.high, past_cache)
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
            decode_window(<const uint8_t*>view.buf, view.len, grid, NULL, low, low, high, False)
    finally:
        PyBuffer_Release(&view)
