"""Training: exact resume, EMA, non-finite gradients, signals, and a loss that decreases."""

import itertools
import os
import signal

import numpy as np
import pytest
import torch
from test_unet import settings as unet_settings
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.core.files import InputError
from ddpm.core.stage import Interrupted
from ddpm.data.loader import Batches
from ddpm.data.prepared import Split
from ddpm.datasets.registry import DIGITS
from ddpm.diffusion.schedule import make_schedule
from ddpm.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from ddpm.networks.unet import UNet
from ddpm.training.checkpoint import ResumeState, fingerprint, stage_inputs
from ddpm.training.ema import ALIGNMENT, EMA, FlatParameters, ramped
from ddpm.training.loop import STEP_PHASES, Hooks, train
from ddpm.training.monitor import QUARTERS, stop_signals
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

CPU = torch.device("cpu")
WHERE = {"device": "cpu"}
SETTINGS = {
    "steps": 12, "batch_size": 16, "optimizer": "muon", "learning_rate": 2e-3, "lr_schedule": "cosine", "warmup_steps": 3,
    "weight_decay": 0.01, "gradient_clip": 1.0, "ema_decay": 0.9, "loss_weight": "v", "loss_gamma": "auto",
    "timestep_sampling": "uniform", "condition_dropout": 0.1, "flip": True, "augment": 0.0, "log_every": 4, "validate_every": 6,
    "preview_every": 5, "checkpoint_every": 5, "gradient_accumulation": 1, "max_nonfinite_skips": 0,
    "snapshot_every": 64, "snapshots": 2, "score_every": 0, "score_samples": 20, "score_steps": 3, "best_by": "validation_loss",
    "init": "none", "init_checkpoint": "final", "continue": False, "cooldown_steps": 4,
}  # fmt: skip


def make_split(count=100, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return Split(images, np.arange(count) % 10)


def make_trainer(seed=0, prediction="v", learned_variance=False, dropout=0.2, conditioning="class", **changes):
    torch.manual_seed(seed)
    shape = unet_settings(dropout=dropout, conditioning=conditioning)
    options, outputs = Train(**{**SETTINGS, **changes}), 2 if learned_variance else 1
    network = UNet(shape, (8, 8, 1), class_names=DIGITS, outputs=outputs, augmented=options.augment > 0)
    batches = Batches(*make_split(), seed, CPU, options.flip)
    return Trainer(network, make_schedule("cosine", 100), prediction, batches, options, seed)


def run(trainer, checkpoint=lambda trainer: None, log=lambda row: None, score=None):
    train(trainer, make_split(30, 1), Hooks(log=log, checkpoint=checkpoint), score)
    return trainer


def validation_losses(trainer):
    return [row["validation_loss"] for row in trainer.history if "validation_loss" in row]


@pytest.fixture(scope="module")
def straight():
    """An uninterrupted training with the default settings of this file."""
    return run(make_trainer())


def assert_same_state(a, b):
    one, other = a.state_dict(), b.state_dict()
    tensors = {key: one[key] for key in ("network", "ema", "best")} | one["tracks"]
    others = {key: other[key] for key in ("network", "ema", "best")} | other["tracks"]
    for key, weights in tensors.items():
        assert all(torch.equal(value, others[key][name]) for name, value in weights.items()), key
    for mine, others in zip(a.optimizers, b.optimizers, strict=True):
        for one, other in zip(mine.state.values(), others.state.values(), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert a.history == b.history
    assert a.best_value == b.best_value


def conditioned(conditioning, count=20_000, seed=0, mine=slice(None), **changes):
    """Images and classes of a batch, the trainer, and the conditioning of a share of the batch."""
    trainer = make_trainer(conditioning=conditioning, batch_size=count, **changes)
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    labels = torch.arange(count) % 10
    torch.manual_seed(seed)
    return images, labels, trainer, *trainer.conditioning(images[mine], labels[mine], mine)


class TestConditioning:
    @pytest.mark.parametrize(("conditioning", "rate"), [("text", 0.0), ("text+mask", 0.3)])
    def test_captions_are_of_the_class_and_dropped_at_their_rate(self, conditioning, rate):
        _, labels, trainer, ids, _ = conditioned(conditioning, condition_dropout=rate)
        dropped = ids.count_nonzero(1) == 1
        assert dropped.double().mean() == pytest.approx(rate, abs=0.015)
        content = trainer.network.condition
        for digit in range(10):
            valid = {tuple(row) for row in content.captions[digit].tolist()}
            rows = [tuple(row) for row in ids[(labels == digit) & ~dropped].tolist()]
            assert set(rows) == valid
            assert len(valid) == 20
            # 1/20 of 1,400 or more, within four standard deviations.
            shares = [rows.count(row) / len(rows) for row in valid]
            assert shares == pytest.approx([0.05] * 20, abs=0.024)

    @pytest.mark.parametrize(("conditioning", "rate"), [("mask", 0.3), ("class+mask", 0.0), ("text+mask", 0.3)])
    def test_known_pixels_are_those_of_the_image_and_dropped_at_their_rate(self, conditioning, rate):
        images, _, _, _, known = conditioned(conditioning, condition_dropout=rate)
        assert known.shape == (20_000, 2, 8, 8)
        mask = known[:, 1:]
        assert set(mask.unique().tolist()) == {0, 1}
        assert torch.equal(known[:, :1], images * mask)
        # On 8x8 pixels, few of the random masks have no known pixel.
        assert (mask.sum((1, 2, 3)) == 0).double().mean() == pytest.approx(rate + 0.008 * (1 - rate), abs=0.015)

    def test_labels_are_dropped_at_their_rate(self):
        _, labels, _, dropped, known = conditioned("class", condition_dropout=0.3)
        assert known is None
        assert (dropped == 10).double().mean() == pytest.approx(0.3, abs=0.015)
        assert torch.equal(dropped[dropped != 10], labels[dropped != 10])

    def test_label_and_mask_are_dropped_independently(self):
        _, _, _, labels, known = conditioned("class+mask", condition_dropout=0.5)
        both = ((labels == 10) & (known[:, 1].sum((1, 2)) == 0)).double().mean()
        assert both == pytest.approx(0.25, abs=0.02)

    @pytest.mark.parametrize("conditioning", ["class", "mask", "text+mask"])
    def test_share_of_a_batch_equals_the_part_of_the_whole(self, conditioning):
        *_, labels, known = conditioned(conditioning, 50)
        for mine in (slice(0, 17), slice(17, 34), slice(34, 50)):
            *_, labels_of_part, known_of_part = conditioned(conditioning, 50, mine=mine)
            assert torch.equal(labels_of_part, labels[mine])
            assert (known is None) == (known_of_part is None)
            assert known is None or torch.equal(known_of_part, known[mine])
        *_, other_labels, other_known = conditioned(conditioning, 50, seed=1)
        assert not torch.equal(other_labels, labels) or conditioning == "mask"
        assert known is None or not torch.equal(other_known[:, 1], known[:, 1])

    def test_network_without_conditioning_gets_labels_only(self):
        *_, trainer, labels, known = conditioned("none", 50)
        assert known is None
        assert not trainer.network.takes_labels
        assert labels.shape == (50,)

    def test_validation_loss_is_reproducible(self):
        trainer = make_trainer(conditioning="text+mask")
        for _ in range(3):
            trainer.train_step()
        losses = []
        for seed in range(2):
            torch.manual_seed(seed)
            losses.append(trainer.validation_loss(make_split(30, 1)))
        assert losses[0] == losses[1]


def test_known_pixels_lower_the_loss():
    """Of random images only the known pixels can be predicted."""
    options = {"steps": 120, "dropout": 0.0, "log_every": 60, "validate_every": 120, "learning_rate": 5e-3, "ema_decay": 0.9}
    without, with_mask = (run(make_trainer(conditioning=name, prediction="x0", **options)) for name in ("none", "mask"))
    assert with_mask.history[-1]["validation_loss"] < 0.93 * without.history[-1]["validation_loss"]


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (1, {}), (11, {}), (5, {"timestep_sampling": "importance", "learned_variance": True}),
        (4, {"timestep_sampling": "stratified"}), (5, {"conditioning": "text+mask"}),
        (7, {"conditioning": "mask", "augment": 0.3}),
    ],
)  # fmt: skip
def test_resumed_training_is_bit_equal(stop, changes, tmp_path, monkeypatch):
    # Importance sampling is then active before and after the stop.
    monkeypatch.setattr("ddpm.diffusion.timestep_sampling.LossAwareTimesteps.WARMUP", 0)
    straight = run(make_trainer(**changes))

    state = ResumeState("abc", WHERE, tmp_path)

    def checkpoint(trainer):
        state.save(trainer.state_dict())
        if trainer.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_trainer(checkpoint_every=1, **changes), checkpoint)
    torch.manual_seed(999)
    resumed = make_trainer(seed=0, **changes)
    # The initial weights of the resumed network must not matter.
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.add_(1)
    resumed.load_state_dict(state.load())
    assert resumed.step == stop
    assert_same_state(run(resumed), straight)
    assert [row["step"] for row in resumed.history] == [4, 6, 8, 12]


def test_training_depends_on_the_seed_alone(straight):
    rows = []
    again = run(make_trainer(), log=rows.append)
    assert_same_state(again, straight)
    assert rows == again.history
    assert run(make_trainer(seed=1)).history != straight.history


def test_history_has_the_mean_loss_since_the_last_row(straight):
    rows, trainer = straight.history, straight
    losses = [row["loss"] for row in run(make_trainer(log_every=1)).history if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(np.mean(losses[:4]), rel=1e-6)
    assert validation_losses(trainer)[-1] >= trainer.best_value
    assert rows[1].keys() == {"step", "validation_loss"}


@pytest.mark.parametrize(("levels", "names"), [([25, 26], {"0_25", "25_50"}), ([1, 50, 75, 76, 100], set(QUARTERS))])
def test_history_has_the_loss_by_quarter_of_the_levels(levels, names, monkeypatch):
    trainer = make_trainer()
    batch = trainer.settings.batch_size
    index = torch.tensor(levels).repeat(batch)[:batch]
    monkeypatch.setattr(trainer.timesteps, "draw", lambda count: (index, torch.ones(batch)))
    trainer.train_step()
    row = trainer.sums.read()
    assert {name.removeprefix("loss_t/") for name in row if name.startswith("loss_t/")} == names
    shares = {name: sum((level - 1) * 4 // 100 == i for level in index.tolist()) / batch for i, name in enumerate(QUARTERS)}
    assert row["loss"] == pytest.approx(sum(shares[name] * row[f"loss_t/{name}"] for name in names), rel=1e-5)


def test_best_is_the_ema_with_the_lowest_validation_loss():
    saved = {}

    def checkpoint(trainer):
        saved[trainer.step] = trainer.ema_weights()

    trainer = run(make_trainer(validate_every=3, checkpoint_every=3), checkpoint)
    losses = {row["step"]: row["validation_loss"] for row in trainer.history if "validation_loss" in row}
    best = min(losses, key=losses.get)
    assert trainer.best_value == losses[best]
    assert all(torch.equal(value, saved[best][name]) for name, value in trainer.best.items())


def test_best_is_the_ema_with_the_lowest_fid(straight):
    """The score draws random numbers, which change no step, and is lowest where the validation loss is not."""
    saved, seen, values = {}, {}, iter([3.0, 1.0, 2.0])

    def score():
        weights = {name: value.clone() for name, value in trainer.network.named_parameters()}
        seen[trainer.step] = trainer.network.training, weights
        return next(values) + 0 * torch.rand(1).item()

    trainer = make_trainer(score_every=5, checkpoint_every=5, best_by="fid")
    run(trainer, lambda trainer: saved.update({trainer.step: trainer.ema_weights()}), score=score)
    assert [(row["step"], row["fid"]) for row in trainer.history if "fid" in row] == [(5, 3.0), (10, 1.0), (12, 2.0)]
    assert trainer.best_value == 1.0
    assert all(torch.equal(value, saved[10][name]) for name, value in trainer.best.items())
    for step, (training, weights) in seen.items():
        assert not training
        assert all(torch.equal(value, saved[step][name]) for name, value in weights.items())
    for key in ("network", "ema"):
        assert all(torch.equal(value, straight.state_dict()[key][name]) for name, value in trainer.state_dict()[key].items())
    assert any(not torch.equal(value, straight.best[name]) for name, value in trainer.best.items())


def test_loss_decreases_on_equal_images():
    trainer = make_trainer(steps=150, log_every=50, validate_every=75, ema_decay=0.99)
    trainer.batches = Batches(np.full((50, 8, 8, 1), 200, np.uint8), np.zeros(50, np.int64), 0, CPU)
    train(trainer, Split(np.full((20, 8, 8, 1), 200, np.uint8), np.zeros(20, np.int64)), Hooks())
    losses = [row["loss"] for row in trainer.history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.history[-1]["validation_loss"] < 0.5 * losses[0]


@pytest.mark.parametrize("learned_variance", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("prediction", "weight", "sampling"),
    [
        ("eps", "simple", "uniform"), ("x0", "min_snr", "stratified"), ("v", "p2", "importance"), ("flow", "v", "uniform"),
        ("v", "v", "stratified"), ("eps", "min_snr", "importance"),
    ],
)  # fmt: skip
def test_loss_decreases_for_each_prediction_weight_and_sampler(prediction, weight, sampling, learned_variance):
    options = {"steps": 40, "log_every": 10, "warmup_steps": 1, "loss_weight": weight, "timestep_sampling": sampling}
    trainer = run(make_trainer(prediction=prediction, learned_variance=learned_variance, **options))
    losses = validation_losses(trainer)
    assert losses[-1] < losses[0]


def spoil(trainer, steps, value=float("nan")):
    """Make the gradient of these steps, from 1, not finite."""
    parameter = trainer.network.conv_in.weight
    parameter.register_hook(lambda grad: grad * value if trainer.step + 1 in steps else grad)
    return trainer


def test_nonfinite_loss_stops_with_its_step():
    trainer = make_trainer(log_every=1)
    with torch.no_grad():
        trainer.network.conv_in.weight.fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"^train: .* not finite at step 1; lower train\.learning_rate .* The last good state is kept"
    ):
        run(trainer)
    assert trainer.history == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_updates_are_skipped_up_to_the_limit(value):
    trainer = spoil(make_trainer(max_nonfinite_skips=2, log_every=1, weight_decay=0.0), {3, 4, 7}, value)
    weights = {}

    def note(trainer):
        weights[trainer.step] = [p.detach().clone() for p in trainer.network.parameters()]

    trainer.settings = trainer.settings.model_copy(update={"checkpoint_every": 1})
    run(trainer, note)
    pairs = {step: zip(weights[step], weights[step - 1], strict=True) for step in range(2, 13)}
    still = {step for step, weights_of in pairs.items() if all(torch.equal(a, b) for a, b in weights_of)}
    assert still == {3, 4, 7}
    assert all(parameter.isfinite().all() for parameter in weights[12])
    assert {row["step"] for row in trainer.history if "loss" not in row} == {3, 4, 7}
    assert all(np.isfinite(value) for row in trainer.history for value in row.values())


def test_one_nonfinite_update_too_many_stops_with_its_step():
    trainer = spoil(make_trainer(max_nonfinite_skips=2, log_every=1), {2, 3, 5, 6, 7, 9})
    with pytest.raises(InputError, match="not finite at step 7, and 3 in a row are too many; "):
        run(trainer)
    assert [row["step"] for row in trainer.history] == [1, 2, 3, 4, 5, 6]


def test_streak_of_skipped_updates_survives_a_resume():
    trainer = spoil(make_trainer(max_nonfinite_skips=2), {4, 5, 6})
    for _ in range(5):
        trainer.train_step()
    resumed = spoil(make_trainer(max_nonfinite_skips=2), {6})
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(InputError, match="at step 6"):
        run(resumed)


def test_float16_scaler_finds_its_scale():
    trainer = make_trainer(steps=30, log_every=10, warmup_steps=1)
    trainer.autocast = lambda: torch.autocast("cpu", torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    trainer.guard.allowed = 24
    run(trainer)
    assert trainer.scaler.get_scale() < 2.0**40
    losses = validation_losses(trainer)
    assert losses[-1] < losses[0]
    state = trainer.state_dict()["scaler"]
    again = make_trainer(steps=30)
    again.scaler = torch.amp.GradScaler("cpu")
    again.load_state_dict(trainer.state_dict())
    assert again.scaler.state_dict() == state


def assert_close_state(whole, split, **tolerance):
    for key in ("network", "ema"):
        torch.testing.assert_close(split.state_dict()[key], whole.state_dict()[key], **tolerance)
    for a, b in zip(whole.history, split.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("parts", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("levels", TIMESTEP_SAMPLERS)
def test_gradient_accumulation_gives_the_same_weights(parts, levels, monkeypatch):
    """k parts of b images equal one batch of k b images, EMA included."""
    monkeypatch.setattr("ddpm.diffusion.timestep_sampling.LossAwareTimesteps.WARMUP", 0)
    # Adam's first steps divide by gradients near 0, which magnifies their rounding; a long warm-up keeps them small.
    options = {"dropout": 0.0, "timestep_sampling": levels, "warmup_steps": 12}
    whole, split = (run(make_trainer(gradient_accumulation=n, **options)) for n in (1, parts))
    assert_close_state(whole, split, rtol=1e-4, atol=2e-6)


def test_gradient_accumulation_keeps_the_conditioning():
    """As above; AdamW follows the last digits of a gradient near 0."""
    options = {"dropout": 0.0, "conditioning": "text+mask", "augment": 0.3}
    whole, split = (run(make_trainer(gradient_accumulation=n, **options)) for n in (1, 3))
    assert_close_state(whole, split, rtol=1e-3, atol=5e-5)


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that reads a value back from the device."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function.overloadpacket.__name__ not in self.WAITING, f"{function} waits for the device"
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    "changes",
    [{"timestep_sampling": name, "learned_variance": True} for name in TIMESTEP_SAMPLERS]
    + [{"conditioning": name} for name in ("none", "class", "text+mask")]
    + [{"augment": 0.3}],
    ids=str,
)
def test_train_step_reads_nothing_back_from_the_device(changes):
    trainer = make_trainer(**changes, gradient_accumulation=2)
    trainer.train_step()
    with NoWaiting():
        for _ in range(3):
            trainer.train_step()
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        trainer.guard.check()


def test_signal_writes_a_checkpoint_first(tmp_path, straight):
    for number in (signal.SIGTERM, signal.SIGINT):
        state = ResumeState(f"fingerprint{number}", WHERE, tmp_path)
        trainer = make_trainer(checkpoint_every=100)
        trainer.network.conv_out.weight.register_hook(lambda grad: os.kill(os.getpid(), number) if trainer.step == 6 else None)  # noqa: B023
        with pytest.raises(Interrupted, match="stopped at step 7; its state is saved") as stopped:
            run(trainer, lambda trainer: state.save(trainer.state_dict()))  # noqa: B023
        assert stopped.value.number == number
        resumed = make_trainer(checkpoint_every=100)
        resumed.load_state_dict(state.load())
        assert resumed.step == 7
        assert_same_state(run(resumed), straight)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("hook", "stopped", "saved"), [("log", 3, [3]), ("checkpoint", 6, [5, 6])])
def test_signal_during_a_write_is_not_lost(hook, stopped, saved):
    """A signal during the log stops after this step's checkpoint; one during a checkpoint, after that of the next step."""
    states = []

    def end(trainer=None):
        if states[-1:] != [5] or hook == "checkpoint":
            os.kill(os.getpid(), signal.SIGTERM)

    def checkpoint(trainer):
        states.append(trainer.step)
        if hook == "checkpoint":
            end()

    log = (lambda row: end()) if hook == "log" else (lambda row: None)
    with pytest.raises(Interrupted, match=f"stopped at step {stopped};"):
        run(make_trainer(log_every=3, checkpoint_every=5, validate_every=50), checkpoint, log)
    assert states == saved


def test_second_signal_kills_at_once_unless_it_is_a_duplicate():
    pid = os.fork()
    if pid == 0:
        with stop_signals() as noted:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            if noted.number == signal.SIGTERM:
                noted.time -= 2
                os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM


def test_time_is_measured_by_phase(straight):
    assert [row["step"] for row in straight.speed] == [4, 8, 12]
    for row in straight.speed:
        per_step = sum(row[f"{name}_ms"] for name in STEP_PHASES)
        assert row["images_per_second"] == pytest.approx(1000 * 16 / per_step, rel=1e-6)
    assert {"data", "forward", "backward", "update", "validation"} <= set(straight.phases.seconds)
    assert "backward" in straight.phases.summary()


def test_learning_rate_warms_up_and_decays_to_zero():
    settings = Train(**{**SETTINGS, "steps": 103, "warmup_steps": 3})
    rates = [settings.learning_rate_at(step) for step in range(103)]
    assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
    assert rates[53] == pytest.approx(1e-3)
    assert rates[-1] < 1e-6
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))


def test_learning_rate_is_constant_until_the_cooldown():
    def rates(lr_schedule, **changes):
        settings = Train(**{**SETTINGS, "steps": 20, "cooldown_steps": 4, "lr_schedule": lr_schedule, **changes})
        return [settings.learning_rate_at(step) / 2e-3 for step in range(settings.steps)], settings.shared_steps

    assert rates("constant") == (pytest.approx([1 / 3, 2 / 3, *[1] * 18]), 19)
    cooldown = [1, 1 - 0.25**0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]
    assert rates("wsd") == (pytest.approx([1 / 3, 2 / 3, *[1] * 14, *cooldown]), 16)
    assert rates("wsd", cooldown_steps=1) == rates("constant")
    assert rates("wsd", cooldown_steps=100, warmup_steps=16) == (pytest.approx([*np.arange(1, 17) / 16, *cooldown]), 16)
    assert rates("cosine")[1] == 0


class TestFlatParameters:
    def network(self):
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(3, 5, 3), torch.nn.GroupNorm(1, 5), torch.nn.Flatten(), torch.nn.Linear(5 * 4 * 4, 2)
        return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def test_network_computes_and_learns_as_before(self):
        """By AdamW with clipping, on the vector and parameter by parameter."""
        x = torch.randn(7, 3, 6, 6)
        whole, parts = self.network(), self.network()
        flat = FlatParameters(whole)
        optimizers = [torch.optim.AdamW([flat.vector], 0.01), torch.optim.AdamW(parts.parameters(), 0.01)]
        for _ in range(5):
            for network, optimizer in zip((whole, parts), optimizers, strict=True):
                network.zero_grad(set_to_none=False)
                network(x).square().mean().backward()
                torch.nn.utils.clip_grad_norm_([flat.vector] if network is whole else parts.parameters(), 0.1)
                optimizer.step()
        torch.testing.assert_close(whole(x), parts(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(whole(x), self.network()(x))

    def test_shapes_formats_and_gaps(self):
        network, other = self.network(), self.network()
        flat = FlatParameters(network)
        for name, parameter in other.named_parameters():
            mine = network.get_parameter(name)
            assert (mine.shape, mine.stride()) == (parameter.shape, parameter.stride())
            assert torch.equal(mine, parameter)
            assert mine.storage_offset() % ALIGNMENT == 0
            assert mine.grad.stride() == mine.stride()
        flat.vector.data.zero_()
        assert not any(parameter.any() for parameter in network.parameters())
        for view in flat.views(flat.vector.detach()).values():
            view.fill_(1.0)
        assert flat.vector.sum() == sum(parameter.numel() for parameter in other.parameters())

    def test_grads_attached_notices_replaced_gradients(self):
        network = self.network()
        flat = FlatParameters(network)
        network.zero_grad(set_to_none=False)
        assert flat.grads_attached()
        network.zero_grad()
        assert not flat.grads_attached()

    def test_parameters_that_are_not_dense(self):
        layer = torch.nn.Linear(4, 4)
        layer.weight.data = torch.arange(64.0).view(8, 8)[::2, ::2]
        before = layer.weight.detach().clone()
        FlatParameters(layer)
        assert torch.equal(layer.weight, before)


def test_ema_ramps_up_and_then_averages():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    ema = EMA(FlatParameters(layer), ramped(0.9))
    expected = 0.0
    for step in range(1, 200):
        layer.weight.data.fill_(float(step))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(ema.state_dict()["weight"]) == pytest.approx(expected, rel=1e-5)
    assert layer.weight.item() == 199


def test_averaged_restores_weights_and_mode(straight):
    trainer = straight
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with trainer.averaged() as network:
        assert not network.training
        for name, value in trainer.best.items():
            assert value.shape == dict(network.named_parameters())[name].shape
        assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert trainer.network.training
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_fingerprint_depends_on_params_data_and_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {params: [train, seed], deps: [code, data.bin]}}")
    (tmp_path / "params.yaml").write_text("train: {lr: 1}\nseed: 0\nruntime: {threads: 1}\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1")
    (tmp_path / "data.bin").write_bytes(b"1")
    first = fingerprint(stage_inputs("train"))
    (tmp_path / "params.yaml").write_text("train: {lr: 1}\nseed: 0\nruntime: {threads: 2}\n")
    (tmp_path / "code" / "__pycache__").mkdir()
    (tmp_path / "code" / "__pycache__" / "a.pyc").write_bytes(b"")
    assert fingerprint(stage_inputs("train")) == first
    fingerprints = {first}
    for name, content in (("params.yaml", "train: {lr: 2}\nseed: 0\n"), ("code/a.py", "x = 2"), ("data.bin", "2")):
        (tmp_path / name).write_text(content)
        fingerprints.add(fingerprint(stage_inputs("train")))
    assert len(fingerprints) == 4
