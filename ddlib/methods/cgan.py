"""A conditional GAN as a distilled set: the first stage of DiM, SKD and GLD, and their baseline.

Generator and discriminator are trained against each other; the generator is what is kept, and it makes as many images as are
asked for. One generator step on the classes of a real batch, then one discriminator step with fresh random classes.

The papers print the log loss of the first GANs; the base code (DiM) trains a Wasserstein GAN with gradient penalty, and so do
we, with the log loss as `objective="log"`. A tenth of the training images is held out, and a short last batch is left out.
Cost of a step, per image: 4 forward passes of the generator and about 15 of the discriminator, of which the penalty takes 6.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ddlib import gan, runs, train
from ddlib.data import ImageSet
from ddlib.distilled import GeneratorSet
from ddlib.methods import Diverged, State, Step, check_finite, main, versions
from ddlib.runs import stream
from ddlib.train import Batch

NAME = "CGAN"
SNAPSHOTS = 6                                                    # sets that are kept while it is trained


@dataclass(frozen=True, kw_only=True)
class CGANConfig:
    """One GAN. The defaults are the base code's for CIFAR-10."""

    dataset: str = "cifar10"
    ipc: int = 1                          # what the set is asked for at first; any number later
    gan_width: int = 196                  # channels of both networks
    objective: gan.Objective = "wasserstein"
    steps: int = 52_650                   # one step of each network; 150 epochs
    batch_size: int = 128
    lr: float = 1e-4                      # Adam, both networks
    beta1: float = 0.0
    beta2: float = 0.9
    penalty: float = 10.0                 # weight of the gradient penalty; the log loss has none
    average: float = 0.0                  # decay of an average of the generator's weights, which is then the set; 0: none (ours)
    max_gradient: float = 1e4             # a larger gradient norm of either network stops the run
    precision: train.Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("ipc", 1), ("gan_width", 1), ("steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, choices in (("objective", get_args(gan.Objective)), ("precision", get_args(train.Precision))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("beta1", "beta2", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not (0 <= self.lr < math.inf and 0 <= self.penalty < math.inf and self.max_gradient > 0):
            raise ValueError("lr and penalty must be at least 0 and finite, max_gradient above 0, "
                             f"got {self.lr}, {self.penalty}, {self.max_gradient}")

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the base code's objective."""
        return versions(self, objective="wasserstein")


def to_gan(images: Tensor) -> Tensor:
    """uint8 images (B, c, h, w) -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def real_batches(real: ImageSet, batch_size: int, seed: int, first: int = 0) -> Iterator[Batch]:
    """Endless batches of training images (B, c, h, w) uint8 and labels (B,), from batch number `first` on.

    Every pass is a permutation of its own stream without a short last batch, so batch number n is the same wherever one starts.
    """
    batch_size = min(batch_size, len(real.train))
    per_pass = len(real.train) // batch_size
    number = first
    while True:
        epoch, start = divmod(number, per_pass)
        order = torch.randperm(len(real.train), generator=stream(seed, "gan batches", epoch)).to(real.train.images.device)
        for indices in order.split(batch_size)[start:per_pass]:
            yield real.train.images.index_select(0, indices), real.train.labels.index_select(0, indices)
            number += 1


Extra = Callable[[Tensor], dict[str, Tensor]]


class Game:
    """Generator and discriminator with their optimizers: everything that a GAN's next step depends on but its random numbers."""

    def __init__(self, real: ImageSet, config: CGANConfig):
        self.config, self.device, self.num_classes = config, real.train.images.device, real.num_classes
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(stream(config.seed, "gan weights").initial_seed())     # and no GPU's
            self.generator = gan.Generator(real.shape, real.num_classes, config.gan_width).to(self.device)
            self.discriminator = gan.Discriminator(real.shape, real.num_classes, config.gan_width).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False) if config.average else None
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=config.lr, betas=(config.beta1, config.beta2))
                           for net in (self.generator, self.discriminator)]

    def parts(self) -> dict[str, Any]:
        """What a State has to hold, by name."""
        parts = {"generator": self.generator, "discriminator": self.discriminator,
                 "generator_optimizer": self.optimizers[0], "discriminator_optimizer": self.optimizers[1]}
        return parts | ({"average": self.average} if self.average is not None else {})

    def load(self, state: Mapping[str, Any], lr: float) -> None:
        """Go on from the state of a finished game (`runs.read_checkpoint`), optimizers too, with the learning rate `lr`."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def distilled(self, real: ImageSet, **meta: Any) -> GeneratorSet:
        """The generator, or its average, as a set; it follows the game."""
        return GeneratorSet(self.average if self.average is not None else self.generator, images_per_class=self.config.ipc,
                            classes=real.classes, preprocess=real.preprocess,
                            meta={"dataset": real.name, "seed": self.config.seed, **meta})

    def play(self, index: int, images: Tensor, labels: Tensor, rng: torch.Generator, extra: Extra | None = None) -> dict[str, float]:
        """A step of the generator, then one of the discriminator, on real images (B, c, h, w) uint8 with labels (B,).

        extra: other terms of the generator's loss, from generated images (B, c, h, w) in [-1, 1] of classes `labels`; the first
        of them is added to the total. It draws nothing from `rng`. Returns all terms, and "ratio", the norm of what the extra term
        does to the images over that of what the GAN's do; Diverged before a bad update is made.
        """
        return self.generator_step(index, labels, rng, extra) | self.discriminator_step(index, images, labels, rng)

    def generate(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Images (B, c, h, w) in [-1, 1] of the generator in training mode, with its graph."""
        return self.generator(gan.condition(labels, self.num_classes, self.generator.noise_size, rng))

    def generator_step(self, index: int, labels: Tensor, rng: torch.Generator, extra: Extra | None = None) -> dict[str, float]:
        self.discriminator.requires_grad_(False)                 # saves a sixth of the step
        with self.autocast():
            fake = self.generate(labels, rng).float()
            found = gan.generator_loss(self.discriminator, fake, labels, self.config.objective)
        terms = {f"g_{name}": term for name, term in found.items()}
        total = terms.pop("g_total")
        if extra is not None:
            more = extra(fake)
            ours, theirs = (torch.autograd.grad(term, fake)[0] for term in (total, next(iter(more.values()))))     # (B, c, h, w) each
            terms |= more | {"ratio": theirs.norm() / ours.norm().clamp_min(1e-30)}
            total = (fake * (ours + theirs)).sum()               # has the gradient of the sum of both
        losses = self.update(index, total, terms, self.generator, self.optimizers[0], "g_gradient")
        self.discriminator.requires_grad_(True)
        if self.average is not None:
            follow(self.average, self.generator, self.config.average)
        return losses

    def discriminator_step(self, index: int, images: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, float]:
        real = to_gan(images)
        fake_labels = torch.randint(self.num_classes, (len(real),), generator=rng).to(self.device)
        with torch.no_grad(), self.autocast():
            fake = self.generate(fake_labels, rng).float()
        u = torch.rand(len(real), 1, 1, 1, generator=rng).to(self.device)
        with self.autocast():
            found = gan.discriminator_loss(self.discriminator, real, labels, fake, fake_labels, self.config.objective, u,
                                           self.config.penalty)
        terms = {f"d_{name}": term for name, term in found.items()}
        return self.update(index, terms.pop("d_total"), terms, self.discriminator, self.optimizers[1], "d_gradient")

    def update(self, index: int, total: Tensor, terms: dict[str, Tensor], net: torch.nn.Module, optimizer: torch.optim.Optimizer,
               name: str) -> dict[str, float]:
        """One step of `net` down `total`, unless a term or the gradient says that the game is lost."""
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in net.parameters() if weight.grad is not None])
        losses = check_finite(index, **terms, **{name: norm})
        if losses[name] > self.config.max_gradient:
            raise Diverged(f"{name!r}, the norm of the gradient, became {losses[name]:.3g} at step {index}, above max_gradient "
                           f"{self.config.max_gradient:g}: lower the learning rate and start again")
        optimizer.step()
        return losses

    def autocast(self) -> AbstractContextManager[Any]:
        precision = self.config.precision
        low = precision == "bfloat16" or (precision == "auto" and train.has_bfloat16(self.device))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)


@torch.no_grad()
def follow(average: torch.nn.Module, net: torch.nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) net, for weights and running statistics."""
    now = net.state_dict()
    for name, kept in average.state_dict().items():
        if kept.is_floating_point():
            kept.lerp_(now[name], 1 - decay)
        else:
            kept.copy_(now[name])


def folder(real: ImageSet, config: CGANConfig) -> Path:
    """Where this GAN of these images is kept: one folder for all methods that start from it (they ask for one with ipc 1)."""
    return runs.folder("gan", folder_name(real, config))


def folder_name(real: ImageSet, config: CGANConfig) -> str:
    claim = json.dumps([asdict(config), real.fingerprint], sort_keys=True)
    return f"{config.dataset}-w{config.gan_width}-{hashlib.sha256(claim.encode()).hexdigest()[:12]}"


def distill(real: ImageSet, config: CGANConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every generator and discriminator step; stop early by leaving the loop."""
    game = Game(real, config)
    syn = game.distilled(real, method=NAME)
    rng = stream(config.seed, "gan noise")
    state = State(**game.parts(), rng=rng)
    done = state.restore(resume)
    batches = real_batches(real, config.batch_size, config.seed, first=done)
    for index in range(done + 1, config.steps + 1):
        images, labels = next(batches)
        yield Step(index, game.play(index, images, labels, rng), syn, state)


# 150 epochs of batch 128 of the nine tenths that are not held out
PUBLISHED = {"mnist": 63_150, "fashion_mnist": 63_150, "svhn": 77_250, "cifar10": 52_650}
# Rates are ten to twenty times the published ones: so few and narrow steps do not learn the classes otherwise
CPU = CGANConfig(dataset="fashion_mini", gan_width=16, batch_size=32, steps=1000, lr=2e-3, average=0.98)
FULL = CGANConfig(dataset="fashion_mnist", gan_width=32, batch_size=64, steps=12_000, lr=1e-3, average=0.999, precision="auto")
PRESETS = {
    "tiny": CGANConfig(dataset="toy", gan_width=8, batch_size=16, steps=6, lr=2e-4),
    "cpu": CPU,
    "cpu-full": FULL,
    "cpu-full-mnist": replace(FULL, dataset="mnist"),
    "cpu-hour": replace(FULL, steps=20_000),                     # what an hour gives, for the printed numbers
    "cpu-cifar10": replace(FULL, dataset="cifar10", steps=2400),     # a fifth of the others: its samples can be looked at, no more
    "gpu": CGANConfig(steps=10_530, precision="auto"),           # 30 epochs
}
PRESETS |= {name.replace("_", "-"): CGANConfig(dataset=name, steps=steps) for name, steps in PUBLISHED.items()}


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
