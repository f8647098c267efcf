"""reports/index.md and its pictures, from the arrays and numbers of the other stages."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from ddpm.diffusion.schedule import NoiseSchedule, add_noise
from ddpm.files import InputError, read_json, read_npz, remove, write_text
from ddpm.params import Section
from ddpm.reporting import figures, pictures
from ddpm.reporting.tables import number, percent, table

REPORTS = Path("reports")
FIGURES = REPORTS / "report"
SAMPLERS = ("ddpm", "ddim")


class Report(Section):
    """The `report` section: how pictures are drawn."""

    tile: Annotated[int, Field(ge=8, le=1024)]
    columns: Annotated[int, Field(ge=1, le=100)]
    frame_ms: Annotated[int, Field(ge=20, le=10_000)]


def write_report(settings: Report, schedules: dict[str, NoiseSchedule], chosen: str) -> None:
    """Draw all pictures into reports/report, and write reports/index.md; `schedules` are those to show, `chosen` is in use."""
    scores = read_json("samples/judged/scores.json", "evaluate")
    meta = read_json("data/prepared/meta.json", "prepare_data")
    # Not a dep: seconds differ from run to run, and pictures need not be drawn again because of them.
    metrics = read_json("reports/evaluate/metrics.json", "evaluate")
    cost = {name: metrics[name]["cost"] for name in SAMPLERS}
    for name in SAMPLERS:
        _draw_samples(name, meta["class_names"], settings)
    arrays = read_npz("samples/judged/arrays.npz", "evaluate")
    _draw_pairs(arrays, settings)
    _draw_schedules(schedules, chosen, arrays["reconstruction_clean"][0], settings)
    _draw_figures(scores, cost)
    curves = {name.removeprefix("bits_"): values for name, values in arrays.items() if name.startswith("bits_")}
    figures.bits_over_t(FIGURES / "bits.png", curves.pop("level"), curves)
    write_text(REPORTS / "index.md", _page(scores, cost, meta, chosen))


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


def _draw_pairs(arrays: dict[str, np.ndarray], settings: Report) -> None:
    rows = {"clean": "test image", "noisy": "noisy", "network": "network", "wiener": "Wiener", "zero": "no denoising"}
    tiles = [list(arrays[f"reconstruction_{name}"]) for name in rows]
    pictures.save(FIGURES / "reconstruction.png", pictures.captioned(tiles, list(rows.values()), [], settings.tile))
    trips = {name.removeprefix("round_trip_"): list(tiles) for name, tiles in arrays.items() if name.startswith("round_trip_")}
    if trips:
        captions = ["test image" if name == "clean" else f"{name.removeprefix('steps_')} steps" for name in trips]
        pictures.save(FIGURES / "round_trip.png", pictures.captioned(list(trips.values()), captions, [], settings.tile))
    else:
        remove(FIGURES / "round_trip.png")


def _draw_schedules(schedules: dict[str, NoiseSchedule], chosen: str, image: np.ndarray, settings: Report) -> None:
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
    pictures.save(FIGURES / "schedules_noised.png", pictures.captioned(rows, list(schedules), heads, settings.tile))


def _to_picture(image: torch.Tensor) -> np.ndarray:
    return ((image.numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _draw_figures(scores: dict, cost: dict) -> None:
    rows = [
        {
            "sampler": scores[name]["sampler"],
            "fid": scores[name]["classifier"]["fid"],
            "accuracy": scores[name].get("accuracy"),
            "nfe": cost[name]["nfe"],
        }
        for name in SAMPLERS
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


def _page(scores: dict, cost: dict, meta: dict, chosen: str) -> str:
    pair = scores["reconstruction"]
    size = "x".join(map(str, meta["shape"]))
    alex = number(pair["lpips"]["alex"]) if "alex" in pair["lpips"] else "not measured, its weights file is missing"
    denoisers = {"the network": "psnr", "Wiener filter": "psnr_wiener", "none": "psnr_zero"}
    parts = [
        f"# {meta['dataset']}: {' against '.join(scores[name]['sampler'] for name in SAMPLERS)}",
        _verdict(scores, cost),
        "![quality beside cost](report/comparison.png)",
        _sampler_table(scores, cost),
        _how_measured(scores),
        "## Samples",
        *(_sampler_section(name, scores[name]["sampler"], cost) for name in SAMPLERS),
        "## One-step denoising",
        f"{pair['n']:,} test images, noised to t = {pair['level']} and denoised with a single network evaluation. PSNR is the "
        "mean over images, for pixels in [-1, 1]. The Wiener filter is the best linear denoiser fitted on the training images.",
        table(["denoiser", "PSNR in dB ↑"], [[title, number(pair[key])] for title, key in denoisers.items()]),
        f"LPIPS of the network's images: {number(pair['lpips']['classifier'])} in the judge's feature maps; by AlexNet: {alex}.",
        "![test images, noisy, and denoised in three ways](report/reconstruction.png)",
        "![PSNR over the noise level](report/psnr.png)",
        *_likelihood_section(scores["likelihood"]),
        *_round_trip_section(scores["round_trip"]),
        "## Training",
        "![training and validation loss](report/loss.png)",
        "## Noise schedules",
        f"This model was trained on `{chosen}`.",
        "![alpha_bar and log SNR of all schedules](report/schedules.png)",
        "![an image under each of them, over t](report/schedules_noised.png)",
        "## Data",
        f"{meta['counts']['train']:,} training and {meta['counts']['test']:,} test images of {size}.",
        "![first training images](prepare_data/first_images.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(scores: dict, cost: dict) -> str:
    sentences = []
    for name in SAMPLERS:
        space, nfe = scores[name]["classifier"], cost[name]["nfe"]
        text = f"**{scores[name]['sampler']}** with {nfe:,} network evaluations reaches an FID of {number(space['fid'])}, "
        text += f"{space['fid'] / space['fid_floor']:.2f} times the {number(space['fid_floor'])} of real images"
        if "accuracy" in scores[name]:
            text += f"; {percent(scores[name]['accuracy'])} of its samples are seen as the class asked for"
        sentences.append(text + ".")
    fewer = number(cost["ddpm"]["nfe"] / cost["ddim"]["nfe"])
    faster = number(cost["ddpm"]["seconds"] / cost["ddim"]["seconds"], 2)
    fast = scores["ddim"]["sampler"]
    sentences.append(f"{fast} evaluates the network {fewer} times less often and was {faster} times as fast.")
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
    for name in SAMPLERS:
        space, inception = scores[name]["classifier"], scores[name]["inception"]
        quality = [number(space["fid"]), number(space["fid_floor"]), number(space["fid_excess"], 2)]
        quality += [f"{number(space['is'])} ({number(space['is_real'])})", percent(scores[name].get("accuracy"))]
        quality += [number(inception.get("fid")), number(inception.get("is"))]
        speed = [number(cost[name]["seconds"]), number(cost[name]["images_per_second"])]
        rows.append([scores[name]["sampler"], number(cost[name]["nfe"]), *quality, *speed])
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


def _likelihood_section(bits: dict) -> list[str]:
    variances = [name for name in ("small", "large", "learned") if name in bits]
    rows = [
        [name, f"{bits[name]['bits_per_dim']:.3f} ± {bits[name]['bits_per_dim_se']:.3f}", f"{bits['prior']:.5f}",
         f"{bits[name]['steps']:.3f}", f"{bits[name]['decoder']:.3f}"]
        for name in variances
    ]  # fmt: skip
    return [
        "## Likelihood",
        f"An upper bound on the bits per dimension of {bits['n']:,} test images, of 256 values per pixel, with the standard "
        f"error of the mean over images; {bits['evaluations']:,} of the network's steps were evaluated for each.",
        table(["variance", "bits/dim ↓", "prior", "steps", "decoder"], rows),
        "![bits per dimension of single steps](report/bits.png)",
    ]


def _round_trip_section(trips: dict) -> list[str]:
    steps_of = [name for name in trips if name.startswith("steps_")]
    if not steps_of:
        return ["## Encoding and decoding", f"The round trip is {trips['status']}."] if "status" in trips else []
    rows = [
        [name.removeprefix("steps_"), number(trips[name]["psnr"]), f"{trips[name]['mse']:.5f}", f"{trips[name]['latent_sd']:.3f}"]
        for name in steps_of
    ]
    return [
        "## Encoding and decoding",
        f"{trips['n']:,} test images, encoded to noise by DDIM inversion and decoded again in as many steps. MSE is per pixel in "
        "[0, 1]; the latents would be noise of standard deviation 1.",
        table(["steps", "PSNR in dB ↑", "MSE ↓", "sd of the latents"], rows),
        "![test images, and what came back](report/round_trip.png)",
    ]
