"""Differentiable siamese augmentation (DSA, Zhao and Bilen 2021): draw the parameters once, apply them to many batches.

A strategy names operations, as in "color_crop_cutout_flip_scale_rotate", and each call applies one of them to the whole
batch. *Siamese* means one value for all images, so that real and synthetic images are changed in the same way;
otherwise every image gets its own value. Every operation is linear in the pixels (plus a constant), so gradients of any
order reach them.

Differs from the published code: parameters come from an explicit generator, not from a reset global one, and images are
resampled with `align_corners=False` everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, pi
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from ddlib.kernels.augment import change, cut_sides

if TYPE_CHECKING:
    from ddlib.data import ImageSet

DSA = "color_crop_cutout_flip_scale_rotate"

BRIGHTNESS = 0.5         # added to every pixel, within +-0.5, in the units of normalised pixels
SATURATION = 2.0         # the difference to the pixel's mean over channels is multiplied by 0 to 2
CONTRAST = 0.5           # the difference to the image's mean is multiplied by 1 +- 0.5
CROP = 0.125             # largest translation, as a part of the side: 4 pixels at 28 and at 32
FLIP = 0.5               # probability
SCALE = 1.2              # the sampling grid is multiplied by 1/1.2 to 1.2, each axis on its own
ROTATE = 15.0            # degrees, to either side


@dataclass(frozen=True)
class Params:
    """What `draw` decided: the operations in the order in which `apply` takes them, and their values.

    values: one tensor (n, k) per operation, n = 1 for siamese use or the batch size. size: (h, w) of the images.
    """

    ops: tuple[str, ...]
    values: tuple[Tensor, ...]
    size: tuple[int, int]


def _uniform(n: int, k: int, low: float, high: float, rng: Generator) -> Tensor:
    return low + (high - low) * torch.rand((n, k), generator=rng)


# How the values (n, k) of an operation are drawn for images of h x w; what they do stands in `ddlib.kernels.augment`.


def _draw_color(n: int, h: int, w: int, rng: Generator) -> Tensor:
    brightness = _uniform(n, 1, -BRIGHTNESS, BRIGHTNESS, rng)
    saturation = _uniform(n, 1, 0, SATURATION, rng)
    contrast = _uniform(n, 1, 1 - CONTRAST, 1 + CONTRAST, rng)
    return torch.cat([brightness, saturation, contrast], dim=1)                        # (n, 3)


def _draw_crop(n: int, h: int, w: int, rng: Generator) -> Tensor:
    """Pixels down and right (n, 2)."""
    down, right = floor(h * CROP + 0.5), floor(w * CROP + 0.5)
    return torch.cat([torch.randint(-most, most + 1, (n, 1), generator=rng) for most in (down, right)], dim=1)


def _draw_cutout(n: int, h: int, w: int, rng: Generator) -> Tensor:
    """Centres (n, 2). A square of even side has its centre between pixels, hence one more place for it."""
    sides = cut_sides(h, w)
    highs = h + 1 - sides[0] % 2, w + 1 - sides[1] % 2
    return torch.cat([torch.randint(0, high, (n, 1), generator=rng) for high in highs], dim=1)


def _draw_flip(n: int, h: int, w: int, rng: Generator) -> Tensor:
    return torch.rand((n, 1), generator=rng) < FLIP


def _draw_scale(n: int, h: int, w: int, rng: Generator) -> Tensor:
    return _uniform(n, 2, 1 / SCALE, SCALE, rng)


def _draw_rotate(n: int, h: int, w: int, rng: Generator) -> Tensor:
    return _uniform(n, 1, -ROTATE * pi / 180, ROTATE * pi / 180, rng)                  # radians


OPS: dict[str, Callable[[int, int, int, Generator], Tensor]] = {
    "color": _draw_color, "crop": _draw_crop, "cutout": _draw_cutout, "flip": _draw_flip, "scale": _draw_scale, "rotate": _draw_rotate,
}


def parse(strategy: str) -> tuple[str, ...]:
    """"flip_rotate" -> ("flip", "rotate"); "" and "none" -> (). Raises ValueError for an unknown operation."""
    ops = () if strategy in ("", "none") else tuple(strategy.split("_"))
    for op in ops:
        if op not in OPS:
            raise ValueError(f"unknown operation {op!r} in {strategy!r}; join some of {', '.join(OPS)} by '_', or none")
    return ops


def strategy_for(real: ImageSet, strategy: str = DSA) -> str:
    """The strategy without "flip" where a mirror image is another class or none, as with digits."""
    return "_".join(op for op in parse(strategy) if not (op == "flip" and real.has_orientation))


def draw(
    strategy: str,
    batch: int,
    shape: tuple[int, int, int],
    rng: Generator,
    *,
    siamese: bool = False,
    mode: Literal["single", "all"] = "single",
) -> Params:
    """Decide what to do to a batch of (c, h, w) images; `rng` is a CPU generator.

    siamese: one value for all images, applicable to any batch size; else one per image, for batches of `batch`.
    mode: "single" draws one of the listed operations (DSA); "all" takes flip, color and cutout whenever they are listed
    and draws one of the others (IDC, DiM).
    """
    if mode not in ("single", "all"):
        raise ValueError(f"unknown mode {mode!r}; choose 'single' or 'all'")
    ops = parse(strategy)
    before, after = [], []
    if mode == "all":
        before = [op for op in ("flip", "color") if op in ops]
        after = [op for op in ("cutout",) if op in ops]
        ops = tuple(op for op in ops if op not in (*before, *after))
    one = [ops[int(torch.randint(len(ops), (), generator=rng))]] if ops else []
    chosen = (*before, *one, *after)
    _, h, w = shape
    values = tuple(OPS[op](1 if siamese else batch, h, w, rng) for op in chosen)
    return Params(chosen, values, (h, w))


def apply(params: Params, images: Tensor) -> Tensor:
    """Augmented images (B, c, h, w): float, in the space the networks see, differentiable in the pixels."""
    if params.ops and (not images.is_floating_point() or tuple(images.shape[2:]) != params.size):
        raise ValueError(
            f"expected float images of {params.size[0]}x{params.size[1]} pixels, as the parameters were drawn for, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    for op, values in zip(params.ops, params.values, strict=True):
        if len(values) not in (1, len(images)):
            raise ValueError(
                f"the parameters are for {len(values)} images, got {len(images)}; draw them with siamese=True to share"
            )
        images = change(op, images, values)
    return images


def augment(
    images: Tensor,
    strategy: str,
    rng: Generator,
    siamese: bool = False,
    mode: Literal["single", "all"] = "single",
) -> Tensor:
    """Draw and apply in one: (B, c, h, w) -> (B, c, h, w)."""
    _, c, h, w = images.shape
    return apply(draw(strategy, len(images), (c, h, w), rng, siamese=siamese, mode=mode), images)
