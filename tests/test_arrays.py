"""Data sets of arrays: .npz files and folders of .npy files."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import edit_params, link_code
from raw_files import arrays, load, refused, settings

from ddpm.datasets.prepare import prepare

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 6, 3), np.uint8)
LABELS = np.arange(12) % 3
WITH_NAN = np.where(np.arange(12) == 5, np.nan, 1.0)[:, None, None] + np.zeros((12, 2, 2))
MEDMNIST = {
    "train_images": IMAGES[:6], "train_labels": LABELS[:6, None], "val_images": IMAGES[6:9], "val_labels": LABELS[6:9, None],
    "test_images": IMAGES[9:], "test_labels": LABELS[9:, None],
}  # fmt: skip


def write(raw, **values) -> None:
    np.savez_compressed(raw / "pictures.npz", **values)


def read(raw, **changes):
    return load("arrays", folder="pictures.npz", **changes)


def test_medmnist_file_has_its_own_splits(raw):
    write(raw, **MEDMNIST)
    source = read(raw)
    assert np.array_equal(np.stack(list(source.train.images)), IMAGES[:6])
    assert np.array_equal(np.stack(list(source.test.images)), IMAGES[9:])
    assert source.train.labels.tolist() == LABELS[:6].tolist()
    assert (source.class_names, source.test.labels.dtype) == (["0", "1", "2"], np.int64)


def test_medmnist_class_names_of_its_package(raw, monkeypatch):
    np.savez(raw / "bloodmnist_64.npz", **MEDMNIST)
    info = {"bloodmnist": {"label": {"0": "basophil", "1": "eosinophil", "2": "lymphocyte"}}}
    module = SimpleNamespace(INFO=info, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "medmnist", module)
    assert load("arrays", folder="bloodmnist_64.npz").class_names == ["basophil", "eosinophil", "lymphocyte"]


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_one_split_is_divided_by_class(raw, names):
    write(raw, **dict(zip(names, (IMAGES[..., 0], LABELS.astype(float)), strict=True)))
    source = read(raw)
    assert (len(source.train.images), len(source.test.images)) == (9, 3)
    assert sorted(source.test.labels.tolist()) == [0, 1, 2]
    together = np.concatenate([np.stack(list(split.images)) for split in (source.train, source.test)])
    assert sorted(together.reshape(12, -1).tolist()) == sorted(IMAGES[..., 0].reshape(12, -1).tolist())
    shown = {image.tobytes(): label for split in source[:2] for image, label in zip(split.images, split.labels, strict=True)}
    assert [shown[image.tobytes()] for image in IMAGES[..., :1].copy()] == LABELS.tolist()


def test_folder_of_npy_files_with_texts_as_labels(raw):
    (raw / "pictures").mkdir()
    values = {
        "x_train": IMAGES[:8],
        "y_train": np.array(["cat", "dog"] * 4),
        "x_test": IMAGES[8:],
        "y_test": np.array(["dog"] * 4),
    }
    for name, value in values.items():
        np.save(raw / "pictures" / f"{name}.npy", value)
    source = load("arrays")
    assert source.class_names == ["cat", "dog"]
    assert source.test.labels.tolist() == [1] * 4
    assert np.array_equal(np.stack(list(source.train.images)), IMAGES[:8])


@pytest.mark.parametrize("names", [("train_images", "test_images"), ("x_train", "x_test"), ("images",), ("arr_0",)])
def test_images_without_labels_have_no_classes(raw, tmp_path, capsys, names):
    write(raw, **dict(zip(names, (IMAGES, IMAGES[:3]), strict=False)))
    meta = prepare("arrays", settings(folder="pictures.npz"), tmp_path / "out")
    counts = {"train": 12, "test": 3} if len(names) == 2 else {"train": 9, "test": 3}
    assert (meta["class_names"], meta["counts"]) == ([], counts)
    assert not any(labels.any() for labels in arrays(tmp_path / "out")[1::2])
    assert "the images have no classes" in capsys.readouterr().out


def test_file_of_images_alone(raw):
    np.save(raw / "pictures.npy", IMAGES)
    source = load("arrays", folder="pictures.npy")
    assert (source.class_names, len(source.train.images), len(source.test.images)) == ([], 9, 3)
    assert {image.tobytes() for split in source[:2] for image in split.images} == {image.tobytes() for image in IMAGES}


def test_labels_are_not_read_if_the_label_is_none(raw):
    write(raw, images=IMAGES, labels=np.zeros((12, 14), int))
    assert read(raw, label="none").class_names == []


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        (np.array([0.0, 0.5, 1.0]), None, [0, 128, 255]),
        (np.array([-2.0, 0.0, 2.0]), None, [0, 128, 255]),
        (np.array([-2.0, 0.0, 2.0], ">f4"), [0.0, 1.0], [0, 0, 255]),
        (np.array([0, 2048, 4095], np.uint16), None, [0, 128, 255]),
        (np.array([0, 255, 7], np.int32), None, [0, 255, 7]),
    ],
)
def test_other_types_are_scaled_by_one_range(raw, values, given, expected):
    write(raw, images=np.repeat(values, 4)[:, None, None] + np.zeros((12, 2, 2), values.dtype), labels=np.arange(12) % 3)
    source = read(raw, value_range=given)
    assert {int(image[0, 0, 0]) for split in source[:2] for image in split.images} == set(expected)


def test_prepare_resizes_and_converts(raw, tmp_path):
    write(raw, **MEDMNIST)
    meta = prepare("arrays", settings(folder="pictures.npz", image_size=[4, 8], channels="gray"), tmp_path / "out")
    assert (meta["shape"], meta["counts"]) == ([4, 8, 1], {"train": 6, "test": 3})
    assert arrays(tmp_path / "out")[0][:, :, 0].max() == 0  # the border


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pictures": IMAGES}, "holds pictures; name the arrays"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "has the shape (5,), but there are 12 images"),
        ({"images": IMAGES, "labels": np.zeros((12, 14), int)}, "several labels per image are not possible"),
        ({"images": IMAGES, "labels": LABELS + 0.5}, "labels are whole numbers or texts"),
        ({"images": IMAGES.transpose(0, 3, 1, 2).copy(), "labels": LABELS}, "is uint8 of shape (12, 3, 4, 6); images are"),
        ({"images": IMAGES[0, 0], "labels": LABELS}, "images are numbers (N, H, W)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images are numbers (N, H, W)"),
        ({"images": np.asfortranarray(IMAGES), "labels": LABELS}, "Fortran order"),
        ({"images": np.array([["a"]] * 12, object), "labels": LABELS}, "holds Python objects"),
        (
            {"images": np.where(np.arange(12) == 5, np.nan, 1.0)[:, None, None] + np.zeros((12, 2, 2)), "labels": LABELS},
            "not finite",
        ),
        ({**MEDMNIST, "test_labels": LABELS[9:] + 7}, "holds the label 7, which no training image has"),
        ({key: value for key, value in MEDMNIST.items() if key != "test_labels"}, "holds no test_labels"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(raw, values, reason):
    write(raw, **values)
    assert reason in refused(read, raw)


def test_test_images_of_another_size_are_refused(raw, tmp_path):
    write(raw, **{**MEDMNIST, "test_images": IMAGES[9:, :3]})
    message = refused(prepare, "arrays", settings(folder="pictures.npz"), tmp_path / "out")
    assert "test, image 0: is 3x6, the first image 4x6; give all one size" in message


def test_values_that_are_not_finite_are_refused_with_a_range_too(raw, tmp_path):
    images = np.ones((12, 2, 2))
    images[7, 0, 0] = np.inf
    write(raw, images=images, labels=LABELS)
    given = settings(folder="pictures.npz", value_range=[0.0, 2.0])
    assert "not finite" in refused(prepare, "arrays", given, tmp_path / "out")


def test_missing_and_damaged_files_are_refused(raw, tmp_path):
    assert "no such file" in refused(read, raw)
    (raw / "pictures.npz").write_bytes(b"PK no archive")
    assert "cannot be read as .npz" in refused(read, raw)
    (raw / "pictures").mkdir()
    np.save(raw / "pictures" / "images.npy", IMAGES)
    np.save(raw / "pictures" / "labels.npy", LABELS)
    whole = (raw / "pictures" / "images.npy").read_bytes()
    (raw / "pictures" / "images.npy").write_bytes(whole[:-1])
    assert "it ends after 11 of 12 images" in refused(prepare, "arrays", settings(), tmp_path / "out")
    labels = (raw / "pictures" / "labels.npy").read_bytes()
    (raw / "pictures" / "labels.npy").write_bytes(labels[:-1])
    assert "labels: cannot be read" in refused(load, "arrays")
    (raw / "pictures" / "images.npy").write_bytes(whole[:20])
    assert "cannot be read as .npy" in refused(load, "arrays")


@pytest.mark.slow
def test_all_stages_of_arrays_as_rectangles(workspace):
    link_code()
    images, labels = np.random.default_rng(0).integers(0, 256, (80, 10, 20, 3), np.uint8), np.arange(80) % 2
    (workspace / "raw").mkdir()
    np.savez(workspace / "raw" / "pictures.npz", images=images, labels=labels)
    edit_params(dataset="arrays", **{
        "prepare_data.folder": "pictures.npz", "prepare_data.image_size": [8, 12], "prepare_data.resize_mode": "resize",
        "prepare_data.test_share": 0.25,
    })  # fmt: skip
    samplers = ("sample_ddpm", "sample_ddim", "guidance", "edit")
    for stage in ("prepare_data", "train_classifier", "train", *samplers, "evaluate", "report"):
        import_module(f"stages.{stage}").main()
    assert np.load("samples/ddim.npz")["arr_0"].shape == (20, 8, 12, 3)
    assert json.loads(Path("reports/evaluate/metrics.json").read_text())["ddpm"]["classifier"]["fid"] > 0
    assert "8x12" in Path("reports/index.md").read_text()
