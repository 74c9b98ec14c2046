"""Part of a block into its frame: only the units that the part meets are encoded anew.

An unaligned box of 100 voxels a side meets half of the units of the blocks that it meets.
"""

from libc.limits cimport INT_MAX
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from diced._blockwrite cimport Packing, Writer
from diced._crc32c cimport checksum
from diced._frame cimport (
    CHECK, HEAD, LZ4, RAW, UNIT, Geometry, get16, get32, is_block_head, put32, unit_place,
)
from diced._strides cimport MAX_AXES, Plan, View, arrange, copy_plan
from diced._voxels cimport is_constant
from diced.errors import InvalidError


cdef Py_ssize_t merged(
    Writer writer, const uint8_t* frame, Py_ssize_t length, const uint8_t* key,
    const Py_ssize_t* low, const char* source, const Py_ssize_t* count,
    const Py_ssize_t* strides, uint8_t* out, Packing work
) noexcept nogil:
    cdef const Geometry* geometry = &writer.geometry
    cdef Py_ssize_t head = HEAD + geometry.key_size + CHECK
    cdef Py_ssize_t place[MAX_AXES]
    cdef Py_ssize_t first[MAX_AXES]     # of the part inside the unit
    cdef Py_ssize_t extent[MAX_AXES]
    cdef const uint8_t* data = frame + head
    cdef uint8_t* target = out + head
    cdef Py_ssize_t begin, stop = writer.units * UNIT, end = stop, size, origin, axis, number
    cdef const char* a
    cdef bint met, covered
    cdef int unit = <int>geometry.shape[geometry.dims] if geometry.axes > geometry.dims else 1
    if (
        length < head + stop
        or not is_block_head(geometry, frame, length, key)
        or frame[5] != writer.codec
        or get16(frame + 26) != <uint32_t>writer.units
        or checksum(data, stop) != get32(frame + 28)
        or is_constant(source, geometry.axes, count, strides, geometry.item, unit)
    ):
        return 0
    for number in range(writer.units):
        begin = stop
        stop = get32(data + number * UNIT)
        if stop < begin or stop > length - head:
            return 0
        unit_place(<int>number, geometry.dims, writer.half, place)
        met = covered = True
        a = source
        for axis in range(geometry.axes):
            first[axis] = 0
            extent[axis] = geometry.shape[axis]
            if axis < geometry.dims:
                origin = place[axis] * writer.unit_shape[axis]
                first[axis] = max(low[axis] - origin, <Py_ssize_t>0)
                extent[axis] = min(low[axis] + count[axis] - origin, writer.unit_shape[axis])
                extent[axis] -= first[axis]
                met = met and extent[axis] > 0
                covered = covered and extent[axis] == writer.unit_shape[axis]
                a += (origin + first[axis] - low[axis]) * strides[axis]
        if not met:
            size = stop - begin
            if size > writer.most - head - end:
                return 0
            memcpy(target + end, data + begin, size)
            put32(target + number * UNIT + 4, get32(data + number * UNIT + 4))
        else:
            if not covered and (
                checksum(data + begin, stop - begin) != get32(data + number * UNIT + 4)
                or not unpack(writer, data + begin, stop - begin, work)
            ):
                return 0
            overwrite(writer, a, strides, first, extent, work.block)
            size = writer.unit_bytes
            if writer.codec == RAW:
                memcpy(target + end, work.block, size)
            else:
                size = writer.compress(
                    work.block, size, target + end, writer.most - head - end, work
                )
            if size <= 0:
                return 0
            put32(target + number * UNIT + 4, checksum(target + end, size))
        end += size
        put32(target + number * UNIT, <uint32_t>end)
    return writer.finish(out, key, end)


cdef bint unpack(
    Writer writer, const uint8_t* data, Py_ssize_t size, Packing work
) noexcept nogil:
    """Decode a unit into the workspace."""
    if writer.codec == RAW:
        if size == writer.unit_bytes:
            memcpy(work.block, data, size)
        return size == writer.unit_bytes
    if writer.codec == LZ4:
        return size <= INT_MAX and writer.lz4.c_decompress(
            <const char*>data, <char*>work.block, <int>size, <int>writer.unit_bytes
        ) == writer.unit_bytes
    return writer.zstd.c_decompress(
        work.decoder.handle, work.block, writer.unit_bytes, data, size
    ) == <size_t>writer.unit_bytes


cdef void overwrite(
    Writer writer, const char* source, const Py_ssize_t* strides, const Py_ssize_t* first,
    const Py_ssize_t* extent, uint8_t* unit
) noexcept nogil:
    """Copy part of a unit's voxels into it."""
    cdef Plan plan
    cdef Py_ssize_t step = writer.geometry.item
    cdef char* a = <char*>source
    cdef char* b = <char*>unit
    cdef int axis
    plan.n = writer.geometry.axes
    plan.item = step
    for axis in range(plan.n - 1, -1, -1):
        plan.shape[axis] = extent[axis]
        plan.src[axis] = strides[axis]
        plan.dst[axis] = step
        b += first[axis] * step
        step *= writer.unit_shape[axis]
    if arrange(&plan, &a, &b):
        copy_plan(&plan, a, b)


def merge(Writer writer not None, frame, bytes key not None, low, source, memory):
    """Write a frame anew with part of its block replaced.

    Units that the part does not meet are taken over as they are, with their checksums, and
    those that it covers are not decoded.

    Parameters
    ----------
    writer : Writer
    frame : contiguous buffer
        The block's frame.
    key : bytes
    low : sequence of int
        Where in the block the part begins.
    source : buffer
        The part, channels last; any strides.
    memory : writable buffer
        At least `most` bytes.

    Returns
    -------
    int
        Bytes of the new frame in `memory`. 0 if it cannot be done so: the frame is of another
        codec or division, or damaged where that shows, or the part is of one value, which may
        make the block constant.
    """
    cdef const Geometry* geometry = &writer.geometry
    cdef View old = View(frame, "frame", False)
    cdef View part = View(source, "source", False)
    cdef View room = View(memory, "memory", True)
    cdef Py_ssize_t begin[MAX_AXES]
    cdef Py_ssize_t size
    cdef const uint8_t* name = key
    cdef Packing work
    cdef int axis
    for view in (old, room):
        if (<View>view).buffer.ndim != 1 or (<View>view).buffer.strides[0] != 1:
            raise InvalidError("frames are merged in flat memory")
    if (
        room.buffer.len < writer.most
        or len(key) != geometry.key_size
        or part.buffer.ndim != geometry.axes
        or part.buffer.itemsize != geometry.item
        or len(low) != geometry.dims
    ):
        raise InvalidError(
            f"part of a block of {geometry.dims} axes is merged from {part.shape()} into"
            f" {room.buffer.len} bytes, {writer.most} needed"
        )
    for axis in range(geometry.axes):
        begin[axis] = low[axis] if axis < geometry.dims else 0
        if (
            part.buffer.shape[axis] < 1
            or not 0 <= begin[axis] <= geometry.shape[axis] - part.buffer.shape[axis]
            or (axis >= geometry.dims and part.buffer.shape[axis] != geometry.shape[axis])
        ):
            raise InvalidError(f"{part.shape()} at {tuple(low)} leaves the block")
    if not writer.able or writer.units == 1 or old.buffer.len > 1 << 31:
        return 0
    work = writer.take()
    with nogil:
        size = merged(
            writer, <const uint8_t*>old.buffer.buf, old.buffer.len, name, begin,
            <const char*>part.buffer.buf, part.buffer.shape, part.buffer.strides,
            <uint8_t*>room.buffer.buf, work,
        )
    writer.keep(work)
    return size
