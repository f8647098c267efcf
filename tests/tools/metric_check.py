"""Checks that the metrics respond as they should: scores real images, damaged in known ways, as if they were samples.

    python -m tests.tools.metric_check --dataset mnist [--out reports/metric-check/mnist.md]

Writes a table, a list of checks with their results, and an image of what was scored. Ends with status 1 if a check fails. The
classifier is trained once and kept in --work. Raw files are found as the pipeline finds them (DDPM_DATA_ROOT); digits needs none.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddpm.core import params
from ddpm.core.device import Runtime, setup
from ddpm.core.files import InputError, write_text
from ddpm.core.stage import run_stage
from ddpm.data.prepared import Prepared, Split, open_prepared
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DATASETS
from ddpm.datasets.settings import PrepareData
from ddpm.evaluation.evaluator import Evaluator
from ddpm.features.classifier import Classifier, TrainClassifier, load_classifier, save_classifier, train_classifier
from ddpm.plots.image_grid import captioned, save
from ddpm.plots.numbers import number, percent, table

SETS = 3  # disjoint sets of n samples each, the fewest that give a standard deviation
MAX_IMAGES = 1000  # in a set
NOISES = (0.05, 0.1, 0.2, 0.4)
LONG_TRAINING = {"epochs": 3, "batch_size": 128}  # for data sets of 60,000 images
SHOWN = 10


class Pool(NamedTuple):
    """The images that rows are made from, uint8 (N, H, W, C).

    held_out: test images that are not part of the reference.
    train: the training split.
    count: images in a row.
    rng: source of its random choices.
    """

    held_out: Split
    train: Split
    count: int
    rng: np.random.Generator

    def real(self) -> np.ndarray:
        return self.held_out.images[: self.count]

    def copies(self) -> np.ndarray:
        return np.asarray(self.train.images[self.rng.choice(len(self.train.images), self.count, replace=False)])


def noisy(pool: Pool, sd: float) -> np.ndarray:
    """Adds Gaussian noise with this standard deviation, in units of the range from black to white, and clips."""
    return (pool.real() + pool.rng.normal(0, 255 * sd, pool.real().shape)).round().clip(0, 255).astype(np.uint8)


def blurred(pool: Pool) -> np.ndarray:
    """Filters with the kernel (1 2 1) / 4 along both axes."""
    x = np.pad(pool.real().astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return ((x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4).round().astype(np.uint8)


def half_copies(pool: Pool) -> np.ndarray:
    """Replaces every other image by a training image."""
    images = pool.real().copy()
    images[::2] = pool.copies()[::2]
    return images


def collapsed(pool: Pool) -> np.ndarray:
    """Repeats a tenth of a set."""
    return np.resize(pool.real()[: pool.count // SETS // 10], pool.real().shape)


def without_a_class(pool: Pool) -> np.ndarray:
    return pool.held_out.images[pool.held_out.labels != 0][: pool.count]


ROWS: dict[str, Callable[[Pool], np.ndarray]] = {
    "held-out real images": Pool.real,
    **{f"noise {sd:g}": (lambda pool, sd=sd: noisy(pool, sd)) for sd in NOISES},
    "blurred": blurred,
    "copies of training images": Pool.copies,
    "half of them copies": half_copies,
    "collapsed": collapsed,
    "without the first class": without_a_class,
}
REAL, BLURRED, COPIES, HALF, COLLAPSED, CLASSLESS = (name for name in ROWS if not name.startswith("noise"))
NOISY = [name for name in ROWS if name.startswith("noise")]


class Check(NamedTuple):
    """A check: its statement, the numbers that it is about, and whether it holds."""

    sentence: str
    numbers: Sequence[float]
    holds: bool


def rising(sentence: str, values: Sequence[float]) -> Check:
    """Returns the check that each number is greater than the one before it."""
    return Check(sentence, values, bool((np.diff(values) > 0).all()))


def checks(scores: dict[str, dict], n: int) -> list[Check]:
    """Returns all checks. scores: by row, in the layout of metrics.json; n: images in a set."""

    def of(key: str, *rows: str) -> list[float]:
        group, name = key.split(".")
        return [scores[row][group][name] for row in rows]

    real, collapse, noisiest = scores[REAL]["classifier"], scores[COLLAPSED]["classifier"], NOISY[-1]
    # Standard error of a rank statistic between SETS * n and n images of one distribution (Mann & Whitney 1947).
    margin = 3 * np.sqrt((SETS * n + n + 1) / (12 * SETS * n * n))
    auc = of("memorization.nn_auc", COPIES, HALF, REAL)
    near, authentic = of("memorization.near_copies", COPIES, REAL), of("memorization.authenticity", COPIES, REAL)
    classes = [*of("classes.tv", REAL), *of("classes.tv_floor", REAL)]
    fids = of("classifier.fid", COPIES, REAL)
    undetected = fids[0] <= fids[1] + 2 * real["fid_sd"]
    near_floor = abs(real["fid_excess"]) <= 4 * real["fid_sd"]
    return [
        Check("real images have the FID of the floor, within 4 sd", [real["fid"], real["fid_floor"]], near_floor),
        rising("FID rises with the noise", of("classifier.fid", REAL, *NOISY)),
        rising("KID rises with the noise", of("classifier.kid", REAL, *NOISY)),
        rising("the strongest noise lowers precision", of("classifier.precision", noisiest, REAL)),
        rising("the strongest noise lowers coverage", of("classifier.coverage", noisiest, REAL)),
        rising("blur raises FID", of("classifier.fid", REAL, BLURRED)),
        rising("a collapse raises FID", of("classifier.fid", REAL, COLLAPSED)),
        Check("a collapse keeps precision above .8", [collapse["precision"]], collapse["precision"] > 0.8),
        Check("a collapse brings recall below .3", [collapse["recall"]], collapse["recall"] < 0.3 < real["recall"]),
        rising("a collapse takes half of coverage or more", [2 * collapse["coverage"], real["coverage"]]),
        rising("a missing class raises FID", of("classifier.fid", REAL, CLASSLESS)),
        Check("the class histogram of real images is near its floor", classes, classes[0] < 1.5 * classes[1]),
        rising("a missing class shows in the histogram", of("classes.tv", REAL, CLASSLESS)),
        Check(f"nn_auc of real images is .5, within {margin:.3f}", auc[2:], abs(auc[2] - 0.5) <= margin),
        Check("nn_auc of copies is near 0", auc[:1], auc[0] < 0.02),
        Check("nn_auc of a half of copies is half that of real images", auc[1:], abs(auc[1] - auc[2] / 2) <= margin),
        Check("copies are near copies, real images are not", near, near[0] > 0.9 and near[1] < 0.1),
        Check("copies are not authentic, many real images are", authentic, authentic[0] < 0.05 and authentic[1] > 0.4),
        Check("FID does not detect copies: it is at most that of real images plus 2 sd", fids, undetected),
    ]


def page(dataset: str, scores: dict[str, dict], results: Sequence[Check], n: int, accuracy: float, picture: str) -> str:
    """Returns the report in Markdown."""
    header = ["scored as samples", "n", "FID ↓", "KID ↓", "precision ↑", "recall ↑", "density ↑", "coverage ↑", "class TV ↓"]
    header += ["nn_auc (.5)", "near copies ↓", "authenticity ↑"]
    rows = []
    for name, row in scores.items():
        space, copied = row["classifier"], row["memorization"]
        rows.append([name, f"{n:,}", f"{space['fid']:.3f} ± {space['fid_sd']:.3f}", number(space["kid"], 2)])
        rows[-1] += [f"{space[key]:.3f}" for key in ("precision", "recall", "density", "coverage")]
        rows[-1] += [f"{row['classes']['tv']:.3f}", f"{copied['nn_auc']:.3f}"]
        rows[-1] += [percent(copied["near_copies"]), percent(copied["authenticity"])]
    wrong = [check for check in results if not check.holds]
    real = scores[REAL]["classifier"]
    lines = [(check, ", ".join(number(float(value)) for value in check.numbers)) for check in results]
    return "\n\n".join([
        f"# {dataset}: do the metrics respond as they should?",
        f"Real images, damaged in known ways, are scored as if they were samples: {SETS} sets of {n:,}, with {n:,} other test "
        f"images as the test split, in the features of a classifier with a test accuracy of {percent(accuracy)}. "
        f"± is the standard deviation over the sets. The floor of FID is {real['fid_floor']:.3f}, that of the class histogram "
        f"{scores[REAL]['classes']['tv_floor']:.3f}. Noise is Gaussian, of a standard deviation in units of the range from black "
        f"to white. *Collapsed* repeats {n // 10} images.",
        f"![the first images of each row]({picture})",
        table(header, rows),
        f"## {len(results) - len(wrong)} of {len(results)} checks hold",
        "\n".join(f"- {'yes' if check.holds else '**NO**'}: {check.sentence} ({values})" for check, values in lines),
    ]) + "\n"  # fmt: skip


def get_classifier(
    data: Prepared, settings: TrainClassifier, seed: int, device: torch.device, folder: Path
) -> tuple[Classifier, dict]:
    """Returns the classifier of the folder; trains it if it is missing or was trained on other data."""
    try:
        return load_classifier(data, device, folder)
    except InputError:
        last: dict = {}
        network = train_classifier(data, settings, seed, device, last.update)
        save_classifier(network, data, {"accuracy": last["accuracy"]}, folder)
    return load_classifier(data, device, folder)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.metric_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits", choices=[name for name in DATASETS if name != "image_folder"])
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="default: reports/metric-check/DATASET.md")
    parser.add_argument(
        "--work", type=Path, default=Path(".scratch/metric-check"), help="for the classifier (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="of the classifier (default: params.yaml for digits, 3 for the others)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    out = options.out or Path("reports/metric-check") / f"{options.dataset}.md"
    p = params.load(seed=params.Seed, prepare_data=PrepareData, train_classifier=TrainClassifier, runtime=Runtime)
    device, work, start = setup(p.runtime), options.work / options.dataset, time.monotonic()
    prepare(options.dataset, p.prepare_data, work / "prepared")
    data = open_prepared(options.dataset, p.prepare_data.as_written(), work / "prepared")
    changes = {} if options.dataset == "digits" else LONG_TRAINING
    changes = {**changes, **({"epochs": options.epochs} if options.epochs else {})}
    classifier, config = get_classifier(data, p.train_classifier.model_copy(update=changes), p.seed, device, work / "classifier")

    # One part of the test split is the reference of perfect samples, as in `evaluate`; the rest is damaged and scored.
    n = min(MAX_IMAGES, len(data.test.images) // (SETS + 2))
    order = np.random.default_rng(p.seed).permutation(len(data.test.images))
    parts = [Split(np.asarray(data.test.images[i]), np.asarray(data.test.labels[i])) for i in (order[:n], order[n:])]
    evaluator = Evaluator(data._replace(test=parts[0]), classifier, SETS * n, p.seed, device)
    scores, strip = {}, []
    for name, make in ROWS.items():
        images = make(Pool(parts[1], data.train, SETS * n, np.random.default_rng(p.seed)))
        scores[name] = evaluator.evaluate(images, None, name).scores
        strip.append(list(images[:SHOWN]))
        print(f"{name}: FID {scores[name]['classifier']['fid']:.4f}", flush=True)

    results = checks(scores, n)
    picture = out.with_suffix(".png")
    save(picture, captioned(strip, list(ROWS), [], 40))
    write_text(out, page(options.dataset, scores, results, n, config["accuracy"], picture.name))
    wrong = [check.sentence for check in results if not check.holds]
    print(f"{len(results) - len(wrong)} of {len(results)} checks hold, {time.monotonic() - start:.0f} s: {out}", flush=True)
    if wrong:
        sys.exit("\n".join(f"failed: {sentence}" for sentence in wrong))


if __name__ == "__main__":
    run_stage(main)
