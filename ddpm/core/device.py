"""How a stage runs, not what it computes: device, threads, precision, seeds, progress, and the end of the process."""

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import psutil
import torch
from pydantic import Field
from torch import nn

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.core.params import OneOf, OrWord, Section
from ddpm.core.progress import Progress

DEVICES: dict[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Runtime(Section):
    """The `runtime` section, which no stage declares."""

    device: Annotated[str, OneOf(DEVICES)]
    processes: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("auto")]
    threads: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("auto")]
    workers: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("auto")]
    precision: Annotated[str, OneOf(PRECISIONS)]
    compile: Annotated[bool | None, OrWord("auto")]
    preload: Annotated[bool | None, OrWord("auto")]
    deterministic: bool
    log_seconds: Annotated[float, Field(gt=0)]


def setup(runtime: Runtime) -> torch.device:
    """Join the other processes if there are any, set the number of threads and TF32, and return the device.

    Raises InputError for a device that is not there.
    """
    kind = device_kind(runtime)
    torch.set_num_threads(runtime.threads or max(1, usable_cpus() // processes.local_world_size()))
    # Float32 matrix products on tensor cores where there are any; the loss curves cannot tell the difference.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    Progress.log_seconds = runtime.log_seconds
    if kind == "cuda":
        if processes.local_world_size() > torch.cuda.device_count():
            raise InputError(
                f"{processes.local_world_size()} processes need as many GPUs, this machine has "
                f"{torch.cuda.device_count()}; set it to 'auto'",
                key="runtime.processes",
                where="params.yaml",
            )
        torch.cuda.set_device(processes.local_rank())
        _make_deterministic(runtime.deterministic)
    device = torch.device(kind, processes.local_rank()) if kind == "cuda" else torch.device(kind)
    processes.init(device)
    return device


def _make_deterministic(wanted: bool) -> None:
    """On a GPU: kernels that give the same bits in every run, or whichever are fastest for the sizes at hand."""
    torch.backends.cudnn.benchmark = not wanted
    if wanted:
        # Read when the first matrix product is made. Its sums depend on how it may use memory.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # A warning, not an error, for an operation that has no such kernel: what it computes is right.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        # Fused attention adds up its gradient in any order; plain matrix products do not.
        for enable in (
            torch.backends.cuda.enable_flash_sdp,
            torch.backends.cuda.enable_mem_efficient_sdp,
            torch.backends.cuda.enable_cudnn_sdp,
        ):
            enable(False)


def device_kind(runtime: Runtime) -> str:
    """cpu, cuda or mps. Raises InputError for one that is not there."""
    if not DEVICES[runtime.device]():
        raise InputError(
            f"{runtime.device!r} was asked for, but this machine has no such device that "
            "PyTorch can use; set it to 'auto' or 'cpu'",
            key="runtime.device",
            where="params.yaml",
        )
    if runtime.device != "auto":
        return runtime.device
    return next((name for name in ("cuda", "mps") if DEVICES[name]()), "cpu")


def process_count(runtime: Runtime) -> int:
    """How many processes a stage starts: as many as the machine has GPUs, unless the setting says otherwise."""
    return runtime.processes or (torch.cuda.device_count() if device_kind(runtime) == "cuda" else 1)


def usable_cpus() -> int:
    """CPUs that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Neighbours:
    """Watches for other work on this machine's CPUs: threads that wait for each other lose far more by it than their share."""

    def __init__(self, device: torch.device):
        self.wanted = torch.get_num_threads()
        self.watching = device.type == "cpu" and self.wanted > 1 and processes.local_world_size() == 1
        self.process = psutil.Process()
        self._busy()

    def _busy(self) -> float:
        """CPUs that other processes kept busy since the last call."""
        return psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1) - self.process.cpu_percent() / 100

    def warn(self) -> None:
        """Say once, in one line, that more threads run than the machine has CPUs."""
        if not self.watching:
            return
        cpus, busy = psutil.cpu_count() or 1, self._busy()
        if busy > 0.5 and busy + self.wanted > cpus + 0.25:
            self.watching = False
            print(
                f"warning: {self.wanted} threads share {cpus} CPUs with other work that takes {busy:.1f} of them; "
                f"runtime.threads: {max(1, round(cpus - busy))} may be faster",
                file=sys.stderr,
                flush=True,
            )


class Precision:
    """Of the network's forward pass: `autocast()` is a context for it, `scaler` what float16 needs (None for other types).

    `auto` is bfloat16 on a GPU that has it, float32 elsewhere. Weights, their averages and the loss stay in float32, and so do
    norms on a GPU.
    """

    def __init__(self, runtime: Runtime, device: torch.device):
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        automatic = torch.bfloat16 if has_bfloat16 else torch.float32
        self.dtype, self.device = PRECISIONS[runtime.precision] or automatic, device
        # Gradients below float16's smallest number would be lost (Micikevicius et al. 2018).
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype is torch.float16 else None

    def autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(self.device.type, self.dtype)


def compiled(network: nn.Module, wanted: bool | None, device: torch.device, probe: Callable[[nn.Module], object]) -> nn.Module:
    """The network through torch.compile, once `probe` has used it without failing; as it is where that fails.

    wanted: None compiles on CUDA where Triton, which it needs there, is installed. Of several processes all do the same, so
    the probe must not wait for the others.
    """
    if wanted is False or (wanted is None and not (device.type == "cuda" and importlib.util.find_spec("triton"))):
        return network
    fast, reason = network, ""
    try:
        fast = torch.compile(network, dynamic=False)
        probe(fast)
    except Exception as error:  # whatever compilers raise, the work can go on without them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    reasons = processes.map_over_ranks(range(processes.world_size()), lambda _: reason)
    if any(reasons):
        if processes.is_main_process():
            print(f"torch.compile does not work here ({max(reasons)}); going on without it", file=sys.stderr, flush=True)
        torch._dynamo.reset()
        fast = network
    network.zero_grad(set_to_none=False)  # they may be views that a training keeps
    return fast
