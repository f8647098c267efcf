"""The Python API: `ddpm.load`, the methods of a model, and images that show and save themselves."""

import doctest
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, diffusion, input_error
from PIL import Image
from test_unet import awake, settings

import ddpm
from ddpm.api import load as loading
from ddpm.api.images import Images
from ddpm.core.files import read_json, read_npz, write_json
from ddpm.core.weights import save_weights
from ddpm.data.images import to_images
from ddpm.diffusers_io.export import ExportOptions, export
from ddpm.networks.checkpoints import make_config
from ddpm.networks.unet import UNet
from ddpm.sampling.plan import PlanOptions, make_plan

CLASSES = [str(k) for k in range(10)]
DATA = {"dataset": "digits", "shape": [8, 8, 1], "class_names": CLASSES, "sha256": {}}
WITH_EXAMPLES = [
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for path in sorted((ROOT / "ddpm").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of an untrained class-conditional model, T = 50."""
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    folder.mkdir()
    torch.manual_seed(0)
    kind = settings(conditioning="class")
    training = {"steps": 20, "batch_size": 8, "condition_dropout": 0.1}
    write_json(folder / "config.json", make_config(kind, "linear", "v", diffusion(50), DATA, training, 4))
    save_weights(folder / "final.safetensors", awake(UNet(kind, (8, 8, 1), CLASSES)).state_dict())
    return folder


@pytest.fixture
def model(folder, tmp_path, monkeypatch) -> ddpm.Model:
    monkeypatch.chdir(tmp_path)
    return ddpm.load(folder, device="cpu", threads=1)


def test_import_is_lazy_and_offers_the_public_names():
    code = "import ddpm, sys; assert 'torch' not in sys.modules; print(sorted({'load', 'Model', 'Images'} - set(dir(ddpm))))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
    with pytest.raises(AttributeError, match="'lod'"):
        ddpm.lod  # noqa: B018


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(name):
    torch.manual_seed(0)
    results = doctest.testmod(import_module(name))
    assert results.attempted
    assert not results.failed


class TestLoad:
    def test_load_takes_a_folder_or_a_file_in_it(self, folder):
        both = [ddpm.load(at, device="cpu", threads=1).sample(2, steps=2) for at in (str(folder), folder / "final.safetensors")]
        assert np.array_equal(*both)

    def test_load_reads_what_diffusers_saves(self, model, tmp_path):
        options = ExportOptions(keep_classes=True)
        export(model.diffusion, model.config, tmp_path / "exported", options, samples=0)
        for at in (tmp_path / "exported", tmp_path / "exported" / "unet"):
            loaded = ddpm.load(at, device="cpu", threads=1)
            assert loaded.folder == at
            difference = np.asarray(loaded.sample(4, steps=5), int) - np.asarray(model.sample(4, steps=5), int)
            assert abs(difference).max() <= 1
        with input_error("checkpoint"):
            ddpm.load(tmp_path / "exported", checkpoint=0.1)

    def test_load_downloads_from_the_hub(self, folder, monkeypatch):
        monkeypatch.setattr(loading, "download", {"hf://owner/name": folder}.__getitem__)
        assert ddpm.load("hf://owner/name", device="cpu").folder == folder

    @pytest.mark.parametrize(
        ("arguments", "key"),
        [(("nowhere",), "nowhere"), ((".",), "."), (("models/ddpm", "fina"), "checkpoint"), (("models/ddpm", 7.0), "checkpoint")],
    )
    def test_load_refuses_what_is_no_model(self, arguments, key, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with input_error(key):
            ddpm.load(*arguments)


class TestModel:
    def test_sample_gives_captioned_images_of_a_seed_in_any_batch(self, model):
        images = model.sample(5, labels=["3", 7], steps=4, seed=2, sampler="ddpm")
        assert images.shape == (5, 8, 8, 1)
        assert np.asarray(images).dtype == np.uint8
        assert (list(images.captions), images.labels.tolist()) == (["3", "7", "3", "7", "3"], [3, 7, 3, 7, 3])
        assert (images.sampler, images.nfe) == ("DDPM", 4)
        assert np.array_equal(images, model.sample(5, labels=["3", 7], steps=4, seed=2, sampler="ddpm", batch_size=2))
        assert not np.array_equal(images, model.sample(5, labels=["3", 7], steps=4, seed=3, sampler="ddpm"))
        assert model.sample(2, labels="none", steps=2).labels is None
        again = model.sample(5, labels=images.labels, steps=4, seed=np.int64(2), sampler="ddpm")
        assert np.array_equal(images, again)
        assert list(model.sample(12, steps=1).captions) == [*CLASSES, "0", "1"]

    def test_stream_ends_with_the_images_of_sample(self, model):
        steps = list(model.stream(3, labels="4", steps=6))
        assert [(step.done, step.total) for step in steps] == [(k, 6) for k in range(1, 7)]
        assert steps[0].position > steps[-1].position == 0
        assert np.array_equal(steps[-1].x, model.sample(3, labels="4", steps=6))
        assert steps[0].x0.shape == (3, 8, 8, 1)

    def test_generation_shows_its_steps_and_then_its_images(self, model):
        """A sample of a seed is generated first, and each strength counts its own steps."""
        generation = model.editing("seed:3", [0.5, 1.0], steps=4)
        counts = [(update.done, update.total) for update in generation]
        assert counts == [*((k, 50) for k in range(1, 51)), (1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4)]
        assert generation.plan.nfe == generation.images.nfe == 4
        assert np.array_equal(generation.images, model.edit("seed:3", [0.5, 1.0], steps=4))
        assert generation.run() is generation.images
        batches = model.sampling(5, steps=2, batch_size=2)
        assert [update.first for update in batches] == [0, 0, 2, 2, 4, 4]
        assert np.array_equal(batches.images, model.sample(5, steps=2))
        stopped = model.sampling(2, steps=4)
        next(iter(stopped))
        assert stopped.images is None

    def test_methods_that_return_images_take_the_arguments_of_a_generation(self):
        for name, method in {"sampling": ddpm.Model.sample, "editing": ddpm.Model.edit}.items():
            taken, returned = (inspect.signature(each) for each in (getattr(ddpm.Model, name), method))
            assert taken.parameters == returned.parameters
            assert returned.return_annotation is Images
            assert method.__doc__ == getattr(ddpm.Model, name).__doc__

    def test_opened_sample_is_generated_once(self, model):
        evaluations = []
        opened = model.open("seed:3", decode=True)
        model.diffusion.network.register_forward_hook(lambda *_: evaluations.append(1))
        once = model.reconstruct(opened, 2)
        assert len(evaluations) == 4
        again = model.reconstruct("seed:3", 2)
        assert np.array_equal(once.images, again.images)

    def test_images_come_as_names_pictures_and_arrays(self, model):
        array = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(array).save("a.png")
        colour, palette = np.stack([array] * 3, -1), Image.fromarray(array).convert("P")
        for image in ("a.png", Path("a.png"), array, array[..., None], colour, palette):
            assert np.array_equal(to_images(model.open(image, "3").source.image)[0, ..., 0], array)
        rotated, clear = Image.fromarray(array.T.copy()), Image.fromarray(np.zeros((8, 8), np.uint8), "P")
        rotated.getexif()[274] = 5  # transposed
        clear.putpalette([255, 0, 0] * 256)
        clear.info["transparency"] = 0
        assert np.array_equal(to_images(model.open(rotated, "3").source.image)[0, ..., 0], array)
        assert not to_images(model.open(clear, "3").source.image).any()
        assert model.open(Image.new("HSV", (8, 8)), "3").source.image.shape == (1, 1, 8, 8)
        with input_error("image"):
            model.open(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "3")
        for wrong in (torch.zeros(8, 8), None, array.astype(float), array[0], array[None, None], array[..., None][..., :0]):
            with input_error("image"):
                model.open(wrong)

    def test_inpaint_keeps_the_known_pixels(self, model):
        image, mask = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.zeros((8, 8), bool)
        mask[2:5, 3:] = True
        fills = model.inpaint(image, mask, number=3, label=3, steps=6)
        assert fills.shape == (3, 8, 8, 1)
        assert np.array_equal(np.asarray(fills)[:, ~mask, 0], np.stack([image[~mask]] * 3))
        assert (np.asarray(fills)[0] != np.asarray(fills)[1]).any()
        assert fills.nfe > 6  # RePaint's repeats
        assert model.inpaint(image, mask, label=3, steps=6, resamples=1).nfe == 6
        for wrong in (mask[:4], mask.astype(int), np.zeros((8, 8), bool), "nowhere"):
            with input_error("mask"):
                model.inpaint(image, wrong, label=3)

    def test_edit_gives_variants_of_each_strength(self, model):
        image = np.full((8, 8), 100, np.uint8)
        variants = model.edit(image, [0.0, 0.5], number=2, label="3", steps=4)
        assert list(variants.captions) == ["0", "0", "0.5", "0.5"]
        assert (np.asarray(variants)[:2] == 100).all()
        assert (np.asarray(variants)[2:] != 100).any()
        with input_error("method"):
            model.edit(image, method="magic", label=3)

    def test_interpolate_begins_and_ends_with_both_images(self, model):
        a, b = (np.full((8, 8), value, np.uint8) for value in (20, 200))
        images = model.interpolate(a, b, 4, labels=["3", "4"], steps=4)
        assert (np.asarray(images)[0] == 20).all()
        assert (np.asarray(images)[-1] == 200).all()
        assert list(images.titles) == ["ndarray (3)", "ndarray (4)"]
        with input_error("label"):
            model.interpolate(a, b, labels=["1", "2", "3"])

    def test_reconstruct_returns_images_and_psnr(self, model):
        image = np.full((8, 8), 100, np.uint8)
        coarse, fine = (model.reconstruct([image, "seed:3"], steps, label="3") for steps in (2, 50))
        assert fine.images.shape == (2, 8, 8, 1)
        assert fine.psnr.shape == (2,)
        assert fine.psnr.mean() > coarse.psnr.mean()
        assert model.reconstruct(image, 2, label="3").psnr[0] == pytest.approx(coarse.psnr[0])

    @pytest.mark.parametrize(
        ("method", "arguments", "key"),
        [
            ("sample", {"labels": "eleven"}, "label"), ("sample", {"sampler": "dim"}, "sampler"),
            ("stream", {"steps": 51}, "steps"), ("sample", {"texts": "a seven"}, "text"), ("plan", {"eta": 2.0}, "eta"),
            ("sample", {"number": 0}, "number"), ("stream", {"number": 2.0}, "number"),
            ("sample", {"batch_size": 0}, "batch_size"), ("sample", {"seed": -1}, "seed"), ("sample", {"labels": 10}, "label"),
            ("sample", {"labels": -1}, "label"), ("sample", {"labels": 3.0}, "label"), ("plan", {"steps": 2.5}, "steps"),
            ("plan", {"guidance": "2"}, "guidance"), ("interpolate", {"a": "seed:1", "b": "seed:2", "number": 2.5}, "number"),
            ("edit", {"image": "seed:1", "strength": []}, "strength"),
            ("edit", {"image": "seed:1", "strength": [0.4, 2]}, "strength"),
            ("edit", {"image": "seed:1", "strength": "0.5"}, "strength"), ("reconstruct", {"images": []}, "images"),
            ("inpaint", {"image": "seed:1", "resamples": 0}, "resamples"),
        ],
    )  # fmt: skip
    def test_wrong_arguments_are_named(self, model, method, arguments, key):
        with input_error(key):
            getattr(model, method)(**arguments)

    def test_plan_options_are_those_of_make_plan(self):
        assert [*PlanOptions.__annotations__] == [*inspect.signature(make_plan).parameters][1:-1]  # without `change`

    def test_model_shows_its_card(self, model, folder):
        assert model.info()["classes"] == CLASSES
        assert (model.shape, model.class_names, model.timesteps) == ((8, 8, 1), CLASSES, 50)
        page = model._repr_html_()
        assert "<tr><th>schedule</th><td>linear, T = 50</td></tr>" in page
        assert repr(model) == f"Model {folder}: digits, 8x8, on cpu"
        assert read_json(folder / "config.json", "") == model.config


class TestImages:
    @pytest.fixture
    def images(self):
        return Images(np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1), ["a", "b"] * 2, np.array([0, 1] * 2), "DDIM", 5)

    def test_images_are_a_sequence_and_an_array(self, images):
        assert (len(images), images.shape) == (4, (4, 8, 8, 1))
        assert np.array_equal(np.stack(list(images)), images)
        assert np.asarray(images) is images.array
        assert np.array(images, float).dtype == float
        assert (len(images[1:3]), images[1:3].captions, images[1:3].labels.tolist()) == (2, ["b", "a"], [1, 0])
        assert [picture.size for picture in images.to_pil()] == [(8, 8)] * 4
        assert repr(images) == "Images of shape (4, 8, 8, 1) by DDIM, 5 network evaluations"

    def test_images_show_the_grid_that_they_save(self, images, tmp_path):
        images.save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(images._repr_png_())
        with Image.open(tmp_path / "a.png") as saved, Image.open(tmp_path / "b.png") as shown:
            assert np.array_equal(np.asarray(saved.convert("L")), np.asarray(shown.convert("L")))

    def test_images_are_saved_by_suffix(self, images, tmp_path):
        images.save(tmp_path / "a.npz")
        arrays = read_npz(tmp_path / "a.npz", "x")
        assert np.array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == [0, 1, 0, 1]
        images.save(str(tmp_path / "folder"))
        assert (tmp_path / "folder" / "00003.png").exists()
        with input_error("out"):
            images.save(tmp_path / "a.jpg")


@pytest.mark.slow
def test_readme_example_trains_a_network_of_ones_own(tmp_path, monkeypatch):
    """The network of the README is trained for longer than no time: its loss falls, and its samples are written."""
    (code,) = (block for block in (ROOT / "ddpm/api/README.md").read_text().split("```python\n")[1:] if "class Network" in block)
    code = code.partition("```")[0]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["losses"][-1] < 0.5 * names["losses"][0]
    with Image.open("out/own.png") as grid:
        assert grid.size[0] > 4 * 48
