"""Pictures whose classes are in a table: where it may lie, its columns, names and splits, and what is refused."""

import shutil
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import edit_params, error_of, link_code
from PIL import Image
from raw_files import REAL, arrays, contents, load, paths, png, put, real, refused, settings, write_members

from ddpm.datasets.prepare import prepare

KINDS = ["", ".zip", ".tar.gz"]
CLASSES = ["cat", "dog"]


def table(names, labels=CLASSES, header="id,breed", suffix="") -> str:
    """A row of each name; the labels take turns."""
    rows = [f"{name}{suffix},{labels[i % len(labels)]}" for i, name in enumerate(names)]
    return "\n".join([header, *rows, ""])


def members(names, folder: str = "") -> list[tuple[str, bytes]]:
    """Pictures whose color is their number."""
    return [(f"{folder}{name}.png", png(i)) for i, name in enumerate(names)]


NAMES = [f"{i:02}" for i in range(8)]


def loaded(**changes) -> dict[str, str]:
    """Returns the class of each picture, by the name of its file."""
    source = load("image_folder", **{"labels": "labels.csv", "test_share": 0.5, **changes})
    splits = (source.train, source.test)
    return {
        path.name: source.class_names[label] for raw in splits for path, label in zip(paths(raw.images), raw.labels, strict=True)
    }


# --- a table is as good as class folders


@pytest.mark.parametrize("place", ["inside", "beside", "below"])
@pytest.mark.parametrize("kind", KINDS)
def test_table_equals_class_folders(raw, tmp_path, capsys, kind, place):
    files = members(NAMES, "images/")
    name = {"inside": "labels.csv", "beside": "labels.csv", "below": "images/labels.csv"}[place]
    if place != "beside":
        files.append((name, table(NAMES).encode()))
    else:
        (raw / name).write_text(table(NAMES))
    path = put(raw, kind, files)
    meta = prepare("image_folder", settings(folder=path.name, labels=name), tmp_path / "table", workers=2)
    assert "left out" not in capsys.readouterr().out
    write_members(raw / "folders", [(f"{CLASSES[i % 2]}/{name}.png", png(i)) for i, name in enumerate(NAMES)])
    expected = prepare("image_folder", settings(folder="folders"), tmp_path / "folders")
    assert (meta["class_names"], meta["counts"]) == (CLASSES, expected["counts"])
    assert contents(tmp_path / "table") == contents(tmp_path / "folders")
    assert {"labels": name, "file_column": "auto", "label": "auto"}.items() <= meta["made_with"].items()


TABLES = {
    # suffix of the table, content, settings
    "by usual names": (".csv", "id,breed\n00,cat\n01,dog\n02,cat\n03,dog\n", {}),
    "of many columns": (".csv", "lesion,Image ID,age,dx\n7,00,3,cat\n7,01,4,dog\n8,02,5,cat\n8,03,6,dog\n", {"label": "dx"}),
    "TSV": (".tsv", "label\tfile_name\ncat\t00.png\ndog\t01.png\ncat\t02.png\ndog\t03.png\n", {}),
    "quoted": (".csv", '"File Name","Class"\r\n"00.png","cat"\r\n"01.png","dog"\r\n"02.png","cat"\r\n03.png, dog\r\n', {}),
    "of Excel": (".csv", "\ufeffimage,label\n00,cat\n01,dog\n\n02,cat\n03,dog\n,\n", {}),
    "with a column of numbers": (".csv", ",path,category\n1,00,cat\n2,01,dog\n3,02,cat\n4,03,dog\n", {}),
    "the only other column": (".csv", "filename,kind\n00,cat\n01,dog\n02,cat\n03,dog\n", {}),
    "both named": (".csv", "label,shot,kind\nx,00,cat\ny,01,dog\nz,02,cat\nx,03,dog\n", {"file_column": "shot", "label": "kind"}),
    "names with folders": (".csv", "file,label\n./a/00.png,cat\nx\\a\\01.png,dog\n../a/02,cat\n/x/pictures/a/03,dog\n", {}),
    "equal rows": (".csv", "id,breed\n00,cat\n01,dog\n02,cat\n03,dog\n03.png,dog\na/03,dog\n", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_table_is_read(raw, name):
    suffix, content, changes = TABLES[name]
    put(raw, "", members(NAMES[:4], "a/"))
    (raw / f"labels{suffix}").write_text(content, encoding="utf-8", newline="")
    assert loaded(labels=f"labels{suffix}", **changes) == {f"{i:02}.png": CLASSES[i % 2] for i in range(4)}


def test_table_labels_are_texts(raw):
    put(raw, "", members(NAMES))
    (raw / "labels.csv").write_text(table(NAMES, ["01", "1", "NA", "1.0"]))
    assert load("image_folder", labels="labels.csv", test_share=0.5).class_names == ["01", "1", "1.0", "NA"]


def test_table_with_a_name_that_is_exact_for_one_of_two_pictures(raw):
    put(raw, "", [*members(NAMES), *members(NAMES[:1], "a/")])
    (raw / "labels.csv").write_text(table([f"{name}.png" for name in NAMES]))
    assert len(loaded()) == 8


def test_pictures_without_a_row_are_left_out_and_named(raw, tmp_path, capsys):
    put(raw, "", [*members(NAMES, "train/"), *members(["x", "y", "z", "w", "v"], "test/"), ("notes.txt", b"")])
    (raw / "pictures" / "labels.csv").write_text(table(NAMES))
    meta = prepare("image_folder", settings(labels="labels.csv"), tmp_path / "out")
    assert meta["counts"] == {"train": 6, "test": 2}
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "without a row" in line]
    folder = raw / "pictures"
    assert line.startswith(f"{folder}: pictures without a row in {folder / 'labels.csv'} are left out (5 of 13): ")
    assert line.endswith(" and 2 others")
    assert "1 left out, since their names do not end as those of pictures: 1 .txt (notes.txt)" in said


# --- splits


@pytest.mark.parametrize(
    ("values", "test", "left_out"),
    [
        (["train", "test"], NAMES[1::2], 0),
        (["Training", "valid"], NAMES[1::2], 0),
        (["train", "train", "train", "val", "train", "train", "train", "test"], [NAMES[7]], 1),
    ],
)
def test_table_gives_the_splits(raw, capsys, values, test, left_out):
    put(raw, "", members(NAMES))
    labels = [f"{label},{values[i % len(values)]}" for i, label in enumerate(["cat", "cat", "dog", "dog"] * 2)]
    (raw / "labels.csv").write_text(table(NAMES, labels, "id,breed,split"))
    source = load("image_folder", labels="labels.csv")
    assert sorted(path.stem for path in paths(source.test.images)) == test
    assert len(source.train.images) == 8 - len(test) - left_out
    said = capsys.readouterr().out
    assert "column split: training split train, test split " in said
    assert (f"pictures of other splits are left out ({left_out} of 8): 03.png" in said) == bool(left_out)


def test_table_with_a_training_split_alone_holds_some_out(raw):
    put(raw, "", members(NAMES))
    (raw / "labels.csv").write_text(table(NAMES, ["cat,train", "dog,train"], "id,breed,split"))
    assert load("image_folder", labels="labels.csv").files.index.counts == (6, 2)


def test_folders_give_the_splits_where_the_table_has_none(raw, capsys):
    put(raw, "", [*members(NAMES[:5], "train/a/"), *members(NAMES[5:7], "valid/"), *members(NAMES[7:], "more/")])
    (raw / "labels.csv").write_text(table(NAMES))
    source = load("image_folder", labels="labels.csv")
    assert [path.stem for path in paths(source.test.images)] == ["06", "05"]  # cat, dog
    assert source.files.index.counts == (5, 2)
    said = capsys.readouterr().out
    assert "folders: training split train, test split val" in said
    assert "other splits are left out (1 of 8): more/07.png" in said


# --- what is refused

WRONG = {
    # content of the table: a part of the message
    table([*NAMES, "08", "09", "10", "11"]): "rows without a picture in {folder} (4 of 12): 08, 09, 10 and 1 others; add the",
    table(["x/two", *NAMES]): "rows without a picture in {folder} (1 of 9): x/two; ",
    table(["two", *NAMES]): "rows with several pictures in {folder} (1 of 9): two (a/two.png, b/two.png); ",
    table([*NAMES, "01", "00"]): "rows of one picture with different classes or splits (2 of 10): 01, 00; ",
    table(NAMES, ["cat", "", " ", "dog"]): "rows without a value of id or breed (4 of 8): line 3, line 4, line 7 and 1 others; ",
    table([*NAMES, ""]): "rows without a value of id or breed (1 of 9): line 10; ",
    table(NAMES, header="shot,breed"): "has no usual column of file names among shot, breed; name one in prep",
    table(NAMES, ["a,b"], "id,age,dx"): "has no usual column of classes among id, age, dx; name one in prepare_data.label",
    table(NAMES, header="id;breed,x"): "has no usual column of file names among id;breed, x; ",
    "id,breed\n": "holds no rows below the names of the columns",
    "": "holds no rows below the names of the columns",
    "id,breed\n00,cat\n01,dog,1\n": "line 3 has not the 2 columns of the first line",
    'id,breed\n00,cat\n"01"x,dog\n': "line 3 cannot be read (",
    table(NAMES, ["cat,train", "dog,fold 1"], "id,breed,split"): "values that name no split: 'fold 1'; use train, test and val",
    table(NAMES, ["cat,train", "dog,"], "id,breed,split"): "values that name no split: ''; ",
    table(NAMES, ["cat,test"], "id,breed,split"): "has no row of the training split",
    table(NAMES, ["cat,train", "dog,test"], "id,breed,split"): "classes that the training split lacks: dog",
    table(NAMES, [*["cat"] * 7, "dog"]): "the class 'dog' has only one image",
}  # fmt: skip


@pytest.mark.parametrize("content", WRONG)
def test_table_is_refused(raw, content):
    put(raw, "", [*members(NAMES), *members(["two"], "a/"), *members(["two"], "b/")])
    (raw / "labels.csv").write_text(content)
    message = refused(load, "image_folder", labels="labels.csv")
    assert message.startswith(f"{raw / 'labels.csv'}: ")
    assert WRONG[content].format(folder=raw / "pictures") in message


def test_table_in_another_encoding_is_refused(raw):
    path = put(raw, ".zip", [*members(NAMES), ("labels.csv", table(NAMES, ["ä"]).encode("latin-1"))])
    message = refused(load, "image_folder", folder=path.name, labels="labels.csv")
    assert message.startswith(f"{path}/labels.csv: cannot be read (")
    assert message.endswith("; replace it by a text in UTF-8")


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("prepare_data.labels", {"labels": "class.csv"}),
        ("prepare_data.label", {"label": "age"}),
        ("prepare_data.file_column", {"file_column": "file"}),
    ],
)
def test_settings_of_a_table_are_refused(raw, key, changes):
    put(raw, "", members(NAMES))
    (raw / "labels.csv").write_text(table(NAMES))
    error = error_of(load, "image_folder", **{"labels": "labels.csv", **changes})
    assert (error.where, error.key) == ("params.yaml", key)
    assert "it has id, breed" in error.message or "'class.csv' is neither in" in error.message


def test_table_without_pictures_is_refused(raw):
    (raw / "labels.csv").write_text(table(NAMES))
    assert "no such folder" in refused(load, "image_folder", labels="labels.csv")
    put(raw, "", [("a.txt", b"")])
    assert refused(load, "image_folder", labels="labels.csv").startswith(f"{raw / 'pictures'}: holds no images whose names end")


# --- all stages


@pytest.mark.slow
def test_all_stages_of_a_table(workspace):
    link_code()
    rng, names = np.random.default_rng(0), [f"{i:03}" for i in range(80)]
    (workspace / "raw" / "dogs" / "train").mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(workspace / "raw" / "dogs" / "train" / f"{name}.jpg")
    (workspace / "raw" / "dogs" / "labels.csv").write_text(table(names, ["boxer", "beagle"]))
    edit_params(dataset="image_folder", **{
        "prepare_data.folder": "dogs/train", "prepare_data.labels": "labels.csv", "prepare_data.test_share": 0.25,
    })  # fmt: skip
    samplers = ("sample_ddpm", "sample_ddim", "guidance", "edit")
    for stage in ("prepare_data", "train_classifier", "train", *samplers, "evaluate", "report"):
        import_module(f"stages.{stage}").main()
    assert np.bincount(arrays(Path("data/prepared"))[1]).tolist() == [30, 30]
    metrics = yaml.safe_load(Path("reports/evaluate/metrics.json").read_text())
    assert metrics["ddpm"]["classifier"]["fid"] > 0
    assert "image_folder" in Path("reports/index.md").read_text()


# --- real pictures, where they are


@real("imagenet_sample.zip")
def test_real_archive_with_a_table(raw):
    name = "imagenet_sample.zip"
    shutil.copy(Path(REAL) / name, raw / name)
    expected = load("image_folder", folder=name)
    with zipfile.ZipFile(raw / name) as archive:
        found = [Path(file) for file in archive.namelist() if file.endswith(".JPEG")]
    for suffix, rows in {
        "by_folder": [f"{file.stem},{file.parent.name}" for file in found],
        "by_column": [f"{file.stem},{file.parent.name},{file.parts[-3]}" for file in found],
    }.items():
        (raw / f"{suffix}.csv").write_text("\n".join(["id,class" + ",split" * (suffix == "by_column"), *rows]))
        source = load("image_folder", folder=name, labels=f"{suffix}.csv")
        assert source.files.index.counts == (900, 100)
        assert (source.class_names, source.files.index.digest) == (expected.class_names, expected.files.index.digest)
