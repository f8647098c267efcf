"""Opens a trained model: a model folder, a checkpoint in one, what diffusers has saved, or a model of a hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from ddpm.api.model import Model
from ddpm.api.model_folder import locate, saved_by_diffusers
from ddpm.core.files import InputError, read_json
from ddpm.core.paths import MODEL_DIR
from ddpm.diffusers_io.hub import download, is_address
from ddpm.diffusers_io.import_ import read_folder, write_model
from ddpm.networks.checkpoints import CONFIG
from ddpm.sampling.model import open_model


@contextmanager
def model_folder(model: str | PathLike, checkpoint: str | float) -> Iterator[tuple[Path, Path, str | float]]:
    """Yields (path, folder, checkpoint) of a model, as `load` takes it; the folder is a model folder within this context.

    path: the same folder, or for a model that diffusers has saved, that folder.
    """
    if is_address(model) and checkpoint != "final":
        raise InputError(f"{checkpoint} is not downloaded from a hub, only final; leave it out", key="checkpoint")
    path = download(model) if is_address(model) else Path(model)
    if not saved_by_diffusers(path):
        folder, wanted = locate(path, str(checkpoint))
        yield folder, folder, wanted
        return
    if checkpoint != "final":
        raise InputError(f"{checkpoint} is not in {model}, which was saved by diffusers; leave it out", key="checkpoint")
    with TemporaryDirectory() as temporary:
        write_model(read_folder(path), Path(temporary, "model"))
        yield path, Path(temporary, "model"), "final"


def load(
    model: str | PathLike = MODEL_DIR, checkpoint: str | float = "final", device: str = "auto", threads: int | None = None
) -> Model:
    """Loads a trained model.

    model: a model folder, a file of weights in one, a folder that diffusers has saved (also one of `export`), or
        `hf://OWNER/NAME`, whose final weights are downloaded from the Hugging Face Hub.
    checkpoint: `final`, `best`, `latest`, or the relative width of an EMA such as 0.1.
    device: a key of DEVICES.
    threads: the number of CPU threads; by default OMP_NUM_THREADS, else 1 for a small network and all CPUs for a large one.

    It sets PyTorch's number of threads for the process, and on a GPU TF32 and deterministic kernels, as the stages do.
    Raises InputError for a missing or damaged model, and for a device that is not available.
    """
    with model_folder(model, checkpoint) as (path, folder, wanted):
        opened = open_folder(folder, wanted, device, threads)
    return Model(path, opened.config, opened.diffusion)


def open_folder(folder: Path, checkpoint: str | float, device: str = "auto", threads: int | None = None) -> Model:
    """Loads a checkpoint of a model folder, or, as an int, the step of a snapshot. Raises InputError as `load` does."""
    diffusion = open_model(checkpoint, folder, device, threads)
    return Model(folder, read_json(folder / CONFIG, "train"), diffusion)
