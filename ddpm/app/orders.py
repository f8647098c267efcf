"""What is asked of a model: the sampler and its options, classes and texts, and the noise of a seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.diffusion.variance import VARIANCES
from ddpm.files import InputError
from ddpm.networks.captions import split_words
from ddpm.params import lookup, make
from ddpm.sampling.grid import SPACINGS
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.samplers import SAMPLERS, Sampler, ancestral_step
from ddpm.sampling.settings import GridChange, Plan, SampleDDIM, SampleDDPM

STEPS = 50
MOST_GUIDANCE = 50.0
CHOICES: dict[str, Sampler] = {"ddpm": Sampler("DDPM", ancestral_step, ("variance",), stochastic=True), **SAMPLERS}
NO_CLASS = "none"


def make_plan(
    model: DiffusionModel,
    change: GridChange | None = None,
    *,
    sampler: str = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    variance: str = "small",
    spacing: str = "trailing",
    guidance: float = 1.0,
    thresholding: str = "clip",
) -> Plan:
    """How to draw from a model. steps: None is all T for ddpm, and up to 50 for others; eta is ddim's, variance ddpm's; change:
    what is done to the grid (`jumped`).

    Raises InputError, beginning with the option, for one that is unknown, out of range, or not possible with this model.
    """
    lookup(CHOICES, sampler, "sampler")
    total = model.schedule.steps
    if steps is not None and not 1 <= steps <= total:
        raise InputError(f"steps: {steps} is out of range; this model has T = {total}, so give 1 to {total}")
    if not guidance <= MOST_GUIDANCE:
        raise InputError(f"guidance: {guidance} is out of range; give 0 to {MOST_GUIDANCE:g}")
    lookup(SPACINGS, spacing, "spacing")
    lookup(VARIANCES, variance, "variance")
    common = {
        "samples": 1, "batch_size": 1, "checkpoint": "final", "thresholding": thresholding, "threshold_quantile": 0.995,
        "guidance": float(guidance), "guidance_interval": "all",
    }  # fmt: skip
    if sampler == "ddpm":
        for name, value, usual in (("eta", eta, 0.0), ("spacing", spacing, "trailing")):
            if value != usual:
                raise InputError(f"{name}: {value!r} has no meaning for sampler 'ddpm'; leave it out")
        return make(SampleDDPM, variance=variance, **common).plan(model, steps, change)
    if variance != "small":
        raise InputError(f"variance: {variance!r} has no meaning for sampler {sampler!r}, only for ddpm; leave it out")
    chosen = {"sampler": sampler, "steps": steps or min(STEPS, total), "eta": float(eta), "spacing": spacing, "churn": 0.0}
    return make(SampleDDIM, **chosen, **common).plan(model, change)


def class_number(model: DiffusionModel, name: str) -> int:
    """The number of a class by its name, in whatever case, or by the number itself. Raises InputError for an unknown one."""
    names = model.data["class_names"]
    for k, known in enumerate(names):
        if name.strip().lower() == known.lower():
            return k
    number = name.strip()
    # Python refuses to read numbers of thousands of digits.
    if number.isdecimal() and len(number) < 10 and int(number) < len(names):
        return int(number)
    return names.index(lookup(dict.fromkeys(names), name, "label"))


def tell(
    model: DiffusionModel, count: int, labels: Sequence[str] = (), texts: Sequence[str] = (), guidance: float = 1.0
) -> tuple[Tensor | None, list[str]]:
    """What the network is told of `count` images, and what to write beside each: labels (names or numbers of classes) or texts,
    in turn; without either, every class in turn. The label `none` is no class, and so is an empty text; with guidance 0 nothing
    is told.

    Raises InputError for what the model does not take or know, and for what guidance 0 would ignore.
    """
    if labels and texts:
        raise InputError("text: cannot be given together with label; a text says what to draw by itself")
    if guidance == 0 and (texts or set(labels) - {NO_CLASS}):
        raise InputError("guidance: 0 draws without class or text; leave label and text out, or raise it")
    if guidance == 0:
        return None, [""] * count
    if texts:
        if not all(split_words(text) for text in texts):
            _check_knows_no_class(model)
        read = model.read(texts)
        turns = torch.arange(count) % len(texts)
        return read[turns.to(read.device)], [texts[k] for k in turns.tolist()]
    names = model.data["class_names"]
    if not labels:
        numbers = model.balanced_labels(count)
        return numbers, [""] * count if numbers is None else [names[k] for k in numbers.tolist()]
    if not model.network.conditional:
        raise InputError("label: this model takes no class (model.conditioning); leave it out")
    if set(labels) == {NO_CLASS}:
        _check_knows_no_class(model)
        return None, [""] * count
    if NO_CLASS in labels:
        raise InputError(f"label: {NO_CLASS!r} cannot be mixed with classes; draw twice")
    numbers = [class_number(model, name) for name in labels]
    chosen = [numbers[k % len(numbers)] for k in range(count)]
    return torch.tensor(chosen, device=model.device), [names[k] for k in chosen]


def _check_knows_no_class(model: DiffusionModel) -> None:
    if not model.knows_no_class:
        raise InputError("label: no class needs a model that was trained without its class too (train.condition_dropout above 0)")


def image_noise(model: DiffusionModel, seed: int, count: int, draws: int, first: int = 0, use: str = "draw") -> ImageNoise:
    """All the noise of images first .. first + count - 1 of a seed, of its own for each use: an image that was drawn from a
    seed is not to meet that noise again when it is edited. Raises InputError for a seed that is none."""
    if seed < 0:
        raise InputError(f"seed: {seed} is out of range; give 0 or more")
    height, width, channels = model.shape
    return ImageNoise(model.device, (count, channels, height, width), first, draws, "studio", use, seed)


def latent_of(model: DiffusionModel, seed: int) -> Tensor:
    """The noise (1, C, H, W) that image 0 of a seed is drawn from."""
    return image_noise(model, seed, 1, 1)()
