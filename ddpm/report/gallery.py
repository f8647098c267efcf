"""Draws the pictures of the report into a new folder, from the arrays and numbers that other stages wrote."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ddpm.core.files import InputError, read_npz
from ddpm.core.paths import EDITS_FILE, PLOTS_DIR, samples_file
from ddpm.diffusion.schedule import NoiseSchedule, add_noise
from ddpm.plots import figures, image_grid, sample_figures, video
from ddpm.report.summary import SAMPLES

COVERAGE = ("precision", "recall", "density", "coverage")
# Picture -> arrays (K, H, W, C) of samples/edits.npz, which are its rows, with their captions. A name that ends with * stands
# for all arrays that begin with it; the rest of their names is put into the caption.
EDITS: dict[str, dict[str, str]] = {
    "inpainting": {"inpaint_image": "test image", "inpaint_known": "known", "inpaint_filled_*": "by {}"},
    "editing": {"edit_image": "test image", "edit_strength_*": "strength {}", "edit_varied_*": "varied, {}"},
    "interpolation": {"interpolate_sample_*": "samples {}", "interpolate_image_*": "test images {}"},
}
HOLD = {"interpolation": 0.0, "training": 2.0}  # seconds that an animation rests on its last frame
SNAPSHOT_COLUMNS = 10
QUARTERS = {"0_25": "0 to 0.25", "25_50": "0.25 to 0.5", "50_75": "0.5 to 0.75", "75_100": "0.75 to 1"}


def draw_samples(folder: Path, name: str, class_names: list[str], columns: int, tile: int, frame_ms: int) -> None:
    """Draws a grid of samples, by class if they have classes, and the denoising of some of them."""
    arrays = read_npz(samples_file(name), f"sample_{name}")
    grid = folder / f"{name}_grid.png"
    if "arr_1" in arrays:
        image_grid.class_grid(grid, arrays["arr_0"], arrays["arr_1"], class_names, columns, tile)
    else:
        image_grid.plain_grid(grid, arrays["arr_0"][: 10 * columns], columns, tile)
    x, x0 = arrays["trajectory_x"], arrays["trajectory_x0"]
    if "arr_1" in arrays:  # the classes in turn: those of unequal data are mostly the large ones
        labels = pd.Series(arrays["arr_1"][: x.shape[1]])
        turns = np.argsort(labels.groupby(labels).cumcount(), kind="stable")
        x, x0 = x[:, turns], x0[:, turns]
    path = (x, x0, arrays["trajectory_level"])
    image_grid.denoising_strip(folder / f"{name}_denoising.png", *path, tile)
    # There is no prediction at the first level.
    frames = video.denoising_frames(*(array[1:] for array in path), tile)
    video.write_film(folder / f"{name}_denoising.gif", frames, fps=1000 / frame_ms)


def draw_pairs(folder: Path, arrays: dict[str, np.ndarray], tile: int) -> None:
    """Draws test images after denoising and after the round trip to noise, and samples with their nearest training images."""
    rows = {"clean": "test image", "noisy": "noisy", "network": "network", "wiener": "Wiener", "zero": "no denoising"}
    tiles = [list(arrays[f"reconstruction_{name}"]) for name in rows]
    image_grid.save(folder / "reconstruction.png", image_grid.captioned(tiles, list(rows.values()), [], tile))
    trips = {name.removeprefix("round_trip_"): list(tiles) for name, tiles in arrays.items() if name.startswith("round_trip_")}
    if trips:
        captions = ["test image" if name == "clean" else f"{name.removeprefix('steps_')} steps" for name in trips]
        image_grid.save(folder / "round_trip.png", image_grid.captioned(list(trips.values()), captions, [], tile))
    for name in SAMPLES:
        pairs, ratios = arrays[f"{name}_neighbours"], arrays[f"{name}_neighbours_ratio"]
        image_grid.neighbours(folder / f"{name}_neighbours.png", pairs, ratios, tile)


def draw_schedules(folder: Path, schedules: dict[str, NoiseSchedule], chosen: str, image: np.ndarray, tile: int) -> None:
    """Draws the curves of the schedules, and one image noised by each of them with the same noise."""
    curves = {name: (schedule[torch.arange(1, schedule.steps + 1)].alpha.numpy() ** 2, 2 * schedule.log_ratio)
              for name, schedule in schedules.items()}  # fmt: skip
    figures.noise_schedules(folder / "schedules.png", curves, chosen)
    fractions = np.linspace(0, 1, 11)
    x0 = torch.from_numpy(image / 127.5 - 1)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=x0.dtype)
    rows = [
        [_to_picture(add_noise(x0, eps, schedule[round(fraction * schedule.steps)])) for fraction in fractions]
        for schedule in schedules.values()
    ]
    heads = [f"{fraction:.1f} T" for fraction in fractions]
    image_grid.save(folder / "schedules_noised.png", image_grid.captioned(rows, list(schedules), heads, tile))


def draw_scores(folder: Path, scores: dict, cost: dict) -> None:
    """Draws FID, accuracy and cost of the samplers, and precision, recall, density and coverage next to real images."""
    rows = []
    for name in SAMPLES:
        space = scores[name]["classifier"]
        rows.append({"sampler": scores[name]["sampler"], "fid": space.get("fid"), "fid_sd": space.get("fid_sd")})
        rows[-1] |= {"accuracy": scores[name].get("accuracy"), "nfe": cost[name]["nfe"]}
    figures.comparison(folder / "comparison.png", rows, scores["ddpm"]["classifier"].get("fid_floor"), scores["n"])
    if rows[0]["fid"] is None:
        return
    spaces = {scores[name]["sampler"]: scores[name]["classifier"] for name in SAMPLES}
    spaces[sample_figures.REAL] = scores["real"]["classifier"]
    bars = {title: {key: space[key] for key in COVERAGE} for title, space in spaces.items()}
    sample_figures.coverage_bars(folder / "coverage.png", bars, scores["n"])


def draw_classes(folder: Path, arrays: dict[str, np.ndarray], titles: dict[str, str], class_names: list[str]) -> None:
    """Draws the predicted classes of samples and test images, also against the requested classes if there are any.

    titles: title of each set of samples, by its name in arrays.
    """
    if "real_seen" not in arrays:  # the classifier predicts no classes
        return
    real = sample_figures.REAL
    predicted = {title: arrays[f"{name}_seen"] for name, title in titles.items()} | {real: arrays["real_seen"]}
    sample_figures.class_histogram(folder / "classes.png", predicted, class_names)
    panels = {title: (arrays[f"{name}_asked"], predicted[title]) for name, title in titles.items() if f"{name}_asked" in arrays}
    if panels:
        panels[real] = (arrays["real_labels"], predicted[real])
        sample_figures.confusion(folder / "confusion.png", panels, class_names)


def draw_guidance(folder: Path) -> pd.DataFrame:
    """Draws the scores over the guidance scale and returns their table, which is empty where no scales were compared."""
    frame = read_table("reports/guidance/guidance.csv", "guidance")
    if len(frame):
        figures.guidance_curves(folder / "guidance.png", frame)
    return frame


def draw_training_curve(folder: Path) -> bool:
    """Draws the FID over the training. Returns whether there is one."""
    frame = read_table(str(PLOTS_DIR / "training_curve.csv"), "evaluate")
    if len(frame):
        figures.fid_over_steps(folder / "training_curve.png", frame)
    return len(frame) > 0


def draw_edits(folder: Path, tile: int, frame_ms: int) -> bool:
    """Draws the results of the stage `edit`. Returns whether there are samples of training snapshots."""
    arrays = read_npz(EDITS_FILE, "edit")
    for name, rows in EDITS.items():
        image_grid.save(folder / f"{name}.png", _captioned_rows(arrays, rows, tile))
    between = np.stack([arrays[key] for key in arrays if key.startswith("interpolate_film_")], axis=1)
    animations = {"interpolation": video.strip_film(between, between.shape[1], tile)}
    if len(steps := arrays["training_step"]):
        animations["training"] = video.training_frames(arrays["training_images"], steps.tolist(), SNAPSHOT_COLUMNS, tile)
    for name, frames in animations.items():
        video.write_film(folder / f"{name}.gif", frames, fps=1000 / frame_ms, hold=HOLD[name])
    return len(steps) > 0


def _captioned_rows(arrays: dict[str, np.ndarray], rows: dict[str, str], tile: int) -> Image.Image:
    tiles, captions = [], []
    for name, caption in rows.items():
        keys = [key for key in arrays if key.startswith(name[:-1])] if name.endswith("*") else [name]
        tiles += [list(arrays[key]) for key in keys]
        captions += [caption.format(key.removeprefix(name[:-1]).replace("_", " ")) for key in keys]
    return image_grid.captioned(tiles, captions, [], tile)


def draw_curves(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Draws the loss over steps, also by noise level, and PSNR and the likelihood bound over the noise level."""
    figures.psnr_over_t(folder / "psnr.png", read_table(str(PLOTS_DIR / "psnr.csv"), "evaluate"))
    logged = "reports/train/plots/metrics"
    figures.loss_curve(
        folder / "loss.png", *(read_table(f"{logged}/{name}.tsv", "train") for name in ("loss", "validation_loss"))
    )
    # With few timesteps a quarter of t may hold none.
    files = {title: f"{logged}/loss_t/{name}.tsv" for name, title in QUARTERS.items()}
    quarters = {title: read_table(file, "train") for title, file in files.items() if Path(file).exists()}
    figures.loss_by_time(folder / "loss_t.png", quarters)
    curves = {name.removeprefix("bits_"): values for name, values in arrays.items() if name.startswith("bits_")}
    figures.bits_over_t(folder / "bits.png", curves.pop("level"), curves)


def _to_picture(image: torch.Tensor) -> np.ndarray:
    return ((image.numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def read_table(path: str, stage: str) -> pd.DataFrame:
    """Reads a CSV or TSV file. Raises InputError, naming the stage that writes it, if it cannot be read."""
    try:
        return pd.read_csv(path, sep="\t" if path.endswith(".tsv") else ",")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error}); make it again with `dvc repro -f {stage}`", key=path) from None
