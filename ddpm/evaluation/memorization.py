"""Whether samples are copies of training images: distances in pixels, beside those of test images, which cannot be copies."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.core.progress import Progress

NEXT = 50  # neighbours after the nearest, to whose mean distance the nearest is held
NEAR = 1 / 3  # of that mean: a nearest training image that is closer is a near copy
EXACT = 8  # of the nearest by float32, how many are measured again in whole numbers
ROWS = 1_000  # images that are searched at a time
ELEMENTS = 1 << 24  # of one block of distances, or of one block of pixels
PICTURED = 10


class Near(NamedTuple):
    """Of each image: the squared distance to the nearest training image (N,) int64, in steps of 1/255; which it is (N,); and
    its distance over the mean distance to the next 50 (N,) float64."""

    squared: np.ndarray
    index: np.ndarray
    ratio: np.ndarray


def rank_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """P(value of a > value of b) + half of P(equal), for values (N,) and (M,): the area under the ROC curve."""
    ordered = np.sort(b)
    below, upto = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
    return float((below + upto).mean() / (2 * len(b)))


class Memorization:
    """The training split, searched for the nearest image by L2 distance in pixels, and the test split as the measure.

    Images uint8 (N, H, W, C). Searched in chunks against blocks, so that memory does not grow with either set; chunks are shared
    by the processes.
    """

    def __init__(self, train: np.ndarray, test: np.ndarray):
        """Raises InputError for a training split of fewer than 2 images."""
        if len(train) < 2:
            raise InputError(f"{len(train)} training images are too few; use at least 2", key="memorization")
        self.images, self.train = train, train.reshape(len(train), -1)
        # Whole numbers, so that float32 computes the products of small images exactly.
        self.centre = torch.from_numpy(np.rint(self.train[:ROWS].mean(0)).astype(np.float32))
        self.apart = np.full(len(train), -1, np.int64)
        self.test = self.nearest(test, "test images")
        self.test_scores = self._shares(self.test)

    def score(self, near: Near) -> dict[str, float]:
        """{nn_auc, near_copies, near_copies_test, authenticity, authenticity_test} of samples, by what `nearest` found.

        nn_auc: P(a sample lies farther from its nearest training image than a test image from its own) + half of ties; .5 is
        right, below it is copying. near_copies: share whose nearest training image is closer than a third of the mean distance
        to the next 50. authenticity: share that lie farther from their nearest training image than that one from its nearest
        other (Alaa et al. 2022).
        """
        found = {"nn_auc": rank_statistic(near.squared, self.test.squared)}
        for key, share in self._shares(near).items():
            found |= {key: share, f"{key}_test": self.test_scores[key]}
        return found

    def nearest(self, images: np.ndarray, name: str) -> Near:
        """The nearest training image of each of images (N, H, W, C); progress is shown under `name`."""
        k = min(NEXT + 1, len(self.train))
        with Progress(f"neighbours of {name}", len(images), "images") as progress:
            squared, index, following = self._search(images.reshape(len(images), -1), k, progress=progress)
        distance = np.sqrt(squared)
        # 51 training images equal to this one leave nothing to compare with: a copy.
        ratio = np.divide(distance, following, out=np.zeros(len(images)), where=following > 0)
        return Near(squared, index, ratio)

    def closest(self, images: np.ndarray, near: Near) -> tuple[np.ndarray, np.ndarray]:
        """Of images (N, H, W, C) the 10 (or all) most like copies, above their nearest training images, (2, K, H, W, C), and
        their ratios (K,), the smallest first."""
        order = np.argsort(near.ratio, kind="stable")[:PICTURED]
        return np.stack([images[order], self.images[near.index[order]]]), near.ratio[order]

    def _shares(self, near: Near) -> dict[str, float]:
        unknown = np.unique(near.index[self.apart[near.index] < 0])
        if len(unknown):
            self.apart[unknown] = self._search(self.train[unknown], min(EXACT, len(self.train)), unknown)[0]
        authentic = near.squared > self.apart[near.index]
        return {"near_copies": float((near.ratio < NEAR).mean()), "authenticity": float(authentic.mean())}

    def _search(
        self, queries: np.ndarray, k: int, own: np.ndarray | None = None, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distance to the nearest training image, its index, and the mean distance to the k - 1 after it, each (N,).

        queries uint8 (N, P); own (N,): the index of each among the training images, where it must not be found.
        """
        rows = max(1, min(ROWS, ELEMENTS // queries.shape[1]))

        def of_chunk(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            chunk = queries[start : start + rows]
            distance, index = self._candidates(self._centred(chunk), k)
            squared, nearest = self._exact(chunk, index[:, :EXACT], None if own is None else own[start : start + rows])
            if progress is not None:
                progress.advance(len(chunk) * processes.world_size())
            return squared, nearest, distance[:, 1:].double().mean(1).numpy()

        parts = processes.map_over_ranks(range(0, len(queries), rows), of_chunk)
        squared, index, following = (np.concatenate(part) for part in zip(*parts, strict=True))
        return squared, index, following

    def _centred(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images.astype(np.float32)).sub_(self.centre)

    def _candidates(self, queries: Tensor, k: int) -> tuple[Tensor, np.ndarray]:
        """Distances (B, k) and indices (B, k) of the k nearest training images, in float32, the nearest first."""
        block = max(1, ELEMENTS // max(self.train.shape[1], len(queries)))
        best, index = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for first in range(0, len(self.train), block):
            train = self._centred(self.train[first : first + block])
            # Without the norm of the query, which changes no order.
            found = torch.addmm(train.square().sum(1), queries, train.T, alpha=-2)
            values, where = found.topk(min(k, len(train)), largest=False)
            best, index = torch.cat([best, values], 1), torch.cat([index, where + first], 1)
            best, order = best.topk(min(k, best.shape[1]), largest=False)
            index = index.gather(1, order)
        return (best + queries.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_(), index.numpy()

    def _exact(self, queries: np.ndarray, index: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Of the candidates (B, K), the nearest by whole numbers: squared distances (B,) and indices (B,)."""
        # Ties go to the lower index, whatever order float32 found them in.
        index = np.sort(index, axis=1)
        squared = np.empty(index.shape, np.int64)
        for j, candidates in enumerate(index.T):
            difference = queries.astype(np.int32) - self.train[candidates]
            squared[:, j] = np.square(difference).sum(1, dtype=np.int64)
        if own is not None:
            squared[index == own[:, None]] = np.iinfo(np.int64).max
        nearest = squared.argmin(1)[:, None]
        return np.take_along_axis(squared, nearest, 1)[:, 0], np.take_along_axis(index, nearest, 1)[:, 0]
