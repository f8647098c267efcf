"""The films that `animate` makes: of noise that becomes images, and of a training."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli import options
from ddpm.cli.options import OUT, WHAT, Columns, Labels, Seed, Texts, Tile, with_option_groups
from ddpm.cli.output import say
from ddpm.core.files import InputError

MOMENTS = 10  # in a picture, at most: more would be too small to see


@with_option_groups(plan=options.plan, load=options.machine)
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
    from ddpm.cli import animations, output
    from ddpm.core.params import lookup
    from ddpm.plots.image_grid import UPSCALING, save
    from ddpm.plots.video import FILMS, write_film
    from ddpm.sampling.model import tell

    subject = lookup(animations.ANIMATIONS, what, "what")
    lookup(UPSCALING, upscaling, "upscaling")
    if subject.of_snapshots and load.checkpoint != "final":
        raise InputError(f"a film of the training shows its snapshots, not {load.checkpoint!r}; leave it out", key="checkpoint")
    out = out or Path(f"out/{what}.gif")
    still = output.check_out(out, {**FILMS, ".png": save} if subject.still else FILMS) == ".png"
    model, number = load(), number or subject.number
    told, _ = tell(model, number, label or [], text or [], plan["guidance"])
    shot = animations.AnimationOptions(number, told, seed, frames, columns or min(number, 10), tile, upscaling)
    output.check_size(model.shape, tile, subject.copies * number * frames, output.MAX_FILM_PIXELS)
    clock = output.Clock()
    if still:
        save(out, subject.still(model, plan, shot._replace(frames=min(frames, MOMENTS))))
        say(f"wrote {out}: {number:,} images on their way, {clock}")
        return
    shots = subject.film(model, plan, shot, load.folder)
    write_film(out, shots, fps, hold)
    say(f"wrote {out}: {len(shots)} frames of {number:,} images, {clock}")
