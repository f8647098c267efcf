"""Input images and masks by name: files, test images, samples of a seed, and named masks."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ddpm.core.files import InputError, printable
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import open_test
from ddpm.datasets import image_io
from ddpm.editing.inpaint import MASKS, named_mask, to_mask
from ddpm.editing.names import check_mask, image_name
from ddpm.editing.tasks import ImageSource
from ddpm.sampling.labels import Label, conditioning_for
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import latent_of


def read_picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads a picture, and center-crops and scales it to an image of a model, uint8 (H, W, C) of `shape`.

    Raises InputError if it cannot be read.
    """
    height, width, channels = shape
    array = image_io.read_picture(path, "L" if channels == 1 else "RGB")
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)).reshape(shape)


class NamedImage(NamedTuple):
    """An input image.

    name: as the user wrote it.
    source: its image or latent, with its labels.
    caption: its class or text, or "".
    """

    name: str
    source: ImageSource
    caption: str

    @property
    def title(self) -> str:
        return printable(f"{self.name} ({self.caption})" if self.caption else self.name)


def open_image(
    model: DiffusionModel, name: str, label: str | None = None, text: str | None = None, guidance: float = 1.0
) -> NamedImage:
    """Returns the image of a name: `test:12` of the test split, `seed:7` the sample of a seed, else the path of a picture.

    label, text: its conditioning. By default it is the class of a test image, class S of `seed:S` (modulo the number of
        classes), and no class for a picture; with guidance 0 none.

    Raises InputError for an unknown name, label or text.
    """
    kind, number = image_name(name) or ("picture", 0)
    classes = model.data["class_names"]
    if kind == "seed":
        default, image, latent = number % len(classes), None, latent_of(model, number)
    elif kind == "test":
        array, default = _test_image(model, name, number)
        image, latent = _tensor(model, array), None
    else:
        default, image, latent = None, _tensor(model, read_picture(Path(name), model.shape)), None
    chosen: list[Label] = [label] if label else []
    if not label and not text and model.network.takes_labels and guidance != 0:
        if default is None and not model.supports_cfg:
            raise InputError(f"this model needs the class of {name}; give one: {', '.join(classes[:20])}", key="label")
        chosen = [default]
    labels, captions = conditioning_for(model, 1, chosen, [text] if text else [], guidance)
    return NamedImage(name, ImageSource(image, latent, labels), captions[0])


def _test_image(model: DiffusionModel, name: str, number: int) -> tuple[np.ndarray, int]:
    meta, test = open_test()
    if any(meta.get(key) != value for key, value in model.data.items()):
        raise InputError(
            "data/prepared holds other data than this model was trained on; name a picture, or a sample such as 'seed:7'",
            key=name,
        )
    if number >= len(test.images):
        raise InputError(f"there are {len(test.images):,} test images; give 0 to {len(test.images) - 1}", key=name)
    return test.images[number], int(test.labels[number])


def _tensor(model: DiffusionModel, image: np.ndarray) -> Tensor:
    return to_model_range(to_tensor(image[None], model.device))


def open_mask(name: str, shape: tuple[int, int, int]) -> Tensor:
    """Returns a mask (1, 1, H, W), 1 where a pixel is known, by a name in MASKS or from a picture that is white where to fill.

    Raises InputError for a name that is neither, and for a picture without white.
    """
    if name in MASKS:
        return named_mask(name, shape)
    check_mask(name, MASKS)
    filled = read_picture(Path(name), (*shape[:2], 1))[..., 0] >= 128
    if not filled.any():
        raise InputError(f"{name} has no white pixels; paint it white where the image is to be filled", key="mask")
    return to_mask(~filled)
