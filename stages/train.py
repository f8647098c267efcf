"""data/prepared -> models/ddpm: trains the network, and resumes a killed training or, with train.continue, a finished one."""

import torch

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime, compiled, limit_threads, setup
from ddpm.core.scratch import fresh_start
from ddpm.core.seeds import seed_of
from ddpm.core.stage import run_stage
from ddpm.data.loader import Batches
from ddpm.data.prepared import open_prepared
from ddpm.diffusion.prediction import PredictionName, check_prediction
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.networks.checkpoints import make_config
from ddpm.networks.registry import NetworkSettings, make_network
from ddpm.training.artifacts import TrainingArtifacts
from ddpm.training.checkpoint import ResumeState, environment, fingerprint, stage_inputs
from ddpm.training.finished import begin
from ddpm.training.initial import open_initial, start_from
from ddpm.training.loop import Hooks, train
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer


def main() -> None:
    p = params.load(
        dataset=str, schedule=ScheduleName, prediction=PredictionName, seed=params.Seed, prepare_data=dict,
        diffusion=Diffusion, model=NetworkSettings, train=Train, runtime=Runtime,
    )  # fmt: skip
    device = setup(p.runtime)
    p.train.check_share(processes.world_size())
    data = open_prepared(p.dataset, p.prepare_data)
    schedule = p.diffusion.make(p.schedule)
    check_prediction(p.prediction, schedule)
    precision = Precision(p.runtime, device)
    initial = processes.from_rank0(lambda: open_initial(p.train))
    # The stages sample_* do not read data/prepared, so the model tells them how many images each class has.
    trained_on = data.identity() | {"class_counts": data.class_counts}
    config = make_config(p.model, p.schedule, p.prediction, p.diffusion, trained_on, p.train.model_dump(by_alias=True), p.seed)
    torch.manual_seed(seed_of(p.seed, "weights"))
    options = initial.network_options() if initial else {}
    network = make_network(p.model, p.diffusion, data.shape, data.class_names, augmented=p.train.augment > 0, **options)
    if initial:
        start_from(initial, network, config)
    network = network.to(device, memory_format=torch.channels_last)
    limit_threads(network, data.shape, p.train.batch_size)
    batches = Batches(data.train.images, data.train.labels, p.seed, device, p.train.flip, p.runtime.preload)

    trainer = Trainer(network, schedule, p.prediction, batches, p.train, p.seed, precision.autocast, precision.scaler)
    wrapped = processes.wrap_ddp(network, device)
    trainer.model = compiled(wrapped, p.runtime.compile, device, trainer.probe)
    score = None
    if p.train.score_every:
        # Late, and no dependency of this stage: a new sampler or classifier is no reason to train again.
        from ddpm.evaluation.training_fid import TrainingFID
        from ddpm.sampling.model import DiffusionModel

        model = DiffusionModel(network, schedule, p.prediction, trained_on)
        score = TrainingFID(model, data, p.train.score_samples, p.train.score_steps, p.seed)
        config["training"]["classifier_sha256"] = score.classifier_sha256

    saved, inputs = None, {}
    if processes.is_main_process():
        inputs = stage_inputs("train", score.INPUTS if score else ()) | ({"initial weights": initial.sha256} if initial else {})
        saved = ResumeState(fingerprint(inputs), environment(device, precision.dtype, trainer.model is not wrapped))
    state = processes.from_rank0(lambda: begin(saved, inputs, p.train, fresh=fresh_start()))
    if state:
        trainer.load_state_dict(state)
    artifacts = TrainingArtifacts(trainer, config, saved, inputs, p.runtime) if saved else None
    try:
        train(trainer, data.test, artifacts.hooks() if artifacts else Hooks(), score)
    except BaseException:
        if artifacts:
            artifacts.loggers.stop()
        raise
    if artifacts:
        artifacts.finish()


if __name__ == "__main__":
    memory = "train.batch_size, model.channels (or raise train.gradient_accumulation)"
    run_stage(main, parallel="stages.train", memory=memory, communicates=True)
