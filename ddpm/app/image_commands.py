"""Commands that go from one image to another, or fill a part of one: `interpolate` and `inpaint`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ddpm.app import options
from ddpm.app.options import IMAGE_HELP, OUT, WHAT, Columns, Image, Label, Seed, Text, Tile, gathered
from ddpm.app.terminal import say
from ddpm.files import InputError


@gathered(plan=options.plan, load=options.machine)
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
    from ddpm.app import orders, outputs, studio
    from ddpm.app.images import open_image
    from ddpm.params import lookup
    from ddpm.reporting.movies import FILMS, UPSCALING, strip_film, write_film
    from ddpm.reporting.pictures import save

    for name, given in (("label", label), ("text", text)):
        if given and len(given) > 2:
            raise InputError(f"{name}: {len(given)} were given for two images; give one or two")
    film = outputs.check_out(out, {".png": None, **FILMS}) != ".png"
    lookup(UPSCALING, upscaling, "upscaling")
    model, number = load(), number or (48 if film else 12)
    outputs.check_size(model.shape, tile, number, outputs.MOST_FILM_PIXELS // 2 if film else outputs.MOST_PIXELS)
    made = orders.make_plan(model, **plan)
    ends = [
        open_image(model, name, label and label[k % len(label)], text and text[k % len(text)], plan["guidance"])
        for k, name in enumerate((a, b))
    ]
    clock = outputs.Clock()
    work = studio.interpolate_images(model, made, ends[0].source, ends[1].source, number)
    images = outputs.pictures(made.label, work)
    if film:
        write_film(out, strip_film(images, 1, tile, upscaling), fps, 0.0)
    else:
        rows = outputs.rows_of([""] * number, columns or min(number, outputs.WIDEST_GRID))
        save(out, outputs.table([list(images[row]) for _, row in rows], [""] * len(rows), [], tile, upscaling))
    names = " to ".join(outputs.short(end.title) for end in ends)
    say(f"wrote {out}: {number:,} images from {names} by {made.label}, {clock}")


@gathered(plan=options.plan, load=options.machine)
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
    from ddpm.app import orders, outputs, studio
    from ddpm.app.images import open_image, open_mask
    from ddpm.app.sources import source_image
    from ddpm.data.batches import to_images
    from ddpm.sampling.grid import jumped

    outputs.check_out(out, [".png"])
    model = load()
    plain = orders.make_plan(model, **plan)
    named, known = open_image(model, image, label, text, plan["guidance"]), open_mask(mask, model.shape)
    room = len(set(plain.grid.tolist())) - 2
    resamples = resamples or (1 if model.network.masked or room < 1 else 10)
    change = partial(jumped, jump=jump or min(10, max(1, room)), resamples=resamples)
    made, clock = orders.make_plan(model, change, **plan), outputs.Clock()
    outputs.check_size(model.shape, tile, number + 2)
    x0 = source_image(model, named.source)
    work = studio.inpaint_images(
        model, made, x0.expand(number, -1, -1, -1), known, studio.repeated(named.source.labels, number), seed
    )
    fills = outputs.pictures(made.label, work)
    whole = to_images(x0)[0]
    outputs.write_beside(out, [("image", whole), ("known", outputs.tinted(whole, known))], [("", fills)], columns, tile)
    say(
        f"wrote {out}: {outputs.short(named.title)}, {mask} filled in {number:,} ways by {made.label}, "
        f"{made.nfe:,} network evaluations each, {clock}"
    )
