"""The steps of the GitHub workflow, run on a small repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
STEPS = {step["name"]: step for job in WORKFLOW["jobs"].values() for step in job["steps"] if "name" in step}
LOCK, METRICS = "dvc.lock is up to date", "Metrics compared with the target branch"

STAGE = {"cmd": "python score.py", "deps": ["score.py"], "params": ["scale"], "metrics": [{"metrics.json": {"cache": False}}]}
SCORE = "import json, yaml\njson.dump({'fid': 2 * yaml.safe_load(open('params.yaml'))['scale']}, open('metrics.json', 'w'))\n"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def step(name: str, **env: str) -> subprocess.CompletedProcess:
    """Runs a step of the workflow as GitHub does."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def commit(message: str, **changes: str) -> None:
    for name, text in changes.items():
        Path(name.replace("_", ".", 1)).write_text(text)
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-qm", message)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one stage, reproduced and committed, without a cache, like a fresh clone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run("git", "init", "-qb", "main")
    run("dvc", "init", "-q")
    commit("Begin", score_py=SCORE, params_yaml="scale: 1\n", dvc_yaml=yaml.safe_dump({"stages": {"score": STAGE}}))
    run("dvc", "repro", "-q")
    commit("Run")
    shutil.rmtree(".dvc/cache", ignore_errors=True)


def test_workflow_covers_the_python_versions_of_the_readme():
    oldest, newest = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text()


def test_workflow_runs_the_commands_of_the_readme_and_no_text_of_pull_requests():
    """Titles and branch names of pull requests reach a shell as variables only."""
    assert {"pip install -r requirements.txt", "pytest"} <= {step.get("run") for step in STEPS.values()}
    assert all("${{" not in step.get("run", "") for step in STEPS.values())


@pytest.mark.slow
def test_workflow_fails_for_an_outdated_lock_file(repository):
    ended = step(LOCK)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    commit("Another scale", params_yaml="scale: 3\n")
    ended = step(LOCK)
    assert ended.returncode == 1
    assert "::error file=dvc.lock::" in ended.stdout
    commit("Back, with other code", params_yaml="scale: 1\n", score_py=SCORE + "# more\n")
    assert step(LOCK).returncode == 1


@pytest.mark.slow
def test_workflow_comment_lists_changed_params_and_metrics(repository, tmp_path):
    run("git", "checkout", "-qb", "wider")
    Path("params.yaml").write_text("scale: 3\n")
    run("dvc", "repro", "-q")
    commit("Wider")
    summary = tmp_path / "summary.md"
    ended = step(METRICS, BASE="main", GITHUB_STEP_SUMMARY=str(summary))
    assert ended.returncode == 0, ended.stderr
    comment = Path("comment.md").read_text()
    assert summary.read_text() == comment
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in comment.splitlines()]
    assert ["params.yaml", "scale", "1", "3"] in rows
    assert ["metrics.json", "fid", "2", "6", "4"] in rows
