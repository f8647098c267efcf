"""More steps after the end (`train.continue`): which kept state a training goes on from, and how many are kept.

A training of more steps is, up to the learning rate's decay, the same as a shorter one; only what happens because a step is the
last one differs. So the state after the last step that both share is kept (`Train.shared_steps`), and from there the longer
training is bit-equal to one that began at step 0.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.core.files import InputError, read_json
from ddpm.core.params import PARAMS_FILE
from ddpm.core.scratch import hold, scratch_root
from ddpm.training.checkpoint import FINISHED, INPUTS, ResumeState
from ddpm.training.settings import Train

# In these a training and the one that it continues may differ: `shared_steps` says how far both have the same learning rates.
LENGTH = {"train.steps", "train.lr_schedule", "train.cooldown_steps", "train.continue"}
MISSING, MAX_NAMED = "none", 4


class Kept(NamedTuple):
    """A kept state.

    folder: the folder that `ResumeState.keep` wrote.
    step: the number of steps after which it was saved.
    inputs: what its training computed from (`stage_inputs`).
    """

    folder: Path
    step: int
    inputs: dict[str, Any]

    def differences(self, inputs: dict[str, Any]) -> list[str]:
        """Returns the names of other inputs, LENGTH excepted; those of params with both values."""
        names = [name for name in {**inputs, **self.inputs} if name not in LENGTH]
        pairs = {name: (self.inputs.get(name, MISSING), inputs.get(name, MISSING)) for name in names}
        # Folders and files have a slash in their names, and hashes as values.
        return [
            name if "/" in name or name == "initial weights" else f"{name} ({theirs} there, {ours} here)"
            for name, (theirs, ours) in pairs.items()
            if theirs != ours
        ]


def kept_states() -> list[Kept]:
    """Returns all kept states, the newest last."""
    files = sorted(scratch_root().glob(f"train/*/{FINISHED}/{INPUTS}"), key=lambda path: path.stat().st_mtime)
    return [Kept(path.parent, **read_json(path, "train")) for path in files]


def find_kept(inputs: dict[str, Any], settings: Train) -> Kept:
    """Returns the kept state with the most steps that a training of these inputs can go on from.

    Raises InputError, which says what differs, if there is none.
    """
    settings.check_continue()
    kept = kept_states()
    if not kept:
        message = f"no state of a finished training is kept in {scratch_root() / 'train'}; set it to false, to train from step 0"
        raise InputError(message, key="train.continue", where=PARAMS_FILE)
    nearest = min(reversed(kept), key=lambda state: len(state.differences(inputs)))
    if differences := nearest.differences(inputs):
        named, more = ", ".join(differences[:MAX_NAMED]), len(differences) - MAX_NAMED
        what = f"of {nearest.inputs['train.steps']:,} steps, differs in {named}{f' and {more} more' if more > 0 else ''}"
        message = f"no kept training is the same but for its length; the nearest, {what}; set it to false, to train from step 0"
        raise InputError(message, key="train.continue", where=PARAMS_FILE)
    same = [state for state in kept if not state.differences(inputs)]
    fitting = [state for state in same if state.step <= settings.shared_steps]
    if not fitting:
        first = min(state.step for state in same)
        message = f"{settings.steps:,} is too few: the kept state is that of step {first:,}, before any cool-down; raise it"
        raise InputError(message, key="train.steps", where=PARAMS_FILE)
    return max(fitting, key=lambda state: state.step)


def begin(saved: ResumeState, inputs: dict[str, Any], settings: Train, fresh: bool) -> dict | None:
    """Returns the state that a training goes on from, None for step 0.

    It is the state of the same training, which was killed; without one, and only with `train.continue`, that of a finished one.
    fresh: discard the state of the same training.
    """
    state = saved.load(fresh)
    if state is None and settings.continue_:
        kept = find_kept(inputs, settings)
        state = saved.adopt(kept.folder)
        print(f"train.continue: goes on after step {kept.step:,} of a training of {kept.inputs['train.steps']:,}", flush=True)
    return state


def prune(newest: Path, count: int) -> None:
    """Removes the oldest kept states beyond `count`, but not those of running trainings. newest: the one that was kept last."""
    others = [state.folder for state in kept_states() if state.folder != newest]
    for folder in (others + [newest] * newest.exists())[: -count or None]:
        try:
            lock = hold(folder.parent, "a training")
        except InputError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        lock.release()
