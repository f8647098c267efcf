"""Measures the images of a split: their mean, and what makes them unfit for training."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 16 << 20  # bytes of an array that are read at once
# Images whose values, but for the darkest and the brightest thousandth, lie this close together use a sliver of the range.
SLIVER, OUTLIERS = 32, 0.001


class Statistics(NamedTuple):
    """What was measured on one split.

    count: the number of images.
    mean: of each channel, 0 to 255.
    constant: the number of images of a single color.
    equal: whether all images are equal.
    low, high: the quantiles OUTLIERS and 1 - OUTLIERS of the values.
    """

    count: int
    mean: list[float]
    constant: int
    equal: bool
    low: int
    high: int

    def weaknesses(self) -> Iterator[str]:
        """Yields a sentence for each sign that images were lost before or while they were read."""
        advice = "look at reports/prepare_data/first_images.png; prepare_data.background is the color behind transparent parts"
        if self.equal and self.count > 1:
            yield f"all {self.count:,} images are equal; {advice}"
        elif self.constant:
            yield f"{self.constant:,} of {self.count:,} images are of a single color; {advice}"
        if self.high - self.low < SLIVER and not self.equal:
            yield (
                f"the images use only the values {self.low} to {self.high} of 0 to 255; if they have more than 8 bits, set "
                "prepare_data.value_range"
            )


def statistics(images: np.ndarray) -> Statistics:
    """Returns the statistics of images uint8 (N, H, W, C)."""
    total = np.zeros(images.shape[3], np.uint64)
    histogram = np.zeros(256, np.int64)
    constant, equal = 0, True
    for block in blocks(images):
        # Over the images first, which is fast. 32 bits suffice for the images of a block.
        total += block.sum(0, dtype=np.uint32).sum((0, 1), dtype=np.uint64)
        histogram += np.bincount(block.reshape(-1), minlength=256)
        constant += int((block == block[:, :1, :1]).all((1, 2, 3)).sum())
        equal = equal and bool((block == images[:1]).all())
    below = np.cumsum(histogram) / histogram.sum()
    low, high = (int(np.searchsorted(below, quantile)) for quantile in (OUTLIERS, 1 - OUTLIERS))
    mean = total.astype(np.float64) / (images.shape[0] * images.shape[1] * images.shape[2])
    return Statistics(len(images), mean.tolist(), constant, equal, low, high)


def blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the images in blocks that fit into memory."""
    step = max(1, BLOCK // max(1, images[0].nbytes))
    return (images[start : start + step] for start in range(0, len(images), step))
