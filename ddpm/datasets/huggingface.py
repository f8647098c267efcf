"""Reads an image data set of Hugging Face's `datasets` on disk: a folder of save_to_disk, or one of parquet files.

The columns of pictures and classes are found by their types and names. Rows are read in order, a few at a time, without a copy in
a cache and without the network.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ddpm.core.files import InputError, first_line, print_line
from ddpm.datasets.archives import stamp_of
from ddpm.datasets.image_io import Unreadable
from ddpm.datasets.index import Assignment, Files, FoundFile, ImageIndex, Load, Picture, Store, check_size
from ddpm.datasets.settings import NO_CLASSES
from ddpm.datasets.splits import held_out, pick_splits, split_of

SAVED = ("dataset_dict.json", "dataset_info.json")  # save_to_disk writes one of them
PARQUET = ("*.parquet", "data/*.parquet")
PARQUET_FOLDERS = ("*/*.parquet", "data/*/*.parquet")  # called like the splits
PLAIN = ("train", "test", "val", "validation")
PICTURES_AT_ONCE, LABELS_AT_ONCE = 16, 10_000
IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
MAX_CLASSES = 10_000
# Returns whether rows first..end may be left out.
Skip = Callable[[int, int], bool]
# Yields the number of the first row and the values of each part of a column.
Parts = Iterator[tuple[int, list]]


class Rows(NamedTuple):
    """The rows of one split.

    name: of the split.
    features: the type of each column.
    count: the number of rows.
    read: maps (column, rows at once, skip) to parts of the column, in order; without skip, to all of them.
    """

    name: str
    features: dict[str, Any]
    count: int
    read: Callable[..., Parts]


def read_huggingface(path: Path, label: str | None, test_share: float) -> tuple[Files, list[str]]:
    """Returns the pictures of the train and the test (or validation) split, and the class names.

    Of a single split, a stratified share of `test_share` becomes the test split.
    label: the column of the class; None is the only ClassLabel column, or `label`. NO_CLASSES, or a data set without one, gives
        pictures without classes.
    Raises InputError if `datasets` or the data set is missing, and for columns that are missing or ambiguous.
    """
    datasets = library()
    splits = open_rows(datasets, path)
    image = _image_column(datasets, splits[0], path)
    label = None if label == NO_CLASSES else _label_column(datasets, splits[0], path, label)
    if label is None:
        print_line(f"{path}: no column of classes is read; the images have none")
    values = [_labels(rows, label, path) if label else [0] * rows.count for rows in splits]
    classes = sorted(set(values[0]))
    if len(classes) > MAX_CLASSES:
        raise InputError(f"column {label} has more than {MAX_CLASSES:,} values; name another in prepare_data.label", key=path)
    if unknown := set(values[-1]).difference(classes):
        raise InputError(f"{splits[-1].name} has the class {unknown.pop()!r}, {splits[0].name} has not; leave it out", key=path)
    feature = splits[0].features.get(label)
    names = [feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value) for value in classes]
    label_of = {value: number for number, value in enumerate(classes)}
    index, assignments = ImageIndex(), []
    firsts = [0, splits[0].count][: len(splits)]
    for part, (rows, first) in enumerate(zip(splits, firsts, strict=True)):
        for i, value in enumerate(values[part]):
            name = f"{rows.name} row {i}"
            index.add([FoundFile(name, first + i, 0, 1)])
            assignments.append(Assignment(name, part, label_of[value], i.to_bytes(8, "big")))

    def split(labels: np.ndarray) -> np.ndarray:
        return held_out(labels, test_share, names, path, "add rows, change prepare_data.test_share, or add a test split")

    index.assign(assignments, split if len(splits) == 1 else None)
    store = Store(path, partial(fetch, splits, firsts, image), by_offset=True)
    return Files(index, store, _stamp(path)), names if label else []


def library() -> ModuleType:
    """Returns the library `datasets`, set to stay offline. Raises InputError if it is not installed."""
    # It reads these when it is imported.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"huggingface needs a library that is missing ({error}); pip install datasets", key="dataset") from None
    return datasets


def open_rows(datasets: ModuleType, path: Path) -> list[Rows]:
    """Returns the training split, and the test split if there is one. Raises InputError for a folder without a training split."""
    opener = _open_saved if any((path / name).is_file() for name in SAVED) else _open_parquet
    with _undamaged(path):
        splits = opener(datasets, path)
    splits = {name: rows for name, rows in splits.items() if rows.count}
    # Beside "train", "test" or "validation" themselves another spelling, and one of several words, is a part of the data.
    plain = {split_of(name) for name in splits if name in PLAIN}
    single = [name for name in splits if name in PLAIN or (name.isalpha() and split_of(name) not in plain)]
    first, second = pick_splits(single if "train" in splits else splits, path)
    train = splits.get(first or "")
    if train is None:
        raise InputError(
            "holds no training split; name a folder of save_to_disk, or one with train-*.parquet or train/*.parquet, in "
            "prepare_data.folder",
            key=path,
        )
    used = [train, *([splits[second]] if second else [])]
    if set(used[-1].features) != set(train.features):
        raise InputError(f"{train.name} and {used[-1].name} have different columns; prepare them with the same", key=path)
    if unused := [f"{rows.name} ({rows.count:,} rows)" for rows in splits.values() if rows not in used]:
        print(f"{path}: splits that are left out: {', '.join(unused)}", flush=True)
    return [rows._replace(read=partial(_checked, path, rows.read)) for rows in used]


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are of these types too
        raise InputError(f"is damaged, or no data set of Hugging Face ({first_line(error)}); replace it", key=path) from None


def _checked(path: Path, read: Callable[..., Parts], column: str, at_once: int, skip: Skip | None = None) -> Parts:
    with _undamaged(path):
        yield from read(column, at_once, skip or (lambda first, end: False))


def _open_saved(datasets: ModuleType, path: Path) -> dict[str, Rows]:
    saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"": saved}

    def read(dataset: Any, column: str, at_once: int, skip: Skip) -> Parts:
        raw = dataset.select_columns(column).with_format("arrow")
        for first in range(0, len(raw), at_once):
            if not skip(first, min(first + at_once, len(raw))):
                yield first, raw[first : first + at_once][column].to_pylist()

    return {name: Rows(name or "all", dict(rows.features), len(rows), partial(read, rows)) for name, rows in splits.items()}


def _open_parquet(datasets: ModuleType, path: Path) -> dict[str, Rows]:
    # Not load_dataset, which either copies the rows to a cache or reads whole row groups, all from the first row on.
    from pyarrow import dataset as arrow

    found = {pattern: sorted(path.glob(pattern)) for pattern in PARQUET}
    for pattern in PARQUET_FOLDERS:
        found[pattern] = [file for file in sorted(path.glob(pattern)) if split_of(file.parent.name)]
    files = next(filter(None, found.values()), [])
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(split_of(file.relative_to(path).as_posix()) or "", []).append(str(file))

    def read(table: Any, column: str, at_once: int, skip: Skip) -> Parts:
        first = 0
        for group in (group for file in table.get_fragments() for group in file.split_by_row_group()):
            count = group.row_groups[0].num_rows
            if skip(first, first + count):
                first += count
                continue
            for batch in group.to_batches(columns=[column], batch_size=at_once, batch_readahead=1, use_threads=False):
                yield first, batch.column(0).to_pylist()
                first += batch.num_rows

    splits = {}
    for name, paths in by_split.items():
        table = arrow.dataset(paths, format="parquet")
        features = dict(datasets.Features.from_arrow_schema(table.schema))
        splits[name] = Rows(name or "all", features, table.count_rows(), partial(read, table))
    return splits


def fetch(splits: list[Rows], firsts: list[int], column: str, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Load]]:
    """Yields the pictures, which come in the order of their rows; the rows of a split begin at its number in `firsts`."""
    todo = iter(pictures)
    following = next(todo, None)

    def skip(offset: int, first: int, end: int) -> bool:
        return following is None or following.offset >= offset + end

    for rows, offset in zip(splits, firsts, strict=True):
        for first, values in rows.read(column, PICTURES_AT_ONCE, partial(skip, offset)):
            while following is not None and following.offset < offset + first + len(values):
                yield following, partial(_load, values[following.offset - offset - first])
                following = next(todo, None)


def _load(value: bytes | dict | None) -> BytesIO:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise Unreadable("its row holds no picture, or only the path of one")
    check_size(len(data))
    return BytesIO(data)


def _image_column(datasets: ModuleType, rows: Rows, path: Path) -> str:
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    # Parquet files of other programs have no types of `datasets`.
    columns = columns or [name for name, kind in rows.features.items() if _holds_bytes(kind)]
    columns = [name for name in IMAGE_NAMES if name in columns][:1] or columns
    if len(columns) != 1:
        which = f"several columns of images ({', '.join(columns)})" if columns else "no column of images"
        raise InputError(f"has {which} among {', '.join(rows.features)}; leave one, or call it `image`", key=path)
    return columns[0]


def _holds_bytes(kind: Any) -> bool:
    return set(kind) == {"bytes", "path"} if isinstance(kind, dict) else getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label_column(datasets: ModuleType, rows: Rows, path: Path, label: str | None) -> str | None:
    if label is not None and label not in rows.features:
        message = f"{label!r} is no column of {path}; it has {', '.join(rows.features)}"
        raise InputError(message, key="prepare_data.label", where="params.yaml")
    if label is not None:
        return label
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    columns = [name for name in LABEL_NAMES if name in (columns or rows.features)][:1] or columns
    if len(columns) > 1:
        raise InputError(f"has several columns of classes ({', '.join(columns)}); name one in prepare_data.label", key=path)
    return columns[0] if columns else None


def _labels(rows: Rows, label: str, path: Path) -> list:
    """Returns the values of the label column. Raises InputError for one of no class."""
    values = [value for _, part in rows.read(label, LABELS_AT_ONCE) for value in part]
    for value in values:
        if not isinstance(value, int | str) or value == -1:  # `datasets` writes -1 for an unknown class
            raise InputError(
                f"column {label} of {rows.name} holds {value!r}, which is no class; leave those rows out, or name "
                "another column, or none, in prepare_data.label",
                key=path,
            )
    return values


def _stamp(path: Path) -> str:
    return " ".join(f"{file.relative_to(path)} {stamp_of(file)}" for file in sorted(path.rglob("*")) if file.is_file())
