"""CelebA and image data sets of Hugging Face's `datasets`."""

import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import in_fork, read_only
from raw_files import arrays, contents, load, put, put_idx_files, refused, settings, write_cifar10

from ddpm.datasets.huggingface import library
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DATASETS


def png(colour: int, size=(4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 255)).save(file, "PNG")
    return file.getvalue()


# --- CelebA

ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Smiling"]
# Partition, and the attributes of each face.
FACES = [(0, -1, 1, -1), (0, -1, -1, 1), (1, 1, 1, 1), (2, -1, -1, -1), (0, 1, 1, 1), (2, 1, 1, -1), (1, -1, -1, -1)]


@pytest.fixture
def celeba(raw) -> Path:
    """Seven faces in torchvision's layout; the colour of each is its number."""
    folder = raw / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06}.jpg" for i in range(len(FACES))]
    for i, name in enumerate(names):
        (folder / "img_align_celeba" / name).write_bytes(png(10 * i, (6, 8)))
    parts = [f"{name} {face[0]}\n" for name, face in zip(names, FACES, strict=True)]
    (folder / "list_eval_partition.txt").write_text("".join(parts))
    rows = [f"{name} " + " ".join(f"{value:2}" for value in face[1:]) for name, face in zip(names, FACES, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(rows)), " ".join(ATTRIBUTES), *rows, ""]))
    return folder


def zipped(celeba: Path) -> None:
    with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
        for path in sorted((celeba / "img_align_celeba").rglob("*.jpg"), reverse=True):
            archive.write(path, path.relative_to(celeba))
    shutil.rmtree(celeba / "img_align_celeba")


def as_of_kaggle(celeba: Path) -> None:
    """Puts the faces one folder lower, and the lists into CSV files."""
    (celeba / "img_align_celeba").rename(celeba / "faces")
    (celeba / "img_align_celeba").mkdir()
    (celeba / "faces").rename(celeba / "img_align_celeba" / "img_align_celeba")
    for name, header in (("list_eval_partition", "image_id partition"), ("list_attr_celeba", f"image_id {' '.join(ATTRIBUTES)}")):
        *_, lines = (celeba / f"{name}.txt").read_text().rpartition(" ".join(ATTRIBUTES))
        rows = [",".join(line.split()) for line in [header, *lines.strip().splitlines()]]
        (celeba / f"{name}.csv").write_text("\r\n".join(rows))
        (celeba / f"{name}.txt").unlink()


def download_of_kaggle(celeba: Path) -> None:
    as_of_kaggle(celeba)
    archive = shutil.make_archive(celeba.with_name("archive"), "zip", celeba)
    shutil.rmtree(celeba)
    celeba.mkdir()
    shutil.move(archive, celeba)


NO_MOUNT = 77


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("name", DATASETS)
def test_read_only_raw_folder(raw, tmp_path, monkeypatch, request, name):
    """Archives and compressed files are read in place, and nothing is written beside them."""
    if name == "celeba":
        zipped(request.getfixturevalue("celeba"))
    elif name == "cifar10":
        write_cifar10(raw, monkeypatch, archived=True)
    elif name == "huggingface":
        rows(request.getfixturevalue("hub"), 20).save_to_disk(str(raw / "pictures.tar.gz"))
    elif name == "image_folder":
        put(raw, ".tar.gz", [(f"{kind}/{i}.png", png(i)) for kind in ("cat", "dog") for i in range(8)])
    elif name == "arrays":
        with open(raw / "pictures.tar.gz", "wb") as file:  # the name of the other archives
            np.savez(file, images=np.zeros((8, 2, 2), np.uint8), labels=np.arange(8) % 2)
    elif name != "digits":
        put_idx_files(raw / name, zipped=True)

    source = load(name, folder="pictures.tar.gz")  # imports libraries once, not in each fork

    def work():
        try:
            read_only(raw)
        except OSError:
            sys.exit(NO_MOUNT)
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (raw / "new").mkdir()
        assert prepare(name, settings(folder="pictures.tar.gz"), tmp_path / "out")["class_names"] == source.class_names

    status, said = in_fork(work)
    if status == NO_MOUNT:
        pytest.skip("this user may not mount")
    assert status == 0, said
    assert len(arrays(tmp_path / "out")) == 4


@pytest.mark.parametrize("arrange", [lambda celeba: None, zipped, as_of_kaggle, download_of_kaggle])
def test_celeba_partition_and_classes(celeba, capsys, arrange):
    arrange(celeba)
    source = load("celeba")
    assert source.class_names == ["female", "male"]
    assert [image[0, 0, 0] for image in source.train.images] == [0, 10, 40]
    assert source.train.labels.tolist() == [1, 0, 1]
    # The validation pictures, 2 and 6, are in neither.
    assert [image[0, 0, 0] for image in source.test.images] == [30, 50]
    assert source.test.labels.tolist() == [0, 1]
    smiling = load("celeba", label="Smiling")
    assert (smiling.class_names, smiling.train.labels.tolist()) == (["not smiling", "smiling"], [0, 1, 1])
    assert load("celeba", label="5_o_Clock_Shadow").class_names == ["not 5 o clock shadow", "5 o clock shadow"]
    assert "left out" not in capsys.readouterr().out


def test_celeba_without_classes(celeba):
    source = load("celeba", label="none")
    assert (source.class_names, source.train.labels.tolist(), source.test.labels.tolist()) == ([], [0] * 3, [0] * 2)
    assert [image[0, 0, 0] for image in source.train.images] == [0, 10, 40]


def test_celeba_missing(raw, celeba):
    zipped(celeba)
    for name in ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"):
        (celeba / name).rename(raw / "aside")
        message = refused(load, "celeba")
        assert message.startswith(f"{celeba}: CelebA is missing; put img_align_celeba/ or img_align_celeba.zip, list_eval_part")
        (raw / "aside").rename(celeba / name)
    assert load("celeba").files.index.counts == (3, 2)


def test_celeba_unknown_attribute(celeba):
    message = refused(load, "celeba", label="male")
    assert message.startswith("params.yaml: prepare_data.label: 'male' is no attribute of ")
    assert message.endswith("it has 5_o_Clock_Shadow, Male, Smiling")


@pytest.mark.parametrize(
    ("name", "number", "line", "expected"),
    [
        ("list_eval_partition.txt", 3, "000003.jpg 5", "list_eval_partition.txt line 3: does not match"),
        ("list_eval_partition.txt", 3, "000003.jpg", "list_eval_partition.txt line 3: does not match"),
        ("list_eval_partition.txt", 7, "", "list_eval_partition.txt line 7: does not match"),
        ("list_attr_celeba.txt", 5, "000004.jpg 1 1 1", "line 3: does not match"),
        ("list_attr_celeba.txt", 5, "000003.jpg 1 1", "line 3: does not match"),
        ("list_attr_celeba.txt", 5, "000003.jpg 1 x 1", "list_attr_celeba.txt line 5: Male is 'x', not 1 or -1"),
        ("list_attr_celeba.txt", 9, "", "line 7: does not match"),
        ("list_eval_partition.txt", 1, "\xff\xfe\xff", "cannot be read"),
        ("list_eval_partition.txt", 2, "000002.jpg 1", "leaves no pictures of one of female, male, or none to test"),
    ],
)  # fmt: skip
def test_celeba_lists_wrong(celeba, name, number, line, expected):
    lines = (celeba / name).read_text().splitlines()
    lines[number - 1 : number] = [line] if line else []
    (celeba / name).write_bytes("\n".join(lines).encode("latin-1") + b"\n")
    assert expected in refused(load, "celeba")


def test_celeba_picture_missing(celeba):
    (celeba / "img_align_celeba" / "000005.jpg").unlink()
    message = refused(load, "celeba")
    assert message.startswith(f"{celeba}/img_align_celeba/000005.jpg: is in list_eval_partition.txt, but missing; ")


@pytest.mark.parametrize(
    ("name", "number", "line", "expected"),
    [
        ("list_eval_partition.csv", 4, "000003.jpg,5", "list_eval_partition.csv line 4: does not match"),
        ("list_attr_celeba.csv", 4, "000003.jpg,1,1", "list_eval_partition.csv line 4: does not match"),
        ("list_attr_celeba.csv", 4, "000003.jpg,1,0,1", "list_attr_celeba.csv line 4: Male is '0', not 1 or -1"),
        ("list_attr_celeba.csv", 1, "image_id,Smiling", "'Male' is no attribute of "),
        ("list_attr_celeba.csv", 1, "", "'Male' is no attribute of "),
    ],
)  # fmt: skip
def test_celeba_lists_of_kaggle_wrong(celeba, name, number, line, expected):
    as_of_kaggle(celeba)
    lines = (celeba / name).read_text().splitlines()
    lines[number - 1] = line
    (celeba / name).write_text("\n".join(lines))
    assert expected in refused(load, "celeba")


# --- Hugging Face


def test_huggingface_library_missing(raw, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refused(load, "huggingface")
    assert message.startswith("dataset: huggingface needs a library that is missing (")
    assert message.endswith("; pip install datasets")


@pytest.fixture
def hub(raw, monkeypatch):
    """The library `datasets`; a network connection fails the test."""
    library = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")

    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    return library


def rows(library, count: int, first: int = 0, **columns):
    """A data set whose picture i has the colour first + i, of class i % 2."""
    features = {"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])}
    pictures = [{"bytes": png(first + i), "path": None} for i in range(count)]
    values = {"image": pictures, "label": [i % 2 for i in range(count)]}
    features |= {name: kind for name, (kind, _) in columns.items()}
    values |= {name: value for name, (_, value) in columns.items()}
    return library.Dataset.from_dict(values, features=library.Features(features))


def reds(images) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def check_split(source):
    assert source.class_names == ["cat", "dog"]
    assert (reds(source.train.images), source.train.labels.tolist()) == (list(range(20)), [0, 1] * 10)
    assert (reds(source.test.images), source.test.labels.tolist()) == (list(range(100, 106)), [0, 1] * 3)


@pytest.mark.parametrize(
    ("train", "test", "extra"),
    [
        ("train", "test", "extra"), ("train", "validation", "train_large"), ("training", "dev", "extra"),
        ("trn", "Eval", "extra"), ("train", "valid", "training"), ("train", "dev", "test_hard"), ("train", "Eval", "dev"),
        ("train", "test", "testing"),
    ],
)  # fmt: skip
def test_saved_data_set(hub, raw, capsys, train, test, extra):
    splits = {train: rows(hub, 20), test: rows(hub, 6, 100), extra: rows(hub, 5)}
    hub.DatasetDict(splits).save_to_disk(str(raw / "pictures"))
    check_split(load("huggingface"))
    assert f"{raw / 'pictures'}: splits that are left out: {extra} (5 rows)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "test"),
    [
        ("train-0000{}-of-00002-abc", "validation"), ("train-{}", "valid"), ("data/train-{}", "test"), ("training/000{}", "eval"),
        ("data/train/000{}", "dev"),
    ],
)  # fmt: skip
def test_parquet_files(hub, raw, tmp_path, place, test):
    other = place.replace("training", test).replace("train", test)
    train, test = (str(raw / "pictures" / f"{name}.parquet") for name in (place, other))
    for name in (train, test):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
    whole = rows(hub, 20)
    for i in range(2):
        whole.select(range(10 * i, 10 * i + 10)).to_parquet(train.format(i), batch_size=4)
    rows(hub, 6, 100).to_parquet(test.format(0))
    check_split(load("huggingface"))
    prepare("huggingface", settings(), tmp_path / "parquet")
    hub.DatasetDict({"train": whole, "test": rows(hub, 6, 100)}).save_to_disk(str(raw / "saved"))
    prepare("huggingface", settings(folder="saved"), tmp_path / "saved", workers=3)
    assert contents(tmp_path / "parquet") == contents(tmp_path / "saved")


@pytest.mark.parametrize("how", ["saved", "parquet"])
def test_huggingface_single_split(hub, raw, tmp_path, how):
    (raw / "pictures").mkdir()
    if how == "saved":
        rows(hub, 20).save_to_disk(str(raw / "pictures"))
    else:
        rows(hub, 20).to_parquet(str(raw / "pictures" / "all.parquet"))
    source = load("huggingface", test_share=0.2)
    assert sorted(reds(source.train.images) + reds(source.test.images)) == list(range(20))
    assert np.bincount(source.test.labels).tolist() == [2, 2]
    assert [red % 2 for red in reds(source.test.images)] == source.test.labels.tolist()
    prepare("huggingface", settings(test_share=0.2), tmp_path / "out")
    assert reds(np.load(tmp_path / "out" / "test_images.npy")) == reds(source.test.images)


def test_parquet_files_of_other_programs(hub, raw):
    import pyarrow
    from pyarrow import parquet

    (raw / "pictures").mkdir()
    data = [png(i) for i in range(8)]
    for name, column in (("train", data), ("test", [{"bytes": value, "path": "x.png"} for value in data])):
        table = pyarrow.table({"picture": column if name == "train" else data, "label": ["b", "a"] * 4})
        parquet.write_table(table, raw / "pictures" / f"{name}.parquet")
    source = load("huggingface")
    assert source.class_names == ["a", "b"]
    assert source.train.labels.tolist() == [1, 0] * 4
    assert reds(source.train.images) == list(range(8))
    parquet.write_table(pyarrow.table({"img": [{"bytes": v, "path": ""} for v in data], "label": [3, 5] * 4}), raw / "x.parquet")
    for name in ("train", "test"):
        (raw / "pictures" / f"{name}.parquet").write_bytes((raw / "x.parquet").read_bytes())
    assert load("huggingface").class_names == ["3", "5"]


def test_huggingface_label_column(hub, raw):
    kind = hub.ClassLabel(names=["red", "blue", "green"])
    both = rows(hub, 12, fine=(kind, [i % 3 for i in range(12)])).rename_column("label", "coarse")
    both.save_to_disk(str(raw / "pictures"))
    message = refused(load, "huggingface")
    assert message == f"{raw / 'pictures'}: has several columns of classes (coarse, fine); name one in prepare_data.label"
    assert load("huggingface", label="fine").class_names == ["red", "blue", "green"]
    message = refused(load, "huggingface", label="size")
    assert message.startswith("params.yaml: prepare_data.label: 'size' is no column of ")
    assert message.endswith("it has image, coarse, fine")
    both.remove_columns(["coarse"]).save_to_disk(str(raw / "one"))
    assert load("huggingface", folder="one").class_names == ["red", "blue", "green"]


def test_huggingface_without_label_column(hub, raw, capsys):
    rows(hub, 8).remove_columns(["label"]).save_to_disk(str(raw / "pictures"))
    source = load("huggingface")
    assert (source.class_names, source.train.labels.tolist()) == ([], [0] * 6)
    assert "the images have none" in capsys.readouterr().out
    unknown = rows(hub, 8).remove_columns(["label"]).add_column("label", [-1] * 8)
    unknown.save_to_disk(str(raw / "unknown"))
    assert load("huggingface", folder="unknown", label="none").class_names == []


def test_huggingface_drops_empty_classes(hub, raw):
    table = rows(hub, 8).cast_column("label", hub.ClassLabel(names=["cat", "dog", "cow"]))
    table.save_to_disk(str(raw / "pictures"))
    assert load("huggingface").class_names == ["cat", "dog"]


def test_huggingface_rows_without_class(hub, raw):
    unlabelled = rows(hub, 4, 100).remove_columns(["label"]).add_column("label", [-1] * 4)
    unlabelled = unlabelled.cast_column("label", hub.ClassLabel(names=["cat", "dog"]))
    hub.DatasetDict({"train": rows(hub, 8), "test": unlabelled}).save_to_disk(str(raw / "pictures"))
    assert "column label of test holds -1, which is no class; leave those rows out" in refused(load, "huggingface")
    measured = rows(hub, 8, size=(hub.Value("float32"), [0.5] * 8))
    measured.save_to_disk(str(raw / "floats"))
    assert "column size of all holds 0.5, which is no class" in refused(load, "huggingface", folder="floats", label="size")
    text = hub.Value("string")
    train, test = rows(hub, 8, name=(text, ["a"] * 8)), rows(hub, 4, name=(text, ["b"] * 4))
    hub.DatasetDict({"train": train, "test": test}).save_to_disk(str(raw / "names"))
    assert "test has the class 'b', train has not" in refused(load, "huggingface", folder="names", label="name")


def test_huggingface_image_column(hub, raw):
    again = rows(hub, 6, other=(hub.Image(), [{"bytes": png(i), "path": None} for i in range(6)]))
    again.save_to_disk(str(raw / "pictures"))
    assert reds(load("huggingface").train.images)[0] < 6
    again.rename_column("image", "first").save_to_disk(str(raw / "two"))
    assert "has several columns of images (first, other) among first, label, other" in refused(load, "huggingface", folder="two")
    again.remove_columns(["image", "other"]).save_to_disk(str(raw / "none"))
    assert "has no column of images among label" in refused(load, "huggingface", folder="none")


def test_huggingface_rows_without_picture(hub, raw, tmp_path):
    values = [{"bytes": png(i), "path": None} for i in range(12)]
    values[4], values[7] = {"bytes": b"no picture", "path": None}, None
    table = rows(hub, 12).remove_columns(["image"]).add_column("image", values).cast_column("image", hub.Image())
    table.save_to_disk(str(raw / "pictures"))
    message = refused(prepare, "huggingface", settings(), tmp_path / "out")
    assert message.startswith("2 of 12 images cannot be read: ")
    assert f"{raw / 'pictures'}/all row 4 (no format that Pillow knows)" in message
    assert f"{raw / 'pictures'}/all row 7 (its row holds no picture, or only the path of one)" in message
    assert prepare("huggingface", settings(skip_bad=True), tmp_path / "out")["left_out"] == 2


def test_huggingface_folder_without_data_set(hub, raw):
    assert f"{raw / 'pictures'}: holds no training split" in refused(load, "huggingface")
    (raw / "pictures").mkdir()
    rows(hub, 4).to_parquet(str(raw / "pictures" / "test.parquet"))
    assert f"{raw / 'pictures'}: holds no training split" in refused(load, "huggingface")
    (raw / "pictures" / "train.parquet").write_bytes(b"PAR1 and so on")
    assert refused(load, "huggingface").startswith(f"{raw / 'pictures'}: is damaged, or no data set of Hugging Face (")
    rows(hub, 4).save_to_disk(str(raw / "saved"))
    arrow = next((raw / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert refused(load, "huggingface", folder="saved").startswith(f"{raw / 'saved'}: is damaged")
    (raw / "saved" / "state.json").write_text(json.dumps({}))
    assert refused(load, "huggingface", folder="saved").startswith(f"{raw / 'saved'}: is damaged")


def test_parquet_file_damaged(hub, raw, tmp_path):
    (raw / "pictures").mkdir()
    path = raw / "pictures" / "train.parquet"
    rows(hub, 30).to_parquet(str(path))
    data = bytearray(path.read_bytes())
    data[4:600] = bytes(596)
    path.write_bytes(data)
    assert refused(prepare, "huggingface", settings(), tmp_path / "out").startswith(f"{raw / 'pictures'}: is damaged")


def test_huggingface_library_is_offline(hub, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    library()
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_parquet_resume_skips_rows_and_row_groups(hub, raw, tmp_path, monkeypatch):
    from ddpm.datasets import huggingface as reading
    from ddpm.datasets.resume import PartialArrays

    (raw / "pictures").mkdir()
    rows(hub, 40).to_parquet(str(raw / "pictures" / "train.parquet"), batch_size=10)
    rows(hub, 6, 100).to_parquet(str(raw / "pictures" / "test.parquet"))
    prepare("huggingface", settings(), tmp_path / "expected")
    train, _ = reading.open_rows(hub, raw / "pictures")
    assert [first for first, _ in train.read("image", 5, lambda first, end: end <= 20)] == [20, 25, 30, 35]

    real = PartialArrays.write

    def stops(self, picture, image):
        if picture.position == 25:
            raise InterruptedError
        real(self, picture, image)

    monkeypatch.setattr(PartialArrays, "write", stops)
    with pytest.raises(InterruptedError):
        prepare("huggingface", settings(), tmp_path / "out")
    monkeypatch.setattr(PartialArrays, "write", real)
    loaded, load_one = [], reading._load
    monkeypatch.setattr(reading, "_load", lambda value: (loaded.append(value["bytes"]), load_one(value))[1])
    prepare("huggingface", settings(), tmp_path / "out")
    assert sorted(loaded) == sorted([png(i) for i in range(25, 40)] + [png(100 + i) for i in range(6)])
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
