"""Commands that draw: `sample`, `compare` and `animate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm.app import options
from ddpm.app.options import OUT, WHAT, Columns, Labels, Seed, Texts, Tile, gathered
from ddpm.app.terminal import say
from ddpm.files import InputError

MOMENTS = 10  # in a picture, at most: more would be too small to see
# What `compare` draws if nobody says: pairs of sampler and steps.
COMPARED = [("ddim", 10), ("ddim", 20), ("ddim", 50), ("dpmpp_2m", 10), ("ddpm", 100)]


@gathered(plan=options.plan, load=options.machine)
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
    from ddpm.app import orders, outputs, studio

    suffix, model = outputs.check_out(out, outputs.SAMPLES), load()
    made = orders.make_plan(model, **plan)
    told, captions = orders.tell(model, number, label or [], text or [], plan["guidance"])
    if suffix == ".png":
        outputs.check_size(model.shape, tile, sum(len(row) for _, row in outputs.rows_of(captions, columns)))
    clock = outputs.Clock()
    images = outputs.pictures(made.label, studio.draw_images(model, made, told, number, seed, batch))
    seconds = str(clock)
    drawn = outputs.Drawn(images, captions, told, made.label)
    outputs.SAMPLES[suffix](out, drawn, outputs.Layout(columns, tile))
    say(f"wrote {out}: {number:,} images by {made.label}, {made.nfe:,} network evaluations each, {seconds}")


@gathered(style=options.style, load=options.machine)
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
            min=1, max=options.MOST_STEPS, metavar="NUMBER", rich_help_panel=WHAT, show_default="10, 20, 50",
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
    from ddpm.app import orders, outputs, studio

    outputs.check_out(out, [".png"])
    model = load()
    told, captions = orders.tell(model, number, label or [], text or [], style["guidance"])
    pairs = [(name, count) for name in sampler or ["ddim", "dpmpp_2m", "ddpm"] for count in steps or [10, 20, 50]]
    if not sampler and not steps:
        pairs = [(name, min(count, model.schedule.steps)) for name, count in COMPARED]
    pairs = list(dict.fromkeys(pairs))
    styles = _styles([name for name, _ in pairs], style)
    plans = [orders.make_plan(model, sampler=name, steps=count, **styles[name]) for name, count in pairs]
    outputs.check_size(model.shape, tile, number * len(plans))
    rows, names = [], []
    for (_, count), plan in zip(pairs, plans, strict=True):
        name, clock = f"{plan.label}, {count:,} steps", outputs.Clock()
        rows.append(outputs.pictures(name, studio.draw_images(model, plan, told, number, seed)))
        names.append(name)
        say(f"{name:<34}{plan.nfe:>6,} network evaluations each{clock!s:>9}")
    outputs.write_table(out, rows, names, captions, tile)
    say(f"wrote {out}: {number:,} images by {len(rows)} samplings of the same noise")


def _styles(samplers: Sequence[str], style: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The style of each sampler: without the options that only others of them use. Raises InputError for an unknown one."""
    from ddpm.app.orders import CHOICES
    from ddpm.params import lookup

    used = {name: {*lookup(CHOICES, name, "sampler").options} | ({"spacing"} if name != "ddpm" else set()) for name in samplers}
    # What none of them uses stays, to be refused.
    of_some = set().union(*used.values())
    return {name: {key: value for key, value in style.items() if key not in of_some - own} for name, own in used.items()}


@gathered(plan=options.plan, load=options.machine)
def animate(
    what: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=WHAT,
            help="denoising: noise becomes images, above the model's guess of them; grid: many images at once; training: what "
            "the model drew as it learned, from its snapshots.",
        ),
    ] = "denoising",
    number: Annotated[
        int | None, options.number(100, "How many images.", show_default="8 for denoising, else 50")
    ] = None,
    label: Labels = None,
    text: Texts = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, options.out("A .gif or an .mp4; a .png shows moments in a row.", show_default="out/WHAT.gif")
    ] = None,
    frames: Annotated[
        int, typer.Option(min=1, max=1000, metavar="NUMBER", rich_help_panel=OUT, help="At most so many frames.")
    ] = 48,
    fps: Annotated[
        float, typer.Option(min=0.1, max=60, metavar="NUMBER", rich_help_panel=OUT, help="Frames per second.")
    ] = 12.0,
    hold: Annotated[
        float, typer.Option(min=0, max=60, metavar="SECONDS", rich_help_panel=OUT, help="How long the last frame stays.")
    ] = 2.0,
    columns: Columns = None,
    tile: Tile = 48,
    upscaling: options.Upscaling = "nearest",
    *,
    plan: dict,
    load: Callable,
) -> None:  # fmt: skip
    """Make a film of noise that becomes images, or of a model that learns to draw."""
    from ddpm.app import orders, outputs, shots
    from ddpm.params import lookup
    from ddpm.reporting.movies import FILMS, UPSCALING, write_film
    from ddpm.reporting.pictures import save

    subject = lookup(shots.SUBJECTS, what, "what")
    lookup(UPSCALING, upscaling, "upscaling")
    if subject.of_snapshots and load.checkpoint != "final":
        raise InputError(f"checkpoint: a film of the training shows its snapshots, not {load.checkpoint!r}; leave it out")
    out = out or Path(f"out/{what}.gif")
    still = outputs.check_out(out, {**FILMS, ".png": save} if subject.still else FILMS) == ".png"
    model, number = load(), number or subject.number
    told, _ = orders.tell(model, number, label or [], text or [], plan["guidance"])
    shot = shots.Shot(number, told, seed, frames, columns or min(number, 10), tile, upscaling)
    outputs.check_size(model.shape, tile, subject.copies * number * frames, outputs.MOST_FILM_PIXELS)
    clock = outputs.Clock()
    if still:
        save(out, subject.still(model, plan, shot._replace(frames=min(frames, MOMENTS))))
        say(f"wrote {out}: {number:,} images on their way, {clock}")
        return
    shots = subject.film(model, plan, shot, load.folder)
    write_film(out, shots, fps, hold)
    say(f"wrote {out}: {len(shots)} frames of {number:,} images, {clock}")
