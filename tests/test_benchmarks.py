"""The benchmarks run, compare networks of equal size, and compute their numbers correctly. No speed is tested."""

import json
import time

import numpy as np
import pytest
import torch
from benchmarks import (
    augmentation,
    commands,
    contestants,
    diffusers_example,
    fine_tuning,
    metrics,
    page,
    peers,
    quality,
    steps,
)

# The other libraries may warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def threads():
    """Restores the number of threads, which a benchmark sets."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture
def small(monkeypatch):
    """Leaves out the library that no other test needs."""
    known = {name: build for name, build in contestants.INSTALLED.items() if name == "diffusers"}
    monkeypatch.setattr(contestants, "INSTALLED", known)
    monkeypatch.setattr(peers, "INSTALLED", known)


def test_quick_benchmark_writes_its_report(small, tmp_path, capsys):
    peers.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    assert capsys.readouterr().err.count("denoising-diffusion-pytorch is not installed and left out") == 1
    (path,) = tmp_path.glob("*.json")
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md", ".png"}
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "ceiling", "left_out", "cases"}
    assert set(report["machine"]) == {"cpu", "cpus", "threads", "python", "versions"}
    assert report["ceiling"]["flops"] == max(report["ceiling"]["all"].values()) > 0
    assert [case["kind"] for case in report["cases"]] == ["training", "sampling"]
    for case in report["cases"]:
        first, second = case["contestants"]
        assert (first["name"], second["name"]) == ("ours", "diffusers")
        assert first["parameters"] == second["parameters"]
        # Both count the same convolutions; only the rounding of ours to fewer products may differ.
        assert first["gflops_per_image"] == pytest.approx(second["gflops_per_image"], rel=0.15)
        for row in (first, second):
            assert row["images_per_second"] == pytest.approx(case["batch"] / row["seconds"]["median"])
            share = row["gflops_per_image"] * 1e9 * row["images_per_second"] / report["ceiling"]["flops"]
            assert row["share_of_ceiling"] == pytest.approx(share)
        assert first["slower_than"] == {}
        low, median, high = (second["slower_than"]["ours"][key] for key in ("low", "median", "high"))
        assert 0 < low <= median <= high
    text = path.with_suffix(".md").read_text()
    assert f"![time of the others over ours]({path.stem}.png)" in text
    assert "Training, 8x8, 16 channels, batch 4" in text
    assert "Sampling, 8x8, 16 channels, batch 2, 2 DDIM steps" in text


def test_ratios_are_per_round():
    assert peers.ratios([2.0, 3.0, 8.0], [1.0, 2.0, 4.0]) == [2.0, 1.5, 2.0]
    assert peers.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_library_of_another_size_is_refused(monkeypatch):
    case = peers.CASES["quick"][0]
    entries = [contestants.Contestant("ours", 1000, int, int), contestants.Contestant("other", 1031, int, int)]
    monkeypatch.setattr(contestants, "ours", lambda *_: entries[0])
    monkeypatch.setattr(contestants, "INSTALLED", {"other": lambda *_: entries[1]})
    with pytest.raises(ValueError, match="other has 1,031 parameters, ours 1,000"):
        list(contestants.contestants(case, None, compile_ours=False))
    entries[1] = entries[1]._replace(parameters=1029)
    assert [contestant.name for contestant in contestants.contestants(case, None, compile_ours=False)] == ["ours", "other"]


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ({"gpu": "NVIDIA H200", "cpu": "x", "threads": 16}, "nvidia-h200"),
        ({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "threads": 2}, "intel-xeon-cpu-2-20ghz-2-threads"),
    ],
)
def test_slug_is_the_device(machine, name):
    assert peers.slug(machine) == name


def test_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        peers.main(["--device", "cpu", "--cases", "train-9"])
    assert "train-9: choose from train-8, train-8-wide, " in capsys.readouterr().err


def test_page_names_failures():
    failed = {"kind": "training", "rounds": 1, "failed": {"diffusers": "out of memory"}, "contestants": []}
    case = {**peers.CASES["quick"][0]._asdict(), **failed}
    machine = {"cpu": "C", "cpus": 1, "threads": 1, "python": "3", "versions": {"torch": "2"}}
    top = {"flops": 1e12, "of": "a product", "dtype": "float32"}
    text = page.page({"machine": machine, "ceiling": top, "left_out": ["other"], "cases": [case]}, "p.png")
    assert "diffusers: out of memory." in text
    assert "other was not installed and is left out." in text


def test_metrics_equal_torchmetrics(tmp_path):
    """With 300 images, torchmetrics' subsets for KID are the whole sets."""
    metrics.main(["--images", "300", "--rounds", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    values = json.loads(path.read_text())["values"]
    for name, value in values["ours"].items():
        assert value == pytest.approx(values["torchmetrics"][name], rel=1e-3, abs=1e-6), name
    assert values["ours"]["fid"] > 0
    assert path.with_suffix(".md").exists()


def test_commands_benchmark_writes_its_report(tmp_path):
    commands.main(["--quick", "--rounds", "1", "--cases", "train-8", "sample-8", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    records = json.loads(path.read_text())["records"]
    assert [(record["kind"], record["load"]) for record in records] == [
        ("train", "idle"), ("train", "busy"), ("sample", "idle"), ("sample", "busy"),
    ]  # fmt: skip
    for record in records:
        seconds = {side: values["median"] for side, values in record["seconds"].items()}
        assert record["ratio"]["median"] == pytest.approx(seconds["diffusers"] / seconds["ours"])
    text = path.with_suffix(".md").read_text()
    assert f"![time of diffusers' example over ours]({path.stem}.png)" in text
    assert "| training, 8x8, 2 steps of 4 images | beside one busy process |" in text
    assert path.with_suffix(".png").exists()


def test_quality_benchmark_writes_its_report(tmp_path):
    quality.main(["--quick", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    report = json.loads(path.read_text())
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md", ".png"}
    assert (report["recipe"], report["samples"], report["n"]) == ("quick", 20, 20)
    ours, theirs = (report["sides"][side]["points"] for side in ("ours", "diffusers"))
    assert [point["step"] for point in ours] == [3, 6]
    assert ours[0]["seconds"] == pytest.approx(ours[1]["seconds"] / 2)
    for first, second in zip(ours, theirs, strict=True):
        assert second["seconds"] >= first["seconds"] - 0.001
        assert min(first["fid"], second["fid"]) > report["floor"] > 0
    text = path.with_suffix(".md").read_text()
    assert f"({path.stem}.png)" in text
    assert f"| {ours[1]['seconds'] / 60:.2f} | 6 | " in text
    assert "| this project | 10,581 | 8 | 6 | 48 |" in text


def test_augmentation_benchmark_writes_its_report(tmp_path):
    augmentation.main(["--quick", "--lengths", "1", "2", "--out", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {"augmentation.md", "augmentation.png"}
    text = (tmp_path / "augmentation.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[:2] for row in rows[:4]] == [["4", "0"], ["8", "0"], ["4", "0.12"], ["8", "0.12"]]
    assert len({tuple(row[2:]) for row in rows[:4]}) == 4  # such short trainings may have equal FIDs to two digits
    assert rows[4][0] == "real test images"
    assert "trained on 60 of the 1,297 training digits" in text


def test_fine_tuning_benchmark_writes_its_report(tmp_path):
    fine_tuning.main(["--quick", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "fine_tuning-quick.json").read_text())
    assert {file.name for file in tmp_path.iterdir()} == {f"fine_tuning-quick.{suffix}" for suffix in ("json", "md", "png")}
    random, tuned = (report["sides"][side]["points"] for side in ("random", "mnist"))
    assert [point["step"] for point in random] == [point["step"] for point in tuned] == [3, 6]
    assert random[0]["fid"] != tuned[0]["fid"]
    text = (tmp_path / "fine_tuning-quick.md").read_text()
    assert "(fine_tuning-quick.png)" in text
    assert f"| 6 | {random[1]['seconds'] / 60:.2f} | " in text
    assert "was trained for 4 steps in " in text


def test_example_trains_for_a_time_with_a_schedule_of_that_length(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers_example, "WARMUP", 5)
    np.save(tmp_path / "images.npy", np.zeros((8, 8, 8, 1), np.uint8))
    case = contestants.Case("", (8, 8, 1), 4, 4, [1, 2], [], heads=2)
    config = {"images": str(tmp_path / "images.npy"), "unet": contestants.unet2d_arguments(case), "batch_size": 4}
    diffusers_example.train(
        {**config, "learning_rate": 1e-4, "start": time.time(), "save_at": [0.5, 1.0, 2.0]}, tmp_path / "pipeline"
    )
    saved = json.loads((tmp_path / "pipeline" / "saved.json").read_text())
    seconds, rates = ([entry[key] for entry in saved] for key in ("seconds", "learning_rate"))
    assert all(passed >= goal for passed, goal in zip(seconds, [0.5, 1.0, 2.0], strict=True))
    assert rates[0] > 5e-5
    assert rates[2] < 1e-5
    assert all((tmp_path / "pipeline" / goal / "unet").exists() for goal in ("0.5", "1.0", "2.0"))


class TestSteps:
    def record(self, milliseconds, **rows):
        return {"seconds": [milliseconds / 1000] * 3, "rows": {f"aten::{name}": row for name, row in rows.items()}}

    def test_page_has_ratios_per_turn_and_operations_of_the_median_turn(self):
        before = [self.record(20, mm=[1.0, 2]), self.record(30, mm=[3.0, 2]), self.record(90, mm=[9.0, 2])]
        after = [self.record(10, mm=[5.0, 1]), self.record(20, add=[2.0, 1], mm=[0.5, 1]), self.record(30, mm=[9.0, 1])]
        text = steps.page({"before": before, "after": after}, {"before": "a", "after": "b"}, {"model.channels": "32"})
        assert "20 ms instead of 30 (medians); round by round it is **2.00 times as fast** (1.75 to 2.50)" in text
        assert "| mm | 3.00 (2) | 0.50 (1) |" in text
        assert "| add | 0.00 (0) | 2.00 (1) |" in text
        assert "model.channels=32" in text

    def test_unknown_revision_and_setting_are_named(self, tmp_path):
        with pytest.raises(SystemExit, match="error: git archive no-such-commit: "):
            steps.checkout("no-such-commit", tmp_path / "a", {})
        with pytest.raises(SystemExit, match=r"error: --set model\.chanels: HEAD has no such setting"):
            steps.checkout("HEAD", tmp_path / "b", {"model.chanels": "32"})
