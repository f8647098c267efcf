"""The description of a model, as JSON values and as rows of text."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.core.files import printable
from ddpm.networks.names import CHECKPOINTS
from ddpm.networks.power_ema import list_snapshots, supported_range
from ddpm.report.model_scores import Scores, scores_of
from ddpm.sampling.model import DiffusionModel

MAX_NAMES = 40


def checkpoints_of(folder: Path) -> list[str]:
    """Returns the keys of CHECKPOINTS that a model folder holds."""
    return [name for name, file in CHECKPOINTS.items() if (folder / file).is_file()]


def describe(folder: Path, config: dict[str, Any], model: DiffusionModel) -> dict[str, Any]:
    """Returns what a model is and what its folder holds, as JSON values. config: the content of its config.json."""
    steps, diffusion, training = list_snapshots(folder), config["diffusion"], config.get("training", {})
    description = {
        "folder": str(folder),
        "dataset": model.data.get("dataset"),
        "shape": list(model.shape),
        "classes": model.data["class_names"],
        "conditioning": config["model"]["conditioning"],
        "supports_cfg": model.supports_cfg,
        "words": config.get("words"),
        "schedule": diffusion["schedule"],
        "timesteps": diffusion["timesteps"],
        "prediction": diffusion["prediction"],
        "learned_variance": diffusion["learned_variance"],
        "distilled_steps": model.distilled_steps,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "training": {key: training[key] for key in ("steps", "batch_size", "learning_rate", "seed") if key in training},
        "checkpoints": checkpoints_of(folder),
        "snapshots": len(steps),
        "ema_widths": list(supported_range(steps)) if steps else None,
    }
    metrics, note = scores_of(folder)
    scores = {"scores": dict(_scores(metrics))} if metrics else {}
    return description | scores | ({"scores_left_out": note} if note else {})


def _scores(metrics: list[Scores]) -> Iterator[tuple[str, dict[str, float]]]:
    for scores in metrics:
        values = {"fid": scores.classifier.fid, "fid_floor": scores.classifier.fid_floor, "accuracy": scores.accuracy}
        if row := {key: value for key, value in values.items() if value is not None}:
            yield scores.sampler, row


def as_rows(description: dict[str, Any]) -> dict[str, str]:
    """Returns the names and texts of a description's rows."""
    height, width, channels = description["shape"]
    rows = {
        "data": f"{description['dataset']}: {height}x{width}, {'gray' if channels == 1 else 'colour'}",
        "classes": f"{len(description['classes'])}: {_listed(description['classes'])}" if description["classes"] else "none",
        "conditioning": description["conditioning"] + (", with condition dropout" if description["supports_cfg"] else ""),
        "words": _listed(description["words"]) if description["words"] else None,
        "schedule": f"{description['schedule']}, T = {description['timesteps']:,}",
        "prediction": description["prediction"] + (", learned variance" if description["learned_variance"] else ""),
        "sampling": f"DDIM with {steps:,} {'step' if steps == 1 else 'steps'}, for which it was distilled"
        if (steps := description["distilled_steps"])
        else None,
        "network": f"{description['parameters']:,} parameters",
        "training": ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in description["training"].items()) or None,
        "checkpoints": ", ".join(description["checkpoints"]),
        "snapshots": _snapshots(description),
        **{f"scores of {name}": _score_text(row) for name, row in description.get("scores", {}).items()},
        "scores": description.get("scores_left_out"),
    }
    return {name: printable(text) for name, text in rows.items() if text}


def as_html(description: dict[str, Any]) -> str:
    """Returns a description as a table in HTML."""
    rows = as_rows(description).items()
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def as_text(description: dict[str, Any]) -> str:
    """Returns a description as lines `name: value`."""
    return "\n".join(f"{name + ':':<16}{text}" for name, text in as_rows(description).items())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else "")


def _snapshots(description: dict[str, Any]) -> str:
    if not description["snapshots"]:
        return "none"
    narrowest, widest = description["ema_widths"]
    return f"{description['snapshots']}, for EMA widths {narrowest:g} to {widest:g} (--checkpoint)"


def _score_text(row: dict[str, float]) -> str:
    floor = f" (real images {row['fid_floor']:.3f})" if "fid_floor" in row else ""
    fid = [f"FID {row['fid']:.3f}{floor}"] if "fid" in row else []
    return ", ".join(fid + ([f"accuracy {row['accuracy']:.1%}"] if "accuracy" in row else []))
