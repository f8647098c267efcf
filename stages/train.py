"""data/prepared -> models/ddpm: trains the U-Net, resuming where a killed training stopped."""

from pathlib import Path

import torch

from ddpm import params
from ddpm.data.batches import Batches
from ddpm.data.datasets import DatasetName
from ddpm.data.prepared import PrepareData, open_prepared
from ddpm.diffusion.parameterization import PredictionName, check_prediction
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.files import write_json
from ddpm.networks.store import CHECKPOINTS, CONFIG, make_config, make_network
from ddpm.networks.unet import UNetSettings
from ddpm.reporting.live import RunLog
from ddpm.runtime import Runtime, autocast, run_stage, seed_of, setup
from ddpm.training.checkpoint import ResumeState, stage_fingerprint
from ddpm.training.loop import Train, Trainer, train
from ddpm.weights import save_weights

MODEL = Path("models/ddpm")
REPORT = Path("reports/train")
PREVIEWS = "previews"


def main() -> None:
    p = params.load(
        dataset=DatasetName, schedule=ScheduleName, prediction=PredictionName, seed=params.Seed, prepare_data=PrepareData,
        diffusion=Diffusion, model=UNetSettings, train=Train, runtime=Runtime,
    )  # fmt: skip
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    schedule = p.diffusion.make(p.schedule)
    check_prediction(p.prediction, schedule)
    torch.manual_seed(seed_of(p.seed, "weights"))
    network = make_network(p.model, p.diffusion, data.shape, len(data.class_names)).to(device, memory_format=torch.channels_last)
    batches = Batches(data.train.images, data.train.labels, p.seed, device, p.train.flip)
    trainer = Trainer(network, schedule, p.prediction, batches, p.train, p.seed, lambda: autocast(p.runtime, device))
    config = make_config(p.model, p.schedule, p.prediction, p.diffusion, data.identity(), p.train.model_dump(), p.seed)

    saved = ResumeState(stage_fingerprint("train"))
    log = RunLog(REPORT)
    if state := saved.load(device):
        trainer.load_state_dict(state)
        for row in trainer.history:
            log.log(row, step="step")
        saved.publish(PREVIEWS, REPORT / PREVIEWS)
        print(f"resuming at step {trainer.step:,} of {p.train.steps:,}", flush=True)

    def preview(trainer: Trainer) -> None:
        # Imported late: no other stage reads a preview, so train does not depend on how it is drawn.
        from ddpm.reporting.pictures import plain_grid
        from ddpm.sampling.model import from_config
        from ddpm.sampling.preview import draw_preview

        with trainer.averaged() as averaged:
            images = draw_preview(from_config(averaged, config))
        plain_grid(saved.folder / PREVIEWS / f"step_{trainer.step:07d}.png", images, columns=10, tile=40)
        saved.publish(PREVIEWS, REPORT / PREVIEWS)

    write_json(MODEL / CONFIG, config)

    def checkpoint(trainer: Trainer) -> None:
        save_weights(MODEL / CHECKPOINTS["latest"], network.state_dict())
        saved.save(trainer.state_dict())

    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"U-Net with {parameters:,} parameters on {device}", flush=True)
    train(trainer, data.test, lambda row: log.log(row, step="step"), preview, checkpoint)
    save_weights(MODEL / CHECKPOINTS["final"], trainer.ema_weights())
    save_weights(MODEL / CHECKPOINTS["best"], trainer.best)
    log.close(parameters=parameters, best_validation_loss=trainer.best_loss)
    saved.discard()


if __name__ == "__main__":
    run_stage(main)
