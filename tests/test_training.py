"""Training: resuming is exact, averages ramp up, and the network learns."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_unet import settings as unet_settings

from ddpm.data.batches import Batches
from ddpm.data.prepared import Split
from ddpm.diffusion.levels import LEVEL_DRAWS
from ddpm.diffusion.schedule import make_schedule
from ddpm.files import InputError
from ddpm.networks.unet import UNet
from ddpm.training.checkpoint import ResumeState, stage_fingerprint
from ddpm.training.ema import EMA
from ddpm.training.loop import LR_SCHEDULES, Train, Trainer, train

CPU = torch.device("cpu")
SETTINGS = {
    "steps": 12, "batch_size": 16, "learning_rate": 2e-3, "lr_schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.01,
    "gradient_clip": 1.0, "ema_decay": 0.9, "loss_weight": "v", "loss_gamma": "auto", "levels": "uniform",
    "label_dropout": 0.1, "flip": True, "log_every": 4, "validate_every": 6, "preview_every": 5, "checkpoint_every": 5,
}  # fmt: skip


def make_split(count=100, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return Split(images, np.arange(count) % 10)


def make_trainer(seed=0, prediction="v", learned_variance=False, **changes):
    torch.manual_seed(seed)
    network = UNet(unet_settings(dropout=0.2), (8, 8, 1), classes=10, outputs=2 if learned_variance else 1)
    options = Train(**{**SETTINGS, **changes})
    batches = Batches(*make_split(), seed, CPU, options.flip)
    return Trainer(network, make_schedule("cosine", 100), prediction, batches, options, seed, nullcontext)


def run(trainer, checkpoint=lambda trainer: None, rows=None):
    log = (lambda row: None) if rows is None else rows.append
    train(trainer, make_split(30, 1), log, lambda trainer: None, checkpoint)
    return trainer


def assert_same_state(a, b):
    for key in ("network", "ema", "best"):
        for name, value in a.state_dict()[key].items():
            assert torch.equal(value, b.state_dict()[key][name]), f"{key} {name}"
    for one, other in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert a.history == b.history
    assert a.best_loss == b.best_loss


@pytest.mark.parametrize(
    ("stop", "changes"),
    [(1, {}), (4, {}), (5, {}), (11, {}), (5, {"levels": "importance", "learned_variance": True}), (5, {"levels": "stratified"})],
)
def test_a_resumed_training_is_bit_equal_to_a_straight_one(stop, changes, tmp_path, monkeypatch):
    # So that levels are drawn by importance before and after the stop.
    monkeypatch.setattr("ddpm.diffusion.levels.Importance.WARMUP", 0)
    straight = run(make_trainer(**changes))

    state = ResumeState("abc", tmp_path)

    def checkpoint(trainer):
        state.save(trainer.state_dict())
        if trainer.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_trainer(checkpoint_every=1, **changes), checkpoint)
    torch.manual_seed(999)
    resumed = make_trainer(seed=0, **changes)
    # Whatever the fresh network holds must not matter.
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.add_(1)
    resumed.load_state_dict(state.load(CPU))
    assert resumed.step == stop
    assert_same_state(run(resumed), straight)
    assert [row["step"] for row in resumed.history] == [4, 6, 8, 12]


def test_seeds_and_steps_decide_everything():
    assert_same_state(run(make_trainer()), run(make_trainer()))
    other = run(make_trainer(seed=1))
    assert other.history != run(make_trainer()).history


def test_rows_hold_the_mean_loss_since_the_last_row():
    rows = []
    trainer = run(make_trainer(), rows=rows)
    assert rows == trainer.history
    single = []
    run(make_trainer(log_every=1), rows=single)
    losses = [row["loss"] for row in single]
    assert rows[0]["loss"] == pytest.approx(np.mean(losses[:4]), rel=1e-6)
    assert [row["validation_loss"] for row in rows if "validation_loss" in row][-1] >= trainer.best_loss
    assert rows[1].keys() == {"step", "validation_loss"}


def test_best_is_the_average_with_the_lowest_validation_loss():
    found = {}

    def checkpoint(trainer):
        found[trainer.step] = trainer.ema_weights()

    trainer = run(make_trainer(validate_every=3, checkpoint_every=3), checkpoint)
    losses = {row["step"]: row["validation_loss"] for row in trainer.history if "validation_loss" in row}
    best = min(losses, key=losses.get)
    assert trainer.best_loss == losses[best]
    assert all(torch.equal(value, found[best][name]) for name, value in trainer.best.items())


def test_the_loss_falls_on_images_with_structure():
    trainer = make_trainer(steps=150, log_every=50, validate_every=75, ema_decay=0.99)
    trainer.batches = Batches(np.full((50, 8, 8, 1), 200, np.uint8), np.zeros(50, np.int64), 0, CPU)
    train(trainer, Split(np.full((20, 8, 8, 1), 200, np.uint8), np.zeros(20, np.int64)), print, lambda t: None, lambda t: None)
    losses = [row["loss"] for row in trainer.history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.history[-1]["validation_loss"] < 0.5 * losses[0]


@pytest.mark.parametrize("learned_variance", [False, True])
@pytest.mark.parametrize("levels", LEVEL_DRAWS)
@pytest.mark.parametrize(("prediction", "weight"), [("eps", "simple"), ("x0", "min_snr"), ("v", "p2"), ("flow", "v")])
def test_the_loss_falls_whatever_is_predicted_weighted_and_drawn(prediction, weight, levels, learned_variance):
    options = {"steps": 40, "log_every": 10, "warmup_steps": 1, "loss_weight": weight, "levels": levels}
    trainer = run(make_trainer(prediction=prediction, learned_variance=learned_variance, **options))
    losses = [row["validation_loss"] for row in trainer.history if "validation_loss" in row]
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_stops_with_the_step():
    trainer = make_trainer(log_every=1)
    with torch.no_grad():
        trainer.network.first.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"the loss is nan at step 1; lower train\.learning_rate"):
        run(trainer)


def test_learning_rate_warms_up_and_falls_to_zero():
    trainer = make_trainer(steps=103, warmup_steps=3)
    rates = [trainer.learning_rate(step) for step in range(103)]
    assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
    assert rates[53] == pytest.approx(1e-3)
    assert rates[-1] < 1e-6
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))
    assert LR_SCHEDULES["constant"](0.7) == 1


def test_labels_are_dropped_at_their_rate():
    trainer = make_trainer(label_dropout=0.3)
    torch.manual_seed(0)
    dropped = trainer.drop_labels(torch.arange(20_000) % 10)
    assert (dropped == 10).double().mean() == pytest.approx(0.3, abs=0.015)
    kept = dropped != 10
    assert torch.equal(dropped[kept], (torch.arange(20_000) % 10)[kept])


def test_ema_ramps_up_and_then_averages():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    ema = EMA(layer, 0.9)
    expected = 0.0
    for step in range(1, 200):
        layer.weight.data.fill_(float(step))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(ema.state_dict()["weight"]) == pytest.approx(expected, rel=1e-5)
    assert layer.weight.item() == 199


def test_swapping_ema_weights_in_and_out_changes_nothing():
    trainer = run(make_trainer())
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with trainer.averaged() as network:
        assert not network.training
        for name, value in trainer.best.items():
            assert value.shape == dict(network.named_parameters())[name].shape
        assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert trainer.network.training
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


class TestResumeState:
    def test_it_is_locked_and_released(self, tmp_path):
        state = ResumeState("abc", tmp_path)
        with pytest.raises(InputError, match="another training with the same params, data and code is running"):
            ResumeState("abc", tmp_path)
        ResumeState("other", tmp_path)
        state.save({"step": 1})
        state.discard()
        assert not (tmp_path / "train" / "abc").exists()
        assert ResumeState("abc", tmp_path).load(CPU) is None

    @pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
    def test_a_damaged_state_is_named_and_set_aside(self, tmp_path, capsys, damage):
        state = ResumeState("abc", tmp_path)
        state.save({"step": 1, "weights": torch.zeros(1000)})
        if damage == "truncated":
            state.path.write_bytes(state.path.read_bytes()[:500])
        elif damage == "empty":
            state.path.write_bytes(b"")
        else:
            torch.save({"step": 1, "fingerprint": "other"}, state.path)
        assert state.load(CPU) is None
        assert not state.path.exists()
        assert state.path.with_suffix(".damaged").exists()
        err = capsys.readouterr().err
        assert err.startswith(f"warning: {state.path}: not usable (")
        assert len(err.splitlines()) == 1

    def test_a_failed_write_keeps_the_old_state(self, tmp_path):
        state = ResumeState("abc", tmp_path)
        state.save({"step": 1})
        with pytest.raises(Exception, match="pickle"):
            state.save({"step": lambda: None})
        assert state.load(CPU)["step"] == 1
        assert sorted(path.name for path in state.folder.iterdir()) == ["lock", "state.pt"]


def test_the_fingerprint_follows_params_data_and_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {params: [train, seed], deps: [code, data.bin]}}")
    (tmp_path / "params.yaml").write_text("train: {lr: 1}\nseed: 0\nruntime: {threads: 1}\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1")
    (tmp_path / "data.bin").write_bytes(b"1")
    first = stage_fingerprint("train")
    (tmp_path / "params.yaml").write_text("train: {lr: 1}\nseed: 0\nruntime: {threads: 2}\n")
    (tmp_path / "code" / "__pycache__").mkdir()
    (tmp_path / "code" / "__pycache__" / "a.pyc").write_bytes(b"")
    assert stage_fingerprint("train") == first
    found = {first}
    (tmp_path / "params.yaml").write_text("train: {lr: 2}\nseed: 0\n")
    found.add(stage_fingerprint("train"))
    (tmp_path / "code" / "a.py").write_text("x = 2")
    found.add(stage_fingerprint("train"))
    (tmp_path / "data.bin").write_bytes(b"2")
    found.add(stage_fingerprint("train"))
    assert len(found) == 4
