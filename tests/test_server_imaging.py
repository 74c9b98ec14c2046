"""Pictures over the wire: how voxels become pixels, and pixels voxels."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from diced.errors import InvalidError
from diced.server import imaging

RNG = np.random.default_rng(0)


def voxels(dtype, channels=None, rows=21, columns=34):
    shape = (rows, columns) + (() if channels is None else (channels,))
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return RNG.random(shape) < 0.5
    data = RNG.integers(0, 256, (*shape, kind.itemsize), dtype=np.uint8)
    return np.ascontiguousarray(data).view(kind).reshape(shape)


def opened(data):
    return Image.open(io.BytesIO(data))


KINDS = [
    ("uint8", None), ("int8", None), ("bool", None), ("uint16", None), ("int16", None),
    ("float16", None), ("uint32", None), ("float32", None), ("int32", None), ("uint64", None),
    ("float64", None), ("uint8", 1), ("uint64", 1), ("uint8", 2), ("uint8", 3), ("uint8", 4),
    ("uint16", 3), ("uint16", 4),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_png_keeps_every_bit(dtype, channels):
    values = voxels(dtype, channels)
    data = imaging.encode(values, imaging.parse_format("png"))
    pixels = imaging.decode(data, "png", 21, 34)
    found = imaging.from_pixels(pixels, values.dtype, channels)
    assert found.dtype == values.dtype and found.shape == values.shape
    assert found.tobytes() == values.tobytes()
    assert imaging.looks_encoded(data)


@pytest.mark.parametrize(("dtype", "channels"), [*KINDS, ("uint16", 2)])
def test_tiff_is_what_tifffile_reads(dtype, channels):
    values = voxels(dtype, channels)
    data = imaging.encode(values, imaging.parse_format("tif"))
    assert np.array_equal(tifffile.imread(io.BytesIO(data)), imaging.to_pixels(values))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE


def test_pixels_are_as_of_dvid():
    gray = voxels("uint8")
    assert np.array_equal(np.asarray(opened(imaging.encode(gray, imaging.Form("png")))), gray)
    deep = voxels("uint16")
    picture = opened(imaging.encode(deep, imaging.Form("png")))
    assert picture.mode.startswith("I") and np.array_equal(np.asarray(picture), deep)
    four = np.array([[0x04030201]], np.uint32)
    assert np.asarray(opened(imaging.encode(four, imaging.Form("png")))).tolist() == [
        [[1, 2, 3, 4]]
    ]
    eight = np.array([[0x0807060504030201]], np.uint64)
    samples = imaging.to_pixels(eight)
    assert samples.dtype == np.uint16 and samples.tolist() == [[[0x102, 0x304, 0x506, 0x708]]]
    # Pillow shows the upper bytes of 16-bit colours.
    picture = opened(imaging.encode(eight, imaging.Form("png")))
    assert picture.mode == "RGBA" and np.asarray(picture).tolist() == [[[1, 3, 5, 7]]]


@pytest.mark.parametrize("name", ["jpg", "bmp"])
@pytest.mark.parametrize(("dtype", "channels"), [*KINDS, ("uint16", 2)])
def test_eight_bit_formats_show_the_upper_bits(name, dtype, channels):
    smooth = (np.add.outer(np.arange(16), np.arange(24)) * 4).astype(np.uint8)
    itemsize = np.dtype(dtype).itemsize
    shape = (16, 24, *([] if channels is None else [channels]))
    values = np.repeat(smooth[:, :, None], (channels or 1) * itemsize, axis=2)
    values = np.ascontiguousarray(values).view("u1" if dtype == "bool" else dtype).reshape(shape)
    picture = opened(imaging.encode(values, imaging.parse_format(name)))
    shown = np.asarray(picture)
    gray = ((channels or 1) == 1 and itemsize < 4) or channels == 2
    assert picture.mode in (("L",) if gray else ("RGB", "RGBA"))
    limit = 6 if name == "jpg" else 0
    shown = shown if gray else shown[..., 0]
    assert np.abs(shown.astype(int) - smooth).max() <= limit


def test_quality_matters():
    noise = voxels("uint8", rows=200, columns=200)
    sizes = [
        len(imaging.encode(noise, imaging.parse_format(f"jpeg:{q}"))) for q in (1, 20, 80, 100)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[3] / 4
    assert sizes[2] == len(imaging.encode(noise, imaging.parse_format("jpg")))


@pytest.mark.parametrize(
    "text", ["", "gif", "png:3", "jpeg:0", "jpeg:101", "jpeg:", "jpg:x", "jpg:8_0", "raw", "jpg:٣"]
)
def test_unknown_formats(text):
    with pytest.raises(InvalidError):
        imaging.parse_format(text)


def test_what_makes_no_picture():
    for values in (voxels("uint8", 5), voxels("uint32", 2), voxels("float32", 3)):
        with pytest.raises(InvalidError):
            imaging.encode(values, imaging.Form("png"))
    with pytest.raises(InvalidError, match="65500"):
        imaging.encode(np.zeros((65501, 2), np.uint8), imaging.Form("jpeg"))
    with pytest.raises(InvalidError, match="too large"):
        imaging.encode(np.broadcast_to(np.uint8(0), (2**14, 2**13)), imaging.Form("png"))


# -- decoding ------------------------------------------------------------------------------


def saved(array, format, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["png", "tiff", "bmp"])
def test_gray_of_any_format(format):
    gray = voxels("uint8")
    for name in (format, ""):
        pixels = imaging.decode(saved(gray, format.upper()), name, 21, 34)
        assert np.array_equal(imaging.from_pixels(pixels, np.dtype("u1"), None), gray)
    wide = imaging.from_pixels(pixels, np.dtype("u4"), None)
    assert wide.dtype == np.uint32 and np.array_equal(wide, gray)
    assert np.array_equal(imaging.from_pixels(pixels, np.dtype("?"), None), gray != 0)


def test_colours():
    rgb = voxels("uint8", 3)
    pixels = imaging.decode(saved(rgb, "PNG"), "", 21, 34)
    assert np.array_equal(imaging.from_pixels(pixels, np.dtype("u1"), 3), rgb)
    rgba = imaging.from_pixels(pixels, np.dtype("u1"), 4)
    assert np.array_equal(rgba[..., :3], rgb) and (rgba[..., 3] == 255).all()
    packed = imaging.from_pixels(pixels, np.dtype("u4"), None)
    assert np.array_equal(packed >> 24, np.full((21, 34), 255))
    palette = Image.fromarray(np.arange(21 * 34, dtype=np.uint8).reshape(21, 34) % 7)
    palette = palette.convert("P")
    file = io.BytesIO()
    palette.save(file, "PNG")
    assert imaging.decode(file.getvalue(), "png", 21, 34).shape == (21, 34, 3)
    bits = Image.fromarray(voxels("bool"))
    file = io.BytesIO()
    bits.save(file, "PNG")
    assert set(np.unique(imaging.decode(file.getvalue(), "png", 21, 34))) == {0, 255}


def test_jpeg():
    smooth = (np.add.outer(np.arange(21), np.arange(34)) * 4).astype(np.uint8)
    pixels = imaging.decode(saved(smooth, "JPEG", quality=95), "jpg", 21, 34)
    assert np.abs(pixels.astype(int) - smooth).max() < 6


@pytest.mark.parametrize(
    ("array", "dtype", "channels"),
    [
        (voxels("uint8", 3), "u1", None), (voxels("uint8", 4), "u1", 3), (voxels("uint8"), "u1", 2),
        (voxels("uint16"), "u1", None), (voxels("uint8", 4), "u8", None),
        (voxels("uint8", 3), "u2", 3), (voxels("uint8", 4), "f4", 4),
    ],
)  # fmt: skip
def test_pixels_that_do_not_fit(array, dtype, channels):
    pixels = imaging.decode(saved(array, "PNG"), "png", 21, 34)
    with pytest.raises(InvalidError, match="does not fit"):
        imaging.from_pixels(pixels, np.dtype(dtype), channels)


def test_damaged_and_foreign_files():
    good = saved(voxels("uint8"), "PNG")
    cases = [b"", b"x", good[:20], good[:-40], good[:60] + b"\0" * 40 + good[100:], b"GIF89a" * 9]
    for data in cases:
        for format in ("", "png", "tif"):
            with pytest.raises(InvalidError):
                imaging.decode(data, format, 21, 34)
    with pytest.raises(InvalidError):
        imaging.decode(good, "jpg", 21, 34)
    with pytest.raises(InvalidError, match="34 x 21"):
        imaging.decode(good, "png", 34, 21)
    rng = np.random.default_rng(1)
    for format in ("PNG", "TIFF", "BMP", "JPEG"):
        data = bytearray(saved(voxels("uint8"), format))
        for _ in range(300):
            broken = bytearray(data)
            for at in rng.integers(0, len(broken), 3):
                broken[at] = rng.integers(0, 256)
            try:
                pixels = imaging.decode(bytes(broken), "", 21, 34)
            except InvalidError:
                continue
            assert pixels.shape[:2] == (21, 34)


def test_a_header_that_promises_too_much_is_refused_unread():
    png = bytearray(saved(voxels("uint8"), "PNG"))
    png[16:24] = (30000).to_bytes(4, "big") * 2
    with pytest.raises(InvalidError):
        imaging.decode(bytes(png), "png", 21, 34)
    with pytest.raises(InvalidError, match="at most"):
        imaging.decode(bytes(png), "png", 2**20, 2**20)
