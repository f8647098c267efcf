"""Trains the classifier, in whose features samples are scored: data/prepared -> models/classifier."""

from pathlib import Path

from ddpm.core import params
from ddpm.core.device import Runtime, setup
from ddpm.core.run_log import RunLog
from ddpm.core.stage import run_stage
from ddpm.data.prepared import open_prepared
from ddpm.features.classifier import (
    TrainClassifier,
    check_accuracy,
    check_pretext,
    required_accuracy,
    save_classifier,
    train_classifier,
)

REPORT = Path("reports/train_classifier")


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, train_classifier=TrainClassifier, runtime=Runtime)
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    log = RunLog(REPORT)
    rows = []

    def on_epoch(row: dict) -> None:
        rows.append(row)
        log.log(row, step="epoch")

    network = train_classifier(data, p.train_classifier, p.seed, device, on_epoch)
    if not network.predicts_classes:
        facts = check_pretext(network, data, rows[-1]["pretext_accuracy"], p.seed, device)
        log.close(**facts, sha256=save_classifier(network, data, facts))
        print(f"features for scores: trained on {facts['trained_on']}, without two classes; check: {facts['status']}")
        return
    reached, required = rows[-1]["accuracy"], required_accuracy(p.train_classifier, data)
    check_accuracy(reached, required, data)
    log.close(sha256=save_classifier(network, data, {"accuracy": reached}))
    print(f"classifier: test accuracy {reached:.2%}" + (f" (required: {required:.2%})" if required else ""))


if __name__ == "__main__":
    run_stage(main, memory="train_classifier.batch_size")
