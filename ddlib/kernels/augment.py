"""The six operations of siamese augmentation, each linear in the pixels up to a constant: values, and the transpose as the gradient.

Floor for B images of c x h x w with e bytes a number: read and write them, 2 e B c h w bytes for each operation of the list and as
much for its gradient. Operations a number: 8 for color, 1 to cut, flip or move, 8 to resample and 18 for its gradient, with 40 and 200
a pixel to find where: bound by memory. Plain torch moves e B c h w bytes 2 (cutout) to 9 (color) times, and adds the gradient of a
resampling atomically.

A kernel applies one operation: methods draw one ("single"), and fusing the four of "all" would save passes that only DiM and IDC make.
An output pixel gathers 1 pixel (crop, cutout, flip) or 4 (scale, rotate). The transpose of these is a gather again, of 3 x 3 outputs: at
any angle, and with scales above 2 / 3, all that look within one pixel of an input pixel lie less than 1.5 from where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib.kernels import jit, power_of_2, run_fast, tl

CUTOUT = 0.5             # side of the square that is cut out, as a part of the image's side
LEAST = 0.67             # factor of a scaled grid whose gradient the kernel knows
MOST = 16                # channels that one program holds
PIXELS = 256             # of one program; at color, which has a program per image, four times as many at once


def cut_sides(h: int, w: int) -> tuple[int, int]:
    """Height and width of what cutout leaves empty."""
    return floor(h * CUTOUT + 0.5), floor(w * CUTOUT + 0.5)


def color(images: Tensor, values: Tensor) -> Tensor:
    """Brightness, saturation and contrast, values (n, 3)."""
    brightness, saturation, contrast = values.to(images.dtype).T[..., None, None, None]    # (n, 1, 1, 1) each
    images = images + brightness
    if images.shape[1] > 1:                                  # one channel is its own mean: saturation changes nothing
        grey = images.mean(dim=1, keepdim=True)                                        # (B, 1, h, w)
        images = torch.lerp(grey, images, saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)                                    # (B, 1, 1, 1)
    return torch.lerp(mean, images, contrast)


def crop(images: Tensor, values: Tensor) -> Tensor:
    """Translate by values (n, 2) = pixels down and right, with zeros where nothing arrives."""
    b, c, h, w = images.shape
    framed = F.pad(images, (1, 1, 1, 1)).flatten(2)                # one frame of zeros serves every distance
    rows = (torch.arange(1, h + 1, device=images.device) - values[:, :1]).clamp(0, h + 1)      # (n, h), where each
    cols = (torch.arange(1, w + 1, device=images.device) - values[:, 1:]).clamp(0, w + 1)      # (n, w)  comes from
    index = rows[:, :, None] * (w + 2) + cols[:, None, :]                              # (n, h, w)
    return framed.gather(2, index.view(-1, 1, h * w).expand(b, c, -1)).view(b, c, h, w)


def cutout(images: Tensor, values: Tensor) -> Tensor:
    """Zeros in a square around values (n, 2)."""
    h, w = images.shape[2:]
    sides = cut_sides(h, w)
    top, left = values[:, :1] - sides[0] // 2, values[:, 1:] - sides[1] // 2           # (n, 1) each
    rows, cols = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    in_rows = (rows >= top) & (rows < top + sides[0])                                  # (n, h)
    in_cols = (cols >= left) & (cols < left + sides[1])                                # (n, w)
    keep = ~(in_rows[:, :, None] & in_cols[:, None, :])                                # (n, h, w)
    return images * keep[:, None].to(images.dtype)


def flip(images: Tensor, values: Tensor) -> Tensor:
    """Left and right exchanged where values (n, 1) are true."""
    return torch.where(values[:, :, None, None], images.flip(3), images)


def scale(images: Tensor, values: Tensor) -> Tensor:
    """The sampling grid times values (n, 2), horizontally and vertically."""
    return _resample(images, torch.diag_embed(values))


def rotate(images: Tensor, values: Tensor) -> Tensor:
    """The sampling grid turned by values (n, 1), in radians."""
    h, w = images.shape[2:]
    angle = values.to(images.dtype)                                                    # (n, 1)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.cat([cos, -sin * h / w, sin * w / h, cos], dim=1)    # the grid runs from -1 to 1 along either side
    return _resample(images, matrix.view(-1, 2, 2))


def _resample(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample at the grid times matrix (n, 2, 2), in coordinates (x, y) of [-1, 1], bilinearly, with zeros outside."""
    b, c, h, w = images.shape
    theta = F.pad(matrix.to(images.dtype), (0, 1))                                     # (n, 2, 3), no translation
    grid = F.affine_grid(theta, [len(theta), c, h, w], align_corners=False)            # (n, h, w, 2)
    # one grid for all images: let the batch be channels, so that its weights are computed once
    stacked = images.reshape(len(theta), -1, h, w)
    return _GridSample.apply(stacked, grid, False).view(b, c, h, w)


class _GridSample(torch.autograd.Function):
    """`F.grid_sample`, which older versions of torch (2.8) differentiate only once.

    For a fixed grid it is a linear map of the images, so its derivative is its transpose and the other way round.
    """

    @staticmethod
    def forward(images: Tensor, grid: Tensor, transposed: bool) -> Tensor:
        if transposed:   # its second argument only gives the shape: input and output images have the same
            return torch.ops.aten.grid_sampler_2d_backward(images, images, grid, 0, 0, False, [True, False])[0]
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, grid, ctx.transposed = inputs
        ctx.save_for_backward(grid)

    @staticmethod
    def backward(ctx, grad):
        return _GridSample.apply(grad, ctx.saved_tensors[0], not ctx.transposed), None, None


REFERENCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate,
}


def change(op: str, images: Tensor, values: Tensor) -> Tensor:
    """Images (B, c, h, w) changed by the operation named `op`, with values (n, k) for all of them (n = 1) or for each (n = B)."""
    many = "" if images.shape[1] <= MOST else f"not for {images.shape[1]} channels"
    many = many if len(values) in (1, len(images)) else f"not for {len(values)} values of {len(images)} images"
    if images.numel() and run_fast("augment", images, unless=many) and (op != "scale" or _large_enough(images, values)):
        # a copy that need not be waited for: small values are taken from the host before it returns
        return _Change.apply(images, values.to(images.device, torch.float32, non_blocking=True).contiguous(), op, False, True)
    return REFERENCE[op](images, values.to(images.device))


def _large_enough(images: Tensor, scales: Tensor) -> bool:
    return run_fast("augment", images, unless=f"not for scales below {LEAST}" if scales.abs().min() < LEAST else "")


@jit
def _color(images, values, out, STEP: tl.constexpr, CONSTANT: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, K: tl.constexpr,
           P: tl.constexpr):
    """One image: brightness added, the difference to grey and that to the mean multiplied. Without the constant its own transpose."""
    b = tl.program_id(0).to(tl.int64)
    brightness, saturation, contrast = tl.load(values + b * STEP), tl.load(values + b * STEP + 1), tl.load(values + b * STEP + 2)
    channel = tl.arange(0, K)[:, None]
    total = tl.zeros((K, P), tl.float32)
    for first in range(0, HW, P):
        pixel = first + tl.arange(0, P)[None, :]
        inside = (channel < C) & (pixel < HW)
        total += tl.load(images + b * (C * HW) + channel * HW + pixel, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / (C * HW)
    for first in range(0, HW, P):
        pixel = first + tl.arange(0, P)[None, :]
        inside = (channel < C) & (pixel < HW)
        at = b * (C * HW) + channel * HW + pixel
        x = tl.load(images + at, mask=inside, other=0.0).to(tl.float32)                                   # (K, P)
        grey = tl.sum(x, axis=0)[None, :] / C
        x = mean + contrast * (grey + saturation * (x - grey) - mean)
        if CONSTANT:
            x += brightness
        tl.store(out + at, x.to(out.dtype.element_ty), mask=inside)


@jit
def _near(offset_x, offset_y):
    """Bilinear weights of pixels at this distance."""
    return tl.maximum(1.0 - tl.abs(offset_x), 0.0) * tl.maximum(1.0 - tl.abs(offset_y), 0.0)


@jit
def _tap(rows, cols, value, TAP: tl.constexpr, OP: tl.constexpr, TRANSPOSED: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
         TALL: tl.constexpr, WIDE: tl.constexpr):
    """Where the pixels at rows and cols gather for the TAP-th time, and with which weight."""
    row, col, weight = rows, cols, rows * 0.0 + 1.0
    if OP == "crop":
        down, right = tl.load(value).to(tl.int32), tl.load(value + 1).to(tl.int32)
        row, col = (rows + down, cols + right) if TRANSPOSED else (rows - down, cols - right)
    elif OP == "cutout":
        top, left = tl.load(value).to(tl.int32) - TALL // 2, tl.load(value + 1).to(tl.int32) - WIDE // 2
        weight = tl.where((rows >= top) & (rows < top + TALL) & (cols >= left) & (cols < left + WIDE), 0.0, 1.0)
    elif OP == "flip":
        col = tl.where(tl.load(value) > 0, W - 1 - cols, cols)
    else:                                                    # the matrix (xx, xy, yx, yy) from an output pixel to where it looks,
        if OP == "scale":                                    # both measured in pixels from the centre of the image
            xx, xy, yx, yy = tl.load(value), 0.0, 0.0, tl.load(value + 1)
        else:
            xx, yx = tl.cos(tl.load(value)), tl.sin(tl.load(value))
            xy, yy = -yx, xx
        x, y = cols - (W - 1) / 2, rows - (H - 1) / 2
        if TRANSPOSED:
            size = xx * yy - xy * yx
            far_x, far_y = (yy * x - xy * y) / size, (xx * y - yx * x) / size
            there_x = tl.floor(far_x + (W - 1) / 2 - 1.5) + (1 + TAP % 3) - (W - 1) / 2
            there_y = tl.floor(far_y + (H - 1) / 2 - 1.5) + (1 + TAP // 3) - (H - 1) / 2
            weight = _near(xx * there_x + xy * there_y - x, yx * there_x + yy * there_y - y)
        else:
            far_x, far_y = xx * x + xy * y, yx * x + yy * y
            there_x = tl.floor(far_x + (W - 1) / 2) + TAP % 2 - (W - 1) / 2
            there_y = tl.floor(far_y + (H - 1) / 2) + TAP // 2 - (H - 1) / 2
            weight = _near(far_x - there_x, far_y - there_y)
        row, col = (there_y + (H - 1) / 2).to(tl.int32), (there_x + (W - 1) / 2).to(tl.int32)
    return row, col, weight


@jit
def _gather(images, values, out, blocks, STEP: tl.constexpr, OP: tl.constexpr, TRANSPOSED: tl.constexpr, TAPS: tl.constexpr,
            C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, K: tl.constexpr, P: tl.constexpr):
    """P pixels of one image, all channels."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * P + tl.arange(0, P)
    channel = tl.arange(0, K)[:, None]
    inside = (pixel < H * W)[None, :] & (channel < C)
    total = tl.zeros((K, P), tl.float32)
    for tap in tl.static_range(TAPS):
        row, col, weight = _tap(pixel // W, pixel % W, values + b * STEP, tap, OP, TRANSPOSED, H, W, TALL, WIDE)
        used = (row >= 0) & (row < H) & (col >= 0) & (col < W) & (weight > 0)
        source = b * (C * H * W) + channel * (H * W) + (row * W + col)[None, :]
        total += weight[None, :] * tl.load(images + source, mask=inside & used[None, :], other=0.0).to(tl.float32)
    tl.store(out + b * (C * H * W) + channel * (H * W) + pixel[None, :], total.to(out.dtype.element_ty), mask=inside)


class _Change(torch.autograd.Function):
    """The operation or its transpose, with or without its constant; the gradient is the other one without, to any order."""

    @staticmethod
    def forward(images: Tensor, values: Tensor, op: str, transposed: bool, constant: bool) -> Tensor:
        images = images.contiguous()
        B, C, H, W = images.shape
        out = torch.empty_like(images)
        step = values.shape[1] if len(values) > 1 else 0
        if op == "color":
            _color[(B,)](images, values, out, STEP=step, CONSTANT=constant, C=C, HW=H * W, K=power_of_2(C),
                         P=min(power_of_2(H * W), 4 * PIXELS), num_warps=8)
        else:
            taps = 1 if op in ("crop", "cutout", "flip") else 9 if transposed else 4
            (tall, wide), blocks = cut_sides(H, W), -(-H * W // PIXELS)
            _gather[(B * blocks,)](images, values, out, blocks, STEP=step, OP=op, TRANSPOSED=transposed, TAPS=taps, C=C, H=H, W=W,
                                   TALL=tall, WIDE=wide, K=power_of_2(C), P=PIXELS)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, values, ctx.op, ctx.transposed, _ = inputs
        ctx.save_for_backward(values)

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        return _Change.apply(adjoint, *ctx.saved_tensors, ctx.op, not ctx.transposed, False), None, None, None, None
