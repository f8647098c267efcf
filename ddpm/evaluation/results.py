"""Writes what `evaluate` found: metrics.json and plots for DVC, scores and arrays for `report`."""

from pathlib import Path

import numpy as np
import pandas as pd

from ddpm.data.batches import to_uint8
from ddpm.evaluation.scores import Reconstruction
from ddpm.files import write_json, write_npz, write_text

METRICS = Path("reports/evaluate/metrics.json")
PLOTS = Path("reports/evaluate/plots")
JUDGED = Path("samples/judged")


def write_results(
    scores: dict, cost: dict[str, dict], pairs: Reconstruction, classes: dict[str, tuple[np.ndarray | None, np.ndarray]]
) -> None:
    """Write everything; `cost` per sampler goes into metrics.json alone, since seconds differ from run to run.

    classes: per sampler the class asked for (None if none was) and the class that the judge sees, both (N,).
    """
    arrays = {name: to_uint8(image).permute(0, 2, 3, 1).cpu().numpy() for name, image in pairs.examples.items()}
    for name, (asked, seen) in classes.items():
        arrays |= {f"{name}_seen": seen} | ({} if asked is None else {f"{name}_asked": asked})
    write_npz(JUDGED / "arrays.npz", arrays)
    write_json(JUDGED / "scores.json", scores)
    write_text(PLOTS / "psnr.csv", pd.DataFrame(pairs.curve).to_csv(index=False, float_format="%.4f"))
    bars = [{"images": name.upper(), "fid": scores[name]["classifier"]["fid"]} for name in classes]
    bars.append({"images": "real test images", "fid": scores["ddpm"]["classifier"]["fid_floor"]})
    write_text(PLOTS / "fid.csv", pd.DataFrame(bars).to_csv(index=False, float_format="%.5f"))
    write_json(METRICS, {key: {**value, "cost": cost[key]} if key in cost else value for key, value in scores.items()})
