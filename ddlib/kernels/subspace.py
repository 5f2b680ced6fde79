"""Split a gradient G (P,) into its part inside the span of E (P, r) and the rest, whose norm ESP minimises (eqs. 5 and 7).

Each pass over E needs a sum over all of the one before: a = E^T G; the rest G - E a with its norm, its sign s and b = E^T s;
the derivative V = s - E b. So the floor is 3 readings of E and 6 vectors: 12 P r + 24 P bytes, 8 P r operations: bound by
memory. (An E that the cache holds, 4 P r bytes, leaves memory once.) Plain torch reads E 4 times and moves 76 P more, in 11
launches; these are 6.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddlib.kernels import jit, power_of_2, run_fast, tl

Norm = Literal["l1", "l2"]
MOST = 256               # columns of E
TILE = 2048              # entries of E that one program holds
PROGRAMS = 1024          # at most; each leaves r sums, and goes on to its next tile


class Split(NamedTuple):
    """The norm of the part outside the span, differentiable in G, and the part inside (P,), a constant."""

    loss: Tensor
    inside: Tensor


def project(span: Tensor, vector: Tensor) -> Tensor:
    """E (E^T v), the part of v (P,) inside the span of E (P, r) (ESP, eq. 5); the P x P matrix is never formed."""
    return span @ (span.T @ vector)


def proj_loss(gradient: Tensor, span: Tensor, norm: Norm = "l1") -> Tensor:
    """Norm of the part of the gradient G (P,) outside the span (ESP, eq. 7): |G - E E^T G|, a scalar."""
    return split(gradient, span, norm).loss


def reference(gradient: Tensor, span: Tensor, norm: Norm = "l1") -> Split:
    """As `split`, in plain torch."""
    inside = project(span, gradient)
    outside = gradient - inside
    return Split(outside.abs().sum() if norm == "l1" else outside.norm(), inside.detach())


def split(gradient: Tensor, span: Tensor, norm: Norm = "l1") -> Split:
    """|G - E E^T G| and E E^T G, of a gradient G (P,) and a basis E (P, r). The kernel is for gradients with respect to G only."""
    unfit = ""
    if span.requires_grad:
        unfit = "not for gradients of the basis"
    elif (gradient.ndim != 1 or span.ndim != 2 or not 1 <= span.shape[1] <= MOST or not 0 < len(gradient) == len(span)
          or gradient.dtype != span.dtype):
        unfit = f"not for {tuple(gradient.shape)} of {gradient.dtype} and {tuple(span.shape)} of {span.dtype}"
    if run_fast("subspace", gradient, span, unless=unfit):
        return Split(*_Split.apply(gradient, span, norm))
    return reference(gradient, span, norm)


@jit
def _rows(span, tile, P, r, row_stride, column_stride, R: tl.constexpr, K: tl.constexpr):
    """Rows of a tile, which of them exist, and the tile of E (R, K) in float32, 0 outside."""
    row, column = tile * R + tl.arange(0, R), tl.arange(0, K)
    there = row < P
    at = row[:, None] * row_stride + column[None, :] * column_stride
    e = tl.load(span + at, mask=there[:, None] & (column < r)[None, :], other=0.0)
    return row, there, e.to(tl.float32)


@jit
def _coordinates(span, gradient, sums, P, r, row_stride, column_stride, tiles, R: tl.constexpr, K: tl.constexpr):
    """Of this program's tiles: E^T G (r,)."""
    program, column = tl.program_id(0), tl.arange(0, K)
    total = tl.zeros((K,), tl.float32)
    for tile in range(tiles):
        row, there, e = _rows(span, program.to(tl.int64) * tiles + tile, P, r, row_stride, column_stride, R, K)
        g = tl.load(gradient + row, mask=there, other=0.0).to(tl.float32)
        total += tl.sum(e * g[:, None], axis=0)
    tl.store(sums + program * r + column, total, mask=column < r)


@jit
def _measure(span, gradient, coordinates, inside, slope, sums, losses, P, r, row_stride, column_stride, tiles,
             L1: tl.constexpr, WANTED: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Of this program's tiles: E a, the norm's summands, their slope s and E^T s (r,)."""
    program, column = tl.program_id(0), tl.arange(0, K)
    a = tl.load(coordinates + column, mask=column < r, other=0.0)
    total, loss = tl.zeros((K,), tl.float32), tl.zeros((R,), tl.float32)
    for tile in range(tiles):
        row, there, e = _rows(span, program.to(tl.int64) * tiles + tile, P, r, row_stride, column_stride, R, K)
        g = tl.load(gradient + row, mask=there, other=0.0).to(tl.float32)
        ea = tl.sum(e * a[None, :], axis=1)                                            # (R,)
        tl.store(inside + row, ea.to(inside.dtype.element_ty), mask=there)
        rest = tl.where(there, g - ea, 0.0)                   # 0 times an infinite coordinate is NaN
        if L1:
            loss += tl.abs(rest)
            s = (rest > 0).to(tl.float32) - (rest < 0).to(tl.float32)
        else:
            loss += rest * rest
            s = rest                                          # the norm, by which it is divided, is not known yet
        if WANTED:
            tl.store(slope + row, s.to(slope.dtype.element_ty), mask=there)
            total += tl.sum(e * s[:, None], axis=0)
    tl.store(losses + program, tl.sum(loss, axis=0))
    if WANTED:
        tl.store(sums + program * r + column, total, mask=column < r)


@jit
def _differentiate(span, slope, coordinates, norm, adjoint, gradient, P, r, row_stride, column_stride, tiles,
                   L1: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """V = s - E b on this program's tiles, times the adjoint and, for l2, over the norm."""
    program, column = tl.program_id(0), tl.arange(0, K)
    b = tl.load(coordinates + column, mask=column < r, other=0.0)
    factor = tl.load(adjoint).to(tl.float32)
    if not L1:
        size = tl.load(norm)
        factor = tl.where(size == 0, 0.0, factor / size)      # as torch: the norm has slope 0 at 0
    for tile in range(tiles):
        row, there, e = _rows(span, program.to(tl.int64) * tiles + tile, P, r, row_stride, column_stride, R, K)
        s = tl.load(slope + row, mask=there, other=0.0).to(tl.float32)
        v = factor * (s - tl.sum(e * b[None, :], axis=1))
        tl.store(gradient + row, v.to(gradient.dtype.element_ty), mask=there)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, span: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        gradient, (P, r), (wanted, *_) = gradient.contiguous(), span.shape, ctx.needs_input_grad
        columns = power_of_2(r)
        rows = TILE // columns
        tiles = -(-P // (rows * PROGRAMS))                    # of a program
        programs = -(-P // (rows * tiles))
        ctx.grid, ctx.shape = (programs,), (P, r, *span.stride(), tiles)
        ctx.blocks = {"R": rows, "K": columns}
        sums, losses = (gradient.new_empty(shape, dtype=torch.float32) for shape in ((programs, r), programs))
        _coordinates[ctx.grid](span, gradient, sums, *ctx.shape, **ctx.blocks)
        inside, slope = torch.empty_like(gradient), torch.empty_like(gradient) if wanted else None
        _measure[ctx.grid](span, gradient, sums.sum(dim=0), inside, slope, sums, losses, *ctx.shape,
                           L1=norm == "l1", WANTED=wanted, **ctx.blocks)
        loss = losses.sum() if norm == "l1" else losses.sum().sqrt()
        ctx.norm = norm
        if wanted:
            ctx.save_for_backward(span, slope, sums.sum(dim=0), loss)
        ctx.mark_non_differentiable(inside)
        ctx.set_materialize_grads(False)
        return loss.to(gradient.dtype), inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        span, slope, coordinates, loss = ctx.saved_tensors
        gradient = torch.empty_like(slope)
        _differentiate[ctx.grid](span, slope, coordinates, loss, adjoint, gradient, *ctx.shape, L1=ctx.norm == "l1", **ctx.blocks)
        return gradient, None, None
