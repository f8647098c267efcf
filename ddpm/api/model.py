"""A trained model in Python: its methods generate and edit images. The command line and the web page are thin over it."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from ddpm.api.arguments import listed, whole_number
from ddpm.api.generation import Generation, Work, at_once, collected, decoded
from ddpm.api.images import DenoisingStep, Images, Reconstruction
from ddpm.api.info import as_html, describe
from ddpm.core.files import InputError
from ddpm.core.params import lookup
from ddpm.data.images import to_images
from ddpm.editing import tasks
from ddpm.editing.inpaint import with_repaint_jumps
from ddpm.editing.inputs import ImageInput, MaskInput, NamedImage, open_image, open_mask
from ddpm.evaluation.reconstruction import psnr
from ddpm.plots.image_grid import MAX_GRID_COLUMNS, tinted
from ddpm.sampling import progress
from ddpm.sampling.generate import generate
from ddpm.sampling.labels import Label, conditioning_for, split_labels
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import PlanOptions, SamplingPlan, make_plan

REPAINT_JUMP, REPAINT_RESAMPLES = 10, 10
Labels = Label | Sequence[Label]
Input = ImageInput | NamedImage


class Model:
    """A trained diffusion model. Every method raises InputError, one line that names the argument, for a value that it refuses.

    Images to start from are names (`test:3`, a test image; `seed:7`, the sample of a seed; or the path of a picture), pictures
    of Pillow, uint8 arrays (H, W) or (H, W, C), or what `open` returns. A label is the name of a class, or its number as an int;
    "none" is no class. The same seed gives the same images, in any batch. Further arguments are those of `make_plan`, such as
    sampler and steps.

    `sampling`, `inpainting`, `editing` and `interpolation` return a Generation, whose denoising steps one can follow. `sample`,
    `inpaint`, `edit` and `interpolate` take the same arguments and return the finished Images.

    folder: the model folder; for a model that diffusers has saved, that folder.
    config: the content of its config.json.
    diffusion: the network with its noise schedule.
    """

    def __init__(self, folder: Path, config: dict[str, Any], diffusion: DiffusionModel):
        self.folder, self.config, self.diffusion = folder, config, diffusion

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.diffusion.shape

    @property
    def class_names(self) -> list[str]:
        return self.diffusion.data["class_names"]

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return self.diffusion.schedule.steps

    def plan(self, **options: Unpack[PlanOptions]) -> SamplingPlan:
        """Returns the sampling plan of these options: its sampler's label, noise levels and network evaluations."""
        return make_plan(self.diffusion, **options)

    def sampling(
        self,
        number: int = 1,
        labels: Labels = (),
        texts: str | Sequence[str] = (),
        seed: int = 0,
        batch_size: int = 100,
        **options: Unpack[PlanOptions],
    ) -> Generation:
        """Generates images.

        labels, texts: classes or captions, used in turn; by default all classes.
        """
        number, seed = whole_number("number", number), whole_number("seed", seed, 0)
        batch_size, plan = whole_number("batch_size", batch_size), self.plan(**options)
        given, captions = self.conditioning(number, labels, texts, options.get("guidance", 1.0))
        work = generate(self.diffusion, plan, given, number, seed, batch_size)
        about = {"captions": captions, "labels": None if given is None else given.cpu().numpy()}
        return Generation(plan, collected(plan, work, **about))

    sample = at_once(sampling)

    def stream(
        self,
        number: int = 1,
        labels: Labels = (),
        texts: str | Sequence[str] = (),
        seed: int = 0,
        **options: Unpack[PlanOptions],
    ) -> Iterator[DenoisingStep]:
        """Generates the images of `sample` and yields them after each denoising step; the last x is finished."""
        return self.sampling(number, labels, texts, seed, number, **options).steps()

    def inpainting(
        self,
        image: Input,
        mask: MaskInput = "middle",
        number: int = 1,
        label: Label = None,
        text: str | None = None,
        seed: int = 0,
        jump: int | None = None,
        resamples: int | None = None,
        **options: Unpack[PlanOptions],
    ) -> Generation:
        """Fills a region of an image in several ways by RePaint (Lugmayr et al. 2022), or by a network trained with masks.

        mask: a key of MASKS, a boolean array (H, W) that is True where to fill, or the path of a picture that is white there.
        label, text: by default the class of a test image or of a seed.
        jump: RePaint's jump length; by default 10, or fewer if the grid is short.
        resamples: how often RePaint samples these steps; by default 10, or 1 for a network trained with masks.
        """
        number, seed = whole_number("number", number), whole_number("seed", seed, 0)
        named = self.open(image, label, text, options.get("guidance", 1.0))
        known = open_mask(mask, self.shape)
        longest = len(self.plan(**options).grid) - 2
        if resamples is None:
            resamples = 1 if self.diffusion.network.takes_mask or longest < 1 else REPAINT_RESAMPLES
        if jump is None:
            jump = min(REPAINT_JUMP, max(1, longest))
        change = partial(with_repaint_jumps, jump_length=jump, jump_n_sample=resamples)
        plan = make_plan(self.diffusion, change=change, **options)
        # Guidance 0 leaves the class out of the fills, not out of the sample of a seed.
        source, labels = self.open(image, label, text).source, tasks.repeat_labels(named.source.labels, number)

        def work() -> Work:
            x0 = yield from decoded(self.diffusion, source)
            whole = to_images(x0)[0]
            fills = tasks.inpaint_images(self.diffusion, plan, x0.expand(number, -1, -1, -1), known, labels, seed)
            inputs = [("image", whole), ("known", tinted(whole, known))]
            return (yield from collected(plan, fills, inputs=inputs, titles=[named.title], columns=MAX_GRID_COLUMNS))

        return Generation(plan, work())

    inpaint = at_once(inpainting)

    def editing(
        self,
        image: Input,
        strength: float | Sequence[float] = 0.6,
        number: int = 1,
        label: Label = None,
        text: str | None = None,
        method: str = "sdedit",
        seed: int = 0,
        **options: Unpack[PlanOptions],
    ) -> Generation:
        """Generates variants of an image, also of another class or text: `number` for each strength.

        strength: from 0, the image itself, to 1, an unrelated one.
        method: `sdedit` adds noise to the image and denoises it (Meng et al. 2022), `latent` mixes noise into its latent.
        """
        number, seed = whole_number("number", number), whole_number("seed", seed, 0)
        strengths = [strength] if isinstance(strength, int | float) else list(strength)
        if not strengths or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in strengths):
            raise InputError(f"{strength!r} is out of range; give 0 to 1, or a list of such numbers", key="strength")
        editor, plan = lookup(tasks.EDITS, method, "method"), self.plan(**options)
        named = self.open(image, label, text, options.get("guidance", 1.0))
        source = named.source if editor.uses_latent else self.open(image, label, text).source

        def work() -> Work:
            whole = yield from decoded(self.diffusion, source, plan if editor.uses_latent else None)
            start = named.source if editor.uses_latent else named.source._replace(image=whole)
            variants = (editor.apply(self.diffusion, plan, start, value, number, seed) for value in strengths)
            captions, inputs = [f"{value:g}" for value in strengths for _ in range(number)], [("image", to_images(whole)[0])]
            about = {"captions": captions, "inputs": inputs, "titles": [named.title], "columns": MAX_GRID_COLUMNS}
            return (yield from collected(plan, chain.from_iterable(variants), **about))

        return Generation(plan, work())

    edit = at_once(editing)

    def interpolation(
        self,
        a: Input,
        b: Input,
        number: int = 12,
        labels: Labels = (),
        texts: str | Sequence[str] = (),
        **options: Unpack[PlanOptions],
    ) -> Generation:
        """Interpolates between two images, which are the first and the last of the result, in the latent space of the model.

        labels, texts: of both images, or one for each; by default the images' own.
        """
        number = whole_number("number", number, 2)
        labels, texts = split_labels(self.diffusion, listed(labels)), listed(texts)
        for name, values in (("label", labels), ("text", texts)):
            if len(values) > 2:
                raise InputError(f"{len(values)} values for two images; give one or two", key=name)
        plan, guidance = self.plan(**options), options.get("guidance", 1.0)
        ends = [
            self.open(image, labels[k % len(labels)] if labels else None, texts[k % len(texts)] if texts else None, guidance)
            for k, image in enumerate((a, b))
        ]
        work = tasks.interpolate_images(self.diffusion, plan, ends[0].source, ends[1].source, number)
        titles = [end.title for end in ends]
        return Generation(plan, collected(plan, work, titles=titles, columns=min(number, MAX_GRID_COLUMNS)))

    interpolate = at_once(interpolation)

    def reconstruct(
        self,
        images: Input | Sequence[Input] | Images,
        steps: int | None = None,
        label: Label = None,
        text: str | None = None,
        spacing: str = "trailing",
    ) -> Reconstruction:
        """Encodes images to noise by DDIM inversion (Song et al. 2021, sec. 4.3) and decodes them.

        steps: of DDIM in each direction; more of them reconstruct more exactly.
        """
        plan = self.plan(steps=steps, spacing=spacing)
        is_one = isinstance(images, NamedImage) or not isinstance(images, list | tuple | Images)  # a NamedImage is a tuple too
        several = [images] if is_one else list(images)
        if not several:
            raise InputError("is empty; give one image or more", key="images")
        named = [self.open(image, label, text) for image in several]
        x0, groups = tasks.stack_sources(self.diffusion, [one.source for one in named])
        decoded = x0.clone()
        for indices, labels in groups:
            work = tasks.reconstruct_images(self.diffusion, plan, x0[indices], labels)
            decoded[indices] = progress.final_images(progress.with_progress_bar(plan.label, work))
        inputs = list(zip([one.caption or one.name for one in named], to_images(x0), strict=True))
        made = Images(
            to_images(decoded), sampler=plan.label, nfe=2 * plan.nfe, inputs=inputs, titles=[one.title for one in named]
        )
        return Reconstruction(made, psnr(decoded, x0).numpy())

    def open(
        self, image: Input, label: Label = None, text: str | None = None, guidance: float = 1.0, decode: bool = False
    ) -> NamedImage:
        """Returns an image to start from, with its caption and what the network receives for it; an opened one as it is.

        decode: generate the sample of a seed now, once, and not each time that its pixels are needed.
        """
        if isinstance(image, NamedImage):
            return image
        named = open_image(self.diffusion, image, label, text, guidance)
        if decode:
            source = named.source._replace(image=tasks.source_image(self.diffusion, named.source), latent=None)
            named = named._replace(source=source)
        return named

    def conditioning(
        self, number: int, labels: Labels = (), texts: str | Sequence[str] = (), guidance: float = 1.0
    ) -> tuple[Tensor | None, list[str]]:
        """Returns what the network receives for `number` images, and a caption for each (see `conditioning_for`)."""
        return conditioning_for(self.diffusion, number, listed(labels), listed(texts), guidance)

    def info(self) -> dict[str, Any]:
        """Returns data, network, training, checkpoints and scores of the model, as JSON values."""
        return describe(self.folder, self.config, self.diffusion)

    def __repr__(self) -> str:
        height, width, _ = self.shape
        return f"Model {self.folder}: {self.config['data'].get('dataset')}, {height}x{width}, on {self.diffusion.device}"

    def _repr_html_(self) -> str:
        return as_html(self.info())
