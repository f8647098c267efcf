"""Decoding of pictures, the order of folders, the index and the split."""

import os
import socket
import struct
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from conftest import error_of
from PIL import Image, features
from raw_files import colours, enter, load, paths, png, put, refused, settings

from ddpm.datasets.image_folder import held_out
from ddpm.datasets.image_io import EXTENSIONS, UPRIGHT, Decoding, Unreadable, decode, read_picture
from ddpm.datasets.index import Assignment, FoundFile, ImageIndex
from ddpm.datasets.prepare import prepare


def saved(picture: Image.Image, kind: str, **options) -> BytesIO:
    file = BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


# --- decoding

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


# --- which pictures, in which order


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def test_image_folder_order(raw):
    expected = ["a/9.png", "a/A/x.PNG", "b/10.png", "b/2.png", "b/Z.png", "b/é.png", "b/a/1.png", "b/a/c/1.png", "b/a b/1.png"]
    expected.append("b/z/0.png")
    for part in ("train", "test"):
        for name in sorted(expected, key=lambda name: name[::-1]):
            colours((raw / "pictures" / part / name).parent, 0)
            Image.new("L", (2, 2)).save(raw / "pictures" / part / name)
    source = load("image_folder")
    for part, split in (("train", source.train), ("test", source.test)):
        assert paths(split.images) == [raw / "pictures" / part / name for name in expected]
        assert split.labels.tolist() == [0, 0] + [1] * 8
    # As walking through sorted folders has it.
    walked = []
    for parent, folders, files in os.walk(raw / "pictures" / "train" / "b"):
        folders.sort()
        walked += [os.path.join(parent, file) for file in sorted(files)]
    assert [str(path) for path in paths(source.train.images)[2:]] == walked


def test_image_folder_ignores_other_files(raw, capsys):
    colours(raw / "pictures" / "cat", 4)
    (raw / "pictures" / "cat" / "._00.png").write_bytes(b"what macOS lays beside a file")
    (raw / "pictures" / "cat" / "notes.txt").write_text("no picture")
    colours(raw / "elsewhere", 1)
    (raw / "pictures" / "cat" / "link").symlink_to(raw / "elsewhere", target_is_directory=True)
    (raw / "pictures" / "cat" / "folder.png").symlink_to(raw / "elsewhere", target_is_directory=True)
    for name in ("a.heic", "b.HEIC", "c", ".DS_Store"):
        (raw / "pictures" / "cat" / name).write_bytes(b"of another kind")
    source = load("image_folder")
    assert source.class_names == ["cat"]
    assert len(source.train.images) + len(source.test.images) == 4
    (line,) = capsys.readouterr().out.splitlines()
    assert "pictures: 4 left out, since their names do not end as those of pictures: " in line
    assert {"2 .heic (cat/", "1 without an ending (cat/c)", "1 .txt (cat/notes.txt)"} <= {
        part.replace("a.heic)", "").replace("b.HEIC)", "") for part in line.partition("of pictures: ")[2].split(", ")
    }


# --- layouts, in folders as in archives

KINDS = ["", ".zip", ".tar.gz"]  # a folder is none of ARCHIVES


def members(*folders: str, pictures: int = 4) -> list[tuple[str, bytes]]:
    """Pictures in each of the folders; one whose name ends with "/" stays empty."""
    files = [(f"{folder}/{i}.png".lstrip("/"), png(i)) for folder in folders if not folder.endswith("/") for i in range(pictures)]
    return [*((folder, b"") for folder in folders if folder.endswith("/")), *files]


@pytest.mark.parametrize("wrapper", ["", "photos/", "photos/inner/"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN", "valid"),
        ("trainset", "Val2017"),
        ("trn", "tst"),
        ("train_images", "dev"),
        ("TrainData", "eval"),
        ("my-train-1", "my-validate-1"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_layout_spellings_of_splits(raw, kind, wrapper, train, test):
    files = [*members(*(f"{wrapper}{train}/{name}" for name in ("a", "b", "a/deep")), pictures=3)]
    files += [*members(f"{wrapper}{test}/a", f"{wrapper}{test}/b", pictures=2), (f"{wrapper}notes.txt", b"no picture")]
    path = put(raw, kind, files)
    source = load("image_folder", folder=path.name)
    assert list(source.class_names) == ["a", "b"]
    assert np.bincount(source.train.labels).tolist() == [6, 3]
    assert np.bincount(source.test.labels).tolist() == [2, 2]
    assert all(path / wrapper / train in picture.parents for picture in paths(source.train.images))


LAYOUTS = {
    # folders: (classes, pictures, what is named as left out)
    ("cat", "dog"): (["cat", "dog"], 8, []),
    ("photos/cat", "photos/dog"): (["cat", "dog"], 8, []),
    ("a/b/c/cat", "a/b/c/dog", "a/.git/x", "__MACOSX/a/b/c/cat"): (["cat", "dog"], 8, []),
    ("cat",): (["cat"], 4, []),
    ("train/a", "train/b"): (["a", "b"], 8, []),
    ("train/a", "test/a", "val/a", "unlabelled"): (["a"], 8, ["/unlabelled", "/val"]),
    ("train/a", "train", "test/a", "test"): (["a"], 8, ["/train (pictures", "/test (pictures"]),
    ("train/a", "test/"): (["a"], 4, ["/test"]),
    ("train/a", "test"): (["a"], 4, ["/test"]),
    ("train/a", "test/a", "eval/a", "dev/a"): (["a"], 8, ["/dev", "/eval"]),
    ("cat", "dog", ""): (["cat", "dog"], 8, [" (pictures in no class folder)"]),
    ("train", "bus", "car/images"): (["bus", "car", "train"], 12, []),
    ("valid", "invalid"): (["invalid", "valid"], 8, []),
    ("cat", "cat/.ipynb_checkpoints", "cat/__MACOSX", ".ipynb_checkpoints"): (["cat"], 4, []),
    ("none", "all", "12", "7", "Cat", "cat", "null", "été", "-1"): (
        ["-1", "12", "7", "Cat", "all", "cat", "none", "null", "été"], 36, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folders", LAYOUTS)
def test_layout_is_read(raw, tmp_path, capsys, kind, folders):
    class_names, count, left_out = LAYOUTS[folders]
    path = put(raw, kind, members(*folders))
    meta = prepare("image_folder", settings(folder=path.name), tmp_path / "out")
    assert meta["class_names"] == class_names
    assert sum(meta["counts"].values()) == count
    lines = [line for line in capsys.readouterr().out.splitlines() if ": left out: " in line]
    assert len(lines) == bool(left_out)
    assert all(name in lines[0] for name in left_out)


REFUSED = {
    # folders: (the key below the folder, a part of the message)
    ("test/a", "val/a"): ("test", "has no training split beside it"),
    ("train", "test"): ("train", "needs class folders"),
    ("train", "test/a"): ("train", "needs class folders"),
    ("train/", "test/a"): ("train", "needs class folders"),
    ("train/a", "training/a", "test/a"): ("", "are the same split"),
    ("train/a", "bus"): ("train", "may be a split or a class beside bus"),
    ("x/a", "x/b", "y/a", "y/b"): ("x", "holds only folders (a, b)"),
    ("train/x/a", "train/x/b", "train/y", "test/x", "test/y"): ("train/x", "holds only folders (a, b)"),
    ("cat/train", "cat/test", "dog/train", "dog/test"): ("cat", "holds only folders (test, train)"),
    ("train/cat", "test/cat", "test/cow"): ("test/cow", "is no class of"),
    ("train/cat", "test/cat/"): ("test", "holds no images"),
    ("cat", "dog/"): ("dog", "holds no images; add some, or remove the folder"),
    ("cat/", "dog/"): ("", "holds no images whose names end"),
    ("",): ("", "holds no class folders"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folders", REFUSED)
def test_layout_is_refused(raw, tmp_path, kind, folders):
    path = put(raw, kind, [*members(*folders), ("readme.txt", b"hello")])
    error = error_of(load, "image_folder", folder=path.name)
    key, message = REFUSED[folders]
    assert (error.key.rstrip("/"), message in error.message) == (str(path / key), True)


def test_layout_with_one_picture_in_a_class(raw):
    put(raw, "", [*members("cat", pictures=1), *members("dog")])
    assert "'cat' has only one image" in refused(load, "image_folder")


def test_class_without_a_name_is_refused(raw, tmp_path):
    put(raw, "", members("cat", " "))
    assert "the class ' ' has no name" in refused(prepare, "image_folder", settings(), tmp_path)


def test_layout_of_links_to_folders(raw):
    put(raw, "", members("elsewhere/1/a", "elsewhere/1/b", "elsewhere/2/b"))
    for name, target in {"train": "1", "test": "2", "test2/a": "1/a"}.items():
        (raw / "linked" / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / "linked" / name).symlink_to(raw / "pictures" / "elsewhere" / target, target_is_directory=True)
    (raw / "linked" / "gone").symlink_to(raw / "nowhere")
    assert "are the same split" in refused(load, "image_folder", folder="linked")
    (raw / "linked" / "test2" / "a").rename(raw / "pictures" / "elsewhere" / "2" / "a")
    (raw / "linked" / "test2").rmdir()
    source = load("image_folder", folder="linked")
    assert (source.class_names, len(source.train.images), len(source.test.images)) == (["a", "b"], 8, 8)
    (raw / "loop" / "x").mkdir(parents=True)
    (raw / "loop" / "x" / "x").symlink_to(raw / "loop")
    assert error_of(load, "image_folder", folder="loop").key.startswith(str(raw / "loop"))


# --- names


def test_image_folder_names_of_any_bytes(raw, tmp_path):
    colours(raw / "pictures" / "cat", 4)
    strange = os.fsencode(raw / "pictures" / "cat") + b"/\xff\n.png"
    os.rename(raw / "pictures" / "cat" / "00.png", strange)
    assert prepare("image_folder", settings(), tmp_path / "out")["counts"] == {"train": 3, "test": 1}
    with open(strange, "wb") as file:
        file.write(b"no picture")
    assert r"/cat/\udcff\n.png: cannot be read as an image" in refused(prepare, "image_folder", settings(), tmp_path / "out")


def test_image_folder_without_permission(raw):
    colours(raw / "pictures" / "cat", 2)
    (raw / "pictures" / "cat" / "deep").mkdir(mode=0)
    try:
        if os.access(raw / "pictures" / "cat" / "deep", os.R_OK):
            pytest.skip("this user may read everything")
        assert "cat/deep/: cannot be read (Permission denied)" in refused(load, "image_folder")
    finally:
        (raw / "pictures" / "cat" / "deep").chmod(0o700)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, _socket, lambda path: path.symlink_to("/dev/zero")])
def test_image_folder_with_a_special_file(raw, tmp_path, monkeypatch, make):
    colours(raw / "pictures" / "cat", 4)
    monkeypatch.chdir(raw / "pictures" / "cat")  # the path of a socket must be short
    make(Path("a.png"))
    assert "cat/a.png: cannot be read as an image (it is no regular file)" in refused(
        prepare, "image_folder", settings(), tmp_path
    )
    assert sum(prepare("image_folder", settings(skip_bad=True), tmp_path)["counts"].values()) == 4


def test_image_folder_file_of_another_kind(raw):
    (raw / "pictures.rar").write_bytes(b"Rar!")
    message = refused(load, "image_folder", folder="pictures.rar")
    assert message.startswith(f"{raw / 'pictures.rar'}: is neither a folder nor an archive (.zip, .tar, .tar.gz")


def test_image_folder_reads_every_format_that_pillow_writes(raw, tmp_path):
    written = set()
    (raw / "pictures" / "cat").mkdir(parents=True)
    for ending in EXTENSIONS:
        with suppress(KeyError, ValueError, OSError):  # Pillow writes no such format, or not in color
            Image.new("RGB", (32, 32), (200, 40, 40)).save(raw / "pictures" / "cat" / f"{ending[1:]}{ending.swapcase()}")
            written.add(ending)
    usual = {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".tga", ".ico"}
    assert usual | ({".avif"} if features.check("avif") else set()) <= written
    # Pillow makes every ICNS 1,024 pixels wide.
    meta = prepare("image_folder", settings(image_size=32, resize_mode="resize", channels="rgb"), tmp_path / "out")
    assert sum(meta["counts"].values()) == len(written)
    assert meta["mean"] == pytest.approx([200 / 255, 40 / 255, 40 / 255], abs=0.02)


# --- the index


def test_index_keeps_the_last_of_one_name_and_reports_missing_names():
    files = [FoundFile("b", 1, 10, 5), FoundFile("a", 2, 20, 6), FoundFile("b", 3, 30, 7), FoundFile("unassigned", 4, 1, 1)]
    index = ImageIndex()
    index.add(files)
    assert index.assign([Assignment("c", 0, 0, b"")]) == "c"
    assert index.assign([Assignment("a", 1, 4, b"z"), Assignment("b", 1, 3, b"y")]) is None
    assert index.counts == (0, 2)
    assert [picture[:5] for picture in index.pictures()] == [(1, 0, 3, "b", 3), (1, 1, 4, "a", 2)]
    assert [picture.name for picture in index.pictures(by_offset=True)] == ["a", "b"]
    assert index.labels(1).tolist() == [3, 4]
    assert index.labels(0).shape == (0,)


# --- the split


def test_held_out_is_stratified_and_reproducible():
    labels = np.repeat([0, 2, 7], [10, 20, 30])
    mask = held_out(labels, 0.3, list("abcdefgh"), Path("x"), "")
    assert np.bincount(labels[mask]).tolist() == [3, 0, 6, 0, 0, 0, 0, 9]
    # Another split would make recorded numbers incomparable.
    assert np.flatnonzero(mask).tolist() == [0, 3, 5, 11, 14, 16, 17, 22, 28, 30, 33, 45, 47, 48, 49, 52, 54, 59]
    message = refused(held_out, np.array([0, 0, 1]), 0.5, ["cat", "dog"], Path("folder"), "add some")
    assert message.startswith("folder: the class 'dog' has only one image")
    assert message.endswith("; add some")
