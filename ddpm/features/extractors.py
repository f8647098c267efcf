"""EXTRACTORS: the networks in whose features images are compared; and AlexNet for LPIPS."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError, first_line
from ddpm.core.progress import Progress
from ddpm.data.images import to_tensor
from ddpm.features.classifier import Classifier, predict
from ddpm.features.pretrained import ALEXNET, INCEPTION, PretrainedSettings, WeightsFile, download, find_weights, weights_folder

INCEPTION_BATCH = 50
INCEPTION_LAYERS = ["2048", "logits_unbiased"]

# Function (images uint8 (N, H, W, C), name for the progress line) -> features float64 (N, D), and class probabilities float64
# (N, K) or None for a network that predicts no classes.
Extract = Callable[[np.ndarray, str], tuple[np.ndarray, np.ndarray | None]]


class Extractor(NamedTuple):
    """A network in whose features images are compared.

    title: its description in the report, after "In the features of".
    load: function (device, weights, classifier) -> Extract. weights is the path of its weights file, None if it has none;
        classifier is the one that was trained on the data set.
    weights: its published weights file, or None. While the file is missing, the status "weights missing" replaces the scores.
    """

    title: str
    load: Callable[[torch.device, Path | None, Classifier], Extract]
    weights: WeightsFile | None = None


def load_classifier_features(device: torch.device, weights: None, classifier: Classifier) -> Extract:
    def extract(images: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        features, probabilities = predict(classifier, images, device)
        return features, probabilities if classifier.predicts_classes else None

    return extract


class Inception:
    """The Inception network of the original FID, in TensorFlow's arithmetic, by torch-fidelity."""

    def __init__(self, device: torch.device, weights: Path, classifier: Classifier | None = None):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.device = device
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", INCEPTION_LAYERS, feature_extractor_weights_path=str(weights)
        ).to(device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns features (N, 2048) and probabilities (N, 1008); one channel is repeated to three."""
        with Progress(f"inception {name}", len(images), "images") as progress:

            def extract_batch(start: int) -> tuple[np.ndarray, Tensor]:
                batch = to_tensor(images[start : start + INCEPTION_BATCH], self.device)
                features, logits = self.network(batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch)
                progress.advance(len(batch) * processes.world_size())
                return features.cpu().double().numpy(), logits.cpu()

            starts = range(0, len(images), INCEPTION_BATCH)
            features, logits = zip(*processes.map_over_ranks(starts, extract_batch), strict=True)
        return np.concatenate(features), torch.cat(logits).double().softmax(1).numpy()


EXTRACTORS: dict[str, Extractor] = {
    "classifier": Extractor("the classifier, which is trained on the same data", load_classifier_features),
    "inception": Extractor("the Inception network, comparable with papers", Inception, INCEPTION),
}


def get_weights(settings: PretrainedSettings) -> None:
    """Downloads missing weights files of EXTRACTORS and of LPIPS, if `download_weights` is set.

    Raises InputError, with the file and its folder, if the Inception network's is required and missing.
    """
    if settings.download_weights:
        for file in (*(extractor.weights for extractor in EXTRACTORS.values()), ALEXNET):
            if file and find_weights(file) is None:
                download(file)
    inception = EXTRACTORS["inception"].weights
    if settings.require_inception and find_weights(inception) is None:
        raise InputError(
            f"is true, but {inception.name} is not in {weights_folder()}; put it there, or set DDPM_WEIGHTS_ROOT to its folder, "
            "evaluate.download_weights to true, or evaluate.require_inception to false",
            key="evaluate.require_inception", where="params.yaml",
        )  # fmt: skip


def load_lpips_alex(path: Path, device: torch.device) -> torch.nn.Module:
    """Returns LPIPS 0.1 on AlexNet: the trunk from torchvision's weights file, the linear layers from the lpips package.

    Raises InputError for a file that cannot be loaded.
    """
    import lpips

    with warnings.catch_warnings():
        # lpips builds its AlexNet through an argument that torchvision deprecates.
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    try:
        trunk = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises many types
        raise InputError(f"cannot be loaded ({first_line(error)}); replace it", key=path) from None
    # torchvision numbers the layers "features.N.weight"; lpips keeps N, behind the name of one of five slices.
    state = network.net.state_dict()
    for key in state:
        layer = re.fullmatch(r"slice\d\.(\d+\.\w+)", key).group(1)
        state[key] = trunk[f"features.{layer}"]
    network.net.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)
