"""Validates the values that clients send: each Section holds the values of one button, in their order."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, Field

from ddpm.api.model import Model
from ddpm.core.files import InputError
from ddpm.core.limits import MAX_GUIDANCE, MAX_SEED, MAX_TIMESTEPS
from ddpm.core.params import OneOf, Section, make
from ddpm.editing.inpaint import MASKS
from ddpm.editing.inputs import open_mask
from ddpm.sampling.samplers import SAMPLERS

MAX_IMAGES, MAX_FILLS, MAX_BETWEEN, MAX_RESAMPLES = 64, 16, 32, 20
MAX_PIXELS = 20_000_000  # of an uploaded picture; a small file can hold many more
BRUSH = "my brush"
DEFAULT = ""  # the content that nobody chose: all classes in turn, or the image's own class
TEST, SAMPLE, UPLOAD = "test image", "sample of a seed", "my picture"
# Some clients send integers as 20.0.
Whole = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Number = Annotated[int, Field(ge=1, le=MAX_IMAGES), Whole]
Steps = Annotated[int, Field(ge=1, le=MAX_TIMESTEPS), Whole]  # `make_plan` checks that it is at most T
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), Whole]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
Content = Annotated[str, Field(max_length=1000)]
SamplerChoice = Annotated[str, OneOf(SAMPLERS)]


def _path(upload: Any) -> str:
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str) or not Path(path).is_file():
        raise InputError("is missing; choose a picture", key="upload")
    try:
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
    except Exception:  # Pillow raises many types for a damaged file
        raise InputError(f"{Path(path).name}: cannot be read as a picture; choose a PNG or JPEG file", key="upload") from None
    if pixels > MAX_PIXELS:
        raise InputError(f"has {pixels:,} pixels; choose a picture of at most {MAX_PIXELS:,}", key="upload")
    return path


# Functions (number, upload) -> name for the methods of a model.
SOURCES: dict[str, Callable[[int, Any], str]] = {
    TEST: lambda number, upload: f"test:{number}",
    SAMPLE: lambda number, upload: f"seed:{number}",
    UPLOAD: lambda number, upload: _path(upload),
}


def has_test_images(model: Model) -> bool:
    """Returns whether data/prepared holds the data that the model was trained on."""
    try:
        model.open("test:0")
    except InputError:
        return False
    return True


class DrawInputs(Section):
    """Values of the button Draw."""

    content: Content
    number: Number
    sampler: SamplerChoice
    steps: Steps
    eta: Annotated[float, Field(ge=0, le=1)]
    guidance: Guidance
    seed: Seed


class SourceInputs(Section):
    """Values that choose an image."""

    source: Annotated[str, OneOf(SOURCES)]
    number: Seed
    upload: Any
    content: Content


class InpaintInputs(SourceInputs):
    """Values of the button Fill."""

    mask: Annotated[str, OneOf({BRUSH: None, **MASKS})]
    painted: str | None
    number_of_fills: Annotated[int, Field(ge=1, le=MAX_FILLS), Whole]
    steps: Steps
    resamples: Annotated[int, Field(ge=1, le=MAX_RESAMPLES), Whole]
    guidance: Guidance
    seed: Seed


class InterpolateInputs(Section):
    """Values of the button Interpolate."""

    ends: Annotated[str, OneOf(dict.fromkeys((SAMPLE, TEST)))]
    first: Seed
    second: Seed
    first_content: Content
    second_content: Content
    number: Annotated[int, Field(ge=2, le=MAX_BETWEEN), Whole]
    sampler: SamplerChoice
    steps: Steps


class CompareInputs(Section):
    """Values of the button Compare."""

    content: Content
    number: Number
    seed: Seed
    guidance: Guidance
    first_sampler: SamplerChoice
    first_steps: Steps
    second_sampler: SamplerChoice
    second_steps: Steps


def validate(kind: type[Section], values: Sequence[Any]) -> Any:
    """Returns values, in the order of a Section's fields, as that Section. Raises InputError, whose key is the field."""
    return make(kind, **dict(zip(kind.model_fields, values, strict=True)))


def mask_of(shape: tuple[int, int, int], mask: str, painted: str | None) -> str | np.ndarray:
    """Returns the mask of images of `shape` (H, W, C): its name, or for a painted one a boolean array (H, W), True where to fill.

    mask: a name of MASKS, or BRUSH for the painted one.
    painted: a character for each pixel, row by row, "1" where it is filled.
    Raises InputError if nothing is painted.
    """
    if mask != BRUSH:
        return mask
    (height, width, _), bits = shape, painted or ""
    if "1" not in bits:
        raise InputError("nothing is painted; paint the region to fill, or choose a region by name", key="mask")
    if len(bits) != height * width or set(bits) - {"0", "1"}:
        raise InputError(
            f"is painted with {len(bits)} characters; give a 0 or a 1 for each of {height} x {width} pixels", key="mask"
        )
    return np.array([bit == "1" for bit in bits]).reshape(height, width)


class MaskInputs(Section):
    """A named mask."""

    mask: Annotated[str, OneOf(MASKS)]


def painted_mask(shape: tuple[int, int, int], *values: Any) -> str:
    """Returns a mask of MASKS, the value of MaskInputs, for images of `shape` (H, W, C) as the text of a painted one."""
    known = open_mask(validate(MaskInputs, values).mask, shape)
    return "".join("0" if pixel else "1" for pixel in known.flatten().tolist())
