"""Defects of metric libraries, each with a test that this project does not have it.

Others are tested elsewhere: unequal shapes into PSNR and 0-255 into LPIPS in test_evaluation.py, floats outside the range in
test_loader.py (to_uint8), NaN in a JSON file in test_files.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.core.files import InputError, write_json, write_npz
from ddpm.core.paths import METRICS_FILE
from ddpm.data.images import to_tensor
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.fid import check_features, inception_score, kernel_distance
from ddpm.evaluation.likelihood import Likelihood
from ddpm.evaluation.lpips import lpips_alex
from ddpm.evaluation.reconstruction import Reconstruction, RoundTrips
from ddpm.evaluation.results import write_results
from ddpm.features.classifier import Classifier, load_classifier, predict, save_classifier
from ddpm.features.extractors import Inception
from stages.evaluate import main

CPU = torch.device("cpu")


def make_classifier(data, network=None):
    torch.manual_seed(0)
    save_classifier(network or Classifier(1, 10), data, {"accuracy": 1.0})


def make_samples(images, **others):
    """samples/*.npz as the stages write them: `images` by DDPM, or those of another sampler by its name."""
    for name in ("ddpm", "ddim"):
        arrays = {"arr_0": others.get(name, images), "sampler": np.array([name.upper()])}
        write_npz(f"samples/{name}.npz", arrays)
        write_json(f"reports/sample_{name}/metrics.json", {"nfe": 50, "seconds": 1.0, "images_per_second": 20.0})


class TestStage:
    """Exit status 1 and one line, never a signal."""

    def test_an_image_that_is_nan(self, model, data, refused):
        make_classifier(data)
        images = data.test.images[:20].astype(np.float32) / 255
        images[3, 2, 2] = np.nan
        make_samples(data.test.images[:20], ddim=images)
        assert refused(main) == "samples/ddim.npz: 1 of 20 images are NaN or infinite; run `dvc repro -f sample_ddim`"
        assert not METRICS_FILE.exists()

    def test_images_that_are_floats(self, model, data, refused):
        """They would wrap around, or be taken for black: no range is guessed."""
        make_classifier(data)
        make_samples(data.test.images[:20] / np.float32(255))
        assert refused(main).startswith("samples/ddpm.npz: holds float32 images of shape (8, 8, 1), the data is uint8 of shape")

    def test_classifier_with_nan_weights(self, model, data, refused):
        network = Classifier(1, 10)
        with torch.no_grad():
            network.convs[2].weight[0, 0, 0, 0] = torch.nan
        make_classifier(data, network)
        make_samples(data.test.images[:20])
        message = refused(main)
        assert message.startswith("classifier: training split: the features of 1297 of 1297 images are NaN or infinite; ")
        assert "`dvc repro -f train_classifier`" in message
        assert not METRICS_FILE.exists()

    def test_fewer_samples_than_neighbours(self, model, data, refused):
        make_classifier(data)
        make_samples(data.test.images[:20], ddim=data.test.images[:5])
        assert refused(main) == (
            "evaluate: sets of 5 images are too few for 5 neighbours of each; use at least 6 samples (sample_ddpm.samples, "
            "sample_ddim.samples) and test images"
        )
        make_samples(data.test.images[:20], ddim=data.test.images[:1])
        assert refused(main).startswith("evaluate: 1 samples and 500 test images are too few")


class TestMetricsFile:
    def scores(self, **changes):
        space = {"fid": 1.0, "fid_floor": 1.0, "precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}
        of_sampler = {name: {"sampler": name.upper(), "classifier": space | changes} for name in ("ddpm", "ddim")}
        return {**of_sampler, "real": {"classifier": space}}

    def write(self, scores, seconds=1.0):
        results = Reconstruction({}, [{"psnr": 1.0}], {}), Likelihood({}, np.zeros(2), {}), RoundTrips({}, {})
        write_results(scores, {name: {"seconds": seconds} for name in ("ddpm", "ddim")}, *results, {}, [])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_it_takes_no_nan_and_no_infinity(self, workspace, value):
        with pytest.raises(InputError, match=r"scores\.json: a value is NaN or infinite"):
            self.write(self.scores(kid=value))
        assert not Path("samples").exists()
        with pytest.raises(InputError, match=r"metrics\.json: a value is NaN or infinite"):
            self.write(self.scores(), seconds=value)
        assert not METRICS_FILE.exists()
        self.write(self.scores())
        assert METRICS_FILE.exists()


def test_nan_features_are_refused_by_name():
    features = np.ones((5, 3))
    features[[1, 4], 2] = np.nan, np.inf
    with pytest.raises(InputError, match="inception: ddpm: the features of 2 of 5 images are NaN or infinite"):
        check_features(features, "inception: ddpm")
    with pytest.raises(InputError, match="x: 1 images are too few"):
        check_features(features[:1], "x")


def test_other_samples_under_the_same_name_get_other_scores(data):
    """Nothing is cached by name."""
    torch.manual_seed(0)
    evaluator = Evaluator(data, Classifier(1, 10), 20, 0, CPU)
    first, second = (evaluator.evaluate(data.test.images[part], None, "ddpm").scores for part in (slice(0, 20), slice(20, 40)))
    assert first["classifier"]["fid"] != second["classifier"]["fid"]
    assert first["memorization"] != second["memorization"]


class TestExtractors:
    def test_classifier_is_loaded_in_eval_mode_and_frozen(self, data):
        make_classifier(data)
        network, _ = load_classifier(data, CPU)
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())

    def test_one_that_was_left_in_train_mode_gives_the_same_features(self, data):
        torch.manual_seed(0)
        network = Classifier(1, 10)
        expected, _ = predict(network.eval(), data.test.images[:50], CPU)
        found, _ = predict(network.train(), data.test.images[:50], CPU)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_gray_images_reach_the_inception_as_three_equal_channels(self, channels):
        batches = []

        def network(batch):
            batches.append(batch)
            return torch.ones(len(batch), 2048), torch.ones(len(batch), 1008)

        inception = Inception.__new__(Inception)
        inception.device, inception.network = CPU, network
        images = np.arange(2 * 4 * 4 * channels, dtype=np.uint8).reshape(2, 4, 4, channels)
        features, probabilities = inception(images, "test")
        assert features.shape == (2, 2048)
        assert probabilities.shape == (2, 1008)
        assert batches[0].dtype == torch.uint8
        assert torch.equal(batches[0], torch.cat([to_tensor(images)] * (3 // channels), dim=1))

    @pytest.mark.filterwarnings("ignore::UserWarning")  # how lpips builds AlexNet
    def test_small_images_are_enlarged_for_alexnet(self):
        import lpips

        torch.manual_seed(0)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        a, b = torch.rand(2, 3, 1, 28, 28) * 2 - 1
        found = lpips_alex(network, a, b)
        assert found.shape == (3,)
        assert (found > 0).all()
        torch.testing.assert_close(lpips_alex(network, a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)), found)


def test_sets_of_two_images_have_a_distance_and_an_inception_score():
    """Where torch-fidelity refuses subsets of 1,000 images, and gives NaN for empty splits."""
    features = np.random.default_rng(0).standard_normal((8, 4))
    assert np.isfinite(kernel_distance(features, features[:2]))
    assert inception_score(np.full((2, 10), 0.1)) == pytest.approx(1)
