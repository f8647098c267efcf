"""Models on the Hugging Face Hub: uploads an export, and downloads a model into the cache of huggingface_hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ddpm.core.files import InputError, first_line

_NAME = r"[\w.-]+/[\w.-]+"
# pathlib leaves one slash of two.
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_NAME})(?:@(\S+))?")
# What `import` and `ddpm.load` read, beside JSON files: the weights of a U-Net, alone or in a pipeline, or of a model folder.
_WEIGHTS = ("diffusion_pytorch_model", "unet/diffusion_pytorch_model", "final")
# Pickled weights are downloaded only if there are no others.
_SUFFIXES = (".safetensors", ".bin")
_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"
_REFUSALS = {
    401: f"no access; check the name, and {_LOG_IN}",
    403: f"this login has no right to it; {_LOG_IN} to a token that has it",
    404: f"the hub has no such model; check the name, and for a private one {_LOG_IN}",
}


def is_address(text: str | os.PathLike) -> bool:
    """Returns whether a text names a model of the hub, hf://OWNER/NAME, rather than a folder."""
    return os.fspath(text).startswith("hf:/")


def check_name(name: str) -> None:
    """Raises InputError for a text that is not OWNER/NAME."""
    if not re.fullmatch(_NAME, name):
        raise InputError("is no name of a repository; write OWNER/NAME", key=name)


@contextmanager
def _errors(key: str, advice: str = "") -> Iterator[None]:
    """Turns errors of huggingface_hub in the block, and its absence, into an InputError. advice: the end of its message."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise InputError(
            "needs huggingface_hub, which is not installed; run `pip install 'huggingface_hub>=1'`", key=key
        ) from None
    try:
        yield
    # HTTPError is the class of all errors of its HTTP library, such as those of the connection.
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise InputError(_reason(error, errors) + advice, key=key) from None


def _reason(error: Exception, errors: ModuleType) -> str:
    """Returns what an error of huggingface_hub means, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such revision of it; check what follows @"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner asks for consent; give it on the page of the model, and {_LOG_IN}"
    if status in _REFUSALS:
        return _REFUSALS[status]
    if status or isinstance(error, ValueError):
        return f"the hub refuses it ({first_line(error)})"
    return f"the transfer failed ({first_line(error)}); check the network, and run it again"


def check_installed(key: str) -> None:
    """Raises InputError, with this key, if huggingface_hub is not installed."""
    with _errors(key):
        pass


def push(folder: Path, name: str, private: bool = False) -> str:
    """Uploads a folder to the repository OWNER/NAME, which is made if it does not exist; returns the address of its page.

    private: whether a repository that is made is a private one.
    Raises InputError, with the key `push`, for what the hub refuses, and without a network; the folder stays as it is.
    """
    with _errors("push", f"; the export is in {folder}"):
        from huggingface_hub import HfApi

        api = HfApi()
        page = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export of `ddpm export`")
    return str(page)


def download(address: str | os.PathLike) -> Path:
    """Returns the folder of a model in the cache of huggingface_hub, downloaded if the cache does not have it.

    address: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION with a branch, tag or commit.
    Without a network, the copy in the cache is used. Raises InputError, with the address as the key, if there is none, for an
    unknown model or revision, and for one that this login may not read.
    """
    address = os.fspath(address)
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError("is no model of a hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION", key=address)
    name, revision = match.groups()
    key = f"hf://{name}" + (f"@{revision}" if revision else "")
    with _errors(key):
        from huggingface_hub import snapshot_download

        for suffix in _SUFFIXES:
            weights = [f"{stem}{suffix}" for stem in _WEIGHTS]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", *weights]))
            if any((folder / path).exists() for path in weights):
                break
    return folder
