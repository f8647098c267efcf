"""Ctrl-C and SIGTERM: one line and exit status 128 + N, while a stage or a command imports too."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PROGRESS, ROOT, edit_params, link_code
from processes import in_fork

from ddpm.core import launch
from ddpm.core.files import atomic
from ddpm.core.signals import interruptible
from ddpm.core.stage import run_stage

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
# In the place of PyTorch: says that it is being imported, and takes long. Like C code, it loses the exception of a signal.
SLOW_IMPORT = """
import pathlib, time
pathlib.Path("importing").touch()
for _ in range(600):
    try:
        time.sleep(0.1)
    except BaseException:
        pass
"""


@SIGNALS
@pytest.mark.parametrize("command", ["stages.train", "stages.report", "ddpm sample"])
def test_signal_during_an_import_ends_with_one_line(tmp_path, command, number):
    (tmp_path / "torch.py").write_text(SLOW_IMPORT)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (tmp_path / "importing").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == b"interrupted\n"
    assert process.returncode == 128 + number


@pytest.mark.slow
@SIGNALS
@pytest.mark.parametrize("moment", ["imports", "training"])
def test_signal_to_a_stage_of_two_processes_prints_one_line(data, number, moment):
    """The signal goes to the parent alone, as `kill` sends it."""
    every = dict.fromkeys(("train.steps", "train.checkpoint_every", "train.preview_every"), 10**6)
    edit_params(**{"runtime.processes": 2, "runtime.log_seconds": 0.1} | every)
    link_code()
    with subprocess.Popen([sys.executable, "-m", "stages.train"], stderr=subprocess.PIPE, text=True) as process:
        if moment == "training":
            assert PROGRESS.match(process.stderr.readline())
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while len(children.read_text().split()) < 2:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
        process.send_signal(number)
        (line,) = [line for line in process.communicate(timeout=60)[1].splitlines() if not PROGRESS.match(line)]
    assert process.returncode == 128 + number
    assert line == "interrupted" if moment == "imports" else "its state is saved" in line


@SIGNALS
def test_signal_in_a_stage_removes_temporary_files(tmp_path, capsys, number):
    def main():
        with atomic(tmp_path / "x.txt") as temporary:
            temporary.touch()
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        run_stage(main)
    assert stopped.value.code == 128 + number
    assert capsys.readouterr().err == "interrupted\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == before


def test_second_signal_at_once_is_a_duplicate():
    with interruptible():
        for raises in (True, False):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                assert raises
            else:
                assert not raises


def test_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), signal.SIGINT)


@SIGNALS
@pytest.mark.parametrize("threads", [1, 2])
def test_signal_during_a_fork_arrives_after_it(number, threads):
    """The kernel gives a signal to any thread that does not block it."""

    def work():
        if threads == 2:
            threading.Thread(target=time.sleep, args=[60], daemon=True).start()
        # The hooks run in the reverse order, so the signal waits.
        os.register_at_fork(before=lambda: os.kill(os.getpid(), number))
        os.register_at_fork(before=launch._hold_signals, after_in_parent=launch._release_signals)
        try:
            with interruptible() as stop:
                if (child := os.fork()) == 0:
                    os._exit(0)
                os.waitpid(child, 0)
                time.sleep(20)
        except KeyboardInterrupt:
            sys.exit(stop.number)

    status, said = in_fork(work)
    assert status == number, said
    assert "ignored" not in said
