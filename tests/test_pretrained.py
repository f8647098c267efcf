"""Weights files of pretrained judges: found, fetched, refused."""

import hashlib

import pytest

from ddpm.core.files import InputError
from ddpm.features import extractors, pretrained
from ddpm.features.extractors import EXTRACTORS, get_weights
from ddpm.features.pretrained import PretrainedSettings, WeightsFile, find_weights


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Both files as a publisher has them, and an empty folder to look in."""
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


def test_missing_files_are_fetched_if_asked_for(published, tmp_path):
    get_weights(settings(download=False))
    assert not (tmp_path / "here").exists()
    get_weights(settings())
    for file in (pretrained.INCEPTION, pretrained.ALEXNET):
        assert find_weights(file).read_bytes() == (published / file.name).read_bytes()
    assert len(list((tmp_path / "here").iterdir())) == 2


def test_what_is_there_is_not_fetched_again(published, tmp_path, capsys):
    get_weights(settings())
    capsys.readouterr()
    get_weights(settings(require=True))
    assert capsys.readouterr() == ("", "")


def test_another_content_is_not_kept(published, tmp_path, capsys):
    (published / pretrained.INCEPTION.name).write_bytes(b"somebody else's")
    get_weights(settings())
    said = capsys.readouterr().err
    assert pretrained.INCEPTION.url in said
    assert "cannot be downloaded" in said
    assert [path.name for path in (tmp_path / "here").iterdir()] == [pretrained.ALEXNET.name]


def test_without_a_network_it_goes_on_or_says_which_file_goes_where(published, tmp_path, capsys):
    for file in list(published.iterdir()):
        file.unlink()
    get_weights(settings())
    assert capsys.readouterr().err.count("going on without it") == 2
    with pytest.raises(InputError, match=rf"{pretrained.INCEPTION.name} is not in .*here.*download_weights"):
        get_weights(settings(require=True))


def test_a_file_that_is_not_what_its_name_says_is_refused(published, tmp_path):
    get_weights(settings())
    find_weights(pretrained.ALEXNET).write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"{pretrained.ALEXNET.name}: its SHA-256 begins with .*damaged or another file"):
        find_weights(pretrained.ALEXNET)


def test_the_published_addresses_end_with_the_names():
    """The real ones: they cannot be fetched in a test."""
    assert pretrained.INCEPTION.url.endswith("/v0.2.0/weights-inception-2015-12-05-6726825d.pth")
    assert pretrained.ALEXNET.url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    for file in (pretrained.INCEPTION, pretrained.ALEXNET):
        assert file.sha256 in file.name
