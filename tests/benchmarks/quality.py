"""FID over minutes of training: a recipe of this project, and the unconditional example of diffusers for the same time.

    python -m tests.benchmarks.quality [--recipe NAME] [--points N] [--samples N] [--minutes N] [--quick] [--out FOLDER]

Ours: `python -m stages.train` of the last commit with the recipe's settings. Its snapshots, evenly spread over the training, are
scored as by `evaluate`. A training step always takes the same time, so step s of S counts s / S of the seconds of the whole
command. Theirs: `diffusers_example.py` with the same widths, levels and blocks, until the same seconds have passed; it saves
its EMA on the way. Its batch and learning rate are those that suited AdamW and this U-Net; the example's defaults are made for
large networks. In both, everything counts, from the start of Python.
Both draw samples by DDIM, and one classifier scores them. The data's preparation and the classifier's training do not count.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import LogLocator
from safetensors.numpy import load_file

from ddpm.core import params
from ddpm.core.device import Precision, Runtime
from ddpm.core.files import InputError, write_json, write_text
from ddpm.core.paths import MODEL_DIR, PREPARED_DIR
from ddpm.core.yaml_files import read_yaml
from ddpm.evaluation.evaluator import CLASSIFIER, Evaluate, Evaluator
from ddpm.evaluation.run import open_run
from ddpm.evaluation.training_curve import BATCH_SIZE, REAL_IMAGES, SAMPLER_STEPS, training_curve
from ddpm.experiments.recipe import merged, read_recipe
from ddpm.plots.numbers import number, table
from ddpm.plots.style import BLUE, GRAY, ORANGE, figure

from .commands import seconds
from .contestants import INSTALLED, Case, unet2d_arguments
from .page import software
from .peers import ROOT, machine, say, slug
from .steps import checkout

QUICK = {
    "dataset": "digits", "train_classifier": {"epochs": 1, "required_accuracy": 0.0}, "model": {"channels": 4, "heads": 2},
    "train": {"steps": 6, "batch_size": 8, "warmup_steps": 1},
}  # fmt: skip
# The example's defaults are 16 and 1e-4.
EXAMPLE = {"batch_size": 64, "learning_rate": 2e-3}
NAMES = {"ours": "this project", "diffusers": "diffusers' example"}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Makes the folder the current one within this context; stages find their files from there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def project(overrides: dict, points: int, samples: int, folder: Path) -> None:
    """Writes the last commit with these settings into a new folder, prepares the data there and trains the classifier.

    points, samples: how many snapshots of its trainings are scored, and by how many samples each.
    """
    train = merged(read_yaml(ROOT / "params.yaml"), overrides, "overrides")["train"]
    if points > train["steps"]:
        sys.exit(f"error: --points: {points} is more than the {train['steps']} steps of the training; choose fewer")
    needed = {
        "train.snapshots": points, "train.snapshot_every": -(-train["steps"] * train["batch_size"] // points),
        "evaluate.training_curve": points, "evaluate.training_curve_samples": samples,
    }  # fmt: skip
    changes = {key: json.dumps(value) for key, value in (params.flatten(overrides) | needed).items()}
    checkout("HEAD", folder, changes, {"runtime.device": "cpu"})
    say("training the classifier")
    seconds(["-m", "stages.train_classifier"], folder)


def trained(folder: Path) -> tuple[dict, Evaluator]:
    """Trains a `project`; returns the record of the training, and what scored it."""
    settings = read_yaml(folder / "params.yaml")
    steps, samples = settings["train"]["steps"], settings["evaluate"]["training_curve_samples"]
    say(f"training for {steps:,} steps")
    whole = seconds(["-m", "stages.train"], folder)
    say(f"it took {whole:.0f} s; sampling its snapshots")
    with inside(folder):
        p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, evaluate=Evaluate, runtime=Runtime)
        run = open_run(p, "final")
        evaluator = run.evaluator(samples)
        autocast = Precision(p.runtime, run.device).autocast
        curve, note = training_curve(run.model, MODEL_DIR, evaluator, p.evaluate, p.seed, autocast)
    if note:
        sys.exit(f"error: {note}")
    rows = [row for row in curve if row["method"] != REAL_IMAGES]
    parameters = sum(parameter.numel() for parameter in run.model.network.parameters())
    scored = [{"seconds": whole * row["step"] / steps, "step": row["step"], "fid": row["fid"]} for row in rows]
    return {"batch_size": settings["train"]["batch_size"], "parameters": parameters, "points": scored}, evaluator


def theirs(project: Path, save_at: list[float], samples: int, evaluator: Evaluator, folder: Path) -> dict:
    """Trains diffusers' example on our prepared data in a new folder; returns the record of the training.

    save_at: the seconds, ascending, after which it is scored; the last ends the training.
    """
    folder.mkdir()
    model, images = read_yaml(project / "params.yaml")["model"], project / PREPARED_DIR / "train_images.npy"
    sizes = [model[key] for key in ("channels", "channel_mults", "attention_levels")]
    shape = np.load(images, mmap_mode="r").shape[1:]
    case = Case("quality", shape, EXAMPLE["batch_size"], *sizes, blocks=model["blocks_per_level"], heads=model["heads"])
    config = {"images": str(images), "unet": unet2d_arguments(case), "save_at": save_at, **EXAMPLE}
    script = str(Path(__file__).with_name("diffusers_example.py"))
    say(f"training diffusers' example for {save_at[-1]:.0f} s")
    write_json(folder / "train.json", {**config, "start": time.time()})
    seconds([script, "train", "train.json", "."], folder)
    say(f"sampling its {len(save_at)} pipelines")
    write_json(folder / "sample.json", {"batch_size": BATCH_SIZE, "samples": samples, "sampling_steps": SAMPLER_STEPS})
    scored = []
    for goal, saved in zip(save_at, json.loads((folder / "saved.json").read_text()), strict=True):
        seconds([script, "sample", "sample.json", str(goal)], folder)
        drawn = np.load(folder / str(goal) / "samples.npz")["arr_0"]
        scored.append({**saved, **evaluator.evaluate(drawn, None, "diffusers", level="fid").scores[CLASSIFIER]})
    weights = load_file(folder / str(goal) / "unet" / "diffusion_pytorch_model.safetensors")
    return {
        "batch_size": EXAMPLE["batch_size"], "parameters": sum(weight.size for weight in weights.values()), "points": scored
    }  # fmt: skip


def page(report: dict, picture: str) -> str:
    """Returns the report in Markdown."""
    rows, totals = [], []
    for side, record in report["sides"].items():
        rows.append([[f"{p['seconds'] / 60:.2f}", f"{p['step']:,}", number(p["fid"])] for p in record["points"]])
        step, batch = record["points"][-1]["step"], record["batch_size"]
        totals.append([NAMES[side], *(f"{value:,}" for value in (record["parameters"], batch, step, step * batch))])
    classes = f"ours was trained with `model.conditioning: {report['conditioning']}`"
    if report["conditioning"] != "none":
        classes += ", and its samples have the classes in the shares of the training split"
    last = report["sides"]["diffusers"]["points"][-1]
    parts = [
        f"# FID over minutes of training: {report['recipe']} on {report['machine']['cpu']}",
        f"{report['machine']['cpus']} CPUs; {software(report['machine'])}.",
        f"![FID over minutes of training, of this project and of diffusers' example]({picture})",
        f"FID of {report['samples']:,} samples, in sets of n = {report['n']:,}, by DDIM in {report['sampling_steps']} steps, "
        "from averaged weights; each project chooses its own grid of steps. The same classifier scores both. The floor, FID of n "
        f"real test images, is {number(report['floor'])}. Minutes count from the start of Python; those of this project are the "
        "time of the whole command times the share of the steps.",
        table(
            [f"{name}: {column}" for name in report["sides"] for column in ("minutes", "steps", "FID")],
            [[*left, *right] for left, right in zip(*rows, strict=True)],
            text=(),
        ),
        table(["", "parameters", "batch", "steps", "images seen"], totals),
        "The example's network has the widths, levels and blocks of the recipe, and always attention in the middle. Its batch "
        f"and learning rate, {EXAMPLE['learning_rate']:g}, are those that suited AdamW and this U-Net; its defaults, 16 and "
        "1e-4, are made for large networks. "
        "The length of its schedule is the number of steps that fit into the time at the mean speed so far; the rate ended at "
        f"{number(last['learning_rate'], 2)}. The example has no classes; {classes}. "
        "What runs stands in `tests/benchmarks/quality.py` and `tests/benchmarks/diffusers_example.py`.",
    ]
    return "\n\n".join(parts) + "\n"


def chart(path: Path, report: dict, title: str, sides: dict[str, tuple[str, str]]) -> None:
    """Writes the FID of each side over its minutes of training. sides: key in report["sides"] -> its name and color."""
    with figure(path, 1, 8, 4) as (ax,):
        for side, (name, color) in sides.items():
            points = report["sides"][side]["points"]
            minutes = [point["seconds"] / 60 for point in points]
            ax.plot(minutes, [point["fid"] for point in points], "o-", color=color, label=name)
        ax.axhline(report["floor"], color=GRAY, linestyle="--", label=f"{report['n']:,} real test images")
        ax.set(yscale="log", xlabel="minutes of training", ylabel="FID, features of one classifier")
        ax.set_title(f"FID over minutes of training{title}, {report['machine']['cpus']} CPUs")
        ax.set_xlim(left=0)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        ax.legend()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mnist_cpu")
    parser.add_argument("--points", type=int, help="times at which both are scored, 6 by default")
    parser.add_argument("--samples", type=int, help="samples that are scored at each time, 1000 by default")
    parser.add_argument("--minutes", type=float, help="how long diffusers' example trains; by default as long as ours")
    parser.add_argument("--quick", action="store_true", help="a tiny network for a few seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    points, samples = options.points or (2 if options.quick else 6), options.samples or (20 if options.quick else 1000)
    if points < 1 or samples < 2 or (options.minutes is not None and options.minutes <= 0):
        parser.error("--points, --samples, --minutes: must be at least 1, at least 2 and above 0")
    if "diffusers" not in INSTALLED:
        parser.error("diffusers is not installed; `pip install diffusers` adds it")
    recipe = read_recipe(options.recipe)
    name, overrides = ("quick", QUICK) if options.quick else (recipe.name, recipe.content.overrides)
    report = {"machine": machine(torch.device("cpu")), "recipe": name, "samples": samples, "sampling_steps": SAMPLER_STEPS}
    path = options.out.absolute() / f"quality-{name}-{slug(report['machine'])}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "ours")
        project(overrides, points, samples, folder)
        first, evaluator = trained(folder)
        end = first["points"][-1]["seconds"] if options.minutes is None else 60 * options.minutes
        save_at = np.linspace(0, end, points + 1)[1:].round(3).tolist()
        second = theirs(folder, save_at, samples, evaluator, Path(temporary, "theirs"))
        conditioning = read_yaml(folder / "params.yaml")["model"]["conditioning"]
    report |= {"n": evaluator.sizes.n, "floor": evaluator.fid_floor, "conditioning": conditioning}
    report["sides"] = {"ours": first, "diffusers": second}
    write_json(path.with_suffix(".json"), report)
    write_text(path.with_suffix(".md"), page(report, path.with_suffix(".png").name))
    colors = {side: (label, color) for (side, label), color in zip(NAMES.items(), (BLUE, ORANGE), strict=True)}
    chart(path.with_suffix(".png"), report, f": {name}", colors)
    say(f"written: {path}.json, .md and .png")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
