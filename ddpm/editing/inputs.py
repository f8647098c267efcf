"""Input images and masks: files, test images, samples of a seed, pictures, arrays, and named masks."""

from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ddpm.core.files import InputError, first_line, printable
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import IDENTITY, open_test
from ddpm.datasets import image_io
from ddpm.editing.inpaint import MASKS, named_mask, to_mask
from ddpm.editing.names import check_mask, image_name
from ddpm.editing.tasks import ImageSource
from ddpm.sampling.labels import Label, conditioning_for
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import latent_of

# The formats that keep all of a picture in these modes; pictures in other modes become RGB.
SAVED_AS = {**dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "PNG"), **dict.fromkeys(("I", "F"), "TIFF")}

ImageInput = str | PathLike | Image.Image | np.ndarray
MaskInput = str | PathLike | np.ndarray


def read_picture(path: Path | BytesIO, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads a picture, and center-crops and scales it to an image of a model, uint8 (H, W, C) of `shape`.

    Raises InputError if it cannot be read.
    """
    height, width, channels = shape
    array = image_io.read_picture(path, "L" if channels == 1 else "RGB")
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)).reshape(shape)


def _picture_file(image: Image.Image | np.ndarray) -> BytesIO:
    """Returns a picture or an array as a file, which is read as every other one.

    Raises InputError for an array that is not uint8 (H, W), (H, W, 1) or (H, W, 3), and for a picture that cannot be loaded.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not image.size or image.shape[2:] not in ((), (1,), (3,)) or image.ndim < 2:
            raise InputError(f"is {image.dtype} of shape {image.shape}; give uint8 (H, W), (H, W, 1) or (H, W, 3)", key="image")
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    file = BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in SAVED_AS:
            upright = upright.convert("RGB")
        upright.save(file, SAVED_AS[upright.mode])
    except OSError as error:
        raise InputError(f"cannot be read ({first_line(error)}); give another picture", key="image") from None
    return file


class NamedImage(NamedTuple):
    """An input image.

    name: as the user wrote it; the type of an array or of a picture.
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
    model: DiffusionModel, image: ImageInput, label: Label = None, text: str | None = None, guidance: float = 1.0
) -> NamedImage:
    """Returns an input image.

    image: `test:12` of the test split, `seed:7` for the sample of a seed, the path of a picture, a picture, or an array uint8
        (H, W) or (H, W, C).
    label, text: its conditioning. By default it is the class of a test image, class S of `seed:S` (modulo the number of
        classes), and no class for a picture; with guidance 0 none.

    Raises InputError for an unknown name, label or text.
    """
    classes = model.data["class_names"]
    if isinstance(image, np.ndarray | Image.Image):
        name, file, kind, number = type(image).__name__, _picture_file(image), "picture", 0
    elif isinstance(image, str | PathLike):
        name, file = str(image), Path(image)
        kind, number = image_name(name) or ("picture", 0)
    else:
        message = f"is a {type(image).__name__}; give a name, a path, a picture of Pillow, or an array uint8 (H, W, C)"
        raise InputError(message, key="image")
    if kind == "seed":
        default, image, latent = number % (len(classes) or 1), None, latent_of(model, number)
    elif kind == "test":
        array, default = _test_image(model, name, number)
        image, latent = _tensor(model, array), None
    else:
        default, image, latent = None, _tensor(model, read_picture(file, model.shape)), None
    chosen: list[Label] = [] if label is None else [label]
    if label is None and not text and model.network.takes_labels and guidance != 0:
        if default is None and not model.supports_cfg:
            raise InputError(f"this model needs the class of {name}; give one: {', '.join(classes[:20])}", key="label")
        chosen = [default]
    labels, captions = conditioning_for(model, 1, chosen, [text] if text else [], guidance)
    return NamedImage(name, ImageSource(image, latent, labels), captions[0])


def _test_image(model: DiffusionModel, name: str, number: int) -> tuple[np.ndarray, int]:
    meta, test = open_test()
    if any(meta[key] != model.data.get(key) for key in IDENTITY):
        raise InputError(
            "data/prepared holds other data than this model was trained on; name a picture, or a sample such as 'seed:7'",
            key=name,
        )
    if number >= len(test.images):
        raise InputError(f"there are {len(test.images):,} test images; give 0 to {len(test.images) - 1}", key=name)
    return test.images[number], int(test.labels[number])


def _tensor(model: DiffusionModel, image: np.ndarray) -> Tensor:
    return to_model_range(to_tensor(image[None], model.device))


def open_mask(mask: MaskInput, shape: tuple[int, int, int]) -> Tensor:
    """Returns a mask (1, 1, H, W), 1 where a pixel is known.

    mask: a name in MASKS, a picture that is white where to fill, or a boolean array (H, W) that is True there.
    Raises InputError for a name that is neither, for an array of another shape, and for a mask that fills nothing.
    """
    if isinstance(mask, np.ndarray):
        reason, filled = "is False everywhere; set it to True", mask
        if mask.dtype != bool or mask.shape != shape[:2]:
            raise InputError(f"is {mask.dtype} of shape {mask.shape}; give bool {shape[:2]}, True where to fill", key="mask")
    else:
        name = str(mask)
        if name in MASKS:
            return named_mask(name, shape)
        check_mask(name, MASKS)
        reason, filled = f"{name} has no white pixels; paint it white", read_picture(Path(name), (*shape[:2], 1))[..., 0] >= 128
    if not filled.any():
        raise InputError(f"{reason} where the image is to be filled", key="mask")
    return to_mask(~filled)
