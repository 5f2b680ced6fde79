"""The networks of the papers: one class per architecture, `build` to make one, flat parameter vectors to match them.

Every network is a body that turns images into one vector per image (`embed`) and a linear layer on it. Distillation
differentiates through the training of a network, so nothing here works in place and the distillation networks use
instance norm: it keeps no running statistics, so a functional call leaves the network as it was. The networks with
batch norm (`*_dim`, `densenet121`, `efficientnet_v2_s`) update theirs in training mode, also inside `functional`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torchvision
from torch import Tensor, nn

from ddlib.kernels.block import norm_relu_pool

Shape = tuple[int, int, int]                                                           # c, h, w


def instance_norm(width: int) -> nn.GroupNorm:
    """Normalise each channel of each image over its pixels, then scale and shift: (B, width, h, w) -> the same shape.

    Group norm with one channel per group: equal to mean and variance written out, and the fastest form on a CPU.
    """
    return nn.GroupNorm(width, width)


def padded_to_32(shape: Shape) -> bool:
    """One-channel 28-pixel images (the MNIST family) are padded by the first convolution to become 32 x 32 maps."""
    return tuple(shape) == (1, 28, 28)


def map_size(shape: Shape, halvings: int) -> tuple[int, int]:
    """Height and width of the feature map after that many 2x2 poolings, for networks that pad 28 pixels to 32."""
    _, h, w = (1, 32, 32) if padded_to_32(shape) else shape
    return h >> halvings, w >> halvings


class Classifier(nn.Module):
    """A body that turns (B, c, h, w) images into (B, F) features, and a linear head: (B, F) -> (B, C) logits.

    middle: how many of the body's layers `mid` looks behind; 0 for networks that nobody has looked into.
    """

    def __init__(self, body: nn.Sequential, num_features: int, num_classes: int, middle: int = 0):
        super().__init__()
        self.body, self.middle = body, middle
        self.head = nn.Linear(num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, F), the vector that the last linear layer reads."""
        return self.body(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images))

    def mid(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and on the way to them the map (B, k, h', w') in the middle of the body (the layer of GLD, eq. 7).

        A ConvNet's is that of block 2 after its pooling, a ResNet's that of stage 2. Other networks raise ValueError.
        """
        if not self.middle:
            raise ValueError(f"{type(self).__name__} has no middle layer that is agreed on: take a ConvNet or a ResNet")
        features = self.body[:self.middle](images)
        return self.head(self.body[self.middle:](features).flatten(1)), features


class ConvBlock(nn.Sequential):
    """Convolution, norm, ReLU and 2x2 average pooling, the last three at once: (B, inputs, h, w) -> (B, width, h // 2, w // 2)."""

    def __init__(self, inputs: int, width: int, padding: int):
        super().__init__(nn.Conv2d(inputs, width, 3, padding=padding), instance_norm(width), nn.ReLU(), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = cast(nn.GroupNorm, self[1])
        return norm_relu_pool(self[0](x), norm.weight, norm.bias, norm.eps)


class ConvNet(Classifier):
    """ConvNet-D (DC, section 4; the default of every method): `depth` blocks of convolution, norm, ReLU and pooling.

    F = width (h / 2^depth) (w / 2^depth): 2048 for depth 3, width 128 and 32 pixels. The convolutions keep their bias,
    as published, although the norm that follows removes it again: those coordinates never move.
    """

    def __init__(self, shape: Shape, num_classes: int, width: int, depth: int):
        blocks, inputs = [], shape[0]
        for index in range(depth):
            padding = 3 if index == 0 and padded_to_32(shape) else 1
            blocks.append(ConvBlock(inputs, width, padding))
            inputs = width
        h, w = map_size(shape, depth)
        super().__init__(nn.Sequential(*blocks), width * h * w, num_classes, middle=2)

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of each block, (B, width, h / 2^d, w / 2^d) for d = 1 .. depth; the last, flattened, is `embed`."""
        outputs: list[Tensor] = []
        for block in self.body:
            outputs.append(block(outputs[-1] if outputs else images))
        return outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016). `average` replaces strides by 2x2 average pooling."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module], average: bool):
        super().__init__()
        shrink = nn.AvgPool2d(2) if average and stride == 2 else nn.Identity()
        stride = 1 if average else stride
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), norm(outputs), nn.ReLU(), shrink,
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), norm(outputs),
        )
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), shrink, norm(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNet(Classifier):
    """Four stages of `num_blocks` basic blocks, widths (1, 2, 4, 8) times `width`, each stage after the first halving.

    A small 3x3 stem, or with `large_stem` the 7x7 convolution and max pooling that ImageNet networks use. The head
    reads the global average, or with `average` (the AP variant of DC) the whole last map.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        width: int,
        num_blocks: int,
        norm: Callable[[int], nn.Module] = instance_norm,
        average: bool = False,
        large_stem: bool = False,
    ):
        if large_stem:
            conv = nn.Conv2d(shape[0], width, 7, stride=2, padding=3, bias=False)
            layers = [conv, norm(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        else:
            layers = [nn.Conv2d(shape[0], width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
        inputs, middle = width, len(layers) + 2 * num_blocks
        for stage in range(4):
            for block in range(num_blocks):
                outputs = width * 2**stage
                layers.append(BasicBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1, norm, average))
                inputs = outputs
        if not average:
            layers.append(nn.AdaptiveAvgPool2d(1))
        pixels = (shape[1] >> 3) * (shape[2] >> 3) if average else 1
        super().__init__(nn.Sequential(*layers), inputs * pixels, num_classes, middle)


class AlexNet(Classifier):
    """The small AlexNet of DC: five convolutions without a norm; widths (2, 3, 4, 3, 3) times `width`, 64."""

    def __init__(self, shape: Shape, num_classes: int, width: int):
        layers: list[nn.Module] = []
        inputs = shape[0]
        for index, (multiple, kernel) in enumerate([(2, 5), (3, 5), (4, 3), (3, 3), (3, 3)]):
            padding = 4 if index == 0 and padded_to_32(shape) else kernel // 2
            layers += [nn.Conv2d(inputs, multiple * width, kernel, padding=padding), nn.ReLU()]
            if index in (0, 1, 4):
                layers.append(nn.MaxPool2d(2))
            inputs = multiple * width
        h, w = map_size(shape, 3)
        super().__init__(nn.Sequential(*layers), inputs * h * w, num_classes)


class VGG11(Classifier):
    """VGG11 of DC: eight convolutions with instance norm; widths (1, 2, 4, 4, 8, 8, 8, 8) times `width`, 64."""

    def __init__(self, shape: Shape, num_classes: int, width: int):
        layers: list[nn.Module] = []
        inputs = shape[0]
        for index, multiple in enumerate([1, 2, 4, 4, 8, 8, 8, 8]):
            padding = 3 if index == 0 and padded_to_32(shape) else 1
            conv = nn.Conv2d(inputs, multiple * width, kernel_size=3, padding=padding)
            layers += [conv, instance_norm(multiple * width), nn.ReLU()]
            if index in (0, 1, 3, 5, 7):
                layers.append(nn.MaxPool2d(2))
            inputs = multiple * width
        h, w = map_size(shape, 5)
        super().__init__(nn.Sequential(*layers), inputs * h * w, num_classes)


class DenseNet121(Classifier):
    """torchvision's DenseNet-121 with a 3x3 stem for small images; `width` is the growth rate, 32 as published."""

    def __init__(self, shape: Shape, num_classes: int, width: int):
        net = torchvision.models.DenseNet(width, (6, 12, 24, 16), num_init_features=2 * width)
        stem = nn.Conv2d(shape[0], 2 * width, 3, padding=1, bias=False)
        stages = list(net.features.children())[4:]                    # after the 7x7 stem, its norm, ReLU and pooling
        super().__init__(
            without_inplace(nn.Sequential(stem, *stages, nn.ReLU(), nn.AdaptiveAvgPool2d(1))),
            net.classifier.in_features,
            num_classes,
        )


class EfficientNetV2S(Classifier):
    """torchvision's EfficientNetV2-S, from scratch; up to 32 pixels the first two strides of 2 are 1 instead.

    As it is, its last map would be 1x1.

    Keeps torchvision's dropout and stochastic depth, which draw from torch's global generator in training mode.
    """

    def __init__(self, shape: Shape, num_classes: int):
        net = torchvision.models.efficientnet_v2_s(weights=None)
        stride = 1 if max(shape[1:]) <= 32 else 2
        stem = nn.Conv2d(shape[0], 24, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")          # as torchvision initialises the layer it replaces
        net.features[0][0] = stem
        net.features[2][0].block[0][0].stride = (stride, stride)
        body = nn.Sequential(net.features, net.avgpool, net.classifier[0])
        super().__init__(without_inplace(body), net.classifier[1].in_features, num_classes)


def without_inplace(module: nn.Sequential) -> nn.Sequential:
    """Activations in place would overwrite what the second derivative needs."""
    for layer in module.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False  # type: ignore[assignment]
    return module


@dataclass(frozen=True)
class Network:
    """How `build` makes one network: `make(shape, num_classes, width)`, and what it accepts.

    width: default width, None where it cannot be chosen. smallest: below it the last instance norm would see a 1x1 map,
    whose normalised value is a constant, or nothing would be left to pool.
    """

    make: Callable[[Shape, int, int], Classifier]
    width: int | None
    smallest: int


def _convnet(depth: int) -> Network:
    return Network(lambda shape, classes, width: ConvNet(shape, classes, width, depth), 128, 2**depth)


def _resnet(num_blocks: int, average: bool = False) -> Network:
    make = lambda shape, classes, width: ResNet(shape, classes, width, num_blocks, average=average)
    return Network(make, 64, 16 if average else 9)


def _resnet_dim(num_blocks: int) -> Network:
    """The model pool of DiM: batch norm, base width 32; for 28-pixel images its code takes the large form, base 64."""

    def make(shape: Shape, num_classes: int, width: int) -> Classifier:
        large = padded_to_32(shape)
        return ResNet(shape, num_classes, 2 * width if large else width, num_blocks, nn.BatchNorm2d, large_stem=large)

    return Network(make, 32, 1)


NETWORKS = {
    "convnet3": _convnet(3),
    "convnet4": _convnet(4),
    "convnet5": _convnet(5),
    "resnet10": _resnet(1),
    "resnet18": _resnet(2),
    "resnet18_ap": _resnet(2, average=True),
    "resnet10_dim": _resnet_dim(1),
    "resnet18_dim": _resnet_dim(2),
    "alexnet": Network(AlexNet, 64, 8),
    "vgg11": Network(VGG11, 64, 32),
    "densenet121": Network(DenseNet121, 32, 8),
    "efficientnet_v2_s": Network(lambda shape, classes, _: EfficientNetV2S(shape, classes), None, 1),
}


def build(
    name: str, *, shape: Shape, num_classes: int, width: int | None = None, seed: int | None = None
) -> Classifier:
    """Make a freshly initialised network for (c, h, w) images, with the initialisation of its framework.

    width: base width, which scales the whole network; the published one by default. For `resnet*_dim` it is that of
    32-pixel images (32), doubled for the large form of 28-pixel images; for `densenet121` it is the growth rate.
    seed: decides the initial weights and leaves torch's global generator alone; None draws from that generator.
    Raises ValueError for an unknown name, a width that cannot be, or images too small for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose from {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width), all positive, got {tuple(shape)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if width is not None and (network.width is None or width < 1):
        possible = "a width of at least 1" if network.width else "one size only, so leave width out"
        raise ValueError(f"{name} has {possible}; got width={width}")
    if min(map_size(shape, 0) if network.smallest > 1 else shape[1:]) < network.smallest:
        raise ValueError(
            f"{name} needs images of at least {network.smallest} pixels a side, got {shape[1]}x{shape[2]}; "
            "choose a network with fewer poolings, such as convnet3, or enlarge the images"
        )
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)                 # torch.manual_seed would also reseed the GPUs
        return network.make((shape[0], shape[1], shape[2]), num_classes, width or network.width or 0)


def num_params(net: nn.Module) -> int:
    """Number of trained scalars, P."""
    return sum(parameter.numel() for parameter in net.parameters())


def flatten(net: nn.Module) -> Tensor:
    """All parameters as one new vector theta (P,), in the order of `net.parameters()`, detached from the network."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])


def unflatten(net: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """theta (P,) -> {name: view of theta with that parameter's shape}; the inverse of `flatten`."""
    named = dict(net.named_parameters())
    if theta.shape != (num_params(net),):
        raise ValueError(f"theta has shape {tuple(theta.shape)}, this network needs ({num_params(net)},)")
    pieces = theta.split([parameter.numel() for parameter in named.values()])
    return {name: piece.view_as(named[name]) for name, piece in zip(named, pieces, strict=True)}


def functional(net: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
    """Logits (B, C) of the network with parameters theta (P,), differentiable in theta and images to any order."""
    return torch.func.functional_call(net, unflatten(net, theta), (images,))
