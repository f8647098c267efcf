"""Archives read in place: equal arrays to the unpacked folder, no name leads out, damage is named."""

import io
import os
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from raw_files import REAL, arrays, colours, contents, load, pack, png, real, refused, settings

from ddpm.core.files import printable
from ddpm.datasets import archives, index
from ddpm.datasets.archives import ARCHIVES, zip_members, zip_store
from ddpm.datasets.image_io import Unreadable
from ddpm.datasets.index import Picture
from ddpm.datasets.prepare import prepare

KINDS = list(ARCHIVES)


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    """All files below a folder, in an order that is neither sorted nor by class."""
    found = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    return sorted(found, key=lambda item: item[0][::-1])


@pytest.fixture
def folder(raw) -> Path:
    """Class folders "cat" and "dog", one of them with a folder inside."""
    colours(raw / "folder" / "dog", 7, first=100)
    colours(raw / "folder" / "dog" / "deep", 3, first=50)
    colours(raw / "folder" / "cat", 6)
    return raw / "folder"


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_archive_equals_unpacked_folder(raw, folder, tmp_path, kind):
    expected = prepare("image_folder", settings(folder="folder"), tmp_path / "expected")
    archive = pack(raw / f"archive{kind}", files_of(folder))
    if kind == ".zip":  # after a self-extracting program
        archive.write_bytes(b"#!/bin/sh\nexit\n" + archive.read_bytes())
    found = prepare("image_folder", settings(folder=f"archive{kind}"), tmp_path / "found", workers=2)
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")
    assert found["sha256"] == expected["sha256"]
    assert found["class_names"] == ["cat", "dog"]
    # Nothing was unpacked.
    assert not [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(folder)]


# --- what must not be read


GOOD = [(f"{name}/{i}.png", png(i)) for name in ("cat", "dog") for i in range(4)]


@pytest.mark.parametrize("kind", [".zip", ".tar"])
@pytest.mark.parametrize("name", ["../dog/9.png", "/dog/9.png", "dog/../../9.png", "C:/dog/9.png", "\\dog\\9.png", "cat/.."])
def test_names_leading_out_are_skipped_and_named(raw, tmp_path, capsys, kind, name):
    pack(raw / f"a{kind}", [*GOOD[:3], (name, png(9)), *GOOD[3:]])
    meta = prepare("image_folder", settings(folder=f"a{kind}"), tmp_path / "out")
    assert meta["counts"] == {"train": 6, "test": 2}
    assert max(images.max() for images in arrays(tmp_path / "out")[::2]) < 9
    said = capsys.readouterr().out
    assert (f"a{kind}: skipped: {printable(name)} (leads out of the archive)" in said) == name.endswith(".png")


def test_links_and_devices_are_skipped_and_named(raw, tmp_path, capsys):
    secret = raw / "secret.png"
    secret.write_bytes(png(77))
    links = [(tarfile.SYMTYPE, str(secret)), (tarfile.LNKTYPE, "cat/0.png"), (tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, "")]
    with tarfile.open(pack(raw / "a.tar", GOOD), "a") as file:
        for i, (kind, target) in enumerate(links):
            member = tarfile.TarInfo(f"cat/link{i}.png")
            member.type, member.linkname = kind, target
            file.addfile(member)
    assert prepare("image_folder", settings(folder="a.tar"), tmp_path / "out")["counts"] == {"train": 6, "test": 2}
    said = capsys.readouterr().out
    assert "skipped: cat/link0.png (no regular file), cat/link1.png (no regular file), cat/link2.png (no reg" in said
    assert "and 1 others" in said

    with zipfile.ZipFile(pack(raw / "a.zip", GOOD), "a") as file:
        link = zipfile.ZipInfo("cat/link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, str(secret))
    assert prepare("image_folder", settings(folder="a.zip"), tmp_path / "out")["counts"] == {"train": 6, "test": 2}
    assert "a.zip: skipped: cat/link.png (no regular file)" in capsys.readouterr().out


def test_zip_with_backslashes_between_folders(raw, tmp_path):
    pack(raw / "a.zip", [(name.replace("/", "\\"), data) for name, data in GOOD])
    assert prepare("image_folder", settings(folder="a.zip"), tmp_path / "out")["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize(("key", "value"), [("mtime", "inf"), ("mtime", "-inf"), ("mtime", "nan"), ("mtime", "1e300")])
def test_tar_with_an_impossible_time_is_read(raw, tmp_path, key, value):
    with tarfile.open(pack(raw / "a.tar", GOOD), "a") as file:
        member = tarfile.TarInfo("cat/late.png")
        member.size, member.pax_headers = len(png()), {key: value}
        file.addfile(member, io.BytesIO(png()))
    assert sum(prepare("image_folder", settings(folder="a.tar"), tmp_path / "out")["counts"].values()) == 9


@pytest.mark.parametrize("size", [-1536, -1, 2**63, 2**64 - 1, 10**30])
def test_tar_with_an_impossible_size_is_named(raw, size):
    with tarfile.open(pack(raw / "a.tar", GOOD), "a") as file:
        file.addfile(member := tarfile.TarInfo("cat/late.png"))
        member.pax_headers = {"size": str(size)}
        file.addfile(member)
        file.addfile(tarfile.TarInfo("cat/later.png"))
    assert refused(load, "image_folder", folder="a.tar").startswith(f"{raw / 'a.tar'}: is damaged, or no TAR archive (")


def zip64(fields: int) -> bytes:
    """Returns the extra field of a directory entry with sizes and an offset of 2^64-1."""
    return struct.pack("<2H", 1, 8 * fields) + b"\xff" * 8 * fields


@pytest.mark.parametrize(("at", "fields"), [(24, 1), (20, 2), (42, 1), (20, 3)])
def test_zip_with_an_impossible_size_is_named(raw, tmp_path, at, fields):
    entry = zipfile.ZipInfo("dog/big.png")
    with zipfile.ZipFile(pack(raw / "a.zip", GOOD), "a") as file:
        file.writestr(entry, png())
        entry.extra = zip64(fields)  # of the directory alone
    for place in {20: (20, 24, 42)[:fields]}.get(at, (at,)):
        set_bit(raw / "a.zip", b"dog/big.png", place, b"\xff" * 4)
    assert f"{raw / 'a.zip'}" in refused(prepare, "image_folder", settings(folder="a.zip"), tmp_path / "out")


def test_later_of_two_members_with_one_name_counts(raw, tmp_path):
    for kind in (".tar", ".tar.gz"):
        pack(raw / f"a{kind}", [("train/cat/0.png", png(1)), ("test/cat/0.png", png(3)), ("./train/cat/0.png", png(2))])
        prepare("image_folder", settings(folder=f"a{kind}"), tmp_path / "out")
        assert arrays(tmp_path / "out")[0].tolist() == np.full((1, 2, 2, 1), 2).tolist()


def set_bit(archive: Path, name: bytes, offset: int, value: bytes) -> None:
    """Overwrite bytes of a member's directory entry in a ZIP archive."""
    data = bytearray(archive.read_bytes())
    at = data.rindex(name) - 46 + offset
    assert data[at - offset : at - offset + 4] == b"PK\1\2"
    data[at : at + len(value)] = value
    archive.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (8, b"\1\0", "it is encrypted"),
        (10, b"\x0c\0", "it is compressed by method 12; only 8 (deflate) can be read"),
        (16, b"\0\0\0\0", "its archive is damaged: Bad CRC-32"),
        (24, struct.pack("<I", 1 << 29), "its 536,870,912 bytes exceed the limit of 268,435,456"),
        (24, b"\1\0\0\0", "its archive is damaged: Bad CRC-32"),
        (20, b"\1\0\0\0", "its archive is damaged: "),
        (42, b"\xff\xff\xff\x00", "its archive is damaged: "),
    ],
)
def test_zip_member_unreadable_is_named_and_can_be_left_out(raw, tmp_path, offset, value, reason):
    pack(raw / "a.zip", GOOD)
    set_bit(raw / "a.zip", b"dog/2.png", offset, value)
    message = refused(prepare, "image_folder", settings(folder="a.zip"), tmp_path / "out")
    assert message.startswith(f"{raw / 'a.zip'}/dog/2.png: cannot be read as an image ({reason}")
    meta = prepare("image_folder", settings(folder="a.zip", skip_bad=True), tmp_path / "out")
    assert sum(meta["counts"].values()) == 7


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_members_above_the_size_limit_are_not_read(raw, tmp_path, kind, monkeypatch):
    pack(raw / f"a{kind}", [*GOOD, ("dog/big.png", png() + bytes(5000))])
    monkeypatch.setattr(index, "MAX_BYTES", 4000)
    message = refused(prepare, "image_folder", settings(folder=f"a{kind}"), tmp_path / "out")
    assert "dog/big.png: cannot be read as an image (its 5,0" in message
    assert "bytes exceed the limit of 4,000" in message


def test_zip_bomb_is_not_inflated_beyond_its_listed_size(raw, tmp_path):
    pack(raw / "a.zip", [*GOOD, ("dog/bomb.png", bytes(30 << 20))])
    set_bit(raw / "a.zip", b"dog/bomb.png", 24, struct.pack("<I", 1000))
    message = refused(prepare, "image_folder", settings(folder="a.zip"), tmp_path / "out")
    assert "dog/bomb.png: cannot be read as an image (its archive is damaged: Bad CRC-32" in message
    member = next(member for member, _ in zip_members(raw / "a.zip") if member.name == "dog/bomb.png")
    ((_, load_bomb),) = zip_store(raw / "a.zip").fetch([Picture(0, 0, 0, *member)])
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable):
            load_bomb()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# --- damage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.02, 0.6, 0.97])
def test_archive_cut_off_is_named_before_the_work(raw, tmp_path, kind, share):
    archive = pack(raw / f"a{kind}", [(name, data + os.urandom(3000)) for name, data in GOOD])
    data = archive.read_bytes().rstrip(b"\0") if kind == ".tar" else archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    message = refused(prepare, "image_folder", settings(folder=archive.name), tmp_path / "out")
    assert message.startswith(f"{archive}: is damaged, or no {'ZIP' if kind == '.zip' else 'TAR'} archive (")
    assert message.endswith("; replace it")
    assert not (tmp_path / "out").exists()


# All but TAR, which has no checksum of what is in it; and the checksum of GZIP itself.
@pytest.mark.parametrize(("kind", "wrong"), [*((kind, 600) for kind in KINDS if kind != ".tar"), (".tar.gz", -6)])
def test_archive_with_wrong_bytes_is_named(raw, tmp_path, kind, wrong):
    archive = pack(raw / f"a{kind}", [(name, data + os.urandom(3000)) for name, data in GOOD])
    data = bytearray(archive.read_bytes())
    for i in [wrong] if wrong < 0 else range(len(data) // 2, len(data) // 2 + wrong):
        data[i] ^= 0x5A
    archive.write_bytes(data)
    message = refused(prepare, "image_folder", settings(folder=archive.name), tmp_path / "out")
    if kind == ".zip":
        assert f"{archive}/" in message
        assert "its archive is damaged" in message
    else:
        assert message.startswith(f"{archive}: is damaged, or no TAR archive (")


def test_tar_with_a_wrong_header_is_named(raw):
    """Where tarfile itself sees the end of the archive, and nothing wrong."""
    archive = pack(raw / "a.tar", GOOD)
    data = bytearray(archive.read_bytes())
    data[data.index(b"dog/1.png") + 110] ^= 1  # of the owner's number, which the header's checksum covers
    archive.write_bytes(data)
    with tarfile.open(archive) as file:
        assert len(file.getnames()) == 5
    message = refused(load, "image_folder", folder="a.tar")
    assert message.startswith(f"{archive}: is damaged, or no TAR archive (it ends too early: ")


def test_compressed_tar_changed_while_read_is_named(raw, tmp_path, monkeypatch):
    archive = pack(raw / "a.tar.gz", GOOD)
    source = load("image_folder", folder="a.tar.gz")
    archive.write_bytes(archive.read_bytes()[:60])
    assert refused(source.train.images.__getitem__, 0).startswith(f"{archive}: is damaged (")


def test_tar_listing_shows_progress(raw, capsys, monkeypatch):
    monkeypatch.setattr(archives, "MEGABYTE", 1 << 10)
    archive = pack(raw / "a.tar.gz", [(name, os.urandom(5000)) for name, _ in GOOD])
    list(ARCHIVES[".tar.gz"].members(archive))
    size = archive.stat().st_size // 1024 + 1
    assert f"listing: {size}/{size} MB (100%)" in capsys.readouterr().err


# --- real ones, where they are

IMAGENET = ("imagenet_sample.zip", {"image_size": 128, "resize_mode": "resize", "channels": "rgb"}, 900, 100)
CIFAR10 = ("cifar10_jpeg.tar.xz", {}, 50_000, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fitted", "train", "test"), [pytest.param(*row, marks=real(row[0])) for row in (IMAGENET, CIFAR10)]
)
def test_real_archive_equals_its_folder(raw, tmp_path, name, fitted, train, test):
    (raw / name).symlink_to(Path(REAL) / name)
    shutil.unpack_archive(raw / name, raw / "folder", **({} if name.endswith(".zip") else {"filter": "data"}))
    for folder in (name, "folder"):
        meta = prepare("image_folder", settings(folder=folder, **fitted), tmp_path / f"of {folder}", workers=2)
        assert meta["counts"] == {"train": train, "test": test}
    assert contents(tmp_path / f"of {name}") == contents(tmp_path / "of folder")
