"""Detects copies of training images among samples, by distances in pixels; test images, which cannot be copies, calibrate."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.core.progress import Progress

NEXT = 50  # neighbours after the nearest, whose mean distance is the scale of `Near.ratio`
NEAR = 1 / 3  # a sample with a smaller ratio is a near copy
TEST_IMAGES = 2_000  # at most; from them, nn_auc has a standard error of sqrt(1 / 12 / 2000) = .006
EXACT = 8  # nearest candidates by float32 whose distances are computed again in integers
ROWS = 1_000  # images in one chunk of queries
ELEMENTS = 1 << 24  # distances in one block, or pixels in one block
EXAMPLES = 10


class Near(NamedTuple):
    """The nearest training image of each of N images.

    squared: squared distance in steps of 1/255, (N,) int64.
    index: its index in the training split, (N,).
    ratio: its distance over the mean distance to the next 50, (N,) float64.
    """

    squared: np.ndarray
    index: np.ndarray
    ratio: np.ndarray


def rank_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """Returns P(value of a > value of b) + P(equal) / 2 for values (N,) and (M,): the area under the ROC curve."""
    ordered = np.sort(b)
    below, upto = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
    return float((below + upto).mean() / (2 * len(b)))


class Memorization:
    """Searches the training split for nearest images by L2 distance in pixels, and compares with the test split.

    Images uint8 (N, H, W, C). Chunks of queries are compared with blocks of training images, so that memory does not grow with
    either set. Chunks are distributed over the processes.
    """

    def __init__(self, train: np.ndarray, test: np.ndarray):
        """test: of more than 2,000 images, at most as many are used. Raises InputError for fewer than 2 training images."""
        if len(train) < 2:
            raise InputError(f"{len(train)} training images are too few; use at least 2", key="memorization")
        self.images, self.train = train, train.reshape(len(train), -1)
        # Integers, so that float32 computes the products of small images exactly.
        self.centre = torch.from_numpy(np.rint(self.train[:ROWS].mean(0)).astype(np.float32))
        # Squared distance of a training image to its nearest other one; -1 where it is not computed yet.
        self.nearest_other = np.full(len(train), -1, np.int64)
        self.test = self.nearest(test[:: -(-len(test) // TEST_IMAGES)], "test images")
        self.test_scores = self._shares(self.test)

    def score(self, near: Near) -> dict[str, float]:
        """Returns {nn_auc, near_copies, near_copies_test, authenticity, authenticity_test} from the result of `nearest`.

        nn_auc: P(a sample is farther from its nearest training image than a test image from its own) + half of ties; .5 is
            ideal, less is copying.
        near_copies: share whose nearest training image is closer than a third of the mean distance to the next 50.
        authenticity: share farther from their nearest training image than that image from its nearest other training image
            (Alaa et al. 2022).
        """
        scores = {"nn_auc": rank_statistic(near.squared, self.test.squared)}
        for key, share in self._shares(near).items():
            scores |= {key: share, f"{key}_test": self.test_scores[key]}
        return scores

    def nearest(self, images: np.ndarray, name: str) -> Near:
        """Returns the nearest training image of each of images (N, H, W, C); `name` is shown with the progress."""
        k = min(NEXT + 1, len(self.train))
        with Progress(f"neighbours of {name}", len(images), "images") as progress:
            squared, index, following = self._search(images.reshape(len(images), -1), k, progress=progress)
        distance = np.sqrt(squared)
        # 51 training images that equal this one leave no scale: the ratio of a copy.
        ratio = np.divide(distance, following, out=np.zeros(len(images)), where=following > 0)
        return Near(squared, index, ratio)

    def closest(self, images: np.ndarray, near: Near) -> tuple[np.ndarray, np.ndarray]:
        """Returns the K <= 10 images (N, H, W, C) with the smallest ratios and their nearest training images, (2, K, H, W, C),
        and the ratios, (K,), ascending."""
        order = np.argsort(near.ratio, kind="stable")[:EXAMPLES]
        return np.stack([images[order], self.images[near.index[order]]]), near.ratio[order]

    def _shares(self, near: Near) -> dict[str, float]:
        unknown = np.unique(near.index[self.nearest_other[near.index] < 0])
        if len(unknown):
            self.nearest_other[unknown] = self._search(self.train[unknown], min(EXACT, len(self.train)), unknown)[0]
        authentic = near.squared > self.nearest_other[near.index]
        return {"near_copies": float((near.ratio < NEAR).mean()), "authenticity": float(authentic.mean())}

    def _search(
        self, queries: np.ndarray, k: int, own: np.ndarray | None = None, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the squared distance to the nearest training image, its index, and the mean distance to the k - 1 next, (N,).

        queries: uint8 (N, P). own: index (N,) of each query in the training split, which is excluded from its results.
        """
        rows = max(1, min(ROWS, ELEMENTS // queries.shape[1]))

        def search_chunk(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            chunk = queries[start : start + rows]
            distance, index = self._candidates(self._centred(chunk), k)
            squared, nearest = self._exact(chunk, index[:, :EXACT], None if own is None else own[start : start + rows])
            if progress is not None:
                progress.advance(len(chunk) * processes.world_size())
            return squared, nearest, distance[:, 1:].double().mean(1).numpy()

        parts = processes.map_over_ranks(range(0, len(queries), rows), search_chunk)
        squared, index, following = (np.concatenate(part) for part in zip(*parts, strict=True))
        return squared, index, following

    def _centred(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images.astype(np.float32)).sub_(self.centre)

    def _candidates(self, queries: Tensor, k: int) -> tuple[Tensor, np.ndarray]:
        """Returns distances (B, k) and indices (B, k) of the k nearest training images, in float32, ascending."""
        block = max(1, ELEMENTS // max(self.train.shape[1], len(queries)))
        best, index = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for first in range(0, len(self.train), block):
            train = self._centred(self.train[first : first + block])
            # Without the norm of the query, which does not change the order.
            distances = torch.addmm(train.square().sum(1), queries, train.T, alpha=-2)
            values, columns = distances.topk(min(k, len(train)), largest=False)
            best, index = torch.cat([best, values], 1), torch.cat([index, columns + first], 1)
            best, order = best.topk(min(k, best.shape[1]), largest=False)
            index = index.gather(1, order)
        return (best + queries.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_(), index.numpy()

    def _exact(self, queries: np.ndarray, index: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the nearest of the candidates (B, K), computed in integers: squared distances (B,) and indices (B,)."""
        # Ties go to the lower index, independently of the order in float32.
        index = np.sort(index, axis=1)
        squared = np.empty(index.shape, np.int64)
        for j, candidates in enumerate(index.T):
            difference = queries.astype(np.int32) - self.train[candidates]
            squared[:, j] = np.square(difference).sum(1, dtype=np.int64)
        if own is not None:
            squared[index == own[:, None]] = np.iinfo(np.int64).max
        nearest = squared.argmin(1)[:, None]
        return np.take_along_axis(squared, nearest, 1)[:, 0], np.take_along_axis(index, nearest, 1)[:, 0]
