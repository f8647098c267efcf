"""Processes for a test, forked, so that they start in milliseconds: several that Gloo connects, and one that may be killed."""

import ctypes
import os
import pickle
import signal
import socket
import sys
import traceback

import torch

from ddpm.core import processes


def in_processes(count, work):
    """Runs work() in `count` processes of one process group; returns the list of results, by rank. Fails if one fails."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            }  # fmt: skip
            try:
                processes.init(torch.device("cpu"))
                result = ("ok", work())
            except BaseException:
                result = ("failed", traceback.format_exc())
            with open(writer, "wb") as pipe:
                pipe.write(pickle.dumps(result))
            # This process is a copy of pytest, which must not report twice.
            os._exit(0)
        os.close(writer)
        children.append((pid, reader))
    results = []
    for pid, reader in children:
        with open(reader, "rb") as pipe:
            results.append(pickle.loads(pipe.read() or pickle.dumps(("failed", "it ended early"))))
        os.waitpid(pid, 0)
    for rank, (status, value) in enumerate(results):
        assert status == "ok", f"process {rank}:\n{value}"
    return [value for _, value in results]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(count, owner, name, action, before=True):
    """Replaces a function: its count-th call runs `action(*arguments)` before, or after, the real one."""
    real, calls = getattr(owner, name), [0]

    def replaced(*arguments, **keywords):
        calls[0] += 1
        if calls[0] == count and before:
            action(*arguments)
        result = real(*arguments, **keywords)
        if calls[0] == count and not before:
            action(*arguments)
        return result

    setattr(owner, name, replaced)


def read_only(folder):
    """Makes a folder read-only in this process, which must be a fork: for root, who may write everything, by a mount."""
    if os.getuid():
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        return
    libc, name = ctypes.CDLL(None, use_errno=True), os.fsencode(folder)
    new_namespace, bind, private, again = 0x20000, 0x1000, 0x44000, 0x1021  # of linux/sched.h and linux/mount.h
    steps = (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(b"none", b"/", None, private, None),
        lambda: libc.mount(name, name, None, bind, None),
        lambda: libc.mount(name, name, None, again, None),
    )
    if any(step() for step in steps):
        raise OSError(ctypes.get_errno(), "no mount")


def in_fork(work):
    """Calls `work` in a fork of this process; returns its exit status, -N for signal N, and its output."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Not a file: a limit of file sizes would apply to it.
        sys.stdout = sys.stderr = os.fdopen(writer, "w", buffering=1)
        status = 1
        try:
            work()
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as file:
        output = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output
