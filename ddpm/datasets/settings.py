"""Defines the section `prepare_data`."""

from typing import Annotated, Any

from PIL import ImageColor
from pydantic import AfterValidator, Field, PlainValidator

from ddpm.core.limits import MAX_SIDE
from ddpm.core.params import OneOf, OrWord, Section
from ddpm.datasets.image_io import RESIZE_MODES, Color, Decoding, auto_range

NO_CLASSES = "none"  # of prepare_data.label

# prepare_data.channels: the channels that an image has, or gray or RGB for all images.
CHANNELS: dict[str, str | None] = {"native": None, "gray": "L", "rgb": "RGB"}


def _color(name: str) -> str:
    try:
        ImageColor.getcolor(name, "RGB")
    except ValueError:
        raise ValueError("is no color; give a name such as white, or '#rrggbb'") from None
    return name


def _ordered(values: list[float]) -> list[float]:
    if values[0] >= values[1]:
        raise ValueError("is no range; give [lowest, highest]")
    return values


def _size(value: Any) -> Any:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    if value is not None and not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"is no size; give a side from 1 to {MAX_SIDE:,} pixels, [height, width], or 'native'")
    return value


Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_ordered)]


class PrepareData(Section):
    """The section `prepare_data`: how raw images become arrays.

    image_size: side in pixels, or [height, width]; None keeps the size.
    resize_mode: a key of RESIZE_MODES.
    channels: a key of CHANNELS.
    folder: the folder or file of image_folder, arrays and huggingface, below the raw folder.
    labels: the table of the classes of image_folder, a CSV or TSV file; None: each class has a folder.
    file_column: the column of `labels` that names the pictures; None chooses one.
    label: the attribute of celeba, or the column of huggingface or of `labels`, that is the class; None chooses one. NO_CLASSES
        reads images of these, and of arrays, without classes.
    test_share: the share of the test split where a data set has none.
    skip_bad: leave out pictures that cannot be read.
    background: the color behind transparent parts of pictures, and of the borders that resize_mode pad adds.
    value_range: the values that become 0 and 255 in pictures of more than 8 bits; None is `auto_range` of all pictures.
    """

    image_size: Annotated[int | list[int] | None, PlainValidator(_size), OrWord("native")]
    resize_mode: Annotated[str, OneOf(RESIZE_MODES)]
    channels: Annotated[str, OneOf(CHANNELS)]
    folder: str
    labels: Annotated[str | None, OrWord("none")]
    file_column: Annotated[str | None, OrWord("auto")]
    label: Annotated[str | None, OrWord("auto")]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    skip_bad: bool
    background: Annotated[str, AfterValidator(_color)]
    value_range: Annotated[Range | None, OrWord("auto")]

    def size(self) -> tuple[int, int] | None:
        """Returns (height, width), or None to keep the size."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size) if size else None

    def color(self) -> Color:
        """Returns the background."""
        return ImageColor.getcolor(self.background, "RGB")[:3]

    def decoding(self) -> Decoding:
        """Returns how pictures are decoded; with value_range None, each is scaled by its own values."""
        given = self.value_range
        scale = (lambda low, high: (given[0], given[1])) if given else auto_range
        return Decoding(CHANNELS[self.channels], self.color(), scale)
