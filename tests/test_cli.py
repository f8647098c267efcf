"""The commands of `python -m ddpm`: files, output, and one-line errors."""

import importlib.util
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import typer
from conftest import ROOT, diffusion
from PIL import Image, ImageFont
from test_unet import awake, settings

from ddpm.cli import animations, options, output
from ddpm.cli.info import checkpoint_of
from ddpm.cli.main import COMMANDS, app, main
from ddpm.core import device
from ddpm.core.device import DEVICES
from ddpm.core.files import InputError, read_npz, write_json
from ddpm.core.params import read_yaml
from ddpm.data import prepared
from ddpm.data.prepared import open_prepared
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DIGITS
from ddpm.datasets.settings import PrepareData
from ddpm.editing.inpaint import MASKS
from ddpm.editing.tasks import EDITS
from ddpm.networks.checkpoints import CHECKPOINTS, make_config
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, save_snapshot
from ddpm.networks.unet import UNet
from ddpm.plots import image_grid
from ddpm.plots.image_grid import FONT_SIZE, GAP, MARGIN, UPSCALING
from ddpm.sampling import generate, plan, progress

# As in conftest.py, of work of any name.
PROGRESS = re.compile(r"^[^:]+: [\d,]+/[\d,]+ \w+ \(\d+%\), ")
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
        given = PrepareData(**read_yaml(ROOT / "params.yaml")["prepare_data"])
        prepare("digits", given)
        data = open_prepared("digits", given.as_written())
        for name, conditioning in MODELS.items():
            torch.manual_seed(0)
            network = awake(UNet(settings(conditioning=conditioning), data.shape, data.class_names))
            training = {"steps": 20, "batch_size": 8, "condition_dropout": 0.1}
            config = make_config(settings(conditioning=conditioning), "linear", "v", diffusion(T), data.identity(), training, 4)
            write_json(f"models/{name}/config.json", config)
            save(Path(f"models/{name}/final.safetensors"), network)
        for step in (10, 20):
            weights = {key: value.clone() for key, value in network.state_dict().items()}
            save_snapshot(Path("models/plain"), step, {TRACKED_SIGMA_REL[0]: weights, TRACKED_SIGMA_REL[1]: network.state_dict()})
    return folder


def save(path, network):
    from ddpm.core.weights import save_weights

    save_weights(path, network.state_dict())


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
def error(project, capsys):
    """error("sample", ...): the one line that refuses it."""

    def run(*arguments) -> str:
        capsys.readouterr()
        before = listed(project)
        status = main([str(argument) for argument in arguments])
        printed, said = capsys.readouterr()
        assert listed(project) == before
        lines = [line for line in said.splitlines() if not PROGRESS.match(line)]
        assert (status, len(lines)) == (1, 1), printed + said
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


def listed(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


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


# What is written


WITHOUT_OPTIONS = {
    "sample": "out/sample.png",
    "compare": "out/compare.png",
    "animate": "out/denoising.gif",
    "interpolate": "out/interpolate.png",
    "inpaint": "out/inpaint.png",
    "edit": "out/edit.png",
    "reconstruct": "out/reconstruct.png",
}


# Every command with the class-conditional model, and each other model with a command that uses its conditioning.
COMMAND_AND_MODEL = [
    *((command, "ddpm") for command in WITHOUT_OPTIONS),
    ("sample", "text"),
    ("edit", "mask"),
    ("compare", "plain"),
]


@pytest.mark.parametrize(("command", "model"), COMMAND_AND_MODEL)
def test_command_without_options_writes_its_default_file(run, command, model):
    more = ("--model", f"models/{model}", "--number", 2) if command != "reconstruct" else ("--model", f"models/{model}")
    last = run(command, *more)[-1]
    assert last.startswith(f"wrote {WITHOUT_OPTIONS[command]}: ")
    with Image.open(WITHOUT_OPTIONS[command]) as picture:
        picture.load()
        assert min(picture.size) > 40
    assert [path.name for path in Path("out").iterdir()] == [Path(WITHOUT_OPTIONS[command]).name]


class TestSample:
    def test_sample_npz_has_the_layout_of_the_stages(self, run):
        line = run("sample", "-n", 12, "--seed", 3, "--steps", 4, "--out", "new/a.npz")[0]
        assert line.startswith("wrote new/a.npz: 12 images by DDIM, 4 network evaluations each, ")
        arrays = read_npz("new/a.npz", "x")
        assert set(arrays) == {"arr_0", "arr_1", "sampler"}
        assert arrays["arr_0"].shape == (12, 8, 8, 1)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [*range(10), 0, 1]
        assert arrays["sampler"].tolist() == ["DDIM"]

    def test_sample_depends_on_seed_not_on_batch_size(self, run):
        for name, *more in (("a", "--seed", 5), ("b", "--seed", 5, "--batch", 2), ("c", "--seed", 6)):
            run("sample", "-n", 5, "--sampler", "ddpm", "--steps", 5, "-o", f"{name}.npz", *more)
        a, b, c = (read_npz(f"{name}.npz", "x")["arr_0"].astype(int) for name in "abc")
        assert abs(a - b).max() <= 1
        assert abs(a - c).max() > 20

    def test_sample_repeated_labels_take_turns(self, run):
        run("sample", "-n", 3, "--label", "7", "--label", "2", "-o", "a.npz")
        assert read_npz("a.npz", "x")["arr_1"].tolist() == [7, 2, 7]

    def test_sample_npz_holds_captions_of_texts(self, run):
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

    def test_sample_folder_has_labels_csv_with_conditioning_only(self, run):
        run("sample", "-n", 2, "-o", "classes")
        run("sample", "-n", 2, "--guidance", 0, "-o", "unconditional")
        assert Path("classes/labels.csv").is_file()
        assert not Path("unconditional/labels.csv").exists()

    def test_sample_grid_has_rows_for_each_class(self, run):
        run("sample", "-n", 7, "--label", "7", "--label", "2", "--tile", 8, "-o", "a.png")
        run("sample", "-n", 7, "--label", "7", "--label", "2", "-o", "a.npz")
        images = read_npz("a.npz", "x")["arr_0"][..., 0]
        left = left_of("a.png", 4)
        for k, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]):
            assert np.array_equal(tile("a.png", row, column, left=left), images[k])

    def test_sample_folder_holds_png_files(self, run, error):
        run("sample", "-n", 3, "--label", "4", "-o", "pictures")
        run("sample", "-n", 3, "--label", "4", "-o", "a.npz")
        images = read_npz("a.npz", "x")["arr_0"]
        for k in range(3):
            with Image.open(f"pictures/{k:05d}.png") as picture:
                assert np.array_equal(np.asarray(picture), images[k, ..., 0])
        assert Path("pictures/labels.csv").read_text() == 'file,label\n00000.png,"4"\n00001.png,"4"\n00002.png,"4"\n'
        assert "pictures is an existing folder" in error("sample", "-o", "pictures")

    def test_sample_folder_that_fails_leaves_nothing(self, run, error, monkeypatch):
        monkeypatch.setattr(output, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
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
        lines = run("compare", "--sampler", "heun", "--sampler", "ddim", "--steps", 3, "--steps", 5, "-n", 2, "--eta", 0.5)
        assert [line.rpartition(" network")[0].split() for line in lines[:-1]] == [
            ["Heun,", "3", "steps", "5"],
            ["Heun,", "5", "steps", "9"],
            ["DDIM,", "3", "steps", "3"],
            ["DDIM,", "5", "steps", "5"],
        ]

    def test_compare_rows_equal_samples(self, run):
        run("compare", "--sampler", "ddim", "--sampler", "ddpm", "--steps", 5, "-n", 3, "--label", "1", "--tile", 8)
        left = left_of("out/compare.png", 3)
        for row, sampler in enumerate(("ddim", "ddpm")):
            run("sample", "--sampler", sampler, "--steps", 5, "-n", 3, "--label", "1", "-o", "a.npz")
            for k, image in enumerate(read_npz("a.npz", "x")["arr_0"][..., 0]):
                found = tile("out/compare.png", row, k, left=left, top=MARGIN + 14 + MARGIN)
                assert np.array_equal(found, image)

    def test_compare_passes_each_sampler_its_own_options(self, run):
        style = {"--eta": 0.5, "--spacing": "log_snr", "--variance": "large"}
        given = [word for option in style.items() for word in option]
        drawn = ("--steps", 5, "-n", 2, "--label", "1")
        uses = {"ddim": ["--eta", "--spacing"], "heun": ["--spacing"], "ddpm": ["--spacing", "--variance"]}
        run("compare", *(word for name in uses for word in ("--sampler", name)), *drawn, *given, "--tile", 8)
        left = left_of("out/compare.png", 2)
        for row, (sampler, own) in enumerate(uses.items()):
            run("sample", "--sampler", sampler, *drawn, *(word for name in own for word in (name, style[name])), "-o", "a.npz")
            for k, image in enumerate(read_npz("a.npz", "x")["arr_0"][..., 0]):
                assert np.array_equal(tile("out/compare.png", row, k, left=left, top=MARGIN + 14 + MARGIN), image)

    def test_compare_without_guidance_has_no_captions(self, run):
        run("compare", "--sampler", "ddim", "--steps", 2, "-n", 3, "--guidance", 0, "--tile", 8)
        assert size_of("out/compare.png")[1] == 2 * MARGIN + 8 + GAP

    def test_compare_captions_do_not_overlap(self, run):
        drawn = ("--sampler", "ddim", "--steps", 1, "-n", 4, "--tile", 48)
        run("compare", "-m", "models/text", "--text", "a handwritten seven", *drawn)
        with Image.open("out/compare.png") as opened:
            band = np.asarray(opened.convert("L"))[: MARGIN + 14 + MARGIN]
        left = left_of("out/compare.png", 4, 48)
        for k in range(4):
            x = left + k * (48 + GAP)
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

    def test_fitting_keeps_short_captions(self):
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

    def test_animate_has_at_most_one_frame_per_step(self, run):
        run("animate", "-n", 2, "--steps", 4, "--frames", 30)
        assert frames_of(Path("out/denoising.gif")) == 4

    @pytest.mark.parametrize("what", ["denoising", "grid"])
    def test_animate_png_ends_with_the_samples(self, run, what):
        drawn = ("-m", "models/plain", "-n", 3, "--steps", 4)
        line = run("animate", "--what", what, *drawn, "--tile", 8, "-o", "way.png")[0]
        assert line.startswith("wrote way.png: 3 images, ")
        run("sample", *drawn, "-o", "a.npz")
        side = (size_of("way.png")[0] - 2 * MARGIN) // 4 - GAP
        assert side % 8 == 0
        top = size_of("way.png")[1] - MARGIN - 3 * (side + GAP)
        for k, image in enumerate(read_npz("a.npz", "x")["arr_0"][..., 0]):
            # The last of the four columns is what was drawn.
            assert np.array_equal(tile("way.png", k, 3, side, top=top), np.kron(image, np.ones((side // 8, side // 8), np.uint8)))

    def test_animate_keeps_the_given_name(self, run):
        run("animate", "-n", 1, "--steps", 2, "-o", "WHAT/WHAT.gif")
        assert Path("WHAT/WHAT.gif").is_file()

    def test_animate_without_guidance_has_no_labels(self, run, monkeypatch):
        run_labels = []
        real = animations.AnimationOptions
        monkeypatch.setattr(
            animations,
            "AnimationOptions",
            lambda number, labels, *rest: (run_labels.append(labels), real(number, labels, *rest))[1],
        )
        run("animate", "-n", 1, "--steps", 2, "--guidance", 0)
        run("animate", "-n", 1, "--steps", 2, "--label", 4)
        assert run_labels[0] is None
        assert run_labels[1].tolist() == [4]

    def test_animate_hold_sets_the_last_duration(self, run):
        run("animate", "-n", 2, "--steps", 4, "--fps", 10, "--hold", 3)
        with Image.open("out/denoising.gif") as film:
            durations = [(film.seek(k), film.info["duration"])[1] for k in range(film.n_frames)]
        assert durations == [100, 100, 100, 3000]


class TestInterpolate:
    def test_interpolate_ends_at_both_images(self, run, built):
        run("interpolate", "test:3", "test:8", "-n", 5, "--tile", 8)
        images = np.load(built / "data/prepared/test_images.npy")[..., 0]
        assert np.array_equal(tile("out/interpolate.png", 0, 0), images[3])
        assert np.array_equal(tile("out/interpolate.png", 0, 4), images[8])
        assert not np.array_equal(tile("out/interpolate.png", 0, 2), images[8])

    @pytest.mark.parametrize("suffix", [".gif", ".mp4"])
    def test_interpolate_film_runs_forward_and_back(self, run, suffix):
        run("interpolate", "-n", 6, "-o", f"a{suffix}")
        assert frames_of(Path(f"a{suffix}")) == 10

    def test_interpolate_conditions_each_end(self, run):
        assert "from seed:2 (5) to seed:7 (0) by" in run("interpolate", "-n", 2, "--label", "5", "--label", "0")[0]
        assert "from seed:2 (5) to seed:7 (5) by" in run("interpolate", "-n", 2, "--label", "5")[0]
        assert "from seed:2 to seed:7 by" in run("interpolate", "-n", 2, "--guidance", 0)[0]
        more = ("-m", "models/text", "--text", "a five", "--text", "the two")
        assert "from seed:2 (a five) to seed:7 (the two) by" in run("interpolate", "-n", 2, *more)[0]


class TestInpaint:
    @pytest.mark.parametrize("model", ["ddpm", "mask"])
    def test_inpaint_keeps_known_pixels(self, run, built, model):
        line = run("inpaint", "test:5", "--mask", "left", "-n", 4, "--columns", 2, "--tile", 8, "-m", f"models/{model}")[0]
        image = np.load(built / "data/prepared/test_images.npy")[5, ..., 0]
        at = {"top": MARGIN + 14 + MARGIN}
        assert np.array_equal(tile("out/inpaint.png", 0, 0, **at), image)
        assert np.array_equal(tile("out/inpaint.png", 0, 1, **at)[:, 4:], image[:, 4:])
        assert np.ptp(tile("out/inpaint.png", 0, 1, **at)[:, :4]) == 0
        fills = [tile("out/inpaint.png", row, column, **at) for row in (0, 1) for column in (2, 3)]
        assert all(np.array_equal(fill[:, 4:], image[:, 4:]) for fill in fills)
        assert len({fill.tobytes() for fill in fills}) == 4
        # The image stands in the first row alone.
        assert (tile("out/inpaint.png", 1, 0, **at) == 255).all()
        # RePaint, but for a model that sees what is known.
        assert f", {5 if model == 'mask' else 5 + 9 * 4} network evaluations each" in line

    def test_inpaint_reads_a_mask_file(self, run, built):
        painted = np.zeros((80, 80), np.uint8)
        painted[:40] = 255
        Image.fromarray(painted).save("mask.png")
        run("inpaint", "--mask", "mask.png", "-n", 1, "--tile", 8)
        image = np.load(built / "data/prepared/test_images.npy")[0, ..., 0]
        fill = tile("out/inpaint.png", 0, 2, top=MARGIN + 14 + MARGIN)
        assert np.array_equal(fill[4:], image[4:])
        assert not np.array_equal(fill[:4], image[:4])

    @pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 1), ("heun", 2), ("dpmpp_2m", 5)])
    def test_inpaint_default_jump_fits_short_grids(self, run, sampler, steps):
        run("inpaint", "seed:3", "--sampler", sampler, "--steps", steps, "-n", 2)

    def test_inpaint_without_guidance_has_no_class(self, run):
        assert ": test:5 (3), " in run("inpaint", "test:5", "--label", "3", "-n", 1)[0]
        assert ": test:5, " in run("inpaint", "test:5", "--guidance", 0, "-n", 1)[0]

    def test_inpaint_counts_evaluations_of_jumps(self, run):
        assert ", 20 network evaluations each" in run("inpaint", "--steps", 8, "--jump", 4, "--resamples", 4, "-n", 1)[0]


class TestEdit:
    @pytest.mark.parametrize("method", EDITS)
    def test_edit_strength_0_returns_the_image(self, run, built, method):
        run("edit", "test:9", "--strength", 0, "--strength", 0.7, "--method", method, "-n", 3, "--columns", 2, "--tile", 8)
        image = np.load(built / "data/prepared/test_images.npy")[9, ..., 0]
        at = {"left": left_of("out/edit.png", 3), "top": MARGIN + 14 + MARGIN}
        same = [np.array_equal(tile("out/edit.png", row, column, **at), image) for row in range(4) for column in (1, 2)]
        assert same == [True, True, True, False, False, False, False, False]
        assert np.array_equal(tile("out/edit.png", 0, 0, **at), image)

    def test_edit_accepts_another_class(self, run):
        assert "test:4 (9), 1 variants" in run("edit", "test:4", "--label", "9", "-n", 1, "--strength", 0.5)[0]

    def test_edit_without_guidance_has_no_class(self, run):
        assert "test:4, 1 variants" in run("edit", "test:4", "--guidance", 0, "-n", 1, "--strength", 0.5)[0]

    @pytest.mark.parametrize("more", [("--sampler", "heun"), ("--guidance", 3), ("--spacing", "karras")])
    def test_edit_latent_starts_from_the_latent_of_a_sample(self, run, more):
        drawn = ("--steps", 4, *more)
        run("sample", "--seed", 4, "-n", 1, "--label", "4", *drawn, "-o", "a.npz")
        line = run("edit", "seed:4", "-n", 1, "--method", "latent", "--strength", 0, "--strength", 0.5, "--tile", 8, *drawn)[0]
        assert f"seed:4 (4), 1 variants of each strength by {'Heun' if 'heun' in more else 'DDIM'}, " in line
        image, at = read_npz("a.npz", "x")["arr_0"][0, ..., 0], {"left": left_of("out/edit.png", 2), "top": MARGIN + 14 + MARGIN}
        # The image itself, that of strength 0, and that of 0.5.
        same = [np.array_equal(tile("out/edit.png", row, column, **at), image) for row, column in ((0, 0), (0, 1), (1, 1))]
        assert same == [True, True, False]

    def test_edit_sdedit_starts_from_the_ddim_sample(self, run):
        run("edit", "seed:4", "-n", 1, "--sampler", "heun", "--steps", 4, "--strength", 0, "--tile", 8)
        run("sample", "--seed", 4, "-n", 1, "--label", "4", "-o", "a.npz")
        at = {"left": left_of("out/edit.png", 2), "top": MARGIN + 14 + MARGIN}
        for column in (0, 1):
            assert np.array_equal(tile("out/edit.png", 0, column, **at), read_npz("a.npz", "x")["arr_0"][0, ..., 0])


class TestReconstruct:
    def test_reconstruct_improves_with_steps(self, run):
        lines = run("reconstruct", "test:0", "seed:3", "--steps", 5, "--steps", 50, "--tile", 8)
        assert lines[0].split() == ["steps", "evaluations", "mean", "PSNR", "lowest"]
        rows = [line.replace("dB", "").split() for line in lines[1:3]]
        assert [row[:2] for row in rows] == [["5", "10"], ["50", "100"]]
        assert float(rows[1][2]) > float(rows[0][2]) > float(rows[0][3])

    @pytest.mark.parametrize(("there", "shown"), [(3, 3), (500, 8)])
    def test_reconstruct_default_images_exist(self, run, monkeypatch, there, shown):
        meta, test = prepared.open_test()
        monkeypatch.setattr(prepared, "open_test", lambda: (meta, test._replace(images=test.images[:there])))
        assert run("reconstruct", "--steps", 2)[-1].startswith(f"wrote out/reconstruct.png: {shown} images, ")

    def test_reconstruct_mixes_files_and_test_images(self, run, built):
        images = np.load(built / "data/prepared/test_images.npy")[..., 0]
        Image.fromarray(images[7]).save("a.png")
        run("reconstruct", "a.png", "test:2", "a.png", "--steps", 50, "--tile", 8)
        at = {"left": left_of("out/reconstruct.png", 3), "top": MARGIN + 14 + MARGIN}
        for column, number in enumerate((7, 2, 7)):
            assert np.array_equal(tile("out/reconstruct.png", 0, column, **at), images[number])


class TestInfo:
    def test_info_prints_lines(self, run):
        lines = dict(line.split(":", 1) for line in run("info"))
        assert lines["data"].strip() == "digits: 8x8, gray"
        assert lines["classes"].strip() == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        assert lines["conditioning"].strip() == "class, with condition dropout"
        assert lines["schedule"].strip() == "linear, T = 50"
        assert lines["training"].strip() == "steps 20, batch size 8, seed 4"
        assert lines["checkpoints"].strip() == "final"
        assert lines["snapshots"].strip() == "none"
        assert "words" not in lines

    def test_info_prints_json(self, run):
        found = json.loads("\n".join(run("info", "--json", "-m", "models/plain")))
        assert found["shape"] == [8, 8, 1]
        assert found["conditioning"] == "none"
        assert found["parameters"] == sum(p.numel() for p in UNet(settings(conditioning="none"), (8, 8, 1), DIGITS).parameters())
        assert found["snapshots"] == 2
        assert TRACKED_SIGMA_REL[0] <= found["ema_widths"][1] <= 0.28
        assert "scores" not in found

    def test_info_lists_the_vocabulary(self, run):
        assert "seven" in json.loads("\n".join(run("info", "--json", "-m", "models/text")))["words"]
        assert any(line.startswith("words: ") and "seven" in line for line in run("info", "-m", "models/text"))

    def test_info_shows_scores_of_the_own_model(self, run):
        write_json("reports/evaluate/metrics.json", {"ddim": {"sampler": "Heun", "classifier": {"fid": 0.5}, "accuracy": 0.975}})
        assert run("info")[-1] == "scores of Heun: FID 0.500, accuracy 97.5%"
        assert json.loads("\n".join(run("info", "--json")))["scores"] == {"Heun": {"fid": 0.5, "accuracy": 0.975}}
        assert not any("scores" in line for line in run("info", "-m", "models/plain"))


# Help and processes


def test_help_imports_no_torch():
    """Without PyTorch, for every command."""
    code = f"""
import sys
from ddpm.cli.main import main
assert [main([name, "--help"]) for name in {[name_of(command) for command in COMMANDS]}] == [0] * {len(COMMANDS)}
assert main(["sample", "--number", "0"]) == 1
assert main([]) == 0
slow = {{"torch", "torchvision", "sklearn", "matplotlib", "pandas", "gradio", "av"}} & set(sys.modules)
sys.exit(f"imported: {{slow}}" if slow else 0)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def name_of(command):
    return command.__name__


# Options whose help is not built from the registry that holds their values.
CHOICES = {
    "mask": MASKS,
    "device": DEVICES,
    "checkpoint": CHECKPOINTS,
    "what": animations.ANIMATIONS,
    "method": EDITS,
    "upscaling": UPSCALING,
}


def test_option_help_is_a_sentence_that_names_the_choices():
    checked = set()
    for name, command in typer.main.get_command(app).commands.items():
        for option in (param for param in command.params if param.name != "help"):
            assert option.help.rstrip()[-1] in ".)", (name, option.name)
            assert not option.required
            if option.name in CHOICES:
                assert set(CHOICES[option.name]) <= set(re.findall(r"\w+", option.help)), (name, option.name)
                checked.add(option.name)
    assert checked == set(CHOICES)


def test_help_shows_example_and_docstring(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
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


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_main_without_command_prints_help(arguments, capsys):
    assert main(arguments) == 0
    text, said = capsys.readouterr()
    assert all(name_of(command) in text for command in COMMANDS)
    assert said == ""


def test_module_runs_as_a_process(project):
    command = [sys.executable, "-m", "ddpm", "nonsense"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr


# Mistakes


# A line of each kind of mistake, and the beginning of its error. The ranges of numbers are typer's.
MISTAKES = [
    ("smple", "No such command 'smple'. Did you mean 'sample'?"),
    ("", "No such command ''"),
    ("sample --nmber 3", "No such option: --nmber"),
    ("sample --number", "Option '--number' requires an argument"),
    ("sample --number 0", "--number: "),
    ("sample --tile 512 --number 10000 -m models/plain", "--tile: "),
    ("sample --steps 51", "--steps: "),
    ("sample --sampler ddmi", "--sampler: 'ddmi' is unknown; did you mean 'ddpm'?"),
    ("sample --eta nan", "--eta: "),
    ("sample --eta 0.5 --sampler heun", "--eta: "),
    ("sample --guidance 2 -m models/plain", "--guidance: "),
    ("sample --guidance 0 --label 3", "--guidance: "),
    ("sample --text seven --label 7 -m models/text", "--text: "),
    ("sample --checkpoint 0.5", "--checkpoint: "),
    ("sample --checkpoint best", "models/ddpm/best.safetensors: not found"),
    ("sample --model nowhere", "nowhere/config.json: not found"),
    ("sample -o a.jpg", "--out: 'a.jpg' ends in '.jpg'; valid: .png or .npz or none, for a folder"),
    ("sample -o taken/x.png", "--out: taken/x.png: "),
    ("compare --sampler heun --eta 0.5", "--eta: "),
    ("animate --what training", "models/ddpm: "),
    ("animate --what training --checkpoint latest -m models/plain", "--checkpoint: "),
    ("animate --what training --out a.png", "--out: 'a.png' ends in '.png'; valid: .gif or .mp4"),
    ("animate --frames 1000 --number 100 --tile 512", "--tile: "),
    ("interpolate test:0 test:1 --sampler heun", "--sampler: "),
    ("interpolate --label 1 --label 2 --label 3", "--label: "),
    ("inpaint --mask lef", "--mask: "),
    ("inpaint --jump 5 --steps 5", "--jump: "),
    ("edit --method latent --eta 0.5", "--sampler: "),
]  # fmt: skip


@pytest.mark.parametrize(("line", "beginning"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_ends_in_one_line(error, line, beginning):
    Path("a.png").mkdir()
    Path("taken").write_text("a file")
    assert error(*(line.split() or [""])).startswith(beginning)


@pytest.mark.parametrize(("tile", "side"), [(8, 8), (20, 24)])
def test_check_size_bounds_the_pixels(tile, side):
    most = output.MAX_PIXELS // (side + GAP) ** 2
    output.check_size((8, 8, 1), tile, most)
    with pytest.raises(InputError, match=rf"^tile: {most + 1:,} images of {side} pixels are too large"):
        output.check_size((8, 8, 1), tile, most + 1)


def test_option_groups_refuse_nan():
    """Whether or not typer refuses it."""

    @dataclass
    class Group:
        width: float = 1.0

    calls = []

    @options.with_option_groups
    def command(strength: list[float] | None = None, *, group: Group):
        calls.append((group.width, strength))

    command(width=2.0, strength=[0.5])
    for key, values in (
        ("width", {"width": math.nan, "strength": None}),
        ("strength", {"width": 1.0, "strength": [0.5, math.nan]}),
    ):
        with pytest.raises(InputError) as refused:
            command(**values)
        assert refused.value.key == key
    assert calls == [(2.0, [0.5])]


@pytest.mark.parametrize("out", ["a\0b.png", "x" * 300 + ".png", "/proc/nowhere/a.png", "/dev/null/a.png", "", ".", ".."])
def test_out_refuses_impossible_paths(error, out):
    error("sample", "-n", 1, "-o", out)


def test_out_accepts_undecodable_names(run):
    assert run("sample", "-n", 1, "-o", "\udce9.png")[0].startswith("wrote \\udce9.png: ")


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

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 4}'])
    def test_invalid_config_is_refused(self, error, broken, text):
        (broken / "config.json").write_text(text)
        assert error("info", "-m", "broken").startswith("broken/config.json: ")

    def test_weights_of_another_network_are_refused(self, error, broken, built):
        (broken / "final.safetensors").write_bytes((built / "models/text/final.safetensors").read_bytes())
        assert "does not fit the config.json in its folder" in error("sample", "-m", "broken")

    def test_non_finite_images_are_refused(self, error, broken):
        network = awake(UNet(settings(conditioning="class"), (8, 8, 1), DIGITS))
        with torch.no_grad():
            network.conv_out.bias.fill_(float("nan"))
        save(broken / "final.safetensors", network)
        assert error("sample", "-m", "broken").startswith("--thresholding: without it the images are not finite")

    def test_missing_data_is_refused(self, error, project):
        (project / "data").unlink()
        assert error("inpaint").startswith("data/prepared/meta.json: not found; make it with `dvc repro prepare_data`")


# How it ends


def test_interruption_ends_with_130(project, capsys, monkeypatch):
    def stop(*_):
        x = torch.zeros(1, 1, 8, 8)
        yield progress.SamplingProgress(1, 2, 0, 1.0, x, x, False)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "generate", stop)
    assert main(["sample", *MACHINE]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert not Path("out").exists()


def test_out_of_memory_is_one_line(error, monkeypatch):
    for kind in (MemoryError, torch.OutOfMemoryError):
        monkeypatch.setattr(generate, "generate", lambda *_, kind=kind: (_ for _ in ()).throw(kind("too much")))
        assert error("sample", *MACHINE).startswith("out of memory; generate fewer images at once")


def test_defect_keeps_its_traceback(project, monkeypatch):
    monkeypatch.setattr(generate, "generate", lambda *_: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        main(["sample", *MACHINE])


@pytest.mark.slow
def test_closed_pipe_ends_quietly(project):
    """As `python -m ddpm info | head -1`, whose end of the pipe is closed."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "ddpm", "info"], env=env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


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
        assert main(["demo", "-m", "models/text", "--checkpoint", "0.1", "--port", "81", "--browser", *MACHINE]) == 0
        assert main(["demo", "--host", "0.0.0.0", *MACHINE]) == 0
        assert calls == [
            (Path("models/text"), 0.1, torch.device("cpu"), "127.0.0.1", 81, True),
            (Path("models/ddpm"), "final", torch.device("cpu"), "0.0.0.0", 7860, False),
        ]

    def test_demo_without_gradio_is_refused(self, error, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert error("demo").endswith("is not installed; run `pip install -r requirements-demo.txt`")


def test_checkpoint_of_reads_names_and_widths():
    assert [checkpoint_of(text) for text in ("best", "0.1", "5e-3")] == ["best", 0.1, 0.005]
    with pytest.raises(InputError, match=r"^checkpoint: '' is unknown"):
        checkpoint_of("")


# Random command lines


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
    assert status in (0, 1)
    assert len(said) == status, said
    assert all(text.startswith("error: ") for text in said)
    partial = [path for path in Path().rglob("*") if ".partial" in path.name]
    assert partial == []
