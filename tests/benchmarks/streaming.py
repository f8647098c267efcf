"""Training on images that stay on disk compared with images in memory: does the device wait for the disk?

    python -m tests.benchmarks.streaming [--device cpu] [--gigabytes 4] [--rounds 5] [--cases 64x64] [--work FOLDER]

Both trainings step in turns in one process, with the same network, batches and settings. Before each turn from disk the system
drops the file from its cache (posix_fadvise), so that the images come from the disk, as with a file larger than the memory. A
ratio is that of two turns in one round. The share of waiting is the time that steps wait for a batch. A second table measures
reading alone: the rate of batches through the memory map by one thread, as NumPy reads it, and as training reads it.

Writes streaming-NAME.json and .md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddpm.core.device import Precision, Runtime, compiled, setup
from ddpm.core.files import write_json, write_text
from ddpm.core.yaml_files import read_yaml
from ddpm.data import loader
from ddpm.data.loader import Batches, Reading
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.unet import UNet, UNetSettings
from ddpm.plots.numbers import number, table
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

from .peers import ROOT, machine, quartiles, ratios, say, slug, timed


class Case(NamedTuple):
    """Images of this shape (H, W, C), `count` of them or --gigabytes, and the network's sizes."""

    name: str
    shape: tuple[int, int, int]
    batch: int
    channels: int
    mults: list[int]
    count: int | None = None


CASES = {
    "cpu": [
        Case("8x8", (8, 8, 1), 64, 16, [1, 2], 100_000),
        Case("64x64", (64, 64, 3), 16, 16, [1, 2, 2]),
        Case("128x128", (128, 128, 3), 8, 16, [1, 2, 2]),
    ],
    "cuda": [
        Case("32x32", (32, 32, 3), 256, 64, [1, 2, 2]),
        Case("64x64", (64, 64, 3), 256, 64, [1, 2, 2]),
        Case("128x128", (128, 128, 3), 128, 64, [1, 1, 2, 2]),
    ],
    "quick": [Case("quick", (8, 8, 1), 8, 4, [1], 2000)],
}
TURN_SECONDS = 2.0
READ = 2000  # batches of a turn without a network, maximum
BLOCK = 64 << 20


def write_images(path: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Writes an .npy of random bytes."""
    noise = np.random.default_rng(0).integers(0, 256, BLOCK + 4096, np.uint8)
    left, turn = count * int(np.prod(shape)), 0
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
        while left:
            part = noise[turn % 4096 :][: min(left, BLOCK)]
            file.write(part)
            left, turn = left - len(part), turn + 1
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path) -> np.ndarray:
    """Returns the images, memory-mapped anew: the system keeps the pages of an existing map in memory."""
    return np.load(path, mmap_mode="r")


def forget(path: Path) -> None:
    """Drops the pages of the file from the system's cache."""
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


@contextmanager
def waited() -> Iterator[list[float]]:
    """Yields a list that receives the waiting time for each batch, in seconds."""
    seconds: list[float] = []
    real = Reading.wait

    def wait(reading: Reading) -> torch.Tensor:
        start = time.perf_counter()
        try:
            return real(reading)
        finally:
            seconds.append(time.perf_counter() - start)

    Reading.wait = wait
    try:
        yield seconds
    finally:
        Reading.wait = real


def trainer(case: Case, path: Path, preload: bool, device: torch.device, precision: Precision, sections: dict) -> Trainer:
    """Returns a training with the settings of params.yaml and the sizes of the case."""
    images = mapped(path)
    torch.manual_seed(0)
    settings = UNetSettings(**{
        **sections["model"], "channels": case.channels, "channel_mults": case.mults, "conditioning": "none"
    })  # fmt: skip
    network = UNet(settings, case.shape, [""]).to(device, memory_format=torch.channels_last)
    data = Batches(images, np.zeros(len(images), np.int64), 0, device, preload=preload)
    train = Train(**{**sections["train"], "batch_size": case.batch, "steps": 10**6, "snapshots": 0})
    result = Trainer(network, make_schedule("linear", 1000), "v", data, train, 0, precision.autocast, precision.scaler)
    result.model = compiled(network, None, device, result.probe)
    return result


def measure(
    case: Case, path: Path, gigabytes: float, rounds: int, device: torch.device, precision: Precision, sections: dict
) -> dict:
    """Returns the record of a case."""
    image = int(np.prod(case.shape))
    count = case.count or int(gigabytes * 1e9 / image)
    write_images(path, count, case.shape)
    say(f"{case.name}: {count:,} images, {count * image / 1e9:.2f} GB, batches of {case.batch}")
    sides = {name: trainer(case, path, name == "memory", device, precision, sections) for name in ("memory", "disk")}
    once = min(timed(sides["memory"].train_step, 1, device) for _ in range(4))
    timed(sides["disk"].train_step, 3, device)
    steps = max(2, round(TURN_SECONDS / once))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    shares = []
    for r in range(rounds):
        for name in list(sides)[:: 1 if r % 2 else -1]:
            if name == "disk":
                forget(path)
            with waited() as waits:
                seconds[name].append(timed(sides[name].train_step, steps, device))
            if name == "disk":
                shares.append(sum(waits) / (steps * seconds[name][-1]))
    ratio = quartiles(ratios(seconds["disk"], seconds["memory"]))
    say(f"  a step from disk takes {ratio['median']:.3f} times as long, {statistics.median(shares):.1%} of it waiting")
    del sides
    read = {name: reading(case, path, how, cold) for name, (how, cold) in READERS.items()}
    for name, rate in read.items():
        say(f"  {name}: {rate:,.0f} images/s")
    path.unlink()
    return {
        **case._asdict(), "count": count, "gigabytes": count * image / 1e9, "steps": steps, "seconds": seconds,
        "ratio": ratio, "waiting": quartiles(shares), "read": read,
    }  # fmt: skip


def _by_map(stream: loader.Streamed) -> None:
    """Makes the stream read through the memory map with one thread."""
    images = stream.images

    def copy(index: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        rows[places] = images[index]

    stream.copy = copy
    stream.readers = ThreadPoolExecutor(1)


READERS: dict[str, tuple[Callable[[loader.Streamed], None], bool]] = {
    "memory map, one thread, from disk": (_by_map, True),
    "as training reads, from disk": (lambda stream: None, True),
    "memory map, one thread, cached": (_by_map, False),
    "as training reads, cached": (lambda stream: None, False),
}


def reading(case: Case, path: Path, change: Callable[[loader.Streamed], None], cold: bool) -> float:
    """Returns the images per second of reading batches without training."""
    images = mapped(path)
    stream = loader.Streamed(images, torch.device("cpu"))
    change(stream)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = [part for part in order.split(case.batch) if len(part) == case.batch][:READ]
    if cold:
        forget(path)
    else:
        with open(path, "rb") as file:
            while file.read(BLOCK):
                pass
    start, done = time.perf_counter(), 0
    for i, part in enumerate(parts):
        stream(part, lambda k, i=i: parts[(i + k) % len(parts)])
        done = i + 1
        if time.perf_counter() - start > 3 * TURN_SECONDS:
            break
    seconds = time.perf_counter() - start
    # Releases the map.
    stream.readers.shutdown(cancel_futures=True)
    stream.ahead.clear()
    return done * case.batch / seconds


def page(report: dict) -> str:
    """Returns the report in Markdown."""
    where = report["machine"]
    name = where.get("gpu") or f"{where['cpu']}, {where['threads']} threads"
    steps, read = [], []
    for case in report["cases"]:
        memory, disk = (1000 * statistics.median(case["seconds"][side]) for side in ("memory", "disk"))
        ratio = case["ratio"]
        steps.append([
            case["name"], str(case["batch"]), f"{case['gigabytes']:.2f}", number(memory), number(disk),
            f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})", f"{case['waiting']['median']:.1%}",
        ])  # fmt: skip
        read.append([case["name"], *(f"{case['read'][name]:,.0f}" for name in READERS)])
    parts = [
        "# Training from disk",
        f"{name}; `python -m tests.benchmarks.streaming`, {report['rounds']} rounds in turns. Milliseconds of a training step "
        "with the images in the device's memory, and with them on disk, none of the file in the system's memory when a turn "
        "begins; the ratio of both with its quartiles, and the share of a step that waits for its batch.",
        table(["images", "batch", "GB", "memory, ms", "disk, ms", "disk / memory", "waiting"], steps),
        "Images per second without a network:",
        table(["images", *READERS], read),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the files of the larger cases")
    parser.add_argument("--threads", type=int, help="of PyTorch on CPU (default: as in params.yaml)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a tiny network for seconds; the numbers mean nothing")
    parser.add_argument("--work", type=Path, help="a folder for the files, on the disk to be measured (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    sections = read_yaml(ROOT / "params.yaml")
    threads = {"threads": options.threads} if options.threads else {}
    runtime = Runtime(**{**sections["runtime"], "device": options.device, **threads})
    device = setup(runtime)
    precision = Precision(runtime, device)
    record = machine(device)
    known = CASES["quick" if options.quick else options.device]
    cases = [case for case in known if not options.cases or case.name in options.cases]
    report = {"machine": record, "rounds": options.rounds, "cases": []}
    path = options.out / f"streaming-{slug(record)}"
    with tempfile.TemporaryDirectory(dir=options.work, prefix="streaming-") as work:
        for case in cases:
            images = Path(work, "images.npy")
            report["cases"].append(measure(case, images, options.gigabytes, options.rounds, device, precision, sections))
            write_json(path.with_suffix(".json"), report)
            write_text(path.with_suffix(".md"), page(report))
    say(f"written: {path}.json and .md")


if __name__ == "__main__":
    main()
