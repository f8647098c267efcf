"""State of an unfinished training, so that a killed one goes on; it lives outside DVC, which deletes outputs before a run.

    <scratch>/train/<fingerprint>/state.pt     weights, EMA, optimizer, step, loss history; written whole, then renamed
    <scratch>/train/<fingerprint>/lock         held by the one trainer that may use it

The fingerprint is a hash of the stage's params and of the content of its deps, so other params, data or code find no state.
"""

import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ddpm.files import InputError, atomic, sha256_tree, writing
from ddpm.params import PARAMS_FILE, PIPELINE_FILE, read_yaml

STATE = "state.pt"


def scratch_root() -> Path:
    """DDPM_SCRATCH, or .scratch in the main checkout: --temp and queue runs work elsewhere and find their state there too."""
    if root := os.environ.get("DDPM_SCRATCH"):
        return Path(root).expanduser()
    return Path(os.environ.get("DVC_ROOT", ".")) / ".scratch"


def stage_fingerprint(stage: str) -> str:
    """SHA-256 over the params and the content of the deps that dvc.yaml declares for the stage, in the current folder."""
    declared = read_yaml(PIPELINE_FILE)["stages"][stage]
    params = read_yaml(PARAMS_FILE)
    values = {name: params.get(name) for name in declared["params"]}
    content = sha256_tree(declared["deps"]) + json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class ResumeState:
    """The state folder of one fingerprint; opening it takes the lock.

    Raises InputError if another trainer holds the lock.
    """

    def __init__(self, fingerprint: str, root: Path | None = None):
        self.fingerprint = fingerprint
        self.folder = (root or scratch_root()) / "train" / fingerprint
        self.path = self.folder / STATE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.folder}: another training with the same params, data and code is running; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}); set DDPM_SCRATCH to another folder") from None

    def load(self, device: torch.device) -> dict | None:
        """The saved state, or None if there is none; a damaged or foreign one is named, set aside and not used."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                raise ValueError("it belongs to another training")
        except Exception as error:  # whatever a damaged archive raises, training can start afresh
            aside = self.path.with_suffix(".damaged")
            os.replace(self.path, aside)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"warning: {self.path}: not usable ({reason}); kept as {aside.name}, starting afresh", file=sys.stderr)
            return None
        return state

    def save(self, state: dict) -> None:
        """Replace the saved state, atomically."""
        buffer = io.BytesIO()
        torch.save({**state, "fingerprint": self.fingerprint}, buffer)
        # Not by torch.save, whose error on a full disk is no OSError.
        with atomic(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def publish(self, name: str, target: Path) -> None:
        """Copy the subfolder `name` to `target`: what was made before a kill is there too, though DVC emptied the reports."""
        if not (self.folder / name).exists():
            return
        with writing(target):
            shutil.copytree(self.folder / name, target, dirs_exist_ok=True)

    def discard(self) -> None:
        """Training is complete: remove the state and release the lock."""
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)
