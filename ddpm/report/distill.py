"""Writes reports/distill: quality over network evaluations of the students and their teacher. The text is distill.md.j2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpm.core.files import write_json, write_text
from ddpm.distillation.distill import Student
from ddpm.distillation.score import STUDENT
from ddpm.distillation.settings import Distill
from ddpm.plots.figures import fid_over_nfe
from ddpm.plots.image_grid import captioned, save
from ddpm.plots.markdown import render

FOLDER = Path("reports/distill")
TILE = 48


def write_distill(
    rows: Sequence[dict[str, Any]],
    grids: Mapping[str, np.ndarray],
    students: Sequence[Student],
    floor: float,
    n: int,
    seconds: float,
    settings: Distill,
    dataset: str,
    model: dict,
) -> None:
    """Writes index.md, metrics.json, fid.csv and loss.csv, and two figures.

    rows, grids: from `score_students`. students: with the losses of their training. floor: FID of n real images.
    seconds: that the distillation took. model: checkpoint and SHA-256 of the teacher.
    """
    frame = pd.DataFrame(rows)
    metrics: dict[str, Any] = {"model": model, "n": n, "seconds": round(seconds, 1), "fid_floor": floor}
    for name, part in frame.groupby("method", sort=False):
        metrics[name] = {f"nfe_{row.pop('nfe')}": _known(row) for row in part.drop(columns="method").to_dict("records")}
    write_json(FOLDER / "metrics.json", metrics)
    real = pd.DataFrame([{"method": "real images", "nfe": nfe, "fid": floor} for nfe in (frame.nfe.min(), frame.nfe.max())])
    write_text(FOLDER / "fid.csv", pd.concat([frame, real]).to_csv(index=False, float_format="%.5f"))
    losses = [
        {"method": f"{student.steps} steps", "step": row["step"], "loss": row["loss"]}
        for student in students
        for row in student.history
        if "loss" in row
    ]
    write_text(FOLDER / "loss.csv", pd.DataFrame(losses).to_csv(index=False, float_format="%.5f"))
    fid_over_nfe(FOLDER / "fid.png", frame.assign(budget=frame.nfe), floor, n)
    save(FOLDER / "samples.png", captioned([list(images) for images in grids.values()], list(grids), [], TILE))
    of_student = frame.method == STUDENT
    page = render(
        Path(__file__).with_name("distill.md.j2"), dataset=dataset, n=n, floor=floor, seconds=seconds, settings=settings,
        rows=frame.to_dict("records"), students=frame[of_student].sort_values("nfe").to_dict("records"),
        best=frame.loc[frame[~of_student].fid.idxmin()].to_dict(),
    )  # fmt: skip
    write_text(FOLDER / "index.md", page)


def _known(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not np.isnan(value)}
