"""Plans, conditioning, generation and editing with a model; input images and masks by name; trajectories."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import diffusion, input_error
from PIL import Image
from test_unet import IDENTITY, awake, settings

from ddpm.data.images import to_images
from ddpm.editing.inpaint import MASKS, to_mask, with_repaint_jumps
from ddpm.editing.inputs import open_image, open_mask, read_picture
from ddpm.editing.stage_images import snapshot_models
from ddpm.editing.tasks import (
    EDITS,
    ImageSource,
    edit_images,
    inpaint_images,
    interpolate_images,
    reconstruct_images,
    source_image,
    stack_sources,
    vary_images,
)
from ddpm.networks.checkpoints import make_config
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, save_snapshot
from ddpm.networks.unet import UNet
from ddpm.sampling.generate import generate
from ddpm.sampling.labels import conditioning_for
from ddpm.sampling.model import DiffusionModel, from_config
from ddpm.sampling.noise import image_noise, latent_of
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import SamplingProgress, collect_images, final_images
from ddpm.sampling.samplers import SAMPLERS, sample
from ddpm.sampling.trajectory import TrajectoryRecorder

T = 50


def make_model(conditioning="class", dropout=0.1, shape=(8, 8, 1)) -> DiffusionModel:
    """A model with random weights on which the conditioning has an effect."""
    torch.manual_seed(0)
    section = settings(conditioning=conditioning)
    data = {**IDENTITY, "shape": list(shape)}
    config = make_config(section, "linear", "v", diffusion(T), data, {"condition_dropout": dropout}, 0)
    return from_config(awake(UNet(section, shape, data["class_names"])), config)


MODELS = {name: make_model(name) for name in CONDITIONINGS}
MODEL = MODELS["class"]
PLAN = make_plan(MODEL, steps=5)
ONE = torch.tensor([1])


def picture(seed=0, count=1):
    return (torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1).round(decimals=3)


def renamed(*names):
    return MODEL._replace(data={**MODEL.data, "class_names": list(names)})


def sample_of(seed, label=1):
    return ImageSource(None, latent_of(MODEL, seed), torch.tensor([label]))


def real(seed, label=1):
    return ImageSource(picture(seed), None, torch.tensor([label]))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_generate_depends_on_the_seed_alone(sampler):
    labels, _ = conditioning_for(MODEL, 7)
    plan = make_plan(MODEL, sampler=sampler, steps=5)
    together, in_batches, last_two, other_seed = (
        final_images(generate(MODEL, plan, labels[first:], 7 - first, seed, first=first, **options))
        for seed, first, options in ((3, 0, {}), (3, 0, {"batch_size": 2}), (3, 5, {}), (4, 0, {}))
    )
    torch.testing.assert_close(in_batches, together, atol=1e-4, rtol=0)
    torch.testing.assert_close(last_two, together[5:], atol=1e-4, rtol=0)
    assert not torch.allclose(other_seed, together, atol=0.1)


def test_generate_gives_each_image_its_label_and_marks_the_last_step_of_each_batch():
    labels, others = torch.tensor([2, 2, 5, 5, 7]), torch.tensor([2, 2, 5, 5, 8])
    a, b = (final_images(generate(MODEL, PLAN, chosen, 5, 0, batch_size=2)) for chosen in (labels, others))
    torch.testing.assert_close(a[:4], b[:4])
    assert not torch.allclose(a[4], b[4], atol=1e-3)
    updates = list(generate(MODEL, PLAN, None, 5, 0, batch_size=2))
    assert [(update.first, len(update.x)) for update in updates if update.last] == [(0, 2), (2, 2), (4, 1)]


SAMPLES = sample_of(1), sample_of(2)
ONES, JUMPS = torch.ones(1, 1, 8, 8), partial(with_repaint_jumps, jump_length=2, jump_n_sample=3)
TASKS = {
    "generate": lambda: generate(MODEL, PLAN, None, 5, 0, batch_size=2),
    "generate by heun": lambda: generate(MODEL, make_plan(MODEL, sampler="heun", steps=4), None, 3, 0),
    "inpaint": lambda: inpaint_images(MODEL, make_plan(MODEL, change=JUMPS, steps=6), picture(), ONES, ONE, 0),
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


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_tasks_count_to_their_end(task):
    updates = list(task())
    assert [update.done for update in updates] == list(range(1, len(updates) + 1))
    assert {update.total for update in updates} == {len(updates)}
    assert updates[-1].last
    assert updates[-1].position == 0
    assert all(update.x.isfinite().all() for update in updates)


class TestMakePlan:
    def test_make_plan_default_steps(self):
        assert make_plan(MODEL).nfe == 50
        assert make_plan(MODEL, sampler="ddpm").nfe == T
        assert make_plan(MODEL, sampler="heun", steps=5).nfe == 9

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_generate_runs_every_sampler(self, sampler):
        plan = make_plan(MODEL, sampler=sampler, steps=3)
        assert final_images(generate(MODEL, plan, None, 2, 0)).shape == (2, 1, 8, 8)

    @pytest.mark.parametrize(
        ("key", "options"),
        [
            ("sampler", {"sampler": "ddmi"}),
            ("steps", {"steps": 0}),
            ("steps", {"steps": 51}),
            ("eta", {"eta": 0.5, "sampler": "ddpm"}),
            ("eta", {"eta": 0.5, "sampler": "heun"}),
            ("eta", {"eta": 1.5}),
            ("eta", {"eta": float("nan")}),
            ("guidance", {"guidance": 51}),
            ("guidance", {"guidance": -1}),
            ("guidance", {"guidance": float("nan")}),
            ("churn", {"churn": -1.0}),
            ("churn", {"churn": 1e6}),
            ("threshold_quantile", {"threshold_quantile": 1.5}),
            ("variance", {"variance": "large"}),
            ("variance", {"variance": "largest"}),
            ("variance", {"variance": "learned", "sampler": "ddpm"}),
            ("spacing", {"spacing": "even", "sampler": "ddpm"}),
            ("thresholding", {"thresholding": "cut"}),
        ],
    )
    def test_make_plan_refuses_invalid_options(self, key, options):
        with input_error(key, match=r"\A.*\Z"):
            make_plan(MODEL, **options)

    def test_make_plan_refuses_guidance_without_condition_dropout(self):
        for model in (make_model(dropout=0.0), MODELS["none"]):
            with input_error("guidance"):
                make_plan(model, guidance=2.0)

    def test_guidance_moves_images_towards_the_class(self):
        labels = torch.tensor([3])
        at = [final_images(generate(MODEL, make_plan(MODEL, steps=5, guidance=g), labels, 1, 0)) for g in (0, 1, 3)]
        unlabeled = final_images(generate(MODEL, PLAN, None, 1, 0))
        torch.testing.assert_close(at[0], unlabeled)
        assert (at[2] - at[0]).norm() > (at[1] - at[0]).norm() > 0.01


class TestConditioning:
    @pytest.mark.parametrize(
        ("model", "count", "labels", "indices", "captions"),
        [
            (MODEL, 12, [], [*range(10), 0, 1], [*"0123456789", "0", "1"]),
            (renamed("Cat", "Dog", "Cow"), 5, [" cat", "2", "dog"], [0, 2, 1, 0, 2], ["Cat", "Cow", "Dog", "Cat", "Cow"]),
            (renamed("1", "0"), 1, ["0"], [1], ["0"]),
            (MODELS["text"], 2, ["7"], [7, 7], ["7", "7"]),
            (MODEL, 2, ["none"], None, ["", ""]),
            (MODELS["none"], 2, [], None, ["", ""]),
        ],
        ids=[
            "all classes",
            "names and indices",
            "a name that is an index",
            "text network",
            "no class",
            "unconditional network",
        ],
    )
    def test_conditioning_for_uses_labels_in_turn(self, model, count, labels, indices, captions):
        found, titles = conditioning_for(model, count, labels)
        assert (found if found is None else found.tolist(), titles) == (indices, captions)

    @pytest.mark.parametrize("name", ["text", "text+mask"])
    def test_conditioning_for_uses_texts_in_turn(self, name):
        labels, captions = conditioning_for(MODELS[name], 3, [], ["a seven", ""])
        assert captions == ["a seven", "", "a seven"]
        assert len(labels) == 3
        assert torch.equal(labels[0], labels[2])
        images = final_images(generate(MODELS["text"], make_plan(MODELS["text"], steps=3), labels, 3, 0))
        assert images.shape == (3, 1, 8, 8)

    @pytest.mark.parametrize(
        ("model", "labels", "texts", "key"),
        [
            ("class", ["7"], ["a seven"], "text"),
            ("class", [], ["a seven"], "text"),
            ("text", [], ["a whale"], "text"),
            ("text", [], ["!?"], "text"),
            ("none", ["7"], [], "label"),
            *(("class", [name], [], "label") for name in ("seven", "10", "-1", "", "9" * 5000)),
            ("class", ["7", "none"], [], "label"),
        ],
    )
    def test_conditioning_for_refuses_what_the_model_does_not_take(self, model, labels, texts, key):
        with input_error(key):
            conditioning_for(MODELS[model], 2, labels, texts)

    def test_conditioning_for_refuses_no_class_without_condition_dropout(self):
        with input_error("label"):
            conditioning_for(make_model(dropout=0.0), 1, ["none"])

    def test_conditioning_for_guidance_0_is_none(self):
        for labels in ([], ["none"]):
            assert conditioning_for(MODEL, 2, labels, guidance=0.0) == (None, ["", ""])
        for labels, texts in ((["7"], []), ([], ["a seven"])):
            with input_error("guidance"):
                conditioning_for(MODELS["text"], 2, labels, texts, 0.0)


class TestInpaint:
    @pytest.mark.parametrize("name", CONDITIONINGS)
    @pytest.mark.parametrize("resamples", [1, 3])
    def test_inpaint_images_keeps_known_pixels_exactly(self, name, resamples):
        model, x0 = MODELS[name], picture(count=3)
        known = open_mask("left", model.shape)
        plan = make_plan(model, change=partial(with_repaint_jumps, jump_length=2, jump_n_sample=resamples), steps=5)
        labels, _ = conditioning_for(model, 3)
        filled = final_images(inpaint_images(model, plan, x0, known, labels, 0))
        assert torch.equal(filled[..., 4:], x0[..., 4:])
        assert not torch.allclose(filled[..., :4], x0[..., :4], atol=0.1)
        # Each image has its own noise.
        assert not torch.allclose(filled[0, ..., :4], filled[1, ..., :4], atol=0.01)

    @pytest.mark.parametrize("name", ["class", "class+mask"])
    def test_inpaint_images_does_not_depend_on_missing_pixels(self, name):
        model, known = MODELS[name], open_mask("middle", (8, 8, 1))
        hidden = torch.where(known.bool(), picture(), picture(9))
        a, b = (final_images(inpaint_images(model, make_plan(model, steps=4), x, known, ONE, 0)) for x in (picture(), hidden))
        assert torch.equal(a, b)

    def test_inpaint_images_passes_known_pixels_to_a_mask_network_only(self):
        known = open_mask("middle", (8, 8, 1))
        for name in ("mask", "none"):
            model, plan = MODELS[name], make_plan(MODELS[name], steps=1)
            fills = [final_images(inpaint_images(model, plan, picture(k), known, None, 0))[..., 3:5, 3:5] for k in (0, 1)]
            assert torch.equal(*fills) == (name == "none")

    def test_inpaint_images_with_an_empty_mask_is_sampling(self):
        filled = final_images(inpaint_images(MODEL, PLAN, picture(), open_mask("all", (8, 8, 1)), ONE, 3))
        noise = image_noise(MODEL, 3, 1, 2 * len(PLAN.grid), use="fill")
        *_, last = sample(PLAN.denoiser(ONE), PLAN.rule, MODEL.schedule, PLAN.grid, noise(), noise)
        assert torch.equal(filled, last.x)


class TestEdit:
    def test_edit_images_distance_grows_with_strength(self):
        x0 = 0.2 * picture(count=4)
        far = [(final_images(edit_images(MODEL, make_plan(MODEL), x0, s, None, 0)) - x0).norm() for s in (0.02, 0.2, 1.0)]
        assert far[0] < far[1] < far[2]

    @pytest.mark.parametrize("method", EDITS)
    def test_edit_methods_give_different_variants(self, method):
        images = final_images(EDITS[method].apply(MODEL, PLAN, real(0), 0.5, 3, 0))
        assert len(images) == 3
        assert not torch.allclose(images[0], images[1], atol=1e-2)
        nothing = final_images(EDITS[method].apply(MODEL, PLAN, real(0), 0.0, 2, 0))
        assert torch.equal(nothing, picture().expand(2, -1, -1, -1))


class TestInterpolateAndVary:
    def test_interpolate_images_ends_are_the_real_images(self):
        between = final_images(interpolate_images(MODEL, PLAN, real(1), real(2, label=7), 5))
        assert torch.equal(between[[0, -1]], torch.cat([picture(1), picture(2)]))
        assert all(not torch.equal(a, b) for a, b in pairwise(between))

    @pytest.mark.parametrize("first", [sample_of(1), real(1)], ids=["sample", "picture"])
    def test_interpolate_images_ends_at_the_sample_of_a_seed(self, first):
        ends = final_images(interpolate_images(MODEL, PLAN, first, sample_of(2, 4), 3))[[0, -1]]
        start = picture(1) if first.image is not None else final_images(generate(MODEL, PLAN, ONE, 1, 1))
        end = final_images(generate(MODEL, PLAN, torch.tensor([4]), 1, 2))
        torch.testing.assert_close(ends, torch.cat([start, end]), atol=1e-5, rtol=0)

    def test_interpolate_images_blends_the_labels(self):
        """From one latent to itself, only the class changes."""
        between = final_images(interpolate_images(MODEL, PLAN, sample_of(1, 1), sample_of(1, 4), 5))
        far = [float((image - between[0]).norm()) for image in between]
        assert far == sorted(far)
        assert far[-1] > 0.01

    @pytest.mark.parametrize("source", [real(1), sample_of(1)], ids=["picture", "sample"])
    def test_vary_images_amount_0_is_the_image(self, source):
        varied = final_images(vary_images(MODEL, PLAN, source, 0.0, 2, 0))
        plain = picture(1) if source.image is not None else final_images(generate(MODEL, PLAN, ONE, 1, 1))
        torch.testing.assert_close(varied, plain.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
        assert not torch.allclose(final_images(vary_images(MODEL, PLAN, source, 0.5, 2, 0))[0], plain[0], atol=1e-2)


@pytest.mark.parametrize(
    ("key", "task"),
    [
        *(("strength", edit_images(MODEL, PLAN, picture(), value, ONE, 0)) for value in (-0.1, 1.1, float("nan"))),
        *(("amount", vary_images(MODEL, PLAN, real(1), value, 2, 0)) for value in (-0.1, 1.1, float("nan"))),
        ("number", interpolate_images(MODEL, PLAN, real(1), real(2), 1)),
    ],
)
def test_tasks_refuse_values_out_of_range(key, task):
    with input_error(key):
        final_images(task)


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"eta": 0.5}, {"sampler": "dpmpp_2m_sde"}])
def test_interpolate_and_vary_images_refuse_stochastic_samplers(options):
    plan = make_plan(MODEL, steps=5, **options)
    for task in (interpolate_images(MODEL, plan, *SAMPLES, 5), vary_images(MODEL, plan, SAMPLES[0], 0.5, 2, 0)):
        with input_error("sampler"):
            final_images(task)


def test_reconstruct_images_error_falls_with_steps():
    errors = []
    for steps in (5, 50):
        back = final_images(reconstruct_images(MODEL, make_plan(MODEL, steps=steps), picture(), ONE))
        errors.append(float((back - picture()).norm()))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("options", [{"sampler": "heun"}, {"sampler": "dpmpp_2m"}, {"guidance": 2.0}, {"eta": 0.5}])
def test_tasks_on_real_images_refuse_other_plans_than_ddim(options):
    plan = make_plan(MODEL, steps=5, **options)
    for task in (
        reconstruct_images(MODEL, plan, picture(), ONE),
        vary_images(MODEL, plan, real(1), 0.5, 1, 0),
        interpolate_images(MODEL, plan, real(1), sample_of(2), 3),
    ):
        with input_error("sampler"):
            final_images(task)
    if not plan.stochastic:
        assert final_images(vary_images(MODEL, plan, sample_of(1), 0.5, 1, 0)).isfinite().all()


def test_image_noise_differs_between_uses_and_refuses_a_negative_seed():
    for use in ("edit", "vary", "fill"):
        again = image_noise(MODEL, 3, 1, 1, use=use)()
        assert not torch.allclose(again, latent_of(MODEL, 3), atol=0.1)
        assert torch.equal(again, image_noise(MODEL, 3, 1, 1, use=use)())
    with input_error("seed"):
        image_noise(MODEL, -1, 1, 1)


def test_reconstruct_images_yields_the_latents():
    updates = list(reconstruct_images(MODEL, PLAN, picture(), ONE))
    (latent,) = (update.x for update in updates if update.position == T)
    plan = make_plan(MODEL, steps=5, thresholding="none")
    decoded = final_images(vary_images(MODEL, plan, ImageSource(None, latent, ONE), 0.0, 1, 0))
    torch.testing.assert_close(decoded, updates[-1].x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("collect", [final_images, partial(collect_images, "test")], ids=["final_images", "collect_images"])
def test_final_images_refuse_images_that_are_not_finite(collect):
    x = torch.full((1, 1, 8, 8), float("nan"))
    with input_error("thresholding"):
        collect(iter([SamplingProgress(1, 1, 0, 0.0, x, x, True)]))


class TestInputs:
    def test_open_image_test_image_with_its_class(self, data):
        model = MODEL._replace(data=data.identity() | {"class_counts": data.class_counts})  # as `train` records it
        for number in (0, 17):
            named = open_image(model, f"test:{number}")
            assert np.array_equal(to_images(named.source.image)[0], data.test.images[number])
            assert named.source.labels.tolist() == [data.test.labels[number]]
            assert named.title == f"test:{number} ({data.test.labels[number]})"
        assert open_image(model, "test:0", label="9").source.labels.tolist() == [9]
        assert open_image(model, "test:0", label="none").source.labels is None

    def test_open_image_refuses_test_images_of_other_data(self, data):
        for model, name in ((MODEL, "test:0"), (MODEL._replace(data=data.identity()), "test:500")):
            with input_error(name):
                open_image(model, name)

    def test_open_image_sample_of_a_seed(self):
        named = open_image(MODEL, "seed:13")
        assert (named.caption, named.source.image) == ("3", None)
        generated = final_images(generate(MODEL, make_plan(MODEL), ONE * 3, 1, 13))
        torch.testing.assert_close(source_image(MODEL, named.source), generated)
        assert open_image(MODELS["none"], "seed:13").source.labels is None
        assert open_image(MODELS["text"], "seed:3", text="a seven").caption == "a seven"
        named = open_image(MODEL, "seed:13", guidance=0.0)
        assert (named.caption, named.title, named.source.labels) == ("", "seed:13", None)
        large, other = (open_image(MODEL, f"seed:{seed}").source for seed in (99_999_999_999, 99_999_999_989))
        assert torch.equal(large.latent, latent_of(MODEL, 99_999_999_999))
        assert not torch.allclose(large.latent, other.latent, atol=0.1)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
    def test_read_picture_converts_any_mode(self, mode, tmp_path):
        pixels = (np.arange(40 * 60).reshape(40, 60) % 256).astype(np.uint8)
        picture = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        picture.save(tmp_path / "picture.png")
        for shape in ((8, 8, 1), (12, 20, 3)):
            image = read_picture(tmp_path / "picture.png", shape)
            assert (image.shape, image.dtype) == (shape, np.uint8)
            assert np.ptp(image) > 50

    def test_read_picture_center_crops(self, tmp_path):
        wide = np.zeros((10, 30), np.uint8)
        wide[:, 10:20] = 255
        Image.fromarray(wide).save(tmp_path / "wide.png")
        assert (read_picture(tmp_path / "wide.png", (10, 10, 1)) == 255).all()

    def test_open_image_picture_has_no_class(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(path)
        named = open_image(MODEL, str(path))
        assert named.source.labels is None
        assert (named.source.image == 1).all()
        assert open_image(MODEL, str(path), label="4").source.labels.tolist() == [4]
        with input_error("label"):
            open_image(make_model(dropout=0.0), str(path))

    @pytest.mark.parametrize(
        "name",
        ["", "nowhere.png", "seed:", "seed:-1", "test:x", "seed:1e3", "seed:" + "9" * 5000, "x" * 5000, "a\0b", ".", "\udc80"],
    )
    def test_open_image_refuses_unknown_names(self, name):
        with input_error(str(Path(name))):
            open_image(MODEL, name)

    def test_open_image_and_mask_refuse_other_files(self, tmp_path):
        name = str(tmp_path / "a.png")
        Path(name).write_text("not a picture")
        for function, arguments in ((open_image, (MODEL, name)), (open_mask, (name, MODEL.shape))):
            with input_error(name):
                function(*arguments)

    @pytest.mark.parametrize("size", [(8, 8), (7, 12)])
    def test_open_mask_by_name(self, size):
        filled = {name: 1 - open_mask(name, (*size, 3)) for name in MASKS}
        assert all(mask.shape == (1, 1, *size) for mask in filled.values())
        for a, b in (("left", "right"), ("top", "bottom"), ("middle", "border")):
            assert torch.equal(filled[a] + filled[b], filled["all"])
        assert filled["all"].all()
        assert filled["left"][..., 0].all()
        assert filled["top"][..., 0, :].all()
        assert filled["middle"][..., size[0] // 2, size[1] // 2].all()
        assert not filled["middle"][..., 0].any()

    def test_open_mask_by_picture(self, tmp_path):
        painted = np.zeros((16, 16), np.uint8)
        painted[:8] = 255
        Image.fromarray(painted).save(tmp_path / "top.png")
        assert torch.equal(open_mask(str(tmp_path / "top.png"), (8, 8, 1)), open_mask("top", (8, 8, 1)))
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
        with input_error("mask"):
            open_mask(str(tmp_path / "black.png"), (8, 8, 1))

    @pytest.mark.parametrize("name", ["", "lef", "x" * 5000, "a\0b", "."])
    def test_open_mask_refuses_unknown_names(self, name):
        with input_error("mask"):
            open_mask(name, (8, 8, 1))

    def test_to_mask_is_1_where_known(self):
        assert to_mask(np.array([[True, False], [False, True]])).tolist() == [[[[1, 0], [0, 1]]]]

    def test_stack_sources_keeps_their_order(self):
        images, groups = stack_sources(MODEL, [real(1, 3), ImageSource(picture(5), None, None), sample_of(2, 4)])
        assert torch.equal(images[:2], torch.cat([picture(1), picture(5)]))
        assert [(which, labels if labels is None else labels.tolist()) for which, labels in groups] == [
            ([0, 2], [3, 4]),
            ([1], None),
        ]


class TestTrajectories:
    @pytest.mark.parametrize(("steps", "frames"), [(10, 4), (10, 50), (1, 5)])
    def test_trajectory_recorder_keeps_frames(self, steps, frames):
        plan = make_plan(MODEL, steps=steps)
        recorder = TrajectoryRecorder(steps, frames, max_images=4)
        images = final_images(generate(MODEL, plan, None, 5, 0, batch_size=3), recorder)
        assert recorder.x.shape == recorder.x0.shape == (min(steps, frames), 4, 8, 8, 1)
        assert recorder.levels == sorted(recorder.levels, reverse=True)
        assert recorder.levels[-1] == 0
        assert np.array_equal(recorder.x[-1], to_images(images[:4]))

    def test_snapshot_models_go_from_first_to_last(self, tmp_path):
        model, weights = make_model(), {}
        with input_error(str(tmp_path)):
            next(snapshot_models(MODEL, tmp_path, 3))
        for step in (5, 10, 15, 20):
            weights[step] = {name: value + step for name, value in model.network.state_dict().items()}
            others = {name: value + 100 for name, value in weights[step].items()}
            save_snapshot(tmp_path, step, dict(zip(TRACKED_SIGMA_REL, (weights[step], others), strict=True)))
        name = next(iter(weights[5]))
        means = {step: float(other.network.state_dict()[name].mean()) for step, other in snapshot_models(model, tmp_path, 3)}
        assert list(means) in ([5, 15, 20], [5, 10, 20])
        assert means == pytest.approx({step: float(weights[step][name].mean()) for step in means}, abs=1e-4)
        assert [step for step, _ in snapshot_models(model, tmp_path, 99)] == [5, 10, 15, 20]
