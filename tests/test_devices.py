"""Training, sampling, likelihood and round trips on every device of this machine; all tensors stay on it."""

import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, input_error, link_code, the_error
from test_training import SETTINGS, make_split
from test_unet import settings as unet_settings

from ddpm.core.memory import out_of_memory_names
from ddpm.core.yaml_files import read_yaml
from ddpm.data.loader import Batches
from ddpm.datasets.registry import DIGITS
from ddpm.diffusion.schedule import make_schedule
from ddpm.evaluation.likelihood import likelihood
from ddpm.evaluation.reconstruction import round_trips
from ddpm.networks.unet import UNet
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.training.loop import Hooks, train
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="this machine has no MPS device")),
]


@pytest.mark.parametrize("conditioning", ["class", "text+mask"])
@pytest.mark.parametrize("device", DEVICES)
def test_model_stays_on_its_device(device, conditioning):
    device = torch.device(device)
    torch.manual_seed(0)
    network = UNet(unet_settings(conditioning=conditioning), (8, 8, 1), class_names=DIGITS, outputs=2, augmented=True)
    network.to(device, memory_format=torch.channels_last)
    options = Train(**{**SETTINGS, "timestep_sampling": "importance", "augment": 0.3, "steps": 6})
    split = make_split()
    batches = Batches(split.images, split.labels, 0, device, options.flip)
    trainer = Trainer(network, make_schedule("cosine", 20), "v", batches, options, 0)
    train(trainer, make_split(30, 1), Hooks())
    assert all(np.isfinite(row["loss"]) for row in trainer.history if "loss" in row)

    data = {"shape": [8, 8, 1], "class_names": list("0123456789")}
    model = DiffusionModel(network.eval(), make_schedule("cosine", 20), "v", data, supports_cfg=True)
    params = read_yaml(ROOT / "params.yaml")
    sections = [
        SampleDDPM(**{**params["sample_ddpm"], "variance": "learned", "thresholding": "dynamic"}),
        SampleDDIM(**{**params["sample_ddim"], "steps": 5, "sampler": "heun", "churn": 1.0, "guidance": 2.0}),
        SampleDDIM(**{**params["sample_ddim"], "steps": 5, "sampler": "dpmpp_2m_sde", "spacing": "karras"}),
    ]
    for section in sections:
        assert generate_set(model, section.plan(model), 5, 3, 0, "test").arrays["arr_0"].shape == (5, 8, 8, 1)
    x0, labels = torch.rand(4, 1, 8, 8).to(device) * 2 - 1, torch.arange(4, device=device)
    scores = likelihood(model, x0, labels, 5, 0).scores
    assert all(np.isfinite(scores[name]["bits_per_dim"]) for name in ("small", "large", "learned"))
    assert np.isfinite(round_trips(model, x0, labels).scores["steps_10"]["psnr"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(2**50,), (2**62,), (2**40, 2**40)])
def test_failed_allocation_names_the_settings(size, device):
    with input_error("train.batch_size"), out_of_memory_names("train.batch_size"):
        torch.empty(size, device=device)
    with input_error("train.batch_size"), out_of_memory_names("train.batch_size"):
        np.empty(size)
    with pytest.raises(RuntimeError, match="a defect"), out_of_memory_names("train.batch_size"):
        raise RuntimeError("a defect")


def test_stage_without_memory_ends_with_one_line(refused):
    assert refused(lambda: torch.empty(2**50)).startswith("params.yaml: batch_size: ")


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("train", ["train.batch_size", "train.gradient_accumulation", "model.channels"]),
        ("sample_ddpm", ["sample_ddpm.batch_size"]),
        ("sample_ddim", ["sample_ddim.batch_size"]),
    ],
)
def test_stage_without_gpu_memory_names_the_settings(model, monkeypatch, capsys, stage, settings):
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 10 GiB.")

    monkeypatch.setattr(UNet, "forward", forward)
    link_code()
    capsys.readouterr()
    monkeypatch.delitem(sys.modules, f"stages.{stage}", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    line = the_error(stopped.value.code, *capsys.readouterr())
    assert "the memory does not suffice (CUDA out of memory. Tried to allocate 20.00 GiB.)" in line
    assert all(setting in line for setting in settings)
