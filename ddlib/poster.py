"""Geometry and labels of a poster, one picture whose overlapping patches are the training images (PoDD; Shul et al., TMLR 2025).

A grid of g_x by g_y cells gives every class a place on the poster. Patches of the size of an image lie n_x by n_y over it, and
each is labelled by the cells that it sees. All counting is done in whole pixels, so that ties are ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ddlib.kernels import poster as kernel

Rule = Literal["paper", "code"]          # how labels are read: the paper's words, or what the official code does
SMALLEST_SUM = 1e-8                      # a label that adds up to less is taken for uniform


def offsets(length: int, size: int, num: int) -> list[int]:
    """Where `num` windows of `size` begin on a line: o_k = round(k (length - size) / (num - 1)), halves to even; [0] for one."""
    if num < 1 or not 1 <= size <= length:
        raise ValueError(f"{num} windows of {size} do not go on a line of {length}: give at least one, no longer than the line")
    return [round(Fraction(k * (length - size), max(num - 1, 1))) for k in range(num)]


def usual_grid(num_classes: int) -> tuple[int, int]:
    """Cells (g_x, g_y) of the squarest grid that is not higher than wide: 5x2 for 10 classes, 10x10 for 100, 20x10 for 200."""
    height = max(side for side in range(1, math.isqrt(num_classes) + 1) if num_classes % side == 0)
    return num_classes // height, height


def size_for(ipc: float, grid_x: int, grid_y: int, patch_width: int, patch_height: int) -> tuple[int, int]:
    """Width and height of a poster for `ipc` images per class: g p sqrt(ipc) each, rounded down, so never above the budget.

    ValueError, with the smallest budget that works, where that is smaller than a patch.
    """
    if not 0 < ipc < math.inf:
        raise ValueError(f"ipc must be above 0 and finite, got {ipc}")
    width, height = (math.floor(cells * size * math.sqrt(ipc) + 1e-9) for cells, size in ((grid_x, patch_width), (grid_y, patch_height)))
    if width < patch_width or height < patch_height:
        least = max(1 / grid_x**2, 1 / grid_y**2)
        room = ipc * grid_x * grid_y * patch_width * patch_height
        clamped = max(width, patch_width), max(height, patch_height)
        clamped = (min(clamped[0], int(room / clamped[1])), clamped[1])
        other = f", or give the size {clamped[0]}x{clamped[1]}" if clamped[0] >= patch_width else ""
        raise ValueError(f"ipc {ipc:g} on a grid of {grid_x}x{grid_y} is a poster of {width}x{height}, smaller than a patch of "
                         f"{patch_width}x{patch_height}: choose ipc {math.ceil(1000 * least) / 1000:g} or more{other}")
    return width, height


@dataclass(frozen=True)
class Layout:
    """A poster of width x height pixels under n_x by n_y patches of patch_width x patch_height.

    Patch number i n_y + j is the j-th from the top in column i. ValueError for a poster smaller than a patch. cyclic: the right
    edge goes on at the left one and the bottom at the top, so that pixels are covered alike (proposed by the paper, shown by nobody).
    """

    width: int
    height: int
    patch_width: int
    patch_height: int
    patches_x: int
    patches_y: int
    cyclic: bool = False

    def __post_init__(self) -> None:
        if min(self.patch_width, self.patch_height, self.patches_x, self.patches_y) < 1:
            raise ValueError(f"patches need at least 1 pixel and 1 of them a side, got {self.patches_x}x{self.patches_y} of "
                             f"{self.patch_width}x{self.patch_height}")
        if self.width < self.patch_width or self.height < self.patch_height:
            raise ValueError(f"a poster of {self.width}x{self.height} is smaller than its patches of {self.patch_width}x"
                             f"{self.patch_height}: choose at least {max(self.width, self.patch_width)}x"
                             f"{max(self.height, self.patch_height)}")

    def __len__(self) -> int:
        return self.patches_x * self.patches_y

    @property
    def lefts(self) -> list[int]:
        """Where the columns of patches begin."""
        return self._line(self.width, self.patch_width, self.patches_x)

    @property
    def tops(self) -> list[int]:
        """Where the rows of patches begin."""
        return self._line(self.height, self.patch_height, self.patches_y)

    def _line(self, length: int, size: int, num: int) -> list[int]:
        if self.cyclic:                                          # the window after the last would be the first again
            return [round(Fraction(k * length, num)) for k in range(num)]
        return offsets(length, size, num)

    @property
    def corners(self) -> Tensor:
        """(N, 2): top and left of every patch."""
        return torch.tensor([(top, left) for left in self.lefts for top in self.tops])

    def shifted(self, most: int, rng: torch.Generator) -> Tensor:
        """Corners (N, 2), each moved by up to `most` pixels in both directions and kept on the poster."""
        moves = torch.randint(-most, most + 1, (len(self), 2), generator=rng)
        sides, sizes = torch.tensor([self.height, self.width]), torch.tensor([self.patch_height, self.patch_width])
        moved = self.corners + moves
        return moved % sides if self.cyclic else moved.clamp(min=torch.zeros_like(sides), max=sides - sizes)

    def index(self, channels: int = 1, corners: Tensor | None = None) -> Tensor:
        """(N, c p_h p_w): where the numbers of the patches at `corners` (N, 2) are in the flattened poster of c `channels`."""
        corners = self.corners if corners is None else corners
        rows = (corners[:, :1] + torch.arange(self.patch_height)) % self.height                       # (N, p_h)
        columns = (corners[:, 1:] + torch.arange(self.patch_width)) % self.width                      # (N, p_w)
        pixels = (rows[:, :, None] * self.width + columns[:, None, :]).flatten(1)                     # (N, p_h p_w)
        return (torch.arange(channels)[:, None] * self.height * self.width + pixels[:, None]).flatten(1)

    def extract(self, poster: Tensor, index: Tensor) -> Tensor:
        """Patches (N, c, p_h, p_w) of a poster (c, h, w) at rows of `index`; where they overlap their gradients add up."""
        return kernel.extract(poster, index, (self.patch_height, self.patch_width))

    def merge(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (c, h, w) of what patches (N, c, p_h, p_w) show of each pixel, and how many show it (h, w)."""
        total = kernel.add_up(patches, self.index(patches.shape[1]).to(patches.device), (self.height, self.width))
        count = self.coverage().to(patches.device)
        return total / count.clamp_min(1), count

    def coverage(self) -> Tensor:
        """(h, w): how many patches cover each pixel."""
        return self.index().flatten().bincount(minlength=self.height * self.width).view(self.height, self.width)

    def areas(self, grid_x: int, grid_y: int, corners: Tensor | None = None) -> Tensor:
        """(N, g_y g_x): pixels of each patch that lie in each cell of a grid that is stretched over the poster (nearest cell)."""
        corners = self.corners if corners is None else corners
        down = _seen(self.height, self.patch_height, grid_y, corners[:, 0])                           # (N, g_y)
        across = _seen(self.width, self.patch_width, grid_x, corners[:, 1])                           # (N, g_x)
        return (down[:, :, None] * across[:, None, :]).flatten(1)

    def tile_areas(self, grid_x: int, grid_y: int) -> Tensor:
        """(N, g_y g_x): pixels of each patch under each of g_x by g_y tiles of its size, which overlap below 1 image per class (code)."""
        down = _overlap(self.corners[:, 0], self.patch_height, self.height, grid_y)                   # (N, g_y)
        across = _overlap(self.corners[:, 1], self.patch_width, self.width, grid_x)                   # (N, g_x)
        return (down[:, :, None] * across[:, None, :]).flatten(1)


def _seen(length: int, size: int, cells: int, starts: Tensor) -> Tensor:
    """(N, cells): pixels of the windows at `starts` (N,) in each cell of a line of `length`, going round at its end."""
    member = torch.nn.functional.one_hot(torch.arange(2 * length) % length * cells // length, cells)  # (2 length, cells)
    until = torch.cat([torch.zeros(1, cells, dtype=torch.int64), member.cumsum(dim=0)])
    return until[starts + size] - until[starts]


def _overlap(starts: Tensor, size: int, length: int, cells: int) -> Tensor:
    """(N, cells): pixels that windows of `size` at `starts` (N,) share with as long tiles, laid out like patches."""
    tiles = torch.tensor(offsets(length, size, cells))
    return (size - (starts[:, None] - tiles).abs()).clamp_min(0)


def check_rule(rule: str, corners: Tensor | None = None) -> None:
    """ValueError for a reading that nobody has, or patches off their places, which the code has not."""
    if rule not in get_args(Rule):
        raise ValueError(f"unknown rule {rule!r}; choose from {', '.join(get_args(Rule))}")
    if rule == "code" and corners is not None:
        raise ValueError("the official code cuts patches at their places only: use the rule 'paper'")


def fixed_labels(layout: Layout, order: Tensor, rule: Rule = "paper", corners: Tensor | None = None) -> Tensor:
    """Labels (N, C) of patches on a poster whose classes lie as in `order` (g_y, g_x).

    paper: the class with the most pixels in the patch; several that have equally many share it. code: the softmax of the pixel
    counts under overlapping tiles, which is one-hot unless two counts are within a few pixels.
    """
    check_rule(rule, corners)
    grid_y, grid_x = order.shape
    by_cell = layout.areas(grid_x, grid_y, corners) if rule == "paper" else layout.tile_areas(grid_x, grid_y)
    counts = torch.empty_like(by_cell)
    counts[:, order.flatten()] = by_cell                                                              # (N, C)
    if rule == "code":
        return counts.float().softmax(dim=1)
    most = counts == counts.amax(dim=1, keepdim=True)
    return most.float() / most.sum(dim=1, keepdim=True)


def label_cells(layout: Layout, order: Tensor, rule: Rule = "paper") -> Tensor:
    """Learned labels at first, (C, l_y, l_x): one-hot cells of the class grid `order` (g_y, g_x).

    code: the largest grid of about the poster's shape with fewer cells than classes (C itself only where both sides come out
    whole); classes whose cells round to nothing are missing.
    """
    grid_y, grid_x = order.shape
    num_classes = order.numel()
    across, down = grid_x, grid_y
    if rule == "code":
        scale = math.sqrt(num_classes / (layout.width * layout.height))
        sides = [{math.floor(side * scale), math.ceil(side * scale)} for side in (layout.width, layout.height)]
        # the official choice leaves out a grid of exactly C cells, unless both sides came out whole
        sizes = [(x, y) for x in sides[0] for y in sides[1] if 0 < x * y < num_classes] or [(max(sides[0]), max(sides[1]))]
        across, down = max(sizes, key=lambda size: size[0] * size[1])
    columns = torch.repeat_interleave(torch.arange(grid_x), torch.tensor(_splits(across, grid_x)))    # (l_x,) cell of the class grid
    rows = torch.repeat_interleave(torch.arange(grid_y), torch.tensor(_splits(down, grid_y)))
    return torch.nn.functional.one_hot(order[rows][:, columns], num_classes).movedim(-1, 0).float()   # (C, l_y, l_x)


def _splits(length: int, parts: int) -> list[int]:
    """`length` in `parts` pieces as equal as rounding allows."""
    ends = [round(Fraction(k * length, parts)) for k in range(parts + 1)]
    return [end - start for start, end in pairwise(ends)]


def label_windows(layout: Layout, cells_x: int, cells_y: int, rule: Rule = "paper", corners: Tensor | None = None) -> Tensor:
    """(N, l_y l_x): how much each label cell counts in each patch. paper: the pixels it has there; code: 1 for the few cells that
    are cut out like the patch, a single one in every published setting."""
    check_rule(rule, corners)
    if rule == "paper":
        return layout.areas(cells_x, cells_y, corners).float()
    across = _crops(cells_x, layout.width, layout.patch_width, layout.patches_x)                      # (n_x, l_x)
    down = _crops(cells_y, layout.height, layout.patch_height, layout.patches_y)                      # (n_y, l_y)
    return (across[:, None, None, :] * down[None, :, :, None]).view(len(layout), -1).float()


def _crops(cells: int, length: int, size: int, num: int) -> Tensor:
    """(num, cells), 0 or 1: the cells of a line that windows cut out which lie on it as those of `size` on `length`."""
    kept = max(1, size * cells // length)
    place = torch.arange(cells) - torch.tensor(offsets(cells, kept, num))[:, None]
    return ((place >= 0) & (place < kept)).to(torch.int64)


def learned_labels(cells: Tensor, windows: Tensor) -> Tensor:
    """Labels (N, C): the mean of the label cells (C, l_y, l_x) in each patch, by `windows` (N, l_y l_x), divided by its sum."""
    return normalize(windows @ cells.flatten(1).T)


def normalize(labels: Tensor) -> Tensor:
    """Rows (N, C) divided by their sums; uniform, without a gradient, where nothing is left."""
    total = labels.sum(dim=1, keepdim=True)                                                           # (N, 1)
    kept = total > SMALLEST_SUM
    return torch.where(kept, labels / torch.where(kept, total, 1.0), 1 / labels.shape[1])
