"""An image data set of Hugging Face's `datasets` on disk: a folder that save_to_disk wrote, or one of parquet files.

Which column holds the pictures and which the class is found out; `rows` reads them.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpm.data.archives import stamp_of
from ddpm.data.folder import held_out
from ddpm.data.listing import Entry, Listing, Wanted
from ddpm.data.pictures import Files, Store
from ddpm.data.rows import Rows, fetch, library, nothing, open_rows
from ddpm.files import InputError

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
LABELS_AT_ONCE = 10_000
MOST_CLASSES = 10_000
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
    listing = Listing()
    firsts = [0, splits[0].count][: len(splits)]
    for rows, first in zip(splits, firsts, strict=True):
        listing.add(Entry(_name(rows, i), first + i, 0, 1) for i in range(rows.count))
    split = held_out(test_share, path, "add rows, change prepare_data.test_share, or add a test split")
    wanted = _wanted(splits, label, {value: number for number, value in enumerate(values)}, path)
    listing.arrange(wanted, split if len(splits) == 1 else None)
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
        raise InputError(f"{path}: has {which} among {', '.join(rows.features)}; leave one, or call it `image`")
    return found[0]


def _holds_bytes(kind: Any) -> bool:
    return set(kind) == {"bytes", "path"} if isinstance(kind, dict) else getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label_column(datasets: ModuleType, rows: Rows, path: Path, label: str | None) -> str | None:
    if label is not None:
        if label not in rows.features:
            raise InputError(
                f"params.yaml: prepare_data.label: {label!r} is no column of {path}; it has {', '.join(rows.features)}"
            )
        return label
    found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    found = [name for name in LABEL_NAMES if name in (found or rows.features)][:1] or found
    if len(found) > 1:
        raise InputError(f"{path}: has several columns of classes ({', '.join(found)}); name one in prepare_data.label")
    return found[0] if found else None


def _values(rows: Rows, label: str | None, path: Path) -> list:
    """The values of the classes of the training split, sorted; one None where there are no classes."""
    if label is None:
        return [None]
    values = set()
    for _, part in rows.read(label, LABELS_AT_ONCE, nothing):
        values.update(_plain(part, rows, label, path))
        if len(values) > MOST_CLASSES:
            raise InputError(f"{path}: column {label} has more than {MOST_CLASSES:,} values; name another in prepare_data.label")
    return sorted(values)


def _plain(part: list, rows: Rows, label: str, path: Path) -> list:
    """The values of a part of the label column. Raises InputError unless each is a class."""
    for value in part:
        if not isinstance(value, int | str) or value == -1:  # -1: how `datasets` writes that a class is not known
            raise InputError(
                f"{path}: column {label} of {rows.name} holds {value!r}, which is no class; leave those rows out, or name "
                "another column in prepare_data.label"
            )
    return part


def _wanted(splits: list[Rows], label: str | None, numbers: dict, path: Path) -> Iterator[Wanted]:
    for part, rows in enumerate(splits):
        parts = rows.read(label, LABELS_AT_ONCE, nothing) if label else [(0, [None] * rows.count)]
        for first, values in parts:
            for i, value in enumerate(values if label is None else _plain(values, rows, label, path), first):
                if value not in numbers:
                    raise InputError(f"{path}: {rows.name} has the class {value!r}, {splits[0].name} has not; leave it out")
                yield Wanted(_name(rows, i), part, numbers[value], i.to_bytes(8, "big"))


def _name(rows: Rows, i: int) -> str:
    return f"{rows.name} row {i}"


def _stamp(path: Path) -> str:
    return " ".join(f"{file.relative_to(path)} {stamp_of(file)}" for file in sorted(path.rglob("*")) if file.is_file())
