"""models/ddpm -> samples/ddpm.npz: ancestral sampling."""

from ddpm.core import params
from ddpm.core.device import Runtime
from ddpm.core.stage import run_stage
from ddpm.sampling.generate import write_samples
from ddpm.sampling.settings import SampleDDPM


def main() -> None:
    p = params.load(seed=params.Seed, sample_ddpm=SampleDDPM, runtime=Runtime)
    write_samples("ddpm", p.sample_ddpm, p.seed, p.runtime)


if __name__ == "__main__":
    run_stage(main, parallel="stages.sample_ddpm", memory="sample_ddpm.batch_size")
