"""Label blocks in compressed sections, so that a window costs only what it touches.

The payload is, little-endian, for S sub-blocks in L layers along z::

    u32             bytes of the label block
    u32             bytes of the head, unpacked
    u32 x (1 + L)   where the packed head and the packed values of each layer end, from here on
    bytes           the packed head, the packed values of each layer that has any

Unpacked, the head is the label block's header and label table as they are; the low bytes, then the
high bytes of the counts; of the indices the lowest bytes, then the next, as many as the length of
the table less one needs. By planes, because so LZ4 makes half of it. All else is as `_codec` tells.
Which functions pack is the caller's business.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from diced._codec cimport (
    Layout,
    Window,
    corrupt,
    decode_blocks,
    load32,
    open_payload,
    open_window,
    read_head,
    sum_counts,
)
from diced._encoder cimport (
    HEADER,
    Encoder,
    Workspace,
    _Held,
    hold_block,
    let_go,
    most_bytes,
)
from diced.errors import InvalidError


cdef inline int index_bytes(uint32_t labels) noexcept nogil:
    cdef uint32_t most = labels - 1
    return 1 + (most > 0xFF) + (most > 0xFFFF) + (most > 0xFFFFFF)


# --- decoding ------------------------------------------------------------------------------------


cdef int open_head(const uint8_t* head, int64_t size, int64_t length, uint8_t* counts,
                   const Py_ssize_t* grid, Layout* block) except -1 nogil:
    """Check an unpacked head against the label block's `length`; writes the counts."""
    cdef int64_t blocks = <int64_t>grid[0] * grid[1] * grid[2], used, i, rows = 0
    cdef const uint8_t* low
    cdef const uint8_t* high
    read_head(head, size, grid, block)
    used = HEADER + 8 * <int64_t>block.labels
    if block.labels == 1:
        if length != used:
            return corrupt("bytes announced of a solid block", length, used)
        return 0
    low = head + used
    high = low + blocks
    for i in range(blocks):
        counts[2 * i] = low[i]
        counts[2 * i + 1] = high[i]
    sum_counts(counts, blocks, &block.entries, &rows)
    block.counts = counts
    block.indices = high + blocks
    block.planes = index_bytes(block.labels)
    used += 2 * blocks
    if used + block.planes * block.entries != size:
        return corrupt("bytes of the head, as its counts imply", size,
                       used + block.planes * block.entries)
    used += 4 * block.entries + 64 * rows
    if used != length:
        return corrupt("bytes announced, as the counts imply", length, used)
    return 0


cdef int64_t layer_bytes(const Layout* block, int64_t* labels) except -1 nogil:
    """Return the bytes of values, and the entries of local lists, in the layer at `first`."""
    cdef int64_t rows = 0
    sum_counts(block.counts + 2 * block.first, block.gy * block.gx, labels, &rows)
    return 64 * rows


cdef void pass_layer(Layout* block, int64_t labels) noexcept nogil:
    block.first += block.gy * block.gx
    block.first_entry += labels


cdef int decode_layer(const Layout* block, Py_ssize_t tz, char* out, const Py_ssize_t* strides,
                      const Py_ssize_t* low, const Py_ssize_t* high, bint stream) except -1 nogil:
    """Write what the window has of one layer."""
    cdef Py_ssize_t[3] first
    cdef Py_ssize_t[3] past
    memcpy(first, low, sizeof(first))
    memcpy(past, high, sizeof(past))
    first[0] = max(low[0], 8 * tz)
    past[0] = min(high[0], 8 * tz + 8)
    return decode_blocks(block, out + (first[0] - low[0]) * strides[0], strides, first, past,
                         stream)


cdef int64_t unpack(const Unpacker* unpacker, const uint8_t* data, int64_t size, uint8_t* out,
                    int64_t wanted) except -1 nogil:
    cdef int64_t got
    if unpacker.lz4 != NULL:
        got = unpacker.lz4(<const char*>data, <char*>out, <int>size, <int>wanted)
    else:
        got = <int64_t>unpacker.zstd(unpacker.context, out, wanted, data, size)
    if got != wanted:
        return corrupt("bytes of an unpacked section", got, wanted)
    return 0


cdef Py_ssize_t packed_room(const Py_ssize_t* grid) noexcept nogil:
    cdef Py_ssize_t[3] shape
    cdef int axis
    for axis in range(3):
        shape[axis] = 8 * grid[axis]
    # The head, the counts once more, and the values.
    return most_bytes(shape) + 2 * grid[0] * grid[1] * grid[2]


cdef int decode_packed(const uint8_t* data, Py_ssize_t size, const Unpacker* unpacker,
                       uint8_t* scratch, Py_ssize_t room, const Py_ssize_t* grid, char* out,
                       const Py_ssize_t* strides, const Py_ssize_t* low, const Py_ssize_t* high,
                       bint stream) except -1 nogil:
    cdef int64_t table = 4 * (3 + <int64_t>grid[0]), blocks = grid[0] * grid[1] * grid[2]
    cdef int64_t length, head, begin = 0, end = 0, used, bytes_here, labels = 0
    cdef Py_ssize_t tz
    cdef Layout block
    cdef bint empty = low[0] >= high[0] or low[1] >= high[1] or low[2] >= high[2]

    if size <= table or size > INT_MAX:
        return corrupt("bytes of a packed label block, more than", size, table)
    length = load32(data)
    head = load32(data + 4)
    if length > packed_room(grid) or head > length:
        return corrupt("bytes announced, at most", max(length, head),
                       min(packed_room(grid), length))
    for tz in range(grid[0] + 1):
        begin = end
        end = load32(data + 8 + 4 * tz)
        if end < begin or end > size - table:
            return corrupt("end of a packed section, at most", end, size - table)
    if end != size - table:
        return corrupt("end of the last packed section", end, size - table)
    used = head + 2 * blocks
    if used > room:
        return corrupt("bytes of the head, at most", head, room - 2 * blocks)
    end = load32(data + 8)
    unpack(unpacker, data + table, end, scratch, head)
    open_head(scratch, head, length, scratch + head, grid, &block)
    if block.labels == 1:
        if end != size - table:
            return corrupt("packed bytes of a solid block", size - table, end)
        if not empty:
            decode_blocks(&block, out, strides, low, high, stream)
        return 0
    block.values = scratch + used
    for tz in range(grid[0]):
        begin = end
        end = load32(data + 12 + 4 * tz)
        bytes_here = layer_bytes(&block, &labels)
        if 8 * tz < high[0] and 8 * tz + 8 > low[0] and not empty:
            if bytes_here > room - used:
                return corrupt("bytes of values in a layer, at most", bytes_here, room - used)
            if bytes_here > 0:
                unpack(unpacker, data + table + begin, end - begin, scratch + used, bytes_here)
            block.end = block.values + bytes_here
            decode_layer(&block, tz, out, strides, low, high, stream)
        pass_layer(&block, labels)
    return 0


# --- encoding ------------------------------------------------------------------------------------


cdef int64_t head_size(const Encoder* state) noexcept nogil:
    cdef int64_t size = HEADER + 8 * <int64_t>state.count
    if state.count > 1:
        size += 2 * state.blocks + index_bytes(state.count) * state.used_indices
    return size


cdef void write_head(const Encoder* state, uint8_t* out) noexcept nogil:
    cdef size_t i
    cdef int plane
    memcpy(out, state.header, HEADER)
    out += HEADER
    memcpy(out, state.labels, 8 * <size_t>state.count)
    out += 8 * <size_t>state.count
    if state.count > 1:
        for plane in range(2):
            for i in range(state.blocks):
                out[i] = (state.counts[i] >> 8 * plane) & 0xFF
            out += state.blocks
        for plane in range(index_bytes(state.count)):
            for i in range(state.used_indices):
                out[i] = (state.indices[i] >> 8 * plane) & 0xFF
            out += state.used_indices


cdef int64_t layer_size(const Encoder* state, Py_ssize_t tz) except -1 nogil:
    cdef size_t each = <size_t>state.header[0] * state.header[1]
    cdef int64_t labels = 0, rows = 0
    sum_counts(<const uint8_t*>(state.counts + tz * each), each, &labels, &rows)
    return 64 * rows


cdef int64_t label_size(const Encoder* state) noexcept nogil:
    cdef int64_t size = HEADER + 8 * <int64_t>state.count
    if state.count > 1:
        size += 2 * state.blocks + 4 * state.used_indices + state.used_values
    return size


cdef Py_ssize_t packed_most(Workspace workspace) noexcept nogil:
    # Above what either library adds to what it cannot pack.
    cdef const Encoder* state = <const Encoder*>workspace
    cdef int64_t sections = 1 + state.header[2], size = head_size(state) + state.used_values
    return 8 + 4 * sections + size + size // 128 + 128 * sections


cdef int64_t pack(const Packer* packer, const uint8_t* data, int64_t size, uint8_t* out,
                  int64_t room) except -1 nogil:
    cdef int64_t got
    if packer.lz4 != NULL:
        got = packer.lz4(<const char*>data, <char*>out, <int>size, <int>min(room, INT_MAX),
                         packer.level)
    else:
        got = <int64_t>packer.zstd(packer.context, out, room, data, size, packer.level)
    if got <= 0 or got > room:
        with gil:
            raise MemoryError(f"label_encode: {size} bytes could not be packed ({got})")
    return got


cdef Py_ssize_t write_packed(Workspace workspace, const Packer* packer, uint8_t* out,
                             Py_ssize_t room) except -1 nogil:
    cdef Encoder* state = <Encoder*>workspace
    cdef int64_t layers = state.header[2], table = 4 * (3 + layers), used = 0, size, done = 0, z
    cdef uint32_t value
    cdef void* moved
    if room < packed_most(workspace) or packed_most(workspace) > INT_MAX:
        with gil:
            raise InvalidError(
                f"label_encode: room for {room} packed bytes, want {packed_most(workspace)}"
            )
    size = head_size(state)
    if state.room_spare < <size_t>size:
        moved = realloc(state.spare, 2 * size)
        if moved == NULL:
            with gil:
                raise MemoryError("label_encode: no memory for the head of a block")
        state.spare = <uint8_t*>moved
        state.room_spare = 2 * size
    write_head(state, state.spare)
    value = <uint32_t>label_size(state)
    memcpy(out, &value, 4)
    value = <uint32_t>size
    memcpy(out + 4, &value, 4)
    used = pack(packer, state.spare, size, out + table, room - table)
    value = <uint32_t>used
    memcpy(out + 8, &value, 4)
    for z in range(layers):
        size = layer_size(state, z) if state.count > 1 else 0
        if size > 0:
            used += pack(packer, state.values + done, size, out + table + used,
                         room - table - used)
            done += size
        value = <uint32_t>used
        memcpy(out + 12 + 4 * z, &value, 4)
    return table + used


# --- for Python ----------------------------------------------------------------------------------


def packed_decode(payload, out, start, block_shape, functions, stream=False):
    """Decode part of a packed label block into a window of an array.

    Parameters
    ----------
    payload : contiguous buffer
    out, start, block_shape, stream
        As of `label_decode`.
    functions : 3 ints
        Addresses of LZ4_decompress_safe, or 0, and otherwise of ZSTD_decompressDCtx and a context.

    Raises
    ------
    CorruptError, InvalidError
        As of `label_decode`.
    """
    cdef Py_buffer view
    cdef Window window
    cdef Unpacker unpacker
    cdef bint past_cache = stream
    cdef uint64_t[:, :, :] voxels = open_window(out, start, block_shape, &window)
    cdef Py_ssize_t room = packed_room(window.grid)
    cdef uint8_t* scratch
    cdef uintptr_t lz4, zstd, context

    lz4, zstd, context = functions
    unpacker.lz4 = <unlz4_t>lz4
    unpacker.zstd = <unzstd_t>zstd
    unpacker.context = <void*>context
    open_payload("label_decode", payload, &view)
    if view.len >= 4:
        room = min(room, <Py_ssize_t>load32(<const uint8_t*>view.buf)
                   + 2 * window.grid[0] * window.grid[1] * window.grid[2])
    scratch = <uint8_t*>malloc(room)
    try:
        if scratch == NULL:
            raise MemoryError("label_decode: no memory to unpack a block")
        with nogil:
            decode_packed(<const uint8_t*>view.buf, view.len, &unpacker, scratch, room,
                          window.grid, window.out, window.strides, window.low, window.high,
                          past_cache)
    finally:
        free(scratch)
        PyBuffer_Release(&view)


def packed_encode(src, functions, int level):
    """Return a block of labels as a packed label block.

    Parameters
    ----------
    src : buffer of uint64, shape (z, y, x)
        As of `label_encode`.
    functions : 3 ints
        Addresses of LZ4_compress_fast, or 0, and otherwise of ZSTD_compressCCtx and a context.
    level : int
        LZ4's acceleration or Zstandard's level.

    Raises
    ------
    InvalidError
        As of `label_encode`.
    """
    cdef Packer packer
    cdef uintptr_t lz4, zstd, context
    cdef _Held held = hold_block(src)
    cdef Py_ssize_t room = packed_most(held.workspace), size
    cdef uint8_t* scratch = <uint8_t*>malloc(room)

    try:
        if scratch == NULL:
            raise MemoryError("label_encode: no memory to pack a block")
        lz4, zstd, context = functions
        packer.lz4 = <lz4_t>lz4
        packer.zstd = <zstd_t>zstd
        packer.context = <void*>context
        packer.level = level
        with nogil:
            size = write_packed(held.workspace, &packer, scratch, room)
        let_go(held)
        return PyBytes_FromStringAndSize(<char*>scratch, size)
    finally:
        free(scratch)


def label_sections(src):
    """Return the sections of a block of labels, for who packs them with functions of Python.

    Parameters
    ----------
    src : buffer of uint64, shape (z, y, x)
        As of `label_encode`.

    Returns
    -------
    int, list of bytes
        The bytes of the label block; the head, then the values of each layer, unpacked.
    """
    cdef _Held held = hold_block(src)
    cdef const Encoder* state = <const Encoder*>held.workspace
    cdef bytes head = PyBytes_FromStringAndSize(NULL, head_size(state))
    cdef int64_t size, done = 0
    cdef Py_ssize_t z
    cdef list sections = [head]

    write_head(state, <uint8_t*>PyBytes_AS_STRING(head))
    for z in range(<Py_ssize_t>state.header[2]):
        size = layer_size(state, z) if state.count > 1 else 0
        sections.append(PyBytes_FromStringAndSize(<char*>state.values + done, size))
        done += size
    size = label_size(state)
    let_go(held)
    return size, sections


def sections_decode(head, int64_t length, unpack_layer, out, start, block_shape, stream=False):
    """Decode part of a block into a window of an array, its sections unpacked by a function.

    Parameters
    ----------
    head : contiguous buffer
        Unpacked.
    length : int
        Bytes of the label block.
    unpack_layer : callable ``(layer, size) -> contiguous buffer``
        Returns so many bytes, the values of a layer that the window touches and that has some.
    out, start, block_shape, stream
        As of `label_decode`.

    Raises
    ------
    CorruptError, InvalidError
        As of `label_decode`.
    """
    cdef Window window
    cdef Layout block
    cdef Py_buffer view, values
    cdef bint past_cache = stream
    cdef uint64_t[:, :, :] voxels = open_window(out, start, block_shape, &window)
    cdef Py_ssize_t blocks = window.grid[0] * window.grid[1] * window.grid[2], tz, size
    cdef int64_t labels = 0
    cdef uint8_t* counts
    cdef bint empty = window.out == NULL

    open_payload("label_decode", head, &view)
    counts = <uint8_t*>malloc(2 * blocks)
    try:
        if counts == NULL:
            raise MemoryError("label_decode: no memory for the counts of a block")
        open_head(<const uint8_t*>view.buf, view.len, length, counts, window.grid, &block)
        if empty:
            return
        if block.labels == 1:
            decode_blocks(&block, window.out, window.strides, window.low, window.high, past_cache)
            return
        for tz in range((window.high[0] + 7) >> 3):
            size = layer_bytes(&block, &labels)
            if 8 * tz + 8 > window.low[0]:
                section = unpack_layer(tz, size) if size > 0 else b""
                open_payload("label_decode", section, &values)
                try:
                    if values.len != size:
                        corrupt("bytes of a layer's values", values.len, size)
                    block.values = <const uint8_t*>values.buf
                    block.end = block.values + size
                    with nogil:
                        decode_layer(&block, tz, window.out, window.strides, window.low,
                                     window.high, past_cache)
                finally:
                    PyBuffer_Release(&values)
            pass_layer(&block, labels)
    finally:
        free(counts)
        PyBuffer_Release(&view)
