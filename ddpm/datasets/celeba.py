"""Reads CelebA (Liu et al. 2015) in torchvision's layout: aligned faces, the official partition, an attribute as the class.

celeba/img_align_celeba/000001.jpg, ... or celeba/img_align_celeba.zip
celeba/list_eval_partition.txt      a name and 0 (train), 1 (validation) or 2 (test) per line
celeba/list_attr_celeba.txt         a count, the names of the attributes, then a name and -1 or 1 for each per line
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ddpm.core.files import InputError
from ddpm.datasets.archives import kind_of, list_archive, stamp_of
from ddpm.datasets.image_folder import walk
from ddpm.datasets.index import Assignment, Files, ImageIndex, on_disk

PARTITION, ATTRIBUTES, FACES = "list_eval_partition.txt", "list_attr_celeba.txt", "img_align_celeba"
# The validation pictures are left out, as for published results.
PARTS = {"0": 0, "2": 1}
DEFAULT = "Male"
# Better names for the two classes of an attribute than "not X" and "x".
CLASS_NAMES = {"Male": ("female", "male"), "Young": ("old", "young")}


def read_celeba(root: Path, attribute: str | None) -> tuple[Files, list[str]]:
    """Returns the pictures of the training and the test partition, and the names of both classes of an attribute.

    attribute: a column of list_attr_celeba.txt; None is DEFAULT.
    Raises InputError for a missing or damaged file, and for an unknown attribute.
    """
    folder = root / "celeba"
    archive = folder / f"{FACES}.zip"
    faces = (folder / FACES).is_dir() or archive.is_file()
    if not (faces and (folder / PARTITION).is_file() and (folder / ATTRIBUTES).is_file()):
        raise InputError(
            f"CelebA is missing; put {FACES}/ or {FACES}.zip, {PARTITION} and {ATTRIBUTES} there, from "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or set DDPM_DATA_ROOT to the folder that has celeba/",
            key=folder,
        )
    attribute = attribute or DEFAULT
    index, store, stamp = ImageIndex(), on_disk(folder), ""
    if (folder / FACES).is_dir():
        index.add_pictures(walk(folder, f"{FACES}/"))
    else:
        list_archive(archive, index)
        store, stamp = kind_of(archive).store(archive), stamp_of(archive)
    if missing := index.assign(_assignments(folder, attribute)):
        raise InputError(f"is in {PARTITION}, but missing; unpack or download the pictures again", key=store.where / missing)
    names = CLASS_NAMES.get(attribute, tuple(f"{prefix}{attribute.lower().replace('_', ' ')}" for prefix in ("not ", "")))
    if not np.bincount(index.labels(0), minlength=len(names)).all() or not index.counts[1]:
        raise InputError(f"leaves no pictures of one of {', '.join(names)}, or none to test; replace it", key=folder / PARTITION)
    return Files(index, store, stamp), list(names)


def _assignments(folder: Path, attribute: str) -> Iterator[Assignment]:
    """Yields the split and class of each picture, from both lists, which name the same pictures in the same order."""
    partition, attributes = folder / PARTITION, folder / ATTRIBUTES
    try:
        with open(partition, encoding="utf-8") as parts, open(attributes, encoding="utf-8") as rows:
            next(rows, "")
            known = next(rows, "").split()
            if attribute not in known:
                message = f"{attribute!r} is no attribute of {attributes}; it has {', '.join(known)}"
                raise InputError(message, key="prepare_data.label", where="params.yaml")
            column = 1 + known.index(attribute)
            for number, (part, row) in enumerate(zip_longest(parts, rows, fillvalue=""), 1):
                name, place, *_ = [*part.split(), "", ""]
                values = [*row.split(), ""]
                if name != values[0] or place not in ("0", "1", "2") or len(values) != len(known) + 2:
                    raise InputError(f"{partition} line {number}: does not match {attributes} line {number + 2}; replace both")
                if values[column] not in ("1", "-1"):
                    where = f"{attributes} line {number + 2}"
                    raise InputError(f"{attribute} is {values[column]!r}, not 1 or -1; replace the file", key=where)
                if place in PARTS:
                    yield Assignment(f"{FACES}/{name}", PARTS[place], int(values[column] == "1"), name.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{partition}, {attributes}: cannot be read ({error}); replace them") from None
