"""Defines the section `prepare_data`."""

from typing import Annotated

from pydantic import Field

from ddpm.core.params import OneOf, OrWord, Section
from ddpm.datasets.image_io import RESIZE_MODES

# prepare_data.channels: the channels that an image has, or gray or RGB for all images.
CHANNELS: dict[str, str | None] = {"native": None, "gray": "L", "rgb": "RGB"}


class PrepareData(Section):
    """The section `prepare_data`: how raw images become arrays.

    image_size: side in pixels; None keeps the size.
    resize_mode: a key of RESIZE_MODES.
    channels: a key of CHANNELS.
    folder: the folder or archive of image_folder and huggingface, below the raw folder.
    label: the attribute of celeba or the column of huggingface that is the class; None chooses one.
    test_share: the share of the test split where a data set has none.
    skip_bad: leave out pictures that cannot be read.
    """

    image_size: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, OrWord("native")]
    resize_mode: Annotated[str, OneOf(RESIZE_MODES)]
    channels: Annotated[str, OneOf(CHANNELS)]
    folder: str
    label: Annotated[str | None, OrWord("auto")]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    skip_bad: bool
