"""Data sets in their layouts, damaged files, resizing, and the prepared arrays."""

import hashlib
import json
import re
from itertools import product
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from raw_files import CIFAR_ROWS, IDX_ARRAYS, REAL, idx, load, paths, put_idx_files, real, refused, settings, write_cifar10
from sklearn.datasets import load_digits

from ddpm.core.scratch import scratch_root
from ddpm.data.prepared import open_prepared
from ddpm.datasets.idx import IDX_FILES, find_idx_folder
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import OPTIONAL_SETTINGS, raw_root
from ddpm.datasets.settings import PrepareData
from ddpm.features.pretrained import weights_folder

CPU = torch.device("cpu")


@pytest.fixture(
    params=[URLError("no route to host"), RuntimeError("File not found or\ncorrupted.")], ids=["URLError", "RuntimeError"]
)
def offline(request, monkeypatch):
    """torchvision's downloads fail, as they do without a network or with a broken transfer."""

    def fail(*arguments, **options):
        raise request.param

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)


# --- where raw files are


@pytest.mark.parametrize(
    ("variable", "folder", "default"),
    [
        ("DDPM_DATA_ROOT", raw_root, "data/raw"),
        ("DDPM_SCRATCH", scratch_root, ".scratch"),
        ("DDPM_WEIGHTS_ROOT", weights_folder, "cache/hub/checkpoints"),
    ],
)
def test_folders_are_relative_to_the_main_checkout(monkeypatch, variable, folder, default):
    monkeypatch.setenv("TORCH_HOME", "cache")
    for name, value in (("HOME", "/home/x"), ("DVC_ROOT", "/checkout")):
        monkeypatch.setenv(name, value)
    given = {
        "/some/where": "/some/where",
        "../here": "/checkout/../here",
        "~/here": "/home/x/here",
        "~no one/x": "/checkout/~no one/x",
    }
    for value, expected in {**given, "": f"/checkout/{default}"}.items():
        monkeypatch.setenv(variable, value)
        assert folder() == Path(expected)
    monkeypatch.delenv(variable)
    monkeypatch.delenv("DVC_ROOT")
    assert folder() == Path(default)


# --- digits


def test_digits_split_is_fixed():
    source, bunch = load("digits"), load_digits()
    assert (source.train.images.shape, source.test.images.shape) == ((1297, 8, 8, 1), (500, 8, 8, 1))
    assert source.train.images.dtype == np.uint8
    assert source.train.labels.dtype == np.int64
    assert source.class_names == [str(digit) for digit in range(10)]
    together = np.concatenate([source.train.images, source.test.images])
    assert (together.min(), together.max()) == (0, 255)

    def rows(images, labels):
        return sorted(zip(map(bytes, images.reshape(len(images), -1)), labels.tolist(), strict=True))

    whole = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    # Every image is in one of the splits, and in no second one.
    assert rows(together, np.concatenate([source.train.labels, source.test.labels])) == rows(whole, bunch.target)
    share = np.bincount(source.test.labels) / np.bincount(bunch.target)
    np.testing.assert_allclose(share, 500 / 1797, atol=0.004)
    # Other test images would make recorded numbers incomparable.
    assert hashlib.sha256(source.test.images.tobytes()).hexdigest()[:16] == "e35c3344aa270ca4"


# --- MNIST and its like: idx files


def dotted(file: Path) -> Path:
    return file.with_name(file.name.replace("-idx", ".idx"))


# Where Kaggle has a file.
PLACES = {
    "usual": lambda file: file,
    "dotted": dotted,
    "in a folder": lambda file: file.parent / file.name.removesuffix(".gz") / file.name,
    "dotted in a folder": lambda file: file.parent / file.name.removesuffix(".gz") / dotted(file).name,
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("place", "name"), [*product(["mnist"], PLACES), ("MNIST/raw", "usual"), ("mnist/MNIST/raw", "usual")])
def test_idx_files_in_every_layout(raw, place, name, zipped):
    put_idx_files(raw / place, zipped)
    for file in sorted((raw / place).iterdir()):
        content, target = file.read_bytes(), PLACES[name](file)
        file.unlink()
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    source = load("mnist")
    for split, found in (("train", source.train), ("test", source.test)):
        np.testing.assert_array_equal(found.images, IDX_ARRAYS[split, "images"][..., None])
        np.testing.assert_array_equal(found.labels, IDX_ARRAYS[split, "labels"])
        assert found.labels.dtype == np.int64


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw"])
def test_idx_files_in_the_raw_folder_itself(raw, monkeypatch, place):
    put_idx_files(raw / place, zipped=True)
    monkeypatch.setenv("DDPM_DATA_ROOT", str(raw / place))
    assert len(load("mnist").train.images) == 7
    assert find_idx_folder(raw_root(), "fashion_mnist", "FashionMNIST") is None


def test_idx_folders_of_other_data_sets(raw, offline):
    put_idx_files(raw / "mnist")
    put_idx_files(raw / "MNIST" / "raw")
    put_idx_files(raw)  # of no one knows which
    for name in ("fashion_mnist", "kmnist"):
        assert refused(load, name).startswith(f"{name}: cannot be downloaded")
    # A folder inside MNIST's is not MNIST for that.
    assert find_idx_folder(raw / "mnist" / "other", "mnist", "MNIST") is None
    put_idx_files(raw / "mnist" / "kmnist")
    assert find_idx_folder(raw / "mnist" / "kmnist", "mnist", "MNIST") is None


def test_fashion_mnist_files_and_names(raw):
    put_idx_files(raw / "FashionMNIST" / "raw")
    source = load("fashion_mnist")
    assert source.class_names[9] == "Ankle boot"
    assert len(source.class_names) == 10


TRAIN_IMAGES, TRAIN_LABELS = idx(IDX_ARRAYS["train", "images"]), idx(IDX_ARRAYS["train", "labels"])
BAD_IDX = {
    "truncated data": ({"train_images": TRAIN_IMAGES[:-1]}, "train-images.* holds 209 bytes of data, but its header says 210"),
    "too much data": ({"train_images": TRAIN_IMAGES + b"x"}, "train-images.* holds 211 bytes"),
    "truncated header": ({"test_labels": b"\0\0\x08"}, "t10k-labels.* is no idx file of 1 dimensions"),
    "no bytes": ({"test_images": b""}, "t10k-images.* is no idx file of 3 dimensions"),
    "wrong magic": ({"train_images": b"\x89PNG" + TRAIN_IMAGES[4:]}, "train-images.* is no idx file"),
    "labels as images": ({"train_images": TRAIN_LABELS}, "train-images.* is no idx file of 3 dimensions"),
    "images as labels": ({"train_labels": TRAIN_IMAGES}, "train-labels.* is no idx file of 1 dimensions"),
    "web page": ({"test_labels": b"<html>404</html>"}, "t10k-labels.* is no idx file"),
    "wrong count": (
        {"train_labels": idx(np.zeros(6, np.uint8))},
        "train-labels.* has 6 labels for the 7 images of .*train-images",
    ),
    "no images": ({"test_images": idx(np.zeros((0, 6, 5), np.uint8))}, "t10k-images.* holds no items: replace it"),
    "other size": ({"test_images": idx(IDX_ARRAYS["test", "images"][:, :-1])}, "t10k-images-idx3-ubyte 5x5; replace the wrong"),
    "other classes": ({"test_labels": idx(np.array([1, 2, 26], np.uint8))}, "t10k-labels.* label 26, but there are 10 classes"),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", BAD_IDX)
def test_idx_file_wrong(raw, name, zipped):
    changes, expected = BAD_IDX[name]
    put_idx_files(raw / "mnist", zipped, **changes)
    message = refused(load, "mnist")
    assert re.search(expected, message)
    assert message.startswith(str(raw / "mnist"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-12],
        lambda b: b[:20],
        lambda b: b"",
        lambda b: TRAIN_IMAGES,
        lambda b: b[:30] + b"\xff" * 40 + b[70:],
        lambda b: b[:10] + b"\xff" * 20 + b[30:],
    ],
)
def test_idx_gz_damaged(raw, damage):
    put_idx_files(raw / "mnist", zipped=True)
    file = raw / "mnist" / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    message = refused(load, "mnist")
    assert message.startswith(f"{file}: ")
    assert "replace it" in message


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10"])
def test_download_without_network(raw, offline, capsys, name):
    message = refused(load, name)
    assert message.startswith(f"{name}: cannot be downloaded (")
    files = ["cifar-10-python.tar.gz"] if name == "cifar10" else list(IDX_FILES.values())
    assert all(file in message for file in files)
    assert f"into {raw / name}" in message
    assert "DDPM_DATA_ROOT" in message
    assert message.endswith("`-S dataset=digits` needs no files")
    assert capsys.readouterr().err == ""


def test_download_with_three_of_four_files(raw, offline):
    put_idx_files(raw / "mnist")
    (raw / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte" in refused(load, "mnist")


# --- CIFAR-10


@pytest.fixture(params=["folder", "archive"])
def put_cifar(raw, tmp_path, monkeypatch, request):
    """Puts two images per file in the published format into a folder, as they are or in an archive."""

    def put(place: str, published: bool = True) -> Path:
        return write_cifar10(raw / place, monkeypatch, request.param == "archive", published)

    return put


def test_cifar10_wrong_checksum(raw, put_cifar):
    path = put_cifar(".", published=False)
    message = refused(load, "cifar10")
    assert message.startswith(f"{path}: damaged (data_batch_1 is not the published file)")
    assert message.endswith(f"put cifar-10-python.tar.gz into {raw}")
    if path.is_dir():
        (path / "data_batch_1").unlink()
    else:
        path.write_bytes(path.read_bytes()[:-200])
    assert refused(load, "cifar10").startswith(f"{path}: damaged (")


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_cifar10_images_and_labels(offline, put_cifar, place):
    put_cifar(place)
    source = load("cifar10")
    assert (source.train.images.shape, source.train.images.dtype) == ((10, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(source.test.images.transpose(0, 3, 1, 2), CIFAR_ROWS[10:].reshape(2, 3, 32, 32))
    assert source.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert source.class_names[3] == "class 3"


# --- folders of pictures


def picture(path: Path, size=(6, 6), mode="RGB", colour=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = colour if colour is not None else (10 if mode == "L" else (200, 100, 50))
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def pictures(raw) -> Path:
    """Class folders "cat" (8 pictures) and "dog" (12), below the raw folder."""
    for name, count in (("dog", 12), ("cat", 8)):
        for i in range(count):
            picture(raw / "pictures" / name / f"{i:02}.png", colour=(i, count, 0))
    return raw / "pictures"


def test_image_folder_split_is_stratified_and_fixed(pictures):
    source = load("image_folder")
    assert source.class_names == ["cat", "dog"]
    assert (len(source.train.images), len(source.test.images)) == (15, 5)
    assert np.bincount(source.test.labels).tolist() == [2, 3]
    train, test = set(paths(source.train.images)), set(paths(source.test.images))
    assert not train & test
    assert len(train | test) == 20
    for split in source[:2]:
        assert [path.parent.name for path in paths(split.images)] == [source.class_names[label] for label in split.labels]
    assert paths(load("image_folder").test.images) == paths(source.test.images)
    image = source.train.images[paths(source.train.images).index(pictures / "dog" / "03.png")]
    np.testing.assert_array_equal(image, np.full((6, 6, 3), [3, 12, 0], np.uint8), strict=True)


def test_image_folder_missing(raw):
    assert refused(load, "image_folder").startswith(f"{raw / 'pictures'}: no such folder; put images or class folders")


def test_prepare_mixed_channels(pictures, tmp_path):
    gray = pictures / "dog" / "07.png"
    picture(gray, mode="L")
    message = refused(prepare, "image_folder", settings(), tmp_path / "prepared")
    assert re.match(
        rf"{pictures}/\w+/\d\d\.png: has [13] channels, the first image [13]; convert all with prepare_data\.channels", message
    )
    assert prepare("image_folder", settings(channels="rgb"), tmp_path / "rgb")["shape"] == [6, 6, 3]
    assert prepare("image_folder", settings(channels="gray"), tmp_path / "gray")["shape"] == [6, 6, 1]


def test_prepare_mixed_sizes(pictures, tmp_path):
    picture(pictures / "dog" / "07.png", size=(9, 7))
    for how, size in (("pad", 9), ("resize", 4)):
        assert prepare("image_folder", settings(image_size=size, resize_mode=how), tmp_path / how)["shape"] == [size, size, 3]
    message = refused(prepare, "image_folder", settings(image_size=8), tmp_path / "small")
    assert "prepare_data.image_size: 8x8 is smaller than an image of 7x9" in message


# --- the prepared arrays


def test_prepare_digits(tmp_path, capsys):
    source = load("digits")
    meta = prepare("digits", settings(), tmp_path)
    assert meta == json.loads((tmp_path / "meta.json").read_text())
    assert meta["counts"] == {"train": 1297, "test": 500}
    assert meta["shape"] == [8, 8, 1]
    assert meta["mean"] == pytest.approx([source.train.images.mean() / 255], abs=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"meta.json", *(f"{name}.npy" for name in meta["sha256"])}
    for name, digest in meta["sha256"].items():
        assert hashlib.sha256((tmp_path / f"{name}.npy").read_bytes()).hexdigest() == digest
    assert "digits train: 1,297/1,297 images (100%)" in capsys.readouterr().err

    data = open_prepared("digits", settings().as_written(), tmp_path)
    assert isinstance(data.train.images, np.memmap)
    assert not data.train.images.flags.writeable
    assert data.shape == (8, 8, 1)
    assert data.identity() == {key: meta[key] for key in ("dataset", "shape", "class_names", "sha256")}
    for found, expected in zip((data.train, data.test), source[:2], strict=True):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_prepare_is_reproducible(tmp_path):
    first, second = (prepare("digits", settings(), tmp_path / name) for name in "ab")
    assert first == second
    padded = prepare("digits", settings(image_size=12), tmp_path / "c")
    assert padded["shape"] == [12, 12, 1]
    assert padded["sha256"]["train_images"] != first["sha256"]["train_images"]
    assert padded["sha256"]["train_labels"] == first["sha256"]["train_labels"]
    assert padded["mean"][0] == pytest.approx(first["mean"][0] * 64 / 144, abs=1e-5)


def test_open_prepared_other_params(tmp_path):
    prepare("digits", settings(), tmp_path)
    message = refused(open_prepared, "mnist", settings().as_written(), tmp_path)
    assert message == f"{tmp_path}: was made with dataset = 'digits', but params.yaml has 'mnist'; run `dvc repro prepare_data`"
    changes = {"image_size": 16, "resize_mode": "resize", "channels": "rgb", "folder": "other", "test_share": 0.5}
    # The others are read by data sets of their own.
    assert changes.keys() == PrepareData.model_fields.keys() - set(OPTIONAL_SETTINGS)
    for key, value in changes.items():
        message = refused(open_prepared, "digits", settings(**{key: value}).as_written(), tmp_path)
        assert f"was made with {key} = {settings().as_written()[key]!r}, but params.yaml has {value!r}" in message
    assert len(open_prepared("digits", settings(label="Smiling", skip_bad=True).as_written(), tmp_path).train.images) == 1297


def test_open_prepared_missing_or_damaged(tmp_path):
    assert "meta.json: not found; make it with `dvc repro prepare_data`" in refused(
        open_prepared, "digits", settings().as_written(), tmp_path
    )
    prepare("digits", settings(), tmp_path)
    for name in ("train_images.npy", "test_labels.npy", "meta.json"):
        good = (tmp_path / name).read_bytes()
        for bad in (good[: len(good) // 2], good[:4], b"", b"no array"):
            (tmp_path / name).write_bytes(bad)
            message = refused(open_prepared, "digits", settings().as_written(), tmp_path)
            assert message.startswith(f"{tmp_path / name}: cannot be read")
            assert "dvc repro -f prepare_data" in message
        (tmp_path / name).write_bytes(good)
    np.save(tmp_path / "test_labels.npy", np.zeros(499, np.int64))
    assert "has shape [499], meta.json says [500]" in refused(open_prepared, "digits", settings().as_written(), tmp_path)
    (tmp_path / "test_labels.npy").unlink()
    assert "test_labels.npy: cannot be read" in refused(open_prepared, "digits", settings().as_written(), tmp_path)


def test_prepare_removes_old_meta_first(pictures, tmp_path):
    prepared = tmp_path / "prepared"
    prepare("image_folder", settings(), prepared)
    bad = paths(load("image_folder").test.images)[0]
    bad.write_bytes(b"no picture")
    assert str(bad) in refused(prepare, "image_folder", settings(), prepared)
    assert "meta.json: not found" in refused(open_prepared, "image_folder", settings(), prepared)
    assert not [path for path in prepared.iterdir() if "partial" in path.name]


# --- real images, where they are


@real("mnist")
def test_real_mnist():
    source = load("mnist")
    assert (source.train.images.shape, source.test.images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    published = {"train": "6bbc9ace898e44ae57da46a324031adb", "test": "2646ac647ad5339dbf082846283269ea"}
    for split, found in (("train", source.train), ("test", source.test)):
        assert hashlib.md5(idx(found.images[..., 0])).hexdigest() == published[split]
    assert np.bincount(source.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(source.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@real("mnist")
def test_real_mnist_under_the_names_of_kaggle(raw, monkeypatch):
    (raw / "mnist").mkdir()
    for file in sorted((Path(REAL) / "mnist").glob("*.gz")):
        (raw / "mnist" / file.name.replace("-idx", ".idx")).symlink_to(file)
    found = load("mnist")
    monkeypatch.setenv("DDPM_DATA_ROOT", REAL)
    for split, expected in zip(found[:2], load("mnist")[:2], strict=True):
        assert np.array_equal(split.images, expected.images)
        assert np.array_equal(split.labels, expected.labels)
