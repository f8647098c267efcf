"""Scores samples and model: samples/*.npz, models/ddpm -> reports/evaluate/metrics.json, and samples/judged for `report`."""

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime
from ddpm.core.files import read_json, read_npz
from ddpm.core.logged_run import log_scores
from ddpm.core.paths import MODEL_DIR, samples_file
from ddpm.core.stage import run_stage
from ddpm.data.prepared import held_out
from ddpm.evaluation.evaluator import Evaluate
from ddpm.evaluation.likelihood import likelihood
from ddpm.evaluation.reconstruction import reconstruct, round_trips_if_trained
from ddpm.evaluation.results import write_results
from ddpm.evaluation.run import open_run
from ddpm.evaluation.training_curve import training_curve
from ddpm.features.extractors import get_weights

SAMPLERS = ("ddpm", "ddim")
# Those that its config holds; `accuracy` where it was trained on classes, and `trained_on` to `status` where not.
CLASSIFIER_KEYS = ("accuracy", "trained_on", "pretext_accuracy", "check", "status", "sha256", "threads")


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, evaluate=Evaluate, runtime=Runtime)
    run = open_run(p, p.evaluate.checkpoint)
    processes.from_rank0(lambda: get_weights(p.evaluate))
    samples = {name: read_npz(samples_file(name), f"sample_{name}", ["arr_0", "sampler"]) for name in SAMPLERS}

    evaluator = run.evaluator(min(len(arrays["arr_0"]) for arrays in samples.values()))
    scores = {
        **evaluator.sizes._asdict(),
        "model": run.weights,
        "classifier": {key: run.classifier_config[key] for key in CLASSIFIER_KEYS if key in run.classifier_config},
    }
    real_labels = run.data.test.labels if run.data.class_names else None
    arrays = {"real_seen": evaluator.real_predicted_class, "real_labels": real_labels}
    for name, sample_set in samples.items():
        requested_class = sample_set.get("arr_1")
        result = evaluator.evaluate(sample_set["arr_0"], requested_class, name)
        scores[name] = {"sampler": str(sample_set["sampler"][0]), **result.scores}
        arrays |= {f"{name}_seen": result.predicted_class}
        arrays |= {} if requested_class is None else {f"{name}_asked": requested_class}
        arrays |= {f"{name}_neighbours": result.neighbours, f"{name}_neighbours_ratio": result.ratios}
    scores["real"] = evaluator.real()
    reconstruction = reconstruct(run.model, run.data, run.classifier, p.evaluate.reconstruction_images, p.seed)
    scores["reconstruction"] = reconstruction.scores
    images, labels = held_out(run.data, p.evaluate.likelihood_images, p.seed, run.device)
    bound = likelihood(run.model, images, labels, p.evaluate.likelihood_levels, p.seed)
    scores["likelihood"] = bound.scores
    images, labels = held_out(run.data, p.evaluate.round_trip_images, p.seed, run.device)
    trips = round_trips_if_trained(run.model, images, labels, reconstruction.scores)
    scores["round_trip"] = trips.scores
    # Last, since it puts the weights of the snapshots into the network.
    autocast = Precision(p.runtime, run.device).autocast
    curve, note = training_curve(run.model, MODEL_DIR, evaluator, p.evaluate, p.seed, autocast)
    if not processes.is_main_process():
        return
    if note:
        print(note, flush=True)
    # Not a dep: seconds differ from run to run and must not make any stage run again. They are written together with the
    # samples, which are a dep.
    runs = {name: read_json(f"reports/sample_{name}/metrics.json", f"sample_{name}") for name in SAMPLERS}
    # Without classes there are no labels, and the classifier predicts none.
    arrays = {name: array for name, array in arrays.items() if array is not None}
    write_results(scores, runs, reconstruction, bound, trips, arrays, curve)
    log_scores(p.runtime.loggers, run.weights["sha256"], scores)


if __name__ == "__main__":
    run_stage(main, parallel="stages.evaluate", memory="evaluate.reconstruction_images, evaluate.round_trip_images")
