"""The classifier, LPIPS on both of its networks, and the Inception network from a weights file."""

import lpips
import numpy as np
import pytest
import torch
import torchvision
from evaluation_data import CPU, digits_data, first_images, untrained_classifier
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.fid import NoTrainInceptionV3

from ddpm.core.files import sha256
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import Prepared, Split
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.lpips import lpips_alex, lpips_classifier
from ddpm.features import pretrained
from ddpm.features.classifier import (
    TrainClassifier,
    check_pretext,
    load_classifier,
    predict,
    random_shift,
    save_classifier,
    train_classifier,
)
from ddpm.features.extractors import EXTRACTORS, load_lpips_alex
from ddpm.features.frechet import fit_gaussian, frechet
from ddpm.features.pretext import corrupted, views


class TestClassifier:
    def test_predict_does_not_depend_on_batches(self, monkeypatch):
        classifier, images = untrained_classifier(), digits_data().test.images[:50]
        whole = predict(classifier, images, CPU)
        monkeypatch.setattr("ddpm.features.classifier.PREDICT_BATCH", 7)
        for a, b in zip(whole, predict(classifier, images, CPU), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert whole[0].shape == (50, 64)
        np.testing.assert_allclose(whole[1].sum(1), 1)

    def test_random_shift_is_at_most_its_bound(self):
        torch.manual_seed(0)
        images = torch.zeros(200, 1, 9, 9)
        images[:, :, 4, 4] = 1
        rows, columns = torch.nonzero(random_shift(images, 2)[:, 0])[:, 1:].T
        for position in (rows, columns):
            assert sorted(set((position - 4).tolist())) == [-2, -1, 0, 1, 2]
        assert random_shift(images, 0) is images

    def test_training_is_bit_equal_with_one_seed(self):
        few = first_images(digits_data(), 200, 500)
        settings = TrainClassifier(epochs=2, batch_size=32, learning_rate=0.01, max_shift=1, required_accuracy="auto")
        first, second, other = (train_classifier(few, settings, seed, CPU, lambda row: None).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert not all(torch.equal(value, other[name]) for name, value in first.items())


class TestPretext:
    """A network of one class is trained on orientations."""

    SETTINGS = TrainClassifier(epochs=8, batch_size=64, learning_rate=0.01, max_shift=1, required_accuracy="auto")

    def trained(self, width=8, epochs=4, train=1297):
        data = first_images(digits_data(), train, 500)
        splits = [Split(split.images[:, :, :width], np.zeros_like(split.labels)) for split in (data.train, data.test)]
        data = Prepared(data.meta | {"class_names": ["all"], "shape": [8, width, 1]}, *splits)
        rows = []
        settings = self.SETTINGS.model_copy(update={"epochs": epochs})
        network = train_classifier(data, settings, 0, CPU, rows.append)
        return data, network, check_pretext(network, data, rows[-1]["pretext_accuracy"], 0, CPU)

    @pytest.mark.parametrize(("width", "task"), [(8, "rotations"), (6, "flips")])
    def test_features_of_one_class_tell_real_from_corrupted_images(self, width, task):
        data, network, facts = self.trained(width)
        assert (facts["trained_on"], facts["status"], network.predicts_classes) == (task, "ok", False)
        assert facts["pretext_accuracy"] > 0.8
        evaluator = Evaluator(data, network, 500, seed=0, device=CPU)
        for kind, images in corrupted(data, 1).items():
            scores = evaluator.evaluate(np.ascontiguousarray(images), data.test.labels, kind, "coverage").scores
            assert scores["classifier"]["fid"] > 10 * evaluator.fid_floor
            assert not {"accuracy", "classes", "is"} & {*scores, *scores["classifier"]}

    def test_features_that_fail_the_check_measure_nothing(self, tmp_path):
        data, network, facts = self.trained(epochs=1, train=40)
        save_classifier(network, data, facts, tmp_path)
        loaded, config = load_classifier(data, CPU, tmp_path)
        assert config["status"].startswith("nothing is measured: ")
        evaluator = Evaluator(data, loaded, 500, seed=0, device=CPU)
        scores = evaluator.evaluate(data.test.images, data.test.labels, "ddpm").scores
        assert scores["classifier"] == evaluator.real()["classifier"] == {"status": config["status"]}
        assert "accuracy" not in scores
        assert evaluator.fid_floor is None
        assert "classifier" not in scores["diversity"]

    def test_views_keep_the_shape_and_differ(self):
        for shape in ((2, 1, 8, 8), (2, 3, 4, 6)):
            turned, numbers = views(torch.rand(shape))
            assert turned.shape == (8, *shape[1:])
            assert numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
            assert len(turned.unique(dim=0)) == 8


class TestLPIPS:
    def test_lpips_classifier_grows_with_noise(self):
        x = to_model_range(to_tensor(digits_data().test.images[:20]))
        assert lpips_classifier(untrained_classifier(), x, x).abs().max() == 0
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        distances = [float(lpips_classifier(untrained_classifier(), x, x + s * noise).mean()) for s in (0.05, 0.1, 0.2, 0.4)]
        assert distances == sorted(distances)
        assert distances[0] > 0

    def test_lpips_classifier_follows_its_formula(self):
        classifier = untrained_classifier()
        a, b = torch.rand(2, 2, 1, 8, 8) * 2 - 1
        expected = torch.zeros(2)
        for fa, fb in zip(classifier.maps(a), classifier.maps(b), strict=True):
            unit_a, unit_b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in (fa, fb))
            expected += (unit_a - unit_b).square().mean(1).mean((1, 2))
        torch.testing.assert_close(lpips_classifier(classifier, a, b), expected.double(), rtol=1e-4, atol=1e-7)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # how lpips builds AlexNet
    def test_lpips_alex_from_a_weights_file_agrees_with_lpips(self, tmp_path):
        torch.manual_seed(0)
        trunk = torchvision.models.alexnet(weights=None).features
        torch.save({f"features.{name}": value for name, value in trunk.state_dict().items()}, tmp_path / "alexnet.pth")
        network = load_lpips_alex(tmp_path / "alexnet.pth", CPU)
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        for i in range(1, 6):
            for name, layer in getattr(reference.net, f"slice{i}").named_children():
                layer.load_state_dict(trunk[int(name)].state_dict())
        a, b = torch.rand(2, 3, 3, 64, 64) * 2 - 1
        torch.testing.assert_close(lpips_alex(network, a, b), reference(a, b).double().flatten(), rtol=1e-5, atol=1e-8)
        gray = torch.rand(2, 1, 8, 8) * 2 - 1
        assert lpips_alex(network, gray, gray.flip(-1)).shape == (2,)
        with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
            lpips_alex(network, gray * 100, gray)


@pytest.mark.slow
def test_inception_from_a_weights_file_agrees_with_torch_fidelity_and_torchmetrics(tmp_path, monkeypatch):
    """With a file of random weights of the right shapes."""
    monkeypatch.setenv("DDPM_WEIGHTS_ROOT", str(tmp_path))
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        peer = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"])
    path = tmp_path / pretrained.INCEPTION.name
    torch.save(peer.state_dict(), path)
    digest = sha256(path)[:8]
    path = path.rename(path.with_name(f"random-{digest}.pth"))
    weights = pretrained.INCEPTION._replace(name=path.name, sha256=digest)
    monkeypatch.setitem(EXTRACTORS, "inception", EXTRACTORS["inception"]._replace(weights=weights))
    data = digits_data()
    few, samples = first_images(data, 40, 20), data.train.images[100:120]
    evaluator = Evaluator(few, untrained_classifier(), 20, seed=0, device=CPU)
    scores = evaluator.evaluate(samples, data.train.labels[100:120], "ddpm").scores

    def extract(images):
        with torch.no_grad():
            return peer(to_tensor(images).expand(-1, 3, -1, -1))

    (train, _), (features, logits) = extract(few.train.images), extract(samples)
    statistics = [fid_features_to_statistics(x.double()) for x in (features, train)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert scores["inception"]["fid"] == pytest.approx(expected, rel=1e-3)
    assert scores["inception"]["is"] == pytest.approx(isc_features_to_metric(logits, 1, False)["inception_score_mean"], rel=1e-5)
    # torchmetrics' network, loaded from the same file, gives the same features, with the same distance.
    other = NoTrainInceptionV3("other", ["2048"], str(path), antialias=False)
    other_features, reference = (other(to_tensor(images).expand(-1, 3, -1, -1)) for images in (samples, few.train.images))
    torch.testing.assert_close(other_features, features, rtol=1e-5, atol=1e-5)
    gaussians = [fit_gaussian(x.double().numpy()) for x in (other_features, reference)]
    assert scores["inception"]["fid"] == pytest.approx(frechet(*gaussians), rel=1e-5)
    assert scores["inception"]["status"] == "ok"
    assert set(scores["inception"]) == {*scores["classifier"], "status"}
    assert set(evaluator.real()["inception"]) == {"precision", "recall", "density", "coverage", "status"}
    network = evaluator.space("inception").extract.network
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
