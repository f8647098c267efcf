"""Batches: order, resume, flips, images on the device and on disk; conversions of images."""

import os
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_files import refused

from ddpm.data import loader
from ddpm.data.images import to_model_range, to_tensor, to_uint8
from ddpm.data.loader import Batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few():
    """Eleven images whose first pixel is their index, and labels."""
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 2), np.uint8)
    images[:, 0, 0, 0] = np.arange(11)
    return SimpleNamespace(images=images, labels=np.arange(11) % 3)


def test_indices_permute_each_epoch(few):
    batches = Batches(few.images, few.labels, 0, CPU)
    epochs = [batches.indices(11 * epoch, 11).tolist() for epoch in range(20)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    others = [Batches(few.images, few.labels, seed, CPU).indices(0, 11).tolist() for seed in range(1, 10)]
    assert len(set(map(tuple, [*epochs, *others]))) == 29


@given(size=st.integers(1, 30), seen=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_indices_depend_on_seed_and_images_seen(few, size, seen, seed):
    whole = Batches(few.images, few.labels, seed, CPU).indices(0, 300).tolist()
    restarted = Batches(few.images, few.labels, seed, CPU)
    assert restarted.indices(seen, size).tolist() == whole[seen : seen + size]
    assert restarted.indices(0, 40).tolist() == whole[:40]


def test_batch_holds_images_of_indices(few):
    batches = Batches(few.images, few.labels, 0, CPU)
    images, labels = batches.batch(seen=5, count=9)
    index = batches.indices(5, 9)
    assert (images.shape, images.dtype, labels.dtype) == ((9, 2, 4, 4), torch.float32, torch.int64)
    np.testing.assert_array_equal(to_uint8(images).permute(0, 2, 3, 1).numpy(), few.images[index])
    np.testing.assert_array_equal(labels.numpy(), few.labels[index])


def test_batch_flips_half(few):
    plain, _ = Batches(few.images, few.labels, 0, CPU).batch(0, 2000)
    torch.manual_seed(0)
    flipped, _ = Batches(few.images, few.labels, 0, CPU, flip=True).batch(0, 2000)
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55
    torch.manual_seed(0)
    assert torch.equal(Batches(few.images, few.labels, 0, CPU, flip=True).batch(0, 2000)[0], flipped)


@hypothesis.settings(max_examples=30)
@given(size=st.integers(1, 30), seen=st.integers(0, 40), seed=st.integers(0, 2**32), flip=st.booleans())
def test_streamed_batches_equal_resident(few, size, seen, seed, flip):
    resident = Batches(few.images, few.labels, seed, CPU, flip, preload=True)
    streamed = Batches(few.images, few.labels, seed, CPU, flip, preload=False)
    # Consecutive batches, which are read in advance, and then another position.
    for start in (seen, seen + size, seen + 2 * size, 3):
        torch.manual_seed(start)
        expected = resident.batch(start, size)
        torch.manual_seed(start)
        assert all(torch.equal(a, b) for a, b in zip(streamed.batch(start, size), expected, strict=True))


@pytest.fixture(params=[0, 1024], ids=["from the file", "through the map"])
def mapped(few, tmp_path, monkeypatch, request):
    """The same images, memory-mapped."""
    monkeypatch.setattr(loader, "SMALL", request.param)
    np.save(tmp_path / "images.npy", few.images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("part", [slice(None), slice(2, 5)])
def test_streamed_batches_of_memory_map(few, mapped, part):
    # A part of a memory map reports the offset in the file of the whole.
    for images, labels in ((mapped, few.labels), (mapped[3:], few.labels[3:])):
        resident = Batches(np.array(images), labels, 0, CPU, preload=True)
        streamed = Batches(images, labels, 0, CPU, preload=False)
        for seen in (0, 7, 14, 21, 4, 11, 40):
            found, expected = streamed.batch(seen, 7, part), resident.batch(seen, 7, part)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_streamed_reads_ahead(few, mapped):
    streamed = Batches(mapped, few.labels, 0, CPU, preload=False)
    streamed.batch(0, 4)
    read, streamed.images.copy = list(streamed.images.ahead), None  # whatever is read from here on would fail
    for reading in read:
        reading.wait()
    expected = Batches(few.images, few.labels, 0, CPU, preload=True)
    for i in range(len(read)):
        assert torch.equal(streamed.images.ahead[0].wait(), to_uint8(expected.batch(4 + 4 * i, 4)[0]).permute(0, 2, 3, 1))
        streamed.images.ahead.popleft()
    assert len(read) == 2


@pytest.mark.parametrize("mapped", [0], indirect=True)  # through a map, the system kills the process
def test_streamed_file_cut_off(few, mapped):
    streamed = Batches(mapped, few.labels, 0, CPU, preload=False)
    os.truncate(mapped.filename, 200)
    assert refused(streamed.batch, 0, 11) == f"{mapped.filename}: is cut off; run `dvc repro -f prepare_data`"


@pytest.mark.parametrize("preload", [True, False])
def test_batch_part_equals_part_of_whole(few, preload):
    for part in (slice(0, 3), slice(3, 4), slice(4, 9)):
        torch.manual_seed(0)
        whole = Batches(few.images, few.labels, 0, CPU, True, preload).batch(5, 9)
        torch.manual_seed(0)
        found = Batches(few.images, few.labels, 0, CPU, True, preload).batch(5, 9, part)
        assert all(torch.equal(a, b[part]) for a, b in zip(found, whole, strict=True))
        assert whole[0].is_contiguous(memory_format=torch.channels_last)


def test_preload_below_a_quarter_of_memory(few, monkeypatch):
    size = few.images.nbytes
    for available, expected in ((4 * size + 1, True), (4 * size, False)):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))  # noqa: B023
        assert Batches(few.images, few.labels, 0, CPU).preloaded is expected


def test_to_model_range_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    scaled = to_model_range(every)
    assert (scaled[0], scaled[255], scaled.dtype) == (-1, 1, torch.float32)
    assert torch.equal(to_uint8(scaled), every)


def test_to_uint8_clamps_and_rounds():
    step = 2 / 255
    values = torch.tensor([-5.0, -1 - step, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 1.01, 1e9])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]


def test_to_tensor_moves_the_channels_and_copies(few):
    tensor = to_tensor(few.images)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((11, 2, 4, 4), torch.uint8, True)
    assert tensor[3, 1, 2, 0] == few.images[3, 2, 0, 1]
    tensor.zero_()
    assert few.images.any()
