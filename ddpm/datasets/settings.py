"""The `prepare_data` section."""

from typing import Annotated

from pydantic import Field

from ddpm.core.params import OneOf, OrWord, Section
from ddpm.datasets.image_io import RESIZE_MODES
from ddpm.datasets.registry import CHANNELS


class PrepareData(Section):
    """The `prepare_data` section: what happens to the images before training."""

    image_size: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, OrWord("native")]
    resize_mode: Annotated[str, OneOf(RESIZE_MODES)]
    channels: Annotated[str, OneOf(CHANNELS)]
    folder: str
    label: Annotated[str | None, OrWord("auto")]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    skip_bad: bool


# Settings that only some data sets read.
SPECIAL = ("label", "skip_bad")
