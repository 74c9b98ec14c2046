"""Neuroglancer's ``compressed_segmentation`` into labels; ``_segmentation`` describes the layout.

Takes what any encoder writes: tables anywhere and in any order, positions of up to 32 bits. Every
offset is checked against the words there are, and every position against those behind its table.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from diced._codec cimport load32, open_payload
from diced._segmentation cimport Volume
from diced.errors import CorruptError


cdef int corrupt(const char* what, size_t got, size_t wanted) except -1 nogil:
    with gil:
        raise CorruptError(f"compressed_segmentation: {what.decode()}: got {got}, want {wanted}")


cdef int decode_cell(const uint8_t* channel, size_t words, uint32_t head, uint32_t start,
                     Volume volume, char* corner, const Py_ssize_t* sides) \
        except -1 nogil:
    cdef uint32_t bits = head >> 24, position, word = 0, mask
    cdef size_t table = head & 0xFFFFFF, room, i
    cdef int width = volume.width
    cdef const uint8_t* labels = channel + 4 * table
    cdef Py_ssize_t z, y, x
    if bits > 32 or bits & (bits - 1):
        return corrupt("bits of a voxel: 0 or a power of two up to", bits, 32)
    if table >= words:
        return corrupt("the offset of a table, below the words there are", table, words)
    room = (words - table) // width     # labels that the table can have
    if 16 * <size_t>bits > words or start > words - 16 * <size_t>bits:
        return corrupt("the end of a cell's values, within the words there are",
                       start + 16 * <size_t>bits, words)
    if room < 1:
        return corrupt("words left for a table, at least", words - table, width)
    mask = 0xFFFFFFFF if bits == 32 else (<uint32_t>1 << bits) - 1
    for z in range(sides[0]):
        for y in range(sides[1]):
            for x in range(sides[2]):
                position = 0
                if bits > 0:
                    i = bits * (64 * z + 8 * y + x)
                    word = load32(channel + 4 * (start + (i >> 5)))
                    position = (word >> (i & 31)) & mask
                    if position >= room:
                        return corrupt("a position, below the labels that its table can have",
                                       position, room)
                memcpy(corner + z * volume.strides[0] + y * volume.strides[1]
                       + x * volume.strides[2],
                       labels + 4 * width * <size_t>position, 4 * width)
    return 0


cdef int decode(const uint8_t* data, size_t size, Volume volume) except -1 nogil:
    cdef size_t words = size >> 2, begin, cells = 1, number = 0
    cdef Py_ssize_t[3] sides
    cdef Py_ssize_t z, y, x
    cdef int axis
    cdef const uint8_t* head
    if size & 3 or words < 1:
        return corrupt("bytes of a file, whole words of", size, 4)
    begin = load32(data)
    if begin < 1 or begin > words:
        return corrupt("where the channel begins, at most", begin, words)
    data += 4 * begin
    words -= begin
    for axis in range(3):
        # Divided, not multiplied: it cannot overflow.
        if (volume.shape[axis] + 7) // 8 > <Py_ssize_t>(words // 2 // cells):
            return corrupt("words of a channel of that shape, only", words, 2 * cells)
        cells *= (volume.shape[axis] + 7) // 8
    for z in range(0, volume.shape[0], 8):
        sides[0] = min(8, volume.shape[0] - z)
        for y in range(0, volume.shape[1], 8):
            sides[1] = min(8, volume.shape[1] - y)
            for x in range(0, volume.shape[2], 8):
                sides[2] = min(8, volume.shape[2] - x)
                head = data + 8 * number
                number += 1
                decode_cell(data, words, load32(head), load32(head + 4), volume,
                            volume.base + z * volume.strides[0] + y * volume.strides[1]
                            + x * volume.strides[2], sides)
    return 0


def segmentation_decode(payload, out):
    """Decode the first channel of a ``compressed_segmentation`` file.

    Parameters
    ----------
    payload : contiguous buffer
        With cells of 8x8x8.
    out : writable buffer of uint64 or uint32, shape (z, y, x)
        The whole volume, of the type that was encoded; any strides. After a `CorruptError` it may
        hold a part.

    Raises
    ------
    CorruptError
        `payload` cannot be such a file.
    InvalidError
        `out` is not such a buffer.
    """
    cdef Volume volume = Volume(out, "segmentation_decode: out", True)
    cdef Py_buffer view
    open_payload("segmentation_decode", payload, &view)
    try:
        with nogil:
            decode(<const uint8_t*>view.buf, view.len, volume)
    finally:
        PyBuffer_Release(&view)
