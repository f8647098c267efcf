"""Commands that exchange models with diffusers: `export` and `import`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli import options
from ddpm.cli.options import HOW, MODEL, OUT, WHAT, with_option_groups
from ddpm.cli.output import say

EXPORTED, IMPORTED = Path("out/diffusers"), Path("models/imported")
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", rich_help_panel=OUT, help="Folder to write.")]


@with_option_groups(load=options.machine)
def export(
    to: Annotated[
        str, typer.Option("--to", metavar="NAME", rich_help_panel=OUT, help="Format: diffusers, whose pipelines load it.")
    ] = "diffusers",
    out: Folder = EXPORTED,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", rich_help_panel=WHAT, show_default="nothing is told",
            help="Class that the export draws, by name or number: it becomes part of the weights; 'none' is no class.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", rich_help_panel=WHAT, show_default=False,
            help="Caption that the export draws, of models that read: it becomes part of the weights.",
        ),
    ] = None,
    keep_classes: Annotated[
        bool,
        typer.Option(
            "--keep-classes", rich_help_panel=WHAT,
            help="Export a network that takes a class, for programs of your own; pipelines then cannot draw with it.",
        ),
    ] = False,
    variance: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=HOW,
            help="Of the steps of DDPMPipeline: small, large, or learned, which DDIMPipeline then cannot read.",
        ),
    ] = "small",
    thresholding: options.Thresholding = "clip",
    timestep_spacing: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=HOW, help="Which noise levels a pipeline visits: trailing, leading or linspace."
        ),
    ] = "trailing",
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="NAME", rich_help_panel=OUT, show_default="mit; none for imported models",
            help="License that the model card names, as hubs write it.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=0, max=1000, metavar="NUMBER", rich_help_panel=OUT, help="Images in the model card's picture; 0: none."),
    ] = 20,
    *,
    load: Callable,
) -> None:  # fmt: skip
    """Write the trained model as a folder for diffusers, with a model card, ready to be pushed to a hub."""
    from ddpm.core.files import read_json
    from ddpm.core.params import lookup
    from ddpm.diffusers_io import model_card
    from ddpm.diffusers_io.export import FORMATS, ExportOptions, check_out
    from ddpm.networks.checkpoints import CONFIG

    write = lookup(FORMATS, to, "to")
    check_out(out)
    model = load()
    config = read_json(load.folder / CONFIG, "train")
    own = config["data"].get("dataset") != model_card.IMPORTED
    facts = model_card.CardInfo(
        checkpoint=load.checkpoint,
        conditional=model.network.takes_labels,
        masked=model.network.takes_mask,
        keep_classes=keep_classes,
        variance=variance,
        license=license_name or (model_card.LICENSE if own else None),
        scores=model_card.read_scores(load.folder, load.checkpoint, thresholding),
    )
    wishes = ExportOptions(label, text, keep_classes, variance, thresholding, timestep_spacing)
    weights = write(model, config, out, wishes, facts, samples)
    count = sum(value.numel() for value in weights.values())
    use = "UNet2DModel, which takes a class" if keep_classes else "DDPMPipeline" + (" and DDIMPipeline") * (variance != "learned")
    say(f"wrote {out}: {count:,} parameters, for diffusers' {use}")


def import_model(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Folder that diffusers has saved a DDPM's pipeline or its U-Net to.")
    ] = EXPORTED,
    out: Folder = IMPORTED,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, metavar="PIXELS", rich_help_panel=MODEL, show_default="as its config says",
            help="Side of its images, for a model whose config says none.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Read a model of the DDPM family that diffusers has saved, for all that this program does with its own."""
    from ddpm.diffusers_io.import_ import check_out, read_folder, write_model

    check_out(out)
    found = read_folder(folder, size)
    write_model(found, out)
    height, width, _ = found.config["data"]["shape"]
    count = sum(value.numel() for value in found.weights.values())
    for note in found.notes:
        say(f"note: {note}")
    say(f"wrote {out}: {count:,} parameters, for images of {height}x{width}; draw with `python -m ddpm sample --model {out}`")


# The command's name, which is a word of Python's own.
import_model.__name__ = "import"
