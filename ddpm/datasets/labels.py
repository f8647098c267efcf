"""Reads the classes of pictures from a table: a CSV or TSV file in or beside a folder or archive of pictures.

The first line names the columns. All values are text, so that the class 01 is not 1.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError, first_line, print_line
from ddpm.datasets.archives import list_archive, read_text, stamp_of
from ddpm.datasets.image_folder import archive_kind, refuse_empty, sort_key, walk
from ddpm.datasets.index import Assignment, Files, ImageIndex, on_disk, some_of
from ddpm.datasets.splits import SPLITS, held_out, split_of

# The usual names of the columns, in small letters without anything between the words; the first one that is there counts.
FILE_COLUMNS = (
    "file", "files", "filename", "filenames", "filepath", "filepaths", "path", "imagefile", "imagename", "imagepath", "image",
    "images", "img", "picture", "imageid", "id",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "classname", "category", "target", "diagnosis", "breed", "species")
SPLIT_COLUMNS = ("split",)


class Row(NamedTuple):
    """A row of a table.

    file: the name of the picture, as the table has it.
    label: the name of its class.
    split: what the table says about its split; "" without such a column.
    """

    file: str
    label: str
    split: str


def read_labelled_images(
    path: Path, table: str, file_column: str | None, label_column: str | None, test_share: float
) -> tuple[Files, list[str]]:
    """Returns those pictures of a folder or an archive that a table names, and the class names, sorted.

    table: the path of the table below the folder or inside the archive, or else beside it.
    file_column, label_column: None is a column of FILE_COLUMNS, and one of LABEL_COLUMNS or the only one that is left.
    A column `split`, or else folders called like splits, give the splits. Without them, a stratified share of `test_share`
    becomes the test split. Pictures without a row, and those of a third split, are left out and named.
    Raises InputError for rows without a picture, a class or a split, for contradicting rows, and for missing columns.
    """
    files = _list_pictures(path, table)
    place, rows = _read_rows(path, table, file_column, label_column)
    row_of = _pictures_of(rows, files.index.files, path, place)
    if without := [name for name in files.index.files if name not in row_of]:
        share = f"{len(without):,} of {len(files.index.files):,}"
        print_line(f"{path}: pictures without a row in {place} are left out ({share}): {some_of(without)}")
    part_of = _parts(row_of, place)
    splits = [{row_of[name].label for name, part in part_of.items() if part == number} for number in (0, 1)]
    names = sorted(splits[0])
    if unknown := sorted(splits[1] - splits[0]):
        raise InputError(f"the test split has classes that the training split lacks: {some_of(unknown)}", key=place)
    label_of = {name: label for label, name in enumerate(names)}

    def split(labels: np.ndarray) -> np.ndarray:
        return held_out(labels, test_share, names, place, "add rows, change prepare_data.test_share, or add a column split")

    assignments = ((name, part, label_of[row_of[name].label]) for name, part in part_of.items())
    files.index.assign((Assignment(*row, sort_key(row[2], row[0])) for row in assignments), None if splits[1] else split)
    return files, names


def _list_pictures(path: Path, table: str) -> Files:
    """Returns all pictures of a folder or an archive."""
    index, kind = ImageIndex(table), archive_kind(path)
    if kind is None:
        index.add_pictures(walk(path, ""))
        files = Files(index, on_disk(path))
    else:
        list_archive(path, index)
        files = Files(index, kind.store(path), stamp_of(path))
    if not index.files:
        refuse_empty(path, [], index.labels(0))
    return files


def _read_rows(path: Path, table: str, file_column: str | None, label_column: str | None) -> tuple[Path, list[Row]]:
    """Returns the path of the table and its rows."""
    texts = ((folder / table, read_text(folder, table)) for folder in (path, path.parent))
    place, text = next((found for found in texts if found[1] is not None), (None, None))
    if place is None:
        message = f"{table!r} is neither in {path} nor beside it; name a .csv or .tsv file below one of them, or 'none'"
        raise InputError(message, key="prepare_data.labels", where="params.yaml")
    reader = csv.reader(StringIO(text, newline=""), delimiter="\t" if table.lower().endswith(".tsv") else ",", strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader if any(map(str.strip, values))]
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} cannot be read ({first_line(error)}); correct it", key=place) from None
    if len(lines) < 2:
        raise InputError("holds no rows below the names of the columns", key=place)
    (_, columns), *lines = lines
    if uneven := [number for number, values in lines if len(values) != len(columns)]:
        raise InputError(f"line {uneven[0]} has not the {len(columns)} columns of the first line; correct it", key=place)
    file = _find_column(columns, file_column, FILE_COLUMNS, place, "prepare_data.file_column")
    label = _find_column(columns, label_column, LABEL_COLUMNS, place, "prepare_data.label")
    split = _find_column(columns, None, SPLIT_COLUMNS, place)
    others = [k for k, name in enumerate(columns) if name and k not in (file, split)]
    if label is None and file is not None and len(others) == 1:
        (label,) = others
    for what, key, column in (("file names", "file_column", file), ("classes", "label", label)):
        if column is None:
            message = f"has no usual column of {what} among {', '.join(columns)}; name one in prepare_data.{key}"
            raise InputError(message, key=place)
    if blank := [f"line {number}" for number, values in lines if not (values[file] and values[label])]:
        what = f"{columns[file]} or {columns[label]}"
        raise _refusal(f"rows without a value of {what}", blank, lines, "fill them in, or remove them", place)
    return place, [Row(values[file], values[label], "" if split is None else values[split]) for _, values in lines]


def _find_column(columns: list[str], given: str | None, usual: Sequence[str], table: Path, key: str = "") -> int | None:
    """Returns the number of the given column, or of the first usual one, None without any."""
    if given is not None:
        if given not in columns:
            message = f"{given!r} is no column of {table}; it has {', '.join(columns)}"
            raise InputError(message, key=key, where="params.yaml")
        return columns.index(given)
    plain = [re.sub("[^a-z]", "", name.lower()) for name in columns]
    return next((plain.index(name) for name in usual if name in plain), None)


def _refusal(what: str, found: Sequence[str], of: Sequence, advice: str, table: Path) -> InputError:
    return InputError(f"has {what} ({len(found):,} of {len(of):,}): {some_of(found)}; {advice}", key=table)


def _pictures_of(rows: list[Row], names: Iterable[str], path: Path, table: Path) -> dict[str, Row]:
    """Returns the row of each picture that has one, by the name of the picture."""
    find, row_of = _finder(names), {}
    missing, several, different = [], [], []
    for row in rows:
        found = find(row.file)
        if len(found) != 1:
            (several if found else missing).append(f"{row.file} ({', '.join(found[:2])})" if found else row.file)
        elif row_of.setdefault(found[0], row)[1:] != row[1:]:
            different.append(row.file)
    if missing:
        raise _refusal(f"rows without a picture in {path}", missing, rows, "add the pictures, or remove the rows", table)
    if several:
        advice = "add the folders to the names, or name one folder in prepare_data.folder"
        raise _refusal(f"rows with several pictures in {path}", several, rows, advice, table)
    if different:
        raise _refusal("rows of one picture with different classes or splits", different, rows, "leave one of each", table)
    return row_of


def _finder(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns a function that maps a name in a table to the pictures that it may mean.

    It may lack the ending and the first folders of the path, or have folders above it.
    """
    by_file = defaultdict(list)
    for name in names:
        file = name.rpartition("/")[2]
        for known in {file, os.path.splitext(file)[0]}:
            by_file[known].append(name)

    def find(given: str) -> list[str]:
        parts = [part for part in re.split(r"[/\\]", given) if part not in ("", ".", "..")] or [""]
        folders = parts[-2::-1]  # from the last one on
        found = [
            name
            for name in by_file.get(parts[-1], ())
            if all(a == b for a, b in zip(name.split("/")[-2::-1], folders, strict=False))
        ]
        return [name for name in found if name == "/".join(parts)] or found

    return find


def _parts(row_of: dict[str, Row], table: Path) -> dict[str, int]:
    """Returns the split of each picture, 0 train or 1 test; 0 for all of them if they are to be split."""
    by_table = any(row.split for row in row_of.values())
    if by_table:
        kind_of = {name: split_of(row.split) for name, row in row_of.items()}
        if wrong := sorted({row.split for name, row in row_of.items() if kind_of[name] is None}):
            message = f"column split has values that name no split: {some_of(list(map(repr, wrong)))}; use train, test and val"
            raise InputError(f"{message}, or give the column another name", key=table)
    else:
        kind_of = {name: next(filter(None, map(split_of, name.split("/")[:-1])), None) for name in row_of}
    kinds = set(kind_of.values())
    test = next((kind for kind in SPLITS if kind in kinds and kind != "train"), None)
    if by_table and "train" not in kinds:
        raise InputError("column split has no row of the training split; call it train", key=table)
    if test is None or "train" not in kinds:
        return dict.fromkeys(row_of, 0)
    part_of = {"train": 0, test: 1}
    print_line(f"{table}: {'column split' if by_table else 'folders'}: training split train, test split {test}")
    if left_out := [name for name, kind in kind_of.items() if kind not in part_of]:
        print_line(f"{table}: pictures of other splits are left out ({len(left_out):,} of {len(row_of):,}): {some_of(left_out)}")
    return {name: part_of[kind] for name, kind in kind_of.items() if kind in part_of}
