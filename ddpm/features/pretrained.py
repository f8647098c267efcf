"""Published weights files of pretrained judges: where they are looked for, fetched from, and whether they are what they say."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ConfigDict

from ddpm.core.files import InputError, first_line, sha256
from ddpm.core.params import Section


class WeightsFile(NamedTuple):
    """A published weights file: its name, how its SHA-256 begins, which stands in the name under any publisher, and where its
    publisher keeps it."""

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
MISSING = {"status": "weights missing"}  # what stands in the place of scores that such a file would have given


class PretrainedSettings(Section):
    """The keys of the `evaluate` section that are obeyed before anything is trained or sampled."""

    model_config = ConfigDict(extra="ignore")

    require_inception: bool
    download_weights: bool


def weights_folder() -> Path:
    """Where weights files are looked for: DDPM_WEIGHTS_ROOT, or PyTorch's own cache."""
    if root := os.environ.get("DDPM_WEIGHTS_ROOT"):
        return Path(root).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(file: WeightsFile) -> Path | None:
    """The path of a weights file, None if it is not there. Raises InputError if its content is not the published one."""
    path = next(iter(sorted(weights_folder().glob(f"*{file.sha256}*.pth"))), None)
    if path is not None and not (digest := sha256(path)).startswith(file.sha256):
        raise InputError(
            f"its SHA-256 begins with {digest[:8]}, not {file.sha256}: damaged or another file; replace it", key=path
        )
    return path


def get_weights(settings: PretrainedSettings) -> None:
    """Download the weights files that are missing, if `download_weights` says so; a file that cannot be had is named.

    Raises InputError, saying which file goes where, if the Inception's is required and missing.
    """
    if settings.download_weights:
        for file in (INCEPTION, ALEXNET):
            if find_weights(file) is None:
                _download(file)
    if settings.require_inception and find_weights(INCEPTION) is None:
        raise InputError(
            f"params.yaml: evaluate.require_inception is true, but {INCEPTION.name} is not in {weights_folder()}; put it there, "
            "or set DDPM_WEIGHTS_ROOT to its folder, or set evaluate.download_weights to true, or evaluate.require_inception "
            "to false"
        )


def _download(file: WeightsFile) -> None:
    path = weights_folder() / file.name
    print(f"downloading {file.url}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # To a temporary name, and renamed when the SHA-256 is right.
        torch.hub.download_url_to_file(file.url, str(path), hash_prefix=file.sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network; another content
        print(
            f"warning: {file.url}: cannot be downloaded ({first_line(error)}); going on without it", file=sys.stderr, flush=True
        )
