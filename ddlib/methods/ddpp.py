"""Dataset Distillation Using Parameter Pruning (DDPP; Li et al., IEICE Transactions 2024).

Some parameters of the expert are out of the student's reach, and trying to match them spoils the synthetic images. So leave
out of MTT's loss every coordinate where student and expert differ by more than a factor, and match the others.

The paper does not say how a negative ratio counts; `sign_rule` has both readings. Everything else is MTT (see mtt.py).
Cost of a step: MTT's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch import Tensor

from ddlib.data import ImageSet
from ddlib.kernels.trajectory import SignRule, keep_mask, match, pruned_loss
from ddlib.methods import Diverged, Step, main, mtt

__all__ = ["NAME", "PRESETS", "DDPPConfig", "SignRule", "distill", "from_mtt", "keep_mask", "loss_terms", "prepare", "pruned_loss"]

NAME = "DDPP"


@dataclass(frozen=True, kw_only=True)
class DDPPConfig(mtt.MTTConfig):
    """One DDPP run. The defaults are the paper's for CIFAR-10 at IPC 10 (section III), and MTT's where it is silent."""

    num_experts: int = 200                  # section III.B
    epsilon: float = 0.1                    # pruning threshold, section III.A
    sign_rule: SignRule = "signed"          # how a negative ratio is read; off: no pruning, which is MTT
    min_kept: float = 0.5                   # a run that keeps a smaller share of its parameters is stopped

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sign_rule not in get_args(SignRule):
            raise ValueError(f"unknown sign_rule {self.sign_rule!r}; choose from {', '.join(get_args(SignRule))}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a ratio between 0 and 1, got {self.epsilon}; sign_rule='off' prunes nothing")
        if not 0 <= self.min_kept <= 1:
            raise ValueError(f"min_kept is a share between 0 and 1, got {self.min_kept}")

    @property
    def variant(self) -> str:
        """What its rows say; nothing for the paper's threshold in the reading as printed."""
        usual = (self.sign_rule, self.epsilon) == ("signed", 0.1)
        rule = "off" if self.sign_rule == "off" else "" if usual else f"{self.sign_rule}, epsilon {self.epsilon:g}"
        return ", ".join(filter(None, [rule, super().variant]))


def loss_terms(student: Tensor, target: Tensor, start: Tensor, config: DDPPConfig) -> mtt.Terms:
    """The pruned loss, MTT's on all coordinates for comparison, and the share that is kept. Diverged if that is too small."""
    found = match(student, target, start, config.epsilon, config.sign_rule)
    if not found.finite:
        raise Diverged("the student's parameters stopped being finite: lower alpha and start again")
    if found.kept < config.min_kept:
        raise Diverged(f"epsilon {config.epsilon:g} with the {config.sign_rule} rule keeps {found.kept:.0%} of the parameters, "
                       f"fewer than min_kept = {config.min_kept:.0%}: lower epsilon, or lower min_kept to go on regardless")
    return {"match": found.loss, "mtt": found.whole, "kept": found.kept}


prepare = mtt.prepare


def distill(real: ImageSet, config: DDPPConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every outer update of the pixels and alpha; stop early by leaving the loop."""
    return mtt.distill(real, config, resume, terms=functools.partial(loss_terms, config=config), name=NAME)


def from_mtt(config: mtt.MTTConfig, **changes: Any) -> DDPPConfig:
    """The same run with pruning, and what is to be different."""
    return DDPPConfig(**{**asdict(config), **changes})


PRESETS = {name: from_mtt(mtt.PRESETS[name]) for name in ("tiny", "cpu", "gpu", "gpu-ipc1", "gpu-ipc10")}
PRESETS |= {    # Tables I and III; 200 experts, and ZCA for both CIFAR sets without exception (III.B)
    mtt.preset_name(dataset, ipc): from_mtt(mtt.PRESETS[f"{mtt.preset_name(dataset, ipc)}-as-ddpp"])
    for dataset in ("cifar10", "cifar100") for ipc in (1, 10, 50)
}
PRESETS |= {    # Table IV: 100 experts (III.D)
    mtt.preset_name("covid_cxr", ipc): from_mtt(mtt.PRESETS[mtt.preset_name("covid_cxr", ipc)]) for ipc in (1, 5, 10, 20)
}


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
