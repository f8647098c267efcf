"""A training that is killed at any point, any number of times, ends bit-equal to an uninterrupted one.

Each attempt is a fork of this process, which has loaded PyTorch, so it starts at once.
"""

import errno
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import edit_params, link_code, prepared
from processes import at_call, die, in_fork

import stages.train
from ddpm.core.files import read_json
from ddpm.core.signals import STARTED
from ddpm.core.stage import run_stage
from ddpm.training.checkpoint import STATE, ResumeState
from ddpm.training.ema import EMA
from ddpm.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

STEPS = 40
SETTINGS = {
    "train.steps": STEPS, "train.batch_size": 8, "train.log_every": 3, "train.validate_every": 10, "train.preview_every": 20,
    "train.checkpoint_every": 7, "train.snapshot_every": 40, "train.snapshots": 3, "train.timestep_sampling": "importance",
    "train.flip": True, "model.dropout": 0.1, "diffusion.timesteps": 20, "diffusion.learned_variance": True,
}  # fmt: skip


def die_writing(path, data):
    with open(path, "wb") as file:
        file.write(bytes(data)[: len(data) // 2])
        file.flush()
    die()


def fail(error):
    raise error


def poison(trainer):
    trainer.flat.vector.grad[0] = float("nan")


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
# Points at which a training may end, each a function of n: it ends the n-th time it gets there.
POINTS = {
    "before a step": lambda n: at_call(n, Trainer, "train_step", die),
    "between gradient and update": lambda n: at_call(n, Trainer, "_update", die),
    "between update and average": lambda n: at_call(n, EMA, "update", die),
    "in the middle of a write": lambda n: at_call(1 + n // 3, Path, "write_bytes", die_writing),
    "before a rename": lambda n: at_call(n, os, "replace", die),
    "after a rename": lambda n: at_call(n, os, "replace", die, before=False),
    "while saving the state": lambda n: at_call(1 + n // 8, ResumeState, "save", die),
    "after saving the state": lambda n: at_call(1 + n // 8, ResumeState, "save", die, before=False),
    "before the state is removed": lambda n: at_call(1, ResumeState, "discard", die),
    "in a validation": lambda n: at_call(1 + n // 12, Trainer, "validation_loss", die),
    "at some time": lambda n: threading.Timer(n / 40, die).start(),
    "by a defect in a step": lambda n: at_call(n, Trainer, "_accumulate", lambda *_: fail(ZeroDivisionError("a defect"))),
    "by a gradient that is no number": lambda n: at_call(n, Trainer, "_update", poison),
    "by a full disk": lambda n: at_call(1 + n // 3, Path, "write_bytes", lambda *_: fail(NO_SPACE)),
    "by SIGTERM": lambda n: at_call(n, Trainer, "_update", lambda *_: os.kill(os.getpid(), signal.SIGTERM)),
    "by SIGINT": lambda n: at_call(n, Trainer, "_update", lambda *_: os.kill(os.getpid(), signal.SIGINT)),
}


def attempt(point=None, count=1):
    """Runs the stage in a process that may die at this point; returns its exit status, -N for signal N, and its output."""

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        at_call(1, ResumeState, "discard", lambda saved: Path("end.pt").write_bytes(saved.path.read_bytes()))
        if point:
            POINTS[point](count)
        run_stage(stages.train.main)

    return in_fork(work)


def results():
    """The results of a training: bytes of the model and of the curves, and the last state."""
    files = [
        *Path("models/ddpm").rglob("*"),
        *Path("reports/train/plots").rglob("*.tsv"),
        *Path("reports/train/previews").iterdir(),
    ]
    state = torch.load("end.pt", weights_only=True)
    del state["speed"], state["seconds"]
    return {str(path): path.read_bytes() for path in files if path.is_file()}, state


def same(a, b):
    """Whether two nests of dicts, lists and tensors are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same(actual, expected):
    assert actual[0].keys() == expected[0].keys()
    assert [name for name, data in expected[0].items() if actual[0][name] != data] == []
    assert [key for key in expected[1] if not same(actual[1][key], expected[1][key])] == []


UNINTERRUPTED = []


@pytest.fixture
def straight(workspace):
    """A workspace with data, and the results of an uninterrupted training, which runs once."""
    link_code()
    edit_params(**SETTINGS)
    prepared()
    if not UNINTERRUPTED:
        status, output = attempt()
        assert status == 0, output
        UNINTERRUPTED.append(results())
    return UNINTERRUPTED[0]


def until_done(points):
    """Runs attempts that die at each (point, count), then one that does not; returns how many ended early."""
    ended = 0
    for point, count in points:
        status, output = attempt(point, count)
        ended += status != 0
        if point.startswith("by SIG") and status:
            assert status == 128 + getattr(signal, point.removeprefix("by ")), output
            assert "its state is saved" in output
        if point == "by a full disk" and status:
            assert "error: " in output
            assert "no space left on the device: free some and run again" in output
            assert "Traceback" not in output
        if point == "by a defect in a step" and status:
            assert "a defect" in output
    status, output = attempt()
    assert status == 0, output
    return ended


def test_killed_training_is_bit_equal(straight):
    assert until_done([("in the middle of a write", 9), ("by SIGTERM", 5), ("between update and average", 13)]) == 3
    assert_same(results(), straight)
    assert not list(Path(".scratch/train").glob("*/*"))


def test_training_killed_at_its_end_writes_everything(straight):
    assert until_done([("before the state is removed", 1)]) == 1
    assert_same(results(), straight)


def test_signal_saves_the_state_of_the_step(straight):
    assert attempt("by SIGINT", 11)[0] == 130
    (state,) = Path(".scratch/train").glob(f"*/{STATE}")
    saved = torch.load(state, weights_only=True)
    assert saved["step"] == 11
    second = time.monotonic() - STARTED
    status, output = attempt()
    assert status == 0
    assert f"resuming at step 11 of {STEPS}" in output
    assert_same(results(), straight)
    # Both processes count from the start of the one from which they were forked.
    assert read_json("reports/seconds/train.json", "train")["seconds"] >= saved["seconds"] + second


def test_nonfinite_gradient_ends_with_one_line_and_keeps_the_state(straight):
    status, output = attempt("by a gradient that is no number", 12)
    assert status == 1
    assert "Traceback" not in output
    assert "error: train: the loss or its gradient is not finite at step 12" in output
    (state,) = Path(".scratch/train").glob(f"*/{STATE}")
    kept = torch.load(state, weights_only=True)
    assert kept["step"] == 7
    assert all(value.isfinite().all() for value in (*kept["network"].values(), *kept["ema"].values()))
    assert [row["step"] for row in kept["history"]] == [3, 6]
    assert len(Path("reports/train/plots/metrics/loss.tsv").read_text().splitlines()) == 1 + len([3, 6, 9])
    assert until_done([]) == 0
    assert_same(results(), straight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_kills_at_random_points(straight, seed):
    """Ten trainings, each killed several times; every point occurs at least twice."""
    chance = random.Random(seed)
    names = list(POINTS)
    chosen = [names[(seed + k) % len(names)] for k in (0, 4, 8, 12)] + chance.choices(names)
    ended = until_done([(point, chance.randint(1, STEPS // 2)) for point in chosen])
    assert ended >= 3
    assert_same(results(), straight)
