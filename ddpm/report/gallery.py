"""All pictures of the report, from the arrays and numbers of the other stages, into reports/report."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ddpm.core.files import InputError, read_npz, remove
from ddpm.diffusion.schedule import NoiseSchedule, add_noise
from ddpm.plots import figures, image_grid, video
from ddpm.report import edits
from ddpm.report.guidance import guidance_curves
from ddpm.report.summary import SAMPLERS

FIGURES = Path("reports/report")
COVERAGE = ("precision", "recall", "density", "coverage")
QUARTERS = {"0_25": "0 to 0.25", "25_50": "0.25 to 0.5", "50_75": "0.5 to 0.75", "75_100": "0.75 to 1"}


def draw_samples(name: str, class_names: list[str], columns: int, tile: int, frame_ms: int) -> None:
    """The grid of a sampler's images, and how some of them came out of noise."""
    arrays = read_npz(f"samples/{name}.npz", f"sample_{name}")
    grid = FIGURES / f"{name}_grid.png"
    if "arr_1" in arrays:
        image_grid.class_grid(grid, arrays["arr_0"], arrays["arr_1"], class_names, columns, tile)
    else:
        image_grid.plain_grid(grid, arrays["arr_0"][: 10 * columns], columns, tile)
    path = (arrays["trajectory_x"], arrays["trajectory_x0"], arrays["trajectory_level"])
    image_grid.denoising_strip(FIGURES / f"{name}_denoising.png", *path, tile)
    image_grid.denoising_gif(FIGURES / f"{name}_denoising.gif", *path, tile, frame_ms)


def draw_pairs(arrays: dict[str, np.ndarray], tile: int) -> None:
    """Test images noised and denoised, encoded and decoded; samples above their nearest training images."""
    rows = {"clean": "test image", "noisy": "noisy", "network": "network", "wiener": "Wiener", "zero": "no denoising"}
    tiles = [list(arrays[f"reconstruction_{name}"]) for name in rows]
    image_grid.save(FIGURES / "reconstruction.png", image_grid.captioned(tiles, list(rows.values()), [], tile))
    trips = {name.removeprefix("round_trip_"): list(tiles) for name, tiles in arrays.items() if name.startswith("round_trip_")}
    if trips:
        captions = ["test image" if name == "clean" else f"{name.removeprefix('steps_')} steps" for name in trips]
        image_grid.save(FIGURES / "round_trip.png", image_grid.captioned(list(trips.values()), captions, [], tile))
    else:
        remove(FIGURES / "round_trip.png")
    for name in SAMPLERS:
        pairs, ratios = arrays[f"{name}_neighbours"], arrays[f"{name}_neighbours_ratio"]
        image_grid.neighbours(FIGURES / f"{name}_neighbours.png", pairs, ratios, tile)


def draw_schedules(schedules: dict[str, NoiseSchedule], chosen: str, image: np.ndarray, tile: int) -> None:
    """Their curves, and what each makes of one image, with the same noise throughout."""
    curves = {name: (schedule[torch.arange(1, schedule.steps + 1)].alpha.numpy() ** 2, 2 * schedule.log_ratio)
              for name, schedule in schedules.items()}  # fmt: skip
    figures.noise_schedules(FIGURES / "schedules.png", curves, chosen)
    fractions = np.linspace(0, 1, 11)
    x0 = torch.from_numpy(image / 127.5 - 1)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=x0.dtype)
    rows = [
        [_to_picture(add_noise(x0, eps, schedule[round(fraction * schedule.steps)])) for fraction in fractions]
        for schedule in schedules.values()
    ]
    heads = [f"{fraction:.1f} T" for fraction in fractions]
    image_grid.save(FIGURES / "schedules_noised.png", image_grid.captioned(rows, list(schedules), heads, tile))


def draw_scores(scores: dict, cost: dict) -> None:
    """Quality beside cost, and coverage beside that of real images."""
    rows = [
        {
            "sampler": scores[name]["sampler"],
            "fid": scores[name]["classifier"]["fid"],
            "fid_sd": scores[name]["classifier"].get("fid_sd"),
            "accuracy": scores[name].get("accuracy"),
            "nfe": cost[name]["nfe"],
        }
        for name in SAMPLERS
    ]
    figures.comparison(FIGURES / "comparison.png", rows, scores["ddpm"]["classifier"]["fid_floor"], scores["n"])
    spaces = {scores[name]["sampler"]: scores[name]["classifier"] for name in SAMPLERS}
    spaces[figures.REAL] = scores["real"]["classifier"]
    bars = {title: {key: space[key] for key in COVERAGE} for title, space in spaces.items()}
    figures.coverage_bars(FIGURES / "coverage.png", bars, scores["n"])


def draw_classes(arrays: dict[str, np.ndarray], titles: dict[str, str], class_names: list[str]) -> None:
    """Which classes the judge sees in samples and test images, and beside the classes asked for. titles: sampler by name."""
    seen = {title: arrays[f"{name}_seen"] for name, title in titles.items()} | {figures.REAL: arrays["real_seen"]}
    figures.class_histogram(FIGURES / "classes.png", seen, class_names)
    asked = {
        title: (arrays[f"{name}_asked"], arrays[f"{name}_seen"]) for name, title in titles.items() if f"{name}_asked" in arrays
    }
    if asked:
        real = {figures.REAL: (arrays["real_labels"], arrays["real_seen"])}
        figures.confusion(FIGURES / "confusion.png", asked | real, class_names)
    else:
        remove(FIGURES / "confusion.png")


def draw_guidance() -> pd.DataFrame:
    """Accuracy, recall and FID over the scale of guidance; returns the table, empty where no scales were compared."""
    frame = read_table("reports/guidance/guidance.csv", "guidance")
    if frame.empty:
        remove(FIGURES / "guidance.png")
    else:
        guidance_curves(FIGURES / "guidance.png", frame)
    return frame


def draw_edits(tile: int, frame_ms: int) -> dict[str, np.ndarray]:
    """What `edit` made: images filled in, edited, varied and interpolated, and a film of the training; returns its arrays."""
    arrays = read_npz("samples/edits.npz", "edit")
    for name, captions in edits.PICTURES.items():
        image_grid.save(FIGURES / f"{name}.png", edits.picture(arrays, captions, tile))
    for name, frames in edits.films(arrays, tile).items():
        path = FIGURES / f"{name}.gif"
        if frames:
            video.write_film(path, frames, fps=1000 / frame_ms, hold=edits.HOLD[name])
        else:
            remove(path)
    return arrays


def draw_curves(arrays: dict[str, np.ndarray]) -> None:
    """Loss over steps, in all and by noise level; PSNR and the likelihood bound over the noise level."""
    figures.psnr_over_t(FIGURES / "psnr.png", read_table("reports/evaluate/plots/psnr.csv", "evaluate"))
    folder = "reports/train/plots/metrics"
    figures.loss_curve(
        FIGURES / "loss.png", *(read_table(f"{folder}/{name}.tsv", "train") for name in ("loss", "validation_loss"))
    )
    quarters = {title: read_table(f"{folder}/loss_t/{name}.tsv", "train") for name, title in QUARTERS.items()}
    figures.loss_by_time(FIGURES / "loss_t.png", quarters)
    curves = {name.removeprefix("bits_"): values for name, values in arrays.items() if name.startswith("bits_")}
    figures.bits_over_t(FIGURES / "bits.png", curves.pop("level"), curves)


def _to_picture(image: torch.Tensor) -> np.ndarray:
    return ((image.numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def read_table(path: str, made_by: str) -> pd.DataFrame:
    """A CSV or TSV file. Raises InputError, naming the stage that makes it, if it cannot be read."""
    try:
        return pd.read_csv(path, sep="\t" if path.endswith(".tsv") else ",")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error}); make it again with `dvc repro -f {made_by}`", key=path) from None
