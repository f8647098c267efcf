"""Writes the outputs of `evaluate`: metrics.json and plots for DVC; scores, arrays and descriptions for `report`.

samples/judged/metrics.json describes the metrics, so that `report` needs no code of this folder. Lists are in table order.

    {"extractors": [{"name": "classifier", "title": "the classifier, ..."}, ...],
     "feature_metrics": [{"key": "fid", "title": "FID", "better": "lower", "meaning": "...",
                          "floor": "fid_floor", "share": false}, ...],
     "sample_metrics": [{"key": "memorization.nn_auc", "better": 0.5, "floor": "", ...}, ...]}

key: a feature metric is stored in scores.json under SAMPLER.EXTRACTOR.KEY, a sample metric under SAMPLER.KEY, whose dots separate
    levels; KEY_sd next to it is the standard deviation over sets of samples. A metric may be missing.
better: "lower", "higher", or the number that is best.
floor: where the score of real test images is: a key next to the score ("fid_floor"; a path, "classes.tv_floor", for a sample
    metric); "real" for scores["real"][EXTRACTOR][KEY]; "" for nowhere, where `better` applies if it is a number.
share: the value is a share of images, to be printed in percent.

An extractor without its weights file has {"status": "weights missing"} in place of its scores; a classifier whose features
measure nothing has its status.
"""

import numpy as np
import pandas as pd

from ddpm.core.files import write_json, write_npz, write_text
from ddpm.core.paths import EVALUATED_DIR, METRICS_FILE, PLOTS_DIR
from ddpm.data.images import to_images
from ddpm.evaluation.evaluator import CLASSIFIER, LEVELS, describe_metrics
from ddpm.evaluation.likelihood import Likelihood
from ddpm.evaluation.reconstruction import Reconstruction, RoundTrips
from ddpm.evaluation.training_curve import COLUMNS, REAL_IMAGES

COVERAGE = LEVELS["coverage"][1:]
ABOUT = ("model", "settings")  # what a set of samples was drawn with; the rest of its metrics.json is its cost


def write_results(
    scores: dict,
    runs: dict[str, dict],
    reconstruction: Reconstruction,
    likelihood: Likelihood,
    round_trips: RoundTrips,
    arrays: dict[str, np.ndarray],
    curve: list[dict],
) -> None:
    """Writes all outputs.

    runs: per sampler, the content of reports/sample_NAME/metrics.json; scores.json has none of it, since seconds differ from run
        to run.
    arrays: what else `report` plots: requested and predicted classes, samples and their nearest training images.
    curve: the rows of `training_curve`.

    Raises InputError for a score that is NaN or infinite, before anything is written.
    """
    arrays = arrays | {f"reconstruction_{name}": to_images(image) for name, image in reconstruction.examples.items()}
    arrays |= {f"round_trip_{name}": to_images(image) for name, image in round_trips.examples.items()}
    arrays |= {"bits_level": likelihood.level} | {f"bits_{name}": values for name, values in likelihood.curve.items()}
    write_json(EVALUATED_DIR / "scores.json", scores)
    write_json(EVALUATED_DIR / "metrics.json", describe_metrics())
    write_npz(EVALUATED_DIR / "arrays.npz", arrays)
    write_text(PLOTS_DIR / "psnr.csv", pd.DataFrame(reconstruction.curve).to_csv(index=False, float_format="%.4f"))
    write_text(PLOTS_DIR / "training_curve.csv", pd.DataFrame(curve, columns=COLUMNS).to_csv(index=False, float_format="%.5f"))
    spaces = {scores[name]["sampler"]: scores[name][CLASSIFIER] for name in runs}
    fids = {name: space.get("fid") for name, space in spaces.items()} | {REAL_IMAGES: scores["ddpm"][CLASSIFIER].get("fid_floor")}
    rows = [(images, "FID", fid) for images, fid in fids.items() if fid is not None]
    covers = spaces | {REAL_IMAGES: scores["real"][CLASSIFIER]}
    rows += [(images, key, values[key]) for images, values in covers.items() for key in COVERAGE if key in values]
    table = pd.DataFrame(rows, columns=["images", "score", "value"])
    write_text(PLOTS_DIR / "scores.csv", table.to_csv(index=False, float_format="%.5f"))
    metrics = dict(scores)
    for name, run in runs.items():
        cost = {key: value for key, value in run.items() if key not in ABOUT}
        metrics[name] = {**scores[name], "cost": cost, **{key: run[key] for key in ABOUT if key in run}}
    write_json(METRICS_FILE, metrics)
