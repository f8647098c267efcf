"""The commands that start from images: `interpolate`, `inpaint`, `edit` and `reconstruct`."""

from pathlib import Path

from ddpm.cli import options
from ddpm.core.files import counted
from ddpm.core.limits import MAX_RESAMPLES, MAX_TIMESTEPS
from ddpm.core.params import keys_of
from ddpm.editing.names import check_mask

MASKS = keys_of("editing/inpaint.py", "MASKS")
RECONSTRUCTED_IMAGES = 8  # test images that `reconstruct` uses without arguments


@options.with_option_groups
def interpolate(
    a: options.image_argument("[A]") = "seed:2",
    b: options.image_argument("[B]", help="The other image, in the same notation.") = "seed:7",
    number: options.number(
        1000, "Number of images, including both ends.", int | None, least=2, show_default="12, in a film 48"
    ) = None,
    label: options.option(
        list[str] | None, options.CONTENT, "CLASS", "Class of both images (conditioning). Give it twice for A and B.",
        show_default="the images' own",
    ) = None,
    text: options.option(
        list[str] | None, options.CONTENT, "TEXT",
        "Caption of both images, for text-conditional models. Give it twice for A and B.",
    ) = None,
    out: options.out(
        "A .png shows the images in rows; a .gif or an .mp4 runs forward and back.", [".png", *options.FILM_SUFFIXES]
    ) = Path("out/interpolate.png"),
    fps: options.fps("Frames per second of a film.") = 16.0,
    columns: options.Columns = None,
    tile: options.Tile = 64,
    upscaling: options.Upscaling = "nearest",
    *,
    plan: options.PlanOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Interpolate between two images in the latent space of the model."""
    from ddpm.cli import output
    from ddpm.plots.image_grid import short
    from ddpm.plots.video import strip_film, write_film

    is_film = out.suffix.lower() != ".png"
    model, number = machine.load(), number or (48 if is_film else 12)
    output.check_size(model.shape, tile, number, output.MAX_FILM_PIXELS // 2 if is_film else output.MAX_PIXELS)
    clock = output.Clock()
    images = model.interpolate(a, b, number, label, text, **vars(plan))
    if is_film:
        write_film(out, strip_film(images.array, 1, tile, upscaling), fps, 0.0)
    else:
        images.save(out, columns, tile, upscaling)
    names = " to ".join(short(title) for title in images.titles)
    clock.report(out, f"{counted(number, 'image')} from {names} by {images.sampler}")


@options.with_option_groups
def inpaint(
    mask: options.option(
        str, options.CONTENT, "NAME|FILE", f"Region to fill: {', '.join(MASKS)}, or an image file that is white there.",
        callback=options.checked(lambda name: check_mask(name, MASKS)),
    ) = "middle",
    number: options.number(100, "Number of fills.") = 8,
    jump: options.option(
        int | None, options.SAMPLING, "STEPS", "RePaint's jump length: steps that are re-noised and denoised again.",
        min=1, max=MAX_TIMESTEPS, show_default="10, or fewer if the grid is short",
    ) = None,
    resamples: options.option(
        int | None, options.SAMPLING, "NUMBER",
        "RePaint's number of resamplings: how often each step is denoised. The cost grows with it.",
        min=1, max=MAX_RESAMPLES, show_default="10, or 1 for a model trained with masks",
    ) = None,
    out: options.out("A .png: the image, its known pixels, and the fills.", [".png"]) = Path("out/inpaint.png"),
    columns: options.Columns = None,
    tile: options.Tile = 64,
    *,
    source: options.SourceOptions,
    plan: options.PlanOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Fill a region of an image in several ways and keep the other pixels."""
    from ddpm.cli import output
    from ddpm.plots.image_grid import short

    model, clock = machine.load(), output.Clock()
    output.check_size(model.shape, tile, number + 2)
    fills = model.inpaint(mask=mask, number=number, jump=jump, resamples=resamples, **vars(source), **vars(plan))
    fills.save(out, columns, tile)
    filled = f"{mask} filled in {counted(number, 'way')} by {fills.sampler}, {counted(fills.nfe, 'network evaluation')} each"
    clock.report(out, f"{short(fills.titles[0])}, {filled}")


@options.with_option_groups
def edit(
    strength: options.option(
        list[float] | None, options.CONTENT, "NUMBER",
        "Distance from the image: 0 is the image itself, 1 an unrelated one. Repeat it for several.",
        min=0, max=1, show_default="0.2, 0.4, 0.6, 0.8",
    ) = None,
    number: options.number(100, "Number of variants of each strength.") = 8,
    method: options.one_of(
        options.CONTENT, "Method", keys_of("editing/tasks.py", "EDITS"),
        " sdedit adds noise to the image and denoises it, which keeps the outline; latent mixes noise into the image's latent.",
    ) = "sdedit",
    out: options.out("A .png with rows for each strength.", [".png"]) = Path("out/edit.png"),
    columns: options.Columns = None,
    tile: options.Tile = 64,
    *,
    source: options.SourceOptions,
    plan: options.PlanOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Generate variants of an image, also of another class or text."""
    from ddpm.cli import output
    from ddpm.plots.image_grid import short

    model, strengths = machine.load(), list(dict.fromkeys(strength or [0.2, 0.4, 0.6, 0.8]))
    output.check_size(model.shape, tile, (number + 1) * len(strengths))
    clock = output.Clock()
    variants = model.edit(strength=strengths, number=number, method=method, **vars(source), **vars(plan))
    variants.save(out, columns, tile)
    clock.report(out, f"{short(variants.titles[0])}, {number:,} variants of each strength by {variants.sampler}")


@options.with_option_groups
def reconstruct(
    image: options.image_argument("[IMAGE]...", list[str] | None, show_default="test:0 to test:7") = None,
    steps: options.option(
        list[int] | None, options.CONTENT, "NUMBER",
        "Number of DDIM steps in each direction: more of them reconstruct more exactly. Repeat it for several.",
        min=1, max=MAX_TIMESTEPS, show_default="10, 20, 50, 100",
    ) = None,
    spacing: options.Spacing = "trailing",
    label: options.Label = None,
    text: options.Text = None,
    out: options.out("A .png: the images, and their reconstructions below.", [".png"]) = Path("out/reconstruct.png"),
    tile: options.Tile = 64,
    *,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Encode images to noise by DDIM inversion, decode them, and print the PSNR in dB (higher is better)."""
    from ddpm.cli import output
    from ddpm.data.prepared import open_test
    from ddpm.plots.image_grid import save, table

    model = machine.load()
    names = image or [f"test:{k}" for k in range(min(RECONSTRUCTED_IMAGES, len(open_test()[1].images)))]
    counts = dict.fromkeys(steps or [min(count, model.timesteps) for count in (10, 20, 50, 100)])
    for count in counts:  # all of them before the first image
        model.plan(steps=count, spacing=spacing)
    output.check_size(model.shape, tile, len(names) * (1 + len(counts)))
    named = [model.open(name, label, text, decode=True) for name in names]
    rows, captions, clock = [], ["image"], output.Clock()
    print(f"{'steps':>5}{'evaluations':>14}{'mean PSNR':>12}{'lowest':>10}")
    for count in counts:
        decoded, decibels = model.reconstruct(named, count, spacing=spacing)
        print(f"{count:>5,}{decoded.nfe:>14,}{decibels.mean():>9.2f} dB{decibels.min():>7.2f} dB")
        rows.append(decoded)
        captions.append(f"{counted(count, 'step')}, {decibels.mean():.1f} dB")
    titles, originals = zip(*decoded.inputs, strict=True)
    save(out, table([originals, *rows], captions, titles, tile))
    clock.report(out, f"{counted(len(names), 'image')}, encoded and decoded by DDIM")
