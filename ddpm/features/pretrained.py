"""Published weights files of pretrained networks: finds, checks and downloads them."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ConfigDict

from ddpm.core.files import InputError, first_line, sha256
from ddpm.core.params import Section
from ddpm.core.paths import folder_of

MISSING = {"status": "weights missing"}  # stored in place of the scores of a network whose weights file is missing


class WeightsFile(NamedTuple):
    """A published weights file.

    name: its file name.
    sha256: the beginning of its SHA-256, which is part of its name under any publisher.
    folder: URL of the folder that holds it, with a slash at the end.
    """

    name: str
    sha256: str
    folder: str

    @property
    def url(self) -> str:
        return self.folder + self.name


INCEPTION = WeightsFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
)

ALEXNET = WeightsFile("alexnet-owt-7be5be79.pth", "7be5be79", "https://download.pytorch.org/models/")


class PretrainedSettings(Section):
    """The keys of the `evaluate` section that apply before anything is trained or sampled."""

    model_config = ConfigDict(extra="ignore")

    require_inception: bool
    download_weights: bool


def weights_folder() -> Path:
    """Returns the folder of weights files: DDPM_WEIGHTS_ROOT, or PyTorch's own cache."""
    return folder_of("DDPM_WEIGHTS_ROOT", f"{torch.hub.get_dir()}/checkpoints")


def find_weights(file: WeightsFile) -> Path | None:
    """Returns the path of a weights file, None if it is missing. Raises InputError if its content is not the published one."""
    path = next(iter(sorted(weights_folder().glob(f"*{file.sha256}*.pth"))), None)
    if path is not None and not (digest := sha256(path)).startswith(file.sha256):
        raise InputError(
            f"its SHA-256 begins with {digest[:8]}, not {file.sha256}: damaged or another file; replace it", key=path
        )
    return path


def download(file: WeightsFile) -> None:
    """Downloads a weights file, and prints a warning if it cannot."""
    path = weights_folder() / file.name
    print(f"downloading {file.url}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # To a temporary name, and renamed when the SHA-256 is right.
        torch.hub.download_url_to_file(file.url, str(path), hash_prefix=file.sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network; another content
        reason = first_line(error)
        print(f"warning: {file.url}: cannot be downloaded ({reason}); its scores will be missing", file=sys.stderr, flush=True)
