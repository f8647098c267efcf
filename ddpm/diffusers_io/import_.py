"""Reads a UNet2DModel of the DDPM family as diffusers saves it, and writes it as a model folder of ours."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm.core.files import InputError, atomic_folder, check_folder, first_line, read_json, write_json
from ddpm.core.weights import save_weights
from ddpm.diffusers_io.export import RECORD, SCHEDULER, UNET
from ddpm.diffusers_io.model_card import IMPORTED
from ddpm.diffusers_io.scheduler_config import Learned, read_scheduler
from ddpm.diffusers_io.state_dict_map import CLASSES, LINEAR_IN, to_ours
from ddpm.diffusers_io.unet_config import Shape, read_config
from ddpm.networks.checkpoints import CHECKPOINTS, CONFIG, make_config
from ddpm.networks.unet import UNet

T = TypeVar("T")
WEIGHTS = "diffusion_pytorch_model"
FILES = (CONFIG, CHECKPOINTS["final"])


class Found(NamedTuple):
    """A network that was read: the content of its config.json, its weights, and what remains to be said of it."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    notes: list[str]


def check_out(path: Path) -> None:
    """Raises InputError, before any work, for a folder that an import cannot be written to."""
    check_folder(path, FILES, _is_import, "imported model")


def _is_import(folder: Path) -> bool:
    try:
        return read_json(folder / CONFIG, "train")["data"]["dataset"] == IMPORTED
    except (InputError, KeyError, TypeError):
        return False


def read_folder(folder: Path, size: int | None = None) -> Found:
    """Read a pipeline's folder, or one that holds a UNet2DModel alone.

    size: the side of its images, where its config says none. Raises InputError, naming the file, for what is missing, damaged
    or not possible with our network.
    """
    unet = next((at for at in (folder / UNET, folder) if (at / "config.json").is_file()), None)
    if unet is None:
        raise InputError(
            f"holds no {UNET}/config.json; give a folder that diffusers has saved a pipeline or U-Net to", key=folder
        )
    shape = _within(unet / "config.json", lambda: read_config(_json(unet / "config.json"), size))
    record = _record(folder if unet == folder / UNET else unet.parent)
    learned, notes = _learned(folder, unet, record)
    path, theirs = _weights(unet)
    return Found(*_assembled(shape, learned, theirs, record, path), notes=notes)


def _learned(folder: Path, unet: Path, record: dict[str, Any]) -> tuple[Learned, list[str]]:
    """What its scheduler says that the network has learned, and notes on it."""
    file = "scheduler_config.json"
    places = (folder / SCHEDULER / file, folder / file, unet.parent / SCHEDULER / file)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        learned = read_scheduler({})
        return learned, ["no scheduler beside it: taken to predict eps, on the linear schedule with T = 1,000, as diffusers does"]
    learned = _within(path, lambda: read_scheduler(_json(path), record.get("diffusion")))
    large = learned.variance in ("fixed_large", "fixed_large_log")
    return learned, ["its scheduler draws with the large variance: --sampler ddpm --variance large"] if large else []


def _assembled(
    shape: Shape, learned: Learned, theirs: dict[str, Tensor], record: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of config.json and the weights. Raises InputError, naming the file `path`, for weights of another network."""
    table = theirs.pop(CLASSES, None)
    names, dropout = _classes(shape, record)
    if (table is None) != (shape.classes is None) or (table is not None and len(table) != shape.classes):
        rows = "none" if table is None else len(table)
        raise InputError(f"{CLASSES} has {rows} rows, by its config it should be {shape.classes or 'none'}", key=path)
    diffusion = learned.diffusion.model_copy(update={"learned_variance": shape.outputs > shape.image[2]})
    data = {"dataset": IMPORTED, "shape": list(shape.image), "class_names": names, "sha256": {}}
    config = make_config(shape.settings, learned.schedule, learned.prediction, diffusion, data, {}, 0)
    config |= {"details": shape.details.model_dump(), "training": {"condition_dropout": dropout}}
    try:
        network = UNet(shape.settings, shape.image, names, shape.outputs, shape.details)
    except InputError as error:
        raise error.within(path.parent / "config.json") from None
    weights = _within(path, lambda: to_ours(_ordered(theirs, shape), network))
    if table is not None:
        rows = weights["condition.table.weight"]
        if table.shape[1] != rows.shape[1]:
            raise InputError(f"{CLASSES} is {table.shape[1]} wide, by its config it should be {rows.shape[1]}", key=path)
        # Without a row for "no class" there is nothing that it could mean; that it is not asked for is in the config.
        weights["condition.table.weight"] = table if len(table) == len(rows) else torch.cat([table, table.mean(0, keepdim=True)])
    return config, weights


def _classes(shape: Shape, record: dict[str, Any]) -> tuple[list[str], float]:
    """The names of the classes, and whether the last row of the table means "no class", as the share of images without one."""
    if shape.classes is None:
        return ["image"], 0.0
    names, dropout = record.get("class_names", []), record.get("condition_dropout", 0.0)
    if len(names) == shape.classes - 1:
        return names, dropout
    return [f"class {k}" for k in range(shape.classes)], 0.0


def _ordered(theirs: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """With a time embedding that begins with the sines, as ours does: its first layer's columns in that order."""
    name = f"{LINEAR_IN}.weight"
    if not shape.cosines_first or name not in theirs:
        return theirs
    return {**theirs, name: theirs[name].roll(theirs[name].shape[-1] // 2, dims=-1)}


def _record(folder: Path) -> dict[str, Any]:
    """What an export of ours has beside it, as far as it is what it should be: `diffusion`, class names, condition dropout."""
    try:
        record = _json(folder / RECORD)
        names, dropout = record["data"]["class_names"], record["training"].get("condition_dropout", 0.0)
        known = all(isinstance(name, str) for name in names) and isinstance(dropout, int | float)
        return {"diffusion": dict(record["diffusion"]), "class_names": names, "condition_dropout": dropout} if known else {}
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _within(path: Path, read: Callable[[], T]) -> T:
    """What `read` gives; its InputError begins with the file."""
    try:
        return read()
    except InputError as error:
        raise error.within(path) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({first_line(error)}); save the model again", key=path) from None
    if not isinstance(value, dict):
        raise InputError("holds no JSON object; save the model again", key=path)
    return value


def _load_pickle(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


# Where both are, the first is taken.
READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {".safetensors": load_file, ".bin": _load_pickle}


def _weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file of the weights, and its tensors in float32 on the CPU."""
    path = next((at for suffix in READERS if (at := folder / f"{WEIGHTS}{suffix}").is_file()), None)
    if path is None:
        raise InputError(f"holds no {WEIGHTS}{' or '.join(READERS)}; save the model again", key=folder)
    try:
        return path, {str(name): value.float() for name, value in READERS[path.suffix](path).items()}
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(f"cannot be read as weights ({first_line(error)}); save the model again", key=path) from None


def write_model(found: Found, out: Path) -> None:
    """Write what was read as a model folder, whole or not at all."""
    with atomic_folder(out, replace=True) as folder:
        write_json(folder / CONFIG, found.config)
        save_weights(folder / CHECKPOINTS["final"], found.weights)
