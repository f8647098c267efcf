"""Several processes for a test: forked, so that they start in milliseconds, and connected by Gloo."""

import os
import pickle
import socket
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
