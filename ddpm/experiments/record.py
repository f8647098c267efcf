"""Records of recipes: what a run gave, and by which command and on which machine, in reports/recipes/NAME.

    run.json          recipe, command, commit, date, machine, and seconds of each run
    params.yaml       of the first run
    metrics.json      of the first run; metrics-seed-1.json of another seed
    edit.json         of the first run: inpainting
    guidance.csv      of the first run: scores over the scale of guidance
    *.png, *.gif      the main figures of the first run

Where runs fail, what was recorded before stays.
"""

import csv
import platform
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ddpm.core.device import Runtime, device_kind, process_count, usable_cpus
from ddpm.core.files import InputError, read_json, write_json, writing
from ddpm.core.params import PARAMS_FILE, make
from ddpm.core.scratch import scratch_root
from ddpm.experiments.recipe import Recipe, full_params, options
from ddpm.experiments.runner import ON_DEMAND, README, RECORDS, RUNNERS, RunSpec, check_clean, has_git

# Copied where a run made them.
FIGURES = [
    *(f"reports/report/{name}.png" for name in ("ddpm_grid", "ddim_grid", "comparison", "psnr", "guidance", "inpainting")),
    "reports/train/training.png",
    "reports/report/ddpm_denoising.gif",
]

OF_SWEEP = ("fid.png", "ema.png", "fid.csv")
SCORES = {"edit.json": "reports/edit/metrics.json", "guidance.csv": "reports/guidance/guidance.csv"}
LARGEST = 1 << 20  # bytes of a file: records are in Git


def record(
    recipe: Recipe, seeds: Sequence[int], changes: Mapping[str, Any], note: str, by_dvc: bool, given: Sequence[str]
) -> str:
    """Run a recipe once for each seed (none: the seed of params.yaml) and record it; returns lines that say what there is now.

    changes: nested, on top of the recipe's, and `given` the same as words of `-S`. An older record is replaced when the first run
    is there. Raises InputError for changed files, bad settings, and a run that fails; runs before it stay recorded.
    """
    params = full_params(recipe, changes)
    commit = check_clean() if by_dvc or has_git() else None
    seeds = list(dict.fromkeys(seeds)) or [params["seed"]]
    order = RunSpec(recipe.name, params, [*options(recipe.content.overrides), *(word for text in given for word in ("-S", text))])
    about = {
        "recipe": recipe.name,
        "about": recipe.content.about,
        "dataset": params["dataset"],
        "steps": params["train"]["steps"],
        "batch_size": params["train"]["batch_size"],
        "extra": recipe.content.extra,
        "note": note,
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": describe_machine(make(Runtime, **params["runtime"])),
    }
    target, runs, models = Path(RECORDS) / recipe.name, [], []
    for seed in seeds:
        folder = scratch_root().absolute() / "record" / f"{recipe.name}-seed-{seed}"
        ran = RUNNERS[by_dvc](order, seed, folder, recipe.content.extra if not runs else ())
        runs.append({"seed": seed, "command": typed(recipe, given, seed, by_dvc), **summary(folder, params, ran.seconds)})
        write_record(target, folder, about, runs)
        models.append(f"seed {seed}: {ran.model}")
        if by_dvc:
            shutil.rmtree(folder, ignore_errors=True)
    what = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    end = f"{target}: {what} of {recipe.name}; the workspace is otherwise as it was"
    return "\n".join([end, *models, f"`python -m ddpm results` puts it into {README}; then commit both"])


def typed(recipe: Recipe, given: Sequence[str], seed: int, by_dvc: bool) -> str:
    """The command of a run, as people type it."""
    source = recipe.name if recipe.path.parent == Path(__file__).parent / "recipes" else str(recipe.path)
    changes = "".join(f" -S {shlex.quote(text)}" for text in given)
    if by_dvc:
        return f"dvc exp run $(python -m ddpm recipe {shlex.quote(source)}){changes} -S seed={seed}"
    return f"python -m ddpm record {shlex.quote(source)} --without-dvc --seed {seed}{changes}"


def summary(folder: Path, params: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What the table of results needs of a run. reused: DVC took some of it from its cache, so that `seconds` tell nothing.

    Raises InputError if the run left no reports.
    """
    trained = read_json(folder / "reports/train/metrics.json", "train")
    metrics = read_json(folder / "reports/evaluate/metrics.json", "evaluate")
    training = training_seconds(folder / "reports/train/speed.csv", params["train"]["batch_size"])
    sampling = {name: metrics[name]["cost"]["seconds"] for name in ("ddpm", "ddim")}
    return {
        "seconds": round(seconds, 1),
        "reused": seconds < training + sum(sampling.values()),
        "training_seconds": round(training, 1),
        "images_per_second": round(params["train"]["steps"] * params["train"]["batch_size"] / max(training, 1e-9), 1),
        "parameters": trained["parameters"],
        "best_validation_loss": trained["best_validation_loss"],
    }


def training_seconds(speeds: Path, batch_size: int) -> float:
    """Seconds of all optimizer steps, by the speeds that were measured as they ran, whatever was resumed or cached since.

    Raises InputError for a table that cannot be read.
    """
    total, last = 0.0, 0
    try:
        with open(speeds, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                total += (int(row["step"]) - last) * batch_size / float(row["images_per_second"])
                last = int(row["step"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"cannot be read ({error}); make it again with `dvc repro -f train`", key=speeds) from None
    return total


def write_record(target: Path, folder: Path, about: Mapping[str, Any], runs: list[dict[str, Any]]) -> None:
    """Put the last of `runs`, whose results lie in `folder`, into a record; the first one replaces what was there before."""
    first, seed = len(runs) == 1, runs[-1]["seed"]
    runs[-1]["metrics"] = name = "metrics.json" if first else f"metrics-seed-{seed}.json"
    with writing(target), tempfile.TemporaryDirectory(prefix=f".{target.name}.partial", dir=_made(target.parent)) as made:
        built = Path(made) / target.name
        if first:
            built.mkdir()
            shutil.copyfile(folder / PARAMS_FILE, built / PARAMS_FILE)
            for kept_as, path in to_keep(folder).items():
                shutil.copyfile(path, built / kept_as)
        else:
            shutil.copytree(target, built)
        shutil.copyfile(folder / "reports/evaluate/metrics.json", built / name)
        write_json(built / "run.json", {**about, "runs": runs})
        if target.exists():
            target.rename(Path(made) / "before")
        built.rename(target)


def to_keep(folder: Path) -> dict[str, Path]:
    """{name in the record: file of a run}: the main figures of the report, of the sweep if it ran, what other commands drew, and
    the scores beside metrics.json."""
    found = {Path(name).name: folder / name for name in FIGURES}
    found |= {f"sweep_{name}": folder / ON_DEMAND / name for name in OF_SWEEP}
    found |= {path.name: path for path in sorted((folder / "out").glob("*.png"))}
    found |= {name: folder / path for name, path in SCORES.items()}
    return {name: path for name, path in found.items() if path.is_file() and path.stat().st_size <= LARGEST}


def describe_machine(runtime: Runtime) -> dict[str, Any]:
    """{cpu, cores, gpu, gpus, torch, system}: what a run uses of this machine; gpu is None where it uses none."""
    on_gpu = device_kind(runtime) == "cuda"
    return {
        "cpu": cpu_name(),
        "cores": runtime.threads or usable_cpus(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "gpus": process_count(runtime) if on_gpu else 0,
        "torch": torch.__version__,
        "system": platform.system(),
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
