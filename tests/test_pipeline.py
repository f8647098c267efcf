"""dvc.yaml against the code: a stage depends on the folders that it imports, and declares the params that it reads."""

import ast
import copy
import functools
import graphlib
import importlib
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from ddpm.evaluation.training_fid import TrainingFID
from ddpm.training.checkpoint import fingerprint, stage_inputs

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
UNDECLARED = {"runtime"}
# Imports point from a higher rank to a lower one; inside a rank, and inside a folder, they form no circle.
RANKS = [
    {"core"},
    {"networks", "diffusion", "data", "datasets"},
    {"features", "training", "sampling"},
    {"report", "plots", "editing", "evaluation", "distillation"},
    {"experiments", "diffusers_io"},
    {"api"},
    {"demo"},
    {"cli", "__main__.py"},
]
# Late imports that are no dependencies: the previews of a training, which no other stage reads; and the check of all of
# params.yaml before a stage, which changes no result; and what reads the initial weights, whose hash is an input of the training.
# stages/train.py imports the scores of a training late too.
EXEMPT = {"ddpm/training/artifacts.py", "ddpm/training/initial.py", "ddpm/core/stage.py"}


def module_file(name):
    """Returns the file of a module of the project relative to the root, None for any other module."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.relative_to(ROOT).as_posix()
    return None


@functools.cache
def imports(source, late=False):
    """Returns the project files that a source imports when it is loaded; late: those imported inside functions too."""
    tree = ast.parse(source)
    names = []
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {file for name in names if name.startswith(("ddpm", "stages")) and (file := module_file(name))}


def folder_of(file):
    """Returns the name directly below ddpm/: of the folder, or of the file where it lies in none."""
    return Path(file).parts[1]


def loaded_files(first, sources=None):
    """Returns all project files that a file loads, itself included; `sources` replaces the text of some."""
    loaded, todo = set(), [first]
    while todo:
        file = todo.pop()
        if file not in loaded:
            loaded.add(file)
            todo += imports((sources or {}).get(file) or (ROOT / file).read_text())
    return loaded


def missing_and_idle_deps(stage, definition, sources=None):
    """Returns the files that are imported but no dep, and the deps on code that nothing imports."""
    deps = [dep for dep in definition["deps"] if dep.startswith(("ddpm", "stages"))]
    files = {file for file in loaded_files(f"stages/{stage}.py", sources) if not file.endswith("__init__.py")}
    missing = {file for file in files if not any(file == dep or file.startswith(dep + "/") for dep in deps)}
    idle = {dep for dep in deps if not any(file == dep or file.startswith(dep + "/") for file in files)}
    return missing, idle


def stage_source(stage):
    return (ROOT / "stages" / f"{stage}.py").read_text()


def sections(stage):
    """Returns section -> name of its model, from the stage's one call of params.load."""
    calls = [node for node in ast.walk(ast.parse(stage_source(stage))) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if ast.unparse(call.func) == "params.load"]
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def undeclared_and_unread(stage, definition):
    """Returns the sections that are read but not declared, and the other way round."""
    read = set(sections(stage)) - UNDECLARED
    declared = {name.split(".")[0] for name in definition["params"]}
    return read - declared, declared - read


@pytest.mark.parametrize("stage", STAGES)
def test_stage_deps_and_params_are_what_it_imports_and_reads(stage):
    assert missing_and_idle_deps(stage, STAGES[stage]) == (set(), set())
    assert undeclared_and_unread(stage, STAGES[stage]) == (set(), set())


@pytest.mark.parametrize("stage", STAGES)
def test_stage_params_of_single_keys_are_those_it_reads(stage):
    """A stage that declares `section.key` reads the section through a model of just these keys."""
    dotted = {}
    for name in STAGES[stage]["params"]:
        if "." in name:
            dotted.setdefault(name.split(".")[0], set()).add(name.split(".")[1])
    module = importlib.import_module(f"stages.{stage}")
    for section, name in sections(stage).items():
        model = getattr(module, name, None)
        assert (getattr(model, "model_config", {}).get("extra") == "ignore") == (section in dotted)
        if section in dotted:
            assert set(model.model_fields) == dotted[section]


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_checks_notice_every_missing_and_idle_entry(stage):
    definition = STAGES[stage]
    for dep in definition["deps"]:
        if dep.startswith(("ddpm", "stages")):
            without = {"deps": [other for other in definition["deps"] if other != dep]}
            assert missing_and_idle_deps(stage, without)[0], f"{dep} was removed unnoticed"
    idle = {"deps": [*definition["deps"], "ddpm/nothing"]}
    assert missing_and_idle_deps(stage, idle)[1] == {"ddpm/nothing"}
    for section in {name.split(".")[0] for name in definition["params"]}:
        without = {"params": [name for name in definition["params"] if name.split(".")[0] != section]}
        assert undeclared_and_unread(stage, without) == ({section}, set())
    unread = copy.deepcopy(definition)
    unread["params"].append("never")
    assert undeclared_and_unread(stage, unread) == (set(), {"never"})


def test_checks_notice_a_new_import_below_a_stage():
    name = "ddpm/networks/unet.py"
    sources = {name: "import ddpm.features.classifier\n" + (ROOT / name).read_text()}
    missing, _ = missing_and_idle_deps("sample_ddpm", STAGES["sample_ddpm"], sources)
    assert "ddpm/features/classifier.py" in missing


def test_code_deps_are_folders_of_ddpm():
    for stage, definition in STAGES.items():
        code = [dep for dep in definition["deps"] if dep.startswith(("ddpm", "stages"))]
        assert set(code) - {f"stages/{stage}.py"} == {dep for dep in code if (ROOT / dep).is_dir() and dep.count("/") == 1}


def test_imports_point_one_way_without_circles():
    """Imports inside functions count too, but for the exempt ones."""
    ranks = {folder: rank for rank, folders in enumerate(RANKS) for folder in folders}
    files, folders = {}, {}
    for path in sorted((ROOT / "ddpm").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if path.name == "__init__.py":
            assert len(path.read_text().splitlines()) <= (60 if path.parent.name == "ddpm" else 1), f"{file} is not nearly empty"
            continue
        # `from ddpm.core import files` names the empty __init__.py too.
        used = {f for f in imports(path.read_text(), late=file not in EXEMPT) if f != file and not f.endswith("__init__.py")}
        files[file] = used
        folder = folder_of(file)
        for other in used:
            assert not other.startswith("stages"), f"{file} imports {other}"
            assert ranks[folder_of(other)] <= ranks[folder], f"{file} imports {other}"
            if folder_of(other) != folder:
                folders.setdefault(folder, set()).add(folder_of(other))
    assert set(ranks) == {folder_of(file) for file in files}
    for graph in (files, folders):
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    assert "sampling" not in folders["training"]
    # The page samples by the Python API alone.
    own = {other for file, used in files.items() if folder_of(file) == "demo" for other in used}
    assert not own & {"ddpm/editing/tasks.py", "ddpm/sampling/generate.py", "ddpm/sampling/progress.py"}


def test_check_of_params_imports_no_slow_library():
    """Every stage loads the sections of all others, and each of these libraries takes a second or more."""
    slow = re.compile(r"^(from|import) (dvclive|matplotlib|pandas|scipy|sklearn|torchvision)\b", re.MULTILINE)
    loaded = loaded_files("ddpm/experiments/all_params.py")
    assert {"ddpm/datasets/registry.py", "ddpm/training/artifacts.py"} < loaded
    assert not [file for file in loaded if slow.search((ROOT / file).read_text())]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A copy of code, params and pipeline, with placeholders for all outputs and a dvc.lock that names them: nothing to rerun."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("ddpm", "stages", "params.yaml", "dvc.yaml", ".dvcignore"):
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copied(ROOT / name, folder / name)
    for definition in STAGES.values():
        for entry in [entry for kind in ("outs", "metrics", "plots") for entry in definition.get(kind, [])]:
            path = folder / (entry if isinstance(entry, str) else next(iter(entry)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("placeholder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo.init(no_scm=True) as repo:
            repo.commit(force=True)
    return folder


def test_state_of_a_scored_training_depends_on_all_that_scores_load():
    read = *STAGES["train"]["deps"], *TrainingFID.INPUTS
    files = {file for file in loaded_files("ddpm/evaluation/training_fid.py") if not file.endswith("__init__.py")}
    assert not [file for file in files if not file.startswith(read)]
    assert all(any(file.startswith(folder) for file in files) for folder in TrainingFID.INPUTS if folder.startswith("ddpm"))


def test_dvc_trains_the_classifier_before_the_network(committed, monkeypatch):
    """The scores of a training need it, although no dep says so: the order of dvc.yaml does."""
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    monkeypatch.chdir(committed)
    with Repo() as repo:
        order = [stage.name for stage in plan_repro(repo.index.graph)]
    assert order.index("train_classifier") < order.index("train")


@contextmanager
def changed(path):
    """Adds a line to a file, which may be new, until the end of the block."""
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(before + b"\n# changed\n")
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ddpm/datasets/archives.py", {"prepare_data"}),
        ("ddpm/editing/inpaint.py", {"edit"}),
        ("ddpm/evaluation/prdc.py", {"guidance", "evaluate"}),
        ("ddpm/sampling/samplers.py", {"sample_ddpm", "sample_ddim", "guidance", "edit", "evaluate"}),
        ("ddpm/report/page.py", {"report"}),
        ("ddpm/cli/main.py", set()),
        ("ddpm/training/README.md", set()),
        ("stages/README.md", set()),
    ],
)
def test_dvc_reruns_only_stages_that_use_a_changed_file(committed, monkeypatch, file, expected):
    """What follows a rerun stage reruns only if its output changed. The sweep is frozen, so it is never named."""
    from dvc.repo import Repo

    monkeypatch.chdir(committed)
    with changed(Path(file)), Repo() as repo:
        assert set(repo.status()) == expected


@pytest.mark.parametrize(
    ("file", "changes"),
    [("ddpm/training/README.md", False), ("ddpm/sampling/samplers.py", False), ("ddpm/training/loop.py", True)],
)
def test_fingerprint_of_training_ignores_documentation(committed, monkeypatch, file, changes):
    monkeypatch.chdir(committed)
    before = fingerprint(stage_inputs("train"))
    with changed(Path(file)):
        assert (fingerprint(stage_inputs("train")) != before) == changes


@pytest.mark.parametrize("stage", STAGES)
def test_stage_definition_keeps_the_rules(stage):
    definition = STAGES[stage]
    assert definition["desc"]
    assert definition["cmd"] == f"python -m stages.{stage}"
    assert len(stage_source(stage).splitlines()) <= 90
    assert "persist" not in str(definition)
    for kind in ("metrics", "plots"):
        for entry in definition.get(kind, []):
            ((path, options),) = entry.items()
            assert path.startswith("reports/")
            assert options["cache"] is False, "reports stay in Git"
    seconds = {f"reports/seconds/{stage}.json": {"cache": False}}
    assert (seconds in definition.get("metrics", [])) == (stage not in ("report", "sweep", "distill"))
    # An uncached output switches off the run cache of its stage. Only the seconds-long report may lose it, and the sweep, which
    # is frozen and run on demand.
    uncached = [out for out in definition.get("outs", []) if isinstance(out, dict)]
    pages = {"report": "reports/index.md", "sweep": "reports/sweep/index.md", "distill": "reports/distill/index.md"}
    assert uncached == ([{pages[stage]: {"cache": False}}] if stage in pages else [])
    assert definition.get("frozen", False) == (stage in ("sweep", "distill"))


def test_stage_deps_hold_no_timings():
    timed = (
        "evaluate/metrics.json",
        "sample_ddpm/metrics.json",
        "sample_ddim/metrics.json",
        "train/speed.csv",
        "train/training.png",
    )
    for stage, definition in STAGES.items():
        assert not {f"reports/{name}" for name in timed} & set(definition["deps"]), stage
        assert not [dep for dep in definition["deps"] if dep.startswith("reports/seconds")], stage


def test_params_sections_are_declared_by_a_stage():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    declared = {name.split(".")[0] for definition in STAGES.values() for name in definition["params"]}
    assert set(params) == declared | UNDECLARED
