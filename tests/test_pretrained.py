"""Weights files of pretrained networks: found, downloaded, refused."""

import hashlib

import pytest
from conftest import error_of

from ddpm.core.files import InputError
from ddpm.features import extractors, pretrained
from ddpm.features.extractors import EXTRACTORS, get_weights
from ddpm.features.pretrained import PretrainedSettings, WeightsFile, find_weights


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Both files in the folder of a publisher, and an empty DDPM_WEIGHTS_ROOT."""
    (tmp_path / "publisher").mkdir()
    monkeypatch.setenv("DDPM_WEIGHTS_ROOT", str(tmp_path / "here"))
    for name in ("INCEPTION", "ALEXNET"):
        content = f"the weights of {name}".encode()
        digest = hashlib.sha256(content).hexdigest()[:8]
        file = WeightsFile(f"{name.lower()}-{digest}.pth", digest, (tmp_path / "publisher").as_uri() + "/")
        (tmp_path / "publisher" / file.name).write_bytes(content)
        monkeypatch.setattr(pretrained, name, file)
    monkeypatch.setitem(EXTRACTORS, "inception", EXTRACTORS["inception"]._replace(weights=pretrained.INCEPTION))
    monkeypatch.setattr(extractors, "ALEXNET", pretrained.ALEXNET)
    return tmp_path / "publisher"


def settings(require=False, download=True):
    return PretrainedSettings(require_inception=require, download_weights=download)


def test_get_weights_downloads_missing_files_once(published, tmp_path, capsys):
    get_weights(settings(download=False))
    assert not (tmp_path / "here").exists()
    get_weights(settings())
    for file in (pretrained.INCEPTION, pretrained.ALEXNET):
        assert find_weights(file).read_bytes() == (published / file.name).read_bytes()
    assert len(list((tmp_path / "here").iterdir())) == 2
    capsys.readouterr()
    get_weights(settings(require=True))
    assert capsys.readouterr() == ("", "")


def test_get_weights_keeps_no_other_content(published, tmp_path, capsys):
    (published / pretrained.INCEPTION.name).write_bytes(b"another file")
    get_weights(settings())
    assert f"{pretrained.INCEPTION.url}: cannot be downloaded" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "here").iterdir()] == [pretrained.ALEXNET.name]


def test_get_weights_without_a_network_warns_or_names_the_required_file(published, capsys):
    for file in list(published.iterdir()):
        file.unlink()
    get_weights(settings())
    assert capsys.readouterr().err.count("cannot be downloaded") == 2
    with pytest.raises(InputError, match=rf"{pretrained.INCEPTION.name} is not in .*here.*download_weights") as error:
        get_weights(settings(require=True))
    assert error.value.key == "evaluate.require_inception"


def test_find_weights_refuses_another_content(published):
    get_weights(settings())
    path = find_weights(pretrained.ALEXNET)
    path.write_bytes(b"damaged")
    error = error_of(find_weights, pretrained.ALEXNET)
    assert error.key == str(path)
    assert "its SHA-256 begins with" in error.message


def test_published_addresses_end_with_the_names():
    """The real ones, which cannot be downloaded in a test."""
    assert pretrained.INCEPTION.url.endswith("/v0.2.0/weights-inception-2015-12-05-6726825d.pth")
    assert pretrained.ALEXNET.url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    assert all(file.sha256 in file.name for file in (pretrained.INCEPTION, pretrained.ALEXNET))
