"""What the numbers say, in one paragraph that calls nothing a difference which the spread over sets may have made.

A difference counts from two standard deviations on. The spread of real images is taken to be that of samples, since the test
split seldom fills three sets.
"""

import math

from ddpm.plots.numbers import measured, number, share_error, share_of, supported

SAMPLERS = ("ddpm", "ddim")
DEVIATIONS = 2
# Denoising is measured on the same images for all denoisers, so less than this is no gain to speak of.
NOTICEABLE_DB = 0.1
RIGHT_AUC = 0.5
MINIMAL_SETS = 3
IS_MINIMUM = 1_000
# Above this share of the FID, a reader should know that the floor makes up so much of it.
LARGE_FLOOR = 0.5


def verdict(scores: dict, cost: dict) -> str:
    """One paragraph. scores: samples/judged/scores.json; cost: per sampler nfe, seconds and images_per_second."""
    n, sets = scores["n"], scores["sets"]
    sentences = [_quality(scores[name], cost[name], n, sets) for name in SAMPLERS]
    sentences += [_between(*(scores[name] for name in SAMPLERS)), _speed(scores, cost)]
    sentences += [_memorization(scores[name], n, sets) for name in SAMPLERS]
    if not any(copying(scores[name]["memorization"], n, sets) for name in SAMPLERS):
        sentences.append("Nothing suggests that training images were copied.")
    sentences.append(_denoising(scores["reconstruction"]))
    return " ".join(filter(None, sentences))


def apart(a: float, b: float, sd_a: float | None, sd_b: float | None) -> bool:
    """Whether two values differ by more than two standard deviations of their difference; never where a spread is unknown."""
    return sd_a is not None and sd_b is not None and abs(a - b) > DEVIATIONS * math.hypot(sd_a, sd_b)


def copying(memorization: dict, n: int, sets: int) -> list[str]:
    """The signs of copied training images among all samples, `sets` of n, as clauses; none is the good case.

    nn_auc is held against its standard deviation for so many samples and n test images from one distribution, the share of near
    copies against that of counting.
    """
    signs, samples = [], n * sets
    auc, copies, usual = (memorization[key] for key in ("nn_auc", "near_copies", "near_copies_test"))
    deviation = math.sqrt((samples + n + 1) / (12 * samples * n))
    if auc < RIGHT_AUC - DEVIATIONS * deviation:
        signs.append(
            f"they lie closer to the training images than test images do (nn_auc {supported(auc, deviation)}; 0.5 is right)"
        )
    if apart(copies, usual, share_error(copies, samples), share_error(usual, n)) and copies > usual:
        signs.append(
            f"{share_of(copies, samples)} of them are near copies of a training image, against {share_of(usual, n)} of test "
            "images"
        )
    return signs


def _quality(of: dict, cost: dict, n: int, sets: int) -> str:
    space = of["classifier"]
    fid, floor, sd = space["fid"], space["fid_floor"], space.get("fid_sd")
    text = f"**{of['sampler']}** with {cost['nfe']:,} network evaluations has an FID of {measured(fid, sd)}"
    text += f" (n = {n:,}, {sets:,} set{'s' if sets > 1 else ''}), against {supported(floor, sd)} of real test images: "
    if sd is None:
        text += "how far such values scatter is unknown with fewer than 3 sets"
    elif not apart(fid, floor, sd, sd):
        text += "no difference beyond two standard deviations"
    elif fid > floor:
        text += f"{fid / floor:.1f} times as much"
    else:
        text += "closer to the training images than other real images are, as copies would be"
    if "accuracy" in of:
        text += f"; {share_of(of['accuracy'], n * sets)} of its samples are seen as the class asked for"
    return text + "."


def _between(first: dict, second: dict) -> str:
    a, b = first["classifier"], second["classifier"]
    if None in (a.get("fid_sd"), b.get("fid_sd")):
        return "Which of the two is better cannot be said without a spread: draw at least three sets."
    if not apart(a["fid"], b["fid"], a["fid_sd"], b["fid_sd"]):
        return f"By FID, {first['sampler']} and {second['sampler']} do not differ beyond two standard deviations."
    better, worse = (first, second) if a["fid"] < b["fid"] else (second, first)
    return f"By FID, {better['sampler']} is better than {worse['sampler']}."


def _speed(scores: dict, cost: dict) -> str:
    first, second = (scores[name]["sampler"] for name in SAMPLERS)
    evaluations, seconds = (cost["ddpm"][key] / cost["ddim"][key] for key in ("nfe", "images_per_second"))
    text = f"{second} evaluates the network {number(evaluations)} times less often than {first}"
    return text + f" and draws {number(1 / seconds, 2)} times as many images per second."


def _memorization(of: dict, n: int, sets: int) -> str:
    signs = copying(of["memorization"], n, sets)
    if not signs:
        return ""
    advice = "typical or smooth images would as well, so look at the nearest training images below"
    return f"**{of['sampler']}'s samples may repeat training images**: {'; '.join(signs)}; {advice}."


def _denoising(pair: dict) -> str:
    gain = pair["psnr"] - pair["psnr_wiener"]
    if gain > NOTICEABLE_DB:
        return f"In one step the network denoises {gain:.1f} dB better than the best linear filter."
    how = f"{-gain:.1f} dB **worse** than" if gain < -NOTICEABLE_DB else "**no better** than"
    text = f"In one step the network denoises {how} the best linear filter: it has not learned enough for the other numbers "
    return text + "to mean much."


def small_sample_notes(scores: dict) -> list[str]:
    """What a reader must bear in mind at this n, as sentences."""
    n, sets = scores["n"], scores["sets"]
    notes = []
    if sets < MINIMAL_SETS:
        notes.append(
            f"Spread is unknown: there {'are only two sets' if sets == 2 else 'is only one set'} of n = {n:,}, and a standard "
            "deviation wants three. Values are cut to two digits; small differences between them mean nothing."
        )
    if n < IS_MINIMUM:
        notes.append(
            f"IS wants at least {IS_MINIMUM:,} images per set and has {n:,} here, so it comes out low: compare it with that of "
            "real images in this table, never with another n."
        )
    shares = {scores[name]["sampler"]: scores[name]["classifier"] for name in SAMPLERS}
    bound = {title: space for title, space in shares.items() if space["fid_floor"] > LARGE_FLOOR * space["fid"]}
    if bound:
        share = " and ".join(f"{100 * space['fid_floor'] / space['fid']:.0f}% for {title}" for title, space in bound.items())
        notes.append(
            f"The floor is a large part of the FID ({share}): at n = {n:,} it measures mostly that the set is finite. FID∞ is "
            "extrapolated to infinitely many images, and FID excess is what is left above the floor."
        )
    return notes
