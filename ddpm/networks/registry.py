"""NETWORKS: the architectures that `model.type` names, and the contract that each of them meets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import ModelWrapValidatorHandler, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.core.params import OneOf, Section, make
from ddpm.diffusion.schedule import Diffusion
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.unet import UNet, UNetSettings


class Network(Protocol):
    """What training, sampling and evaluation use of a network, an nn.Module.

    outputs: channels of the output: C, or 2C where the variance is learned.
    takes_labels: whether labels have an effect.
    takes_text: whether labels may be captions.
    takes_mask: whether known pixels have an effect.
    condition: the module of conditioning.CONDITIONINGS that embeds the labels; it also drops and describes them in training.
    """

    outputs: int
    takes_labels: bool
    takes_text: bool
    takes_mask: bool
    condition: nn.Module

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        known: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """Returns the prediction, (B, outputs, H, W).

        x: noisy images, (B, C, H, W). t: the time of each, float (B,). labels: class ids (B,) or word ids (B, L), int64; None is
        no class. known: `conditioning.masked_input`, (B, C + 1, H, W); None is no known pixels. augmentation: parameters
        of the augmentation of x, (B, 9), in training alone; None means zeros. Only a network built for it takes this argument.
        """


class NetworkType(NamedTuple):
    """An architecture.

    settings: the class of its `model` section, with the fields `type` and `conditioning`.
    build: function (settings, (H, W, C), class_names, outputs) -> network.
    takes_augmentation: whether `build` has the option `augmented`, for a network that takes the parameters of an augmentation.
    """

    settings: type[Section]
    build: Callable[..., nn.Module]
    takes_augmentation: bool = False


NETWORKS: dict[str, NetworkType] = {
    "unet": NetworkType(UNetSettings, UNet, takes_augmentation=True),
}


class NetworkSettings(Section):
    """The `model` section: `type` is a key of NETWORKS; the class of that network's settings validates the rest."""

    type: Annotated[str, OneOf(NETWORKS)]

    @model_validator(mode="wrap")
    @classmethod
    def _by_type(cls, values: Any, handler: ModelWrapValidatorHandler) -> Section:
        name = values.get("type") if isinstance(values, Mapping) else None
        if not isinstance(name, str) or name not in NETWORKS:
            return handler(values)
        try:
            return make(NETWORKS[name].settings, **{str(key): value for key, value in values.items()})
        except InputError as error:
            raise PydanticCustomError("section", "{key}: {message}", {"key": error.key, "message": error.message}) from None


def make_network(
    model: Section,
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    class_names: Sequence[str],
    augmented: bool = False,
    **options: Any,
) -> nn.Module:
    """Returns the network of these settings for images (H, W, C).

    class_names: none for images without classes.
    augmented: build a network that takes the parameters of an augmentation. Raises InputError if this type cannot.
    options: further arguments of the network, such as `compat` of UNet.
    Raises InputError for sizes that do not fit together, and for a network of classes or text without them.
    """
    if not class_names and CONDITIONINGS[model.conditioning].embed_labels.takes_labels:
        message = f"{model.conditioning} needs classes, but these images have none; set it to none or mask"
        raise InputError(message, key="model.conditioning")
    outputs = shape[2] * (2 if diffusion.learned_variance else 1)
    if augmented and not NETWORKS[model.type].takes_augmentation:
        message = f"a network of type {model.type!r} takes no parameters of an augmentation; set it to 0"
        raise InputError(message, key="train.augment", where="params.yaml")
    options |= {"augmented": True} if augmented else {}
    return NETWORKS[model.type].build(model, shape, class_names, outputs, **options)
