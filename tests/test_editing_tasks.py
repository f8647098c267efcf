"""What people do with a model: images of a seed, fills, edits and ways between images; the images and masks that they name."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import diffusion
from PIL import Image
from test_unet import IDENTITY, awake, settings

from ddpm.core.files import InputError
from ddpm.data.images import to_images
from ddpm.editing.inpaint import MASKS, known_where, with_repaint_jumps
from ddpm.editing.inputs import open_image, open_mask, read_picture
from ddpm.editing.stage_images import models_of_training
from ddpm.editing.tasks import (
    EDITS,
    Source,
    edit_images,
    inpaint_images,
    interpolate_images,
    reconstruct_images,
    source_image,
    stacked,
    vary_images,
)
from ddpm.networks.checkpoints import make_config
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, save_snapshot
from ddpm.networks.unet import UNet
from ddpm.sampling.generate import generate
from ddpm.sampling.model import DiffusionModel, class_index, conditioning_for, from_config
from ddpm.sampling.noise import image_noise, latent_of
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import SamplingProgress, collect_images, final_images
from ddpm.sampling.samplers import SAMPLERS, sample
from ddpm.sampling.trajectory import TrajectoryRecorder

T = 50


def make_model(conditioning="class", dropout=0.1, shape=(8, 8, 1)) -> DiffusionModel:
    """A model with random weights; what it is told has an effect."""
    torch.manual_seed(0)
    given = settings(conditioning=conditioning)
    data = {**IDENTITY, "shape": list(shape)}
    config = make_config(given, "linear", "v", diffusion(T), data, {"condition_dropout": dropout}, 0)
    return from_config(awake(UNet(given, shape, data["class_names"])), config)


MODELS = {name: make_model(name) for name in CONDITIONINGS}
MODEL = MODELS["class"]
PLAN = make_plan(MODEL, steps=5)
ONE = torch.tensor([1])


def picture(seed=0, count=1):
    return (torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1).round(decimals=3)


def sample_of(seed, label=1):
    return Source(None, latent_of(MODEL, seed), torch.tensor([label]))


def real(seed, label=1):
    return Source(picture(seed), None, torch.tensor([label]))


def test_the_seed_decides_an_image_whatever_its_batch():
    told, _ = conditioning_for(MODEL, 7)
    for sampler in ("ddim", "ddpm"):
        plan = make_plan(MODEL, sampler=sampler, steps=5)
        together = final_images(generate(MODEL, plan, told, 7, 3))
        in_batches = final_images(generate(MODEL, plan, told, 7, 3, batch_size=2))
        torch.testing.assert_close(in_batches, together, atol=1e-4, rtol=0)
        assert not torch.allclose(final_images(generate(MODEL, plan, told, 7, 4)), together, atol=0.1)


def test_all_of_a_batch_are_told_their_own():
    labels = torch.tensor([2, 2, 5, 5, 7])
    images = final_images(generate(MODEL, PLAN, labels, 5, 0, batch_size=2))
    others = final_images(generate(MODEL, PLAN, torch.tensor([2, 2, 5, 5, 8]), 5, 0, batch_size=2))
    torch.testing.assert_close(images[:4], others[:4])
    assert not torch.allclose(images[4], others[4], atol=1e-3)


SAMPLES = sample_of(1), sample_of(2)
ONES, CLIMBS = torch.ones(1, 1, 8, 8), partial(with_repaint_jumps, jump=2, resamples=3)
JOBS = {
    "draw": lambda: generate(MODEL, PLAN, None, 5, 0, batch_size=2),
    "draw by heun": lambda: generate(MODEL, make_plan(MODEL, sampler="heun", steps=4), None, 3, 0),
    "inpaint": lambda: inpaint_images(MODEL, make_plan(MODEL, change=CLIMBS, steps=6), picture(), ONES, ONE, 0),
    "edit": lambda: edit_images(MODEL, PLAN, picture(), 0.6, ONE, 0),
    "edit nothing": lambda: edit_images(MODEL, PLAN, picture(), 0.0, ONE, 0),
    "between samples": lambda: interpolate_images(MODEL, PLAN, sample_of(1), sample_of(2, 3), 4),
    "between pictures": lambda: interpolate_images(MODEL, PLAN, real(1), real(2), 4),
    "from picture to sample": lambda: interpolate_images(MODEL, PLAN, real(1), sample_of(2), 4),
    "between samples by heun": lambda: interpolate_images(MODEL, make_plan(MODEL, sampler="heun", steps=4), *SAMPLES, 3),
    "vary a sample": lambda: vary_images(MODEL, PLAN, sample_of(1), 0.3, 2, 0),
    "vary a picture": lambda: vary_images(MODEL, PLAN, real(1), 0.3, 2, 0),
    "reconstruct": lambda: reconstruct_images(MODEL, PLAN, picture(), ONE),
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_job_counts_to_its_end(job):
    views = list(job())
    assert [view.done for view in views] == list(range(1, len(views) + 1))
    assert {view.total for view in views} == {len(views)}
    assert views[-1].last
    assert views[-1].position == 0
    assert all(view.x.isfinite().all() for view in views)


def test_a_view_of_each_batch_is_its_last():
    views = list(generate(MODEL, PLAN, None, 5, 0, batch_size=2))
    assert [(view.first, len(view.x)) for view in views if view.last] == [(0, 2), (2, 2), (4, 1)]


class TestPlan:
    def test_steps_if_nobody_says(self):
        assert make_plan(MODEL).nfe == 50
        assert make_plan(MODEL, sampler="ddpm").nfe == T
        assert make_plan(MODEL, sampler="heun", steps=5).nfe == 9

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_every_sampler_draws(self, sampler):
        plan = make_plan(MODEL, sampler=sampler, steps=3)
        assert final_images(generate(MODEL, plan, None, 2, 0)).shape == (2, 1, 8, 8)

    @pytest.mark.parametrize(
        ("options", "beginning"),
        [
            ({"sampler": "ddmi"}, "sampler: 'ddmi' is unknown; did you mean 'ddpm'"),
            ({"steps": 0}, "steps: 0 is out of range; this model has T = 50"),
            ({"steps": 51}, "steps: 51 is out of range"),
            ({"eta": 0.5, "sampler": "ddpm"}, "eta: 0.5 has no meaning"),
            ({"eta": 0.5, "sampler": "heun"}, "eta: 0.5 has no meaning"),
            ({"eta": 1.5}, "eta: 1.5 must"),
            ({"eta": float("nan")}, "eta: "),
            ({"guidance": 51}, "guidance: 51 is out of range"),
            ({"guidance": -1}, "guidance: -1.0 must"),
            ({"guidance": float("nan")}, "guidance: nan is out of range"),
            ({"spacing": "karras", "sampler": "ddpm"}, "spacing: 'karras' has no meaning"),
            ({"variance": "large"}, "variance: 'large' has no meaning"),
            ({"variance": "largest"}, "variance: 'largest' is unknown"),
            ({"spacing": "even", "sampler": "ddpm"}, "spacing: 'even' is unknown"),
            ({"spacing": "even"}, "spacing: 'even' is unknown"),
            ({"thresholding": "cut"}, "thresholding: 'cut' is unknown"),
            ({"variance": "none", "sampler": "ddpm"}, "variance: 'none' is unknown"),
            ({"variance": "learned", "sampler": "ddpm"}, "variance: 'learned' needs a model"),
        ],
    )
    def test_a_wrong_option_is_named(self, options, beginning):
        with pytest.raises(InputError) as refused:
            make_plan(MODEL, **options)
        assert str(refused.value).startswith(beginning)
        assert "\n" not in str(refused.value)

    def test_guidance_needs_a_model_that_knows_no_class(self):
        for model in (make_model(dropout=0.0), MODELS["none"]):
            with pytest.raises(InputError, match=r"^guidance: 2\.0 needs a model"):
                make_plan(model, guidance=2.0)

    def test_guidance_leans_on_the_class(self):
        told = torch.tensor([3])
        at = [final_images(generate(MODEL, make_plan(MODEL, steps=5, guidance=g), told, 1, 0)) for g in (0, 1, 3)]
        untold = final_images(generate(MODEL, PLAN, None, 1, 0))
        torch.testing.assert_close(at[0], untold)
        assert (at[2] - at[0]).norm() > (at[1] - at[0]).norm() > 0.01


class TestTell:
    def test_every_class_in_turn(self):
        told, captions = conditioning_for(MODEL, 12)
        assert told.tolist() == [*range(10), 0, 1]
        assert captions == [*"0123456789", "0", "1"]

    def test_labels_in_turn_by_name_or_number(self):
        model = MODEL._replace(data={**MODEL.data, "class_names": ["Cat", "Dog", "2", "Cow"]})
        told, captions = conditioning_for(model, 5, [" cat", "3", "2"])
        assert told.tolist() == [0, 3, 2, 0, 3]
        assert captions == ["Cat", "Cow", "2", "Cat", "Cow"]

    def test_no_class(self):
        assert conditioning_for(MODEL, 2, ["none"]) == (None, ["", ""])
        assert conditioning_for(MODELS["none"], 2) == (None, ["", ""])

    @pytest.mark.parametrize("name", ["text", "text+mask"])
    def test_texts_in_turn(self, name):
        told, captions = conditioning_for(MODELS[name], 3, [], ["a seven", ""])
        assert captions == ["a seven", "", "a seven"]
        assert len(told) == 3
        assert torch.equal(told[0], told[2])
        images = final_images(generate(MODELS["text"], make_plan(MODELS["text"], steps=3), told, 3, 0))
        assert images.shape == (3, 1, 8, 8)

    def test_a_model_that_reads_takes_labels_too(self):
        told, captions = conditioning_for(MODELS["text"], 2, ["7"])
        assert (told.tolist(), captions) == ([7, 7], ["7", "7"])

    @pytest.mark.parametrize(
        ("model", "labels", "texts", "beginning"),
        [
            ("class", ["7"], ["a seven"], "text: cannot be given together with label"),
            ("class", [], ["a seven"], "text: this model takes no text"),
            ("text", [], ["a whale"], "text: the model was trained without the word 'whale'"),
            ("text", [], ["!?"], "text: '!?' holds no words"),
            ("none", ["7"], [], "label: this model takes no class"),
            ("class", ["seven"], [], "label: 'seven' is unknown"),
            ("class", ["10"], [], "label: '10' is unknown"),
            ("class", ["-1"], [], "label: '-1' is unknown"),
            ("class", [""], [], "label: '' is unknown"),
            ("class", ["9" * 5000], [], "label: '999"),
            ("class", ["7", "none"], [], "label: 'none' cannot be mixed"),
        ],
    )
    def test_what_the_model_does_not_take_is_refused(self, model, labels, texts, beginning):
        with pytest.raises(InputError) as refused:
            conditioning_for(MODELS[model], 2, labels, texts)
        assert str(refused.value).startswith(beginning)

    def test_no_class_is_refused_where_the_model_never_saw_it(self):
        with pytest.raises(InputError, match=r"^label: no class needs a model that was trained without"):
            conditioning_for(make_model(dropout=0.0), 1, ["none"])

    def test_without_guidance_nothing_is_told(self):
        assert conditioning_for(MODEL, 2, guidance=0.0) == conditioning_for(MODEL, 2, ["none"], guidance=0.0) == (None, ["", ""])
        for labels, texts in ((["7"], []), ([], ["a seven"])):
            with pytest.raises(InputError, match=r"^guidance: 0 draws without class or text"):
                conditioning_for(MODELS["text"], 2, labels, texts, 0.0)

    def test_a_class_that_is_called_as_the_number_of_another(self):
        model = MODEL._replace(data={**MODEL.data, "class_names": ["1", "0"]})
        assert class_index(model, "0") == 1


class TestInpaint:
    @pytest.mark.parametrize("name", CONDITIONINGS)
    @pytest.mark.parametrize("resamples", [1, 3])
    def test_known_pixels_come_back_bit_by_bit(self, name, resamples):
        model, x0 = MODELS[name], picture(count=3)
        known = open_mask("left", model.shape)
        plan = make_plan(model, change=partial(with_repaint_jumps, jump=2, resamples=resamples), steps=5)
        told, _ = conditioning_for(model, 3)
        filled = final_images(inpaint_images(model, plan, x0, known, told, 0))
        assert torch.equal(filled[..., 4:], x0[..., 4:])
        assert not torch.allclose(filled[..., :4], x0[..., :4], atol=0.1)
        # Each image has a noise of its own.
        assert not torch.allclose(filled[0, ..., :4], filled[1, ..., :4], atol=0.01)

    @pytest.mark.parametrize("name", ["class", "class+mask"])
    def test_a_missing_pixel_is_not_seen(self, name):
        model, known = MODELS[name], open_mask("middle", (8, 8, 1))
        hidden = torch.where(known.bool(), picture(), picture(9))
        a, b = (final_images(inpaint_images(model, make_plan(model, steps=4), x, known, ONE, 0)) for x in (picture(), hidden))
        assert torch.equal(a, b)

    def test_a_network_with_masks_looks_at_the_known_pixels(self):
        model, known = MODELS["mask"], open_mask("middle", (8, 8, 1))
        fills = [final_images(inpaint_images(model, make_plan(model, steps=1), picture(k), known, None, 0)) for k in (0, 1)]
        assert not torch.equal(fills[0][..., 3:5, 3:5], fills[1][..., 3:5, 3:5])
        blind, plan = MODELS["none"], make_plan(MODELS["none"], steps=1)
        blind = [final_images(inpaint_images(blind, plan, picture(k), known, None, 0)) for k in (0, 1)]
        assert torch.equal(blind[0][..., 3:5, 3:5], blind[1][..., 3:5, 3:5])

    def test_with_nothing_known_it_is_drawing(self):
        filled = final_images(inpaint_images(MODEL, PLAN, picture(), open_mask("all", (8, 8, 1)), ONE, 3))
        noise = image_noise(MODEL, 3, 1, 2 * len(PLAN.grid), use="fill")
        *_, drawn = sample(PLAN.denoiser(ONE), PLAN.rule, MODEL.schedule, PLAN.grid, noise(), noise)
        assert torch.equal(filled, drawn.x)


class TestEdit:
    def test_strength_0_is_the_image(self):
        assert torch.equal(final_images(edit_images(MODEL, PLAN, picture(), 0.0, ONE, 0)), picture())

    def test_more_strength_leads_further_away(self):
        x0 = 0.2 * picture(count=4)
        far = [(final_images(edit_images(MODEL, make_plan(MODEL), x0, s, None, 0)) - x0).norm() for s in (0.02, 0.2, 1.0)]
        assert far[0] < far[1] < far[2]

    @pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
    def test_a_strength_that_is_none(self, strength):
        with pytest.raises(InputError, match=r"^strength: "):
            final_images(edit_images(MODEL, PLAN, picture(), strength, ONE, 0))

    @pytest.mark.parametrize("method", EDITS)
    def test_every_method_gives_variants_of_its_own(self, method):
        images = final_images(EDITS[method].vary(MODEL, PLAN, real(0), 0.5, 3, 0))
        assert len(images) == 3
        assert not torch.allclose(images[0], images[1], atol=1e-2)
        nothing = final_images(EDITS[method].vary(MODEL, PLAN, real(0), 0.0, 2, 0))
        assert torch.equal(nothing, picture().expand(2, -1, -1, -1))


class TestBetween:
    def test_both_pictures_come_back_exactly(self):
        between = final_images(interpolate_images(MODEL, PLAN, real(1), real(2, label=7), 5))
        assert torch.equal(between[0], picture(1)[0])
        assert torch.equal(between[-1], picture(2)[0])
        assert all(not torch.equal(a, b) for a, b in pairwise(between))

    def test_both_samples_are_those_of_their_seeds(self):
        between = final_images(interpolate_images(MODEL, PLAN, sample_of(1, 1), sample_of(2, 4), 5))
        for image, seed, label in ((between[0], 1, 1), (between[-1], 2, 4)):
            drawn = final_images(generate(MODEL, PLAN, torch.tensor([label]), 1, seed))
            torch.testing.assert_close(image[None], drawn, atol=1e-5, rtol=0)

    def test_a_sample_beside_a_picture_is_its_own_too(self):
        between = final_images(interpolate_images(MODEL, PLAN, real(1), sample_of(2, 4), 3))
        assert torch.equal(between[0], picture(1)[0])
        drawn = final_images(generate(MODEL, PLAN, torch.tensor([4]), 1, 2))
        torch.testing.assert_close(between[-1:], drawn, atol=1e-5, rtol=0)

    def test_what_is_told_fades(self):
        """From one latent to itself, only the class changes."""
        between = final_images(interpolate_images(MODEL, PLAN, sample_of(1, 1), sample_of(1, 4), 5))
        far = [float((image - between[0]).norm()) for image in between]
        assert far == sorted(far)
        assert far[-1] > 0.01

    def test_a_sampler_that_draws_noise_is_refused(self):
        for options in ({"sampler": "ddpm"}, {"eta": 0.5}, {"sampler": "dpmpp_2m_sde"}):
            plan = make_plan(MODEL, steps=5, **options)
            for views in (interpolate_images(MODEL, plan, real(1), real(2), 5), vary_images(MODEL, plan, real(1), 0.5, 2, 0)):
                with pytest.raises(InputError, match=r"^sampler: one that draws fresh noise"):
                    final_images(views)

    def test_one_image_is_no_way(self):
        with pytest.raises(InputError, match=r"^number: 1 is too few"):
            final_images(interpolate_images(MODEL, PLAN, real(1), real(2), 1))

    @pytest.mark.parametrize("source", [real(1), sample_of(1)], ids=["picture", "sample"])
    def test_a_variation_of_0_is_the_image(self, source):
        varied = final_images(vary_images(MODEL, PLAN, source, 0.0, 2, 0))
        plain = picture(1) if source.image is not None else final_images(generate(MODEL, PLAN, ONE, 1, 1))
        torch.testing.assert_close(varied, plain.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
        assert not torch.allclose(final_images(vary_images(MODEL, PLAN, source, 0.5, 2, 0))[0], plain[0], atol=1e-2)

    @pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
    def test_an_amount_that_is_none(self, amount):
        with pytest.raises(InputError, match=r"^amount: "):
            final_images(vary_images(MODEL, PLAN, real(1), amount, 2, 0))


def test_more_steps_reconstruct_better():
    errors = []
    for steps in (5, 50):
        back = final_images(reconstruct_images(MODEL, make_plan(MODEL, steps=steps), picture(), ONE))
        errors.append(float((back - picture()).norm()))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("options", [{"sampler": "heun"}, {"sampler": "dpmpp_2m"}, {"guidance": 2.0}])
def test_real_images_are_encoded_by_ddim_alone(options):
    plan = make_plan(MODEL, steps=5, **options)
    for work in (
        reconstruct_images(MODEL, plan, picture(), ONE),
        vary_images(MODEL, plan, real(1), 0.5, 1, 0),
        interpolate_images(MODEL, plan, real(1), sample_of(2), 3),
    ):
        with pytest.raises(InputError, match=r"^sampler: real images are encoded and decoded by ddim"):
            final_images(work)
    assert final_images(vary_images(MODEL, plan, sample_of(1), 0.5, 1, 0)).isfinite().all()


@pytest.mark.parametrize("use", ["edit", "vary", "fill"])
def test_a_sample_does_not_meet_its_own_noise_again(use):
    again = image_noise(MODEL, 3, 1, 1, use=use)()
    assert not torch.allclose(again, latent_of(MODEL, 3), atol=0.1)
    assert torch.equal(again, image_noise(MODEL, 3, 1, 1, use=use)())


def test_the_latents_of_a_reconstruction_are_seen():
    seen = [view for view in reconstruct_images(MODEL, PLAN, picture(), ONE) if view.position == T]
    assert len(seen) == 1
    # Decoded, it is what comes back.
    varied = final_images(
        vary_images(MODEL, make_plan(MODEL, steps=5, thresholding="none"), Source(None, seen[0].x, ONE), 0.0, 1, 0)
    )
    torch.testing.assert_close(varied, final_images(reconstruct_images(MODEL, PLAN, picture(), ONE)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("collect", [final_images, partial(collect_images, "test")], ids=["finished", "pictures"])
def test_an_image_that_is_not_finite_is_no_result(collect):
    x = torch.full((1, 1, 8, 8), float("nan"))
    with pytest.raises(InputError, match=r"^thresholding: "):
        collect(iter([SamplingProgress(1, 1, 0, 0.0, x, x, True)]))


def test_a_seed_that_is_none():
    with pytest.raises(InputError, match=r"^seed: "):
        image_noise(MODEL, -1, 1, 1)


class TestNames:
    """Images and masks that people name."""

    def test_a_test_image_with_its_class(self, data):
        model = MODEL._replace(data=data.identity())
        for number in (0, 17):
            named = open_image(model, f"test:{number}")
            assert np.array_equal(to_images(named.source.image)[0], data.test.images[number])
            assert named.source.labels.tolist() == [data.test.labels[number]]
            assert named.title == f"test:{number} ({data.test.labels[number]})"
        assert open_image(model, "test:0", label="9").source.labels.tolist() == [9]
        assert open_image(model, "test:0", label="none").source.labels is None

    def test_test_images_of_other_data_are_refused(self, data):
        with pytest.raises(InputError, match=r"^test:0: data/prepared holds other data than this model was trained on"):
            open_image(MODEL, "test:0")
        with pytest.raises(InputError, match=r"^test:500: there are 500 test images; give 0 to 499$"):
            open_image(MODEL._replace(data=data.identity()), "test:500")

    def test_the_sample_of_a_seed(self):
        named = open_image(MODEL, "seed:13")
        assert (named.caption, named.source.image) == ("3", None)
        torch.testing.assert_close(
            source_image(MODEL, named.source), final_images(generate(MODEL, make_plan(MODEL), ONE * 3, 1, 13))
        )
        assert open_image(MODELS["none"], "seed:13").source.labels is None
        assert open_image(MODELS["text"], "seed:3", text="a seven").caption == "a seven"

    @pytest.mark.parametrize("shape", [(8, 8, 1), (12, 20, 3)])
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
    def test_any_picture_fits(self, shape, mode, tmp_path):
        path = tmp_path / "picture.png"
        gray = Image.fromarray((np.arange(40 * 60).reshape(40, 60) % 256).astype(np.uint8))
        if mode == "I;16":
            gray = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
        (gray if mode == "I;16" else gray.convert(mode)).save(path)
        image = read_picture(path, shape)
        assert image.shape == shape
        assert image.dtype == np.uint8
        assert np.ptp(image) > 50

    def test_the_middle_of_a_picture_keeps_its_proportions(self, tmp_path):
        wide = np.zeros((10, 30), np.uint8)
        wide[:, 10:20] = 255
        Image.fromarray(wide).save(tmp_path / "wide.png")
        assert (read_picture(tmp_path / "wide.png", (10, 10, 1)) == 255).all()

    def test_a_picture_is_of_no_class(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(path)
        named = open_image(MODEL, str(path))
        assert named.source.labels is None
        assert (named.source.image == 1).all()
        assert open_image(MODEL, str(path), label="4").source.labels.tolist() == [4]
        with pytest.raises(InputError, match=r"^label: this model must be told what .*a\.png shows"):
            open_image(make_model(dropout=0.0), str(path))

    @pytest.mark.parametrize(
        "name",
        ["", "nowhere.png", "seed:", "seed:-1", "test:x", "seed:1e3", "seed:" + "9" * 5000, "x" * 5000, "a\0b", ".", "\udc80"],
    )
    def test_a_name_of_nothing(self, name):
        with pytest.raises(InputError, match="no such picture"):
            open_image(MODEL, name)

    def test_a_large_seed(self):
        large, other = (open_image(MODEL, f"seed:{seed}").source for seed in (99_999_999_999, 99_999_999_989))
        assert torch.equal(large.latent, latent_of(MODEL, 99_999_999_999))
        assert not torch.allclose(large.latent, other.latent, atol=0.1)

    def test_without_guidance_nothing_is_told_of_an_image(self):
        named = open_image(MODEL, "seed:13", guidance=0.0)
        assert (named.caption, named.title, named.source.labels) == ("", "seed:13", None)

    def test_a_file_that_is_no_picture(self, tmp_path):
        (tmp_path / "a.png").write_text("not a picture")
        with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
            open_image(MODEL, str(tmp_path / "a.png"))
        with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
            open_mask(str(tmp_path / "a.png"), MODEL.shape)

    @pytest.mark.parametrize("size", [(8, 8), (7, 12)])
    def test_masks_by_name(self, size):
        filled = {name: 1 - open_mask(name, (*size, 3)) for name in MASKS}
        assert all(mask.shape == (1, 1, *size) for mask in filled.values())
        for a, b in (("left", "right"), ("top", "bottom"), ("middle", "border")):
            assert torch.equal(filled[a] + filled[b], filled["all"])
        assert filled["all"].all()
        assert filled["left"][..., 0].all()
        assert filled["top"][..., 0, :].all()
        assert filled["middle"][..., size[0] // 2, size[1] // 2].all()
        assert not filled["middle"][..., 0].any()

    def test_a_mask_by_picture(self, tmp_path):
        painted = np.zeros((16, 16), np.uint8)
        painted[:8] = 255
        Image.fromarray(painted).save(tmp_path / "top.png")
        assert torch.equal(open_mask(str(tmp_path / "top.png"), (8, 8, 1)), open_mask("top", (8, 8, 1)))
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
        with pytest.raises(InputError, match="holds nothing to fill"):
            open_mask(str(tmp_path / "black.png"), (8, 8, 1))

    @pytest.mark.parametrize("name", ["", "lef", "x" * 5000, "a\0b", "."])
    def test_a_mask_of_nothing(self, name):
        with pytest.raises(InputError, match=r"^mask: .* is no picture, nor one of left, right"):
            open_mask(name, (8, 8, 1))

    def test_known_where(self):
        known = np.array([[True, False], [False, True]])
        assert known_where(known).tolist() == [[[[1, 0], [0, 1]]]]

    def test_sources_are_stacked_in_their_order(self):
        untold = Source(picture(5), None, None)
        images, groups = stacked(MODEL, [real(1, 3), untold, sample_of(2, 4)])
        assert torch.equal(images[:2], torch.cat([picture(1), picture(5)]))
        assert [(which, None if told is None else told.tolist()) for which, told in groups] == [([0, 2], [3, 4]), ([1], None)]


class TestFilms:
    @pytest.mark.parametrize(("steps", "frames"), [(10, 4), (10, 50), (1, 5)])
    def test_moments_are_kept(self, steps, frames):
        plan = make_plan(MODEL, steps=steps)
        recorder = TrajectoryRecorder(steps, frames, max_images=2)
        images = final_images(generate(MODEL, plan, None, 5, 0, batch_size=3), recorder)
        assert recorder.x.shape == recorder.x0.shape == (min(steps, frames), 2, 8, 8, 1)
        assert recorder.levels == sorted(recorder.levels, reverse=True)
        assert recorder.levels[-1] == 0
        assert np.array_equal(recorder.x[-1], to_images(images[:2]))

    def test_a_training_is_shown_from_first_to_last(self, tmp_path):
        model, weights = make_model(), {}
        for step in (5, 10, 15, 20):
            weights[step] = {name: value + step for name, value in model.network.state_dict().items()}
            others = {name: value + 100 for name, value in weights[step].items()}
            save_snapshot(tmp_path, step, dict(zip(TRACKED_SIGMA_REL, (weights[step], others), strict=True)))
        name = next(iter(weights[5]))
        seen = [(step, float(then.network.state_dict()[name].mean())) for step, then in models_of_training(model, tmp_path, 3)]
        assert [step for step, _ in seen] == [5, 15, 20] or [step for step, _ in seen] == [5, 10, 20]
        for step, mean in seen:
            assert mean == pytest.approx(float(weights[step][name].mean()), abs=1e-4)
        assert [step for step, _ in models_of_training(model, tmp_path, 99)] == [5, 10, 15, 20]

    def test_a_training_without_snapshots(self, tmp_path):
        with pytest.raises(InputError, match="holds no snapshots"):
            next(models_of_training(MODEL, tmp_path, 3))
