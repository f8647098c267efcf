"""The acceptance run: the README's commands with the real `dvc` on a tiny profile, in a clone of the last commit.

All tests share one clone. Each starts from its recorded run (`dvc repro`, then a commit), which a fixture restores.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from ddpm.training.checkpoint import STATE

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).resolve().parents[2]
BRANCH = "acceptance"
TIMEOUT = 300  # seconds for one command; the longest takes about 30 on two idle cores
UP_TO_DATE = "Data and pipelines are up to date."
TRAIN_AGAIN = ("-f", "-s", "train")  # this stage alone, though nothing changed
RUNS = ".dvc/cache/runs"
OTHER = ("-S", "train.weight_decay=0.001", "train")  # a training that is not in the recorded run

# Small networks do not gain from a second thread, and two runs on one machine slow each other down with it.
PROFILE = {
    "train_classifier": {"epochs": 3, "required_accuracy": 0.1},
    "diffusion": {"timesteps": 20},
    "model": {"channels": 8},
    "train": {
        "steps": 100, "batch_size": 32, "warmup_steps": 5,
        "log_every": 5, "validate_every": 20, "preview_every": 40, "checkpoint_every": 20, "snapshot_every": 800,
    },
    "sample_ddpm": {"samples": 40, "batch_size": 20},
    "sample_ddim": {"samples": 40, "batch_size": 20, "steps": 5},
    "guidance": {"samples": 40, "steps": 3},
    "edit": {"scored_images": 20, "steps": 5, "repaint_jump_length": 2, "repaint_resamples": 2, "film_frames": 2},
    "evaluate": {"reconstruction_images": 50, "training_curve_samples": 100},
    "report": {"columns": 4},
    "runtime": {"threads": 1},
}  # fmt: skip
# Files that hold seconds.
TIMED = {
    f"reports/{name}" for name in ("train/speed.csv", "train/training.png", "sample_ddpm/metrics.json",
                                   "sample_ddim/metrics.json", "evaluate/metrics.json", "index.md")
}  # fmt: skip
LOGGED_STEPS = list(range(5, 101, 5))


class Project:
    """A clone, and the commands that are run in it."""

    def __init__(self, folder: Path, site: Path):
        self.folder = folder
        # `python` in dvc.yaml is this interpreter, and no setting from outside reaches the clone.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "DDPM_", "GIT_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {**kept, "PATH": path, "DVC_SITE_CACHE_DIR": str(site), "DVC_TEST": "1"}

    def run(self, *command: str, status: int = 0) -> str:
        """Output and errors of a command, which must end with `status` within TIMEOUT."""
        with self.started(*command) as (process, output):
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{' '.join(command)}: still running after {TIMEOUT} s\n{output()}")
        assert process.returncode == status, f"{' '.join(command)}: ended with {process.returncode}\n{output()}"
        return output()

    @contextmanager
    def started(self, *command: str):
        """A command in a process group of its own, as (process, function that gives its output); killed with its group."""
        # A file, not a pipe: the queue's workers outlive the command that starts them, and would keep a pipe open.
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            arguments = {"cwd": self.folder, "env": self.env, "stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            process = subprocess.Popen(command, start_new_session=True, **arguments)
            final = []

            def output() -> str:
                return final[0] if final else (file.seek(0), file.read())[1]

            try:
                yield process, output
            finally:
                if process.poll() is None:
                    kill_group(process)
                final.append(output())

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).strip()

    @contextmanager
    def training(self, *arguments: str):
        """`dvc *arguments`, running, once its training has saved a state; as (process, function that gives its output)."""
        before = self.saved_at()
        with self.started(sys.executable, "-m", "dvc", *arguments) as (process, output):
            wait_for(lambda: self.saved_at() not in (None, before) or process.poll() is not None, output)
            assert process.poll() is None, f"ended before a state was seen\n{output()}"
            yield process, output

    @property
    def state(self) -> Path | None:
        """The saved state of the one unfinished training, if there is one."""
        return next(self.folder.glob(f".scratch/train/*/{STATE}"), None)

    def saved_at(self) -> int | None:
        """When that state was written."""
        try:
            return self.state.stat().st_mtime_ns if self.state else None
        except FileNotFoundError:  # removed just now
            return None

    def weights(self) -> dict[str, str]:
        """SHA-256 of every file of the trained model."""
        folder = self.folder / "models/ddpm"
        return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}

    def changed_params(self) -> list[str]:
        """Lines removed from and added to params.yaml since the last commit."""
        return re.findall(r"^[-+](?![-+]{2} ).*", self.git("diff", "-U0", "HEAD", "--", "params.yaml"), re.M)

    def restore(self) -> None:
        """Restore the recorded run, without processes and unfinished trainings of an earlier test."""
        self.kill_processes()
        for forgotten in (".scratch", RUNS):
            shutil.rmtree(self.folder / forgotten, ignore_errors=True)
        shutil.copytree(self.folder.with_name("runs"), self.folder / RUNS)
        self.git("checkout", "-qf", BRANCH)
        self.git("clean", "-fdq")
        self.dvc("checkout", "--force")

    def kill_processes(self) -> None:
        """Kill every process that runs in the clone."""
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder):
                    process.kill()
            except psutil.Error:
                pass


def kill_group(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def group(process: subprocess.Popen) -> list[psutil.Process]:
    """The living processes of its group."""
    found = []
    for other in psutil.process_iter():
        try:
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except (psutil.Error, OSError):
            pass
    return found


def wait_for(condition, output, timeout: float = TIMEOUT, every: float = 0.005) -> None:
    """Wait until the condition holds; `output()` is shown if it never does."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout} s in vain\n{output()}")
        time.sleep(every)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_profile(text: str) -> str:
    """params.yaml with the values of PROFILE; its comments stay."""
    for section, values in PROFILE.items():
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^({section}:.*(?:\n  .*)*?\n  {key}: *)[^\s#]+", rf"\g<1>{value}", text, count=1)
            assert count == 1, f"params.yaml has no {section}.{key}"
    return text


def logged_steps(table: str) -> list[int]:
    """The column `step` of a loss table."""
    return [int(row.split("\t")[0]) for row in table.splitlines()[1:]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A clone whose last commit holds a whole run of the tiny profile, made by `dvc repro`."""
    root = tmp_path_factory.mktemp("acceptance")
    project = Project(root / "clone", root / "site")
    subprocess.run(["git", "clone", "-q", SOURCE, project.folder], check=True, timeout=TIMEOUT)
    for setting in ("user.name=t", "user.email=t@example.org", "commit.gpgSign=false", f"core.hooksPath={os.devnull}"):
        project.git("config", *setting.split("="))
    project.git("checkout", "-qb", BRANCH)
    params = project.folder / "params.yaml"
    params.write_text(with_profile(params.read_text(encoding="utf-8")), encoding="utf-8")
    project.git("commit", "-qam", "Tiny profile")
    project.dvc("repro")
    project.git("add", "-A")
    project.git("commit", "-qm", "Recorded run")
    shutil.copytree(project.folder / RUNS, project.folder.with_name("runs"))
    project.dvc("exp", "run", *OTHER)
    project.other_weights = project.weights()
    yield project
    project.kill_processes()


@pytest.fixture
def project(recorded):
    """The clone with the recorded run in its workspace."""
    recorded.restore()
    return recorded


def test_repro_twice(project):
    """A second `dvc repro` has nothing to do, nothing is left to commit, and dvc.yaml is as it was."""
    assert UP_TO_DATE in project.dvc("repro")
    assert UP_TO_DATE in project.dvc("status")
    assert project.git("status", "--porcelain") == ""
    assert digest(project.folder / "dvc.yaml") == digest(SOURCE / "dvc.yaml")
    assert logged_steps((project.folder / "reports/train/plots/metrics/loss.tsv").read_text()) == LOGGED_STEPS


def test_schedule_and_back(project):
    """Another schedule trains from step 0; the first one then comes from the run cache and leaves everything as committed."""
    recorded = project.weights()
    output = project.dvc("exp", "run", "-S", "schedule=cosine")
    assert "Running stage 'train'" in output
    assert "resuming" not in output
    assert logged_steps((project.folder / "reports/train/plots/metrics/loss.tsv").read_text()) == LOGGED_STEPS
    assert not recorded.items() & {k: v for k, v in project.weights().items() if k.endswith(".safetensors")}.items()
    removed, added = project.changed_params()
    assert removed == added.replace("cosine", "linear", 1).replace("+", "-", 1)
    assert "#" in added
    metrics = project.dvc("metrics", "diff")
    assert "ddpm.classifier.fid" in metrics
    assert "ddim.classifier.fid" in metrics

    output = project.dvc("exp", "run", "-S", "schedule=linear")
    assert "Stage 'train' is cached - skipping run" in output
    assert project.weights() == recorded
    assert project.git("status", "--porcelain") == ""


def test_sampling_code(project):
    """A change in ddpm/sampling reruns the samplers and what reads them, not the training."""
    with open(project.folder / "ddpm/sampling/samplers.py", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    changed = set(re.findall(r"^(\w+):$", project.dvc("status"), re.M))
    assert changed == {"sample_ddpm", "sample_ddim", "guidance", "edit", "evaluate"}
    output = project.dvc("repro", "sample_ddpm", "sample_ddim")
    assert "Stage 'train' didn't change, skipping" in output
    assert "Running stage 'sample_ddpm'" in output
    assert "Running stage 'sample_ddim'" in output


def test_runtime_section(project):
    """A change in the runtime section makes nothing run."""
    params = project.folder / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("log_seconds: 10", "log_seconds: 5 "), encoding="utf-8")
    assert len(project.changed_params()) == 2
    assert UP_TO_DATE in project.dvc("repro")


def test_two_runs_give_the_same(project):
    """`dvc repro -f` trains and samples again, and dvc.lock names the same models and samples."""

    def hashes() -> dict[str, str]:
        lock = yaml.safe_load((project.folder / "dvc.lock").read_text())
        outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
        return {out["path"]: out["md5"] for out in outs if out["path"].startswith(("models/", "samples/"))}

    before = hashes()
    output = project.dvc("repro", "-f")
    assert all(f"Running stage '{stage}'" in output for stage in ("train", "sample_ddpm", "sample_ddim", "evaluate"))
    assert hashes() == before
    samples = {f"samples/{name}" for name in ("ddpm.npz", "ddim.npz", "edits.npz", "judged")}
    assert set(before) == {"models/classifier", "models/ddpm", *samples}
    # Only how long things took may differ.
    changed = {line.split()[1] for line in project.git("status", "--porcelain").splitlines()}
    assert {name for name in changed if not name.startswith("reports/seconds/")} <= {"dvc.lock", *TIMED}


def test_resume_after_kill_9(project):
    """A killed `dvc exp run` resumes: no row twice or missing, and weights bit-equal to the uninterrupted run.

    Meanwhile a second trainer on the same state is refused in one line.
    """
    with project.training("exp", "run", *OTHER) as (process, output):
        os.killpg(process.pid, signal.SIGSTOP)
        refused = project.run(sys.executable, "-m", "stages.train", status=1)
        assert re.fullmatch(r"error: .*another training .* is running; .*\n", refused)
        kill_group(process)
    assert "resuming" not in output()
    assert project.state

    # Git is left on a detached HEAD; this is the way back that the README names.
    project.git("checkout", "-f", BRANCH)
    output = project.dvc("exp", "run", *OTHER)
    assert re.search(r"resuming at step \d+ of 100", output)
    assert logged_steps((project.folder / "reports/train/plots/metrics/loss.tsv").read_text()) == LOGGED_STEPS
    assert project.weights() == project.other_weights
    assert not project.state
    assert project.git("status", "--porcelain", "--branch").splitlines()[0] == f"## {BRANCH}"
    assert "train:" not in project.dvc("status", "train")


def test_resume_after_kill_9_in_a_temporary_folder(project):
    """The state of a killed `dvc exp run --temp` is in the main checkout, and the next one resumes from it."""
    with project.training("exp", "run", "--temp", *OTHER) as (process, _):
        kill_group(process)
    assert project.state
    output = project.dvc("exp", "run", "--temp", "--name", "resumed", *OTHER)
    assert re.search(r"resuming at step \d+ of 100", output)
    experiment = project.git("for-each-ref", "--format=%(objectname)", "refs/exps/*/*/resumed")
    assert logged_steps(project.git("show", f"{experiment}:reports/train/plots/metrics/loss.tsv")) == LOGGED_STEPS
    assert project.git("status", "--porcelain", "--branch") == f"## {BRANCH}"
    project.dvc("exp", "apply", "resumed")
    assert project.weights() == project.other_weights


def test_more_steps_after_the_end(project):
    """`train.continue` goes on from a finished experiment, also in a temporary folder, to the weights of one training."""
    constant = ("-S", "train.lr_schedule=constant", "train")
    project.dvc("exp", "run", "-S", "train.steps=130", *constant)
    straight = project.weights()
    assert "resuming" not in project.dvc("exp", "run", "-S", "train.steps=100", *constant)
    more = ("-S", "train.steps=130", "-S", "train.continue=true", *constant)
    output = project.dvc("exp", "run", "--temp", "--name", "longer", *more)
    assert "train.continue: goes on after step 99 of a training of 100\n" in output
    project.git("checkout", "-f", BRANCH)
    project.dvc("exp", "apply", "longer")
    assert logged_steps((project.folder / "reports/train/plots/metrics/loss.tsv").read_text()) == list(range(5, 131, 5))
    changed = {name for name, value in project.weights().items() if straight[name] != value}
    assert changed == {"config.json"}


def test_fresh_start(project, monkeypatch):
    """DDPM_FRESH=1 starts from step 0, although there is a saved state."""
    recorded = project.weights()
    with project.training("repro", *TRAIN_AGAIN) as (process, _):
        kill_group(process)
    assert project.state
    monkeypatch.setitem(project.env, "DDPM_FRESH", "1")
    output = project.dvc("repro", *TRAIN_AGAIN)
    assert "DDPM_FRESH is set: discarding the saved state" in output
    assert "resuming" not in output
    assert logged_steps((project.folder / "reports/train/plots/metrics/loss.tsv").read_text()) == LOGGED_STEPS
    assert project.weights() == recorded


def test_damaged_state(project):
    """A damaged state is named and set aside, and training starts afresh, to the same weights."""
    with project.training("exp", "run", *OTHER) as (process, _):
        kill_group(process)
    project.state.write_bytes(b"PK\x03\x04 cut short")
    project.git("checkout", "-f", BRANCH)
    output = project.dvc("exp", "run", *OTHER)
    assert re.search(rf"warning: .*{STATE}: not usable .* kept as [0-9a-f]+.damaged, starting afresh", output)
    assert "resuming" not in output
    assert project.weights() == project.other_weights


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_saves_first(project, how):
    """At a signal a training writes its state after the current step; the same command resumes from that step."""
    with project.training("exp", "run", *OTHER) as (process, output):
        (trainer,) = [p for p in group(process) if p.cmdline()[-1:] == ["stages.train"]]
        trainer.send_signal(how)
        process.wait(TIMEOUT)
    (step,) = re.findall(r"train: stopped at step (\d+); its state is saved", output())
    project.git("checkout", "-f", BRANCH)
    assert f"resuming at step {step} of 100" in project.dvc("exp", "run", *OTHER)
    assert project.weights() == project.other_weights


def test_several_processes(project):
    """Two processes train, sample and evaluate; killing one ends all with one line, and the next start resumes."""
    params = project.folder / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("processes: auto", "processes: 2   "), encoding="utf-8")
    with project.training("exp", "run", *OTHER) as (process, output):
        started = [p for p in psutil.Process(process.pid).children(recursive=True) if p.cmdline()[-1:] == ["stages.train"]]
        chosen = max(started, key=psutil.Process.create_time)  # they are forked in order
        chosen.kill()
        process.wait(TIMEOUT)
        wait_for(lambda: not any(p.is_running() for p in started), output, timeout=30)
    assert re.findall(r"^error: .*", output(), re.M) == [
        f"error: process 1 of 2 (pid {chosen.pid}) was killed by SIGKILL, and the others were stopped; run the same command "
        "again; if the memory did not suffice, lower train.batch_size, model.channels (or raise train.gradient_accumulation)"
    ]
    assert "Traceback" not in output()
    project.git("checkout", "-f", BRANCH)
    params.write_text(params.read_text(encoding="utf-8").replace("processes: auto", "processes: 2   "), encoding="utf-8")
    output = project.dvc("exp", "run", *OTHER[:2])
    assert re.search(r"resuming at step \d+ of 100", output)
    assert "in 2 processes" in output
    assert logged_steps((project.folder / "reports/train/plots/metrics/loss.tsv").read_text()) == LOGGED_STEPS


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("phase", ["at its start", "while training"])
def test_no_trainer_without_dvc(project, monkeypatch, phase, shell):
    """Killing dvc alone ends the trainer too, while it imports and while it trains.

    dvc runs its commands in $SHELL; some shells replace themselves with the command, others stay its parent.
    """
    monkeypatch.setitem(project.env, "SHELL", shutil.which(shell) or pytest.skip(f"no {shell} here"))
    if phase == "while training":
        with project.training("repro", *TRAIN_AGAIN) as (process, output):
            process.kill()
            process.wait(30)
            wait_for(lambda: not group(process), output, timeout=30)
        assert project.state, "the training came to its end"
        return
    with project.started(sys.executable, "-m", "dvc", "repro", *TRAIN_AGAIN) as (process, output):
        wait_for(lambda: len(group(process)) > 1, output)
        time.sleep(0.5)  # the interpreter is up; PyTorch's import takes longer
        process.kill()
        process.wait(30)
        wait_for(lambda: not group(process), output, timeout=30)
    assert not (project.folder / "models/ddpm").exists(), "the trainer was not stopped"


def test_other_params(project):
    """A number that DVC writes in its own way (1e-06), and a list."""
    project.dvc("exp", "run", "-S", "train.learning_rate=1e-6", "train")
    assert re.fullmatch(
        r"-  learning_rate: 8.0e-3( +#.*)?\n\+  learning_rate: 1e-0?6( +#.*)?", "\n".join(project.changed_params())
    )
    config = json.loads((project.folder / "models/ddpm/config.json").read_text())
    assert config["training"]["learning_rate"] == 1e-6

    project.dvc("exp", "run", "-S", "model.channel_mults=[1,2,2]", "sample_ddim")
    assert [line for line in project.changed_params() if "learning_rate" not in line] == ["+  - 2"]
    config = json.loads((project.folder / "models/ddpm/config.json").read_text())
    assert config["model"]["channel_mults"] == [1, 2, 2]


def test_queue(project):
    """Two queued experiments succeed."""
    project.dvc("exp", "run", "-S", "seed=range(0,2)", "--queue")
    project.dvc("queue", "start")

    def tasks() -> dict[str, str]:
        """Task -> status."""
        return dict(re.findall(r"^([0-9a-f]{7}) .* (\w+) *$", project.dvc("queue", "status"), re.M))

    def ended() -> bool:
        states = list(tasks().values())
        return len(states) == 2 and not {"Queued", "Running"} & set(states)

    wait_for(ended, lambda: project.dvc("queue", "status"), every=1)
    assert set(tasks().values()) == {"Success"}, [project.dvc("queue", "logs", task) for task in tasks()]


@pytest.mark.parametrize("command", ["show", "diff HEAD~1"])
def test_plots(project, command):
    """The page of `dvc plots` holds the loss curve, the comparison of samplers and both grids, of each revision."""
    revisions = ["workspace", *command.split()[1:]]
    assert "failed to load" not in project.dvc("plots", *command.split()).lower()
    page = (project.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    charts = dict(re.findall(r'<div id = "(\w+)">\s*<script.*?>\s*var spec = (\{.*?\});\s', page, re.S))
    for name in ("reports_train_plots_metrics_loss_tsv", "reports_evaluate_plots_scores_csv"):
        rows = json.loads(charts[name])["data"]["values"]
        assert {row["rev"] for row in rows} == set(revisions)
    for revision in revisions:
        for sampler in ("ddpm", "ddim"):
            picture = f"static/{revision}_reports_report_{sampler}_grid.png"
            assert picture in page
            assert (project.folder / "dvc_plots" / picture).read_bytes().startswith(b"\x89PNG")
