"""Dataset Condensation with Distribution Matching (DM; Zhao and Bilen, WACV 2023).

A random, untrained network is a fair enough eye: draw one, look at real and synthetic images of a class through it, and
move the synthetic pixels until both class means are the same. A new network every step, none is ever trained.

Differs from the official code: augmentation uses one grid alignment everywhere, and its parameters come from an
explicit random stream. Cost of a step: real_batch forward passes per class, and forward and backward for the synthetic
images (on two CPU cores, width 16: 0.06 s at IPC 1 with 64 real images per class).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddlib import augment, models
from ddlib.data import ImageSet
from ddlib.distilled import from_real
from ddlib.methods import State, Step, check_finite, main
from ddlib.runs import stream

NAME = "DM"
# batch norm would mix the classes of a batch, and real with synthetic statistics
FIT_FOR_DM = ("convnet3", "convnet4", "convnet5", "resnet10", "resnet18", "resnet18_ap", "alexnet", "vgg11")


@dataclass(frozen=True, kw_only=True)
class DMConfig:
    """One DM run. The defaults are the paper's, section 4.1 (CIFAR-10, IPC 10)."""

    dataset: str = "cifar10"
    ipc: int = 10                       # images per class
    poster: str = ""                    # "98x39/8x4": in place of ipc images a poster of this size under 8x4 patches (ours; see PoDD)
    network: str = "convnet3"
    width: int = 128
    steps: int = 20_000                 # outer updates, a new random network for each
    real_batch: int = 256               # real images per class and step
    pixel_lr: float = 1.0               # 10 for ipc >= 100
    momentum: float = 0.5
    augment: str = augment.DSA          # siamese: real and synthetic images of a class share one draw
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.real_batch < 1 or self.width < 1:
            raise ValueError(f"steps, real_batch and width must be at least 1, got {self.steps}, {self.real_batch}, {self.width}")
        if self.network not in FIT_FOR_DM:
            raise ValueError(f"network {self.network!r} does not go with DM, whose networks normalise each image by itself; "
                             f"choose from {', '.join(FIT_FOR_DM)}")
        augment.parse(self.augment)

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the paper's images."""
        return f"poster {self.poster}" if self.poster else ""


PRESETS = {
    "tiny": DMConfig(dataset="toy", ipc=1, width=4, steps=6, real_batch=8),
    # the rate was chosen on validation images: a short run at IPC 10 gains from ten times the paper's, IPC 1 does not care
    "cpu": DMConfig(dataset="fashion_mini", ipc=1, width=16, steps=300, real_batch=64, pixel_lr=10.0),
    "gpu": DMConfig(steps=10_000),
}
PRESETS |= {                            # the published cells: DM's rows in the tables of the five papers
    f"{dataset.replace('_', '-')}-ipc{ipc}": DMConfig(dataset=dataset, ipc=ipc)
    for dataset in ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100") for ipc in (1, 10, 50)
}
PRESETS |= {f"tiny-imagenet-ipc{ipc}": DMConfig(dataset="tiny_imagenet", ipc=ipc, network="convnet4") for ipc in (1, 10)}


def matching_loss(real_features: Tensor, syn_features: Tensor) -> Tensor:
    """Squared distance between class means, summed over classes (DM, eq. 5).

    real_features: (C, B, F) embeddings of B real images of each class; syn_features: (C, IPC, F). Returns a scalar.
    """
    difference = real_features.mean(dim=1) - syn_features.mean(dim=1)                   # (C, F)
    return difference.square().sum()


def draw_pairs(real: ImageSet, images: Tensor | Sequence[Tensor], real_batch: int, strategy: str,
               rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A real batch (C * B, c, h, w) and the synthetic images given, augmented class by class with one draw.

    images: (C * n, c, h, w), class by class, or those of each class. B is real_batch, or the size of the smallest class: every
    class gives as many real images.
    """
    batch_size = min(real_batch, *(len(real.train.of_class(label)) for label in range(real.num_classes)))
    real_images, syn_images = [], []
    groups = images.split(len(images) // real.num_classes) if isinstance(images, Tensor) else images
    for label, of_class in enumerate(groups):                                           # (n, c, h, w) each
        batch = real.preprocess(real.draw(label, batch_size, rng))                      # (B, c, h, w)
        drawn = augment.draw(strategy, 1, real.shape, rng, siamese=True)
        real_images.append(augment.apply(drawn, batch))
        syn_images.append(augment.apply(drawn, of_class))
    return torch.cat(real_images), torch.cat(syn_images)


def class_means(features: Tensor, labels: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Mean features (C, F) of each class, weighted by the labels (N, C) of its `members`; features: those of all members in turn.

    ValueError for a class that no image is labelled with.
    """
    means = []
    for label, (of_class, each) in enumerate(zip(features.split([len(each) for each in members]), members, strict=True)):
        if len(each) == 0:
            raise ValueError(f"no image is labelled as class {label}: a poster needs more patches for DM")
        weights = labels[each, label]                                                   # (n,)
        means.append((weights / weights.sum()) @ of_class)
    return torch.stack(means)


def embed_real(net: models.Classifier, images: Tensor, num_classes: int, chunk: int = 512) -> Tensor:
    """Embeddings (C, B, F) without a graph, a chunk at a time so that memory does not grow with B."""
    with torch.no_grad():
        return torch.cat([net.embed(part) for part in images.split(chunk)]).unflatten(0, (num_classes, -1))


def distill(real: ImageSet, config: DMConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every outer update of the synthetic pixels; stop early by leaving the loop."""
    rng = stream(config.seed, "dm")
    syn = from_real(real, config.ipc, config.poster, rng, method=NAME)
    optimizer = torch.optim.SGD(syn.param_groups(config.pixel_lr), momentum=config.momentum)
    strategy = augment.strategy_for(real, config.augment)
    state = State(syn=syn, optimizer=optimizer, rng=rng)
    done = state.restore(resume)
    labels = syn.all()[1].detach()                                                      # (N, C)
    members = [labels[:, label].nonzero().flatten() for label in range(real.num_classes)]
    for index in range(done + 1, config.steps + 1):
        net_seed = int(torch.randint(2**31, (), generator=rng))
        net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=net_seed)
        net = net.to(syn.device).requires_grad_(False)
        images, _ = syn.all()
        real_images, syn_images = draw_pairs(real, [images.index_select(0, each) for each in members], config.real_batch, strategy, rng)
        syn_means = class_means(net.embed(syn_images), labels, members)                 # (C, F)
        loss = matching_loss(embed_real(net, real_images, real.num_classes), syn_means[:, None])
        (pixels,) = syn.sources
        (pixels.grad,) = torch.autograd.grad(loss, pixels)
        losses = check_finite(index, match=loss, gradient=pixels.grad.norm())
        optimizer.step()
        yield Step(index, losses, syn, state)


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
