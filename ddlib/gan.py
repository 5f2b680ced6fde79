"""A conditional GAN: generator, discriminator and their losses, as pure functions (the networks of DiM, SKD and GLD).

The discriminator is not told the class, it predicts it (an auxiliary classifier). Images of a GAN are in [-1, 1]; whoever
shows them to a classifier maps them to [0, 1] first and then applies the data's preprocessing, `preprocess((x + 1) / 2)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Objective = Literal["wasserstein", "log"]
STAGES = 3                                                       # times that the generator doubles the sides


def noise_size(num_classes: int) -> int:
    """Inputs of a generator: 100, or more where that would leave fewer than 90 for noise."""
    return max(100, num_classes + 90)


def condition(labels: Tensor, num_classes: int, size: int, rng: torch.Generator) -> Tensor:
    """What a generator reads, (B, size): standard normal noise whose first C entries are replaced by the one-hot label (B,).

    This is the base code's meaning of the papers' "noise and label, concatenated": for C = 10, 90 of 100 entries are noise.
    """
    noise = torch.randn(len(labels), size, generator=rng).to(labels.device)
    noise[:, :num_classes] = F.one_hot(labels, num_classes)
    return noise


def sides(length: int) -> list[int]:
    """Lengths of a side from the smallest map to the image, each half the next, rounded up: 28 -> [4, 7, 14, 28]."""
    lengths = [length]
    for _ in range(STAGES):
        lengths.insert(0, -(-lengths[0] // 2))
    return lengths


class Generator(nn.Module):
    """(B, noise) -> images (B, c, h, w) in [-1, 1]; 3,559,363 parameters for 3x32x32 and 3,286,921 for 1x28x28.

    A linear layer to 4x4 maps (an eighth of the image, rounded up), then three transposed convolutions that double the sides, with
    3, 1 and 1 ordinary 3x3 convolutions behind them. Batch norm and ReLU after every layer but the last, which has tanh.
    A side that has to come out odd, like the 7 of 28-pixel images, gets a kernel of 3 instead of 4.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int = 196, noise: int = 0):
        super().__init__()
        self.shape, self.num_classes, self.width = shape, num_classes, width
        self.noise_size = noise or noise_size(num_classes)
        if self.noise_size <= num_classes:
            raise ValueError(f"the label takes {num_classes} of {self.noise_size} inputs and leaves none for noise: "
                             f"choose noise above {num_classes}")
        heights, widths = sides(shape[1]), sides(shape[2])
        start = width * heights[0] * widths[0]
        self.start = nn.Sequential(nn.Linear(self.noise_size, start), nn.BatchNorm1d(start), nn.ReLU(),
                                   nn.Unflatten(1, (width, heights[0], widths[0])))
        layers: list[nn.Module] = []
        for stage, plain in enumerate((3, 1, 0)):
            kernel = tuple(4 - lengths[stage + 1] % 2 for lengths in (heights, widths))
            layers += [nn.ConvTranspose2d(width, width, kernel, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]  # type: ignore[arg-type]
            for _ in range(plain):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, shape[0], 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.start(z))


class Discriminator(nn.Module):
    """Images (B, c, h, w) in [-1, 1] -> source scores (B,), no sigmoid, and class logits (B, C).

    Eight 3x3 convolutions, the second, fourth and eighth of stride 2, each with layer norm over (C, H, W) (the gradient penalty
    rules batch norm out) and LeakyReLU; the maximum over what is left of the image; two linear heads. 3,137,971 parameters
    for 3x32x32 and 2,969,803 for 1x28x28, both with 10 classes.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int = 196):
        super().__init__()
        self.shape, self.num_classes, self.width = shape, num_classes, width
        channels, height, across = shape
        layers: list[nn.Module] = []
        for number in range(1, 9):
            stride = 2 if number in (2, 4, 8) else 1
            height, across = -(-height // stride), -(-across // stride)
            layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.LayerNorm([width, height, across]), nn.LeakyReLU(0.01)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.MaxPool2d((height, across)), nn.Flatten())
        self.source, self.classes = nn.Linear(width, 1), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(x)                                                       # (B, width)
        wide = torch.promote_types(features.dtype, torch.float32)                       # sums of scores are not taken in bfloat16
        return self.source(features).squeeze(1).to(wide), self.classes(features).to(wide)


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """Mean of (|grad score(x^)|_2 - 1)^2 at x^ = u real + (1 - u) fake, one u (B, 1, 1, 1) in [0, 1] an image; a scalar.

    score: images (B, c, h, w) -> (B,). Zero where the score rises by exactly 1 per unit of distance (WGAN-GP).
    """
    between = (u * real + (1 - u) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def discriminator_loss(net: Discriminator, real: Tensor, labels: Tensor, fake: Tensor, fake_labels: Tensor, objective: Objective,
                       u: Tensor, penalty: float = 10.0) -> dict[str, Tensor]:
    """What the discriminator minimises: "total" and its terms source, class_real, class_fake and penalty.

    wasserstein: mean D(fake) - mean D(real) + penalty * gradient_penalty, as the base code; log: the papers' log loss,
    -mean log D(real) - mean log(1 - D(fake)) with D a sigmoid of the score, and no penalty. Both add the cross-entropies of
    the classes of real and fake images.
    """
    source_real, logits_real = net(real)
    source_fake, logits_fake = net(fake)
    if objective == "wasserstein":
        source = source_fake.mean() - source_real.mean()
        slope = penalty * gradient_penalty(lambda x: net(x)[0], real, fake, u)
    else:
        source = F.softplus(-source_real).mean() + F.softplus(source_fake).mean()       # -log sigmoid(s) is softplus(-s)
        slope = torch.zeros_like(source)
    terms = {"source": source, "class_real": F.cross_entropy(logits_real, labels),
             "class_fake": F.cross_entropy(logits_fake, fake_labels), "penalty": slope}
    return {"total": sum(terms.values(), torch.zeros_like(source))} | terms


def generator_loss(net: Discriminator, fake: Tensor, labels: Tensor, objective: Objective) -> dict[str, Tensor]:
    """What the generator minimises: "total" and its terms source and class.

    wasserstein: -mean D(fake); log: -mean log D(fake), the form of the minimax game whose gradient does not vanish while the
    discriminator wins. Both add the cross-entropy of the classes that were asked for.
    """
    source_fake, logits = net(fake)
    source = -source_fake.mean() if objective == "wasserstein" else F.softplus(-source_fake).mean()
    terms = {"source": source, "class": F.cross_entropy(logits, labels)}
    return {"total": source + terms["class"]} | terms
