"""The state of an unfinished training, from which a killed one resumes. DVC deletes outputs before a run, so it lies elsewhere.

    <scratch>/train/<fingerprint>/state.pt     weights, EMAs, optimizer, step, loss history; written atomically
    <scratch>/train/<fingerprint>/...          previews and snapshots so far
    <scratch>/train/<fingerprint>.lock         held by the one trainer that uses the folder

The fingerprint is a hash of the params and of the content of the deps of the stage; other params, data or code have another.
"""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ddpm.core import processes, seconds
from ddpm.core.files import atomic, first_line, remove_partial, sha256_tree, writing
from ddpm.core.params import PARAMS_FILE, PIPELINE_FILE
from ddpm.core.scratch import hold, scratch_root
from ddpm.core.yaml_files import read_yaml

STATE = "state.pt"
FORMAT = 7  # of state.pt; raised when the states of older code cannot be used


def stage_fingerprint(stage: str, others: Sequence[str] = ()) -> str:
    """Returns the SHA-256 of the params and of the content of the deps that dvc.yaml declares for the stage.

    others: further files and folders that the stage reads. Raises InputError if a path does not exist.
    """
    declared = read_yaml(PIPELINE_FILE)["stages"][stage]
    params = read_yaml(PARAMS_FILE)
    values = {name: params.get(name) for name in declared["params"]}
    content = sha256_tree([*declared["deps"], *others]) + json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def environment(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> dict[str, str]:
    """Returns what a bit-equal resume depends on, apart from params, data and code.

    With three or more processes it is never bit-equal: the order in which their gradients are added up changes after step 1.
    """
    values = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": dtype,
        "compile": compiled,
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
        "torch": torch.__version__,
    }
    return {key: str(value).removeprefix("torch.") for key, value in values.items()}


class ResumeState:
    """The state folder of one fingerprint; the constructor takes the lock.

    Raises InputError if another trainer holds the lock.
    """

    def __init__(self, fingerprint: str, environment: dict[str, str], root: Path | None = None):
        self.fingerprint, self.environment = fingerprint, environment
        self.folder = (root or scratch_root()) / "train" / fingerprint
        self.path = self.folder / STATE
        self._lock = hold(self.folder, "another training with the same params, data and code")
        remove_partial(self.folder)

    def load(self, fresh: bool = False) -> dict | None:
        """Returns the saved state, on the CPU, or None. A damaged or foreign one is renamed, with a warning, and not used.

        fresh: remove the state and return None.
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
        except Exception as error:  # a damaged archive can raise anything
            aside = self.folder.with_suffix(".damaged")  # outside of the folder, which the end of the training removes
            os.replace(self.path, aside)
            reason = f"not usable ({first_line(error)})"
            print(f"warning: {self.path}: {reason}; kept as {aside.name}, starting afresh", file=sys.stderr)
            return None
        if differing := [f"{key} {state[key]} -> {value}" for key, value in self.environment.items() if state[key] != value]:
            changes = ", ".join(differing)
            print(f"warning: resumes with another {changes}; not bit-equal to an uninterrupted training", file=sys.stderr)
        seconds.resume(state.get("seconds", 0.0))
        return state

    def save(self, state: dict) -> None:
        """Replaces the saved state, atomically."""
        own = {"fingerprint": self.fingerprint, "format": FORMAT, "seconds": seconds.elapsed()}
        buffer = io.BytesIO()
        torch.save({**state, **self.environment, **own}, buffer)
        # torch.save itself does not raise an OSError on a full disk.
        with atomic(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def publish(self, name: str, target: Path) -> None:
        """Replaces `target` by a copy of the subfolder `name`, which includes files from before a kill."""
        with writing(target):
            shutil.rmtree(target, ignore_errors=True)
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, target)

    def discard(self) -> None:
        """Removes the state and releases the lock."""
        self._empty()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _empty(self) -> None:
        # The state first: previews and snapshots without a state are harmless.
        for path in [self.path, *self.folder.iterdir()]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
