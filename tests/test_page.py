"""reports/index.md: numbers have the digits that they support, and nothing is claimed that the spread does not carry."""

import copy
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import diffusion, edit
from PIL import Image

from ddpm.core.files import InputError, write_json, write_npz, write_text
from ddpm.report.page import Report, write_report
from ddpm.report.score_tables import every_score, overview
from ddpm.report.summary import apart, copying, small_sample_notes, verdict

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
FILLED = {
    "n": 200, "told": False, "accuracy_real": 0.99,
    "replacement": {"nfe": 50, "accuracy": 0.515, "psnr": 9.02}, "RePaint": {"nfe": 410, "accuracy": 0.645, "psnr": 10.24},
}  # fmt: skip
NO_CLASSES = {"ddpm.accuracy": ..., "ddim.accuracy": ...}


def scores(**changes):
    """SCORES with changes by full path; `...` removes a key."""
    return edit(copy.deepcopy(SCORES), **changes)


def write_inputs(scored, asked=True):
    """In the current folder, all that `report` reads."""
    rng = np.random.default_rng(0)

    def images(*shape):
        return rng.integers(0, 256, (*shape, 8, 8, 1), np.uint8)

    labels = np.arange(60) % 10
    seen = np.where(rng.random(60) < 0.9, labels, 3)
    arrays = {f"reconstruction_{name}": images(4) for name in ("clean", "noisy", "network", "wiener", "zero")}
    arrays |= {"bits_level": np.arange(1, 5), "bits_large": np.full(4, 0.1), "real_seen": seen, "real_labels": labels}
    arrays |= {"round_trip_clean": images(4), "round_trip_steps_10": images(4)} if "n" in scored["round_trip"] else {}
    for name in ("ddpm", "ddim"):
        arrays |= {
            f"{name}_seen": seen,
            f"{name}_neighbours": images(2, 10),
            f"{name}_neighbours_ratio": np.linspace(0.3, 0.6, 10),
        }
        arrays |= {f"{name}_asked": labels} if asked else {}
        samples = {"arr_0": images(60), "trajectory_x": images(5, 3), "trajectory_x0": images(5, 3)}
        samples |= {"trajectory_level": np.array([50, 40, 20, 10, 0])} | ({"arr_1": labels} if asked else {})
        write_npz(f"samples/{name}.npz", samples)
    write_npz("samples/judged/arrays.npz", arrays)
    write_npz("samples/edits.npz", edits(images, film=asked))
    write_json("reports/edit/metrics.json", {"inpaint": FILLED})
    write_text("reports/guidance/guidance.csv", guidance(["classes"] if asked else []).to_csv(index=False))
    write_json("samples/judged/scores.json", scored)
    write_json("reports/evaluate/metrics.json", {**scored, **{name: {**scored[name], "cost": COST[name]} for name in COST}})
    names = [str(i) for i in range(10)]
    counts = {"train": 1297, "test": 500}
    write_json("data/prepared/meta.json", {"dataset": "digits", "class_names": names, "shape": [8, 8, 1], "counts": counts})
    curve = [{"fraction": f, "method": m, "psnr": 20 - 10 * f} for f in (0.1, 0.5) for m in ("network", "wiener", "zero")]
    write_text("reports/evaluate/plots/psnr.csv", pd.DataFrame(curve).to_csv(index=False))
    for name in ("loss", "validation_loss", *(f"loss_t/{quarter}" for quarter in ("0_25", "25_50", "50_75", "75_100"))):
        frame = pd.DataFrame({"step": [100, 200, 300], name.split("/")[-1]: [0.5, 0.3, 0.2]})
        write_text(f"reports/train/plots/metrics/{name}.tsv", frame.to_csv(index=False, sep="\t"))


def edits(images, film):
    """What `edit` makes; images(*shape) gives some."""
    names = ["inpaint_image", "inpaint_known", "inpaint_filled_replacement_1", "inpaint_filled_RePaint_1", "edit_image"]
    names += ["edit_strength_0.5", "edit_varied_0.2", "interpolate_sample_1", "interpolate_image_1"]
    arrays = {name: images(3) for name in names}
    arrays |= {f"interpolate_film_{name}": images(5) for name in ("sample_1", "image_1")}
    frames = 2 * film
    return arrays | {"training_images": images(frames, 4), "training_step": np.arange(frames) * 100}


def guidance(methods):
    """The table of the stage `guidance`."""
    columns = ["method", "scale", "nfe", "fid", "fid_sd", "precision", "recall", "accuracy"]
    scales = ((0.0, 20, np.nan), (1.0, 20, 0.98765), (2.0, 40, 1.0))
    rows = [[method, scale, nfe, 0.12345, 0.01234, 0.8, 0.7, share] for method in methods for scale, nfe, share in scales]
    return pd.DataFrame(rows, columns=columns)


def report():
    write_report(Report(tile=16, columns=4, frame_ms=100), {"linear": diffusion(50).make("linear")}, "linear")
    return Path("reports/index.md").read_text()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_picture_of_the_page_is_drawn(here):
    write_inputs(SCORES)
    page = report()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", page)
    drawn = {path for path in pictures if path.startswith("report/")}
    assert drawn == {f"report/{path.name}" for path in Path("reports/report").iterdir()}
    assert {path.removeprefix("report/") for path in drawn} >= {
        "comparison.png", "coverage.png", "classes.png", "confusion.png", "loss_t.png",
        "ddpm_neighbours.png", "ddim_neighbours.png",
    }  # fmt: skip
    assert set(pictures) - drawn == {"prepare_data/first_images.png"}
    for name in ("coverage", "classes", "confusion"):
        with Image.open(f"reports/report/{name}.png") as picture:
            assert picture.width >= 800
    first = page.splitlines()[2]
    assert first == verdict(SCORES, COST), "the verdict is the first paragraph"
    assert first.count("\n") == 0


def test_the_same_results_give_the_same_pictures(here):
    write_inputs(SCORES)
    before = (report(), {path: path.read_bytes() for path in Path("reports/report").iterdir()})
    assert (report(), {path: path.read_bytes() for path in Path("reports/report").iterdir()}) == before


def test_what_was_not_measured_is_not_shown(here):
    write_inputs(SCORES)
    report()
    write_inputs(scores(**NO_CLASSES, round_trip={"status": "skipped"}), asked=False)
    page = report()
    assert "confusion" not in page
    assert not Path("reports/report/confusion.png").exists(), "a picture of an earlier run stays behind"
    assert not Path("reports/report/round_trip.png").exists()
    assert "## Guidance" not in page
    assert "training.gif" not in page
    assert not any(Path(f"reports/report/{name}").exists() for name in ("guidance.png", "training.gif"))
    assert "as the class asked for" not in page
    assert "The round trip is skipped." in page


def test_guidance_is_told_by_how_it_was_asked_for(here):
    write_inputs(SCORES)
    assert "| 2 | 40 | 100.0% | 0.800 | 0.700 | 0.123 ± 0.012 |" in report()
    assert "| 0 | 20 | - |" in report()
    write_text("reports/guidance/guidance.csv", guidance(["captions", "captions never seen"]).to_csv(index=False))
    page = report()
    assert "| captions never seen | 1 | 20 | 98.8% |" in page
    assert "templates that training left out" in page


def test_inpainting_is_told_with_what_whole_images_score(here):
    write_inputs(SCORES)
    page = report()
    assert "not told the class (99.0% of the whole images)" in page
    assert "| RePaint | 410 | 64.5% | 10.2 |" in page


def test_the_sweep_is_shown_where_there_is_one(here):
    write_inputs(SCORES)
    assert "sweep/" not in report()
    write_text("reports/sweep/index.md", "# sweep\n")
    page = report()
    assert "![FID over network evaluations, by sampler](sweep/fid.png)" in page
    assert "(sweep/index.md)" in page


def test_a_missing_curve_is_named(here):
    write_inputs(SCORES)
    Path("reports/train/plots/metrics/loss_t/25_50.tsv").unlink()
    with pytest.raises(InputError, match=r"loss_t/25_50.tsv: cannot be read .*; make it again with `dvc repro -f train`"):
        report()


def rows_of(text):
    """The rows of Markdown tables, by their first cell."""
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines())}


def test_samplers_stand_beside_real_images():
    rows = rows_of(overview(SCORES, COST))
    assert rows["DDPM"] == ["1,000", "0.087 ± 0.004", "7.22 ± 0.04", "0.83", "0.79", "99.0 ± 0.3%", "108", "13.9"]
    assert rows["real test images"] == ["-", "0.085", "7.17", "0.87", "0.86", "99.2%", "-", "-"]


def test_every_score_has_a_direction_and_a_meaning():
    lines = "\n".join(every_score(SCORES))
    rows = rows_of(lines)
    assert rows["FID ↓"][:3] == ["0.087 ± 0.004", "0.087 ± 0.004", "0.085"]
    assert rows["FID excess ↓"][0] == "0.002 ± 0.004"
    assert rows["KID ↓"][:3] == ["0.0011 ± 0.0004", "0.0011 ± 0.0004", "0.0009"]
    assert rows["IS ↑"][2] == "7.17"
    assert rows["class TV ↓"][:3] == ["0.031", "0.031", "0.042"]
    assert rows["nn_auc → 0.5"][:3] == ["0.49", "0.49", "0.5"]
    assert rows["near copies ↓"][2] == "0.4 ± 0.3%"
    scored = [row for name, row in rows.items() if name[-1:] in "↓↑15"]
    assert len(scored) == 15
    assert all(len(row[3]) > 20 for row in scored), "what each score means"
    assert "n = 500 images per set, 3 sets" in lines
    assert "Inception: not measured, its weights file is missing" in lines
    assert "diversity (AlexNet)" not in lines


def test_the_inception_has_a_table_of_its_own():
    space = {**SPACE, "fid": 31.42, "fid_sd": 1.21, "status": "ok"}
    real = SCORES["real"]["classifier"]
    with_weights = scores(**{
        "ddpm.inception": space, "ddim.inception": space, "real.inception": real | {"status": "ok"},
        "ddpm.diversity.alex": 0.97, "ddim.diversity.alex": 1.02,
    })  # fmt: skip
    parts = every_score(with_weights)
    assert parts[3] == "In the features of the Inception, comparable with papers:"
    assert rows_of(parts[4])["FID ↓"][0] == "31.4 ± 1.2"
    assert rows_of(parts[-1])["diversity (AlexNet) → 1"][:2] == ["0.97", "1.0"]


def test_a_difference_within_two_standard_deviations_is_none():
    text = verdict(SCORES, COST)
    assert "FID of 0.087 ± 0.004 (n = 500, 3 sets), against 0.085 of real test images: no difference beyond two standard" in text
    assert "By FID, DDPM and DDIM do not differ beyond two standard deviations." in text
    assert "better than DD" not in text
    assert "DDIM evaluates the network 20 times less often than DDPM and draws 22 times as many images per second." in text
    assert "Nothing suggests that training images were copied." in text
    assert "2.6 dB better than the best linear filter" in text


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"ddim.classifier.fid": 0.1}, "By FID, DDPM is better than DDIM."),
        ({"ddim.classifier.fid": 0.0985}, "By FID, DDPM and DDIM do not differ"),
        ({"ddpm.classifier.fid": 0.2}, "2.4 times as much"),
        ({"ddpm.classifier.fid": 0.05}, "closer to the training images than other real images are"),
        (ONE_SET, "how far such values scatter is unknown"),
        (ONE_SET | {"ddim.classifier.fid": 0.3}, "cannot be said without a spread"),
        ({"reconstruction.psnr": 14.0}, "0.8 dB **worse** than the best linear filter"),
        ({"reconstruction.psnr": 14.85}, "**no better** than the best linear filter"),
        (
            {"ddpm.memorization.nn_auc": 0.31},
            "**DDPM's samples may repeat training images**: they lie closer to the training images",
        ),
        (
            {"ddim.memorization.near_copies": 0.05},
            "DDIM's samples may repeat training images**: 5.0 ± 0.6% of them are near copies",
        ),
    ],
)
def test_the_verdict_says_what_the_numbers_carry(changes, claim):
    text = verdict(scores(**changes), COST)
    assert claim in text
    if "may repeat" in claim:
        assert "Nothing suggests" not in text


def test_differences_are_held_against_their_spread():
    assert apart(1.0, 1.3, 0.1, 0.1)
    assert not apart(1.0, 1.28, 0.1, 0.1)
    assert not apart(1.0, 99.0, None, 0.1)
    usual = SCORES["ddpm"]["memorization"]
    assert copying({**usual, "nn_auc": 0.47}, n=500, sets=1) == []
    assert len(copying({**usual, "nn_auc": 0.47}, n=10_000, sets=1)) == 1, "the same rank says more of more images"
    assert copying({**usual, "near_copies": 0.0, "near_copies_test": 0.05}, n=500, sets=1) == []


def test_few_images_are_warned_of():
    notes = small_sample_notes(SCORES)
    assert any("IS wants at least 1,000 images per set and has 500" in note for note in notes)
    assert any("floor is a large part of the FID (97% for DDPM and 97% for DDIM)" in note for note in notes)
    assert not any("only one set" in note for note in notes)
    assert any("only one set of n = 500" in note for note in small_sample_notes(scores(**ONE_SET)))
    many = scores(n=10_000, **{f"{name}.classifier.fid_floor": 0.001 for name in ("ddpm", "ddim")})
    assert small_sample_notes(many) == []


def test_without_a_spread_two_digits_are_shown():
    rows = rows_of(overview(scores(**ONE_SET), COST))
    assert rows["DDPM"][1:3] == ["0.087", "7.2"]
    assert rows_of(every_score(scores(**ONE_SET))[2])["FID excess ↓"][0] == "0.002", "no more decimals than the FID has"
    assert rows["real test images"][1:3] == ["0.085", "7.2"]
