"""From a network to a denoiser: a function (x, level) -> Prediction(x0, eps). Wrappers take a denoiser and give a denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm.diffusion.parameterization import Prediction, from_x0, solve
from ddpm.diffusion.schedule import Level

Denoiser = Callable[[Tensor, Level], Prediction]


def network_denoiser(network: nn.Module, prediction: str, labels: Tensor | None) -> Denoiser:
    """The network as a denoiser. x is (B, C, H, W) in the network's range [-1, 1]; labels is (B,) or None."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        output = network(x, level.t.to(x).expand(len(x)), labels)
        return solve(prediction, output.to(x.dtype), x, level)

    return denoise


def clipped(denoiser: Denoiser, limit: float = 1.0) -> Denoiser:
    """x0 clipped to [-limit, limit], and eps made to agree with it (Ho et al. 2020's code clips x0 alone)."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        return from_x0(denoiser(x, level).x0.clamp(-limit, limit), x, level)

    return denoise


def one_step(denoiser: Denoiser, x_t: Tensor, level: Level) -> Tensor:
    """x0_hat in [-1, 1] from a single evaluation at x_t."""
    with torch.inference_mode():
        return denoiser(x_t, level).x0.clamp(-1, 1)
