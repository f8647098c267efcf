"""The options that commands share. Nothing here imports PyTorch, so that `--help` is quick."""

import inspect
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.core.files import InputError
from ddpm.sampling.names import MAX_SEED

if TYPE_CHECKING:
    from ddpm.sampling.model import DiffusionModel


WHAT, HOW, OUT, MODEL = "What", "How it is drawn", "What is written", "Model and machine"
MAX_STEPS, MAX_TILE, MAX_COLUMNS = 1_000_000, 512, 1000

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="CLASS", rich_help_panel=WHAT, show_default="every class in turn",
        help="Class to draw, by name or number; 'none' is no class. Repeat it for several in turn.",
    ),
]  # fmt: skip

Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", metavar="TEXT", rich_help_panel=WHAT, show_default=False,
        help="Caption to draw, for models that read (`info` lists their words). Repeat it for several in turn.",
    ),
]  # fmt: skip

Label = Annotated[
    str | None,
    typer.Option(
        "--label", metavar="CLASS", rich_help_panel=WHAT, show_default="the image's own class",
        help="What the model is told of the image: a class, by name or number; 'none' is no class.",
    ),
]  # fmt: skip

Text = Annotated[
    str | None,
    typer.Option(
        "--text", metavar="TEXT", rich_help_panel=WHAT, show_default=False,
        help="What a model that reads is told of the image, in place of a class.",
    ),
]  # fmt: skip

Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=MAX_SEED, metavar="SEED", rich_help_panel=WHAT,
        help="Decides the noise: the same seed gives the same images.",
    ),
]  # fmt: skip

IMAGE_HELP = "A picture's file, `test:3` for test image 3, or `seed:7` for the sample of seed 7."
Image = Annotated[str, typer.Argument(metavar="[IMAGE]", help=IMAGE_HELP)]

Tile = Annotated[
    int,
    typer.Option(
        "--tile", min=1, max=MAX_TILE, metavar="PIXELS", rich_help_panel=OUT,
        help="Enlarge images until their side is at least this.",
    ),
]  # fmt: skip

Columns = Annotated[
    int | None,
    typer.Option(
        "--columns", min=1, max=MAX_COLUMNS, metavar="NUMBER", rich_help_panel=OUT, show_default="by their number",
        help="Images in a row of a picture.",
    ),
]  # fmt: skip

Upscaling = Annotated[
    str,
    typer.Option(metavar="NAME", rich_help_panel=OUT, help="How images are enlarged: nearest, whole pixels, or smooth."),
]

Spacing = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=HOW,
        help="Which noise levels are visited: trailing, leading, linspace, quadratic, log_snr or karras.",
    ),
]  # fmt: skip

Thresholding = Annotated[
    str,
    typer.Option(metavar="NAME", rich_help_panel=HOW, help="How predictions are kept in range: clip, dynamic or none."),
]


def number(most: int, what: str, least: int = 1, **more: Any) -> Any:
    """The option --number, of `least` to `most`."""
    return typer.Option(
        "--number", "-n", min=least, max=most, metavar="NUMBER", rich_help_panel=WHAT, help=what, **more
    )  # fmt: skip


def out(what: str, **more: Any) -> Any:
    """The option --out."""
    return typer.Option("--out", "-o", metavar="FILE", rich_help_panel=OUT, help=what, **more)


def style(
    eta: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="NUMBER", rich_help_panel=HOW, help="Noise in each step of ddim: 0 none, 1 as in DDPM."
        ),
    ] = 0.0,
    spacing: Spacing = "trailing",
    guidance: Annotated[
        float,
        typer.Option(
            min=0,
            max=50,
            metavar="SCALE",
            rich_help_panel=HOW,
            help="How strongly images lean on their class or text: 0 not at all, 1 as trained, 2 to 4 more.",
        ),
    ] = 1.0,
    thresholding: Thresholding = "clip",
    variance: Annotated[
        str,
        typer.Option(metavar="NAME", rich_help_panel=HOW, help="Of the steps of sampler ddpm: small, large or learned."),
    ] = "small",
) -> dict[str, Any]:
    """Options of `orders.make_plan` that say how to draw, but for sampler and steps."""
    return locals()


def plan(
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=HOW, help="ddpm, ddim, euler, heun, ab2, dpmpp_2m or dpmpp_2m_sde."
        ),
    ] = "ddim",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_STEPS, metavar="NUMBER", rich_help_panel=HOW, show_default="50; all T of the model for ddpm",
            help="Steps from noise to image, up to the model's T: more are slower and finer.",
        ),
    ] = None,
    **rest: Any,
) -> dict[str, Any]:  # fmt: skip
    """Options of `orders.make_plan`."""
    return {"sampler": sampler, "steps": steps, **style(**rest)}


plan.__signature__ = inspect.Signature(
    [p for p in inspect.signature(plan).parameters.values() if p.kind is not p.VAR_KEYWORD]
    + list(inspect.signature(style).parameters.values())
)


def machine(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="FOLDER", rich_help_panel=MODEL, help="Folder of the trained model.")
    ] = Path("models/ddpm"),
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=MODEL,
            help="Weights: final, best or latest, or the width of an average made of the snapshots, such as 0.1.",
        ),
    ] = "final",
    device: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=MODEL, help="Where to compute: auto, cpu, cuda or mps.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, metavar="NUMBER", rich_help_panel=MODEL, show_default="one for each core", help="Threads on the CPU."
        ),
    ] = None,
) -> Callable[[], "DiffusionModel"]:  # fmt: skip
    """Options that say which model computes, and where; what they give loads it."""

    def load() -> "DiffusionModel":
        from ddpm.cli.info import load_model

        return load_model(model, checkpoint, device, threads)

    load.folder, load.checkpoint, load.device, load.threads = model, checkpoint, device, threads
    return load


def with_option_groups(**groups: Callable[..., Any]) -> Callable[[Callable], Callable]:
    """Decorator of a command: in place of its parameter NAME stand those of groups[NAME], which is called with their values.

    Raises InputError, when the command is called, for a number that is NaN, which no range refuses.
    """
    members = {name: list(inspect.signature(group).parameters.values()) for name, group in groups.items()}

    def decorate(command: Callable) -> Callable:
        own = inspect.signature(command, eval_str=True).parameters.values()
        expanded = [member for given in own for member in members.get(given.name, [given])]

        @wraps(command)
        def run(**values: Any) -> None:
            _refuse_nan(values)
            made = {name: group(**{m.name: values.pop(m.name) for m in members[name]}) for name, group in groups.items()}
            command(**values, **made)

        del run.__wrapped__
        run.__signature__ = inspect.Signature(expanded)
        run.__annotations__ = {given.name: given.annotation for given in expanded}
        return run

    return decorate


def _refuse_nan(values: dict[str, Any]) -> None:
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and math.isnan(number):
                raise InputError("nan is no number; give one", key=name)
