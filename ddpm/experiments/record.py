"""Records runs of recipes in reports/recipes/NAME: their command, machine and results.

    run.json          recipe, command, commit, date, machine, and seconds of each run
    params.yaml       of the first run
    metrics.json      of the first run; metrics-seed-1.json of another seed
    edit.json         of the first run: inpainting
    guidance.csv      of the first run: scores over the scale of guidance
    *.png, *.gif      the main figures of the first run
    README.md         what was run, and the seconds of each stage

If a run fails, the runs recorded before it stay.
"""

import csv
import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ddpm.core.device import Runtime, device_kind, process_count, usable_cpus
from ddpm.core.files import InputError, atomic_folder, printable, read_json, write_json, write_text
from ddpm.core.params import PARAMS_FILE, make
from ddpm.core.paths import METRICS_FILE
from ddpm.core.scratch import scratch_root
from ddpm.experiments.git import check_clean, has_git
from ddpm.experiments.readme_table import machine
from ddpm.experiments.recipe import FOLDER, RECORDS, RESULTS_FILE, Recipe, full_params, options
from ddpm.experiments.runner import ON_DEMAND, RunSpec, run_with_dvc, run_without_dvc
from ddpm.plots.markdown import literal
from ddpm.plots.numbers import number, table
from ddpm.report.other_weights import STAGES, TRAINED, scores_of_other_weights
from ddpm.report.stage_times import stage_times
from ddpm.report.summary import SAMPLES

# By the stage whose numbers they show, what is copied if it exists: {name in the record: file}.
KEPT = {
    "evaluate": {f"{name}.png": f"reports/report/{name}.png" for name in ("ddpm_grid", "ddim_grid", "comparison", "psnr")},
    "sample_ddpm": {"ddpm_denoising.gif": "reports/report/ddpm_denoising.gif"},
    "train": {"training.png": "reports/train/training.png"},
    "edit": {"inpainting.png": "reports/report/inpainting.png", "edit.json": "reports/edit/metrics.json"},
    "guidance": {"guidance.png": "reports/report/guidance.png", "guidance.csv": "reports/guidance/guidance.csv"},
    "sweep": {f"sweep_{name}": f"{ON_DEMAND}/{name}" for name in ("fid.png", "ema.png", "fid.csv")},
}
MAX_BYTES = 1 << 20  # of a file, since records are in Git


def record(
    recipe: Recipe, seeds: Sequence[int], changes: Mapping[str, Any], note: str, by_dvc: bool, set_params: Sequence[str]
) -> str:
    """Runs a recipe once for each seed (none: the seed of params.yaml) and records it; returns lines for the terminal.

    changes: nested changes in addition to the recipe's; set_params: the same as values of `-S`. The first run replaces an older
    record. Raises InputError for uncommitted files, invalid settings and a run that fails; the runs before it stay recorded.
    """
    params = full_params(recipe, changes)
    commit = check_clean() if by_dvc or has_git() else None
    seeds = list(dict.fromkeys(seeds)) or [params["seed"]]
    changed = [word for text in set_params for word in ("-S", text)]
    spec = RunSpec(recipe.name, params, [*options(recipe.content.overrides), *changed])
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
    target, runs, notes = RECORDS / recipe.name, [], []
    for seed in seeds:
        folder = scratch_root().absolute() / "record" / f"{recipe.name}-seed-{seed}"
        run = run_with_dvc if by_dvc else run_without_dvc
        result = run(spec, seed, folder, recipe.content.extra if not runs else ())
        command = command_line(recipe, set_params, seed, by_dvc)
        others = stages_of_other_weights(folder)
        if not runs:
            notes += [f"reports/{stage}: of other weights than the run's, so it is left out" for stage in others]
        runs.append({"seed": seed, "command": command, **summary(folder, params, result.seconds)})
        write_record(target, folder, about, runs, others)
        notes.append(f"seed {seed}: {result.model}")
        if by_dvc:
            shutil.rmtree(folder, ignore_errors=True)
    first = f"{target}: {len(runs)} run{'s' * (len(runs) != 1)} of {recipe.name}; the workspace is otherwise unchanged"
    return "\n".join([first, *notes, f"`python -m ddpm results` writes the table in {RESULTS_FILE}; then commit both"])


def command_line(recipe: Recipe, set_params: Sequence[str], seed: int, by_dvc: bool) -> str:
    """Returns the shell command that repeats a run."""
    source = recipe.name if recipe.path.parent == FOLDER else str(recipe.path)
    changes = "".join(f" -S {shlex.quote(text)}" for text in set_params)
    if by_dvc:
        return f"dvc exp run $(python -m ddpm recipe {shlex.quote(source)}){changes} -S seed={seed}"
    return f"python -m ddpm record {shlex.quote(source)} --without-dvc --seed {seed}{changes}"


def summary(folder: Path, params: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Returns what the table of results shows of a run, from its reports in `folder`.

    reused: whether DVC took parts from its cache, so that `seconds` is not the duration of the work.
    stage_seconds: of each stage, the longest first; of one from the cache, those of the run that made it.
    Raises InputError if the reports are missing.
    """
    trained = read_json(folder / TRAINED, "train")
    metrics = read_json(folder / METRICS_FILE, "evaluate")
    training = training_seconds(folder / "reports/train/speed.csv", params["train"]["batch_size"])
    sampling = {name: metrics[name]["cost"]["seconds"] for name in ("ddpm", "ddim")}
    return {
        "seconds": round(seconds, 1),
        "reused": seconds < training + sum(sampling.values()),
        "stage_seconds": {name: time.seconds for name, time in stage_times(folder).items()},
        "training_seconds": round(training, 1),
        "images_per_second": round(params["train"]["steps"] * params["train"]["batch_size"] / max(training, 1e-9), 1),
        "parameters": trained["parameters"],
        "final_sha256": trained.get("final_sha256", ""),
        "best_validation_loss": trained["best_validation_loss"],
    }


def stages_of_other_weights(folder: Path) -> list[str]:
    """Returns which of STAGES have scores of other weights than those that the run in `folder` trained.

    Raises InputError if the scores of `evaluate` are such ones.
    """
    others = scores_of_other_weights(folder)
    if not {*SAMPLES, "evaluate"}.isdisjoint(others):
        raise InputError("has the scores of other weights; run `dvc repro evaluate`", key=folder / METRICS_FILE)
    return [stage for stage in STAGES if stage in others]


def training_seconds(speeds: Path, batch_size: int) -> float:
    """Returns the seconds of all optimizer steps from the speeds measured during them, also if the training was resumed.

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


def write_record(
    target: Path, folder: Path, about: Mapping[str, Any], runs: list[dict[str, Any]], left_out: Sequence[str] = ()
) -> None:
    """Adds the last of `runs`, whose results are in `folder`, to a record; the first run replaces an older record.

    left_out: the keys of STAGES whose files are not kept.
    """
    first, seed = len(runs) == 1, runs[-1]["seed"]
    runs[-1]["metrics"] = name = "metrics.json" if first else f"metrics-seed-{seed}.json"
    with atomic_folder(target, replace=True) as new:
        if first:
            shutil.copyfile(folder / PARAMS_FILE, new / PARAMS_FILE)
            for kept_as, path in to_keep(folder, left_out).items():
                shutil.copyfile(path, new / kept_as)
        else:
            shutil.copytree(target, new, dirs_exist_ok=True)
        shutil.copyfile(folder / METRICS_FILE, new / name)
        write_json(new / "run.json", {**about, "runs": runs})
        write_text(new / "README.md", page(about, runs))


def page(about: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the README.md of a record: its commands, and the seconds of each stage by seed."""
    seconds = [run["stage_seconds"] for run in runs]
    rows = [[f"`{name}`", *(number(of_run.get(name)) for of_run in seconds)] for name in seconds[0]]
    rows.append(["all", *(number(sum(of_run.values())) for of_run in seconds)])
    commands = "".join(f"$ {printable(run['command'])}\n" for run in runs)
    times = table(["seconds of the stage", *(f"seed {run['seed']}" for run in runs)], rows)
    return (
        f"# {literal(about['recipe'])}\n\n{literal(about['about'])}\n\n```console\n{commands}```\n\n"
        f"On {literal(machine(about['machine']))}, imports included. "
        "A stage that DVC took from its cache has the seconds of the run that made it.\n\n"
        f"{times}\n"
    )


def to_keep(folder: Path, left_out: Sequence[str] = ()) -> dict[str, Path]:
    """Returns {name in the record: file of a run}: KEPT without the files of some stages, and the pictures in out/."""
    kept = [files for stage, files in KEPT.items() if stage not in left_out]
    files = {name: folder / path for of_stage in kept for name, path in of_stage.items()}
    files |= {path.name: path for path in sorted((folder / "out").glob("*.png"))}
    return {name: path for name, path in files.items() if path.is_file() and path.stat().st_size <= MAX_BYTES}


def describe_machine(runtime: Runtime) -> dict[str, Any]:
    """Returns {cpu, cores, gpu, gpus, torch, system}: the hardware that a run uses; gpu is None without one."""
    on_gpu = device_kind(runtime) == "cuda"
    return {
        "cpu": cpu_name(),
        "cores": runtime.threads or usable_cpus(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "gpus": process_count(runtime, communicates=True) if on_gpu else 0,
        "torch": torch.__version__,
        "system": platform.system(),
    }


def cpu_name() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
