"""The hot operations of the methods, one file each: the equation in plain torch, a Triton kernel, its derivatives, and who runs.

The plain form is the definition and what chapters show. On a CUDA device the kernel takes its place where it can (float32 and
half precision, the shapes of these methods) and gives the same numbers; sums are in float32 always, and no kernel adds atomically,
so that a run repeats. `using("off")` or DDLIB_KERNELS=off turns them off. Without a GPU nothing here is touched.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Mode = Literal["auto", "on", "off"]


def can_launch() -> bool:
    """Whether there is a GPU that Triton makes code for, and a C compiler, with which it builds its launcher."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (7, 0):
        return False
    return any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))))


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"        # kernels run on the CPU, slowly, for tests
try:
    if not (INTERPRETED or can_launch()):
        raise ImportError
    import triton
    import triton.language as tl
    AVAILABLE = True
except ImportError:
    triton = tl = None
    AVAILABLE = False

_mode: list[Mode] = []


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit`, or nothing where there is no Triton to run it."""
    return triton.jit(function) if AVAILABLE else function


def mode() -> Mode:
    """"auto": kernels for CUDA tensors; "on": also for CPU tensors, under TRITON_INTERPRET=1; "off": never."""
    given: Any = _mode[-1] if _mode else os.environ.get("DDLIB_KERNELS", "auto")
    if given not in get_args(Mode):
        raise ValueError(f"unknown mode of the kernels {given!r}; choose from {', '.join(get_args(Mode))}")
    return given


@contextmanager
def using(wanted: Mode) -> Iterator[None]:
    """Within, whether kernels run is decided by this and not by DDLIB_KERNELS."""
    if wanted == "on" and not AVAILABLE:
        raise RuntimeError("kernels need Triton and a CUDA device, or Triton and TRITON_INTERPRET=1 set before ddlib is imported")
    _mode.append(wanted)
    try:
        mode()
        yield
    finally:
        _mode.pop()


def run_fast(name: str, *tensors: Tensor, unless: str = "") -> bool:
    """Whether the kernel `name` is to run on these tensors. Where one would expect it to and it cannot, says once why.

    unless: what its shapes are unfit for; empty if they are fit. A graph that is being compiled is left to the compiler.
    """
    if mode() == "off" or not (tensors[0].is_cuda or mode() == "on") or torch.compiler.is_compiling():
        return False
    if not AVAILABLE or not (tensors[0].is_cuda or INTERPRETED):
        say_once("kernels: plain torch runs instead, as they need Triton, a C compiler and a CUDA device of compute capability 7 or more, "
                 "or TRITON_INTERPRET=1")
        return False
    strange = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()
               and tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16)}
    if tensors[0].is_cuda and tensors[0].device.index != torch.cuda.current_device():
        unless = f"not for {tensors[0].device} while cuda:{torch.cuda.current_device()} is the current device"
    if strange or unless:
        say_once(f"kernel {name}: {unless or 'not for ' + ', '.join(sorted(strange))}, plain torch runs instead")
        return False
    return True


@functools.cache
def say_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`, the size of a block."""
    return 1 << max(least - 1, 0).bit_length()
