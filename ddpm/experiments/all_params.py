"""The whole of params.yaml as one model: checks a recipe, and before each stage the sections of all stages.

A stage computes from its own sections alone.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
from torch.overrides import TorchFunctionMode

from ddpm.core.device import Runtime, process_count
from ddpm.core.files import InputError
from ddpm.core.logged_run import check_installed
from ddpm.core.params import PARAMS_FILE, UNDECLARED, Section, Seed, declared_sections, load
from ddpm.core.yaml_files import read_yaml
from ddpm.data.prepared import Prepared, open_prepared
from ddpm.datasets.registry import DATASETS, DatasetName
from ddpm.datasets.settings import NO_CLASSES, PrepareData
from ddpm.diffusion.prediction import PredictionName, check_prediction
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.distillation.settings import Distill
from ddpm.editing.stage_images import Edit
from ddpm.evaluation.evaluator import Evaluate
from ddpm.evaluation.guidance import Guidance
from ddpm.evaluation.prdc import MIN_IMAGES
from ddpm.evaluation.sweep import Sweep
from ddpm.features.classifier import TrainClassifier
from ddpm.networks.power_ema import TOLERANCE, from_snapshots, supported_range
from ddpm.networks.registry import NetworkSettings, make_network
from ddpm.report.settings import Report
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.training.artifacts import kept_snapshots
from ddpm.training.settings import Train

ANY_SIDE = 4096  # of images whose size the data will tell: any number of levels fits it

MAX_CHECKED_STEPS = 10**7  # of a training whose snapshots are listed, which takes seconds
MAX_PARAMETERS = 10**10  # 40 GB of weights, and as much again for each average, the gradient and the state of AdamW


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
    distill: Distill
    report: Report
    runtime: Runtime


KINDS = get_type_hints(AllParams, include_extras=True)  # section -> type, for `load`


def check_params() -> None:
    """Checks all of params.yaml and, where data/prepared fits it, the data: before a stage, so that none runs in vain.

    A section that params.yaml lacks is an error only where a stage of dvc.yaml declares it. Raises InputError for the first
    mistake.
    """
    wanted = declared_sections() | set(read_yaml(PARAMS_FILE)) | {UNDECLARED}
    kinds = {name: kind for name, kind in KINDS.items() if name in wanted}
    p = load(**kinds)
    check_installed(p.runtime.loggers)
    if kinds != KINDS:
        return  # a pipeline without some stages
    try:
        data = open_prepared(p.dataset, p.prepare_data.as_written())
    except InputError:
        data = None  # not prepared yet, or with other settings
    try:
        p.train.check_share(process_count(p.runtime, communicates=True))
        p.train.check_continue()
        _check_model(p, data)
        _check_counts(p, data)
    except InputError as error:  # of a setting, or of the names of the classes
        raise (error.within(PARAMS_FILE) if error.key.split(".")[0] in KINDS else error) from None


class _WithoutInit(TorchFunctionMode):
    """Skips the functions of torch.nn.init: for random values on the meta device PyTorch imports its compiler, for 2 s."""

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), keywords: dict | None = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*arguments, **(keywords or {}))


def _check_model(p: SimpleNamespace, data: Prepared | None) -> None:
    """Checks what the network, the samplers and the EMA can do with each other, on a network without memory."""
    schedule = p.diffusion.make(p.schedule)
    check_prediction(p.prediction, schedule)
    size = p.prepare_data.size() or (ANY_SIDE, ANY_SIDE)
    shape, class_names = (data.shape, data.class_names) if data else ((*size, 3), _expected_classes(p))
    with _WithoutInit(), torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = make_network(p.model, p.diffusion, shape, class_names, augmented=p.train.augment > 0)
    if (parameters := sum(tensor.numel() for tensor in network.parameters())) > MAX_PARAMETERS:
        message = f"the network would have {parameters:,} parameters (allowed: {MAX_PARAMETERS:,}); lower the model section"
        raise InputError(message, key="model")
    supports_cfg = network.takes_labels and p.train.condition_dropout > 0
    model = DiffusionModel(network, schedule, p.prediction, {"shape": shape, "class_names": class_names}, supports_cfg)
    for name in ("sample_ddpm", "sample_ddim"):
        try:
            getattr(p, name).plan(model)
        except InputError as error:
            raise error.within(PARAMS_FILE, f"{name}.") from None
    for name in ("sample_ddpm", "sample_ddim", "guidance", "edit", "evaluate", "sweep", "distill"):
        width = getattr(p, name).checkpoint
        if isinstance(width, float) and p.train.steps <= MAX_CHECKED_STEPS:
            _check_width(width, p.train, f"{name}.checkpoint")


def _expected_classes(p: SimpleNamespace) -> list[str]:
    """Returns names in place of those that the data will tell; none where params.yaml says that the images have no classes."""
    without = p.prepare_data.label == NO_CLASSES and "label" in DATASETS[p.dataset].optional_settings
    return [] if without else ["a", "b"]


def _check_width(width: float, train: Train, key: str) -> None:
    steps = kept_snapshots(train.snapshot_steps(train.steps), train.snapshots)
    if not steps:
        raise InputError(f"{width:g} needs snapshots of the training; set train.snapshots above 0", key=key)
    if from_snapshots(steps, width)[1] > TOLERANCE:
        low, high = supported_range(steps)
        message = f"{len(steps)} snapshots of the training give widths from {low:g} to {high:g}"
        raise InputError(f"{width:g} is out of reach: {message}; choose one, or lower train.snapshot_every", key=key)


def _check_counts(p: SimpleNamespace, data: Prepared | None) -> None:
    for name in ("sample_ddpm", "sample_ddim", "guidance"):
        if (samples := getattr(p, name).samples) < MIN_IMAGES:
            raise InputError(f"{samples} samples cannot be scored; use at least {MIN_IMAGES}", key=f"{name}.samples")
    if data and (count := len(data.test.images)) < MIN_IMAGES:
        message = f"{count} test images are too few for the scores, which need {MIN_IMAGES}; raise it, or add images"
        raise InputError(message, key="prepare_data.test_share")
