"""The measurements of preparing and of reading from disk: that they run, and reckon right. No number is tested."""

import json
import mmap
import os

import numpy as np
import pytest
import torch
from benchmarks import streaming

from ddpm.data.loader import Reading, Streamed
from tests.tools import prepare_memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux only"),
]


@pytest.mark.parametrize("kind", prepare_memory.KINDS)
def test_memory_is_measured_in_a_process_of_its_own(tmp_path, kind):
    prepare_memory.main(["--sizes", "50", "100", "--kinds", kind, "--work", str(tmp_path), "--out", str(tmp_path / "out.md")])
    assert os.listdir(tmp_path) == ["out.md"]
    lines = [line for line in (tmp_path / "out.md").read_text().splitlines() if line.startswith(f"| {kind} |")]
    assert [line.split("|")[2].strip() for line in lines] == ["50", "100"]
    for line in lines:
        imported, peak = (int(cell) for cell in line.split("|")[3:5])
        assert 20 < imported <= peak


def test_memory_per_picture_is_what_the_larger_size_needs_more():
    rows = [
        {"kind": ".zip", "images": images, "imported": 10**8, "peak": peak, "seconds": 2.0}
        for images, peak in ((1_000, 200_000_000), (11_000, 200_500_000))
    ]
    text = prepare_memory.page(rows, 2)
    assert "| .zip | 11,000 | 100 | 200 | 2 | 5,500 |" in text
    assert "- .zip: 50.0 bytes for each further picture" in text


def test_anonymous_memory_grows_with_what_is_held():
    before = prepare_memory.anonymous()
    # From the system itself: an allocator may have room left from what other tests gave back.
    with mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"1" * len(held))
        assert prepare_memory.anonymous() - before > 40_000_000


def test_made_pictures_are_in_classes_of_ten_or_more():
    for count in (50, 20_000):
        names = [name for name, _ in prepare_memory.members(count)]
        classes = [name.split("/")[0] for name in names]
        assert len(set(names)) == count
        assert len(set(classes)) == min(count // 10, 1000)
        assert classes.count(classes[0]) == max(10, count // 1000)


def test_the_quick_benchmark_writes_its_report(tmp_path):
    threads = torch.get_num_threads()
    try:
        streaming.main(["--quick", "--device", "cpu", "--rounds", "2", "--work", str(tmp_path), "--out", str(tmp_path / "out")])
    finally:
        torch.set_num_threads(threads)
    assert os.listdir(tmp_path) == ["out"]
    (path,) = (tmp_path / "out").glob("streaming-*.json")
    (case,) = json.loads(path.read_text())["cases"]
    assert len(case["seconds"]["disk"]) == len(case["seconds"]["memory"]) == 2
    assert 0 <= case["waiting"]["median"] < 1
    assert set(case["read"]) == set(streaming.READERS)
    assert "| quick | 8 | 0.00 |" in path.with_suffix(".md").read_text()


def test_waiting_is_measured_and_then_no_more(tmp_path):
    real = Reading.wait
    case = streaming.CASES["quick"][0]
    streaming.write_images(tmp_path / "images.npy", 20, case.shape)
    images = streaming.mapped(tmp_path / "images.npy")
    assert (images.shape, images.dtype) == ((20, *case.shape), np.uint8)
    with streaming.waited() as seconds:
        Streamed(images, torch.device("cpu"))(torch.arange(3), lambda k: torch.arange(3) + k)
    assert len(seconds) == 1
    assert seconds[0] > 0
    assert Reading.wait is real
