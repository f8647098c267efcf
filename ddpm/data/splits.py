"""A stratified test split: the one that scikit-learn's train_test_split draws, without its lists of a million numbers."""

import math

import numpy as np


def stratified(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Which of the items with these labels int64 (N,) are held out, bool (N,): of each class about this share.

    Draws as `train_test_split(np.arange(N), test_size=share, stratify=labels, random_state=seed)` does, so that what was once
    split stays split that way. Raises ValueError, with the reason, where there are too few items.
    """
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    counts = counts[present]
    held = math.ceil(share * len(labels))
    kept = len(labels) - held
    if counts.min(initial=2) < 2:
        raise ValueError("a class has only one")
    if min(kept, held) < len(counts):
        raise ValueError(f"{kept} to train on and {held} to test, but there are {len(counts)} classes")
    random = np.random.RandomState(seed)
    train = _shares(counts, kept, random)
    test = _shares(counts - train, held, random)
    mask = np.zeros(len(labels), bool)
    # Items of a class lie together in it, in their order; None: as they do already.
    by_class = np.argsort(labels, kind="stable") if (labels[1:] < labels[:-1]).any() else None
    ends = np.cumsum(counts)
    for first, end, before, drawn in zip(ends - counts, ends, train, test, strict=True):
        chosen = first + random.permutation(end - first)[before : before + drawn]
        mask[chosen if by_class is None else by_class[chosen]] = True
    return mask


def _shares(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """How many of `total` draws each class gets: its part rounded down, and one more for those with the largest remainders,
    ties broken at random."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, left = exact - shares, int(total - shares.sum())
    for value in np.unique(remainders)[::-1]:
        if left <= 0:
            break
        tied = np.flatnonzero(remainders == value)
        chosen = random.choice(tied, size=min(len(tied), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    return shares.astype(int)
