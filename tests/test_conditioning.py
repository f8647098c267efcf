"""What the network is told beside the time: captions, classes and known pixels; and all of it through the stages."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, diffusion, edit_params
from test_bad_input import main_of
from test_training import CPU, SETTINGS
from test_unet import IDENTITY, awake, settings

from ddpm.core.files import InputError, read_json, read_npz, write_json
from ddpm.core.params import read_yaml
from ddpm.core.weights import save_weights
from ddpm.data.loader import Batches
from ddpm.datasets.registry import DIGITS
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.captions import PADDING, START, captions_of
from ddpm.networks.checkpoints import CONFIG, load_model, make_config
from ddpm.networks.conditioning import CONDITIONINGS, ClassEmbedding, TextEncoder, masked_input
from ddpm.networks.unet import UNet
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.settings import SampleDDIM
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

X, T = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 10.0, 20.0, 40.0])
LABELS = torch.tensor([3, 0, 9, 3])


@pytest.fixture
def content():
    torch.manual_seed(0)
    return TextEncoder(DIGITS, 32)


def read(content, *texts):
    """What the network makes of texts, added to nothing: (N, 32)."""
    return content(torch.zeros(len(texts), 32), content.vocabulary.encode(texts))


def network_of(conditioning, **changes):
    torch.manual_seed(0)
    return awake(UNet(settings(conditioning=conditioning, **changes), (8, 8, 1), class_names=DIGITS))


class TestText:
    @pytest.mark.parametrize("training", [True, False])
    def test_padding_changes_nothing(self, content, training):
        content.train(training)
        texts = ["seven", "this is an image of the seven", "", "a 3"]
        with torch.set_grad_enabled(training):
            together = read(content, *texts)
            for text, row in zip(texts, together, strict=True):
                torch.testing.assert_close(read(content, text)[0], row, atol=1e-6, rtol=0)

    def test_every_word_and_their_order_matter(self, content):
        texts = ["handwritten seven", "seven handwritten", "handwritten three", "seven", "seven seven", ""]
        for a, b in itertools.combinations(read(content, *texts), 2):
            assert (a - b).abs().max() > 1e-3

    def test_it_is_added_to_the_embedding(self, content):
        embedding = torch.randn(2, 32)
        ids = content.vocabulary.encode(["a 3", "seven"])
        torch.testing.assert_close(content(embedding, ids) - embedding, read(content, "a 3", "seven"), atol=1e-6, rtol=0)

    def test_nothing_said_is_the_empty_text_and_a_dropped_one(self, content):
        embedding = torch.randn(3, 32)
        nothing = content(embedding, None)
        ids = content.vocabulary.encode(["seven", "", "this is an image of the 3"])
        dropped = content.drop(ids, torch.tensor([True, True, True]))
        assert dropped.tolist() == [[START, *[PADDING] * 7]] * 3
        for labels in (content.vocabulary.encode([""] * 3), dropped):
            torch.testing.assert_close(content(embedding, labels), nothing, atol=1e-6, rtol=0)
        assert (content(embedding, ids) - nothing).abs().amax(1).gt(1e-3).tolist() == [True, False, True]

    def test_only_what_is_to_be_dropped_is(self, content):
        ids = content.vocabulary.encode(["seven", "a 3", "the 9"])
        before = ids.clone()
        kept = content.drop(ids, torch.tensor([False, True, False]))
        assert torch.equal(kept[[0, 2]], ids[[0, 2]])
        assert kept[1].tolist() == [START, PADDING, PADDING]
        assert torch.equal(ids, before)

    def test_a_class_number_is_the_first_caption_of_the_class(self, content):
        numbers = content(torch.zeros(10, 32), torch.arange(10))
        texts = read(content, *(captions_of(name)[0] for name in DIGITS))
        torch.testing.assert_close(numbers, texts, atol=1e-6, rtol=0)

    def test_every_caption_of_a_class_is_chosen_as_often(self, content):
        captions = captions_of("7")
        draws = (torch.arange(200) + 0.5) / 200
        rows = content.describe(torch.full((200,), 7), draws)
        texts = [" ".join(content.vocabulary.words[i - START - 1] for i in row if i > START) for row in rows.tolist()]
        assert texts == [caption for caption in captions for _ in range(10)]
        ends = content.describe(torch.tensor([2, 2]), torch.tensor([0.0, 1 - 2**-24]))
        expected = content.vocabulary.encode([captions_of("2")[0], captions_of("2")[-1]])
        assert torch.equal(ends[:, : expected.shape[1]], expected)

    def test_gradients_reach_what_was_read_and_nothing_else(self, content):
        ids = content.vocabulary.encode(["a seven", "3"])
        (content(torch.zeros(2, 32), ids) * torch.randn(2, 32)).sum().backward()
        read_words = content.words.weight.grad.abs().amax(1).nonzero().flatten()
        assert read_words.tolist() == sorted(set(ids.flatten().tolist()) - {PADDING})
        assert content.places.grad.abs().amax(1).nonzero().flatten().tolist() == [0, 1, 2]
        for name, parameter in content.named_parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0, name

    def test_it_reads_in_training_as_in_use(self, content):
        """PyTorch runs other code for a transformer in eval mode without gradients."""
        texts = ["seven", "", "this is an image of the seven", "a handwritten digit 4"]
        trained = read(content, *texts).detach()
        content.eval()
        with torch.inference_mode():
            torch.testing.assert_close(read(content, *texts), trained, atol=1e-6, rtol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(read(content, *texts).float(), trained, atol=0.05, rtol=0.05)

    def test_captions_are_not_stored_with_the_weights(self, content):
        assert "captions" in dict(content.named_buffers())
        assert not any("captions" in name for name in content.state_dict())


class TestClass:
    def test_no_class_is_one_of_its_own_and_what_is_dropped(self):
        torch.manual_seed(0)
        content = ClassEmbedding(DIGITS, 32)
        labels = torch.arange(10)
        dropped = content.drop(labels, labels % 2 == 0)
        assert dropped.tolist() == [10, 1, 10, 3, 10, 5, 10, 7, 10, 9]
        assert labels.tolist() == [*range(10)]
        zeros = torch.zeros(10, 32)
        nothing, told = content(zeros, None), content(zeros, labels)
        assert torch.equal(content(zeros, content.drop(labels, labels >= 0)), nothing)
        assert torch.equal(nothing[0], nothing[9])
        for a, b in itertools.combinations([nothing[0], *told], 2):
            assert (a - b).abs().max() > 0.1
        assert torch.equal(content(zeros + 1, labels), told + 1)


class TestNetwork:
    def test_the_names_say_what_is_told(self):
        assert set(CONDITIONINGS) == {"none", "class", "text", "mask", "class+mask", "text+mask"}
        for name in CONDITIONINGS:
            network = network_of(name)
            assert network.takes_labels == ("class" in name or "text" in name)
            assert network.takes_text == ("text" in name)
            assert network.takes_mask == ("mask" in name)

    @pytest.mark.parametrize("conditioning", [name for name in CONDITIONINGS if "mask" in name])
    def test_what_lies_under_the_mask_is_not_seen(self, conditioning):
        network, mask = network_of(conditioning), (torch.rand(4, 1, 8, 8) < 0.5).float()
        image = torch.rand(4, 1, 8, 8) * 2 - 1
        hidden, shown = image + (1 - mask), image + 0.5 * mask
        out = network(X, T, LABELS, masked_input(image, mask))
        assert torch.equal(network(X, T, LABELS, masked_input(hidden, mask)), out)
        assert not torch.allclose(network(X, T, LABELS, masked_input(shown, mask)), out, atol=1e-4)
        # A known pixel of 0 is another thing than an unknown one.
        black = masked_input(torch.zeros_like(image), mask)
        assert not torch.allclose(network(X, T, LABELS, black), network(X, T, LABELS), atol=1e-4)

    @pytest.mark.parametrize("shape", [(2, 1, 5, 3), (2, 3, 4, 6)])
    def test_known_pixels_are_the_image_where_the_mask_is_and_the_mask(self, shape):
        image = torch.rand(shape) + 0.1
        mask = torch.zeros(2, 1, *shape[2:])
        mask[0, :, 1:, :2] = 1
        known = masked_input(image, mask)
        assert known.shape == (2, shape[1] + 1, *shape[2:])
        assert torch.equal(known[:, -1:], mask)
        assert torch.equal(known[0, :-1, 1:, :2], image[0, :, 1:, :2])
        assert known[:, :-1].count_nonzero() == shape[1] * (shape[2] - 1) * 2
        assert masked_input(image.double(), mask.bool()).dtype == torch.float64

    @pytest.mark.parametrize("conditioning", [name for name in CONDITIONINGS if "mask" in name])
    def test_no_known_pixels_are_an_empty_mask(self, conditioning):
        network = network_of(conditioning)
        empty = masked_input(torch.rand(4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
        assert torch.equal(network(X, T, LABELS, empty), network(X, T, LABELS, None))

    @pytest.mark.parametrize("conditioning", [name for name in CONDITIONINGS if "mask" not in name])
    def test_a_network_without_a_mask_ignores_known_pixels(self, conditioning):
        network = network_of(conditioning)
        known = masked_input(torch.rand(4, 1, 8, 8), torch.ones(4, 1, 8, 8))
        assert torch.equal(network(X, T, LABELS, known), network(X, T, LABELS))

    @pytest.mark.parametrize("conditioning", ["class+mask", "text+mask"])
    def test_content_and_mask_matter_beside_each_other(self, conditioning):
        network = network_of(conditioning)
        known = masked_input(torch.rand(4, 1, 8, 8), torch.ones(4, 1, 8, 8))
        told = [
            network(X, T, labels, pixels) for labels in (LABELS, (LABELS + 1) % 10, None) for pixels in (known, known / 2, None)
        ]
        for a, b in itertools.combinations(told, 2):
            assert not torch.allclose(a, b, atol=1e-5)

    def test_a_text_and_its_class_number_say_the_same(self):
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


class TestStore:
    @pytest.mark.parametrize("conditioning", CONDITIONINGS)
    def test_a_folder_gives_back_what_was_saved(self, tmp_path, conditioning):
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

    @pytest.mark.parametrize("words", [..., ["one", "two"], "reversed"])
    def test_other_words_are_refused(self, tmp_path, words):
        save(tmp_path, "text")
        config = json.loads((tmp_path / CONFIG).read_text())
        config["words"] = config["words"][::-1] if words == "reversed" else words
        if words is ...:
            del config["words"]
        write_json(tmp_path / CONFIG, config)
        with pytest.raises(InputError) as refused:
            load_model(tmp_path, "final", CPU)
        assert refused.value.key == str(tmp_path / CONFIG)
        assert "vocabulary differs" in refused.value.message

    @pytest.mark.parametrize(("saved", "told"), [("class", "class+mask"), ("mask", "none"), ("class", "text")])
    def test_weights_of_another_conditioning_are_refused(self, tmp_path, saved, told):
        save(tmp_path, saved)
        config = make_config(settings(conditioning=told), "linear", "v", diffusion(50), IDENTITY, {}, 0)
        write_json(tmp_path / CONFIG, config)
        with pytest.raises(InputError, match=r"final\.safetensors: does not fit the config.json in its folder: "):
            load_model(tmp_path, "final", CPU)

    def test_classes_without_captions_of_their_own_are_refused(self, tmp_path):
        save(tmp_path, "text")
        config = json.loads((tmp_path / CONFIG).read_text())
        for names, reason in ((["7", "seven"], "class 'seven': "), (["7", "_"], "class '_': ")):
            config["data"]["class_names"] = names
            write_json(tmp_path / CONFIG, config)
            with pytest.raises(InputError, match=rf"invalid model config \({reason}"):
                load_model(tmp_path, "final", CPU)


@pytest.fixture(scope="module")
def taught():
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


def seen_as(model, texts):
    """Mean of the image that is expected of pure noise, told each text."""
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(len(texts), -1, -1, -1)
    with torch.inference_mode():
        return model.denoiser(model.read(texts))(noise, model.schedule[50]).x0.mean((1, 2, 3))


class TestWhatIsLearned:
    # 40 and 220 in [-1, 1].
    DARK, BRIGHT = -0.686, 0.725

    @pytest.mark.parametrize("held_out_captions", [False, True])
    def test_all_captions_are_understood(self, taught, held_out_captions):
        labels = torch.arange(2 * len(captions_of("0", held_out_captions))) % 2
        texts = taught.captions(labels, held_out_captions)
        assert len(set(texts)) == len(texts)
        torch.testing.assert_close(
            seen_as(taught, texts), torch.where(labels == 1, self.BRIGHT, self.DARK).float(), atol=0.15, rtol=0
        )

    def test_swapped_words_and_no_words(self, taught):
        swapped = seen_as(taught, ["one handwritten", "zero handwritten", "one the digit", "zero the digit"])
        torch.testing.assert_close(swapped, torch.tensor([self.BRIGHT, self.DARK] * 2), atol=0.15, rtol=0)
        (nothing,) = seen_as(taught, [""])
        assert self.DARK + 0.05 < nothing < self.BRIGHT - 0.05

    @pytest.mark.parametrize("held_out_captions", [False, True])
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_drawn_images_are_what_their_captions_say(self, taught, held_out_captions, guidance):
        section = {**read_yaml(ROOT / "params.yaml")["sample_ddim"], "steps": 5, "guidance": guidance}
        arrays = generate_set(
            taught, SampleDDIM(**section).plan(taught), 12, 5, 0, "test", held_out_captions=held_out_captions
        ).arrays
        assert arrays["arr_1"].tolist() == [0, 1] * 6
        assert arrays["captions"].tolist() == taught.captions(torch.arange(12) % 2, held_out_captions)
        assert set(arrays["captions"]) <= {text for name in "01" for text in captions_of(name, held_out_captions)}
        bright = arrays["arr_0"].mean((1, 2, 3)) > 130
        assert bright.tolist() == [False, True] * 6

    def test_without_guidance_towards_it_no_caption_is_told(self, taught):
        section = {**read_yaml(ROOT / "params.yaml")["sample_ddim"], "steps": 5, "guidance": 0.0}
        arrays = generate_set(taught, SampleDDIM(**section).plan(taught), 4, 4, 0, "test").arrays
        assert not {"arr_1", "captions"} & arrays.keys()


class TestStages:
    @pytest.mark.parametrize("conditioning", CONDITIONINGS)
    def test_it_is_trained_and_drawn_from(self, data, refused, conditioning):
        for name in ("ddpm", "stages"):
            os.symlink(ROOT / name, name)
        edit_params(**{"model.conditioning": conditioning})
        for stage in ("train", "sample_ddim", "sample_ddpm"):
            main_of(stage)()
        config = read_json("models/ddpm/config.json", "")
        assert config["model"]["conditioning"] == conditioning
        told, reads = conditioning not in ("none", "mask"), "text" in conditioning
        for name in ("ddim", "ddpm"):
            arrays = read_npz(f"samples/{name}.npz", "")
            assert arrays["arr_0"].shape == (20, 8, 8, 1)
            assert ("captions" in arrays, "arr_1" in arrays) == (reads, told)
            if told:
                assert arrays["arr_1"].tolist() == [*range(10)] * 2
            if reads:
                expected = [captions_of(digit)[turn] for turn in (0, 1) for digit in DIGITS]
                assert arrays["captions"].tolist() == expected
        edit_params(**{"sample_ddim.guidance": 2.0})
        if told:
            main_of("sample_ddim")()
            assert read_json("reports/sample_ddim/metrics.json", "")["nfe"] == 10
        else:
            assert refused(main_of("sample_ddim")).startswith(
                "params.yaml: sample_ddim.guidance: 2.0 needs a model that takes a class or a text (model.conditioning)"
            )

    @pytest.mark.parametrize("conditioning", ["text", "class+mask"])
    def test_guidance_needs_a_training_that_told_nothing_at_times(self, data, refused, conditioning):
        for name in ("ddpm", "stages"):
            os.symlink(ROOT / name, name)
        edit_params(**{"model.conditioning": conditioning, "train.condition_dropout": 0.0, "sample_ddim.guidance": 2.0})
        main_of("train")()
        assert refused(main_of("sample_ddim")) == (
            "params.yaml: sample_ddim.guidance: 2.0 needs a model that was also trained without its class "
            "(train.condition_dropout above 0); set it to 1.0"
        )
        assert not Path("samples").exists()
