"""Atomic writes, reading of damaged files, hashes."""

import errno
import hashlib
import json
import os
import resource
import shutil
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import error_of
from PIL import Image

from ddpm.core.files import (
    InputError,
    atomic,
    read_json,
    read_npz,
    remove,
    sha256,
    sha256_tree,
    write_json,
    write_npz,
    write_text,
)
from ddpm.core.weights import load_weights, save_weights
from ddpm.training.checkpoint import ResumeState

LIMIT = 4096
NOISE = np.random.default_rng(0).integers(0, 256, (100, 10, 10, 3), np.uint8)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_atomic_makes_file_and_folder(tmp_path):
    target = tmp_path / "a" / "b" / "x.txt"
    with atomic(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert (temporary.parent, temporary.suffix) == (target.parent, target.suffix)
    assert everything_in(tmp_path) == {"a/b/x.txt": b"half"}


def test_atomic_removes_what_killed_processes_have_left(tmp_path):
    """The number in a temporary name is that of its process; init, 1, always runs, and no process has 2^31 - 1."""
    for name in ("x.partial1.txt", "x.partial2147483647.txt", "y.partial2147483647.txt"):
        (tmp_path / f".{name}").touch()
    write_text(tmp_path / "x.txt", "new")
    assert sorted(everything_in(tmp_path)) == [".x.partial1.txt", ".y.partial2147483647.txt", "x.txt"]


@pytest.mark.parametrize("failure", [InputError("no"), RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_atomic_failure_keeps_old_file(tmp_path, failure):
    target = tmp_path / "x.txt"
    target.write_text("old")
    expected = InputError if isinstance(failure, OSError | InputError) else failure

    def write() -> None:
        with atomic(target) as temporary:
            temporary.write_text("new and half")
            raise failure

    with pytest.raises(expected):
        write()
    assert everything_in(tmp_path) == {"x.txt": b"old"}


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "no space left on the device"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "no permission to write there"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, r"cannot be written \(Input/output error\)"),
        (None, r"cannot be written \(10 requested and 5 written\)"),
    ],
)
def test_writing_explains_system_errors(tmp_path, number, advice):
    cause = OSError(number, os.strerror(number)) if number else OSError("10 requested and 5 written")
    with pytest.raises(InputError, match=rf"^\S*x\.txt: {advice}"), atomic(tmp_path / "x.txt"):
        raise cause


@pytest.mark.parametrize("below", ["file/x.txt", "file/folder/x.txt"])
def test_write_below_a_regular_file(tmp_path, below):
    (tmp_path / "file").write_text("content")
    with pytest.raises(InputError, match=r"x\.txt: a part of the path is a file, not a folder$"):
        write_text(tmp_path / below, "text")
    with pytest.raises(InputError, match=r"a part of the path is a file"):
        remove(tmp_path / "file" / "x.txt")
    assert everything_in(tmp_path) == {"file": b"content"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_write_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"x\.txt: no permission to write there: change the rights of the folder$"):
        write_text(tmp_path / "x.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_remove_missing_file(tmp_path):
    write_text(tmp_path / "x.txt", "text")
    for _ in range(2):
        remove(tmp_path / "x.txt")
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def size_limit():
    """Files of this process can grow to LIMIT bytes only: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_picture(path: Path) -> None:
    with atomic(path) as temporary:
        Image.fromarray(NOISE.reshape(100, 100, 3)).save(temporary)


def save_state(path: Path) -> None:
    state = ResumeState("fingerprint", {}, path.parent)
    try:
        state.save({"weights": torch.randn(5000)})
    finally:
        state._lock.release()


def save_array(path: Path) -> None:
    with atomic(path) as temporary:
        np.save(temporary, NOISE)


WRITERS = {
    "x.txt": lambda path: write_text(path, "x" * 10_000),
    "x.json": lambda path: write_json(path, list(range(5000))),
    "x.npz": lambda path: write_npz(path, {"a": NOISE}),
    "x.npy": save_array,
    "x.png": save_picture,
    "x.safetensors": lambda path: save_weights(path, {"a": torch.randn(5000)}),
    "train/fingerprint/state.pt": save_state,
}


@pytest.mark.parametrize("name", WRITERS)
def test_writers_at_file_size_limit_keep_old_file(tmp_path, size_limit, name):
    target = tmp_path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("old")
    with pytest.raises(InputError, match=rf"^\S*{target.name}: (the file would exceed the size limit|cannot be written)[^\n]*$"):
        WRITERS[name](target)
    assert {path: content for path, content in everything_in(tmp_path).items() if not path.endswith("lock")} == {name: b"old"}


def test_stage_at_file_size_limit_leaves_nothing(workspace, refused, size_limit):
    message = refused(import_module("stages.prepare_data").main)
    assert message.startswith("data/prepared/train_images.npy: the file would exceed the size limit")
    assert everything_in(workspace / "data") == {}


def test_npz_round_trip_and_equal_bytes(tmp_path):
    arrays = {"arr_0": NOISE[:, ::2], "arr_1": np.arange(5), "empty": np.zeros((0, 3)), "scalar": np.float32(2)}
    write_npz(tmp_path / "a.npz", arrays)
    later = tmp_path / "b.npz"
    write_npz(later, {name: np.array(array) for name, array in arrays.items()})
    assert (tmp_path / "a.npz").read_bytes() == later.read_bytes()
    with zipfile.ZipFile(later) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    found = read_npz(later, "stage")
    assert "holds no array arr_9; make it again with `dvc repro -f stage`" in str(error_of(read_npz, later, "stage", ["arr_9"]))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with np.load(later) as archive:  # NumPy's own reader, as the evaluators of others use it
        np.testing.assert_array_equal(archive["arr_0"], arrays["arr_0"])


def test_npz_refuses_objects(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(tmp_path / "a.npz", {"a": np.array([{}], object)})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(InputError, match=r"a\.npz: damaged"):
        read_npz(tmp_path / "a.npz", "stage")


def test_read_npz_damaged(tmp_path):
    file = tmp_path / "samples.npz"
    write_npz(file, {"arr_0": NOISE // 16, "arr_1": np.arange(100)})
    good = bytearray(file.read_bytes())
    flipped = []
    for position in range(0, len(good), len(good) // 150):
        flipped.append(good.copy())
        flipped[-1][position] ^= 0x5A
    np.save(tmp_path / "bare.npy", NOISE)
    bad = [b"", b"not an archive", good[: len(good) // 2], good[:-1], (tmp_path / "bare.npy").read_bytes()]
    unnoticed = 0
    for content in [*bad, *flipped]:
        file.write_bytes(content)
        try:
            read_npz(file, "sample_ddpm")
            unnoticed += 1
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{file}: damaged (")
            assert message.endswith("make it again with `dvc repro -f sample_ddpm`")
            assert "\n" not in message
    # A few bytes of an archive, such as dates, mean nothing to the reader.
    assert unnoticed < 15


def test_read_missing_file_names_stage(tmp_path):
    for read in (read_json, read_npz):
        with pytest.raises(InputError, match=r"x\.file: not found; make it with `dvc repro evaluate`$"):
            read(tmp_path / "x.file", "evaluate")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[1, 2]", b"3", b"nul"])
def test_read_json_damaged(tmp_path, content):
    file = tmp_path / "metrics.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"^\S*metrics\.json: [^\n]+; make it again with `dvc repro -f evaluate`$"):
        read_json(file, "evaluate")


def test_json_round_trip(tmp_path):
    value = {"fid": 1.25, "name": "größer", "list": [1, None, True]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "stage") == value
    assert (tmp_path / "x.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_write_json_refuses_nan(tmp_path, value):
    write_json(tmp_path / "x.json", {"fid": 1})
    with pytest.raises(InputError, match=r"x\.json: a value is NaN or infinite, which must not be recorded"):
        write_json(tmp_path / "x.json", {"deep": [{"fid": value}]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"fid": 1}


def test_sha256_of_several_chunks(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Code in the current folder; tree() hashes it."""
    monkeypatch.chdir(tmp_path)
    for name in ("code/a.py", "code/deep/b.py", "single.py"):
        write_text(name, name)
    return lambda: sha256_tree(["code", "single.py"])


def test_sha256_tree_ignores_byte_code_and_dates(tree):
    before = tree()
    write_text("code/__pycache__/a.cpython-311.pyc", "byte-code")
    write_text("code/deep/__pycache__/note.txt", "beside byte-code")
    write_text("code/old.pyc", "byte-code")
    os.utime("code/a.py", (1, 1))
    write_text("elsewhere.py", "no part of it")
    assert tree() == before


CHANGES = {
    "content": lambda: write_text("code/a.py", "code/a.pz"),
    "rename": lambda: os.rename("code/a.py", "code/c.py"),
    "move": lambda: os.rename("code/deep/b.py", "code/b.py"),
    "swap": lambda: (write_text("code/a.py", "code/deep/b.py"), write_text("code/deep/b.py", "code/a.py")),
    "new empty file": lambda: write_text("code/empty.py", ""),
    "removal": lambda: os.remove("code/deep/b.py"),
    "single file": lambda: write_text("single.py", ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_sha256_tree_changes(tree, change):
    before = tree()
    CHANGES[change]()
    assert tree() != before


def test_sha256_tree_missing(tree):
    shutil.rmtree("code")
    assert str(error_of(tree)) == "code: not found"


def test_weights_round_trip_and_equal_bytes(tmp_path):
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for name in ("a", "b"):
        save_weights(tmp_path / f"{name}.safetensors", network.state_dict())
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")
    other = torch.nn.Conv2d(3, 4, 3)
    load_weights(tmp_path / "a.safetensors", other, "train")
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
