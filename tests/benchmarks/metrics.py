"""Duration of the evaluation: all in-domain metrics; FID, KID and IS compared with torchmetrics, with the same features.

    python -m tests.benchmarks.metrics [--images 10000] [--rounds 3] [--out FOLDER]

Images are 28x28, gray, of random smooth blobs; samples and both real splits have the same number. The feature extractor is the
classifier of `train_classifier`, untrained, which costs the same. Both sides live in one process and take turns; a ratio is that
of two times in one round. torchmetrics is used as in its documentation, a metric object per score, in batches of 500; its KID is
over 100 random subsets of 1,000 by default. Writes metrics-NAME.json and .md.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ddpm.core.device import Runtime, setup
from ddpm.core.files import write_json, write_text
from ddpm.core.yaml_files import read_yaml
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import Split
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.fid import inception_score, kernel_distance
from ddpm.features.classifier import Classifier, predict
from ddpm.features.frechet import fit_gaussian, frechet
from ddpm.plots.numbers import number, table

from .peers import ROOT, machine, say, slug

SIDE, CLASSES, BATCH = 28, 10, 500
CPU = torch.device("cpu")


def blobs(count: int, seed: int) -> Split:
    """Returns images (count, 28, 28, 1) uint8, each with a few smooth spots, and random labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    images = (fine * 100).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Split(images, np.random.default_rng(seed).integers(0, CLASSES, count))


def ours(classifier: Classifier, real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    """Returns FID, KID and IS of samples, from features that are extracted once."""
    reference, _ = predict(classifier, real, CPU)
    features, probabilities = predict(classifier, samples, CPU)
    return {
        "fid": frechet(fit_gaussian(features), fit_gaussian(reference)),
        "kid": kernel_distance(features, reference),
        "is": inception_score(probabilities),
    }


def torchmetrics(classifier: Classifier, real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    """Returns the same three scores from torchmetrics, with the classifier as the feature extractor."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Features(torch.nn.Module):
        num_features = 64

        def __init__(self, logits: bool):
            super().__init__()
            self.logits = logits

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                x = to_model_range(x).contiguous(memory_format=torch.channels_last)
                return classifier(x) if self.logits else classifier.features(x)

    fid = FrechetInceptionDistance(feature=Features(False), input_img_size=(1, SIDE, SIDE))
    kid = KernelInceptionDistance(feature=Features(False), subset_size=min(1000, len(samples)))
    score = InceptionScore(feature=Features(True), splits=1)
    for images, is_real in ((real, True), (samples, False)):
        for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH):
            fid.update(batch, real=is_real)
            kid.update(batch, real=is_real)
            if not is_real:
                score.update(batch)
    return {"fid": float(fid.compute()), "kid": float(kid.compute()[0]), "is": float(score.compute()[0])}


def timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    options = parser.parse_args(arguments)
    setup(Runtime(**{**read_yaml(ROOT / "params.yaml")["runtime"], "device": "cpu"}))
    torch.manual_seed(0)
    classifier = Classifier(1, CLASSES).to(memory_format=torch.channels_last).requires_grad_(False)
    train, test, samples = (blobs(options.images, seed) for seed in range(3))
    # With the batch statistics of these images its features vary between images, as those of a trained one.
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    classifier.train()(to_model_range(to_tensor(train.images[:BATCH])))
    classifier.eval()
    data = SimpleNamespace(train=train, test=test, shape=(SIDE, SIDE, 1), class_names=[str(i) for i in range(CLASSES)])

    say(f"{options.images:,} images: all in-domain metrics")
    seconds, _ = timed(
        lambda: Evaluator(data, classifier, options.images, 0, CPU).evaluate(samples.images, samples.labels, "samples")
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    say(f"  {seconds:.1f} s, at most {peak:.2f} GB")
    sides = {"ours": ours, "torchmetrics": torchmetrics}
    times: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, dict[str, float]] = {}
    for r in range(options.rounds + 1):  # the first one is not counted
        for name, score in list(sides.items())[:: 1 if r % 2 else -1]:
            spent, values[name] = timed(lambda score=score: score(classifier, train.images, samples.images))
            times[name] += [spent] if r else []
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["torchmetrics"], strict=True))
    say(f"  FID, KID and IS: torchmetrics takes {ratio:.1f} times as long")
    report = {
        "machine": machine(CPU), "images": options.images, "rounds": options.rounds, "all_metrics_seconds": seconds,
        "peak_memory_gb": peak, "seconds": times, "torchmetrics_over_ours": ratio, "values": values,
    }  # fmt: skip
    path = options.out / f"metrics-{slug(report['machine'])}"
    write_json(path.with_suffix(".json"), report)
    write_text(path.with_suffix(".md"), page(report))
    say(f"written: {path}.json and .md")


def page(report: dict) -> str:
    """The report in Markdown."""
    rows = [
        [name, number(statistics.median(report["seconds"][name])), *(f"{value:.6f}" for value in report["values"][name].values())]
        for name in ("ours", "torchmetrics")
    ]
    parts = [
        "# Speed of the metrics",
        f"{report['machine']['cpu']}, {report['machine']['threads']} threads. {report['images']:,} images of {SIDE}x{SIDE} to "
        "score, the same number of the training and of the test split; the classifier's features.",
        f"All in-domain metrics, from images to numbers: **{report['all_metrics_seconds']:.1f} s**, the whole process taking "
        f"{report['peak_memory_gb']:.2f} GB at most.",
        f"FID, KID and IS alone, in {report['rounds']} rounds by turns: torchmetrics takes "
        f"**{report['torchmetrics_over_ours']:.1f} times** as long.",
        table(["", "seconds", "FID", "KID", "IS"], rows),
        "KID by torchmetrics is the mean over 100 random subsets of 1,000, by us that over all pairs.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
