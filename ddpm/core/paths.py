"""Names the files and folders of the pipeline that more than one module reads or writes, relative to the project's root."""

import os
from pathlib import Path

PREPARED_DIR = Path("data/prepared")
MODEL_DIR = Path("models/ddpm")
DISTILLED_DIR = Path("models/distilled")
CLASSIFIER_DIR = Path("models/classifier")
METRICS_FILE = Path("reports/evaluate/metrics.json")
PLOTS_DIR = Path("reports/evaluate/plots")
SECONDS_DIR = Path("reports/seconds")
EVALUATED_DIR = Path("samples/judged")
EDITS_FILE = Path("samples/edits.npz")


def samples_file(name: str) -> Path:
    """Returns the file of a stage sample_*: "ddpm" or "ddim"."""
    return Path(f"samples/{name}.npz")


def in_main_checkout(path: str) -> Path:
    """Returns a path, which is below the main checkout if it is relative; a ~ at its start is the home folder.

    DVC names the main checkout in DVC_ROOT for a stage, which `dvc exp run --temp` and `--queue` run in another folder.
    """
    return Path(os.environ.get("DVC_ROOT", "."), os.path.expanduser(path))


def folder_of(variable: str, default: str) -> Path:
    """Returns the folder that an environment variable names, or the default if it is unset or empty; see `in_main_checkout`."""
    return in_main_checkout(os.environ.get(variable) or default)
