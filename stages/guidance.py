"""Scores samples over the guidance scale: models/ddpm -> reports/guidance."""

from pathlib import Path

import pandas as pd

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime
from ddpm.core.files import write_json, write_text
from ddpm.core.stage import run_stage
from ddpm.evaluation.guidance import COLUMNS, Guidance, compare_scales, why_skipped
from ddpm.evaluation.run import open_run

REPORT = Path("reports/guidance")


def print_row(row: dict) -> None:
    if processes.is_main_process():
        accuracy = f", accuracy {row['accuracy']:.1%}" if row["accuracy"] == row["accuracy"] else ""
        print(f"guidance {row['scale']:g} by {row['method']}: FID {row['fid']:.4f}{accuracy}", flush=True)


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, guidance=Guidance, runtime=Runtime)
    run = open_run(p, p.guidance.checkpoint)
    evaluator = run.evaluator(p.guidance.samples)
    autocast = Precision(p.runtime, run.device).autocast
    rows = compare_scales(run.model, evaluator, p.guidance, p.seed, autocast, print_row)
    if not processes.is_main_process():
        return
    frame = pd.DataFrame(rows, columns=COLUMNS)
    write_text(REPORT / "guidance.csv", frame.to_csv(index=False, float_format="%.5f"))
    best = {
        method: part.loc[part.fid.idxmin(), ["scale", "fid", "recall", "accuracy"]].dropna().to_dict()
        for method, part in frame[frame.scale > 0].groupby("method", sort=False)
    }
    reason = why_skipped(run.model, evaluator, p.guidance)
    metrics = {"n": evaluator.sizes.n, "fid_floor": evaluator.fid_floor, "best": best, "status": reason or "ok"}
    write_json(REPORT / "metrics.json", {"model": run.weights, **metrics})
    if reason:
        print(f"no scales of guidance are compared: {reason}", flush=True)


if __name__ == "__main__":
    run_stage(main, parallel="stages.guidance", memory="guidance.batch_size")
