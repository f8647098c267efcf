"""models/ddpm -> samples/ddpm.npz: ancestral sampling over all T levels."""

from ddpm import params
from ddpm.runtime import Runtime, run_stage
from ddpm.sampling.draw import SampleDDPM, draw_from_model
from ddpm.sampling.grid import make_grid
from ddpm.sampling.samplers import bind


def main() -> None:
    p = params.load(seed=params.Seed, sample_ddpm=SampleDDPM, runtime=Runtime)
    draw_from_model(
        "ddpm", p.sample_ddpm, p.seed, p.runtime,
        bind("ancestral", variance=p.sample_ddpm.variance),
        lambda total: make_grid("trailing", total, total),
    )  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
