"""Tells the splits of a data set by their names, and holds out a test split where there is none."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ddpm.core.files import InputError, first_line

# The spellings of the splits, as regular expressions of a word; of several test splits the first kind is taken.
SPLITS = {
    "train": "trn|train(ing|val)?",
    "test": "tst|test(ing)?",
    "eval": "eval(uation)?",
    "val": "val|valid(at(e|ion|ing))?|dev(el|elopment)?",
}
MORE = "(set|data|split|dir|images?|imgs?)?"  # as in trainset


@cache  # it is called for each folder of each picture
def split_of(name: str) -> str | None:
    """Returns the key of SPLITS by which something is called, such as Training or test_set; None for none or several."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    kinds = {kind for kind, spellings in SPLITS.items() for word in words if re.fullmatch(f"({spellings}){MORE}", word)}
    return kinds.pop() if len(kinds) == 1 else None


def pick_splits(names: Iterable[str], where: Path) -> tuple[str | None, str | None]:
    """Returns the names of the training split and of the test split, None for one that is not there.

    Raises InputError, with the key `where`, for two of the same kind.
    """
    picked = {}
    for name in names:
        kind = split_of(name)
        if kind in picked:
            raise InputError(f"{picked[kind]} and {name} are the same split by their names; leave one of them", key=where)
        if kind:
            picked[kind] = name
    return picked.get("train"), next((picked[kind] for kind in SPLITS if kind in picked and kind != "train"), None)


def held_out(labels: np.ndarray, share: float | int, names: Sequence[str], where: Path, advice: str) -> np.ndarray:
    """Returns a mask bool (N,) of a stratified test split, for labels int64 (N,) of the classes `names`.

    share: of the test split, or its number of images.
    Raises InputError, with the key `where` and the advice, for too few images.
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels, minlength=len(names))
    if len(labels) > 1 and (counts == 1).any():
        name = names[int(np.flatnonzero(counts == 1)[0])]
        raise InputError(f"the class {name!r} has only one image, which cannot be split; {advice}", key=where)
    try:
        _, test = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"its {len(labels)} images cannot be split ({first_line(error)}); {advice}", key=where) from None
    mask = np.zeros(len(labels), bool)
    mask[test] = True
    return mask
