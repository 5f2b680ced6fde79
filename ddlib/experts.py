"""Expert trajectories (MTT; Cazenavette et al., CVPR 2022): networks trained on real images, their weights kept after every epoch.

A buffer is a folder with one file per expert: theta (I + 1, P) float32, the initial weights and one row per epoch. Every
random choice of an expert comes from streams of (seed, expert, epoch), so experts can be trained in any order, by several
processes at once, interrupted and resumed, and a buffer can grow. Reading maps the files into memory, so it may be larger
than memory: 4 P (I + 1) bytes per expert are 65 MB for the ConvNet3 of width 128 and 50 epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib import augment, data, files, methods, models, runs
from ddlib import train as training
from ddlib.data import ImageSet, Preprocess

Loss = Literal["cross_entropy", "bce"]
SAVE_SECONDS = 20.0                                              # between two savings of an expert in training
WHITEN_ONCE = 2 * 2**30                                          # bytes of whitened images to keep; a whitening costs a fifth of a step


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """What decides the bits of a buffer. The defaults are those of the MTT code; DDPP and ESP take them over."""

    dataset: str = "cifar10"
    network: str = "convnet3"
    width: int = 128
    num_experts: int = 100              # a buffer can grow: the first experts stay what they are
    epochs: int = 50                    # I, one snapshot after each
    lr: float = 0.01
    batch_size: int = 256
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: str = augment.DSA
    loss: Loss = "cross_entropy"        # "bce": one sigmoid per class, mean over images and classes (ESP, eq. 4)
    preprocess: str = "standardize"     # how networks see the images: a kind of ddlib.data.Preprocess
    precision: training.Precision = "float32"    # "auto" and "bfloat16" also compile: fast; snapshots are float32 always
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_experts, self.epochs, self.batch_size, self.width) < 1:
            raise ValueError("num_experts, epochs, batch_size and width must be at least 1, "
                             f"got {self.num_experts}, {self.epochs}, {self.batch_size}, {self.width}")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError("lr must be above 0, momentum in [0, 1) and weight_decay at least 0, "
                             f"got {self.lr}, {self.momentum}, {self.weight_decay}")
        for name, choices in (("network", tuple(models.NETWORKS)), ("preprocess", data.KINDS), ("loss", get_args(Loss)),
                              ("precision", get_args(training.Precision))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        augment.parse(self.augment)


@dataclass(frozen=True, kw_only=True)
class Buffered:
    """The settings that methods with experts share; equal settings share one buffer on disk."""

    dataset: str = "cifar10"
    network: str = "convnet3"
    width: int = 128
    preprocess: str = "zca_a"
    num_experts: int = 100
    buffer_epochs: int = 50
    buffer_lr: float = 0.01
    buffer_batch: int = 256
    buffer_precision: training.Precision = "float32"
    buffer_seed: int = 0

    def __post_init__(self) -> None:
        self.experts()

    def experts(self) -> ExpertConfig:
        """The experts that these settings ask for; ValueError where there can be none."""
        return ExpertConfig(dataset=self.dataset, network=self.network, width=self.width, preprocess=self.preprocess,
                            num_experts=self.num_experts, epochs=self.buffer_epochs, lr=self.buffer_lr,
                            batch_size=self.buffer_batch, precision=self.buffer_precision, seed=self.buffer_seed)


# ------------------------------------------------------------------------------------------------------- a buffer on disk

class Segment(NamedTuple):
    """A stretch of an expert's way: theta (length + 1, P), of which row 0 is its snapshot after epoch `first`."""

    expert: int
    first: int
    theta: Tensor


class Ends(NamedTuple):
    """The two ends of a segment, (P,) each."""

    start: Tensor
    target: Tensor
    expert: int
    first: int


class ExpertBuffer:
    """Experts on disk: num_experts of num_epochs (I) and num_params (P). What is read is a float32 copy on `device`."""

    def __init__(self, folder: Path, claim: dict[str, Any], paths: Sequence[Path], device: torch.device | str = "cpu"):
        self.folder, self.claim, self.paths, self.device = folder, claim, list(paths), torch.device(device)
        self.num_experts, self.num_epochs, self.num_params = len(self.paths), claim["epochs"], claim["num_params"]

    def snapshots(self, expert: int, first: int, last: int, step: int = 1) -> Tensor:
        """theta (n, P), a copy: every `step`-th snapshot from `first` to `last`. 0 is the initial weights, i those after epoch i.

        Nothing else of the file is read, but for its checksum once. A damaged file raises ValueError and is renamed, so that
        `train` makes it again.
        """
        if not (0 <= expert < self.num_experts and 0 <= first <= last <= self.num_epochs):
            raise ValueError(f"snapshots {first} to {last} of expert {expert} asked; there are experts 0 to {self.num_experts - 1} "
                             f"with snapshots 0 to {self.num_epochs}")
        check(self.paths[expert], self.claim, read=True)
        with safe_open(self.paths[expert], framework="pt") as file:
            theta = file.get_slice("theta")
            return torch.stack([theta[row] for row in range(first, last + 1, step)]).to(self.device)

    def draw_segment(self, length: int, max_start: int, rng: torch.Generator) -> Segment:
        """A random expert from a random epoch of {0, ..., max_start - 1} on, over `length` epochs."""
        expert, first = self._draw(length, max_start, rng)
        return Segment(expert, first, self.snapshots(expert, first, first + length))

    def draw_ends(self, length: int, max_start: int, rng: torch.Generator) -> Ends:
        """The two ends of what `draw_segment` would draw."""
        expert, first = self._draw(length, max_start, rng)
        start, target = self.snapshots(expert, first, first + length, step=length)     # (P,) each
        return Ends(start, target, expert, first)

    def _draw(self, length: int, max_start: int, rng: torch.Generator) -> tuple[int, int]:
        if length < 1 or max_start < 1:
            raise ValueError(f"a segment needs at least one epoch and one start, got length {length} and max_start {max_start}")
        if max_start - 1 + length > self.num_epochs:
            raise ValueError(f"segments of {length} epochs from starts below {max_start} need experts of {max_start - 1 + length} epochs, "
                             f"these have {self.num_epochs}: shorten them, start earlier or train longer")
        expert = int(torch.randint(self.num_experts, (), generator=rng))
        return expert, int(torch.randint(max_start, (), generator=rng))


def open_buffer(folder: Path | str, device: torch.device | str = "cpu") -> ExpertBuffer:
    """The finished experts in `folder`. A damaged file raises ValueError, here or when its checksum is first looked at."""
    folder = Path(folder)
    claim = runs.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    paths = sorted(folder.glob("expert-*.safetensors"))
    if not paths or not isinstance(claim, dict) or not all(type(claim.get(name)) is int for name in ("epochs", "num_params")):
        raise FileNotFoundError(f"{folder} holds no finished expert: train some with `python -m ddlib.experts --out {folder}`")
    for path in paths:
        check(path, claim)
    return ExpertBuffer(folder, claim, paths, device)


_intact: set[tuple[Path, int, int]] = set()                      # files whose checksum this process has seen to be right


def check(path: Path, claim: dict[str, Any], read: bool = False) -> dict[str, Any]:
    """The header of this buffer's expert in `path`; ValueError, in one sentence, if it is damaged or something else.

    read: compare the checksum, too, once per process. As `train` looks at headers only, what is found wrong is renamed.
    """
    again = "; calling `ddlib.experts.train` makes it again"
    try:
        header, shapes = files.read_header(path, "expert")
        name = f"expert-{str(header.get('expert')).zfill(5)}"
        if (header.get("claim"), name, shapes) != (claim, path.stem, {"theta": (claim["epochs"] + 1, claim["num_params"])}):
            raise ValueError(f"{path} is another expert or one of another buffer")
        status = path.stat()
        key = (path.resolve(), status.st_size, status.st_mtime_ns)
        if read and key not in _intact:
            files.verify(path, "expert")
            _intact.add(key)
        return header
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing{again}") from None
    except ValueError as error:
        if read:
            with suppress(OSError):                              # where nobody may write, it has to be deleted by hand
                path.replace(path.with_suffix(".damaged"))
            again += " (delete it first)" if path.is_file() else f" (it is {path.stem}.damaged now)"
        raise ValueError(f"{error}{again}") from None


# --------------------------------------------------------------------------------------------------------------- training

def train(real: ImageSet, config: ExpertConfig, folder: Path | str | None = None, *, minutes: float = math.inf,
          together: int | None = None, only: int | None = None) -> ExpertBuffer:
    """Train the experts that `folder` lacks, resume those that were interrupted, replace damaged ones, and open the buffer.

    Of finished experts only headers and sizes are looked at; bytes are when they are first read.

    folder: where the buffer is or goes; by default a folder under `runs.folder("experts")` that config and data decide.
    minutes: TimeoutError instead of an epoch that would begin later than that, but for the first; nothing is lost.
    together: experts that are trained side by side, whose weights then differ by rounding; by default 8 on a GPU, which
    one alone leaves idle, if the network has neither batch norm nor dropout, and 1 on a CPU. Several processes may train
    one buffer: each takes the experts that no other is at. only: train this expert and no other (the buffer opens with all).
    """
    if not minutes > 0 or (together is not None and together < 1):
        raise ValueError(f"minutes must be above 0 and together at least 1, got {minutes} and {together}")
    if real.preprocess.kind != config.preprocess:
        raise ValueError(f"the images come preprocessed by {real.preprocess.kind!r} and the experts are to see {config.preprocess!r}: "
                         f"load them with preprocess={config.preprocess!r} or change the config")
    if only is not None and not 0 <= only < config.num_experts:
        raise ValueError(f"expert {only} asked; there are experts 0 to {config.num_experts - 1}")
    return Job(real, config, folder, minutes, together).run(range(config.num_experts) if only is None else [only])


def prepare(real: ImageSet, config: Any, minutes: float = math.inf) -> None:
    """What a method with experts does before it distils: train those that config.experts() lacks. TimeoutError as `train`."""
    data.check_ipc(real, config.ipc)                             # now, not after hours of training
    train(real, config.experts(), minutes=minutes)


class Job:
    """One call of `train`."""

    def __init__(self, real: ImageSet, config: ExpertConfig, folder: Path | str | None, minutes: float, together: int | None):
        self.real, self.config = real, config
        self.deadline, self.device = time.monotonic() + 60 * minutes, real.train.images.device
        self.net = self.build(0)
        self.num_params, self.steps = models.num_params(self.net), -(-len(real.train) // config.batch_size)    # steps in an epoch
        self.trained, self.precisions = False, set[str]()        # whether this call trained an epoch; of what it found
        low = config.precision == "bfloat16" or (config.precision == "auto" and training.has_bfloat16(self.device))
        self.precision = "bfloat16" if low else "float32"
        alone = not training.can_stack(self.net)
        if alone and (together or 1) > 1:
            raise ValueError(f"{config.network} has batch norm or dropout and cannot be trained side by side: use together=1")
        self.together = together or (8 if self.device.type == "cuda" and not alone else 1)
        settings = dataclasses.asdict(config)
        del settings["num_experts"]                              # no expert depends on how many there are
        self.claim = json.loads(json.dumps({**settings, "num_params": self.num_params, "data": real.fingerprint,
                                            "zca_eps": real.preprocess.zca_eps}))
        name = hashlib.sha256(json.dumps(self.claim, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(folder or runs.folder("experts", f"{config.dataset}-{config.network}-w{config.width}-{name}"))

    def path(self, expert: int, kind: str = "safetensors") -> Path:
        return self.folder / f"expert-{expert:05d}.{kind}"

    def run(self, wanted: Sequence[int]) -> ExpertBuffer:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.lock(self.folder / ".lock", math.inf):          # two processes may claim the folder at once
            runs.check_claim(self.folder, self.claim)
            files.write_text(self.folder / "config.json", json.dumps(self.claim, indent=1))
        missing = [expert for expert in wanted if not self.finished(expert)]
        for expert in {*wanted} - {*missing}:                    # who trained it may have been killed before that
            self.tidy(expert)
        if missing:
            left = sum(self.config.epochs + 1 - len(self.resumed(expert).thetas) for expert in missing)    # epochs
            self.announce(missing, left)
            for _ in runs.progress(self.work(missing), left, self.config.epochs, "epochs of experts"):
                pass
        return ExpertBuffer(self.folder, self.claim, [self.path(expert) for expert in range(self.config.num_experts)], self.device)

    def announce(self, missing: list[int], left: int) -> None:
        """Say what is ahead: experts, disk, and minutes as a few steps of a network that is then forgotten tell."""
        size = 4 * self.num_params * (self.config.epochs + 1) * len(missing)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ValueError(f"{len(missing)} experts need {size / 1e9:.2f} GB and {self.folder} has {free / 1e9:.2f} GB free: "
                             "make room, choose another folder, or train fewer")
        for precision in self.precisions - {self.precision}:
            print(f"experts: some of {self.folder} were trained in {precision} and the rest will be in {self.precision}: "
                  "the result will mix both", flush=True)
        count = min(self.together, len(missing))
        trial = Team(self, [self.resumed(-1 - index) for index in range(count)])
        trial.fit(steps=2)                                       # the first steps of a network are slow
        started = time.perf_counter()
        trial.fit(steps=3)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)                  # a GPU is asked and does not wait
        minutes = (time.perf_counter() - started) / 3 / count * self.steps * left / 60
        print(f"experts: {len(missing)} of {self.config.num_experts} to train, {left} epochs of {self.steps} steps in all, "
              f"{size / 1e6:.1f} MB in {self.folder}, about {minutes:.1f} minutes on {runs.device_name(self.device)}", flush=True)

    def finished(self, expert: int, quiet: bool = False) -> bool:
        """Whether the expert is there, by header and size; anything else in its place is named."""
        try:
            self.precisions.add(self.precision_of(check(self.path(expert), self.claim)))
        except FileNotFoundError:
            return False
        except ValueError as error:
            if not quiet:
                print(f"experts: {error}", flush=True)
            return False
        return True

    def header(self, expert: int) -> dict[str, Any]:
        return {"claim": self.claim, "expert": expert, "made_by": {**runs.made_by(self.real), "precision": self.precision}}

    def precision_of(self, header: dict[str, Any]) -> str:
        """What "auto" meant where the file was written."""
        fixed = self.precision if self.config.precision != "auto" else "a precision that is not recorded"
        return header.get("made_by", {}).get("precision", fixed)

    def work(self, missing: list[int]) -> Iterator[None]:
        """Train what is missing, `together` at a time; yields after every epoch of an expert."""
        while missing:
            group: list[Expert] = []
            for number in list(missing):
                if len(group) < self.together and (lock := acquire(self.path(number, "lock"))):
                    if self.finished(number, quiet=True):                    # another process was faster
                        missing.remove(number)
                        self.path(number, "lock").unlink(missing_ok=True)
                        continue
                    expert = self.resumed(number, lock)
                    if not group or len(expert.thetas) == len(group[0].thetas):
                        group.append(expert)
                    del expert, lock                             # who does not join is free again
            if group:
                yield from self.train_group(group)
                missing = [number for number in missing if number not in {expert.number for expert in group}]
            elif missing:                                        # only experts that other processes are at
                self.stop_in_time()
                time.sleep(0.2)

    def train_group(self, group: list[Expert]) -> Iterator[None]:
        """Train experts of equally many epochs to the end, saving on the way."""
        team, saved = Team(self, group), time.monotonic()
        try:
            while team.epoch < self.config.epochs:
                if self.trained:
                    self.stop_in_time()
                if time.monotonic() - saved > SAVE_SECONDS:
                    team.save()
                    saved = time.monotonic()
                team.train_epoch()
                self.trained = True
                for _ in group:
                    yield
        except BaseException:
            team.save()
            raise
        for expert in team.group:
            files.write_tensors(self.path(expert.number), "expert", self.header(expert.number), {"theta": torch.stack(expert.thetas)})
            self.tidy(expert.number)

    def tidy(self, expert: int) -> None:
        """Remove what a finished expert no longer needs. Whoever waits for its lock looks for the expert first."""
        for path in (*(self.path(expert, kind) for kind in ("partial", "damaged", "lock")),
                     *self.folder.glob(f".{self.path(expert).stem}.*.part")):
            path.unlink(missing_ok=True)

    def stop_in_time(self) -> None:
        if time.monotonic() > self.deadline:
            done = sum(self.path(expert).is_file() for expert in range(self.config.num_experts))
            raise TimeoutError(f"{done} of {self.config.num_experts} experts are trained and the time is up")

    def build(self, expert: int) -> models.Classifier:
        seed = int(torch.randint(2**31, (), generator=runs.stream(self.config.seed, "expert", expert)))
        width = self.config.width if models.NETWORKS[self.config.network].width else None
        return models.build(self.config.network, shape=self.real.shape, num_classes=self.real.num_classes, width=width, seed=seed)

    def resumed(self, number: int, lock: IO[str] | None = None) -> Expert:
        """The expert as it was saved last, or at its start."""
        path = self.path(number, "partial")
        try:
            header, tensors = files.read_tensors(path, "partial")
            if header["claim"] == self.claim and header["expert"] == number:
                self.precisions.add(self.precision_of(header))
                return Expert(number, list(tensors["theta"]), tensors.get("momentum"), lock)
        except FileNotFoundError:
            pass
        except ValueError as error:
            print(f"experts: {error}; it starts anew", flush=True)
        return Expert(number, [models.flatten(self.build(number))], None, lock)

    def batches(self, expert: int, epoch: int) -> Iterator[training.Batch]:
        """The augmented mini-batches of one epoch, the same whoever trains the expert and beside which others."""
        order, noise = (runs.stream(self.config.seed, "expert", expert, epoch, use) for use in ("order", "augment"))
        strategy, (images, preprocess) = augment.strategy_for(self.real, self.config.augment), self.images
        for batch, labels in training.Batches(images, self.real.train.labels, self.config.batch_size, order, preprocess):
            yield augment.augment(batch, strategy, noise), labels

    @cached_property
    def images(self) -> tuple[Tensor, Preprocess | None]:
        """The training images and what is still to be done to each batch of them: whitened ones are kept if there is room."""
        images, preprocess = self.real.train.images, self.real.preprocess
        if preprocess.matrix is None or 4 * images.numel() > WHITEN_ONCE:
            return images, preprocess
        return torch.cat([preprocess(chunk) for chunk in images.split(1000)]), None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over images, and with "bce" over classes: (B, C) and (B,)."""
        if self.config.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, self.real.num_classes).to(logits.dtype))
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Expert:
    """An expert in training: its snapshots so far, (P,) each, and the optimizer's momentum, (P,), if it has any."""

    number: int
    thetas: list[Tensor]
    momentum: Tensor | None = None
    lock: IO[str] | None = None                                  # held as long as this object lives


class Team:
    """Experts in training together: the network, or a stack of several, and its optimizer, at the epoch of their last snapshot."""

    def __init__(self, job: Job, group: list[Expert]):
        self.job, self.group = job, group
        self.saved = self.epoch
        net, config = job.build(0).to(job.device), job.config
        self.net: nn.Module = net if len(group) == 1 else training.Stack([net] * len(group))
        self.weights = list(self.net.parameters())
        self.optimizer = torch.optim.SGD(self.weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        self.put([expert.thetas[-1] for expert in group], self.weights)
        if config.momentum and self.epoch:
            for weight in self.weights:
                self.optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight)
            self.put([expert.momentum for expert in group if expert.momentum is not None], self.momenta())

    @property
    def epoch(self) -> int:
        return len(self.group[0].thetas) - 1

    def momenta(self) -> list[Tensor]:
        return [self.optimizer.state[weight]["momentum_buffer"] for weight in self.weights]

    @torch.no_grad()
    def put(self, vectors: list[Tensor], tensors: Sequence[Tensor]) -> None:
        """Copy (P,) of every expert into tensors of the weights' shapes; `flat` undoes it."""
        columns = torch.stack(vectors).split([tensor.numel() // len(self.group) for tensor in tensors], dim=1)     # (n, size) each
        for tensor, column in zip(tensors, columns, strict=True):
            tensor.copy_(column.reshape(tensor.shape))

    def flat(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """(P,) of every expert on the CPU. Copies: a snapshot without one would be the live weights on a CPU."""
        flat = torch.cat([tensor.detach().reshape(len(self.group), -1) for tensor in tensors], dim=1).cpu()      # (n, P)
        return [row.clone() for row in flat]

    def fit(self, steps: int) -> None:
        config, alone = self.job.config, len(self.group) == 1
        streams = [self.job.batches(expert.number, self.epoch) for expert in self.group]
        with torch.random.fork_rng([self.job.device] if self.job.device.type == "cuda" else []):    # dropout reads the global stream
            torch.manual_seed(runs.stream(config.seed, "expert", self.group[0].number, self.epoch).initial_seed())
            training.fit(self.net, streams[0] if alone else training.stacked(streams), steps=steps, lr=config.lr,
                         optimizer=self.optimizer, precision=config.precision, compiled=config.precision != "float32" and alone,
                         loss=self.job.loss if alone else training.summed(self.job.loss))

    def train_epoch(self) -> None:
        self.fit(self.job.steps)
        thetas = self.flat(self.weights)
        if not all(torch.isfinite(theta).all() for theta in thetas):
            raise FloatingPointError(f"an expert's weights stopped being finite in epoch {self.epoch + 1}: lower the learning rate")
        momenta = self.flat(self.momenta()) if self.job.config.momentum else [None] * len(thetas)
        # one assignment: an interruption finds either the epoch before or this one, never half of each
        self.group = [replace(expert, thetas=[*expert.thetas, theta], momentum=momentum)
                      for expert, theta, momentum in zip(self.group, thetas, momenta, strict=True)]

    def save(self) -> None:
        for expert in self.group if self.epoch > self.saved else []:
            tensors = {"theta": torch.stack(expert.thetas)} | ({} if expert.momentum is None else {"momentum": expert.momentum})
            files.write_tensors(self.job.path(expert.number, "partial"), "partial", self.job.header(expert.number), tensors)
        self.saved = self.epoch


def acquire(path: Path) -> IO[str] | None:
    """The lock file, locked until it is closed or the process ends; None when another process holds it."""
    with suppress(BlockingIOError):
        return files.lock(path)
    return None


def main() -> int:
    """The command line: `python -m ddlib.experts --dataset fashion_mini --width 16 --num-experts 4 --epochs 8 --out DIR`."""
    parser = argparse.ArgumentParser(prog="python -m ddlib.experts",
                                     description="Train experts. Called again with the same settings, it goes on where it stopped.")
    parser.add_argument("--out", help="folder of the buffer (default: runs/experts/, by settings and data)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly after about this many minutes")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="train this expert and no other (one task of many on a cluster)")
    parser.add_argument("--together", type=int, help="experts side by side (default: 8 on a GPU, 1 on a CPU)")
    parser.add_argument("--data", help="folder with the datasets (default $DDLIB_DATA)")
    settings = parser.add_argument_group("settings, by default those of the MTT code")
    names = [field.name for field in dataclasses.fields(ExpertConfig)]
    for name in names:
        default = getattr(ExpertConfig, name)
        settings.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", type=type(default), default=default)
    given = parser.parse_args()

    def work() -> None:
        config, started = ExpertConfig(**{name: getattr(given, name) for name in names}), time.monotonic()
        real = data.load(config.dataset, given.data, preprocess=config.preprocess).to(runs.pick_device())
        try:
            buffer = train(real, config, given.out, minutes=given.minutes, together=given.together, only=given.only)
        except TimeoutError as error:
            print(f"stopped: {error}; the same command goes on from here")
            return
        count = f"{buffer.num_experts} experts" if given.only is None else f"expert {given.only}"
        print(f"{count} of {buffer.num_epochs} epochs and {buffer.num_params:,} parameters in {buffer.folder} "
              f"({(time.monotonic() - started) / 60:.1f} minutes)")

    training.keep_freed_memory()
    return methods.answered(work)


if __name__ == "__main__":
    raise SystemExit(main())
