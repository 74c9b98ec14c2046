"""Frames of blocks into a box of voxels: any number of blocks in one region without the GIL.

Owns the loop that reads, verifies and decodes: a block's bytes come from an open file (only those
that the window needs) or from memory, are checked, and go straight into the caller's strides.
Whatever is not as it should be, or needs code that only Python has, is left: the row is reported,
and `diced.blocks` reads it in the general way, which either works or names what is wrong.

The one kernel that calls the system: a `pread` between two blocks keeps the bytes in the cache
that the decoder reads, and needs no Python.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort

from diced._blockdecode cimport Reader, Window, Workspace, make_room
from diced._crc32c cimport checksum
from diced._frame cimport (
    CHECK, HEAD, LABEL, MAX_UNITS, MOST_HALVINGS, RAW, UNIT, Geometry, get16, get32, halvings,
    is_block_head, scatter_units, unit_place,
)
from diced._strides cimport MAX_AXES, View
from diced._voxels cimport fill_window
from diced.errors import InvalidError

cdef extern from *:
    """
    #define diced_take(counter) __atomic_fetch_add((counter), 1, __ATOMIC_RELAXED)
    """
    int64_t diced_take(int64_t* counter) noexcept nogil

cdef extern from "unistd.h" nogil:
    Py_ssize_t pread(int fd, void* into, size_t size, int64_t offset)

cdef enum:
    # Shorter frames are read whole, whatever part is wanted of them.
    WHOLE_BELOW = 16384
    FETCH = 0
    CONSTANT = 1
    UNREADABLE = 2


# One block to read: its row in the cut, and where its bytes are.
cdef struct Job:
    int64_t row
    int kind
    uint64_t segment
    int64_t offset          # of the frame in its segment; of the element for a constant
    int64_t length
    const uint8_t* key
    const uint8_t* element


cdef bint _fill_from(int fd, uint8_t* into, int64_t offset, int64_t size) noexcept nogil:
    """Read exactly `size` bytes; False on any trouble, which the general path will name."""
    cdef Py_ssize_t got
    while size > 0:
        got = pread(fd, into, size, offset)
        if got <= 0:
            return False
        into += got
        offset += got
        size -= got
    return True


cdef int _by_place(const void* a, const void* b) noexcept nogil:
    cdef const Job* x = <const Job*>a
    cdef const Job* y = <const Job*>b
    if x.kind != y.kind:
        return (x.kind > y.kind) - (x.kind < y.kind)
    if x.segment != y.segment:
        return (x.segment > y.segment) - (x.segment < y.segment)
    return (x.offset > y.offset) - (x.offset < y.offset)


cdef class Batch:
    """The blocks of one read. Make it, open its segments, `run` it on any number of threads.

    Parameters
    ----------
    reader : Reader
    entries : list
        Per row of the cut what the index has: None, inline bytes, or (segment, offset, length).
    keys : list of bytes
    table : C-contiguous int64 array (rows, 3, dims)
        Per row: where the part begins in its block, its size, where it lies in the box.
    out : writable buffer
        The box, channels last; any strides.
    constant : bytes
        The tag of an inline entry that is a constant.
    stream : bool
        `out` is much larger than the caches.

    Attributes
    ----------
    segments : list of (int, int, int)
        (segment, first job, one past the last) in order of place.
    failed : list of int
        After `run`: rows that are left to the general path.
    """

    cdef Reader reader
    cdef list keys, entries
    cdef const int64_t[:, :, ::1] table
    cdef View out
    cdef bint stream
    cdef Job* jobs
    cdef int* files
    cdef int64_t* left
    cdef int64_t count, next, last, lefts
    cdef readonly list segments

    def __cinit__(
        self, Reader reader not None, list entries not None, list keys not None,
        const int64_t[:, :, ::1] table, out, bytes constant not None, bint stream
    ):
        cdef const Geometry* geometry = &reader.geometry
        cdef Py_ssize_t row, part
        cdef Py_ssize_t total = len(entries)
        cdef Job* job
        cdef bytes key, inline
        cdef int axis
        self.reader = reader
        self.keys = keys
        self.entries = entries  # kept: jobs point into their bytes
        self.table = table
        self.stream = stream
        self.out = View(out, "out", True)
        if (
            len(keys) != total
            or table.shape[0] != total
            or table.shape[1] != 3
            or table.shape[2] != geometry.dims
            or self.out.buffer.ndim != geometry.axes
            or self.out.buffer.itemsize != geometry.item
            or (
                geometry.axes > geometry.dims
                and self.out.buffer.shape[geometry.dims] != geometry.shape[geometry.dims]
            )
        ):
            raise InvalidError(
                f"a batch needs an entry, a key and a row for each block and a result of its"
                f" axes; got {total}, {len(keys)} and {table.shape[0]} for {self.out.shape()}"
            )
        self.jobs = <Job*>calloc(max(total, 1), sizeof(Job))
        self.files = <int*>malloc(max(total, 1) * sizeof(int))
        self.left = <int64_t*>malloc(max(total, 1) * sizeof(int64_t))
        if self.jobs == NULL or self.files == NULL or self.left == NULL:
            raise MemoryError("the table of a batch")
        for row in range(total):
            job = &self.jobs[row]
            self.files[row] = -1
            job.row = row
            key = keys[row]
            if len(key) != geometry.key_size:
                raise InvalidError(f"a key has {geometry.key_size} bytes; got {key!r}")
            job.key = key
            entry = entries[row]
            if entry is None:
                job.kind = CONSTANT
                job.element = reader.fill
            elif type(entry) is tuple:
                job.kind = FETCH
                job.segment, job.offset, job.length = entry
            else:
                inline = entry
                job.kind = CONSTANT
                if inline[:1] == constant and len(inline) == 1 + len(reader.fill):
                    job.element = <const uint8_t*>inline + 1
                else:
                    job.kind = UNREADABLE
        self.count = total
        if total > 1:
            qsort(self.jobs, total, sizeof(Job), _by_place)
        self.segments = []
        row = 0
        while row < total and self.jobs[row].kind == FETCH:
            part = row
            while (
                row < total
                and self.jobs[row].kind == FETCH
                and self.jobs[row].segment == self.jobs[part].segment
            ):
                row += 1
            self.segments.append((self.jobs[part].segment, part, row))

    def __dealloc__(self):
        free(self.jobs)
        free(self.files)
        free(self.left)

    @property
    def failed(self):
        cdef int64_t i
        return sorted({self.left[i] for i in range(min(self.lefts, self.count))})

    def spans(self, int64_t first, int64_t last):
        """Return (row, offset, length) of the jobs `first` to `last`, which are in order."""
        if not 0 <= first <= last <= self.count:
            raise InvalidError(f"jobs are 0 to {self.count}; got {first} to {last}")
        return [
            (self.jobs[i].row, self.jobs[i].offset, self.jobs[i].length)
            for i in range(first, last)
        ]

    def open(self, int64_t first, int64_t last, int fd):
        """Let jobs read from an open file, which stays the caller's. -1 closes."""
        cdef int64_t i
        if not 0 <= first <= last <= self.count:
            raise InvalidError(f"jobs are 0 to {self.count}; got {first} to {last}")
        for i in range(first, last):
            self.files[i] = fd

    def start(self, int64_t first, int64_t last):
        """Set which jobs the next `run` does; -1 as `last` means all from `first`."""
        last = self.count if last < 0 else last
        if not 0 <= first <= last <= self.count:
            raise InvalidError(f"jobs are 0 to {self.count}; got {first} to {last}")
        self.next = first
        self.last = last

    def run(self, _=None):
        """Take jobs until none is left. Threads may call this at once."""
        cdef Workspace work = self.reader.workspace()
        cdef int64_t i
        with nogil:
            while True:
                i = diced_take(&self.next)
                if i >= self.last:
                    break
                if self.one(&self.jobs[i], self.files[i], NULL, work) == 0:
                    self.leave(&self.jobs[i])
        self.reader.keep(work)

    def run_memory(self, int64_t first, int64_t last, data, int64_t begin):
        """Do the jobs `first` to `last` from bytes that begin at offset `begin` of the segment."""
        cdef Workspace work = self.reader.workspace()
        cdef Py_buffer held
        cdef int64_t i
        cdef Job* job
        if not 0 <= first <= last <= self.count:
            raise InvalidError(f"jobs are 0 to {self.count}; got {first} to {last}")
        PyObject_GetBuffer(data, &held, PyBUF_SIMPLE)
        try:
            with nogil:
                for i in range(first, last):
                    job = &self.jobs[i]
                    if (
                        job.kind != FETCH
                        or job.offset < begin
                        or job.length < 0
                        or job.offset - begin > held.len - job.length
                        or self.one(
                            job, -1, <const uint8_t*>held.buf + (job.offset - begin), work
                        ) == 0
                    ):
                        self.leave(job)
        finally:
            PyBuffer_Release(&held)
        self.reader.keep(work)

    cdef void leave(self, const Job* job) noexcept nogil:
        """Note a job for the general path."""
        cdef int64_t at = diced_take(&self.lefts)
        if at < self.count:  # more only if jobs are run again
            self.left[at] = job.row

    cdef int one(
        self, const Job* job, int fd, const uint8_t* frame, Workspace work
    ) except -1 nogil:
        """Read one block; 0 if it is left."""
        cdef const Geometry* geometry = &self.reader.geometry
        cdef const int64_t* part = &self.table[job.row, 0, 0]
        cdef Window window
        cdef bint whole = True
        cdef int axis, dims = geometry.dims
        window.out = <char*>self.out.buffer.buf
        window.strides = self.out.buffer.strides
        for axis in range(dims):
            window.low[axis] = part[axis]
            window.count[axis] = part[dims + axis]
            if (
                window.low[axis] < 0
                or window.count[axis] <= 0
                or window.low[axis] > geometry.shape[axis] - window.count[axis]
                or part[2 * dims + axis] < 0
                or part[2 * dims + axis] > self.out.buffer.shape[axis] - window.count[axis]
            ):
                return 0
            whole = whole and window.count[axis] == geometry.shape[axis]
            window.out += part[2 * dims + axis] * window.strides[axis]
        if geometry.axes > dims:
            window.low[dims] = 0
            window.count[dims] = geometry.shape[dims]
        if job.kind == CONSTANT:
            fill_window(
                window.out, geometry.axes, window.count, window.strides, geometry.item,
                job.element, self.reader.fill_size,
            )
            return 1
        if job.kind != FETCH:
            return 0
        if frame != NULL:
            if job.length < self.reader.head and job.length < HEAD + geometry.key_size + CHECK:
                return 0
            if not is_block_head(geometry, frame, job.length, job.key):
                return 0
            return self.payload(job, frame, -1, &window, work)
        if fd < 0:
            return 0
        return self.fetched(job, fd, whole, &window, work)

    cdef int fetched(
        self, const Job* job, int fd, bint whole, Window* window, Workspace work
    ) except -1 nogil:
        """Read what the window needs of a frame in a file, and decode it."""
        cdef const Geometry* geometry = &self.reader.geometry
        cdef Py_ssize_t head = self.reader.head
        cdef Py_ssize_t least = HEAD + geometry.key_size + CHECK
        cdef uint8_t* frame
        cdef bint partly
        if job.length < least or job.length - least > 2 * <int64_t>geometry.nbytes + (
            1 << 20
        ):
            return 0
        if not make_room(&work.frame, &work.frame_room, max(job.length, <int64_t>head)):
            return 0
        frame = work.frame
        partly = not whole and head > least and job.length >= max(WHOLE_BELOW, head)
        if not _fill_from(fd, frame, job.offset, head if partly else job.length):
            return 0
        if not is_block_head(geometry, frame, job.length, job.key):
            return 0
        if partly and least + UNIT * <Py_ssize_t>get16(frame + 26) != head:
            # Not the units that were expected: read the rest.
            partly = False
            if not _fill_from(fd, frame + head, job.offset + head, job.length - head):
                return 0
        return self.payload(job, frame, fd if partly else -1, window, work)

    cdef int payload(
        self, const Job* job, const uint8_t* frame, int fd, Window* window, Workspace work
    ) except -1 nogil:
        """Decode a frame whose head was checked. With `fd`, the units are still to be read."""
        cdef const Geometry* geometry = &self.reader.geometry
        cdef Py_ssize_t start = HEAD + geometry.key_size + CHECK
        cdef const uint8_t* data = frame + start
        cdef int64_t size = job.length - start
        cdef int units = get16(frame + 26), half, number, axis
        cdef int64_t begin, end
        cdef Py_ssize_t place[MAX_AXES]
        cdef Py_ssize_t shape[MAX_AXES]
        cdef Py_ssize_t low, high
        cdef Window part
        cdef bint met
        if units == 0:
            if checksum(data, size) != get32(frame + 28):
                return 0
            return self.reader.decode(
                frame[5], data, size, geometry.shape, window, self.stream, work
            )
        half = halvings(units, geometry.dims)
        if units > MAX_UNITS or half < 0 or units * UNIT > size or frame[5] >= LABEL:
            return 0
        if checksum(data, units * UNIT) != get32(frame + 28):
            return 0
        for axis in range(geometry.axes):
            shape[axis] = geometry.shape[axis]
            part.low[axis] = window.low[axis]
            part.count[axis] = window.count[axis]
        for axis in range(geometry.dims):
            if shape[axis] & ((1 << half) - 1):
                return 0
            shape[axis] >>= half
        if self.by_rows(half, window):
            return self.whole(frame, size, units, half, window, work)
        part.strides = window.strides
        end = units * UNIT
        for number in range(units):
            begin = end
            end = get32(data + number * UNIT)
            if end < begin or end > size:
                return 0
            unit_place(number, geometry.dims, half, place)
            met = True
            part.out = window.out
            for axis in range(geometry.dims):
                low = max(place[axis] * shape[axis], window.low[axis])
                high = min((place[axis] + 1) * shape[axis], window.low[axis] + window.count[axis])
                if low >= high:
                    met = False
                    break
                part.low[axis] = low - place[axis] * shape[axis]
                part.count[axis] = high - low
                part.out += (low - window.low[axis]) * window.strides[axis]
            if not met:
                continue
            if fd >= 0 and not _fill_from(
                fd, <uint8_t*>data + begin, job.offset + start + begin, end - begin
            ):
                return 0
            if checksum(data + begin, end - begin) != get32(data + number * UNIT + 4):
                return 0
            if not self.reader.decode(
                frame[5], data + begin, end - begin, shape, &part, self.stream, work
            ):
                return 0
        return 1

    cdef bint by_rows(self, int half, const Window* window) noexcept nogil:
        """True for a whole 3-D block whose rows lie together in the result."""
        cdef const Geometry* geometry = &self.reader.geometry
        cdef int axis
        if (
            geometry.axes != 3 or geometry.dims != 3 or not 1 <= half <= MOST_HALVINGS
            or window.strides[2] != geometry.item
        ):
            return False
        for axis in range(3):
            if window.count[axis] != geometry.shape[axis]:
                return False
        return True

    cdef int whole(
        self, const uint8_t* frame, int64_t size, int units, int half, Window* window,
        Workspace work
    ) except -1 nogil:
        """Decode all units, then write the block's rows, each once and whole."""
        cdef const Geometry* geometry = &self.reader.geometry
        cdef const uint8_t* data = frame + HEAD + geometry.key_size + CHECK
        cdef const uint8_t* source
        cdef Py_ssize_t unit_bytes = geometry.nbytes // units
        cdef int64_t begin, end = units * UNIT
        cdef int number
        if not make_room(&work.block, &work.block_room, geometry.nbytes):
            return 0
        for number in range(units):
            begin = end
            end = get32(data + number * UNIT)
            if (
                end < begin
                or end > size
                or checksum(data + begin, end - begin) != get32(data + number * UNIT + 4)
            ):
                return 0
            if frame[5] != RAW:
                if not self.reader.decompress(
                    frame[5], data + begin, end - begin, work.block + number * unit_bytes,
                    unit_bytes, work,
                ):
                    return 0
            elif end - begin != unit_bytes:
                return 0
        source = data + units * UNIT if frame[5] == RAW else work.block
        scatter_units(source, geometry, half, window.out, window.strides)
        return 1
