"""Divides the work of a stage among several processes.

All processes compute; process 0 alone writes files and logs. With one process, every function is a no-op or returns its input.
`launch` starts the processes.
"""

import os
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm.core.files import InputError
from ddpm.core.signals import handling

T, R = TypeVar("T"), TypeVar("R")
_store: dist.Store | None = None


def store() -> dist.Store | None:
    """Returns the key-value store that the processes share, None in a single process."""
    return _store


def rank() -> int:
    """Returns the number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Returns whether this is process 0, which writes files and logs."""
    return rank() == 0


def is_started() -> bool:
    """Returns whether torchrun or a stage started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Returns the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_started() else 0


def local_world_size() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if is_started() else 1


def init(device: torch.device) -> None:
    """Joins the process group if this process is one of several: NCCL for tensors on a GPU, Gloo for others."""
    global _store
    if not is_started() or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # Outside of Python it may wait for a process that has ended already: Ctrl-C must end it there too.
    with handling(signal.SIG_DFL, [signal.SIGINT]):
        _store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=_store, rank=number, world_size=count)


def shutdown() -> None:
    """Leaves the process group."""
    global _store
    if dist.is_initialized():
        dist.destroy_process_group()
    _store = None


def local_slice(count: int) -> slice:
    """Returns the range of this process within `count` items; the ranges of the processes differ in length by at most 1."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def map_over_ranks(work: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """Returns [compute(item) for item in work] in every process; each item is computed by one of them.

    The results do not depend on the number of processes if each depends on its item only. They are pickled, so keep them on the
    CPU.
    """
    own = [compute(item) for item in work[rank() :: world_size()]]
    if world_size() == 1:
        return own
    gathered: list[list[R]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, own)
    return [gathered[i % world_size()][i // world_size()] for i in range(len(work))]


def from_rank0(make: Callable[[], T]) -> T:
    """Returns the result of `make`, called in process 0, in every process. It is pickled, so keep it on the CPU.

    Raises an InputError of `make` in all processes.
    """
    if world_size() == 1:
        return make()
    result: list = [None, None]
    if is_main_process():
        try:
            result[0] = make()
        except InputError as error:
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def wrap_ddp(network: nn.Module, device: torch.device) -> nn.Module:
    """Returns the network with gradients averaged over all processes, or the network itself with one process."""
    if world_size() == 1:
        return network
    # No views of the buckets: a Trainer keeps all gradients in one vector.
    return DistributedDataParallel(network, [device] if device.type == "cuda" else None, gradient_as_bucket_view=False)


def all_gather_rows(value: Tensor, count: int) -> Tensor:
    """Returns the rows (count, ...) of all processes, each of which has those of its `local_slice`."""
    if world_size() == 1:
        return value
    # A sum, since all_gather does not take parts of different lengths.
    whole = value.new_zeros(count, *value.shape[1:])
    whole[local_slice(count)] = value
    dist.all_reduce(whole)
    return whole
