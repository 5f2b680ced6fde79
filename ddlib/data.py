"""Real images: uint8 image sets with a held-out validation split, and the preprocessing that networks see them through.

`load("fashion_mini")` needs nothing but this package; `load("cifar10")` and its like use torchvision's classes and download once.
An ImageSet keeps its images as uint8 on the device; a Preprocess turns a batch of them into floats, and floats back into pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as tv

KINDS = ("none", "standardize", "zca_a", "zca_b")
SPLIT_SEED = 0                # the validation split is part of a data set's definition: one seed for everybody
VALIDATION_SHARE = 0.1
ASSETS = Path(__file__).parent / "assets"
FASHION_MINI_SHA256 = "199c2181d96871146116580e89bc01edfe83944cc178c702eaaa20568e836455"

# Mean and standard deviation per channel of pixels in [0, 1], as the published code has them (CIFAR's: Zhao et al.'s DC and
# Cazenavette et al.'s MTT, which reuse CIFAR-10's constants for CIFAR-100). A set that is not here is fitted instead.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "fashion_mini": ((0.2861,), (0.3530,)), "fashion_mnist": ((0.2861,), (0.3530,)), "mnist": ((0.1307,), (0.3081,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": CIFAR, "cifar100": CIFAR, "tiny_imagenet": IMAGENET, "cub200": IMAGENET,
}


# ---------------------------------------------------------------------------------------------------------- preprocessing

@dataclass(frozen=True, eq=False)
class Preprocess:
    """How pixels in [0, 1] become what networks see, and back. Fit it on training images only.

    kind         what it does to an image x of d = c h w pixels
    none         x
    standardize  (x - mean) / std per channel; mean, std: (c,)
    zca_a        W (x - mean), W = U (L + zca_eps I)^-1/2 U^T of the covariance U L U^T; mean: (d,)   (MTT, TESLA)
    zca_b        W u with u = (x - m) / |x - m|, m the image's own mean, W = V (L + zca_eps tr(L)/d I)^-1/2 V^T of the
                 second moment V L V^T of u; mean, std: the training images' average m and |x - m|    (KIP, FRePo, RaT-BPTT)

    The two whitenings are not interchangeable: distilled images, networks and test images must share one. matrix: W, (d, d).
    """

    kind: str
    mean: Tensor
    std: Tensor
    matrix: Tensor | None = None
    zca_eps: float = 0.1

    @classmethod
    def none(cls) -> Preprocess:
        """Only the scaling of uint8 to [0, 1]."""
        return cls("none", torch.zeros(()), torch.ones(()))

    @classmethod
    def standardize(cls, mean: Iterable[float], std: Iterable[float]) -> Preprocess:
        """Known constants: mean and std per channel, c numbers each, of pixels in [0, 1]."""
        return cls("standardize", torch.tensor([*mean]), torch.tensor([*std]))

    @classmethod
    def fit(cls, images: Tensor, kind: str = "standardize", zca_eps: float = 0.1, dtype: torch.dtype = torch.float32) -> Preprocess:
        """Fit to training images (N, c, h, w), uint8 or float in [0, 1], in float64; `dtype` is what is kept and returned.

        Works in chunks: 45,000 CIFAR images need less than 1 GB beside themselves, and half a minute on one core for a whitening.
        Raises ValueError for an unknown kind, no images, or a zca_eps that is not positive.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown preprocessing {kind!r}; choose from {', '.join(KINDS)}")
        if kind == "none":
            return cls.none().to(images.device, dtype)
        count = len(images)
        if count == 0 or zca_eps <= 0:
            raise ValueError(f"{count} images and zca_eps {zca_eps} given: give at least one image and a positive zca_eps")

        def average(function: Callable[[Tensor], Tensor]) -> Tensor:    # mean over the images of a sum over each chunk
            return torch.stack([function(chunk) for chunk in map(_unit64, images.split(1000))]).sum(dim=0) / count

        if kind == "standardize":
            mean = average(lambda x: x.mean(dim=(2, 3)).sum(dim=0))                                        # (c,)
            variance = average(lambda x: (x - mean[:, None, None]).square().mean(dim=(2, 3)).sum(dim=0))   # (c,)
            std = torch.where(variance > 0, variance.sqrt(), 1.0)    # a constant channel stays constant instead of infinite
            return cls(kind, mean, std).to(dtype)
        if kind == "zca_a":
            mean, std = average(lambda x: x.flatten(1).sum(dim=0)), images.new_ones((), dtype=torch.float64)  # (d,), ()
            covariance = _second_moment(images, lambda x: x - mean) / max(count - 1, 1)                       # (d, d)
        else:
            mean, std = average(lambda x: torch.stack(own_mean_and_norm(x)).sum(dim=1)).unbind()                   # (), ()
            covariance = _second_moment(images, _normalize) / count                                           # (d, d)
        values, vectors = torch.linalg.eigh(covariance)                                                       # (d,), (d, d)
        values = values.clamp_min(0)    # round-off makes zero eigenvalues slightly negative
        scale = (values + zca_eps * (1.0 if kind == "zca_a" else values.mean().item() or 1.0)).rsqrt()        # (d,)
        return cls(kind, mean, std, (vectors * scale) @ vectors.T, zca_eps).to(dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, c, h, w) uint8, or float with pixels in [0, 1] -> (N, c, h, w) float32 in the space the networks see."""
        x = images.to(self.mean.dtype) / (255 if images.dtype == torch.uint8 else 1)
        fitted = self._for(x)
        if fitted.matrix is None:
            return x if self.kind == "none" else (x - fitted.mean[:, None, None]) / fitted.std[:, None, None]
        flat = x.flatten(1) - fitted.mean if self.kind == "zca_a" else _normalize(x.flatten(1))               # (N, d)
        return (flat @ fitted.matrix).reshape(images.shape)    # W is symmetric

    def inverse(self, x: Tensor, mean: Tensor | None = None, norm: Tensor | None = None) -> Tensor:
        """(N, c, h, w) in network space -> (N, c, h, w) in pixel space, not clamped to [0, 1].

        zca_b forgets each image's own mean and norm: give them ((N,) each, from `own_mean_and_norm`) for the exact inverse, or
        get the training averages. The other kinds ignore both.
        """
        x = x.to(self.mean.dtype)
        fitted = self._for(x)
        if fitted.matrix is None:
            return x if self.kind == "none" else x * fitted.std[:, None, None] + fitted.mean[:, None, None]
        flat = x.flatten(1) @ fitted.unwhitening                                                              # (N, d)
        if self.kind == "zca_a":
            return (flat + fitted.mean).reshape(x.shape)
        mean, norm = fitted.mean if mean is None else mean, fitted.std if norm is None else norm
        return (flat * norm.reshape(-1, 1) + mean.reshape(-1, 1)).reshape(x.shape)

    @cached_property
    def unwhitening(self) -> Tensor:
        """W^-1, (d, d), for display. W is well conditioned: zca_eps bounds its smallest and largest eigenvalues."""
        assert self.matrix is not None
        return torch.linalg.inv(self.matrix.double()).to(self.matrix.dtype)

    def to(self, *args: Any) -> Preprocess:
        """A copy on another device or with another float type, as Tensor.to."""
        matrix = None if self.matrix is None else self.matrix.to(*args)
        return replace(self, mean=self.mean.to(*args), std=self.std.to(*args), matrix=matrix)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, facts that JSON can hold): what `from_state` needs."""
        tensors = {"mean": self.mean, "std": self.std} | ({} if self.matrix is None else {"matrix": self.matrix})
        return tensors, {"kind": self.kind, "zca_eps": self.zca_eps}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Preprocess:
        """Undo `state`. Raises ValueError when something is missing, does not fit together, or is of an unknown kind."""
        kind = facts.get("kind")
        wanted = {"mean", "std"} | ({"matrix"} if kind in ("zca_a", "zca_b") else set())
        if kind not in KINDS or not wanted <= tensors.keys():
            raise ValueError(f"no stored preprocessing: kind {kind!r} with tensors {sorted(tensors)}, where {sorted(wanted)} are "
                             f"needed and the kind is one of {', '.join(KINDS)}")
        size = len(tensors["matrix"]) if "matrix" in wanted and tensors["matrix"].ndim else tensors["mean"].numel()      # d or c
        shapes: dict[str, list[tuple[int, ...]]] = {
            "none": [(), ()], "standardize": [(size,), (size,)], "zca_a": [(size,), (), (size, size)],
            "zca_b": [(), (), (size, size)]}
        for name, shape in zip(("mean", "std", "matrix"), shapes[kind], strict=False):
            if tensors[name].shape != shape or tensors[name].dtype not in (torch.float32, torch.float64) or (
                    tensors[name].dtype != tensors["mean"].dtype):
                raise ValueError(f"no stored preprocessing: {name} of {kind} is {tensors[name].dtype} of shape "
                                 f"{tuple(tensors[name].shape)} where float32 or float64 of shape {shape} is needed")
        return cls(kind, tensors["mean"], tensors["std"], tensors.get("matrix"), float(facts.get("zca_eps", 0.1)))

    def _for(self, x: Tensor) -> Preprocess:
        """Itself on the device of x, after a check that x has the fitted shape."""
        self.check(tuple(x.shape[1:]))
        return self if self.mean.device == x.device else self.to(x.device)

    def check(self, shape: tuple[int, ...]) -> None:
        """ValueError unless this was fitted to images of `shape` (c, h, w)."""
        size = shape[0] if self.matrix is None else math.prod(shape)
        fitted = size if self.kind == "none" else len(self.mean if self.matrix is None else self.matrix)
        if size != fitted:
            what = "channels" if self.matrix is None else "pixels and channels"
            raise ValueError(f"images of shape {shape} given to a preprocessing fitted to {fitted} {what}: use the set's own")


def own_mean_and_norm(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's own mean m and norm |x - m| over all d entries: (N, ...) uint8 or float in [0, 1] -> (N,), (N,)."""
    flat = (images / 255 if images.dtype == torch.uint8 else images).flatten(1)                               # (N, d)
    mean = flat.mean(dim=1)                                                                                   # (N,)
    return mean, (flat - mean[:, None]).norm(dim=1)


def _normalize(flat: Tensor) -> Tensor:
    """(N, d) -> (N, d): every image minus its own mean, at length 1 (a constant image becomes zero)."""
    mean, norm = own_mean_and_norm(flat)
    return (flat - mean[:, None]) / norm[:, None].clamp_min(torch.finfo(flat.dtype).tiny)


def _unit64(images: Tensor) -> Tensor:
    return images.double() / 255 if images.dtype == torch.uint8 else images.double()


def _second_moment(images: Tensor, centre: Callable[[Tensor], Tensor], chunk: int = 2000) -> Tensor:
    """Sum over the images of centre(x) centre(x)^T, (d, d) float64; in chunks, because N x d in float64 does not fit."""
    size = images[0].numel()
    total = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    for part in images.split(chunk):
        x = centre(_unit64(part).flatten(1))                                                                  # (n, d)
        total.addmm_(x.T, x)
    return total


# -------------------------------------------------------------------------------------------------------------- image sets

@dataclass(frozen=True, eq=False)
class Split:
    """images: (N, c, h, w) uint8; labels: (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def of_class(self, label: int) -> Tensor:
        """(n,) int64: where `label` stands, in order; empty when it does not occur."""
        return self._by_class[label] if 0 <= label < len(self._by_class) else self.labels.new_empty(0)

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        return self.labels.argsort(stable=True).split(self.labels.bincount().tolist())


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled image set: what every method distils and every evaluation reads. Images are uint8, on any device.

    validation: 10 % of every class's training images (rounded, at least one of two or more), picked by a fixed seed and not in
    train. Whatever is chosen is chosen there. has_orientation: a mirrored image may belong to another class (digits), so
    augmentation must not flip.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    preprocess: Preprocess
    has_orientation: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of class names, shape, and the training and validation images: which data this is.

        Test images are left out, because nothing but an evaluation reads them.
        """
        sha = hashlib.sha256(repr((self.classes, self.shape)).encode())
        for split in (self.train, self.validation):
            for tensor in (split.labels, split.images):
                sha.update(tensor.cpu().numpy().tobytes())
        return sha.hexdigest()[:16]

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set with images, labels and preprocessing on another device."""
        return replace(self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device),
                       preprocess=self.preprocess.to(device))

    def draw(self, label: int, n: int, rng: torch.Generator) -> Tensor:
        """n different random training images of one class: (n, c, h, w) uint8. rng: a generator on the CPU."""
        indices = self.train.of_class(label)                                                                  # (N_label,)
        if not 0 <= n <= len(indices):
            raise ValueError(f"{n} images asked of class {label}, which has {len(indices)} training images: ask for fewer")
        picked = torch.randperm(len(indices), generator=rng)[:n]                                              # (n,)
        return self.train.images.index_select(0, indices[picked.to(indices.device)])    # on a CPU 40 times as fast as [...]

    @classmethod
    def from_arrays(cls, x_train: Any, y_train: Any, x_test: Any, y_test: Any, classes: Iterable[str] | None = None,
                    name: str = "custom", *, layout: str | None = None, has_orientation: bool = False,
                    preprocess: str | Preprocess | None = None) -> ImageSet:
        """Anyone's own data, as numpy arrays or tensors.

        x: uint8, (N, h, w), (N, c, h, w) or (N, h, w, c) with 1 or 3 channels; layout "NCHW" or "NHWC" settles a doubtful case.
        y: integers from 0. classes: their names, "0", "1", ... if not given. preprocess: a kind, fitted to the training split
        ("standardize" if not given), or a fitted Preprocess. Raises ValueError, naming the array, for anything else.
        """
        x_train, y_train = _checked("x_train", x_train, layout), _labels("y_train", y_train)
        x_test, y_test = _checked("x_test", x_test, layout), _labels("y_test", y_test)
        for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
            if len(x) != len(y) or len(x) == 0:
                raise ValueError(f"x_{part} holds {len(x)} images and y_{part} {len(y)} labels: give as many, and at least one")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"training images are {tuple(x_train.shape[1:])} and test images {tuple(x_test.shape[1:])}: "
                             "make them one shape (c, h, w)")
        if x_train[0].numel() == 0:
            raise ValueError(f"images of shape {tuple(x_train.shape[1:])} have no pixel: make them at least 1x1")
        most = min(int(max(y_train.max(), y_test.max())), len(y_train))    # with more classes than images one is empty
        names = tuple(classes) if classes is not None else tuple(map(str, range(most + 1)))
        if not all(isinstance(each, str) for each in names):
            raise ValueError(f"classes must be names, got {names}: write them as strings")
        if max(y_train.max(), y_test.max()) >= len(names) or min(y_train.min(), y_test.min()) < 0:
            raise ValueError(f"labels must run from 0 to {len(names) - 1} for {len(names)} classes; found "
                             f"{int(min(y_train.min(), y_test.min()))} to {int(max(y_train.max(), y_test.max()))}")
        counts = y_train.bincount(minlength=len(names))                                                       # (C,)
        if counts.min() == 0:
            raise ValueError(f"class {names[int(counts.argmin())]!r} has no training image: leave the class out or add one")
        held_out = _validation_mask(y_train)                                                                  # (N,) bool
        train, validation = (Split(x_train[mask], y_train[mask]) for mask in (~held_out, held_out))
        if not isinstance(preprocess, Preprocess):
            preprocess = Preprocess.fit(train.images, preprocess or "standardize")
        preprocess.check(tuple(x_train.shape[1:]))
        return cls(name, names, train, validation, Split(x_test, y_test), preprocess, has_orientation)

    @classmethod
    def from_folder(cls, path: str | Path, *, size: tuple[int, int] | None = None, mode: str | None = None,
                    name: str | None = None, has_orientation: bool = False,
                    preprocess: str | Preprocess | None = None) -> ImageSet:
        """Images in path/train/CLASS and path/test/CLASS (or below), *.png, *.jpg or *.jpeg; classes in alphabetical order.

        All images must have the size and mode of the first, unless `size` (height, width) or `mode` ("L" grey, "RGB") says what
        to make of them. Raises FileNotFoundError for a missing folder and ValueError, naming the file, for a misfit.
        """
        path = Path(path).expanduser()
        classes = _class_folders(path / "train")
        if _class_folders(path / "test") != classes:
            raise ValueError(f"{path / 'train'} and {path / 'test'} have different class folders: give both the same")
        (x_train, y_train), (x_test, y_test) = (_read_split(path / part, classes, size, mode) for part in ("train", "test"))
        return cls.from_arrays(x_train, y_train, x_test, y_test, classes, name or path.resolve().name, layout="NHWC",
                               has_orientation=has_orientation, preprocess=preprocess)


def check_ipc(real: ImageSet, ipc: Any) -> int:
    """`ipc` as an int, if it is a whole number from 1 to the size of the smallest class (training split); else ValueError."""
    if isinstance(ipc, bool) or not isinstance(ipc, int | np.integer) or ipc < 1:
        raise ValueError(f"ipc must be a whole number of at least 1, got {ipc!r}")
    counts = [len(real.train.of_class(label)) for label in range(real.num_classes)]
    if ipc > min(counts):
        smallest = real.classes[counts.index(min(counts))]
        raise ValueError(f"ipc {ipc} is more than the {min(counts)} training images of class {smallest!r} of {real.name}: "
                         f"choose at most {min(counts)}")
    return int(ipc)


def _checked(name: str, images: Any, layout: str | None) -> Tensor:
    """(N, h, w), (N, h, w, c) or (N, c, h, w) uint8 -> (N, c, h, w) uint8, contiguous."""
    images = _tensor(name, images)
    if images.dtype != torch.uint8:
        raise ValueError(f"{name} is {images.dtype} and must be uint8 with pixels from 0 to 255: convert it first")
    if layout not in (None, "NCHW", "NHWC"):
        raise ValueError(f"unknown layout {layout!r}; choose NCHW or NHWC")
    if images.ndim == 3:
        return images[:, None].contiguous()
    first, last = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (1, 3))
    if layout is None and first and last:
        raise ValueError(f"{name} of shape {tuple(images.shape)} can be read two ways: say layout='NCHW' or layout='NHWC'")
    if not (first if layout == "NCHW" else last if layout == "NHWC" else first or last):
        raise ValueError(f"{name} has shape {tuple(images.shape)}; images must be (N, h, w), (N, c, h, w) or (N, h, w, c) "
                         "with 1 or 3 channels")
    return (images if layout == "NCHW" or (layout is None and first) else images.permute(0, 3, 1, 2)).contiguous()


def _tensor(name: str, values: Any) -> Tensor:
    """A copy of an array or tensor; ValueError for what is neither."""
    try:
        return values.clone() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:       # rows of different lengths, objects, text
        raise ValueError(f"{name} is no array of numbers ({error}): give a numpy array or a tensor") from None


def _labels(name: str, labels: Any) -> Tensor:
    labels = _tensor(name, labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be one integer per image, got {labels.dtype} of shape {tuple(labels.shape)}")
    return labels.long()


def _validation_mask(labels: Tensor) -> Tensor:
    """(N,) bool: the images to hold out, 10 % of every class, from SPLIT_SEED and the labels alone."""
    stream = np.random.RandomState(SPLIT_SEED)    # numpy has frozen this one's numbers, so the split never changes
    everything, mask = Split(labels, labels), torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        indices = everything.of_class(label).cpu()
        count = max(round(VALIDATION_SHARE * len(indices)), int(len(indices) > 1))
        mask[indices[torch.from_numpy(stream.permutation(len(indices))[:count])]] = True
    return mask.to(labels.device)


def _class_folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise FileNotFoundError(f"folder {path} is missing: place images as {path.parent}/train/CLASS/*.png and "
                                f"{path.parent}/test/CLASS/*.png (or .jpg)")
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"folder {path} has no class folders: place images as {path}/CLASS/*.png (or .jpg)")
    return classes


def _read_split(path: Path, classes: list[str], size: tuple[int, int] | None, mode: str | None) -> tuple[np.ndarray, list[int]]:
    """All images under path/CLASS: (N, h, w) grey or (N, h, w, 3) uint8, and N labels, in the order of class and file name."""
    from PIL import Image  # comes with torchvision, whose own decoders are deprecated

    if mode not in (None, "L", "RGB"):
        raise ValueError(f"unknown mode {mode!r}; choose L (grey), RGB, or None to leave images as they are")
    images: list[np.ndarray] = []
    labels: list[int] = []
    first = ""
    for label, name in enumerate(classes):
        files = sorted(file for file in (path / name).rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not files:
            raise ValueError(f"folder {path / name} holds no .png or .jpg image: add some or remove the folder")
        for file in files:
            try:
                if not file.is_file():    # opening a pipe would wait for ever
                    raise OSError("it is no file")
                with warnings.catch_warnings():
                    warnings.simplefilter("error", Image.DecompressionBombWarning)    # a header may claim any size
                    with Image.open(file, formats=("PNG", "JPEG")) as stored:    # other decoders start programs
                        image = stored.convert(mode or stored.mode)
            except Exception as error:    # Pillow raises anything for a damaged file
                raise ValueError(f"{file} is no readable PNG or JPEG ({error}): restore or remove it") from None
            image = image.resize(size[::-1], Image.Resampling.BILINEAR) if size else image
            found = f"{image.height}x{image.width} {image.mode}"
            first = first or found
            if found != first or image.mode not in ("L", "RGB"):
                wanted = first if found != first else "mode L or RGB"
                raise ValueError(f"{file} is {found} where {wanted} is wanted: convert it, or give size=(height, width) and "
                                 "mode='L' or 'RGB'")
            images.append(np.array(image))
            labels.append(label)
    return np.stack(images), labels


# ----------------------------------------------------------------------------------------------------------------- readers

def load(name: str, root: str | Path | None = None, *, preprocess: str | Preprocess | None = None) -> ImageSet:
    """The image set `name` (a key of DATASETS), with its preprocessing.

    root: where its files are or go, else the environment variable DDLIB_DATA, else ~/.cache/ddlib (or under XDG_CACHE_HOME);
    fashion_mini and toy need none. preprocess: "standardize" (the published constants where there are some, else fitted), "none",
    "zca_a" or "zca_b", fitted to the training split, or a fitted Preprocess. Raises ValueError for an unknown name or a damaged
    file and FileNotFoundError for files that are missing and cannot be downloaded; svhn also needs scipy (ImportError).
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; choose from {', '.join(sorted(DATASETS))}, or use ImageSet.from_folder")
    if preprocess in (None, "standardize") and name in CONSTANTS:
        preprocess = Preprocess.standardize(*CONSTANTS[name])
    return DATASETS[name](data_folder(root), preprocess)


def data_folder(root: str | Path | None = None) -> Path:
    """Where datasets live: root, else DDLIB_DATA, else ddlib in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddlib"
    return Path(root or os.environ.get("DDLIB_DATA") or cache).expanduser()


def _toy(root: Path, preprocess: str | Preprocess | None) -> ImageSet:
    """Four classes of 16x16 grey images with random place, contrast and noise: separable, but not from one image each."""
    stream = np.random.RandomState(0)    # numpy has frozen this one's numbers, so everybody has the same toys
    axis = np.linspace(-1, 1, 16)

    def image(label: int) -> np.ndarray:
        x, y = np.meshgrid(axis - stream.uniform(-0.25, 0.25), axis - stream.uniform(-0.25, 0.25))            # (16, 16)
        waves = (np.cos(5 * y), np.cos(5 * x), np.cos(5 * x) * np.cos(5 * y), np.cos(5 * np.hypot(x, y)))
        clean = 0.5 + stream.uniform(0.1, 0.4) * waves[label]
        return np.clip(clean + 0.25 * stream.standard_normal((16, 16)), 0, 1)

    labels = np.arange(4 * 80) % 4                                                                            # (320,)
    images = (255 * np.stack([image(int(label)) for label in labels])).round().astype(np.uint8)                    # (320, 16, 16)
    return ImageSet.from_arrays(images[:240], labels[:240], images[240:], labels[240:], ("rows", "columns", "grid", "rings"), "toy",
                                preprocess=preprocess)


def _fashion_mini(root: Path, preprocess: str | Preprocess | None) -> ImageSet:
    """The first 500 training and 100 test images of every class of Fashion-MNIST (Xiao et al., 2017), from this package."""
    file = ASSETS / "fashion_mini.npz"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != FASHION_MINI_SHA256:
        raise ValueError(f"{file} is missing or damaged (its SHA-256 differs): install ddlib again")
    with np.load(file, allow_pickle=False) as stored:    # (10, n, 28, 28) each; the classes take turns: any stretch has all of them
        parts = [stored[part].swapaxes(0, 1).reshape(-1, 28, 28) for part in ("train", "test")]
    x_train, x_test = parts
    return ImageSet.from_arrays(x_train, np.arange(len(x_train)) % 10, x_test, np.arange(len(x_test)) % 10,
                                tv.FashionMNIST.classes, "fashion_mini", preprocess=preprocess)


# MD5 of the unpacked files, for which torchvision has no table (it checks the packed ones while downloading).
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_MD5 = {
    "mnist": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
              "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    "fashion_mnist": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
                      "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}
TORCHVISION: dict[str, Any] = {"mnist": tv.MNIST, "fashion_mnist": tv.FashionMNIST, "svhn": tv.SVHN,
                               "cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}


def torchvision_files(name: str) -> dict[str, str]:
    """Path below the root -> MD5, for every file that torchvision's class reads."""
    reader = TORCHVISION[name]
    if name in IDX_MD5:
        return {f"{reader.__name__}/raw/{file}": md5 for file, md5 in zip(IDX_FILES, IDX_MD5[name], strict=True)}
    if name == "svhn":
        return {reader.split_list[part][1]: reader.split_list[part][2] for part in ("train", "test")}
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    return {f"{reader.base_folder}/{file}": md5 for file, md5 in listed}


def _torchvision(name: str, root: Path, preprocess: str | Preprocess | None) -> ImageSet:
    """A data set through torchvision's class, from files that were verified once; downloaded first where files are missing.

    The files of both CIFAR sets are pickles, and torchvision unpickles them. That happens only after every one of them was seen
    to have the MD5 of the official file, here and (by torchvision) in a download: no other bytes are ever unpickled. Those of
    MNIST, Fashion-MNIST and SVHN hold plain arrays.
    """
    if name == "svhn":
        try:    # torchvision needs it for MATLAB files: say so before the download, not after
            import scipy.io  # noqa: F401
        except ImportError:
            raise ImportError("svhn is stored in MATLAB files, which torchvision reads with scipy: pip install scipy") from None
    reader, files = TORCHVISION[name], torchvision_files(name)
    if not all((root / file).is_file() for file in files):
        _download(name, root)
    for file, md5 in files.items():
        if _md5(root / file) != md5:
            raise ValueError(f"{root / file} is damaged or truncated (its MD5 is not {md5}): delete it and load {name} again")
    # torchvision would check all files again for either part, or read an old copy of MNIST unchecked
    verified = {"_check_integrity": lambda self: True, "_check_legacy_exist": lambda self: False}
    train, test = (_open(type(reader.__name__, (reader,), verified), root, part) for part in ("train", "test"))
    digits = name in ("mnist", "svhn")
    y_train, y_test = (part.labels if name == "svhn" else part.targets for part in (train, test))
    return ImageSet.from_arrays(train.data, y_train, test.data, y_test, map(str, range(10)) if digits else train.classes, name,
                                has_orientation=digits, preprocess=preprocess)


def _open(reader: Any, root: Path, part: str, download: bool = False) -> Any:
    which: dict[str, Any] = {"split": part} if issubclass(reader, tv.SVHN) else {"train": part == "train"}
    return reader(root, **which, download=download)


def _md5(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(name: str, root: Path) -> None:
    """Download into a folder beside the final place and move each file there once all are verified: no file is ever half there."""
    files, timeout = torchvision_files(name), socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f".{name}-*"):    # by a download that was killed; one that still runs is younger than a day
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as aside:
            socket.setdefaulttimeout(60)    # torchvision sets none, so a silent server would hold us for ever
            for part in ("train", "test"):
                _open(TORCHVISION[name], Path(aside), part, download=True)    # with a progress bar and its own checksums
            for file, md5 in files.items():
                if _md5(Path(aside, file)) != md5:
                    raise RuntimeError(f"{file} arrived with a wrong MD5")
            for file in files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(aside, file), root / file)
    except (OSError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise FileNotFoundError(f"{name} is not complete in {root} and its download failed ({reason}): place {', '.join(files)} "
                                "there, or use 'fashion_mini', which needs no download") from error
    finally:
        socket.setdefaulttimeout(timeout)


# Shape, mode and origin of the sets that have to be fetched by hand.
PLACED = {
    "tiny_imagenet": ((64, 64), "RGB", "tiny-imagenet-200.zip from the CS231n course page (its val folder, sorted into classes by "
                      "val_annotations.txt, is the test set)"),
    "cub200": ((32, 32), "RGB", "CUB_200_2011.tgz from the page 'Caltech-UCSD Birds-200-2011' of Caltech's vision lab (divided by "
               "its train_test_split.txt)"),
    "covid_cxr": ((112, 112), "L", "the archive of the 'COVID-19 Radiography Database' page on Kaggle (it has no official test set: "
                  "divide it yourself)"),
}


def _placed(name: str, root: Path, preprocess: str | Preprocess | None) -> ImageSet:
    """A folder of images that the user has placed, brought to the set's size and mode."""
    size, mode, origin = PLACED[name]
    path = root / name
    if not ((path / "train").is_dir() and (path / "test").is_dir()):
        raise FileNotFoundError(f"{path} does not hold {name}: take {origin} and place the images as {path}/train/CLASS/*.png and "
                                f"{path}/test/CLASS/*.png (or .jpg)")
    return ImageSet.from_folder(path, size=size, mode=mode, name=name, preprocess=preprocess)


DATASETS: dict[str, Callable[[Path, str | Preprocess | None], ImageSet]] = {
    "toy": _toy, "fashion_mini": _fashion_mini,
    **{name: partial(_torchvision, name) for name in TORCHVISION}, **{name: partial(_placed, name) for name in PLACED},
}
