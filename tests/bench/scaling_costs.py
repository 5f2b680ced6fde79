"""What every published cell of the five papers costs: counted work, measured minutes of a CPU core, estimated minutes of a GPU.

`counts()` runs one step of everything that a run is made of, at published width and with a few images, and counts arithmetic
(torch's formulas for convolutions and products), launches and bytes (`ddlib.kernels.traffic`). A step's work is a constant and a
share for each image, so two batch sizes decide both. `work(config, protocol)` adds the steps of a preset up; `core_speeds()` divides
the work of the rows of measured.csv by their minutes; `jobs()` has the distillations behind the cells, each once, with what they share.

A GPU's time is the estimate of chapter 13, launches * L + max(bytes / W, operations / F), for the two made-up devices of `DEVICES`.
Where measured.csv has a row of a GPU for the very preset and protocol, its minutes are taken instead.
"""

from __future__ import annotations

import csv
import importlib
import math
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, reduce
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from ddlib import data, distilled, evaluate, gan, kernels, models, papers, poster, runs, train, unroll
from ddlib.kernels.traffic import Traffic
from ddlib.methods import cgan, dim, esp, kfs, mtt

COUNTS = runs.ROOT / "book" / "results" / "scaling_counts.csv"
COUNT_COLUMNS = ("piece", "network", "width", "shape", "classes", "operations_an_image", "launches", "bytes",
                 "bytes_an_image", "parameters", "saved_an_image")
# shape, classes, training images (a tenth of which is held out), test images
DATASETS: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "mnist": ((1, 28, 28), 10, 60_000, 10_000), "fashion_mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "fashion_mini": ((1, 28, 28), 10, 5_000, 1_000), "cifar10": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": ((3, 32, 32), 100, 50_000, 10_000), "svhn": ((3, 32, 32), 10, 73_257, 26_032),
    "tiny_imagenet": ((3, 64, 64), 200, 100_000, 10_000), "cub200": ((3, 32, 32), 200, 5_994, 5_794),
    # 21,165 images; the paper says nothing of a split: a tenth as test set is an assumption
    "covid_cxr": ((1, 112, 112), 4, 19_048, 2_117),
}
REAL_CHUNK = 512                         # real images that dm.embed_real looks at together
AUGMENT_LAUNCHES = 10                    # of an augmentation, which is drawn: about what scale, rotate and color take


@dataclass(frozen=True)
class Device:
    """operations and bytes a second, seconds a launch."""

    operations: float
    bytes: float
    launch: float


# Assumed. Chapter 13's GPU has 67e12, 3350e9 and 4e-6 on its data sheet; TF32 convolutions can be faster, eager torch is slower.
DEVICES = {"low": Device(80e12, 3350e9, 2e-6), "high": Device(15e12, 1000e9, 10e-6)}


@dataclass(frozen=True)
class Work:
    """Counted: arithmetic operations, launches one after another, bytes that they read and write."""

    operations: float = 0.0
    launches: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.launches + other.launches, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.launches * times, self.bytes * times)

    def minutes(self, device: Device) -> float:
        """Chapter 13's estimate, of all steps together: a little less than step by step where some wait for bytes and some do not."""
        return (self.launches * device.launch + max(self.operations / device.operations, self.bytes / device.bytes)) / 60


def total(parts: Iterable[Work]) -> Work:
    return reduce(lambda one, other: one + other, parts, Work())


# ------------------------------------------------------------------------------------------------------ counting a step

@dataclass(frozen=True)
class Piece:
    """A step of one kind, by the number of its images. parameters: of the network; saved: bytes kept for the backward pass, an image."""

    operations_an_image: float
    launches: float
    bytes: float
    bytes_an_image: float
    parameters: int
    saved_an_image: float

    def __call__(self, images: float, passes: float = 1.0) -> Work:
        """Of one step with so many images. passes: pieces that memory forces a large batch into."""
        return Work(images * self.operations_an_image, passes * self.launches, self.bytes + images * self.bytes_an_image)


class Counter(Traffic):
    """`Traffic` that counts arithmetic, too. (FlopCounterMode follows modules, and refuses gradients of leaves.)"""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=made)
        return made


Key = tuple[str, str, int | None, tuple[int, int, int], int]


def steps_of(key: Key) -> Callable[[int], object]:
    """What `key` names, as a function of the number of images."""
    kind, name, width, shape, classes = key
    rng = torch.Generator().manual_seed(0)

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, *shape, generator=rng), torch.arange(n) % classes

    if kind in ("gan", "generate"):
        noise = data.ImageSet.from_arrays(torch.zeros(2 * classes, *shape, dtype=torch.uint8), torch.arange(2 * classes) % classes,
                                          torch.zeros(classes, *shape, dtype=torch.uint8), torch.arange(classes), name="noise",
                                          classes=[str(c) for c in range(classes)])
        game = cgan.Game(noise, cgan.CGANConfig(gan_width=width or 196))
        if kind == "gan":
            return lambda n: game.play(1, torch.zeros(n, *shape, dtype=torch.uint8), torch.arange(n) % classes, rng)
        made = torch.no_grad()(game.generator.eval())
        return lambda n: made(gan.condition(torch.arange(n) % classes, classes, game.generator.noise_size, rng))
    net = models.build(name, shape=shape, num_classes=classes, width=width, seed=0)
    theta = models.flatten(net)

    def unrolled(n: int, rule: unroll.Rule) -> object:
        leaf = batch(n)[0].requires_grad_()
        labels = torch.arange(n) % classes
        student = unroll.unroll(net, theta, (leaf,), lambda j, x: (x, labels), steps=2, rate=0.01, rule=rule, form="remat")
        return torch.autograd.grad(student.sum(), leaf)

    def projected(n: int, chunk: int) -> object:
        images, labels = batch(n)
        return esp.project_gradient(net, theta, images, labels, torch.linalg.qr(torch.randn(len(theta), 11, generator=rng))[0],
                                    norm="l1", chunk=chunk)

    def looked(n: int) -> object:
        real, syn = batch(n)[0], batch(n)[0].requires_grad_()
        seen, made = dim.look(net, real, syn, "", rng)
        return torch.autograd.grad(dim.dim_loss(seen.logits, made.logits), syn)

    def matched(n: int, chunk: int) -> object:
        return kfs.match(net.requires_grad_(False), batch(n)[0], 1, lambda seen: seen.square().sum(), chunk)

    def forward(n: int) -> object:
        with torch.no_grad():
            return net(batch(n)[0])

    return {
        "train": lambda n: train.fit(net, iter([batch(n)]), steps=1),
        "forward": forward, "look": looked,
        "unroll": lambda n: unrolled(n, unroll.SGD()), "unroll adam": lambda n: unrolled(n, unroll.Adam()),
        "project": lambda n: projected(n, n), "project in chunks": lambda n: projected(n, n // 2),
        "match": lambda n: matched(n, n), "match in chunks": lambda n: matched(n, n // 2),
    }[kind]


def counted(key: Key) -> Piece:
    """Run a step of `key` with two and with four images, and count."""
    step, found = steps_of(key), []
    saved = 0.0
    for n in (2, 4):
        with Counter() as counter, kernels.using("off"):
            step(n)
        found.append((float(counter.operations), float(counter.bytes), float(counter.launches)))
    kind, name, width, shape, classes = key
    parts = 2 if kind.startswith("unroll") else 1            # two steps of the student were taken
    slopes = [(four - two) / 2 for two, four in zip(*found, strict=True)]
    parameters = 0
    if kind not in ("gan", "generate"):
        net = models.build(name, shape=shape, num_classes=classes, width=width, seed=0)
        parameters, saved = models.num_params(net), saved_bytes(net, shape)
    else:
        parameters = sum(p.numel() for p in gan.Generator(shape, classes, width or 196).parameters())
        parameters += sum(p.numel() for p in gan.Discriminator(shape, classes, width or 196).parameters()) if kind == "gan" else 0
        saved = saved_bytes(gan.Discriminator(shape, classes, width or 196), shape)
    operations = slopes[0] / parts
    if name == "efficientnet_v2_s" and kind == "train":      # torch's formula overlooks groups in a convolution's backward pass
        operations = 3 * piece("forward", name, width, dataset_of(shape, classes)).operations_an_image
    return Piece(operations, found[0][2] / parts, (found[0][1] - 2 * slopes[1]) / parts, slopes[1] / parts, parameters, saved)


def dataset_of(shape: tuple[int, int, int], classes: int) -> str:
    return next(name for name, (of, count, *_) in DATASETS.items() if (of, count) == (shape, classes))


def saved_bytes(net: torch.nn.Module, shape: tuple[int, int, int]) -> float:
    """Bytes that a forward pass keeps for the backward one, an image."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(torch.randn(2, *shape))
    del out
    return sum(kept.values()) / 2


@cache
def stored() -> dict[Key, Piece]:
    """The counts of book/results/scaling_counts.csv."""
    if not COUNTS.is_file():
        return {}
    found = {}
    with COUNTS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            c, h, w = (int(part) for part in row["shape"].split("x"))
            key = (row["piece"], row["network"], int(row["width"]) if row["width"] else None, (c, h, w), int(row["classes"]))
            found[key] = Piece(*(float(row[name]) for name in COUNT_COLUMNS[5:9]), int(row["parameters"]), float(row["saved_an_image"]))
    return found


FRESH: dict[Key, Piece] = {}             # counted by this process, because nobody had


def piece(kind: str, name: str, width: int | None, dataset: str) -> Piece:
    shape, classes, _, _ = DATASETS[dataset]
    key = (kind, name, width or (models.NETWORKS[name].width if name else None), shape, classes)
    if key not in stored() and key not in FRESH:
        FRESH[key] = counted(key)
    return stored().get(key) or FRESH[key]


def count_rows() -> list[dict[str, object]]:
    """`stored` and `FRESH` as rows of the CSV."""
    return [{"piece": kind, "network": name, "width": width or "", "shape": "x".join(map(str, shape)), "classes": classes,
             "operations_an_image": round(one.operations_an_image),
             "launches": f"{one.launches:g}", "bytes": round(one.bytes), "bytes_an_image": round(one.bytes_an_image),
             "parameters": one.parameters, "saved_an_image": round(one.saved_an_image)}
            for (kind, name, width, shape, classes), one in sorted((stored() | FRESH).items(), key=repr)]


# --------------------------------------------------------------------------------------------------- adding up a preset

def kept_images(dataset: str) -> int:
    """Training images that are not held out."""
    return DATASETS[dataset][2] - DATASETS[dataset][2] // 10


def set_size(config: Any) -> int:
    """Images that networks are trained on: stored ones, decoded ones, patches; of generators, as many as are asked for."""
    shape, classes, _, _ = DATASETS[config.dataset]
    if hasattr(config, "patches_x"):
        return config.patches_x * config.patches_y
    if hasattr(config, "num_decoders") and getattr(config, "artifact", "codes") == "codes":
        codes = config.num_codes or distilled.fit_budget(config.ipc, shape, classes, config.num_decoders)
        return classes * codes * config.num_decoders
    return classes * int(config.ipc)


def distilling(config: Any) -> Work:
    """All outer steps of a run; not its experts, not the GAN that it starts from."""
    classes = DATASETS[config.dataset][1]

    def of(kind: str) -> Piece:
        return piece(kind, config.network, config.width, config.dataset)

    made, extra = set_size(config), Work(launches=AUGMENT_LAUNCHES)
    if isinstance(config, mtt.MTTConfig):
        step = (of("unroll")(config.syn_batch or made) + extra) * config.syn_steps
    elif isinstance(config, esp.ESPConfig):
        pieces = math.ceil(made / kfs.CHUNK)
        chunked = " in chunks" if pieces > 1 else ""
        images = min(made, config.syn_batch or made)
        step = extra * 2 + (of("project" + chunked)(images, pieces) if config.proj_weight else of("train")(images, pieces))
        if config.dm_weight:
            step += of("match" + chunked)(images, pieces) + of("forward")(
                classes * config.real_batch, math.ceil(classes * config.real_batch / REAL_CHUNK))
        step *= config.syn_steps
    elif hasattr(config, "window"):
        images = getattr(config, "inner_patches", 0) or made
        burn = (config.min_burn + config.max_inner - config.window) / 2
        step = ((of("train")(images) + extra) * burn + (of("unroll adam")(images) + extra) * config.window
                + of("train")(config.real_batch, math.ceil(config.real_batch / 1000)))
    elif isinstance(config, cgan.CGANConfig):
        step = piece("gan", "", config.gan_width, config.dataset)(config.batch_size)
    elif isinstance(config, dim.MatchConfig):
        pool = config.networks()
        step = piece("gan", "", config.gan_width, config.dataset)(config.batch_size) + total(
            (piece("train", name, width, config.dataset)(config.batch_size) + extra) * config.net_steps
            + piece("look", name, width, config.dataset)(config.batch_size) + extra for name, width in pool) * (1 / len(pool))
    else:
        raise ValueError(f"{type(config).__name__} is no method of the five papers: choose from MTT, DDPP, ESP, PoDD, CGAN and its kin")
    return step * config.steps


def evaluating(config: Any, protocol: evaluate.Protocol, ipc: int | None = None, side_by_side: bool = False) -> Work:
    """All networks of a protocol, trained and tested. side_by_side: as a GPU does it where it can, with the launches of one."""
    _, classes, given, tested = DATASETS[config.dataset]
    name, width = protocol.network, protocol.width
    made = classes * ipc if ipc else set_size(config)
    steps, size = protocol.num_steps(made), protocol.batch_size if protocol.resample and protocol.epochs else min(protocol.batch_size, made)
    generated = Work()
    if protocol.resample:
        generated = piece("generate", "", config.gan_width, config.dataset)(size)
    step = piece("train", name, width, config.dataset)(size) + Work(launches=AUGMENT_LAUNCHES) + generated
    looks = len(protocol.checkpoints) * (kept_images(config.dataset) if protocol.choose_on == "train" else given // 10)
    look = piece("forward", name, width, config.dataset)(looks + tested, math.ceil((looks + tested) / 1000))
    one = step * steps + look
    share = protocol.repeats if side_by_side and not protocol.checkpoints and not batch_normed(name) else 1
    return replace(one * protocol.repeats, launches=one.launches * protocol.repeats / share)


def batch_normed(network: str) -> bool:
    return network.endswith("_dim") or network in ("densenet121", "efficientnet_v2_s")


def training_expert(config: Any) -> Work:
    """One expert of an `experts.ExpertConfig`."""
    steps = math.ceil(kept_images(config.dataset) / config.batch_size) * config.epochs
    return (piece("train", config.network, config.width, config.dataset)(config.batch_size) + Work(launches=AUGMENT_LAUNCHES)) * steps


def snapshot_bytes(config: Any) -> int:
    """Of one expert of a buffer: 4 P (I + 1)."""
    return 4 * piece("train", config.network, config.width, config.dataset).parameters * (config.epochs + 1)


# ------------------------------------------------------------------------------------------------- what rows have measured

def parsed(command: str) -> tuple[Any, dict[str, list[str]]] | None:
    """The config that a row's command ran, and its other options; None for a command of something else."""
    words = shlex.split(command)
    method = next((word.split(".")[-1] for word in words if word.startswith("ddlib.methods.")), "")
    if not method:
        return None
    module = importlib.import_module(f"ddlib.methods.{method}")
    options: dict[str, list[str]] = {}
    for word in words[words.index(f"ddlib.methods.{method}") + 1:]:
        if word.startswith("--"):
            options[word[2:].split("=")[0]] = word.split("=")[1:]
        elif options:
            options[next(reversed(options))].append(word)
    preset = options.pop("preset", ["tiny"])[0]
    if preset not in module.PRESETS:
        return None
    config = module.PRESETS[preset]
    changes = {}
    for setting in fields(config):
        if text := options.pop(setting.name.replace("_", "-"), None):
            kind = type(setting.default)
            changes[setting.name] = text[0].lower() == "true" if kind is bool else kind(text[0])
    return replace(config, **changes), options


def same_run(one: Any, other: Any) -> bool:
    """Whether two configs are one run, but for its seed and the IPC that a generator is asked for."""
    free = {"seed": 0} | ({"ipc": 1} if hasattr(one, "gan_width") else {})
    return type(one) is type(other) and replace(one, **free) == replace(other, **free)


@dataclass(frozen=True)
class Speed:
    """A measured row: the method, counted operations and what a CPU core made of them."""

    method: str
    dataset: str
    operations: float
    minutes: float
    width: int

    @property
    def gflops(self) -> float:
        return self.operations / self.minutes / 60 / 1e9


def core_speeds(rows: Iterable[Mapping[str, str]]) -> list[Speed]:
    """Counted operations a second of the rows that one CPU core made, with distillation and evaluation of one network in them."""
    found = []
    for row in rows:
        asked = parsed(row["command"]) if row["device"] == "cpu (1 thread)" and float(row["minutes"]) >= 1 else None
        if asked is None or row["dataset"] not in DATASETS or row["protocol"] not in evaluate.PROTOCOLS:
            continue
        config, _ = asked
        if type(config).__module__ not in FIVE or row["eval_arch"] != "convnet3" or getattr(config, "poster", ""):
            continue
        narrow = re.search(r"width (\d+)", row["variant"])
        protocol = evaluate.with_options(row["protocol"], network=row["eval_arch"], width=int(narrow[1]) if narrow else None)
        ipc = int(float(row["ipc"])) if hasattr(config, "gan_width") else None
        work = distilling(config) + evaluating(config, protocol, ipc)
        width = getattr(config, "width", None) or getattr(config, "gan_width", 0)
        found.append(Speed(row["method"], row["dataset"], work.operations, float(row["minutes"]), width))
    return found


FIVE = {f"ddlib.methods.{name}" for name in ("skd", "ddpp", "gld", "podd", "esp", "cgan", "mtt", "dim")}


def speed_of(method: str, speeds: Iterable[Speed]) -> tuple[float, float, float, int]:
    """Low, middle and high GFLOP a second of a core for a method, over its rows, and how many there are; the widest networks only."""
    own = [each for each in speeds if each.method == method]
    own = [each for each in own if each.width == max(one.width for one in own)]
    values = sorted(each.gflops for each in own)
    return values[0], statistics.median(values), values[-1], len(values)


def spread(speeds: Iterable[Speed]) -> float:
    """Standard deviation of the logarithm of time for equal work, within a method, dataset and width: what a run's minutes vary by."""
    groups: dict[tuple[str, str, int], list[float]] = {}
    for each in speeds:
        groups.setdefault((each.method, each.dataset, each.width), []).append(math.log(each.gflops))
    squares = [(value - statistics.fmean(values)) ** 2 for values in groups.values() for value in values]
    freedom = sum(len(values) - 1 for values in groups.values())
    return math.sqrt(sum(squares) / freedom)


# ---------------------------------------------------------------------------------------------------- the cells, as jobs

@dataclass(frozen=True)
class Range:
    """A number with its bounds; equal ones where it was measured."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    @property
    def measured(self) -> bool:
        return self.low == self.high


def on_a_gpu(work: Work) -> Range:
    return Range(*(work.minutes(DEVICES[name]) for name in ("low", "high")))


@dataclass
class Job:
    """A task of the whole: an expert of a buffer (`copies` of them), a GAN, or a distillation with its evaluations."""

    name: str
    kind: str                            # "experts", "gan" or "run"
    method: str
    config: Any
    needs: str = ""                      # the job that has to be finished before
    copies: int = 1
    work: Work = field(default_factory=Work)                     # of one copy; of a run without its evaluations
    evaluations: dict[tuple[str, int | None], tuple[evaluate.Protocol, Work]] = field(default_factory=dict)
    minutes: Range = Range(0, 0)                                 # of one copy, GPU; of a run with all evaluations
    parts: dict[tuple[str, int | None], Range] = field(default_factory=dict)
    distilling: Range = Range(0, 0)
    source: str = "estimated"
    stored_bytes: float = 0.0            # of one copy: what it leaves
    checkpoint_bytes: float = 0.0
    read_bytes: float = 0.0              # from the buffer, or of the GAN's last state
    memory_bytes: float = 0.0

    @property
    def all_work(self) -> Work:
        return (self.work + total(work for _, work in self.evaluations.values())) * self.copies


PROTOCOL = {"DDPP": "mtt", "GLD": "dim", "ESP": "dsa"}


def protocol_of(cell: papers.Cell) -> evaluate.Protocol:
    """The published protocol of a cell, on its network."""
    name = {"SKD": f"skd-{cell.ipc}", "PoDD": f"podd-{cell.dataset.replace('_', '-')}"}.get(cell.paper) or PROTOCOL[cell.paper]
    name = name if name in evaluate.PROTOCOLS else "podd"
    repeats = {"repeats": 5} if cell.paper == "ESP" else {}      # five networks in its tables; the protocol is DM's, which has 20
    network = "convnet4" if cell.paper == "ESP" and cell.dataset == "tiny_imagenet" else cell.eval_arch    # what the preset says of it
    return evaluate.with_options(name, network=network, **repeats)


def preset_of(cell: papers.Cell) -> str:
    """The preset that is meant to reproduce a cell."""
    name = f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc}"
    if cell.paper == "PoDD" and isinstance(cell.ipc, int):
        name = f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc:g}"
    if cell.paper == "GLD" and cell.train_arch == "convnet3+resnet18":
        return f"{name}-cross"
    endings = {"no standardization": "-no-standardization", "L_Proj only": "-proj-only", "L_DM only": "-dm-only"}
    return name + endings.get(cell.variant, "")


def own_cells() -> list[papers.Cell]:
    """The cells in which the five papers print their own methods, in the order of the tables; not PoDD's average over datasets."""
    return [cell for cell in papers.cells() if cell.paper == cell.method and cell.dataset != "average"]


def job_name(cell: papers.Cell) -> str:
    """Cells of one name come from one distillation: a generator serves every IPC."""
    name = preset_of(cell)
    if cell.paper in ("SKD", "GLD"):
        name = re.sub(r"-ipc\d+", "", name)
    return f"{cell.paper} {name}"


def jobs(rows: Iterable[Mapping[str, str]] = (), change: Callable[[Any], Any] = lambda config: config) -> dict[str, Job]:
    """Everything behind the own cells of the five papers, each once: buffers, GANs, then runs.

    rows: of measured.csv. change: what to do to every preset first, where something else than the published cells is asked for.
    """
    rows = list(rows)
    found: dict[str, Job] = {}
    shared: dict[str, Job] = {}
    for cell in own_cells():
        name = job_name(cell)
        module = importlib.import_module(f"ddlib.methods.{cell.paper.lower()}")
        config = change(module.PRESETS[preset_of(cell)])
        if name not in found:
            found[name] = Job(name, "run", cell.paper, config, work=distilling(config))
            needed = sharing(config, shared)
            found[name].needs = needed.name if needed else ""
            sizes(found[name], needed)
        ipc = int(cell.ipc) if cell.paper in ("SKD", "GLD") else None
        protocol = protocol_of(cell)
        found[name].evaluations[(protocol.network, ipc)] = (protocol, evaluating(config, protocol, ipc, side_by_side=True))
    everything = shared | found
    for job in everything.values():
        priced(job, rows)
    return everything


def sharing(config: Any, shared: dict[str, Job]) -> Job | None:
    """The buffer or the GAN that a run starts from, put into `shared` if it is new."""
    if hasattr(config, "experts"):
        wanted = config.experts()
        name = f"experts {wanted.dataset} {wanted.network} {wanted.preprocess}"
        if name in shared and replace(shared[name].config, num_experts=wanted.num_experts) != wanted:
            raise ValueError(f"two buffers are called {name!r}: {shared[name].config} and {wanted}")
        if name not in shared:
            trained = piece("train", wanted.network, wanted.width, wanted.dataset)
            shared[name] = Job(name, "experts", "experts", wanted, copies=wanted.num_experts, work=training_expert(wanted),
                               stored_bytes=snapshot_bytes(wanted), checkpoint_bytes=snapshot_bytes(wanted) / 2,
                               memory_bytes=3 * trained.saved_an_image * wanted.batch_size + 16 * trained.parameters)
        shared[name].copies = max(shared[name].copies, wanted.num_experts)
        return shared[name]
    if hasattr(config, "gan"):
        wanted = config.gan()
        name = f"GAN {wanted.dataset}"
        if name not in shared:
            both = piece("gan", "", wanted.gan_width, wanted.dataset)
            state = 12.0 * both.parameters                       # weights and Adam's two moments
            shared[name] = Job(name, "gan", "CGAN", wanted, work=distilling(wanted), stored_bytes=state + 4.0 * both.parameters,
                               checkpoint_bytes=state, memory_bytes=6 * both.saved_an_image * wanted.batch_size + 16.0 * both.parameters)
        if not same_run(shared[name].config, wanted):
            raise ValueError(f"two GANs are called {name!r}: {shared[name].config} and {wanted}")
        return shared[name]
    return None


def sizes(job: Job, needed: Job | None) -> None:
    """Bytes that a run leaves, saves on the way, reads and holds; counted, without what libraries take for themselves."""
    config = job.config
    shape, classes, _, _ = DATASETS[config.dataset]
    scalars = math.prod(shape)
    images = kept_images(config.dataset) * scalars
    if needed is not None and needed.kind == "gan":
        pool = [piece("train", name, width, config.dataset) for name, width in config.networks()]
        job.stored_bytes = 4.0 * piece("generate", "", config.gan_width, config.dataset).parameters
        job.checkpoint_bytes = needed.checkpoint_bytes + 8 * max(each.parameters for each in pool)
        job.read_bytes = needed.checkpoint_bytes
        job.memory_bytes = images + needed.memory_bytes * config.batch_size / needed.config.batch_size + max(
            3 * each.saved_an_image * config.batch_size + 12 * each.parameters for each in pool)
        return
    trained = piece("train", config.network, config.width, config.dataset)
    stored = 4.0 * classes * config.ipc * scalars
    if hasattr(config, "poster_width"):
        grid = poster.usual_grid(classes)
        width, height = (config.poster_width, config.poster_height) if config.poster_width else poster.size_for(
            config.ipc, *grid, shape[2], shape[1])
        stored = 4.0 * (shape[0] * width * height + classes**2)
    job.stored_bytes, job.checkpoint_bytes = stored, 3 * stored      # the set, and its optimizer's moments
    made = set_size(config)
    if hasattr(config, "window"):
        inner = config.inner_patches or made
        job.memory_bytes = images + 2 * trained.saved_an_image * inner + trained.saved_an_image * min(1000, config.real_batch) + (
            12.0 * trained.parameters * config.window)
    else:
        assert needed is not None
        one = 4.0 * trained.parameters
        if isinstance(config, esp.ESPConfig):
            drawn = config.steps * (config.segment + 1) * one
            job.memory_bytes = images + 3 * trained.saved_an_image * min(made, kfs.CHUNK) + 3 * one * (config.segment + 1)
        else:
            drawn = config.steps * 2 * one
            job.memory_bytes = images + 2 * trained.saved_an_image * (config.syn_batch or made) + one * config.syn_steps
        touched = needed.copies * (1 - (1 - 1 / needed.copies) ** config.steps)      # experts that are drawn at all
        job.read_bytes = drawn + touched * needed.stored_bytes       # each is read through once, for its checksum


def priced(job: Job, rows: list[Mapping[str, str]]) -> None:
    """Minutes of a GPU: estimated, or of the rows that one has made with this preset and protocol."""
    job.distilling = on_a_gpu(job.work)
    job.parts = {key: on_a_gpu(work) for key, (_, work) in job.evaluations.items()}
    measured = {key: gpu_minutes(job, key, rows) for key in job.parts}
    if found := {key: minutes for key, minutes in measured.items() if minutes}:
        # a row has distillation and evaluation in one number: split as estimated, so that every cell's sum is the row's
        def share(key: tuple[str, int | None]) -> float:
            return job.distilling.low / (job.distilling.low + job.parts[key].low)

        alone = min(minutes * share(key) for key, minutes in found.items())
        job.distilling, job.source = Range(alone, alone), "measured" if len(found) == len(job.parts) else "measured in part"
        job.parts |= {key: Range(minutes - alone, minutes - alone) for key, minutes in found.items()}
    job.minutes = reduce(lambda one, other: one + other, job.parts.values(), job.distilling)


def gpu_minutes(job: Job, key: tuple[str, int | None], rows: list[Mapping[str, str]]) -> float:
    """The median over the rows of a GPU for this evaluation of this very run; 0 if there is none."""
    protocol = job.evaluations[key][0]
    minutes = []
    for row in rows:
        if row["device"].startswith("cpu") or (row["method"], row["dataset"]) != (job.method, job.config.dataset):
            continue
        asked = parsed(row["command"])
        if (asked is not None and same_run(asked[0], job.config)
                and (row["protocol"], row["eval_arch"]) == (protocol.name, protocol.network)
                and int(row["n"]) >= protocol.repeats and key[1] in (None, float(row["ipc"])) and "width" not in row["variant"]):
            minutes.append(float(row["minutes"]))
    return statistics.median(minutes) if minutes else 0.0


def core_minutes(work: Work, method: str, speeds: list[Speed]) -> tuple[float, float, float]:
    """Low, middle and high minutes of a CPU core for this work, at the measured speeds of the method (experts: of DDPP)."""
    slow, middle, fast, _ = speed_of({"experts": "DDPP"}.get(method, method), speeds)
    low, usual, high = (work.operations / speed / 1e9 / 60 for speed in (fast, middle, slow))
    return low, usual, high


if __name__ == "__main__":
    from run import write  # tests/bench/run.py, beside this file

    torch.set_num_threads(1)
    jobs()
    core_speeds(evaluate.read_rows())
    write(COUNTS, COUNT_COLUMNS, count_rows())
    print(f"wrote {COUNTS}: {len(FRESH)} of {len(stored()) + len(FRESH)} counted now", file=sys.stderr)
