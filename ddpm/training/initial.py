"""Initial weights from another model (`train.init`): what must be the same in both, and what starts anew."""

import json
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.core.params import PARAMS_FILE, make
from ddpm.core.paths import MODEL_DIR, in_main_checkout
from ddpm.core.weights import weights_sha256
from ddpm.diffusion.schedule import Diffusion, NoiseSchedule
from ddpm.networks.checkpoints import load_model
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.unet import CompatOptions
from ddpm.training.settings import Train

EMBEDDINGS = ("condition.", "augment.")  # names of the tensors that embed classes or captions, and the augmentation
FREE = ("dropout", "conditioning")  # settings of `model` in which both may differ
CHANNELS = {1: "gray", 3: "rgb"}


class Initial(NamedTuple):
    """Weights to begin from.

    name: the value of train.init.
    config: the content of the model's config.json.
    weights: its state dict, on the CPU.
    sha256: `weights_sha256` of it.
    """

    name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    sha256: str

    def network_options(self) -> dict[str, Any]:
        """Returns the options of an imported network that params.yaml does not offer, for `make_network`."""
        compat = self.config.get("compat")
        return {"compat": make(CompatOptions, **compat)} if compat else {}


def open_initial(train: Train) -> Initial | None:
    """Reads the weights that `train.init` names, if any. Raises InputError with that key."""
    if train.init is None:
        return None
    # Late imports, and no dependency of the stage: the hash of the weights, whatever has read them, is one of its inputs.
    from ddpm.api.load import model_folder
    from ddpm.diffusers_io.hub import is_address

    path = in_main_checkout(train.init)
    try:
        if path.resolve().is_relative_to(in_main_checkout(str(MODEL_DIR)).resolve()):
            raise InputError("is the output of this training, which DVC removes before it; copy the folder", key=MODEL_DIR)
        with model_folder(train.init if is_address(train.init) else path, train.init_checkpoint) as (_, folder, checkpoint):
            network, config = load_model(folder, checkpoint, torch.device("cpu"))
    except InputError as error:
        raise InputError(f"{error.key}: {error.message}", key="train.init", where=PARAMS_FILE) from None
    return Initial(train.init, config, network.state_dict(), weights_sha256(network))


def start_from(initial: Initial, network: nn.Module, config: dict[str, Any]) -> None:
    """Copies initial weights into a network; embeddings start anew where they do not fit.

    config: the content of the new config.json, which gets the hash of the weights, and the options of an imported network.

    Prints a line for what starts anew, and a warning if the noise levels differ. Raises InputError, with the settings to change,
    if the prediction, a setting of `model` that is not in FREE, or any other tensor differs.
    """
    own, given = network.state_dict(), initial.weights

    def sizes(name: str) -> str:
        return f"{name} is {_shape(given, name)} in it, and {_shape(own, name)} here"

    differing = [name for name in {**own, **given} if _shape(own, name) != _shape(given, name)]
    wrong = [name for name in differing if not name.startswith(EMBEDDINGS)]
    theirs, ours = _settings(initial.config), _settings(config)
    changes = [f"{key} to {value}" for key, value in theirs.items() if ours.get(key, value) != value]
    if wrong or changes:
        advice = f"set {', '.join(changes)}" if changes else "give `model` the settings of its config.json"
        difference = sizes(wrong[0]) if wrong else "does not fit"
        raise InputError(f"{initial.name}: {difference}; {advice}", key="train.init", where=PARAMS_FILE)
    if differing and processes.is_main_process():
        print(f"train.init: embeddings start anew where they differ: {sizes(differing[0])}", flush=True)
    levels = [_schedule(each).log_ratio for each in (initial.config, config)]
    if not np.array_equal(*levels) and processes.is_main_process():
        names = [f"{each['diffusion']['schedule']}, T = {each['diffusion']['timesteps']:,}" for each in (initial.config, config)]
        print(f"warning: train.init: trained with other noise levels, {names[0]}, than {names[1]}", file=sys.stderr, flush=True)
    network.load_state_dict(own | {name: value for name, value in given.items() if name not in differing})
    config["training"]["init_sha256"] = initial.sha256
    config.update((name, options.model_dump()) for name, options in initial.network_options().items())


def _shape(weights: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(weights[name].shape) if name in weights else "missing"


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """Returns the settings that must be the same, as params.yaml has them; without those that are automatic."""
    model, diffusion = config["model"], config["diffusion"]
    fixed = {f"model.{key}": value for key, value in model.items() if key not in FREE and value is not None}
    fixed |= {"prediction": diffusion["prediction"], "diffusion.learned_variance": diffusion["learned_variance"]}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fixed.items()}
    masked = CONDITIONINGS[model["conditioning"]].takes_mask
    channels = config["data"]["shape"][2]
    return texts | {
        "model.conditioning": "one with mask" if masked else "one without mask",
        "prepare_data.channels": CHANNELS.get(channels, str(channels)),
    }


def _schedule(config: dict[str, Any]) -> NoiseSchedule:
    values = config["diffusion"]
    return Diffusion.model_validate({key: values[key] for key in Diffusion.model_fields}).make(values["schedule"])
