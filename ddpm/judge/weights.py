"""Published weights files of pretrained judges: where they are looked for, and whether they are what they say."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ConfigDict

from ddpm.files import InputError, sha256
from ddpm.params import Section


class WeightsFile(NamedTuple):
    """A published weights file: its name, and how its SHA-256 begins, which stands in the name under any publisher."""

    name: str
    sha256: str


INCEPTION = WeightsFile("weights-inception-2015-12-05-6726825d.pth", "6726825d")
ALEXNET = WeightsFile("alexnet-owt-7be5be79.pth", "7be5be79")
MISSING = {"status": "weights missing"}  # what stands in the place of scores that such a file would have given


class RequireInception(Section):
    """The one key of the `evaluate` section that is checked before anything is trained or sampled."""

    model_config = ConfigDict(extra="ignore")

    require_inception: bool


def weights_folder() -> Path:
    """Where weights files are looked for: DDPM_WEIGHTS_ROOT, or PyTorch's own cache."""
    if root := os.environ.get("DDPM_WEIGHTS_ROOT"):
        return Path(root).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(file: WeightsFile) -> Path | None:
    """The path of a weights file, None if it is not there. Raises InputError if its content is not the published one."""
    path = next(iter(sorted(weights_folder().glob(f"*{file.sha256}*.pth"))), None)
    if path is not None and not (digest := sha256(path)).startswith(file.sha256):
        raise InputError(f"{path}: its SHA-256 begins with {digest[:8]}, not {file.sha256}: damaged or another file; replace it")
    return path


def check_required(settings: RequireInception) -> None:
    """Raises InputError, saying which file goes where, if the Inception's weights are required and missing."""
    if settings.require_inception and find_weights(INCEPTION) is None:
        raise InputError(
            f"params.yaml: evaluate.require_inception is true, but {INCEPTION.name} is not in {weights_folder()}; put it there, "
            "or set DDPM_WEIGHTS_ROOT to its folder, or set evaluate.require_inception to false"
        )
