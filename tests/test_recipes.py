"""Recipes: their files are correct, DVC parses their options, and a small version of each runs through the pipeline."""

import hashlib
import pickle
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY, edit, input_error
from dvc.utils.hydra import apply_overrides
from PIL import Image
from raw_files import idx
from torchvision.datasets import CIFAR10

from ddpm.cli.main import main
from ddpm.core.files import read_json
from ddpm.core.params import make
from ddpm.core.yaml_files import read_yaml
from ddpm.data.loader import Batches
from ddpm.datasets.idx import IDX_FILES
from ddpm.datasets.registry import DIGITS
from ddpm.experiments import recipe as recipes
from ddpm.experiments.all_params import AllParams
from ddpm.experiments.recipe import full_params, options, read_changes, read_recipe, recipe_names
from ddpm.experiments.runner import active_stages
from ddpm.networks.registry import make_network
from ddpm.networks.unet import UNet
from ddpm.training.trainer import Trainer

PARAMS = ROOT / "params.yaml"
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
CPU = torch.device("cpu")
NAMES = recipe_names()
# Sizes and classes as they were published; image_folder has what prepare_data makes of it.
NATIVE = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "image_folder": (0, 0, 3),
}
IMAGENET = [f"n{k:08}" for k in range(100)]
CLASSES = dict.fromkeys(("imagenet100", "imagenet100_128"), IMAGENET) | {"imagenet_sample": IMAGENET[:12]}  # others: ten
T = 32
LARGE = 10_000_000  # parameters from which a step takes seconds
# What stays of a recipe in its small version: all but sizes and counts.
QUICK = ("mnist_cpu",)
SMALLER = {"imagenet100": 16, "imagenet100_128": 16, "imagenet_sample": 16}
# On top of TINY: networks of several levels with attention take longer than the one that it is made for.
TINIER = {
    "diffusion.timesteps": T,
    "sample_ddpm.samples": 12,
    "sample_ddim.samples": 12,
    "evaluate.reconstruction_images": 6,
    "evaluate.likelihood_images": 4,
    "evaluate.round_trip_images": 2,
    "guidance.samples": 12,
    "guidance.scales": [0.0, 2.0],
    "edit.images": 1,
    "edit.scored_images": 2,
    "edit.steps": 3,
    "sweep.samples": 12,
    "sweep.full_length": False,
    "report.tile": 8,
    "report.columns": 2,
}


def settings_of(name):
    return make(AllParams, **full_params(read_recipe(name), params=PARAMS))


def shape_of(settings):
    height, width, channels = NATIVE[settings.dataset]
    size = settings.prepare_data.image_size
    return size or height, size or width, channels


def class_names_of(name):
    return CLASSES.get(name, DIGITS)


def marked(quick):
    """Recipes, the ones that `quick` denies for -m slow."""
    return [pytest.param(name, marks=[] if quick(name) else pytest.mark.slow) for name in NAMES]


def test_recipe_names_contain_the_promised_ones():
    assert {
        "digits", "mnist_unet_mini", "mnist_attention", "mnist_ddim_comparison", "fashion_mnist", "imagenet100", "cifar10",
        "mnist_fast", "mnist_cpu",
    } <= set(NAMES)  # fmt: skip
    assert read_recipe("cifar10").content.parameters == 35_746_307


@pytest.mark.parametrize("name", NAMES)
def test_recipe_states_the_number_of_parameters(name):
    settings = settings_of(name)
    outputs = shape_of(settings)[2] * (2 if settings.diffusion.learned_variance else 1)
    with torch.device("meta"):
        network = UNet(settings.model, shape_of(settings), class_names_of(name), outputs)
    assert sum(p.numel() for p in network.parameters()) == read_recipe(name).content.parameters


@pytest.mark.parametrize("name", NAMES)
def test_recipe_settings_are_consistent(name):
    """Checks what a stage would refuse hours after the start, and the size of the snapshots."""
    s = settings_of(name)
    schedule = s.diffusion.make(s.schedule)
    assert (s.sample_ddim.steps or 1) <= schedule.steps
    assert max(*s.sweep.evaluations, s.sweep.ema_steps) <= schedule.steps
    s.train.check_share(1)
    assert s.train.batch_size % s.train.gradient_accumulation == 0
    for every in (s.train.log_every, s.train.validate_every, s.train.preview_every, s.train.checkpoint_every):
        assert 2 <= s.train.steps / every <= 1000
    # Between two checkpoints, more snapshots than are kept lie on the disk.
    assert s.train.checkpoint_every * s.train.batch_size / s.train.snapshot_every <= 10
    snapshots = 8 * read_recipe(name).content.parameters * s.train.snapshots
    assert snapshots < 3e9, "bytes"
    assert s.train.snapshots >= 3


@pytest.mark.parametrize("name", NAMES)
def test_options_are_parsed_by_dvc(name, tmp_path):
    """Values, types and comments; through a shell that splits an unquoted $(...) and expands patterns."""
    line = " ".join(options(read_recipe(name).content.overrides))
    for shell in filter(shutil.which, ("sh", "bash", "zsh")):
        split = subprocess.run([shell, "-c", f"printf '%s\\n' $(printf %s {shlex.quote(line)})"], capture_output=True, text=True)
        assert split.stdout.split("\n")[:-1] == (line.split(" ") if line else [""])
    copied = tmp_path / "params.yaml"
    shutil.copy(PARAMS, copied)
    apply_overrides(copied, line.split(" ")[1::2])
    arrived, wanted = read_yaml(copied), full_params(read_recipe(name), params=PARAMS)
    assert arrived == wanted
    assert typed(arrived) == typed(wanted)
    assert copied.read_text().count("#") == PARAMS.read_text().count("#")


def typed(tree):
    """Values with their types; an int stands for the float that it equals."""
    if isinstance(tree, dict):
        return {key: typed(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [typed(value) for value in tree]
    return (type(tree).__name__.replace("int", "float"), tree)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, made the current one, with params.yaml."""
    shutil.copy(PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    capsys.readouterr()
    status = main(list(arguments))
    return status, *capsys.readouterr()


def test_list_has_a_line_for_each_recipe(folder, capsys):
    status, out, err = run(capsys, "recipe")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == NAMES
    assert all(f"{read_recipe(line.split()[0]).content.parameters:,}" in line for line in out.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_command_prints_only_options_to_standard_output(folder, capsys, name):
    status, out, err = run(capsys, "recipe", name)
    assert status == 0
    assert out == " ".join(options(read_recipe(name).content.overrides)) + "\n"
    content = read_recipe(name).content
    assert len(err.splitlines()) == bool(content.needs) + len(content.extra)


def test_command_reads_a_recipe_file(folder, capsys):
    Path("mine.yaml").write_text(
        "about: mine\nparameters: 1\noverrides:\n  train:\n    learning_rate: 1e-4\n    flip: true\n    loss_weight: auto\n"
        "  model:\n    channel_mults: [1, 2, 4]\n    conditioning: class+mask\n  diffusion:\n    cosine:\n      s: 0.01\n"
    )
    status, out, err = run(capsys, "recipe", "mine.yaml")
    assert (status, err) == (0, "")
    assert out == (
        "-S train.learning_rate=0.0001 -S train.flip=true -S train.loss_weight=auto -S model.channel_mults=[1,2,4] "
        "-S model.conditioning=class+mask -S diffusion.cosine.s=0.01\n"
    )


def own(overrides="{}", **lines):
    given = {"about": "mine", "parameters": "1", "overrides": overrides, **lines}
    Path("mine.yaml").write_text("".join(f"{key}: {value}\n" for key, value in given.items() if value is not None))


MISTAKES = [
    (
        {"overrides": "{train: {stesp: 3}}"},
        "mine.yaml: overrides.train: 'stesp' is unknown; did you mean 'steps'? Valid: ",
    ),
    ({"overrides": "{diffusion: {cosine: {t: 3}}}"}, "mine.yaml: overrides.diffusion.cosine: 't' is unknown"),
    ({"overrides": "{train: 3}"}, "mine.yaml: overrides: "),
    ({"overrides": "{schedule: {name: cosine}}"}, "mine.yaml: overrides: "),
    ({"overrides": "{schedule: cosin}"}, "mine.yaml: schedule: "),
    ({"overrides": "{train: {flip: 1}}"}, "mine.yaml: train.flip: "),
    ({"overrides": "{train: {steps: null}}"}, "train.steps: None cannot be passed to DVC"),
    ({"overrides": "{prepare_data: {folder: my pictures}}"}, "prepare_data.folder: "),
    ({"overrides": "{prepare_data: {folder: 'null'}}"}, "prepare_data.folder: "),
    ({"overrides": "{prepare_data: {folder: '12'}}"}, "prepare_data.folder: "),
    ({"overrides": "[1]"}, "mine.yaml: overrides: "),
    ({"parameters": "many"}, "mine.yaml: parameters: "),
    ({"about": None}, "mine.yaml: about: "),
    ({"abuot": "x"}, "mine.yaml: abuot: "),
    ({"extra": "[1]"}, "mine.yaml: extra.0: "),
    ({"about": "'"}, "mine.yaml line "),
    ({1: "x"}, "mine.yaml: "),
]


@pytest.mark.parametrize(("lines", "said"), MISTAKES, ids=str)
def test_command_reports_a_mistake_in_one_line(folder, capsys, lines, said):
    own(**{str(key): value for key, value in lines.items()})
    status, out, err = run(capsys, "recipe", "mine.yaml")
    assert (status, out, len(err.splitlines())) == (1, "", 1), err
    assert err.startswith(f"error: {said}")


def test_command_reports_unknown_and_missing_files(folder, capsys):
    assert "error: recipe: 'mnist_fats' is unknown; did you mean 'mnist_fast'? Valid: " in run(capsys, "recipe", "mnist_fats")[2]
    assert run(capsys, "recipe", "nowhere.yaml")[2].startswith("error: nowhere.yaml: cannot be read")
    Path("params.yaml").unlink()
    assert run(capsys, "recipe", "digits")[2].startswith("error: params.yaml: not found")


def test_read_changes_parses_values():
    for words, changes in (
        (["train.steps=5", "train.learning_rate=1e-4"], {"train": {"steps": 5, "learning_rate": 1e-4}}),
        (["model.channel_mults=[1,2]"], {"model": {"channel_mults": [1, 2]}}),
        (["schedule=cosine", "train.flip=true"], {"schedule": "cosine", "train": {"flip": True}}),
        (["diffusion.edm.rho=7", "a=b=c"], {"diffusion": {"edm": {"rho": 7}}, "a": "b=c"}),
        ([], {}),
    ):
        assert read_changes(words) == changes
    for words in (["train.steps"], ["=5"], ["train.=5"], ["a=1", "a.b=2"]):
        with input_error("set_param", match=r"write `-S train.steps=100`$"):
            read_changes(words)
    for value in ("[1", "1: 2: 3", "!!int x", "&a [*a]", "[" * 5000, "1" * 5000, "{b: 1, b: 2}"):
        with input_error("set_param", match=r"has a value that cannot be read: [^\n]*$"):
            read_changes([f"a={value}"])


@pytest.mark.parametrize("name", marked(lambda name: read_recipe(name).content.parameters <= LARGE))
def test_recipe_trains_one_step(name):
    """Of random images, in as many parts as the recipe asks for, up to two."""
    settings = settings_of(name)
    shape, rng = shape_of(settings), np.random.default_rng(0)
    parts = min(settings.train.gradient_accumulation, 2)
    images, labels = rng.integers(0, 256, (4, *shape), np.uint8), np.arange(4)
    torch.manual_seed(0)
    network = make_network(settings.model, settings.diffusion, shape, class_names_of(name))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    train = settings.train.model_copy(update={"batch_size": 2, "gradient_accumulation": parts, "snapshots": 0})
    batches = Batches(images, labels, 0, CPU, train.flip)
    schedule = settings.diffusion.make(settings.schedule)
    trainer = Trainer(network, schedule, settings.prediction, batches, train, 0)
    trainer.train_step()
    trainer.guard.check()
    assert trainer.step == 1
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(value.isfinite().all() for value in network.state_dict().values())


def put_mnist(raw, name, rng):
    (raw / name).mkdir(parents=True)
    for (split, kind), file in IDX_FILES.items():
        count = 60 if split == "train" else 30
        array = rng.integers(0, 256, (count, 28, 28), np.uint8) if kind == "images" else (np.arange(count) % 10).astype(np.uint8)
        (raw / name / file).write_bytes(idx(array))


def put_cifar10(raw, rng, monkeypatch):
    folder = raw / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def put(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        content = {"data": rng.integers(0, 256, (20, 3072), np.uint8), "labels": [k % 10 for k in range(20)]}
        monkeypatch.setattr(CIFAR10, attribute, [[name, put(name, content)] for name, _ in getattr(CIFAR10, attribute)])
    checksum = put(CIFAR10.meta["filename"], {"label_names": [f"class {k}" for k in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksum})


def put_pictures(raw, name, rng):
    """A folder of pictures of four classes, or an archive of it by the same name."""
    folder = name.removesuffix(".zip")
    for split, count in (("train", 12), ("val", 6)):
        for label in IMAGENET[:4]:
            (raw / folder / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (40, 50 + k, 3), np.uint8)
                # One is gray, as some of ImageNet are.
                Image.fromarray(pixels if k else pixels[..., 0]).save(raw / folder / split / label / f"{k}.JPEG")
    if name != folder:
        shutil.make_archive(str(raw / folder), "zip", raw / folder)
        shutil.rmtree(raw / folder)


def put_raw(name, dataset, monkeypatch):
    raw, rng = Path("raw"), np.random.default_rng(0)
    if dataset in ("mnist", "fashion_mnist"):
        put_mnist(raw, dataset, rng)
    elif dataset == "cifar10":
        put_cifar10(raw, rng, monkeypatch)
    elif dataset == "image_folder":
        put_pictures(raw, read_recipe(name).content.overrides["prepare_data"]["folder"], rng)


def small(name):
    """params.yaml by the recipe, and then small; levels, attention, schedule, sampler, conditioning and accumulation stay."""
    recipe = full_params(read_recipe(name), params=PARAMS)
    tree = edit(full_params(read_recipe(name), params=PARAMS), **TINY | TINIER)
    tree["model"] |= {"channels": 4, "heads": recipe["model"]["heads"]}
    tree["train"] |= {"batch_size": max(8, recipe["train"]["gradient_accumulation"]), "snapshot_every": 8, "snapshots": 3}
    tree["prepare_data"]["image_size"] = SMALLER.get(name, recipe["prepare_data"]["image_size"])
    for kept in ("schedule", "prediction", "dataset"):
        assert tree[kept] == recipe[kept]
    return tree


@pytest.mark.parametrize("name", marked(lambda name: name in QUICK))
def test_recipe_runs_through_the_pipeline_in_small(name, workspace, monkeypatch):
    tree = small(name)
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    put_raw(name, tree["dataset"], monkeypatch)
    for folder in ("ddpm", "stages"):  # the training is named after the content of its code
        Path(folder).symlink_to(ROOT / folder)
    for stage in active_stages(STAGES):
        import_module(f"stages.{stage}").main()
    if "python -m stages.sweep" in read_recipe(name).content.extra:
        import_module("stages.sweep").main()
        assert Path("reports/sweep/fid.png").is_file()
    scores, trained = (read_json(f"reports/{stage}/metrics.json", stage) for stage in ("evaluate", "train"))
    conditional = tree["model"]["conditioning"] != "none"
    steps = tree["sample_ddpm"]["steps"]
    for sampler, nfe in (("ddpm", T if steps == "all" else min(steps, T)), ("ddim", 5)):
        assert scores[sampler]["cost"]["nfe"] == nfe
        assert scores[sampler]["model"] == {"checkpoint": "final", "sha256": trained["final_sha256"]}
        assert scores[sampler]["settings"]["guidance"] == tree[f"sample_{sampler}"]["guidance"]
        assert scores[sampler]["classifier"]["fid"] > 0
        assert ("accuracy" in scores[sampler]) == conditional
    config = read_json("models/ddpm/config.json", "train")
    assert all(config["model"][key] == value for key, value in tree["model"].items() if value != "auto")
    train = read_recipe(name).content.overrides.get("train", {})
    assert config["training"]["gradient_accumulation"] == train.get("gradient_accumulation", 1)
    for picture in re.findall(r"\]\((report/[^)]+)\)", Path("reports/index.md").read_text()):
        assert (Path("reports") / picture).is_file()


def test_recipes_are_not_a_dep_of_any_stage():
    """Else a new recipe would make every result stale."""
    folder = recipes.FOLDER.relative_to(ROOT).as_posix()
    for stage in STAGES.values():
        assert not any(folder.startswith(dep) for dep in stage["deps"])


def test_active_stages_are_listed_after_their_inputs():
    """Without DVC the stages run in the order of dvc.yaml, so each must stand below those whose outputs it reads."""
    names = active_stages(STAGES)
    assert set(STAGES) - set(names) == {"sweep", "distill"}
    written = {}
    for name in names:
        for entry in (entry for kind in ("outs", "metrics", "plots") for entry in STAGES[name].get(kind, [])):
            written[entry if isinstance(entry, str) else next(iter(entry))] = name
    readers = [(name, dep) for name in names for dep in STAGES[name]["deps"]]
    pairs = {
        (written[path], name)
        for name, dep in readers
        for path in written
        if f"{dep}/".startswith(f"{path}/") or path.startswith(f"{dep}/")
    }
    assert len(pairs) > 12
    assert all(names.index(writer) < names.index(reader) for writer, reader in pairs)


def test_all_params_has_every_section():
    assert set(AllParams.model_fields) == set(read_yaml(PARAMS))


def test_params_lists_can_be_emptied_by_dvc(tmp_path):
    """Where a comment stands behind the key of a list, what DVC writes for [] can be no YAML any more."""
    sections = {name: keys for name, keys in read_yaml(PARAMS).items() if isinstance(keys, dict)}
    lists = [(section, key) for section, keys in sections.items() for key, value in keys.items() if isinstance(value, list)]
    assert ("guidance", "scales") in lists
    for section, key in lists:
        path = shutil.copy(PARAMS, tmp_path)
        apply_overrides(path, [f"{section}.{key}=[]"])
        assert read_yaml(path)[section][key] == []
