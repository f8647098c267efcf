"""Writes what `evaluate` found: metrics.json and plots for DVC, scores and arrays for `report`."""

from pathlib import Path

import numpy as np
import pandas as pd

from ddpm.core.files import write_json, write_npz, write_text
from ddpm.core.paths import METRICS_FILE
from ddpm.data.images import to_images
from ddpm.evaluation.likelihood import Likelihood
from ddpm.evaluation.reconstruction import Reconstruction, RoundTrips

PLOTS = Path("reports/evaluate/plots")
JUDGED = Path("samples/judged")
REAL = "real test images"
COVERAGE = ("precision", "recall", "density", "coverage")


def write_results(
    scores: dict,
    cost: dict[str, dict],
    pairs: Reconstruction,
    bits: Likelihood,
    trips: RoundTrips,
    arrays: dict[str, np.ndarray],
) -> None:
    """Write everything; `cost` per sampler goes into metrics.json alone, since seconds differ from run to run.

    arrays: what else `report` draws: classes asked for and seen, samples beside their nearest training images.

    Raises InputError, with nothing of it written, for a score that is NaN or infinite.
    """
    arrays = arrays | {f"reconstruction_{name}": to_images(image) for name, image in pairs.examples.items()}
    arrays |= {f"round_trip_{name}": to_images(image) for name, image in trips.examples.items()}
    arrays |= {"bits_level": bits.level} | {f"bits_{name}": values for name, values in bits.curve.items()}
    write_json(JUDGED / "scores.json", scores)
    write_npz(JUDGED / "arrays.npz", arrays)
    write_text(PLOTS / "psnr.csv", pd.DataFrame(pairs.curve).to_csv(index=False, float_format="%.4f"))
    bars = [{"images": scores[name]["sampler"], "fid": scores[name]["classifier"]["fid"]} for name in cost]
    bars.append({"images": REAL, "fid": scores["ddpm"]["classifier"]["fid_floor"]})
    write_text(PLOTS / "fid.csv", pd.DataFrame(bars).to_csv(index=False, float_format="%.5f"))
    covers = {scores[name]["sampler"]: scores[name]["classifier"] for name in cost} | {REAL: scores["real"]["classifier"]}
    rows = [{"images": images, "score": key, "value": found[key]} for images, found in covers.items() for key in COVERAGE]
    write_text(PLOTS / "coverage.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.5f"))
    write_json(METRICS_FILE, {key: {**value, "cost": cost[key]} if key in cost else value for key, value in scores.items()})
