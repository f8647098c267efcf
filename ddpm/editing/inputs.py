"""Images that people name on the command line or give to the web page: pictures, test images, samples of a seed, and masks."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import open_test
from ddpm.datasets import image_io
from ddpm.editing.inpaint import MASKS, known_where, named_mask
from ddpm.editing.tasks import Source
from ddpm.sampling.model import NO_CLASS, DiffusionModel, conditioning_for
from ddpm.sampling.noise import latent_of


def fit_picture(picture: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Any picture as an image of a model, uint8 (H, W, C) of `shape`: its colours converted, its middle cut out and scaled."""
    height, width, channels = shape
    converted = picture.convert("L" if channels == 1 else "RGB")
    return np.asarray(ImageOps.fit(converted, (width, height), Image.Resampling.BICUBIC)).reshape(shape)


def read_picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """A picture on disk as an image of a model, uint8 (H, W, C). Raises InputError, naming it, if it cannot be read."""
    if not os.path.isfile(path):
        raise InputError("no such picture; name a file, a test image such as 'test:3', or a sample such as 'seed:7'", key=path)
    array = image_io.read_picture(path, "L" if shape[2] == 1 else "RGB")
    return fit_picture(Image.fromarray(array[..., 0] if shape[2] == 1 else array), shape)


class Named(NamedTuple):
    """An image by its name, where it comes from, and what to write beside it."""

    name: str
    source: Source
    caption: str

    @property
    def title(self) -> str:
        return f"{self.name} ({self.caption})" if self.caption else self.name


def open_image(
    model: DiffusionModel, name: str, label: str | None = None, text: str | None = None, guidance: float = 1.0
) -> Named:
    """The image of a name: `test:12` of the test split, `seed:7` the sample of a seed, else the path of a picture.

    The network is told `label` or `text`; without either, the class of a test image, class S of `seed:S` (S modulo their
    number), and no class for a picture; with guidance 0 nothing. Raises InputError for a name, label or text that is none.
    """
    kind, _, number = name.partition(":")
    classes = model.data["class_names"]
    given = [label] if label else []
    if kind == "seed" and re.fullmatch(r"\d{1,12}", number):
        default = [classes[int(number) % len(classes)]]
        image, latent = None, latent_of(model, int(number))
    elif kind == "test" and re.fullmatch(r"\d{1,12}", number):
        raw, found = _test_image(model, int(number))
        default, image, latent = [classes[found]], _tensor(model, raw), None
    else:
        default = [NO_CLASS]
        image, latent = _tensor(model, read_picture(Path(name), model.shape)), None
    if not given and not text and model.network.takes_labels and guidance != 0:
        if default == [NO_CLASS] and not model.supports_cfg:
            raise InputError(f"this model must be told what {name} shows; give its class: {', '.join(classes[:20])}", key="label")
        given = default
    labels, captions = conditioning_for(model, 1, given, [text] if text else [], guidance)
    return Named(name, Source(image, latent, labels), captions[0])


def _test_image(model: DiffusionModel, number: int) -> tuple[np.ndarray, int]:
    meta, test = open_test()
    if any(meta.get(key) != value for key, value in model.data.items()):
        raise InputError(
            f"test:{number}: data/prepared holds other data than this model was trained on; name a picture, or a sample such as "
            "'seed:7'"
        )
    if number >= len(test.images):
        raise InputError(f"test:{number}: there are {len(test.images):,} test images; give 0 to {len(test.images) - 1}")
    return test.images[number], int(test.labels[number])


def _tensor(model: DiffusionModel, image: np.ndarray) -> Tensor:
    return to_model_range(to_tensor(image[None], model.device))


def open_mask(name: str, shape: tuple[int, int, int]) -> Tensor:
    """Known pixels (1, 1, H, W), 1 where known: by the name of what is to be filled (MASKS), or a picture, white where it is.

    Raises InputError for a name that is neither, and for a picture that leaves nothing to be filled.
    """
    if name in MASKS:
        return named_mask(name, shape)
    if not os.path.isfile(name):
        raise InputError(f"{name!r} is no picture, nor one of {', '.join(MASKS)}", key="mask")
    filled = read_picture(Path(name), (*shape[:2], 1))[..., 0] >= 128
    if not filled.any():
        raise InputError(f"{name} holds nothing to fill; paint it white where the image shall be filled", key="mask")
    return known_where(~filled)
