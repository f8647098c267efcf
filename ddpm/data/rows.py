"""Rows of a data set of Hugging Face's `datasets` on disk: a folder that save_to_disk wrote, or one of parquet files.

They are read in order, a few at a time; nothing is copied to a cache, and the network is never used.
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

from ddpm.data.decode import Unreadable
from ddpm.data.folder import TEST_NAMES, TRAIN_NAMES
from ddpm.data.listing import Picture
from ddpm.data.pictures import Load, bounded
from ddpm.files import InputError

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
        raise InputError(f"dataset: huggingface needs a library that is missing ({error}); pip install datasets") from None
    return datasets


def open_rows(datasets: ModuleType, path: Path) -> list[Rows]:
    """The training split, and the test split if there is one."""
    opener = _open_saved if any((path / name).is_file() for name in SAVED) else _open_parquet
    with _undamaged(path):
        splits = opener(datasets, path)
    train = next((splits[name] for name in (*TRAIN_NAMES, "") if name in splits), None)
    if train is None or not train.count:
        raise InputError(
            f"{path}: holds no training split; name a folder that save_to_disk wrote, or one with train-*.parquet, in "
            "prepare_data.folder"
        )
    tests = [splits[name] for name in TEST_NAMES if name in splits and splits[name].count]
    if tests and set(tests[0].features) != set(train.features):
        raise InputError(f"{path}: {train.name} and {tests[0].name} have different columns; prepare them with the same")
    return [rows._replace(read=partial(_checked, path, rows.read)) for rows in (train, *tests[:1])]


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are of these types too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: is damaged, or no data set of Hugging Face ({reason}); replace it") from None


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
