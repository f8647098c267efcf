"""NETWORKS: a new architecture is one class, its settings and one row; everything else finds it by `model.type`."""

from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from conftest import edit_params, error_of, link_code
from test_bad_input import main_of
from torch import nn

from ddpm.core.files import read_json, read_npz
from ddpm.core.params import OneOf, Section
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.registry import NETWORKS, NetworkType
from ddpm.sampling.model import load


class TinySettings(Section):
    type: Literal["tiny"]
    width: int
    conditioning: Annotated[str, OneOf(CONDITIONINGS)]


class Tiny(nn.Module):
    """Two convolutions with the embedding of time and labels between them."""

    def __init__(self, settings, shape, class_names, outputs):
        super().__init__()
        embed_labels, self.takes_mask = CONDITIONINGS[settings.conditioning]
        self.condition, self.outputs = embed_labels(class_names, settings.width), outputs
        self.takes_labels, self.takes_text = self.condition.takes_labels, self.condition.takes_text
        self.time = nn.Linear(1, settings.width)
        self.conv1 = nn.Conv2d(shape[2] + (shape[2] + 1) * self.takes_mask, settings.width, 3, padding=1)
        self.conv2 = nn.Conv2d(settings.width, outputs, 3, padding=1)

    def forward(self, x, t, labels=None, known=None):
        if self.takes_mask:
            x = torch.cat([x, x.new_zeros(len(x), x.shape[1] + 1, *x.shape[2:]) if known is None else known], dim=1)
        embedding = self.condition(self.time(t[:, None] / 1000), labels)
        return self.conv2(nn.functional.silu(self.conv1(x) + embedding[:, :, None, None]))


@pytest.fixture
def tiny(data, monkeypatch):
    """A workspace whose params.yaml asks for a network that is registered for this test alone."""
    monkeypatch.setitem(NETWORKS, "tiny", NetworkType(TinySettings, Tiny))
    link_code()
    edit_params(model={"type": "tiny", "width": 8, "conditioning": "class"})


@pytest.mark.parametrize("conditioning", ["class", "text+mask"])
def test_a_registered_network_is_trained_loaded_and_sampled(tiny, conditioning):
    edit_params(**{"model.conditioning": conditioning, "diffusion.learned_variance": True, "sample_ddim.guidance": 2.0})
    for stage in ("train", "sample_ddim", "sample_ddpm"):
        main_of(stage)()
    assert read_json("models/ddpm/config.json", "")["model"] == {"type": "tiny", "width": 8, "conditioning": conditioning}
    for name in ("ddim", "ddpm"):
        assert read_npz(f"samples/{name}.npz", "")["arr_0"].shape == (20, 8, 8, 1)
    assert np.isfinite(read_json("reports/train/metrics.json", "")["best_validation_loss"])


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"model.type": "tinny"}, "model.type: 'tinny' is unknown; did you mean 'tiny'? Valid: unet, tiny"),
        ({"model.type": ...}, "model.type: missing"),
        ({"model.width": 1.5}, "model.width: 1.5 must be an integer"),
        ({"model.heads": 2}, "model.heads: unknown key; valid: type, width, conditioning"),
    ],
)
def test_the_model_section_is_validated_by_its_type(tiny, refused, edits, message):
    edit_params(**edits)
    assert refused(main_of("train")).startswith(f"params.yaml: {message}")


def test_augmentation_is_refused_for_a_network_that_does_not_take_it(tiny, refused):
    edit_params(**{"train.augment": 0.1})
    assert refused(main_of("train")).startswith("params.yaml: train.augment: a network of type 'tiny' takes no parameters")


def test_a_model_of_an_unknown_type_is_refused(tiny, monkeypatch):
    main_of("train")()
    monkeypatch.delitem(NETWORKS, "tiny")
    assert str(error_of(load, "final", torch.device("cpu"))) == (
        "models/ddpm/config.json: invalid model config (model.type: 'tiny' is unknown); make it again with `dvc repro -f train`"
    )
