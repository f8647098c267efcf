"""Writes reports/index.md from the numbers of the other stages; its text is page.md.j2, and gallery.py draws its pictures."""

from pathlib import Path
from typing import Any

import pandas as pd

from ddpm.core.files import atomic_folder, read_json, read_npz, write_text
from ddpm.core.paths import EVALUATED_DIR, METRICS_FILE, PREPARED_DIR
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.plots.markdown import render
from ddpm.plots.sample_figures import REAL
from ddpm.report import gallery
from ddpm.report.other_weights import scores_of_other_weights
from ddpm.report.score_tables import cells_of, rows_of
from ddpm.report.settings import Report
from ddpm.report.stage_times import stage_times
from ddpm.report.summary import SAMPLES, summarize

REPORTS = Path("reports")


def write_report(settings: Report, schedules: dict[str, NoiseSchedule], schedule: str) -> None:
    """Draws all pictures into reports/report and writes reports/index.md.

    schedules: the noise schedules that are shown. schedule: the one in use.
    Raises InputError, naming the file and the stage that writes it, for results that are missing or damaged.
    """
    scores = read_json(EVALUATED_DIR / "scores.json", "evaluate")
    descriptions = read_json(EVALUATED_DIR / "metrics.json", "evaluate")
    meta = read_json(PREPARED_DIR / "meta.json", "prepare_data")
    # Not a dep: seconds differ from run to run, and pictures need not be drawn again because of them.
    metrics = read_json(METRICS_FILE, "evaluate")
    cost = {name: metrics[name]["cost"] for name in SAMPLES}
    titles = {name: scores[name]["sampler"] for name in SAMPLES}
    arrays = read_npz(EVALUATED_DIR / "arrays.npz", "evaluate")
    # A new folder: figures of an earlier run that this one does not have are gone.
    with atomic_folder(REPORTS / "report", replace=True) as folder:
        gallery.draw_curves(folder, arrays)
        for name in SAMPLES:
            gallery.draw_samples(folder, name, meta["class_names"], settings.columns, settings.tile, settings.frame_ms)
        gallery.draw_pairs(folder, arrays, settings.tile)
        gallery.draw_schedules(folder, schedules, schedule, arrays["reconstruction_clean"][0], settings.tile)
        gallery.draw_scores(folder, scores, cost)
        gallery.draw_classes(folder, arrays, titles, meta["class_names"])
        page = render_page(
            scores,
            descriptions,
            cost,
            guidance=gallery.draw_guidance(folder),
            has_training_curve=gallery.draw_training_curve(folder),
            has_snapshots=gallery.draw_edits(folder, settings.tile, settings.frame_ms),
            inpaint=read_json(REPORTS / "edit/metrics.json", "edit")["inpaint"],
            # Not deps: within `dvc repro` all are of the weights that `train` wrote.
            other_weights=scores_of_other_weights(),
            meta=meta,
            schedule=schedule,
            conditional=any(f"{name}_asked" in arrays for name in SAMPLES),
            times=stage_times(),  # not deps either
            # Not a dep: the sweep is run on demand.
            has_sweep=(REPORTS / "sweep/index.md").exists(),
        )
    write_text(REPORTS / "index.md", page)


def render_page(scores: dict, descriptions: dict, cost: dict, guidance: pd.DataFrame, **values: Any) -> str:
    """Returns the text of reports/index.md.

    scores, descriptions: scores.json and metrics.json of samples/judged; the latter describes the metrics (see score_tables).
    cost: {nfe, seconds, images_per_second} of each set of samples.
    guidance: scores over the guidance scale, may be empty.
    values: the other names of the template.
    """
    features, others = descriptions["feature_metrics"], descriptions["sample_metrics"]
    measured = [
        e["name"] for e in descriptions["extractors"] if all("fid" in scores[name].get(e["name"], {}) for name in SAMPLES)
    ]
    cells = {extractor: cells_of(scores, features, extractor) for extractor in measured}
    titles = {name: scores[name]["sampler"] for name in SAMPLES}
    return render(
        Path(__file__).with_name("page.md.j2"),
        scores=scores, cells=cells, titles=titles, cost=cost, summary=summarize(scores), real=REAL,
        extractors=descriptions["extractors"], rows={name: rows_of(cells[name], features) for name in measured},
        sample_rows=rows_of(cells_of(scores, others, None), others), guidance=guidance.to_dict("records"), **values,
    )  # fmt: skip
