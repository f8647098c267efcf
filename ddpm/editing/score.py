"""Scores inpainting: accuracy of the classifier on filled test images, and PSNR of the filled pixels."""

from functools import partial

import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.data.images import psnr_of, to_images
from ddpm.data.prepared import Prepared, held_out
from ddpm.editing.inpaint import named_mask, with_repaint_jumps
from ddpm.editing.tasks import inpaint_images
from ddpm.features.classifier import Classifier, predict
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.progress import final_images

BATCH = 100
MASK = "right"


def inpaint_methods(model: DiffusionModel, jump_n_sample: int) -> dict[str, tuple[int, bool]]:
    """Returns the methods by name: (jump_n_sample of RePaint, whether the network receives the known pixels).

    All replace the known pixels at every level, the first one without anything else (the imputation of Song et al. 2021).
    """
    methods = {"replacement": (1, False), "RePaint": (jump_n_sample, False)}
    return methods | ({"mask_network": (1, True)} if model.network.takes_mask else {})


def score_inpainting(
    model: DiffusionModel,
    data: Prepared,
    classifier: Classifier,
    count: int,
    steps: int,
    jump_length: int,
    jump_n_sample: int,
    seed: int,
) -> dict:
    """Fills the right half of up to `count` test images by DDIM and returns {n, told, accuracy_real, METHOD: {...}}.

    told: whether the network received the class; it does not if it was trained without it too.
    accuracy_real: share of the whole images that the classifier assigns to their class.
    METHOD: {nfe, accuracy of the filled images, psnr in dB of the mean squared error over the filled pixels of all images}.
    Accuracies are left out where the classifier predicts no classes.
    """
    x0, labels = held_out(data, count, seed, model.device)
    # With the class, the network need not use the known pixels.
    conditioning = None if model.supports_cfg or not model.network.takes_labels else labels
    mask = named_mask(MASK, model.shape).to(model.device)
    scores = {"n": len(x0), "told": conditioning is not None}
    if classifier.predicts_classes:
        scores["accuracy_real"] = _accuracy(classifier, x0, labels)
    for name, (repeats, pass_known) in inpaint_methods(model, jump_n_sample).items():
        plan = make_plan(model, change=partial(with_repaint_jumps, jump_length=jump_length, jump_n_sample=repeats), steps=steps)

        def fill(start: int, plan: SamplingPlan = plan, pass_known: bool = pass_known) -> Tensor:
            part = slice(start, start + BATCH)
            classes = None if conditioning is None else conditioning[part]
            return final_images(inpaint_images(model, plan, x0[part], mask, classes, seed + start, pass_known)).cpu()

        filled = torch.cat(processes.map_over_ranks(range(0, len(x0), BATCH), fill)).to(x0)
        missing = (mask == 0).expand_as(x0)
        error = (filled - x0)[missing].double().square().mean()
        scores[name] = {"nfe": plan.nfe}
        if classifier.predicts_classes:
            scores[name]["accuracy"] = _accuracy(classifier, filled, labels)
        scores[name]["psnr"] = float(psnr_of(error))
    return scores


def _accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    predicted = predict(classifier, to_images(images), images.device)[1].argmax(1)
    return float((predicted == labels.cpu().numpy()).mean())
