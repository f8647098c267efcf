"""The optimizers of `train.optimizer`: AdamW, and Muon for the weights that are matrices."""

from collections.abc import Callable, Iterable
from itertools import groupby

import torch
from torch import Tensor, nn

from ddpm.training.ema import FlatParameters

MOMENTUM = 0.95
# Five steps with these move all singular values from (0.01, 1] to between 0.7 and 1.2 (Jordan et al. 2024).
NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ = 5, (3.4445, -4.7750, 2.0315)
ADAMW_RMS = 0.2  # of AdamW's usual updates; Muon's are scaled to it, so that both take the same learning rate (Liu et al. 2025)
Optimizers = list[torch.optim.Optimizer]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): an update is the momentum of the gradient with all its singular values set to about 1.

    With Nesterov's momentum and decoupled weight decay, as torch.optim.Muon does it with adjust_lr_fn="match_rms_adamw"; but in
    float32 and for all matrices of one shape at once, which is faster for small ones, and without a step where `found_inf` is 1,
    as fused AdamW.

    matrices: (rows, columns), with their gradients attached.
    """

    found_inf: Tensor  # set before each step

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float = 0.0):
        super().__init__(sorted(matrices, key=lambda matrix: matrix.shape), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        kept = 1 - self.found_inf
        for group in self.param_groups:
            rate = group["lr"] * kept
            for (rows, columns), matrices in groupby(group["params"], key=lambda matrix: matrix.shape):
                matrices = list(matrices)
                gradients = torch.where(kept > 0, torch.stack([matrix.grad for matrix in matrices]), 0)
                state = self.state[matrices[0]]
                if not state:
                    state["momentum"] = torch.zeros_like(gradients)
                momentum = state["momentum"].lerp_(gradients, (1 - MOMENTUM) * kept)
                updates = orthogonalized(gradients.lerp_(momentum, MOMENTUM))
                updates *= -rate * ADAMW_RMS * max(rows, columns) ** 0.5
                decay = 1 - rate * group["weight_decay"]
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(decay).add_(update)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Returns U V^T, approximately, of the singular value decompositions U S V^T of matrices (N, rows, columns).

    By the Newton-Schulz iteration; singular values end between about 0.7 and 1.2.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def hidden_matrices(network: nn.Module) -> list[str]:
    """Returns the names of the weights that Muon updates: of linear layers, and of all convolutions but the first and last."""
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    convolutions = [name for name, layer in layers if isinstance(layer, nn.Conv2d)]
    return [f"{name}.weight" for name, _ in layers if name not in (convolutions[:1] + convolutions[-1:])]


def adamw(flat: FlatParameters, rate: float, weight_decay: float) -> Optimizers:
    return [torch.optim.AdamW([flat.vector], rate, weight_decay=weight_decay, fused=True)]


def muon(flat: FlatParameters, rate: float, weight_decay: float) -> Optimizers:
    """Muon for the hidden matrices, AdamW for the rest."""
    rest = torch.optim.AdamW([flat.first_part], rate, weight_decay=weight_decay, fused=True)
    return [rest, Muon(flat.last_parts, rate, weight_decay)] if flat.last_parts else [rest]


# Functions (parameters, of which the hidden matrices are the last, learning rate, weight decay) -> optimizers of all of them.
OPTIMIZERS: dict[str, Callable[[FlatParameters, float, float], Optimizers]] = {"adamw": adamw, "muon": muon}
