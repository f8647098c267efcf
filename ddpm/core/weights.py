"""Weights on disk: safetensors, which cannot run code, written atomically and checked against the network."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ddpm.core.files import InputError, atomic


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as safetensors, atomically."""
    data = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    # Not by save_file, whose error on a full disk is no OSError.
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def read_weights(path: Path, made_by: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; raises InputError naming the stage `made_by` if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"not found; make it with `dvc repro {made_by}`", key=path) from None
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"damaged ({reason}); make it again with `dvc repro -f {made_by}`", key=path) from None


def load_weights(path: Path, network: nn.Module, made_by: str) -> None:
    """Load safetensors into the network; raises InputError if the file is missing, damaged or made for another network."""
    put_weights(read_weights(path, made_by), network, path, made_by)


def put_weights(weights: dict[str, Tensor], network: nn.Module, path: Path, made_by: str) -> None:
    """Copy weights, which come from `path`, into the network; raises InputError if they are those of another network."""
    expected = {name: value.shape for name, value in network.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        sizes = f"{tuple(found.get(wrong[0], ()))} in the file, {tuple(expected.get(wrong[0], ()))} by the config"
        raise InputError(
            f"does not fit the config beside it: {wrong[0]} is {sizes} ({len(wrong)} differ); "
            f"make it again with `dvc repro -f {made_by}`",
            key=path,
        )
    network.load_state_dict(weights)
