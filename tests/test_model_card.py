"""The model card of an export: what hubs read, code that runs, and scores that are what they say."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import diffusion
from PIL import Image
from test_unet import IDENTITY, awake, settings

from ddpm.cli.main import main
from ddpm.core.files import sha256, write_json
from ddpm.core.weights import read_weights, save_weights
from ddpm.diffusers_io.model_card import ACCURACY_NAME, FID_NAME, CardInfo, ExportOptions, steps_of, write_card
from ddpm.networks.checkpoints import make_config
from ddpm.networks.registry import make_network

ModelCard = pytest.importorskip("huggingface_hub").ModelCard
T = 20
DRAWN = {"guidance": 1.0, "thresholding": "clip"}  # settings of the samples
METRICS = {
    "n": 500,
    "ddpm": {
        "sampler": "DDPM", "accuracy": 0.98765, "cost": {"nfe": 1000},
        "classifier": {"fid": 0.08162, "fid_sd": 0.006, "fid_floor": 0.0847}, "inception": {"status": "weights missing"},
    },
    "ddim": {
        "sampler": "Heun", "accuracy": 0.9, "cost": {"nfe": 50},
        "classifier": {"fid": 0.123, "fid_sd": 0.006, "fid_floor": 0.0847}, "inception": {"fid": 12.34567},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config_of(conditioning="class", names=None, learned=False, shape=(8, 8, 1), dataset="digits"):
    data = {"dataset": dataset, "shape": list(shape), "class_names": names or IDENTITY["class_names"], "sha256": {}}
    training = {"steps": 500, "batch_size": 8, "learning_rate": 0.002, "condition_dropout": 0.1, "loss_weight": None}
    kind, levels = settings(conditioning=conditioning), diffusion(T, learned_variance=learned)
    return make_config(kind, "linear", "v", levels, data, training, 4)


def export(*arguments):
    assert main(["export", "--device", "cpu", "--threads", "1", *arguments]) == 0


def card(*arguments, scores=None, sampled=DRAWN, samples=0, **changes) -> str:
    """The README.md that an export of a random network has."""
    torch.manual_seed(0)
    config = config_of(**changes)
    kind = settings(conditioning=config["model"]["conditioning"])
    levels = diffusion(T, learned_variance=changes.get("learned", False))
    network = make_network(kind, levels, tuple(config["data"]["shape"]), config["data"]["class_names"])
    write_json("models/ddpm/config.json", config)
    save_weights(Path("models/ddpm/final.safetensors"), awake(network).state_dict())
    save_weights(Path("models/ddpm/best.safetensors"), network.state_dict())
    if scores:
        model = {"checkpoint": "final", "sha256": sha256("models/ddpm/final.safetensors")}
        of_final = {name: {**scores[name], "model": model, "settings": sampled} for name in ("ddpm", "ddim")}
        write_json("reports/evaluate/metrics.json", {**scores, **of_final})
    export("--samples", str(samples), *arguments)
    return Path("out/diffusers/README.md").read_text(encoding="utf-8")


def results(text):
    """The metrics of its metadata, by name."""
    return {result.metric_name: result for result in ModelCard(text).data.eval_results or []}


@pytest.mark.parametrize("conditioning", ["class", "none"])
def test_card_metadata_is_read_by_hubs(conditioning):
    card(conditioning=conditioning)
    found = ModelCard.load(Path("out/diffusers/README.md")).data.to_dict()
    assert (found["license"], found["library_name"]) == ("mit", "diffusers")
    assert found["pipeline_tag"] == "unconditional-image-generation"
    assert {"ddpm", "diffusers"} <= set(found["tags"])
    assert "datasets" not in found  # no hub's
    assert "model-index" not in found


def test_card_links_the_data_set():
    text = card(scores=METRICS, dataset="mnist", conditioning="none", shape=(8, 8, 1))
    assert ModelCard(text).data.datasets == ["ylecun/mnist"]
    assert {result.dataset_type for result in results(text).values()} == {"ylecun/mnist"}
    assert "images like those of MNIST" in text


def test_card_metrics_are_named_by_their_extractor():
    found = results(card("--keep-classes", scores=METRICS))
    assert {name: (result.metric_type, result.metric_value) for name, result in found.items()} == {
        f"{FID_NAME} (DDPM, 1,000 steps)": ("fid-own-classifier", 0.082),
        f"{ACCURACY_NAME} (DDPM, 1,000 steps)": ("accuracy", 0.9877),
        "FID (Heun, 50 steps)": ("fid", 12.346),
        f"{FID_NAME} (Heun, 50 steps)": ("fid-own-classifier", 0.123),
        f"{ACCURACY_NAME} (Heun, 50 steps)": ("accuracy", 0.9),
    }


@pytest.mark.parametrize(
    ("arguments", "sampled"),
    [
        (["--label", "7"], DRAWN),
        ([], DRAWN),
        (["--keep-classes", "--checkpoint", "best"], DRAWN),
        (["--keep-classes", "--thresholding", "none"], DRAWN),
        (["--keep-classes"], DRAWN | {"guidance": 2.0}),
        (["--keep-classes"], DRAWN | {"variance": "large"}),
        (["--keep-classes"], {}),
    ],
)
def test_card_metadata_omits_scores_of_other_samples(arguments, sampled):
    """Whatever params.yaml says now."""
    Path("params.yaml").write_text("sample_ddpm: {guidance: 1.0}\nsample_ddim: {guidance: 1.0}\n")
    text = card(*arguments, scores=METRICS, sampled=sampled)
    assert results(text) == {}
    assert "| DDPM | 1,000 | 0.082 ± 0.006 | 0.085 | 98.8% |" in text
    assert ("in the shares of the training images, not of this export" in text) == ("--keep-classes" not in arguments)


def test_card_has_the_scores_of_its_weights_alone(capsys):
    """Wherever the folder is, and whatever was trained since."""
    card(scores=METRICS)
    shutil.copytree("models/ddpm", "models/other")
    final = Path("models/ddpm/final.safetensors")
    save_weights(final, {name: value + 1 for name, value in read_weights(final, "train").items()})
    capsys.readouterr()
    export("-o", "out/again", "--samples", "0")
    assert "the scores of DDPM and Heun are of other weights, so they are left out" in capsys.readouterr().out
    export("-m", "models/other", "-o", "other", "--samples", "0")
    assert "## Scores" not in Path("out/again/README.md").read_text()
    assert "## Scores" in Path("other/README.md").read_text()


@pytest.mark.parametrize(
    "changes", [{"accuracy": "x"}, {"cost": []}, {"classifier": {"fid": [1]}}, {"classifier": {"fid_sd": -1}}]
)
def test_card_refuses_damaged_scores(changes, error):
    card(scores=METRICS)
    metrics = json.loads(Path("reports/evaluate/metrics.json").read_text())
    metrics["ddim"] |= changes
    write_json("reports/evaluate/metrics.json", metrics)
    assert error("export", "--samples", "0").startswith(f"reports/evaluate/metrics.json: ddim.{next(iter(changes))}")


def run_code(text, monkeypatch):
    """Run the card's block of Python where it stands; what it leaves."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir("out/diffusers")
    left = {}
    exec(code, left)
    return left


@pytest.mark.parametrize(
    ("arguments", "learned", "shape"), [([], False, (8, 8, 1)), (["--variance", "learned"], True, (8, 12, 3))]
)
def test_card_code_generates_images(arguments, learned, shape, monkeypatch):
    left = run_code(card(*arguments, learned=learned, shape=shape), monkeypatch)
    assert len(left["images"]) == 4
    with Image.open("image.png") as picture:
        assert picture.size == shape[1::-1]
        assert picture.mode == ("L" if shape[2] == 1 else "RGB")
        assert np.asarray(picture).std() > 0


@pytest.mark.parametrize(("arguments", "learned"), [([], False), (["--variance", "learned"], True)])
def test_card_code_generates_classes(arguments, learned, monkeypatch):
    left = run_code(card("--keep-classes", *arguments, learned=learned, shape=(8, 12, 3)), monkeypatch)
    assert left["images"].shape == (2, 3, 8, 12)
    assert left["images"].std() > 0


@pytest.mark.parametrize(("arguments", "pictures"), [(["--keep-classes"], 10), (["--label", "3"], 12)])
def test_card_shows_samples(arguments, pictures):
    text = card(*arguments, samples=pictures)
    assert f"![samples of DDIM with {T} steps](samples.png)" in text
    with Image.open("out/diffusers/samples.png") as picture:
        assert picture.width * picture.height > pictures * 48 * 48
    assert "samples.png" not in card()
    assert not Path("out/diffusers/samples.png").exists()


@pytest.mark.parametrize(
    ("arguments", "conditioning", "said"),
    [
        (["--label", "7"], "class", "The conditioning of this export is `7` at every step"),
        (["--text", "the digit 3"], "text", "The conditioning of this export is `the digit 3` at every step"),
        ([], "class", "The conditioning of this export is no class at every step"),
        ([], "none", "The network was trained without classes"),
        ([], "mask", "has no input channels for known pixels"),
        (["--keep-classes"], "class", "0 to 9: `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9`; 10 means no class"),
    ],
)
def test_card_names_the_conditioning(arguments, conditioning, said):
    assert said in card(*arguments, conditioning=conditioning)


def test_card_offers_no_class_after_condition_dropout_only():
    config = config_of()
    facts = CardInfo(ExportOptions(keep_classes=True), True, False, "mit")
    assert "10 means no class" in write_card(config, facts)
    assert "For classifier-free guidance" in write_card(config, facts)
    config["training"]["condition_dropout"] = 0.0
    assert "no class" not in write_card(config, facts)


def test_card_lists_the_training():
    text = card("--checkpoint", "best")
    facts = {"noise schedule": "linear, T = 20", "steps": 500, "learning rate": 0.002, "checkpoint": "best", "seed": 4}
    assert all(f"| {name} | {value} |" in text for name, value in facts.items())
    assert "loss weight" not in text


def test_card_escapes_class_names():
    names = ["`x` | y", "# big\nline", "---", "<b>|x\x1b[2J", *(f"class {k}" for k in range(29))]
    scores = {name: {**METRICS[name], "sampler": "<b>|x"} for name in ("ddpm", "ddim")}
    text = card("--keep-classes", "--license", "[a](b)", names=names, dataset="<i>|\x1b[2J", scores=scores)
    assert "`'x' / y`, `# big line`, `---`, `<b>/x\\x1b[2J`" in text
    assert "and 13 more" in text
    assert "# ddpm-&lt;i&gt;\\|" in text
    assert "| &lt;b&gt;\\|x | 1,000 |" in text
    assert "\x1b" not in text
    assert ModelCard(text).data.license == "[a](b)"
    assert "\n# big" not in text


def test_card_license():
    assert ModelCard(card("--license", "cc-by-4.0")).data.license == "cc-by-4.0"
    foreign = config_of(dataset="imported", conditioning="none", names=["image"])
    facts = CardInfo(ExportOptions(), False, False, None)
    text = write_card(foreign, facts)
    assert ModelCard(text).data.license is None
    assert "Their license is that of their source" in text
    assert "like those of" not in text


def test_card_of_an_import_has_no_license():
    card()
    assert main(["import"]) == 0
    export("-m", "models/imported", "-o", "again", "--samples", "0")
    assert ModelCard.load(Path("again/README.md")).data.license is None


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (20, 20), (97, 1), (4000, 50), (120, 40)])
def test_steps_of_divides_t(timesteps, steps):
    assert steps_of(timesteps) == steps
