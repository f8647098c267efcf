"""Raw images -> data/prepared, and a picture of the first ones."""

import sys
from pathlib import Path

from ddpm import params
from ddpm.data.datasets import DatasetName
from ddpm.data.prepare import prepare
from ddpm.data.prepared import PrepareData, open_prepared
from ddpm.judge.weights import PretrainedJudges, get_weights
from ddpm.reporting.pictures import first_images
from ddpm.runtime import Runtime, run_stage, setup, usable_cpus
from ddpm.scratch import dvc_forces

PICTURE = Path("reports/prepare_data/first_images.png")


def main() -> None:
    p = params.load(dataset=DatasetName, prepare_data=PrepareData, evaluate=PretrainedJudges, runtime=Runtime)
    setup(p.runtime)
    # Found missing here, a weights file costs no training.
    get_weights(p.evaluate)
    meta = prepare(p.dataset, p.prepare_data, workers=p.runtime.workers or usable_cpus(), fresh=dvc_forces())
    data = open_prepared(p.dataset, p.prepare_data)
    first_images(PICTURE, data.train.images, data.train.labels, data.class_names)
    size = "x".join(map(str, meta["shape"]))
    if len(data.class_names) == 1:
        print("warning: all images are of one class, from which a judge learns nothing: its scores tell little", file=sys.stderr)
    print(f"{p.dataset}: {meta['counts']['train']:,} training and {meta['counts']['test']:,} test images of {size}")


if __name__ == "__main__":
    run_stage(main)
