"""Memorization of a small data set without and with augmentation.

    python -m tests.benchmarks.augmentation [--images N] [--probabilities P ...] [--lengths K ...] [--quick] [--out FOLDER]

Trains the default network on some of the training digits, for K times the default number of steps and with `train.augment: P`, by
`python -m stages.train` of the last commit. All samples are drawn by DDIM. FID and recall compare them with all training digits,
in the features of a classifier that was trained on these; memorization is searched for in the digits that the network saw.
"""

import argparse
import itertools
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ddpm.core.device import usable_cpus
from ddpm.core.files import InputError, read_json, write_json, write_text
from ddpm.core.paths import CLASSIFIER_DIR, MODEL_DIR, PREPARED_DIR
from ddpm.core.yaml_files import read_yaml
from ddpm.data.prepared import META, open_prepared
from ddpm.evaluation.evaluator import CLASSIFIER, Evaluator
from ddpm.evaluation.memorization import Memorization
from ddpm.features.classifier import load_classifier
from ddpm.plots.numbers import measured, number, share_of, table
from ddpm.plots.style import GRAY, PALETTE, figure
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import load
from ddpm.sampling.plan import make_plan

from .commands import seconds
from .peers import ROOT, say
from .steps import checkout

CPU = torch.device("cpu")
SAMPLER_STEPS, BATCH_SIZE = 50, 250
QUICK = {"model.channels": "4", "model.heads": "2", "train.batch_size": "8", "train.warmup_steps": "1"}
# The scores of the figure, and the titles of its panels.
PANELS = {
    "fid": "FID (lower is better)", "recall": "recall (higher is better)", "nn_auc": "nn_auc (below 0.5: copying)",
    "validation_loss": "validation loss (rises: overfitting)",
}  # fmt: skip


def train(folder: Path, count: int, steps: int, probability: float, changes: dict[str, str]) -> None:
    """Trains the last commit in a new folder on `count` random training digits."""
    lengths = {"train.steps": str(steps), "train.augment": json.dumps(probability)}
    checkout("HEAD", folder, {**lengths, **changes}, {"runtime.device": "cpu"})
    prepared = folder / PREPARED_DIR
    labels = np.load(prepared / "train_labels.npy")
    kept = np.sort(np.random.default_rng(0).permutation(len(labels))[:count])
    np.save(prepared / "train_labels.npy", labels[kept])
    np.save(prepared / "train_images.npy", np.load(prepared / "train_images.npy")[kept])
    meta = read_json(prepared / META, "prepare_data")
    meta["counts"]["train"] = count
    write_json(prepared / META, meta)
    seconds(["-m", "stages.train"], folder)
    say(f"trained for {steps:,} steps with train.augment {probability:g}")


def score(folder: Path, evaluator: Evaluator, memorization: Memorization, samples: int) -> dict[str, float]:
    """Returns the scores of samples of the model in a folder, and its validation loss at the end of the training."""
    model = load("final", CPU, folder / MODEL_DIR)
    plan = make_plan(model, steps=min(SAMPLER_STEPS, model.schedule.steps))
    drawn = generate_set(model, plan, samples, BATCH_SIZE, 0, "augmentation").arrays["arr_0"]
    found = evaluator.evaluate(drawn, None, "augmentation", level="coverage").scores[CLASSIFIER]
    near = memorization.score(memorization.nearest(drawn, "samples"))
    loss = read_json(folder / "reports" / "train" / "metrics.json", "train")["validation_loss"]
    return {**found, **near, "validation_loss": loss}


def page(report: dict, picture: str) -> str:
    """Returns the report in Markdown."""
    runs, samples, n = report["runs"], report["samples"], report["n"]
    rows = [
        [
            f"{run['steps']:,}", f"{run['augment']:g}", measured(run["fid"], run.get("fid_sd")), f"{run['recall']:.3f}",
            f"{run['nn_auc']:.3f}", share_of(run["near_copies"], samples), share_of(run["authenticity"], samples),
            f"{run['validation_loss']:.4f}",
        ]
        for run in runs
    ]  # fmt: skip
    real = report["real"]
    shares = [share_of(runs[0][f"{key}_test"], report["test_images"]) for key in ("near_copies", "authenticity")]
    rows.append(["", "real test images", number(real["fid"]), f"{real['recall']:.3f}", "0.5", *shares, ""])
    parts = [
        f"# {report['images']:,} digits without and with augmentation",
        f"![scores over training steps, for each probability of the augmentation]({picture})",
        f"The default network of params.yaml, trained on {report['images']:,} of the {report['all_images']:,} training digits; "
        f"one training each, seed 0. {samples:,} samples by DDIM in {report['sampling_steps']} steps from the checkpoint "
        f"`final`, in sets of n = {n:,}. FID and recall compare with all training digits, in the features of a classifier "
        "that was trained on them; nn_auc, near copies and authenticity compare with the digits that the network saw "
        "([what they mean](../../ddpm/evaluation/README.md)). The validation loss is that of test digits without augmentation.",
        table(
            ["steps", "`train.augment`", "FID", "recall", "nn_auc", "near copies", "authenticity", "validation loss"],
            rows, text=(),
        ),
        f"The standard error of nn_auc is about {np.sqrt(1 / 12 / report['test_images']):.3f}, from the number of test images. "
        "What runs stands in `tests/benchmarks/augmentation.py`.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def chart(path: Path, report: dict) -> None:
    """Writes each score over the training steps, a line per probability."""
    real = {**report["real"], "nn_auc": 0.5}
    with figure(path, len(PANELS), 13, 3.6) as axes:
        for ax, (key, title) in zip(axes, PANELS.items(), strict=True):
            for probability, color in zip(dict.fromkeys(run["augment"] for run in report["runs"]), PALETTE, strict=False):
                runs = [run for run in report["runs"] if run["augment"] == probability]
                label = f"train.augment {probability:g}" if probability else "without augmentation"
                ax.plot([run["steps"] for run in runs], [run[key] for run in runs], "o-", color=color, label=label)
            if key in real:
                ax.axhline(real[key], color=GRAY, linestyle="--", label="real test images")
            ax.set(title=title, xlabel="optimizer steps")
            ax.set_xlim(left=0)
        axes[0].legend()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="digits to train on, 500 by default")
    parser.add_argument("--probabilities", nargs="+", type=float, default=[0.0, 0.12], metavar="P", help="0 and 0.12 by default")
    parser.add_argument("--lengths", nargs="+", type=int, metavar="K", help="1 and 3 by default")
    parser.add_argument("--quick", action="store_true", help="a tiny network for a few seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    quick, changes = options.quick, QUICK if options.quick else {}
    images, samples = options.images or (60 if quick else 500), 20 if quick else 1500
    lengths = options.lengths or ([1] if quick else [1, 3])
    steps = 4 if quick else read_yaml(ROOT / "params.yaml")["train"]["steps"]
    runs = [{"augment": p, "steps": k * steps} for p, k in itertools.product(options.probabilities, lengths)]
    path = options.out.absolute() / "augmentation"
    with tempfile.TemporaryDirectory() as temporary:
        whole, folders = Path(temporary, "whole"), [Path(temporary, str(k)) for k in range(len(runs))]
        checkout("HEAD", whole, {"train_classifier.required_accuracy": "0.0"} if quick else {}, {"runtime.device": "cpu"})
        p = read_yaml(whole / "params.yaml")
        seconds(["-m", "stages.train_classifier"], whole)
        say(f"{len(runs)} trainings on {images:,} digits")
        # A training of this network takes one thread. The longest first.
        with ThreadPoolExecutor(usable_cpus()) as pool:
            order = sorted(range(len(runs)), key=lambda k: -runs[k]["steps"])
            jobs = [pool.submit(train, folders[k], images, runs[k]["steps"], runs[k]["augment"], changes) for k in order]
            for job in jobs:
                job.result()
        data, seen = (open_prepared(p["dataset"], p["prepare_data"], place / PREPARED_DIR) for place in (whole, folders[0]))
        evaluator = Evaluator(data, load_classifier(data, CPU, whole / CLASSIFIER_DIR)[0], samples, 0, CPU)
        memorization = Memorization(seen.train.images, seen.test.images)
        for run, folder in zip(runs, folders, strict=True):
            run |= score(folder, evaluator, memorization, samples)
        metrics = evaluator.space(CLASSIFIER).metrics
        report = {
            "runs": runs, "images": images, "all_images": len(data.train.images), "test_images": len(data.test.images),
            "samples": samples, "n": evaluator.sizes.n, "sampling_steps": SAMPLER_STEPS,
            "real": {key: metrics.of_real(key) for key in ("fid", "recall")},
        }  # fmt: skip
    write_text(path.with_suffix(".md"), page(report, path.with_suffix(".png").name))
    chart(path.with_suffix(".png"), report)
    say(f"written: {path}.md and .png")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
