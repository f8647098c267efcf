"""models/ddpm -> samples/ddim.npz: DDIM over some of the levels."""

from ddpm import params
from ddpm.runtime import Runtime, run_stage
from ddpm.sampling.draw import SampleDDIM, draw_from_model
from ddpm.sampling.grid import make_grid
from ddpm.sampling.samplers import bind


def main() -> None:
    p = params.load(seed=params.Seed, sample_ddim=SampleDDIM, runtime=Runtime)
    draw_from_model(
        "ddim", p.sample_ddim, p.seed, p.runtime,
        bind("ddim", eta=p.sample_ddim.eta),
        lambda total: make_grid(p.sample_ddim.spacing, total, p.sample_ddim.steps),
    )  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
