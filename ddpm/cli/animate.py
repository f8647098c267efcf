"""The command `animate`: films of sampling and of training."""

from pathlib import Path

from ddpm.cli import options
from ddpm.core.files import InputError, counted
from ddpm.core.limits import MAX_FRAMES
from ddpm.core.outputs import check_out
from ddpm.core.params import keys_of

MAX_STILL_FRAMES = 10  # more frames in a row would be too small to recognize


@options.with_option_groups
def animate(
    what: options.one_of(
        options.CONTENT, "Film", keys_of("cli/animations.py", "ANIMATIONS"),
        " denoising shows the noisy images above the predicted ones, grid the noisy images of a large grid, training samples of "
        "the snapshots of the training, in order.",
    ) = "denoising",
    number: options.number(100, "Number of images.", int | None, show_default="8 for denoising, else 50") = None,
    out: options.out(
        "A .gif or an .mp4; a .png shows frames in a row.", [*options.FILM_SUFFIXES, ".png"], Path | None,
        show_default="out/WHAT.gif",
    ) = None,
    frames: options.option(int, options.OUTPUT, "NUMBER", "Largest number of frames.", min=1, max=MAX_FRAMES) = 48,
    fps: options.fps("Frames per second.") = 12.0,
    hold: options.option(float, options.OUTPUT, "SECONDS", "Duration of the last frame.", min=0, max=60) = 2.0,
    columns: options.Columns = None,
    tile: options.Tile = 48,
    upscaling: options.Upscaling = "nearest",
    *,
    content: options.ContentOptions,
    plan: options.PlanOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Make a film of the denoising of images, or of the training of the model."""
    from ddpm.cli import animations, output
    from ddpm.plots.image_grid import save
    from ddpm.plots.video import write_film

    animation = animations.ANIMATIONS[what]
    if animation.of_snapshots and machine.checkpoint != "final":
        raise InputError("a film of the training uses the snapshots; leave the option out", key="checkpoint")
    out = out or Path(f"out/{what}.gif")
    is_still = out.suffix.lower() == ".png"
    if is_still and not animation.still:
        check_out(out, options.FILM_SUFFIXES)
    model, number = machine.load(), number or animation.number
    labels, _ = model.conditioning(number, content.label, content.text, plan.guidance)
    frames = min(frames, MAX_STILL_FRAMES) if is_still else frames
    settings = animations.AnimationOptions(number, labels, content.seed, frames, columns or min(number, 10), tile, upscaling)
    output.check_size(model.shape, tile, animation.copies * number * frames, output.MAX_FILM_PIXELS)
    made, clock = model.plan(**vars(plan)), output.Clock()
    if is_still:
        save(out, animation.still(model.diffusion, made, settings))
        clock.report(out, counted(number, "image"))
        return
    film = animation.film(model.diffusion, made, settings, model.folder)
    write_film(out, film, fps, hold)
    clock.report(out, f"{counted(len(film), 'frame')} of {counted(number, 'image')}")
