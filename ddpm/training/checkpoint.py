"""The state of an unfinished training, from which a killed one resumes. DVC deletes outputs before a run, so it lies elsewhere.

    <scratch>/train/<fingerprint>/state.pt     weights, EMAs, optimizer, step, loss history; written atomically
    <scratch>/train/<fingerprint>/...          previews and snapshots so far
    <scratch>/train/<fingerprint>/finished/    the same of the last step that a longer training shares; see finished.py
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
from typing import Any

import torch

from ddpm.core import processes, seconds
from ddpm.core.files import InputError, atomic, first_line, remove_partial, sha256_tree, write_json, writing
from ddpm.core.params import PARAMS_FILE, PIPELINE_FILE, flatten
from ddpm.core.scratch import hold, scratch_root
from ddpm.core.yaml_files import read_yaml

STATE, FINISHED = "state.pt", "finished"
INPUTS = "inputs.json"  # of a kept state
FORMAT = 7  # of state.pt; raised when the states of older code cannot be used


def stage_inputs(stage: str, others: Sequence[str] = ()) -> dict[str, Any]:
    """Returns, by name, the params and the SHA-256 of each of the deps that dvc.yaml declares for the stage.

    others: further files and folders that the stage reads. Raises InputError if a path does not exist.
    """
    declared = read_yaml(PIPELINE_FILE)["stages"][stage]
    params = read_yaml(PARAMS_FILE)
    hashes = {dep: sha256_tree([dep]) for dep in (*declared["deps"], *others)}
    return flatten({name: params.get(name) for name in declared["params"]}) | hashes


def fingerprint(inputs: dict[str, Any]) -> str:
    """Returns the SHA-256 of what a stage computes from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


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
            return self._read(self.path, self.fingerprint)
        except Exception as error:  # a damaged archive can raise anything
            aside = self.folder.with_suffix(".damaged")  # outside of the folder, which the end of the training removes
            os.replace(self.path, aside)
            reason = f"not usable ({first_line(error)})"
            print(f"warning: {self.path}: {reason}; kept as {aside.name}, starting afresh", file=sys.stderr)
            return None

    def _read(self, path: Path, fingerprint: str) -> dict:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != fingerprint:
            raise ValueError("it belongs to another training")
        if state.get("format") != FORMAT:
            raise ValueError(f"its format is {state.get('format')}, not {FORMAT}")
        if differing := [f"{key} {state[key]} -> {value}" for key, value in self.environment.items() if state[key] != value]:
            changes = ", ".join(differing)
            print(f"warning: resumes with another {changes}; not bit-equal to an uninterrupted training", file=sys.stderr)
        seconds.resume(state.get("seconds", 0.0))
        return state

    def keep(self, state: dict, inputs: dict[str, Any]) -> None:
        """Keeps a state, the inputs of its training, and the previews and snapshots so far, also after `discard`."""
        kept = self.folder / FINISHED
        with writing(kept):
            shutil.rmtree(kept, ignore_errors=True)
            _link_folders(self.folder, kept)
        self.save(state, kept / STATE)
        write_json(kept / INPUTS, {"step": state["step"], "inputs": inputs})  # last: without it, the rest is not used

    def adopt(self, kept: Path) -> dict:
        """Returns the state that another training has kept in a folder, after making it that of this one.

        Raises InputError if it cannot be used.
        """
        try:
            state = self._read(kept / STATE, kept.parent.name)
        except Exception as error:  # as in `load`
            message = f"not usable ({first_line(error)}); set train.continue to false, to train from step 0"
            raise InputError(message, key=kept / STATE) from None
        with writing(self.folder):
            self._empty()
            _link_folders(kept, self.folder)
        self.save(state)
        return state

    def save(self, state: dict, path: Path | None = None) -> None:
        """Replaces the saved state, or that in another file, atomically."""
        own = {"fingerprint": self.fingerprint, "format": FORMAT, "seconds": seconds.elapsed()}
        buffer = io.BytesIO()
        torch.save({**state, **self.environment, **own}, buffer)
        # torch.save itself does not raise an OSError on a full disk.
        with atomic(path or self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def publish(self, name: str, target: Path) -> None:
        """Replaces `target` by a copy of the subfolder `name`, which includes files from before a kill."""
        with writing(target):
            shutil.rmtree(target, ignore_errors=True)
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, target)

    def discard(self) -> None:
        """Removes the state and releases the lock; what was kept stays."""
        self._empty()
        if not (self.folder / FINISHED).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _empty(self) -> None:
        # The state first: previews and snapshots without a state are harmless.
        for path in [self.path, *self.folder.iterdir()]:
            if path.name != FINISHED:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _link_folders(source: Path, target: Path) -> None:
    """Makes the folders in `source`, but for FINISHED, also folders of `target`."""
    for folder in [path for path in source.iterdir() if path.is_dir() and path.name != FINISHED]:
        shutil.copytree(folder, target / folder.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    # All files are replaced by renaming, so a second name of one takes no space and keeps its content.
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
