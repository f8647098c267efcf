"""models/ddpm -> reports/sweep: every sampler with several numbers of network evaluations, judged. Frozen in dvc.yaml."""

from ddpm import params
from ddpm.data.datasets import DatasetName
from ddpm.data.prepared import PrepareData, open_prepared
from ddpm.evaluation.scores import Judges
from ddpm.evaluation.sweep import Sweep, sweep
from ddpm.judge.classifier import load_classifier
from ddpm.networks.store import check_data
from ddpm.reporting.sweep import write_sweep
from ddpm.runtime import Runtime, autocast, run_stage, setup
from ddpm.sampling.model import load


def main() -> None:
    p = params.load(dataset=DatasetName, seed=params.Seed, prepare_data=PrepareData, sweep=Sweep, runtime=Runtime)
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    judge, _ = load_classifier(data, device)
    model = load(p.sweep.checkpoint, device)
    check_data(model.data, data.identity())
    judges = Judges(data, judge, p.sweep.samples, p.seed, device)

    def say(row: dict) -> None:
        print(f"{row['method']}, {row['nfe']:,} evaluations: FID {row['fid']:.4f}, {row['seconds']:.1f} s", flush=True)

    rows = sweep(model, judges, p.sweep, p.seed, lambda: autocast(p.runtime, device), say)
    write_sweep(rows, judges.classifier.floor, judges.sizes.n, p.dataset)


if __name__ == "__main__":
    run_stage(main)
