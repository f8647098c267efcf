"""Non-leaking augmentation: transformations do what their parameters say, and samples of the trained network show none."""

import math

import numpy as np
import pytest
import torch
from conftest import edit_params, link_code
from test_bad_input import main_of
from test_training import CPU, SETTINGS, make_trainer
from test_unet import settings as unet_settings

from ddpm.core.files import read_json, read_npz
from ddpm.data.loader import Batches
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.conditioning import AUGMENTATION_PARAMETERS
from ddpm.networks.unet import UNet
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.training.augment import SCALE, SHIFT, STRETCH, augment, random_parameters
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

COLUMNS = ("x_flip", "y_flip", "scale", "cos_less_1", "sin", "stretch_x", "stretch_diagonal", "right", "down")
PARTS = ([0], [1], [2], [3, 4], [5, 6], [7, 8])


def drawn(count, probability, seed=0):
    return random_parameters(count, probability, CPU, torch.Generator().manual_seed(seed))


def chosen(**columns):
    """The parameters (1, 9) with these values, by name."""
    return torch.tensor([[columns.get(name, 0.0) for name in COLUMNS]])


def images(count, height, width, channels=2):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def moved(image, right, down):
    """The images, moved by whole pixels and reflected at the edges."""
    height, width = image.shape[2:]
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (height, height), (width, width)), mode="symmetric")
    return torch.from_numpy(padded[:, :, height - down : 2 * height - down, width - right : 2 * width - right])


class TestParameters:
    def test_each_part_is_drawn_at_its_rate_and_else_zero(self):
        found = drawn(20_000, 0.3)
        assert found.shape == (20_000, AUGMENTATION_PARAMETERS)
        applied = torch.stack([(found[:, part] != 0).any(1) for part in PARTS])
        assert applied.double().mean(1).tolist() == pytest.approx([0.3] * 6, abs=0.015)
        assert (~applied).all(0).double().mean() == pytest.approx(0.7**6, abs=0.015)  # they are independent
        assert not drawn(1000, 0.0).any()

    def test_sizes_are_those_of_edm(self):
        found = drawn(20_000, 0.99)
        x_flip, y_flip, scale, *_, right, down = (column[column != 0] for column in found.unbind(1))
        assert set(x_flip.tolist()) | set(y_flip.tolist()) == {1.0}
        stretch = found[:, 5:7].norm(dim=1)
        spreads = [values.square().mean().sqrt().item() for values in (scale, stretch[stretch > 0], right, down)]
        assert spreads == pytest.approx([SCALE, STRETCH, SHIFT, SHIFT], rel=0.03)
        turned = found[found[:, 4] != 0]
        angle = torch.atan2(turned[:, 4], 1 + turned[:, 3])
        torch.testing.assert_close(angle.cos(), 1 + turned[:, 3], atol=1e-5, rtol=0)
        assert torch.histc(angle, 8, -math.pi, math.pi).tolist() == pytest.approx([len(angle) / 8] * 8, rel=0.1)


class TestTransformations:
    @pytest.mark.parametrize("size", [(8, 8), (6, 11)])
    def test_untouched_and_flipped_images_keep_their_values(self, size):
        x, flips = images(4, *size), torch.zeros(4, AUGMENTATION_PARAMETERS)
        flips[1, 0] = flips[2, 1] = flips[3, 0] = flips[3, 1] = 1
        expected = [x[0], x[1].flip(2), x[2].flip(1), x[3].flip(1, 2)]
        assert torch.equal(augment(x, flips), torch.stack(expected))

    @pytest.mark.parametrize(("right", "down"), [(0, 1), (-2, 0), (3, -1), (-5, 4)])
    def test_shifts_by_whole_pixels_are_exact(self, right, down):
        x = images(3, 8, 10)
        found = augment(x, chosen(right=right / 10, down=down / 8).expand(3, -1))
        torch.testing.assert_close(found, moved(x, right, down), atol=1e-5, rtol=0)

    def test_quarter_turns_are_exact(self):
        x = images(3, 8, 8)
        for quarters, (cos, sin) in enumerate([(0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)], 1):
            found = augment(x, chosen(cos_less_1=cos - 1, sin=sin).expand(3, -1))
            torch.testing.assert_close(found, x.rot90(-quarters, (2, 3)), atol=1e-5, rtol=0)

    def test_parameters_tell_where_each_pixel_comes_from(self):
        """On two images whose values are the coordinates; PyTorch's cubic kernel is off by up to 0.05 pixels on them."""
        height, width, parameters = 24, 17, drawn(300, 0.5)
        y, x = torch.meshgrid(torch.arange(height) - 11.5, torch.arange(width) - 8.0, indexing="ij")
        places = torch.stack([x, y])
        found = 12 * augment((places / 12)[None].expand(300, -1, -1, -1), parameters)
        compared = 0
        for row, place in zip(parameters, found, strict=True):
            x_flip, y_flip, scale, cos_less_1, sin, a, b, right, down = row.tolist()
            flip = torch.diag(torch.tensor([1 - 2 * x_flip, 1 - 2 * y_flip]))
            turn = torch.tensor([[1 + cos_less_1, -sin], [sin, 1 + cos_less_1]])
            stretch = torch.linalg.matrix_exp(math.log(2) * torch.tensor([[a, b], [b, -a]]))
            shift = torch.tensor([right * width, down * height])[:, None]
            source = torch.linalg.solve(stretch @ turn @ (2**scale * flip), places.flatten(1) - shift)
            inside = (source.abs() < torch.tensor([width / 2 - 2.5, height / 2 - 2.5])[:, None]).all(0)
            torch.testing.assert_close(place.flatten(1)[:, inside], source[:, inside], atol=0.06, rtol=0)
            compared += inside.sum().item()
        assert compared > 0.3 * 300 * height * width

    def test_values_stay_in_range(self):
        found = augment(images(200, 8, 8).sign(), drawn(200, 0.9))
        assert found.abs().max() == 1


class TestTrainer:
    def test_without_augmentation_no_random_number_is_used(self):
        trainer = make_trainer(conditioning="mask")
        torch.manual_seed(0)
        x0, _, known, parameters = trainer.inputs(32, slice(None))
        state = torch.get_rng_state()
        torch.manual_seed(0)
        expected, expected_labels = trainer.batches.batch(32, 16)
        assert torch.equal(x0, expected)
        assert torch.equal(known, trainer.conditioning(expected, expected_labels, slice(None))[1])
        assert torch.equal(torch.get_rng_state(), state)
        assert parameters is None

    def test_inputs_depend_on_the_seed_and_a_share_is_a_part_of_the_whole(self):
        trainer = make_trainer(conditioning="mask", augment=0.4)

        def inputs(share, seed=0):
            torch.manual_seed(seed)
            return trainer.inputs(32, share)

        x0, _, known, parameters = inputs(slice(None))
        assert torch.equal(known[:, :1], x0 * known[:, 1:])  # the mask is of the augmented image
        for share in (slice(0, 7), slice(7, 16)):
            part = inputs(share)
            assert torch.equal(part[3], parameters[share])
            torch.testing.assert_close(part[0], x0[share], atol=1e-5, rtol=0)
        assert torch.equal(inputs(slice(None))[0], x0)
        assert not torch.equal(inputs(slice(None), seed=1)[3], parameters)


STEPS = 200


@pytest.fixture(scope="module")
def trained():
    """A model after a second of training on one image, bright at the top and on the left, with strong augmentation."""
    torch.manual_seed(0)
    image = np.full((8, 8, 1), 40, np.uint8)
    image[:4] = image[:, :2] = 220
    batches = Batches(image[None].repeat(64, 0), np.zeros(64, np.int64), 0, CPU)
    network = UNet(unet_settings(conditioning="none"), (8, 8, 1), class_names=["image"], augmented=True)
    changes = {
        "steps": STEPS, "batch_size": 64, "learning_rate": 5e-3, "weight_decay": 0.0, "loss_weight": "x0", "flip": False,
        "augment": 0.25, "snapshots": 0,
    }  # fmt: skip
    trainer = Trainer(network, make_schedule("cosine", 50), "x0", batches, Train(**{**SETTINGS, **changes}), 0)
    for _ in range(STEPS):
        trainer.train_step()
    clean = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    return DiffusionModel(network.eval(), trainer.schedule, "x0", {"shape": [8, 8, 1], "class_names": ["image"]}), clean


@pytest.mark.slow
class TestTrainedModel:
    """With a probability of 0.25, five of six training images were transformed."""

    def test_samples_show_no_augmentation(self, trained):
        model, clean = trained
        drawn_images = generate_set(model, make_plan(model, steps=10), 20, 10, 0, "test").arrays["arr_0"]
        found = torch.from_numpy(drawn_images).permute(0, 3, 1, 2) / 127.5 - 1
        distances = (found - clean).abs().mean((1, 2, 3))  # of the flipped images 0.35 and 1.06
        assert distances.mean() < 0.12
        assert distances.max() < 0.25

    @pytest.mark.parametrize("columns", [{}, {"x_flip": 1.0}, {"y_flip": 1.0}, {"x_flip": 1.0, "y_flip": 1.0}])
    def test_with_parameters_it_predicts_the_transformed_image(self, trained, columns):
        """From pure noise, so that the parameters alone tell the image."""
        model, clean = trained
        parameters, noise = chosen(**columns), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            t = torch.full((8,), float(model.schedule[50].t))
            found = model.network(noise, t, augmentation=parameters.expand(8, -1)).mean(0, keepdim=True)
        expected = augment(clean, parameters)
        assert (found - expected).abs().mean() < 0.2
        assert not columns or (found - clean).abs().mean() > 0.3


def test_stages_train_and_sample_with_augmentation(data):
    link_code()
    edit_params(**{"train.augment": 0.3})
    for stage in ("train", "sample_ddim"):
        main_of(stage)()
    assert read_json("models/ddpm/config.json", "")["training"]["augment"] == 0.3
    assert read_npz("samples/ddim.npz", "")["arr_0"].shape == (20, 8, 8, 1)
