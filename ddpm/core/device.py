"""Chooses the device, the number of threads, the precision and compilation of a stage, by the section `runtime`."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import joblib
import torch
from pydantic import Field
from torch import nn

from ddpm.core import processes
from ddpm.core.files import InputError, first_line
from ddpm.core.limits import MAX_THREADS
from ddpm.core.loggers import LOGGERS
from ddpm.core.memory import is_out_of_memory
from ddpm.core.params import OneOf, OrWord, Section, lookup, make
from ddpm.core.progress import Progress

DEVICES: dict[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}

MAX_CPU_PROCESSES = 16  # each has its own batches in memory

# Below these sizes one thread is the better choice. Sampling: parameters times pixels. On two busy cores it took 3 to 13 times
# as long with two threads as with one below this size, and 2 to 3 times for networks of 4 to 10 * 10**9; on idle cores a second
# thread saves half at most. Training: parameters times pixels times the images of a batch. A step of the default network, 7 *
# 10**8, took 31 ms with one thread and 29 with two on idle cores, 70 and 270 to 300 on busy ones; from 6 * 10**9 on, two threads
# were 1.7 to 1.9 times as fast on idle cores and as fast as one on busy ones. Two processes trained as fast as two threads.
SMALL_TO_SAMPLE, SMALL_TO_TRAIN = 10**9, 5 * 10**9
_automatic_threads = True

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Runtime(Section):
    """The `runtime` section. No stage declares it in dvc.yaml, since it does not change results."""

    device: Annotated[str, OneOf(DEVICES)]
    processes: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, OrWord("auto")]
    threads: Annotated[Annotated[int, Field(ge=1, le=MAX_THREADS)] | None, OrWord("auto")]
    workers: Annotated[Annotated[int, Field(ge=1, le=MAX_THREADS)] | None, OrWord("auto")]
    precision: Annotated[str, OneOf(PRECISIONS)]
    compile: Annotated[bool | None, OrWord("auto")]
    preload: Annotated[bool | None, OrWord("auto")]
    deterministic: bool
    log_seconds: Annotated[float, Field(gt=0, le=1e6)]
    loggers: list[Annotated[str, OneOf(LOGGERS)]]
    kept_states: Annotated[int, Field(ge=0, le=1000)]


def setup(runtime: Runtime) -> torch.device:
    """Sets the number of threads and TF32, joins the other processes of the stage, and returns the device.

    Raises InputError if the device, or a GPU for each process, is not available.
    """
    global _automatic_threads
    kind = device_kind(runtime)
    _automatic_threads = kind == "cpu" and runtime.threads is None
    torch.set_num_threads(runtime.threads or max(1, usable_cpus() // processes.local_world_size()))
    # Float32 matrix products run on tensor cores (TF32) where available; loss curves do not change by it.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    Progress.log_seconds = runtime.log_seconds
    if kind == "cuda":
        if processes.local_world_size() > torch.cuda.device_count():
            message = f"above the number of GPUs of this machine, {torch.cuda.device_count()}; set it to 'auto'"
            raise InputError(message, key="runtime.processes", where="params.yaml")
        torch.cuda.set_device(processes.local_rank())
        _make_deterministic(runtime.deterministic)
    device = torch.device(kind, processes.local_rank()) if kind == "cuda" else torch.device(kind)
    processes.init(device)
    return device


def limit_threads(network: nn.Module, shape: Sequence[int], training_batch: int = 0) -> None:
    """Makes a small network on a CPU compute with one thread, unless the number of threads is set.

    shape: (H, W, C) of an image. training_batch: images of a training step, 0 for sampling.
    """
    size = sum(p.numel() for p in network.parameters()) * shape[0] * shape[1]
    if _automatic_threads and (size * training_batch < SMALL_TO_TRAIN if training_batch else size < SMALL_TO_SAMPLE):
        torch.set_num_threads(1)


def _make_deterministic(deterministic: bool) -> None:
    """Selects GPU kernels that give the same bits in every run, or else the fastest ones for the sizes in use."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # Read at the first matrix product. The workspace size decides the order of its sums.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # warn_only: an operation without a deterministic kernel still computes a right result.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        # Fused attention sums its gradient in no fixed order; plain matrix products do not.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def device_kind(runtime: Runtime) -> str:
    """Returns "cpu", "cuda" or "mps". Raises InputError if `runtime.device` is not available."""
    if not DEVICES[runtime.device]():
        message = f"{runtime.device!r} is not available to PyTorch on this machine; set it to 'auto' or 'cpu'"
        raise InputError(message, key="runtime.device", where="params.yaml")
    if runtime.device != "auto":
        return runtime.device
    return next((name for name in ("cuda", "mps") if DEVICES[name]()), "cpu")


def open_device(name: str, threads: int | None = None) -> torch.device:
    """Returns a device by its key of DEVICES, outside of stages; sets the CPU threads: `threads`, else OMP_NUM_THREADS, else all.

    Raises InputError if the device is not available.
    """
    if not lookup(DEVICES, name, "device")():
        raise InputError(f"{name!r} is not available to PyTorch; use 'auto' or 'cpu'", key="device")
    auto = dict.fromkeys(("processes", "workers", "compile", "preload"), "auto")
    # PyTorch has read OMP_NUM_THREADS when it was imported.
    of_environment = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else "auto"
    numbers = {"threads": threads or of_environment, "precision": "float32", "deterministic": True, "log_seconds": 10.0}
    return setup(make(Runtime, device=name, **auto, **numbers, loggers=[], kept_states=0))


def can_fork(runtime: Runtime) -> bool:
    """Returns whether a process that has imported PyTorch may fork: on Linux, without a GPU, whose driver does not survive it."""
    return sys.platform == "linux" and device_kind(runtime) == "cpu"


def process_count(runtime: Runtime, communicates: bool) -> int:
    """Returns the number of processes that a stage starts: `runtime.processes`, by default one for each GPU.

    communicates: the processes wait for each other all the time, as those of a training do. Those that do not are, by default,
        one per CPU where they can be forked, at most MAX_CPU_PROCESSES: threads lose more time waiting for each other.
    """
    if runtime.processes:
        return runtime.processes
    if device_kind(runtime) == "cuda":
        return torch.cuda.device_count()
    return 1 if communicates or not can_fork(runtime) else min(usable_cpus(), MAX_CPU_PROCESSES)


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use: its CPU affinity and the quota of its container limit it."""
    return joblib.cpu_count()


class Precision:
    """The precision of the network's forward pass. Weights, their averages and the loss stay in float32.

    `auto` is bfloat16 on a GPU that supports it, float32 elsewhere. On a GPU, normalization also runs in float32.

    dtype: the type of the forward pass.
    scaler: the GradScaler that float16 needs, None for other types.
    """

    def __init__(self, runtime: Runtime, device: torch.device):
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        automatic = torch.bfloat16 if has_bfloat16 else torch.float32
        self.dtype, self.device = PRECISIONS[runtime.precision] or automatic, device
        # Without a scaler, gradients below float16's smallest number become 0 (Micikevicius et al. 2018).
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype is torch.float16 else None

    def autocast(self) -> AbstractContextManager:
        """Returns a context for a forward pass."""
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(self.device.type, self.dtype)


def compiled(network: nn.Module, enable: bool | None, device: torch.device, probe: Callable[[nn.Module], object]) -> nn.Module:
    """Returns torch.compile(network), or the network unchanged if a trial call `probe(compiled)` fails in any process.

    enable: False never compiles; None compiles on CUDA if Triton is installed, which torch.compile needs there.
    probe: must not communicate with other processes. Raises its error if the memory does not suffice.
    """
    if enable is False or (enable is None and not (device.type == "cuda" and importlib.util.find_spec("triton"))):
        return network
    fast, reason = network, ""
    try:
        fast = torch.compile(network, dynamic=False)
        probe(fast)
    except Exception as error:  # compilers raise many types, and the stage can run without them
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
    reasons = processes.map_over_ranks(range(processes.world_size()), lambda _: reason)
    if any(reasons):
        if processes.is_main_process():
            print(f"torch.compile does not work here ({max(reasons)}); running without it", file=sys.stderr, flush=True)
        torch._dynamo.reset()
        fast = network
    # Zeroed in place, since a Trainer keeps the gradients as views of one vector.
    network.zero_grad(set_to_none=False)
    return fast
