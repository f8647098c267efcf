"""The commands that exchange models with diffusers: `export` and `import`."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli import options
from ddpm.cli.options import CONTENT, MODEL, OUTPUT, SAMPLING, MachineOptions, option, with_option_groups
from ddpm.core.files import print_line
from ddpm.core.limits import MAX_SIDE
from ddpm.core.params import keys_of
from ddpm.diffusers_io import hub

FORMAT = "diffusers"
EXPORTED, IMPORTED = Path("out/diffusers"), Path("models/imported")
Folder = options.out("Folder to write.", metavar="FOLDER")


@with_option_groups
def export(
    to: options.one_of(OUTPUT, "Format of the export", [FORMAT]) = FORMAT,
    out: Folder = EXPORTED,
    label: option(
        str | None, CONTENT, "CLASS",
        "Class that the export generates, by name or number; it becomes part of the weights. 'none' is no class.",
        show_default="unconditional",
    ) = None,
    text: option(
        str | None, CONTENT, "TEXT",
        "Caption that the export generates, for text-conditional models; it becomes part of the weights.",
    ) = None,
    keep_classes: options.flag(
        CONTENT, "Export a class-conditional network for your own sampling loop; pipelines of diffusers cannot use it.",
        "--keep-classes",
    ) = False,
    variance: options.one_of(
        SAMPLING, "Variance of the steps of DDPMPipeline", options.VARIANCES, " DDIMPipeline cannot load learned."
    ) = "small",
    thresholding: options.Thresholding = "clip",
    timestep_spacing: options.one_of(
        SAMPLING, "Spacing of the noise levels of a pipeline", keys_of("diffusers_io/scheduler_config.py", "TIMESTEP_SPACINGS")
    ) = "trailing",
    license_name: option(
        str | None, OUTPUT, "NAME", "License in the model card, by the identifier that hubs use.", "--license",
        show_default="mit; none for imported models",
    ) = None,
    samples: option(int, OUTPUT, "NUMBER", "Number of images in the model card.", min=0, max=1000) = 20,
    push: option(
        str | None, OUTPUT, "OWNER/NAME",
        "Repository of the Hugging Face Hub to upload the folder to; it is made if it does not exist. Log in by `hf auth login`.",
        callback=options.checked(hub.check_name),
    ) = None,
    private: options.flag(OUTPUT, "If --push makes a repository, make a private one.", "--private") = False,
    *,
    machine: MachineOptions,
) -> None:  # fmt: skip
    """Write the trained model as a folder that diffusers loads, with a model card."""
    from ddpm.diffusers_io.export import ExportOptions, check_out, export
    from ddpm.report.model_scores import scores_of

    check_out(out)
    if push:
        hub.check_installed("push")
    model = machine.load()
    exported = ExportOptions(label, text, keep_classes, variance, thresholding, timestep_spacing, str(machine.checkpoint))
    scores, note = scores_of(model.folder)
    if note:
        print_line(note)
    weights = export(model.diffusion, model.config, out, exported, samples=samples, license=license_name, scores=scores)
    count = sum(value.numel() for value in weights.values())
    pipelines = "DDPMPipeline" + " and DDIMPipeline" * (variance != "learned")
    print_line(f"wrote {out}: {count:,} parameters, for diffusers' {'UNet2DModel with classes' if keep_classes else pipelines}")
    if push:
        print_line(f"uploaded it to {hub.push(out, push, private)}")


def import_model(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[FOLDER]", help="Folder of a DDPM pipeline or of its U-Net, saved by diffusers, or hf://OWNER/NAME[@REVISION]."
        ),
    ] = EXPORTED,
    out: Folder = IMPORTED,
    size: option(
        int | None, MODEL, "PIXELS", "Side of the images, for a model whose config.json has no sample_size.", min=1, max=MAX_SIDE,
        show_default="as in its config.json",
    ) = None,
) -> None:  # fmt: skip
    """Read a model of the DDPM family that diffusers has saved, for all other commands."""
    from ddpm.diffusers_io.import_ import check_out, read_folder, write_model

    check_out(out)
    imported = read_folder(hub.download(folder) if hub.is_address(folder) else folder, size)
    write_model(imported, out)
    height, width, _ = imported.config["data"]["shape"]
    count = sum(value.numel() for value in imported.weights.values())
    for note in imported.notes:
        print_line(f"note: {note}")
    print_line(f"wrote {out}: {count:,} parameters, for images of {height}x{width}; try `python -m ddpm sample --model {out}`")


# The name of the command is a keyword of Python.
import_model.__name__ = "import"
