"""Standardise logits, soften them, compare two class distributions (SKD, eqs. 3-6): by row, with the gradient, in one pass.

Floor for B x C logits: read both (8 B C bytes), write the gradient of one or both (4 or 8 B C) and a loss for each row (4 B). What
comes down to the loss multiplies the gradient afterwards, which is read and written once more.
About 40 operations and 2 exponentials for each logit: bound by memory from C = 10 on. Plain torch reads and writes about 20 times
as much, in as many launches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ddlib.kernels import jit, power_of_2, run_fast, tl

STD_EPS = 1e-7
MOST = 8192              # classes that one program holds in registers
TILE = 512               # logits of one program, where rows are short


def standardize_logits(logits: Tensor, tau: float) -> Tensor:
    """Z-score each row over the classes, then divide by tau (SKD, eq. 3): Z = (l - mean l) / (tau std l).

    logits: (B, C) before softmax. Returns (B, C), unchanged when a row is shifted or scaled.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)                                # (B, C)
    variance = centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)       # (B, 1)
    return centred / (tau * (variance + STD_EPS**2).sqrt())                            # eps inside: sqrt has no finite slope at 0


def reference(real_logits: Tensor, syn_logits: Tensor, tau: float, standardize: bool = True) -> Tensor:
    """As `skd_loss`, in plain torch."""
    soften = standardize_logits if standardize else Tensor.div
    log_real = F.log_softmax(soften(real_logits, tau), dim=1)                          # (B, C)
    log_syn = F.log_softmax(soften(syn_logits, tau), dim=1)
    return (log_real.exp() * (log_real - log_syn)).sum(dim=1).mean()


def skd_loss(real_logits: Tensor, syn_logits: Tensor, tau: float, standardize: bool = True) -> Tensor:
    """KL(d_real || d_syn) of the softened class distributions, mean over the batch (SKD, eqs. 4-6). Logits are (B, C)."""
    B, C = real_logits.shape
    alike = (syn_logits.shape, syn_logits.dtype) == (real_logits.shape, real_logits.dtype)
    unfit = "" if alike and 2 <= C <= MOST and B else f"not for {B} rows of {C} classes" if alike else "not for logits of two kinds"
    if run_fast("skd", real_logits, syn_logits, unless=unfit):
        return _SKD.apply(real_logits, syn_logits, tau, standardize)
    return reference(real_logits, syn_logits, tau, standardize)


@jit
def _soften(logits, inside, C, tau, eps, STANDARDIZE: tl.constexpr):
    """log of the softened distribution (R, K), centred logits and deviation (R, 1)."""
    centred, deviation = logits, tl.sum(logits * 0.0, axis=1)[:, None] + 1.0
    if STANDARDIZE:
        centred = tl.where(inside, logits - tl.sum(logits, axis=1)[:, None] / C, 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / (C - 1) + eps * eps)[:, None]
    z = tl.where(inside, centred / (tau * deviation), -1e30)
    z -= tl.max(z, axis=1)[:, None]
    return z - tl.log(tl.sum(tl.exp(z), axis=1))[:, None], centred, deviation


@jit
def _to_logits(h, centred, deviation, inside, C, tau, scale, STANDARDIZE: tl.constexpr):
    """From the derivative h (R, K) of a row's loss by softened logits to the one by logits, times scale."""
    if STANDARDIZE:
        along = tl.sum(h * centred, axis=1)[:, None] / ((C - 1) * deviation * deviation)
        h = tl.where(inside, h - tl.sum(h, axis=1)[:, None] / C - centred * along, 0.0)
    return h * scale / (tau * deviation)


@jit
def _kernel(real, syn, losses, of_real, of_syn, B, C, real_stride, syn_stride, tau, eps,
            WANT_REAL: tl.constexpr, WANT_SYN: tl.constexpr, STANDARDIZE: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, K)[None, :]
    inside = (row < B)[:, None] & (column < C)
    a = tl.load(real + row[:, None] * real_stride + column, mask=inside, other=0.0).to(tl.float32)      # (R, K)
    b = tl.load(syn + row[:, None] * syn_stride + column, mask=inside, other=0.0).to(tl.float32)
    inside = (row >= 0)[:, None] & (column < C)               # rows beyond the last are finite and never stored
    log_p, a, a_deviation = _soften(a, inside, C, tau, eps, STANDARDIZE)
    log_q, b, b_deviation = _soften(b, inside, C, tau, eps, STANDARDIZE)
    p, gap = tl.exp(log_p), log_p - log_q                     # 0 outside, and something finite
    loss = tl.sum(p * gap, axis=1)                                                                      # (R,)
    tl.store(losses + row, loss, mask=row < B)
    at, stored = row[:, None] * C + column, (row < B)[:, None] & (column < C)
    if WANT_REAL:
        h = _to_logits(p * (gap - loss[:, None]), a, a_deviation, inside, C, tau, 1.0 / B, STANDARDIZE)
        tl.store(of_real + at, h.to(of_real.dtype.element_ty), mask=stored)
    if WANT_SYN:
        h = _to_logits(tl.exp(log_q) - p, b, b_deviation, inside, C, tau, 1.0 / B, STANDARDIZE)
        tl.store(of_syn + at, h.to(of_syn.dtype.element_ty), mask=stored)


class _SKD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, real: Tensor, syn: Tensor, tau: float, standardize: bool) -> Tensor:
        real, syn = (logits if logits.stride(1) == 1 else logits.contiguous() for logits in (real, syn))
        (B, C), (want_real, want_syn) = real.shape, ctx.needs_input_grad[:2]
        losses = real.new_empty(B, dtype=torch.float32)
        of_real, of_syn = (torch.empty_like(logits, memory_format=torch.contiguous_format) if wanted else None
                           for logits, wanted in ((real, want_real), (syn, want_syn)))
        columns = power_of_2(C)
        rows = max(TILE // columns, 1)
        _kernel[(-(-B // rows),)](real, syn, losses, of_real, of_syn, B, C, real.stride(0), syn.stride(0), tau, STD_EPS,
                                  WANT_REAL=want_real, WANT_SYN=want_syn, STANDARDIZE=standardize, R=rows, K=columns)
        ctx.save_for_backward(of_real, of_syn)
        return losses.mean().to(syn.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if gradient is None else adjoint * gradient for gradient in ctx.saved_tensors), None, None
