"""The stage `edit`: its images, and the scores of inpainting."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_params
from test_sweep import snapshots  # noqa: F401 (a fixture)

from ddpm.core import params
from ddpm.core.files import read_npz
from ddpm.core.paths import MODEL_DIR
from ddpm.core.weights import weights_id
from ddpm.data.prepared import Split
from ddpm.editing import score
from ddpm.editing.score import score_inpainting
from ddpm.editing.stage_images import INTERPOLATED, STRIDE, Edit, balanced_indices, make_edits
from ddpm.features.classifier import load_classifier
from ddpm.sampling.model import load

MAIN = "stages.edit"
CPU = torch.device("cpu")


def run():
    import_module(MAIN).main()
    return read_npz("samples/edits.npz", "edit"), json.loads(Path("reports/edit/metrics.json").read_text())["inpaint"]


def test_edit_keeps_what_must_stay(snapshots, data, classifier):  # noqa: F811
    arrays, scores = run()
    images = data.test.images[balanced_indices(data.test, 3)]
    assert np.array_equal(arrays["inpaint_image"], images)
    assert np.array_equal(arrays["edit_image"], images)
    fills = [name for name in arrays if name.startswith("inpaint_filled_")]
    assert len(fills) == 4
    for name in fills:
        assert np.array_equal(arrays[name][:, :, :4], images[:, :, :4]), "known pixels"
        assert not np.array_equal(arrays[name][:, :, 4:], images[:, :, 4:])
    assert (arrays["inpaint_known"][:, :, 4:] == 128).all(), "missing pixels are gray"
    for name in ("image_1", "image_2", "image_3", "sample_1"):
        film, strip = arrays[f"interpolate_film_{name}"], arrays[f"interpolate_{name}"]
        assert len(film) == INTERPOLATED
        assert np.array_equal(strip, film[::STRIDE])
        assert np.array_equal(strip[-1], film[-1])
    numbers = balanced_indices(data.test, 6)
    for k in range(3):
        assert np.array_equal(arrays[f"interpolate_image_{k + 1}"][[0, -1]], data.test.images[numbers[[2 * k, 2 * k + 1]]])
    assert arrays["training_step"].tolist() == [700, 1000], "two of three snapshots, the last one among them"
    assert arrays["training_images"].shape == (2, 20, 8, 8, 1)
    assert not np.array_equal(*arrays["training_images"])
    metrics = json.loads(Path("reports/edit/metrics.json").read_text())
    assert metrics["model"] == weights_id("final", load("final", CPU).network), "not the last frame of the film"
    assert scores["n"] == 10
    assert set(scores) == {"n", "told", "accuracy_real", "replacement", "RePaint"}
    assert (scores["replacement"]["nfe"], scores["RePaint"]["nfe"]) == (5, 9), (
        "re-noising at the last two even steps, of two steps each"
    )


def test_edit_without_snapshots_has_no_film(model, classifier):
    edit_params(seed=2**31 - 1)  # the largest seed
    arrays, _ = run()
    assert len(arrays["training_step"]) == len(arrays["training_images"]) == 0


@pytest.mark.parametrize("conditioning", ["none", "text", "class+mask"])
def test_edit_runs_with_every_conditioning(workspace, conditioning, request):
    edit_params(**{"model.conditioning": conditioning})
    for name in ("data", "model", "classifier"):
        request.getfixturevalue(name)
    _, scores = run()
    assert ("mask_network" in scores) == ("mask" in conditioning)


def test_score_inpainting_of_perfect_blank_and_shifted_fills(model, data, classifier, monkeypatch):
    network, received = load("final", CPU), {}

    def scores_of(fill):
        def run(model, plan, x0, mask, labels, seed, pass_known):
            received["labels"] = labels
            yield x0 * mask + fill(x0) * (1 - mask)

        monkeypatch.setattr(score, "inpaint_images", run)
        monkeypatch.setattr(score, "final_images", next)
        return score_inpainting(network, data, load_classifier(data, CPU)[0], 20, 5, 2, 2, 0)

    whole, blank = scores_of(lambda x0: x0), scores_of(lambda x0: -1)
    assert whole["RePaint"]["psnr"] == 100
    assert whole["RePaint"]["accuracy"] == whole["accuracy_real"]
    assert 0 < blank["RePaint"]["psnr"] < 20
    # The PSNR is over the filled pixels alone.
    assert scores_of(lambda x0: x0 + 0.2)["replacement"]["psnr"] == pytest.approx(20.0, abs=1e-4)
    # This network was never trained without the class, so it receives it.
    assert received["labels"] is not None
    assert whole["told"]
    network = network._replace(supports_cfg=True)
    assert not scores_of(lambda x0: x0)["told"]
    assert received["labels"] is None


def test_balanced_indices_take_the_classes_in_turn():
    split = Split(np.zeros((6, 1, 1, 1), np.uint8), np.array([5, 5, 0, 0, 0, 3]))
    assert balanced_indices(split, 10).tolist() == [2, 5, 0, 3, 1, 4]
    assert balanced_indices(split, 2).tolist() == [2, 5]


def test_make_edits_pairs_are_of_different_images(model, data, classifier):
    network, test = load("final", CPU), data.test
    two = Split(test.images[test.labels < 2], test.labels[test.labels < 2])
    arrays = make_edits(network, two, MODEL_DIR, params.load(edit=Edit).edit.fitted(network), 0)
    assert len({arrays[f"interpolate_image_{k}"][end].tobytes() for k in (1, 2, 3) for end in (0, -1)}) == 6


@pytest.mark.parametrize(
    ("requested", "fitted"),
    [((60, 10, 10), (50, 10, 10)), ((5, 10, 10), (5, 4, 10)), ((1, 10, 10), (1, 1, 1)), ((20, 5, 1), (20, 5, 1))],
)
def test_edit_fitted_limits_steps_and_jumps(model, requested, fitted):
    keys = ("steps", "repaint_jump_length", "repaint_resamples")
    settings = params.load(edit=Edit).edit.model_copy(update=dict(zip(keys, requested, strict=True)))
    section = settings.fitted(load("final", CPU))
    assert tuple(getattr(section, key) for key in keys) == fitted
