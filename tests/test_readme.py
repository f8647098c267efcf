"""The README files: length, links, tables, and the snippets of *Extend it*, which are run in a copy of the project."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY, edit_params

README = (ROOT / "README.md").read_text()
FOLDERS = sorted(path for path in (ROOT / "ddpm").iterdir() if (path / "__init__.py").is_file())
DOCUMENTED = [ROOT, *(ROOT / name for name in ("stages", "reports", "tests", "data")), *FOLDERS]
DOCUMENTS = [path for folder in DOCUMENTED if (path := folder / "README.md").is_file()]
MAX_LINES = 220
# Runs modules in one process, each as `python -m` does.
RUN = """
import json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


def section(title):
    """Returns the text below a heading of the README."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(document):
    """Returns the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", without_code(document.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_in_every_folder():
    assert len(README.splitlines()) <= MAX_LINES
    assert [document.parent for document in DOCUMENTS] == DOCUMENTED


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.relative_to(ROOT).as_posix())
def test_readme_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if not target.startswith(("https://", "http://")):
            path, _, anchor = target.partition("#")
            linked = (document.parent / path).resolve() if path else document
            assert linked.exists(), f"{document.relative_to(ROOT)}: no file {target}"
            assert not anchor or anchor in anchors(linked), f"{document.relative_to(ROOT)}: no heading {target}"


def test_readme_names_what_each_stage_depends_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rows = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \|$", section("The pipeline"), re.M)
    named = {stage: folders for names, folders in rows for stage in re.findall(r"`(.*?)`", names)}
    assert set(named) == set(stages)
    for name, stage in stages.items():
        folders = {dep.removeprefix("ddpm/") for dep in stage["deps"] if dep.startswith("ddpm/")}
        assert "core" in folders
        assert ("data" in folders) == (name != "report")
        assert stage.get("frozen") or set(re.findall(r"`(.*?)`", named[name])) == folders - {"core", "data"}, name


def snippets():
    """Returns (code, commands) of each snippet of *Extend it*: a paragraph with commands, and a block of code."""
    pairs = re.findall(r"^\*\*(.*?)^```python\n(.*?)^```", section("Extend it"), re.M | re.S)
    return [(code, re.findall(r"`((?:dvc|python -m) [^`]*)`", text)) for text, code in pairs]


def insert(folder, code):
    """Puts a snippet into the project in `folder`, as its reader would.

    A line "# PATH" starts a part for that file. In it, a line that ends with "# row of NAME" is the new last row of that
    registry; the other lines go in front of the registry. A file that does not exist is created.
    """
    for name, part in re.findall(r"^# (ddpm/\S+)\n(.*?)(?=^# ddpm/|\Z)", code, re.M | re.S):
        path = folder / name
        if not path.exists():
            path.write_text(part)
            continue
        lines = path.read_text().splitlines()
        row, registry = re.search(r"^(.*?) *# row of (\w+)$", part, re.M).groups()
        (node,) = [node for node in ast.parse("\n".join(lines)).body if re.match(rf"{registry}\b.* = ", ast.unparse(node))]
        end, bracket = node.end_lineno - 1, node.end_col_offset - 1
        entries = lines[end][:bracket]
        comma = "," if entries.strip() and not entries.rstrip().endswith(("(", "{", ",")) else ""
        lines[end : end + 1] = [entries + comma, row, lines[end][bracket:]]
        lines[node.lineno - 1 : node.lineno - 1] = [line for line in part.splitlines() if "# row of" not in line]
        path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with all snippets, and its tiny pipeline run with the settings of their commands."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("ddpm", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    modules = [
        [f"stages.{stage}"] for stage in ("prepare_data", "train_classifier", "train", "sample_ddpm", "sample_ddim", "evaluate")
    ]
    settings = dict(TINY)
    for code, commands in snippets():
        insert(folder, code)
        for command in commands:
            words = shlex.split(command)
            if words[:3] == ["python", "-m", "ddpm"]:
                modules.append(words[2:])
            else:
                assert words[:3] == ["dvc", "exp", "run"] or words[:2] == ["dvc", "repro"], command
                settings |= {key: yaml.safe_load(value) for key, value in (w.split("=", 1) for w in words if "=" in w)}
    (folder / "example.py").write_text(re.search(r"^```python\n(.*?)^```", section("Use a trained model"), re.M | re.S).group(1))
    modules.append(["example"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("DDPM_DATA_ROOT", "DVC_ROOT", "DVC_STAGE", "PYTHONPATH"):
            patch.delenv(name, raising=False)
        patch.setenv("DDPM_SCRATCH", str(folder / ".scratch"))
        edit_params(**settings)
        ended = subprocess.run([sys.executable, "-c", RUN, json.dumps(modules)], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, settings


def read(path):
    return json.loads(path.read_text())


def test_readme_snippets_are_used_by_the_pipeline(extended):
    """Every new name stands in the settings of the commands, and in what the stages wrote."""
    folder, settings = extended
    scores, config = read(folder / "reports/evaluate/metrics.json")["ddim"], read(folder / "models/ddpm/config.json")
    assert settings["sample_ddim.sampler"] == "consistency"
    assert scores["sampler"] == "Consistency"
    assert (folder / "out/sample.png").is_file()
    assert settings["dataset"] == read(folder / "data/prepared/meta.json")["dataset"] == "shapes"
    with np.load(folder / "samples/ddim.npz") as samples:
        assert samples["arr_0"].shape == (20, 8, 8, 1)
        assert set(samples["arr_1"]) == {0, 1}
    assert settings["model.type"] == config["model"]["type"] == "convnet"
    assert settings["train.loss_weight"] == config["training"]["loss_weight"] == "soft_min_snr"
    for extractor in ("classifier", "pixels"):
        assert 1 <= scores[extractor]["vendi"] <= 20
        assert scores[extractor]["fid"] > 0
