"""The benchmark of reading images from disk runs and measures waiting; no number is tested."""

import json
import os

import numpy as np
import pytest
import torch
from benchmarks import streaming

from ddpm.data.loader import Reading, Streamed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux only")]


def test_quick_benchmark_writes_report(tmp_path):
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


def test_waiting_is_measured_inside_the_context_only(tmp_path):
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
