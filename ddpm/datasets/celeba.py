"""Reads CelebA (Liu et al. 2015) as torchvision or Kaggle has it: faces, the official partition, an attribute as the class.

celeba/img_align_celeba/000001.jpg, ... (or in one more folder img_align_celeba) or celeba/img_align_celeba.zip
celeba/list_eval_partition.txt      a name and 0 (train), 1 (validation) or 2 (test) per line
celeba/list_attr_celeba.txt         a count, the names of the attributes, then a name and -1 or 1 for each per line

Kaggle's lists are list_eval_partition.csv and list_attr_celeba.csv: each with the names of its columns, separated by commas. Its
archive.zip, which holds everything, is read in place.
"""

from collections.abc import Iterator
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError
from ddpm.datasets.archives import kind_of, list_archive, read_text, stamp_of
from ddpm.datasets.image_folder import walk
from ddpm.datasets.index import Assignment, Files, ImageIndex, on_disk
from ddpm.datasets.settings import NO_CLASSES

PARTITION, ATTRIBUTES, FACES = "list_eval_partition", "list_attr_celeba", "img_align_celeba"
ARCHIVES = (f"{FACES}.zip", "archive.zip", "celeba-dataset.zip")  # the others from Kaggle's page, and from its command line
# The number of lines before the first row, the last of which names the attributes.
HEADERS = {(PARTITION, ".txt"): 0, (PARTITION, ".csv"): 1, (ATTRIBUTES, ".txt"): 2, (ATTRIBUTES, ".csv"): 1}
# The validation pictures are left out, as for published results.
PARTS = {"0": 0, "2": 1}
DEFAULT = "Male"
# Better names for the two classes of an attribute than "not X" and "x".
CLASS_NAMES = {"Male": ("female", "male"), "Young": ("old", "young")}


class List(NamedTuple):
    """One of both lists, as texts.

    path: of its file.
    above: the rows before the first picture.
    rows: the name of a picture and its values; read once.
    """

    path: Path
    above: list[list[str]]
    rows: Iterator[list[str]]

    def line(self, row: int) -> str:
        """Returns the place of a row, counted from 0, for a message."""
        return f"{self.path} line {len(self.above) + row + 1}"


def read_celeba(root: Path, attribute: str | None) -> tuple[Files, list[str]]:
    """Returns the pictures of the training and the test partition, and the names of both classes of an attribute.

    attribute: a column of list_attr_celeba; None is DEFAULT, and NO_CLASSES gives pictures without classes.
    Raises InputError for a missing or damaged file, and for an unknown attribute.
    """
    folder = root / "celeba"
    archive = next((folder / name for name in ARCHIVES if (folder / name).is_file()), None)
    unpacked = (folder / FACES).is_dir()
    partition, attributes = (_read_list([folder, *([archive] if archive else [])], name) for name in (PARTITION, ATTRIBUTES))
    if not (unpacked or archive) or partition is None or attributes is None:
        raise InputError(
            f"CelebA is missing; put {FACES}/ or {FACES}.zip, {PARTITION}.txt and {ATTRIBUTES}.txt (or .csv) there, from "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or Kaggle's archive.zip of jessicali9530/celeba-dataset, or set "
            "DDPM_DATA_ROOT to the folder that has celeba/",
            key=folder,
        )
    with_classes, attribute = attribute != NO_CLASSES, DEFAULT if attribute in (None, NO_CLASSES) else attribute
    index, store, stamp = ImageIndex(), on_disk(folder), ""
    if unpacked:
        index.add_pictures(walk(folder, f"{FACES}/"))
    else:
        list_archive(archive, index)
        store, stamp = kind_of(archive).store(archive), stamp_of(archive)
    index.skipped.clear()  # lists in the archive
    path_of = {path.rpartition("/")[2]: path for path in index.files}
    rows = (row._replace(name=path_of.get(row.name, f"{FACES}/{row.name}"), label=row.label if with_classes else 0)
            for row in _assignments(partition, attributes, attribute))  # fmt: skip
    if missing := index.assign(rows):
        message = f"is in {partition.path.name}, but missing; unpack or download the pictures again"
        raise InputError(message, key=store.where / missing)
    names = CLASS_NAMES.get(attribute, tuple(f"{prefix}{attribute.lower().replace('_', ' ')}" for prefix in ("not ", "")))
    names = names if with_classes else ()
    if not np.bincount(index.labels(0), minlength=len(names) or 1).all() or not index.counts[1]:
        shown = ", ".join(names) or "the splits"
        raise InputError(f"leaves no pictures of one of {shown}, or none to test; replace it", key=partition.path)
    return Files(index, store, stamp), list(names)


def _read_list(places: list[Path], name: str) -> List | None:
    for place, ending in product(places, (".txt", ".csv")):
        if (text := read_text(place, f"{name}{ending}")) is not None:
            rows = (line.split("," if ending == ".csv" else None) for line in text.splitlines())
            return List(place / f"{name}{ending}", list(islice(rows, HEADERS[name, ending])), rows)
    return None


def _assignments(partition: List, attributes: List, attribute: str) -> Iterator[Assignment]:
    """Yields the split and class of each picture, from both lists, which name the same pictures in the same order."""
    known = [name for name in (attributes.above or [[]])[-1] if name != "image_id"]
    if attribute not in known:
        message = f"{attribute!r} is no attribute of {attributes.path}; it has {', '.join(known)}"
        raise InputError(message, key="prepare_data.label", where="params.yaml")
    column = 1 + known.index(attribute)
    for number, (part, row) in enumerate(zip_longest(partition.rows, attributes.rows, fillvalue=[])):
        name, place, *_ = [*part, "", ""]
        if row[:1] != [name] or place not in ("0", "1", "2") or len(row) != len(known) + 1:
            raise InputError(f"{partition.line(number)}: does not match {attributes.line(number)}; replace both")
        if row[column] not in ("1", "-1"):
            raise InputError(f"{attribute} is {row[column]!r}, not 1 or -1; replace the file", key=attributes.line(number))
        if place in PARTS:
            yield Assignment(name, PARTS[place], int(row[column] == "1"), name.encode())
