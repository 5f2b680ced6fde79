"""Random truncated backpropagation through time (RaT-BPTT; Feng, Vedantam and Kempe, ICLR 2024).

Train a fresh network on the synthetic images, look at its loss on real images, and differentiate that through the training. The
whole way is too long and its gradient too wild, so only the last M of r + M steps are differentiated, with r drawn anew.

Differs from the official code: r is drawn for every outer step (`redraw="epoch"` for the code's once per pass over the data), and
learned labels are kept probabilities, as PoDD keeps them. PoDD is this loop with a poster in place of the images.
Cost of a step: r + M training steps, M of which are differentiated twice (about three times as much again; four rematerialised),
and a pass over the real batch.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ddlib import augment, models, unroll
from ddlib.data import ImageSet
from ddlib.distilled import PixelSet, StoredSet, from_real
from ddlib.methods import State, Step, check_finite, dm, main, versions
from ddlib.methods.cgan import real_batches
from ddlib.runs import stream
from ddlib.train import Batch
from ddlib.unroll import SGD, Adam, Rule

NAME = "RaT-BPTT"
Redraw = Literal["step", "epoch"]
Inner = Literal["adam", "sgd"]
Init = Literal["noise", "real"]
CHUNK = 1000             # real images that are looked at together
FADE = 0.9               # of the running norm of the gradient
BatchOf = Callable[..., Batch]           # (step, *sources) -> images (B, c, h, w), labels


@dataclass(frozen=True, kw_only=True)
class UnrolledConfig(ABC):
    """What RaT-BPTT and PoDD share. The defaults are RaT-BPTT's for CIFAR-10 at IPC 10."""

    dataset: str = "cifar10"
    preprocess: str = "zca_b"
    network: str = "convnet3"
    width: int = 128
    window: int = 60                     # M, inner steps that are differentiated
    max_inner: int = 200                 # T_max, inner steps at most
    min_burn: int = 0                    # r_min, steps before the window at least
    redraw: Redraw = "step"              # how often r is drawn; the official code: once per pass over the real images
    inner: Inner = "adam"
    inner_lr: float = 1e-3
    inner_momentum: float = 0.9          # of sgd
    real_batch: int = 5000
    steps: int = 4000                    # outer updates; the papers' counts are not recovered
    pixel_lr: float = 1e-3               # outer Adam
    label_lr: float = 1e-3
    learn_labels: bool = False
    clip: float = 2.0                    # the pixels' gradient is cut at so many times its running norm; 0: never
    init: Init = "noise"
    init_std: float = 0.0                # of noise; 0: images of length 1
    augment: str = "flip_rotate"         # of inner and of real batches, every image by itself
    unroll: unroll.Form = "remat"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.window, self.real_batch, self.steps, self.width) < 1 or self.min_burn < 0:
            raise ValueError(f"window, real_batch, steps and width must be at least 1 and min_burn at least 0, got {self.window}, "
                             f"{self.real_batch}, {self.steps}, {self.width}, {self.min_burn}")
        if self.max_inner < self.min_burn + self.window:
            raise ValueError(f"max_inner must be at least min_burn + window = {self.min_burn + self.window}, got {self.max_inner}")
        for name in ("inner_lr", "pixel_lr", "label_lr", "clip", "init_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.inner_momentum < 1:
            raise ValueError(f"inner_momentum must be at least 0 and below 1, got {self.inner_momentum}")
        for name, choices in (("redraw", Redraw), ("inner", Inner), ("init", Init), ("unroll", unroll.Form)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(get_args(choices))}")
        if self.unroll == "detached":
            raise ValueError("unroll 'detached' is another gradient, not backpropagation through time: choose remat, compiled or plain")
        if self.network not in dm.FIT_FOR_DM:
            raise ValueError(f"network {self.network!r} cannot be unrolled, because batch norm would change it at every call; "
                             f"choose from {', '.join(dm.FIT_FOR_DM)}")
        augment.parse(self.augment)

    @abstractmethod
    def start(self, real: ImageSet, rng: torch.Generator) -> StoredSet:
        """The set before the first step."""

    @abstractmethod
    def choose(self, syn: StoredSet, rng: torch.Generator) -> Tensor:
        """Indices (B,) of the images of an inner step."""

    def plan(self, syn: StoredSet, steps: int, strategy: str, rng: torch.Generator) -> BatchOf:
        """The batches of so many inner steps."""
        return plan(syn, self.choose, steps, strategy, rng)

    def inner_rule(self) -> Rule:
        """The inner optimizer."""
        return Adam() if self.inner == "adam" else SGD(self.inner_momentum)


@dataclass(frozen=True, kw_only=True)
class RaTConfig(UnrolledConfig):
    """One RaT-BPTT run."""

    ipc: int = 10
    inner_per_class: int = 0             # images of a class in an inner step; 0: all
    inner_classes: int = 0               # classes in an inner step; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ipc < 1:
            raise ValueError(f"ipc must be at least 1, got {self.ipc}; budgets below one image per class are PoDD's")
        if not 0 <= self.inner_per_class <= self.ipc or self.inner_classes < 0:
            raise ValueError(f"inner_per_class must be between 0 and ipc = {self.ipc} and inner_classes at least 0, got "
                             f"{self.inner_per_class}, {self.inner_classes}")

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the version of the paper with fixed labels."""
        found = versions(self, redraw="step", inner="adam", init="noise")
        return ", ".join(filter(None, ["learned labels" if self.learn_labels else "", found]))

    def start(self, real: ImageSet, rng: torch.Generator) -> PixelSet:
        if self.inner_classes > real.num_classes:
            raise ValueError(f"inner_classes must be at most {real.num_classes}, the classes of {real.name}, got {self.inner_classes}")
        if self.init == "noise":
            return PixelSet.from_noise(real, self.ipc, rng, self.init_std, self.learn_labels)
        syn = from_real(real, self.ipc, "", rng)
        assert isinstance(syn, PixelSet)
        if self.learn_labels:
            syn.labels = torch.nn.functional.one_hot(syn.labels, real.num_classes).float()
        return syn

    def choose(self, syn: StoredSet, rng: torch.Generator) -> Tensor:
        """So many images of each of so many classes."""
        classes = torch.randperm(syn.num_classes, generator=rng)[: self.inner_classes or syn.num_classes]
        taken = self.inner_per_class or self.ipc
        return torch.cat([int(label) * self.ipc + torch.randperm(self.ipc, generator=rng)[:taken] for label in classes])


def plan(syn: StoredSet, choose: Callable[[StoredSet, torch.Generator], Tensor], steps: int, strategy: str,
         rng: torch.Generator) -> BatchOf:
    """All random choices of `steps` inner steps, made now: the function gives the images and labels of its step, always the same."""
    chosen = [choose(syn, rng) for _ in range(steps)]
    params = [augment.draw(strategy, len(indices), syn.shape, rng) for indices in chosen]
    chosen = [indices.to(syn.device) for indices in chosen]

    def batch(j: int, *sources: Tensor) -> Batch:
        images, labels = syn.make(chosen[j], *sources)
        return augment.apply(params[j], images), labels

    return batch


def burn_in(net: models.Classifier, theta: Tensor, batch: Callable[[int], Batch], steps: int, rule: unroll.Rule,
            rate: float) -> tuple[Tensor, unroll.OptimizerState]:
    """theta (P,) and the optimizer's state after `steps` inner steps without a graph."""
    state, alpha = rule.start(theta), torch.tensor(rate, dtype=theta.dtype, device=theta.device)
    for j in range(steps):
        gradient = unroll.loss_gradient(net, theta.requires_grad_(), *batch(j))
        theta, state = rule.step(theta.detach(), gradient, state, alpha)
    return theta.detach(), state


def real_loss(net: models.Classifier, theta: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Cross-entropy at theta (P,) over all images of `batches`, and its gradient (P,), a batch at a time."""
    theta = theta.detach().requires_grad_()
    total, gradient = torch.zeros_like(theta[0]), torch.zeros_like(theta)
    count = sum(len(images) for images, _ in batches)
    for images, labels in batches:
        loss = unroll.mean_loss(net, theta, images, labels) * (len(images) / count)
        gradient += torch.autograd.grad(loss, theta)[0]
        total += loss.detach()
    return total, gradient


def meta_gradient(net: models.Classifier, theta: Tensor, sources: Sequence[Tensor], batch: BatchOf, real: Sequence[Batch], *, burn: int,
                  window: int, rule: unroll.Rule, rate: float, form: unroll.Form = "remat") -> tuple[Tensor, list[Tensor]]:
    """Real loss after `burn` + `window` steps from theta (P,), and its gradients to `sources` through the last `window` of them."""
    start, state = burn_in(net, theta, lambda j: batch(j, *(source.detach() for source in sources)), burn, rule, rate)
    student = unroll.unroll(net, start, tuple(sources), lambda j, *given: batch(burn + j, *given), steps=window, rate=rate, rule=rule,
                            form=form, state=state)
    loss, direction = real_loss(net, student, real)
    return loss, list(torch.autograd.grad(student, sources, direction))


class Clip:
    """Cuts a gradient at `times` its running norm s <- 0.9 s + 0.1 |g|, which the first gradient begins. times 0: never."""

    def __init__(self, times: float):
        self.times, self.running = times, 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        norm = gradient.norm().item()
        self.running = FADE * self.running + (1 - FADE) * norm if self.running else norm
        most = self.times * self.running
        return gradient * (most / norm) if self.times and norm > most else gradient

    def state_dict(self) -> dict[str, float]:
        return {"running": self.running}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.running = float(state["running"])


def distill(real: ImageSet, config: UnrolledConfig, resume: Mapping[str, Any] | None = None, name: str = NAME) -> Iterator[Step]:
    """Yield a Step after every outer update of pixels or poster and of learned labels; stop early by leaving the loop."""
    rng = stream(config.seed, "rat-bptt")
    syn = config.start(real, rng)
    syn.meta["method"] = name
    optimizer = torch.optim.Adam(syn.param_groups(config.pixel_lr, label_lr=config.label_lr))
    clip, strategy = Clip(config.clip), augment.strategy_for(real, config.augment)
    per_pass = max(len(real.train) // config.real_batch, 1)
    state = State(syn=syn, optimizer=optimizer, clip=clip, rng=rng)
    done = state.restore(resume)
    batches = real_batches(real, config.real_batch, config.seed, first=done)
    for index in range(done + 1, config.steps + 1):
        # a generator of its own, so that "epoch" needs nothing from earlier steps
        when = index if config.redraw == "step" else (index - 1) // per_pass
        burn = int(torch.randint(config.min_burn, config.max_inner - config.window + 1, (), generator=stream(config.seed, "burn", when)))
        net_seed = int(torch.randint(2**31, (), generator=rng))
        net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=net_seed).to(syn.device)
        batch = config.plan(syn, burn + config.window, strategy, rng)
        images, labels = next(batches)
        images = augment.augment(real.preprocess(images), strategy, rng)
        seen = list(zip(images.split(CHUNK), labels.split(CHUNK), strict=True))
        loss, gradients = meta_gradient(net, models.flatten(net), syn.sources, batch, seen, burn=burn, window=config.window,
                                        rule=config.inner_rule(), rate=config.inner_lr, form=config.unroll)
        norms = {name: gradient.norm() for name, gradient in zip(("gradient", "label_gradient"), gradients, strict=False)}
        losses = check_finite(index, real=loss, **norms)
        for source, gradient in zip(syn.sources, [clip(gradients[0]), *gradients[1:]], strict=True):
            source.grad = gradient
        optimizer.step()
        with torch.no_grad():
            for labels_learned in syn.sources[1:]:
                labels_learned.clamp_min_(0)
        yield Step(index, losses | {"burn": float(burn)}, syn, state)


# Window, inner steps, batches and rates of the official code (values of its commands); the counts of outer steps are ours
PUBLISHED: dict[tuple[str, int], dict[str, Any]] = {
    ("cifar10", 10): {},
    ("cifar100", 10): {"window": 100, "max_inner": 300, "inner_per_class": 1, "learn_labels": True},
    ("tiny_imagenet", 10): {"network": "convnet4", "preprocess": "standardize", "window": 100, "max_inner": 300, "inner_per_class": 1,
                            "inner_classes": 50, "real_batch": 1000, "pixel_lr": 3e-4, "label_lr": 3e-4, "learn_labels": True},
    # rows of PoDD's tables at IPC 1: its settings for these sets
    ("cifar10", 1): {},
    ("cifar100", 1): {"window": 100, "max_inner": 300, "real_batch": 2000, "learn_labels": True},
    ("cub200", 1): {"real_batch": 3000, "learn_labels": True},
    ("tiny_imagenet", 1): {"network": "convnet4", "window": 100, "max_inner": 300, "real_batch": 500, "pixel_lr": 5e-4, "label_lr": 5e-4,
                           "inner_lr": 5e-4, "learn_labels": True},
}
TINY = RaTConfig(dataset="toy", preprocess="standardize", ipc=1, width=4, window=3, max_inner=6, real_batch=32, steps=4, init_std=0.05)
CPU = RaTConfig(dataset="fashion_mini", preprocess="standardize", ipc=1, width=16, window=8, max_inner=20, inner_lr=1e-2, real_batch=256,
                steps=200, pixel_lr=3e-2, init="real")
PRESETS = {"tiny": TINY, "cpu": CPU, "cpu-full": replace(CPU, dataset="fashion_mnist")}
PRESETS |= {f"{dataset.replace('_', '-')}-ipc{ipc}": RaTConfig(dataset=dataset, ipc=ipc, **settings)
            for (dataset, ipc), settings in PUBLISHED.items()}
PRESETS["gpu"] = replace(PRESETS["cifar10-ipc10"], window=40, max_inner=120, real_batch=2000, unroll="compiled")


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
