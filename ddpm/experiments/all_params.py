"""The whole of params.yaml as one model, to check a recipe. A stage reads only its own sections."""

from ddpm.core.device import Runtime
from ddpm.core.params import Section, Seed
from ddpm.datasets.registry import DatasetName
from ddpm.datasets.settings import PrepareData
from ddpm.diffusion.prediction import PredictionName
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.editing.stage_images import Edit
from ddpm.evaluation.evaluator import Evaluate
from ddpm.evaluation.guidance import Guidance
from ddpm.evaluation.sweep import Sweep
from ddpm.features.classifier import TrainClassifier
from ddpm.networks.registry import NetworkSettings
from ddpm.report.page import Report
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.training.settings import Train


class AllParams(Section):
    """The content of params.yaml."""

    dataset: DatasetName
    schedule: ScheduleName
    prediction: PredictionName
    seed: Seed
    prepare_data: PrepareData
    train_classifier: TrainClassifier
    diffusion: Diffusion
    model: NetworkSettings
    train: Train
    sample_ddpm: SampleDDPM
    sample_ddim: SampleDDIM
    guidance: Guidance
    edit: Edit
    evaluate: Evaluate
    sweep: Sweep
    report: Report
    runtime: Runtime
