"""models/ddpm -> samples/ddpm.npz: ancestral sampling over all T levels."""

from ddpm import params
from ddpm.runtime import Runtime, run_stage
from ddpm.sampling.draw import draw_from_model
from ddpm.sampling.settings import SampleDDPM


def main() -> None:
    p = params.load(seed=params.Seed, sample_ddpm=SampleDDPM, runtime=Runtime)
    draw_from_model("ddpm", p.sample_ddpm, p.seed, p.runtime)


if __name__ == "__main__":
    run_stage(main, parallel="stages.sample_ddpm")
