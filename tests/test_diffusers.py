"""Models to diffusers and from it: the same outputs, the same images from the same noise, one line for what cannot be done."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, diffusion
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from test_unet import IDENTITY, awake, settings

from ddpm.cli.main import main
from ddpm.core.files import InputError, atomic_folder, write_json
from ddpm.core.weights import save_weights
from ddpm.diffusers_io import import_
from ddpm.diffusers_io.scheduler_config import betas_of, read_scheduler, write_scheduler
from ddpm.diffusers_io.state_dict_map import tensor_map, to_diffusers
from ddpm.diffusers_io.unet_config import read_config
from ddpm.diffusion.schedule import SCHEDULES, make_schedule
from ddpm.networks.checkpoints import make_config
from ddpm.networks.registry import make_network
from ddpm.networks.unet import CompatOptions
from ddpm.sampling.model import load
from ddpm.sampling.plan import make_plan
from ddpm.sampling.samplers import sample

T = 20
CPU = torch.device("cpu")
SCHEDULER = "theirs/scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
NAMES = IDENTITY["class_names"]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_model(
    prediction="v", schedule="linear", shape=(8, 8, 1), dropout=0.1, augment=0.0, compat=None, options=None, **changes
):
    """models/ddpm: a network with random weights."""
    torch.manual_seed(0)
    kind, levels = settings(**changes), diffusion(T, **(options or {}))
    training = {"condition_dropout": dropout, "augment": augment}
    config = make_config(kind, schedule, prediction, levels, IDENTITY | {"shape": list(shape)}, training, 0)
    compat = compat or CompatOptions()
    network = awake(make_network(kind, levels, shape, NAMES, augment > 0, compat=compat))
    write_json("models/ddpm/config.json", config | {"compat": compat.model_dump()})
    save_weights(Path("models/ddpm/final.safetensors"), network.state_dict())
    return load("final", CPU)


def run(*arguments):
    """A command that shall end well."""
    few = ("--device", "cpu", "--threads", 1, "--samples", 0) if arguments[0] == "export" else ()
    assert main([str(given) for given in (arguments[0], *few, *arguments[1:])]) == 0


def pipeline(kind, folder="out/diffusers"):
    made = kind.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipe, steps, **options):
    """The noisy images (steps, 4, C, H, W) after each of their steps, and the finished ones (4, H, W, C) in [0, 1]."""
    states, step = [], pipe.scheduler.step

    def watched(*arguments, **more):
        made = step(*arguments, **more)
        states.append(made.prev_sample)
        return made

    pipe.scheduler.step = watched
    noise = torch.Generator().manual_seed(3)
    images = pipe(batch_size=4, generator=noise, num_inference_steps=steps, output_type="np", **options).images
    pipe.scheduler.step = step
    return torch.stack(states), images


def ours(model, labels=None, **options):
    """The same, by our sampler from the same noise."""
    plan, generator = make_plan(model, **options), torch.Generator().manual_seed(3)
    height, width, channels = model.shape

    def noise():
        return torch.randn(4, channels, height, width, generator=generator)

    states = [frame.x for frame in sample(plan.denoiser(labels), plan.rule, model.schedule, plan.grid, noise(), noise)]
    return torch.stack(states), (states[-1] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def assert_same(found, expected):
    """Equal to 1e-5, or in its proportion where no limit keeps the states near [-1, 1]."""
    for state, wanted in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(state, wanted, atol=1e-5 * max(1.0, wanted.abs().max().item()), rtol=0)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5, rtol=0)
    assert expected[0][-2].std() > 0.1


ELSEWHERE = CompatOptions(norm_groups=4, norm_eps=1e-6, corner_padding=True, head_channels=4)
CASES = {
    "eps": ({"prediction": "eps", "schedule": "scaled_linear", "conditioning": "none"}, [], None),
    "x0, cosine": ({"prediction": "x0", "schedule": "cosine", "conditioning": "none", "shape": (8, 12, 3)}, [], None),
    "v, sigmoid": ({"schedule": "sigmoid", "conditioning": "none", "channel_mults": [1, 2, 2]}, [], None),
    # With edm's usual 0.002, 1 - alpha_bar is too small for the float32 of diffusers: the images are 2e-5 apart.
    "v, edm, no class": ({"schedule": "edm", "options": {"edm": {"sigma_min": 0.1, "sigma_max": 80.0, "rho": 7.0}}}, [], None),
    "zero terminal SNR, a class": ({"options": {"zero_terminal_snr": True}}, ["--label", "7"], [7]),
    "x0, zero terminal SNR": ({"prediction": "x0", "options": {"zero_terminal_snr": True}, "conditioning": "none"}, [], None),
    "no condition dropout": ({"dropout": 0.0, "time_embedding": 20}, ["--label", "0"], [0]),
    "text": ({"conditioning": "text"}, ["--text", "the digit 3"], "the digit 3"),
    "no text": ({"conditioning": "text"}, [], None),
    "mask": ({"conditioning": "mask"}, [], None),
    "augmentation": ({"augment": 0.2}, ["--label", "7"], [7]),
    "class and mask": ({"conditioning": "class+mask", "prediction": "eps", "schedule": "scaled_linear"}, ["--label", "4"], [4]),
    "attention": ({"attention_levels": [0, 1], "heads": 1, "middle_attention": True, "blocks_per_level": 2}, [], None),
    "heads": ({"attention_levels": [1], "heads": 4, "middle_attention": True}, [], None),
    "trained elsewhere": ({"attention_levels": [0, 1], "compat": ELSEWHERE}, [], None),
}


@pytest.mark.parametrize("case", CASES)
def test_export_pipelines_generate_the_same_images(case):
    changes, options, conditioning = CASES[case]
    model = make_model(**changes)
    if isinstance(conditioning, str):
        labels = model.word_ids([conditioning] * 4)
    else:
        labels = None if conditioning is None else torch.tensor(conditioning * 4)
    run("export", *options)
    ddpm, ddim = pipeline(DDPMPipeline), pipeline(DDIMPipeline)
    for steps in (T, 5):
        assert_same(theirs(ddpm, steps), ours(model, labels, sampler="ddpm", steps=steps))
    for steps, eta in ((T, 0.0), (10, 1.0), (4, 0.3)):
        found = theirs(ddim, steps, eta=eta, use_clipped_model_output=True)
        assert_same(found, ours(model, labels, sampler="ddim", steps=steps, eta=eta))


@pytest.mark.parametrize(("prediction", "thresholding"), [("eps", "none"), ("eps", "clip"), ("x0", "dynamic"), ("v", "clip")])
def test_export_pipelines_threshold_the_same_way(prediction, thresholding):
    model = make_model(prediction, "scaled_linear", conditioning="none")
    run("export", "--thresholding", thresholding, "--variance", "large", "--timestep-spacing", "leading")
    found = theirs(pipeline(DDPMPipeline), T)
    assert_same(found, ours(model, sampler="ddpm", variance="large", thresholding=thresholding))
    # 6 does not divide 20: with leading spacing it need not.
    found = theirs(pipeline(DDIMPipeline), 6, use_clipped_model_output=True)
    assert_same(found, ours(model, sampler="ddim", steps=6, spacing="leading", thresholding=thresholding))


def test_export_drops_or_keeps_learned_variance():
    model = make_model(options={"learned_variance": True}, conditioning="none")
    run("export")
    assert pipeline(DDIMPipeline).unet.config.out_channels == 1
    assert_same(theirs(pipeline(DDPMPipeline), T), ours(model, sampler="ddpm"))
    run("export", "--variance", "learned")
    kept = theirs(pipeline(DDPMPipeline), T)
    assert_same(kept, ours(model, sampler="ddpm", variance="learned"))
    assert (kept[0] - ours(model, sampler="ddpm")[0]).abs().max() > 1e-3


def test_export_keep_classes_accepts_class_labels():
    model = make_model(conditioning="class+mask")
    run("export", "--keep-classes")
    unet = UNet2DModel.from_pretrained("out/diffusers", subfolder="unet")
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        for t in (0, 7, T - 1):
            expected = model.network(x, torch.full((4,), float(t)), labels)
            torch.testing.assert_close(unet(x, t, class_labels=labels).sample, expected, atol=1e-5, rtol=0)


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """The project's own trained model, exported to draw threes: (model, its labels, the folder)."""
    monkeypatch.chdir(ROOT)
    try:
        model = load("final", CPU)
    except InputError as reason:
        pytest.skip(f"models/ddpm: {reason}")
    run("export", "--label", "3", "-o", tmp_path / "threes")
    return model, torch.full((4,), 3), tmp_path / "threes"


def test_export_of_the_committed_model(committed):
    model, labels, folder = committed
    for eta in (0.0, 1.0):
        found = theirs(pipeline(DDIMPipeline, folder), 50, eta=eta, use_clipped_model_output=True)
        assert_same(found, ours(model, labels, sampler="ddim", steps=50, eta=eta))


@pytest.mark.slow
def test_export_of_the_committed_model_at_all_levels(committed):
    """With the noise levels in float64: in float32, as diffusers has them, 1 - alpha_bar of the first ones is coarse."""
    model, labels, folder = committed
    pipe, levels = pipeline(DDPMPipeline, folder), range(1, model.schedule.steps + 1)
    expected = ours(model, labels, sampler="ddpm")
    np.testing.assert_allclose(theirs(pipe, len(levels))[1], expected[1], atol=5e-5, rtol=0)
    pipe.scheduler.alphas_cumprod = torch.tensor([model.schedule[i].alpha ** 2 for i in levels], dtype=torch.float64)
    assert_same(theirs(pipe, len(levels)), expected)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"prediction": "flow"}, [], "--to: diffusers does not have prediction 'flow'"),
        ({"attention_levels": [0, 1]}, [], "model.heads: 2 heads at levels of different widths (8, 16 channels)"),
        ({"channels": 2}, [], "model.channels: 2 must be at least 4"),
        ({"dropout": 0.0}, [], "--label: needed, since this model"),
        ({"dropout": 0.0}, ["--label", "none"], "--label: no class needs a model that was trained without its class too"),
        ({"conditioning": "text"}, ["--keep-classes"], "--keep-classes: this model takes no class"),
        ({}, ["--keep-classes", "--label", "1"], "--keep-classes: keeps every class"),
        ({}, ["--variance", "learned"], "--variance: 'learned' needs a model trained with"),
        ({}, ["--thresholding", "x"], "--thresholding: 'x' is unknown"),
        ({}, ["--timestep-spacing", "karras"], "--timestep-spacing: 'karras' is unknown"),
        ({}, ["--to", "onnx"], "--to: 'onnx' is unknown; valid: diffusers"),
        ({}, ["--out", "models"], "--out: models is there already and is no export; give another name"),
        ({}, ["--out", "models/ddpm/config.json"], "--out: models/ddpm/config.json is a file or a link that is there already"),
        ({}, ["--out", "."], "--out: '.' is no name of a file or folder"),
    ],
)
def test_export_refuses_by_key(changes, arguments, message, error):
    make_model(**changes)
    assert message in error("export", "--samples", "0", *arguments)


def test_export_replaces_only_exports(error):
    make_model()
    Path("out/diffusers").mkdir(parents=True)
    run("export", "--label", "1")
    before = Path("out/diffusers", WEIGHTS).read_bytes()
    run("export", "--label", "2", "--samples", "2")
    assert Path("out/diffusers", WEIGHTS).read_bytes() != before
    assert {path.name for path in Path("out").iterdir()} == {"diffusers"}
    notes = Path("out/diffusers/notes.txt")
    notes.write_text("mine")
    assert "is there already and is no export" in error("export", "--samples", "0")
    notes.unlink()
    Path("out/diffusers/ddpm.json").write_text("{")
    assert "is there already and is no export" in error("export", "--samples", "0")


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_export_that_fails_keeps_the_old_one(monkeypatch, error):
    make_model()
    run("export")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    monkeypatch.setattr("ddpm.diffusers_io.export.write_text", full_disk)
    assert error("export", "--samples", "0", "--label", "5").startswith("out/diffusers: no space left")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_atomic_folder_that_fails_keeps_the_old_one(tmp_path, monkeypatch):
    target, rename = tmp_path / "target", os.replace
    target.mkdir()
    (target / "a").write_text("before")
    monkeypatch.setattr(
        os, "replace", lambda old, new: (full_disk if Path(old, "a").read_text() == "after" else rename)(old, new)
    )
    with pytest.raises(InputError, match="no space left"), atomic_folder(target, replace=True) as folder:
        (folder / "a").write_text("after")
    assert (target / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


SMALL = {
    "sample_size": 16, "block_out_channels": [16, 32, 32], "layers_per_block": 1, "norm_num_groups": 8, "freq_shift": 1,
    "flip_sin_to_cos": False, "attention_head_dim": None,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
UNETS = {
    "as google/ddpm-cifar10-32": {"downsample_padding": 0, "norm_eps": 1e-6},
    "cosines first": {"flip_sin_to_cos": True},
    "time embedding of the defaults": {"flip_sin_to_cos": True, "freq_shift": 0},
    "heads of one width": {"attention_head_dim": 8},
    "heads at several widths": {
        "attention_head_dim": 8,
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"],
    },
    "no attention": {
        "add_attention": False, "attention_head_dim": 5,
        "down_block_types": 3 * ["DownBlock2D"], "up_block_types": 3 * ["UpBlock2D"],
    },
    "time embedding, two blocks": {"time_embedding_dim": 24, "layers_per_block": 2, "act_fn": "swish"},
    "gray and oblong": {"in_channels": 1, "out_channels": 1, "sample_size": [8, 16], "dropout": 0.2},
    "learned variance": {"out_channels": 6},
    "one level": {
        "block_out_channels": [16], "down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"],
    },
    "classes": {"num_class_embeds": 4},
}  # fmt: skip


def random_unet(**changes):
    """A UNet2DModel whose every tensor matters."""
    torch.manual_seed(1)
    return awake(UNet2DModel(**{**SMALL, **changes}))


def outputs(unet, network, labels=None):
    """What both make of the same noise."""
    config = unet.config
    sides = [config.sample_size] * 2 if isinstance(config.sample_size, int) else config.sample_size
    x = torch.randn(3, config.in_channels, *sides)
    with torch.no_grad():
        for t in (0, 3, 500, 999):
            classes = {} if labels is None else {"class_labels": labels}
            yield unet(x, torch.tensor(t), **classes).sample, network(x, torch.full((3,), float(t)), labels)


def assert_computes_the_same(unet, model, labels=None):
    for expected, found in outputs(unet, model.network, labels):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def save_pipeline(unet=None, **scheduler):
    """Writes a pipeline of diffusers into ./theirs."""
    DDPMPipeline(unet=unet or random_unet(), scheduler=DDPMScheduler(**scheduler)).save_pretrained("theirs")


def imported(*arguments):
    """The model that `import` makes."""
    run("import", *arguments)
    return load("final", CPU, Path("models/imported"))


@pytest.mark.parametrize("name", UNETS)
def test_import_computes_the_same(name):
    unet = random_unet(**UNETS[name])
    save_pipeline(unet)
    model = imported("theirs")
    assert_computes_the_same(unet, model, torch.tensor([0, 3, 2]) if "num_class_embeds" in UNETS[name] else None)
    assert model.prediction == "eps"
    assert model.learns_variance == (name == "learned variance")
    if name == "classes":  # without a record, its last row may mean no class or not
        assert model.data["class_names"] == ["class 0", "class 1", "class 2", "class 3"]
        assert not model.supports_cfg


@pytest.mark.parametrize("square", [False, True])
def test_import_reads_old_files(square):
    """As google/ddpm-cifar10-32 has them: pickled, all in one folder, the attention's layers under their first names."""
    unet = random_unet(**UNETS["as google/ddpm-cifar10-32"])
    config = {key: value for key, value in unet.config.items() if key in SMALL or key in ("downsample_padding", "norm_eps")}
    write_json("theirs/config.json", {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **config})
    write_json("theirs/scheduler_config.json", {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"})
    write_json("theirs/model_index.json", {"_class_name": "DDPMPipeline"})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in unet.state_dict().items():
        here = next((layer for layer in old if f".{layer}." in name), None)
        weight = value[..., None, None] if square and here and name.endswith("weight") else value
        weights[name.replace(here, old[here]) if here else name] = weight
    assert sum("proj_attn" in name for name in weights) == 8
    torch.save(weights, "theirs/diffusion_pytorch_model.bin")
    run("import", "theirs", "-o", "models/old")
    assert_computes_the_same(unet, load("final", CPU, Path("models/old")))


def test_import_finds_the_scheduler_or_says_what_it_assumes(capsys):
    save_pipeline(variance_type="fixed_large")
    imported("theirs")
    assert "--variance large" in capsys.readouterr().out
    cosine = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    DDPMPipeline(unet=random_unet(), scheduler=cosine).save_pretrained("theirs")
    model = imported("theirs/unet")
    assert model.prediction == "x0"
    assert model.schedule[500] == make_schedule("cosine", 1000)[500]
    random_unet(sample_size=None).save_pretrained("alone")
    model = imported("alone", "--size", 8)
    assert "the defaults of diffusers are used: prediction eps" in capsys.readouterr().out
    assert (model.shape, model.schedule.steps, model.prediction) == ((8, 8, 3), 1000, "eps")


def test_import_can_be_sampled_and_described(capsys):
    save_pipeline()
    run("import", "theirs")
    run("sample", "--model", "models/imported", "-n", 2, "--steps", 2, "--device", "cpu", "--threads", 1)
    assert Path("out/sample.png").is_file()
    run("info", "--model", "models/imported")
    assert "imported: 16x16, colour" in capsys.readouterr().out


@pytest.mark.slow
def test_import_of_ddpm_cifar10_architecture():
    """google/ddpm-cifar10-32's architecture, 35.7 million parameters."""
    torch.manual_seed(0)
    kinds = {
        "sample_size": 32, "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "norm_num_groups": 32,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "norm_eps": 1e-6,
    }  # fmt: skip
    unet = UNet2DModel(**{**SMALL, **kinds}).eval()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 35_746_307
    save_pipeline(unet)
    assert_computes_the_same(unet, imported("theirs"))


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"conditioning": "none", "attention_levels": [0, 1], "heads": 1}, []),
        ({"conditioning": "none", "middle_attention": True, "options": {"learned_variance": True}}, ["--variance", "learned"]),
        ({"attention_levels": [1], "time_embedding": 20}, ["--keep-classes"]),
        ({"schedule": "sigmoid", "options": {"sigmoid": {"start": -2.5, "end": 3.5, "tau": 0.9}}}, ["--keep-classes"]),
    ],
)
def test_export_then_import_returns_every_bit(changes, arguments):
    model = make_model(**changes)
    run("export", *arguments)
    back = imported()
    weights = back.network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(weights.pop(name), value), name
    assert not weights
    assert [back.schedule[i] for i in range(T + 1)] == [model.schedule[i] for i in range(T + 1)]
    assert (back.prediction, back.network.outputs, back.shape) == (model.prediction, model.network.outputs, model.shape)
    if "--keep-classes" in arguments:
        assert (back.data["class_names"], back.supports_cfg) == (NAMES, True)


def test_export_of_an_import_equals_the_first_export():
    make_model()
    run("export", "--label", "7")
    run("import")
    run("export", "--model", "models/imported", "-o", "out/again")
    assert Path("out/again", WEIGHTS).read_bytes() == Path("out/diffusers", WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freq_shift": 2}, "freq_shift: 2 must be 0 or 1"),
        ({"down_block_types": ["ResnetDownsampleBlock2D"]}, "down_block_types.0: 'ResnetDownsampleBlock2D' must be"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types: has 1 entries; block_out_channels has 3"),
        ({"up_block_types": 3 * ["UpBlock2D"]}, "up_block_types: attention must be at the levels of down_block_types"),
        ({"block_out_channels": [16, 24, 32]}, "block_out_channels: 24 must be a multiple of the first, 16"),
        ({"attention_head_dim": 5}, "attention_head_dim: 5 does not divide the 32 channels"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups: 4 must equal norm_num_groups, 8"),
        ({"norm_num_groups": 5}, "norm_groups: 5 does not divide the 16 channels"),
        ({"out_channels": 4}, "out_channels: 4 must be in_channels (3), or twice that"),
        ({"sample_size": None}, "sample_size: is missing; give the side of the images by --size"),
        ({"sample_size": 18}, "sides must be multiples of 4, but they are 18x18"),
        ({"something_new": 1}, "something_new: unknown key"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name: 'UNet2DConditionModel' is unknown"),
        ({"_class_name": ["UNet2DModel"]}, "_class_name: ['UNet2DModel'] is unknown"),
        ({"block_out_channels": None}, "block_out_channels: None must be a list"),
        ({"layers_per_block": "2"}, "layers_per_block: '2' must be an integer"),
        ({"sample_size": 10**30}, "sample_size.0: 10"),
        ({"norm_eps": 1e300}, "norm_eps: 1e+300 must be"),
        ({"in_channels": 10**9}, "out_channels: 3 must be in_channels"),
        ({"\x1b[2J": 1}, "\\x1b[2J: unknown key"),
    ],
)
def test_import_refuses_config_by_key(changes, message, error):
    random_unet().save_pretrained("theirs")
    edit_json("theirs/config.json", **changes)
    line = error("import", "theirs")
    assert line.startswith("theirs/config.json: ")
    assert message in line


def test_read_config_has_the_defaults_of_diffusers():
    """Files need not say what was so when they were written."""
    with torch.device("meta"):
        given = json.loads(UNet2DModel(sample_size=32).to_json_string())
    assert read_config({"sample_size": 32}) == read_config(given)


def edit_json(path, **changes):
    write_json(path, json.loads(Path(path).read_text()) | changes)


CLASS_ROWS = "class_embedding.weight"
CONFIG = "theirs/unet/config.json"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("conv_in.bias", None, "conv_in.bias: is missing, according to config.json (1 such tensors)"),
        ("extra", torch.ones(1), "extra: is not a tensor of this network"),
        ("conv_in.bias", torch.ones(3), "conv_in.bias: shape (3,) must be (16,)"),
        ("conv_in.bias", torch.ones(16, dtype=torch.int8), "conv_in.bias is torch.int8, not floating point"),
        (CLASS_ROWS, torch.ones(3, 64), f"{CLASS_ROWS}: shape (3, 64) does not fit num_class_embeds None"),
        (CLASS_ROWS, torch.ones(()), f"{CLASS_ROWS}: shape () does not fit num_class_embeds None"),
    ],
)
def test_import_refuses_other_weights_by_name(name, tensor, message, error):
    save_pipeline()
    path = Path("theirs") / WEIGHTS
    weights = load_file(path) | {name: tensor}
    save_file({name: value for name, value in weights.items() if value is not None}, path)
    assert message in error("import", "theirs")


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (f"theirs/{WEIGHTS}", "x", "cannot be read as weights"),
        (f"theirs/{WEIGHTS}", None, "theirs/unet: holds no diffusion_pytorch_model.safetensors or .bin"),
        (CONFIG, "{", f"{CONFIG}: cannot be read"),
        (CONFIG, "[" * 200_000, f"{CONFIG}: cannot be read (nested too deep)"),
        (CONFIG, None, "theirs: holds no unet/config.json"),
        (SCHEDULER, '{"a":' * 200_000, f"{SCHEDULER}: cannot be read (nested too deep)"),
        (SCHEDULER, "[]", f"{SCHEDULER}: holds no JSON object"),
        (SCHEDULER, '{"num_train_timesteps": 50}', f"{SCHEDULER}: beta_schedule: no schedule has these noise levels"),
    ],
)
def test_import_refuses_damaged_folders(path, text, message, error):
    save_pipeline()
    Path(path).unlink()
    if text is not None:
        Path(path).write_text(text)
    assert message in error("import", "theirs")


def test_import_refuses_files_that_are_none_and_classes_without_weights(error):
    save_pipeline()
    edit_json(CONFIG, num_class_embeds=10**9)
    assert f"{CLASS_ROWS}: shape None does not fit num_class_embeds 1000000000" in error("import", "theirs")
    for path in (f"theirs/{WEIGHTS}", SCHEDULER, CONFIG):
        Path(path).unlink()
        os.mkfifo(path)
        assert error("import", "theirs").startswith(f"{path}: is a FIFO, not a file")


def test_import_refuses_a_pickle_that_runs_code(error):
    class Harm:
        def __reduce__(self):
            return Path.touch, (Path("harmed"),)

    random_unet().save_pretrained("theirs")
    Path("theirs/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.bias": Harm()}, "theirs/diffusion_pytorch_model.bin")
    assert "cannot be read as weights" in error("import", "theirs")
    assert not Path("harmed").exists()


def test_import_replaces_only_imports_and_ignores_a_damaged_record(error):
    make_model()
    run("export", "--keep-classes")
    assert "--out: models/ddpm is there already and is no imported model" in error("import", "-o", "models/ddpm")
    run("import")
    run("import")
    record = Path("out/diffusers/ddpm.json")
    good = json.loads(record.read_text())
    for damaged in (
        {"data": {"class_names": 3}},
        {"data": {"class_names": "0123456789"}},
        {"training": {"condition_dropout": 7}},
    ):
        write_json(record, good | damaged)
        assert import_.read_folder(Path("out/diffusers")).config["data"]["class_names"][-1] == "class 10"


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_read_scheduler_inverts_betas_of(name, steps, zero):
    schedule = make_schedule(name, steps, zero_terminal_snr=zero)
    betas = betas_of(schedule)
    alpha_bar = DDPMScheduler(num_train_timesteps=steps, trained_betas=betas).alphas_cumprod
    expected = [schedule[i].alpha ** 2 for i in range(1, steps + 1)]
    np.testing.assert_allclose(alpha_bar.numpy(), expected, atol=1e-6)
    for given in (betas, torch.tensor(betas).tolist()):
        found = read_scheduler({"num_train_timesteps": steps, "trained_betas": given, "prediction_type": "sample"})
        assert (found.schedule, found.diffusion.zero_terminal_snr, found.prediction) == (name, zero, "x0")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "linear"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "cosine"),
        ({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}, "cosine"),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "scaled_linear"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "linear"),
        ({"num_train_timesteps": 500, "beta_start": 2e-4, "beta_end": 0.04}, "linear"),
    ],
)
def test_read_scheduler_matches_schedulers_of_diffusers(config, name):
    found = read_scheduler(dict(DDPMScheduler(**config).config))
    made = found.diffusion.make(found.schedule)
    expected = DDPMScheduler(**config).alphas_cumprod.double().sqrt().numpy()
    assert found.schedule == name
    np.testing.assert_allclose([made[i].alpha for i in range(1, made.steps + 1)], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_end": 0.01}, "beta_schedule: no schedule has these noise levels; in the nearest, '"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: 'sigmoid' is unknown"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name: 'ScoreSdeVeScheduler' is unknown"),
        ({"prediction_type": "flow_prediction"}, "prediction_type: 'flow_prediction' must be"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: has 2 entries; num_train_timesteps is 1000"),
        ({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}, "trained_betas.1: 1.2 must be"),
        ({"trained_betas": {}}, "trained_betas: {} must be a list"),
        ({"num_train_timesteps": 10**20}, "num_train_timesteps: 10"),
        ({"beta_start": None}, "beta_start: None must be a number"),
        ({"beta_schedule": ["linear"]}, "beta_schedule: "),
        ({"rescale_betas_zero_snr": True}, "prediction_type: 'epsilon' does not determine the image"),
    ],
)
def test_read_scheduler_refuses_by_key(config, message):
    with pytest.raises(InputError, match=message.replace("(", "\\(")):
        read_scheduler(config)


def test_write_scheduler_does_not_limit_dynamic_thresholding():
    config = write_scheduler(make_schedule("linear", T), "v", "small", "dynamic", 0.9, "trailing")
    x = torch.linspace(-5, 5, 100).reshape(1, 1, 10, 10)
    found = DDPMScheduler(**{key: value for key, value in config.items() if key[0] != "_"})._threshold_sample(x)
    limit = torch.quantile(x.abs(), 0.9)
    assert limit > 4
    torch.testing.assert_close(found, x.clamp(-limit, limit) / limit)


def test_tensor_map_covers_every_row_once():
    """All rows of all our tensors are taken once."""
    model = make_model(attention_levels=[0], middle_attention=True, conditioning="none", heads=1)
    places = tensor_map(model.network)
    for name, value in model.network.state_dict().items():
        rows = [row for part in places.values() if part.name == name for row in range(part.first, part.first + part.rows)]
        assert sorted(rows) == list(range(len(value))), name
    assert sum(value.numel() for value in to_diffusers(model.network).values()) == sum(
        p.numel() for p in model.network.parameters()
    )
