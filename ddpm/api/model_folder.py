"""Which folder holds a model, and which weights in it, by the values of `load` and of --model and --checkpoint."""

import re
from pathlib import Path

from ddpm.core.files import InputError, read_json
from ddpm.core.params import lookup
from ddpm.core.paths import MODEL_DIR
from ddpm.networks.names import CHECKPOINTS, CONFIG, MAX_SIGMA_REL, MIN_SIGMA_REL, SNAPSHOTS

_IMPORT_FIRST = "was saved by diffusers; run `python -m ddpm import {}` first"


def checkpoint_of(text: str) -> str | float:
    """Returns a checkpoint from its text: a key of CHECKPOINTS, or a relative EMA width. Raises InputError for other text."""
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


def locate(path: Path, checkpoint: str = "final") -> tuple[Path, str | float]:
    """Returns (folder, checkpoint) of the options --model and --checkpoint; the checkpoint of a snapshot is its step.

    path: a model folder, or a file in one; its weights are then the checkpoint.
    Raises InputError, with the remedy that fits, for anything else, and for a file beside another --checkpoint.
    """
    wanted = checkpoint_of(checkpoint)
    if path.is_file():
        folder, of_file = path.parent, next((name for name, file in CHECKPOINTS.items() if file == path.name), None)
        if folder.name == SNAPSHOTS and (step := re.fullmatch(r"step_(\d{7,15})\.safetensors", path.name)):
            folder, of_file = folder.parent, int(step[1])
        if not (of_file or path.name == CONFIG):
            raise InputError(f"is no file of a model; give a model folder, or {', '.join(CHECKPOINTS.values())} in one", key=path)
        if of_file and wanted not in ("final", of_file):
            raise InputError(f"{checkpoint} is another one than {path}; leave one of both out", key="checkpoint")
        path, wanted = folder, of_file or wanted
    if path != MODEL_DIR and not (path / CONFIG).exists():
        raise InputError(_no_model(path), key=path)
    if path != MODEL_DIR and not {"format", "model"} & (config := read_json(path / CONFIG, "")).keys():
        raise InputError(_other_model(path, config), key=path)
    return path, wanted


def saved_by_diffusers(path: Path) -> bool:
    """Returns whether a folder holds a pipeline or a U-Net as diffusers saves it."""
    if any((path / name).is_file() for name in ("model_index.json", "unet/config.json")):
        return True
    return (path / CONFIG).is_file() and "_class_name" in read_json(path / CONFIG, "")


def _no_model(path: Path) -> str:
    """Returns what is wrong with a path without a config.json, and what to do."""
    if saved_by_diffusers(path):
        return _IMPORT_FIRST.format(path)
    if path.is_dir():
        return f"holds no {CONFIG}, so it is no model folder{_models()}"
    if path.exists():
        return f"is neither a folder nor a file{_models()}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists():
        return f"no such folder; a model of the Hugging Face Hub is called hf://{path}"
    return f"no such folder{_models()}"


def _other_model(path: Path, config: dict) -> str:
    if saved_by_diffusers(path):
        return _IMPORT_FIRST.format(path)
    kind = "a classifier" if {"accuracy", "sha256"} <= config.keys() else "something else"
    return f"holds {kind}, no diffusion model{_models()}"


def _models() -> str:
    """Returns advice: the model folders that there are, or else how to train one."""
    folders = [
        path.parent for path in sorted(MODEL_DIR.parent.glob(f"*/{CONFIG}")) if (path.parent / CHECKPOINTS["final"]).is_file()
    ]
    return f"; there is {', '.join(map(str, folders))}" if folders else "; train one with `dvc repro train`"
