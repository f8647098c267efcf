"""How a stage runs, not what it computes: device, threads, precision, seeds, progress, and the end of the process."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated

import torch
from pydantic import Field
from tqdm import tqdm

from ddpm.files import InputError
from ddpm.params import OneOf, OrWord, Section

DEVICES: dict[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Runtime(Section):
    """The `runtime` section, which no stage declares."""

    device: Annotated[str, OneOf(DEVICES)]
    threads: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("auto")]
    workers: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("auto")]
    precision: Annotated[str, OneOf(PRECISIONS)]
    log_seconds: Annotated[float, Field(gt=0)]


def setup(runtime: Runtime) -> torch.device:
    """Set the number of threads and TF32, and return the device. Raises InputError for a device that is not there."""
    torch.set_num_threads(runtime.threads or usable_cpus())
    # Float32 matrix products on tensor cores where there are any; the loss curves cannot tell the difference.
    torch.set_float32_matmul_precision("high")
    Progress.log_seconds = runtime.log_seconds
    if not DEVICES[runtime.device]():
        raise InputError(
            f"params.yaml: runtime.device: {runtime.device!r} was asked for, but this machine has no such device that "
            "PyTorch can use; set it to 'auto' or 'cpu'"
        )
    if runtime.device != "auto":
        return torch.device(runtime.device)
    return torch.device(next((name for name in ("cuda", "mps") if DEVICES[name]()), "cpu"))


def usable_cpus() -> int:
    """CPUs that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def autocast(runtime: Runtime, device: torch.device):
    """A context for the network's forward pass: bfloat16 where asked for, or by `auto` on a GPU that has it."""
    automatic = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    dtype = PRECISIONS[runtime.precision] or automatic
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a function of its parts alone, such as (seed, "train", images seen)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def seeded(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on the device, seeded by its parts."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


class Progress:
    """Progress of long work: a bar on a terminal, elsewhere a plain line every few seconds; both with rate and time left."""

    log_seconds = 10.0  # of the plain lines; set from the runtime section

    def __init__(self, name: str, total: int, unit: str, done: int = 0):
        self.name, self.total, self.unit = name, total, unit
        self.count, self.first = done, done
        self.start = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", dynamic_ncols=True, smoothing=0.1)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count further units; `note` stands at the end of the line."""
        self.count += count
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif self.count >= self.total or time.monotonic() - self.shown >= self.log_seconds:
            self.shown = time.monotonic()
            self._print_line(note)

    def _print_line(self, note: str) -> None:
        rate = (self.count - self.first) / max(time.monotonic() - self.start, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total - self.count) / max(rate, 1e-9)))
        text = f"{self.name}: {self.count:,}/{self.total:,} {self.unit} ({self.count / self.total:.0%}), "
        print(text + f"{rate:,.1f} {self.unit}/s, {left} left" + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage: an InputError becomes one line and exit status 1; anything else is a defect and keeps its traceback."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
