"""FID over minutes of training on Fashion-MNIST: from the weights of a network trained on MNIST, and from random ones.

    python -m tests.benchmarks.fine_tuning [--steps N] [--first-steps N] [--points N] [--samples N] [--quick] [--out FOLDER]

All trainings are `python -m stages.train` of the last commit with the settings of the recipe mnist_cpu, but for the data and the
number of steps. First it trains on MNIST. Then it trains on Fashion-MNIST twice, with the same settings and random numbers: with
`train.init: none`, and with the MNIST model as `train.init`. Snapshots, evenly spread over each training, are scored as by
`evaluate`, by a classifier that was trained on Fashion-MNIST. The minutes are those of whole commands, from the start of Python;
the training on MNIST does not count, nor do the classifier and the data's preparation.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from ddpm.core import params
from ddpm.core.files import InputError, write_json, write_text
from ddpm.core.paths import MODEL_DIR
from ddpm.core.yaml_files import read_yaml
from ddpm.evaluation.training_curve import SAMPLER_STEPS
from ddpm.experiments.recipe import read_recipe
from ddpm.plots.numbers import number, table
from ddpm.plots.style import BLUE, ORANGE

from .commands import seconds
from .page import software
from .peers import ROOT, machine, say
from .quality import QUICK, chart, project, trained
from .steps import checkout

RECIPE = "mnist_cpu"
# Few epochs, to save time: one judge for both need not be as accurate as the data set requires.
SECOND = {"dataset": "fashion_mnist", "train_classifier": {"epochs": 4, "batch_size": 128, "required_accuracy": 0.88}}
QUICK_SIZES = 4, 6, 2, 20
SIDES = {"random": "from random weights", "mnist": "from the MNIST model"}


def first_model(overrides: dict, folder: Path) -> float:
    """Trains the model to begin from in a new folder; returns the seconds that it took."""
    changes = params.flatten(overrides) | {"train.snapshots": 0}
    checkout("HEAD", folder, {key: json.dumps(value) for key, value in changes.items()}, {"runtime.device": "cpu"})
    say(f"training the model to begin from for {overrides['train']['steps']:,} steps")
    return seconds(["-m", "stages.train"], folder)


def set_init(folder: Path, init: str) -> None:
    """Changes train.init in the params.yaml of a folder."""
    path = folder / "params.yaml"
    content = read_yaml(path)
    content["train"]["init"] = init
    write_text(path, yaml.safe_dump(content))


def page(report: dict, picture: str) -> str:
    """Returns the report in Markdown."""
    sides, first = report["sides"], report["first"]
    rows = []
    for points in zip(*(record["points"] for record in sides.values()), strict=True):
        cells = [cell for point in points for cell in (f"{point['seconds'] / 60:.2f}", number(point["fid"]))]
        rows.append([f"{points[0]['step']:,}", *cells])
    parts = [
        f"# Fine-tuning on Fashion-MNIST: a model of MNIST on {report['machine']['cpu']}",
        f"{report['machine']['cpus']} CPUs; {software(report['machine'])}.",
        f"![FID over minutes of training, from random weights and from the MNIST model]({picture})",
        f"FID of {report['samples']:,} samples, in sets of n = {report['n']:,}, by DDIM in {report['sampling_steps']} steps, "
        "from averaged weights, in the features of a classifier that was trained on Fashion-MNIST. The floor, FID of n real test "
        f"images, is {number(report['floor'])}. Minutes count from the start of Python and are the time of the whole command "
        "times the share of the steps.",
        table(["steps", *(f"{name}: {column}" for name in SIDES.values() for column in ("minutes", "FID"))], rows, text=()),
        f"Both trainings have the settings of the recipe `{RECIPE}` and the same random numbers. The model of MNIST was trained "
        f"for {first['steps']:,} steps in {first['seconds'] / 60:.1f} minutes, which do not count. It has as many classes, so "
        "the class embedding is kept too. What runs stands in `tests/benchmarks/fine_tuning.py`.",
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="of each training on Fashion-MNIST")
    parser.add_argument("--first-steps", type=int, default=1000, help="of the training on MNIST")
    parser.add_argument("--points", type=int, default=8, help="times at which each training is scored")
    parser.add_argument("--samples", type=int, default=1000, help="samples that are scored at each time")
    parser.add_argument("--quick", action="store_true", help="digits and a tiny network for seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    sizes = options.first_steps, options.steps, options.points, options.samples
    if min(sizes) < 1 or options.samples < 2:
        parser.error("--steps, --first-steps, --points, --samples: must be at least 1, 1, 1 and 2")
    base = QUICK if options.quick else read_recipe(RECIPE).content.overrides
    second = base | ({} if options.quick else SECOND)
    first_steps, steps, points, samples = QUICK_SIZES if options.quick else sizes
    first = base | {"train": base["train"] | {"steps": first_steps}}
    second |= {"train": base["train"] | {"steps": steps}}
    path = options.out.absolute() / ("fine_tuning-quick" if options.quick else "fine_tuning")
    report = {"machine": machine(torch.device("cpu")), "samples": samples, "sampling_steps": SAMPLER_STEPS, "sides": {}}
    with tempfile.TemporaryDirectory() as temporary:
        mnist, fashion = Path(temporary, "first"), Path(temporary, "second")
        report["first"] = {"steps": first_steps, "seconds": first_model(first, mnist)}
        project(second, points, samples, fashion)
        for side, init in {"random": "none", "mnist": str(mnist / MODEL_DIR)}.items():
            set_init(fashion, init)
            report["sides"][side], evaluator = trained(fashion)
    report |= {"n": evaluator.sizes.n, "floor": evaluator.fid_floor}
    write_json(path.with_suffix(".json"), report)
    write_text(path.with_suffix(".md"), page(report, path.with_suffix(".png").name))
    colors = {side: (label, color) for (side, label), color in zip(SIDES.items(), (ORANGE, BLUE), strict=True)}
    chart(path.with_suffix(".png"), report, " on Fashion-MNIST", colors)
    say(f"written: {path}.json, .md and .png")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
