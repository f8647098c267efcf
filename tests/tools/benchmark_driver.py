"""Measures the overhead of the sampling driver: one network evaluation in the driver against one of the bare network.

    python -m tests.tools.benchmark_driver [--batch 16] [--size 8] [--rounds 400]

Prints, per sampler, the median over rounds of (driver step / its evaluations) / (bare evaluation) of the same network on the
same input, with the network of params.yaml. Both alternate within every round, so that other load on the machine affects both.
"""

import argparse
import statistics
import time

import torch

from ddpm.core.params import load
from ddpm.datasets.registry import DIGITS
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.registry import NetworkSettings
from ddpm.networks.unet import UNet
from ddpm.sampling.denoiser import network_denoiser, thresholded
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.samplers import SAMPLERS, sample
from ddpm.sampling.time_grid import make_grid


def endless(rule, denoiser, schedule, grid, shape, device):
    """Frames of one sampling after another."""
    run = 0
    while True:
        noise = ImageNoise(device, shape, 0, len(grid), run)
        yield from sample(denoiser, rule, schedule, grid, noise(), noise)
        run += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    settings = load(model=NetworkSettings).model
    network = UNet(settings, (options.size, options.size, 1), DIGITS).to(device, memory_format=torch.channels_last).eval()
    labels = torch.arange(options.batch, device=device) % 10
    shape = (options.batch, 1, options.size, options.size)
    schedule = make_schedule("linear", 1000)
    denoiser = thresholded(network_denoiser(network, "v", labels))
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    t = torch.full((options.batch,), 500.0, device=device)

    def timed(step) -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    @torch.inference_mode()
    def bare() -> None:
        network(x, t, labels)

    where = f"{device}, {torch.get_num_threads()} threads"
    print(f"batch {options.batch} of {options.size}x{options.size} on {where}, {options.rounds} rounds")
    grid = make_grid("trailing", schedule, 1000)
    for name, sampler in SAMPLERS.items():
        evaluations = 2 if sampler.second_order else 1
        frames = endless(sampler.step, denoiser, schedule, grid, shape, device)
        for _ in range(30):
            bare()
            next(frames)
        pairs = [(timed(lambda: next(frames)) / evaluations, timed(bare)) for _ in range(options.rounds)]  # noqa: B023
        ratio = statistics.median(step / alone for step, alone in pairs)
        alone = statistics.median(alone for _, alone in pairs)
        print(f"{name:13} {ratio:.3f} of the bare network ({1e3 * alone:.2f} ms)")


if __name__ == "__main__":
    main()
