"""The compared libraries: each with its own network, training step and sampler, with equal settings.

Equal for all: the image shape and the batch; widths, levels, blocks and attention as far as the libraries offer them (below);
AdamW with the same numbers, gradients clipped at norm 1, an EMA update in every step; clean images on the device; prediction eps
with the unweighted MSE; DDIM with eta 0 and the same number of steps; on CUDA, autocast to bfloat16.

Each in its own way, as in its documentation or training script:
- ours: Trainer.train_step and ddpm.sampling, channels_last; a second entry is compiled with the project's own setting.
- diffusers: its unconditional training example (add_noise, mse_loss, AdamW as PyTorch sets it up, EMAModel, the loss read at each
  step for the log) and its DDIMPipeline.
- denoising-diffusion-pytorch: GaussianDiffusion and the step of its Trainer, with ema_pytorch. Its linear attention, which the
  others do not have, is left out; where the others attend after each block of a level, it attends after the second. It always
  has two blocks per level, its widths lag behind by one level, and it learns a scale in addition to each shift: `dim` and
  `init_dim` are chosen for the number of parameters nearest to ours.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.core.device import Precision, compiled
from ddpm.data.images import to_images
from ddpm.data.loader import Batches
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.layers import norm_groups
from ddpm.networks.unet import UNet, UNetSettings
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.samplers import sample
from ddpm.sampling.settings import SampleDDIM
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

LEVELS = 1000
IMAGES = 1024  # of random pixels, to train on
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP, EMA_DECAY = 1e-4, (0.9, 0.999), 0.01, 1.0, 0.995
TOLERANCE = 0.03  # between the numbers of parameters


class Case(NamedTuple):
    """A measured case. steps: 0 for training, else the number of DDIM steps. shape: (H, W, C)."""

    name: str
    shape: tuple[int, int, int]
    batch: int
    channels: int
    mults: list[int]
    attention: list[int]
    steps: int = 0
    blocks: int = 2
    heads: int = 4

    @property
    def widths(self) -> list[int]:
        return [self.channels * mult for mult in self.mults]


class Contestant(NamedTuple):
    """A library in a case.

    run: one training step, or the sampling of one batch.
    forward: the network on one batch, to count its operations.
    """

    name: str
    parameters: int
    run: Callable[[], Any]
    forward: Callable[[], Any]


class Setting(NamedTuple):
    """The device, the precision of all libraries, and the sections of params.yaml for ours."""

    device: torch.device
    precision: Precision
    sections: dict[str, dict]


def contestants(case: Case, setting: Setting, compile_ours: bool) -> Iterator[Contestant]:
    """Yields ours, then the other installed libraries. Raises ValueError if their sizes differ by more than 3 %."""
    first = ours(case, setting)
    yield first
    if compile_ours and (fast := ours(case, setting, "ours, compiled")):
        yield fast
    for name, build in INSTALLED.items():
        other = build(case, setting, first.parameters)
        if abs(other.parameters / first.parameters - 1) > TOLERANCE:
            raise ValueError(f"{case.name}: {name} has {other.parameters:,} parameters, ours {first.parameters:,}")
        yield other


def ours(case: Case, setting: Setting, name: str = "ours") -> Contestant | None:
    """Returns this project, with its Trainer and its samplers; None if it cannot be compiled and should be."""
    device, precision, sections = setting
    torch.manual_seed(0)
    settings = UNetSettings(
        channels=case.channels, channel_mults=case.mults, blocks_per_level=case.blocks, attention_levels=case.attention,
        middle_attention=True, heads=case.heads, time_embedding="auto", dropout=0.0, conditioning="none",
    )  # fmt: skip
    network = UNet(settings, case.shape, [""]).to(device, memory_format=torch.channels_last).train(not case.steps)
    schedule = make_schedule("linear", LEVELS)
    height, width, channels = case.shape
    x = torch.randn(case.batch, channels, height, width, device=device).contiguous(memory_format=torch.channels_last)
    t = torch.ones(case.batch, device=device)
    model: nn.Module = network
    if name != "ours":

        def probe(fast: nn.Module) -> None:
            with torch.inference_mode(case.steps > 0), precision.autocast():
                out = fast(x, t, None)
            if not case.steps:
                out.sum().backward()

        model = compiled(network, True, device, probe)
        if model is network:
            return None

    if case.steps:
        changes = {"steps": case.steps, "sampler": "ddim", "eta": 0.0, "churn": 0.0, "guidance": 1.0, "thresholding": "clip"}
        data = {"shape": case.shape, "class_names": ["image"]}
        diffusion_model = DiffusionModel(model, schedule, "eps", data)
        plan = SampleDDIM(**{**sections["sample_ddim"], **changes}).plan(diffusion_model)

        def run() -> np.ndarray:
            with precision.autocast():
                noise = ImageNoise(device, tuple(x.shape), 0, 1, 0, "benchmark")
                for frame in sample(plan.denoiser(None), plan.rule, schedule, plan.grid, noise(), noise):  # noqa: B007
                    pass
                return to_images(frame.x)
    else:
        images = (_images(case) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        batches = Batches(images, np.zeros(len(images), np.int64), 0, device)
        changes = {
            "batch_size": case.batch, "gradient_accumulation": 1, "steps": 1_000_000,
            "lr_schedule": "constant", "warmup_steps": 0,
            "optimizer": "adamw", "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY, "gradient_clip": CLIP, "ema_decay": EMA_DECAY,
            "loss_weight": "auto", "loss_gamma": "auto", "timestep_sampling": "uniform", "condition_dropout": 0.0, "flip": False,
            "snapshots": 0,
        }  # fmt: skip
        train = Train(**{**sections["train"], **changes})
        trainer = Trainer(network, schedule, "eps", batches, train, 0, precision.autocast, precision.scaler, model)
        run = trainer.train_step
    return Contestant(name, _count(network), run, lambda: network(x, t, None))


def unet2d_arguments(case: Case) -> dict[str, Any]:
    """Returns the arguments of diffusers' UNet2DModel for the network of a case."""
    attended = [index in case.attention for index in range(len(case.mults))]
    return {
        "sample_size": case.shape[0], "in_channels": case.shape[2], "out_channels": case.shape[2],
        "layers_per_block": case.blocks, "block_out_channels": case.widths, "add_attention": True,
        "attention_head_dim": case.widths[-1] // case.heads,
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
        "norm_num_groups": norm_groups(case.channels),
    }  # fmt: skip


def diffusers(case: Case, setting: Setting, parameters: int) -> Contestant:
    """Returns UNet2DModel with the schedulers of the library's unconditional training example."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    device, precision, _ = setting
    torch.manual_seed(0)
    network = UNet2DModel(**unet2d_arguments(case)).to(device).train(not case.steps)
    height, width, channels = case.shape
    x, t = torch.randn(case.batch, channels, height, width, device=device), torch.ones(case.batch, device=device)
    if case.steps:
        pipeline = DDIMPipeline(network, DDIMScheduler(LEVELS))
        pipeline.set_progress_bar_config(disable=True)

        def run() -> np.ndarray:
            with precision.autocast():
                return pipeline(case.batch, num_inference_steps=case.steps, output_type="np").images
    else:
        scheduler, optimizer = DDPMScheduler(LEVELS), _adamw(network)
        average = EMAModel(network.parameters(), decay=EMA_DECAY, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        images = (_images(case) * 2 - 1).to(device)

        def run() -> float:
            clean = images[torch.randint(len(images), (case.batch,), device=device)]
            noise = torch.randn(clean.shape, device=device)
            steps = torch.randint(0, LEVELS, (case.batch,), device=device)
            noisy = scheduler.add_noise(clean, noise, steps)
            with precision.autocast():
                output = network(noisy, steps).sample
            loss = F.mse_loss(output.float(), noise)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            average.step(network.parameters())
            return loss.detach().item()

    return Contestant("diffusers", _count(network), run, lambda: network(x, t))


class _NoAttention(nn.Module):
    """Replaces a module f whose caller computes f(x) + x: the sum is x, at no cost."""

    class _Nothing:
        def __add__(self, x: Tensor) -> Tensor:
            return x

    def forward(self, x: Tensor) -> "_NoAttention._Nothing":
        return self._Nothing()


def denoising_diffusion_pytorch(case: Case, setting: Setting, parameters: int) -> Contestant:
    """Returns Unet in GaussianDiffusion, with about the given number of parameters, and the step of the library's Trainer."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as library
    from ema_pytorch import EMA

    # Its progress bar per batch of samples has no switch.
    library.tqdm = lambda iterable, **_: iterable
    device, precision, _ = setting
    torch.manual_seed(0)

    def build(dim: int, init_dim: int) -> nn.Module:
        attended = tuple(index in case.attention for index in range(len(case.mults)))
        unet = Unet(
            dim, init_dim, dim_mults=case.mults, channels=case.shape[2], full_attn=attended, flash_attn=True,
            attn_heads=case.heads, attn_dim_head=case.widths[-1] // case.heads,
        )  # fmt: skip
        for level in (*unet.downs, *unet.ups):
            if isinstance(level[2], library.LinearAttention):
                level[2] = _NoAttention()
        return unet

    with torch.device("meta"):
        dim = min(range(8, 3 * case.channels, 2), key=lambda d: abs(_count(build(d, d)) - parameters))
        init_dim = min(range(max(4, dim - 16), dim + 17), key=lambda d: abs(_count(build(dim, d)) - parameters))
    network = build(dim, init_dim)
    diffusion = GaussianDiffusion(
        network, image_size=case.shape[0], timesteps=LEVELS, sampling_timesteps=case.steps or None, objective="pred_noise",
        beta_schedule="linear",
    ).to(device).train(not case.steps)  # fmt: skip
    height, width, channels = case.shape
    x, t = torch.randn(case.batch, channels, height, width, device=device), torch.ones(case.batch, device=device)
    if case.steps:

        def run() -> np.ndarray:
            with precision.autocast():
                return diffusion.sample(case.batch).permute(0, 2, 3, 1).float().cpu().numpy()
    else:
        optimizer = _adamw(diffusion)
        # Its defaults only copy the weights for the first 100 steps, and then average at every tenth.
        average = EMA(diffusion, beta=EMA_DECAY, update_every=1, update_after_step=0).to(device)
        images = _images(case).to(device)

        def run() -> float:
            clean = images[torch.randint(len(images), (case.batch,), device=device)]
            with precision.autocast():
                loss = diffusion(clean)
            total = loss.item()
            loss.backward()
            nn.utils.clip_grad_norm_(diffusion.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            return total

    return Contestant("denoising-diffusion-pytorch", _count(network), run, lambda: network(x, t))


OTHERS = {"diffusers": diffusers, "denoising-diffusion-pytorch": denoising_diffusion_pytorch}
INSTALLED = {name: build for name, build in OTHERS.items() if importlib.util.find_spec(name.replace("-", "_"))}


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _images(case: Case) -> Tensor:
    """Returns random images (N, C, H, W) in [0, 1]."""
    height, width, channels = case.shape
    return torch.rand(IMAGES, channels, height, width, generator=torch.Generator().manual_seed(0))


def _adamw(network: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(network.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
