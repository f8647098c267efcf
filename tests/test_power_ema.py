"""Post-hoc EMA: profiles, coefficients, snapshots on disk, and rebuilt averages against averages that were tracked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_params
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
    """Steps of `count` snapshots that crowd towards the last, as those of a training do."""
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
    def test_the_exponent_is_that_of_the_width(self, width):
        gamma = gamma_from_sigma_rel(width)
        assert gamma > 0
        assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(width, rel=1e-9)

    def test_known_exponents(self):
        # EDM2, sec. 3.1: gamma of the two widths that are tracked.
        assert gamma_from_sigma_rel(0.05) == pytest.approx(16.97, abs=0.005)
        assert gamma_from_sigma_rel(0.10) == pytest.approx(6.94, abs=0.005)

    @given(widths)
    @settings(max_examples=20)
    def test_the_width_is_the_standard_deviation_of_the_shares(self, width):
        length = 20_000
        p, tau = profile(length, width, length), np.arange(length) + 0.5
        mean = p @ tau
        assert np.sqrt(p @ (tau - mean) ** 2) / length == pytest.approx(width, rel=1e-3)

    @pytest.mark.parametrize("width", [MIN_SIGMA_REL, 0.05, 0.1, 0.2, MAX_SIGMA_REL])
    @pytest.mark.parametrize("last", [1, 2, 7, 200])
    def test_the_recursion_gives_each_step_the_integral_of_the_profile(self, width, last):
        shares = track(np.eye(last), width)[-1]
        np.testing.assert_allclose(shares, profile(last, width, last), atol=1e-14)
        assert shares.sum() == pytest.approx(1)

    def test_the_first_step_forgets_what_stood_before(self):
        assert decay(0.1, 1) == 0
        assert 0 < decay(0.1, 2) < decay(0.1, 100) < decay(0.05, 10_000) < 1

    @pytest.mark.parametrize("width", [0.0, -0.1, 0.0049, 0.2801, 0.2887, 1.0, float("nan"), float("inf")])
    def test_a_width_out_of_range_is_refused(self, width):
        with pytest.raises(InputError, match=r"^EMA width: \S+ must be from 0\.005 to 0\.28$"):
            gamma_from_sigma_rel(width)


class TestCoefficients:
    @given(st.integers(1, 30), widths)
    @settings(max_examples=40, deadline=None)
    def test_they_are_the_best_that_sum_to_one(self, count, width):
        """Against a least-squares fit to finely sampled profiles, the condition built in by a basis without the sum."""
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
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_tracked_width_is_taken_as_it_is(self, count, place):
        shares, residual = from_snapshots(crowded(20_000, count), TRACKED_SIGMA_REL[place])
        expected = np.zeros_like(shares)
        expected[-1, place] = 1
        np.testing.assert_allclose(shares, expected, atol=1e-6)
        assert residual < 1e-6

    def test_hundreds_of_snapshots_nearly_alike_are_no_harm(self):
        """A profile is then a sum of others in many ways, of which one without large numbers is taken."""
        for first, width, expected in ((10, 0.01, 2e-3), (10, 0.2, 1e-4), (4_700, 0.01, 2e-3), (4_700, 0.05, 1e-4)):
            shares, residual = from_snapshots(list(range(first, 5_001, 10 if first < 100 else 1)), width)
            assert residual < expected
            assert np.abs(shares).sum() < 1_000
            assert shares.sum() == pytest.approx(1, abs=1e-9)

    def test_one_track_that_was_asked_for_at_an_earlier_step(self):
        found, residual = coefficients([50, 80, 100], [0.1, 0.1, 0.1], 80, 0.1)
        np.testing.assert_allclose(found, [0, 1, 0], atol=1e-12)
        assert residual < 1e-7

    @given(st.lists(st.integers(1, 5_000), min_size=1, max_size=300, unique=True), widths)
    @settings(max_examples=30, deadline=None)
    def test_any_steps_give_finite_coefficients_that_sum_to_one(self, steps, width):
        shares, residual = from_snapshots(sorted(steps), width)
        assert np.isfinite(shares).all()
        assert shares.sum() == pytest.approx(1, abs=1e-6)
        # What float32 tracks can stand: their last digit is 6e-8 of a weight.
        assert np.abs(shares).sum() < 5_000
        assert residual >= 0

    def test_what_snapshots_reach(self):
        dense, even = supported_range(crowded(5_000, 20)), supported_range(list(range(250, 5_001, 250)))
        assert dense[0] <= 0.01 < 0.015 < even[0] <= 0.02
        assert min(dense[1], even[1]) >= 0.25
        assert supported_range([5_000]) == (0.04, 0.12)

    @pytest.mark.parametrize("even", [False, True])
    def test_up_to_the_tolerance_the_noise_is_that_of_the_average_asked_for(self, even):
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


class TestRebuilding:
    @pytest.mark.parametrize("width", TARGETS)
    def test_it_is_the_average_that_would_have_been_tracked(self, width):
        """With 20 snapshots: within the residual for noise, closer for all that moves more smoothly."""
        errors = {}
        for name, path in paths().items():
            found, residual = rebuilt(path, crowded(STEPS, 20), width)
            goal = track(path, width)[-1]
            # Of the spread of the average itself, so that a large mean does not hide an error; a fall has no spread.
            scale = np.linalg.norm(goal - goal.mean() if name == "sgd" else goal)
            errors[name] = np.linalg.norm(found - goal) / scale
        assert residual < 0.05
        assert errors["noise"] == pytest.approx(residual, rel=0.15)
        assert errors["sgd"] < 1.2 * residual + 1e-9
        assert errors["walk"] < 2e-3
        assert errors["fall"] < 1e-3

    @pytest.mark.parametrize("width", [0.02, 0.07, 0.14])
    def test_more_snapshots_are_better(self, width):
        path = paths()["noise"]
        goal = track(path, width)[-1]
        errors = [np.linalg.norm(rebuilt(path, crowded(STEPS, count), width)[0] - goal) for count in (2, 5, 10, 20, 40)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 20

    def test_weights_at_rest_are_reproduced_with_one_snapshot(self):
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

    @pytest.mark.parametrize("width", [*TARGETS, *TRACKED_SIGMA_REL])
    def test_through_files_it_is_the_tracked_average(self, tmp_path, path, width):
        steps = crowded(STEPS, 20)
        save_path(tmp_path, path, steps)
        assert list_snapshots(tmp_path) == steps
        found, goal = rebuild(tmp_path, width), track(path, width)[-1]
        assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
            "a.weight": ((2, 2), torch.float32),
            "b": ((2,), torch.float32),
        }
        tolerance = 1e-6 if width in TRACKED_SIGMA_REL else 2e-3
        flat = torch.cat([found["a.weight"].flatten(), found["b"]]).double().numpy()
        assert np.linalg.norm(flat - goal) < tolerance * np.linalg.norm(goal)

    def test_names_sort_as_numbers_and_other_files_are_left_alone(self, tmp_path, path):
        save_path(tmp_path, path, [9, 10, 100])
        for name in (".step_0000011.partial5.safetensors", "step_x.safetensors", "notes.txt"):
            (tmp_path / SNAPSHOTS / name).write_text("no snapshot")
        save_weights(tmp_path / SNAPSHOTS / "step_12345678.safetensors", {})
        assert list_snapshots(tmp_path) == [9, 10, 100, 12_345_678]
        assert snapshot_file(tmp_path, 9) == tmp_path / "snapshots" / "step_0000009.safetensors"

    def test_both_tracks_are_saved_or_none(self, tmp_path):
        with pytest.raises(ValueError, match="holds the widths"):
            save_snapshot(tmp_path, 1, {0.05: {}})
        assert list_snapshots(tmp_path) == []

    def test_without_snapshots(self, tmp_path):
        with pytest.raises(InputError) as error:
            rebuild(tmp_path, 0.1)
        folder = tmp_path / "snapshots"
        assert str(error.value) == f"{folder}: holds no snapshots; set train.snapshots above 0 and run `dvc repro train`"

    def test_a_width_that_they_do_not_reach(self, tmp_path, path):
        save_path(tmp_path, path, [STEPS])
        with pytest.raises(InputError) as error:
            rebuild(tmp_path, 0.02)
        assert error.value.key == str(tmp_path / "snapshots")
        assert "EMA of width 0.02, only of 0.04 to 0.12 (residual 35% with 1 snapshots)" in error.value.message

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_damaged_file_is_named(self, tmp_path, path, place):
        steps = [600, 900, STEPS]
        save_path(tmp_path, path, steps)
        damaged = snapshot_file(tmp_path, steps[place])
        damaged.write_bytes(damaged.read_bytes()[:-5])
        with pytest.raises(InputError, match=rf"^{damaged}: damaged \(.*\); make it again with `dvc repro -f train`$"):
            rebuild(tmp_path, 0.07)

    @pytest.mark.parametrize("change", ["shape", "track", "name"])
    def test_a_file_unlike_the_others_is_named(self, tmp_path, path, change):
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
        """models/ddpm with snapshots, between which every weight of `final` grows by a tenth."""
        final = read_weights(Path("models/ddpm/final.safetensors"), "train")
        for step, factor in ((900, 1.0), (1000, 1.1)):
            save_snapshot(Path("models/ddpm"), step, {w: {k: v * factor for k, v in final.items()} for w in TRACKED_SIGMA_REL})
        return final

    def load(self, checkpoint):
        return load_model(Path("models/ddpm"), checkpoint, torch.device("cpu"))[0].state_dict()

    def test_a_model_is_loaded_by_the_width_of_its_average(self, snapshots):
        for name, value in self.load(0.05).items():
            torch.testing.assert_close(value, 1.1 * snapshots[name])
        for name, value in self.load("final").items():
            assert torch.equal(value, snapshots[name])

    def test_a_model_without_snapshots_loads_as_before(self, model):
        assert self.load("final")
        with pytest.raises(InputError, match=r"^models/ddpm/snapshots: holds no snapshots; set train\.snapshots above 0"):
            self.load(0.05)

    def test_snapshots_of_another_network(self, snapshots):
        for step in (900, 1000):
            save_snapshot(Path("models/ddpm"), step, {width: {"x": torch.zeros(2)} for width in TRACKED_SIGMA_REL})
        with pytest.raises(InputError, match=r"^models/ddpm/snapshots: does not fit the config.json in its folder: "):
            self.load(0.05)

    @pytest.mark.parametrize("section", ["sample_ddpm", "sample_ddim", "evaluate", "sweep"])
    @pytest.mark.parametrize("value", [0.5, 0.001, 0.0, 1, True, "0.1", "", None, [0.1], {"width": 0.1}])
    def test_what_is_no_checkpoint(self, workspace, section, value):
        from test_params import EVERYTHING

        edit_params(**{f"{section}.checkpoint": value})
        with pytest.raises(InputError) as error:
            params.load(**{section: EVERYTHING[section]})
        choices = "valid: final, best, latest, or an EMA width from 0.005 to 0.28"
        assert str(error.value) == f"params.yaml: {section}.checkpoint: {value!r} is unknown; {choices}"

    @pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("5e-2", 0.05), ("5e-02", 0.05), ("best", "best")])
    def test_a_width_is_read_in_every_spelling_of_a_number(self, tmp_path, text, value):
        file = tmp_path / "params.yaml"
        file.write_text(f"checkpoint: {text}\n")
        assert params.load(file, checkpoint=CheckpointName).checkpoint == value

    def test_dvc_can_set_it(self, workspace):
        from dvc.utils.hydra import apply_overrides
        from test_params import EVERYTHING

        apply_overrides("params.yaml", ["sample_ddim.checkpoint=0.1"])
        assert params.load(sample_ddim=EVERYTHING["sample_ddim"]).sample_ddim.checkpoint == 0.1
