"""Dataset condensation via expert subspace projection (ESP).

Experts move in few directions. Follow one for a while, span a subspace by its snapshots, and let a student go the same way by
gradients on the distilled set, each projected on that subspace. The set is trained so that its gradients lie there already
(L1 norm of what the projection removes, eq. 7) and so that real and distilled class means agree for the student (eq. 8).
Nothing is unrolled: the student's weights are constants in every update, so memory does not grow with its number of steps.

Differs from the paper, where it is silent or contradicts itself: the basis comes from QR and SVD in float64 and drops
directions that are round-off (Gram-Schmidt in float32 loses orthogonality completely); cross-entropy by default, as the
experts were trained, not the binary one of eq. 4; the norm of eq. 7 is L1 as printed there, not l2 as the text says later;
codes and decoders are our reconstruction (see kfs). The printed beta of 1e-5 hardly acts while the sum of eq. 8 is large:
`ratio` in the losses tells how much. Cost of an update: about 12 forward passes per decoded image, of which the second
derivative takes 9 (16 where the images do not fit into one chunk), and real_batch forward passes per class.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib import augment, experts, models
from ddlib.data import ImageSet, check_ipc
from ddlib.distilled import FactoredSet, PixelSet, fit_budget
from ddlib.kernels.subspace import Norm, split
from ddlib.kernels.subspace import proj_loss as proj_loss
from ddlib.kernels.subspace import project as project
from ddlib.methods import State, Step, check_finite, dm, kfs, main, versions
from ddlib.runs import stream

NAME = "ESP"
CUT = 1e-6              # singular values below this part of the largest are directions made of round-off

Span = Literal["points", "differences"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class ESPConfig(experts.Buffered):
    """One ESP run. The defaults are those of CIFAR-10, IPC 10; [P] marks what the paper states, the rest is ours."""

    preprocess: str = "standardize"                     # DM features, experts, distilled set and evaluation share it
    num_experts: int = 1000                             # [P] 65 GB; a smaller buffer can grow later
    ipc: int = 10
    artifact: Literal["codes", "pixels"] = "codes"      # [P] codes with decoders; pixels start from real images
    num_decoders: int = 4
    num_codes: int = 0                                  # per class; 0: as many as fit
    steps: int = 3000                                   # segments, syn_steps updates each
    segment: int = 10                                   # T, epochs of an expert that span the subspace
    syn_steps: int = 10                                 # N, steps of the student, one outer update each
    max_start: int = 20                                 # segments start after an epoch below this
    span: Span = "points"                               # [P] of the snapshots; or of their differences to the first
    inner_lr: float = 0.1                               # [P] the student's rate, constant
    loss: experts.Loss = "cross_entropy"                # of student and experts; [P] "bce"
    syn_batch: int = 0                                  # [P] 0: the whole set in every update; else about so many images of it
    real_batch: int = 256                               # real images per class and update
    proj_weight: float = 1e-5                           # [P] beta, for width 128; see `beta`
    proj_norm: Norm = "l1"                              # "l2" wants a proj_weight of beta(P, norm="l2")
    dm_weight: float = 1.0                              # 0 leaves the projection loss alone (Table 4)
    dm_net: Literal["student", "random"] = "student"    # [P] whose features eq. 8 compares
    feature_reduction: Reduction = "sum"                # over the features in eq. 8
    code_lr: float = 0.1                                # [P] Adam; all rates fall linearly to 0 over all updates
    decoder_lr: float = 0.01                            # [P]
    pixel_lr: float = 0.1                               # where the artifact is pixels
    augment: str = augment.DSA                          # siamese, the same images for both losses
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, got {getattr(self, name)!r}")
        for name in ("ipc", "steps", "segment", "syn_steps", "max_start", "real_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_start - 1 + self.segment > self.buffer_epochs:
            raise ValueError(f"segments of {self.segment} epochs from starts below {self.max_start} need buffer_epochs of at least "
                             f"{self.max_start - 1 + self.segment}, got {self.buffer_epochs}")
        if not (self.proj_weight >= 0 and self.dm_weight >= 0 and self.proj_weight + self.dm_weight > 0):
            raise ValueError(f"proj_weight and dm_weight must be at least 0 and not both 0, got {self.proj_weight} and {self.dm_weight}")
        if not (0 < self.inner_lr < math.inf and 0 <= self.pixel_lr < math.inf and self.syn_batch >= 0):
            raise ValueError("inner_lr must be above 0, pixel_lr and syn_batch at least 0, and all finite, "
                             f"got {self.inner_lr}, {self.pixel_lr} and {self.syn_batch}")
        augment.parse(self.augment)
        if self.network not in dm.FIT_FOR_DM:
            raise ValueError(f"network {self.network!r} would mix the classes of a batch; choose from {', '.join(dm.FIT_FOR_DM)}")
        kfs.check_factors(self.num_decoders, self.num_codes, self.code_lr, self.decoder_lr)

    def experts(self) -> experts.ExpertConfig:
        return dataclasses.replace(super().experts(), loss=self.loss)

    @property
    def variant(self) -> str:
        """What its rows say; nothing for codes trained with both losses. The losses are called as in Table 4."""
        losses = "L_Proj only" if not self.dm_weight else "L_DM only" if not self.proj_weight else ""
        rest = versions(self, span="points", loss="cross_entropy", proj_norm="l1", dm_net="student", feature_reduction="sum")
        return ", ".join(filter(None, ["pixels" if self.artifact == "pixels" else "", losses, rest]))


def beta(num_params: int, at_width_128: float = 1e-5, norm: Norm = "l1") -> float:
    """A proj_weight for P parameters that acts like `at_width_128` does for 320,010: times (320010 / P)^(1/4), 2.6 at width 16.

    Not 320010 / P, although eq. 7 is a sum over P: both losses grow with the width, and so do their gradients. norm: with
    proj_norm="l2" the loss is about 0.8 sqrt(P) times smaller (the residual is nearly Gaussian), and this makes up for it.
    """
    return at_width_128 * (320_010 / num_params) ** 0.25 * (0.8 * num_params**0.5 if norm == "l2" else 1)


# The small buffers are those of MTT's presets of the same name. On a laptop the published beta (which is beta(7_466) = 2.6e-5
# there) moves pixels thousands of times less than eq. 8 and changes nothing. 0.01 is a fifth of its pull. On validation images
# 0, 0.01, 0.03 and 0.1 gave 71.6, 71.1, 71.0 and 71.5 % at width 16 (three seeds, two networks each: no difference), and
# 0, 0.01 and 0.1 75.2, 74.6 and 72.7 % at width 32 (one seed): no value helps, and a large one can hurt.
PRESETS = {
    "tiny": ESPConfig(dataset="toy", ipc=1, num_decoders=2, width=4, num_experts=2, buffer_epochs=3, buffer_lr=0.05, buffer_batch=32,
                      steps=3, segment=2, syn_steps=2, max_start=2, real_batch=8, proj_weight=beta(428)),
    "cpu": ESPConfig(dataset="fashion_mini", ipc=1, num_decoders=2, width=16, num_experts=4, buffer_epochs=8, buffer_lr=0.02,
                     buffer_batch=128, steps=40, segment=5, syn_steps=5, max_start=4, real_batch=64, proj_weight=0.01),
    "gpu-ipc1": ESPConfig(ipc=1, preprocess="zca_a", num_experts=20, buffer_epochs=30, steps=600),
    "gpu-ipc10": ESPConfig(ipc=10, preprocess="zca_a", num_experts=20, buffer_epochs=30, steps=250),
}
PRESETS["gpu"] = PRESETS["gpu-ipc10"]
PRESETS |= {                            # Table 1; Tables 2 and 3 evaluate the same sets on other networks
    f"{dataset.replace('_', '-')}-ipc{ipc}": ESPConfig(dataset=dataset, ipc=ipc, num_decoders=num_decoders,
                                                       network="convnet4" if dataset == "tiny_imagenet" else "convnet3")
    for (dataset, ipc), num_decoders in kfs.PUBLISHED.items()
}
for _ipc in (1, 10, 50):                # Table 4
    _whole = PRESETS[f"cifar10-ipc{_ipc}"]
    PRESETS |= {f"cifar10-ipc{_ipc}-proj-only": dataclasses.replace(_whole, dm_weight=0.0),
                f"cifar10-ipc{_ipc}-dm-only": dataclasses.replace(_whole, proj_weight=0.0)}


# ------------------------------------------------------------------------------------------------------- the equations

def basis(theta: Tensor, kind: Span = "points") -> Tensor:
    """An orthonormal basis E (P, r) of what the snapshots theta (T + 1, P) span (ESP, eqs. 2-3), in their float type.

    kind: "points", the snapshots themselves, r <= T + 1; "differences", their differences to the first, r <= T: then a
    student that starts from the first stays in the affine hull of the segment. Directions of length below 1e-6 of the longest
    are left out. QR, then SVD of the small factor, in float64: snapshots are nearly collinear.
    """
    rows = theta.double()
    rows = rows[1:] - rows[0] if kind == "differences" else rows
    q, r = torch.linalg.qr(rows.T)                                                      # (P, T + 1), (T + 1, T + 1)
    u, sizes, _ = torch.linalg.svd(r)
    return (q @ u[:, :len(sizes)][:, sizes > CUT * sizes[0]]).to(theta.dtype)           # (P, r)


def dm_loss(real_features: Tensor, syn_features: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Squared distance between class means, averaged over classes (ESP, eq. 8): DM's loss divided by C.

    real_features: (C, B, F); syn_features: (C, n, F). "mean" averages over the F features too; the paper does not say.
    """
    num_classes, _, num_features = syn_features.shape
    return dm.matching_loss(real_features, syn_features) / (num_classes * (num_features if reduction == "mean" else 1))


def inner_loss(logits: Tensor, labels: Tensor, loss: experts.Loss, total: int) -> Tensor:
    """The part of a mean over `total` images that logits (B, C) and labels (B,) give; "bce" is a mean over classes too (eq. 4)."""
    if loss == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="sum") / total
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / (total * logits.shape[1])


class Projected(NamedTuple):
    """The student's gradient G (P,), its part inside the span, the inner loss, eq. 7 and its gradient to the images."""

    gradient: Tensor
    inside: Tensor
    inner: Tensor
    outside: Tensor
    pixels: Tensor | None


def project_gradient(net: models.Classifier, theta: Tensor, images: Tensor, labels: Tensor, span: Tensor, *, norm: Norm = "l1",
                     loss: experts.Loss = "cross_entropy", second: bool = True, chunk: int = kfs.CHUNK) -> Projected:
    """G at theta (P,) on images (B, c, h, w) and labels (B,), how far it is from the span, and where images should move.

    More than `chunk` images take two passes: G without a graph, then chunk by chunk the gradient to the pixels of <V, G>,
    where V = (I - E E^T) sign(G - E E^T G) is the derivative of eq. 7. G is a sum over images, so the result is the same and
    memory does not grow with B. second: whether the gradient to the images, a second derivative, is wanted.
    """
    theta = theta.detach().requires_grad_()
    parts = [part.detach().requires_grad_() for part in images.split(chunk)]
    pieces = list(zip(parts, labels.split(chunk), strict=True))
    at_once = second and len(parts) == 1

    def value(part: Tensor, of: Tensor) -> Tensor:
        return inner_loss(models.functional(net, theta, part), of, loss, len(images))

    total, inner = torch.zeros_like(theta), torch.zeros_like(theta[0])
    for part, of in pieces:
        found = value(part, of)
        (piece,) = torch.autograd.grad(found, theta, create_graph=at_once)              # (P,)
        total, inner = total + piece, inner + found.detach()
    gradient = total.detach().requires_grad_(second)
    outside, inside = split(gradient, span, norm)
    pixels = None
    if second:
        (wanted,) = torch.autograd.grad(outside, gradient)                              # (P,), V
        pixels = torch.cat([
            torch.autograd.grad(piece if at_once else torch.autograd.grad(value(part, of), theta, create_graph=True)[0], part, wanted)[0]
            for part, of in pieces])
    return Projected(gradient.detach(), inside, inner, outside.detach(), pixels)


# ---------------------------------------------------------------------------------------------------------- the method

def update(real: ImageSet, images: Tensor, theta: Tensor, span: Tensor, net: models.Classifier, config: ESPConfig, strategy: str,
           rng: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One update (ESP, eqs. 4-9): the gradient of the outer loss to images (C * n, c, h, w), the student's next theta, the terms.

    Both losses are taken at theta (P,), before the student's step. `net` lends its layers; its weights are overwritten.
    """
    shown = images.detach().requires_grad_()
    real_images, syn_images = dm.draw_pairs(real, shown, config.real_batch, strategy, rng)
    labels = torch.arange(real.num_classes, device=images.device).repeat_interleave(len(images) // real.num_classes)
    found = project_gradient(net, theta, syn_images, labels, span, norm=config.proj_norm, loss=config.loss, second=config.proj_weight > 0)
    norm = found.gradient.norm()
    terms = {"inner": found.inner, "proj": found.outside, "grad_norm": norm, "rho": found.inside.norm() / norm.clamp_min(1e-30)}
    gradients: list[Tensor] = []
    if found.pixels is not None:
        gradients += torch.autograd.grad(syn_images, shown, config.proj_weight * found.pixels, retain_graph=True)
    if config.dm_weight:
        if config.dm_net == "student":
            put(net, theta)
        else:
            net_seed = int(torch.randint(2**31, (), generator=rng))
            net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=net_seed)
            net = net.to(images).requires_grad_(False)
        real_features = dm.embed_real(net, real_images, real.num_classes)
        loss = partial(dm_loss, real_features, reduction=config.feature_reduction)
        terms["dm"], pixels = kfs.match(net, syn_images, real.num_classes, loss)
        gradients += torch.autograd.grad(syn_images, shown, config.dm_weight * pixels)
        if len(gradients) == 2:
            terms["ratio"] = gradients[0].norm() / gradients[1].norm().clamp_min(1e-30)
    return sum(gradients, torch.zeros_like(images)), theta - config.inner_lr * found.inside, terms


def put(net: models.Classifier, theta: Tensor) -> None:
    """Copy theta (P,) into the network."""
    net.load_state_dict(models.unflatten(net, theta))


def prepare(real: ImageSet, config: ESPConfig, minutes: float = math.inf) -> None:
    """As `experts.prepare`, after a look at what these data rule out: now, not after hours of training."""
    check_data(real, config)
    experts.prepare(real, config, minutes)


def check_data(real: ImageSet, config: ESPConfig) -> None:
    """ValueError for settings that these data rule out."""
    if config.artifact == "codes":
        most = fit_budget(config.ipc, real.shape, real.num_classes, config.num_decoders)
        if config.num_codes > most:
            raise ValueError(f"{config.num_codes} codes per class and {config.num_decoders} decoders do not go into ipc {config.ipc}: "
                             f"choose num_codes up to {most}, or 0 for as many as fit")
    else:
        check_ipc(real, config.ipc)
    if 0 < config.syn_batch < real.num_classes:
        raise ValueError(f"syn_batch must be 0, for the whole set, or at least {real.num_classes}, an image of every class; "
                         f"got {config.syn_batch}")


def distill(real: ImageSet, config: ESPConfig, resume: Mapping[str, Any] | None = None) -> Iterator[Step]:
    """Yield a Step after every segment, of syn_steps updates each; stop early by leaving the loop.

    Its losses are means over the segment: dm (eq. 8), proj (eq. 7), rho = |E E^T G| / |G|, grad_norm = |G|, inner (the
    student's loss on the distilled set), and ratio, the gradient of beta * proj to the decoded images over that of dm.
    """
    check_data(real, config)
    buffer = experts.train(real, config.experts())
    rng = stream(config.seed, "esp")
    device = real.train.images.device
    syn: FactoredSet | PixelSet
    if config.artifact == "codes":
        syn = FactoredSet.from_noise(real, config.ipc, config.num_decoders, rng, config.num_codes, method=NAME)
        held, groups = syn.per_class, syn.param_groups(config.code_lr, config.decoder_lr)
    else:
        syn = PixelSet.from_real(real, config.ipc, rng, method=NAME)
        syn.meta["started_from"] = syn.meta.pop("indices")
        held, groups = config.ipc, syn.param_groups(config.pixel_lr)
    optimizer = torch.optim.Adam(groups)
    params = [param for group in groups for param in group["params"]]
    net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=0)
    net = net.to(device).requires_grad_(False)
    strategy = augment.strategy_for(real, config.augment)
    state = State(syn=syn, optimizer=optimizer, rng=rng)
    for index in range(state.restore(resume) + 1, config.steps + 1):
        points = buffer.draw_segment(config.segment, config.max_start, rng).theta       # (T + 1, P)
        span, theta = basis(points, config.span), points[0]
        sums: dict[str, Tensor] = {}
        for step in range(config.syn_steps):
            chosen = kfs.choose(real.num_classes, held, config.syn_batch // real.num_classes, rng)
            images = syn.decode(chosen) if isinstance(syn, FactoredSet) else syn.images[chosen.to(device)]     # (C * n, c, h, w)
            pixels, theta, terms = update(real, images, theta, span, net, config, strategy, rng)
            for param, gradient in zip(params, torch.autograd.grad(images, params, pixels), strict=True):
                param.grad = gradient
            kfs.set_rates(optimizer, (index - 1) * config.syn_steps + step, config.steps * config.syn_steps)
            optimizer.step()
            sums = {name: sums.get(name, torch.zeros_like(term)) + term / config.syn_steps for name, term in terms.items()}
        yield Step(index, check_finite(index, **sums), syn, state)


if __name__ == "__main__":
    raise SystemExit(main(sys.modules[__name__]))
