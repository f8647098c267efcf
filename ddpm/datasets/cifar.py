"""Reads CIFAR-10 (Krizhevsky 2009) from the published archive, in place, or from its unpacked folder."""

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np

from ddpm.core.files import InputError, first_line
from ddpm.datasets.archives import DAMAGED

ARCHIVE, UNPACKED = "cifar-10-python.tar.gz", "cifar-10-batches-py"


def find_cifar10(root: Path) -> Path | None:
    """Returns the unpacked folder or the archive, in the raw folder or in its folder cifar10; None if there is neither."""
    found = [root / below / name for below in (".", "cifar10") for name in (UNPACKED, ARCHIVE)]
    return next((path for path in found if path.exists()), None)


def download_cifar10(root: Path) -> None:
    """Downloads and unpacks the archive. Raises OSError or RuntimeError."""
    from torchvision.datasets import CIFAR10

    CIFAR10(root, download=True)


def read_cifar10(path: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Returns train and test, each as images uint8 (N, 32, 32, 3) and labels int64 (N,), and the class names.

    path: the folder or the archive.
    Raises InputError for a file that is missing or is not the published one.
    """
    from torchvision.datasets import CIFAR10  # which knows the published files

    checksums = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    try:
        content = {}
        for name, data in _files(path, checksums).items():
            # The files are pickles, which may run code: only the published ones are loaded.
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != checksums[name]:
                raise ValueError(f"{name} is not the published file")
            content[name] = pickle.loads(data, encoding="latin1")
    except DAMAGED as error:
        advice = f"delete it, and let it download or put {ARCHIVE} into {path.parent}"
        raise InputError(f"damaged ({first_line(error)}); {advice}", key=path) from None
    splits = []
    for names in (CIFAR10.train_list, CIFAR10.test_list):
        batches = [content[name] for name, _ in names]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits.append((images, np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)))
    return splits, content[CIFAR10.meta["filename"]][CIFAR10.meta["key"]]


def _files(path: Path, names: dict[str, str]) -> dict[str, bytes]:
    """Returns the bytes of the named files. Raises one of DAMAGED if any is missing."""
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in names}
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive if member.isreg()}
    if missing := [name for name in names if f"{UNPACKED}/{name}" not in members]:
        raise ValueError(f"it holds no {missing[0]}")
    return {name: members[f"{UNPACKED}/{name}"] for name in names}
