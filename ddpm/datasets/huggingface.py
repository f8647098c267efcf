"""Rows of a data set of Hugging Face's `datasets` on disk: a folder that save_to_disk wrote, or one of parquet files.

They are read in order, a few at a time; nothing is copied to a cache, and the network is never used.


An image data set of Hugging Face's `datasets` on disk: a folder that save_to_disk wrote, or one of parquet files.

Which column holds the pictures and which the class is found out; `rows` reads them.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ddpm.core.files import InputError
from ddpm.datasets.archives import stamp_of
from ddpm.datasets.image_folder import TEST_NAMES, TRAIN_NAMES, held_out
from ddpm.datasets.image_io import Unreadable
from ddpm.datasets.index import Assignment, Files, FoundFile, ImageIndex, Load, Picture, Store, bounded

SAVED = ("dataset_dict.json", "dataset_info.json")  # one of them lies in what save_to_disk wrote
PARQUET = ("*.parquet", "data/*.parquet")
AT_ONCE = 16  # pictures
# Whether rows first..end may be left out.
Skip = Callable[[int, int], bool]


class Rows(NamedTuple):
    """One split: the types of its columns, how many rows it has, and its reader.

    read: (column, rows at once, whether rows first..end can be left out) -> (first row, values) of parts, in order.
    """

    name: str
    features: dict[str, Any]
    count: int
    read: Callable[[str, int, Skip], Iterator[tuple[int, list]]]


def library() -> ModuleType:
    # Read when it is imported.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"huggingface needs a library that is missing ({error}); pip install datasets", key="dataset") from None
    return datasets


def open_rows(datasets: ModuleType, path: Path) -> list[Rows]:
    """The training split, and the test split if there is one."""
    opener = _open_saved if any((path / name).is_file() for name in SAVED) else _open_parquet
    with _undamaged(path):
        splits = opener(datasets, path)
    train = next((splits[name] for name in (*TRAIN_NAMES, "") if name in splits), None)
    if train is None or not train.count:
        raise InputError(
            "holds no training split; name a folder that save_to_disk wrote, or one with train-*.parquet, in prepare_data.folder",
            key=path,
        )
    tests = [splits[name] for name in TEST_NAMES if name in splits and splits[name].count]
    if tests and set(tests[0].features) != set(train.features):
        raise InputError(f"{train.name} and {tests[0].name} have different columns; prepare them with the same", key=path)
    return [rows._replace(read=partial(_checked, path, rows.read)) for rows in (train, *tests[:1])]


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are of these types too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"is damaged, or no data set of Hugging Face ({reason}); replace it", key=path) from None


def _checked(path: Path, read: Callable, column: str, at_once: int, skip: Skip) -> Iterator[tuple[int, list]]:
    with _undamaged(path):
        yield from read(column, at_once, skip)


def _open_saved(datasets: ModuleType, path: Path) -> dict[str, Rows]:
    found = datasets.load_from_disk(str(path))
    splits = found if isinstance(found, datasets.DatasetDict) else {"": found}

    def read(dataset: Any, column: str, at_once: int, skip: Skip) -> Iterator[tuple[int, list]]:
        raw = dataset.select_columns(column).with_format("arrow")
        for first in range(0, len(raw), at_once):
            if not skip(first, min(first + at_once, len(raw))):
                yield first, raw[first : first + at_once][column].to_pylist()

    return {name: Rows(name or "all", dict(rows.features), len(rows), partial(read, rows)) for name, rows in splits.items()}


def _open_parquet(datasets: ModuleType, path: Path) -> dict[str, Rows]:
    from pyarrow import parquet

    files = next((found for pattern in PARQUET if (found := sorted(path.glob(pattern)))), [])
    by_split: dict[str, list[Path]] = {}
    for file in files:
        word = re.split(r"[-_.]", file.name.lower())[0]
        by_split.setdefault(word if word in TRAIN_NAMES + TEST_NAMES else "", []).append(file)

    def read(parts: list[Path], column: str, at_once: int, skip: Skip) -> Iterator[tuple[int, list]]:
        first = 0
        for part in parts:
            # Read page by page: a group of rows may be larger than the memory.
            with parquet.ParquetFile(part, buffer_size=1 << 20, pre_buffer=False) as file:
                for group in range(file.num_row_groups):
                    end = first + file.metadata.row_group(group).num_rows
                    if skip(first, end):
                        first = end
                        continue
                    for batch in file.iter_batches(at_once, row_groups=[group], columns=[column], use_threads=False):
                        yield first, batch.column(0).to_pylist()
                        first += batch.num_rows

    return {
        name: Rows(
            name or "all",
            dict(datasets.Features.from_arrow_schema(parquet.read_schema(parts[0]))),
            sum(parquet.read_metadata(part).num_rows for part in parts),
            partial(read, parts),
        )
        for name, parts in by_split.items()
    }


def nothing(first: int, end: int) -> bool:
    """Leaves no rows out."""
    return False


def fetch(splits: list[Rows], firsts: list[int], column: str, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Load]]:
    """The pictures, which come in the order of their rows."""
    todo = iter(pictures)
    ahead = [next(todo, None)]
    for rows, offset in zip(splits, firsts, strict=True):

        def skip(first: int, end: int, offset: int = offset) -> bool:
            return ahead[0] is None or ahead[0].place >= offset + end

        for first, values in rows.read(column, AT_ONCE, skip):
            while ahead[0] is not None and ahead[0].place < offset + first + len(values):
                picture = ahead[0]
                yield picture, partial(_load, values[picture.place - offset - first], picture)
                ahead[0] = next(todo, None)


def _load(value: bytes | dict | None, picture: Picture) -> BytesIO:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise Unreadable("its row holds no picture, or only the path of one")
    bounded(picture._replace(length=len(data)))
    return BytesIO(data)


IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
LABELS_AT_ONCE = 10_000
MAX_CLASSES = 10_000
ONLY_CLASS = "image"


def read_huggingface(path: Path, label: str | None, mode: str | None, test_share: float) -> tuple[Files, list[str]]:
    """All pictures of the train and the test (or validation) split, and the class names; of a single split, a stratified share
    of `test_share` becomes the test split.

    label: the column that is the class; None: the only ClassLabel column, or `label`. Without one, all are of one class.
    Raises InputError where `datasets` or the data set is missing, and for columns that are missing or ambiguous.
    """
    datasets = library()
    splits = open_rows(datasets, path)
    image, label = _image_column(datasets, splits[0], path), _label_column(datasets, splits[0], path, label)
    values = _values(splits[0], label, path)
    feature = splits[0].features.get(label)
    names = [feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value) for value in values]
    names = names if label else [ONLY_CLASS]
    listing = ImageIndex()
    firsts = [0, splits[0].count][: len(splits)]
    for rows, first in zip(splits, firsts, strict=True):
        listing.add(FoundFile(_name(rows, i), first + i, 0, 1) for i in range(rows.count))
    split = held_out(test_share, path, "add rows, change prepare_data.test_share, or add a test split")
    wanted = _wanted(splits, label, {value: number for number, value in enumerate(values)}, path)
    listing.assign(wanted, split if len(splits) == 1 else None)
    if label is None:
        print(f"{path}: no column of classes; all images are of one class", flush=True)
    store = Store(path, partial(fetch, splits, firsts, image), in_place_order=True)
    return Files(listing, store, mode, _stamp(path)), names


def _image_column(datasets: ModuleType, rows: Rows, path: Path) -> str:
    found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    # Parquet files that `datasets` did not write have no types of its own.
    found = found or [name for name, kind in rows.features.items() if _holds_bytes(kind)]
    found = [name for name in IMAGE_NAMES if name in found][:1] or found
    if len(found) != 1:
        which = f"several columns of images ({', '.join(found)})" if found else "no column of images"
        raise InputError(f"has {which} among {', '.join(rows.features)}; leave one, or call it `image`", key=path)
    return found[0]


def _holds_bytes(kind: Any) -> bool:
    return set(kind) == {"bytes", "path"} if isinstance(kind, dict) else getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label_column(datasets: ModuleType, rows: Rows, path: Path, label: str | None) -> str | None:
    if label is not None:
        if label not in rows.features:
            raise InputError(
                f"{label!r} is no column of {path}; it has {', '.join(rows.features)}",
                key="prepare_data.label",
                where="params.yaml",
            )
        return label
    found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    found = [name for name in LABEL_NAMES if name in (found or rows.features)][:1] or found
    if len(found) > 1:
        raise InputError(f"has several columns of classes ({', '.join(found)}); name one in prepare_data.label", key=path)
    return found[0] if found else None


def _values(rows: Rows, label: str | None, path: Path) -> list:
    """The values of the classes of the training split, sorted; one None where there are no classes."""
    if label is None:
        return [None]
    values = set()
    for _, part in rows.read(label, LABELS_AT_ONCE, nothing):
        values.update(_plain(part, rows, label, path))
        if len(values) > MAX_CLASSES:
            raise InputError(f"column {label} has more than {MAX_CLASSES:,} values; name another in prepare_data.label", key=path)
    return sorted(values)


def _plain(part: list, rows: Rows, label: str, path: Path) -> list:
    """The values of a part of the label column. Raises InputError unless each is a class."""
    for value in part:
        if not isinstance(value, int | str) or value == -1:  # -1: how `datasets` writes that a class is not known
            raise InputError(
                f"column {label} of {rows.name} holds {value!r}, which is no class; leave those rows out, or name "
                "another column in prepare_data.label",
                key=path,
            )
    return part


def _wanted(splits: list[Rows], label: str | None, numbers: dict, path: Path) -> Iterator[Assignment]:
    for part, rows in enumerate(splits):
        parts = rows.read(label, LABELS_AT_ONCE, nothing) if label else [(0, [None] * rows.count)]
        for first, values in parts:
            for i, value in enumerate(values if label is None else _plain(values, rows, label, path), first):
                if value not in numbers:
                    raise InputError(f"{rows.name} has the class {value!r}, {splits[0].name} has not; leave it out", key=path)
                yield Assignment(_name(rows, i), part, numbers[value], i.to_bytes(8, "big"))


def _name(rows: Rows, i: int) -> str:
    return f"{rows.name} row {i}"


def _stamp(path: Path) -> str:
    return " ".join(f"{file.relative_to(path)} {stamp_of(file)}" for file in sorted(path.rglob("*")) if file.is_file())
