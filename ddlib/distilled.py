"""Distilled sets: what a method makes, stored so that it can be used alone.

Every kind (pixels, posters, codes with decoders, generators) answers the same questions, so evaluation, tables and
pictures do not care which one they hold.
"""

from __future__ import annotations

import copy
import math
import re
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ddlib import files, gan, poster
from ddlib.data import ImageSet, Preprocess, check_ipc
from ddlib.train import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, type[DistilledSet]] = {}
MOST_IN_PATCHES = 2**27                          # numbers in all patches of a poster that is described or stored; papers have 1e7


class DistilledSet(ABC):
    """A small stand-in for a training set.

    classes: the C class names. preprocess: how test images must be treated before a network trained on this set sees
    them. meta: JSON-able facts (dataset, method, config, seed, commit, ...).
    """

    kind: ClassVar[str]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocess: Preprocess
    meta: dict[str, Any]

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "kind"):                                 # the abstract ones have none
            KINDS[cls.kind] = cls

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    @abstractmethod
    def budget(self) -> int:
        """Scalars that have to be stored to use the set: pixels, poster, codes and decoders, or generator weights."""

    @property
    def ipc(self) -> float:
        """Images per class that the budget would buy as plain images."""
        channels, height, width = self.shape
        return self.budget / (self.num_classes * channels * height * width)

    @abstractmethod
    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """Draw images (num, c, h, w) in the space networks see and labels (num, C), one-hot or soft."""

    @abstractmethod
    def all(self, rng: torch.Generator) -> Batch:
        """The whole set once: images (N, c, h, w) and labels (N, C). A generator draws its frozen sample from `rng`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The live tensors that are stored, by name."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor], **facts: Any) -> DistilledSet:
        """Undo `tensors`; facts: classes, preprocess, meta."""

    def pixels(self, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Images (N, c, h, w) in [0, 1], whitening and normalisation undone, and labels (N,): what a person looks at."""
        images, labels = self.all(rng or torch.Generator().manual_seed(0))
        return self.preprocess.inverse(images.detach()).clamp(0, 1), labels.argmax(dim=1)

    def show(self, per_class: int = 10) -> Figure:
        """A picture: one row per class, at most `per_class` images each, in pixel space."""
        from ddlib import plots
        images, labels = self.pixels()
        return plots.image_grid(images, labels, self.classes, per_class=per_class,
                                caption=f"{self.meta.get('method', self.kind)}: {self.budget:,} stored scalars")

    def as_dataset(self) -> TensorDataset:
        """A torch Dataset of (image (c, h, w) in [0, 1], class) for anybody's own training loop."""
        return TensorDataset(*self.pixels())

    def to_folder(self, path: Path | str) -> Path:
        """Write one PNG an image to path/CLASS/NUMBER.png and return the folder. An existing folder must be empty."""
        from PIL import Image
        path = Path(path)
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty: choose a new folder so that two sets do not mix")
        images, labels = self.pixels()
        seen = [0] * self.num_classes
        scaled = (images * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()    # (N, h, w, c)
        for image, label in zip(scaled, labels.tolist(), strict=True):
            folder = path / f"{label:03d}_{re.sub(r'[^0-9A-Za-z]+', '-', self.classes[label]).strip('-')}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{seen[label]:04d}.png")
            seen[label] += 1
        return path

    def save(self, path: Path | str) -> Path:
        """Write the set, whole or not at all, as safetensors with a JSON header that makes it usable alone."""
        from ddlib.runs import provenance
        pre_tensors, pre_facts = self.preprocess.state()
        header = {"classes": list(self.classes), "preprocess": pre_facts, "budget": self.budget,
                  "meta": {**provenance(), **self.meta}}
        stored = {f"set.{name}": tensor for name, tensor in self.tensors().items()}
        stored |= {f"preprocess.{name}": tensor for name, tensor in pre_tensors.items()}
        files.write_tensors(path, f"distilled/{self.kind}", header, stored)
        return Path(path)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                if state[name].shape != tensor.shape:            # copying would spread what is smaller
                    raise ValueError(f"{name} is {tuple(state[name].shape)} where {tuple(tensor.shape)} is needed")
                tensor.copy_(state[name])


def load(path: Path | str) -> DistilledSet:
    """Read a distilled set of any kind. Raises one clear error for a missing, damaged, foreign, altered or newer file."""
    header, tensors = files.read_tensors(path, "distilled")
    kind = header["kind"].partition("/")[2]
    if kind not in KINDS:
        raise ValueError(f"{path} holds a set of kind {kind!r} and this ddlib knows {', '.join(sorted(KINDS))}: update ddlib")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    try:
        preprocess = Preprocess.from_state(part("preprocess."), header["preprocess"])
        classes, meta = header["classes"], header["meta"]
        if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes) and isinstance(meta, dict)):
            raise TypeError("classes must be names and meta a dictionary")
        syn = KINDS[kind].from_tensors(part("set."), classes=tuple(classes), preprocess=preprocess, meta=meta)
        preprocess.check(syn.shape)
        alpha = getattr(syn, "alpha", None)
        if alpha is not None and not (alpha.ndim == 0 and alpha.is_floating_point()):
            raise ValueError(f"alpha must be one float, got {alpha.dtype} of shape {tuple(alpha.shape)}")
        return syn
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}").splitlines()[0]
        raise ValueError(f"{path} is incomplete or its parts do not fit together ({reason}): make it again") from None


class StoredSet(DistilledSet):
    """A fixed number of images that are a plain function of a few stored tensors, its sources: what unrolled training differentiates.

    alpha: the learned step size of a student, a scalar tensor, where a method learns one.
    """

    alpha: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """Images there are to train on."""

    @property
    @abstractmethod
    def sources(self) -> tuple[Tensor, ...]:
        """The tensors that an optimizer may change: pixels or a poster, then labels if they are learned."""

    @abstractmethod
    def make(self, indices: Tensor, *sources: Tensor) -> Batch:
        """Images (B, c, h, w) and labels, (B,) classes or (B, C), at `indices` (B,), made from `sources` in place of the set's own."""

    @property
    def device(self) -> torch.device:
        return self.sources[0].device

    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """`num` images: without replacement while they last, otherwise every image equally often up to one."""
        rounds = -(-num // len(self))
        order = torch.cat([torch.randperm(len(self), generator=rng) for _ in range(rounds)])[:num].to(self.device)
        images, labels = self.all(rng)
        return images[order], labels[order]

    def all(self, rng: torch.Generator | None = None) -> Batch:
        images, labels = self.make(torch.arange(len(self), device=self.device), *self.sources)
        labels = labels if labels.ndim == 2 else F.one_hot(labels, self.num_classes)
        return images, labels.to(images.dtype)                                          # (N, c, h, w), (N, C)

    def param_groups(self, pixel_lr: float, alpha_lr: float | None = None, label_lr: float | None = None) -> list[dict[str, Any]]:
        """What an optimizer should update: the sources (labels at `label_lr`) and, if there is one and a rate for it, alpha."""
        rates = (pixel_lr, pixel_lr if label_lr is None else label_lr)
        groups: list[dict[str, Any]] = [{"params": [source.requires_grad_()], "lr": rate}
                                        for source, rate in zip(self.sources, rates, strict=False)]
        if self.alpha is not None and alpha_lr is not None:
            groups.append({"params": [self.alpha.requires_grad_()], "lr": alpha_lr})
        return groups


class PixelSet(StoredSet):
    """Plain images: (N, c, h, w) in the space networks see, labels (N,) classes or (N, C) probabilities (divided by their sum).

    alpha: the learned step size of a student, a scalar tensor, where a method learns one. Images, alpha and labels that are
    probabilities are leaves that an optimizer may change.
    """

    kind = "pixels"

    def __init__(self, images: Tensor, labels: Tensor, *, classes: tuple[str, ...], preprocess: Preprocess,
                 alpha: Tensor | None = None, meta: dict[str, Any] | None = None):
        if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
            raise ValueError(f"images must be (N, c, h, w) with N >= 1 labels, got {tuple(images.shape)} and {tuple(labels.shape)}")
        if not images.is_floating_point() or labels.is_floating_point() != (labels.ndim == 2):
            raise ValueError(f"images must be floats and labels whole numbers, or floats if they are probabilities, got {images.dtype} "
                             f"and {labels.dtype} of shape {tuple(labels.shape)}")
        if labels.shape[1:] != (len(classes),) if labels.ndim == 2 else not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f"labels must be classes from 0 to {len(classes) - 1} or (N, {len(classes)}) probabilities")
        if labels.ndim == 2 and labels.min() < 0:
            raise ValueError(f"labels that are probabilities must be at least 0, got {labels.min().item():.3g}")
        self.images, self.labels, self.alpha = images, labels, alpha
        self.classes, self.preprocess, self.meta = tuple(classes), preprocess, dict(meta or {})
        self.shape = (images.shape[1], images.shape[2], images.shape[3])

    @classmethod
    def from_indices(cls, real: ImageSet, indices: Tensor, **meta: Any) -> PixelSet:
        """The training images at `indices` (N,), with their labels; the places are kept in meta["indices"]."""
        images = real.preprocess(real.train.images[indices.to(real.train.images.device)])
        return cls(images, real.train.labels[indices.to(real.train.labels.device)], classes=real.classes,
                   preprocess=real.preprocess, meta={"dataset": real.name, "indices": indices.tolist(), **meta})

    @classmethod
    def from_real(cls, real: ImageSet, ipc: int, rng: torch.Generator, **meta: Any) -> PixelSet:
        """`ipc` training images of every class, drawn without replacement, class by class: the usual starting point."""
        check_ipc(real, ipc)
        chosen = []
        for label in range(real.num_classes):
            members = real.train.of_class(label).cpu()
            chosen.append(members[torch.randperm(len(members), generator=rng)[:ipc]])
        return cls.from_indices(real, torch.cat(chosen), seed=rng.initial_seed(), **meta)    # (C * ipc,) indices

    @classmethod
    def from_noise(cls, real: ImageSet, ipc: int, rng: torch.Generator, std: float = 0.0, soft: bool = False, **meta: Any) -> PixelSet:
        """`ipc` images of Gaussian noise for every class, class by class: each of unit length (RaT-BPTT), or of standard deviation `std`.

        soft: labels are probabilities, to be learned.
        """
        if ipc < 1:
            raise ValueError(f"ipc must be at least 1, got {ipc}; budgets below one image per class are PoDD's")
        images = torch.randn(real.num_classes * ipc, *real.shape, generator=rng)
        images = images * std if std else images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        labels = torch.arange(real.num_classes).repeat_interleave(ipc)
        labels = F.one_hot(labels, real.num_classes).float() if soft else labels
        device = real.train.images.device
        return cls(images.to(device), labels.to(device), classes=real.classes, preprocess=real.preprocess,
                   meta={"dataset": real.name, "seed": rng.initial_seed(), **meta})

    @property
    def budget(self) -> int:
        """Pixels, plus labels where they are probabilities (a hard label is told by the image's place)."""
        return self.images.numel() + (self.labels.numel() if self.labels.ndim == 2 else 0)

    @property
    def ipc(self) -> float:
        """Images per class; soft labels are budget, but no images."""
        return len(self.images) / self.num_classes

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return (self.images, self.labels) if self.labels.ndim == 2 else (self.images,)

    def make(self, indices: Tensor, *sources: Tensor) -> Batch:
        images = sources[0].index_select(0, indices)
        return images, poster.normalize(sources[1].index_select(0, indices)) if sources[1:] else self.labels.index_select(0, indices)

    def tensors(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels} | ({} if self.alpha is None else {"alpha": self.alpha})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], **facts: Any) -> PixelSet:
        return cls(tensors["images"], tensors["labels"], alpha=tensors.get("alpha"), **facts)


class PosterSet(StoredSet):
    """One picture (c, h, w) in the space networks see, whose overlapping patches, laid out by `layout`, are the images (PoDD).

    order: (g_y, g_x), the class of each cell of a grid over the poster. cells: learned labels (C, l_y, l_x), at least 0; without
    them labels follow from `order`. rule: how labels are read (`ddlib.poster`). Poster, cells and alpha are leaves.
    """

    kind = "poster"

    def __init__(self, picture: Tensor, order: Tensor, layout: poster.Layout, *, classes: tuple[str, ...], preprocess: Preprocess,
                 cells: Tensor | None = None, rule: poster.Rule = "paper", alpha: Tensor | None = None, meta: dict[str, Any] | None = None):
        if picture.shape[1:] != (layout.height, layout.width) or not picture.is_floating_point():
            raise ValueError(f"the poster must be (c, {layout.height}, {layout.width}) floats as its layout says, got "
                             f"{picture.dtype} of shape {tuple(picture.shape)}")
        if order.ndim != 2 or sorted(order.flatten().tolist()) != list(range(len(classes))):
            raise ValueError(f"order must be a grid with each of the {len(classes)} classes once, got {order.tolist()}")
        if cells is not None and (cells.ndim != 3 or len(cells) != len(classes)):
            raise ValueError(f"cells must be ({len(classes)}, l_y, l_x), got {tuple(cells.shape)}")
        poster.check_rule(rule)
        if rule == "code" and layout.cyclic:
            raise ValueError("the official code has no cyclic posters: use the rule 'paper'")
        self.picture, self.order, self.layout, self.cells, self.rule, self.alpha = picture, order.cpu(), layout, cells, rule, alpha
        self.classes, self.preprocess, self.meta = tuple(classes), preprocess, dict(meta or {})
        self.shape = (len(picture), layout.patch_height, layout.patch_width)
        self.places = layout.index(len(picture)).to(picture.device)                     # (N, c p_h p_w)
        self.seen = self.labels_seen().to(picture)                                      # (N, C), or (N, l_y l_x) with cells

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.seen = self.labels_seen().to(self.picture)          # fixed labels follow from the order, which is state

    def labels_seen(self, corners: Tensor | None = None) -> Tensor:
        """Fixed labels (N, C), or what learned ones are read with (N, l_y l_x), of the patches, or of patches at `corners` (N, 2)."""
        if self.cells is None:
            return poster.fixed_labels(self.layout, self.order, self.rule, corners)
        return poster.label_windows(self.layout, self.cells.shape[2], self.cells.shape[1], self.rule, corners)

    @classmethod
    def start(cls, real: ImageSet, order: Tensor, layout: poster.Layout, rng: torch.Generator, *, init: str = "noise", std: float = 0.0,
              learn_labels: bool = False, rule: poster.Rule = "paper", **meta: Any) -> PosterSet:
        """A poster of Gaussian noise, each patch about of unit length or each pixel of standard deviation `std`; or, with init
        "real", of one training image per class, laid out like patches in the order of the classes and averaged where they overlap."""
        channels, height, width = real.shape
        if (layout.patch_height, layout.patch_width) != (height, width):
            raise ValueError(f"patches are the training images, {width}x{height} in {real.name}, "
                             f"got {layout.patch_width}x{layout.patch_height}")
        if init == "real":
            tiles = poster.Layout(layout.width, layout.height, width, height, patches_x=order.shape[1], patches_y=order.shape[0])
            chosen = torch.cat([real.draw(int(label), 1, rng) for label in order.T.flatten()])          # x-major, as patches are
            picture, count = tiles.merge(real.preprocess(chosen))
            if not count.all():
                raise ValueError(f"one image for each class does not cover a poster of {layout.width}x{layout.height}: start from noise")
        elif init == "noise":
            picture = torch.randn(channels, layout.height, layout.width, generator=rng) * (std or math.prod(real.shape) ** -0.5)
        else:
            raise ValueError(f"unknown init {init!r}; choose from noise, real")
        device = real.train.images.device
        cells = poster.label_cells(layout, order, rule).to(device) if learn_labels else None
        return cls(picture.to(device), order, layout, cells=cells, rule=rule, classes=real.classes, preprocess=real.preprocess,
                   meta={"dataset": real.name, "seed": rng.initial_seed(), **meta})

    @classmethod
    def from_text(cls, real: ImageSet, text: str, rng: torch.Generator, **meta: Any) -> PosterSet:
        """A poster as settings describe it: "98x39/8x4" is one of 98x39 pixels under 8x4 patches. It begins as training images."""
        from ddlib import poco  # which selects images, which are sets
        found = re.fullmatch(r"(\d{1,9})x(\d{1,9})/(\d{1,9})x(\d{1,9})", text)
        if found is None:
            raise ValueError(f"write a poster as WIDTHxHEIGHT/PATCHESxPATCHES, such as 98x39/8x4, not {text!r}")
        width, height, across, down = (int(number) for number in found.groups())
        if max(width * height, across * down * math.prod(real.shape[1:])) * real.shape[0] > MOST_IN_PATCHES:
            raise ValueError(f"a poster {text!r} or its patches would hold more than {MOST_IN_PATCHES:,} numbers: choose fewer")
        grid_x, grid_y = poster.usual_grid(real.num_classes)
        layout = poster.Layout(width, height, real.shape[2], real.shape[1], across, down)
        return cls.start(real, poco.order(poco.distances(real), grid_x, grid_y), layout, rng, init="real", **meta)

    @property
    def budget(self) -> int:
        """Scalars of the poster and of learned labels (an order of C classes is C small whole numbers, and not counted)."""
        return self.picture.numel() + self.label_scalars

    @property
    def label_scalars(self) -> int:
        """The part of the budget that is learned labels."""
        return self.cells.numel() if self.cells is not None else 0

    @property
    def ipc(self) -> float:
        """Pixels of the poster in images per class, h_P w_P / (C p_h p_w); learned labels are budget, but no images."""
        return self.layout.height * self.layout.width / (self.num_classes * math.prod(self.shape[1:]))

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return (self.picture,) if self.cells is None else (self.picture, self.cells)

    def make(self, indices: Tensor, *sources: Tensor) -> Batch:
        return self.cut(self.places.index_select(0, indices), self.seen.index_select(0, indices), *sources)

    def cut(self, places: Tensor, seen: Tensor, picture: Tensor, cells: Tensor | None = None) -> Batch:
        """Patches of pixels at `places` (B, c p_h p_w) with labels read by `seen` (`labels_seen`)."""
        return self.layout.extract(picture, places), seen if cells is None else poster.learned_labels(cells, seen)

    def poster_pixels(self) -> Tensor:
        """The poster (c, h, w) in [0, 1]: patches are brought back to pixels one by one and averaged; what no patch covers is grey."""
        images, _ = self.all()
        picture, count = self.layout.merge(self.preprocess.inverse(images.detach()))
        return torch.where(count > 0, picture, 0.5).clamp(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        size = self.layout
        facts = torch.tensor([size.patch_width, size.patch_height, size.patches_x, size.patches_y, size.cyclic, self.rule == "code"])
        stored = {"poster": self.picture, "order": self.order, "facts": facts}
        return stored | {name: part for name, part in (("cells", self.cells), ("alpha", self.alpha)) if part is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], **facts: Any) -> PosterSet:
        width, height, across, down, cyclic, code = tensors["facts"].tolist()
        if width * height * across * down * len(tensors["poster"]) > MOST_IN_PATCHES:
            raise ValueError(f"{across}x{down} patches of {width}x{height} hold more than {MOST_IN_PATCHES:,} numbers")
        layout = poster.Layout(tensors["poster"].shape[2], tensors["poster"].shape[1], width, height, across, down, bool(cyclic))
        return cls(tensors["poster"], tensors["order"], layout, cells=tensors.get("cells"), rule="code" if code else "paper",
                   alpha=tensors.get("alpha"), **facts)


def from_real(real: ImageSet, ipc: int, text: str, rng: torch.Generator, **meta: Any) -> PixelSet | PosterSet:
    """Where methods that match real images begin: `ipc` training images of a class or, if `text` describes one, a poster of them."""
    if text:
        return PosterSet.from_text(real, text, rng, **meta)
    syn = PixelSet.from_real(real, ipc, rng, **meta)
    syn.meta["started_from"] = syn.meta.pop("indices")
    return syn


def code_channels(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Channels of a decoder from its code to images (c, h, w): 2-6-1 for one channel, 12-8-4-c for more.

    Every step doubles the side. A code is an eighth of a grey image and a sixteenth of a colour image.
    """
    return (2, 6, 1) if shape[0] == 1 else (12, 8, 4, shape[0])


def code_shape(shape: tuple[int, int, int], channels: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """Code (k, s, t) for images (c, h, w): sides divided by two for every stage, rounded up. 1x28x28 has codes of 2x7x7."""
    channels = channels or code_channels(shape)
    scale = 2 ** (len(channels) - 1)
    return channels[0], -(-shape[1] // scale), -(-shape[2] // scale)


def decoder_size(channels: tuple[int, ...]) -> int:
    """Scalars of one decoder: 4x4 kernels and biases of every stage. 12-8-4-3 has 2255, 2-6-1 has 295."""
    return sum(16 * inputs * outputs + outputs for inputs, outputs in pairwise(channels))


def fit_budget(ipc: int, shape: tuple[int, int, int], num_classes: int, num_decoders: int,
               channels: tuple[int, ...] | None = None) -> int:
    """The most codes per class that, with `num_decoders` decoders, need no more scalars than `ipc` images per class.

    ValueError, naming how many decoders would do, if not one code is left.
    """
    channels = channels or code_channels(shape)
    code, decoder = math.prod(code_shape(shape, channels)), decoder_size(channels)
    allowed = ipc * num_classes * math.prod(shape)
    num_codes = (allowed - num_decoders * decoder) // (num_classes * code)
    if num_codes < 1 or num_decoders < 1:
        most = (allowed - num_classes * code) // decoder if decoder else 1
        advice = f"choose from 1 to {most}" if most > 0 else "choose a larger ipc"
        raise ValueError(f"{num_decoders} decoders of {decoder} scalars do not go with at least one code of {code} for each of "
                         f"{num_classes} classes into {allowed:,} scalars: {advice}")
    return num_codes


class FactoredSet(DistilledSet):
    """Codes and small decoders, every code with every decoder: n_z n_d images of a class for n_z |z| + n_d |psi| / C scalars.

    codes: (C, n_z, k, s, t), n_z of each class. decoders: {"weight0": (n_d, k, k', 4, 4), "bias0": (n_d, k'), "weight1":
    ...}, one pair for every stage, shared by all classes. A stage is a transposed convolution that doubles the sides, with
    ReLU between stages and none after the last; what exceeds (h, w) is cut off evenly. No stages at all is one decoder that
    does nothing: codes are images. ipc: the budget in images per class, a whole number; ValueError if the set needs more.

    Images come class by class, code by code, decoder by decoder (KFS; sizes and layers are ours, no code is public).
    """

    kind = "factored"

    def __init__(self, codes: Tensor, decoders: dict[str, Tensor], *, ipc: int, shape: tuple[int, int, int],
                 classes: tuple[str, ...], preprocess: Preprocess, meta: dict[str, Any] | None = None):
        if codes.ndim != 5 or len(codes) != len(classes) or codes.shape[1] == 0:
            raise ValueError(f"codes must be ({len(classes)}, n_z, k, s, t) with n_z >= 1, got {tuple(codes.shape)}")
        self.codes, self.decoders, self.nominal, self.shape = codes, dict(decoders), int(ipc), shape
        self.classes, self.preprocess = tuple(classes), preprocess
        self.num_stages = len(decoders) // 2
        self.num_codes = codes.shape[1]
        self.num_decoders = len(decoders["weight0"]) if decoders else 1
        height, width = (side * 2**self.num_stages for side in codes.shape[3:])
        channels = decoders[f"bias{self.num_stages - 1}"].shape[1] if decoders else codes.shape[2]
        if channels != shape[0] or height < shape[1] or width < shape[2]:
            raise ValueError(f"these codes and decoders make {channels}x{height}x{width} images, not {shape[0]}x{shape[1]}x{shape[2]}")
        allowed = self.nominal * self.num_classes * math.prod(shape)
        if self.budget > allowed:
            spent = sum(tensor.numel() for tensor in decoders.values())
            fits = max((allowed - spent) // codes[:, 0].numel(), 0)
            raise ValueError(f"{self.num_codes} codes per class and {self.num_decoders} decoders are {self.budget:,} scalars, above the "
                             f"{allowed:,} of ipc {self.nominal}: {fits} codes per class would fit")
        self.meta = {**(meta or {}), "num_codes": self.num_codes, "num_decoders": self.num_decoders}

    @classmethod
    def from_noise(cls, real: ImageSet, ipc: int, num_decoders: int, rng: torch.Generator, num_codes: int = 0, **meta: Any) -> FactoredSet:
        """Gaussian codes, as many as fit if `num_codes` is 0, and decoders whose images have standard deviation 1."""
        num_codes = num_codes or fit_budget(ipc, real.shape, real.num_classes, num_decoders)
        codes = torch.randn(real.num_classes, num_codes, *code_shape(real.shape), generator=rng)
        decoders = {}
        for stage, (inputs, outputs) in enumerate(pairwise(code_channels(real.shape))):
            # an output pixel sees 4 of the 16 taps of every input channel, and ReLU halves the second moment
            gain = math.sqrt((1 if stage == 0 else 2) / (4 * inputs))
            decoders[f"weight{stage}"] = gain * torch.randn(num_decoders, inputs, outputs, 4, 4, generator=rng)
            decoders[f"bias{stage}"] = torch.zeros(num_decoders, outputs)
        syn = cls(codes, decoders, ipc=ipc, shape=real.shape, classes=real.classes, preprocess=real.preprocess,
                  meta={"dataset": real.name, "seed": rng.initial_seed(), **meta})
        few = syn.decode(torch.arange(num_decoders * min(num_codes, 64))).unflatten(0, (-1, num_decoders))
        decoders[f"weight{syn.num_stages - 1}"] /= few.std(dim=(0, 2, 3, 4)).view(-1, 1, 1, 1, 1)    # so few weights leave luck
        device = real.train.images.device
        syn.codes, syn.decoders = codes.to(device), {name: tensor.to(device) for name, tensor in decoders.items()}
        return syn

    @property
    def budget(self) -> int:
        """Scalars of all codes and decoders."""
        return self.codes.numel() + sum(tensor.numel() for tensor in self.decoders.values())

    @property
    def ipc(self) -> float:
        """The budget that the set was made for, in images per class; the set itself needs up to that much."""
        return self.nominal

    @property
    def per_class(self) -> int:
        """Images of each class, n_z n_d."""
        return self.num_codes * self.num_decoders

    def decode(self, indices: Tensor) -> Tensor:
        """The images (B, c, h, w) at `indices` (B,) of `all`; differentiable to any order in codes and decoders."""
        indices = indices.to(self.codes.device)
        decoder = indices % self.num_decoders
        order = decoder.argsort(stable=True)                                            # (B,), decoder by decoder
        x = self.codes.flatten(0, 1).index_select(0, (indices // self.num_decoders)[order])      # (B, k, s, t)
        parts = []
        for number, part in enumerate(x.split(decoder.bincount(minlength=self.num_decoders).tolist())):
            for stage in range(self.num_stages):
                part = part.relu() if stage else part
                weight, bias = self.decoders[f"weight{stage}"][number], self.decoders[f"bias{stage}"][number]
                part = F.conv_transpose2d(part, weight, bias, stride=2, padding=1)      # (b, k', 2 s, 2 t)
            parts.append(part)
        images = torch.cat(parts).index_select(0, order.argsort())
        top, left = ((made - wanted) // 2 for made, wanted in zip(images.shape[2:], self.shape[1:], strict=True))
        return images[:, :, top:top + self.shape[1], left:left + self.shape[2]]

    def labels_of(self, indices: Tensor) -> Tensor:
        """One-hot labels (B, C) of the images at `indices`."""
        return F.one_hot((indices // self.per_class).to(self.codes.device), self.num_classes).to(self.codes.dtype)

    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """`num` images: without replacement while they last, otherwise every image equally often up to one. Decodes only these."""
        held = self.num_classes * self.per_class
        indices = torch.cat([torch.randperm(held, generator=rng) for _ in range(-(-num // held))])[:num]
        return self.decode(indices), self.labels_of(indices)

    def all(self, rng: torch.Generator | None = None) -> Batch:
        indices = torch.arange(self.num_classes * self.per_class)
        return self.decode(indices), self.labels_of(indices)                               # (C n_z n_d, c, h, w), (C n_z n_d, C)

    def param_groups(self, code_lr: float, decoder_lr: float) -> list[dict[str, Any]]:
        """What an optimizer should update: codes, and decoders if there is anything in them."""
        groups: list[dict[str, Any]] = [{"params": [self.codes.requires_grad_()], "lr": code_lr}]
        if self.decoders:
            groups.append({"params": [tensor.requires_grad_() for tensor in self.decoders.values()], "lr": decoder_lr})
        return groups

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "facts": torch.tensor([self.nominal, *self.shape])} | self.decoders

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], **facts: Any) -> FactoredSet:
        ipc, channels, height, width = tensors["facts"].tolist()
        decoders = {name: tensor for name, tensor in tensors.items() if name not in ("codes", "facts")}
        syn = cls(tensors["codes"], decoders, ipc=ipc, shape=(channels, height, width), **facts)
        if min(syn.shape) < 1 or syn.decode(torch.arange(syn.num_decoders)).shape[1:] != syn.shape:      # do the stages fit together?
            raise ValueError(f"these codes and decoders make no {channels}x{height}x{width} images")
        return syn


class GeneratorSet(DistilledSet):
    """A conditional generator in place of images: any number of them, never the same twice.

    images_per_class: how many of each class `all` makes; `at` asks the same generator for another number. Every sample is made
    by the network in evaluation mode and carries no gradient; who trains `net` calls it directly. (DiM, SKD, GLD.)
    """

    kind = "generator"
    chunk: ClassVar[int] = 500                                   # images that are made at once

    def __init__(self, net: gan.Generator, *, images_per_class: int, classes: tuple[str, ...], preprocess: Preprocess,
                 meta: dict[str, Any] | None = None):
        if net.num_classes != len(classes):
            raise ValueError(f"the generator was made for {net.num_classes} classes and {len(classes)} names were given: give one each")
        self.net, self.shape, self.images_per_class = net, net.shape, images_per_class
        self.classes, self.preprocess, self.meta = tuple(classes), preprocess, dict(meta or {})
        if not isinstance(images_per_class, int) or images_per_class < 1:
            raise ValueError(f"images_per_class must be a whole number of at least 1, got {images_per_class!r}")

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def budget(self) -> int:
        """Weights, and the running statistics of batch norm: all that has to be stored, however many images are asked for."""
        return sum(tensor.numel() for tensor in self.net.state_dict().values() if tensor.is_floating_point())

    @property
    def ipc(self) -> float:
        """Images per class that are asked for; what is stored does not depend on it."""
        return self.images_per_class

    def at(self, ipc: int) -> GeneratorSet:
        """The same generator, asked for `ipc` images per class."""
        return GeneratorSet(self.net, images_per_class=ipc, classes=self.classes, preprocess=self.preprocess, meta=self.meta)

    def to(self, device: torch.device | str) -> GeneratorSet:
        """The same set with its tensors on a device; weights that are there already are shared, not copied."""
        net = self.net if torch.device(device) == self.device else copy.deepcopy(self.net).to(device)
        return GeneratorSet(net, images_per_class=self.images_per_class, classes=self.classes, preprocess=self.preprocess.to(device),
                            meta=self.meta)

    @torch.no_grad()
    def sample(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """New images (B, c, h, w) in [-1, 1] of the classes `labels` (B,)."""
        z = gan.condition(labels.to(self.device), self.num_classes, self.net.noise_size, rng)        # (B, noise)
        training = self.net.training
        self.net.eval()
        try:
            return torch.cat([self.net(part) for part in z.split(self.chunk)])
        finally:
            self.net.train(training)

    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """`num` new images, no class more than once oftener than another, in random order."""
        rounds = -(-num // self.num_classes)
        return self.made(torch.cat([torch.randperm(self.num_classes, generator=rng) for _ in range(rounds)])[:num], rng)

    def all(self, rng: torch.Generator | None = None) -> Batch:
        labels = torch.arange(self.num_classes).repeat_interleave(self.images_per_class)
        return self.made(labels, rng or torch.Generator().manual_seed(0))

    def made(self, labels: Tensor, rng: torch.Generator) -> Batch:
        """New images of the classes `labels` (B,) in the space networks see, and one-hot labels (B, C)."""
        images = self.preprocess((self.sample(labels, rng) + 1) / 2)
        return images, F.one_hot(labels.to(images.device), self.num_classes).to(images.dtype)

    def tensors(self) -> dict[str, Tensor]:
        facts = torch.tensor([self.images_per_class, *self.shape, self.net.width, self.net.noise_size])
        return {"facts": facts} | {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], **facts: Any) -> GeneratorSet:
        ipc, channels, height, across, width, noise = tensors["facts"].tolist()
        with torch.device("meta"):                               # no memory before sizes are known to be those of the tensors
            net = gan.Generator((channels, height, across), len(facts["classes"]), width, noise)
        weights = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name != "facts"}
        net.load_state_dict(weights, assign=True)
        if any(tensor.dtype != (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
               for name, tensor in weights.items()):
            raise ValueError("the weights of the generator are no float32")
        return cls(net, images_per_class=ipc, **facts)
