"""Precision, compilation, processes, and the exit status of a stage."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit_params, error_of, write_files
from processes import in_fork
from test_training import make_trainer, run
from torch import nn
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import stages.sample_ddim
from ddpm.core import launch, params, seconds
from ddpm.core.device import Precision, Runtime, compiled, limit_threads, process_count, usable_cpus
from ddpm.core.files import read_json
from ddpm.core.stage import Interrupted, run_stage

CPU = torch.device("cpu")


@pytest.fixture
def runtime(workspace):
    """runtime(**changes): the section with changes."""

    def load(**changes):
        edit_params(**{f"runtime.{name}": value for name, value in changes.items()})
        return params.load(runtime=Runtime).runtime

    return load


@pytest.mark.parametrize("name", ["auto", "float32", "bfloat16", "float16"])
def test_autocast_dtype(runtime, name):
    precision = Precision(runtime(precision=name), CPU)
    with precision.autocast():
        assert nn.Linear(4, 4)(torch.ones(1, 4)).dtype == getattr(torch, name.replace("auto", "float32"))
    assert (precision.scaler is not None) == (name == "float16")


@pytest.mark.parametrize(("batch", "expected"), [(49, [1]), (50, []), (0, [1])])
def test_limit_threads_counts_the_work_of_a_training_step(monkeypatch, batch, expected):
    """10,000 parameters and 10,000 pixels; for sampling, the images of a batch do not count."""
    counts = []
    monkeypatch.setattr("ddpm.core.device._automatic_threads", True)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    limit_threads(nn.Linear(100, 100, bias=False), (100, 100, 1), batch)
    assert counts == expected


class TestCompile:
    @pytest.mark.parametrize("late", [False, True])
    def test_compile_error_returns_network(self, capsys, monkeypatch, late):
        """late: the error comes with the first call."""

        def broken(*_, **__):
            raise RuntimeError("no compiler\nmore lines")

        monkeypatch.setattr(torch, "compile", (lambda *_, **__: broken) if late else broken)
        layer = nn.Linear(2, 2)
        assert compiled(layer, True, CPU, lambda network: network(torch.ones(1, 2)).sum().backward()) is layer
        assert capsys.readouterr().err == "torch.compile does not work here (no compiler); running without it\n"

    def test_probe_without_memory_is_no_error_of_the_compiler(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)

        def probe(network):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        with pytest.raises(torch.OutOfMemoryError):
            compiled(nn.Linear(2, 2), True, CPU, probe)

    def test_the_probe_leaves_no_gradient(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        layer = nn.Linear(2, 2)
        compiled(layer, True, CPU, lambda network: network(torch.ones(1, 2)).sum().backward())
        assert not layer.weight.grad.any()

    def test_compile_on_cpu_only_if_enabled(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda network, **_: pytest.fail("compiled"))
        layer = nn.Linear(2, 2)
        assert all(compiled(layer, enabled, CPU, None) is layer for enabled in (None, False))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_equals_eager():
    trainers = {}
    for enabled in (False, True):
        trainer = trainers[enabled] = make_trainer(dropout=0.0)
        trainer.model = compiled(trainer.network, enabled, CPU, trainer.probe)
        assert (trainer.model is trainer.network) != enabled
        with torch.compiler.set_stance("fail_on_recompile" if enabled else "default"):
            run(trainer)
    for name, value in trainers[False].network.state_dict().items():
        torch.testing.assert_close(trainers[True].network.state_dict()[name], value, rtol=1e-3, atol=1e-5)


class TestProcesses:
    def test_process_count(self, runtime, monkeypatch):
        assert process_count(runtime(), communicates=True) == 1
        assert process_count(runtime(processes=3), communicates=False) == 3
        monkeypatch.setattr("ddpm.core.device.DEVICES", {"cuda": lambda: True, "auto": lambda: True, "mps": lambda: False})
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        assert process_count(runtime(processes="auto", device="cuda"), communicates=True) == 4
        assert process_count(runtime(processes="auto", device="auto"), communicates=False) == 4

    @pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
    def test_process_count_on_a_cpu(self, runtime, monkeypatch):
        for cpus, expected in ((1, 1), (2, 2), (64, 16)):
            monkeypatch.setattr("ddpm.core.device.usable_cpus", lambda cpus=cpus: cpus)
            assert process_count(runtime(processes="auto"), communicates=False) == expected
            assert process_count(runtime(processes="auto"), communicates=True) == 1

    @pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({"cpu.max": "250000 100000\n"}, 3),
            ({"cpu.max": "max 100000\n"}, 64),
            ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
            ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ],
    )
    def test_usable_cpus_respects_the_quota_of_a_container(self, tmp_path, monkeypatch, files, expected):
        write_files(tmp_path, files)
        real_open, group = open, "/sys/fs/cgroup/"

        def found(name):
            return tmp_path / name.removeprefix(group) if str(name).startswith(group) else name

        monkeypatch.setattr("builtins.open", lambda name, *more, **options: real_open(found(name), *more, **options))
        monkeypatch.setattr(os.path, "exists", lambda name: os.access(found(name), os.F_OK))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
        assert usable_cpus() == expected

    @pytest.mark.slow
    def test_sampling_is_equal_in_forked_and_in_started_processes(self, model, workspace, tmp_path):
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
        edit_params(**{"sample_ddim.samples": 21, "sample_ddim.batch_size": 4})
        started = "from ddpm.core.launch import launch; launch(2, 'stages.sample_ddim', '')"
        digests = set()
        for processes, command in ((1, ["-m", "stages.sample_ddim"]), (3, ["-m", "stages.sample_ddim"]), (2, ["-c", started])):
            edit_params(**{"runtime.processes": processes})
            subprocess.run([sys.executable, *command], env=env, timeout=120, check=True)
            assert not list(temporary.iterdir())
            digests.add(Path("samples/ddim.npz").read_bytes())
            if command[0] == "-m":
                assert read_json("reports/seconds/sample_ddim.json", "")["processes"] == processes
        assert len(digests) == 1

    @pytest.mark.parametrize("printed", [True, False])
    def test_launch_prints_one_line_after_a_signal(self, monkeypatch, capsys, printed):
        def ended_by_sigterm(*_):
            if printed:
                launch.mark_saved()
            raise SignalException("", signal.SIGTERM)

        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: ended_by_sigterm)
        with pytest.raises(SystemExit) as stopped:
            launch.launch(2, "stages.train", "train.batch_size")
        assert stopped.value.code == 143
        assert capsys.readouterr().err == ("" if printed else "interrupted\n")

    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (-signal.SIGKILL, "was killed by SIGKILL, and the others were stopped; run the same command again; if the memory "),
            (-signal.SIGSEGV, "was killed by SIGSEGV, and the others were stopped; run the same command again"),
            (255, "ended with exit status 255, and the others were stopped"),
        ],
    )
    def test_launch_explains_how_a_process_ended(self, tmp_path, monkeypatch, status, message):
        (tmp_path / "error.json").write_text('{"input": false, "lost": true, "message": "", "timestamp": 0}')

        def fails(*_):
            lost = ProcessFailure(0, 1, 1, str(tmp_path / "error.json"))
            raise ChildFailedError("", {0: lost, 1: ProcessFailure(1, 7, status, "<none>")})

        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: fails)
        error = error_of(launch.launch, 2, "stages.train", "train.batch_size")
        assert error.message.startswith(f"process 1 of 2 (pid 7) {message}")
        assert error.message.endswith("lower train.batch_size") == (status == -signal.SIGKILL)

    @pytest.mark.slow
    def test_error_of_several_processes_is_printed_once(self, workspace):
        edit_params(**{"runtime.processes": 2, "train.batch_size": 1, "train.gradient_accumulation": 1})
        done = subprocess.run(
            [sys.executable, "-m", "stages.train"], cwd=workspace, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert done.stderr == (
            "error: params.yaml: train.batch_size: 1 images cannot be divided among 2 processes with 1 parts each; raise it, or "
            "lower train.gradient_accumulation or runtime.processes\n"
        )


def test_run_stage_writes_the_seconds_of_a_stage_that_ends_well(model, refused):
    file, start = Path("reports/seconds/sample_ddim.json"), time.monotonic()
    edit_params(**{"sample_ddim.steps": 51})
    assert "sample_ddim.steps" in refused(stages.sample_ddim.main)
    assert not file.exists()
    edit_params(**{"sample_ddim.steps": 1, "sample_ddim.samples": 6})
    run_stage(stages.sample_ddim.main, timed=False)
    run_stage(lambda: None)
    assert not file.parent.exists()
    run_stage(stages.sample_ddim.main)
    found = read_json(file, "sample_ddim")
    assert found["processes"] == 1
    assert time.monotonic() - start <= found["seconds"] <= seconds.elapsed() + 0.01


def test_launch_counts_the_seconds_before_a_resume(monkeypatch):
    """The process that resumes is another one than the process that writes them."""
    monkeypatch.setattr(seconds, "_earlier", 0.0)
    resumed = partial(in_fork, lambda: seconds.resume(1e6))
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: lambda *_: resumed())
    launch.launch(2, "stages.train", "train.batch_size")
    assert seconds.elapsed() > 1e6


def test_run_stage_interrupted_exit_status(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr("os._exit", ended.append)

    def main():
        raise Interrupted(15, "train: stopped at step 3; its state is saved")

    run_stage(main)
    assert ended == [143]
    assert capsys.readouterr().err == "train: stopped at step 3; its state is saved\n"
