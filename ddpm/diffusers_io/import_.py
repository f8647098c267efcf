"""Reads a UNet2DModel of the DDPM family, as diffusers saves it, and writes it as a model folder."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm.core.files import InputError, atomic_folder, check_regular, first_line, read_json, write_json
from ddpm.core.outputs import check_folder
from ddpm.core.weights import save_weights
from ddpm.diffusers_io.export import RECORD, SCHEDULER, UNET
from ddpm.diffusers_io.model_card import IMPORTED
from ddpm.diffusers_io.scheduler_config import SchedulerInfo, read_scheduler
from ddpm.diffusers_io.state_dict_map import CLASSES, from_diffusers
from ddpm.diffusers_io.unet_config import UNetInfo, read_config
from ddpm.networks.checkpoints import CHECKPOINTS, CONFIG, make_config
from ddpm.networks.unet import UNet

T = TypeVar("T")
WEIGHTS = "diffusion_pytorch_model"
SCHEDULER_CONFIG = "scheduler_config.json"
FILES = (CONFIG, CHECKPOINTS["final"])


class ImportedModel(NamedTuple):
    """A model that was read.

    config: the content of its config.json.
    weights: its state dict.
    notes: lines for the user.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    notes: list[str]


def check_out(path: Path) -> None:
    """Raises InputError if the folder cannot be written, or holds anything but an earlier import."""
    check_folder(path, FILES, _is_import, "imported model")


def _is_import(folder: Path) -> bool:
    try:
        return read_json(folder / CONFIG, "train")["data"]["dataset"] == IMPORTED
    except (InputError, KeyError, TypeError):
        return False


def read_folder(folder: Path, size: int | None = None) -> ImportedModel:
    """Reads the folder of a pipeline, or of a UNet2DModel.

    size: the side of the images, for a config without sample_size.
    Raises InputError, naming the file, for what is missing, damaged, or not possible with our U-Net.
    """
    unet = next((at for at in (folder / UNET, folder) if (at / "config.json").exists()), None)
    if unet is None:
        raise InputError(f"holds no {UNET}/config.json; give a folder with a pipeline or U-Net that diffusers saved", key=folder)
    config = read_json(unet / "config.json", "")
    info = _within(unet / "config.json", lambda: read_config(config, size))
    record = _read_record(folder if unet == folder / UNET else unet.parent)
    scheduler, notes = _read_scheduler(folder, unet, record)
    path, tensors = _read_weights(unet)
    return ImportedModel(*_assemble(info, scheduler, tensors, record, path), notes)


def _read_scheduler(folder: Path, unet: Path, record: dict[str, Any]) -> tuple[SchedulerInfo, list[str]]:
    """Reads the scheduler next to the U-Net; returns it with notes for the user."""
    places = (folder / SCHEDULER, folder, unet.parent / SCHEDULER)
    path = next((place / SCHEDULER_CONFIG for place in places if (place / SCHEDULER_CONFIG).exists()), None)
    if path is None:
        return read_scheduler({}), [
            f"no {SCHEDULER_CONFIG}; the defaults of diffusers are used: prediction eps, linear schedule, T = 1,000"
        ]
    config = read_json(path, "")
    scheduler = _within(path, lambda: read_scheduler(config, record.get("diffusion")))
    is_large = scheduler.variance in ("fixed_large", "fixed_large_log")
    return scheduler, ["its scheduler uses the large variance: --sampler ddpm --variance large"] if is_large else []


def _assemble(
    info: UNetInfo, scheduler: SchedulerInfo, tensors: dict[str, Tensor], record: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the content of config.json and the weights. Raises InputError, naming the file `path`, if they do not match."""
    table = tensors.pop(CLASSES, None)
    shape = None if table is None else tuple(table.shape)
    if (shape is None) != (info.classes is None) or (shape and shape[0] != info.classes):
        message = f"shape {shape} does not fit num_class_embeds {info.classes} of config.json"
        raise InputError(message, key=CLASSES, where=path)
    names, dropout = _classes(info, record)
    diffusion = scheduler.diffusion.model_copy(update={"learned_variance": info.outputs > info.image[2]})
    data = {"dataset": IMPORTED, "shape": list(info.image), "class_names": names, "sha256": {}}
    config = make_config(info.settings, scheduler.schedule, scheduler.prediction, diffusion, data, {}, 0)
    config |= {"compat": info.compat.model_dump(), "training": {"condition_dropout": dropout}}
    with torch.device("meta"):  # its weights are those of the file, whatever size the config asks for
        network = _within(
            path.parent / "config.json", lambda: UNet(info.settings, info.image, names, info.outputs, compat=info.compat)
        )
    weights = _within(path, lambda: from_diffusers(tensors, network))
    if info.cosines_first:  # ours begins with the sines
        weights["time.0.weight"] = weights["time.0.weight"].roll(info.settings.channels // 2, dims=-1)
    if table is not None:
        rows = weights["condition.table.weight"]
        if shape[1:] != rows.shape[1:]:
            message = f"shape {shape} must be {(info.classes, *rows.shape[1:])}, according to config.json"
            raise InputError(message, key=CLASSES, where=path)
        # Without a row for "no class", its row is never used (condition_dropout is 0); any values will do.
        weights["condition.table.weight"] = table if len(table) == len(rows) else torch.cat([table, table.mean(0, keepdim=True)])
    return config, weights


def _classes(info: UNetInfo, record: dict[str, Any]) -> tuple[list[str], float]:
    """Returns the class names, and the condition dropout, which is 0 if no row of the class embedding means "no class"."""
    if info.classes is None:
        return [], 0.0
    names, dropout = record.get("class_names", []), record.get("condition_dropout", 0.0)
    if len(names) == info.classes - 1:
        return names, dropout
    return [f"class {k}" for k in range(info.classes)], 0.0


def _read_record(folder: Path) -> dict[str, Any]:
    """Returns the diffusion settings, class names and condition dropout that our exports record; {} without a valid record."""
    try:
        record = read_json(folder / RECORD, "")
        names, dropout = record["data"]["class_names"], record["training"].get("condition_dropout", 0.0)
        is_valid = isinstance(names, list) and all(isinstance(name, str) for name in names) and 0 <= dropout < 1
        return {"diffusion": dict(record["diffusion"]), "class_names": names, "condition_dropout": dropout} if is_valid else {}
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _within(path: Path, read: Callable[[], T]) -> T:
    """Returns read(); its InputError names the file."""
    try:
        return read()
    except InputError as error:
        raise error.within(path) from None


def _load_pickle(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pickle protocol
        return torch.load(path, map_location="cpu", weights_only=True)


# What PyTorch and safetensors raise for damaged weights; KeyError is an unknown dtype, or an object missing in a pickle.
_DAMAGED = (
    SafetensorError, OSError, ValueError, RuntimeError, EOFError, AttributeError, KeyError, TypeError, IndexError,
    pickle.UnpicklingError,
)  # fmt: skip
# In the order of preference.
READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {".safetensors": load_file, ".bin": _load_pickle}


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Returns the path of the weights file, and its tensors in float32 on the CPU."""
    path = next((at for suffix in READERS if (at := folder / f"{WEIGHTS}{suffix}").exists()), None)
    if path is None:
        raise InputError(f"holds no {WEIGHTS}{' or '.join(READERS)}; save the model again", key=folder)
    check_regular(path)
    try:
        tensors = {str(name): value for name, value in READERS[path.suffix](path).items()}
        for name, value in tensors.items():
            if not value.is_floating_point():
                raise ValueError(f"{name} is {value.dtype}, not floating point")
        return path, {name: value.float() for name, value in tensors.items()}
    except _DAMAGED as error:
        raise InputError(f"cannot be read as weights ({first_line(error)}); save the model again", key=path) from None


def write_model(imported: ImportedModel, out: Path) -> None:
    """Writes an imported model as a model folder, atomically."""
    with atomic_folder(out, replace=True) as folder:
        write_json(folder / CONFIG, imported.config)
        save_weights(folder / CHECKPOINTS["final"], imported.weights)
