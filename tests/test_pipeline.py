"""dvc.yaml against the code: a stage depends on exactly what it imports, and declares exactly the params that it reads.

Both checks are shown to fail on mutated copies. The one exemption: imports inside a function, which stages/train.py uses for
previews that no other stage reads.
"""

import ast
import copy
import importlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
UNDECLARED = {"runtime"}


def module_file(name):
    """The file of a module of the project, None for any other."""
    path = ROOT.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def top_imports(source):
    """Names of the modules that a file imports when it is loaded: `from a import b` may mean a module a.b."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(stage, sources=None):
    """All project files that a stage loads, itself included, relative to the root; `sources` replaces the text of some."""
    sources = sources or {}
    seen, todo = set(), [f"stages.{stage}"]
    while todo:
        path = module_file(todo.pop())
        if path is None or path in seen:
            continue
        seen.add(path)
        name = path.relative_to(ROOT).as_posix()
        todo += top_imports(sources.get(name, path.read_text()))
    return {path.relative_to(ROOT).as_posix() for path in seen}


def missing_and_idle_deps(stage, definition, sources=None):
    """Files that are imported but no dep, and deps on code that nothing imports."""
    deps = [dep for dep in definition["deps"] if dep.startswith(("ddpm", "stages"))]
    files = {f for f in imported_files(stage, sources) if (ROOT / f).read_text().strip() or f in (sources or {})}

    def covers(dep, file):
        return file == dep or file.startswith(dep + "/")

    missing = {file for file in files if not any(covers(dep, file) for dep in deps)}
    idle = {dep for dep in deps if not any(covers(dep, file) for file in files)}
    return missing, idle


def load_call(source):
    """The stage's one call of params.load."""
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "params.load"
    ]
    assert len(calls) == 1
    return calls[0]


def sections_read(source):
    """The keyword names of that call."""
    return {keyword.arg for keyword in load_call(source).keywords}


def undeclared_and_unread(definition, source):
    """Sections that are read but not declared, and the other way round."""
    read = sections_read(source) - UNDECLARED
    declared = {name.split(".")[0] for name in definition["params"]}
    return read - declared, declared - read


@pytest.mark.parametrize("stage", STAGES)
def test_keys_that_are_declared_alone_are_the_keys_that_are_read(stage):
    """A stage that declares `section.key` reads the section through a model of just these keys."""
    dotted = {}
    for name in STAGES[stage]["params"]:
        if "." in name:
            dotted.setdefault(name.split(".")[0], set()).add(name.split(".")[1])
    module = importlib.import_module(f"stages.{stage}")
    models = {keyword.arg: ast.unparse(keyword.value) for keyword in load_call(stage_source(stage)).keywords}
    for section, keys in dotted.items():
        assert set(getattr(module, models[section]).model_fields) == keys
    for section, name in models.items():
        ignoring = getattr(getattr(module, name, None), "model_config", {}).get("extra") == "ignore"
        assert ignoring == (section in dotted)


def stage_source(stage):
    return (ROOT / "stages" / f"{stage}.py").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_what_it_imports(stage):
    assert missing_and_idle_deps(stage, STAGES[stage]) == (set(), set())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_params_that_it_reads(stage):
    assert undeclared_and_unread(STAGES[stage], stage_source(stage)) == (set(), set())


@pytest.mark.parametrize("stage", STAGES)
def test_the_checks_see_every_missing_and_every_idle_entry(stage):
    for dep in STAGES[stage]["deps"]:
        if dep.startswith(("ddpm", "stages")):
            mutated = copy.deepcopy(STAGES[stage])
            mutated["deps"].remove(dep)
            missing, _ = missing_and_idle_deps(stage, mutated)
            assert missing, f"{dep} was taken away unnoticed"
    idle = {"deps": [*STAGES[stage]["deps"], "ddpm/nothing"]}
    assert missing_and_idle_deps(stage, idle)[1] == {"ddpm/nothing"}
    for name in STAGES[stage]["params"]:
        section = name.split(".")[0]
        mutated = {"params": [p for p in STAGES[stage]["params"] if p.split(".")[0] != section]}
        assert undeclared_and_unread(mutated, stage_source(stage)) == ({section}, set())
    mutated = {"params": [*STAGES[stage]["params"], "never"]}
    assert undeclared_and_unread(mutated, stage_source(stage)) == (set(), {"never"})


def test_a_new_import_anywhere_below_a_stage_is_noticed():
    name = "ddpm/networks/unet.py"
    sources = {name: "import ddpm.features.classifier\n" + (ROOT / name).read_text()}
    missing, _ = missing_and_idle_deps("sample_ddpm", STAGES["sample_ddpm"], sources)
    assert "ddpm/judge/classifier.py" in missing


def test_imports_point_one_way():
    """stages, app -> evaluation, judge, training, sampling -> networks, diffusion, data -> params, files, runtime, weights."""
    ranks = {"__main__.py": 6, "app": 5, "evaluation": 4} | dict.fromkeys(["judge", "training", "sampling"], 3)
    ranks |= dict.fromkeys(["networks", "diffusion", "data", "reporting"], 2)
    for path in (ROOT / "ddpm").rglob("*.py"):
        parts = path.relative_to(ROOT / "ddpm").parts
        rank = ranks.get(parts[0], 1)
        for name in top_imports(path.read_text()):
            if name and name.startswith("ddpm.") and module_file(name):
                other = name.split(".")[1]
                assert other == parts[0] or ranks.get(other, 1) <= rank, f"{path} imports {name}"
                assert (parts[0], other) != ("training", "sampling")
    assert not any("import" in init.read_text() for init in (ROOT / "ddpm").rglob("__init__.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_stages_keep_the_rules(stage):
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
    # An uncached output switches off the run cache of its stage. Only the seconds-long report may lose it, and the sweep, which
    # is frozen and run on demand.
    uncached = [out for out in definition.get("outs", []) if isinstance(out, dict)]
    pages = {"report": "reports/index.md", "sweep": "reports/sweep/index.md"}
    assert uncached == ([{pages[stage]: {"cache": False}}] if stage in pages else [])
    assert definition.get("frozen", False) == (stage == "sweep")


def test_no_stage_depends_on_a_file_with_timings():
    timed = {
        "evaluate/metrics.json",
        "sample_ddpm/metrics.json",
        "sample_ddim/metrics.json",
        "train/speed.csv",
        "train/training.png",
    }
    for stage, definition in STAGES.items():
        assert not {f"reports/{name}" for name in timed} & set(definition["deps"]), stage


def test_the_section_of_no_stage_is_in_params_and_every_other_one_is_declared():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    declared = {name.split(".")[0] for definition in STAGES.values() for name in definition["params"]}
    assert set(params) == declared | UNDECLARED


def test_dvc_changes_one_line_of_params(tmp_path):
    """`-S` rewrites the file: block lists, floats as 2.0e-4 and comments must survive."""
    from dvc.utils.serialize import modify_yaml

    copied = tmp_path / "params.yaml"
    copied.write_text((ROOT / "params.yaml").read_text())
    with modify_yaml(str(copied)) as params:
        params["schedule"] = "cosine"
    before, after = (path.read_text().splitlines() for path in (ROOT / "params.yaml", copied))
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][1].startswith("schedule: cosine")
    assert "#" in changed[0][1]
