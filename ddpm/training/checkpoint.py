"""State of an unfinished training, so that a killed one goes on; it lives outside DVC, which deletes outputs before a run.

    <scratch>/train/<fingerprint>/state.pt     weights, averages, optimizer, step, loss history; written whole, then renamed
    <scratch>/train/<fingerprint>/...          previews and snapshots made so far
    <scratch>/train/<fingerprint>.lock         held by the one trainer that may use the folder

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

from ddpm.core import processes
from ddpm.core.files import atomic, first_line, remove_partial, sha256_tree, writing
from ddpm.core.params import PARAMS_FILE, PIPELINE_FILE, read_yaml
from ddpm.core.scratch import hold, scratch_root

STATE = "state.pt"
# Of the content of state.pt; raised when older code's states cannot be gone on from.
FORMAT = 4


def stage_fingerprint(stage: str) -> str:
    """SHA-256 over the params and the content of the deps that dvc.yaml declares for the stage, in the current folder."""
    declared = read_yaml(PIPELINE_FILE)["stages"][stage]
    params = read_yaml(PARAMS_FILE)
    values = {name: params.get(name) for name in declared["params"]}
    content = sha256_tree(declared["deps"]) + json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def surroundings(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> dict[str, str]:
    """What bit-equality depends on beside params, data and code. (With three or more processes it is not promised at all: the
    order in which their gradients are added up settles after the first step.)"""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = {
        "device": kind,
        "precision": dtype,
        "compile": compiled,
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
        "torch": torch.__version__,
    }
    return {key: str(value).removeprefix("torch.") for key, value in found.items()}


class ResumeState:
    """The state folder of one fingerprint; opening it takes the lock.

    Raises InputError if another trainer holds the lock.
    """

    def __init__(self, fingerprint: str, surroundings: dict[str, str], root: Path | None = None):
        self.fingerprint, self.surroundings = fingerprint, surroundings
        self.folder = (root or scratch_root()) / "train" / fingerprint
        self.path = self.folder / STATE
        self._lock = hold(self.folder, "another training with the same params, data and code")
        remove_partial(self.folder)

    def load(self, fresh: bool = False) -> dict | None:
        """The saved state, on the CPU, or None if there is none; a damaged or foreign one is named, set aside and not used.

        fresh: remove it instead.
        """
        if not self.path.exists():
            return None
        if fresh:
            print("DDPM_FRESH is set: discarding the saved state", flush=True)
            self._empty()
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                raise ValueError("it belongs to another training")
            if state.get("format") != FORMAT:
                raise ValueError(f"its format is {state.get('format')}, not {FORMAT}")
        except Exception as error:  # whatever a damaged archive raises, training can start afresh
            aside = self.folder.with_suffix(".damaged")  # beside the folder, which the end of the training removes
            os.replace(self.path, aside)
            print(
                f"warning: {self.path}: not usable ({first_line(error)}); kept as {aside.name}, starting afresh", file=sys.stderr
            )
            return None
        differing = [f"{key} {state[key]} -> {value}" for key, value in self.surroundings.items() if state[key] != value]
        if differing:
            print(
                f"warning: goes on with another {', '.join(differing)}: a little different from an uninterrupted training",
                file=sys.stderr,
            )
        return state

    def save(self, state: dict) -> None:
        """Replace the saved state, atomically."""
        buffer = io.BytesIO()
        torch.save({**state, **self.surroundings, "fingerprint": self.fingerprint, "format": FORMAT}, buffer)
        # Not by torch.save, whose error on a full disk is no OSError.
        with atomic(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def publish(self, name: str, target: Path) -> None:
        """Copy the subfolder `name` to `target`: what was made before a kill is there too, though DVC emptied the outputs."""
        with writing(target):
            shutil.rmtree(target, ignore_errors=True)
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, target)

    def discard(self) -> None:
        """Training is complete: remove the state and release the lock."""
        self._empty()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _empty(self) -> None:
        # The state first: previews and snapshots without it do no harm.
        for path in [self.path, *self.folder.iterdir()]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
