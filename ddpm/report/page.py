"""reports/index.md, from the numbers of the other stages, with the pictures of ddpm/reporting/gallery.py."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ddpm.core.files import read_json, read_npz, write_text
from ddpm.core.params import Section
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.plots.numbers import number, percent, table
from ddpm.report import gallery
from ddpm.report.edits import edits_section, training_section
from ddpm.report.guidance import guidance_section
from ddpm.report.score_tables import every_score, overview
from ddpm.report.summary import SAMPLERS, small_sample_notes, verdict

REPORTS = Path("reports")


class Report(Section):
    """The `report` section: how pictures are drawn."""

    tile: Annotated[int, Field(ge=8, le=1024)]
    columns: Annotated[int, Field(ge=1, le=100)]
    frame_ms: Annotated[int, Field(ge=20, le=10_000)]


def write_report(settings: Report, schedules: dict[str, NoiseSchedule], chosen: str) -> None:
    """Draw all pictures into reports/report, and write reports/index.md; `schedules` are those to show, `chosen` is in use.

    Raises InputError, naming the file and the stage that makes it, for results that are missing or damaged.
    """
    scores = read_json("samples/judged/scores.json", "evaluate")
    meta = read_json("data/prepared/meta.json", "prepare_data")
    # Not a dep: seconds differ from run to run, and pictures need not be drawn again because of them.
    metrics = read_json("reports/evaluate/metrics.json", "evaluate")
    cost = {name: metrics[name]["cost"] for name in SAMPLERS}
    titles = {name: scores[name]["sampler"] for name in SAMPLERS}
    for name in SAMPLERS:
        gallery.draw_samples(name, meta["class_names"], settings.columns, settings.tile, settings.frame_ms)
    arrays = read_npz("samples/judged/arrays.npz", "evaluate")
    gallery.draw_pairs(arrays, settings.tile)
    gallery.draw_schedules(schedules, chosen, arrays["reconstruction_clean"][0], settings.tile)
    gallery.draw_scores(scores, cost)
    gallery.draw_classes(arrays, titles, meta["class_names"])
    gallery.draw_curves(arrays)
    guidance = gallery.draw_guidance()
    edits = gallery.draw_edits(settings.tile, settings.frame_ms)
    asked = any(f"{name}_asked" in arrays for name in SAMPLERS)
    given = [
        *guidance_section(guidance),
        *edits_section(read_json(REPORTS / "edit/metrics.json", "edit"), asked),
    ]
    write_text(REPORTS / "index.md", _page(scores, cost, meta, chosen, asked, given, training_section(edits)))


def _page(scores: dict, cost: dict, meta: dict, chosen: str, asked: bool, given: list[str], film: list[str]) -> str:
    """given: the paragraphs on guidance and editing; film: those on the film of the training."""
    size = "x".join(map(str, meta["shape"]))
    parts = [
        f"# {meta['dataset']}: {' against '.join(scores[name]['sampler'] for name in SAMPLERS)}",
        verdict(scores, cost),
        "![quality beside cost](report/comparison.png)",
        overview(scores, cost),
        _how_measured(scores),
        *(["\n".join(f"- {note}" for note in small_sample_notes(scores))] if small_sample_notes(scores) else []),
        "## Samples",
        *(_sampler_section(name, scores[name]["sampler"], cost) for name in SAMPLERS),
        *given,
        *_sweep_section(),
        "## Every score",
        *every_score(scores),
        "![precision, recall, density and coverage beside real images](report/coverage.png)",
        *_class_section(asked),
        *_memorization_section(scores),
        *_denoising_section(scores["reconstruction"]),
        *_likelihood_section(scores["likelihood"]),
        *_round_trip_section(scores["round_trip"]),
        "## Training",
        "![training and validation loss](report/loss.png)",
        "The same training loss by noise level: the quarters of t, t = T being pure noise.",
        "![training loss in each quarter of t](report/loss_t.png)",
        *film,
        "## Noise schedules",
        f"This model was trained on `{chosen}`.",
        "![alpha_bar and log SNR of all schedules](report/schedules.png)",
        "![an image under each of them, over t](report/schedules_noised.png)",
        "## Data",
        f"{meta['counts']['train']:,} training and {meta['counts']['test']:,} test images of {size}.",
        "![first training images](prepare_data/first_images.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _how_measured(scores: dict) -> str:
    judge, n, sets = scores["classifier"], scores["n"], scores["sets"]
    missing = "" if scores["ddpm"]["inception"]["status"] == "ok" else " (not measured: its weights file is missing)"
    each = f"{sets:,} sets of n = {n:,} samples" if sets > 1 else f"one set of n = {n:,} samples"
    return (
        f"All scores are means over {each}, in the features of a classifier trained on the same images (the judge: "
        f"{percent(judge['accuracy'])} of the test images right, weights `{judge['sha256'][:8]}`). The row of real test images "
        "is the floor: what as many of them score, with the training split as the reference for both. Samples below the floor "
        "are closer to the training images than other real images are, which copying would also achieve. Values from another "
        f"judge or at another n are not comparable; only the FID and IS of the Inception{missing} are comparable with papers."
    )


def _sampler_section(name: str, title: str, cost: dict) -> str:
    return "\n\n".join([
        f"### {title}: {cost[name]['nfe']:,} network evaluations",
        f"![{title} samples](report/{name}_grid.png)",
        f"![{title}, from noise to image](report/{name}_denoising.gif)",
        f"![{title}: x_t above the prediction of x0, over t](report/{name}_denoising.png)",
    ])  # fmt: skip


def _sweep_section() -> list[str]:
    # Not a dep: the sweep is run on demand, and its page stands where it was.
    if not (REPORTS / "sweep/index.md").exists():
        return []
    return [
        "## Quality over steps",
        "Of the model that `sweep` was last run on; with tables in [sweep/index.md](sweep/index.md).",
        "![FID over network evaluations, by sampler](sweep/fid.png)",
    ]


def _class_section(asked: bool) -> list[str]:
    parts = ["## Classes", "![share of images by the class that the judge sees](report/classes.png)"]
    if asked:
        parts += [
            "Of the images of each class asked for, the percentage that the judge sees as each. What it gets wrong on real test "
            "images is its own error, not a sampler's.",
            "![class asked for against class seen](report/confusion.png)",
        ]
    return parts


def _memorization_section(scores: dict) -> list[str]:
    return [
        "## Nearest training images",
        "The samples that come closest to a training image, the most suspicious first, above that image. The number is the "
        "distance in pixels to it over the mean distance to the next 50; below 0.33 a sample counts as a near copy.",
        *(f"![{scores[name]['sampler']} samples above their nearest training images](report/{name}_neighbours.png)"
          for name in SAMPLERS),
    ]  # fmt: skip


def _denoising_section(pair: dict) -> list[str]:
    alex = number(pair["lpips"]["alex"]) if "alex" in pair["lpips"] else "not measured, its weights file is missing"
    denoisers = {"the network": "psnr", "Wiener filter": "psnr_wiener", "none": "psnr_zero"}
    return [
        "## One-step denoising",
        f"{pair['n']:,} test images, noised to t = {pair['level']} and denoised with a single network evaluation. PSNR is the "
        "mean over images, for pixels in [-1, 1]. The Wiener filter is the best linear denoiser fitted on the training images.",
        table(["denoiser", "PSNR in dB ↑"], [[title, number(pair[key])] for title, key in denoisers.items()]),
        f"LPIPS of the network's images: {number(pair['lpips']['classifier'])} in the judge's feature maps; by AlexNet: {alex}.",
        "![test images, noisy, and denoised in three ways](report/reconstruction.png)",
        "![PSNR over the noise level](report/psnr.png)",
    ]


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
