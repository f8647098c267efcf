"""Conditioning on captions, classes and known pixels: modules, networks, model folders, and the stages."""

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, diffusion, edit_params, error_of
from test_bad_input import main_of
from test_training import CPU, SETTINGS
from test_unet import IDENTITY, awake, settings

from ddpm.core.files import InputError, read_json, read_npz, write_json
from ddpm.core.weights import save_weights
from ddpm.core.yaml_files import read_yaml
from ddpm.data.loader import Batches
from ddpm.datasets.registry import DIGITS
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.captions import PADDING, START, captions_of
from ddpm.networks.checkpoints import CONFIG, load_model, make_config
from ddpm.networks.conditioning import CONDITIONINGS, ClassEmbedding, TextEncoder, masked_input
from ddpm.networks.unet import UNet
from ddpm.sampling.generate import generate_set
from ddpm.sampling.labels import class_index, split_labels
from ddpm.sampling.model import DiffusionModel, class_sequence
from ddpm.sampling.settings import SampleDDIM
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

X, T = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 10.0, 20.0, 40.0])
LABELS = torch.tensor([3, 0, 9, 3])
MASKED = [name for name in CONDITIONINGS if "mask" in name]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextEncoder(DIGITS, 32)


def encode(encoder, *texts):
    """The encodings of texts, (N, 32)."""
    return encoder(torch.zeros(len(texts), 32), encoder.vocabulary.encode(texts))


def network_of(conditioning, **changes):
    torch.manual_seed(0)
    return awake(UNet(settings(conditioning=conditioning, **changes), (8, 8, 1), class_names=DIGITS))


class TestTextEncoder:
    @pytest.mark.parametrize("training", [True, False])
    def test_padding_has_no_effect(self, encoder, training):
        encoder.train(training)
        texts = ["seven", "this is an image of the seven", "", "a 3"]
        with torch.set_grad_enabled(training):
            together = encode(encoder, *texts)
            for text, row in zip(texts, together, strict=True):
                torch.testing.assert_close(encode(encoder, text)[0], row, atol=1e-6, rtol=0)

    def test_words_and_their_order_matter(self, encoder):
        texts = ["handwritten seven", "seven handwritten", "handwritten three", "seven", "seven seven", ""]
        for a, b in itertools.combinations(encode(encoder, *texts), 2):
            assert (a - b).abs().max() > 1e-3

    def test_encoding_is_added_to_the_embedding(self, encoder):
        embedding = torch.randn(2, 32)
        ids = encoder.vocabulary.encode(["a 3", "seven"])
        torch.testing.assert_close(encoder(embedding, ids) - embedding, encode(encoder, "a 3", "seven"), atol=1e-6, rtol=0)

    def test_no_caption_equals_an_empty_and_a_dropped_one(self, encoder):
        embedding = torch.randn(3, 32)
        nothing = encoder(embedding, None)
        ids = encoder.vocabulary.encode(["seven", "", "this is an image of the 3"])
        dropped = encoder.drop(ids, torch.tensor([True, True, True]))
        assert dropped.tolist() == [[START, *[PADDING] * 7]] * 3
        for labels in (encoder.vocabulary.encode([""] * 3), dropped):
            torch.testing.assert_close(encoder(embedding, labels), nothing, atol=1e-6, rtol=0)
        assert (encoder(embedding, ids) - nothing).abs().amax(1).gt(1e-3).tolist() == [True, False, True]

    def test_drop_replaces_the_chosen_captions(self, encoder):
        ids = encoder.vocabulary.encode(["seven", "a 3", "the 9"])
        before = ids.clone()
        kept = encoder.drop(ids, torch.tensor([False, True, False]))
        assert torch.equal(kept[[0, 2]], ids[[0, 2]])
        assert kept[1].tolist() == [START, PADDING, PADDING]
        assert torch.equal(ids, before)

    def test_class_id_is_the_first_caption_of_the_class(self, encoder):
        numbers = encoder(torch.zeros(10, 32), torch.arange(10))
        texts = encode(encoder, *(captions_of(name)[0] for name in DIGITS))
        torch.testing.assert_close(numbers, texts, atol=1e-6, rtol=0)

    def test_describe_chooses_captions_uniformly(self, encoder):
        captions = captions_of("7")
        draws = (torch.arange(200) + 0.5) / 200
        rows = encoder.describe(torch.full((200,), 7), draws)
        texts = [" ".join(encoder.vocabulary.words[i - START - 1] for i in row if i > START) for row in rows.tolist()]
        assert texts == [caption for caption in captions for _ in range(10)]
        ends = encoder.describe(torch.tensor([2, 2]), torch.tensor([0.0, 1 - 2**-24]))
        expected = encoder.vocabulary.encode([captions_of("2")[0], captions_of("2")[-1]])
        assert torch.equal(ends[:, : expected.shape[1]], expected)

    def test_gradients_reach_used_words_only(self, encoder):
        ids = encoder.vocabulary.encode(["a seven", "3"])
        (encoder(torch.zeros(2, 32), ids) * torch.randn(2, 32)).sum().backward()
        used_words = encoder.words.weight.grad.abs().amax(1).nonzero().flatten()
        assert used_words.tolist() == sorted(set(ids.flatten().tolist()) - {PADDING})
        assert encoder.places.grad.abs().amax(1).nonzero().flatten().tolist() == [0, 1, 2]
        for name, parameter in encoder.named_parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0, name

    def test_eval_mode_equals_training_mode(self, encoder):
        """PyTorch runs other code for a transformer in eval mode without gradients."""
        texts = ["seven", "", "this is an image of the seven", "a handwritten digit 4"]
        trained = encode(encoder, *texts).detach()
        encoder.eval()
        with torch.inference_mode():
            torch.testing.assert_close(encode(encoder, *texts), trained, atol=1e-6, rtol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(encode(encoder, *texts).float(), trained, atol=0.05, rtol=0.05)

    def test_captions_are_not_stored_with_the_weights(self, encoder):
        assert "captions" in dict(encoder.named_buffers())
        assert not any("captions" in name for name in encoder.state_dict())


class TestClassEmbedding:
    def test_drop_gives_no_class_which_has_its_own_vector(self):
        torch.manual_seed(0)
        content = ClassEmbedding(DIGITS, 32)
        labels = torch.arange(10)
        dropped = content.drop(labels, labels % 2 == 0)
        assert dropped.tolist() == [10, 1, 10, 3, 10, 5, 10, 7, 10, 9]
        assert labels.tolist() == [*range(10)]
        zeros = torch.zeros(10, 32)
        nothing, embedded = content(zeros, None), content(zeros, labels)
        assert torch.equal(content(zeros, content.drop(labels, labels >= 0)), nothing)
        assert torch.equal(nothing[0], nothing[9])
        for a, b in itertools.combinations([nothing[0], *embedded], 2):
            assert (a - b).abs().max() > 0.1
        assert torch.equal(content(zeros + 1, labels), embedded + 1)


class TestNetwork:
    def test_names_of_conditionings_tell_what_has_an_effect(self):
        assert set(CONDITIONINGS) == {"none", "class", "text", "mask", "class+mask", "text+mask"}
        for name in CONDITIONINGS:
            network = network_of(name)
            assert network.takes_labels == ("class" in name or "text" in name)
            assert network.takes_text == ("text" in name)
            assert network.takes_mask == ("mask" in name)

    @pytest.mark.parametrize("conditioning", MASKED)
    def test_masked_pixels_have_no_effect(self, conditioning):
        network, mask = network_of(conditioning), (torch.rand(4, 1, 8, 8) < 0.5).float()
        image = torch.rand(4, 1, 8, 8) * 2 - 1
        hidden, shown = image + (1 - mask), image + 0.5 * mask
        out = network(X, T, LABELS, masked_input(image, mask))
        assert torch.equal(network(X, T, LABELS, masked_input(hidden, mask)), out)
        assert not torch.allclose(network(X, T, LABELS, masked_input(shown, mask)), out, atol=1e-4)
        # A known pixel of 0 differs from an unknown one; an empty mask equals no mask.
        black = masked_input(torch.zeros_like(image), mask)
        assert not torch.allclose(network(X, T, LABELS, black), network(X, T, LABELS), atol=1e-4)
        assert torch.equal(network(X, T, LABELS, masked_input(image, torch.zeros_like(mask))), network(X, T, LABELS, None))

    @pytest.mark.parametrize("shape", [(2, 1, 5, 3), (2, 3, 4, 6)])
    def test_masked_input_is_masked_image_and_mask(self, shape):
        image = torch.rand(shape) + 0.1
        mask = torch.zeros(2, 1, *shape[2:])
        mask[0, :, 1:, :2] = 1
        known = masked_input(image, mask)
        assert known.shape == (2, shape[1] + 1, *shape[2:])
        assert torch.equal(known[:, -1:], mask)
        assert torch.equal(known[0, :-1, 1:, :2], image[0, :, 1:, :2])
        assert known[:, :-1].count_nonzero() == shape[1] * (shape[2] - 1) * 2
        assert masked_input(image.double(), mask.bool()).dtype == torch.float64

    def test_network_without_a_mask_ignores_known_pixels(self):
        known = masked_input(torch.rand(4, 1, 8, 8), torch.ones(4, 1, 8, 8))
        for conditioning in set(CONDITIONINGS) - set(MASKED):
            network = network_of(conditioning)
            assert torch.equal(network(X, T, LABELS, known), network(X, T, LABELS))

    @pytest.mark.parametrize("conditioning", ["class+mask", "text+mask"])
    def test_labels_and_mask_both_matter(self, conditioning):
        network = network_of(conditioning)
        known = masked_input(torch.rand(4, 1, 8, 8), torch.ones(4, 1, 8, 8))
        inputs = itertools.product((LABELS, (LABELS + 1) % 10, None), (known, known / 2, None))
        for a, b in itertools.combinations([network(X, T, *conditioning) for conditioning in inputs], 2):
            assert not torch.allclose(a, b, atol=1e-5)

    def test_first_caption_equals_its_class_id(self):
        network = network_of("text+mask")
        ids = network.condition.vocabulary.encode([DIGITS[label] for label in LABELS])
        torch.testing.assert_close(network(X, T, ids), network(X, T, LABELS), atol=1e-6, rtol=1e-5)
        other = network.condition.vocabulary.encode(["a handwritten seven"] * 4)
        assert not torch.allclose(network(X, T, other), network(X, T, LABELS), atol=1e-4)


def save(folder: Path, conditioning: str):
    """Write a model folder; returns its network."""
    network = network_of(conditioning)
    kind = settings(conditioning=conditioning)
    write_json(folder / CONFIG, make_config(kind, "linear", "v", diffusion(50), IDENTITY, {"condition_dropout": 0.1}, 0))
    save_weights(folder / "final.safetensors", network.state_dict())
    return network


class TestCheckpoints:
    @pytest.mark.parametrize("conditioning", CONDITIONINGS)
    def test_load_model_restores_the_network(self, tmp_path, conditioning):
        network = save(tmp_path, conditioning)
        loaded, config = load_model(tmp_path, "final", CPU)
        assert loaded.state_dict().keys() == network.state_dict().keys()
        known = masked_input(torch.rand(4, 1, 8, 8), torch.ones(4, 1, 8, 8))
        for labels, pixels in itertools.product((LABELS, None), (known, None)):
            torch.testing.assert_close(loaded(X, T, labels, pixels), network(X, T, labels, pixels), atol=1e-5, rtol=1e-4)
        if network.takes_text:
            assert config["words"] == network.condition.vocabulary.words
            ids = network.condition.vocabulary.encode(["a seven", "3", "", "this is the 9"])
            torch.testing.assert_close(loaded(X, T, ids), network(X, T, ids), atol=1e-5, rtol=1e-4)
        else:
            assert "words" not in config

    @pytest.mark.parametrize("words", [..., "reversed"])
    def test_load_model_refuses_another_vocabulary(self, tmp_path, words):
        save(tmp_path, "text")
        config = json.loads((tmp_path / CONFIG).read_text())
        vocabulary = config.pop("words")
        if words == "reversed":
            config["words"] = vocabulary[::-1]
        write_json(tmp_path / CONFIG, config)
        error = error_of(load_model, tmp_path, "final", CPU)
        assert error.key == str(tmp_path / CONFIG)
        assert "vocabulary differs" in error.message

    @pytest.mark.parametrize(("saved", "other"), [("class", "class+mask"), ("mask", "none"), ("class", "text")])
    def test_load_model_refuses_weights_of_another_conditioning(self, tmp_path, saved, other):
        save(tmp_path, saved)
        config = make_config(settings(conditioning=other), "linear", "v", diffusion(50), IDENTITY, {}, 0)
        write_json(tmp_path / CONFIG, config)
        with pytest.raises(InputError, match=r"final\.safetensors: does not fit the config.json in its folder: "):
            load_model(tmp_path, "final", CPU)

    def test_load_model_refuses_classes_without_captions_of_their_own(self, tmp_path):
        save(tmp_path, "text")
        config = json.loads((tmp_path / CONFIG).read_text())
        for names, reason in ((["7", "seven"], "class 'seven': "), (["7", "_"], "class '_': ")):
            config["data"]["class_names"] = names
            write_json(tmp_path / CONFIG, config)
            with pytest.raises(InputError, match=rf"invalid model config \({reason}"):
                load_model(tmp_path, "final", CPU)


@pytest.fixture(scope="module")
def trained():
    """A model of 4x4 images, dark for "0" and bright for "1", after a second of training by captions."""
    torch.manual_seed(0)
    shape, names, steps = (4, 4, 1), ["0", "1"], 150
    network = UNet(settings(channel_mults=[1], conditioning="text"), shape, class_names=names)
    labels = np.arange(64) % 2
    images = np.where(labels, 220, 40).astype(np.uint8)[:, None, None, None] * np.ones((1, *shape), np.uint8)
    changes = {"steps": steps, "learning_rate": 5e-3, "weight_decay": 0.0, "loss_weight": "x0", "flip": False, "snapshots": 0}
    trainer = Trainer(
        network, make_schedule("cosine", 50), "x0", Batches(images, labels, 0, CPU), Train(**{**SETTINGS, **changes}), 0
    )
    for _ in range(steps):
        trainer.train_step()
    return DiffusionModel(network.eval(), trainer.schedule, "x0", {"shape": list(shape), "class_names": names}, True)


def mean_pixel(model, texts):
    """The mean of x0 predicted from pure noise, with each text."""
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(len(texts), -1, -1, -1)
    with torch.inference_mode():
        return model.denoiser(model.word_ids(texts))(noise, model.schedule[50]).x0.mean((1, 2, 3))


class TestTrainedTextModel:
    # 40 and 220 in [-1, 1].
    DARK, BRIGHT = -0.686, 0.725

    @pytest.mark.parametrize("held_out_captions", [False, True])
    def test_all_captions_determine_the_image(self, trained, held_out_captions):
        labels = torch.arange(2 * len(captions_of("0", held_out_captions))) % 2
        texts = trained.captions(labels, held_out_captions)
        assert len(set(texts)) == len(texts)
        torch.testing.assert_close(
            mean_pixel(trained, texts), torch.where(labels == 1, self.BRIGHT, self.DARK).float(), atol=0.15, rtol=0
        )

    def test_word_order_and_no_caption(self, trained):
        swapped = mean_pixel(trained, ["one handwritten", "zero handwritten", "one the digit", "zero the digit"])
        torch.testing.assert_close(swapped, torch.tensor([self.BRIGHT, self.DARK] * 2), atol=0.15, rtol=0)
        (nothing,) = mean_pixel(trained, [""])
        assert self.DARK + 0.05 < nothing < self.BRIGHT - 0.05

    def arrays(self, model, guidance, **options):
        section = {**read_yaml(ROOT / "params.yaml")["sample_ddim"], "steps": 5, "guidance": guidance}
        return generate_set(model, SampleDDIM(**section).plan(model), 12, 5, 0, "test", **options).arrays

    @pytest.mark.parametrize(("guidance", "held_out_captions"), [(1.0, False), (2.0, True)])
    def test_generated_images_match_their_captions(self, trained, guidance, held_out_captions):
        arrays = self.arrays(trained, guidance, held_out_captions=held_out_captions)
        assert arrays["arr_1"].tolist() == [0, 1] * 6
        assert arrays["captions"].tolist() == trained.captions(torch.arange(12) % 2, held_out_captions)
        assert set(arrays["captions"]) <= {text for name in "01" for text in captions_of(name, held_out_captions)}
        bright = arrays["arr_0"].mean((1, 2, 3)) > 130
        assert bright.tolist() == [False, True] * 6

    def test_unconditional_samples_have_no_captions(self, trained):
        assert not {"arr_1", "captions"} & self.arrays(trained, 0.0).keys()


class TestStages:
    @pytest.mark.parametrize("conditioning", ["none", "mask", "class+mask", "text"])
    def test_conditioning_through_training_and_sampling(self, data, refused, conditioning):
        for name in ("ddpm", "stages"):
            os.symlink(ROOT / name, name)
        edit_params(**{"model.conditioning": conditioning})
        for stage in ("train", "sample_ddim", "sample_ddpm"):
            main_of(stage)()
        config = read_json("models/ddpm/config.json", "")
        assert config["model"]["conditioning"] == conditioning
        takes_labels, takes_text = conditioning not in ("none", "mask"), "text" in conditioning
        for name in ("ddim", "ddpm"):
            arrays = read_npz(f"samples/{name}.npz", "")
            assert arrays["arr_0"].shape == (20, 8, 8, 1)
            assert ("captions" in arrays, "arr_1" in arrays) == (takes_text, takes_labels)
            if takes_labels:
                assert arrays["arr_1"].tolist() == class_sequence(data.class_counts, 20).tolist()
                assert config["data"]["class_counts"] == data.class_counts
            if takes_text:
                labels = arrays["arr_1"].tolist()
                expected = [captions_of(DIGITS[label])[labels[:k].count(label)] for k, label in enumerate(labels)]
                assert arrays["captions"].tolist() == expected
        edit_params(**{"sample_ddim.guidance": 2.0})
        if takes_labels:
            main_of("sample_ddim")()
            assert read_json("reports/sample_ddim/metrics.json", "")["nfe"] == 10
        else:
            assert refused(main_of("sample_ddim")).startswith("params.yaml: sample_ddim.guidance: ")

    def test_guidance_needs_condition_dropout(self, data, refused):
        for name in ("ddpm", "stages"):
            os.symlink(ROOT / name, name)
        edit_params(**{"model.conditioning": "class+mask", "train.condition_dropout": 0.0, "sample_ddim.guidance": 2.0})
        main_of("train")()
        assert refused(main_of("sample_ddim")).startswith("params.yaml: sample_ddim.guidance: ")
        assert not Path("samples").exists()


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (["cat", "dog"], "1", 1),
        (["cat", "dog"], "DOG", 1),
        (["1", "2", "3"], "1", 0),
        (["1", "2", "3"], "0", ...),
        (["2", "cat", "dog"], "1", ...),
        (["a", "A"], "A", 1),
        ([" a ", "b"], "a", 0),
        (["cat", "none"], "none", 1),
        (["cat", "dog"], "none", None),
    ],
)
def test_class_index_takes_a_number_as_a_name_first(names, given, expected):
    """A number is the index of a class only where no class is called by a number."""
    model = SimpleNamespace(data={"class_names": names})
    if expected is ...:
        assert error_of(class_index, model, given).key == "label"
    else:
        assert class_index(model, given) == expected


def test_split_labels_keeps_names_with_commas():
    model = SimpleNamespace(data={"class_names": ["3", "7", "cat,dog"]})
    assert split_labels(model, ["3,7", "cat,dog"]) == ["3", "7", "cat,dog"]
