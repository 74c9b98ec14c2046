"""Slow twins of the kernels, written from the formats; the tests compare the two."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np

# --- label blocks --------------------------------------------------------------------------------


def label_encode_reference(volume: np.ndarray) -> bytes:
    """Return DVID's compressed label block of a (z, y, x) uint64 volume."""
    gz, gy, gx = (side // 8 for side in volume.shape)
    table: dict[int, int] = {}
    counts, indices, values = [], [], []
    for z, y, x in np.ndindex(gz, gy, gx):
        flat = volume[8 * z : 8 * z + 8, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].ravel()
        local: dict[int, int] = {}
        positions = [local.setdefault(int(label), len(local)) for label in flat]
        counts.append(len(local))
        indices += [table.setdefault(label, len(table)) for label in local]
        bits = (len(local) - 1).bit_length()
        if bits:
            digits = "".join(f"{position:0{bits}b}" for position in positions)
            values.append(int(digits, 2).to_bytes(64 * bits, "big"))
    head = struct.pack("<4I", gx, gy, gz, len(table)) + struct.pack(f"<{len(table)}Q", *table)
    if len(table) == 1:
        return head
    return b"".join(
        [
            head,
            struct.pack(f"<{len(counts)}H", *counts),
            struct.pack(f"<{len(indices)}I", *indices),
            *values,
        ]
    )


def label_decode_reference(payload: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the volume of a compressed label block; ValueError when it is not one."""
    rest = memoryview(bytes(payload))

    def take(dtype: str, count: int) -> np.ndarray:
        nonlocal rest
        size = np.dtype(dtype).itemsize * count
        if size > len(rest):
            raise ValueError(f"{size} bytes wanted, {len(rest)} left")
        part, rest = rest[:size], rest[size:]
        return np.frombuffer(part, dtype)

    gx, gy, gz, labels = (int(word) for word in take("<u4", 4))
    if (8 * gz, 8 * gy, 8 * gx) != tuple(shape):
        raise ValueError("another shape")
    if not 1 <= labels <= 512 * gz * gy * gx:
        raise ValueError(f"{labels} labels")
    table = take("<u8", labels)
    volume = np.zeros(shape, np.uint64)
    if labels == 1:
        volume[:] = table[0]
    else:
        counts = [int(count) for count in take("<u2", gz * gy * gx)]
        if max(counts) > 512:
            raise ValueError("more labels than voxels")
        indices = take("<u4", sum(counts)).astype(np.int64)
        if (indices >= labels).any():
            raise ValueError("index past the table")
        end = 0
        for count, (z, y, x) in zip(counts, np.ndindex(gz, gy, gx), strict=True):
            local = table[indices[end : end + count]]
            end += count
            if count == 0:
                continue
            bits = (count - 1).bit_length()
            weights = 1 << np.arange(bits)[::-1]
            digits = np.unpackbits(take("u1", 64 * bits)).reshape(512, bits)
            positions = digits @ weights
            if (positions >= count).any():
                raise ValueError("value past the local list")
            volume[8 * z : 8 * z + 8, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = local[
                positions
            ].reshape(8, 8, 8)
    if len(rest):
        raise ValueError(f"{len(rest)} bytes too many")
    return volume


def packed_label_reference(volume: np.ndarray) -> tuple[int, list[bytes]]:
    """Return the length of a label block, and its head and layers of values before packing."""
    block = label_encode_reference(volume)
    labels = int.from_bytes(block[12:16], "little")
    layers = volume.shape[0] // 8
    end = 16 + 8 * labels
    if labels == 1:
        return len(block), [block, *[b""] * layers]
    sub_blocks = volume.size // 512
    counts = np.frombuffer(block, "<u2", sub_blocks, end)
    first = end + 2 * sub_blocks
    total = int(counts.sum())
    indices = np.frombuffer(block, "<u4", total, first)
    planes = ((labels - 1).bit_length() + 7) // 8
    head = block[:end]
    for part, width in ((counts, 2), (indices, planes)):
        for plane in range(width):
            head += (part >> (8 * plane) & 255).astype("u1").tobytes()
    sections, place = [head], first + 4 * total
    for layer in counts.reshape(layers, -1):
        size = 64 * sum((int(count) - 1).bit_length() for count in layer)
        sections.append(block[place : place + size])
        place += size
    return len(block), sections


def packed_label_unpack_reference(
    payload: bytes, shape: tuple[int, int, int], codec: int = 9
) -> np.ndarray:
    """Return the volume of a packed label block, LZ4's or Zstandard's; ValueError if not one."""
    layers, sub_blocks = shape[0] // 8, shape[0] * shape[1] * shape[2] // 512
    if len(payload) < 4 * (3 + layers):
        raise ValueError("short table")
    length, head_size, *ends = struct.unpack_from(f"<{3 + layers}I", payload)
    body = payload[4 * (3 + layers) :]
    most = 16 + sub_blocks * (512 * 12 + 578)
    if ends != sorted(ends) or ends[-1] != len(body) or not head_size <= length <= most:
        raise ValueError("table")

    def unpack(data: bytes, size: int) -> bytes:
        return unpack_reference(data, size, codec - 8)

    head = unpack(body[: ends[0]], head_size)
    labels = int.from_bytes(head[12:16], "little")
    if not 1 <= labels <= 512 * sub_blocks:
        raise ValueError("labels")
    if labels == 1:
        if len(body) != ends[0] or len(head) != length:
            raise ValueError("solid")
        return label_decode_reference(head, shape)
    planes = ((labels - 1).bit_length() + 7) // 8
    end = 16 + 8 * labels
    if len(head) < end + 2 * sub_blocks:
        raise ValueError("short head")
    low = np.frombuffer(head, "u1", sub_blocks, end)
    high = np.frombuffer(head, "u1", sub_blocks, end + sub_blocks)
    counts = low + 256 * high.astype("<u2")
    rest = head[end + 2 * sub_blocks :]
    total = int(counts.sum())
    if len(rest) != planes * total or int(counts.max()) > 512:
        raise ValueError("indices")
    indices = np.zeros(total, "<u4")
    for plane in range(planes):
        part = np.frombuffer(rest, "u1", total, plane * total).astype("<u4")
        indices |= part << np.uint32(8 * plane)
    block = head[:end] + counts.tobytes() + indices.tobytes()
    for layer, (begin, stop) in zip(
        counts.reshape(layers, -1), itertools.pairwise(ends), strict=True
    ):
        size = 64 * sum((int(count) - 1).bit_length() for count in layer if count)
        if size:
            block += unpack(body[begin:stop], size)
    if len(block) != length:
        raise ValueError("another length")
    return label_decode_reference(block, shape)


# --- blocks --------------------------------------------------------------------------------------


def copy_reference(src: np.ndarray, dst: np.ndarray) -> None:
    """Copy item by item."""
    for index in np.ndindex(src.shape):
        dst[index] = src[index]


def constant_reference(src: np.ndarray, unit: int = 1) -> bytes | None:
    """Return the one element (the last axis, if `unit` exceeds 1) that `src` repeats."""
    data = np.ascontiguousarray(src).tobytes()
    size = src.itemsize * unit
    elements = {data[i : i + size] for i in range(0, len(data), size)}
    return elements.pop() if len(elements) == 1 else None


def cut_reference(
    lo: Sequence[int], hi: Sequence[int], shape: Sequence[int], origin: Sequence[int] | None = None
) -> tuple[list[bytes], list[list[list[int]]], list[int]]:
    """Return (keys, [begin, count, out], whole) of the blocks that the box meets, in key order."""
    axes = []
    for low, high, size, zero in zip(lo, hi, shape, origin or lo, strict=True):
        parts = []
        for block in range(low // size, (high - 1) // size + 1) if high > low else ():
            voxels = range(max(low, block * size), min(high, (block + 1) * size))
            parts.append((block, voxels[0] - block * size, len(voxels), voxels[0] - zero))
        axes.append(parts)
    rows = []
    for row in itertools.product(*axes):
        coords, begin, count, out = (list(each) for each in zip(*row, strict=True))
        rows.append((morton_reference(coords), [begin, count, out], int(count == list(shape))))
    rows.sort()
    keys, table, whole = ([row[i] for row in rows] for i in range(3))
    return keys, table, whole


def morton_reference(coords: Sequence[int]) -> bytes:
    """Return the key of one block: biased, interleaved from the highest bit, axis 0 first."""
    digits = [f"{value + 2**31:032b}" for value in coords]
    return int("".join(map("".join, zip(*digits, strict=True))), 2).to_bytes(4 * len(coords), "big")


# --- frames of blocks ----------------------------------------------------------------------------

RAW, LZ4, ZSTD, LABEL, LABEL_LZ4, LABEL_ZSTD = 0, 1, 2, 8, 9, 10
FRAME_HEAD = struct.Struct("<4sBBBB8sIIHHI")


def pack_reference(data: bytes, codec: int) -> bytes:
    """Return the payload of the items of a block."""
    import lz4.block
    import zstandard

    packed: bytes = data
    if codec == LZ4:
        packed = lz4.block.compress(data, store_size=False)
    elif codec == ZSTD:
        packed = zstandard.ZstdCompressor(level=1).compress(data)
    return packed


def unpack_reference(data: bytes, size: int, codec: int) -> bytes:
    """Return exactly `size` bytes out of a payload; ValueError if it does not hold so many."""
    import io

    import lz4.block
    import zstandard

    out = bytes(data)
    try:
        if codec == LZ4:
            out = lz4.block.decompress(data, uncompressed_size=size)
        elif codec == ZSTD:
            stream = zstandard.ZstdDecompressor().stream_reader(
                io.BytesIO(data), read_across_frames=True
            )
            out = stream.read(size + 1)
        elif codec != RAW:
            raise ValueError(f"codec {codec}")
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise ValueError(str(error)) from None
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes instead of {size}")
    return out


def unit_places_reference(units: int, dims: int) -> list[tuple[int, ...]]:
    """Return the place of each unit: as many along every axis, in Morton order."""
    halvings = (units.bit_length() - 1) // dims
    if units != 1 << halvings * dims:
        raise ValueError(f"{units} units on {dims} axes")
    return sorted(itertools.product(range(1 << halvings), repeat=dims), key=morton_reference)


def payload_reference(block: np.ndarray, dims: int, codec: int, units: int = 0) -> bytes:
    """Return the payload of a block, its channels on the axis after `dims`, in so many units."""
    if codec == LABEL:
        return label_encode_reference(block)
    if codec > LABEL:
        length, sections = packed_label_reference(block)
        packed = [pack_reference(each, codec - 8) if each else b"" for each in sections]
        ends = itertools.accumulate(map(len, packed))
        head = struct.pack(f"<{2 + len(packed)}I", length, len(sections[0]), *ends)
        return head + b"".join(packed)
    if not units:
        return pack_reference(block.tobytes(), codec)
    parts = []
    for window in _unit_windows(block.shape[:dims], units):
        parts.append(pack_reference(block[window].tobytes(), codec))
    ends = itertools.accumulate(map(len, parts), initial=8 * units)
    next(ends)
    table = b"".join(
        struct.pack("<II", end, checksum_reference(part))
        for end, part in zip(ends, parts, strict=True)
    )
    return table + b"".join(parts)


def _unit_windows(shape: Sequence[int], units: int) -> list[tuple[slice, ...]]:
    places = unit_places_reference(units, len(shape))
    parts = places[-1][0] + 1
    if any(side % parts for side in shape):
        raise ValueError(f"{units} units of {shape}")
    sides = [side // parts for side in shape]
    return [
        tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, sides, strict=True))
        for place in places
    ]


def seal_reference(
    lane: bytes, key: bytes, codec: int, nbytes: int, payload: bytes, units: int = 0
) -> bytes:
    """Return the frame of a block's payload."""
    covered = payload[: 8 * units] if units else payload
    head = FRAME_HEAD.pack(
        b"dFr1", 1, codec, 0, 0, lane, nbytes, len(payload), len(key), units,
        checksum_reference(covered),
    )  # fmt: skip
    head += key
    return head + struct.pack("<I", checksum_reference(head)) + payload


def frame_reference(
    lane: bytes, key: bytes, block: np.ndarray, dims: int, codec: int, units: int = 0
) -> bytes:
    """Return the frame of a block."""
    payload = payload_reference(block, dims, codec, units)
    return seal_reference(lane, key, codec, block.nbytes, payload, units)


def frame_parse_reference(
    frame: bytes,
    lane: bytes,
    key: bytes,
    dtype: np.dtype,
    shape: Sequence[int],
    dims: int,
    window: Sequence[slice] | None = None,
) -> np.ndarray:
    """Return a block, or a window of it; ValueError if it is not this block or is damaged there.

    Units that the window does not touch may be damaged.
    """
    frame = bytes(frame)
    if len(frame) < FRAME_HEAD.size + len(key) + 4:
        raise ValueError(f"{len(frame)} bytes")
    magic, kind, codec, flags, _, named, nbytes, stored, key_size, units, check = (
        FRAME_HEAD.unpack_from(frame)
    )
    body = FRAME_HEAD.size + key_size
    if (magic, kind, named, flags & ~1) != (b"dFr1", 1, lane, 0):
        raise ValueError("another frame")
    if frame[FRAME_HEAD.size : body] != key or len(frame) != body + 4 + stored:
        raise ValueError("another key or length")
    if struct.unpack_from("<I", frame, body)[0] != checksum_reference(frame[:body]):
        raise ValueError("head")
    block = np.zeros(shape, dtype)
    if nbytes != block.nbytes:
        raise ValueError("another block")
    payload = frame[body + 4 :]
    if 8 * units > stored:
        raise ValueError(f"{units} units in {stored} bytes")
    if checksum_reference(payload[: 8 * units] if units else payload) != check:
        raise ValueError("payload")
    wanted = tuple(window or (slice(0, side) for side in shape[:dims]))
    if codec >= LABEL:
        if units or codec > LABEL_ZSTD or dims != 3 or block.ndim != 3:
            raise ValueError("no labels")
        if block.dtype != np.uint64 or any(side % 8 for side in shape):
            raise ValueError("no label block")
        decode = label_decode_reference if codec == LABEL else packed_label_unpack_reference
        more = () if codec == LABEL else (codec,)
        return decode(payload, tuple(shape), *more)[wanted]
    if not units:
        block = np.frombuffer(unpack_reference(payload, nbytes, codec), dtype).reshape(shape)
        return block[wanted]
    ends = [8 * units, *(struct.unpack_from("<I", payload, 8 * i)[0] for i in range(units))]
    if ends != sorted(ends) or ends[-1] > stored:
        raise ValueError("ends")
    for number, place in enumerate(_unit_windows(shape[:dims], units)):
        if any(
            max(a.start, b.start) >= min(a.stop, b.stop) for a, b in zip(place, wanted, strict=True)
        ):
            continue
        data = payload[ends[number] : ends[number + 1]]
        if checksum_reference(data) != struct.unpack_from("<I", payload, 8 * number + 4)[0]:
            raise ValueError(f"unit {number}")
        unit = block[place]
        unit[...] = np.frombuffer(unpack_reference(data, unit.nbytes, codec), dtype).reshape(
            unit.shape
        )
    return block[wanted]


# --- checksums -----------------------------------------------------------------------------------


def crc32c_reference(data: bytes, value: int = 0) -> int:
    """Return the CRC-32C, bit by bit."""
    value ^= 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


_checksums: list[int] = []


def checksum_reference(data: bytes) -> int:
    """Return the CRC-32C, byte by byte: for the frames, of which there are many."""
    if not _checksums:
        # Of one byte: the inverted byte's entry, xored with what the shift leaves, inverted.
        _checksums.extend(crc32c_reference(bytes([255 ^ i])) ^ 0xFF000000 for i in range(256))
    value = 0xFFFFFFFF
    for byte in bytes(data):
        value = value >> 8 ^ _checksums[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


# --- compressed_segmentation ---------------------------------------------------------------------


def segmentation_encode_reference(volume: np.ndarray) -> bytes:
    """Return the compressed_segmentation file of a (z, y, x) uint64 or uint32 volume."""
    word = 2 if volume.dtype == np.uint64 else 1
    sides = [-(-side // 8) * 8 - side for side in volume.shape]
    tables: dict[tuple[int, ...], int] = {}
    heads, stored, values = [], [], []
    for z, y, x in np.ndindex(*(-(-side // 8) for side in volume.shape)):
        part = volume[8 * z : 8 * z + 8, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        cell = np.full((8, 8, 8), part[0, 0, 0], volume.dtype)
        cell[tuple(slice(side) for side in part.shape)] = part
        labels = list(dict.fromkeys(cell.ravel().tolist()))
        if len(labels) <= 16:
            labels.sort()
        bits = 0
        if len(labels) > 1:
            bits = next(each for each in (1, 2, 4, 8, 16) if len(labels) <= 1 << each)
        place = tables.setdefault(tuple(labels), sum(map(len, stored)) // 4)
        if place == sum(map(len, stored)) // 4:
            stored.append(np.array(labels, volume.dtype).tobytes())
        heads.append((place, bits, sum(map(len, values)) // 4))
        if bits:
            rank = {label: number for number, label in enumerate(labels)}
            total = sum(rank[v] << bits * i for i, v in enumerate(cell.ravel().tolist()))
            values.append(total.to_bytes(64 * bits, "little"))
    assert word * volume.itemsize in (4, 16) and min(sides) >= 0
    head = 2 * len(heads)
    after = head + sum(map(len, stored)) // 4
    words = [w for place, bits, at in heads for w in ((head + place) | bits << 24, after + at)]
    return b"".join([struct.pack(f"<{1 + head}I", 1, *words), *stored, *values])


def segmentation_decode_reference(
    payload: bytes, shape: tuple[int, int, int], dtype: type = np.uint64
) -> np.ndarray:
    """Return the first channel of a compressed_segmentation file; ValueError if it is not one."""
    payload = bytes(payload)
    if len(payload) % 4 or not payload:
        raise ValueError("not words")
    words = np.frombuffer(payload, "<u4")
    if not 1 <= words[0] <= len(words):
        raise ValueError("begin")
    words = words[int(words[0]) :]
    width = np.dtype(dtype).itemsize // 4
    volume = np.zeros(shape, dtype)
    cells = list(np.ndindex(*(-(-side // 8) for side in shape)))
    if 2 * len(cells) > len(words):
        raise ValueError("short")
    for number, (z, y, x) in enumerate(cells):
        head, start = int(words[2 * number]), int(words[2 * number + 1])
        bits, table = head >> 24, head & 0xFFFFFF
        if bits not in (0, 1, 2, 4, 8, 16, 32):
            raise ValueError("bits")
        if start + 16 * bits > len(words) or table + width > len(words):
            raise ValueError("outside")
        room = (len(words) - table) // width
        labels = words[table : table + width * room].copy().view(dtype)
        view = volume[8 * z : 8 * z + 8, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        positions = np.zeros((8, 8, 8), np.int64)
        if bits:
            total = int.from_bytes(words[start : start + 16 * bits].tobytes(), "little")
            flat = [total >> bits * i & ((1 << bits) - 1) for i in range(512)]
            positions = np.array(flat, np.int64).reshape(8, 8, 8)
        positions = positions[tuple(slice(side) for side in view.shape)]
        if positions.max() >= room:
            raise ValueError("position")
        view[...] = labels[positions]
    return volume


# --- pyramids ------------------------------------------------------------------------------------


def downsample_reference(values: np.ndarray, factors: Sequence[int], method: str) -> np.ndarray:
    """Halve some of the first axes of an array, one box of voxels after the other."""
    dims = len(factors)
    shape = tuple(n // f for n, f in zip(values.shape, factors, strict=False))
    out = np.empty(shape + values.shape[dims:], values.dtype)
    for place in np.ndindex(*out.shape):
        window = tuple(slice(p * f, p * f + f) for p, f in zip(place, factors, strict=False))
        box = values[window + place[dims:]].reshape(-1).tolist()
        if method == "nearest":
            out[place] = box[0]
        elif method == "mode":
            labels = [each for each in box if each]
            out[place] = min(labels, key=lambda each: (-labels.count(each), each), default=0)
        elif values.dtype.kind == "f":
            out[place] = sum(each / len(box) for each in box)
        else:
            out[place] = (sum(map(int, box)) + len(box) // 2) // len(box)
    return out
