"""Speed of whole commands as users run them, compared with the unconditional example of diffusers.

    python -m tests.benchmarks.commands [--rounds N] [--cases train-8 ...] [--quick] [--out FOLDER]

Ours: `python -m stages.train` and `python -m stages.sample_ddim` of the last commit, with the default settings except for the
network, the data and the number of steps, and with one validation and one preview, at the end, and no snapshots: the example
has none of them. Theirs: `diffusers_example.py` with the same network, batch and steps. Everything counts, from the start of
Python to the last written file. Both take turns, on the machine as it is, and then beside a process
that keeps one CPU busy. A ratio is that of two turns in a row; the report gives its median and quartiles.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ddpm.core.files import write_json, write_text
from ddpm.plots.numbers import number, table
from ddpm.plots.style import BLUE, ORANGE, figure

from .contestants import Case, unet2d_arguments
from .page import software
from .peers import DIGITS, ROOT, SMALL, machine, quartiles, ratios, say, slug
from .steps import checkout

LOADS = {"idle": "otherwise idle machine", "busy": "beside one busy process"}


class Size(NamedTuple):
    """case: network and batch of training. train, samples, batch, nfe: optimizer steps, and what is sampled."""

    case: Case
    train: int
    samples: int
    batch: int
    nfe: int


SIZES = {
    "8": Size(Case("8", batch=64, **DIGITS), train=600, samples=1500, batch=125, nfe=50),
    "32": Size(Case("32", batch=32, **{**SMALL, "channels": 32}), train=50, samples=128, batch=16, nfe=10),
}
QUICK = {"8": Size(Case("8", (8, 8, 1), 4, 16, [1, 2], []), train=2, samples=6, batch=3, nfe=2)}


def ours(size: Size, folder: Path) -> None:
    """Writes the last commit, with the settings of this size, and its prepared data into the folder."""
    case = size.case
    settings = {
        "prepare_data.image_size": case.shape[0], "prepare_data.channels": "rgb" if case.shape[2] == 3 else "gray",
        "prediction": "eps", "model.channels": case.channels, "model.channel_mults": case.mults, "model.conditioning": "none",
        "model.blocks_per_level": case.blocks, "model.attention_levels": case.attention, "model.middle_attention": True,
        "model.heads": case.heads, "train.steps": size.train, "train.warmup_steps": min(100, size.train - 1),
        "train.batch_size": case.batch, "train.optimizer": "adamw", "train.learning_rate": 1e-4, "guidance.scales": [],
        "train.validate_every": size.train, "train.preview_every": size.train, "train.snapshots": 0,
        "sample_ddim.samples": size.samples, "sample_ddim.batch_size": size.batch, "sample_ddim.steps": size.nfe,
    }  # fmt: skip
    checkout("HEAD", folder, {name: json.dumps(value) for name, value in settings.items()}, {"runtime.device": "cpu"})


def theirs(size: Size, folder: Path, images: Path) -> Path:
    """Writes the configuration of `diffusers_example.py` into the folder; returns its path."""
    folder.mkdir()
    config = {
        "images": str(images), "unet": unet2d_arguments(size.case), "batch_size": size.case.batch, "steps": size.train,
        "learning_rate": 1e-4, "samples": size.samples, "sampling_steps": size.nfe,
    }  # fmt: skip
    write_json(folder / "train.json", config)
    write_json(folder / "sample.json", config | {"batch_size": size.batch})
    return folder


def seconds(command: list[str], folder: Path) -> float:
    """Returns the seconds that the command takes; ends this program with its error if it fails."""
    start = time.perf_counter()
    run = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"error: {' '.join(command)}: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
    return time.perf_counter() - start


@contextmanager
def load(name: str) -> Iterator[None]:
    """Keeps one CPU busy within this context, if `name` is "busy"."""
    # It ends with this program, however that ends.
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
    busy = subprocess.Popen([sys.executable, "-c", loop]) if name == "busy" else None
    try:
        yield
    finally:
        if busy:
            busy.kill()
            busy.wait()


def measure(name: str, size: Size, rounds: int, kinds: list[str], temporary: Path) -> list[dict]:
    """Measures the commands of one size; returns a record for each kind ("train", "sample") and load."""
    project, other = temporary / f"ours-{name}", temporary / f"theirs-{name}"
    ours(size, project)
    theirs(size, other, project / "data" / "prepared" / "train_images.npy")
    script = str(Path(__file__).with_name("diffusers_example.py"))
    records = []
    # Sampling needs the trained networks.
    for kind in ["train", "sample"] if "train" in kinds else ["train once", "sample"]:
        stage = "train" if kind.startswith("train") else "sample_ddim"
        task = "train" if kind.startswith("train") else "sample"
        commands = {
            "ours": (["-m", f"stages.{stage}"], project),
            "diffusers": ([script, task, str(other / f"{task}.json"), str(other / "pipeline")], other),
        }
        if kind not in kinds:
            for command in commands.values():
                seconds(*command)
            continue
        for way in LOADS:
            times: dict[str, list[float]] = {side: [] for side in commands}
            with load(way):
                for r in range(rounds):
                    for side in list(commands)[:: 1 if r % 2 else -1]:
                        times[side].append(seconds(*commands[side]))
            ratio = quartiles(ratios(times["diffusers"], times["ours"]))
            say(f"{kind}-{name}, {LOADS[way]}: diffusers takes {ratio['median']:.2f} times as long")
            record = {"kind": kind, "size": name, "load": way, "rounds": rounds, "ratio": ratio, **size._asdict()}
            records.append(record | {"case": size.case._asdict(), "seconds": {side: quartiles(t) for side, t in times.items()}})
    return records


def title(record: dict) -> str:
    """Returns a title such as: training, 8x8, 1,000 steps of 64 images."""
    height, width, _ = record["case"]["shape"]
    if record["kind"] == "train":
        return f"training, {height}x{width}, {record['train']:,} steps of {record['case']['batch']} images"
    return f"sampling, {height}x{width}, {record['samples']:,} images in batches of {record['batch']}, {record['nfe']} DDIM steps"


def page(report: dict, picture: str) -> str:
    """Returns the report in Markdown."""
    where = report["machine"]
    rows = []
    for record in report["records"]:
        took = [f"{number(record['seconds'][side]['median'])} s" for side in ("ours", "diffusers")]
        ratio = record["ratio"]
        rows.append(
            [title(record), LOADS[record["load"]], *took, f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"]
        )
    parts = [
        f"# Whole commands on {where['cpu']}",
        f"{where['cpus']} CPUs; {software(where)}. {report['records'][0]['rounds']} rounds in turns.",
        f"![time of diffusers' example over ours]({picture})",
        "Seconds from the start of Python to the last file, as medians; the ratio is taken within each round, with its quartiles "
        "in brackets. Our training validates and draws a preview once, at the end, and the example does not: in so short a "
        "training this weighs more than in a long one. What runs stands in `tests/benchmarks/commands.py` and "
        "`tests/benchmarks/diffusers_example.py`.",
        table(["command", "machine", "ours", "diffusers", "diffusers / ours"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def chart(path: Path, report: dict) -> None:
    """Writes bars of the time of diffusers over ours: medians with quartiles."""
    records = report["records"]
    names = list(dict.fromkeys(title(record) for record in records))
    with figure(path, 1, 10, 3.8) as (ax,):
        for record in records:
            ratio, busy = record["ratio"], record["load"] == "busy"
            x = names.index(title(record)) + (0.2 if busy else -0.2)
            spread = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
            label = LOADS[record["load"]] if names.index(title(record)) == 0 else None
            ax.bar(x, ratio["median"], 0.36, color=ORANGE if busy else BLUE, yerr=spread, label=label)
            ax.text(x, ratio["high"], f"{ratio['median']:.2f}", ha="center", va="bottom", fontsize=8)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=8)
        ax.set_title("Time of diffusers' example for the same work, ours = 1 (whiskers: quartiles over rounds)")
        ax.margins(y=0.12)
        ax.grid(axis="x", visible=False)
        ax.legend()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", default=[f"{kind}-{name}" for name in SIZES for kind in ("train", "sample")])
    parser.add_argument("--quick", action="store_true", help="a tiny network for a few seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    report = {"machine": machine(torch.device("cpu")), "records": []}
    path = options.out / f"commands-{slug(report['machine'])}"
    with tempfile.TemporaryDirectory() as temporary:
        for name, size in (QUICK if options.quick else SIZES).items():
            kinds = [kind for kind in ("train", "sample") if f"{kind}-{name}" in options.cases]
            if kinds:
                report["records"] += measure(name, size, options.rounds, kinds, Path(temporary))
                # After each size, so that a stopped run has its results.
                write_json(path.with_suffix(".json"), report)
                write_text(path.with_suffix(".md"), page(report, path.with_suffix(".png").name))
                chart(path.with_suffix(".png"), report)
    say(f"written: {path}.json, .md and .png")


if __name__ == "__main__":
    main()
