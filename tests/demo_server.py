"""Runs the web page in a process of its own, and sends requests to it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT, TINY, diffusion, edit_params, prepared

from ddpm.core import params
from ddpm.core.files import write_json
from ddpm.core.weights import save_weights
from ddpm.demo.inputs import DEFAULT, SAMPLE, TEST
from ddpm.networks.checkpoints import make_config
from ddpm.networks.registry import NetworkSettings
from ddpm.networks.unet import UNet

# Valid values of each job.
DRAWING = (DEFAULT, 4, "ddim", 3, 0.0, 1.0, 5)
FILLING = (TEST, 3, None, DEFAULT, "left", "", 3, 4, 2, 1.0, 7)
WAY = (SAMPLE, 2, 7, DEFAULT, "4", 5, "ddim", 3)
COMPARISON = (DEFAULT, 4, 5, 1.0, "ddim", 2, "ddpm", 3)
VALID = {"draw": DRAWING, "inpaint": FILLING, "interpolate": WAY, "compare": COMPARISON}
MISSING = "pip install -r requirements-demo.txt"
SERVE = """
import ddpm, sys
from ddpm.demo.app import launch
from ddpm.core.files import InputError
try:
    launch(ddpm.load("models/ddpm", device="cpu"), "models/ddpm", host=sys.argv[1], port=int(sys.argv[2]))
except InputError as error:
    sys.exit(f"error: {error}")
"""


class Server(NamedTuple):
    """url: of the page; log: what it writes to stderr; port: where it listens."""

    url: str
    log: Path
    port: int


def changed(values: tuple, **by_place: Any) -> tuple:
    """Returns the values with changes by their place: changed(values, _0="7")."""
    return tuple(by_place.get(f"_{k}", value) for k, value in enumerate(values))


def untrained_model(conditioning: str, timesteps: int) -> None:
    """models/ddpm and data/prepared in the current folder: an untrained network of digits, with ./params.yaml's settings."""
    data = prepared()
    settings = params.load(model=NetworkSettings).model.model_copy(update={"conditioning": conditioning})
    training = {"condition_dropout": 0.1, "steps": 0, "batch_size": 8}
    config = make_config(settings, "linear", "v", diffusion(timesteps), data.identity(), training, 0)
    write_json("models/ddpm/config.json", config)
    torch.manual_seed(0)
    network = UNet(settings, data.shape, data.class_names)
    # The output of an untrained network is zero.
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    save_weights(Path("models/ddpm/final.safetensors"), network.state_dict())


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """The page of an untrained class-conditional model of T = 1000, for all tests of a module."""
    pytest.importorskip("gradio", reason=f"Gradio is not installed: {MISSING}")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("page")
        patch.chdir(folder)
        patch.setenv("DDPM_DATA_ROOT", str(folder / "raw"))
        for name in ("params.yaml", "dvc.yaml"):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        edit_params(**TINY)
        untrained_model("class", 1000)
        with serving(folder) as found:
            yield found


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    port, log = free_port(), folder / "log"
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "127.0.0.1", str(port)],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line.startswith(f"http://127.0.0.1:{port}"), log.read_text()
            yield Server(f"http://127.0.0.1:{port}", log, port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


def environment() -> dict[str, str]:
    """Returns this process's environment, in which the project can be imported and no proxy takes requests to this machine."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and not name.startswith("GRADIO")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def send(web: Any, server: Server, name: str, values: list) -> str:
    """Ask for a job; the number by which it is known. NaN and half characters are sent as they are."""
    body = json.dumps({"data": values}).encode()
    answer = web.post(f"{server.url}/gradio_api/call/{name}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json()["event_id"]


def events(web: Any, server: Server, name: str, number: str) -> Iterator[tuple[str, Any]]:
    """What a job sends: (generating, complete or error; what comes with it)."""
    with web.stream("GET", f"{server.url}/gradio_api/call/{name}/{number}") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind != "heartbeat":
                yield kind, json.loads(line.removeprefix("data: "))


def ask(web: Any, server: Server, name: str, values: list) -> tuple[str, Any]:
    """The end of a job: (complete, its values) or (error, its message)."""
    *_, (kind, found) = events(web, server, name, send(web, server, name, values))
    return kind, found["error"] if kind == "error" and isinstance(found, dict) else found


def progress(status: str) -> tuple[int, int, float]:
    """Steps done and in all, and seconds, as the page shows them."""
    found = re.search(r"([\d,]+) of ([\d,]+) steps, ([\d.]+) s", status)
    return int(found[1].replace(",", "")), int(found[2].replace(",", "")), float(found[3])
