"""Compare where a student arrived with where the expert did (MTT, eq. 3; DDPP, eq. 8): mask, norms and counts in one pass.

Floor for P parameters: read three vectors, write a gradient, 16 P bytes. But the gradient is over a denominator that is known
only when all is read, so the kernel reads twice: student, target and start (12 P), then student and target, while the gradient
is written (12 P). Of a few million parameters the second reading is served by the cache. (Writing student - target at once, to
be multiplied later, moves the same 24 P and needs a vector of memory.) About 55 operations and 4 divisions a parameter: bound
by memory. Plain torch moves 307 P bytes in 45 launches for DDPP and 94 P in 19 for MTT; these are 3 launches.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddlib.kernels import jit, run_fast, tl

SignRule = Literal["signed", "absolute", "off"]
FLOOR = 1e-12            # of the denominator, where an expert has not moved
BLOCK = 1024             # parameters of one program, and sums that the last one reads at a time


class Matched(NamedTuple):
    """The pruned loss, which student and its sources are moved by; MTT's, the kept share, whether the student is finite: constants."""

    loss: Tensor
    whole: Tensor
    kept: Tensor
    finite: Tensor


def matching_loss(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Squared distance of the student (P,) to the expert's later parameters, over how far the expert went (MTT, eq. 3)."""
    return (student - target).square().sum() / (start - target).square().sum().clamp_min(FLOOR)


def keep_mask(student: Tensor, target: Tensor, epsilon: float, sign_rule: SignRule = "signed") -> Tensor:
    """Which coordinates stay (P,): those where neither student/target nor target/student is below epsilon (section II.B).

    Without a division: with m = max(|student|, |target|), the smaller ratio is (student / m)(target / m). Two zeros are
    equal and stay. signed: a sign flip has a negative ratio, which is below every epsilon >= 0; absolute: signs are ignored.
    """
    if sign_rule == "off":
        return torch.ones_like(student, dtype=torch.bool)
    largest = torch.maximum(student.abs(), target.abs())                                # (P,)
    scale = torch.where(largest > 0, largest, 1.0)
    ratio = (student / scale) * (target / scale)                                        # in [-1, 1]; a raw product would underflow
    ratio = ratio.abs() if sign_rule == "absolute" else ratio
    return (ratio >= epsilon) | (largest == 0)


def pruned_loss(student: Tensor, target: Tensor, start: Tensor, keep: Tensor) -> Tensor:
    """MTT's loss on the coordinates that `keep` (P,) has (eq. 8). Multiplied by 0 or 1, so that all shapes stay."""
    mask = keep.to(student.dtype)
    return matching_loss(student * mask, target * mask, start * mask)


def reference(student: Tensor, target: Tensor, start: Tensor, epsilon: float = 0.0, sign_rule: SignRule = "off") -> Matched:
    """As `match`, in plain torch."""
    finite = torch.isfinite(student).all()
    if sign_rule == "off":                                                              # nothing is pruned: one loss is both
        loss = matching_loss(student, target, start)
        return Matched(loss, loss.detach(), loss.new_ones((), dtype=torch.float64), finite)
    keep = keep_mask(student.detach(), target, epsilon, sign_rule)                      # piecewise constant: no gradient is lost
    whole = matching_loss(student.detach(), target, start)
    return Matched(pruned_loss(student, target, start, keep), whole, keep.double().mean(), finite)


def match(student: Tensor, target: Tensor, start: Tensor, epsilon: float = 0.0, sign_rule: SignRule = "off") -> Matched:
    """`pruned_loss` under `keep_mask`, `matching_loss` and what there is to check, of student, target and start, (P,) each.

    The kernel gives the gradient of the student only; where one of target or start is wanted, plain torch runs.
    """
    kinds, unfit = [f"{tuple(each.shape)} of {each.dtype}" for each in (student, target, start)], ""
    if target.requires_grad or start.requires_grad:
        unfit = "not for gradients of target or start"
    elif student.ndim != 1 or not len(student) or len(set(kinds)) > 1:
        unfit = f"not for {', '.join(kinds)}"
    if run_fast("trajectory", student, target, start, unless=unfit):
        return Matched(*_Match.apply(student, target, start, float(epsilon), sign_rule))
    return reference(student, target, start, epsilon, sign_rule)


@jit
def _pair(student, target, at, inside, epsilon, PRUNE: tl.constexpr, ABSOLUTE: tl.constexpr):
    """Student and target (K,) in float32 and which coordinates stay: `keep_mask`, operation by operation."""
    s = tl.load(student + at, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(target + at, mask=inside, other=0.0).to(tl.float32)
    keep = inside
    if PRUNE:
        largest = tl.maximum(tl.abs(s), tl.abs(t))
        scale = tl.where(largest > 0, largest, 1.0)
        ratio = tl.div_rn(s, scale) * tl.div_rn(t, scale)     # rounded as torch does; `/` may be off by 2 units on a GPU
        if ABSOLUTE:
            ratio = tl.abs(ratio)
        keep = inside & ((ratio >= epsilon) | ((s == 0) & (t == 0)))
    return s, t, keep


@jit
def _add(student, target, start, sums, counts, P, epsilon, PRUNE: tl.constexpr, ABSOLUTE: tl.constexpr, K: tl.constexpr):
    """Of K coordinates: four sums of squares, how many stay, how many are finite."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    at = program.to(tl.int64) * K + tl.arange(0, K)
    inside = at < P
    s, t, keep = _pair(student, target, at, inside, epsilon, PRUNE, ABSOLUTE)
    b = tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
    m = keep.to(tl.float32)
    near, far = s * m - t * m, b * m - t * m                  # not `where`: a pruned infinity is NaN in the reference as well
    tl.store(sums + program, tl.sum(near * near, axis=0))
    tl.store(sums + programs + program, tl.sum(far * far, axis=0))
    tl.store(sums + 2 * programs + program, tl.sum((s - t) * (s - t), axis=0))
    tl.store(sums + 3 * programs + program, tl.sum((b - t) * (b - t), axis=0))
    tl.store(counts + program, tl.sum(keep.to(tl.int32), axis=0))
    tl.store(counts + programs + program, tl.sum((inside & (tl.abs(s) < float("inf"))).to(tl.int32), axis=0))


@jit
def _finish(sums, counts, loss, whole, kept, finite, factor, programs, P, floor, K: tl.constexpr):
    """One program: what all programs found, in a fixed order."""
    near, far = tl.zeros((K,), tl.float32), tl.zeros((K,), tl.float32)
    whole_near, whole_far = tl.zeros((K,), tl.float32), tl.zeros((K,), tl.float32)
    num_kept, num_finite = tl.zeros((K,), tl.int64), tl.zeros((K,), tl.int64)
    for first in range(0, programs, K):
        at = first + tl.arange(0, K)
        inside = at < programs
        near += tl.load(sums + at, mask=inside, other=0.0)
        far += tl.load(sums + programs + at, mask=inside, other=0.0)
        whole_near += tl.load(sums + 2 * programs + at, mask=inside, other=0.0)
        whole_far += tl.load(sums + 3 * programs + at, mask=inside, other=0.0)
        num_kept += tl.load(counts + at, mask=inside, other=0).to(tl.int64)
        num_finite += tl.load(counts + programs + at, mask=inside, other=0).to(tl.int64)
    below, whole_below = tl.sum(far, axis=0), tl.sum(whole_far, axis=0)
    below = tl.where(below < floor, floor, below)             # NaN stays
    whole_below = tl.where(whole_below < floor, floor, whole_below)
    tl.store(loss, tl.div_rn(tl.sum(near, axis=0), below).to(loss.dtype.element_ty))
    tl.store(whole, tl.div_rn(tl.sum(whole_near, axis=0), whole_below).to(whole.dtype.element_ty))
    tl.store(factor, 2.0 / below)
    tl.store(kept, tl.sum(num_kept, axis=0).to(tl.float64) / P)
    tl.store(finite, tl.sum(num_finite, axis=0) == P)


@jit
def _differentiate(student, target, factor, adjoint, gradient, P, epsilon, PRUNE: tl.constexpr, ABSOLUTE: tl.constexpr, K: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)
    inside = at < P
    s, t, keep = _pair(student, target, at, inside, epsilon, PRUNE, ABSOLUTE)
    m = keep.to(tl.float32)
    by_student = (s * m - t * m) * m * (tl.load(factor) * tl.load(adjoint).to(tl.float32))
    tl.store(gradient + at, by_student.to(gradient.dtype.element_ty), mask=inside)


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, start: Tensor, epsilon: float, sign_rule: SignRule) -> tuple[Tensor, ...]:
        student, target, start = student.contiguous(), target.contiguous(), start.contiguous()
        programs = -(-len(student) // BLOCK)
        sums, counts = student.new_empty(4, programs, dtype=torch.float32), student.new_empty(2, programs, dtype=torch.int32)
        loss, whole, kept, finite, factor = (student.new_empty((), dtype=dtype) for dtype in (
            student.dtype, student.dtype, torch.float64, torch.bool, torch.float32))
        ctx.rule = {"epsilon": epsilon, "PRUNE": sign_rule != "off", "ABSOLUTE": sign_rule == "absolute", "K": BLOCK}
        _add[(programs,)](student, target, start, sums, counts, len(student), **ctx.rule)
        _finish[(1,)](sums, counts, loss, whole, kept, finite, factor, programs, len(student), FLOOR, K=BLOCK)
        ctx.save_for_backward(student, target, factor)
        ctx.mark_non_differentiable(whole, kept, finite)
        ctx.set_materialize_grads(False)
        return loss, whole, kept, finite

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        student, target, factor = ctx.saved_tensors
        gradient = torch.empty_like(student)
        _differentiate[(-(-len(student) // BLOCK),)](student, target, factor, adjoint, gradient, len(student), **ctx.rule)
        return gradient, None, None, None, None
