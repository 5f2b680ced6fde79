"""The one training loop. Experts, matching networks, feature extractors and evaluation all train classifiers here."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddlib import augment as aug
from ddlib.data import Preprocess, Split

Batch = tuple[Tensor, Tensor]                    # images (B, c, h, w) in the space the networks see; labels (B,) or (B, C)
Precision = Literal["float32", "bfloat16", "auto"]    # auto: bfloat16 where the device computes it in hardware


class Batches:
    """Endless shuffled mini-batches: every pass visits each image once; a last short batch is kept.

    images: (N, c, h, w), float in network space, or uint8 together with `preprocess`; labels: (N,) classes or (N, C)
    probabilities. `indices` (B,) tells which images the batch that came last was made of.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, rng: torch.Generator,
                 preprocess: Preprocess | None = None):
        if len(images) == 0:
            raise ValueError("there are no images to train on: give at least one")
        self.images, self.labels, self.batch_size, self.rng, self.preprocess = images, labels, batch_size, rng, preprocess
        self.indices = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = torch.randperm(len(self.images), generator=self.rng).to(self.images.device)
            for indices in order.split(self.batch_size):
                self.indices, images = indices, self.images.index_select(0, indices)    # on a CPU much faster than [indices]
                yield (self.preprocess(images) if self.preprocess else images), self.labels.index_select(0, indices)


def fit(net: nn.Module, batches: Batches | Iterator[Batch], *, steps: int, lr: float | Callable[[int], float] = 0.01,
        momentum: float = 0.9, weight_decay: float = 5e-4, optimizer: Literal["sgd", "adam"] | torch.optim.Optimizer = "sgd",
        restart_at: int | None = None, augment: str = "", mode: Literal["single", "all"] = "single",
        rng: torch.Generator | None = None, precision: Precision = "float32", loss: Callable[..., Tensor] = F.cross_entropy,
        observe: Callable[[int, Tensor], None] | None = None, compiled: bool = False) -> Tensor:
    """Train `net` in place for `steps` mini-batches and return the loss of each, (steps,).

    lr: a rate, or the rate as a function of the step counted from 0. optimizer: "sgd" or "adam" with `momentum` and
    `weight_decay`, or an optimizer of the network's parameters that goes on from an earlier call with its own.
    restart_at: the step at which the optimizer's momentum is forgotten (the base codes build a new optimizer at their
    rate drop). augment: a strategy of `ddlib.augment`, drawn from `rng`. observe(step, logits) is called after each
    update with that batch's logits. compiled: use the `faster` form of the network, which rounds differently and takes
    some seconds to make. Raises FloatingPointError when the loss stops being finite.
    """
    if augment not in ("", "none") and rng is None:
        raise ValueError("augmentation draws random numbers: pass rng=torch.Generator()")
    updater: torch.optim.Optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        updater = optimizer
    elif optimizer == "sgd":
        updater = torch.optim.SGD(net.parameters(), lr=0.0, momentum=momentum, weight_decay=weight_decay)
    else:
        updater = torch.optim.Adam(net.parameters(), lr=0.0, weight_decay=weight_decay)
    rate = lr if callable(lr) else lambda step: lr
    losses = []
    net.train()
    stream = iter(batches)
    with faster(net) if compiled else nullcontext(net) as forward:
        for step in range(steps):
            images, labels = next(stream)
            if augment not in ("", "none"):
                assert rng is not None
                images = aug.augment(images, augment, rng, mode=mode)
            if step == restart_at:
                updater.state.clear()
            for group in updater.param_groups:
                group["lr"] = rate(step)
            low = precision == "bfloat16" or (precision == "auto" and has_bfloat16(images.device))
            with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
                logits = forward(images)
                value = loss(logits, labels)
            updater.zero_grad(set_to_none=True)
            value.backward()
            updater.step()
            losses.append(value.detach())
            if observe is not None:
                observe(step, logits.detach())
            ask = (step + 1) % 50 == 0 or step + 1 == steps      # now and then: asking at every step would stall a GPU
            if ask and not torch.isfinite(value):
                raise FloatingPointError(f"the training loss is {value.item()} at step {step + 1} of {steps}: lower the learning rate")
    return torch.stack(losses).float() if losses else torch.empty(0)


class Stack(nn.Module):
    """n networks of one shape side by side: (n, B, c, h, w) -> (n, B, C). Its parameters are copies of theirs, stacked: (n, ...).

    Trained on `stacked` batches with a `summed` loss, each network becomes what it would alone, up to rounding: every
    coordinate gets the gradient of its own network's loss, and SGD and Adam change every coordinate by itself. (With bfloat16
    on a CPU vmap passes autocast by: convolutions of a stack stay in float32 there.)
    """

    def __init__(self, nets: Sequence[nn.Module]):
        super().__init__()
        self.forward_one = lambda weights, images: torch.func.functional_call(nets[0], weights, (images,))
        self.names = [name for name, _ in nets[0].named_parameters()]
        parts = zip(*(net.parameters() for net in nets), strict=True)
        self.weights = nn.ParameterList(torch.stack(part).detach() for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        return torch.func.vmap(self.forward_one)(dict(zip(self.names, self.weights, strict=True)), images)

    @torch.no_grad()
    def hand_back(self, nets: Sequence[nn.Module]) -> None:
        """Give the networks the weights that theirs have become."""
        for number, net in enumerate(nets):
            for theirs, weight in zip(net.parameters(), self.weights, strict=True):
                theirs.copy_(weight[number])


def can_stack(net: nn.Module) -> bool:
    """Whether a `Stack` can hold such networks: batch norm counts as it goes, and dropout draws from one stream for all."""
    return not list(net.buffers()) and not any(isinstance(part, nn.Dropout) for part in net.modules())


def stacked(streams: Sequence[Iterator[Batch]]) -> Iterator[Batch]:
    """Batches for a `Stack`, the next of every network's stream: images (n, B, c, h, w), labels (n, B) or (n, B, C)."""
    for turn in zip(*streams, strict=True):
        images, labels = map(torch.stack, zip(*turn, strict=True))
        yield images, labels


def summed(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum over the networks of a `Stack` of a loss that is a mean over images: each gets the gradient of its own mean."""
    return lambda logits, labels: len(logits) * loss(logits.flatten(0, 1), labels.flatten(0, 1))


@contextmanager
def faster(net: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """`net` as a function of (B, c, h, w) images that trains faster: compiled, with channels last in memory.

    On a CPU the first convolution stays in float32 when the others are bfloat16: for so few input channels its weight
    gradient would be slower by far. Batches of another size than the first are not compiled for. Where nothing can be
    compiled, it is the network as it is.
    """
    weight = next(net.parameters())
    if not can_compile(weight.device.type):
        yield net
        return
    conv = next((part for part in net.modules() if isinstance(part, nn.Conv2d)), None)
    if conv is not None and weight.device.type == "cpu":
        conv.forward = partial(_float32_inside, conv)  # type: ignore[method-assign]
    net.to(memory_format=torch.channels_last)
    quick, size = torch.compile(net, dynamic=False), 0

    def forward(images: Tensor) -> Tensor:
        nonlocal size
        size = size or len(images)
        return (quick if len(images) == size else net)(images.contiguous(memory_format=torch.channels_last))

    try:
        yield forward
    finally:
        net.to(memory_format=torch.contiguous_format)
        if conv is not None:
            vars(conv).pop("forward", None)


def _float32_inside(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The convolution without autocast, handing on what autocast would."""
    low = torch.is_autocast_enabled(images.device.type)
    with torch.autocast(images.device.type, enabled=False):
        maps = nn.Conv2d.forward(conv, images.to(conv.weight.dtype))
    return maps.to(torch.get_autocast_dtype(images.device.type)) if low else maps


@cache
def can_compile(device: str) -> bool:
    """Whether torch.compile works on this kind of device: it needs a C++ compiler for a CPU and Triton for a GPU."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:
        print(f"training without torch.compile, which does not work here ({str(error).strip().splitlines()[0]}): "
              "install a C++ compiler to make it faster", flush=True)
        return False
    return True


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees; called by command lines, before they train on a CPU.

    It gives every block above 32 MiB back to the system, so that each large activation is page-faulted afresh. The same as
    MALLOC_MMAP_MAX_=0 and its companions in the Makefile, which win where they are set; without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, option, value in (("MMAP_MAX_", -4, 0), ("TRIM_THRESHOLD_", -1, -1), ("TOP_PAD_", -2, 2**28)):
        if mallopt is not None and f"MALLOC_{name}" not in os.environ:
            mallopt(option, value)


class LiveBytes(TorchDispatchMode):
    """Counts, while it is entered, the bytes of the tensors made in it that are alive (`now`), and the most there were (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in (tensor.untyped_storage() for tensor in tree_leaves(made) if isinstance(tensor, Tensor)):
            if storage not in self.known:                       # several tensors may share one storage
                self.known[storage] = weakref.finalize(storage, self.freed, storage.nbytes())
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return made


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware: GPUs since Ampere, CPUs that say so."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


@torch.inference_mode()
def predict(net: nn.Module, images: Tensor, preprocess: Preprocess | None = None, batch_size: int = 500) -> Tensor:
    """Logits (N, C) of `images` (N, c, h, w), uint8 with `preprocess` or float in network space, in evaluation mode."""
    net.eval()
    return torch.cat([net(preprocess(chunk) if preprocess else chunk) for chunk in images.split(batch_size)])


def accuracy(net: nn.Module, split: Split, preprocess: Preprocess) -> float:
    """Share of `split` that `net` classifies correctly, in [0, 1]."""
    logits = predict(net, split.images, preprocess)
    return (logits.argmax(dim=1) == split.labels).double().mean().item()
