"""One payload into one window: what the batches of `_blockread` do for each block or unit.

Owns which function decodes a codec's bytes and where to: into the result if it lies together there,
else into a workspace and from it row by row.
"""

from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

from diced._codec cimport decode_window
from diced._compress cimport lz4_in_use, zstd_in_use
from diced._frame cimport (
    CHECK, HEAD, LABEL, LABEL_LZ4, LABEL_ZSTD, LZ4, RAW, UNIT, ZSTD, Geometry, describe,
)
from diced._packed cimport Unpacker, decode_packed, packed_room
from diced._strides cimport Plan, arrange, copy_plan
from diced.errors import InvalidError

cdef enum:
    SPARE = 8               # workspaces kept for later calls
    KEPT_BYTES = 1 << 24    # buffers above this are not kept


cdef class Workspace:
    """What one thread needs besides its result."""

    def __dealloc__(self):
        free(self.frame)
        free(self.block)


cdef bint make_room(uint8_t** buffer, Py_ssize_t* room, Py_ssize_t wanted) noexcept nogil:
    """Make a buffer large enough; what it held is lost."""
    if room[0] >= wanted:
        return True
    free(buffer[0])
    buffer[0] = <uint8_t*>malloc(wanted)
    room[0] = wanted if buffer[0] != NULL else 0
    return buffer[0] != NULL


cdef class Reader:
    """How the blocks of one array are read; threads may share it.

    Parameters
    ----------
    lane : bytes
        The 8 bytes that frames carry.
    itemsize : int
    block_shape : sequence of int
    channels : int or None
    fill : bytes
        The element of blocks that are not there.
    units : int
        Units that frames mostly have: how much is read to learn where units are.
    """

    def __init__(self, lane, Py_ssize_t itemsize, block_shape, channels, bytes fill, int units):
        cdef int axis
        describe(&self.geometry, lane, itemsize, block_shape, channels)
        if len(fill) != itemsize * (channels or 1):
            raise InvalidError(f"the fill value is one element; got {len(fill)} bytes")
        self.fill = fill
        self.fill_size = len(fill)
        self.head = HEAD + self.geometry.key_size + CHECK + max(0, units) * UNIT
        self.lz4 = lz4_in_use()
        self.zstd = zstd_in_use()
        self.spare = []
        self.labels = self.geometry.axes == 3 and self.geometry.dims == 3 and itemsize == 8
        for axis in range(3 if self.labels else 0):
            self.grid[axis] = self.geometry.shape[axis] // 8
            if self.geometry.shape[axis] % 8 or self.geometry.shape[axis] > 1024:
                self.labels = False

    cdef Workspace workspace(self):
        cdef Workspace found
        try:
            return <Workspace>self.spare.pop()
        except IndexError:
            found = Workspace()
        if self.zstd.c_decompress is not NULL:
            found.context = self.zstd.context(
                self.zstd.decoders, self.zstd.create_decoder, self.zstd.free_decoder
            )
        return found

    cdef void keep(self, Workspace work):
        if len(self.spare) < SPARE and work.frame_room + work.block_room <= KEPT_BYTES:
            self.spare.append(work)

    cdef int decode(
        self, int codec, const uint8_t* data, int64_t size, const Py_ssize_t* shape,
        Window* window, bint stream, Workspace work
    ) except -1 nogil:
        """Decode the window of a payload that holds a block of `shape`; 0 if that cannot be."""
        cdef const Geometry* geometry = &self.geometry
        cdef Plan plan
        cdef Py_ssize_t nbytes = geometry.item, step
        cdef Py_ssize_t high[3]
        cdef const uint8_t* block = data
        cdef char* a
        cdef char* b
        cdef bint direct = True
        cdef Unpacker unpacker
        cdef int axis
        if codec >= LABEL:
            if not self.labels or codec > LABEL_ZSTD:
                return 0
            for axis in range(3):
                high[axis] = window.low[axis] + window.count[axis]
            if codec == LABEL:
                decode_window(
                    data, size, self.grid, window.out, window.strides, window.low, high, stream
                )
                return 1
            unpacker.lz4 = self.lz4.c_decompress if codec == LABEL_LZ4 else NULL
            unpacker.zstd = self.zstd.c_decompress
            unpacker.context = NULL if unpacker.zstd is NULL else work.context.handle
            if codec == LABEL_ZSTD and unpacker.zstd is NULL or (
                codec == LABEL_LZ4 and unpacker.lz4 is NULL
            ):
                return 0
            if not make_room(&work.block, &work.block_room, packed_room(self.grid)):
                return 0
            decode_packed(
                data, size, &unpacker, work.block, work.block_room, self.grid, window.out,
                window.strides, window.low, high, stream,
            )
            return 1
        for axis in range(geometry.axes - 1, -1, -1):
            direct = direct and window.count[axis] == shape[axis]
            direct = direct and (window.strides[axis] == nbytes or shape[axis] == 1)
            nbytes *= shape[axis]
        if codec == RAW:
            if size != nbytes:
                return 0
        else:
            if direct:
                block = <const uint8_t*>window.out
            else:
                if not make_room(&work.block, &work.block_room, nbytes):
                    return 0
                block = work.block
            if not self.decompress(codec, data, size, <uint8_t*>block, nbytes, work):
                return 0
            if direct:
                return 1
        plan.n = geometry.axes
        plan.item = step = geometry.item
        a = <char*>block
        for axis in range(geometry.axes - 1, -1, -1):
            plan.shape[axis] = window.count[axis]
            plan.src[axis] = step
            plan.dst[axis] = window.strides[axis]
            a += window.low[axis] * step
            step *= shape[axis]
        b = window.out
        if arrange(&plan, &a, &b):
            copy_plan(&plan, a, b)
        return 1

    cdef bint decompress(
        self, int codec, const uint8_t* data, int64_t size, uint8_t* out, Py_ssize_t nbytes,
        Workspace work
    ) noexcept nogil:
        """Fill `out` exactly."""
        if codec == LZ4:
            return (
                self.lz4.c_decompress is not NULL
                and size <= INT_MAX
                and nbytes <= INT_MAX
                and self.lz4.c_decompress(
                    <const char*>data, <char*>out, <int>size, <int>nbytes
                ) == nbytes
            )
        return (
            codec == ZSTD
            and self.zstd.c_decompress is not NULL
            and self.zstd.c_decompress(work.context.handle, out, nbytes, data, size)
            == <size_t>nbytes
        )
