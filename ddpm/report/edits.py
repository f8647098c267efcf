"""Editing in the report: pictures and films of what the stage `edit` made."""

import numpy as np
from PIL import Image

from ddpm.plots.image_grid import captioned
from ddpm.plots.numbers import number, percent, table
from ddpm.plots.video import strip_film, training_frames

# Picture -> arrays (K, H, W, C) of samples/edits.npz that are its rows, with the caption of each. Of a name that ends with a
# star all arrays are taken that begin with it; the rest of their names stands in the caption.
PICTURES: dict[str, dict[str, str]] = {
    "inpainting": {"inpaint_image": "test image", "inpaint_known": "known", "inpaint_filled_*": "by {}"},
    "editing": {"edit_image": "test image", "edit_strength_*": "strength {}", "edit_varied_*": "varied, {}"},
    "interpolation": {"interpolate_sample_*": "samples {}", "interpolate_image_*": "test images {}"},
}

HOLD = {"interpolation": 0.0, "training": 2.0}
COLUMNS = 10


def picture(arrays: dict[str, np.ndarray], rows: dict[str, str], tile: int) -> Image.Image:
    """Rows of images, each with its caption."""
    tiles, captions = [], []
    for name, caption in rows.items():
        found = [key for key in arrays if key.startswith(name[:-1])] if name.endswith("*") else [name]
        tiles += [list(arrays[key]) for key in found]
        captions += [caption.format(key.removeprefix(name[:-1]).replace("_", " ")) for key in found]
    return captioned(tiles, captions, [], tile)


def films(arrays: dict[str, np.ndarray], tile: int) -> dict[str, list[Image.Image]]:
    """Frames by the name of the film; none of the training for a model without snapshots."""
    between = np.stack([arrays[key] for key in arrays if key.startswith("interpolate_film_")], axis=1)
    steps = arrays["training_step"]
    return {
        "interpolation": strip_film(between, between.shape[1], tile),
        "training": training_frames(arrays["training_images"], steps.tolist(), COLUMNS, tile) if len(steps) else [],
    }


def edits_section(scores: dict, told: bool) -> list[str]:
    """The paragraphs of the page. scores: reports/edit/metrics.json; told: whether the network takes a class or text."""
    filled = scores["inpaint"]
    methods = [name for name in filled if isinstance(filled[name], dict)]
    return [
        "## Editing",
        f"Inpainting fills the right half of test images{', told their class' if told else ''}; known pixels come back exactly.",
        "![test images, what is known of them, and how it was filled](report/inpainting.png)",
        *_inpainting_table(filled, methods),
        "Image to image ([SDEdit](https://arxiv.org/abs/2108.01073)): noise up to `strength` of T, then down again. Variations "
        "mix the image's latent with fresh noise.",
        "![test images, edited and varied](report/editing.png)",
        "Between two samples, and between two test images, whose ends are the images themselves: the latents in between lie on "
        "the arc from one to the other.",
        "![from one image to another](report/interpolation.png)",
        "![the same, as a film](report/interpolation.gif)",
    ]


def _inpainting_table(filled: dict, methods: list[str]) -> list[str]:
    rows = [
        [name.replace("_", " "), f"{filled[name]['nfe']:,}", percent(filled[name]["accuracy"]), number(filled[name]["psnr"])]
        for name in methods
    ]
    return [
        f"How many of {filled['n']:,} test images the judge sees as what they were, filled by a network that is "
        f"{'' if filled['told'] else 'not '}told the class "
        f"({percent(filled['accuracy_real'])} of the whole images), and PSNR in the filled half.",
        table(["filled by", "NFE", "accuracy ↑", "PSNR in dB ↑"], rows),
    ]


def training_section(arrays: dict[str, np.ndarray]) -> list[str]:
    """The film of the training, for a model with snapshots."""
    if not len(arrays["training_step"]):
        return []
    return [
        "The same noise, drawn with the averaged weights of each snapshot:",
        "![samples of the network as it learns](report/training.gif)",
    ]
