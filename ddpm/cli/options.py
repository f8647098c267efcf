"""The options that several commands share. Nothing here imports PyTorch, so that `--help` is quick."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.api.model_folder import checkpoint_of, locate
from ddpm.core.files import InputError
from ddpm.core.limits import MAX_COLUMNS, MAX_GUIDANCE, MAX_SEED, MAX_THREADS, MAX_TILE, MAX_TIMESTEPS
from ddpm.core.outputs import check_name, check_out
from ddpm.core.params import keys_of, lookup
from ddpm.core.paths import MODEL_DIR
from ddpm.diffusers_io.hub import is_address
from ddpm.editing.names import image_name
from ddpm.networks.names import CHECKPOINTS

if TYPE_CHECKING:
    from ddpm.api.model import Model

# Panels of the help.
CONTENT, SAMPLING, OUTPUT, MODEL = "Content", "Sampling", "Output", "Model and machine"
SAMPLERS, VARIANCES = keys_of("sampling/samplers.py", "SAMPLERS"), keys_of("diffusion/variance.py", "VARIANCES")
FILM_SUFFIXES = keys_of("plots/video.py", "FILMS")


def option(kind: Any, panel: str | None, metavar: str, help: str, *names: str, **more: Any) -> Any:
    """Returns the annotation of an option: its type, the panel of the help, and the arguments of typer.Option."""
    return Annotated[kind, typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=help, **more)]


def flag(panel: str | None, help: str, *names: str) -> Any:
    """Returns the annotation of an option without a value."""
    return Annotated[bool, typer.Option(*names, rich_help_panel=panel, help=help)]


def checked(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Returns the callback of an option: an InputError of check(value) becomes an error of usage, before the command imports."""

    def callback(value: Any) -> Any:
        try:
            for one in value if isinstance(value, list) else [] if value is None else [value]:
                check(one)
        except InputError as error:
            # The key is the value itself, or else the option's name, which typer adds.
            raise typer.BadParameter(str(error) if error.key == str(one) else error.message) from None
        return value

    return callback


def completed(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns the completion of an option or argument that takes one of these names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def number(most: int, help: str, kind: Any = int, least: int = 1, **more: Any) -> Any:
    """Returns the option --number, with values from `least` to `most`."""
    return option(kind, CONTENT, "NUMBER", help, "--number", "-n", min=least, max=most, **more)


def out(help: str, suffixes: Iterable[str] | None = None, kind: Any = Path, metavar: str = "FILE", **more: Any) -> Any:
    """Returns the option --out, for a file with one of these suffixes ("" is a folder), or for what the command itself checks."""
    callback = checked(lambda path: check_out(path, suffixes) if suffixes else check_name(path))
    return option(kind, OUTPUT, metavar, help, "--out", "-o", callback=callback, **more)


def fps(help: str) -> Any:
    """Returns the option --fps."""
    return option(float, OUTPUT, "NUMBER", help, min=0.1, max=60)


def one_of(panel: str, help: str, names: Iterable[str], more_help: str = "", kind: Any = str, **more: Any) -> Any:
    """Returns an option that takes one of these names, or several if `kind` is a list; its help lists them."""
    callback = checked(lambda name: lookup(dict.fromkeys(names), name, ""))
    help = f"{help}: {', '.join(names)}.{more_help}"
    return option(kind, panel, "NAME", help, callback=callback, autocompletion=completed(names), **more)


Label = option(
    str | None, CONTENT, "CLASS", "Class of the image (conditioning), by name or number; 'none' is no class.",
    show_default="the image's own class",
)  # fmt: skip
Text = option(str | None, CONTENT, "TEXT", "Caption of the image, for text-conditional models, instead of a class.")
Seed = option(int, CONTENT, "SEED", "Seed of the noise: the same seed gives the same images.", min=0, max=MAX_SEED)


def image_argument(metavar: str, kind: Any = str, help: str = "", **more: Any) -> Any:
    """Returns the annotation of an argument that names an image, or several."""
    help = help or "An image file, `test:3` for test image 3, or `seed:7` for the sample of seed 7."
    return Annotated[kind, typer.Argument(metavar=metavar, help=help, callback=checked(image_name), **more)]


Tile = option(
    int, OUTPUT, "PIXELS", "Images are enlarged by a whole factor until their longer side is at least this.", min=1, max=MAX_TILE
)
Columns = option(int | None, OUTPUT, "NUMBER", "Images per row.", min=1, max=MAX_COLUMNS, show_default="by the number of images")
Upscaling = one_of(OUTPUT, "Interpolation of enlarged images", keys_of("plots/image_grid.py", "UPSCALING"))
Spacing = one_of(SAMPLING, "Spacing of the noise levels", keys_of("sampling/time_grid.py", "SPACINGS"))
Thresholding = one_of(SAMPLING, "How predicted images are kept in range", keys_of("sampling/denoiser.py", "THRESHOLDS"))


@dataclasses.dataclass
class _SamplerOptions:
    sampler: one_of(SAMPLING, "Sampler", SAMPLERS) = "ddim"
    steps: option(
        int | None, SAMPLING, "NUMBER", "Number of sampling steps, up to the model's T.", min=1, max=MAX_TIMESTEPS,
        show_default="50; all T of the model for ddpm",
    ) = None  # fmt: skip


@dataclasses.dataclass
class StyleOptions:
    """Options of `make_plan` except sampler and steps."""

    eta: option(
        float, SAMPLING, "NUMBER", "Noise added in each step of ddim: 0 is deterministic, 1 is DDPM's amount.", min=0, max=1
    ) = 0.0
    spacing: Spacing = "trailing"
    guidance: option(
        float, SAMPLING, "SCALE",
        "Scale of classifier-free guidance: 0 is unconditional, 1 is off, 2 to 4 strengthen the class or text.",
        min=0, max=MAX_GUIDANCE,
    ) = 1.0  # fmt: skip
    thresholding: Thresholding = "clip"
    variance: one_of(SAMPLING, "Variance of the steps of ddpm", VARIANCES) = "small"


@dataclasses.dataclass
class PlanOptions(StyleOptions, _SamplerOptions):
    """Options of `make_plan`: sampler and steps, then those of StyleOptions."""


@dataclasses.dataclass
class ContentOptions:
    """Classes or texts of new images, and their seed."""

    label: option(
        list[str] | None, CONTENT, "CLASS",
        "Class of the images, by name or number; 'none' is no class. Repeat it, or write 3,7, for several classes in turn.",
        show_default="all classes in turn",
    ) = None  # fmt: skip
    text: option(
        list[str] | None, CONTENT, "TEXT",
        "Caption of the images, for text-conditional models (`info` lists their words). Repeat it for several in turn.",
    ) = None  # fmt: skip
    seed: Seed = 0


@dataclasses.dataclass
class SourceOptions:
    """An image to edit, its class or text, and the seed of the edits."""

    image: image_argument("[IMAGE]") = "test:0"
    label: Label = None
    text: Text = None
    seed: Seed = 0


@dataclasses.dataclass
class MachineOptions:
    """The model folder, or its address on a hub as a text, the checkpoint in it, and the device."""

    model: option(
        Path, MODEL, "FOLDER", "Folder of the trained model, a file of weights in it, or hf://OWNER/NAME.", "--model", "-m"
    ) = MODEL_DIR
    checkpoint: option(
        str, MODEL, "NAME",
        f"Weights: {', '.join(CHECKPOINTS)}, or a relative EMA width such as 0.1, rebuilt from the snapshots.",
        callback=checked(checkpoint_of), autocompletion=completed(CHECKPOINTS),
    ) = "final"  # fmt: skip
    device: one_of(MODEL, "Device", keys_of("core/device.py", "DEVICES")) = "auto"
    threads: option(
        int | None, MODEL, "NUMBER", "Number of CPU threads.", min=1, max=MAX_THREADS,
        show_default="OMP_NUM_THREADS, else one for a small network and one per CPU for a large one",
    ) = None  # fmt: skip

    def __post_init__(self) -> None:
        if is_address(self.model):
            self.model = str(self.model).replace(":/", "://", 1)  # pathlib leaves one slash of two
        else:
            self.model, self.checkpoint = locate(self.model, self.checkpoint)

    def load(self) -> "Model":
        """Loads the model on the device. Raises InputError if that is not possible."""
        from ddpm.api.load import load, open_folder

        open_it = load if is_address(self.model) else open_folder
        return open_it(self.model, self.checkpoint, self.device, self.threads)


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
