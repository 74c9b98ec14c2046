"""Kernels of index pages: keys in order with their entries, their order, front coding.

Keys lie one after another in `flat`. Key i is ``flat[i * width : (i + 1) * width]`` if `width` is
positive, else ``flat[ends[i - 1] : ends[i]]``, with `ends` native uint32 and ends[-1] taken as 0.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    POINTER = 0
    INLINE = 1
    TOMBSTONE = 2


cdef inline int _compare(
    const unsigned char *a, Py_ssize_t a_size, const unsigned char *b, Py_ssize_t b_size
) noexcept nogil:
    cdef Py_ssize_t size = a_size if a_size < b_size else b_size
    cdef int order = memcmp(a, b, size) if size else 0
    if order:
        return order
    return (a_size > b_size) - (a_size < b_size)


cdef class Table:
    """Keys in ascending order with one entry each, by column; nothing changes after ``__init__``.

    Parameters
    ----------
    flat, ends : bytes
    width : int
        As above.
    kinds : bytes
        One per key: 0 pointer, 1 inline value, 2 tombstone.
    where : uint64 array
        Offset of what a pointer leads to, or of an inline value in `values`.
    length : uint32 array
        Its size.
    owner : uint16 array
        Index into `objects`, for pointers.
    objects : list of int
    values : bytes
    """

    # The pointers are into the bytes objects held beside them.
    cdef bytes _flat, _ends, _kinds, _values
    cdef const unsigned char *_keys
    cdef const unsigned char *_bounds
    cdef const unsigned char *_kind
    cdef list _objects
    cdef const uint64_t[::1] _where
    cdef const uint32_t[::1] _length
    cdef const uint16_t[::1] _owner
    cdef Py_ssize_t _width, _n

    def __init__(
        self, bytes flat not None, bytes ends not None, Py_ssize_t width, bytes kinds not None,
        const uint64_t[::1] where not None, const uint32_t[::1] length not None,
        const uint16_t[::1] owner not None, list objects not None, bytes values not None,
    ):
        cdef Py_ssize_t n = len(kinds)
        self._n = 0
        if (
            where.shape[0] != n or length.shape[0] != n or owner.shape[0] != n
            or (len(flat) != n * width if width > 0 else len(ends) != 4 * n)
        ):
            raise ValueError(f"the columns of {n} keys are of other lengths")
        self._flat, self._ends, self._kinds, self._values = flat, ends, kinds, values
        self._keys = <const unsigned char*>PyBytes_AS_STRING(flat)
        self._bounds = <const unsigned char*>PyBytes_AS_STRING(ends)
        self._kind = <const unsigned char*>PyBytes_AS_STRING(kinds)
        self._where, self._length, self._owner = where, length, owner
        self._objects = objects
        self._width = width
        self._n = n

    def __len__(self):
        return self._n

    cdef inline int _span(self, Py_ssize_t i, Py_ssize_t *begin, Py_ssize_t *end) except -1:
        """Find the bytes of key `i`, which the caller knows to be below `_n`."""
        cdef uint32_t bound
        if self._width > 0:
            begin[0] = i * self._width
            end[0] = begin[0] + self._width
            return 0
        begin[0] = 0
        if i:
            memcpy(&bound, self._bounds + 4 * (i - 1), 4)
            begin[0] = bound
        memcpy(&bound, self._bounds + 4 * i, 4)
        end[0] = bound
        if begin[0] > end[0] or end[0] > PyBytes_GET_SIZE(self._flat):
            raise IndexError(f"key {i} lies at {begin[0]}:{end[0]} of {len(self._flat)} bytes")
        return 0

    cdef Py_ssize_t _between(
        self, bytes key, Py_ssize_t low, Py_ssize_t high, bint *equal
    ) except -1:
        """Return how many keys are below `key`, which belongs at an index of `low` to `high`."""
        cdef const unsigned char *wanted = <const unsigned char*>PyBytes_AS_STRING(key)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(key), middle, begin = 0, end = 0
        cdef int order
        equal[0] = False
        while low < high:
            middle = low + (high - low) // 2
            self._span(middle, &begin, &end)
            order = _compare(self._keys + begin, end - begin, wanted, size)
            if order == 0:
                equal[0] = True
                return middle
            if order < 0:
                low = middle + 1
            else:
                high = middle
        return low

    cdef Py_ssize_t _after(self, bytes key, Py_ssize_t low, bint *equal) except -1:
        """As `_between` from `low` on, by growing steps: quick when `key` belongs near `low`."""
        cdef const unsigned char *wanted = <const unsigned char*>PyBytes_AS_STRING(key)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(key), high = low, step = 1, begin = 0, end = 0
        cdef int order
        while high < self._n:
            self._span(high, &begin, &end)
            order = _compare(self._keys + begin, end - begin, wanted, size)
            if order == 0:
                equal[0] = True
                return high
            if order > 0:
                break
            low = high + 1
            high += step
            step *= 2
        return self._between(key, low, min(high, self._n), equal)

    cdef object _entry(self, Py_ssize_t i):
        """Return entry `i`, which the caller knows to be below `_n`."""
        cdef Py_ssize_t at
        cdef uint64_t begin, size
        if self._kind[i] == POINTER:
            at = self._owner[i]
            if at >= len(self._objects):
                raise IndexError(f"object {at} of {len(self._objects)}")
            return (self._objects[at], self._where[i], self._length[i])
        if self._kind[i] == INLINE:
            begin, size = self._where[i], self._length[i]
            if begin > <uint64_t>len(self._values) or size > len(self._values) - begin:
                raise IndexError(f"value at {begin} of {size} in {len(self._values)} bytes")
            return PyBytes_FromStringAndSize(PyBytes_AS_STRING(self._values) + begin, size)
        return None

    cdef int _check(self, Py_ssize_t start, Py_ssize_t stop) except -1:
        if not 0 <= start <= stop <= self._n:
            raise IndexError(f"keys {start} to {stop} of a page of {self._n}")
        return 0

    def key(self, Py_ssize_t index):
        """Return one key by its index from 0."""
        cdef Py_ssize_t begin = 0, end = 0
        self._check(index, index + 1)
        self._span(index, &begin, &end)
        return PyBytes_FromStringAndSize(<const char*>self._keys + begin, end - begin)

    def key_range(self, Py_ssize_t start, Py_ssize_t stop):
        """Return the keys with ``start <= index < stop``, two numbers within the page."""
        cdef Py_ssize_t i, begin = 0, end = 0
        cdef list found = []
        self._check(start, stop)
        for i in range(start, stop):
            self._span(i, &begin, &end)
            found.append(PyBytes_FromStringAndSize(<const char*>self._keys + begin, end - begin))
        return found

    def entry(self, Py_ssize_t index):
        """Return a pointer, an inline value, or None for a tombstone, by index from 0."""
        self._check(index, index + 1)
        return self._entry(index)

    def entry_range(self, Py_ssize_t start, Py_ssize_t stop):
        """Return the entries with ``start <= index < stop``, two numbers within the page."""
        cdef Py_ssize_t i
        cdef list found = []
        self._check(start, stop)
        for i in range(start, stop):
            found.append(self._entry(i))
        return found

    def find(self, bytes key not None):
        """Return the index of `key`, or -1."""
        cdef bint equal = False
        cdef Py_ssize_t at = self._between(key, 0, self._n, &equal)
        return at if equal else -1

    def position(self, bytes key not None):
        """Return how many keys are below `key` (bisect_left)."""
        cdef bint equal = False
        return self._between(key, 0, self._n, &equal)

    def slot(self, bytes key not None):
        """Return the index of the last key that is not above `key`, or -1."""
        cdef bint equal = False
        cdef Py_ssize_t at = self._between(key, 0, self._n, &equal)
        return at if equal else at - 1

    def get(self, bytes key not None):
        """Return the entry of `key`, or None."""
        cdef bint equal = False
        cdef Py_ssize_t at = self._between(key, 0, self._n, &equal)
        return self._entry(at) if equal else None

    def get_many(self, list keys not None, Py_ssize_t start, Py_ssize_t stop):
        """Return the entries, or None, of ``keys[start:stop]``, which ascend."""
        cdef Py_ssize_t i, at = 0
        cdef bint equal
        cdef bytes key
        cdef list found = []
        if not 0 <= start <= stop <= len(keys):
            raise IndexError(f"keys {start} to {stop} of {len(keys)}")
        for i in range(start, stop):
            key = keys[i]
            if key is None:
                raise TypeError("a key is bytes")
            equal = False
            at = self._between(key, 0, self._n, &equal) if i == start else self._after(
                key, at, &equal
            )
            found.append(self._entry(at) if equal else None)
        return found


def descent(list keys not None, bint equal=False):
    """Return the index of the first key below the one before it (or `equal` to it), or -1."""
    cdef Py_ssize_t i
    cdef int limit = -1 if equal else 0
    cdef bytes key, before = None
    for i in range(len(keys)):
        key = keys[i]
        if key is None:
            raise TypeError("a key is bytes")
        if before is not None and _compare(
            <const unsigned char*>PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before),
            <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
        ) > limit:
            return i
        before = key
    return -1


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
