"""Speed of training and sampling compared with diffusers and denoising-diffusion-pytorch, on the same machine at the same time.

    python -m tests.benchmarks.peers [--device cpu] [--rounds N] [--cases train-8 sample-32] [--compile] [--quick] [--out FOLDER]

All libraries live in one process and take turns, in another order in every round, so that other work on the machine affects all
of them. A ratio is that of two times in one round; the report gives its median and quartiles over the rounds. After each case,
NAME.json, NAME.md and NAME.png are written to reports/benchmarks, named after the device. `contestants` describes the settings.
"""

import argparse
import importlib.metadata
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.core.device import Precision, Runtime, setup, usable_cpus
from ddpm.core.files import InputError, write_json, write_text
from ddpm.core.yaml_files import read_yaml

from .contestants import INSTALLED, OTHERS, Case, Contestant, Setting, contestants
from .page import page, ratio_chart

ROOT = Path(__file__).resolve().parents[2]
DIGITS = {"shape": (8, 8, 1), "channels": 16, "mults": [1, 2], "attention": []}  # the widths of params.yaml
DIGITS_WIDE = {**DIGITS, "channels": 32}
SMALL = {"shape": (32, 32, 3), "channels": 64, "mults": [1, 2, 2], "attention": [1]}
WIDE = {"shape": (32, 32, 3), "channels": 128, "mults": [1, 2, 2], "attention": [1]}
LARGE = {"shape": (64, 64, 3), "channels": 128, "mults": [1, 2, 2, 2], "attention": [2]}
CASES = {
    "cpu": [
        Case("train-8", batch=128, **DIGITS),
        Case("train-8-wide", batch=128, **DIGITS_WIDE),
        Case("train-32", batch=32, **SMALL),
        Case("sample-8", batch=16, steps=20, **DIGITS),
        Case("sample-8-wide", batch=16, steps=20, **DIGITS_WIDE),
        Case("sample-32", batch=16, steps=4, **SMALL),
        Case("sample-32-single", batch=1, steps=20, **SMALL),
    ],
    "cuda": [
        Case("train-32", batch=256, **SMALL),
        Case("train-32-wide", batch=256, **WIDE),
        Case("train-64", batch=256, **LARGE),
        Case("sample-32", batch=256, steps=20, **SMALL),
        Case("sample-32-wide", batch=256, steps=20, **WIDE),
        Case("sample-64", batch=256, steps=10, **LARGE),
    ],
    "quick": [Case("train-quick", (8, 8, 1), 4, 16, [1, 2], []), Case("sample-quick", (8, 8, 1), 2, 16, [1, 2], [], steps=2)],
}
ROUNDS = {"cpu": 15, "cuda": 9, "quick": 2}
# The length of a measured turn: in a real training, steps follow each other with warm caches.
TURN_SECONDS = {"cpu": 0.5, "cuda": 0.5}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def timed(run: Callable[[], object], times: int, device: torch.device) -> float:
    """Returns the seconds per call of `times` calls, until the device has finished."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(setting: Setting, quick: bool, before: dict | None = None) -> dict:
    """Returns the highest rate of matrix products and 3x3 convolutions on this machine: FLOP/s, the operation, and the dtype.

    before: the ceiling from earlier in this run; the higher rate counts, since other work slows the machine at times.
    """
    device, dtype = setting.device, setting.precision.dtype
    gpu = device.type == "cuda"
    sizes = [256] if quick else [8192, 16384] if gpu else [1024, 2048]
    shapes = [(2, 32, 8)] if quick else [(256, 256, 32), (256, 128, 64)] if gpu else [(32, 128, 32), (32, 128, 16), (128, 64, 8)]
    work: dict[str, tuple[float, Callable[[], object]]] = {}
    for n in sizes:
        a, b = torch.randn(2, n, n, device=device, dtype=dtype)
        work[f"matrix product, {n:,} x {n:,}"] = (2.0 * n**3, lambda a=a, b=b: a @ b)
    for batch, channels, side in shapes:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
        operations = 18.0 * x.numel() * channels
        work[f"3x3 convolution, {batch} x {channels} x {side} x {side}"] = (operations, lambda x=x, f=layer: f(x))
    rates = dict(before["all"]) if before else {}
    with torch.no_grad():
        for name, (flops, run) in work.items():
            timed(run, 3, device)
            rate = flops / min(timed(run, 10 if gpu else 2, device) for _ in range(3 if quick else 12))
            rates[name] = max(rate, rates.get(name, 0.0))
    best = max(rates, key=rates.__getitem__)
    return {"flops": rates[best], "of": best, "dtype": str(dtype).removeprefix("torch."), "all": rates}


def flops_per_image(case: Case, contestant: Contestant) -> float:
    """Returns the executed floating-point operations of matrix products and convolutions per image.

    They are those of a training step, forwards and backwards, or of all network evaluations for a sample.
    """
    with FlopCounterMode(display=False) as counter:
        if case.steps:
            contestant.forward()
        else:
            contestant.run()
    return counter.get_total_flops() * max(case.steps, 1) / case.batch


def quartiles(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles of values."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


def measure(case: Case, setting: Setting, rounds: int, compile_ours: bool) -> dict:
    """Measures all libraries of a case in turns; returns the record for the JSON."""
    device, gpu = setting.device, setting.device.type == "cuda"
    racing: list[Contestant] = []
    turns, memory, failed = {}, {}, {}
    flops: dict[str, float] = {}
    held = torch.cuda.memory_allocated(device) if gpu else 0
    waiting = contestants(case, setting, compile_ours)
    while True:
        if gpu:
            torch.cuda.reset_peak_memory_stats(device)
        if (contestant := next(waiting, None)) is None:
            break
        name = contestant.name
        try:
            once = min(timed(contestant.run, 1, device) for _ in range(3))
        except torch.OutOfMemoryError:
            say(f"  {name}: out of memory")
            failed[name] = "out of memory"
            continue
        turns[name] = max(1, round(TURN_SECONDS.get(device.type, 0.0) / once))
        memory[name] = (torch.cuda.max_memory_allocated(device) - held) / 2**30 if gpu else None
        # The operations of a compiled network cannot be counted; it is the same network.
        flops[name] = flops.get("ours", 0.0) if "compiled" in name else flops_per_image(case, contestant)
        if gpu:
            torch.cuda.empty_cache()
            held = torch.cuda.memory_allocated(device)
        racing.append(contestant)
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in racing}
    for r in range(rounds):
        for contestant in racing[r % len(racing) :] + racing[: r % len(racing)]:
            seconds[contestant.name].append(timed(contestant.run, turns[contestant.name], device))
    names = list(seconds)
    say("  " + ", ".join(f"{name} {case.batch / statistics.median(seconds[name]):,.1f} images/s" for name in names))
    return {
        **case._asdict(),
        "kind": "sampling" if case.steps else "training",
        "rounds": rounds,
        "failed": failed,
        "contestants": [
            {
                "name": c.name,
                "parameters": c.parameters,
                "gflops_per_image": flops[c.name] / 1e9,
                "seconds": quartiles(seconds[c.name]),
                "images_per_second": case.batch / statistics.median(seconds[c.name]),
                "peak_memory_gib": memory[c.name],
                "slower_than": {
                    name: quartiles(ratios(seconds[c.name], seconds[name]))
                    for name in names
                    if name.startswith("ours") and name != c.name
                },
            }
            for c in racing
        ],
    }  # fmt: skip


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Returns their time over ours, round by round; above 1, ours is faster."""
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def machine(device: torch.device) -> dict:
    """Returns the machine and the versions of the libraries."""
    names = ["torch", *INSTALLED, *(["ema-pytorch"] if "denoising-diffusion-pytorch" in INSTALLED else [])]
    record = {
        "cpu": _cpu_name(),
        "cpus": usable_cpus(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    return {"gpu": torch.cuda.get_device_name(device), **record} if device.type == "cuda" else record


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "CPU")


def slug(machine: dict) -> str:
    """Returns a file name from the device, such as nvidia-h200 or amd-epyc-7b13-2-threads."""
    name = machine.get("gpu") or f"{machine['cpu']} {machine['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="; ".join(f"{kind}: {rounds}" for kind, rounds in ROUNDS.items()))
    parser.add_argument(
        "--cases", nargs="+", metavar="NAME", help="of: " + "; ".join(f"{k}: {[c.name for c in v]}" for k, v in CASES.items())
    )
    parser.add_argument("--compile", action="store_true", help="on CPU: ours through torch.compile too (on CUDA it always is)")
    parser.add_argument("--quick", action="store_true", help="a tiny network for a few seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    kind = "quick" if options.quick else options.device
    known = CASES[kind]
    if unknown := set(options.cases or []) - {case.name for case in known}:
        parser.error(f"--cases: {', '.join(sorted(unknown))}: choose from {', '.join(case.name for case in known)}")
    chosen = [case for case in known if not options.cases or case.name in options.cases]
    rounds = ROUNDS[kind] if options.rounds is None else options.rounds
    if rounds < 1:
        parser.error("--rounds: must be 1 or more")

    sections = read_yaml(ROOT / "params.yaml")
    runtime = Runtime(**{**sections["runtime"], "device": options.device})
    device = setup(runtime)
    setting = Setting(device, Precision(runtime, device), sections)
    missing = [name for name in OTHERS if name not in INSTALLED]
    for name in missing:
        say(f"{name} is not installed and left out; `pip install {name}` adds it")
    record = machine(device)
    say(f"measuring on {slug(record)}: the ceiling")
    top = ceiling(setting, options.quick)
    say(f"  {top['flops'] / 1e12:.3g} TFLOP/s in {top['dtype']} ({top['of']})")
    records = []
    for number, case in enumerate(chosen, 1):
        say(f"{case.name} ({number} of {len(chosen)}), batches of {case.batch}")
        records.append(measure(case, setting, rounds, options.compile or options.device == "cuda"))
        top = ceiling(setting, options.quick, top)
        if options.device == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()
        for contestant in (contestant for record in records for contestant in record["contestants"]):
            contestant["share_of_ceiling"] = contestant["gflops_per_image"] * 1e9 * contestant["images_per_second"] / top["flops"]
        # After each case, so that a stopped run has its results.
        write_report(options.out / slug(record), {"machine": record, "ceiling": top, "left_out": missing, "cases": records})
    say(f"written: {options.out / slug(record)}.json, .md and .png")


def write_report(path: Path, report: dict) -> None:
    """Writes the numbers, a page and a chart: PATH.json, PATH.md and PATH.png."""
    write_json(path.with_suffix(".json"), report)
    write_text(path.with_suffix(".md"), page(report, path.with_suffix(".png").name))
    ratio_chart(path.with_suffix(".png"), report)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
