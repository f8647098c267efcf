"""What anyone may send to the web page, and what of it is taken: every value is checked here, whatever the page allows.

Each Section is the values of one of its buttons, in their order. Whatever is wrong with one becomes an InputError.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, Field
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.params import OneOf, Section, make
from ddpm.editing.inpaint import MASKS, to_mask
from ddpm.editing.inputs import open_image, open_mask
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.names import MAX_GUIDANCE, MAX_SEED
from ddpm.sampling.samplers import SAMPLERS

MAX_IMAGES, MAX_FILLS, MAX_BETWEEN, MAX_RESAMPLES = 64, 16, 32, 20
MAX_PIXELS = 20_000_000  # of an upload, which a small file can hold many more of
EVERY, OWN, BRUSH = "all in turn", "its own", "my brush"
TEST, SAMPLE, UPLOAD = "test image", "sample of a seed", "my picture"
# Some clients send every number as 20.0.
Whole = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Number = Annotated[int, Field(ge=1, le=MAX_IMAGES), Whole]
Steps = Annotated[int, Field(ge=1), Whole]  # and at most T, which `make_plan` knows
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), Whole]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
Content = Annotated[str, Field(max_length=1000)]
SamplerChoice = Annotated[str, OneOf(SAMPLERS)]


def _path(upload: Any) -> str:
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str) or not Path(path).is_file():
        raise InputError("there is no picture yet; choose one", key="upload")
    try:
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
    except Exception:  # whatever a file that is no picture makes of its reader
        raise InputError(f"{Path(path).name}: cannot be read as a picture; choose a PNG or JPEG file", key="upload") from None
    if pixels > MAX_PIXELS:
        raise InputError(f"{pixels:,} pixels are too many; choose a picture of at most {MAX_PIXELS:,}", key="upload")
    return path


# The name by which `open_image` knows it, of a number and an upload.
NAMES: dict[str, Callable[[int, Any], str]] = {
    TEST: lambda number, upload: f"test:{number}",
    SAMPLE: lambda number, upload: f"seed:{number}",
    UPLOAD: lambda number, upload: _path(upload),
}


def has_test_images(model: DiffusionModel) -> bool:
    """Whether the data that the model was trained on is there."""
    try:
        open_image(model, "test:0")
    except InputError:
        return False
    return True


class DrawInputs(Section):
    content: Content
    number: Number
    sampler: SamplerChoice
    steps: Steps
    eta: Annotated[float, Field(ge=0, le=1)]
    guidance: Guidance
    seed: Seed


class SourceInputs(Section):
    source: Annotated[str, OneOf(NAMES)]
    number: Seed
    upload: Any
    content: Content


class InpaintInputs(SourceInputs):
    mask: Annotated[str, OneOf({BRUSH: None, **MASKS})]
    painted: str | None
    number_of_fills: Annotated[int, Field(ge=1, le=MAX_FILLS), Whole]
    steps: Steps
    resamples: Annotated[int, Field(ge=1, le=MAX_RESAMPLES), Whole]
    guidance: Guidance
    seed: Seed


class InterpolateInputs(Section):
    ends: Annotated[str, OneOf(dict.fromkeys((SAMPLE, TEST)))]
    first: Seed
    second: Seed
    first_content: Content
    second_content: Content
    number: Annotated[int, Field(ge=2, le=MAX_BETWEEN), Whole]
    sampler: SamplerChoice
    steps: Steps


class Comparison(Section):
    content: Content
    number: Number
    seed: Seed
    guidance: Guidance
    first_sampler: SamplerChoice
    first_steps: Steps
    second_sampler: SamplerChoice
    second_steps: Steps


def asked_for(kind: type[Section], values: Sequence[Any]) -> Any:
    """The values of a Section in its order. Raises InputError, beginning with the name of what is wrong."""
    return make(kind, **dict(zip(kind.model_fields, values, strict=True)))


def known_by(model: DiffusionModel, mask: str, painted: str | None) -> Tensor:
    """Known pixels (1, 1, H, W): by the name of what is to be filled, or as painted, a row after the other, 1 to be filled.

    mask: BRUSH, or a name of MASKS. Raises InputError where nothing is painted.
    """
    height, width, _ = model.shape
    if mask != BRUSH:
        return open_mask(mask, model.shape)
    bits = painted or ""
    if "1" not in bits:
        raise InputError("nothing is painted; paint over what shall be filled, or choose a part by its name", key="mask")
    if len(bits) != height * width or set(bits) - {"0", "1"}:
        raise InputError(
            f"{len(bits)} characters are no painting; give a 0 or a 1 for each of {height} x {width} pixels", key="mask"
        )
    return to_mask(np.array([bit == "0" for bit in bits]).reshape(height, width))


class Part(Section):
    mask: Annotated[str, OneOf(MASKS)]


def painting(model: DiffusionModel, *values: Any) -> str:
    """A mask by its name, the value of a Part, as if it was painted."""
    mask = asked_for(Part, values).mask
    return "".join("0" if known else "1" for known in known_by(model, mask, None).flatten().tolist())
