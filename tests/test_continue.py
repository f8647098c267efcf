"""`train.continue`: more steps after the end of a training are bit-equal to a training that began with all of them."""

import os
import shutil
from pathlib import Path

import dvclive  # noqa: F401 (here, so that no fork has to load it)
import pytest
import torch
from conftest import edit_params, error_of, link_code, prepared
from test_checkpoint import WHERE
from test_kills import SETTINGS, STEPS, attempt, results, same

import ddpm.plots.figures  # noqa: F401
import stages.train
from ddpm.core.yaml_files import read_yaml
from ddpm.training.checkpoint import FINISHED, STATE, ResumeState, fingerprint, stage_inputs
from ddpm.training.finished import Kept, find_kept, kept_states, prune
from ddpm.training.settings import Train

SHORT, COOLDOWN = 23, 6  # at SHORT, nothing is due but because it is the last step
LENGTHS = {"constant": SHORT - 1, "wsd": SHORT - COOLDOWN}  # schedule -> steps that both share


@pytest.fixture
def folder(workspace):
    """A workspace with data and code."""
    link_code()
    edit_params(**SETTINGS, **{"train.cooldown_steps": COOLDOWN})
    prepared()


def trained(point=None, count=1, **edits):
    """Trains with changed params, in a process that may die at this point; returns its exit status and output."""
    edit_params(**edits)
    return attempt(point, count)


@pytest.mark.parametrize(
    ("schedule", "killed"),
    [("wsd", ("between update and average", 1)), pytest.param("constant", ("by SIGTERM", 10), marks=pytest.mark.slow)],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_continued_training_is_bit_equal(folder, schedule, killed):
    assert trained(**{"train.lr_schedule": schedule})[0] == 0
    files, state = results()
    status, output = trained(**{"train.steps": SHORT})
    assert (status, "resuming" in output) == (0, False)
    (kept,) = kept_states()  # runtime.kept_states is 1
    assert (kept.step, kept.inputs["train.steps"]) == (LENGTHS[schedule], SHORT)
    status, output = trained(*killed, **{"train.steps": STEPS, "train.continue": True})
    assert status != 0
    assert f"train.continue: goes on after step {kept.step} of a training of {SHORT}\n" in output
    shutil.rmtree(kept.folder)  # now the state of this training has all
    status, output = attempt()
    assert status == 0, output
    assert f"resuming at step {kept.step + (killed[1] if killed[0] == 'by SIGTERM' else 0)} of {STEPS}" in output
    found, reached = results()
    config = "models/ddpm/config.json"
    assert found.pop(config) != files.pop(config)  # that says `continue`
    assert found.keys() == files.keys()
    assert [name for name in files if found[name] != files[name]] == []
    assert [key for key in state if key != "fingerprint" and not same(reached[key], state[key])] == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_nothing_is_continued_unasked(folder, refused):
    assert trained(**{"train.lr_schedule": "constant", "train.steps": 3, "train.snapshots": 0})[0] == 0
    (kept,) = kept_states()
    status, output = trained(**{"train.steps": 4})
    assert (status, "resuming" in output, "train.continue" in output) == (0, False, False)
    (newer,) = kept_states()
    assert newer.folder != kept.folder
    edit_params(**{"train.steps": 6, "train.continue": True, "train.learning_rate": 1e-4, "seed": 3, "runtime.log_seconds": 2})
    assert refused(stages.train.main).endswith(
        "the nearest, of 4 steps, differs in seed (0 there, 3 here), train.learning_rate (0.008 there, 0.0001 here); set it to "
        "false, to train from step 0"
    )
    edit_params(**{"train.learning_rate": 8e-3, "seed": 0, "train.steps": 3})
    assert refused(stages.train.main).startswith("params.yaml: train.steps: 3 is too few: the kept state is that of step 3, ")
    edit_params(**{"train.steps": 6})
    (newer.folder / STATE).write_bytes(b"damaged")
    assert refused(stages.train.main).startswith(f"{newer.folder / STATE}: not usable (")
    edit_params(**{"train.lr_schedule": "cosine"})
    assert refused(stages.train.main).startswith("params.yaml: train.lr_schedule: cosine depends on train.steps from the first ")
    # 0 keeps none, and removes what was kept.
    assert trained(**{"train.continue": False, "train.lr_schedule": "constant", "runtime.kept_states": 0})[0] == 0
    assert kept_states() == []
    edit_params(**{"train.continue": True, "train.steps": 7})
    assert refused(stages.train.main).startswith("params.yaml: train.continue: no state of a finished training is kept in ")


INPUTS = {"train.steps": 9, "train.learning_rate": 0.1, "ddpm/core": "a", "seed": 0}


class TestKept:
    def keep(self, name, step=8, **inputs):
        """Keeps a state of a training of this name, which then ends."""
        saved = ResumeState(name, WHERE)
        (saved.folder / "snapshots").mkdir()
        (saved.folder / "snapshots" / "step.safetensors").write_text(name)
        saved.keep({"step": step, "weights": torch.full((3,), float(step))}, {**INPUTS, **inputs})
        (saved.folder / "snapshots" / "later.safetensors").touch()
        saved.save({"step": step + 1})
        saved.discard()
        return saved

    def settings(self, **changes):
        train = {**read_yaml("params.yaml")["train"], "steps": 20, "lr_schedule": "constant", "continue": True}
        return Train(**{**train, **changes})

    def test_kept_state_outlives_its_training_and_begins_another(self, workspace):
        first = self.keep("a")
        assert [path.name for path in first.folder.iterdir()] == [FINISHED]
        second = ResumeState("b", WHERE)
        state = second.adopt(first.folder / FINISHED)
        assert (state["step"], state["weights"].tolist()) == (8, [8.0] * 3)
        assert [path.name for path in (second.folder / "snapshots").iterdir()] == ["step.safetensors"]
        shutil.rmtree(first.folder)
        assert second.load()["step"] == 8
        assert (second.folder / "snapshots" / "step.safetensors").read_text() == "a"

    def test_the_longest_that_fits_is_found(self, workspace):
        for step in (8, 12, 30):
            self.keep(f"{step}", step, **{"train.steps": step + 1, "train.lr_schedule": "wsd"})
        inputs = {**INPUTS, "train.steps": 20, "train.lr_schedule": "constant", "train.continue": True}
        assert find_kept(inputs, self.settings()).step == 12
        assert find_kept(inputs, self.settings(lr_schedule="wsd", cooldown_steps=11)).step == 8
        assert error_of(find_kept, inputs, self.settings(steps=5)).key == "train.steps"

    def test_differences_are_named_and_those_of_code_without_hashes(self):
        kept = Kept(Path(), 8, INPUTS)
        other = {**INPUTS, "train.steps": 50, "ddpm/core": "b", "train.new": 1, "initial weights": "c"}
        assert kept.differences(other) == ["ddpm/core", "train.new (none there, 1 here)", "initial weights"]

    def test_prune_keeps_the_newest_and_those_in_use(self, workspace):
        kept = [self.keep(name).folder / FINISHED for name in "abc"]
        for age, folder in enumerate(kept):
            os.utime(folder / "inputs.json", (10 - age, 10 - age))
        running = ResumeState("b", WHERE)
        prune(kept[0], 1)
        assert [folder.exists() for folder in kept] == [True, True, False]
        assert not kept[2].parent.exists()
        running.discard()
        prune(kept[0], 0)
        assert not any(folder.exists() for folder in kept)

    def test_inputs_are_the_params_data_and_code(self, workspace):
        link_code()
        prepared()
        inputs = stage_inputs("train")
        assert {"train.steps", "model.channel_mults", "seed", "data/prepared", "ddpm/training"} <= inputs.keys()
        edit_params(**{"train.steps": 5})
        assert {name for name, value in stage_inputs("train").items() if value != inputs[name]} == {"train.steps"}
        assert fingerprint(stage_inputs("train")) != fingerprint(inputs)
