"""The model that a command works with, on the device that it works on."""

from pathlib import Path

import torch

from ddpm.files import InputError
from ddpm.networks.posthoc import NARROWEST, WIDEST
from ddpm.networks.store import CHECKPOINTS
from ddpm.params import lookup, make
from ddpm.runtime import DEVICES, Runtime, setup
from ddpm.sampling.model import DiffusionModel, load


def load_model(folder: Path, checkpoint: str, device: str, threads: int | None) -> DiffusionModel:
    """A model on its device. Raises InputError for a device that is not there, and as `sampling.model.load` does."""
    return load(checkpoint_of(checkpoint), open_device(device, threads), folder)


def open_device(name: str, threads: int | None) -> torch.device:
    """The device of a name (`runtime.DEVICES`), computing with so many threads. Raises InputError if it is not there."""
    if not lookup(DEVICES, name, "device")():
        raise InputError(f"device: {name!r} is not here, or PyTorch cannot use it; choose 'auto' or 'cpu'")
    auto = dict.fromkeys(("processes", "workers", "compile", "preload"), "auto")
    numbers = {"threads": threads or "auto", "precision": "float32", "deterministic": True, "log_seconds": 10.0}
    return setup(make(Runtime, device=name, **auto, **numbers))


def checkpoint_of(text: str) -> str | float:
    """A checkpoint as people write it: a name, or the width of an EMA. Raises InputError for what is neither."""
    if text in CHECKPOINTS:
        return text
    try:
        width = float(text)
    except ValueError:
        names = dict.fromkeys([*CHECKPOINTS, f"a width from {NARROWEST} to {WIDEST}"])
        return lookup(names, text, "checkpoint")
    if not NARROWEST <= width <= WIDEST:
        raise InputError(f"checkpoint: width {text} is out of range; give {NARROWEST} to {WIDEST}, or {', '.join(CHECKPOINTS)}")
    return width
