"""A stage that is killed, or that finds a full disk, leaves nothing that its next run does not replace.

Each attempt is a fork of this process, which has loaded PyTorch, so it starts at once.
"""

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, Checkout, edit, edit_params, link_code, the_error
from processes import at_call, die, in_fork

from ddpm.core.params import read_yaml
from ddpm.core.stage import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")]

STAGES = {
    name: import_module(f"stages.{name}").main
    for name in (
        "prepare_data", "train_classifier", "train", "sample_ddpm", "sample_ddim", "guidance", "edit", "evaluate", "report",
    )
}  # fmt: skip
# Of these files only the times in seconds differ from run to run.
TIMED = (
    "reports/train/speed.csv", "reports/train/training.png", "reports/sample_ddpm/metrics.json",
    "reports/sample_ddim/metrics.json", "reports/evaluate/metrics.json",
)  # fmt: skip


def attempt(stage, fault=lambda: None):
    """Runs the stage in a process that first calls `fault`; returns its exit status, -N for signal N, and its output."""

    def work():
        fault()
        run_stage(STAGES[stage])

    return in_fork(work)


def contents(folder=Path()):
    """Returns the bytes of all files but code and locks, which stay, and those with times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".py", ".md", ".pyc")]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: b"" if name in TIMED else data for name, data in files.items() if not name.startswith("reports/seconds/")}


def outputs(definition):
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in definition.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which every stage has run, the seconds of each stage, and its number of renamed files."""
    folder = tmp_path_factory.mktemp("finished") / "workspace"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DDPM_SCRATCH", ".scratch")
        for name in ("DVC_ROOT", "DVC_STAGE"):
            patch.delenv(name, raising=False)
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, folder)
        link_code()
        edit_params(**TINY)
        seconds, renames = {}, {}
        for stage in STAGES:
            start = time.monotonic()
            status, output = attempt(stage, lambda: count_renames(Path("renames.txt")))
            assert status == 0, output
            seconds[stage], renames[stage] = time.monotonic() - start, Path("renames.txt").stat().st_size
            Path("renames.txt").unlink()
        yield folder, seconds, renames


def count_renames(file):
    real = os.replace

    def replaced(*arguments):
        with file.open("a") as log:
            log.write(".")
        return real(*arguments)

    os.replace = replaced


@pytest.fixture
def before(finished, tmp_path, monkeypatch):
    """before(stage): a copy of the finished folder without what the stage writes, as DVC leaves it; returns what to expect."""

    def enter(stage):
        folder = tmp_path / "workspace"
        shutil.copytree(finished[0], folder, symlinks=True)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DDPM_SCRATCH", ".scratch")
        expected = contents()
        for name in outputs(read_yaml("dvc.yaml")["stages"][stage]):
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
        return expected

    return enter


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


MOMENTS = ("at some time", "at another time", "before a rename", "after a rename")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_stage_runs_again_to_equal_files(finished, before, stage, moment):
    _, seconds, renames = finished
    chance = random.Random(f"{stage} {moment}")
    expected = before(stage)

    def fault():
        if moment.endswith("time"):
            threading.Timer(chance.uniform(0, seconds[stage]), die).start()
        else:
            at_call(chance.randint(1, renames[stage]), os, "replace", die, before=moment.startswith("before"))

    status, output = attempt(stage, fault)
    assert status == -signal.SIGKILL or moment.endswith("time"), output
    status, output = attempt(stage)
    assert status == 0, output
    assert contents() == expected


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_ends_a_stage_with_one_line(finished, before, stage, share):
    """share: of the size of the largest file, to which files are limited; 1: the disk is full when a file is flushed to it."""
    expected = before(stage)
    written = set(expected) - set(contents())
    largest = max(len((finished[0] / name).read_bytes()) for name in written)

    def fault():
        if share == 1:
            at_call(1 + finished[2][stage] // 2, os, "fsync", no_space)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), resource.RLIM_INFINITY))

    status, output = attempt(stage, fault)
    assert the_error(status, "", "".join(line for line in output.splitlines(True) if line.startswith(("error", "Traceback"))))
    assert "Traceback" not in output, output
    assert not [name for name in contents() if ".partial" in name]
    status, output = attempt(stage)
    assert status == 0, output
    assert contents() == expected


LONG = {"train.steps": 1500} | {f"train.{kind}_every": 500 for kind in ("log", "validate", "preview", "checkpoint")}


def new_checkout(folder, **settings):
    """Returns a checkout of the project with the tiny profile and these settings."""
    checkout = Checkout(folder)
    for name in ("ddpm", "stages", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(edit(read_yaml(params), **TINY | settings), sort_keys=False))
    checkout.python("dvc", "init", "-q")
    checkout.commit()  # DVCLive needs one
    return checkout


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a training of about 10 s and prepared data."""
    checkout = new_checkout(tmp_path / "checkout", **LONG)
    checkout.python("dvc", "repro", "prepare_data")
    return checkout


def started(checkout, *arguments):
    command = [sys.executable, "-m", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=checkout.folder, env=checkout.env, start_new_session=True, **pipes)


def lock_of(checkout):
    """Returns dvc.lock as a tree, without the files of seconds."""
    lock = yaml.safe_load((checkout.folder / "dvc.lock").read_text())
    for stage in lock["stages"].values():
        stage["outs"] = [out for out in stage["outs"] if not out["path"].startswith("reports/seconds/")]
    return lock


def written(folder):
    """Returns the `contents` of what the stages write."""
    names = ("data/", "models/", "samples/", "reports/")
    return {name: data for name, data in contents(folder).items() if name.startswith(names)}


def test_repro_killed_in_each_stage_ends_with_equal_files(finished, tmp_path):
    checkout = new_checkout(tmp_path / "checkout")
    chance, killed, seconds = random.Random(0), set(), 5.0
    while killed < set(STAGES):
        process, starts = started(checkout, "dvc", "repro", "report"), {}
        while not set(starts) - killed:
            line = process.stdout.readline()
            assert line, f"no stage but {killed} ran"
            if line.startswith("Running stage"):
                starts[line.split("'")[1]] = time.monotonic()
        if len(starts) > 1:  # the killed stage ran again, and so long
            first, second, *_ = starts.values()
            seconds = second - first
        time.sleep(chance.uniform(0, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed |= set(starts)
    checkout.python("dvc", "repro", "report")
    assert written(checkout.folder) == written(finished[0])
    assert "up to date" in checkout.python("dvc", "status", "report", "--with-deps").stdout
    assert checkout.run("git", "status", "--porcelain").stdout.split() == ["??", "dvc.lock", "??", "reports/"]
    assert_sound(checkout.folder / ".dvc/cache/files/md5")


def assert_sound(cache):
    """DVC trusts the names in its cache: each file's is the MD5 of its content."""
    for path in cache.rglob("*"):
        if path.is_file():
            assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.stem, path


def test_two_repro_at_once_end_with_the_same_lock(checkout):
    lock, files = lock_of(checkout), written(checkout.folder)
    both = [started(checkout, "dvc", "repro", "-f", "prepare_data") for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    # The second one is refused, unless it begins when the first has ended.
    assert 0 in [process.returncode for process in both], outputs
    assert all(process.returncode == 0 or "is busy" in output for process, output in zip(both, outputs, strict=True)), outputs
    checkout.python("dvc", "repro", "prepare_data")
    assert (lock_of(checkout), written(checkout.folder)) == (lock, files)


def test_repro_replaces_a_damaged_object_of_the_cache(checkout):
    lock, files = lock_of(checkout), written(checkout.folder)
    largest = max((checkout.folder / ".dvc/cache/files").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(b"damaged")
    shutil.rmtree(checkout.folder / "data")
    checkout.python("dvc", "repro", "prepare_data")
    assert (lock_of(checkout), written(checkout.folder)) == (lock, files)


@pytest.mark.parametrize("readable", [True, False])
def test_cache_that_cannot_be_written_ends_repro_with_one_line(checkout, readable):
    """A mode does not bind root: one cache is mounted read-only, for the one process, and one lies where nobody can write."""
    lock, files, cache = lock_of(checkout), written(checkout.folder), str(checkout.folder / ".dvc/cache")
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, cache] if readable else []
    if readable and (not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False).returncode):
        pytest.skip("this system mounts nothing without root")
    if not readable:
        checkout.python("dvc", "cache", "dir", "--local", "/proc/cache")
    params = checkout.folder / "params.yaml"
    before = params.read_text()
    shutil.rmtree(checkout.folder / "data")
    for image_size in ("native", "12"):  # the first is in the cache
        params.write_text(before.replace("image_size: native", f"image_size: {image_size}"))
        refused = checkout.run(*inside, sys.executable, "-m", "dvc", "repro", "prepare_data", status=255)
        (line,) = [line for line in refused.stderr.splitlines() if "ERROR" in line or "Traceback" in line]
        assert line.startswith("ERROR: failed to reproduce 'prepare_data': [Errno ")
    params.write_text(before)
    if not readable:
        checkout.python("dvc", "cache", "dir", "--local", "--unset")
    checkout.python("dvc", "repro", "prepare_data")
    assert (lock_of(checkout), written(checkout.folder)) == (lock, files)


def test_training_beside_repro_is_refused_and_both_end_equal(checkout):
    alone = started(checkout, "stages.train")
    lines = []
    while not any("parameters on" in line for line in lines):
        lines.append(alone.stdout.readline())
        assert lines[-1], lines
    refused = checkout.python("dvc", "repro", "-s", "train", status=255)
    assert "is running; wait for it, or stop it" in refused.stderr
    assert alone.poll() is None
    output = alone.communicate()[0]
    assert alone.returncode == 0, output

    expected = written(checkout.folder)
    checkout.python("dvc", "repro", "-s", "train")
    assert written(checkout.folder) == expected
