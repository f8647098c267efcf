"""Class folders, on disk and in archives: their layouts, the order of the pictures, the index and the split."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import error_of
from PIL import Image, features
from raw_files import colours, load, paths, png, put, refused, settings

from ddpm.datasets.image_folder import held_out
from ddpm.datasets.image_io import EXTENSIONS
from ddpm.datasets.index import Assignment, FoundFile, ImageIndex
from ddpm.datasets.prepare import prepare

# --- which pictures, in which order


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
        ("trainval", "my-test-1"),
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
    ("",): ([], 4, []),
    ("train",): ([], 4, []),
    ("train", "test"): ([], 8, []),
    ("photos/trn", "photos/tst", "photos/val"): ([], 8, ["photos/val"]),
    ("train", "test", ""): ([], 8, [" (pictures in no split)"]),
    ("train", "test/"): ([], 4, ["/test"]),
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
    ("train", "test/a"): ("train", "needs class folders"),
    ("train/", "test/a"): ("train", "needs class folders"),
    ("train/a", "training/a", "test/a"): ("", "are the same split"),
    ("train/a", "bus"): ("train", "may be a split, or a folder like bus"),
    ("x/a", "x/b", "y/a", "y/b"): ("x", "holds folders (a, b)"),
    ("train/x/a", "train/x/b", "train/y", "test/x", "test/y"): ("train/x", "holds folders (a, b)"),
    ("w", "w/train/a", "w/test/a"): ("w", "holds folders (test, train)"),
    ("train/train", "test/test"): ("train", "needs class folders"),
    ("train/a", "train/b", "test/test"): ("test", "needs class folders"),
    ("cat/train", "cat/test", "dog/train", "dog/test"): ("cat", "holds folders (test, train)"),
    ("train/cat", "test/cat", "test/cow"): ("test/cow", "is no class of"),
    ("train/cat", "test/cat/"): ("test", "holds no images"),
    ("cat", "dog/"): ("dog", "holds no images; add some, or remove the folder"),
    ("cat/", "dog/"): ("", "holds no images whose names end"),
    (): ("", "holds no pictures and no class folders"),
    ("train/", "test"): ("train", "needs pictures"),
    ("test",): ("test", "has no training split beside it"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folders", REFUSED)
def test_layout_is_refused(raw, tmp_path, kind, folders):
    path = put(raw, kind, [*members(*folders), ("readme.txt", b"hello")])
    error = error_of(load, "image_folder", folder=path.name)
    key, message = REFUSED[folders]
    assert (error.key.rstrip("/"), message in error.message) == (str(path / key), True)


WITHOUT_CLASSES = {
    # folders: (pictures of each split, what is named as left out), for label none
    ("",): ([3, 1], []),
    ("2019/05", "2020", "2020/a/b", ""): ([12, 4], []),
    ("cat", "dog/.hidden"): ([3, 1], []),
    ("photos/train/x/y", "photos/train", "photos/test"): ([8, 4], []),
    ("train/a", "test/b", "val/a", ""): ([4, 4], ["/val", " (pictures in no split)"]),
    ("train/train", "test/test"): ([4, 4], []),
    ("w", "w/train/a", "w/test"): ([4, 4], ["/w (pictures in no split)"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folders", WITHOUT_CLASSES)
def test_layout_without_classes(raw, tmp_path, capsys, kind, folders):
    counts, left_out = WITHOUT_CLASSES[folders]
    path = put(raw, kind, members(*folders))
    meta = prepare("image_folder", settings(folder=path.name, label="none"), tmp_path / "out")
    assert (meta["class_names"], list(meta["counts"].values())) == ([], counts)
    assert meta["made_with"]["label"] == "none"
    lines = [line for line in capsys.readouterr().out.splitlines() if ": left out: " in line]
    assert len(lines) == bool(left_out)
    assert all(name in lines[0] for name in left_out)


@pytest.mark.parametrize(("kind", "folders"), [("", [""]), (".zip", [""]), ("", ["b", "", "a", "b/c"])])
def test_pictures_without_classes_are_sorted_as_those_of_a_class(raw, kind, folders):
    path = put(raw, kind, reversed(members(*folders)))
    source = load("image_folder", folder=path.name, label="none" if len(folders) > 1 else None)
    train, test = ([str(picture.relative_to(path)) for picture in paths(split.images)] for split in source[:2])
    in_order = sorted((name for name, _ in members(*folders)), key=lambda name: (name.count("/"), name))
    assert (sorted(train + test), train) == (sorted(in_order), [name for name in in_order if name in train])
    assert not np.concatenate([source.train.labels, source.test.labels]).any()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("test/a", "val"), "has no training split beside it"),
        (("train/a", "bus"), "may be a split, or a folder like bus"),
        (("cat/", "dog/"), "holds no images whose names end"),
        (("train", "test/a/"), "holds no images whose names end"),
    ],
)
def test_layout_without_classes_is_refused(raw, folders, message):
    put(raw, "", [*members(*folders), ("readme.txt", b"hello")])
    assert message in refused(load, "image_folder", label="none")


def test_label_of_a_column_is_refused_for_folders(raw):
    put(raw, "", members("cat"))
    assert error_of(load, "image_folder", label="Male").key == "prepare_data.label"
    assert load("image_folder", labels="not_read.csv", label="none").class_names == []


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
    (raw / "linked" / "val").symlink_to(raw / "nowhere")
    assert error_of(load, "image_folder", folder="linked").key == str(raw / "linked" / "val")
    (raw / "linked" / "val").unlink()
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
