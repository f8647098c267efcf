"""Raw pictures for tests."""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import error_of
from PIL import Image

from ddpm.datasets.index import Pictures
from ddpm.datasets.registry import DATASETS, Source
from ddpm.datasets.settings import PrepareData

REAL = os.environ.get("DDPM_DATA_ROOT")  # read before a test changes it
ARRAYS = [f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels")]


def real(name: str) -> pytest.MarkDecorator:
    """Skips a test where the folder of real files lacks this one."""
    there = REAL is not None and (Path(REAL) / name).exists()
    return pytest.mark.skipif(not there, reason=f"DDPM_DATA_ROOT does not name a folder with {name}")


def enter(folder: Path, monkeypatch) -> Path:
    """Makes an empty raw folder in `folder`, which becomes the current and the scratch folder."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("DDPM_SCRATCH", str(folder / "scratch"))
    monkeypatch.setenv("DDPM_DATA_ROOT", str(folder / "raw"))
    (folder / "raw").mkdir()
    return folder / "raw"


def settings(**changes) -> PrepareData:
    """Returns the section prepare_data with changes."""
    defaults = {
        "image_size": None, "resize_mode": "pad", "channels": "native", "folder": "pictures", "label": None, "test_share": 0.25,
        "skip_bad": False, "background": "black", "value_range": None,
    }  # fmt: skip
    return PrepareData(**{**defaults, **changes})


def load(dataset: str, **changes) -> Source:
    return DATASETS[dataset].load(settings(**changes))


def refused(call, *arguments, **options) -> str:
    """Returns the message of the InputError, which is one line."""
    message = str(error_of(call, *arguments, **options))
    assert "\n" not in message
    return message


def paths(images: Pictures) -> list[Path]:
    """Returns the path of every picture of a split, in order."""
    return [images.files.store.where / picture.name for picture in images.files.index.splits[images.split]]


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


def put(raw: Path, kind: str, members: Iterable[tuple[str, bytes]]) -> Path:
    """Writes files, and folders whose names end with "/", into raw/pictures, or into an archive of that kind beside it."""
    if kind:
        return pack(raw / f"pictures{kind}", list(members))
    for name, data in members:
        path = raw / "pictures" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(data)
    return raw / "pictures"


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of the prepared arrays."""
    return {name: (folder / name).read_bytes() for name in ARRAYS}


def arrays(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / name) for name in ARRAYS]
