"""Several processes give the same weights, images and scores as one."""

import json
import os

import numpy as np
import pytest
import torch
from processes import in_processes
from test_training import make_trainer, run

from ddpm.core import params, processes
from ddpm.core.files import InputError
from ddpm.evaluation.likelihood import likelihood
from ddpm.evaluation.reconstruction import reconstruct, round_trips
from ddpm.features.classifier import Classifier, predict
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import load
from ddpm.sampling.settings import SampleDDIM, SampleDDPM

CPU = torch.device("cpu")


class TestSharing:
    def test_map_over_ranks_keeps_order(self):
        def work():
            done = []
            results = processes.map_over_ranks(range(7), lambda i: done.append(i) or 10 * i)
            return processes.rank(), done, results

        expected = [0, 10, 20, 30, 40, 50, 60]
        assert work() == (0, list(range(7)), expected)
        assert in_processes(3, work) == [(0, [0, 3, 6], expected), (1, [1, 4], expected), (2, [2, 5], expected)]

    def test_map_over_ranks_with_less_work_than_processes(self):
        assert in_processes(3, lambda: processes.map_over_ranks([5], lambda i: i)) == [[5]] * 3

    def test_from_rank0_reaches_all(self):
        made = in_processes(2, lambda: processes.from_rank0(lambda: f"made by {os.environ['RANK']}"))
        assert made == ["made by 0"] * 2

    def test_from_rank0_error_is_raised_in_all(self):
        def make():
            if not processes.is_main_process():
                raise AssertionError("made by another")
            raise InputError("damaged")

        def work():
            with pytest.raises(InputError, match="damaged"):
                processes.from_rank0(make)

        in_processes(2, work)

    @pytest.mark.parametrize("count", [2, 5, 7])
    def test_all_gather_rows(self, count):
        whole = torch.arange(2.0 * count).reshape(count, 2)
        results = in_processes(3, lambda: processes.all_gather_rows(whole[processes.local_slice(count)], count).tolist())
        assert results == [whole.tolist()] * 3
        assert processes.all_gather_rows(whole, count) is whole


def ddp_trainer(**changes):
    trainer = make_trainer(dropout=0.0, **changes)
    trainer.model = processes.wrap_ddp(trainer.network, CPU)
    return trainer


def trained(**changes):
    """Returns the weights after 20 steps, their EMA and the history of this process."""
    # AdamW's first steps magnify the rounding of gradients near 0; a long warm-up keeps them small.
    trainer = run(ddp_trainer(steps=20, warmup_steps=20, learning_rate=1e-3, **changes))
    weights = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    return weights, trainer.ema_weights(), trainer.history


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {}), (3, {"timestep_sampling": "stratified"}),
        (2, {"gradient_accumulation": 2, "timestep_sampling": "importance", "learned_variance": True}),
        (3, {"conditioning": "text+mask", "augment": 0.3}),
    ],
)  # fmt: skip
def test_training_equals_single_process(processes, changes, monkeypatch):
    """Each of n processes computes on its part of the batch; 20 steps differ from those of one by no more than 1e-6."""
    monkeypatch.setattr("ddpm.diffusion.timestep_sampling.LossAwareTimesteps.WARMUP", 0)
    weights, ema, history = trained(**changes)
    found = in_processes(processes, lambda: trained(**changes))
    for i in range(processes):
        for expected, values in ((weights, found[i][0]), (ema, found[i][1])):
            assert max(float((values[name] - value).abs().max()) for name, value in expected.items()) <= 1e-6
            assert all(torch.equal(values[name], found[0][0 if expected is weights else 1][name]) for name in values)
        for row, other in zip(found[i][2], history, strict=True):
            assert row == pytest.approx(other, rel=1e-5)


def test_loss_history_after_resume():
    """Every process resumes from the state of process 0; the losses of the first part must count once."""

    def work():
        straight, first, resumed = (ddp_trainer(steps=6, log_every=6) for _ in range(3))
        run(straight)
        for _ in range(4):
            first.train_step()
        resumed.load_state_dict(processes.from_rank0(first.state_dict))
        run(resumed)
        return straight.history == resumed.history, straight.history[-1]["loss"]

    (same, loss), other = in_processes(2, work)
    assert same
    assert other == (same, loss)
    assert loss == pytest.approx(work()[1], rel=1e-5)


def test_batch_size_below_processes():
    def work():
        with pytest.raises(InputError, match=r"train\.batch_size: 16 images "):
            make_trainer(gradient_accumulation=9)

    in_processes(2, work)


@pytest.mark.parametrize(("section", "count"), [("sample_ddpm", 3), ("sample_ddim", 2)])
def test_samples_equal_single_process(model, section, count):
    kind = {"sample_ddpm": SampleDDPM, "sample_ddim": SampleDDIM}[section]
    settings = getattr(params.load(**{section: kind}), section)

    def work():
        diffusion_model = load("final", CPU)
        return generate_set(diffusion_model, settings.plan(diffusion_model), 23, 5, 0, "test").arrays

    alone = work()
    for arrays in in_processes(count, work):
        assert arrays.keys() == alone.keys()
        assert all(np.array_equal(arrays[name], alone[name]) for name in alone)


def test_scores_equal_single_process(model, data, monkeypatch):
    for name in ("ddpm.evaluation.lpips.BATCH", "ddpm.evaluation.likelihood.BATCH", "ddpm.features.classifier.PREDICT_BATCH"):
        monkeypatch.setattr(name, 7)
    torch.manual_seed(0)
    classifier = Classifier(1, 10).eval()

    def work():
        network = load("final", CPU)
        x0 = torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8)
        labels = torch.arange(20) % 10
        features, probabilities = predict(classifier, data.test.images[:30], CPU)
        scores = [
            reconstruct(network, data, classifier, 20, 0).scores,
            likelihood(network, x0, labels, 4, 0).scores,
            round_trips(network, x0, labels).scores,
        ]
        return json.dumps(scores), features.tobytes(), probabilities.tobytes()

    alone = work()
    assert in_processes(3, work) == [alone] * 3
