"""models/ddpm -> reports/guidance: accuracy, recall and FID over the scale of guidance."""

from pathlib import Path

import pandas as pd

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime, setup
from ddpm.core.files import write_json, write_text
from ddpm.core.stage import run_stage
from ddpm.data.prepared import open_prepared
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.guidance import COLUMNS, Guidance, compare_scales, why_none
from ddpm.features.classifier import load_classifier
from ddpm.networks.checkpoints import check_data
from ddpm.sampling.model import load

REPORT = Path("reports/guidance")


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, guidance=Guidance, runtime=Runtime)
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    judge, _ = load_classifier(data, device)
    model = load(p.guidance.checkpoint, device)
    check_data(model.data, data.identity())
    judges = Evaluator(data, judge, p.guidance.samples, p.seed, device)

    def say(row: dict) -> None:
        if processes.is_main_process():
            seen = f", {row['accuracy']:.1%} of the class asked for" if row["scale"] > 0 else ""
            print(f"guidance {row['scale']:g} by {row['method']}: FID {row['fid']:.4f}{seen}", flush=True)

    rows = compare_scales(model, judges, p.guidance, p.seed, Precision(p.runtime, device).autocast, say)
    if not processes.is_main_process():
        return
    frame = pd.DataFrame(rows, columns=COLUMNS)
    write_text(REPORT / "guidance.csv", frame.to_csv(index=False, float_format="%.5f"))
    best = {
        method: part.loc[part.fid.idxmin(), ["scale", "fid", "recall", "accuracy"]].to_dict()
        for method, part in frame[frame.scale > 0].groupby("method", sort=False)
    }
    reason = why_none(model, p.guidance)
    found = {"n": judges.sizes.n, "fid_floor": judges.classifier.floor, "best": best, "status": reason or "ok"}
    write_json(REPORT / "metrics.json", found)
    if reason:
        print(f"no scales of guidance are compared: {reason}", flush=True)


if __name__ == "__main__":
    run_stage(main, parallel="stages.guidance")
