"""How much memory preparing pictures takes: as many for a million as for a thousand?

    python -m tests.tools.prepare_memory [--sizes 1000 1000000] [--kinds folder .zip .tar.gz] [--work FOLDER] [--out FILE]

Pictures are 8x8 PNGs in a thousand classes at most; in a folder most are hard links to a thousand files, so that a million take
no room.
Each preparation is a process of its own, as the stage `prepare_data` runs it (with its settings of the C library's allocator).
Measured is its anonymous memory, which is what it asked for: pages of files that are cached for it can be dropped by the system
at any time. It is read every 10 ms by a thread. Linux only.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.core.files import write_text
from ddpm.plots.numbers import table

ROOT = Path(__file__).resolve().parents[2]
CLASSES, DIFFERENT = 1000, 1000
FEWEST = 10  # pictures of a class
SETTINGS = {"image_size": None, "resize_mode": "pad", "channels": "native", "label": None, "test_share": 0.1, "skip_bad": False}


def picture(number: int) -> bytes:
    """The PNG of a picture of noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def class_size(count: int) -> int:
    return max(FEWEST, count // CLASSES)


def members(count: int) -> Iterator[tuple[str, int]]:
    """Name and number of each picture, class after class."""
    per_class = class_size(count)
    for i in range(count):
        yield f"class{i // per_class:04}/picture{i % per_class:07}.png", i % DIFFERENT


def make_folder(path: Path, count: int) -> None:
    for number in range(min(count, DIFFERENT)):
        first = path.with_suffix(".first") / f"{number}.png"
        first.parent.mkdir(exist_ok=True)
        first.write_bytes(picture(number))
    for i, (name, number) in enumerate(members(count)):
        if i % class_size(count) == 0:
            (path / name).parent.mkdir(parents=True)
        os.link(path.with_suffix(".first") / f"{number}.png", path / name)


def make_zip(path: Path, count: int) -> None:
    different = [picture(number) for number in range(DIFFERENT)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, number in members(count):
            archive.writestr(name, different[number])


def make_tar(path: Path, count: int) -> None:
    different = [picture(number) for number in range(DIFFERENT)]
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, number in members(count):
            member = tarfile.TarInfo(name)
            member.size = len(different[number])
            archive.addfile(member, io.BytesIO(different[number]))
            archive.members.clear()


KINDS: dict[str, Callable[[Path, int], None]] = {"folder": make_folder, ".zip": make_zip, ".tar.gz": make_tar}


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def prepare_here(name: str, workers: int) -> dict:
    """Prepare the pictures of that name; memory after importing, and the most that was seen."""
    import stages  # noqa: F401 (sets the allocator, so it comes first)
    from ddpm.datasets.prepare import prepare
    from ddpm.datasets.settings import PrepareData

    found = {"imported": anonymous(), "peak": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            found["peak"] = max(found["peak"], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start = time.monotonic()
    meta = prepare("image_folder", PrepareData(folder=name, **SETTINGS), Path("prepared"), workers)
    ended.set()
    return found | {"seconds": time.monotonic() - start, "images": sum(meta["counts"].values())}


def measure(work: Path, kind: str, count: int, workers: int) -> dict:
    """Make the pictures, and prepare them in a process of their own."""
    raw = work / "raw"
    raw.mkdir()
    name = "pictures" if kind == "folder" else f"pictures{kind}"
    KINDS[kind](raw / name, count)
    environment = os.environ | {"DDPM_DATA_ROOT": str(raw), "DDPM_SCRATCH": str(work / "scratch"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.tools.prepare_memory", "--only", name, "--workers", str(workers)]
    run = subprocess.run(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(work)
    work.mkdir()
    return json.loads(run.stdout.splitlines()[-1]) | {"kind": kind}


def page(found: list[dict], workers: int) -> str:
    """The report in Markdown."""
    body, text = [], []
    for row in found:
        megabytes = [f"{row[key] / 1e6:.0f}" for key in ("imported", "peak")]
        speed = [f"{row['seconds']:.0f}", f"{row['images'] / row['seconds']:,.0f}"]
        body.append([row["kind"], f"{row['images']:,}", *megabytes, *speed])
    for kind in dict.fromkeys(row["kind"] for row in found):
        rows = sorted((row for row in found if row["kind"] == kind), key=lambda row: row["images"])
        few, many = rows[0], rows[-1]
        if many["images"] > few["images"]:
            each = (many["peak"] - few["peak"]) / (many["images"] - few["images"])
            text.append(f"- {kind}: {each:.1f} bytes for each further picture")
    parts = [
        "# Memory of `prepare_data`",
        f"8x8 PNGs in up to a thousand classes, {workers} threads, a process of its own for each row. Anonymous memory in MB, "
        "before the pictures were looked for and at most, measured by `python -m tests.tools.prepare_memory`.",
        table(["pictures in", "how many", "imported", "peak", "seconds", "per second"], body),
        "\n".join(text),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="an empty folder for the pictures (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks" / "prepare-memory.md")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(prepare_here(options.only, options.workers)))
        return
    found = []
    with tempfile.TemporaryDirectory(dir=options.work, prefix="prepare-memory-") as temporary:
        for kind in options.kinds:
            for count in options.sizes:
                work = Path(temporary, "work")
                work.mkdir(exist_ok=True)
                found.append(measure(work, kind, count, options.workers))
                last = found[-1]
                print(
                    f"{kind}, {count:,}: {last['peak'] / 1e6:.0f} MB at most, {last['seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    write_text(options.out, page(found, options.workers))
    say(f"written: {options.out}")


if __name__ == "__main__":
    main()
