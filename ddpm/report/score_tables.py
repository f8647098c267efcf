"""Tables of what `evaluate` measured: samplers beside real test images, and each score with what it means."""

from typing import NamedTuple

from ddpm.plots.figures import REAL
from ddpm.plots.numbers import decimals, measured, number, percent, share_of, supported, table
from ddpm.report.summary import MINIMAL_SETS, SAMPLERS


class Score(NamedTuple):
    """A row of the table: where its value stands, which way is better, and what it says."""

    key: str
    title: str
    better: str
    meaning: str


# Measured in a feature space; their keys stand in `classifier` and in `inception`.
IN_SPACE = [
    Score("fid", "FID", "↓", "distance between normal distributions fitted to the features of samples and of training images"),
    Score("fid_excess", "FID excess", "↓", "FID above that of as many real test images (the floor); below 0 may be copying"),
    Score("fid_infinity", "FID∞", "↓", "FID extrapolated to infinitely many images; scatters more than the FID"),
    Score(
        "fid_test", "FID to the test split", "↓", "the first set beside test images, which copies of training images do not fit"
    ),
    Score("kid", "KID", "↓", "distance between the distributions, without a bias by n: around 0, also below, if they are equal"),
    Score("is", "IS", "↑", "Inception Score: is each image clearly of one class, and is every class there?"),
    Score("precision", "precision", "↑", "share of samples that lie among the training images: do they look real?"),
    Score("recall", "recall", "↑", "share of training images that lie among the samples: is everything drawn?"),
    Score("density", "density", "↑", "how deep samples lie among the training images; may exceed 1"),
    Score("coverage", "coverage", "↑", "share of training images with a sample in their neighbourhood"),
]

IN_ALL = [
    Score(
        "classes.tv",
        "class TV",
        "↓",
        "total variation to the class shares of training images; for real images, what as many random ones have",
    ),
    Score(
        "memorization.nn_auc",
        "nn_auc",
        "→ 0.5",
        "chance that a sample is farther from its nearest training image than a test image is from its own; below 0.5 is copying",
    ),
    Score(
        "memorization.near_copies",
        "near copies",
        "↓",
        "share of samples much closer to one training image than to its next 50; test images show what is usual",
    ),
    Score(
        "memorization.authenticity",
        "authenticity",
        "↑",
        "share of samples farther from their nearest training image than that one is from other training images",
    ),
    Score("diversity.classifier", "diversity", "→ 1", "LPIPS between random samples over that of test images; low is a collapse"),
    Score("diversity.alex", "diversity (AlexNet)", "→ 1", "the same, in the features of AlexNet"),
]

SHARES = {"memorization.near_copies", "memorization.authenticity"}


def overview(scores: dict, cost: dict) -> str:
    """Sampler, network evaluations, quality and cost, and a row for real test images."""
    n, sets = scores["n"], scores["sets"]
    header = [
        "images",
        "network evaluations ↓",
        "FID ↓",
        "IS ↑",
        "precision ↑",
        "recall ↑",
        "as asked ↑",
        "seconds ↓",
        "images/s ↑",
    ]
    rows = []
    for name in SAMPLERS:
        of, space = scores[name], scores[name]["classifier"]
        quality = [_value(space, key) for key in ("fid", "is", "precision", "recall")]
        speed = [number(cost[name][key]) for key in ("seconds", "images_per_second")]
        rows.append([of["sampler"], number(cost[name]["nfe"]), *quality, share_of(of.get("accuracy"), n * sets), *speed])
    real = _real_space(scores, "classifier")
    quality = [real["fid"], real["is"], real["precision"], real["recall"], percent(scores["classifier"]["accuracy"])]
    return table(header, [*rows, [REAL, "-", *quality, "-", "-"]])


def every_score(scores: dict) -> list[str]:
    """A table for each feature space that was measured, and one for what needs none; each score with its meaning."""
    n, sets = scores["n"], scores["sets"]
    spread = "± is the standard deviation over these sets; behind a percentage, " if sets >= MINIMAL_SETS else "± is "
    parts = [
        f"n = {n:,} images per set, {sets:,} set{'s' if sets > 1 else ''}. {spread}the standard error of counting. A value "
        "without ± has an unknown spread, and two digits. Real test images are scored as if they were samples: their FID is the "
        "floor. The arrow says which way is better.",
        "In the features of the judge:",
        _table(scores, IN_SPACE, "classifier"),
    ]
    if all(scores[name]["inception"]["status"] == "ok" for name in SAMPLERS):
        parts += ["In the features of the Inception, comparable with papers:", _table(scores, IN_SPACE, "inception")]
    else:
        parts.append("In the features of the Inception: not measured, its weights file is missing.")
    return [*parts, "Classes, memorization and diversity:", _table(scores, IN_ALL, None)]


def _table(scores: dict, wanted: list[Score], space: str | None) -> str:
    real = _real_space(scores, space) if space else _real_images(scores)
    rows = []
    for score in wanted:
        samples = scores["n"] * scores["sets"]
        values = [_cell(scores[name][space] if space else scores[name], score.key, samples) for name in SAMPLERS]
        if any(value != "-" for value in values):
            rows.append([f"{score.title} {score.better}", *values, real.get(score.key, "-"), score.meaning])
    return table(["score", *(scores[name]["sampler"] for name in SAMPLERS), REAL, "meaning"], rows, text=(0, 4))


def _cell(tree: dict, path: str, samples: int) -> str:
    *parents, key = path.split(".")
    for parent in parents:
        tree = tree[parent]
    return share_of(tree[key], samples) if path in SHARES else _value(tree, key)


def _value(space: dict, key: str) -> str:
    if key == "fid_excess":
        # What is left of the FID above the floor scatters as the FID does, and has its decimals.
        return measured(space[key], space.get("fid_sd"), places=decimals(space["fid"], space.get("fid_sd")))
    return measured(space.get(key), space.get(f"{key}_sd"))


def _real_space(scores: dict, space: str) -> dict[str, str]:
    """Scores of real test images, with the digits of the samples' scores beside which they stand."""
    of = scores["ddpm"][space]
    known = {"fid": of["fid_floor"], "kid": of["kid_floor"], "is": of["is_real"]}
    measured_alone = {key: measured(value) for key, value in scores["real"][space].items() if key != "status"}
    return {key: supported(value, of.get(f"{key}_sd")) for key, value in known.items()} | measured_alone


def _real_images(scores: dict) -> dict[str, str]:
    of, n = scores["ddpm"], scores["n"]
    return {
        "classes.tv": measured(of["classes"]["tv_floor"]),
        "memorization.nn_auc": "0.5",
        "memorization.near_copies": share_of(of["memorization"]["near_copies_test"], n),
        "memorization.authenticity": share_of(of["memorization"]["authenticity_test"], n),
        "diversity.classifier": "1",
        "diversity.alex": "1",
    }
