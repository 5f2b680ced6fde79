"""Evaluation: train fresh networks on a distilled set, read the test set once, and write down one row.

A protocol is data, so two rows can be compared by comparing two protocols. The published ones are here as far as they
are stated, with one difference: nothing is ever chosen on test images. Where a paper printed its best test accuracy over
checkpoints, our version of its protocol chooses on held-out training images and says so.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib import augment, files, models, train
from ddlib.data import ImageSet
from ddlib.distilled import DistilledSet, GeneratorSet
from ddlib.runs import device_name, progress, provenance, stream


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How networks are trained on a distilled set. Exactly one of `steps` and `epochs` is set."""

    name: str
    source: str                                          # where the recipe is written down, and what we changed
    network: str = "convnet3"
    width: int | None = None                             # None: the network's own
    repeats: int = 5                                     # networks; mean and standard deviation are over them
    steps: int | None = None                             # optimizer steps, or
    epochs: int | None = None                            # passes over the set
    batch_size: int = 256
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float | Literal["alpha"] = 0.01                  # "alpha": the rate that the set has learned
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant", "drop", "thirds"] = "cosine"
    augment: str = augment.DSA                           # flips are left out for digits
    augment_mode: Literal["single", "all"] = "single"
    labels: Literal["stored", "hard"] = "stored"         # "hard": the most probable class of a soft label
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    average: float = 0.0                                 # decay of a running average of the weights, which is evaluated; 0: none
    cutmix: float = 0.0                                  # probability that a batch is mixed
    resample: bool = False                               # draw fresh images for every batch (generators)
    checkpoints: tuple[int, ...] = ()                    # steps or epochs (as above) to choose from, on `choose_on`
    choose_on: Literal["train", "validation"] = "validation"
    precision: train.Precision = "float32"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Protocol).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, got {getattr(self, name)!r}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"protocol {self.name!r} needs either steps or epochs (and None for the other), "
                             f"got {self.steps} and {self.epochs}")
        count = self.steps if self.steps is not None else self.epochs
        if min(count or 0, self.repeats, self.batch_size) < 1:
            raise ValueError(f"steps or epochs, repeats and batch_size must be at least 1, got {count}, {self.repeats}, {self.batch_size}")
        if max(self.checkpoints, default=1) > (count or 0) or min(self.checkpoints, default=1) < 1:
            raise ValueError(f"checkpoints must lie between 1 and {count}, got {self.checkpoints}")
        augment.parse(self.augment)

    @property
    def narrow(self) -> str:
        """"width 16" for a network that is not of its usual width, which its rows say; else nothing."""
        return f"width {self.width}" if self.width not in (None, models.NETWORKS[self.network].width) else ""

    def unit(self, num_images: int) -> int:
        """Optimizer steps in what the protocol counts: one step, or one pass over `num_images`."""
        return 1 if self.steps is not None else -(-num_images // self.batch_size)

    def num_steps(self, num_images: int) -> int:
        """Optimizer steps in all for a set of `num_images`."""
        count = self.steps or self.epochs or 0
        return (count + (self.schedule == "drop")) * self.unit(num_images)      # the base codes' loops include both ends

    def drop_at(self, num_images: int) -> int | None:
        """The step at which "drop" divides the rate by ten and forgets the momentum: after epoch E/2 + 1, counted from 0."""
        count = self.steps or self.epochs or 0
        return (count // 2 + 2) * self.unit(num_images) if self.schedule == "drop" else None

    def sizes(self, num_images: int) -> tuple[int, ...]:
        """Images in each of the batches that follow one another over and over when every batch is drawn anew.

        Where steps are counted, those of a frozen set of `num_images`, so that freshness is the only difference to it; where
        epochs are, full ones, as in DiM's code: for one image of each of ten classes that is one batch of 64 an epoch.
        """
        whole, rest = divmod(num_images, self.batch_size)
        return (self.batch_size,) * whole + (rest,) * (rest > 0) if self.steps is not None else (self.batch_size,)

    def rate(self, step: int, num_images: int, base: float) -> float:
        total = self.num_steps(num_images)
        if self.schedule == "cosine":
            return base * 0.5 * (1 + math.cos(math.pi * step / total))
        if self.schedule == "drop":
            drop = self.drop_at(num_images)
            return base * (0.1 if drop is not None and step >= drop else 1.0)
        if self.schedule == "thirds":
            return base * 0.2 ** ((step >= total * 2 / 3) + (step >= total * 5 / 6))
        return base


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol(name="strict", source="ours: one recipe and one number of steps for every method, last step, test read once", steps=1000),
    Protocol(name="strict-cpu", source="strict with a fifth of the steps", steps=200),
    Protocol(name="strict-cpu-alpha", source="strict-cpu at the step size that the set has learned", steps=200, lr="alpha"),
    Protocol(name="strict-resampled", source="strict, but every batch is drawn anew (generators): not comparable with stored images",
             steps=1000, resample=True),
    Protocol(name="strict-cpu-resampled", source="strict-resampled with a fifth of the steps", steps=200, resample=True),
    Protocol(name="dc", source="DC code; five sets of twenty networks there", repeats=20, epochs=300, schedule="drop", augment=""),
    Protocol(name="dc-mnist", source="DC code for MNIST and for networks with batch norm", repeats=20, epochs=1000, schedule="drop",
             augment="crop_scale_rotate"),
    Protocol(name="dsa", source="DSA and DM code; also taken for ESP, which states none", repeats=20, epochs=1000, schedule="drop"),
    Protocol(name="mtt", source="MTT code, DDPP; MTT printed its best test accuracy, this is the last epoch",
             epochs=1000, schedule="drop", lr="alpha"),
    Protocol(name="dc-bench", source="DC-Bench, with DSA augmentation", epochs=1000, schedule="drop"),
    Protocol(name="dd-ranking", source="DD-Ranking, hard labels, rate not tuned", epochs=1000, schedule="drop"),
    Protocol(name="dim", source="DiM code (SKD, GLD), fresh samples every batch; the papers print the best test accuracy of five "
             "checkpoints, this chooses among the same five on validation images",
             epochs=1000, batch_size=64, schedule="constant", augment="color_crop", augment_mode="all", resample=True,
             checkpoints=(200, 400, 600, 800, 1000)),
    Protocol(name="podd", source="PoDD code; the number of steps is chosen on training accuracy, as there", repeats=8, steps=2000,
             optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant", augment="flip_rotate",
             checkpoints=(300, 600, 1000, 2000), choose_on="train"),
    Protocol(name="rat-bptt", source="RaT-BPTT code; it chose the number of steps on test images, this on validation images",
             repeats=8, steps=3000, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant", augment="flip_rotate",
             checkpoints=(300, 600, 1000, 3000)),
    Protocol(name="frepo", source="FRePo code, its shortest schedule; the decay of its averaged weights is not stated: 0.995 is ours",
             steps=1000, batch_size=500, optimizer="adam", lr=3e-4, weight_decay=0.0, schedule="constant", loss="mse", average=0.995),
    Protocol(name="idc", source="IDC code (KFS); last epoch", repeats=3, epochs=1000, batch_size=64, schedule="thirds",
             augment="color_crop_flip_scale_rotate", augment_mode="all", cutmix=0.5),
)}
PROTOCOLS |= {f"skd-{ipc}": replace(PROTOCOLS["dim"], name=f"skd-{ipc}", source=f"SKD: dim with its batch for {ipc} images per class",
                                    batch_size=batch) for ipc, batch in ((1, 32), (10, 64), (50, 128))}
PROTOCOLS |= {f"podd-{name}": replace(PROTOCOLS["podd"], name=f"podd-{name}", batch_size=batch,
                                      source=f"podd with the code's number of patches a step for {name}, which we take from permutations",
                                      checkpoints=(*first, 300, 600, 1000, 2000), network=network)
              for name, batch, first, network in (("cifar100", 50, (), "convnet3"), ("cub200", 200, (), "convnet3"),
                                                  ("tiny-imagenet", 30, (100,), "convnet4"))}


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies (n,) in [0, 1] of n networks, and what they cost."""

    accuracies: Tensor
    protocol: Protocol
    syn: DistilledSet
    real_name: str
    seed: int
    steps: tuple[int, ...]                               # optimizer steps of each network
    device: str
    minutes: float
    peak_mb: int

    @property
    def mean(self) -> float:
        return self.accuracies.mean().item()

    @property
    def std(self) -> float:
        """Standard deviation over networks (n - 1 in the denominator); nan for one network."""
        return self.accuracies.std().item() if len(self.accuracies) > 1 else math.nan

    def row(self, *, method: str, variant: str = "", train_arch: str = "", preset: str = "", command: str = "",
            distilling: float = 0.0) -> dict[str, Any]:
        """One row of `measured.csv`; accuracies in percent. distilling: minutes that making the set took, added to ours.

        variant: what differs from the complete method; the width of a network that is not of its usual width is added.
        """
        config = self.syn.meta.get("config", {})                   # a complete method, as the papers print it, has no variant
        return {
            "dataset": self.real_name, "method": method, "ipc": f"{self.syn.meta.get('nominal_ipc', self.syn.ipc):g}",
            "train_arch": train_arch or config.get("network") or config.get("pool", "").replace("_dim", "").replace(",", "+"),
            "eval_arch": self.protocol.network,
            "variant": labelled(variant, self.protocol),
            "accuracy_mean": f"{100 * self.mean:.2f}", "accuracy_std": f"{100 * self.std:.2f}", "n": len(self.accuracies),
            "protocol": self.protocol.name, "preset": preset, "budget_scalars": self.syn.budget, "seed": self.seed,
            "commit": provenance()["commit"], "device": self.device, "minutes": f"{distilling + self.minutes:.2f}",
            "peak_mb": self.peak_mb, "command": command,
        }


def labelled(variant: str, protocol: Protocol) -> str:
    """The column "variant" of a row: the version of the method, and the width of an unusually wide or narrow network."""
    return ", ".join(filter(None, [variant, protocol.narrow]))


def evaluate(syn: DistilledSet | Sequence[DistilledSet], real: ImageSet, protocol: Protocol | str, *, seed: int = 0,
             folder: Path | str | None = None, quiet: bool = False, minutes: float = math.inf, together: int | None = None) -> Evaluation:
    """Train `protocol.repeats` fresh networks on `syn` and measure them once on `real.test`.

    syn: one set for all networks, or one for each (Random draws anew for every network, so its spread includes the draw).
    Every method sees the same initial networks for the same seed. folder: keeps each finished network there, so that an
    evaluation that is killed goes on with the next one. Raises ValueError when the set and the data do not fit together, and
    TimeoutError, after the first network that ends later than `minutes` from now, unless it was the last.
    together: networks that are trained side by side, whose weights then differ by rounding. By default all of them on a GPU,
    which one alone leaves idle, or as many as its memory holds; 1 on a CPU, where there is an `obstacle`, or with `minutes`,
    because a group is kept when all of it is ready.
    """
    if isinstance(protocol, str):
        protocol = with_options(protocol)
    sets = [syn] * protocol.repeats if isinstance(syn, DistilledSet) else list(syn)
    if len(sets) != protocol.repeats:
        raise ValueError(f"protocol {protocol.name!r} trains {protocol.repeats} networks and {len(sets)} sets were given: "
                         "give one, or one each")
    for each in sets:
        if each.classes != real.classes or each.shape != real.shape:
            raise ValueError(f"the set was made for {each.num_classes} classes of shape {each.shape}, {real.name} has "
                             f"{real.num_classes} of shape {real.shape}: evaluate it on the data it was distilled from")
    device, deadline = real.train.images.device, time.monotonic() + 60 * minutes
    work = train_all(sets, real, protocol, seed, Path(folder) if folder else None, deadline, together)
    trained = dict(work if quiet else progress(work, len(sets), every=1, title="network"))
    # The one place where test images are read: every network is final by now.
    tested = time.monotonic()
    accuracies = torch.tensor([train.accuracy(trained[repeat].net, real.test, each.preprocess.to(device))
                               for repeat, each in enumerate(sets)], dtype=torch.float64)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_rss_mb()
    seconds = sum(one.seconds for one in trained.values()) + time.monotonic() - tested
    return Evaluation(accuracies, protocol, sets[0], real.name, seed, tuple(trained[repeat].steps for repeat in range(len(sets))),
                      device_name(device), seconds / 60, round(peak))


@dataclass(frozen=True)
class Trained:
    """A trained network, the optimizer steps it took and the seconds (of a group trained side by side, its share)."""

    net: models.Classifier
    steps: int
    seconds: float


@dataclass(frozen=True)
class Start:
    """Network number `repeat` before its training on `images`, all of `syn` where the data are, at the rate `base`.

    key: what decides its weights, but for rounding. path: where it is kept; None: nowhere.
    """

    net: models.Classifier
    net_seed: int
    syn: DistilledSet
    images: Tensor
    labels: Tensor
    base: float
    key: dict[str, Any]
    path: Path | None
    seconds: float                                       # that it took to come here

    @property
    def repeat(self) -> int:
        return self.key["repeat"]

    @property
    def pace(self) -> tuple[Any, ...]:
        """What has to be equal where networks are trained side by side: the shapes of the batches, and the rate."""
        return self.images.shape, self.images.dtype, self.labels.dtype, self.base

    def kept(self) -> Trained | None:
        """The trained network, if it is there."""
        if self.path is None or not self.path.is_file():
            return None
        header, tensors = files.read_tensors(self.path, "network")
        try:
            if header["key"] != self.key:
                return None
            self.net.load_state_dict(tensors)
            return Trained(self.net, int(header["steps"]), float(header["seconds"]))
        except (KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path} is incomplete ({reason}): delete it, and the network is trained again") from None

    def batches(self, protocol: Protocol) -> Iterator[train.Batch]:
        """What the network is trained on, before augmentation; the same beside whichever others it is trained."""
        seed, device = self.key["seed"], self.images.device
        rng = stream(seed, "batches", self.repeat)
        batches: Iterator[train.Batch] = iter(train.Batches(self.images, self.labels, protocol.batch_size, rng))
        if protocol.resample:
            batches = fresh(self.syn, protocol.sizes(len(self.images)), rng, device, hard=protocol.labels == "hard")
        return mixed(batches, protocol.cutmix, stream(seed, "cutmix", self.repeat)) if protocol.cutmix else batches


def train_network(syn: DistilledSet, real: ImageSet, protocol: Protocol, seed: int, repeat: int,
                  folder: Path | None = None) -> Trained:
    """Network number `repeat`, trained on `syn` where the data are. Test images play no part."""
    start = begin(syn, real, protocol, seed, repeat, folder)
    return start.kept() or train_group([start], real, protocol)[0]


def train_all(sets: Sequence[DistilledSet], real: ImageSet, protocol: Protocol, seed: int, folder: Path | None, deadline: float,
              together: int | None) -> Iterator[tuple[int, Trained]]:
    """The numbered networks of a protocol as they become ready, several side by side if it can be; arguments as `evaluate`."""
    most = at_once(real.train.images.device, len(sets), together)
    if not together and (deadline < math.inf or protocol.checkpoints or protocol.average):
        most = 1
    starts: Iterable[Start] = (begin(each, real, protocol, seed, repeat, folder) for repeat, each in enumerate(sets))
    if most > 1:
        starts = list(starts)
        if reason := obstacle(starts, protocol):
            if together:
                raise ValueError(f"{reason}: networks cannot be trained side by side, use together=1")
            most = 1
    ready, waiting = 0, list[Start]()
    for number, start in enumerate(starts, start=1):
        if found := start.kept():
            ready += 1
            yield start.repeat, found
        else:
            waiting.append(start)
        while waiting and (len(waiting) >= most or number == len(sets)):
            if ready and time.monotonic() > deadline:
                raise TimeoutError(f"{ready} of {len(sets)} networks are trained and the time is up")
            group = waiting[:most]
            try:
                done = train_group(group, real, protocol)
            except torch.OutOfMemoryError:
                if together or len(group) == 1:
                    raise
                most, done = -(-len(group) // 2), []     # what was trained so far is forgotten: fewer at once, from their starts
            ready, waiting = ready + len(done), waiting[len(done):]
            yield from ((one.repeat, each) for one, each in zip(group, done, strict=False))


def at_once(device: torch.device, repeats: int, together: int | None) -> int:
    """Networks to train side by side if nothing stands against it: as many as asked for; by default all on a GPU, 1 on a CPU."""
    if together is not None and together < 1:
        raise ValueError(f"together must be at least 1, got {together}")
    return together or (repeats if device.type == "cuda" else 1)


def obstacle(starts: Sequence[Start], protocol: Protocol) -> str:
    """Why these networks cannot be trained side by side; nothing if they can."""
    if protocol.checkpoints or protocol.average:
        return f"protocol {protocol.name!r} looks at the weights on the way"
    if not train.can_stack(starts[0].net):
        return f"{protocol.network} has batch norm or dropout"
    if any(start.pace != starts[0].pace for start in starts):
        return "the sets differ in size or in learned rate"
    return ""


def begin(syn: DistilledSet, real: ImageSet, protocol: Protocol, seed: int, repeat: int, folder: Path | None) -> Start:
    """Network number `repeat` before its training."""
    began, device = time.monotonic(), real.train.images.device
    net_seed = int(torch.randint(2**31, (), generator=stream(seed, "network", repeat)))
    net = models.build(protocol.network, shape=real.shape, num_classes=real.num_classes, width=protocol.width, seed=net_seed).to(device)
    syn = syn.to(device) if isinstance(syn, GeneratorSet) else syn
    images, labels = (tensor.detach().to(device) for tensor in syn.all(stream(seed, "frozen", repeat)))
    if protocol.labels == "hard":
        labels = F.one_hot(labels.argmax(dim=1), real.num_classes).to(images.dtype)
    alpha = getattr(syn, "alpha", None)
    if protocol.lr == "alpha" and alpha is None:
        raise ValueError(f"protocol {protocol.name!r} trains with the learned step size and this set has none: use 'strict'")
    base = float(alpha.detach()) if protocol.lr == "alpha" and alpha is not None else float(protocol.lr)
    recipe = {**asdict(protocol), "checkpoints": list(protocol.checkpoints)}             # as JSON gives it back
    key = {"protocol": recipe, "seed": seed, "repeat": repeat, "rate": base, "augment": augment.strategy_for(real, protocol.augment),
           "device": device_name(device), "set": files.digest({}, {"images": images, "labels": labels}), "data": real.fingerprint,
           **provenance()}
    path = folder / f"network-{protocol.name}-{protocol.network}-{repeat}.safetensors" if folder else None
    return Start(net, net_seed, syn, images, labels, base, key, path, time.monotonic() - began)


def train_group(group: Sequence[Start], real: ImageSet, protocol: Protocol) -> list[Trained]:
    """Train networks, several as one stack, which leaves them as they are until all are trained, and keep each in its file."""
    began, first, num_images = time.monotonic(), group[0], len(group[0].images)
    seed, device, strategy = first.key["seed"], first.images.device, first.key["augment"]
    noises = [stream(seed, "augment", start.repeat) for start in group]
    loss = F.cross_entropy if protocol.loss == "cross_entropy" else F.mse_loss
    settings: dict[str, Any] = {
        "steps": protocol.num_steps(num_images), "lr": lambda step: protocol.rate(step, num_images, first.base),
        "momentum": protocol.momentum, "weight_decay": protocol.weight_decay, "optimizer": protocol.optimizer,
        "restart_at": protocol.drop_at(num_images), "precision": protocol.precision}
    steps = settings["steps"]
    if len(group) > 1:
        stack = train.Stack([start.net for start in group])
        streams = [augmented(start.batches(protocol), strategy, protocol.augment_mode, noise)
                   for start, noise in zip(group, noises, strict=True)]
        train.fit(stack, train.stacked(streams), loss=train.summed(loss), **settings)
        stack.hand_back([start.net for start in group])
    else:
        best = Best(first.net, protocol, real, first.syn, protocol.unit(num_images))
        average = Average(first.net, protocol.average)
        observe = best.look if protocol.checkpoints else average.look if protocol.average else None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(first.net_seed)            # dropout, in the networks that have it, draws from the global stream
            train.fit(first.net, first.batches(protocol), augment=strategy, mode=protocol.augment_mode, rng=noises[0], loss=loss,
                      observe=observe, **settings)
        steps = best.restore() if protocol.checkpoints else steps
        if protocol.average and not protocol.checkpoints:
            first.net.load_state_dict(average.weights)
    seconds = (time.monotonic() - began) / len(group)
    done = [Trained(start.net, steps, start.seconds + seconds) for start in group]
    for start, one in zip(group, done, strict=True):
        if start.path is not None:
            files.write_tensors(start.path, "network", {"key": start.key, "steps": steps, "seconds": one.seconds}, one.net.state_dict())
    return done


def augmented(batches: Iterator[train.Batch], strategy: str, mode: Literal["single", "all"], rng: torch.Generator) -> Iterator[train.Batch]:
    """The batches as `train.fit` would augment them."""
    for images, labels in batches:
        yield augment.augment(images, strategy, rng, mode=mode), labels


def fresh(syn: DistilledSet, sizes: Sequence[int], rng: torch.Generator, device: torch.device,
          hard: bool = False) -> Iterator[train.Batch]:
    """Endless batches drawn anew every time, of `sizes` in turn; `hard` keeps only the likeliest class of a label."""
    for size in cycle(sizes):
        images, labels = syn.draw(size, rng)
        labels = F.one_hot(labels.argmax(dim=1), labels.shape[1]).to(labels.dtype) if hard else labels
        yield images.detach().to(device), labels.detach().to(device)


class Best:
    """Keeps the weights of the checkpoint with the best accuracy on training or validation images, never on test images."""

    def __init__(self, net: models.Classifier, protocol: Protocol, real: ImageSet, syn: DistilledSet, unit: int):
        self.net, self.protocol, self.real = net, protocol, real
        self.preprocess = syn.preprocess.to(real.train.images.device)
        self.at = {count * unit for count in protocol.checkpoints}
        self.accuracy, self.steps = -1.0, 0
        self.weights: dict[str, Tensor] = {}

    def look(self, step: int, logits: Tensor) -> None:
        if step + 1 not in self.at:
            return
        split = self.real.train if self.protocol.choose_on == "train" else self.real.validation
        accuracy = train.accuracy(self.net, split, self.preprocess)
        self.net.train()
        if accuracy > self.accuracy:
            self.accuracy, self.steps = accuracy, step + 1
            self.weights = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}

    def restore(self) -> int:
        self.net.load_state_dict(self.weights)
        return self.steps


class Average:
    """A running average of the weights: w <- decay w + (1 - decay) now, from the initial ones on."""

    def __init__(self, net: models.Classifier, decay: float):
        self.net, self.decay = net, decay
        self.weights = {name: tensor.clone() for name, tensor in net.state_dict().items()} if decay else {}

    def look(self, step: int, logits: Tensor) -> None:
        for name, now in self.net.state_dict().items():
            self.weights[name] = torch.lerp(now, self.weights[name], self.decay) if now.is_floating_point() else now.clone()


def mixed(batches: Iterator[train.Batch], probability: float, rng: torch.Generator) -> Iterator[train.Batch]:
    """CutMix (Yun et al., ICCV 2019): with `probability` a box of every image comes from another, labels follow its area."""
    for images, labels in batches:
        if torch.rand((), generator=rng) < probability:
            height, width = images.shape[-2:]
            share = math.sqrt(1 - float(torch.rand((), generator=rng)))                 # side of the box, area ~ U(0, 1)
            top, left = (int(torch.randint(size, (), generator=rng)) for size in (height, width))
            rows = slice(max(0, top - int(height * share) // 2), min(height, top + int(height * share) // 2))
            columns = slice(max(0, left - int(width * share) // 2), min(width, left + int(width * share) // 2))
            other = torch.randperm(len(images), generator=rng).to(images.device)
            images = images.clone()
            images[..., rows, columns] = images[other][..., rows, columns]
            area = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
            labels = (1 - area) * labels + area * labels[other]
        yield images, labels


def peak_rss_mb() -> float:
    """The most memory this process has held, in MiB."""
    try:                                                 # on Linux ru_maxrss would start from the parent process's peak
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


COLUMNS = ("dataset", "method", "ipc", "train_arch", "eval_arch", "variant", "accuracy_mean", "accuracy_std", "n", "protocol",
           "preset", "budget_scalars", "seed", "commit", "device", "minutes", "peak_mb", "command")


def append_row(path: Path | str, row: dict[str, Any]) -> None:
    """Append one row to a CSV file of results, making it with its header if need be. Writers on one machine take turns.

    OSError, with the file as it was, when the disk is full.
    """
    append_rows(path, [row])


def append_rows(path: Path | str, rows: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any] | None = None) -> int:
    """Append rows as `append_row` does, all of them or none; with a `key` only those whose key the file lacks. Returns how many."""
    for row in rows:
        if set(row) != set(COLUMNS):
            raise ValueError(f"a row needs exactly the columns {', '.join(COLUMNS)}; "
                             f"these differ: {', '.join(sorted(set(row) ^ set(COLUMNS)))}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:         # nothing is left in a buffer for later when a write fails
        fcntl.flock(file, fcntl.LOCK_EX)                 # before it is read: another writer may be about to add the same
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        file.seek(0)
        content = file.readall()
        found = parse_rows(path, content, COLUMNS)
        kept = whole_rows(content) if b"\n" in content else 0            # a killed writer's half would swallow ours
        if key and found and not content[:kept].endswith(b"\n"):        # whole by its cells, and the last one, the command, may be torn
            torn = found[-1]
            same = lambda row: key({**row, "command": torn["command"]}) == key(torn)
            if any(row["command"] != torn["command"] and row["command"].startswith(torn["command"]) and same(row) for row in rows):
                kept = content.rfind(b"\n") + 1
                found.pop()
        if key:
            there, given, rows = {key(row) for row in found}, rows, []
            for row in given:
                if key(row) not in there:
                    there.add(key(row))
                    rows.append(row)
            if not rows:
                return 0
        file.truncate(kept)
        if not kept:
            writer.writeheader()
        elif not content[:kept].endswith(b"\n"):
            text.write("\n")
        writer.writerows(rows)
        added, size = text.getvalue().encode(), file.seek(0, os.SEEK_END)
        try:
            if file.write(added) != len(added):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)                          # part of a line could be taken for a row
            raise
    return len(rows)


def read_rows(path: Path | str | None = None, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a results file (default: the book's measured.csv), without lines that a killed writer left unfinished.

    ValueError for what is no text with commas or, where `columns` are given, has others.
    """
    path = Path(path) if path else Path(__file__).resolve().parent.parent / "book" / "results" / "measured.csv"
    return parse_rows(path, path.read_bytes(), columns) if path.is_file() else []


def parse_rows(path: Path, content: bytes, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """`read_rows` of the content of `path`."""
    other = ValueError(f"{path} has other columns than {', '.join(columns)}: name another file for the results")
    if b"\n" not in content:                             # nothing, or not the whole header
        if columns and not ",".join(columns).encode().startswith(content):
            raise other
        return []
    try:
        reader = csv.DictReader(io.StringIO(content[:whole_rows(content)].decode(), newline=""), strict=True)
        rows = [row for row in reader if None not in row and None not in row.values()]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or name another file for the results") from None
    if columns and tuple(reader.fieldnames or ()) != tuple(columns):
        raise other
    return rows


def whole_rows(content: bytes) -> int:
    """How many bytes of a file of rows are whole rows: all but a last line that was not written to its end."""
    start = content.rfind(b"\n") + 1
    try:
        header, last = (next(csv.reader([line.decode()], strict=True), []) for line in (content.partition(b"\n")[0], content[start:]))
    except (csv.Error, UnicodeDecodeError):
        return start
    return len(content) if len(last) == len(header) else start


def with_options(name: str, **changes: Any) -> Protocol:
    """A named protocol with some settings changed, renamed so that its rows cannot be mistaken for the original's."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose from {', '.join(sorted(PROTOCOLS))}")
    known = {field.name for field in fields(Protocol)}
    if unknown := changes.keys() - known:
        raise ValueError(f"a protocol has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    base = PROTOCOLS[name]
    if "steps" in changes or "epochs" in changes:        # one is given: the other gives way
        changes = {"steps": None, "epochs": None} | changes
    changed = {key: value for key, value in changes.items() if getattr(base, key) != value}
    quiet = {"width", "network", "repeats"}              # these three have columns of their own
    suffix = "".join(f" {key}={value}" for key, value in changed.items() if key not in quiet)
    return replace(base, name=base.name + suffix, **changed)
