"""Blocks over the wire: spans, boxes and lists of blocks, as DVID's clients ask and send them."""

import gzip
import io
import struct
import threading
import zlib

import lz4.block
import numpy as np
import pytest
import zstandard
from PIL import Image
from reference import label_decode_reference, label_encode_reference

SIDE = 16
TYPES = {
    "uint8blk": "u1", "uint16blk": "u2", "uint32blk": "u4", "uint64blk": "u8", "float32blk": "f4",
    "rgba8blk": "u1", "labelblk": "u8",
}  # fmt: skip


def shape_of(typename, *counts):
    shape = tuple(SIDE * each for each in counts or (1, 1, 1))
    return (*shape, 4) if typename == "rgba8blk" else shape


def noise(typename, *counts, seed=0):
    rng = np.random.default_rng(seed)
    shape = shape_of(typename, *counts)
    if typename == "float32blk":
        return rng.normal(size=shape).astype("f4")
    top = 50 if typename == "labelblk" else np.iinfo(TYPES[typename]).max
    return rng.integers(0, top, shape, TYPES[typename], endpoint=True)


def records(body):
    """Return the records of a stream: [((x, y, z), bytes), ...]."""
    found, at = [], 0
    while at < len(body):
        x, y, z, size = struct.unpack_from("<4i", body, at)
        assert 0 < size <= len(body) - at - 16
        found.append(((x, y, z), body[at + 16 : at + 16 + size]))
        at += 16 + size
    return found


def stream(*blocks):
    return b"".join(struct.pack("<4i", *xyz, len(data)) + data for xyz, data in blocks)


@pytest.fixture
def at(server):
    """Make an instance and return its path."""
    uuid = server.repo()

    def make(typename="uint8blk", name="data", **settings):
        server.instance(uuid, typename, name, **{"BlockSize": f"{SIDE},{SIDE},{SIDE}", **settings})
        return f"node/{uuid}/{name}"

    return make


def fill(server, base, volume, x=0, y=0, z=0):
    nz, ny, nx = volume.shape[:3]
    server.post(f"{base}/raw/0_1_2/{nx}_{ny}_{nz}/{x}_{y}_{z}", volume.tobytes())


def extents(server, base):
    found = server.get(f"{base}/info").json["Extended"]
    return found["MinPoint"], found["MaxPoint"]


def decode(data, typename, form):
    size = noise(typename).nbytes
    if form == "" and typename != "labelblk":
        assert struct.unpack_from("<I", data)[0] == size
        data = lz4.block.decompress(data[4:], uncompressed_size=size)
    elif form == "lz4" and typename != "labelblk":
        data = lz4.block.decompress(data[4:], uncompressed_size=size)
    elif form in ("", "lz4"):
        data = lz4.block.decompress(data, uncompressed_size=size)
    elif form == "gzip":
        data = gzip.decompress(data)
    elif form == "zstd":
        data = zstandard.ZstdDecompressor().decompress(data)
    elif form == "blocks":
        return label_decode_reference(gzip.decompress(data), (SIDE,) * 3)
    return np.frombuffer(data, TYPES[typename]).reshape(shape_of(typename))


# -- boxes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typename", TYPES)
def test_a_box_comes_in_every_form_and_in_order(server, at, typename):
    base, volume = at(typename), noise(typename, 2, 1, 3)
    fill(server, base, volume, x=-SIDE, y=SIDE)
    keyword = "blocks" if typename == "labelblk" else "subvolblocks"
    forms = ["", "lz4", "uncompressed", "gzip", "zstd"] + ["blocks"] * (typename == "labelblk")
    for form in forms:
        reply = server.get(f"{base}/{keyword}/48_16_32/-16_16_0?compression={form}&throttle=on")
        assert reply.headers["content-type"] == "application/octet-stream"
        found = records(reply.body)
        places = [(x, 1, z) for z in (0, 1) for x in (-1, 0, 1)]
        assert [xyz for xyz, _ in found] == places
        for (x, _, z), data in found:
            window = np.s_[SIDE * z : SIDE * z + SIDE, :, SIDE * (x + 1) : SIDE * (x + 2)]
            assert np.array_equal(decode(data, typename, form), volume[window])


@pytest.mark.parametrize("keyword", ["subvolblocks", "blocks"])
def test_blocks_that_do_not_exist_are_left_out(server, at, keyword):
    base = at()
    assert server.get(f"{base}/{keyword}/64_64_64/0_0_0").body == b""
    fill(server, base, noise("uint8blk"), x=32)
    fill(server, base, noise("uint8blk"), y=48, z=48)
    found = records(server.get(f"{base}/{keyword}/64_64_64/0_0_0").body)
    assert [xyz for xyz, _ in found] == [(2, 0, 0), (0, 3, 3)]
    assert server.get(f"{base}/{keyword}/16_16_16/-16_0_0").body == b""


@pytest.mark.parametrize("keyword", ["subvolblocks", "blocks"])
@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("16_16_16/1_0_0", "not block-aligned"),
        ("16_17_16/0_0_0", "not block-aligned"),
        ("0_16_16/0_0_0", "from 1 to"),
        ("-16_16_16/0_0_0", "from 1 to"),
        ("16_16/0_0_0", "3 numbers"),
        ("16_16_16/0_0", "3 numbers"),
        ("16_16_x/0_0_0", "whole number"),
        ("16_16_16/2147483648_0_0", "32-bit"),
        ("16_16_32/0_0_2147483632", "32-bit"),
        ("4096_4096_4096/0_0_0", "exceeds"),
        ("9223372036854775808_16_16/0_0_0", "from 1 to"),
    ],
)
def test_a_box_that_cannot_be_is_refused(server, at, keyword, box, message):
    base = at()
    assert message in server.refused("GET", f"{base}/{keyword}/{box}")


def test_forms_that_do_not_suit_are_refused(server, at):
    gray, wide, labels = at(), at("uint16blk", "wide"), at("labelblk", "labels")
    for base, form, message in (
        (gray, "snappy", "unknown compression"),
        (gray, "blocks", "holds none"),
        (wide, "jpeg", "uint16"),
        (labels, "jpeg", "uint64"),
    ):
        text = server.refused("GET", f"{base}/subvolblocks/16_16_16/0_0_0?compression={form}")
        assert message in text
    assert "levels are" in server.refused("GET", f"{gray}/subvolblocks/16_16_16/0_0_0?scale=99")
    assert "no scale -1" in server.refused("GET", f"{gray}/specificblocks?blocks=0,0,0&scale=-1")
    server.get(f"{gray}/subvolblocks/16_16_16/0_0_0?scale=0")


@pytest.mark.parametrize("typename", ["uint8blk", "labelblk"])
def test_blocks_of_other_scales(server, at, typename):
    base = at(typename, Compression="lz4")
    fill(server, base, noise(typename, 4, 2, 4), x=-32)
    for ask in ("subvolblocks/32_16_32/-16_0_0?", "specificblocks?blocks=-1,0,0,0,0,1&"):
        found = records(server.get(f"{base}/{ask}scale=1&compression=uncompressed").body)
        assert len(found) >= 2
        for (x, y, z), data in found:
            raw = f"{base}/raw/0_1_2/16_16_16/{16 * x}_{16 * y}_{16 * z}?scale=1"
            assert data == server.get(raw).body
    assert server.get(f"{base}/subvolblocks/16_16_16/160_0_0?scale=1").body == b""


def test_arrays_that_are_not_three_dimensional_are_refused(server):
    repo = server.store.create_repo("flat")
    repo.create_array("flat", "uint8", dims=2)
    assert "2 dimensions" in server.refused("GET", f"node/{repo.uuid}/flat/blocks/0_0_0/1")
    assert "2 dimensions" in server.refused("POST", f"node/{repo.uuid}/flat/blocks", b"x")


@pytest.mark.parametrize(
    ("setting", "form"),
    [("none", "uncompressed"), ("gzip", "gzip"), ("zstd", "zstd"), ("lz4", "")],
)
def test_as_stored_is_what_the_instance_says_of_its_compression(server, at, setting, form):
    base, volume = at(Compression=setting), noise("uint8blk")
    fill(server, base, volume)
    ((_, data),) = records(server.get(f"{base}/subvolblocks/16_16_16/0_0_0").body)
    assert np.array_equal(decode(data, "uint8blk", form), volume)


def smooth(side=64):
    z, y, x = np.mgrid[:side, :side, :side]
    return (2 * x + y + z // 2).astype(np.uint8)


def test_jpeg_is_one_tall_picture_per_block(server, at):
    base, volume = at(BlockSize="64,64,64"), smooth()
    fill(server, base, volume)
    reply = server.get(f"{base}/subvolblocks/64_64_64/0_0_0?compression=jpeg")
    picture = Image.open(io.BytesIO(reply.body[16:]))  # as neuroglancer does
    assert (picture.format, picture.size, picture.mode) == ("JPEG", (64, 4096), "L")
    found = np.asarray(picture).reshape(64, 64, 64).astype(int)
    assert np.abs(found - volume).max() < 16


def test_jpeg_instances_are_sent_as_they_are_stored(server, at):
    base = at(BlockSize="64,64,64", Compression="jpeg")
    fill(server, base, noise("uint8blk", 4, 4, 4))
    server.post(f"{base}/raw/0_1_2/64_64_64/64_0_0", bytes([7]) * 64**3)  # a block of one value
    raw = server.get(f"{base}/raw/0_1_2/128_64_64/0_0_0").body
    raw = np.frombuffer(raw, "u1").reshape(64, 64, 128)
    for form in ("", "jpeg"):
        found = records(server.get(f"{base}/subvolblocks/128_64_64/0_0_0?compression={form}").body)
        pictures = [np.asarray(Image.open(io.BytesIO(data))) for _, data in found]
        assert np.array_equal(pictures[0].reshape(64, 64, 64), raw[:, :, :64])
        assert np.abs(pictures[1].astype(int) - 7).max() <= 1
    assert server.get(f"{base}/info").json["Base"]["Compression"].startswith("jpeg")


def test_jpeg_of_colours_leaves_alpha_out(server, at):
    base = at("rgba8blk")
    volume = np.zeros((SIDE,) * 3 + (4,), np.uint8)
    volume[...] = (200, 100, 50, 128)
    fill(server, base, volume)
    body = server.get(f"{base}/subvolblocks/16_16_16/0_0_0?compression=jpeg").body
    picture = Image.open(io.BytesIO(records(body)[0][1]))
    assert (picture.mode, picture.size) == ("RGB", (16, 256))
    assert np.abs(np.asarray(picture).astype(int) - (200, 100, 50)).max() < 8


def test_a_large_answer_is_of_one_state_though_it_is_written_meanwhile(server, at):
    base = at(BlockSize="64,64,64")
    uuid = base.split("/")[1]
    array = server.store.open_repo(uuid=uuid)["data"]
    array[:256, :256, :1024] = 1
    url = f"{server.url}/api/{base}/subvolblocks/1024_256_256/0_0_0?compression=uncompressed"
    reply = server._pool.request("GET", url, preload_content=False)
    first = reply.read(1000)
    array[:256, :256, :1024] = 2
    found = records(first + reply.read())
    reply.release_conn()
    assert len(found) == 256
    assert all(data == b"\1" * 64**3 for _, data in found)


# -- lists ---------------------------------------------------------------------------------


def test_a_list_of_blocks(server, at):
    base, volume = at(), noise("uint8blk", 2, 2, 2)
    fill(server, base, volume, x=-16)
    ask = f"{base}/specificblocks?compression=uncompressed&blocks="
    found = records(server.get(ask + "0,1,1,5,5,5,-1,0,0").body)
    assert [xyz for xyz, _ in found] == [(0, 1, 1), (-1, 0, 0)]
    assert found[0][1] == volume[16:, 16:, 16:].tobytes()
    assert found[1][1] == volume[:16, :16, :16].tobytes()
    assert server.get(ask).body == b""
    assert len(records(server.get(ask + "0,0,0,0,0,0").body)) == 2
    assert server.get(f"{base}/specificblocks?prefetch=on&blocks=0,0,0").body == b""
    ((_, data),) = records(server.get(f"{base}/specificblocks?blocks=0,1,1&scale=0").body)
    assert np.array_equal(decode(data, "uint8blk", ""), volume[16:, 16:, 16:])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("1,2", "2 numbers"),
        ("1,2,x", "whole number"),
        ("1,2,3,", "whole number"),
        ("2147483647,0,0", "32-bit"),
        ("-134217729,0,0", "32-bit"),
    ],
)
def test_a_list_that_is_none_is_refused(server, at, blocks, message):
    base = at()
    assert message in server.refused("GET", f"{base}/specificblocks?blocks={blocks}")


def test_lists_of_label_blocks_come_as_neuclease_wants_them(server, at):
    base, volume = at("labelblk"), noise("labelblk")
    fill(server, base, volume, x=16)
    ((xyz, data),) = records(server.get(f"{base}/specificblocks?blocks=1,0,0,0,0,0").body)
    assert xyz == (1, 0, 0)
    assert np.array_equal(decode(data, "labelblk", "blocks"), volume)
    ask = f"{base}/specificblocks?blocks=1,0,0&compression=uncompressed&supervoxels=true&scale=0"
    assert records(server.get(ask).body)[0][1] == volume.tobytes()


# -- spans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typename", TYPES)
def test_spans_of_every_type_are_written_and_read(server, at, typename):
    base = at(typename)
    blocks = np.stack([noise(typename, seed=seed) for seed in range(3)])
    server.post(f"{base}/blocks/-1_2_0/3", blocks.tobytes())
    assert server.get(f"{base}/blocks/-1_2_0/3").body == blocks.tobytes()
    row = server.get(f"{base}/raw/0_1_2/48_16_16/-16_32_0").body
    assert row == np.concatenate(blocks, axis=2).tobytes()
    assert extents(server, base) == ([-16, 32, 0], [31, 47, 15])


def test_missing_blocks_of_a_span_are_background(server, at):
    base, block = at(Background="9"), noise("uint8blk").tobytes()
    server.post(f"{base}/blocks/1_0_0/1", block)
    assert server.get(f"{base}/blocks/0_0_0/3").body == b"\t" * 4096 + block + b"\t" * 4096
    reply = server.get(f"{base}/blocks/0_5_0/2500")
    assert reply.body == b"\t" * 4096 * 2500
    assert reply.headers["content-length"] == str(4096 * 2500)


def test_a_post_is_one_commit(server, at):
    base = at()
    uuid = base.split("/")[1]
    array = server.store.open_repo(uuid=uuid)["data"]
    before = array.snapshot().number
    server.post(f"{base}/blocks/0_0_0/4?u=ann", noise("uint8blk", 1, 1, 4).tobytes())
    assert array.snapshot().number == before + 1
    data = noise("uint8blk").tobytes()
    ask = f"{base}/blocks?compression=uncompressed&scale=0&downres=true&u=ann"
    server.post(ask, stream(((0, 0, 0), data), ((9, 9, 9), data), ((-3, 0, 0), data)))
    assert array.snapshot().number == before + 2
    last = list(array._repo.operations("data"))[-1]
    assert (last["user"], last["operation"]) == ("ann", "write blocks")
    assert extents(server, base) == ([-48, 0, 0], [159, 159, 159])


@pytest.mark.parametrize(
    ("path", "size", "message"),
    [
        ("blocks/0_0_0/1", 4095, "4095 bytes, expected 4096"),
        ("blocks/0_0_0/2", 4096, "4096 bytes, expected 8192"),
        ("blocks/0_0_0/0", 0, "from 1 to"),
        ("blocks/0_0_0/-1", 0, "from 1 to"),
        ("blocks/0_0_0/2147483648", 0, "from 1 to"),
        ("blocks/0_0_0/2147483647", 0, "exceeds"),
        ("blocks/0_0/1", 4096, "3 numbers"),
        ("blocks/2147483647_0_0/1", 4096, "32-bit"),
        ("blocks/134217727_0_0/2", 8192, "32-bit"),
        ("blocks/16_16_16/0_0_0", 4096, "stream of records"),
    ],
)
def test_a_span_that_cannot_be_is_refused(server, at, path, size, message):
    base = at()
    assert message in server.refused("POST", f"{base}/{path}", bytes(size))
    assert extents(server, base) == (None, None)


def test_a_span_sent_in_pieces_is_checked_too(server, at):
    base = at()
    text = server.refused("POST", f"{base}/blocks/0_0_0/1", iter([bytes(4000), bytes(50)]))
    assert "4050 bytes, expected 4096" in text
    server.refused("POST", f"{base}/blocks/0_0_0/1", iter([bytes(4000)] * 2), status=413)
    server.post(f"{base}/blocks/0_0_0/1", iter([bytes(4000), bytes(96)]))
    zipped = gzip.compress(noise("uint8blk").tobytes())
    server.post(f"{base}/blocks/0_0_0/1", zipped, headers={"Content-Encoding": "gzip"})
    assert server.get(f"{base}/blocks/0_0_0/1").body == noise("uint8blk").tobytes()


def test_locked_versions_take_no_blocks(server, at):
    base = at("labelblk")
    server.store.open_repo(uuid=base.split("/")[1]).lock_node("done")
    for path in ("blocks", "blocks/0_0_0/1"):
        assert "locked node" in server.refused("POST", f"{base}/{path}", bytes(8 * 4096))


# -- streams of records --------------------------------------------------------------------


def packed(volume):
    return gzip.compress(label_encode_reference(volume), 6, mtime=0)


def test_label_blocks_are_posted_as_libdvid_and_neuclease_do(server, at):
    base = at("labelblk")
    first, second, third = (noise("labelblk", seed=seed) for seed in range(3))
    body = stream(
        ((0, 0, 0), packed(first)), ((-1, 4, 2), packed(second)), ((0, 0, 0), packed(third))
    )
    server.post(f"{base}/blocks?scale=0&noindexing=true&throttle=on", body)
    assert server.get(f"{base}/raw/0_1_2/16_16_16/0_0_0").body == third.tobytes()
    assert server.get(f"{base}/raw/0_1_2/16_16_16/-16_64_32").body == second.tobytes()
    answer = server.get(f"{base}/blocks/32_80_48/-16_0_0?compression=blocks").body
    assert [xyz for xyz, _ in records(answer)] == [(0, 0, 0), (-1, 4, 2)]
    other = at("labelblk", "other")
    server.post(f"{other}/blocks?compression=blocks", answer)
    assert server.get(f"{other}/blocks/32_80_48/-16_0_0?compression=blocks").body == answer


@pytest.mark.parametrize("typename", ["uint8blk", "float32blk", "rgba8blk", "labelblk"])
@pytest.mark.parametrize("form", ["uncompressed", "lz4", "gzip", "zstd", "jpeg", ""])
def test_what_was_read_can_be_posted_elsewhere(server, at, typename, form):
    one, two = at(typename, "one"), at(typename, "two")
    if form == "jpeg" and typename != "uint8blk":
        server.refused("POST", f"{two}/blocks?compression=jpeg", b"x")
        return
    fill(server, one, noise(typename, 1, 2, 2))
    read = "specificblocks?blocks=0,0,0,1,0,0,0,1,0,1,1,0"
    body = server.get(f"{one}/{read}&compression={form}").body
    server.post(f"{two}/blocks?compression={form}", body)
    if form != "jpeg":
        assert server.get(f"{two}/{read}&compression={form}").body == body
    assert extents(server, two) == ([0, 0, 0], [31, 31, 15])


def bomb():
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(40)) + packer.flush()


GOOD = packed(noise("labelblk"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (stream(((1, 0, 0), GOOD)) + b"123", "3 bytes follow"),
        (stream(((1, 0, 0), GOOD)) + struct.pack("<4i", 0, 0, 0, 0), "has 0 bytes"),
        (stream(((1, 0, 0), GOOD)) + struct.pack("<4i", 0, 0, 0, -1) + b"1", "has -1 bytes"),
        (stream(((1, 0, 0), GOOD)) + struct.pack("<4i", 0, 0, 0, 9) + b"1", "has 9 bytes"),
        (stream(((1, 0, 0), GOOD), ((2**31 - 1, 0, 0), GOOD)), "32-bit"),
        (stream(((1, 0, 0), GOOD), ((0, 0, 0), b"no gzip")), "sent gzipped"),
        (stream(((1, 0, 0), GOOD), ((0, 0, 0), GOOD[:-9])), "ends early"),
        (stream(((1, 0, 0), GOOD), ((0, 0, 0), GOOD + b"more")), "ends early, late"),
        (stream(((1, 0, 0), GOOD), ((0, 0, 0), gzip.compress(b"short", mtime=0))), "label block"),
        (stream(((1, 0, 0), GOOD), ((0, 0, 0), packed(np.zeros((8, 8, 8), "u8")))), "sub-blocks"),
        (stream(((1, 0, 0), GOOD), ((0, 0, 0), bomb())), "not in time"),
        (b"\xff" * 100, "has -1 bytes"),
    ],
)
def test_a_stream_with_anything_wrong_writes_nothing(server, at, body, message):
    base = at("labelblk")
    assert message in server.refused("POST", f"{base}/blocks", body)
    assert extents(server, base) == (None, None)
    assert server.get(f"{base}/blocks/64_64_64/0_0_0").body == b""


@pytest.mark.parametrize(
    ("form", "data", "message"),
    [
        ("uncompressed", bytes(4095), "4096 bytes expected"),
        ("", bytes(3), "a block has 4096 bytes"),
        ("lz4", struct.pack("<I", 4097) + bytes(100), "got 4097"),
        ("lz4", struct.pack("<I", 4096) + b"\x01", "cannot be a block"),
        ("lz4", struct.pack("<I", 4096) + b"\xff" * 50, "no lz4"),
        ("gzip", gzip.compress(bytes(4097), mtime=0), "no gzip"),
        ("zstd", zstandard.ZstdCompressor().compress(bytes(5000)), "no zstd"),
        ("jpeg", b"\xff\xd8\xff", "no jpeg"),
        ("snappy", b"1", "unknown compression"),
        ("blocks", b"1", "holds none"),
    ],
)
def test_bytes_that_are_no_block_are_refused(server, at, form, data, message):
    base = at()
    body = stream(((0, 0, 0), data))
    assert message in server.refused("POST", f"{base}/blocks?compression={form}", body)
    assert extents(server, base) == (None, None)


def test_other_scales_are_not_posted_and_nothing_is_nothing(server, at):
    base = at("labelblk")
    assert "scale 0" in server.refused("POST", f"{base}/blocks?scale=1", stream(((0, 0, 0), GOOD)))
    server.post(f"{base}/blocks", b"")
    assert extents(server, base) == (None, None)


def test_blocks_posted_side_by_side_all_arrive(server, at):
    base, block = at("labelblk"), noise("labelblk")
    replies = []

    def post(x):
        body = stream(*(((x, y, 0), packed(block + np.uint64(x))) for y in range(4)))
        replies.append(server.ask("POST", f"{base}/blocks", body).status)

    threads = [threading.Thread(target=post, args=(x,)) for x in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert replies == [200] * 6
    assert extents(server, base) == ([0, 0, 0], [95, 63, 15])
    for (x, _, _), data in records(server.get(f"{base}/blocks/96_64_16/0_0_0").body):
        assert np.array_equal(decode(data, "labelblk", "lz4"), block + np.uint64(x))


def test_dvids_own_stream(server, at, shared_data):
    body = (shared_data / "label-blocks" / "stream_1block.dat").read_bytes()
    base = at("labelblk", BlockSize="64,64,64")
    server.post(f"{base}/blocks", body)
    ((xyz, data),) = records(body)
    wanted = label_decode_reference(gzip.decompress(data), (64, 64, 64))
    found = server.get(f"{base}/raw/0_1_2/64_64_64/{'_'.join(str(64 * n) for n in xyz)}").body
    assert found == wanted.tobytes()


def test_blocks_are_described(server, at):
    base = at("labelblk")
    text = server.get(f"{base}/help").text
    for path in ("blocks/{first}/{second}", "specificblocks", "subvolblocks/{size}/{offset}"):
        assert path in text
