"""Decoding of pictures of all kinds, and their size."""

import struct
from functools import partial
from io import BytesIO
from zlib import compress, crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raw_files import refused

from ddpm.datasets import image_io
from ddpm.datasets.image_io import UPRIGHT, Decoding, Unreadable, decode, read_picture


def saved(picture: Image.Image, kind: str, **options) -> BytesIO:
    file = BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


# Four different pixels: dark, red / green, bright.
CORNERS = np.array([[[10, 10, 10], [250, 0, 0]], [[0, 200, 0], [240, 240, 240]]], np.uint8)
# The stored picture of each EXIF orientation, as a function of the upright one.
AS_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", AS_STORED)
def test_decode_applies_exif_orientation(orientation, kind):
    upright = np.kron(np.concatenate([CORNERS, CORNERS[:1]]), np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](upright)))
    found = decode(saved(stored, kind, exif=exif, **lossless))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= (12 if kind == "JPEG" else 0)


def test_upright_has_every_orientation():
    assert set(UPRIGHT) == set(AS_STORED) - {1}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"],
)
def test_decode_ignores_damaged_exif(exif):
    file = saved(Image.fromarray(CORNERS.repeat(8, 0).repeat(8, 1)), "JPEG", exif=exif)
    assert decode(file).shape == (16, 16, 3)


def test_decode_palette():
    picture = Image.fromarray(CORNERS).quantize(4)
    assert picture.mode == "P"
    np.testing.assert_array_equal(decode(saved(picture, "PNG")), CORNERS)
    gray = decode(saved(picture, "PNG"), Decoding("L"))
    np.testing.assert_array_equal(gray[..., 0], np.asarray(Image.fromarray(CORNERS).convert("L")))


def test_decode_transparent_is_black():
    red = Image.new("RGBA", (2, 1), (200, 100, 50, 0))
    red.putpixel((1, 0), (200, 100, 50, 255))
    for kind in ("PNG", "TIFF"):
        assert decode(saved(red, kind)).tolist() == [[[0, 0, 0], [200, 100, 50]]]
    half = Image.new("RGBA", (1, 1), (200, 100, 50, 128))
    assert np.abs(decode(saved(half, "PNG"))[0, 0] - np.array([100, 50, 25])).max() <= 1
    # A palette of which one colour, or each in part, is transparent.
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 100, 50, 9, 8, 7])
    palette.putpixel((1, 0), 1)
    assert decode(saved(palette, "PNG", transparency=0)).tolist() == [[[0, 0, 0], [9, 8, 7]]]
    assert decode(saved(palette, "GIF", transparency=1)).tolist() == [[[200, 100, 50], [0, 0, 0]]]
    found = decode(saved(palette, "PNG", transparency=bytes([128, 255])))
    assert np.abs(found[0, 0] - np.array([100, 50, 25])).max() <= 1
    # A colour of a picture without a palette.
    plain = Image.new("RGB", (2, 1), (1, 2, 3))
    plain.putpixel((1, 0), (9, 9, 9))
    assert decode(saved(plain, "PNG", transparency=(9, 9, 9))).tolist() == [[[1, 2, 3], [0, 0, 0]]]


def test_decode_gray_with_transparency():
    picture = Image.new("LA", (2, 1), (180, 0))
    picture.putpixel((1, 0), (180, 255))
    assert decode(saved(picture, "PNG")).tolist() == [[[0], [180]]]
    assert decode(saved(picture, "PNG"), Decoding("RGB")).tolist() == [[[0, 0, 0], [180, 180, 180]]]


def test_decode_cmyk():
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    jpeg = saved(inks, "JPEG", quality=95)
    # The marker, and by its custom inverted values: without inverting them back this would be cyan.
    assert b"Adobe" in jpeg.getvalue()
    assert np.abs(decode(jpeg) - np.array([255, 0, 0])).max() <= 3
    assert decode(saved(inks, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert decode(saved(Image.new("CMYK", (1, 1), (0, 0, 0, 128)), "TIFF")).tolist() == [[[127, 127, 127]]]


def png16(values: np.ndarray) -> BytesIO:
    """A PNG of 16 bits per channel, uint16 (H, W, C), which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    height, width, channels = values.shape
    head = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b""))


def tiff(values: np.ndarray, photometric: int = 2, order: str = "<", **tags: int) -> BytesIO:
    """An uncompressed TIFF of unsigned integers (H, W, C); `tags` sets others by their numbers, such as tag338."""
    height, width, channels = values.shape
    size = values.dtype.itemsize
    data = values.astype(f"{order}u{size}").tobytes()
    bits = struct.pack(f"{order}{channels}H", *[8 * size] * channels)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8 + len(data) if channels > 1 else 8 * size),
        (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)),
        *((int(tag[3:]), 3, 1, value) for tag, value in tags.items()),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        directory += struct.pack(f"{order}2HI" + ("H2x" if short else "I"), tag, kind, count, value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data) + len(bits))
    return BytesIO(head + data + bits + directory + bytes(4))


def ppm(values: np.ndarray, highest: int = 65535) -> BytesIO:
    return BytesIO(b"P6 %d %d %d\n" % (*values.shape[1::-1], highest) + values.astype(">u2").tobytes())


RANGE16 = np.arange(0, 65536, 65536 // 48, dtype=np.uint16)[:48].reshape(4, 4, 3)


@pytest.mark.parametrize("make", [png16, tiff, partial(tiff, order=">"), ppm])
def test_decode_16_bit_color(make, tmp_path):
    for values, highest in ((RANGE16, 65535), (RANGE16 >> 4, 4095), (RANGE16 >> 8, 255)):
        (tmp_path / "picture").write_bytes(make(values).getvalue())
        for file in (make(values), tmp_path / "picture"):
            np.testing.assert_array_equal(decode(file), np.rint(values * (255 / highest)))


ALPHA = np.uint16([0, 257 * 100, 65535, 65535])[None, :, None].repeat(4, 0)  # of each column
SEEN = ALPHA.astype(float) / 65535


@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize(
    ("make", "channels", "premultiplied"),
    [
        (png16, 1, False),
        (png16, 3, False),
        (tiff, 3, False),
        (partial(tiff, order=">", tag338=2), 3, False),
        (partial(tiff, tag338=1), 3, True),
    ],
)
def test_decode_16_bits_with_alpha(make, channels, premultiplied, bits):
    colors = RANGE16[..., :channels] >> (16 - bits)
    stored = np.rint(colors * SEEN).astype(np.uint16) if premultiplied else colors
    found = decode(make(np.concatenate([stored, ALPHA], 2)), Decoding(background=(255, 255, 255)))
    assert found.shape == colors.shape
    np.testing.assert_allclose(found, colors * (255 / (2**bits - 1)) * SEEN + 255 * (1 - SEEN), atol=1.5)


def test_decode_other_16_bit_layouts():
    gray = RANGE16[..., :1]
    np.testing.assert_array_equal(decode(tiff(gray, 0)), np.rint((65535 - gray) / 257.0))  # white is zero
    np.testing.assert_array_equal(decode(tiff(gray.astype(np.uint32) << 16, 1)), np.rint((gray / 65535.99) * 255))
    np.testing.assert_array_equal(decode(ppm(RANGE16 >> 4, 4095)), np.rint((RANGE16 >> 4) * (255 / 4095)))
    padded = np.concatenate([RANGE16, gray], 2)
    np.testing.assert_array_equal(decode(tiff(padded, tag338=0)), np.rint(RANGE16 / 257.0))
    inks = np.rint(padded / 257.0).astype(np.uint8)
    expected = Image.frombytes("CMYK", (4, 4), inks.tobytes()).convert("RGB")
    np.testing.assert_array_equal(decode(tiff(padded, 5)), np.asarray(expected))
    keyed = saved(Image.fromarray(gray[..., 0]), "PNG", transparency=int(gray[1, 2, 0]))
    assert np.flatnonzero(decode(keyed, Decoding(background=(1, 1, 1))) == 1).tolist() == [6]
    with pytest.raises(Unreadable, match="only 8 of its bits"):
        decode(tiff(RANGE16, tag284=2))  # a plane for each color


HALF = saved(Image.new("RGB", (99, 99)), "JPEG").getvalue()[:500]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", HALF])
def test_decode_no_picture(content, tmp_path):
    with pytest.raises(Unreadable) as error:
        decode(BytesIO(content))
    assert str(error.value)
    assert "0x" not in str(error.value)
    (tmp_path / "bad.png").write_bytes(content)
    message = refused(read_picture, tmp_path / "bad.png", "RGB")
    assert message == f"{tmp_path / 'bad.png'}: cannot be read as an image ({error.value}); repair or remove it"
    assert "No such file or directory" in refused(read_picture, tmp_path / "none.png", None)


# --- fitting


@pytest.mark.parametrize(
    ("channels", "background", "border"), [(1, (0, 0, 0), 0), (3, (0, 0, 0), 0), (3, (9, 5, 1), (9, 5, 1)), (1, (9, 9, 9), 9)]
)
def test_pad_centers_on_the_background(channels, background, border):
    image = np.full((3, 4, channels), 7, np.uint8)
    expected = np.broadcast_to(np.array(border, np.uint8), (8, 8, channels)).copy()
    expected[2:5, 2:6] = 7
    np.testing.assert_array_equal(image_io.pad(image, (8, 8), background), expected)
    message = "params.yaml: prepare_data.image_size: 8x3 is smaller than an image of 3x4"
    assert refused(image_io.pad, image, (8, 3)).startswith(message)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_scales_and_crops_center(channels):
    image = np.zeros((16, 48, channels), np.uint8)
    image[:, 16:32] = 200
    np.testing.assert_array_equal(image_io.resize(image, (16, 16)), np.full((16, 16, channels), 200))
    small = image_io.resize(image.transpose(1, 0, 2), (8, 8))
    assert (small.shape, small.dtype) == ((8, 8, channels), np.uint8)
    assert small[2:6].min() == 200
    assert image_io.resize(image[:, :16], (16, 16)).tolist() == image[:, :16].tolist()


def test_resize_is_antialiased():
    stripes = np.zeros((32, 32, 1), np.uint8)
    stripes[:, ::2] = 255
    inner = image_io.resize(stripes, (8, 8))[:, 2:-2]
    assert np.abs(inner.astype(int) - 128).max() < 16


@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_resize_between_all_sizes(height, width, size):
    assert image_io.resize(np.full((height, width, 3), 90, np.uint8), size).tolist() == np.full((*size, 3), 90).tolist()


def test_resize_to_a_rectangle_covers_it_and_crops_the_center():
    image = np.zeros((10, 40, 1), np.uint8)
    image[:, 10:30] = 200  # the part of 1 x 2
    assert image_io.resize(image, (20, 40))[:, 2:-2].min() > 150
    assert image_io.resize(image, (10, 20)).tolist() == image[:, 10:30].tolist()
    assert image_io.pad(image, (12, 40)).shape == (12, 40, 1)
