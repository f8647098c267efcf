"""The options that several commands share. Nothing here imports PyTorch, so that `--help` is quick."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.core.files import InputError
from ddpm.core.paths import MODEL_DIR
from ddpm.sampling.names import MAX_GUIDANCE, MAX_SEED, SAMPLER_NAMES, SPACING_NAMES, THRESHOLD_NAMES, VARIANCE_NAMES

if TYPE_CHECKING:
    from ddpm.sampling.model import DiffusionModel

# Panels of the help.
CONTENT, SAMPLING, OUTPUT, MODEL = "Content", "Sampling", "Output", "Model and machine"
MAX_STEPS, MAX_TILE, MAX_COLUMNS = 1_000_000, 512, 1000


def option(panel: str, metavar: str, help: str, *names: str, **more: Any) -> Any:
    """Returns an option of a help panel; `names` and `more` are those of typer.Option."""
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=help, **more)


Labels = Annotated[
    list[str] | None,
    option(
        CONTENT, "CLASS", "Class of the images, by name or number; 'none' is no class. Repeat it for several classes in turn.",
        "--label", show_default="all classes in turn",
    ),
]  # fmt: skip
Texts = Annotated[
    list[str] | None,
    option(
        CONTENT, "TEXT",
        "Caption of the images, for text-conditional models (`info` lists their words). Repeat it for several in turn.",
        "--text", show_default=False,
    ),
]  # fmt: skip
Label = Annotated[
    str | None,
    option(
        CONTENT, "CLASS", "Class of the image (conditioning), by name or number; 'none' is no class.", "--label",
        show_default="the image's own class",
    ),
]  # fmt: skip
Text = Annotated[
    str | None,
    option(
        CONTENT, "TEXT", "Caption of the image, for text-conditional models, instead of a class.", "--text", show_default=False
    ),
]  # fmt: skip
Seed = Annotated[
    int, option(CONTENT, "SEED", "Seed of the noise: the same seed gives the same images.", "--seed", min=0, max=MAX_SEED)
]

IMAGE_HELP = "An image file, `test:3` for test image 3, or `seed:7` for the sample of seed 7."
Image = Annotated[str, typer.Argument(metavar="[IMAGE]", help=IMAGE_HELP)]

Tile = Annotated[
    int,
    option(
        OUTPUT, "PIXELS", "Images are enlarged by a whole factor until their longer side is at least this.", "--tile", min=1,
        max=MAX_TILE,
    ),
]  # fmt: skip
Columns = Annotated[
    int | None,
    option(OUTPUT, "NUMBER", "Images per row.", "--columns", min=1, max=MAX_COLUMNS, show_default="by the number of images"),
]
Upscaling = Annotated[str, option(OUTPUT, "NAME", "Interpolation of enlarged images: nearest or smooth.")]
Spacing = Annotated[str, option(SAMPLING, "NAME", f"Spacing of the noise levels: {', '.join(SPACING_NAMES)}.")]
Thresholding = Annotated[str, option(SAMPLING, "NAME", f"How predicted images are kept in range: {', '.join(THRESHOLD_NAMES)}.")]


def number(most: int, help: str, least: int = 1, **more: Any) -> Any:
    """Returns the option --number, with values from `least` to `most`."""
    return option(CONTENT, "NUMBER", help, "--number", "-n", min=least, max=most, **more)


def out(help: str, **more: Any) -> Any:
    """Returns the option --out."""
    return option(OUTPUT, "FILE", help, "--out", "-o", **more)


def fps(help: str) -> Any:
    """Returns the option --fps."""
    return option(OUTPUT, "NUMBER", help, min=0.1, max=60)


@dataclasses.dataclass
class _SamplerOptions:
    sampler: Annotated[str, option(SAMPLING, "NAME", f"Sampler: {', '.join(SAMPLER_NAMES)}.")] = "ddim"
    steps: Annotated[
        int | None,
        option(
            SAMPLING, "NUMBER", "Number of sampling steps, up to the model's T.", min=1, max=MAX_STEPS,
            show_default="50; all T of the model for ddpm",
        ),
    ] = None  # fmt: skip


@dataclasses.dataclass
class StyleOptions:
    """Options of `make_plan` except sampler and steps."""

    eta: Annotated[
        float,
        option(SAMPLING, "NUMBER", "Noise added in each step of ddim: 0 is deterministic, 1 is DDPM's amount.", min=0, max=1),
    ] = 0.0
    spacing: Spacing = "trailing"
    guidance: Annotated[
        float,
        option(
            SAMPLING, "SCALE",
            "Scale of classifier-free guidance: 0 is unconditional, 1 is off, 2 to 4 strengthen the class or text.", min=0,
            max=MAX_GUIDANCE,
        ),
    ] = 1.0  # fmt: skip
    thresholding: Thresholding = "clip"
    variance: Annotated[str, option(SAMPLING, "NAME", f"Variance of the steps of ddpm: {', '.join(VARIANCE_NAMES)}.")] = "small"

    def as_dict(self) -> dict[str, Any]:
        """Returns the options as keyword arguments of `make_plan`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class PlanOptions(StyleOptions, _SamplerOptions):
    """Options of `make_plan`: sampler and steps, then those of StyleOptions."""


@dataclasses.dataclass
class MachineOptions:
    """The model folder, the checkpoint in it, and the device."""

    model: Annotated[Path, option(MODEL, "FOLDER", "Folder of the trained model.", "--model", "-m")] = MODEL_DIR
    checkpoint: Annotated[
        str,
        option(MODEL, "NAME", "Weights: final, best or latest, or a relative EMA width such as 0.1, rebuilt from the snapshots."),
    ] = "final"
    device: Annotated[str, option(MODEL, "NAME", "Device: auto, cpu, cuda or mps.")] = "auto"
    threads: Annotated[
        int | None, option(MODEL, "NUMBER", "Number of CPU threads.", min=1, max=1024, show_default="one for each core")
    ] = None

    def load(self) -> "DiffusionModel":
        """Loads the model on the device. Raises InputError if that is not possible."""
        from ddpm.cli.info import checkpoint_of, open_device
        from ddpm.sampling.model import load

        return load(checkpoint_of(self.checkpoint), open_device(self.device, self.threads), self.model)


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command: each parameter annotated with a dataclass is replaced by an option for each of its fields.

    The command raises InputError for an option that is NaN, which typer's ranges accept.
    """
    parameters = inspect.signature(command).parameters.values()
    groups = {param.name: param.annotation for param in parameters if dataclasses.is_dataclass(param.annotation)}
    options = []
    for param in parameters:
        if param.name in groups:
            fields = dataclasses.fields(groups[param.name])
            options += [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields]
        else:
            options.append(param.replace(kind=Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> None:
        _refuse_nan(values)
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(options)
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _refuse_nan(values: dict[str, Any]) -> None:
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and math.isnan(number):
                raise InputError("must not be nan; give a number", key=name)
