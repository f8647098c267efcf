"""Commands that change an image, or encode it and back: `edit` and `reconstruct`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ddpm.app import options
from ddpm.app.options import IMAGE_HELP, WHAT, Columns, Image, Label, Seed, Text, Tile, gathered
from ddpm.app.terminal import say

IMAGES = 8  # test images that `reconstruct` begins with, if nobody names others


@gathered(plan=options.plan, load=options.machine)
def edit(
    image: Image = "test:0",
    strength: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, metavar="NUMBER", rich_help_panel=WHAT, show_default="0.2, 0.4, 0.6, 0.8",
            help="How far from the image: 0 is the image itself, 1 another one. Repeat it for several.",
        ),
    ] = None,
    number: Annotated[int, options.number(100, "How many variants of each strength.")] = 8,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=WHAT,
            help="sdedit adds noise and takes it away again, which keeps the outline; latent mixes fresh noise into the noise "
            "that the image comes from.",
        ),
    ] = "sdedit",
    label: Label = None,
    text: Text = None,
    seed: Seed = 0,
    out: Annotated[Path, options.out("A .png with rows for each strength.")] = Path("out/edit.png"),
    columns: Columns = None,
    tile: Tile = 64,
    *,
    plan: dict,
    load: Callable,
) -> None:  # fmt: skip
    """Draw variants of an image, more or less like it; with another class or text, turn it into that."""
    from ddpm.app import orders, outputs
    from ddpm.app.images import open_image
    from ddpm.app.sources import EDITS, source_image
    from ddpm.data.batches import to_images
    from ddpm.params import lookup

    outputs.check_out(out, [".png"])
    way = lookup(EDITS, method, "method")
    model, strengths = load(), list(dict.fromkeys(strength or [0.2, 0.4, 0.6, 0.8]))
    outputs.check_size(model.shape, tile, (number + 1) * len(strengths))
    made, named = orders.make_plan(model, **plan), open_image(model, image, label, text, plan["guidance"])
    clock = outputs.Clock()
    whole = source_image(model, named.source, made if way.of_latents else None)
    source = named.source if way.of_latents else named.source._replace(image=whole)
    rows = [
        (f"{value:g}", outputs.pictures(f"strength {value:g}", way.vary(model, made, source, value, number, seed)))
        for value in strengths
    ]
    outputs.write_beside(out, [("image", to_images(whole)[0])], rows, columns, tile)
    say(f"wrote {out}: {outputs.short(named.title)}, {number:,} variants of each strength by {made.label}, {clock}")


@gathered(load=options.machine)
def reconstruct(
    image: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help=IMAGE_HELP, show_default="test:0 to test:7"),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=options.MOST_STEPS, metavar="NUMBER", rich_help_panel=WHAT, show_default="10, 20, 50, 100",
            help="Steps of DDIM in each direction: more come back more exactly. Repeat it for several.",
        ),
    ] = None,
    spacing: options.Spacing = "trailing",
    label: Label = None,
    text: Text = None,
    out: Annotated[Path, options.out("A .png: the images, and below them how they come back.")] = Path("out/reconstruct.png"),
    tile: Tile = 64,
    *,
    load: Callable,
) -> None:  # fmt: skip
    """Encode images to noise and back, to see what the model keeps of them (PSNR in dB, higher is better)."""
    from ddpm.app import orders, outputs, studio, views
    from ddpm.app.images import open_image
    from ddpm.app.sources import stacked
    from ddpm.data.batches import to_images
    from ddpm.data.prepared import open_test
    from ddpm.evaluation.reconstruction import psnr

    outputs.check_out(out, [".png"])
    model, names = load(), image or [f"test:{k}" for k in range(min(IMAGES, len(open_test()[1].images)))]
    counts = steps or [min(count, model.schedule.steps) for count in (10, 20, 50, 100)]
    plans = {count: orders.make_plan(model, steps=count, spacing=spacing) for count in counts}
    outputs.check_size(model.shape, tile, len(names) * (1 + len(plans)))
    named = [open_image(model, name, label, text) for name in names]
    images, groups = stacked(model, [given.source for given in named])
    rows, captions, clock = [list(to_images(images))], ["image"], outputs.Clock()
    say(f"{'steps':>5}{'evaluations':>14}{'mean PSNR':>12}{'lowest':>10}")
    for count, plan in plans.items():
        back = images.clone()
        for chosen, labels in groups:
            work = studio.reconstruct_images(model, plan, images[chosen], labels)
            back[chosen] = views.finished(outputs.shown(f"{count:,} steps", work))
        found = psnr(back, images)
        say(f"{count:>5,}{2 * plan.nfe:>14,}{found.mean():>9.2f} dB{found.min():>7.2f} dB")
        rows.append(list(to_images(back)))
        captions.append(f"{count:,} steps, {found.mean():.1f} dB")
    outputs.write_table(out, rows, captions, [given.caption or given.name for given in named], tile)
    say(f"wrote {out}: {len(named):,} images, encoded and decoded by DDIM, {clock}")
