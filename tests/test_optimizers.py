"""Muon, compared with torch.optim.Muon and with singular value decompositions."""

import pytest
import torch
from test_unet import settings as unet_settings
from torch import nn

from ddpm.datasets.registry import DIGITS
from ddpm.networks.unet import UNet
from ddpm.training.ema import FlatParameters
from ddpm.training.optimizers import OPTIMIZERS, Muon, hidden_matrices, orthogonalized


def step(optimizer, matrices, gradients, found_inf=0.0):
    for matrix, gradient in zip(matrices, gradients, strict=True):
        matrix.grad = gradient.clone()
    optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 16), (1, 32, 32), (2, 1, 9)])
def test_orthogonalized_keeps_directions_and_makes_singular_values_equal(shape):
    torch.manual_seed(0)
    # Singular values from 0.1 to 1: the iteration leaves much smaller ones below 0.7.
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.1, 1, u.shape[2])
    result = orthogonalized(7.0 * (u * values) @ vh)
    singular = torch.linalg.svdvals(result)
    assert 0.65 < singular.min() <= singular.max() < 1.25
    rotated = u.mT @ result @ vh.mT
    torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_muon_steps_as_torch_does():
    """Up to the rounding of its iteration, which torch.optim.Muon computes in bfloat16."""
    torch.manual_seed(0)
    start = [torch.randn(24, 40), torch.randn(40, 24), torch.randn(24, 40)]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    one = Muon(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradients = [torch.randn_like(matrix) for matrix in start]
        step(one, ours, gradients)
        step(other, theirs, gradients)
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (a - before).norm()


def test_muon_skips_a_step_with_a_nonfinite_gradient():
    torch.manual_seed(0)
    first, bad, last = torch.randn(3, 8, 12)
    bad[2, 3] = torch.nan
    matrix, expected = nn.Parameter(torch.ones(8, 12)), nn.Parameter(torch.ones(8, 12))
    skipping, plain = Muon([matrix], lr=0.1, weight_decay=0.1), Muon([expected], lr=0.1, weight_decay=0.1)
    for gradient in (first, bad, last):
        step(skipping, [matrix], [gradient], found_inf=float(gradient is bad))
    for gradient in (first, last):
        step(plain, [expected], [gradient])
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_updates_every_parameter_once(name):
    """A gradient of ones moves a weight by AdamW as far as the learning rate, and a matrix by Muon at least a little."""
    network = UNet(unet_settings(conditioning="class"), (8, 8, 1), class_names=DIGITS).to(memory_format=torch.channels_last)
    hidden = hidden_matrices(network)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    flat = FlatParameters(network, hidden)
    for optimizer in OPTIMIZERS[name](flat, 0.01, 0.0):
        for gradient in flat.views(flat.vector.grad).values():
            gradient.fill_(1.0)
        optimizer.grad_scale, optimizer.found_inf = None, torch.zeros(())
        optimizer.step()
    for key, value in network.named_parameters():
        moved = (value - before[key]).abs()
        by_muon = name == "muon" and key in hidden
        assert moved.min() > 0, key
        assert (moved.max() - 0.01).abs() < 1e-5 or by_muon, key


def test_muon_without_matrices_is_adamw():
    flat = FlatParameters(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3)))
    assert [type(optimizer) for optimizer in OPTIMIZERS["muon"](flat, 0.01, 0.0)] == [torch.optim.AdamW]


def test_muon_leaves_images_embeddings_biases_and_norms_to_adamw():
    network = UNet(unet_settings(conditioning="class"), (8, 8, 1), class_names=DIGITS)
    hidden = set(hidden_matrices(network))
    assert {"down.0.blocks.0.conv1.weight", "time.0.weight", "embed.weight"} <= hidden
    assert not hidden & {"conv_in.weight", "conv_out.weight"}
    assert all(network.get_parameter(name).ndim > 1 for name in hidden)
    assert not any(name.startswith("condition.") for name in hidden)
