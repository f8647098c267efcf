"""Progressive distillation: targets against exact solutions, the stage, its students as models, and its resume."""

import json
import shutil
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import command_line, edit_params, error_of, input_error, link_code
from diffusers import DDIMPipeline
from oracles import gaussian_denoiser, ode_end
from PIL import Image
from test_diffusers import assert_same, ours, pipeline, theirs

import ddpm
from ddpm.core import params
from ddpm.core.files import InputError
from ddpm.core.weights import read_weights
from ddpm.diffusion.loss import diffusion_loss, make_weight
from ddpm.diffusion.prediction import Prediction, target
from ddpm.diffusion.schedule import SCHEDULES, make_schedule
from ddpm.distillation.settings import Distill
from ddpm.distillation.students import GridLevels, follow, one_step_target
from ddpm.sampling.samplers import euler_step, no_noise
from ddpm.sampling.time_grid import trailing

TINY_DISTILL = {
    "distill.teacher_steps": 8,
    "distill.iterations": 3,
    "distill.batch_size": 8,
    "distill.samples": 20,
}


def noisy(count=4, seed=0):
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels_of(schedule, positions, count=4):
    """The levels of the positions, each for all images."""
    return [schedule[torch.full((count,), position)] for position in positions]


def student_target(teacher, x_t, levels):
    """The target of a student that takes one step over all the levels."""
    levels = [level.like(x_t) for level in levels]
    return one_step_target(x_t, follow(teacher, x_t, levels), levels[0], levels[-1])


def nonlinear(x, level):
    return Prediction(torch.tanh(1.3 * x) * (1 + level.like(x).sigma), x, level)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("positions", [(100, 75, 50), (100, 50, 0), (2, 1, 0), (60, 40, 30, 10, 0)])
def test_one_step_to_the_target_lands_where_the_steps_of_the_teacher_do(name, zero_terminal_snr, positions):
    schedule, x_t = make_schedule(name, 100, zero_terminal_snr=zero_terminal_snr, allow_nonzero_terminal_snr=True), noisy()
    expected = x_t
    for t, s in pairwise(positions):
        expected, _ = euler_step(nonlinear, expected, schedule[t], schedule[s], no_noise, {})
    x0, eps = student_target(nonlinear, x_t, levels_of(schedule, positions))
    first, last = schedule[positions[0]], schedule[positions[-1]]
    torch.testing.assert_close(first.alpha * x0 + first.sigma * eps, x_t, rtol=0, atol=1e-9)
    torch.testing.assert_close(last.alpha * x0 + last.sigma * eps, expected, rtol=0, atol=1e-9)


def test_images_of_one_batch_may_be_at_different_levels():
    schedule, x_t = make_schedule("cosine", 100), noisy(3)
    paths = torch.tensor([[100, 75, 50], [50, 25, 0], [4, 2, 0]])
    x0, _ = student_target(nonlinear, x_t, [schedule[positions] for positions in paths.T])
    for k, path in enumerate(paths.tolist()):
        alone, _ = student_target(nonlinear, x_t[k : k + 1], levels_of(schedule, path, 1))
        torch.testing.assert_close(x0[k : k + 1], alone)


def test_of_a_teacher_whose_prediction_stays_the_target_is_that_prediction():
    x0 = noisy(seed=1)
    schedule = make_schedule("linear", 100)
    found, _ = student_target(lambda x, level: Prediction(x0, x, level), noisy(), levels_of(schedule, (80, 40, 0)))
    torch.testing.assert_close(found, x0)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm"])
def test_with_many_steps_on_gaussian_data_the_target_lands_on_the_exact_solution(name):
    schedule, x_t = make_schedule(name, 1000), noisy()
    x0, eps = student_target(gaussian_denoiser(), x_t, levels_of(schedule, range(800, 299, -1)))
    end = schedule[300]
    exact = ode_end(x_t, schedule, 800, 300)
    coarse, _ = euler_step(gaussian_denoiser(), x_t, schedule[800], end, no_noise, {})
    error, error_of_one_step = (end.alpha * x0 + end.sigma * eps - exact).abs().max(), (coarse - exact).abs().max()
    assert error < 5e-3
    assert error_of_one_step > 20 * error


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_exact_students_have_no_loss(prediction, zero_terminal_snr):
    """A student of n steps that solves the ODE of Gaussian data is the target of the exact student of 2n steps."""
    schedule = make_schedule("cosine", 64, zero_terminal_snr=zero_terminal_snr)
    fine, count = [*trailing(schedule, 8).astype(int).tolist(), 0], 4

    def exact(grid, x, level):
        """The prediction whose DDIM step to the next position of the grid is exact."""
        step = {schedule[t].t: (t, s) for t, s in pairwise(grid)}
        t, s = step[float(level.t.flatten()[0])]
        before, after = schedule[t], schedule[s]
        # At zero terminal SNR the solution starts at noise of the data's own mean: the limit of alpha -> 0.
        end = ode_end(x, schedule, t, s) if before.alpha > 0 else _end_from_noise(x, after)
        ratio = after.sigma / before.sigma
        return Prediction((end - ratio * x) / (after.alpha - ratio * before.alpha), x, level)

    for path in zip(fine[:-1:2], fine[1::2], fine[2::2], strict=True):
        eps, x0 = noisy(seed=1), 0.1 * noisy(seed=2)
        level = schedule[torch.full((count,), path[0])]
        x_t = level.like(x0).alpha * x0 + level.like(x0).sigma * eps
        targets = student_target(partial(exact, fine), x_t, levels_of(schedule, path))

        def student(x, t, labels, level=level):
            own = exact(fine[::2], x, level)
            like = level.like(x)
            return target(prediction, own.x0, (x - like.alpha * own.x0) / like.sigma, level)

        index = torch.full((count,), path[0])
        loss = diffusion_loss(student, schedule, targets[0], None, index, targets[1], prediction, make_weight("v"))
        assert loss.max() < 1e-10


def _end_from_noise(x, level, mu=0.3, s=0.5):
    """Where the ODE of N(mu, s^2) moves pure noise x."""
    return level.alpha * mu + x * (level.alpha**2 * s**2 + level.sigma**2) ** 0.5


def test_levels_are_those_of_the_grid():
    grid = torch.tensor([40, 30, 20, 10])
    torch.manual_seed(0)
    levels = GridLevels(grid)
    index, weight = levels.draw(400)
    values, counts = index.unique(return_counts=True)
    assert values.tolist() == [10, 20, 30, 40]
    assert counts.min() > 60
    assert weight.unique().tolist() == [1]
    assert levels.spread(6).tolist() == [40, 30, 20, 10, 40, 30]


@pytest.fixture
def trained(classifier) -> None:
    train()


def train(**changes):
    link_code()
    edit_params(**TINY_DISTILL, **changes)
    import_module("stages.train").main()


def run_stage() -> dict:
    import_module("stages.distill").main()
    return json.loads(Path("reports/distill/metrics.json").read_text())


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where `distilled` keeps its first workspace, which the next tests copy."""
    return tmp_path_factory.mktemp("distilled") / "workspace"


@pytest.fixture
def distilled(request, workspace, kept) -> dict:
    """A workspace after the stages `train` and `distill`; returns the scores."""
    if kept.exists():
        shutil.copytree(kept, workspace, symlinks=True, dirs_exist_ok=True)
    else:
        request.getfixturevalue("trained")
        run_stage()
        shutil.copytree(workspace, kept, symlinks=True)
    return json.loads(Path("reports/distill/metrics.json").read_text())


def weights_of(count: int) -> dict[str, torch.Tensor]:
    return read_weights(Path(f"models/distilled/{count}/final.safetensors"), "")


class TestStage:
    def test_writes_models_and_report(self, distilled):
        assert set(distilled["student"]) == {"nfe_1", "nfe_2", "nfe_4"}
        assert set(distilled["DDIM, eta 0"]) == {"nfe_1", "nfe_2", "nfe_4", "nfe_50"}
        scores = {"fid", "recall", "precision", "accuracy", "nn_auc", "near_copies", "seconds_per_1000"}
        assert scores == set(distilled["student"]["nfe_1"])
        assert set(pd.read_csv("reports/distill/loss.csv").method) == {"4 steps", "2 steps", "1 steps"}
        page = Path("reports/distill/index.md").read_text()
        assert "| student | 1 |" in page
        with Image.open("reports/distill/samples.png") as picture:
            assert picture.width > 400
        # Students differ from their teachers and take their own number of steps.
        weights = [weights_of(n) for n in (4, 2, 1)]
        assert all(any((a[name] != b[name]).any() for name in a) for a, b in pairwise(weights))
        for count in (4, 2, 1):
            student = ddpm.load(f"models/distilled/{count}")
            images = student.sample(3, seed=1)
            assert images.nfe == count
            assert np.array_equal(images.array, student.sample(3, seed=1, steps=count).array)
        assert not list(Path(".scratch/train").glob("*/state.pt"))

    def test_a_student_refuses_other_steps_and_samplers(self, distilled):
        student = ddpm.load("models/distilled/2")
        wrong = {"steps": 3, "sampler": "heun", "eta": 0.5, "spacing": "leading", "churn": 1.0}
        for name, value in wrong.items():
            with input_error(name, "for which this model was distilled; leave it out"):
                student.sample(1, **{name: value})
        with input_error("strength", "distilled"):
            student.edit("test:0", 0.5)

    @pytest.mark.parametrize("label", [None, 7])
    def test_diffusers_generates_the_same_images_with_an_exported_student(self, distilled, label):
        options = [] if label is None else ["--label", str(label)]
        assert command_line(["export", "--model", "models/distilled/2", "--out", "exported", *options]) == 0
        assert "num_inference_steps=2," in Path("exported/README.md").read_text()
        model = ddpm.load("models/distilled/2").diffusion
        labels = None if label is None else torch.tensor([label] * 4)
        found = theirs(pipeline(DDIMPipeline, "exported"), 2, use_clipped_model_output=True)
        assert_same(found, ours(model, labels))

    def test_a_stopped_distillation_resumes_with_the_same_weights(self, distilled, monkeypatch):
        expected = {n: weights_of(n) for n in (4, 2, 1)}
        from ddpm.training.checkpoint import ResumeState

        saves = []
        original = ResumeState.save

        class Killed(Exception):  # noqa: N818
            pass

        def save(self, state):
            original(self, state)
            saves.append(state)
            if len(saves) == 4:  # in the middle of the second student
                self._lock.release()
                raise Killed

        monkeypatch.setattr(ResumeState, "save", save)
        with pytest.raises(Killed):
            run_stage()
        assert list(saves[-1]["students"]) == [4]
        assert saves[-1]["training"]["step"] == 2
        run_stage()
        for n, weights in expected.items():
            again = weights_of(n)
            assert all(torch.equal(again[name], weights[name]) for name in weights)

    def test_guidance_is_part_of_the_student(self, distilled):
        edit_params(**{"distill.guidance": 2.0, "distill.teacher_steps": 2})
        run_stage()
        student = ddpm.load("models/distilled/1")
        assert student.config["distillation"] == {"steps": 1, "guidance": 2.0}
        with input_error("guidance"):
            student.sample(1, guidance=1.5)

    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"distill.teacher_steps": 12}, "distill.student_steps"),
            ({"distill.student_steps": 3}, "distill.student_steps"),
            ({"distill.student_steps": 8}, "distill.student_steps"),
            ({"distill.teacher_steps": 64}, "distill.teacher_steps"),
        ],
    )
    def test_impossible_settings_are_refused(self, distilled, changes, key):
        edit_params(**changes)
        with pytest.raises(InputError) as error:
            run_stage()
        assert error.value.key.startswith(key)

    @pytest.mark.parametrize("changes", [{"prediction": "eps"}, {"diffusion.learned_variance": True}])
    def test_impossible_teachers_are_refused(self, classifier, changes):
        train(**changes)
        assert error_of(run_stage).key == "distill"

    @pytest.mark.slow
    @pytest.mark.parametrize("conditioning", ["none", "text", "mask"])
    def test_every_conditioning(self, classifier, conditioning):
        train(**{"model.conditioning": conditioning, "guidance.scales": []})
        assert set(run_stage()["student"]) == {"nfe_1", "nfe_2", "nfe_4"}


def test_settings_of_the_teacher_that_are_missing(classifier, model):
    edit_params(**TINY_DISTILL)
    p = params.load(distill=Distill)
    with input_error(match="run `dvc repro train`"):
        p.distill.train_settings({})
