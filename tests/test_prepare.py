"""Preparation of picture files: resume to equal bytes, unreadable pictures, full disks, threads."""

import errno
import os
import signal
import threading

import numpy as np
import pytest
from conftest import edit_params, error_of
from PIL import Image
from processes import at_call, die, in_fork
from raw_files import arrays, colours, contents, load, paths, refused, settings

import stages.prepare_data
from ddpm.core import params
from ddpm.core.files import InputError
from ddpm.core.scratch import hold
from ddpm.data.prepared import open_prepared
from ddpm.datasets import fill, resume, statistics
from ddpm.datasets import prepare as preparing
from ddpm.datasets.fill import AHEAD, in_threads
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DATASETS, Dataset, Raw, Source
from ddpm.datasets.resume import PartialArrays
from ddpm.datasets.settings import PrepareData

FIT = {"image_size": 4, "resize_mode": "resize", "channels": "rgb"}


@pytest.fixture
def raw(raw, monkeypatch):
    """16 pictures in two classes; every row is saved at once, without fsync."""
    colours(raw / "pictures" / "cat", 6)
    colours(raw / "pictures" / "dog", 10, first=60)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    monkeypatch.setattr(os, "fsync", lambda number: None)
    return raw


@pytest.fixture
def decoded(monkeypatch):
    """The names of the pictures that were decoded, in order."""
    names = []
    real = fill.decode
    monkeypatch.setattr(fill, "decode", lambda file, how: (names.append(getattr(file, "name", "")), real(file, how))[1])
    return names


def uninterrupted(tmp_path) -> dict[str, bytes]:
    prepare("image_folder", settings(**FIT), tmp_path / "uninterrupted", fresh=True)
    return contents(tmp_path / "uninterrupted")


def killed(owner, name: str, count: int, before: bool, **changes) -> None:
    """Prepares in a fork, which is killed before or after the count-th call of owner.name."""

    def work():
        at_call(count, owner, name, die, before)
        prepare("image_folder", settings(**{**FIT, **changes}))

    assert in_fork(work)[0] == -signal.SIGKILL


KILL_POINTS = {
    "before anything is written": ((PartialArrays, "begin", 1, True), 0),
    "when the files are made": ((resume, "write_json", 1, True), 0),
    "before a row": ((PartialArrays, "write", 13, True), 12),
    "before a row is marked": ((os, "fsync", 20, True), 9),
    "after a row": ((PartialArrays, "write", 13, False), 13),
    "after the last row": ((PartialArrays, "write", 16, False), 16),
    "before the arrays are named": ((preparing, "_publish", 1, True), 16),
    "between the arrays": ((preparing, "_publish", 1, False), 16),
    "before meta.json": ((preparing, "write_json", 1, True), 16),
    "after meta.json": ((preparing, "write_json", 1, False), 16),
}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_resume_after_kill_gives_equal_bytes(raw, tmp_path, capsys, decoded, point):
    expected = uninterrupted(tmp_path)
    where, done = KILL_POINTS[point]
    killed(*where)
    decoded.clear()
    capsys.readouterr()
    meta = prepare("image_folder", settings(**FIT))
    assert contents(tmp_path / "data" / "prepared") == expected
    assert meta["sha256"] == open_prepared("image_folder", settings(**FIT).as_written()).meta["sha256"]
    said = capsys.readouterr().out
    assert len(decoded) == 16 - done
    assert (f"{done} of 16 images were prepared before" in said) == (done > 0)
    # No state is left, so the next preparation decodes all pictures again.
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file() and path.suffix != ".lock"]
    prepare("image_folder", settings(**FIT))
    assert len(decoded) == 32 - done


def test_resume_after_several_kills_without_outputs(raw, tmp_path, decoded):
    expected = uninterrupted(tmp_path)
    for _ in range(3):
        killed(PartialArrays, "write", 4, False)
        for path in (tmp_path / "data" / "prepared").iterdir():
            path.unlink()
    decoded.clear()
    prepare("image_folder", settings(**FIT))
    assert len(decoded) == 16 - 12
    assert contents(tmp_path / "data" / "prepared") == expected


CHANGES = {
    "other code": lambda raw, patch: patch.setattr(resume, "sha256", lambda path: "other"),
    "another picture": lambda raw, patch: colours(raw / "pictures" / "cat", 7),
    "no rows": lambda raw, patch: next((raw.parent / "scratch").rglob("train_images.npy")).unlink(),
    "damaged marks": lambda raw, patch: next((raw.parent / "scratch").rglob("done.npy")).write_bytes(b"damaged"),
    "damaged state": lambda raw, patch: next((raw.parent / "scratch").rglob("state.json")).write_bytes(b"{"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_resume_starts_over_after_change(raw, tmp_path, decoded, monkeypatch, change):
    killed(PartialArrays, "write", 13, False)
    CHANGES[change](raw, monkeypatch)
    decoded.clear()
    meta = prepare("image_folder", settings(**FIT))
    assert len(decoded) == sum(meta["counts"].values())
    assert contents(tmp_path / "data" / "prepared") == uninterrupted(tmp_path)


def test_resume_starts_over_with_other_settings_or_fresh(raw, decoded, capsys):
    killed(PartialArrays, "write", 13, False)
    prepare("image_folder", settings(**{**FIT, "image_size": 3}))
    assert len(decoded) == 16
    prepare("image_folder", settings(**FIT), fresh=True)
    assert len(decoded) == 32
    assert "DDPM_FRESH is set" in capsys.readouterr().out
    assert "DDPM_FRESH" not in (prepare("image_folder", settings(**FIT), fresh=True), capsys.readouterr().out)[1]


def test_resume_reads_changed_picture_only(raw, tmp_path, decoded):
    killed(PartialArrays, "write", 16, False)
    Image.new("RGB", (6, 5), (1, 2, 3)).save(raw / "pictures" / "dog" / "07.png")
    decoded.clear()
    prepare("image_folder", settings(**FIT))
    assert decoded == ["07.png"]
    assert contents(tmp_path / "data" / "prepared") == uninterrupted(tmp_path)


def test_second_preparation_is_refused(raw, tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(resume, "hold", lambda *arguments: held.append(hold(*arguments)) or held[-1])
    prepare("image_folder", settings(**FIT))
    held[0].acquire()
    try:
        assert refused(prepare, "image_folder", settings(**FIT)).endswith("settings is running; wait for it, or stop it")
        prepare("image_folder", settings(**{**FIT, "image_size": 3}))
    finally:
        held[0].release()
    prepare("image_folder", settings(**FIT))


def test_prepare_digits_without_scratch_folder(raw, tmp_path):
    prepare("digits", settings())
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("forced", [True, False])
def test_stage_resumes_unless_fresh(workspace, capsys, monkeypatch, forced):
    colours(workspace / "raw" / "image_folder" / "cat", 20)
    edit_params(dataset="image_folder", **{"prepare_data.image_size": 4, "prepare_data.resize_mode": "resize"})
    given = params.load(prepare_data=PrepareData).prepare_data
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    killed(PartialArrays, "write", 8, False, **given.model_dump())
    monkeypatch.setenv("DDPM_FRESH", str(int(forced)))
    stages.prepare_data.main()
    said = capsys.readouterr()
    assert ("DDPM_FRESH is set" in said.out) is forced
    assert ("8 of 20 images were prepared before" in said.out) is not forced
    assert "image_folder: 18 training and 2 test images of 4x4x3; 1 classes (training + test): 'cat' 18 + 2" in said.out
    assert "warning: all images are of one class" in said.err


# --- pictures that cannot be read


def spoil(raw, *names: str) -> list[str]:
    paths = [raw / "pictures" / name for name in names]
    for path in paths:
        path.write_bytes(b"no picture")
    return [str(path) for path in paths]


def test_unreadable_pictures_are_named_at_the_end(raw, tmp_path, decoded):
    bad = spoil(raw, *(f"dog/{i:02}.png" for i in range(2, 10)))
    message = refused(prepare, "image_folder", settings(**FIT))
    assert len(decoded) == 16
    listed = next((tmp_path / "scratch").rglob("unreadable.txt"))
    reason = "no format that Pillow knows"
    # In the order in which they are read: training pictures, then test pictures.
    lines = listed.read_text().splitlines()
    assert sorted(lines) == [f"{path}: {reason}" for path in bad]
    first = ", ".join(f"{line.split(': ')[0]} ({reason})" for line in lines[:5])
    assert message == (
        f"8 of 16 images cannot be read: {first}, and 3 others, all named in {listed}; repair or remove what cannot be read, or "
        "leave it out by prepare_data.skip_bad: true"
    )
    assert not (tmp_path / "data" / "prepared" / "meta.json").exists()


def test_resume_reads_repaired_pictures_only(raw, tmp_path, decoded):
    expected = uninterrupted(tmp_path)
    good = (raw / "pictures" / "cat" / "03.png").read_bytes()
    bad = spoil(raw, "cat/03.png", "cat/05.png")
    assert "2 of 16 images cannot be read" in refused(prepare, "image_folder", settings(**FIT))
    (raw / "pictures" / "cat" / "03.png").write_bytes(good)
    decoded.clear()
    assert refused(prepare, "image_folder", settings(**FIT)).startswith(f"{bad[1]}: cannot be read as an image (no format")
    assert sorted(decoded) == ["03.png", "05.png"]
    Image.new("RGB", (6, 5), (5, 250, 0)).save(bad[1])
    prepare("image_folder", settings(**FIT))
    assert contents(tmp_path / "data" / "prepared") == expected


@pytest.mark.parametrize("linked", [True, False])
def test_skip_bad_keeps_all_other_pictures(raw, tmp_path, decoded, capsys, monkeypatch, linked):
    whole = prepare("image_folder", settings(**FIT), tmp_path / "whole")
    source = load("image_folder")
    bad = spoil(raw, "cat/03.png", "dog/00.png")
    monkeypatch.setattr(statistics, "BLOCK", 4 * 4 * 3 * 5)  # more blocks than one
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another file system")))
    refused(prepare, "image_folder", settings(**FIT), tmp_path / "out")
    bad += spoil(raw, "dog/09.png")  # which was prepared before
    decoded.clear()
    meta = prepare("image_folder", settings(**FIT, skip_bad=True), tmp_path / "out")
    # The setting changes no image, so the preparation resumes.
    assert sorted(decoded) == ["00.png", "03.png", "09.png"]
    assert meta["left_out"] == 3
    assert (tmp_path / "out" / "left_out.txt").read_text().count("\n") == 3
    assert sum(meta["counts"].values()) == 13
    assert "left_out" not in whole
    kept = [np.array([str(path) not in bad for path in paths(split.images)]) for split in source[:2]]
    expected = arrays(tmp_path / "whole")
    for found, array, mask in zip(arrays(tmp_path / "out"), expected, [kept[0], kept[0], kept[1], kept[1]], strict=True):
        np.testing.assert_array_equal(found, array[mask])
    assert meta["mean"] == pytest.approx((expected[0][kept[0]].mean((0, 1, 2)) / 255).tolist(), abs=1e-6)
    data = open_prepared("image_folder", settings(**FIT, skip_bad=True).as_written(), tmp_path / "out")
    assert len(data.train.images) == meta["counts"]["train"]
    other = refused(open_prepared, "image_folder", settings(**FIT).as_written(), tmp_path / "out")
    assert "was made with skip_bad = True, but params.yaml has False" in other
    out = capsys.readouterr().out
    assert f"image_folder: 3 unreadable images are left out; {tmp_path / 'out' / 'left_out.txt'} names them" in out
    # Data without bad pictures has no such list.
    for path in (tmp_path / "raw").rglob("*.png"):
        Image.new("RGB", (6, 5)).save(path)
    assert "left_out" not in prepare("image_folder", settings(**FIT, skip_bad=True), tmp_path / "out")
    assert not (tmp_path / "out" / "left_out.txt").exists()


def test_skip_bad_without_remaining_pictures(raw, tmp_path):
    spoil(raw, *(f"cat/{i:02}.png" for i in range(6)))
    message = refused(prepare, "image_folder", settings(**FIT, skip_bad=True))
    assert message.startswith("image_folder: no image of class 'cat' can be read; repair some of those that ")
    spoil(raw, *(f"dog/{i:02}.png" for i in range(10)))
    assert refused(prepare, "image_folder", settings(**FIT, skip_bad=True)).startswith("16 of 16 images cannot be read: ")
    for part in ("train", "test"):
        colours(raw / "parts" / part / "cat", 1)
    (raw / "parts" / "test" / "cat" / "00.png").write_bytes(b"")
    message = refused(prepare, "image_folder", settings(**FIT, skip_bad=True, folder="parts"))
    assert message.startswith("image_folder: no image of the test split can be read")


def test_other_size_is_an_error_at_once(raw, tmp_path, decoded):
    first = paths(load("image_folder").train.images)[0]
    Image.new("RGB", (9, 9)).save(first)
    message = refused(prepare, "image_folder", settings(), workers=1)
    assert ": is 5x6, the first image 9x9; give all one size with prepare_data.image_size" in message
    assert len(decoded) < 16
    # The first picture was the one to be repaired, so the size is no longer its.
    Image.new("RGB", (6, 5)).save(first)
    assert prepare("image_folder", settings())["shape"] == [5, 6, 3]
    last = paths(load("image_folder").train.images)[-1]
    good = last.read_bytes()
    Image.new("RGB", (9, 9)).save(last)
    assert refused(prepare, "image_folder", settings(), workers=1).startswith(f"{last}: is 9x9, the first image 5x6")
    last.write_bytes(good)
    decoded.clear()
    prepare("image_folder", settings())
    assert len(decoded) < 16


# --- pictures of more than 8 bits, transparency, and warnings

GRADIENT = np.arange(16).reshape(4, 4) / 15  # of 0 to 1


def deep(raw, values, ending: str = ".tif") -> None:
    """Replaces picture i of the 16 by the values of GRADIENT times (i + 1) / 16."""
    for i, path in enumerate(sorted((raw / "pictures").rglob("*.*"))):
        path.unlink()
        Image.fromarray(values(GRADIENT * (i + 1) / 16)).save(path.with_suffix(ending))


DEEP = {
    "12 bits in 16": (lambda x: np.rint(4095 * x).astype(np.uint16), ".png", [0, 4095]),
    "16 bits": (lambda x: np.rint(65535 * x).astype(np.uint16), ".png", [0, 65535]),
    "PGM": (lambda x: np.rint(65535 * x).astype(np.uint16), ".pgm", [0, 65535]),
    "20 bits in 32": (lambda x: np.rint((2**20 - 1) * x).astype(np.int32), ".tif", [0, 2**20 - 1]),
    "signed": (lambda x: np.rint(1000 * x - 500).astype(np.int32), ".tif", [-500, 500]),
    "float": (lambda x: x.astype(np.float32), ".tif", [0, 1]),
    "float of another range": (lambda x: (x * 300).astype(np.float32), ".tiff", [0, 300]),
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_scaled_by_one_range(raw, tmp_path, capsys, kind):
    values, ending, expected = DEEP[kind]
    deep(raw, values, ending)
    fit = {"image_size": 4, "resize_mode": "resize"}
    meta = prepare("image_folder", settings(**fit), tmp_path / "auto", workers=3)
    assert list(meta["value_range"].values()) == [pytest.approx(expected)]
    said = capsys.readouterr()
    assert "images of more than 8 bits are scaled: " in said.out
    assert "warning" not in said.err
    images = np.concatenate(arrays(tmp_path / "auto")[::2])
    # Pictures of other brightness stay so.
    found = sorted(images.max((1, 2, 3)))
    np.testing.assert_allclose(found, np.rint(255 * np.arange(1, 17) / 16), atol=1)
    np.testing.assert_allclose(images[images.max((1, 2, 3)).argmax(), ..., 0], 255 * GRADIENT, atol=1)
    # The same range, given.
    prepare("image_folder", settings(**fit, value_range=expected), tmp_path / "given")
    assert contents(tmp_path / "given") == contents(tmp_path / "auto")
    low, high = expected
    prepare("image_folder", settings(**fit, value_range=[low, (low + high) / 2]), tmp_path / "half")
    half = np.concatenate(arrays(tmp_path / "half")[::2])
    np.testing.assert_allclose(half, np.clip(2.0 * images, 0, 255), atol=1)


def test_resume_keeps_the_range_and_discards_rows_of_another(raw, tmp_path, decoded):
    deep(raw, DEEP["12 bits in 16"][0])
    expected = uninterrupted(tmp_path)
    killed(PartialArrays, "write", 13, False)
    prepare("image_folder", settings(**FIT))
    assert contents(tmp_path / "data" / "prepared") == expected
    killed(PartialArrays, "write", 13, False)
    last = paths(load("image_folder").test.images)[-1]
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(last)
    assert prepare("image_folder", settings(**FIT))["value_range"] == {"int": [0, 65535]}
    assert contents(tmp_path / "data" / "prepared") == uninterrupted(tmp_path)


def test_values_that_are_not_finite_are_unreadable(raw, tmp_path):
    deep(raw, lambda x: np.where(x == 1, np.nan, x).astype(np.float32))
    message = refused(prepare, "image_folder", settings(**FIT))
    assert "09.tif: cannot be read as an image (it holds values that are not finite)" in message


def test_warnings_name_what_was_lost(raw, tmp_path, capsys):
    def warnings(**changes) -> str:
        capsys.readouterr()
        prepare("image_folder", settings(**{**FIT, **changes}), tmp_path / "out")
        return "".join(line for line in capsys.readouterr().err.splitlines(True) if line.startswith("warning"))

    assert "12 of 12 images are of a single color" in warnings()
    # Black shapes on transparency.
    for i, path in enumerate(sorted((raw / "pictures").rglob("*.*"))):
        alpha = Image.fromarray((255 * (np.arange(16).reshape(4, 4) % 16 <= i)).astype(np.uint8))
        Image.merge("LA", [Image.new("L", (4, 4)), alpha]).save(path)
    assert "image_folder train: all 12 images are equal; " in warnings()
    assert "equal" not in warnings(background="#ffffff")
    assert np.unique(arrays(tmp_path / "out")[0]).tolist() == [0, 255]
    assert "single color" in warnings(background="white", channels="gray")  # one picture has no hole
    deep(raw, DEEP["12 bits in 16"][0])
    assert "use only the values 0 to 16 of 0 to 255; if they have more than 8 bits" in warnings(value_range=[0, 65535])


def test_pictures_of_several_frames_are_counted(raw, tmp_path, capsys):
    red, blue = (Image.new("RGB", (6, 5), color) for color in ("red", "blue"))
    for i, kind in enumerate(("GIF", "TIFF", "PNG", "WEBP", "MPO")):
        red.save(raw / "pictures" / "dog" / f"{i:02}.png", kind, save_all=True, append_images=[blue])
    meta = prepare("image_folder", settings(), tmp_path / "out")
    assert sum(meta["counts"].values()) == 16
    # The others of an MPO, which cameras write, are previews.
    assert "image_folder: 4 images have several frames; the first of each is taken\n" in capsys.readouterr().out
    images = np.concatenate(arrays(tmp_path / "out")[::2])
    assert (images == [255, 0, 0]).all((1, 2, 3)).sum() == 3  # but for JPEG and WebP, which change colors a little
    assert (images[..., 0] > 250).all((1, 2)).sum() == 5


def test_borders_have_the_color_of_the_background(raw, tmp_path):
    for dataset, pixel in (("image_folder", [0, 128, 0]), ("digits", [75])):
        meta = prepare(dataset, settings(image_size=12, background="green"), tmp_path / dataset)
        assert meta["made_with"]["background"] == "green"
        assert (arrays(tmp_path / dataset)[0][:, 0, :] == pixel).all()


def test_channels_apply_to_data_sets_in_memory(raw, tmp_path, monkeypatch):
    gray = prepare("digits", settings(), tmp_path / "gray")
    assert gray["shape"] == [8, 8, 1]
    assert prepare("digits", settings(image_size=12, channels="rgb"), tmp_path / "rgb")["shape"] == [12, 12, 3]
    assert np.array_equal(arrays(tmp_path / "rgb")[0][:, 2:10, 2:10], arrays(tmp_path / "gray")[0].repeat(3, -1))
    red = Raw(np.full((4, 2, 2, 3), (255, 0, 0), np.uint8), np.arange(4) % 2)
    monkeypatch.setitem(DATASETS, "red", Dataset(lambda settings: Source(red, red, ["a", "b"])))
    assert prepare("red", settings(channels="gray"), tmp_path / "red")["shape"] == [2, 2, 1]
    assert (arrays(tmp_path / "red")[0] == 76).all()  # 0.299 * 255


def test_settings_of_decoding_are_checked(workspace):
    for key, value in {"background": "blak", "value_range": [5, 5]}.items():
        edit_params(**{f"prepare_data.{key}": value})
        assert error_of(params.load, prepare_data=PrepareData).key == f"prepare_data.{key}"
        edit_params(**{f"prepare_data.{key}": {"background": "rgb(10, 20, 30)", "value_range": [-1, 1.5]}[key]})
    given = params.load(prepare_data=PrepareData).prepare_data
    assert (given.decoding().background, given.decoding().scale(0, 9)) == ((10, 20, 30), (-1, 1.5))


# --- threads, room, and what is written where


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_do_not_change_arrays(raw, tmp_path, workers):
    prepare("image_folder", settings(**FIT), tmp_path / "out", workers)
    assert contents(tmp_path / "out") == uninterrupted(tmp_path)


def test_in_threads_bounds_work_ahead():
    lock, started = threading.Lock(), []
    first = threading.Event()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        if item == 0:
            first.wait(5)
        return -item

    found = in_threads(work, iter(range(100)), 2)
    threading.Timer(0.2, first.set).start()
    assert next(found) == 0
    # The second thread continued during the first item, up to the limit.
    assert 2 < max(started) < 2 * AHEAD
    assert list(found) == [-i for i in range(1, 100)]


def test_in_threads_stops_at_error():
    def work(item: int) -> int:
        if item == 3:
            raise InputError("no")
        return item

    with pytest.raises(InputError):
        list(in_threads(work, iter(range(10**9)), 2))


def test_resume_after_full_disk(raw, tmp_path, monkeypatch, decoded):
    expected = uninterrupted(tmp_path)
    calls = [0]

    def full(number):
        calls[0] += 1
        if calls[0] == 15:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(prepare, "image_folder", settings(**FIT))
    assert message.endswith("_images.npy: no space left on the device: free some and run again")
    decoded.clear()
    prepare("image_folder", settings(**FIT))
    assert 0 < len(decoded) < 16
    assert contents(tmp_path / "data" / "prepared") == expected


def test_folder_not_writable_before_work(raw, tmp_path, decoded, monkeypatch):
    (tmp_path / "data").write_text("in the way")
    assert "a part of the path is a file" in refused(prepare, "image_folder", settings(**FIT))
    monkeypatch.setenv("DDPM_SCRATCH", str(tmp_path / "data"))
    assert "set DDPM_SCRATCH to another folder" in refused(prepare, "image_folder", settings(**FIT), tmp_path / "out")
    assert not decoded


def test_arrays_are_linked_not_copied(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.shutil, "copyfile", None)
    prepare("image_folder", settings(**FIT))
    assert (tmp_path / "data" / "prepared" / "train_images.npy").stat().st_nlink == 1


def test_recorded_settings_of_each_dataset():
    table = {"labels", "file_column"}
    ignored = {
        "digits": {"label", "skip_bad", "background", "value_range"} | table,
        "image_folder": set(),
        "arrays": {"skip_bad", "background"} | table,
        "celeba": table,
        "huggingface": table,
    }
    for dataset, names in ignored.items():
        assert set(PrepareData.model_fields) - set(preparing.recorded_settings(dataset, settings())) == names
