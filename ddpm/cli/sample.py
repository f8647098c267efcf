"""The commands that generate new images: `sample` and `compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.cli import options
from ddpm.core.files import counted
from ddpm.core.limits import MAX_SAMPLES, MAX_TIMESTEPS
from ddpm.core.params import keys_of, lookup

# The pairs of sampler and steps that `compare` uses without options, and the lists where only one of both is an option.
COMPARED = [("ddim", 10), ("ddim", 20), ("ddim", 50), ("dpmpp_2m", 10), ("ddpm", 100)]
COMPARED_SAMPLERS, COMPARED_STEPS = ["ddim", "dpmpp_2m", "ddpm"], [10, 20, 50]


@options.with_option_groups
def sample(
    number: options.number(MAX_SAMPLES, "Number of images.") = 100,
    out: options.out(
        "The suffix sets the format: .png is a grid, .npz holds arrays, none is a folder of PNG files.",
        keys_of("api/images.py", "WRITERS"),
    ) = Path("out/sample.png"),
    columns: options.Columns = None,
    tile: options.Tile = 48,
    batch: options.option(
        int, options.OUTPUT, "NUMBER", "Batch size; a smaller one needs less memory.", min=1, max=MAX_SAMPLES
    ) = 100,
    *,
    content: options.ContentOptions,
    plan: options.PlanOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Generate new images with the trained model."""
    from ddpm.cli import output

    model = machine.load()
    if out.suffix.lower() == ".png":
        output.check_size(model.shape, tile, number)
    clock = output.Clock()
    images = model.sample(number, content.label, content.text, content.seed, batch, **vars(plan))
    images.save(out, columns, tile)
    clock.report(out, f"{counted(number, 'image')} by {images.sampler}, {counted(images.nfe, 'network evaluation')} each")


@options.with_option_groups
def compare(
    sampler: options.one_of(
        options.CONTENT, "Sampler", options.SAMPLERS, " Repeat it for several.", list[str] | None,
        show_default=", ".join(COMPARED_SAMPLERS),
    ) = None,
    steps: options.option(
        list[int] | None, options.CONTENT, "NUMBER", "Number of sampling steps of each sampler. Repeat it for several.",
        min=1, max=MAX_TIMESTEPS, show_default="10, 20, 50",
    ) = None,
    number: options.number(50, "Number of images of each sampler and number of steps.") = 10,
    out: options.out("A .png with a row for each sampler and number of steps.", [".png"]) = Path("out/compare.png"),
    tile: options.Tile = 48,
    *,
    content: options.ContentOptions,
    style: options.StyleOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Draw one picture with a row of images for each sampler and number of steps, all rows from the same noise.

    Without --sampler and --steps the rows are ddim with 10, 20 and 50 steps, dpmpp_2m with 10, and ddpm with 100. With one of
    both, the other takes its default. A line for each row tells its network evaluations and seconds.
    """
    from ddpm.cli import output
    from ddpm.plots.image_grid import save, table

    model = machine.load()
    pairs = [(name, count) for name in sampler or COMPARED_SAMPLERS for count in steps or COMPARED_STEPS]
    if not sampler and not steps:
        pairs = [(name, min(count, model.timesteps)) for name, count in COMPARED]
    pairs = list(dict.fromkeys(pairs))
    styles = _styles([name for name, _ in pairs], vars(style))
    options = [{"sampler": name, "steps": count, **styles[name]} for name, count in pairs]
    for each in options:  # all of them before the first image
        model.plan(**each)
    output.check_size(model.shape, tile, number * len(pairs))
    rows, names, whole = [], [], output.Clock()
    for each in options:
        clock, images = output.Clock(), model.sample(number, content.label, content.text, content.seed, **each)
        name = f"{images.sampler}, {counted(each['steps'], 'step')}"
        rows.append(images)
        names.append(name)
        print(f"{name:<34}{counted(images.nfe, 'network evaluation'):>28} each{clock!s:>9}", flush=True)
    save(out, table(rows, names, images.captions, tile))
    whole.report(out, f"{counted(number, 'image')} by {counted(len(rows), 'sampling')} of the same noise")


def _styles(samplers: Sequence[str], style: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the style of each sampler, without the options that only other samplers of the list take.

    An option that none of them takes is kept, so that `make_plan` refuses it. Raises InputError for an unknown sampler.
    """
    from ddpm.sampling.samplers import SAMPLERS

    own = {name: {*lookup(SAMPLERS, name, "sampler").options} for name in samplers}
    taken = set().union(*own.values())
    return {name: {key: value for key, value in style.items() if key not in taken - own[name]} for name in samplers}
