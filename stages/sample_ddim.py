"""models/ddpm -> samples/ddim.npz: DDIM, or another fast sampler, over some of the levels."""

from ddpm.core import params
from ddpm.core.device import Runtime
from ddpm.core.stage import run_stage
from ddpm.sampling.generate import write_samples
from ddpm.sampling.settings import SampleDDIM


def main() -> None:
    p = params.load(seed=params.Seed, sample_ddim=SampleDDIM, runtime=Runtime)
    write_samples("ddim", p.sample_ddim, p.seed, p.runtime)


if __name__ == "__main__":
    run_stage(main, parallel="stages.sample_ddim", memory="sample_ddim.batch_size")
