"""Writes and reads weights as safetensors, a format that cannot run code, and checks them against the network."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ddpm.core.files import InputError, atomic, check_regular, first_line, remake


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Writes weights as safetensors, atomically. Raises InputError if the file cannot be written."""
    data = _serialize(weights)
    # Not with save_file, whose error on a full disk is no OSError.
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def weights_sha256(network: nn.Module) -> str:
    """Returns the SHA-256 of the file that `save_weights` writes of a network, which identifies its weights."""
    return hashlib.sha256(_serialize(network.state_dict())).hexdigest()


def weights_id(checkpoint: str | float, network: nn.Module) -> dict[str, str | float]:
    """Returns what a metrics.json says of the weights that its scores are of: the checkpoint, and its `weights_sha256`."""
    return {"checkpoint": checkpoint, "sha256": weights_sha256(network)}


def _serialize(weights: dict[str, Tensor]) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in weights.items()})


def read_weights(path: Path, made_by: str) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, on the CPU.

    Raises InputError with the advice of `remake(made_by)` if the file is missing or damaged.
    """
    check_regular(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"not found; {remake(made_by, again=False)}", key=path) from None
    # KeyError and AttributeError: a dtype that this PyTorch does not know.
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"damaged ({first_line(error)}); {remake(made_by)}", key=path) from None


def load_weights(path: Path, network: nn.Module, made_by: str) -> None:
    """Loads a safetensors file into the network. Raises InputError if it is missing, damaged or of another network."""
    put_weights(read_weights(path, made_by), network, path, made_by)


def put_weights(weights: dict[str, Tensor], network: nn.Module, path: Path, made_by: str) -> None:
    """Copies weights, which come from `path`, into the network. Raises InputError if names, shapes or kinds of numbers differ."""
    own = network.state_dict()
    expected = {name: value.shape for name, value in own.items()}
    shapes = {name: value.shape for name, value in weights.items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        sizes = f"{tuple(shapes.get(wrong[0], ()))} in the file, {tuple(expected.get(wrong[0], ()))} by the config"
        raise InputError(
            f"does not fit the config.json in its folder: {wrong[0]} is {sizes} ({len(wrong)} differ); {remake(made_by)}",
            key=path,
        )
    for name, value in weights.items():
        # Other floats are converted, as files of half the size are common; integers and complex numbers are no weights.
        if value.dtype != own[name].dtype and not (value.is_floating_point() and own[name].is_floating_point()):
            raise InputError(f"{name} is {value.dtype}, not {own[name].dtype}; {remake(made_by)}", key=path)
    network.load_state_dict(weights)
