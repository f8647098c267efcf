"""Charts of DVC: the templates of the project, the plots of dvc.yaml, and pages that need no network."""

import json
import re
import sys
from pathlib import Path

import pytest
import vl_convert
import yaml
from conftest import ROOT
from dvc_render import VegaRenderer
from dvc_render.html import HTML

from ddpm.core.files import InputError
from ddpm.plots import offline

TEMPLATES = sorted((ROOT / ".dvc/plots").glob("*.json"))
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
SAMPLERS = [
    {"images": images, "rev": rev, "field": "value", "value": value, "score": score}
    for rev in ("workspace", "main")
    for score in ("FID", "precision", "recall", "density", "coverage")
    for images, value in (("DDPM", 0.08), ("DDIM", 0.5), ("real test images", 0.7))
]


def chart(name, rows, **properties):
    """Returns a template of the project, filled by DVC's renderer with rows as DVC reads them from a CSV."""
    renderer = VegaRenderer(rows, "chart", template=name, template_dir=str(ROOT / ".dvc/plots"), title="a title", **properties)
    return json.loads(renderer.partial_html())


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_compiles(path):
    """Vega-Lite compiles it with rows of all columns; no placeholder of DVC is left."""
    rows = [{**row, "step": str(i + 1), "method": "a", "fid": "0.1"} for i, row in enumerate(SAMPLERS)]
    filled = chart(path.stem, rows, x="step", y="value")
    assert "DVC_METRIC" not in json.dumps(filled)
    svg = vl_convert.vegalite_to_svg(filled)
    assert "a title" in svg
    assert svg.count("<path") > 5


def test_samplers_template_has_a_panel_per_score():
    svg = vl_convert.vegalite_to_svg(chart("samplers_and_real", SAMPLERS, x="images", y="value"))
    places = [svg.index(f">{name}<") for name in ("FID", "precision", "recall", "density", "coverage")]
    assert places == sorted(places)
    dashed = re.findall(r'<line [^>]*stroke-dasharray="4,3"', svg)
    assert len(dashed) == 5 * 2, "a line in each panel for each revision"


def test_no_file_stands_in_two_charts():
    """DVC draws each plot of a stage, files in folders too; a chart in a section `plots` would draw their values once more."""
    paths = [Path(next(iter(entry))) for stage in PIPELINE["stages"].values() for entry in stage.get("plots", [])]
    assert len(paths) == len(set(paths))
    assert not any(path in other.parents for path in paths for other in paths)
    assert "plots" not in PIPELINE


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("loss", "loss of the training images (lower is better)"),
        ("validation_loss", "loss of test images, with the EMA weights (lower is better)"),
        ("fid", "FID of a few samples, in the features of the classifier (lower is better)"),
        ("learning_rate", "learning rate"),
        ("25_50", "loss at t / T from 0.25 to 0.5 (lower is better)"),
        ("accuracy", "accuracy on test images (higher is better)"),
        ("pretext_accuracy", "test images whose orientation is predicted correctly (higher is better)"),
        ("another", "another"),
    ],
)
def test_curve_of_a_training_is_named_in_words(column, words):
    rows = [{"step": str(step), column: "0.5", "rev": "workspace"} for step in (1, 2)]
    svg = vl_convert.vegalite_to_svg(chart("training_curves", rows, x="step", y=column) | {"width": 900})
    assert f"a title: {words}" in svg


def test_stage_plots_name_existing_templates():
    for entry in (entry for stage in PIPELINE["stages"].values() for entry in stage.get("plots", [])):
        ((_, options),) = entry.items()
        assert "template" not in options or (ROOT / ".dvc/plots" / f"{options['template']}.json").is_file()


def test_page_contains_library_and_charts():
    page = offline.page("var a = '</script>{scripts}{plot_divs}';")
    html = HTML(page).with_scripts(VegaRenderer.SCRIPTS).with_element("<div>a chart</div>").embed()
    assert html.count("<div>a chart</div>") == 1
    assert html.count("</script>") == 1, "the library must not end its script"
    assert "src=" not in html


def test_main_configures_dvc(tmp_path, monkeypatch, capsys):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"\.dvc: not found; run this in the root of the project"):
        offline.main()
    Repo.init(no_scm=True).close()
    offline.main()
    with Repo() as repo:
        setting = repo.config["plots"]["html_template"]
        page = Path(repo.dvc_dir) / setting
    assert "dvc config --local --unset plots.html_template" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "vegaEmbed" in text
    assert not re.findall(r"<(?:script|link)[^>]*(?:src|href)=", text)
    assert VegaRenderer.SCRIPTS.strip() not in HTML(text).with_scripts(VegaRenderer.SCRIPTS).embed()


def test_main_without_the_package_names_it(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(InputError, match="pip install vl-convert-python"):
        offline.main()
