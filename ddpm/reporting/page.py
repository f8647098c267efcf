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
    meta = read_json("data/prepared/meta.json", "prepare_data")
    # Not a dep: seconds differ from run to run, and pictures need not be drawn again because of them.
    metrics = read_json("reports/evaluate/metrics.json", "evaluate")
    cost = {name: metrics[name]["cost"] for name in SAMPLERS}
    for name in SAMPLERS:
        _draw_samples(name, meta["class_names"], settings)
    _draw_reconstruction(read_npz("samples/judged/arrays.npz", "evaluate"), settings)
    _draw_figures(scores, cost)
    write_text(REPORTS / "index.md", _page(scores, cost, meta))


def _draw_samples(name: str, class_names: list[str], settings: Report) -> None:
    arrays = read_npz(f"samples/{name}.npz", f"sample_{name}")
    grid = FIGURES / f"{name}_grid.png"
    if "arr_1" in arrays:
        pictures.class_grid(grid, arrays["arr_0"], arrays["arr_1"], class_names, settings.columns, settings.tile)
    else:
        pictures.plain_grid(grid, arrays["arr_0"][: 10 * settings.columns], settings.columns, settings.tile)
    path = (arrays["trajectory_x"], arrays["trajectory_x0"], arrays["trajectory_level"])
    pictures.denoising_strip(FIGURES / f"{name}_denoising.png", *path, settings.tile)
    pictures.denoising_gif(FIGURES / f"{name}_denoising.gif", *path, settings.tile, settings.frame_ms)


def _draw_reconstruction(arrays: dict[str, np.ndarray], settings: Report) -> None:
    rows = {"clean": "test image", "noisy": "noisy", "network": "network", "wiener": "Wiener", "zero": "no denoising"}
    tiles = [list(arrays[name]) for name in rows]
    pictures.save(FIGURES / "reconstruction.png", pictures.captioned(tiles, list(rows.values()), [], settings.tile))


def _draw_figures(scores: dict, cost: dict) -> None:
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
    curves = [_read_table(f"reports/train/plots/metrics/{name}.tsv", "train", "\t") for name in ("loss", "validation_loss")]
    figures.loss_curve(FIGURES / "loss.png", *curves)


def _read_table(path: str, made_by: str, separator: str = ",") -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep=separator)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it again with `dvc repro -f {made_by}`") from None


def _page(scores: dict, cost: dict, meta: dict) -> str:
    pair = scores["reconstruction"]
    size = "x".join(map(str, meta["shape"]))
    alex = number(pair["lpips"]["alex"]) if "alex" in pair["lpips"] else "not measured, its weights file is missing"
    denoisers = {"the network": "psnr", "Wiener filter": "psnr_wiener", "none": "psnr_zero"}
    parts = [
        f"# {meta['dataset']}: DDPM against DDIM",
        _verdict(scores, cost),
        "![quality beside cost](report/comparison.png)",
        _sampler_table(scores, cost),
        _how_measured(scores),
        "## Samples",
        *(_sampler_section(name, title, cost) for name, title in SAMPLERS.items()),
        "## One-step denoising",
        f"{pair['n']:,} test images, noised to t = {pair['level']} and denoised with a single network evaluation. PSNR is the "
        "mean over images, for pixels in [-1, 1]. The Wiener filter is the best linear denoiser fitted on the training images.",
        table(["denoiser", "PSNR in dB ↑"], [[title, number(pair[key])] for title, key in denoisers.items()]),
        f"LPIPS of the network's images: {number(pair['lpips']['classifier'])} in the judge's feature maps; by AlexNet: {alex}.",
        "![test images, noisy, and denoised in three ways](report/reconstruction.png)",
        "![PSNR over the noise level](report/psnr.png)",
        "## Training",
        "![training and validation loss](report/loss.png)",
        "## Data",
        f"{meta['counts']['train']:,} training and {meta['counts']['test']:,} test images of {size}.",
        "![first training images](prepare_data/first_images.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(scores: dict, cost: dict) -> str:
    sentences = []
    for name, title in SAMPLERS.items():
        space = scores[name]["classifier"]
        text = f"**{title}** with {cost[name]['nfe']:,} network evaluations reaches an FID of {number(space['fid'])}, "
        text += f"{space['fid'] / space['fid_floor']:.2f} times the {number(space['fid_floor'])} of real images"
        if "accuracy" in scores[name]:
            text += f"; {percent(scores[name]['accuracy'])} of its samples are seen as the class asked for"
        sentences.append(text + ".")
    fewer = cost["ddpm"]["nfe"] / cost["ddim"]["nfe"]
    faster = cost["ddpm"]["seconds"] / cost["ddim"]["seconds"]
    sentences.append(f"DDIM evaluates the network {number(fewer)} times less often and was {number(faster, 2)} times as fast.")
    pair = scores["reconstruction"]
    gain = pair["psnr"] - pair["psnr_wiener"]
    if gain > 0:
        sentences.append(f"In one step the network denoises {gain:.1f} dB better than the best linear filter.")
    else:
        sentences.append(
            f"In one step the network denoises {-gain:.1f} dB **worse** than the best linear filter: it has not learned enough "
            "for the other numbers to mean much."
        )
    return " ".join(sentences)


def _sampler_table(scores: dict, cost: dict) -> str:
    header = ["sampler", "NFE ↓", "FID ↓", "floor", "excess ↓", "IS ↑ (real)", "accuracy ↑"]
    header += ["Inception FID ↓", "Inception IS ↑", "seconds ↓", "images/s ↑"]
    rows = []
    for name, title in SAMPLERS.items():
        space, inception = scores[name]["classifier"], scores[name]["inception"]
        quality = [number(space["fid"]), number(space["fid_floor"]), number(space["fid_excess"], 2)]
        quality += [f"{number(space['is'])} ({number(space['is_real'])})", percent(scores[name].get("accuracy"))]
        quality += [number(inception.get("fid")), number(inception.get("is"))]
        speed = [number(cost[name]["seconds"]), number(cost[name]["images_per_second"])]
        rows.append([title, number(cost[name]["nfe"]), *quality, *speed])
    return table(header, rows)


def _how_measured(scores: dict) -> str:
    judge = scores["classifier"]
    missing = " (not measured: its weights file is missing)" if scores["ddpm"]["inception"]["status"] != "ok" else ""
    return (
        f"FID, IS and accuracy are measured over {scores['n']:,} samples in the features of a classifier trained on the same "
        f"images (the judge: {percent(judge['accuracy'])} of the test images right, weights `{judge['sha256'][:8]}`). *Floor* is "
        "the FID of as many real test images; the reference is the training split for both. Samples below the floor are closer "
        "to the training images than other real images are, which copying would also achieve. Values from another judge or at "
        f"another n are not comparable; only the FID and IS of the Inception{missing} are comparable with papers."
    )


def _sampler_section(name: str, title: str, cost: dict) -> str:
    return "\n\n".join([
        f"### {title}: {cost[name]['nfe']:,} network evaluations",
        f"![{title} samples](report/{name}_grid.png)",
        f"![{title}, from noise to image](report/{name}_denoising.gif)",
        f"![{title}: x_t above the prediction of x0, over t](report/{name}_denoising.png)",
    ])  # fmt: skip
