"""Patches of a poster as one gather, and its transpose, which adds patches up where they overlap (PoDD): each the other's derivative.

Floor for N patches of c x p_h x p_w on a poster of c x h x w with e bytes a number: e c (N p_h p_w + h w) + 8 N bytes either way, as
the poster is read from, or written to, memory once; no operation to cut, N c p_h p_w additions to add up: bound by memory. Plain torch
reads 8 bytes of index for every number, writes twice, and adds atomically, so that a run on a GPU does not repeat.

Nobody adds atomically here: one program per tile of the poster sums the patches that touch it, in the order of their numbers. It finds
them by their corners. Sorting the index by pixels would be general, but it costs more than all of the sum (each inner step has other
patches), and its result is 4 or 8 bytes per number to read; a row of an index is a window, which its first entry tells.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddlib.kernels import jit, power_of_2, run_fast, tl

Size = tuple[int, int]
NUMBERS = 1024           # of a patch that one program copies
TILE = (16, 32)          # pixels of the poster that one program sums,
CHANNELS = 4             # and channels at most
CHUNK = 256              # patches whose corners are looked at together
GROUP = 4                # patches that are read together


def reference(poster: Tensor, index: Tensor, size: Size) -> Tensor:
    """As `extract`, in plain torch."""
    return poster.flatten().index_select(0, index.flatten()).view(len(index), len(poster), *size)


def added_reference(patches: Tensor, index: Tensor, size: Size) -> Tensor:
    """As `add_up`, in plain torch."""
    shape = (patches.shape[1], *size)
    to = index.reshape(patches.shape).flatten()
    return patches.new_zeros(math.prod(shape)).scatter_add_(0, to, patches.flatten()).view(shape)


def extract(poster: Tensor, index: Tensor, size: Size) -> Tensor:
    """Patches (N, c, p_h, p_w) of size (p_h, p_w) of a poster (c, h, w).

    index: (N, c p_h p_w), each row the places of a window in the flattened poster, which may go round its edges (`Layout.index`).
    """
    whole = (poster.shape[1], poster.shape[2])
    fast = index.numel() and poster.numel() and run_fast("poster", poster, unless=_unfit(whole, size, len(poster), index))
    return _Patches.apply(poster, index, whole, size, False, fast)


def add_up(patches: Tensor, index: Tensor, size: Size) -> Tensor:
    """The poster (c, h, w) of size (h, w) in whose pixels patches (N, c, p_h, p_w) at `index`, as in `extract`, are added up."""
    each = (patches.shape[2], patches.shape[3])
    same = patches.numel() and len(index) == len(patches)
    fast = same and run_fast("poster", patches, unless=_unfit(size, each, patches.shape[1], index))
    return _Patches.apply(patches, index, size, each, True, fast)


def _unfit(whole: Size, size: Size, channels: int, index: Tensor) -> str:
    if index.ndim != 2 or index.shape[1] != channels * size[0] * size[1]:
        return f"not for places {tuple(index.shape)} of patches of {channels} channels and {size}"
    return "" if size[0] <= whole[0] and size[1] <= whole[1] else f"not for patches of {size} on a poster of {whole}"


@jit
def _cut(poster, index, patches, index_stride, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
         P: tl.constexpr):
    """P numbers of one patch."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * P + tl.arange(0, P)
    inside = at < C * PH * PW
    corner = tl.load(index + n * index_stride).to(tl.int32)
    y, x = corner // W + at % (PH * PW) // PW, corner % W + at % PW
    y, x = tl.where(y < H, y, y - H), tl.where(x < W, x, x - W)
    source = (at // (PH * PW)).to(tl.int64) * (H * W) + y * W + x
    tl.store(patches + n * (C * PH * PW) + at, tl.load(poster + source, mask=inside, other=0.0), mask=inside)


@jit
def _beyond(here, start, length):
    """How far `here` is beyond `start` on a circle."""
    return tl.where(here < start, here - start + length, here - start)


@jit
def _add(patches, index, poster, N, index_stride, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
         K: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr):
    """TH x TW pixels of K channels."""
    across = (W + TW - 1) // TW
    top, left = tl.program_id(0) // across * TH, tl.program_id(0) % across * TW
    pixel = tl.arange(0, TH * TW)
    y, x = top + pixel // TW, left + pixel % TW
    shown = (y < H) & (x < W)
    channel = tl.arange(0, K).to(tl.int64)
    if C > K:                                                # else channels are constants, and so is how far apart they lie
        channel += tl.program_id(1) * K
    total = tl.zeros((K, TH * TW), tl.float32)
    for first in range(0, N, CHUNK):
        n = first + tl.arange(0, CHUNK)
        corner = tl.load(index + n.to(tl.int64) * index_stride, mask=n < N, other=0).to(tl.int32)
        dy, dx = _beyond(top, corner // W, H), _beyond(left, corner % W, W)                  # the tile begins in the patch, or
        touches = ((dy < PH) | (dy > H - TH)) & ((dx < PW) | (dx > W - TW)) & (n < N)        # ends after the patch has begun
        count = tl.sum(touches.to(tl.int32), axis=0)
        if count > 0:
            rank = tl.cumsum(touches.to(tl.int32), axis=0)
            for begun in range(0, count, GROUP):
                wanted = begun + 1 + tl.arange(0, GROUP)
                chosen = touches[:, None] & (rank[:, None] == wanted[None, :])               # (CHUNK, GROUP)
                number = tl.sum(tl.where(chosen, n[:, None], 0), axis=0).to(tl.int64)        # (GROUP,), 0 where none is left
                begins = tl.load(index + number * index_stride).to(tl.int32)
                row = _beyond(y[None, :], (begins // W)[:, None], H)                         # (GROUP, TH TW), in the patch
                col = _beyond(x[None, :], (begins % W)[:, None], W)
                inside = (row < PH) & (col < PW) & shown[None, :] & (wanted <= count)[:, None]
                at = patches + (number * (C * PH * PW))[:, None] + (row * PW + col)
                at = at[:, None, :] + (channel * (PH * PW))[None, :, None]                   # (GROUP, K, TH TW)
                seen = tl.load(at, mask=inside[:, None, :] & (channel < C)[None, :, None], other=0.0)
                total += tl.sum(seen.to(tl.float32), axis=0)
    to = poster + channel[:, None] * (H * W) + (y * W + x)[None, :]
    tl.store(to, total.to(poster.dtype.element_ty), mask=shown[None, :] & (channel < C)[:, None])


class _Patches(torch.autograd.Function):
    """Patches of a poster or, adding, a poster of patches; the gradient is the other one, to any order.

    Also for the plain forms: torch's derivative of a selection, `index_add_`, is slower than `scatter_add_` on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, index: Tensor, whole: Size, size: Size, adding: bool, fast: bool) -> Tensor:
        ctx.save_for_backward(index)
        ctx.facts = whole, size, adding, fast
        if not fast:
            return added_reference(given, index, whole) if adding else reference(given, index, size)
        given, (H, W), (PH, PW) = given.contiguous(), whole, size
        N, C = len(index), given.shape[1] if adding else len(given)
        sizes = {"H": H, "W": W, "C": C, "PH": PH, "PW": PW}
        if adding:
            made, tiles, channels = given.new_empty(C, H, W), -(-H // TILE[0]) * -(-W // TILE[1]), min(power_of_2(C), CHANNELS)
            _add[(tiles, -(-C // channels))](given, index, made, N, index.stride(0), **sizes, K=channels, TH=TILE[0], TW=TILE[1],
                                             CHUNK=CHUNK, GROUP=GROUP)
        else:
            made = given.new_empty(N, C, PH, PW)
            _cut[(N, -(-C * PH * PW // NUMBERS))](given, index, made, index.stride(0), **sizes, P=NUMBERS)
        return made

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        whole, size, adding, fast = ctx.facts
        return _Patches.apply(adjoint, *ctx.saved_tensors, whole, size, not adding, fast), None, None, None, None, None
