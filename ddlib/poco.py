"""The order of classes on a poster (PoCO; Shul et al., TMLR 2025): classes that are alike become neighbours.

Patches lie across the borders of cells, so what two neighbours have in common is stored once. `distances` says how far apart
classes are, `order` places them greedily, `score` says how good an order is. Costs nothing next to a distillation; only the
source "features" trains a network, for some ten seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddlib import select
from ddlib.data import ImageSet, Split

Source = str | Tensor | Callable[[ImageSet | Sequence[str]], Tensor]

TABLES = Path(__file__).parent / "assets" / "class_distances.json"           # how it was made: class_distances.md beside it
TABLE_OF = {"mnist": "mnist", "svhn": "mnist", "fashion_mini": "fashion_mnist", "fashion_mnist": "fashion_mnist",
            "cifar10": "cifar10", "cifar100": "cifar100"}
SOURCES = ("auto", "text", "clip", "features", "colour")
CLIP = ("ViT-B-32-quickgelu", "openai")                                      # the text encoder of the official code
TIED = 1e-9                              # sums that differ by less, in units of the largest distance, count as equal


# ------------------------------------------------------------------------------------------------------------- placing

def order(distances: Tensor, grid_x: int, grid_y: int, alternate: bool = False) -> Tensor:
    """Class indices on the grid, (grid_y, grid_x), placed one by one from the top left along anti-diagonals.

    Every cell takes the unused class whose distances to the already placed 4-neighbours have the smallest sum; the first cell
    takes class 0, ties go to the lowest class. distances: (C, C). alternate: walk every second anti-diagonal downwards, a true
    zigzag; otherwise all of them upwards, as the official code does. Multiplying all distances by one number changes nothing.
    """
    delta, size = _checked(distances), len(distances)
    if min(grid_x, grid_y) < 1 or grid_x * grid_y != size:
        raise ValueError(f"a grid of {grid_x}x{grid_y} does not hold {size} classes: choose sides whose product is {size}")
    placed = torch.full((grid_y, grid_x), -1)
    free = torch.ones(size, dtype=torch.bool)
    tied = TIED * delta.max()
    for y, x in cells(grid_x, grid_y, alternate):
        total = torch.zeros(size, dtype=torch.float64)
        for up, left in ((y - 1, x), (y, x - 1)):                            # the only neighbours that can be there already
            if min(up, left) >= 0:
                total += delta[placed[up, left]]
        total[~free] = math.inf
        chosen = int((total <= total.min() + tied).nonzero()[0])
        placed[y, x], free[chosen] = chosen, False
    return placed


def cells(grid_x: int, grid_y: int, alternate: bool = False) -> Iterator[tuple[int, int]]:
    """(y, x) of every cell, anti-diagonal by anti-diagonal, each from its bottom left to its top right.

    alternate: those of odd number, counted from 0 at the top left, from their top right to their bottom left.
    """
    for number in range(grid_x + grid_y - 1):
        rising = [(number - x, x) for x in range(grid_x) if 0 <= number - x < grid_y]
        yield from reversed(rising) if alternate and number % 2 else rising


def score(order: Tensor, distances: Tensor) -> float:
    """1 / the sum of distances over all pairs of 4-neighbours in `order` (grid_y, grid_x): higher is better (section 5.3).

    Infinite where the sum is 0, as for one class. ValueError unless every class stands in the order once.
    """
    delta = _checked(distances)
    if order.ndim != 2 or sorted(order.flatten().tolist()) != list(range(len(delta))):
        raise ValueError(f"an order must be a grid with each of the {len(delta)} classes once, got shape {tuple(order.shape)} with "
                         f"{len(order.unique())} different entries")
    total = delta[order[1:], order[:-1]].sum() + delta[order[:, 1:], order[:, :-1]].sum()
    return 1 / total.item() if total > 0 else math.inf


def random_orders(num_classes: int, grid_x: int, grid_y: int, num: int, rng: torch.Generator) -> Tensor:
    """(num, grid_y, grid_x): orders to compare a score with."""
    return torch.stack([torch.randperm(num_classes, generator=rng).view(grid_y, grid_x) for _ in range(num)])


def _checked(distances: Tensor) -> Tensor:
    """(C, C) float64 on the CPU, 0 on the diagonal; ValueError, saying what is wrong, for anything that is no table of distances."""
    if not isinstance(distances, Tensor) or distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not len(distances):
        found = tuple(distances.shape) if isinstance(distances, Tensor) else type(distances).__name__
        raise ValueError(f"distances must be a square tensor (C, C) with a row for each class, got {found}")
    delta = distances.detach().double().cpu().clone().fill_diagonal_(0)      # a class's distance to itself is never used
    if not delta.isfinite().all():
        raise ValueError(f"distances must be finite, and {int((~delta.isfinite()).sum())} of {delta.numel()} are not")
    if delta.min() < 0:
        raise ValueError(f"distances must not be negative, and the smallest is {delta.min().item():g}: give 1 - cosine, or add a constant")
    if not torch.allclose(delta, delta.T, rtol=1e-5, atol=1e-6 * delta.max().item()):
        a, b = divmod(int((delta - delta.T).abs().argmax()), len(delta))
        raise ValueError(f"distances must be the same both ways, and from class {a} to {b} it is {delta[a, b].item():g}, back "
                         f"{delta[b, a].item():g}: give (D + D.T) / 2")
    return (delta + delta.T) / 2


# ----------------------------------------------------------------------------------------------------------- distances

def distances(real: ImageSet | Sequence[str], source: Source = "auto") -> Tensor:
    """How far apart the classes are, (C, C) float64 on the CPU: 1 - cosine of one vector for each class.

    real: an image set, or the names of the classes where no image is needed. source:
    auto      the table where the data set has one, else features (class names alone: the table only)
    text      the shipped table: sentence embeddings of the class names of MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100
    clip      CLIP's embeddings of the class names; needs open_clip (`pip install 'ddlib[clip]'`) and its weights
    features  means of what a ConvNet-3 sees that was trained shortly on some of the training images
    colour    means of the pixels of training images, so colour and rough shape
    A tensor (C, C) is taken as it is, and a function is called with `real`. ValueError for what is no table of distances.
    """
    names = list(real.classes if isinstance(real, ImageSet) else real)
    if isinstance(source, Tensor) or callable(source):
        given = source if isinstance(source, Tensor) else source(real)
        delta = _checked(given)
        if len(delta) != len(names):
            raise ValueError(f"distances are given for {len(delta)} classes and there are {len(names)}: give a row for each class")
        return delta
    if source not in SOURCES:
        raise ValueError(f"unknown source of distances {source!r}; choose from {', '.join(SOURCES)}, or give a tensor or a function")
    if source == "auto":
        known = TABLE_OF.get(real.name) if isinstance(real, ImageSet) else table_of(names)
        source = "text" if known and set(names) <= set(_tables()[known]["classes"]) else "features"
        if source == "features" and not isinstance(real, ImageSet):
            raise ValueError(f"no shipped table has the classes {_some(names)}: give the image set, source 'clip', or your own distances")
    if source == "text":
        return by_table(names)
    if source == "clip":
        return by_clip(names)
    if not isinstance(real, ImageSet):
        raise ValueError(f"source {source!r} looks at images: give the image set instead of the names of its classes")
    return by_colour(real) if source == "colour" else by_features(real)


def cosine_distances(vectors: Tensor) -> Tensor:
    """1 - cosine between the rows of (C, F), as (C, C) float64: 0 on the diagonal, between 0 and 2 elsewhere."""
    units = vectors.detach().double().cpu()
    units = units / units.norm(dim=1, keepdim=True).clamp_min(1e-12)                                          # (C, F)
    return (1 - units @ units.T).clamp_min(0).fill_diagonal_(0)


@cache
def _tables() -> dict[str, dict]:
    """Name of a table -> its classes, the texts that were embedded for them, and rows of distances below the diagonal."""
    try:
        if not TABLES.is_file():
            raise TypeError("there is no such file")
        tables: dict[str, dict] = json.loads(TABLES.read_text(encoding="utf-8"))["tables"]
        for table in tables.values():
            if len(_square(table)) != len(set(map(str, table["classes"]))):
                raise TypeError("a class has no name, or another's")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{TABLES} is missing or damaged ({error}): install ddlib again") from None
    return tables


def _square(table: dict) -> Tensor:
    """(C, C): all distances of a stored table."""
    size = len(table["classes"])
    full = torch.zeros(size, size, dtype=torch.float64)
    for row, values in zip(range(size), table["distances"], strict=True):
        if len(values) != row:
            raise TypeError(f"{len(values)} distances stand where {row} should")
        full[row, :row] = full[:row, row] = torch.tensor(values, dtype=torch.float64)
    return _checked(full)


def table_of(names: Sequence[str]) -> str | None:
    """The shipped table that has all these class names."""
    return next((name for name, table in _tables().items() if names and set(names) <= set(table["classes"])), None)


def by_table(names: Sequence[str]) -> Tensor:
    """The shipped distances of class names, in the order given; all of them must stand in one table."""
    table = table_of(names)
    if table is None:
        raise ValueError(f"no shipped table has the classes {_some(names)}; there are tables for {', '.join(_tables())}: choose source "
                         "'features' or 'clip', or give your own distances")
    stored = _tables()[table]
    places = [stored["classes"].index(name) for name in names]
    return _square(stored)[places][:, places]


def by_clip(names: Sequence[str]) -> Tensor:
    """CLIP's pooled text embeddings of the raw names, underscores as blanks, without a template.

    The official code compares the whole padded sequence of hidden states instead; the paper only says text embedding.
    """
    try:
        import open_clip
    except ImportError:
        raise ImportError("source 'clip' needs open_clip, which is not installed: pip install 'ddlib[clip]', or choose another "
                          f"source of {', '.join(SOURCES)}") from None
    model, weights = CLIP
    try:
        net = open_clip.create_model(model, pretrained=weights).eval()
        tokens = open_clip.get_tokenizer(model)([name.replace("_", " ") for name in names])                   # (C, 77)
    except Exception as error:                                               # whatever the hub, the file or the network raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        raise FileNotFoundError(f"open_clip cannot load {model} with the weights {weights!r} ({reason}): let it download them once, "
                                "or choose source 'text' or 'features'") from error
    with torch.inference_mode():
        return cosine_distances(net.encode_text(tokens))


def by_colour(real: ImageSet, per_class: int = 500) -> Tensor:
    """Class means of the pixels of up to `per_class` training images, before any preprocessing: whitening takes colour away."""
    some = _some_images(real, per_class)
    return cosine_distances(_class_means(some.images.flatten(1).float() / 255, some.labels, real.num_classes))


def by_features(real: ImageSet, num: int = 4000, epochs: int = 2, seed: int = 0) -> Tensor:
    """Class means of the last features of a narrow ConvNet-3 that was trained on about `num` images, as many of every class.

    Trained, because the features of a random network are little more than pixels; shortly, because only the order of distances
    counts. Not centred: what all classes share lowers all distances alike.
    """
    some = replace(real, train=_some_images(real, -(-num // real.num_classes)))
    net = select.feature_net(some, epochs, width=16, seed=seed)
    everything = torch.arange(len(some.train), device=some.train.labels.device)
    return cosine_distances(_class_means(select.embeddings(net, some, everything), some.train.labels, real.num_classes))


def _some_images(real: ImageSet, per_class: int) -> Split:
    """The first `per_class` training images of every class."""
    indices = torch.cat([real.train.of_class(label)[:per_class] for label in range(real.num_classes)])
    return Split(real.train.images.index_select(0, indices), real.train.labels.index_select(0, indices))


def _class_means(vectors: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Means (C, F) over the rows of (N, F) with each label (N,)."""
    total = vectors.new_zeros(num_classes, vectors.shape[1]).index_add_(0, labels, vectors)
    return total / labels.bincount(minlength=num_classes)[:, None]


def _some(names: Sequence[str]) -> str:
    """The first few names, for an error message."""
    shown = ", ".join(repr(name) for name in names[:4]) or "(none)"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
