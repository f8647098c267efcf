"""The time of a training step by operation, at an earlier commit and now.

    python -m tests.benchmarks.steps --before REVISION [--set model.channels=32 ...] [--rounds N] [--out FILE]

Both commits train on digits with their own `python -m stages.train`, in processes that take turns; logs, validations and
checkpoints are excluded. Times of a step are medians over all turns, a ratio is that of two turns in a row. The table is that of
PyTorch's profiler: the self time of each operation, in the turn with the median step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from ddpm.core.files import write_text
from ddpm.plots.numbers import number, table

from .peers import ROOT, quartiles, say

QUIET = 10**6
# All steps do the same work; a setting that a commit does not have is left out.
SETTINGS = {
    "train.steps": QUIET, "train.log_every": QUIET, "train.validate_every": QUIET, "train.preview_every": QUIET,
    "train.checkpoint_every": QUIET, "train.snapshots": 0, "runtime.device": "cpu",
}  # fmt: skip
ROWS = 16

# Runs in the checkout of a commit, and ends when enough steps are measured.
CHILD = """
import json, os, sys, time
import stages.train
from torch.profiler import ProfilerActivity, profile
Trainer = stages.train.Trainer
step, times = Trainer.train_step, []
def measured(self):
    start = time.perf_counter()
    step(self)
    times.append(time.perf_counter() - start)
    if len(times) == 40:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(10):
                step(self)
        rows = {e.key: (e.self_cpu_time_total / 1e4, e.count / 10) for e in profiler.key_averages()}
        print(json.dumps({"seconds": times[10:], "rows": rows}), flush=True)
        os._exit(0)
Trainer.train_step = measured
stages.train.main()
"""


def git(*arguments: str) -> bytes:
    """Returns the output of git in this repository; exits with its error if it fails."""
    run = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    if run.returncode:
        sys.exit(f"error: git {' '.join(arguments)}: {run.stderr.decode().strip().splitlines()[0]}")
    return run.stdout


def checkout(revision: str, folder: Path, changes: dict[str, str], always: dict[str, object] = SETTINGS) -> None:
    """Writes the commit's files into the folder, changes its params.yaml and prepares its data.

    changes: values in YAML, of settings that the commit must have. always: values of settings that it may lack.
    """
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=git("archive", revision), check=True)
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in {**always, **changes}.items():
        section, _, key = name.rpartition(".")
        where = params.get(section, {}) if section else params
        if key in where:
            where[key] = yaml.safe_load(str(value))
        elif name in changes:
            sys.exit(f"error: --set {name}: {revision} has no such setting of a section in its params.yaml; leave it out")
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    run = subprocess.run([sys.executable, "-m", "stages.prepare_data"], cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"error: preparing the data of {revision} failed: {(run.stderr.strip().splitlines() or ['?'])[-1]}")


def turn(folder: Path) -> dict:
    """Returns the measurement of one process: seconds of steps, and (milliseconds, calls) per step by operation."""
    run = subprocess.run([sys.executable, "-c", CHILD], cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"error: the training in {folder.name} failed: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def page(turns: dict[str, list[dict]], titles: dict[str, str], changes: dict[str, str]) -> str:
    """Returns the comparison in Markdown."""
    each = [[1000 * statistics.median(record["seconds"]) for record in side] for side in turns.values()]
    steps = [statistics.median(one) for one in each]
    ratio = quartiles([before / after for before, after in zip(*each, strict=True)])
    # By operation, [milliseconds, calls] of each side, in the turn whose steps took the middle time.
    middle = [
        sorted(side, key=lambda record: statistics.median(record["seconds"]))[len(side) // 2]["rows"] for side in turns.values()
    ]
    rows = {name: [side.get(name, (0, 0)) for side in middle] for name in {name for side in middle for name in side}}
    names = sorted(rows, key=lambda name: -max(milliseconds for milliseconds, _ in rows[name]))
    body = [[name.removeprefix("aten::"), *(f"{ms:.2f} ({calls:.0f})" for ms, calls in rows[name])] for name in names[:ROWS]]
    rest = [sum(rows[name][side][0] for name in names[ROWS:]) for side in (0, 1)]
    body.append([f"{max(0, len(names) - ROWS)} others", *(f"{milliseconds:.2f}" for milliseconds in rest)])
    settings = "".join(f", {name}={value}" for name, value in changes.items())
    parts = [
        "# One training step, before and after",
        f"Before: {titles['before']}. After: {titles['after']}. Digits on CPU{settings}; {len(turns['before'])} turns each.",
        f"A step takes {number(steps[1])} ms instead of {number(steps[0])} (medians); round by round it is "
        f"**{ratio['median']:.2f} times as fast** ({ratio['low']:.2f} to {ratio['high']:.2f}).",
        "Milliseconds (and calls) per step inside each operation; the profiler itself adds to every call.",
        table(["operation", "before", "after"], body),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REVISION")
    parser.add_argument("--after", default="HEAD", metavar="REVISION")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of params.yaml, for both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks" / "step-profile.md")
    options = parser.parse_args()
    changes = dict(item.split("=", 1) for item in options.set)
    sides = {"before": options.before, "after": options.after}
    titles = {side: git("log", "-1", "--format=%h, %s", revision).decode().strip() for side, revision in sides.items()}
    with tempfile.TemporaryDirectory() as temporary:
        for side, revision in sides.items():
            checkout(revision, Path(temporary, side), changes)
        turns: dict[str, list[dict]] = {side: [] for side in sides}
        for r in range(options.rounds):
            for side in sides:
                turns[side].append(turn(Path(temporary, side)))
                say(f"round {r + 1}, {side}: {1000 * statistics.median(turns[side][-1]['seconds']):.1f} ms a step")
    write_text(options.out, page(turns, titles, changes))
    say(f"written: {options.out}")


if __name__ == "__main__":
    main()
