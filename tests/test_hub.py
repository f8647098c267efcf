"""Exports to the Hugging Face Hub and models from it.

huggingface_hub is the real library, with its requests and its cache; the hub is the fake of fake_hub.py. So neither the checks of
the real hub are covered, nor the uploads of large files by LFS and Xet, which are the library's.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import input_error
from fake_hub import OWNER, TOKEN, Hub, serve
from huggingface_hub import constants
from test_diffusers import make_model, random_unet, run, save_pipeline

from ddpm.cli.main import main
from ddpm.diffusers_io.hub import download, is_address

NAME = f"{OWNER}/threes"
ADDRESS = f"hf://{NAME}"
NOWHERE = "http://127.0.0.1:9"  # no program listens on this port


def use(monkeypatch, address: str) -> None:
    """Sets what huggingface_hub reads from HF_ENDPOINT when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    """A fake hub, a login to it, an empty cache, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, value in {"HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with serve() as running:
        use(monkeypatch, running.address)
        yield running


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def push(*options):
    run("export", "--label", "3", "--out", "out/threes", "--push", NAME, *options)


def test_pushed_export_comes_back_with_equal_weights(hub, monkeypatch, capsys):
    make_model()
    push("--samples", 2)
    assert capsys.readouterr().out.splitlines()[-1] == f"uploaded it to {hub.address}/{NAME}"
    assert hub.newest(NAME) == files_of("out/threes")
    assert {"README.md", "samples.png"} <= hub.newest(NAME).keys()
    assert not hub.private
    run("import", ADDRESS, "--out", "models/downloaded")
    run("import", "out/threes", "--out", "models/direct")
    assert files_of("models/downloaded") == files_of("models/direct")
    assert hub.downloads() == hub.newest(NAME).keys() - {"README.md", "samples.png"}
    before = len(hub.asked)
    use(monkeypatch, NOWHERE)
    assert files_of(download(ADDRESS)) == {path: hub.newest(NAME)[path] for path in hub.downloads()}
    assert len(hub.asked) == before


def test_second_push_is_a_new_revision(hub):
    make_model()
    push("--private")
    (first,) = hub.repositories[NAME]
    make_model(dropout=0.2)
    push()
    assert len(hub.repositories[NAME]) == 2
    assert hub.private == {NAME}
    old, new = download(f"{ADDRESS}@{first}"), download(Path(ADDRESS))  # pathlib drops a slash
    assert (old / "ddpm.json").read_bytes() != (new / "ddpm.json").read_bytes() == hub.newest(NAME)["ddpm.json"]


def test_demo_serves_a_model_of_the_hub(hub, monkeypatch):
    make_model()
    push()
    served = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "ddpm.demo.app", SimpleNamespace(launch=lambda *given: served.append(given)))
    run("demo", "--model", ADDRESS, "--device", "cpu")
    ((model, name, *_),) = served
    run("sample", "--model", ADDRESS, "--device", "cpu", "-n", 2, "--steps", 2, "-o", "a.npz")
    assert name == f"{ADDRESS}, checkpoint final"
    assert np.array_equal(model.sample(2, steps=2), np.load("a.npz")["arr_0"])


@pytest.mark.parametrize(("kinds", "used"), [(["safetensors", "bin"], "safetensors"), (["bin"], "bin")])
def test_published_unet_is_imported(hub, kinds, used):
    """Pickled weights are downloaded only if there are no others."""
    save_pipeline(random_unet())
    random_unet().save_pretrained("theirs/unet", safe_serialization=False)
    every = files_of("theirs")
    hub.commit("google/ddpm-small", {p: data for p, data in every.items() if p.endswith(("json", *kinds))} | {"big.bin": b"0"})
    run("import", "hf://google/ddpm-small", "--out", "models/small")
    assert {path for path in hub.downloads() if not path.endswith("json")} == {f"unet/diffusion_pytorch_model.{used}"}


@pytest.mark.parametrize(
    ("owner", "token", "message"),
    [("me", "", "no access; check the name, and log in by `hf auth login`"), ("you", TOKEN, "this login has no right to it"),
     ("me", None, "the transfer failed (")],
)  # fmt: skip
def test_push_that_fails_keeps_the_export(hub, monkeypatch, capsys, owner, token, message):
    """token: None is no network."""
    make_model()
    monkeypatch.setenv("HF_TOKEN", token or "other")
    if token is None:
        use(monkeypatch, NOWHERE)
    assert main(["export", "--label", "3", "--samples", "0", "--out", "out/threes", "--push", f"{owner}/threes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --push: {message}")
    assert line.endswith("; the export is in out/threes")
    assert Path("out/threes/unet/config.json").is_file()


def test_push_without_the_library_is_refused_before_the_export(hub, monkeypatch, error):
    make_model()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert error("export", "--label", "3", "--push", NAME).startswith("--push: needs huggingface_hub, which is not installed")
    assert error("import", ADDRESS).startswith(f"{ADDRESS}: needs huggingface_hub")
    assert error("export", "--push", "threes").startswith("--push: threes: is no name of a repository")


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [("hf://me/other", TOKEN, "the hub has no such model"), ("hf://me/other", "other", "no access"),
     ("hf://me/threes@v2", TOKEN, "the hub has no such revision of it"), (ADDRESS, None, r"the transfer failed \("),
     ("hf://me", TOKEN, "is no model of a hub; write hf://OWNER/NAME"), ("hf://a--b/c..d", TOKEN, r"the hub refuses it \(")],
)  # fmt: skip
def test_download_refuses_by_address(hub, monkeypatch, address, token, message):
    hub.commit(NAME, {"config.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", token or "other")
    if token is None:
        use(monkeypatch, NOWHERE)
    with input_error(address, message):
        download(address)


def test_addresses_are_no_folders():
    assert is_address(ADDRESS)
    assert is_address(Path(ADDRESS))
    assert not is_address("models/ddpm")
