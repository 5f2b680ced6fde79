"""A ConvNet block after its convolution: instance norm with scale and shift, ReLU, 2x2 mean; with its first two derivatives.

A map has n = H W pixels: x_hat = (x - mean) r with r = 1 / sqrt(var + eps), y = w x_hat + b, and p is the mean of relu(y) over each 2x2
window. An odd last row or column counts for mean and variance, and is then dropped. Unrolled training and gradient matching
differentiate the gradient as well. What torch.compile (2.15) makes of a block cannot follow: its gradient can be had with create_graph,
but to differentiate that raises "does not currently support double backward". (A loss whose gradient is taken inside the compiled
function is one graph and can, where torch._dynamo.config.trace_autograd_ops is switched on, which it is not by itself.) So the backward
pass here is a function with a backward pass of its own. A third derivative is refused.

Floor for N = B C H W pixels of e bytes: forward reads x and writes a quarter, 1.25 e N bytes, about 10 N operations; backward reads x
and a quarter and writes x's gradient, 2.25 e N and 20 N; double backward reads x, a direction and a quarter, and writes as much for x
and a quarter, 3.5 e N and 40 N. Partial sums of the weights' gradients add 8 or 4 B C bytes. Bound by memory in float32; in half
precision, 7 to 8 instructions for each byte come near to what a GPU can issue. Each program holds whole maps in registers and computes
their statistics again, so that nothing but x, weight and bias is kept for the backward passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib.kernels import jit, power_of_2, run_fast, tl

MOST = 4096              # windows of the largest map: 128 x 128 pixels fill the registers of 16 warps
TILE = 128               # windows of one program, where maps are small; also those of one warp


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `norm_relu_pool`, in plain torch: instance norm is group norm with one channel per group."""
    return F.avg_pool2d(F.group_norm(x, x.shape[1], weight, bias, eps).relu(), 2)


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Instance norm, scale, shift, ReLU and 2x2 average pooling: (B, C, H, W), (C,), (C,) -> (B, C, H // 2, W // 2), differentiable twice.

    The kernel returns x's precision; x may be in half precision and weight and bias in single, as under autocast.
    """
    B, C, H, W = x.shape
    fit = min(H, W) > 1 and windows(H, W) <= MOST and B * C < 2**30 and weight.shape == bias.shape == (C,)
    if run_fast("block", x, weight, bias, unless="" if fit else f"not for {B} x {C} maps of {H} x {W}"):
        return _Block.apply(x, weight, bias, eps)
    return reference(x, weight, bias, eps)


def windows(H: int, W: int) -> int:
    """2x2 windows that cover a map."""
    return -(-H // 2) * -(-W // 2)


# Kernels. A tile (R, K, 2) holds a pixel pair of each of K windows of R maps: `top` their upper pairs, `low` their lower ones.


@jit
def _place(rows, C, H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """The maps' numbers, their channels, and which there are (R, 1, 1); where in a map the upper pairs lie, and which pairs are inside
    (1, K, 2); where in a pooled map the windows lie, and which are kept (1, K, 1)."""
    row = tl.program_id(0) * R + tl.arange(0, R)[:, None, None]
    k = tl.arange(0, K)[None, :, None]
    i, j = k // ((W + 1) // 2), k % ((W + 1) // 2)
    column = 2 * j + tl.arange(0, 2)[None, None, :]
    in_top, in_low, kept = (2 * i < H) & (column < W), (2 * i + 1 < H) & (column < W), (i < H // 2) & (j < W // 2)
    spot = tl.where(kept, i * (W // 2) + j, 0)      # seemingly no sequence: else it is read in another layout than x and exchanged
    return row.to(tl.int64), row % C, row < rows, 2 * i * W + column, in_top, in_low, spot, kept


@jit
def _pairs(x, real, at, in_top, in_low, W: tl.constexpr):
    top = tl.load(x + at, mask=real & in_top, other=0.0).to(tl.float32)
    return top, tl.load(x + at + W, mask=real & in_low, other=0.0).to(tl.float32)


@jit
def _mean(tile, n: tl.constexpr):
    """Of n pixels: (R, K, 2) -> (R, 1, 1)."""
    return tl.sum(tl.sum(tile, axis=2), axis=1)[:, None, None] / n


@jit
def _normalise(x, real, at, in_top, in_low, eps, H: tl.constexpr, W: tl.constexpr):
    """x_hat of both pairs, 0 outside, and r. x points to the maps (R, 1, 1)."""
    first = tl.load(x, mask=real, other=0.0).to(tl.float32)       # seen from its first pixel a map has no large mean to cancel
    top, low = _pairs(x, real, at, in_top, in_low, W)
    top, low = tl.where(in_top, top - first, 0.0), tl.where(in_low, low - first, 0.0)
    mean = _mean(top + low, H * W)
    top, low = tl.where(in_top, top - mean, 0.0), tl.where(in_low, low - mean, 0.0)
    r = 1.0 / tl.sqrt(_mean(top * top + low * low, H * W) + eps)
    return top * r, low * r, r


@jit
def _gated(value, x_hat, w, b):
    """value where ReLU has slope 1, else 0; NaN passes, as in torch."""
    return tl.where(x_hat * w + b <= 0.0, 0.0, value)


@jit
def _forward_kernel(x, weight, bias, p, rows, C, eps, H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    row, channel, real, at, in_top, in_low, spot, kept = _place(rows, C, H, W, R, K)
    w, b = tl.load(weight + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32)
    top, low, _ = _normalise(x + row * (H * W), real, at, in_top, in_low, eps, H, W)
    y = _gated(top * w + b, top, w, b) + _gated(low * w + b, low, w, b)
    pooled = tl.sum(y, axis=2)[:, :, None] * 0.25
    tl.store(p + row * ((H // 2) * (W // 2)) + spot, pooled.to(p.dtype.element_ty), mask=real & kept)


@jit
def _backward_kernel(g, x, weight, bias, dx, sums, rows, C, eps, H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """g, the gradient for p, to dx and each map's part of dw and db: with dy = g / 4 where y > 0,
    dx = w r (dy - m1 - x_hat m2), m1 = mean(dy), m2 = mean(dy x_hat), dw = n m2, db = n m1."""
    row, channel, real, at, in_top, in_low, spot, kept = _place(rows, C, H, W, R, K)
    w, b = tl.load(weight + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32)
    top, low, r = _normalise(x + row * (H * W), real, at, in_top, in_low, eps, H, W)
    g = tl.load(g + row * ((H // 2) * (W // 2)) + spot, mask=real & kept, other=0.0).to(tl.float32) * 0.25
    dy_top, dy_low = _gated(g, top, w, b), _gated(g, low, w, b)
    m1, m2 = _mean(dy_top + dy_low, H * W), _mean(dy_top * top + dy_low * low, H * W)
    tl.store(sums + row, m2 * (H * W), mask=real)
    tl.store(sums + rows + row, m1 * (H * W), mask=real)
    dx += row * (H * W)
    tl.store(dx + at, (w * r * (dy_top - m1 - top * m2)).to(dx.dtype.element_ty), mask=real & in_top)
    tl.store(dx + at + W, (w * r * (dy_low - m1 - low * m2)).to(dx.dtype.element_ty), mask=real & in_low)


@jit
def _double_kernel(u, v, q, g, x, weight, bias, to_g, to_x, sums, rows, C, eps,
                   H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """u, v and q, the gradients for dx, dw and db, to those for g and x and each map's part of that for w.

    <u, dx> + <v, dw> + <q, db> is linear in dy, with slope w r (u - mean(u) - x_hat a) + v x_hat + q and a = mean(u x_hat). As a
    function of x it is w r S + v sum(dy x_hat), S = sum(u (dy - m1 - x_hat m2)), with slope h = v dy - w r (u m2 + dy a) by x_hat and
    w S by r; x moves x_hat, which gives r (h - mean(h) - x_hat mean(h x_hat)), and r, by -r^2 x_hat / n.
    """
    row, channel, real, at, in_top, in_low, spot, kept = _place(rows, C, H, W, R, K)
    w, b = tl.load(weight + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32)
    v, q = tl.load(v + channel).to(tl.float32), tl.load(q + channel).to(tl.float32)
    top, low, r = _normalise(x + row * (H * W), real, at, in_top, in_low, eps, H, W)
    spot += row * ((H // 2) * (W // 2))
    g = tl.load(g + spot, mask=real & kept, other=0.0).to(tl.float32) * 0.25
    dy_top, dy_low = _gated(g, top, w, b), _gated(g, low, w, b)
    m1, m2 = _mean(dy_top + dy_low, H * W), _mean(dy_top * top + dy_low * low, H * W)
    u_top, u_low = _pairs(u + row * (H * W), real, at, in_top, in_low, W)
    mean = _mean(u_top + u_low, H * W)
    u_top, u_low = tl.where(in_top, u_top - mean, 0.0), tl.where(in_low, u_low - mean, 0.0)
    a = _mean(u_top * top + u_low * low, H * W)

    slope = _gated(w * r * (u_top - top * a) + v * top + q, top, w, b) + _gated(w * r * (u_low - low * a) + v * low + q, low, w, b)
    tl.store(to_g + spot, (tl.sum(slope, axis=2)[:, :, None] * 0.25).to(to_g.dtype.element_ty), mask=real & kept)

    dy_top, dy_low = dy_top - m1, dy_low - m1                     # outside too, where u and x_hat are 0 and nothing is stored
    S = _mean(u_top * (dy_top - top * m2) + u_low * (dy_low - low * m2), H * W) * (H * W)
    tl.store(sums + row, r * S, mask=real)
    by_dy, by_u = v - w * r * a, w * r * m2                       # h - mean(h) = by_dy (dy - m1) - by_u (u - mean(u))
    along = by_dy * m2 - by_u * a + w * r * S / (H * W)           # mean(h x_hat), and the way through r
    to_x += row * (H * W)
    tl.store(to_x + at, (r * (by_dy * dy_top - by_u * u_top - along * top)).to(to_x.dtype.element_ty), mask=real & in_top)
    tl.store(to_x + at + W, (r * (by_dy * dy_low - by_u * u_low - along * low)).to(to_x.dtype.element_ty), mask=real & in_low)


def _launch(kernel: Any, shape: torch.Size, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], eps: float) -> None:
    """Run a kernel on B * C maps of H x W pixels."""
    B, C, H, W = shape
    columns = power_of_2(max(windows(H, W), 2))
    maps = max(TILE // columns, 1)
    if B * C:
        kernel[(-(-B * C // maps),)](*(each.contiguous() for each in inputs), *outputs, B * C, C, eps,
                                     H=H, W=W, R=maps, K=columns, num_warps=min(maps * columns // TILE, 16))


# Autograd: each kernel is a function of tensors and eps, the next one its backward pass.


class _Function(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @classmethod
    def vmap(cls, info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        """n networks side by side are one with n times the channels: maps (B, n * C, H, W), vectors (n * C,)."""
        n, merged = info.batch_size, []
        for tensor, dim in zip(inputs[:-1], dims, strict=False):
            stack = tensor.movedim(dim, 0) if dim is not None else tensor.expand(n, *tensor.shape)
            merged.append(stack.transpose(0, 1).flatten(1, 2) if stack.dim() == 5 else stack.flatten())
        found = cls.apply(*merged, inputs[-1])
        many = found if isinstance(found, tuple) else (found,)
        where = tuple(int(each.dim() == 4) for each in many)
        parts = tuple(each.unflatten(dim, (n, -1)) for each, dim in zip(many, where, strict=True))
        return (parts, where) if isinstance(found, tuple) else (parts[0], where[0])


class _Block(_Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        B, C, H, W = x.shape
        p = x.new_empty(B, C, H // 2, W // 2)
        _launch(_forward_kernel, x.shape, (x, weight, bias), (p,), eps)
        return p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_Backward.apply(g, *ctx.saved_tensors, ctx.eps), None


class _Backward(_Function):
    @staticmethod
    def forward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        sums = x.new_empty(2, *x.shape[:2], dtype=torch.float32)                       # (2, B, C)
        _launch(_backward_kernel, x.shape, (g, x, weight, bias), (dx, sums), eps)
        dw, db = sums.sum(dim=1)
        return dx, dw.to(weight.dtype), db.to(bias.dtype)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        return *_Double.apply(u, v, q, *ctx.saved_tensors, ctx.eps), None, None


class _Double(_Function):
    @staticmethod
    def forward(u: Tensor, v: Tensor, q: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor,
                eps: float) -> tuple[Tensor, Tensor, Tensor]:
        to_g, to_x = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in (g, x))
        sums = x.new_empty(x.shape[:2], dtype=torch.float32)                           # (B, C)
        _launch(_double_kernel, x.shape, (u, v, q, g, x, weight, bias), (to_g, to_x, sums), eps)
        return to_g, to_x, sums.sum(dim=0).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> tuple[Tensor | None, ...]:      # once_differentiable would be passed by in silence
        raise NotImplementedError('this kernel can be differentiated twice; for a third time, compute within kernels.using("off")')
