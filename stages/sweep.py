"""models/ddpm -> reports/sweep: every sampler with several numbers of network evaluations, and the EMA with several widths,
judged. Frozen in dvc.yaml."""

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime, setup
from ddpm.core.paths import MODEL_DIR
from ddpm.core.stage import run_stage
from ddpm.data.prepared import open_prepared
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.sweep import Sweep, sweep, sweep_widths
from ddpm.features.classifier import load_classifier
from ddpm.networks.checkpoints import check_data
from ddpm.report.sweep import write_sweep
from ddpm.sampling.model import load


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, sweep=Sweep, runtime=Runtime)
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    judge, _ = load_classifier(data, device)
    model = load(p.sweep.checkpoint, device)
    check_data(model.data, data.identity())
    judges = Evaluator(data, judge, p.sweep.samples, p.seed, device)

    def say(row: dict) -> None:
        if not processes.is_main_process():
            return
        what = f"{row['method']}, {row['nfe']:,} evaluations" if "method" in row else f"EMA {row['checkpoint']}"
        print(f"{what}: FID {row['fid']:.4f}, {row['seconds']:.1f} s", flush=True)

    autocast = Precision(p.runtime, device).autocast
    rows = sweep(model, judges, p.sweep, p.seed, autocast, say)
    widths, note = sweep_widths(MODEL_DIR, judges, p.sweep, p.seed, autocast, say)
    if not processes.is_main_process():
        return
    if note:
        print(note, flush=True)
    write_sweep(rows, widths, note, judges.classifier.floor, judges.sizes.n, p.dataset)


if __name__ == "__main__":
    run_stage(main, parallel="stages.sweep")
