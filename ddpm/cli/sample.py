"""Commands that draw: `sample`, `compare` and `animate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm.cli import options
from ddpm.cli.options import OUT, WHAT, Columns, Labels, Seed, Texts, Tile, with_option_groups
from ddpm.cli.output import say

# What `compare` draws if nobody says: pairs of sampler and steps.
COMPARED = [("ddim", 10), ("ddim", 20), ("ddim", 50), ("dpmpp_2m", 10), ("ddpm", 100)]


@with_option_groups(plan=options.plan, load=options.machine)
def sample(
    number: Annotated[int, options.number(100_000, "How many images to draw.")] = 100,
    label: Labels = None,
    text: Texts = None,
    seed: Seed = 0,
    out: Annotated[
        Path, options.out("Its suffix decides: .png is a grid, .npz holds arrays, none makes a folder of PNGs.")
    ] = Path("out/sample.png"),
    columns: Columns = None,
    tile: Tile = 48,
    batch: Annotated[
        int,
        typer.Option(
            min=1, max=10_000, metavar="NUMBER", rich_help_panel=OUT, help="Images drawn at once: fewer need less memory."
        ),
    ] = 100,
    *,
    plan: dict,
    load: Callable,
) -> None:  # fmt: skip
    """Draw new images with the trained model."""
    from ddpm.cli import output
    from ddpm.plots import image_grid
    from ddpm.sampling import generate
    from ddpm.sampling.model import tell
    from ddpm.sampling.plan import make_plan
    from ddpm.sampling.progress import pictures

    suffix, model = output.check_out(out, output.SAMPLES), load()
    made = make_plan(model, **plan)
    told, captions = tell(model, number, label or [], text or [], plan["guidance"])
    if suffix == ".png":
        output.check_size(model.shape, tile, sum(len(row) for _, row in image_grid.rows_of(captions, columns)))
    clock = output.Clock()
    images = pictures(made.label, generate.draw_images(model, made, told, number, seed, batch))
    seconds = str(clock)
    drawn = output.Drawn(images, captions, told, made.label)
    output.SAMPLES[suffix](out, drawn, output.Layout(columns, tile))
    say(f"wrote {out}: {number:,} images by {made.label}, {made.nfe:,} network evaluations each, {seconds}")


@with_option_groups(style=options.style, load=options.machine)
def compare(
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", rich_help_panel=WHAT, show_default="ddim, dpmpp_2m, ddpm",
            help="Repeat it: ddpm, ddim, euler, heun, ab2, dpmpp_2m or dpmpp_2m_sde.",
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=options.MAX_STEPS, metavar="NUMBER", rich_help_panel=WHAT, show_default="10, 20, 50",
            help="Repeat it: each sampler takes each of these numbers of steps.",
        ),
    ] = None,
    number: Annotated[int, options.number(50, "How many images each of them draws.")] = 10,
    label: Labels = None,
    text: Texts = None,
    seed: Seed = 0,
    out: Annotated[Path, options.out("A .png with a row for each.")] = Path("out/compare.png"),
    tile: Tile = 48,
    *,
    style: dict,
    load: Callable,
) -> None:  # fmt: skip
    """Draw the same images, from the same noise, by several samplers and numbers of steps, to see what each is worth."""
    from ddpm.cli import output
    from ddpm.sampling import generate
    from ddpm.sampling.model import tell
    from ddpm.sampling.plan import make_plan
    from ddpm.sampling.progress import pictures

    output.check_out(out, [".png"])
    model = load()
    told, captions = tell(model, number, label or [], text or [], style["guidance"])
    pairs = [(name, count) for name in sampler or ["ddim", "dpmpp_2m", "ddpm"] for count in steps or [10, 20, 50]]
    if not sampler and not steps:
        pairs = [(name, min(count, model.schedule.steps)) for name, count in COMPARED]
    pairs = list(dict.fromkeys(pairs))
    styles = _styles([name for name, _ in pairs], style)
    plans = [make_plan(model, sampler=name, steps=count, **styles[name]) for name, count in pairs]
    output.check_size(model.shape, tile, number * len(plans))
    rows, names = [], []
    for (_, count), plan in zip(pairs, plans, strict=True):
        name, clock = f"{plan.label}, {count:,} steps", output.Clock()
        rows.append(pictures(name, generate.draw_images(model, plan, told, number, seed)))
        names.append(name)
        say(f"{name:<34}{plan.nfe:>6,} network evaluations each{clock!s:>9}")
    output.write_table(out, rows, names, captions, tile)
    say(f"wrote {out}: {number:,} images by {len(rows)} samplings of the same noise")


def _styles(samplers: Sequence[str], style: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The style of each sampler: without the options that only others of them use. Raises InputError for an unknown one."""
    from ddpm.core.params import lookup
    from ddpm.sampling.samplers import SAMPLERS

    used = {name: {*lookup(SAMPLERS, name, "sampler").options} for name in samplers}
    # What none of them uses stays, to be refused.
    of_some = set().union(*used.values())
    return {name: {key: value for key, value in style.items() if key not in of_some - own} for name, own in used.items()}
