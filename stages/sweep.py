"""Scores all samplers at several numbers of network evaluations, and several EMA widths: models/ddpm -> reports/sweep.

Frozen in dvc.yaml."""

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime
from ddpm.core.files import counted
from ddpm.core.paths import MODEL_DIR
from ddpm.core.stage import run_stage
from ddpm.evaluation.run import open_run
from ddpm.evaluation.sweep import Sweep, sweep, sweep_widths
from ddpm.report.sweep import write_sweep


def print_row(row: dict) -> None:
    if processes.is_main_process():
        name = f"{row['method']}, {counted(row['nfe'], 'evaluation')}" if "method" in row else f"EMA {row['checkpoint']}"
        print(f"{name}: FID {row['fid']:.4f}, {row['seconds']:.1f} s", flush=True)


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, sweep=Sweep, runtime=Runtime)
    run = open_run(p, p.sweep.checkpoint)
    evaluator = run.evaluator(p.sweep.samples)
    autocast = Precision(p.runtime, run.device).autocast
    rows = sweep(run.model, evaluator, p.sweep, p.seed, autocast, print_row)
    widths, note = sweep_widths(MODEL_DIR, evaluator, p.sweep, p.seed, autocast, print_row)
    if not processes.is_main_process():
        return
    if note:
        print(note, flush=True)
    write_sweep(rows, widths, note, evaluator.fid_floor, evaluator.sizes.n, p.dataset, run.weights)


if __name__ == "__main__":
    # dvc.yaml freezes it, so it is no part of a run.
    run_stage(main, parallel="stages.sweep", memory="sweep.batch_size", timed=False)
