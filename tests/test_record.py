"""Records of recipes: runs with and without DVC, the files of a record, and the table in the README."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Checkout, input_error, write_files

from ddpm.cli.main import main
from ddpm.core.device import Runtime, usable_cpus
from ddpm.core.files import InputError
from ddpm.core.params import make
from ddpm.core.yaml_files import read_yaml
from ddpm.experiments import record, runner
from ddpm.experiments.readme_table import BEGIN, END, duration, machine, results_section, update
from ddpm.experiments.recipe import RECORDS, RESULTS_FILE, full_params, read_recipe, recipe_names
from ddpm.experiments.record import describe_machine, training_seconds, write_record
from ddpm.report.other_weights import of_other_weights

RUNTIME = {**read_yaml(ROOT / "params.yaml")["runtime"], "device": "cpu"}
SPEEDS = "step,images_per_second,data_ms\n100,640,1\n200,320,1\n250,320,1\n"  # at 64 a step: 10 s, 20 s, 10 s


def scores(fid=0.1, accuracy=0.98, n=500):
    """metrics.json of a run, as far as it is read."""
    of_sampler = {"classifier": {"fid": fid, "fid_floor": 0.08, "precision": 0.81, "recall": 0.7}, "accuracy": accuracy}
    ddpm = {**of_sampler, "sampler": "DDPM", "cost": {"nfe": 1000, "seconds": 5.0}}
    return {"n": n, "ddpm": ddpm, "ddim": {**ddpm, "sampler": "DDIM", "cost": {"nfe": 50, "seconds": 1.0}}}


def put_run(folder, **changes):
    """A folder as a run leaves it."""
    files = {
        "params.yaml": "seed: 0\n",
        "reports/train/metrics.json": json.dumps({"parameters": 160401, "best_validation_loss": 0.2}),
        "reports/train/speed.csv": SPEEDS,
        "reports/train/training.png": "curves",
        "reports/evaluate/metrics.json": json.dumps(scores(**changes)),
        "reports/edit/metrics.json": '{"inpaint": {}}',
        "reports/seconds/prepare_data.json": '{"seconds": 2.5, "processes": 1}',
        "reports/seconds/train.json": '{"seconds": 45, "processes": 2}',
        "reports/guidance/guidance.csv": "scale,fid\n1,0.1\n",
        "reports/report/ddpm_grid.png": "grid",
        "reports/report/bits.png": "not kept",
        "reports/report/ddpm_denoising.gif": "film",
    }
    write_files(folder, files)
    return folder


MACHINE = {"gpu": None, "gpus": 0, "cpu": "Z80", "cores": 2}
ABOUT = {"recipe": "digits", "about": "a|b", "dataset": "digits", "machine": MACHINE}
RUN = {"seed": 0, "command": "dvc exp run", "stage_seconds": {"train": 45.0, "prepare_data": 2.5}}


def put_record(records, name="digits", fids=(0.1,)):
    """A record of a run for each FID, as `record` writes it."""
    kept = []
    for seed, fid in enumerate(fids):
        kept.append({**RUN, "seed": seed, "parameters": 160401, "training_seconds": 40.0, "final_sha256": "aa"})
        write_record(records / name, put_run(records / "run", fid=fid), {**ABOUT, "recipe": name}, kept)
    shutil.rmtree(records / "run")
    return records / name


def test_write_record_copies_the_files_of_a_run(tmp_path):
    folder = put_record(tmp_path, fids=(0.1, 0.2))
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "ddpm_denoising.gif", "ddpm_grid.png", "edit.json", "guidance.csv", "metrics-seed-1.json", "metrics.json",
        "params.yaml", "run.json", "training.png",
    ]  # fmt: skip
    run = json.loads((folder / "run.json").read_text())
    assert [(of["seed"], of["metrics"]) for of in run["runs"]] == [(0, "metrics.json"), (1, "metrics-seed-1.json")]
    assert json.loads((folder / "metrics-seed-1.json").read_text())["ddpm"]["classifier"]["fid"] == 0.2
    page = (folder / "README.md").read_text()
    assert page.startswith("# digits\n\na\\|b\n\n```console\n$ dvc exp run\n$ dvc exp run\n```\n\nOn 2 cores of Z80, ")
    table = page.partition("seed 1 |\n| :-- | --: | --: |\n")[2]
    assert table == "| `train` | 45 | 45 |\n| `prepare_data` | 2.5 | 2.5 |\n| all | 47.5 | 47.5 |\n"
    (folder / "guidance.png").write_text("of another run")
    put_record(tmp_path)
    assert not (folder / "guidance.png").exists(), "the first run replaces the older record"
    assert not (folder / "metrics-seed-1.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["digits"], "no temporary folder stays"


def test_write_record_keeps_the_older_record_on_failure(tmp_path):
    folder = put_record(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        write_record(folder, tmp_path / "empty", ABOUT, [RUN])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "empty"]


def test_to_keep_leaves_out_large_figures(tmp_path):
    folder = put_run(tmp_path)
    large = "x" * (record.MAX_BYTES + 1)
    write_files(folder, {"reports/report/ddpm_denoising.gif": large, "reports/sweep/fid.png": "x", "out/compare.png": "x"})
    figures = {"ddpm_grid.png", "training.png", "sweep_fid.png", "compare.png"}
    assert set(record.to_keep(folder)) == {*figures, "edit.json", "guidance.csv"}
    write_record(tmp_path / "r", folder, ABOUT, [RUN])
    assert (tmp_path / "r/sweep_fid.png").exists()


def with_model(folder, path, sha256, *names):
    """Notes in a metrics file that its scores, or those of some samples, are of the final checkpoint with this hash."""
    metrics = json.loads((folder / path).read_text()) if (folder / path).is_file() else {}
    for part in [metrics[name] for name in names] or [metrics]:
        part["model"] = {"checkpoint": "final", "sha256": sha256}
    write_files(folder, {path: json.dumps(metrics)})


def test_scores_of_other_weights_are_refused_or_left_out(tmp_path):
    folder = put_run(tmp_path / "run")
    write_files(folder, {"reports/train/metrics.json": '{"final_sha256": "aa"}', "reports/report/inpainting.png": "drawn"})
    with_model(folder, "reports/evaluate/metrics.json", "aa", "ddpm", "ddim")
    with_model(folder, "reports/guidance/metrics.json", "aa")
    with_model(folder, "reports/edit/metrics.json", "bb")
    assert record.stages_of_other_weights(folder) == ["edit"]
    assert {"edit.json", "inpainting.png"} <= set(record.to_keep(folder))
    assert {"edit.json", "inpainting.png", "guidance.csv"} & set(record.to_keep(folder, ["edit"])) == {"guidance.csv"}
    with_model(folder, "reports/evaluate/metrics.json", "bb", "ddim")
    with input_error(str(folder / "reports/evaluate/metrics.json"), match="scores of other weights"):
        record.stages_of_other_weights(folder)


def test_of_other_weights_compares_what_is_known():
    final, best = ({"checkpoint": name, "sha256": name[0]} for name in ("final", "best"))
    assert of_other_weights("f", {"a": final, "b": best, "c": best, "old": {}}) == []
    assert of_other_weights("", {"a": final, "b": final | {"sha256": "x"}}) == ["b"], "of one checkpoint"
    assert of_other_weights("f", {"a": best, "b": best | {"sha256": "x"}, "c": final | {"sha256": "x"}}) == ["b", "c"]


def test_training_seconds_sums_the_steps(tmp_path):
    (tmp_path / "speed.csv").write_text(SPEEDS)
    assert training_seconds(tmp_path / "speed.csv", 64) == pytest.approx(40)
    for text in ("step\n5\n", "step,images_per_second\n5,0\n", "step,images_per_second\nx,3\n"):
        (tmp_path / "speed.csv").write_text(text)
        with pytest.raises(InputError, match=r"speed.csv: cannot be read"):
            training_seconds(tmp_path / "speed.csv", 64)


def test_summary_marks_a_run_from_the_cache(tmp_path):
    """It took less time than its parts."""
    params = {"train": {"batch_size": 64, "steps": 250}}
    folder = put_run(tmp_path)
    result = record.summary(folder, params, 47.0)
    assert (result["reused"], record.summary(folder, params, 45.0)["reused"]) == (False, True)
    assert (result["training_seconds"], result["images_per_second"], result["parameters"]) == (40, 400, 160401)
    assert list(result["stage_seconds"].items()) == [("train", 45), ("prepare_data", 2.5)], "the longest first"


def test_describe_machine():
    found = describe_machine(make(Runtime, **{**RUNTIME, "threads": 3}))
    assert (found["gpu"], found["gpus"], found["cores"]) == (None, 0, 3)
    assert found["cpu"]
    assert describe_machine(make(Runtime, **RUNTIME))["cores"] == usable_cpus()


def test_command_line_repeats_a_run():
    digits = read_recipe("digits")
    for given, seed, dvc, line in (
        ([], 1, True, "dvc exp run $(python -m ddpm recipe digits) -S seed=1"),
        (["a.b=[1,2]"], 0, True, "dvc exp run $(python -m ddpm recipe digits) -S 'a.b=[1,2]' -S seed=0"),
        ([], 2, False, "python -m ddpm record digits --without-dvc --seed 2"),
    ):
        assert record.command_line(digits, given, seed, dvc) == line


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The calls of a replaced runner, in a project folder without Git, which is the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    for name in ("DVC_ROOT", "DDPM_SCRATCH", "DDPM_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    calls = []

    def run(spec, seed, place, extra):
        if seed == 13:
            raise InputError("stage train: ended with status 1")
        calls.append((spec, seed, list(extra)))
        put_run(place)
        return runner.RunResult(100.0, "there")

    for name, replacement in {"run_with_dvc": run, "run_without_dvc": run, "check_clean": lambda: "abc"}.items():
        monkeypatch.setattr(record, name, replacement)
    return calls


def said(capsys, *arguments):
    """The output of a command, or its error without "error: "."""
    capsys.readouterr()
    status = main(list(arguments))
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == (status != 0), err
    return err.removeprefix("error: ").rstrip("\n") if status else out


def test_record_runs_each_seed_once(calls, capsys):
    out = said(capsys, "record", "mnist_ddim_comparison", "--seed", "3", "--seed", "1", "--seed", "3", "-S", "train.steps=500",
               "--note", "hm")  # fmt: skip
    spec = calls[0][0]
    assert [(seed, len(extra)) for _, seed, extra in calls] == [(3, 2), (1, 0)], "extra commands once"
    assert spec.params["train"]["steps"] == 500
    assert spec.params["sample_ddim"]["steps"] == 100
    assert spec.options[-2:] == ["-S", "train.steps=500"]
    assert "sample_ddim.steps=100" in spec.options
    folder = Path("reports/recipes/mnist_ddim_comparison")
    run = json.loads((folder / "run.json").read_text())
    assert [of["seed"] for of in run["runs"]] == [3, 1]
    assert (run["commit"], run["note"], run["steps"], run["dataset"]) == ("abc", "hm", 500, "mnist")
    assert run["runs"][1]["command"].endswith(" -S train.steps=500 -S seed=1")
    assert out.startswith(f"{folder}: 2 runs of mnist_ddim_comparison")
    assert not list(Path(".scratch/record").iterdir()), "copies of experiments are removed"


def test_escape_sequences_in_names_are_shown_as_text(calls, capsys):
    name, text = "\x1b[2Jmine.yaml", "about: mine\nparameters: 1\noverrides: {}\n"
    write_files(Path(), {name: text, "README.md": f"{BEGIN}\n{END}\n"})
    Path("README.md").rename("\x1b[2J.md")
    for out in (said(capsys, "record", name), said(capsys, "results", "--readme", "\x1b[2J.md")):
        assert "\\x1b[2J" in out
        assert "\x1b" not in out


def test_record_takes_the_seed_of_the_settings_and_keeps_runs_before_a_failure(calls, capsys):
    said(capsys, "record", "digits")
    said(capsys, "record", "digits", "-S", "seed=7", "--without-dvc")
    assert [seed for _, seed, _ in calls] == [0, 7]
    assert list(Path(".scratch/record").iterdir()), "a run without DVC leaves its model"
    assert said(capsys, "record", "digits", "--seed", "0", "--seed", "13", "--seed", "1") == "stage train: ended with status 1"
    assert [of["seed"] for of in json.loads(Path("reports/recipes/digits/run.json").read_text())["runs"]] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "record: name a recipe; `python -m ddpm recipe` lists them"),
        (["digist"], "recipe: 'digist' is unknown; did you mean 'digits'?"),
        (["digits", "-S", "train.steps"], "--set-param: 'train.steps' is not a change of a setting"),
        (["digits", "-S", "train.stesp=3"], "--set-param: changes.train: 'stesp' is unknown; did you mean 'steps'?"),
        (["digits", "-S", "train.steps=0"], "train.steps: 0 must be"),
        (["digits", "-S", "train.steps=1,2"], "train.steps: '1,2' must be an integer"),
        (["digits", "--seed", "-1"], "--seed: "),
    ],
)
def test_record_checks_its_arguments_before_running(calls, capsys, arguments, message):
    assert message in said(capsys, "record", *arguments)
    assert calls == []
    assert not Path("reports").exists()


STAGE = """
import json, os, sys, time, yaml
from pathlib import Path
p = yaml.safe_load(open("params.yaml"))
if p["train"]["steps"] == 13:
    sys.exit("error: broken")
if p["train"]["steps"] == 17:
    Path(os.environ["DDPM_SCRATCH"], "pid").write_text(str(os.getpid()))
    time.sleep(60)
assert Path(os.environ["DDPM_DATA_ROOT"], "here").exists()
trained = json.dumps({"parameters": 160401, "best_validation_loss": 0.2})
of = {"classifier": {"fid": 0.1 + p["seed"], "fid_floor": 0.08, "precision": 0.8, "recall": 0.7}, "accuracy": 0.9, "sampler": "S"}
scores = {"n": 500} | {name: {**of, "cost": {"nfe": p["train"]["steps"], "seconds": 0.0}} for name in ("ddpm", "ddim")}
files = {"reports/train/metrics.json": trained, "reports/train/speed.csv": "step,images_per_second\\n10,1000000\\n",
         "reports/evaluate/metrics.json": json.dumps(scores), "reports/report/ddpm_grid.png": "drawn",
         "models/ddpm/final.safetensors": "weights"}
for name, text in files.items():
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
"""
SWEEP = """
from pathlib import Path
assert Path("models/ddpm/final.safetensors").read_text() == "weights"
Path("reports/sweep").mkdir(parents=True, exist_ok=True)
Path("reports/sweep/fid.png").write_text("swept")
"""
PIPELINE = """
stages:
  train:
    cmd: python -m stages.train
    deps: [stages/train.py]
    params: [%s]
    outs: [models/ddpm]
    metrics:
    - reports/train/metrics.json: {cache: false}
    - reports/evaluate/metrics.json: {cache: false}
    plots:
    - reports/train/speed.csv: {cache: false}
    - reports/report: {cache: false}
  sweep:
    frozen: true
    cmd: python -m stages.sweep
    deps: [models/ddpm]
    plots:
    - reports/sweep/fid.png: {cache: false}
"""
OWN = "about: mine\nparameters: 160401\noverrides:\n  train:\n    steps: 10\nextra:\n- python -m stages.sweep\n"


class Project(Checkout):
    """A Git checkout with a pipeline of one stage."""

    def record_of(self, name):
        return json.loads((self.folder / "reports/recipes" / name / "run.json").read_text())


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    # The project's own code is elsewhere; these are the folders that a copy takes.
    write_files(project.folder, {
        "stages/train.py": STAGE, "stages/sweep.py": SWEEP, "stages/__init__.py": "", "mine.yaml": OWN, "ddpm/notes.txt": "",
        "data/raw/here": "", ".gitignore": "models\n.scratch\ndata\n__pycache__\n", "reports/sweep/fid.png": "of another run",
        "dvc.yaml": PIPELINE % ", ".join(name for name in read_yaml(ROOT / "params.yaml") if name != "runtime"),
    })  # fmt: skip
    shutil.copy(ROOT / "params.yaml", project.folder)
    project.commit()
    return project


@pytest.fixture
def here(project, monkeypatch, capfd):
    """here("record", ...): the exit status, standard output and error of the command in the project, stages included."""
    monkeypatch.chdir(project.folder)
    for name in ("DVC_ROOT", "DDPM_SCRATCH", "DDPM_DATA_ROOT", "GIT_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        capfd.readouterr()
        return main(list(arguments)), *capfd.readouterr()

    return run


def test_record_without_dvc_runs_stages_in_a_copy(project, here):
    status, out, _ = here("record", "mine.yaml", "--without-dvc", "--seed", "2")
    assert status == 0
    folder = Path("reports/recipes/mine")
    assert (folder / "sweep_fid.png").read_text() == "swept"
    assert read_yaml(folder / "params.yaml")["train"]["steps"] == 10
    run = project.record_of("mine")
    assert run["commit"] == project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert run["runs"][0]["seed"] == 2
    assert json.loads((folder / "metrics.json").read_text())["ddpm"]["classifier"]["fid"] == pytest.approx(2.1)
    assert ".scratch/record/mine-seed-2/models/ddpm" in out
    assert project.run("git", "status", "--porcelain").stdout.split() == ["??", "reports/recipes/"]
    assert here("record", "digits", "--without-dvc")[0] == 0
    kept = {path.name for path in Path("reports/recipes/digits").iterdir()}
    assert kept == {"README.md", "run.json", "params.yaml", "metrics.json", "ddpm_grid.png"}, "without the sweep of the commit"


def test_record_refuses_uncommitted_files_except_records(project, here):
    command = ("record", "mine.yaml", "--without-dvc")
    assert here(*command)[0] == 0
    Path("unknown.txt").write_text("no part of any run")
    assert here(*command)[0] == 0, "after a record that is not committed"
    project.commit()
    assert here(*command, "--seed", "5")[0] == 0
    assert "reports/recipes/mine/run.json" in project.run("git", "status", "--porcelain").stdout
    assert here(*command)[0] == 0, "after one that changed a committed record"
    with Path("params.yaml").open("a") as file:
        file.write("# changed\n")
    assert here(*command)[2].startswith("error: record: params.yaml is not committed; ")
    project.run("git", "checkout", "params.yaml")
    Path("ddpm/new.py").write_text("")
    line = "error: record: ddpm/new.py is not committed; commit or stash, so that the record can be reproduced\n"
    assert here(*command) == (1, "", line)
    Path("ddpm/notes.txt").write_text("changed")
    assert here(*command)[2].startswith("error: record: ddpm/notes.txt, ddpm/new.py are not committed; ")


def test_record_without_dvc_and_git(project, here):
    shutil.rmtree(project.folder / ".git")
    status, _, err = here("record", "mine.yaml")
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.startswith("error: git status: not a git repository")
    assert "; `git init`, `git add -A` and `git commit -m start` make one" in err
    assert here("record", "mine.yaml", "--without-dvc")[0] == 0
    assert project.record_of("mine")["commit"] is None
    status, _, err = here("record", "mine.yaml", "--without-dvc", "-S", "train.steps=13")
    assert status == 1
    assert err.splitlines()[-1].startswith("error: stage train: ended with status 1")
    assert project.record_of("mine")["steps"] == 10, "the record before stays"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_record_killed_leaves_no_process(project, number, status):
    command = [sys.executable, "-m", "ddpm", "record", "mine.yaml", "--without-dvc", "-S", "train.steps=17"]
    kept = {"cwd": project.folder, "env": project.env, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # Where the tests run in the background, a shell has made them ignore what a terminal sends, and children would too.
    kept["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **kept) as process:
        pid = project.folder / ".scratch/pid"
        deadline = time.monotonic() + 60
        while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:  # as a terminal does
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert err.splitlines()[-1].startswith("error: stage train: ended" if status == 1 else "interrupted")
    assert not psutil.pid_exists(int(pid.read_text()))
    assert not (project.folder / "reports/recipes").exists()


def test_record_reports_missing_dvc(here, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert here("record", "mine.yaml")[2].startswith(
        "error: record: DVC is not installed; run `pip install dvc`, or give --without"
    )


@pytest.mark.slow
def test_record_with_dvc_leaves_the_workspace(project):
    project.python("dvc", "init", "-q")
    project.commit()
    before = project.run("git", "rev-parse", "HEAD").stdout
    ended = project.python("ddpm", "record", "mine.yaml", "--seed", "0", "--seed", "1")
    assert project.run("git", "rev-parse", "HEAD").stdout == before
    assert project.run("git", "status", "--porcelain").stdout.split() == ["??", "reports/recipes/"]
    assert not (project.folder / "models").exists()
    folder = project.folder / "reports/recipes/mine"
    assert (folder / "sweep_fid.png").read_text() == "swept"
    assert read_yaml(folder / "params.yaml")["train"]["steps"] == 10
    assert "#" in (folder / "params.yaml").read_text()
    run = project.record_of("mine")
    assert [of["metrics"] for of in run["runs"]] == ["metrics.json", "metrics-seed-1.json"]
    assert json.loads((folder / "metrics-seed-1.json").read_text())["ddpm"]["classifier"]["fid"] == pytest.approx(1.1)
    name = ended.stdout.split("`dvc exp apply ")[1].partition("`")[0]
    assert name.startswith("mine-seed-0-")
    assert name in project.python("dvc", "exp", "list").stdout
    # The recorded command repeats the experiment.
    project.run("git", "stash", "-qu")
    command = run["runs"][1]["command"]
    project.run("bash", "-c", command.replace("dvc ", f"{sys.executable} -m dvc ", 1))
    assert read_yaml(project.folder / "params.yaml")["train"]["steps"] == 10
    project.run("git", "checkout", "-q", ".")
    broken = project.python("ddpm", "record", "mine.yaml", "-S", "train.steps=13", status=1)
    assert broken.stderr.splitlines()[-1].startswith("error: dvc exp run: ended with status ")


RECIPES = ["digits", "mnist_fast"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_has_a_row_for_each_sampler(tmp_path):
    put_record(tmp_path)
    text = results_section(tmp_path, RECIPES, tmp_path.parent)
    header, _, ddpm, ddim, empty, missing = text.splitlines()
    row = dict(zip(cells(header), cells(ddpm), strict=True))
    assert row == {
        "recipe": f"[digits]({tmp_path.name}/digits)", "data": "digits", "parameters": "160,401", "sampler": "DDPM",
        "NFE": "1,000", "FID ↓ (floor)": "0.100 (0.0800)", "n": "500", "precision": "0.810", "recall": "0.700",
        "accuracy": "98.0%", "training": "40 s", "machine": "2 cores of Z80",
    }  # fmt: skip
    assert cells(ddim)[:5] == ["", "", "", "DDIM", "50"]
    assert (empty, missing) == ("", "Not run yet: `mnist_fast`.")


def test_table_summarizes_seeds_and_missing_values(tmp_path):
    metrics = put_record(tmp_path, fids=(0.10, 0.12, 0.11)) / "metrics.json"
    row = cells(results_section(tmp_path, RECIPES).splitlines()[2])
    assert row[5:7] == ["0.110 ± 0.010 (0.0800)", "500, 3 seeds"]
    assert row[10] == "40 s", "of one run"
    without = scores()
    for name in ("ddpm", "ddim"):
        del without[name]["accuracy"]
        without[name]["classifier"] = {"status": "nothing is measured"}
    for path in metrics.parent.glob("metrics*.json"):
        path.write_text(json.dumps(without))
    row = cells(results_section(tmp_path, RECIPES).splitlines()[2])
    assert (row[5], *row[7:10]) == ("-", "-", "-", "-")


def test_table_shows_text_from_files_as_it_is(tmp_path):
    folder = put_record(tmp_path)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"recipe": "<b>|x](", "dataset": "\x1b[2J"}))
    row = results_section(tmp_path, RECIPES).splitlines()[2]
    assert row.startswith(f"| [&lt;b&gt;\\|x\\](]({folder}) | \\\\x1b\\[2J |")


def test_table_ignores_records_of_an_older_format(tmp_path):
    write_files(tmp_path, {"digits/metrics.json": "{}"})
    assert results_section(tmp_path, RECIPES) == "Not run yet: `mnist_fast`."
    assert results_section(tmp_path / "nowhere", RECIPES) == "Not run yet: `digits`, `mnist_fast`."


def test_table_refuses_a_damaged_record(tmp_path):
    for name, text in (
        ("run.json", "{"), ("run.json", "[]"), ("run.json", '{"runs": []}'), ("run.json", "[" * 200_000), ("metrics.json", "{}"),
        ("metrics.json", json.dumps(scores(fid=10**400))),
    ):  # fmt: skip
        folder = put_record(tmp_path)
        (folder / name).write_text(text)
        with input_error(str(folder / "run.json"), match=r"is not a valid record \([^\n]*\); record the run again, or"):
            results_section(tmp_path, RECIPES)
    folder = put_record(tmp_path)
    results_section(tmp_path, RECIPES)
    with_model(folder, "metrics.json", "bb", "ddim")
    with input_error(str(folder / "run.json"), match=r"metrics.json has the scores of other weights"):
        results_section(tmp_path, RECIPES)


def test_results_writes_and_checks_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_record(Path("reports/recipes"))
    readme = Path("README.md")
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nend\n")
    assert said(capsys, "results", "--check").startswith("README.md: the table differs from the 1 recorded recipe")
    assert "old" in readme.read_text()
    assert said(capsys, "results") == "README.md: 1 recorded recipe\n"
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n| recipe |")
    assert text.endswith(f"{END}\n\nend\n")
    assert "(reports/recipes/digits)" in text
    for arguments in (("results", "--check"), ("results",)):
        assert said(capsys, *arguments) == "README.md: 1 recorded recipe\n"
    assert readme.read_text() == text


def test_update_refuses_a_file_without_both_comments(tmp_path):
    for text in ("", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"):
        (tmp_path / "README.md").write_text(text)
        with pytest.raises(InputError, match=r"needs the line <!-- results --> and below it"):
            update(tmp_path / "README.md", tmp_path, [])
        assert (tmp_path / "README.md").read_text() == text
    with pytest.raises(InputError, match=r"nowhere.md: cannot be read"):
        update(tmp_path / "nowhere.md", tmp_path, [])


def test_duration_and_machine():
    for seconds, text in ((0.4, "0 s"), (119, "119 s"), (121, "2 min"), (7199, "120 min"), (7201, "2.0 h"), (90000, "25.0 h")):
        assert duration(seconds) == text
    gpu = {"gpu": "NVIDIA H200", "gpus": 1, "cpu": "x", "cores": 16}
    assert [machine(gpu), machine(gpu | {"gpus": 4})] == ["NVIDIA H200", "4 x NVIDIA H200"]
    assert machine({"gpu": None, "gpus": 0, "cpu": "Z80", "cores": 1}) == "1 core of Z80"


def test_table_of_the_project_is_that_of_its_records():
    update(ROOT / RESULTS_FILE, ROOT / RECORDS, recipe_names(), check=True)


# Settings of records that were made under an older name.
RENAMED = {
    "allow_terminal_signal": "allow_nonzero_terminal_snr",
    "accumulation": "gradient_accumulation",
    "skip_nonfinite": "max_nonfinite_skips",
    "levels": "timestep_sampling",
}
# Settings that older records lack, with the value that they had.
UNSCORED = {"score_every": 0, "score_samples": 500, "score_steps": 10, "best_by": "validation_loss"}
ANEW = {"init": "none", "init_checkpoint": "final", "continue": False, "cooldown_steps": 280}
ADDED = {"model": {"type": "unet"}, "train": {"optimizer": "adamw", "augment": 0.0, **UNSCORED, **ANEW}}


def test_record_settings_match_the_recipe():
    """Compares the data, the network and the training, which make the model; seed aside."""
    for path in (ROOT / "reports/recipes").glob("*/run.json"):
        recorded = read_yaml(path.with_name("params.yaml"))
        recipe = full_params(read_recipe(json.loads(path.read_text())["recipe"]), params=ROOT / "params.yaml")
        for section in ("dataset", "schedule", "prediction", "diffusion", "model", "train"):
            settings = recorded[section]
            if isinstance(settings, dict):
                settings = ADDED.get(section, {}) | {RENAMED.get(key, key): value for key, value in settings.items()}
            assert settings == recipe[section], path
