"""DATASETS: loads the raw images, labels and class names of both splits of a data set by its name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from ddpm.core.files import InputError, print_line
from ddpm.core.params import OneOf
from ddpm.core.paths import folder_of
from ddpm.datasets.arrays import ArrayImages, read_arrays
from ddpm.datasets.celeba import read_celeba
from ddpm.datasets.cifar import ARCHIVE, UNPACKED, download_cifar10, find_cifar10, read_cifar10
from ddpm.datasets.huggingface import read_huggingface
from ddpm.datasets.idx import IDX_FILES, find_idx_folder, read_idx_split
from ddpm.datasets.image_folder import read_image_folder
from ddpm.datasets.index import Files
from ddpm.datasets.labels import read_labelled_images
from ddpm.datasets.settings import NO_CLASSES, PrepareData
from ddpm.datasets.splits import held_out

DIGITS = [str(digit) for digit in range(10)]
DIGITS_TEST = 500


class Raw(NamedTuple):
    """One split before preparation.

    images: N images uint8 (H, W, C), in an array or read one after another; None for picture files.
    labels: int64 (N,), from 0; zeros where the images have no classes.
    """

    images: np.ndarray | ArrayImages | None
    labels: np.ndarray


class Source(NamedTuple):
    """A raw data set.

    train, test: its splits.
    class_names: the name of each label; none where the images have no classes.
    files: the picture files of both splits; None for images in memory.
    """

    train: Raw
    test: Raw
    class_names: Sequence[str]
    files: Files | None = None


def raw_root() -> Path:
    """Returns the folder of raw files: $DDPM_DATA_ROOT, or data/raw."""
    return folder_of("DDPM_DATA_ROOT", "data/raw")


def digits(settings: PrepareData) -> Source:
    """Loads the 1,797 handwritten 8x8 digits of scikit-learn (UCI's optical digits); a stratified 500 are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    test = held_out(labels, DIGITS_TEST, DIGITS, Path("digits"), "")
    train = ~test
    return Source(Raw(images[train], labels[train]), Raw(images[test], labels[test]), DIGITS)


def _mnist_like(name: str, torchvision_name: str) -> Callable[[PrepareData], Source]:
    """Returns the loader of a data set that is published as MNIST's four idx files."""

    def load(settings: PrepareData) -> Source:
        from torchvision import datasets

        root, torchvision_class = raw_root(), getattr(datasets, torchvision_name)
        folder = find_idx_folder(root, name, torchvision_name)
        if folder is None:
            files = f"{', '.join(IDX_FILES.values())} (gzipped or not) into {root / name}"
            _download(name, files, lambda: torchvision_class(root, download=True))
            folder = find_idx_folder(root, name, torchvision_name)
        names = DIGITS if name == "mnist" else [str(c) for c in torchvision_class.classes]
        train, test = (Raw(*read_idx_split(folder, split, len(names))) for split in ("train", "test"))
        sizes = ["x".join(map(str, split.images.shape[1:3])) for split in (train, test)]
        if sizes[0] != sizes[1]:
            files = [IDX_FILES[split, "images"] for split in ("train", "test")]
            message = f"the images of {files[0]} are {sizes[0]}, those of {files[1]} {sizes[1]}; replace the wrong file"
            raise InputError(message, key=folder)
        return Source(train, test, names)

    return load


def cifar10(settings: PrepareData) -> Source:
    """Loads CIFAR-10 from the raw folder or its subfolder cifar10."""
    path = find_cifar10(raw_root())
    if path is None:
        root = raw_root() / "cifar10"
        _download("cifar10", f"{ARCHIVE} into {root}", lambda: download_cifar10(root))
        path = root / UNPACKED
    splits, names = read_cifar10(path)
    return Source(*(Raw(*split) for split in splits), names)


def _with_classes(settings: PrepareData) -> bool:
    """Returns whether class folders or labels are read. Raises InputError for a label that names a column or an attribute."""
    if settings.label not in (None, NO_CLASSES):
        message = f"{settings.label!r} names a column, which class folders and arrays have not; set it to auto or {NO_CLASSES}"
        raise InputError(message, key="prepare_data.label", where="params.yaml")
    return settings.label is None


def image_folder(settings: PrepareData) -> Source:
    """Loads a folder or an archive of pictures, at prepare_data.folder below the raw folder; a table may hold their classes."""
    path = raw_root() / settings.folder
    if settings.labels is None or settings.label == NO_CLASSES:
        return _of_files(*read_image_folder(path, settings.test_share, _with_classes(settings)))
    columns = settings.file_column, settings.label
    return _of_files(*read_labelled_images(path, settings.labels, *columns, settings.test_share))


def arrays(settings: PrepareData) -> Source:
    """Loads an .npz or .npy file, or a folder of .npy files, at prepare_data.folder below the raw folder."""
    path, with_classes = raw_root() / settings.folder, _with_classes(settings)
    splits, names = read_arrays(path, settings.test_share, settings.value_range, with_classes)
    return Source(*(Raw(*split) for split in splits), names)


def celeba(settings: PrepareData) -> Source:
    """Loads CelebA's aligned faces from the folder celeba of the raw folder; prepare_data.label names the attribute."""
    return _of_files(*read_celeba(raw_root(), settings.label))


def huggingface(settings: PrepareData) -> Source:
    """Loads a data set of Hugging Face's `datasets`, at prepare_data.folder below the raw folder."""
    return _of_files(*read_huggingface(raw_root() / settings.folder, settings.label, settings.test_share))


def _of_files(files: Files, class_names: Sequence[str]) -> Source:
    if skipped := files.index.skipped:
        count = sum(number for number, _ in skipped.values())
        kinds = ", ".join(f"{number:,} {ending or 'without an ending'} ({first})" for ending, (number, first) in skipped.items())
        print_line(f"{files.store.where}: {count:,} left out, since their names do not end as those of pictures: {kinds}")
    return Source(Raw(None, files.index.labels(0)), Raw(None, files.index.labels(1)), class_names, files)


def _download(name: str, files: str, download: Callable[[], object]) -> None:
    """Downloads with torchvision. Raises InputError, naming the files to fetch by hand, if that fails."""
    print(f"{name}: not found in {raw_root()}; downloading", flush=True)
    try:
        raw_root().mkdir(parents=True, exist_ok=True)
        download()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot be downloaded ({reason}); put {files}, or set DDPM_DATA_ROOT to the folder that has them; "
            "`-S dataset=digits` needs no files",
            key=name,
        ) from None


class Dataset(NamedTuple):
    """A row of DATASETS.

    load: returns the raw data set.
    required_accuracy: the test accuracy below which the classifier must not be used for evaluation; None if unknown.
    optional_settings: those of OPTIONAL_SETTINGS that `load` or the preparation of its files reads.
    """

    load: Callable[[PrepareData], Source]
    required_accuracy: float | None = None
    optional_settings: tuple[str, ...] = ()


# The keys of prepare_data that only some data sets read: the others are not recorded with the prepared data of the rest.
OF_FILES = ("skip_bad", "background", "value_range")
OPTIONAL_SETTINGS = ("labels", "file_column", "label", *OF_FILES)

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(digits, 0.97),
    "mnist": Dataset(_mnist_like("mnist", "MNIST"), 0.99),
    "fashion_mnist": Dataset(_mnist_like("fashion_mnist", "FashionMNIST"), 0.90),
    "kmnist": Dataset(_mnist_like("kmnist", "KMNIST"), None),
    "cifar10": Dataset(cifar10, 0.85),
    "celeba": Dataset(celeba, None, ("label", *OF_FILES)),
    "image_folder": Dataset(image_folder, None, OPTIONAL_SETTINGS),
    "arrays": Dataset(arrays, None, ("label", "value_range")),
    "huggingface": Dataset(huggingface, None, ("label", *OF_FILES)),
}

DatasetName = Annotated[str, OneOf(DATASETS)]
