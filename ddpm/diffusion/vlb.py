"""The variational bound on the likelihood, in bits per dimension: L_T + sum_t L_t + L_0 (Ho et al. 2020, eq. 5).

L_T is the KL divergence of x_T to the prior, L_t that of a step, and L_0 the decoder's -log p(x0 | x_1). A step depends on the
network only through its prediction x0_hat and its variance.
"""

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from ddpm.diffusion.schedule import Level, NoiseSchedule, per_image
from ddpm.diffusion.variance import log_variance, small

HALF_BIN = 1 / 255  # half the distance between two of the 256 pixel values on [-1, 1]


def prior_bpd(x0: Tensor, last: Level) -> Tensor:
    """Returns L_T = KL(q(x_T | x0) || N(0, 1)) in bits per dimension, (B,), of images (B, C, H, W); `last` is level T."""
    kl = 0.5 * ((last.alpha * x0).square() + last.sigma**2 - 1 - math.log(last.sigma**2))
    return _bits(kl)


def vlb_terms_bpd(
    schedule: NoiseSchedule, index: Tensor, x0: Tensor, x0_hat: Tensor, variance: str, variance_interp: Tensor | None = None
) -> Tensor:
    """Returns the terms of the steps from levels index (B,) to index - 1, in bits per dimension, (B,).

    For index > 1 it is KL(q(x_s | x_t, x0) || p(x_s | x_t)), for index 1 the decoder's -log p(x0 | x_1). variance: a key of
    VARIANCES. x0, x0_hat and, for variance `learned`, variance_interp: (B, C, H, W).
    """
    log_p = log_variance(variance, schedule, index, x0, variance_interp)
    last = (index == 1).to(x0.device).reshape((-1,) + (1,) * (x0.ndim - 1))
    return _bits(torch.where(last, _decoder(x0, x0_hat, log_p), _kl(schedule, index, x0, x0_hat, log_p)))


def _kl(schedule: NoiseSchedule, index: Tensor, x0: Tensor, x0_hat: Tensor, log_p: Tensor) -> Tensor:
    """Returns the KL divergence, in nats, of normals whose means differ by alpha_s (1 - SNR_t / SNR_s) (x0 - x0_hat)."""
    index = index.clamp(min=2)
    t, s = schedule[index], schedule[index - 1]
    log_q = per_image(small(t, s).log(), x0)
    gap = per_image(s.alpha * (1 - t.snr / s.snr), x0) * (x0 - x0_hat)
    return 0.5 * (log_p - log_q + torch.expm1(log_q - log_p) + gap.square() * torch.exp(-log_p))


def _decoder(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns -log p(x0), in nats, of a normal distribution over 256 bins, the outer two open (Ho et al. 2020, eq. 13).

    It is computed in logarithms, in the tail where both ends of the bin have small probabilities, so it is exact for any mean.
    """
    scale, error = torch.exp(-0.5 * log_variance), x0 - mean
    far = error.abs()
    upper, lower = log_ndtr(scale * (HALF_BIN - far)), log_ndtr(-scale * (HALF_BIN + far))
    inner = upper + torch.log(-torch.expm1(lower - upper))
    log_p = torch.where(x0 > 1 - HALF_BIN, log_ndtr(scale * (HALF_BIN - error)), inner)
    return -torch.where(x0 < HALF_BIN - 1, log_ndtr(scale * (HALF_BIN + error)), log_p)


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)
