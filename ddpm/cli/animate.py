"""The command `animate`: films of sampling and of training."""

from pathlib import Path

from ddpm.cli import options
from ddpm.core.files import InputError
from ddpm.core.outputs import check_out

ANIMATION_NAMES = ("denoising", "grid", "training")  # the keys of ANIMATIONS, whose module imports PyTorch
MAX_STILL_FRAMES = 10  # more frames in a row would be too small to recognize


@options.with_option_groups
def animate(
    what: options.one_of(
        options.CONTENT, "Film", ANIMATION_NAMES,
        " denoising shows the noisy images above the predicted ones, grid the noisy images of a large grid, training samples of "
        "the snapshots of the training, in order.",
    ) = "denoising",
    number: options.number(100, "Number of images.", int | None, show_default="8 for denoising, else 50") = None,
    label: options.Labels = None,
    text: options.Texts = None,
    seed: options.Seed = 0,
    out: options.out(
        "A .gif or an .mp4; a .png shows frames in a row.", [*options.FILM_SUFFIXES, ".png"], Path | None,
        show_default="out/WHAT.gif",
    ) = None,
    frames: options.option(int, options.OUTPUT, "NUMBER", "Largest number of frames.", min=1, max=1000) = 48,
    fps: options.fps("Frames per second.") = 12.0,
    hold: options.option(float, options.OUTPUT, "SECONDS", "Duration of the last frame.", min=0, max=60) = 2.0,
    columns: options.Columns = None,
    tile: options.Tile = 48,
    upscaling: options.Upscaling = "nearest",
    *,
    plan: options.PlanOptions,
    machine: options.MachineOptions,
) -> None:  # fmt: skip
    """Make a film of the denoising of images, or of the training of the model."""
    from ddpm.cli import animations, output
    from ddpm.plots.image_grid import save
    from ddpm.plots.video import write_film
    from ddpm.sampling.model import conditioning_for

    animation = animations.ANIMATIONS[what]
    if animation.of_snapshots and machine.checkpoint != "final":
        raise InputError("a film of the training uses the snapshots; leave the option out", key="checkpoint")
    out = out or Path(f"out/{what}.gif")
    is_still = out.suffix.lower() == ".png"
    if is_still and not animation.still:
        check_out(out, options.FILM_SUFFIXES)
    model, number = machine.load(), number or animation.number
    labels, _ = conditioning_for(model, number, label or [], text or [], plan.guidance)
    frames = min(frames, MAX_STILL_FRAMES) if is_still else frames
    settings = animations.AnimationOptions(number, labels, seed, frames, columns or min(number, 10), tile, upscaling)
    output.check_size(model.shape, tile, animation.copies * number * frames, output.MAX_FILM_PIXELS)
    made, clock = plan.make(model), output.Clock()
    if is_still:
        save(out, animation.still(model, made, settings))
        print(f"wrote {out}: {number:,} images, {clock}")
        return
    film = animation.film(model, made, settings, machine.model)
    write_film(out, film, fps, hold)
    print(f"wrote {out}: {len(film)} frames of {number:,} images, {clock}")
