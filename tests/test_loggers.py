"""TensorBoard, W&B and MLflow: what their own readers find after trainings that were killed, and what a failing logger costs."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import edit_params, error_of, link_code, prepared
from processes import in_fork
from test_kills import STEPS, assert_same, attempt, results
from test_kills import straight as straight

from ddpm.core import logged_run
from ddpm.core.files import read_json
from ddpm.core.logged_run import Loggers, check_installed, log_scores
from ddpm.core.loggers import LOGGERS, NEW, RESUMED, Run
from ddpm.experiments.all_params import check_params
from ddpm.training.checkpoint import fingerprint, stage_inputs

NAMES = [pytest.param("tensorboard"), *(pytest.param(name, marks=pytest.mark.slow) for name in ("wandb", "mlflow"))]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Logs below the workspace, no network, and no settings of whoever runs the tests."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_API_KEY", "DDPM_FRESH"):
        monkeypatch.delenv(name, raising=False)
    values = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name, value in {**values, "DDPM_LOGS": "logs", "DVC_EXP_NAME": "swift/fox"}.items():
        monkeypatch.setenv(name, value)


def wandb_records(path):
    """Yields the records of a run's file: a log of LevelDB, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(record)
            record = b""


def read_wandb(name):
    """All offline runs of the name: name -> curve, steps of previews, hyperparameters, summary."""
    curves, config, summary = {}, {}, {}
    for record in (record for path in sorted(Path("logs/wandb").glob("offline-run-*/*.wandb")) for record in wandb_records(path)):
        if record.WhichOneof("record_type") == "run":
            assert record.run.display_name == name
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.summary.update:
            summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
        for item in record.history.item:
            curves.setdefault(".".join(item.nested_key), []).append((record.history.step.num, json.loads(item.value_json)))
    return curves, [step for step, _ in curves["previews.path"]], config, summary


def read_tensorboard(name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    found = EventAccumulator(f"logs/tensorboard/{name}", everything, purge_orphaned_data=False).Reload()
    curves = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    start = found.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    values = metadata.parse_session_start_info_plugin_data(start).hparams
    config = {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}
    (text,) = found.Tensors("results/final_sha256/text_summary")
    summary = {key: value for key, ((_, value), *more) in curves.items() if not more}
    summary["results/final_sha256"] = text.tensor_proto.string_val[0].decode()
    return curves, [event.step for event in found.Images("previews")], config, summary


def read_mlflow(name):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('logs/mlflow/mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("ddpm").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    assert run.info.status == "FINISHED"
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    curves = {key: sorted((metric.step, metric.value) for metric in history) for key, history in histories.items()}
    previews = [int(file.path[-11:-4]) for file in client.list_artifacts(run.info.run_id, "previews")]
    return curves, previews, run.data.params, run.data.metrics | run.data.tags


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


def run_name():
    return f"swift_fox-{fingerprint(stage_inputs('train'))[:8]}"


def assert_complete(logger, state):
    """Every point of the training's history is there once, and so are the previews, hyperparameters and results."""
    curves, previews, config, summary = READERS[logger](run_name())
    expected = {}
    for row in state["history"]:
        for key in row.keys() - {"step"}:
            expected.setdefault(key, []).append((row["step"], pytest.approx(row[key], rel=1e-6)))
    assert {"loss", "validation_loss", "learning_rate", "gradient_norm", "loss_t/0_25"} <= expected.keys()
    assert {key: curves[key] for key in expected} == expected
    for key in ("loss_ema", "speed/images_per_second"):
        assert [step for step, _ in curves[key]] == [step for step, _ in expected["learning_rate"]]
    assert previews == [20, 40]
    assert str(config["train.steps"]).removesuffix(".0") == str(STEPS)
    assert config["model.channel_mults"] == "[1, 2]"
    assert not any(key.startswith("runtime") for key in config)
    assert summary["results/final_sha256"] == read_json("reports/train/metrics.json", "train")["final_sha256"]
    assert summary["results/best_validation_loss"] == pytest.approx(state["best_value"], rel=1e-6)


@pytest.mark.parametrize("logger", NAMES)
def test_killed_training_is_logged_once(straight, logger):
    """Killed after a preview and rows that the saved state of step 14 does not hold; stopped by SIGTERM; finished; repeated."""
    pytest.importorskip({"tensorboard": "torch.utils.tensorboard"}.get(logger, logger))  # here, and not in each fork
    edit_params(**{"runtime.loggers": [logger]})
    for point, count, status in [("before a step", 21, -9), ("by SIGTERM", 15, 143), (None, 1, 0)]:
        ended, output = attempt(point, count)
        assert ended == status, output
        assert "warning" not in output
    assert_complete(logger, straight[1])
    assert_same(results(), straight)
    assert attempt()[0] == 0
    assert_complete(logger, straight[1])

    sha256 = read_json("reports/train/metrics.json", "train")["final_sha256"]
    for weights, fid in [(sha256, 0.25), ("another", 4.0), (sha256, 0.5)]:
        scores = {"ddpm": {"sampler": "DDPM", "classifier": {"fid": fid}}, "n": 20}
        ended, output = in_fork(lambda: log_scores([logger], weights, scores))  # noqa: B023
        assert (ended, "warning" in output) == (0, False), output
    assert_complete(logger, straight[1])
    summary = READERS[logger](run_name())[3]
    assert (summary["scores/ddpm/classifier/fid"], summary["scores/n"]) == (0.5, 20)


@pytest.mark.slow
def test_killed_processes_and_scores_of_the_stage(workspace):
    """`python -m stages.train` in two processes, killed after its first saved state; process 0 alone logs. Then `evaluate`."""
    names = [name for name in LOGGERS if pytest.importorskip(name)]
    link_code()
    every = {"train.steps": 60, "train.validate_every": 20, "train.preview_every": 20, "train.checkpoint_every": 10}
    edit_params(**every, **{"runtime.loggers": names, "runtime.processes": 2})
    prepared()

    def stage(name):
        return subprocess.Popen([sys.executable, "-m", f"stages.{name}"], start_new_session=True)

    process = stage("train")
    while not list(Path(".scratch/train").glob("*/state.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    edit_params(**{"runtime.processes": 1})
    for name in ("train", "train_classifier", "sample_ddpm", "sample_ddim", "evaluate"):
        assert stage(name).wait() == 0
    fid = read_json("reports/evaluate/metrics.json", "evaluate")["ddpm"]["classifier"]["fid"]
    for name in names:
        curves, previews, _, summary = READERS[name](run_name())
        assert [step for step, _ in curves["loss"]] == list(range(1, 61))
        assert [step for step, _ in curves["validation_loss"]] == [20, 40, 60] == previews
        assert summary["scores/ddpm/classifier/fid"] == pytest.approx(fid, rel=1e-6)
    assert len(list(Path("logs/tensorboard", run_name()).iterdir())) == 2, "of the training, and of the scores"


class Memory:
    """A logger that keeps what it gets, and raises in one method."""

    def __init__(self, fails=""):
        self.fails, self.calls = fails, []

    def __getattr__(self, method):
        def call(*arguments):
            if method == self.fails:
                raise ConnectionError("the server is gone\nfor good")
            self.calls.append((method, *arguments))

        return call


@pytest.mark.parametrize("method", ["open", "row", "image", "summary", "close"])
def test_failing_logger_is_left_out_with_one_line(tmp_path, monkeypatch, capsys, method):
    good, bad = Memory(), Memory(method)
    monkeypatch.setattr(logged_run, "LOGGERS", {"bad": lambda: bad, "good": lambda: good})
    loggers = Loggers(["bad", "good"], Run("name", tmp_path / "logs", NEW, {}))
    for step in (1, 2):
        loggers.row({"step": step, "loss": float(step)})
        loggers.image("previews", Path(__file__).parents[1] / "reports/train/training.png", step)
    loggers.close({"results/parameters": 3}, 2, "abc")
    assert [name for name, *_ in good.calls] == ["open", *["row", "image"] * 2, "summary", "close"]
    line = "warning: runtime.loggers: bad is left out from now on; it failed: the server is gone\n"
    assert capsys.readouterr().err == line
    assert read_json(tmp_path / "logs/runs/name.json", "train") == {"final_sha256": "abc", "step": 2, "loggers": ["good"]}
    rows = [arguments for name, *arguments in good.calls if name == "row"]
    assert rows == [[{"loss": 1.0, "loss_ema": pytest.approx(1)}, 1], [{"loss": 2.0, "loss_ema": pytest.approx(0.29 / 0.19)}, 2]]


def test_rows_without_a_loss_leave_its_mean(tmp_path, monkeypatch):
    memory = Memory()
    monkeypatch.setattr(logged_run, "LOGGERS", {"memory": lambda: memory})
    Loggers(["memory"], Run("name", tmp_path, RESUMED, {})).row({"step": 3, "validation_loss": 0.5})
    assert memory.calls[1:] == [("row", {"validation_loss": 0.5}, 3)]


def test_missing_package_names_the_extra(workspace, monkeypatch):
    (Path("not_a_package") / "offline-run-1").mkdir(parents=True)  # such as the folder of W&B's files
    monkeypatch.syspath_prepend(str(Path.cwd()))
    error = error_of(check_installed, ["not_a_package"])
    assert (error.key, error.where) == ("runtime.loggers", "params.yaml")
    assert "pip install -e '.[loggers]'" in error.message
    edit_params(**{"runtime.loggers": ["mlflow"]})
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert error_of(check_params).key == "runtime.loggers"


def test_folder_of_logs_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert error_of(Loggers, ["tensorboard"], Run("name", tmp_path / "file/logs", NEW, {})).key == str(tmp_path / "file/logs")


@pytest.mark.slow
def test_wandb_without_login_asks_nothing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"HOME": tmp_path, "NETRC": tmp_path / "netrc", "XDG_CONFIG_HOME": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_MODE")
    run = Run("name", tmp_path / "logs", NEW, {"seed": 0})
    status, output = in_fork(lambda: Loggers(["wandb"], run).close({}, 1))
    assert status == 0, output
    assert [line.split(",")[0] for line in output.splitlines()] == ["wandb: not logged in", "wandb: offline"]
