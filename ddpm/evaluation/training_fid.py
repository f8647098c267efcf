"""FID during a training: a few samples of its EMA weights in a few steps, from the same noise each time."""

import numpy as np

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.data.images import to_images
from ddpm.data.prepared import Prepared
from ddpm.evaluation.evaluator import CLASSIFIER, Evaluator
from ddpm.features.classifier import load_classifier
from ddpm.sampling.generate import generate
from ddpm.sampling.labels import proportional_conditioning
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan

# With these a FID changes least between 5, 10 and many steps (reports/sweep); they draw no noise but the first.
SAMPLER, SPACING = "dpmpp_2m", "log_snr"
BATCH_SIZE = 100


class TrainingFID:
    """The FID of a network in training; all processes generate and score the samples together.

    It is that of `evaluate`: the distance to the training images in the features of models/classifier, a mean over sets of n
    samples with n at most the number of test images. Image i draws its noise from (seed, "training_fid", i).

    classifier_sha256: SHA-256 of the classifier's weights; only FIDs of one classifier are comparable.
    """

    # What it reads beyond the deps of the stage `train`: a training does not resume after a change of these.
    INPUTS = ("ddpm/evaluation", "ddpm/features", "ddpm/sampling", "models/classifier")

    def __init__(self, model: DiffusionModel, data: Prepared, samples: int, steps: int, seed: int):
        """model: holds the network in training. steps: network evaluations per sample, T if it is smaller.

        Raises InputError if the classifier is missing, of other data or measures nothing, and for fewer than 2 images.
        """
        self.model, self.samples, self.seed = model, samples, seed
        classifier, config = load_classifier(data, model.device)
        if classifier.status != "ok":
            message = f"no FID is possible ({classifier.status}); set it to 0"
            raise InputError(message, key="train.score_every", where="params.yaml")
        self.classifier_sha256 = config["sha256"]
        self.evaluator = Evaluator(data, classifier, samples, seed, model.device)
        self.plan = make_plan(model, sampler=SAMPLER, spacing=SPACING, steps=min(steps, model.schedule.steps))
        self.labels = proportional_conditioning(model, samples)[2]

    def __call__(self) -> float:
        """Returns the FID of the weights that the network holds now, in eval mode."""
        images = processes.map_over_ranks(range(0, self.samples, BATCH_SIZE), self._generate)
        return self.evaluator.evaluate(np.concatenate(images), None, "training_fid", level="fid").scores[CLASSIFIER]["fid"]

    def _generate(self, first: int) -> np.ndarray:
        count = min(BATCH_SIZE, self.samples - first)
        labels = None if self.labels is None else self.labels[first : first + count]
        *_, last = generate(self.model, self.plan, labels, count, (self.seed, "training_fid"), BATCH_SIZE, first)
        return to_images(last.x)
