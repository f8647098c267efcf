"""Comparison of experiments: reading `dvc exp show`, grouping, tests of differences, the page and the command."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Checkout, write_files
from PIL import Image
from scipy.stats import t, ttest_ind

from ddpm.cli.main import main
from ddpm.core.files import InputError
from ddpm.experiments import collect
from ddpm.experiments.compare import write_experiments
from ddpm.experiments.significance import Difference, difference, format_difference, format_mean
from ddpm.experiments.tables import comparable

PARAMS = ["dataset", "schedule", "prediction", "seed", "train_classifier.epochs", "train.steps", "runtime.threads",
          "sweep.samples"]  # fmt: skip
# As `dvc exp show --csv` (DVC 3.67) names and orders its columns: a file's path stands only before keys that two files have.
SAMPLER = ["sampler", "classifier.fid", "classifier.fid_floor", "classifier.precision", "classifier.recall", "inception.status",
           "accuracy", "memorization.nn_auc", "cost.nfe", "cost.seconds", "cost.images_per_second"]  # fmt: skip
HEADER = [
    *("Experiment", "rev", "typ", "Created", "parent", "State", "Executor"),
    *("reports/train/metrics.json:loss", "reports/sample_ddpm/metrics.json:nfe", "reports/sample_ddim/metrics.json:nfe"),
    *("reports/evaluate/metrics.json:n", "sets", "classifier.accuracy", "classifier.sha256"),
    *(f"{name}.{key}" for name in ("ddpm", "ddim") for key in SAMPLER),
    *("reconstruction.psnr", "reconstruction.psnr_wiener", "reports/sweep/metrics.json:n", "fid_floor"),
    *(name if name != "seed" else "params.yaml:seed" for name in PARAMS),
    *("data/prepared", "ddpm/evaluation", "ddpm/report", "ddpm/sampling", "stages/evaluate.py"),
]
COST = {"ddpm": ("DDPM", 1000, 14.0), "ddim": ("DDIM", 50, 280.0)}


def row(name, ratio=1.0, seed=0, floor=0.08, **changes):
    """A finished experiment of an FID of `ratio` times the floor. In changes, ddpm__accuracy means ddpm.accuracy."""
    cells = {
        "Experiment": name, "rev": "0abc123", "typ": "branch_commit", "Created": "2026-11-21T17:32:37",
        "reports/evaluate/metrics.json:n": 500, "sets": 3, "classifier.accuracy": 0.99, "classifier.sha256": f"{seed:064x}",
        "reconstruction.psnr": 17.0 + seed / 10, "reconstruction.psnr_wiener": 14.8, "reports/sweep/metrics.json:n": 7,
        "fid_floor": 9, "reports/train/metrics.json:loss": 0.2, "dataset": "digits", "schedule": "linear", "prediction": "v",
        "params.yaml:seed": seed, "train_classifier.epochs": 40, "train.steps": 5000, "runtime.threads": "auto",
        "sweep.samples": 1500, "data/prepared": "d", "ddpm/evaluation": "e", "ddpm/report": "p", "ddpm/sampling": "s",
        "stages/evaluate.py": "v",
    }  # fmt: skip
    for sampler, (title, nfe, speed) in COST.items():
        fid, accuracy = ratio * floor * (1 if sampler == "ddpm" else 1.1), 0.98 + seed / 1000
        values = [title, fid, floor, 0.8, 0.7, "weights missing", accuracy, 0.5, nfe, 500 / speed, speed]
        cells |= {f"{sampler}.{key}": value for key, value in zip(SAMPLER, values, strict=True)}
    return cells | {key.replace("__", "."): value for key, value in changes.items()}


def commit(name, ratio=1.0, **changes):
    """A commit's own run."""
    return row("", ratio, **changes) | {"rev": name, "typ": "baseline"}


def shown(*rows):
    """The output of `dvc exp show --csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(*rows):
    return collect.read_experiments(shown(*rows), PARAMS)


def page(folder, *rows):
    write_experiments(folder, read(*rows), force=True)
    return (folder / "index.md").read_text()


def cells(text, heading, first):
    """The cells of the rows after a heading whose first cell is `first`."""
    lines = [line for line in text.partition(heading)[2].splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


T95 = t.ppf(0.975, 2)  # of three pairs
SEEDS = [commit("main"), row("a", 1.04, 1), row("b", 0.96, 2)]
COSINE = [row(f"c{seed}", ratio, seed, schedule="cosine") for seed, ratio in ((0, 0.55), (1, 0.52), (2, 0.51))]


def test_read_finds_columns_with_and_without_a_path():
    found = read(*SEEDS, *COSINE)
    assert list(found.about.index) == ["main", "a", "b", "c0", "c1", "c2"]
    assert found.scores["n"].tolist() == [500] * 6, "not that of the sweep"
    assert found.scores.loc["c1", "ddpm.classifier.fid"] == pytest.approx(0.52 * 0.08)
    assert found.about["seed"].tolist() == ["0", "1", "2"] * 2
    assert found.about["committed"].tolist() == [True] + [False] * 5
    assert set(found.about["commit"]) == {"main"}
    assert found.differing() == ["schedule"], "the seed is no setting"
    after_message = collect.read_experiments("WARNING: something, something\n" + shown(*SEEDS), PARAMS)
    assert len(after_message.about) == 3


def test_read_leaves_out_unfinished_experiments(tmp_path):
    others = [row(state.lower(), schedule="cosine", State=state) for state in ("Failed", "Queued", "Running")]
    others += [
        row("half", schedule="cosine", ddim__classifier__fid=""),
        row("broken", schedule="cosine") | {"ddpm.classifier.fid": "!", "ddim.classifier.fid": "1" + "0" * 400},
    ]
    found = read(*SEEDS, *others, row("done", 0.9, schedule="cosine", State="Success"))
    assert list(found.about.index) == ["main", "a", "b", "done"]
    missing = "has no FID of both samplers in reports/evaluate/metrics.json; run it to the end"
    assert found.left_out == {name: name for name in ("failed", "queued", "running")} | {"half": missing, "broken": missing}
    text = page(tmp_path, *SEEDS, *others)
    assert f"- {missing}: half, broken\n" in text
    assert "cosine" not in text


def test_read_leaves_out_scores_of_other_weights():
    header, *lines = shown(*SEEDS).splitlines()
    columns = ",final_sha256,ddpm.model.checkpoint,ddpm.model.sha256,reports/evaluate/metrics.json:model.sha256"
    columns += ",reports/evaluate/metrics.json:model.checkpoint"
    added = [",aa,final,aa,aa,final", ",aa,best,bb,bb,final", ",aa,best,bb,bb,best"]
    text = "\n".join([header + columns, *(line + end for line, end in zip(lines, added, strict=True))])
    found = collect.read_experiments(text, PARAMS)
    assert list(found.left_out) == ["a"]
    assert "scores of other weights" in found.left_out["a"]
    of_samples = text.replace(",aa,best,bb,bb,best", ",aa,final,bb,aa,final")
    assert list(collect.read_experiments(of_samples.replace("bb,bb,final", "bb,aa,final"), PARAMS).left_out) == ["b"]


def test_read_refuses_fewer_than_two_experiments():
    with pytest.raises(InputError, match=r"^no experiments; run some: `dvc exp run --queue") as error:
        read(commit("main"))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^nothing to compare; late: failed; copy: the same as main; run some: "):
        read(commit("main"), row("late", State="Failed"), row("copy"))
    for text in ("", "nothing like a table\n", "A,B\n1,2\n"):
        with pytest.raises(InputError, match=r"^no experiments: `dvc exp show` prints no table"):
            collect.read_experiments(text, PARAMS)


def test_read_leaves_out_repeats():
    again, elsewhere = row("again", 1.04, 1), row("elsewhere", 1.3, 1)
    found = read(*SEEDS, again, elsewhere)
    assert list(found.about.index) == ["main", "a", "b"]
    assert found.left_out["again"] == "the same as a"
    assert found.left_out["elsewhere"].startswith("settings, seed and code of a, but other scores")


def test_read_takes_code_as_a_setting_if_scores_differ():
    changed = {"ddpm/sampling": "t"}
    assert read(*SEEDS, row("same", 1.04, 1) | changed).left_out == {"same": "the same as a"}
    found = read(*SEEDS, row("other", 1.2, 1) | changed)
    assert found.differing() == ["code"]
    assert found.settings["code"].tolist() == ["main", "main", "main", "other"]
    assert read(*SEEDS, row("page", 1.2, 3) | {"ddpm/report": "q"}).differing() == []


def test_differing_ignores_settings_without_effect_and_those_that_older_commits_lack():
    assert read(commit("main"), row("a", 1.1, 1) | {"runtime.threads": 1, "sweep.samples": 3}).differing() == []
    old = commit("v1", 1.3, seed=1) | {"train.steps": ""}
    assert read(commit("main"), old).differing() == []
    assert read(commit("main"), old, row("long", 0.9) | {"train.steps": 9000}).differing() == ["train.steps"]


def test_read_names_experiments_of_several_commits_apart():
    found = read(commit("main"), row("x", 1.1, 1), commit("v1", 1.2, seed=2), row("x", 1.3, 3) | {"rev": "1234567"})
    assert found.about["commit"].tolist() == ["main", "main", "v1", "v1"]
    assert "x (1234567)" in found.about.index
    assert found.about.index.is_unique


def test_comparable_groups_by_n_images_and_classifier(tmp_path):
    others = [
        row("few", 3.0, **{"reports/evaluate/metrics.json:n": 100}),
        row("mnist", 2.0, dataset="mnist", **{"data/prepared": "m"}),
        row("weak", 1.5, **{"train_classifier.epochs": 1}),
    ]
    groups = dict(comparable(read(*SEEDS, *COSINE, *others)))
    assert {title: len(group.about) for title, group in groups.items()} == {
        "digits, n = 500, train_classifier.epochs 40": 6,
        "digits, n = 100, train_classifier.epochs 40": 1,
        "mnist, n = 500, train_classifier.epochs 40": 1,
        "digits, n = 500, train_classifier.epochs 1": 1,
    }
    assert next(iter(groups)) == "digits, n = 500, train_classifier.epochs 40", "the committed run's"
    text = page(tmp_path, *SEEDS, *COSINE, *others)
    assert "There are 4 groups" in text
    assert text.count("\nCompared with ") == 3, "differences only within the first"
    assert {path.stem for path in tmp_path.glob("*.png")} == {"quality", "quality_2", "quality_3", "quality_4"}
    page(tmp_path, *SEEDS, *COSINE)
    assert [path.name for path in tmp_path.glob("*.png")] == ["quality.png"], "those of the page before are gone"


def test_page_hides_fid_of_different_classifiers(tmp_path):
    text = page(tmp_path, *SEEDS, *COSINE)
    assert "in the features of 3 classifiers, since each seed trains its own.\nFIDs in the features of different classif" in text
    assert "FID ↓" not in text
    assert "FID / floor ↓" in text
    text = page(tmp_path, commit("main"), COSINE[0])
    assert "one classifier (weights `00000000`)" in text
    assert "| FID ↓ | FID / floor ↓ |" in text


def test_page_has_one_row_per_setting(tmp_path):
    text = page(tmp_path, *SEEDS, *COSINE)
    assert "6 experiments of one commit in 2 settings" in text
    assert "spread over seeds is unknown" not in text
    linear = cells(text, "## DDPM", "linear")[0]
    assert linear[:3] == ["linear", "3", "1.00 ± 0.04"]
    assert linear[-2:] == ["1,000", "71.4"]
    cosine, against = cells(text, "## DDPM", "cosine")[:2]
    assert cosine[:3] == ["cosine", "3", "0.53 ± 0.02"]
    # Pairs of seeds: -.45, -.52, -.45; their standard error is .0233, times 4.303.
    assert against[1] == "**better** by 0.47 ± 0.10"
    assert "Below 1, samples are closer to the training images" in text
    assert "Compared with schedule linear, the committed setting" in text


def test_page_of_single_seeds_claims_no_difference(tmp_path):
    text = page(tmp_path, commit("main"), row("c", 0.5, schedule="cosine"))
    assert "**The spread over seeds is unknown**" in text
    assert "-S 'seed=range(0,3)'" in text
    assert cells(text, "Compared with", "cosine")[0][1] == "-0.50, spread unknown"
    assert "better**" not in text
    text = page(tmp_path, *SEEDS, row("c", 0.5, schedule="cosine"))
    assert "Settings with a single seed have an unknown spread" in text
    assert "spread unknown" in text


def test_page_names_settings_with_equal_scores_and_numbers_those_that_differ_in_many_keys(tmp_path):
    text = page(tmp_path, commit("main"), row("c", schedule="cosine"), row("d", 0.7, schedule="sigmoid"))
    assert "These settings have the same FID to the last digit: **schedule linear and schedule cosine**." in text
    assert "sigmoid" not in text.partition("the same FID")[2].partition("\n")[0]
    other = {"schedule": "cosine", "prediction": "eps", "train.steps": 9000, "ddpm/sampling": "t"}
    text = page(tmp_path, commit("main"), row("a", 0.9, **other))
    assert "|  | schedule | prediction | train.steps | code |" in text
    assert "| setting 2 | cosine | eps | 9000 | a |" in text
    assert "Compared with setting 1, the committed setting" in text


def test_page_shows_text_from_files_as_it_is(tmp_path):
    text = page(tmp_path, commit("main"), row("<i>|x", 0.9, schedule="<b>|$\\frac{$"), row("[a](b)", State="Failed"))
    assert cells(text, "## DDPM", "&lt;b&gt;\\|$\\\\frac{$")
    assert "- failed: \\[a\\](b)" in text
    assert "<" not in text
    assert "<i>|x" in pd.read_csv(tmp_path / "experiments.csv").experiment.tolist()


def test_page_leaves_out_missing_scores(tmp_path):
    without = {f"{name}.{key}": "" for name in COST for key in ("accuracy", "classifier.precision", "classifier.recall")}
    text = page(tmp_path, commit("main", **without), row("c", 0.9, schedule="cosine", **without))
    assert "accuracy" not in text
    assert "precision" not in text
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.width > 800


def test_csv_has_a_row_per_experiment(tmp_path):
    page(tmp_path, *SEEDS, *COSINE)
    table = pd.read_csv(tmp_path / "experiments.csv", index_col="experiment")
    assert table.index.tolist() == ["main", "a", "b", "c0", "c1", "c2"]
    assert table.loc["c1", "ddpm.fid_over_floor"] == pytest.approx(0.52)
    assert table.loc["a", "psnr_over_wiener"] == pytest.approx(17.1 - 14.8)
    assert table.loc["a", "ddim.seconds_per_1000"] == pytest.approx(1000 / 280, rel=1e-4)
    assert set(table.schedule) == {"linear", "cosine"}
    assert "prediction" not in table
    assert table.judge.nunique() == 3


def runs(values, seeds=None, classifier="c"):
    index = pd.MultiIndex.from_tuples([(str(seed), classifier) for seed in seeds or range(len(values))])
    return pd.Series(values, index, dtype=float)


def test_difference_pairs_runs_of_one_seed_and_classifier():
    a, b = runs([1.1, 2.1, 3.2]), runs([1.0, 2.0, 3.0])
    paired, unpaired = difference(a, b), difference(a, runs([1.0, 2.0, 3.0], classifier="another"))
    assert paired.value == unpaired.value == pytest.approx(0.4 / 3)
    assert paired.margin == pytest.approx(T95 * np.std([0.1, 0.1, 0.2], ddof=1) / np.sqrt(3))
    degrees = (a.var() + b.var()) ** 2 / ((a.var() ** 2 + b.var() ** 2) / 2)
    assert unpaired.margin == pytest.approx(t.ppf(0.975, degrees) * np.sqrt((a.var() + b.var()) / 3))


def test_difference_of_single_runs_or_equal_pairs_has_no_margin():
    found = difference(runs([5.0]), runs([4.0, 9.0, 9.0]))
    assert found == Difference(1.0, None)
    assert not found.is_significant
    assert difference(runs([5.0], [7]), runs([4.0, 6.0])) == Difference(0.0, None)
    assert difference(runs([1.0, 2.0, np.nan]), runs([1.0, 1.0, 5.0])).value == 0.5, "NaN is left out"
    assert np.isnan(difference(runs([np.nan]), runs([1.0])).value)
    assert difference(runs([0.99, 0.98]), runs([0.98, 0.97])).margin is None
    assert difference(runs([0.99, 0.98]), runs([0.99, 0.98])) == Difference(0.0, 0.0)


def test_difference_has_its_level_and_the_p_value_of_welch():
    """One of twenty differences of pure noise is called significant; two standard errors would call one of five so."""
    values = np.random.default_rng(0).normal(size=(400, 2, 3))
    paired = [difference(runs(a), runs(b)) for a, b in values]
    assert 0.03 < np.mean([d.is_significant for d in paired]) < 0.07
    assert np.mean([abs(d.value) > 2 * d.margin / T95 for d in paired]) > 0.13
    for a, b in values[:50]:
        unpaired = difference(runs(a), runs([*b, 3.0], classifier="another"))
        assert unpaired.is_significant == (ttest_ind(a, [*b, 3.0], equal_var=False).pvalue < 0.05)


def test_format_difference():
    for value, margin, better, text in (
        (-0.4732, 0.1003, -1, "**better** by 0.47 ± 0.10"),
        (-0.4732, 0.1003, 1, "**worse** by 0.47 ± 0.10"),
        (0.4732, 0.9, 1, "within the spread (+0.5 ± 0.9)"),
        (-0.002, 0.9, 1, "within the spread (0.0 ± 0.9)"),
        (0.4732, None, 1, "+0.47, spread unknown"),
        (float("nan"), None, 1, "-"),
    ):
        assert format_difference(Difference(value, margin), better) == text


def test_format_mean_has_the_digits_of_its_spread():
    for values, *options, text in (
        ([0.98, 0.99, 0.985], 100, "%", "98.5 ± 0.5%"),
        ([0.98], 100, "%", "98.0%"),
        ([1000.0, 1000.0], "1,000"),
        ([0.12345], "0.123"),
        ([np.nan], "-"),
    ):
        assert format_mean(pd.Series(values), *options) == text


def test_command_passes_options_to_dvc(monkeypatch, workspace, capsys):
    calls = []
    monkeypatch.setattr(collect, "show_csv", lambda options: calls.append(options) or shown(*SEEDS, *COSINE))
    assert main(["experiments"]) == 0
    assert main(["experiments", "--rev", "main", "--rev", "v1", "-n", "3"]) == 0
    assert main(["experiments", "-A", "--out", "elsewhere"]) == 0
    assert calls == [[], ["--rev", "main", "--rev", "v1", "--num", "3"], ["--all-commits"]]
    assert capsys.readouterr().out.splitlines()[0] == "6 experiments, 2 settings: reports/experiments/index.md"
    assert {path.name for path in Path("reports/experiments").iterdir()} == {"index.md", "experiments.csv", "quality.png"}
    assert Path("elsewhere/index.md").exists()


def test_command_tells_what_it_replaces_before_it_writes(tmp_path, monkeypatch, capsys):
    project, table = Checkout(tmp_path / "project"), Path("reports/experiments/experiments.csv")
    monkeypatch.chdir(project.folder)
    shutil.copy(ROOT / "params.yaml", ".")

    def compare(*rows, arguments=()):
        monkeypatch.setattr(collect, "show_csv", lambda options: shown(*rows))
        status = main(["experiments", *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    assert compare(*SEEDS)[1] == ["3 experiments, 1 settings: reports/experiments/index.md"]
    assert len(compare(*SEEDS, *COSINE)[1]) == 1, "nothing is lost where the new table has all of the old one"
    before = {path: path.read_bytes() for path in table.parent.iterdir()}
    status, out, err = compare(*SEEDS)
    assert (status, out, err.startswith("error: reports/experiments: holds c0, c1, c2, which would be lost; ")) == (1, [], True)
    assert {path: path.read_bytes() for path in table.parent.iterdir()} == before
    project.commit()
    status, out, _ = compare(*SEEDS)
    line = "reports/experiments: replaces the committed table, which has c0, c1, c2; `git restore reports/experiments` brings it"
    assert (status, len(out), out[0].startswith(line)) == (0, 2, True)
    assert compare(SEEDS[0], COSINE[0])[0] == 1
    assert compare(SEEDS[0], COSINE[0], arguments=["--force"])[0] == 0
    for folder, text in (("docs", "mine"), (str(tmp_path / "outside"), "")):
        write_files(Path(folder), {"index.md": text, "quality.png": "mine"})
        assert compare(*SEEDS, arguments=["--out", folder])[2].startswith(f"error: {folder}: holds index.md, which would be lost")
        assert Path(folder, "quality.png").read_text() == "mine"


def test_show_csv_reports_the_reason_of_dvc(tmp_path, monkeypatch):
    """Outside of any project."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^dvc exp show: you are not inside of a DVC repository[^\n]*; run in [^\n]*$"):
        collect.show_csv()


STAGE = """
import json, sys, yaml
from pathlib import Path
p = yaml.safe_load(open("params.yaml"))
if p["schedule"] == "broken":
    sys.exit("error: broken")
fid = {"linear": 0.1, "cosine": 0.05}[p["schedule"]] + 0.003 * p["seed"]
scores = {"sampler": "S", "classifier": {"fid": fid, "fid_floor": 0.08}, "cost": {"nfe": 5, "images_per_second": 9}}
metrics = {"n": 500, "classifier": {"sha256": "abc%d" % p["seed"]}, "ddpm": scores, "ddim": scores,
           "reconstruction": {"psnr": 20, "psnr_wiener": 15}}
Path("reports/evaluate").mkdir(parents=True, exist_ok=True)
Path("reports/evaluate/metrics.json").write_text(json.dumps(metrics))
"""
PIPELINE = """
stages:
  evaluate:
    cmd: python stage.py
    deps: [stage.py]
    params: [dataset, schedule, seed]
    metrics:
    - reports/evaluate/metrics.json: {cache: false}
"""


@pytest.mark.slow
def test_command_compares_experiments_of_dvc(tmp_path):
    project = Checkout(tmp_path / "project")
    write_files(project.folder, {
        "params.yaml": "dataset: digits\nschedule: linear\nseed: 0\n", "dvc.yaml": PIPELINE, "stage.py": STAGE
    })  # fmt: skip
    project.python("dvc", "init", "-q")
    project.python("dvc", "repro", "-q")
    project.commit()
    refused = project.python("ddpm", "experiments", status=1)
    assert refused.stderr.startswith("error: no experiments; run some: ")
    assert len(refused.stderr.splitlines()) == 1
    run = ("dvc", "exp", "run", "-q")
    for schedule in ("linear", "cosine"):
        for seed in range(3):
            project.python(*run, "--name", f"{schedule}-{seed}", "-S", f"schedule={schedule}", "-S", f"seed={seed}")
    project.python(*run, "-S", "schedule=broken", status=255)
    project.python(*run, "--queue", "--name", "waiting", "-S", "seed=7")
    compared = project.python("ddpm", "experiments")
    assert compared.stdout == "6 experiments, 2 settings: reports/experiments/index.md\n"
    text = (project.folder / "reports/experiments/index.md").read_text()
    assert "- queued: waiting" in text
    assert "linear-0" in text.partition("the same as ")[2].partition("\n")[0]
    assert cells(text, "## S", "cosine")[0][1:3] == ["3", "0.66 ± 0.04"]
    unknown = project.python("ddpm", "experiments", "--rev", "nowhere", status=1)
    assert "nowhere" in unknown.stderr
    assert len(unknown.stderr.splitlines()) == 1
