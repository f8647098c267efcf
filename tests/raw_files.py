"""Raw pictures for tests."""

import os
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


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of the prepared arrays."""
    return {name: (folder / name).read_bytes() for name in ARRAYS}


def arrays(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / name) for name in ARRAYS]
