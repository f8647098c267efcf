"""Denoising diffusion models: `ddpm.load` opens a trained one. Importing this package imports no PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.api.images import Images as Images
    from ddpm.api.load import load as load
    from ddpm.api.model import Model as Model
    from ddpm.core.files import InputError as InputError

__version__ = "0.1.0"

_PUBLIC = {"load": "ddpm.api.load", "Model": "ddpm.api.model", "Images": "ddpm.api.images", "InputError": "ddpm.core.files"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ddpm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
