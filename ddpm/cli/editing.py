"""The commands that start from images: `interpolate`, `inpaint`, `edit` and `reconstruct`."""

from functools import partial
from pathlib import Path

from ddpm.cli import options
from ddpm.core.files import InputError
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
    from ddpm.editing import tasks
    from ddpm.editing.inputs import open_image
    from ddpm.plots import image_grid
    from ddpm.plots.image_grid import rows_of, save, short, table
    from ddpm.plots.video import strip_film, write_film
    from ddpm.sampling.labels import split_labels
    from ddpm.sampling.progress import collect_images

    is_film = out.suffix.lower() != ".png"
    model, number = machine.load(), number or (48 if is_film else 12)
    label = split_labels(model, label or [])
    for name, values in (("label", label), ("text", text)):
        if values and len(values) > 2:
            raise InputError(f"{len(values)} values for two images; give one or two", key=name)
    output.check_size(model.shape, tile, number, output.MAX_FILM_PIXELS // 2 if is_film else output.MAX_PIXELS)
    made = plan.make(model)
    ends = [
        open_image(model, name, label and label[k % len(label)], text and text[k % len(text)], plan.guidance)
        for k, name in enumerate((a, b))
    ]
    clock = output.Clock()
    images = collect_images(made.label, tasks.interpolate_images(model, made, ends[0].source, ends[1].source, number))
    if is_film:
        write_film(out, strip_film(images, 1, tile, upscaling), fps, 0.0)
    else:
        rows = rows_of([""] * number, columns or min(number, image_grid.MAX_GRID_COLUMNS))
        save(out, table([list(images[row]) for _, row in rows], [""] * len(rows), [], tile, upscaling))
    names = " to ".join(short(end.title) for end in ends)
    clock.report(out, f"{number:,} images from {names} by {made.label}")


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
    from ddpm.data.images import to_images
    from ddpm.editing import tasks
    from ddpm.editing.inpaint import with_repaint_jumps
    from ddpm.editing.inputs import open_mask
    from ddpm.plots.image_grid import short, tinted
    from ddpm.sampling.progress import collect_images

    model = machine.load()
    named, known = source.open(model, plan.guidance), open_mask(mask, model.shape)
    longest_jump = len(plan.make(model).grid) - 2
    resamples = resamples or (1 if model.network.takes_mask or longest_jump < 1 else 10)
    change = partial(with_repaint_jumps, jump_length=jump or min(10, max(1, longest_jump)), jump_n_sample=resamples)
    made, clock = plan.make(model, change=change), output.Clock()
    output.check_size(model.shape, tile, number + 2)
    x0 = tasks.source_image(model, named.source)
    labels = tasks.repeat_labels(named.source.labels, number)
    work = tasks.inpaint_images(model, made, x0.expand(number, -1, -1, -1), known, labels, source.seed)
    fills = collect_images(made.label, work)
    whole = to_images(x0)[0]
    output.write_rows(out, [("image", whole), ("known", tinted(whole, known))], [("", fills)], columns, tile)
    filled = f"{mask} filled in {number:,} ways by {made.label}, {made.nfe:,} network evaluations each"
    clock.report(out, f"{short(named.title)}, {filled}")


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
    from ddpm.data.images import to_images
    from ddpm.editing.tasks import EDITS, source_image
    from ddpm.plots.image_grid import short
    from ddpm.sampling.progress import collect_images

    editor = EDITS[method]
    model, strengths = machine.load(), list(dict.fromkeys(strength or [0.2, 0.4, 0.6, 0.8]))
    output.check_size(model.shape, tile, (number + 1) * len(strengths))
    made, named = plan.make(model), source.open(model, plan.guidance)
    clock = output.Clock()
    whole = source_image(model, named.source, made if editor.uses_latent else None)
    start = named.source if editor.uses_latent else named.source._replace(image=whole)
    rows = [
        (f"{value:g}", collect_images(f"strength {value:g}", editor.apply(model, made, start, value, number, source.seed)))
        for value in strengths
    ]
    output.write_rows(out, [("image", to_images(whole)[0])], rows, columns, tile)
    clock.report(out, f"{short(named.title)}, {number:,} variants of each strength by {made.label}")


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
    from ddpm.data.images import to_images
    from ddpm.data.prepared import open_test
    from ddpm.editing import tasks
    from ddpm.editing.inputs import open_image
    from ddpm.evaluation.reconstruction import psnr
    from ddpm.plots.image_grid import save, table
    from ddpm.sampling import progress
    from ddpm.sampling.plan import make_plan

    model = machine.load()
    names = image or [f"test:{k}" for k in range(min(RECONSTRUCTED_IMAGES, len(open_test()[1].images)))]
    counts = steps or [min(count, model.schedule.steps) for count in (10, 20, 50, 100)]
    plans = {count: make_plan(model, steps=count, spacing=spacing) for count in counts}
    output.check_size(model.shape, tile, len(names) * (1 + len(plans)))
    named = [open_image(model, name, label, text) for name in names]
    images, groups = tasks.stack_sources(model, [one.source for one in named])
    rows, captions, clock = [list(to_images(images))], ["image"], output.Clock()
    print(f"{'steps':>5}{'evaluations':>14}{'mean PSNR':>12}{'lowest':>10}")
    for count, plan in plans.items():
        decoded = images.clone()
        for indices, labels in groups:
            work = tasks.reconstruct_images(model, plan, images[indices], labels)
            decoded[indices] = progress.final_images(progress.with_progress_bar(f"{count:,} steps", work))
        decibels = psnr(decoded, images)
        print(f"{count:>5,}{2 * plan.nfe:>14,}{decibels.mean():>9.2f} dB{decibels.min():>7.2f} dB")
        rows.append(list(to_images(decoded)))
        captions.append(f"{count:,} steps, {decibels.mean():.1f} dB")
    save(out, table(rows, captions, [one.caption or one.name for one in named], tile))
    clock.report(out, f"{len(named):,} images, encoded and decoded by DDIM")
