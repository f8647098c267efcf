"""The package: its dependencies, its version, the command `ddpm`, and its completion."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomlkit
from conftest import ROOT
from packaging.requirements import Requirement

import ddpm
from ddpm.cli.main import GRADIO, main
from ddpm.core.params import keys_of
from ddpm.experiments.recipe import recipe_names

PROJECT = tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The distribution of an imported module, where the names differ, or which other one installs it.
DISTRIBUTIONS = {
    "PIL": "pillow", "pyarrow": "datasets", "pydantic_core": "pydantic", "requests": "wandb", "sklearn": "scikit-learn",
    "starlette": "gradio", "torch_fidelity": "torch-fidelity", "vl_convert": "vl-convert-python", "yaml": "pyyaml",
}  # fmt: skip


def names(requirements):
    return {Requirement(line).name for line in requirements}


def imported(path):
    """Returns the distributions that a file imports, those at its top apart from all."""

    def modules(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module

    tree = ast.parse(path.read_text())
    own = {"ddpm", "stages", *sys.stdlib_module_names}
    parts = ({module.split(".")[0] for module in modules(nodes)} - own for nodes in (tree.body, ast.walk(tree)))
    return tuple({DISTRIBUTIONS.get(name, name) for name in part} for part in parts)


def test_dependencies_are_the_imported_packages():
    """What an extra installs is imported where it is needed, within functions, but for the page itself."""
    files = [path for folder in ("ddpm", "stages") for path in (ROOT / folder).rglob("*.py")]
    required, optional = names(PROJECT["dependencies"]), names(line for extra in EXTRAS.values() for line in extra)
    found = {path: imported(path) for path in files}
    assert set().union(*(every for _, every in found.values())) - optional | {"dvc"} == required
    for path, (at_the_top, _) in found.items():
        assert at_the_top <= required | (names(EXTRAS["demo"]) if "demo" in path.parts else set()), path


def test_requirements_files_include_the_project():
    """Beside it, requirements.txt only pins versions that pyproject.toml allows."""
    editable, *pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert editable == "-e .[dev]"
    declared = {Requirement(line).name: Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["dev"]]}
    for name, version in (pin.split("==") for pin in pins):
        assert version in declared[name].specifier
    assert "-e .[demo]" in (ROOT / "requirements-demo.txt").read_text().splitlines()
    assert EXTRAS["demo"] == [GRADIO]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddpm {ddpm.__version__}\n"


@pytest.fixture
def command(tmp_path):
    """command("sample", ...) runs `ddpm` as pip installs it, in an empty folder, and where PyTorch cannot be imported."""
    module, function = PROJECT["scripts"]["ddpm"].split(":")
    script, folder = tmp_path / "bin/ddpm", tmp_path / "empty"
    for path in (script.parent, folder):
        path.mkdir()
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    (script.parent / "torch.py").write_text("raise AssertionError('imported')")

    def run(*arguments, program="ddpm", **env):
        start = [sys.executable, *([str(script)] if program == "ddpm" else ["-m", "ddpm"])]
        env = os.environ | {"PYTHONPATH": f"{script.parent}{os.pathsep}{ROOT}"} | env
        return subprocess.run([*start, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("program", ["ddpm", "python -m ddpm"])
def test_command_is_named_as_it_was_typed(command, program):
    ended = command("smple", program=program)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: No such command 'smple'. Did you mean 'sample'?; see `{program} --help`\n"


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("ddpm sa", ["sample"]),
        ("ddpm sample --sampler ", keys_of("sampling/samplers.py", "SAMPLERS")),
        ("ddpm recipe ", recipe_names()),
    ],
)
def test_completion_imports_no_torch(command, line, completions):
    ended = command(_DDPM_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == list(completions)


def test_completion_script_is_that_of_the_command(command):
    """`python -m ddpm` shows it too: a shell completes by the first word."""
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is then the value of the option
    ended = command("--show-completion", "bash", program="python -m ddpm", **named)
    assert ended.stdout.splitlines()[-1] == "complete -o default -F _ddpm_completion ddpm"
    assert "_DDPM_COMPLETE=complete_bash" in ended.stdout


@pytest.mark.parametrize(
    "line", ["sample", "compare", "animate", "interpolate seed:1 seed:2", "inpaint", "reconstruct", "info", "export",
             "recipe digits", "record digits", "results"],
)  # fmt: skip
def test_command_outside_of_a_project_says_so(error, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    message = error(*line.split())
    assert "not found: this folder is no project; run the command in the folder of the project" in message
    assert ("--model" in message) == (line.split()[0] not in ("recipe", "record", "results"))
    assert not Path("out").exists()
