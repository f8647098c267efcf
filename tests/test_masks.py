"""Random masks: 0 or 1, of four kinds in equal shares, for images of any size."""

import pytest
import torch
from test_training import NoWaiting

from ddpm.training.masks import random_masks

CPU = torch.device("cpu")
SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 9), (8, 8), (28, 28), (24, 65)]


def drawn(count, height, width, seed=0):
    return random_masks(count, height, width, CPU, torch.Generator().manual_seed(seed))


def is_box(inside):
    """Whether the true pixels (H, W) fill a rectangle."""
    if not inside.any():
        return False
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    return bool(inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all())


def kind_of(known):
    """The kind of a mask (H, W), by its shape; at most half of single pixels are known, so they have few known neighbours."""
    if known.any() and is_box(~known):
        return "box left out"
    if is_box(known):
        return "box known"
    pairs = (known[1:] & known[:-1]).sum() + (known[:, 1:] & known[:, :-1]).sum()
    return "dots" if pairs <= 0.65 * 2 * known.sum() else "strokes left out"


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_random_masks_are_zeros_and_ones(height, width):
    masks = drawn(200, height, width)
    assert masks.shape == (200, 1, height, width)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (24, 65)])
def test_random_masks_know_much_and_little(height, width):
    share = drawn(2000, height, width).mean((1, 2, 3))
    assert 0.4 < share.mean() < 0.56
    assert (share < 0.15).double().mean() > 0.08
    assert (share > 0.75).double().mean() > 0.08
    # With all or no pixels known there is nothing to learn.
    assert (share == 1).double().mean() < 0.01
    assert (share == 0).double().mean() < 0.02


def test_random_masks_cover_all_pixels():
    known = drawn(2000, 12, 20).mean((0, 1))
    assert known.min() > 0.3
    assert known.max() < 0.7
    # The distribution is symmetric.
    for mirrored in (known.flip(0), known.flip(1)):
        torch.testing.assert_close(mirrored, known, atol=0.08, rtol=0)


def test_random_masks_have_four_kinds_in_equal_shares():
    kinds = [kind_of(mask[0].bool()) for mask in drawn(2000, 32, 32)]
    for name in ("box left out", "box known", "dots", "strokes left out"):
        assert kinds.count(name) / len(kinds) == pytest.approx(0.25, abs=0.04), name


def test_random_boxes_vary_in_size_and_strokes_have_ends():
    kinds = {}
    for mask in drawn(2000, 32, 32).bool():
        kinds.setdefault(kind_of(mask[0]), []).append(mask[0])
    for kind, inside in (("box left out", False), ("box known", True)):
        shares = [float((mask == inside).double().mean()) for mask in kinds[kind]]
        assert min(shares) < 0.05
        assert max(shares) > 0.6
    # An endless line would leave out pixels of the edge.
    edges = [torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]]) for mask in kinds["strokes left out"]]
    assert sum(bool(edge.all()) for edge in edges) > 0.02 * len(edges)


@pytest.mark.slow
def test_known_share_does_not_depend_on_the_size():
    shares = [float(drawn(4000, *size).mean()) for size in ((8, 8), (16, 48), (64, 64))]
    assert shares == pytest.approx([shares[0]] * 3, abs=0.03)


def test_random_masks_depend_on_the_seed_alone():
    assert torch.equal(drawn(50, 9, 6), drawn(50, 9, 6))
    assert not torch.equal(drawn(50, 9, 6), drawn(50, 9, 6, seed=1))
    assert len({tuple(mask.flatten().tolist()) for mask in drawn(50, 28, 28)}) == 50
    torch.manual_seed(3)
    first = random_masks(5, 8, 8, CPU)
    torch.manual_seed(3)
    assert torch.equal(random_masks(5, 8, 8, CPU), first)


def test_random_masks_read_nothing_back():
    with NoWaiting():
        random_masks(64, 8, 8, CPU)
