"""Samples and model -> reports/evaluate/metrics.json, and samples/judged, from which `report` draws."""

from ddpm.core import params, processes
from ddpm.core.device import Runtime, setup
from ddpm.core.files import read_json, read_npz
from ddpm.core.stage import run_stage
from ddpm.data.prepared import held_out, open_prepared
from ddpm.evaluation.evaluator import Evaluate, Evaluator
from ddpm.evaluation.likelihood import likelihood
from ddpm.evaluation.reconstruction import reconstruct, round_trips_if_trained
from ddpm.evaluation.results import write_results
from ddpm.features.classifier import load_classifier
from ddpm.features.pretrained import get_weights
from ddpm.networks.checkpoints import check_data
from ddpm.sampling.model import load

SAMPLERS = ("ddpm", "ddim")
OF_JUDGE = ("accuracy", "sha256", "threads")


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, evaluate=Evaluate, runtime=Runtime)
    device = setup(p.runtime)
    processes.from_rank0(lambda: get_weights(p.evaluate))
    data = open_prepared(p.dataset, p.prepare_data)
    judge, of_judge = load_classifier(data, device)
    model = load(p.evaluate.checkpoint, device)
    check_data(model.data, data.identity())
    samples = {name: read_npz(f"samples/{name}.npz", f"sample_{name}", ["arr_0", "sampler"]) for name in SAMPLERS}

    judges = Evaluator(data, judge, min(len(arrays["arr_0"]) for arrays in samples.values()), p.seed, device)
    scores = {**judges.sizes._asdict(), "classifier": {key: of_judge[key] for key in OF_JUDGE}}
    arrays = {"real_seen": judges.real_seen, "real_labels": data.test.labels}
    for name, of_sampler in samples.items():
        asked = of_sampler.get("arr_1")
        found = judges.examine(of_sampler["arr_0"], asked, name)
        scores[name] = {"sampler": str(of_sampler["sampler"][0]), **found.scores}
        arrays |= {f"{name}_seen": found.seen} | ({} if asked is None else {f"{name}_asked": asked})
        arrays |= {f"{name}_neighbours": found.neighbours, f"{name}_neighbours_ratio": found.ratios}
    scores["real"] = judges.real()
    pairs = reconstruct(model, data, judge, p.evaluate.reconstruction_images, p.seed)
    scores["reconstruction"] = pairs.scores
    bits = likelihood(model, *held_out(data, p.evaluate.likelihood_images, p.seed, device), p.evaluate.likelihood_levels, p.seed)
    scores["likelihood"] = bits.scores
    trips = round_trips_if_trained(model, *held_out(data, p.evaluate.round_trip_images, p.seed, device), pairs.scores)
    scores["round_trip"] = trips.scores
    if not processes.is_main_process():
        return
    # Not a dep: seconds differ from run to run, and no stage may run again because of them. The samples, which are a dep,
    # were written together with this file.
    cost = {name: read_json(f"reports/sample_{name}/metrics.json", f"sample_{name}") for name in SAMPLERS}
    write_results(scores, cost, pairs, bits, trips, arrays)


if __name__ == "__main__":
    run_stage(main, parallel="stages.evaluate")
