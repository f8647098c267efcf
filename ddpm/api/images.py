"""What a model has made: images with captions, which show themselves in a notebook and are saved by suffix."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddpm.core.files import atomic_folder, counted, write_npz, write_text
from ddpm.core.outputs import check_out
from ddpm.plots.image_grid import rows_of, save, table


@dataclass(frozen=True, eq=False)
class Images:
    """Images and what they show. `np.asarray(images)` is the array, `images[k]` image k.

    array: uint8 (N, H, W, C).
    captions: the class or text of each image, or none at all.
    labels: what the network received: class ids (N,) or word ids (N, L), or None.
    sampler: the name of the sampler, with which `nfe` network evaluations made each image.
    inputs: captions and images (H, W, C) that a grid shows in front of its first row.
    titles: the names of the images that these were made from.
    columns: images in a row of a grid; None is chosen by their number.

    >>> images = Images(np.zeros((6, 8, 8, 1), np.uint8), captions=["0", "1"] * 3)
    >>> images.shape, images[5].shape, len(images)
    ((6, 8, 8, 1), (8, 8, 1), 6)
    >>> images.grid(tile=16).height // 16  # a row for each caption
    3
    """

    array: np.ndarray
    captions: Sequence[str] = ()
    labels: np.ndarray | None = None
    sampler: str = ""
    nfe: int = 0
    inputs: Sequence[tuple[str, np.ndarray]] = ()
    titles: Sequence[str] = ()
    columns: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.array.shape

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype) if copy else np.asarray(self.array, dtype)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int | slice) -> "np.ndarray | Images":
        """Returns image k (H, W, C), or the Images of a slice."""
        if not isinstance(index, slice):
            return self.array[index]
        labels = None if self.labels is None else self.labels[index]
        return replace(self, array=self.array[index], captions=self.captions[index], labels=labels)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.array)

    def __repr__(self) -> str:
        return f"Images of shape {self.shape}" + (
            f" by {self.sampler}, {counted(self.nfe, 'network evaluation')}" if self.sampler else ""
        )

    def to_pil(self) -> list[Image.Image]:
        """Returns each image as a picture of Pillow, gray ("L") or RGB."""
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in self.array]

    def grid(self, columns: int | None = None, tile: int = 48, upscaling: str = "nearest") -> Image.Image:
        """Returns a picture with rows of images for each caption.

        columns: images in a row.
        tile: images are enlarged by a whole factor until their longer side has this many pixels.
        upscaling: a key of UPSCALING.
        """
        rows = rows_of(self.captions or [""] * len(self), columns or self.columns)
        names, pictures = zip(*self.inputs, strict=True) if self.inputs else ((), ())
        blank = [np.full((*self.shape[1:3], 3), 255, np.uint8)] * len(pictures)
        tiles = [[*(blank if k else pictures), *self.array[row]] for k, (_, row) in enumerate(rows)]
        return table(tiles, [caption for caption, _ in rows], names, tile, upscaling)

    def save(self, path: str | PathLike, columns: int | None = None, tile: int = 48, upscaling: str = "nearest") -> None:
        """Writes a grid (.png), arrays (.npz: arr_0 images, arr_1 class ids or captions, sampler) or a folder of PNG files.

        columns, tile, upscaling: see `grid`.
        Raises InputError for another suffix, for an existing folder, and where nothing can be written.
        """
        WRITERS[check_out(Path(path), WRITERS)](Path(path), self, columns, tile, upscaling)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()


class DenoisingStep(NamedTuple):
    """The images after a denoising step.

    done, total: steps done and in all.
    position: the noise level, from T to 0.
    x: the noisy images x_t as uint8 (N, H, W, C).
    x0: the network's prediction of the finished images, in the same form.
    """

    done: int
    total: int
    position: float
    x: np.ndarray
    x0: np.ndarray


class Reconstruction(NamedTuple):
    """Images that were encoded to noise and decoded again.

    images: the decoded images.
    psnr: their peak signal-to-noise ratio in dB, (N,).
    """

    images: Images
    psnr: np.ndarray


def _write_grid(path: Path, images: Images, *layout: int | str | None) -> None:
    save(path, images.grid(*layout))


def _write_arrays(path: Path, images: Images, *_: object) -> None:
    arrays = {"arr_0": images.array}
    if images.labels is not None:
        is_text = images.labels.ndim > 1
        arrays |= {"captions": np.asarray(images.captions)} if is_text else {"arr_1": images.labels}
    write_npz(path, {**arrays, "sampler": np.array([images.sampler])})


def _write_folder(path: Path, images: Images, *_: object) -> None:
    """Writes 00000.png, 00001.png, ... at their own size, and labels.csv if the images have captions."""
    with atomic_folder(path) as folder:
        for k, picture in enumerate(images.to_pil()):
            picture.save(folder / f"{k:05d}.png")
        if any(images.captions):
            lines = (f'{k:05d}.png,"{caption.replace(chr(34), 2 * chr(34))}"' for k, caption in enumerate(images.captions))
            write_text(folder / "labels.csv", "\n".join(["file,label", *lines]) + "\n")


# By the suffix of the file. Arguments: path, images, and the layout of a grid.
WRITERS: dict[str, Callable[..., None]] = {".png": _write_grid, ".npz": _write_arrays, "": _write_folder}
