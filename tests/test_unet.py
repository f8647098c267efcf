"""The U-Net: shapes, sizes, inputs, the fast convolutions, and model folders."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import diffusion, error_of

from ddpm.core.files import write_json
from ddpm.core.weights import save_weights
from ddpm.datasets.registry import DIGITS
from ddpm.networks import layers
from ddpm.networks.checkpoints import CHECKPOINTS, CONFIG, load_model, make_config
from ddpm.networks.conditioning import AUGMENTATION_PARAMETERS
from ddpm.networks.layers import PackedConv2d, Upsample
from ddpm.networks.unet import CompatOptions, UNet, UNetSettings, norm_groups, time_embedding

SMALL = {
    "channels": 8, "channel_mults": [1, 2], "blocks_per_level": 1, "attention_levels": [], "middle_attention": False,
    "heads": 2, "time_embedding": "auto", "dropout": 0.0, "conditioning": "class",
}  # fmt: skip
IDENTITY = {"dataset": "digits", "shape": [8, 8, 1], "class_names": list("0123456789"), "sha256": {}}


def settings(**changes):
    return UNetSettings(**{**SMALL, **changes})


def awake(network):
    """Replaces the zero initialization, so that every path has an effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (12, 20, 3)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_mults": [1, 2, 2], "blocks_per_level": 2},
        {"attention_levels": [0, 1], "middle_attention": True},
        {"channels": 10, "channel_mults": [1, 3], "conditioning": "none"},
        {"channel_mults": [2]},
    ],
)
def test_output_has_the_shape_of_the_image_and_starts_at_zero(shape, changes):
    network = UNet(settings(**changes), shape, class_names=DIGITS)
    x = torch.randn(3, shape[2], *shape[:2])
    out = network(x, torch.tensor([0.0, 10.0, 999.0]), torch.tensor([0, 9, 10]))
    assert out.shape == x.shape
    assert (out == 0).all()
    assert awake(network)(x, torch.tensor([0.0, 10.0, 999.0]), None).std() > 0


def test_cifar10_network_of_the_paper_has_its_parameters():
    """Ho et al. 2020, app. B: 128 channels, multipliers 1-2-2-2, two blocks, one head of attention at 16x16 and in the middle."""
    paper = settings(
        channels=128, channel_mults=[1, 2, 2, 2], blocks_per_level=2, attention_levels=[1], middle_attention=True, heads=1,
        dropout=0.1, conditioning="none",
    )  # fmt: skip
    with torch.device("meta"):
        network = UNet(paper, (32, 32, 3), class_names=DIGITS)
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 10, 16, 30, 48, 64, 96, 128, 512])
def test_norm_groups_divides_the_channels(channels):
    groups = norm_groups(channels)
    assert channels % groups == 0
    assert groups <= 32
    if channels >= 128:
        assert groups == 32


def test_all_group_norms_have_the_same_number_of_groups():
    network = UNet(settings(channels=24, channel_mults=[1, 3], attention_levels=[1], middle_attention=True), (8, 8, 1), DIGITS)
    assert {norm.num_groups for norm in network.modules() if isinstance(norm, torch.nn.GroupNorm)} == {6}


def test_time_embedding_width_is_a_setting():
    automatic, wide = (UNet(settings(time_embedding=width), (8, 8, 1), DIGITS) for width in ("auto", 50))
    assert [layer.out_features for layer in automatic.time if hasattr(layer, "out_features")] == [32, 32]
    assert [layer.out_features for layer in wide.time if hasattr(layer, "out_features")] == [50, 50]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 30.0])
    assert awake(wide)(x, t).shape == x.shape


def test_compat_options_change_the_layers():
    shape, kind = (8, 8, 1), settings(channels=8, attention_levels=[1])
    options = CompatOptions(norm_groups=4, norm_eps=1e-6, corner_padding=True, head_channels=4)
    network, ours = (awake(UNet(kind, shape, DIGITS, compat=compat)) for compat in (options, CompatOptions()))
    assert {(n.num_groups, n.eps) for n in network.modules() if isinstance(n, torch.nn.GroupNorm)} == {(4, 1e-6)}
    assert network.down[1].attentions[0].heads == 4
    x = torch.randn(2, 8, 6, 6)
    corner, usual = network.downsample[0], ours.downsample[0]
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), corner.weight, corner.bias, stride=2)
    torch.testing.assert_close(corner(x), expected)
    torch.testing.assert_close(usual(x), F.conv2d(x, usual.weight, usual.bias, stride=2, padding=1))


@pytest.mark.parametrize(("options", "key"), [({"norm_groups": 3}, "norm_groups"), ({"head_channels": 5}, "head_channels")])
def test_compat_options_that_do_not_fit_are_refused(options, key):
    kind = settings(middle_attention=True)
    assert error_of(UNet, kind, (8, 8, 1), DIGITS, compat=CompatOptions(**options)).key == key


def test_time_embedding_is_that_of_the_paper():
    out = time_embedding(torch.tensor([0.0, 1.0, 500.0]), 6)
    frequency = torch.tensor([1.0, 10_000 ** (-1 / 2), 1e-4])
    angle = torch.tensor([0.0, 1.0, 500.0])[:, None] * frequency
    torch.testing.assert_close(out, torch.cat([angle.sin(), angle.cos()], 1))


def test_every_input_has_an_effect():
    network = awake(UNet(settings(attention_levels=[1], middle_attention=True), (8, 8, 1), class_names=DIGITS))
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 10.0]), torch.tensor([3, 3])
    out = network(x, t, labels)
    for other in (network(x + 0.1, t, labels), network(x, t + 100, labels), network(x, t, labels + 1)):
        assert not torch.allclose(out, other, atol=1e-5)
    far = x.clone()
    far[:, :, 7, 7] += 1
    assert not torch.allclose(out[:, :, 0, 0], network(far, t, labels)[:, :, 0, 0], atol=1e-6)


def test_no_labels_equal_the_id_of_no_class_and_are_ignored_without_conditioning():
    network = awake(UNet(settings(), (8, 8, 1), class_names=DIGITS))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0])
    torch.testing.assert_close(network(x, t, None), network(x, t, torch.tensor([10, 10])), atol=0, rtol=0)
    without = awake(UNet(settings(conditioning="none"), (8, 8, 1), class_names=DIGITS))
    torch.testing.assert_close(without(x, t, torch.tensor([1, 2])), without(x, t, None), atol=0, rtol=0)


def test_augmentation_parameters_have_an_effect_unless_they_are_zero():
    def seeded_network(augmented):
        torch.manual_seed(0)
        return UNet(settings(), (8, 8, 1), DIGITS, augmented=augmented)

    plain, network = (seeded_network(augmented) for augmented in (False, True))
    assert network.state_dict().keys() - plain.state_dict().keys() == {"augment.weight"}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in plain.state_dict().items())
    x, t, zeros = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0]), torch.zeros(2, AUGMENTATION_PARAMETERS)
    out = awake(network)(x, t)
    assert torch.equal(network(x, t, augmentation=zeros), out)
    for column in torch.eye(AUGMENTATION_PARAMETERS):
        assert not torch.allclose(network(x, t, augmentation=column.expand(2, -1)), out, atol=1e-4)


def test_images_of_a_batch_are_independent():
    network = awake(UNet(settings(attention_levels=[0]), (8, 8, 1), class_names=DIGITS))
    x, t, labels = torch.randn(4, 1, 8, 8), torch.arange(4.0), torch.arange(4)
    whole = network(x, t, labels)
    parts = torch.cat([network(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only():
    network = awake(UNet(settings(dropout=0.5), (8, 8, 1), class_names=DIGITS))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0])
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    ("changes", "shape", "key"),
    [
        ({"channel_mults": [1, 2, 2]}, (10, 8, 1), "model.channel_mults"),
        ({"channel_mults": [1, 1, 1, 1, 1]}, (8, 8, 1), "model.channel_mults"),
        ({"attention_levels": [2]}, (8, 8, 1), "model.attention_levels"),
        ({"attention_levels": [1], "heads": 3}, (8, 8, 1), "model.heads"),
        ({"middle_attention": True, "heads": 5}, (8, 8, 1), "model.heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, shape, key):
    error = error_of(UNet, settings(**changes), shape, DIGITS)
    assert error.key == key
    assert shape == (8, 8, 1) or "multiples of 4, but they are 10x8" in error.message


def plain(network):
    """The same network with PyTorch's own convolutions, and upsampling as an enlarged image convolved."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Upsample):
            module.forward = lambda x, m=module: F.conv2d(F.interpolate(x, scale_factor=2.0), m.weight, m.bias, padding=1)
        elif isinstance(module, PackedConv2d):
            module.forward = lambda x, m=module: F.conv2d(x, m.weight, m.bias, m.stride, m.padding)
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("batch", [1, 16])
def test_fast_convolutions_equal_the_plain_ones(batch, memory_format, dtype):
    """With and without gradients; 16 images take the transposed convolution, 1 and 2 the enlarged image."""
    network = awake(UNet(settings(channels=6, attention_levels=[1]), (8, 8, 3), class_names=DIGITS)).to(
        dtype, memory_format=memory_format
    )
    x, t = torch.randn(batch, 3, 8, 8, dtype=dtype).contiguous(memory_format=memory_format), torch.arange(float(batch))
    reference = plain(network)
    expected, out = reference(x, t), network(x, t)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for net, result in ((reference, expected), (network, out)):
        result.square().sum().backward()
        assert all(parameter.grad is not None for name, parameter in net.named_parameters() if "condition" not in name)
    for ours, plain_one in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain_one.grad, atol=1e-3, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(network(x, t), expected, atol=1e-5, rtol=1e-5)


def test_upsample_has_the_right_gradients():
    layer = Upsample(2).double()
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert x.numel() >= layer.weight.numel()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradcheck(lambda w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x.detach()), (
        layer.weight, layer.bias,
    ))  # fmt: skip


def packing(batch=4):
    """A layer in eval mode and an input for which it packs its kernel, where this machine can."""
    layer = PackedConv2d(4, 6, 3, padding=1).eval()
    return layer, torch.randn(batch, 4, 8, 8).contiguous(memory_format=torch.channels_last)


def by_hand(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


def fused_step(layer):
    layer(torch.ones(1, 4, 8, 8)).sum().backward()
    torch.optim.AdamW(layer.parameters(), 0.1, fused=True).step()


def change_in_training_mode(layer):
    layer.train()
    layer.weight.data.mul_(2)
    layer.eval()


KERNEL_CHANGES = {
    "in place": lambda layer: torch.no_grad()(layer.weight.mul_)(2),
    "another storage": lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
    "fused step": fused_step,
    "in training mode": change_in_training_mode,
    "state dict": lambda layer: layer.load_state_dict(PackedConv2d(4, 6, 3).state_dict()),
}


@pytest.mark.parametrize("change", KERNEL_CHANGES)
def test_packed_kernel_follows_its_weights(change):
    layer, x = packing()
    with torch.no_grad():
        before = layer(x)
        assert (layer._packed is not None) == layers._CAN_PACK
        torch.enable_grad()(KERNEL_CHANGES[change])(layer)
        after = layer(x)
        assert not torch.allclose(before, after, atol=1e-3)
        torch.testing.assert_close(after, by_hand(layer, x), atol=1e-5, rtol=1e-5)


def test_packed_kernel_fits_other_shapes_and_is_not_copied():
    layer, x = packing()
    with torch.inference_mode():
        for part in (x, x[:1], x[:, :, :5], x.contiguous()):
            torch.testing.assert_close(layer(part), by_hand(layer, part), atol=1e-5, rtol=1e-5)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied._packed is None
        torch.testing.assert_close(copied(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_applies_to_every_convolution(dtype):
    network = awake(UNet(settings(attention_levels=[1]), (8, 8, 1), class_names=DIGITS)).to(memory_format=torch.channels_last)
    x, t = torch.randn(16, 1, 8, 8), torch.arange(16.0)
    expected = network(x, t)
    with torch.autocast("cpu", dtype):
        out = network(x, t)
        out.float().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(network(x, t), out)
    assert out.dtype == dtype
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters() if parameter.grad is not None)
    torch.testing.assert_close(out.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0.1)


def test_load_model_rebuilds_the_network(tmp_path):
    network = awake(UNet(settings(), (8, 8, 1), class_names=DIGITS))
    config = make_config(settings(), "linear", "v", diffusion(100), IDENTITY, {"steps": 1}, 0)
    write_json(tmp_path / CONFIG, config)
    for name in CHECKPOINTS.values():
        save_weights(tmp_path / name, network.state_dict())
    for checkpoint in CHECKPOINTS:
        loaded, stored = load_model(tmp_path, checkpoint, torch.device("cpu"))
        assert stored == config
        assert not loaded.training
        x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([5.0, 50.0]), torch.tensor([1, 10])
        torch.testing.assert_close(loaded(x, t, labels), network(x, t, labels), atol=1e-6, rtol=1e-5)
