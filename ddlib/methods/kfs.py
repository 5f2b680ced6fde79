"""Dataset Condensation with Latent Space Knowledge Factorization and Sharing (KFS; Lee, Lee and Hwang 2022), reconstructed.

A handful of small codes per class and a few tiny decoders, every code read by every decoder: many more images for the same
number of stored scalars. Everything else is DM: class means under random networks.

No code is public; code shapes, decoder layers, and decoders shared by all classes are ours (`distilled.FactoredSet`), the
rates are those that ESP gives for the same parametrisation, and the number of steps is DM's. Cost of a step: real_batch
forward passes per class, and forward and backward for the decoded images, a chunk at a time (on one CPU core, width 16:
0.16 s at IPC 1 with 64 real images and 14 decoded ones per class).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddlib import augment, models
from ddlib.data import ImageSet
from ddlib.distilled import FactoredSet
from ddlib.methods import State, Step, check_finite, dm, main
from ddlib.runs import stream

NAME = "KFS"
CHUNK = 1024            # decoded images whose activations are in memory at once


@dataclass(frozen=True, kw_only=True)
class KFSConfig:
    """One KFS run. The defaults are those of CIFAR-10, IPC 10. [E] marks what ESP states for codes and decoders, [D] what is
    DM's; KFS itself was published without code, and the rest is our reconstruction."""

    dataset: str = "cifar10"
    ipc: int = 10                       # [E] the budget: codes and decoders together need no more scalars than ipc images per class
    num_decoders: int = 4               # n_d
    num_codes: int = 0                  # n_z per class; 0: as many as fit
    network: str = "convnet3"           # [E]
    width: int = 128                    # [E]
    steps: int = 20_000                 # [D] outer updates, a new random network for each
    real_batch: int = 256               # [D] real images per class and step
    decoded_per_class: int = 0          # decoded images of a class that a step looks at, drawn anew; 0: all
    code_lr: float = 0.1                # [E] Adam; both rates fall linearly to 0
    decoder_lr: float = 0.01            # [E]
    augment: str = augment.DSA          # [D] siamese: real and synthetic images of a class share one draw
    seed: int = 0

    def __post_init__(self) -> None:
        check_factors(self.num_decoders, self.num_codes, self.code_lr, self.decoder_lr)
        if self.decoded_per_class < 0:
            raise ValueError(f"decoded_per_class must be at least 1, or 0 for all, got {self.decoded_per_class}")
        self.dm()

    def dm(self) -> dm.DMConfig:
        """The settings shared with DM, which checks them."""
        return dm.DMConfig(dataset=self.dataset, ipc=self.ipc, network=self.network, width=self.width, steps=self.steps,
                           real_batch=self.real_batch, augment=self.augment, seed=self.seed)


def check_factors(num_decoders: int, num_codes: int, code_lr: float, decoder_lr: float) -> None:
    """ValueError for numbers of codes and decoders, or rates, that cannot be."""
    if num_decoders < 1 or num_codes < 0:
        raise ValueError(f"num_decoders must be at least 1 and num_codes at least 1, or 0 for as many as fit, "
                         f"got {num_decoders} and {num_codes}")
    if not (0 <= code_lr < math.inf and 0 <= decoder_lr < math.inf):
        raise ValueError(f"code_lr and decoder_lr must be at least 0 and finite, got {code_lr} and {decoder_lr}")


# Where KFS and ESP are published (ESP, Table 1), with the number of decoders: one that leaves little of the budget unused.
PUBLISHED = {("svhn", 1): 4, ("svhn", 10): 4, ("svhn", 50): 4, ("cifar10", 1): 4, ("cifar10", 10): 4, ("cifar10", 50): 4,
             ("cifar100", 1): 8, ("cifar100", 10): 4, ("tiny_imagenet", 1): 16, ("tiny_imagenet", 10): 4}

PRESETS = {
    "tiny": KFSConfig(dataset="toy", ipc=1, num_decoders=2, width=4, steps=6, real_batch=8),
    "cpu": KFSConfig(dataset="fashion_mini", ipc=1, num_decoders=2, width=16, steps=300, real_batch=64, decoded_per_class=20),
    "gpu-ipc1": KFSConfig(ipc=1, steps=5_000),
    "gpu-ipc10": KFSConfig(ipc=10, steps=5_000),
}
PRESETS["gpu"] = PRESETS["gpu-ipc10"]
PRESETS |= {                            # 64-pixel images need a fourth block
    f"{dataset.replace('_', '-')}-ipc{ipc}": KFSConfig(dataset=dataset, ipc=ipc, num_decoders=num_decoders,
                                                       network="convnet4" if dataset == "tiny_imagenet" else "convnet3")
    for (dataset, ipc), num_decoders in PUBLISHED.items()
}


def choose(num_classes: int, held: int, wanted: int, rng: torch.Generator) -> Tensor:
    """Which images to look at: `wanted` of the `held` images of every class, all if 0. Indices (C * n,), class by class."""
    if not 0 < wanted < held:
        return torch.arange(num_classes * held)
    return torch.cat([label * held + torch.randperm(held, generator=rng)[:wanted] for label in range(num_classes)])


def match(net: models.Classifier, images: Tensor, num_classes: int, loss: Callable[[Tensor], Tensor],
          chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The value of `loss` at the embeddings (C, n, F) of images (C * n, c, h, w), and its gradient to the images.

    More than `chunk` images are embedded twice: without a graph for the loss and its gradient to the embeddings, then chunk
    by chunk to take that gradient to the pixels. The result is the same and the memory does not grow with n.
    """
    parts = [part.detach().requires_grad_() for part in images.split(chunk)]
    with torch.set_grad_enabled(len(parts) == 1):
        features = torch.cat([net.embed(part) for part in parts])                       # (C * n, F)
    if len(parts) == 1:
        value = loss(features.unflatten(0, (num_classes, -1)))
        return value.detach(), torch.autograd.grad(value, parts[0])[0]
    value = loss(features.requires_grad_().unflatten(0, (num_classes, -1)))
    (wanted,) = torch.autograd.grad(value, features)                                    # (C * n, F)
    pixels = [torch.autograd.grad(net.embed(part), part, rest)[0] for part, rest in zip(parts, wanted.split(chunk), strict=True)]
    return value.detach(), torch.cat(pixels)


def set_rates(optimizer: torch.optim.Optimizer, done: int, total: int) -> None:
    """Linear decay: after `done` of `total` updates the first rate of every group is multiplied by 1 - done / total."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("first_lr", group["lr"]) * (1 - done / total)


def distill(real: ImageSet, config: KFSConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every outer update of codes and decoders; stop early by leaving the loop."""
    rng = stream(config.seed, "kfs")
    syn = FactoredSet.from_noise(real, config.ipc, config.num_decoders, rng, config.num_codes, method=NAME)
    optimizer = torch.optim.Adam(syn.param_groups(config.code_lr, config.decoder_lr))
    strategy = augment.strategy_for(real, config.augment)
    state = State(syn=syn, optimizer=optimizer, rng=rng)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index in range(state.restore(resume) + 1, config.steps + 1):
        net_seed = int(torch.randint(2**31, (), generator=rng))
        net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=net_seed)
        net = net.to(syn.codes.device).requires_grad_(False)
        images = syn.decode(choose(real.num_classes, syn.per_class, config.decoded_per_class, rng))      # (C * n, c, h, w)
        real_images, syn_images = dm.draw_pairs(real, images, config.real_batch, strategy, rng)
        real_features = dm.embed_real(net, real_images, real.num_classes)
        loss, pixels = match(net, syn_images, real.num_classes, partial(dm.matching_loss, real_features))
        gradients = torch.autograd.grad(syn_images, params, pixels)
        losses = check_finite(index, match=loss, gradient=torch.cat([gradient.flatten() for gradient in gradients]).norm())
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        set_rates(optimizer, index - 1, config.steps)
        optimizer.step()
        yield Step(index, losses, syn, state)


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
