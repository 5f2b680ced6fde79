"""Generative Dataset Distillation Based on Self-knowledge Distillation (SKD; Li et al., 2025).

A conditional GAN goes on training, and the classes that a network sees in a generated image should be distributed as those it
sees in a real image of the same class. Logits are standardized first, so that only their pattern over the classes counts, not
how sure the network is. "Self": teacher and student are one network, looking at real and at generated images.

Open in the paper, ours: the deviation is over C - 1 classes, the divergence a mean over the batch, and without standardization
the logits are divided by tau all the same. Everything else is DiM's loop (see dim.py). Cost of a step: DiM's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ddlib.data import ImageSet
from ddlib.kernels.skd import skd_loss, standardize_logits
from ddlib.methods import Step, dim, main

__all__ = ["NAME", "PRESETS", "SKDConfig", "distill", "from_dim", "loss_terms", "paper_weight", "prepare", "skd_loss", "standardize_logits"]

NAME = "SKD"
FLAT = 1e-4              # a standard deviation of logits below which the gradient of eq. 3, of order 1 / std, is good for nothing


@dataclass(frozen=True, kw_only=True)
class SKDConfig(dim.MatchConfig):
    """One SKD run. The defaults are the paper's for CIFAR-10 (section 3.2), and DiM's where it is silent."""

    weight: float = 0.01                # lambda_SKD; 0.001 for MNIST. What counts is lambda tau^2
    tau: float = 2.0
    standardize: bool = True            # False: the ablation of Tables 1 and 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ValueError(f"tau must be above 0, got {self.tau}")

    @property
    def variant(self) -> str:
        """What its rows say; the ablation is called as in the paper's tables."""
        rest = self.versions(tau=2.0, weight=paper_weight(self.dataset))
        return ", ".join(filter(None, ["" if self.standardize else "no standardization", rest]))


def paper_weight(dataset: str) -> float:
    """lambda_SKD of section 3.2."""
    return 0.001 if dataset == "mnist" else 0.01


def loss_terms(real: dim.Seen, syn: dim.Seen, config: SKDConfig) -> dim.Terms:
    """lambda tau^2 L_SKD (eq. 7), and L_SKD itself. `flat` is 1, and the loss left out, where some logits hardly differ."""
    skd = skd_loss(real.logits, syn.logits, config.tau, config.standardize)
    flat = config.standardize * (min(seen.logits.detach().std(dim=1).amin() for seen in (real, syn)) < FLAT)
    weight = config.weight * config.tau**2 * (1 - flat.to(skd.dtype))
    return {"match": weight * skd, "skd": skd, "flat": flat}


prepare = dim.prepare


def distill(real: ImageSet, config: SKDConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every update of the generator and the discriminator; stop early by leaving the loop."""
    return dim.distill(real, config, resume, terms=loss_terms, name=NAME)


def from_dim(config: dim.MatchConfig, **changes: Any) -> SKDConfig:
    """The same run with this loss, and what is to be different."""
    return SKDConfig(**{**asdict(config), "weight": paper_weight(config.dataset), **changes})


PRESETS = {name: from_dim(config) for name, config in dim.PRESETS.items()}
PRESETS |= {f"{name}-no-standardization": replace(config, standardize=False) for name, config in PRESETS.items()}


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
