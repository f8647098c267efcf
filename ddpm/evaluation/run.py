"""Opens what `evaluate`, `guidance` and `sweep` share: device, data set, classifier, model and Evaluator."""

from types import SimpleNamespace
from typing import NamedTuple

import torch

from ddpm.core.device import setup
from ddpm.core.weights import weights_id
from ddpm.data.prepared import Prepared, open_prepared
from ddpm.evaluation.evaluator import Evaluator
from ddpm.features.classifier import Classifier, load_classifier
from ddpm.networks.checkpoints import CheckpointName, check_data
from ddpm.sampling.model import DiffusionModel, load_to_score


class Run(NamedTuple):
    """The inputs of a stage that scores samples of one model.

    classifier_config: the content of models/classifier/config.json: test accuracy, SHA-256, number of threads and so on.
    weights: `weights_id` of the model.
    """

    data: Prepared
    classifier: Classifier
    classifier_config: dict
    model: DiffusionModel
    weights: dict
    seed: int
    device: torch.device

    def evaluator(self, samples: int) -> Evaluator:
        """Returns the Evaluator of this data for sets of at least `samples` samples."""
        return Evaluator(self.data, self.classifier, samples, self.seed, self.device)


def open_run(p: SimpleNamespace, checkpoint: CheckpointName) -> Run:
    """Loads data/prepared, models/classifier and a checkpoint of models/ddpm.

    p: the sections dataset, seed, prepare_data and runtime. Raises InputError if the models were trained on other data.
    """
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    classifier, config = load_classifier(data, device)
    model = load_to_score(checkpoint, device)
    check_data(model.data, data.identity())
    return Run(data, classifier, config, model, weights_id(checkpoint, model.network), p.seed, device)
