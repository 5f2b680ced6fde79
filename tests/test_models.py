"""The networks have their published sizes, and their flat parameter vectors behave like the networks."""

from __future__ import annotations

import csv
from importlib import resources

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddlib import models

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
SMALLEST = {"convnet3": 8, "convnet4": 16, "convnet5": 32, "resnet10": 9, "resnet18": 9, "resnet18_ap": 16, "vgg11": 32}


def small(name: str, shape=(3, 32, 32), num_classes=4, seed=0) -> models.Classifier:
    """The narrowest sensible form of a network, in float64."""
    width = None if name == "efficientnet_v2_s" else 4
    return models.build(name, shape=shape, num_classes=num_classes, width=width, seed=seed).double()


def images_for(shape, n=2) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# T-NET-1: the sizes


@pytest.mark.parametrize(
    "width, cifar10, cifar100, mnist",
    [
        (16, 7_754, 30_884, 7_466),
        (32, 24_714, 70_884, 24_138),
        (64, 86_282, 178_532, 85_130),
        (128, 320_010, 504_420, 317_706),
    ],
)
def test_convnet3_has_its_published_size_at_every_width(width, cifar10, cifar100, mnist):
    def size(shape, num_classes):
        return models.num_params(models.build("convnet3", shape=shape, num_classes=num_classes, width=width))

    assert (size(CIFAR, 10), size(CIFAR, 100), size(MNIST, 10)) == (cifar10, cifar100, mnist)


@pytest.mark.parametrize(
    "name, shape, num_classes, width, count",
    [
        ("convnet3", CIFAR, 10, None, 320_010),
        ("convnet4", (3, 64, 64), 200, None, 857_160),
        ("convnet5", (3, 112, 112), 4, None, 599_812),
        ("convnet5", (1, 112, 112), 4, None, 597_508),
        ("alexnet", CIFAR, 10, None, 1_872_202),
        ("vgg11", CIFAR, 10, None, 9_231_114),
        ("resnet18", CIFAR, 10, None, 11_173_962),
        ("resnet18_ap", CIFAR, 10, None, 11_250_762),
        ("resnet10", CIFAR, 10, None, 4_903_242),
        ("resnet10_dim", CIFAR, 10, None, 1_228_970),
        ("resnet18_dim", CIFAR, 10, None, 2_797_610),
        ("resnet10_dim", MNIST, 10, None, 4_904_650),
        ("resnet18_dim", MNIST, 10, None, 11_175_370),
        ("densenet121", CIFAR, 10, None, 6_956_298),
        ("densenet121", CIFAR, 10, 12, 1_000_618),
        # torchvision's 1000-class network has 21,458,488; the body is what is left without its last layer
        ("efficientnet_v2_s", CIFAR, 10, None, 21_458_488 - 1281 * 1000 + 1281 * 10),
        ("efficientnet_v2_s", (3, 64, 64), 1000, None, 21_458_488),
    ],
)
def test_each_network_has_its_published_size(name, shape, num_classes, width, count):
    assert models.num_params(models.build(name, shape=shape, num_classes=num_classes, width=width)) == count


@pytest.mark.parametrize(
    "name, first_layer",          # weights of the first convolution for each input channel
    [
        ("alexnet", 128 * 25),
        ("vgg11", 64 * 9),
        ("resnet10", 64 * 9),
        ("resnet18", 64 * 9),
        ("densenet121", 64 * 9),
        ("efficientnet_v2_s", 24 * 9),
    ],
)
def test_a_28_pixel_grey_network_differs_from_the_32_pixel_color_one_in_the_first_layer_alone(name, first_layer):
    color, grey = (models.num_params(models.build(name, shape=shape, num_classes=10)) for shape in (CIFAR, MNIST))
    assert color - grey == 2 * first_layer


def test_the_ap_head_reads_a_3x3_map_of_28_pixel_images():
    net = models.build("resnet18_ap", shape=MNIST, num_classes=10)
    assert net.head.in_features == 512 * 9
    assert models.num_params(net) == 11_250_762 - 2 * 64 * 9 - 10 * 512 * (16 - 9)


@pytest.mark.parametrize("name", models.NETWORKS)
@pytest.mark.parametrize("shape", [MNIST, (3, 32, 32), (1, 32, 32), (2, 36, 44)])
def test_logits_are_the_head_of_the_embedding(name, shape):
    net = small(name, shape).eval()
    images = images_for(shape)
    with torch.no_grad():
        embedding = net.embed(images)
        logits = net(images)
    assert embedding.shape == (2, net.head.in_features) and logits.shape == (2, 4)
    assert torch.equal(logits, net.head(embedding))
    assert logits.isfinite().all() and logits[0].ne(logits[1]).any()


# The padding rule and the smallest images


@pytest.mark.parametrize(
    "shape, padding",
    [((1, 28, 28), 3), ((1, 32, 32), 1), ((3, 28, 28), 1), ((1, 28, 30), 1), ((3, 32, 32), 1)],
)
def test_only_28_pixel_one_channel_images_are_padded_to_32(shape, padding):
    net = models.build("convnet3", shape=shape, num_classes=2, width=2)
    assert net.body[0][0].padding == (padding, padding)
    sides = [feature.shape[2:] for feature in net.features(torch.zeros(1, *shape))]
    assert sides[0][0] == (16 if padding == 3 or shape[1] == 32 else 14)


@pytest.mark.parametrize("name, padding", [("convnet4", 3), ("convnet5", 3), ("vgg11", 3), ("alexnet", 4)])
def test_the_other_networks_of_dc_pad_28_pixel_images_too(name, padding):
    convolutions = {
        shape: next(layer for layer in small(name, shape).modules() if isinstance(layer, nn.Conv2d))
        for shape in [MNIST, CIFAR]
    }
    assert convolutions[MNIST].padding == (padding, padding)
    assert convolutions[CIFAR].padding == (padding // 2, padding // 2) == (convolutions[CIFAR].kernel_size[0] // 2,) * 2


@pytest.mark.parametrize("name, side", SMALLEST.items())
def test_images_whose_last_norm_would_see_one_pixel_are_refused(name, side):
    norms: list[torch.Size] = []
    net = small(name, (3, side, side))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):                       # what a norm sees; a ConvNet's is not called as a module
            layer.register_forward_hook(lambda _, __, output: norms.append(output.shape[2:]))
    net(images_for((3, side, side)))
    assert min(h * w for h, w in norms) > 1                   # the smallest that is accepted works ...
    with pytest.raises(ValueError, match=f"{name} needs images of at least {side} pixels a side, got {side - 1}x{side}"):
        models.build(name, shape=(3, side - 1, side), num_classes=2)        # ... and one pixel less would not


def test_networks_that_fit_28_pixels_only_by_padding_refuse_other_28_pixel_images():
    models.build("vgg11", shape=(1, 28, 28), num_classes=2, width=2)
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 28x28"):
        models.build("vgg11", shape=(3, 28, 28), num_classes=2, width=2)


def test_convnet_features_are_the_blocks_and_end_in_the_embedding():
    net = small("convnet3", CIFAR)
    images = images_for(CIFAR)
    features = net.features(images)
    assert [tuple(feature.shape) for feature in features] == [(2, 4, 16, 16), (2, 4, 8, 8), (2, 4, 4, 4)]
    assert torch.equal(features[-1].flatten(1), net.embed(images))


def test_convnet_equals_its_layers_written_out():
    net = small("convnet3", MNIST)
    x = images_for(MNIST)
    for block, padding in zip(net.body, [3, 1, 1], strict=True):
        conv, norm = block[0], block[1]
        x = F.conv2d(x, conv.weight, conv.bias, padding=padding)
        mean = x.mean(dim=(2, 3), keepdim=True)
        variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        b, c, h, w = x.shape
        x = x.clamp(min=0).view(b, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
    expected = x.flatten(1) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(images_for(MNIST)), expected, rtol=0, atol=1e-12)


def test_instance_norm_has_one_weight_and_one_bias_a_channel():
    norm = models.instance_norm(3)
    assert {name: tuple(parameter.shape) for name, parameter in norm.named_parameters()} == {"weight": (3,), "bias": (3,)}
    assert not list(norm.buffers())


def test_the_two_resnet_conventions_differ_in_norm_and_stem():
    def kinds(name, shape):
        return {type(layer) for layer in small(name, shape).modules()}

    for shape in (MNIST, CIFAR):
        assert nn.GroupNorm in kinds("resnet10", shape) and nn.BatchNorm2d not in kinds("resnet10", shape)
        assert nn.BatchNorm2d in kinds("resnet10_dim", shape) and nn.GroupNorm not in kinds("resnet10_dim", shape)
    assert nn.MaxPool2d in kinds("resnet18_dim", MNIST) and nn.MaxPool2d not in kinds("resnet18_dim", CIFAR)
    strides = [layer.stride for layer in small("resnet18_ap", CIFAR).modules() if isinstance(layer, nn.Conv2d)]
    assert set(strides) == {(1, 1)}


def test_width_scales_the_model_pool_of_dim():
    net = models.build("resnet18_dim", shape=CIFAR, num_classes=10, width=8)
    widths = [block.residual[0].out_channels for block in net.body if isinstance(block, models.BasicBlock)]
    assert widths == [8, 8, 16, 16, 32, 32, 64, 64]
    assert models.build("resnet10_dim", shape=MNIST, num_classes=10, width=8).body[0].out_channels == 16


def test_efficientnet_keeps_a_map_larger_than_one_pixel_at_32_pixels():
    net = models.build("efficientnet_v2_s", shape=CIFAR, num_classes=10).eval()
    assert net.body[0](torch.zeros(1, *CIFAR)).shape == (1, 1280, 4, 4)
    net = models.build("efficientnet_v2_s", shape=(3, 64, 64), num_classes=10).eval()
    assert net.body[0](torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)


# T-NET-2


@pytest.mark.parametrize("name, shape", [("convnet3", MNIST), ("convnet3", (1, 16, 16)), ("vgg11", CIFAR)])
def test_a_convolution_bias_before_an_instance_norm_has_zero_gradient(name, shape):
    """T-NET-2: round-off only, while every other parameter does learn."""
    net = small(name, shape)
    F.cross_entropy(net(images_for(shape, 3)), torch.tensor([0, 1, 2])).backward()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias.grad.abs().max() < 1e-12
            assert layer.weight.grad.abs().max() > 1e-6


# T-NET-3


@pytest.mark.parametrize("name", models.NETWORKS)
def test_flatten_and_unflatten_are_inverse(name):
    net = small(name)
    theta = models.flatten(net)
    assert theta.shape == (models.num_params(net),) and not theta.requires_grad
    parameters = models.unflatten(net, theta)
    assert list(parameters) == [key for key, _ in net.named_parameters()]
    for key, parameter in net.named_parameters():
        assert torch.equal(parameters[key], parameter)
    assert torch.equal(torch.cat([value.flatten() for value in parameters.values()]), theta)


def test_flatten_copies():
    net = small("convnet3")
    theta = models.flatten(net)
    before = theta.clone()
    with torch.no_grad():
        net.head.bias += 1
    assert torch.equal(theta, before)


@pytest.mark.parametrize("name", models.NETWORKS)
def test_the_functional_forward_equals_the_module(name):
    net, other = small(name, seed=0).eval(), small(name, seed=1).eval()
    images = images_for(CIFAR)
    with torch.no_grad():
        assert torch.equal(models.functional(net, models.flatten(other), images), other(images))
        assert not torch.equal(net(images), other(images))              # and left the network as it was


def test_theta_of_another_network_is_refused():
    net = small("convnet3")
    with pytest.raises(ValueError, match=r"theta has shape \(3,\), this network needs \(\d+,\)"):
        models.functional(net, torch.zeros(3), images_for(CIFAR))


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_can_be_differentiated_twice_and_changes_nothing_in_place(name):
    shape = CIFAR if models.NETWORKS[name].smallest > 16 else (3, 16, 16)
    net = small(name, shape)
    theta = models.flatten(net).requires_grad_()
    images = images_for(shape).requires_grad_()
    loss = F.cross_entropy(models.functional(net, theta, images), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    assert second.isfinite().all() and second.abs().max() > 0
    assert not any(getattr(layer, "inplace", False) for layer in net.modules())


def test_first_and_second_derivatives_agree_with_differences():
    """T-MTT-5's precaution: a kink of ReLU inside the step would give the wrong sign, so the step is small."""
    shape, labels = (1, 8, 8), torch.tensor([0, 1])
    net = models.build("convnet3", shape=shape, num_classes=2, width=2, seed=0).double()
    theta, images = models.flatten(net), images_for(shape)
    toward = torch.randn(theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def slope(x: torch.Tensor) -> torch.Tensor:
        """Derivative of the loss along `toward` in parameter space, as a function of the images."""
        moved = theta.clone().requires_grad_()
        loss = F.cross_entropy(models.functional(net, moved, x), labels)
        return torch.autograd.grad(loss, moved, create_graph=True)[0] @ toward

    def loss_at(step: float) -> torch.Tensor:
        return F.cross_entropy(models.functional(net, theta + step * toward, images), labels)

    h = 1e-6
    difference = (loss_at(h) - loss_at(-h)) / (2 * h)
    torch.testing.assert_close(slope(images).detach(), difference, rtol=1e-5, atol=1e-7)

    x = images.clone().requires_grad_()
    (mixed,) = torch.autograd.grad(slope(x), x)
    for pixel in [(0, 0, 3, 4), (1, 0, 5, 2), (0, 0, 7, 7)]:
        bump = torch.zeros_like(images)
        bump[pixel] = h
        difference = (slope(images + bump) - slope(images - bump)) / (2 * h)
        torch.testing.assert_close(mixed[pixel], difference.detach(), rtol=1e-4, atol=1e-7)


# Seeds and refusals


@pytest.mark.parametrize("name", models.NETWORKS)
def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(name):
    state = torch.get_rng_state()
    first, again, other = (models.flatten(small(name, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_a_seed_two_networks_differ():
    first, second = (models.flatten(models.build("convnet3", shape=CIFAR, num_classes=2, width=2)) for _ in range(2))
    assert not torch.equal(first, second)


def test_seeded_weights_are_those_of_the_framework():
    net = models.build("convnet3", shape=CIFAR, num_classes=10, width=4, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = nn.Conv2d(3, 4, 3)
    assert torch.equal(net.body[0][0].weight, first.weight)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "convnet9"}, r"unknown network 'convnet9'; choose from convnet3, convnet4, .*efficientnet_v2_s"),
        ({"width": 0}, "convnet3 has a width of at least 1; got width=0"),
        ({"name": "efficientnet_v2_s", "width": 8}, "efficientnet_v2_s has one size only, so leave width out; got width=8"),
        ({"shape": (32, 32)}, r"shape must be \(channels, height, width\), all positive, got \(32, 32\)"),
        ({"shape": (0, 32, 32)}, "all positive"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{"name": "convnet3", "shape": CIFAR, "num_classes": 10, **arguments})


def test_every_network_of_the_published_tables_can_be_built():
    with resources.files("ddlib").joinpath("assets/paper_tables.csv").open(encoding="utf-8") as table:
        published = {row["eval_arch"] for row in csv.DictReader(table)} - {""}
    assert "convnet3" in published and published <= set(models.NETWORKS)
