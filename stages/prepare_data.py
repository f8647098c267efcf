"""Raw images -> data/prepared, and a picture of the first images."""

import sys
from pathlib import Path

import numpy as np

from ddpm.core import params
from ddpm.core.device import Runtime, setup, usable_cpus
from ddpm.core.scratch import fresh_start
from ddpm.core.stage import run_stage
from ddpm.data.prepared import Prepared, open_prepared
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DatasetName
from ddpm.datasets.settings import PrepareData
from ddpm.features.extractors import get_weights
from ddpm.features.pretrained import PretrainedSettings
from ddpm.plots.image_grid import class_grid, plain_grid

MAX_CLASSES = 10  # in the last line
PICTURE = Path("reports/prepare_data/first_images.png")
ROWS, COLUMNS, TILE = 3, 10, 40  # of the picture; with classes each has a row


def classes_of(data: Prepared) -> str:
    counts = [np.bincount(split.labels, minlength=len(data.class_names)) for split in (data.train, data.test)]
    classes = [f"{name!r} {a:,} + {b:,}" for name, a, b in zip(data.class_names, *counts, strict=True)]
    more = ", ..." if len(classes) > MAX_CLASSES else ""
    return f"{len(classes):,} classes (training + test): {', '.join(classes[:MAX_CLASSES])}{more}"


def main() -> None:
    p = params.load(dataset=DatasetName, prepare_data=PrepareData, evaluate=PretrainedSettings, runtime=Runtime)
    setup(p.runtime)
    # Here, so that a missing weights file is an error before any training.
    get_weights(p.evaluate)
    meta = prepare(p.dataset, p.prepare_data, workers=p.runtime.workers or usable_cpus(), fresh=fresh_start())
    data = open_prepared(p.dataset, p.prepare_data.as_written())
    if data.class_names:
        class_grid(PICTURE, data.train.images, data.train.labels, data.class_names, COLUMNS, TILE)
        classes = classes_of(data)
    else:
        plain_grid(PICTURE, data.train.images[: ROWS * COLUMNS], COLUMNS, TILE)
        classes = "no classes, so model.conditioning is to be none or mask"
    if len(data.class_names) == 1:
        warning = (
            "all images are of one class; the features for scores are trained on their orientations instead; "
            "prepare_data.label: none reads images without classes"
        )
        print(f"warning: {warning}", file=sys.stderr)
    size, counts = "x".join(map(str, meta["shape"])), meta["counts"]
    print(f"{p.dataset}: {counts['train']:,} training and {counts['test']:,} test images of {size}; {classes}")


if __name__ == "__main__":
    run_stage(main)
