"""models/ddpm -> reports/sweep: every sampler with several numbers of network evaluations, and the EMA with several widths,
judged. Frozen in dvc.yaml."""

from ddpm import distributed, params
from ddpm.data.datasets import DatasetName
from ddpm.data.prepared import PrepareData, open_prepared
from ddpm.evaluation.scores import Judges
from ddpm.evaluation.sweep import Sweep, sweep
from ddpm.evaluation.widths import sweep_widths
from ddpm.judge.classifier import load_classifier
from ddpm.networks.store import check_data
from ddpm.reporting.sweep import write_sweep
from ddpm.runtime import Precision, Runtime, run_stage, setup
from ddpm.sampling.model import FOLDER, load


def main() -> None:
    p = params.load(dataset=DatasetName, seed=params.Seed, prepare_data=PrepareData, sweep=Sweep, runtime=Runtime)
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    judge, _ = load_classifier(data, device)
    model = load(p.sweep.checkpoint, device)
    check_data(model.data, data.identity())
    judges = Judges(data, judge, p.sweep.samples, p.seed, device)

    def say(row: dict) -> None:
        if not distributed.is_first():
            return
        what = f"{row['method']}, {row['nfe']:,} evaluations" if "method" in row else f"EMA {row['checkpoint']}"
        print(f"{what}: FID {row['fid']:.4f}, {row['seconds']:.1f} s", flush=True)

    autocast = Precision(p.runtime, device).autocast
    rows = sweep(model, judges, p.sweep, p.seed, autocast, say)
    widths, note = sweep_widths(FOLDER, judges, p.sweep, p.seed, autocast, say)
    if not distributed.is_first():
        return
    if note:
        print(note, flush=True)
    write_sweep(rows, widths, note, judges.classifier.floor, judges.sizes.n, p.dataset)


if __name__ == "__main__":
    run_stage(main, parallel="stages.sweep")
