"""reports/index.md: numbers have the digits that they support, and statements hold within their standard deviation."""

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import diffusion, edit, input_error
from PIL import Image

from ddpm.core.files import read_npz, write_json, write_npz, write_text
from ddpm.evaluation.evaluator import describe_metrics
from ddpm.report import gallery
from ddpm.report.page import render_page, write_report
from ddpm.report.settings import Report
from ddpm.report.stage_times import StageTime, stage_times
from ddpm.report.summary import copying_signs, differ, summarize

SPACE = {
    "fid": 0.0871, "fid_sd": 0.0042, "fid_floor": 0.0847, "fid_excess": 0.0024, "fid_test": 0.154, "fid_infinity": 0.0213,
    "kid": 0.00113, "kid_sd": 0.00041, "kid_floor": 0.00094, "is": 7.2213, "is_sd": 0.0412, "is_real": 7.1743,
    "precision": 0.8312, "recall": 0.7854, "density": 0.9412, "coverage": 0.9021,
}  # fmt: skip
OF_SAMPLER = {
    "sampler": "DDPM",
    "classifier": SPACE,
    "inception": {"status": "weights missing"},
    "accuracy": 0.99,
    "classes": {"tv": 0.0312, "tv_floor": 0.0421},
    "memorization": {
        "nn_auc": 0.487, "near_copies": 0.002, "near_copies_test": 0.004, "authenticity": 0.62, "authenticity_test": 0.6,
    },
    "diversity": {"classifier": 0.981, "status": "weights missing"},
}  # fmt: skip
SCORES = {
    "n": 500,
    "sets": 3,
    "classifier": {"accuracy": 0.992, "sha256": "3f5d383a" + "0" * 56, "threads": 2},
    "ddpm": OF_SAMPLER,
    "ddim": {**copy.deepcopy(OF_SAMPLER), "sampler": "DDIM", "accuracy": 0.984},
    "real": {
        "classifier": {"precision": 0.8701, "recall": 0.8603, "density": 1.0122, "coverage": 0.9312},
        "inception": {"status": "weights missing"},
    },
    "reconstruction": {
        "n": 500, "level": 250, "psnr": 17.37, "psnr_wiener": 14.79, "psnr_zero": 9.74,
        "lpips": {"classifier": 0.0209, "status": "weights missing"},
    },
    "likelihood": {
        "n": 500, "evaluations": 101, "prior": 2.1e-5,
        "large": {"bits_per_dim": 4.33, "bits_per_dim_se": 0.05, "steps": 2.77, "decoder": 1.57},
    },
    "round_trip": {"n": 100, "steps_10": {"psnr": 22.58, "mse": 0.0064, "latent_sd": 0.559}},
}  # fmt: skip
COST = {
    "ddpm": {"nfe": 1000, "seconds": 107.9, "images_per_second": 13.9},
    "ddim": {"nfe": 50, "seconds": 5.02, "images_per_second": 299.0},
}
ONE_SET = {f"{name}.classifier.{key}": ... for name in ("ddpm", "ddim") for key in ("fid_sd", "kid_sd", "is_sd")} | {"sets": 1}
INPAINT = {
    "n": 200, "told": False, "accuracy_real": 0.99,
    "replacement": {"nfe": 50, "accuracy": 0.515, "psnr": 9.02}, "RePaint": {"nfe": 410, "accuracy": 0.645, "psnr": 10.24},
}  # fmt: skip
META = {
    "dataset": "digits", "class_names": [str(i) for i in range(10)], "shape": [8, 8, 1], "counts": {"train": 1297, "test": 500},
}  # fmt: skip
TIMES = {"train": StageTime(seconds=60, processes=2), "edit": StageTime(seconds=20.4, processes=1)}
NO_CLASSES = {"ddpm.accuracy": ..., "ddim.accuracy": ...}


def scores(**changes):
    """SCORES with changes by full path; `...` removes a key."""
    return edit(copy.deepcopy(SCORES), **changes)


def write_inputs(scored, conditional=True):
    """Writes all that `report` reads into the current folder."""
    rng = np.random.default_rng(0)

    def images(*shape):
        return rng.integers(0, 256, (*shape, 8, 8, 1), np.uint8)

    labels = np.arange(60) % 10
    predicted = np.where(rng.random(60) < 0.9, labels, 3)
    arrays = {f"reconstruction_{name}": images(4) for name in ("clean", "noisy", "network", "wiener", "zero")}
    arrays |= {"bits_level": np.arange(1, 5), "bits_large": np.full(4, 0.1), "real_seen": predicted, "real_labels": labels}
    arrays |= {"round_trip_clean": images(4), "round_trip_steps_10": images(4)} if "n" in scored["round_trip"] else {}
    for name in ("ddpm", "ddim"):
        arrays |= {
            f"{name}_seen": predicted,
            f"{name}_neighbours": images(2, 10),
            f"{name}_neighbours_ratio": np.linspace(0.3, 0.6, 10),
        }
        arrays |= {f"{name}_asked": labels} if conditional else {}
        samples = {"arr_0": images(60), "trajectory_x": images(5, 3), "trajectory_x0": images(5, 3)}
        samples |= {"trajectory_level": np.array([50, 40, 20, 10, 0])} | ({"arr_1": labels} if conditional else {})
        write_npz(f"samples/{name}.npz", samples)
    if "accuracy" not in scored["classifier"]:  # it predicts no classes
        arrays = {name: array for name, array in arrays.items() if not name.endswith(("_seen", "_asked"))}
    write_npz("samples/judged/arrays.npz", arrays)
    write_npz("samples/edits.npz", edits(images, snapshots=conditional))
    write_json("reports/edit/metrics.json", {"inpaint": INPAINT})
    write_text("reports/guidance/guidance.csv", guidance(["classes"] if conditional else []).to_csv(index=False))
    write_json("samples/judged/scores.json", scored)
    write_json("samples/judged/metrics.json", describe_metrics())
    write_json("reports/evaluate/metrics.json", {**scored, **{name: {**scored[name], "cost": COST[name]} for name in COST}})
    write_json("reports/train/metrics.json", {"final_sha256": "aa"})
    for name, time in TIMES.items():
        write_json(f"reports/seconds/{name}.json", time.model_dump())
    write_json("data/prepared/meta.json", META)
    curve = [{"fraction": f, "method": m, "psnr": 20 - 10 * f} for f in (0.1, 0.5) for m in ("network", "wiener", "zero")]
    write_text("reports/evaluate/plots/psnr.csv", pd.DataFrame(curve).to_csv(index=False))
    curve = [("DDIM", 100, 0.5, np.nan), ("real test images", 100, 0.1, np.nan)] if conditional else []
    curve = pd.DataFrame(curve, columns=["method", "step", "fid", "fid_sd"])
    write_text("reports/evaluate/plots/training_curve.csv", curve.to_csv(index=False))
    for name in ("loss", "validation_loss", *(f"loss_t/{quarter}" for quarter in ("0_25", "25_50", "50_75", "75_100"))):
        frame = pd.DataFrame({"step": [100, 200, 300], name.split("/")[-1]: [0.5, 0.3, 0.2]})
        write_text(f"reports/train/plots/metrics/{name}.tsv", frame.to_csv(index=False, sep="\t"))


def edits(images, snapshots):
    """The output of `edit`; images(*shape) returns random images."""
    names = ["inpaint_image", "inpaint_known", "inpaint_filled_replacement_1", "inpaint_filled_RePaint_1", "edit_image"]
    names += ["edit_strength_0.5", "edit_varied_0.2", "interpolate_sample_1", "interpolate_image_1"]
    arrays = {name: images(3) for name in names}
    arrays |= {f"interpolate_film_{name}": images(5) for name in ("sample_1", "image_1")}
    frames = 2 * snapshots
    return arrays | {"training_images": images(frames, 4), "training_step": np.arange(frames) * 100}


def guidance(methods):
    """The table of the stage `guidance`."""
    columns = ["method", "scale", "nfe", "fid", "fid_sd", "precision", "recall", "accuracy"]
    scales = ((0.0, 20, np.nan), (1.0, 20, 0.98765), (2.0, 40, 1.0))
    rows = [[method, scale, nfe, 0.12345, 0.01234, 0.8, 0.7, share] for method in methods for scale, nfe, share in scales]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a page with all of its pictures once, and returns its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        write_inputs(SCORES)
        report()
        return Path.cwd()


@pytest.fixture
def here(written, tmp_path, monkeypatch):
    """A copy of that folder, made the current one."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def report():
    write_report(Report(tile=16, columns=4, frame_ms=100), {"linear": diffusion(50).make("linear")}, "linear")
    return Path("reports/index.md").read_text()


def page(scored=SCORES, descriptions=None, **values):
    """The text of a page, without its pictures."""
    values = {"guidance": guidance(["classes"]), "has_training_curve": True, "has_snapshots": True, "inpaint": INPAINT,
              "meta": META, "schedule": "linear", "conditional": True, "has_sweep": False,
              "other_weights": [], "times": TIMES, **values}  # fmt: skip
    return render_page(scored, descriptions or describe_metrics(), COST, **values)


def first_paragraph(**changes):
    return page(scores(**changes)).split("\n\n")[1]


def test_report_draws_every_picture_of_the_page(written):
    text = (written / "reports/index.md").read_text()
    pictures = set(re.findall(r"!\[.+?\]\((.+?)\)", text))
    drawn = {f"report/{path.name}" for path in (written / "reports/report").iterdir()}
    assert pictures - drawn == {"prepare_data/first_images.png"}
    assert drawn <= pictures
    assert {path.removeprefix("report/") for path in drawn} >= {
        "comparison.png", "coverage.png", "classes.png", "confusion.png", "loss_t.png", "ddpm_neighbours.png", "guidance.png",
        "training.gif",
    }  # fmt: skip
    for name in ("coverage", "classes", "confusion"):
        with Image.open(written / f"reports/report/{name}.png") as picture:
            assert picture.width >= 800
    assert text == page()
    assert not re.search(r"\{[{%]|\n\n\n| \n", text)


def test_denoising_shows_the_classes_in_turn(here, monkeypatch):
    arrays = read_npz("samples/ddpm.npz", "")
    x = np.zeros((2, 6, 8, 8, 1), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None]
    labels = np.array([0, 0, 0, 4, 0, 7] + [0] * 54)
    write_npz("samples/ddpm.npz", {**arrays, "arr_1": labels, "trajectory_x": x, "trajectory_x0": x, "trajectory_level": [1, 0]})
    shown = []
    monkeypatch.setattr(gallery.image_grid, "denoising_strip", lambda path, x, *_: shown.append(x[0, :, 0, 0, 0].tolist()))
    gallery.draw_samples(Path(), "ddpm", META["class_names"], 4, 16, 100)
    assert shown == [[0, 3, 5, 1, 2, 4]]


def test_report_repeats_its_bytes(written, here):
    report()
    for path in (written / "reports").rglob("*"):
        assert path.is_dir() or path.read_bytes() == Path(path.relative_to(written)).read_bytes(), path


def test_report_removes_what_was_not_measured(here):
    pretext = {"trained_on": "rotations", "check": {"real": 0.1, "noisy": 3.8, "mean": 0.9}, "status": "ok", "sha256": "3f" * 32}
    write_inputs(scores(**NO_CLASSES, classifier=pretext, round_trip={"status": "skipped"}), conditional=False)
    text = report()
    removed = ("classes.png", "confusion.png", "round_trip.png", "guidance.png", "training.gif", "training_curve.png")
    assert not any(Path(f"reports/report/{name}").exists() or name in text for name in removed)
    assert "## Guidance" not in text
    assert "requested class" not in text
    assert "trained to predict rotations" in text
    assert "accuracy ↑ | seconds" not in text
    assert "The round trip is skipped." in text


def test_page_without_measured_features_gives_no_fid():
    status = "nothing is measured: the features are wrong"
    changes = {"classifier": {"sha256": "3f" * 32, "trained_on": "flips", "check": {}, "status": status}}
    changes |= {f"{name}.classifier": {"status": status} for name in ("ddpm", "ddim", "real")}
    text = page(scores(**NO_CLASSES, **changes), guidance=guidance([]))
    assert "its FID is **not measured**" in text
    assert "Nothing is measured: the features are wrong" in text
    assert "FID ↓" not in text


def test_report_names_a_missing_curve(here):
    Path("reports/train/plots/metrics/loss_t/25_50.tsv").unlink()
    report()
    file = Path("reports/train/plots/metrics/loss.tsv")
    file.unlink()
    with input_error(str(file), match=r"cannot be read .*; make it again with `dvc repro -f train`"):
        report()


def test_page_shows_guidance_inpainting_and_an_existing_sweep():
    text = page()
    for row in (
        "| 2 | 40 | 100.0% | 0.800 | 0.700 | 0.123 ± 0.012 |",
        "| 0 | 20 | - |",
        "(99.0% for the whole images); for this score the network is not conditioned on the class",
        "| RePaint | 410 | 64.5% | 10.2 |",
    ):
        assert row in text
    assert "sweep/" not in text
    text = page(guidance=guidance(["captions", "held-out captions"]), has_sweep=True)
    assert "| held-out captions | 1 | 20 | 98.8% |" in text
    assert "templates that were left out of the training" in text
    assert "(sweep/fid.png)" in text
    assert "(sweep/index.md)" in text


def test_report_names_scores_of_other_weights(here):
    """Those of an edit and a sweep that are older than the training; without a hash they are not compared."""
    for stage, sha256 in (("edit", "bb"), ("guidance", "aa"), ("sweep", "bb")):
        file = Path(f"reports/{stage}/metrics.json")
        write_json(file, {"inpaint": INPAINT, "model": {"checkpoint": "final", "sha256": sha256}})
    write_text("reports/sweep/index.md", "")
    text = report()
    assert "those of `edit` are of others; run `dvc repro`" in text.split("\n\n")[1]
    assert "Results of **other weights**: those on which `sweep` was last run" in text
    names = ["ddpm", "evaluate", "sweep"]
    assert "those of DDPM and `evaluate` are of others" in page(other_weights=names)


def test_page_shows_the_time_of_each_stage():
    rows = rows_of(section(page(), "## Time"))
    assert (rows["`train`"], rows["`edit`"]) == (["2", "60", "74.6%"], ["1", "20.4", "25.4%"])
    assert rows["all"] == ["-", "80.4", "100.0%"]
    assert list(rows).index("`train`") < list(rows).index("`edit`"), "the longest first"
    assert "## Time" not in page(times={})


def test_stage_times_names_a_damaged_file(tmp_path):
    file = tmp_path / "reports/seconds/train.json"
    write_text(file.with_name(".edit.partial1.json"), "of a killed process")
    for text, key in {
        "{": str(file), '{"seconds": 1}': "processes", '{"seconds": 0, "processes": 1}': "seconds",
        '{"seconds": NaN, "processes": 1}': "seconds", '{"seconds": "1", "processes": 1}': "seconds",
    }.items():  # fmt: skip
        write_text(file, text)
        with input_error(key, match=f"^{file}: "):
            stage_times(tmp_path)
    file.unlink()
    assert stage_times(tmp_path) == stage_times(tmp_path / "nowhere") == {}


def rows_of(text):
    """The rows of Markdown tables, by their first cell."""
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines())}


def section(text, title):
    return text.partition(title)[2].partition("\n## ")[0]


def test_page_overview_compares_samplers_with_real_images():
    rows = rows_of(page().partition("## Samples")[0])
    assert rows["DDPM"] == ["1,000", "0.087 ± 0.004", "7.22 ± 0.04", "0.83", "0.79", "99.0 ± 0.3%", "108", "13.9"]
    assert rows["real test images"] == ["-", "0.085", "7.17", "0.87", "0.86", "99.2%", "-", "-"]
    rows = rows_of(page(scores(**ONE_SET)).partition("## Samples")[0])
    assert rows["DDPM"][1:3] == ["0.087", "7.2"], "two digits without a standard deviation"
    assert rows["real test images"][1:3] == ["0.085", "7.2"]


def test_page_describes_every_score():
    text = section(page(), "## All scores")
    rows = rows_of(text)
    for name, cells in {
        "FID ↓": ["0.087 ± 0.004", "0.087 ± 0.004", "0.085"],
        "KID ↓": ["0.0011 ± 0.0004", "0.0011 ± 0.0004", "0.0009"],
        "class TV ↓": ["0.031", "0.031", "0.042"],
        "nn_auc → 0.5": ["0.49", "0.49", "0.5"],
    }.items():
        assert rows[name][:3] == cells
    assert rows["FID excess ↓"][0] == "0.002 ± 0.004"
    assert (rows["IS ↑"][2], rows["near copies ↓"][2]) == ("7.17", "0.4 ± 0.3%")
    scored = [row for name, row in rows.items() if name[-1:] in set("↓↑15")]
    assert len(scored) == 15
    assert all(len(row[3]) > 20 for row in scored), "the meaning of each score"
    assert "n = 500 images per set, 3 sets" in text
    assert "comparable with papers: not measured, the weights file is missing" in text
    assert "diversity (AlexNet)" not in text
    one_set = rows_of(section(page(scores(**ONE_SET)), "## All scores"))
    assert one_set["FID excess ↓"][0] == "0.002", "no more decimals than the FID has"


def test_page_shows_a_new_metric_by_its_description_alone():
    new = {"key": "sharpness", "title": "sharpness", "better": "higher", "meaning": "a new one", "floor": "real", "share": False}
    descriptions = describe_metrics()
    descriptions["feature_metrics"].append(new)
    values = {f"{name}.classifier.sharpness": value for name, value in (("ddpm", 0.5), ("ddim", 0.25), ("real", 1.0))}
    assert rows_of(page(scores(**values), descriptions))["sharpness ↑"] == ["0.50", "0.25", "1.0", "a new one"]


def test_page_shows_inception_in_a_table_of_its_own():
    space = {**SPACE, "fid": 31.42, "fid_sd": 1.21, "status": "ok"}
    real = SCORES["real"]["classifier"]
    text = page(scores(**{
        "ddpm.inception": space, "ddim.inception": space, "real.inception": real | {"status": "ok"},
        "ddpm.diversity.alex": 0.97, "ddim.diversity.alex": 1.02,
    }))  # fmt: skip
    inception = text.partition("In the features of the Inception network, comparable with papers:")[2]
    assert rows_of(inception.partition("Classes, memo")[0])["FID ↓"][0] == "31.4 ± 1.2"
    assert rows_of(inception)["diversity (AlexNet) → 1"][:2] == ["0.97", "1.0"]
    assert "not measured: its weights file is missing" not in text


def test_page_begins_with_a_summary():
    text = first_paragraph()
    for claim in (
        "has an FID of 0.087 ± 0.004 (3 sets of n = 500 samples).",
        "The FID of real test images is 0.085: no difference beyond two standard deviations.",
        "The FIDs of DDPM and DDIM do not differ",
        "DDIM evaluates the network 20 times less often than DDPM and generates 22 times as many images per second.",
        "There is no sign that training images were copied.",
        "2.6 dB better than the best linear filter",
    ):
        assert claim in text


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"ddim.classifier.fid": 0.1}, "DDPM has the better FID."),
        ({"ddim.classifier.fid": 0.07}, "DDIM has the better FID."),
        ({"ddim.classifier.fid": 0.0985}, "do not differ"),
        ({"ddpm.classifier.fid": 0.2}, "2.4 times as high"),
        ({"ddpm.classifier.fid": 0.05}, "closer to the training images than other real images are"),
        (ONE_SET, "with fewer than 3 sets the standard deviation is unknown"),
        (ONE_SET | {"ddim.classifier.fid": 0.3}, "the two samplers cannot be compared"),
        ({"reconstruction.psnr": 14.0}, "0.8 dB **worse** than the best linear filter"),
        ({"reconstruction.psnr": 14.85}, "**no better** than the best linear filter"),
        ({"ddpm.memorization.nn_auc": 0.31}, "**DDPM's samples may repeat training images**: they are closer to the training im"),
        ({"ddim.memorization.near_copies": 0.05}, "samples may repeat training images**: 5.0 ± 0.6% of them are near copies"),
    ],
)
def test_page_summary_states_what_the_scores_support(changes, claim):
    text = first_paragraph(**changes)
    assert claim in text
    assert ("no sign that training images were copied" in text) == ("may repeat" not in claim)


def test_summary_compares_with_the_standard_deviation():
    assert differ(1.0, 1.3, 0.1, 0.1)
    assert not differ(1.0, 1.28, 0.1, 0.1)
    assert not differ(1.0, 99.0, None, 0.1)
    usual = SCORES["ddpm"]["memorization"]
    assert copying_signs({**usual, "nn_auc": 0.47}, n=500, sets=1) == {}
    assert set(copying_signs({**usual, "nn_auc": 0.47}, n=10_000, sets=1)) == {"nn_auc"}, "more images, a smaller deviation"
    assert copying_signs({**usual, "near_copies": 0.0, "near_copies_test": 0.05}, n=500, sets=1) == {}


def test_page_warns_of_few_images():
    text = page()
    assert "IS needs at least 1,000 images per set and has 500" in text
    assert "floor is a large part of the FID (97% for DDPM and 97% for DDIM)" in text
    assert "only one set" not in text
    assert "only one set of n = 500" in page(scores(**ONE_SET))
    assert "only two sets of n = 500" in page(scores(**ONE_SET | {"sets": 2}))
    many = scores(n=10_000, **{f"{name}.classifier.fid_floor": 0.001 for name in ("ddpm", "ddim")})
    assert "\n- " not in page(many)
    assert summarize(many)["large_floors"] == {}
