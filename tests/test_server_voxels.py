"""Raw voxels over HTTP: every spelling of axes, bodies of every length, masks, large answers."""

import io
import itertools
import math
import threading

import numpy as np
import pytest
from PIL import Image

from diced import multiscale, registry
from diced.server import masks, voxels
from diced.server.datatype import Settings, find_type

RNG = np.random.default_rng(0)


class Data:
    """An instance, its URL, and the array behind it."""

    def __init__(self, server, array):
        self.server = server
        self.array = array
        self.path = f"node/{array._repo.uuid}/{array.name}"

    def get(self, path, **more):
        return self.server.get(f"{self.path}/{path}", **more)

    def post(self, path, body=b"", **more):
        return self.server.post(f"{self.path}/{path}", body, **more)

    def refused(self, method, path, body=None, **more):
        return self.server.refused(method, f"{self.path}/{path}", body, **more)


@pytest.fixture
def repo(server):
    server.store.create_repo("voxels")
    return server.store.open_repo("voxels")


@pytest.fixture
def make(server, repo):
    """Create an instance as a POST does."""

    def create(typename, name="data", versioned=True, **given):
        array = find_type(typename).create(repo, name, Settings(given), versioned)
        return Data(server, array)

    return create


@pytest.fixture
def gray(make):
    """An uint8blk of blocks of 32 with noise at (-10, 20, 5) on, ZYX."""
    data = make("uint8blk", BlockSize="32,32,32", Background="3")
    values = RNG.integers(0, 256, (40, 50, 60), dtype=np.uint8)
    data.array[-10:30, 20:70, 5:65] = values
    return data


def ordered(values, axes):
    """Return the bytes of a ZYX box as a wire order has them: axes X = 0, first fastest."""
    last = values.ndim - 1
    return values.transpose([last - axis for axis in reversed(axes)]).tobytes()


# -- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["0_1_2", "vol", "0,1,2", "VOL", "0_1_2/"])
def test_volumes(gray, axes):
    reply = gray.get(f"raw/{axes.strip('/')}/33_22_11/-4_10_-12")
    wanted = gray.array[-12:-1, 10:32, -4:29]
    assert reply.body == wanted.tobytes()
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-length"] == str(33 * 22 * 11)
    assert gray.array[-12, 10, -4] == 3  # what was never written is background
    assert gray.server.ask("HEAD", f"{gray.path}/raw/0_1_2/33_22_11/-4_10_-12").status == 200


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_permuted_axes(gray, axes):
    sizes = (9, 14, 21)
    shape = [0, 0, 0]
    for axis, length in zip(axes, sizes, strict=True):
        shape[axis] = length
    box = gray.array[-3 : -3 + shape[2], 25 : 25 + shape[1], 8 : 8 + shape[0]]
    path = f"raw/{'_'.join(map(str, axes))}/{'_'.join(map(str, sizes))}/8_25_-3"
    assert gray.get(path).body == ordered(box, axes)
    gray.post(path.replace("8_25_-3", "100_200_300"), ordered(box, axes))
    moved = gray.array[300 : 300 + shape[2], 200 : 200 + shape[1], 100 : 100 + shape[0]]
    assert np.array_equal(moved, box)


@pytest.mark.parametrize(
    ("dims", "index"),
    [
        ("xy", np.s_[2, 20:44, 5:38]), ("0_1", np.s_[2, 20:44, 5:38]),
        ("XY", np.s_[2, 20:44, 5:38]), ("xz", np.s_[2:26, 20, 5:38]),
        ("0_2", np.s_[2:26, 20, 5:38]), ("0,2", np.s_[2:26, 20, 5:38]),
        ("yz", np.s_[2:26, 20:53, 5]), ("1_2", np.s_[2:26, 20:53, 5]),
    ],
)  # fmt: skip
def test_planes(gray, dims, index):
    wanted = gray.array[index]
    reply = gray.get(f"raw/{dims}/33_24/5_20_2")
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.body))), wanted)
    assert gray.get(f"raw/{dims}/33_24/5_20_2/raw").body == wanted.tobytes()
    for format, kind in (("jpg:90", "jpeg"), ("tif", "tiff"), ("bmp", "bmp")):
        reply = gray.get(f"raw/{dims}/33_24/5_20_2/{format}")
        assert reply.headers["content-type"] == f"image/{kind}"
        picture = Image.open(io.BytesIO(reply.body))
        assert picture.size == (33, 24)
        assert kind == "jpeg" or np.array_equal(np.asarray(picture), wanted)


def test_a_volume_as_one_tall_jpeg(gray):
    gray.array[0:64, 0:64, 0:64] = np.add.outer(
        np.arange(64), np.add.outer(np.arange(64), np.arange(64))
    )
    for name in ("jpeg", "jpg", "jpeg:95"):
        reply = gray.get(f"raw/0_1_2/40_30_20/5_6_7/{name}")
        assert reply.headers["content-type"] == "image/jpeg"
        picture = Image.open(io.BytesIO(reply.body))
        assert picture.size == (40, 600) and picture.mode == "L"
        wanted = gray.array[7:27, 6:36, 5:45].reshape(600, 40).astype(int)
        assert np.abs(np.asarray(picture) - wanted).mean() < 3
    gray.refused("GET", "raw/0_1_2/40_30_20/5_6_7/png")
    gray.refused("GET", "raw/0_1_2/2_300_300/0_0_0/jpeg")  # 90000 high
    wide = gray.get("raw/0_1_2/40_30_20/5_6_7/jpeg")
    gray.post("raw/0_1_2/40_30_20/200_0_0/jpeg", wide.body)
    again = np.asarray(Image.open(io.BytesIO(wide.body))).reshape(20, 30, 40)
    assert np.array_equal(gray.array[0:20, 0:30, 200:240], again)


TYPES = ["uint8blk", "uint16blk", "uint32blk", "uint64blk", "float32blk", "rgba8blk"]


@pytest.mark.parametrize("typename", TYPES)
def test_every_type_there_and_back(make, typename):
    data = make(typename)
    array = data.array
    tail = () if array.channels is None else (array.channels,)
    values = RNG.integers(0, 200, (20, 30, 40, *tail)).astype(array.dtype)
    data.post("raw/0_1_2/40_30_20/-7_50_60", values.tobytes())
    assert np.array_equal(array[60:80, 50:80, -7:33], values)
    assert data.get("raw/0_1_2/40_30_20/-7_50_60").body == values.tobytes()
    assert array.bounds == (slice(60, 80), slice(50, 80), slice(-7, 33))
    # A plane comes and goes as a picture without loss.
    picture = data.get("raw/xz/40_20/-7_55_60").body
    data.post("raw/xz/40_20/-7_200_60", picture)
    assert np.array_equal(array[60:80, 200, -7:33], values[:, 5])
    data.post("raw/xz/40_20/-7_201_60/png", picture)
    data.post("raw/xz/40_20/-7_202_60", values[:, 6].tobytes())
    data.post("raw/xz/40_20/-7_203_60/raw", values[:, 7].tobytes())
    wanted = [values[:, 5], values[:, 5], values[:, 6], values[:, 7]]
    assert np.array_equal(array[60:80, 200:204, -7:33], np.stack(wanted, axis=1))


def test_arrays_of_other_dimensions(server, repo):
    line = Data(server, repo.create_array("line", "uint16", dims=1, block_shape=(100,)))
    line.post("raw/0/250/-30", np.arange(250, dtype=np.uint16).tobytes())
    assert line.array[-30:220].tolist() == list(range(250))
    assert line.get("raw/0_1_2/250_1_1/-30_0_0").body == line.array[-30:220].tobytes()
    assert Image.open(io.BytesIO(line.get("raw/xy/50_1/0_0_0").body)).size == (50, 1)
    line.refused("GET", "raw/0_1_2/250_2_1/-30_0_0")
    line.refused("GET", "raw/0_1_2/250_1_1/-30_0_1")
    line.refused("GET", "raw/0_3/250_1/-30")
    flat = Data(server, repo.create_array("flat", "float32", dims=2, block_shape=(32, 32)))
    values = RNG.normal(size=(40, 50)).astype(np.float32)
    flat.post("raw/0_1_2/50_40_1/3_4_0", values.tobytes())
    assert flat.get("raw/0_1/50_40/3_4/raw").body == values.tobytes()
    assert flat.get("raw/1_0/40_50/3_4/raw").body == values.T.tobytes()
    deep = Data(server, repo.create_array("deep", "bool", dims=4, block_shape=(4, 4, 4, 4)))
    bits = RNG.random((3, 4, 5, 6)) < 0.5
    deep.post("raw/0_1_2_3/6_5_4_3/0_1_2_3", (bits * np.uint8(255)).tobytes())
    assert np.array_equal(deep.array[3:6, 2:6, 1:6, 0:6], bits)
    assert deep.get("raw/0_1_2_3/6_5_4_3/0_1_2_3").body == bits.tobytes()
    assert deep.get("raw/0_1_2/6_5_4/0_1_2_4").body == bits[1].tobytes()
    assert deep.get("raw/3_0/3_6/0_3_4_3/raw").body == ordered(bits[:, 2, 2], (1, 0))
    channels = Data(server, repo.create_array("channels", "uint16", channels=5))
    values = RNG.integers(0, 65536, (4, 5, 6, 5), dtype=np.uint16)
    channels.post("raw/0_1_2/6_5_4/0_0_0", values.tobytes())
    assert channels.get("raw/0_1_2/6_5_4/0_0_0").body == values.tobytes()
    assert "channels" in channels.refused("GET", "raw/xy/6_5/0_0_0")


def test_an_array_of_a_foreign_kind_is_described_and_never_read(server, repo, monkeypatch):
    monkeypatch.setitem(registry._targets["kind"], "foreign", "diced.files:KeyValueArray")
    foreign = Data(server, repo.create_array("foreign", kind="foreign"))
    for method, path in (
        ("GET", "raw/0_1_2/1_1_1/0_0_0"), ("POST", "raw/0_1_2/1_1_1/0_0_0"), ("GET", "metadata"),
        ("GET", "isotropic/xy/1_1/0_0_0"), ("GET", "arb/0_0_0/1_0_0/0_1_0/1"), ("GET", "rawkey"),
        ("POST", "extents"), ("POST", "resolution"),
    ):  # fmt: skip
        assert "no voxels" in foreign.refused(method, path, b"x" if method == "POST" else None)
    assert foreign.get("info").json["Extended"] == {}


def test_paths_of_2014(gray):
    wanted = gray.array[0, 20:44, 5:38]
    for path in ("xy/33_24/5_20_0", "xy/raw/33_24/5_20_0", "raw/xy/33_24/5_20_0/png",
                 "xy/33,24/5,20,0/png", "mask/0_1/33_24/5_20_0"):  # fmt: skip
        reply = gray.get(path)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.body))), wanted)
    assert gray.get("0_1_2/3_4_5/5_20_0").body == gray.array[0:5, 20:24, 5:8].tobytes()
    gray.post("mask/0_1_2/3_4_5/0_0_0", bytes(range(60)))
    assert gray.get("mask/0_1_2/3_4_5/0_0_0").body == bytes(range(60))
    assert "Bad API call" in gray.refused("GET", "xy/33_24")
    assert "Bad API call" in gray.refused("GET", "zx/33_24/1_2_3")


# -- what is refused -----------------------------------------------------------------------

BIG = [2**31, 2**63, 2**64, 10**30, 10**400]


@pytest.mark.parametrize(
    "path",
    [
        *(f"raw/0_1_2/{n}_1_1/0_0_0" for n in (0, -1, "", "x", "1.5", "٣", *BIG)),
        *(f"raw/0_1_2/1_1_1/{n}_0_0" for n in ("", "x", "1e3", -(2**31) - 1, *BIG)),
        "raw/0_1_2/1_1_2/0_0_2147483647", "raw/0_1_2/4_4/0_0_0", "raw/0_1_2/4_4_4/0_0",
        "raw/0_1_2/4_4_4_4/0_0_0", "raw/0_1_2/2000_2000_2000/0_0_0",
        "raw/0_1_2/2147483647_2147483647_2147483647/-5_-5_-5", "raw/0_0_1/1_1_1/0_0_0",
        "raw/0_1_3/1_1_1/0_0_0", "raw/-1_0/1_1/0_0_0", "raw/ab/1_1/0_0_0", "raw/_/1_1/0_0_0",
        "raw/xy/4_4/0_0_0/gif", "raw/xy/4_4/0_0_0/jpg:0", "raw/xy/4_4/0_0_0/png:5",
        "raw/0_1_2/4_4_4/0_0_0/tif", "raw/xy/100000_100000/0_0_0", "raw/xy/17000_17000/0_0_0",
        "raw/0_1_2/1_1_1/0_0_0?scale=-1", "raw/0_1_2/1_1_1/0_0_0?scale=x",
        "raw/0_1_2/1_1_1/0_0_0?scale=99", "raw/0_1_2/1_1_1/0_0_0?roi=nobody",
        "raw/0_1_2/1_1_1/0_0_0?roi=data", "raw/0_1_2/1_1_1/0_0_0?roi=data,zz",
        "raw/0_1_2/1_1_1/0_0_0?attenuation=8", "raw/0_1_2/1_1_1/0_0_0?attenuation=-1",
    ],
)  # fmt: skip
def test_hostile_paths(gray, path):
    text = gray.refused("GET", path.replace("٣", "%D9%A3"))
    assert len(text) < 1000
    gray.refused("POST", path.replace("٣", "%D9%A3"), b"abc")


def test_the_number_of_bytes_is_checked(gray):
    before = len(list(gray.array._repo.operations("data")))
    for count in (0, 1, 119, 121, 10_000_000):
        text = gray.refused("POST", "raw/0_1_2/4_5_6/0_0_0", b"x" * count)
        assert f"voxels data was {count} bytes, expected 120" in text
    assert "was 119 bytes, expected 120" in gray.refused("POST", "raw/xy/12_10/0_0_0", b"x" * 119)
    png = gray.get("raw/xy/12_10/0_0_0").body
    assert "12 x 10" in gray.refused("POST", "raw/xy/10_12/0_0_0", png)
    gray.refused("POST", "raw/xy/12_10/0_0_0/jpg", png)
    gray.refused("POST", "raw/xy/12_10/0_0_0/png", png[:-30])
    # Sent in chunks there is no length before the end.
    pieces = (b"x" * 60 for _ in range(3))
    gray.refused("POST", "raw/0_1_2/4_5_6/0_0_0", pieces, status=413)
    pieces = (b"x" * 50 for _ in range(2))
    assert "was 100 bytes" in gray.refused("POST", "raw/0_1_2/4_5_6/0_0_0", pieces)
    gray.refused("POST", "raw/0_1_2/4_5_6/0_0_0?scale=1", b"x" * 120)
    assert len(list(gray.array._repo.operations("data"))) == before
    assert gray.array[0, 0, 0] == 3


def test_a_locked_version_is_not_written(gray):
    gray.array._repo.lock_node("done")
    assert "locked node" in gray.refused("POST", "raw/0_1_2/1_1_1/0_0_0", b"x")
    assert gray.get("raw/0_1_2/1_1_1/0_0_0").body == b"\x03"


def test_one_post_is_one_commit(gray):
    repo = gray.array._repo
    before = len(list(repo.operations("data")))
    gray.post("raw/0_1_2/100_90_80/-11_-7_3?mutate=true", bytes(720000))
    assert len(list(repo.operations("data"))) == before + 1
    assert not gray.array[3:83, -7:83, -11:89].any()


def test_gzipped_bodies(gray):
    import gzip

    body = gzip.compress(bytes(range(120)))
    gray.post("raw/0_1_2/4_5_6/0_0_0", body, headers={"Content-Encoding": "gzip"})
    assert gray.array[0:6, 0:5, 0:4].tobytes() == bytes(range(120))


def test_throttle(gray):
    with gray.server.app.site.throttle.slot():
        path = "raw/0_1_2/1_1_1/0_0_0?throttle=on"
        assert "throttled" in gray.refused("GET", path, status=503)
        gray.refused("POST", path, b"x", status=503)
        gray.get("raw/0_1_2/1_1_1/0_0_0")
    gray.get("raw/0_1_2/1_1_1/0_0_0?throttle=on")


# -- large ones ----------------------------------------------------------------------------


def test_a_large_answer_is_of_one_state(gray, monkeypatch):
    """Every write sets the whole box to one number; no answer may hold two."""
    monkeypatch.setattr(voxels, "SLAB_BYTES", 40_000)
    array, stop = gray.array, threading.Event()
    array[0:64, 0:64, 0:96] = 1

    def write():
        number = 1
        while not stop.is_set():
            number = number % 200 + 1
            array[0:64, 0:64, 0:96] = number

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        for _ in range(10):
            body = gray.get("raw/0_1_2/90_61_60/1_2_3").body
            assert len(body) == 90 * 61 * 60
            assert len(set(body)) == 1
            seen.add(body[0])
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 1


@pytest.mark.parametrize("axes", ["0_1_2", "2_0_1", "1_2_0"])
@pytest.mark.parametrize("most", [100, 1500, 40_000])
def test_slabs_of_every_size_join_to_the_same(gray, monkeypatch, axes, most):
    sizes = dict(zip("012", (30, 40, 50), strict=True))
    path = f"raw/{axes}/{'_'.join(str(sizes[each]) for each in axes.split('_'))}/6_21_-9"
    whole = gray.get(path).body
    monkeypatch.setattr(voxels, "SLAB_BYTES", most)
    reply = gray.get(path)
    assert reply.body == whole and reply.headers["content-length"] == "60000"


def test_slabs_are_bounded_and_end_at_blocks():
    where = voxels.Region((3, 5, 7), (200, 150, 90), (0, 1, 2), (90, 150, 200))
    for most in (50, 90, 10_000, 150 * 90, 1_000_000, 10**9):
        total = 0
        place = 0
        for lo, shape in voxels.slabs(where, (64, 64, 64), 1, most):
            count = math.prod(shape)
            assert 0 < count <= most
            at = np.subtract(lo, where.lo)
            assert (at[0] * 150 + at[1]) * 90 + at[2] == place
            place += count
            total += count
        assert total == 200 * 150 * 90
    cuts = [lo[0] for lo, _ in voxels.slabs(where, (64, 64, 64), 1, 1_000_000)]
    assert cuts == [3, 64, 128, 192]


# -- regions of interest -------------------------------------------------------------------


@pytest.fixture
def roi(gray):
    """An ROI of blocks of 16, spread over the volume."""
    roi = gray.array._repo.create_array("roi", kind="roi", block_shape=(16, 16, 16))
    roi.set_spans([(0, 1, 0, 2), (0, 2, 1, 1), (-1, 1, 1, 3), (1, 3, 0, 0)])
    return roi


def test_reading_inside_a_region(gray, roi):
    lo, hi = (-10, 17, 3), (30, 65, 60)
    inside = roi.mask(lo, hi)
    plain = gray.array[-10:30, 17:65, 3:60]
    path = "raw/0_1_2/57_48_40/3_17_-10"
    body = gray.get(f"{path}?roi=roi").body
    assert inside.any() and not inside.all()
    assert body == np.where(inside, plain, 3).astype(np.uint8).tobytes()
    uuid = gray.array._repo.uuid
    assert gray.get(f"{path}?roi=roi,{uuid[:9]}").body == body
    body = gray.get(f"{path}?roi=roi&attenuation=2").body
    assert body == np.where(inside, plain, plain >> 2).astype(np.uint8).tobytes()
    assert gray.get(f"{path}?attenuation=2").body == plain.tobytes()
    picture = gray.get("raw/xz/57_40/3_20_-10?roi=roi").body
    wanted = np.where(inside[:, 3], plain[:, 3], 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), wanted)


def test_masks_of_slabs_and_other_orders(gray, roi, monkeypatch):
    path = "raw/2_1_0/40_48_57/3_17_-10?roi=roi"
    whole = gray.get(path).body
    monkeypatch.setattr(voxels, "SLAB_BYTES", 5000)
    assert gray.get(path).body == whole


def test_writing_inside_a_region(gray, roi, monkeypatch):
    monkeypatch.setattr(masks, "PIECE_VOXELS", 50_000)
    lo, hi = (-10, 17, 3), (30, 65, 60)
    before = gray.array[-10:30, 17:65, 3:60]
    count = len(list(gray.array._repo.operations("data")))
    values = RNG.integers(0, 256, (40, 48, 57), dtype=np.uint8)
    gray.post("raw/0_1_2/57_48_40/3_17_-10?roi=roi", values.tobytes())
    wanted = np.where(roi.mask(lo, hi), values, before)
    assert np.array_equal(gray.array[-10:30, 17:65, 3:60], wanted)
    assert len(list(gray.array._repo.operations("data"))) == count + 1
    gray.post("raw/0_1_2/4_4_4/1000_1000_1000?roi=roi", bytes(64))
    assert len(list(gray.array._repo.operations("data"))) == count + 1
    assert gray.array[1000, 1000, 1000] == 3


def test_attenuation_needs_voxels_of_one_byte(make):
    deep = make("uint16blk", "deep")
    deep.refused("GET", "raw/0_1_2/1_1_1/0_0_0?attenuation=2")


@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_a_mask_once(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5, 6)) < rng.random()
    for axis in range(3):
        mask = np.repeat(mask, rng.integers(1, 4, mask.shape[axis]), axis=axis)
    count = np.zeros(mask.shape, int)
    for lo, shape in masks.tiles(mask):
        count[tuple(slice(a, a + n) for a, n in zip(lo, shape, strict=True))] += 1
    assert np.array_equal(count, mask)


# -- scales and many writers ---------------------------------------------------------------


def test_levels_of_detail(gray, monkeypatch):
    for number in (1, 2):
        level = multiscale.level(gray.array, number)
        wanted = level[-3:12, 5:25, 1:20]
        assert wanted.any()
        path = f"19_20_15/1_5_-3?scale={number}"
        assert gray.get(f"raw/0_1_2/{path}").body == wanted.tobytes()
        picture = gray.get(f"raw/yz/20_15/1_5_-3?scale={number}").body
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), wanted[:, :, 0])
    monkeypatch.setattr(voxels, "SLAB_BYTES", 2000)
    assert gray.get(f"raw/0_1_2/{path}").body == wanted.tobytes()
    found = gray.get("arb/8_40_8/80_40_8/8_120_8/8/raw?scale=1").body
    assert len(found) == 110
    text = gray.refused("POST", "raw/0_1_2/1_1_1/0_0_0?scale=1", b"x")
    assert "scale 0" in text


def test_overlapping_posts_never_mix(gray):
    box = "raw/0_1_2/70_70_70/10_10_10"
    gray.post(box, bytes(70**3))
    failed = []

    def write(number):
        try:
            for _ in range(4):
                gray.post(box, bytes([number]) * 70**3)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 7)]
    for each in threads:
        each.start()
    while any(each.is_alive() for each in threads):
        assert len(set(gray.get(box).body)) == 1
    for each in threads:
        each.join()
    assert not failed
    assert len(set(gray.get(box).body)) == 1
