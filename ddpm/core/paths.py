"""Where the stages write: the paths that more than one module names, relative to the project's root."""

from pathlib import Path

PREPARED_DIR = Path("data/prepared")
MODEL_DIR = Path("models/ddpm")
CLASSIFIER_DIR = Path("models/classifier")
METRICS_FILE = Path("reports/evaluate/metrics.json")
