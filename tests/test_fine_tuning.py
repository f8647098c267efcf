"""`train.init`: which weights a training begins from, what starts anew, and what is refused."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, diffusion, edit_params, error_of, link_code
from test_diffusers import random_unet, save_pipeline
from test_hub import NAME, files_of, hub  # noqa: F401 (a fixture)
from test_kills import attempt
from test_unet import settings as unet_settings

import stages.train
from ddpm.core import params
from ddpm.core.files import read_json, write_json
from ddpm.core.stage import run_stage
from ddpm.core.weights import read_weights, save_weights, weights_sha256
from ddpm.core.yaml_files import read_yaml
from ddpm.networks.checkpoints import load_model, make_config
from ddpm.networks.registry import NetworkSettings
from ddpm.networks.unet import UNet
from ddpm.training.initial import Initial, open_initial, start_from
from ddpm.training.settings import Train

CPU = torch.device("cpu")
START = Path("models/start")
STILL = {"train.init": str(START), "train.learning_rate": 1e-12, "train.weight_decay": 0.0}  # the weights stay as they are


def save_start(network, config):
    """Writes a model folder whose `final` has the weights of the network, and `latest` others."""
    write_json(START / "config.json", config)
    save_weights(START / "final.safetensors", network.state_dict())
    save_weights(START / "latest.safetensors", {name: value + 1 for name, value in network.state_dict().items()})


@pytest.fixture
def start(data) -> UNet:
    """A workspace with data and a model folder of the network of params.yaml with random weights, which is returned."""
    link_code()
    settings = params.load(model=NetworkSettings).model
    torch.manual_seed(5)
    network = UNet(settings, data.shape, data.class_names)
    save_start(network, make_config(settings, "linear", "v", diffusion(50), data.identity(), {"steps": 3}, 0))
    return network


def train(**edits):
    """Trains; returns the weights of the checkpoint latest, and its config.json."""
    edit_params(**edits)
    run_stage(stages.train.main)
    return read_weights(Path("models/ddpm/latest.safetensors"), ""), read_json("models/ddpm/config.json", "")


def assert_equal(weights, expected):
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0, msg=name)


def test_training_begins_from_the_weights_and_keeps_them_in_the_ema(start):
    weights, config = train(**{"train.init": str(START), "train.ema_decay": 0.999})
    assert {key: config["training"][key] for key in ("init", "init_checkpoint", "init_sha256")} == {
        "init": str(START), "init_checkpoint": "final", "init_sha256": weights_sha256(start)
    }  # fmt: skip
    first, ema = start.state_dict(), read_weights(Path("models/ddpm/final.safetensors"), "")
    moved, averaged = (sum(float((each[name] - first[name]).norm()) for name in first) for each in (weights, ema))
    # After 4 steps, 0.999^4 of the EMA is its first value; the ramp of an EMA of random weights leaves 1 % of it.
    assert 0 < averaged < 0.01 * moved


def test_checkpoint_is_chosen(start):
    weights, _ = train(**STILL, **{"train.init_checkpoint": "latest"})
    assert_equal(weights, {name: value + 1 for name, value in start.state_dict().items()})


def test_embedding_of_other_classes_starts_anew(start, data, capsys):
    settings, identity = params.load(model=NetworkSettings).model, {**data.identity(), "class_names": ["a", "b"]}
    network = UNet(settings, data.shape, identity["class_names"])
    save_start(network, make_config(settings, "cosine", "v", diffusion(40), identity, {}, 0))
    weights, _ = train(**STILL)
    assert weights["condition.table.weight"].shape == (11, 16)
    assert_equal(weights, {name: value for name, value in network.state_dict().items() if name != "condition.table.weight"})
    out, err = capsys.readouterr()
    assert "start anew where they differ: condition.table.weight is (3, 16) in it, and (11, 16) here\n" in out
    assert "warning: train.init: trained with other noise levels, cosine, T = 40, than linear, T = 50\n" in err


OTHERS = [
    ({"model.channels": 8}, "time.0.weight is (16, 4) in it, and (32, 8) here; set model.channels to 4"),
    (
        {"model.channel_mults": [1, 2, 2], "model.blocks_per_level": 2},
        "is missing in it, and (4,) here; set model.channel_mults to [1, 2], model.blocks_per_level to 1",
    ),
    ({"model.heads": 1}, "does not fit; set model.heads to 2"),  # which no size tells
    ({"model.time_embedding": 8}, "time.0.weight is (16, 4) in it, and (8, 4) here; give `model` the settings of its config"),
    ({"model.conditioning": "class+mask"}, "conv_in.weight is (4, 1, 3, 3) in it, and (4, 3, 3, 3) here; set model.conditioning"),
    ({"diffusion.learned_variance": True}, "conv_out.weight is (1, 4, 3, 3) in it, and (2, 4, 3, 3) here; set diffusion.learned"),
    ({"prediction": "eps"}, "does not fit; set prediction to v"),
]


@pytest.mark.parametrize(("edits", "expected"), OTHERS, ids=[next(iter(edits)) for edits, _ in OTHERS])
def test_other_networks_are_refused_with_the_settings_to_change(start, refused, edits, expected):
    edit_params(**{"train.init": str(START)}, **edits)
    message = refused(stages.train.main)
    assert message.startswith("params.yaml: train.init: models/start: ")
    assert expected in message


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"train.init": "models/none"}, "models/none: no such folder; "),
        ({"train.init": "models/ddpm"}, "models/ddpm: is the output of this training, "),
        ({"train.init_checkpoint": "best"}, "models/start/best.safetensors: not found; "),
        ({"train.init": "hf://none"}, "hf://none: is no model of a hub; "),
        ({"train.init": "data/prepared"}, "data/prepared: holds no config.json, so it is no model folder; "),
    ],
)
def test_what_cannot_be_read_is_refused(start, refused, edits, expected):
    edit_params(**{"train.init": str(START), **edits})
    assert refused(stages.train.main).startswith(f"params.yaml: train.init: {expected}")


def test_conditioning_may_be_added_to_a_network_without():
    shape, names = (8, 8, 1), ["a", "b"]
    networks, configs = [], []
    for conditioning in ("none", "class", "text"):
        settings = unet_settings(conditioning=conditioning)
        networks.append(UNet(settings, shape, names, augmented=conditioning == "class"))
        configs.append(make_config(settings, "linear", "v", diffusion(50), {"shape": shape, "class_names": names}, {}, 0))
    for network, config in zip(networks[1:], configs[1:], strict=True):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        start_from(Initial("x", configs[0], networks[0].state_dict(), "hash"), network, config)
        assert config["training"]["init_sha256"] == "hash"
        for name, value in network.state_dict().items():
            expected = before if name.startswith(("condition.", "augment.")) else networks[0].state_dict()
            assert torch.equal(value, expected[name])


def test_network_of_diffusers_keeps_its_options(workspace, data):
    """Norms with another epsilon, and padding at two sides: no size tells them."""
    link_code()
    unet = random_unet(sample_size=8, in_channels=1, out_channels=1, norm_eps=1e-3, downsample_padding=0)
    save_pipeline(unet)
    edit_params(**{"train.init": "theirs"})
    initial = open_initial(params.load(train=Train).train)
    assert initial.network_options()["compat"].norm_eps == 1e-3
    for key, value in initial.config["model"].items():
        edit_params(**{f"model.{key}": "auto" if value is None else value})
    train(**STILL | {"train.init": "theirs", "prediction": initial.config["diffusion"]["prediction"]})
    network, config = load_model(Path("models/ddpm"), "latest", CPU)
    assert config["compat"] == initial.config["compat"]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t), unet(x, t).sample, atol=1e-4, rtol=1e-4)


def test_model_of_a_hub_is_downloaded(hub):  # noqa: F811
    unet = random_unet()
    save_pipeline(unet)
    hub.commit(NAME, files_of("theirs"))
    settings = {**read_yaml(ROOT / "params.yaml")["train"], "init": f"hf://{NAME}"}
    initial = open_initial(Train(**settings))
    assert initial.sha256 == open_initial(Train(**{**settings, "init": "theirs"})).sha256
    assert error_of(open_initial, Train(**{**settings, "init_checkpoint": "best"})).key == "train.init"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_changed_weights_begin_a_new_training(start):
    edit_params(**{"train.init": str(START), "train.steps": 6})
    assert attempt("by SIGTERM", 3)[0] == 143
    shutil.copy(START / "latest.safetensors", START / "other.safetensors")
    before = (START / "final.safetensors").read_bytes()
    shutil.move(START / "other.safetensors", START / "final.safetensors")
    status, output = attempt()
    assert (status, "resuming" in output) == (0, False)
    (START / "final.safetensors").write_bytes(before)
    status, output = attempt()
    assert (status, "resuming at step 3 of 6" in output) == (0, True)
