"""Distilled sets: what a method makes, stored so that it can be used alone.

Every kind (pixels here; posters, codes and generators later) answers the same questions, so evaluation, tables and
pictures do not care which one they hold.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ddlib import files
from ddlib.data import ImageSet, Preprocess, check_ipc
from ddlib.train import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, type[DistilledSet]] = {}


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
        return KINDS[kind].from_tensors(part("set."), classes=tuple(header["classes"]), preprocess=preprocess, meta=header["meta"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is incomplete ({error!r}): make it again") from None


class PixelSet(DistilledSet):
    """Plain images: (N, c, h, w) in the space networks see, labels (N,) classes or (N, C) probabilities.

    alpha: the learned step size of a student, a scalar tensor, where a method learns one. Images and alpha are leaves
    that an optimizer may change.
    """

    kind = "pixels"

    def __init__(self, images: Tensor, labels: Tensor, *, classes: tuple[str, ...], preprocess: Preprocess,
                 alpha: Tensor | None = None, meta: dict[str, Any] | None = None):
        if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
            raise ValueError(f"images must be (N, c, h, w) with N >= 1 labels, got {tuple(images.shape)} and {tuple(labels.shape)}")
        if labels.shape[1:] != (len(classes),) if labels.ndim == 2 else not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f"labels must be classes from 0 to {len(classes) - 1} or (N, {len(classes)}) probabilities")
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

    @property
    def budget(self) -> int:
        """Pixels, plus labels where they are probabilities (a hard label is told by the image's place)."""
        return self.images.numel() + (self.labels.numel() if self.labels.ndim == 2 else 0)

    @property
    def ipc(self) -> float:
        """Images per class; soft labels are budget, but no images."""
        return len(self.images) / self.num_classes

    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """`num` images: without replacement while they last, otherwise every image equally often up to one."""
        rounds = -(-num // len(self.images))
        order = torch.cat([torch.randperm(len(self.images), generator=rng) for _ in range(rounds)])[:num]
        images, labels = self.all(rng)
        return images[order.to(images.device)], labels[order.to(labels.device)]

    def all(self, rng: torch.Generator | None = None) -> Batch:
        labels = self.labels if self.labels.ndim == 2 else F.one_hot(self.labels, self.num_classes)
        return self.images, labels.to(self.images.dtype)                                # (N, c, h, w), (N, C)

    def param_groups(self, pixel_lr: float, alpha_lr: float | None = None) -> list[dict[str, Any]]:
        """What an optimizer should update: the images and, if there is one and a rate for it, alpha."""
        groups: list[dict[str, Any]] = [{"params": [self.images.requires_grad_()], "lr": pixel_lr}]
        if self.alpha is not None and alpha_lr is not None:
            groups.append({"params": [self.alpha.requires_grad_()], "lr": alpha_lr})
        return groups

    def tensors(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels} | ({} if self.alpha is None else {"alpha": self.alpha})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], **facts: Any) -> PixelSet:
        return cls(tensors["images"], tensors["labels"], alpha=tensors.get("alpha"), **facts)
