"""Commands that go from one image to another, or fill a part of one: `interpolate` and `inpaint`.

Commands that change an image, or encode it and back: `edit` and `reconstruct`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli import options
from ddpm.cli.options import IMAGE_HELP, OUT, WHAT, Columns, Image, Label, Seed, Text, Tile, with_option_groups
from ddpm.cli.output import say
from ddpm.core.files import InputError


@with_option_groups(plan=options.plan, load=options.machine)
def interpolate(
    a: Annotated[str, typer.Argument(metavar="[A]", help=IMAGE_HELP)] = "seed:2",
    b: Annotated[str, typer.Argument(metavar="[B]", help="The other image, named in the same way.")] = "seed:7",
    number: Annotated[
        int | None,
        options.number(1000, "How many images, both ends included.", least=2, show_default="12, in a film 48"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="CLASS", rich_help_panel=WHAT, show_default="the images' own",
            help="What the model is told of both images: their class. Give it twice for A and B.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="TEXT", rich_help_panel=WHAT, show_default=False,
            help="What a model that reads is told of both images. Give it twice for A and B.",
        ),
    ] = None,
    out: Annotated[
        Path, options.out("A .png shows them in a row; a .gif or an .mp4 goes forth and back.")
    ] = Path("out/interpolate.png"),
    fps: Annotated[
        float, typer.Option(min=0.1, max=60, metavar="NUMBER", rich_help_panel=OUT, help="Frames per second of a film.")
    ] = 16.0,
    columns: Columns = None,
    tile: Tile = 64,
    upscaling: options.Upscaling = "nearest",
    *,
    plan: dict,
    load: Callable,
) -> None:  # fmt: skip
    """Lead from one image to another, through images that lie between them for the model."""
    from ddpm.cli import output
    from ddpm.core.params import lookup
    from ddpm.editing import tasks
    from ddpm.editing.inputs import open_image
    from ddpm.plots import image_grid
    from ddpm.plots.image_grid import UPSCALING, rows_of, save, short, table
    from ddpm.plots.video import FILMS, strip_film, write_film
    from ddpm.sampling.plan import make_plan
    from ddpm.sampling.progress import pictures

    for name, given in (("label", label), ("text", text)):
        if given and len(given) > 2:
            raise InputError(f"{len(given)} were given for two images; give one or two", key=name)
    film = output.check_out(out, {".png": None, **FILMS}) != ".png"
    lookup(UPSCALING, upscaling, "upscaling")
    model, number = load(), number or (48 if film else 12)
    output.check_size(model.shape, tile, number, output.MAX_FILM_PIXELS // 2 if film else output.MAX_PIXELS)
    made = make_plan(model, **plan)
    ends = [
        open_image(model, name, label and label[k % len(label)], text and text[k % len(text)], plan["guidance"])
        for k, name in enumerate((a, b))
    ]
    clock = output.Clock()
    work = tasks.interpolate_images(model, made, ends[0].source, ends[1].source, number)
    images = pictures(made.label, work)
    if film:
        write_film(out, strip_film(images, 1, tile, upscaling), fps, 0.0)
    else:
        rows = rows_of([""] * number, columns or min(number, image_grid.MAX_GRID_COLUMNS))
        save(out, table([list(images[row]) for _, row in rows], [""] * len(rows), [], tile, upscaling))
    names = " to ".join(short(end.title) for end in ends)
    say(f"wrote {out}: {number:,} images from {names} by {made.label}, {clock}")


@with_option_groups(plan=options.plan, load=options.machine)
def inpaint(
    image: Image = "test:0",
    mask: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE", rich_help_panel=WHAT,
            help="What to fill: left, right, top, bottom, middle, border or all, or a picture that is white there.",
        ),
    ] = "middle",
    number: Annotated[int, options.number(100, "How many ways to fill it.")] = 8,
    label: Label = None,
    text: Text = None,
    seed: Seed = 0,
    jump: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, metavar="STEPS", rich_help_panel=options.HOW, show_default="10, or what there is room for",
            help="How many steps up each repetition of RePaint begins.",
        ),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, metavar="NUMBER", rich_help_panel=options.HOW, show_default="10, or 1 for a model trained with masks",
            help="How often each stretch of steps is walked, so that fill and image come to agree: cost grows with it.",
        ),
    ] = None,
    out: Annotated[Path, options.out("A .png: the image, what is known of it, and the fills.")] = Path("out/inpaint.png"),
    columns: Columns = None,
    tile: Tile = 64,
    *,
    plan: dict,
    load: Callable,
) -> None:  # fmt: skip
    """Let the model fill a part of an image in several ways; the rest stays as it is."""
    from ddpm.cli import output
    from ddpm.data.images import to_images
    from ddpm.editing import tasks
    from ddpm.editing.inpaint import with_repaint_jumps
    from ddpm.editing.inputs import open_image, open_mask
    from ddpm.editing.tasks import source_image
    from ddpm.plots.image_grid import short, tinted
    from ddpm.sampling.plan import make_plan
    from ddpm.sampling.progress import pictures

    output.check_out(out, [".png"])
    model = load()
    plain = make_plan(model, **plan)
    named, known = open_image(model, image, label, text, plan["guidance"]), open_mask(mask, model.shape)
    room = len(set(plain.grid.tolist())) - 2
    resamples = resamples or (1 if model.network.takes_mask or room < 1 else 10)
    change = partial(with_repaint_jumps, jump=jump or min(10, max(1, room)), resamples=resamples)
    made, clock = make_plan(model, change=change, **plan), output.Clock()
    output.check_size(model.shape, tile, number + 2)
    x0 = source_image(model, named.source)
    work = tasks.inpaint_images(
        model, made, x0.expand(number, -1, -1, -1), known, tasks.repeated(named.source.labels, number), seed
    )
    fills = pictures(made.label, work)
    whole = to_images(x0)[0]
    output.write_beside(out, [("image", whole), ("known", tinted(whole, known))], [("", fills)], columns, tile)
    say(
        f"wrote {out}: {short(named.title)}, {mask} filled in {number:,} ways by {made.label}, "
        f"{made.nfe:,} network evaluations each, {clock}"
    )


IMAGES = 8  # test images that `reconstruct` begins with, if nobody names others


@with_option_groups(plan=options.plan, load=options.machine)
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
    from ddpm.cli import output
    from ddpm.core.params import lookup
    from ddpm.data.images import to_images
    from ddpm.editing.inputs import open_image
    from ddpm.editing.tasks import EDITS, source_image
    from ddpm.plots.image_grid import short
    from ddpm.sampling.plan import make_plan
    from ddpm.sampling.progress import pictures

    output.check_out(out, [".png"])
    way = lookup(EDITS, method, "method")
    model, strengths = load(), list(dict.fromkeys(strength or [0.2, 0.4, 0.6, 0.8]))
    output.check_size(model.shape, tile, (number + 1) * len(strengths))
    made, named = make_plan(model, **plan), open_image(model, image, label, text, plan["guidance"])
    clock = output.Clock()
    whole = source_image(model, named.source, made if way.of_latents else None)
    source = named.source if way.of_latents else named.source._replace(image=whole)
    rows = [
        (f"{value:g}", pictures(f"strength {value:g}", way.vary(model, made, source, value, number, seed))) for value in strengths
    ]
    output.write_beside(out, [("image", to_images(whole)[0])], rows, columns, tile)
    say(f"wrote {out}: {short(named.title)}, {number:,} variants of each strength by {made.label}, {clock}")


@with_option_groups(load=options.machine)
def reconstruct(
    image: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help=IMAGE_HELP, show_default="test:0 to test:7"),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=options.MAX_STEPS, metavar="NUMBER", rich_help_panel=WHAT, show_default="10, 20, 50, 100",
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
    from ddpm.cli import output
    from ddpm.data.images import to_images
    from ddpm.data.prepared import open_test
    from ddpm.editing import tasks
    from ddpm.editing.inputs import open_image
    from ddpm.editing.tasks import stacked
    from ddpm.evaluation.reconstruction import psnr
    from ddpm.sampling import progress
    from ddpm.sampling.plan import make_plan

    output.check_out(out, [".png"])
    model, names = load(), image or [f"test:{k}" for k in range(min(IMAGES, len(open_test()[1].images)))]
    counts = steps or [min(count, model.schedule.steps) for count in (10, 20, 50, 100)]
    plans = {count: make_plan(model, steps=count, spacing=spacing) for count in counts}
    output.check_size(model.shape, tile, len(names) * (1 + len(plans)))
    named = [open_image(model, name, label, text) for name in names]
    images, groups = stacked(model, [given.source for given in named])
    rows, captions, clock = [list(to_images(images))], ["image"], output.Clock()
    say(f"{'steps':>5}{'evaluations':>14}{'mean PSNR':>12}{'lowest':>10}")
    for count, plan in plans.items():
        back = images.clone()
        for chosen, labels in groups:
            work = tasks.reconstruct_images(model, plan, images[chosen], labels)
            back[chosen] = progress.final_images(progress.shown(f"{count:,} steps", work))
        found = psnr(back, images)
        say(f"{count:>5,}{2 * plan.nfe:>14,}{found.mean():>9.2f} dB{found.min():>7.2f} dB")
        rows.append(list(to_images(back)))
        captions.append(f"{count:,} steps, {found.mean():.1f} dB")
    output.write_table(out, rows, captions, [given.caption or given.name for given in named], tile)
    say(f"wrote {out}: {len(named):,} images, encoded and decoded by DDIM, {clock}")
