"""A box of voxels into frames of blocks: any number of blocks in one region without the GIL.

Owns the loop that gathers, tests for constants, encodes, checksums and frames. Frames are laid end
to end in memory that the caller lends, ready for one write.
"""

from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from diced._compress cimport lz4_in_use, zstd_in_use
from diced._crc32c cimport checksum
from diced._encoder cimport (
    encode_block, most_bytes, start_workspace, stop_workspace, write_block,
)
from diced._frame cimport (
    BLOCK_KIND, CHECK, HEAD, LABEL, LABEL_LZ4, LABEL_ZSTD, LZ4, MAX_UNITS, MOST_HALVINGS, RAW, UNIT,
    ZSTD, Geometry, describe, gather_units, halvings, put16, put32, unit_place,
)
from diced._packed cimport Packer, packed_most, write_packed
from diced._strides cimport MAX_AXES, Plan, View, arrange, copy_plan
from diced._voxels cimport is_constant
from diced.errors import InvalidError

cdef enum:
    SPARE = 8               # workspaces kept for later calls
    KEPT_BYTES = 1 << 24    # those above this are not
    SOLID = 24              # bytes of a label block of one label; the label ends it
    FULL = -1               # the memory lent is too small for the next frame
    FAILED = -2


cdef class Packing:
    """What one thread needs besides the memory lent."""

    def __dealloc__(self):
        free(self.block)
        if self.labels != NULL:
            stop_workspace(self.labels)


cdef class Writer:
    """How the blocks of one array are written; threads may share it.

    Parameters
    ----------
    lane : bytes
        The 8 bytes that frames carry.
    itemsize : int
    block_shape : sequence of int
    channels : int or None
    codec : int
        Its number: raw, lz4, zstd or one of the label codecs.
    level : int
        Of zstd.
    units : int
        Independently decodable parts of a block: 1 (the block as it is) or 2**(dims * j).

    Attributes
    ----------
    most : int
        Bytes that one frame can have at most.
    able : bool
        False if the codec's functions are only there in Python.
    """

    def __init__(
        self, lane, Py_ssize_t itemsize, block_shape, channels, int codec, int level, int units
    ):
        cdef int axis
        cdef Py_ssize_t payload
        describe(&self.geometry, lane, itemsize, block_shape, channels)
        self.codec, self.level, self.units = codec, level, units
        self.half = halvings(units, self.geometry.dims)
        self.lz4 = lz4_in_use()
        self.zstd = zstd_in_use()
        self.spare = []
        if codec not in (RAW, LZ4, ZSTD, LABEL, LABEL_LZ4, LABEL_ZSTD):
            raise InvalidError(f"no kernel encodes codec number {codec}")
        self.unit_bytes = itemsize
        for axis in range(self.geometry.axes):
            self.unit_shape[axis] = self.geometry.shape[axis]
            if axis < self.geometry.dims:
                if self.half < 0 or self.geometry.shape[axis] & ((1 << self.half) - 1):
                    raise InvalidError(f"{units} units do not tile a block of {block_shape}")
                self.unit_shape[axis] >>= self.half
            self.unit_bytes *= self.unit_shape[axis]
        if units < 1 or units > MAX_UNITS or (units > 1 and codec >= LABEL):
            raise InvalidError(f"codec number {codec} takes no {units} units")
        payload = self.geometry.nbytes
        if codec >= LABEL:
            if self.geometry.axes != 3 or itemsize != 8 or any(
                side % 8 or side > 1024 for side in block_shape
            ):
                raise InvalidError(f"label blocks are 3-D and of uint64; got {block_shape}")
            # And for each layer of sub-blocks what a compressor can add.
            payload = most_bytes(self.geometry.shape) + 32 * block_shape[0] + 1024
        self.by_rows = (
            codec in (LZ4, ZSTD)
            and self.geometry.axes == self.geometry.dims == 3
            and 1 <= self.half <= MOST_HALVINGS
        )
        # LZ4's bound; Zstandard's is smaller but for tiny units.
        self.most = (
            HEAD + self.geometry.key_size + CHECK + payload + payload // 128 + 1024
            + units * (UNIT + 128)
        )
        self.able = not (
            (codec in (LZ4, LABEL_LZ4) and self.lz4.c_compress is NULL)
            or (codec in (ZSTD, LABEL_ZSTD) and self.zstd.c_compress is NULL)
            or self.unit_bytes > INT_MAX
        )

    cdef Packing take(self):
        cdef Packing found
        try:
            return <Packing>self.spare.pop()
        except IndexError:
            found = Packing()
        if self.codec == ZSTD or self.codec == LABEL_ZSTD:
            found.context = self.zstd.context(
                self.zstd.encoders, self.zstd.create_encoder, self.zstd.free_encoder
            )
            found.decoder = self.zstd.context(
                self.zstd.decoders, self.zstd.create_decoder, self.zstd.free_decoder
            )
        if self.codec >= LABEL:
            found.labels = start_workspace()
        else:
            found.room = self.geometry.nbytes if self.by_rows else self.unit_bytes
            found.block = <uint8_t*>malloc(found.room)
            if found.block == NULL:
                raise MemoryError("a unit of a block")
        return found

    cdef void keep(self, Packing work):
        if len(self.spare) < SPARE and work.room <= KEPT_BYTES:
            self.spare.append(work)

    def pack(self, source, list keys not None, const int64_t[:, :, ::1] table, rows, memory):
        """Encode whole blocks of a box.

        Parameters
        ----------
        source : buffer
            The box, channels last; any strides.
        keys : list of bytes
            Of the rows of `table`.
        table : C-contiguous int64 array (blocks, 3, dims)
            As of `Batch`; only where each block lies in the box is used.
        rows : sequence of int
            Which blocks.
        memory : writable buffer
            At least `most` bytes.

        Returns
        -------
        list
            For as many of `rows` as had room, at least one: the element of a constant block as
            bytes, or (start, length) of the frame in `memory`.
        """
        cdef const Geometry* geometry = &self.geometry
        cdef View box = View(source, "source", False)
        cdef View room = View(memory, "memory", True)
        cdef Packing work
        cdef Py_ssize_t count = len(rows), i, done = 0, start = 0, size = 0, row
        cdef Py_ssize_t* todo
        cdef Py_ssize_t* sizes
        cdef const char** places
        cdef const uint8_t** names
        cdef bytes key
        cdef int axis
        if (
            not self.able
            or room.buffer.ndim != 1
            or room.buffer.itemsize != 1
            or room.buffer.strides[0] != 1
            or room.buffer.len < self.most
            or box.buffer.ndim != geometry.axes
            or box.buffer.itemsize != geometry.item
            or table.shape[1] != 3
            or table.shape[2] != geometry.dims
            or table.shape[0] != len(keys)
        ):
            raise InvalidError(
                f"blocks of {geometry.dims} axes are packed from a box of {box.shape()} into"
                f" {room.buffer.len} bytes, {self.most} needed"
            )
        places = <const char**>malloc(max(count, 1) * sizeof(void*))
        names = <const uint8_t**>malloc(max(count, 1) * sizeof(void*))
        sizes = <Py_ssize_t*>malloc(max(count, 1) * sizeof(Py_ssize_t))
        try:
            if places == NULL or names == NULL or sizes == NULL:
                raise MemoryError("the table of blocks to write")
            for i in range(count):
                row = rows[i]
                if not 0 <= row < table.shape[0]:
                    raise InvalidError(f"rows are 0 to {table.shape[0] - 1}; got {row}")
                key = keys[row]
                if len(key) != geometry.key_size:
                    raise InvalidError(f"a key has {geometry.key_size} bytes; got {key!r}")
                names[i] = key
                places[i] = <const char*>box.buffer.buf
                for axis in range(geometry.axes):
                    if axis < geometry.dims:
                        start = table[row, 2, axis]
                    else:
                        start = 0
                    if not 0 <= start <= box.buffer.shape[axis] - geometry.shape[axis]:
                        raise InvalidError(f"block {row} leaves a box of {box.shape()}")
                    places[i] += start * box.buffer.strides[axis]
            work = self.take()
            start = 0
            with nogil:
                while done < count:
                    size = self.one(
                        places[done], box.buffer.strides, names[done],
                        <uint8_t*>room.buffer.buf + start, room.buffer.len - start, work,
                    )
                    if size < 0:
                        break
                    sizes[done] = size
                    start += size
                    done += 1
            self.keep(work)
            if size == FAILED or (count and done == 0):
                raise InvalidError(f"block {rows[done]} could not be encoded")
            found = []
            start = 0
            for i in range(done):
                if sizes[i]:
                    found.append((start, sizes[i]))
                    start += sizes[i]
                else:
                    found.append(_element(places[i], geometry, box.buffer.strides))
            return found
        finally:
            free(places)
            free(names)
            free(sizes)

    cdef Py_ssize_t one(
        self, const char* source, const Py_ssize_t* strides, const uint8_t* key, uint8_t* out,
        Py_ssize_t room, Packing work
    ) except -3 nogil:
        """Write a frame and return its size; 0 for a constant block, FULL or FAILED."""
        cdef const Geometry* geometry = &self.geometry
        cdef Py_ssize_t head = HEAD + geometry.key_size + CHECK
        cdef Py_ssize_t used
        cdef int axis, unit = 1
        if self.codec >= LABEL:
            used = self.label(source, strides, out + head, room - head, work)
            if used <= 0:
                return used
        else:
            if room < self.most:
                return FULL
            if geometry.axes > geometry.dims:
                unit = <int>geometry.shape[geometry.dims]
            if is_constant(source, geometry.axes, geometry.shape, strides, geometry.item, unit):
                return 0
            used = self.image(source, strides, out + head, room - head, work)
            if used < 0:
                return used
        return self.finish(out, key, used)

    cdef Py_ssize_t finish(
        self, uint8_t* out, const uint8_t* key, Py_ssize_t used
    ) noexcept nogil:
        """Write the head of a frame whose payload is in place; return the frame's size."""
        cdef const Geometry* geometry = &self.geometry
        cdef Py_ssize_t head = HEAD + geometry.key_size + CHECK
        memcpy(out, b"dFr1", 4)
        out[4] = BLOCK_KIND
        out[5] = <uint8_t>self.codec
        out[6] = 0
        out[7] = 0
        memcpy(out + 8, geometry.lane, 8)
        put32(out + 16, <uint32_t>geometry.nbytes)
        put32(out + 20, <uint32_t>used)
        put16(out + 24, geometry.key_size)
        put16(out + 26, self.units if self.units > 1 else 0)
        put32(out + 28, checksum(out + head, self.units * UNIT if self.units > 1 else used))
        memcpy(out + HEAD, key, geometry.key_size)
        put32(out + HEAD + geometry.key_size, checksum(out, HEAD + geometry.key_size))
        return head + used

    cdef Py_ssize_t image(
        self, const char* source, const Py_ssize_t* strides, uint8_t* out, Py_ssize_t room,
        Packing work
    ) noexcept nogil:
        """Write the payload of an image block and return its size."""
        cdef const Geometry* geometry = &self.geometry
        cdef Plan plan
        cdef Py_ssize_t place[MAX_AXES]
        cdef Py_ssize_t end = self.units * UNIT if self.units > 1 else 0
        cdef Py_ssize_t step, size
        cdef uint8_t* target
        cdef char* a
        cdef char* b
        cdef int number, axis
        cdef bint gathered = self.by_rows and strides[2] == geometry.item
        if gathered:
            gather_units(source, strides, geometry, self.half, work.block)
        for number in range(self.units):
            unit_place(number, geometry.dims, self.half, place)
            if gathered:
                target = out + end
                size = self.compress(
                    work.block + number * self.unit_bytes, self.unit_bytes, target, room - end, work
                )
                if size <= 0:
                    return FAILED
                end += size
                put32(out + number * UNIT, <uint32_t>end)
                put32(out + number * UNIT + 4, checksum(target, size))
                continue
            plan.n = geometry.axes
            plan.item = step = geometry.item
            a = <char*>source
            for axis in range(geometry.axes - 1, -1, -1):
                plan.shape[axis] = self.unit_shape[axis]
                plan.src[axis] = strides[axis]
                plan.dst[axis] = step
                step *= self.unit_shape[axis]
                if axis < geometry.dims:
                    a += place[axis] * self.unit_shape[axis] * strides[axis]
            target = out + end
            b = <char*>(target if self.codec == RAW else work.block)
            if arrange(&plan, &a, &b):
                if plan.n == 0 and self.codec != RAW:
                    b = a  # it lies together: no copy
                else:
                    copy_plan(&plan, a, b)
            size = self.unit_bytes
            if self.codec != RAW:
                size = self.compress(<const uint8_t*>b, size, target, room - end, work)
            if size <= 0:
                return FAILED
            end += size
            if self.units > 1:
                put32(out + number * UNIT, <uint32_t>end)
                put32(out + number * UNIT + 4, checksum(target, size))
        return end

    cdef Py_ssize_t label(
        self, const char* source, const Py_ssize_t* strides, uint8_t* out, Py_ssize_t room,
        Packing work
    ) except -3 nogil:
        """Write the payload of a label block and return its size."""
        cdef Py_ssize_t size = encode_block(work.labels, source, strides, self.geometry.shape)
        cdef Packer packer
        if size == SOLID:
            return 0
        if self.codec == LABEL:
            if room < size:
                return FULL
            write_block(work.labels, out)
            return size
        if room < packed_most(work.labels):
            return FULL
        packer.lz4 = self.lz4.c_compress if self.codec == LABEL_LZ4 else NULL
        packer.zstd = self.zstd.c_compress
        packer.context = NULL if self.codec == LABEL_LZ4 else work.context.handle
        packer.level = self.level
        return write_packed(work.labels, &packer, out, room)

    cdef Py_ssize_t compress(
        self, const uint8_t* data, Py_ssize_t size, uint8_t* out, Py_ssize_t room,
        Packing work
    ) noexcept nogil:
        """Return the compressed size, or 0."""
        cdef size_t packed
        if self.codec == LZ4:
            return self.lz4.c_compress(
                <const char*>data, <char*>out, <int>size, <int>min(room, <Py_ssize_t>INT_MAX), 1
            )
        packed = self.zstd.c_compress(work.context.handle, out, room, data, size, self.level)
        return 0 if self.zstd.is_error(packed) else <Py_ssize_t>packed


cdef bytes _element(const char* place, const Geometry* geometry, const Py_ssize_t* strides):
    """Return the first element of a block."""
    cdef Py_ssize_t i
    if geometry.axes == geometry.dims:
        return place[:geometry.item]
    return b"".join([
        (place + i * strides[geometry.dims])[:geometry.item]
        for i in range(geometry.shape[geometry.dims])
    ])
