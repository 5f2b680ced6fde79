"""DiM: Distilling Dataset into Generative Model (Wang et al., 2023), and the loop that SKD and GLD share with it.

A conditional GAN is trained first (cgan.py). Then it goes on training at a small rate, and its generator gets one term more: a
network looks at a real batch and at a generated one of the same labels, and should see the same. Networks come from a pool,
are drawn anew every `redraw` updates, and train on real images all along. DiM compares log-probabilities; SKD and GLD put
other functions in that place.

Differs from the official code: networks see images normalised as in evaluation (there, [-1, 1] goes into a normaliser made for
[0, 1]); a look leaves the running statistics of batch norm alone; the pool has the three networks that SKD and GLD name.
Cost of a step: that of the GAN and `net_steps` training steps of a pool network, plus one step's worth for the two looks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib import augment, models, runs, train
from ddlib.data import ImageSet
from ddlib.gan import Objective
from ddlib.methods import State, Step, cgan, is_width, main, versions
from ddlib.runs import stream

NAME = "DiM"
FIT_FOR_POOL = tuple(name for name in models.NETWORKS if name.startswith(("convnet", "resnet")))    # those with a middle layer


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """The settings that DiM, SKD and GLD share. The defaults are those of DiM's code for CIFAR-10.

    Equal `dataset`, `objective` and `gan_*` settings share one GAN on disk, whichever the method.
    """

    dataset: str = "cifar10"
    ipc: int = 1                            # images per class that the set is asked for, unless `at` says otherwise
    gan_width: int = 196                    # the GAN to start from: see cgan.CGANConfig
    objective: Objective = "wasserstein"
    gan_steps: int = 52_650
    gan_batch: int = 128
    gan_lr: float = 1e-4
    gan_penalty: float = 10.0
    gan_average: float = 0.0
    gan_seed: int = 0
    steps: int = 70_300                     # matching: updates of the generator, 100 epochs
    batch_size: int = 64
    lr: float = 5e-6                        # of generator and discriminator
    weight: float = 0.01                    # of the (first) term that is matched
    pool: str = "convnet3,resnet10_dim,resnet18_dim"    # networks to look through
    pool_widths: str = ""                   # one each, such as "16,8,8"; empty: their own
    redraw: int = 703                       # updates until another network is drawn: an epoch
    net_steps: int = 16                     # mini-batches that it trains on before each update; 0: it stays as drawn
    net_lr: float = 0.01
    max_gradient: float = 1e4               # a larger gradient norm stops the run; it grows with the weight of the matched term
    augment: str = "color_crop_cutout"      # siamese; color and cutout always, flips would be, too
    precision: train.Precision = "float32"  # of the GAN, and of the network while it trains
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            self.gan()
        except ValueError as error:
            raise ValueError(f"the GAN to start from: {error}") from None
        self.game()
        if self.redraw < 1 or self.net_steps < 0:
            raise ValueError(f"redraw must be at least 1 and net_steps at least 0, got {self.redraw} and {self.net_steps}")
        if not (0 <= self.weight < math.inf and 0 < self.net_lr < math.inf):
            raise ValueError(f"weight must be at least 0, net_lr above 0 and both finite, got {self.weight} and {self.net_lr}")
        self.networks()
        augment.parse(self.augment)

    def versions(self, **complete: Any) -> str:
        """How this differs from the complete method: the settings of `complete`, the objective, a pool that learns nothing."""
        return ", ".join(filter(None, [versions(self, objective="wasserstein", **complete), "" if self.net_steps else "net_steps 0"]))

    def gan(self) -> cgan.CGANConfig:
        """The GAN that these settings start from; the same for every ipc."""
        return cgan.CGANConfig(dataset=self.dataset, gan_width=self.gan_width, objective=self.objective, steps=self.gan_steps,
                               batch_size=self.gan_batch, lr=self.gan_lr, penalty=self.gan_penalty, average=self.gan_average,
                               precision=self.precision, seed=self.gan_seed)

    def game(self) -> cgan.CGANConfig:
        """How that GAN goes on while it is matched."""
        return replace(self.gan(), ipc=self.ipc, steps=self.steps, batch_size=self.batch_size, lr=self.lr,
                       max_gradient=self.max_gradient, seed=self.seed)

    def networks(self) -> list[tuple[str, int | None]]:
        """The pool as (name, width); ValueError where there can be none."""
        names = self.pool.split(",")
        widths = self.pool_widths.split(",") if self.pool_widths else [""] * len(names)
        if len(widths) != len(names) or not all(width == "" or is_width(width) for width in widths):
            raise ValueError(f"pool_widths must be one width for each of {self.pool}, such as 16,8,8, or empty, got {self.pool_widths!r}")
        for name in names:
            if name not in FIT_FOR_POOL:
                raise ValueError(f"{name!r} cannot be in the pool; choose from {', '.join(FIT_FOR_POOL)}")
        return [(name, int(width) if width else None) for name, width in zip(names, widths, strict=True)]


@dataclass(frozen=True, kw_only=True)
class DiMConfig(MatchConfig):
    """One DiM run. The loss is fixed: log-probabilities, a mean over batch and classes."""

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the code's weight and objective."""
        return self.versions(weight=0.01)


# ------------------------------------------------------------------------------------------------------- the equations

class Seen(NamedTuple):
    """What a network makes of a batch: logits (B, C), and the map (B, k, h', w') half-way through it."""

    logits: Tensor
    features: Tensor


Terms = dict[str, Tensor]


def dim_loss(real_logits: Tensor, syn_logits: Tensor) -> Tensor:
    """Mean over batch and classes of (log softmax real - log softmax syn)^2, pairs of a class (DiM). Logits are (B, C)."""
    return (F.log_softmax(real_logits, dim=1) - F.log_softmax(syn_logits, dim=1)).square().mean()


def loss_terms(real: Seen, syn: Seen, config: MatchConfig) -> Terms:
    """What is added to the generator's loss, first, and what is logged besides. SKD and GLD have others."""
    dim = dim_loss(real.logits, syn.logits)
    return {"match": config.weight * dim, "dim": dim}


# ------------------------------------------------------------------------------------------------------------ the pool

@contextmanager
def fixed(net: nn.Module) -> Iterator[None]:
    """The network as a function of images that nothing changes: no gradients for its weights, no running statistics.

    Batch norm goes on normalising by the batch it sees, as in training.
    """
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    net.train().requires_grad_(False)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        net.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True


def look(net: models.Classifier, real_images: Tensor, syn_images: Tensor, strategy: str, rng: torch.Generator) -> tuple[Seen, Seen]:
    """Show the network both batches (B, c, h, w), augmented alike but each by itself; only the second keeps a graph."""
    drawn = augment.draw(strategy, 1, (real_images.shape[1], real_images.shape[2], real_images.shape[3]), rng, siamese=True, mode="all")
    with fixed(net):
        with torch.no_grad():
            real = Seen(*net.mid(augment.apply(drawn, real_images)))
        return real, Seen(*net.mid(augment.apply(drawn, syn_images)))


class Pool:
    """The network to look through: drawn anew every `redraw` updates, and trained on real images before each.

    Every random choice has a stream of its own, by the number of the network or of the update.
    """

    def __init__(self, real: ImageSet, config: MatchConfig):
        self.real, self.config = real, config
        self.strategy = augment.strategy_for(real, config.augment)
        for name, width in config.networks():                    # one that does not go with these images: now, not when it is drawn
            models.build(name, shape=real.shape, num_classes=real.num_classes, width=width, seed=0)
        self.draw(0)

    def draw(self, number: int) -> None:
        """Make network `number`, freshly initialised."""
        rng = stream(self.config.seed, "pool", number)
        networks = self.config.networks()
        name, width = networks[int(torch.randint(len(networks), (), generator=rng))]
        net_seed = int(torch.randint(2**31, (), generator=rng))
        net = models.build(name, shape=self.real.shape, num_classes=self.real.num_classes, width=width, seed=net_seed)
        self.number, self.name, self.net = number, name, net.to(self.real.train.images.device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self.config.net_lr, momentum=0.9, weight_decay=5e-4)

    def advance(self, index: int) -> None:
        """Get ready for update `index`, counted from 1: perhaps another network, then `net_steps` mini-batches."""
        if (number := (index - 1) // self.config.redraw) != self.number:
            self.draw(number)
        order, noise = (stream(self.config.seed, "pool", use, index) for use in ("order", "augment"))
        batches = train.Batches(self.real.train.images, self.real.train.labels, self.config.batch_size, order, self.real.preprocess)
        train.fit(self.net, batches, steps=self.config.net_steps, lr=self.config.net_lr, optimizer=self.optimizer,
                  augment=self.strategy, mode="all", rng=noise, precision=self.config.precision)

    def look(self, index: int, real_images: Tensor, syn_images: Tensor) -> tuple[Seen, Seen]:
        """What the network makes of a real and a generated batch in update `index`."""
        return look(self.net, real_images, syn_images, self.strategy, stream(self.config.seed, "look", index))

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.draw(state["number"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


# ------------------------------------------------------------------------------------------------------------ the loop

def trained_gan(real: ImageSet, config: MatchConfig, minutes: float = math.inf) -> dict[str, Any]:
    """The state of the GAN that config.gan() asks for, trained if nobody has yet. TimeoutError when the time is up before."""
    folder = cgan.folder(real, config.gan())
    if not (folder / "distilled.safetensors").is_file():
        result = runs.run(cgan, config.gan(), folder, real=real, minutes=minutes, snapshots=cgan.SNAPSHOTS, keep_checkpoint=True,
                          wait=True)
        if not result.finished:
            raise TimeoutError(f"the GAN is at step {result.steps} of {result.total} and the time is up")
    return runs.read_checkpoint(folder)


def prepare(real: ImageSet, config: MatchConfig, minutes: float = math.inf) -> None:
    """What a method of this family does before it distils: look at the pool, train the GAN that all of them start from."""
    Pool(real, config)
    trained_gan(real, config, minutes)


def distill(real: ImageSet, config: MatchConfig, resume: Mapping[str, Any] | None = None,
            terms: Callable[[Seen, Seen, Any], Terms] = loss_terms, name: str = NAME) -> Iterator[Step]:
    """Yield a Step after every update of the generator and the discriminator; stop early by leaving the loop.

    The GAN's random numbers and those of the pool come from different streams: with weight 0 this is CGAN.
    """
    game, pool, rng = cgan.Game(real, config.game()), Pool(real, config), stream(config.seed, "match noise")
    if resume is None:
        game.load(trained_gan(real, config), config.lr)
    syn = game.distilled(real, method=name)
    state = State(**game.parts(), pool=pool, rng=rng)
    done = state.restore(resume)
    batches = cgan.real_batches(real, config.batch_size, config.seed, first=done)
    for index in range(done + 1, config.steps + 1):
        images, labels = next(batches)                                                  # (B, c, h, w) uint8, (B,)
        pool.advance(index)

        def match(fake: Tensor, images: Tensor = images, index: int = index) -> Terms:
            real_seen, syn_seen = pool.look(index, real.preprocess(images), real.preprocess((fake + 1) / 2))
            return terms(real_seen, syn_seen, config) | {"real_variance": variance(real_seen), "syn_variance": variance(syn_seen)}

        yield Step(index, game.play(index, images, labels, rng, match), syn, state)


def variance(seen: Seen) -> Tensor:
    """Total variance of the features over the batch, within and between classes, mean over features."""
    return seen.features.detach().var(dim=0).mean()


def from_gan(config: cgan.CGANConfig, **changes: Any) -> DiMConfig:
    """DiM from this GAN, and what is to be different from its defaults."""
    usual = cgan.CGANConfig()
    if any(getattr(config, name) != getattr(usual, name) for name in ("beta1", "beta2", "max_gradient")):
        raise ValueError(f"a GAN with beta1, beta2 or max_gradient of its own cannot be named by a matching run, got {config}")
    return DiMConfig(**{"dataset": config.dataset, "gan_width": config.gan_width, "objective": config.objective,
                        "gan_steps": config.steps, "gan_batch": config.batch_size, "gan_lr": config.lr, "gan_penalty": config.penalty,
                        "gan_average": config.average, "gan_seed": config.seed, "precision": config.precision, **changes})


# As published, matching goes on at a twentieth of the GAN's rate
SMALL: dict[str, Any] = {"steps": 150, "batch_size": 32, "lr": 1e-4, "pool_widths": "16,8,8", "net_steps": 2, "redraw": 50}
FULL: dict[str, Any] = {"steps": 500, "batch_size": 64, "lr": 5e-5, "pool_widths": "32,16,16", "net_steps": 2, "redraw": 50}
PRESETS = {
    "tiny": from_gan(cgan.PRESETS["tiny"], steps=4, batch_size=16, lr=5e-5, pool_widths="4,4,4", net_steps=2, redraw=2),
    "cpu": from_gan(cgan.PRESETS["cpu"], **SMALL),
    "cpu-full": from_gan(cgan.PRESETS["cpu-full"], **FULL),
    "cpu-full-mnist": from_gan(cgan.PRESETS["cpu-full-mnist"], **FULL),
    # matched at the GAN's own rate: does the term do more then?
    "cpu-hour": from_gan(cgan.PRESETS["cpu-hour"], **FULL | {"steps": 1000, "lr": 1e-3}),
    "cpu-cifar10": from_gan(cgan.PRESETS["cpu-cifar10"], **FULL),
    "gpu": from_gan(cgan.PRESETS["gpu"], steps=7000, lr=2e-5, net_steps=4, redraw=50),    # nearly 10 epochs
}
# Tables 1 and 2 of SKD and GLD: 100 epochs of the nine tenths that are not held out, a network for each; one run serves every ipc
EPOCHS = {"mnist": 843, "fashion_mnist": 843, "cifar10": 703}
PRESETS |= {f"{name}-ipc{ipc}": from_gan(cgan.PRESETS[name], ipc=ipc, steps=100 * epoch, redraw=epoch)
            for dataset, epoch in EPOCHS.items() for name in [dataset.replace("_", "-")] for ipc in (1, 10, 50)}


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
