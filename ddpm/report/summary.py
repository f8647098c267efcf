"""Decides which statements about the scores hold, given their standard deviation over sets of samples.

Two values differ if they are more than two standard deviations of their difference apart. The standard deviation of real images
is taken to be that of the samples, since the test split seldom fills three sets.
"""

import math
from typing import Any

from ddpm.plots.numbers import share_error, share_of, supported

SAMPLES = ("ddpm", "ddim")  # of the stages sample_ddpm and sample_ddim
DEVIATIONS = 2
# PSNR is measured on the same images for all denoisers; a smaller difference is negligible.
NOTICEABLE_DB = 0.1
EXPECTED_AUC = 0.5
# The page warns where the floor is a larger share of the FID.
LARGE_FLOOR = 0.5


def summarize(scores: dict) -> dict[str, Any]:
    """Returns the facts that the first paragraphs of the page state. scores: samples/judged/scores.json.

    floor: per set of samples, unless FID is not measured, its FID against that of real images: unknown, equal, higher or lower.
    better: the set of samples with the lower FID, or unknown or equal.
    copying: per set of samples, its `copying_signs`.
    denoising, gain: whether the network is better, equal or worse than the Wiener filter, and by how many dB.
    large_floors: per set of samples whose FID is mostly floor, that share.
    """
    spaces = {name: scores[name]["classifier"] for name in SAMPLES}
    measured = {name: space for name, space in spaces.items() if "fid" in space}
    first, second = spaces.values()
    samplers = _compared(first["fid"], second["fid"], first.get("fid_sd"), second.get("fid_sd")) if measured else "unknown"
    gain = scores["reconstruction"]["psnr"] - scores["reconstruction"]["psnr_wiener"]
    return {
        "floor": {name: _compared(s["fid"], s["fid_floor"], s.get("fid_sd"), s.get("fid_sd")) for name, s in measured.items()},
        "better": {"lower": SAMPLES[0], "higher": SAMPLES[1]}.get(samplers, samplers),
        "copying": {name: copying_signs(scores[name]["memorization"], scores["n"], scores["sets"]) for name in SAMPLES},
        "denoising": "equal" if abs(gain) <= NOTICEABLE_DB else "better" if gain > 0 else "worse",
        "gain": gain,
        "large_floors": {
            name: space["fid_floor"] / space["fid"]
            for name, space in measured.items()
            if space["fid_floor"] > LARGE_FLOOR * space["fid"]
        },
    }


def differ(a: float, b: float, sd_a: float | None, sd_b: float | None) -> bool:
    """Returns whether two values differ by more than two standard deviations of their difference; False if one is unknown."""
    return sd_a is not None and sd_b is not None and abs(a - b) > DEVIATIONS * math.hypot(sd_a, sd_b)


def _compared(a: float, b: float, sd_a: float | None, sd_b: float | None) -> str:
    if None in (sd_a, sd_b):
        return "unknown"
    return "equal" if not differ(a, b, sd_a, sd_b) else "higher" if a > b else "lower"


def copying_signs(memorization: dict, n: int, sets: int) -> dict[str, str]:
    """Returns the signs of copied training images among `sets` sets of n samples: {score: its formatted value}.

    nn_auc is compared with 0.5, with the standard deviation of the rank statistic for that many samples and n test images from
    one distribution; near_copies is compared with that of test images, with the standard errors of counting.
    """
    signs, samples = {}, n * sets
    auc, copies, usual = (memorization[key] for key in ("nn_auc", "near_copies", "near_copies_test"))
    deviation = math.sqrt((samples + n + 1) / (12 * samples * n))
    if auc < EXPECTED_AUC - DEVIATIONS * deviation:
        signs["nn_auc"] = supported(auc, deviation)
    if copies > usual and differ(copies, usual, share_error(copies, samples), share_error(usual, n)):
        signs["near_copies"] = share_of(copies, samples)
    return signs
