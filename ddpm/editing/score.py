"""How well the missing half of test images is filled in: does the judge still see the class, and how far off are the pixels?"""

from functools import partial

import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.data.images import to_images
from ddpm.data.prepared import Prepared, held_out
from ddpm.editing.inpaint import named_mask, with_repaint_jumps
from ddpm.editing.tasks import inpaint_images
from ddpm.features.classifier import Classifier, predict
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import final_images

BATCH = 100
MAX_PSNR = 100.0  # dB, as in `evaluate`
MASK = "right"
REPLACED, REPAINT, SHOWN = "replacement", "RePaint", "mask_network"


def inpaint_methods(model: DiffusionModel, resamples: int) -> dict[str, tuple[int, bool]]:
    """Ways to fill in, by name: how often stretches are walked, and whether the network is shown the known pixels.

    Known pixels are replaced at every level in all of them; without more that is the first one (Song et al. 2021's "imputation").
    """
    methods = {REPLACED: (1, False), REPAINT: (resamples, False)}
    return methods | ({SHOWN: (1, True)} if model.network.takes_mask else {})


def score_inpainting(
    model: DiffusionModel, data: Prepared, judge: Classifier, count: int, steps: int, jump: int, resamples: int, seed: int
) -> dict:
    """{n, told, accuracy_real, METHOD: {nfe, accuracy, psnr}} of up to `count` test images whose right half is filled by DDIM.

    accuracy: share that the judge sees as their class, which the network is not told where it can do without; accuracy_real is
    that of the whole images. psnr: in dB, of the mean squared error over the filled pixels of all images.
    """
    x0, labels = held_out(data, count, seed, model.device)
    # Told the class, the network need not look at what is known.
    told = None if model.supports_cfg or not model.network.takes_labels else labels
    mask = named_mask(MASK, model.shape).to(model.device)
    scores = {"n": len(x0), "told": told is not None, "accuracy_real": _accuracy(judge, x0, labels)}
    for name, (times, shown) in inpaint_methods(model, resamples).items():
        plan = make_plan(model, change=partial(with_repaint_jumps, jump=jump, resamples=times), steps=steps)

        def fill(start: int, plan=plan, shown: bool = shown) -> Tensor:
            part = slice(start, start + BATCH)
            classes = None if told is None else told[part]
            return final_images(inpaint_images(model, plan, x0[part], mask, classes, seed + start, shown)).cpu()

        filled = torch.cat(processes.map_over_ranks(range(0, len(x0), BATCH), fill)).to(x0)
        missing = (mask == 0).expand_as(x0)
        error = (filled - x0)[missing].double().square().mean()
        scores[name] = {
            "nfe": plan.nfe,
            "accuracy": _accuracy(judge, filled, labels),
            "psnr": float((10 * torch.log10(4 / error)).clamp(max=MAX_PSNR)),
        }
    return scores


def _accuracy(judge: Classifier, images: Tensor, labels: Tensor) -> float:
    seen = predict(judge, to_images(images), images.device)[1].argmax(1)
    return float((seen == labels.cpu().numpy()).mean())
