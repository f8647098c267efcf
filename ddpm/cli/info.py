"""What a model folder holds, in words and numbers.

The model that a command works with, on the device that it works on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ddpm.core.device import DEVICES, Runtime, setup
from ddpm.core.files import InputError, read_json
from ddpm.core.params import lookup, make
from ddpm.core.paths import METRICS_FILE, MODEL_DIR
from ddpm.networks.checkpoints import CHECKPOINTS, CONFIG
from ddpm.networks.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, list_snapshots, supported_range
from ddpm.sampling.model import DiffusionModel, load

# Of metrics.json: what of each sampler is told, under which name.
SCORES = {"fid": ("classifier", "fid"), "fid_floor": ("classifier", "fid_floor"), "accuracy": ("accuracy",)}


def describe(folder: Path) -> dict[str, Any]:
    """What a model folder holds, as values that JSON has. Raises InputError, as `sampling.model.load` does."""
    checkpoints = [name for name, file in CHECKPOINTS.items() if (folder / file).is_file()]
    model = load(checkpoints[0] if checkpoints else "final", torch.device("cpu"), folder)
    config = read_json(folder / CONFIG, "train")
    steps, diffusion, training = list_snapshots(folder), config["diffusion"], config.get("training", {})
    found = {
        "folder": str(folder),
        "dataset": model.data.get("dataset"),
        "shape": list(model.shape),
        "classes": model.data["class_names"],
        "conditioning": config["model"]["conditioning"],
        "supports_cfg": model.supports_cfg,
        "words": config.get("words"),
        "schedule": diffusion["schedule"],
        "timesteps": diffusion["timesteps"],
        "prediction": diffusion["prediction"],
        "learned_variance": diffusion["learned_variance"],
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "training": {key: training[key] for key in ("steps", "batch_size", "learning_rate", "seed") if key in training},
        "checkpoints": checkpoints,
        "snapshots": len(steps),
        "ema_widths": list(supported_range(steps)) if steps else None,
    }
    # The reports are of the project's own model.
    return found | ({"scores": dict(_scores())} if folder == MODEL_DIR and METRICS_FILE.is_file() else {})


def _scores() -> Iterator[tuple[str, dict[str, Any]]]:
    metrics = read_json(METRICS_FILE, "evaluate")
    for name in ("ddpm", "ddim"):
        row = {}
        for key, path in SCORES.items():
            value: Any = metrics.get(name)
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                row[key] = value
        if row:
            sampler = metrics[name].get("sampler", name)
            yield str(sampler), row


def in_words(found: dict[str, Any]) -> str:
    """`describe` as lines of text."""
    height, width, channels = found["shape"]
    told = {
        "data": f"{found['dataset']}: {height}x{width}, {'gray' if channels == 1 else 'colour'}",
        "classes": f"{len(found['classes'])}: {_listed(found['classes'])}",
        "conditioning": found["conditioning"] + (", trained without it too" if found["supports_cfg"] else ""),
        "words": _listed(found["words"]) if found["words"] else None,
        "schedule": f"{found['schedule']}, T = {found['timesteps']:,}",
        "prediction": found["prediction"] + (", learned variance" if found["learned_variance"] else ""),
        "network": f"{found['parameters']:,} parameters",
        "training": ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in found["training"].items()) or None,
        "checkpoints": ", ".join(found["checkpoints"]),
        "snapshots": _snapshots(found),
        **{f"scores of {name}": _row(row) for name, row in found.get("scores", {}).items()},
    }
    return "\n".join(f"{name + ':':<16}{text}" for name, text in told.items() if text)


def as_json(found: dict[str, Any]) -> str:
    """`describe` as indented JSON."""
    return json.dumps(found, indent=2)


def _listed(names: list[str], most: int = 40) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _snapshots(found: dict[str, Any]) -> str:
    if not found["snapshots"]:
        return "none"
    narrowest, widest = found["ema_widths"]
    return f"{found['snapshots']}, for averages of width {narrowest:g} to {widest:g} (--checkpoint)"


def _row(row: dict[str, float]) -> str:
    parts = [f"FID {row['fid']:.3f}" if "fid" in row else ""]
    parts[0] += f" (real images {row['fid_floor']:.3f})" if "fid" in row and "fid_floor" in row else ""
    parts += [f"{row['accuracy']:.1%} of the class asked for"] if "accuracy" in row else []
    return ", ".join(part for part in parts if part)


def load_model(folder: Path, checkpoint: str, device: str, threads: int | None) -> DiffusionModel:
    """A model on its device. Raises InputError for a device that is not there, and as `sampling.model.load` does."""
    return load(checkpoint_of(checkpoint), open_device(device, threads), folder)


def open_device(name: str, threads: int | None) -> torch.device:
    """The device of a name (`runtime.DEVICES`), computing with so many threads. Raises InputError if it is not there."""
    if not lookup(DEVICES, name, "device")():
        raise InputError(f"{name!r} is not here, or PyTorch cannot use it; choose 'auto' or 'cpu'", key="device")
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
        names = dict.fromkeys([*CHECKPOINTS, f"a width from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}"])
        return lookup(names, text, "checkpoint")
    if not MIN_SIGMA_REL <= width <= MAX_SIGMA_REL:
        raise InputError(
            f"width {text} is out of range; give {MIN_SIGMA_REL} to {MAX_SIGMA_REL}, or {', '.join(CHECKPOINTS)}",
            key="checkpoint",
        )
    return width
