"""The commands of `python -m ddpm`: files, output, and one-line errors."""

import importlib.util
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import typer
from conftest import PROGRESS, ROOT, diffusion
from PIL import Image, ImageFont
from test_unet import awake, settings

from ddpm.api import images
from ddpm.api import model as api_model
from ddpm.cli import animations, output
from ddpm.cli.main import COMMANDS, app, main
from ddpm.core import device
from ddpm.core.device import DEVICES
from ddpm.core.files import InputError, read_npz, sha256, write_json
from ddpm.core.params import keys_of
from ddpm.core.weights import read_weights, save_weights
from ddpm.core.yaml_files import read_yaml
from ddpm.data import prepared
from ddpm.data.prepared import open_prepared
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DIGITS
from ddpm.datasets.settings import PrepareData
from ddpm.editing import tasks
from ddpm.editing.tasks import EDITS
from ddpm.networks.checkpoints import make_config
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, save_snapshot
from ddpm.networks.unet import UNet
from ddpm.plots import image_grid
from ddpm.plots.image_grid import FONT_SIZE, GAP, MARGIN
from ddpm.sampling import model, plan, progress

# The captions of the columns stand above the first row.
BELOW_CAPTIONS = {"top": MARGIN + FONT_SIZE + MARGIN}
T = 50
MACHINE = ("--device", "cpu", "--threads", "1")
MODELS = {"ddpm": "class", "text": "text", "mask": "mask", "plain": "none"}
DRAWING = ("sample", "compare", "animate", "interpolate", "inpaint", "edit", "reconstruct")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A project folder with data/prepared and a model of each kind, untrained, T = 50."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        section = PrepareData(**read_yaml(ROOT / "params.yaml")["prepare_data"])
        prepare("digits", section)
        data = open_prepared("digits", section.as_written())
        for name, conditioning in MODELS.items():
            torch.manual_seed(0)
            kind = settings(conditioning=conditioning)
            network = awake(UNet(kind, data.shape, data.class_names))
            training = {"steps": 20, "batch_size": 8, "condition_dropout": 0.1}
            write_json(f"models/{name}/config.json", make_config(kind, "linear", "v", diffusion(T), data.identity(), training, 4))
            save_weights(Path(f"models/{name}/final.safetensors"), network.state_dict())
        # Each width has tensors of its own, since a file cannot hold one tensor twice.
        tracks = {width: {key: value.clone() for key, value in network.state_dict().items()} for width in TRACKED_SIGMA_REL}
        for step in (10, 20):
            save_snapshot(Path("models/plain"), step, tracks)
    return folder


@pytest.fixture
def project(built, tmp_path, monkeypatch) -> Path:
    """A folder, made the current one, that holds what `built` does."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("data", "models"):
        (folder / name).symlink_to(built / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(plan, "DEFAULT_STEPS", 5)
    # One thread, as in all tests.
    monkeypatch.setattr(device, "usable_cpus", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return folder


@pytest.fixture
def run(project, capsys):
    """run("sample", ...): the lines that the command prints, once it has ended well."""

    def run(*arguments) -> list[str]:
        capsys.readouterr()
        given = [str(argument) for argument in arguments]
        status = main([*given, *(MACHINE if given[0] in DRAWING else ())])
        printed, said = capsys.readouterr()
        assert status == 0, said
        assert all(PROGRESS.match(line) for line in said.splitlines()), said
        return printed.splitlines()

    return run


@pytest.fixture
def error(project, error):
    """`error` of conftest.py, in the project folder."""
    return error


@pytest.fixture
def sampled(run):
    """sampled("-n", 3): the images (N, 8, 8) of `sample` with these options."""

    def sampled(*options):
        run("sample", *options, "-o", "a.npz")
        return read_npz("a.npz", "x")["arr_0"][..., 0]

    return sampled


@pytest.fixture
def real_images(built):
    return np.load(built / "data/prepared/test_images.npy")[..., 0]


def tile(picture, row, column, size=8, left=MARGIN, top=MARGIN):
    """An image (H, W) of a grid that was written with tiles of its own size."""
    with Image.open(picture) as opened:
        array = np.asarray(opened.convert("L"))
    y, x = top + row * (size + GAP), left + column * (size + GAP)
    return array[y : y + size, x : x + size]


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def left_of(path, columns, size=8):
    """Where the images of a grid begin, right of its captions."""
    return size_of(path)[0] - MARGIN - columns * (size + GAP)


def frames_of(path):
    if path.suffix == ".mp4":
        with av.open(str(path)) as film:
            return sum(1 for _ in film.decode(video=0))
    with Image.open(path) as film:
        return film.n_frames


@pytest.mark.parametrize(
    ("command", "model"),
    [
        *((command, "ddpm/final.safetensors") for command in DRAWING),
        ("sample", "text"),
        ("edit", "mask"),
        ("compare", "plain"),
        ("sample", "plain/snapshots/step_0000010.safetensors"),
    ],
)
def test_command_without_options_writes_its_default_file(run, command, model):
    name = Path("out/denoising.gif" if command == "animate" else f"out/{command}.png")
    last = run(command, "--model", f"models/{model}", *(("--number", 2) if command != "reconstruct" else ()))[-1]
    assert last.startswith(f"wrote {name}: ")
    assert min(size_of(name)) > 40
    assert list(Path("out").iterdir()) == [name]


class TestSample:
    def test_sample_npz_has_the_layout_of_the_stages(self, run):
        line = run("sample", "-n", 12, "--seed", 3, "--steps", 4, "--out", "new/a.npz")[0]
        assert line.startswith("wrote new/a.npz: 12 images by DDIM, 4 network evaluations each, ")
        arrays = read_npz("new/a.npz", "x")
        assert set(arrays) == {"arr_0", "arr_1", "sampler"}
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((12, 8, 8, 1), np.uint8)
        assert (arrays["arr_1"].tolist(), arrays["sampler"].tolist()) == ([*range(10), 0, 1], ["DDIM"])

    def test_sample_depends_on_seed_not_on_batch_size(self, sampled):
        drawn = ("-n", 5, "--sampler", "ddpm", "--steps", 5, "--seed")
        a, b, c = (sampled(*drawn, *more).astype(int) for more in ((5,), (5, "--batch", 2), (6,)))
        assert abs(a - b).max() <= 1
        assert abs(a - c).max() > 20

    def test_sample_npz_holds_repeated_labels_and_texts_in_turn(self, run):
        for given in (("--label", "7", "--label", "2"), ("--label", "7, 2")):
            run("sample", "-n", 3, *given, "-o", "a.npz")
            assert read_npz("a.npz", "x")["arr_1"].tolist() == [7, 2, 7]
        run("sample", "-m", "models/text", "-n", 3, "--text", "a seven", "--text", "the two", "-o", "a.npz")
        arrays = read_npz("a.npz", "x")
        assert arrays["captions"].tolist() == ["a seven", "the two", "a seven"]
        assert "arr_1" not in arrays

    @pytest.mark.parametrize("more", [("--guidance", 0), ("--label", "none"), ("-m", "models/plain")])
    def test_sample_without_classes_has_no_labels(self, run, more):
        run("sample", "-n", 4, "-o", "a.npz", *more)
        assert set(read_npz("a.npz", "x")) == {"arr_0", "sampler"}
        run("sample", "-n", 4, "--tile", 8, "-o", "a.png", *more)
        assert size_of("a.png") == (2 * MARGIN + 4 * (8 + GAP), 2 * MARGIN + 8 + GAP)
        run("sample", "-n", 1, "-o", "pictures", *more)
        assert [path.name for path in Path("pictures").iterdir()] == ["00000.png"]

    def test_sample_grid_has_rows_for_each_class(self, run, sampled):
        drawn = ("-n", 7, "--label", "7", "--label", "2")
        run("sample", *drawn, "--tile", 8, "-o", "a.png")
        left = left_of("a.png", 4)
        for k, image in enumerate(sampled(*drawn)):
            assert np.array_equal(tile("a.png", k % 2, k // 2, left=left), image)

    def test_sample_folder_holds_png_files(self, run, sampled, error):
        run("sample", "-n", 3, "--label", "4", "-o", "pictures")
        for k, image in enumerate(sampled("-n", 3, "--label", "4")):
            with Image.open(f"pictures/{k:05d}.png") as picture:
                assert np.array_equal(np.asarray(picture), image)
        assert Path("pictures/labels.csv").read_text() == 'file,label\n00000.png,"4"\n00001.png,"4"\n00002.png,"4"\n'
        assert "pictures is an existing folder" in error("sample", "-o", "pictures")

    def test_sample_folder_that_fails_leaves_nothing(self, run, error, monkeypatch):
        monkeypatch.setattr(images, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert error("sample", "-n", 3, "-o", "pictures") == "pictures: no space left on the device: free some and run again"
        assert not [path for path in Path().iterdir() if "pictures" in path.name]

    def test_rows_of_captions_only_the_first_row(self):
        assert image_grid.rows_of(["7", "2", "7", "7"], 2) == [("7", [0, 2]), ("", [3]), ("2", [1])]
        assert image_grid.rows_of(["a"] * 20, None) == [("a", [*range(5)]), *(("", [*range(k, k + 5)]) for k in (5, 10, 15))]

    @pytest.mark.parametrize("columns", [1, 3, 10])
    def test_sample_columns_set_the_grid(self, run, columns):
        run("sample", "-m", "models/plain", "-n", 7, "--columns", columns, "--tile", 8, "-o", "a.png")
        rows, across = -(-7 // columns), min(7, columns)
        assert size_of("a.png") == (2 * MARGIN + across * 11, 2 * MARGIN + rows * 11)


class TestCompare:
    def test_compare_runs_each_sampler_with_each_number_of_steps(self, run):
        lines = run("compare", "--sampler", "heun", "--sampler", "ddim", "--steps", 1, "--steps", 3, "-n", 2, "--eta", 0.5)
        counts = [" ".join(line.rpartition(" each")[0].split()) for line in lines[:-1]]
        assert counts == [
            "Heun, 1 step 1 network evaluation", "Heun, 3 steps 5 network evaluations",
            "DDIM, 1 step 1 network evaluation", "DDIM, 3 steps 3 network evaluations",
        ]  # fmt: skip

    def test_compare_rows_equal_samples_with_the_options_of_their_sampler(self, run, sampled):
        style = {"--eta": 0.5, "--spacing": "log_snr", "--variance": "large"}
        drawn = ("--steps", 5, "-n", 3, "--label", "1")
        uses = {"ddim": ["--eta", "--spacing"], "heun": ["--spacing"], "ddpm": ["--spacing", "--variance"]}
        samplers = [word for name in uses for word in ("--sampler", name)]
        for given in ({}, style):
            run("compare", *samplers, *drawn, *(word for option in given.items() for word in option), "--tile", 8)
            left = left_of("out/compare.png", 3)
            for row, (sampler, own) in enumerate(uses.items()):
                options = [word for name in own if name in given for word in (name, given[name])]
                for k, image in enumerate(sampled("--sampler", sampler, *drawn, *options)):
                    assert np.array_equal(tile("out/compare.png", row, k, left=left, **BELOW_CAPTIONS), image)

    def test_compare_has_captions_that_do_not_overlap_unless_guidance_is_0(self, run):
        run("compare", "--sampler", "ddim", "--steps", 2, "-n", 3, "--guidance", 0, "--tile", 8)
        assert size_of("out/compare.png")[1] == 2 * MARGIN + 8 + GAP
        drawn = ("--sampler", "ddim", "--steps", 1, "-n", 4, "--tile", 48)
        run("compare", "-m", "models/text", "--text", "a handwritten seven", *drawn)
        with Image.open("out/compare.png") as opened:
            band = np.asarray(opened.convert("L"))[: BELOW_CAPTIONS["top"]]
        for x in (left_of("out/compare.png", 4, 48) + k * (48 + GAP) for k in range(4)):
            assert (band[:, x : x + 48] < 128).any()
            assert (band[:, x - GAP : x] == 255).all()


class TestCaptions:
    @pytest.mark.parametrize("text", ["", "7", "T-shirt/top", "a handwritten seven", "w" * 500, "two\nlines"])
    def test_fitting_caption_is_at_most_as_wide_as_its_image(self, text):
        font, short = ImageFont.load_default(FONT_SIZE), image_grid.short(text)
        for width in (8, 28, 64, 84, 1000):
            fitted = image_grid.fitting(text, width)
            assert font.getlength(fitted) <= width or len(fitted) == 1
            assert bool(fitted) == bool(text)
            if fitted != short:
                assert short.startswith(fitted.removesuffix("..."))
                assert font.getlength(short) > width
        assert image_grid.fitting("Ankle boot", 84) == "Ankle boot"
        assert image_grid.fitting("a handwritten seven", 64).endswith("...")


class TestAnimate:
    @pytest.mark.parametrize(("what", "suffix"), [*((what, ".gif") for what in animations.ANIMATIONS), ("grid", ".mp4")])
    def test_animate_writes_each_film(self, run, what, suffix):
        out = Path(f"film{suffix}")
        more = ("--what", what, "-m", "models/plain", "-n", 3, "--frames", 2, "--hold", 0, "--tile", 16, "--upscaling", "smooth")
        line = run("animate", *more, "-o", out)[0]
        assert line.startswith(f"wrote {out}: 2 frames of 3 images, ")
        assert frames_of(out) == 2

    @pytest.mark.parametrize("what", ["denoising", "grid"])
    def test_animate_png_ends_with_the_samples(self, run, sampled, what):
        drawn = ("-m", "models/plain", "-n", 3, "--steps", 4)
        line = run("animate", "--what", what, *drawn, "--tile", 8, "-o", "way.png")[0]
        assert line.startswith("wrote way.png: 3 images, ")
        width, height = size_of("way.png")
        side = (width - 2 * MARGIN) // 4 - GAP
        assert side % 8 == 0
        for k, image in enumerate(sampled(*drawn)):
            # The last of the four columns is what was drawn.
            last = tile("way.png", k, 3, side, top=height - MARGIN - 3 * (side + GAP))
            assert np.array_equal(last, np.kron(image, np.ones((side // 8, side // 8), np.uint8)))

    def test_animate_without_guidance_has_no_labels(self, run, monkeypatch):
        labels, real = [], animations.AnimationOptions
        monkeypatch.setattr(animations, "AnimationOptions", lambda *given: (labels.append(given[1]), real(*given))[1])
        run("animate", "-n", 1, "--steps", 2, "--guidance", 0)
        run("animate", "-n", 1, "--steps", 2, "--label", 4)
        assert (labels[0], labels[1].tolist()) == (None, [4])

    def test_animate_has_at_most_one_frame_per_step_and_holds_the_last(self, run):
        run("animate", "-n", 2, "--steps", 4, "--frames", 30, "--fps", 10, "--hold", 3, "-o", "WHAT/WHAT.gif")
        with Image.open("WHAT/WHAT.gif") as film:
            assert [(film.seek(k), film.info["duration"])[1] for k in range(film.n_frames)] == [100, 100, 100, 3000]


class TestInterpolate:
    def test_interpolate_ends_at_both_images(self, run, real_images):
        run("interpolate", "test:3", "test:8", "-n", 5, "--tile", 8)
        first, middle, last = (tile("out/interpolate.png", 0, column) for column in (0, 2, 4))
        assert np.array_equal(first, real_images[3])
        assert np.array_equal(last, real_images[8])
        assert not np.array_equal(middle, real_images[8])

    def test_interpolate_film_runs_forward_and_back(self, run):
        for path in (Path("a.gif"), Path("a.mp4")):
            run("interpolate", "-n", 6, "-o", path)
            assert frames_of(path) == 10

    def test_interpolate_conditions_each_end(self, run):
        for line, given in {
            "from seed:2 (5) to seed:7 (0) by": ("--label", "5", "--label", "0"),
            "from seed:2 (5) to seed:7 (5) by": ("--label", "5"),
            "from seed:2 to seed:7 by": ("--guidance", 0),
            "from seed:2 (a five) to seed:7 (the two) by": ("-m", "models/text", "--text", "a five", "--text", "the two"),
        }.items():
            assert line in run("interpolate", "-n", 2, *given)[0]


class TestInpaint:
    @pytest.mark.parametrize("model", ["ddpm", "mask"])
    def test_inpaint_keeps_known_pixels(self, run, real_images, model):
        line = run("inpaint", "test:5", "--mask", "left", "-n", 4, "--columns", 2, "--tile", 8, "-m", f"models/{model}")[0]
        rows = [[tile("out/inpaint.png", row, column, **BELOW_CAPTIONS) for column in range(4)] for row in (0, 1)]
        image, masked = rows[0][:2]
        assert np.array_equal(image, real_images[5])
        assert np.ptp(masked[:, :4]) == 0
        fills = [*rows[0][2:], *rows[1][2:]]
        assert all(np.array_equal(shown[:, 4:], image[:, 4:]) for shown in (masked, *fills))
        assert len({fill.tobytes() for fill in fills}) == 4
        assert (rows[1][0] == 255).all(), "the image is in the first row alone"
        # RePaint, but for a model whose input includes the known pixels.
        assert f", {5 if model == 'mask' else 5 + 9 * 4} network evaluations each" in line

    def test_inpaint_reads_a_mask_file(self, run, real_images):
        painted = np.zeros((80, 80), np.uint8)
        painted[:40] = 255
        Image.fromarray(painted).save("mask.png")
        run("inpaint", "--mask", "mask.png", "-n", 1, "--tile", 8)
        fill = tile("out/inpaint.png", 0, 2, **BELOW_CAPTIONS)
        assert np.array_equal(fill[4:], real_images[0][4:])
        assert not np.array_equal(fill[:4], real_images[0][:4])

    def test_inpaint_jumps_fit_short_grids_and_cost_evaluations(self, run):
        for sampler, steps in (("ddpm", 1), ("heun", 2), ("dpmpp_2m", 5)):
            run("inpaint", "seed:3", "--sampler", sampler, "--steps", steps, "-n", 2)
        assert ", 20 network evaluations each" in run("inpaint", "--steps", 8, "--jump", 4, "--resamples", 4, "-n", 1)[0]

    def test_inpaint_and_edit_name_the_class_unless_guidance_is_0(self, run):
        assert ": test:5 (3), " in run("inpaint", "test:5", "--label", "3", "-n", 1)[0]
        assert ": test:5, " in run("inpaint", "test:5", "--guidance", 0, "-n", 1)[0]
        assert "test:4 (9), 1 variants" in run("edit", "test:4", "--label", "9", "-n", 1, "--strength", 0.5)[0]
        assert "test:4, 1 variants" in run("edit", "test:4", "--guidance", 0, "-n", 1, "--strength", 0.5)[0]


class TestEdit:
    @pytest.mark.parametrize("method", EDITS)
    def test_edit_strength_0_returns_the_image(self, run, real_images, method):
        run("edit", "test:9", "--strength", 0, "--strength", 0.7, "--method", method, "-n", 3, "--columns", 2, "--tile", 8)
        at = {"left": left_of("out/edit.png", 3), **BELOW_CAPTIONS}
        places = [(0, 0), *((row, column) for row in range(4) for column in (1, 2))]
        same = [np.array_equal(tile("out/edit.png", *place, **at), real_images[9]) for place in places]
        assert same == [True] * 4 + [False] * 5

    @pytest.mark.parametrize("more", [("--sampler", "heun"), ("--guidance", 3), ("--spacing", "karras")])
    def test_edit_latent_starts_from_the_latent_of_a_sample(self, run, sampled, more):
        drawn = ("--steps", 4, *more)
        (image,) = sampled("--seed", 4, "-n", 1, "--label", "4", *drawn)
        line = run("edit", "seed:4", "-n", 1, "--method", "latent", "--strength", 0, "--strength", 0.5, "--tile", 8, *drawn)[0]
        assert f"seed:4 (4), 1 variants of each strength by {'Heun' if 'heun' in more else 'DDIM'}, " in line
        at = {"left": left_of("out/edit.png", 2), **BELOW_CAPTIONS}
        # The image itself, that of strength 0, and that of 0.5.
        same = [np.array_equal(tile("out/edit.png", *place, **at), image) for place in ((0, 0), (0, 1), (1, 1))]
        assert same == [True, True, False]

    def test_edit_sdedit_starts_from_the_ddim_sample(self, run, sampled):
        run("edit", "seed:4", "-n", 1, "--sampler", "heun", "--steps", 4, "--strength", 0, "--tile", 8)
        (image,) = sampled("--seed", 4, "-n", 1, "--label", "4")
        for column in (0, 1):
            assert np.array_equal(tile("out/edit.png", 0, column, left=left_of("out/edit.png", 2), **BELOW_CAPTIONS), image)


class TestReconstruct:
    def test_reconstruct_improves_with_steps(self, run):
        lines = run("reconstruct", "test:0", "seed:3", "--steps", 5, "--steps", 50, "--tile", 8)
        assert lines[0].split() == ["steps", "evaluations", "mean", "PSNR", "lowest"]
        rows = [line.replace("dB", "").split() for line in lines[1:3]]
        assert [row[:2] for row in rows] == [["5", "10"], ["50", "100"]]
        assert float(rows[1][2]) > float(rows[0][2]) > float(rows[0][3])

    def test_reconstruct_generates_a_sample_once(self, run, monkeypatch):
        generated, generate = [], tasks.vary_images
        monkeypatch.setattr(tasks, "vary_images", lambda *given: generated.append(given) or generate(*given))
        run("reconstruct", "seed:3", "--steps", 2, "--steps", 3)
        assert len(generated) == 1

    @pytest.mark.parametrize(("there", "shown"), [(3, 3), (500, 8)])
    def test_reconstruct_default_images_exist(self, run, monkeypatch, there, shown):
        meta, test = prepared.open_test()
        monkeypatch.setattr(prepared, "open_test", lambda: (meta, test._replace(images=test.images[:there])))
        assert run("reconstruct", "--steps", 2)[-1].startswith(f"wrote out/reconstruct.png: {shown} images, ")

    def test_reconstruct_mixes_files_and_test_images(self, run, real_images):
        Image.fromarray(real_images[7]).save("a.png")
        run("reconstruct", "a.png", "test:2", "a.png", "--steps", 50, "--tile", 8)
        left = left_of("out/reconstruct.png", 3)
        for column, number in enumerate((7, 2, 7)):
            assert np.array_equal(tile("out/reconstruct.png", 0, column, left=left, **BELOW_CAPTIONS), real_images[number])


class TestInfo:
    def test_info_prints_lines(self, run):
        lines = {key: value.strip() for key, value in (line.split(":", 1) for line in run("info"))}
        expected = {
            "data": "digits: 8x8, gray", "classes": "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "snapshots": "none",
            "checkpoints": "final", "conditioning": "class, with condition dropout", "schedule": "linear, T = 50",
            "training": "steps 20, batch size 8, seed 4",
        }  # fmt: skip
        assert expected.items() <= lines.items()
        assert "words" not in lines

    def test_info_prints_json(self, run):
        found = json.loads("\n".join(run("info", "--json", "-m", "models/plain")))
        assert found["shape"] == [8, 8, 1]
        assert found["conditioning"] == "none"
        assert found["parameters"] == sum(p.numel() for p in UNet(settings(conditioning="none"), (8, 8, 1), DIGITS).parameters())
        assert found["snapshots"] == 2
        assert TRACKED_SIGMA_REL[0] <= found["ema_widths"][1] <= 0.28
        assert "scores" not in found

    def test_info_lists_the_vocabulary_and_scores_of_the_own_model(self, run):
        assert "seven" in json.loads("\n".join(run("info", "--json", "-m", "models/text")))["words"]
        assert any(line.startswith("words: ") and "seven" in line for line in run("info", "-m", "models/text"))
        scores = {"sampler": "Heun", "classifier": {"fid": 0.5}, "accuracy": 0.975}
        model = {"checkpoint": "final", "sha256": sha256("models/ddpm/final.safetensors")}
        write_json("reports/evaluate/metrics.json", {"ddim": {**scores, "model": {**model, "sha256": "0" * 64}}})
        assert "the scores of Heun are of other weights" in run("info")[-1]
        write_json("reports/evaluate/metrics.json", {"ddim": {**scores, "model": model}})
        assert run("info")[-1] == "scores of Heun: FID 0.500, accuracy 97.5%"
        assert json.loads("\n".join(run("info", "--json")))["scores"] == {"Heun": {"fid": 0.5, "accuracy": 0.975}}
        assert not any("scores" in line for line in run("info", "-m", "models/plain"))


LINES = """
import inspect, re, sys, typing
from ddpm.cli.main import COMMANDS, main

for command in COMMANDS:
    name, parameters = command.__name__, inspect.signature(command).parameters
    assert main([name, "--help"]) == 0
    for key, parameter in parameters.items():
        kind, about = typing.get_args(parameter.annotation)
        wrong = {"out": ["-", "/dev/stdout", "/dev/null", "."], "checkpoint": ["0.5", "x", ""]}.get(key, [])
        if re.search(r"int|float", str(kind)):
            assert None not in (about.min, about.max), (name, key)
            wrong = [about.min - 1, about.max + 1, "x", 10**400]
        elif about.callback and not wrong:
            wrong = ["x"]
        option = about.param_decls[0] if about.param_decls else "--" + key.replace("_", "-")
        for value in wrong:
            assert main([name, option, str(value)]) == 2, (name, key, value)
    assert main([name, "--nonsense"]) == 2
    if "model" in parameters:
        assert main([name, "--model", "nowhere"]) == 1, name
assert main(["sample", "--out", "a.jpg"]) == main(["reconstruct", "seed:1", "nowhere.png"]) == 2
assert main([]) == main(["recipe"]) == 0
slow = {"torch", "torchvision", "sklearn", "matplotlib", "pandas", "gradio", "av"} & set(sys.modules)
sys.exit(f"imported: {slow}" if slow else 0)
"""


def test_help_and_mistakes_of_options_import_no_torch():
    """Of every option of every command: every number has bounds, and what is wrong by itself is an error of usage."""
    ended = subprocess.run([sys.executable, "-c", LINES], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    assert all(line.startswith("error: ") for line in said)
    assert len(said) > 200


def name_of(command):
    return command.__name__


def test_option_help_is_a_sentence():
    for name, command in typer.main.get_command(app).commands.items():
        for option in (param for param in command.params if param.name != "help"):
            assert option.help.rstrip()[-1] in ".)", (name, option.name)
            assert not option.required


def test_help_names_the_keys_of_registries():
    """Those of the source text are those of the registry itself."""
    source = "".join(path.read_text() for path in (ROOT / "ddpm/cli").glob("*.py"))
    found = re.findall(r'keys_of\(\s*"(.*?)\.py", "(\w+)"', source)
    assert len(found) == len(re.findall(r"keys_of\(", source)) > 10
    for path, registry in found:
        module = importlib.import_module(f"ddpm.{path.replace('/', '.')}")
        assert keys_of(f"{path}.py", registry) == tuple(getattr(module, registry))


def test_help_shows_example_and_docstring(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([]) == main(["-h"]) == 0
    both = capsys.readouterr().out
    assert all(both.count(f" {name_of(command)} ") >= 2 for command in COMMANDS)
    for command, example in COMMANDS.items():
        assert main([name_of(command), "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert f"Example: python -m ddpm {example}" in text
        assert example.startswith(name_of(command))
        assert command.__doc__.splitlines()[0] in text


@pytest.mark.parametrize("command", [c for c in COMMANDS if name_of(c) in DRAWING], ids=name_of)
def test_examples_run(command, run, monkeypatch):
    """But for the films of a training, of which the model here has none."""
    given = COMMANDS[command].split()
    if "training" in given:
        given += ["--model", "models/plain"]
    if "200" in given:
        given[given.index("200")] = str(T)
    assert run(*given)[-1].startswith("wrote ")


@pytest.mark.slow
def test_closed_pipe_ends_quietly(project):
    """As `python -m ddpm info | head -1`, whose end of the pipe is closed."""
    read, write = os.pipe()
    os.close(read)
    ended = run_module("info", stdout=write)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


def run_module(*arguments, **options):
    command, env = [sys.executable, "-m", "ddpm", *arguments], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **options)


# A line of each kind of mistake, and the beginning of its error. The ranges of numbers are typer's.
MISTAKES = [
    ("smple", "No such command 'smple'. Did you mean 'sample'?"),
    ("sample --number", "Option '--number' requires an argument"),
    ("sample --tile 512 --number 10000 -m models/plain", "--tile: "),
    ("sample --steps 51", "--steps: "),
    ("sample --sampler ddmi", "--sampler: 'ddmi' is unknown; did you mean 'ddpm'?"),
    ("sample --eta nan", "--eta: "),
    ("edit --strength 0.5 --strength nan", "--strength: "),
    ("sample --eta 0.5 --sampler heun", "--eta: "),
    ("sample --guidance 2 -m models/plain", "--guidance: "),
    ("sample --guidance 0 --label 3", "--guidance: "),
    ("sample --text seven --label 7 -m models/text", "--text: "),
    ("sample --checkpoint best", "models/ddpm/best.safetensors: not found"),
    ("sample --model nowhere", "nowhere: no such folder; there is models/ddpm, "),
    ("sample --model google/ddpm-cifar10-32", "google/ddpm-cifar10-32: no such folder; a model of the Hugging Face Hub"),
    ("sample --model data/prepared", "data/prepared: holds no config.json"),
    ("sample --model models/plain/snapshots/step_0000010.safetensors --checkpoint best", "--checkpoint: best is another one"),
    ("sample --model models/ddpm/final.safetensors --checkpoint best", "--checkpoint: best is another one"),
    ("sample --model data/prepared/meta.json", "data/prepared/meta.json: is no file of a model"),
    ("sample --label 11", "--label: '11' is no class of this model; give one of 0, 1, 2"),
    ("inpaint --label 3,7", "--label: 2 classes for one image"),
    ("sample -o a.jpg", "--out: 'a.jpg' ends in '.jpg'; valid: .png or .npz or none, for a folder"),
    ("sample -o taken/x.png", "--out: taken/x.png: "),
    ("compare --sampler heun --eta 0.5", "--eta: "),
    ("animate --what training", "models/ddpm: "),
    ("animate --what training --checkpoint latest -m models/plain", "--checkpoint: "),
    ("animate --what training --out b.png", "--out: 'b.png' ends in '.png'; valid: .gif or .mp4"),
    ("animate --frames 1000 --number 100 --tile 512", "--tile: "),
    ("interpolate test:0 test:1 --sampler heun", "--sampler: "),
    ("interpolate --label 1 --label 2 --label 3", "--label: "),
    ("inpaint --mask lef", "--mask: "),
    ("inpaint --jump 5 --steps 5", "--jump: "),
    ("edit --method latent --eta 0.5", "--sampler: "),
    ("recipe fifo.yaml", "fifo.yaml: is a FIFO"),
    ("results --readme fifo.yaml", "fifo.yaml: is a FIFO"),
    ("sample --model fifo.yaml", "fifo.yaml: is neither a folder nor a file"),
    ("inpaint fifo.yaml", "[IMAGE]: fifo.yaml: no such picture"),
    ("inpaint --mask fifo.yaml", "--mask: "),
    ("import fifo.yaml", "fifo.yaml: holds no unet/config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "beginning"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_ends_in_one_line(error, line, beginning):
    Path("a.png").mkdir()
    Path("taken").write_text("a file")
    os.mkfifo("fifo.yaml")
    assert error(*(line.split() or [""])).startswith(beginning)


@pytest.mark.parametrize(("tile", "side"), [(8, 8), (20, 24)])
def test_check_size_bounds_the_pixels(tile, side):
    most = output.MAX_PIXELS // (side + GAP) ** 2
    output.check_size((8, 8, 1), tile, most)
    with pytest.raises(InputError, match=rf"^tile: {most + 1:,} images of {side} pixels are too large"):
        output.check_size((8, 8, 1), tile, most + 1)


@pytest.mark.parametrize("out", ["a\0b.png", "x" * 300 + ".png", "/proc/nowhere/a.png", "/dev/null/a.png", "", ".", ".."])
def test_out_refuses_impossible_paths(error, out):
    error("sample", "-n", 1, "-o", out)


@pytest.mark.parametrize(("name", "shown"), [("\udce9.png", "\\udce9.png"), ("a\x1b[2J\u202eb.png", "a\\x1b[2J\\u202eb.png")])
def test_out_is_shown_as_text(run, name, shown):
    for command in DRAWING:
        more = ("--steps", 2) if command == "reconstruct" else ("-n", 2)
        assert run(command, *more, "-o", name)[-1].startswith(f"wrote {shown}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_refuses_a_read_only_folder(error, project):
    (project / "shut").mkdir(mode=0o500)
    assert error("sample", "-o", "shut/a.png").startswith("--out: no permission to write to ")


def test_device_must_be_available(error, monkeypatch):
    monkeypatch.setitem(DEVICES, "mps", lambda: False)
    assert error("sample", "--device", "mps").startswith("--device: ")


class TestBroken:
    """A model folder that something happened to."""

    @pytest.fixture
    def broken(self, project, built, monkeypatch):
        folder = project / "broken"
        folder.mkdir()
        for name in ("config.json", "final.safetensors"):
            (folder / name).write_bytes((built / "models/ddpm" / name).read_bytes())
        return folder

    @pytest.mark.parametrize("command", ["sample", "reconstruct", "info"])
    def test_truncated_weights_are_refused(self, error, broken, command):
        path = broken / "final.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert error(command, "-m", "broken").startswith("broken/final.safetensors: damaged")

    @pytest.mark.parametrize("text", ["", "[]", '{"format": 4}', '{"a":' * 200_000])
    def test_invalid_config_is_refused(self, error, broken, text):
        (broken / "config.json").write_text(text)
        message = error("info", "-m", "broken")
        assert message.startswith("broken/config.json: ")
        assert message.endswith("copy or import the model again")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ({"accuracy": 0.9, "sha256": ""}, "holds a classifier, no diffusion model; there is models/ddpm"),
            ({"_class_name": "UNet2DModel"}, "was saved by diffusers; run `python -m ddpm import broken` first"),
            ({}, "holds something else, no diffusion model"),
        ],
    )
    def test_folder_of_another_kind_gets_its_remedy(self, error, broken, content, reason):
        write_json(broken / "config.json", content)
        assert error("sample", "-m", "broken").startswith(f"broken: {reason}")

    @pytest.mark.parametrize("value", [..., None, 5, {"steps": "20"}, {"batch_size": []}, {"condition_dropout": "0.1"}])
    def test_training_in_config_is_validated(self, error, broken, value):
        config = json.loads((broken / "config.json").read_text())
        write_json(broken / "config.json", {k: v for k, v in {**config, "training": value}.items() if v is not ...})
        for command in ("info", "sample"):
            assert error(command, "-m", "broken").startswith("broken/config.json: invalid model config (training")

    @pytest.mark.parametrize("name", ["config.json", "final.safetensors", "snapshots/step_0000010.safetensors"])
    def test_fifo_is_refused_by_name(self, error, broken, built, name):
        shutil.copytree(built / "models/plain", broken, dirs_exist_ok=True)
        (broken / name).unlink()
        os.mkfifo(broken / name)
        assert error("sample", "-m", "broken", "--checkpoint", 0.1 if "step" in name else "final").startswith(
            f"broken/{name}: is a FIFO, not a file"
        )

    def test_impossible_snapshots_are_left_out_or_refused(self, run, error, broken, built):
        shutil.copytree(built / "models/plain", broken, dirs_exist_ok=True)
        for step in ("0000000", "5", "9" * 200, "١" * 7):
            (broken / f"snapshots/step_{step}.safetensors").write_bytes(b"")
        assert json.loads("\n".join(run("info", "--json", "-m", "broken")))["snapshots"] == 2
        (broken / "snapshots/step_0000021.safetensors").write_bytes(b"")
        assert "step_0000021.safetensors: is of no step of this training" in error("sample", "-m", "broken", "--checkpoint", 0.1)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
    def test_weights_that_are_no_floats_are_refused(self, error, run, broken, dtype):
        weights = read_weights(broken / "final.safetensors", "")
        save_weights(broken / "final.safetensors", {name: value.to(dtype) for name, value in weights.items()})
        assert f"is {dtype}, not torch.float32" in error("sample", "-m", "broken")
        save_weights(broken / "final.safetensors", {name: value.to(torch.bfloat16) for name, value in weights.items()})
        run("sample", "-m", "broken", "-n", 1)

    def test_escape_sequences_in_names_are_shown_as_text(self, run, error, broken):
        config = json.loads((broken / "config.json").read_text())
        config["data"]["class_names"][3] = "\x1b[2J\rthree\u202e"
        write_json(broken / "config.json", config)
        said = ["\n".join(run("info", "-m", "broken")), error("sample", "-m", "broken", "--label", "x")]
        said += run("edit", "seed:3", "-n", 1, "--strength", 0.5, "-m", "broken")
        assert all("\\x1b[2J\\rthree\\u202e" in text and "\x1b" not in text for text in said)

    def test_class_called_none_comes_before_no_class(self, run, broken):
        config = json.loads((broken / "config.json").read_text())
        config["data"]["class_names"][3] = "none"
        write_json(broken / "config.json", config)
        run("sample", "-m", "broken", "-n", 2, "--label", "none", "-o", "a.npz")
        assert read_npz("a.npz", "x")["arr_1"].tolist() == [3, 3]
        Image.new("L", (8, 8)).save("a.png")
        assert "wrote out/edit.png: a.png, 1 variants" in run("edit", "a.png", "-m", "broken", "-n", 1, "--strength", 0.5)[-1]

    def test_snapshot_is_a_checkpoint(self, run, sampled, broken, built):
        shutil.copytree(built / "models/plain", broken, dirs_exist_ok=True)
        weights = read_weights(broken / "final.safetensors", "")
        changed = {name: 1.5 * value for name, value in weights.items()}
        save_snapshot(broken, 20, {TRACKED_SIGMA_REL[0]: changed, TRACKED_SIGMA_REL[1]: weights})
        of_snapshot = sampled("-n", 1, "-m", "broken/snapshots/step_0000020.safetensors")
        save_weights(broken / "final.safetensors", changed)
        assert np.array_equal(sampled("-n", 1, "-m", "broken"), of_snapshot)
        assert run("info", "-m", "broken/final.safetensors") == run("info", "-m", "broken")

    def test_weights_of_another_network_are_refused(self, error, broken, built):
        (broken / "final.safetensors").write_bytes((built / "models/text/final.safetensors").read_bytes())
        assert "does not fit the config.json in its folder" in error("sample", "-m", "broken")

    def test_non_finite_images_are_refused(self, error, broken):
        network = awake(UNet(settings(conditioning="class"), (8, 8, 1), DIGITS))
        with torch.no_grad():
            network.conv_out.bias.fill_(float("nan"))
        save_weights(broken / "final.safetensors", network.state_dict())
        assert error("sample", "-m", "broken").startswith("--thresholding: without it the images are not finite")

    def test_missing_data_is_refused(self, error, project):
        (project / "data").unlink()
        assert error("inpaint").startswith("data/prepared/meta.json: not found; make it with `dvc repro prepare_data`")


def test_interruption_ends_with_130(project, capsys, monkeypatch):
    def stop(*_):
        x = torch.zeros(1, 1, 8, 8)
        yield progress.SamplingProgress(1, 2, 0, 1.0, x, x, False)
        raise KeyboardInterrupt

    monkeypatch.setattr(api_model, "generate", stop)
    assert main(["sample", *MACHINE]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert not Path("out").exists()


def test_out_of_memory_is_one_line_and_a_defect_keeps_its_traceback(error, monkeypatch):
    for failure in (MemoryError("too much"), torch.OutOfMemoryError("too much"), RuntimeError("a defect")):
        monkeypatch.setattr(api_model, "generate", lambda *_, failure=failure: (_ for _ in ()).throw(failure))
        if not str(failure).startswith("a defect"):
            assert error("sample", *MACHINE).startswith("out of memory; generate fewer images at once")
    with pytest.raises(RuntimeError, match="a defect"):
        main(["sample", *MACHINE])


def test_terminal_without_a_character_gets_its_escape(run, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["sample", "-n", "1", "-o", "schön.png", *MACHINE]) == 0
    assert stream.buffer.getvalue().startswith(b"wrote sch\\xf6n.png: ")


class TestDemo:
    def test_demo_passes_its_options_to_launch(self, project, monkeypatch):
        calls = []
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setitem(sys.modules, "ddpm.demo.app", SimpleNamespace(launch=lambda *given: calls.append(given)))
        assert main(["demo", "-m", "models/plain", "--checkpoint", "1e-1", "--port", "81", "--browser", *MACHINE]) == 0
        assert main(["demo", "--host", "0.0.0.0", "--root-path", "/page", "--share", *MACHINE]) == 0
        assert [(served.folder, *more) for served, *more in calls] == [
            (Path("models/plain"), "models/plain, checkpoint 0.1", "127.0.0.1", 81, True, None, False),
            (Path("models/ddpm"), "models/ddpm, checkpoint final", "0.0.0.0", 7860, False, "/page", True),
        ]

    def test_demo_without_gradio_is_refused(self, error, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert error("demo").endswith("is not installed; run `pip install 'gradio>=6.31,<7'`")


VALUES = [
    "0", "1", "3", "7", "-1", "0.5", "1e30", "nan", "inf", "9" * 400, "", " ", "x", "a\nb", "a\0b", "ä", "\udcff",
    "%s", "[red]", "-", "--", "none", "ddim", "heun", "sdedit", "latent", "grid", "trailing", "clip", "dynamic", "left",
    "seven", "test:1", "seed:3", "test:x", "a.png", "a.gif", "b.npz", "folder", "data", "/dev/null", "models",
    "models/text", "models/mask",
]  # fmt: skip


def some_line(rng):
    commands = typer.main.get_command(app).commands
    name = rng.choice([*DRAWING, *DRAWING, "info", "sample", "x"])
    line = [name, *(rng.choice(VALUES) for _ in range(rng.choice([0, 0, 0, 1, 2])))]
    known = [p.opts[-1] for p in commands[name].params if p.name != "help"] if name in commands else ["--number"]
    for _ in range(rng.randint(0, 4)):
        option = rng.choice([*known, "--nonsense"])
        line += [option, rng.choice(VALUES)] if rng.random() < 0.9 else [option]
    # Cheap, where nothing else was said.
    return [*line[:1], *(["-n", "2", "--steps", "3"] if name in DRAWING and name != "reconstruct" else []), *line[1:]]


@pytest.mark.parametrize("seed", range(15))
def test_random_lines_end_in_at_most_one_error_line(project, capsys, seed):
    line = some_line(random.Random(seed))
    status = main(line)
    said = [text for text in capsys.readouterr().err.splitlines() if not PROGRESS.match(text)]
    assert status in (0, 1, 2)
    assert len(said) == min(status, 1), said
    assert all(text.startswith("error: ") for text in said)
    partial = [path for path in Path().rglob("*") if ".partial" in path.name]
    assert partial == []


@pytest.mark.parametrize(
    ("limit", "variable", "threads", "expected"),
    [(10**8, None, None, 1), (1, None, None, 3), (10**8, "2", None, 2), (10**8, None, 5, 5)],
)
def test_open_model_uses_one_thread_for_a_small_network(project, monkeypatch, limit, variable, threads, expected):
    """An explicit number is kept."""
    counts = []
    monkeypatch.setattr(device, "SMALL_TO_SAMPLE", limit)
    monkeypatch.setattr(device, "usable_cpus", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    model.open_model(device="cpu", threads=threads)
    assert counts[-1] == expected
