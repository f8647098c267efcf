"""reports/index.md and its pictures, from the arrays and numbers of the other stages."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from ddpm.files import InputError, read_json, read_npz, write_text
from ddpm.params import Section
from ddpm.reporting import figures, pictures
from ddpm.reporting.tables import number, percent, table

REPORTS = Path("reports")
FIGURES = REPORTS / "report"
SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM"}


class Report(Section):
    """The `report` section: how pictures are drawn."""

    tile: Annotated[int, Field(ge=8, le=1024)]
    columns: Annotated[int, Field(ge=1, le=100)]
    frame_ms: Annotated[int, Field(ge=20, le=10_000)]


def write_report(settings: Report) -> None:
    """Draw all pictures into reports/report, and write reports/index.md."""
    scores = read_json("samples/judged/scores.json", "evaluate")
    arrays = read_npz("samples/judged/arrays.npz", "evaluate")
    meta = read_json("data/prepared/meta.json", "prepare_data")
    # Not a dep: seconds differ from run to run, and pictures need not be drawn again because of them.
    cost = {
        name: value["cost"] for name, value in read_json("reports/evaluate/metrics.json", "evaluate").items() if name in SAMPLERS
    }
    for name in SAMPLERS:
        _draw_samples(name, meta["class_names"], settings)
    _draw_reconstruction(arrays, settings)
    rows = [
        {
            "sampler": title,
            "fid": scores[name]["classifier"]["fid"],
            "accuracy": scores[name].get("accuracy"),
            "nfe": cost[name]["nfe"],
        }
        for name, title in SAMPLERS.items()
    ]
    figures.comparison(FIGURES / "comparison.png", rows, scores["ddpm"]["classifier"]["fid_floor"], scores["n"])
    figures.psnr_over_t(FIGURES / "psnr.png", _read_table("reports/evaluate/plots/psnr.csv", "evaluate"))
    curves = Path("reports/train/plots/metrics")
    figures.loss_curve(
        FIGURES / "loss.png",
        _read_table(curves / "loss.tsv", "train", "\t"),
        _read_table(curves / "validation_loss.tsv", "train", "\t"),
    )
    write_text(REPORTS / "index.md", _page(scores, cost, meta))


def _draw_samples(name: str, class_names: list[str], settings: Report) -> None:
    arrays = read_npz(f"samples/{name}.npz", f"sample_{name}")
    pictures.class_grid(
        FIGURES / f"{name}_grid.png", arrays["arr_0"], arrays["arr_1"], class_names, settings.columns, settings.tile
    )
    path = (arrays["trajectory_x"], arrays["trajectory_x0"], arrays["trajectory_level"])
    pictures.denoising_strip(FIGURES / f"{name}_denoising.png", *path, settings.tile)
    pictures.denoising_gif(FIGURES / f"{name}_denoising.gif", *path, settings.tile, settings.frame_ms)


def _draw_reconstruction(arrays: dict[str, np.ndarray], settings: Report) -> None:
    rows = {"clean": "test image", "noisy": "noisy", "network": "network", "wiener": "Wiener", "zero": "no denoising"}
    tiles = [list(arrays[name]) for name in rows]
    pictures.save(FIGURES / "reconstruction.png", pictures.captioned(tiles, list(rows.values()), [], settings.tile))


def _read_table(path: str | Path, made_by: str, separator: str = ",") -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep=separator)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it again with `dvc repro -f {made_by}`") from None


def _page(scores: dict, cost: dict, meta: dict) -> str:
    n, judge = scores["n"], scores["classifier"]
    missing = scores["ddpm"]["inception"]["status"] != "ok"
    pair = scores["reconstruction"]
    size = "x".join(map(str, meta["shape"]))
    parts = [
        f"# {meta['dataset']}: DDPM against DDIM",
        _verdict(scores, cost),
        "![quality beside cost](report/comparison.png)",
        _sampler_table(scores, cost),
        f"FID, IS and accuracy are measured over {n:,} samples in the features of a classifier trained on the same images (the "
        f"judge: {percent(judge['accuracy'])} of the test images right, weights `{judge['sha256'][:8]}`). *Floor* is the FID of as "
        "many real test images against the training images: no sampler can be expected below it. Values from other judges or at "
        "another n are not comparable, and only the FID and IS of the Inception are comparable with papers"
        + (" (not measured: its weights file is missing)." if missing else "."),
        "## Samples",
        *[
            f"### {title}: {cost[name]['nfe']:,} network evaluations\n\n"
            f"![{title} samples, a row per class](report/{name}_grid.png)\n\n"
            f"![{title}: from noise to image](report/{name}_denoising.gif)\n\n"
            f"![{title}: x_t above the prediction of x0](report/{name}_denoising.png)"
            for name, title in SAMPLERS.items()
        ],
        "## One-step denoising",
        f"{pair['n']:,} test images, noised to t = {pair['level']} and denoised with a single network evaluation; PSNR is the mean "
        "over images, for pixels in [-1, 1]. The Wiener filter is the best linear denoiser fitted on the training images.",
        table(
            ["denoiser", "PSNR in dB ↑"],
            [[title, number(pair[key])] for title, key in
             (("the network", "psnr"), ("Wiener filter", "psnr_wiener"), ("none", "psnr_zero"))],
        ),
        f"LPIPS of the network's images: {number(pair['lpips']['classifier'])} in the judge's feature maps; by AlexNet: "
        + (number(pair["lpips"]["alex"]) if "alex" in pair["lpips"] else "weights file missing") + ".",
        "![examples](report/reconstruction.png)",
        "![PSNR over t](report/psnr.png)",
        "## Training",
        "![loss](report/loss.png)",
        f"## Data\n\n{meta['counts']['train']:,} training and {meta['counts']['test']:,} test images of {size}.\n\n"
        "![first training images](prepare_data/first_images.png)",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _verdict(scores: dict, cost: dict) -> str:
    sentences = []
    for name, title in SAMPLERS.items():
        space = scores[name]["classifier"]
        text = f"**{title}** with {cost[name]['nfe']:,} network evaluations reaches an FID of {number(space['fid'])}, "
        text += f"{space['fid'] / space['fid_floor']:.2g} times the {number(space['fid_floor'])} of real images"
        if "accuracy" in scores[name]:
            text += f"; {percent(scores[name]['accuracy'])} of its samples are seen as the class asked for"
        sentences.append(text + ".")
    ratio = cost["ddpm"]["seconds"] / cost["ddim"]["seconds"]
    fewer = cost["ddpm"]["nfe"] / cost["ddim"]["nfe"]
    sentences.append(f"DDIM evaluates the network {number(fewer)} times less often and was {number(ratio, 2)} times as fast.")
    pair = scores["reconstruction"]
    better = pair["psnr"] - pair["psnr_wiener"]
    sentences.append(
        f"In one step the network denoises {abs(better):.1f} dB {'better' if better > 0 else 'WORSE'} than the best linear filter"
        + ("." if better > 0 else ": it has not learned enough for the other numbers to mean much.")
    )
    return " ".join(sentences)


def _sampler_table(scores: dict, cost: dict) -> str:
    rows = []
    for name, title in SAMPLERS.items():
        space, inception = scores[name]["classifier"], scores[name]["inception"]
        rows.append([
            title,
            number(cost[name]["nfe"]),
            number(space["fid"]),
            number(space["fid_floor"]),
            number(space["fid_excess"], 2),
            f"{number(space['is'])} ({number(space['is_real'])})",
            percent(scores[name].get("accuracy")),
            number(inception.get("fid")),
            number(inception.get("is")),
            number(cost[name]["seconds"]),
            number(cost[name]["images_per_second"]),
        ])  # fmt: skip
    header = ["sampler", "NFE ↓", "FID ↓", "floor", "excess ↓", "IS ↑ (real)", "accuracy ↑"]
    return table([*header, "Inception FID ↓", "Inception IS ↑", "seconds ↓", "images/s ↑"], rows)
