"""Several processes for one stage: how they are started, which of them this one is, and how they share work.

Started as `python -m stages.NAME`, a stage starts its own processes by PyTorch's elastic launcher where `runtime.processes` asks
for more than one; started by `torchrun ... -m stages.NAME`, on one machine or on many, it joins those that torchrun made. All
compute, process 0 alone writes files and logs. In a single process every function here is what it would be without the others.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm.core.files import InputError

T, R = TypeVar("T"), TypeVar("R")
_store: dist.Store | None = None


def store() -> dist.Store | None:
    """The store that the processes share, None in a single process."""
    return _store


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def is_started() -> bool:
    """Whether torchrun, or a stage by itself, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_started() else 0


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if is_started() else 1


def init(device: torch.device) -> None:
    """Meet the other processes, if this is one of several; GPUs talk by NCCL, what lies in memory by Gloo."""
    global _store
    if not is_started() or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _store, number, count = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=_store, rank=number, world_size=count)


def shutdown() -> None:
    """Part from the other processes."""
    global _store
    if dist.is_initialized():
        dist.destroy_process_group()
    _store = None


def local_slice(count: int) -> slice:
    """The range of `count` things that is this process's share; the shares differ by at most one."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def map_over_ranks(work: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """[compute(item) for item in work], each item computed by one process; every process gets all results, in order.

    A result is the same on however many processes if it depends on its item alone. Results travel as pickles, on the CPU.
    """
    mine = [compute(item) for item in work[rank() :: world_size()]]
    if world_size() == 1:
        return mine
    gathered: list[list[R]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, mine)
    return [gathered[i % world_size()][i // world_size()] for i in range(len(work))]


def from_rank0(make: Callable[[], T]) -> T:
    """What process 0 makes, in every process; an InputError there is raised in all. It travels as a pickle, on the CPU."""
    if world_size() == 1:
        return make()
    box: list = [None, None]
    if is_main_process():
        try:
            box[0] = make()
        except InputError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def wrap_ddp(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, with gradients that are averaged over all processes; as it is where there is only one."""
    if world_size() == 1:
        return network
    # Gradients stay where they are: a Trainer holds them all in one vector.
    return DistributedDataParallel(network, [device] if device.type == "cuda" else None, gradient_as_bucket_view=False)


def all_gather_rows(value: Tensor, count: int) -> Tensor:
    """The shares (`local_slice`) of `count` rows, put together, (count, ...), on every process."""
    if world_size() == 1:
        return value
    # A sum over zeros, since shares may differ in length, which all_gather does not take.
    whole = value.new_zeros(count, *value.shape[1:])
    whole[local_slice(count)] = value
    dist.all_reduce(whole)
    return whole
