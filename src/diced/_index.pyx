"""Kernels of index pages: binary search in packed keys, their order, front coding.

Keys lie one after another in `flat`. Key i is ``flat[i * width : (i + 1) * width]`` if `width` is
positive, else ``flat[ends[i - 1] : ends[i]]``, with `ends` native uint32 and ends[-1] taken as 0.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy


cdef inline int _compare(
    const unsigned char *a, Py_ssize_t a_size, const unsigned char *b, Py_ssize_t b_size
) noexcept nogil:
    cdef Py_ssize_t size = a_size if a_size < b_size else b_size
    cdef int order = memcmp(a, b, size) if size else 0
    if order:
        return order
    return (a_size > b_size) - (a_size < b_size)


# bytes and not memoryviews: acquiring a memoryview costs more than the whole search (0.15 us).
cdef Py_ssize_t _search(
    bytes flat, bytes ends, Py_ssize_t width, bytes key, bint right, bint *equal
) except -1:
    cdef const unsigned char *keys = flat
    cdef const unsigned char *table = ends
    cdef const unsigned char *wanted = key
    cdef Py_ssize_t total = len(flat), wanted_size = len(key)
    cdef Py_ssize_t low = 0, high, middle, begin, end
    cdef uint32_t bound
    cdef int order
    equal[0] = False
    high = total // width if width > 0 else len(ends) // 4
    while low < high:
        middle = low + (high - low) // 2
        if width > 0:
            begin = middle * width
            end = begin + width
        else:
            begin = 0
            if middle:
                memcpy(&bound, table + 4 * (middle - 1), 4)
                begin = bound
            memcpy(&bound, table + 4 * middle, 4)
            end = bound
        if begin > end or end > total:
            raise IndexError(f"key {middle} lies at {begin}:{end} of {total} bytes")
        order = _compare(keys + begin, end - begin, wanted, wanted_size)
        if order == 0:
            equal[0] = True
            return middle + 1 if right else middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return low


def position(bytes flat not None, bytes ends not None, Py_ssize_t width, bytes key not None):
    """Return the number of keys below `key` (bisect_left)."""
    cdef bint equal
    return _search(flat, ends, width, key, False, &equal)


def slot(bytes flat not None, bytes ends not None, Py_ssize_t width, bytes key not None):
    """Return the index of the last key that is not above `key`, or -1."""
    cdef bint equal
    return _search(flat, ends, width, key, True, &equal) - 1


def find(bytes flat not None, bytes ends not None, Py_ssize_t width, bytes key not None):
    """Return the index of `key`, or -1."""
    cdef bint equal
    cdef Py_ssize_t at = _search(flat, ends, width, key, False, &equal)
    return at if equal else -1


cdef Py_ssize_t _disorder(
    const unsigned char[::1] flat, const uint32_t[::1] ends
) except -2 nogil:
    cdef Py_ssize_t i, before = 0, begin = 0, end
    cdef Py_ssize_t total = flat.shape[0]
    cdef const unsigned char *keys = &flat[0] if total else NULL
    for i in range(ends.shape[0]):
        end = ends[i]
        if end < begin or end > total:
            return i
        if i and _compare(keys + before, begin - before, keys + begin, end - begin) >= 0:
            return i
        before = begin
        begin = end
    return -1


def disorder(const unsigned char[::1] flat, const uint32_t[::1] ends):
    """Return the first key that is not above the one before it or lies outside, or -1."""
    cdef Py_ssize_t result
    with nogil:
        result = _disorder(flat, ends)
    return result


cdef Py_ssize_t _front_encode(
    const unsigned char[::1] flat, const uint32_t[::1] ends, Py_ssize_t prefix,
    uint32_t[::1] shared, uint32_t[::1] sizes, unsigned char[::1] out
) except -1 nogil:
    cdef Py_ssize_t i, before = 0, begin = 0, end, same, limit, size, used = 0
    cdef Py_ssize_t total = flat.shape[0]
    for i in range(ends.shape[0]):
        end = ends[i]
        if end - begin < prefix or end > total:
            raise IndexError("a key is shorter than the common prefix or lies outside")
        same = prefix
        if i:
            limit = min(begin - before, end - begin)
            while same < limit and flat[before + same] == flat[begin + same]:
                same += 1
        size = end - begin - same
        if used + size > out.shape[0]:
            raise IndexError("the buffer for suffixes is too small")
        shared[i] = <uint32_t> (same - prefix)
        sizes[i] = <uint32_t> size
        if size:
            memcpy(&out[used], &flat[begin + same], size)
        used += size
        before = begin
        begin = end
    return used


def front_encode(
    const unsigned char[::1] flat, const uint32_t[::1] ends, Py_ssize_t prefix,
    uint32_t[::1] shared, uint32_t[::1] sizes, unsigned char[::1] out
):
    """Front-code keys that all begin with the same `prefix` bytes.

    Writes how many bytes after the prefix each key has in common with the one before it, the
    number of its other bytes, and these bytes. Returns the number of bytes written to `out`.
    """
    cdef Py_ssize_t used
    if shared.shape[0] != ends.shape[0] or sizes.shape[0] != ends.shape[0]:
        raise ValueError("shared and sizes must be as long as ends")
    with nogil:
        used = _front_encode(flat, ends, prefix, shared, sizes, out)
    return used


cdef int _front_decode(
    const unsigned char[::1] prefix, const uint32_t[::1] shared, const uint32_t[::1] sizes,
    const unsigned char[::1] suffixes, uint32_t[::1] ends, unsigned char[::1] out
) except -1 nogil:
    cdef Py_ssize_t i, before = 0, begin = 0, end, used = 0, same, size
    cdef Py_ssize_t head = prefix.shape[0]
    for i in range(ends.shape[0]):
        same = head + <Py_ssize_t> shared[i]
        size = sizes[i]
        end = begin + same + size
        # Reuse of the key before must stay within it; the first key has only the prefix.
        if same > (begin - before if i else head):
            return 0
        if end > out.shape[0] or used + size > suffixes.shape[0]:
            return 0
        if i == 0:
            if head:
                memcpy(&out[0], &prefix[0], head)
        elif same:
            memcpy(&out[begin], &out[before], same)
        if size:
            memcpy(&out[begin + same], &suffixes[used], size)
        used += size
        ends[i] = <uint32_t> end
        before = begin
        begin = end
    return begin == out.shape[0] and used == suffixes.shape[0]


def front_decode(
    const unsigned char[::1] prefix, const uint32_t[::1] shared, const uint32_t[::1] sizes,
    const unsigned char[::1] suffixes, uint32_t[::1] ends, unsigned char[::1] out
):
    """Undo `front_encode` into `ends` and `out`; return whether everything fitted exactly."""
    cdef int fits
    if shared.shape[0] != ends.shape[0] or sizes.shape[0] != ends.shape[0]:
        raise ValueError("shared and sizes must be as long as ends")
    with nogil:
        fits = _front_decode(prefix, shared, sizes, suffixes, ends, out)
    return bool(fits)
