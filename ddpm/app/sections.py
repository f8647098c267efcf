"""Every section of params.yaml as one, for those who check all of it. A stage reads its own alone."""

from ddpm.app.showcase import Edit
from ddpm.data.datasets import DatasetName
from ddpm.data.prepared import PrepareData
from ddpm.diffusion.parameterization import PredictionName
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.evaluation.guidance import Guidance
from ddpm.evaluation.scores import Evaluate
from ddpm.evaluation.sweep import Sweep
from ddpm.judge.classifier import TrainClassifier
from ddpm.networks.unet import UNetSettings
from ddpm.params import Section, Seed
from ddpm.reporting.page import Report
from ddpm.runtime import Runtime
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.training.settings import Train


class Everything(Section):
    """The content of params.yaml."""

    dataset: DatasetName
    schedule: ScheduleName
    prediction: PredictionName
    seed: Seed
    prepare_data: PrepareData
    train_classifier: TrainClassifier
    diffusion: Diffusion
    model: UNetSettings
    train: Train
    sample_ddpm: SampleDDPM
    sample_ddim: SampleDDIM
    guidance: Guidance
    edit: Edit
    evaluate: Evaluate
    sweep: Sweep
    report: Report
    runtime: Runtime
