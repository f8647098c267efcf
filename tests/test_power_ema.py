"""Post-hoc EMA: profiles, coefficients, snapshots on disk, and rebuilt EMAs against tracked ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import error_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.core import params
from ddpm.core.files import InputError
from ddpm.core.weights import read_weights, save_weights
from ddpm.networks.checkpoints import CheckpointName, load_model
from ddpm.networks.power_ema import (
    MAX_SIGMA_REL,
    MIN_SIGMA_REL,
    SNAPSHOTS,
    TOLERANCE,
    TRACKED_SIGMA_REL,
    coefficients,
    decay,
    from_snapshots,
    gamma_from_sigma_rel,
    list_snapshots,
    rebuild,
    save_snapshot,
    snapshot_file,
    supported_range,
)

widths = st.floats(MIN_SIGMA_REL, MAX_SIGMA_REL)
STEPS = 1_000
TARGETS = (0.01, 0.02, 0.04, 0.07, 0.14, 0.2)


def crowded(steps, count):
    """Steps of `count` snapshots that get denser towards the last, as those of a training."""
    left = 1 - np.arange(1, count + 1) / count
    return sorted({max(1, round(steps * (1 - share**1.5))) for share in left.tolist()})


def profile(step, width, length=STEPS):
    """The share of each step 1..length in the average of `width` at `step`: integrals of the continuous profile, by its law."""
    edges = np.minimum(np.arange(length + 1) / step, 1.0)
    return np.diff(edges ** (gamma_from_sigma_rel(width) + 1))


def track(path, width):
    """All values of the average of `width` along a path (T, D) of weights, by the recursion of the training."""
    average, values = np.full(path.shape[1], np.nan), []
    for step, weights in enumerate(path, 1):
        beta = decay(width, step)
        average = weights if beta == 0 else beta * average + (1 - beta) * weights
        values.append(average)
    return np.array(values)


def rebuilt(path, steps, width):
    """The average of `width` at the last step, from tracks at `steps`, without files."""
    shares, residual = from_snapshots(steps, width)
    tracks = [track(path, w)[np.array(steps) - 1] for w in TRACKED_SIGMA_REL]
    return sum(column @ values for column, values in zip(shares.T, tracks, strict=True)), residual


# Paths that weights may take: noise at every step, a walk, SGD in a quadratic bowl, and a fall that comes to rest.
def paths(seed=0, size=400):
    noise = np.random.default_rng(seed).standard_normal((STEPS, size))
    descent = np.zeros((STEPS, size))
    for t in range(1, STEPS):
        descent[t] = descent[t - 1] + 0.05 * (1 - descent[t - 1] + noise[t])
    fall = 1 + np.exp(-np.arange(STEPS)[:, None] / 100) * (1 + noise[:1])
    return {"noise": noise, "walk": noise.cumsum(0), "sgd": descent, "fall": fall}


class TestProfiles:
    @given(widths)
    def test_gamma_has_its_sigma_rel(self, width):
        gamma = gamma_from_sigma_rel(width)
        assert gamma > 0
        assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(width, rel=1e-9)

    def test_gamma_of_the_tracked_ones_is_that_of_the_paper(self):
        # EDM2, sec. 3.1.
        assert gamma_from_sigma_rel(0.05) == pytest.approx(16.97, abs=0.005)
        assert gamma_from_sigma_rel(0.10) == pytest.approx(6.94, abs=0.005)

    @given(widths)
    @settings(max_examples=20)
    def test_sigma_rel_is_the_standard_deviation_of_the_profile(self, width):
        length = 20_000
        p, tau = profile(length, width, length), np.arange(length) + 0.5
        mean = p @ tau
        assert np.sqrt(p @ (tau - mean) ** 2) / length == pytest.approx(width, rel=1e-3)

    def test_updates_give_each_step_the_integral_of_the_profile(self):
        for width in (MIN_SIGMA_REL, 0.05, 0.1, 0.2, MAX_SIGMA_REL):
            for last in (1, 2, 7, 200):
                shares = track(np.eye(last), width)[-1]
                np.testing.assert_allclose(shares, profile(last, width, last), atol=1e-14)
                assert shares.sum() == pytest.approx(1)

    def test_decay_is_zero_at_the_first_step(self):
        assert decay(0.1, 1) == 0
        assert 0 < decay(0.1, 2) < decay(0.1, 100) < decay(0.05, 10_000) < 1

    def test_gamma_refuses_a_value_out_of_range(self):
        for width in (0.0, -0.1, 0.0049, 0.2801, 1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match=r"^EMA width: \S+ must be from 0\.005 to 0\.28$"):
                gamma_from_sigma_rel(width)


class TestCoefficients:
    @given(st.integers(1, 30), widths)
    @settings(max_examples=40, deadline=None)
    def test_coefficients_are_the_best_that_sum_to_one(self, count, width):
        """Against a least-squares fit to finely sampled profiles, in a basis whose coefficients sum to 1."""
        steps = crowded(STEPS, count)
        flat = [(step, w) for step in steps for w in TRACKED_SIGMA_REL]
        found, residual = coefficients([s for s, _ in flat], [w for _, w in flat], STEPS, width)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        fine = 20
        sampled = np.array([profile(step * fine, w, STEPS * fine) for step, w in flat]).T
        goal = profile(STEPS * fine, width, STEPS * fine)
        rest = sampled[:, :-1] - sampled[:, -1:]
        x, *_ = np.linalg.lstsq(rest, goal - sampled[:, -1], rcond=None)
        best = np.linalg.norm(sampled[:, -1] + rest @ x - goal) / np.linalg.norm(goal)
        error = np.linalg.norm(sampled @ found - goal) / np.linalg.norm(goal)
        assert error == pytest.approx(best, rel=0.02, abs=1e-6)
        assert residual == pytest.approx(error, rel=0.02, abs=1e-6)

    @pytest.mark.parametrize("count", [1, 2, 20, 100])
    def test_tracked_ema_is_taken_from_the_last_snapshot(self, count):
        for place, width in enumerate(TRACKED_SIGMA_REL):
            shares, residual = from_snapshots(crowded(20_000, count), width)
            expected = np.zeros_like(shares)
            expected[-1, place] = 1
            np.testing.assert_allclose(shares, expected, atol=1e-6)
            assert residual < 1e-6

    def test_coefficients_stay_small_with_hundreds_of_similar_snapshots(self):
        for first, width, expected in ((10, 0.01, 2e-3), (10, 0.2, 1e-4), (4_700, 0.01, 2e-3), (4_700, 0.05, 1e-4)):
            shares, residual = from_snapshots(list(range(first, 5_001, 10 if first < 100 else 1)), width)
            assert residual < expected
            assert np.abs(shares).sum() < 1_000
            assert shares.sum() == pytest.approx(1, abs=1e-9)

    def test_coefficients_at_the_step_of_an_earlier_snapshot(self):
        found, residual = coefficients([50, 80, 100], [0.1, 0.1, 0.1], 80, 0.1)
        np.testing.assert_allclose(found, [0, 1, 0], atol=1e-12)
        assert residual < 1e-7

    @given(st.lists(st.integers(1, 5_000), min_size=1, max_size=300, unique=True), widths)
    @settings(max_examples=30, deadline=None)
    def test_coefficients_are_finite_for_any_steps(self, steps, width):
        shares, residual = from_snapshots(sorted(steps), width)
        assert np.isfinite(shares).all()
        assert shares.sum() == pytest.approx(1, abs=1e-6)
        # The relative precision of the float32 snapshots is 6e-8.
        assert np.abs(shares).sum() < 5_000
        assert residual >= 0

    def test_supported_range(self):
        dense, even = supported_range(crowded(5_000, 20)), supported_range(list(range(250, 5_001, 250)))
        assert dense[0] <= 0.01 < 0.015 < even[0] <= 0.02
        assert min(dense[1], even[1]) >= 0.25
        assert supported_range([5_000]) == (0.04, 0.12)

    @pytest.mark.parametrize("even", [False, True])
    def test_noise_is_right_up_to_the_tolerance(self, even):
        checked = 0
        for count in (1, 2, 5, 10, 20, 40):
            steps = [STEPS * i // count for i in range(1, count + 1)] if even else crowded(STEPS, count)
            for width in np.linspace(*supported_range(steps), 12):
                shares, residual = from_snapshots(steps, width)
                if residual > TOLERANCE:
                    continue
                checked += 1
                fit = sum(
                    c * profile(s, w)
                    for s, row in zip(steps, shares, strict=True)
                    for w, c in zip(TRACKED_SIGMA_REL, row, strict=True)
                )
                goal = profile(STEPS, width)
                assert fit @ fit == pytest.approx(goal @ goal, rel=0.1)
        assert checked > 60


class TestReconstruction:
    @pytest.mark.parametrize("width", TARGETS)
    def test_reconstruction_equals_the_tracked_ema(self, width):
        """With 20 snapshots: within the residual for noise, closer for smoother paths."""
        errors = {}
        for name, path in paths().items():
            found, residual = rebuilt(path, crowded(STEPS, 20), width)
            goal = track(path, width)[-1]
            # Relative to the spread of the EMA, so that a large mean does not hide an error.
            scale = np.linalg.norm(goal - goal.mean() if name == "sgd" else goal)
            errors[name] = np.linalg.norm(found - goal) / scale
        assert residual < 0.05
        assert errors["noise"] == pytest.approx(residual, rel=0.15)
        assert errors["sgd"] < 1.2 * residual + 1e-9
        assert errors["walk"] < 2e-3
        assert errors["fall"] < 1e-3

    @pytest.mark.parametrize("width", [0.02, 0.14])
    def test_more_snapshots_are_better(self, width):
        path = paths()["noise"]
        goal = track(path, width)[-1]
        errors = [np.linalg.norm(rebuilt(path, crowded(STEPS, count), width)[0] - goal) for count in (2, 5, 10, 20, 40)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 20

    def test_constant_weights_are_reproduced_with_one_snapshot(self):
        path = np.full((STEPS, 3), 7.0)
        for width in (0.04, 0.07, 0.12):
            np.testing.assert_allclose(rebuilt(path, [STEPS], width)[0], 7.0, rtol=1e-12)


def save_path(folder, path, steps):
    """Snapshots of a path (T, 6), as float32 tensors of two names."""
    tracks = {width: torch.tensor(track(path, width), dtype=torch.float32) for width in TRACKED_SIGMA_REL}
    for step in steps:
        save_snapshot(
            folder, step, {w: {"a.weight": t[step - 1, :4].view(2, 2), "b": t[step - 1, 4:]} for w, t in tracks.items()}
        )


class TestSnapshots:
    @pytest.fixture
    def path(self):
        return paths(size=6)["walk"]

    def test_rebuild_from_files_equals_the_tracked_ema(self, tmp_path, path):
        steps = crowded(STEPS, 20)
        save_path(tmp_path, path, steps)
        assert list_snapshots(tmp_path) == steps
        for width in (*TARGETS, *TRACKED_SIGMA_REL):
            weights, goal = rebuild(tmp_path, width), track(path, width)[-1]
            assert {name: (value.shape, value.dtype) for name, value in weights.items()} == {
                "a.weight": ((2, 2), torch.float32),
                "b": ((2,), torch.float32),
            }
            tolerance = 1e-6 if width in TRACKED_SIGMA_REL else 2e-3
            flat = torch.cat([weights["a.weight"].flatten(), weights["b"]]).double().numpy()
            assert np.linalg.norm(flat - goal) < tolerance * np.linalg.norm(goal)

    def test_list_snapshots_sorts_by_step_and_ignores_other_files(self, tmp_path, path):
        save_path(tmp_path, path, [9, 10, 100])
        for name in (".step_0000011.partial5.safetensors", "step_x.safetensors", "notes.txt"):
            (tmp_path / SNAPSHOTS / name).write_text("no snapshot")
        save_weights(tmp_path / SNAPSHOTS / "step_12345678.safetensors", {})
        assert list_snapshots(tmp_path) == [9, 10, 100, 12_345_678]
        assert snapshot_file(tmp_path, 9) == tmp_path / "snapshots" / "step_0000009.safetensors"

    def test_save_snapshot_needs_both_tracks(self, tmp_path):
        with pytest.raises(ValueError, match="holds the widths"):
            save_snapshot(tmp_path, 1, {0.05: {}})
        assert list_snapshots(tmp_path) == []

    def test_rebuild_refuses_a_folder_without_snapshots(self, tmp_path):
        assert error_of(rebuild, tmp_path, 0.1).key == str(tmp_path / "snapshots")

    def test_rebuild_refuses_an_unsupported_width(self, tmp_path, path):
        save_path(tmp_path, path, [STEPS])
        error = error_of(rebuild, tmp_path, 0.02)
        assert error.key == str(tmp_path / "snapshots")
        assert "EMA of width 0.02, only of 0.04 to 0.12 (residual 35% with 1 snapshots)" in error.message

    @pytest.mark.parametrize("step", [600, 900, STEPS])
    def test_rebuild_refuses_a_damaged_file(self, tmp_path, path, step):
        save_path(tmp_path, path, [600, 900, STEPS])
        damaged = snapshot_file(tmp_path, step)
        damaged.write_bytes(damaged.read_bytes()[:-5])
        with pytest.raises(InputError, match=rf"^{damaged}: damaged \(.*\); make it again with `dvc repro -f train`$"):
            rebuild(tmp_path, 0.07)

    @pytest.mark.parametrize("change", ["shape", "track", "name"])
    def test_rebuild_refuses_a_file_with_other_tensors(self, tmp_path, path, change):
        save_path(tmp_path, path, [600, STEPS])
        file = snapshot_file(tmp_path, STEPS)
        weights = read_weights(file, "train")
        value = weights.pop("0.1/b")
        weights |= {"shape": {"0.1/b": value[:1]}, "track": {}, "name": {"0.1/c": value}}[change]
        save_weights(file, weights)
        with pytest.raises(InputError, match=rf"^{file}: holds other weights than step_0000600\.safetensors; make it again"):
            rebuild(tmp_path, 0.07)


class TestCheckpoints:
    @pytest.fixture
    def snapshots(self, model):
        """models/ddpm with two snapshots; every weight of `final` grows by a tenth between them."""
        final = read_weights(Path("models/ddpm/final.safetensors"), "train")
        for step, factor in ((900, 1.0), (1000, 1.1)):
            save_snapshot(Path("models/ddpm"), step, {w: {k: v * factor for k, v in final.items()} for w in TRACKED_SIGMA_REL})
        return final

    def load(self, checkpoint):
        return load_model(Path("models/ddpm"), checkpoint, torch.device("cpu"))[0].state_dict()

    def test_model_is_loaded_by_its_ema_width(self, snapshots):
        for name, value in self.load(0.05).items():
            torch.testing.assert_close(value, 1.1 * snapshots[name])
        for name, value in self.load("final").items():
            assert torch.equal(value, snapshots[name])

    def test_model_without_snapshots_has_no_ema_width(self, model):
        assert self.load("final")
        with pytest.raises(InputError, match=r"^models/ddpm/snapshots: holds no snapshots; set train\.snapshots above 0"):
            self.load(0.05)

    def test_snapshots_of_another_network_are_refused(self, snapshots):
        for step in (900, 1000):
            save_snapshot(Path("models/ddpm"), step, {width: {"x": torch.zeros(2)} for width in TRACKED_SIGMA_REL})
        with pytest.raises(InputError, match=r"^models/ddpm/snapshots: does not fit the config.json in its folder: "):
            self.load(0.05)

    @pytest.mark.parametrize("value", [0.5, 0.001, 0.0, 1, True, "0.1", "", None, [0.1], {"width": 0.1}])
    def test_checkpoint_setting_refuses_other_values(self, tmp_path, value):
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump({"checkpoint": value}))
        choices = "valid: final, best, latest, or an EMA width from 0.005 to 0.28"
        expected = f"{file}: checkpoint: {value!r} is unknown; {choices}"
        assert str(error_of(params.load, file, checkpoint=CheckpointName)) == expected

    @pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("5e-2", 0.05), ("5e-02", 0.05), ("best", "best")])
    def test_checkpoint_setting_takes_every_spelling_of_a_number(self, tmp_path, text, value):
        file = tmp_path / "params.yaml"
        file.write_text(f"checkpoint: {text}\n")
        assert params.load(file, checkpoint=CheckpointName).checkpoint == value
