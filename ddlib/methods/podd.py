"""Distilling Datasets Into Less Than One Image (PoDD; Shul, Horwitz and Hoshen, TMLR 2025).

All classes share one poster, smaller than one image for each of them; its overlapping patches are the training images, and every
pixel serves several. Neighbours on the poster share pixels, so similar classes are put side by side (PoCO), and a patch between
two of them is labelled by both (PoDDL). What is optimised, and how, is RaT-BPTT with the poster in place of the images.

Differs from the official code, whose readings `label_rule="code"` gives: fixed labels are the majority in the patch, learned
labels the mean of the patch's window over one cell per class, as the paper says. The code's softmax of pixel counts is one-hot
almost everywhere, and its label grid leaves classes out. Noise has no class means and no fades between tiles.
Cost of a step: as RaT-BPTT with `patches` images in each inner step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from ddlib import augment, poco, poster
from ddlib.data import ImageSet
from ddlib.distilled import PosterSet, StoredSet
from ddlib.methods import Step, main, rat_bptt, versions
from ddlib.train import Batch

NAME = "PoDD"


@dataclass(frozen=True, kw_only=True)
class PoDDConfig(rat_bptt.UnrolledConfig):
    """One PoDD run. The defaults are the official command's for CIFAR-10 at 0.9 images per class."""

    ipc: float = 0.9                     # size of the poster in images per class, where width and height are 0
    poster_width: int = 0                # pixels; 0: from ipc
    poster_height: int = 0
    patches_x: int = 16
    patches_y: int = 6
    inner_patches: int = 0               # patches in an inner step, drawn anew each time; 0: all
    grid_x: int = 0                      # cells of the class grid; 0: the squarest that is not higher than wide
    grid_y: int = 0
    distances: str = "auto"              # between classes, for their order (`poco.distances`); "none": classes as they are numbered
    alternate: bool = False              # walk the anti-diagonals to and fro
    label_rule: poster.Rule = "paper"
    cyclic: bool = False                 # patches go round the edges (proposed in the paper's outlook)
    shift: int = 0                       # inner steps cut patches up to so many pixels off their place (likewise)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.patches_x, self.patches_y) < 1 or min(self.inner_patches, self.shift, self.grid_x, self.grid_y) < 0:
            raise ValueError(f"patches_x and patches_y must be at least 1, inner_patches, shift, grid_x and grid_y at least 0, got "
                             f"{self.patches_x}, {self.patches_y}, {self.inner_patches}, {self.shift}, {self.grid_x}, {self.grid_y}")
        if self.inner_patches > self.patches_x * self.patches_y:
            raise ValueError(f"inner_patches must be at most {self.patches_x * self.patches_y}, all patches, got {self.inner_patches}")
        if self.label_rule not in get_args(poster.Rule):
            raise ValueError(f"unknown label_rule {self.label_rule!r}; choose from {', '.join(get_args(poster.Rule))}")
        if self.label_rule == "code" and (self.cyclic or self.shift):
            raise ValueError("the official code has no cyclic posters and no shifted patches: use label_rule 'paper' with them")
        if bool(self.poster_width) != bool(self.poster_height) or min(self.poster_width, self.poster_height) < 0:
            raise ValueError(f"give poster_width and poster_height, or neither for the size that ipc buys, got {self.poster_width}, "
                             f"{self.poster_height}")
        if not self.ipc > 0:
            raise ValueError(f"ipc must be above 0, got {self.ipc}")

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the version of the paper."""
        found = versions(self, redraw="step", inner="adam", init="noise", label_rule="paper", cyclic=False, shift=0, alternate=False)
        order = "" if self.distances == "auto" else f"order by {self.distances}" if self.distances != "none" else "classes as numbered"
        return ", ".join(filter(None, ["learned labels" if self.learn_labels else "fixed labels", order, found]))

    def layout(self, real: ImageSet) -> tuple[poster.Layout, int, int]:
        """Poster and patches, and the cells (g_x, g_y) of the class grid; ValueError where they do not fit the data or the budget."""
        _, height, width = real.shape
        grid_x, grid_y = (self.grid_x, self.grid_y) if self.grid_x and self.grid_y else poster.usual_grid(real.num_classes)
        if grid_x * grid_y != real.num_classes:
            sides = [side for side in range(1, real.num_classes + 1) if real.num_classes % side == 0]
            raise ValueError(f"a grid of {grid_x}x{grid_y} has {grid_x * grid_y} cells for {real.num_classes} classes: choose from "
                             + ", ".join(f"{real.num_classes // side}x{side}" for side in sides))
        size = (self.poster_width, self.poster_height) if self.poster_width else poster.size_for(self.ipc, grid_x, grid_y, width, height)
        return poster.Layout(*size, width, height, self.patches_x, self.patches_y, self.cyclic), grid_x, grid_y

    def start(self, real: ImageSet, rng: torch.Generator) -> PosterSet:
        layout, grid_x, grid_y = self.layout(real)
        if self.distances == "none":
            order = torch.arange(real.num_classes).view(grid_y, grid_x)
        else:
            order = poco.order(poco.distances(real, self.distances), grid_x, grid_y, self.alternate)
        return PosterSet.start(real, order, layout, rng, init=self.init, std=self.init_std, learn_labels=self.learn_labels,
                               rule=self.label_rule)

    def choose(self, syn: StoredSet, rng: torch.Generator) -> Tensor:
        """Patches without repeats."""
        return torch.randperm(len(syn), generator=rng)[: self.inner_patches or len(syn)]

    def plan(self, syn: StoredSet, steps: int, strategy: str, rng: torch.Generator) -> rat_bptt.BatchOf:
        assert isinstance(syn, PosterSet)
        return shifted_plan(syn, self.choose, steps, strategy, self.shift, rng) if self.shift else super().plan(syn, steps, strategy, rng)


def shifted_plan(syn: PosterSet, choose: Callable[[StoredSet, torch.Generator], Tensor], steps: int, strategy: str, shift: int,
                 rng: torch.Generator) -> rat_bptt.BatchOf:
    """As `rat_bptt.plan`, of patches that are cut up to `shift` pixels off their places, with the labels of where they are cut."""
    cuts = []
    for _ in range(steps):
        indices = choose(syn, rng)
        corners = syn.layout.shifted(shift, rng)[indices]                               # (B, 2)
        cuts.append((syn.layout.index(corners).to(syn.device), syn.labels_seen(corners).to(syn.seen),
                     augment.draw(strategy, len(indices), syn.shape, rng)))

    def batch(j: int, *sources: Tensor) -> Batch:
        places, seen, params = cuts[j]
        images, labels = syn.cut(places, seen, *sources)
        return augment.apply(params, images), labels

    return batch


def distill(real: ImageSet, config: PoDDConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every outer update of the poster and of learned labels; stop early by leaving the loop."""
    return rat_bptt.distill(real, config, resume, name=NAME)


# The official commands, all at 0.9 images per class; the Tiny-ImageNet network has four blocks, as the paper says (the command: three)
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {"patches_x": 16, "patches_y": 6},
    "cifar100": {"patches_x": 20, "patches_y": 20, "inner_patches": 50, "real_batch": 2000, "window": 100, "max_inner": 300,
                 "learn_labels": True},
    "cub200": {"patches_x": 60, "patches_y": 30, "inner_patches": 200, "real_batch": 3000, "learn_labels": True},
    "tiny_imagenet": {"network": "convnet4", "patches_x": 40, "patches_y": 20, "inner_patches": 30, "real_batch": 500, "window": 100,
                      "max_inner": 300, "inner_lr": 5e-4, "pixel_lr": 5e-4, "label_lr": 5e-4, "learn_labels": True},
}
SIZES = {"cifar10": (153, 60), "cifar100": (303, 303), "cub200": (610, 302), "tiny_imagenet": (1211, 608)}      # of the commands
TINY = PoDDConfig(dataset="toy", preprocess="standardize", ipc=0.5, width=4, patches_x=3, patches_y=2, window=3, max_inner=6, real_batch=32,
                  steps=4, init_std=0.05)
CPU = PoDDConfig(dataset="fashion_mini", preprocess="standardize", ipc=0.5, width=16, patches_x=8, patches_y=4, inner_patches=24, window=8,
                 max_inner=20, inner_lr=1e-2, real_batch=256, steps=200, pixel_lr=3e-3, init_std=0.05)
PRESETS = {"tiny": TINY, "cpu": CPU, "cpu-full": replace(CPU, dataset="fashion_mnist")}
PRESETS |= {f"{dataset.replace('_', '-')}-ipc{ipc:g}": PoDDConfig(dataset=dataset, ipc=ipc, **settings)
            for dataset, settings in PUBLISHED.items() for ipc in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
PRESETS |= {f"{name}-ipc0.9": replace(PRESETS[f"{name}-ipc0.9"], poster_width=width, poster_height=height)
            for name, (width, height) in ((dataset.replace("_", "-"), size) for dataset, size in SIZES.items())}
PRESETS["gpu"] = replace(PRESETS["cifar10-ipc0.9"], window=40, max_inner=120, real_batch=2000, unroll="compiled")


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
