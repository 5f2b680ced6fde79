"""Generative Dataset Distillation: Balancing Global Structure and Local Details (GLD; Li et al., CVPR workshops 2024).

A conditional GAN goes on training, and a network should answer a generated image as it answers a real image of the same class:
with the same logits (global structure), and with the same feature map half-way through (local details).

The paper writes sums over batch, classes and features, with weights that DiM has for a mean; which of the two was run it does
not say, and the factor between them is 640 for the logits and a million for the features. Hence `global_reduction` and
`local_reduction`, and both terms in the metrics. Everything else is DiM's loop (see dim.py). Cost of a step: DiM's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from ddlib.data import ImageSet
from ddlib.methods import Step, dim, main

NAME = "GLD"
Reduction = Literal["mean", "batchmean", "sum"]


@dataclass(frozen=True, kw_only=True)
class GLDConfig(dim.MatchConfig):
    """One GLD run. The defaults are the paper's (sections 4.1 and 4.4), and DiM's where it is silent."""

    weight: float = 0.01                            # omega_g, "as DiM"
    local_weight: float = 0.001                     # omega_l, the best in Fig. 3
    global_reduction: Reduction = "batchmean"       # of logits: a sum over classes, a mean over the batch
    local_reduction: Reduction = "mean"             # of features
    log_softmax: bool = False                       # compare log-probabilities as DiM does, not raw logits

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("global_reduction", "local_reduction"):
            if getattr(self, name) not in get_args(Reduction):
                raise ValueError(f"{name} must be one of {', '.join(get_args(Reduction))}, got {getattr(self, name)!r}")
        if not 0 <= self.local_weight < math.inf:
            raise ValueError(f"local_weight must be at least 0 and finite, got {self.local_weight}")

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the paper's two terms."""
        return self.versions(weight=0.01, local_weight=0.001, global_reduction="batchmean", local_reduction="mean", log_softmax=False)


def squared_distance(real: Tensor, syn: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Sum of (syn - real)^2 over all entries (B, ...), or its mean over the batch, or over all entries."""
    total = (syn - real).square().sum()
    return total / {"sum": 1, "batchmean": len(syn), "mean": syn.numel()}[reduction]


def global_loss(real_logits: Tensor, syn_logits: Tensor, reduction: Reduction = "batchmean", log_softmax: bool = False) -> Tensor:
    """Squared distance of logits (B, C), pairs of a class (GLD, eq. 6). log_softmax with "mean" is DiM's loss."""
    if log_softmax:
        real_logits, syn_logits = F.log_softmax(real_logits, dim=1), F.log_softmax(syn_logits, dim=1)
    return squared_distance(real_logits, syn_logits, reduction)


def local_loss(real_features: Tensor, syn_features: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared distance of middle-layer maps (B, k, h', w'), image by image and place by place (GLD, eq. 7)."""
    return squared_distance(real_features, syn_features, reduction)


def loss_terms(real: dim.Seen, syn: dim.Seen, config: GLDConfig) -> dim.Terms:
    """omega_g L_global + omega_l L_local (eq. 8), and the two without their weights."""
    of_logits = global_loss(real.logits, syn.logits, config.global_reduction, config.log_softmax)
    of_features = local_loss(real.features, syn.features, config.local_reduction)
    return {"match": config.weight * of_logits + config.local_weight * of_features, "global": of_logits, "local": of_features}


prepare = dim.prepare


def distill(real: ImageSet, config: GLDConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every update of the generator and the discriminator; stop early by leaving the loop."""
    return dim.distill(real, config, resume, terms=loss_terms, name=NAME)


def from_dim(config: dim.MatchConfig, **changes: Any) -> GLDConfig:
    """The same run with this loss, and what is to be different."""
    return GLDConfig(**{**asdict(config), **changes})


PRESETS = {name: from_dim(config) for name, config in dim.PRESETS.items()}
# Table 2: two networks are looked through, AlexNet and VGG11 never are
PRESETS["cifar10-ipc10-cross"] = replace(PRESETS["cifar10-ipc10"], pool="convnet3,resnet18_dim")


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
