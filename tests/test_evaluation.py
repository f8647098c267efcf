"""Metrics against numbers worked out elsewhere, against two libraries, and against what each must do to bad images."""

import numpy as np
import pytest
import scipy.linalg
import torch
from oracles import gaussian_denoiser
from processes import in_processes
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import NoTrainInceptionV3

from ddpm.core.files import InputError, sha256
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import Prepared, Split, held_out
from ddpm.datasets.registry import digits
from ddpm.diffusion.schedule import make_schedule
from ddpm.evaluation.evaluator import LEVELS, Evaluator
from ddpm.evaluation.feature_metrics import FeatureMetrics, Features, Sizes, set_sizes
from ddpm.evaluation.fid import (
    consecutive_sets,
    disjoint_sets,
    fit_gaussian,
    frechet,
    frechet_at_infinity,
    inception_score,
    kernel_distance,
    kernel_within,
)
from ddpm.evaluation.likelihood import likelihood
from ddpm.evaluation.lpips import lpips_alex, lpips_classifier
from ddpm.evaluation.prdc import MIN_IMAGES
from ddpm.evaluation.reconstruction import (
    FRACTIONS,
    WienerFilter,
    level_at,
    noisy_pairs,
    psnr,
    reconstruct,
    round_trips,
    round_trips_if_trained,
    zero_denoiser,
)
from ddpm.features import pretrained
from ddpm.features.classifier import Classifier, TrainClassifier, predict, random_shift, train_classifier
from ddpm.features.extractors import EXTRACTORS, load_lpips_alex
from ddpm.sampling.model import DiffusionModel

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def frechet_distance(a, b):
    return frechet(fit_gaussian(a), fit_gaussian(b))


@pytest.fixture(scope="module")
def data():
    source = digits(None)
    meta = {"dataset": "digits", "shape": [8, 8, 1], "class_names": list(source.class_names), "sha256": {}}
    return Prepared(meta, Split(*source.train), Split(*source.test))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(1, 10).eval().requires_grad_(False)


class TestFrechet:
    def exact_sample(self, mean, covariance):
        """2 d points whose sample mean and unbiased covariance are exactly the given ones."""
        d = len(mean)
        points = np.concatenate([np.eye(d), -np.eye(d)]) * np.sqrt((2 * d - 1) / 2)
        return points @ scipy.linalg.sqrtm(np.diag(covariance)).real + mean

    def test_two_gaussians(self):
        a = self.exact_sample(np.zeros(8), np.linspace(0.5, 2, 8))
        b = self.exact_sample(np.linspace(0, 1, 8), np.linspace(2, 0.25, 8))
        assert frechet_distance(a, b) == pytest.approx(5.065024272736611, rel=1e-10)

    def test_a_shift_by_3_in_8_dimensions(self):
        a = RNG.standard_normal((100, 8))
        assert frechet_distance(a, a + 3) == pytest.approx(72, rel=1e-10)

    @pytest.mark.parametrize(("n", "m", "d"), [(500, 400, 16), (2000, 3000, 64), (20, 30, 64)])
    def test_it_agrees_with_torch_fidelity_and_is_symmetric(self, n, m, d):
        mix = RNG.standard_normal((d, d)) / np.sqrt(d)
        a, b = RNG.standard_normal((n, d)) @ mix, RNG.standard_normal((m, d)) @ mix.T * 1.2 + 0.1
        statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
        peer = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        # The peer's matrix square root of a singular covariance is good to about 1e-4.
        assert frechet_distance(a, b) == pytest.approx(peer, rel=1e-5 if n > d else 1e-3)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)

    @pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 300)])
    def test_a_set_is_at_distance_zero_of_itself(self, n, d):
        a = RNG.standard_normal((n, d))
        assert frechet_distance(a, a) < 1e-9
        assert frechet_distance(a, a[::-1]) < 1e-9

    def test_more_samples_of_one_law_are_closer(self):
        a = RNG.standard_normal((4000, 8))
        assert frechet_distance(a[:2000], a[2000:]) < 0.2 * frechet_distance(a[:100], a[100:200])


class TestFrechetAtInfinity:
    def test_the_bias_of_small_sets_is_gone(self):
        """Of one law as the reference: the distance at N is all bias, that at infinity none."""
        reference = fit_gaussian(RNG.standard_normal((100_000, 16)))
        sets = RNG.standard_normal((20, 500, 16))
        whole = np.mean([frechet(fit_gaussian(features), reference) for features in sets])
        assert whole == pytest.approx(0.17, rel=0.1)
        assert abs(np.mean([frechet_at_infinity(features, reference) for features in sets])) < 0.1 * whole

    def test_parts_are_not_made_smaller_than_the_line_holds(self):
        """With 500 images of 64 features fifths would end the line at -0.34."""
        reference = fit_gaussian(RNG.standard_normal((50_000, 64)))
        found = [frechet_at_infinity(RNG.standard_normal((500, 64)), reference) for _ in range(10)]
        assert np.mean(found) == pytest.approx(0, abs=0.15)

    def test_a_distance_that_is_there_stays(self):
        reference = RNG.standard_normal((50_000, 8))
        found = [frechet_at_infinity(RNG.standard_normal((400, 8)) + 0.5, fit_gaussian(reference)) for _ in range(10)]
        assert np.mean(found) == pytest.approx(8 * 0.5**2, rel=0.05)

    def test_it_is_deterministic_and_needs_a_line(self):
        features = RNG.standard_normal((60, 4))
        reference = fit_gaussian(features)
        assert frechet_at_infinity(features, reference) == frechet_at_infinity(features.copy(), reference)
        assert np.isfinite(frechet_at_infinity(features[:4], reference))
        with pytest.raises(InputError, match="fid_infinity: 3 images are too few for a line"):
            frechet_at_infinity(features[:3], reference)


class TestKernelDistance:
    @pytest.mark.parametrize("d", [4, 64, 300])
    def test_it_agrees_with_torch_fidelity_where_a_subset_is_the_whole_set(self, d):
        a, b = RNG.standard_normal((200, d)), RNG.standard_normal((200, d)) * 1.1 + 0.1
        peer = kid_features_to_metric(
            torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=200, verbose=False
        )["kernel_inception_distance_mean"]
        assert kernel_distance(a, b) == pytest.approx(peer, rel=1e-9)
        assert kernel_distance(b, a) == pytest.approx(kernel_distance(a, b), rel=1e-9)

    def test_it_is_the_mean_of_torch_fidelity_over_many_subsets(self):
        a, b = RNG.standard_normal((300, 8)), RNG.standard_normal((500, 8)) + 0.3
        peer = kid_features_to_metric(
            torch.from_numpy(a), torch.from_numpy(b), kid_subsets=400, kid_subset_size=100, verbose=False
        )
        error = peer["kernel_inception_distance_std"] / 20
        assert kernel_distance(a, b) == pytest.approx(peer["kernel_inception_distance_mean"], abs=4 * error)

    def test_it_is_unbiased(self):
        values = [kernel_distance(RNG.standard_normal((20, 4)), RNG.standard_normal((30, 4))) for _ in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 20
        assert min(values) < 0

    def test_blocks_leave_it_unbiased_and_what_is_known_is_used(self, monkeypatch):
        a, b = RNG.standard_normal((50, 4)), RNG.standard_normal((401, 4))
        exact = kernel_within(b)
        assert kernel_distance(a, b, exact) == kernel_distance(a, b)
        monkeypatch.setattr("ddpm.evaluation.fid.KERNEL_BLOCK", 100)
        estimates = [kernel_within(RNG.permutation(b)) for _ in range(100)]
        assert np.mean(estimates) == pytest.approx(exact, abs=3 * np.std(estimates) / 10)

    def test_chunks_and_processes_change_nothing(self, monkeypatch):
        a, b = RNG.standard_normal((50, 4)), RNG.standard_normal((80, 4)) + 1
        whole = kernel_distance(a, b)
        monkeypatch.setattr("ddpm.evaluation.prdc.ELEMENTS", 300)
        alone = kernel_distance(a, b)
        assert alone == pytest.approx(whole, rel=1e-12)
        for count in (2, 3):
            assert in_processes(count, lambda: kernel_distance(a, b)) == [alone] * count


class TestInceptionScore:
    def test_its_ends(self):
        assert inception_score(np.tile(np.eye(10), (20, 1))) == pytest.approx(10)
        assert inception_score(np.full((50, 10), 0.1)) == pytest.approx(1)
        assert inception_score(np.tile(np.eye(10)[:4], (20, 1))) == pytest.approx(4)

    def test_it_agrees_with_torch_fidelity(self):
        logits = torch.from_numpy(RNG.standard_normal((300, 12)) * 3)
        peer = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
        assert inception_score(logits.softmax(1).numpy()) == pytest.approx(peer, rel=1e-10)


class TestPSNR:
    def test_known_values(self):
        x = torch.zeros(3, 1, 8, 8)
        # An offset of 0.1 in a range of 1 is 0.2 in a range of 2.
        assert psnr(x + 0.2, x).tolist() == pytest.approx([20.0] * 3, abs=1e-5)
        assert psnr(x, x).tolist() == [100.0] * 3

    def test_it_is_the_mean_over_images_of_torchmetrics(self):
        a, b = torch.rand(2, 6, 3, 8, 8) * 2 - 1
        peer = PeakSignalNoiseRatio(data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3))
        assert float(psnr(a, b).mean()) == pytest.approx(float(peer(a, b)), rel=1e-5)

    def test_shapes_must_be_equal(self):
        with pytest.raises(ValueError, match="shapes differ"):
            psnr(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))

    def test_no_denoising_at_a_quarter_of_the_linear_schedule(self):
        """Without clipping x_t / alpha is off by sigma / alpha, whatever the image: 6.39 dB at t = 250."""
        x0 = torch.rand(400, 1, 28, 28) * 2 - 1
        x_t, level = noisy_pairs(x0, make_schedule("linear", 1000), 251, torch.Generator().manual_seed(0))
        assert float(psnr(x_t / level.alpha, x0).mean()) == pytest.approx(6.39, abs=0.05)
        assert float(psnr(zero_denoiser(x_t, level), x0).mean()) > 6.39


class TestWiener:
    def test_it_is_the_best_linear_denoiser(self, data):
        wiener = WienerFilter(data.train.images, seed=0)
        x0 = to_model_range(to_tensor(data.test.images))
        schedule = make_schedule("linear", 1000)
        for fraction in FRACTIONS:
            x_t, level = noisy_pairs(x0, schedule, level_at(schedule, fraction), torch.Generator().manual_seed(1))
            denoised = wiener(x_t, level)
            assert denoised.shape == x0.shape
            assert psnr(denoised, x0).mean() > psnr(zero_denoiser(x_t, level), x0).mean()

    def test_it_equals_the_posterior_mean_of_a_gaussian(self):
        images = RNG.integers(100, 156, (50, 2, 2, 1), np.uint8)
        flat = images.reshape(50, 4) / 127.5 - 1
        mean, covariance = flat.mean(0), np.cov(flat.T)
        level = make_schedule("linear", 1000)[100]
        a, s = float(level.alpha), float(level.sigma)
        x_t = RNG.standard_normal((3, 4)) * 0.1
        gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(4))
        expected = mean + (x_t - a * mean) @ gain.T
        found = WienerFilter(images, 0)(torch.from_numpy(x_t).reshape(3, 1, 2, 2), level)
        np.testing.assert_allclose(found.reshape(3, 4), expected, rtol=1e-8, atol=1e-10)

    def test_many_pixels_few_images_give_the_same_filter(self, data, monkeypatch):
        x_t, level = noisy_pairs(
            to_model_range(to_tensor(data.test.images[:5])), make_schedule("linear", 100), 25, torch.Generator()
        )
        direct = WienerFilter(data.train.images, 0)(x_t, level)
        monkeypatch.setattr("ddpm.evaluation.reconstruction.WIENER_LIMIT", 60)
        monkeypatch.setattr("ddpm.evaluation.reconstruction.WIENER_IMAGES", 10_000)
        torch.testing.assert_close(WienerFilter(data.train.images, 0)(x_t, level), direct, atol=1e-6, rtol=0)


class TestLPIPS:
    def test_on_the_judge(self, classifier, data):
        x = to_model_range(to_tensor(data.test.images[:20]))
        assert lpips_classifier(classifier, x, x).abs().max() == 0
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        distances = [float(lpips_classifier(classifier, x, x + scale * noise).mean()) for scale in (0.05, 0.1, 0.2, 0.4)]
        assert distances == sorted(distances)
        assert distances[0] > 0

    def test_its_formula(self, classifier):
        a, b = torch.rand(2, 2, 1, 8, 8) * 2 - 1
        expected = torch.zeros(2)
        for fa, fb in zip(classifier.maps(a), classifier.maps(b), strict=True):
            unit_a, unit_b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in (fa, fb))
            expected += (unit_a - unit_b).square().mean(1).mean((1, 2))
        torch.testing.assert_close(lpips_classifier(classifier, a, b), expected.double(), rtol=1e-4, atol=1e-7)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # how lpips builds AlexNet
    def test_by_alexnet_from_a_weights_file(self, tmp_path, monkeypatch):
        """A file of random weights of torchvision's shapes: loaded, checked, and scored as lpips itself would."""
        import lpips
        import torchvision

        torch.manual_seed(0)
        trunk = torchvision.models.alexnet(weights=None)
        path = tmp_path / pretrained.ALEXNET.name
        torch.save(trunk.state_dict(), path)
        network = load_lpips_alex(path, CPU)
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        for i in range(1, 6):
            for name, layer in getattr(reference.net, f"slice{i}").named_children():
                layer.load_state_dict(trunk.features[int(name)].state_dict())
        a, b = torch.rand(2, 3, 3, 64, 64) * 2 - 1
        torch.testing.assert_close(lpips_alex(network, a, b), reference(a, b).double().flatten(), rtol=1e-5, atol=1e-8)
        gray = torch.rand(2, 1, 8, 8) * 2 - 1
        assert lpips_alex(network, gray, gray.flip(-1)).shape == (2,)
        with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
            lpips_alex(network, gray * 100, gray)


class TestClassifier:
    def test_predictions_do_not_depend_on_batches(self, classifier, data, monkeypatch):
        whole = predict(classifier, data.test.images[:50], CPU)
        monkeypatch.setattr("ddpm.features.classifier.PREDICT_BATCH", 7)
        for a, b in zip(whole, predict(classifier, data.test.images[:50], CPU), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert whole[0].shape == (50, 64)
        np.testing.assert_allclose(whole[1].sum(1), 1)

    def test_shifted_moves_by_at_most_its_bound(self):
        torch.manual_seed(0)
        images = torch.zeros(200, 1, 9, 9)
        images[:, :, 4, 4] = 1
        rows, columns = torch.nonzero(random_shift(images, 2)[:, 0])[:, 1:].T
        for position in (rows, columns):
            assert sorted(set((position - 4).tolist())) == [-2, -1, 0, 1, 2]
        assert random_shift(images, 0) is images


class TestScores:
    def test_sets_are_disjoint_and_of_one_size(self):
        sets = disjoint_sets(103, 25, seed=0)
        assert [len(s) for s in sets] == [25] * 4
        assert len(np.unique(np.concatenate(sets))) == 100
        assert set_sizes(1000, 300) == (300, 3)

    def test_sets_of_samples_hold_every_class_equally_often(self):
        labels = np.arange(103) % 5
        counts = [np.bincount(labels[part]).tolist() for part in consecutive_sets(103, 25)]
        assert counts == [[5] * 5] * 4

    def test_too_few_images_are_refused(self):
        with pytest.raises(InputError, match="1 samples and 300 test images are too few"):
            set_sizes(1, 300)

    def test_metrics_move_the_way_they_should(self, classifier, data):
        """Real test images as samples reach the floor; noise raises FID and KID; a collapse lowers IS, accuracy and recall."""
        evaluator = Evaluator(data, classifier, 500, seed=0, device=CPU)
        real = evaluator.evaluate(data.test.images, data.test.labels, "ddpm").scores
        found = real["classifier"]
        assert found["fid"] == pytest.approx(found["fid_floor"], rel=1e-9)
        assert found["fid_excess"] == pytest.approx(0, abs=1e-12)
        assert found["fid_test"] < 1e-9
        assert found["fid_infinity"] < found["fid"]
        assert found["kid"] == pytest.approx(found["kid_floor"], rel=1e-9)
        assert found["is"] == pytest.approx(found["is_real"], rel=1e-9)
        assert real["inception"] == {"status": "weights missing"}
        assert not [key for key in found if key.endswith("_sd")]
        assert evaluator.real() == {
            "classifier": pytest.approx({key: found[key] for key in ("precision", "recall", "density", "coverage")}),
            "inception": {"status": "weights missing"},
        }
        assert real["memorization"]["nn_auc"] == 0.5
        assert real["diversity"] == {"classifier": 1, "status": "weights missing"}
        noise = RNG.standard_normal(data.test.images.shape)
        noisy = [np.clip(data.test.images + 127.5 * scale * noise, 0, 255).astype(np.uint8) for scale in (0.05, 0.1, 0.2, 0.4)]
        scores = [evaluator.evaluate(images, data.test.labels, "ddpm").scores for images in noisy]
        for key in ("fid", "kid"):
            values = [score["classifier"][key] for score in scores]
            assert values == sorted(values)
            assert values[-1] > 2 * found[f"{key}_floor"]
        quick = evaluator.evaluate(noisy[0], data.test.labels, "ddpm", level="fid")
        assert quick.scores == {
            "classifier": {key: scores[0]["classifier"][key] for key in ("fid", "fid_floor")},
            "accuracy": scores[0]["accuracy"],
        }
        coverage = evaluator.evaluate(noisy[0], None, "ddpm", level="coverage").scores["classifier"]
        assert coverage == {key: scores[0]["classifier"][key] for key in ("fid", "fid_floor", *LEVELS["coverage"][1:])}
        collapsed, predicted_class, *_ = evaluator.evaluate(np.repeat(data.test.images[:1], 500, 0), data.test.labels, "ddpm")
        assert collapsed["classifier"]["is"] == pytest.approx(1)
        assert collapsed["classifier"]["fid"] > scores[0]["classifier"]["fid"]
        assert collapsed["classifier"]["recall"] < 0.01
        assert collapsed["accuracy"] == pytest.approx((data.test.labels == predicted_class[0]).mean())
        assert collapsed["diversity"]["classifier"] == 0

    def test_a_collapse_to_100_images_keeps_precision_and_loses_recall(self, data):
        """In pixels, which need no classifier: real images, five of each."""
        pixels = [split.images.reshape(len(split.images), -1) / 255 for split in (data.train, data.test)]
        space = FeatureMetrics("pixels", pixels[0], Features(pixels[1], np.full((500, 10), 0.1)), Sizes(500, 1), 0)
        copies = np.tile(pixels[1][:100], (5, 1))
        scores = space.score(Features(copies, np.full((500, 10), 0.1)), "collapse")
        assert scores["precision"] > 0.8
        assert scores["recall"] < 0.3
        assert space.real()["recall"] > 0.8

    def test_three_sets_have_a_spread(self, classifier, data):
        evaluator = Evaluator(data._replace(test=Split(data.test.images[:150], data.test.labels[:150])), classifier, 500, 0, CPU)
        assert evaluator.sizes == (150, 3)
        scores = evaluator.evaluate(data.train.images[:500], None, "ddim").scores
        assert all(scores["classifier"][f"{key}_sd"] > 0 for key in ("fid", "kid", "is"))
        assert "accuracy" not in scores
        assert scores["memorization"]["near_copies"] == 1
        assert scores["memorization"]["nn_auc"] < 0.01

    def test_all_scores_are_the_same_on_any_number_of_processes(self, classifier, data):
        few = data._replace(test=Split(data.test.images[:60], data.test.labels[:60]))

        def work():
            found = Evaluator(few, classifier, 120, 0, CPU).evaluate(data.test.images[100:220], data.test.labels[100:220], "ddpm")
            return found.scores, found.predicted_class.tolist(), found.neighbours.tobytes(), found.ratios.tolist()

        alone = work()
        for count in (2, 3):
            assert in_processes(count, work) == [alone] * count

    def test_sets_too_small_for_their_neighbours_are_refused(self, classifier, data):
        evaluator = Evaluator(data, classifier, MIN_IMAGES - 1, 0, CPU)
        with pytest.raises(InputError, match="evaluate: sets of 5 images are too few for 5 neighbours of each; use at least 6"):
            evaluator.evaluate(data.train.images[:5], None, "ddim")
        assert np.isfinite(evaluator.evaluate(data.train.images[:5], None, "ddim", "fid").scores["classifier"]["fid"])
        enough = Evaluator(data, classifier, MIN_IMAGES, 0, CPU).evaluate(data.train.images[:MIN_IMAGES], None, "ddim").scores
        assert np.isfinite(list(enough["classifier"].values())).all()

    def test_samples_of_another_shape_are_refused(self, classifier, data):
        evaluator = Evaluator(data, classifier, 500, seed=0, device=CPU)
        with pytest.raises(InputError, match=r"samples/ddim.npz: holds uint8 images of shape \(9, 9, 1\)"):
            evaluator.evaluate(np.zeros((500, 9, 9, 1), np.uint8), np.zeros(500), "ddim")

    def test_reconstruction_of_a_network_that_predicts_no_noise_is_the_zero_baseline(self, classifier, data):
        class Silent(torch.nn.Linear):
            def forward(self, x, t, labels):
                return torch.zeros_like(x)

        model = DiffusionModel(Silent(1, 1), make_schedule("linear", 1000), "eps", {})
        found = reconstruct(model, data, classifier, 300, 0)
        assert found.scores["psnr"] == pytest.approx(found.scores["psnr_zero"], rel=1e-6)
        assert found.scores["psnr"] < found.scores["psnr_wiener"]
        assert found.scores["level"] == 250
        assert found.scores["n"] == 300
        assert found.scores["lpips"]["status"] == "weights missing"
        assert len(found.curve) == 3 * len(FRACTIONS)
        assert set(found.examples) == {"clean", "noisy", "network", "wiener", "zero"}


class Shrinking(torch.nn.Module):
    """Predicts a part of x_t as x0; with `learns`, a variance between the fixed ones too."""

    def __init__(self, part=0.6, learns=False):
        super().__init__()
        self.part = torch.nn.Parameter(torch.tensor(part))
        self.outputs = 2 if learns else 1

    def forward(self, x, t, labels):
        x0 = self.part * x
        return torch.cat([x0, torch.full_like(x, -0.2)], dim=1) if self.outputs == 2 else x0


def shrinking_model(steps=30, **options):
    return DiffusionModel(Shrinking(**options), make_schedule("cosine", steps), "x0", {"shape": [4, 4, 1]})


class TestLikelihood:
    x0 = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.zeros(40, dtype=torch.int64)

    @pytest.mark.parametrize("learns", [False, True])
    def test_all_levels_add_up_to_the_whole_bound(self, learns):
        model = shrinking_model(learns=learns)
        found = likelihood(model, self.x0, self.labels, None, 0)
        assert found.scores["evaluations"] == 30
        assert found.level.tolist() == list(range(1, 31))
        assert set(found.curve) == {"small", "large"} | ({"learned"} if learns else set())
        for name, bits in found.curve.items():
            scores = found.scores[name]
            assert scores["bits_per_dim"] == pytest.approx(found.scores["prior"] + bits.sum(), rel=1e-9)
            assert scores["decoder"] == pytest.approx(bits[0])
            assert scores["steps"] == pytest.approx(bits[1:].sum())
            assert 0 < scores["bits_per_dim_se"] < 1
        if learns:
            totals = [found.scores[name]["bits_per_dim"] for name in ("small", "learned", "large")]
            assert len(set(totals)) == 3

    def test_some_levels_estimate_it_without_bias(self):
        model = shrinking_model()
        exact = np.mean([likelihood(model, self.x0, self.labels, None, s).scores["large"]["bits_per_dim"] for s in range(30)])
        some = [likelihood(model, self.x0, self.labels, 4, s).scores["large"]["bits_per_dim"] for s in range(150)]
        assert np.mean(some) == pytest.approx(exact, abs=4 * np.std(some) / len(some) ** 0.5)
        assert np.std(some) < 0.1 * exact

    def test_a_network_that_knows_the_image_pays_for_the_decoder_alone(self):
        x0 = to_model_range(torch.randint(0, 256, (1, 1, 4, 4)))

        class Knows(Shrinking):
            def forward(self, x, t, labels):
                return x0.expand_as(x)

        model = DiffusionModel(Knows(), make_schedule("linear", 1000), "x0", {"shape": [4, 4, 1]})
        scores = likelihood(model, x0.expand(3, -1, -1, -1), self.labels[:3], 50, 0).scores
        assert scores["small"]["steps"] == pytest.approx(0, abs=1e-6)
        assert scores["small"]["bits_per_dim"] == pytest.approx(scores["prior"] + scores["small"]["decoder"], abs=1e-6)
        assert scores["large"]["steps"] > 1e-3

    @pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
    def test_a_schedule_without_signal_at_its_end(self, prediction):
        schedule = make_schedule("cosine", 20, zero_terminal_snr=True)
        model = DiffusionModel(Shrinking(), schedule, prediction, {"shape": [4, 4, 1]})
        scores = likelihood(model, self.x0, self.labels, None, 0).scores
        assert scores["prior"] == pytest.approx(0, abs=1e-12)
        assert np.isfinite(scores["small"]["bits_per_dim"])
        trips = round_trips(model, self.x0, self.labels)
        assert np.isfinite(trips.scores["steps_10"]["psnr"])


class TestRoundTrip:
    def test_a_network_that_sees_no_noise_returns_all_images_and_is_not_asked(self, data):
        class Silent(Shrinking):
            def forward(self, x, t, labels):
                return torch.zeros_like(x)

        model = DiffusionModel(Silent(), make_schedule("linear", 60), "eps", {"shape": [8, 8, 1]})
        x0, labels = held_out(data, 30, 0, CPU)
        trips = round_trips(model, x0, labels)
        assert set(trips.scores) == {"n", "steps_10", "steps_20", "steps_50"}
        assert all(trips.scores[f"steps_{steps}"]["psnr"] > 99 for steps in (10, 20, 50))
        assert trips.examples["clean"].shape == trips.examples["steps_10"].shape == (8, 1, 8, 8)
        refused = round_trips_if_trained(model, x0, labels, {"psnr": 9.0, "psnr_wiener": 15.0})
        assert refused.scores["status"].startswith("not measured")
        assert round_trips_if_trained(model, x0, labels, {"psnr": 16.0, "psnr_wiener": 15.0}).scores == trips.scores

    def test_more_steps_bring_back_more_of_the_image(self):
        schedule = make_schedule("cosine", 100)

        class Best(Shrinking):
            def forward(self, x, t, labels):
                return gaussian_denoiser(0.0, 0.5)(x, schedule[float(t[0]) + 1]).x0

        x0 = (0.5 * torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
        scores = round_trips(DiffusionModel(Best(), schedule, "x0", {}), x0, torch.zeros(50, dtype=torch.int64)).scores
        errors = [scores[f"steps_{steps}"]["mse"] for steps in (10, 20, 50, 100)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 10
        assert scores["steps_100"]["latent_sd"] == pytest.approx(1, abs=0.1)


def test_the_judge_is_the_same_bit_for_bit_at_one_number_of_threads(data, monkeypatch):
    few = data._replace(train=Split(data.train.images[:200], data.train.labels[:200]))
    settings = TrainClassifier(epochs=2, batch_size=32, learning_rate=0.01, max_shift=1, required_accuracy="auto")
    first, second, other = (train_classifier(few, settings, seed, CPU, lambda row: None).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


class TestWeights:
    @pytest.fixture(autouse=True)
    def weights_root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DDPM_WEIGHTS_ROOT", str(tmp_path))
        return tmp_path

    @pytest.mark.slow
    def test_inception_from_a_weights_file(self, weights_root, monkeypatch, classifier, data):
        """A file of random weights of the right shapes gives the numbers that torch-fidelity's own functions give."""
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
            patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
            peer = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"])
        path = weights_root / pretrained.INCEPTION.name
        torch.save(peer.state_dict(), path)
        digest = sha256(path)[:8]
        path = path.rename(path.with_name(f"random-{digest}.pth"))
        weights = pretrained.INCEPTION._replace(name=path.name, sha256=digest)
        monkeypatch.setitem(EXTRACTORS, "inception", EXTRACTORS["inception"]._replace(weights=weights))
        few = data._replace(
            train=Split(data.train.images[:40], data.train.labels[:40]), test=Split(data.test.images[:20], data.test.labels[:20])
        )
        evaluator = Evaluator(few, classifier, 20, seed=0, device=CPU)
        samples = data.train.images[100:120]
        scores = evaluator.evaluate(samples, data.train.labels[100:120], "ddpm").scores

        def extract(images):
            with torch.no_grad():
                return peer(to_tensor(images).expand(-1, 3, -1, -1))

        (train, _), (mine, logits) = extract(few.train.images), extract(samples)
        statistics = [fid_features_to_statistics(x.double()) for x in (mine, train)]
        expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert scores["inception"]["fid"] == pytest.approx(expected, rel=1e-3)
        assert scores["inception"]["is"] == pytest.approx(
            isc_features_to_metric(logits, 1, False)["inception_score_mean"], rel=1e-5
        )
        # torchmetrics' network, of the same file, sees the same, and its features have the same distance.
        other = NoTrainInceptionV3("other", ["2048"], str(path), antialias=False)
        seen, reference = (other(to_tensor(images).expand(-1, 3, -1, -1)) for images in (samples, few.train.images))
        torch.testing.assert_close(seen, mine, rtol=1e-5, atol=1e-5)
        theirs = frechet_distance(seen.double().numpy(), reference.double().numpy())
        assert scores["inception"]["fid"] == pytest.approx(theirs, rel=1e-5)
        assert scores["inception"]["status"] == "ok"
        assert set(scores["inception"]) == {*scores["classifier"], "status"}
        assert set(evaluator.real()["inception"]) == {"precision", "recall", "density", "coverage", "status"}
        network = evaluator.space("inception").extract.network
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
