"""Small boxes of voxels made into one voxel each: their mean, or their commonest label.

Knows volumes as (planes, rows, values of a row): the channels of a voxel lie side by side in its
row. Every loop is bounded by the shapes of the buffers, which are compared first.
"""

from libc.stdint cimport (
    int8_t,
    int16_t,
    int32_t,
    int64_t,
    uint8_t,
    uint16_t,
    uint32_t,
    uint64_t,
)

from diced.errors import InvalidError

ctypedef fused number:
    uint8_t
    int8_t
    uint16_t
    int16_t
    uint32_t
    int32_t
    uint64_t
    int64_t
    float
    double

ctypedef fused label:
    uint8_t
    int8_t
    uint16_t
    int16_t
    uint32_t
    int32_t
    uint64_t
    int64_t


cdef struct Box:
    Py_ssize_t planes  # source planes, rows and voxels of a row that make one: 1 or 2
    Py_ssize_t rows
    Py_ssize_t voxels
    Py_ssize_t width  # voxels of a row that is made
    Py_ssize_t channels


cdef Box _box(src, dst, Py_ssize_t channels) except *:
    cdef Box box
    if channels < 1 or dst[2] % channels or src[2] % channels:
        raise InvalidError(f"rows of {src[2]} and {dst[2]} values are not of {channels} channels")
    factors = [a // b if b else 1 for a, b in zip(src, dst)]
    if any(a != b * f or f not in (1, 2) for a, b, f in zip(src, dst, factors)):
        raise InvalidError(f"a volume of shape {tuple(src)} cannot be made into {tuple(dst)}")
    box.planes, box.rows, box.voxels = factors
    box.width = dst[2] // channels
    box.channels = channels
    return box


cdef inline number _mean_of(const number** rows, int count, Py_ssize_t at, Py_ssize_t step,
                            int shift) noexcept nogil:
    """Return the mean of 2**shift values: of each row the one at `at`, and that at `at + step`."""
    cdef int i
    cdef double scale, total
    cdef bint same
    cdef uint64_t unsigned_whole, unsigned_rest, mask
    cdef int64_t signed_whole, signed_rest, whole
    if number is float or number is double:
        # By a power of two, so that nothing is rounded, and before the sum, which cannot overflow.
        scale = 1.0 / (1 << shift)
        total = 0.0
        same = True
        for i in range(count):
            total += rows[i][at] * scale
            same &= rows[i][at] == rows[0][at]
            if step:
                total += rows[i][at + step] * scale
                same &= rows[i][at + step] == rows[0][at]
        # A sum of equal doubles may be rounded; where nothing was written the fill value must stay.
        return rows[0][at] if same else <number>total
    elif number is uint64_t:
        mask = (1 << shift) - 1
        unsigned_whole = 0
        unsigned_rest = (1 << shift) >> 1
        for i in range(count):
            unsigned_whole += rows[i][at] >> shift
            unsigned_rest += rows[i][at] & mask
            if step:
                unsigned_whole += rows[i][at + step] >> shift
                unsigned_rest += rows[i][at + step] & mask
        return unsigned_whole + (unsigned_rest >> shift)
    elif number is int64_t:
        signed_whole = 0
        signed_rest = (1 << shift) >> 1
        for i in range(count):
            signed_whole += rows[i][at] >> shift
            signed_rest += rows[i][at] & ((1 << shift) - 1)
            if step:
                signed_whole += rows[i][at + step] >> shift
                signed_rest += rows[i][at + step] & ((1 << shift) - 1)
        return signed_whole + (signed_rest >> shift)
    else:
        whole = (1 << shift) >> 1
        for i in range(count):
            whole += rows[i][at]
            if step:
                whole += rows[i][at + step]
        return <number>(whole >> shift)


cdef void _octets(const number** rows, number* out, Py_ssize_t width) noexcept nogil:
    """Means of eight small integers each; the compiler makes vectors of this."""
    cdef const number* a = rows[0]
    cdef const number* b = rows[1]
    cdef const number* c = rows[2]
    cdef const number* d = rows[3]
    cdef Py_ssize_t x
    cdef int32_t total
    if number is uint8_t or number is int8_t or number is uint16_t or number is int16_t:
        for x in range(width):
            total = <int32_t>a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1]
            total = total + c[2 * x] + c[2 * x + 1] + d[2 * x] + d[2 * x + 1] + 4
            out[x] = <number>(total >> 3)


cdef void _mean(
    const number[:, :, ::1] src, number[:, :, ::1] dst, Box box
) noexcept nogil:
    cdef const number* rows[4]
    cdef Py_ssize_t z, y, x, c, i, j, first, step
    cdef int count = <int>(box.planes * box.rows)
    cdef int shift = (box.planes > 1) + (box.rows > 1) + (box.voxels > 1)
    cdef bint small = (
        number is uint8_t or number is int8_t or number is uint16_t or number is int16_t
    )
    step = box.channels if box.voxels > 1 else 0
    for z in range(dst.shape[0]):
        for y in range(dst.shape[1]):
            for i in range(box.planes):
                for j in range(box.rows):
                    rows[i * box.rows + j] = &src[z * box.planes + i, y * box.rows + j, 0]
            if small and shift == 3 and box.channels == 1:
                _octets(rows, &dst[z, y, 0], box.width)
                continue
            for x in range(box.width):
                first = x * box.voxels * box.channels
                for c in range(box.channels):
                    dst[z, y, x * box.channels + c] = _mean_of(rows, count, first + c, step, shift)


cdef inline label _commonest(const label* values, int count) noexcept nogil:
    """Return the commonest value other than 0, of several the smallest; 0 if there is no other."""
    cdef label best = 0
    cdef int most = 0
    cdef int i, j, votes
    for i in range(count):
        if values[i] == 0:
            continue
        votes = 0
        for j in range(count):
            votes += values[j] == values[i]
        if votes > most or (votes == most and values[i] < best):
            most = votes
            best = values[i]
    return best


cdef void _mode(const label[:, :, ::1] src, label[:, :, ::1] dst, Box box) noexcept nogil:
    cdef label values[8]
    cdef Py_ssize_t z, y, x, c, i, j, k, first
    cdef int count = <int>(box.planes * box.rows * box.voxels)
    cdef int n, differ
    for z in range(dst.shape[0]):
        for y in range(dst.shape[1]):
            for x in range(box.width):
                first = x * box.voxels * box.channels
                for c in range(box.channels):
                    n = 0
                    differ = 0
                    for i in range(box.planes):
                        for j in range(box.rows):
                            for k in range(box.voxels):
                                values[n] = src[
                                    z * box.planes + i, y * box.rows + j,
                                    first + k * box.channels + c,
                                ]
                                differ |= values[n] != values[0]
                                n += 1
                    dst[z, y, x * box.channels + c] = (
                        _commonest(values, count) if differ else values[0]
                    )


def mean(const number[:, :, ::1] src, number[:, :, ::1] dst, Py_ssize_t channels=1):
    """Fill `dst` with the means of boxes of `src`; see `diced.downsample`."""
    cdef Box box = _box(
        [src.shape[0], src.shape[1], src.shape[2]], [dst.shape[0], dst.shape[1], dst.shape[2]],
        channels,
    )
    if dst.shape[0] and dst.shape[1] and dst.shape[2]:
        with nogil:
            _mean(src, dst, box)


def mode(const label[:, :, ::1] src, label[:, :, ::1] dst, Py_ssize_t channels=1):
    """Fill `dst` with the commonest labels of boxes of `src`; see `diced.downsample`."""
    cdef Box box = _box(
        [src.shape[0], src.shape[1], src.shape[2]], [dst.shape[0], dst.shape[1], dst.shape[2]],
        channels,
    )
    if dst.shape[0] and dst.shape[1] and dst.shape[2]:
        with nogil:
            _mode(src, dst, box)
