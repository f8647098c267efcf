"""Raw pictures for tests."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import error_of
from PIL import Image
from torchvision.datasets import CIFAR10

from ddpm.datasets.idx import IDX_FILES
from ddpm.datasets.image_io import decode
from ddpm.datasets.index import Files
from ddpm.datasets.registry import DATASETS, Source
from ddpm.datasets.settings import PrepareData

REAL = os.environ.get("DDPM_DATA_ROOT")  # read before a test changes it
ARRAYS = [f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels")]


def real(name: str) -> pytest.MarkDecorator:
    """Skips a test where the folder of real files lacks this one."""
    there = REAL is not None and (Path(REAL) / name).exists()
    return pytest.mark.skipif(not there, reason=f"DDPM_DATA_ROOT does not name a folder with {name}")


def settings(**changes) -> PrepareData:
    """Returns the section prepare_data with changes."""
    defaults = {
        "image_size": None, "resize_mode": "pad", "channels": "native", "folder": "pictures", "labels": None, "file_column": None,
        "label": None, "test_share": 0.25, "skip_bad": False, "background": "black", "value_range": None,
    }  # fmt: skip
    return PrepareData(**{**defaults, **changes})


class Pictures(Sequence):
    """The pictures of one split, decoded on access."""

    def __init__(self, files: Files, split: int):
        self.files, self.listed = files, files.index.splits[split]

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, position: int) -> np.ndarray:
        ((_, load_one),) = self.files.store.fetch([self.listed[position]])
        return decode(load_one())


def load(dataset: str, **changes) -> Source:
    """Loads a data set; the images of picture files are Pictures."""
    source = DATASETS[dataset].load(settings(**changes))
    if source.files is None:
        return source
    train, test = (raw._replace(images=Pictures(source.files, split)) for split, raw in enumerate(source[:2]))
    return source._replace(train=train, test=test)


def refused(call, *arguments, **options) -> str:
    """Returns the message of the InputError, which is one line."""
    message = str(error_of(call, *arguments, **options))
    assert "\n" not in message
    return message


def paths(images: Pictures) -> list[Path]:
    """Returns the path of every picture of a split, in order."""
    return [images.files.store.where / picture.name for picture in images.listed]


def colours(path: Path, count: int, first: int = 0, size: tuple[int, int] = (6, 5), suffix: str = ".png") -> None:
    """Writes pictures 00, 01, ... each of its own color."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (first + i, 255 - i, first)).save(path / f"{i:02}{suffix}")


def png(colour: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), colour).save(file, "PNG")
    return file.getvalue()


def pack(archive: Path, members: list[tuple[str, bytes]]) -> Path:
    """Writes an archive of these members, in this order; its suffix sets its format. A name that ends with "/" is a folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members:
                file.writestr(name, data)
    else:
        compression = "" if archive.suffix == ".tar" else archive.suffix.lstrip(".t")
        with tarfile.open(archive, f"w:{compression}") as file:
            for name, data in members:
                member = tarfile.TarInfo(name.rstrip("/"))
                member.size = len(data)
                member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                file.addfile(member, io.BytesIO(data))
    return archive


def write_members(folder: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes files, and folders whose names end with "/"."""
    for name, data in members:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(data)


def put(raw: Path, kind: str, members: Iterable[tuple[str, bytes]]) -> Path:
    """Writes members into raw/pictures, or into an archive of that kind beside it; returns its path."""
    if kind:
        return pack(raw / f"pictures{kind}", list(members))
    write_members(raw / "pictures", members)
    return raw / "pictures"


def idx(array: np.ndarray) -> bytes:
    """The idx file of a uint8 array."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


RANDOM = np.random.default_rng(0)
IDX_ARRAYS = {
    ("train", "images"): RANDOM.integers(0, 256, (7, 6, 5), np.uint8),
    ("train", "labels"): np.array([3, 1, 4, 1, 5, 9, 2], np.uint8),
    ("test", "images"): RANDOM.integers(0, 256, (3, 6, 5), np.uint8),
    ("test", "labels"): np.array([6, 5, 0], np.uint8),
}


def put_idx_files(folder: Path, zipped: bool = False, **changes: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in IDX_FILES.items():
        content = changes.get("_".join(key), idx(IDX_ARRAYS[key]))
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)


CIFAR_ROWS = np.random.default_rng(0).integers(0, 256, (12, 3 * 32 * 32), np.uint8)


def write_cifar10(folder: Path, monkeypatch, archived: bool, published: bool = True) -> Path:
    """Writes CIFAR-10's files, two images each, into a folder or an archive in it; `published`: as if these were published."""
    files = {
        name: pickle.dumps({"data": CIFAR_ROWS[2 * i : 2 * i + 2], "labels": [i, 9 - i]})
        for i, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list])
    }
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    if published:
        checksum = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(CIFAR10, attribute, [[name, checksum[name]] for name, _ in getattr(CIFAR10, attribute)])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksum["batches.meta"]})
    members = [(f"cifar-10-batches-py/{name}", data) for name, data in files.items()]
    if archived:
        folder.mkdir(exist_ok=True)
        return pack(folder / "cifar-10-python.tar.gz", members)
    write_members(folder, members)
    return folder / "cifar-10-batches-py"


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of the prepared arrays."""
    return {name: (folder / name).read_bytes() for name in ARRAYS}


def arrays(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / name) for name in ARRAYS]
